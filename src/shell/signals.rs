//! Signals as events of the loop.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals as Source;

/// The signals that have come.
pub struct Signals {
    source: Source,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGTERM, SIGINT: finish what is in flight, then end.
    End,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: load balancers are to look elsewhere. SIGUSR2: no more.
    Drain(bool),
}

impl Signals {
    /// Takes the signals over from their default actions.
    pub fn new(registry: &Registry, token: Token) -> io::Result<Signals> {
        let mut source = Source::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
        registry.register(&mut source, token, Interest::READABLE)?;
        Ok(Signals { source })
    }

    /// What came since the last time.
    pub fn pending(&mut self) -> impl Iterator<Item = Event> {
        self.source.pending().map(|signal| match signal {
            SIGHUP => Event::Reload,
            SIGUSR1 => Event::Drain(true),
            SIGUSR2 => Event::Drain(false),
            _ => Event::End,
        })
    }
}
