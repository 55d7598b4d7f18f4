//! One socket, its TLS session if it has one, and two bits: whether to try a read, and a write.
//!
//! Readiness is edge-triggered: an event reports a change, once. So the bits stay set until the
//! socket itself returns WouldBlock, and a socket is registered once, for both directions. A read
//! that does not fill the buffer has emptied the socket too, which saves a read that would block.
//! If the peer has closed its half, reading continues, since no event would follow.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};

use mio::event::{Event, Source};
use mio::net::TcpStream;
use mio::{Registry, Token};

use super::sockets::BOTH;
use super::tls::{Session, TlsError};
use crate::engine::{Port, UpstreamId};
use crate::failure::Failure;
use crate::fetch::Progress;
use crate::frontend::UNREAD_BYTES_MAX;
use crate::http::REQUEST_HEAD_BYTES_MAX;
use crate::http::proxy::{PROXY_HEADER_BYTES_MAX, ProxyHeader};
use crate::stats::Handshake;

/// A connection: plain bytes on the side of the engine, a socket on the other.
pub struct Stream<S> {
    socket: Socket<S>,
    /// `None`: no TLS.
    tls: Option<Box<Secured>>,
    side: Side,
    progress: Progress,
    /// `None`: no PROXY header is expected.
    proxied: Option<Box<Proxied>>,
    registered: bool,
    queued: bool,
}

/// The PROXY header that a client's connection begins with.
enum Proxied {
    /// Its first bytes.
    Begun(Vec<u8>),
    /// The address it contained, if it had one.
    Read(Option<IpAddr>),
}

/// Which side of the daemon a stream is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client, accepted on this port.
    Client(Port),
    /// A fetch from this upstream.
    Upstream(UpstreamId),
}

/// Buffers that all reads share, so that no stream has its own.
pub struct Buffers {
    /// Bytes as read from a socket.
    wire: Box<[u8]>,
    /// Bytes decrypted from them.
    plain: Vec<u8>,
}

/// Outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome<'a> {
    /// At least one byte.
    Data(&'a [u8]),
    /// TLS records without data for the engine.
    NoData,
    /// The peer has closed its half: FIN, over TLS close_notify.
    Eof,
    /// Nothing to read now.
    Blocked,
    /// The connection has failed.
    Broken(Broken),
}

/// Outcome of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The number of the engine's bytes sent; 0: only the TLS session's own records.
    Sent(usize),
    /// The socket takes nothing now.
    Blocked,
    /// The connection has failed.
    Broken(Broken),
}

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// RST, or another error.
    Io,
    /// The peer closed during the handshake.
    Closed,
    /// The peer closed without close_notify: the data may be truncated.
    Cut,
    /// The PROXY header is missing or wrong.
    Proxy(&'static str),
    /// TLS failed.
    Tls(TlsError),
}

/// The socket with its readiness.
struct Socket<S> {
    inner: S,
    readable: bool,
    writable: bool,
    /// The poll reported that the peer has closed its half: a hint, true after all data is read.
    read_closed: bool,
    /// The poll reported that nothing can be sent: RST.
    gone: bool,
}

struct Secured {
    session: Session,
    /// Bytes of the engine that are encrypted, but not all in the socket yet. They count as sent
    /// only once they are, so that the connection is not closed before.
    encrypted_bytes: usize,
    /// TLS failed after complete records, whose data is returned first.
    failed: Option<TlsError>,
}

impl<S: Read + Write> Stream<S> {
    /// A client that was accepted. No event has been seen, so both directions are tried.
    pub fn accepted(socket: S, tls: Option<Session>, port: Port) -> Self {
        Stream::established(socket, tls, Side::Client(port))
    }

    /// A connection to an upstream that was made and is registered with the poll.
    pub fn connected(socket: S, tls: Option<Session>, upstream: UpstreamId) -> Self {
        let mut stream = Stream::established(socket, tls, Side::Upstream(upstream));
        stream.socket.readable = false;
        Stream { registered: true, ..stream }
    }

    fn established(socket: S, tls: Option<Session>, side: Side) -> Self {
        let secured = tls.map(|session| Box::new(Secured::new(session)));
        let socket = Socket {
            inner: socket,
            readable: true,
            writable: true,
            read_closed: false,
            gone: false,
        };
        let progress = if secured.is_some() { Progress::Handshaking } else { Progress::Open };
        let (registered, queued, proxied) = (false, false, None);
        Stream { socket, tls: secured, side, progress, proxied, registered, queued }
    }

    /// Expects a header of the PROXY protocol before anything else.
    pub fn expecting_proxy_header(mut self) -> Self {
        self.proxied = Some(Box::new(Proxied::Begun(Vec::new())));
        self
    }

