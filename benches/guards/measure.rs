//! The measurements: each starts the release binary in front of a stand-in and counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, version};

use crate::common::standin::{StandIn, at_once, json_of_450_bytes};
use crate::common::strace::{name_of_call, trace};
use crate::common::{Glue, config, read_to_end, status_of, wait_for};
use crate::tls_support::{Ca, Folder, Identity, client, connect, read_answer, section};

/// The names of guards that one measurement serves, and the measurement; `None`: a tool is missing.
pub type Measurement = (&'static [&'static str], fn() -> Option<Vec<f64>>);

/// All guards.
pub const ALL: &[Measurement] = &[
    (&["plain kept: instructions", "plain kept: allocations"], || profile(Work::PlainKept)),
    (&["plain new: instructions", "plain new: allocations"], || profile(Work::PlainNew)),
    (&["TLS kept: instructions", "TLS kept: allocations"], || profile(Work::TlsKept)),
    (
        &[
            "TLS with client certificate kept: instructions",
            "TLS with client certificate kept: allocations",
        ],
        || profile(Work::MutualKept),
    ),
    (&["plain kept: system calls"], || system_calls(Work::PlainKept)),
    (&["plain new: system calls"], || system_calls(Work::PlainNew)),
    (&["TLS kept: system calls"], || system_calls(Work::TlsKept)),
    (&["plain idle: resident bytes"], || resident_bytes(Side::Plain)),
    (&["TLS 1.2 idle: resident bytes"], || resident_bytes(Side::Tls(&version::TLS12))),
    (&["TLS 1.3 idle: resident bytes"], || resident_bytes(Side::Tls(&version::TLS13))),
    (&["TLS with client certificate idle: resident bytes"], || resident_bytes(Side::Mutual)),
    (&["binary"], binary_bytes),
];

/// What clients do for one hit.
#[derive(Clone, Copy)]
enum Work {
    /// A request on a kept connection.
    PlainKept,
    /// A connection, a request, the server's close: HAProxy's check.
    PlainNew,
    /// A request on a kept TLS 1.3 connection.
    TlsKept,
    /// The same with a client certificate.
    MutualKept,
}

/// How the frontend is reached.
#[derive(Clone, Copy)]
enum Side {
    Plain,
    Tls(&'static rustls::SupportedProtocolVersion),
    /// TLS 1.3 with a client certificate.
    Mutual,
}

/// The daemon's configuration and a client's, with a CA of this run.
struct Setup {
    patroni: StandIn,
    text: String,
    tls: Arc<ClientConfig>,
    _folder: Folder,
}

impl Setup {
    fn new(side: Side) -> Setup {
        let patroni = StandIn::start(at_once(json_of_450_bytes()));
        let folder = Folder::new();
        let ca = Ca::new("guards");
        let mut lines: Vec<String> = Vec::new();
        if !matches!(side, Side::Plain) {
            lines.extend(ca.issue().lines(&folder, "server"));
        }
        let mut identity: Option<Identity> = None;
        if matches!(side, Side::Mutual) {
            lines.push(format!("cafile: {}", folder.write("ca.pem", &ca.pem)));
            identity = Some(ca.issue_for_client());
        }
        let mut sections = section("frontend", &lines);
        // no fetch while hits are counted
        sections.push(("cache", "ttl: 600"));
        let address = patroni.address;
        let text = config(&address.ip().to_string(), address.port(), &sections);
        let version = if let Side::Tls(version) = side { version } else { &version::TLS13 };
        let mut tls = client(&ca.pem, &[version], identity.as_ref());
        tls.resumption = Resumption::disabled();
        Setup { patroni, text, tls: Arc::new(tls), _folder: folder }
    }

