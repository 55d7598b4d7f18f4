//! Patroni's intervals: what they say about the lease, since when they are known, and when they are
//! fetched again.

use serde::Deserialize;

use super::dcs_reads::RELEVANT_MS;
use crate::time::{Now, Time};

/// Patroni's intervals in seconds, as its `/config` has them. A missing one has Patroni's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Intervals {
    /// How long the lease lasts after a renewal.
    pub ttl: u64,
    /// How often it is renewed.
    pub loop_wait: u64,
    /// How long one read or write of the DCS may be retried.
    pub retry_timeout: u64,
}

/// What intervals say about the lease, in seconds after `dcs_last_seen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseBounds {
    /// The lease is over by then, unless it was renewed since.
    pub ttl_seconds: u64,
    /// The lease certainly holds until then.
    pub sure_seconds: u64,
    /// A living HA loop has read the DCS again by then, or has demoted the leader.
    pub loop_seconds: u64,
}

/// What is known about the intervals.
#[derive(Debug)]
pub struct KnownIntervals {
    /// The last ones, and when they were fetched.
    current: Option<(Intervals, Time)>,
    /// The last ones that were fetched before the node got another name, until others are fetched.
    doubted: Option<Intervals>,
    /// Bounds under the previous intervals, kept while a lease granted under them may still be
    /// running.
    previous: Option<(LeaseBounds, Time)>,
    fetch: IntervalsFetch,
}

/// The state of the fetch of `/config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IntervalsFetch {
    DueAt(Time),
    InFlight,
}

impl Intervals {
    /// `None`: the body is not Patroni's configuration.
    pub fn from_json(body: &[u8]) -> Option<Intervals> {
        let is_object = body.trim_ascii_start().starts_with(b"{");
        serde_json::from_slice(body).ok().filter(|_| is_object)
    }

    /// The intervals in force with this `ttl`: Patroni lowers them to fulfil the rule `loop_wait +
    /// 2 * retry_timeout <= ttl` (`Config._validate_and_adjust_timeouts`). Values that it would
    /// raise are left as written.
    pub fn lowered_to(self, ttl: u64) -> Intervals {
        let Intervals { mut loop_wait, mut retry_timeout, .. } = self;
        if LOOP_WAIT_SECONDS_MIN.saturating_add(retry_timeout.saturating_mul(2)) > ttl {
            loop_wait = loop_wait.min(LOOP_WAIT_SECONDS_MIN);
            retry_timeout = ttl.saturating_sub(LOOP_WAIT_SECONDS_MIN) / 2;
        }
        loop_wait = loop_wait.min(ttl.saturating_sub(retry_timeout.saturating_mul(2)));
        Intervals { ttl, loop_wait, retry_timeout }
    }

    /// What these intervals say about the lease. The HA loop may have hung between the read of the
    /// DCS that `dcs_last_seen` reports and the renewal after it; then the lease is the one of the
    /// previous cycle. Patroni raises intervals that are too small, but `/config` has them as they
    /// were written. `ttl` is not raised here, which errs to the safe side.
    ///
    /// ZooKeeper ends a session after its `maxSessionTimeout` if `ttl` is longer. The kind of DCS
    /// is not known here, so `ttl` is limited for all.
    pub fn bounds(self) -> LeaseBounds {
        let ttl = self.ttl.min(TTL_SECONDS_MAX);
        let loop_wait = self.loop_wait.max(LOOP_WAIT_SECONDS_MIN);
        let retry_timeout = self.retry_timeout.max(RETRY_TIMEOUT_SECONDS_MIN);
        let sure_seconds = ttl.saturating_sub(loop_wait).saturating_sub(retry_timeout);
        let loop_seconds = loop_wait.saturating_add(retry_timeout);
        LeaseBounds { ttl_seconds: ttl, sure_seconds, loop_seconds }
    }
}

impl Default for Intervals {
    /// Patroni 4.1, `dynamic_loader.py` and `config.py`.
    fn default() -> Self {
        Intervals { ttl: 30, loop_wait: 10, retry_timeout: 10 }
    }
}

impl LeaseBounds {
    /// Bounds that hold under both.
    fn and(self, other: LeaseBounds) -> LeaseBounds {
        LeaseBounds {
            ttl_seconds: self.ttl_seconds.min(other.ttl_seconds),
            sure_seconds: self.sure_seconds.min(other.sure_seconds),
            loop_seconds: self.loop_seconds.max(other.loop_seconds),
        }
    }
}

