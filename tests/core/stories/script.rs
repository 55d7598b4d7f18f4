//! The language of the stories: text becomes steps. The text below is complete, and is parsed by
//! a test.
//!
//! ```text
//! # "## Given NAME" begins lines that later stories of the file share, "## TITLE" a story.
//! ## Given an empty cache
//! clients 1000
//!
//! ## A client is answered
//! given an empty cache                    # the story begins with these lines
//! ttl 1 s                                 # settings of the whole story come before its events
//! grace 0 s
//! interval 250 ms
//! timeout 3 s
//! connections 3
//! entries 64
//! clients 1000
//! host localhost:8008
//! fence on                                # or off
//! dcs on                                  # etcd is a witness, with a margin of 10 s
//! in one piece                            # bytes are not split: the story is played once
//!
//! A connects
//! a client B connects
//! 500 clients C connect                   # C is a group: a sentence about C is about each of them
//! D connects and asks GET / HTTP/1.1
//! 9 clients E connect and ask GET / HTTP/1.0
//! A asks GET / HTTP/1.1 with Host: x; Connection: close
//! C ask GET / HTTP/1.1
//! A sends "bytes \r \n \t \0 \" \\ \x7f", 9 times "bytes"
//! A sends "bytes", a byte every 100 ms
//! A half-closes                           # shuts down writing: the end comes after the bytes
//! A half-closes, seen at once             # although nothing is read from it
//! A resets
//! A stops reading
//! A takes 10 bytes                        # reads 10 bytes more
//! A reads again
//! the late A sends "bytes"                # on a connection that was closed
//! 1 ms passes
//! 5 s pass
//! descriptors run out                     # one idle client has to be closed
//! the daemon starts                       # and reads Patroni's intervals; otherwise it does not
//! the HA loop is seen at work             # by a client of /patroni, which takes 1 s
//! the wall clock jumps 5 s forward
//! the wall clock jumps 5 s back
//! the node is drained                     # SIGUSR1
//! the drain ends                          # SIGUSR2
//! SIGHUP with ttl 2 s                     # any of the settings above
//! the dcs has leader pg1                  # from now on; at first with a renewed lease
//! the dcs has no leader
//! the dcs has a lease of 24 s             # and is not renewed
//! the dcs has a renewed lease
//! the dcs has role replica
//! the dcs has state stopped
//! the dcs has timeline 3
//! the dcs has another cluster             # another system identifier
//! the dcs has pause
//! the dcs is silent
//! the dcs refuses connections
//! the dcs has no quorum
//! the dcs answers garbage
//! the dcs forbids it                      # it wants a user and a password
//! the dcs answers
//! Patroni accepts connections             # from now on, as the next ones
//! Patroni leaves connections pending
//! Patroni refuses connections
//! Patroni cannot be reached
//! Patroni cannot be resolved
//! Patroni cannot be connected: no descriptor
//! Patroni accepts the pending connections
//! Patroni has address 2                   # accepts connections there from now on
//! Patroni's clock is 5 s ahead            # from now on: moves @date and @now
//! Patroni's clock is 5 s slow
//! Patroni answers / with 200 {"dcs_last_seen": @now-2}    # and closes; 2 s before the wall clock
//! Patroni sends "bytes" for /
//! Patroni sends "bytes", a byte every 100 ms for /
//! Patroni ends /
//! Patroni resets /
//!
//! Patroni is asked for /                  # exactly this request, on a new connection
//! Patroni is tried                        # a connection it did not accept
//! Patroni is tried 3 times
//! the connection for / is closed          # before Patroni ended it
//! a connection is given up                # that was never accepted
//! A gets 200 {"a": "body"}                # a whole answer; conditions on it follow, indented
//!   Name: value
//!   no Name
//!   empty body
//!   body "bytes"
//! C get 503
//! A gets 9 times 200
//! A gets 503 saying text                  # our own error, in JSON
//! A gets exactly "bytes"
//! A is half-closed                        # all is sent, writing is shut down
//! A is closed
//! A is closed within an answer
//! A is closed with bytes unread
//! A is turned away                        # not accepted
//! the dcs is asked                        # at least once since the last such line
//! the dcs is not asked
//! there is 1 client
//! there are 2 clients, 1 fetches, 0 queued, 3 waiters, 24 entries, 0 timers, 1 late inputs
//! there are 1 fetch, 1 waiter, 1 timer
//! nothing happens
//! ```

