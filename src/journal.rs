//! What the log says: a change of state once, a repeated failure once a second.

use log::Level::{Info, Warn};
use log::{Level, warn};

use crate::changes::{Changes, Kind};
use crate::failure::{Culprit, Failure};
use crate::node::Notice;
use crate::node::intervals::Intervals;
use crate::node::report::NodeReport;
use crate::node::witness::{Evidence, Outcome};
use crate::routes::ROUTES;
use crate::time::Time;

/// Remembers what was last logged.
#[derive(Debug, Default)]
pub struct Journal {
    patroni: Patroni,
    /// Targets already reported as failing. A repeated failure of one is not logged as an outage of
    /// Patroni.
    failing: Targets,
    role: Option<String>,
    /// Since when.
    role_since: Time,
    /// The last answer of a leader route.
    leader: Option<LeaderAnswer>,
    /// How often [`Journal::summary`] has changed.
    summary_version: u32,
    /// How often the node's role has changed.
    role_changes: u64,
    changes: Changes,
    failures: Repeats,
    refusals: Repeats,
    /// Targets whose stale answer is already reported.
    served_stale: Targets,
    /// Targets whose answer is already reported to rest on Patroni's word.
    on_word: Targets,
    /// The outcome of the last rehearsal of the witness.
    rehearsed: Option<String>,
    /// When it was last logged that stale answers rest on the witness; `None`: they do not.
    on_witness: Option<Time>,
    /// Targets that are already reported to be fenced.
    fenced: Targets,
    intervals_without_grace: Option<Intervals>,
}

