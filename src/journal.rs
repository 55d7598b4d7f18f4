//! What the operator is told: a change of state once, a repeated failure once a second.

use log::{info, warn};

use crate::failure::Failure;
use crate::node::report::NodeReport;
use crate::time::Time;

/// Remembers what was last said about Patroni.
#[derive(Debug, Default)]
pub struct Journal {
    patroni: Patroni,
    /// What failed not long ago, and when: it says nothing new of Patroni by failing again, though
    /// other targets may be answered in between.
    failing: Targets,
    role: Option<String>,
    failures: Repeats,
    refusals: Repeats,
    /// What is being served old, and the operator knows it.
    served_stale: Targets,
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
pub struct Repeats {
    said_at: Option<Time>,
    unsaid: u64,
}

/// Targets that something was noted of, and when.
#[derive(Debug, Default)]
struct Targets(Vec<(Box<str>, Time)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Patroni {
    #[default]
    Unknown,
    Answers,
    Fails,
}

impl Journal {
    /// A fetch brought an answer.
    pub fn answered(&mut self, target: &str) {
        if self.patroni != Patroni::Answers {
            info!("Patroni answers");
            self.patroni = Patroni::Answers;
        }
        self.failing.forget(target);
        self.served_stale.forget(target);
    }

    /// An answer older than the ttl was served: said once until Patroni answers this again.
    pub fn served_stale(&mut self, now: Time, target: &str, age_ms: u64) {
        if self.served_stale.note(now, target) {
            let seconds = age_ms as f64 / 1e3;
            warn!("Patroni is silent: {target} is served as it was {seconds:.1} s ago");
        }
    }

    /// A fetch failed.
    pub fn failed(&mut self, now: Time, target: &str, failure: Failure) {
        if self.failing.note(now, target) && self.patroni != Patroni::Fails {
            info!("Patroni stopped answering");
            self.patroni = Patroni::Fails;
        }
        if let Some(times) = self.failures.note(now) {
            warn!("fetching {target}: {failure} ({times} times)");
        }
    }

    /// A client spoke another protocol; `error` is the text of its refusal.
    pub fn refused(&mut self, now: Time, error: &str) {
        if let Some(times) = self.refusals.note(now) {
            warn!("client refused: {error} ({times} times)");
        }
    }

    /// An answer carried the node's report.
    pub fn report(&mut self, report: &NodeReport) {
        if self.role.as_deref() == Some(&report.role) {
            return;
        }
        match self.role.replace(report.role.clone()) {
            None => info!("this node is {}", report.role),
            Some(previous) => {
                info!("this node's role changed from {previous} to {}", report.role);
            }
        }
    }
}

impl Repeats {
    /// Something happened again: `Some(n)` if it is to be said now, and that it happened n times
    /// since it was said last.
    pub fn note(&mut self, now: Time) -> Option<u64> {
        self.unsaid += 1;
        if self.said_at.is_some_and(|said_at| now.ms_since(said_at) < QUIET_MS) {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

impl Targets {
    /// Is it news? No, if it was noted not long ago, or if the list is full.
    fn note(&mut self, now: Time, target: &str) -> bool {
        self.0.retain(|(_, at)| now.ms_since(*at) < NOTED_MS);
        if let Some((_, at)) = self.0.iter_mut().find(|(noted, _)| **noted == *target) {
            *at = now;
            return false;
        }
        let has_room = self.0.len() < NOTED_MAX;
        if has_room {
            self.0.push((target.into(), now));
        }
        has_room
    }

    fn forget(&mut self, target: &str) {
        self.0.retain(|(noted, _)| **noted != *target);
    }
}

/// How long the same thing is not said again.
const QUIET_MS: u64 = 1_000;
/// Longer than a target that somebody asks for is left alone between two failures: the longest
/// timeout of usual configurations, and a second.
const NOTED_MS: u64 = 15_000;
/// As many as there are routes, and some with parameters.
const NOTED_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_failure_is_said_once_a_second_with_its_count() {
        let mut repeats = Repeats::default();
        let said: Vec<Option<u64>> =
            (0..25).map(|tenth| repeats.note(Time::from_ms(tenth * 100))).collect();
        let mut expected = vec![None; 25];
        (expected[0], expected[10], expected[20]) = (Some(1), Some(10), Some(10));
        assert_eq!(said, expected);
    }

    #[test]
    fn a_target_that_always_fails_does_not_make_patroni_come_and_go() {
        let mut journal = Journal::default();
        let mut said = Vec::new();
        for second in 0..40 {
            let now = Time::from_ms(second * 1_000);
            journal.answered("/primary");
            journal.failed(now, "/cluster", Failure::Garbage);
            said.push(journal.patroni == Patroni::Fails);
        }
        let mut expected = vec![false; 40];
        expected[0] = true;
        assert_eq!(said, expected);
        journal.failed(Time::from_ms(40_000), "/primary", Failure::TimedOut);
        assert_eq!(journal.patroni, Patroni::Fails, "that one is news");
        // and so is one that was answered meanwhile, or not asked for long
        journal.answered("/primary");
        journal.failed(Time::from_ms(41_000), "/primary", Failure::TimedOut);
        assert_eq!(journal.patroni, Patroni::Fails);
        journal.answered("/replica");
        journal.failed(Time::from_ms(41_000 + NOTED_MS), "/cluster", Failure::Garbage);
        assert_eq!(journal.patroni, Patroni::Fails);
    }

    #[test]
    fn what_is_served_old_is_said_once_until_it_is_answered() {
        let mut targets = Targets::default();
        let note = |targets: &mut Targets, ms, target| targets.note(Time::from_ms(ms), target);
        assert!(note(&mut targets, 0, "/primary") && note(&mut targets, 10, "/replica"));
        assert!(!note(&mut targets, NOTED_MS - 1, "/primary"));
        assert!(note(&mut targets, 10 + NOTED_MS, "/replica"), "it is long ago");
        assert!(!note(&mut targets, 2 * NOTED_MS - 2, "/primary"), "it goes on");
        targets.forget("/primary");
        assert!(note(&mut targets, 2 * NOTED_MS, "/primary"));
        let mut noted = 0;
        for number in 0..1_000 {
            noted += usize::from(targets.note(Time::from_ms(2 * NOTED_MS), &number.to_string()));
        }
        assert_eq!((noted, targets.0.len()), (NOTED_MAX - 2, NOTED_MAX));
    }
}
