//! What is counted and remembered for the metrics and the status page: plain integers, increased
//! where it happens. Nothing here decides anything.

use crate::answer::CacheStatus;
use crate::failure::{Culprit, Failure};
use crate::routes::{ROUTES, Route};
use crate::time::Time;

/// Everything that is counted since the start.
#[derive(Debug)]
pub struct Stats {
    /// Answered requests by route, in the table's order; the last one is of all other targets.
    requests: Vec<Vec<Requests>>,
    /// How long requests waited for a fetch. Those answered from memory are not included.
    pub request_wait: Histogram,
    /// Clients accepted.
    pub clients_accepted: u64,
    /// Clients refused because there was no room.
    pub clients_refused: u64,
    /// Clients closed because they were too slow, by [`Slow`].
    slow_clients: [u64; SLOW.len()],
    /// How often no descriptor was left for a client or a fetch.
    pub descriptor_shortages: u64,
    /// By [`Side`] and [`Handshake`].
    handshakes: [[u64; HANDSHAKES.len()]; SIDES.len()],
    /// From the decision to ask Patroni to its complete answer.
    pub fetch_duration: Histogram,
    /// Failed fetches by the name of the failure; at most one for each name.
    fetch_failures: Vec<(&'static str, u64)>,
    /// Ended reads of the DCS, rehearsals included, by [`WitnessRead`].
    witness_reads: [u64; WITNESS_READS.len()],
    /// Whether the last read of the DCS succeeded; `None`: none has ended yet.
    pub witness_up: Option<bool>,
    /// What Patroni does.
    pub patroni: PatroniState,
    /// The last two minutes.
    pub recent: Recent,
}

/// The number of requests with one status and one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// The status; 0 for those beyond [`SERIES_PER_ROUTE_MAX`].
    pub status: u16,
    /// What the cache did; `None`: a local response.
    pub cache_status: Option<CacheStatus>,
    /// How many.
    pub count: u64,
}

/// The phase for which a client was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// The TLS handshake.
    Handshake,
    /// A request's head or body.
    Head,
    /// The next request on a kept connection.
    Idle,
    /// Reading the response.
    Answer,
}

/// The peer of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client.
    Client,
    /// Patroni.
    Patroni,
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// With certificates.
    Full,
    /// With a ticket from an earlier session.
    Resumed,
    /// Without a session.
    Failed,
}

/// How a read of the DCS ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WitnessRead {
    /// With evidence.
    Evidence,
    /// It contradicted Patroni.
    Contradiction,
    /// With neither: in maintenance mode, for example.
    Nothing,
    /// The DCS could not be read.
    Failed,
}

/// The number of durations in each bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// By [`BUCKETS_MS`]; the last one has all that are longer. Not cumulative.
    counts: [u64; BUCKETS_MS.len() + 1],
    /// The sum of all durations in milliseconds.
    pub sum_ms: u64,
}

/// What Patroni does, by the last fetch.
#[derive(Clone, Copy, Debug, Default)]
pub struct PatroniState {
    /// Whether it answers.
    pub standing: Standing,
    /// Since when.
    pub since: Time,
    /// When it last answered.
    pub answered_at: Option<Time>,
    /// Why the last fetch brought no answer, and for how many fetches in a row.
    pub failure: Option<(Failure, u64)>,
}

/// Whether Patroni answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has not been asked.
    #[default]
    Unknown,
    /// The last fetch brought an answer.
    Answers,
    /// The last fetch timed out.
    Silent,
    /// The last fetch was refused, or brought nothing of use.
    Gone,
}

/// Counts for each of the last [`RECENT_SECONDS`] seconds.
#[derive(Debug)]
pub struct Recent {
    seconds: [Second; RECENT_SECONDS],
    /// The number of the current second, counted from the start.
    current: u64,
    /// Its place in `seconds`.
    place: usize,
    /// When it ends.
    ends_at: Time,
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Requests answered.
    pub requests: u32,
    /// Fetches begun.
    pub fetches: u32,
    /// Requests answered with a stale answer.
    pub stale: u32,
    /// Requests answered with the 503 of a failed fetch.
    pub failed: u32,
}

/// Requests for one target in a sliding window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// The number of the current window, counted from the start.
    window: u64,
    /// When it ends.
    ends_at: Time,
    count: u32,
    /// The count of the previous window.
    previous: u32,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            requests: vec![Vec::new(); ROUTES.len() + 1],
            request_wait: Histogram::default(),
            clients_accepted: 0,
            clients_refused: 0,
            slow_clients: Default::default(),
            descriptor_shortages: 0,
            handshakes: Default::default(),
            fetch_duration: Histogram::default(),
            fetch_failures: Vec::new(),
            witness_reads: Default::default(),
            witness_up: None,
            patroni: PatroniState::default(),
            recent: Recent::default(),
        }
    }
}

