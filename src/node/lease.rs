//! Until when a leader's 200 may be served. Errs towards an earlier end: once the lease is over,
//! another node is promoted, and the load balancer's check is the only fence.
//!
//! `dcs_last_seen` advances with each HA loop, but also when a client requests `/cluster`,
//! `/history` or `/config`. We track the requests we send ([`super::dcs_reads`]), but cannot see
//! those of others.

use super::intervals::LeaseBounds;
use super::report::NodeReport;
use crate::time::{Now, Time};

/// A time by both clocks; over once either clock has reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    pub(super) time: Time,
    pub(super) unix_ms: u64,
}

/// Until when an answer may be served from memory, if everything else allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Within the cache's ttl, up to an age of [`ALWAYS_FRESH_MS`].
    pub fresh_until: Until,
    /// Within the cache's ttl, at a greater age.
    pub aging_until: Until,
    /// While Patroni is silent; `None`: never.
    pub stale_until: Option<Until>,
}

/// What an answer of a leader route rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The lease, within these bounds.
    Lease(Validity),
    /// Patroni's word alone: the bound had passed before Patroni was asked.
    Word(Validity),
    /// Nothing: the bound passed between the request and the answer.
    Nothing,
    /// Nothing: the fence is on, and the HA loop hangs.
    Fenced,
}

/// A leader's 200, and what else decides how long it may be served.
#[derive(Clone, Copy, Debug)]
pub struct LeaderAnswer<'a> {
    /// When Patroni was asked.
    pub asked_at: Time,
    /// The report in its body.
    pub report: Option<&'a NodeReport>,
    /// Its `dcs_last_seen`, unless that lies in the future.
    pub seen: Option<u64>,
    /// Whether `dcs_last_seen` can be compared with our clock.
    pub is_clock_trusted: bool,
    /// `None`: Patroni's intervals are not known.
    pub bounds: Option<LeaseBounds>,
    /// `cache.fence`: whether the 200 ends when the HA loop seems to hang.
    pub is_fenced: bool,
}

/// The known renewals of the leader's lease: the `dcs_last_seen` of two cycles of the HA loop.
#[derive(Debug, Default)]
pub struct Lease {
    /// Latest `dcs_last_seen` not caused by our own request.
    seen: Option<u64>,
    /// The `dcs_last_seen` before `seen`. A leader that went on to the next cycle had renewed its
    /// lease in this one. `None`: not known, nor how long the HA loop may have hung.
    previous_seen: Option<u64>,
}

impl Until {
    /// Never over.
    pub const NEVER: Until = Until { time: Time::NEVER, unix_ms: u64::MAX };

    /// Whether either clock has reached it.
    pub fn is_over(self, now: Now) -> bool {
        now.time >= self.time || now.unix_ms >= self.unix_ms
    }

    /// This many seconds after the DCS was seen.
    fn after_seen(now: Now, seen: u64, seconds: u64) -> Until {
        let unix_ms = seen.saturating_add(seconds).saturating_mul(1_000);
        Until { time: now.time.plus_ms(unix_ms.saturating_sub(now.unix_ms)), unix_ms }
    }

    /// Milliseconds until it is over.
    pub fn left_ms(self, now: Now) -> u64 {
        self.time.ms_since(now.time).min(self.unix_ms.saturating_sub(now.unix_ms))
    }

    /// Over when either of the two is.
    pub fn sooner(self, other: Until) -> Until {
        Until { time: self.time.min(other.time), unix_ms: self.unix_ms.min(other.unix_ms) }
    }

    /// This many milliseconds from now, by both clocks.
    pub fn after_ms(now: Now, ms: u64) -> Until {
        Until { time: now.time.plus_ms(ms), unix_ms: now.unix_ms.saturating_add(ms) }
    }
}

impl Validity {
    /// The validity of an answer that does not rest on a lease and is never served stale.
    pub const FRESH_ONLY: Validity =
        Validity { fresh_until: Until::NEVER, aging_until: Until::NEVER, stale_until: None };
}

impl Lease {
    /// The HA loop set this `dcs_last_seen`. One that is earlier than the latest comes from an
    /// answer that was overtaken.
    pub fn learn(&mut self, seen: u64) {
        let previous = self.seen.replace(seen).filter(|previous| *previous < seen);
        self.previous_seen = previous.or(self.previous_seen);
    }

    /// `seen` is the first since the clock jumped or Patroni was exchanged: the previous one may be
    /// from before that.
    pub fn forget_previous(&mut self) {
        self.previous_seen = None;
    }

