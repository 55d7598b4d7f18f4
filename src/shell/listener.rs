//! Accepting clients, and what to do when descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::descriptors::is_no_descriptor;
use super::operate::section_of;
use super::sockets;
use crate::engine::Port;
use crate::journal::Repeats;
use crate::time::Time;

/// A host, `None` for all addresses, and a port, as in the configuration.
pub type BoundTo = (Option<String>, u16);

/// A listening socket.
pub struct Listener {
    socket: TcpListener,
    port: Port,
    bound_to: BoundTo,
    /// A supervisor bound it, and keeps it open.
    is_given: bool,
    /// Cleared only when the backlog is empty: the poll reports it once.
    readable: bool,
    /// Accepting is paused until then, for lack of descriptors.
    paused_until: Time,
    shortages: Repeats,
}

/// Outcome of [`Listener::accept`].
pub enum Accepted {
    /// A client.
    Client(TcpStream),
    /// Out of file descriptors; accepting pauses.
    NoDescriptor,
    /// The backlog is empty, or accepting is paused.
    Blocked,
}

impl Listener {
    /// Listens as configured. Blocks while a name is resolved. The error is for the operator; its
    /// kind is that of the failed call.
    pub fn new(
        port: Port,
        bound_to: BoundTo,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Listener> {
        let (host, number) = (bound_to.0.as_deref(), bound_to.1);
        let socket = sockets::listen(host, number).map_err(|error| {
            let named = host.unwrap_or("*");
            let section = section_of(port);
            let named = format!("{section}.host {named}, {section}.port {number}");
            io::Error::new(error.kind(), format!("cannot listen on {named}: {error}"))
        })?;
        Listener::with_socket(port, bound_to, socket, registry, token)
    }

    /// Uses a listening socket in place of a new one.
    pub fn with_socket(
        port: Port,
        bound_to: BoundTo,
        mut socket: TcpListener,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Listener> {
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(Listener {
            socket,
            port,
            bound_to,
            is_given: false,
            readable: true,
            paused_until: Time::ZERO,
            shortages: Repeats::default(),
        })
    }

    /// The host and port it was bound to, as configured.
    pub fn bound_to(&self) -> &BoundTo {
        &self.bound_to
    }

    /// Closes the socket. The poll would know it as long as another process holds it, too.
    pub fn close(mut self, registry: &Registry) {
        let _ = registry.deregister(&mut self.socket);
    }

    /// Records that a supervisor bound it.
    pub fn given(self) -> Listener {
        Listener { is_given: true, ..self }
    }

    /// Whether a supervisor bound it: its address is not ours to change.
    pub fn is_given(&self) -> bool {
        self.is_given
    }

    /// The configuration names the same address in other words.
    pub fn rename(&mut self, bound_to: BoundTo) {
        self.bound_to = bound_to;
    }

    /// Sets whether the kernel keeps a connection back until its first bytes have come. Connections
    /// that it keeps already stay where they are.
    pub fn defer_accept(&self, defers: bool) -> io::Result<()> {
        sockets::defer_accept(&self.socket, defers)
    }

    /// The address it listens on.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// The port its clients are accepted on.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Records that the poll reports connections in the backlog.
    pub fn mark_readable(&mut self) {
        self.readable = true;
    }

    /// When to accept next, if the backlog may not be empty.
    pub fn ready_at(&self, now: Time) -> Option<Time> {
        self.readable.then(|| self.paused_until.max(now))
    }

    /// Accepts one client.
    pub fn accept(&mut self, now: Time) -> Accepted {
        for _ in 0..ERRORS_MAX {
            if !self.readable || now < self.paused_until {
                break;
            }
            match self.socket.accept() {
                Ok((client, _)) => return Accepted::Client(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if is_no_descriptor(&error) => {
                    // the bit stays set: the poll will not report the backlog again
                    self.paused_until = now.plus_ms(PAUSE_MS);
                    if let Some(times) = self.shortages.count(now) {
                        warn!("not accepting connections: {error} ({times} times)");
                    }
                    return Accepted::NoDescriptor;
                }
                // ECONNABORTED, EINTR and the like concern one client only (accept(2))
                Err(_) => {}
            }
        }
        Accepted::Blocked
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Errors of clients that had disconnected, skipped in one call.
const ERRORS_MAX: u32 = 64;
/// How long accepting pauses when descriptors have run out.
const PAUSE_MS: u64 = 100;
