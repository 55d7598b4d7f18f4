//! The joint: connections, cache and wheel; inputs in, actions out.
//!
//! The only file that knows both sides. The shell tells it what happened, by [`ConnId`] and with
//! the time; after every input it carries out what [`Engine::poll_action`] says, to the last one.
//! What an input leads to depends on nothing but the inputs before it.

use std::collections::VecDeque;

use crate::answer::{Answer, Form, Handling};
use crate::backend::{Failure, Fetch, Outcome};
use crate::cache::{Cache, EntryId, Limits, Lookup, Retry};
use crate::frontend::{Frontend, Request, Step};
use crate::http::head::BadRequest;
use crate::http::write::{ResponseFields, error_json, request, response};
use crate::http::{Method, Persistence};
use crate::journal::Journal;
use crate::lease::NodeStatus;
use crate::routes::resolve;
use crate::slots::{ConnId, Slots};
use crate::wheel::{Now, Time, Wheel};

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
    /// Fetches that wait for their turn.
    queue: VecDeque<ConnId>,
    actions: VecDeque<Action>,
    records: VecDeque<Record>,
    journal: Journal,
    /// The target that was asked for last, and what Patroni would be asked for it; kept so that
    /// a hit allocates nothing.
    target: String,
    canonical: String,
    /// Clients that may make room for new ones, the longest idle last.
    idlest: Vec<(Time, ConnId)>,
    clients: usize,
    fetching: usize,
    sweeping: bool,
    finishing: bool,
    stale_inputs: u64,
}

/// What the engine has to know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cache's own.
    pub limits: Limits,
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

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to Patroni, then report `connected` or `connect_failed`.
    Connect(ConnId),
    /// There is output, or input is wanted again, without an input on this connection.
    Wake(ConnId),
    /// All is sent: close_notify, flush, shut writing down; reading goes on.
    Finish(ConnId),
    /// The last word on this connection.
    Close(ConnId),
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it was.
    pub id: ConnId,
    /// `-` if it was none.
    pub method: Method,
    /// As it was asked, without scheme and authority.
    pub target: Box<str>,
    /// The status that was answered.
    pub status: u16,
    /// From the complete request to the answer.
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
    Patroni(Box<Fetch>),
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
    Retry(EntryId),
    Sweep,
    Finish,
}

/// An answer that is not Patroni's.
struct Own {
    status: u16,
    message: &'static str,
    allow: bool,
}

impl Engine {
    /// Nobody connected, nothing known.
    pub fn new(settings: Settings) -> Self {
        Engine {
            cache: Cache::new(settings.limits),
            settings,
            connections: Slots::new(),
            wheel: Wheel::new(),
            unscheduled: Vec::new(),
            queue: VecDeque::new(),
            actions: VecDeque::new(),
            records: VecDeque::new(),
            journal: Journal::default(),
            target: String::with_capacity(crate::http::TARGET_BYTES_MAX),
            canonical: String::with_capacity(crate::http::TARGET_BYTES_MAX),
            idlest: Vec::new(),
            clients: 0,
            fetching: 0,
            sweeping: false,
            finishing: false,
            stale_inputs: 0,
        }
    }

    // ---- in: what happened

