//! What a node says of itself, and how long one of its answers may be served from memory.
//!
//! A leader's 200 served too late is lost data: once its lease is over another node is promoted,
//! and the load balancer's check is the only fence. So everything here errs towards "no longer".
//! Nothing is measured here: both clocks come in with each call.
//!
//! What moves `dcs_last_seen` is the HA loop, and whoever has the API read the DCS. Our own reads
//! are known here; those of others, who ask Patroni itself for `/cluster` all the time, are not.

use serde::Deserialize;

use crate::routes::Family;
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// The fields of a node's status that decide anything. Patroni leaves out what does not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeReport {
    /// `running`, `starting`, `stopped`, … (Patroni 4.1, `postgresql/misc.py`).
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before Patroni 4.0), `replica`, `standby_leader`, …
    #[serde(default)]
    pub role: String,
    /// PostgreSQL's timeline, as a primary and most replicas know it.
    pub timeline: Option<u64>,
    /// Unix seconds, rounded down: when the HA loop last read the DCS. Since Patroni 2.1.2.
    pub dcs_last_seen: Option<u64>,
    /// Maintenance mode: nobody is demoted when the lease runs out.
    #[serde(default)]
    pub pause: bool,
    /// Nobody holds the lease.
    #[serde(default)]
    pub cluster_unlocked: bool,
    /// The DCS is away, and the members hold the leader in place among themselves.
    #[serde(default)]
    pub failsafe_mode_is_active: bool,
}

/// Patroni's own intervals in seconds, out of `/config`; what is missing has Patroni's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Intervals {
    /// How long the lease lasts after it was renewed.
    pub ttl: u64,
    /// How often it is renewed.
    pub loop_wait: u64,
    /// How long a read or a write of the DCS may be tried.
    pub retry_timeout: u64,
}

/// Until when an answer may be served from memory, whatever else allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Within the cache's ttl.
    pub fresh_until: Until,
    /// The same, for an answer older than [`ALWAYS_FRESH_MS`].
    pub aging_until: Until,
    /// While Patroni is silent; `None`: not at all.
    pub stale_until: Option<Until>,
}

/// A time by both clocks: over when either of them says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Until {
    time: Time,
    unix_ms: u64,
}

/// What is known of the leader's lease.
#[derive(Debug, Default)]
pub struct Lease {
    /// Patroni's intervals, and when they were read.
    intervals: Option<(Intervals, Time)>,
    /// What followed from others that were in force before, as long as a lease of theirs may last.
    previous_bounds: Option<(LeaseBounds, Time)>,
    /// The last `dcs_last_seen` that was no doing of ours.
    sure_seen: Option<u64>,
    /// The one before it: a leader that went on from there had renewed its lease. `None`: it is
    /// not known, and neither is how long the HA loop may have hung.
    previous_seen: Option<u64>,
    reads: Vec<Read>,
    wall: Wall,
}

/// In seconds after `dcs_last_seen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LeaseBounds {
    /// By then the lease is over, unless it was renewed since.
    ttl: u64,
    /// Until then it surely holds.
    sure: u64,
}

/// A fetch of ours that has Patroni read the DCS outside its HA loop: that moves `dcs_last_seen`
/// and renews nothing.
#[derive(Clone, Copy, Debug)]
struct Read {
    /// The fetch, while it is on its way.
    id: Option<ConnId>,
    begun_unix_ms: u64,
    /// Once it has ended; `u64::MAX`: it was given up, and Patroni has not answered anything since.
    ended_unix_ms: u64,
}

/// Whether the wall clock can be believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wall {
    /// It was not looked at yet.
    #[default]
    Unknown,
    /// It runs as the monotonic clock does, with this difference in milliseconds.
    Steady(i64),
    /// It jumped, and a `dcs_last_seen` may be from before; once it changes it is not.
    Jumped { difference_ms: i64, seen: Option<u64> },
}

impl NodeReport {
    /// `None`: the body is no node's status.
    pub fn from_json(body: &[u8]) -> Option<NodeReport> {
        serde_json::from_slice::<NodeReport>(body).ok().filter(|status| !status.state.is_empty())
    }

