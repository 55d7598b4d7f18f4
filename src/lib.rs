//! A small daemon next to each Patroni node: load balancers send it their health checks, it asks
//! Patroni's REST API about once per route and second, and answers all of them from memory.
//!
//! ```text
//!  clients <── bytes ──> shell <── bytes ──> Patroni
//!
//!  shell        poll loop, sockets, TLS, clocks, signals, log
//!  config       YAML to checked values
//!  engine       connections, inputs, actions: joins all modules below, decides nothing itself
//!  logformat    the line per request
//!  admin        metrics, status, and the files of the status page
//!  frontend     one client: bytes to requests, responses to bytes
//!  journal      what is logged: each change once, a repeated failure once a second
//!  changes      the last changes of state, for the status page
//!  fetch        one fetch: a request to an upstream, bytes to an answer or a failure
//!  cache        an entry per target: its answer, its failure, its waiting clients
//!  stats        counters, for the metrics and the status page
//!  node         what is known about the node, and until when its answers may be served
//!  answer       an upstream's answer, and the responses rendered from it
//!  reply        local responses: 404, 405, 503 while draining
//!  failure      why a fetch brought no answer
//!  routes       the routes clients may request, their parameters, the policy of each family
//!  http         heads and bodies: parsed in both directions, written in one place
//!  slots        connection ids; a reused slot gets a new id
//!  wheel        timers
//!  shrink       one rule for giving memory back
//!  time         time as a number
//! ```
//!
//! A module uses only modules further down; `tests/tidy.rs` holds the exact table. The loop is
//! [`shell`]; everything below it is pure: no socket, file or clock, and the same inputs lead to
//! the same actions. Tests run it with a virtual clock and a scripted network, and a number replays
//! a failure.
//!
//! | inputs of [`engine::Engine`] | |
//! |---|---|
//! | `start`, `configure`, `drain`, `begin_shutdown` | the operator |
//! | `accept`, `make_room` | a client connected; descriptors ran out |
//! | `connected_to`, `progress`, `connect_failed` | of an [`engine::Action::Connect`] |
//! | `receive`, `sent`, `eof`, `broken` | of any connection |
//! | `handshake_begins`, `handshake_ended` | of TLS: to be counted |
//! | `report` | of an [`engine::Action::Report`] |
//! | `log_change` | the shell's own changes, for log and status |
//! | `tick` | time has passed; due at `next_deadline` |
//!
//! After each input the shell carries out all actions:
//!
//! | [`engine::Action`] | |
//! |---|---|
//! | `Connect` | connect to an upstream; report `connected_to`, `progress` or `connect_failed` |
//! | `Wake` | the connection has output, or wants input again |
//! | `ShutdownWrite` | all output is sent: shut down writing, continue reading |
//! | `Close` | close the connection and forget its id |
//! | `NextAddress` | connect to the upstream's next address from now on |
//! | `Report` | an operator asks for metrics or status: call `report` with the shell's part |
//!
//! A hit is one read, one [`engine::Engine::receive`], one lookup, one write. On a miss the client
//! waits in the entry; when the fetch ends, all waiting clients are answered in the same turn.
//!
//! The promises, each with its tests in `docs/safety.md`:
//!
//! 1. One fetch: a route has at most one fetch in flight, however many clients ask.
//! 2. Never too old: no answer is served more than `ttl` after Patroni was asked, except by 3.
//! 3. Never past the lease: no leader's 200 older than 1 s outlives the lease it rests on.
//! 4. Bounded wait: every complete request is answered within `backend.timeout`.
//! 5. No contradiction: an answer that contradicts those in memory ends them at once.
//! 6. Read only: only GET of known routes reaches Patroni.
//! 7. Nobody waits for a silent peer: it costs a slot and a timer.
//! 8. Bounded memory and load: every buffer, list and rate has a limit.
//! 9. Changes show at once: while the node changes its state, answers are kept for 100 ms.
//!
//! What this crate does not do: it forwards no client's bytes, and decides nothing about the
//! cluster (statuses are Patroni's). It has no HTTP/2, no compression and no access control other
//! than client certificates.

// except for calls in shell/trim.rs and shell/systemd/handover.rs
#![deny(unsafe_code)]

// in reading order
pub mod config;
pub mod logformat;

pub mod shell;

pub mod engine;

pub mod frontend;

pub mod failure;
pub mod fetch;

pub mod http;

pub mod admin;
pub mod answer;
pub mod cache;

pub mod reply;

pub mod routes;

pub mod node;

pub mod changes;
pub mod journal;
pub mod stats;

pub mod shrink;
pub mod slots;
pub mod time;
pub mod wheel;

/// The daemon's version, for the command line and `User-Agent`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
