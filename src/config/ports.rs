//! The sections `admin` and `agent`: ports next to that of the health checks.

use super::raw::{Count, FromScalar, ListenHost, Optional, Scalar, reaches};
use super::{Admin, Agent, Backend, Frontend, WrongValue};
use crate::routes::resolve;

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a mapping of keys to values")]
pub(super) struct RawAdmin {
    host: Optional<LocalHost>,
    port: Option<Count<0, 65_535>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a mapping of keys to values")]
pub(super) struct RawAgent {
    host: Optional<LocalHost>,
    port: Option<Count<0, 65_535>>,
    route: Optional<Target>,
}

impl RawAdmin {
    pub(super) fn checked(self, warnings: &mut Vec<String>) -> Option<Admin> {
        if self.port.is_none() && self.host.0.is_some() {
            warnings.push("admin.host has no effect without admin.port".to_owned());
        }
        Some(Admin { host: listen_host(self.host.0), port: self.port?.0 as u16 })
    }
}

impl RawAgent {
    pub(super) fn checked(self, warnings: &mut Vec<String>) -> Option<Agent> {
        let has_other_keys = self.host.0.is_some() || self.route.0.is_some();
        if self.port.is_none() && has_other_keys {
            warnings.push("agent has no effect without agent.port".to_owned());
        }
        let host = listen_host(self.host.0);
        let route = self.route.0.map_or(AGENT_ROUTE.to_owned(), |target| target.0);
        Some(Agent { host, port: self.port?.0 as u16, route })
    }
}

/// Where a port that is not for clients listens: never on every address by default.
fn listen_host(host: Option<LocalHost>) -> Option<String> {
    host.map_or(Some(LOCALHOST_ADDRESS.to_owned()), |host| host.0)
}

/// Checks that the ports of admin and agent differ from all others on the same addresses.
pub(super) fn check_ports(
    frontend: &Frontend,
    backend: &Backend,
    admin: Option<&Admin>,
    agent: Option<&Agent>,
) -> Result<(), WrongValue> {
    let front = ("frontend", frontend.host.as_deref(), frontend.port);
    let admin = admin.map(|admin| ("admin", admin.host.as_deref(), admin.port));
    let agent = agent.map(|agent| ("agent", agent.host.as_deref(), agent.port));
    let mut earlier = vec![front];
    for (section, host, port) in admin.into_iter().chain(agent) {
        let is_taken =
            |one: &&(&str, Option<&str>, u16)| one.2 == port && port != 0 && overlap(one.1, host);
        if let Some((other, ..)) = earlier.iter().find(is_taken) {
            let message = format!("{other} listens on {port} already; write another port");
            return Err(WrongValue { section, key: "port", message });
        }
        if port == backend.port && reaches(&backend.host, host) {
            let message = "this is where Patroni is asked; write another port";
            return Err(WrongValue::new(section, "port", message));
        }
        earlier.push((section, host, port));
    }
    Ok(())
}

/// Whether two listeners of the same port would be in each other's way. Names other than
/// `localhost` are not looked up.
fn overlap(one: Option<&str>, other: Option<&str>) -> bool {
    let address = |host| if host == "localhost" { LOCALHOST_ADDRESS } else { host };
    one.zip(other).is_none_or(|(one, other)| address(one) == address(other))
}

/// As [`ListenHost`], but empty means the default.
pub(super) struct LocalHost(Option<String>);

/// A target with a route.
pub(super) struct Target(String);

impl FromScalar for LocalHost {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text("") => Ok(LocalHost(Some(LOCALHOST_ADDRESS.to_owned()))),
            other => ListenHost::from_scalar(other).map(|host| LocalHost(host.0)),
        }
    }
}

impl FromScalar for Target {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Text(text) if resolve(text, &mut String::new()).is_some() => {
                Ok(Target(text.to_owned()))
            }
            other => Err(format!("{other} is not a route of Patroni; write one such as /replica")),
        }
    }
}

/// Where admin and agent listen.
const LOCALHOST_ADDRESS: &str = "127.0.0.1";
/// The default takes out a server for reads, not one for writes.
const AGENT_ROUTE: &str = "/replica";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> Config {
        Config::from_yaml(text).expect(text)
    }

    #[test]
    fn admin_and_agent_are_off_without_a_port_and_local_with_one() {
        let off = config("admin: {host: \"*\"}\nagent: {route: /sync}");
        assert_eq!((off.admin, off.agent), (None, None));
        let expected = [
            "admin.host has no effect without admin.port",
            "agent has no effect without agent.port",
        ];
        assert_eq!(off.warnings, expected);
        let on = config("admin: {host: \"\", port: 8010}\nagent: {host: \"*\", port: 8011}");
        let local = Some("127.0.0.1".to_owned());
        assert_eq!(on.admin, Some(Admin { host: local, port: 8010 }));
        let agent = Agent { host: None, port: 8011, route: "/replica".to_owned() };
        assert_eq!((on.agent, on.warnings), (Some(agent), Vec::new()));
    }

    #[test]
    fn a_port_that_is_taken_is_an_error() {
        let table = [
            ("admin: {port: 80}", Some("admin.port: frontend listens on 80 already")),
            ("frontend: {host: \"*\"}\nadmin: {port: 80}", Some("admin.port: frontend listens on")),
            ("admin: {port: 8010}\nagent: {port: 8010}", Some("agent.port: admin listens on 8010")),
            ("admin: {port: 0}\nagent: {port: 0}", None),
            ("admin: {port: 8008}", Some("admin.port: this is where Patroni is asked")),
        ];
        for (text, expected) in table {
            let found = Config::from_yaml(text).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{text}: {found:?}");
            let (found, expected) = (found.unwrap_or_default(), expected.unwrap_or_default());
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
