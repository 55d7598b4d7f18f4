//! A model of Patroni: one node of a cluster, its HA loop, its lease in the DCS, and its REST API.
//!
//! It knows what a client of the API can only guess: which node holds the lease, and until when.

use super::faults::{Fault, Faults};
use super::keys::{Keys, Member, Truth};
use super::random::Random;

/// The two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub ms: u64,
    pub unix_ms: u64,
}

/// An event in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A cycle of the HA loop begins: it reads the DCS, then renews the lease.
    Cycle,
    Read,
    Renew,
    /// The lease may have expired.
    LeaseEnd,
    Freeze(Freeze),
    Thaw(Freeze),
    Switchover,
    /// PostgreSQL has stopped after a switchover's request: the lease is given up.
    Demote,
    Takeover,
    Postgres(&'static str),
    /// PostgreSQL answers no query (`true`), or does again.
    Unknown(bool),
    /// PostgreSQL restarts, and the node keeps its role and lease.
    Restart,
    Flags,
    Retime,
    Down(bool),
    /// The DCS is away (`true`), or is back.
    Dcs(bool),
    /// A cycle's request to a DCS that is away has failed.
    DcsFailed,
    /// A leader's route says 503 although the node holds the lease, until the next such event.
    Disagree,
    /// The node gets another name.
    Rename,
    /// The clock of Patroni's host moves by this many milliseconds against ours.
    Clock(i64),
    /// The machine sleeps for this many milliseconds: the lease runs, the monotonic clock stands.
    Sleep(u64),
}

/// The part of Patroni that is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    Api,
    Loop,
    Process,
}

/// Patroni's intervals, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    pub ttl: u64,
    pub loop_wait: u64,
    pub retry_timeout: u64,
}

impl Intervals {
    fn promises_less(self, previous: Intervals) -> bool {
        let sure =
            |intervals: Intervals| intervals.ttl - intervals.loop_wait - intervals.retry_timeout;
        self.ttl < previous.ttl || sure(self) < sure(previous)
    }
}

/// The node's status in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub state: &'static str,
    pub role: &'static str,
    pub timeline: Option<u64>,
    pub seen: Option<u64>,
    /// `pause`, `cluster_unlocked`, `failsafe_mode_is_active`.
    pub flags: [bool; 3],
    /// `patroni.name`; Patroni before 3.2.0 does not have it.
    pub name: Option<&'static str>,
}

/// A complete answer, and the truth when it was made.
#[derive(Clone, Debug)]
pub struct Said {
    pub target: String,
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub body: Vec<u8>,
    pub node: Option<Node>,
    pub intervals: Option<Intervals>,
    /// When the HA loop itself read the DCS last, in Unix seconds.
    pub loop_seen: u64,
    /// The clock of Patroni's host, and how far it was ahead of ours.
    pub unix_ms: u64,
    pub ahead_ms: i64,
    /// Whether it is of another node's address.
    pub is_other: bool,
}

impl Node {
    pub fn is_under_lease(&self) -> bool {
        self.state == "running" && self.flags == [false; 3] && self.seen.is_some()
    }
}

pub struct Patroni {
    pub intervals: Intervals,
    /// When intervals came into force that bound the lease more tightly than the previous ones.
    pub lowered_ms: Option<u64>,
    /// When the intervals changed last.
    retimed_ms: Option<u64>,
    we_hold: bool,
    lease_until_ms: u64,
    standby_cluster: bool,
    leads: bool,
    /// Until when Patroni itself believes that it leads, by the wall clock.
    leader_until_unix_ms: u64,
    state: &'static str,
    timeline: u64,
    flags: [bool; 3],
    seen: u64,
    loop_seen: u64,
    cycle_ms: u64,
    pub api_frozen: bool,
    loop_frozen: bool,
    stalled: Option<Happening>,
    pub down: bool,
    dcs_away: bool,
    /// Whether the cluster has failsafe mode on.
    failsafe: bool,
    /// Until when the other members promote no node, because the leader has asked them not to.
    failsafe_until_ms: u64,
    /// ZooKeeper ends a session after 40 s, also under a longer `ttl`.
    zookeeper: bool,
    /// PostgreSQL answers no query.
    unknown: bool,
    /// Until when a promoted node says that its role is replica.
    promoting_until_ms: u64,
    /// The leader's route that says 503 although the node leads.
    disagreeing: Option<&'static str>,
    name: Option<&'static str>,
    /// How far the clock of Patroni's host is ahead of ours.
    pub ahead_ms: i64,
    serial: u64,
    /// What it keeps in etcd; `None`: in another DCS.
    pub keys: Option<Keys>,
    pub todo: Vec<(u64, Happening)>,
}

