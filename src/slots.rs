//! Connections under keys that are not reused: a slab with generations.

use slab::Slab;

use crate::shrink::is_sparse;

/// One connection, of a client or to an upstream. The slot is reused after the connection was
/// closed, the pair is not (until the generation wraps, 4 billion connections later).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Its place; small, dense, reused.
    pub slot: u32,
    /// Differs for each connection that has the slot.
    pub generation: u32,
}

/// Values by [`ConnId`].
#[derive(Debug)]
pub struct Slots<T> {
    slab: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Slots<T> {
    /// No values.
    pub fn new() -> Self {
        Slots { slab: Slab::new(), next_generation: 0 }
    }

    /// Stores `value` under a new key.
    pub fn insert(&mut self, value: T) -> ConnId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let slot = self.slab.insert((generation, value));
        ConnId {
            slot: u32::try_from(slot).expect("fewer connections than descriptors"),
            generation,
        }
    }

    /// The value under `id`; `None` if it was removed, even if another has the slot.
    pub fn get(&self, id: ConnId) -> Option<&T> {
        match self.slab.get(id.slot as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// As [`Slots::get`], mutable.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        match self.slab.get_mut(id.slot as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// Takes a value out and frees its slot. After a flood memory is given back, up to the highest
    /// slot in use.
    pub fn remove(&mut self, id: ConnId) -> Option<T> {
        self.get(id)?;
        let (_, value) = self.slab.remove(id.slot as usize);
        if is_sparse(self.slab.len(), self.slab.capacity()) {
            self.slab.shrink_to_fit();
        }
        Some(value)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// All values, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &T)> {
        self.slab.iter().map(|(slot, (generation, value))| {
            (ConnId { slot: slot as u32, generation: *generation }, value)
        })
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shrink::CAPACITY_KEPT;

    #[test]
    fn a_key_does_not_find_the_next_value_in_its_slot() {
        let mut slots = Slots::new();
        let previous = slots.insert("previous");
        assert_eq!(slots.remove(previous), Some("previous"));
        let next = slots.insert("next");
        assert_eq!(next.slot, previous.slot);
        assert_eq!(slots.get(previous), None);
        assert_eq!(slots.get_mut(previous), None);
        assert_eq!(slots.remove(previous), None);
        assert_eq!(slots.get(next), Some(&"next"));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(next, &"next")]);
    }

    #[test]
    fn memory_is_given_back_when_less_than_an_eighth_is_used() {
        for (most, fewest) in [(4_096, 512), (512, 0)] {
            let mut slots = Slots::new();
            slots.slab.reserve_exact(most);
            let mut ids: Vec<ConnId> = (0..most).map(|number| slots.insert(number)).collect();
            assert_eq!(slots.slab.capacity(), most);
            while slots.slab.len() > fewest {
                slots.remove(ids.pop().expect("an id"));
                assert_eq!(slots.slab.capacity(), most, "with {}", slots.slab.len());
            }
            if let Some(id) = ids.pop() {
                slots.remove(id);
                assert!(slots.slab.capacity() < fewest, "{}", slots.slab.capacity());
            }
        }
    }

    #[test]
    fn after_a_flood_the_memory_is_given_back() {
        let mut slots = Slots::new();
        let first = slots.insert(0);
        let flood: Vec<ConnId> = (1..10_000).map(|number| slots.insert(number)).collect();
        let last = flood[flood.len() - 1];
        for id in &flood[..flood.len() - 1] {
            slots.remove(*id);
        }
        assert_eq!((slots.get(first), slots.get(last)), (Some(&0), Some(&9_999)));
        assert!(slots.slab.capacity() >= 10_000, "the last one holds it");
        slots.remove(last);
        assert!(slots.slab.capacity() <= CAPACITY_KEPT, "{}", slots.slab.capacity());
        // the lowest slot is taken first, so that the end of the next flood frees all again
        let next = slots.insert(10_000);
        assert_eq!((next.slot, slots.get(last), slots.get(next)), (1, None, Some(&10_000)));
    }
}
