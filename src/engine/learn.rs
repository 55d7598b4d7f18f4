//! An answer arrived, or did not: the one place where it changes what is in memory.
//!
//! The order is the safety argument. The clock first: after a jump of the wall clock the answer's
//! times mean something else. Then the verdict, from everything known before. Then distrust, before
//! the answer is stored: what it ends is all that was requested before it. Then the waiters, who
//! get the answer itself; clients of restarted fetches go on waiting.

use super::{Engine, Phase, Timer};
use crate::answer::{Answer, CacheStatus};
use crate::cache::EntryId;
use crate::failure::Failure;
use crate::fetch::{Fetch, Purpose};
use crate::http::write::error_json;
use crate::node::Distrust;
use crate::node::intervals::INTERVALS_TARGET;
use crate::reply::JSON;
use crate::routes::Family;
use crate::time::Now;

impl Engine {
    /// The fetch of an entry brought an answer.
    pub(super) fn learn(&mut self, now: Now, entry: EntryId, answer: Answer) {
        self.journal.answered(self.cache.target(entry));
        self.observe_clock(now);
        let family = self.cache.route(entry).family();
        let led = self.cache.answer(entry).is_some_and(|previous| previous.answer().status == 200);
        let stepped_down = family == Family::Leader && led && answer.status != 200;
        let verdict = self.node.learn(now, family, &answer, stepped_down);
        self.distrust(now, verdict.distrust);
        let waiters = self.cache.fill(entry, answer, verdict.validity);
        if let Some(report) = &verdict.report {
            self.journal.report(report);
        }
        if family == Family::Leader && self.phase != Phase::Starting {
            self.fetch_intervals(now);
        }
        self.answer_waiters(now, entry, waiters, [CacheStatus::Miss, CacheStatus::Collapsed]);
        self.schedule_sweep(now.time);
        if let Some(at) = self.cache.refresh_at(entry) {
            self.wheel.schedule(at, Timer::Refresh(entry));
        }
    }

    /// The fetch of an entry failed.
    pub(super) fn learn_failure(
        &mut self,
        now: Now,
        entry: EntryId,
        fetch: &Fetch,
        failure: Failure,
    ) {
        self.journal.failed(now.time, self.cache.target(entry), failure);
        let answer = Answer {
            status: 503,
            content_type: Some(JSON.into()),
            body: error_json(&failure.to_string()).into_bytes().into(),
            asked_at: fetch.asked_at(),
        };
        let distrust = self.node.learn_failure(now, failure);
        self.distrust(now, distrust);
        let waiters = self.cache.fail(entry, answer, failure.is_silence());
        // with a timeout shorter than PATIENCE_MS
        let may_be_stale = failure.is_silence() && self.cache.may_serve_stale(now, entry);
        let cache_status = if may_be_stale { CacheStatus::Stale } else { CacheStatus::Failed };
        self.answer_waiters(now, entry, waiters, [cache_status, cache_status]);
        self.retry(now, entry);
    }

    /// The fetch of Patroni's intervals has ended.
    pub(super) fn learn_intervals(&mut self, now: Now, outcome: Result<Answer, Failure>) {
        if let Err(failure) = outcome {
            self.journal.failed(now.time, INTERVALS_TARGET, failure);
            let distrust = self.node.learn_failure(now, failure);
            self.distrust(now, distrust);
        }
        let distrust = self.node.learn_intervals(now, outcome.as_ref().ok());
        self.distrust(now, distrust);
    }

    /// Looks at the clocks.
    pub(super) fn observe_clock(&mut self, now: Now) {
        let distrust = self.node.observe_clock(now);
        self.distrust(now, distrust);
    }

    /// Patroni is another one from now on.
    pub(super) fn forget_patroni(&mut self, now: Now) {
        let distrust = self.node.forget(now.time);
        self.distrust(now, distrust);
    }

    /// Ends answers, and restarts fetches that may bring what is no longer true.
    fn distrust(&mut self, now: Now, distrust: Distrust) {
        self.cache.distrust(distrust);
        if distrust.restarts_fetches() {
            let everything = distrust == Distrust::Everything;
            self.restart(now, |fetch| {
                everything || !fetch.is_queued() && matches!(fetch.purpose(), Purpose::Entry(_))
            });
        }
    }
}