    /// Whether two cycles of the HA loop are known.
    pub fn has_two_cycles(&self) -> bool {
        self.seen.is_some() && self.previous_seen.is_some()
    }

    /// Forgets all renewals.
    pub fn forget(&mut self) {
        *self = Lease::default();
    }

    /// Decides until when a leader's 200 that came now may be served.
    pub fn decide(&self, now: Now, answer: &LeaderAnswer<'_>) -> Basis {
        let age_ms = now.time.ms_since(answer.asked_at);
        let asked = Now { time: answer.asked_at, unix_ms: now.unix_ms.saturating_sub(age_ms) };
        let ttl_seconds = answer.bounds.map_or(TTL_SECONDS_MIN, |bounds| bounds.ttl_seconds);
        let word = Until::after_ms(asked, ALWAYS_FRESH_MS);
        let end = answer.seen.map_or(word, |seen| Until::after_seen(now, seen, ttl_seconds));
        let sure_end = self.sure_end(now, answer, ttl_seconds);
        let fence = answer.fence(now);
        if fence.is_some_and(|fence| fence.is_over(now)) {
            return Basis::Fenced;
        }
        let validity = Validity {
            fresh_until: fence.map_or(end, |fence| end.sooner(fence)),
            aging_until: sure_end.unwrap_or(word),
            stale_until: sure_end,
        };
        let bound = sure_end.filter(|_| age_ms >= ALWAYS_FRESH_MS).unwrap_or(end);
        if !bound.is_over(now) {
            return Basis::Lease(validity);
        }
        let passed_meanwhile = |bound: Until| bound.is_over(now) && bound.unix_ms > asked.unix_ms;
        if answer.seen.is_some() && (passed_meanwhile(bound) || passed_meanwhile(end)) {
            return Basis::Nothing;
        }
        let is_word_enough =
            answer.report.is_some_and(|report| report.failsafe_mode_is_active || report.pause);
        let word_ms = if is_word_enough { ALWAYS_FRESH_MS } else { WORD_MS };
        let word = Until::after_ms(asked, word_ms);
        Basis::Word(Validity { fresh_until: word, aging_until: word, stale_until: None })
    }

    /// D: until then the lease certainly holds. `None`: that is not known, or it never does under
    /// these intervals; then D is `dcs_last_seen` itself, and no slow answer would come before it.
    fn sure_end(&self, now: Now, answer: &LeaderAnswer<'_>, ttl_seconds: u64) -> Option<Until> {
        let is_under_lease = answer.report.is_some_and(NodeReport::is_under_lease);
        if !is_under_lease || !answer.is_clock_trusted {
            return None;
        }
        let sure_seconds = answer.bounds?.sure_seconds;
        let sure = self.seen.filter(|sure| sure_seconds > 0 && Some(*sure) <= answer.seen)?;
        let previous = self.previous_seen?;
        let sure_end = Until::after_seen(now, sure, sure_seconds);
        // If the loop hung both before and after the cycle of `sure`, the last renewal belongs to
        // the previous cycle.
        Some(sure_end.sooner(Until::after_seen(now, previous, ttl_seconds)))
    }
}

impl LeaderAnswer<'_> {
    /// From when on the HA loop certainly hangs, if the fence is on. `None` in pause, in failsafe
    /// mode, and while the clock is not trusted.
    fn fence(&self, now: Now) -> Option<Until> {
        let report = self.report.filter(|_| self.is_fenced && self.is_clock_trusted)?;
        if report.pause || report.failsafe_mode_is_active {
            return None;
        }
        Some(Until::after_seen(now, self.seen?, self.bounds?.loop_seconds))
    }
}

/// How long to trust a leader's 200 without lease information: the default `cache.ttl`. Up to this
/// age `dcs_last_seen` is accepted even if our own request moved it: Patroni has only just said
/// that the node leads.
pub const ALWAYS_FRESH_MS: u64 = 1_000;
/// How long a leader's 200 is served on Patroni's word alone, while its HA loop seems to hang or
/// its clock seems to be wrong.
pub const WORD_MS: u64 = 250;
/// The smallest `ttl` that Patroni accepts (4.1, `validator.py`); assumed while `ttl` is not known.
const TTL_SECONDS_MIN: u64 = 20;

const _: () = assert!(WORD_MS <= ALWAYS_FRESH_MS, "promise 3");
