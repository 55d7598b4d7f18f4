//! What the DCS says about the lease: a second witness while Patroni is silent.
//!
//! Patroni's API tells how long the lease is sure to hold, but this API can freeze. The leader key
//! and its lease can be read from the DCS. While Patroni is silent, its last 200 of a leader route
//! may be served until
//!
//! ```text
//!     t0 + r - m      t0: just before the first request of the read was begun
//!                     r:  seconds that the lease of the leader key still lasts
//!                     m:  time for load balancers to react before it ends
//! ```
//!
//! because no other node promotes before the leader key is gone.
//!
//! A [`Read`] asks for four keys in one linearizable transaction, then for the time left of one
//! lease: [`etcd`] has the requests and the answers, [`rule`] what they mean, and [`strict`] the
//! JSON. Opens no socket: the owner of a `Read` sends [`Read::request`] to one host after the other
//! and passes the answers to [`Read::answered`].

pub mod etcd;
pub mod rule;
pub mod strict;

use std::fmt;
use std::rc::Rc;

pub use self::etcd::ReadFailure;
use self::etcd::{Keys, Refusal};
use self::rule::Holding;
pub use self::rule::{Subject, Why};
use super::lease::Until;
use crate::http::write;
use crate::time::Now;

/// How etcd is read: the settings, and the token that etcd gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    settings: Settings,
    token: Token,
}

/// The part of the configuration that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Patroni's `namespace`.
    pub namespace: String,
    /// The Citus group, if Patroni has one.
    pub group: Option<u32>,
    /// `None`: etcd is asked without a token.
    pub credentials: Option<Credentials>,
    /// How long before the lease its evidence ends; at most [`rule::MARGIN_MS_MAX`].
    pub margin_ms: u64,
}

/// Name and password of an etcd user.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// Its password.
    pub password: String,
}

/// One read of the DCS, from its first request to its outcome.
#[derive(Debug)]
pub struct Read {
    t0: Now,
    subject: Subject,
    keys: Keys,
    margin_ms: u64,
    question: Question,
    sign_in: SignIn,
}

/// What an answer led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Read::request`] is to be sent, to the same host.
    Ask,
    /// This host cannot be read: [`Read::request`] may be sent to another one. Without another one
    /// the outcome is [`ReadFailure::outcome`].
    NextHost(ReadFailure),
    /// The read has ended.
    Done(Outcome),
}

/// What a read says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What Patroni said last still holds.
    Evidence(Evidence),
    /// The DCS says otherwise: no stale answer of a leader may be served, by any evidence or
    /// grace.
    Contradiction(Why),
    /// Neither: earlier evidence lasts until its own end.
    Nothing(Why),
}

/// Until when Patroni's last 200 may be served while Patroni is silent. Any kind of DCS that can
/// tell such a time can be a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Which routes it covers.
    pub standing: Standing,
    /// When it ends.
    pub until: Until,
    /// For the log; `None`: the DCS does not tell the time left.
    pub lease: Option<LeaseTime>,
}

/// What the node is according to the DCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the leader key, and its member key is attached to the same lease: evidence for
    /// leader routes, and for replica routes without parameters (a leader answers 200 to
    /// `/read-only` as well).
    Leader,
    /// Its member key has a living lease: evidence for replica routes without parameters only.
    Replica,
}

/// The time of a lease in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    /// Rounded down.
    pub left_seconds: u64,
    /// What a renewal sets it to.
    pub granted_seconds: u64,
}

/// Whether etcd gave a token. By etcd's default, a token ends 300 s after its last use.
#[derive(Clone, PartialEq, Eq)]
enum Token {
    /// No token was asked for yet, or etcd refused the last one.
    Unknown,
    Given(String),
    /// etcd knows no users.
    NotEnabled,
}

/// What is asked with the token, if one is needed.
#[derive(Clone, Copy, Debug)]
enum Question {
    Keys,
    TimeLeft(Holding),
}

/// The state of the request for a token: a read has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignIn {
    NotYet,
    Asked,
    Done,
}

impl Access {
    /// Access without a token yet.
    pub fn new(settings: Settings) -> Access {
        Access { settings, token: Token::Unknown }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn token(&self) -> Option<&str> {
        match &self.token {
            Token::Given(token) => Some(token),
            Token::Unknown | Token::NotEnabled => None,
        }
    }
}

impl Read {
    /// Begins a read. `now` must not be later than the start of its first connection: evidence
    /// counts from `now`. The read is about Patroni's last answer, and has to be dropped after an
    /// answer whose [`Subject`] differs.
    pub fn begin(now: Now, subject: Subject, access: &Access) -> Read {
        let Settings { namespace, group, margin_ms, credentials } = &access.settings;
        let wants_token = credentials.is_some() && access.token == Token::Unknown;
        Read {
            t0: now,
            keys: Keys::new(namespace, &subject.scope, *group, &subject.name),
            subject,
            margin_ms: *margin_ms,
            question: Question::Keys,
            sign_in: if wants_token { SignIn::Asked } else { SignIn::NotYet },
        }
    }