    /// Reads once.
    pub fn read<'a>(&mut self, buffers: &'a mut Buffers) -> ReadOutcome<'a> {
        let Some(secured) = &mut self.tls else {
            return match self.socket.read(&mut buffers.wire) {
                Ok(Some(0)) => ReadOutcome::Eof,
                Ok(Some(count)) => match after_header(&mut self.proxied, &buffers.wire[..count]) {
                    Ok(from) => ReadOutcome::Data(&buffers.wire[from..count]),
                    Err(outcome) => outcome,
                },
                Ok(None) => ReadOutcome::Blocked,
                Err(_) => ReadOutcome::Broken(Broken::Io),
            };
        };
        if secured.session.peer_closed() {
            return ReadOutcome::Eof;
        }
        if let Some(error) = secured.failed.take() {
            return ReadOutcome::Broken(Broken::Tls(error));
        }
        match self.socket.read(&mut buffers.wire) {
            Ok(Some(0)) if secured.session.is_handshaking() => ReadOutcome::Broken(Broken::Closed),
            Ok(Some(0)) => ReadOutcome::Broken(Broken::Cut),
            Ok(Some(count)) => {
                let from = match after_header(&mut self.proxied, &buffers.wire[..count]) {
                    Ok(from) => from,
                    Err(outcome) => return outcome,
                };
                buffers.plain.clear();
                let records = &mut buffers.wire[from..count];
                match secured.session.receive(records, &mut buffers.plain) {
                    outcome if !buffers.plain.is_empty() => {
                        secured.failed = outcome.err();
                        ReadOutcome::Data(&buffers.plain)
                    }
                    Ok(()) if secured.session.peer_closed() => ReadOutcome::Eof,
                    Ok(()) => ReadOutcome::NoData,
                    Err(error) => ReadOutcome::Broken(Broken::Tls(error)),
                }
            }
            Ok(None) => ReadOutcome::Blocked,
            Err(_) => ReadOutcome::Broken(Broken::Io),
        }
    }

    /// Writes once: `bytes`, or the TLS session's own records.
    pub fn write(&mut self, bytes: &[u8]) -> WriteOutcome {
        let Some(secured) = &mut self.tls else {
            return match self.socket.write(bytes) {
                Ok(Some(count)) => WriteOutcome::Sent(count),
                Ok(None) => WriteOutcome::Blocked,
                Err(_) => WriteOutcome::Broken(Broken::Io),
            };
        };
        let session = &mut secured.session;
        if secured.encrypted_bytes == 0 && !bytes.is_empty() && !session.is_handshaking() {
            let count = bytes.len().min(PLAIN_BYTES_PER_WRITE);
            if let Err(error) = session.encrypt(&bytes[..count]) {
                return WriteOutcome::Broken(Broken::Tls(error));
            }
            secured.encrypted_bytes = count;
        }
        let mut records = session.take_outgoing();
        if records.is_empty() {
            return WriteOutcome::Blocked;
        }
        match self.socket.write(&records) {
            Ok(Some(count)) if count == records.len() => {
                WriteOutcome::Sent(std::mem::take(&mut secured.encrypted_bytes))
            }
            Ok(Some(count)) => {
                records.drain(..count);
                session.unsent(records);
                WriteOutcome::Sent(0)
            }
            Ok(None) => {
                session.unsent(records);
                WriteOutcome::Blocked
            }
            Err(_) => WriteOutcome::Broken(Broken::Io),
        }
    }

    /// Records an event; the next read or write returns its error.
    pub fn mark(&mut self, event: &Event) {
        let socket = &mut self.socket;
        socket.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        socket.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        socket.read_closed |= event.is_read_closed() || event.is_error();
        socket.gone |= event.is_write_closed() || event.is_error();
    }

    /// Sends close_notify or an alert, as far as the socket takes it without waiting.
    pub fn send_close_notify(&mut self) {
        if let Some(secured) = &mut self.tls {
            secured.session.close_notify();
            let records = secured.session.take_outgoing();
            if !records.is_empty() {
                let _ = self.socket.write(&records);
            }
        }
    }

    /// Reads and discards what has arrived: closing with unread input sends RST, which can destroy
    /// a response that the peer has not read yet (RFC 9112, section 9.6).
    pub fn discard(&mut self, buffers: &mut Buffers) {
        for _ in 0..DISCARDED_READS_MAX {
            if !self.socket.readable || self.socket.read(&mut buffers.wire).is_err() {
                return;
            }
        }
    }

    /// Sends `response` and closes, as far as the socket takes it without waiting. Over TLS nothing
    /// is sent: there was no handshake yet.
    pub fn reject(mut self, response: &[u8], buffers: &mut Buffers) {
        if self.tls.is_none() {
            let _ = self.read(buffers);
            let _ = self.write(response);
        }
    }

    /// Whether to try a read.
    pub fn is_readable(&self) -> bool {
        self.socket.readable || self.tls.as_ref().is_some_and(|secured| secured.has_ended())
    }

    /// Whether to try a write.
    pub fn is_writable(&self) -> bool {
        self.socket.writable
    }

    /// Whether the peer has reset the connection: for streams that are not being read.
    pub fn is_gone(&self) -> bool {
        self.socket.gone
    }

    /// The upstream it leads to; `None`: it is a client's.
    pub fn upstream(&self) -> Option<UpstreamId> {
        match self.side {
            Side::Upstream(upstream) => Some(upstream),
            Side::Client(_) => None,
        }
    }

    /// Whether it leads to an upstream.
    pub fn is_upstream(&self) -> bool {
        self.upstream().is_some()
    }

    /// How far the connection has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the handshake has completed since the last call.
    pub fn has_just_opened(&mut self) -> bool {
        let opened = self.progress == Progress::Handshaking && !self.is_handshaking();
        if opened {
            self.progress = Progress::Open;
        }
        opened
    }

    /// How the TLS handshake ended, once it has.
    pub fn handshake(&self) -> Option<Handshake> {
        self.tls.as_ref().and_then(|secured| secured.session.handshake())
    }

    /// Whether the TLS handshake is in progress. The stream is then always read.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|secured| secured.session.is_handshaking())
    }

    /// Whether the handshake can continue with bytes that have arrived.
    pub fn handshake_goes_on(&self) -> bool {
        self.is_handshaking() && self.socket.readable
    }

    /// Whether the TLS session has records of its own to send.
    pub fn has_outgoing(&self) -> bool {
        self.tls.as_ref().is_some_and(|secured| secured.session.has_outgoing())
    }

    /// Whether it is in one of the loop's queues.
    pub fn is_queued(&self) -> bool {
        self.queued
    }

    /// Records whether it is in one of the loop's queues.
    pub fn set_queued(&mut self, queued: bool) {
        self.queued = queued;
    }

    /// Marks both directions as ready, as an event does.
    #[cfg(test)]
    pub fn mark_ready(&mut self) {
        (self.socket.readable, self.socket.writable) = (true, true);
    }

    /// Bytes buffered by the TLS session, received or to be sent.
    #[cfg(test)]
    pub fn buffered_bytes(&self) -> usize {
        self.tls.as_ref().map_or(0, |secured| secured.session.buffered_bytes())
    }
}

