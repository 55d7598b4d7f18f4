//! A first look: stand-ins for Patroni and etcd with changing behaviour, the daemon, 300 clients.
//!
//! `cargo run --release --example demo -- [SECONDS]` ends by itself, by default after a minute:
//! Patroni answers, then its API freezes, then its HA loop stops as well.

#[path = "../tests/common/etcd.rs"]
mod etcd;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etcd::{Etcd, Remaining};
use patroniglue::config::Config;
use patroniglue::engine::Port;
use patroniglue::shell::{Daemon, Options};

fn main() {
    let default = PHASES.iter().map(|phase| phase.seconds).sum();
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(default);
    let patroni = Patroni::start();
    let (glue, admin) = start_daemon(patroni.address, patroni.etcd.address);
    let seen = Arc::new(Mutex::new(Seen::default()));
    for thread in 0..CLIENT_THREADS {
        let seen = Arc::clone(&seen);
        thread::spawn(move || ask_for_ever(glue, thread, &seen));
    }
    println!("{CLIENTS} clients ask the daemon once a second each: curl -i http://{glue}/primary");
    println!("The status page: http://{admin}/");
    println!("cache.grace is 0: a stale answer rests on the lease in etcd, read by the daemon.");
    let mut total = Seen::default();
    let mut etcd_asked = 0;
    for second in 1..=seconds {
        let phase = phase_at(Duration::from_secs(second - 1));
        if phase.begins_at(second - 1) {
            println!("\n{}\n{HEADING}", phase.story);
        }
        thread::sleep(Duration::from_secs(1));
        let asked = patroni.asked.swap(0, Ordering::Relaxed);
        let asked_before = std::mem::replace(&mut etcd_asked, patroni.etcd.requests().len());
        let mut now = std::mem::take(&mut *seen.lock().expect("no client panics"));
        let (lease, of_etcd) = (patroni.lease(phase), etcd_asked - asked_before);
        println!("{second:>4}  {lease:>10}  {}  {asked:>16}  {of_etcd:>4}", now.line());
        total.add(&now, asked);
    }
    println!(
        "\n{} answers, {} of them stale; {} checks without one; fetches: {} from Patroni, \
         {etcd_asked} from etcd.",
        total.answers(),
        total.stale,
        total.lost,
        total.asked
    );
}

/// One thread's share of the clients: every second one keeps its connection, as a proxy does, the
/// others connect for each request, as HAProxy's checks do.
fn ask_for_ever(glue: SocketAddr, thread: usize, seen: &Mutex<Seen>) {
    let share = CLIENTS / CLIENT_THREADS;
    let mut kept: Vec<Option<TcpStream>> = (0..share).map(|_| None).collect();
    let pause = Duration::from_secs(1) / share as u32;
    thread::sleep(pause * thread as u32 / CLIENT_THREADS as u32);
    for turn in 0.. {
        let begun = Instant::now();
        let client = turn % share;
        let response = if client.is_multiple_of(2) {
            check(glue)
        } else {
            check_kept(glue, &mut kept[client])
        };
        seen.lock().expect("no client panics").record(response, begun.elapsed());
        thread::sleep(pause.saturating_sub(begun.elapsed()));
    }
}

/// Sends a check as HAProxy's `option httpchk OPTIONS /primary` does.
fn check(glue: SocketAddr) -> Option<Response> {
    let mut stream = TcpStream::connect(glue).ok()?;
    stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").ok()?;
    read_response(&mut stream)
}

fn check_kept(glue: SocketAddr, kept: &mut Option<TcpStream>) -> Option<Response> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(glue).ok()?,
    };
    stream.write_all(b"HEAD /primary HTTP/1.1\r\nHost: demo\r\n\r\n").ok()?;
    let response = read_response(&mut stream)?;
    *kept = Some(stream);
    Some(response)
}

