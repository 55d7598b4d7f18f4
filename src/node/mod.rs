//! What is known of the node, and until when its answers may be served. Nothing else decides that.
//!
//! Read in this order: [`report`], what the node says of itself; [`intervals`], what its lease
//! lasts; [`dcs_reads`], which of its words are our own doing; [`wall_clock`], whether its times
//! can be compared with ours; [`lease`], until when a leader's 200 may be served. [`Node::learn`]
//! puts them together.

pub mod dcs_reads;
pub mod intervals;
pub mod lease;
pub mod report;
#[cfg(test)]
mod tests;
pub mod wall_clock;

use self::dcs_reads::DcsReads;
use self::intervals::{Intervals, KnownIntervals};
use self::lease::{Lease, Until, Validity};
use self::report::NodeReport;
use self::wall_clock::WallClock;
use crate::answer::Answer;
use crate::failure::Failure;
use crate::routes::Family;
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// Everything that is known of the node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its last report.
    report: Option<NodeReport>,
    intervals: KnownIntervals,
    dcs_reads: DcsReads,
    wall_clock: WallClock,
    lease: Lease,
}

/// What an answer means for itself and for those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Until when the answer may be served.
    pub validity: Validity,
    /// Which answers that are in memory it ends.
    pub distrust: Distrust,
    /// The node's report in it.
    pub report: Option<NodeReport>,
}

/// Which answers in memory may no longer be served. Each of them ends what those before it end,
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distrust {
    /// None.
    Nothing,
    /// Answers requested before this time must not be served stale.
    StaleBefore(Time),
    /// No leader's answer may be served stale.
    StaleLeaders,
    /// No leader's answer may be served.
    Leaders,
    /// No answer may be served: they may contradict the one that arrived.
    Answers,
    /// As `Answers`, and failures are forgotten as well: Patroni is another one.
    Everything,
}

impl Node {
    /// Learns what an answer says and decides what it means. `stepped_down`: the route is a
    /// leader's, said 200 before and does not now.
    pub fn learn(
        &mut self,
        now: Now,
        family: Family,
        answer: &Answer,
        stepped_down: bool,
    ) -> Verdict {
        let report = family.has_node_report().then(|| NodeReport::from_json(&answer.body));
        let report = report.flatten();
        let seen = report.as_ref().and_then(|report| report.dcs_last_seen);
        let seen = seen.filter(|seen| seen.saturating_mul(1_000) <= now.unix_ms);
        if let Some(seen) = seen {
            self.learn_dcs_last_seen(seen);
        }
        let validity = self.validity(now, family, answer.status, report.as_ref(), seen);
        let is_under_lease = report.as_ref().is_none_or(NodeReport::is_under_lease);
        let distrust = if report.as_ref().is_some_and(|report| self.is_contradicted_by(report)) {
            self.intervals.expire(now.time);
            Distrust::Answers
        } else if stepped_down || !is_under_lease {
            Distrust::StaleLeaders
        } else {
            Distrust::Nothing
        };
        if let Some(report) = &report {
            self.keep(report, distrust);
        }
        Verdict { validity, distrust, report }
    }

    /// Patroni did not answer. One that refuses or resets is gone, not frozen: its earlier answers
    /// must not be served stale.
    pub fn learn_failure(&self, now: Now, failure: Failure) -> Distrust {
        if failure.is_silence() { Distrust::Nothing } else { not_stale_before(now) }
    }

    /// Looks at the clocks. A wall clock that jumped makes every lease uncertain.
    pub fn observe_clock(&mut self, now: Now) -> Distrust {
        let Some(before_unix_ms) = self.wall_clock.observe(now) else { return Distrust::Nothing };
        self.dcs_reads.clock_jumped(before_unix_ms);
        self.lease.forget();
        not_stale_before(now)
    }

    /// Whether Patroni's intervals are to be fetched now; if so, the fetch counts as in flight.
    pub fn begin_intervals_fetch(&mut self, now: Time) -> bool {
        self.intervals.begin_fetch(now)
    }

    /// The fetch of Patroni's intervals has ended, with this answer if there was one.
    pub fn learn_intervals(&mut self, now: Now, answer: Option<&Answer>) -> Distrust {
        let intervals = answer
            .filter(|answer| answer.status == 200)
            .and_then(|answer| Intervals::from_json(&answer.body));
        self.intervals.fetch_ended(now.time, intervals.is_some());
        let changed = intervals.is_some_and(|intervals| self.intervals.learn(now, intervals));
        if changed { Distrust::Leaders } else { Distrust::Nothing }
    }

    /// A fetch that makes Patroni read the DCS begins.
    pub fn dcs_read_begins(&mut self, now: Now, id: ConnId) {
        self.dcs_reads.begin(now, id);
    }

    /// A fetch has ended. `answered`: with an answer; `seen`: Patroni may have seen the request.
    pub fn fetch_ended(&mut self, now: Now, id: ConnId, answered: bool, seen: bool) {
        self.dcs_reads.end(now, id, answered || !seen);
        if answered {
            self.dcs_reads.patroni_answered(now, self.intervals.dcs_read_ms_max());
        }
    }

    /// Patroni is another one: nothing that is known counts.
    pub fn forget(&mut self, now: Time) -> Distrust {
        let mut intervals = std::mem::take(&mut self.intervals);
        intervals.forget(now);
        *self = Node { intervals, ..Node::default() };
        Distrust::Everything
    }

    fn learn_dcs_last_seen(&mut self, seen: u64) {
        let may_be_ours = self.dcs_reads.cover(seen);
        if !may_be_ours {
            self.lease.learn(seen);
        }
        if self.wall_clock.learn_dcs_last_seen(seen, may_be_ours) {
            self.lease.forget_previous();
        }
    }

    fn validity(
        &self,
        now: Now,
        family: Family,
        status: u16,
        report: Option<&NodeReport>,
        seen: Option<u64>,
    ) -> Validity {
        match family {
            _ if status != 200 => Validity::FRESH_ONLY,
            Family::Leader => {
                let trusted = !self.wall_clock.is_distrusted();
                self.lease.validity(now, report, seen, trusted, self.intervals.bounds(now))
            }
            // stale replica answers risk lag and errors, not data
            Family::Replica | Family::Health => {
                Validity { stale_until: Some(Until::NEVER), ..Validity::FRESH_ONLY }
            }
            _ => Validity::FRESH_ONLY,
        }
    }

    fn is_contradicted_by(&self, report: &NodeReport) -> bool {
        self.report.as_ref().is_some_and(|previous| report.contradicts(previous))
    }

    fn keep(&mut self, report: &NodeReport, distrust: Distrust) {
        let previous = self.report.replace(report.clone());
        // an answer without a timeline does not say that there is none
        let timeline = previous.filter(|_| distrust < Distrust::Answers).and_then(|p| p.timeline);
        if let Some(kept) = &mut self.report {
            kept.timeline = kept.timeline.or(timeline);
        }
    }
}

impl Distrust {
    /// Whether fetches in flight may bring what is no longer true.
    pub fn restarts_fetches(self) -> bool {
        self >= Distrust::Answers
    }
}

/// What is in memory must not be served stale: it was requested before the next millisecond.
fn not_stale_before(now: Now) -> Distrust {
    Distrust::StaleBefore(now.time.plus_ms(1))
}
