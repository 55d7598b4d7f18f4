//! Connects to an upstream: its addresses are tried in turn, the next one while the previous one
//! has not answered yet (RFC 8305, "Happy Eyeballs", section 5). The first that connects is used.
//!
//! The address that connected last is tried first. If it refuses and the addresses are of one
//! server, the upstream is gone, not silent: whether a stale answer may be served must not depend
//! on what other addresses do.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use log::debug;
use mio::Token;

use super::resolver::{ADDRESSES_MAX, Lookup, Resolver};
use super::sockets::connect_failure;
use super::stream_table::token_of;
use crate::answer::AddressId;
use crate::cache::PATIENCE_MS;
use crate::failure::Failure;
use crate::slots::ConnId;
use crate::time::Time;

/// Makes the connections of one upstream's fetches.
pub struct Connector<D: Dial> {
    servers: Servers,
    dialer: D,
    lookup: Lookup,
    /// One for each host.
    resolvers: Vec<Resolver>,
    delays: Delays,
    /// The address that connected last, or the one after it. Ignored unless a host has this
    /// address.
    preferred: Option<SocketAddr>,
    attempts: Vec<Attempt<D::Socket>>,
    ids: AddressIds,
}

/// The servers at an upstream's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One: if the address that connected last refuses, the server is gone.
    One,
    /// Several, and any of them will do.
    Any,
}

/// Obtains sockets; a test has its own.
pub trait Dial {
    /// A socket whose connection is being made.
    type Socket;

    /// Begins to connect. The poll reports the socket's events with the token of `id`.
    fn dial(&mut self, address: SocketAddr, id: ConnId) -> io::Result<Self::Socket>;

    /// The outcome of the connect, if there is one.
    fn outcome(&self, socket: &Self::Socket) -> Option<Result<(), Failure>>;
}

/// A connection that was made.
pub struct Connected<S> {
    /// The socket, registered with the poll.
    pub socket: S,
    /// The address it leads to.
    pub address: AddressId,
    /// The host that has this address.
    pub host: Rc<str>,
}

/// How an attempt has ended.
pub type Outcome<S> = Result<Connected<S>, Failure>;

/// The last [`ADDRESS_IDS_MAX`] addresses that connected, the latest first. An address that has
/// left the list and comes back counts as another one.
#[derive(Default)]
struct AddressIds {
    known: VecDeque<(SocketAddr, AddressId)>,
    next: u32,
}

/// The connection of one fetch. There are at most `backend.connections`.
struct Attempt<S> {
    id: ConnId,
    /// `None`: the name is being resolved.
    race: Option<Race<S>>,
}

/// An address and the host that has it.
#[derive(Clone)]
struct Endpoint {
    address: SocketAddr,
    host: Rc<str>,
}

/// The addresses of one attempt, and the sockets that are connecting to them.
struct Race<S> {
    /// The first address; if it refuses, the others have little time. `None`: any address may
    /// refuse.
    decisive: Option<SocketAddr>,
    untried: VecDeque<Endpoint>,
    sockets: Vec<(Endpoint, S)>,
    has_event: bool,
    /// When the next address is tried, even if no other has failed.
    next_at: Time,
    /// When `decisive` refused.
    refused_at: Option<Time>,
    /// The failure of the last address that failed.
    failure: Failure,
}

/// How long the race waits; less than usual if the fetch's timeout is short.
#[derive(Clone, Copy)]
struct Delays {
    /// The wait for an address before the next one is tried as well.
    next_ms: u64,
    /// The wait for the other addresses after the preferred one has refused.
    refused_ms: u64,
}

impl<D: Dial> Connector<D> {
    /// A connector without hosts and attempts.
    pub fn new(servers: Servers, lookup: Lookup, dialer: D) -> Self {
        Connector {
            servers,
            dialer,
            lookup,
            resolvers: Vec::new(),
            delays: Delays::within(0),
            preferred: None,
            attempts: Vec::new(),
            ids: AddressIds::default(),
        }
    }

