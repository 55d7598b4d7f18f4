//! Makes connections to Patroni: each of its addresses in turn, resolving again when none works.

use mio::net::TcpStream;

use super::resolver::Resolver;
use super::stream::connect_failure;
use crate::backend::Failure;
use crate::config::Backend;
use crate::slots::ConnId;

/// Knows where Patroni is, and what was tried for whom.
pub struct Connector {
    resolver: Resolver,
    /// The address to begin with: the one that worked last, or comes after one that did not.
    first: usize,
    attempts: Vec<Attempt>,
}

/// How far a connection has come.
pub enum Progress {
    /// It is being made.
    Connecting(TcpStream),
    /// Patroni's name is being resolved; [`Connector::take_addresses`] names the connection then.
    Resolving,
    /// Every address was tried.
    Failed(Failure),
}

/// A connection that is not made yet. There are as many as fetches at once.
struct Attempt {
    id: ConnId,
    tried_count: usize,
}

impl Connector {
    /// Nothing tried yet.
    pub fn new(resolver: Resolver) -> Self {
        Connector { resolver, first: 0, attempts: Vec::new() }
    }

    /// Patroni is there from now on.
    pub fn set_backend(&mut self, backend: &Backend) {
        self.resolver.set_backend(backend);
    }

    /// Begins a connection.
    pub fn connect(&mut self, id: ConnId) -> Progress {
        self.attempts.push(Attempt { id, tried_count: 0 });
        self.next(id, Failure::Unresolved)
    }

    /// An address did not work, for this reason: goes on with the next.
    pub fn try_next(&mut self, id: ConnId, why: Failure) -> Progress {
        self.skip_address();
        self.next(id, why)
    }

    /// The connection stands.
    pub fn made(&mut self, id: ConnId) {
        self.forget(id);
    }

    /// The connection is not wanted any more, and whatever address it was tried with last has
    /// not answered.
    pub fn give_up(&mut self, id: ConnId) {
        if self.attempts.iter().any(|attempt| attempt.id == id) {
            self.skip_address();
            self.forget(id);
        }
    }

    fn skip_address(&mut self) {
        self.first = self.first.wrapping_add(1);
        self.resolver.ask();
    }

    fn forget(&mut self, id: ConnId) {
        self.attempts.retain(|attempt| attempt.id != id);
    }

    /// The resolver has come back: who waited for it, to be [resumed](Connector::resume).
    pub fn take_addresses(&mut self) -> Vec<ConnId> {
        self.resolver.take_answers();
        let waiting = self.attempts.iter().filter(|attempt| attempt.tried_count == 0);
        waiting.map(|attempt| attempt.id).collect()
    }

    /// Goes on with what the resolver found.
    pub fn resume(&mut self, id: ConnId) -> Progress {
        if self.resolver.addresses().is_empty() {
            self.forget(id);
            return Progress::Failed(Failure::Unresolved);
        }
        self.next(id, Failure::Unresolved)
    }

    fn next(&mut self, id: ConnId, mut why: Failure) -> Progress {
        let addresses = self.resolver.addresses();
        if addresses.is_empty() {
            self.resolver.ask();
            return Progress::Resolving;
        }
        let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.id == id) else {
            return Progress::Failed(why);
        };
        while attempt.tried_count < addresses.len() {
            let address = addresses[self.first % addresses.len()];
            attempt.tried_count += 1;
            match TcpStream::connect(address) {
                Ok(socket) => {
                    // one small write and a read: Nagle has nothing to gain here
                    let _ = socket.set_nodelay(true);
                    return Progress::Connecting(socket);
                }
                Err(error) => {
                    why = connect_failure(&error);
                    self.first = self.first.wrapping_add(1);
                }
            }
        }
        self.forget(id);
        self.resolver.ask();
        Progress::Failed(why)
    }
}
