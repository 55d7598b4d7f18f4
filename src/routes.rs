//! Patroni's routes, their families and parameters.
//!
//! A client's request reaches Patroni only for a route of this table. `/config` is not in it
//! because it may contain passwords, `/failsafe` because it is for the other members only.

use std::borrow::Cow;

use crate::http::{LONG_RESPONSE_BODY_BYTES_MAX, RESPONSE_BODY_BYTES_MAX};

/// A route of the table, with or without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The index in [`ROUTES`].
    pub index: u8,
    /// Whether the target has known parameters. If so, only its text identifies it.
    pub has_parameters: bool,
}

/// Routes that Patroni handles alike (Patroni 4.1, `api.py`, `do_GET` and `do_GET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 200 when the node holds the leader lease; parameters are ignored.
    Leader,
    /// 200 when the node is a replica of the kind that the route names.
    Replica,
    /// 200 when PostgreSQL runs.
    Health,
    /// Kubernetes' liveness probe: the HA loop is running.
    Liveness,
    /// Kubernetes' readiness probe: the node may receive traffic.
    Readiness,
    /// The node's own status; the other members evaluate it in the leader race.
    Status,
    /// The cluster's topology, read from the DCS.
    Topology,
    /// The history of failovers and switchovers, read from the DCS.
    History,
    /// Metrics in Prometheus' text format.
    Metrics,
}

/// Leader routes that say the same about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaderRoutes {
    /// `/leader`: 503 means that the node holds no lease at all.
    Any,
    /// `/`, `/primary`, `/read-write`, `/master`: 503 on a standby cluster's leader, too.
    Primary,
    /// `/standby-leader` and its other spelling: 503 on a primary, too.
    StandbyLeader,
}

/// How the routes of a family are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The parameters that Patroni evaluates; `*` stands for any end of the name.
    pub parameters: &'static [&'static str],
    /// Whether the body of a GET is the node's status in JSON.
    pub node_report_in_body: bool,
    /// Whether a stale answer may be served while Patroni is silent.
    pub stale_allowed: bool,
    /// Whether the routes answer 503 when the operator drains the node.
    pub drained: bool,
    /// Whether Patroni reads the DCS for the answer.
    pub dcs_read: bool,
    /// Whether the answer is a bare status line.
    pub bodyless: bool,
    /// Maximum bytes of the answer's body.
    pub body_bytes_max: usize,
}

impl Route {
    /// The route's path.
    pub fn path(self) -> &'static str {
        ROUTES[usize::from(self.index)].0
    }

    /// The route's family.
    pub fn family(self) -> Family {
        ROUTES[usize::from(self.index)].1
    }

    /// The leader routes that its 503 speaks for; `None`: it is not a leader route.
    pub fn leader_routes(self) -> Option<LeaderRoutes> {
        match (self.family(), self.path()) {
            (Family::Leader, "/leader") => Some(LeaderRoutes::Any),
            (Family::Leader, "/standby-leader" | "/standby_leader") => {
                Some(LeaderRoutes::StandbyLeader)
            }
            (Family::Leader, _) => Some(LeaderRoutes::Primary),
            _ => None,
        }
    }
}

impl Family {
    /// The family's row of the policy table.
    pub const fn policy(self) -> Policy {
        const PLAIN: Policy = Policy {
            parameters: &[],
            node_report_in_body: false,
            stale_allowed: false,
            drained: false,
            dcs_read: false,
            bodyless: false,
            body_bytes_max: RESPONSE_BODY_BYTES_MAX,
        };
        const CHECK: Policy = Policy { node_report_in_body: true, stale_allowed: true, ..PLAIN };
        const LONG: Policy = Policy { body_bytes_max: LONG_RESPONSE_BODY_BYTES_MAX, ..PLAIN };
        match self {
            Family::Leader => Policy { drained: true, ..CHECK },
            Family::Replica => Policy { drained: true, parameters: &REPLICA_PARAMETERS, ..CHECK },
            Family::Health => Policy { parameters: &REPLICA_PARAMETERS, ..CHECK },
            Family::Liveness => Policy { bodyless: true, ..PLAIN },
            Family::Readiness => {
                Policy { parameters: &READINESS_PARAMETERS, bodyless: true, ..PLAIN }
            }
            Family::Status => Policy { node_report_in_body: true, ..PLAIN },
            Family::Topology => Policy { dcs_read: true, ..PLAIN },
            Family::History => Policy { dcs_read: true, ..LONG },
            Family::Metrics => LONG,
        }
    }

    /// Whether the body of a GET is the node's status in JSON.
    pub fn has_node_report(self) -> bool {
        self.policy().node_report_in_body
    }

    /// Whether the routes answer 503 when the operator drains the node.
    pub fn is_drained(self) -> bool {
        self.policy().drained
    }