impl<S: Read + Write + Source> Stream<S> {
    /// Registers the socket with the poll, unless it is.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if !self.registered {
            registry.register(&mut self.socket.inner, token, BOTH)?;
            self.registered = true;
        }
        Ok(())
    }

    /// Makes the poll report again what has happened to a registered socket so far.
    pub fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(&mut self.socket.inner, token, BOTH)
    }
}

impl Stream<TcpStream> {
    /// Closes the sending half; the peer may go on sending.
    pub fn shutdown_write(&mut self) {
        self.send_close_notify();
        // fails if the peer has gone; the next read returns that
        let _ = self.socket.inner.shutdown(Shutdown::Write);
    }

    /// Makes the kernel acknowledge the next segments without delay. Patroni's TLS 1.3 sends two
    /// session tickets and then the answer as small writes under Nagle's algorithm, so each waits
    /// for the acknowledgement of the previous one, which would delay every fetch by 41 ms. The
    /// kernel leaves this mode by itself, so it is set again after each read and write (tcp(7)).
    pub fn acknowledge_at_once(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if self.tls.is_some() {
            // fails if the peer has gone; the next read returns that
            let _ = socket2::SockRef::from(&self.socket.inner).set_tcp_quickack(true);
        }
    }

    /// The peer's address, or the one in its PROXY header; `None` once it has disconnected.
    pub fn peer(&self) -> Option<IpAddr> {
        if let Some(Proxied::Read(Some(source))) = self.proxied.as_deref() {
            return Some(*source);
        }
        self.socket.inner.peer_addr().ok().map(|address| address.ip().to_canonical())
    }
}