impl Stats {
    /// A request was answered. `route`: `None` if its target has none. `cache_status`: `None` for a
    /// local response. Allocates only for a combination that has not been counted before.
    pub fn answered(
        &mut self,
        now: Time,
        route: Option<Route>,
        status: u16,
        cache_status: Option<CacheStatus>,
    ) {
        let second = self.recent.second(now);
        second.requests += 1;
        second.stale += u32::from(cache_status == Some(CacheStatus::Stale));
        let is_failed = matches!(cache_status, Some(CacheStatus::Failed | CacheStatus::FailedHit));
        second.failed += u32::from(is_failed);
        let of_route =
            &mut self.requests[route.map_or(ROUTES.len(), |route| usize::from(route.index))];
        let is_same =
            |one: &&mut Requests| (one.status, one.cache_status) == (status, cache_status);
        if let Some(known) = of_route.iter_mut().find(is_same) {
            known.count += 1;
            return;
        }
        let status = if of_route.len() < SERIES_PER_ROUTE_MAX { status } else { 0 };
        let of_others = |one: &&mut Requests| one.status == 0 && one.cache_status == cache_status;
        match of_route.iter_mut().find(of_others).filter(|_| status == 0) {
            Some(others) => others.count += 1,
            None => of_route.push(Requests { status, cache_status, count: 1 }),
        }
    }

    /// The path of each route, or `other`, and its requests.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &[Requests])> {
        let paths = ROUTES.iter().map(|(path, _)| *path).chain([OTHER]);
        paths.zip(self.requests.iter().map(Vec::as_slice))
    }

    /// A client was closed because it was too slow.
    pub fn closed_slow(&mut self, slow: Slow) {
        self.slow_clients[slow as usize] += 1;
    }

    /// The number of clients closed because they were too slow, by the name of the phase.
    pub fn slow_clients(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SLOW.into_iter().zip(self.slow_clients)
    }

    /// A TLS handshake has ended.
    pub fn handshake(&mut self, side: Side, handshake: Handshake) {
        self.handshakes[side as usize][handshake as usize] += 1;
    }

    /// The number of TLS handshakes that ended, by the names of side and outcome.
    pub fn handshakes(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let sides = SIDES.into_iter().zip(self.handshakes);
        sides.flat_map(|(side, outcomes)| {
            HANDSHAKES.into_iter().zip(outcomes).map(move |(name, count)| (side, name, count))
        })
    }

    /// A fetch began.
    pub fn fetch_begun(&mut self, now: Time) {
        self.recent.second(now).fetches += 1;
    }

    /// A fetch brought an answer, this long after the decision to ask.
    pub fn fetch_answered(&mut self, now: Time, duration_ms: u64) {
        self.fetch_duration.add(duration_ms);
        self.patroni.stands(now, Standing::Answers);
        self.patroni.answered_at = Some(now);
        self.patroni.failure = None;
    }

    /// A fetch brought no answer.
    pub fn fetch_failed(&mut self, now: Time, failure: Failure) {
        let name = failure.name();
        match self.fetch_failures.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.fetch_failures.push((name, 1)),
        }
        match failure.culprit() {
            Culprit::Silent => self.patroni.stands(now, Standing::Silent),
            Culprit::Gone | Culprit::Broken => self.patroni.stands(now, Standing::Gone),
            Culprit::Ours => return,
        }
        let times = self.patroni.failure.filter(|(known, _)| *known == failure);
        self.patroni.failure = Some((failure, times.map_or(0, |(_, times)| times) + 1));
    }

    /// Fetches that brought no answer, by the reason's name.
    pub fn fetch_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let known = |name| self.fetch_failures.iter().find(|(known, _)| *known == name);
        let always = ALWAYS_SHOWN.map(|name| (name, known(name).map_or(0, |(_, count)| *count)));
        let others = self.fetch_failures.iter().filter(|(name, _)| !ALWAYS_SHOWN.contains(name));
        always.into_iter().chain(others.copied())
    }

    /// A read of the DCS has ended.
    pub fn witness_read(&mut self, read: WitnessRead) {
        self.witness_reads[read as usize] += 1;
        self.witness_up = Some(read != WitnessRead::Failed);
    }

    /// The number of reads of the DCS that ended, by the name of the outcome.
    pub fn witness_reads(&self) -> impl Iterator<Item = (&'static str, u64)> {
        WITNESS_READS.into_iter().zip(self.witness_reads)
    }
}

impl Histogram {
    /// Adds a duration.
    pub fn add(&mut self, ms: u64) {
        let bucket = BUCKETS_MS.iter().position(|(bound, _)| ms as f64 <= *bound);
        self.counts[bucket.unwrap_or(BUCKETS_MS.len())] += 1;
        self.sum_ms += ms;
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound in seconds, as text, and the number of durations up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bounds = BUCKETS_MS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }
}

