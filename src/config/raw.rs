//! The YAML form of a configuration: its sections, and the conversion of each value.
//!
//! Values are converted and checked while serde_yaml reads them, so that its errors have a line.

use std::fmt;
use std::marker::PhantomData;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::dcs::RawDcs;
use super::ports::{LocalHost, RawAdmin, RawAgent, Target, check_ports};
use super::{
    Backend, BackendTls, Cache, Config, Frontend, FrontendTls, Identity, TlsVersion, VerifyClient,
    WrongValue, zoneless,
};
use crate::logformat::LogFormat;

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a mapping of sections")]
pub struct RawConfig {
    frontend: Option<RawFrontend>,
    backend: Option<RawBackend>,
    cache: Option<RawCache>,
    dcs: Option<RawDcs>,
    admin: Option<RawAdmin>,
    agent: Option<RawAgent>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[serde(expecting = "a mapping of keys to values")]
struct RawFrontend {
    host: Option<ListenHost>,
    port: Option<Count<0, 65_535>>,
    logformat: Optional<String>,
    connections: Option<Count<1, 1_000_000>>,
    proxy_protocol: Option<Flag>,
    defer_accept: Option<Flag>,
    certfile: Optional<String>,
    keyfile: Optional<String>,
    cafile: Optional<String>,
    verify_client: Optional<VerifyClient>,
    tls_min_version: Optional<TlsVersion>,
    tls_ciphers: Option<Vec<String>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[serde(expecting = "a mapping of keys to values")]
struct RawBackend {
    host: Optional<Host>,
    port: Option<Count<1, 65_535>>,
    scheme: Optional<Scheme>,
    timeout: Option<Seconds<100, 600_000>>,
    connections: Option<Count<1, 1_000>>,
    insecure: Option<Flag>,
    cafile: Optional<String>,
    certfile: Optional<String>,
    keyfile: Optional<String>,
    server_name: Optional<Host>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a mapping of keys to values")]
struct RawCache {
    ttl: Option<Seconds<0, 86_400_000>>,
    interval: Option<Seconds<10, 86_400_000>>,
    entries: Option<Count<1, 65_536>>,
    grace: Option<Seconds<0, 3_600_000>>,
    fence: Option<Flag>,
}

impl RawConfig {
    /// Reads the only document. A second one is an error, because it would be ignored.
    pub fn read(text: &str) -> Result<RawConfig, serde_yaml::Error> {
        let mut documents = serde_yaml::Deserializer::from_str(text);
        let first = documents.next().map(Option::deserialize).transpose()?;
        for surplus in documents {
            Surplus::deserialize(surplus)?;
        }
        Ok(first.flatten().unwrap_or_default())
    }

