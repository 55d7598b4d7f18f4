//! Runs a seed twice, and says what failed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::World;

/// A seed that failed, and how.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub error: String,
}

/// Both runs of a seed must hold, and be the same.
pub fn run(seed: u64) -> Result<u64, Failed> {
    let first = live(seed, false).0.map_err(|error| Failed { seed, error })?;
    let second = live(seed, false).0.map_err(|error| Failed { seed, error })?;
    if first == second {
        return Ok(first);
    }
    Err(Failed { seed, error: "two runs of it differ".into() })
}

/// Everything that happens in a seed, up to its end or failure.
pub fn trace(seed: u64) -> (Vec<String>, Result<u64, String>) {
    let (outcome, log) = live(seed, true);
    (log, outcome)
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
