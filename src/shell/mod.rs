//! The poll loop: one thread, one [`Poll`], one turn after another.
//!
//! ```text
//!  ┌─> poll ─ mark ─ connect ─ serve ─ signals ─ tick ─ serve ─ handshakes ─ accept ─┐
//!  └─── sleeps until an event or the next deadline; not while a stream is queued ────┘
//! ```
//!
//! | step | does |
//! |---|---|
//! | poll | waits for events, then reads both clocks: all of a turn has the same time |
//! | mark | sets readiness bits and queues streams; handles nothing |
//! | connect | continues the connections to upstreams that are being made |
//! | serve | reads and writes queued streams until neither side has more to do |
//! | signals | after the I/O of the same poll: requests received before a signal are answered |
//! | tick | fires timers; streams that timers or signals woke are served next |
//! | handshakes | continues a few: a step takes as long as a hundred requests |
//! | accept | last, so that connections that are open come before new ones |
//!
//! Readiness is edge-triggered, which requires these rules:
//!
//! * A socket is registered once, for both directions. An event is only a hint that sets a bit;
//!   the bit is cleared when the socket itself has no more (see stream.rs).
//! * A stream whose budget is spent is queued for the next turn, and the poll does not sleep:
//!   nothing would report the rest again.
//! * Nothing is handled while events are marked. Handling one may close another's connection and
//!   give its slot to a new one; tokens carry a generation, so a late event finds nothing.
//! * Writable does not mean connected: the socket is asked (see sockets.rs).
//!
//! After each input to the engine its actions are performed, to the last one.
//!
//! The process may be stopped in the middle of a turn (SIGSTOP, a frozen cgroup, a hypervisor) and
//! continue when the turn's time is long past. So a response is sent only if it was decided on less
//! than `UNSENT_MS_MAX` (serve.rs) ago.

pub mod certificates;
mod clock;
mod connector;
mod descriptors;
pub mod files;
pub mod health;
pub mod hosts;
mod listener;
pub mod logger;
mod operate;
mod process;
mod reports;
mod resolver;
mod serve;
mod signals;
mod sockets;
mod stream;
mod stream_table;
pub mod systemd;
pub mod tls;
mod trim;
mod upstream;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::info;
use mio::{Events, Poll, Token, Waker};

use self::certificates::{Certificates, LOOK_EVERY};
use self::clock::Clock;
use self::files::Loaded;
use self::listener::Listener;
use self::reports::Reports;
use self::resolver::lookup_in_thread;
use self::signals::Signals;
use self::stream::Buffers;
use self::stream_table::StreamTable;
use self::systemd::Supervisor;
use self::tls::Tls;
use self::trim::MemoryTrim;
use self::upstream::Connectors;
use crate::config::Config;
use crate::engine::{Engine, Port};
use crate::journal::Repeats;
use crate::slots::ConnId;
use crate::time::Now;

/// The daemon: an engine and its sockets.
pub struct Daemon {
    config: Config,
    options: Options,
    poll: Poll,
    clock: Clock,
    engine: Engine,
    phase: Phase,
    supervisor: Supervisor,
    /// At most one for each port; none during shutdown.
    listeners: Vec<Listener>,
    connectors: Connectors,
    certificates: Certificates,
    signals: Option<Signals>,
    /// Whether signals have arrived in this turn.
    signalled: bool,
    /// Whether a thread has found something in this turn: the resolver's, or that of certificates.
    woken: bool,
    streams: StreamTable,
    /// Streams to serve in this turn.
    queue: Vec<ConnId>,
    /// Streams whose budget is spent: served in the next turn, after all others.
    postponed: Vec<ConnId>,
    /// Clients whose handshakes can continue, the longest waiting first.
    handshakes: VecDeque<ConnId>,
    tls: Tls,
    buffers: Buffers,
    trim: MemoryTrim,
    reports: Reports,
    client_tls_failures: Repeats,
    proxy_failures: Repeats,
    outdated_responses: Repeats,
    patroni_tls_failures: Repeats,
    dcs_tls_failures: Repeats,
}

/// Whether clients are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Since SIGTERM or SIGINT: the last clients get their answers.
    ShuttingDown,
}

/// The options of the command line.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file, read again on SIGHUP.
    pub config_file: Option<PathBuf>,
    /// Log a line per request.
    pub verbose: bool,
    /// Handle signals in the loop; otherwise they have their default actions.
    pub signals: bool,
    /// How often the files of certificates are looked at; `None`: once a minute.
    pub look_every: Option<Duration>,
}

impl Daemon {
    /// Listens; nothing is answered before [`Daemon::run`]. The error is for the operator.
    pub fn new(mut config: Config, options: Options) -> Result<Daemon, String> {
        let tls = files::read_password(&mut config).and_then(|()| Tls::read(&config));
        let tls = tls.map_err(|wrong| wrong.to_string())?;
        Daemon::with_loaded(Loaded { config, tls }, options, Supervisor::default())
    }

