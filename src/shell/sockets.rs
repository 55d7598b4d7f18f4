//! Obtains sockets: the options of a listening one and of a connecting one.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use socket2::{Domain, Socket, Type};

use super::connector::Dial;
use super::descriptors::is_no_descriptor;
use super::stream_table::token_of;
use crate::failure::Failure;
use crate::slots::ConnId;

/// Listens on a host's address, or on every address. Blocks while a name is resolved, so that a
/// reload refuses names that have to be looked up in the network.
pub fn listen(host: Option<&str>, port: u16) -> io::Result<TcpListener> {
    let socket = match host {
        Some(host) => listen_on_name(host, port),
        None => listen_on_all(port),
    };
    socket.map(|socket| TcpListener::from_std(socket.into()))
}

/// Sets the options of a listening socket that was handed over.
pub fn adopt(socket: OwnedFd) -> io::Result<TcpListener> {
    let socket = Socket::from(socket);
    set_options(&socket)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Whether a socket with this address is what [`listen`] would bind. Blocks as it does.
pub fn is_bound_to(address: SocketAddr, host: Option<&str>, port: u16) -> bool {
    let is_of_host = match host {
        None => address.ip().is_unspecified() && (address.is_ipv6() || !has_ipv6()),
        Some(host) => (host, port)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.any(|one| one.ip() == address.ip())),
    };
    is_of_host && (port == 0 || port == address.port())
}

/// Whether all addresses include those of IPv6.
fn has_ipv6() -> bool {
    listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).is_ok()
}

/// Binds an address that was bound until now. A supervisor closes its copy of the previous listener
/// in another thread (systemd's `asynchronous_close`), and until then the address is in use.
pub fn bind_again<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut outcome = bind();
    for _ in 0..REBIND_TRIES_MAX {
        if !outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
            break;
        }
        thread::sleep(REBIND_PAUSE);
        outcome = bind();
    }
    outcome
}

impl Dial for Rc<Registry> {
    type Socket = TcpStream;

    fn dial(&mut self, address: SocketAddr, id: ConnId) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect(address)?;
        // a fetch is one small write and a read: Nagle's algorithm has nothing to gain
        let _ = socket.set_nodelay(true);
        self.register(&mut socket, token_of(id), BOTH)?;
        Ok(socket)
    }

    /// Writable alone does not mean connected.
    fn outcome(&self, socket: &TcpStream) -> Option<Result<(), Failure>> {
        if let Ok(Some(error)) | Err(error) = socket.take_error() {
            return Some(Err(connect_failure(&error)));
        }
        match socket.peer_addr() {
            Ok(_) => Some(Ok(())),
            Err(error) if error.kind() == ErrorKind::NotConnected => None,
            Err(error) => Some(Err(connect_failure(&error))),
        }
    }
}

