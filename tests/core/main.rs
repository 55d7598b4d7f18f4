//! The core without a socket, a file or a clock: stories, simulator, regressions, recorded answers,
//! wrong configurations.

mod config_errors;
mod recorded;
mod regressions;
mod seeds;
mod sim;
mod stories;
