//! Requests of clients and the answers expected, by a model independent of the engine's.

use super::faults::{Fault, Faults};
use super::random::Random;

/// A request and the answer expected.
#[derive(Clone, Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub method: &'static str,
    pub expected: Expected,
    /// Expected `Connection` of the answer.
    pub persistence: Persistence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Patroni's answer for this target.
    Patroni(String),
    /// A response of our own.
    Own(u16),
    /// As `Own`, perhaps before the message is complete; the connection is closed after it.
    Refused(&'static [u16]),
    /// The request is never complete.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    Close,
    KeepAlive,
    Persistent,
}

/// A parsed answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub date: String,
    pub content_type: Option<String>,
    pub content_length: usize,
    pub age: Option<u64>,
    pub cache: Option<String>,
    pub allow: bool,
    pub connection: Option<String>,
    pub body: Vec<u8>,
}

/// The routes that most clients of a seed ask for.
pub struct Palette(Vec<String>);

impl Palette {
    pub fn new(random: &mut Random) -> Palette {
        let count = random.between(1, 3);
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(random.pick(&FAVOURITES).to_owned());
        }
        Palette(names)
    }

    pub fn messages(&self, random: &mut Random, faults: &Faults) -> Vec<Message> {
        let pipelining = faults.hit(random, Fault::Pipelining);
        let count = if pipelining { random.between(1, 6) } else { 1 };
        let mut messages: Vec<Message> = Vec::new();
        while (messages.len() as u64) < count {
            let message = self.message(random, faults);
            let last = message.persistence == Persistence::Close
                || matches!(message.expected, Expected::Refused(_) | Expected::Never);
            messages.push(message);
            if last && !random.chance(100) {
                break;
            }
        }
        messages
    }

    fn message(&self, random: &mut Random, faults: &Faults) -> Message {
        if faults.hit(random, Fault::BadRequests) {
            return bad(random);
        }
        let (target, canonical) = self.target(random, faults);
        let method = random.pick(&["GET", "GET", "GET", "HEAD", "OPTIONS"]);
        request(random, faults, method, &target, Expected::Patroni(canonical))
    }

    /// A target as a client spells it, and its canonical form that Patroni is asked for.
    fn target(&self, random: &mut Random, faults: &Faults) -> (String, String) {
        let any = faults.hit(random, Fault::AnyRoute);
        let path = if any {
            random.pick(&ROUTES).to_owned()
        } else {
            self.0[random.below(self.0.len() as u64) as usize].clone()
        };
        let mut target = path.clone();
        if random.chance(100) {
            target = format!("{}{target}", random.pick(&["/", "//"]));
        }
        if path != "/" && random.chance(50) {
            target.push('/');
        }
        if !faults.hit(random, Fault::Variants) {
            let query = random.pick(&["", "", "", "", "?", "?x=1", "?lag=", "?mode"]);
            return (target + query, path);
        }
        let takes =
            |path: &str| path == "/health" || path == "/readiness" || REPLICAS.contains(&path);
        let lag = random.skewed(200);
        target.push_str(&format!("?tag_a=b&unknown=1&lag={lag}&lag=7"));
        if takes(&path) {
            let canonical = format!("{path}?lag={lag}&tag_a=b");
            (target, canonical)
        } else {
            (target, path)
        }
    }
}

fn request(
    random: &mut Random,
    faults: &Faults,
    method: &'static str,
    target: &str,
    expected: Expected,
) -> Message {
    use Persistence::{Close, KeepAlive, Persistent};
    let (version, fields, persistence) = random.pick(&[
        ("1.0", "", Close),
        ("1.0", "Connection: keep-alive\r\n", KeepAlive),
        ("1.1", "Host: x\r\n", Persistent),
        ("1.1", "", Persistent),
        ("1.1", "Host: x\r\nconnection: Close\r\n", Close),
        ("1.1", "x-haproxy-server-state: UP 1/3\r\nA: b\r\n", Persistent),
    ]);
    let mut text = format!("{method} {target} HTTP/{version}\r\n{fields}");
    let body = if faults.hit(random, Fault::Bodies) {
        let length = random.skewed(3_000);
        if version == "1.1" && random.chance(500) {
            text.push_str("Transfer-Encoding: chunked\r\n\r\n");
            let half = length / 2 + 1;
            format!("{half:x};a=b\r\n{}\r\n0\r\nA: b\r\n\r\n", "G".repeat(half as usize))
        } else {
            text.push_str(&format!("Content-Length: {length}\r\n\r\n"));
            "GET / HTTP/1.1\r\n\r\n".repeat(200)[..length as usize].to_owned()
        }
    } else {
        text.push_str("\r\n");
        String::new()
    };
    text.push_str(&body);
    Message { bytes: text.into_bytes(), method, expected, persistence }
}

