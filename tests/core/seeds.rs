//! Some thousand seeds of the simulator: a faulty network, a model Patroni, every promise checked.
//!
//! `PATRONIGLUE_SEEDS` is for another number of them.

use std::thread;

use crate::sim;

#[test]
fn no_seed_breaks_a_promise() {
    let seeds = std::env::var("PATRONIGLUE_SEEDS").map(|text| text.parse().expect("a number"));
    let seeds = seeds.unwrap_or(SEEDS);
    thread::scope(|scope| {
        let halves = [0, 1].map(|half| scope.spawn(move || hold((half..seeds).step_by(2))));
        for half in halves {
            half.join().expect("the simulator does not panic").expect("every seed holds");
        }
    });
}

fn hold(seeds: impl Iterator<Item = u64>) -> Result<(), String> {
    for seed in seeds {
        if let Err(failed) = sim::run(seed) {
            let (log, _) = sim::trace(seed);
            let last = log[log.len().saturating_sub(LINES_SHOWN)..].join("\n");
            return Err(format!("seed {}: {}\n{last}", failed.seed, failed.error));
        }
    }
    Ok(())
}

const SEEDS: u64 = 2_000;
const LINES_SHOWN: usize = 40;
