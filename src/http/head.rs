//! Parses heads of requests and responses with httparse, and derives the framing of their bodies.
//!
//! Request smuggling exploits heads that two parsers understand differently, so every ambiguous
//! head is refused (RFC 9112, section 11.2).

use std::mem::MaybeUninit;
use std::time::UNIX_EPOCH;

use core::net::Ipv6Addr; // parses text only
use httparse::{Header, Status};

use super::{
    EntityTag, HEADERS_MAX, Method, Persistence, REQUEST_HEAD_BYTES_MAX, RESPONSE_HEAD_BYTES_MAX,
    TARGET_BYTES_MAX, has_token,
};

/// A request's head, borrowed from its bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method,
    /// Path and query, or `*`; scheme and authority of the absolute form are removed.
    pub target: &'a str,
    /// Whether the connection stays open after the response.
    pub persistence: Persistence,
    /// How long the body is.
    pub framing: Framing,
    /// The content that the client already has.
    pub if_none_match: Option<EntityTag>,
    /// Bytes the head took, its empty line included.
    pub head_bytes: usize,
}

/// A response's head.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: u16,
    /// The fields that clients get as well.
    pub passed_on: PassedOn,
    /// `Date` in Unix seconds.
    pub date_unix_seconds: Option<u64>,
    /// Whether `Cache-Status` names patroniglue.
    pub is_from_patroniglue: bool,
    /// How long the body is.
    pub framing: Framing,
    /// Bytes the head took, its empty line included.
    pub head_bytes: usize,
}

/// The fields of an upstream's answer that are passed on to clients unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOn {
    /// The value of `Content-Type`; a bare status line has none.
    pub content_type: Option<Box<[u8]>>,
}

/// How a body ends (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this number of bytes; 0 in a request without both fields (rule 7).
    Length(u64),
    /// With the chunk of size 0 (rule 4).
    Chunked,
    /// At the end of the connection; responses only (rule 8).
    Eof,
}

/// Why a request is refused; always the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// Not HTTP/1.0 or 1.1, or ambiguous: 400.
    Malformed,
    /// 413.
    BodyTooLarge,
    /// 414.
    TargetTooLong,
    /// `Expect` is not supported, because bodies are discarded: 417.
    Expectation,
    /// Too many bytes or fields: 431.
    HeadTooLarge,
    /// Another protocol than HTTP/1.0 or 1.1: 400.
    NotHttp(Foreign),
    /// A transfer coding other than `chunked` before it: 501 (RFC 9112, section 6.1).
    UnknownCoding,
}

/// Another protocol, recognised by its first bytes so that the refusal can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A header of the PROXY protocol, version 1 or 2.
    Proxy,
    /// The connection preface of HTTP/2 (RFC 9113, section 3.4).
    Http2,
    /// A TLS record of type handshake (RFC 8446, section 5.1).
    Tls,
}

/// Why a response is refused; always the upstream's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadResponse {
    /// Not HTTP/1.0 or 1.1.
    Malformed,
    /// Over [`RESPONSE_HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    HeadTooLarge,
}

impl Foreign {
    /// The error text of the refusal.
    pub fn text(self) -> &'static str {
        match self {
            Foreign::Proxy => {
                "a PROXY header: set frontend.proxy-protocol, or remove check-send-proxy and send-proxy"
            }
            Foreign::Http2 => "HTTP/2 is not supported: use HTTP/1.1",
            Foreign::Tls => "TLS on a plain port: set frontend.certfile or remove check-ssl",
        }
    }
}

