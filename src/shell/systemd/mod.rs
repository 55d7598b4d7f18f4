//! systemd, or another supervisor that speaks its protocols: notifications, the watchdog, and
//! listeners that outlive the process in the descriptor store. All of it is in the environment;
//! without it nothing is sent and nothing is taken.
//!
//! A notification never waits: the socket is non-blocking, and a datagram that it does not take is
//! lost. Only `Supervisor::wait_until_read` waits, when a listener moves.

mod handover;
mod notify;

use std::net::SocketAddr;
use std::{env, process};

use log::{info, warn};
use mio::{Registry, Token};
use rustix::time::{ClockId, Timespec, clock_gettime};

use self::handover::Handed;
use self::notify::Notifier;
use super::listener::{BoundTo, Listener};
use super::operate::section_of;
use super::sockets;
use crate::engine::{Engine, Port};
use crate::time::Time;

/// The supervisor of this process.
#[derive(Debug, Default)]
pub struct Supervisor {
    notifier: Notifier,
    watchdog: Option<Watchdog>,
    /// Descriptors that are not used yet.
    handed: Vec<Handed>,
    status: Status,
}

/// The status that was sent last, and when the next may be.
#[derive(Debug, Default)]
struct Status {
    version: (bool, u32),
    due_at: Time,
    /// It is to be sent at `due_at`.
    is_pending: bool,
    /// The outcome of a reload is shown instead.
    is_overwritten: bool,
}

/// Expects a notification at least once in a period.
#[derive(Debug)]
struct Watchdog {
    period_ms: u64,
    due_at: Time,
}

impl Supervisor {
    /// The supervisor that the environment names, if there is one. To be called once, before any
    /// file is opened: descriptors are handed over as numbers.
    pub fn from_environment() -> Supervisor {
        let mut handed = Handed::take_all();
        // a socket unit without names
        if let [only] = &mut handed[..]
            && !only.name.starts_with(STORED_PREFIX)
        {
            only.name = section_of(Port::Checks).into();
        }
        let watchdog = Watchdog::from_environment();
        let notifier = Notifier::from_environment();
        Supervisor { notifier, watchdog, handed, status: Status::default() }
    }

    /// The listener of a port: one that was handed over, or a new one, which is then stored. A
    /// stored one is used only with the configured address, one of a socket unit with any.
    pub(super) fn listener(
        &mut self,
        port: Port,
        bound_to: BoundTo,
        registry: &Registry,
        token: Token,
    ) -> Result<Listener, String> {
        let (host, number) = bound_to.clone();
        let is_configured =
            |address: &SocketAddr| sockets::is_bound_to(*address, host.as_deref(), number);
        let given = self.take_named(section_of(port)).into_iter().next();
        let given = given.map(|handed| Ok::<_, String>((handed.address()?, handed))).transpose()?;
        let stored = self.take_named(stored_name(port));
        let count = stored.len();
        let stored = stored.into_iter().find(|handed| match handed.address() {
            Ok(address) if is_configured(&address) => true,
            Ok(address) => {
                info!("{handed} listens on {address}, which is not configured: closed");
                false
            }
            Err(why) => {
                warn!("{why}: closed");
                false
            }
        });
        match (given, stored) {
            (Some((address, given)), stored) if stored.is_none() || is_configured(&address) => {
                if !is_configured(&address) {
                    warn!("{given} listens on {address}, not as configured: the file is ignored");
                }
                if count > 0 {
                    self.give_up(port);
                }
                given.listen(port, bound_to, registry, token).map(Listener::given)
            }
            (given, Some(stored)) => {
                self.handed.extend(given.map(|(_, handed)| handed));
                let listener = stored.listen(port, bound_to, registry, token)?;
                if count > 1 {
                    self.keep(&listener);
                }
                Ok(listener)
            }
            (_, None) => {
                if count > 0 {
                    self.give_up(port);
                    self.wait_until_read();
                }
                let listener =
                    sockets::bind_again(|| Listener::new(port, bound_to.clone(), registry, token));
                let listener = listener.map_err(|error| error.to_string())?;
                self.keep(&listener);
                Ok(listener)
            }
        }
    }

