//! Until when a leader's 200 may be served. Errs towards "no longer": once the lease is over
//! another node is promoted, and the load balancer's check is the only fence.
//!
//! `dcs_last_seen` advances with each HA loop, but also when a client requests `/cluster`,
//! `/history` or `/config`. We track the requests we send ([`super::dcs_reads`]); we cannot see
//! other clients'.

use super::intervals::LeaseBounds;
use super::report::NodeReport;
use crate::time::{Now, Time};

/// A time by both clocks: over when either of them says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    pub(super) time: Time,
    pub(super) unix_ms: u64,
}

/// Until when an answer may be served from memory, whatever else allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Within the cache's ttl.
    pub fresh_until: Until,
    /// The same, for an answer older than [`ALWAYS_FRESH_MS`].
    pub aging_until: Until,
    /// While Patroni is silent; `None`: never.
    pub stale_until: Option<Until>,
}

/// The renewals of the leader's lease that are known, as `dcs_last_seen` of the HA loop's cycles.
#[derive(Debug, Default)]
pub struct Lease {
    /// Latest `dcs_last_seen` not caused by our own request.
    seen: Option<u64>,
    /// The one before it. A leader that went on from there had renewed its lease. `None`: it is
    /// not known, and neither is how long the HA loop may have hung.
    previous_seen: Option<u64>,
}

impl Until {
    /// Never over.
    pub const NEVER: Until = Until { time: Time::NEVER, unix_ms: u64::MAX };

    /// Whether it has come.
    pub fn is_over(self, now: Now) -> bool {
        now.time >= self.time || now.unix_ms >= self.unix_ms
    }

    /// This many seconds after the DCS was seen.
    fn after_seen(now: Now, seen: u64, seconds: u64) -> Until {
        let unix_ms = seen.saturating_add(seconds).saturating_mul(1_000);
        Until { time: now.time.plus_ms(unix_ms.saturating_sub(now.unix_ms)), unix_ms }
    }

    /// Over when either of the two is.
    fn sooner(self, other: Until) -> Until {
        Until { time: self.time.min(other.time), unix_ms: self.unix_ms.min(other.unix_ms) }
    }

    /// This many milliseconds from now, by both clocks.
    pub fn after_ms(now: Now, ms: u64) -> Until {
        Until { time: now.time.plus_ms(ms), unix_ms: now.unix_ms.saturating_add(ms) }
    }
}

impl Validity {
    /// Of an answer that does not rest on a lease and is never served stale.
    pub const FRESH_ONLY: Validity =
        Validity { fresh_until: Until::NEVER, aging_until: Until::NEVER, stale_until: None };
}

impl Lease {
    /// The HA loop reported this `dcs_last_seen`. An earlier one than the latest is of an answer
    /// that was overtaken.
    pub fn learn(&mut self, seen: u64) {
        let previous = self.seen.replace(seen).filter(|previous| *previous < seen);
        self.previous_seen = previous.or(self.previous_seen);
    }

    /// `seen` is the first after a jump of the wall clock: the one before was told by the clock
    /// before the jump.
    pub fn forget_previous(&mut self) {
        self.previous_seen = None;
    }

    /// Nothing is known.
    pub fn forget(&mut self) {
        *self = Lease::default();
    }

    /// The validity of a leader's 200 that came now. `seen`: the `dcs_last_seen` it carries, unless
    /// that lies in the future; `trusted`: whether the wall clock is believed; `bounds`: `None` if
    /// Patroni's intervals are not known.
    pub fn validity(
        &self,
        now: Now,
        report: Option<&NodeReport>,
        seen: Option<u64>,
        trusted: bool,
        bounds: Option<LeaseBounds>,
    ) -> Validity {
        let ttl_seconds = bounds.map_or(TTL_SECONDS_MIN, |bounds| bounds.ttl_seconds);
        // without a `dcs_last_seen` of the past, the answer is believed as long as the default ttl
        let unknown = Until::after_ms(now, ALWAYS_FRESH_MS);
        let until = |seen: u64, seconds: u64| Until::after_seen(now, seen, seconds);
        let sure = seen.zip(self.seen).filter(|(seen, sure)| trusted && sure <= seen);
        let sure = sure.map(|(_, sure)| sure);
        let lease = (sure.zip(self.previous_seen).zip(bounds))
            .filter(|_| report.is_some_and(NodeReport::is_under_lease));
        Validity {
            fresh_until: seen.map_or(unknown, |seen| until(seen, ttl_seconds)),
            aging_until: sure.map_or(unknown, |sure| until(sure, ttl_seconds)),
            // If the loop hung both before and after the cycle of `sure`, the last renewal belongs
            // to the previous cycle.
            stale_until: lease.map(|((sure, previous), bounds)| {
                until(sure, bounds.sure_seconds).sooner(until(previous, ttl_seconds))
            }),
        }
    }
}

/// How long to trust a leader's 200 without lease information: the default `cache.ttl`. Up to this
/// age `dcs_last_seen` is accepted even if our own request moved it: Patroni has only just said
/// that it leads.
pub const ALWAYS_FRESH_MS: u64 = 1_000;
/// The smallest `ttl` that Patroni accepts (4.1, `validator.py`): assumed while it is not known.
const TTL_SECONDS_MIN: u64 = 20;
