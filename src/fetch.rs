//! One fetch: request bytes go out, an answer or a failure comes back. Knows no waiters.
//!
//! ```text
//!  Queued ── Connecting ── Handshaking ── Sending ── Head ── Body ── Done
//! ```
//!
//! Patroni's answers have no length, and end with the connection. An answer may be complete before:
//! a JSON body ends with its top-level object or array, and a bare status line with its empty line.
//! Later bytes do not matter, nor whether the connection ends.

use std::mem;
use std::rc::Rc;

use crate::answer::{AddressId, Answer};
use crate::cache::EntryId;
use crate::failure::Failure;
use crate::http::INTERIM_RESPONSES_MAX;
use crate::http::body::BodyDecoder;
use crate::http::head::{self, BadResponse, Framing};
use crate::http::json::{self, JsonScanner};
use crate::time::Time;

/// A fetch and its connection to an upstream.
#[derive(Debug)]
pub struct Fetch {
    purpose: Purpose,
    expected: Expected,
    /// The whole fetch ends by then, queueing included.
    deadline: Time,
    /// Just before the connection was begun; while queued, when the fetch was queued.
    asked_at: Time,
    /// The address that accepted the connection.
    address: AddressId,
    state: State,
}

/// What a fetch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An entry of the cache.
    Entry(EntryId),
    /// Patroni's own intervals, for the lease.
    Intervals,
    /// A request of the lease witness.
    Dcs,
}

/// What is known about the answer beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Maximum bytes of its body.
    pub body_bytes_max: usize,
    /// Whether it is a bare status line.
    pub bodyless: bool,
}

/// How far a connection to an upstream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The TLS handshake is in progress.
    Handshaking,
    /// The request may be sent.
    Open,
}

/// What an input led to.
pub type Outcome = Option<Result<Answer, Failure>>;

#[derive(Debug)]
enum State {
    Queued {
        request: Rc<[u8]>,
    },
    Connecting {
        request: Rc<[u8]>,
    },
    Handshaking {
        request: Rc<[u8]>,
    },
    /// `sent < request.len()`.
    Sending {
        request: Rc<[u8]>,
        sent: usize,
    },
    /// `input` is an incomplete head.
    Head {
        input: Vec<u8>,
        interim_count: u32,
    },
    Body(Box<Body>),
    Done,
}

#[derive(Debug)]
struct Body {
    /// The answer, without its body.
    answer: Answer,
    bytes: Vec<u8>,
    decoder: BodyDecoder,
    /// Finds the end of JSON without a length.
    json: Option<JsonScanner>,
}

impl Fetch {
    /// A fetch that sends `request` once it may connect.
    pub fn new(
        now: Time,
        purpose: Purpose,
        expected: Expected,
        request: Rc<[u8]>,
        deadline: Time,
    ) -> Self {
        let address = AddressId::default();
        let state = State::Queued { request };
        Fetch { purpose, expected, deadline, asked_at: now, address, state }
    }

    /// If the fetch is queued: begins its time anew, until `deadline`.
    pub fn queue_anew(&mut self, now: Time, deadline: Time) {
        if self.is_queued() {
            (self.asked_at, self.deadline) = (now, deadline);
        }
    }

    /// A connection is being made. The answer's age counts from here.
    pub fn connect(&mut self, now: Time) {
        if let State::Queued { request } = &self.state {
            self.state = State::Connecting { request: Rc::clone(request) };
            self.asked_at = now;
        }
    }

    /// This address accepted the connection.
    pub fn connected_to(&mut self, address: AddressId) {
        self.address = address;
    }

    /// The connection has reached this state.
    pub fn progress(&mut self, progress: Progress) {
        let (State::Connecting { request } | State::Handshaking { request }) = &self.state else {
            return;
        };
        let request = Rc::clone(request);
        self.state = match progress {
            Progress::Handshaking => State::Handshaking { request },
            Progress::Open => State::Sending { request, sent: 0 },
        };
    }

    /// The transport took `count` bytes of [`Fetch::output`].
    pub fn sent(&mut self, count: usize) {
        let State::Sending { request, sent } = &mut self.state else { return };
        *sent += count;
        debug_assert!(*sent <= request.len());
        if *sent == request.len() {
            self.state = State::Head { input: Vec::new(), interim_count: 0 };
        }
    }

    /// Bytes of the answer arrived.
    pub fn receive(&mut self, bytes: &[u8]) -> Outcome {
        match &mut self.state {
            State::Head { input, .. } => {
                input.extend_from_slice(bytes);
                self.read_head()
            }
            State::Body(_) => self.read_body(bytes),
            _ => None,
        }
    }

    /// The upstream has sent its last byte: this ends most of its bodies.
    pub fn eof(&mut self) -> Outcome {
        match &mut self.state {
            State::Head { input, .. } if !input.is_empty() => self.fail(Failure::Cut),
            State::Body(body) => match body.decoder.eof() {
                true => self.complete(),
                false => self.fail(Failure::Cut),
            },
            State::Queued { .. } | State::Done => None,
            _ => self.fail(Failure::Closed),
        }
    }

