//! The world around the engine: time, events in their order, clients, and the model of Patroni.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use patroniglue::answer::AddressId;
use patroniglue::engine::{Action, Counts, Engine, Port, Settings};
use patroniglue::failure::Failure;
use patroniglue::slots::ConnId;
use patroniglue::time::Time;
use patroniglue::wheel::TICK_MS;

use super::checks::{Memory, Outcome};
use super::client::{Expected, Message, Palette, ROUTES, plain, unfinished};
use super::etcd::{DcsEvent, Etcd};
use super::faults::{Fault, Faults, settings};
use super::patroni::{Clock, Freeze, Happening, Patroni, Said, needs_dcs};
use super::random::{Hash, Random};
use super::shell::{Cause, Input, SHUTDOWN_MS_MAX, SHUTDOWN_WAIT_MS_MAX};
use super::wire::{INTERIM, thrown, wire};
use super::witness_checks::Testimony;

pub struct World {
    pub random: Random,
    pub faults: Faults,
    pub settings: Settings,
    pub engine: Engine,
    pub now_ms: u64,
    /// The daemon's age at the start of the seed.
    pub base_ms: u64,
    unix_base_ms: u64,
    jumped_ms: i64,
    /// When the wall clock moved last.
    pub moved_ms: Option<u64>,
    /// The number of inputs.
    pub step: u64,
    events: BTreeMap<(u64, u64, u64), Event>,
    sequence: u64,
    pub owners: BTreeMap<ConnId, Owner>,
    pub queue: VecDeque<ConnId>,
    /// Actions to carry out, their causes and steps.
    pub actions: VecDeque<(Action, Cause, u64)>,
    pub acting_step: Option<u64>,
    pub closed_ids: Vec<ConnId>,
    pub clients: Vec<Client>,
    pub fetches: Vec<Fetch>,
    pub open_clients: Vec<usize>,
    pub open_fetches: Vec<usize>,
    pub patroni: Patroni,
    /// `None`: no DCS is configured.
    pub etcd: Option<Etcd>,
    pub testimony: Testimony,
    /// Whether the name leads to another node's address.
    is_elsewhere: bool,
    /// Requests that a frozen Patroni has received.
    pending: Vec<usize>,
    pub memory: Memory,
    palette: Palette,
    /// Targets that clients have asked for.
    pub asked_for: BTreeSet<String>,
    /// Targets with parameters of the last second that were not in memory, and when they were
    /// fetched.
    pub unknown_variants: VecDeque<(u64, String)>,
    /// When Patroni's intervals were fetched last.
    pub intervals_ms: Option<u64>,
    /// When all connections to Patroni were in use last.
    pub busy_ms: Option<u64>,
    pub overslept_ms: u64,
    sleep_ms: u64,
    /// From when until when the process stood still.
    standstills: Vec<(u64, u64)>,
    pub is_draining: bool,
    pub shutdown_ms: Option<u64>,
    pub stale_expected: u64,
    pub records: u64,
    pub answers: u64,
    pub hash: Hash,
    pub log: Option<Vec<String>>,
}