impl Patroni {
    pub fn new(random: &mut Random, clock: Clock) -> Patroni {
        let leads = random.chance(800);
        let intervals = random.pick(&TIMINGS);
        let zookeeper = random.chance(300);
        let lease_ms = lease_ms(intervals, zookeeper);
        // the HA loop may have hung before the start
        let hung_ms = if random.chance(300) { random.below(lease_ms) } else { 0 };
        let seen = (clock.unix_ms - hung_ms) / 1_000;
        let mut patroni = Patroni {
            intervals,
            lowered_ms: None,
            retimed_ms: None,
            we_hold: leads,
            lease_until_ms: clock.ms + lease_ms - hung_ms,
            standby_cluster: random.chance(150),
            leads,
            leader_until_unix_ms: clock.unix_ms + lease_ms - hung_ms,
            state: "running",
            timeline: 1,
            flags: [false; 3],
            seen,
            loop_seen: seen,
            cycle_ms: clock.ms,
            api_frozen: false,
            loop_frozen: false,
            stalled: None,
            down: false,
            dcs_away: false,
            failsafe: random.chance(600),
            failsafe_until_ms: 0,
            zookeeper,
            unknown: false,
            promoting_until_ms: 0,
            disagreeing: None,
            name: random.pick(&[Some("pg1"), Some("pg1"), None]),
            ahead_ms: 0,
            serial: random.below(500),
            keys: None,
            todo: Vec::new(),
        };
        patroni.later(clock, random.below(intervals.loop_wait * 1_000), Happening::Cycle);
        patroni.todo.push((patroni.lease_until_ms, Happening::LeaseEnd));
        patroni
    }

    /// Whether this node takes writes although its lease is over: another node may take them too.
    pub fn is_split(&self, ms: u64) -> bool {
        let lease_is_over = !self.we_hold || ms >= self.lease_until_ms;
        let is_revoked = self.keys.as_ref().is_some_and(|keys| keys.is_revoked);
        self.leads
            && self.state == "running"
            && lease_is_over
            && ms >= self.failsafe_until_ms
            && !is_revoked // nothing that we can ask tells a revocation before it
    }

    // ---- etcd

    /// Its DCS is etcd from the start. `is_new`: it is Patroni 3.2.0 or later.
    pub fn use_etcd(&mut self, ms: u64, is_new: bool) {
        self.zookeeper = false;
        if is_new {
            self.name = self.name.or(Some("pg1"));
        }
        let name = self.we_hold.then(|| self.member_name());
        self.keys = Some(Keys::new(name, self.lease_until_ms, self.intervals.ttl));
        self.publish(ms, false);
    }