    fn of(work: Work) -> Setup {
        Setup::new(match work {
            Work::PlainKept | Work::PlainNew => Side::Plain,
            Work::TlsKept => Side::Tls(&version::TLS13),
            Work::MutualKept => Side::Mutual,
        })
    }
}

/// Makes this many hits, a multiple of [`BATCH`].
type Hits<'a> = Box<dyn FnMut(usize) + 'a>;

/// Opens what the work needs.
fn hits<'a>(work: Work, setup: &'a Setup, glue: &'a Glue) -> Hits<'a> {
    match work {
        Work::PlainKept => {
            let mut stream = glue.connect();
            Box::new(move |count| (0..count).for_each(|_| kept_hit(&mut stream)))
        }
        Work::PlainNew => Box::new(|count| (0..count / BATCH).for_each(|_| new_hits(glue))),
        Work::TlsKept | Work::MutualKept => {
            let mut stream = connect(&setup.tls, glue.address);
            Box::new(move |count| (0..count).for_each(|_| kept_hit(&mut stream)))
        }
    }
}

fn kept_hit(stream: &mut (impl Read + Write)) {
    // in one piece: one record, and one packet
    stream.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").expect("an open connection");
    stream.flush().expect("an open connection");
    let answer = read_answer(stream).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A batch of connections, each with its request before the daemon accepts it: the daemon is
/// stopped meanwhile. Otherwise the count of polls and of empty reads would depend on the moment.
fn new_hits(glue: &Glue) {
    glue.signal("STOP");
    let status = format!("/proc/{}/status", glue.process_id());
    wait_for("the stop", || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:"))?;
        // with a lower-case letter under strace
        state.trim().to_lowercase().starts_with('t').then_some(())
    });
    let begin = |_| {
        let mut stream = glue.connect();
        stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").expect("an open connection");
        stream
    };
    let streams: Vec<TcpStream> = (0..BATCH).map(begin).collect();
    glue.signal("CONT");
    for mut stream in streams {
        let answer = read_to_end(&mut stream);
        // on a busy machine the stop may last so that the daemon closes clients: it stood still
        let status = if answer.is_empty() { glue.get("/primary").0 } else { status_of(&answer) };
        assert_eq!(status, 200, "{answer}");
    }
}

/// Instructions and allocations per hit: the difference between two runs of the whole program, so
/// that start and end are subtracted.
fn profile(work: Work) -> Option<Vec<f64>> {
    let few = callgrind(work, HITS_FEW)?;
    let many = callgrind(work, HITS_MANY)?;
    let hits = (HITS_MANY - HITS_FEW) as f64;
    let per_hit = |few: u64, many: u64| (many as f64 - few as f64) / hits;
    let instructions = per_hit(few.instructions, many.instructions).round();
    Some(vec![instructions, tenths(per_hit(few.allocations, many.allocations))])
}

/// The counts of one run of the program.
struct Profile {
    instructions: u64,
    allocations: u64,
}

fn callgrind(work: Work, count: usize) -> Option<Profile> {
    let setup = Setup::of(work);
    let folder = Folder::new();
    let output = folder.path("callgrind.out");
    if !is_installed("valgrind") {
        return None;
    }
    let file = format!("--callgrind-out-file={output}");
    let runner = ["valgrind", "--tool=callgrind", "--quiet", &file];
    let mut glue = Glue::start_under(&setup.text, &runner);
    let mut hit = hits(work, &setup, &glue);
    hit(count);
    drop(hit);
    glue.signal("TERM");
    assert!(glue.wait().success());
    let text = fs::read_to_string(&output).expect("callgrind's output");
    let fetches = setup.patroni.requests().len();
    assert!(fetches < 10, "hits were counted, and {fetches} fetches");
    Some(Profile { instructions: instructions(&text), allocations: allocations(&text) })
}

/// The line `totals: 123`.
fn instructions(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    line.and_then(|total| total.trim().parse().ok()).expect("callgrind's total")
}

/// The calls of the C library's allocating functions. Callgrind writes `cfn=(ID) NAME`, the name
/// only at the first mention of an ID, and `calls=COUNT …` in the next line.
fn allocations(text: &str) -> u64 {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut callee, mut count) = ("", 0);
    for line in text.lines() {
        let function = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn="));
        if let Some((id, name)) = function.map(|it| it.split_once(' ').unwrap_or((it, ""))) {
            if !name.is_empty() {
                names.insert(id, name);
            }
            callee = if line.starts_with("cfn=") { id } else { "" };
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let name = names.get(callee).copied().unwrap_or_default();
            if ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"].contains(&name) {
                let calls = calls.split(' ').next().and_then(|calls| calls.parse::<u64>().ok());
                count += calls.expect("a count of calls");
            }
        }
    }
    assert!(count > 0, "callgrind saw no allocation: are the C library's symbols readable?");
    count
}

