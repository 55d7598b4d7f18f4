//! Answers under their targets, and who waits for them. Pure data; touches no connection.
//!
//! Routes without parameters have their places for good; targets with parameters share a limited
//! number, and the one that was asked for the longest time ago leaves first.

use std::collections::BTreeMap;

use crate::answer::{Answer, Rendered};
use crate::node::Distrust;
use crate::node::lease::{ALWAYS_FRESH_MS, Validity};
use crate::routes::{Family, Route, plain_routes};
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// An entry's place. Valid as long as the entry is being fetched, else until the next
/// [`Cache::find`]: a timer that holds one may find another entry there, so it looks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(usize);

/// What may be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Milliseconds an answer is served, counted from before Patroni was asked.
    pub ttl_ms: u64,
    /// Milliseconds more that an old answer may be served while Patroni is silent.
    pub grace_ms: u64,
    /// Most targets with parameters.
    pub variants_max: usize,
}

/// The answers.
#[derive(Debug)]
pub struct Cache {
    settings: CacheSettings,
    /// The routes without parameters first, in the table's order; behind them the variants.
    entries: Vec<Entry>,
    /// Targets with parameters.
    variants: BTreeMap<Box<str>, EntryId>,
    /// Places of variants that left.
    unused: Vec<EntryId>,
    /// What Patroni was asked before this is never served old: it was gone since, or the clock
    /// jumped.
    stale_since: Time,
}

/// One target: Patroni's last answer, the failure after it, the fetch on its way; each may be
/// there or not.
#[derive(Debug)]
struct Entry {
    /// What Patroni is asked.
    target: Box<str>,
    route: Route,
    answer: Option<(Rendered, Validity)>,
    failure: Option<Failing>,
    fetch: Option<Fetching>,
    /// When a client asked last.
    wanted_at: Time,
}

/// The last fetch failed. Its 503 is served until the next fetch has ended, which begins at
/// `retry_at` if somebody still asks; otherwise this is forgotten then.
#[derive(Debug)]
struct Failing {
    rendered: Rendered,
    retry_at: Time,
}

/// A fetch is on its way, for these.
#[derive(Debug)]
struct Fetching {
    begun_at: Time,
    waiters: Vec<ConnId>,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Serve the answer in memory.
    Fresh,
    /// Serve the answer in memory, although it is older than the ttl: Patroni is silent.
    Stale,
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
    pub fn new(settings: CacheSettings) -> Self {
        let entries = plain_routes().map(|route| Entry::new(route, route.path())).collect();
        let (variants, unused) = (BTreeMap::new(), Vec::new());
        Cache { settings, entries, variants, unused, stale_since: Time::ZERO }
    }

    /// Other settings from now on. Variants over the new limit leave as they expire.
    pub fn configure(&mut self, settings: CacheSettings) {
        self.settings = settings;
    }

