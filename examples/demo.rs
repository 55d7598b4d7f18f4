//! A first look: a stand-in for Patroni with changing behaviour, the daemon, 300 clients.
//!
//! `cargo run --release --example demo -- [SECONDS]` ends by itself, after 20 s by default.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use patroniglue::config::Config;
use patroniglue::shell::{Daemon, Options};

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let patroni = Arc::new(Patroni::start());
    let glue = start_daemon(patroni.address);
    let seen = Arc::new(Mutex::new(Seen::default()));
    for thread in 0..CLIENT_THREADS {
        let seen = Arc::clone(&seen);
        thread::spawn(move || ask_for_ever(glue, thread, &seen));
    }
    println!("{CLIENTS} clients ask the daemon once a second each: curl -i http://{glue}/primary");
    println!(
        "Patroni's behaviour changes every few seconds; the last column counts its requests:\n"
    );
    println!("   s  Patroni          clients got            p50      p99   Patroni was asked");
    let mut total = Seen::default();
    for second in 1..=seconds {
        let mood = patroni.mood().name;
        thread::sleep(Duration::from_secs(1));
        let asked = patroni.asked.swap(0, Ordering::Relaxed);
        let mut now = std::mem::take(&mut *seen.lock().expect("no client panics"));
        println!("{second:>4}  {mood:<15}  {}   {asked:>3} times", now.line());
        total.add(&now, asked);
    }
    println!("\n{} answers; Patroni was asked {} times.", total.answers(), total.asked);
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
        let status = if client.is_multiple_of(2) {
            check(glue)
        } else {
            check_kept(glue, &mut kept[client])
        };
        seen.lock().expect("no client panics").record(status, begun.elapsed());
        thread::sleep(pause.saturating_sub(begun.elapsed()));
    }
}

/// Sends a check as HAProxy's `option httpchk OPTIONS /primary` does.
fn check(glue: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect(glue).ok()?;
    stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").ok()?;
    read_status(&mut stream)
}

fn check_kept(glue: SocketAddr, kept: &mut Option<TcpStream>) -> Option<u16> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(glue).ok()?,
    };
    stream.write_all(b"HEAD /primary HTTP/1.1\r\nHost: demo\r\n\r\n").ok()?;
    let status = read_status(&mut stream)?;
    *kept = Some(stream);
    Some(status)
}

fn read_status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = [0; 1024];
    let count = stream.read(&mut head).ok()?;
    std::str::from_utf8(head.get(9..12.min(count))?).ok()?.parse().ok()
}

fn start_daemon(patroni: SocketAddr) -> SocketAddr {
    let text = format!(
        "frontend: {{host: 127.0.0.1, port: 0}}\n\
         backend: {{host: {}, port: {}}}\n\
         cache: {{ttl: 1, grace: 10}}\n",
        patroni.ip(),
        patroni.port()
    );
    let (sender, receiver) = mpsc::channel();
    // the daemon is created in its thread, since it is not Send
    thread::spawn(move || {
        let config = Config::from_yaml(&text).expect("a configuration");
        let daemon = Daemon::new(config, Options::default()).expect("a free port");
        sender.send(daemon.address()).expect("main waits");
        daemon.run().expect("the daemon runs until the process ends");
    });
    receiver.recv().ok().flatten().expect("the daemon listens")
}

/// The answers of one second, or of all.
#[derive(Default)]
struct Seen {
    ok: u64,
    unavailable: u64,
    lost: u64,
    times: Vec<Duration>,
    asked: u64,
}

impl Seen {
    fn record(&mut self, status: Option<u16>, time: Duration) {
        match status {
            Some(200) => self.ok += 1,
            Some(_) => self.unavailable += 1,
            None => self.lost += 1,
        }
        self.times.push(time);
    }

    fn add(&mut self, other: &Seen, asked: u64) {
        self.ok += other.ok;
        self.unavailable += other.unavailable;
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
        format!(
            "{:>4} x 200  {:>4} x 503{lost}  {p50:>6.1} ms {p99:>6.1} ms",
            self.ok, self.unavailable
        )
    }
}

/// A stand-in for Patroni with a thread per connection, like Patroni's.
struct Patroni {
    address: SocketAddr,
    begun: Instant,
    asked: Arc<AtomicU64>,
}

/// Its behaviour for some seconds.
#[derive(Clone, Copy)]
struct Mood {
    name: &'static str,
    seconds: u64,
    leads: bool,
    delay: Duration,
}

impl Patroni {
    fn start() -> Patroni {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (begun, asked) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || answer(stream, mood_at(begun.elapsed())));
            }
        });
        Patroni { address, begun, asked }
    }

    fn mood(&self) -> Mood {
        mood_at(self.begun.elapsed())
    }
}

fn mood_at(elapsed: Duration) -> Mood {
    let cycle: u64 = MOODS.iter().map(|mood| mood.seconds).sum();
    let mut left = elapsed.as_secs() % cycle;
    for mood in MOODS {
        if left < mood.seconds {
            return mood;
        }
        left -= mood.seconds;
    }
    MOODS[0]
}

/// Answers as Patroni does: HTTP/1.0, head and body as two writes, without a length, then closes.
fn answer(mut stream: TcpStream, mood: Mood) -> Option<()> {
    let mut request = [0; 1024];
    let count = stream.read(&mut request).ok()?;
    thread::sleep(mood.delay);
    let is_config = request[..count].starts_with(b"GET /config ");
    let body = if is_config {
        r#"{"ttl": 30, "loop_wait": 10, "retry_timeout": 10}"#.to_owned()
    } else {
        let role = if mood.leads { "primary" } else { "replica" };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        format!(r#"{{"state": "running", "role": "{role}", "dcs_last_seen": {unix}}}"#)
    };
    let status = if mood.leads || is_config { "200 OK" } else { "503 Service Unavailable" };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n").ok()?;
    stream.write_all(body.as_bytes()).ok()
}

const MOODS: [Mood; 5] = [
    Mood { name: "leads", seconds: 4, leads: true, delay: Duration::from_millis(1) },
    Mood { name: "leads, slowly", seconds: 4, leads: true, delay: Duration::from_millis(200) },
    Mood { name: "IS SILENT", seconds: 5, leads: true, delay: Duration::from_secs(3600) },
    Mood { name: "leads", seconds: 3, leads: true, delay: Duration::from_millis(1) },
    Mood { name: "is a replica", seconds: 4, leads: false, delay: Duration::from_millis(1) },
];
const CLIENTS: usize = 300;
const CLIENT_THREADS: usize = 4;
