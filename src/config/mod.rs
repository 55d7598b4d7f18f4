//! The configuration: checked values, and errors that name line and key.
//!
//! `raw` reads the YAML and checks each value as it is read, while the reader knows its line;
//! `lines` finds the line of a key afterwards. Past [`Config::from_yaml`] nothing is checked
//! again. Opens no file and no socket.

mod dcs;
mod hints;
mod lines;
mod ports;
mod raw;

use std::fmt;

pub use self::dcs::DCS_MARGIN_MS_MAX;
use self::lines::{line_of, line_of_duplicate};
use self::raw::RawConfig;
use crate::logformat::LogFormat;

/// All settings, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The clients' side.
    pub frontend: Frontend,
    /// Patroni's side.
    pub backend: Backend,
    /// The answers in memory.
    pub cache: Cache,
    /// The DCS; `None`: it is not asked.
    pub dcs: Option<Dcs>,
    /// Metrics and status; `None`: off.
    pub admin: Option<Admin>,
    /// HAProxy's agent checks; `None`: off.
    pub agent: Option<Agent>,
    /// Settings that have no effect, or not the expected one; to be logged.
    pub warnings: Vec<String>,
}

/// `frontend`: the clients' side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Name or address to listen on; `None`: all addresses, IPv4 and IPv6.
    pub host: Option<String>,
    /// 0: any free port; the log names it.
    pub port: u16,
    /// The format of the log line per request.
    pub log_format: LogFormat,
    /// Maximum number of clients; `None`: as many as the descriptor limit allows.
    pub connections: Option<usize>,
    /// Whether each connection begins with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Whether the kernel keeps back connections without bytes.
    pub defer_accept: bool,
    /// `None`: plain HTTP.
    pub tls: Option<FrontendTls>,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendTls {
    /// Our certificate.
    pub identity: Identity,
    /// PEM file of the CA that must have signed client certificates; `None`: none are asked for.
    pub cafile: Option<String>,
    /// With `cafile`: whether a client may do without a certificate.
    pub verify_client: VerifyClient,
    /// The minimum version.
    pub min_version: TlsVersion,
    /// Names of the enabled cipher suites; empty: all safe ones.
    pub ciphers: Vec<String>,
}

/// Values of `verify-client`. A certificate that is presented is verified either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyClient {
    /// Every client must present one.
    Required,
    /// Clients without one are accepted: Kubernetes' probes can present none.
    Optional,
}

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by intermediate certificates.
    pub certfile: String,
    /// The certificate's private key.
    pub keyfile: String,
}

/// Values of `tls-min-version`. Versions below 1.2 are accepted and mean 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TlsVersion {
    Obsolete,
    V1_2,
    V1_3,
}

/// `backend`: Patroni's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name or address of Patroni's REST API.
    pub host: String,
    /// The API's port.
    pub port: u16,
    /// Time limit of a fetch, queueing included.
    pub timeout_ms: u64,
    /// Maximum number of concurrent fetches.
    pub connections: usize,
    /// `None`: plain HTTP.
    pub tls: Option<BackendTls>,
}

/// TLS towards an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// Whether its certificate is accepted without verification.
    pub insecure: bool,
    /// PEM file of the CA that signed its certificate; `None`: the public root CAs.
    pub cafile: Option<String>,
    /// Our client certificate, as Patroni's `restapi.verify_client` requires it.
    pub identity: Option<Identity>,
    /// The name or address its certificate must contain; `None`: that of the host connected to.
    pub server_name: Option<String>,
}

/// `cache`: the answers in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// How long an answer is served as fresh.
    pub ttl_ms: u64,
    /// How much longer a stale answer may be served while Patroni is silent.
    pub grace_ms: u64,
    /// Time between sweeps that free expired answers.
    pub interval_ms: u64,
    /// Maximum number of answers kept for targets with parameters.
    pub entries: usize,
    /// Whether a leader route answers 503 once Patroni's HA loop seems to hang.
    pub fence: bool,
}

/// `dcs`: where Patroni keeps the leader's lease. Only `type: etcd3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dcs {
    /// At least one; they are tried in turn.
    pub hosts: Vec<DcsHost>,
    /// `None`: plain HTTP.
    pub tls: Option<BackendTls>,
    /// `None`: no user.
    pub user: Option<DcsUser>,
    /// Patroni's `namespace`.
    pub namespace: String,
    /// Patroni's `citus.group`.
    pub group: Option<u32>,
    /// How long before the end of the lease its leader is no longer confirmed.
    pub margin_ms: u64,
}

/// One of `dcs.hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DcsHost {
    /// Name or address.
    pub host: String,
    /// The port of clients.
    pub port: u16,
}