    /// Sets hosts, ports and the timeout of a whole fetch, for attempts to come.
    pub fn configure<'a>(
        &mut self,
        hosts: impl IntoIterator<Item = (&'a str, u16)>,
        timeout_ms: u64,
    ) {
        let mut count = 0;
        for (place, (host, port)) in hosts.into_iter().enumerate() {
            match self.resolvers.get_mut(place) {
                Some(resolver) => resolver.set_host(host, port),
                None => self.resolvers.push(Resolver::new(host, port, Rc::clone(&self.lookup))),
            }
            count = place + 1;
        }
        self.resolvers.truncate(count);
        self.delays = Delays::within(timeout_ms);
    }

    /// Begins a connection; [`Connector::advance`] returns its outcome.
    pub fn connect(&mut self, now: Time, id: ConnId) {
        self.resolvers.iter_mut().for_each(|resolver| resolver.refresh(now));
        self.attempts.push(Attempt { id, race: None });
    }

    /// Records an event of a socket; [`Connector::advance`] handles it.
    pub fn mark(&mut self, token: Token) {
        for attempt in &mut self.attempts {
            if let Some(race) = attempt.race.as_mut().filter(|_| token_of(attempt.id) == token) {
                race.has_event = true;
            }
        }
    }

    /// Takes over the addresses that the resolver has found.
    pub fn take_addresses(&mut self, now: Time) {
        self.resolvers.iter_mut().for_each(|resolver| resolver.take_answers(now));
    }

    /// Whether an attempt has not ended.
    pub fn is_connecting(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Continues all attempts. Returns one that has ended; to be called until there is none.
    pub fn advance(&mut self, now: Time) -> Option<(ConnId, Outcome<D::Socket>)> {
        for place in 0..self.attempts.len() {
            if let Some(outcome) = self.step(now, place) {
                let id = self.attempts.remove(place).id;
                return Some((id, outcome));
            }
        }
        None
    }

    /// Drops an attempt that the fetch's deadline has ended. A connection that was returned is not
    /// affected.
    pub fn give_up(&mut self, id: ConnId) {
        let Some(place) = self.attempts.iter().position(|attempt| attempt.id == id) else { return };
        if self.attempts.remove(place).race.is_some() {
            self.resolve();
        }
    }

    /// The address that connected last gave no usable answer: the one after it is tried first.
    pub fn next_address(&mut self) {
        let endpoints = self.endpoints();
        let is_in_use = |endpoint: &Endpoint| Some(endpoint.address) == self.preferred;
        if let Some(place) = endpoints.iter().position(is_in_use) {
            self.preferred = Some(endpoints[(place + 1) % endpoints.len()].address);
        }
    }

    /// When to call [`Connector::advance`] next, if no event comes before.
    pub fn next_deadline(&self) -> Option<Time> {
        let races = self.attempts.iter().filter_map(|attempt| attempt.race.as_ref());
        races.filter_map(|race| race.deadline(self.delays)).min()
    }

    fn step(&mut self, now: Time, place: usize) -> Option<Outcome<D::Socket>> {
        if self.attempts[place].race.is_none() {
            let endpoints = self.endpoints();
            if endpoints.is_empty() {
                let is_resolving = self.resolvers.iter().any(Resolver::is_resolving);
                return (!is_resolving).then_some(Err(Failure::Unresolved));
            }
            let race = Race::new(endpoints, self.preferred, self.servers);
            self.attempts[place].race = Some(race);
        }
        let Attempt { id, race } = &mut self.attempts[place];
        match race.as_mut()?.step(now, *id, &mut self.dialer, self.delays)? {
            Ok((Endpoint { address, host }, socket)) => {
                let id = self.ids.of(address);
                if self.preferred.replace(address) != Some(address) {
                    debug!("{}: connected to {address}", self.servers.name());
                }
                Some(Ok(Connected { socket, address: id, host }))
            }
            Err(why) => {
                self.resolve();
                Some(Err(why))
            }
        }
    }

    fn resolve(&mut self) {
        self.resolvers.iter_mut().for_each(Resolver::resolve);
    }

    /// Each address once: the first one of each host, then the second ones, and so on.
    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for rank in 0..ADDRESSES_MAX {
            for resolver in &self.resolvers {
                let Some(&address) = resolver.addresses().get(rank) else { continue };
                if endpoints.iter().all(|known| known.address != address) {
                    endpoints.push(Endpoint { address, host: Rc::clone(resolver.host()) });
                }
            }
        }
        endpoints
    }
}