    /// The name of its member key.
    pub fn member_name(&self) -> &'static str {
        self.name.unwrap_or("pg1")
    }

    /// What etcd has of it now.
    pub fn truth(&self, ms: u64) -> Option<Truth> {
        let config = (self.flags[0], self.standby_cluster, self.intervals);
        let is_free = ms < self.failsafe_until_ms;
        self.keys.as_ref().map(|keys| keys.truth(ms, is_free, config))
    }

    /// etcd revokes the lease before its end.
    pub fn revoke(&mut self, clock: Clock, random: &mut Random) {
        let Some(keys) = &mut self.keys else { return };
        keys.revoke(clock.ms, clock.ms + random.below(3_000));
        (self.we_hold, self.lease_until_ms) = (false, self.lease_until_ms.min(clock.ms));
    }

    /// A new leader of etcd prolongs the lease.
    pub fn prolong(&mut self, clock: Clock) {
        let until_ms = self.keys.as_mut().and_then(|keys| keys.prolong(clock.ms));
        if let Some(until_ms) = until_ms.filter(|_| self.we_hold) {
            self.lease_until_ms = until_ms;
            self.todo.push((until_ms, Happening::LeaseEnd));
        }
    }

    fn publish(&mut self, ms: u64, is_late: bool) {
        let running = self.state == "running";
        let member = Member {
            role: self.role(ms),
            state: self.state,
            timeline: running.then_some(self.timeline),
            lease: 0,
        };
        if let Some(keys) = &mut self.keys {
            keys.publish(member, is_late);
        }
    }

    /// The leader key is gone.
    fn lose_the_key(&mut self, clock: Clock, random: &mut Random) {
        if let Some(keys) = &mut self.keys {
            keys.lose(clock.ms, clock.ms + random.below(3_000));
        }
    }

    pub fn is_dcs_away(&self) -> bool {
        self.dcs_away
    }

    pub fn happens(&mut self, what: Happening, clock: Clock, random: &mut Random, faults: &Faults) {
        match what {
            Happening::Cycle | Happening::Read | Happening::Renew | Happening::DcsFailed
                if self.loop_frozen =>
            {
                self.stalled = Some(what);
            }
            Happening::Cycle => {
                self.cycle_ms = clock.ms;
                self.later(clock, self.dcs_delay(random, faults), Happening::Read);
            }
            Happening::Read | Happening::Renew if self.dcs_away => {
                self.later(clock, self.intervals.retry_timeout * 1_000, Happening::DcsFailed);
            }
            Happening::DcsFailed => self.dcs_failed(clock, random),
            Happening::Read => self.read(clock, random, faults),
            Happening::Renew => {
                self.renew(clock);
                if faults.about_the_lease && random.chance(150) {
                    self.freeze_the_wait(clock, random);
                }
            }
            Happening::LeaseEnd => {
                if self.we_hold && clock.ms >= self.lease_until_ms {
                    self.we_hold = false;
                    self.lose_the_key(clock, random);
                }
            }
            Happening::Freeze(what) => {
                self.api_frozen |= what != Freeze::Loop;
                self.loop_frozen |= what != Freeze::Api;
            }
            Happening::Thaw(what) => {
                self.api_frozen &= what == Freeze::Loop;
                self.loop_frozen &= what == Freeze::Api;
                self.resume(clock);
            }
            Happening::Switchover if self.leads && self.state == "running" => {
                self.state = "stopping";
                self.later(clock, random.between(1, 3_000), Happening::Demote);
            }
            Happening::Demote if self.state == "stopping" => self.step_down(clock, random),
            Happening::Switchover | Happening::Demote => {}
            Happening::Takeover => self.take_over(clock),
            Happening::Postgres(state) => self.state = state,
            Happening::Unknown(unknown) => self.unknown = unknown,
            Happening::Restart if self.state == "running" => {
                self.state = random.pick(&["restarting", "starting", "crashed"]);
                self.later(clock, random.between(1, 5_000), Happening::Postgres("running"));
            }
            Happening::Restart => {}
            Happening::Flags => {
                let none = [false; 3];
                let some = [0; 3].map(|_: u8| random.chance(400));
                self.flags = if self.flags == none { some } else { none };
            }
            Happening::Retime => self.retime(clock, random, faults),
            Happening::Down(down) => self.down = down,
            Happening::Dcs(away) => self.dcs_away = away,
            Happening::Disagree => self.disagree(random),
            Happening::Rename => self.name = self.name.map(|_| random.pick(&["pg1", "pg2", "pg3"])),
            Happening::Clock(ms) => self.ahead_ms += ms,
            Happening::Sleep(ms) => {
                self.lease_until_ms = self.lease_until_ms.saturating_sub(ms);
                self.failsafe_until_ms = self.failsafe_until_ms.saturating_sub(ms);
                self.keys.iter_mut().for_each(|keys| keys.sleep(ms));
                self.later(clock, 0, Happening::LeaseEnd);
            }
        }
    }

    /// Changes the intervals. Two changes between two fetches of `/config` cannot be seen from
    /// outside, so that a lease under the ones in between is not known: they are not modelled.
    fn retime(&mut self, clock: Clock, random: &mut Random, faults: &Faults) {
        if self.retimed_ms.is_some_and(|ms| clock.ms < ms + RETIMED_MS_MIN) {
            return;
        }
        self.retimed_ms = Some(clock.ms);
        let previous = std::mem::replace(&mut self.intervals, random.pick(&TIMINGS));
        if self.intervals.promises_less(previous) {
            self.lowered_ms = Some(clock.ms);
        } else if faults.about_the_lease && random.chance(500) {
            self.freeze_the_wait(clock, random);
        }
    }

    fn disagree(&mut self, random: &mut Random) {
        let routes = ["/leader", "/leader", "/primary", "/", "/read-write"];
        let none = self.disagreeing.is_none();
        self.disagreeing = none.then(|| random.pick(&routes));
    }

    /// Ends all faults of the cluster.
    pub fn heal(&mut self, clock: Clock) {
        self.down = false;
        self.flags = [false; 3];
        self.state = "running";
        (self.api_frozen, self.loop_frozen) = (false, false);
        (self.dcs_away, self.unknown, self.disagreeing) = (false, false, None);
        self.resume(clock);
    }

    fn resume(&mut self, clock: Clock) {
        if let Some(stalled) = self.stalled.take_if(|_| !self.loop_frozen) {
            self.later(clock, 0, stalled);
        }
    }

    fn later(&mut self, clock: Clock, delay_ms: u64, what: Happening) {
        self.todo.push((clock.ms + delay_ms, what));
    }

    fn dcs_delay(&self, random: &mut Random, faults: &Faults) -> u64 {
        let slow = faults.hit(random, Fault::DcsSlow);
        let most_ms = if slow { self.intervals.retry_timeout * 1_000 } else { 20 };
        if slow && random.chance(300) { most_ms } else { random.between(0, most_ms) }
    }

    /// In failsafe mode the leader asks the other members and goes on; otherwise it steps down.
    fn dcs_failed(&mut self, clock: Clock, random: &mut Random) {
        let ttl_ms = self.intervals.ttl * 1_000;
        if self.dcs_away && self.failsafe {
            self.flags = [self.flags[0], random.chance(500), true];
            if self.leads {
                self.failsafe_until_ms = clock.ms + ttl_ms;
                self.leader_until_unix_ms = clock.unix_ms + ttl_ms;
            }
        } else if self.dcs_away {
            self.step_down(clock, random);
        }
        self.next_cycle(clock);
    }

    fn read(&mut self, clock: Clock, random: &mut Random, faults: &Faults) {
        self.seen = clock.unix_ms / 1_000;
        self.loop_seen = self.seen;
        if std::mem::replace(&mut self.flags[2], false) {
            self.flags[1] = false;
            if self.leads && clock.ms < self.failsafe_until_ms {
                self.hold(clock); // no other node has taken the lease
            }
        }
        if let Some(keys) = &mut self.keys {
            if !self.leads {
                keys.renew(clock.ms, self.intervals.ttl);
            }
            let is_late = random.chance(200);
            self.publish(clock.ms, is_late);
        }
        match (self.leads, self.we_hold && clock.ms < self.lease_until_ms) {
            (true, true) => {
                let delay_ms = self.dcs_delay(random, faults);
                self.later(clock, delay_ms, Happening::Renew);
                if faults.about_the_lease && random.chance(250) {
                    self.freeze_before(clock, delay_ms, random);
                }
                return;
            }
            (true, false) => self.step_down(clock, random),
            (false, _) => {}
        }
        self.next_cycle(clock);
    }

    /// A loop that hangs while it waits continues with a read, and may hang again after it.
    fn freeze_the_wait(&mut self, clock: Clock, random: &mut Random) {
        self.later(clock, 1, Happening::Freeze(Freeze::Loop));
        let lasting_ms = random.between(self.intervals.loop_wait, self.intervals.ttl) * 1_000;
        self.later(clock, lasting_ms, Happening::Thaw(Freeze::Loop));
    }

    /// The worst moment: after the read of the DCS, before the renewal of the lease.
    fn freeze_before(&mut self, clock: Clock, renewal_ms: u64, random: &mut Random) {
        let delay_ms = random.below(renewal_ms.max(1));
        self.later(clock, delay_ms, Happening::Freeze(Freeze::Process));
        let lasting_ms = random.between(5_000, 60_000);
        self.later(clock, delay_ms + lasting_ms, Happening::Thaw(Freeze::Process));
    }

    fn renew(&mut self, clock: Clock) {
        if self.we_hold && clock.ms < self.lease_until_ms {
            self.hold(clock);
        }
        self.next_cycle(clock);
    }

    fn next_cycle(&mut self, clock: Clock) {
        let next_ms = (self.cycle_ms + self.intervals.loop_wait * 1_000).max(clock.ms);
        self.todo.push((next_ms, Happening::Cycle));
    }

    fn hold(&mut self, clock: Clock) {
        self.we_hold = true;
        self.lease_until_ms = clock.ms + lease_ms(self.intervals, self.zookeeper);
        self.leader_until_unix_ms = clock.unix_ms + self.intervals.ttl * 1_000;
        self.todo.push((self.lease_until_ms, Happening::LeaseEnd));
        let (name, seconds) = (self.member_name(), self.intervals.ttl);
        if let Some(keys) = &mut self.keys {
            keys.renew(clock.ms, seconds);
            keys.hold(name);
        }
    }

    /// PostgreSQL stops first, then the lease is given up.
    fn step_down(&mut self, clock: Clock, random: &mut Random) {
        if self.leads {
            (self.leads, self.we_hold) = (false, false);
            self.lose_the_key(clock, random);
            self.leader_until_unix_ms = 0;
            self.state = "stopping";
            self.timeline += 1;
            let stopped_ms = random.between(1, 500);
            let starting_ms = stopped_ms + random.between(1, 2_500);
            let running_ms = starting_ms + random.between(1, 3_000);
            self.later(clock, stopped_ms, Happening::Postgres("stopped"));
            self.later(clock, starting_ms, Happening::Postgres("starting"));
            self.later(clock, running_ms, Happening::Postgres("running"));
        }
    }

    fn take_over(&mut self, clock: Clock) {
        if !self.leads && self.state == "running" && !self.loop_frozen && !self.dcs_away {
            self.leads = true;
            self.timeline += 1;
            self.promoting_until_ms = clock.ms + 100;
            self.hold(clock);
        }
    }

    // ---- the API

    /// Answers now; some targets make Patroni read the DCS.
    pub fn reply(
        &mut self,
        target: &str,
        clock: Clock,
        random: &mut Random,
        faults: &Faults,
    ) -> Said {
        let path = target.split('?').next().unwrap_or_default();
        let reads = path == "/cluster" || (needs_dcs(path) && random.chance(500));
        if reads && !self.dcs_away {
            self.seen = clock.unix_ms / 1_000;
        }
        self.serial += 1;
        let mut said = Said {
            target: target.into(),
            status: self.status(path, clock),
            content_type: Some("application/json"),
            body: Vec::new(),
            node: None,
            intervals: None,
            loop_seen: self.loop_seen,
            unix_ms: clock.unix_ms,
            ahead_ms: self.ahead_ms,
            is_other: false,
        };
        if faults.hit(random, Fault::OddStatus) {
            said.status = random.pick(&[200, 201, 404, 412, 500, 502, 503, 599]);
        }
        self.body(path, clock, &mut said, random, faults);
        said
    }

    /// Another node's answer: it has been promoted.
    pub fn other_says(&mut self, target: &str, clock: Clock) -> Said {
        self.serial += 1;
        let path = target.split('?').next().unwrap_or_default();
        let node = Node {
            state: "running",
            role: "primary",
            timeline: Some(9),
            seen: Some(clock.unix_ms / 1_000),
            flags: [false; 3],
            name: Some(OTHER_NAME),
        };
        let is_report =
            !matches!(path, "/liveness" | "/readiness" | "/metrics") && !needs_dcs(path);
        let body = match is_report {
            true => self.node_json(&node, "", false),
            false => format!("{{\"n\": {}}}", self.serial),
        };
        let bodyless = matches!(path, "/liveness" | "/readiness");
        Said {
            target: target.into(),
            status: 200,
            content_type: (!bodyless).then_some("application/json"),
            body: if bodyless { Vec::new() } else { body.into_bytes() },
            node: is_report.then_some(node),
            intervals: None,
            loop_seen: clock.unix_ms / 1_000,
            unix_ms: clock.unix_ms,
            ahead_ms: 0,
            is_other: true,
        }
    }

    pub fn status(&self, path: &str, clock: Clock) -> u16 {
        let leads = self.leads && clock.unix_ms < self.leader_until_unix_ms;
        let leads = leads && self.disagreeing != Some(path);
        let running = self.state == "running" && !self.unknown;
        let well = match path {
            "/" | "/primary" | "/read-write" | "/master" => leads && !self.standby_cluster,
            "/leader" => leads,
            "/standby-leader" | "/standby_leader" => leads && self.standby_cluster,
            "/replica" | "/async" | "/asynchronous" => !self.leads && running,
            "/read-only" | "/read-only-sync" => running,
            "/health" | "/readiness" => running,
            path if path.starts_with("/sync") || path == "/quorum" => false,
            path if path.starts_with("/read-only") => running,
            _ => true,
        };
        if well { 200 } else { 503 }
    }

    /// Every body differs from every other by its number, and from its neighbours by its length.
    fn body(
        &self,
        path: &str,
        clock: Clock,
        said: &mut Said,
        random: &mut Random,
        faults: &Faults,
    ) {
        let number = self.serial;
        let pad = "x".repeat((number % 127) as usize);
        let text = match path {
            "/liveness" | "/readiness" => {
                said.content_type = None;
                String::new()
            }
            "/metrics" => {
                said.content_type = Some("text/plain; version=0.0.4");
                format!("# {number} {pad}\npatroni_primary 1\n")
            }
            "/cluster" | "/history" => {
                format!("{{\"members\": [], \"n\": {number}, \"p\": \"{pad}\"}}")
            }
            "/config" if faults.hit(random, Fault::UnreadableConfig) => {
                said.status = random.pick(&[401, 500, 503]);
                "{}".into()
            }
            "/config" => {
                said.status = 200;
                said.intervals = Some(self.intervals);
                let Intervals { ttl, loop_wait, retry_timeout } = self.intervals;
                format!(
                    "{{\"ttl\": {ttl}, \"loop_wait\": {loop_wait}, \
                     \"retry_timeout\": {retry_timeout}, \"maximum_lag_on_failover\": 1}}"
                )
            }
            _ => {
                let node = self.node(clock, random, faults);
                let odd = faults.hit(random, Fault::OddJson);
                let text = self.node_json(&node, &pad, odd);
                said.node = Some(node);
                text
            }
        };
        said.body = text.into_bytes();
    }

    /// `odd`: with what Python's `json.dumps` writes beyond RFC 8259.
    fn node_json(&self, node: &Node, pad: &str, odd: bool) -> String {
        let system = self.keys.as_ref().map(|_| SYSTEM_IDENTIFIER);
        node_json(node, system, self.serial, pad, odd)
    }

    pub fn role(&self, ms: u64) -> &'static str {
        let stopped = self.state == "stopping" || self.state == "stopped";
        match (self.leads, self.standby_cluster) {
            (true, _) if ms < self.promoting_until_ms => "replica",
            (true, false) => "primary",
            (true, true) => "standby_leader",
            (false, _) if stopped => "demoted",
            (false, _) => "replica",
        }
    }

    fn node(&self, clock: Clock, random: &mut Random, faults: &Faults) -> Node {
        let running = self.state == "running";
        let state = if running && self.unknown { "unknown" } else { self.state };
        Node {
            state,
            role: self.role(clock.ms),
            timeline: (state == "running" && !faults.hit(random, Fault::NoTimeline))
                .then_some(self.timeline),
            seen: (!faults.hit(random, Fault::NoSeen)).then_some(self.seen),
            flags: self.flags,
            name: self.name,
        }
    }
}

