//! `-health`: asks the daemon's own address, for images without curl.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::tls::ask_over_tls;
use crate::config::{Config, Frontend};

/// Asks the daemon that runs with this configuration for a response that needs no Patroni. The
/// error says what was tried.
pub fn ask(config: &Config) -> Result<(), String> {
    let frontend = &config.frontend;
    if frontend.port == 0 {
        return Err("frontend.port is 0: the port is not known; write one".to_owned());
    }
    let host = frontend.host.as_deref().unwrap_or("every address");
    let named = format!("patroniglue on {host}, port {}", frontend.port);
    match ask_frontend(frontend) {
        Ok(Some(response)) if !response.starts_with(b"HTTP/1.") => {
            Err(format!("{named}: the response is not HTTP"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{named}: {error}")),
    }
}

/// The beginning of a response; `None`: an alert of TLS.
fn ask_frontend(frontend: &Frontend) -> io::Result<Option<Vec<u8>>> {
    let socket = connect(frontend)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    if frontend.proxy_protocol {
        (&socket).write_all(b"PROXY UNKNOWN\r\n")?;
    }
    if frontend.tls.is_some() {
        return ask_over_tls(socket, REQUEST);
    }
    let mut socket = socket;
    socket.write_all(REQUEST)?;
    let mut response = vec![0; RESPONSE_BYTES_MAX];
    let length = socket.read(&mut response)?;
    response.truncate(length);
    Ok(Some(response))
}

fn connect(frontend: &Frontend) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match frontend.host.as_deref() {
        None => vec![(Ipv4Addr::LOCALHOST, frontend.port).into()],
        Some(host) => (host, frontend.port).to_socket_addrs()?.collect(),
    };
    let mut outcome = Err(io::Error::other("the name has no address"));
    for address in addresses {
        outcome = TcpStream::connect_timeout(&reachable(address), PATIENCE);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// `0.0.0.0` and `::` are listened on, and reached on the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

/// More than the whole response; its status line comes in one piece.
const RESPONSE_BYTES_MAX: usize = 1024;
/// Answered by patroniglue itself (RFC 9110, section 9.3.7).
const REQUEST: &[u8] = b"OPTIONS * HTTP/1.0\r\n\r\n";
/// A daemon that stands still for this long is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);