/// IPv6 including IPv4, or IPv4 alone where the kernel has no IPv6.
fn listen_on_all(port: u16) -> io::Result<Socket> {
    let socket = listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    match socket {
        Err(error) if is_no_such_family(&error) => {
            listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        outcome => outcome,
    }
}

/// Whether the kernel has no IPv6 (EAFNOSUPPORT) or has it turned off (EADDRNOTAVAIL). The numbers
/// are those of Linux and of the BSDs.
fn is_no_such_family(error: &io::Error) -> bool {
    let codes = if cfg!(target_os = "linux") { [97, 99] } else { [47, 49] };
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Listens on the first of a name's addresses that works, IPv4 first, as Go's `net.Listen` does.
fn listen_on_name(host: &str, port: u16) -> io::Result<Socket> {
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut outcome = Err(io::Error::other("the name has no address"));
    for address in addresses {
        outcome = listen_on(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn listen_on(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        let is_every_address = address.ip().is_unspecified();
        socket.set_only_v6(!is_every_address)?;
    }
    set_options(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn set_options(socket: &Socket) -> io::Result<()> {
    // inherited by accepted sockets (tcp(7)), which saves a call for each client
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)
}

/// Sets TCP_DEFER_ACCEPT (tcp(7)) of a listening socket, for [`DEFER_SECONDS`], or turns it off.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)] // no maintained crate wraps TCP_DEFER_ACCEPT
pub fn defer_accept(socket: &impl AsRawFd, defers: bool) -> io::Result<()> {
    let seconds: libc::c_int = if defers { DEFER_SECONDS } else { 0 };
    let bytes = size_of_val(&seconds) as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    // SAFETY: the descriptor is open, and the kernel reads `bytes` bytes of a value that lives
    let code = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const seconds).cast(), bytes)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Other systems have no such option, and the configuration is refused.
#[cfg(not(target_os = "linux"))]
pub fn defer_accept(_: &impl AsRawFd, _: bool) -> io::Result<()> {
    Ok(())
}

/// The failure that an error of `connect` stands for.
pub fn connect_failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Failure::Reset,
        ErrorKind::TimedOut => Failure::TimedOut,
        _ if is_no_descriptor(error) => Failure::NoDescriptor,
        _ => Failure::Unreachable,
    }
}

/// Together a fifth of a second: the loop stands still meanwhile.
const REBIND_TRIES_MAX: u32 = 20;
const REBIND_PAUSE: Duration = Duration::from_millis(10);
/// The interest of every stream.
pub const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// Connections waiting to be accepted; limited by `net.core.somaxconn` (4096 by default).
pub const BACKLOG: i32 = 4096;
/// How long the kernel keeps back a connection without bytes. It rounds to the times at which it
/// repeats a SYN-ACK: after one second it repeats the first, and the client's ACK then completes
/// the connection.
#[cfg(target_os = "linux")]
const DEFER_SECONDS: libc::c_int = 1;
/// What the kernel keeps for a client that does not read; it doubles the value for its bookkeeping
/// (socket(7)). Without a limit it grows to megabytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::UpstreamId;
    use crate::shell::connector::{Connector, Outcome, Servers};
    use crate::shell::stream::{Buffers, ReadOutcome, Stream};
    use crate::time::Time;
    use mio::{Events, Poll};
    use std::io::Write;
    use std::time::Instant;

    const ID: ConnId = ConnId { slot: 7, generation: 1 };
    const LONG: Option<Duration> = Some(Duration::from_secs(10));

    /// A listener whose backlog is full, so that the kernel ignores more SYNs, and what fills it.
    fn deaf_listener() -> (Socket, Vec<Socket>) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).expect("a free port");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().expect("its address");
        let connect = |_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            client.set_nonblocking(true).expect("an option");
            let _ = client.connect(&address);
            client
        };
        let clients = (0..4).map(connect).collect();
        (listener, clients)
    }

    /// Runs one attempt in a poll loop.
    fn connect(addresses: &[SocketAddr]) -> Outcome<TcpStream> {
        let mut poll = Poll::new().expect("a poll");
        let addresses = addresses.to_vec();
        let lookup = Rc::new(move |host, port, answers: std::sync::mpsc::Sender<_>| {
            answers.send((host, port, addresses.clone())).is_ok()
        });
        let registry = Rc::new(poll.registry().try_clone().expect("a registry"));
        let mut connector = Connector::new(Servers::One, lookup, registry);
        connector.configure([("patroni", 8008)], 3_000);
        connector.take_addresses(Time::ZERO);
        let (start, mut events) = (Instant::now(), Events::with_capacity(8));
        let mut now = Time::ZERO;
        connector.connect(now, ID);
        loop {
            if let Some((_, outcome)) = connector.advance(now) {
                return outcome;
            }
            let timeout = connector.next_deadline();
            let timeout = timeout.map(|at| Duration::from_millis(at.ms_since(now)));
            poll.poll(&mut events, timeout.or(LONG)).expect("events");
            assert!(timeout.is_some() || !events.is_empty(), "nothing happens");
            events.iter().for_each(|event| connector.mark(event.token()));
            now = Time::from_ms(start.elapsed().as_millis() as u64);
        }
    }

    #[test]
    fn an_address_that_swallows_syns_is_passed_over() {
        let (deaf, _clients) = deaf_listener();
        let deaf = deaf.local_addr().ok().and_then(|address| address.as_socket());
        let deaf = deaf.expect("its address");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let connected = connect(&[deaf, address]).unwrap_or_else(|why| panic!("{why:?}"));
        assert_eq!(connected.socket.peer_addr().ok(), Some(address));
        drop(listener);
        let outcome = connect(&[address]).map(|_| ());
        assert_eq!(outcome, Err(Failure::Refused));
    }

    #[test]
    fn bytes_that_arrive_while_connecting_are_reported_again() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (mut poll, mut events) = (Poll::new().expect("a poll"), Events::with_capacity(8));
        let mut registry = Rc::new(poll.registry().try_clone().expect("a registry"));
        let socket = registry.dial(address, ID).expect("a socket");
        let (mut peer, _) = listener.accept().expect("a connection");
        peer.write_all(b"x").expect("it is open");
        drop(peer);
        while !events.iter().any(|event| event.is_read_closed()) {
            poll.poll(&mut events, LONG).expect("events");
            assert!(!events.is_empty(), "nothing happens");
        }
        assert_eq!(registry.outcome(&socket), Some(Ok(())));
        let mut stream = Stream::connected(socket, None, UpstreamId::Patroni);
        stream.reregister(poll.registry(), token_of(ID)).expect("it is registered");
        poll.poll(&mut events, LONG).expect("events");
        events.iter().for_each(|event| stream.mark(event));
        let mut buffers = Buffers::new();
        assert!(stream.is_readable());
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Data(b"x"));
        assert!(stream.is_readable(), "the end is still to be read");
        assert_eq!(stream.read(&mut buffers), ReadOutcome::Eof);
    }
}
