//! Joins connections, cache, node and wheel: inputs in, actions out. Decides nothing itself.
//!
//! The only module that knows clients and upstreams. The shell reports each event, with the
//! connection's [`ConnId`] and the time; after every input it carries out all actions that
//! [`Engine::poll_action`] returns. The same inputs lead to the same actions.

mod admin;
mod agent;
mod clients;
mod deadlines;
mod fetches;
mod learn;
mod patience;
mod shutdown;
mod witness;

use std::collections::VecDeque;
use std::fmt;

pub use self::admin::ADMIN_CLIENTS_MAX;
use self::fetches::Fetches;
pub use self::shutdown::SHUTDOWN_MS_MAX;
use self::witness::Witness;
pub use self::witness::{DCS_REQUEST_MS_MAX, DcsSettings};
use crate::admin::Report;
use crate::answer::AddressId;
use crate::cache::{Cache, CacheSettings, EntryId};
use crate::failure::Failure;
use crate::fetch::{Fetch, Progress, Purpose};
use crate::frontend::{Frontend, Parser};
use crate::http::Method;
use crate::journal::Journal;
use crate::node::Node;
use crate::routes::Route;
use crate::slots::{ConnId, Slots};
use crate::stats::{Handshake, Side, Stats};
use crate::time::{Now, Time};
use crate::wheel::Wheel;

/// Everything between the sockets and the answers.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    connections: Slots<Connection>,
    cache: Cache,
    wheel: Wheel<Timer>,
    /// Connections whose deadline may be nearer than the wheel knows. Flushed once per turn, so a
    /// connection that opens and closes within a turn never enters the wheel.
    unscheduled: Vec<ConnId>,
    /// Fetches from Patroni.
    fetches: Fetches,
    /// Reads of the DCS; `None`: it is not configured.
    witness: Option<Witness>,
    actions: VecDeque<Action>,
    records: VecDeque<Record>,
    journal: Journal,
    stats: Stats,
    node: Node,
    parser: Parser,
    /// The last target's canonical form for Patroni; kept so that a hit allocates nothing.
    canonical: String,
    /// Clients of each port that may make room for new ones, the longest idle last.
    idlest: [Vec<(Time, ConnId)>; Port::COUNT],
    /// The number of clients of each port.
    clients: [usize; Port::COUNT],
    /// [`Node::in_transition_until`] after the last answer.
    in_transition_until: Time,
    /// Whether the wheel has [`Timer::Sweep`].
    sweeping: bool,
    phase: Phase,
    /// Whether the operator drains the node.
    draining: bool,
    stale_inputs: u64,
}

/// The part of the configuration that the engine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache's settings.
    pub cache: CacheSettings,
    /// Whether a leader's 200 ends when Patroni's HA loop seems to hang.
    pub fence: bool,
    /// The DCS, as a witness of the lease.
    pub dcs: Option<DcsSettings>,
    /// Milliseconds between sweeps.
    pub interval_ms: u64,
    /// Milliseconds for a whole fetch, queueing included.
    pub timeout_ms: u64,
    /// Maximum fetches in flight.
    pub fetches_max: usize,
    /// Maximum clients.
    pub clients_max: usize,
    /// Patroni's name and port, for `Host`.
    pub host: Box<str>,
    /// The target whose answer HAProxy's agent checks get.
    pub agent_target: Box<str>,
    /// Whether to produce access-log records.
    pub records: bool,
}

/// The port a client is accepted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Health checks.
    Checks,
    /// Metrics and status, for operators.
    Admin,
    /// HAProxy's agent checks.
    Agent,
}

