//! The turn of the loop: poll, mark, serve, tick, accept. The only `Poll` and the only clock.
//!
//! ```text
//!  poll ─ mark ─ serve what is queued ─ signals ─ tick ─ serve what arose ─ handshakes ─ accept
//!   └────────────────────── until nothing is queued, then until the next deadline ──────────────┘
//! ```

mod clock;
mod connector;
mod descriptors;
pub mod files;
mod listener;
pub mod logger;
mod operate;
mod resolver;
mod signals;
mod stream;
mod stream_table;
pub mod tls;
mod trim;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::{info, warn};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use self::clock::Clock;
use self::connector::{Attempted, Connector};
use self::files::Loaded;
use self::listener::{Accepted, Listener};
use self::resolver::Resolver;
use self::signals::Signals;
use self::stream::{Broken, Buffers, ReadOutcome, Stream, WriteOutcome};
use self::stream_table::{StreamTable, token_of};
use self::tls::{Session, Tls, TlsError};
use self::trim::MemoryTrim;
use crate::config::Config;
use crate::engine::{Action, Engine, Port, UpstreamId};
use crate::failure::Failure;
use crate::fetch::Progress;
use crate::http::Persistence;
use crate::journal::Repeats;
use crate::logformat;
use crate::reply::LocalReply;
use crate::slots::ConnId;
use crate::time::Now;

/// The daemon: an engine, and the sockets it speaks through.
pub struct Daemon {
    config: Config,
    options: Options,
    poll: Poll,
    clock: Clock,
    engine: Engine,
    /// `None` once the daemon is to end.
    listener: Option<Listener>,
    connector: Connector,
    signals: Option<Signals>,
    /// Signals have come in this turn.
    signalled: bool,
    streams: StreamTable,
    /// Streams to serve in this turn.
    queue: Vec<ConnId>,
    /// Streams whose budget ran out: served in the next turn, behind all others.
    postponed: Vec<ConnId>,
    /// Clients whose handshakes can go on, in the order they asked: a few are served each turn,
    /// behind everybody else.
    handshakes: VecDeque<ConnId>,
    tls: Tls,
    buffers: Buffers,
    trim: MemoryTrim,
    tls_failures: Repeats,
    tls_failures_of_patroni: Repeats,
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file, read again on SIGHUP.
    pub config_file: Option<PathBuf>,
    /// Log a line per request.
    pub verbose: bool,
    /// Take signals as events of the loop; otherwise they have their default actions.
    pub signals: bool,
}

impl Daemon {
    /// Listens, so that clients can connect; answers nothing before [`Daemon::run`]. The error
    /// says what could not be done.
    pub fn new(config: Config, options: Options) -> Result<Daemon, String> {
        let tls = Tls::read(&config).map_err(|wrong| wrong.to_string())?;
        Daemon::with_loaded(Loaded { config, tls }, options)
    }

