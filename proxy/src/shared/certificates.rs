//! The certificates that clients see. They are chosen by server name, and read again when their
//! files change.
//!
//! A pair whose files are unusable keeps the last usable certificate: a renewal that fails half-way
//! must not take the site down. The problem is reported once, in the log and as a metric, and
//! checked again every second. At the start there is no earlier certificate, so a bad pair is an
//! error then.
//!
//! A chain that is being written in place may be cut between two certificates, and no syntax check
//! detects that. So both files have to remain unchanged for a while (see `settling`). Until then
//! the
//! previous pair stays in use.
//!
//! Changes are detected by the files' content and not by events. Certificates are renewed by tools
//! that write, rename, or swap links, on every kind of file system.
//!
//! Deliberately absent: fetching certificates (ACME), client certificates, OCSP stapling.
//!
//! Written by: `assemble`, and the thread that follows the files. Read by: the listener and the
//! metrics.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use cutover_config::Certificate;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock;
use crate::shared::published::Published;
use crate::shared::settling::{Fingerprint, Settling};

/// How often files are checked.
const LOOK: Duration = Duration::from_secs(1);
/// How often files are checked while one of them has changed recently.
const LOOK_AT_RESTING: Duration = Duration::from_millis(100);
/// How long unusable files have to remain unchanged before they are reported as broken.
const BROKEN: Duration = Duration::from_millis(200);
/// The number of remaining days from which the log warns, once a day.
const WARN_DAYS: i64 = 14;
const DAY_MS: i64 = 86_400_000;

/// All certificates in use. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Certificates(Arc<ArcSwap<Table>>);

#[derive(Debug, Default)]
struct Table {
    pairs: Vec<Arc<Pair>>,
    /// The certificates by lower-case name. `*.example.org` is stored under that text.
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

/// One pair of files, as last read successfully.
#[derive(Debug)]
struct Pair {
    of: Certificate,
    fingerprint: [u8; 32],
    /// The fingerprints of both files.
    sights: [Fingerprint; 2],
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    expires_ms: i64,
    /// The reason why the current files are unusable. `None` if they are usable.
    problem: Option<String>,
}

/// The state of a certificate, for metrics and `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The path of the certificate, as the configuration file names it.
    pub path: String,
    /// The time of expiry, in milliseconds of Unix time.
    pub expires_ms: i64,
    /// Whether the current files are in use.
    pub is_current: bool,
}

/// An unusable pair of files.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificate {} with the key {} ([listen] certificates): {why}", of.cert, of.key)]
pub struct Unusable {
    /// The certificate.
    of: Certificate,
    /// The reason.
    why: String,
}

impl Certificates {
    /// Reads all pairs. Paths are relative to `base`.
    ///
    /// # Errors
    /// The first unusable pair.
    pub fn load(base: &Path, wanted: &[Certificate]) -> Result<Self, Unusable> {
        let pairs = wanted.iter().map(|of| {
            read(base, of)
                .and_then(|files| pair(of, &files))
                .map_err(|why| Unusable {
                    of: of.clone(),
                    why,
                })
        });
        let table = Table::of(
            pairs
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .map(Arc::new)
                .collect(),
        );
        Ok(Self(Arc::new(ArcSwap::from_pointee(table))))
    }

