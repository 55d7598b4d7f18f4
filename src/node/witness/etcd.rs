//! etcd v3 through its JSON gateway, as Patroni's `etcd3` module uses it: requests, answers,
//! errors.
//!
//! As seen on the wire (3.4.23 and 3.5.1): keys and values are base64, an int64 is a JSON string, a
//! field with its default value is left out, and a key that does not exist has no `kvs`. Any other
//! answer is rejected.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::rule::{Found, Key, Why};
use super::strict::{Json, Object, Unexpected};
use super::{Credentials, LeaseTime, Outcome};
use crate::failure::{Culprit, Failure};

/// The path of a transaction.
pub const TXN: &str = "/v3/kv/txn";
/// The path that tells a lease's time left.
pub const TIME_TO_LIVE: &str = "/v3/lease/timetolive";
/// The path that gives a token.
pub const AUTHENTICATE: &str = "/v3/auth/authenticate";

/// The keys of one member that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys([String; 4]);

/// What an answer about a lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLeft {
    /// Whole seconds, rounded down; -1: the lease does not exist.
    pub left: i64,
    /// What a renewal sets it to; 0 if the lease does not exist.
    pub granted: i64,
}

/// A status other than 200, by status and gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400, code 3: no token, a wrong password, or a token from before users were changed.
    Argument,
    /// 401, code 16: the token is not, or no longer, valid.
    Token,
    /// 403, code 7.
    Permission,
    /// 412, code 9: a token is not needed.
    AuthOff,
    /// 503 or 504, code 14 or 4: no quorum, or no leader at the moment.
    Unavailable,
    /// 404: not etcd, or etcd older than 3.4.
    Path,
    /// etcd's words for plain HTTP on its TLS port.
    TlsExpected,
    /// etcd's words for a client certificate with a common name, while it has users.
    CommonName,
    /// Any other status.
    Status(u16),
}

/// Why a read failed. A failed read says nothing about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// No answer at all.
    Unreached(Failure),
    /// Name or password is wrong.
    WrongPassword,
    /// etcd has users, and `dcs` names none.
    CredentialsMissing,
    /// etcd refuses the token that it has just given.
    TokenRefused,
    /// The user may not read the keys.
    NoPermission,
    /// etcd cannot answer linearizably.
    NoQuorum,
    /// There is no JSON gateway.
    NoGateway,
    /// `scheme` is http, and etcd's port speaks TLS.
    TlsExpected,
    /// etcd has users, and the client certificate has a common name.
    CommonName,
    /// Any other status.
    Status(u16),
    /// The answer to this request is not as expected.
    NotUnderstood(&'static str),
}

impl Keys {
    /// The keys of a member, as Patroni spells them (`AbstractDCS.client_path`): slashes around and
    /// within namespace and scope count as one.
    pub fn new(namespace: &str, scope: &str, group: Option<u32>, name: &str) -> Keys {
        let mut base = String::new();
        for part in namespace.split('/').chain(scope.split('/')).filter(|part| !part.is_empty()) {
            base.push('/');
            base.push_str(part);
        }
        if let Some(group) = group {
            base.push_str(&format!("/{group}"));
        }
        let member = format!("members/{name}");
        Keys(["leader", &member, "config", "initialize"].map(|key| format!("{base}/{key}")))
    }

