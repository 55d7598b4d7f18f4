//! TLS towards clients and Patroni. Nothing outside this folder names rustls.

mod certificate;
mod config;
mod error;
mod session;
mod verify;

pub use config::{ClientSide, ServerSide, Tls};
pub use error::TlsError;
pub use session::Session;

#[cfg(test)]
mod tests;
