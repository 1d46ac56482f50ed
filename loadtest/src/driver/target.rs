//! The target of a load: an address, and which certificates to trust there.
//!
//! Any address except loopback has to be allowed explicitly, because a load generator is a weapon.
//! TLS trusts one named authority or, on request, any certificate. It never trusts the system's
//! authorities, because the target is a test system with its own certificates.
//!
//! Deliberately absent: paths in a target (the plan has one), user names, and proxies on the way.

use crate::units::UsageError;
use http::HeaderValue;
use http::uri::{Authority, Scheme, Uri};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// The target that receives the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(super) scheme: Scheme,
    pub(super) host: HeaderValue,
    pub(super) authority: Authority,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Which certificates a TLS client trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// No certificate: only targets without TLS can be loaded.
    #[default]
    Nobody,
    /// Certificates signed by an authority in this PEM file.
    Authority(PathBuf),
    /// Any certificate.
    Anybody,
}

impl Target {
    /// Parses and resolves `http://host:port` or `https://host:port`. Any address except loopback
    /// needs `allow_remote`.
    pub async fn resolve(text: &str, allow_remote: bool) -> Result<Self, UsageError> {
        let wrong = || {
            UsageError::new(format!(
                "expected a target such as http://127.0.0.1:8080 or https://localhost:8443, \
                 without a path, found {text:?}"
            ))
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = uri
            .scheme()
            .filter(|scheme| **scheme == Scheme::HTTP || **scheme == Scheme::HTTPS)
            .ok_or_else(wrong)?
            .clone();
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(wrong());
        }
        let authority = uri.authority().ok_or_else(wrong)?.clone();
        if authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => {
                if scheme == Scheme::HTTPS {
                    443
                } else {
                    80
                }
            }
            // An invalid port, such as 99999, must not become the default port.
            None => return Err(wrong()),
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| {
                UsageError::new(format!(
                    "expected a target that resolves, found {text:?}: {error}"
                ))
            })?
            .collect();
        let remote = addresses
            .iter()
            .find(|address| !address.ip().to_canonical().is_loopback());
        match remote {
            Some(address) if !allow_remote => Err(UsageError::new(format!(
                "expected a loopback target, found {text:?} ({address}); pass --allow-remote if \
                 you may load that machine"
            ))),
            _ if addresses.is_empty() => Err(wrong()),
            _ => Ok(Self {
                scheme,
                host: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
                authority,
                addresses,
            }),
        }
    }

    /// Returns the host and port.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// Returns the resolved addresses.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether the target speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Returns the name that the target's certificate has to carry.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, UsageError> {
        let host = self.authority.host().trim_matches(['[', ']']).to_owned();
        ServerName::try_from(host.clone()).map_err(|_| {
            UsageError::new(format!(
                "expected a name or an address that a certificate can carry, found {host:?}"
            ))
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme, self.authority)
    }
}

/// Creates the TLS configuration of a client that offers these protocols.
pub(super) fn client_config(
    trust: &Trust,
    protocols: &[&[u8]],
) -> Result<Arc<ClientConfig>, UsageError> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |error: rustls::Error| UsageError::new(format!("TLS cannot be set up: {error}"));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let mut config = match trust {
        Trust::Nobody => {
            return Err(UsageError::new(
                "expected --ca FILE or --insecure beside a target with https://, found neither",
            ));
        }
        Trust::Authority(path) => {
            let unreadable = |error: &dyn fmt::Display| {
                UsageError::new(format!(
                    "expected certificates in PEM in {}: {error}",
                    path.display()
                ))
            };
            let mut roots = RootCertStore::empty();
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?
            {
                roots
                    .add(certificate.map_err(|error| unreadable(&error))?)
                    .map_err(|error| unreadable(&error))?;
            }
            if roots.is_empty() {
                return Err(unreadable(&"there are none"));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous::new(&provider)))
            .with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A verifier that trusts any certificate, but still checks that the server holds its private key.
#[derive(Debug)]
struct Credulous(WebPkiSupportedAlgorithms);

impl Credulous {
    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::{Target, Trust, client_config};

    #[tokio::test]
    async fn loopback_targets_are_accepted_in_every_spelling() {
        for text in [
            "http://127.0.0.1:8080",
            "http://127.0.0.1:8080/",
            "http://127.9.9.9:1",
            "http://[::1]:8080",
            "http://[::ffff:127.0.0.1]:8080",
            "http://127.0.0.1",
            "https://127.0.0.1:8443",
        ] {
            Target::resolve(text, false).await.expect(text);
        }
    }

    #[tokio::test]
    async fn a_remote_target_needs_to_be_allowed() {
        let message = Target::resolve("http://192.0.2.1:8080", false)
            .await
            .expect_err("a remote address")
            .to_string();
        assert!(message.contains("--allow-remote"), "{message}");
        Target::resolve("http://192.0.2.1:8080", true)
            .await
            .expect("allowed");
    }

    #[tokio::test]
    async fn a_target_is_a_scheme_and_an_authority_without_a_path() {
        for text in [
            "127.0.0.1:8080",
            "ftp://127.0.0.1:8080",
            "http://127.0.0.1:8080/path",
            "http://127.0.0.1:8080/?q",
            "http://me@127.0.0.1:8080",
            "http://127.0.0.1:99999",
            "",
        ] {
            let message = Target::resolve(text, true)
                .await
                .expect_err(text)
                .to_string();
            assert!(
                message.contains("such as http://127.0.0.1:8080"),
                "{message}"
            );
        }
    }

    #[test]
    fn tls_needs_an_authority_to_trust() {
        let message = client_config(&Trust::Nobody, &[b"h2"])
            .expect_err("nobody")
            .to_string();
        assert!(message.contains("--ca FILE or --insecure"), "{message}");
        let message = client_config(&Trust::Authority("/nowhere/ca.pem".into()), &[b"h2"])
            .expect_err("no file")
            .to_string();
        assert!(message.contains("/nowhere/ca.pem"), "{message}");
        client_config(&Trust::Anybody, &[b"h2"]).expect("anybody");
    }
}