/// Parses a request's head. `Ok(None)`: more bytes are needed.
pub fn request(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, BadRequest> {
    parse_request(bytes).map_err(|why| match (why, foreign(bytes)) {
        (BadRequest::Malformed, Some(foreign)) => BadRequest::NotHttp(foreign),
        _ => why,
    })
}

fn parse_request(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, BadRequest> {
    // bytes past the limit are ignored: otherwise the outcome would depend on how bytes are split
    let bytes = &bytes[..bytes.len().min(REQUEST_HEAD_BYTES_MAX)];
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let head_bytes = match parsed.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(Status::Complete(n)) => n,
        Ok(Status::Partial) if bytes.len() < REQUEST_HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) => return Err(oversize(bytes)),
        Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::HeadTooLarge),
        Err(_) => return Err(BadRequest::Malformed),
    };
    let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadRequest::Malformed);
    };
    if has_bare_line_feed(&bytes[..head_bytes]) {
        return Err(BadRequest::Malformed);
    }
    if path.len() > TARGET_BYTES_MAX {
        return Err(BadRequest::TargetTooLong);
    }
    let fields = RequestFields::collect(parsed.headers)?;
    // RFC 9110, section 10.1.1: in HTTP/1.0 the field is ignored
    if fields.expectation && minor > 0 {
        return Err(BadRequest::Expectation);
    }
    let method = Method::from_token(method);
    Ok(Some(RequestHead {
        method,
        target: target_path(method, path)?,
        persistence: fields.persistence(method, minor),
        framing: fields.framing(minor)?,
        if_none_match: fields.if_none_match,
        head_bytes,
    }))
}

/// Parses a response's head. `Ok(None)`: more bytes are needed.
pub fn response(bytes: &[u8]) -> Result<Option<ResponseHead>, BadResponse> {
    let bytes = &bytes[..bytes.len().min(RESPONSE_HEAD_BYTES_MAX)];
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let outcome = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut headers);
    let head_bytes = match outcome {
        Ok(Status::Complete(n)) => n,
        Ok(Status::Partial) if bytes.len() < RESPONSE_HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(BadResponse::HeadTooLarge);
        }
        Err(_) => return Err(BadResponse::Malformed),
    };
    let status = parsed.code.filter(|code| (100..=599).contains(code));
    let status = status.ok_or(BadResponse::Malformed)?;
    let field = |name: &str| {
        let header = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| header.value)
    };
    Ok(Some(ResponseHead {
        status,
        passed_on: PassedOn { content_type: field("content-type").map(Into::into) },
        date_unix_seconds: field("date").and_then(unix_seconds),
        is_from_patroniglue: field("cache-status").is_some_and(|v| v.starts_with(b"patroniglue")),
        framing: response_framing(status, parsed.headers)?,
        head_bytes,
    }))
}

impl PassedOn {
    /// None.
    pub const NONE: PassedOn = PassedOn { content_type: None };

    /// Those of a JSON body (RFC 8259, section 11).
    pub fn json() -> Self {
        PassedOn { content_type: Some(b"application/json"[..].into()) }
    }
}

fn unix_seconds(date: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(str::from_utf8(date).ok()?).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// The fields of a request that are evaluated.
struct RequestFields<'a> {
    hosts: u32,
    content_length: Option<u64>,
    transfer_encoding: Option<&'a [u8]>,
    expectation: bool,
    close: bool,
    keep_alive: bool,
    if_none_match: Option<EntityTag>,
}

impl<'a> RequestFields<'a> {
    fn collect(headers: &[Header<'a>]) -> Result<Self, BadRequest> {
        let mut fields = RequestFields {
            hosts: 0,
            content_length: None,
            transfer_encoding: None,
            expectation: false,
            close: false,
            keep_alive: false,
            if_none_match: None,
        };
        for header in headers {
            fields.add(header)?;
        }
        // RFC 9112, section 3.2: more than one Host is refused. A missing one is accepted, against
        // that section, because HAProxy's checks send HTTP/1.1 without it.
        if fields.hosts > 1 {
            return Err(BadRequest::Malformed);
        }
        Ok(fields)
    }

    fn add(&mut self, header: &Header<'a>) -> Result<(), BadRequest> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") {
            // RFC 9112, section 3.2: an invalid Host is refused; an empty one is valid
            if !is_name_and_port(header.value) {
                host_and_port(header.value).ok_or(BadRequest::Malformed)?;
            }
            self.hosts += 1;
        } else if is("connection") {
            self.close |= has_token(header.value, "close");
            self.keep_alive |= has_token(header.value, "keep-alive");
        } else if is("content-length") {
            let length = decimal(header.value).ok_or(BadRequest::Malformed)?;
            // two are refused even if they agree; RFC 9110, section 8.6, permits either
            if self.content_length.replace(length).is_some() {
                return Err(BadRequest::Malformed);
            }
        } else if is("transfer-encoding") {
            if self.transfer_encoding.replace(header.value).is_some() {
                return Err(BadRequest::Malformed);
            }
        } else if is("expect") {
            self.expectation = true;
        } else if is("if-none-match") {
            self.if_none_match = EntityTag::from_field(header.value);
        }
        Ok(())
    }