    /// A client came. `None`: there is no room, and nobody to make it.
    pub fn accept(&mut self, now: Now) -> Option<ConnId> {
        if self.finishing {
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

    /// A `Connect` has succeeded.
    pub fn connected(&mut self, id: ConnId) {
        if let Some(fetch) = self.fetch(id) {
            fetch.connected();
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
            Some(Peer::Patroni(fetch)) => {
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
            Some(Peer::Patroni(fetch)) => fetch.sent(count),
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
            Some(Peer::Patroni(fetch)) => {
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
            Some(Peer::Patroni(fetch)) => {
                let outcome = fetch.fail(why);
                self.fetch_step(now, id, outcome);
            }
            None => self.stale_inputs += 1,
        }
    }

    /// Time has passed. Does nothing when nothing is due.
    pub fn tick(&mut self, now: Now) {
        while let Some(timer) = self.wheel.pop(now.time) {
            match timer {
                Timer::Connection(id) => self.look_at_deadline(now, id),
                Timer::Retry(entry) => self.retry(now, entry),
                Timer::Sweep => {
                    self.sweeping = false;
                    if self.cache.sweep(now.time) > 0 {
                        self.schedule_sweep(now.time);
                    }
                }
                Timer::Finish => self.close_clients(|_| true),
            }
        }
    }

    /// Other settings from now on. What is under way ends under the former ones.
    pub fn configure(&mut self, settings: Settings) {
        self.cache.set_limits(settings.limits);
        self.settings = settings;
    }

    /// The end: no more clients; who is idle goes now, the others with their answers, and what
    /// is left [`FINISH_MS_MAX`] from now goes then.
    pub fn finish(&mut self, now: Now) {
        self.finishing = true;
        self.close_clients(|frontend| frontend.is_idle());
        self.wheel.schedule(now.time.plus_ms(FINISH_MS_MAX), Timer::Finish);
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
            Some(Peer::Patroni(fetch)) => fetch.output(),
            None => &[],
        }
    }

    /// Is more input of use on this connection?
    pub fn wants_read(&self, id: ConnId) -> bool {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Client(frontend, _)) => frontend.wants_read(),
            Some(Peer::Patroni(fetch)) => fetch.wants_read(),
            None => false,
        }
    }

    /// Is it a connection to Patroni?
    pub fn is_fetch(&self, id: ConnId) -> bool {
        let connection = self.connections.get(id);
        matches!(connection, Some(Connection { peer: Peer::Patroni(_), .. }))
    }

    /// Is it a connection to Patroni that is not [connected](Engine::connected) yet?
    pub fn is_connecting(&self, id: ConnId) -> bool {
        match self.connections.get(id) {
            Some(Connection { peer: Peer::Patroni(fetch), .. }) => fetch.is_connecting(),
            _ => false,
        }
    }

    /// When to call [`Engine::tick`] next, if nothing happens before. Asked once, at the end of
    /// a turn.
    pub fn next_deadline(&mut self) -> Option<Time> {
        while let Some(id) = self.unscheduled.pop() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let deadline = connection.deadline();
            if deadline.tick_up() < connection.scheduled {
                connection.scheduled = self.wheel.schedule(deadline, Timer::Connection(id));
            }
        }
        self.wheel.next()
    }

    /// After [`Engine::finish`]: has the last client gone?
    pub fn is_finished(&self) -> bool {
        self.finishing && self.clients == 0
    }

    /// How much there is of everything.
    pub fn counts(&self) -> Counts {
        Counts {
            clients: self.clients,
            fetches: self.fetching,
            queued: self.queue.len(),
            waiters: self.cache.waiters(),
            timers: self.wheel.len(),
            entries: self.cache.len(),
            stale_inputs: self.stale_inputs,
        }
    }

    // ---- clients

    fn client_step(&mut self, now: Now, id: ConnId, step: Step) {
        match step {
            Step::Continue => {}
            Step::Ask(request) => self.ask(now, id, request),
            Step::Refuse(why) => self.refuse(now, id, Own::refusal(why)),
            Step::TooSlow => self.refuse(now, id, Own::TOO_SLOW),
            Step::Drain => self.actions.push_back(Action::Finish(id)),
            Step::Close => self.close(id),
        }
        self.reschedule(id);
    }

    /// The hot path: one lookup, and with a fresh answer nothing else.
    fn ask(&mut self, now: Now, id: ConnId, request: Request) {
        if self.settings.records {
            self.remember(now, id, request);
        }
        let entry = match self.entry_for(request) {
            Ok(entry) => entry,
            Err(own) => return self.answer_own(now, id, own),
        };
        match self.cache.lookup(now.time, entry) {
            Lookup::Fresh => self.answer(now, id, entry, Handling::Hit),
            Lookup::Failing => self.answer(now, id, entry, Handling::FailedHit),
            Lookup::Fetching => self.cache.wait(entry, id),
            Lookup::Absent => {
                self.begin_fetch(now, entry);
                self.cache.wait(entry, id);
            }
        }
    }

