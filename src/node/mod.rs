//! What is known about the node, and until when its answers may be served. No other module decides
//! that.
//!
//! Read in this order: [`report`], what the node says about itself; [`intervals`], how long its
//! lease lasts; [`dcs_reads`], which moves of `dcs_last_seen` we may have caused; [`wall_clock`],
//! whether its times can be compared with ours; [`lease`], until when a leader's 200 may be served;
//! [`witness`], what the DCS says about the lease. [`Node::learn`] combines them.
//! `docs/safety.md` has the promises that this keeps.

pub mod dcs_reads;
pub mod intervals;
pub mod lease;
pub mod report;
#[cfg(test)]
mod tests;
pub mod wall_clock;
mod why_not;
pub mod witness;

use self::dcs_reads::DcsReads;
use self::intervals::{Intervals, KnownIntervals};
use self::lease::{Basis, LeaderAnswer, Lease, Until, Validity};
use self::report::{Identity, NodeReport};
use self::wall_clock::{PatroniClock, WallClock};
pub use self::why_not::WhyNot;
use self::witness::{Evidence, Outcome, Standing, Subject, Why};
use crate::answer::{AddressId, Answer};
use crate::failure::{Culprit, Failure};
use crate::routes::{LeaderRoutes, Route};
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// Everything that is known about the node.
#[derive(Debug, Default)]
pub struct Node {
    /// Whose answers these are, since the first report, and the address that gave the last one;
    /// `None`: the operator confirmed the configuration since, and any address is the node's.
    identity: Option<(Identity, Option<AddressId>)>,
    /// The difference, while another node answers.
    other: Option<String>,
    /// The last report, and when the last of them was asked for.
    report: Option<(NodeReport, Time)>,
    intervals: KnownIntervals,
    dcs_reads: DcsReads,
    wall_clock: WallClock,
    patroni_clock: PatroniClock,
    lease: Lease,
    denials: Denials,
    changes: Changes,
    /// `cache.fence`.
    is_fenced: bool,
    /// The last evidence from the DCS, as long as Patroni's reports do not change.
    evidence: Option<Evidence>,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer may be served.
    Serve {
        /// Until when.
        validity: Validity,
        /// Which answers in memory it ends.
        distrust: Vec<Distrust>,
        /// What the log says about it.
        notice: Option<Notice>,
    },
    /// What it says may no longer be true: it has to be fetched again.
    FetchAgain {
        /// Which answers in memory it ends.
        distrust: Vec<Distrust>,
    },
    /// Its HA loop hangs, and the fence is on.
    Fenced {
        /// Which answers in memory it ends.
        distrust: Vec<Distrust>,
    },
    /// The answer is another node's.
    OtherNode {
        /// A sentence that says how the identity differs.
        difference: String,
        /// Whether this is the first answer of another node.
        is_news: bool,
    },
}

/// Which answers in memory may no longer be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Answers requested before this time must not be served stale.
    StaleBefore(Time),
    /// No leader's 200 may be served stale.
    StaleLeaders,
    /// No 200 of these leader routes may be served.
    Leaders(LeaderRoutes),
    /// No answer may be served, and fetches in flight may bring outdated ones.
    Answers,
    /// As `Answers`, and failures are forgotten as well: another Patroni answers.
    Everything,
}

/// What the log says about an answer, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A leader's 200 rests on Patroni's word alone: `dcs_last_seen` is too long ago.
    LeaseBoundPassed,
    /// Patroni's clock and ours differ.
    ClockSkewed,
    /// The node at the same address, or after SIGHUP at any, has another identity.
    Renamed,
    /// The first node answers again.
    FirstNodeBack,
}

/// When a leader route, or the DCS, last said that the node does not lead.
#[derive(Clone, Copy, Debug, Default)]
struct Denials {
    /// By `/leader`.
    any: Option<Time>,
    /// By `/primary` and the routes that mean the same.
    primary: Option<Time>,
    /// By `/standby-leader`.
    standby_leader: Option<Time>,
    /// A 200 that was asked for before may be Patroni's word, but is never served stale by D.
    by_dcs: Option<Time>,
}

/// When the node changed.
#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    changed_at: Option<Time>,
    contradicted_at: Option<Time>,
}

