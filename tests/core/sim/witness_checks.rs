//! The rule of the lease witness, checked against what the model of etcd has answered. It is
//! written a second time, independent of the engine's.

use std::collections::VecDeque;

use patroniglue::engine::Settings;

use super::checks::{Brought, Outcome, Served};
use super::client::{is_leader_family, is_replica_family};
use super::etcd::{Kind, Request, Trouble};
use super::keys::{Leader, Lease, Member, Truth};
use super::patroni::{Clock, Node};

/// What the engine has learned from the DCS.
#[derive(Default)]
pub struct Testimony {
    /// When the last two requests began.
    begun: VecDeque<u64>,
    /// When the last read began that was not needed, and so was a rehearsal.
    rehearsed_ms: Option<u64>,
    /// The step at which the current read began.
    read_step: u64,
    /// Whether the next request may belong to the current read.
    goes_on: bool,
    /// The keys as read last.
    keys: Option<Keys>,
    reads: Vec<Read>,
    /// When and at which step the DCS last said, and surely to the engine, that the node does not
    /// lead.
    contradicted: Option<(u64, u64)>,
    /// When a request last met trouble.
    fault_ms: Option<u64>,
    /// The step at which Patroni last answered.
    said_step: u64,
    pub reloaded_step: Option<u64>,
    /// When Patroni was last silent, and a 200 known that the DCS could confirm.
    pub needed_ms: Option<u64>,
    /// Since when stale answers of leader routes have been at most a second apart, and the last.
    steady_ms: Option<(u64, u64)>,
}

/// An answer with the keys.
#[derive(Clone)]
struct Keys {
    asked: Clock,
    truth: Truth,
    name: &'static str,
}

/// A complete read, all of it true.
struct Read {
    keys: Keys,
    lease: Lease,
    left_seconds: u64,
    begun_step: u64,
    done_step: u64,
}

impl Testimony {
    /// Another configuration: nothing that was read before counts.
    pub fn forget(&mut self) {
        let Testimony { reloaded_step, said_step, .. } = *self;
        *self = Testimony { reloaded_step, said_step, ..Testimony::default() };
    }

    /// Patroni has answered.
    pub fn patroni_said(&mut self, step: u64) {
        self.said_step = step;
    }

    /// A request begins: at most two do in a second.
    pub fn connects(&mut self, ms: u64, in_trouble: bool) -> Outcome {
        if in_trouble {
            self.fault_ms = Some(ms);
        }
        if self.begun.len() == 2
            && self.begun.pop_front().is_some_and(|first| ms < first + REQUESTS_MS)
        {
            return Err("promise 8: three requests to the DCS in a second".into());
        }
        self.begun.push_back(ms);
        Ok(())
    }

    /// Whether a read was needed when it was begun: its first request may wait for its time.
    pub fn is_needed(&self, ms: u64, late_ms: u64) -> bool {
        self.needed_ms.is_some_and(|needed_ms| ms <= needed_ms + REQUESTS_MS + 20 + late_ms)
    }

    /// Whether a request begins a read.
    pub fn begins(&mut self, kind: Kind, step: u64) -> bool {
        let is_next = self.goes_on || matches!(kind, Kind::TimeLeft(_));
        if !is_next {
            self.read_step = step;
        }
        !is_next
    }

    /// A read has begun although Patroni answers: once a minute at most.
    pub fn rehearses(&mut self, ms: u64) -> Outcome {
        let previous = self.rehearsed_ms.replace(ms);
        if previous.is_some_and(|previous| ms < previous + REHEARSAL_MS_MIN) {
            return Err("the DCS is asked without need".into());
        }
        Ok(())
    }