    /// The entry that a request is about, or what we have to say ourselves.
    fn entry_for(&mut self, request: Request) -> Result<EntryId, Own> {
        match request.method {
            Method::Unknown => return Err(Own::UNKNOWN_METHOD),
            Method::Connect => return Err(Own::METHOD_NOT_ALLOWED),
            Method::Options if self.target == "*" => return Err(Own::SERVER_OPTIONS),
            _ => {}
        }
        let route = resolve(&self.target, &mut self.canonical).ok_or(Own::NOT_FOUND)?;
        match request.method {
            Method::Get | Method::Head | Method::Options => {
                self.cache.find(route, &self.canonical).ok_or(Own::FULL)
            }
            _ => Err(Own::METHOD_NOT_ALLOWED),
        }
    }

    /// Gives a client the entry's answer. A waiter that has gone is no error.
    fn answer(&mut self, now: Now, id: ConnId, entry: EntryId, handling: Handling) {
        let finishing = self.finishing;
        let Some((frontend, request)) = self.waiting_client(id) else { return };
        if finishing {
            frontend.close_after_answer();
        }
        let persistence = if finishing { Persistence::Close } else { request.persistence };
        let form = Form { method: request.method, persistence, handling };
        let rendered = self.cache.rendered(entry).expect("an answer in memory");
        let status = rendered.answer().status;
        let bytes = rendered.form(now, form);
        if let Some((frontend, _)) = self.waiting_client(id) {
            frontend.answer(now.time, bytes);
        }
        self.record(now, id, status);
    }

    fn answer_own(&mut self, now: Now, id: ConnId, own: Own) {
        let finishing = self.finishing;
        let Some((frontend, request)) = self.waiting_client(id) else { return };
        if finishing {
            frontend.close_after_answer();
        }
        let persistence = if finishing { Persistence::Close } else { request.persistence };
        let (head_only, status) = (request.method == Method::Head, own.status);
        frontend.answer(now.time, own.response(now, persistence, head_only));
        self.record(now, id, status);
    }

    /// Answers what was no request.
    fn refuse(&mut self, now: Now, id: ConnId, own: Own) {
        if self.settings.records {
            let request = Request { method: Method::Unknown, persistence: Persistence::Close };
            self.target.replace_range(.., "-");
            self.remember(now, id, request);
        }
        let Some(Connection { peer: Peer::Client(frontend, _), .. }) = self.connections.get_mut(id)
        else {
            return;
        };
        let status = own.status;
        frontend.refuse(now.time, own.response(now, Persistence::Close, false));
        self.record(now, id, status);
    }

    fn waiting_client(&mut self, id: ConnId) -> Option<(&mut Frontend, Request)> {
        let connection = self.connections.get_mut(id)?;
        let Peer::Client(frontend, _) = &mut connection.peer else { return None };
        let request = frontend.waiting()?;
        Some((frontend, request))
    }

