//! TLS on both sides, and the choice between HTTP/1.1 and HTTP/2.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use crate::harness::{PATIENCE, Proxy, file, rollout, until};
use crate::process::{World, command, log_line};

/// A certificate authority for one test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Test CA");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    fn write(&self, directory: &Path, file: &str, names: &[&str]) -> Vec<u8> {
        let (certificate, key) = self.sign(names);
        std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
        std::fs::write(directory.join(format!("{file}.pem")), certificate.pem()).unwrap();
        certificate.der().to_vec()
    }

    pub fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let mut config = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        Arc::new(config)
    }
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub fn connect(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<Tls> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(
        Arc::clone(config),
        ServerName::try_from(name.to_owned()).unwrap(),
    )
    .unwrap();
    let mut tls = StreamOwned::new(connection, socket);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(tls)
}

fn certificate_for(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Vec<u8> {
    let tls = connect(address, name, config).unwrap();
    tls.conn.peer_certificates().unwrap()[0].to_vec()
}

/// Sends one HTTP/1.1 request over TLS, and returns everything received until the end.
fn ask(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<String> {
    let mut tls = connect(address, name, config)?;
    tls.write_all(
        format!("GET / HTTP/1.1\r\nhost: {name}\r\nx-user-id: u\r\nconnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Starts a proxy with TLS, and returns it with its address.
pub fn start(authority: &Authority, more: &str) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start_prepared(|directory| {
        authority.write(directory, "one", &["one.example", "*.one.example"]);
        authority.write(directory, "two", &["two.example"]);
        let certificates = "certificates = [{ cert = \"one.pem\", key = \"one.key\" }, { cert = \
                            \"two.pem\", key = \"two.key\" }]";
        (
            format!(
                "[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = \
                 [\"127.0.0.1:0\"]\n{certificates}\n{more}"
            ),
            rollout("checkout", "100", ""),
        )
    });
    let https = proxy.https();
    (proxy, https)
}

#[test]
fn certificates_are_chosen_by_name_and_clients_by_protocol() {
    let authority = Authority::new();
    let (proxy, https) = start(&authority, "");
    let config = authority.client(&[b"http/1.1"]);
    let one = certificate_for(https, "one.example", &config);
    assert_eq!(
        certificate_for(https, "shop.one.example", &config),
        one,
        "the wildcard"
    );
    assert_ne!(certificate_for(https, "two.example", &config), one);
    assert!(
        connect(https, "three.example", &config).is_err(),
        "an unknown name gets the first certificate, and that is not for it"
    );
    let answer = ask(https, "one.example", &config).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("new 0"),
        "{answer}"
    );
    let head = proxy.new.last_head().to_ascii_lowercase();
    assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
    // Both versions of TLS are accepted, and nothing older.
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = Arc::new(
            builder
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        );
        assert!(
            ask(https, "one.example", &config)
                .unwrap()
                .starts_with("HTTP/1.1 200 "),
            "{version:?}"
        );
    }
}

#[test]
fn a_tls_client_uses_the_lane() {
    let authority = Authority::new();
    let (proxy, https) = start(&authority, "[log]\nfile = \"access.log\"\n");
    let answer = ask(https, "two.example", &authority.client(&[b"http/1.1"])).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("new 0"),
        "{answer}"
    );
    let line = until("its line", || {
        std::fs::read_to_string(proxy.directory.path().join("access.log"))
            .ok()
            .filter(|log| log.ends_with('\n'))
    });
    let engine = if crate::harness::engine() == "auto" {
        "lane"
    } else {
        "proxy"
    };
    assert!(
        line.contains(&format!("\"cutover.engine\":\"{engine}\"")),
        "{line}"
    );
}

#[test]
fn a_renewed_certificate_is_used_at_once_and_a_broken_one_never() {
    let authority = Authority::new();
    let (proxy, https) = start(&authority, "");
    let config = authority.client(&[b"http/1.1"]);
    let directory = proxy.directory.path();
    let current = |path: &str| {
        proxy.metric(&format!(
            "cutover_certificate_last_reload_successful{{certificate=\"{path}\"}}"
        ))
    };
    assert_eq!(current("one.pem"), Some(1.0));
    let expiry = proxy
        .metric("cutover_certificate_expiry_timestamp_seconds{certificate=\"one.pem\"}")
        .unwrap();
    assert!(expiry > 1.7e9, "{expiry}");
    // This connection stays open during all of the following.
    let mut open = connect(https, "one.example", &config).unwrap();

    let renewed = authority.write(directory, "one", &["one.example"]);
    until("the renewed certificate", || {
        (certificate_for(https, "one.example", &config) == renewed).then_some(())
    });
    for (file, text) in [
        ("one.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ("one.pem", "nothing"),
        ("one.key", "no key"),
    ] {
        let good = std::fs::read(directory.join(file)).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
        until("it to be noticed", || {
            (current("one.pem") == Some(0.0)).then_some(())
        });
        assert_eq!(
            certificate_for(https, "one.example", &config),
            renewed,
            "{file} = {text:?}"
        );
        std::fs::write(directory.join(file), good).unwrap();
        until("it to be mended", || {
            (current("one.pem") == Some(1.0)).then_some(())
        });
    }
    // This is the key of another certificate.
    std::fs::copy(directory.join("two.key"), directory.join("one.key")).unwrap();
    until("it to be noticed", || {
        (current("one.pem") == Some(0.0)).then_some(())
    });
    assert_eq!(certificate_for(https, "one.example", &config), renewed);
    assert_eq!(current("two.pem"), Some(1.0));

    open.write_all(
        b"GET / HTTP/1.1\r\nhost: one.example\r\nx-user-id: u\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    let mut answer = Vec::new();
    let _ = open.read_to_end(&mut answer);
    assert!(
        answer.starts_with(b"HTTP/1.1 200 "),
        "a connection outlives its certificate"
    );
}

#[test]
fn a_start_with_an_unusable_certificate_names_it_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(directory.path(), "one", &["one.example"]);
    authority.write(directory.path(), "two", &["two.example"]);
    let of = |cert: &str, key: &str| cutover_config::Certificate {
        cert: cert.to_owned(),
        key: key.to_owned(),
    };
    let load = |cert: &str, key: &str| {
        cutover::shared::certificates::Certificates::load(directory.path(), &[of(cert, key)])
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(load("one.pem", "one.key"), Ok(()));
    for (cert, key, why) in [
        (
            "none.pem",
            "one.key",
            "cannot read none.pem: No such file or directory (os error 2)",
        ),
        ("one.key", "one.key", "there is no certificate in one.key"),
        (
            "one.pem",
            "one.pem",
            "there is no private key in PEM in one.pem",
        ),
        (
            "one.pem",
            "two.key",
            "the key in two.key does not belong to the certificate in one.pem",
        ),
    ] {
        let error = load(cert, key).unwrap_err();
        assert!(
            error.starts_with(&format!(
                "cannot use the certificate {cert} with the key {key} ([listen] certificates): \
                 {why}"
            )),
            "{error}"
        );
    }
}

#[test]
fn a_client_that_never_finishes_its_handshake_is_disconnected() {
    let authority = Authority::new();
    let (proxy, https) = start(&authority, "header_timeout = \"200ms\"\nh2c = true\n");
    for (address, begun) in [
        (https, &b"\x16\x03\x01\x02\x00"[..]),
        (https, b""),
        (proxy.http, b"PRI * HTTP/2"),
        (proxy.http, b""),
    ] {
        let mut silent = TcpStream::connect(address).unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        silent.write_all(begun).unwrap();
        assert!(
            matches!(silent.read(&mut [0; 64]), Ok(0) | Err(_)),
            "{begun:?}"
        );
    }
    until("no connection to be left", || {
        (proxy.metric("cutover_connections{state=\"open\"}") == Some(0.0)).then_some(())
    });
}

#[test]
fn an_http2_port_still_accepts_the_shortest_http1_request() {
    let proxy = Proxy::start_with(
        "[listen]\nhttp = [\"127.0.0.1:0\"]\nh2c = true\n",
        &rollout("checkout", "100", ""),
    );
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(proxy.http).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // The request is sent in pieces, because the first bytes may also be received like that.
        for part in request.as_bytes().chunks(5) {
            client.write_all(part).unwrap();
        }
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "{request:?}: {answer:?}"
        );
    }
}

/// Starts a backend that speaks TLS and reports which name was requested.
fn tls_backend(certificate: &rcgen::Certificate, key: &KeyPair) -> SocketAddr {
    let builder =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der().to_vec())], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let _ = socket.set_read_timeout(Some(PATIENCE));
                let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        match tls.read(&mut byte) {
                            Ok(1) => head.push(byte[0]),
                            Ok(_) | Err(_) => return,
                        }
                    }
                    let name = tls.conn.server_name().unwrap_or("nobody").to_owned();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nx-served-by: {name}\r\ncontent-length: 2\r\n\r\nok"
                    );
                    if tls
                        .write_all(answer.as_bytes())
                        .and_then(|()| tls.flush())
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn backends_are_verified_by_name_and_authority() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign(&["shop.internal"]);
    let address = tls_backend(&certificate, &key);
    let backend =
        |more: &str| format!("[backend.new]\nservers = [\"https://{address}\"]\n{more}\n");
    for (more, expected) in [
        (
            "ca = \"ca.pem\"\nserver_name = \"shop.internal\"",
            (200, "shop.internal"),
        ),
        // The cases are the wrong name, the address, for which there is no certificate, another
        // authority, and the authorities of the system.
        (
            "ca = \"ca.pem\"\nserver_name = \"other.internal\"",
            (502, "nobody"),
        ),
        ("ca = \"ca.pem\"", (502, "nobody")),
        (
            "ca = \"stranger.pem\"\nserver_name = \"shop.internal\"",
            (502, "nobody"),
        ),
        ("server_name = \"shop.internal\"", (502, "nobody")),
    ] {
        let proxy = Proxy::start_prepared(|directory| {
            std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
            std::fs::write(directory.join("stranger.pem"), stranger.pem()).unwrap();
            (
                backend(more),
                rollout(
                    "checkout",
                    "100",
                    "failover = \"off\"\n[rollout.guard]\nmode = \"off\"\n",
                ),
            )
        });
        let answer = proxy.get("/", &[("x-user-id", "u")]);
        assert_eq!(
            (answer.status(), answer.side()),
            expected,
            "{more}: {}",
            answer.text()
        );
        if expected.0 == 502 {
            until("it to be new's failure", || {
                (proxy.metric(
                    "cutover_failures_total{rollout=\"checkout\",backend=\"new\",kind=\"connect\"}",
                ) == Some(1.0))
                .then_some(())
            });
        }
    }
}

