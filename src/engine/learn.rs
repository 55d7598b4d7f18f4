//! The end of a fetch: the only place where an answer or a failure changes what is in memory.
//!
//! Safety rests on the order. First the clock: after a jump of the wall clock the answer's times
//! mean something else. Then the node's verdict, from everything known before. Then distrust,
//! before the answer is stored: it ends earlier answers only. Then the waiters get the answer;
//! waiters of restarted fetches go on waiting. Last, the next fetches are decided with the new
//! knowledge.

use super::{Engine, Phase, Timer};
use crate::answer::{AddressId, Answer, CacheStatus};
use crate::cache::EntryId;
use crate::failure::{Culprit, Failure};
use crate::fetch::Purpose;
use crate::http::head::PassedOn;
use crate::http::write::error_json;
use crate::node::intervals::INTERVALS_TARGET;
use crate::node::lease::Validity;
use crate::node::{Distrust, Verdict};
use crate::routes::Family;
use crate::stats::PatroniState;
use crate::time::{Now, Time};

impl Engine {
    /// The fetch of an entry brought an answer, before its `deadline`.
    pub(super) fn learn(&mut self, now: Now, entry: EntryId, answer: Answer, deadline: Time) {
        self.journal.answered(now.time, self.cache.target(entry));
        if self.has_jumped(now) {
            self.queue_again(now, Purpose::Entry(entry), deadline); // asked for before the jump
            return;
        }
        let route = self.cache.route(entry);
        let (answer, validity) = match self.node.learn(now, route, &answer) {
            Verdict::FetchAgain { distrust } => {
                self.distrust_all(now, distrust);
                self.queue_again(now, Purpose::Entry(entry), deadline);
                return;
            }
            Verdict::Serve { validity, distrust, notice } => {
                self.distrust_all(now, distrust);
                if let Some(notice) = notice {
                    self.journal.notice(now.time, self.cache.target(entry), notice);
                }
                (answer, validity)
            }
            Verdict::Fenced { distrust } => {
                self.distrust_all(now, distrust);
                self.journal.fenced(now.time, self.cache.target(entry));
                (unavailable(FENCED, answer.asked_at), Validity::FRESH_ONLY)
            }
            Verdict::OtherNode { difference, is_news } => {
                if is_news {
                    self.distrust(now, Distrust::Everything);
                    self.journal.other_node(now.time, &difference);
                }
                let is_check = route.family().is_drained();
                let refusal = || unavailable(&difference, answer.asked_at);
                (if is_check { refusal() } else { answer }, Validity::FRESH_ONLY)
            }
        };
        let status = answer.status;
        let waiters = self.cache.fill(entry, answer, validity);
        if let Some(report) = self.node.report() {
            self.journal.report(now.time, report);
        }
        if route.family() == Family::Leader {
            self.journal.leader_answered(now.time, self.cache.target(entry), status);
        }
        self.answer_waiters(now, entry, waiters, [CacheStatus::Miss, CacheStatus::Collapsed]);
        self.schedule_sweep(now.time);
        self.follow_transition(now); // before the refresh, whose time depends on it
        self.schedule_refresh(now, entry);
        self.rehearse(now);
        if route.family() == Family::Leader && self.phase != Phase::Starting {
            self.fetch_intervals(now);
        }
    }

    /// The fetch of an entry failed. `was_asked`: it had a connection, and was not only queued.
    pub(super) fn learn_failure(
        &mut self,
        now: Now,
        entry: EntryId,
        asked_at: Time,
        failure: Failure,
        was_asked: bool,
    ) {
        self.journal.failed(now.time, self.cache.target(entry), failure);
        if let Some(distrust) = self.node.learn_failure(now, failure) {
            self.distrust(now, distrust);
        }
        let answer = unavailable(&failure.to_string(), asked_at);
        let waiters = self.cache.fail(entry, answer, failure.culprit(), was_asked);
        // stale: only with a timeout shorter than PATIENCE_MS
        if failure.culprit() == Culprit::Silent && self.is_silent(now, entry) {
            self.call_witness(now, entry);
        }
        let is_stale = failure.culprit() == Culprit::Silent && self.serves_stale(now, entry);
        let cache_status = if is_stale { CacheStatus::Stale } else { CacheStatus::Failed };
        self.answer_waiters(now, entry, waiters, [cache_status, cache_status]);
        self.retry(now, entry);
    }