pub enum Event {
    Arrive,
    Steady(&'static str),
    /// One of many requests that differ in their parameters.
    Flood(u64),
    Bytes(ConnId, Vec<u8>),
    End(ConnId, End),
    Take(ConnId, usize),
    Connected(ConnId),
    ConnectFailed(ConnId, Failure),
    Execute(usize),
    Cluster(Happening),
    Jump(i64),
    /// The process stands still for this many milliseconds.
    Suspend(u64),
    /// The machine sleeps for this many milliseconds.
    Sleep(u64),
    Drain(bool),
    /// The name leads to another node's address (`true`), or to the first one's.
    Elsewhere(bool),
    MakeRoom,
    Shutdown,
    Dcs(DcsEvent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Client(usize),
    Fetch(usize),
    /// A request to the DCS.
    Dcs(usize),
}

/// The end of a direction, after its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Fin,
    /// A FIN that comes 40 s after the bytes.
    Late,
    Rst,
    /// The engine has seen the end.
    Seen,
}

pub struct Pipe {
    /// Bytes that the engine has not read.
    pub inbox: VecDeque<u8>,
    pub end: End,
    /// The number of bytes that the peer reads.
    pub window: usize,
}

pub struct Client {
    pub id: ConnId,
    pub pipe: Pipe,
    pub script: Vec<Message>,
    /// Bytes the engine has received.
    received: usize,
    /// Bytes of the messages already answered.
    start: usize,
    pub answered: usize,
    /// When, and at which step, the engine had the complete current request.
    pub asked: Option<(u64, u64)>,
    /// Whether its target is known to fail.
    pub is_hopeless: bool,
    /// When the time for the current request began.
    pub first_byte_ms: Option<u64>,
    head_done: bool,
    pub current: Option<Answering>,
    pub closes_now: bool,
    /// When its last answer was sent.
    pub ended_ms: Option<u64>,
    /// When it connected, or got its last answer.
    pub since_ms: u64,
    pub gone: bool,
    /// Whether it has to get Patroni's answer.
    is_probe: bool,
    /// The status of its last answer.
    pub status: Option<u16>,
}

pub struct Answering {
    pub bytes: Vec<u8>,
    pub sent: usize,
    pub since_ms: u64,
    pub closes: bool,
}

pub struct Fetch {
    pub id: ConnId,
    pub connect_ms: u64,
    pub connect_unix_ms: u64,
    pub connect_step: u64,
    /// How many fetches were open then, with this one.
    pub open_then: usize,
    /// The target with parameters whose client waited longest then without a fetch, and since when.
    pub starved: Option<(String, u64)>,
    /// Whether a client waited then for an answer that does not need the DCS, without a fetch.
    pub others_waited: bool,
    pub connected: bool,
    pub request: Vec<u8>,
    pub target: Option<String>,
    pub pipe: Pipe,
    pub plan: Option<Result<Said, Failure>>,
    pub planned_bytes: usize,
    pub delivered: usize,
    /// The length of a response before the answer.
    pub interim_bytes: usize,
    pub closed: bool,
    executed: bool,
    /// Whether it is connected to another node.
    is_other: bool,
    /// Whether it waits for a DCS that is away.
    hangs: bool,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> World {
        let mut random = Random::new(seed);
        let mut faults = Faults::new(&mut random);
        let mut settings = settings(&mut random, &faults);
        let palette = Palette::new(&mut random);
        let base_ms = random.pick(&[0, 0, 10, 40_950, 86_400_000, 8_640_000_000]);
        let unix_base_ms = UNIX_MS_AT_START + random.below(1_000);
        let start = Clock { ms: 0, unix_ms: unix_base_ms };
        let mut patroni = Patroni::new(&mut random, start);
        let etcd = Etcd::new(seed);
        if let Some(etcd) = &etcd {
            patroni.use_etcd(start.ms, etcd.is_the_focus);
            settings.dcs = etcd.settings();
            if etcd.is_the_focus {
                faults.focus_on_the_witness();
            }
        }
        World {
            engine: Engine::new(settings.clone()),
            log: traced.then(|| vec![format!("{settings:?}")]),
            random,
            faults,
            settings,
            now_ms: 0,
            base_ms,
            unix_base_ms,
            jumped_ms: 0,
            moved_ms: None,
            step: 0,
            events: BTreeMap::new(),
            sequence: 0,
            owners: BTreeMap::new(),
            queue: VecDeque::new(),
            actions: VecDeque::new(),
            acting_step: None,
            closed_ids: Vec::new(),
            clients: Vec::new(),
            fetches: Vec::new(),
            open_clients: Vec::new(),
            open_fetches: Vec::new(),
            patroni,
            etcd,
            testimony: Testimony::default(),
            is_elsewhere: false,
            pending: Vec::new(),
            memory: Memory::new(),
            palette,
            asked_for: BTreeSet::new(),
            unknown_variants: VecDeque::new(),
            intervals_ms: None,
            busy_ms: None,
            overslept_ms: 0,
            sleep_ms: 0,
            standstills: Vec::new(),
            is_draining: false,
            shutdown_ms: None,
            stale_expected: 0,
            records: 0,
            answers: 0,
            hash: Hash::new(),
        }
    }

    /// Runs a seed: faults, then health, then quiet.
    pub fn live(&mut self) -> Outcome {
        let duration_ms = self.random.pick(&[3_000, 3_000, 10_000, 30_000, 60_000, 100_000]);
        let duration_ms = if self.faults.about_the_lease { 100_000 } else { duration_ms };
        let is_about_etcd = self.etcd.as_ref().is_some_and(|etcd| etcd.is_the_focus);
        let duration_ms = if is_about_etcd { 60_000.max(duration_ms) } else { duration_ms };
        self.plan_clients(duration_ms);
        self.plan_trouble(duration_ms);
        self.plan_etcd(duration_ms);
        self.take_todo();
        self.step += 1;
        self.engine.start(self.now());
        self.perform_actions(Cause::Other)?;
        self.pass(duration_ms)?;
        if self.shutdown_ms.is_some() {
            for ms in [SHUTDOWN_WAIT_MS_MAX, SHUTDOWN_MS_MAX - SHUTDOWN_WAIT_MS_MAX] {
                self.pass(ms + TICK_MS + LATE_MS_MAX)?; // each of its timers may come late
            }
            return if self.engine.is_shut_down() {
                Ok(())
            } else {
                Err("the engine does not end".into())
            };
        }
        self.heal()?;
        self.quiet()
    }

    fn plan_clients(&mut self, duration_ms: u64) {
        let count = self.random.between(3, 50);
        let bursts = self.random.chance(400);
        let mut at_ms = 0;
        for _ in 0..count {
            if !bursts || self.random.chance(200) {
                at_ms = self.random.below(duration_ms);
            }
            self.at(at_ms, Event::Arrive);
        }
        if self.random.chance(600) {
            let target = self.random.pick(&["/primary", "/primary", "/leader", "/replica", "/"]);
            self.plan_steady(target, duration_ms);
        }
        if self.faults.about_the_lease {
            self.plan_steady("/primary", duration_ms);
            // each makes Patroni read the DCS, so that few dcs_last_seen show a renewal
            if self.random.chance(500) {
                self.plan_steady("/cluster", duration_ms);
            }
        }
    }

