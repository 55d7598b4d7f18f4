//! Formats the heads of responses and of fetches; no other module does.

use std::fmt::{Arguments, Write};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::Persistence;
use super::head::PassedOn;
use crate::VERSION;

/// The content of a response's head.
#[derive(Clone, Debug)]
pub struct ResponseFields<'a> {
    /// 200 to 599.
    pub status: u16,
    /// Unix seconds, for `Date`.
    pub date_unix_seconds: u64,
    /// The upstream's fields, unchanged.
    pub passed_on: &'a PassedOn,
    /// The value of `Content-Length`; the response to HEAD names the length of a body it lacks, and
    /// 204 has no such field.
    pub content_length: usize,
    /// `Age` and `Cache-Status` of Patroni's answers; `None` for local replies.
    pub cached: Option<Cached<'a>>,
    /// The value of `Allow`: to OPTIONS and with 405 (RFC 9110, section 10.2.1).
    pub allow: Option<&'a str>,
    /// The value of `Cache-Control`.
    pub cache_control: &'a str,
    /// Further fields, each with its line end.
    pub more: &'a str,
    /// Whether the connection stays open after the response.
    pub persistence: Persistence,
}

/// `Cache-Control` of a response that is true only now.
pub const NO_STORE: &str = "no-store";
/// A field of everything on the admin port: a browser takes the media type as it is.
pub const NOSNIFF: &str = "X-Content-Type-Options: nosniff\r\n";
/// `Allow` of the routes.
pub const ALLOW_CHECKS: &str = "GET, HEAD, OPTIONS";
/// `Allow` of the admin port's paths.
pub const ALLOW_ADMIN: &str = "GET, HEAD";

/// The source of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// Whole seconds since Patroni was asked.
    pub age_seconds: u64,
    /// The parameters after the cache's name in `Cache-Status` (RFC 9211, section 2).
    pub status: &'a str,
}

/// Returns a response in one contiguous slice, shared by clients and sent with one write.
pub fn response(fields: &ResponseFields<'_>, body: &[u8]) -> Rc<[u8]> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL + body.len());
    head(fields, &mut bytes);
    bytes.extend_from_slice(body);
    bytes.into()
}

/// Returns the request of a fetch: HTTP/1.0, so that the answer is neither chunked nor kept open.
pub fn request(target: &str, host: &str) -> Rc<[u8]> {
    let text = format!(
        "GET {target} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\
         User-Agent: patroniglue/{VERSION}\r\n\r\n"
    );
    text.into_bytes().into()
}

/// Returns a request with a JSON body, for a DCS. `authorization` is the value of that field.
pub fn post(target: &str, host: &str, authorization: Option<&str>, body: &[u8]) -> Rc<[u8]> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL + body.len());
    line(&mut bytes, format_args!("POST {target} HTTP/1.0"));
    line(&mut bytes, format_args!("Host: {host}"));
    line(&mut bytes, format_args!("Connection: close"));
    line(&mut bytes, format_args!("User-Agent: patroniglue/{VERSION}"));
    line(&mut bytes, format_args!("Content-Length: {}", body.len()));
    if let Some(authorization) = authorization {
        line(&mut bytes, format_args!("Authorization: {authorization}"));
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes.into()
}

/// Returns the JSON body of an error that is not Patroni's.
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
    let PassedOn { content_type } = fields.passed_on;
    for (name, value) in [("Content-Type", content_type)] {
        if let Some(value) = value {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    // RFC 9110, section 8.6: not with a status that has no content
    if status >= 200 && status != 204 {
        line(bytes, format_args!("Content-Length: {}", fields.content_length));
    }
    if let Some(cached) = fields.cached {
        line(bytes, format_args!("Age: {}", cached.age_seconds));
        line(bytes, format_args!("Cache-Status: patroniglue; {}", cached.status));
    }
    line(bytes, format_args!("Cache-Control: {}", fields.cache_control));
    if let Some(allow) = fields.allow {
        line(bytes, format_args!("Allow: {allow}"));
    }
    bytes.extend_from_slice(fields.more.as_bytes());
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

/// The reason phrase (RFC 9110, section 15); empty if not listed, as RFC 9112, section 4, permits.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
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

/// Enough for usual heads, so that the buffer is allocated once.
const HEAD_BYTES_USUAL: usize = 320;
/// The last second of year 9999: httpdate panics on later ones.
const DATE_SECONDS_MAX: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_one_contiguous_slice() {
        let fields = ResponseFields {
            status: 200,
            date_unix_seconds: 784_111_777, // the example of RFC 9110, section 5.6.7
            passed_on: &PassedOn::json(),
            content_length: 2,
            cached: Some(Cached { age_seconds: 3, status: "hit" }),
            allow: None,
            cache_control: NO_STORE,
            more: "",
            persistence: Persistence::KeepAlive,
        };
        let text = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
            Content-Type: application/json\r\nContent-Length: 2\r\nAge: 3\r\n\
            Cache-Status: patroniglue; hit\r\nCache-Control: no-store\r\n\
            Connection: keep-alive\r\n\r\n{}";
        assert_eq!(String::from_utf8_lossy(&response(&fields, b"{}")), text);
        let bare = ResponseFields {
            cached: None,
            passed_on: &PassedOn::NONE,
            allow: Some(ALLOW_CHECKS),
            ..fields
        };
        let text = "HTTP/1.1 299 \r\nDate: Fri, 31 Dec 9999 23:59:59 GMT\r\nContent-Length: 2\r\n\
            Cache-Control: no-store\r\nAllow: GET, HEAD, OPTIONS\r\nConnection: close\r\n\r\n";
        let close = Persistence::Close;
        let bare =
            ResponseFields { status: 299, date_unix_seconds: u64::MAX, persistence: close, ..bare };
        assert_eq!(String::from_utf8_lossy(&response(&bare, b"")), text);
    }

    #[test]
    fn only_statuses_without_content_have_no_content_length() {
        for (status, has_length) in
            [(100, false), (199, false), (200, true), (204, false), (205, true), (304, true)]
        {
            let fields = ResponseFields {
                status,
                date_unix_seconds: 0,
                passed_on: &PassedOn::NONE,
                content_length: 0,
                cached: None,
                allow: None,
                cache_control: NO_STORE,
                more: "",
                persistence: Persistence::Persistent,
            };
            let text = String::from_utf8_lossy(&response(&fields, b"")).into_owned();
            assert_eq!(text.contains("\r\nContent-Length: 0\r\n"), has_length, "{text}");
        }
    }

    #[test]
    fn every_status_in_use_has_its_reason_phrase() {
        #[rustfmt::skip]
        let table = [
            (200, "OK"), (204, "No Content"), (400, "Bad Request"), (404, "Not Found"), (405, "Method Not Allowed"),
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
    fn a_fetch_uses_http_1_0_and_closes() {
        let text = format!(
            "GET /replica?lag=1 HTTP/1.0\r\nHost: [::1]:8008\r\nConnection: close\r\n\
             User-Agent: patroniglue/{VERSION}\r\n\r\n"
        );
        assert_eq!(&request("/replica?lag=1", "[::1]:8008")[..], text.as_bytes());
    }

    #[test]
    fn an_error_message_is_escaped_in_json() {
        assert_eq!(error_json("a \"b\"\n"), "{\"error\":\"a \\\"b\\\"\\n\"}\n");
    }
}
