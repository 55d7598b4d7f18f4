//! Answers by their targets, and the clients that wait for them. Pure data: touches no connection
//! and decides nothing about the node.
//!
//! Routes without parameters have their entries for good. Targets with parameters share a limited
//! number of entries, and a limited number of new ones per second.

mod view;

use std::collections::{BTreeMap, VecDeque};

pub use self::view::{EntryView, Served};
use crate::answer::{Answer, Rendered};
use crate::failure::Culprit;
use crate::node::Distrust;
use crate::node::lease::{ALWAYS_FRESH_MS, Validity};
use crate::routes::{LeaderRoutes, Route, plain_routes};
use crate::slots::ConnId;
use crate::stats::Rate;
use crate::time::{Now, Time};
use crate::wheel::TICK_MS;

/// An entry's index, not a stable key: [`Cache::find`] may reuse it unless the entry is being
/// fetched. Timers must check the entry's state. A generation would save nothing: timers would
/// have to check the state even then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(usize);

/// The settings of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Milliseconds an answer is served, counted from before Patroni was asked.
    pub ttl_ms: u64,
    /// Milliseconds after that during which a stale answer may be served while Patroni is silent.
    pub grace_ms: u64,
    /// Maximum targets with parameters, and maximum new ones per second.
    pub variants_max: usize,
}

/// The answers.
#[derive(Debug)]
pub struct Cache {
    settings: CacheSettings,
    /// The routes without parameters first, in the table's order; after them the variants.
    entries: Vec<Entry>,
    /// Targets with parameters.
    variants: BTreeMap<Box<str>, EntryId>,
    /// Entries of variants that were removed.
    unused: Vec<EntryId>,
    /// When the new variants of the last second were admitted; at most `variants_max`.
    admitted: VecDeque<Time>,
    /// Answers requested before this time must not be served stale: Patroni has been unreachable
    /// since.
    stale_since: Time,
    /// Until then the node is in transition, and answers are kept for [`TRANSITION_TTL_MS`].
    in_transition_until: Time,
    /// Whether the DCS can confirm Patroni's last answer, however long ago.
    has_witness: bool,
}

/// One target: Patroni's last answer, the failure after it, the fetch in flight or queued; each
/// may be absent.
#[derive(Debug)]
struct Entry {
    /// What Patroni is asked.
    target: Box<str>,
    route: Route,
    answer: Option<(Rendered, Validity)>,
    failure: Option<Failing>,
    fetch: Option<Fetching>,
    /// When a client last asked.
    wanted_at: Option<Time>,
    /// How often clients ask.
    rate: Rate,
    /// The status that a client got last; 0: none yet.
    served_status: u16,
    /// Whether clients asked more than once.
    wanted_again: bool,
    /// Whether a timer will end the waiters' patience: at most one for each entry, whichever fetch
    /// it was set for.
    is_timed: bool,
}

/// The last fetch failed. Its 503 is served until the next fetch has ended. That begins at
/// `retry_at` if clients still ask; if not, the failure is forgotten.
#[derive(Debug)]
struct Failing {
    rendered: Rendered,
    retry_at: Time,
    /// What the failure says about Patroni.
    silence: Silence,
}

/// A fetch is queued or in flight, and these clients wait for it.
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
    /// Serve the failure in memory.
    Failing,
    /// Wait for the fetch that is queued or in flight.
    Fetching,
    /// Begin a fetch and wait for it: no answer in memory is fresh.
    Absent,
}

/// What to do about a failing entry when its retry is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Clients still ask: begin a fetch.
    Fetch,
    /// Not yet: check again at this time.
    Later(Time),
    /// No client asks, or the entry no longer fails.
    Forgotten,
}

/// Why a target with parameters has no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// All such entries are being fetched.
    Full,
    /// `variants_max` new targets were admitted within the last second.
    TooManyNew,
}

impl Cache {
    /// A cache without answers.
    pub fn new(settings: CacheSettings) -> Self {
        Cache {
            settings,
            entries: plain_routes().map(|route| Entry::new(route, route.path())).collect(),
            variants: BTreeMap::new(),
            unused: Vec::new(),
            admitted: VecDeque::new(),
            stale_since: Time::ZERO,
            in_transition_until: Time::ZERO,
            has_witness: false,
        }
    }

