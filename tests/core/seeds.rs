//! Seeds of the simulator: a faulty network, a model of Patroni, every promise checked.
//!
//! `PATRONIGLUE_SEEDS=N` runs N seeds instead of [`SEEDS`].

use std::thread;

use crate::sim;

#[test]
fn no_seed_breaks_a_promise() {
    let seeds = std::env::var("PATRONIGLUE_SEEDS").map(|text| text.parse().expect("a number"));
    let seeds = seeds.unwrap_or(SEEDS);
    thread::scope(|scope| {
        let halves = [0, 1].map(|half| scope.spawn(move || hold((half..seeds).step_by(2))));
        for half in halves {
            let outcome = half.join().expect("the simulator does not panic");
            outcome.unwrap_or_else(|report| panic!("{report}"));
        }
    });
}

fn hold(seeds: impl Iterator<Item = u64>) -> Result<(), String> {
    for seed in seeds {
        sim::run(seed).map_err(|failed| report(&failed))?;
    }
    Ok(())
}

/// The failure, with the last lines of the seed's log.
fn report(failed: &sim::Failed) -> String {
    let (log, _) = sim::trace(failed.seed);
    let last = log[log.len().saturating_sub(LINES_SHOWN)..].join("\n");
    format!("{failed}\n{last}")
}

const SEEDS: u64 = 2_000;
const LINES_SHOWN: usize = 40;
