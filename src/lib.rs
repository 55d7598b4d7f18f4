//! A small daemon in front of Patroni's REST API: it asks once per route and second, and answers
//! every load balancer from memory.
//!
//! ```text
//!             bytes                          bytes
//!  clients <─────────> shell <───────────────────────────────> Patroni
//!                      │   ▲  poll, sockets, clocks, signals
//!           what       │   │ what to do
//!           happened   ▼   │
//!                      engine ── frontend   one client: bytes to requests, answers to bytes
//!                        │  └─── backend    one fetch: request bytes to an answer or a failure
//!                        │          └── http   heads, bodies, and the one place that writes them
//!                        ├── cache ── answer  what is known of each target, and who waits for it
//!                        ├── routes           what may be asked
//!                        ├── lease            what a node says of itself, and how long that holds
//!                        └── wheel            time, and what waits for it
//! ```
//!
//! One thread, one mio poll loop. The loop lives in [`shell`]; everything below it is pure: bytes
//! and times go in, bytes and actions come out. No socket, file or clock is touched there, nothing
//! waits, and the same inputs lead to the same actions, so a test runs the daemon in virtual time
//! against a scripted network.
//!
//! A hit goes: poll, mark, read, [`Engine::receive`], a lookup, the rendered answer, write. A miss
//! leaves the client in the entry's list of waiters and asks the shell to connect; when the fetch
//! has ended, every waiter is answered in the same turn.
//!
//! What this crate does not do: it is no general proxy, and forwards no client's bytes. It decides
//! nothing about the cluster: statuses are Patroni's. It has no HTTP/2, no compression, no access
//! control; a firewall and client certificates are what keeps strangers out.
//!
//! [`Engine::receive`]: engine::Engine::receive

// except for one call in shell/trim.rs
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

pub mod answer;
pub mod cache;

pub mod reply;

pub mod routes;

pub mod node;

pub mod journal;

pub mod shrink;
pub mod slots;
pub mod time;
pub mod wheel;

/// The daemon's version, as it names itself on the command line and in `User-Agent`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
