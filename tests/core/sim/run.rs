//! Runs a seed and reports what failed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use super::world::World;

/// A seed that failed, and how.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub error: String,
}

/// The seed, the promise in words, the commit, and the command that replays the seed.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
        let commit = commit.ok().filter(|output| output.status.success());
        let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let mut error = self.error.clone();
        for (at, name) in PROMISES.iter().enumerate() {
            let number = format!("promise {}:", at + 1);
            error = error.replace(&number, &format!("promise {}, {name}:", at + 1));
        }
        writeln!(f, "seed {} fails: {error}", self.seed)?;
        writeln!(f, "commit {}", commit.as_deref().map_or("unknown", str::trim))?;
        write!(f, "replay: cargo run --release --example simulate -- -seed {}", self.seed)
    }
}

/// The seed must hold; some are run twice, and both runs must be the same.
pub fn run(seed: u64) -> Result<u64, Failed> {
    let first = live(seed, false).0.map_err(|error| Failed { seed, error })?;
    if !seed.is_multiple_of(RUN_TWICE_EVERY) {
        return Ok(first);
    }
    let second = live(seed, false).0.map_err(|error| Failed { seed, error })?;
    if first == second {
        return Ok(first);
    }
    Err(Failed { seed, error: "two runs of this seed differ".into() })
}

/// Everything that happens in a seed, up to its end or failure.
pub fn trace(seed: u64) -> (Vec<String>, Result<u64, Failed>) {
    let (outcome, log) = live(seed, true);
    (log, outcome.map_err(|error| Failed { seed, error }))
}

fn live(seed: u64, traced: bool) -> (Result<u64, String>, Vec<String>) {
    let mut world = World::new(seed, traced);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.live()));
    let outcome = match outcome {
        Ok(outcome) => outcome.map_err(|error| format!("at {} ms: {error}", world.now_ms)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Err(format!("at {} ms: panic: {}", world.now_ms, text.unwrap_or_default()))
        }
    };
    (outcome.map(|()| world.hash.0), world.log.take().unwrap_or_default())
}

/// What makes two runs differ, a clock or the order of a hash map, does so in most seeds.
const RUN_TWICE_EVERY: u64 = 10;

/// The names of the promises, in their order.
const PROMISES: [&str; 9] = [
    "one fetch",
    "never too old",
    "never past the lease",
    "bounded wait",
    "no contradiction",
    "read only",
    "nobody waits for a silent peer",
    "bounded memory and load",
    "changes show at once",
];
