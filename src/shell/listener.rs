//! Binding, accepting, and what to do when descriptors run out.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Socket, Type};

use super::descriptors::is_no_descriptor;
use crate::config::Frontend;
use crate::journal::Repeats;
use crate::time::Time;

/// The clients' door.
pub struct Listener {
    socket: TcpListener,
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
    /// Nobody, or accepting pauses.
    Nobody,
}

impl Listener {
    /// Listens on what is configured. Blocks while a name is resolved, so only at start.
    pub fn bind(frontend: &Frontend) -> Result<Listener, String> {
        let named = frontend.host.as_deref().unwrap_or("*");
        let named = format!("frontend.host {named}, frontend.port {}", frontend.port);
        let socket = match &frontend.host {
            Some(host) => listen_on_name(host, frontend.port),
            None => listen_on_all(frontend.port),
        };
        let socket = socket.map_err(|error| format!("cannot listen on {named}: {error}"))?;
        Ok(Listener {
            socket: TcpListener::from_std(socket.into()),
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

    /// Has the poll forget it.
    pub fn deregister(&mut self, registry: &Registry) {
        // it is closed next, which does the same
        let _ = registry.deregister(&mut self.socket);
    }

    /// Would it listen there, too, if it began now?
    pub fn is_bound_to(&self, frontend: &Frontend) -> bool {
        (&self.bound_to.0, self.bound_to.1) == (&frontend.host, frontend.port)
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
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
                    if let Some(times) = self.shortages.note(now) {
                        warn!("no client is let in: {error} ({times} times)");
                    }
                    return Accepted::NoDescriptor;
                }
                // ECONNABORTED, EINTR and the like are about one client only (accept(2))
                Err(_) => {}
            }
        }
        Accepted::Nobody
    }
}

/// IPv6 with IPv4 inside it, or IPv4 alone where the kernel has no IPv6.
fn listen_on_all(port: u16) -> io::Result<Socket> {
    let socket = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    match socket {
        Err(error) if is_no_such_family(&error) => {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        outcome => outcome,
    }
}

/// The kernel was built without IPv6 (EAFNOSUPPORT), or has it turned off (EADDRNOTAVAIL). The
/// numbers are Linux's and the BSDs'.
fn is_no_such_family(error: &io::Error) -> bool {
    let codes = if cfg!(target_os = "linux") { [97, 99] } else { [47, 49] };
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// One of a name's addresses, IPv4 first: what Go's `net.Listen` does.
fn listen_on_name(host: &str, port: u16) -> io::Result<Socket> {
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut outcome = Err(io::Error::other("the name has no address"));
    for address in addresses {
        outcome = listen(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        let is_every_address = address.ip().is_unspecified();
        socket.set_only_v6(!is_every_address)?;
    }
    // inherited by every accepted socket (tcp(7)), so that no client costs a call for it
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Errors in a row of clients that had gone, before the others have their turn.
const ERRORS_MAX: u32 = 64;
/// Clients that may knock at once; the kernel cuts it to `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;
/// What the kernel keeps for a client that does not read, before it is the daemon's to wait; it
/// takes twice that for its own accounts (socket(7)). Left to itself it would grow to megabytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// How long nobody is let in when descriptors have run out.
const PAUSE_MS: u64 = 100;