fn read_response(stream: &mut TcpStream) -> Option<Response> {
    let mut head = [0; 1024];
    let count = stream.read(&mut head).ok()?;
    let head = std::str::from_utf8(&head[..count]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    Some(Response { status, stale: head.contains("detail=silent") })
}

/// Returns the addresses of the health checks and of the status page.
fn start_daemon(patroni: SocketAddr, etcd: SocketAddr) -> (SocketAddr, SocketAddr) {
    let text = format!(
        "frontend: {{host: 127.0.0.1, port: 0}}\n\
         admin: {{port: 0}}\n\
         backend: {{host: {}, port: {}}}\n\
         dcs: {{type: etcd3, hosts: [\"{etcd}\"], margin: {MARGIN_SECONDS}}}\n",
        patroni.ip(),
        patroni.port()
    );
    let (sender, receiver) = mpsc::channel();
    // the daemon is created in its thread, since it is not Send
    thread::spawn(move || {
        let config = Config::from_yaml(&text).expect("a configuration");
        let daemon = Daemon::new(config, Options::default()).expect("a free port");
        let addresses = daemon.address().zip(daemon.address_of(Port::Admin));
        sender.send(addresses).expect("main waits");
        daemon.run().expect("the daemon runs until the process ends");
    });
    receiver.recv().ok().flatten().expect("the daemon listens")
}

/// What a load balancer sees of a response.
struct Response {
    status: u16,
    stale: bool,
}

/// The responses of one second, or of all.
#[derive(Default)]
struct Seen {
    ok: u64,
    unavailable: u64,
    stale: u64,
    lost: u64,
    times: Vec<Duration>,
    asked: u64,
}

impl Seen {
    fn record(&mut self, response: Option<Response>, time: Duration) {
        match &response {
            Some(Response { status: 200, .. }) => self.ok += 1,
            Some(_) => self.unavailable += 1,
            None => self.lost += 1,
        }
        self.stale += u64::from(response.is_some_and(|response| response.stale));
        self.times.push(time);
    }

    fn add(&mut self, other: &Seen, asked: u64) {
        self.ok += other.ok;
        self.unavailable += other.unavailable;
        self.stale += other.stale;
        self.lost += other.lost;
        self.asked += asked;
    }

    fn answers(&self) -> u64 {
        self.ok + self.unavailable
    }

    fn line(&mut self) -> String {
        self.times.sort_unstable();
        let at = |percent: usize| {
            let index = self.times.len().saturating_sub(1) * percent / 100;
            self.times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let lost = if self.lost > 0 { format!(" {} LOST", self.lost) } else { String::new() };
        let (p50, p99) = (at(50), at(99));
        let Seen { ok, unavailable, stale, .. } = self;
        format!("{ok:>4} x 200 {unavailable:>4} x 503{lost}  {stale:>5}  {p50:>6.1}  {p99:>6.1}")
    }
}

/// A stand-in for Patroni with a thread per connection, like Patroni's, and the etcd in which its
/// HA loop keeps the lease.
struct Patroni {
    address: SocketAddr,
    etcd: Arc<Etcd>,
    asked: Arc<AtomicU64>,
}

/// Its behaviour for some seconds.
struct Phase {
    seconds: u64,
    story: &'static str,
    /// How long an answer takes; `None`: the API is frozen.
    delay: Option<Duration>,
    /// Whether the HA loop runs.
    renews: bool,
    leads: bool,
}

impl Patroni {
    fn start() -> Patroni {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (begun, asked) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let etcd = Arc::new(Etcd::start());
        let last_seen = Arc::new(AtomicU64::new(unix_seconds()));
        let (ha_loop_etcd, ha_loop_seen) = (Arc::clone(&etcd), Arc::clone(&last_seen));
        thread::spawn(move || ha_loop(begun, &ha_loop_etcd, &ha_loop_seen));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let last_seen = Arc::clone(&last_seen);
                thread::spawn(move || answer(stream, begun, &last_seen));
            }
        });
        Patroni { address, etcd, asked }
    }

    /// What is left of the leader's lease.
    fn lease(&self, phase: &Phase) -> String {
        let mut left = Duration::ZERO;
        self.etcd.change(|state| {
            if let Remaining::Until(end) = state.remaining {
                left = end.saturating_duration_since(Instant::now());
            }
        });
        match (phase.leads, left.as_secs()) {
            (false, _) => "pg2's".to_owned(),
            (true, 0) if left.is_zero() => "over".to_owned(),
            (true, left) => format!("{left} s"),
        }
    }
}