    /// Does this, after `former`, make what was said before it untrue?
    pub fn contradicts(&self, former: &NodeReport) -> bool {
        let both = self.timeline.zip(former.timeline);
        self.role != former.role
            || both.is_some_and(|(timeline, before)| timeline != before)
            || (former.is_running() && !self.is_running())
    }

    fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Is the leader's lease what a leader's word rests on?
    pub fn is_under_lease(&self) -> bool {
        self.is_running()
            && !self.pause
            && !self.cluster_unlocked
            && !self.failsafe_mode_is_active
            && self.dcs_last_seen.is_some()
    }
}

impl Intervals {
    /// `None`: the body is no configuration.
    pub fn from_json(body: &[u8]) -> Option<Intervals> {
        let is_object = body.trim_ascii_start().starts_with(b"{");
        serde_json::from_slice(body).ok().filter(|_| is_object)
    }

    /// The HA loop may have hung between the read that `dcs_last_seen` tells of and the renewal
    /// behind it; then the lease is the one of the cycle before. Patroni raises values that are
    /// too small, but `/config` has them as they were written; a `ttl` is not raised here, which
    /// errs to our side.
    fn bounds(self) -> LeaseBounds {
        let loop_wait = self.loop_wait.max(LOOP_WAIT_SECONDS_MIN);
        let retry_timeout = self.retry_timeout.max(RETRY_TIMEOUT_SECONDS_MIN);
        let sure = self.ttl.saturating_sub(loop_wait).saturating_sub(retry_timeout);
        LeaseBounds { ttl: self.ttl, sure }
    }
}

impl LeaseBounds {
    /// What holds whichever of the two is in force.
    fn and(self, other: LeaseBounds) -> LeaseBounds {
        LeaseBounds { ttl: self.ttl.min(other.ttl), sure: self.sure.min(other.sure) }
    }
}

impl Default for Intervals {
    /// Patroni 4.1, `dynamic_loader.py` and `config.py`.
    fn default() -> Self {
        Intervals { ttl: 30, loop_wait: 10, retry_timeout: 10 }
    }
}

impl Until {
    /// Never over.
    pub const NEVER: Until = Until { time: Time::NEVER, unix_ms: u64::MAX };

    /// Has it come?
    pub fn is_over(self, now: Now) -> bool {
        now.time >= self.time || now.unix_ms >= self.unix_ms
    }

    /// So many seconds after the DCS was seen.
    fn after_seen(now: Now, seen: u64, seconds: u64) -> Until {
        let unix_ms = seen.saturating_add(seconds).saturating_mul(1_000);
        Until { time: now.time.plus_ms(unix_ms.saturating_sub(now.unix_ms)), unix_ms }
    }

    /// Over when either of the two is.
    fn sooner(self, other: Until) -> Until {
        Until { time: self.time.min(other.time), unix_ms: self.unix_ms.min(other.unix_ms) }
    }

    /// So long from now, by both clocks.
    pub fn after_ms(now: Now, ms: u64) -> Until {
        Until { time: now.time.plus_ms(ms), unix_ms: now.unix_ms.saturating_add(ms) }
    }
}

impl Validity {
    /// Of an answer that promises nothing about a lease and is never served old.
    pub const FRESH_ONLY: Validity =
        Validity { fresh_until: Until::NEVER, aging_until: Until::NEVER, stale_until: None };
}

impl Lease {
    /// Patroni's intervals were read. True: they have changed, and what was judged by the former
    /// ones may be wrong.
    pub fn set_intervals(&mut self, now: Now, intervals: Intervals) -> bool {
        let former = self.intervals.replace((intervals, now.time)).map(|(former, _)| former);
        let Some(former) = former.filter(|former| *former != intervals) else { return false };
        let before = self.previous_bounds.filter(|(_, until)| now.time < *until);
        let bounds = before.map_or(former.bounds(), |(before, _)| before.and(former.bounds()));
        // the leader renews its lease under the new intervals within the old lease's time
        let until = now.time.plus_ms(former.ttl.saturating_mul(1_000));
        self.previous_bounds = Some((bounds, until));
        true
    }

    /// `None`: the intervals are not known, or not any more.
    fn bounds(&self, now: Now) -> Option<LeaseBounds> {
        let known = self.intervals.filter(|(_, at)| now.time.ms_since(*at) < INTERVALS_MS_MAX);
        let bounds = known?.0.bounds();
        let former = self.previous_bounds.filter(|(_, until)| now.time < *until);
        Some(former.map_or(bounds, |(former, _)| bounds.and(former)))
    }

