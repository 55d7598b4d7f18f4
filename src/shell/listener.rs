//! Accepting clients, and what to do when descriptors run out.

use std::io;
use std::net::SocketAddr;

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::descriptors::is_no_descriptor;
use super::sockets;
use crate::config::Frontend;
use crate::engine::Port;
use crate::journal::Repeats;
use crate::time::Time;

/// The clients' door.
pub struct Listener {
    socket: TcpListener,
    port: Port,
    /// `frontend.host` and `frontend.port`, as they were at the start.
    bound_to: (Option<String>, u16),
    /// Cleared only when nobody is left in the backlog: the poll says it once.
    readable: bool,
    /// Until then nobody is let in, for want of descriptors.
    paused_until: Time,
    shortages: Repeats,
}

/// Who stood at the door.
pub enum Accepted {
    /// A client.
    Client(TcpStream),
    /// Perhaps somebody, but there is no descriptor for him. Accepting pauses.
    NoDescriptor,
    /// Blocked, or accepting pauses.
    Blocked,
}

impl Listener {
    /// Listens on what is configured. Blocks while a name is resolved, so only at start.
    pub fn bind(port: Port, frontend: &Frontend) -> Result<Listener, String> {
        let named = frontend.host.as_deref().unwrap_or("*");
        let named = format!("frontend.host {named}, frontend.port {}", frontend.port);
        let socket = sockets::listen(frontend.host.as_deref(), frontend.port);
        let socket = socket.map_err(|error| format!("cannot listen on {named}: {error}"))?;
        Ok(Listener {
            socket,
            port,
            bound_to: (frontend.host.clone(), frontend.port),
            readable: true,
            paused_until: Time::ZERO,
            shortages: Repeats::default(),
        })
    }

    /// Tells the poll of it.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    /// Would it listen there, too, if it began now?
    pub fn is_bound_to(&self, frontend: &Frontend) -> bool {
        (&self.bound_to.0, self.bound_to.1) == (&frontend.host, frontend.port)
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// The port its clients are accepted on.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The poll says that somebody came.
    pub fn mark_readable(&mut self) {
        self.readable = true;
    }

    /// When accepting goes on, if somebody may be waiting.
    pub fn ready_at(&self, now: Time) -> Option<Time> {
        self.readable.then(|| self.paused_until.max(now))
    }

    /// Lets one client in.
    pub fn accept(&mut self, now: Time) -> Accepted {
        for _ in 0..ERRORS_MAX {
            if !self.readable || now < self.paused_until {
                break;
            }
            match self.socket.accept() {
                Ok((client, _)) => return Accepted::Client(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if is_no_descriptor(&error) => {
                    // the bit stays: the poll will not say it again
                    self.paused_until = now.plus_ms(PAUSE_MS);
                    if let Some(times) = self.shortages.count(now) {
                        warn!("no client is let in: {error} ({times} times)");
                    }
                    return Accepted::NoDescriptor;
                }
                // ECONNABORTED, EINTR and the like are about one client only (accept(2))
                Err(_) => {}
            }
        }
        Accepted::Blocked
    }
}

/// Errors in a row of clients that had gone, before the others have their turn.
const ERRORS_MAX: u32 = 64;
/// How long nobody is let in when descriptors have run out.
const PAUSE_MS: u64 = 100;