impl PatroniState {
    fn stands(&mut self, now: Time, standing: Standing) {
        if self.standing != standing {
            (self.standing, self.since) = (standing, now);
        }
    }
}

impl Standing {
    /// All of them.
    pub const ALL: [Standing; 4] =
        [Standing::Unknown, Standing::Answers, Standing::Silent, Standing::Gone];

    /// Its name in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Answers => "answers",
            Standing::Silent => "silent",
            Standing::Gone => "gone",
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        let seconds = [Second::default(); RECENT_SECONDS];
        Recent { seconds, current: 0, place: 0, ends_at: Time::ZERO }
    }
}

impl Recent {
    /// The counts of the current second.
    fn second(&mut self, now: Time) -> &mut Second {
        if now >= self.ends_at {
            self.move_on(now);
        }
        &mut self.seconds[self.place]
    }

    /// Empties the seconds in which nothing happened.
    fn move_on(&mut self, now: Time) {
        let second = now.as_ms() / 1_000;
        let first = (self.current + 1).max(second.saturating_sub(RECENT_SECONDS as u64 - 1));
        for skipped in first..=second {
            self.seconds[(skipped % RECENT_SECONDS as u64) as usize] = Second::default();
        }
        self.current = self.current.max(second);
        self.place = (self.current % RECENT_SECONDS as u64) as usize;
        self.ends_at = Time::from_ms((self.current + 1) * 1_000);
    }

    /// The last whole seconds, the oldest first: fewer shortly after the start.
    pub fn whole_seconds(&mut self, now: Time) -> impl Iterator<Item = Second> {
        self.move_on(now);
        let first = self.current.saturating_sub(RECENT_SECONDS as u64 - 1);
        let place = |second: u64| (second % RECENT_SECONDS as u64) as usize;
        (first..self.current).map(move |second| self.seconds[place(second)])
    }
}

impl Rate {
    /// Counts a request.
    pub fn count(&mut self, now: Time) {
        if now >= self.ends_at {
            self.move_on(now);
        }
        self.count += 1;
    }

    /// Requests per second: those of the current window, and the share of the previous one that
    /// lies in the last 10 seconds.
    pub fn per_second(mut self, now: Time) -> f64 {
        self.move_on(now);
        let since_ms = now.as_ms() % RATE_WINDOW_MS;
        let rest = 1.0 - since_ms as f64 / RATE_WINDOW_MS as f64;
        let count = f64::from(self.count) + f64::from(self.previous) * rest;
        count * 1e3 / now.as_ms().clamp(1_000, RATE_WINDOW_MS) as f64
    }

    fn move_on(&mut self, now: Time) {
        let window = now.as_ms() / RATE_WINDOW_MS;
        if window > self.window {
            let previous = if window == self.window + 1 { self.count } else { 0 };
            *self = Rate { window, ends_at: Time::ZERO, count: 0, previous };
        }
        self.ends_at = Time::from_ms((self.window + 1) * RATE_WINDOW_MS);
    }
}

