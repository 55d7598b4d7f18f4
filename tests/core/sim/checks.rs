//! What may be answered: an own memory of all that Patroni said, and the promises by it.

use std::collections::BTreeMap;

use patroniglue::engine::Settings;
use patroniglue::failure::Failure;

use super::client::{Answer, is_health, is_leader_family, is_replica_family};
use super::patroni::{Clock, Intervals, Node, Patroni, Said};

pub type Outcome = Result<(), String>;

/// What the engine was told, so what it may say.
pub struct Memory {
    targets: BTreeMap<String, Known>,
    /// Connections that failed before it was known what for, the last of each kind.
    anonymous: Vec<Failed>,
    /// Nothing that was asked up to here may be served old.
    old_forbidden_ms: Option<u64>,
    /// Patroni's intervals, as they were read last, and when.
    intervals: Option<(Intervals, u64)>,
    former: Option<Node>,
    pub contradicted_step: u64,
    /// An answer of whatever route said that the leader's word rests on no lease.
    lapsed_step: u64,
}

#[derive(Default)]
struct Known {
    latest: Option<Brought>,
    failed: Option<Failed>,
    wanted_ms: Option<u64>,
    /// It has been asked for so steadily that its failure is remembered.
    holds: bool,
}

/// An answer that came.
#[derive(Clone, Debug)]
pub struct Brought {
    pub said: Said,
    pub asked_ms: u64,
    pub asked_step: u64,
    pub done: Clock,
    pub done_step: u64,
    /// The intervals known when it came.
    pub intervals: Option<Intervals>,
}

#[derive(Clone, Copy, Debug)]
pub struct Failed {
    pub why: Failure,
    /// When Patroni was asked.
    pub asked_ms: u64,
    pub ms: u64,
    pub step: u64,
}

