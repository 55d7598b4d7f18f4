//! Why the node's 200 may not be served stale: an explanation for operators, from the same facts
//! as the decision, in the same order. Decides nothing.

use std::fmt;

use super::Node;
use super::report::NodeReport;
use crate::time::Now;

/// Why no leader's 200 may be served stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// There is no report yet, or another node answers.
    NoReport,
    /// The node reports another role.
    NotLeader,
    /// Maintenance mode: no lease ends.
    Paused,
    /// No node holds the lease.
    NoLeaderKey,
    /// The DCS is unreachable for Patroni.
    FailsafeMode,
    /// `dcs_last_seen` is missing: a Patroni before 2.1.2.
    NoDcsLastSeen,
    /// Our clock jumped, and Patroni has not moved `dcs_last_seen` on since.
    ClockJumped,
    /// Patroni's clock differs from ours.
    ClockDiffers,
    /// `/config` has not been answered.
    IntervalsUnknown,
    /// With Patroni's intervals no lease is sure to last.
    IntervalsTooTight,
    /// `dcs_last_seen` has not moved on twice by itself.
    HaLoopNotSeen,
}

impl Node {
    /// Why a leader's 200 would not be served stale; `None`: nothing known about the node prevents
    /// it.
    pub fn why_no_lease(&self, now: Now) -> Option<WhyNot> {
        let Some(report) = self.report() else { return Some(WhyNot::NoReport) };
        let table = [
            (!is_leaders(report), WhyNot::NotLeader),
            (report.pause, WhyNot::Paused),
            (report.failsafe_mode_is_active, WhyNot::FailsafeMode),
            (report.cluster_unlocked, WhyNot::NoLeaderKey),
            (report.dcs_last_seen.is_none(), WhyNot::NoDcsLastSeen),
            (self.wall_clock.is_distrusted(), WhyNot::ClockJumped),
            (self.patroni_clock.is_skewed(now.time), WhyNot::ClockDiffers),
            (self.intervals.bounds(now).is_none(), WhyNot::IntervalsUnknown),
            (self.intervals_without_grace().is_some(), WhyNot::IntervalsTooTight),
            (!self.lease.has_two_cycles(), WhyNot::HaLoopNotSeen),
        ];
        table.iter().find(|(is_so, _)| *is_so).map(|(_, why)| *why)
    }
}

fn is_leaders(report: &NodeReport) -> bool {
    ["primary", "master", "standby_leader"].contains(&report.role.as_str())
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyNot::NoReport => "Patroni has not answered yet",
            WhyNot::NotLeader => "not a leader",
            WhyNot::Paused => "paused",
            WhyNot::NoLeaderKey => "no leader key",
            WhyNot::FailsafeMode => "failsafe mode",
            WhyNot::NoDcsLastSeen => "Patroni does not report dcs_last_seen",
            WhyNot::ClockJumped => "the clock jumped",
            WhyNot::ClockDiffers => "Patroni's clock differs",
            WhyNot::IntervalsUnknown => "Patroni's intervals are not known yet",
            WhyNot::IntervalsTooTight => "no lease is sure to last with Patroni's intervals",
            WhyNot::HaLoopNotSeen => "the HA loop was not seen yet",
        })
    }
}