impl Node {
    /// A node about which nothing is known. `is_fenced`: whether a leader's 200 ends when the HA
    /// loop seems to hang.
    pub fn new(is_fenced: bool) -> Self {
        Node { is_fenced, ..Node::default() }
    }

    /// Changes whether a leader's 200 ends when the HA loop seems to hang.
    pub fn set_fenced(&mut self, is_fenced: bool) {
        self.is_fenced = is_fenced;
    }

    /// Learns what an answer says and decides what it means.
    pub fn learn(&mut self, now: Now, route: Route, answer: &Answer) -> Verdict {
        let report = route.family().has_node_report().then(|| NodeReport::from_json(&answer.body));
        let mut report = report.flatten();
        let seen = report.as_ref().and_then(|report| report.dcs_last_seen);
        let mut notice = None;
        let mut distrust = Vec::new();
        if let Some(report) = &mut report {
            match self.identify(report, answer) {
                Identified::First => {}
                Identified::Back => {
                    distrust.push(Distrust::Everything);
                    notice = Some(Notice::FirstNodeBack);
                }
                Identified::Renamed => {
                    self.forget_answers();
                    self.intervals.doubt(now.time);
                    distrust.push(Distrust::Everything);
                    notice = Some(Notice::Renamed);
                }
                Identified::Overtaken => return Verdict::FetchAgain { distrust },
                Identified::Other { difference, is_news } => {
                    return Verdict::OtherNode { difference, is_news };
                }
            }
            if let Some((previous, _)) = &self.report {
                report.complete_by(previous);
                if self.is_overtaken(answer) {
                    if report.contradicts(previous) {
                        return Verdict::FetchAgain { distrust };
                    }
                    report.overtaken_by(previous);
                }
            }
        }
        if let Some(skewed) = self.learn_times(now, answer, report.as_ref()) {
            notice = Some(skewed);
            distrust.push(Distrust::Leaders(LeaderRoutes::Any)); // judged by the same clock
        }
        let basis = self.basis(now, route, answer, (report.as_ref(), seen));
        if let Basis::Word(_) = basis {
            let is_explained = report.as_ref().is_some_and(|report| !report.is_under_lease());
            notice = notice.or((!is_explained).then_some(Notice::LeaseBoundPassed));
        }
        let report = report.or_else(|| self.unreadable_report(route));
        if let Some(report) = report {
            self.learn_report(now, report, answer.asked_at, &mut distrust);
        }
        if let Some(routes) = route.leader_routes().filter(|_| answer.status != 200) {
            self.denials.deny(routes, now.time);
            distrust.push(Distrust::Leaders(routes));
        }
        match basis {
            Basis::Nothing => Verdict::FetchAgain { distrust },
            Basis::Fenced => Verdict::Fenced { distrust },
            Basis::Lease(validity) | Basis::Word(validity) => {
                Verdict::Serve { validity, distrust, notice }
            }
        }
    }

    /// A fetch failed. If Patroni refuses or resets, it is gone, not frozen: its earlier answers
    /// must not be served stale.
    pub fn learn_failure(&self, now: Now, failure: Failure) -> Option<Distrust> {
        // all answers in memory were requested before the next millisecond
        (failure.culprit() == Culprit::Gone).then(|| Distrust::StaleBefore(now.time.plus_ms(1)))
    }

    /// Looks at the clocks. After a jump of the wall clock (the machine slept, or the clock was
    /// set) no answer's age is known.
    pub fn observe_clock(&mut self, now: Now) -> Option<Distrust> {
        let before_unix_ms = self.wall_clock.observe(now)?;
        self.dcs_reads.clock_jumped(before_unix_ms);
        self.lease.forget();
        self.evidence = None;
        Some(Distrust::Answers)
    }

    /// Whether Patroni's intervals are to be fetched now; if so, the fetch counts as in flight.
    pub fn begin_intervals_fetch(&mut self, now: Time) -> bool {
        self.intervals.begin_fetch(now)
    }