/// Where the data of a read begins: after the rest of the PROXY header, if one is expected. The
/// outcome of the read if there is none.
fn after_header<'a>(
    proxied: &mut Option<Box<Proxied>>,
    read: &[u8],
) -> Result<usize, ReadOutcome<'a>> {
    let Some(Proxied::Begun(begun)) = proxied.as_deref_mut() else { return Ok(0) };
    let before = begun.len();
    begun.extend_from_slice(&read[..read.len().min(PROXY_HEADER_BYTES_MAX - before)]);
    match ProxyHeader::read(begun) {
        ProxyHeader::Incomplete => Err(ReadOutcome::NoData),
        ProxyHeader::Invalid(why) => Err(ReadOutcome::Broken(Broken::Proxy(why))),
        ProxyHeader::Whole { bytes, source } => {
            *proxied = Some(Box::new(Proxied::Read(source)));
            let from = bytes - before;
            if from == read.len() { Err(ReadOutcome::NoData) } else { Ok(from) }
        }
    }
}

impl Secured {
    fn new(session: Session) -> Self {
        Secured { session, encrypted_bytes: 0, failed: None }
    }

    /// Whether the end is known without another read of the socket.
    fn has_ended(&self) -> bool {
        self.session.peer_closed() || self.failed.is_some()
    }
}

impl<S: Read + Write> Socket<S> {
    /// `Ok(None)`: WouldBlock.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.inner.read(buffer) {
                Ok(count) => {
                    let more = count == buffer.len() || self.read_closed;
                    self.readable = count > 0 && more;
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `Ok(None)`: WouldBlock.
    fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        loop {
            match self.inner.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Buffers {
    /// Buffers for one loop.
    pub fn new() -> Self {
        Buffers { wire: vec![0; READ_BYTES].into(), plain: Vec::new() }
    }
}

impl Broken {
    /// The failure of a fetch.
    pub fn failure(&self) -> Failure {
        match self {
            Broken::Io | Broken::Proxy(_) => Failure::Reset,
            Broken::Closed => Failure::Closed,
            Broken::Cut => Failure::Cut,
            Broken::Tls(error) => error.failure,
        }
    }
}

/// Read at once: about sixteen requests, or the head that is rejected as too large.
const READ_BYTES: usize = 16 * 1024;
/// Reads before a close: as much as a client has usually sent by then.
const DISCARDED_READS_MAX: usize = 8;
/// One TLS record (RFC 8446, section 5.1).
const PLAIN_BYTES_PER_WRITE: usize = 16 * 1024;

const _: () = assert!(REQUEST_HEAD_BYTES_MAX < READ_BYTES);
const _: () = assert!(READ_BYTES < UNREAD_BYTES_MAX, "one read never closes a waiting client");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A socket whose calls have these outcomes in turn.
    struct Script(VecDeque<io::Result<usize>>);

    impl Read for Script {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.pop_front().expect("one call more than expected")
        }
    }

    impl Write for Script {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.pop_front().expect("one call more than expected")
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stream(script: impl IntoIterator<Item = io::Result<usize>>) -> Stream<Script> {
        Stream::accepted(Script(script.into_iter().collect()), None, Port::Checks)
    }

    fn error(kind: ErrorKind) -> io::Result<usize> {
        Err(kind.into())
    }

    #[test]
    fn a_short_read_is_not_followed_by_another() {
        let mut stream = stream([Ok(READ_BYTES), Ok(3)]);
        let mut buffers = Buffers::new();
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Data(&[0; READ_BYTES]));
        assert!(stream.is_readable());
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Data(&[0; 3]));
        assert!(!stream.is_readable());
    }

    #[test]
    fn after_the_peer_has_closed_the_end_is_read_too() {
        let mut stream = stream([Ok(3), Ok(0)]);
        stream.socket.read_closed = true;
        let mut buffers = Buffers::new();
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Data(&[0; 3]));
        assert!(stream.is_readable());
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Eof);
        assert!(!stream.is_readable());
    }

    #[test]
    fn interruptions_are_retried_and_blocking_clears_the_bit() {
        let interrupted = || error(ErrorKind::Interrupted);
        let mut reading = stream([interrupted(), error(ErrorKind::WouldBlock)]);
        let mut buffers = Buffers::new();
        assert_eq!(reading.read(&mut buffers), ReadOutcome::Blocked);
        assert!(!reading.is_readable() && reading.is_writable());
        let mut writing = stream([interrupted(), Ok(2), error(ErrorKind::WouldBlock)]);
        assert_eq!(writing.write(b"abc"), WriteOutcome::Sent(2));
        assert_eq!(writing.write(b"c"), WriteOutcome::Blocked);
        assert!(!writing.is_writable() && writing.is_readable());
        let mut broken = stream([error(ErrorKind::ConnectionReset), error(ErrorKind::BrokenPipe)]);
        assert_eq!(broken.read(&mut buffers), ReadOutcome::Broken(Broken::Io));
        assert_eq!(broken.write(b"abc"), WriteOutcome::Broken(Broken::Io));
    }
}