/// Where a fetch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamId {
    /// Patroni's REST API.
    Patroni,
    /// The DCS, for the lease witness.
    Dcs,
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before [`Engine::start`]: requests are answered, Patroni's intervals are not fetched.
    Starting,
    Serving,
    /// Since [`Engine::begin_shutdown`]: no new clients, no fetches ahead of demand.
    ShuttingDown,
    /// The last part of the shutdown: as before, and no client waits for a fetch.
    Closing,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to the upstream, then report `connected_to`, `progress` or `connect_failed`.
    Connect(ConnId, UpstreamId),
    /// The connection has output, or wants input again, because of another input.
    Wake(ConnId),
    /// Everything is sent: send close_notify, flush, shut down writing; continue reading.
    ShutdownWrite(ConnId),
    /// Close the connection, and forget its id.
    Close(ConnId),
    /// The upstream's address in use gave no usable answer: connect to the next one from now on.
    NextAddress(UpstreamId),
    /// A client asks for a report: call [`Engine::report`].
    Report(ConnId, Report),
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

/// How many there are of everything. Once the last client has left and the last timer has fired,
/// all but the last two are 0; with `dcs` one timer stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub clients: usize,
    pub fetches: usize,
    pub queued: usize,
    pub waiters: usize,
    pub timers: usize,
    pub entries: usize,
    /// Inputs for connections that were closed, since the start.
    pub stale_inputs: u64,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    /// When the wheel looks at this connection next; its deadline may have become later since.
    scheduled: Time,
}

#[derive(Debug)]
enum Peer {
    Client(Client),
    Upstream(Box<Fetch>),
}

#[derive(Debug)]
struct Client {
    frontend: Frontend,
    port: Port,
    /// Whether the shell's TLS handshake is in progress.
    is_handshaking: bool,
    /// The route of the request that waits for its response.
    route: Option<Route>,
    /// Only with [`Settings::records`].
    asked: Option<Box<Asked>>,
}

/// What a [`Record`] needs of the request.
#[derive(Debug)]
struct Asked {
    at: Time,
    method: Method,
    target: Box<str>,
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    Connection(ConnId),
    /// The last fetch of the entry failed: the next one is due.
    Retry(EntryId),
    /// The answer is about to expire: the next fetch is due.
    Refresh(EntryId),
    /// The patience of the entry's waiters may have ended.
    Patience(EntryId),
    Sweep,
    /// A rehearsal of the witness is due.
    Rehearsal,
    /// The next request of the read of the DCS may begin.
    NextRead,
    /// Time to answer the clients that still wait for a fetch.
    ShutdownAnswer,
    /// Time to close the last clients.
    ShutdownDeadline,
}

impl Engine {
    /// An engine without connections, before [`Engine::start`].
    pub fn new(settings: Settings) -> Self {
        let mut engine = Engine {
            cache: Cache::new(settings.cache),
            connections: Slots::new(),
            wheel: Wheel::new(),
            unscheduled: Vec::new(),
            fetches: Fetches::default(),
            witness: None,
            actions: VecDeque::new(),
            records: VecDeque::new(),
            journal: Journal::default(),
            stats: Stats::default(),
            node: Node::new(settings.fence),
            parser: Parser::default(),
            canonical: String::with_capacity(crate::http::TARGET_BYTES_MAX),
            idlest: Default::default(),
            clients: [0; Port::COUNT],
            in_transition_until: Time::ZERO,
            sweeping: false,
            phase: Phase::Starting,
            draining: false,
            stale_inputs: 0,
            settings,
        };
        engine.set_witness();
        engine
    }

    // ---- inputs

    /// Begins to serve: fetches Patroni's intervals, without which no leader's answer is served
    /// stale.
    pub fn start(&mut self, now: Now) {
        self.phase = Phase::Serving;
        self.fetch_intervals(now);
    }

