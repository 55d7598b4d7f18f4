//! TLS towards clients, Patroni and the DCS. Nothing outside this folder names rustls.

mod certificate;
mod config;
mod error;
mod idle_keys;
mod probe;
mod provider;
mod session;
mod verify;

pub use config::{ClientSide, ServerSide, Tls, warnings_of_der};
pub use error::TlsError;
pub use probe::ask_over_tls;
pub use provider::{PROVIDER, Provider};
pub use session::Session;

#[cfg(test)]
mod tests;