    /// Checks values against each other and fills in the defaults.
    pub fn checked(self) -> Result<Config, WrongValue> {
        let mut warnings = Vec::new();
        // one of the two ports is set: the defaults differ
        let has_port = self.backend.as_ref().is_some_and(|backend| backend.port.is_some());
        let section = if has_port { "backend" } else { "frontend" };
        let frontend = self.frontend.unwrap_or_default().checked(&mut warnings)?;
        let backend = self.backend.unwrap_or_default().checked(&mut warnings)?;
        let admin = self.admin.unwrap_or_default().checked(&mut warnings);
        let agent = self.agent.unwrap_or_default().checked(&mut warnings);
        if frontend.port == backend.port && reaches(&backend.host, frontend.host.as_deref()) {
            let message = "patroniglue would ask itself; set backend.port to Patroni's, or \
                frontend.port to another one";
            return Err(WrongValue::new(section, "port", message));
        }
        check_ports(&frontend, &backend, admin.as_ref(), agent.as_ref())?;
        let dcs = self.dcs.map(|dcs| dcs.checked(&mut warnings)).transpose()?;
        let cache = self.cache.unwrap_or_default();
        let ttl_ms = cache.ttl.map_or(1_000, |seconds| seconds.0);
        if ttl_ms > TTL_MS_ADVISED_MAX {
            let seconds = ttl_ms as f64 / 1e3;
            warnings.push(format!(
                "cache.ttl: load balancers may see a change of the node {seconds} s late; use 5 \
                 or less"
            ));
        }
        Ok(Config {
            frontend,
            backend,
            cache: Cache {
                ttl_ms,
                grace_ms: cache.grace.map_or(0, |seconds| seconds.0),
                interval_ms: cache.interval.map_or(250, |seconds| seconds.0),
                entries: cache.entries.map_or(64, |count| count.0 as usize),
                fence: cache.fence.is_some_and(|flag| flag.0),
            },
            dcs,
            admin,
            agent,
            warnings,
        })
    }
}

impl RawFrontend {
    fn checked(self, warnings: &mut Vec<String>) -> Result<Frontend, WrongValue> {
        let ciphers = self.tls_ciphers.unwrap_or_default();
        let min_version = self.tls_min_version.0;
        let (cafile, verify_client) = (self.cafile.0, self.verify_client.0);
        if verify_client.is_some() && cafile.is_none() {
            let message = "there is no CA to verify client certificates with; add cafile";
            return Err(WrongValue::new("frontend", "verify-client", message));
        }
        let verify_client = verify_client.unwrap_or(VerifyClient::Required);
        let defer_accept = self.defer_accept.is_some_and(|flag| flag.0);
        check_defer_accept(defer_accept, cfg!(target_os = "linux"))?;
        let identity = identity("frontend", self.certfile.0, self.keyfile.0)?;
        if identity.is_none() {
            if cafile.is_some() {
                let message = "client certificates need TLS; add certfile and keyfile";
                return Err(WrongValue::new("frontend", "cafile", message));
            }
            if min_version.is_some() {
                warnings.push("frontend.tls-min-version has no effect without certfile".into());
            }
            if !ciphers.is_empty() {
                warnings.push("frontend.tls-ciphers has no effect without certfile".into());
            }
        } else if min_version == Some(TlsVersion::Obsolete) {
            let message = "TLS below 1.2 is not supported; using TLSv1.2";
            warnings.push(format!("frontend.tls-min-version: {message}"));
        }
        let format = self.logformat.0.as_deref().unwrap_or(LOG_FORMAT);
        let (log_format, unknown) = LogFormat::parse(format);
        if !unknown.is_empty() {
            let unknown = unknown.join(" ").escape_debug().to_string();
            let known = "the placeholders are %a %m %U %s %D %%";
            warnings.push(format!("frontend.logformat: {unknown} is plain text; {known}"));
        }
        let min_version = min_version.unwrap_or(TlsVersion::V1_2);
        let tls = |identity| FrontendTls { identity, cafile, verify_client, min_version, ciphers };
        Ok(Frontend {
            host: self.host.map_or(Some(LOCALHOST.to_owned()), |host| host.0),
            port: self.port.map_or(80, |port| port.0 as u16),
            log_format,
            connections: self.connections.map(|count| count.0 as usize),
            proxy_protocol: self.proxy_protocol.is_some_and(|flag| flag.0),
            defer_accept,
            tls: identity.map(tls),
        })
    }
}

/// Refuses what the system does not have.
fn check_defer_accept(is_wanted: bool, is_linux: bool) -> Result<(), WrongValue> {
    if is_wanted && !is_linux {
        let message = "only Linux can keep connections back; remove it";
        return Err(WrongValue::new("frontend", "defer-accept", message));
    }
    Ok(())
}

impl RawBackend {
    fn checked(self, warnings: &mut Vec<String>) -> Result<Backend, WrongValue> {
        let host = self.host.0.map_or(LOCALHOST.to_owned(), |host| host.0);
        let identity = identity("backend", self.certfile.0, self.keyfile.0)?;
        let insecure = self.insecure.is_some_and(|flag| flag.0);
        let cafile = self.cafile.0;
        let server_name = self.server_name.0.map_or(zoneless(&host).to_owned(), |name| name.0);
        let tls = if self.scheme.0 == Some(Scheme::Https) {
            if insecure {
                warnings.push("backend.insecure: Patroni's certificate is not checked".into());
            }
            let server_name = Some(server_name);
            Some(BackendTls { insecure, cafile, identity, server_name })
        } else {
            if cafile.is_some() || identity.is_some() {
                let message = "cafile and certfile have no effect without scheme: https";
                warnings.push(format!("backend: {message}"));
            }
            None
        };
        Ok(Backend {
            host,
            port: self.port.map_or(8008, |port| port.0 as u16),
            timeout_ms: self.timeout.map_or(3_000, |seconds| seconds.0),
            connections: self.connections.map_or(3, |count| count.0 as usize),
            tls,
        })
    }
}

/// Whether connections to `host` arrive at a listener on `listening` of the same port. `false` if
/// that depends on the machine.
pub(super) fn reaches(host: &str, listening: Option<&str>) -> bool {
    let is_localhost = |host: &str| host.eq_ignore_ascii_case(LOCALHOST);
    let address = |host: &str| host.parse().ok().map(|address: IpAddr| address.to_canonical());
    let reached = address(host);
    let is_loopback = is_localhost(host) || reached.is_some_and(|address| address.is_loopback());
    let Some(listening) = listening else { return is_loopback };
    match address(listening) {
        Some(IpAddr::V6(all)) if all.is_unspecified() => is_loopback,
        Some(IpAddr::V4(all)) if all.is_unspecified() => {
            is_loopback && reached.is_none_or(|address| address.is_ipv4())
        }
        Some(address) if is_localhost(host) => LOOPBACK.contains(&address),
        Some(address) => reached == Some(address),
        None if is_localhost(listening) => {
            is_localhost(host) || reached.is_some_and(|address| LOOPBACK.contains(&address))
        }
        None => host.eq_ignore_ascii_case(listening),
    }
}

/// Returns both files or none; one without the other is an error.
pub(super) fn identity(
    section: &'static str,
    certfile: Option<String>,
    keyfile: Option<String>,
) -> Result<Option<Identity>, WrongValue> {
    match (certfile, keyfile) {
        (Some(certfile), Some(keyfile)) => Ok(Some(Identity { certfile, keyfile })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(WrongValue::new(section, "certfile", "keyfile is missing")),
        (None, Some(_)) => Err(WrongValue::new(section, "keyfile", "certfile is missing")),
    }
}

/// A host name or an IP address.
pub(super) struct Host(pub String);

/// A host to listen on; `None`: all addresses.
pub(super) struct ListenHost(pub Option<String>);

/// A whole number within a range.
pub(super) struct Count<const MIN: u64, const MAX: u64>(pub u64);

/// A number of seconds, such as `1` or `0.25`, within a range; stored in milliseconds.
pub(super) struct Seconds<const MIN_MS: u64, const MAX_MS: u64>(pub u64);

/// A boolean.
pub(super) struct Flag(pub bool);

/// The protocol of Patroni's API.
#[derive(PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// A document after the first one. Only an empty one is accepted.
struct Surplus;

impl FromScalar for Host {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        let wrong = |hint| Err(format!("{scalar} is neither a name nor an address{hint}"));
        let Scalar::Text(text) = scalar else { return wrong("") };
        // the Go program accepted IPv6 addresses only in brackets
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let is_good = match bare.split_once('%') {
            Some((address, zone)) => is_ipv6(address) && is_name(zone),
            None => is_ipv6(bare) || is_name(bare),
        };
        match is_good {
            true => Ok(Host(bare.to_owned())),
            false if text.contains(':') => wrong("; write the port as a separate key"),
            false => wrong(""),
        }
    }
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

/// Whether the text may be a host name: the same characters as in the Go program.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

impl FromScalar for ListenHost {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("" | "*") => Ok(ListenHost(None)),
            other => Host::from_scalar(other).map(|host| ListenHost(Some(host.0))),
        }
    }
}

impl<const MIN: u64, const MAX: u64> FromScalar for Count<MIN, MAX> {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        let count = match scalar {
            Scalar::Integer(count) => Some(count),
            // `80.0` is accepted because `1.0` is a valid number of seconds
            Scalar::Float(count) if count.fract() == 0.0 => Some(count as i128),
            _ => None,
        };
        match count {
            Some(count) if (MIN as i128..=MAX as i128).contains(&count) => Ok(Count(count as u64)),
            _ => Err(format!("{scalar} is not a whole number from {MIN} to {MAX}")),
        }
    }
}

impl<const MIN_MS: u64, const MAX_MS: u64> FromScalar for Seconds<MIN_MS, MAX_MS> {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        let (min, max) = (MIN_MS as f64 / 1e3, MAX_MS as f64 / 1e3);
        let seconds = match scalar {
            Scalar::Integer(seconds) => seconds as f64,
            Scalar::Float(seconds) => seconds,
            _ => f64::NAN,
        };
        if !(min..=max).contains(&seconds) {
            return Err(format!("{scalar} is not a number of seconds from {min} to {max}"));
        }
        Ok(Seconds((seconds * 1e3).round() as u64))
    }
}

