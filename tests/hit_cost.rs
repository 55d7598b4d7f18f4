//! The cost of a hit: allocations in the engine, system calls under strace.

mod common;
#[path = "../benches/guards/limits.rs"]
mod limits;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use common::standin::{StandIn, at_once, primary};
use common::strace::{name_of_call, trace};
use common::{Glue, read_response, read_to_end};
use limits::{Guard, Limits, Verdict};
use patroniglue::cache::CacheSettings;
use patroniglue::engine::{Action, DcsSettings, Engine, Port, Settings, UpstreamId};
use patroniglue::fetch::Progress;
use patroniglue::node::witness::Settings as WitnessSettings;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};

/// The system's allocator with a counter for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged; counting touches a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Virtual time. The wall clock fits the stand-in's `dcs_last_seen`, and begins with a full second,
/// since an answer is rendered again in each second.
fn now(ms: u64) -> Now {
    static START: LazyLock<u64> = LazyLock::new(|| {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (unix.as_secs() + 1) * 1_000
    });
    Now { time: Time::from_ms(ms), unix_ms: *START + ms }
}

/// Sends a request and reads the complete answer.
fn hit(engine: &mut Engine, at: Now, id: ConnId, request: &[u8]) -> usize {
    engine.receive(at, id, request);
    let bytes = engine.output(id).len();
    engine.sent(at, id, bytes);
    engine.next_deadline();
    bytes
}

/// Carries out one fetch.
fn feed(engine: &mut Engine, at: Now) {
    let mut fetch = None;
    while let Some(action) = engine.poll_action() {
        if let Action::Connect(id, UpstreamId::Patroni) = action {
            fetch = Some(id);
        }
    }
    let id = fetch.expect("a fetch");
    engine.progress(id, Progress::Open);
    let sent = engine.output(id).len();
    engine.sent(at, id, sent);
    engine.receive(at, id, &primary());
    engine.eof(at, id);
}

#[test]
fn a_hit_allocates_nothing_and_arms_nothing() {
    let witness = WitnessSettings {
        namespace: "service".into(),
        group: None,
        credentials: None,
        margin_ms: 10_000,
    };
    let dcs = DcsSettings { witness, host: "localhost:2379".into(), hosts: 1 };
    for dcs in [None, Some(dcs)] {
        hits_are_free(dcs);
    }
}

fn hits_are_free(dcs: Option<DcsSettings>) {
    let limits = CacheSettings { ttl_ms: 60_000, grace_ms: 0, variants_max: 64 };
    let mut engine = Engine::new(Settings {
        cache: limits,
        interval_ms: 60_000,
        timeout_ms: 3_000,
        fetches_max: 3,
        clients_max: 10,
        fence: false,
        dcs,
        host: "localhost:8008".into(),
        agent_target: "/replica".into(),
        records: false,
    });
    let requests: [&[u8]; 3] = [
        b"GET /primary HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n",
        b"OPTIONS //replica/?lag=10MB&x=y&tag_a=b HTTP/1.1\r\n\r\n",
        b"HEAD /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ];
    let id = engine.accept(now(0), Port::Checks).expect("room");
    for request in requests {
        engine.receive(now(0), id, request);
        feed(&mut engine, now(0));
        while engine.poll_action().is_some() {}
        let bytes = engine.output(id).len();
        assert!(bytes > 0);
        engine.sent(now(0), id, bytes);
        hit(&mut engine, now(100), id, request); // renders the form of a hit
    }
    let timers = engine.counts().timers;
    for request in requests {
        let before = ALLOCATIONS.with(Cell::get);
        for turn in 0..1_000 {
            assert!(hit(&mut engine, now(100 + turn / 2), id, request) > 0);
        }
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{}", String::from_utf8_lossy(request));
    }
    assert_eq!(engine.counts().timers, timers);
}

/// The number of each system call of the daemon while `work` ran.
fn system_calls(glue: &Glue, work: impl FnOnce()) -> Option<BTreeMap<String, u64>> {
    let text = trace(glue, work)?;
    let mut counts = BTreeMap::new();
    for call in text.lines().filter_map(name_of_call) {
        *counts.entry(call.to_owned()).or_insert(0) += 1;
    }
    Some(counts)
}

#[test]
fn a_hit_is_one_receive_and_one_send() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 600")]);
    glue.get("/health");
    let mut kept = glue.connect();
    let mut ask = || {
        kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
        assert!(read_response(&mut kept).starts_with("HTTP/1.1 200"));
    };
    ask();
    let counts = system_calls(&glue, || (0..HITS).for_each(|_| ask()));
    let Some(counts) = counts else { return };
    println!("kept: {counts:?}");
    let of = |counts: &BTreeMap<String, u64>, call: &str| counts.get(call).copied().unwrap_or(0);
    assert_eq!((of(&counts, "recvfrom"), of(&counts, "sendto")), (HITS, HITS));
    assert_eq!(of(&counts, "epoll_ctl") + of(&counts, "accept4"), 0);
    assert!(all_but_waiting(&counts) <= 2 * HITS + SURPLUS, "{counts:?}");

    let anew = || {
        let mut client = glue.connect();
        client.write_all(b"OPTIONS /health HTTP/1.0\r\n\r\n").expect("it reads");
        assert!(read_to_end(&mut client).starts_with("HTTP/1.1 200"));
    };
    let counts = system_calls(&glue, || (0..HITS).for_each(|_| anew())).expect("as before");
    println!("anew: {counts:?}");
    assert_eq!((of(&counts, "sendto"), of(&counts, "close")), (HITS, HITS));
    // if the request comes after the connection there is a second read, and an epoll_ctl
    let late = of(&counts, "epoll_ctl");
    assert!(late <= HITS, "{counts:?}");
    assert_eq!(of(&counts, "recvfrom"), HITS + late, "{counts:?}");
    let accepts = of(&counts, "accept4");
    assert!(
        (HITS..=2 * HITS).contains(&accepts),
        "each turn ends with an accept that returns EAGAIN"
    );
    assert!(all_but_waiting(&counts) <= 5 * HITS + 2 * late + SURPLUS, "{counts:?}");
}

