//! Shared by the TLS tests: certificates, a client, and Patroni's stand-in on TLS.
#![allow(dead_code)] // each test file uses its own part

pub mod patroni;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls::{SupportedProtocolVersion, version};

/// The provider of the tests' own sessions: that of the binary.
#[cfg(feature = "aws-lc-rs")]
pub use rustls::crypto::aws_lc_rs as cryptography;
#[cfg(not(feature = "aws-lc-rs"))]
pub use rustls::crypto::ring as cryptography;

use crate::common::PATIENCE;

/// A certificate authority that lives as long as the test.
pub struct Ca {
    pub pem: String,
    /// The intermediate certificates, in the order in which they are sent.
    intermediates: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its intermediates, and its key.
#[derive(Clone)]
pub struct Identity {
    pub chain: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    Before,
    Later,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let params = ca_params(name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Ca { pem, intermediates: String::new(), issuer: Issuer::new(params, key) }
    }

    /// A CA signed by this one.
    pub fn intermediate(&self, name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let params = ca_params(name);
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let intermediates = format!("{pem}{}", self.intermediates);
        Ca { pem: self.pem.clone(), intermediates, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this machine that is valid now.
    pub fn issue(&self) -> Identity {
        self.issue_for(&["localhost", "127.0.0.1"], Valid::Now)
    }

    pub fn issue_for(&self, names: &[&str], valid: Valid) -> Identity {
        let (server, client) =
            (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        self.issue_with_purposes(names, valid, vec![server, client])
    }

    /// For this machine, valid now, but only as a client.
    pub fn issue_for_client(&self) -> Identity {
        let purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_with_purposes(&["localhost", "127.0.0.1"], Valid::Now, purposes)
    }

    fn issue_with_purposes(
        &self,
        names: &[&str],
        valid: Valid,
        purposes: Vec<ExtendedKeyUsagePurpose>,
    ) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = leaf_params(names, valid);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            chain: format!("{}{}", leaf.pem(), self.intermediates),
            key: key.serialize_pem(),
        }
    }
}

fn leaf_params(names: &[&str], valid: Valid) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    let year = |year| date_time_ymd(year, 1, 1);
    (params.not_before, params.not_after) = match valid {
        Valid::Now => (year(2020), year(2100)),
        Valid::Before => (year(2020), year(2021)),
        Valid::Later => (year(2090), year(2100)),
    };
    params
}

/// A self-signed CA certificate with its key, as `openssl req -x509` makes it.
pub fn self_signed_ca(names: &[&str], valid: Valid) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let mut params = leaf_params(names, valid);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let chain = params.self_signed(&key).expect("a certificate").pem();
    Identity { chain, key: key.serialize_pem() }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Identity {
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let certificates = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        certificates.collect::<Result<_, _>>().expect("certificates")
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key")
    }

    /// Writes both files to `folder` and returns the two lines of configuration that name them.
    pub fn lines(&self, folder: &Folder, name: &str) -> [String; 2] {
        let chain = folder.write(&format!("{name}.pem"), &self.chain);
        let key = folder.write(&format!("{name}.key"), &self.key);
        [format!("certfile: {chain}"), format!("keyfile: {key}")]
    }
}

/// A temporary folder, removed with its files.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = path.join(format!("tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).expect("a file");
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file of `tests/fixtures/tls`, in formats that only openssl writes.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    path.display().to_string()
}

pub fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    roots
}

pub const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
pub const ONLY_12: &[&SupportedProtocolVersion] = &[&version::TLS12];
pub const ONLY_13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// A client that trusts this CA.
pub fn client(
    ca: &str,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<&Identity>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(cryptography::default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("versions");
    let builder = builder.with_root_certificates(roots(ca));
    match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let config =
                builder.with_client_auth_cert(identity.certificates(), identity.private_key());
            config.expect("an identity")
        }
    }
}

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Connects; the handshake begins with the first read or write.
pub fn connect(config: &Arc<ClientConfig>, address: SocketAddr) -> TlsStream {
    let socket = TcpStream::connect(address).expect("a listener");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_nodelay(true).expect("no delay");
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(Arc::clone(config), name).expect("a session");
    StreamOwned::new(session, socket)
}

/// One request on a kept connection, and its response.
pub fn ask(stream: &mut (impl Read + Write), target: &str) -> std::io::Result<String> {
    // if this fails, reading returns the cause
    let _ = write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let _ = stream.flush();
    read_answer(stream)
}

/// The cause of a refused handshake: the server's alert, or our own verification error.
pub fn refusal(stream: &mut TlsStream) -> String {
    let error = ask(stream, "/primary").expect_err("a refusal");
    if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
        return error.to_string();
    }
    // writing failed first; the alert can still be read
    while stream.conn.read_tls(&mut stream.sock).is_ok_and(|count| count > 0) {
        if let Err(error) = stream.conn.process_new_packets() {
            return error.to_string();
        }
    }
    error.to_string()
}

/// One response that has a `Content-Length`.
pub fn read_answer(stream: &mut impl Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = crate::common::header(&text, "Content-Length");
            let length: usize = length.and_then(|value| value.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Ok(text);
            }
        }
        match stream.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

/// `("frontend", line)` for each line.
pub fn section<'a>(name: &'a str, lines: &'a [String]) -> Vec<(&'a str, &'a str)> {
    lines.iter().map(|line| (name, line.as_str())).collect()
}