/// What a leader route was answered with.
#[derive(Debug)]
struct LeaderAnswer {
    target: String,
    status: u16,
    answered_at: Time,
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
pub struct Repeats {
    logged_at: Option<Time>,
    unlogged: u64,
}

/// Targets already logged, and when they last recurred.
#[derive(Debug, Default)]
struct Targets(Vec<(Box<str>, Time)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Patroni {
    /// It has not answered yet.
    #[default]
    Unknown,
    Answers,
    Fails,
}

impl Journal {
    /// The node's role and Patroni's state, in a few words.
    pub fn summary(&self) -> String {
        let role = self.role.as_deref().unwrap_or("role unknown");
        let patroni = match self.patroni {
            Patroni::Unknown => "Patroni was not asked yet",
            Patroni::Answers => "Patroni answers",
            Patroni::Fails => "Patroni does not answer",
        };
        format!("{role}; {patroni}")
    }

    /// How often the summary has changed.
    pub fn summary_version(&self) -> u32 {
        self.summary_version
    }

    /// The last changes, for the status.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// How often the node's role has changed.
    pub fn role_changes(&self) -> u64 {
        self.role_changes
    }

    /// Since when the node has its role.
    pub fn role_since(&self) -> Time {
        self.role_since
    }

    /// What the last rehearsal of the witness said.
    pub fn last_rehearsal(&self) -> Option<&str> {
        self.rehearsed.as_deref()
    }

    /// Logs and remembers a change.
    pub fn log(&mut self, now: Time, level: Level, kind: Kind, text: &str) {
        self.changes.log(now, level, kind, text);
    }

    /// A fetch brought an answer.
    pub fn answered(&mut self, now: Time, target: &str) {
        if self.patroni != Patroni::Answers {
            self.log(now, Info, Kind::Patroni, "patroni answers");
            self.summary_version = self.summary_version.wrapping_add(1);
            self.patroni = Patroni::Answers;
        }
        self.failing.remove(target);
        self.served_stale.remove(target);
        self.witness_ended(now, "patroni answers");
    }

    /// A stale answer was served: logged once until Patroni answers this target again.
    pub fn served_stale(&mut self, now: Time, target: &str, age_ms: u64) {
        if self.served_stale.insert(now, target) {
            let seconds = age_ms as f64 / 1e3;
            let text = format!("patroni is silent: serving stale {target}, age {seconds:.1} s");
            self.log(now, Warn, Kind::Stale, &text);
        }
    }

    /// A fetch failed.
    pub fn failed(&mut self, now: Time, target: &str, failure: Failure) {
        let is_patronis = failure.culprit() != Culprit::Ours;
        if is_patronis && self.failing.insert(now, target) && self.patroni != Patroni::Fails {
            self.log(now, Info, Kind::Patroni, self.patroni.outage());
            self.patroni = Patroni::Fails;
            self.summary_version = self.summary_version.wrapping_add(1);
        }
        if let Some(times) = self.failures.count(now) {
            warn!("fetching {target}: {failure} ({times} times)");
        }
    }

    /// A client spoke another protocol; `error` is the text of its refusal.
    pub fn refused(&mut self, now: Time, error: &str) {
        if let Some(times) = self.refusals.count(now) {
            warn!("client refused: {error} ({times} times)");
        }
    }

    /// An answer carried the node's report.
    pub fn report(&mut self, now: Time, report: &NodeReport) {
        if self.role.as_deref() == Some(&report.role) {
            return;
        }
        self.summary_version = self.summary_version.wrapping_add(1);
        self.role_since = now;
        let text = match self.role.replace(report.role.clone()) {
            None => format!("this node is {}", report.role),
            Some(previous) => {
                self.role_changes += 1;
                let served = self.leader.as_ref().map(|leader| leader.served(now));
                let served = served.unwrap_or_default();
                format!("this node's role changed from {previous} to {}{served}", report.role)
            }
        };
        self.log(now, Info, Kind::Role, &text);
    }

    /// A leader route was answered with this status: what load balancers get from now on.
    pub fn leader_answered(&mut self, now: Time, target: &str, status: u16) {
        // the text keeps its memory: this comes with every fetch
        let mut text = self.leader.take().map(|leader| leader.target).unwrap_or_default();
        text.clear();
        text.push_str(target);
        self.leader = Some(LeaderAnswer { target: text, status, answered_at: now });
    }

    /// The node's verdict on an answer of `target` has a notice.
    pub fn notice(&mut self, now: Time, target: &str, notice: Notice) {
        let (level, kind, text) = match notice {
            Notice::LeaseBoundPassed if !self.on_word.insert(now, target) => return,
            Notice::LeaseBoundPassed => {
                let text = format!(
                    "{target}: patroni says 200, but its dcs_last_seen is too long ago for a \
                     lease: keeping the answer for {} ms",
                    crate::node::lease::WORD_MS
                );
                return self.log(now, Warn, Kind::Stale, &text);
            }
            Notice::ClockSkewed => {
                let text = "patroni's clock differs from this host's: no stale leader answers; \
                            run patroniglue on patroni's host or synchronise the clocks";
                (Warn, Kind::Stale, text)
            }
            Notice::Renamed => {
                (Warn, Kind::Role, "another node answers as the backend: starting anew")
            }
            Notice::FirstNodeBack => (Info, Kind::Role, "the first node answers again"),
        };
        self.log(now, level, kind, text);
    }

    /// A rehearsal of reading the DCS has ended: logged when the outcome changes.
    pub fn rehearsed(&mut self, now: Time, outcome: &Outcome) {
        let text = match outcome {
            Outcome::Evidence(_) => "the lease is readable".to_owned(),
            Outcome::Contradiction(why) | Outcome::Nothing(why) => why.to_string(),
        };
        if self.rehearsed.as_ref() == Some(&text) {
            return;
        }
        let (level, line) = match outcome {
            Outcome::Evidence(Evidence { lease: Some(lease), .. }) => {
                (Info, format!("dcs: {text}, {lease}"))
            }
            Outcome::Evidence(_) => (Info, format!("dcs: {text}")),
            Outcome::Contradiction(_) => {
                (Warn, format!("dcs: the keys contradict patroni: {text}"))
            }
            Outcome::Nothing(_) => (Warn, format!("dcs: no witness of the lease: {text}")),
        };
        self.log(now, level, Kind::Witness, &line);
        self.rehearsed = Some(text);
    }

    /// A stale answer was served on the evidence of the DCS: logged at the beginning, and each
    /// minute.
    pub fn on_witness(&mut self, now: Time, evidence: Evidence) {
        let is_news = self.on_witness.is_none_or(|at| now.ms_since(at) >= REMINDER_MS);
        if !is_news {
            return;
        }
        self.on_witness = Some(now);
        let text = match evidence.lease {
            Some(lease) => {
                format!("patroni is silent: stale answers rest on the lease in the dcs, {lease}")
            }
            None => "patroni is silent: stale answers rest on the dcs".to_owned(),
        };
        self.log(now, Warn, Kind::Witness, &text);
    }

    /// Stale answers no longer rest on the DCS, if they did.
    pub fn witness_ended(&mut self, now: Time, why: &str) {
        if self.on_witness.take().is_some() {
            let text = format!("stale answers no longer rest on the dcs: {why}");
            self.log(now, Warn, Kind::Witness, &text);
        }
    }

    /// A leader's 200 was not passed on, because Patroni's HA loop hangs: logged once per target.
    pub fn fenced(&mut self, now: Time, target: &str) {
        if self.fenced.insert(now, target) {
            let text = format!("{target}: patroni's HA loop hangs: answering 503 (cache.fence)");
            self.log(now, Warn, Kind::Stale, &text);
        }
    }

    /// Another node answers at another address of `backend.host`.
    pub fn other_node(&mut self, now: Time, difference: &str) {
        let text = format!(
            "backend.host leads to another node: {difference}; answering 503 until it is back"
        );
        self.log(now, Warn, Kind::Role, &text);
    }

    /// The wall clock jumped, or the machine slept.
    pub fn clock_jumped(&mut self, now: Time) {
        self.log(now, Warn, Kind::Stale, "the wall clock jumped: forgetting all answers");
    }

    /// `intervals`: those under which `cache.grace` has no effect on leader routes, if it has none.
    pub fn intervals_without_grace(&mut self, now: Time, intervals: Option<Intervals>) {
        if self.intervals_without_grace == intervals {
            return;
        }
        self.intervals_without_grace = intervals;
        if let Some(Intervals { ttl, loop_wait, retry_timeout }) = intervals {
            let text = format!(
                "cache.grace has no effect on leader routes: with patroni's ttl {ttl}, loop_wait \
                 {loop_wait}, retry_timeout {retry_timeout} no lease is sure to last; \
                 raise ttl above loop_wait + retry_timeout"
            );
            self.log(now, Warn, Kind::Stale, &text);
        }
    }
}

impl Patroni {
    /// What the log says of the first failure after this state.
    fn outage(self) -> &'static str {
        match self {
            Patroni::Unknown => "patroni does not answer",
            _ => "patroni stopped answering",
        }
    }
}

impl LeaderAnswer {
    fn served(&self, now: Time) -> String {
        let LeaderAnswer { target, status, answered_at } = self;
        let seconds = now.ms_since(*answered_at) as f64 / 1e3;
        format!("; {target} was last answered with {status}, {seconds:.1} s before")
    }
}

impl Repeats {
    /// Counts an event. If it is to be logged now, returns how many there were since the last one
    /// that was logged.
    pub fn count(&mut self, now: Time) -> Option<u64> {
        self.unlogged += 1;
        if self.logged_at.is_some_and(|logged_at| now.ms_since(logged_at) < QUIET_MS) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

impl Targets {
    /// Inserts a target. Returns whether it is to be logged: not if it recurs within
    /// [`REMEMBERED_MS`], nor if the list is full.
    fn insert(&mut self, now: Time, target: &str) -> bool {
        self.0.retain(|(_, at)| now.ms_since(*at) < REMEMBERED_MS);
        if let Some((_, at)) = self.0.iter_mut().find(|(logged, _)| **logged == *target) {
            *at = now;
            return false;
        }
        let has_room = self.0.len() < TARGETS_MAX;
        if has_room {
            self.0.push((target.into(), now));
        }
        has_room
    }

    fn remove(&mut self, target: &str) {
        self.0.retain(|(logged, _)| **logged != *target);
    }
}

/// How often it is logged that stale answers still rest on the DCS.
const REMINDER_MS: u64 = 60_000;
/// How long the same event is only counted.
const QUIET_MS: u64 = 1_000;
/// How long a target is remembered: longer than the time between two failures of one that clients
/// ask for, which is the longest usual timeout and a second.
const REMEMBERED_MS: u64 = 15_000;
/// Enough for all routes, and some targets with parameters.
const TARGETS_MAX: usize = 64;

const _: () = assert!(ROUTES.len() < TARGETS_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_failure_is_logged_once_a_second_with_its_count() {
        let mut repeats = Repeats::default();
        let said: Vec<Option<u64>> =
            (0..25).map(|tenth| repeats.count(Time::from_ms(tenth * 100))).collect();
        let mut expected = vec![None; 25];
        (expected[0], expected[10], expected[20]) = (Some(1), Some(10), Some(10));
        assert_eq!(said, expected);
    }

    #[test]
    fn a_failing_target_is_not_logged_as_an_outage_of_patroni() {
        let mut journal = Journal::default();
        let mut said = Vec::new();
        for second in 0..40 {
            let now = Time::from_ms(second * 1_000);
            journal.answered(Time::ZERO, "/primary");
            journal.failed(now, "/cluster", Failure::Garbage);
            said.push(journal.patroni == Patroni::Fails);
        }
        let mut expected = vec![false; 40];
        expected[0] = true;
        assert_eq!(said, expected);
        journal.failed(Time::from_ms(40_000), "/primary", Failure::TimedOut);
        assert_eq!(journal.patroni, Patroni::Fails, "that one is news");
        // and so is one that was answered meanwhile, or not asked for long
        journal.answered(Time::ZERO, "/primary");
        journal.failed(Time::from_ms(41_000), "/primary", Failure::TimedOut);
        assert_eq!(journal.patroni, Patroni::Fails);
        journal.answered(Time::ZERO, "/replica");
        journal.failed(Time::from_ms(41_000 + REMEMBERED_MS), "/cluster", Failure::Garbage);
        assert_eq!(journal.patroni, Patroni::Fails);
    }

    #[test]
    fn a_failure_of_our_own_is_no_outage() {
        let mut journal = Journal::default();
        journal.failed(Time::ZERO, "/primary", Failure::NoRoom);
        assert_eq!(journal.patroni, Patroni::Unknown);
        assert_eq!(journal.patroni.outage(), "patroni does not answer");
        journal.answered(Time::ZERO, "/primary");
        assert_eq!(journal.patroni.outage(), "patroni stopped answering");
    }

    #[test]
    fn a_stale_answer_is_logged_again_after_an_answer() {
        let mut journal = Journal::default();
        journal.served_stale(Time::ZERO, "/primary", 1_500);
        assert_eq!(journal.served_stale.0.len(), 1);
        journal.answered(Time::ZERO, "/primary");
        assert_eq!(journal.served_stale.0.len(), 0);
    }

    #[test]
    fn what_is_served_old_is_said_once_until_it_is_answered() {
        let mut targets = Targets::default();
        let note = |targets: &mut Targets, ms, target| targets.insert(Time::from_ms(ms), target);
        assert!(note(&mut targets, 0, "/primary") && note(&mut targets, 10, "/replica"));
        assert!(!note(&mut targets, REMEMBERED_MS - 1, "/primary"));
        assert!(note(&mut targets, 10 + REMEMBERED_MS, "/replica"), "it is long ago");
        assert!(!note(&mut targets, 2 * REMEMBERED_MS - 2, "/primary"), "it goes on");
        targets.remove("/primary");
        assert!(note(&mut targets, 2 * REMEMBERED_MS, "/primary"));
        let mut noted = 0;
        for number in 0..1_000 {
            noted +=
                usize::from(targets.insert(Time::from_ms(2 * REMEMBERED_MS), &number.to_string()));
        }
        assert_eq!((noted, targets.0.len()), (TARGETS_MAX - 2, TARGETS_MAX));
    }
}
