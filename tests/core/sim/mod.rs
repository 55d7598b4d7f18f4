//! The simulator: runs the engine against a faulty network, from one seed. Its entry is `run`.

mod checks;
mod client;
mod etcd;
mod faults;
pub mod gateway;
mod keys;
mod patroni;
mod random;
mod run;
mod shell;
mod wire;
mod witness_checks;
mod world;

pub use run::{Failed, run, trace};
