//! Signals, received as events of the poll loop.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals as Source;

/// Receives signals.
pub struct Signals {
    source: Source,
}

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT: end after the requests in flight.
    Shutdown,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: take the node out of load balancing (`true`). SIGUSR2: put it back (`false`).
    Drain(bool),
}

impl Signals {
    /// Replaces the default actions of these signals.
    pub fn new(registry: &Registry, token: Token) -> io::Result<Signals> {
        let mut source = Source::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
        registry.register(&mut source, token, Interest::READABLE)?;
        Ok(Signals { source })
    }

    /// Returns the signals received since the previous call.
    pub fn pending(&mut self) -> impl Iterator<Item = Event> {
        self.source.pending().map(|signal| match signal {
            SIGHUP => Event::Reload,
            SIGUSR1 => Event::Drain(true),
            SIGUSR2 => Event::Drain(false),
            _ => Event::Shutdown,
        })
    }
}
