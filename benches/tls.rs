//! The cost of TLS: `cargo bench --bench tls [cpu] [latency] [fetch]`; loopback only.
//!
//! * cpu: the server's CPU time per connection with one request, compared with nginx (if it is
//!   installed) with one worker, the same certificate and an answer of the same length
//! * latency: answers on a kept connection during 200 handshakes a second
//! * fetch: the time of a fetch from Python's `ssl`

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/binary/tls_support/mod.rs"]
mod tls_support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::standin::{StandIn, at_once, json};
use common::{Glue, wait_for};
use rustls::client::Resumption;
use rustls::{ClientConfig, SupportedProtocolVersion};
use tls_support::{BOTH, Folder, ONLY_12, ONLY_13, ask, client, connect, fixture, section};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let measurements: [(&str, fn()); 3] = [("cpu", cpu), ("latency", latency), ("fetch", fetch)];
    for (name, measure) in measurements {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            measure();
        }
    }
}

/// A JSON answer of 450 bytes.
fn answer() -> Vec<u8> {
    json(200, &format!("{{\"filler\": \"{}\"}}", "x".repeat(450 - 14)))
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

// ---- CPU, next to nginx

/// nginx with one worker and a static answer, killed on drop.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: Folder,
}

impl Nginx {
    fn start(kind: &str) -> Option<Nginx> {
        let folder = Folder::new();
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it");
        let body = String::from_utf8(answer()).expect("text");
        let body = body.split_once("\r\n\r\n").expect("a head").1;
        let (pem, key) = (fixture(&format!("{kind}.pem")), fixture(&format!("{kind}.pkcs8.key")));
        let path = folder.path("");
        let text = format!(
            "daemon off; worker_processes 1; pid {path}pid; error_log {path}log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; default_type application/json;\n\
             client_body_temp_path {path}1; proxy_temp_path {path}2; fastcgi_temp_path {path}3;\n\
             uwsgi_temp_path {path}4; scgi_temp_path {path}5;\n\
             server {{ listen {port} ssl; ssl_certificate {pem}; ssl_certificate_key {key};\n\
             ssl_protocols TLSv1.2 TLSv1.3; location / {{ return 200 '{body}'; }} }} }}\n"
        );
        let config = folder.write("nginx.conf", &text);
        let mut command = Command::new("nginx");
        let command = command.args(["-p", &path, "-c", &config]).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        wait_for("nginx", || TcpStream::connect(port).ok());
        Some(Nginx { child, address: port, _folder: folder })
    }

    fn processes(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let workers = children.split_whitespace().filter_map(|word| word.parse().ok());
        workers.chain([id]).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // its workers end with it
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// CPU time of these processes in nanoseconds.
fn cpu_nanoseconds(processes: &[u32]) -> u64 {
    let tasks = processes.iter().flat_map(|id| fs::read_dir(format!("/proc/{id}/task")));
    let files = tasks.flatten().flatten().map(|task| task.path().join("schedstat"));
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// Microseconds of CPU per connection: handshake, request, close.
fn cpu_per_connection(config: &Arc<ClientConfig>, address: SocketAddr, ids: &[u32]) -> f64 {
    let before = cpu_nanoseconds(ids);
    for _ in 0..CONNECTIONS_PER_ROUND {
        let mut stream = connect(config, address);
        let request = b"GET /primary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).expect("an open socket");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("an answer and a clean end");
        assert!(text.len() > 450, "{}", String::from_utf8_lossy(&text));
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
    (cpu_nanoseconds(ids) - before) as f64 / 1_000.0 / CONNECTIONS_PER_ROUND as f64
}

fn cpu() {
    let patroni = StandIn::start(at_once(answer()));
    let mut full_12 = None;
    let table = [
        ("TLS 1.3 ECDSA full", "ecdsa", ONLY_13, false, "≤ 0.5"),
        ("TLS 1.3 RSA full", "rsa", ONLY_13, false, "≤ 0.8"),
        ("TLS 1.3 ECDSA resumed", "ecdsa", ONLY_13, true, "≤ 0.55"),
        ("TLS 1.2 ECDSA full", "ecdsa", ONLY_12, false, "-"),
        ("TLS 1.2 ECDSA resumed", "ecdsa", ONLY_12, true, "-"),
    ];
    for (name, kind, versions, resumes, target) in table {
        let glue = glue(patroni.address, kind, &[("cache", "ttl: 60")]);
        let nginx = Nginx::start(kind);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut config = trusting(kind, versions);
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        // each server needs its own store of sessions
        let other = {
            let mut other = trusting(kind, versions);
            if !resumes {
                other.resumption = Resumption::disabled();
            }
            Arc::new(other)
        };
        let config = Arc::new(config);
        for _ in 0..ROUNDS {
            ours.push(cpu_per_connection(&config, glue.address, &[glue.process_id()]));
            if let Some(nginx) = &nginx {
                theirs.push(cpu_per_connection(&other, nginx.address, &nginx.processes()));
            }
        }
        let us = median(&mut ours);
        let ratio = match median(&mut theirs) {
            them if them > 0.0 => format!("nginx {them:.0}, ratio {:.2} ({target})", us / them),
            _ => "nginx is not installed".to_owned(),
        };
        println!("cpu: {name}: {us:.0} µs, {ratio}");
        match (versions == ONLY_12, resumes) {
            (true, false) => full_12 = Some(us),
            (true, true) => {
                let part = us / full_12.unwrap_or(f64::NAN);
                println!("cpu: TLS 1.2 resumed is {part:.2} of a full one (< 0.5)");
            }
            _ => {}
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

// ---- latency

fn latency() {
    let patroni = StandIn::start(at_once(answer()));
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