/// An answer that the engine gives, and to what.
pub struct Given<'a> {
    pub clock: Clock,
    pub asked_step: u64,
    pub method: &'a str,
    pub target: &'a str,
    pub answer: &'a Answer,
    pub settings: &'a Settings,
    pub patroni: &'a Patroni,
    /// A fetch that could be this target's has been on its way for long.
    pub slow: bool,
    /// All connections to Patroni were taken not long ago.
    pub busy: bool,
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            targets: BTreeMap::new(),
            anonymous: Vec::new(),
            old_forbidden_ms: None,
            intervals: None,
            former: None,
            contradicted_step: 0,
            lapsed_step: 0,
        }
    }

    /// A fetch brought an answer. True: it contradicts what was said before.
    pub fn fetched(&mut self, mut brought: Brought) -> bool {
        let ms = brought.done.ms;
        if brought.said.target == "/config" {
            let intervals = brought.said.intervals.filter(|_| brought.said.status == 200);
            self.intervals = intervals.map(|intervals| (intervals, ms)).or(self.intervals);
            return false;
        }
        let known = self.intervals.filter(|(_, read_ms)| ms - read_ms < INTERVALS_MS_MAX);
        brought.intervals = known.map(|(intervals, _)| intervals);
        let step = brought.done_step;
        let mut contradicts = false;
        if let Some(node) = brought.said.node.clone() {
            let former = self.former.replace(node.clone());
            contradicts = former.as_ref().is_some_and(|former| contradict(former, &node));
            if let (Some(known), false) = (&mut self.former, contradicts) {
                // who says nothing of the timeline does not say that it has none
                known.timeline = node.timeline.or(former.and_then(|former| former.timeline));
            }
        }
        if contradicts {
            self.contradicted_step = step;
        }
        if brought.said.node.as_ref().is_some_and(|node| !node.is_under_lease()) {
            self.lapsed_step = step;
        }
        let known = self.targets.entry(brought.said.target.clone()).or_default();
        known.latest = Some(brought);
        known.failed = None;
        contradicts
    }

    /// A fetch failed; for what, may not be known.
    pub fn failed(&mut self, target: Option<&str>, failed: Failed) {
        let why = failed.why;
        if why != Failure::TimedOut {
            self.forbid_stale(failed.ms);
        }
        match target {
            Some(target) => {
                let known = self.targets.entry(target.into()).or_default();
                known.failed = Some(failed);
                known.holds = known.wanted_ms.is_some_and(|ms| ms + WANTED_MS > failed.ms);
            }
            None => {
                self.anonymous.retain(|former| former.why != why);
                self.anonymous.push(failed);
            }
        }
    }

    /// Patroni was gone, or the wall clock jumped.
    pub fn forbid_stale(&mut self, ms: u64) {
        self.old_forbidden_ms = Some(ms);
    }

    pub fn latest(&self, target: &str) -> Option<&Brought> {
        self.targets.get(target).and_then(|known| known.latest.as_ref())
    }

    /// The target's last fetch, if it failed.
    pub fn failure(&self, target: &str) -> Option<Failed> {
        self.targets.get(target).and_then(|known| known.failed)
    }

    /// A client asks for the target. Is it known to fail, and so answered at once?
    pub fn wanted(&mut self, target: &str, ms: u64) -> bool {
        let known = self.targets.entry(target.into()).or_default();
        let former = known.wanted_ms.replace(ms);
        known.holds &= former.is_some_and(|former| former + WANTED_MS > ms);
        known.failed.is_some() && known.holds
    }

    /// When the old answer of a replica's route, asked for now, stops being one that may be
    /// served; `None`: it may not be served at all.
    pub fn old_until_ms(&self, target: &str, settings: &Settings) -> Option<u64> {
        let brought = self.latest(target)?;
        let may = settings.cache.grace_ms > 0
            && !target.contains('?')
            && brought.said.status == 200
            && (is_replica_family(target) || is_health(target))
            && self.old_forbidden_ms.is_none_or(|ms| brought.asked_ms > ms)
            && brought.asked_step > self.contradicted_step;
        let until = brought.asked_ms + settings.cache.ttl_ms + settings.cache.grace_ms;
        may.then_some(until)
    }

    /// Promises 2, 3 and 5: may this be answered?
    pub fn check(&mut self, given: &Given<'_>) -> Outcome {
        let cache = given.answer.cache.as_deref().ok_or("no Cache-Status")?;
        if cache.contains("detail=failed") {
            return self.check_failure(given);
        }
        let known = self.targets.get(given.target);
        let brought = known.and_then(|known| known.latest.as_ref());
        let brought = brought.ok_or("Patroni has not said anything about this")?;
        same(given, brought)?;
        let age_ms = given.clock.ms - brought.asked_ms;
        if given.answer.age != Some(age_ms / 1_000) {
            return Err(format!("Age {:?}, but it is {age_ms} ms old", given.answer.age));
        }
        let forgotten = brought.asked_step < self.contradicted_step
            && brought.done_step != self.contradicted_step;
        if forgotten {
            return Err("promise 5: what contradicts the node's last word is served".into());
        }
        if brought.done_step >= given.asked_step {
            let at_once = brought.done.ms == given.clock.ms;
            return if at_once { Ok(()) } else { Err("a waiter was told late".into()) };
        }
        let is_old = age_ms >= given.settings.cache.ttl_ms;
        if is_old {
            self.check_old(given, brought, age_ms)?;
        }
        if is_leader_family(given.target) && brought.said.status == 200 {
            check_leader(given, brought, is_old, self.lapsed_step)?;
        }
        Ok(())
    }

    fn check_failure(&mut self, given: &Given<'_>) -> Outcome {
        let Given { answer, target, .. } = given;
        if answer.status != 503 {
            return Err(format!("a failure with status {}", answer.status));
        }
        let known = self.targets.get(*target);
        let since = known.and_then(|known| known.latest.as_ref());
        let since = since.map_or(0, |brought| brought.done_step);
        let failed = known.and_then(|known| known.failed);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let says =
            |why: Failure| given.method != "GET" || text == format!("{{\"error\":\"{why}\"}}\n");
        let mut failures = failed.iter().chain(&self.anonymous);
        let truly = failures.any(|failed| failed.step > since && says(failed.why));
        if truly || (given.busy && says(Failure::TimedOut)) {
            return Ok(());
        }
        Err(format!("promise 7: {text:?}, but of {failed:?} that is not true"))
    }

    /// Promise 3, and 2 beyond the ttl.
    fn check_old(&self, given: &Given<'_>, brought: &Brought, age_ms: u64) -> Outcome {
        let limits = given.settings.cache;
        if limits.grace_ms == 0 || age_ms >= limits.ttl_ms + limits.grace_ms {
            return Err(format!("promise 2: it is {age_ms} ms old"));
        }
        let target = given.target;
        let may = is_leader_family(target) || is_replica_family(target) || is_health(target);
        if !may || brought.said.status != 200 {
            return Err("promise 3: this may never be old".into());
        }
        if self.old_forbidden_ms.is_some_and(|ms| brought.asked_ms <= ms) {
            return Err("promise 3: old, although Patroni was gone since".into());
        }
        let timed_out = self.targets.get(target).and_then(|known| known.failed);
        let mut failed = timed_out.iter().chain(&self.anonymous);
        let silent = failed.any(|failed| failed.step > brought.done_step);
        if !silent && !given.slow && !given.busy {
            return Err("promise 2: old, although Patroni is not silent".into());
        }
        Ok(())
    }
}