    /// Closes all descriptors that were handed over and are not used, and empties their places in
    /// the store.
    pub(super) fn close_unused(&mut self) {
        for handed in self.handed.drain(..) {
            warn!("{handed} is not used: closed");
            if handed.name.starts_with(STORED_PREFIX) {
                self.notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={}", handed.name));
            }
        }
    }

    /// To be called in each turn of the loop, from nowhere else: a loop that hangs is not notified.
    pub(super) fn tick(&mut self, now: Time, engine: &Engine) {
        let version = engine.summary_version();
        let status = &mut self.status;
        status.is_pending = version != status.version || status.is_overwritten;
        if status.is_pending && status.due_at <= now {
            *status = Status { version, due_at: now.plus_ms(STATUS_MS), ..Status::default() };
            self.notifier.send(&status_line(&engine.summary()));
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.due_at <= now) {
            watchdog.due_at = now.plus_ms(watchdog.period_ms / 2);
            self.notifier.send("WATCHDOG=1");
        }
    }

    /// When [`Supervisor::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.due_at);
        let status = self.status.is_pending.then_some(self.status.due_at);
        watchdog.into_iter().chain(status).min()
    }

    /// The daemon serves, with what it was started with or, after [`Supervisor::reloading`], with
    /// the outcome of the reload.
    pub(super) fn ready(&self, status: &str) {
        self.notifier.send(&format!("READY=1\n{}", status_line(status)));
    }

    /// The configuration is read again; [`Supervisor::ready`] ends this. `Type=notify-reload`
    /// requires the time.
    pub(super) fn reloading(&mut self, now: Time) {
        (self.status.is_overwritten, self.status.due_at) = (true, now.plus_ms(STATUS_MS));
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
    /// the store goes on accepting connections that no process serves. Its address becomes free
    /// after [`Supervisor::wait_until_read`], or a moment later ([`sockets::bind_again`]).
    pub(super) fn give_up(&self, port: Port) {
        self.notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={}", stored_name(port)));
    }

    /// Waits until the supervisor has read all notifications, at most half a second.
    pub(super) fn wait_until_read(&self) {
        self.notifier.wait_until_read();
    }

    fn take_named(&mut self, name: &str) -> Vec<Handed> {
        let (named, others) = self.handed.drain(..).partition(|handed| handed.name == name);
        self.handed = others;
        named
    }
}

impl Watchdog {
    /// `WATCHDOG_USEC`, unless `WATCHDOG_PID` is another process.
    fn from_environment() -> Option<Watchdog> {
        let is_others = number("WATCHDOG_PID").is_some_and(|id| id != u64::from(process::id()));
        let period_us = number("WATCHDOG_USEC").filter(|us| *us > 0 && !is_others)?;
        Some(Watchdog { period_ms: (period_us / 1_000).max(PERIOD_MS_MIN), due_at: Time::ZERO })
    }
}

/// A number in the environment.
fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// `STATUS=` with a text of several lines as one.
fn status_line(text: &str) -> String {
    format!("STATUS={}", text.replace(char::is_control, " "))
}

/// The name of a port's listener in the store; it begins with [`STORED_PREFIX`].
fn stored_name(port: Port) -> &'static str {
    match port {
        Port::Checks => "kept-frontend",
        Port::Admin => "kept-admin",
        Port::Agent => "kept-agent",
    }
}

/// A shorter period than two ticks would keep the loop busy.
const PERIOD_MS_MIN: u64 = 20;
/// Begins the names in the store.
const STORED_PREFIX: &str = "kept-";
/// A status is sent at most once in this time.
const STATUS_MS: u64 = 1_000;
