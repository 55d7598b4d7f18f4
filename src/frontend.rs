//! One client: turns bytes into requests, one at a time and in order, and responses into bytes.
//!
//! Knows neither cache nor upstream. While a request waits for its response no bytes are received,
//! so a client occupies the memory of at most one receive and one head.

use std::mem;
use std::rc::Rc;

use crate::http::body::BodyDecoder;
use crate::http::head::{self, BadRequest, Framing};
use crate::http::repeated::RepeatedHeads;
use crate::http::{
    EntityTag, Method, Persistence, REQUEST_BODY_BYTES_MAX, REQUEST_HEAD_BYTES_MAX,
    TARGET_BYTES_MAX,
};
use crate::time::Time;

/// The state of a client's connection.
#[derive(Debug)]
pub struct Frontend {
    state: State,
    /// Received bytes that are not processed yet: part of a head or body, or further requests.
    /// Without capacity while it is empty.
    input: Vec<u8>,
    /// When the state began. In `Head { kept: true }` with `input`: when its first byte arrived.
    since: Time,
}

/// What parsing keeps from one request to the next, whichever client sent it.
#[derive(Debug)]
pub struct Parser {
    /// The target of the last request.
    pub target: String,
    heads: RepeatedHeads,
}

/// A request without its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Whether the connection stays open after the response.
    pub persistence: Persistence,
    /// The content that the client already has.
    pub if_none_match: Option<EntityTag>,
}

/// The result of an input.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Continue,
    /// A request is complete and waits for [`Frontend::respond`]; its target is in the
    /// caller's [`Parser`].
    Ask(Request),
    /// The request is invalid and waits for [`Frontend::refuse`]. The method, as far as it is
    /// known, decides whether the refusal has a body.
    Refuse(Method, BadRequest),
    /// The request is not complete at its deadline: as `Refuse`, with 408.
    TooSlow,
    /// The last response is sent: shut down writing, then wait for the client's FIN.
    Linger,
    /// Close the connection.
    Close,
}

#[derive(Debug)]
enum State {
    /// Between requests, or with part of a head in `input`. `kept`: after a response.
    Head { kept: bool },
    /// A head is complete; its body is being received and discarded.
    Body(Box<Body>),
    /// A request waits for its response. Without a deadline: the fetch it waits for has one.
    Waiting(Request),
    /// `sent < bytes.len()`.
    Responding { bytes: Rc<[u8]>, sent: u32, then: Then },
    /// Writing is shut down; input is discarded until the client's FIN. Closing with unread input
    /// would send RST, which can destroy the response on its way (RFC 9112, section 9.6).
    Lingering { discarded_bytes: u32 },
}

#[derive(Debug)]
struct Body {
    request: Request,
    target: Box<str>,
    decoder: BodyDecoder,
    data_bytes: u64,
}

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    NextRequest,
    Linger,
    Close,
}

impl Default for Parser {
    /// Has room for any target, so that none allocates.
    fn default() -> Parser {
        let target = String::with_capacity(TARGET_BYTES_MAX);
        Parser { target, heads: RepeatedHeads::default() }
    }
}

impl Frontend {
    /// Creates the state of a new connection.
    pub fn new(now: Time) -> Self {
        Frontend { state: State::Head { kept: false }, input: Vec::new(), since: now }
    }

    /// A connection that waits for its only response without having sent anything.
    pub fn waiting_at_once(now: Time) -> (Self, Request) {
        let (method, persistence) = (Method::Get, Persistence::Close);
        let request = Request { method, persistence, if_none_match: None };
        (Frontend { state: State::Waiting(request), input: Vec::new(), since: now }, request)
    }

    /// Processes received bytes. The result does not depend on how they are split. Writes the
    /// target of a complete request to `parser.target`.
    pub fn receive(&mut self, now: Time, bytes: &[u8], parser: &mut Parser) -> Step {
        match &mut self.state {
            State::Head { .. } => self.parse_head(now, bytes, parser),
            State::Body(_) => {
                self.input.extend_from_slice(bytes);
                self.discard_body(now, parser)
            }
            State::Lingering { discarded_bytes } => {
                *discarded_bytes = discarded_bytes.saturating_add(bytes.len() as u32);
                if *discarded_bytes > DISCARD_BYTES_MAX { Step::Close } else { Step::Continue }
            }
            // `wants_read` is false, but the shell may have received them already
            State::Waiting(_) | State::Responding { .. } => {
                self.input.extend_from_slice(bytes);
                if self.input.len() > UNREAD_BYTES_MAX { Step::Close } else { Step::Continue }
            }
        }
    }

