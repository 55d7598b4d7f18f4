//! The only place that formats a head.

use std::fmt::{Arguments, Write};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::Persistence;
use crate::VERSION;

/// Everything a response's head says.
#[derive(Clone, Debug)]
pub struct ResponseFields<'a> {
    /// 200 to 599.
    pub status: u16,
    /// Unix seconds, for `Date`.
    pub date_unix_seconds: u64,
    /// As Patroni sent it.
    pub content_type: Option<&'a [u8]>,
    /// What `Content-Length` says: a HEAD's answer names the length of a body it does not carry.
    pub content_length: usize,
    /// `Age` and `Cache-Status`, for what Patroni said; not for what we say ourselves.
    pub cached: Option<Cached<'a>>,
    /// Is `Allow` sent? An OPTIONS and a 405 have it (RFC 9110, section 10.2.1).
    pub allow: bool,
    /// What becomes of the connection.
    pub persistence: Persistence,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// Whole seconds since Patroni was asked.
    pub age_seconds: u64,
    /// What follows the cache's name in `Cache-Status` (RFC 9211, section 2).
    pub status: &'a str,
}

/// A response in one contiguous piece, to be shared and sent with one write.
pub fn response(fields: &ResponseFields<'_>, body: &[u8]) -> Rc<[u8]> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL + body.len());
    head(fields, &mut bytes);
    bytes.extend_from_slice(body);
    bytes.into()
}

/// The request of a fetch: HTTP/1.0, so that no answer is chunked or kept open.
pub fn request(target: &str, host: &str) -> Rc<[u8]> {
    let text = format!(
        "GET {target} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\
         User-Agent: patroniglue/{VERSION}\r\n\r\n"
    );
    text.into_bytes().into()
}

/// The JSON of an answer of our own.
pub fn error_json(message: &str) -> String {
    let mut body = serde_json::json!({ "error": message }).to_string();
    body.push('\n');
    body
}

fn head(fields: &ResponseFields<'_>, bytes: &mut Vec<u8>) {
    let date = UNIX_EPOCH + Duration::from_secs(fields.date_unix_seconds.min(DATE_SECONDS_MAX));
    let date = httpdate::fmt_http_date(date);
    let (status, reason) = (fields.status, reason(fields.status));
    line(bytes, format_args!("HTTP/1.1 {status} {reason}"));
    line(bytes, format_args!("Date: {date}"));
    if let Some(content_type) = fields.content_type {
        bytes.extend_from_slice(b"Content-Type: ");
        bytes.extend_from_slice(content_type);
        bytes.extend_from_slice(b"\r\n");
    }
    line(bytes, format_args!("Content-Length: {}", fields.content_length));
    if let Some(cached) = fields.cached {
        line(bytes, format_args!("Age: {}", cached.age_seconds));
        line(bytes, format_args!("Cache-Status: patroniglue; {}", cached.status));
    }
    line(bytes, format_args!("Cache-Control: no-store"));
    if fields.allow {
        line(bytes, format_args!("Allow: GET, HEAD, OPTIONS"));
    }
    match fields.persistence {
        Persistence::Close => line(bytes, format_args!("Connection: close")),
        Persistence::KeepAlive => line(bytes, format_args!("Connection: keep-alive")),
        Persistence::Persistent => {}
    }
    bytes.extend_from_slice(b"\r\n");
}

fn line(bytes: &mut Vec<u8>, text: Arguments<'_>) {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl Write for Bytes<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    // writing into memory does not fail
    let _ = Bytes(bytes).write_fmt(text);
    bytes.extend_from_slice(b"\r\n");
}

/// RFC 9110, section 15; an unlisted status has an empty phrase, which RFC 9112, section 4, allows.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// The head of a usual answer, so that rendering allocates once.
const HEAD_BYTES_USUAL: usize = 320;
/// The last second a four-digit year can say; httpdate asserts it.
const DATE_SECONDS_MAX: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_one_piece() {
        let fields = ResponseFields {
            status: 200,
            date_unix_seconds: 784_111_777, // the example of RFC 9110, section 5.6.7
            content_type: Some(b"application/json"),
            content_length: 2,
            cached: Some(Cached { age_seconds: 3, status: "hit" }),
            allow: false,
            persistence: Persistence::KeepAlive,
        };
        let text = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
            Content-Type: application/json\r\nContent-Length: 2\r\nAge: 3\r\n\
            Cache-Status: patroniglue; hit\r\nCache-Control: no-store\r\n\
            Connection: keep-alive\r\n\r\n{}";
        assert_eq!(String::from_utf8_lossy(&response(&fields, b"{}")), text);
        let bare = ResponseFields { cached: None, content_type: None, allow: true, ..fields };
        let text = "HTTP/1.1 299 \r\nDate: Fri, 31 Dec 9999 23:59:59 GMT\r\nContent-Length: 2\r\n\
            Cache-Control: no-store\r\nAllow: GET, HEAD, OPTIONS\r\nConnection: close\r\n\r\n";
        let close = Persistence::Close;
        let bare =
            ResponseFields { status: 299, date_unix_seconds: u64::MAX, persistence: close, ..bare };
        assert_eq!(String::from_utf8_lossy(&response(&bare, b"")), text);
    }

    #[test]
    fn what_is_answered_here_or_by_patroni_has_its_phrase() {
        #[rustfmt::skip]
        let table = [
            (200, "OK"), (400, "Bad Request"), (404, "Not Found"), (405, "Method Not Allowed"),
            (408, "Request Timeout"), (412, "Precondition Failed"), (413, "Content Too Large"),
            (414, "URI Too Long"), (417, "Expectation Failed"),
            (431, "Request Header Fields Too Large"), (500, "Internal Server Error"),
            (501, "Not Implemented"), (502, "Bad Gateway"), (503, "Service Unavailable"), (299, ""),
        ];
        for (status, phrase) in table {
            assert_eq!(reason(status), phrase, "{status}");
        }
    }

    #[test]
    fn a_request_is_patronis_own_version() {
        let text = format!(
            "GET /replica?lag=1 HTTP/1.0\r\nHost: [::1]:8008\r\nConnection: close\r\n\
             User-Agent: patroniglue/{VERSION}\r\n\r\n"
        );
        assert_eq!(&request("/replica?lag=1", "[::1]:8008")[..], text.as_bytes());
    }

    #[test]
    fn a_message_cannot_break_out_of_its_json() {
        assert_eq!(error_json("a \"b\"\n"), "{\"error\":\"a \\\"b\\\"\\n\"}\n");
    }
}
