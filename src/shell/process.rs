//! What the system says about this process, for the metrics: read from /proc, without a call that
//! takes longer with more clients.

use std::fs;

use crate::admin::Process;

/// Facts that do not change, or are counted from a first measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessFacts {
    /// Descriptors that are not streams.
    other_descriptors: u64,
}

impl ProcessFacts {
    /// Counts the open descriptors once: with 60,000 clients the folder takes milliseconds to read.
    pub fn measure_descriptors(&mut self, streams: usize) {
        let open = fs::read_dir("/proc/self/fd").map_or(0, |folder| folder.count() as u64);
        // the descriptor of the folder itself does not count
        self.other_descriptors = open.saturating_sub(streams as u64 + 1);
    }

    /// The process as it is now; `None`: the system does not say.
    pub fn read(&self, streams: usize) -> Option<Process> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let (limit, _) = rlimit::Resource::NOFILE.get().ok()?;
        Some(Process {
            cpu_ms: cpu_ticks(&stat)? * (1_000 / TICKS_PER_SECOND),
            resident_bytes: kib(&status, "VmRSS:")? * 1024,
            virtual_bytes: kib(&status, "VmSize:")? * 1024,
            descriptors: self.other_descriptors + streams as u64,
            descriptors_max: limit,
        })
    }
}

/// User and system time of /proc/PID/stat (proc(5), fields 14 and 15). The second field is the
/// program's name in brackets, which may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    Some(number()? + number()?)
}

/// A line of /proc/PID/status in KiB.
fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim_end().parse().ok()
}

/// USER_HZ, the same on every architecture that Rust's Linux targets have (time(7)).
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_may_contain_anything() {
        let stat = "42 (a b) 3) S 1 42 42 0 -1 4194560 100 0 0 0 17 5 0 0 20 0 3 0 1000 1 2";
        assert_eq!(cpu_ticks(stat), Some(22));
        assert_eq!(cpu_ticks("42 (a"), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let mut facts = ProcessFacts::default();
        facts.measure_descriptors(0);
        let process = facts.read(7).expect("Linux");
        assert!(process.resident_bytes > 0 && process.virtual_bytes >= process.resident_bytes);
        assert!(process.descriptors >= 7 + 3 && process.descriptors_max >= process.descriptors);
    }
}
