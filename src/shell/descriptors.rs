//! The descriptor limit, and what it allows.

use std::io;

use log::warn;

use crate::config::Config;

/// Most clients at once: what is configured, as far as the descriptor limit allows it with the
/// daemon's own descriptors and the backend's set aside.
pub fn clients_max(config: &Config) -> usize {
    let limit = raise_descriptor_limit();
    let reserve = DESCRIPTORS_OWN + config.backend.connections as u64;
    let allowed = usize::try_from(limit.saturating_sub(reserve)).unwrap_or(usize::MAX).max(1);
    match config.frontend.connections {
        Some(wanted) if wanted > allowed => {
            warn!("frontend.connections: {wanted}, but {limit} descriptors allow {allowed}");
            allowed
        }
        Some(wanted) => wanted,
        None => allowed,
    }
}

/// Raises the soft limit of descriptors to the hard one. Returns what it is then.
fn raise_descriptor_limit() -> u64 {
    rlimit::increase_nofile_limit(DESCRIPTORS_USEFUL).unwrap_or(DESCRIPTORS_ASSUMED)
}

/// Is it the process' limit (EMFILE), the system's (ENFILE), or the kernel's memory that is
/// exhausted? The numbers are those of Linux and the BSDs alike, but for ENOBUFS.
pub fn is_no_descriptor(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOMEM: i32 = 12;
    const ENOBUFS: i32 = if cfg!(target_os = "linux") { 105 } else { 55 };
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOMEM | ENOBUFS))
}

/// stdin, stdout, stderr, the poll, its waker, the listener, a pair for signals, one for a client
/// on its way in, and two for a resolver or a file being read.
const DESCRIPTORS_OWN: u64 = 11;
/// More than a million clients is nobody's use.
const DESCRIPTORS_USEFUL: u64 = 1 << 20;
/// What POSIX systems give when they do not tell.
const DESCRIPTORS_ASSUMED: u64 = 256;