    /// A client connected. `None`: at capacity, and no client is idle.
    pub fn accept(&mut self, now: Now, port: Port) -> Option<ConnId> {
        if self.is_shutting_down() {
            return None;
        }
        if self.clients[port as usize] >= self.clients_max(port) {
            let Some(idlest) = self.longest_idle(now.time, port) else {
                self.stats.clients_refused += u64::from(port == Port::Checks);
                return None;
            };
            self.close_client(idlest);
        }
        self.clients[port as usize] += 1;
        self.stats.clients_accepted += u64::from(port == Port::Checks);
        let frontend = Frontend::new(now.time);
        let client = Client { frontend, port, is_handshaking: false, route: None, asked: None };
        let peer = Peer::Client(client);
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        self.unscheduled.push(id);
        if port == Port::Agent {
            self.ask_agent(now, id);
        }
        Some(id)
    }

    /// The TLS handshake of a client begins.
    pub fn handshake_begins(&mut self, id: ConnId) {
        if let Some(client) = self.client(id) {
            client.is_handshaking = true;
        }
    }

    /// A TLS handshake has ended, with a client or with Patroni.
    pub fn handshake_ended(&mut self, id: ConnId, handshake: Handshake) {
        let side = match self.client(id) {
            Some(client) => {
                client.is_handshaking = false;
                Side::Client
            }
            None => Side::Patroni,
        };
        self.stats.handshake(side, handshake);
    }

    /// Descriptors ran out: closes the longest idle client. Returns whether there was one.
    pub fn make_room(&mut self, now: Now) -> bool {
        self.stats.descriptor_shortages += 1;
        let ports = [Port::Checks, Port::Admin];
        let idlest = ports.into_iter().find_map(|port| self.longest_idle(now.time, port));
        idlest.map(|id| self.close_client(id)).is_some()
    }

    /// This address accepted the connection of a `Connect`.
    pub fn connected_to(&mut self, id: ConnId, address: AddressId) {
        if let Some(fetch) = self.fetch(id) {
            fetch.connected_to(address);
        }
    }

    /// A `Connect` has reached this state.
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

