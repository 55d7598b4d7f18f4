//! Which moves of `dcs_last_seen` we may have caused: a request for `/cluster`, `/history` or
//! `/config` makes Patroni read the DCS, which moves `dcs_last_seen` and renews nothing.

use crate::slots::ConnId;
use crate::time::{Now, Time};

/// The DCS reads that we caused, as far as they can still matter.
#[derive(Debug, Default)]
pub struct DcsReads {
    reads: Vec<DcsRead>,
    /// The `dcs_last_seen` of the last answer.
    last_seen: Option<u64>,
    /// The last one that moved while `unseen_since` was set: it stays our doing in every answer.
    moved_unseen: Option<u64>,
    /// Until an answer that was asked for at or after this time: a `dcs_last_seen` that is first
    /// seen to move may be our doing. Its second does not tell: Patroni's clock may not be ours.
    unseen_since: Option<Time>,
}

/// One of these reads; its times are Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DcsRead {
    /// The fetch is in flight.
    InFlight {
        id: ConnId,
        begun_unix_ms: u64,
        /// [`DcsReads::unseen_since`] before it began.
        unseen_before: Option<Time>,
    },
    /// The fetch was given up, and Patroni has not answered anything since: Patroni may still be
    /// working on it.
    Abandoned { begun_unix_ms: u64 },
    /// Patroni is done with it by `ended_unix_ms`, which may lie in the future.
    Done { begun_unix_ms: u64, ended_unix_ms: u64 },
}

impl DcsReads {
    /// A fetch that makes Patroni read the DCS begins.
    pub fn begin(&mut self, now: Now, id: ConnId) {
        let unseen_before = self.unseen_since.replace(Time::NEVER);
        self.reads.retain(|read| !read.is_irrelevant(now.unix_ms));
        if self.reads.len() >= READS_MAX {
            self.merge_oldest();
        }
        self.reads.push(DcsRead::InFlight { id, begun_unix_ms: now.unix_ms, unseen_before });
    }

    /// The fetch has ended, and Patroni has certainly not seen it.
    pub fn cancel(&mut self, now: Now, id: ConnId) {
        let is_it =
            |read: &DcsRead| matches!(read, DcsRead::InFlight { id: its, .. } if *its == id);
        let Some(at) = self.reads.iter().position(is_it) else { return };
        let DcsRead::InFlight { unseen_before, .. } = self.reads.remove(at) else { return };
        if self.all_done(now) {
            self.unseen_since = unseen_before;
        }
    }

    /// The fetch has ended. `done`: Patroni is done with it as well; otherwise it was given up.
    pub fn end(&mut self, now: Now, id: ConnId, done: bool) {
        for read in &mut self.reads {
            match *read {
                DcsRead::InFlight { id: its, begun_unix_ms, .. } if its == id => {
                    *read = match done {
                        true => DcsRead::Done { begun_unix_ms, ended_unix_ms: now.unix_ms },
                        false => DcsRead::Abandoned { begun_unix_ms },
                    }
                }
                _ => {}
            }
        }
        self.settle(now);
    }

    /// Patroni answers again: it carries out abandoned reads within `dcs_read_ms_max`, or never.
    pub fn patroni_answered(&mut self, now: Now, dcs_read_ms_max: u64) {
        let ended_unix_ms = now.unix_ms.saturating_add(dcs_read_ms_max);
        for read in &mut self.reads {
            if let DcsRead::Abandoned { begun_unix_ms } = *read {
                *read = DcsRead::Done { begun_unix_ms, ended_unix_ms };
            }
        }
        self.settle(now);
    }

    /// The wall clock jumped from `before_unix_ms`: reads that may still run in Patroni may report
    /// any time of the new clock.
    pub fn clock_jumped(&mut self, before_unix_ms: u64) {
        for read in &mut self.reads {
            *read = match *read {
                DcsRead::InFlight { id, unseen_before, .. } => {
                    DcsRead::InFlight { id, begun_unix_ms: 0, unseen_before }
                }
                DcsRead::Done { ended_unix_ms, .. } if ended_unix_ms <= before_unix_ms => continue,
                _ => DcsRead::Abandoned { begun_unix_ms: 0 },
            };
        }
    }

    /// An answer that was asked for at `asked_at` reports this `dcs_last_seen`. Returns whether one
    /// of the reads may have set it.
    pub fn learn_dcs_last_seen(&mut self, now: Now, asked_at: Time, seen: u64) -> bool {
        self.settle(now);
        let moved = self.last_seen.replace(seen).is_some_and(|last| last != seen);
        if moved && self.unseen_since.is_some() {
            self.moved_unseen = Some(seen);
        }
        if self.unseen_since.is_some_and(|since| asked_at >= since) {
            self.unseen_since = None;
        }
        self.moved_unseen == Some(seen) || self.cover(seen)
    }

    /// Whether one of the reads may have set this `dcs_last_seen`, by the seconds of our clock.
    pub fn cover(&self, seen: u64) -> bool {
        self.reads.iter().any(|read| read.covers(seen))
    }

    /// Once every read has ended, the next answer that is asked for shows what they moved.
    fn settle(&mut self, now: Now) {
        if self.all_done(now) && self.unseen_since == Some(Time::NEVER) {
            self.unseen_since = Some(now.time);
        }
    }

    fn all_done(&self, now: Now) -> bool {
        self.reads.iter().all(|read| read.ended_unix_ms() <= now.unix_ms)
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.reads.len()
    }

    /// Merges the two oldest reads that are not in flight into one. The time between them counts as
    /// theirs, which errs to the safe side.
    fn merge_oldest(&mut self) {
        let Some(at) = self.reads.iter().position(|read| !read.is_in_flight()) else { return };
        let oldest = self.reads.remove(at);
        if let Some(next) = self.reads.iter_mut().find(|read| !read.is_in_flight()) {
            let begun_unix_ms = oldest.begun_unix_ms().min(next.begun_unix_ms());
            *next = match oldest.ended_unix_ms().max(next.ended_unix_ms()) {
                u64::MAX => DcsRead::Abandoned { begun_unix_ms },
                ended_unix_ms => DcsRead::Done { begun_unix_ms, ended_unix_ms },
            };
        }
    }
}

impl DcsRead {
    fn is_in_flight(self) -> bool {
        matches!(self, DcsRead::InFlight { .. })
    }

    fn begun_unix_ms(self) -> u64 {
        match self {
            DcsRead::InFlight { begun_unix_ms, .. }
            | DcsRead::Abandoned { begun_unix_ms }
            | DcsRead::Done { begun_unix_ms, .. } => begun_unix_ms,
        }
    }

    /// `u64::MAX`: not known yet.
    fn ended_unix_ms(self) -> u64 {
        match self {
            DcsRead::InFlight { .. } | DcsRead::Abandoned { .. } => u64::MAX,
            DcsRead::Done { ended_unix_ms, .. } => ended_unix_ms,
        }
    }

    fn covers(self, seen: u64) -> bool {
        self.begun_unix_ms() / 1_000 <= seen && seen <= self.ended_unix_ms() / 1_000
    }

    fn is_irrelevant(self, unix_ms: u64) -> bool {
        let ended = self.ended_unix_ms();
        ended != u64::MAX && unix_ms.saturating_sub(ended) >= RELEVANT_MS
    }
}

/// No lease rests on a `dcs_last_seen` of that long ago: intervals.rs asserts it.
pub(super) const RELEVANT_MS: u64 = 300_000;
/// More reads than these are merged.
pub(super) const READS_MAX: usize = 64;
