//! A client waits while Patroni may be silent: when its patience ends, and whether it then gets the
//! stale answer.
//!
//! An answer in memory is served in two places only: fresh by [`Cache::lookup`], stale by
//! [`Engine::serves_stale`]. Both apply what [`crate::node`] decided: the validity that it gave the
//! answer on its arrival, or its evidence of the DCS.
//!
//! [`Cache::lookup`]: crate::cache::Cache::lookup

use super::{Action, Engine, Port, Timer};
use crate::answer::CacheStatus;
use crate::cache::{EntryId, PATIENCE_MS, Silence};
use crate::node::witness::Evidence;
use crate::slots::ConnId;
use crate::time::Now;

impl Engine {
    /// Whether the entry's stale answer is to be served: Patroni is silent, and grace or the
    /// evidence of the DCS allows it.
    pub(super) fn serves_stale(&self, now: Now, entry: EntryId) -> bool {
        let is_allowed =
            || self.cache.may_serve_stale(now, entry) || self.evidence(now, entry).is_some();
        self.is_silent(now, entry) && is_allowed()
    }

    /// The evidence of the DCS that allows the entry's stale answer.
    pub(super) fn evidence(&self, now: Now, entry: EntryId) -> Option<Evidence> {
        let is_witnessed = self.cache.is_witnessed(entry);
        is_witnessed.then(|| self.node.evidence(now, self.cache.route(entry))).flatten()
    }

    /// Whether Patroni is silent when it is asked for the entry.
    pub(super) fn is_silent(&self, now: Now, entry: EntryId) -> bool {
        match self.cache.silence(now.time, entry) {
            Silence::Certain => true,
            Silence::IfUpstreamIsSilent => self.fetches.is_silent(now.time),
            Silence::None => false,
        }
    }

    /// A client waits for the entry: its patience ends [`PATIENCE_MS`] after the fetch began, or
    /// once the upstream counts as silent.
    pub(super) fn wait(&mut self, now: Now, entry: EntryId, id: ConnId) {
        self.cache.wait(entry, id);
        self.time_patience(now, entry);
    }

    fn time_patience(&mut self, now: Now, entry: EntryId) {
        let Some(earliest) = self.cache.begin_patience(entry) else { return };
        let later = now.time.plus_ms(PATIENCE_MS);
        let at = self.fetches.silent_at().unwrap_or(later).max(earliest);
        let at = if at > now.time { at } else { later };
        self.wheel.schedule(at, Timer::Patience(entry));
    }

    /// The patience of the entry's waiters may have ended: they get the stale answer, if one is
    /// served. If not, this is looked at again.
    pub(super) fn end_patience(&mut self, now: Now, entry: EntryId) {
        self.cache.end_patience(entry);
        if self.is_silent(now, entry) {
            self.call_witness(now, entry);
        }
        if self.serves_stale(now, entry) {
            let waiters = self.cache.take_waiters(entry);
            self.answer_waiters(now, entry, waiters, [CacheStatus::Stale, CacheStatus::Stale]);
        }
        self.time_patience(now, entry);
    }

    /// Gives the waiters of an entry what is in memory.
    pub(super) fn answer_waiters(
        &mut self,
        now: Now,
        entry: EntryId,
        waiters: Vec<ConnId>,
        [first, other]: [CacheStatus; 2],
    ) {
        for (at, id) in waiters.into_iter().enumerate() {
            if let Some(client) = self.client(id) {
                let waited_ms = client.frontend.waiting_since().map(|at| now.time.ms_since(at));
                let waited_ms = waited_ms.filter(|_| client.port == Port::Checks);
                waited_ms.into_iter().for_each(|ms| self.stats.request_wait.add(ms));
                self.answer(now, id, entry, if at == 0 { first } else { other });
                self.reschedule(id);
                self.actions.push_back(Action::Wake(id));
            }
        }
    }
}