use std::collections::BTreeMap;

use patroniglue::answer::AddressId;
use patroniglue::cache::CacheSettings;
use patroniglue::engine::{Counts, DcsSettings, Settings};
use patroniglue::failure::Failure;
use patroniglue::node::witness::Settings as WitnessSettings;

/// One story. `splits` is false if its bytes have to come as they are sent.
#[derive(Clone)]
pub struct Story {
    pub file: String,
    pub title: String,
    pub settings: Settings,
    pub splits: bool,
    pub lines: Vec<Line>,
}

/// One line of a story, with the lines indented below it.
#[derive(Clone)]
pub struct Line {
    pub number: usize,
    pub steps: Vec<Step>,
}

/// An event, or an expectation.
#[derive(Clone)]
pub enum Step {
    Connect {
        client: String,
        count: Option<usize>,
    },
    Send {
        client: String,
        bytes: Vec<u8>,
        every_ms: Option<u64>,
    },
    SendLate {
        client: String,
        bytes: Vec<u8>,
    },
    HalfClose(String),
    HalfCloseSeen(String),
    Reset(String),
    Take(String, ReadLimit),
    Pass(u64),
    MakeRoom,
    Start,
    JumpMs(i64),
    Drain(bool),
    Configure(String),
    Connects(Connects),
    AcceptWaiting,
    PatroniMoves(AddressId),
    PatroniClock(i64),
    PatroniSends {
        target: String,
        bytes: Vec<u8>,
        every_ms: Option<u64>,
    },
    /// The state of the DCS changes.
    Dcs(String),
    /// The whole answer and its end.
    PatroniAnswers {
        target: String,
        bytes: Vec<u8>,
    },
    PatroniEnds(String),
    PatroniResets(String),
    Expect(Expectation),
}

/// How many more bytes of its answers a client reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReadLimit {
    Unlimited,
    Bytes(usize),
}

/// The fate of new connections to Patroni.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Connects {
    Accepted,
    Pending,
    Fail(Failure),
}

/// An expectation.
#[derive(Clone)]
pub enum Expectation {
    Asked(String),
    Tried(usize),
    ConnectionClosed(String),
    GivenUp,
    /// Whether the DCS was asked since the last such line.
    DcsAsked(bool),
    Gets {
        client: String,
        times: usize,
        status: u16,
        details: Vec<Detail>,
    },
    GetsExactly {
        client: String,
        bytes: Vec<u8>,
    },
    HalfClosed(String),
    Closed {
        client: String,
        how: Closing,
    },
    TurnedAway(String),
    Counts(Vec<(usize, String)>),
    Nothing,
}

/// The state of a client's connection at its close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    Clean,
    WithinAnswer,
    BytesUnread,
}

/// A condition on an answer.
#[derive(Clone)]
pub enum Detail {
    Field(String, String),
    NoField(String),
    Body(Vec<u8>),
}

/// All stories of a file. The error names the line.
pub fn stories(file: &str, text: &str) -> Result<Vec<Story>, String> {
    let mut stories = Vec::new();
    let mut given: BTreeMap<String, Given> = BTreeMap::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, raw)) = lines.next() {
        let Some(title) = raw.strip_prefix("## ") else {
            if without_comment(raw).trim().is_empty() {
                continue;
            }
            return Err(not_understood(file, at, raw));
        };
        let mut story = story(file, title);
        let mut shared = 0;
        while let Some((at, raw)) = lines.next_if(|(_, raw)| !raw.starts_with("## ")) {
            let line = without_comment(raw);
            let name = line.strip_prefix("given ").filter(|_| story.lines.is_empty());
            if let Some(name) = name {
                let given = given.get_mut(name).ok_or_else(|| not_understood(file, at, raw))?;
                given.used = true;
                story = Story { title: story.title, ..given.story.clone() };
                shared = story.lines.len();
            } else if !line.trim().is_empty() {
                add(&mut story, shared, at + 1, line)
                    .ok_or_else(|| not_understood(file, at, raw))?;
            }
        }
        match story.title.strip_prefix("Given ").map(str::to_owned) {
            Some(name) => drop(given.insert(name, Given { story, used: false })),
            None => stories.push(story),
        }
    }
    match given.iter().find(|(_, given)| !given.used) {
        Some((name, _)) => Err(format!("{file}: no story is given {name}")),
        None => Ok(stories),
    }
}

