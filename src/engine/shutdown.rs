//! The end: no new clients, a short time for those that are left.

use super::{Action, Engine, Phase, Port, Timer};
use crate::cache::PATIENCE_MS;
use crate::reply::LocalReply;
use crate::time::Now;

impl Engine {
    /// Begins shutdown: accepts no more clients, closes idle ones now and the rest after their
    /// response. Clients that wait for a fetch longer than `SHUTDOWN_WAIT_MS_MAX` get a 503, and
    /// all are closed after [`SHUTDOWN_MS_MAX`]. Called again, it closes all of them now.
    pub fn begin_shutdown(&mut self, now: Now) {
        if self.is_shutting_down() {
            return self.close_clients(|_| true);
        }
        self.phase = Phase::ShuttingDown;
        self.drop_read();
        // not those that have just connected: their requests are on their way
        self.close_clients(|frontend| frontend.idle_since(now.time).is_some());
        self.wheel.schedule(now.time.plus_ms(SHUTDOWN_WAIT_MS_MAX), Timer::ShutdownAnswer);
    }

    /// Whether shutdown has begun and the last client is closed.
    pub fn is_shut_down(&self) -> bool {
        self.is_shutting_down() && self.clients == [0; Port::COUNT]
    }

    /// Answers all clients that wait for a fetch: the daemon ends before it does.
    pub(super) fn end_waits(&mut self, now: Now) {
        self.phase = Phase::Closing;
        for entry in self.cache.awaited() {
            for id in self.cache.take_waiters(entry) {
                self.answer_locally(now, id, LocalReply::SHUTTING_DOWN);
                self.reschedule(id);
                self.actions.push_back(Action::Wake(id));
            }
        }
        // from now on: the process may have stood still
        let deadline = now.time.plus_ms(SHUTDOWN_SEND_MS_MAX);
        self.wheel.schedule(deadline, Timer::ShutdownDeadline);
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        matches!(self.phase, Phase::ShuttingDown | Phase::Closing)
    }
}

/// When the last client is closed after [`Engine::begin_shutdown`]. Connections in the backlog of a
/// stored listener wait for this time and for the next start, less than a check's timeout.
pub const SHUTDOWN_MS_MAX: u64 = SHUTDOWN_WAIT_MS_MAX + SHUTDOWN_SEND_MS_MAX;
/// How long a client may wait for a fetch after [`Engine::begin_shutdown`].
const SHUTDOWN_WAIT_MS_MAX: u64 = 900;
/// How long a client may take to read the last response.
const SHUTDOWN_SEND_MS_MAX: u64 = 100;
const _: () = assert!(PATIENCE_MS < SHUTDOWN_WAIT_MS_MAX && SHUTDOWN_MS_MAX == 1_000);
