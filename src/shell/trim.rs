//! Gives the memory of a flood back to the system, which the allocator would keep.
//!
//! What ten thousand connections needed is free when they have gone, but scattered: a few small
//! blocks in use above it keep it resident (measured: half a megabyte of the daemon's four).

/// Notices that a flood is over.
#[derive(Debug, Default)]
pub struct MemoryTrim {
    /// The most that was held at once since memory was last given back.
    most: usize,
}

impl MemoryTrim {
    /// So many connections and timers are `held` now. After a flood of them memory is given back:
    /// at most once for each [`FLOOD_MIN`] that came and went.
    pub fn observe(&mut self, held: usize) {
        if self.is_flood_over(held) {
            give_back();
        }
    }

    fn is_flood_over(&mut self, held: usize) -> bool {
        self.most = self.most.max(held);
        let over = self.most >= FLOOD_MIN && held <= self.most / SPARSE;
        if over {
            self.most = held;
        }
        over
    }
}

/// glibc keeps free memory below its heap's top for itself until it is told not to.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)] // the only one: no safe wrapper is kept well
fn give_back() {
    // SAFETY: malloc_trim(3) is thread-safe and touches nothing that is in use
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such call, or do it by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

/// Fewer leave nothing worth the walk through the heap (measured: 0.2 ms after ten thousand).
const FLOOD_MIN: usize = 512;
/// A flood is over when so small a part of it is left.
const SPARSE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_over_once_and_a_few_are_none() {
        let mut trim = MemoryTrim::default();
        for (held, over) in [
            (0, false),
            (511, false),
            (0, false),
            (8_000, false),
            (1_001, false),
            (1_000, true),
            (999, false),
            (126, false),
            (125, true),
            (0, false),
            (512, false),
            (0, true),
        ] {
            assert_eq!(trim.is_flood_over(held), over, "{held}");
        }
    }
}