    /// A load balancer's checks, at a fixed interval.
    fn plan_steady(&mut self, target: &'static str, duration_ms: u64) {
        let pause_ms = if self.faults.about_the_lease {
            self.random.pick(&[500, 1_000, 2_000])
        } else {
            self.random.pick(&[20, 50, 100, 500, 1_000, 2_000, 5_000])
        };
        let begin_ms = self.random.below(duration_ms / 2);
        let most = if self.faults.about_the_lease { 100 } else { 50 };
        for turn in 0..most.min((duration_ms - begin_ms) / pause_ms) {
            self.at(begin_ms + turn * pause_ms, Event::Steady(target));
        }
    }

    fn plan_trouble(&mut self, duration_ms: u64) {
        for fault in TROUBLE {
            if !self.faults.is_on(fault) {
                continue;
            }
            let most = if self.faults.about_the_lease { 6 } else { 4 };
            for _ in 0..self.random.between(1, most) {
                let at_ms = self.random.below(duration_ms);
                self.plan_one(fault, at_ms, duration_ms);
            }
        }
    }

    fn plan_one(&mut self, fault: Fault, at_ms: u64, duration_ms: u64) {
        let most_ms = if self.faults.about_the_lease { 25_000 } else { 60_000 };
        let lasting_ms = 50 + self.random.skewed(most_ms);
        let sign = if self.random.chance(500) { 1 } else { -1 };
        let event = match fault {
            Fault::FreezeApi => Event::Cluster(Happening::Freeze(Freeze::Api)),
            Fault::FreezeLoop => Event::Cluster(Happening::Freeze(Freeze::Loop)),
            Fault::FreezeProcess => Event::Cluster(Happening::Freeze(Freeze::Process)),
            Fault::Switchover => {
                let what = self.random.pick(&[Happening::Switchover, Happening::Takeover]);
                Event::Cluster(what)
            }
            Fault::Flags => Event::Cluster(Happening::Flags),
            Fault::Retiming => Event::Cluster(Happening::Retime),
            Fault::Refused => Event::Cluster(Happening::Down(true)),
            Fault::DcsAway => Event::Cluster(Happening::Dcs(true)),
            Fault::Unknown => Event::Cluster(Happening::Unknown(true)),
            Fault::Restarts => Event::Cluster(Happening::Restart),
            Fault::Disagree => Event::Cluster(Happening::Disagree),
            Fault::Renamed => Event::Cluster(Happening::Rename),
            Fault::OtherNode => {
                self.at(at_ms + lasting_ms, Event::Elsewhere(false));
                Event::Elsewhere(true)
            }
            Fault::PatroniClock => {
                let most_ms = self.random.pick(&[50, 30_000, 30_000]);
                Event::Cluster(Happening::Clock(sign * self.random.skewed(most_ms) as i64))
            }
            Fault::Flood => {
                let (first, pause_ms) = (self.random.below(1_000), self.random.between(1, 30));
                for turn in 1..24 {
                    self.at(at_ms + turn * pause_ms, Event::Flood(first + turn));
                }
                Event::Flood(first)
            }
            Fault::Suspend => Event::Suspend(lasting_ms),
            Fault::Sleep => Event::Sleep(500 + lasting_ms),
            Fault::WallJumps => Event::Jump(sign * (300 + self.random.skewed(100_000) as i64)),
            Fault::SmallJumps => {
                let (step_ms, pause_ms) = (self.random.between(20, 240), self.random.below(1_000));
                for turn in 1..self.random.between(1, 12) {
                    self.at(at_ms + turn * pause_ms, Event::Jump(sign * step_ms as i64));
                }
                Event::Jump(sign * step_ms as i64)
            }
            Fault::Drain => Event::Drain(self.random.chance(500)),
            Fault::Capacity => Event::MakeRoom,
            _ => Event::Shutdown,
        };
        match event {
            Event::Shutdown if self.random.chance(700) => return,
            Event::Shutdown => return self.at(at_ms.max(duration_ms / 2), event),
            Event::Cluster(Happening::Freeze(what)) => {
                self.at(at_ms + lasting_ms, Event::Cluster(Happening::Thaw(what)));
            }
            Event::Cluster(Happening::Down(_)) => {
                self.at(at_ms + lasting_ms, Event::Cluster(Happening::Down(false)));
            }
            Event::Cluster(Happening::Dcs(_)) => {
                self.at(at_ms + lasting_ms, Event::Cluster(Happening::Dcs(false)));
            }
            Event::Cluster(Happening::Unknown(_)) => {
                self.at(at_ms + lasting_ms, Event::Cluster(Happening::Unknown(false)));
            }
            Event::Cluster(Happening::Disagree) => {
                self.at(at_ms + lasting_ms, Event::Cluster(Happening::Disagree));
            }
            _ => {}
        }
        self.at(at_ms, event);
    }