/// How many seconds are remembered, the current one included: two minutes.
pub const RECENT_SECONDS: usize = 121;
/// Maximum combinations of status and source for a route; in practice there are fewer than ten.
/// Further ones are counted without their status, so that memory and scrapes stay limited.
pub const SERIES_PER_ROUTE_MAX: usize = 64;
/// The label of targets without a route, and of further statuses.
pub const OTHER: &str = "other";
/// The window of [`Rate`]: with one check every two seconds the rate is still steady.
const RATE_WINDOW_MS: u64 = 10_000;
/// The upper bounds of a histogram's buckets, and their text in seconds: the usual ones of
/// Prometheus' client libraries, from 1 ms to 5 s.
const BUCKETS_MS: [(f64, &str); 12] = [
    (1.0, "0.001"),
    (2.5, "0.0025"),
    (5.0, "0.005"),
    (10.0, "0.01"),
    (25.0, "0.025"),
    (50.0, "0.05"),
    (100.0, "0.1"),
    (250.0, "0.25"),
    (500.0, "0.5"),
    (1_000.0, "1"),
    (2_500.0, "2.5"),
    (5_000.0, "5"),
];
/// The names of [`Slow`], in its order.
const SLOW: [&str; 4] = ["handshake", "head", "idle", "answer"];
/// The names of [`Side`], in its order.
const SIDES: [&str; 2] = ["client", "patroni"];
/// The names of [`Handshake`], in its order.
const HANDSHAKES: [&str; 3] = ["full", "resumed", "failed"];
/// The names of [`WitnessRead`], in its order.
const WITNESS_READS: [&str; 4] = ["evidence", "contradiction", "nothing", "failed"];
/// Names of failures that are shown from the start, so that their first increase is visible.
const ALWAYS_SHOWN: [&str; 5] = ["refused", "timed_out", "reset", "closed", "cut"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::plain_routes;

    const START: Time = Time::ZERO;

    #[test]
    fn requests_are_counted_by_route_status_and_source() {
        let mut stats = Stats::default();
        let route = plain_routes().nth(1).expect("/primary");
        stats.answered(START, Some(route), 200, Some(CacheStatus::Hit));
        stats.answered(START, Some(route), 200, Some(CacheStatus::Hit));
        stats.answered(START, Some(route), 503, None);
        stats.answered(START, None, 404, None);
        let found: Vec<_> = stats.requests().filter(|(_, requests)| !requests.is_empty()).collect();
        let hit = Requests { status: 200, cache_status: Some(CacheStatus::Hit), count: 2 };
        let local = |status| Requests { status, cache_status: None, count: 1 };
        assert_eq!(found, [("/primary", &[hit, local(503)][..]), ("other", &[local(404)][..])]);
    }

    #[test]
    fn statuses_beyond_the_limit_are_counted_without_their_status() {
        let mut stats = Stats::default();
        let limit = SERIES_PER_ROUTE_MAX as u16;
        for status in 200..200 + limit + 10 {
            stats.answered(START, None, status, None);
        }
        let (_, requests) = stats.requests().last().expect("other");
        assert_eq!(requests.len(), SERIES_PER_ROUTE_MAX + 1);
        let others = requests.last().expect("one");
        assert_eq!((others.status, others.count), (0, 10));
    }

    #[test]
    fn a_histogram_has_each_duration_in_all_wider_buckets() {
        let mut histogram = Histogram::default();
        for ms in [0, 1, 2, 3, 5_000, 5_001] {
            histogram.add(ms);
        }
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative[..4], [("0.001", 2), ("0.0025", 3), ("0.005", 4), ("0.01", 4)]);
        assert_eq!(cumulative[11..], [("5", 5), ("+Inf", 6)]);
        assert_eq!((histogram.count(), histogram.sum_ms), (6, 10_007));
    }

    #[test]
    fn the_last_two_minutes_are_remembered_second_by_second() {
        let mut stats = Stats::default();
        let at = |second: u64| Time::from_ms(second * 1_000 + 999);
        for second in [0, 1, 1, 4] {
            stats.answered(at(second), None, 404, None);
        }
        let requests = |stats: &mut Stats, second| {
            let seconds = stats.recent.whole_seconds(at(second));
            seconds.map(|second| second.requests).collect::<Vec<_>>()
        };
        assert_eq!(requests(&mut stats, 4), [1, 2, 0, 0]);
        assert_eq!(requests(&mut stats, 5), [1, 2, 0, 0, 1]);
        let later = requests(&mut stats, 123);
        assert_eq!((later.len(), later[0], later.iter().sum::<u32>()), (120, 0, 1));
        assert_eq!(requests(&mut stats, 1_000), [0; 120]);
    }

    #[test]
    fn a_rate_is_steady_for_a_steady_client() {
        let mut rate = Rate::default();
        for second in 0..30 {
            rate.count(Time::from_ms(second * 1_000));
            rate.count(Time::from_ms(second * 1_000 + 500));
            let found = rate.per_second(Time::from_ms(second * 1_000 + 999));
            assert!((1.9..=2.2).contains(&found) || second < 2, "{second}: {found}");
        }
        assert_eq!(rate.per_second(Time::from_ms(60_000)), 0.0);
    }

    #[test]
    fn patronis_state_counts_the_same_failure_in_a_row() {
        let mut stats = Stats::default();
        stats.fetch_failed(Time::from_ms(1), Failure::TimedOut);
        stats.fetch_failed(Time::from_ms(2), Failure::NoRoom);
        stats.fetch_failed(Time::from_ms(3), Failure::TimedOut);
        assert_eq!(stats.patroni.failure, Some((Failure::TimedOut, 2)));
        assert_eq!(
            (stats.patroni.standing, stats.patroni.since),
            (Standing::Silent, Time::from_ms(1))
        );
        stats.fetch_failed(Time::from_ms(4), Failure::Refused);
        assert_eq!(stats.patroni.failure, Some((Failure::Refused, 1)));
        assert_eq!(stats.patroni.standing, Standing::Gone);
        let shown: Vec<_> = stats.fetch_failures().collect();
        assert!(shown.contains(&("timed_out", 2)) && shown.contains(&("no_room", 1)));
        assert!(shown.contains(&("cut", 0)));
        stats.fetch_answered(Time::from_ms(5), 4);
        assert_eq!((stats.patroni.standing, stats.patroni.failure), (Standing::Answers, None));
    }
}