/// All calls but epoll_wait, which all ready connections share, and fcntl in debug builds, by which
/// the standard library checks that a descriptor it closes is open.
fn all_but_waiting(counts: &BTreeMap<String, u64>) -> u64 {
    let of_debug = if cfg!(debug_assertions) { "fcntl" } else { "" };
    let counted = counts.iter().filter(|(call, _)| *call != "epoll_wait" && *call != of_debug);
    counted.map(|(_, count)| count).sum()
}

#[test]
fn a_guard_fails_more_than_three_percent_above_its_limit() {
    let limits = "# name | limit\n\na: bytes | 1000 | bytes | any | 2026\n\
                  b | 10 | per hit | ring | 2026\nb | 20 | per hit | aws-lc-rs | 2026\n";
    let limits = Limits::read(limits);
    let table = [
        ("a: bytes", 1_029.0, "ring", "a: bytes: 1029 bytes, limit 1000, +2.9 %"),
        (
            "a: bytes",
            1_031.0,
            "ring",
            "a: bytes: 1031 bytes, limit 1000, +3.1 %: WORSE than on 2026",
        ),
        ("a: bytes", 971.0, "ring", "a: bytes: 971 bytes, limit 1000, -2.9 %"),
        (
            "a: bytes",
            969.0,
            "ring",
            "a: bytes: 969 bytes, limit 1000, -3.1 %: better, lower the limit",
        ),
        ("b", 10.0, "ring", "b: 10 per hit, limit 10, +0.0 %"),
        ("b", 20.0, "aws-lc-rs", "b: 20 per hit, limit 20, +0.0 %"),
        ("b", 1.0, "other", "b: 1 per hit: NO LIMIT for other in the table"),
    ];
    for (name, value, provider, line) in table {
        let verdict = limits.judge(&Guard::of(name), value, provider);
        assert_eq!(verdict.to_string(), line);
        let fails = line.contains("WORSE") || line.contains("NO LIMIT");
        assert_eq!(matches!(verdict, Verdict::Worse(_) | Verdict::Unlimited(_)), fails);
    }
    let row = Guard::of("TLS kept: instructions").row(5.0, "ring", "2026");
    assert_eq!(row, "TLS kept: instructions | 5 | per hit | ring | 2026");
}

const HITS: u64 = 200;
/// For calls of a sweep, or of strace's signals.
const SURPLUS: u64 = 10;