    /// A request has ended. Returns whether it brought keys that may contradict Patroni.
    pub fn ended(
        &mut self,
        request: &Request,
        is_whole: bool,
        (ms, step): (u64, u64),
        subject: Option<&Node>,
    ) -> bool {
        self.goes_on = false;
        let answer = request.answer.as_ref().filter(|(_, status)| is_whole && *status == 200);
        match (request.kind, answer) {
            (Some(Kind::Keys), Some((truth, _))) => {
                let keys =
                    Keys { asked: request.connect, truth: truth.clone(), name: request.name };
                let is_sure = self.said_step < self.read_step;
                if is_sure && subject.is_some_and(|node| keys.contradict(node)) {
                    self.contradicted = Some((ms, step));
                }
                let confirms =
                    subject.is_some_and(|node| keys.confirm(subject, node.role != "replica"));
                self.keys = Some(keys);
                return !confirms;
            }
            (Some(Kind::TimeLeft(id)), Some((truth, _))) if !request.lies() => {
                if let (Some(keys), Some(lease)) = (self.keys.clone(), truth.lease(id)) {
                    let left_seconds = (lease.until_ms - truth.at_ms) / 1_000;
                    let begun_step = self.read_step;
                    self.reads.push(Read {
                        keys,
                        lease,
                        left_seconds,
                        begun_step,
                        done_step: step,
                    });
                }
            }
            (Some(Kind::Authenticate), Some(_)) => self.goes_on = true,
            _ => (self.fault_ms, self.goes_on) = (Some(ms), true),
        }
        false
    }

    /// Whether clients that wait for this 200 surely get it, because the last read confirms it and
    /// Patroni has said nothing since its begin.
    pub fn surely_confirms(
        &self,
        clock: Clock,
        brought: &Brought,
        node: Option<&Node>,
        settings: &Settings,
    ) -> bool {
        let Some((read, dcs)) = self.reads.last().zip(settings.dcs.as_ref()) else { return false };
        let is_last = self.keys.as_ref().is_some_and(|keys| keys.asked.ms == read.keys.asked.ms);
        let lasts_ms = read.left_seconds * 1_000;
        let until_ms = (read.keys.asked.ms + lasts_ms).saturating_sub(dcs.witness.margin_ms);
        is_last
            && self.said_step < read.begun_step
            && node.is_some_and(Node::is_under_lease)
            && read.confirms(node, is_leader_family(&brought.said.target))
            && clock.ms + 2_000 < until_ms
    }

    /// Checks a stale answer. `by_grace`: whether grace allows it.
    pub fn check(
        &mut self,
        served: &Served<'_>,
        brought: &Brought,
        node: Option<&Node>,
        by_grace: Outcome,
    ) -> Outcome {
        let now_ms = served.clock.ms;
        let is_leaders = is_leader_family(served.target);
        let steady = self.steady_ms.filter(|(_, last_ms)| now_ms <= last_ms + READ_MS);
        let since_ms = steady.map(|(since_ms, _)| since_ms);
        if is_leaders {
            self.steady_ms = Some((since_ms.unwrap_or(now_ms), now_ms));
        }
        let ended = self.contradicted.filter(|(ms, _)| is_leaders && brought.asked_ms <= *ms);
        if ended.is_none() && by_grace.is_ok() {
            return Ok(());
        }
        let why = by_grace.err().unwrap_or_else(|| "the DCS contradicts it".into());
        let covered =
            is_leaders || (is_replica_family(served.target) && !served.target.contains('?'));
        if !covered || brought.said.status != 200 {
            return Err(why);
        }
        let since_step = ended.map_or(0, |(_, step)| step);
        let margin_ms = served.settings.dcs.as_ref().map_or(0, |dcs| dcs.witness.margin_ms);
        let holds = self.reads.iter().rev().any(|read| {
            read.done_step > since_step
                && read.confirms(node, is_leaders)
                && read.lasts(served.clock, margin_ms)
        });
        if !holds {
            return Err(format!("{why}; and no read of the DCS confirms it"));
        }
        if is_leaders { self.check_deletion(served, since_ms) } else { Ok(()) }
    }