/// A request that Patroni does not answer.
fn bad(random: &mut Random) -> Message {
    use Persistence::{Close, Persistent};
    if random.chance(400) {
        let (method, target, status) = random.pick(&[
            ("POST", "/primary", 405),
            ("DELETE", "/restart", 404),
            ("PATCH", "/config", 404),
            ("GET", "/config", 404),
            ("GET", "/failsafe", 404),
            ("BREW", "/primary", 501),
            ("CONNECT", "patroni:8008", 405),
            ("OPTIONS", "*", 200),
            ("GET", "/PRIMARY", 404),
            ("HEAD", "/nothing", 404),
        ]);
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
        // bytes after a CONNECT were meant for its tunnel
        let persistence = if method == "CONNECT" { Close } else { Persistent };
        return Message { bytes, method, expected: Expected::Own(status), persistence };
    }
    let long = "x".repeat(9_000);
    let texts: [(String, &'static [u16]); 12] = [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), &[400]),
        (
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            &[400],
        ),
        ("GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n".into(), &[400]),
        ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n".into(), &[400]),
        ("GET / HTTP/1.1\r\nA: b\0\r\n\r\n".into(), &[400]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[400]),
        ("\x16\x03\x01\x02\x01\x01\x01\x7f\x03\x03".into(), &[400]),
        ("GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n".into(), &[417]),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), &[501]),
        ("POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n".into(), &[413]),
        (format!("GET /{} HTTP/1.1\r\n\r\n", &long[..1_100]), &[414]),
        (format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n"), &[431]),
    ];
    let (text, statuses) = &texts[random.below(texts.len() as u64) as usize];
    Message {
        bytes: text.clone().into_bytes(),
        method: "-",
        expected: Expected::Refused(statuses),
        persistence: Close,
    }
}

/// The beginning of a request that is never completed.
pub fn unfinished(random: &mut Random) -> Message {
    let text = "GET /primary HTTP/1.1\r\nHost: x\r\nA: b\r\n";
    let end = random.between(1, text.len() as u64) as usize;
    Message {
        bytes: text.as_bytes()[..end].to_vec(),
        method: "-",
        expected: Expected::Never,
        persistence: Persistence::Close,
    }
}

/// A plain request for `target`.
pub fn plain(target: &str) -> Message {
    Message {
        bytes: format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into(),
        method: "GET",
        expected: Expected::Patroni(target.into()),
        persistence: Persistence::Close,
    }
}

impl Message {
    /// The length of the head, with the empty line.
    pub fn head_bytes(&self) -> usize {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
        end.map_or(usize::MAX / 2, |end| end + 4)
    }
}

impl Answer {
    /// Parses a complete answer, strictly.
    pub fn parse(bytes: &[u8], method: &str) -> Result<Answer, String> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no head")?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "the head is not UTF-8")?;
        let body = bytes[end + 4..].to_vec();
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|digits| digits.parse().ok()).ok_or("no status")?;
        let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
        let field = |name: &str| {
            let mut values = fields.iter().filter(|field| field.0 == name).map(|field| field.1);
            let value = values.next();
            if values.next().is_some() { Err(format!("two {name}")) } else { Ok(value) }
        };
        let content_length = field("Content-Length")?.and_then(|digits| digits.parse().ok());
        let answer = Answer {
            status,
            date: field("Date")?.unwrap_or_default().into(),
            content_type: field("Content-Type")?.map(str::to_owned),
            content_length: content_length.ok_or("no length")?,
            age: field("Age")?.and_then(|digits| digits.parse().ok()),
            cache: field("Cache-Status")?.map(str::to_owned),
            allow: field("Allow")?.is_some(),
            connection: field("Connection")?.map(str::to_owned),
            body,
        };
        if field("Cache-Control")? != Some("no-store") {
            return Err("Cache-Control is not no-store".into());
        }
        let expected = if method == "HEAD" { 0 } else { answer.content_length };
        if answer.body.len() != expected {
            return Err(format!("the body has {} bytes instead of {expected}", answer.body.len()));
        }
        Ok(answer)
    }
}

const REPLICAS: [&str; 10] = [
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/async",
    "/asynchronous",
    "/quorum",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
];
const LEADERS: [&str; 7] =
    ["/", "/primary", "/read-write", "/master", "/leader", "/standby-leader", "/standby_leader"];
/// The routes of Patroni's REST API, written a second time: an oracle independent of the engine's
/// table.
pub const ROUTES: [&str; 24] = [
    "/",
    "/primary",
    "/read-write",
    "/master",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/async",
    "/asynchronous",
    "/quorum",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
    "/patroni",
    "/cluster",
    "/history",
    "/metrics",
];
const FAVOURITES: [&str; 12] = [
    "/",
    "/primary",
    "/primary",
    "/leader",
    "/leader",
    "/replica",
    "/read-only",
    "/health",
    "/patroni",
    "/cluster",
    "/metrics",
    "/liveness",
];

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

pub fn is_leader_family(target: &str) -> bool {
    LEADERS.contains(&path_of(target))
}

pub fn is_replica_family(target: &str) -> bool {
    REPLICAS.contains(&path_of(target))
}

pub fn is_health(target: &str) -> bool {
    path_of(target) == "/health"
}
