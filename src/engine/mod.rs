//! The joint: connections, cache and wheel; inputs in, actions out.
//!
//! The only module that knows both sides. The shell tells it what happened, by [`ConnId`] and with
//! the time; after every input it carries out what [`Engine::poll_action`] says, to the last one.
//! What an input leads to depends on nothing but the inputs before it.

mod clients;
mod fetches;
mod learn;

use std::collections::VecDeque;
use std::fmt;

use self::fetches::Fetches;
use crate::answer::AddressId;
use crate::cache::{Cache, CacheSettings, EntryId};
use crate::failure::Failure;
use crate::fetch::{Fetch, Progress};
use crate::frontend::Frontend;
use crate::http::Method;
use crate::journal::Journal;
use crate::node::Node;
use crate::slots::{ConnId, Slots};
use crate::time::{Now, Time};
use crate::wheel::Wheel;

/// Everything between the sockets and the answers.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    connections: Slots<Connection>,
    cache: Cache,
    wheel: Wheel<Timer>,
    /// Connections whose deadline may have come nearer than the wheel knows. Looked at when the
    /// turn is over: who came and went within one turn never burdens the wheel.
    unscheduled: Vec<ConnId>,
    /// From Patroni.
    fetches: Fetches,
    actions: VecDeque<Action>,
    records: VecDeque<Record>,
    journal: Journal,
    node: Node,
    /// The target that was asked for last, and what Patroni would be asked for it; kept so that
    /// a hit allocates nothing.
    target: String,
    canonical: String,
    /// Clients that may make room for new ones, the longest idle last.
    idlest: Vec<(Time, ConnId)>,
    clients: usize,
    /// The node's, as it was last looked at.
    in_transition_until: Time,
    sweeping: bool,
    phase: Phase,
    /// Load balancers are told to look elsewhere.
    draining: bool,
    stale_inputs: u64,
}

/// What the engine has to know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache's own.
    pub cache: CacheSettings,
    /// Milliseconds between sweeps.
    pub interval_ms: u64,
    /// Milliseconds for a whole fetch, queueing included.
    pub timeout_ms: u64,
    /// Fetches at once.
    pub fetches_max: usize,
    /// Clients at once.
    pub clients_max: usize,
    /// Patroni's name and port, for `Host`.
    pub host: Box<str>,
    /// Is [`Engine::poll_record`] of use to anybody?
    pub records: bool,
}

/// The port a client is accepted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Health checks.
    Checks,
}

/// Where a fetch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamId {
    /// Patroni's REST API.
    Patroni,
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before [`Engine::start`]: requests are answered, Patroni's intervals are not fetched.
    Starting,
    Serving,
    /// Since [`Engine::begin_shutdown`]: no new clients, no fetches ahead of demand.
    ShuttingDown,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to the upstream, then report `progress` or `connect_failed`.
    Connect(ConnId, UpstreamId),
    /// There is output, or input is wanted again, without an input on this connection.
    Wake(ConnId),
    /// Everything is sent: close_notify, flush, shut down writing; reading goes on.
    ShutdownWrite(ConnId),
    /// The last word on this connection.
    Close(ConnId),
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The client's connection.
    pub id: ConnId,
    /// `Method::Unknown`, a dash in the log, if the bytes were not a request.
    pub method: Method,
    /// As the client asked, without scheme and authority.
    pub target: Box<str>,
    /// The status of the response.
    pub status: u16,
    /// Milliseconds from the complete request to the response.
    pub elapsed_ms: u64,
}

/// How many of everything there are; all but the last two are 0 or small when all is quiet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub clients: usize,
    pub fetches: usize,
    pub queued: usize,
    pub waiters: usize,
    pub timers: usize,
    pub entries: usize,
    /// Inputs for connections that had gone.
    pub stale_inputs: u64,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    /// When the wheel looks at this connection next; its deadline may have moved on since.
    scheduled: Time,
}

#[derive(Debug)]
enum Peer {
    Client(Frontend, Option<Box<Asked>>),
    Upstream(Box<Fetch>),
}

/// What is remembered of a request for its [`Record`].
#[derive(Debug)]
struct Asked {
    at: Time,
    method: Method,
    target: Box<str>,
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    Connection(ConnId),
    /// The last fetch failed: the next is due.
    Retry(EntryId),
    /// The answer is about to expire: the next fetch is due then.
    Refresh(EntryId),
    /// A fetch has been on its way for long, then.
    Patience(EntryId),
    Sweep,
    /// The last clients have to go then.
    ShutdownDeadline,
}

