//! The certificates of a scenario: an authority that lives as long as the scenario, and key pairs
//! signed by it that are replaced while the proxy runs.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The authority that signs the certificates of a scenario. It writes them below one folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// Creates a new authority and writes its certificate to `ca.pem`.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "cutover-loadtest");
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        fs::write(folder.join("ca.pem"), certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            folder: folder.to_owned(),
        })
    }

    /// Writes `NAME.pem` and `NAME.key`, each by a rename, and returns the certificate in DER.
    pub fn issue(&self, name: &str, names: &[String]) -> io::Result<Vec<u8>> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(io::Error::other)?;
        replace(
            &self.folder.join(format!("{name}.key")),
            &key.serialize_pem(),
        )?;
        replace(&self.folder.join(format!("{name}.pem")), &certificate.pem())?;
        Ok(certificate.der().to_vec())
    }
}

/// Replaces a file atomically, so that no process reads half of it.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}