    /// The next request to send; `host` is for its `Host` field. Each may be sent again.
    pub fn request(&self, access: &Access, host: &str) -> Rc<[u8]> {
        let credentials = &access.settings.credentials;
        if let (SignIn::Asked, Some(credentials)) = (self.sign_in, credentials) {
            return write::post(etcd::AUTHENTICATE, host, None, &etcd::authenticate(credentials));
        }
        let (path, body) = match self.question {
            Question::Keys => (etcd::TXN, self.keys.txn()),
            Question::TimeLeft(holding) => (etcd::TIME_TO_LIVE, etcd::time_to_live(holding.lease)),
        };
        write::post(path, host, access.token(), &body)
    }

    /// What the read is about.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The answer to the last request.
    pub fn answered(&mut self, access: &mut Access, status: u16, body: &[u8]) -> Step {
        if status != 200 {
            return self.refused(access, etcd::refusal(status, body));
        }
        if self.sign_in == SignIn::Asked {
            let Some(token) = etcd::token(body) else {
                return Step::NextHost(ReadFailure::NotUnderstood("auth/authenticate"));
            };
            access.token = Token::Given(token);
            self.sign_in = SignIn::Done;
            return Step::Ask;
        }
        match self.question {
            Question::Keys => {
                let Some(found) = self.keys.found(body) else {
                    return Step::NextHost(ReadFailure::NotUnderstood("kv/txn"));
                };
                match rule::holding(&self.subject, &found) {
                    Ok(holding) => {
                        self.question = Question::TimeLeft(holding);
                        Step::Ask
                    }
                    Err(outcome) => Step::Done(outcome),
                }
            }
            Question::TimeLeft(holding) => match etcd::time_left(body, holding.lease) {
                Some(time) => Step::Done(rule::outcome(self.t0, self.margin_ms, holding, time)),
                None => Step::NextHost(ReadFailure::NotUnderstood("lease/timetolive")),
            },
        }
    }

    fn refused(&mut self, access: &mut Access, refusal: Refusal) -> Step {
        let has_credentials = access.settings.credentials.is_some();
        let failure = match (refusal, self.sign_in) {
            (Refusal::AuthOff, SignIn::Asked) => {
                access.token = Token::NotEnabled;
                self.sign_in = SignIn::Done;
                return Step::Ask;
            }
            (Refusal::Argument | Refusal::Token, SignIn::Asked) => ReadFailure::WrongPassword,
            (Refusal::Argument | Refusal::Token, _) if !has_credentials => {
                ReadFailure::CredentialsMissing
            }
            (Refusal::Argument | Refusal::Token, SignIn::NotYet) => {
                access.token = Token::Unknown;
                self.sign_in = SignIn::Asked;
                return Step::Ask;
            }
            (Refusal::Argument | Refusal::Token, SignIn::Done) => {
                access.token = Token::Unknown;
                ReadFailure::TokenRefused
            }
            (Refusal::Permission, _) if !has_credentials => ReadFailure::CredentialsMissing,
            (Refusal::Permission, _) => ReadFailure::NoPermission,
            (Refusal::CommonName, _) => ReadFailure::CommonName,
            (Refusal::Unavailable, _) => ReadFailure::NoQuorum,
            (Refusal::Path, _) => ReadFailure::NoGateway,
            (Refusal::TlsExpected, _) => ReadFailure::TlsExpected,
            (Refusal::AuthOff, _) => ReadFailure::Status(412),
            (Refusal::Status(status), _) => ReadFailure::Status(status),
        };
        match failure.is_of_host() {
            true => Step::NextHost(failure),
            false => Step::Done(failure.outcome()),
        }
    }
}

impl Evidence {
    /// Whether it is over.
    pub fn is_over(&self, now: Now) -> bool {
        self.until.is_over(now)
    }
}

impl fmt::Debug for Credentials {
    /// The password stays out of every log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::Unknown => "Unknown",
            Token::Given(_) => "Given",
            Token::NotEnabled => "NotEnabled",
        })
    }
}

impl fmt::Display for LeaseTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} s left", self.left_seconds, self.granted_seconds)
    }
}

#[cfg(test)]
mod tests;