    /// Changes the settings. Variants beyond the new limit are removed as they expire.
    pub fn configure(&mut self, settings: CacheSettings) {
        self.settings = settings;
    }

    /// Until this time answers are kept for [`TRANSITION_TTL_MS`] only.
    pub fn set_in_transition_until(&mut self, time: Time) {
        self.in_transition_until = time;
    }

    /// With a witness, answers that it can confirm are kept past their grace.
    pub fn set_has_witness(&mut self, has_witness: bool) {
        self.has_witness = has_witness;
    }

    /// The entry of `target`. At the limit a new target with parameters replaces one that is not
    /// being fetched: first those not in steady use, of these the least recently asked.
    pub fn find(&mut self, now: Time, route: Route, target: &str) -> Result<EntryId, NoEntry> {
        if !route.has_parameters {
            return Ok(EntryId(usize::from(route.index)));
        }
        if let Some(id) = self.variants.get(target) {
            return Ok(*id);
        }
        if !self.admit(now) {
            return Err(NoEntry::TooManyNew);
        }
        if self.variants.len() >= self.settings.variants_max {
            let dispensable = self.most_dispensable(now).ok_or(NoEntry::Full)?;
            self.remove_variant(dispensable);
        }
        self.admitted.push_back(now);
        let entry = Entry::new(route, target);
        let id = match self.unused.pop() {
            Some(id) => {
                let is_timed = self.entries[id.0].is_timed; // by the previous target's timer
                self.entries[id.0] = Entry { is_timed, ..entry };
                id
            }
            None => {
                self.entries.push(entry);
                EntryId(self.entries.len() - 1)
            }
        };
        self.variants.insert(target.into(), id);
        Ok(id)
    }

    /// What to do with a client's request for an entry. Whether a stale answer may be served is
    /// another question: [`Cache::may_serve_stale`].
    pub fn lookup(&mut self, now: Now, id: EntryId) -> Lookup {
        let ttl_ms = self.ttl_ms(now.time);
        let entry = &mut self.entries[id.0];
        entry.wanted_again |= entry.wanted_at.replace(now.time).is_some();
        entry.rate.count(now.time);
        match (&entry.failure, &entry.fetch) {
            _ if entry.is_fresh(now, ttl_ms) => Lookup::Fresh,
            (Some(_), _) => Lookup::Failing,
            (None, Some(_)) => Lookup::Fetching,
            (None, None) => Lookup::Absent,
        }
    }

    /// Whether the stale answer in memory may be served if Patroni is silent.
    pub fn may_serve_stale(&self, now: Now, id: EntryId) -> bool {
        let Some((rendered, validity)) = &self.entries[id.0].answer else { return false };
        let asked_at = rendered.answer().asked_at;
        let stale_ms = self.settings.ttl_ms + self.settings.grace_ms;
        self.settings.grace_ms > 0
            && asked_at >= self.stale_since
            && now.time.ms_since(asked_at) < stale_ms
            && validity.stale_until.is_some_and(|until| !until.is_over(now))
    }

    /// Whether the witness can confirm the answer in memory: a 200 of a leader or replica route
    /// without parameters, and Patroni has not been unreachable since.
    pub fn is_witnessed(&self, id: EntryId) -> bool {
        let Entry { route, answer: Some((rendered, _)), .. } = &self.entries[id.0] else {
            return false;
        };
        let is_plain_check = route.family().is_drained() && !route.has_parameters;
        let Answer { status, asked_at, .. } = rendered.answer();
        self.has_witness && is_plain_check && *status == 200 && *asked_at >= self.stale_since
    }

    /// The entries that clients wait for.
    pub fn awaited(&self) -> Vec<EntryId> {
        (0..self.entries.len()).map(EntryId).filter(|id| self.is_awaited(*id)).collect()
    }

    /// Whether clients wait for the entry's fetch.
    pub fn is_awaited(&self, id: EntryId) -> bool {
        self.entries[id.0].fetch.as_ref().is_some_and(|fetch| !fetch.waiters.is_empty())
    }

