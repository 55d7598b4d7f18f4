//! The timer wheel: no clock, no cancelling.
//!
//! One level of 10 ms slots with a bitmap over them: scheduling takes a few instructions, finding
//! the next deadline two lookups, and nothing ticks while nothing is due. Each item keeps its
//! deadline: one beyond the horizon is put back when its slot is reached, so nothing fires early.
//! An item whose deadline moves later stays where it is; its owner schedules it again when it
//! fires.

use crate::shrink::is_sparse;
use crate::time::Time;

/// Items by deadline.
#[derive(Debug)]
pub struct Wheel<T> {
    /// First node of each slot's list, or `NONE`.
    heads: Box<[u32]>,
    /// Bit set: the slot has a list.
    occupied: [u64; WORDS],
    /// Bit set: the word of `occupied` is not zero.
    occupied_words: u64,
    nodes: Vec<Node<T>>,
    /// First of the unused nodes, or `NONE`.
    unused: u32,
    /// Nodes in use.
    count: usize,
    /// No tick before this one has items.
    cursor_tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node<T> {
    item: T,
    at: Time,
    next: u32,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel at time zero.
    pub fn new() -> Self {
        Wheel {
            heads: vec![NONE; SLOTS].into(),
            occupied: [0; WORDS],
            occupied_words: 0,
            nodes: Vec::new(),
            unused: NONE,
            count: 0,
            cursor_tick: 0,
        }
    }

    /// Makes [`Wheel::pop`] return `item` within [`TICK_MS`] after `at`, never before.
    pub fn schedule(&mut self, at: Time, item: T) {
        let horizon_tick = self.cursor_tick + (SLOTS as u64 - 1);
        let tick = at.as_ms().div_ceil(TICK_MS).clamp(self.cursor_tick, horizon_tick);
        let slot = slot_of(tick);
        let node = Node { item, at, next: self.heads[slot] };
        self.heads[slot] = self.store(node);
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.occupied_words |= 1 << (slot / 64);
    }

    /// Takes out one item whose deadline has passed.
    pub fn pop(&mut self, now: Time) -> Option<T> {
        let now_tick = now.as_ms() / TICK_MS;
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= now_tick) {
            self.cursor_tick = tick;
            let Node { item, at, .. } = self.take(slot_of(tick));
            if at <= now {
                return Some(item);
            }
            self.schedule(at, item); // the deadline was beyond the horizon
        }
        self.cursor_tick = self.cursor_tick.max(now_tick);
        None
    }

    /// When to call [`Wheel::pop`] next, at the latest every 41 s; `None`: nothing is scheduled.
    pub fn next(&self) -> Option<Time> {
        self.next_tick().map(|tick| Time::from_ms(tick * TICK_MS))
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.occupied_words == 0
    }

    fn store(&mut self, node: Node<T>) -> u32 {
        self.count += 1;
        if self.unused == NONE {
            self.nodes.push(node);
            return u32::try_from(self.nodes.len() - 1).expect("fewer timers than descriptors");
        }
        let index = self.unused;
        self.unused = std::mem::replace(&mut self.nodes[index as usize], node).next;
        index
    }

    fn take(&mut self, slot: usize) -> Node<T> {
        let index = self.heads[slot];
        let node = self.nodes[index as usize];
        self.heads[slot] = node.next;
        self.nodes[index as usize].next = self.unused;
        self.unused = index;
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            if self.occupied[slot / 64] == 0 {
                self.occupied_words &= !(1 << (slot / 64));
            }
        }
        self.count -= 1;
        if is_sparse(self.count, self.nodes.len()) {
            self.compact();
        }
        node
    }

    /// Gives back the memory of a flood of timers.
    fn compact(&mut self) {
        let mut nodes = Vec::with_capacity(self.count);
        for head in self.heads.iter_mut().filter(|head| **head != NONE) {
            let mut index = std::mem::replace(head, nodes.len() as u32);
            while index != NONE {
                let node = self.nodes[index as usize];
                index = node.next;
                let moved = nodes.len() as u32 + 1;
                nodes.push(Node { next: if index == NONE { NONE } else { moved }, ..node });
            }
        }
        (self.nodes, self.unused) = (nodes, NONE);
    }

    /// The first tick at or after the cursor that has items: the cursor's word from its bit on,
    /// then the following words around the wheel, then the lower bits of the cursor's word.
    fn next_tick(&self) -> Option<u64> {
        let start = slot_of(self.cursor_tick);
        let (word, bit) = (start / 64, start % 64);
        let here = self.occupied[word] >> bit;
        let slot = if here != 0 {
            start + here.trailing_zeros() as usize
        } else {
            let later = self.occupied_words.rotate_right(word as u32) & !1;
            let turns = if later != 0 { later.trailing_zeros() as usize } else { WORDS };
            let next_word = (word + turns) % WORDS;
            if self.occupied[next_word] == 0 {
                return None;
            }
            next_word * 64 + self.occupied[next_word].trailing_zeros() as usize
        };
        let ahead = (slot + SLOTS - start) % SLOTS;
        Some(self.cursor_tick + ahead as u64)
    }
}