    /// The fetch of Patroni's intervals has ended.
    pub(super) fn learn_intervals(&mut self, now: Now, outcome: Result<Answer, Failure>) {
        if let Err(failure) = outcome {
            self.journal.failed(now.time, INTERVALS_TARGET, failure);
            if let Some(distrust) = self.node.learn_failure(now, failure) {
                self.distrust(now, distrust);
            }
        }
        if let Some(distrust) = self.node.learn_intervals(now, outcome.as_ref().ok()) {
            self.distrust(now, distrust);
        }
        if self.settings.cache.grace_ms > 0 {
            self.journal.intervals_without_grace(now.time, self.node.intervals_without_grace());
        }
    }

    /// Looks at the clocks: after a jump of the wall clock all answers are forgotten.
    pub(super) fn observe_clock(&mut self, now: Now) {
        if self.has_jumped(now) {
            self.dispatch(now);
        }
    }

    /// Whether the wall clock jumped. The caller dispatches the restarted fetches: it may have one
    /// more to queue, and their order depends on all of them.
    fn has_jumped(&mut self, now: Now) -> bool {
        let distrust = self.node.observe_clock(now);
        if let Some(distrust) = distrust {
            self.journal.clock_jumped(now.time);
            self.drop_read(); // its begin is a time by the clock before the jump
            self.distrust(now, distrust);
        }
        distrust.is_some()
    }

    /// Another Patroni is configured: forgets everything about the previous one.
    pub(super) fn forget_patroni(&mut self, now: Now) {
        let distrust = self.node.forget(now.time);
        self.fetches.forget();
        self.stats.patroni = PatroniState { since: now.time, ..PatroniState::default() };
        self.drop_read();
        self.distrust(now, distrust);
    }

    fn distrust_all(&mut self, now: Now, distrust: Vec<Distrust>) {
        for distrust in distrust {
            self.distrust(now, distrust);
        }
    }

    /// Ends answers, and restarts fetches that may bring outdated ones.
    pub(super) fn distrust(&mut self, now: Now, distrust: Distrust) {
        self.cache.distrust(distrust);
        if distrust.restarts_fetches() {
            let is_everything = distrust == Distrust::Everything;
            self.restart(now, |fetch| {
                is_everything || !fetch.is_queued() && matches!(fetch.purpose(), Purpose::Entry(_))
            });
        }
    }

    /// When a transition begins, schedules a refresh of every entry in use.
    fn follow_transition(&mut self, now: Now) {
        let until = self.node.in_transition_until();
        self.cache.set_in_transition_until(until);
        if until <= now.time || self.in_transition_until > now.time {
            self.in_transition_until = until;
            return;
        }
        self.in_transition_until = until;
        for (entry, at) in self.cache.in_use(now.time) {
            self.wheel.schedule(at, Timer::Refresh(entry));
        }
    }

    fn schedule_refresh(&mut self, now: Now, entry: EntryId) {
        if let Some(at) = self.cache.refresh_at(now.time, entry) {
            self.wheel.schedule(at, Timer::Refresh(entry));
        }
    }
}

/// Why a leader's 200 is not passed on.
const FENCED: &str = "Patroni's HA loop has not read the DCS for loop_wait + retry_timeout";

/// The 503 in place of an answer.
fn unavailable(reason: &str, asked_at: Time) -> Answer {
    Answer {
        status: 503,
        passed_on: PassedOn::json(),
        body: error_json(reason).into_bytes().into(),
        asked_at,
        date_unix_seconds: None,
        address: AddressId::default(),
    }
}
