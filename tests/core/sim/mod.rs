//! The simulator: runs the engine against a faulty network, from one seed. Its entry is `run`.

mod checks;
mod client;
mod faults;
mod patroni;
mod random;
mod run;
mod shell;
mod wire;
mod world;

pub use run::{Failed, run, trace};
