//! Fetches from Patroni: which wait, which are in flight, and when the next one begins.

use std::collections::VecDeque;

use super::{Action, Connection, Engine, Peer, Timer, UpstreamId};
use crate::answer::Answer;
use crate::cache::{CacheSettings, EntryId, PATIENCE_MS, Retry};
use crate::failure::{Culprit, Failure};
use crate::fetch::{Expected, Fetch, Outcome, Purpose};
use crate::http::RESPONSE_BODY_BYTES_MAX;
use crate::http::write::request;
use crate::node::intervals::INTERVALS_TARGET;
use crate::node::lease::ALWAYS_FRESH_MS;
use crate::slots::ConnId;
use crate::stats::{Handshake, Side};
use crate::time::{Now, Time};

/// The fetches from one upstream.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    /// In the order in which they were queued.
    queue: VecDeque<Waiting>,
    in_flight: Vec<InFlight>,
    /// When the upstream last answered, or failed otherwise than by silence.
    heard_at: Option<Time>,
    /// Whether a fetch has timed out since `heard_at`.
    timed_out: bool,
}

/// A fetch that waits for its turn.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: ConnId,
    class: Class,
    queued_at: Time,
    deadline: Time,
}

/// A fetch that has a connection, or is getting one.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: ConnId,
    class: Class,
    /// When its silence is the upstream's: after [`PATIENCE_MS`], or a shorter timeout. Its
    /// deadline may come sooner, because it has waited in the queue.
    silent_at: Time,
}

/// In which order fetches begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Begins first.
    Plain,
    /// After plain ones, but before them once it has waited for [`PARAMETERS_WAIT_MS_MAX`].
    Parameters,
    /// Patroni cannot answer it without the DCS, which may be unreachable: one at a time, and
    /// never with the last free connection, unless `backend.connections` is 1.
    Dcs,
}

impl Fetches {
    /// How many have a connection.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How many wait for one.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Takes the next fetch to begin, if one may. A fetch past its deadline is left to its timer: a
    /// connection for it would be wasted.
    fn next(&mut self, now: Time, limit: usize) -> Option<ConnId> {
        let free = limit.saturating_sub(self.in_flight.len());
        if free == 0 {
            return None;
        }
        let others = self.queue.iter().any(|waiting| waiting.class != Class::Dcs);
        let dcs_allowed = self.in_flight.iter().all(|fetch| fetch.class != Class::Dcs)
            && (free > 1 || limit == 1 && !others);
        let mut best: Option<(u8, usize)> = None;
        for (at, waiting) in self.queue.iter().enumerate() {
            let rank = match waiting.class {
                _ if waiting.deadline <= now => continue,
                Class::Dcs if !dcs_allowed => continue,
                Class::Parameters if now.ms_since(waiting.queued_at) >= PARAMETERS_WAIT_MS_MAX => 0,
                Class::Plain | Class::Dcs => 1,
                Class::Parameters => 2,
            };
            if best.is_none_or(|(best, _)| rank < best) {
                best = Some((rank, at));
            }
        }
        let waiting = self.queue.remove(best?.1)?;
        let Waiting { id, class, queued_at, deadline } = waiting;
        let silent_at = now.plus_ms(PATIENCE_MS.min(deadline.ms_since(queued_at)));
        self.in_flight.push(InFlight { id, class, silent_at });
        Some(id)
    }

    /// Removes a fetch. Returns whether it was in flight.
    fn remove(&mut self, id: ConnId) -> bool {
        self.queue.retain(|waiting| waiting.id != id);
        let before = self.in_flight.len();
        self.in_flight.retain(|fetch| fetch.id != id);
        self.in_flight.len() < before
    }

    /// Panics if `fetches`, each with whether it is queued, are not the fetches in these lists.
    pub(super) fn check_invariants(&self, fetches: &[(ConnId, bool)]) {
        assert_eq!(fetches.len(), self.queue.len() + self.in_flight.len(), "fetches");
        for (id, is_queued) in fetches {
            let found = if *is_queued {
                self.queue.iter().any(|waiting| waiting.id == *id)
            } else {
                self.in_flight.iter().any(|fetch| fetch.id == *id)
            };
            assert!(found, "{id:?} is queued: {is_queued}");
        }
        let dcs = self.in_flight.iter().filter(|fetch| fetch.class == Class::Dcs).count();
        assert!(dcs <= 1, "{dcs} fetches that wait for the DCS");
    }

    /// A fetch in flight has ended with `outcome`.
    fn ended(&mut self, now: Time, outcome: &Result<Answer, Failure>) {
        match outcome.as_ref().map_err(|failure| failure.culprit()) {
            Err(Culprit::Silent) => self.timed_out = true,
            Err(Culprit::Ours) => {}
            _ => (self.heard_at, self.timed_out) = (Some(now), false),
        }
    }