impl FromScalar for String {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text(text) => Ok(text.to_owned()),
            other => Err(format!("{other} is not a string")),
        }
    }
}

impl FromScalar for Flag {
    /// Accepts the words of YAML 1.1 as well, as the Go program did.
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Flag(flag) => Ok(Flag(flag)),
            Scalar::Text(text) => match text.to_ascii_lowercase().as_str() {
                "y" | "yes" | "on" | "true" => Ok(Flag(true)),
                "n" | "no" | "off" | "false" => Ok(Flag(false)),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            other => Err(format!("{other} is neither true nor false")),
        }
    }
}

impl FromScalar for TlsVersion {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("SSLv3.0" | "TLSv1.0" | "TLSv1.1") => Ok(TlsVersion::Obsolete),
            Scalar::Text("TLSv1.2") => Ok(TlsVersion::V1_2),
            Scalar::Text("TLSv1.3") => Ok(TlsVersion::V1_3),
            other => Err(format!("{other} is not a TLS version; write TLSv1.2 or TLSv1.3")),
        }
    }
}

impl FromScalar for VerifyClient {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("required") => Ok(VerifyClient::Required),
            Scalar::Text("optional") => Ok(VerifyClient::Optional),
            other => Err(format!("{other} is neither required nor optional")),
        }
    }
}

