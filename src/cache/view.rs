//! What the status shows of the entries, and the check of their invariants. Changes nothing.

use super::{ADMITTED_KEPT, Cache, Entry, EntryId};
use crate::node::lease::Until;
use crate::routes::{LeaderRoutes, Route, plain_routes};
use crate::time::Now;

/// What the status shows of an entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryView<'a> {
    /// The entry.
    pub id: EntryId,
    /// What Patroni is asked.
    pub target: &'a str,
    /// Its route.
    pub route: Route,
    /// The status that a client got last.
    pub status: Option<u16>,
    /// The age of the answer in memory.
    pub age_ms: Option<u64>,
    /// What a client would get now, if Patroni stays silent.
    pub served: Served,
    /// Requests per second in the last ten seconds.
    pub per_second: f64,
    /// Clients that wait.
    pub waiters: usize,
}

/// What is in memory for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// A fresh answer.
    Fresh,
    /// An answer that may be served stale.
    Stale,
    /// The 503 of a failed fetch.
    Failing,
    /// Nothing yet: the fetch has not ended.
    Fetching,
    /// Nothing: the next client waits for a fetch.
    Expired,
}

impl Cache {
    /// The entries that a client asked for within the last minute.
    pub fn views(&self, now: Now) -> impl Iterator<Item = EntryView<'_>> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(move |(_, entry)| {
                entry.wanted_at.is_some_and(|at| now.time.ms_since(at) < SHOWN_MS)
            })
            .map(move |(index, entry)| self.view(now, EntryId(index), entry))
    }

    fn view<'a>(&'a self, now: Now, id: EntryId, entry: &'a Entry) -> EntryView<'a> {
        let served = match (&entry.failure, &entry.fetch) {
            _ if entry.is_fresh(now, self.ttl_ms(now.time)) => Served::Fresh,
            _ if self.may_serve_stale(now, id) => Served::Stale,
            (Some(_), _) => Served::Failing,
            (None, Some(_)) => Served::Fetching,
            (None, None) => Served::Expired,
        };
        let asked_at = entry.answer.as_ref().map(|(rendered, _)| rendered.answer().asked_at);
        EntryView {
            id,
            target: &entry.target,
            route: entry.route,
            status: Some(entry.served_status).filter(|status| *status > 0),
            age_ms: asked_at.map(|asked_at| now.time.ms_since(asked_at)),
            served,
            per_second: entry.rate.per_second(now.time),
            waiters: entry.fetch.as_ref().map_or(0, |fetch| fetch.waiters.len()),
        }
    }

    /// The latest time until which a leader's 200 in memory may be served stale, if one may.
    pub fn leader_stale_until(&self, now: Now) -> Option<Until> {
        let entries = self.entries.iter().enumerate();
        let leaders = entries.filter(|(index, entry)| {
            entry.route.leader_routes().is_some() && self.may_serve_stale(now, EntryId(*index))
        });
        let ends = leaders.filter_map(|(_, entry)| {
            let (rendered, validity) = entry.answer.as_ref()?;
            let stale_ms = self.settings.ttl_ms + self.settings.grace_ms;
            let left_ms = stale_ms.saturating_sub(now.time.ms_since(rendered.answer().asked_at));
            Some(validity.stale_until?.sooner(Until::after_ms(now, left_ms)))
        });
        ends.max_by_key(|until| until.left_ms(now))
    }

    /// Whether there is a leader's 200 in memory, and whether the DCS can confirm one.
    pub fn leaders_in_memory(&self) -> (bool, bool) {
        let entries = self.entries.iter().enumerate();
        let leaders = entries.filter(|(_, entry)| entry.has_leaders_200(LeaderRoutes::Any));
        leaders.fold((false, false), |(_, is_witnessed), (index, _)| {
            (true, is_witnessed || self.is_witnessed(EntryId(index)))
        })
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.entries.len() - self.unused.len()
    }

    /// How many clients wait, in all entries together.
    pub fn waiters(&self) -> usize {
        let fetching = self.entries.iter().filter_map(|entry| entry.fetch.as_ref());
        fetching.map(|fetch| fetch.waiters.len()).sum()
    }

    /// Panics if an entry is in an impossible state. `fetches`: the entries of all fetches that are
    /// queued or in flight.
    pub fn check_invariants(&self, fetches: &[EntryId]) {
        for (index, entry) in self.entries.iter().enumerate() {
            let of_entry = fetches.iter().filter(|id| id.0 == index).count();
            assert_eq!(of_entry, usize::from(entry.fetch.is_some()), "{}: fetches", entry.target);
        }
        let variants = self.entries.len() - self.unused.len() - plain_routes().count();
        assert_eq!(variants, self.variants.len(), "variants");
        for (target, id) in &self.variants {
            let entry = &self.entries[id.0];
            assert!(entry.target == *target && entry.route.has_parameters, "{target}");
        }
        assert!(self.admitted.len() <= self.settings.variants_max.max(ADMITTED_KEPT), "admitted");
    }
}

impl Served {
    /// Its name in the status.
    pub fn name(self) -> &'static str {
        match self {
            Served::Fresh => "fresh",
            Served::Stale => "stale",
            Served::Failing => "failing",
            Served::Fetching => "fetching",
            Served::Expired => "expired",
        }
    }
}

/// How long after a request the entry is shown.
const SHOWN_MS: u64 = 60_000;