impl Engine {
    /// Nobody connected, nothing known.
    pub fn new(settings: Settings) -> Self {
        Engine {
            cache: Cache::new(settings.cache),
            settings,
            connections: Slots::new(),
            wheel: Wheel::new(),
            unscheduled: Vec::new(),
            fetches: Fetches::default(),
            actions: VecDeque::new(),
            records: VecDeque::new(),
            journal: Journal::default(),
            node: Node::default(),
            target: String::with_capacity(crate::http::TARGET_BYTES_MAX),
            canonical: String::with_capacity(crate::http::TARGET_BYTES_MAX),
            idlest: Vec::new(),
            clients: 0,
            in_transition_until: Time::ZERO,
            sweeping: false,
            phase: Phase::Starting,
            draining: false,
            stale_inputs: 0,
        }
    }

    // ---- in: what happened

    /// The daemon serves from now on: reads Patroni's own intervals, without which no leader's
    /// answer is served old, and again every now and then.
    pub fn start(&mut self, now: Now) {
        self.phase = Phase::Serving;
        self.fetch_intervals(now);
    }

    /// A client came. `None`: there is no room, and nobody to make it.
    pub fn accept(&mut self, now: Now, port: Port) -> Option<ConnId> {
        let Port::Checks = port;
        if self.is_shutting_down() {
            return None;
        }
        if self.clients >= self.settings.clients_max {
            let idlest = self.longest_idle(now.time)?;
            self.close(idlest);
        }
        self.clients += 1;
        let peer = Peer::Client(Frontend::new(now.time), None);
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        self.unscheduled.push(id);
        Some(id)
    }

    /// Descriptors ran out: one client less, if one can be spared. Was there one?
    pub fn make_room(&mut self, now: Now) -> bool {
        let idlest = self.longest_idle(now.time);
        idlest.map(|id| self.close(id)).is_some()
    }

    /// This address accepted the connection of a `Connect`.
    pub fn connected_to(&mut self, id: ConnId, address: AddressId) {
        if let Some(fetch) = self.fetch(id) {
            fetch.connected_to(address);
        }
    }

    /// A `Connect` has come this far.
    pub fn progress(&mut self, id: ConnId, progress: Progress) {
        if let Some(fetch) = self.fetch(id) {
            fetch.progress(progress);
        }
    }

    /// A `Connect` has failed.
    pub fn connect_failed(&mut self, now: Now, id: ConnId, why: Failure) {
        if let Some(outcome) = self.fetch(id).map(|fetch| fetch.fail(why)) {
            self.fetch_step(now, id, outcome);
        }
    }