    /// Bytes arrived, in any split.
    pub fn receive(&mut self, now: Now, id: ConnId, bytes: &[u8]) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(Client { frontend, .. })) => {
                let step = frontend.receive(now.time, bytes, &mut self.parser);
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
            Some(Peer::Client(Client { frontend, .. })) => {
                let step = frontend.sent(now.time, count, &mut self.parser);
                self.client_step(now, id, step);
            }
            Some(Peer::Upstream(fetch)) => fetch.sent(count),
            None => self.stale_inputs += 1,
        }
    }

    /// The peer sent its last byte: FIN, or close_notify.
    pub fn eof(&mut self, now: Now, id: ConnId) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(Client { frontend, .. })) => {
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

    /// The connection broke: RST, an I/O or TLS error. `why` matters for a fetch only.
    pub fn broken(&mut self, now: Now, id: ConnId, why: Failure) {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Client(..)) => self.close_client(id), // HAProxy ends checks with RST
            Some(Peer::Upstream(fetch)) => {
                let outcome = fetch.fail(why);
                self.fetch_step(now, id, outcome);
            }
            None => self.stale_inputs += 1,
        }
    }

    /// Handles all timers that are due.
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
                Timer::Rehearsal => self.rehearse(now),
                Timer::NextRead => self.continue_read(now),
                Timer::ShutdownAnswer => self.end_waits(now),
                Timer::ShutdownDeadline => self.close_clients(|_| true),
            }
        }
    }

    /// Changes the settings. Fetches in flight end under the previous ones. If Patroni has another
    /// address now, they are restarted instead, and everything known about Patroni is forgotten.
    pub fn configure(&mut self, now: Now, settings: Settings) {
        self.cache.configure(settings.cache);
        self.node.set_fenced(settings.fence);
        let previous = std::mem::replace(&mut self.settings, settings);
        if previous.dcs != self.settings.dcs {
            self.drop_read();
            self.node.forget_evidence();
            self.set_witness();
        }
        if previous.host == self.settings.host {
            self.node.forget_address();
        } else {
            self.forget_patroni(now);
        }
        self.dispatch(now);
    }

    /// Begins or ends the drain: during it the leader and replica routes answer 503.
    pub fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    // ---- outputs

    /// What the daemon does, in a few words for the supervisor.
    pub fn summary(&self) -> String {
        if self.draining { "draining".to_owned() } else { self.journal.summary() }
    }

    /// Changes whenever [`Engine::summary`] does.
    pub fn summary_version(&self) -> (bool, u32) {
        (self.draining, self.journal.summary_version())
    }

    /// The next action; to be polled until there is none. In debug builds the invariants are
    /// checked then, unless there are more than `CONNECTIONS_CHECKED_MAX` connections.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if cfg!(debug_assertions)
            && action.is_none()
            && self.connections.len() <= CONNECTIONS_CHECKED_MAX
        {
            self.check_invariants();
        }
        action
    }

    /// The next request that was answered, if [`Settings::records`] is set.
    pub fn poll_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    /// The bytes to send on this connection.
    pub fn output(&self, id: ConnId) -> &[u8] {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(client)) => client.frontend.output(),
            Some(Peer::Upstream(fetch)) => fetch.output(),
            None => &[],
        }
    }

    /// When the response to this client was decided on, if no byte of it has been sent yet.
    pub fn unsent_since(&self, id: ConnId) -> Option<Time> {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(client)) => client.frontend.unsent_since(),
            _ => None,
        }
    }

    /// Whether more input is of use on this connection.
    pub fn wants_read(&self, id: ConnId) -> bool {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(client)) => client.frontend.wants_read(),
            Some(Peer::Upstream(fetch)) => fetch.wants_read(),
            None => false,
        }
    }

    /// How many there are of everything.
    pub fn counts(&self) -> Counts {
        Counts {
            clients: self.clients.iter().sum(),
            fetches: self.fetches.in_flight(),
            queued: self.fetches.queued(),
            waiters: self.cache.waiters(),
            timers: self.wheel.len(),
            entries: self.cache.count(),
            stale_inputs: self.stale_inputs,
        }
    }

    /// The number of connections and timers, on which the memory in use depends most.
    pub fn connections_and_timers(&self) -> usize {
        self.clients.iter().sum::<usize>() + self.fetches.in_flight() + self.wheel.len()
    }

    /// Panics if counts and states do not agree. Linear in the number of connections.
    pub fn check_invariants(&self) {
        let mut clients = [0; Port::COUNT];
        let mut waiting = 0;
        let mut upstream = Vec::new();
        let mut entries = Vec::new();
        for (id, connection) in self.connections.iter() {
            match &connection.peer {
                Peer::Client(client) => {
                    clients[client.port as usize] += 1;
                    waiting += usize::from(client.frontend.waiting().is_some());
                }
                Peer::Upstream(fetch) if fetch.purpose() == Purpose::Dcs => {}
                Peer::Upstream(fetch) => {
                    upstream.push((id, fetch.is_queued()));
                    if let Purpose::Entry(entry) = fetch.purpose() {
                        entries.push(entry);
                    }
                }
            }
        }
        assert_eq!(clients, self.clients, "clients");
        assert_eq!(waiting, self.cache.waiters(), "every waiting client is a waiter, and no other");
        self.fetches.check_invariants(&upstream);
        self.cache.check_invariants(&entries);
    }

    fn set_witness(&mut self) {
        self.witness = self.settings.dcs.as_ref().map(Witness::new);
        self.cache.set_has_witness(self.witness.is_some());
    }

    fn close_client(&mut self, id: ConnId) {
        let Some(connection) = self.connections.remove(id) else { return };
        let Peer::Client(client) = &connection.peer else { return };
        if client.frontend.waiting().is_some() {
            self.cache.leave(id);
        }
        self.clients[client.port as usize] -= 1;
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

impl Port {
    /// How many ports there are.
    pub const COUNT: usize = 3;
}

/// With more connections the invariants are not checked after each input.
const CONNECTIONS_CHECKED_MAX: usize = 64;
