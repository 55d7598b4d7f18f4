//! The YAML form of the section `dcs`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::raw::{Count, Flag, FromScalar, Host, Optional, Scalar, Scheme, Seconds, identity};
use super::{BackendTls, Dcs, DcsHost, DcsUser, Password, WrongValue};

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[serde(expecting = "a mapping of keys to values")]
pub struct RawDcs {
    #[serde(rename = "type")]
    kind: Optional<Kind>,
    hosts: Hosts,
    scheme: Optional<Scheme>,
    insecure: Option<Flag>,
    cafile: Optional<String>,
    certfile: Optional<String>,
    keyfile: Optional<String>,
    server_name: Optional<Host>,
    username: Optional<String>,
    password: Optional<Secret>,
    password_file: Optional<String>,
    namespace: Optional<String>,
    group: Option<Count<0, 2_147_483_647>>,
    margin: Option<Seconds<0, DCS_MARGIN_MS_MAX>>,
}

/// The only kind of DCS that can be read.
struct Kind;

/// A password; an error does not repeat it.
struct Secret(String);

/// A list, or one string with commas, as in Patroni's file.
#[derive(Default)]
struct Hosts(Vec<DcsHost>);

impl RawDcs {
    pub fn checked(self, warnings: &mut Vec<String>) -> Result<Dcs, WrongValue> {
        let wrong = |key, message| Err(WrongValue::new("dcs", key, message));
        if self.kind.0.is_none() {
            return wrong("type", "the type is missing; write etcd3");
        }
        if self.hosts.0.is_empty() {
            let message = "etcd's addresses are missing; write a list such as [10.0.0.1:2379]";
            return wrong("hosts", message);
        }
        if self.hosts.0.len() > HOSTS_MAX {
            return wrong("hosts", "there are more than 16 addresses");
        }
        let user = user(self.username.0, self.password.0, self.password_file.0)?;
        let identity = identity("dcs", self.certfile.0, self.keyfile.0)?;
        let insecure = self.insecure.is_some_and(|flag| flag.0);
        let (cafile, server_name) = (self.cafile.0, self.server_name.0.map(|name| name.0));
        let tls = if self.scheme.0 == Some(Scheme::Https) {
            if insecure {
                warnings.push("dcs.insecure: etcd's certificate is not checked".into());
            }
            Some(BackendTls { insecure, cafile, identity, server_name })
        } else {
            if cafile.is_some() || identity.is_some() {
                let message = "cafile and certfile have no effect without scheme: https";
                warnings.push(format!("dcs: {message}"));
            }
            None
        };
        Ok(Dcs {
            hosts: self.hosts.0,
            tls,
            user,
            namespace: self.namespace.0.unwrap_or_else(|| "service".to_owned()),
            group: self.group.map(|group| group.0 as u32),
            margin_ms: self.margin.map_or(DCS_MARGIN_MS_MAX, |seconds| seconds.0),
        })
    }
}

/// Returns name and password, or none.
fn user(
    username: Option<String>,
    password: Option<Secret>,
    password_file: Option<String>,
) -> Result<Option<DcsUser>, WrongValue> {
    let wrong = |key, message| Err(WrongValue::new("dcs", key, message));
    let (username, password) = match (username, password, password_file) {
        (None, None, None) => return Ok(None),
        (_, Some(_), Some(_)) => {
            return wrong("password-file", "password is set as well; write only one of them");
        }
        (None, Some(_), _) => return wrong("password", "username is missing"),
        (None, _, Some(_)) => return wrong("password-file", "username is missing"),
        (Some(_), None, None) => {
            return wrong("username", "the password is missing; write password-file");
        }
        (Some(username), Some(Secret(password)), None) => (username, Password::Text(password)),
        (Some(username), None, Some(file)) => (username, Password::File(file)),
    };
    Ok(Some(DcsUser { username, password }))
}

impl FromScalar for Kind {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("etcd3") => Ok(Kind),
            Scalar::Text("etcd") => {
                Err("\"etcd\" is Patroni's word for the API v2 of etcd, which \
                patroniglue cannot read; if Patroni's section is etcd3, write etcd3"
                    .into())
            }
            Scalar::Text(kind @ ("consul" | "zookeeper" | "kubernetes" | "raft" | "exhibitor")) => {
                Err(format!("patroniglue cannot read {kind}, only etcd3; leave out the section"))
            }
            other => Err(format!("{other} is not a type of DCS; write etcd3")),
        }
    }
}

