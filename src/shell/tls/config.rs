//! Builds rustls' configurations from our configuration and the PEM files that it names.

use std::fs;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version,
};

use super::super::certificates::{Stamp, stamps};
use super::certificate::{Certificate, Key, date};
use super::idle_keys::keep_unexpanded;
use super::provider::{PROVIDER, cryptography, signing_key, ticketer};
use super::verify::{OwnOrSigned, Unchecked};
use crate::config::{
    BackendTls, Config, FrontendTls, Identity, TlsVersion, VerifyClient, WrongValue,
};
use crate::failure::UNSUPPORTED_KEY;
use crate::time::Time;

/// TLS settings of all sides. Cheap to clone; open sessions keep the settings they began with.
#[derive(Clone, Default)]
pub struct Tls {
    /// Towards clients, if `frontend` has a certificate.
    pub server: Option<ServerSide>,
    /// Towards Patroni, if `backend.scheme` is `https`.
    pub client: Option<ClientSide>,
    /// Towards the DCS, if `dcs.scheme` is `https`.
    pub dcs: Option<ClientSide>,
    /// What was found in the files.
    pub findings: Findings,
    /// The state of all files before they were read.
    pub stamps: Vec<Option<Stamp>>,
}

/// What was found in files of certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// To be logged.
    pub warnings: Vec<String>,
    /// The key of each file with a certificate of ours, and the Unix second in which its first
    /// certificate expires.
    pub not_after: Vec<(String, u64)>,
}

/// Settings of sessions with clients.
#[derive(Clone)]
pub struct ServerSide {
    pub(super) config: Arc<ServerConfig>,
    /// Whether clients are asked for certificates.
    pub(super) wants_certificates: bool,
}

/// Settings of sessions with an upstream, and those sessions that can be resumed.
#[derive(Clone)]
pub struct ClientSide {
    pub(super) config: Arc<ClientConfig>,
    /// `None`: that of the host connected to.
    name: Option<ServerName<'static>>,
    /// When the store of sessions was last emptied.
    kept_since: Time,
}

impl Tls {
    /// Reads every file the configuration names.
    pub fn read(config: &Config) -> Result<Tls, WrongValue> {
        let mut tls = Tls { stamps: stamps(config), ..Tls::default() };
        if let Some(frontend) = &config.frontend.tls {
            let config = Arc::new(server(frontend, &mut tls.findings)?);
            let wants_certificates = frontend.cafile.is_some();
            tls.server = Some(ServerSide { config, wants_certificates });
        }
        if let Some(backend) = &config.backend.tls {
            let hosts = [config.backend.host.as_str()];
            tls.client = Some(ClientSide::read("backend", backend, &hosts, &mut tls.findings)?);
        }
        let dcs = config.dcs.as_ref();
        if let Some((dcs, dcs_tls)) = dcs.and_then(|dcs| Some((dcs, dcs.tls.as_ref()?))) {
            let hosts: Vec<&str> = dcs.hosts.iter().map(|host| host.host.as_str()).collect();
            tls.dcs = Some(ClientSide::read("dcs", dcs_tls, &hosts, &mut tls.findings)?);
        }
        Ok(tls)
    }
}

impl ClientSide {
    /// Reads the files of a section whose upstream has these hosts.
    fn read(
        section: &'static str,
        tls: &BackendTls,
        hosts: &[&str],
        findings: &mut Findings,
    ) -> Result<ClientSide, WrongValue> {
        let checked = |name: &str| {
            server_name(name).ok_or_else(|| {
                let message = format!("{name:?} is neither a host name nor an address");
                WrongValue { section, key: "server-name", message }
            })
        };
        let name = tls.server_name.as_deref().map(checked).transpose()?;
        if name.is_none() {
            hosts.iter().try_for_each(|host| checked(host).map(drop))?;
        }
        let config = Arc::new(client(section, tls, findings)?);
        Ok(ClientSide { config, name, kept_since: Time::ZERO })
    }

    /// The name that the certificate of this host must contain; `None`: the host is not configured.
    pub(super) fn name(&self, host: &str) -> Option<ServerName<'static>> {
        self.name.clone().or_else(|| server_name(host))
    }

    /// Drops all sessions once an hour: a resumed session skips certificate verification, so an
    /// expired or replaced certificate would otherwise keep working.
    pub fn forget_old_sessions(&mut self, now: Time) {
        if now.ms_since(self.kept_since) >= SESSIONS_KEPT_MS {
            self.kept_since = now;
            Arc::make_mut(&mut self.config).resumption = Resumption::default();
        }
    }
}