#[test]
fn a_kept_connection_is_not_shared_between_authorities() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign(&["shop.internal"]);
    let address = tls_backend(&certificate, &key);
    let backend = |name: &str, ca: &str| {
        format!(
            "[backend.{name}]\nservers = [\"https://{address}\"]\nserver_name = \
             \"shop.internal\"\nca = \"{ca}.pem\"\n"
        )
    };
    let to = |name: &str, side: &str| {
        rollout(
            name,
            "100",
            &format!(
                "match = {{ path = \"/{name}\" }}\nnew = \"{side}\"\nfailover = \
                 \"off\"\n[rollout.guard]\nmode = \"off\"\n"
            ),
        )
    };
    let proxy = Proxy::start_prepared(|directory| {
        std::fs::write(directory.join("ours.pem"), authority.pem()).unwrap();
        std::fs::write(directory.join("theirs.pem"), stranger.pem()).unwrap();
        (
            backend("good", "ours") + &backend("bad", "theirs"),
            to("good", "good") + &to("bad", "bad"),
        )
    });
    let statuses: Vec<u16> = ["/good", "/bad", "/good", "/bad"]
        .iter()
        .map(|path| proxy.get(path, &[("x-user-id", "u")]).status())
        .collect();
    assert_eq!(statuses, [200, 502, 200, 502]);
}

