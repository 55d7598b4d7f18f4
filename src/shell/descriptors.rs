//! The descriptor limit, and the number of clients it allows.

use std::io;

use log::warn;

use super::resolver::ADDRESSES_MAX;
use crate::config::Config;
use crate::engine::ADMIN_CLIENTS_MAX;

/// Returns the maximum number of clients: the configured one, limited by the descriptors left
/// after the daemon's own and the upstreams'.
pub fn clients_max(config: &Config) -> usize {
    let limit = raise_descriptor_limit();
    let dcs = config.dcs.as_ref().map_or(0, |_| DESCRIPTORS_DCS);
    let of_port = ADMIN_CLIENTS_MAX as u64 + 1;
    let admin = config.admin.as_ref().map_or(0, |_| of_port);
    let agent = config.agent.as_ref().map_or(0, |_| of_port);
    let reserve = DESCRIPTORS_OWN + config.backend.connections as u64 + dcs + admin + agent;
    let allowed = usize::try_from(limit.saturating_sub(reserve)).unwrap_or(usize::MAX).max(1);
    match config.frontend.connections {
        Some(wanted) if wanted > allowed => {
            warn!(
                "frontend.connections: {limit} descriptors do not allow {wanted}; using {allowed}"
            );
            allowed
        }
        Some(wanted) => wanted,
        None => allowed,
    }
}

/// Raises the soft descriptor limit to the hard one. Returns the new limit.
fn raise_descriptor_limit() -> u64 {
    rlimit::increase_nofile_limit(DESCRIPTORS_USEFUL).unwrap_or(DESCRIPTORS_ASSUMED)
}

/// Whether the error means that the process' descriptors (EMFILE), the system's (ENFILE), the
/// kernel's memory or its watches (ENOSPC, epoll_ctl(2)) are exhausted. Linux and the BSDs share
/// these numbers, except for ENOBUFS.
pub fn is_no_descriptor(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOMEM: i32 = 12;
    const ENOSPC: i32 = 28;
    const ENOBUFS: i32 = if cfg!(target_os = "linux") { 105 } else { 55 };
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOMEM | ENOSPC | ENOBUFS))
}

/// stdin, stdout, stderr, the poll, its waker, the listener, a pair for signals, one for a client
/// being accepted, and two for a resolver or a file being read.
const DESCRIPTORS_OWN: u64 = 11;
/// A race between addresses, which needs more than the connection it ends with, and two for a
/// resolver.
const DESCRIPTORS_DCS: u64 = ADDRESSES_MAX as u64 + 2;
/// Above the maximum of `frontend.connections`: more would be unused.
const DESCRIPTORS_USEFUL: u64 = 1 << 20;
/// Assumed if the limit cannot be read: a common default.
const DESCRIPTORS_ASSUMED: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dcs_leaves_fewer_descriptors_to_clients() {
        let clients_max = |text| clients_max(&Config::from_yaml(text).expect("a configuration"));
        let (without, with) = (clients_max(""), clients_max("dcs: {type: etcd3, hosts: etcd}"));
        assert_eq!(with as u64, without as u64 - DESCRIPTORS_DCS);
    }
}