/// A user of the DCS.
#[derive(Clone, PartialEq, Eq)]
pub struct DcsUser {
    /// Its name.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// `password`, or what was in the file.
    Text(String),
    /// `password-file`, not read yet.
    File(String),
}

/// `admin`: where metrics and status are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Name or address to listen on; `None`: all addresses.
    pub host: Option<String>,
    /// 0: any free port; the log names it.
    pub port: u16,
}

/// `agent`: where HAProxy's agent checks are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Name or address to listen on; `None`: all addresses.
    pub host: Option<String>,
    /// 0: any free port; the log names it.
    pub port: u16,
    /// The target whose answer is reported; it has a route.
    pub route: String,
}

/// An error in a configuration, printed as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, counted from 1, if the YAML reader knows it.
    pub line: Option<usize>,
    /// The key and its error.
    pub message: String,
}

impl Config {
    /// Reads a configuration. The error names line and key.
    pub fn from_yaml(text: &str) -> Result<Config, ConfigError> {
        let raw = RawConfig::read(text).map_err(|error| ConfigError::from_reader(&error, text))?;
        raw.checked().map_err(|wrong| wrong.at_line_in(text))
    }
}

impl Config {
    /// The files of certificates, keys and CAs of all sections.
    pub fn certificate_files(&self) -> impl Iterator<Item = &str> {
        let frontend = self.frontend.tls.iter();
        let frontend = frontend.map(|tls| (Some(&tls.identity), tls.cafile.as_ref()));
        let upstreams = self.backend.tls.iter();
        let upstreams = upstreams.chain(self.dcs.iter().filter_map(|dcs| dcs.tls.as_ref()));
        let upstreams = upstreams.map(|tls| (tls.identity.as_ref(), tls.cafile.as_ref()));
        frontend.chain(upstreams).flat_map(|(identity, cafile)| {
            let pair = identity.into_iter().flat_map(|pair| [&pair.certfile, &pair.keyfile]);
            pair.chain(cafile).map(String::as_str)
        })
    }
}

impl Backend {
    /// Host and port as in a `Host` field (RFC 9110, section 7.2): IPv6 addresses in brackets.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }
}

impl DcsHost {
    /// Host and port as in a `Host` field.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl DcsUser {
    /// Puts the content of `password-file` in its place: one line, without its end. The error names
    /// the key.
    pub fn set_password(&mut self, content: &str) -> Result<(), WrongValue> {
        let line = content.strip_suffix('\n').unwrap_or(content);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let wrong = |message| Err(WrongValue::new("dcs", "password-file", message));
        if line.is_empty() {
            return wrong("the file is empty; write the password into it");
        }
        if line.contains(['\n', '\r']) {
            return wrong("the file has more than one line; write only the password into it");
        }
        self.password = Password::Text(line.to_owned());
        Ok(())
    }
}

impl fmt::Debug for DcsUser {
    /// The password stays out of every log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DcsUser").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The zone of an IPv6 address is local to this machine: no certificate contains it.
fn zoneless(host: &str) -> &str {
    host.split('%').next().unwrap_or(host)
}

/// A value that contradicts another one, or names an unusable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongValue {
    /// The section, such as `frontend`.
    pub section: &'static str,
    /// The key within the section.
    pub key: &'static str,
    /// The error, without the key.
    pub message: String,
}

impl WrongValue {
    /// An error of this key.
    pub fn new(section: &'static str, key: &'static str, message: &str) -> WrongValue {
        WrongValue { section, key, message: message.to_owned() }
    }

    /// Returns the error with the line of its key in the configuration's text; a key that is
    /// missing has the line of its section.
    pub fn at_line_in(self, text: &str) -> ConfigError {
        let WrongValue { section, key, message } = self;
        let line_of_key = |key| line_of(text, &[section, key], 0);
        // server-name defaults to the host, so that is the key to blame if it is not set
        let key = match (line_of_key(key), key, section) {
            (None, "server-name", "dcs") => "hosts",
            (None, "server-name", _) => "host",
            _ => key,
        };
        let line = line_of_key(key).or_else(|| line_of(text, &[section], 0));
        ConfigError { line, message: format!("{section}.{key}: {message}") }
    }
}

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}", self.section, self.key, self.message)
    }
}

impl ConfigError {
    fn from_reader(error: &serde_yaml::Error, text: &str) -> ConfigError {
        let (whole, line) = (error.to_string(), error.location().map(|place| place.line()));
        let line = line_of_duplicate(&whole, text).or(line);
        let (line, message) = hints::explain(&whole, line, text);
        // a key may contain anything
        let message = message.replace(char::is_control, " ");
        ConfigError { line, message }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => write!(f, "{}", self.message),
        }
    }
}