    /// Returns a configuration for TLS 1.2 and 1.3, and for HTTP/2 and HTTP/1.1. It uses these
    /// certificates, including later changes.
    ///
    /// # Errors
    /// When the system provides no random numbers.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new()?;
        Ok(config)
    }

    /// Returns the state of each certificate, in the order of the configuration file.
    pub fn standings(&self) -> Vec<Standing> {
        self.0
            .load()
            .pairs
            .iter()
            .map(|pair| Standing {
                path: pair.of.cert.clone(),
                expires_ms: pair.expires_ms,
                is_current: pair.problem.is_none(),
            })
            .collect()
    }

    /// Reads files that have changed and then remained unchanged for a while. Unusable files leave
    /// the old certificate in place. Returns whether any file may still be changing.
    fn refresh(
        &self,
        base: &Path,
        wanted: &[Certificate],
        rests: &mut Rests,
        told: &mut Vec<(Certificate, String)>,
    ) -> bool {
        let before = self.0.load();
        let (mut pairs, mut some_rest) = (Vec::new(), false);
        rests.retain(|(of, _)| wanted.contains(of));
        told.retain(|(of, _)| wanted.contains(of));
        for of in wanted {
            let known = before.pairs.iter().find(|pair| pair.of == *of);
            let found = read(base, of).and_then(|files| match known {
                Some(known) if known.fingerprint == files.fingerprint => Ok(Found::Same),
                Some(_) | None => {
                    let pair = pair(of, &files);
                    let is_usable = pair.is_ok();
                    if have_rested(of, known, is_usable, &files, rests) {
                        pair.map(|pair| Found::New(Box::new(pair)))
                    } else {
                        Ok(Found::Rests)
                    }
                }
            });
            if matches!(found, Ok(Found::Same | Found::New(_))) {
                rests.retain(|(resting, _)| resting != of);
            }
            if found.is_ok() {
                told.retain(|(unusable, _)| unusable != of);
            }
            some_rest |= matches!(found, Ok(Found::Rests));
            match (found, known) {
                (Ok(Found::Same), Some(known)) if known.problem.is_none() => {
                    pairs.push(Arc::clone(known));
                }
                (Ok(Found::Same), Some(known)) => pairs.push(Arc::new(known.with(None))),
                (Ok(Found::Rests), Some(known)) => pairs.push(Arc::clone(known)),
                (Ok(Found::New(new)), _) => {
                    tracing::info!(
                        certificate = of.cert,
                        names = new.names.join(", "),
                        expires = expiry(new.expires_ms),
                        "a certificate is in use"
                    );
                    pairs.push(Arc::from(new));
                }
                (Err(why), Some(known)) if known.problem.as_ref() == Some(&why) => {
                    pairs.push(Arc::clone(known));
                }
                (Err(why), Some(known)) => {
                    tracing::error!(
                        certificate = of.cert,
                        key = of.key,
                        why,
                        "a certificate cannot be used; the one before stays in use"
                    );
                    pairs.push(Arc::new(known.with(Some(why))));
                }
                (Err(why), None)
                    if told
                        .iter()
                        .any(|(unusable, before)| unusable == of && *before == why) => {}
                (Err(why), None) => {
                    tracing::error!(
                        certificate = of.cert,
                        key = of.key,
                        why,
                        "a new certificate cannot be used; the others stay in use"
                    );
                    told.retain(|(unusable, _)| unusable != of);
                    told.push((of.clone(), why));
                }
                (Ok(Found::Same | Found::Rests), None) => {}
            }
        }
        let unchanged = pairs.len() == before.pairs.len()
            && pairs
                .iter()
                .zip(&before.pairs)
                .all(|(now, before)| Arc::ptr_eq(now, before));
        // Without any certificate there would be no handshake at all, so an old one is better.
        if !unchanged && !pairs.is_empty() {
            self.0.store(Arc::new(Table::of(pairs)));
        }
        some_rest
    }

    fn warn_of_expiry(&self) {
        let now = clock::wall().as_millis();
        for pair in self
            .0
            .load()
            .pairs
            .iter()
            .filter(|pair| pair.expires_ms - now < WARN_DAYS * DAY_MS)
        {
            tracing::warn!(
                certificate = pair.of.cert,
                expires = expiry(pair.expires_ms),
                "a certificate expires soon, or has expired"
            );
        }
    }

    /// Follows the files of the published configuration on a thread of its own.
    ///
    /// # Errors
    /// When the system cannot create the thread.
    pub fn follow(
        &self,
        base: PathBuf,
        published: Arc<Published>,
        stopped: mpsc::Receiver<()>,
    ) -> io::Result<JoinHandle<()>> {
        let certificates = self.clone();
        std::thread::Builder::new()
            .name("certificates".to_owned())
            .spawn(move || {
                let mut warned = None;
                // New unusable pairs and their problems, each of which is reported once.
                let (mut rests, mut told) = (Rests::new(), Vec::new());
                loop {
                    let some_rest = certificates.refresh(
                        &base,
                        &published.load().common.settings.listen.certificates,
                        &mut rests,
                        &mut told,
                    );
                    let now = clock::mono();
                    if warned.is_none_or(|before| now.since(before) >= Duration::from_secs(86_400))
                    {
                        warned = Some(now);
                        certificates.warn_of_expiry();
                    }
                    let patience = if some_rest { LOOK_AT_RESTING } else { LOOK };
                    if stopped.recv_timeout(patience) != Err(mpsc::RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.load();
        let named = hello.server_name().and_then(|name| table.for_name(name));
        named
            .or_else(|| table.pairs.first().map(|pair| &pair.key))
            .map(Arc::clone)
    }
}

impl Table {
    fn of(pairs: Vec<Arc<Pair>>) -> Self {
        let mut by_name = HashMap::new();
        for pair in &pairs {
            for name in &pair.names {
                by_name
                    .entry(name.clone())
                    .or_insert_with(|| Arc::clone(&pair.key));
            }
        }
        Self { pairs, by_name }
    }

    /// Looks up the exact name first, and then `*.` in place of its first label.
    fn for_name(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            name.split_once('.')
                .and_then(|(_, rest)| self.by_name.get(&format!("*.{rest}")))
        })
    }
}

impl Pair {
    fn with(&self, problem: Option<String>) -> Self {
        let Self {
            of,
            fingerprint,
            sights,
            key,
            names,
            expires_ms,
            problem: _,
        } = self;
        Self {
            of: of.clone(),
            fingerprint: *fingerprint,
            sights: sights.clone(),
            key: Arc::clone(key),
            names: names.clone(),
            expires_ms: *expires_ms,
            problem,
        }
    }
}

/// The result of checking a pair.
enum Found {
    /// The files are the ones in use.
    Same,
    /// The files are different and may still be being written.
    Rests,
    /// The files are different and complete.
    New(Box<Pair>),
}

/// The pairs whose files have changed, and since when both files have remained unchanged.
type Rests = Vec<(Certificate, [Settling; 2])>;

/// Returns whether the files of a pair have remained unchanged long enough to be considered
/// complete, or broken.
fn have_rested(
    of: &Certificate,
    known: Option<&Arc<Pair>>,
    is_usable: bool,
    files: &Files,
    rests: &mut Rests,
) -> bool {
    let now = clock::mono();
    let at = rests
        .iter()
        .position(|(resting, _)| resting == of)
        .unwrap_or_else(|| {
            rests.push((
                of.clone(),
                files.sights.clone().map(|sight| Settling::new(sight, now)),
            ));
            rests.len() - 1
        });
    let (_, resting) = &mut rests[at];
    (0..2).fold(true, |both, file| {
        resting[file].look(files.sights[file].clone(), now);
        let whole = || files.sights[file].rest_after(known.map(|known| &known.sights[file]));
        let least = if is_usable { whole() } else { BROKEN };
        both & resting[file].has_rested(least, now)
    })
}

/// The content of both files, and a hash of it.
struct Files {
    fingerprint: [u8; 32],
    sights: [Fingerprint; 2],
    cert: Vec<u8>,
    key: Vec<u8>,
}

fn read(base: &Path, of: &Certificate) -> Result<Files, String> {
    let text = |path: &str| {
        std::fs::read(base.join(path)).map_err(|error| format!("cannot read {path}: {error}"))
    };
    let (cert, key) = (text(&of.cert)?, text(&of.key)?);
    let mut digest = Sha256::new();
    digest.update((cert.len() as u64).to_le_bytes());
    digest.update(&cert);
    digest.update(&key);
    let sights = [
        Fingerprint::of(&base.join(&of.cert), Ok(&cert)),
        Fingerprint::of(&base.join(&of.key), Ok(&key)),
    ];
    Ok(Files {
        fingerprint: digest.finalize().into(),
        sights,
        cert,
        key,
    })
}

fn pair(of: &Certificate, files: &Files) -> Result<Pair, String> {
    let Files {
        fingerprint,
        sights,
        cert,
        key,
    } = files;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{} is not a chain of certificates in PEM: {error}", of.cert))?;
    let site = chain
        .first()
        .ok_or_else(|| format!("there is no certificate in {}", of.cert))?;
    let (names, expires_ms) = names_of(site)
        .ok_or_else(|| format!("the first certificate in {} cannot be read", of.cert))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("there is no private key in PEM in {}: {error}", of.key))?;
    let signing = ring::sign::any_supported_type(&key)
        .map_err(|error| format!("the key in {} cannot be used: {error}", of.key))?;
    let key = CertifiedKey::new(chain, signing);
    match key.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(_) => {
            return Err(format!(
                "the key in {} does not belong to the certificate in {}",
                of.key, of.cert
            ));
        }
    }
    Ok(Pair {
        of: of.clone(),
        fingerprint: *fingerprint,
        sights: sights.clone(),
        key: Arc::new(key),
        names,
        expires_ms,
        problem: None,
    })
}

/// Returns the names that a certificate is for, in lower case, and when it expires.
fn names_of(der: &CertificateDer<'_>) -> Option<(Vec<String>, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = alternatives
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| {
            if let GeneralName::DNSName(name) = name {
                Some(name.to_ascii_lowercase())
            } else {
                None
            }
        })
        .collect();
    if names.is_empty() {
        names.extend(
            certificate
                .subject()
                .iter_common_name()
                .filter_map(|name| name.as_str().ok())
                .map(str::to_ascii_lowercase),
        );
    }
    Some((
        names,
        certificate
            .validity()
            .not_after
            .timestamp()
            .saturating_mul(1000),
    ))
}

fn expiry(ms: i64) -> String {
    clock::rfc3339(cutover_core::Wall::from_millis(ms))
}