    /// Responds to the waiting request with a complete response.
    pub fn respond(&mut self, now: Time, bytes: Rc<[u8]>) {
        let State::Waiting(request) = self.state else { panic!("no request waits for a response") };
        let then = match request.persistence {
            Persistence::KeepAlive | Persistence::Persistent => Then::NextRequest,
            Persistence::Close if self.input.is_empty() => Then::Close,
            Persistence::Close => Then::Linger,
        };
        self.begin_response(now, bytes, then);
    }

    /// Sends the connection's last response, even if the input is not a request, and discards
    /// input until the client has read it.
    pub fn refuse(&mut self, now: Time, bytes: Rc<[u8]>) {
        self.begin_response(now, bytes, Then::Linger);
    }

    /// Makes the waiting request the connection's last one.
    pub fn close_after_response(&mut self) {
        if let State::Waiting(request) = &mut self.state {
            request.persistence = Persistence::Close;
        }
    }

    /// `count` bytes of [`Frontend::output`] were sent.
    pub fn sent(&mut self, now: Time, count: usize, parser: &mut Parser) -> Step {
        let State::Responding { bytes, sent, then } = &mut self.state else {
            return Step::Continue;
        };
        *sent += count as u32;
        debug_assert!(*sent as usize <= bytes.len());
        if (*sent as usize) < bytes.len() {
            return Step::Continue;
        }
        match *then {
            Then::Close => Step::Close,
            Then::Linger => {
                self.enter(now, State::Lingering { discarded_bytes: 0 });
                self.input = Vec::new();
                Step::Linger
            }
            Then::NextRequest => {
                self.enter(now, State::Head { kept: true });
                if self.input.is_empty() {
                    Step::Continue
                } else {
                    self.parse_head(now, &[], parser)
                }
            }
        }
    }

    /// The client sent FIN. A waiting request still gets its response.
    pub fn eof(&mut self) -> Step {
        match &mut self.state {
            State::Head { .. } | State::Body(_) | State::Lingering { .. } => Step::Close,
            State::Waiting(request) => {
                request.persistence = Persistence::Close;
                Step::Continue
            }
            State::Responding { then, .. } => {
                *then = Then::Close;
                Step::Continue
            }
        }
    }

    /// [`Frontend::deadline`] has passed.
    pub fn expire(&mut self) -> Step {
        match self.state {
            State::Head { .. } if self.input.is_empty() => Step::Close,
            State::Head { .. } | State::Body(_) => Step::TooSlow,
            _ => Step::Close,
        }
    }

    /// When [`Frontend::expire`] is due.
    pub fn deadline(&self) -> Time {
        match self.state {
            State::Head { kept: true } if self.input.is_empty() => self.since.plus_ms(IDLE_MS_MAX),
            State::Head { .. } | State::Body(_) => self.since.plus_ms(REQUEST_MS_MAX),
            State::Waiting(_) => Time::NEVER,
            State::Responding { .. } => self.since.plus_ms(RESPONSE_MS_MAX),
            State::Lingering { .. } => self.since.plus_ms(LINGER_MS_MAX),
        }
    }

    /// The bytes to be sent.
    pub fn output(&self) -> &[u8] {
        match &self.state {
            State::Responding { bytes, sent, .. } => &bytes[*sent as usize..],
            _ => &[],
        }
    }

    /// When the response was decided on, if no byte of it has been sent yet.
    pub fn unsent_since(&self) -> Option<Time> {
        matches!(self.state, State::Responding { sent: 0, .. }).then_some(self.since)
    }

    /// Since when the request waits for its response.
    pub fn waiting_since(&self) -> Option<Time> {
        matches!(self.state, State::Waiting(_)).then_some(self.since)
    }

