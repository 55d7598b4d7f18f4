//! One socket and what is known of its readiness: two bits, cleared only when it blocks.
//!
//! Readiness is edge-triggered: an event says that something changed, once. So the bits remember
//! it until the socket itself says WouldBlock, and the poll is told of a socket once, for both
//! directions. A read that did not fill the buffer has emptied the socket as well, which saves
//! the read that would say so; unless the peer has closed its half, since no event would follow.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};

use mio::event::{Event, Source};
use mio::net::TcpStream;
use mio::{Registry, Token};

use super::BOTH;
use crate::backend::Failure;

/// A socket with its readiness.
pub struct Stream<S> {
    socket: S,
    readable: bool,
    writable: bool,
    /// The poll said that the peer has closed its half: a hint, true after all data is read.
    read_closed: bool,
    registered: bool,
    connecting: bool,
    queued: bool,
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes, at least one.
    Data(usize),
    /// The peer has closed its half.
    Eof,
    /// There is nothing now.
    Blocked,
    /// RST, or another error.
    Broken,
}

/// What a write came to.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// So many bytes were taken.
    Sent(usize),
    /// The socket takes none now.
    Blocked,
    /// RST, or another error.
    Broken,
}

impl<S: Read + Write> Stream<S> {
    /// A connection that stands. Nothing is known of it, so both directions are worth a try.
    pub fn accepted(socket: S) -> Self {
        Stream {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            registered: false,
            connecting: false,
            queued: false,
        }
    }

    /// A connection that is being made.
    pub fn connecting(socket: S) -> Self {
        let stream = Stream::accepted(socket);
        Stream { readable: false, writable: false, connecting: true, ..stream }
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => {
                    self.readable = false;
                    return ReadOutcome::Eof;
                }
                Ok(count) => {
                    self.readable = count == buffer.len() || self.read_closed;
                    return ReadOutcome::Data(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return ReadOutcome::Blocked;
                }
                Err(_) => return ReadOutcome::Broken,
            }
        }
    }

    /// Writes once.
    pub fn write(&mut self, bytes: &[u8]) -> WriteOutcome {
        loop {
            match self.socket.write(bytes) {
                Ok(0) => return WriteOutcome::Broken,
                Ok(count) => return WriteOutcome::Sent(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    return WriteOutcome::Blocked;
                }
                Err(_) => return WriteOutcome::Broken,
            }
        }
    }

    /// Takes note of an event; an error shows at the next read or write.
    pub fn mark(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// Is a read worth a try?
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Is a write worth a try?
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Is the connection still being made?
    pub fn is_connecting(&self) -> bool {
        self.connecting
    }

    /// True unless it is in the loop's queue already; then it counts as being there.
    pub fn queue_once(&mut self) -> bool {
        !std::mem::replace(&mut self.queued, true)
    }

    /// It was taken out of the queue.
    pub fn unqueue(&mut self) {
        self.queued = false;
    }
}

impl<S: Read + Write + Source> Stream<S> {
    /// Tells the poll of the socket, once.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if !self.registered {
            registry.register(&mut self.socket, token, BOTH)?;
            self.registered = true;
        }
        Ok(())
    }
}

impl Stream<TcpStream> {
    /// Has a connect come to an end? Writable alone does not mean connected.
    pub fn connect_outcome(&mut self) -> Option<Result<(), Failure>> {
        if let Ok(Some(error)) | Err(error) = self.socket.take_error() {
            return Some(Err(connect_failure(&error)));
        }
        match self.socket.peer_addr() {
            Ok(_) => {
                self.connecting = false;
                Some(Ok(()))
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => None,
            Err(error) => Some(Err(connect_failure(&error))),
        }
    }

    /// All is sent: the peer sees the end, but can still send what is on its way.
    pub fn finish(&mut self) {
        // fails when the peer is gone, which the next read shows
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Says why and hangs up, as far as that goes without waiting.
    pub fn turn_away(mut self, response: &[u8], scratch: &mut [u8]) {
        let _ = self.read(scratch);
        let _ = self.write(response);
    }

    /// The peer's address; `None` once the connection has gone.
    pub fn peer(&self) -> Option<IpAddr> {
        self.socket.peer_addr().ok().map(|address| address.ip().to_canonical())
    }
}

/// What an error of `connect` means.
pub fn connect_failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Failure::Reset,
        ErrorKind::TimedOut => Failure::TimedOut,
        _ if super::limits::is_no_descriptor(error) => Failure::NoDescriptor,
        _ => Failure::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A socket whose calls have these outcomes, in this order.
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
        Stream::accepted(Script(script.into_iter().collect()))
    }

    fn error(kind: ErrorKind) -> io::Result<usize> {
        Err(kind.into())
    }

    #[test]
    fn a_short_read_is_not_followed_by_another() {
        let mut stream = stream([Ok(8), Ok(3)]);
        assert_eq!(stream.read(&mut [0; 8]), ReadOutcome::Data(8));
        assert!(stream.is_readable());
        assert_eq!(stream.read(&mut [0; 8]), ReadOutcome::Data(3));
        assert!(!stream.is_readable());
    }

    #[test]
    fn but_when_the_peer_has_closed_the_end_is_read_too() {
        let mut stream = stream([Ok(3), Ok(0)]);
        stream.read_closed = true;
        assert_eq!(stream.read(&mut [0; 8]), ReadOutcome::Data(3));
        assert!(stream.is_readable());
        assert_eq!(stream.read(&mut [0; 8]), ReadOutcome::Eof);
        assert!(!stream.is_readable());
    }

    #[test]
    fn interruptions_are_not_outcomes_and_blocking_clears_the_bit() {
        let interrupted = || error(ErrorKind::Interrupted);
        let mut reading = stream([interrupted(), error(ErrorKind::WouldBlock)]);
        assert_eq!(reading.read(&mut [0; 8]), ReadOutcome::Blocked);
        assert!(!reading.is_readable() && reading.is_writable());
        let mut writing = stream([interrupted(), Ok(2), error(ErrorKind::WouldBlock)]);
        assert_eq!(writing.write(b"abc"), WriteOutcome::Sent(2));
        assert_eq!(writing.write(b"c"), WriteOutcome::Blocked);
        assert!(!writing.is_writable() && writing.is_readable());
        let mut broken = stream([error(ErrorKind::ConnectionReset), error(ErrorKind::BrokenPipe)]);
        assert_eq!(broken.read(&mut [0; 8]), ReadOutcome::Broken);
        assert_eq!(broken.write(b"abc"), WriteOutcome::Broken);
    }
}