impl FromScalar for Scheme {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("http") => Ok(Scheme::Http),
            Scalar::Text("https") => Ok(Scheme::Https),
            other => Err(format!("{other} is neither http nor https")),
        }
    }
}

impl FromScalar for Surplus {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Null => Ok(Surplus),
            _ => Err("a second YAML document; a configuration has only one".to_owned()),
        }
    }
}

macro_rules! deserialize_from_scalar {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => { $(
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(ScalarVisitor(PhantomData))
            }
        }
    )* };
}

deserialize_from_scalar!(
    [] ListenHost,
    [] Flag,
    [] LocalHost,
    [] Target,
    [] Surplus,
    [const MIN: u64, const MAX: u64] Count<MIN, MAX>,
    [const MIN: u64, const MAX: u64] Seconds<MIN, MAX>,
    [T: FromScalar] Optional<T>,
);

/// A YAML value.
#[derive(Debug)]
pub(super) enum Scalar<'a> {
    Null,
    Flag(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
    /// A list or a section.
    Collection,
}

/// A type that can be made from one scalar. The error lacks line and key: serde_yaml adds them.
pub(super) trait FromScalar: Sized {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String>;
}

/// A value that may be empty: no value and `""` mean the default, as in the Go program.
pub(super) struct Optional<T>(pub Option<T>);

