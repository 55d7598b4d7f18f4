//! Patroni's name and its addresses. Resolving blocks, so a thread of its own does it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use log::debug;
use mio::Waker;

/// Knows the addresses of one name, and asks for them again when told to.
pub struct Resolver {
    host: String,
    port: u16,
    /// In the order they are tried.
    addresses: Vec<SocketAddr>,
    /// A thread is asking.
    asking: bool,
    waker: Arc<Waker>,
    answers: (Sender<Answer>, Receiver<Answer>),
}

/// A name's addresses, none if it has none. The name tells an answer that a reload has outrun.
type Answer = (String, u16, Vec<SocketAddr>);

impl Resolver {
    /// Knows the addresses at once if the host is one; otherwise asking has begun.
    pub fn new(host: &str, port: u16, waker: Arc<Waker>) -> Resolver {
        let mut resolver = Resolver {
            host: String::new(),
            port: 0,
            addresses: Vec::new(),
            asking: false,
            waker,
            answers: channel(),
        };
        resolver.set_host(host, port);
        resolver
    }

    /// Knows these addresses, and never asks.
    #[cfg(test)]
    pub fn knowing(addresses: Vec<SocketAddr>, waker: Arc<Waker>) -> Resolver {
        let (host, port) = (String::from("127.0.0.1"), 1);
        Resolver { host, port, addresses, asking: false, waker, answers: channel() }
    }

    /// Another name, or the same: what is known of it is asked for anew.
    pub fn set_host(&mut self, host: &str, port: u16) {
        if (self.host.as_str(), self.port) != (host, port) {
            (self.host, self.port) = (host.to_owned(), port);
            self.addresses.clear();
        }
        match self.host.parse::<IpAddr>() {
            Ok(address) => self.addresses = vec![SocketAddr::new(address, self.port)],
            Err(_) => self.ask(),
        }
    }

    /// Has a thread ask, unless one does or the host is an address.
    pub fn ask(&mut self) {
        if self.asking || self.host.parse::<IpAddr>().is_ok() {
            return;
        }
        let (host, port) = (self.host.clone(), self.port);
        let (sender, waker) = (self.answers.0.clone(), Arc::clone(&self.waker));
        let work = move || {
            let addresses = (host.as_str(), port).to_socket_addrs();
            let addresses = addresses.map(Iterator::collect).unwrap_or_default();
            // the daemon may have ended meanwhile
            let _ = sender.send((host, port, addresses));
            let _ = waker.wake();
        };
        let thread = thread::Builder::new().name("resolver".into()).stack_size(STACK_BYTES);
        self.asking = thread.spawn(work).is_ok();
    }

    /// Takes over what the thread found. A name that has no address at the moment keeps those
    /// it had.
    pub fn take_answers(&mut self) {
        while let Ok((host, port, addresses)) = self.answers.1.try_recv() {
            self.asking = false;
            if (host.as_str(), port) != (self.host.as_str(), self.port) {
                self.ask();
            } else if !addresses.is_empty() && addresses != self.addresses {
                debug!("{host} is {addresses:?}");
                self.addresses = addresses;
            }
        }
    }

    /// Is the answer still to come?
    pub fn is_asking(&self) -> bool {
        self.asking
    }

    /// The addresses known at the moment.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Enough for glibc's resolver, which keeps its buffers on the stack.
const STACK_BYTES: usize = 256 * 1024;