    /// Another upstream is configured: whether it answers is not known.
    pub(super) fn forget(&mut self) {
        (self.heard_at, self.timed_out) = (None, false);
    }

    /// Whether a fetch is still queued although the upstream was heard meanwhile.
    fn waits_for_others(&self, id: ConnId) -> bool {
        let waiting = self.queue.iter().find(|waiting| waiting.id == id);
        waiting.is_some_and(|waiting| self.heard_at > Some(waiting.queued_at))
    }

    /// When the upstream counts as silent: once a fetch has timed out and none was answered since,
    /// or one in flight has been so for [`PATIENCE_MS`] or a shorter timeout.
    pub(super) fn silent_at(&self) -> Option<Time> {
        if self.timed_out {
            return Some(Time::ZERO);
        }
        self.in_flight.iter().map(|fetch| fetch.silent_at).min()
    }

    pub(super) fn is_silent(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| at <= now)
    }
}

impl Engine {
    /// The fetch of a connection; if it has ended, the input is counted as stale.
    pub(super) fn fetch(&mut self, id: ConnId) -> Option<&mut Fetch> {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Upstream(fetch)) => Some(fetch),
            _ => {
                self.stale_inputs += 1;
                None
            }
        }
    }

    /// Begins the fetch of an entry.
    pub(super) fn begin_fetch(&mut self, now: Now, entry: EntryId) {
        self.cache.begin(now.time, entry);
        let deadline = now.time.plus_ms(self.settings.timeout_ms);
        self.queue_fetch(now, Purpose::Entry(entry), deadline);
        self.dispatch(now);
    }

    /// Fetches Patroni's intervals, if they are due and needed: for the lease, if a leader's answer
    /// may get older than [`ALWAYS_FRESH_MS`], and for the fence.
    pub(super) fn fetch_intervals(&mut self, now: Now) {
        let CacheSettings { ttl_ms, grace_ms, .. } = self.settings.cache;
        let matter = grace_ms > 0 || ttl_ms > ALWAYS_FRESH_MS || self.settings.fence;
        if !matter || self.is_shutting_down() || !self.node.begin_intervals_fetch(now.time) {
            return;
        }
        let deadline = now.time.plus_ms(self.settings.timeout_ms);
        self.queue_fetch(now, Purpose::Intervals, deadline);
        self.dispatch(now);
    }

    pub(super) fn queue_fetch(&mut self, now: Now, purpose: Purpose, deadline: Time) {
        let (target, expected, class) = match purpose {
            Purpose::Entry(entry) => {
                let route = self.cache.route(entry);
                let policy = route.family().policy();
                let expected =
                    Expected { body_bytes_max: policy.body_bytes_max, bodyless: policy.bodyless };
                let class = match route.has_parameters {
                    _ if policy.dcs_read => Class::Dcs,
                    true => Class::Parameters,
                    false => Class::Plain,
                };
                (self.cache.target(entry), expected, class)
            }
            Purpose::Intervals | Purpose::Dcs => {
                let body_bytes_max = RESPONSE_BODY_BYTES_MAX;
                (INTERVALS_TARGET, Expected { body_bytes_max, bodyless: false }, Class::Dcs)
            }
        };
        let request = request(target, &self.settings.host);
        let fetch = Fetch::new(now.time, purpose, expected, request, deadline);
        let peer = Peer::Upstream(Box::new(fetch));
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        // a restarted fetch counts as waiting since it was first queued
        let timeout_ms = self.settings.timeout_ms;
        let queued_at = Time::from_ms(deadline.as_ms().saturating_sub(timeout_ms));
        self.fetches.queue.push_back(Waiting { id, class, queued_at, deadline });
        self.unscheduled.push(id);
    }

    /// Begins fetches while there are connections for them.
    pub(super) fn dispatch(&mut self, now: Now) {
        while let Some(id) = self.fetches.next(now.time, self.settings.fetches_max) {
            let Some(fetch) = self.fetch(id) else { continue };
            fetch.connect(now.time);
            let reads_dcs = match fetch.purpose() {
                Purpose::Entry(entry) => self.cache.route(entry).family().reads_dcs(),
                Purpose::Intervals | Purpose::Dcs => true,
            };
            if reads_dcs {
                self.node.dcs_read_begins(now, id);
            }
            self.stats.fetch_begun(now.time);
            self.actions.push_back(Action::Connect(id, UpstreamId::Patroni));
        }
    }

    /// A fetch has ended, if there is an outcome.
    pub(super) fn fetch_step(&mut self, now: Now, id: ConnId, outcome: Outcome) {
        let Some(mut outcome) = outcome else { return };
        let Some(Connection { peer: Peer::Upstream(fetch), .. }) = self.connections.remove(id)
        else {
            return;
        };
        if fetch.purpose() == Purpose::Dcs {
            return self.read_step(now, id, outcome);
        }
        if self.fetches.waits_for_others(id) {
            outcome = Err(Failure::NoRoom);
        }
        self.count_fetch(now, &fetch, &outcome);
        let was_asked = self.remove_fetch(now, id, Some(&outcome));
        match (fetch.purpose(), outcome) {
            (Purpose::Entry(entry), Ok(answer)) => self.learn(now, entry, answer, fetch.deadline()),
            (Purpose::Entry(entry), Err(failure)) => {
                self.learn_failure(now, entry, fetch.asked_at(), failure, was_asked);
            }
            (Purpose::Intervals | Purpose::Dcs, outcome) => self.learn_intervals(now, outcome),
        }
        self.dispatch(now);
    }

    fn count_fetch(&mut self, now: Now, fetch: &Fetch, outcome: &Result<Answer, Failure>) {
        match outcome {
            Ok(_) => self.stats.fetch_answered(now.time, now.time.ms_since(fetch.asked_at())),
            Err(failure) => {
                // the shell reports one that fails before
                if *failure == Failure::HandshakeTimedOut {
                    self.stats.handshake(Side::Patroni, Handshake::Failed);
                }
                self.stats.fetch_failed(now.time, *failure);
            }
        }
    }

    /// Takes a fetch out of the queue, or closes its connection. `outcome`: `None` if it is no
    /// longer awaited. Returns whether it had a connection.
    fn remove_fetch(
        &mut self,
        now: Now,
        id: ConnId,
        outcome: Option<&Result<Answer, Failure>>,
    ) -> bool {
        if !self.fetches.remove(id) {
            return false;
        }
        if let Some(outcome) = outcome {
            self.fetches.ended(now.time, outcome);
        }
        let answered = matches!(outcome, Some(Ok(_)));
        let seen = !matches!(outcome, Some(Err(failure)) if failure.is_before_request());
        self.node.fetch_ended(now, id, answered, seen);
        self.actions.push_back(Action::Close(id));
        true
    }

    /// Queues these fetches again. Their waiters go on waiting.
    pub(super) fn restart(&mut self, now: Now, is_restarted: impl Fn(&Fetch) -> bool) {
        let fetches = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Upstream(fetch) = &connection.peer else { return None };
            let is_patronis = fetch.purpose() != Purpose::Dcs;
            (is_patronis && is_restarted(fetch)).then(|| (id, fetch.purpose(), fetch.deadline()))
        });
        for (id, purpose, deadline) in fetches.collect::<Vec<_>>() {
            self.connections.remove(id);
            self.remove_fetch(now, id, None);
            self.queue_again(now, purpose, deadline);
        }
    }

    /// Queues a fetch again. Its deadline is that of the clients that wait; without any, its time
    /// begins anew.
    pub(super) fn queue_again(&mut self, now: Now, purpose: Purpose, deadline: Time) {
        let is_awaited = matches!(purpose, Purpose::Entry(entry) if self.cache.is_awaited(entry));
        let anew = now.time.plus_ms(self.settings.timeout_ms);
        self.queue_fetch(now, purpose, if is_awaited { deadline } else { anew });
    }

    /// A client is about to wait for the fetch of an entry. If no other client waits and the fetch
    /// is still queued, its time begins anew, and it keeps its place.
    pub(super) fn join_fetch(&mut self, now: Now, entry: EntryId) {
        if self.cache.is_awaited(entry) {
            return;
        }
        let deadline = now.time.plus_ms(self.settings.timeout_ms);
        for waiting in &mut self.fetches.queue {
            let connection = self.connections.get_mut(waiting.id);
            let Some(Connection { peer: Peer::Upstream(fetch), .. }) = connection else { continue };
            if fetch.purpose() == Purpose::Entry(entry) {
                fetch.queue_anew(now.time, deadline);
                (waiting.queued_at, waiting.deadline) = (now.time, deadline);
            }
        }
        self.dispatch(now); // it was left out if it was past its deadline
    }

    /// Fetches a failing entry again if that is due.
    pub(super) fn retry(&mut self, now: Now, entry: EntryId) {
        match self.cache.retry(now.time, entry) {
            Retry::Fetch if self.is_shutting_down() => {}
            Retry::Fetch => self.begin_fetch(now, entry),
            Retry::Later(at) => self.wheel.schedule(at, Timer::Retry(entry)),
            Retry::Forgotten => {}
        }
    }

    /// Fetches an entry ahead of time if clients ask for it steadily.
    pub(super) fn refresh(&mut self, now: Now, entry: EntryId) {
        if self.cache.wants_refresh(now.time, entry) && !self.is_shutting_down() {
            self.begin_fetch(now, entry);
        }
    }
}

/// After this time in the queue a fetch with parameters begins before plain ones.
const PARAMETERS_WAIT_MS_MAX: u64 = 1_000;
