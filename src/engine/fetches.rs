//! The engine towards Patroni: when it is asked, and what an answer changes.

use super::{Action, Connection, Engine, Peer, Phase, Timer, UpstreamId};
use crate::answer::{Answer, CacheStatus};
use crate::cache::{EntryId, PATIENCE_MS, Retry};
use crate::failure::Failure;
use crate::fetch::{Fetch, Outcome, Purpose};
use crate::http::write::{error_json, request};
use crate::lease::{Intervals, Lease, NodeReport};
use crate::reply::JSON;
use crate::routes::Family;
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
        if now.time < self.intervals_due_at || self.is_shutting_down() {
            return;
        }
        self.intervals_due_at = Time::NEVER; // until this fetch has ended
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
                self.lease.read_begun(now, id);
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
            Purpose::Entry(entry) => self.cache.route(entry).family() == Family::Topology,
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
            (Purpose::Entry(entry), Ok(answer)) => self.fill(now, entry, answer),
            (Purpose::Entry(entry), Err(failure)) => self.fail(now, entry, &fetch, failure),
            (Purpose::Intervals, outcome) => self.intervals_fetched(now, outcome),
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
        self.lease.read_ended(now, id, answered || unseen);
        if answered {
            self.lease.answered(now);
        }
        self.actions.push_back(Action::Close(id));
    }

    fn intervals_fetched(&mut self, now: Now, outcome: Result<Answer, Failure>) {
        let intervals = match &outcome {
            Ok(answer) if answer.status == 200 => Intervals::from_json(&answer.body),
            _ => None,
        };
        if let Err(failure) = outcome {
            self.journal.failed(now.time, INTERVALS_TARGET, failure);
            self.forbid_stale_unless_silent(now, failure);
        }
        let pause_ms = if intervals.is_some() { INTERVALS_MS } else { INTERVALS_RETRY_MS };
        self.intervals_due_at = now.time.plus_ms(pause_ms);
        if intervals.is_some_and(|intervals| self.lease.set_intervals(now, intervals)) {
            self.cache.forget_leaders();
        }
    }

    fn fill(&mut self, now: Now, entry: EntryId, answer: Answer) {
        self.journal.answered(self.cache.target(entry));
        self.observe_clock(now);
        let family = self.cache.route(entry).family();
        let status = family.has_node_report().then(|| NodeReport::from_json(&answer.body));
        let status = status.flatten();
        let validity = self.lease.judge(now, family, answer.status, status.as_ref());
        let led = self.cache.answer(entry).is_some_and(|former| former.answer().status == 200);
        let stepped_down = family == Family::Leader && led && answer.status != 200;
        if stepped_down || status.as_ref().is_some_and(|status| !status.is_under_lease()) {
            // whichever route says it
            self.cache.forbid_stale_leaders();
        }
        let waiters = self.cache.fill(entry, answer, validity);
        if let Some(status) = status {
            self.journal.status(&status);
            self.compare(now, entry, status);
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

    /// No contradiction: what was asked before this answer had come, and says otherwise or may
    /// do so, is not served any more, and who waits for it waits for another fetch.
    fn compare(&mut self, now: Now, entry: EntryId, status: NodeReport) {
        let Some(former) = self.status.replace(status.clone()) else { return };
        if !status.contradicts(&former) {
            // an answer without a timeline does not say that there is none
            let timeline = status.timeline.or(former.timeline);
            self.status = Some(NodeReport { timeline, ..status });
            return;
        }
        self.cache.forget_others(entry);
        if self.intervals_due_at != Time::NEVER {
            self.intervals_due_at = now.time;
        }
        self.restart(now, |fetch| {
            !fetch.is_queued() && matches!(fetch.purpose(), Purpose::Entry(_))
        });
    }

    /// Patroni is another one from now on.
    pub(super) fn forget_patroni(&mut self, now: Now) {
        self.cache.forget_all();
        (self.status, self.lease) = (None, Lease::default());
        self.restart(now, |_| true);
        if self.intervals_due_at != Time::NEVER {
            self.intervals_due_at = now.time;
        }
    }

    /// Begins these fetches again, in the time they have left. Who waits goes on waiting.
    fn restart(&mut self, now: Now, which: impl Fn(&Fetch) -> bool) {
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

    fn fail(&mut self, now: Now, entry: EntryId, fetch: &Fetch, failure: Failure) {
        self.journal.failed(now.time, self.cache.target(entry), failure);
        let answer = Answer {
            status: 503,
            content_type: Some(JSON.into()),
            body: error_json(&failure.to_string()).into_bytes().into(),
            asked_at: fetch.asked_at(),
        };
        self.forbid_stale_unless_silent(now, failure);
        let waiters = self.cache.fail(entry, answer, failure.is_silence());
        // with a timeout shorter than a client's patience
        let may_be_stale = failure.is_silence() && self.cache.may_serve_stale(now, entry);
        let cache_status = if may_be_stale { CacheStatus::Stale } else { CacheStatus::Failed };
        self.answer_waiters(now, entry, waiters, [cache_status, cache_status]);
        self.retry(now, entry);
    }

    /// A Patroni that refuses or resets is gone, not frozen: nothing it said before is worth
    /// anything.
    fn forbid_stale_unless_silent(&mut self, now: Now, failure: Failure) {
        if !failure.is_silence() {
            self.cache.forbid_stale(now.time);
        }
    }

    /// A wall clock that jumped makes every lease uncertain.
    pub(super) fn observe_clock(&mut self, now: Now) {
        if self.lease.observe(now) {
            self.cache.forbid_stale(now.time);
        }
    }

    fn answer_waiters(
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

/// Where Patroni tells its intervals.
const INTERVALS_TARGET: &str = "/config";
/// They are read again after so long, or when they could not be read, as long as a leader's
/// route is asked for.
const INTERVALS_MS: u64 = 60_000;
const INTERVALS_RETRY_MS: u64 = 5_000;