    /// The deadline has passed.
    pub fn expire(&mut self) -> Outcome {
        match self.state {
            State::Handshaking { .. } => self.fail(Failure::HandshakeTimedOut),
            _ => self.fail(Failure::TimedOut),
        }
    }

    /// The fetch has failed. A reset after part of the answer is a cut.
    pub fn fail(&mut self, failure: Failure) -> Outcome {
        let has_begun = match &self.state {
            State::Head { input, .. } => !input.is_empty(),
            State::Body(_) => true,
            _ => false,
        };
        match mem::replace(&mut self.state, State::Done) {
            State::Done => None,
            _ if has_begun && failure == Failure::Reset => Some(Err(Failure::Cut)),
            _ => Some(Err(failure)),
        }
    }

    /// What the fetch is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// When the fetch times out.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Whether it waits for a connection.
    pub fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued { .. })
    }

    /// Since when the upstream is being asked.
    pub fn asked_at(&self) -> Time {
        self.asked_at
    }

    /// The bytes to send.
    pub fn output(&self) -> &[u8] {
        match &self.state {
            State::Sending { request, sent, .. } => &request[*sent..],
            _ => &[],
        }
    }

    /// Whether more input is of use.
    pub fn wants_read(&self) -> bool {
        matches!(self.state, State::Head { .. } | State::Body(_))
    }

    fn read_head(&mut self) -> Outcome {
        let State::Head { input, interim_count } = &mut self.state else { return None };
        let head = loop {
            match head::response(input) {
                Ok(None) => return None,
                Err(BadResponse::Malformed) => return self.fail(Failure::Garbage),
                Err(BadResponse::HeadTooLarge) => return self.fail(Failure::TooLarge),
                // RFC 9110, section 15.2: any number of interim responses may come first
                Ok(Some(head)) if head.status < 200 => {
                    *interim_count += 1;
                    if *interim_count > INTERIM_RESPONSES_MAX {
                        return self.fail(Failure::Garbage);
                    }
                    let head_bytes = head.head_bytes;
                    input.drain(..head_bytes);
                }
                Ok(Some(head)) => break head,
            }
        };
        if head.is_from_patroniglue {
            return self.fail(Failure::Patroniglue);
        }
        let body_bytes_max = self.expected.body_bytes_max as u64;
        if matches!(head.framing, Framing::Length(length) if length > body_bytes_max) {
            return self.fail(Failure::TooLarge);
        }
        let answer = Answer {
            status: head.status,
            passed_on: head.passed_on,
            body: [].into(),
            asked_at: self.asked_at,
            date_unix_seconds: head.date_unix_seconds,
            address: self.address,
        };
        let ends_by_itself = head.framing == Framing::Eof;
        let framing = match head.framing {
            Framing::Eof if self.expected.bodyless => Framing::Length(0),
            framing => framing,
        };
        let json = (ends_by_itself && answer.is_json()).then(JsonScanner::default);
        let rest = input.split_off(head.head_bytes);
        let decoder = BodyDecoder::new(framing);
        self.state = State::Body(Box::new(Body { answer, bytes: Vec::new(), decoder, json }));
        self.read_body(&rest)
    }

    fn read_body(&mut self, mut bytes: &[u8]) -> Outcome {
        let State::Body(body) = &mut self.state else { return None };
        let mut is_whole = body.decoder.is_done();
        while !bytes.is_empty() && !is_whole {
            let Ok(decoded) = body.decoder.decode(bytes) else {
                return self.fail(Failure::Garbage);
            };
            bytes = &bytes[decoded.taken..];
            is_whole = body.decoder.is_done();
            let mut data = decoded.data;
            if let Some(json) = &mut body.json {
                let Ok(end) = json.feed(data) else { return self.fail(Failure::Cut) };
                data = &data[..end.unwrap_or(data.len())];
                is_whole |= end.is_some();
            }
            if body.bytes.len() + data.len() > self.expected.body_bytes_max {
                return self.fail(Failure::TooLarge);
            }
            body.bytes.extend_from_slice(data);
        }
        if is_whole { self.complete() } else { None }
    }

    fn complete(&mut self) -> Outcome {
        let State::Body(body) = mem::replace(&mut self.state, State::Done) else { return None };
        let Body { mut answer, bytes, .. } = *body;
        answer.body = bytes.into();
        let is_cut = answer.is_json() && !json::is_whole(&answer.body);
        Some(if is_cut { Err(Failure::Cut) } else { Ok(answer) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheSettings};
    use crate::failure::Culprit;
    use crate::http::RESPONSE_BODY_BYTES_MAX;
    use crate::routes::plain_routes;

    const EXPECTED: Expected =
        Expected { body_bytes_max: RESPONSE_BODY_BYTES_MAX, bodyless: false };

    fn entry() -> EntryId {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 0, grace_ms: 0, variants_max: 0 });
        cache.find(Time::ZERO, plain_routes().next().expect("routes"), "/").expect("a place")
    }

    /// A fetch fed with `bytes` in pieces of `step`, then with the end.
    fn fetched(bytes: &[u8], step: usize) -> Result<Answer, Failure> {
        let at_3_s = Time::from_ms(3_000);
        let mut fetch =
            Fetch::new(Time::ZERO, Purpose::Entry(entry()), EXPECTED, b"GET"[..].into(), at_3_s);
        assert!(fetch.is_queued() && !fetch.wants_read() && fetch.output().is_empty());
        fetch.connect(Time::from_ms(7));
        fetch.progress(Progress::Open);
        fetch.sent(1);
        assert_eq!(fetch.output(), b"ET");
        fetch.sent(2);
        for piece in bytes.chunks(step) {
            assert!(fetch.wants_read());
            if let Some(outcome) = fetch.receive(piece) {
                assert_eq!((fetch.wants_read(), fetch.eof()), (false, None));
                return outcome;
            }
        }
        fetch.eof().expect("the end decides")
    }

    fn outcome(text: &str) -> Result<(u16, String), Failure> {
        let whole = fetched(text.as_bytes(), usize::MAX);
        for step in 1..text.len().min(200) {
            assert_eq!(fetched(text.as_bytes(), step), whole, "{text:?} by {step}");
        }
        if let Ok(answer) = &whole {
            assert_eq!(answer.asked_at, Time::from_ms(7));
        }
        whole.map(|answer| (answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    #[test]
    fn answers_of_every_framing() {
        let table = [
            ("HTTP/1.0 200 OK\r\n\r\n", 200, ""),
            ("HTTP/1.0 503 Down\r\nServer: x\r\n\r\nbody", 503, "body"),
            (
                "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\": 1}",
                200,
                "{\"a\": 1}",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodymore", 200, "body"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 302, ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nbo\r\n2\r\ndy\r\n0\r\nA: b\r\n\r\n",
                200,
                "body",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.0 200 OK\r\n\r\nbody",
                200,
                "body",
            ),
        ];
        for (text, status, body) in table {
            assert_eq!(outcome(text), Ok((status, body.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn each_unusable_answer_has_its_failure() {
        let endless = format!("HTTP/1.0 200 OK\r\n{}", "A: b\r\n".repeat(100));
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(INTERIM_RESPONSES_MAX as usize + 1);
        let table = [
            ("", Failure::Closed),
            ("HTTP/1.0 200", Failure::Cut),
            ("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\": ", Failure::Cut),
            (
                "HTTP/1.0 200 OK\r\nContent-Type: application/JSON; charset=utf-8\r\n\r\n",
                Failure::Cut,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbod", Failure::Cut),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo", Failure::Cut),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx", Failure::Garbage),
            ("<html>an error</html>\n\n", Failure::Garbage),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n", Failure::TooLarge),
            (&endless, Failure::TooLarge),
            (&interim, Failure::Garbage),
        ];
        for (text, failure) in table {
            assert_eq!(outcome(text), Err(failure), "{text:?}");
        }
    }

    #[test]
    fn interim_responses_are_accepted_up_to_the_limit() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(INTERIM_RESPONSES_MAX as usize);
        let text = format!("{interim}HTTP/1.0 200 OK\r\n\r\nbody");
        assert_eq!(outcome(&text), Ok((200, "body".to_owned())));
    }

    #[test]
    fn a_body_without_length_is_limited_too() {
        let mut text = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        text.resize(text.len() + RESPONSE_BODY_BYTES_MAX, b'x');
        assert!(fetched(&text, 4096).is_ok());
        text.push(b'x');
        assert_eq!(fetched(&text, 4096), Err(Failure::TooLarge));
    }

    #[test]
    fn a_handshake_timeout_is_silence_with_its_own_name() {
        let begin = || {
            let at_3_s = Time::from_ms(3_000);
            let mut fetch =
                Fetch::new(Time::ZERO, Purpose::Intervals, EXPECTED, b"GET"[..].into(), at_3_s);
            fetch.connect(Time::ZERO);
            fetch
        };
        assert_eq!(begin().expire(), Some(Err(Failure::TimedOut)));
        let mut fetch = begin();
        fetch.progress(Progress::Handshaking);
        assert!(fetch.output().is_empty() && !fetch.wants_read());
        assert_eq!(fetch.expire(), Some(Err(Failure::HandshakeTimedOut)));
        assert_eq!(Failure::HandshakeTimedOut.culprit(), Culprit::Silent);
        let mut fetch = begin();
        fetch.progress(Progress::Handshaking);
        fetch.progress(Progress::Open);
        assert_eq!(fetch.output(), b"GET");
        assert_eq!(fetch.expire(), Some(Err(Failure::TimedOut)));
    }
}
