//! A steady load with a slow Patroni: no client waits for it, and no answer is older than `ttl`.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::alone;
use crate::common::standin::{Mood, StandIn, unix_ms};
use crate::common::{Glue, body, read_response, status_of, wait_for};

/// One answer.
#[derive(Clone, Copy)]
struct Seen {
    took: Duration,
    /// From the request to Patroni to the client's request, in milliseconds.
    age_ms: u64,
}

fn ask(client: &mut TcpStream) -> Seen {
    let (begun, asked_at) = (Instant::now(), unix_ms());
    client.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    let text = read_response(client);
    assert_eq!(status_of(&text), 200, "{text}");
    let stamp = body(&text).split("\"asked_at\": ").nth(1).and_then(|rest| rest.split(',').next());
    let stamp: u64 = stamp.and_then(|stamp| stamp.parse().ok()).expect("a stamp");
    Seen { took: begun.elapsed(), age_ms: asked_at.saturating_sub(stamp) }
}

#[test]
fn steady_clients_never_wait_and_get_no_stale_answer() {
    let _alone = alone();
    let patroni = StandIn::start(Mood::Stamps(PATRONI));
    let glue = Glue::start(patroni.address, &[]);
    assert_eq!(glue.get("/primary").0, 200);
    // until the route counts as steadily asked for
    let mut first = glue.connect();
    let before = patroni.requests().len();
    wait_for("a fetch ahead", || {
        ask(&mut first);
        (patroni.requests().len() > before + 1).then_some(())
    });
    let (begun, before) = (Instant::now(), patroni.requests().len());
    let clients = (0..CLIENTS).map(|_| {
        let mut client = glue.connect();
        thread::spawn(move || {
            let mut seen = Vec::new();
            for number in 0..ASKED {
                let due = PAUSE * number;
                thread::sleep(due.saturating_sub(begun.elapsed()));
                seen.push(ask(&mut client));
            }
            seen
        })
    });
    let clients: Vec<_> = clients.collect();
    let joined = clients.into_iter().flat_map(|client| client.join().expect("no panic"));
    let mut seen: Vec<Seen> = joined.collect();
    let seconds = begun.elapsed().as_secs_f64();
    let fetches = patroni.requests().len() - before;
    let oldest = seen.iter().map(|one| one.age_ms).max().unwrap_or(0);
    seen.sort_by_key(|one| one.took);
    let of = |share: f64| seen[((seen.len() - 1) as f64 * share) as usize].took;
    println!(
        "{:.0} a second: p50 {:?}, p99 {:?}, p99.9 {:?}, slowest {:?}; the oldest was {oldest} ms \
         old; {:.2} fetches a second",
        seen.len() as f64 / seconds,
        of(0.5),
        of(0.99),
        of(0.999),
        of(1.0),
        fetches as f64 / seconds
    );
    let waited = seen.iter().filter(|one| one.took > PATRONI / 2).count();
    assert!(waited <= WAITED_MAX, "{waited} of {} waited for Patroni", seen.len());
    // both clocks are rounded
    assert!(oldest <= TTL_MS + 1, "{oldest} ms");
    assert!(fetches as f64 <= seconds / 0.75 + 2.0, "{fetches} in {seconds} s");
}

/// Patroni's delay of each answer.
const PATRONI: Duration = Duration::from_millis(200);
/// The default.
const TTL_MS: u64 = 1_000;
/// Together 500 requests a second.
const CLIENTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
const ASKED: u32 = 500;
/// For a busy machine. Without a fetch ahead each client waits once a second: five times this.
const WAITED_MAX: usize = 5;