    fn remember(&mut self, now: Now, id: ConnId, request: Request) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if let Peer::Client(_, asked) = &mut connection.peer {
            let (method, target) = (request.method, self.target.as_str().into());
            *asked = Some(Box::new(Asked { at: now.time, method, target }));
        }
    }

    fn record(&mut self, now: Now, id: ConnId, status: u16) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Peer::Client(_, asked) = &mut connection.peer else { return };
        let Some(asked) = asked.take() else { return };
        let elapsed_ms = now.time.ms_since(asked.at);
        let Asked { method, target, .. } = *asked;
        self.records.push_back(Record { id, method, target, status, elapsed_ms });
    }

    /// The client to part with when there is no room. The idlest are looked for in batches: one
    /// walk over all connections serves [`IDLEST_BATCH`] newcomers.
    fn longest_idle(&mut self, now: Time) -> Option<ConnId> {
        if let Some(id) = self.next_idlest(now) {
            return Some(id);
        }
        let idle = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(frontend, _) = &connection.peer else { return None };
            Some((frontend.idle_since(now)?, id))
        });
        self.idlest.extend(idle);
        if self.idlest.len() > IDLEST_BATCH {
            self.idlest.select_nth_unstable(IDLEST_BATCH);
            self.idlest.truncate(IDLEST_BATCH);
        }
        self.idlest.sort_unstable_by(|one, other| other.cmp(one));
        self.next_idlest(now)
    }

    /// Of those found before, the next that is idle still.
    fn next_idlest(&mut self, now: Time) -> Option<ConnId> {
        while let Some((since, id)) = self.idlest.pop() {
            let connection = self.connections.get(id);
            if let Some(Connection { peer: Peer::Client(frontend, _), .. }) = connection {
                if frontend.idle_since(now) == Some(since) {
                    return Some(id);
                }
            }
        }
        None
    }

    fn close_clients(&mut self, which: impl Fn(&Frontend) -> bool) {
        let clients = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(frontend, _) = &connection.peer else { return None };
            which(frontend).then_some(id)
        });
        for id in clients.collect::<Vec<_>>() {
            self.close(id);
        }
    }

    // ---- fetches

    fn fetch(&mut self, id: ConnId) -> Option<&mut Fetch> {
        match self.connections.get_mut(id).map(|connection| &mut connection.peer) {
            Some(Peer::Patroni(fetch)) => Some(fetch),
            _ => {
                self.stale_inputs += 1;
                None
            }
        }
    }

    fn begin_fetch(&mut self, now: Now, entry: EntryId) {
        self.cache.begin(entry);
        let request = request(self.cache.target(entry), &self.settings.host);
        let fetch = Fetch::new(now.time, entry, request, self.settings.timeout_ms);
        let peer = Peer::Patroni(Box::new(fetch));
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        self.queue.push_back(id);
        self.unscheduled.push(id);
        self.dispatch(now);
    }

    /// Lets fetches begin as far as there is room, those of plain routes first.
    fn dispatch(&mut self, now: Now) {
        while self.fetching < self.settings.fetches_max && !self.queue.is_empty() {
            let plain = self.queue.iter().position(|id| self.is_plain(*id));
            let Some(id) = self.queue.remove(plain.unwrap_or(0)) else { return };
            let Some(fetch) = self.fetch(id) else { continue };
            fetch.connect(now.time);
            self.fetching += 1;
            self.actions.push_back(Action::Connect(id));
        }
    }

    fn is_plain(&self, id: ConnId) -> bool {
        match self.connections.get(id).map(|connection| &connection.peer) {
            Some(Peer::Patroni(fetch)) => !self.cache.route(fetch.entry()).has_parameters,
            _ => false,
        }
    }

    fn fetch_step(&mut self, now: Now, id: ConnId, outcome: Outcome) {
        let Some(outcome) = outcome else { return };
        let Some(Connection { peer: Peer::Patroni(fetch), .. }) = self.connections.remove(id)
        else {
            return;
        };
        match self.queue.iter().position(|queued| *queued == id) {
            Some(at) => drop(self.queue.remove(at)),
            None => {
                self.fetching -= 1;
                self.actions.push_back(Action::Close(id));
            }
        }
        match outcome {
            Ok(answer) => self.fill(now, fetch.entry(), answer),
            Err(failure) => self.fail(now, &fetch, failure),
        }
        self.dispatch(now);
    }

    fn fill(&mut self, now: Now, entry: EntryId, answer: Answer) {
        self.journal.answered();
        if self.cache.route(entry).family().has_node_status() {
            if let Some(status) = NodeStatus::from_json(&answer.body) {
                self.journal.status(&status);
            }
        }
        let waiters = self.cache.fill(entry, answer);
        self.answer_waiters(now, entry, waiters, [Handling::Miss, Handling::Collapsed]);
        self.schedule_sweep(now.time);
    }

    fn fail(&mut self, now: Now, fetch: &Fetch, failure: Failure) {
        let entry = fetch.entry();
        self.journal.failed(now.time, self.cache.target(entry), failure);
        let answer = Answer {
            status: 503,
            content_type: Some(JSON.into()),
            body: error_json(&failure.to_string()).into_bytes().into(),
            asked_at: fetch.asked_at(),
        };
        let waiters = self.cache.fail(entry, answer);
        self.answer_waiters(now, entry, waiters, [Handling::Failed, Handling::Failed]);
        self.retry(now, entry);
    }

    fn answer_waiters(
        &mut self,
        now: Now,
        entry: EntryId,
        waiters: Vec<ConnId>,
        [first, other]: [Handling; 2],
    ) {
        for (at, id) in waiters.into_iter().enumerate() {
            if self.connections.get(id).is_some() {
                self.answer(now, id, entry, if at == 0 { first } else { other });
                self.reschedule(id);
                self.actions.push_back(Action::Wake(id));
            }
        }
    }

    fn retry(&mut self, now: Now, entry: EntryId) {
        match self.cache.retry(now.time, entry) {
            Retry::Fetch if self.finishing => {}
            Retry::Fetch => self.begin_fetch(now, entry),
            Retry::Later(at) => drop(self.wheel.schedule(at, Timer::Retry(entry))),
            Retry::Forgotten => {}
        }
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
            Peer::Patroni(fetch) => {
                let outcome = fetch.fail(Failure::TimedOut);
                self.fetch_step(now, id, outcome);
            }
        }
    }

    /// A deadline that came nearer is noted; one that moved away costs nothing.
    fn reschedule(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.deadline().tick_up() < connection.scheduled {
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
        if self.connections.remove(id).is_some() {
            self.clients -= 1;
            self.actions.push_back(Action::Close(id));
        }
    }
}