/// Whether Patroni may read the DCS for this.
pub fn needs_dcs(path: &str) -> bool {
    matches!(path, "/cluster" | "/history" | "/config")
}

/// How long the lease lasts in the DCS.
fn lease_ms(intervals: Intervals, zookeeper: bool) -> u64 {
    let seconds = if zookeeper { intervals.ttl.min(40) } else { intervals.ttl };
    seconds * 1_000
}

fn node_json(node: &Node, system: Option<&str>, number: u64, pad: &str, odd: bool) -> String {
    let mut text = format!("{{\"state\": \"{}\", \"role\": \"{}\"", node.state, node.role);
    if let Some(system) = system {
        text.push_str(&format!(", \"database_system_identifier\": \"{system}\""));
    }
    if let Some(timeline) = node.timeline {
        text.push_str(&format!(", \"timeline\": {timeline}"));
    }
    if let Some(seen) = node.seen {
        text.push_str(&format!(", \"dcs_last_seen\": {seen}"));
    }
    let names = ["pause", "cluster_unlocked", "failsafe_mode_is_active"];
    for (name, _) in names.iter().zip(node.flags).filter(|(_, is_set)| *is_set) {
        text.push_str(&format!(", \"{name}\": true"));
    }
    if let Some(name) = node.name {
        text.push_str(&format!(", \"patroni\": {{\"name\": \"{name}\", \"scope\": \"main\"}}"));
    }
    if odd {
        text.push_str(", \"tags\": {\"a\": NaN, \"b\": [-Infinity, \"\\ud800}\"]}");
    }
    text.push_str(&format!(", \"xlog\": {{\"location\": {number}}}, \"p\": \"{pad}\"}}"));
    text
}

/// Longer than intervals are believed.
const RETIMED_MS_MIN: u64 = 40_000;
/// `initialize` in etcd.
pub const SYSTEM_IDENTIFIER: &str = "7587895443109810434";
/// The name of the node at the other address.
const OTHER_NAME: &str = "pg9";
/// Within what Patroni accepts: `loop_wait + 2 * retry_timeout <= ttl`.
const TIMINGS: [Intervals; 5] = [
    Intervals { ttl: 30, loop_wait: 10, retry_timeout: 10 },
    Intervals { ttl: 30, loop_wait: 10, retry_timeout: 10 },
    Intervals { ttl: 20, loop_wait: 2, retry_timeout: 3 },
    Intervals { ttl: 20, loop_wait: 1, retry_timeout: 3 },
    Intervals { ttl: 60, loop_wait: 10, retry_timeout: 5 },
];