    /// Whether Patroni reads the DCS for the answer, and so moves `dcs_last_seen`.
    pub fn reads_dcs(self) -> bool {
        self.policy().dcs_read
    }

    fn knows_parameter(self, name: &str) -> bool {
        let is = |known: &str| match known.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == known,
        };
        self.policy().parameters.iter().any(|known| is(known))
    }
}

/// Returns the route of a target and writes the target of its fetch to `canonical`: the path
/// without surplus slashes, then the known parameters, sorted. Allocates only if a parameter's
/// name is percent-encoded or `canonical` has to grow.
pub fn resolve(target: &str, canonical: &mut String) -> Option<Route> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let index = find(path)?;
    let (path, family) = ROUTES[index];
    canonical.clear();
    canonical.push_str(path);
    if query.is_empty() {
        return Some(Route { index: index as u8, has_parameters: false });
    }
    let mut parameters = [("", ""); PARAMETERS_MAX];
    let count = known_parameters(family, query, &mut parameters);
    for (at, (_, pair)) in parameters[..count].iter().enumerate() {
        canonical.push(if at == 0 { '?' } else { '&' });
        canonical.push_str(pair);
    }
    Some(Route { index: index as u8, has_parameters: count > 0 })
}

/// All routes of the table, without parameters.
pub fn plain_routes() -> impl Iterator<Item = Route> {
    (0..ROUTES.len()).map(|index| Route { index: index as u8, has_parameters: false })
}

fn find(path: &str) -> Option<usize> {
    let name = path.strip_prefix('/')?.trim_start_matches('/');
    let name = name.strip_suffix('/').unwrap_or(name);
    ROUTES.iter().position(|(path, _)| &path[1..] == name)
}

/// Collects name and `name=value` of the parameters that Patroni evaluates, sorted by name. Of
/// two with the same name Patroni evaluates the first; it ignores one without a value (Python's
/// `parse_qs`).
fn known_parameters<'a>(
    family: Family,
    query: &'a str,
    parameters: &mut [(&'a str, &'a str); PARAMETERS_MAX],
) -> usize {
    let mut count = 0;
    for pair in query.split('&') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let known = family.knows_parameter(&percent_decoded(name));
        let twice = parameters[..count].iter().any(|(n, _)| same_name(n, name));
        if known && !twice && !value.is_empty() && count < PARAMETERS_MAX {
            parameters[count] = (name, pair);
            count += 1;
        }
    }
    parameters[..count].sort_unstable();
    count
}

fn same_name(one: &str, other: &str) -> bool {
    one == other || percent_decoded(one) == percent_decoded(other)
}

