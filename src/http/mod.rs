//! Methods, connection persistence and limits, shared by requests and responses.

pub mod body;
pub mod head;
pub mod json;
pub mod proxy;
pub mod repeated;
pub mod write;

use std::fmt;

/// Maximum bytes of a request's head with its empty line; over it 431 (RFC 6585, section 5).
pub const REQUEST_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Maximum bytes of a response's head; `restapi.http_extra_headers` adds fields to Patroni's.
pub const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Maximum fields of a head, in requests and responses.
pub const HEADERS_MAX: usize = 64;
/// Maximum bytes of a request target; over it 414 (RFC 9110, section 15.5.15).
pub const TARGET_BYTES_MAX: usize = 1024;
/// Maximum bytes of a request's body, which is discarded; over it 413.
pub const REQUEST_BODY_BYTES_MAX: u64 = 64 * 1024;
/// Maximum bytes of an answer's body; `/cluster` with a hundred members has 40 KiB.
pub const RESPONSE_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Maximum bytes of the bodies of `/history` and `/metrics`, which grow with the cluster's age and
/// with its tables.
pub const LONG_RESPONSE_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Maximum interim (1xx) responses before the final one.
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
    /// Any other token.
    Unknown,
}

/// A strong entity tag (RFC 9110, section 8.8.3): a hash of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag(u64);

/// Whether a connection stays open after the response (RFC 9112, section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Closed: `Connection: close`, or HTTP/1.0 without `keep-alive`.
    Close,
    /// Kept; HTTP/1.0 requires `Connection: keep-alive` in the response.
    KeepAlive,
    /// Kept: the default of HTTP/1.1, without a field.
    Persistent,
}

impl EntityTag {
    /// The tag of this content: FNV-1a, 64 bits.
    pub const fn of(bytes: &[u8]) -> EntityTag {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        EntityTag(hash)
    }

    /// The first of our tags in `If-None-Match` (RFC 9110, section 13.1.2), which compares weakly.
    /// A list has more than one only if another server uses the same address.
    pub fn from_field(value: &[u8]) -> Option<EntityTag> {
        let parts = value.split(|byte| *byte == b'"');
        let text = parts.filter(|part| part.len() == 16).find_map(|part| str::from_utf8(part).ok());
        u64::from_str_radix(text?, 16).ok().map(EntityTag)
    }
}

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:016x}\"", self.0)
    }
}

impl Method {
    /// Returns the method of a case-sensitive name (RFC 9110, section 9.1).
    pub fn from_token(token: &str) -> Method {
        METHODS.iter().find(|(_, name)| *name == token).map_or(Method::Unknown, |(m, _)| *m)
    }

    /// The method's name in a request line; `-` for an unknown method.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(method, _)| *method == self).map_or("-", |(_, name)| name)
    }
}

/// Whether a comma-separated field value contains `token`, in any letter case.
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
const _: () = assert!(RESPONSE_BODY_BYTES_MAX <= LONG_RESPONSE_BODY_BYTES_MAX);
