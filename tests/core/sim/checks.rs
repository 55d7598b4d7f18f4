//! The promises, checked against a record of all answers of Patroni. The rules and numbers here are
//! written a second time on purpose, independent of the engine's.

use std::collections::BTreeMap;

use patroniglue::engine::Settings;
use patroniglue::failure::Failure;

use super::client::{Answer, is_health, is_leader_family, is_replica_family};
use super::patroni::{Clock, Intervals, Node, Patroni, Said};
use super::witness_checks::Testimony;

pub type Outcome = Result<(), String>;

/// What the engine knows, and so which answers it may give.
pub struct Memory {
    targets: BTreeMap<String, Known>,
    /// Connections that failed before their target was known, the last of each kind.
    anonymous: Vec<Failed>,
    /// Whether a fetch has timed out, and Patroni has not been heard since.
    pub is_silent: bool,
    /// No answer asked for up to here may be served stale.
    stale_forbidden_ms: Option<u64>,
    /// Since when the DCS is configured: what came before may have been freed.
    pub dcs_since_ms: u64,
    /// Patroni's intervals as last read, and when.
    intervals: Option<(Intervals, u64)>,
    /// Whether the node got another name since.
    renamed: Renamed,
    /// The `ttl` of earlier intervals, and until when a lease may still rest on it.
    previous_ttl: Option<(u64, u64)>,
    /// The name of the node whose answers these are, and whether another address gave the last.
    identity: Option<(&'static str, bool)>,
    /// The name before, if the engine may not have learned the present one.
    doubted_name: Option<&'static str>,
    /// Whether an answer told it that did not come during a jump of the clock.
    is_identity_sure: bool,
    /// Whether another node answers.
    is_other: bool,
    /// The node's last report, and when Patroni was asked for it.
    previous: Option<(Node, u64)>,
    pub contradicted_step: u64,
    /// When and at which step an answer last ended the 200s of leader routes: of all of them, of
    /// `/primary` and its other spellings, of the standby leader's.
    leaders_ended: [Option<(u64, u64)>; 3],
    /// When an answer last ended them that the engine may not have learned.
    leaders_perhaps_ended_ms: Option<u64>,
    /// The last step at which fetches in flight may have been begun again, and its time.
    pub restarted: Option<(u64, u64)>,
    /// When an answer contradicted the previous one last.
    contradicted_ms: Option<u64>,
    /// When the node's state, role or timeline changed last.
    changed_ms: Option<u64>,
    /// When a transition was seen last.
    moving_ms: Option<u64>,
    /// The last step at which an answer of any route showed a node without a lease.
    lapsed_step: u64,
    /// Whether the last report may not have been learned.
    is_unsure: bool,
    /// When and at which step it was last not known what the previous report was.
    unsure: Option<(u64, u64)>,
}

/// Whether the node got another name since its intervals were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Renamed {
    No,
    /// The engine may not have learned it.
    Perhaps,
    Surely,
}

#[derive(Default)]
struct Known {
    latest: Option<Brought>,
    /// The one before, if the engine may have fetched the latest again.
    previous: Option<Brought>,
    failed: Option<Failed>,
    wanted_ms: Option<u64>,
    /// Whether it was asked for often enough that its failure is kept.
    holds: bool,
    /// The last step at which Patroni answered for it, but not usably.
    broken_step: u64,
}

/// An answer that arrived.
#[derive(Clone, Debug)]
pub struct Brought {
    pub said: Said,
    pub asked_ms: u64,
    pub asked_unix_ms: u64,
    pub asked_step: u64,
    pub done: Clock,
    pub done_step: u64,
    /// Whether the wall clock moved meanwhile, so that it may have been fetched again.
    pub moved: bool,
    /// The intervals known when it arrived.
    pub intervals: Option<Intervals>,
    /// The shortest `ttl` that may have been in force then.
    pub ttl_ms: u64,
    /// The shortest that the engine may take it for.
    pub ttl_ms_min: u64,
    /// Whether it is of another node than the first, and so never stale.
    pub is_anothers: bool,
}