    /// As [`Daemon::new`], with certificates that have been read already, and under a supervisor.
    pub fn with_loaded(
        loaded: Loaded,
        options: Options,
        mut supervisor: Supervisor,
    ) -> Result<Daemon, String> {
        loaded.log_warnings();
        let Loaded { config, tls } = loaded;
        let poll = Poll::new().map_err(|error| format!("poll: {error}"))?;
        let registry = poll.registry().try_clone().map_err(|error| format!("poll: {error}"))?;
        let settings = operate::engine_settings(&config, options.verbose);
        let waker = Waker::new(&registry, THREADS).map_err(|error| format!("waker: {error}"))?;
        let listeners = operate::ports(&config).into_iter().map(|(port, bound_to)| {
            supervisor.listener(port, bound_to, &registry, token_of_port(port))
        });
        let listeners = listeners.collect::<Result<Vec<_>, String>>()?;
        operate::defer_accept(&listeners, &config);
        supervisor.close_unused();
        let signals = options.signals.then(|| Signals::new(&registry, SIGNALS));
        let signals = signals.transpose().map_err(|error| format!("signals: {error}"))?;
        let waker = Arc::new(waker);
        let look_every = options.look_every.unwrap_or(LOOK_EVERY);
        let mut certificates = Certificates::new(Arc::clone(&waker), look_every);
        certificates.watch(&config, &tls);
        let lookup = lookup_in_thread(waker);
        let connectors = Connectors::new(&config, registry, lookup);
        let clock = Clock::new();
        let reports = Reports::new(clock.now());
        Ok(Daemon {
            engine: Engine::new(settings),
            phase: Phase::Serving,
            supervisor,
            listeners,
            connectors,
            certificates,
            clock,
            streams: StreamTable::default(),
            queue: Vec::new(),
            postponed: Vec::new(),
            handshakes: VecDeque::new(),
            tls,
            buffers: Buffers::new(),
            trim: MemoryTrim::default(),
            reports,
            client_tls_failures: Repeats::default(),
            proxy_failures: Repeats::default(),
            outdated_responses: Repeats::default(),
            patroni_tls_failures: Repeats::default(),
            dcs_tls_failures: Repeats::default(),
            config,
            options,
            poll,
            signals,
            signalled: false,
            woken: false,
        })
    }

    /// The address health checks are sent to.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address_of(Port::Checks)
    }

    /// The address of a port.
    pub fn address_of(&self, port: Port) -> Option<SocketAddr> {
        self.listener(port).and_then(Listener::address)
    }

    fn listener(&self, port: Port) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.port() == port)
    }

    /// Serves until a signal begins the shutdown and the last client has its answer.
    pub fn run(mut self) -> io::Result<()> {
        if let Some(address) = self.address() {
            self.log_start(address);
            self.supervisor.ready(&format!("listening on {address}"));
        }
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let mut now = self.clock.now();
        self.engine.start(now);
        self.perform_actions(now);
        while !self.engine.is_shut_down() {
            now = self.turn(now, &mut events)?;
        }
        info!("ended");
        Ok(())
    }

    fn turn(&mut self, previous: Now, events: &mut Events) -> io::Result<Now> {
        let timeout = self.timeout(previous);
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Err(_) => events.clear(),
            Ok(()) => {}
        }
        let now = self.clock.now();
        for event in events.iter() {
            self.mark(event);
        }
        let postponed = std::mem::take(&mut self.postponed);
        self.continue_connecting(now);
        self.serve_queue(now);
        self.handle_signals(now);
        if self.listener(Port::Checks).is_none() && self.phase == Phase::Serving {
            // a reload has lost it: a restart by the supervisor brings it back
            return Err(io::Error::other("no address is left to listen on"));
        }
        self.engine.tick(now);
        self.perform_actions(now);
        self.queue.extend(postponed);
        self.serve_queue(now);
        let steps = self.continue_handshakes(now);
        self.accept(now, steps);
        self.supervisor.tick(now.time, &self.engine);
        self.trim.observe(self.engine.connections_and_timers());
        Ok(now)
    }

    /// How long the poll may sleep: not at all while something is queued.
    fn timeout(&mut self, now: Now) -> Option<Duration> {
        let deadline = self.engine.next_deadline();
        if self.queue.len() + self.postponed.len() + self.handshakes.len() > 0 {
            return Some(Duration::ZERO);
        }
        let accepting = self.listeners.iter().filter_map(|listener| listener.ready_at(now.time));
        let connecting = self.connectors.next_deadline();
        let supervised = self.supervisor.deadline();
        let next = accepting.chain(deadline).chain(connecting).chain(supervised).min()?;
        Some(Duration::from_millis(next.ms_since(now.time)))
    }

    /// Records one event and handles nothing.
    fn mark(&mut self, event: &mio::event::Event) {
        match event.token() {
            SIGNALS => self.signalled = true,
            THREADS => self.woken = true,
            Token(token @ LISTENERS_START..) => {
                let mut listeners = self.listeners.iter_mut();
                let port = token - LISTENERS_START;
                if let Some(it) = listeners.find(|listener| listener.port() as usize == port) {
                    it.mark_readable();
                }
            }
            token => match self.streams.of_token(token) {
                Some((id, stream)) => {
                    stream.mark(event);
                    self.enqueue(id);
                }
                None => self.connectors.mark(token),
            },
        }
    }
}

/// The token of a port's listener.
fn token_of_port(port: Port) -> Token {
    Token(LISTENERS_START + port as usize)
}

const EVENTS_PER_POLL: usize = 1024;
/// The token of the first listener. No stream has these tokens: no slot is as large.
const LISTENERS_START: usize = SIGNALS.0 - Port::COUNT;
const SIGNALS: Token = Token(usize::MAX - 1);
const THREADS: Token = Token(usize::MAX);