    /// Looks at the clocks. True: the wall clock jumped, and nothing said before it may be
    /// served old.
    pub fn observe(&mut self, now: Now) -> bool {
        let difference_ms = now.unix_ms as i64 - now.time.as_ms() as i64;
        let former_ms = match &mut self.wall {
            Wall::Unknown => {
                self.wall = Wall::Steady(difference_ms);
                return false;
            }
            Wall::Steady(former_ms) | Wall::Jumped { difference_ms: former_ms, .. } => former_ms,
        };
        let jumped = former_ms.abs_diff(difference_ms) > JUMP_MS_MIN;
        let before_ms = std::mem::replace(former_ms, difference_ms);
        if jumped {
            // what is under way in Patroni still may be told by the new clock, whatever that says
            let before_jump_unix_ms = now.time.as_ms().saturating_add_signed(before_ms);
            for read in self.reads.iter_mut().filter(|read| !read.is_over(before_jump_unix_ms)) {
                (read.begun_unix_ms, read.ended_unix_ms) = (0, u64::MAX);
            }
            self.wall = Wall::Jumped { difference_ms, seen: None };
            (self.sure_seen, self.previous_seen) = (None, None);
        }
        jumped
    }

    /// A fetch that has Patroni read the DCS has begun.
    pub fn read_begun(&mut self, now: Now, id: ConnId) {
        self.reads.retain(|read| {
            read.id.is_some() || now.unix_ms.saturating_sub(read.ended_unix_ms) < READS_MS
        });
        if self.reads.len() >= READS_MAX {
            self.merge_oldest_reads();
        }
        let begun_unix_ms = now.unix_ms;
        self.reads.push(Read { id: Some(id), begun_unix_ms, ended_unix_ms: 0 });
    }

    /// It has ended; for Patroni too, if it is `over`. When we gave up on it, Patroni may not have.
    pub fn read_ended(&mut self, now: Now, id: ConnId, over: bool) {
        for read in self.reads.iter_mut().filter(|read| read.id == Some(id)) {
            read.id = None;
            read.ended_unix_ms = if over { now.unix_ms } else { u64::MAX };
        }
    }

    /// Patroni answers: what we gave up on while it was frozen it carries out soon, or never.
    pub fn answered(&mut self, now: Now) {
        let told = self.intervals.map_or(0, |(intervals, _)| intervals.retry_timeout);
        let retry_timeout = told.max(Intervals::default().retry_timeout);
        let abandoned_ms = retry_timeout.saturating_mul(1_000 * ABANDONED_READ_RETRIES);
        let until_unix_ms = now.unix_ms.saturating_add(abandoned_ms);
        for read in self.reads.iter_mut().filter(|read| read.id.is_none()) {
            if read.ended_unix_ms == u64::MAX {
                read.ended_unix_ms = until_unix_ms;
            }
        }
    }

    /// Makes two in one: what lies between them is taken for theirs, which errs to our side.
    fn merge_oldest_reads(&mut self) {
        let Some(at) = self.reads.iter().position(|read| read.id.is_none()) else { return };
        let oldest = self.reads.remove(at);
        if let Some(next) = self.reads.iter_mut().find(|read| read.id.is_none()) {
            next.begun_unix_ms = next.begun_unix_ms.min(oldest.begun_unix_ms);
            next.ended_unix_ms = next.ended_unix_ms.max(oldest.ended_unix_ms);
        }
    }

    /// Judges an answer at the moment it came. `status`: what the node says of itself in it.
    pub fn judge(
        &mut self,
        now: Now,
        family: Family,
        code: u16,
        status: Option<&NodeReport>,
    ) -> Validity {
        let seen = status.and_then(|status| status.dcs_last_seen);
        let sure = seen.and_then(|seen| self.sure(now, seen));
        if code != 200 {
            return Validity::FRESH_ONLY;
        }
        match family {
            Family::Leader => self.leader_validity(now, status, seen, sure),
            Family::Replica | Family::Health => {
                Validity { stale_until: Some(Until::NEVER), ..Validity::FRESH_ONLY }
            }
            _ => Validity::FRESH_ONLY,
        }
    }

