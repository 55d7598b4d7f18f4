//! Answers of Patroni as bytes: framed, cut or garbled, each with the outcome expected.

use std::time::{Duration, UNIX_EPOCH};

use patroniglue::failure::Failure;

use super::faults::{Fault, Faults};
use super::patroni::Said;
use super::random::Random;
use super::world::End;

/// The bytes of an answer, the end of the connection, and the outcome expected of the engine.
pub struct Wire {
    pub bytes: Vec<u8>,
    /// How many of them make the answer complete; the rest is ignored.
    pub enough: usize,
    pub end: End,
    /// `None`: the answer is never complete.
    pub outcome: Option<Result<Said, Failure>>,
}

/// How the end of an answer is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Eof,
    Length,
    Chunked,
}

impl Wire {
    fn new(bytes: Vec<u8>, end: End, outcome: Option<Result<Said, Failure>>) -> Wire {
        Wire { enough: bytes.len(), bytes, end, outcome }
    }
}

pub fn wire(said: Said, random: &mut Random, faults: &Faults) -> Wire {
    if faults.hit(random, Fault::Garbage) {
        return garbage(random);
    }
    if faults.hit(random, Fault::Huge) {
        return huge(said, random);
    }
    let framing = if faults.hit(random, Fault::Framing) {
        random.pick(&[Framing::Eof, Framing::Length, Framing::Chunked])
    } else {
        Framing::Eof
    };
    let interim = faults.hit(random, Fault::Framing);
    let (head_bytes, bytes) = framed(&said, framing, interim);
    if faults.hit(random, Fault::Hangs) {
        let count = random.below(bytes.len() as u64) as usize;
        return Wire::new(bytes[..count].to_vec(), End::Open, None);
    }
    if faults.hit(random, Fault::PatroniResets) {
        let count = random.below(bytes.len() as u64) as usize;
        return Wire::new(bytes[..count].to_vec(), End::Rst, None);
    }
    if faults.hit(random, Fault::Cut) && !interim {
        let count = random.below(bytes.len() as u64) as usize;
        return cut(said, framing, head_bytes, &bytes[..count]);
    }
    let whole = framing != Framing::Eof || said.content_type != Some("text/plain; version=0.0.4");
    let no_end = whole && faults.hit(random, Fault::NoEnd);
    let end = if no_end { random.pick(&[End::Open, End::Rst, End::Late]) } else { End::Fin };
    Wire::new(bytes, end, Some(Ok(said)))
}

fn framed(said: &Said, framing: Framing, interim: bool) -> (usize, Vec<u8>) {
    let version = if framing == Framing::Chunked || interim { "1.1" } else { "1.0" };
    let mut head = String::new();
    if interim {
        head.push_str(INTERIM);
    }
    head.push_str(&format!("HTTP/{version} {} Some Words\r\n", said.status));
    if let Some(content_type) = said.content_type {
        head.push_str(&format!("Server: BaseHTTP\r\nContent-Type: {content_type}\r\n"));
        let date = UNIX_EPOCH + Duration::from_millis(said.unix_ms);
        head.push_str(&format!("Date: {}\r\n", httpdate::fmt_http_date(date)));
    }
    match framing {
        Framing::Eof => {}
        Framing::Length => head.push_str(&format!("Content-Length: {}\r\n", said.body.len())),
        Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    let head_bytes = bytes.len();
    if framing == Framing::Chunked {
        for piece in said.body.chunks(100) {
            bytes.extend_from_slice(format!("{:x};x=y\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
    } else {
        bytes.extend_from_slice(&said.body);
    }
    (head_bytes, bytes)
}

/// A cut goes unnoticed only in a text that the end of the connection ends.
fn cut(mut said: Said, framing: Framing, head_bytes: usize, bytes: &[u8]) -> Wire {
    let is_json = said.content_type == Some("application/json");
    let outcome = if bytes.is_empty() {
        Err(Failure::Closed)
    } else if bytes.len() < head_bytes || framing != Framing::Eof || is_json {
        Err(Failure::Cut)
    } else {
        said.body = bytes[head_bytes..].to_vec();
        Ok(said)
    };
    Wire::new(bytes.to_vec(), End::Fin, Some(outcome))
}

/// A handler that throws closes the connection without a byte.
pub fn thrown() -> Wire {
    Wire::new(Vec::new(), End::Fin, Some(Err(Failure::Closed)))
}

fn garbage(random: &mut Random) -> Wire {
    let texts: [(&[u8], Failure); 7] = [
        (b"", Failure::Closed),
        (b"<html>an error</html>\n", Failure::Garbage),
        (b"HTTP/3.0 200 OK\r\n\r\n", Failure::Garbage),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", Failure::Garbage),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Failure::Garbage),
        (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\nfalse!", Failure::Cut),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip\r\n\r\n", Failure::Garbage),
    ];
    let (bytes, why) = random.pick(&texts);
    Wire::new(bytes.to_vec(), End::Fin, Some(Err(why)))
}

/// Answers over the limit of 1 MiB; `/history` and `/metrics` may have 4 MiB.
fn huge(mut said: Said, random: &mut Random) -> Wire {
    let path = said.target.split('?').next().unwrap_or_default();
    let bodyless = matches!(path, "/liveness" | "/readiness");
    let long = matches!(path, "/history" | "/metrics");
    let mut outcome = Err(Failure::TooLarge);
    let mut enough = usize::MAX;
    let bytes = match random.below(40) {
        0 => {
            let mut bytes = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n".to_vec();
            let head_bytes = bytes.len();
            bytes.resize(head_bytes + 1024 * 1024 + 1, b'x');
            if long || bodyless {
                enough = if bodyless { head_bytes } else { enough };
                (said.status, said.content_type) = (200, Some("text/plain"));
                said.body = if long { bytes[head_bytes..].to_vec() } else { Vec::new() };
                outcome = Ok(said);
            }
            bytes
        }
        1..20 => {
            outcome = if long { Err(Failure::Cut) } else { outcome };
            b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n".to_vec()
        }
        _ => format!("HTTP/1.0 200 OK\r\nA: {}\r\n\r\n", "x".repeat(17 * 1024)).into_bytes(),
    };
    let wire = Wire::new(bytes, End::Fin, Some(outcome));
    Wire { enough: enough.min(wire.enough), ..wire }
}

/// A response that may come before the answer.
pub const INTERIM: &str = "HTTP/1.1 100 Continue\r\nA: b\r\n\r\n";
