//! Returns memory to the system after a flood of connections.
//!
//! The memory of closed connections is free, but small blocks in use above it keep it resident.
//! Measured with the release binary: 40 s after 2,000 TLS clients, 10 of them still connected,
//! 11.3 MiB were resident without this and 4.7 MiB with it; after 10,000 clients without TLS the
//! difference is less than 0.2 MiB. A trim takes 0.2 ms.

use crate::shrink::is_sparse;

/// Detects the end of a flood.
#[derive(Debug, Default)]
pub struct MemoryTrim {
    /// Maximum of the observed counts since memory was last returned.
    count_max: usize,
}

impl MemoryTrim {
    /// Takes the current number of connections and timers. Returns memory to the system after a
    /// flood of them, as [`is_sparse`] defines it.
    pub fn observe(&mut self, count: usize) {
        if self.is_flood_over(count) {
            trim();
        }
    }

    fn is_flood_over(&mut self, count: usize) -> bool {
        self.count_max = self.count_max.max(count);
        let over = is_sparse(count, self.count_max);
        if over {
            self.count_max = count;
        }
        over
    }
}

/// glibc keeps free memory below the top of its heap until malloc_trim is called.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)] // no maintained crate wraps malloc_trim
fn trim() {
    // SAFETY: malloc_trim(3) is thread-safe and does not touch memory in use
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such call, or return memory on their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_trimmed_once_per_flood_and_not_for_a_few() {
        let mut trim = MemoryTrim::default();
        for (count, over) in [
            (0, false),
            (512, false),
            (0, false),
            (8_000, false),
            (1_000, false),
            (999, true),
            (998, false),
            (124, false),
            (123, true),
            (0, false),
            (513, false),
            (0, true),
        ] {
            assert_eq!(trim.is_flood_over(count), over, "{count}");
        }
    }
}
