//! What the loop does with a stream, and how much of it in one turn.

use log::{info, warn};
use mio::net::TcpStream;

use super::Daemon;
use super::listener::Accepted;
use super::stream::{Broken, ReadOutcome, Stream, WriteOutcome};
use super::stream_table::token_of;
use super::tls::{Session, TlsError};
use crate::engine::{Action, Port};
use crate::failure::Failure;
use crate::http::Persistence;
use crate::logformat;
use crate::reply::LocalReply;
use crate::slots::ConnId;
use crate::time::Now;

impl Daemon {
    pub(super) fn enqueue(&mut self, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_queued()) else {
            return;
        };
        stream.set_queued(true);
        self.queue.push(id);
    }

    /// Queues a stream whose budget is spent for the next turn, after all others.
    fn postpone(&mut self, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_queued()) else {
            return;
        };
        stream.set_queued(true);
        self.postponed.push(id);
    }

    /// Serves what is queued now; what queues itself meanwhile has its turn too, within bounds.
    pub(super) fn serve_queue(&mut self, now: Now) {
        for _ in 0..QUEUE_ROUNDS_MAX {
            if self.queue.is_empty() {
                return;
            }
            let mut queue = std::mem::take(&mut self.queue);
            for id in queue.drain(..) {
                let Some(stream) = self.streams.get_mut(id) else { continue };
                if stream.handshake_goes_on() && !stream.is_upstream() {
                    // a hundred times the work of a request
                    self.handshakes.push_back(id);
                    continue;
                }
                stream.set_queued(false);
                self.serve(now, id);
            }
            // the vector's memory is kept for the next round
            if self.queue.is_empty() {
                self.queue = queue;
            }
        }
    }

    /// Serves those who wait longest for their handshake to go on. How many were there?
    pub(super) fn continue_handshakes(&mut self, now: Now) -> u32 {
        let mut steps = 0;
        while steps < HANDSHAKES_PER_TURN_MAX {
            let Some(id) = self.handshakes.pop_front() else { break };
            if let Some(stream) = self.streams.get_mut(id) {
                stream.set_queued(false);
                self.serve(now, id);
                steps += 1;
            }
        }
        steps
    }

    /// Reads and writes on one stream as long as both sides want it, within a budget.
    pub(super) fn serve(&mut self, now: Now, id: ConnId) {
        if self.streams.get_mut(id).is_some_and(|stream| stream.is_connecting()) {
            self.check_connect(now, id);
        }
        let mut bytes = 0;
        for _ in 0..SERVE_ROUNDS_MAX {
            let has_read = self.read(now, id);
            let written = self.write(now, id);
            let has_opened = self.report_opened(id);
            if !has_read && written.is_none() && !has_opened {
                return self.register_when_idle(now, id);
            }
            bytes += written.unwrap_or(0);
            if bytes >= SERVE_BYTES_MAX {
                break;
            }
        }
        self.postpone(id);
    }

    pub(super) fn read(&mut self, now: Now, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let wanted = stream.is_handshaking() || self.engine.wants_read(id);
        if !wanted && stream.is_gone() && !stream.is_upstream() {
            // a client that waits is not read from, but makes room when it has gone
            self.report_broken(now, id, &Broken::Io);
            self.perform_actions(now);
            return true;
        }
        if !wanted || !stream.is_readable() || stream.is_connecting() {
            return false;
        }
        let outcome = stream.read(&mut self.buffers);
        if stream.is_upstream() {
            stream.acknowledge_at_once();
        }
        match outcome {
            ReadOutcome::Data(bytes) => self.engine.receive(now, id, bytes),
            ReadOutcome::NoData => {}
            ReadOutcome::Eof => self.engine.eof(now, id),
            ReadOutcome::Broken(why) => self.report_broken(now, id, &why),
            ReadOutcome::Blocked => return false,
        }
        self.perform_actions(now);
        true
    }

    /// So many bytes of the engine's were written; `None`: there was nothing to do.
    pub(super) fn write(&mut self, now: Now, id: ConnId) -> Option<usize> {
        let stream = self.streams.get_mut(id)?;
        let output = self.engine.output(id);
        let wanted = !output.is_empty() || stream.has_outgoing();
        if !wanted || !stream.is_writable() || stream.is_connecting() {
            return None;
        }
        let outcome = stream.write(&output[..output.len().min(SERVE_BYTES_MAX)]);
        if stream.is_upstream() {
            stream.acknowledge_at_once();
        }
        let count = match outcome {
            WriteOutcome::Sent(count) => count,
            WriteOutcome::Broken(why) => {
                self.report_broken(now, id, &why);
                0
            }
            WriteOutcome::Blocked => return None,
        };
        if count > 0 {
            self.engine.sent(now, id, count);
        }
        self.perform_actions(now);
        Some(count)
    }

    pub(super) fn report_broken(&mut self, now: Now, id: ConnId, why: &Broken) {
        if let Broken::Tls(error) = why {
            self.log_tls_error(now, id, error);
        }
        self.engine.broken(now, id, why.failure());
    }

    /// What a fetch says of it is for everybody; this is for who looks for the cause.
    pub(super) fn log_tls_error(&mut self, now: Now, id: ConnId, error: &TlsError) {
        if self.streams.get_mut(id).is_none_or(|stream| stream.is_upstream()) {
            if let Some(times) = self.upstream_tls_failures.count(now.time) {
                warn!("TLS with Patroni failed: {error} ({times} times)");
            }
            return;
        }
        let Some(address) = self.streams.get_mut(id).and_then(|stream| stream.peer()) else {
            return;
        };
        if let Some(times) = self.client_tls_failures.count(now.time) {
            info!("TLS client {address}: {error} ({times} times)");
        }
    }

    /// A stream that has nothing to do waits for its events; only now does the poll have to know
    /// it. Who is answered and closed at once never gets here.
    pub(super) fn register_when_idle(&mut self, now: Now, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.register(self.poll.registry(), token_of(id)).is_err() {
            self.engine.broken(now, id, Failure::NoDescriptor);
            self.perform_actions(now);
        }
    }

    /// Carries out what the engine wants done, to the last action.
    pub(super) fn perform_actions(&mut self, now: Now) {
        while let Some(record) = self.engine.poll_record() {
            let address = self.streams.get_mut(record.id).and_then(|stream| stream.peer());
            let line = logformat::Line {
                address,
                method: record.method.name(),
                target: &record.target,
                status: record.status,
                elapsed_ms: record.elapsed_ms,
            };
            info!("{}", self.config.frontend.log_format.line(&line));
        }
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Connect(id, upstream) => self.connect(now, id, upstream),
                Action::Wake(id) => self.enqueue(id),
                Action::ShutdownWrite(id) => {
                    if let Some(stream) = self.streams.get_mut(id) {
                        stream.shutdown_write();
                    }
                    self.enqueue(id);
                }
                Action::Close(id) => self.close(id),
            }
        }
    }

    pub(super) fn close(&mut self, id: ConnId) {
        let Some(mut stream) = self.streams.remove(id) else {
            return self.connectors.give_up(id);
        };
        stream.send_close_notify();
        stream.discard(&mut self.buffers);
        if stream.is_connecting() {
            // it never answered: the next fetch begins with the next address
            self.connectors.give_up(id);
        }
    }

    /// Accepts clients on every port. Over TLS each of them may bring a handshake, and
    /// `handshake_steps` were done in this turn already.
    pub(super) fn accept(&mut self, now: Now, handshake_steps: u32) {
        for place in 0..self.listeners.len() {
            // at least one, so that clients stalling in the handshake cannot block new ones
            let accepts_max = match self.tls.server {
                Some(_) => HANDSHAKES_PER_TURN_MAX.saturating_sub(handshake_steps).max(1),
                None => ACCEPTS_PER_TURN_MAX,
            };
            self.accept_from(now, place, accepts_max);
        }
    }

    fn accept_from(&mut self, now: Now, place: usize, accepts_max: u32) {
        for _ in 0..accepts_max {
            let Some(listener) = self.listeners.get_mut(place) else { return };
            let port = listener.port();
            match listener.accept(now.time) {
                Accepted::Client(socket) => self.add_client(now, socket, port),
                Accepted::NoDescriptor => {
                    self.engine.make_room(now);
                    return self.perform_actions(now);
                }
                Accepted::Blocked => return,
            }
        }
    }

    /// A client's request is mostly there already, so it is read before any poll.
    pub(super) fn add_client(&mut self, now: Now, socket: TcpStream, port: Port) {
        let session = match self.tls.server.as_ref().map(Session::server).transpose() {
            Ok(session) => session,
            Err(error) => return warn!("no TLS: {error}"),
        };
        let stream = Stream::accepted(socket, session, port);
        let Some(id) = self.engine.accept(now, port) else {
            let reply = LocalReply::TOO_MANY_CONNECTIONS.response(now, Persistence::Close, false);
            return stream.reject(&reply, &mut self.buffers);
        };
        self.perform_actions(now);
        self.streams.insert(id, stream);
        self.serve(now, id);
    }
}

/// Reads and writes on one stream before the others have their turn.
const SERVE_ROUNDS_MAX: u32 = 16;
/// Bytes written on one stream before the others have their turn: copying them into the socket
/// takes the kernel some thirty microseconds.
const SERVE_BYTES_MAX: usize = 64 * 1024;
/// How often what a turn's work queued is served in the same turn.
const QUEUE_ROUNDS_MAX: u32 = 4;
/// New connections a turn; those that have come stay in the backlog, which costs nobody anything.
const ACCEPTS_PER_TURN_MAX: u32 = 64;
/// Clients whose handshakes go on in one turn, new ones included: four steps take a millisecond
/// with ECDSA, and four milliseconds with RSA.
const HANDSHAKES_PER_TURN_MAX: u32 = 4;