    /// The place of `target`; `None`: all places for targets with parameters are being fetched.
    pub fn find(&mut self, route: Route, target: &str) -> Option<EntryId> {
        if !route.has_parameters {
            return Some(EntryId(route.index));
        }
        if let Some(id) = self.variants.get(target) {
            return Some(*id);
        }
        if self.variants.len() >= self.settings.variants_max {
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
    pub fn lookup(&mut self, now: Now, id: EntryId) -> Lookup {
        self.entries[id.0].wanted_at = now.time;
        let entry = &self.entries[id.0];
        if entry.is_fresh(now, self.settings.ttl_ms) {
            return Lookup::Fresh;
        }
        if self.may_serve_stale(now, id) && entry.is_silent(now.time) {
            return Lookup::Stale;
        }
        match (&entry.failure, &entry.fetch) {
            (Some(_), _) => Lookup::Failing,
            (None, Some(_)) => Lookup::Fetching,
            (None, None) => Lookup::Absent,
        }
    }

    /// May the answer in memory be served although it is older than the ttl, if Patroni is silent?
    pub fn may_serve_stale(&self, now: Now, id: EntryId) -> bool {
        let Some((rendered, validity)) = &self.entries[id.0].answer else { return false };
        let asked_at = rendered.answer().asked_at;
        let old_ms = self.settings.ttl_ms + self.settings.grace_ms;
        self.settings.grace_ms > 0
            && asked_at >= self.stale_since
            && now.time.ms_since(asked_at) < old_ms
            && validity.stale_until.is_some_and(|until| !until.is_over(now))
    }

    /// Ends answers in memory. Fetches and their waiters go on.
    pub fn distrust(&mut self, distrust: Distrust) {
        match distrust {
            Distrust::Nothing => {}
            Distrust::StaleBefore(time) => self.stale_since = time,
            Distrust::StaleLeaders => {
                for entry in self.entries.iter_mut().filter(|entry| entry.is_leaders()) {
                    if let Some((_, validity)) = &mut entry.answer {
                        validity.stale_until = None;
                    }
                }
            }
            Distrust::Leaders => {
                for entry in self.entries.iter_mut().filter(|entry| entry.is_leaders()) {
                    entry.answer = None;
                }
            }
            Distrust::Answers => self.entries.iter_mut().for_each(|entry| entry.answer = None),
            Distrust::Everything => {
                for index in 0..self.entries.len() {
                    (self.entries[index].answer, self.entries[index].failure) = (None, None);
                    self.drop_if_empty(EntryId(index));
                }
            }
        }
    }

    /// A fetch for the entry begins.
    pub fn begin(&mut self, now: Time, id: EntryId) {
        let fetching = Fetching { begun_at: now, waiters: Vec::new() };
        let former = self.entries[id.0].fetch.replace(fetching);
        assert!(former.is_none(), "one fetch per entry");
    }

    /// `waiter` is told when the entry's fetch has ended.
    pub fn wait(&mut self, id: EntryId, waiter: ConnId) {
        let fetch = self.entries[id.0].fetch.as_mut();
        fetch.expect("a fetch is on its way").waiters.push(waiter);
    }

    /// A waiter has gone. A walk over all of them, so that who comes and goes during a slow fetch
    /// leaves nothing behind.
    pub fn leave(&mut self, waiter: ConnId) {
        for fetch in self.entries.iter_mut().filter_map(|entry| entry.fetch.as_mut()) {
            fetch.waiters.retain(|id| *id != waiter);
        }
    }

    /// Patroni has been silent for as long as a client waits when there is an old answer that may
    /// be served: who waits for the entry gets that.
    pub fn release(&mut self, now: Now, id: EntryId) -> Vec<ConnId> {
        if !self.may_serve_stale(now, id) || !self.entries[id.0].is_silent(now.time) {
            return Vec::new();
        }
        let fetch = self.entries[id.0].fetch.as_mut();
        fetch.map_or_else(Vec::new, |fetch| std::mem::take(&mut fetch.waiters))
    }

    /// The entry's fetch brought `answer`. Who waited for it is returned.
    pub fn fill(&mut self, id: EntryId, answer: Answer, validity: Validity) -> Vec<ConnId> {
        let entry = &mut self.entries[id.0];
        entry.answer = Some((Rendered::new(answer), validity));
        entry.failure = None;
        entry.fetch.take().expect("it was being fetched").waiters
    }

    /// The entry's fetch failed; `answer` says so. Who waited for it is returned. If Patroni was
    /// not `silent` but gone or broken, what it said before is forgotten.
    pub fn fail(&mut self, id: EntryId, answer: Answer, silent: bool) -> Vec<ConnId> {
        let retry_ms = self.settings.ttl_ms.clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        let entry = &mut self.entries[id.0];
        let retry_at = answer.asked_at.plus_ms(retry_ms);
        entry.failure = Some(Failing { rendered: Rendered::new(answer), retry_at });
        if !silent {
            entry.answer = None;
        }
        entry.fetch.take().expect("it was being fetched").waiters
    }

    /// Looks whether a failing entry is to be fetched again.
    pub fn retry(&mut self, now: Time, id: EntryId) -> Retry {
        let entry = &mut self.entries[id.0];
        let Some(Failing { retry_at, .. }) = entry.failure else { return Retry::Forgotten };
        if entry.fetch.is_some() {
            return Retry::Forgotten; // its end decides
        }
        if now < retry_at {
            return Retry::Later(retry_at);
        }
        if now.ms_since(entry.wanted_at) <= WANTED_MS {
            return Retry::Fetch;
        }
        entry.failure = None;
        self.drop_if_empty(id);
        Retry::Forgotten
    }

    /// When an answer that has just come is to be fetched again, so that no steady client waits.
    pub fn refresh_at(&self, id: EntryId) -> Option<Time> {
        let (rendered, _) = self.entries[id.0].answer.as_ref()?;
        let ahead_ms = self.settings.ttl_ms - self.settings.ttl_ms / 4;
        (self.settings.ttl_ms >= REFRESH_TTL_MS_MIN)
            .then(|| rendered.answer().asked_at.plus_ms(ahead_ms))
    }

    /// Is a refresh due? Somebody has asked since the fetch that brought the answer began, who had
    /// it begin among them, and none is on its way.
    pub fn wants_refresh(&self, now: Time, id: EntryId) -> bool {
        let entry = &self.entries[id.0];
        let Some((rendered, _)) = &entry.answer else { return false };
        entry.fetch.is_none()
            && entry.failure.is_none()
            && entry.wanted_at >= rendered.answer().asked_at
            && self.refresh_at(id).is_some_and(|at| at <= now)
    }

    /// Frees the memory of what will not be served any more; how many answers are left.
    pub fn sweep(&mut self, now: Now) -> usize {
        let mut left = 0;
        for index in 0..self.entries.len() {
            let id = EntryId(index);
            let useful = self.entries[index].is_fresh(now, self.settings.ttl_ms)
                || self.may_serve_stale(now, id);
            if useful {
                left += 1;
            } else {
                self.entries[index].answer = None;
            }
            self.drop_if_empty(id);
        }
        left
    }

    /// Patroni's answer in memory.
    pub fn answer(&mut self, id: EntryId) -> Option<&mut Rendered> {
        self.entries[id.0].answer.as_mut().map(|(rendered, _)| rendered)
    }

    /// The 503 for its absence.
    pub fn failure(&mut self, id: EntryId) -> Option<&mut Rendered> {
        self.entries[id.0].failure.as_mut().map(|failing| &mut failing.rendered)
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
    pub fn places(&self) -> usize {
        self.entries.len() - self.unused.len()
    }

    /// How many clients wait, in all entries together.
    pub fn waiters(&self) -> usize {
        let fetching = self.entries.iter().filter_map(|entry| entry.fetch.as_ref());
        fetching.map(|fetch| fetch.waiters.len()).sum()
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
        let empty = entry.answer.is_none() && entry.failure.is_none() && entry.fetch.is_none();
        if empty && entry.route.has_parameters && self.variants.contains_key(&entry.target) {
            self.remove_variant(id);
        }
    }

    fn remove_variant(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.0];
        debug_assert!(entry.fetch.is_none() && entry.route.has_parameters);
        (entry.answer, entry.failure) = (None, None);
        self.variants.remove(&std::mem::take(&mut entry.target));
        self.unused.push(id);
    }
}

impl Entry {
    fn new(route: Route, target: &str) -> Self {
        Entry {
            target: target.into(),
            route,
            answer: None,
            failure: None,
            fetch: None,
            wanted_at: Time::ZERO,
        }
    }

    fn is_leaders(&self) -> bool {
        self.route.family() == Family::Leader
    }

    /// Is the answer young enough? Its age is below the ttl, not equal: both times are rounded
    /// down, so that a millisecond is the error they may have together.
    fn is_fresh(&self, now: Now, ttl_ms: u64) -> bool {
        let Some((rendered, validity)) = &self.answer else { return false };
        let age_ms = now.time.ms_since(rendered.answer().asked_at);
        age_ms < ttl_ms
            && !validity.fresh_until.is_over(now)
            && (age_ms < ALWAYS_FRESH_MS || !validity.aging_until.is_over(now))
    }

    /// Has Patroni let the last fetch time out, or the present one wait for long?
    fn is_silent(&self, now: Time) -> bool {
        match &self.fetch {
            Some(fetch) if self.failure.is_none() => now.ms_since(fetch.begun_at) >= PATIENCE_MS,
            _ => self.failure.is_some(),
        }
    }
}

/// So long a client waits for a fresh answer when an old one may be served: 250 ms with the
/// wheel's tick.
pub const PATIENCE_MS: u64 = 240;
/// Below this ttl nothing is fetched ahead: a quarter of it would be less than a tick.
const REFRESH_TTL_MS_MIN: u64 = 40;
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
    use crate::node::lease::Until;
    use crate::routes::resolve;

    const LIMITS: CacheSettings = CacheSettings { ttl_ms: 1_000, grace_ms: 0, variants_max: 2 };

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    fn now(ms: u64) -> Now {
        Now { time: at(ms), unix_ms: 1_000_000 + ms }
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
        assert_eq!(cache.lookup(now(now_ms), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fill(id, answer(now_ms), Validity::FRESH_ONLY);
        id
    }

    #[test]
    fn one_fetch_whoever_asks_and_everybody_is_told() {
        let mut cache = Cache::new(LIMITS);
        let id = find(&mut cache, "/primary").expect("a place");
        assert_eq!(cache.lookup(now(0), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.wait(id, waiter(1));
        assert_eq!(cache.lookup(now(5), id), Lookup::Fetching);
        cache.wait(id, waiter(2));
        assert_eq!(cache.waiters(), 2);
        assert_eq!(cache.fill(id, answer(0), Validity::FRESH_ONLY), [waiter(1), waiter(2)]);
        assert_eq!(cache.lookup(now(999), id), Lookup::Fresh);
        assert_eq!(cache.lookup(now(1_000), id), Lookup::Absent);
    }

    #[test]
    fn a_failure_is_served_while_it_is_retried_and_forgotten_when_nobody_asks() {
        let mut cache = Cache::new(LIMITS);
        let id = find(&mut cache, "/primary").expect("a place");
        assert_eq!(cache.lookup(now(0), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fail(id, answer(0), true);
        assert_eq!(cache.lookup(now(900), id), Lookup::Failing);
        assert_eq!(cache.retry(at(999), id), Retry::Later(at(1_000)));
        assert_eq!(cache.retry(at(1_000), id), Retry::Fetch);
        cache.begin(at(0), id);
        assert_eq!(cache.lookup(now(2_500), id), Lookup::Failing);
        assert_eq!(cache.retry(at(2_500), id), Retry::Forgotten);
        cache.fail(id, answer(1_000), true);
        assert_eq!(cache.retry(at(12_500), id), Retry::Fetch);
        assert_eq!(cache.retry(at(12_501), id), Retry::Forgotten);
        assert_eq!(cache.lookup(now(12_502), id), Lookup::Absent);
    }

    #[test]
    fn with_a_ttl_of_nothing_nothing_is_served_twice() {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 0, ..LIMITS });
        let id = fetched(&mut cache, "/primary", 5);
        assert_eq!(cache.lookup(now(5), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fail(id, answer(5), true);
        assert_eq!(cache.retry(at(5), id), Retry::Later(at(5 + RETRY_MS_MIN)));
    }

    #[test]
    fn the_least_recently_asked_variant_leaves_first() {
        let mut cache = Cache::new(LIMITS);
        let plain = fetched(&mut cache, "/replica", 0);
        let first = fetched(&mut cache, "/replica?lag=1", 1);
        fetched(&mut cache, "/replica?lag=2", 2);
        assert_eq!(cache.lookup(now(3), first), Lookup::Fresh);
        fetched(&mut cache, "/replica?lag=3", 4);
        assert_eq!(find(&mut cache, "/replica?lag=1"), Some(first));
        assert_eq!(cache.lookup(now(5), first), Lookup::Fresh);
        fetched(&mut cache, "/replica?lag=2", 6); // it had left, and 3 leaves for it
        assert_eq!(cache.lookup(now(7), plain), Lookup::Fresh);
        assert_eq!(cache.places(), crate::routes::ROUTES.len() + 2);
    }

    #[test]
    fn what_is_being_fetched_cannot_leave() {
        let mut cache = Cache::new(LIMITS);
        for target in ["/replica?lag=1", "/replica?lag=2"] {
            let id = find(&mut cache, target).expect(target);
            cache.begin(at(0), id);
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
        assert_eq!(cache.sweep(now(999)), 2);
        assert_eq!(cache.sweep(now(1_000)), 1);
        assert!(cache.answer(plain).is_none());
        assert_eq!(cache.sweep(now(1_500)), 0);
        assert_eq!(cache.places(), crate::routes::ROUTES.len());
        fetched(&mut cache, "/replica?lag=2", 1_600);
    }

    /// Old until five seconds after the beginning, aging until `aging_ms`.
    fn validity(aging_ms: u64) -> Validity {
        let until = |ms| Until::after_ms(now(0), ms);
        Validity {
            stale_until: Some(until(5_000)),
            aging_until: until(aging_ms),
            ..Validity::FRESH_ONLY
        }
    }

    #[test]
    fn an_aging_answer_is_fresh_for_a_second_whatever_its_lease() {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 60_000, ..LIMITS });
        let id = find(&mut cache, "/primary").expect("a place");
        for (aging_ms, fresh_ms, absent_ms) in [(0, 999, 1_000), (2_000, 1_999, 2_000)] {
            cache.begin(at(0), id);
            cache.fill(id, answer(0), validity(aging_ms));
            assert_eq!(cache.lookup(now(fresh_ms), id), Lookup::Fresh);
            assert_eq!(cache.lookup(now(absent_ms), id), Lookup::Absent);
        }
    }

    #[test]
    fn an_old_answer_has_its_grace_and_not_a_millisecond_more() {
        let mut cache = Cache::new(LIMITS);
        let id = find(&mut cache, "/primary").expect("a place");
        cache.begin(at(0), id);
        cache.fill(id, answer(0), validity(5_000));
        cache.configure(CacheSettings { grace_ms: 2_000, ..LIMITS });
        assert!(cache.may_serve_stale(now(2_999), id) && !cache.may_serve_stale(now(3_000), id));
        cache.configure(CacheSettings { grace_ms: 60_000, ..LIMITS });
        assert!(cache.may_serve_stale(now(4_999), id) && !cache.may_serve_stale(now(5_000), id));
        // who waits is not let go with what may not be served
        cache.begin(at(4_000), id);
        cache.wait(id, waiter(1));
        assert_eq!(cache.release(now(5_000), id), []);
        assert_eq!(cache.release(now(4_000 + PATIENCE_MS - 1), id), []);
        assert_eq!(cache.release(now(4_000 + PATIENCE_MS), id), [waiter(1)]);
        cache.configure(LIMITS);
        assert!(!cache.may_serve_stale(now(4_999), id));
    }
}