impl Servers {
    fn name(self) -> &'static str {
        match self {
            Servers::One => "patroni",
            Servers::Any => "dcs",
        }
    }
}

impl<S> Race<S> {
    /// Begins with the preferred address, if there is one. The others follow in their order; those
    /// of several servers from there on, so that each in turn comes first.
    fn new(endpoints: Vec<Endpoint>, preferred: Option<SocketAddr>, servers: Servers) -> Self {
        let mut untried = VecDeque::from(endpoints);
        let place = untried.iter().position(|endpoint| Some(endpoint.address) == preferred);
        match servers {
            Servers::One => {
                let first = place.and_then(|place| untried.remove(place));
                first.into_iter().for_each(|first| untried.push_front(first));
            }
            Servers::Any => untried.rotate_left(place.unwrap_or(0)),
        }
        Race {
            decisive: preferred.filter(|_| servers == Servers::One && place.is_some()),
            untried,
            sockets: Vec::new(),
            has_event: false,
            next_at: Time::ZERO,
            refused_at: None,
            failure: Failure::Unreachable,
        }
    }

    /// Looks at the sockets after an event and tries the addresses that are due.
    fn step(
        &mut self,
        now: Time,
        id: ConnId,
        dialer: &mut impl Dial<Socket = S>,
        delays: Delays,
    ) -> Option<Result<(Endpoint, S), Failure>> {
        let tried_before = self.sockets.len();
        if std::mem::take(&mut self.has_event)
            && let Some(connected) = self.check_sockets(now, dialer)
        {
            return Some(Ok(connected));
        }
        let mut is_due = self.sockets.len() < tried_before || now >= self.next_at;
        while is_due || self.sockets.is_empty() || self.refused_at.is_some() {
            let Some(endpoint) = self.untried.pop_front() else { break };
            match dialer.dial(endpoint.address, id) {
                Ok(socket) => {
                    self.sockets.push((endpoint, socket));
                    self.next_at = now.plus_ms(delays.next_ms);
                    is_due = false;
                }
                Err(error) => self.fail(now, endpoint.address, connect_failure(&error)),
            }
        }
        let is_late = |at: Time| now.ms_since(at) >= delays.refused_ms;
        if self.refused_at.is_some_and(is_late) || self.sockets.is_empty() {
            return Some(Err(self.failure));
        }
        None
    }

    fn check_sockets(
        &mut self,
        now: Time,
        dialer: &impl Dial<Socket = S>,
    ) -> Option<(Endpoint, S)> {
        let mut place = 0;
        while place < self.sockets.len() {
            match dialer.outcome(&self.sockets[place].1) {
                None => place += 1,
                Some(Ok(())) => return Some(self.sockets.remove(place)),
                Some(Err(why)) => {
                    let (endpoint, _) = self.sockets.remove(place);
                    self.fail(now, endpoint.address, why);
                }
            }
        }
        None
    }

    /// One address failed. A refusal by the decisive one is the outcome unless another connects.
    fn fail(&mut self, now: Time, address: SocketAddr, why: Failure) {
        if Some(address) == self.decisive && why == Failure::Refused {
            self.refused_at = Some(now);
        }
        self.failure = if self.refused_at.is_some() { Failure::Refused } else { why };
    }

    fn deadline(&self, delays: Delays) -> Option<Time> {
        match self.refused_at {
            Some(at) => Some(at.plus_ms(delays.refused_ms)),
            None => (!self.untried.is_empty()).then_some(self.next_at),
        }
    }
}

impl Delays {
    /// [`ADDRESSES_MAX`] addresses are tried, and a refusal is reported, before a fetch ends by
    /// `timeout_ms`.
    fn within(timeout_ms: u64) -> Self {
        Delays {
            next_ms: NEXT_ADDRESS_MS.min(timeout_ms / ADDRESSES_MAX as u64),
            refused_ms: REFUSED_MS.min(timeout_ms / 2),
        }
    }
}

