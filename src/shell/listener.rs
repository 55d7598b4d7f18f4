//! Accepting clients, and what to do when descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::descriptors::is_no_descriptor;
use super::sockets;
use crate::config::Frontend;
use crate::engine::Port;
use crate::journal::Repeats;
use crate::time::Time;

/// A listening socket.
pub struct Listener {
    socket: TcpListener,
    port: Port,
    /// `frontend.host` and `frontend.port`, as they were at the start.
    bound_to: (Option<String>, u16),
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
    /// Listens as configured. Blocks while a name is resolved, so only at start.
    pub fn new(
        port: Port,
        frontend: &Frontend,
        registry: &Registry,
        token: Token,
    ) -> Result<Listener, String> {
        let named = frontend.host.as_deref().unwrap_or("*");
        let named = format!("frontend.host {named}, frontend.port {}", frontend.port);
        let socket = sockets::listen(frontend.host.as_deref(), frontend.port);
        let mut socket = socket.map_err(|error| format!("cannot listen on {named}: {error}"))?;
        let registered = registry.register(&mut socket, token, Interest::READABLE);
        registered.map_err(|error| format!("listener: {error}"))?;
        Ok(Listener {
            socket,
            port,
            bound_to: (frontend.host.clone(), frontend.port),
            readable: true,
            paused_until: Time::ZERO,
            shortages: Repeats::default(),
        })
    }

    /// Whether it was bound to this host and port.
    pub fn is_bound_to(&self, frontend: &Frontend) -> bool {
        (&self.bound_to.0, self.bound_to.1) == (&frontend.host, frontend.port)
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