    fn persistence(&self, method: Method, minor: u8) -> Persistence {
        // the bytes after a CONNECT may be meant for the tunnel: they are no requests
        let close = self.close || method == Method::Connect;
        match (close, minor, self.keep_alive) {
            (true, _, _) | (_, 0, false) => Persistence::Close,
            (false, 0, true) => Persistence::KeepAlive,
            (false, _, _) => Persistence::Persistent,
        }
    }

    /// RFC 9112, section 6.3, rules 3 to 7; section 6.1 on HTTP/1.0.
    fn framing(&self, minor: u8) -> Result<Framing, BadRequest> {
        match (self.transfer_encoding, self.content_length) {
            (None, None) => Ok(Framing::Length(0)),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (Some(_), Some(_)) => Err(BadRequest::Malformed),
            (Some(_), None) if minor == 0 => Err(BadRequest::Malformed),
            (Some(value), None) => transfer_coding(value),
        }
    }
}

/// RFC 9112, section 6.3, rule 4: chunked must be the last coding. Section 7: it is applied once,
/// and section 7.1: without parameters. An empty element of the list is refused, because other
/// parsers ignore it.
fn transfer_coding(value: &[u8]) -> Result<Framing, BadRequest> {
    let mut codings = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let is_chunked = |coding: &[u8]| {
        let name = coding.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"chunked")
    };
    if !codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked")) {
        return Err(BadRequest::Malformed);
    }
    let mut framing = Ok(Framing::Chunked);
    for coding in codings {
        if coding.is_empty() || is_chunked(coding) {
            return Err(BadRequest::Malformed);
        }
        framing = Err(BadRequest::UnknownCoding);
    }
    framing
}

/// RFC 9112, section 6.3, rules 1, 4, 5, 6 and 8.
fn response_framing(status: u16, headers: &[Header<'_>]) -> Result<Framing, BadResponse> {
    let mut chunked = None;
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let known = header.value.eq_ignore_ascii_case(b"chunked");
            if chunked.replace(()).is_some() || !known {
                return Err(BadResponse::Malformed);
            }
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let value = decimal(header.value).ok_or(BadResponse::Malformed)?;
            if length.replace(value).is_some_and(|previous| previous != value) {
                return Err(BadResponse::Malformed);
            }
        }
    }
    match (chunked, length) {
        _ if status < 200 || status == 204 || status == 304 => Ok(Framing::Length(0)),
        (Some(()), Some(_)) => Err(BadResponse::Malformed),
        (Some(()), None) => Ok(Framing::Chunked),
        (None, Some(length)) => Ok(Framing::Length(length)),
        (None, None) => Ok(Framing::Eof),
    }
}

