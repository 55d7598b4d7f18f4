//! The cost of TLS that bench/run does not measure: `cargo bench --bench tls [cpu] [latency]
//! [fetch]`; loopback only.
//!
//! * cpu: the server's CPU time per TLS 1.2 connection with one request, full and resumed
//! * latency: answers on a kept connection during 200 handshakes a second
//! * fetch: the time of a fetch from Python's `ssl`

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/binary/tls_support/mod.rs"]
mod tls_support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Glue;
use common::standin::{StandIn, at_once, json_of_450_bytes};
use rustls::client::Resumption;
use rustls::{ClientConfig, SupportedProtocolVersion};
use tls_support::{BOTH, ONLY_12, ask, client, connect, fixture, section};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let measurements: [(&str, fn()); 3] = [("cpu", cpu), ("latency", latency), ("fetch", fetch)];
    for (name, measure) in measurements {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            measure();
        }
    }
}

/// The daemon with a certificate of `tests/fixtures/tls`.
fn glue(patroni: SocketAddr, kind: &str, more: &[(&str, &str)]) -> Glue {
    let lines = [
        format!("certfile: {}", fixture(&format!("{kind}.pem"))),
        format!("keyfile: {}", fixture(&format!("{kind}.pkcs8.key"))),
    ];
    let mut lines = section("frontend", &lines);
    lines.extend(more);
    Glue::start(patroni, &lines)
}

fn trusting(kind: &str, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let root = fs::read_to_string(fixture(&format!("{kind}.pem"))).expect("a fixture");
    client(&root, versions, None)
}

// ---- CPU of TLS 1.2

/// CPU time of the process in nanoseconds.
fn cpu_nanoseconds(id: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter();
    let files = tasks.flatten().flatten().map(|task| task.path().join("schedstat"));
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// Microseconds of CPU per connection: handshake, request, close.
fn cpu_per_connection(config: &Arc<ClientConfig>, glue: &Glue) -> f64 {
    let before = cpu_nanoseconds(glue.process_id());
    for _ in 0..CONNECTIONS_PER_ROUND {
        let mut stream = connect(config, glue.address);
        let request = b"GET /primary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).expect("an open socket");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("an answer and a clean end");
        assert!(text.len() > 450, "{}", String::from_utf8_lossy(&text));
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
    (cpu_nanoseconds(glue.process_id()) - before) as f64 / 1_000.0 / CONNECTIONS_PER_ROUND as f64
}

fn cpu() {
    let patroni = StandIn::start(at_once(json_of_450_bytes()));
    let glue = glue(patroni.address, "ecdsa", &[("cache", "ttl: 60")]);
    let cost = |config: ClientConfig| {
        let config = Arc::new(config);
        let mut values: Vec<f64> =
            (0..ROUNDS).map(|_| cpu_per_connection(&config, &glue)).collect();
        median(&mut values)
    };
    let mut config = trusting("ecdsa", ONLY_12);
    config.resumption = Resumption::disabled();
    let full = cost(config);
    let resumed = cost(trusting("ecdsa", ONLY_12));
    let part = resumed / full;
    println!("cpu: TLS 1.2, {full:.0} µs; resumed {resumed:.0}, {part:.2} of it (< 0.5)");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

// ---- latency

fn latency() {
    let patroni = StandIn::start(at_once(json_of_450_bytes()));
    for kind in ["ecdsa", "rsa"] {
        let glue = glue(patroni.address, kind, &[("cache", "ttl: 60")]);
        let mut config = trusting(kind, BOTH);
        config.resumption = Resumption::disabled();
        let (config, address) = (Arc::new(config), glue.address);
        let ends = Arc::new(AtomicBool::new(false));
        let flood = {
            let (config, ends) = (Arc::clone(&config), Arc::clone(&ends));
            thread::spawn(move || {
                let (begun, mut count) = (Instant::now(), 0_u32);
                while !ends.load(Ordering::Relaxed) {
                    let due = Duration::from_millis(5) * count;
                    thread::sleep(due.saturating_sub(begun.elapsed()));
                    ask(&mut connect(&config, address), "/primary").expect("an answer");
                    count += 1;
                }
                f64::from(count) / begun.elapsed().as_secs_f64()
            })
        };
        let mut kept = connect(&config, address);
        let mut waits = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let asking = Instant::now();
            ask(&mut kept, "/primary").expect("an answer");
            waits.push(asking.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        ends.store(true, Ordering::Relaxed);
        let rate = flood.join().expect("no panic");
        waits.sort();
        let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
        println!(
            "latency: {rate:.0} handshakes/s ({kind}), {} answers on a kept connection: \
             median {:?}, 99 % within {:?}, the slowest {:?} (≤ 5 ms)",
            waits.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

// ---- fetch

const PYTHON: &str = r#"
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"state": "running"}')
    def finish(self):
        super().finish()
        try: self.connection.unwrap()
        except OSError: pass
    def log_message(self, *args): pass
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[1], sys.argv[2])
context.maximum_version = getattr(ssl.TLSVersion, sys.argv[3])
class Server(http.server.ThreadingHTTPServer):
    def get_request(self):
        socket, address = self.socket.accept()
        return context.wrap_socket(socket, server_side=True), address
server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A child process, killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fetch() {
    for version in ["TLSv1_3", "TLSv1_2"] {
        let mut command = Command::new("python3");
        let files = [fixture("ecdsa.pem"), fixture("ecdsa.pkcs8.key")];
        command.args(["-c", PYTHON]).args(files).arg(version).stdout(Stdio::piped());
        let Ok(child) = command.spawn() else { return println!("fetch: python3 is missing") };
        let mut child = Killed(child);
        let mut port = String::new();
        let stdout = child.0.stdout.take().expect("a pipe");
        let read = std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut port);
        read.expect("a line");
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().expect("a port")));

        let lines = ["scheme: https".to_owned(), format!("cafile: {}", fixture("ecdsa.pem"))];
        let mut lines = section("backend", &lines);
        lines.push(("cache", "ttl: 0"));
        let glue = Glue::start(address, &lines);
        let ours = times(|| assert_eq!(glue.get("/primary").0, 200));
        // a client that leaves acknowledgements to the kernel
        let config = Arc::new(trusting("ecdsa", BOTH));
        let plain = times(|| {
            let mut stream = connect(&config, address);
            stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("an open socket");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        println!(
            "fetch: from Python's {version}: {ours:.1} ms by the daemon; \
             {plain:.1} ms by a client without TCP_QUICKACK"
        );
    }
}

/// The median time of 40 calls in milliseconds.
fn times(mut call: impl FnMut()) -> f64 {
    let mut values = Vec::new();
    for _ in 0..40 {
        let begun = Instant::now();
        call();
        values.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    median(&mut values)
}

const ROUNDS: usize = 5;
const CONNECTIONS_PER_ROUND: usize = 300;