    fn leader_validity(
        &self,
        now: Now,
        status: Option<&NodeReport>,
        seen: Option<u64>,
        sure: Option<u64>,
    ) -> Validity {
        let bounds = self.bounds(now);
        let ttl = bounds.map_or(TTL_SECONDS_MIN, |bounds| bounds.ttl);
        // a node that does not say when it saw the DCS, or that saw it in the future, is
        // believed for as long as an answer is by default
        let unknown = Until::after_ms(now, ALWAYS_FRESH_MS);
        let until = |seen: u64, seconds: u64| Until::after_seen(now, seen, seconds);
        let past = seen.filter(|seen| seen.saturating_mul(1_000) <= now.unix_ms);
        let lease = (sure.zip(self.previous_seen).zip(bounds))
            .filter(|_| past.is_some() && status.is_some_and(NodeReport::is_under_lease));
        Validity {
            fresh_until: past.map_or(unknown, |seen| until(seen, ttl)),
            aging_until: sure.map_or(unknown, |seen| until(seen, ttl)),
            stale_until: lease.map(|((sure, former), bounds)| {
                // a loop that hung before `sure`, and again since, renewed the lease no later
                until(sure, bounds.sure).sooner(until(former, ttl))
            }),
        }
    }

    /// The latest `dcs_last_seen` up to `seen` that the HA loop itself must have set.
    fn sure(&mut self, now: Now, seen: u64) -> Option<u64> {
        if seen.saturating_mul(1_000) > now.unix_ms {
            return None;
        }
        let is_ours = self.reads.iter().any(|read| read.covers(seen));
        if !is_ours {
            let former = self.sure_seen.replace(seen).filter(|former| *former < seen);
            self.previous_seen = former.or(self.previous_seen);
        }
        if let Wall::Jumped { difference_ms, seen: before } = &mut self.wall {
            let moved_on = before.replace(seen).is_some_and(|before| before != seen);
            if !moved_on || is_ours {
                return None;
            }
            // the one before this was told by the former clock
            (self.wall, self.previous_seen) = (Wall::Steady(*difference_ms), None);
        }
        self.sure_seen.filter(|sure| *sure <= seen)
    }
}

impl Read {
    /// Is Patroni surely done with it?
    fn is_over(&self, unix_ms: u64) -> bool {
        self.id.is_none() && self.ended_unix_ms <= unix_ms
    }

    /// Can it have set this `dcs_last_seen`, which is rounded down to a second?
    fn covers(&self, seen: u64) -> bool {
        let ended = if self.id.is_some() { u64::MAX } else { self.ended_unix_ms / 1_000 };
        self.begun_unix_ms / 1_000 <= seen && seen <= ended
    }
}