impl<T: Copy> Default for Wheel<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn slot_of(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

/// A timer fires at most this much after its deadline.
pub const TICK_MS: u64 = 10;
/// 41 s: longer than the most common long timer, the 30 s of an idle connection.
const SLOTS: usize = 4096;
const WORDS: usize = SLOTS / 64;
const NONE: u32 = u32::MAX;

const _: () = assert!(WORDS == 64, "one word of summary bits");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shrink::CAPACITY_KEPT;

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    fn drain(wheel: &mut Wheel<u64>, now: Time) -> Vec<u64> {
        let mut fired: Vec<u64> = std::iter::from_fn(|| wheel.pop(now)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn after_a_flood_new_timers_fit_in() {
        let mut wheel = Wheel::new();
        for item in 0..5_000 {
            wheel.schedule(Time::from_ms(1_000 + item), item);
        }
        let mut popped = 0;
        while wheel.pop(Time::from_ms(5_900)).is_some() {
            popped += 1;
        }
        for item in 5_000..6_000 {
            wheel.schedule(Time::from_ms(6_100), item);
        }
        while wheel.pop(Time::from_ms(7_000)).is_some() {
            popped += 1;
        }
        assert_eq!((popped, wheel.len()), (6_000, 0));
    }

    #[test]
    fn fires_at_the_tick_after_its_deadline_and_never_before() {
        for ms in [1, 9, 10, 11, 20, 635, 640, 5_000, 40_949] {
            let mut wheel = Wheel::new();
            wheel.schedule(at(ms), 7);
            let due = wheel.next().expect("one is scheduled");
            assert!(due >= at(ms) && due < at(ms + TICK_MS), "{ms}: {due:?}");
            assert_eq!(wheel.pop(at(ms - 1)), None, "{ms}");
            assert_eq!(wheel.pop(due), Some(7), "{ms}");
            assert_eq!((wheel.pop(due), wheel.next(), wheel.len()), (None, None, 0));
        }
    }

    #[test]
    fn a_past_deadline_fires_at_once() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.pop(at(1_000_003)), None);
        wheel.schedule(at(5), 1);
        wheel.schedule(at(1_000_000), 2);
        assert_eq!(drain(&mut wheel, at(1_000_003)), [1, 2]);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_never_fires_early() {
        let mut wheel = Wheel::new();
        let deadline = at(100_000);
        wheel.schedule(deadline, 1);
        let mut wake_ups = 0;
        while wheel.next().expect("one is scheduled") < deadline {
            wake_ups += 1;
            assert_eq!(wheel.pop(wheel.next().expect("one is scheduled")), None);
        }
        assert_eq!((wake_ups, wheel.pop(deadline), wheel.next()), (2, Some(1), None));
    }

    #[test]
    fn after_a_flood_memory_is_given_back_and_nothing_is_lost() {
        let mut wheel = Wheel::new();
        for item in 0..10_060 {
            wheel.schedule(at(if item < 10_000 { item / 2 } else { item }), item);
        }
        assert_eq!(drain(&mut wheel, at(5_000)), (0..10_000).collect::<Vec<_>>());
        assert!(wheel.nodes.capacity() <= CAPACITY_KEPT, "{}", wheel.nodes.capacity());
        wheel.schedule(at(10_030), 10_060);
        assert_eq!(drain(&mut wheel, at(20_000)), (10_000..=10_060).collect::<Vec<_>>());
    }

    #[test]
    fn memory_is_given_back_when_less_than_an_eighth_is_used() {
        for (most, fewest) in [(4_096, 512), (512, 0)] {
            let mut wheel = Wheel::new();
            for item in 0..most {
                wheel.schedule(at(0), item);
            }
            while wheel.len() > fewest {
                wheel.pop(at(0)).expect("an item");
                assert_eq!(wheel.nodes.len(), most, "with {}", wheel.len());
            }
            if wheel.pop(at(0)).is_some() {
                assert_eq!((wheel.nodes.len(), wheel.len()), (fewest - 1, fewest - 1));
            }
        }
    }

    /// Compares with a plain list, from a fixed seed, over several rounds of the wheel.
    #[test]
    fn agrees_with_a_list() {
        let mut random = 42u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let mut wheel = Wheel::new();
        let mut list: Vec<(u64, u64)> = Vec::new();
        let mut now = 0;
        for item in 0..20_000 {
            let ms = now + [next(100), next(5_000), next(40_000)][next(3) as usize];
            wheel.schedule(at(ms), item);
            list.push((ms.div_ceil(TICK_MS) * TICK_MS, item));
            if next(4) == 0 {
                now += [next(20), next(500), next(20_000)][next(3) as usize];
                let mut due: Vec<u64> =
                    list.iter().filter(|(ms, _)| *ms <= now).map(|(_, item)| *item).collect();
                list.retain(|(ms, _)| *ms > now);
                due.sort_unstable();
                assert_eq!(drain(&mut wheel, at(now)), due, "at {now}");
                let earliest = list.iter().map(|(ms, _)| at(*ms)).min();
                assert_eq!(wheel.next(), earliest);
                assert_eq!((wheel.len(), wheel.is_empty()), (list.len(), list.is_empty()));
            }
        }
    }
}