    /// What the state of an entry says about Patroni.
    pub fn silence(&self, now: Time, id: EntryId) -> Silence {
        match &self.entries[id.0] {
            Entry { failure: Some(failing), .. } => failing.silence,
            Entry { failure: None, fetch: Some(fetch), .. }
                if now.ms_since(fetch.begun_at) >= PATIENCE_MS =>
            {
                Silence::IfUpstreamIsSilent
            }
            _ => Silence::None,
        }
    }

    /// Ends answers in memory. Fetches and their waiters go on.
    pub fn distrust(&mut self, distrust: Distrust) {
        match distrust {
            Distrust::StaleBefore(time) => self.stale_since = time,
            Distrust::StaleLeaders => {
                for entry in &mut self.entries {
                    if let Some((_, validity)) = entry.leaders_200(LeaderRoutes::Any) {
                        validity.stale_until = None;
                    }
                }
            }
            Distrust::Leaders(routes) => {
                for entry in &mut self.entries {
                    if entry.leaders_200(routes).is_some() {
                        entry.answer = None;
                    }
                }
            }
            Distrust::Answers => self.entries.iter_mut().for_each(|entry| entry.answer = None),
            Distrust::Everything => {
                for entry in &mut self.entries {
                    (entry.answer, entry.failure) = (None, None);
                }
            }
        }
    }

    /// A fetch of the entry begins.
    pub fn begin(&mut self, now: Time, id: EntryId) {
        let fetching = Fetching { begun_at: now, waiters: Vec::new() };
        let previous = self.entries[id.0].fetch.replace(fetching);
        assert!(previous.is_none(), "one fetch per entry");
    }

    /// `waiter` waits until the entry's fetch has ended.
    pub fn wait(&mut self, id: EntryId, waiter: ConnId) {
        let fetch = self.entries[id.0].fetch.as_mut();
        fetch.expect("a fetch is queued or in flight").waiters.push(waiter);
    }

    /// Removes a disconnected client from the waiters. Linear in the number of waiters.
    pub fn leave(&mut self, waiter: ConnId) {
        for fetch in self.entries.iter_mut().filter_map(|entry| entry.fetch.as_mut()) {
            fetch.waiters.retain(|id| *id != waiter);
        }
    }

    /// If clients wait and no timer for their patience is set, returns the earliest time for one.
    /// The caller sets it.
    pub fn begin_patience(&mut self, id: EntryId) -> Option<Time> {
        let entry = &mut self.entries[id.0];
        let fetch = entry.fetch.as_ref().filter(|fetch| !fetch.waiters.is_empty())?;
        if entry.is_timed {
            return None;
        }
        entry.is_timed = true;
        Some(fetch.begun_at.plus_ms(PATIENCE_MS))
    }

    /// The timer for the patience of the waiters has fired.
    pub fn end_patience(&mut self, id: EntryId) {
        self.entries[id.0].is_timed = false;
    }

    /// Takes the waiters out, to serve them the stale answer.
    pub fn take_waiters(&mut self, id: EntryId) -> Vec<ConnId> {
        let fetch = self.entries[id.0].fetch.as_mut();
        fetch.map_or_else(Vec::new, |fetch| std::mem::take(&mut fetch.waiters))
    }

    /// The entry's fetch brought `answer`. Returns the waiters.
    pub fn fill(&mut self, id: EntryId, answer: Answer, validity: Validity) -> Vec<ConnId> {
        let entry = &mut self.entries[id.0];
        entry.answer = Some((Rendered::new(answer), validity));
        entry.failure = None;
        entry.fetch.take().expect("it was being fetched").waiters
    }