/// The beginning that several stories of a file share.
struct Given {
    story: Story,
    used: bool,
}

fn not_understood(file: &str, at: usize, raw: &str) -> String {
    format!("{file}:{}: not understood: {raw}", at + 1)
}

/// Adds a line to a story whose first `shared` lines are those of a [`Given`].
fn add(story: &mut Story, shared: usize, number: usize, line: &str) -> Option<()> {
    let begins = story.lines.len() == shared;
    if line.starts_with(' ') {
        let last = story.lines.last_mut().and_then(|line| line.steps.last_mut());
        let Some(Step::Expect(Expectation::Gets { details, .. })) = last else { return None };
        details.push(detail(line.trim())?);
    } else if begins && line == "in one piece" {
        story.splits = false;
    } else if !(begins && setting(&mut story.settings, line).is_some()) {
        story.lines.push(Line { number, steps: steps(line)? });
    }
    Some(())
}

/// The value of one of [`Counts`]' fields.
pub fn count(counts: &Counts, name: &str) -> Option<usize> {
    Some(match name {
        "client" | "clients" => counts.clients,
        "fetch" | "fetches" => counts.fetches,
        "queued" => counts.queued,
        "waiter" | "waiters" => counts.waiters,
        "timer" | "timers" => counts.timers,
        "entries" => counts.entries,
        "late inputs" => counts.stale_inputs as usize,
        _ => return None,
    })
}

/// A story without lines, with the defaults of the configuration.
fn story(file: &str, title: &str) -> Story {
    let settings = Settings {
        cache: CacheSettings { ttl_ms: 1_000, variants_max: 64, grace_ms: 0 },
        interval_ms: 250,
        timeout_ms: 3_000,
        fetches_max: 3,
        clients_max: 1_000,
        fence: false,
        dcs: None,
        host: "localhost:8008".into(),
        agent_target: "/replica".into(),
        records: false,
    };
    Story {
        file: file.into(),
        title: title.trim().into(),
        settings,
        splits: true,
        lines: Vec::new(),
    }
}

fn without_comment(line: &str) -> &str {
    if line.starts_with('#') {
        return "";
    }
    line.find("  #").map_or(line, |at| &line[..at]).trim_end()
}

pub fn setting(settings: &mut Settings, line: &str) -> Option<()> {
    let (name, value) = line.split_once(' ')?;
    match name {
        "host" => settings.host = value.into(),
        "fence" => {
            settings.fence = match value {
                "on" => true,
                "off" => false,
                _ => return None,
            }
        }
        "dcs" => {
            let witness = WitnessSettings {
                namespace: "service".into(),
                group: None,
                credentials: None,
                margin_ms: 10_000,
            };
            let dcs = DcsSettings { witness, host: "etcd:2379".into(), hosts: 1 };
            settings.dcs = match value {
                "on" => Some(dcs),
                "off" => None,
                _ => return None,
            }
        }
        "ttl" => settings.cache.ttl_ms = duration_ms(value)?,
        "grace" => settings.cache.grace_ms = duration_ms(value)?,
        "interval" => settings.interval_ms = duration_ms(value)?,
        "timeout" => settings.timeout_ms = duration_ms(value)?,
        "connections" => settings.fetches_max = value.parse().ok()?,
        "entries" => settings.cache.variants_max = value.parse().ok()?,
        "clients" => settings.clients_max = value.parse().ok()?,
        _ => return None,
    }
    Some(())
}

