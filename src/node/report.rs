//! The node's JSON: the fields that decide anything, and what contradicts them.

use serde::Deserialize;

/// What a node says of itself in the body of its status routes. Patroni leaves out fields that do
/// not apply.
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
    /// Unix seconds, rounded down, at which Patroni last read the DCS. Since Patroni 2.1.2.
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
}

impl NodeReport {
    /// `None`: the body is not a node's report.
    pub fn from_json(body: &[u8]) -> Option<NodeReport> {
        serde_json::from_slice::<NodeReport>(body).ok().filter(|report| !report.state.is_empty())
    }

    /// Whether this report, after `previous`, makes answers that came before it untrue.
    pub fn contradicts(&self, previous: &NodeReport) -> bool {
        let timelines = self.timeline.zip(previous.timeline);
        self.role != previous.role
            || timelines.is_some_and(|(timeline, before)| timeline != before)
            || (previous.is_running() && !self.is_running())
    }

    /// Whether PostgreSQL runs.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Whether a leader's 200 rests on the leader's lease.
    pub fn is_under_lease(&self) -> bool {
        self.is_running()
            && !self.pause
            && !self.cluster_unlocked
            && !self.failsafe_mode_is_active
            && self.dcs_last_seen.is_some()
    }
}