/// Is it what Patroni said last, to the byte?
fn same(given: &Given<'_>, brought: &Brought) -> Outcome {
    let (answer, said) = (given.answer, &brought.said);
    let options = given.method == "OPTIONS";
    let content_type = said.content_type.filter(|_| !options);
    let length = if options { 0 } else { said.body.len() };
    let body: &[u8] = if given.method == "GET" { &said.body } else { &[] };
    let right = answer.status == said.status
        && answer.content_type.as_deref() == content_type
        && answer.content_length == length
        && answer.allow == options
        && answer.body == body;
    if right {
        return Ok(());
    }
    Err(format!(
        "it is not what Patroni said last: {} {:?} instead of {} {:?}",
        answer.status,
        String::from_utf8_lossy(&answer.body),
        said.status,
        String::from_utf8_lossy(&said.body)
    ))
}

/// Promise 3: a leader's 200 out of memory.
fn check_leader(given: &Given<'_>, brought: &Brought, is_old: bool, lapsed_step: u64) -> Outcome {
    let clock = given.clock;
    let age_ms = clock.ms - brought.asked_ms;
    let seen = brought.said.node.as_ref().and_then(|node| node.seen);
    let over = |until_unix_ms: u64| {
        let left_ms = until_unix_ms.saturating_sub(brought.done.unix_ms);
        clock.unix_ms >= until_unix_ms || clock.ms >= brought.done.ms + left_ms
    };
    let ttl_ms = brought.intervals.map_or(20, |intervals| intervals.ttl) * 1_000;
    let seen = seen.filter(|seen| seen * 1_000 <= brought.done.unix_ms);
    match seen {
        None if clock.ms >= brought.done.ms + 1_000 => {
            return Err("promise 3: nothing is known of its lease, and a second is over".into());
        }
        Some(seen) if over(seen * 1_000 + ttl_ms) => {
            return Err("promise 3: the ttl since dcs_last_seen is over".into());
        }
        _ => {}
    }
    // Patroni has only just said that it leads: for a second that is believed, whoever moved it
    let aged = age_ms >= 1_000 && clock.ms >= brought.done.ms + 1_000;
    if aged && seen.is_some() && over(brought.said.loop_seen * 1_000 + ttl_ms) {
        return Err("promise 3: the ttl since the HA loop saw the DCS is over".into());
    }
    if !is_old {
        return Ok(());
    }
    let (Some(seen), Some(intervals), Some(node)) = (seen, brought.intervals, &brought.said.node)
    else {
        return Err("promise 3: old, with nothing known of the lease".into());
    };
    if node.flags != [false; 3] || node.state != "running" {
        return Err("promise 3: old, although its word does not rest on a lease".into());
    }
    if lapsed_step > brought.done_step {
        return Err("promise 3: old, although the node says elsewhere that it has no lease".into());
    }
    let sure = intervals.ttl - intervals.loop_wait - intervals.retry_timeout;
    if over((seen + sure) * 1_000) {
        return Err("promise 3: D is over".into());
    }
    let patroni = given.patroni;
    let read_since = patroni.lowered_ms.is_none_or(|ms| brought.done.ms > ms + INTERVALS_MS_MAX);
    if read_since && patroni.is_split(clock.ms) {
        return Err("promise 3: the lease is over, and the old primary takes writes".into());
    }
    Ok(())
}

/// Another role, another timeline, or not running any more.
fn contradict(former: &Node, node: &Node) -> bool {
    let timelines = former.timeline.zip(node.timeline);
    former.role != node.role
        || timelines.is_some_and(|(former, now)| former != now)
        || (former.state == "running" && node.state != "running")
}

/// A little less than a failure is remembered without being asked for.
const WANTED_MS: u64 = 9_000;
/// After so long an answer is judged by the present intervals, or by none.
const INTERVALS_MS_MAX: u64 = 75_000;
