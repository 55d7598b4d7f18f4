//! What `-check` says of hosts: names that do not resolve, addresses that this machine lacks. Both
//! may be different when the daemon starts, so they are warnings.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use crate::config::Config;

/// Looks up every host of a configuration. Blocks while names are resolved.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(host) = config.frontend.host.as_deref() {
        match addresses("frontend.host", host) {
            Ok(addresses) => warnings.extend(missing_address(&addresses)),
            Err(warning) => warnings.push(warning),
        }
    }
    warnings.extend(addresses("backend.host", &config.backend.host).err());
    let dcs = config.dcs.iter().flat_map(|dcs| &dcs.hosts);
    warnings.extend(dcs.filter_map(|host| addresses("dcs.hosts", &host.host).err()));
    warnings
}

fn addresses(key: &str, host: &str) -> Result<Vec<SocketAddr>, String> {
    let found = (host, 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    match found {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        Ok(_) => Err(format!("{key}: {host} has no address")),
        Err(error) => Err(format!("{key}: {host} cannot be resolved: {error}")),
    }
}

/// The warning that none of these addresses can be listened on.
fn missing_address(addresses: &[SocketAddr]) -> Option<String> {
    let is_missing = |outcome: &io::Result<TcpListener>| {
        outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
    };
    // port 0: another process may have the configured one
    let mut outcomes = addresses.iter().map(TcpListener::bind);
    let first = addresses.first()?.ip();
    outcomes
        .all(|outcome| is_missing(&outcome))
        .then(|| format!("frontend.host: this machine does not have the address {first}"))
}