impl AddressIds {
    fn of(&mut self, address: SocketAddr) -> AddressId {
        let place = self.known.iter().position(|(known, _)| *known == address);
        let id = place.and_then(|place| self.known.remove(place)).map(|(_, id)| id);
        let id = id.unwrap_or_else(|| {
            self.next = self.next.wrapping_add(1);
            AddressId(self.next)
        });
        self.known.truncate(ADDRESS_IDS_MAX - 1);
        self.known.push_front((address, id));
        id
    }
}

/// RFC 8305, section 5: the recommended Connection Attempt Delay.
const NEXT_ADDRESS_MS: u64 = 250;
/// Enough for a node's other addresses, which are on the same network and answer a SYN sooner.
const REFUSED_MS: u64 = 200;
/// A limit, because a name may change its addresses for ever.
const ADDRESS_IDS_MAX: usize = 64;

const _: () = assert!(REFUSED_MS < PATIENCE_MS, "else a stale answer is served as if silent");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::resolver::{Answer, REFRESH_MS};
    use std::cell::RefCell;
    use std::sync::mpsc::Sender;

    /// What an address does with a SYN.
    #[derive(Clone, Copy, Debug)]
    enum Peer {
        ConnectsAfter(u64),
        RefusesAfter(u64),
        /// No route: an error at once.
        Unreachable,
        /// Never answers.
        Swallows,
    }
    use Peer::*;

    /// A network in virtual time: the last byte of an address says which peer it is.
    #[derive(Default)]
    struct Network {
        now: u64,
        peers: Vec<Peer>,
        dialed: Vec<(u64, u8)>,
    }

    #[derive(Clone, Default)]
    struct Dialer(Rc<RefCell<Network>>);

    impl Dial for Dialer {
        /// When it answers, and what.
        type Socket = Option<(u64, Result<(), Failure>)>;

        fn dial(&mut self, address: SocketAddr, _: ConnId) -> io::Result<Self::Socket> {
            let mut network = self.0.borrow_mut();
            let (now, place) = (network.now, place(address));
            network.dialed.push((now, place));
            match network.peers[usize::from(place)] {
                ConnectsAfter(ms) => Ok(Some((now + ms, Ok(())))),
                RefusesAfter(ms) => Ok(Some((now + ms, Err(Failure::Refused)))),
                Unreachable => Err(io::ErrorKind::NetworkUnreachable.into()),
                Swallows => Ok(None),
            }
        }

        fn outcome(&self, socket: &Self::Socket) -> Option<Result<(), Failure>> {
            socket.filter(|(at, _)| *at <= self.0.borrow().now).map(|(_, outcome)| outcome)
        }
    }

    fn place(address: SocketAddr) -> u8 {
        address.port() as u8
    }

    fn addresses(places: &[u8]) -> Vec<SocketAddr> {
        places.iter().map(|place| ([192, 0, 2, 1], u16::from(*place)).into()).collect()
    }

    /// A connector in a network, and the addresses that its name has.
    struct Scene {
        network: Rc<RefCell<Network>>,
        name: Rc<RefCell<Vec<SocketAddr>>>,
        lookups: Rc<RefCell<u32>>,
        connector: Connector<Dialer>,
        fetches: u32,
    }

    /// What a fetch came to, and after how many milliseconds.
    type Came = (Result<u8, Failure>, u64);

    impl Scene {
        fn new(timeout_ms: u64, peers: &[Peer]) -> Scene {
            let places: Vec<u8> = (0..peers.len() as u8).collect();
            Scene::with_name(timeout_ms, peers, &places)
        }

        /// The name has the addresses of these peers; that is known already.
        fn with_name(timeout_ms: u64, peers: &[Peer], places: &[u8]) -> Scene {
            let dialer = Dialer::default();
            dialer.0.borrow_mut().peers = peers.to_vec();
            let name = Rc::new(RefCell::new(addresses(places)));
            let (known, lookups) = (Rc::clone(&name), Rc::new(RefCell::new(0)));
            let counted = Rc::clone(&lookups);
            let lookup = Rc::new(move |host, port, answers: Sender<Answer>| {
                *counted.borrow_mut() += 1;
                answers.send((host, port, known.borrow().clone())).is_ok()
            });
            let network = Rc::clone(&dialer.0);
            let mut connector = Connector::new(Servers::One, lookup, dialer);
            connector.configure([("patroni", 8008)], timeout_ms);
            connector.take_addresses(Time::ZERO);
            Scene { network, name, lookups, connector, fetches: 0 }
        }

        /// Several servers: the digits of a host are the peers at its addresses. What the names
        /// have is known already.
        fn with_servers(timeout_ms: u64, peers: &[Peer], hosts: &[&str]) -> Scene {
            let mut scene = Scene::new(timeout_ms, peers);
            let counted = Rc::clone(&scene.lookups);
            let lookup = Rc::new(move |host: String, port, answers: Sender<Answer>| {
                *counted.borrow_mut() += 1;
                let digits: Vec<u8> = host.bytes().map(|digit| digit - b'0').collect();
                answers.send((host, port, addresses(&digits))).is_ok()
            });
            let dialer = Dialer(Rc::clone(&scene.network));
            scene.connector = Connector::new(Servers::Any, lookup, dialer);
            scene.configure(hosts);
            scene
        }

        fn configure(&mut self, hosts: &[&str]) {
            self.connector.configure(hosts.iter().map(|host| (*host, 2379)), TIMEOUT_MS);
            self.wait(0);
        }

        fn set(&mut self, place: u8, peer: Peer) {
            self.network.borrow_mut().peers[usize::from(place)] = peer;
        }

        fn wait(&mut self, ms: u64) {
            self.network.borrow_mut().now += ms;
            self.connector.take_addresses(Time::from_ms(self.network.borrow().now));
        }

        /// Connects and waits for the outcome, or gives up after `timeout_ms`.
        fn fetch(&mut self, timeout_ms: u64) -> Came {
            self.network.borrow_mut().dialed.clear();
            self.fetches += 1;
            let id = ConnId { slot: 0, generation: self.fetches };
            let begun_at = self.network.borrow().now;
            self.connector.connect(Time::from_ms(begun_at), id);
            for elapsed in 0..timeout_ms {
                let now = Time::from_ms(begun_at + elapsed);
                self.network.borrow_mut().now = now.as_ms();
                if elapsed > 0 {
                    self.connector.take_addresses(now); // a lookup takes a moment
                }
                self.connector.mark(token_of(id));
                if let Some((of, outcome)) = self.connector.advance(now) {
                    assert_eq!(of, id);
                    let connected = |connected: Connected<_>| {
                        let known = &self.connector.ids.known;
                        let found = known.iter().find(|(_, id)| *id == connected.address);
                        place(found.expect("it is known").0)
                    };
                    return (outcome.map(connected), elapsed);
                }
            }
            self.connector.give_up(id);
            assert!(self.connector.attempts.is_empty());
            (Err(Failure::TimedOut), timeout_ms)
        }

        /// When each address was tried, since the fetch began.
        fn dialed(&self) -> Vec<(u64, u8)> {
            let network = self.network.borrow();
            let begun_at = network.dialed.first().map_or(0, |(at, _)| *at);
            network.dialed.iter().map(|(at, place)| (at - begun_at, *place)).collect()
        }
    }

    const TIMEOUT_MS: u64 = 3_000;

    #[test]
    #[rustfmt::skip]
    fn addresses_are_tried_in_turn() {
        let refused = Err(Failure::Refused);
        for (peers, came, dialed) in [
            // one address
            (vec![ConnectsAfter(1)], (Ok(0), 1), vec![(0, 0)]),
            (vec![ConnectsAfter(2_000)], (Ok(0), 2_000), vec![(0, 0)]),
            (vec![RefusesAfter(1)], (refused, 1), vec![(0, 0)]),
            (vec![Unreachable], (Err(Failure::Unreachable), 0), vec![(0, 0)]),
            (vec![Swallows], (Err(Failure::TimedOut), 3_000), vec![(0, 0)]),
            // the next one after 250 ms, or at once after a failure
            (vec![Swallows, ConnectsAfter(1)], (Ok(1), 251), vec![(0, 0), (250, 1)]),
            (vec![RefusesAfter(1), ConnectsAfter(1)], (Ok(1), 2), vec![(0, 0), (1, 1)]),
            (vec![Unreachable, ConnectsAfter(1)], (Ok(1), 1), vec![(0, 0), (0, 1)]),
            (vec![Swallows, RefusesAfter(1), ConnectsAfter(1)], (Ok(2), 252),
                vec![(0, 0), (250, 1), (251, 2)]),
            (vec![Swallows, Swallows, ConnectsAfter(1)], (Ok(2), 501),
                vec![(0, 0), (250, 1), (500, 2)]),
            // the first one goes on meanwhile
            (vec![ConnectsAfter(300), Swallows], (Ok(0), 300), vec![(0, 0), (250, 1)]),
            (vec![ConnectsAfter(300), RefusesAfter(1)], (Ok(0), 300), vec![(0, 0), (250, 1)]),
            // no address connects
            (vec![RefusesAfter(1), RefusesAfter(1)], (refused, 2), vec![(0, 0), (1, 1)]),
            (vec![RefusesAfter(1), Swallows], (Err(Failure::TimedOut), 3_000),
                vec![(0, 0), (1, 1)]),
        ] {
            let mut scene = Scene::new(TIMEOUT_MS, &peers);
            assert_eq!((scene.fetch(TIMEOUT_MS), scene.dialed()), (came, dialed), "{peers:?}");
        }
    }

    #[test]
    fn the_address_that_connected_last_is_tried_first() {
        let mut scene = Scene::new(TIMEOUT_MS, &[Swallows, ConnectsAfter(1), ConnectsAfter(1)]);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(1), 251));
        assert_eq!((scene.fetch(TIMEOUT_MS), scene.dialed()), ((Ok(1), 1), vec![(0, 1)]));
        scene.set(1, Swallows);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(2), 501));
        assert_eq!((scene.fetch(TIMEOUT_MS), scene.dialed()), ((Ok(2), 1), vec![(0, 2)]));
    }

    #[test]
    fn a_short_timeout_suffices_for_all_addresses() {
        let mut peers = [Swallows; ADDRESSES_MAX];
        peers[ADDRESSES_MAX - 1] = ConnectsAfter(1);
        let mut scene = Scene::new(100, &peers);
        assert_eq!(scene.fetch(100).0, Ok(ADDRESSES_MAX as u8 - 1));
        scene.set(ADDRESSES_MAX as u8 - 1, RefusesAfter(1));
        assert_eq!(scene.fetch(100), (Err(Failure::Refused), 1 + 50));
    }

    #[test]
    #[rustfmt::skip]
    fn a_refusal_by_the_address_that_answered_last_decides() {
        let refused = |ms| (Err(Failure::Refused), ms);
        for (others, came) in [
            (vec![], refused(1)),
            (vec![Swallows], refused(1 + REFUSED_MS)),
            (vec![Swallows, Swallows, Swallows], refused(1 + REFUSED_MS)),
            (vec![Unreachable], refused(1)),
            (vec![RefusesAfter(5)], refused(6)),
            (vec![RefusesAfter(5), Unreachable], refused(6)),
            // if another connects, it is used
            (vec![ConnectsAfter(1)], (Ok(1), 2)),
            (vec![Swallows, Swallows, ConnectsAfter(100)], (Ok(3), 101)),
            (vec![Swallows, ConnectsAfter(REFUSED_MS + 1)], refused(1 + REFUSED_MS)),
        ] {
            let mut peers = vec![ConnectsAfter(1)];
            peers.extend(&others);
            let mut scene = Scene::new(TIMEOUT_MS, &peers);
            assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
            scene.set(0, RefusesAfter(1));
            assert_eq!(scene.fetch(TIMEOUT_MS), came, "{others:?}");
            if came.0.is_err() {
                assert_eq!(scene.fetch(TIMEOUT_MS), came, "again, {others:?}");
            }
        }
    }

    #[test]
    fn another_address_that_refuses_does_not_make_silence_refused() {
        let mut scene = Scene::new(TIMEOUT_MS, &[ConnectsAfter(1), RefusesAfter(1)]);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
        scene.set(0, Swallows);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Err(Failure::TimedOut), TIMEOUT_MS));
    }

    #[test]
    fn a_name_is_resolved_again_every_30_s_while_fetched() {
        let mut scene = Scene::with_name(TIMEOUT_MS, &[ConnectsAfter(1); 3], &[0]);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
        *scene.name.borrow_mut() = addresses(&[1, 2]);
        scene.wait(REFRESH_MS / 2);
        assert_eq!((scene.fetch(TIMEOUT_MS).0, *scene.lookups.borrow()), (Ok(0), 1));
        scene.wait(REFRESH_MS / 2);
        // the answer is awaited by no fetch
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0));
        assert_eq!((scene.fetch(TIMEOUT_MS).0, *scene.lookups.borrow()), (Ok(1), 2));
        // the previous address is among the addresses again, but not the preferred one
        *scene.name.borrow_mut() = addresses(&[0, 1]);
        scene.wait(REFRESH_MS);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(1));
        assert_eq!((scene.fetch(TIMEOUT_MS).0, *scene.lookups.borrow()), (Ok(1), 3));
    }

    #[test]
    fn a_name_is_resolved_again_after_a_failed_connect() {
        for (peer, failure) in [(RefusesAfter(1), Failure::Refused), (Swallows, Failure::TimedOut)]
        {
            let mut scene = Scene::with_name(TIMEOUT_MS, &[peer, ConnectsAfter(1)], &[0]);
            *scene.name.borrow_mut() = addresses(&[1]);
            assert_eq!(scene.fetch(TIMEOUT_MS).0, Err(failure));
            scene.wait(1);
            assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(1), 1));
        }
    }

    #[test]
    fn a_name_without_addresses_fails_or_keeps_those_it_had() {
        let mut scene = Scene::with_name(TIMEOUT_MS, &[ConnectsAfter(1); 2], &[0]);
        scene.name.borrow_mut().clear();
        scene.connector.configure([("other", 8008)], TIMEOUT_MS);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Err(Failure::Unresolved), 1));
        *scene.name.borrow_mut() = addresses(&[0]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0));
        scene.name.borrow_mut().clear();
        scene.wait(REFRESH_MS);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
        // the answer to a previous name is not used
        scene.connector.configure([("third", 8008)], TIMEOUT_MS);
        *scene.name.borrow_mut() = addresses(&[1]);
        scene.connector.configure([("fourth", 8008)], TIMEOUT_MS);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(1));
    }

    #[test]
    fn the_addresses_of_several_hosts_take_turns() {
        let hosts = ["025", "1", "34"];
        let mut peers = [Swallows; 6];
        peers[5] = ConnectsAfter(1);
        let mut scene = Scene::with_servers(TIMEOUT_MS, &peers, &hosts);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(5));
        let tried: Vec<u8> = scene.dialed().into_iter().map(|(_, place)| place).collect();
        assert_eq!(tried, [0, 1, 3, 2, 4, 5], "the first address of each host comes first");
        // the one that worked is the first from then on, and those after it follow
        scene.set(5, Swallows);
        scene.set(1, ConnectsAfter(1));
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(1));
        assert_eq!(scene.dialed(), [(0, 5), (250, 0), (500, 1)]);
        assert_eq!((scene.fetch(TIMEOUT_MS), scene.dialed()), ((Ok(1), 1), vec![(0, 1)]));
    }

    #[test]
    fn next_address_moves_on_and_comes_round() {
        let mut scene = Scene::with_servers(TIMEOUT_MS, &[ConnectsAfter(1); 3], &["01", "2", "0"]);
        scene.connector.next_address();
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0), "none was in use");
        for place in [2, 1, 0, 2] {
            scene.connector.next_address();
            assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(place), 1));
            assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(place), 1), "it stays");
        }
        let mut scene = Scene::with_servers(TIMEOUT_MS, &[ConnectsAfter(1)], &["0"]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0));
        scene.connector.next_address();
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0), "there is no other");
    }

    #[test]
    fn with_several_servers_one_that_refuses_is_passed_over() {
        let peers = [ConnectsAfter(1), Swallows, ConnectsAfter(REFUSED_MS + 1)];
        let mut scene = Scene::with_servers(TIMEOUT_MS, &peers, &["0", "1", "2"]);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(0), 1));
        scene.set(0, RefusesAfter(1));
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(2), 1 + 250 + REFUSED_MS + 1));
        assert_eq!(scene.dialed(), [(0, 0), (1, 1), (251, 2)], "one after the other");
    }

    #[test]
    fn a_connection_names_its_host() {
        let mut scene = Scene::with_servers(TIMEOUT_MS, &[ConnectsAfter(0); 2], &["0", "1"]);
        for host in ["0", "1", "0"] {
            let id = ConnId { slot: 1, generation: 0 };
            scene.connector.connect(Time::ZERO, id);
            assert!(scene.connector.advance(Time::ZERO).is_none());
            scene.connector.mark(token_of(id));
            let outcome = scene.connector.advance(Time::ZERO).map(|(_, outcome)| outcome);
            let connected = outcome.and_then(Result::ok).expect("a connection");
            assert_eq!(&*connected.host, host);
            scene.connector.next_address();
        }
    }

    #[test]
    fn a_reload_changes_the_hosts() {
        let mut scene = Scene::with_servers(TIMEOUT_MS, &[ConnectsAfter(1); 3], &["0", "1"]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(0));
        scene.configure(&["2"]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(2));
        scene.configure(&["0", "1", "2"]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Ok(2), "the one in use");
        // an address needs no lookup, and is there at once
        let lookups = *scene.lookups.borrow();
        scene.connector.configure([("192.0.2.1", 1)], TIMEOUT_MS);
        assert_eq!((scene.fetch(TIMEOUT_MS).0, *scene.lookups.borrow()), (Ok(1), lookups));
    }

    #[test]
    fn a_name_that_does_not_resolve_delays_no_other_host() {
        // 0 is resolved for ever, 1 has an address, 2 has none
        let lookup = |host: String, port, answers: Sender<Answer>| {
            let places: &[u8] = if host == "1" { &[1] } else { &[] };
            host == "0" || answers.send((host, port, addresses(places))).is_ok()
        };
        let mut scene = Scene::new(TIMEOUT_MS, &[ConnectsAfter(1); 2]);
        let dialer = Dialer(Rc::clone(&scene.network));
        scene.connector = Connector::new(Servers::Any, Rc::new(lookup), dialer);
        scene.configure(&["0", "1"]);
        assert_eq!(scene.fetch(TIMEOUT_MS), (Ok(1), 1));
        scene.configure(&["0", "2"]);
        assert_eq!(scene.fetch(TIMEOUT_MS).0, Err(Failure::TimedOut), "one may have addresses yet");
    }

    #[test]
    fn attempts_end_one_by_one_and_give_up_is_final() {
        let mut scene = Scene::new(TIMEOUT_MS, &[ConnectsAfter(5)]);
        let ids = [1, 2, 3].map(|slot| ConnId { slot, generation: 0 });
        let mut now = Time::ZERO;
        scene.connector.take_addresses(now);
        for id in ids {
            scene.connector.connect(now, id);
        }
        assert!(scene.connector.advance(now).is_none());
        assert_eq!(scene.connector.next_deadline(), None, "there is no other address");
        scene.connector.give_up(ids[1]);
        scene.connector.give_up(ids[1]);
        now = now.plus_ms(5);
        scene.wait(5);
        scene.connector.mark(token_of(ids[1]));
        assert!(scene.connector.advance(now).is_none(), "no event has come");
        for id in [ids[2], ids[0]] {
            scene.connector.mark(token_of(id));
            let ended = scene.connector.advance(now).map(|(id, outcome)| (id, outcome.is_ok()));
            assert_eq!(ended, Some((id, true)));
        }
        assert!(scene.connector.advance(now).is_none());
    }

    #[test]
    fn an_address_keeps_its_identity() {
        let mut ids = AddressIds::default();
        let all = addresses(&[0, 1, 2]);
        let first = ids.of(all[0]);
        assert_ne!(ids.of(all[1]), first);
        for port in 1_000..1_000 + ADDRESS_IDS_MAX as u16 {
            ids.of(([192, 0, 2, 1], port).into());
            assert_eq!(ids.of(all[0]), first, "in use");
            assert!(ids.known.len() <= ADDRESS_IDS_MAX);
        }
    }
}
