//! Runs seeds of the simulator until one fails, or replays one with a log of its events.
//!
//! `cargo run --release --example simulate -- -seeds 100000 [-from N]`, or `-- -seed N`. With
//! `-all` it goes on after a failure, and prints a line for each seed that fails.

#[path = "../tests/core/sim/mod.rs"]
mod sim;

use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str| -> Option<u64> {
        let at = words.iter().position(|word| word.trim_start_matches('-') == flag)?;
        Some(words.get(at + 1).and_then(|word| word.parse().ok()).expect("a number follows"))
    };
    let (seed, seeds, from) = (number("seed"), number("seeds"), number("from"));
    match seed {
        Some(seed) => replay(seed),
        None if words.iter().any(|word| word.trim_start_matches('-') == "all") => {
            list(from.unwrap_or(0), seeds.unwrap_or(SEEDS_USUAL))
        }
        None => search(from.unwrap_or(0), seeds.unwrap_or(SEEDS_USUAL)),
    }
}

fn replay(seed: u64) -> ExitCode {
    let (log, outcome) = sim::trace(seed);
    log.iter().for_each(|line| println!("{line}"));
    report(outcome.map(|hash| format!("seed {seed} holds; its hash is {hash:016x}")))
}

fn search(from: u64, count: u64) -> ExitCode {
    let begun = Instant::now();
    let mut said = Instant::now();
    for seed in from..from.saturating_add(count) {
        if let Err(failed) = sim::run(seed) {
            return report(Err(failed));
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            println!("{} seeds, {:.0} a second", seed - from + 1, rate(seed - from + 1, begun));
        }
    }
    report(Ok(format!("{count} seeds hold, {:.0} a second", rate(count, begun))))
}

/// Prints the beginning of each failure.
fn list(from: u64, count: u64) -> ExitCode {
    let mut failures = 0;
    for seed in from..from.saturating_add(count) {
        if let Err(failed) = sim::run(seed) {
            failures += 1;
            let error: String = failed.error.chars().take(ERROR_CHARS_SHOWN).collect();
            println!("seed {seed}: {error}");
        }
    }
    println!("{failures} of {count} seeds fail");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(outcome: Result<String, sim::Failed>) -> ExitCode {
    match outcome {
        Ok(text) => println!("{text}"),
        Err(failed) => {
            println!("{failed}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn rate(count: u64, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

const ERROR_CHARS_SHOWN: usize = 160;
const SEEDS_USUAL: u64 = 100_000;
const SAY_EVERY: Duration = Duration::from_secs(5);
