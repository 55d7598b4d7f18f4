//! The real binary on loopback: command line, HTTP, attacks, TLS, clocks, turns of the loop.

mod admin;
mod attacks;
mod certificates;
mod cli;
mod clock;
#[path = "../common/mod.rs"]
mod common;
mod defer;
mod e2e;
mod etcd;
mod health;
mod proxy;
mod reload;
mod standstill;
mod systemd;
mod tls_e2e;
mod tls_hostile;
mod tls_provider;
mod tls_support;
mod tls_tools;
mod turn;