impl Phase {
    fn begins_at(&self, second: u64) -> bool {
        let before = PHASES.iter().take_while(|phase| !std::ptr::eq(*phase, self));
        before.map(|phase| phase.seconds).sum::<u64>() == second
    }
}

/// Renews the lease every `loop_wait`; the first renewal is that of [`Etcd::start`].
fn ha_loop(begun: Instant, etcd: &Etcd, last_seen: &AtomicU64) {
    for cycle in 0.. {
        let at = Duration::from_secs(LOOP_WAIT_SECONDS * cycle);
        thread::sleep(at.saturating_sub(begun.elapsed()));
        let phase = phase_at(begun.elapsed());
        if phase.renews {
            last_seen.store(unix_seconds(), Ordering::Relaxed);
            etcd.renew();
        }
    }
}

/// The last phase goes on.
fn phase_at(elapsed: Duration) -> &'static Phase {
    let mut left = elapsed.as_secs();
    let mut phases = PHASES.iter();
    let phase = phases.find(|phase| {
        let is_over = left >= phase.seconds;
        left = left.saturating_sub(phase.seconds);
        !is_over
    });
    phase.unwrap_or(&PHASES[PHASES.len() - 1])
}

/// Answers as Patroni does: HTTP/1.0, head and body as two writes, without a length, then closes.
fn answer(mut stream: TcpStream, begun: Instant, last_seen: &AtomicU64) -> Option<()> {
    let mut request = [0; 1024];
    let count = stream.read(&mut request).ok()?;
    let phase = loop {
        let phase = phase_at(begun.elapsed());
        thread::sleep(phase.delay.unwrap_or(Duration::from_millis(50)));
        if phase.delay.is_some() {
            break phase;
        }
    };
    let is_config = request[..count].starts_with(b"GET /config ");
    let body = if is_config {
        format!(r#"{{"ttl": 30, "loop_wait": {LOOP_WAIT_SECONDS}, "retry_timeout": 10}}"#)
    } else {
        let role = if phase.leads { "primary" } else { "replica" };
        let seen = last_seen.load(Ordering::Relaxed);
        format!(
            r#"{{"state": "running", "role": "{role}", "timeline": 2, "dcs_last_seen": {seen},
            "database_system_identifier": "7587895443109810434",
            "patroni": {{"version": "4.1.5", "scope": "main", "name": "pg1"}}}}"#
        )
    };
    let status = if phase.leads || is_config { "200 OK" } else { "503 Service Unavailable" };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n").ok()?;
    stream.write_all(body.as_bytes()).ok()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const PHASES: [Phase; 5] = [
    Phase {
        seconds: 4,
        story: "Patroni leads and answers.",
        delay: Some(Duration::from_millis(1)),
        renews: true,
        leads: true,
    },
    Phase {
        seconds: 4,
        story: "Patroni takes 200 ms for an answer.",
        delay: Some(Duration::from_millis(200)),
        renews: true,
        leads: true,
    },
    Phase {
        seconds: 30,
        story: "Patroni's API freezes. Its HA loop goes on and renews the lease every 10 s:",
        delay: None,
        renews: true,
        leads: true,
    },
    Phase {
        seconds: 24,
        story: "The HA loop stops as well. Checks are 503 once 10 s of the lease are left \
                (dcs.margin),\nso that load balancers have reacted before another node leads:",
        delay: None,
        renews: false,
        leads: true,
    },
    Phase {
        seconds: 3,
        story: "The lease is over, pg2 leads, and Patroni comes back as its replica:",
        delay: Some(Duration::from_millis(1)),
        renews: false,
        leads: false,
    },
];
const HEADING: &str = "   s  lease left  load balancers got      stale  p50 ms  p99 ms  \
                       fetches: Patroni  etcd";
/// Patroni's default.
const LOOP_WAIT_SECONDS: u64 = 10;
const MARGIN_SECONDS: u64 = 10;
const CLIENTS: usize = 300;
const CLIENT_THREADS: usize = 4;
