//! Patroni's routes, their families and their parameters: one table.
//!
//! What is not in it never reaches Patroni: `/config`, because it holds passwords now and then,
//! `/failsafe`, because it is the peers' own.

use std::borrow::Cow;

/// A route of the table, and whether parameters came with it that Patroni knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Its place in [`ROUTES`].
    pub index: usize,
    /// Has the target parameters? Then its text is what tells it from its siblings.
    pub has_parameters: bool,
}

/// What routes have in common (Patroni 4.1, `api.py`, `do_GET` and its siblings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 200 when the node holds the leader lease; parameters are ignored.
    Leader,
    /// 200 when the node is a replica fit for the use that the route names.
    Replica,
    /// 200 when PostgreSQL runs.
    Health,
    /// Kubernetes' probe: the HA loop is alive.
    Liveness,
    /// Kubernetes' probe: the node may have traffic.
    Readiness,
    /// The node's own status; peers decide by it in the leader race.
    Status,
    /// Topology and history, read from the DCS.
    Topology,
    /// Prometheus' text.
    Metrics,
}

impl Route {
    /// The route's path.
    pub fn path(self) -> &'static str {
        ROUTES[self.index].0
    }

    /// The route's family.
    pub fn family(self) -> Family {
        ROUTES[self.index].1
    }
}

impl Family {
    /// Is the body of a GET the node's status in JSON?
    pub fn has_node_report(self) -> bool {
        matches!(self, Family::Leader | Family::Replica | Family::Health | Family::Status)
    }

    fn knows_parameter(self, name: &str) -> bool {
        match self {
            Family::Replica | Family::Health | Family::Readiness => {
                matches!(name, "lag" | "replication_state")
                    || name.starts_with("tag_")
                    || (name == "mode" && self == Family::Readiness)
            }
            _ => false,
        }
    }
}

/// Finds the route a target names, and writes what Patroni is asked into `canonical`: the path
/// without surplus slashes, the parameters it knows, sorted. Allocates nothing unless a
/// parameter's name is percent-encoded or `canonical` has to grow.
pub fn resolve(target: &str, canonical: &mut String) -> Option<Route> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let index = find(path)?;
    let (path, family) = ROUTES[index];
    canonical.clear();
    canonical.push_str(path);
    let mut parameters = [("", ""); PARAMETERS_MAX];
    let count = known_parameters(family, query, &mut parameters);
    for (at, (_, pair)) in parameters[..count].iter().enumerate() {
        canonical.push(if at == 0 { '?' } else { '&' });
        canonical.push_str(pair);
    }
    Some(Route { index, has_parameters: count > 0 })
}

/// Every place in the table, as a route without parameters.
pub fn plain_routes() -> impl Iterator<Item = Route> {
    (0..ROUTES.len()).map(|index| Route { index, has_parameters: false })
}

fn find(path: &str) -> Option<usize> {
    let name = path.strip_prefix('/')?.trim_start_matches('/');
    let name = name.strip_suffix('/').unwrap_or(name);
    ROUTES.iter().position(|(path, _)| &path[1..] == name)
}

/// Name and `name=value` of the parameters that Patroni would heed, sorted by name. Of two with
/// one name it takes the first, and one without a value it does not see (Python's `parse_qs`).
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

/// What is no valid escape stays as it is, as in Python's `unquote_plus`.
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

/// The routes a client may ask. Their order is the order of their places in the cache.
pub const ROUTES: [(&str, Family); 24] = [
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
    ("/history", Family::Topology),
    ("/metrics", Family::Metrics),
];
/// Most parameters of one target; the rest is dropped, as unknown ones are. A target is at most
/// 1 KiB long, so who reaches this has tags of six letters and nothing else.
const PARAMETERS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(target: &str) -> Option<(String, Family)> {
        let mut canonical = String::from("left over");
        let route = resolve(target, &mut canonical)?;
        assert_eq!(route.has_parameters, canonical.contains('?'), "{target}");
        assert!(canonical.starts_with(route.path()));
        Some((canonical, route.family()))
    }

    #[test]
    fn what_patroni_is_asked() {
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
    fn what_patroni_is_not_asked() {
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
    fn names_are_decoded_as_python_does() {
        assert_eq!(percent_decoded("a+%2B%zz%2"), "a +%zz%2");
    }

    #[test]
    fn every_route_leads_to_its_own_place() {
        for (index, route) in plain_routes().enumerate() {
            let mut canonical = String::new();
            assert_eq!(resolve(ROUTES[index].0, &mut canonical), Some(route));
            assert_eq!(canonical, ROUTES[index].0);
        }
    }
}