    /// The body of a transaction that only reads these keys. Its range requests are linearizable,
    /// the default: without a quorum a `serializable` one returns stale data at once.
    pub fn txn(&self) -> Vec<u8> {
        let ranges = self.0.each_ref().map(|key| {
            let key = STANDARD.encode(key);
            format!(r#"{{"request_range":{{"key":"{key}"}}}}"#)
        });
        format!(r#"{{"success":[{}]}}"#, ranges.join(",")).into_bytes()
    }

    /// What the answer to [`Keys::txn`] says.
    pub fn found(&self, body: &[u8]) -> Option<Found> {
        let answer = answer(body)?;
        let responses = answer.list("responses").ok()?;
        if answer.flag("succeeded") != Ok(true) || responses.len() != self.0.len() {
            return None;
        }
        let mut keys = self.0.iter().zip(responses).map(|(key, response)| range(response, key));
        let mut next = || keys.next()?.ok();
        let (leader, member, config, initialize) = (next()?, next()?, next()?, next()?);
        Some(Found { leader, member, config, initialize })
    }
}

/// The body that asks for a token.
pub fn authenticate(credentials: &Credentials) -> Vec<u8> {
    let Credentials { username, password } = credentials;
    json!({ "name": username, "password": password }).to_string().into_bytes()
}

/// The token in the answer; `None`: none that may stand in a header field.
pub fn token(body: &[u8]) -> Option<String> {
    let answer = answer(body)?;
    let token = answer.text("token").ok()?;
    let is_field = token.bytes().all(|byte| byte.is_ascii_graphic());
    let is_good = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && is_field;
    is_good.then(|| token.to_owned())
}

/// The body that asks for the time left of a lease.
pub fn time_to_live(lease: i64) -> Vec<u8> {
    format!(r#"{{"ID":"{lease}"}}"#).into_bytes()
}

/// What the answer to [`time_to_live`] says.
pub fn time_left(body: &[u8], lease: i64) -> Option<TimeLeft> {
    let answer = answer(body)?;
    if answer.int64("ID") != Ok(lease) {
        return None;
    }
    Some(TimeLeft { left: answer.int64("TTL").ok()?, granted: answer.int64("grantedTTL").ok()? })
}

/// What a status other than 200 means.
pub fn refusal(status: u16, body: &[u8]) -> Refusal {
    let code = Object::from_slice(body).and_then(|error| match error.get("code") {
        Some(Json::Integer(code)) => Some(*code),
        _ => None,
    });
    match (status, code) {
        (400, Some(3)) => Refusal::Argument,
        (401, _) => Refusal::Token,
        (403, _) => Refusal::Permission,
        (412, Some(9)) => Refusal::AuthOff,
        (503 | 504, _) => Refusal::Unavailable,
        (404, _) => Refusal::Path,
        (400, None) if body.starts_with(TLS_EXPECTED) => Refusal::TlsExpected,
        (400, None) if body.starts_with(COMMON_NAME) => Refusal::CommonName,
        _ => Refusal::Status(status),
    }
}

/// The JSON object of an answer; every answer has a `header`.
fn answer(body: &[u8]) -> Option<Object> {
    Object::from_slice(body).filter(|answer| matches!(answer.get("header"), Some(Json::Object(_))))
}

/// The key in one of a transaction's answers; `None`: it does not exist.
fn range(response: &Json, key: &str) -> Result<Option<Key>, Unexpected> {
    let Json::Object(response) = response else { return Err(Unexpected) };
    let Some(Json::Object(range)) = response.only("response_range") else {
        return Err(Unexpected);
    };
    let (count, more) = (range.int64("count")?, range.flag("more")?);
    let pair = match (range.get("kvs"), range.list("kvs")?) {
        (None, _) if count == 0 && !more => return Ok(None),
        (Some(_), [Json::Object(pair)]) if count == 1 && !more => pair,
        _ => return Err(Unexpected),
    };
    let lease = pair.int64("lease")?;
    let is_good = pair.int64("mod_revision")? > 0 && lease >= 0;
    if !is_good || decoded(pair, "key")? != key.as_bytes() {
        return Err(Unexpected);
    }
    Ok(Some(Key { value: decoded(pair, "value")?, lease: (lease > 0).then_some(lease) }))
}

fn decoded(pair: &Object, name: &str) -> Result<Vec<u8>, Unexpected> {
    STANDARD.decode(pair.text(name)?).map_err(|_| Unexpected)
}

impl TimeLeft {
    /// The time left, if it is credible: for a moment after an election etcd reports 9223372036 s
    /// (until 3.4.32 and 3.5.14), which is more than was granted.
    pub fn lease_time(self) -> Option<LeaseTime> {
        let is_time = 0 <= self.left && self.left <= self.granted;
        let is_time = is_time && (1..=GRANTED_SECONDS_MAX).contains(&self.granted);
        is_time.then_some(LeaseTime {
            left_seconds: self.left.unsigned_abs(),
            granted_seconds: self.granted.unsigned_abs(),
        })
    }
}

impl ReadFailure {
    /// Whether another host may do better.
    pub fn is_of_host(self) -> bool {
        match self {
            ReadFailure::Unreached(failure) => failure.culprit() != Culprit::Ours,
            ReadFailure::NoQuorum
            | ReadFailure::NoGateway
            | ReadFailure::TlsExpected
            | ReadFailure::TokenRefused
            | ReadFailure::Status(_)
            | ReadFailure::NotUnderstood(_) => true,
            ReadFailure::WrongPassword
            | ReadFailure::CredentialsMissing
            | ReadFailure::CommonName
            | ReadFailure::NoPermission => false,
        }
    }

    /// The outcome of a read that ended with this failure.
    pub fn outcome(self) -> Outcome {
        Outcome::Nothing(Why::Failed(self))
    }
}

impl fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadFailure::Unreached(Failure::NoRoom) => "no connection was free to ask etcd",
            ReadFailure::Unreached(Failure::Patroniglue) => {
                "this is patroniglue itself; write etcd's addresses under dcs.hosts"
            }
            ReadFailure::Unreached(Failure::Closed) => {
                "etcd closed the connection without an answer; is dcs.scheme right?"
            }
            ReadFailure::Unreached(failure) => {
                let text = failure.to_string();
                return f.write_str(&text.replace("Patroni", "etcd").replace("backend.", "dcs."));
            }
            ReadFailure::WrongPassword => {
                "etcd does not accept dcs.username with the password of dcs"
            }
            ReadFailure::CredentialsMissing => {
                "etcd requires a user; set dcs.username and dcs.password-file"
            }
            ReadFailure::TokenRefused => "etcd refuses the token that it has just given",
            ReadFailure::NoPermission => {
                "the user of dcs.username may not read the cluster's keys; grant its role READ on \
                 their prefix"
            }
            ReadFailure::NoQuorum => "etcd has no quorum, or no leader at the moment",
            ReadFailure::NoGateway => {
                "this is not etcd 3.4 or newer: it does not know the paths below /v3"
            }
            ReadFailure::TlsExpected => "etcd speaks TLS on this port; set dcs.scheme: https",
            ReadFailure::CommonName => {
                "etcd has users, and its JSON gateway then refuses a client certificate with a \
                 common name; set dcs.certfile to one without"
            }
            ReadFailure::Status(status) => return write!(f, "etcd answered with status {status}"),
            ReadFailure::NotUnderstood(request) => {
                return write!(f, "etcd's answer to {request} is not as expected");
            }
        })
    }
}

/// etcd's simple tokens have about 20 bytes, its JWTs a few hundred.
const TOKEN_BYTES_MAX: usize = 4_096;
/// A lease of more than a day is not Patroni's.
const GRANTED_SECONDS_MAX: i64 = 86_400;
/// The beginning of the answer of Go's HTTP server to plain HTTP on a TLS port.
const TLS_EXPECTED: &[u8] = b"Client sent an HTTP request to an HTTPS server";
/// The beginning of the answer of etcd's gateway (`wrapMux`, seen with 3.4.23).
const COMMON_NAME: &[u8] = b"CommonName of client sending a request against gateway";