#[test]
fn a_chain_written_slowly_is_never_served_without_its_intermediates() {
    let authority = Authority::new();
    let (proxy, https) = start(&authority, "");
    let config = authority.client(&[b"http/1.1"]);
    let chain_of = || {
        connect(https, "one.example", &config)
            .unwrap()
            .conn
            .peer_certificates()
            .unwrap()
            .len()
    };
    let directory = proxy.directory.path();
    // The certificate of the authority represents any that follows the first in a chain.
    let chain = std::fs::read_to_string(directory.join("one.pem")).unwrap() + &authority.0.pem();
    std::fs::write(directory.join("one.pem"), &chain).unwrap();
    until("the chain of two", || (chain_of() == 2).then_some(()));
    let before = certificate_for(https, "one.example", &config);
    authority.write(directory, "next", &["one.example"]);
    let next = std::fs::read_to_string(directory.join("next.pem")).unwrap();
    std::fs::copy(directory.join("next.key"), directory.join("one.key")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The pause is what is tested: it is longer than the time until the file is checked.
            let mut file = std::fs::File::create(directory.join("one.pem")).unwrap();
            file.write_all(next.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1_500));
            file.write_all(authority.0.pem().as_bytes()).unwrap();
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            assert_eq!(chain_of(), 2);
        }
    });
    until("the new pair", || {
        (certificate_for(https, "one.example", &config) != before).then_some(())
    });
    assert_eq!(chain_of(), 2);
}