impl<T> Default for Optional<T> {
    fn default() -> Self {
        Optional(None)
    }
}

impl<T: FromScalar> FromScalar for Optional<T> {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Null | Scalar::Text("") => Ok(Optional(None)),
            other => T::from_scalar(other).map(|value| Optional(Some(value))),
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Null => f.write_str("null"),
            Scalar::Flag(flag) => write!(f, "{flag}"),
            Scalar::Integer(integer) => write!(f, "{integer}"),
            Scalar::Float(float) => write!(f, "{float:?}"),
            Scalar::Text(text) => write!(f, "{text:?}"),
            Scalar::Collection => f.write_str("a list or a section"),
        }
    }
}

/// Passes each kind of scalar to [`FromScalar`] while the reader knows its line.
struct ScalarVisitor<T>(PhantomData<T>);

impl<'de, T: FromScalar> Visitor<'de> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        T::from_scalar(Scalar::Null).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        T::from_scalar(Scalar::Flag(value)).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value.into())).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value.into())).map_err(E::custom)
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value)).map_err(E::custom)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<T, E> {
        // a number over `i128` is out of every range, so the rounding does not matter
        let huge = Scalar::Float(value as f64);
        T::from_scalar(i128::try_from(value).map_or(huge, Scalar::Integer)).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        T::from_scalar(Scalar::Float(value)).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        T::from_scalar(Scalar::Text(value)).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::from_scalar(Scalar::Collection).map_err(de::Error::custom)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::from_scalar(Scalar::Collection).map_err(de::Error::custom)
    }
}

