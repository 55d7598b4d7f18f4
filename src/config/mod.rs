//! The configuration file: YAML as it is spelled, and the checked values it becomes.
//!
//! Each value is checked where it is read, so that the YAML reader knows the line of what is
//! wrong; past [`Config::from_yaml`] nothing is checked again. Opens no file and no socket.

mod lines;
mod raw;

use std::fmt;

use self::lines::{line_of, line_of_duplicate};
use self::raw::RawConfig;
use crate::logformat::LogFormat;

/// Everything that may be configured, with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The clients' side.
    pub frontend: Frontend,
    /// Patroni's side.
    pub backend: Backend,
    /// What lies between.
    pub cache: Cache,
    /// What is not wrong, but not what was meant either; to be logged.
    pub warnings: Vec<String>,
}

/// `frontend`: the clients' side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Name or address to listen on; `None`: every address, IPv4 and IPv6.
    pub host: Option<String>,
    /// 0: one that is free, told in the log.
    pub port: u16,
    /// The line per request.
    pub log_format: LogFormat,
    /// Most clients at once; `None`: as many as the descriptor limit allows.
    pub connections: Option<usize>,
    /// `None`: plain HTTP.
    pub tls: Option<FrontendTls>,
}

/// TLS as the clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendTls {
    /// Our certificate.
    pub identity: Identity,
    /// PEM of the CA whose client certificates are required; `None`: none is.
    pub cafile: Option<String>,
    /// The least version that is spoken.
    pub min_version: TlsVersion,
    /// Names of the cipher suites that may be spoken; empty: all safe ones.
    pub ciphers: Vec<String>,
}

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the CA's.
    pub certfile: String,
    /// Its private key.
    pub keyfile: String,
}

/// Versions of TLS that may be asked for. What is older than 1.2 is accepted, and means 1.2.
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
    /// Its port.
    pub port: u16,
    /// Milliseconds for a whole fetch.
    pub timeout_ms: u64,
    /// Fetches at once.
    pub connections: usize,
    /// `None`: plain HTTP.
    pub tls: Option<BackendTls>,
}

/// TLS as Patroni sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// Is its certificate taken as it is?
    pub insecure: bool,
    /// PEM of the CA that signed its certificate; `None`: the public roots.
    pub cafile: Option<String>,
    /// Our certificate, for `verify_client`.
    pub identity: Option<Identity>,
    /// The name or address its certificate must bear.
    pub server_name: String,
}

/// `cache`: what lies between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Milliseconds an answer is served.
    pub ttl_ms: u64,
    /// Milliseconds more that an old answer may be served while Patroni is silent.
    pub grace_ms: u64,
    /// Milliseconds between sweeps.
    pub interval_ms: u64,
    /// Answers kept for targets with parameters.
    pub entries: usize,
}

/// What is wrong with a configuration, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, counted from 1, where the YAML reader knows it.
    pub line: Option<usize>,
    /// The key and what is wrong with it.
    pub message: String,
}

impl Config {
    /// Reads a configuration. The error has line and key.
    pub fn from_yaml(text: &str) -> Result<Config, ConfigError> {
        let raw = RawConfig::read(text).map_err(|error| ConfigError::from_reader(&error, text))?;
        raw.checked().map_err(|wrong| wrong.at_line_in(text))
    }
}

impl Backend {
    /// Host and port as `Host` has them (RFC 9110, section 7.2): IPv6 addresses in brackets.
    pub fn authority(&self) -> String {
        let Backend { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// A value that is wrong in the light of others, or of the file it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongValue {
    /// `frontend` and the like.
    pub section: &'static str,
    /// The key within it.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
}

impl WrongValue {
    fn new(section: &'static str, key: &'static str, message: &str) -> WrongValue {
        WrongValue { section, key, message: message.to_owned() }
    }

    /// The error, with the line of the key in the configuration's text.
    pub fn at_line_in(self, text: &str) -> ConfigError {
        let WrongValue { section, key, message } = self;
        let line_of_key = |key| line_of(text, &[section, key], 0);
        // without a key of its own, the name in Patroni's certificate is its host's
        let key = match line_of_key(key) {
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
    /// serde_yaml puts the place behind its message; here it goes before it.
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