impl KnownIntervals {
    /// Intervals were fetched. Returns whether they changed: decisions by the previous ones may be
    /// wrong then.
    pub fn learn(&mut self, now: Now, intervals: Intervals) -> bool {
        let current = self.current.replace((intervals, now.time)).map(|(previous, _)| previous);
        let previous = self.doubted.take().or(current);
        let Some(previous) = previous.filter(|previous| *previous != intervals) else {
            return false;
        };
        let earlier = self.previous.filter(|(_, until)| now.time < *until);
        let bounds =
            earlier.map_or(previous.bounds(), |(earlier, _)| earlier.and(previous.bounds()));
        // the leader renews its lease under the new intervals within the previous lease's time
        let until = now.time.plus_ms(previous.ttl.saturating_mul(1_000));
        self.previous = Some((bounds, until));
        true
    }

    /// The node may be of another cluster now: nothing rests on them until they are fetched again.
    /// If it is not, and they have changed by then, they count as the previous ones.
    pub fn doubt(&mut self, now: Time) {
        if let Some((doubted, _)) = self.current.take() {
            self.doubted = Some(doubted);
        }
        self.expire(now);
    }

    /// `None`: the intervals are not known, or were fetched `BELIEF_MS_MAX` ago.
    pub fn bounds(&self, now: Now) -> Option<LeaseBounds> {
        let known = self.current.filter(|(_, at)| now.time.ms_since(*at) < BELIEF_MS_MAX);
        let bounds = known?.0.bounds();
        let previous = self.previous.filter(|(_, until)| now.time < *until);
        Some(previous.map_or(bounds, |(previous, _)| bounds.and(previous)))
    }

    /// The last intervals that were fetched, however long ago.
    pub fn last(&self) -> Option<Intervals> {
        self.current.map(|(intervals, _)| intervals)
    }

    /// How long Patroni may work on one request that reads the DCS, in milliseconds.
    pub fn dcs_read_ms_max(&self) -> u64 {
        let known = self.current.map_or(0, |(intervals, _)| intervals.retry_timeout);
        let retry_timeout = known.max(Intervals::default().retry_timeout);
        retry_timeout.saturating_mul(1_000 * DCS_READ_RETRIES)
    }

    /// Whether they are to be fetched now; if so, the fetch counts as in flight.
    pub fn begin_fetch(&mut self, now: Time) -> bool {
        let IntervalsFetch::DueAt(due_at) = self.fetch else { return false };
        let is_due = due_at <= now;
        if is_due {
            self.fetch = IntervalsFetch::InFlight;
        }
        is_due
    }

    /// The fetch has ended. The next is due after `REFETCH_MS`, or `RETRY_MS` without `success`.
    pub fn fetch_ended(&mut self, now: Time, success: bool) {
        let pause_ms = if success { REFETCH_MS } else { RETRY_MS };
        self.fetch = IntervalsFetch::DueAt(now.plus_ms(pause_ms));
    }

    /// They may have changed: the next fetch is due now, unless one is in flight.
    pub fn expire(&mut self, now: Time) {
        if self.fetch != IntervalsFetch::InFlight {
            self.fetch = IntervalsFetch::DueAt(now);
        }
    }

    /// Forgets the intervals, but not a fetch in flight.
    pub fn forget(&mut self, now: Time) {
        (self.current, self.doubted, self.previous) = (None, None, None);
        self.expire(now);
    }
}

impl Default for KnownIntervals {
    fn default() -> Self {
        let fetch = IntervalsFetch::DueAt(Time::ZERO);
        KnownIntervals { current: None, doubted: None, previous: None, fetch }
    }
}

/// Patroni's path of its dynamic configuration, which has the intervals.
pub const INTERVALS_TARGET: &str = "/config";
/// They are fetched again after this time, while clients ask for a leader route. Not a multiple of
/// the usual `loop_wait` of 10 s: a fetch hides a move of `dcs_last_seen` by the HA loop at the
/// same time, and must not hide each.
const REFETCH_MS: u64 = 9_000;
/// The same, after a fetch that failed.
const RETRY_MS: u64 = 5_000;
/// How long fetched intervals are believed.
const BELIEF_MS_MAX: u64 = 30_000;
/// ZooKeeper's default `maxSessionTimeout`: 20 times its `tickTime` of 2 s.
const TTL_SECONDS_MAX: u64 = 40;
/// The smallest `loop_wait` and `retry_timeout`: Patroni raises smaller ones to them (4.1,
/// `config.py`, `_validate_and_adjust_timeouts`).
const LOOP_WAIT_SECONDS_MIN: u64 = 1;
const RETRY_TIMEOUT_SECONDS_MIN: u64 = 3;
/// Patroni gives one read of the DCS at most this many times its `retry_timeout`.
const DCS_READ_RETRIES: u64 = 3;

const _: () = assert!(REFETCH_MS + 2 * RETRY_MS <= BELIEF_MS_MAX, "two retries before disbelief");
const _: () = assert!(TTL_SECONDS_MAX * 1_000 < RELEVANT_MS, "no lease outlives a DCS read");
