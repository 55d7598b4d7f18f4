//! Returns memory to the system after a flood of connections.
//!
//! The memory of ten thousand connections is free once they are closed, but a few small blocks in
//! use above it keep it resident (measured: half a megabyte of the daemon's four).

/// Detects the end of a flood.
#[derive(Debug, Default)]
pub struct MemoryTrim {
    /// Maximum of the observed counts since memory was last returned.
    count_max: usize,
}

impl MemoryTrim {
    /// Takes the current number of connections and timers. Returns memory to the system after a
    /// flood of them: at most once per [`FLOOD_MIN`] opened and closed.
    pub fn observe(&mut self, count: usize) {
        if self.is_flood_over(count) {
            trim();
        }
    }

    fn is_flood_over(&mut self, count: usize) -> bool {
        self.count_max = self.count_max.max(count);
        let over = self.count_max >= FLOOD_MIN && count <= self.count_max / SPARSE;
        if over {
            self.count_max = count;
        }
        over
    }
}

/// glibc keeps free memory below the top of its heap until malloc_trim is called.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)] // the only unsafe code: no maintained crate wraps malloc_trim
fn trim() {
    // SAFETY: malloc_trim(3) is thread-safe and does not touch memory in use
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such call, or return memory on their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

/// Fewer are not worth the cost of a trim (measured: 0.2 ms after ten thousand).
const FLOOD_MIN: usize = 512;
/// A flood is over when at most one part in this many of it is left.
const SPARSE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_trimmed_once_per_flood_and_not_for_a_few() {
        let mut trim = MemoryTrim::default();
        for (count, over) in [
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
            assert_eq!(trim.is_flood_over(count), over, "{count}");
        }
    }
}