    /// The entry's fetch failed; `answer` says so. `was_asked`: the fetch was not only queued.
    /// Returns the waiters. If Patroni is to blame and not only silent, what it said before is
    /// forgotten.
    pub fn fail(
        &mut self,
        id: EntryId,
        answer: Answer,
        culprit: Culprit,
        was_asked: bool,
    ) -> Vec<ConnId> {
        let retry_ms = self.settings.ttl_ms.clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        let entry = &mut self.entries[id.0];
        let retry_at = answer.asked_at.plus_ms(retry_ms);
        let silence = match (culprit, was_asked) {
            (Culprit::Silent, true) => Silence::Certain,
            (Culprit::Silent, false) => Silence::IfUpstreamIsSilent,
            _ => Silence::None,
        };
        entry.failure = Some(Failing { rendered: Rendered::new(answer), retry_at, silence });
        if matches!(culprit, Culprit::Gone | Culprit::Broken) {
            entry.answer = None;
        }
        entry.fetch.take().expect("it was being fetched").waiters
    }

    /// What to do about a failing entry.
    pub fn retry(&mut self, now: Time, id: EntryId) -> Retry {
        let entry = &mut self.entries[id.0];
        match &entry.failure {
            _ if entry.fetch.is_some() => return Retry::Forgotten, // the end of the fetch decides
            Some(failing) if now < failing.retry_at => return Retry::Later(failing.retry_at),
            Some(_) if entry.is_in_use(now) => return Retry::Fetch,
            _ => entry.failure = None,
        }
        self.keep_variant(now, id);
        Retry::Forgotten
    }

    /// When an answer that has just arrived is to be fetched again, so that no steady client waits.
    pub fn refresh_at(&self, now: Time, id: EntryId) -> Option<Time> {
        let (rendered, _) = self.entries[id.0].answer.as_ref()?;
        let ttl_ms = self.ttl_ms(now);
        let ahead_ms = ttl_ms - ttl_ms / 4;
        (ttl_ms >= REFRESH_TTL_MS_MIN).then(|| rendered.answer().asked_at.plus_ms(ahead_ms))
    }

    /// Whether a refresh is due: no fetch is queued or in flight, and a client has asked since the
    /// fetch of the answer began (the request that started it counts). In transition the entry only
    /// has to be in use.
    pub fn wants_refresh(&self, now: Time, id: EntryId) -> bool {
        let entry = &self.entries[id.0];
        let Some((rendered, _)) = &entry.answer else {
            return self.is_in_transition(now) && entry.is_empty() && entry.is_in_use(now);
        };
        let is_wanted = entry.wanted_at >= Some(rendered.answer().asked_at)
            || self.is_in_transition(now) && entry.is_in_use(now);
        is_wanted
            && entry.fetch.is_none()
            && entry.failure.is_none()
            && self.refresh_at(now, id).is_some_and(|at| at <= now)
    }

    /// The entries in use that are not being fetched and do not fail, and when each is to be
    /// fetched again.
    pub fn in_use(&self, now: Time) -> Vec<(EntryId, Time)> {
        let entries = self.entries.iter().enumerate();
        let in_use = entries.filter(|(_, entry)| {
            entry.is_in_use(now) && entry.fetch.is_none() && entry.failure.is_none()
        });
        in_use
            .map(|(index, _)| (EntryId(index), self.refresh_at(now, EntryId(index)).unwrap_or(now)))
            .collect()
    }

    /// Frees answers that will not be served again, and variants that are not in use. Returns how
    /// many entries a later sweep may free.
    pub fn sweep(&mut self, now: Now) -> usize {
        let mut left = 0;
        for index in 0..self.entries.len() {
            let id = EntryId(index);
            let is_useful = self.entries[index].is_fresh(now, self.settings.ttl_ms)
                || self.may_serve_stale(now, id);
            if !is_useful && !self.is_witnessed(id) {
                self.entries[index].answer = None;
            }
            let is_kept = self.keep_variant(now.time, id);
            left += usize::from(is_useful || is_kept);
        }
        left
    }

    /// Patroni's answer in memory.
    pub fn answer(&mut self, id: EntryId) -> Option<&mut Rendered> {
        self.entries[id.0].answer.as_mut().map(|(rendered, _)| rendered)
    }

    /// The 503 of the last failed fetch.
    pub fn failure(&mut self, id: EntryId) -> Option<&mut Rendered> {
        self.entries[id.0].failure.as_mut().map(|failing| &mut failing.rendered)
    }

    /// A client got a response with this status.
    pub fn served(&mut self, id: EntryId, status: u16) {
        self.entries[id.0].served_status = status;
    }

