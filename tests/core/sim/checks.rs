//! The promises, checked against a record of all answers of Patroni. The rules and numbers here are
//! written a second time on purpose, independent of the engine's.

use std::collections::BTreeMap;

use patroniglue::engine::Settings;
use patroniglue::failure::Failure;

use super::client::{Answer, is_health, is_leader_family, is_replica_family};
use super::patroni::{Clock, Intervals, Node, Patroni, Said};

pub type Outcome = Result<(), String>;

/// What the engine knows, and so which answers it may give.
pub struct Memory {
    targets: BTreeMap<String, Known>,
    /// Connections that failed before their target was known, the last of each kind.
    anonymous: Vec<Failed>,
    /// No answer asked for up to here may be served stale.
    stale_forbidden_ms: Option<u64>,
    /// Patroni's intervals as last read, and when.
    intervals: Option<(Intervals, u64)>,
    previous: Option<Node>,
    pub contradicted_step: u64,
    /// The last step at which an answer of any route showed a node without a lease.
    lapsed_step: u64,
}

#[derive(Default)]
struct Known {
    latest: Option<Brought>,
    failed: Option<Failed>,
    wanted_ms: Option<u64>,
    /// Whether it was asked for often enough that its failure is kept.
    holds: bool,
}

/// An answer that arrived.
#[derive(Clone, Debug)]
pub struct Brought {
    pub said: Said,
    pub asked_ms: u64,
    pub asked_step: u64,
    pub done: Clock,
    pub done_step: u64,
    /// The intervals known when it arrived.
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

/// An answer of the engine, and the request.
pub struct Given<'a> {
    pub clock: Clock,
    pub asked_step: u64,
    pub method: &'a str,
    pub target: &'a str,
    pub answer: &'a Answer,
    pub settings: &'a Settings,
    pub patroni: &'a Patroni,
    /// Whether a fetch that could be this target's has been in flight for `PATIENCE_MS`.
    pub slow: bool,
    /// Whether all connections to Patroni were in use recently.
    pub busy: bool,
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            targets: BTreeMap::new(),
            anonymous: Vec::new(),
            stale_forbidden_ms: None,
            intervals: None,
            previous: None,
            contradicted_step: 0,
            lapsed_step: 0,
        }
    }

    /// Records the answer of a fetch. Returns whether it contradicts the previous status.
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
            let previous = self.previous.replace(node.clone());
            contradicts = previous.as_ref().is_some_and(|previous| contradict(previous, &node));
            if let (Some(known), false) = (&mut self.previous, contradicts) {
                // an answer without a timeline does not mean that the node has none
                known.timeline = node.timeline.or(previous.and_then(|previous| previous.timeline));
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

    /// Records a failed fetch, whose target may not be known.
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
                self.anonymous.retain(|previous| previous.why != why);
                self.anonymous.push(failed);
            }
        }
    }

    /// Records that Patroni was gone, or that the wall clock jumped.
    pub fn forbid_stale(&mut self, ms: u64) {
        self.stale_forbidden_ms = Some(ms);
    }

    pub fn latest(&self, target: &str) -> Option<&Brought> {
        self.targets.get(target).and_then(|known| known.latest.as_ref())
    }

    /// The target's last fetch, if it failed.
    pub fn failure(&self, target: &str) -> Option<Failed> {
        self.targets.get(target).and_then(|known| known.failed)
    }

    /// Records a request for the target. Returns whether it is known to fail, and so answered at
    /// once.
    pub fn wanted(&mut self, target: &str, ms: u64) -> bool {
        let known = self.targets.entry(target.into()).or_default();
        let previous = known.wanted_ms.replace(ms);
        known.holds &= previous.is_some_and(|previous| previous + WANTED_MS > ms);
        known.failed.is_some() && known.holds
    }

    /// Until when the stale answer of a replica's route may be served; `None`: not at all.
    pub fn stale_until_ms(&self, target: &str, settings: &Settings) -> Option<u64> {
        let brought = self.latest(target)?;
        let may = settings.cache.grace_ms > 0
            && !target.contains('?')
            && brought.said.status == 200
            && (is_replica_family(target) || is_health(target))
            && self.stale_forbidden_ms.is_none_or(|ms| brought.asked_ms > ms)
            && brought.asked_step > self.contradicted_step;
        let until = brought.asked_ms + settings.cache.ttl_ms + settings.cache.grace_ms;
        may.then_some(until)
    }

    /// Checks promises 2, 3 and 5 for an answer of the engine.
    pub fn check(&mut self, given: &Given<'_>) -> Outcome {
        let cache = given.answer.cache.as_deref().ok_or("no Cache-Status")?;
        if cache.contains("detail=failed") {
            return self.check_failure(given);
        }
        let known = self.targets.get(given.target);
        let brought = known.and_then(|known| known.latest.as_ref());
        let brought = brought.ok_or("Patroni has not answered for this target")?;
        same(given, brought)?;
        let age_ms = given.clock.ms - brought.asked_ms;
        if given.answer.age != Some(age_ms / 1_000) {
            return Err(format!("Age {:?}, but the answer is {age_ms} ms old", given.answer.age));
        }
        let forgotten = brought.asked_step < self.contradicted_step
            && brought.done_step != self.contradicted_step;
        if forgotten {
            return Err(
                "promise 5: served, although a later status of the node contradicts it".into()
            );
        }
        if brought.done_step >= given.asked_step {
            let at_once = brought.done.ms == given.clock.ms;
            return if at_once { Ok(()) } else { Err("a waiting client was answered late".into()) };
        }
        let is_stale = age_ms >= given.settings.cache.ttl_ms;
        if is_stale {
            self.check_stale(given, brought, age_ms)?;
        }
        if is_leader_family(given.target) && brought.said.status == 200 {
            check_leader(given, brought, is_stale, self.lapsed_step)?;
        }
        Ok(())
    }

    fn check_failure(&mut self, given: &Given<'_>) -> Outcome {
        let Given { answer, target, .. } = given;
        if answer.status != 503 {
            return Err(format!("a failure served with status {}", answer.status));
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
        Err(format!("the failure served is {text:?}, but it was {failed:?}"))
    }

    /// Promises 2 and 3 for a stale answer.
    fn check_stale(&self, given: &Given<'_>, brought: &Brought, age_ms: u64) -> Outcome {
        let limits = given.settings.cache;
        if limits.grace_ms == 0 || age_ms >= limits.ttl_ms + limits.grace_ms {
            return Err(format!("promise 2: the answer is {age_ms} ms old"));
        }
        let target = given.target;
        let may = is_leader_family(target) || is_replica_family(target) || is_health(target);
        if !may || brought.said.status != 200 {
            return Err("promise 3: stale, although this target is never served stale".into());
        }
        if self.stale_forbidden_ms.is_some_and(|ms| brought.asked_ms <= ms) {
            return Err("promise 3: stale, although Patroni was gone since".into());
        }
        let timed_out = self.targets.get(target).and_then(|known| known.failed);
        let mut failed = timed_out.iter().chain(&self.anonymous);
        let silent = failed.any(|failed| failed.step > brought.done_step);
        if !silent && !given.slow && !given.busy {
            return Err("promise 2: stale, although Patroni is not silent".into());
        }
        Ok(())
    }
}

