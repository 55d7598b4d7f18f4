//! Answers under their targets, and who waits for them. Pure data; touches no connection.
//!
//! Routes without parameters have their places for good; targets with parameters share a limited
//! number, and the one that was asked for the longest time ago leaves first.

use std::collections::BTreeMap;

use crate::answer::{Answer, Rendered};
use crate::routes::{Route, plain_routes};
use crate::slots::ConnId;
use crate::wheel::Time;

/// An entry's place. Valid as long as the entry is being fetched or failing; else only until
/// the next [`Cache::find`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(usize);

/// What may be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds an answer is served, counted from before Patroni was asked.
    pub ttl_ms: u64,
    /// Most targets with parameters.
    pub variants_max: usize,
}

/// The answers.
#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    /// The routes without parameters first, in the table's order; behind them the variants.
    entries: Vec<Entry>,
    /// Targets with parameters.
    variants: BTreeMap<Box<str>, EntryId>,
    /// Places of variants that left.
    unused: Vec<EntryId>,
}

/// One target's answer and its fetch, each of which may be there or not.
#[derive(Debug)]
pub struct Entry {
    /// What Patroni is asked.
    target: Box<str>,
    route: Route,
    known: Known,
    /// A fetch is on its way, for these.
    fetch: Option<Vec<ConnId>>,
    /// When a client asked last.
    wanted_at: Time,
}

/// What is known about a target.
#[derive(Debug)]
enum Known {
    Nothing,
    /// Patroni's last answer.
    Answer(Rendered),
    /// The last fetch failed. Served until the next fetch has ended, which begins by `retry_at`
    /// if somebody still asks; otherwise this is forgotten then.
    Failure {
        rendered: Rendered,
        retry_at: Time,
    },
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Serve what is in memory.
    Fresh,
    /// Serve the last failure, which is in memory.
    Failing,
    /// Wait for the fetch that is on its way.
    Fetching,
    /// Begin a fetch, and wait for it: nothing is in memory, or too old.
    Absent,
}

/// What to do about a failing entry when its retry is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Somebody asks: begin a fetch.
    Fetch,
    /// Not yet: look again then.
    Later(Time),
    /// Nobody asks, or it does not fail any more.
    Forgotten,
}

impl Cache {
    /// A cache without answers.
    pub fn new(limits: Limits) -> Self {
        let entries = plain_routes().map(|route| Entry::new(route, route.path())).collect();
        Cache { limits, entries, variants: BTreeMap::new(), unused: Vec::new() }
    }

    /// Other limits from now on. Variants over the new limit leave as they expire.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The place of `target`; `None`: all places for targets with parameters are being fetched.
    pub fn find(&mut self, route: Route, target: &str) -> Option<EntryId> {
        if !route.has_parameters {
            return Some(EntryId(route.index));
        }
        if let Some(id) = self.variants.get(target) {
            return Some(*id);
        }
        if self.variants.len() >= self.limits.variants_max {
            let least = self.least_recently_wanted()?;
            self.remove_variant(least);
        }
        let entry = Entry::new(route, target);
        let id = match self.unused.pop() {
            Some(id) => {
                self.entries[id.0] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                EntryId(self.entries.len() - 1)
            }
        };
        self.variants.insert(target.into(), id);
        Some(id)
    }

    /// What to do with a client's request for an entry.
    pub fn lookup(&mut self, now: Time, id: EntryId) -> Lookup {
        let ttl_ms = self.limits.ttl_ms;
        let entry = &mut self.entries[id.0];
        entry.wanted_at = now;
        match (&entry.known, &entry.fetch) {
            (Known::Answer(rendered), _) if rendered.answer().is_fresh(now, ttl_ms) => {
                Lookup::Fresh
            }
            (Known::Failure { .. }, _) => Lookup::Failing,
            (_, Some(_)) => Lookup::Fetching,
            (_, None) => Lookup::Absent,
        }
    }

    /// A fetch for the entry begins.
    pub fn begin(&mut self, id: EntryId) {
        let former = self.entries[id.0].fetch.replace(Vec::new());
        assert!(former.is_none(), "one fetch per entry");
    }

    /// `waiter` is told when the entry's fetch has ended.
    pub fn wait(&mut self, id: EntryId, waiter: ConnId) {
        let fetch = self.entries[id.0].fetch.as_mut();
        fetch.expect("a fetch is on its way").push(waiter);
    }

    /// The entry's fetch brought `answer`. Who waited for it is returned.
    pub fn fill(&mut self, id: EntryId, answer: Answer) -> Vec<ConnId> {
        let entry = &mut self.entries[id.0];
        entry.known = Known::Answer(Rendered::new(answer));
        entry.fetch.take().expect("it was being fetched")
    }

