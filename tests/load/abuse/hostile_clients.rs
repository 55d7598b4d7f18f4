//! Clients that misbehave, each kind in its own thread until it is stopped.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::common::{read_to_end, status_of};

/// All kinds of hostile clients at once.
pub struct HostileClients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    stopped: AtomicBool,
    /// Connections so far, of all kinds.
    connections: AtomicU64,
    /// Answers with an unexpected status.
    strange: AtomicU64,
}

/// The number of connections.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Clients that are answered once and then stay.
    pub idle: usize,
    /// Clients of each slow kind.
    pub slow: usize,
    /// Connections of the burst, each with a check.
    pub burst: usize,
}

type Kind = fn(&Shared, u8, Load);

/// Each kind has its own source address, so that none runs out of ports.
const KINDS: [Kind; 9] =
    [idlers, slow_heads, slow_bodies, slow_readers, half_closers, resetters, burst, floods, babble];

impl HostileClients {
    pub fn start(address: SocketAddr, load: Load) -> HostileClients {
        let stopped = AtomicBool::new(false);
        let (connections, strange) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { address, stopped, connections, strange });
        let numbered = KINDS.into_iter().zip(2..);
        let threads = numbered.map(|(kind, number)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || kind(&shared, number, load))
        });
        HostileClients { threads: threads.collect(), shared }
    }

    /// Stops all kinds; returns the number of their connections.
    pub fn stop(self) -> u64 {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no kind panics"));
        assert_eq!(self.shared.strange.load(Ordering::Relaxed), 0, "strange answers");
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn connect(&self, number: u8) -> Option<TcpStream> {
        self.connect_with(number, Socket::new(Domain::IPV4, Type::STREAM, None).ok()?)
    }

    /// Connects from the loopback address of that number, where the system has more than one.
    fn connect_with(&self, number: u8, socket: Socket) -> Option<TcpStream> {
        let _ = socket.bind(&SocketAddr::from(([127, 0, 0, number], 0)).into());
        socket.connect(&self.address.into()).ok()?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        let client = TcpStream::from(socket);
        client.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        Some(client)
    }

    /// At capacity there may be no answer; an answer has one of these statuses.
    fn judge(&self, status: u16, may_be: &[u16]) {
        if status != 0 && !may_be.contains(&status) {
            self.strange.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pause(&self, ms: u64) {
        for _ in 0..ms.div_ceil(20) {
            if self.goes_on() {
                thread::sleep(Duration::from_millis(ms.min(20)));
            }
        }
    }
}

/// Ask once on a kept connection, and stay connected.
fn idlers(shared: &Shared, number: u8, load: Load) {
    let mut clients = Vec::new();
    while shared.goes_on() {
        if clients.len() < load.idle {
            let Some(mut client) = shared.connect(number) else { return shared.pause(60_000) };
            if client.write_all(b"HEAD /nowhere HTTP/1.1\r\n\r\n").is_ok() {
                clients.push(client);
            }
        } else {
            shared.pause(50);
        }
    }
}

/// Send a byte of a head every 200 ms, until they are closed.
fn slow_heads(shared: &Shared, number: u8, load: Load) {
    drip(shared, number, load.slow, "", "GET /primary HTTP/1.1\r\nHost: x\r\nA: ");
}

/// Send a byte of a body every 200 ms.
fn slow_bodies(shared: &Shared, number: u8, load: Load) {
    let head = "POST /primary HTTP/1.1\r\nContent-Length: 60000\r\n\r\n";
    drip(shared, number, load.slow, head, "x");
}

fn drip(shared: &Shared, number: u8, count: usize, begin: &str, bytes: &str) {
    let mut clients = Vec::new();
    let endless = bytes.bytes().chain(std::iter::repeat(b'x'));
    for byte in endless {
        clients.retain_mut(|client: &mut TcpStream| client.write_all(&[byte]).is_ok());
        while clients.len() < count && shared.goes_on() {
            let Some(mut client) = shared.connect(number) else { break };
            let _ = client.write_all(begin.as_bytes());
            clients.push(client);
        }
        shared.pause(200);
        if !shared.goes_on() {
            return;
        }
    }
}

/// Ask for a large answer, and read a few bytes of it now and then.
fn slow_readers(shared: &Shared, number: u8, load: Load) {
    let mut clients = Vec::new();
    while shared.goes_on() {
        clients.retain_mut(|client: &mut TcpStream| {
            let _ = client.set_nonblocking(true);
            match client.read(&mut [0; 512]) {
                Ok(count) => count > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
        while clients.len() < load.slow.min(50) && shared.goes_on() {
            let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else { break };
            let _ = socket.set_recv_buffer_size(4 * 1024);
            let Some(mut client) = shared.connect_with(number, socket) else { break };
            let _ = client.write_all("GET /metrics HTTP/1.1\r\n\r\n".repeat(3).as_bytes());
            clients.push(client);
        }
        shared.pause(100);
    }
}

/// Half-close before, within and after a request.
fn half_closers(shared: &Shared, number: u8, _: Load) {
    let requests = ["", "GET /pri", "GET /nowhere HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\n\r\nGET"];
    for request in requests.iter().cycle() {
        if !shared.goes_on() {
            return;
        }
        let Some(mut client) = shared.connect(number) else { continue };
        let _ = client.write_all(request.as_bytes());
        let _ = client.shutdown(Shutdown::Write);
        shared.judge(status_of(&read_to_end(&mut client)), &[404, 405, 503]);
        shared.pause(2);
    }
}

/// Reset at once, within a request, before and during the answer.
fn resetters(shared: &Shared, number: u8, _: Load) {
    let requests =
        ["", "GET /pri", "GET /primary HTTP/1.1\r\n\r\n", "GET /metrics HTTP/1.0\r\n\r\n"];
    for (turn, request) in requests.iter().cycle().enumerate() {
        if !shared.goes_on() {
            return;
        }
        let Some(mut client) = shared.connect(number) else { continue };
        let _ = client.write_all(request.as_bytes());
        if turn % 8 > 3 {
            shared.pause(2);
        }
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

/// Checks on new connections, as fast as possible.
fn burst(shared: &Shared, number: u8, load: Load) {
    for at in 0..load.burst {
        if !shared.goes_on() {
            return;
        }
        // two of three reach the backlog before the first is answered
        let Some(mut client) = shared.connect(number + 20 * (at % 3) as u8) else { continue };
        let _ = client.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n");
        shared.judge(status_of(&read_to_end(&mut client)), &[200, 503]);
    }
    shared.pause(3_600_000);
}

/// Hundreds of requests in one write, and thousands of different queries.
fn floods(shared: &Shared, number: u8, _: Load) {
    let mut count = 0;
    while shared.goes_on() {
        let Some(mut client) = shared.connect(number) else { continue };
        let _ = client.write_all("GET /nowhere HTTP/1.1\r\n\r\n".repeat(500).as_bytes());
        let _ = client.write_all(b"BREW / HTTP/1.0\r\n\r\n");
        let text = read_to_end(&mut client);
        shared.judge(status_of(&text), &[404, 503]);
        let Some(mut client) = shared.connect(number) else { continue };
        for _ in 0..20 {
            count += 1;
            let request = format!("HEAD /replica?lag={count}&tag_{count}=x HTTP/1.1\r\n\r\n");
            let _ = client.write_all(request.as_bytes());
        }
        let _ = client.shutdown(Shutdown::Write);
        shared.judge(status_of(&read_to_end(&mut client)), &[200, 503]);
        shared.pause(20);
    }
}

/// Not HTTP: noise, a TLS hello, nothing at all.
fn babble(shared: &Shared, number: u8, load: Load) {
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    let mut silent = Vec::new();
    while shared.goes_on() {
        let bytes: Vec<u8> = (0..noise % 2000)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        noise = noise.rotate_left(5) | 1;
        for bytes in [&bytes[..], b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"] {
            let Some(mut client) = shared.connect(number) else { continue };
            let _ = client.write_all(bytes);
            let _ = client.shutdown(Shutdown::Write);
            shared.judge(status_of(&read_to_end(&mut client)), &[400, 414, 431, 501, 503]);
        }
        if silent.len() >= load.slow {
            silent.clear();
        }
        silent.extend(shared.connect(number));
        shared.pause(5);
    }
}
