//! systemd, or another supervisor that speaks its protocols: notifications, the watchdog, and
//! listeners that outlive the process in the descriptor store. All of it is in the environment;
//! without it nothing is sent and nothing is taken.
//!
//! Nothing here waits: the notification socket is non-blocking, and a datagram that it does not
//! take is lost.

mod notify;

use rustix::time::{ClockId, Timespec, clock_gettime};

use self::notify::Notifier;
use super::listener::Listener;
use crate::engine::Port;

/// The supervisor of this process.
#[derive(Debug, Default)]
pub struct Supervisor {
    notifier: Notifier,
}

impl Supervisor {
    /// The supervisor that the environment names, if there is one.
    pub fn from_environment() -> Supervisor {
        Supervisor { notifier: Notifier::from_environment() }
    }

    /// The daemon serves, with what it was started with or, after [`Supervisor::reloading`], with
    /// the outcome of the reload.
    pub(super) fn ready(&self, status: &str) {
        self.notifier.send(&format!("READY=1\n{}", status_line(status)));
    }

    /// The configuration is read again; [`Supervisor::ready`] ends this. `Type=notify-reload`
    /// requires the time.
    pub(super) fn reloading(&self) {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        let monotonic_us = tv_sec as i128 * 1_000_000 + tv_nsec as i128 / 1_000;
        self.notifier.send(&format!("RELOADING=1\nMONOTONIC_USEC={monotonic_us}"));
    }

    /// The daemon ends.
    pub(super) fn stopping(&self, status: &str) {
        self.notifier.send(&format!("STOPPING=1\n{}", status_line(status)));
    }

    /// Stores the listener of a port, in place of the previous one: the next process gets it, and
    /// connections in its backlog survive a restart and a crash.
    pub(super) fn keep(&self, listener: &Listener) {
        self.give_up(listener.port());
        self.notifier.store(stored_name(listener.port()), listener);
    }

    /// Removes the listener of a port from the store. To be called before it is closed: a socket in
    /// the store goes on accepting connections, which nobody serves.
    pub(super) fn give_up(&self, port: Port) {
        self.notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={}", stored_name(port)));
    }
}

/// `STATUS=` with a text of several lines as one.
fn status_line(text: &str) -> String {
    format!("STATUS={}", text.replace(char::is_control, " "))
}

/// The name of a port's listener in the store.
fn stored_name(port: Port) -> &'static str {
    match port {
        Port::Checks => "kept-frontend",
    }
}