#[test]
fn a_new_pair_is_used_or_reported_once_if_unusable() {
    let authority = Authority::new();
    let world = World::new(&rollout("checkout", "100", ""));
    authority.write(world.path(), "one", &["one.example"]);
    let write = |more: &str| {
        let certificates =
            format!("certificates = [{{ cert = \"one.pem\", key = \"one.key\" }}{more}]");
        let tables = format!(
            "[listen]\nhttp = [\"127.0.0.1:0\"]\nhttps = \
             [\"127.0.0.1:0\"]\n{certificates}\n[log]\naccess = \"off\"\n"
        );
        std::fs::write(
            world.path().join("cutover.toml"),
            file(
                world.path(),
                &world.legacy,
                &world.new,
                &tables,
                &rollout("checkout", "100", ""),
            ),
        )
        .unwrap();
    };
    write("");
    let mut child = command(world.path()).spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stdout.take().unwrap());
    let ready = log_line(&mut log, "cutover is ready");
    let https: SocketAddr = ready["http"]
        .as_str()
        .unwrap()
        .split("https://")
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    write(", { cert = \"none.pem\", key = \"none.key\" }");
    let unusable = "a new certificate cannot be used; the others stay in use";
    assert_eq!(log_line(&mut log, unusable)["certificate"], "none.pem");
    // By the time a renewed certificate has settled and is in use, all files have been checked
    // several times.
    authority.write(world.path(), "one", &["one.example"]);
    let mut line = String::new();
    while !line.contains("a certificate is in use") {
        assert!(!line.contains(unusable), "told again: {line}");
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut log, &mut line).unwrap(),
            0,
            "the log ended"
        );
    }
    authority.write(world.path(), "two", &["two.example"]);
    write(", { cert = \"two.pem\", key = \"two.key\" }");
    let config = authority.client(&[b"http/1.1"]);
    until("a pair that is new in the file", || {
        connect(https, "two.example", &config).is_ok().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