    /// The entry's fetch failed; `answer` says so. Who waited for it is returned.
    pub fn fail(&mut self, id: EntryId, answer: Answer) -> Vec<ConnId> {
        let retry_ms = self.limits.ttl_ms.clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        let entry = &mut self.entries[id.0];
        let retry_at = answer.asked_at.plus_ms(retry_ms);
        entry.known = Known::Failure { rendered: Rendered::new(answer), retry_at };
        entry.fetch.take().expect("it was being fetched")
    }

    /// Looks whether a failing entry is to be fetched again.
    pub fn retry(&mut self, now: Time, id: EntryId) -> Retry {
        let Some(entry) = self.entries.get_mut(id.0) else { return Retry::Forgotten };
        let Known::Failure { retry_at, .. } = entry.known else { return Retry::Forgotten };
        if entry.fetch.is_some() {
            return Retry::Forgotten; // its end decides
        }
        if now < retry_at {
            return Retry::Later(retry_at);
        }
        if now.ms_since(entry.wanted_at) <= WANTED_MS {
            return Retry::Fetch;
        }
        entry.known = Known::Nothing;
        self.drop_if_empty(id);
        Retry::Forgotten
    }

    /// Frees the memory of what is too old to be served; how many answers are left.
    pub fn sweep(&mut self, now: Time) -> usize {
        let mut left = 0;
        for index in 0..self.entries.len() {
            let entry = &mut self.entries[index];
            if let Known::Answer(rendered) = &entry.known {
                if rendered.answer().is_fresh(now, self.limits.ttl_ms) {
                    left += 1;
                } else {
                    entry.known = Known::Nothing;
                }
            }
            self.drop_if_empty(EntryId(index));
        }
        left
    }

    /// The answer in memory, Patroni's or the 503 for its absence.
    pub fn rendered(&mut self, id: EntryId) -> Option<&mut Rendered> {
        match &mut self.entries[id.0].known {
            Known::Nothing => None,
            Known::Answer(rendered) | Known::Failure { rendered, .. } => Some(rendered),
        }
    }

    /// What Patroni is asked for this entry.
    pub fn target(&self, id: EntryId) -> &str {
        &self.entries[id.0].target
    }

    /// The route of this entry.
    pub fn route(&self, id: EntryId) -> Route {
        self.entries[id.0].route
    }

    /// How many places there are at the moment.
    pub fn len(&self) -> usize {
        self.entries.len() - self.unused.len()
    }

    /// Never: routes without parameters have their places for good.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many clients wait, in all entries together.
    pub fn waiters(&self) -> usize {
        self.entries.iter().filter_map(|entry| entry.fetch.as_ref()).map(Vec::len).sum()
    }

    /// The variant that may leave and was asked for the longest time ago. A walk over all of
    /// them: only new parameters beyond the limit cost it.
    fn least_recently_wanted(&self) -> Option<EntryId> {
        let idle = self.variants.values().filter(|id| self.entries[id.0].fetch.is_none());
        idle.min_by_key(|id| self.entries[id.0].wanted_at).copied()
    }

    /// A variant of which nothing is known and that nobody waits for gives its place back.
    fn drop_if_empty(&mut self, id: EntryId) {
        let entry = &self.entries[id.0];
        let empty = matches!(entry.known, Known::Nothing) && entry.fetch.is_none();
        if empty && entry.route.has_parameters && self.variants.contains_key(&entry.target) {
            self.remove_variant(id);
        }
    }

    fn remove_variant(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.0];
        debug_assert!(entry.fetch.is_none() && entry.route.has_parameters);
        entry.known = Known::Nothing;
        self.variants.remove(&std::mem::take(&mut entry.target));
        self.unused.push(id);
    }
}

impl Answer {
    /// May it be served from memory? Its age is below the ttl, not equal: both times are rounded
    /// down, so that a millisecond is the error they may have together.
    fn is_fresh(&self, now: Time, ttl_ms: u64) -> bool {
        now.ms_since(self.asked_at) < ttl_ms
    }
}

impl Entry {
    fn new(route: Route, target: &str) -> Self {
        Entry {
            target: target.into(),
            route,
            known: Known::Nothing,
            fetch: None,
            wanted_at: Time::ZERO,
        }
    }
}

