//! What both directions of HTTP share: methods, connection persistence, limits.

pub mod body;
pub mod head;
pub mod write;

/// Most bytes of a request's head, its empty line included; more is 431 (RFC 6585, section 5).
pub const REQUEST_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of a response's head; operators add fields to it (`restapi.http_extra_headers`).
pub const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most fields in a head, either direction.
pub const HEADERS_MAX: usize = 64;
/// Most bytes of a request target; more is 414 (RFC 9110, section 15.5.15).
pub const TARGET_BYTES_MAX: usize = 1024;
/// Most bytes of a body behind a request that has no use for one; more is 413.
pub const REQUEST_BODY_BYTES_MAX: u64 = 64 * 1024;
/// Most bytes of Patroni's body; a `/cluster` of a hundred members has 40 KiB.
pub const RESPONSE_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Most interim (1xx) responses before the final one.
pub const INTERIM_RESPONSES_MAX: u32 = 8;

/// A request's method (RFC 9110, section 9.3; PATCH: RFC 5789).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Options,
    Post,
    Put,
    Patch,
    Delete,
    Connect,
    Trace,
    /// Anything else that is a token.
    Unknown,
}

/// What becomes of a connection after the answer (RFC 9112, section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Closed: asked for, or HTTP/1.0 without `keep-alive`.
    Close,
    /// Kept, and HTTP/1.0 wants to be told so.
    KeepAlive,
    /// Kept: HTTP/1.1's silent default.
    Persistent,
}

impl Method {
    /// The method's name is case-sensitive (RFC 9110, section 9.1).
    pub fn from_token(token: &str) -> Method {
        METHODS.iter().find(|(_, name)| *name == token).map_or(Method::Unknown, |(m, _)| *m)
    }

    /// The method as it stands in a request line; `-` for an unknown one.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(method, _)| *method == self).map_or("-", |(_, name)| name)
    }
}

/// Is `token` among the comma-separated ones of a field's value, in any case?
pub(crate) fn has_token(value: &[u8], token: &str) -> bool {
    let trimmed = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    trimmed.into_iter().any(|part| part.eq_ignore_ascii_case(token.as_bytes()))
}

const METHODS: [(Method, &str); 9] = [
    (Method::Get, "GET"),
    (Method::Head, "HEAD"),
    (Method::Options, "OPTIONS"),
    (Method::Post, "POST"),
    (Method::Put, "PUT"),
    (Method::Patch, "PATCH"),
    (Method::Delete, "DELETE"),
    (Method::Connect, "CONNECT"),
    (Method::Trace, "TRACE"),
];

const _: () = assert!(TARGET_BYTES_MAX < REQUEST_HEAD_BYTES_MAX);