    /// What Patroni is asked for this entry.
    pub fn target(&self, id: EntryId) -> &str {
        &self.entries[id.0].target
    }

    /// The route of this entry.
    pub fn route(&self, id: EntryId) -> Route {
        self.entries[id.0].route
    }

    fn ttl_ms(&self, now: Time) -> u64 {
        if self.is_in_transition(now) {
            self.settings.ttl_ms.min(TRANSITION_TTL_MS)
        } else {
            self.settings.ttl_ms
        }
    }

    fn is_in_transition(&self, now: Time) -> bool {
        now < self.in_transition_until
    }

    /// Whether one more new variant fits into the last second.
    fn admit(&mut self, now: Time) -> bool {
        while self.admitted.front().is_some_and(|at| now.ms_since(*at) >= ADMITTED_MS) {
            self.admitted.pop_front();
        }
        if self.admitted.is_empty() {
            self.admitted.shrink_to(ADMITTED_KEPT);
        }
        self.admitted.len() < self.settings.variants_max
    }

    /// The variant to remove first. Linear in the number of variants, but called only for new
    /// targets beyond the limit, and their rate is limited.
    fn most_dispensable(&self, now: Time) -> Option<EntryId> {
        let idle = self.variants.values().filter(|id| self.entries[id.0].fetch.is_none());
        let steady = |entry: &Entry| entry.wanted_again && entry.is_in_use(now);
        idle.min_by_key(|id| {
            let entry = &self.entries[id.0];
            (steady(entry), entry.wanted_at)
        })
        .copied()
    }

    /// Removes an empty variant that is not in use. Returns whether the entry is a variant and
    /// stays.
    fn keep_variant(&mut self, now: Time, id: EntryId) -> bool {
        let entry = &self.entries[id.0];
        if !entry.route.has_parameters || !self.variants.contains_key(&entry.target) {
            return false;
        }
        let is_removed = entry.is_empty() && !entry.is_in_use(now);
        if is_removed {
            self.remove_variant(id);
        }
        !is_removed
    }

    fn remove_variant(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.0];
        debug_assert!(entry.fetch.is_none() && entry.route.has_parameters);
        (entry.answer, entry.failure) = (None, None);
        self.variants.remove(&std::mem::take(&mut entry.target));
        self.unused.push(id);
    }
}

/// What the state of an entry says about Patroni.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Patroni let the last fetch time out.
    Certain,
    /// The fetch has lasted for [`PATIENCE_MS`], queueing included, or the last one was given up in
    /// the queue.
    IfUpstreamIsSilent,
    /// Nothing.
    None,
}

impl Entry {
    fn new(route: Route, target: &str) -> Self {
        Entry {
            target: target.into(),
            route,
            answer: None,
            failure: None,
            fetch: None,
            wanted_at: None,
            rate: Rate::default(),
            served_status: 0,
            wanted_again: false,
            is_timed: false,
        }
    }

    /// The answer and its validity, if it is a 200 of one of these leader routes.
    fn leaders_200(&mut self, routes: LeaderRoutes) -> Option<&mut (Rendered, Validity)> {
        let has_one = self.has_leaders_200(routes);
        self.answer.as_mut().filter(|_| has_one)
    }

    fn has_leaders_200(&self, routes: LeaderRoutes) -> bool {
        let is_spoken_for = |own| routes == LeaderRoutes::Any || own == routes;
        self.route.leader_routes().is_some_and(is_spoken_for)
            && self.answer.as_ref().is_some_and(|(rendered, _)| rendered.answer().status == 200)
    }

    /// Whether the answer is fresh. Its age must be less than the ttl, not equal: both times are
    /// rounded down, so the age may be a millisecond more.
    fn is_fresh(&self, now: Now, ttl_ms: u64) -> bool {
        let Some((rendered, validity)) = &self.answer else { return false };
        let age_ms = now.time.ms_since(rendered.answer().asked_at);
        age_ms < ttl_ms
            && !validity.fresh_until.is_over(now)
            && (age_ms < ALWAYS_FRESH_MS || !validity.aging_until.is_over(now))
    }