/// System calls per hit, those that wait included. The minimum of some rounds, since a sweep may
/// fall into one.
fn system_calls(work: Work) -> Option<Vec<f64>> {
    let setup = Setup::of(work);
    let glue = Glue::start_with(&setup.text, &[], None);
    let mut hit = hits(work, &setup, &glue);
    hit(BATCH);
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let text = trace(&glue, || hit(HITS_TRACED))?;
        let calls = text.lines().filter_map(name_of_call).filter(|call| is_name(call)).count();
        least = least.min(calls as f64 / HITS_TRACED as f64);
    }
    Some(vec![tenths(least)])
}

/// Rounds to tenths: sweeps and the rendering of each second's answer are spread over the hits. At
/// least one tenth, since nothing is a percentage of zero.
fn tenths(value: f64) -> f64 {
    ((value * 10.0).round() / 10.0).max(0.1)
}

/// Whether it is a call's name, not strace's mark of a signal.
fn is_name(call: &str) -> bool {
    call.starts_with(|char: char| char.is_ascii_lowercase())
}

/// Growth of resident memory per idle connection that had one answer.
fn resident_bytes(side: Side) -> Option<Vec<f64>> {
    let descriptors = rlimit::increase_nofile_limit(IDLE as u64 * 2).unwrap_or(0);
    if descriptors < IDLE as u64 + 200 {
        println!("the limit of descriptors is {descriptors}");
        return None;
    }
    let setup = Setup::new(side);
    let glue = Glue::start_with(&setup.text, &[], None);
    let open = |count: usize| -> Vec<Box<dyn std::any::Any>> {
        (0..count).map(|_| open_one(side, &setup, &glue)).collect()
    };
    let first = open(100);
    let before = glue.resident_kib()?;
    let held = open(IDLE);
    let after = glue.resident_kib()?;
    drop((first, held));
    Some(vec![((after - before) as f64 * 1024.0 / IDLE as f64).round()])
}

fn open_one(side: Side, setup: &Setup, glue: &Glue) -> Box<dyn std::any::Any> {
    if matches!(side, Side::Plain) {
        let mut stream = glue.connect();
        kept_hit(&mut stream);
        return Box::new(stream);
    }
    let mut stream = connect(&setup.tls, glue.address);
    kept_hit(&mut stream);
    Box::new(stream)
}

fn binary_bytes() -> Option<Vec<f64>> {
    Some(vec![fs::metadata(BINARY).ok()?.len() as f64])
}

/// The TLS provider of the binary, by the source files that its panics name: the binary says what
/// is in it, however it was built.
pub fn provider() -> &'static str {
    let bytes = fs::read(BINARY).expect("the release binary");
    let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    if has("/aws-lc-rs-") { "aws-lc-rs" } else { "ring" }
}

fn is_installed(command: &str) -> bool {
    std::process::Command::new(command).arg("--version").output().is_ok()
}

const BINARY: &str = env!("CARGO_BIN_EXE_patroniglue");
const HITS_FEW: usize = 500;
const HITS_MANY: usize = 10_500;
const HITS_TRACED: usize = 500;
/// New connections that are made together, less than the daemon accepts in one turn.
const BATCH: usize = 50;
const ROUNDS: usize = 3;
/// Idle connections. The tables of connections double their size: another number gives other
/// bytes per connection.
const IDLE: usize = 5_000;