    /// Ends all faults: soon each client has to get Patroni's answer.
    fn heal(&mut self) -> Outcome {
        self.trace(|| "healed".into());
        self.faults.heal();
        self.patroni.heal(self.patroni_clock());
        let healthy = |event: &Event| match event {
            Event::Cluster(what) => matches!(
                what,
                Happening::Cycle
                    | Happening::Read
                    | Happening::Renew
                    | Happening::DcsFailed
                    | Happening::LeaseEnd
            ),
            Event::Connected(_) | Event::ConnectFailed(..) | Event::Execute(_) => true,
            Event::Bytes(..) | Event::End(..) | Event::Dcs(DcsEvent::Execute(_)) => true,
            _ => false,
        };
        self.events.retain(|_, event| healthy(event));
        if let Some(etcd) = &mut self.etcd {
            etcd.heal();
        }
        self.sleep_ms = 0;
        self.is_elsewhere = false;
        self.flush_pending();
        self.take_todo();
        self.drain(false);
        self.all_clients_leave()?;
        let soon_ms = self.settings.timeout_ms + 1_300;
        let mut settled = (PROBES.map(|_| 0), self.now_ms);
        for _ in 0..soon_ms / 300 {
            self.probe(false)?;
            self.pass(300)?;
            self.settle(&mut settled);
        }
        self.pass(300)?;
        self.settle(&mut settled);
        self.probe(true)?;
        self.pass(300)?;
        self.settle(&mut settled);
        let settled = self.now_ms >= settled.1 + self.settings.cache.ttl_ms + 1_000;
        for client in self.clients.iter().filter(|client| client.is_probe) {
            let Some(status) = client.status else {
                return Err("liveness: a probe is not answered".into());
            };
            let Expected::Patroni(target) = &client.script[0].expected else { continue };
            let truly = self.patroni.status(target, self.patroni_clock());
            if settled && status != truly {
                return Err(format!("liveness: {status} for {target}, but Patroni says {truly}"));
            }
        }
        Ok(())
    }

    /// Records since when Patroni says the same of all probes' targets.
    fn settle(&self, settled: &mut ([u16; 3], u64)) {
        let statuses = PROBES.map(|target| self.patroni.status(target, self.patroni_clock()));
        if statuses != settled.0 {
            *settled = (statuses, self.now_ms);
        }
    }

    fn probe(&mut self, is_probe: bool) -> Outcome {
        for target in PROBES {
            if self.open_clients.len() >= self.settings.clients_max {
                return Ok(());
            }
            let message = plain(target);
            let Some(at) = self.arrive(vec![message], usize::MAX)? else { continue };
            self.clients[at].is_probe = is_probe;
            let id = self.clients[at].id;
            let bytes = self.clients[at].script[0].bytes.clone();
            self.handle(Event::Bytes(id, bytes))?;
            self.serve_queue()?;
        }
        Ok(())
    }

    fn all_clients_leave(&mut self) -> Outcome {
        for at in self.open_clients.clone() {
            let id = self.clients[at].id;
            if self.owners.contains_key(&id) {
                self.input(id, Input::Broken(Failure::Reset))?;
            }
        }
        Ok(())
    }

    /// Without clients and without Patroni nothing may be left after a while.
    fn quiet(&mut self) -> Outcome {
        self.patroni.down = true;
        self.all_clients_leave()?;
        self.pass(QUIET_MS)?;
        let mut left = self.engine.counts();
        if self.etcd.is_some() {
            if left.timers > 1 {
                self.pass(READ_MS_MAX)?; // there was a rehearsal
                left = self.engine.counts();
            }
            left.timers -= left.timers.min(1);
        }
        let stale_inputs = self.stale_expected;
        let nothing = Counts { entries: ROUTES.len(), stale_inputs, ..Counts::default() };
        if left != nothing || !self.owners.is_empty() {
            return Err(format!("promise 8: after all clients left there remain {left:?}"));
        }
        if self.settings.records && self.records != self.answers {
            return Err(format!("{} records for {} answers", self.records, self.answers));
        }
        Ok(())
    }

    // ---- time

    /// From event to event and deadline to deadline.
    fn pass(&mut self, ms: u64) -> Outcome {
        let until_ms = self.now_ms + ms;
        let mut turns_at_once = 0;
        loop {
            let deadline_ms = self.engine.next_deadline().map(Time::as_ms);
            let deadline_ms = deadline_ms.map(|ms| ms.saturating_sub(self.base_ms));
            let event_ms = self.events.first_key_value().map(|(key, _)| key.0);
            let busy = (!self.queue.is_empty()).then_some(self.now_ms);
            let next_ms = [deadline_ms, event_ms, busy].into_iter().flatten().min();
            let next_ms = next_ms.unwrap_or(u64::MAX).max(self.now_ms);
            if deadline_ms.is_none_or(|ms| ms > self.now_ms) {
                self.check_turn()?; // the loop is about to sleep
            }
            if next_ms > until_ms {
                self.now_ms = self.now_ms.max(until_ms);
                return Ok(());
            }
            let late = self.faults.hit(&mut self.random, Fault::Late);
            let late_ms = if late { self.random.skewed(LATE_MS_MAX) } else { 0 };
            if self.sleep_ms > 0 {
                self.standstills.push((next_ms, next_ms + late_ms + self.sleep_ms));
            }
            let late_ms = late_ms + std::mem::take(&mut self.sleep_ms);
            // a turn at once after one that came late is as late
            let stands = next_ms + late_ms == self.now_ms;
            self.overslept_ms = if stands { self.overslept_ms.max(late_ms) } else { late_ms };
            turns_at_once = if next_ms + late_ms == self.now_ms { turns_at_once + 1 } else { 0 };
            if turns_at_once > TURNS_AT_ONCE_MAX {
                return Err("the loop turns without time passing".into());
            }
            self.now_ms = next_ms + late_ms;
            self.turn()?;
        }
    }

