//! TLS towards clients and Patroni. Nothing outside this folder names rustls.

#[allow(dead_code)] // used from the next commits on
mod certificate;
mod config;
mod session;
mod verify;

pub use config::{ClientSide, ServerSide, Tls};
pub use session::{Session, TlsError};

#[cfg(test)]
mod tests;