    /// Whether the client may send the next request of a kept connection, and has not begun.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Head { kept: true }) && self.input.is_empty()
    }

    /// Whether the last response has been sent.
    pub fn is_lingering(&self) -> bool {
        matches!(self.state, State::Lingering { .. })
    }

    /// Whether input is processed in this state.
    pub fn wants_read(&self) -> bool {
        matches!(self.state, State::Head { .. } | State::Body(_) | State::Lingering { .. })
    }

    /// The request that waits for its response.
    pub fn waiting(&self) -> Option<Request> {
        if let State::Waiting(request) = self.state { Some(request) } else { None }
    }

    /// Whether the client is between requests, without part of the next one.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Head { .. }) && self.input.is_empty()
    }

    /// Since when the client is idle and may be closed to make room: after a response, or if it
    /// has sent nothing for `SILENT_MS_MIN` since it connected.
    pub fn idle_since(&self, now: Time) -> Option<Time> {
        match self.state {
            State::Head { kept } if self.input.is_empty() => {
                let idle = kept || now.ms_since(self.since) >= SILENT_MS_MIN;
                idle.then_some(self.since)
            }
            _ => None,
        }
    }

    fn parse_head(&mut self, now: Time, bytes: &[u8], parser: &mut Parser) -> Step {
        let mut input = mem::take(&mut self.input);
        let buffered = !input.is_empty();
        if buffered {
            input.extend_from_slice(bytes);
        }
        let view = if buffered { &input[..] } else { bytes };
        let Parser { target, heads } = parser;
        let parsed = match heads.request(view) {
            Err(why) => return Step::Refuse(head::method_of_refused(view), why),
            Ok(None) => {
                if !buffered {
                    self.first_bytes(now, bytes);
                } else {
                    self.input = input;
                }
                return Step::Continue;
            }
            Ok(Some(parsed)) => parsed,
        };
        target.clear();
        target.push_str(parsed.target);
        let (method, persistence) = (parsed.method, parsed.persistence);
        let request = Request { method, persistence, if_none_match: parsed.if_none_match };
        let (framing, head_bytes) = (parsed.framing, parsed.head_bytes);
        if buffered {
            input.drain(..head_bytes);
            self.input = input;
            self.shrink_input();
        } else if bytes.len() > head_bytes {
            self.input = bytes[head_bytes..].to_vec();
        }
        self.head_complete(now, request, framing, parser)
    }

    /// Keeps the first bytes of a head. Its time begins with them, except that the time of the
    /// first head begins with the connection.
    fn first_bytes(&mut self, now: Time, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let State::Head { kept: true } = self.state {
            self.since = now;
        }
        self.input = bytes.to_vec();
    }

    fn head_complete(
        &mut self,
        now: Time,
        request: Request,
        framing: Framing,
        parser: &mut Parser,
    ) -> Step {
        match framing {
            Framing::Length(0) => {
                self.enter(now, State::Waiting(request));
                Step::Ask(request)
            }
            Framing::Length(length) if length > REQUEST_BODY_BYTES_MAX => {
                Step::Refuse(request.method, BadRequest::BodyTooLarge)
            }
            _ => {
                let decoder = BodyDecoder::new(framing);
                let target_copy = parser.target.as_str().into();
                let body = Body { request, target: target_copy, decoder, data_bytes: 0 };
                self.enter(now, State::Body(Box::new(body)));
                self.discard_body(now, parser)
            }
        }
    }

    fn discard_body(&mut self, now: Time, parser: &mut Parser) -> Step {
        let State::Body(body) = &mut self.state else { return Step::Continue };
        let method = body.request.method;
        let mut taken = 0;
        while taken < self.input.len() && !body.decoder.is_done() {
            let Ok(decoded) = body.decoder.decode(&self.input[taken..]) else {
                return Step::Refuse(method, BadRequest::Malformed);
            };
            taken += decoded.taken;
            body.data_bytes += decoded.data.len() as u64;
            if body.data_bytes > REQUEST_BODY_BYTES_MAX {
                return Step::Refuse(method, BadRequest::BodyTooLarge);
            }
        }
        self.input.drain(..taken);
        let request = body.request;
        let done = body.decoder.is_done();
        if done {
            parser.target.clear();
            parser.target.push_str(&body.target);
            self.enter(now, State::Waiting(request));
        }
        self.shrink_input();
        if done { Step::Ask(request) } else { Step::Continue }
    }

    fn begin_response(&mut self, now: Time, bytes: Rc<[u8]>, then: Then) {
        debug_assert!(!bytes.is_empty() && bytes.len() < u32::MAX as usize);
        self.enter(now, State::Responding { bytes, sent: 0, then });
    }

    fn enter(&mut self, now: Time, state: State) {
        self.state = state;
        self.since = now;
    }

    fn shrink_input(&mut self) {
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }
}

