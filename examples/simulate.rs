//! Runs seeds of the simulator until one fails, or replays one with a log of its events.
//!
//! `cargo run --release --example simulate -- -seeds 100000 [-from N]`, or `-- -seed N`. With
//! `-all` it goes on after a failure, and prints a line for each seed that fails. There is a thread
//! for each CPU; `-threads N` sets their number.

#[path = "../tests/core/sim/mod.rs"]
mod sim;

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str| -> Option<u64> {
        let at = words.iter().position(|word| word.trim_start_matches('-') == flag)?;
        Some(words.get(at + 1).and_then(|word| word.parse().ok()).expect("a number follows"))
    };
    if let Some(seed) = number("seed") {
        return replay(seed);
    }
    let cpus = || thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let from = number("from").unwrap_or(0);
    let search = Search {
        end: from.saturating_add(number("seeds").unwrap_or(SEEDS_USUAL)),
        from,
        next: AtomicU64::new(from),
        ends_at_failure: !words.iter().any(|word| word.trim_start_matches('-') == "all"),
        begun: Instant::now(),
        said: Mutex::new(Instant::now()),
        failed: Mutex::new(Vec::new()),
    };
    thread::scope(|scope| {
        for _ in 0..number("threads").unwrap_or_else(cpus).max(1) {
            scope.spawn(|| search.run());
        }
    });
    search.report()
}

fn replay(seed: u64) -> ExitCode {
    let (log, outcome) = sim::trace(seed);
    log.iter().for_each(|line| println!("{line}"));
    match outcome {
        Ok(hash) => println!("seed {seed} holds; its hash is {hash:016x}"),
        Err(failed) => {
            println!("{failed}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The seeds `from..end`, and what has come of them.
struct Search {
    from: u64,
    end: u64,
    next: AtomicU64,
    ends_at_failure: bool,
    begun: Instant,
    /// When a line was printed last.
    said: Mutex<Instant>,
    failed: Mutex<Vec<sim::Failed>>,
}

impl Search {
    /// The work of a thread.
    fn run(&self) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            if let Err(failed) = sim::run(seed) {
                self.fail(failed);
            }
            let mut said = self.said.lock().expect("no thread panics with it");
            if said.elapsed() >= SAY_EVERY {
                *said = Instant::now();
                println!("{}", self.progress(seed + 1 - self.from));
            }
        }
    }

    fn fail(&self, failed: sim::Failed) {
        if self.ends_at_failure {
            self.next.store(self.end, Ordering::Relaxed); // seeds below it that have begun go on
        } else {
            let error: String = failed.error.chars().take(ERROR_CHARS_SHOWN).collect();
            println!("seed {}: {error}", failed.seed);
        }
        self.failed.lock().expect("no thread panics with it").push(failed);
    }

    fn progress(&self, seeds: u64) -> String {
        let rate = seeds as f64 / self.begun.elapsed().as_secs_f64();
        format!("{seeds} seeds, {rate:.0} a second")
    }

    fn report(self) -> ExitCode {
        let progress = self.progress(self.end - self.from);
        let failed = self.failed.into_inner().expect("no thread has panicked");
        let first = failed.iter().min_by_key(|failed| failed.seed);
        match first {
            None => println!("{progress}: all hold"),
            Some(first) if self.ends_at_failure => println!("{first}"),
            Some(_) => println!("{} of {} seeds fail", failed.len(), self.end - self.from),
        }
        if first.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

const ERROR_CHARS_SHOWN: usize = 160;
const SEEDS_USUAL: u64 = 100_000;
const SAY_EVERY: Duration = Duration::from_secs(5);
