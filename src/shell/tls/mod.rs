//! TLS towards clients and Patroni. Nothing outside this folder names rustls.

mod config;
mod session;
mod verify;

pub use config::{ClientSide, ServerSide, Tls};
pub use session::{Session, TlsError};

#[cfg(test)]
mod tests;