fn steps(line: &str) -> Option<Vec<Step>> {
    if line == "the HA loop is seen at work" {
        let steps: Option<Vec<_>> = SEEN_AT_WORK.lines().map(steps).collect();
        return Some(steps?.into_iter().flatten().collect());
    }
    if let Some((connects, asks)) = line.split_once(" and ask") {
        let connect = connection(connects)?;
        let Step::Connect { client, .. } = &connect else { return None };
        let asks = asks.strip_prefix('s').unwrap_or(asks).strip_prefix(' ')?;
        let ask = Step::Send { client: client.clone(), bytes: request(asks)?, every_ms: None };
        return Some(vec![connect, ask]);
    }
    if let Some(body) = line.strip_prefix("Patroni answers ") {
        return patroni_answers(body);
    }
    if let Some(words) = line.strip_prefix("the dcs ") {
        return Some(vec![match words {
            "is asked" => Step::Expect(Expectation::DcsAsked(true)),
            "is not asked" => Step::Expect(Expectation::DcsAsked(false)),
            _ => Step::Dcs(words.into()),
        }]);
    }
    let step = connection(line)
        .or_else(|| time(line))
        .or_else(|| patroni(line))
        .or_else(|| common(line))
        .or_else(|| client(line));
    Some(vec![step?])
}

fn connection(line: &str) -> Option<Step> {
    let line = line.strip_prefix("a client ").unwrap_or(line);
    if let Some(client) = line.strip_suffix(" connects") {
        return Some(Step::Connect { client: name(client)?, count: None });
    }
    let (count, client) = line.strip_suffix(" connect")?.split_once(" clients ")?;
    Some(Step::Connect { client: name(client)?, count: Some(count.parse().ok()?) })
}

fn time(line: &str) -> Option<Step> {
    if let Some(jump) = line.strip_prefix("the wall clock jumps ") {
        let forward = jump.strip_suffix(" forward").map(|span| (span, 1));
        let (span, sign) = forward.or(jump.strip_suffix(" back").map(|span| (span, -1)))?;
        return Some(Step::JumpMs(duration_ms(span)? as i64 * sign));
    }
    if let Some(clock) = line.strip_prefix("Patroni's clock is ") {
        let ahead = clock.strip_suffix(" ahead").map(|span| (span, 1));
        let (span, sign) = ahead.or(clock.strip_suffix(" slow").map(|span| (span, -1)))?;
        return Some(Step::PatroniClock(duration_ms(span)? as i64 * sign));
    }
    let span = line.strip_suffix(" pass").or_else(|| line.strip_suffix(" passes"))?;
    Some(Step::Pass(duration_ms(span)?))
}

fn patroni(line: &str) -> Option<Step> {
    let rest = line.strip_prefix("Patroni ")?;
    let step = match rest {
        "refuses connections" => Step::Connects(Connects::Fail(Failure::Refused)),
        "cannot be reached" => Step::Connects(Connects::Fail(Failure::Unreachable)),
        "cannot be resolved" => Step::Connects(Connects::Fail(Failure::Unresolved)),
        "cannot be connected: no descriptor" => {
            Step::Connects(Connects::Fail(Failure::NoDescriptor))
        }
        "leaves connections pending" => Step::Connects(Connects::Pending),
        "accepts connections" => Step::Connects(Connects::Accepted),
        "accepts the pending connections" => Step::AcceptWaiting,
        "is tried" => Step::Expect(Expectation::Tried(1)),
        _ => return patroni_about(rest),
    };
    Some(step)
}

fn patroni_about(rest: &str) -> Option<Step> {
    if let Some(sends) = rest.strip_prefix("sends ") {
        let (bytes, target) = sends.rsplit_once(" for ")?;
        let (bytes, every_ms) = paced(bytes)?;
        return Some(Step::PatroniSends { target: target.into(), bytes, every_ms });
    }
    if let Some(times) = rest.strip_prefix("is tried ") {
        let times = times.strip_suffix(" times")?.parse().ok()?;
        return Some(Step::Expect(Expectation::Tried(times)));
    }
    if let Some(address) = rest.strip_prefix("has address ") {
        return Some(Step::PatroniMoves(AddressId(address.parse().ok()?)));
    }
    if let Some(target) = rest.strip_prefix("is asked for ") {
        return Some(Step::Expect(Expectation::Asked(target.into())));
    }
    if let Some(target) = rest.strip_prefix("ends ") {
        return Some(Step::PatroniEnds(target.into()));
    }
    rest.strip_prefix("resets ").map(|target| Step::PatroniResets(target.into()))
}

