//! Runs seeds of the simulator until one fails; replays one with all that happens in it.
//!
//! `cargo run --release --example simulate -- -seeds 100000 [-from N]`, or `-- -seed N`.

#[path = "../tests/core/sim/mod.rs"]
mod sim;

use std::process::{Command, ExitCode};
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
        None => search(from.unwrap_or(0), seeds.unwrap_or(SEEDS_USUAL)),
    }
}

fn replay(seed: u64) -> ExitCode {
    let (log, outcome) = sim::trace(seed);
    log.iter().for_each(|line| println!("{line}"));
    match outcome {
        Ok(hash) => {
            println!("seed {seed} holds; its hash is {hash:016x}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(seed, &error),
    }
}

fn search(from: u64, count: u64) -> ExitCode {
    let begun = Instant::now();
    let mut said = Instant::now();
    for seed in from..from.saturating_add(count) {
        if let Err(failed) = sim::run(seed) {
            return fail(failed.seed, &failed.error);
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            println!("{} seeds, {:.0} a second", seed - from + 1, rate(seed - from + 1, begun));
        }
    }
    println!("{count} seeds hold, {:.0} a second", rate(count, begun));
    ExitCode::SUCCESS
}

fn fail(seed: u64, error: &str) -> ExitCode {
    println!("seed {seed} fails: {error}");
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let commit = commit.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("commit {}", commit.as_deref().unwrap_or("unknown"));
    println!(
        "again, with all that happens: cargo run --release --example simulate -- -seed {seed}"
    );
    ExitCode::FAILURE
}

fn rate(count: u64, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

const SEEDS_USUAL: u64 = 100_000;
const SAY_EVERY: Duration = Duration::from_secs(5);