    /// The fetch of Patroni's intervals has ended, with this answer if there was one. `/config`
    /// does not name its node: an answer from another address than the last report's is ignored,
    /// because it may be another cluster's, with a longer `ttl`.
    pub fn learn_intervals(&mut self, now: Now, answer: Option<&Answer>) -> Option<Distrust> {
        let intervals = answer
            .filter(|answer| answer.status == 200 && self.is_of_the_node(answer))
            .and_then(|answer| Intervals::from_json(&answer.body));
        self.intervals.fetch_ended(now.time, intervals.is_some());
        let changed = self.intervals.learn(now, intervals?);
        changed.then_some(Distrust::Leaders(LeaderRoutes::Any))
    }

    /// Patroni's intervals, as they were fetched last.
    pub fn intervals(&self) -> Option<Intervals> {
        self.intervals.last()
    }

    /// The last intervals, if the lease is never sure under them: grace has no effect then.
    pub fn intervals_without_grace(&self) -> Option<Intervals> {
        self.intervals.last().filter(|intervals| intervals.bounds().sure_seconds == 0)
    }

    /// A fetch that makes Patroni read the DCS begins.
    pub fn dcs_read_begins(&mut self, now: Now, id: ConnId) {
        self.dcs_reads.begin(now, id);
    }

    /// A fetch has ended. `answered`: with an answer; `seen`: Patroni may have seen the request.
    pub fn fetch_ended(&mut self, now: Now, id: ConnId, answered: bool, seen: bool) {
        if seen {
            self.dcs_reads.end(now, id, answered);
        } else {
            self.dcs_reads.cancel(now, id);
        }
        if answered {
            self.dcs_reads.patroni_answered(now, self.intervals.dcs_read_ms_max());
        }
    }

    /// The node is in transition until then: its answers change from one moment to the next.
    pub fn in_transition_until(&self) -> Time {
        let Some(changed_at) = self.changes.changed_at else { return Time::ZERO };
        let limit = changed_at.plus_ms(TRANSITION_MS_MAX);
        if self.report.as_ref().is_some_and(|(report, _)| report.is_changing()) {
            return limit;
        }
        let contradicted_at = self.changes.contradicted_at;
        contradicted_at.map_or(Time::ZERO, |at| at.plus_ms(CONTRADICTION_MS)).min(limit)
    }

    /// What the DCS can be asked to confirm.
    pub fn witness_subject(&self) -> Result<Subject, Why> {
        let report = self.report().ok_or(Why::Unreported("state"))?;
        Subject::new(report, self.intervals.last())
    }

    /// Learns the outcome of a read of the DCS that was about what Patroni said last.
    /// `is_rehearsal`: Patroni answers, and its fresh answers count more.
    pub fn testify(
        &mut self,
        now: Time,
        outcome: &Outcome,
        is_rehearsal: bool,
    ) -> Option<Distrust> {
        match outcome {
            Outcome::Evidence(evidence) => self.evidence = Some(*evidence),
            Outcome::Nothing(_) => {}
            Outcome::Contradiction(_) => {
                self.evidence = None;
                self.denials.by_dcs = Some(now);
                return Some(match is_rehearsal {
                    true => Distrust::StaleLeaders,
                    false => Distrust::Leaders(LeaderRoutes::Any),
                });
            }
        }
        None
    }

    /// Another DCS is configured.
    pub fn forget_evidence(&mut self) {
        self.evidence = None;
    }

    /// The evidence by which the last 200 of a route may be served while Patroni is silent.
    pub fn evidence(&self, now: Now, route: Route) -> Option<Evidence> {
        let is_leaders = route.leader_routes().is_some();
        self.evidence.filter(|evidence| {
            !evidence.is_over(now) && (evidence.standing == Standing::Leader || !is_leaders)
        })
    }

    /// The evidence by which a leader's 200 may be served while Patroni is silent.
    pub fn leaders_evidence(&self, now: Now) -> Option<Evidence> {
        let evidence = self.evidence.filter(|evidence| !evidence.is_over(now));
        evidence.filter(|evidence| evidence.standing == Standing::Leader)
    }

    /// The node's last report.
    pub fn report(&self) -> Option<&NodeReport> {
        self.report.as_ref().map(|(report, _)| report)
    }

    /// The operator confirmed the configuration: the next report says whose answers these are, and
    /// another name from any address is a renamed node's.
    pub fn forget_address(&mut self) {
        if let Some((_, address)) = &mut self.identity {
            *address = None;
        }
    }