/// The path and query of a target in any of its four forms (RFC 9112, section 3.2).
fn target_path(method: Method, target: &str) -> Result<&str, BadRequest> {
    if method == Method::Connect {
        return Ok(target); // the authority form, which is not evaluated
    }
    if target == "*" {
        let asks_server = method == Method::Options;
        return if asks_server { Ok(target) } else { Err(BadRequest::Malformed) };
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(BadRequest::Malformed);
    }
    if target.starts_with('/') {
        return Ok(target);
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(BadRequest::Malformed);
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(BadRequest::Malformed);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    // RFC 9110, section 4.2.1: a URI without a host is refused
    let (host, _) = host_and_port(authority.as_bytes()).ok_or(BadRequest::Malformed)?;
    if host.is_empty() {
        return Err(BadRequest::Malformed);
    }
    // an empty path is `/` (RFC 9110, section 4.2.3), a route without parameters
    Ok(if path.starts_with('/') { path } else { "/" })
}

/// Whether the value is a name or an IPv4 address, with or without a port, as in most requests.
/// Anything else needs [`host_and_port`], which costs more per request.
fn is_name_and_port(value: &[u8]) -> bool {
    let mut bytes = value.iter();
    match bytes.find(|byte| !NAME_BYTES[usize::from(**byte)]) {
        Some(b':') => bytes.all(u8::is_ascii_digit),
        end => end.is_none(),
    }
}

/// Host and port of an authority (RFC 3986, section 3.2); both may be empty. Userinfo is an error:
/// it makes one host look like another (RFC 9110, section 4.2.4).
fn host_and_port(value: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(value).ok()?;
    let host_bytes = match text.strip_prefix('[') {
        Some(literal) => literal.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(host_bytes);
    let port = if rest.is_empty() { rest } else { rest.strip_prefix(':')? };
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid = literal.map_or_else(|| is_registered_name(host), is_ip_literal);
    (valid && port.bytes().all(|byte| byte.is_ascii_digit())).then_some((host, port))
}

/// RFC 3986, section 3.2.2; an IPv4 address is a registered name as well.
fn is_registered_name(name: &str) -> bool {
    let mut escapes = name.split('%');
    let is_plain = |text: &str| text.bytes().all(is_name_byte);
    escapes.next().is_none_or(is_plain)
        && escapes.all(|part| {
            let digits = part.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
            digits == 2 && is_plain(part)
        })
}

/// An IPv6 address or a later version's; without a zone, which RFC 3986 does not have.
fn is_ip_literal(literal: &str) -> bool {
    let Some(future) = literal.strip_prefix(['v', 'V']) else {
        return literal.parse::<Ipv6Addr>().is_ok();
    };
    let Some((version, address)) = future.split_once('.') else { return false };
    let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_address = |byte: u8| is_name_byte(byte) || byte == b':';
    is_version && !address.is_empty() && address.bytes().all(is_address)
}

fn is_name_byte(byte: u8) -> bool {
    NAME_BYTES[usize::from(byte)]
}

/// `unreserved` and `sub-delims` of RFC 3986, section 2.
static NAME_BYTES: [bool; 256] = {
    let (mut table, others) = ([false; 256], b"-._~!$&'()*+,;=");
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut place = 0;
    while place < others.len() {
        table[others[place] as usize] = true;
        place += 1;
    }
    table
};

/// Returns the protocol of a malformed head. Each pattern ends no later than the byte that
/// httparse refuses, so the result does not depend on how the bytes are split.
fn foreign(bytes: &[u8]) -> Option<Foreign> {
    let found = FOREIGN.iter().find(|(beginning, _)| bytes.starts_with(beginning));
    found.map(|(_, foreign)| *foreign)
}

/// Returns the method of a refused head as far as the refusal depends on it: the response to HEAD
/// has no body, regardless of its status (RFC 9110, section 9.3.2).
pub fn method_of_refused(mut bytes: &[u8]) -> Method {
    // RFC 9112, section 2.2: empty lines may come first
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    if bytes.starts_with(b"HEAD ") { Method::Head } else { Method::Unknown }
}

/// Returns the limit that a head of [`REQUEST_HEAD_BYTES_MAX`] without an end exceeded.
fn oversize(bytes: &[u8]) -> BadRequest {
    let line = bytes.split(|byte| *byte == b'\r').find(|line| !line.trim_ascii().is_empty());
    // without a space after the method there is no target
    let target = line.and_then(|line| line.trim_ascii_start().split(|byte| *byte == b' ').nth(1));
    match target {
        Some(target) if target.len() > TARGET_BYTES_MAX => BadRequest::TargetTooLong,
        _ => BadRequest::HeadTooLarge,
    }
}

/// Whether an LF has no CR before it: httparse accepts it as the end of a line, other parsers do
/// not.
fn has_bare_line_feed(head: &[u8]) -> bool {
    head.first() == Some(&b'\n') || head.windows(2).any(|w| w[1] == b'\n' && w[0] != b'\r')
}

/// Parses `1*DIGIT` (RFC 9110, section 8.6); overflow is an error.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// How other protocols begin. Of the signature of PROXY version 2, `\r\n\r\n\0\r\nQUIT\n`, httparse
/// skips the empty lines and refuses the NUL.
const FOREIGN: [(&[u8], Foreign); 6] = [
    (b"PROXY TCP4 ", Foreign::Proxy),
    (b"PROXY TCP6 ", Foreign::Proxy),
    (b"PROXY UNKNOWN", Foreign::Proxy),
    (b"\r\n\r\n\0", Foreign::Proxy),
    (b"PRI * HTTP/2", Foreign::Http2),
    (b"\x16", Foreign::Tls),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{INTERIM_RESPONSES_MAX, LONG_RESPONSE_BODY_BYTES_MAX};
    use crate::http::{REQUEST_BODY_BYTES_MAX, RESPONSE_BODY_BYTES_MAX};

    fn refusal(text: &str) -> BadRequest {
        match request(text.as_bytes()) {
            Err(why) => why,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    fn accepted(text: &str) -> RequestHead<'_> {
        match request(text.as_bytes()) {
            Ok(Some(head)) => head,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn requests_of_load_balancers_are_accepted() {
        use Persistence::*;
        #[rustfmt::skip]
        let table = [
            ("OPTIONS / HTTP/1.0\r\n\r\n", Method::Options, "/", Close),
            ("HEAD /primary HTTP/1.1\r\nconnection: close\r\n\r\n", Method::Head, "/primary", Close),
            ("GET /replica?lag=1 HTTP/1.1\r\nhost: x\r\n\r\n", Method::Get, "/replica?lag=1", Persistent),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", Method::Get, "/", KeepAlive),
            ("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", Method::Get, "/", Close),
            ("GET / HTTP/1.1\r\nConnection: foo, CLOSE\r\n\r\n", Method::Get, "/", Close),
            ("GET / HTTP/1.1\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", Method::Get, "/", Close),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Method::Get, "/", Persistent),
            ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", Method::Options, "*", Persistent),
            ("GET http://h:1/leader?a HTTP/1.1\r\nHost: h\r\n\r\n", Method::Get, "/leader?a", Persistent),
            ("GET HTTPS://h HTTP/1.1\r\nHost: h\r\n\r\n", Method::Get, "/", Persistent),
            ("GET http://h?/x HTTP/1.1\r\nHost: h\r\n\r\n", Method::Get, "/", Persistent),
            ("BREW / HTTP/1.1\r\n\r\n", Method::Unknown, "/", Persistent),
            ("CONNECT h:1 HTTP/1.1\r\n\r\n", Method::Connect, "h:1", Close),
        ];
        for (text, method, target, persistence) in table {
            let head = accepted(text);
            assert_eq!((head.method, head.target), (method, target), "{text:?}");
            assert_eq!(head.persistence, persistence, "{text:?}");
            assert_eq!((head.framing, head.head_bytes), (Framing::Length(0), text.len()));
        }
    }

    #[test]
    fn every_valid_host_is_accepted() {
        assert_eq!(accepted("GET / HTTP/1.1\r\n\r\n").target, "/");
        let table = [
            "",
            "a",
            "A.b-c_d~e",
            "a:",
            "a:80",
            "a:99999",
            ":80",
            "10.0.0.5:8008",
            "a%2Fb:1",
            "!$&'()*+,;=",
            "[::1]",
            "[::1]:",
            "[::1]:8008",
            "[2001:DB8::10.0.0.5]",
            "[v1.a:b]",
            "[VaF.-._~!$&'()*+,;=:]:1",
        ];
        for host in table {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert!(matches!(request(text.as_bytes()), Ok(Some(_))), "{host}");
        }
    }

    #[test]
    fn an_invalid_host_is_refused() {
        #[rustfmt::skip]
        let table = [
            "a, b", "a/b", "a@b", "a:b", "a:1:2", "::1", "a:-1", "[", "[]", "a[::1]", "[::1",
            "::1]", "[::1]x", "[::1]1", "[::1]:x", "[[::1]]", "[::1::2]", "[10.0.0.5]",
            "[fe80::1%25eth0]", "[v.a]", "[v1.]", "[v1a]", "[vg.a]", "[v1.a/b]", "a%", "a%2",
            "a%zz", "a%+1", "\u{e4}",
        ];
        for host in table {
            let why = refusal(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(why, BadRequest::Malformed, "{host}");
        }
    }

    #[test]
    fn ambiguous_and_malformed_fields_are_refused() {
        use BadRequest::*;
        #[rustfmt::skip]
        let table = [
            ("Host: a\r\nHost: a\r\n", Malformed),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Malformed),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", Malformed),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", Malformed),
            ("Content-Length: 1, 1\r\n", Malformed),
            ("Content-Length: +1\r\n", Malformed),
            ("Content-Length: -1\r\n", Malformed),
            ("Content-Length: 0x1\r\n", Malformed),
            ("Content-Length: \r\n", Malformed),
            ("Content-Length: 99999999999999999999\r\n", Malformed),
            ("Content-Length : 1\r\n", Malformed),
            (" Content-Length: 1\r\n", Malformed),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Malformed),
            ("Transfer-Encoding: gzip, chunked\r\n", UnknownCoding),
            ("Transfer-Encoding: identity ,\tChunked\r\n", UnknownCoding),
            ("Transfer-Encoding: xchunked, gzip;a=b, chunked\r\n", UnknownCoding),
            ("Transfer-Encoding: \r\n", Malformed),
            ("Transfer-Encoding: gzip\r\n", Malformed),
            ("Transfer-Encoding: xchunked\r\n", Malformed),
            ("Transfer-Encoding: chunked, gzip\r\n", Malformed),
            ("Transfer-Encoding: chunked, chunked\r\n", Malformed),
            ("Transfer-Encoding: chunked, gzip, chunked\r\n", Malformed),
            ("Transfer-Encoding: Chunked;a=b, chunked\r\n", Malformed),
            ("Transfer-Encoding: chunked;a=b\r\n", Malformed),
            ("Transfer-Encoding: \"chunked\"\r\n", Malformed),
            ("Transfer-Encoding: chunked,\r\n", Malformed),
            ("Transfer-Encoding: ,chunked\r\n", Malformed),
            ("Transfer-Encoding: gzip, , chunked\r\n", Malformed),
            ("A: b\r\n folded\r\n", Malformed),
            ("A: b\rc\r\n", Malformed),
            ("A: b\nC: d\r\n", Malformed),
            ("A: b\0\r\n", Malformed),
            ("A: b\x01\r\n", Malformed),
            ("A: b\x7f\r\n", Malformed),
            (": b\r\n", Malformed),
            ("A\r\n", Malformed),
            ("Expect: 100-continue\r\n", Expectation),
        ];
        for (fields, why) in table {
            assert_eq!(refusal(&format!("GET / HTTP/1.1\r\n{fields}\r\n")), why, "{fields:?}");
        }
    }

    #[test]
    fn malformed_request_lines_are_refused() {
        let table = [
            "GET /\r\n",
            "GET / HTTP/1.1\n\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /  HTTP/1.1\r\n\r\n",
            "GET /a b HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / http/1.1\r\n\r\n",
            "GET * HTTP/1.1\r\n\r\n",
            "GET primary HTTP/1.1\r\n\r\n",
            "GET ftp://h/ HTTP/1.1\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "GET http:// HTTP/1.1\r\n\r\n",
            "GET http://?x HTTP/1.1\r\n\r\n",
            "GET http://user@h/ HTTP/1.1\r\n\r\n",
            "GET http://:80/ HTTP/1.1\r\n\r\n",
            "GET http://h:x/ HTTP/1.1\r\n\r\n",
            "GET http://[::1/ HTTP/1.1\r\n\r\n",
            "GET http://h\\x HTTP/1.1\r\n\r\n",
            "GET /#x HTTP/1.1\r\n\r\n",
            "GET /\u{e4} HTTP/1.1\r\n\r\n",
            "GE\0T / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        for text in table {
            assert_eq!(refusal(text), BadRequest::Malformed, "{text:?}");
        }
    }

    #[test]
    fn another_protocol_is_named_however_its_bytes_are_split() {
        let named = |foreign| Err(BadRequest::NotHttp(foreign));
        #[rustfmt::skip]
        let table: [(&[u8], Result<_, BadRequest>); 12] = [
            (b"PROXY TCP4 127.0.0.1 127.0.0.1 1234 8009\r\nGET / HTTP/1.1\r\n\r\n", named(Foreign::Proxy)),
            (b"PROXY TCP6 ::1 ::1 1234 8009\r\n", named(Foreign::Proxy)),
            (b"PROXY UNKNOWN\r\n", named(Foreign::Proxy)),
            (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", named(Foreign::Proxy)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x12\x34\x1f\x49", named(Foreign::Proxy)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", named(Foreign::Http2)),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", named(Foreign::Tls)),
            (b"PROXY /primary HTTP/1.1\r\nA\r\n", Err(BadRequest::Malformed)),
            (b"PRI /primary HTTP/2.0\r\n\r\n", Err(BadRequest::Malformed)),
            (b"\r\n\0\r\nQUIT\n", Err(BadRequest::Malformed)),
            (b"\x15\x03\x03\x00\x02\x02\x28", Err(BadRequest::Malformed)),
            (b"GET / HTTP/2.0\r\n\r\n", Err(BadRequest::Malformed)),
        ];
        for (bytes, expected) in table {
            let outcomes = (0..=bytes.len()).map(|end| request(&bytes[..end]));
            let refused = |outcome: &Result<_, _>| *outcome != Ok(None);
            let refusals: Vec<_> = outcomes.skip_while(|outcome| !refused(outcome)).collect();
            assert!(!refusals.is_empty(), "{expected:?}");
            assert!(refusals.iter().all(|refusal| *refusal == expected), "{refusals:?}");
        }
        // the same beginnings in valid requests
        for (text, method) in [
            ("PROXY / HTTP/1.1\r\n\r\n", Method::Unknown),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n", Method::Get),
        ] {
            assert_eq!(accepted(text).method, method, "{text:?}");
        }
    }

    #[test]
    fn each_limit_has_its_own_refusal() {
        let long = "x".repeat(TARGET_BYTES_MAX);
        assert!(request(format!("GET /{} HTTP/1.1\r\n\r\n", &long[1..]).as_bytes()).is_ok());
        assert_eq!(refusal(&format!("GET /{long} HTTP/1.1\r\n\r\n")), BadRequest::TargetTooLong);
        let endless = format!("GET /{}", "x".repeat(REQUEST_HEAD_BYTES_MAX));
        assert_eq!(refusal(&endless), BadRequest::TargetTooLong);
        let method = "X".repeat(REQUEST_HEAD_BYTES_MAX);
        assert_eq!(refusal(&format!("{method} / HTTP/1.1\r\n\r\n")), BadRequest::HeadTooLarge);
        let field = format!("A: {}\r\n", "x".repeat(REQUEST_HEAD_BYTES_MAX));
        assert_eq!(refusal(&format!("GET / HTTP/1.1\r\n{field}")), BadRequest::HeadTooLarge);
        assert_eq!(refusal(&format!("GET / HTTP/1.1\r\n{field}\r\n")), BadRequest::HeadTooLarge);
        let many = "A: b\r\n".repeat(HEADERS_MAX);
        assert!(request(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).is_ok());
        assert_eq!(
            refusal(&format!("GET / HTTP/1.1\r\n{many}A: b\r\n\r\n")),
            BadRequest::HeadTooLarge
        );
    }

    #[test]
    fn the_method_of_a_refused_head_is_known_if_it_is_head() {
        for text in ["HEAD ", "\r\n\r\nHEAD / HTTP/1.1\r\nA"] {
            assert_eq!(method_of_refused(text.as_bytes()), Method::Head, "{text:?}");
        }
        for text in ["", "HEAD", "HEADS ", "GET /HEAD ", "\nHEAD ", " HEAD ", "\r\n\nHEAD "] {
            assert_eq!(method_of_refused(text.as_bytes()), Method::Unknown, "{text:?}");
        }
    }

    #[test]
    fn limits_have_the_documented_values() {
        assert_eq!((REQUEST_HEAD_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX), (8_192, 64, 1_024));
        assert_eq!((RESPONSE_HEAD_BYTES_MAX, RESPONSE_BODY_BYTES_MAX), (16_384, 1_048_576));
        assert_eq!(LONG_RESPONSE_BODY_BYTES_MAX, 4_194_304);
        assert_eq!((REQUEST_BODY_BYTES_MAX, INTERIM_RESPONSES_MAX), (65_536, 8));
        // the head is too large, its target has the maximum length
        let target = format!("/{}", "x".repeat(TARGET_BYTES_MAX - 1));
        let field = "x".repeat(REQUEST_HEAD_BYTES_MAX);
        let text = format!("GET {target} HTTP/1.1\r\nA: {field}");
        assert_eq!(refusal(&text), BadRequest::HeadTooLarge);
        let head = |bytes: usize| {
            let text = "HTTP/1.0 200 OK\r\nA: ";
            format!("{text}{}\r\n\r\n", "x".repeat(bytes - text.len() - 4))
        };
        let last = head(RESPONSE_HEAD_BYTES_MAX);
        assert!(matches!(response(last.as_bytes()), Ok(Some(_))));
        assert_eq!(response(&last.as_bytes()[..last.len() - 1]), Ok(None));
        let more = head(RESPONSE_HEAD_BYTES_MAX + 1);
        let outcome = response(&more.as_bytes()[..RESPONSE_HEAD_BYTES_MAX]);
        assert_eq!(outcome, Err(BadResponse::HeadTooLarge));
    }

    #[test]
    fn an_incomplete_head_is_not_an_error() {
        let text = b"GET /replica?lag=1 HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(request(&text[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn the_framing_of_a_response_follows_from_its_head() {
        use Framing::*;
        #[rustfmt::skip]
        let table = [
            ("HTTP/1.0 200 OK\r\n\r\n", 200, Eof),
            ("HTTP/1.0 503\r\n\r\n", 503, Eof),
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", 200, Length(12)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Length: 12\r\n\r\n", 200, Length(12)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", 200, Chunked),
            ("HTTP/1.1 204 No\r\nContent-Length: 12\r\n\r\n", 204, Length(0)),
            ("HTTP/1.1 100 Continue\r\n\r\n", 100, Length(0)),
        ];
        for (text, status, framing) in table {
            let head = response(text.as_bytes()).ok().flatten().expect(text);
            assert_eq!((head.status, head.framing, head.head_bytes), (status, framing, text.len()));
        }
        #[rustfmt::skip]
        let table = [
            "<html>\n", "HTTP/3.0 200 OK\r\n\r\n", "HTTP/1.0 20 OK\r\n\r\n", "HTTP/1.0 600 X\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ];
        for text in table {
            assert_eq!(response(text.as_bytes()), Err(BadResponse::Malformed), "{text:?}");
        }
    }
}
