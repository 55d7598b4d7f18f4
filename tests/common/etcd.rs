//! A stand-in for etcd's JSON gateway: answers out of one state, which a test changes.
//!
//! Needs nothing of its neighbours, so that an example can include it. A test compares its answers
//! with recorded ones of a real etcd (`tests/fixtures/etcd`).
#![allow(dead_code)] // each target uses its own part

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A server with a thread per connection. Its threads live as long as the process.
pub struct Etcd {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

/// What etcd knows, and how it behaves.
#[derive(Clone, Debug)]
pub struct State {
    /// Where Patroni's keys are, such as `/service/main/`.
    pub prefix: String,
    /// The value of `leader`; hangs on the lease.
    pub leader: Option<String>,
    /// Names and values of `members/…`; they hang on the lease.
    pub members: Vec<(String, String)>,
    /// The value of `config`.
    pub config: Option<String>,
    /// The value of `initialize`.
    pub initialize: Option<String>,
    /// The id of the lease.
    pub lease: i64,
    /// What a renewal sets it to, in seconds.
    pub granted: i64,
    pub remaining: Remaining,
    pub auth: Auth,
    pub fault: Fault,
}

/// How long the lease lasts. Once it is over, the keys that hang on it are gone.
#[derive(Clone, Copy, Debug)]
pub enum Remaining {
    /// Always this many seconds, whether that is possible or not.
    Seconds(i64),
    Until(Instant),
}

/// Users and tokens.
#[derive(Clone, Debug)]
pub enum Auth {
    Off,
    On {
        username: String,
        password: String,
        /// Whether the user may read the keys.
        may_read: bool,
        /// Tokens that are valid; authenticating adds one.
        tokens: Vec<String>,
    },
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It is not answered until the fault changes.
    Silent,
    /// Nothing listens.
    Refused,
    /// Half of the answer is sent.
    Cut,
    /// etcd's error with this status: 400, 401, 403 or 503.
    Status(u16),
}

struct Shared {
    state: State,
    requests: Vec<Request>,
    tokens_given: u32,
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    pub body: String,
    pub at: Instant,
}

impl Etcd {
    /// Starts on a free port, as the DCS of a cluster `main` whose leader is `pg1`.
    pub fn start() -> Etcd {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Shared { state: State::default(), requests: Vec::new(), tokens_given: 0 };
        let shared = Arc::new(Mutex::new(shared));
        let server = Arc::clone(&shared);
        thread::spawn(move || listen(listener, address, &server));
        Etcd { address, shared }
    }

    /// Changes the state. If it begins or ends to refuse connections, that has happened afterwards.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        let (before, after) = {
            let mut shared = self.shared.lock().expect("no panic");
            let before = shared.state.fault;
            change(&mut shared.state);
            (before, shared.state.fault)
        };
        let refuses = after == Fault::Refused;
        if (before == Fault::Refused) != refuses {
            // the first connection wakes the listener
            while TcpStream::connect(self.address).is_ok() == refuses {
                thread::sleep(TICK);
            }
        }
    }

    pub fn set_fault(&self, fault: Fault) {
        self.change(|state| state.fault = fault);
    }

    /// The lease is renewed now, as Patroni's HA loop does it.
    pub fn renew(&self) {
        self.change(|state| state.renew());
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().expect("no panic").requests.clone()
    }

    /// The number of requests so far whose path ends like this.
    pub fn count(&self, path: &str) -> usize {
        self.requests().iter().filter(|request| request.path.ends_with(path)).count()
    }
}

impl Default for State {
    fn default() -> State {
        let config = "{\"ttl\":30,\"loop_wait\":10,\"retry_timeout\":10}";
        State {
            prefix: "/service/main/".to_owned(),
            leader: Some("pg1".to_owned()),
            members: vec![("pg1".to_owned(), member("running", "primary", 2))],
            config: Some(config.to_owned()),
            initialize: Some("7587895443109810434".to_owned()),
            lease: 7587895443109810437,
            granted: 30,
            remaining: Remaining::Seconds(29),
            auth: Auth::Off,
            fault: Fault::None,
        }
    }
}

impl State {
    pub fn renew(&mut self) {
        let granted = Duration::from_secs(self.granted.unsigned_abs());
        self.remaining = Remaining::Until(Instant::now() + granted);
    }

    /// In whole seconds, rounded down, as etcd does; `None`: the lease is over.
    fn seconds_left(&self) -> Option<i64> {
        match self.remaining {
            Remaining::Seconds(seconds) => Some(seconds),
            Remaining::Until(end) => {
                let left = end.checked_duration_since(Instant::now())?;
                Some(left.as_secs() as i64)
            }
        }
    }