    /// While clients ask at least once a second, the end of the leader key shows in time, and there
    /// are reads.
    fn check_deletion(&self, served: &Served<'_>, since_ms: Option<u64>) -> Outcome {
        let now_ms = served.clock.ms;
        let is_late = |ms: u64| now_ms > ms + READ_MS + 1_000 + served.late_ms;
        if self.begun.back().is_none_or(|ms| is_late(*ms)) && !served.is_shutdown {
            return Err("served by the DCS, which is no longer read".into());
        }
        let deleted_ms = served.patroni.keys.as_ref().and_then(|keys| keys.deleted_ms);
        let Some((deleted_ms, since_ms)) = deleted_ms.zip(since_ms) else { return Ok(()) };
        let is_calm = self.fault_ms.is_none_or(|ms| ms + 2_000 < deleted_ms);
        if is_calm && !served.is_shutdown && is_late(deleted_ms.max(since_ms)) {
            return Err(format!("the leader key was deleted at {deleted_ms} ms"));
        }
        Ok(())
    }
}

impl Keys {
    /// Whether they say that the node does not lead, by the narrowest reading.
    fn contradict(&self, node: &Node) -> bool {
        let leads = matches!(node.role, "primary" | "standby_leader");
        let is_ours = self.truth.leader.is_some_and(|leader| Some(leader.name) == node.name);
        let is_right = Some(self.name) == node.name && node.is_under_lease();
        leads && is_right && (self.truth.is_foreign || !is_ours || self.truth.paused)
    }

    /// Whether the keys say of the node what Patroni said last, if that is known for sure.
    fn confirm(&self, node: Option<&Node>, is_leaders: bool) -> bool {
        let Truth { leader, member, paused, standby_cluster, is_foreign, .. } = self.truth;
        let Some(member) = member.filter(|_| !paused && !is_foreign) else { return false };
        let is_same = |node: &Node| {
            let timelines = member.timeline.zip(node.timeline);
            Some(self.name) == node.name
                && member.role == node.role
                && (!is_leaders || timelines.is_none_or(|(found, ours)| found == ours))
        };
        let leads = || {
            let is_standby = member.role == "standby_leader";
            let is_ours = |leader: Leader| leader.name == self.name && leader.lease == member.lease;
            (is_standby || member.role == "primary")
                && is_standby == standby_cluster
                && leader.is_some_and(is_ours)
        };
        member.state == "running"
            && node.is_none_or(is_same)
            && (leads() || (!is_leaders && member.role == "replica"))
    }
}

impl Read {
    fn confirms(&self, node: Option<&Node>, is_leaders: bool) -> bool {
        let is_its_lease = |member: Member| member.lease == self.lease.id;
        self.keys.truth.member.is_some_and(is_its_lease) && self.keys.confirm(node, is_leaders)
    }

    /// Whether the lease, as it was then, lasts for longer than the margin.
    fn lasts(&self, now: Clock, margin_ms: u64) -> bool {
        let intervals = self.keys.truth.intervals;
        let granted = self.lease.granted_seconds;
        let spare = granted.saturating_sub(intervals.loop_wait + intervals.retry_timeout);
        let margin_ms = margin_ms.min(MARGIN_MS_MAX).min(spare * 1_000);
        let lasts_ms = (self.left_seconds * 1_000).saturating_sub(margin_ms);
        let asked = self.keys.asked;
        now.ms < asked.ms + lasts_ms && now.unix_ms < asked.unix_ms + lasts_ms
    }
}

impl Request {
    fn lies(&self) -> bool {
        matches!(self.trouble, Some(Trouble::NoLease | Trouble::Endless))
    }
}

/// A little less than the minute between two rehearsals.
const REHEARSAL_MS_MIN: u64 = 58_900;
/// Two requests at most begin in this time.
const REQUESTS_MS: u64 = 1_000;
/// Between two reads.
const READ_MS: u64 = 1_000;
const MARGIN_MS_MAX: u64 = 10_000;
