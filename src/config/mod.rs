//! The configuration: checked values, and errors that name line and key.
//!
//! `raw` reads the YAML and checks each value as it is read, while the reader knows its line;
//! `lines` finds the line of a key afterwards. Past [`Config::from_yaml`] nothing is checked
//! again. Opens no file and no socket.

mod lines;
mod raw;

use std::fmt;

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
    /// The DCS, for the lease witness; `None`: it is never asked.
    pub dcs: Option<Dcs>,
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
    /// `None`: plain HTTP.
    pub tls: Option<FrontendTls>,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendTls {
    /// Our certificate.
    pub identity: Identity,
    /// PEM file of the CA that must have signed client certificates; `None`: none are required.
    pub cafile: Option<String>,
    /// The minimum version.
    pub min_version: TlsVersion,
    /// Names of the enabled cipher suites; empty: all safe ones.
    pub ciphers: Vec<String>,
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

/// `dcs`: the DCS, for the lease witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dcs {
    /// Names or addresses, each with a port; at least one.
    pub hosts: Vec<(String, u16)>,
    /// Time limit of one request.
    pub timeout_ms: u64,
    /// `None`: plain HTTP.
    pub tls: Option<BackendTls>,
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

impl Backend {
    /// Host and port as in a `Host` field (RFC 9110, section 7.2): IPv6 addresses in brackets.
    pub fn authority(&self) -> String {
        let Backend { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
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
    fn new(section: &'static str, key: &'static str, message: &str) -> WrongValue {
        WrongValue { section, key, message: message.to_owned() }
    }

    /// Returns the error with the line of its key in the configuration's text.
    pub fn at_line_in(self, text: &str) -> ConfigError {
        let WrongValue { section, key, message } = self;
        let line_of_key = |key| line_of(text, &[section, key], 0);
        // server-name defaults to the host, so that is the key to blame if it is not set
        let key = match line_of_key(key) {
            None if key == "server-name" && section == "dcs" => "hosts",
            None if key == "server-name" => "host",
            _ => key,
        };
        ConfigError { line: line_of_key(key), message: format!("{section}.{key}: {message}") }
    }
}

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}", self.section, self.key, self.message)
    }
}

impl ConfigError {
    /// Takes the position off the end of serde_yaml's message: ours comes first.
    fn from_reader(error: &serde_yaml::Error, text: &str) -> ConfigError {
        let whole = error.to_string();
        let place = whole.rfind(" at line ").unwrap_or(whole.len());
        let message = whole[..place].replace('\n', " ");
        let line = error.location().map(|location| location.line());
        ConfigError { line: line_of_duplicate(&message, text).or(line), message }
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