fn server(tls: &FrontendTls, findings: &mut Findings) -> Result<ServerConfig, WrongValue> {
    let mut provider = provider(tls, findings)?;
    if tls.cafile.is_some() {
        keep_unexpanded(&mut provider);
    }
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(versions(tls.min_version)).map_err(|_| {
        let message = "none of these cipher suites fits frontend.tls-min-version".to_owned();
        WrongValue { section: "frontend", key: "tls-ciphers", message }
    })?;
    let builder = match &tls.cafile {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let certificates = certificates("frontend", "cafile", file)?;
            let roots = Arc::new(roots("frontend", file, &certificates, findings)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match tls.verify_client {
                VerifyClient::Required => verifier,
                VerifyClient::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error: VerifierBuilderError| {
                wrong_file("frontend", "cafile", file, &error)
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let identity = certified_key("frontend", &tls.identity, findings)?;
    let mut config = builder.with_cert_resolver(Arc::new(identity));
    // a client that offers only h2 gets the alert no_application_protocol
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    if tls.cafile.is_some() {
        // a resumed session skips verification, and the certificate may have expired since
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        return Ok(config);
    }
    // stateless tickets: no memory per client; their keys change every six hours
    config.ticketer = ticketer()
        .map_err(|_| wrong_file("frontend", "certfile", &tls.identity.certfile, &NO_RANDOM))?;
    // a ticket costs 4 to 5 microseconds, and clients resume with the newest one
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// The zone of an IPv6 address is local to this machine: no certificate contains it.
fn server_name(host: &str) -> Option<ServerName<'static>> {
    let zoneless = host.split('%').next().unwrap_or(host);
    ServerName::try_from(zoneless.to_owned()).ok()
}

fn client(
    section: &'static str,
    tls: &BackendTls,
    findings: &mut Findings,
) -> Result<ClientConfig, WrongValue> {
    let provider = Arc::new(cryptography());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| WrongValue {
        section,
        key: "scheme",
        message: error.to_string(),
    })?;
    let verifier: Arc<dyn ServerCertVerifier> = if tls.insecure {
        Arc::new(Unchecked)
    } else {
        let (roots, own, file) = match &tls.cafile {
            Some(file) => {
                let own = certificates(section, "cafile", file)?;
                (roots(section, file, &own, findings)?, own, file.as_str())
            }
            None => (public_roots(), Vec::new(), "the public roots"),
        };
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let webpki = built.map_err(|error| wrong_file(section, "cafile", file, &error))?;
        Arc::new(OwnOrSigned { webpki, own })
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            let identity = certified_key(section, identity, findings)?;
            Ok(builder.with_client_cert_resolver(Arc::new(identity)))
        }
    }
}

/// A certificate with its key. rustls would use webpki to check that they belong together, but
/// webpki cannot read X.509 version 1. nginx and Go serve such a certificate, and so do we.
fn certified_key(
    section: &'static str,
    identity: &Identity,
    findings: &mut Findings,
) -> Result<SingleCertAndKey, WrongValue> {
    let Identity { certfile, keyfile } = identity;
    let chain = certificates(section, "certfile", certfile)?;
    let leaf = chain.first().and_then(|leaf| Certificate::read(leaf));
    let leaf = leaf.ok_or_else(|| wrong_file(section, "certfile", certfile, &INVALID))?;
    let wrong_key = |message: &str| match leaf.key.unusable() {
        Some(kind) => {
            let message = format!("the certificate's key is {kind}, which {UNSUPPORTED_KEY}");
            wrong_file(section, "certfile", certfile, &message)
        }
        None => wrong_file(section, "keyfile", keyfile, &message),
    };
    // aws-lc-rs reads it as an RSA key, but rustls has no signature scheme for it
    if leaf.key == Key::Other("RSA-PSS") {
        return Err(wrong_key(""));
    }
    let key = signing_key(&private_key(section, keyfile)?);
    let key = key.map_err(|_| wrong_key(&format!("the key is not {}", PROVIDER.keys)))?;
    if key.public_key().is_some_and(|info| *info != *leaf.public_key_info) {
        return Err(wrong_key(&format!(
            "the key does not belong to the certificate in {certfile}"
        )));
    }
    findings.not_after.push((format!("{section}.certfile"), leaf.not_after));
    for warning in warnings_of_dates(&chain, UnixTime::now().as_secs()) {
        findings.warnings.push(format!("{section}.certfile: {certfile}: {warning}"));
    }
    Ok(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// Warnings about the dates of one certificate, at this Unix second. Bytes that are not a
/// certificate have none.
pub fn warnings_of_der(der: &[u8], now: u64) -> Vec<String> {
    warnings_of_dates(&[CertificateDer::from(der)], now)
}

/// Warnings about certificates that are not valid now, or not for long.
fn warnings_of_dates(chain: &[CertificateDer<'_>], now: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    for (at, der) in chain.iter().enumerate() {
        let Some(certificate) = Certificate::read(der) else { continue };
        let Certificate { not_before, not_after, .. } = certificate;
        // certificates of a day or a week are renewed later
        let lifetime = not_after.saturating_sub(not_before);
        let warned_seconds = EXPIRY_WARNED_SECONDS.min(lifetime / 3);
        let what = if now > not_after {
            format!("expired on {}", date(not_after))
        } else if now < not_before {
            format!("is not valid before {}", date(not_before))
        } else if not_after - now < warned_seconds {
            format!("expires on {}", date(not_after))
        } else {
            continue;
        };
        warnings.push(format!("certificate {} {what}", at + 1));
    }
    warnings
}

/// Warnings about a file of CA certificates that can verify nothing.
fn warnings_of_roots(roots: &[CertificateDer<'_>], now: u64) -> Vec<String> {
    let roots: Vec<Certificate<'_>> =
        roots.iter().filter_map(|root| Certificate::read(root)).collect();
    let mut warnings = Vec::new();
    if roots.iter().all(|root| now > root.not_after) {
        warnings.push("all certificates in it have expired".to_owned());
    }
    if !roots.iter().any(Certificate::is_anchor) {
        warnings.push("no CA certificate in it, nor a self-signed one".to_owned());
    }
    let mut keys = roots.iter().enumerate().map(|(at, root)| (at + 1, root.key.unverifiable()));
    if let Some((number, Some(kind))) = keys.find(|(_, kind)| kind.is_some()) {
        let which = format!("the key of certificate {number}");
        warnings.push(format!("{which} is {kind}, which {UNSUPPORTED_KEY}"));
    }
    warnings
}

/// The cipher suites, limited to those in `tls-ciphers`. Without a TLS 1.3 suite in the list
/// all three of TLS 1.3 are enabled: in Go they cannot be configured, so lists lack them.
fn provider(tls: &FrontendTls, findings: &mut Findings) -> Result<CryptoProvider, WrongValue> {
    let mut provider = cryptography();
    if tls.ciphers.is_empty() {
        return Ok(provider);
    }
    let wrong = |message| WrongValue { section: "frontend", key: "tls-ciphers", message };
    let mut named = Vec::new();
    for name in &tls.ciphers {
        if name == FALLBACK {
            findings.warnings.push(format!("frontend.tls-ciphers: {name} is not a cipher suite"));
            continue;
        }
        let suite = suite(name).ok_or_else(|| wrong(unknown_suite(name)))?;
        if provider.cipher_suites.iter().any(|spoken| spoken.suite() == suite) {
            named.push(suite);
        } else {
            findings.warnings.push(format!("frontend.tls-ciphers: {name} is not supported"));
        }
    }
    if named.is_empty() {
        return Err(wrong("none of these cipher suites is supported".to_owned()));
    }
    let is_13 = |suite: &CipherSuite| suite.as_str().is_some_and(|name| name.starts_with("TLS13_"));
    let names_13 = named.iter().any(is_13);
    provider.cipher_suites.retain(|spoken| {
        let suite = spoken.suite();
        named.contains(&suite) || (!names_13 && is_13(&suite))
    });
    Ok(provider)
}

/// Says what to write instead of a name that is not one of IANA's: OpenSSL has its own.
fn unknown_suite(name: &str) -> String {
    if name.contains(':') {
        return format!("{name} is OpenSSL's form of a list; write [NAME, NAME] with IANA's names");
    }
    let rest = name.strip_prefix("ECDHE-").and_then(|rest| rest.split_once('-'));
    let cipher = match rest.map(|(_, cipher)| cipher) {
        Some("AES128-GCM-SHA256") => Some("AES_128_GCM_SHA256"),
        Some("AES256-GCM-SHA384") => Some("AES_256_GCM_SHA384"),
        Some("CHACHA20-POLY1305") => Some("CHACHA20_POLY1305_SHA256"),
        _ => None,
    };
    match (rest, cipher) {
        (Some((key @ ("RSA" | "ECDSA"), _)), Some(cipher)) => {
            format!("unknown cipher suite {name}; did you mean TLS_ECDHE_{key}_WITH_{cipher}?")
        }
        _ if name.contains('-') => format!(
            "unknown cipher suite {name}; write IANA's name, such as \
             TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
        ),
        _ => format!("unknown cipher suite {name}"),
    }
}

/// The suite with this IANA name, or with one of Go's two shorter names.
fn suite(name: &str) -> Option<CipherSuite> {
    let iana = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        other => other,
    };
    // rustls writes TLS13_ where IANA's registry writes TLS_
    let tls13 = iana.strip_prefix("TLS_").map(|rest| format!("TLS13_{rest}"));
    let is_named = |suite: &CipherSuite| {
        suite.as_str().is_some_and(|name| name == iana || Some(name) == tls13.as_deref())
    };
    (0..=u16::MAX).map(CipherSuite::from).find(is_named)
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match min {
        TlsVersion::Obsolete | TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn roots(
    section: &'static str,
    file: &str,
    certificates: &[CertificateDer<'static>],
    findings: &mut Findings,
) -> Result<RootCertStore, WrongValue> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate.clone());
        added.map_err(|_| wrong_file(section, "cafile", file, &INVALID))?;
    }
    for warning in warnings_of_roots(certificates, UnixTime::now().as_secs()) {
        findings.warnings.push(format!("{section}.cafile: {file}: {warning}"));
    }
    Ok(roots)
}

fn private_key(section: &'static str, file: &str) -> Result<PrivateKeyDer<'static>, WrongValue> {
    let pem = fs::read(file).map_err(|error| wrong_file(section, "keyfile", file, &error))?;
    // in the PEM label, or in a header of the traditional format
    let is_encrypted = pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let encrypted = "encrypted keys are not supported";
        let why = if is_encrypted { encrypted } else { "no private key found" };
        wrong_file(section, "keyfile", file, &why)
    })
}

fn certificates(
    section: &'static str,
    key: &'static str,
    file: &str,
) -> Result<Vec<CertificateDer<'static>>, WrongValue> {
    let pem = fs::read(file).map_err(|error| wrong_file(section, key, file, &error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(wrong_file(section, key, file, &"no certificate found")),
        Err(_) => Err(wrong_file(section, key, file, &"invalid PEM")),
    }
}

fn wrong_file(
    section: &'static str,
    key: &'static str,
    file: &str,
    error: &dyn std::fmt::Display,
) -> WrongValue {
    WrongValue { section, key, message: format!("{file}: {error}") }
}

/// How long sessions with an upstream are resumed.
const SESSIONS_KEPT_MS: u64 = 60 * 60 * 1_000;
/// Remaining validity below which the start warns.
const EXPIRY_WARNED_SECONDS: u64 = 14 * 24 * 60 * 60;
const INVALID: &str = "the certificate is not valid DER";
const NO_RANDOM: &str = "the system returns no random bytes";
const ENCRYPTED: &[u8] = b"ENCRYPTED";
/// Go lists it as a cipher suite; clients send it to mark a retry with an older version (RFC 7507).
const FALLBACK: &str = "TLS_FALLBACK_SCSV";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_near_its_end_is_warned_of() {
        let path = format!("{}/tests/fixtures/tls/ecdsa.pem", env!("CARGO_MANIFEST_DIR"));
        let chain = certificates("frontend", "certfile", &path).expect("a certificate");
        // it is valid from the beginning of 2020 to the end of 2049
        let (begin, end, day) = (1_577_836_800, 2_524_521_600, 24 * 60 * 60);
        let expires = "certificate 1 expires on Fri, 31 Dec 2049 00:00:00 GMT";
        let table = [
            (begin - 1, "certificate 1 is not valid before Wed, 01 Jan 2020 00:00:00 GMT"),
            (begin, ""),
            (end - 14 * day, ""),
            (end - 14 * day + 1, expires),
            (end, expires),
            (end + 1, "certificate 1 expired on Fri, 31 Dec 2049 00:00:00 GMT"),
        ];
        for (now, expected) in table {
            assert_eq!(warnings_of_dates(&chain, now).concat(), expected, "{now}");
        }
        assert_eq!(warnings_of_roots(&chain, end), Vec::<String>::new());
        assert_eq!(warnings_of_roots(&chain, end + 1), ["all certificates in it have expired"]);
    }
}