    /// Another Patroni is configured: forgets everything.
    pub fn forget(&mut self, now: Time) -> Distrust {
        let mut intervals = std::mem::take(&mut self.intervals);
        intervals.forget(now);
        let wall_clock = self.wall_clock.without_patroni(); // it is the machine's
        *self = Node { intervals, wall_clock, is_fenced: self.is_fenced, ..Node::default() };
        Distrust::Everything
    }

    /// Forgets what earlier answers said about the node.
    fn forget_answers(&mut self) {
        (self.report, self.lease, self.evidence) = (None, Lease::default(), None);
        (self.denials, self.changes) = (Denials::default(), Changes::default());
    }

    fn identify(&mut self, report: &NodeReport, answer: &Answer) -> Identified {
        let (found, address) = (report.identity(), answer.address);
        let is_overtaken = self.is_overtaken(answer);
        let Some((known, known_address)) = &mut self.identity else {
            self.identity = Some((found, Some(address)));
            return Identified::First;
        };
        let Some(difference) = known.difference(&found) else {
            known.complete_by(found);
            *known_address = Some(address);
            return if self.other.take().is_some() { Identified::Back } else { Identified::First };
        };
        if known_address.is_none_or(|known_address| known_address == address) {
            if is_overtaken {
                return Identified::Overtaken;
            }
            self.identity = Some((found, Some(address)));
            self.other = None;
            return Identified::Renamed;
        }
        let is_news = self.other.is_none();
        if is_news {
            self.forget_answers();
            self.other = Some(difference.clone());
        }
        Identified::Other { difference, is_news }
    }

    /// Whether an answer comes from the address of the node's last report.
    fn is_of_the_node(&self, answer: &Answer) -> bool {
        let address = self.identity.as_ref().and_then(|(_, address)| *address);
        address.is_none_or(|address| address == answer.address)
    }

    /// Whether the last report was asked for later than this answer, and so is newer.
    fn is_overtaken(&self, answer: &Answer) -> bool {
        self.report.as_ref().is_some_and(|(_, asked_at)| answer.asked_at < *asked_at)
    }

    fn learn_times(
        &mut self,
        now: Now,
        answer: &Answer,
        report: Option<&NodeReport>,
    ) -> Option<Notice> {
        let asked_unix_ms = now.unix_ms.saturating_sub(now.time.ms_since(answer.asked_at));
        let seen = report.and_then(|report| report.dcs_last_seen);
        let date = answer.date_unix_seconds;
        let is_news = self.patroni_clock.observe(now, asked_unix_ms, date, seen);
        if let Some(seen) = seen.filter(|seen| !is_future(*seen, now)) {
            let may_be_ours = self.dcs_reads.learn_dcs_last_seen(now, answer.asked_at, seen);
            if !may_be_ours {
                self.lease.learn(seen);
            }
            if self.wall_clock.learn_dcs_last_seen(seen, may_be_ours) {
                self.lease.forget_previous();
            }
        }
        is_news.then_some(Notice::ClockSkewed)
    }

    /// What an answer rests on, and until when. `seen`: its `dcs_last_seen`, which the report lacks
    /// if a later request brought none; the bound that it sets still counts.
    fn basis(
        &self,
        now: Now,
        route: Route,
        answer: &Answer,
        (report, seen): (Option<&NodeReport>, Option<u64>),
    ) -> Basis {
        if answer.status != 200 {
            return Basis::Lease(Validity::FRESH_ONLY);
        }
        let Some(routes) = route.leader_routes() else {
            // a stale answer of a replica risks lag and errors, not data
            let stale_until = route.family().policy().stale_allowed.then_some(Until::NEVER);
            return Basis::Lease(Validity { stale_until, ..Validity::FRESH_ONLY });
        };
        if self.denials.deny_answer(routes, answer.asked_at) {
            return Basis::Nothing;
        }
        let answer = LeaderAnswer {
            asked_at: answer.asked_at,
            report,
            seen: seen.filter(|seen| !is_future(*seen, now)),
            is_clock_trusted: !self.wall_clock.is_distrusted()
                && !self.patroni_clock.is_skewed(now.time),
            bounds: self.intervals.bounds(now),
            is_fenced: self.is_fenced,
        };
        match self.lease.decide(now, &answer) {
            Basis::Lease(validity) if self.denials.by_dcs >= Some(answer.asked_at) => {
                Basis::Lease(Validity { stale_until: None, ..validity })
            }
            basis => basis,
        }
    }