impl FromScalar for Secret {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text(text) => Ok(Secret(text.to_owned())),
            _ => Err("the value is not a string; write it in quotes".to_owned()),
        }
    }
}

impl FromScalar for DcsHost {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        let Scalar::Text(text) = scalar else {
            return Err(format!("{scalar} is not an address; write name:port"));
        };
        let wrong = |hint| format!("{text:?} is not an address; {hint}");
        if text.contains("://") {
            return Err(wrong("write name:port, and the protocol as scheme"));
        }
        // an IPv6 address has colons of its own: its port needs brackets
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let is_port = |port: &u16| *port > 0;
        let port = match port {
            None => Some(PORT),
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
            Some(_) => None,
        };
        let port = port.filter(is_port).ok_or_else(|| wrong("the port is from 1 to 65535"))?;
        let host = Host::from_scalar(Scalar::Text(host)).map_err(|_| wrong("write name:port"))?;
        Ok(DcsHost { host: host.0, port })
    }
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HostsVisitor)
    }
}

struct HostsVisitor;

impl<'de> Visitor<'de> for HostsVisitor {
    type Value = Hosts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of addresses, or one string with commas")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Hosts, E> {
        Ok(Hosts::default())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Hosts, E> {
        let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
        let hosts = hosts.map(|host| DcsHost::from_scalar(Scalar::Text(host)));
        hosts.collect::<Result<_, _>>().map(Hosts).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Hosts, A::Error> {
        let mut hosts = Hosts::default();
        while let Some(host) = values.next_element::<Optional<DcsHost>>()? {
            let host =
                host.0.ok_or_else(|| de::Error::custom("an address is empty; write name:port"))?;
            hosts.0.push(host);
        }
        Ok(hosts)
    }
}

/// Maximum of `dcs.margin`, and its default.
pub const DCS_MARGIN_MS_MAX: u64 = 10_000;
/// etcd's port for clients.
const PORT: u16 = 2379;
/// Maximum number of addresses; etcd clusters have up to 7 members.
const HOSTS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_yaml(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn dcs(keys: &str) -> Dcs {
        config(&format!("dcs: {{type: etcd3, hosts: \"e1\", {keys}}}")).dcs.expect("a section")
    }

    #[test]
    fn without_the_section_no_dcs_is_asked() {
        for text in ["", "dcs:\n", "dcs: ~"] {
            assert_eq!((config(text).dcs, config(text).cache.fence), (None, false), "{text}");
        }
        assert!(config("cache: {fence: yes}").cache.fence);
    }

    #[test]
    fn a_short_section_has_the_defaults() {
        let dcs = dcs("");
        assert_eq!((dcs.namespace.as_str(), dcs.group, dcs.margin_ms), ("service", None, 10_000));
        assert_eq!((dcs.tls, dcs.user), (None, None));
        let empty = "scheme: '', insecure: no, cafile: ~, certfile: '', keyfile: '', \
            server-name: '', username: '', password: '', password-file: '', namespace: '', group: ";
        assert_eq!(self::dcs(empty), self::dcs(""));
    }

    #[test]
    fn hosts_are_a_list_or_one_string_with_commas() {
        let table = [
            ("[10.0.0.1:2379, 10.0.0.2:2380]", "10.0.0.1:2379 10.0.0.2:2380"),
            ("10.0.0.1:2379,10.0.0.2:2380", "10.0.0.1:2379 10.0.0.2:2380"),
            ("\" e1 , e2:1,\"", "e1:2379 e2:1"),
            ("[e1.example.org]", "e1.example.org:2379"),
            ("\n    - e1\n    - e2:65535", "e1:2379 e2:65535"),
            (
                "[\"[::1]:2379\", \"[::1]\", \"::1\", \"fe80::1%eth0\"]",
                "[::1]:2379 [::1]:2379 [::1]:2379 [fe80::1%eth0]:2379",
            ),
        ];
        for (hosts, authorities) in table {
            let dcs = config(&format!("dcs:\n  type: etcd3\n  hosts: {hosts}")).dcs;
            let hosts = dcs.expect("a section").hosts;
            let found: Vec<String> = hosts.iter().map(DcsHost::authority).collect();
            assert_eq!(found.join(" "), authorities);
        }
    }

    #[test]
    fn each_key_is_read() {
        let tls = "scheme: https, cafile: a, certfile: c, keyfile: k";
        let found = dcs(&format!("{tls}, namespace: /db/, group: 0, margin: 2.5"));
        assert_eq!((found.namespace.as_str(), found.group), ("/db/", Some(0)));
        assert_eq!(found.margin_ms, 2_500);
        let found = found.tls.expect("TLS");
        assert_eq!((found.insecure, found.cafile.as_deref()), (false, Some("a")));
        assert_eq!(found.server_name, None);
        let named = dcs(&format!("{tls}, insecure: yes, server-name: etcd")).tls.expect("TLS");
        assert_eq!((named.insecure, named.server_name.as_deref()), (true, Some("etcd")));
        let password = |keys: &str| dcs(keys).user.map(|user| user.password);
        let text = password("username: u, password: p");
        assert!(text == Some(Password::Text("p".into())));
        let file = password("username: u, password-file: /f");
        assert!(file == Some(Password::File("/f".into())));
        let shown = format!("{:?}", dcs("username: u, password: hunter2"));
        assert!(shown.contains("\"u\"") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn keys_without_effect_are_warnings() {
        let warnings = |keys: &str| {
            config(&format!("dcs: {{type: etcd3, hosts: e1, {keys}}}")).warnings.join("\n")
        };
        let no_effect = "dcs: cafile and certfile have no effect without scheme: https";
        let table = [
            ("cafile: a", no_effect),
            ("certfile: c, keyfile: k, scheme: http", no_effect),
            ("scheme: https, insecure: yes", "dcs.insecure: etcd's certificate is not checked"),
            ("scheme: https, cafile: a, username: u, password: p", ""),
        ];
        for (keys, expected) in table {
            assert_eq!(warnings(keys), expected, "{keys}");
        }
    }

    #[test]
    fn a_password_file_has_one_line() {
        let table = [
            ("p", Ok("p")),
            ("p\n", Ok("p")),
            ("p q \r\n", Ok("p q ")),
            ("", Err("dcs.password-file: the file is empty; write the password into it")),
            ("\n", Err("dcs.password-file: the file is empty; write the password into it")),
            (
                "p\n\n",
                Err(
                    "dcs.password-file: the file has more than one line; write only the password into it",
                ),
            ),
            (
                "p\nq",
                Err(
                    "dcs.password-file: the file has more than one line; write only the password into it",
                ),
            ),
        ];
        for (content, expected) in table {
            let password = Password::File("f".into());
            let mut user = DcsUser { username: "u".into(), password };
            let outcome = user.set_password(content).map_err(|wrong| wrong.to_string());
            match expected {
                Ok(text) => assert!(user.password == Password::Text(text.into()), "{content:?}"),
                Err(error) => assert_eq!(outcome, Err(error.to_owned())),
            }
        }
    }

    #[test]
    fn an_error_names_its_line_and_key() {
        #[rustfmt::skip]
        let table = [
            ("dcs: {}", "line 1: dcs.type: the type is missing; write etcd3"),
            ("cache:\ndcs:\n  hosts: e1", "line 2: dcs.type: the type is missing; write etcd3"),
            ("dcs:\n  type: etcd3", "line 1: dcs.hosts: etcd's addresses are missing; write a list such as [10.0.0.1:2379]"),
            ("dcs:\n  type: etcd3\n  hosts: []", "line 3: dcs.hosts: etcd's addresses are missing; write a list such as [10.0.0.1:2379]"),
            ("dcs:\n  type: etcd3\n  hosts: \" , \"", "line 3: dcs.hosts: etcd's addresses are missing; write a list such as [10.0.0.1:2379]"),
            ("dcs:\n  type: etcd", "line 2: dcs.type: \"etcd\" is Patroni's word for the API v2 of etcd, which patroniglue cannot read; if Patroni's section is etcd3, write etcd3"),
            ("dcs:\n  type: consul", "line 2: dcs.type: patroniglue cannot read consul, only etcd3; leave out the section"),
            ("dcs:\n  type: zookeeper", "line 2: dcs.type: patroniglue cannot read zookeeper, only etcd3; leave out the section"),
            ("dcs:\n  type: kubernetes", "line 2: dcs.type: patroniglue cannot read kubernetes, only etcd3; leave out the section"),
            ("dcs:\n  type: raft", "line 2: dcs.type: patroniglue cannot read raft, only etcd3; leave out the section"),
            ("dcs:\n  type: exhibitor", "line 2: dcs.type: patroniglue cannot read exhibitor, only etcd3; leave out the section"),
            ("dcs:\n  type: 3", "line 2: dcs.type: 3 is not a type of DCS; write etcd3"),
            ("dcs:\n  type: ETCD3", "line 2: dcs.type: \"ETCD3\" is not a type of DCS; write etcd3"),
            ("dcs:\n  hosts: http://e1:2379", "line 2: dcs.hosts: \"http://e1:2379\" is not an address; write name:port, and the protocol as scheme"),
            ("dcs:\n  hosts:\n    - e1\n    - e2:x", "line 4: dcs.hosts[1]: \"e2:x\" is not an address; the port is from 1 to 65535"),
            ("dcs:\n  hosts: [e1:0]", "line 2: dcs.hosts[0]: \"e1:0\" is not an address; the port is from 1 to 65535"),
            ("dcs:\n  hosts: [e1:65536]", "line 2: dcs.hosts[0]: \"e1:65536\" is not an address; the port is from 1 to 65535"),
            ("dcs:\n  hosts: [\"e1:\"]", "line 2: dcs.hosts[0]: \"e1:\" is not an address; the port is from 1 to 65535"),
            ("dcs:\n  hosts: [\"e1:+1\"]", "line 2: dcs.hosts[0]: \"e1:+1\" is not an address; the port is from 1 to 65535"),
            ("dcs:\n  hosts: [\":2379\"]", "line 2: dcs.hosts[0]: \":2379\" is not an address; write name:port"),
            ("dcs:\n  hosts: [2379]", "line 2: dcs.hosts[0]: 2379 is not an address; write name:port"),
            ("dcs:\n  hosts: [e1, ]\n  hosts: e2", "line 3: dcs.hosts is written twice"),
            ("dcs:\n  hosts: [~]", "line 2: dcs.hosts: an address is empty; write name:port"),
            ("dcs:\n  hosts: 1", "line 2: dcs.hosts: 1 is not a list of addresses, or one string with commas"),
            ("dcs:\n  host: e1", "line 2: dcs.host is not a key; did you mean dcs.hosts?"),
            ("dcs: etcd3", "line 1: dcs: a section has keys below it, not \"etcd3\""),
            ("dcs:\n  scheme: tcp", "line 2: dcs.scheme: \"tcp\" is neither http nor https"),
            ("dcs:\n  insecure: maybe", "line 2: dcs.insecure: \"maybe\" is neither true nor false"),
            ("dcs:\n  margin: 10.5", "line 2: dcs.margin: 10.5 is not a number of seconds from 0 to 10"),
            ("dcs:\n  group: -1", "line 2: dcs.group: -1 is not a whole number"),
            ("dcs:\n  group: a", "line 2: dcs.group: \"a\" is not a whole number"),
            ("dcs:\n  password: 1234", "line 2: dcs.password: the value is not a string; write it in quotes"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  certfile: c", "line 4: dcs.certfile: keyfile is missing"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  keyfile: c", "line 4: dcs.keyfile: certfile is missing"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  username: u", "line 4: dcs.username: the password is missing; write password-file"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  password: p", "line 4: dcs.password: username is missing"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  password-file: p", "line 4: dcs.password-file: username is missing"),
            ("dcs:\n  type: etcd3\n  hosts: e\n  username: u\n  password: p\n  password-file: p", "line 6: dcs.password-file: password is set as well; write only one of them"),
            ("cache:\n  fence: 2", "line 2: cache.fence: 2 is neither true nor false"),
        ];
        for (text, message) in table {
            let error = Config::from_yaml(text).expect_err(text).to_string();
            assert!(error.starts_with(message), "{text:?}: {error}");
        }
        let hosts: Vec<String> = (0..=HOSTS_MAX).map(|at| format!("e{at}")).collect();
        let text = |hosts: &[String]| format!("dcs:\n  type: etcd3\n  hosts: {}", hosts.join(","));
        let error = Config::from_yaml(&text(&hosts)).expect_err("too many").to_string();
        assert_eq!(error, "line 3: dcs.hosts: there are more than 16 addresses");
        config(&text(&hosts[1..]));
    }
}
