//! Deadlines of connections: when the wheel looks at one, and what happens when it has passed.

use super::{Action, Client, Connection, Engine, Peer, Port, Timer};
use crate::slots::ConnId;
use crate::stats::Slow;
use crate::time::{Now, Time};

impl Engine {
    /// When to call [`Engine::tick`] next, if no input comes earlier. To be called once, at the end
    /// of a turn.
    pub fn next_deadline(&mut self) -> Option<Time> {
        while let Some(id) = self.unscheduled.pop() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let deadline = connection.deadline();
            if deadline < connection.scheduled {
                connection.scheduled = deadline;
                self.wheel.schedule(deadline, Timer::Connection(id));
            }
        }
        self.wheel.next()
    }

    pub(super) fn look_at_deadline(&mut self, now: Now, id: ConnId) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.scheduled > now.time {
            return; // the deadline came nearer since: the wheel has this connection twice
        }
        connection.scheduled = Time::NEVER;
        if connection.deadline() > now.time {
            self.unscheduled.push(id);
            return;
        }
        match &mut connection.peer {
            Peer::Client(client) => {
                let slow = client.slow();
                let step = client.frontend.expire();
                slow.into_iter().for_each(|slow| self.stats.closed_slow(slow));
                self.client_step(now, id, step);
                if self.connections.get(id).is_some() {
                    self.actions.push_back(Action::Wake(id));
                }
            }
            Peer::Upstream(fetch) => {
                let outcome = fetch.expire();
                self.fetch_step(now, id, outcome);
            }
        }
    }

    /// Schedules a deadline that came nearer. One that became later costs nothing.
    pub(super) fn reschedule(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.deadline() < connection.scheduled {
            self.unscheduled.push(id);
        }
    }

    pub(super) fn schedule_sweep(&mut self, now: Time) {
        if !self.sweeping {
            self.sweeping = true;
            self.wheel.schedule(now.plus_ms(self.settings.interval_ms), Timer::Sweep);
        }
    }
}

impl Client {
    /// The phase for which the client is too slow when its deadline passes; `None`: it has its
    /// response, or its port is not counted.
    fn slow(&self) -> Option<Slow> {
        let slow = match &self.frontend {
            _ if self.is_handshaking => Slow::Handshake,
            frontend if frontend.is_lingering() => return None,
            frontend if !frontend.output().is_empty() => Slow::Answer,
            frontend if frontend.is_between_requests() => Slow::Idle,
            _ => Slow::Head,
        };
        Some(slow).filter(|_| self.port == Port::Checks)
    }
}

impl Connection {
    fn deadline(&self) -> Time {
        match &self.peer {
            Peer::Client(client) => client.frontend.deadline(),
            Peer::Upstream(fetch) => fetch.deadline(),
        }
    }
}
