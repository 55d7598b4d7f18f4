//! When to give back the memory of a flood: one rule for slots, timers, streams and the allocator.

/// Whether so little of `capacity` is in use that the rest is to be given back.
///
/// A walk over the whole is then cheap per item: at least seven eighths of the capacity came and
/// went since the last one.
pub fn is_sparse(used: usize, capacity: usize) -> bool {
    capacity > CAPACITY_KEPT && used < capacity / SPARSE
}

/// Up to this capacity nothing is given back: 512 slots and timers are less than 100 KiB.
pub const CAPACITY_KEPT: usize = 512;
/// Memory is sparse if less than this part of it, an eighth, is in use.
const SPARSE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_is_less_than_an_eighth_of_more_than_512() {
        for (used, capacity, sparse) in [
            (0, 0, false),
            (0, CAPACITY_KEPT, false),
            (0, CAPACITY_KEPT + 1, true),
            (63, CAPACITY_KEPT + 1, true),
            (64, CAPACITY_KEPT + 1, false),
            (511, 4_096, true),
            (512, 4_096, false),
        ] {
            assert_eq!(is_sparse(used, capacity), sparse, "{used} of {capacity}");
        }
    }
}
