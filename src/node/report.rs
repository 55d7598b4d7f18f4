//! The node's JSON: the fields that matter here, which node reports them, what contradicts them.

use serde::Deserialize;

use crate::http::json;

/// What a node says about itself in the body of its status routes. Patroni leaves out fields that
/// do not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeReport {
    /// `running`, `starting`, `stopped`, … (Patroni 4.1, `postgresql/misc.py`).
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before Patroni 4.0), `replica`, `standby_leader`, …
    #[serde(default)]
    pub role: String,
    /// PostgreSQL's timeline; a primary and most replicas report it.
    pub timeline: Option<u64>,
    /// When Patroni last read the DCS: Unix seconds, rounded down. Since Patroni 2.1.2.
    pub dcs_last_seen: Option<u64>,
    /// Maintenance mode: no node is demoted when the lease runs out.
    #[serde(default)]
    pub pause: bool,
    /// No node holds the lease.
    #[serde(default)]
    pub cluster_unlocked: bool,
    /// The DCS is unreachable, and the members agree to keep the leader.
    #[serde(default)]
    pub failsafe_mode_is_active: bool,
    /// PostgreSQL's system identifier, the same on all members of a cluster.
    pub database_system_identifier: Option<String>,
    /// Which member of which cluster reports.
    #[serde(default)]
    pub patroni: Member,
}

/// A member of a Patroni cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Since Patroni 3.2.0.
    pub name: Option<String>,
    /// The cluster's name.
    pub scope: Option<String>,
    /// Patroni's version.
    pub version: Option<String>,
}

/// Which node answers. Fields that a report lacks are not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    name: Option<String>,
    scope: Option<String>,
    system_identifier: Option<String>,
}

impl NodeReport {
    /// `None`: the body is not a node's report.
    pub fn from_json(body: &[u8]) -> Option<NodeReport> {
        let report = serde_json::from_slice::<NodeReport>(&json::lenient(body)).ok()?;
        Some(report).filter(|report| !report.state.is_empty())
    }

    /// Whether this report, which follows `previous`, makes earlier answers untrue.
    pub fn contradicts(&self, previous: &NodeReport) -> bool {
        let timelines = self.timeline.zip(previous.timeline);
        self.role != previous.role
            || timelines.is_some_and(|(timeline, before)| timeline != before)
            || (previous.is_running() && !self.is_running())
    }

    /// Takes from the previous report what this one lacks: the state if PostgreSQL answered no
    /// query (`unknown`), and an absent timeline.
    pub fn complete_by(&mut self, previous: &NodeReport) {
        if self.state == STATE_UNKNOWN {
            self.state.clone_from(&previous.state);
        }
        if !self.contradicts(previous) {
            self.timeline = self.timeline.or(previous.timeline);
        }
    }

    /// Takes over from a report that was asked for later, but came first, what speaks against the
    /// lease: which of them is the newer truth is not known.
    pub fn overtaken_by(&mut self, later: &NodeReport) {
        if self.is_running() {
            self.state.clone_from(&later.state);
        }
        self.pause |= later.pause;
        self.cluster_unlocked |= later.cluster_unlocked;
        self.failsafe_mode_is_active |= later.failsafe_mode_is_active;
        self.dcs_last_seen = self.dcs_last_seen.filter(|_| later.dcs_last_seen.is_some());
    }

    /// Whether PostgreSQL runs.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Whether PostgreSQL starts, stops or is stopped.
    pub fn is_changing(&self) -> bool {
        !self.is_running() && self.state != STATE_UNKNOWN
    }

    /// Whether a leader's 200 rests on the leader's lease.
    pub fn is_under_lease(&self) -> bool {
        self.is_running()
            && !self.pause
            && !self.cluster_unlocked
            && !self.failsafe_mode_is_active
            && self.dcs_last_seen.is_some()
    }

    /// Which node reports.
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.patroni.name.clone(),
            scope: self.patroni.scope.clone(),
            system_identifier: self.database_system_identifier.clone(),
        }
    }
}

impl Identity {
    /// A sentence about a field that differs; `None`: all fields that both have are equal.
    pub fn difference(&self, other: &Identity) -> Option<String> {
        let differs = |ours: &Option<String>, others: &Option<String>| {
            let both = ours.clone().zip(others.clone());
            both.filter(|(ours, others)| ours != others)
        };
        if let Some((ours, others)) = differs(&self.scope, &other.scope) {
            return Some(format!("this is cluster {others}, not {ours}"));
        }
        if let Some((ours, others)) = differs(&self.name, &other.name) {
            return Some(format!("this is {others}, not {ours}"));
        }
        let (ours, others) = differs(&self.system_identifier, &other.system_identifier)?;
        Some(format!("this is database system {others}, not {ours}"))
    }