    fn is_empty(&self) -> bool {
        self.answer.is_none() && self.failure.is_none() && self.fetch.is_none()
    }

    /// Whether a client asked within [`WANTED_MS`].
    fn is_in_use(&self, now: Time) -> bool {
        self.wanted_at.is_some_and(|at| now.ms_since(at) <= WANTED_MS)
    }
}

/// How long a client waits for a fresh answer when a stale one may be served: 250 ms with the
/// wheel's tick.
pub const PATIENCE_MS: u64 = 240;
/// How long answers are kept while the node is in transition: load balancers then see a switchover
/// no later than with direct checks of Patroni.
pub const TRANSITION_TTL_MS: u64 = 100;
/// Below this ttl nothing is fetched ahead: a quarter of it would be less than a tick.
const REFRESH_TTL_MS_MIN: u64 = 40;
/// A failed fetch is tried again after the ttl, but within this range: at least every second with
/// a long `ttl`, and not in every turn with `ttl: 0`.
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 1_000;
/// How long after a request a target counts as in use: longer than the usual `inter` of a load
/// balancer, so that its checks never wait for a frozen Patroni twice.
const WANTED_MS: u64 = 10_000;
/// The span of the limit on new variants.
const ADMITTED_MS: u64 = 1_000;
/// Capacity that is kept for the times in `admitted`.
const ADMITTED_KEPT: usize = 64;

const _: () = assert!(PATIENCE_MS + TICK_MS <= 250, "promise 4");
const _: () = assert!(TICK_MS <= REFRESH_TTL_MS_MIN / 4);
const _: () =
    assert!(REFRESH_TTL_MS_MIN <= TRANSITION_TTL_MS, "in transition answers are refreshed");
