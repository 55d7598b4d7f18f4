//! Makes connections to Patroni: each of its addresses in turn, resolving again when none works.

use mio::net::TcpStream;

use super::resolver::Resolver;
use super::sockets;
use super::stream::connect_failure;
use crate::failure::Failure;
use crate::slots::ConnId;

/// Knows where Patroni is, and what was tried for whom.
pub struct Connector {
    resolver: Resolver,
    /// The address to begin with, by its place: the one that worked last, or comes after one that
    /// did not.
    first: usize,
    attempts: Vec<Attempt>,
}

/// How far a connection has come.
pub enum Attempted {
    /// It is being connected.
    Connecting(TcpStream),
    /// Patroni's name is being resolved; [`Connector::use_addresses`] names the connection then.
    Resolving,
    /// Every address was tried.
    Failed(Failure),
}

/// A connection that is not connected yet. There are as many as fetches at once.
struct Attempt {
    id: ConnId,
    /// The place of the address it began with. Each goes round by itself, whatever the others find.
    first: usize,
    tried_count: usize,
}

impl Connector {
    /// Nothing tried yet.
    pub fn new(resolver: Resolver) -> Self {
        Connector { resolver, first: 0, attempts: Vec::new() }
    }

    /// Patroni is there from now on.
    pub fn set_host(&mut self, host: &str, port: u16) {
        self.resolver.set_host(host, port);
    }

    /// Begins a connection.
    pub fn connect(&mut self, id: ConnId) -> Attempted {
        self.attempts.push(Attempt { id, first: self.first, tried_count: 0 });
        self.next(id, Failure::Unresolved)
    }

    /// An address did not work, for this reason: goes on with the next.
    pub fn try_next(&mut self, id: ConnId, why: Failure) -> Attempted {
        self.skip_address(id);
        self.next(id, why)
    }

    /// The connection stands.
    pub fn connected(&mut self, id: ConnId) {
        self.first = self.place(id).unwrap_or(self.first);
        self.forget(id);
    }

    /// The connection is not wanted any more, and whatever address it was tried with last has
    /// not answered.
    pub fn give_up(&mut self, id: ConnId) {
        self.skip_address(id);
        self.forget(id);
    }

    /// Who comes next begins behind the address that this one has tried last, unless somebody has
    /// found a better one meanwhile.
    fn skip_address(&mut self, id: ConnId) {
        if let Some(place) = self.place(id) {
            let count = self.resolver.addresses().len();
            // there may be fewer than there were
            if self.first % count == place {
                self.first = (place + 1) % count;
            }
            self.resolver.resolve();
        }
    }

    /// The place of the address that was tried last.
    fn place(&self, id: ConnId) -> Option<usize> {
        let attempt = self.attempts.iter().find(|attempt| attempt.id == id)?;
        let tried_before = attempt.tried_count.checked_sub(1)?;
        (attempt.first + tried_before).checked_rem(self.resolver.addresses().len())
    }

    fn forget(&mut self, id: ConnId) {
        self.attempts.retain(|attempt| attempt.id != id);
    }

    /// The resolver has come back: who waited for it, to be [resumed](Connector::resume).
    pub fn use_addresses(&mut self) -> Vec<ConnId> {
        self.resolver.take_answers();
        let waiting = self.attempts.iter().filter(|attempt| attempt.tried_count == 0);
        waiting.map(|attempt| attempt.id).collect()
    }

    /// Goes on with what the resolver found.
    pub fn resume(&mut self, id: ConnId) -> Attempted {
        if self.resolver.is_resolving() {
            return Attempted::Resolving; // what came was of the former name
        }
        if self.resolver.addresses().is_empty() {
            self.forget(id);
            return Attempted::Failed(Failure::Unresolved);
        }
        self.next(id, Failure::Unresolved)
    }

    fn next(&mut self, id: ConnId, mut why: Failure) -> Attempted {
        let addresses = self.resolver.addresses();
        if addresses.is_empty() {
            self.resolver.resolve();
            return Attempted::Resolving;
        }
        let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.id == id) else {
            return Attempted::Failed(why);
        };
        while attempt.tried_count < addresses.len() {
            let place = (attempt.first + attempt.tried_count) % addresses.len();
            attempt.tried_count += 1;
            match sockets::connect(addresses[place]) {
                Ok(socket) => return Attempted::Connecting(socket),
                Err(error) => why = connect_failure(&error),
            }
        }
        self.forget(id);
        self.resolver.resolve();
        Attempted::Failed(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::net::TcpListener;

    /// Where nobody listens, and where somebody does.
    fn connector(listener: &TcpListener) -> Connector {
        let gone = TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a listener");
        let addresses = [&gone, listener].map(|socket| socket.local_addr().expect("its address"));
        let poll = mio::Poll::new().expect("a poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        Connector::new(Resolver::knowing(addresses.to_vec(), waker.into()))
    }

    fn connects(progress: Attempted) -> bool {
        match progress {
            Attempted::Connecting(socket) => socket.peer_addr().is_ok(),
            Attempted::Failed(why) => panic!("{why:?}"),
            Attempted::Resolving => panic!("the addresses are known"),
        }
    }

    #[test]
    fn each_tries_every_address_whatever_others_find() {
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a listener");
        let mut connector = connector(&listener);
        let ids = [0, 1, 2].map(|slot| ConnId { slot, generation: 0 });
        for id in &ids[..2] {
            assert!(!connects(connector.connect(*id)));
        }
        for id in &ids[..2] {
            assert!(connects(connector.try_next(*id, Failure::Refused)), "{id:?}");
        }
        ids[..2].iter().for_each(|id| connector.connected(*id));
        assert!(connects(connector.connect(ids[2])), "the one that worked last comes first");
        assert!(!connects(connector.try_next(ids[2], Failure::Reset)));
        let progress = connector.try_next(ids[2], Failure::Refused);
        assert!(matches!(progress, Attempted::Failed(Failure::Refused)), "there is no third");
        assert!(connector.attempts.is_empty());
    }

    #[test]
    fn who_gives_up_leaves_the_next_address_to_the_next() {
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a listener");
        let mut connector = connector(&listener);
        let ids = [0, 1].map(|slot| ConnId { slot, generation: 0 });
        assert!(!connects(connector.connect(ids[0])));
        connector.give_up(ids[0]);
        connector.give_up(ids[0]);
        assert!(connects(connector.connect(ids[1])));
    }

    #[test]
    fn fewer_addresses_than_before_are_gone_through_as_well() {
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a listener");
        let mut connector = connector(&listener);
        let ids = [0, 1].map(|slot| ConnId { slot, generation: 0 });
        connector.first = 2; // the last of three that there were
        assert!(!connects(connector.connect(ids[0])));
        connector.give_up(ids[0]);
        assert!(connects(connector.connect(ids[1])));
    }
}