    /// The value of a key, and whether it hangs on the lease.
    fn value(&self, key: &str) -> Option<(&str, bool)> {
        let key = key.strip_prefix(&self.prefix)?;
        let leased = |value| self.seconds_left().map(|_| (value, true));
        match key {
            "leader" => self.leader.as_deref().and_then(leased),
            "config" => self.config.as_deref().map(|value| (value, false)),
            "initialize" => self.initialize.as_deref().map(|value| (value, false)),
            key => {
                let name = key.strip_prefix("members/")?;
                let member = self.members.iter().find(|(known, _)| known == name)?;
                leased(member.1.as_str())
            }
        }
    }

    /// Status and body of the answer to a transaction that only ranges over keys.
    fn txn(&self, body: &str) -> (u16, String) {
        let Ok(request) = serde_json::from_str::<serde_json::Value>(body) else {
            return error(400, 3, "unexpected EOF");
        };
        let mut responses = Vec::new();
        for range in request["success"].as_array().map_or(&[][..], |ranges| ranges) {
            let encoded = range["request_range"]["key"].as_str().unwrap_or_default();
            let key = String::from_utf8(from_base64(encoded)).unwrap_or_default();
            if !key.starts_with(&self.prefix) && matches!(self.auth, Auth::On { .. }) {
                return error(403, 7, "etcdserver: permission denied");
            }
            let found = self.value(&key).map(|(value, leased)| {
                let value = to_base64(value.as_bytes());
                let versions = "\"create_revision\":\"2\",\"mod_revision\":\"2\",\"version\":\"1\"";
                let lease = self.lease;
                let lease = if leased { format!(",\"lease\":\"{lease}\"") } else { String::new() };
                let pair = format!("\"key\":\"{encoded}\",{versions},\"value\":\"{value}\"{lease}");
                format!(",\"kvs\":[{{{pair}}}],\"count\":\"1\"")
            });
            let found = found.unwrap_or_default();
            responses.push(format!(
                "{{\"response_range\":{{\"header\":{{\"revision\":\"5\"}}{found}}}}}"
            ));
        }
        let responses = responses.join(",");
        (200, format!("{{{HEADER},\"succeeded\":true,\"responses\":[{responses}]}}"))
    }

    fn time_to_live(&self, body: &str) -> (u16, String) {
        let request: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let id = request["ID"].as_str().unwrap_or_default();
        let left = self.seconds_left().filter(|_| id == self.lease.to_string());
        let times = match left {
            // as any field with its default value, 0 is left out
            Some(0) => format!("\"grantedTTL\":\"{}\"", self.granted),
            Some(left) => format!("\"TTL\":\"{left}\",\"grantedTTL\":\"{}\"", self.granted),
            None => "\"TTL\":\"-1\"".to_owned(),
        };
        (200, format!("{{{HEADER},\"ID\":\"{id}\",{times}}}"))
    }

    /// A refusal of a transaction without a valid token.
    fn refused(&self, token: Option<&str>) -> Option<(u16, String)> {
        match (&self.auth, token) {
            (Auth::Off, None) => None,
            (Auth::On { .. }, None) => Some(error(400, 3, "etcdserver: user name is empty")),
            (Auth::On { tokens, may_read, .. }, Some(token))
                if tokens.iter().any(|known| known == token) =>
            {
                (!may_read).then(|| error(403, 7, "etcdserver: permission denied"))
            }
            (_, Some(_)) => Some(error(401, 16, "etcdserver: invalid auth token")),
        }
    }
}

impl Shared {
    fn answer(&mut self, request: &Request) -> (u16, String) {
        let token = request.authorization.as_deref();
        match (self.state.fault, request.path.as_str()) {
            (Fault::Status(400), _) => error(400, 3, "etcdserver: user name is empty"),
            (Fault::Status(401), _) => error(401, 16, "etcdserver: invalid auth token"),
            (Fault::Status(403), _) => error(403, 7, "etcdserver: permission denied"),
            (Fault::Status(status), _) => error(status, 14, "etcdserver: request timed out"),
            (_, "/v3/kv/txn") => {
                let refused = self.state.refused(token);
                refused.unwrap_or_else(|| self.state.txn(&request.body))
            }
            // etcd asks for no token here
            (_, "/v3/lease/timetolive") => self.state.time_to_live(&request.body),
            (_, "/v3/auth/authenticate") => self.authenticate(&request.body),
            _ => (404, "404 page not found\n".to_owned()),
        }
    }