    /// As [`Daemon::new`], with certificates that have been read already.
    pub fn with_loaded(loaded: Loaded, options: Options) -> Result<Daemon, String> {
        for warning in loaded.warnings() {
            warn!("{warning}");
        }
        let Loaded { config, tls } = loaded;
        let poll = Poll::new().map_err(|error| format!("poll: {error}"))?;
        let clients_max = descriptors::clients_max(&config);
        let settings = operate::engine_settings(&config, clients_max, options.verbose);
        let resolver = Resolver::new(&config.backend, poll.registry(), RESOLVER);
        let resolver = resolver.map_err(|error| format!("waker: {error}"))?;
        let mut listener = Listener::bind(&config.frontend)?;
        let registered = listener.register(poll.registry(), LISTENER);
        registered.map_err(|error| format!("listener: {error}"))?;
        let signals = if options.signals {
            let signals = Signals::new(poll.registry(), SIGNALS);
            Some(signals.map_err(|error| format!("signals: {error}"))?)
        } else {
            None
        };
        Ok(Daemon {
            engine: Engine::new(settings),
            connector: Connector::new(resolver),
            listener: Some(listener),
            clock: Clock::new(),
            streams: StreamTable::default(),
            queue: Vec::new(),
            postponed: Vec::new(),
            handshakes: VecDeque::new(),
            tls,
            buffers: Buffers::new(),
            trim: MemoryTrim::default(),
            tls_failures: Repeats::default(),
            tls_failures_of_patroni: Repeats::default(),
            config,
            options,
            poll,
            signals,
            signalled: false,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(Listener::address)
    }

    /// Serves until a signal ends it, and the last client has its answer.
    pub fn run(mut self) -> io::Result<()> {
        if let Some(address) = self.address() {
            let backend = self.config.backend.authority();
            info!("listening on {address}, asking Patroni at {backend}");
        }
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let mut now = self.clock.now();
        self.engine.start(now);
        self.act(now);
        while !self.engine.is_shut_down() {
            now = self.turn(now, &mut events)?;
        }
        info!("ended");
        Ok(())
    }

    fn turn(&mut self, former: Now, events: &mut Events) -> io::Result<Now> {
        let timeout = self.timeout(former);
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Err(_) => events.clear(),
            Ok(()) => {}
        }
        let now = self.clock.now();
        for event in events.iter() {
            self.mark(now, event);
        }
        let postponed = std::mem::take(&mut self.postponed);
        self.serve_queue(now);
        // behind what had come before them
        self.take_signals(now);
        self.engine.tick(now);
        self.act(now);
        self.queue.extend(postponed);
        self.serve_queue(now);
        let steps = self.continue_handshakes(now);
        self.accept(now, steps);
        self.trim.observe(self.engine.held());
        Ok(now)
    }

    /// How long the poll may sleep; not at all while something is left to do.
    fn timeout(&mut self, now: Now) -> Option<Duration> {
        let accepting = self.listener.as_ref().and_then(|listener| listener.ready_at(now.time));
        let deadline = self.engine.next_deadline();
        let is_idle = self.queue.is_empty() && self.postponed.is_empty();
        if !is_idle || !self.handshakes.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [deadline, accepting].into_iter().flatten().min()?;
        Some(Duration::from_millis(next.ms_since(now.time)))
    }

    /// Takes note of one event. Nothing of a stream is handled yet: its slot might be freed and
    /// taken again by what is handled before.
    fn mark(&mut self, now: Now, event: &mio::event::Event) {
        match event.token() {
            LISTENER => self.listener.iter_mut().for_each(Listener::mark_readable),
            SIGNALS => self.signalled = true,
            RESOLVER => self.take_addresses(now),
            token => {
                let Some((id, stream)) = self.streams.of_token(token) else { return };
                stream.mark(event);
                self.queue_up(id);
            }
        }
    }

    fn queue_up(&mut self, id: ConnId) {
        if self.streams.get_mut(id).is_some_and(Stream::queue_once) {
            self.queue.push(id);
        }
    }

    /// Serves what is queued now; what queues itself meanwhile has its turn too, within bounds.
    fn serve_queue(&mut self, now: Now) {
        for _ in 0..QUEUE_ROUNDS {
            if self.queue.is_empty() {
                return;
            }
            let mut queue = std::mem::take(&mut self.queue);
            for id in queue.drain(..) {
                let Some(stream) = self.streams.get_mut(id) else { continue };
                if stream.handshake_goes_on() && !stream.is_upstream() {
                    // a hundred times the work of a request
                    self.handshakes.push_back(id);
                    continue;
                }
                stream.unqueue();
                self.serve(now, id);
            }
            // the vector's memory is kept for the next round
            if self.queue.is_empty() {
                self.queue = queue;
            }
        }
    }

    /// Serves those who wait longest for their handshake to go on. How many were there?
    fn continue_handshakes(&mut self, now: Now) -> u32 {
        let mut steps = 0;
        while steps < HANDSHAKES_PER_TURN {
            let Some(id) = self.handshakes.pop_front() else { break };
            if let Some(stream) = self.streams.get_mut(id) {
                stream.unqueue();
                self.serve(now, id);
                steps += 1;
            }
        }
        steps
    }

    /// Reads and writes on one stream as long as both sides want it, within a budget.
    fn serve(&mut self, now: Now, id: ConnId) {
        if self.streams.get_mut(id).is_some_and(|stream| stream.is_connecting()) {
            self.continue_connecting(now, id);
        }
        let mut bytes = 0;
        for _ in 0..SERVE_BUDGET {
            let read = self.read(now, id);
            let written = self.write(now, id);
            if !(read | written.is_some() | self.report_opened(id)) {
                return self.rest(now, id);
            }
            bytes += written.unwrap_or(0);
            if bytes >= SERVE_BYTES_BUDGET {
                break;
            }
        }
        if self.streams.get_mut(id).is_some_and(Stream::queue_once) {
            self.postponed.push(id);
        }
    }

    fn read(&mut self, now: Now, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let wanted = stream.is_handshaking() || self.engine.wants_read(id);
        if !wanted && stream.is_gone() && !stream.is_upstream() {
            // a client that waits is not read from, but makes room when it has gone
            self.broken(now, id, &Broken::Io);
            self.act(now);
            return true;
        }
        if !wanted || !stream.is_readable() || stream.is_connecting() {
            return false;
        }
        let outcome = stream.read(&mut self.buffers);
        if stream.is_upstream() {
            stream.acknowledge_at_once();
        }
        match outcome {
            ReadOutcome::Data(bytes) => self.engine.receive(now, id, bytes),
            ReadOutcome::Progress => {}
            ReadOutcome::Eof => self.engine.eof(now, id),
            ReadOutcome::Broken(why) => self.broken(now, id, &why),
            ReadOutcome::Blocked => return false,
        }
        self.act(now);
        true
    }

    /// So many bytes of the engine's were written; `None`: there was nothing to do.
    fn write(&mut self, now: Now, id: ConnId) -> Option<usize> {
        let stream = self.streams.get_mut(id)?;
        let output = self.engine.output(id);
        let wanted = !output.is_empty() || stream.has_outgoing();
        if !wanted || !stream.is_writable() || stream.is_connecting() {
            return None;
        }
        let outcome = stream.write(&output[..output.len().min(SERVE_BYTES_BUDGET)]);
        if stream.is_upstream() {
            stream.acknowledge_at_once();
        }
        let count = match outcome {
            WriteOutcome::Sent(count) => count,
            WriteOutcome::Broken(why) => {
                self.broken(now, id, &why);
                0
            }
            WriteOutcome::Blocked => return None,
        };
        if count > 0 {
            self.engine.sent(now, id, count);
        }
        self.act(now);
        Some(count)
    }

    fn broken(&mut self, now: Now, id: ConnId, why: &Broken) {
        if let Broken::Tls(error) = why {
            self.no_tls(now, id, error);
        }
        self.engine.broken(now, id, why.failure());
    }

    /// What a fetch says of it is for everybody; this is for who looks for the cause.
    fn no_tls(&mut self, now: Now, id: ConnId, error: &TlsError) {
        if self.streams.get_mut(id).is_none_or(|stream| stream.is_upstream()) {
            if let Some(times) = self.tls_failures_of_patroni.note(now.time) {
                warn!("no TLS with Patroni: {error} ({times} times)");
            }
            return;
        }
        let Some(address) = self.streams.get_mut(id).and_then(|stream| stream.peer()) else {
            return;
        };
        if let Some(times) = self.tls_failures.note(now.time) {
            info!("no TLS with {address}: {error} ({times} times)");
        }
    }

    /// A stream that has nothing to do waits for its events; only now does the poll have to know
    /// it. Who is answered and closed at once never gets here.
    fn rest(&mut self, now: Now, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.register(self.poll.registry(), token_of(id)).is_err() {
            self.engine.broken(now, id, Failure::NoDescriptor);
            self.act(now);
        }
    }

    /// Carries out what the engine wants done, to the last action.
    fn act(&mut self, now: Now) {
        while let Some(record) = self.engine.poll_record() {
            let address = self.streams.get_mut(record.id).and_then(|stream| stream.peer());
            let line = logformat::Line {
                address,
                method: record.method.name(),
                target: &record.target,
                status: record.status,
                elapsed_ms: record.elapsed_ms,
            };
            info!("{}", self.config.frontend.log_format.line(&line));
        }
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Connect(id, upstream) => self.connect(now, id, upstream),
                Action::Wake(id) => self.queue_up(id),
                Action::ShutdownWrite(id) => {
                    self.streams.get_mut(id).iter_mut().for_each(|stream| stream.shutdown_write());
                    self.queue_up(id);
                }
                Action::Close(id) => self.close(id),
            }
        }
    }

    fn close(&mut self, id: ConnId) {
        let mut stream = self.streams.remove(id);
        if let Some(stream) = &mut stream {
            stream.say_goodbye();
            stream.discard(&mut self.buffers);
        }
        if stream.is_none_or(|stream| stream.is_connecting()) {
            // it never answered: the next fetch begins with the next address
            self.connector.give_up(id);
        }
    }

    // ---- the backend's side

    fn connect(&mut self, now: Now, id: ConnId, upstream: UpstreamId) {
        let UpstreamId::Patroni = upstream;
        let progress = self.connector.connect(id);
        self.go_on(now, id, progress);
    }

    fn go_on(&mut self, now: Now, id: ConnId, progress: Attempted) {
        match progress {
            Attempted::Connecting(socket) => self.await_connection(now, id, socket),
            Attempted::Resolving => {}
            Attempted::Failed(why) => self.connect_failed(now, id, why),
        }
    }

    fn await_connection(&mut self, now: Now, id: ConnId, socket: TcpStream) {
        if let Some(client) = &mut self.tls.client {
            client.forget_old_sessions(now.time);
        }
        let session = self.tls.client.as_ref().map(Session::client).transpose();
        let mut stream = match session {
            Ok(session) => Stream::connecting(socket, session, UpstreamId::Patroni),
            Err(error) => {
                self.no_tls(now, id, &error);
                return self.connect_failed(now, id, error.failure);
            }
        };
        let registered = stream.register(self.poll.registry(), token_of(id));
        self.streams.insert(id, stream);
        if registered.is_err() {
            self.streams.remove(id);
            self.connect_failed(now, id, Failure::NoDescriptor);
        }
    }

    fn continue_connecting(&mut self, now: Now, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        match stream.connect_outcome() {
            None => {}
            Some(Ok(progress)) => {
                self.engine.progress(id, progress);
                self.connector.made(id);
            }
            Some(Err(why)) => {
                self.streams.remove(id);
                let progress = self.connector.try_next(id, why);
                self.go_on(now, id, progress);
                self.act(now);
            }
        }
    }

    /// Tells the engine that a fetch's handshake has completed. Whether it did just now.
    fn report_opened(&mut self, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let opened = stream.has_just_opened() && stream.is_upstream();
        if opened {
            self.engine.progress(id, Progress::Open);
        }
        opened
    }

    fn connect_failed(&mut self, now: Now, id: ConnId, why: Failure) {
        if why == Failure::NoDescriptor && self.engine.make_room(now) {
            warn!("no descriptor was left to ask Patroni: closed an idle client");
        }
        // what it leads to is carried out by whoever called for this: no recursion, however many
        // fetches fail at once
        self.engine.connect_failed(now, id, why);
    }

    fn take_addresses(&mut self, now: Now) {
        for id in self.connector.take_addresses() {
            let progress = self.connector.resume(id);
            self.go_on(now, id, progress);
        }
        self.act(now);
    }

    // ---- the clients' side

    /// Over TLS each may bring a handshake, and so many steps of handshakes were done before.
    fn accept(&mut self, now: Now, steps: u32) {
        // one at least: who only goes on and on with his handshake must not shut the door
        let most = match self.tls.server {
            Some(_) => HANDSHAKES_PER_TURN.saturating_sub(steps).max(1),
            None => ACCEPTS_PER_TURN,
        };
        for _ in 0..most {
            let Some(listener) = &mut self.listener else { return };
            match listener.accept(now.time) {
                Accepted::Client(socket) => self.welcome(now, socket),
                Accepted::NoDescriptor => {
                    self.engine.make_room(now);
                    return self.act(now);
                }
                Accepted::Nobody => return,
            }
        }
    }

    /// A client's request is mostly there already, so it is read before any poll.
    fn welcome(&mut self, now: Now, socket: TcpStream) {
        let session = match self.tls.server.as_ref().map(Session::server).transpose() {
            Ok(session) => session,
            Err(error) => return warn!("no TLS: {error}"),
        };
        let stream = Stream::accepted(socket, session, Port::Checks);
        let Some(id) = self.engine.accept(now, Port::Checks) else {
            let reply = LocalReply::TOO_MANY_CONNECTIONS.response(now, Persistence::Close, false);
            return stream.turn_away(&reply, &mut self.buffers);
        };
        self.act(now);
        self.streams.insert(id, stream);
        self.serve(now, id);
    }
}

const EVENTS_PER_POLL: usize = 1024;
/// Reads and writes on one stream before the others have their turn.
const SERVE_BUDGET: u32 = 16;
/// Bytes written on one stream before the others have their turn: copying them into the socket
/// takes the kernel some thirty microseconds.
const SERVE_BYTES_BUDGET: usize = 64 * 1024;
/// How often what a turn's work queued is served in the same turn.
const QUEUE_ROUNDS: u32 = 4;
/// New connections a turn; those that have come stay in the backlog, which costs nobody anything.
const ACCEPTS_PER_TURN: u32 = 64;
/// Clients whose handshakes go on in one turn, new ones included: four steps take a millisecond
/// with ECDSA, and four milliseconds with RSA.
const HANDSHAKES_PER_TURN: u32 = 4;

const LISTENER: Token = Token(usize::MAX);
const SIGNALS: Token = Token(usize::MAX - 1);
const RESOLVER: Token = Token(usize::MAX - 2);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