    /// Fills in fields that were not known.
    pub fn complete_by(&mut self, other: Identity) {
        self.name = self.name.take().or(other.name);
        self.scope = self.scope.take().or(other.scope);
        self.system_identifier = self.system_identifier.take().or(other.system_identifier);
    }
}

/// PostgreSQL answered no query within Patroni's `statement_timeout`; its state has not changed.
const STATE_UNKNOWN: &str = "unknown";

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &str) -> NodeReport {
        NodeReport::from_json(body.as_bytes()).expect(body)
    }

    #[test]
    fn a_report_is_read_from_pythons_json() {
        let body = r#"{"state": "running", "role": "primary", "xlog": {"location": 1},
            "timeline": 2, "dcs_last_seen": 9999, "pause": true, "tags": {"lag": NaN},
            "database_system_identifier": "77", "patroni": {"version": "4.1.5", "name": "pg1"}}"#;
        let found = report(body);
        assert_eq!(
            (found.timeline, found.dcs_last_seen, found.pause),
            (Some(2), Some(9_999), true)
        );
        assert_eq!(found.patroni.name.as_deref(), Some("pg1"));
        assert_eq!(found.database_system_identifier.as_deref(), Some("77"));
        for body in ["", "[]", "{}", "{\"state\": 1}", "{\"state\": \"running\""] {
            assert_eq!(NodeReport::from_json(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn another_role_timeline_or_state_contradicts() {
        let previous = report(r#"{"state": "running", "role": "primary", "timeline": 2}"#);
        let table = [
            (r#"{"state": "running", "role": "primary", "timeline": 2, "pause": true}"#, false),
            (r#"{"state": "running", "role": "primary"}"#, false),
            (r#"{"state": "running", "role": "primary", "timeline": 3}"#, true),
            (r#"{"state": "running", "role": "primary", "timeline": 1}"#, true),
            (r#"{"state": "running", "role": "replica", "timeline": 2}"#, true),
            (r#"{"state": "stopping", "role": "primary", "timeline": 2}"#, true),
            (r#"{"state": "unknown", "role": "primary"}"#, false),
        ];
        for (body, contradicts) in table {
            let mut next = report(body);
            next.complete_by(&previous);
            assert_eq!(next.contradicts(&previous), contradicts, "{body}");
        }
        let stopped = report(r#"{"state": "stopped", "role": "primary"}"#);
        assert!(!previous.contradicts(&stopped), "a stopped node promised nothing");
    }

    #[test]
    fn an_overtaken_report_takes_over_a_state_that_is_not_running() {
        let of = |state: &str| report(&format!(r#"{{"state": "{state}", "role": "replica"}}"#));
        for (earlier, later, expected) in [
            ("running", "starting", "starting"),
            ("starting", "running", "starting"),
            ("starting", "unknown", "starting"),
            ("running", "unknown", "unknown"),
        ] {
            let mut earlier = of(earlier);
            earlier.overtaken_by(&of(later));
            assert_eq!(earlier.state, expected, "{later}");
        }
    }

    #[test]
    fn identities_differ_only_in_fields_that_both_have() {
        let body = |name: &str, scope: &str, id: &str| {
            let field = |name: &str, value: &str| {
                if value.is_empty() { String::new() } else { format!(r#""{name}": "{value}""#) }
            };
            let member: Vec<String> = [field("name", name), field("scope", scope)]
                .into_iter()
                .filter(|field| !field.is_empty())
                .collect();
            let system = field("database_system_identifier", id);
            let comma = if system.is_empty() { "" } else { ", " };
            let member = member.join(", ");
            let text = format!(r#"{{"state": "running", "patroni": {{{member}}}{comma}{system}}}"#);
            report(&text).identity()
        };
        let first = body("pg1", "main", "77");
        let table = [
            (body("pg1", "main", "77"), None),
            (body("", "", ""), None),
            (body("pg1", "", ""), None),
            (body("pg2", "main", "77"), Some("this is pg2, not pg1")),
            (body("", "other", ""), Some("this is cluster other, not main")),
            (body("pg1", "main", "78"), Some("this is database system 78, not 77")),
        ];
        for (other, difference) in table {
            assert_eq!(first.difference(&other).as_deref(), difference);
        }
        let mut known = first.clone();
        known.complete_by(body("", "", ""));
        assert_eq!(known, first);
    }
}