    /// Bytes came, in any split.
    pub fn receive(&mut self, now: Now, id: ConnId, bytes: &[u8]) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(frontend, _)) => {
                let step = frontend.receive(now.time, bytes, &mut self.target);
                self.client_step(now, id, step);
            }
            Some(Peer::Upstream(fetch)) => {
                let outcome = fetch.receive(bytes);
                self.fetch_step(now, id, outcome);
            }
            None => self.stale_inputs += 1,
        }
    }

    /// The transport took `count` bytes of [`Engine::output`].
    pub fn sent(&mut self, now: Now, id: ConnId, count: usize) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(frontend, _)) => {
                let step = frontend.sent(now.time, count, &mut self.target);
                self.client_step(now, id, step);
            }
            Some(Peer::Upstream(fetch)) => fetch.sent(count),
            None => self.stale_inputs += 1,
        }
    }

    /// The peer has ended properly: FIN, or close_notify.
    pub fn eof(&mut self, now: Now, id: ConnId) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(frontend, _)) => {
                let step = frontend.eof();
                self.client_step(now, id, step);
            }
            Some(Peer::Upstream(fetch)) => {
                let outcome = fetch.eof();
                self.fetch_step(now, id, outcome);
            }
            None => self.stale_inputs += 1,
        }
    }

    /// The connection is no more: RST, an I/O or TLS error. `why` is of interest for a fetch.
    pub fn broken(&mut self, now: Now, id: ConnId, why: Failure) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(..)) => self.close(id), // RST is how HAProxy says thank you
            Some(Peer::Upstream(fetch)) => {
                let outcome = fetch.fail(why);
                self.fetch_step(now, id, outcome);
            }
            None => self.stale_inputs += 1,
        }
    }

    /// Time has passed. Does nothing when nothing is due.
    pub fn tick(&mut self, now: Now) {
        self.observe_clock(now);
        while let Some(timer) = self.wheel.pop(now.time) {
            match timer {
                Timer::Connection(id) => self.look_at_deadline(now, id),
                Timer::Retry(entry) => self.retry(now, entry),
                Timer::Refresh(entry) => self.refresh(now, entry),
                Timer::Patience(entry) => self.end_patience(now, entry),
                Timer::Sweep => {
                    self.sweeping = false;
                    if self.cache.sweep(now) > 0 {
                        self.schedule_sweep(now.time);
                    }
                }
                Timer::ShutdownDeadline => self.close_clients(|_| true),
            }
        }
    }

    /// Other settings from now on. What is under way ends under the former ones, unless Patroni is
    /// another one: then nothing counts that the former said, or was asked.
    pub fn configure(&mut self, now: Now, settings: Settings) {
        self.cache.configure(settings.cache);
        let previous = std::mem::replace(&mut self.settings, settings);
        if previous.host == self.settings.host {
            self.node.forget_identity();
        } else {
            self.forget_patroni(now);
        }
        self.dispatch(now);
    }

    /// Load balancers are to look elsewhere: the leader and replica routes are answered with 503,
    /// until this is taken back.
    pub fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// The end: no more clients; who is idle goes now, the others with their answers, and what
    /// is left [`SHUTDOWN_MS_MAX`] from now goes then.
    pub fn begin_shutdown(&mut self, now: Now) {
        self.phase = Phase::ShuttingDown;
        self.close_clients(|frontend| frontend.is_idle());
        self.wheel.schedule(now.time.plus_ms(SHUTDOWN_MS_MAX), Timer::ShutdownDeadline);
    }

    // ---- out: what to do

    /// The next thing to do; ask until there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next request that was answered, if [`Settings::records`] are wanted.
    pub fn poll_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    /// What is to be sent on this connection.
    pub fn output(&self, id: ConnId) -> &[u8] {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(frontend, _)) => frontend.output(),
            Some(Peer::Upstream(fetch)) => fetch.output(),
            None => &[],
        }
    }

    /// Is more input of use on this connection?
    pub fn wants_read(&self, id: ConnId) -> bool {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(frontend, _)) => frontend.wants_read(),
            Some(Peer::Upstream(fetch)) => fetch.wants_read(),
            None => false,
        }
    }

    /// When to call [`Engine::tick`] next, if nothing happens before. Asked once, at the end of
    /// a turn.
    pub fn next_deadline(&mut self) -> Option<Time> {
        while let Some(id) = self.unscheduled.pop() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let deadline = connection.deadline();
            if deadline < connection.scheduled {
                connection.scheduled = deadline;
                self.wheel.schedule(deadline, Timer::Connection(id));
            }
        }
        self.wheel.next()
    }

    /// After [`Engine::begin_shutdown`]: has the last client gone?
    pub fn is_shut_down(&self) -> bool {
        self.is_shutting_down() && self.clients == 0
    }

    /// How much there is of everything.
    pub fn counts(&self) -> Counts {
        Counts {
            clients: self.clients,
            fetches: self.fetches.in_flight(),
            queued: self.fetches.queued(),
            waiters: self.cache.waiters(),
            timers: self.wheel.len(),
            entries: self.cache.count(),
            stale_inputs: self.stale_inputs,
        }
    }

    /// Connections and timers: what the memory that is used depends on most.
    pub fn held(&self) -> usize {
        self.clients + self.fetches.in_flight() + self.wheel.len()
    }

    fn is_shutting_down(&self) -> bool {
        self.phase == Phase::ShuttingDown
    }

    // ---- time

    fn look_at_deadline(&mut self, now: Now, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.scheduled > now.time {
            return; // a deadline came nearer since: the wheel has this connection twice
        }
        connection.scheduled = Time::NEVER;
        if connection.deadline() > now.time {
            self.unscheduled.push(id);
            return;
        }
        match &mut connection.peer {
            Peer::Client(frontend, _) => {
                let step = frontend.expire();
                self.client_step(now, id, step);
                if self.connections.get(id).is_some() {
                    self.actions.push_back(Action::Wake(id));
                }
            }
            Peer::Upstream(fetch) => {
                let outcome = fetch.expire();
                self.fetch_step(now, id, outcome);
            }
        }
    }

    /// A deadline that came nearer is noted; one that moved away costs nothing.
    fn reschedule(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.deadline() < connection.scheduled {
            self.unscheduled.push(id);
        }
    }

    fn schedule_sweep(&mut self, now: Time) {
        if !self.sweeping {
            self.sweeping = true;
            self.wheel.schedule(now.plus_ms(self.settings.interval_ms), Timer::Sweep);
        }
    }

    fn close(&mut self, id: ConnId) {
        let Some(connection) = self.connections.remove(id) else { return };
        if matches!(&connection.peer, Peer::Client(frontend, _) if frontend.waiting().is_some()) {
            self.cache.leave(id);
        }
        self.clients -= 1;
        self.actions.push_back(Action::Close(id));
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { clients, fetches, queued, waiters, timers, entries, stale_inputs } = self;
        write!(f, "{clients} clients, {fetches} fetches, {queued} queued, {waiters} waiters, ")?;
        write!(f, "{timers} timers, {entries} entries, {stale_inputs} stale inputs")
    }
}

impl Connection {
    fn deadline(&self) -> Time {
        match &self.peer {
            Peer::Client(frontend, _) => frontend.deadline(),
            Peer::Upstream(fetch) => fetch.deadline(),
        }
    }
}

/// After [`Engine::begin_shutdown`], what is in flight has so long.
pub const SHUTDOWN_MS_MAX: u64 = 5_000;
