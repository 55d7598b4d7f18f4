//! What the operator is told: a change of state once, a repeated failure once a second.

use log::{info, warn};

use crate::backend::Failure;
use crate::lease::NodeStatus;
use crate::wheel::Time;

/// Remembers what was last said about Patroni.
#[derive(Debug, Default)]
pub struct Journal {
    patroni: Patroni,
    /// What failed not long ago, and when: it says nothing new of Patroni by failing again, though
    /// other targets may be answered in between.
    failing: Vec<(Box<str>, Time)>,
    role: Option<String>,
    failures: Repeats,
    /// Old answers are being served, and the operator knows it.
    serving_old: bool,
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
pub struct Repeats {
    said_at: Option<Time>,
    unsaid: u64,
}

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
        self.failing.retain(|(failing, _)| **failing != *target);
        self.serving_old = false;
    }

    /// An answer older than the ttl was served, the first since Patroni answered last.
    pub fn served_old(&mut self, target: &str, age_ms: u64) {
        if !self.serving_old {
            let seconds = age_ms as f64 / 1e3;
            warn!("Patroni is silent: {target} is served as it was {seconds:.1} s ago");
            self.serving_old = true;
        }
    }

    /// A fetch failed.
    pub fn failed(&mut self, now: Time, target: &str, failure: Failure) {
        if self.is_news(now, target) && self.patroni != Patroni::Fails {
            info!("Patroni stopped answering");
            self.patroni = Patroni::Fails;
        }
        if let Some(times) = self.failures.note(now) {
            warn!("fetching {target}: {failure} ({times} times)");
        }
    }

    fn is_news(&mut self, now: Time, target: &str) -> bool {
        self.failing.retain(|(_, failed_at)| now.ms_since(*failed_at) < FAILING_MS);
        let known = self.failing.iter().position(|(failing, _)| **failing == *target);
        match known {
            Some(at) => self.failing[at].1 = now,
            None if self.failing.len() < FAILING_MAX => self.failing.push((target.into(), now)),
            None => {}
        }
        known.is_none()
    }

    /// An answer told the node's status.
    pub fn status(&mut self, status: &NodeStatus) {
        if self.role.as_deref() == Some(&status.role) {
            return;
        }
        match self.role.replace(status.role.clone()) {
            None => info!("this node is {}", status.role),
            Some(former) => info!("this node's role changed from {former} to {}", status.role),
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

/// How long the same thing is not said again.
const QUIET_MS: u64 = 1_000;
/// Longer than a target that somebody asks for is left alone between two failures: the longest
/// timeout of usual configurations, and a second.
const FAILING_MS: u64 = 15_000;
/// As many as there are routes, and some with parameters.
const FAILING_MAX: usize = 64;

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
        journal.failed(Time::from_ms(41_000 + FAILING_MS), "/cluster", Failure::Garbage);
        assert_eq!(journal.patroni, Patroni::Fails);
    }
}
