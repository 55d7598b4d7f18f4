//! Descriptors that the supervisor hands over (sd_listen_fds(3)).

use std::env;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use log::info;
use mio::{Registry, Token};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use socket2::{Domain, SockRef, Type};

use super::number;
use crate::engine::Port;
use crate::shell::listener::{BoundTo, Listener};
use crate::shell::sockets;

/// A descriptor that was handed over.
#[derive(Debug)]
pub struct Handed {
    /// Its name in `LISTEN_FDNAMES`.
    pub name: String,
    number: RawFd,
    /// `None`: it was not open.
    descriptor: Option<OwnedFd>,
}

impl Handed {
    /// Takes every descriptor that the environment hands over to this process. To be called once,
    /// before any file is opened: a number that is not open would be given to it.
    pub fn take_all() -> Vec<Handed> {
        let is_ours = number("LISTEN_PID") == Some(u64::from(std::process::id()));
        let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0).min(DESCRIPTORS_MAX);
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let numbers = (0..count).map(|at| FIRST_DESCRIPTOR + at as RawFd);
        let all = numbers.map(|number| Handed {
            name: names.next().unwrap_or_default().to_owned(),
            number,
            descriptor: adopt(number),
        });
        all.collect()
    }

    /// The address of a listening TCP socket, or the reason why it is none.
    pub fn address(&self) -> Result<SocketAddr, String> {
        let why = match &self.descriptor {
            None => "it is not open",
            Some(descriptor) => {
                let socket = SockRef::from(descriptor);
                match (socket.local_addr(), socket.r#type()) {
                    (Err(_), _) | (_, Err(_)) => "it is not a socket",
                    (Ok(address), Ok(Type::STREAM)) => match address.as_socket() {
                        None => "it is a UNIX socket",
                        Some(_) if !listens(&socket) => "it does not listen",
                        Some(address) => return Ok(address),
                    },
                    (Ok(address), Ok(Type::DGRAM)) if address.domain() != Domain::UNIX => {
                        "it is a UDP socket"
                    }
                    _ => "it is not a TCP socket",
                }
            }
        };
        Err(format!("{self} is not a listening TCP socket: {why}"))
    }

    /// The listener of a port, from a descriptor that has an address.
    pub fn listen(
        self,
        port: Port,
        bound_to: BoundTo,
        registry: &Registry,
        token: Token,
    ) -> Result<Listener, String> {
        let name = self.to_string();
        let socket = self.descriptor.ok_or_else(|| format!("{name} is not open"))?;
        let socket = sockets::adopt(socket).map_err(|error| format!("{name}: {error}"))?;
        info!("{name} is used");
        Listener::with_socket(port, bound_to, socket, registry, token)
            .map_err(|error| format!("{name}: {error}"))
    }
}

impl std::fmt::Display for Handed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LISTEN_FDS: descriptor {} ({})", self.number, self.name.escape_debug())
    }
}

#[cfg(target_os = "linux")]
fn listens(socket: &SockRef<'_>) -> bool {
    socket.is_listener().unwrap_or(false)
}

/// Not every system has SO_ACCEPTCONN: accepting will fail.
#[cfg(not(target_os = "linux"))]
fn listens(_: &SockRef<'_>) -> bool {
    true
}

/// Takes a descriptor over, if it is open. Programs that are started from here do not inherit it.
#[allow(unsafe_code)] // std has no safe way from a number to a descriptor
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for these two calls, which report a number that is not open
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(descriptor).ok()?;
    fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and the environment says that it is this process' own
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// SD_LISTEN_FDS_START.
const FIRST_DESCRIPTOR: RawFd = 3;
/// More than a unit has listeners and stored descriptors.
const DESCRIPTORS_MAX: u64 = 64;