/// The bytes that Patroni's Python server sends: with a body of JSON its head, without one a bare
/// status line; never a length.
fn patroni_answers(line: &str) -> Option<Vec<Step>> {
    let (target, answer) = line.split_once(" with ")?;
    let (status, body) = answer.split_once(' ').unwrap_or((answer, ""));
    let status: u16 = status.parse().ok()?;
    let fields = "Server: BaseHTTP/0.6 Python/3.11.2\r\nDate: @date\r\n\
        Content-Type: application/json\r\n";
    let fields = if body.is_empty() { "" } else { fields };
    let bytes = format!("HTTP/1.0 {status} Reason\r\n{fields}\r\n{body}").into_bytes();
    let target = target.to_owned();
    Some(vec![Step::PatroniAnswers { target, bytes }])
}

fn common(line: &str) -> Option<Step> {
    if let Some(rest) = line.strip_prefix("the connection for ") {
        let target = rest.strip_suffix(" is closed")?.into();
        return Some(Step::Expect(Expectation::ConnectionClosed(target)));
    }
    if let Some(rest) = line.strip_prefix("the late ") {
        let (client, bytes) = rest.split_once(" sends ")?;
        return Some(Step::SendLate { client: name(client)?, bytes: literal(bytes)? });
    }
    if let Some(rest) = line.strip_prefix("there are ").or(line.strip_prefix("there is ")) {
        let parts = rest.split(", ").map(|part| {
            let (number, what) = part.split_once(' ')?;
            count(&Counts::default(), what)?;
            Some((number.parse().ok()?, what.to_owned()))
        });
        return Some(Step::Expect(Expectation::Counts(parts.collect::<Option<Vec<_>>>()?)));
    }
    if let Some(rest) = line.strip_prefix("SIGHUP with ") {
        return Some(Step::Configure(rest.into()));
    }
    match line {
        "a connection is given up" => Some(Step::Expect(Expectation::GivenUp)),
        "nothing happens" => Some(Step::Expect(Expectation::Nothing)),
        "descriptors run out" => Some(Step::MakeRoom),
        "the daemon starts" => Some(Step::Start),
        "the node is drained" => Some(Step::Drain(true)),
        "the drain ends" => Some(Step::Drain(false)),
        _ => None,
    }
}

fn client(line: &str) -> Option<Step> {
    let (client, deed) = line.split_once(' ')?;
    let client = name(client)?;
    let closed = |how| Expectation::Closed { client: client.clone(), how };
    let step = match deed {
        "half-closes" => Step::HalfClose(client),
        "half-closes, seen at once" => Step::HalfCloseSeen(client),
        "resets" => Step::Reset(client),
        "stops reading" => Step::Take(client, ReadLimit::Bytes(0)),
        "reads again" => Step::Take(client, ReadLimit::Unlimited),
        "is half-closed" => Step::Expect(Expectation::HalfClosed(client)),
        "is turned away" => Step::Expect(Expectation::TurnedAway(client)),
        "is closed" => Step::Expect(closed(Closing::Clean)),
        "is closed within an answer" => Step::Expect(closed(Closing::WithinAnswer)),
        "is closed with bytes unread" => Step::Expect(closed(Closing::BytesUnread)),
        _ => return client_about(client, deed),
    };
    Some(step)
}

fn client_about(client: String, deed: &str) -> Option<Step> {
    let (verb, rest) = deed.split_once(' ')?;
    match verb {
        "asks" | "ask" => Some(Step::Send { client, bytes: request(rest)?, every_ms: None }),
        "sends" | "send" => {
            let (bytes, every_ms) = paced(rest)?;
            Some(Step::Send { client, bytes, every_ms })
        }
        "takes" => {
            let bytes = rest.strip_suffix(" bytes")?.parse().ok()?;
            Some(Step::Take(client, ReadLimit::Bytes(bytes)))
        }
        "gets" | "get" => gets(client, rest).map(Step::Expect),
        _ => None,
    }
}