impl Connection {
    fn deadline(&self) -> Time {
        match &self.peer {
            Peer::Client(frontend, _) => frontend.deadline(),
            Peer::Patroni(fetch) => fetch.deadline(),
        }
    }
}

impl Own {
    const NOT_FOUND: Own = Own { status: 404, message: "no such route", allow: false };
    const METHOD_NOT_ALLOWED: Own =
        Own { status: 405, message: "only GET, HEAD and OPTIONS are answered", allow: true };
    const UNKNOWN_METHOD: Own = Own { status: 501, message: "unknown method", allow: false };
    const SERVER_OPTIONS: Own = Own { status: 200, message: "", allow: true };
    const TOO_SLOW: Own =
        Own { status: 408, message: "the request did not come in time", allow: false };
    const FULL: Own =
        Own { status: 503, message: "too many different parameters are asked for", allow: false };

    fn refusal(why: BadRequest) -> Own {
        let (status, message) = match why {
            BadRequest::Malformed => (400, "not a request of HTTP/1.0 or HTTP/1.1"),
            BadRequest::BodyTooLarge => (413, "no body is wanted"),
            BadRequest::TargetTooLong => (414, "the target is longer than 1 KiB"),
            BadRequest::Expectation => (417, "no body is waited for"),
            BadRequest::HeadTooLarge => (431, "the head has more than 8 KiB or 64 fields"),
            BadRequest::UnknownCoding => (501, "unknown transfer coding"),
        };
        Own { status, message, allow: false }
    }

    fn response(self, now: Now, persistence: Persistence, head_only: bool) -> std::rc::Rc<[u8]> {
        let silent = self.message.is_empty();
        let body = if silent { String::new() } else { error_json(self.message) };
        let fields = ResponseFields {
            status: self.status,
            date_unix_seconds: now.unix_ms / 1000,
            content_type: if silent { None } else { Some(JSON) },
            content_length: body.len(),
            cached: None,
            allow: self.allow,
            persistence,
        };
        response(&fields, if head_only { b"" } else { body.as_bytes() })
    }
}

/// The response for a client that is turned away because there is no room.
pub fn no_room(now: Now) -> std::rc::Rc<[u8]> {
    let own = Own { status: 503, message: "too many connections", allow: false };
    own.response(now, Persistence::Close, false)
}

/// After [`Engine::finish`], what is in flight has so long.
pub const FINISH_MS_MAX: u64 = 5_000;
/// How many idle clients one walk finds.
const IDLEST_BATCH: usize = 64;
const JSON: &[u8] = b"application/json";