    /// What counts as the report of an answer that should have one and has none: the last one,
    /// without its word for the lease.
    fn unreadable_report(&self, route: Route) -> Option<NodeReport> {
        let (last, _) = self.report.as_ref().filter(|_| route.family().has_node_report())?;
        Some(NodeReport { dcs_last_seen: None, ..last.clone() })
    }

    /// Learns a report, and what it means for answers in memory.
    fn learn_report(
        &mut self,
        now: Now,
        report: NodeReport,
        asked_at: Time,
        distrust: &mut Vec<Distrust>,
    ) {
        let previous = self.report.as_ref().map(|(previous, _)| previous);
        if previous.is_none_or(|previous| previous.state != report.state) {
            self.changes.changed_at = Some(now.time);
        }
        if previous.is_some_and(|previous| report.contradicts(previous)) {
            self.changes = Changes { changed_at: Some(now.time), contradicted_at: Some(now.time) };
            self.intervals.expire(now.time);
            distrust.push(Distrust::Answers);
        }
        let is_unlocked =
            |report: &NodeReport| report.cluster_unlocked && !report.failsafe_mode_is_active;
        if is_unlocked(&report) && !previous.is_some_and(is_unlocked) {
            self.denials.deny(LeaderRoutes::Any, now.time);
            distrust.push(Distrust::Leaders(LeaderRoutes::Any));
        }
        if !report.is_under_lease() {
            distrust.push(Distrust::StaleLeaders);
        }
        let subject = self.evidence.and_then(|_| self.witness_subject().ok());
        let last_asked_at = self.report.as_ref().map_or(asked_at, |(_, at)| asked_at.max(*at));
        self.report = Some((report, last_asked_at));
        if subject != self.witness_subject().ok() {
            self.evidence = None;
        }
    }
}

/// Which node a report comes from.
enum Identified {
    /// The first node's, as before.
    First,
    /// The first node's, after another one's.
    Back,
    /// Another node's, at the address of the first or at one that the operator confirmed.
    Renamed,
    /// As `Renamed`, but asked for before the last report.
    Overtaken,
    /// Another node's, at another address.
    Other { difference: String, is_news: bool },
}

impl Denials {
    /// The node does not lead, by these routes: their 200s that were asked for until now are
    /// untrue.
    fn deny(&mut self, routes: LeaderRoutes, now: Time) {
        match routes {
            LeaderRoutes::Any => {
                (self.any, self.primary, self.standby_leader) = (Some(now), Some(now), Some(now));
            }
            LeaderRoutes::Primary => self.primary = Some(now),
            LeaderRoutes::StandbyLeader => self.standby_leader = Some(now),
        }
    }

    /// Whether a denial at or after `asked_at` makes a 200 untrue that was asked for then.
    fn deny_answer(self, routes: LeaderRoutes, asked_at: Time) -> bool {
        let denied_at = match routes {
            LeaderRoutes::Any => self.any,
            LeaderRoutes::Primary => self.primary,
            LeaderRoutes::StandbyLeader => self.standby_leader,
        };
        denied_at.is_some_and(|denied_at| asked_at <= denied_at)
    }
}

impl Distrust {
    /// Whether fetches in flight may bring outdated answers.
    pub fn restarts_fetches(self) -> bool {
        matches!(self, Distrust::Answers | Distrust::Everything)
    }
}

fn is_future(unix_seconds: u64, now: Now) -> bool {
    unix_seconds.saturating_mul(1_000) > now.unix_ms
}

/// How long after a contradiction the node counts as in transition: a switchover shows several
/// changes within 5 s (measured on Patroni 4.1.5).
const CONTRADICTION_MS: u64 = 5_000;
/// A node that starts or stops is in transition for at most this time after its last change.
const TRANSITION_MS_MAX: u64 = 30_000;

const _: () = assert!(CONTRADICTION_MS <= TRANSITION_MS_MAX);