    fn authenticate(&mut self, body: &str) -> (u16, String) {
        let Auth::On { username, password, tokens, .. } = &mut self.state.auth else {
            return error(412, 9, "etcdserver: authentication is not enabled");
        };
        let request: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        if request["name"] != username.as_str() || request["password"] != password.as_str() {
            let text = "etcdserver: authentication failed, invalid user ID or password";
            return error(400, 3, text);
        }
        self.tokens_given += 1;
        let token = format!("TfCsPdlXIPNUIprG.{}", self.tokens_given);
        tokens.push(token.clone());
        (200, format!("{{{HEADER},\"token\":\"{token}\"}}"))
    }
}

fn listen(listener: TcpListener, address: SocketAddr, shared: &Arc<Mutex<Shared>>) {
    let refuses = || shared.lock().expect("no panic").state.fault == Fault::Refused;
    let mut listener = Some(listener);
    loop {
        let Some(listening) = &listener else {
            thread::sleep(TICK);
            if !refuses() {
                listener = TcpListener::bind(address).ok();
            }
            continue;
        };
        let Ok((stream, _)) = listening.accept() else { continue };
        if refuses() {
            listener = None;
            continue;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(stream, &shared));
    }
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let Some(request) = read(&mut stream)? else { return Ok(()) };
    shared.lock().expect("no panic").requests.push(request.clone());
    stream.set_read_timeout(Some(TICK))?;
    let (answer, fault) = loop {
        let mut shared = shared.lock().expect("no panic");
        let fault = shared.state.fault;
        if fault != Fault::Silent {
            break (shared.answer(&request), fault);
        }
        drop(shared);
        if matches!(stream.read(&mut [0; 64]), Ok(0)) {
            return Ok(());
        }
    };
    let bytes = response(&answer);
    let end = if fault == Fault::Cut { bytes.len() / 2 } else { bytes.len() };
    stream.write_all(&bytes[..end])
}

/// `None`: the peer closed before its request was complete.
fn read(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = |name: &str| {
                let mut fields = head.lines().filter_map(|line| line.split_once(": "));
                let field = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
                field.map(|(_, value)| value.to_owned())
            };
            let length = field("Content-Length").and_then(|length| length.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(Some(Request {
                    path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
                    authorization: field("Authorization"),
                    body: body.to_owned(),
                    at: Instant::now(),
                }));
            }
        }
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

/// Go's server sends a length only with short answers, and etcd's gateway none with errors.
fn response((status, body): &(u16, String)) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        412 => "Precondition Failed",
        _ => "Service Unavailable",
    };
    let kind = match status {
        404 => "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff",
        200 => "Content-Type: application/json\r\nGrpc-Metadata-Content-Type: application/grpc",
        _ => "Content-Type: application/json\r\nTrailer: Grpc-Trailer-Content-Type",
    };
    let length = match status {
        200 | 404 if body.len() <= LENGTH_SENT_MAX => format!("Content-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    format!("HTTP/1.0 {status} {reason}\r\n{CORS}\r\n{kind}\r\n{length}\r\n{body}").into_bytes()
}

fn error(status: u16, code: u32, text: &str) -> (u16, String) {
    (status, format!("{{\"error\":\"{text}\",\"message\":\"{text}\",\"code\":{code}}}"))
}

/// A member's value as Patroni 4.1 writes it.
pub fn member(state: &str, role: &str, timeline: u32) -> String {
    let urls = "\"conn_url\":\"postgres://127.0.0.1:5432/postgres\",\
                \"api_url\":\"http://127.0.0.1:8008/patroni\"";
    let state = format!("\"state\":\"{state}\",\"role\":\"{role}\",\"version\":\"4.1.5\"");
    format!("{{{urls},{state},\"xlog_location\":67108960,\"timeline\":{timeline}}}")
}

/// RFC 4648, section 4.
pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) as usize % 64;
            text.push(if place <= three.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    let digits = text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    for digit in digits {
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const HEADER: &str = "\"header\":{\"cluster_id\":\"6140906383092096819\",\
                      \"member_id\":\"3853769655040810424\",\"revision\":\"5\",\
                      \"raft_term\":\"2\"}";
const CORS: &str = "Access-Control-Allow-Headers: accept, content-type, authorization\r\n\
                    Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n\
                    Access-Control-Allow-Origin: *";
/// The size of Go's buffer.
const LENGTH_SENT_MAX: usize = 2048;
const TICK: Duration = Duration::from_millis(5);
