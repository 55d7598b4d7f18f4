//! Obtains sockets: the options of a listening one and of a connecting one.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Socket, Type};

/// Listens on a host's address, or on every address. Blocks while a name is resolved, so only at
/// start.
pub fn listen(host: Option<&str>, port: u16) -> io::Result<TcpListener> {
    let socket = match host {
        Some(host) => listen_on_name(host, port),
        None => listen_on_all(port),
    };
    socket.map(|socket| TcpListener::from_std(socket.into()))
}

/// Begins to connect; the outcome shows once the socket is writable.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    // a fetch is one small write and a read: Nagle's algorithm has nothing to gain
    let _ = socket.set_nodelay(true);
    Ok(socket)
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
    // inherited by accepted sockets (tcp(7)), which saves a call for each client
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Connections waiting to be accepted; limited by `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;
/// What the kernel keeps for a client that does not read; it doubles the value for its bookkeeping
/// (socket(7)). Without a limit it grows to megabytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