const _: () = assert!(RETRY_MS_MIN <= RETRY_MS_MAX && RETRY_MS_MAX < WANTED_MS);
#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::AddressId;
    use crate::node::lease::Until;
    use crate::routes::resolve;

    const SETTINGS: CacheSettings = CacheSettings { ttl_ms: 1_000, grace_ms: 0, variants_max: 2 };

    fn at(ms: u64) -> Time {
        Time::from_ms(ms)
    }

    fn now(ms: u64) -> Now {
        Now { time: at(ms), unix_ms: 1_000_000 + ms }
    }

    fn answer(asked_ms: u64) -> Answer {
        Answer {
            status: 200,
            passed_on: Default::default(),
            body: [].into(),
            asked_at: at(asked_ms),
            date_unix_seconds: None,
            address: AddressId::default(),
        }
    }

    fn waiter(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    fn find_at(cache: &mut Cache, now_ms: u64, target: &str) -> Result<EntryId, NoEntry> {
        let mut canonical = String::new();
        let route = resolve(target, &mut canonical).expect(target);
        cache.find(at(now_ms), route, &canonical)
    }

    fn find(cache: &mut Cache, target: &str) -> Option<EntryId> {
        find_at(cache, 0, target).ok()
    }

    fn fetched(cache: &mut Cache, target: &str, now_ms: u64) -> EntryId {
        let id = find_at(cache, now_ms, target).expect(target);
        assert_eq!(cache.lookup(now(now_ms), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fill(id, answer(now_ms), Validity::FRESH_ONLY);
        id
    }

    #[test]
    fn a_failure_and_a_denial_end_only_what_they_speak_for() {
        let refusal = |asked_ms| Answer { status: 503, ..answer(asked_ms) };
        let mut cache = Cache::new(SETTINGS);
        let leader = fetched(&mut cache, "/leader", 0);
        let primary = find(&mut cache, "/primary").expect("plain");
        cache.begin(at(0), primary);
        cache.fill(primary, refusal(0), Validity::FRESH_ONLY);
        cache.distrust(Distrust::Leaders(LeaderRoutes::Any));
        assert!(cache.answer(leader).is_none() && cache.answer(primary).is_some());
        let table = [
            (Culprit::Silent, true),
            (Culprit::Ours, true),
            (Culprit::Broken, false),
            (Culprit::Gone, false),
        ];
        for (culprit, is_kept) in table {
            let mut cache = Cache::new(SETTINGS);
            let id = fetched(&mut cache, "/replica", 0);
            cache.begin(at(10), id);
            cache.fail(id, refusal(10), culprit, true);
            assert_eq!(cache.answer(id).is_some(), is_kept, "{culprit:?}");
            cache.distrust(Distrust::Everything);
            assert!(cache.answer(id).is_none() && cache.failure(id).is_none());
        }
    }

    #[test]
    fn clients_share_one_fetch_and_all_of_them_are_returned() {
        let mut cache = Cache::new(SETTINGS);
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
    fn an_entry_has_one_timer_of_patience_whatever_is_fetched() {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 0, variants_max: 1, ..SETTINGS });
        let wait = |cache: &mut Cache, now_ms: u64, target: &str| {
            let id = find_at(cache, now_ms, target).expect("a place");
            cache.begin(at(now_ms), id);
            assert_eq!(cache.begin_patience(id), None, "no client waits");
            cache.wait(id, waiter(1));
            let patience = cache.begin_patience(id);
            cache.fill(id, answer(now_ms), Validity::FRESH_ONLY);
            (id, patience)
        };
        let (id, patience) = wait(&mut cache, 0, "/replica?lag=1");
        assert_eq!(patience, Some(at(PATIENCE_MS)));
        assert_eq!(wait(&mut cache, 100, "/replica?lag=1"), (id, None));
        assert_eq!(wait(&mut cache, 1_000, "/replica?lag=2"), (id, None), "the place is the same");
        cache.end_patience(id);
        assert_eq!(wait(&mut cache, 1_100, "/replica?lag=2"), (id, Some(at(1_100 + PATIENCE_MS))));
    }

    #[test]
    fn a_failure_is_served_while_clients_ask_and_then_forgotten() {
        let mut cache = Cache::new(SETTINGS);
        let id = find(&mut cache, "/primary").expect("a place");
        assert_eq!(cache.lookup(now(0), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fail(id, answer(0), Culprit::Silent, true);
        assert_eq!(cache.lookup(now(900), id), Lookup::Failing);
        assert_eq!(cache.retry(at(999), id), Retry::Later(at(1_000)));
        assert_eq!(cache.retry(at(1_000), id), Retry::Fetch);
        cache.begin(at(0), id);
        assert_eq!(cache.lookup(now(2_500), id), Lookup::Failing);
        assert_eq!(cache.retry(at(2_500), id), Retry::Forgotten);
        cache.fail(id, answer(1_000), Culprit::Silent, true);
        assert_eq!(cache.retry(at(12_500), id), Retry::Fetch);
        assert_eq!(cache.retry(at(12_501), id), Retry::Forgotten);
        assert_eq!(cache.lookup(now(12_502), id), Lookup::Absent);
    }

    #[test]
    fn with_a_ttl_of_0_nothing_is_served_twice() {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 0, ..SETTINGS });
        let id = fetched(&mut cache, "/primary", 5);
        assert_eq!(cache.lookup(now(5), id), Lookup::Absent);
        cache.begin(at(0), id);
        cache.fail(id, answer(5), Culprit::Silent, true);
        assert_eq!(cache.retry(at(5), id), Retry::Later(at(5 + RETRY_MS_MIN)));
    }

    #[test]
    fn the_least_recently_asked_variant_is_replaced_first() {
        let mut cache = Cache::new(CacheSettings { ttl_ms: 60_000, ..SETTINGS });
        let plain = fetched(&mut cache, "/replica", 0);
        let first = fetched(&mut cache, "/replica?lag=1", 1_000);
        fetched(&mut cache, "/replica?lag=2", 2_000);
        assert_eq!(cache.lookup(now(3_000), first), Lookup::Fresh);
        fetched(&mut cache, "/replica?lag=3", 4_000);
        assert_eq!(find(&mut cache, "/replica?lag=1"), Some(first));
        // 2 was replaced; 3 was asked for once only and gives way, though later than 1
        fetched(&mut cache, "/replica?lag=2", 6_000);
        assert_eq!(find(&mut cache, "/replica?lag=1"), Some(first));
        // 1 is no longer in use
        fetched(&mut cache, "/replica?lag=3", 13_001);
        assert_ne!(find_at(&mut cache, 20_000, "/replica?lag=1"), Ok(first));
        assert_eq!(cache.lookup(now(20_001), plain), Lookup::Fresh);
        assert_eq!(cache.count(), crate::routes::ROUTES.len() + 2);
    }

    #[test]
    fn new_variants_are_limited_per_second_and_known_ones_are_not() {
        let mut cache = Cache::new(SETTINGS);
        for (now_ms, target, admitted) in [
            (0, "/replica?lag=1", true),
            (500, "/replica?lag=2", true),
            (999, "/replica?lag=3", false),
            (999, "/replica?lag=1", true),
            (1_000, "/replica?lag=3", true),
            (1_499, "/replica?lag=4", false),
            (1_500, "/replica?lag=4", true),
        ] {
            let expected = if admitted { None } else { Some(NoEntry::TooManyNew) };
            assert_eq!(find_at(&mut cache, now_ms, target).err(), expected, "{now_ms} {target}");
        }
    }

    #[test]
    fn a_variant_being_fetched_is_not_replaced() {
        let mut cache = Cache::new(SETTINGS);
        for target in ["/replica?lag=1", "/replica?lag=2"] {
            let id = find(&mut cache, target).expect(target);
            cache.begin(at(0), id);
        }
        assert_eq!(find_at(&mut cache, 1_000, "/replica?lag=3"), Err(NoEntry::Full));
        assert!(find(&mut cache, "/replica?lag=1").is_some());
        assert!(find(&mut cache, "/replica").is_some());
    }

    #[test]
    fn a_sweep_frees_what_has_expired() {
        let mut cache = Cache::new(SETTINGS);
        let plain = fetched(&mut cache, "/primary", 0);
        fetched(&mut cache, "/replica?lag=1", 500);
        assert_eq!(cache.sweep(now(999)), 2);
        assert_eq!(cache.sweep(now(1_000)), 1);
        assert!(cache.answer(plain).is_none());
        assert_eq!(cache.sweep(now(1_500)), 1, "a variant in use keeps its entry");
        assert_eq!(cache.sweep(now(10_501)), 0);
        assert_eq!(cache.count(), crate::routes::ROUTES.len());
        fetched(&mut cache, "/replica?lag=2", 1_600);
    }

    /// May be served stale for 5 s, and at a greater age than a second until `aging_ms`.
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
        let mut cache = Cache::new(CacheSettings { ttl_ms: 60_000, ..SETTINGS });
        let id = find(&mut cache, "/primary").expect("a place");
        for (aging_ms, fresh_ms, absent_ms) in [(0, 999, 1_000), (2_000, 1_999, 2_000)] {
            cache.begin(at(0), id);
            cache.fill(id, answer(0), validity(aging_ms));
            assert_eq!(cache.lookup(now(fresh_ms), id), Lookup::Fresh);
            assert_eq!(cache.lookup(now(absent_ms), id), Lookup::Absent);
        }
    }

    #[test]
    fn a_stale_answer_is_served_within_its_grace_only() {
        let mut cache = Cache::new(SETTINGS);
        let id = find(&mut cache, "/primary").expect("a place");
        cache.begin(at(0), id);
        cache.fill(id, answer(0), validity(5_000));
        cache.configure(CacheSettings { grace_ms: 2_000, ..SETTINGS });
        assert!(cache.may_serve_stale(now(2_999), id) && !cache.may_serve_stale(now(3_000), id));
        cache.configure(CacheSettings { grace_ms: 60_000, ..SETTINGS });
        assert!(cache.may_serve_stale(now(4_999), id) && !cache.may_serve_stale(now(5_000), id));
        cache.begin(at(4_000), id);
        cache.wait(id, waiter(1));
        assert_eq!(cache.silence(at(4_000 + PATIENCE_MS - 1), id), Silence::None);
        assert_eq!(cache.silence(at(4_000 + PATIENCE_MS), id), Silence::IfUpstreamIsSilent);
        assert_eq!(cache.take_waiters(id), [waiter(1)]);
        cache.configure(SETTINGS);
        assert!(!cache.may_serve_stale(now(4_999), id));
    }
}