/// Decodes as Python's `unquote_plus` does: an invalid escape stays unchanged.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        let escape = digits.and_then(|two| std::str::from_utf8(two).ok());
        let escaped = escape.and_then(|two| u8::from_str_radix(two, 16).ok());
        (bytes, rest) = match (byte, escaped) {
            (b'%', Some(escaped)) => (push(bytes, escaped), &tail[2..]),
            (b'+', _) => (push(bytes, b' '), tail),
            _ => (push(bytes, byte), tail),
        };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn push(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

/// The routes a client may request. The cache has their entries in the same order.
pub static ROUTES: &[(&str, Family)] = &[
    ("/", Family::Leader),
    ("/primary", Family::Leader),
    ("/read-write", Family::Leader),
    ("/master", Family::Leader),
    ("/leader", Family::Leader),
    ("/standby-leader", Family::Leader),
    ("/standby_leader", Family::Leader),
    ("/replica", Family::Replica),
    ("/read-only", Family::Replica),
    ("/sync", Family::Replica),
    ("/synchronous", Family::Replica),
    ("/async", Family::Replica),
    ("/asynchronous", Family::Replica),
    ("/quorum", Family::Replica),
    ("/read-only-sync", Family::Replica),
    ("/read-only-synchronous", Family::Replica),
    ("/read-only-quorum", Family::Replica),
    ("/health", Family::Health),
    ("/liveness", Family::Liveness),
    ("/readiness", Family::Readiness),
    ("/patroni", Family::Status),
    ("/cluster", Family::Topology),
    ("/history", Family::History),
    ("/metrics", Family::Metrics),
];
const _: () = assert!(ROUTES.len() < u8::MAX as usize);
/// Parameters of the replica and health routes.
const REPLICA_PARAMETERS: [&str; 3] = ["lag", "replication_state", "tag_*"];
/// Parameters of `/readiness`.
const READINESS_PARAMETERS: [&str; 4] = ["lag", "replication_state", "tag_*", "mode"];
/// Maximum parameters of one target; further ones are dropped. A target has at most 1 KiB, so
/// only a target made solely of very short tag_ parameters can reach this.
const PARAMETERS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(target: &str) -> Option<(String, Family)> {
        let mut canonical = String::from("previous");
        let route = resolve(target, &mut canonical)?;
        assert_eq!(route.has_parameters, canonical.contains('?'), "{target}");
        assert!(canonical.starts_with(route.path()));
        Some((canonical, route.family()))
    }

    #[test]
    fn a_target_is_made_canonical_before_it_is_fetched() {
        let many: String = (10..60).map(|n| format!("&tag_{n}=x")).collect();
        let kept: String = (10..42).map(|n| format!("&tag_{n}=x")).collect();
        let (many, kept) = (format!("/sync?{}", &many[1..]), format!("/sync?{}", &kept[1..]));
        let table = [
            ("/", "/"),
            ("//", "/"),
            ("/primary/", "/primary"),
            ("//leader", "/leader"),
            ("////leader/", "/leader"),
            ("/primary?lag=1&x=2", "/primary"),
            ("/?tag_a=b", "/"),
            ("/replica?", "/replica"),
            ("/replica?lag=10MB", "/replica?lag=10MB"),
            ("/replica?tag_b=2&lag=1&foo=3&tag_a=1", "/replica?lag=1&tag_a=1&tag_b=2"),
            ("/replica?lag=1&lag=2", "/replica?lag=1"),
            ("/replica?lag=&lag=2&tag_x", "/replica?lag=2"),
            ("/replica?%6cag=1&lag=2", "/replica?%6cag=1"),
            ("/replica?mode=apply", "/replica"),
            ("/readiness?mode=apply&lag=1", "/readiness?lag=1&mode=apply"),
            ("/health?replication_state=streaming", "/health?replication_state=streaming"),
            ("/liveness?lag=1", "/liveness"),
            ("/metrics?lag=1", "/metrics"),
            ("/replica?lag=1?&lag", "/replica?lag=1?"),
            (&many, &kept),
        ];
        for (target, canonical) in table {
            assert_eq!(
                resolved(target).map(|found| found.0).as_deref(),
                Some(canonical),
                "{target}"
            );
        }
    }

    #[test]
    fn a_target_without_a_route_is_not_fetched() {
        #[rustfmt::skip]
        let table = [
            "", "*", "primary", "/PRIMARY", "/%70rimary", "/primary/x", "/primary//", "/healthz", "/config",
            "/failsafe", "/switchover", "/restart", "/primary;a=b", "/./primary", "/../primary", "?lag=1",
        ];
        for target in table {
            assert_eq!(resolved(target), None, "{target}");
        }
    }

    #[test]
    fn each_family_has_its_policy() {
        const MIB: usize = 1 << 20;
        let common = ["lag", "replication_state", "tag_", "tag_x"];
        let all = ["lag", "replication_state", "tag_", "tag_x", "mode"];
        // parameters, [node's report, stale allowed, drained, DCS read], body bytes
        let table: [(Family, &[&str], [bool; 4], usize); 9] = [
            (Family::Leader, &[], [true, true, true, false], MIB),
            (Family::Replica, &common, [true, true, true, false], MIB),
            (Family::Health, &common, [true, true, false, false], MIB),
            (Family::Liveness, &[], [false, false, false, false], MIB),
            (Family::Readiness, &all, [false, false, false, false], MIB),
            (Family::Status, &[], [true, false, false, false], MIB),
            (Family::Topology, &[], [false, false, false, true], MIB),
            (Family::History, &[], [false, false, false, true], 4 * MIB),
            (Family::Metrics, &[], [false, false, false, false], 4 * MIB),
        ];
        let unknown = ["", "*", "la", "lags", "tag", "tagx", "replication_state_"];
        for (family, parameters, flags, bytes) in table {
            for name in unknown.iter().chain(&all) {
                let known = parameters.contains(name);
                assert_eq!(family.knows_parameter(name), known, "{family:?} {name}");
            }
            let policy = family.policy();
            let (report, drained) = (family.has_node_report(), family.is_drained());
            let found = [report, policy.stale_allowed, drained, family.reads_dcs()];
            assert_eq!((found, policy.body_bytes_max), (flags, bytes), "{family:?}");
        }
        assert_eq!(ROUTES.iter().filter(|(_, family)| family.reads_dcs()).count(), 2);
    }

    #[test]
    fn names_are_decoded_as_python_decodes_them() {
        assert_eq!(percent_decoded("a+%2B%zz%2"), "a +%zz%2");
    }

    #[test]
    fn every_route_resolves_to_its_own_index() {
        for (index, route) in plain_routes().enumerate() {
            let mut canonical = String::new();
            assert_eq!(resolve(ROUTES[index].0, &mut canonical), Some(route));
            assert_eq!(canonical, ROUTES[index].0);
        }
    }
}