fn gets(client: String, rest: &str) -> Option<Expectation> {
    if let Some(bytes) = rest.strip_prefix("exactly ") {
        return Some(Expectation::GetsExactly { client, bytes: literal(bytes)? });
    }
    let (times, rest) = rest.split_once(" times ").unwrap_or(("1", rest));
    let times = times.parse().ok()?;
    let (status, body) = rest.split_once(' ').unwrap_or((rest, ""));
    let status = status.parse().ok()?;
    let details = if let Some(message) = body.strip_prefix("saying ") {
        let body = format!("{{\"error\":\"{message}\"}}\n").into_bytes();
        let json = Detail::Field("Content-Type".into(), "application/json".into());
        vec![json, Detail::Body(body)]
    } else if body.is_empty() {
        Vec::new()
    } else {
        vec![Detail::Body(body.as_bytes().to_vec())]
    };
    Some(Expectation::Gets { client, times, status, details })
}

fn detail(text: &str) -> Option<Detail> {
    if text == "empty body" {
        return Some(Detail::Body(Vec::new()));
    }
    if let Some(body) = text.strip_prefix("body ") {
        return Some(Detail::Body(literal(body)?));
    }
    if let Some(name) = text.strip_prefix("no ") {
        return Some(Detail::NoField(name.into()));
    }
    let (name, value) = text.split_once(": ")?;
    Some(Detail::Field(name.into(), value.into()))
}

/// `GET / HTTP/1.1 with Host: x; Connection: close`
fn request(text: &str) -> Option<Vec<u8>> {
    let (line, fields) = text.split_once(" with ").unwrap_or((text, ""));
    let fields = fields.split("; ").filter(|field| !field.is_empty());
    let fields: String = fields.map(|field| format!("{field}\r\n")).collect();
    Some(format!("{line}\r\n{fields}\r\n").into_bytes())
}

/// A literal, and the pause after each of its bytes.
fn paced(text: &str) -> Option<(Vec<u8>, Option<u64>)> {
    match text.split_once(", a byte every ") {
        Some((bytes, span)) => Some((literal(bytes)?, Some(duration_ms(span)?))),
        None => Some((literal(text)?, None)),
    }
}

/// `"GET /", 9000 times "x", " HTTP/1.1\r\n\r\n"`
fn literal(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    loop {
        let (times, quoted) = match rest.split_once(" times ") {
            Some((number, quoted)) if !number.starts_with('"') => (number.parse().ok()?, quoted),
            _ => (1, rest),
        };
        let (piece, after) = unquoted(quoted.strip_prefix('"')?)?;
        bytes.extend(piece.repeat(times));
        if after.is_empty() {
            return Some(bytes);
        }
        rest = after.strip_prefix(", ")?;
    }
}

/// The bytes up to the closing quote, and the text after it.
fn unquoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut bytes = Vec::new();
    let mut rest = text;
    loop {
        let at = rest.find(['"', '\\'])?;
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        if rest.as_bytes()[at] == b'"' {
            return Some((bytes, &rest[at + 1..]));
        }
        let escape = rest[at + 1..].chars().next()?;
        rest = rest.get(at + 2..)?;
        bytes.push(match escape {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '"' | '\\' => escape as u8,
            'x' => {
                let digits = rest.get(..2)?;
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).ok()?
            }
            _ => return None,
        });
    }
}

fn duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ')?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(number),
        "s" => Some(number * 1_000),
        _ => None,
    }
}

/// A client's name begins with a capital, so that no name is a word of the language.
fn name(text: &str) -> Option<String> {
    let plain = text.chars().all(|letter| letter.is_ascii_alphanumeric());
    (plain && text.starts_with(|first: char| first.is_ascii_uppercase())).then(|| text.to_owned())
}

/// After one request the route is fetched ahead of time once.
const SEEN_AT_WORK: &str = r#"Z connects and asks GET /patroni HTTP/1.0
Patroni is asked for /patroni
Patroni answers /patroni with 200 {"state": "running", "role": "primary", "dcs_last_seen": @now}
Z gets 200
Z is closed
750 ms pass
Patroni is asked for /patroni
Patroni answers /patroni with 200 {"state": "running", "role": "primary", "dcs_last_seen": @now}
250 ms pass"#;
