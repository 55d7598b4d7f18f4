//! Resolves an upstream's name. Resolving blocks, so a thread does it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use log::debug;
use mio::Waker;

/// A name and its addresses.
pub struct Resolver {
    host: String,
    port: u16,
    /// In the order of the answer.
    addresses: Vec<SocketAddr>,
    /// Whether a thread is resolving.
    resolving: bool,
    waker: Arc<Waker>,
    answers: (Sender<Answer>, Receiver<Answer>),
}

/// Host, port, addresses; none if the name has none. Host and port tell whether a reload has
/// changed them since.
type Answer = (String, u16, Vec<SocketAddr>);

impl Resolver {
    /// Has the address at once if the host is one; otherwise begins to resolve.
    pub fn new(host: &str, port: u16, waker: Arc<Waker>) -> Resolver {
        let mut resolver = Resolver {
            host: String::new(),
            port: 0,
            addresses: Vec::new(),
            resolving: false,
            waker,
            answers: channel(),
        };
        resolver.set_host(host, port);
        resolver
    }

    /// Has these addresses and never resolves.
    #[cfg(test)]
    pub fn knowing(addresses: Vec<SocketAddr>, waker: Arc<Waker>) -> Resolver {
        let (host, port) = (String::from("127.0.0.1"), 1);
        Resolver { host, port, addresses, resolving: false, waker, answers: channel() }
    }

    /// Sets host and port. A name is resolved again, also if it is the same.
    pub fn set_host(&mut self, host: &str, port: u16) {
        if (self.host.as_str(), self.port) != (host, port) {
            (self.host, self.port) = (host.to_owned(), port);
            self.addresses.clear();
        }
        match self.host.parse::<IpAddr>() {
            Ok(address) => self.addresses = vec![SocketAddr::new(address, self.port)],
            Err(_) => self.resolve(),
        }
    }

    /// Begins to resolve, unless that is in progress or the host is an address.
    pub fn resolve(&mut self) {
        if self.resolving || self.host.parse::<IpAddr>().is_ok() {
            return;
        }
        let (host, port) = (self.host.clone(), self.port);
        let (sender, waker) = (self.answers.0.clone(), Arc::clone(&self.waker));
        let work = move || {
            let addresses = (host.as_str(), port).to_socket_addrs();
            let addresses = addresses.map(Iterator::collect).unwrap_or_default();
            // fails if the daemon has ended
            let _ = sender.send((host, port, addresses));
            let _ = waker.wake();
        };
        let thread = thread::Builder::new().name("resolver".into()).stack_size(STACK_BYTES);
        self.resolving = thread.spawn(work).is_ok();
    }

    /// Takes over what the thread has found. A name that cannot be resolved at the moment keeps
    /// its addresses.
    pub fn take_answers(&mut self) {
        while let Ok((host, port, addresses)) = self.answers.1.try_recv() {
            self.resolving = false;
            if (host.as_str(), port) != (self.host.as_str(), self.port) {
                self.resolve();
            } else if !addresses.is_empty() && addresses != self.addresses {
                debug!("{host} is {addresses:?}");
                self.addresses = addresses;
            }
        }
    }

    /// Whether resolving is in progress.
    pub fn is_resolving(&self) -> bool {
        self.resolving
    }

    /// The addresses; empty before the first answer.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Enough for glibc's resolver, which has its buffers on the stack.
const STACK_BYTES: usize = 256 * 1024;