/// What a leader's 200 is believed for when it says nothing about its lease: the default ttl.
/// Up to this age its own `dcs_last_seen` counts, whoever had it moved; Patroni has only just
/// said that it leads.
pub const ALWAYS_FRESH_MS: u64 = 1_000;
/// The least `ttl` Patroni accepts (4.1, `validator.py`): assumed while it is not known.
const TTL_SECONDS_MIN: u64 = 20;
/// The least `loop_wait` and `retry_timeout`: smaller ones are raised to them (4.1, `config.py`,
/// `_validate_and_adjust_timeouts`).
const LOOP_WAIT_SECONDS_MIN: u64 = 1;
const RETRY_TIMEOUT_SECONDS_MIN: u64 = 3;
/// So long the intervals are believed: they are read again each minute, and tried again when that
/// fails, as long as a leader's route is asked for.
const INTERVALS_MS_MAX: u64 = 75_000;
/// More than this is no slewing of NTP's, nor the scheduler's between the reading of two clocks.
const JUMP_MS_MIN: u64 = 250;
/// Patroni may still be at work on a fetch that we gave up on. It is done with it so many times
/// the `retry_timeout` after its next answer: that is what it gives a read of the DCS at the most.
const ABANDONED_READ_RETRIES: u64 = 3;
/// No lease rests on a `dcs_last_seen` of that long ago (Patroni's `ttl` is rarely over a minute).
const READS_MS: u64 = 300_000;
/// Reads that are remembered one by one.
const READS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon is 100 s old, and it is Unix second 10,000.
    fn now_at(unix_seconds: f64) -> Now {
        let unix_ms = (unix_seconds * 1e3) as u64;
        Now { time: Time::from_ms(unix_ms - 9_900_000), unix_ms }
    }

    fn leader(seen: u64) -> NodeReport {
        NodeReport {
            state: "running".into(),
            role: "primary".into(),
            timeline: Some(2),
            dcs_last_seen: Some(seen),
            ..NodeReport::default()
        }
    }

    /// Of a node whose HA loop was not seen yet.
    fn unseen(intervals: Intervals) -> Lease {
        let mut lease = Lease::default();
        lease.set_intervals(now_at(9_990.0), intervals);
        lease
    }

    fn knowing(intervals: Intervals) -> Lease {
        let mut lease = unseen(intervals);
        lease.judge(now_at(9_990.0), Family::Health, 200, Some(&leader(9_990)));
        lease
    }

    fn known() -> Lease {
        knowing(Intervals::default())
    }

    fn read(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    /// The second at which a leader's answer that came at `now` is served old no more.
    fn stale_until(lease: &mut Lease, now: f64, status: &NodeReport) -> Option<f64> {
        if let Some((intervals, _)) = lease.intervals {
            lease.set_intervals(now_at(now), intervals); // read again, meanwhile
        }
        let validity = lease.judge(now_at(now), Family::Leader, 200, Some(status));
        validity.stale_until.map(|until| {
            let offset_ms = until.unix_ms as i64 - until.time.as_ms() as i64;
            let is_past = until.unix_ms <= now_at(now).unix_ms;
            assert!(is_past || offset_ms == 9_900_000, "both clocks say the same");
            until.unix_ms as f64 / 1e3
        })
    }

    #[test]
    fn a_node_says_what_it_is() {
        let body =
            br#"{"state": "running", "role": "primary", "xlog": {"location": 1}, "timeline": 2,
            "dcs_last_seen": 9999, "pause": true}"#;
        let status = NodeReport { pause: true, ..leader(9_999) };
        assert_eq!(NodeReport::from_json(body), Some(status));
        for body in ["", "[]", "{}", "{\"state\": 1}", "{\"state\": \"running\""] {
            assert_eq!(NodeReport::from_json(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn patronis_intervals_have_patronis_defaults() {
        let table = [
            (r#"{"ttl": 20, "loop_wait": 2, "retry_timeout": 3, "x": {}}"#, Some((20, 2, 3))),
            ("{}", Some((30, 10, 10))),
            (r#"{"ttl": 60}"#, Some((60, 10, 10))),
            (r#"{"ttl": "x"}"#, None),
            ("[20, 2, 3]", None),
            ("", None),
        ];
        for (body, intervals) in table {
            let intervals = intervals.map(|(ttl, loop_wait, retry_timeout)| Intervals {
                ttl,
                loop_wait,
                retry_timeout,
            });
            assert_eq!(Intervals::from_json(body.as_bytes()), intervals, "{body}");
        }
    }

    #[test]
    fn a_leader_is_believed_until_the_lease_is_not_sure() {
        assert_eq!(stale_until(&mut known(), 10_000.5, &leader(9_999)), Some(10_009.0));
        for (loop_wait, retry_timeout) in [(2, 3), (2, 0), (0, 4)] {
            // too small values are raised to 1 and 3
            let mut lease = knowing(Intervals { ttl: 20, loop_wait, retry_timeout });
            stale_until(&mut lease, 9_997.0, &leader(9_997));
            let until = stale_until(&mut lease, 10_000.5, &leader(9_999));
            assert_eq!(until, Some(10_014.0));
        }
    }

    #[test]
    fn and_not_at_all_when_its_word_does_not_rest_on_a_lease() {
        let table = [
            NodeReport { pause: true, ..leader(9_999) },
            NodeReport { cluster_unlocked: true, ..leader(9_999) },
            NodeReport { failsafe_mode_is_active: true, ..leader(9_999) },
            NodeReport { state: "stopping".into(), ..leader(9_999) },
            NodeReport { dcs_last_seen: None, ..leader(9_999) },
            leader(10_001), // the future
        ];
        for status in table {
            assert_eq!(stale_until(&mut known(), 10_000.5, &status), None, "{status:?}");
        }
        let mut unread = Lease::default();
        assert_eq!(stale_until(&mut unread, 10_000.5, &leader(9_999)), None);
        let now = now_at(10_000.5);
        assert_eq!(known().judge(now, Family::Leader, 200, None).stale_until, None);
        assert_eq!(known().judge(now, Family::Leader, 503, Some(&leader(9_999))).stale_until, None);
    }

    #[test]
    fn other_routes_risk_only_errors_and_some_must_never_be_old() {
        for (family, code, may) in [
            (Family::Replica, 200, true),
            (Family::Health, 200, true),
            (Family::Replica, 503, false),
            (Family::Status, 200, false),
            (Family::Liveness, 200, false),
            (Family::Readiness, 200, false),
            (Family::Metrics, 200, false),
            (Family::Topology, 200, false),
        ] {
            let validity = known().judge(now_at(10_000.5), family, code, Some(&leader(9_999)));
            assert_eq!(validity.stale_until.is_some(), may, "{family:?} {code}");
            assert_eq!(validity.fresh_until, Until::NEVER);
        }
    }

    #[test]
    fn from_memory_a_leader_leads_no_longer_than_its_lease_can_last() {
        let validity = known().judge(now_at(10_000.5), Family::Leader, 200, Some(&leader(9_999)));
        assert!(!validity.fresh_until.is_over(now_at(10_028.999)));
        assert!(validity.fresh_until.is_over(now_at(10_029.0)));
        // the least that Patroni accepts, while its own is not known
        let mut unread = Lease::default();
        let validity = unread.judge(now_at(10_000.5), Family::Leader, 200, Some(&leader(9_999)));
        assert!(validity.aging_until.is_over(now_at(10_019.0)));
        // one that saw the DCS in the future says nothing of it
        let validity = known().judge(now_at(10_000.5), Family::Leader, 200, Some(&leader(10_001)));
        assert!(validity.fresh_until.is_over(now_at(10_001.5)));
        // nothing is known at all
        let validity = known().judge(now_at(10_000.5), Family::Leader, 200, None);
        assert!(!validity.fresh_until.is_over(now_at(10_001.4)));
        assert!(validity.fresh_until.is_over(now_at(10_001.5)));
    }

    #[test]
    fn either_clock_ends_it() {
        let until = Until::after_ms(now_at(10_000.0), 1_000);
        let (before, after) = (now_at(10_000.999), now_at(10_001.0));
        assert!(!until.is_over(before) && until.is_over(after));
        assert!(until.is_over(Now { unix_ms: after.unix_ms, ..before }));
        assert!(until.is_over(Now { time: after.time, ..before }));
    }

    #[test]
    fn the_present_second_is_seen_and_the_next_is_not() {
        assert_eq!(stale_until(&mut known(), 10_000.0, &leader(10_000)), Some(10_010.0));
        let mut lease = known();
        assert_eq!(stale_until(&mut lease, 10_000.0, &leader(10_005)), None);
        // nor is it remembered for the time when it is the past
        lease.read_begun(now_at(10_006.0), read(1));
        assert_eq!(stale_until(&mut lease, 10_007.0, &leader(10_006)), None);
    }

    #[test]
    fn what_our_own_reads_moved_is_no_sign_of_renewal() {
        let mut lease = known();
        assert_eq!(stale_until(&mut lease, 9_995.0, &leader(9_994)), Some(10_004.0));
        lease.read_begun(now_at(9_998.2), read(1));
        // while it is on its way, any second from its beginning may be its doing
        assert_eq!(stale_until(&mut lease, 9_999.0, &leader(9_998)), Some(10_004.0));
        lease.read_ended(now_at(9_999.1), read(1), true);
        assert_eq!(stale_until(&mut lease, 10_000.0, &leader(9_999)), Some(10_004.0));
        assert_eq!(stale_until(&mut lease, 10_000.5, &leader(10_000)), Some(10_010.0));
        // a fetch we gave up on may be carried out later
        lease.read_begun(now_at(10_001.0), read(2));
        lease.read_ended(now_at(10_004.0), read(2), false);
        lease.answered(now_at(10_004.0));
        assert_eq!(stale_until(&mut lease, 10_021.0, &leader(10_020)), Some(10_010.0));
        // the cycle before this one may be the one of second 10,000
        assert_eq!(stale_until(&mut lease, 10_036.0, &leader(10_035)), Some(10_030.0));
        // also much later, when it was frozen meanwhile
        lease.read_begun(now_at(10_041.0), read(3));
        lease.read_ended(now_at(10_044.0), read(3), false);
        lease.answered(now_at(10_100.0));
        assert_eq!(stale_until(&mut lease, 10_100.0, &leader(10_100)), Some(10_030.0));
        assert_eq!(stale_until(&mut lease, 10_132.0, &leader(10_131)), Some(10_065.0));
        assert_eq!(stale_until(&mut lease, 10_140.0, &leader(10_140)), Some(10_150.0));
        // nothing before it is known
        let mut lease = unseen(Intervals::default());
        lease.read_begun(now_at(9_998.2), read(1));
        assert_eq!(stale_until(&mut lease, 9_999.0, &leader(9_998)), None);
    }

    #[test]
    fn a_loop_that_hung_has_to_move_on_twice() {
        let mut lease = known();
        assert_eq!(stale_until(&mut lease, 10_020.0, &leader(9_995)), Some(10_005.0));
        // it read the DCS again, and may hang before it renews the lease of second 9,995
        assert_eq!(stale_until(&mut lease, 10_020.0, &leader(10_020)), Some(10_025.0));
        assert_eq!(stale_until(&mut lease, 10_022.0, &leader(10_020)), Some(10_025.0));
        // an answer that was overtaken is no way round that
        assert_eq!(stale_until(&mut lease, 10_022.0, &leader(9_995)), Some(10_005.0));
        assert_eq!(stale_until(&mut lease, 10_022.0, &leader(10_020)), Some(10_025.0));
        assert_eq!(stale_until(&mut lease, 10_030.0, &leader(10_030)), Some(10_040.0));
        // nothing is known of the cycle before when only what we moved ourselves was seen
        let mut ours = unseen(Intervals::default());
        ours.read_begun(now_at(10_000.0), read(1));
        ours.read_ended(now_at(10_000.1), read(1), true);
        assert_eq!(stale_until(&mut ours, 10_029.0, &leader(10_000)), None);
        assert_eq!(stale_until(&mut ours, 10_030.0, &leader(10_030)), None);
        assert_eq!(stale_until(&mut ours, 10_040.0, &leader(10_040)), Some(10_050.0));
        // nor when it is seen for the first time
        let mut first = unseen(Intervals::default());
        assert_eq!(stale_until(&mut first, 10_000.0, &leader(9_999)), None);
        assert_eq!(stale_until(&mut first, 10_001.0, &leader(9_999)), None);
        assert_eq!(stale_until(&mut first, 10_010.0, &leader(10_009)), Some(10_019.0));
        // nor is a clock that was set, nor a node that talks nonsense
        lease.observe(now_at(10_031.0));
        let now = now_at(10_061.0);
        lease.observe(Now { time: now_at(10_032.0).time, ..now });
        assert_eq!(stale_until(&mut lease, 10_061.0, &leader(10_030)), None);
        assert_eq!(stale_until(&mut lease, 10_061.0, &leader(10_061)), None);
        let nonsense = lease.judge(now, Family::Leader, 200, Some(&leader(u64::MAX)));
        assert_eq!(nonsense.stale_until, None);
    }

    #[test]
    fn intervals_are_believed_for_a_minute_and_others_only_when_the_lease_has_them() {
        let until = |lease: &mut Lease, now: f64, seen: u64| {
            let validity = lease.judge(now_at(now), Family::Leader, 200, Some(&leader(seen)));
            (
                validity.stale_until.map(|old| old.unix_ms / 1_000),
                validity.fresh_until.unix_ms / 1_000,
            )
        };
        let intervals = |ttl, loop_wait| Intervals { ttl, loop_wait, retry_timeout: 10 };
        let mut lease = knowing(intervals(60, 10));
        until(&mut lease, 10_050.0, 10_050);
        assert_eq!(until(&mut lease, 10_064.9, 10_060), (Some(10_100), 10_120));
        assert_eq!(until(&mut lease, 10_065.0, 10_060), (None, 10_080), "read 75 s ago");
        assert!(!lease.set_intervals(now_at(10_070.0), intervals(60, 10)), "no other ones");
        assert_eq!(until(&mut lease, 10_071.0, 10_070), (Some(10_110), 10_130));
        assert!(lease.set_intervals(now_at(10_080.0), intervals(120, 10)));
        assert_eq!(until(&mut lease, 10_090.0, 10_085), (Some(10_125), 10_145), "not yet");
        assert!(lease.set_intervals(now_at(10_100.0), intervals(120, 70)));
        assert_eq!(until(&mut lease, 10_110.0, 10_105), (Some(10_145), 10_165), "shorter now");
        lease.set_intervals(now_at(10_170.0), intervals(120, 70));
        until(&mut lease, 10_214.0, 10_213); // the HA loop is not hanging
        assert_eq!(until(&mut lease, 10_219.9, 10_215), (Some(10_255), 10_275), "the first's");
        assert_eq!(until(&mut lease, 10_220.0, 10_216), (Some(10_256), 10_336));
        // the first's time is over when the third come, to the second
        let mut lease = unseen(intervals(20, 10));
        lease.set_intervals(now_at(10_000.0), intervals(60, 10));
        lease.set_intervals(now_at(10_020.0), intervals(90, 10));
        assert_eq!(lease.bounds(now_at(10_021.0)), Some(intervals(60, 10).bounds()));
    }

    #[test]
    fn many_reads_are_remembered_as_fewer_longer_ones() {
        let mut lease = known();
        for second in 0..200 {
            lease.read_begun(now_at(10_000.0 + f64::from(second)), read(second));
            lease.read_ended(now_at(10_000.1 + f64::from(second)), read(second), true);
        }
        assert!(lease.reads.len() <= READS_MAX);
        for second in [10_000, 10_050, 10_136, 10_150, 10_199] {
            assert!(lease.reads.iter().any(|read| read.covers(second)), "{second}");
        }
        assert!(!lease.reads.iter().any(|read| read.covers(10_200)));
        // and forgotten in the end
        let much_later = now_at(10_199.1 + READS_MS as f64 / 1e3);
        lease.read_begun(much_later, read(200));
        assert_eq!(lease.reads.len(), 1);
    }

    #[test]
    fn a_clock_that_jumped_is_not_believed_until_patroni_has_moved_on_twice() {
        let mut lease = known();
        let jumped = |seconds: f64, by_ms: i64| {
            let now = now_at(seconds);
            Now { unix_ms: (now.unix_ms as i64 + by_ms) as u64, ..now }
        };
        assert!(!lease.observe(now_at(10_000.0)));
        assert!(!lease.observe(jumped(10_001.0, JUMP_MS_MIN as i64)), "slewing");
        for by_ms in [-5_000, 5_000] {
            let mut lease = known();
            lease.observe(now_at(10_000.0));
            assert!(lease.observe(jumped(10_001.0, by_ms)));
            assert!(!lease.observe(jumped(10_002.0, by_ms)), "only once");
            let seen = (jumped(10_002.0, by_ms).unix_ms / 1_000) - 3;
            let mut judge = |seconds: f64, seen: u64| {
                let now = jumped(seconds, by_ms);
                let validity = lease.judge(now, Family::Leader, 200, Some(&leader(seen)));
                validity.stale_until.map(|until| until.unix_ms / 1_000)
            };
            assert_eq!(judge(10_002.0, seen), None);
            assert_eq!(judge(10_003.0, seen), None);
            // the lease may rest on a second of the former clock's
            assert_eq!(judge(10_008.0, seen + 4), None);
            assert_eq!(judge(10_009.0, seen + 4), None);
            assert_eq!(judge(10_010.0, seen + 10), Some(seen + 20));
        }
    }

    #[test]
    fn what_contradicts() {
        let former = leader(9_999);
        let table = [
            (leader(10_005), false),
            (NodeReport { timeline: None, ..leader(1) }, false),
            (NodeReport { timeline: Some(3), ..leader(1) }, true),
            (NodeReport { role: "replica".into(), ..leader(1) }, true),
            (NodeReport { state: "stopping".into(), ..leader(1) }, true),
        ];
        for (status, contradicts) in table {
            assert_eq!(status.contradicts(&former), contradicts, "{status:?}");
        }
        let starting = NodeReport { state: "starting".into(), ..leader(1) };
        assert!(!former.contradicts(&starting), "what was not running was not promised");
    }
}
