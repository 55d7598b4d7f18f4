//! Some thousand seeds of the simulator: a faulty network, a model Patroni, every promise checked.

#[path = "sim/mod.rs"]
mod sim;

#[test]
fn no_seed_breaks_a_promise() {
    for seed in 0..SEEDS {
        if let Err(failed) = sim::run(seed) {
            let (log, _) = sim::trace(seed);
            let from = log.len().saturating_sub(LINES_SHOWN);
            panic!("seed {}: {}\n{}", failed.seed, failed.error, log[from..].join("\n"));
        }
    }
}

const SEEDS: u64 = 2_000;
const LINES_SHOWN: usize = 40;