const LOCALHOST: &str = "localhost";
/// The addresses that [`LOCALHOST`] usually has.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Over it a warning: a switchover should show within a load balancer's few checks.
const TTL_MS_ADVISED_MAX: u64 = 5_000;
const LOG_FORMAT: &str = "%a - %m %U";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_yaml(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn defer_accept_is_refused_where_the_system_has_none() {
        assert_eq!(check_defer_accept(true, true), Ok(()));
        assert_eq!(check_defer_accept(false, false), Ok(()));
        let error = check_defer_accept(true, false).expect_err("an error");
        assert_eq!((error.section, error.key), ("frontend", "defer-accept"));
    }

    #[test]
    fn an_empty_configuration_has_the_defaults() {
        for text in ["", "---\n", "frontend:\ncache:\n", "{}", "frontend: {host: }", "{}\n---\n"] {
            let config = config(text);
            assert_eq!(config.frontend.host.as_deref(), Some("localhost"));
            assert_eq!((config.frontend.port, config.frontend.connections), (80, None));
            assert_eq!(config.backend.authority(), "localhost:8008");
            assert_eq!((config.backend.timeout_ms, config.backend.connections), (3_000, 3));
            assert_eq!((config.cache.ttl_ms, config.cache.interval_ms), (1_000, 250));
            assert_eq!((config.cache.entries, config.cache.grace_ms), (64, 0));
        }
    }

    #[test]
    fn a_plain_file_of_the_go_program_keeps_its_meaning() {
        let config = config(
            "---\nfrontend:\n  host: \"*\"\n  port: 8009.0\n  logformat: \"%a %m %U\"\n\
             backend:\n  host: ::1\n  port: 8008\n  scheme: http\n  insecure: no\n\
             cache:\n  ttl: 1.0\n  interval: .25\n",
        );
        assert_eq!((config.frontend.host, config.frontend.port), (None, 8009));
        assert_eq!(config.backend.authority(), "[::1]:8008");
        assert_eq!((config.cache.ttl_ms, config.cache.interval_ms), (1_000, 250));
    }

    #[test]
    fn an_empty_value_means_the_default() {
        for empty in ["\"\"", "''", "~", ""] {
            let text = "frontend:\n  certfile: E\n  keyfile: E\n  cafile: E\n  logformat: E\n  \
                tls-min-version: E\nbackend:\n  host: E\n  scheme: E\n  certfile: E\n  \
                keyfile: E\n  cafile: E\n  server-name: E\n";
            assert_eq!(config(&text.replace('E', empty)), config(""), "{empty}");
        }
        let text = "backend: {host: h, scheme: https, server-name: \"\"}";
        let server_name = |text| config(text).backend.tls.and_then(|tls| tls.server_name);
        assert_eq!(server_name(text).as_deref(), Some("h"));
        for host in ["\"\"", "''", "\"*\""] {
            assert_eq!(config(&format!("frontend: {{host: {host}}}")).frontend.host, None);
        }
    }

    #[test]
    fn an_unknown_log_placeholder_is_plain_text_with_a_warning() {
        let warnings = config("frontend: {logformat: \"%h %a %\\n 100%\"}").warnings;
        let warning =
            "frontend.logformat: %h %\\n % is plain text; the placeholders are %a %m %U %s %D %%";
        assert_eq!(warnings, [warning]);
        assert_eq!(config("frontend: {logformat: \"%a %m %U %s %D %%\"}").warnings.len(), 0);
    }

    #[test]
    fn names_and_ip_addresses_are_hosts() {
        let table = [
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[::]", "::"),
            ("fe80::1%eth0.1", "fe80::1%eth0.1"),
            ("[fe80::1%2]", "fe80::1%2"),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
            ("pg_1.example-a.org.", "pg_1.example-a.org."),
        ];
        for (spelled, host) in table {
            let text =
                format!("frontend: {{host: \"{spelled}\"}}\nbackend: {{host: \"{spelled}\"}}");
            let config = config(&text);
            assert_eq!(config.frontend.host.as_deref(), Some(host));
            assert_eq!(config.backend.host, host);
        }
        assert_eq!(config("backend: {host: \"[::1]\"}").backend.authority(), "[::1]:8008");
        let text = "backend: {host: \"fe80::1%eth0\", scheme: https}";
        let tls = config(text).backend.tls.expect("TLS");
        assert_eq!(tls.server_name.as_deref(), Some("fe80::1"));
    }

    #[test]
    fn tls_is_on_with_a_certificate_or_https() {
        let text = "frontend: {certfile: c, keyfile: k, cafile: a, tls-ciphers: [X],\n\
            tls-min-version: TLSv1.1}";
        let tls = config(text).frontend.tls.expect("TLS");
        assert_eq!((tls.min_version, tls.cafile.as_deref()), (TlsVersion::Obsolete, Some("a")));
        assert_eq!((tls.identity.certfile.as_str(), tls.ciphers), ("c", vec!["X".to_owned()]));
        assert_eq!(config(text).warnings.len(), 1);
        let tls = config("backend: {scheme: https, host: h}").backend.tls.expect("TLS");
        assert_eq!(
            (tls.insecure, tls.server_name.as_deref(), tls.identity),
            (false, Some("h"), None)
        );
        let text = "backend: {scheme: https, insecure: Yes, server-name: n}";
        let tls = config(text).backend.tls.expect("TLS");
        assert!(tls.insecure && tls.server_name.as_deref() == Some("n"));
        assert_eq!(config(text).warnings.len(), 1);
        for text in ["frontend: {tls-ciphers: [X]}", "backend: {cafile: x, scheme: http}"] {
            assert_eq!(config(text).warnings.len(), 1, "{text}");
        }
    }

    #[test]
    fn an_error_names_its_line_and_key() {
        #[rustfmt::skip]
        let table = [
            ("frontend:\n  prot: 1", 2, "frontend.prot is not a key; did you mean frontend.port?"),
            ("fronted:\n  port: 1", 1, "fronted is not a section; did you mean frontend?"),
            ("frontend:\n  host: x\n  port: x", 3, "frontend.port: \"x\" is not a whole number"),
            ("frontend:\n  port: 65536", 2, "frontend.port: 65536 is not a whole number from 0 to 65535"),
            ("frontend:\n  port: -1", 2, "frontend.port: -1 is not"),
            ("frontend:\n  port: 80.5", 2, "frontend.port: 80.5 is not"),
            ("frontend:\n  port: 65536.0", 2, "frontend.port: 65536.0 is not a whole number from 0 to 65535"),
            ("frontend:\n  port: -1.0", 2, "frontend.port: -1.0 is not"),
            ("frontend:\n  port: .inf", 2, "frontend.port: inf is not"),
            ("frontend:\n  port: 1e300", 2, "frontend.port: 1e300 is not"),
            ("frontend:\n  port: 18446744073709551616", 2, "frontend.port: 18446744073709551616 is not"),
            ("frontend:\n  port: -9223372036854775809", 2, "frontend.port: -9223372036854775809 is not"),
            ("frontend:\n  port: 0xffffffffffffffffffffffffffffffff", 2, "frontend.port: 3.402823669209385e38 is not"),
            ("cache:\n  ttl: 18446744073709551616", 2, "cache.ttl: 18446744073709551616 is not a number of seconds"),
            ("frontend:\n  port: [80]", 2, "frontend.port: a list or a section is not"),
            ("frontend:\n  host: a b", 2, "frontend.host: \"a b\" is neither"),
            ("frontend:\n  host: \"[::1]:80\"", 2, "frontend.host: \"[::1]:80\" is neither a name nor an address; write the port"),
            ("frontend:\n  host: \"[]\"", 2, "frontend.host: \"[]\" is neither"),
            ("frontend:\n  host: 1:2", 2, "frontend.host: \"1:2\" is neither"),
            ("backend:\n  port: 1\n  host: 127.0.0.1:8008", 3, "backend.host: \"127.0.0.1:8008\" is neither a name nor an address; write the port as a separate key"),
            ("backend:\n  host: http://pg1", 2, "backend.host: \"http://pg1\" is neither"),
            ("backend:\n  host: \"[[::1]]\"", 2, "backend.host: \"[[::1]]\" is neither"),
            ("backend:\n  host: fe80::1%", 2, "backend.host: \"fe80::1%\" is neither"),
            ("backend:\n  host: \"*\"", 2, "backend.host: \"*\" is neither"),
            ("frontend:\n  logformat: 1", 2, "frontend.logformat: 1 is not a string"),
            ("backend:\n  port: 0", 2, "backend.port: 0 is not"),
            ("backend:\n  scheme: ftp", 2, "backend.scheme: \"ftp\" is neither http nor https"),
            ("backend:\n  insecure: maybe", 2, "backend.insecure: \"maybe\" is neither"),
            ("backend:\n  timeout: 0", 2, "backend.timeout: 0 is not a number of seconds from 0.1 to 600"),
            ("backend:\n  connections: 0", 2, "backend.connections: 0 is not"),
            ("cache:\n\n  ttl: -1", 3, "cache.ttl: -1 is not"),
            ("cache:\n  ttl: .nan", 2, "cache.ttl: NaN is not"),
            ("cache:\n  ttl: 1\n  ttl: 2", 3, "cache.ttl is written twice"),
            ("cache: {ttl: 1,\n  grace: 1, \"ttl\": 2}", 2, "cache.ttl is written twice"),
            ("frontend:\n  host: x\nbackend:\n  host: y\n  port: 1\n  host: z", 6, "backend.host is written twice"),
            ("frontend:\n  port: 1\ncache:\nfrontend:\n  port: 2", 4, "frontend is written twice"),
            ("cache:\n  ttl: 1\n---\ncache:\n  ttl: 2", 4, "a second YAML document"),
            ("cache:\n---\n---\n- 1", 4, "a second YAML document"),
            ("cache:\n...\n}", 3, "a bracket is closed that was not opened"),
            ("cache:\n  ttl: \"one\"", 2, "cache.ttl: \"one\" is not"),
            ("frontend:\n  port: 1\n  certfile: x", 3, "frontend.certfile: keyfile is missing"),
            ("backend:\n  keyfile: x", 2, "backend.keyfile: certfile is missing"),
            ("frontend: {keyfile: x}", 1, "frontend.keyfile: certfile is missing"),
            ("frontend:\n  cafile: x", 2, "frontend.cafile: client certificates need TLS"),
            ("frontend:\n  tls-min-version: TLSv9", 2, "frontend.tls-min-version: \"TLSv9\" is not"),
            ("frontend:\n  certfile: 1", 2, "frontend.certfile: 1 is not a string"),
            ("cache: 1", 1, "cache: a section has keys below it, not 1"),
            ("cache:\nfrontend: [host]", 2, "frontend: a section has keys below it, not a list"),
            ("backend: https", 1, "backend: a section has keys below it, not \"https\""),
            ("admin: true", 1, "admin: a section has keys below it, not true"),
            ("- cache", 1, "a configuration has sections, such as frontend: and backend:, not a list"),
            ("cache:\n  ttl: !!foo 1", 2, "cache.ttl: \"1\" is not"),
            ("cache:\n  ttl: !foo 1", 2, "cache.ttl: a tag that begins with ! has no meaning here"),
            ("frontend: }", 1, "a bracket, comma or other sign"),
        ];
        for (text, line, message) in table {
            let error = Config::from_yaml(text).expect_err(text);
            assert!(error.message.starts_with(message), "{text:?}: {error}");
            assert_eq!(error.line, Some(line), "{text:?}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
        let message = |text| Config::from_yaml(text).expect_err(text).message;
        let whole = "frontend.host: \"a b\" is neither a name nor an address";
        assert_eq!(message("frontend:\n  host: a b"), whole);
        let whole = "backend.timeout: 600.1 is not a number of seconds from 0.1 to 600";
        assert_eq!(message("backend:\n  timeout: 600.1"), whole);
    }

    #[test]
    fn a_frontend_that_is_its_own_backend_is_refused() {
        let wildcards = ["", "*", "::", "0.0.0.0"];
        let local = [("localhost", "127.0.0.1"), ("::1", "LOCALHOST"), ("pg1", "PG1")];
        let equal = [("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.0.0.1")];
        let wildcards = wildcards.map(|host| (host, "localhost")).into_iter();
        for (frontend, backend) in wildcards
            .chain(local)
            .chain(equal)
            .chain([("::", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")])
        {
            let both = |ports: [u16; 2]| {
                let [port, other] = ports;
                let frontend = format!("frontend:\n  host: \"{frontend}\"\n  port: {port}\n");
                format!("{frontend}backend:\n  host: \"{backend}\"\n  port: {other}\n")
            };
            let error = Config::from_yaml(&both([8008, 8008])).expect_err("itself");
            assert_eq!(error.line, Some(6), "{frontend} {backend}");
            assert!(error.message.starts_with("backend.port: patroniglue would ask itself; set"));
            config(&both([8009, 8008]));
        }
        let error = Config::from_yaml("frontend:\n  port: 8008\n").expect_err("itself");
        assert_eq!(error.line, Some(2));
        assert!(error.message.starts_with("frontend.port: patroniglue would ask itself"));
        let others = [("0.0.0.0", "::1"), ("127.0.0.1", "::1"), ("", "pg1"), ("pg1", "pg2")];
        for (frontend, backend) in others {
            let frontend = format!("frontend: {{host: \"{frontend}\", port: 8008}}\n");
            config(&format!("{frontend}backend: {{host: \"{backend}\"}}"));
        }
    }

    #[test]
    fn a_ttl_over_5_s_is_a_warning() {
        for ttl in ["0", "1", "5", "5.0"] {
            assert_eq!(config(&format!("cache: {{ttl: {ttl}}}")).warnings.len(), 0, "{ttl}");
        }
        let warning = "cache.ttl: load balancers may see a change of the node 5.5 s late; use 5 or \
            less";
        assert_eq!(config("cache: {ttl: 5.5}").warnings, [warning]);
    }
}
