//! Resolves a name of an upstream, at start and again while it is in use. Resolving blocks, so a
//! thread does it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use log::{debug, info, warn};
use mio::Waker;

use crate::time::Time;

/// A name and its addresses.
pub struct Resolver {
    host: Rc<str>,
    port: u16,
    /// In the order of the answer, at most [`ADDRESSES_MAX`].
    addresses: Vec<SocketAddr>,
    /// When the last answer arrived.
    resolved_at: Time,
    is_resolving: bool,
    /// Whether it is logged that the name cannot be resolved.
    is_unresolved: bool,
    lookup: Lookup,
    answers: (Sender<Answer>, Receiver<Answer>),
}

/// Begins to look up a host and port, and sends one answer. Returns whether it has begun.
pub type Lookup = Rc<dyn Fn(String, u16, Sender<Answer>) -> bool>;

/// Host, port, addresses; none if the name has none. Host and port tell whether a reload has
/// changed them since.
pub type Answer = (String, u16, Vec<SocketAddr>);

impl Resolver {
    /// Has the address at once if the host is one; otherwise begins to resolve.
    pub fn new(host: &str, port: u16, lookup: Lookup) -> Resolver {
        let mut resolver = Resolver {
            host: Rc::default(),
            port: 0,
            addresses: Vec::new(),
            resolved_at: Time::ZERO,
            is_resolving: false,
            is_unresolved: false,
            lookup,
            answers: channel(),
        };
        resolver.set_host(host, port);
        resolver
    }

    /// Sets host and port. A name is resolved again, even if it is the same.
    pub fn set_host(&mut self, host: &str, port: u16) {
        if (&*self.host, self.port) != (host, port) {
            (self.host, self.port) = (host.into(), port);
            self.addresses.clear();
        }
        match self.host.parse::<IpAddr>() {
            Ok(address) => self.addresses = vec![SocketAddr::new(address, self.port)],
            Err(_) => self.resolve(),
        }
    }

    /// Begins to resolve, unless that is in progress or the host is an address.
    pub fn resolve(&mut self) {
        if !self.is_resolving && self.host.parse::<IpAddr>().is_err() {
            let answers = self.answers.0.clone();
            self.is_resolving = (self.lookup)(self.host.to_string(), self.port, answers);
        }
    }

    /// Begins to resolve if there are no addresses, or if they are [`REFRESH_MS`] old.
    pub fn refresh(&mut self, now: Time) {
        if self.addresses.is_empty() || now.ms_since(self.resolved_at) >= REFRESH_MS {
            self.resolve();
        }
    }

    /// Takes over what the lookup has found. A name that cannot be resolved at the moment keeps
    /// its addresses.
    pub fn take_answers(&mut self, now: Time) {
        while let Ok((host, port, mut addresses)) = self.answers.1.try_recv() {
            self.is_resolving = false;
            self.resolved_at = now;
            addresses.truncate(ADDRESSES_MAX);
            if (host.as_str(), port) != (&*self.host, self.port) {
                self.resolve();
                continue;
            }
            if addresses.is_empty() != self.is_unresolved {
                self.is_unresolved = addresses.is_empty();
                match self.is_unresolved {
                    true => warn!("the name {host} cannot be resolved"),
                    false => info!("the name {host} is resolved again"),
                }
            }
            if !addresses.is_empty() && addresses != self.addresses {
                debug!("{host} is {addresses:?}");
                self.addresses = addresses;
            }
        }
    }

    /// The host: a name or an address.
    pub fn host(&self) -> &Rc<str> {
        &self.host
    }

    /// Whether resolving is in progress.
    pub fn is_resolving(&self) -> bool {
        self.is_resolving
    }

    /// The addresses; empty before the first answer.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// A lookup by the system's resolver in a thread, which wakes the poll afterwards.
pub fn lookup_in_thread(waker: Arc<Waker>) -> Lookup {
    Rc::new(move |host, port, answers| {
        let waker = Arc::clone(&waker);
        let work = move || {
            let addresses = (host.as_str(), port).to_socket_addrs();
            let addresses = addresses.map(Iterator::collect).unwrap_or_default();
            // fails if the daemon has ended
            let _ = answers.send((host, port, addresses));
            let _ = waker.wake();
        };
        let thread = thread::Builder::new().name("resolver".into()).stack_size(STACK_BYTES);
        thread.spawn(work).is_ok()
    })
}

/// Addresses of a name that are tried; each may take a descriptor in each fetch.
pub const ADDRESSES_MAX: usize = 8;
/// How long an answer is used: a DNS record that moves is followed within this time.
pub const REFRESH_MS: u64 = 30_000;
/// Enough for glibc's resolver, which has its buffers on the stack.
const STACK_BYTES: usize = 256 * 1024;