    fn turn(&mut self) -> Outcome {
        self.note_silence();
        let mut arrivals = Vec::new();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            match entry.remove() {
                event @ (Event::Arrive | Event::Steady(_) | Event::Flood(_)) => {
                    arrivals.push(event)
                }
                event => self.handle(event)?,
            }
        }
        if self.faults.hit(&mut self.random, Fault::Shuffle) {
            let count = self.queue.len() as u64;
            self.queue.rotate_left(self.random.below(count) as usize);
        }
        if self.faults.hit(&mut self.random, Fault::SpuriousTicks) {
            self.tick()?;
        }
        self.stale()?;
        self.serve_queue()?;
        self.tick()?;
        self.serve_queue()?;
        for event in arrivals {
            self.handle(event)?;
        }
        Ok(())
    }

    pub fn serve_queue(&mut self) -> Outcome {
        for _ in 0..QUEUE_ROUNDS {
            for id in std::mem::take(&mut self.queue) {
                self.serve(id)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Outcome {
        match event {
            Event::Arrive => return self.arrival(),
            Event::Steady(target) => return self.steady(target),
            Event::Flood(number) => return self.steady(&format!("/replica?lag={number}")),
            Event::Bytes(id, bytes) => {
                if let Some(pipe) = self.pipe(id) {
                    pipe.inbox.extend(bytes);
                    self.queue.push_back(id);
                }
            }
            Event::End(id, end) => return self.end(id, end),
            Event::Take(id, count) => {
                if let Some(pipe) = self.pipe(id) {
                    pipe.window = pipe.window.saturating_add(count);
                    self.queue.push_back(id);
                }
            }
            Event::Connected(id) => return self.connected(id),
            Event::ConnectFailed(id, why) => {
                if self.owners.contains_key(&id) {
                    return self.input(id, Input::ConnectFailed(why));
                }
            }
            Event::Execute(at) => self.execute(at),
            Event::Cluster(what) => self.happens(what),
            Event::Jump(ms) => self.jump(ms),
            Event::Suspend(ms) => self.sleep_ms = ms,
            Event::Sleep(ms) => {
                self.jump(ms as i64);
                self.happens(Happening::Sleep(ms));
            }
            Event::Drain(draining) => self.drain(draining),
            Event::Elsewhere(is_elsewhere) => {
                self.is_elsewhere = is_elsewhere && self.memory.knows_the_node();
            }
            Event::MakeRoom => {
                self.engine.make_room(self.now());
                return self.perform_actions(Cause::Other);
            }
            Event::Shutdown if self.shutdown_ms.is_none() => {
                self.shutdown_ms = Some(self.now_ms);
                self.engine.begin_shutdown(self.now());
                return self.perform_actions(Cause::Other);
            }
            Event::Shutdown => {}
            Event::Dcs(event) => return self.dcs_event(event),
        }
        Ok(())
    }

    fn jump(&mut self, ms: i64) {
        self.trace(|| format!("the wall clock jumps by {ms} ms"));
        self.jumped_ms += ms;
        self.moved_ms = Some(self.now_ms);
        self.memory.forget_failures();
    }

    fn drain(&mut self, draining: bool) {
        self.engine.drain(draining);
        self.is_draining = draining;
    }

    fn happens(&mut self, what: Happening) {
        self.trace(|| format!("{what:?}"));
        let clock = self.patroni_clock();
        self.patroni.happens(what, clock, &mut self.random, &self.faults);
        self.take_todo();
        if matches!(what, Happening::Thaw(_)) {
            self.flush_pending();
        }
    }

    pub fn take_todo(&mut self) {
        for (at_ms, what) in std::mem::take(&mut self.patroni.todo) {
            self.at(at_ms, Event::Cluster(what));
        }
    }

    /// Gives inputs for closed connections.
    fn stale(&mut self) -> Outcome {
        if self.closed_ids.is_empty() || !self.faults.hit(&mut self.random, Fault::StaleInputs) {
            return Ok(());
        }
        let id = self.closed_ids[self.random.below(self.closed_ids.len() as u64) as usize];
        let input = match self.random.below(6) {
            0 => Input::Receive(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            1 => Input::Sent(0),
            2 => Input::Eof,
            3 => Input::Broken(Failure::Reset),
            4 => Input::Connected,
            _ => Input::ConnectFailed(Failure::Refused),
        };
        self.stale_expected += 1;
        self.input(id, input)
    }

    // ---- clients

    fn arrival(&mut self) -> Outcome {
        let messages = if self.faults.hit(&mut self.random, Fault::Silent) {
            if self.random.chance(500) { vec![] } else { vec![unfinished(&mut self.random)] }
        } else {
            self.palette.messages(&mut self.random, &self.faults)
        };
        let slow = self.faults.hit(&mut self.random, Fault::SlowTakers);
        let window = if slow { self.random.skewed(LATE_MS_MAX) as usize } else { usize::MAX };
        let Some(at) = self.arrive(messages, window)? else { return Ok(()) };
        if slow && self.random.chance(700) {
            let (delay_ms, id) = (self.random.skewed(6_000), self.clients[at].id);
            self.later(delay_ms, Event::Take(id, usize::MAX));
        }
        self.send(at, 0)
    }

    fn steady(&mut self, target: &str) -> Outcome {
        match self.arrive(vec![plain(target)], usize::MAX)? {
            Some(at) => self.send(at, 0),
            None => Ok(()),
        }
    }

    fn arrive(&mut self, script: Vec<Message>, window: usize) -> Result<Option<usize>, String> {
        self.step += 1;
        let full = self.open_clients.len() >= self.settings.clients_max;
        let idle = self
            .open_clients
            .iter()
            .any(|at| self.clients[*at].is_idle() && self.clients[*at].answered > 0);
        let accepted = self.engine.accept(self.now(), Port::Checks);
        self.trace(|| format!("accept: {accepted:?}"));
        self.perform_actions(Cause::Accept)?;
        let Some(id) = accepted else {
            let fair = self.shutdown_ms.is_some() || (full && !idle);
            return if fair {
                Ok(None)
            } else {
                Err("a client was turned away below the limit".into())
            };
        };
        let at = self.clients.len();
        if self.owners.insert(id, Owner::Client(at)).is_some() {
            return Err(format!("{id:?} was assigned twice"));
        }
        self.open_clients.push(at);
        self.clients.push(Client {
            id,
            pipe: Pipe { inbox: VecDeque::new(), end: End::Open, window },
            script,
            received: 0,
            start: 0,
            answered: 0,
            asked: None,
            is_hopeless: false,
            first_byte_ms: None,
            head_done: false,
            current: None,
            closes_now: false,
            ended_ms: None,
            since_ms: self.now_ms,
            gone: false,
            is_probe: false,
            status: None,
        });
        self.serve(id)?;
        Ok(Some(at))
    }

    /// Sends the messages from `first` on, and in some seeds the end of the connection.
    fn send(&mut self, at: usize, first: usize) -> Outcome {
        let id = self.clients[at].id;
        let messages = &self.clients[at].script[first..];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.bytes.clone()).collect();
        let mut delay_ms = self.delay(2);
        if self.faults.hit(&mut self.random, Fault::Drips) {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let count = rest.len().min(1 + self.random.skewed(100) as usize);
                self.later(delay_ms, Event::Bytes(id, rest[..count].to_vec()));
                rest = &rest[count..];
                delay_ms += self.random.skewed(2_000);
            }
        } else if self.random.chance(500) {
            self.handle(Event::Bytes(id, bytes))?;
        } else {
            self.later(delay_ms, Event::Bytes(id, bytes));
        }
        if self.faults.hit(&mut self.random, Fault::ClientResets) {
            let reset_ms = self.random.skewed(6_000);
            self.later(reset_ms, Event::End(id, End::Rst));
        } else if self.faults.hit(&mut self.random, Fault::ClientEnds) {
            let end_ms = delay_ms + self.random.skewed(500);
            self.later(end_ms, Event::End(id, End::Fin));
        }
        Ok(())
    }

    fn end(&mut self, id: ConnId, end: End) -> Outcome {
        let at_once = end == End::Rst && self.random.chance(500);
        let Some(pipe) = self.pipe(id) else { return Ok(()) };
        if pipe.end != End::Open {
            return Ok(());
        }
        if at_once {
            pipe.end = End::Seen;
            return self.input(id, Input::Broken(Failure::Reset));
        }
        pipe.end = end;
        self.queue.push_back(id);
        Ok(())
    }

    pub fn note_received(&mut self, id: ConnId, count: usize) {
        match self.owners.get(&id) {
            Some(Owner::Client(at)) => self.clients[*at].received += count,
            Some(Owner::Fetch(at)) => self.fetches[*at].delivered += count,
            Some(Owner::Dcs(at)) => {
                let at = *at;
                self.etcd.iter_mut().for_each(|etcd| etcd.requests[at].delivered += count);
            }
            None => {}
        }
    }

    pub fn note_eof(&mut self, id: ConnId) {
        self.trace(|| format!("{id:?} has ended"));
    }

    /// Records whether the engine has a complete request now, or its beginning.
    pub fn note_asked(&mut self, at: usize) {
        let (now_ms, step) = (self.now_ms, self.step);
        let client = &mut self.clients[at];
        if client.current.is_some() || client.ended_ms.is_some() || client.asked.is_some() {
            return;
        }
        if client.received > client.start && client.first_byte_ms.is_none() {
            let first = client.answered == 0;
            client.first_byte_ms = Some(if first { client.since_ms } else { now_ms });
        }
        let Some(message) = client.script.get(client.answered) else { return };
        if client.received >= client.start + message.head_bytes() && !client.head_done {
            client.head_done = true;
            client.first_byte_ms = Some(now_ms);
        }
        let complete = client.received >= client.start + message.bytes.len();
        if complete && message.expected != Expected::Never {
            client.asked = Some((now_ms, step));
            if let Expected::Patroni(target) = &message.expected {
                // a drained node does not look into its cache
                client.is_hopeless = !self.is_draining && self.memory.wanted(target, now_ms);
                self.asked_for.insert(target.clone());
            }
        }
    }

    /// Records bytes of an answer or a request that the peer has read.
    pub fn note_sent(&mut self, id: ConnId, bytes: &[u8]) -> Outcome {
        match self.owners.get(&id).copied() {
            Some(Owner::Client(at)) => {
                let client = &mut self.clients[at];
                let current = client.current.as_mut().ok_or("bytes without an answer")?;
                if current.bytes[current.sent..][..bytes.len()] != *bytes {
                    return Err(format!("client {at}'s answer changed while it was sent"));
                }
                current.sent += bytes.len();
                if current.sent < current.bytes.len() {
                    return Ok(());
                }
                if current.closes {
                    client.ended_ms = Some(self.now_ms);
                }
                client.since_ms = self.now_ms;
                client.head_done = false;
                client.first_byte_ms = None;
                client.start += client.script[client.answered - 1].bytes.len();
                client.current = None;
            }
            Some(Owner::Fetch(at)) => self.fetches[at].request.extend_from_slice(bytes),
            Some(Owner::Dcs(at)) => {
                let etcd = self.etcd.as_mut().ok_or("bytes for no DCS")?;
                etcd.requests[at].bytes.extend_from_slice(bytes);
            }
            None => return Err("bytes of a closed connection".into()),
        }
        Ok(())
    }

    pub fn after_sent(&mut self, id: ConnId) -> Outcome {
        match self.owners.get(&id).copied() {
            Some(Owner::Fetch(at)) => self.read_request(at),
            Some(Owner::Dcs(at)) => self.dcs_was_sent(at),
            Some(Owner::Client(at)) if self.clients[at].is_idle() => self.goes_on(at),
            _ => Ok(()),
        }
    }

    /// A kept client that has its answers asks again, leaves, or stays idle.
    fn goes_on(&mut self, at: usize) -> Outcome {
        let client = &self.clients[at];
        let (id, first) = (client.id, client.script.len());
        if client.answered < first || client.pipe.end != End::Open {
            return Ok(());
        }
        match self.random.below(10) {
            0..5 => {
                let end = if self.random.chance(500) { End::Fin } else { End::Rst };
                let delay_ms = self.random.skewed(100);
                self.later(delay_ms, Event::End(id, end));
                Ok(())
            }
            5..8 if self.events.len() < EVENTS_MAX => {
                let messages = self.palette.messages(&mut self.random, &self.faults);
                self.clients[at].script.extend(messages);
                let bytes = self.clients[at].script[first..].iter();
                let bytes = bytes.flat_map(|message| message.bytes.clone()).collect();
                let delay_ms = self.random.skewed(8_000);
                self.later(delay_ms, Event::Bytes(id, bytes));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    // ---- Patroni

    fn connected(&mut self, id: ConnId) -> Outcome {
        let at = match self.owners.get(&id).copied() {
            Some(Owner::Fetch(at)) => at,
            Some(Owner::Dcs(_)) => return self.connected_dcs(id),
            _ => return Ok(()),
        };
        self.fetches[at].connected = true;
        self.fetches[at].is_other = self.is_elsewhere;
        self.engine.connected_to(id, AddressId(u32::from(self.is_elsewhere)));
        self.input(id, Input::Connected)?;
        if self.engine.output(id).is_empty() {
            return Err("the connection is open, and no request is sent".into());
        }
        self.queue.push_back(id);
        Ok(())
    }

    fn flush_pending(&mut self) {
        for at in std::mem::take(&mut self.pending) {
            let delay_ms = self.random.skewed(20);
            self.later(delay_ms, Event::Execute(at));
        }
    }

    /// Whether an answer may come from another node.
    pub fn may_hear_another_node(&self) -> bool {
        self.is_elsewhere || self.open_fetches.iter().any(|at| self.fetches[*at].is_other)
    }

    /// Patroni answers a request, whose client may have left.
    fn execute(&mut self, at: usize) {
        let clock = self.patroni_clock();
        let fetch = &mut self.fetches[at];
        let is_other = fetch.is_other;
        if self.patroni.api_frozen && !is_other {
            self.pending.push(at);
            return;
        }
        let path = fetch.target.as_deref().unwrap_or_default();
        let hung = fetch.hangs;
        if self.patroni.is_dcs_away() && needs_dcs(path) && !fetch.executed && !is_other {
            fetch.hangs = true;
            if !hung {
                let delay_ms = self.random.between(3_000, 9_000);
                return self.later(delay_ms, Event::Execute(at));
            }
        }
        if std::mem::replace(&mut fetch.executed, true) {
            return;
        }
        let (id, target) = (fetch.id, fetch.target.clone().unwrap_or_default());
        let said = match is_other {
            true => self.patroni.other_says(&target, self.clock()),
            false => self.patroni.reply(&target, clock, &mut self.random, &self.faults),
        };
        self.trace(|| {
            format!(
                "Patroni answers {target}: {} {}",
                said.status,
                String::from_utf8_lossy(&said.body)
            )
        });
        let failed = hung && !is_other && self.patroni.is_dcs_away();
        let wire = if failed { thrown() } else { wire(said, &mut self.random, &self.faults) };
        let fetch = &mut self.fetches[at];
        fetch.plan = wire.outcome;
        fetch.planned_bytes = wire.enough;
        let interim = wire.bytes.starts_with(INTERIM.as_bytes());
        fetch.interim_bytes = if interim { INTERIM.len() } else { 0 };
        let slow = self.faults.hit(&mut self.random, Fault::SlowAnswers);
        let pause_ms = if slow { self.settings.timeout_ms / 3 } else { 2 };
        let mut delay_ms = 0;
        let count = wire.bytes.len().div_ceil(self.random.between(1, 4) as usize).max(1);
        for piece in wire.bytes.chunks(count) {
            self.later(delay_ms, Event::Bytes(id, piece.to_vec()));
            delay_ms += self.random.skewed(pause_ms);
        }
        match wire.end {
            End::Open => {}
            End::Late => self.later(delay_ms + 40_000, Event::End(id, End::Fin)),
            end => self.later(delay_ms, Event::End(id, end)),
        }
    }

    // ---- helpers

    pub fn clock(&self) -> Clock {
        let unix_ms = (self.unix_base_ms + self.now_ms).saturating_add_signed(self.jumped_ms);
        Clock { ms: self.now_ms, unix_ms }
    }

    /// For how long the process has stood still since `ms`.
    pub fn stood_still_ms(&self, ms: u64) -> u64 {
        let since =
            self.standstills.iter().map(|(from, until)| until.saturating_sub(ms.max(*from)));
        since.sum()
    }

    /// The clocks of Patroni's host.
    fn patroni_clock(&self) -> Clock {
        let clock = self.clock();
        Clock { unix_ms: clock.unix_ms.saturating_add_signed(self.patroni.ahead_ms), ..clock }
    }

    pub fn pipe(&mut self, id: ConnId) -> Option<&mut Pipe> {
        match self.owners.get(&id)? {
            Owner::Client(at) => Some(&mut self.clients[*at].pipe),
            Owner::Fetch(at) => Some(&mut self.fetches[*at].pipe),
            Owner::Dcs(at) => self.etcd.as_mut().map(|etcd| &mut etcd.requests[*at].pipe),
        }
    }

    pub fn delay(&mut self, usual_ms: u64) -> u64 {
        let slow = self.faults.hit(&mut self.random, Fault::Delays);
        self.random.skewed(if slow { 1_000 } else { usual_ms })
    }

    pub fn later(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms + delay_ms, event);
    }

    pub fn at(&mut self, ms: u64, event: Event) {
        self.sequence += 1;
        let shuffled = self.faults.hit(&mut self.random, Fault::Shuffle);
        let ordered = matches!(event, Event::Bytes(..) | Event::End(..));
        let rank = if shuffled && !ordered { self.random.below(3) } else { 1 };
        self.events.insert((ms, rank, self.sequence), event);
    }

    pub fn trace(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>9} {:>5} {}", self.now_ms, self.step, text()));
        }
    }
}

impl Client {
    /// Whether it is between requests, with no request begun.
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
            && self.ended_ms.is_none()
            && self.asked.is_none()
            && self.received == self.start
    }

    pub fn ending(&self) -> bool {
        self.ended_ms.is_some()
    }

    pub fn has_seen_end(&self) -> bool {
        self.pipe.end == End::Seen
    }
}

impl Fetch {
    pub fn new(id: ConnId, clock: Clock, connect_step: u64) -> Fetch {
        Fetch {
            id,
            connect_ms: clock.ms,
            connect_unix_ms: clock.unix_ms,
            connect_step,
            open_then: 0,
            starved: None,
            others_waited: false,
            connected: false,
            request: Vec::new(),
            target: None,
            pipe: Pipe { inbox: VecDeque::new(), end: End::Open, window: usize::MAX },
            plan: None,
            planned_bytes: 0,
            delivered: 0,
            interim_bytes: 0,
            closed: false,
            executed: false,
            is_other: false,
            hangs: false,
        }
    }
}

impl Fetch {
    /// Whether a part of the answer has come.
    pub fn has_begun(&self) -> bool {
        self.delivered > 0 && self.delivered != self.interim_bytes
    }
}

impl Pipe {
    pub fn is_readable(&self) -> bool {
        !self.inbox.is_empty() || matches!(self.end, End::Fin | End::Rst)
    }
}

/// Faults of the cluster and the machine.
const TROUBLE: [Fault; 22] = [
    Fault::OtherNode,
    Fault::Flood,
    Fault::FreezeApi,
    Fault::FreezeLoop,
    Fault::FreezeProcess,
    Fault::Switchover,
    Fault::Flags,
    Fault::Retiming,
    Fault::DcsAway,
    Fault::Unknown,
    Fault::Restarts,
    Fault::Disagree,
    Fault::Renamed,
    Fault::PatroniClock,
    Fault::Refused,
    Fault::Suspend,
    Fault::Sleep,
    Fault::WallJumps,
    Fault::SmallJumps,
    Fault::Drain,
    Fault::Capacity,
    Fault::Shutdown,
];
const PROBES: [&str; 3] = ["/primary", "/replica", "/health"];
const UNIX_MS_AT_START: u64 = 1_700_000_000_000;
const QUIET_MS: u64 = 130_000;
/// How long a read of a healthy DCS may take.
const READ_MS_MAX: u64 = 3_000;
const QUEUE_ROUNDS: u32 = 8;
/// How late a turn may come.
const LATE_MS_MAX: u64 = 300;
const TURNS_AT_ONCE_MAX: u32 = 200;
const EVENTS_MAX: usize = 500;
