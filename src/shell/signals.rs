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
    /// A signal whose use is still to come.
    NotYet(&'static str),
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
            SIGUSR1 => Event::NotYet("SIGUSR1"),
            SIGUSR2 => Event::NotYet("SIGUSR2"),
            _ => Event::End,
        })
    }
}