/// Checks that the answer is Patroni's last one, to the byte.
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
        "not Patroni's last answer: {} {:?} instead of {} {:?}",
        answer.status,
        String::from_utf8_lossy(&answer.body),
        said.status,
        String::from_utf8_lossy(&said.body)
    ))
}

/// Promise 3 for a leader's cached 200.
fn check_leader(given: &Given<'_>, brought: &Brought, is_stale: bool, lapsed_step: u64) -> Outcome {
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
            return Err(
                "promise 3: nothing is known of the lease, and the answer is past 1 s".into()
            );
        }
        Some(seen) if over(seen * 1_000 + ttl_ms) => {
            return Err("promise 3: the ttl since dcs_last_seen is over".into());
        }
        _ => {}
    }
    // for 1 s the node's own word that it leads is served, even if our read moved dcs_last_seen
    let aged = age_ms >= 1_000 && clock.ms >= brought.done.ms + 1_000;
    if aged && seen.is_some() && over(brought.said.loop_seen * 1_000 + ttl_ms) {
        return Err("promise 3: the ttl since the HA loop saw the DCS is over".into());
    }
    if !is_stale {
        return Ok(());
    }
    let (Some(seen), Some(intervals), Some(node)) = (seen, brought.intervals, &brought.said.node)
    else {
        return Err("promise 3: stale, with nothing known of the lease".into());
    };
    if node.flags != [false; 3] || node.state != "running" {
        return Err("promise 3: stale, although its status shows no lease".into());
    }
    if lapsed_step > brought.done_step {
        return Err(
            "promise 3: stale, although another route shows that the node has no lease".into()
        );
    }
    let sure = intervals.ttl - intervals.loop_wait - intervals.retry_timeout;
    if over((seen + sure) * 1_000) {
        return Err("promise 3: D is over".into());
    }
    let patroni = given.patroni;
    let read_since = patroni.lowered_ms.is_none_or(|ms| brought.done.ms > ms + INTERVALS_MS_MAX);
    if read_since && patroni.is_split(clock.ms) {
        return Err("promise 3: the lease is over, and the previous primary takes writes".into());
    }
    Ok(())
}

/// Whether the role, the timeline or `running` has changed.
fn contradict(previous: &Node, node: &Node) -> bool {
    let timelines = previous.timeline.zip(node.timeline);
    previous.role != node.role
        || timelines.is_some_and(|(previous, now)| previous != now)
        || (previous.state == "running" && node.state != "running")
}

/// A little less than the 10 s for which a failure is kept without requests.
const WANTED_MS: u64 = 9_000;
/// For how long intervals that were read count.
const INTERVALS_MS_MAX: u64 = 75_000;