/// A failed fetch is tried again after the ttl, but within this range: "at the least every
/// second", and with `ttl: 0` not as fast as the loop can turn.
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 1_000;
/// For so long after a request a failing target counts as asked for: longer than the usual
/// `inter` of a load balancer, so that its checks never wait for a frozen Patroni twice.
const WANTED_MS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::resolve;

    const LIMITS: Limits = Limits { ttl_ms: 1_000, variants_max: 2 };

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    fn answer(asked_ms: u64) -> Answer {
        Answer { status: 200, content_type: None, body: [].into(), asked_at: at(asked_ms) }
    }

    fn waiter(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    fn find(cache: &mut Cache, target: &str) -> Option<EntryId> {
        let mut canonical = String::new();
        let route = resolve(target, &mut canonical).expect(target);
        cache.find(route, &canonical)
    }

    fn fetched(cache: &mut Cache, target: &str, now_ms: u64) -> EntryId {
        let id = find(cache, target).expect(target);
        assert_eq!(cache.lookup(at(now_ms), id), Lookup::Absent);
        cache.begin(id);
        cache.fill(id, answer(now_ms));
        id
    }

    #[test]
    fn one_fetch_whoever_asks_and_everybody_is_told() {
        let mut cache = Cache::new(LIMITS);
        let id = find(&mut cache, "/primary").expect("a place");
        assert_eq!(cache.lookup(at(0), id), Lookup::Absent);
        cache.begin(id);
        cache.wait(id, waiter(1));
        assert_eq!(cache.lookup(at(5), id), Lookup::Fetching);
        cache.wait(id, waiter(2));
        assert_eq!(cache.waiters(), 2);
        assert_eq!(cache.fill(id, answer(0)), [waiter(1), waiter(2)]);
        assert_eq!(cache.lookup(at(999), id), Lookup::Fresh);
        assert_eq!(cache.lookup(at(1_000), id), Lookup::Absent);
    }

    #[test]
    fn a_failure_is_served_while_it_is_retried_and_forgotten_when_nobody_asks() {
        let mut cache = Cache::new(LIMITS);
        let id = find(&mut cache, "/primary").expect("a place");
        assert_eq!(cache.lookup(at(0), id), Lookup::Absent);
        cache.begin(id);
        cache.fail(id, answer(0));
        assert_eq!(cache.lookup(at(900), id), Lookup::Failing);
        assert_eq!(cache.retry(at(999), id), Retry::Later(at(1_000)));
        assert_eq!(cache.retry(at(1_000), id), Retry::Fetch);
        cache.begin(id);
        assert_eq!(cache.lookup(at(2_500), id), Lookup::Failing);
        assert_eq!(cache.retry(at(2_500), id), Retry::Forgotten);
        cache.fail(id, answer(1_000));
        assert_eq!(cache.retry(at(12_500), id), Retry::Fetch);
        assert_eq!(cache.retry(at(12_501), id), Retry::Forgotten);
        assert_eq!(cache.lookup(at(12_502), id), Lookup::Absent);
    }

    #[test]
    fn with_a_ttl_of_nothing_nothing_is_served_twice() {
        let mut cache = Cache::new(Limits { ttl_ms: 0, ..LIMITS });
        let id = fetched(&mut cache, "/primary", 5);
        assert_eq!(cache.lookup(at(5), id), Lookup::Absent);
        cache.begin(id);
        cache.fail(id, answer(5));
        assert_eq!(cache.retry(at(5), id), Retry::Later(at(5 + RETRY_MS_MIN)));
    }

    #[test]
    fn the_least_recently_asked_variant_leaves_first() {
        let mut cache = Cache::new(LIMITS);
        let plain = fetched(&mut cache, "/replica", 0);
        let first = fetched(&mut cache, "/replica?lag=1", 1);
        fetched(&mut cache, "/replica?lag=2", 2);
        assert_eq!(cache.lookup(at(3), first), Lookup::Fresh);
        fetched(&mut cache, "/replica?lag=3", 4);
        assert_eq!(find(&mut cache, "/replica?lag=1"), Some(first));
        assert_eq!(cache.lookup(at(5), first), Lookup::Fresh);
        fetched(&mut cache, "/replica?lag=2", 6); // it had left, and 3 leaves for it
        assert_eq!(cache.lookup(at(7), plain), Lookup::Fresh);
        assert_eq!(cache.len(), crate::routes::ROUTES.len() + 2);
    }

    #[test]
    fn what_is_being_fetched_cannot_leave() {
        let mut cache = Cache::new(LIMITS);
        for target in ["/replica?lag=1", "/replica?lag=2"] {
            let id = find(&mut cache, target).expect(target);
            cache.begin(id);
        }
        assert_eq!(find(&mut cache, "/replica?lag=3"), None);
        assert!(find(&mut cache, "/replica?lag=1").is_some());
        assert!(find(&mut cache, "/replica").is_some());
    }

    #[test]
    fn a_sweep_frees_what_has_expired() {
        let mut cache = Cache::new(LIMITS);
        let plain = fetched(&mut cache, "/primary", 0);
        fetched(&mut cache, "/replica?lag=1", 500);
        assert_eq!(cache.sweep(at(999)), 2);
        assert_eq!(cache.sweep(at(1_000)), 1);
        assert!(cache.rendered(plain).is_none());
        assert_eq!(cache.sweep(at(1_500)), 0);
        assert_eq!(cache.len(), crate::routes::ROUTES.len());
        fetched(&mut cache, "/replica?lag=2", 1_600);
    }
}
