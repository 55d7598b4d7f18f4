//! The simulator: the engine against a faulty network, from one seed; who uses it calls `run`.

mod checks;
mod client;
mod faults;
mod patroni;
mod random;
mod run;
mod shell;
mod wire;
mod world;

pub use run::{run, trace};