/// Maximum time for a head, and for a body.
pub const REQUEST_MS_MAX: u64 = 5_000;
/// Maximum idle time of a kept connection.
pub const IDLE_MS_MAX: u64 = 30_000;
/// Maximum time for sending a response.
pub const RESPONSE_MS_MAX: u64 = 5_000;
/// Maximum time of lingering.
pub const LINGER_MS_MAX: u64 = 1_000;
/// Maximum input discarded while lingering.
const DISCARD_BYTES_MAX: u32 = 256 * 1024;
/// Maximum input after a request without a response yet: more than the shell receives at once.
pub const UNREAD_BYTES_MAX: usize = 64 * 1024;
/// How long a new client must have sent nothing to count as idle. Load balancers send their
/// requests at once.
const SILENT_MS_MIN: u64 = 1_000;

const _: () = assert!(SILENT_MS_MIN < REQUEST_MS_MAX && REQUEST_MS_MAX < IDLE_MS_MAX);
// a whole request, refused or not, can arrive before it is processed and be discarded
const _: () = assert!(REQUEST_HEAD_BYTES_MAX < UNREAD_BYTES_MAX);
const _: () = assert!(REQUEST_BODY_BYTES_MAX < DISCARD_BYTES_MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_ms(100);

    fn asked(frontend: &mut Frontend, bytes: &[u8]) -> Option<(Request, String)> {
        let mut parser = Parser::default();
        match frontend.receive(NOW, bytes, &mut parser) {
            Step::Ask(request) => Some((request, parser.target)),
            Step::Continue => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_does_not_depend_on_how_bytes_are_split() {
        let text = b"GET /replica?lag=1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /";
        for first in 0..text.len() - 5 {
            for second in first..text.len() - 5 {
                let mut frontend = Frontend::new(NOW);
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let asked: Vec<_> =
                    pieces.iter().filter_map(|piece| asked(&mut frontend, piece)).collect();
                assert_eq!(asked.len(), 1, "{first} {second}");
                assert_eq!(asked[0].1, "/replica?lag=1");
                assert_eq!(frontend.input, b"GET /");
                assert!(!frontend.wants_read());
            }
        }
    }

    #[test]
    fn pipelined_requests_are_answered_one_by_one() {
        let mut frontend = Frontend::new(NOW);
        let all = b"GET /primary HTTP/1.1\r\n\r\nGET /replica HTTP/1.0\r\n\r\nleft";
        let mut parser = Parser::default();
        assert_eq!(asked(&mut frontend, all).map(|asked| asked.1).as_deref(), Some("/primary"));
        frontend.respond(NOW, b"one"[..].into());
        assert_eq!(frontend.unsent_since(), Some(NOW));
        assert_eq!(frontend.sent(NOW, 1, &mut parser), Step::Continue);
        assert_eq!((frontend.output(), frontend.unsent_since()), (&b"ne"[..], None));
        let step = frontend.sent(NOW, 2, &mut parser);
        let request =
            Request { method: Method::Get, persistence: Persistence::Close, if_none_match: None };
        assert_eq!((step, parser.target.as_str()), (Step::Ask(request), "/replica"));
        frontend.respond(NOW, b"two"[..].into());
        // "left" was not processed: closing now would send RST
        assert_eq!(frontend.sent(NOW, 3, &mut parser), Step::Linger);
        assert_eq!(frontend.receive(NOW, b"more", &mut parser), Step::Continue);
        assert_eq!(frontend.eof(), Step::Close);
    }

    #[test]
    fn an_idle_client_allocates_no_memory() {
        let mut frontend = Frontend::new(NOW);
        for piece in [&b"GET / HT"[..], b"TP/1.1\r\n\r\n"] {
            asked(&mut frontend, piece);
        }
        frontend.respond(NOW, b"one"[..].into());
        assert_eq!(frontend.sent(NOW, 3, &mut Parser::default()), Step::Continue);
        assert_eq!((frontend.input.capacity(), frontend.output()), (0, &b""[..]));
        assert!(mem::size_of::<Frontend>() <= 72, "{}", mem::size_of::<Frontend>());
    }

    #[test]
    fn every_state_has_its_deadline() {
        let mut parser = Parser::default();
        let mut frontend = Frontend::new(NOW);
        assert_eq!(frontend.deadline(), NOW.plus_ms(REQUEST_MS_MAX));
        let later = NOW.plus_ms(4_000);
        frontend.receive(later, b"GET / HTTP/1.1\r\n", &mut parser);
        // the time of the first head began with the connection
        assert_eq!(frontend.deadline(), NOW.plus_ms(REQUEST_MS_MAX));
        frontend.receive(later, b"\r\n", &mut parser);
        assert_eq!(frontend.deadline(), Time::NEVER);
        frontend.respond(later, b"one"[..].into());
        assert_eq!(frontend.deadline(), later.plus_ms(RESPONSE_MS_MAX));
        frontend.sent(later, 3, &mut parser);
        assert_eq!(frontend.deadline(), later.plus_ms(IDLE_MS_MAX));
        assert_eq!(frontend.expire(), Step::Close);
        let much_later = later.plus_ms(20_000);
        frontend.receive(much_later, b"G", &mut parser);
        frontend.receive(much_later.plus_ms(1_000), b"E", &mut parser);
        assert_eq!(frontend.deadline(), much_later.plus_ms(REQUEST_MS_MAX));
        assert_eq!(frontend.expire(), Step::TooSlow);
        frontend.refuse(NOW, b"408"[..].into());
        assert_eq!(frontend.sent(NOW, 3, &mut parser), Step::Linger);
        assert_eq!(frontend.deadline(), NOW.plus_ms(LINGER_MS_MAX));
    }

    #[test]
    fn a_request_body_over_the_limit_is_refused() {
        let mut parser = Parser::default();
        let too_large = REQUEST_BODY_BYTES_MAX + 1;
        let head = format!("GET / HTTP/1.1\r\nContent-Length: {too_large}\r\n\r\n");
        let step = Frontend::new(NOW).receive(NOW, head.as_bytes(), &mut parser);
        assert_eq!(step, Step::Refuse(Method::Get, BadRequest::BodyTooLarge));
        let mut frontend = Frontend::new(NOW);
        let head = b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n11000\r\n";
        assert_eq!(frontend.receive(NOW, head, &mut parser), Step::Continue);
        let body = vec![b'x'; too_large as usize];
        let step = frontend.receive(NOW, &body, &mut parser);
        assert_eq!(step, Step::Refuse(Method::Get, BadRequest::BodyTooLarge));
    }

    #[test]
    fn a_request_body_of_the_maximum_length_is_accepted() {
        let body = "x".repeat(REQUEST_BODY_BYTES_MAX as usize);
        let length = body.len();
        for text in [
            format!("GET / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}"),
            format!(
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
            ),
        ] {
            assert!(asked(&mut Frontend::new(NOW), text.as_bytes()).is_some());
        }
    }

    #[test]
    fn lingering_discards_input_up_to_a_limit() {
        let mut parser = Parser::default();
        let mut frontend = Frontend::new(NOW);
        frontend.refuse(NOW, b"no"[..].into());
        assert_eq!(frontend.sent(NOW, 2, &mut parser), Step::Linger);
        let quarter = vec![b'x'; 64 * 1024];
        for _ in 0..4 {
            assert_eq!(frontend.receive(NOW, &quarter, &mut parser), Step::Continue);
        }
        assert_eq!(frontend.receive(NOW, b"x", &mut parser), Step::Close);
    }

    #[test]
    fn input_after_a_request_is_kept_up_to_a_limit() {
        let mut parser = Parser::default();
        let mut frontend = Frontend::new(NOW);
        asked(&mut frontend, b"GET / HTTP/1.1\r\n\r\n").expect("a request");
        let unread = vec![b'x'; 64 * 1024];
        assert_eq!(frontend.receive(NOW, &unread, &mut parser), Step::Continue);
        assert_eq!(frontend.receive(NOW, b"x", &mut parser), Step::Close);
    }

    #[test]
    fn the_last_response_is_followed_by_close_or_linger() {
        let mut parser = Parser::default();
        for begun in ["", "GET /two HTTP/1.1\r\n\r\n"] {
            let mut frontend = Frontend::new(NOW);
            let text = format!("GET /one HTTP/1.1\r\n\r\n{begun}");
            asked(&mut frontend, text.as_bytes()).expect("a request");
            frontend.close_after_response();
            frontend.respond(NOW, b"one"[..].into());
            let end = if begun.is_empty() { Step::Close } else { Step::Linger };
            assert_eq!(frontend.sent(NOW, 3, &mut parser), end, "{begun}");
        }
    }
}
