//! The streams, in the slots of the engine's connections, and their tokens for the poll.

use mio::Token;
use mio::net::TcpStream;

use super::stream::Stream;
use crate::shrink::is_sparse;
use crate::slots::ConnId;

/// Streams by [`ConnId`].
#[derive(Default)]
pub struct StreamTable {
    by_slot: Vec<Option<(u32, Stream<TcpStream>)>>,
    /// How many there are.
    count: usize,
}

impl StreamTable {
    /// Stores a stream. The slot is free.
    pub fn insert(&mut self, id: ConnId, stream: Stream<TcpStream>) {
        let slot = id.slot as usize;
        if slot >= self.by_slot.len() {
            self.by_slot.resize_with(slot + 1, || None);
        }
        debug_assert!(self.by_slot[slot].is_none());
        self.by_slot[slot] = Some((id.generation, stream));
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The stream under `id`; `None` if it was removed, even if another has the slot.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Stream<TcpStream>> {
        match self.by_slot.get_mut(id.slot as usize) {
            Some(Some((generation, stream))) if *generation == id.generation => Some(stream),
            _ => None,
        }
    }

    /// The stream of a token, if it is still there.
    pub fn of_token(&mut self, token: Token) -> Option<(ConnId, &mut Stream<TcpStream>)> {
        let slot = token.0 & HALF_MASK;
        let (generation, stream) = self.by_slot.get_mut(slot)?.as_mut()?;
        let id = ConnId { slot: slot as u32, generation: *generation };
        (token_of(id) == token).then_some((id, stream))
    }

    /// Takes a stream out; dropping it closes it. After a flood memory is given back, up to the
    /// highest slot in use.
    pub fn remove(&mut self, id: ConnId) -> Option<Stream<TcpStream>> {
        self.get_mut(id)?;
        let removed = self.by_slot[id.slot as usize].take();
        self.count -= 1;
        if is_sparse(self.count, self.by_slot.len()) {
            let used = self.by_slot.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            self.by_slot.truncate(used);
            self.by_slot.shrink_to_fit();
        }
        removed.map(|(_, stream)| stream)
    }
}

/// Slot and generation in one word: with 32-bit words 16 bits each.
pub fn token_of(id: ConnId) -> Token {
    Token(((id.generation as usize & HALF_MASK) << HALF_BITS) | id.slot as usize)
}

const HALF_BITS: u32 = usize::BITS / 2;
const HALF_MASK: usize = (1 << HALF_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use mio::net::TcpListener;

    use crate::engine::UpstreamId;

    #[test]
    fn a_token_finds_only_its_own_stream() {
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let connect = || {
            let socket = TcpStream::connect(address).expect("a socket");
            Stream::connected(socket, None, UpstreamId::Patroni)
        };
        let mut streams = StreamTable::default();
        let previous = ConnId { slot: 3, generation: 7 };
        streams.insert(previous, connect());
        assert_eq!(streams.of_token(token_of(previous)).map(|found| found.0), Some(previous));
        assert!(streams.remove(previous).is_some() && streams.remove(previous).is_none());
        let next = ConnId { slot: 3, generation: 8 };
        streams.insert(next, connect());
        assert!(streams.of_token(token_of(previous)).is_none());
        assert!(streams.get_mut(previous).is_none() && streams.get_mut(next).is_some());
    }
}
