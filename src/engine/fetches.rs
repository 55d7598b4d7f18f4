//! The engine towards Patroni: when it is asked, and what an answer changes.

use super::{Action, Connection, Engine, Peer, Timer, UpstreamId};
use crate::answer::{Answer, CacheStatus};
use crate::cache::{EntryId, PATIENCE_MS, Retry};
use crate::failure::Failure;
use crate::fetch::{Fetch, Outcome, Purpose};
use crate::http::write::request;
use crate::node::intervals::INTERVALS_TARGET;
use crate::slots::ConnId;
use crate::time::{Now, Time};

impl Engine {
    /// The connection of a fetch; an input for one that has gone is counted.
    pub(super) fn fetch(&mut self, id: ConnId) -> Option<&mut Fetch> {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Patroni(fetch)) => Some(fetch),
            _ => {
                self.stale_inputs += 1;
                None
            }
        }
    }

    /// Begins the fetch of an entry.
    pub(super) fn begin_fetch(&mut self, now: Now, entry: EntryId) {
        self.cache.begin(now.time, entry);
        // without grace as well: a reload may bring it
        self.wheel.schedule(now.time.plus_ms(PATIENCE_MS), Timer::Patience(entry));
        let deadline = now.time.plus_ms(self.settings.timeout_ms);
        self.queue_fetch(now, Purpose::Entry(entry), deadline);
        self.dispatch(now);
    }

    /// Reads Patroni's own intervals, unless that is under way or not due.
    pub(super) fn fetch_intervals(&mut self, now: Now) {
        if self.is_shutting_down() || !self.node.begin_intervals_fetch(now.time) {
            return;
        }
        let deadline = now.time.plus_ms(self.settings.timeout_ms);
        self.queue_fetch(now, Purpose::Intervals, deadline);
        self.dispatch(now);
    }

    fn queue_fetch(&mut self, now: Now, purpose: Purpose, deadline: Time) {
        let target = match purpose {
            Purpose::Entry(entry) => self.cache.target(entry),
            Purpose::Intervals => INTERVALS_TARGET,
        };
        let request = request(target, &self.settings.host);
        let fetch = Fetch::new(now.time, purpose, request, deadline);
        let peer = Peer::Patroni(Box::new(fetch));
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        self.queue.push_back(id);
        self.unscheduled.push(id);
    }

    /// Lets fetches begin as far as there is room, those of plain routes first.
    pub(super) fn dispatch(&mut self, now: Now) {
        while self.fetching < self.settings.fetches_max {
            let Some(at) = self.next_in_queue(now.time) else { return };
            let Some(id) = self.queue.remove(at) else { return };
            let Some(fetch) = self.fetch(id) else { continue };
            fetch.connect(now.time);
            let purpose = fetch.purpose();
            if self.reads_dcs(purpose) {
                self.node.dcs_read_begins(now, id);
            }
            self.fetching += 1;
            self.actions.push_back(Action::Connect(id, UpstreamId::Patroni));
        }
    }

    /// A fetch whose time is over is left to its timer: Patroni would be connected to for nothing.
    fn next_in_queue(&self, now: Time) -> Option<usize> {
        let is_in_time = |id: &ConnId| {
            self.connections.get(*id).is_some_and(|connection| connection.deadline() > now)
        };
        let mut in_time = self.queue.iter().enumerate().filter(|(_, id)| is_in_time(id));
        let plain = in_time.clone().find(|(_, id)| self.is_plain(**id));
        plain.or_else(|| in_time.next()).map(|(at, _)| at)
    }

    fn is_plain(&self, id: ConnId) -> bool {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Patroni(fetch)) => match fetch.purpose() {
                Purpose::Entry(entry) => !self.cache.route(entry).has_parameters,
                Purpose::Intervals => true,
            },
            _ => false,
        }
    }

    /// Does Patroni read the DCS for this, and so move `dcs_last_seen` without renewing a lease?
    fn reads_dcs(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Entry(entry) => self.cache.route(entry).family().reads_dcs(),
            Purpose::Intervals => true,
        }
    }

    /// A fetch has ended, or goes on.
    pub(super) fn fetch_step(&mut self, now: Now, id: ConnId, outcome: Outcome) {
        let Some(outcome) = outcome else { return };
        let Some(Connection { peer: Peer::Patroni(fetch), .. }) = self.connections.remove(id)
        else {
            return;
        };
        self.leave_queue_or_end(now, id, Some(&outcome));
        match (fetch.purpose(), outcome) {
            (Purpose::Entry(entry), Ok(answer)) => self.learn(now, entry, answer),
            (Purpose::Entry(entry), Err(failure)) => {
                self.learn_failure(now, entry, &fetch, failure)
            }
            (Purpose::Intervals, outcome) => self.learn_intervals(now, outcome),
        }
        self.dispatch(now);
    }

    /// `outcome`: none if it is us who end it.
    fn leave_queue_or_end(
        &mut self,
        now: Now,
        id: ConnId,
        outcome: Option<&Result<Answer, Failure>>,
    ) {
        if let Some(at) = self.queue.iter().position(|queued| *queued == id) {
            self.queue.remove(at);
            return;
        }
        self.fetching -= 1;
        let answered = matches!(outcome, Some(Ok(_)));
        let unseen = matches!(outcome, Some(Err(failure)) if failure.is_before_request());
        self.node.fetch_ended(now, id, answered, !unseen);
        self.actions.push_back(Action::Close(id));
    }

    /// Begins these fetches again, in the time they have left. Who waits goes on waiting.
    pub(super) fn restart(&mut self, now: Now, which: impl Fn(&Fetch) -> bool) {
        let fetches = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Patroni(fetch) = &connection.peer else { return None };
            which(fetch).then(|| (id, fetch.purpose(), fetch.deadline()))
        });
        for (id, purpose, deadline) in fetches.collect::<Vec<_>>() {
            self.connections.remove(id);
            self.leave_queue_or_end(now, id, None);
            self.queue_fetch(now, purpose, deadline);
        }
    }

    pub(super) fn answer_waiters(
        &mut self,
        now: Now,
        entry: EntryId,
        waiters: Vec<ConnId>,
        [first, other]: [CacheStatus; 2],
    ) {
        for (at, id) in waiters.into_iter().enumerate() {
            if self.connections.get(id).is_some() {
                self.answer(now, id, entry, if at == 0 { first } else { other });
                self.reschedule(id);
                self.actions.push_back(Action::Wake(id));
            }
        }
    }

    /// Those who waited long enough get the old answer, if it may be served.
    pub(super) fn release(&mut self, now: Now, entry: EntryId) {
        let waiters = self.cache.release(now, entry);
        self.answer_waiters(now, entry, waiters, [CacheStatus::Stale, CacheStatus::Stale]);
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

    /// Fetches an entry ahead of time if somebody asks for it steadily.
    pub(super) fn refresh(&mut self, now: Now, entry: EntryId) {
        if self.cache.wants_refresh(now.time, entry) && !self.is_shutting_down() {
            self.begin_fetch(now, entry);
        }
    }
}
