//! Local responses: to requests that Patroni is not asked for, and refusals.

use std::rc::Rc;

use crate::http::Persistence;
use crate::http::head::{BadRequest, PassedOn};
use crate::http::write::{
    ALLOW_ADMIN, ALLOW_CHECKS, NO_STORE, NOSNIFF, ResponseFields, error_json, response,
};
use crate::time::Now;

/// A response that is not Patroni's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// Its status.
    pub status: u16,
    /// The `error` of its JSON; empty: no body.
    message: &'static str,
    /// The value of `Allow`.
    allow: Option<&'static str>,
    /// Further fields, each with its line's end.
    more: &'static str,
}

impl LocalReply {
    /// The path is not in the table of routes.
    pub const NOT_FOUND: Self = Self::new(404, "no such route");
    /// Patroni is asked by GET only (RFC 9110, section 15.5.6: with `Allow`).
    pub const METHOD_NOT_ALLOWED: Self = LocalReply {
        allow: Some(ALLOW_CHECKS),
        ..Self::new(405, "only GET, HEAD and OPTIONS are answered")
    };
    /// The admin port has nothing at this path.
    pub const NO_SUCH_PAGE: Self = Self::new(404, "no such page; see / and /metrics");
    /// The admin port changes nothing.
    pub const READ_ONLY: Self =
        LocalReply { allow: Some(ALLOW_ADMIN), ..Self::new(405, "only GET and HEAD are answered") };
    /// RFC 9110, section 15.6.2.
    pub const UNKNOWN_METHOD: Self = Self::new(501, "unknown method");
    /// `OPTIONS *` (RFC 9110, section 9.3.7).
    pub const SERVER_OPTIONS: Self = LocalReply { allow: Some(ALLOW_CHECKS), ..Self::new(200, "") };
    /// The deadline of a request passed before it was complete.
    pub const TOO_SLOW: Self = Self::new(408, "the request was not complete in time");
    /// The operator drains the node.
    pub const DRAINING: Self = Self::new(503, "draining");
    /// The daemon ends before the fetch does.
    pub const SHUTTING_DOWN: Self = Self::new(503, "patroniglue is shutting down");
    /// Every entry for targets with parameters is being fetched.
    pub const TOO_MANY_TARGETS: Self =
        Self::new(503, "too many different parameters are asked for");
    /// `cache.entries` new targets with parameters came within a second.
    pub const TOO_MANY_NEW_TARGETS: Self =
        Self::new(503, "too many new parameters within a second; raise cache.entries");
    /// Every place for clients is taken.
    pub const TOO_MANY_CONNECTIONS: Self = Self::new(503, "too many connections");

    const fn new(status: u16, message: &'static str) -> Self {
        LocalReply { status, message, allow: None, more: "" }
    }

    /// The same on the admin port, for browsers.
    pub fn for_browsers(self) -> Self {
        LocalReply { more: NOSNIFF, ..self }
    }

    /// The refusal of what is not a request.
    pub fn refusal(why: BadRequest) -> Self {
        match why {
            BadRequest::NotHttp(foreign) => Self::new(400, foreign.text()),
            BadRequest::Malformed => Self::new(400, "not a request of HTTP/1.0 or HTTP/1.1"),
            BadRequest::BodyTooLarge => Self::new(413, "request body too large"),
            BadRequest::TargetTooLong => Self::new(414, "the target is longer than 1 KiB"),
            BadRequest::Expectation => Self::new(417, "Expect is not supported"),
            BadRequest::HeadTooLarge => Self::new(431, "the head has more than 8 KiB or 64 fields"),
            BadRequest::UnknownCoding => Self::new(501, "unknown transfer coding"),
        }
    }

    /// The whole response.
    pub fn response(self, now: Now, persistence: Persistence, head_only: bool) -> Rc<[u8]> {
        let has_body = !self.message.is_empty();
        let body = if has_body { error_json(self.message) } else { String::new() };
        let fields = ResponseFields {
            status: self.status,
            date_unix_seconds: now.unix_ms / 1000,
            passed_on: &if has_body { PassedOn::json() } else { PassedOn::NONE },
            content_length: body.len(),
            cached: None,
            allow: self.allow,
            cache_control: NO_STORE,
            more: self.more,
            persistence,
        };
        response(&fields, if head_only { b"" } else { body.as_bytes() })
    }
}