impl Brought {
    /// Whether it is a leader's 200 whose fetch took 1 s or longer: if D passed meanwhile, it is
    /// fetched again, and what was in memory before stays.
    fn is_slow(&self) -> bool {
        let is_leaders = self.said.status == 200 && is_leader_family(&self.said.target);
        is_leaders && self.asked_ms + 1_000 <= self.done.ms
    }
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
pub struct Served<'a> {
    pub clock: Clock,
    pub asked_step: u64,
    pub method: &'a str,
    pub target: &'a str,
    pub answer: &'a Answer,
    pub settings: &'a Settings,
    pub patroni: &'a Patroni,
    /// Whether a fetch has been in flight for `PATIENCE_MS`.
    pub slow: bool,
    /// Whether all connections to Patroni were in use recently.
    pub busy: bool,
    /// How late the last turn came.
    pub late_ms: u64,
    pub is_shutdown: bool,
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            targets: BTreeMap::new(),
            anonymous: Vec::new(),
            is_silent: false,
            stale_forbidden_ms: None,
            dcs_since_ms: 0,
            intervals: None,
            renamed: Renamed::No,
            previous_ttl: None,
            identity: None,
            doubted_name: None,
            is_identity_sure: false,
            is_other: false,
            previous: None,
            contradicted_step: 0,
            leaders_ended: [None; 3],
            leaders_perhaps_ended_ms: None,
            restarted: None,
            contradicted_ms: None,
            changed_ms: None,
            moving_ms: None,
            lapsed_step: 0,
            is_unsure: false,
            unsure: None,
        }
    }

    /// Records the answer of a fetch. Returns whether it contradicts the previous status.
    pub fn fetched(&mut self, mut brought: Brought) -> bool {
        let (ms, step) = (brought.done.ms, brought.done_step);
        self.is_silent = false;
        if shows_another_clock(&brought) {
            self.restarted = Some((step, ms)); // leaders' 200s in memory end
        }
        if brought.said.target == "/config" {
            self.intervals_fetched(&brought);
            return false;
        }
        // whether the engine has learned the previous report and learns this one
        let is_sure = !self.is_unsure && !brought.moved;
        self.doubt(&brought);
        if let Some(name) = brought.said.node.as_ref().and_then(|node| node.name)
            && self.is_of_another_node(name, &brought, is_sure)
        {
            return self.refused(brought, name);
        }
        if self.is_overtaken(&brought) {
            self.restarted = Some((step, ms));
            if is_sure {
                return false;
            }
        }
        self.measure_ttl(&mut brought, is_sure);
        // what it says of the node counts all the same
        let is_fetched_again = (self.is_leader_ended(&brought) && !self.is_renamed_by(&brought))
            || bound_passed(&brought, brought.done.unix_ms);
        if self.is_renamed_by(&brought) {
            self.leaders_ended = [None; 3]; // they were the previous node's
        }
        let asked_ms = brought.asked_ms;
        let was_unlocked = self.previous.as_ref().is_some_and(|(node, _)| is_unlocked(node));
        let contradicts = match brought.said.node.clone() {
            Some(node) => self.reported(node, asked_ms, ms),
            None => false,
        };
        if contradicts {
            self.restarted = Some((step, ms));
        }
        if contradicts && is_sure {
            self.contradicted_step = step;
        }
        if let Some(ended) = ended_leaders(&brought.said, was_unlocked) {
            self.restarted = Some((step, ms));
            match brought.moved {
                true => self.leaders_perhaps_ended_ms = Some(ms),
                false => self.leaders_ended[ended] = Some((ms, step)),
            }
        }
        let lapsed = |node: &Node| !node.is_under_lease() && node.state != "unknown";
        if brought.said.node.as_ref().is_some_and(lapsed) {
            self.lapsed_step = step;
        }
        if is_fetched_again {
            self.restarted = Some((step, ms));
            if is_sure {
                return contradicts;
            }
        }
        let is_leaders = brought.said.status == 200 && is_leader_family(&brought.said.target);
        let perhaps = self.leaders_perhaps_ended_ms.filter(|_| is_leaders);
        let may_be_fetched_again = perhaps.is_some_and(|ended_ms| asked_ms <= ended_ms);
        if may_be_fetched_again {
            self.restarted = Some((step, ms));
        }
        self.keep(brought, is_sure && !may_be_fetched_again);
        contradicts
    }

    /// Records that an answer is in memory. If that is not sure, the one before may be.
    fn keep(&mut self, mut brought: Brought, is_sure: bool) {
        let known = self.targets.entry(brought.said.target.clone()).or_default();
        let is_slow = brought.is_slow();
        known.failed = known.failed.filter(|_| !is_sure || is_slow);
        brought.moved = !is_sure;
        let previous = known.previous.take().filter(|_| is_slow);
        let latest = known.latest.replace(brought);
        let is_kept = !is_sure || (is_slow && previous.is_none());
        known.previous = latest.filter(|_| is_kept).or(previous);
        known.holds = false;
    }

    /// Records the answer of a fetch of `/config`.
    fn intervals_fetched(&mut self, brought: &Brought) {
        let (ms, step) = (brought.done.ms, brought.done_step);
        let intervals = brought.said.intervals.filter(|_| brought.said.status == 200);
        let changed = intervals.is_some() && intervals != self.intervals.map(|known| known.0);
        if let Some((previous, _)) = self.intervals.filter(|_| changed) {
            let earlier = self.previous_ttl.filter(|(_, until_ms)| ms < *until_ms);
            let ttl_ms = ttl_ms(Some(previous));
            let ttl_ms = earlier.map_or(ttl_ms, |(earlier, _)| ttl_ms.min(earlier));
            self.previous_ttl = Some((ttl_ms, ms + previous.ttl * 1_000));
        }
        if changed {
            self.restarted = Some((step, ms));
        }
        self.intervals = intervals.map(|intervals| (intervals, ms)).or(self.intervals);
        if intervals.is_some() {
            self.renamed = Renamed::No;
        }
    }

    /// Finds the `ttl` that bounds the lease of an answer. After another name the intervals are not
    /// known until they are fetched again.
    fn measure_ttl(&mut self, brought: &mut Brought, is_sure: bool) {
        let ms = brought.done.ms;
        if self.is_renamed_by(brought) {
            self.renamed =
                self.renamed.max(if is_sure { Renamed::Surely } else { Renamed::Perhaps });
        }
        let known = self.intervals.filter(|(_, read_ms)| ms - read_ms < INTERVALS_MS_MAX);
        let known = known.filter(|_| self.renamed != Renamed::Surely);
        brought.intervals = known.map(|(intervals, _)| intervals);
        let previous = self.previous_ttl.filter(|(_, until_ms)| ms < *until_ms);
        let current_ms = ttl_ms(brought.intervals);
        let both = known.and(previous).map_or(current_ms, |(previous, _)| current_ms.min(previous));
        brought.ttl_ms = both;
        let is_named = self.renamed == Renamed::No;
        brought.ttl_ms_min = if is_named { both } else { both.min(ttl_ms(None)) };
    }

    /// An answer that comes together with a jump of the wall clock is fetched again, and what it
    /// reports is not learned. The size of a jump is the engine's to judge, so that after an answer
    /// during which the clock moved the previous report is not known: the next answer may
    /// contradict it or not.
    fn doubt(&mut self, brought: &Brought) {
        let Some(node) = &brought.said.node else { return };
        let (ms, step) = (brought.done.ms, brought.done_step);
        if brought.moved {
            let previous = self.previous.as_ref().map(|(previous, _)| previous);
            let of = |node: &Node| (node.state, node.role, node.timeline, node.name);
            self.is_unsure |= self.is_other || previous.is_none_or(|it| of(it) != of(node));
        }
        if self.is_unsure {
            self.unsure = Some((ms, step));
            self.restarted = Some((step, ms));
            self.forget_failures();
        }
        // one asked for before the last report may have been overtaken, and so not been learned
        let last_asked_ms = self.previous.as_ref().map_or(0, |(_, asked_ms)| *asked_ms);
        let lacks = |previous: &Node| {
            // what it does not say is taken from a report that may not have been learned
            node.state == "unknown"
                || (node.timeline.is_none() && previous.timeline.is_some())
                || (node.name.is_none() && previous.name.is_some())
        };
        let is_partial = self.previous.as_ref().is_some_and(|(previous, _)| lacks(previous));
        self.is_unsure &= brought.moved || is_partial || brought.asked_ms < last_asked_ms;
    }

    /// Whether the answers that were asked for up to here may have been ended by an answer.
    pub fn may_be_ended(&self, brought: &Brought) -> bool {
        self.unsure.is_some_and(|(_, step)| brought.asked_step <= step)
    }

    /// Whether an answer is not passed on, because it may no longer be true: the later question
    /// has been answered, and differs.
    fn is_overtaken(&self, brought: &Brought) -> bool {
        let differs = |(previous, asked_ms): &(Node, u64)| {
            let differs = |node: &Node| is_renamed(previous, node) || contradict(previous, node);
            brought.asked_ms < *asked_ms && brought.said.node.as_ref().is_some_and(differs)
        };
        self.previous.as_ref().is_some_and(differs)
    }

    /// Whether it is the first answer under another name.
    fn is_renamed_by(&self, brought: &Brought) -> bool {
        let previous = self.previous.as_ref().map(|(previous, _)| previous);
        previous.zip(brought.said.node.as_ref()).is_some_and(|(one, other)| is_renamed(one, other))
    }

    /// Whether another name comes from another address.
    fn is_of_another_node(&mut self, name: &'static str, brought: &Brought, is_sure: bool) -> bool {
        let address = brought.said.is_other;
        self.is_identity_sure |= !brought.moved;
        let Some((known, known_address)) = self.identity else {
            self.identity = Some((name, address));
            return false;
        };
        if known != name && known_address != address {
            return true;
        }
        if known != name && self.is_overtaken(brought) {
            return false; // the previous name counts until a later question is answered
        }
        if known != name || is_sure {
            self.doubted_name = (!is_sure).then_some(known);
        }
        self.identity = Some((name, address));
        let is_back = std::mem::replace(&mut self.is_other, false);
        let is_renamed_meanwhile = known != name && self.previous.is_none();
        if is_back || is_renamed_meanwhile {
            if is_sure {
                self.contradicted_step = brought.done_step;
            }
            self.restarted = Some((brought.done_step, brought.done.ms));
            self.forget_failures();
        }
        false
    }

    /// Records an answer of another node: its leader and replica routes are answered with 503, and
    /// the first one ends everything. Returns whether it did.
    fn refused(&mut self, mut brought: Brought, name: &str) -> bool {
        let (step, ms) = (brought.done_step, brought.done.ms);
        let is_news = !std::mem::replace(&mut self.is_other, true);
        if is_news {
            self.contradicted_step = step;
            self.restarted = Some((step, ms));
            self.previous = None;
            (self.changed_ms, self.contradicted_ms) = (None, None);
            self.leaders_ended = [None; 3];
            self.forget_failures();
        }
        let target = brought.said.target.clone();
        let mut doubted = None;
        if is_leader_family(&target) || is_replica_family(&target) {
            let first = self.identity.map_or("", |(name, _)| name);
            let body = |first| format!("{{\"error\":\"this is {name}, not {first}\"}}\n");
            (brought.said.status, brought.said.body) = (503, body(first).into_bytes());
            doubted = self.doubted_name.map(|first| body(first).into_bytes());
        }
        brought.said.node = None;
        brought.is_anothers = true;
        let known = self.targets.entry(target).or_default();
        known.failed = known.failed.filter(|_| brought.moved);
        known.previous = doubted.map(|body| {
            let mut previous = brought.clone();
            (previous.said.node, previous.said.body) = (None, body);
            Brought { is_anothers: true, ..previous }
        });
        known.latest = Some(brought);
        is_news
    }

    /// Records a report of the node. Returns whether it contradicts the previous one.
    fn reported(&mut self, mut node: Node, asked_ms: u64, ms: u64) -> bool {
        let Some((previous, previous_asked_ms)) = self.previous.take() else {
            self.changed_ms = (node.state != "running").then_some(ms);
            self.previous = Some((node, asked_ms));
            return false;
        };
        let renamed = is_renamed(&previous, &node);
        if node.state == "unknown" && !renamed {
            node.state = previous.state; // PostgreSQL that answers no query has no other state
        }
        let contradicts = renamed || contradict(&previous, &node);
        if asked_ms < previous_asked_ms {
            // the later question was answered first: what it brought against the lease counts
            let later = &previous;
            node.state = if node.state == "running" { later.state } else { node.state };
            (0..node.flags.len()).for_each(|flag| node.flags[flag] |= later.flags[flag]);
        }
        if previous.state != "running" {
            self.moving_ms = Some(ms);
        }
        if renamed {
            // another node, of whose changes nothing is known
            self.changed_ms = (node.state != "running").then_some(ms);
            self.contradicted_ms = None;
            self.forget_failures();
        } else if contradicts {
            (self.changed_ms, self.contradicted_ms) = (Some(ms), Some(ms));
        } else if previous.state != node.state {
            self.changed_ms = Some(ms);
        }
        if !contradicts {
            // an answer without a timeline does not mean that the node has none
            node.timeline = node.timeline.or(previous.timeline);
        }
        node.name = node.name.or(previous.name);
        self.previous = Some((node, asked_ms.max(previous_asked_ms)));
        contradicts
    }

    /// After a reload the node's name counts once it has been told again.
    pub fn doubt_the_node(&mut self) {
        self.is_identity_sure = false;
    }

    /// The 200 that the DCS can confirm, if it surely is in memory.
    pub fn witnessed(&self, target: &str, moved_ms: Option<u64>) -> Option<&Brought> {
        let known = self.targets.get(target).filter(|known| known.previous.is_none())?;
        let brought = known.latest.as_ref()?;
        let may = moved_ms.is_none_or(|ms| brought.asked_ms > ms)
            && !target.contains('?')
            && brought.said.status == 200
            && !brought.is_anothers
            && (is_replica_family(target) || is_leader_family(target))
            && self.stale_forbidden_ms.is_none_or(|ms| brought.asked_ms > ms)
            && self.restarted.is_none_or(|(_, ms)| brought.asked_ms > ms)
            && brought.done.ms >= self.dcs_since_ms
            && !self.may_be_ended(brought)
            && known.broken_step < brought.done_step;
        may.then_some(brought)
    }

    /// What Patroni said last of the node.
    pub fn subject(&self) -> Option<&Node> {
        let is_known = !self.is_other && !self.is_unsure;
        self.previous.as_ref().filter(|_| is_known).map(|(node, _)| node)
    }

    /// Whether Patroni may count as silent by what it answered last.
    pub fn may_be_silent(&self) -> bool {
        let failed = self.targets.values().filter_map(|known| known.failed);
        let mut failed = failed.chain(self.anonymous.iter().copied());
        self.is_silent || failed.any(|failed| failed.why == Failure::TimedOut)
    }

    /// Whether a 200 is known that the DCS could confirm.
    pub fn has_witnessed(&self) -> bool {
        let latest = self.targets.values().filter_map(|known| known.latest.as_ref());
        latest.into_iter().any(|brought| {
            let target = &brought.said.target;
            let is_check = is_leader_family(target) || is_replica_family(target);
            let since = self.stale_forbidden_ms.is_none_or(|ms| brought.asked_ms > ms);
            is_check && !target.contains('?') && brought.said.status == 200 && since
        })
    }

    /// Whether the name of the first node is known.
    pub fn knows_the_node(&self) -> bool {
        self.is_identity_sure
    }

    /// A client that asks for a failing target may have to wait for a new fetch.
    pub fn forget_failures(&mut self) {
        self.targets.values_mut().for_each(|known| known.holds = false);
    }

    /// Whether a leader's 200 was asked for before another answer ended it.
    fn is_leader_ended(&self, brought: &Brought) -> bool {
        if brought.said.status != 200 || !is_leader_family(&brought.said.target) {
            return false;
        }
        let [all, primary, standby] = self.leaders_ended;
        let ended = match brought.said.target.as_str() {
            "/leader" => all,
            "/standby-leader" | "/standby_leader" => all.max(standby),
            _ => all.max(primary),
        };
        // the one that ends others may be a 200 itself, without a lease
        // within one millisecond the engine cannot tell which came first
        ended.is_some_and(|(ms, step)| brought.asked_ms <= ms && brought.done_step != step)
    }

    /// Whether the last answer of this target is known to have been ended.
    pub fn is_ended(&self, brought: &Brought) -> bool {
        let contradicted_step = self.contradicted_step;
        self.is_leader_ended(brought)
            || (brought.asked_step < contradicted_step && brought.done_step != contradicted_step)
    }

    /// Whether the node is in transition. `surely`: by the narrowest reading of promise 9.
    pub fn is_in_transition(&self, ms: u64, surely: bool) -> bool {
        if self.unsure.is_some_and(|(unsure_ms, _)| ms < unsure_ms + TRANSITION_MS_MAX) {
            return !surely;
        }
        let slack_ms = if surely { 0 } else { 1_000 };
        let within = |since_ms: Option<u64>, most_ms: u64| {
            since_ms.is_some_and(|since_ms| ms < since_ms + most_ms + slack_ms)
        };
        let state = self.previous.as_ref().map_or("running", |(node, _)| node.state);
        let moving = state != "running" && (!surely || state != "unknown");
        let lately = !surely && within(self.moving_ms, 0);
        within(self.changed_ms, TRANSITION_MS_MAX)
            && (moving || lately || within(self.contradicted_ms, CONTRADICTED_MS))
    }

    /// Records a failed fetch, whose target may not be known.
    pub fn failed(&mut self, target: Option<&str>, failed: Failed) {
        let why = failed.why;
        self.is_silent = match why {
            Failure::TimedOut => true,
            Failure::NoDescriptor => self.is_silent,
            _ => false,
        };
        if is_gone(why) {
            self.forbid_stale(failed.ms);
        }
        match target {
            Some(target) => {
                let known = self.targets.entry(target.into()).or_default();
                if is_broken(why) {
                    known.broken_step = failed.step;
                }
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

    /// Whether a fetch whose target is not known has failed since this answer.
    pub fn has_failed_since(&self, brought: &Brought) -> bool {
        self.anonymous.iter().any(|failed| failed.step > brought.done_step)
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
    pub fn stale_until_ms(
        &self,
        target: &str,
        settings: &Settings,
        moved_ms: Option<u64>,
    ) -> Option<u64> {
        let brought = self.latest(target)?;
        let may = settings.cache.grace_ms > 0
            && moved_ms.is_none_or(|ms| brought.asked_ms > ms)
            && !target.contains('?')
            && brought.said.status == 200
            && !brought.is_anothers
            && (is_replica_family(target) || is_health(target))
            && self.stale_forbidden_ms.is_none_or(|ms| brought.asked_ms > ms)
            && brought.asked_step > self.contradicted_step
            && !self.may_be_ended(brought)
            && self.targets.get(target).is_none_or(|known| known.broken_step < brought.done_step);
        let until = brought.asked_ms + settings.cache.ttl_ms + settings.cache.grace_ms;
        may.then_some(until)
    }

    /// Checks promises 2, 3 and 5 for an answer of the engine.
    pub fn check(&mut self, served: &Served<'_>, testimony: &mut Testimony) -> Outcome {
        let cache = served.answer.cache.as_deref().ok_or("no Cache-Status")?;
        if cache.contains("detail=failed") {
            return self.check_failure(served);
        }
        let known = self.targets.get(served.target);
        let brought = known.and_then(|known| known.latest.as_ref());
        let latest = brought.ok_or("Patroni has not answered for this target")?;
        let previous = known.and_then(|known| known.previous.as_ref());
        let previous = previous.filter(|previous| same(served, previous).is_ok());
        let brought = match (same(served, latest), previous) {
            (Ok(()), _) => latest,
            (Err(_), Some(previous)) => previous,
            (Err(error), None) => return Err(error),
        };
        let age_ms = served.clock.ms - brought.asked_ms;
        if served.answer.age != Some(age_ms / 1_000) {
            return Err(format!("Age {:?}, but the answer is {age_ms} ms old", served.answer.age));
        }
        if self.is_ended(brought) {
            return Err(
                "promise 5: served, although a later status of the node contradicts it".into()
            );
        }
        check_jump(served, brought)?;
        if brought.done_step >= served.asked_step {
            if !brought.moved && bound_passed(brought, served.clock.unix_ms) {
                return Err("promise 2: the lease's bound passed while it was fetched".into());
            }
            let at_once = brought.done.ms == served.clock.ms;
            return if at_once { Ok(()) } else { Err("a waiting client was answered late".into()) };
        }
        let by_grace = self.check_kept(served, brought, age_ms);
        if !cache.contains("detail=silent") {
            return by_grace;
        }
        self.check_silence(served, brought)?;
        testimony.check(served, brought, self.subject(), by_grace)
    }

    /// Checks an answer from memory by `cache.ttl`, `cache.grace` and D.
    fn check_kept(&self, served: &Served<'_>, brought: &Brought, age_ms: u64) -> Outcome {
        let is_leaders = is_leader_family(served.target) && brought.said.status == 200;
        let in_transition =
            brought.said.node.is_some() && self.is_in_transition(served.clock.ms, true);
        let ttl_ms = served.settings.cache.ttl_ms;
        let kept_ms = if in_transition { ttl_ms.min(TRANSITION_TTL_MS) } else { ttl_ms };
        if age_ms >= kept_ms {
            self.check_stale(served, brought, age_ms).map_err(|error| match in_transition {
                true => format!("promise 9: {age_ms} ms old while the node changes ({error})"),
                false => error,
            })?;
        }
        if is_leaders {
            check_leader(served, brought, age_ms >= ttl_ms, self.lapsed_step)?;
        }
        Ok(())
    }

    fn check_failure(&mut self, served: &Served<'_>) -> Outcome {
        let Served { answer, target, .. } = served;
        if answer.status != 503 {
            return Err(format!("a failure served with status {}", answer.status));
        }
        let known = self.targets.get(*target);
        let since = known.and_then(|known| known.latest.as_ref());
        let since = since.filter(|brought| !brought.moved && !brought.is_slow());
        let since = since.map_or(0, |brought| brought.done_step);
        let failed = known.and_then(|known| known.failed);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let says =
            |why: Failure| served.method != "GET" || text == format!("{{\"error\":\"{why}\"}}\n");
        let mut failures = failed.iter().chain(&self.anonymous);
        let truly = failures.any(|failed| failed.step > since && says(failed.why));
        if truly || (served.busy && (says(Failure::TimedOut) || says(Failure::NoRoom))) {
            return Ok(());
        }
        Err(format!("the failure served is {text:?}, but it was {failed:?}"))
    }

    /// Promises 2 and 3 for a stale answer.
    fn check_stale(&self, served: &Served<'_>, brought: &Brought, age_ms: u64) -> Outcome {
        let limits = served.settings.cache;
        if limits.grace_ms == 0 || age_ms >= limits.ttl_ms + limits.grace_ms {
            return Err(format!("promise 2: the answer is {age_ms} ms old"));
        }
        let target = served.target;
        let may = is_leader_family(target) || is_replica_family(target) || is_health(target);
        if !may || brought.said.status != 200 {
            return Err("promise 3: stale, although this target is never served stale".into());
        }
        self.check_silence(served, brought)
    }

    /// Checks what has to hold for each stale answer.
    fn check_silence(&self, served: &Served<'_>, brought: &Brought) -> Outcome {
        let target = served.target;
        if brought.is_anothers {
            return Err("promise 3: stale, although another node said it".into());
        }
        if self.stale_forbidden_ms.is_some_and(|ms| brought.asked_ms <= ms) {
            return Err("promise 3: stale, although Patroni was gone since".into());
        }
        if self.targets.get(target).is_some_and(|known| known.broken_step > brought.done_step) {
            return Err("promise 3: stale, although its last answer was not usable".into());
        }
        let failed = self.targets.get(target).and_then(|known| known.failed);
        let timed_out = failed.is_some_and(|failed| failed.why == Failure::TimedOut);
        // a connection that failed before its target was known may have been this target's
        let since =
            |failed: &Failed| failed.step > brought.done_step && failed.why == Failure::TimedOut;
        let unknown = self.anonymous.iter().any(since);
        if !self.is_silent && !timed_out && !unknown && !served.slow {
            return Err("promise 2: stale, although Patroni is not silent".into());
        }
        Ok(())
    }
}

/// Checks that the answer is Patroni's last one, to the byte.
fn same(served: &Served<'_>, brought: &Brought) -> Outcome {
    let (answer, said) = (served.answer, &brought.said);
    let options = served.method == "OPTIONS";
    let content_type = said.content_type.filter(|_| !options);
    let length = if options { 0 } else { said.body.len() };
    let body: &[u8] = if served.method == "GET" { &said.body } else { &[] };
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

/// Promise 2: nothing from before a jump of the wall clock is served. The limit holds whenever the
/// steps since the answer was asked for sum up to a jump, however the clock stood before.
fn check_jump(served: &Served<'_>, brought: &Brought) -> Outcome {
    let ahead = |ms: u64, unix_ms: u64| unix_ms as i64 - ms as i64;
    let then = ahead(brought.asked_ms, brought.asked_unix_ms);
    let moved_ms = ahead(served.clock.ms, served.clock.unix_ms).abs_diff(then);
    let slewed_ms_max = 2 * JUMP_MS_MIN + (served.clock.ms - brought.asked_ms) / 1_000;
    if moved_ms > slewed_ms_max {
        return Err(format!(
            "promise 2: since it was asked for the wall clock moved {moved_ms} ms"
        ));
    }
    Ok(())
}

/// Whether the lease's bound of a leader's answer passed after it was asked for.
pub fn bound_passed(brought: &Brought, unix_ms: u64) -> bool {
    let seen = brought.said.node.as_ref().and_then(|node| node.seen);
    let is_leaders = is_leader_family(&brought.said.target) && brought.said.status == 200;
    let until_unix_ms = seen.filter(|_| is_leaders).map(|seen| seen * 1_000 + brought.ttl_ms);
    until_unix_ms.is_some_and(|until| brought.asked_unix_ms < until && until <= unix_ms)
}

/// Promise 3 for a leader's cached 200.
fn check_leader(
    served: &Served<'_>,
    brought: &Brought,
    is_stale: bool,
    lapsed_step: u64,
) -> Outcome {
    let clock = served.clock;
    let age_ms = clock.ms - brought.asked_ms;
    let seen = brought.said.node.as_ref().and_then(|node| node.seen);
    let over = |until_unix_ms: u64| {
        let left_ms = until_unix_ms.saturating_sub(brought.done.unix_ms);
        clock.unix_ms >= until_unix_ms || clock.ms >= brought.done.ms + left_ms
    };
    let ttl_ms = brought.ttl_ms;
    // for 1 s the node's own word that it leads is served, even if our request moved dcs_last_seen
    let aged = age_ms >= 1_000;
    let seen = seen.filter(|seen| seen * 1_000 <= brought.done.unix_ms);
    match seen {
        None if clock.ms >= brought.done.ms + 1_000 => {
            return Err(
                "promise 3: nothing is known of the lease, and the answer is past 1 s".into()
            );
        }
        Some(seen) if over(seen * 1_000 + ttl_ms) => {
            let was_over = brought.asked_unix_ms >= seen * 1_000 + brought.ttl_ms_min;
            if !was_over || age_ms >= shortly_kept_ms(brought) {
                return Err("promise 3: the ttl since dcs_last_seen is over".into());
            }
        }
        _ => {}
    }
    if aged && seen.is_some() && over(brought.said.loop_seen * 1_000 + ttl_ms) {
        return Err("promise 3: the ttl since the HA loop saw the DCS is over".into());
    }
    if aged && shows_another_clock(brought) {
        return Err("promise 3: older than 1 s, and Patroni's clock is not ours".into());
    }
    if is_stale {
        check_stale_leader(brought, lapsed_step)?;
    }
    if !(is_stale || aged) {
        return Ok(());
    }
    if let (Some(seen), Some(intervals)) = (seen, brought.intervals) {
        let margin_ms = (intervals.loop_wait + intervals.retry_timeout) * 1_000;
        if over(seen * 1_000 + self::ttl_ms(brought.intervals) - margin_ms) {
            return Err("promise 3: D is over".into());
        }
    }
    let patroni = served.patroni;
    let read_since = patroni.lowered_ms.is_none_or(|ms| brought.done.ms > ms + INTERVALS_MS_MAX);
    // a clock that is ahead moves D later; a fetch that took long does not show by how much
    let hidden = brought.said.ahead_ms > 0 && !shows_another_clock(brought);
    if read_since && !hidden && patroni.is_split(clock.ms) {
        return Err("promise 3: the lease is over, and the previous primary takes writes".into());
    }
    Ok(())
}

/// Promise 3 for a leader's 200 past its ttl.
fn check_stale_leader(brought: &Brought, lapsed_step: u64) -> Outcome {
    let (Some(_), Some(node)) = (brought.intervals, &brought.said.node) else {
        return Err("promise 3: stale, with nothing known of the lease".into());
    };
    if node.seen.is_none_or(|seen| seen * 1_000 > brought.done.unix_ms) {
        return Err("promise 3: stale, with nothing known of the lease".into());
    }
    if node.flags != [false; 3] || !matches!(node.state, "running" | "unknown") {
        return Err("promise 3: stale, although its status shows no lease".into());
    }
    if lapsed_step > brought.done_step {
        return Err(
            "promise 3: stale, although another route shows that the node has no lease".into()
        );
    }
    Ok(())
}

/// The `ttl` that counts: ZooKeeper ends a session after 40 s, and Patroni accepts no less than
/// 20 s.
pub fn ttl_ms(intervals: Option<Intervals>) -> u64 {
    intervals.map_or(20, |intervals| intervals.ttl).min(40) * 1_000
}

/// How long a leader's 200 is kept whose bound had passed before it was asked for.
pub fn shortly_kept_ms(brought: &Brought) -> u64 {
    let flags = brought.said.node.as_ref().map_or([false; 3], |node| node.flags);
    if flags[0] || flags[2] { 1_000 } else { 250 }
}

/// Whether `Date` or `dcs_last_seen` shows that Patroni's clock is not ours.
fn shows_another_clock(brought: &Brought) -> bool {
    let date = brought.said.unix_ms / 1_000;
    let seen = brought.said.node.as_ref().and_then(|node| node.seen).unwrap_or(0);
    date.max(seen) * 1_000 > brought.done.unix_ms + AHEAD_MS_MAX
        || (date + 1) * 1_000 <= brought.asked_unix_ms
}

/// The leader routes whose 200s this answer ends, as an index of [`Memory::leaders_ended`]. That no
/// node holds the lease ends them once: later 200s were said in spite of it.
fn ended_leaders(said: &Said, was_unlocked: bool) -> Option<usize> {
    match said.target.as_str() {
        _ if !was_unlocked && said.node.as_ref().is_some_and(is_unlocked) => Some(0),
        target if said.status == 200 || !is_leader_family(target) => None,
        "/leader" => Some(0),
        "/standby-leader" | "/standby_leader" => Some(2),
        _ => Some(1),
    }
}

fn is_unlocked(node: &Node) -> bool {
    node.flags[1] && !node.flags[2]
}

/// Patroni is gone: nothing it said before may be served stale.
fn is_gone(why: Failure) -> bool {
    use Failure::{Refused, Reset, Unreachable, Unresolved};
    matches!(why, Refused | Reset | Unreachable | Unresolved)
}

/// Patroni answered, but not usably.
fn is_broken(why: Failure) -> bool {
    matches!(why, Failure::Closed | Failure::Cut | Failure::Garbage | Failure::TooLarge)
}

/// Whether the role, the timeline or `running` has changed. PostgreSQL that answered no query has
/// no other state.
fn contradict(previous: &Node, node: &Node) -> bool {
    let timelines = previous.timeline.zip(node.timeline);
    let stopped = node.state != "running" && node.state != "unknown";
    previous.role != node.role
        || timelines.is_some_and(|(previous, now)| previous != now)
        || (previous.state == "running" && stopped)
}

/// Whether another node answers at the same address.
fn is_renamed(previous: &Node, node: &Node) -> bool {
    previous.name.zip(node.name).is_some_and(|(before, now)| before != now)
}

/// A little less than the 10 s for which a failure is kept without requests.
const WANTED_MS: u64 = 9_000;
/// For how long intervals that were read count.
const INTERVALS_MS_MAX: u64 = 30_000;
/// Up to this difference the wall clock counts as slewed.
const JUMP_MS_MIN: u64 = 250;
/// Patroni's clock may show this much more than ours.
const AHEAD_MS_MAX: u64 = 250;
/// How long answers are kept while the node is in transition.
pub const TRANSITION_TTL_MS: u64 = 100;
/// For how long a contradiction is a transition.
const CONTRADICTED_MS: u64 = 5_000;
/// A transition ends after this time without a change.
const TRANSITION_MS_MAX: u64 = 30_000;
