//! Reads, writes and closes streams, and accepts clients, within a budget for each turn.

use log::{info, warn};
use mio::net::TcpStream;

use super::Daemon;
use super::listener::Accepted;
use super::stream::{Broken, ReadOutcome, Stream, WriteOutcome};
use super::stream_table::token_of;
use super::tls::{Session, TlsError};
use crate::engine::{Action, Port, UpstreamId};
use crate::failure::Failure;
use crate::http::Persistence;
use crate::logformat;
use crate::reply::LocalReply;
use crate::slots::ConnId;
use crate::stats::Handshake;
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

    /// Serves the queue, then the streams that this has queued, in [`QUEUE_ROUNDS_MAX`] rounds.
    pub(super) fn serve_queue(&mut self, now: Now) {
        for _ in 0..QUEUE_ROUNDS_MAX {
            if self.queue.is_empty() {
                return;
            }
            let mut queue = std::mem::take(&mut self.queue);
            for id in queue.drain(..) {
                let Some(stream) = self.streams.get_mut(id) else { continue };
                if stream.handshake_goes_on() && !stream.is_upstream() {
                    // a step takes as long as a hundred requests: limited for each turn
                    self.handshakes.push_back(id);
                    continue;
                }
                stream.set_queued(false);
                self.serve(now, id);
            }
            // keeps the vector's memory for the next round
            if self.queue.is_empty() {
                self.queue = queue;
            }
        }
    }

    /// Continues the handshakes that have waited longest. Returns how many.
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

    /// Reads and writes one stream until neither side has more to do or its budget is spent.
    pub(super) fn serve(&mut self, now: Now, id: ConnId) {
        let mut bytes = 0;
        for _ in 0..SERVE_ROUNDS_MAX {
            let has_read = self.read(now, id);
            // before the write, which may close the connection: a client's request may have come
            // together with the end of its handshake
            let has_opened = self.report_opened(id);
            let written = self.write(now, id);
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

    /// Reads once. Returns whether there was anything to do.
    pub(super) fn read(&mut self, now: Now, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let wanted = stream.is_handshaking() || self.engine.wants_read(id);
        if !wanted && stream.is_gone() && !stream.is_upstream() {
            // a waiting client is not read from, but its slot is freed once it has disconnected
            self.report_broken(now, id, &Broken::Io);
            self.perform_actions(now);
            return true;
        }
        if !wanted || !stream.is_readable() {
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

    /// Writes once. Returns the number of the engine's bytes sent; `None`: nothing to do.
    pub(super) fn write(&mut self, now: Now, id: ConnId) -> Option<usize> {
        let stream = self.streams.get_mut(id)?;
        let output = self.engine.output(id);
        let wanted = !output.is_empty() || stream.has_outgoing();
        if !wanted || !stream.is_writable() {
            return None;
        }
        // records in the session are the rest of a response that has been begun
        let unsent_since = self.engine.unsent_since(id).filter(|_| !stream.has_outgoing());
        if let Some(since) = unsent_since
            && let unsent_ms = self.clock.time().ms_since(since)
            && unsent_ms >= UNSENT_MS_MAX
        {
            self.close_outdated(now, id, unsent_ms);
            return Some(0);
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

    /// Closes a client whose response rests on a time long past. The client tries again.
    fn close_outdated(&mut self, now: Now, id: ConnId, unsent_ms: u64) {
        if let Some(times) = self.outdated_responses.count(self.clock.time()) {
            warn!("the process stood still for {unsent_ms} ms: clients closed ({times} times)");
        }
        self.engine.broken(now, id, Failure::Reset);
        self.perform_actions(now);
    }

    pub(super) fn report_broken(&mut self, now: Now, id: ConnId, why: &Broken) {
        match why {
            Broken::Tls(error) => self.log_tls_error(now, id, error),
            Broken::Proxy(why) => self.log_proxy_header(now, id, why),
            _ => {}
        }
        self.engine.broken(now, id, why.failure());
    }

    /// Logs the detailed TLS error. The 503 body carries only a summary.
    fn log_tls_error(&mut self, now: Now, id: ConnId, error: &TlsError) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let upstream = stream.upstream();
        if stream.is_handshaking() && upstream != Some(UpstreamId::Dcs) {
            self.engine.handshake_ended(id, Handshake::Failed);
        }
        if let Some(upstream) = upstream {
            return self.log_upstream_tls_error(now, upstream, error);
        }
        let Some(address) = stream.peer() else { return };
        if let Some(times) = self.client_tls_failures.count(now.time) {
            info!("TLS client {address}: {error} ({times} times)");
        }
    }

    fn log_proxy_header(&mut self, now: Now, id: ConnId, why: &str) {
        let Some(address) = self.streams.get_mut(id).and_then(|stream| stream.peer()) else {
            return;
        };
        if let Some(times) = self.proxy_failures.count(now.time) {
            info!("client {address}: {why} ({times} times)");
        }
    }

    /// Registers with the poll only when the stream goes idle: connections answered and closed
    /// within a turn skip epoll_ctl.
    pub(super) fn register_when_idle(&mut self, now: Now, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.register(self.poll.registry(), token_of(id)).is_err() {
            self.engine.broken(now, id, Failure::NoDescriptor);
            self.perform_actions(now);
        }
    }

    /// Logs the engine's records and performs its actions, to the last one.
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
                Action::NextAddress(upstream) => self.connectors.next_address(upstream),
                Action::Report(id, report) => self.report(now, id, report),
            }
        }
    }

    pub(super) fn close(&mut self, id: ConnId) {
        let Some(mut stream) = self.streams.remove(id) else {
            return self.connectors.give_up(id);
        };
        stream.send_close_notify();
        stream.discard(&mut self.buffers);
    }

    /// Accepts clients on every port. Over TLS each of them may begin a handshake;
    /// `handshake_steps` were taken in this turn already.
    pub(super) fn accept(&mut self, now: Now, handshake_steps: u32) {
        for place in 0..self.listeners.len() {
            // always at least one, so that clients stalling in the handshake cannot block new ones
            let is_check = self.listeners[place].port() == Port::Checks;
            let accepts_max = match self.tls.server.as_ref().filter(|_| is_check) {
                Some(_) => HANDSHAKES_PER_TURN_MAX.saturating_sub(handshake_steps).max(1),
                None => ACCEPTS_PER_TURN_MAX,
            };
            self.accept_from(now, place, accepts_max);
        }
    }

    /// Accepts clients on one port, at most this many.
    pub(super) fn accept_from(&mut self, now: Now, place: usize, accepts_max: u32) {
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

    /// Serves a new client at once: its request has usually arrived already.
    pub(super) fn add_client(&mut self, now: Now, socket: TcpStream, port: Port) {
        // only load balancers may speak TLS or send a PROXY header
        let is_check = port == Port::Checks;
        let server = self.tls.server.as_ref().filter(|_| is_check);
        let session = match server.map(Session::server).transpose() {
            Ok(session) => session,
            Err(error) => return warn!("TLS session for a client: {error}"),
        };
        let is_secured = session.is_some();
        let mut stream = Stream::accepted(socket, session, port);
        if self.config.frontend.proxy_protocol && is_check {
            stream = stream.expecting_proxy_header();
        }
        let Some(id) = self.engine.accept(now, port) else {
            if port != Port::Agent {
                let reply = LocalReply::TOO_MANY_CONNECTIONS;
                let reply = reply.response(now, Persistence::Close, false);
                stream.reject(&reply, &mut self.buffers);
            }
            return;
        };
        self.perform_actions(now); // a client closed for this one had its slot
        self.streams.insert(id, stream);
        if is_secured {
            self.engine.handshake_begins(id);
        }
        self.serve(now, id);
    }
}

/// Maximum time from the decision on a response to its first byte: a leader's 200 is late by no
/// more. A debug build answers 19,000 waiting clients within it, on a machine busy with other work.
/// A client that pipelines and reads nothing for this time is closed as well.
pub(super) const UNSENT_MS_MAX: u64 = 500;
/// Reads and writes of one stream before the others are served.
const SERVE_ROUNDS_MAX: u32 = 16;
/// Bytes written to one stream before the others are served: the kernel copies them in about
/// 30 µs.
const SERVE_BYTES_MAX: usize = 64 * 1024;
/// Maximum rounds in one turn of serving the streams that the previous round queued.
const QUEUE_ROUNDS_MAX: u32 = 4;
/// New connections in one turn and port; the others stay in the backlog, where they cost nothing.
const ACCEPTS_PER_TURN_MAX: u32 = 64;
/// Handshakes continued in one turn, new ones included: four steps take 1 ms with ECDSA and 4 ms
/// with RSA.
const HANDSHAKES_PER_TURN_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::shell::Options;

    /// The response to a request that is read at once, if the process stands still for `by` before
    /// it is sent.
    fn response_after(by: Duration) -> Vec<u8> {
        let config = Config::from_yaml("frontend: {host: 127.0.0.1, port: 0}").expect("valid");
        let mut daemon = Daemon::new(config, Options::default()).expect("a free port");
        let mut client = TcpStream::connect(daemon.address().expect("bound")).expect("it listens");
        client.write_all(b"GET /nowhere HTTP/1.0\r\n\r\n").expect("it reads");
        let now = daemon.clock.now();
        let (socket, id) = loop {
            if let Accepted::Client(socket) = daemon.listeners[0].accept(now.time) {
                break (socket, daemon.engine.accept(now, Port::Checks).expect("room"));
            }
        };
        daemon.streams.insert(id, Stream::accepted(socket, None, Port::Checks));
        while daemon.engine.output(id).is_empty() {
            daemon.enqueue(id);
            daemon.streams.get_mut(id).expect("open").mark_ready();
            daemon.read(now, id);
        }
        daemon.clock.advance(by);
        assert!(daemon.write(now, id).is_some());
        let mut response = Vec::new();
        client.read_to_end(&mut response).expect("its end");
        response
    }

    /// Clients that stall in the handshake would keep all others out.
    #[test]
    fn a_turn_that_spent_its_handshakes_still_accepts_a_client() {
        let file = |name: &str| format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = format!(
            "frontend: {{host: 127.0.0.1, port: 0, certfile: {}, keyfile: {}}}",
            file("ecdsa.pem"),
            file("ecdsa.pkcs8.key")
        );
        let config = Config::from_yaml(&text).expect("valid");
        let mut daemon = Daemon::new(config, Options::default()).expect("a free port");
        let clients: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(daemon.address().expect("bound")).expect("it listens"))
            .collect();
        for count in 1..=clients.len() {
            let now = daemon.clock.now();
            daemon.accept(now, HANDSHAKES_PER_TURN_MAX);
            assert_eq!(daemon.engine.counts().clients, count);
        }
    }

    #[test]
    fn a_response_is_not_sent_after_a_standstill() {
        let in_time = response_after(Duration::from_millis(UNSENT_MS_MAX / 2));
        assert!(in_time.starts_with(b"HTTP/1.1 404 "));
        assert_eq!(response_after(Duration::from_millis(UNSENT_MS_MAX)), b"");
    }
}
