//! The shell's part: gives inputs by its rules, carries out every action and checks it.

use patroniglue::VERSION;
use patroniglue::engine::{Action, UpstreamId};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};
use patroniglue::wheel::TICK_MS;

use super::checks::{Brought, Failed, Outcome, Served, TRANSITION_TTL_MS};
use super::checks::{bound_passed, shortly_kept_ms};
use super::client::{Answer, Expected, Persistence, ROUTES};
use super::faults::Fault;
use super::patroni::needs_dcs;
use super::world::{Answering, End, Event, Fetch, Owner, World};

/// An input of the engine.
#[derive(Debug)]
pub enum Input {
    Receive(Vec<u8>),
    Sent(usize),
    Eof,
    Broken(Failure),
    Connected,
    ConnectFailed(Failure),
}

/// The input that caused an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Input(ConnId, &'static str, Option<Failure>),
    Tick,
    Accept,
    Other,
}

impl World {
    // ---- in

    /// Gives one input and carries out its actions.
    pub fn input(&mut self, id: ConnId, input: Input) -> Outcome {
        self.step += 1;
        self.trace(|| format!("{id:?} <- {}", brief(&input)));
        self.hash.number(self.now_ms ^ (u64::from(id.slot) << 40) ^ u64::from(id.generation) << 52);
        let now = self.now();
        let cause = match input {
            Input::Receive(bytes) => {
                self.hash.bytes(&bytes);
                self.engine.receive(now, id, &bytes);
                ("receive", None)
            }
            Input::Sent(count) => {
                self.engine.sent(now, id, count);
                ("sent", None)
            }
            Input::Eof => {
                self.engine.eof(now, id);
                ("eof", None)
            }
            Input::Broken(why) => {
                self.engine.broken(now, id, why);
                ("broken", Some(why))
            }
            Input::Connected => {
                self.engine.progress(id, Progress::Open);
                ("connected", None)
            }
            Input::ConnectFailed(why) => {
                self.engine.connect_failed(now, id, why);
                ("connect_failed", Some(why))
            }
        };
        self.perform_actions(Cause::Input(id, cause.0, cause.1))?;
        self.look_at_client(id)
    }

    pub fn tick(&mut self) -> Outcome {
        self.step += 1;
        self.engine.tick(self.now());
        self.perform_actions(Cause::Tick)
    }

    /// Reads and writes while both sides allow it, within a budget.
    pub fn serve(&mut self, id: ConnId) -> Outcome {
        for _ in 0..SERVE_BUDGET {
            if !self.owners.contains_key(&id) || !(self.read(id)? | self.write(id)?) {
                return Ok(());
            }
        }
        self.queue.push_back(id);
        Ok(())
    }

    fn read(&mut self, id: ConnId) -> Result<bool, String> {
        let wanted = self.engine.wants_read(id);
        if !wanted {
            return Ok(false);
        }
        let splits = self.faults.level(Fault::Splits);
        let Some(pipe) = self.pipe(id) else { return Ok(false) };
        let length = pipe.inbox.len();
        if length == 0 {
            let input = match pipe.end {
                End::Open | End::Late | End::Seen => return Ok(false),
                End::Fin => Input::Eof,
                End::Rst => Input::Broken(Failure::Reset),
            };
            pipe.end = End::Seen;
            self.note_eof(id);
            self.input(id, input)?;
            return Ok(true);
        }
        let most = length.min(READ_BYTES);
        let split = self.random.chance(splits);
        let count = if split { 1 + self.random.skewed(most as u64 - 1) as usize } else { most };
        let piece: Vec<u8> = match self.pipe(id) {
            Some(pipe) => {
                let piece = pipe.inbox.make_contiguous()[..count].to_vec();
                pipe.inbox.drain(..count);
                piece
            }
            None => return Ok(false),
        };
        self.note_received(id, count);
        self.input(id, Input::Receive(piece))?;
        Ok(true)
    }

    fn write(&mut self, id: ConnId) -> Result<bool, String> {
        let output = self.engine.output(id).len();
        if output == 0 || !self.owners.contains_key(&id) {
            return Ok(false);
        }
        let short = self.faults.hit(&mut self.random, Fault::ShortWrites);
        let Some(pipe) = self.pipe(id) else { return Ok(false) };
        if pipe.end == End::Rst {
            pipe.end = End::Seen;
            self.input(id, Input::Broken(Failure::Reset))?;
            return Ok(true);
        }
        let most = output.min(pipe.window);
        if most == 0 {
            return Ok(false);
        }
        let count = if short { 1 + self.random.below(most as u64) as usize } else { most };
        let count = count.min(most);
        if let Some(pipe) = self.pipe(id) {
            pipe.window -= count;
        }
        let bytes = self.engine.output(id)[..count].to_vec();
        self.hash.bytes(&bytes);
        self.note_sent(id, &bytes)?;
        self.input(id, Input::Sent(count))?;
        self.after_sent(id)?;
        Ok(true)
    }

    // ---- out

    /// Carries out all actions, in order. Inputs that come meanwhile add to them, as in the shell.
    pub fn perform_actions(&mut self, cause: Cause) -> Outcome {
        self.take_records()?;
        while let Some(action) = self.engine.poll_action() {
            if self.actions.len() > ACTIONS_AT_ONCE_MAX {
                return Err(format!("the actions have no end: {action:?}"));
            }
            self.actions.push_back((action, cause, self.step));
        }
        if !cfg!(debug_assertions) {
            self.engine.check_invariants(); // debug builds do it by themselves
        }
        if self.acting_step.is_some() {
            return Ok(());
        }
        while let Some((action, cause, step)) = self.actions.pop_front() {
            self.acting_step = Some(step);
            self.trace(|| format!("    -> {action:?}"));
            self.hash_action(action);
            self.carry_out(action, cause, step)?;
        }
        self.acting_step = None;
        self.take_records()
    }

    fn carry_out(&mut self, action: Action, cause: Cause, step: u64) -> Outcome {
        match action {
            Action::Connect(id, UpstreamId::Patroni) => self.connect(id)?,
            Action::Connect(id, UpstreamId::Dcs) => self.connect_dcs(id)?,
            Action::Wake(id) => {
                self.alive(id, action)?;
                self.queue.push_back(id);
                self.look_at_client(id)?;
            }
            Action::ShutdownWrite(id) => {
                let Owner::Client(at) = self.alive(id, action)? else {
                    return Err("a fetch was finished".into());
                };
                if !self.clients[at].ending() {
                    return Err("a client was half-closed before its last answer".into());
                }
                self.queue.push_back(id);
            }
            Action::Close(id) => match self.alive(id, action)? {
                Owner::Client(at) => self.close_client(id, at, cause)?,
                Owner::Fetch(at) => self.close_fetch(id, at, cause, step)?,
                Owner::Dcs(at) => self.close_dcs(id, at, cause, step)?,
            },
            Action::NextAddress(UpstreamId::Patroni) => {}
            Action::Report(..) => return Err("a report, although no client asks for one".into()),
            Action::NextAddress(UpstreamId::Dcs) => {
                self.etcd.iter_mut().for_each(|etcd| etcd.next_host());
            }
        }
        Ok(())
    }

    fn hash_action(&mut self, action: Action) {
        let (kind, id) = match action {
            Action::Connect(id, _) => (1, id),
            Action::Wake(id) => (2, id),
            Action::ShutdownWrite(id) => (3, id),
            Action::Close(id) => (4, id),
            Action::NextAddress(_) | Action::Report(..) => return self.hash.number(5 << 60),
        };
        self.hash.number(kind << 60 | u64::from(id.slot) << 32 | u64::from(id.generation));
    }

    fn alive(&self, id: ConnId, action: Action) -> Result<Owner, String> {
        self.owners.get(&id).copied().ok_or_else(|| format!("{action:?} names a closed connection"))
    }

    /// Takes the records; there is one for every answer, if the settings ask for them.
    fn take_records(&mut self) -> Outcome {
        while let Some(record) = self.engine.poll_record() {
            if !self.settings.records {
                return Err("a record, although the settings ask for none".into());
            }
            self.records += 1;
            if record.elapsed_ms > self.settings.timeout_ms + self.now_ms {
                return Err(format!("{record:?}"));
            }
        }
        Ok(())
    }

    pub fn remove(&mut self, id: ConnId) -> Outcome {
        self.owners.remove(&id);
        if self.closed_ids.len() >= 8 {
            self.closed_ids.remove(0);
        }
        self.closed_ids.push(id);
        if !self.engine.output(id).is_empty() || self.engine.wants_read(id) {
            return Err(format!("{id:?} was closed, and still has output or reads"));
        }
        Ok(())
    }

    // ---- Patroni's side

    fn connect(&mut self, id: ConnId) -> Outcome {
        let at = self.fetches.len();
        if self.owners.insert(id, Owner::Fetch(at)).is_some() {
            return Err(format!("{id:?} was assigned twice"));
        }
        self.fetches.push(Fetch::new(id, self.clock(), self.step));
        self.open_fetches.push(at);
        self.fetches[at].open_then = self.open_fetches.len();
        self.note_waiting(at);
        if self.open_fetches.len() > self.settings.fetches_max {
            return Err(format!("promise 1: {} fetches at once", self.open_fetches.len()));
        }
        if self.open_fetches.len() == self.settings.fetches_max {
            self.busy_ms = Some(self.now_ms);
        }
        let random = &mut self.random;
        let refused = self.patroni.down || self.faults.hit(random, Fault::Refused);
        let failure = if refused {
            Some(Failure::Refused)
        } else if self.faults.hit(random, Fault::NoDescriptor) {
            Some(random.pick(&[Failure::NoDescriptor, Failure::Unreachable, Failure::Unresolved]))
        } else {
            None
        };
        match failure {
            Some(why) if self.random.chance(500) => self.input(id, Input::ConnectFailed(why)),
            Some(why) => {
                let delay_ms = self.random.skewed(100);
                self.later(delay_ms, Event::ConnectFailed(id, why));
                Ok(())
            }
            None if self.faults.hit(&mut self.random, Fault::ConnectSilent) => Ok(()),
            None => {
                let delay_ms = self.delay(3);
                self.later(delay_ms, Event::Connected(id));
                Ok(())
            }
        }
    }

    /// Promise 6: only a GET of a known route reaches Patroni.
    pub fn read_request(&mut self, at: usize) -> Outcome {
        let text = String::from_utf8_lossy(&self.fetches[at].request).into_owned();
        if !text.ends_with("\r\n\r\n") {
            return Ok(());
        }
        let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let expected = format!(
            "GET {target} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\
             User-Agent: patroniglue/{VERSION}\r\n\r\n",
            self.settings.host
        );
        let wanted = self.asked_for.contains(&target);
        if text != expected || !(wanted || target == "/config") {
            return Err(format!("promise 6: Patroni was sent {text:?}"));
        }
        let twice = self
            .open_fetches
            .iter()
            .any(|other| *other != at && self.fetches[*other].target.as_deref() == Some(&target));
        if twice {
            return Err(format!("promise 1: {target} is fetched twice at once"));
        }
        self.check_need(at, &target)?;
        self.fetches[at].target = Some(target);
        let slow = self.faults.hit(&mut self.random, Fault::SlowAnswers);
        let most_ms = if slow { self.settings.timeout_ms * 3 / 2 } else { 20 };
        let delay_ms = self.random.skewed(most_ms);
        self.later(delay_ms, Event::Execute(at));
        Ok(())
    }

    /// Records which clients wait without a fetch while this one begins.
    fn note_waiting(&mut self, at: usize) {
        let is_fetched = |target: &String| {
            let mut open = self.open_fetches.iter().filter(|other| **other != at);
            open.any(|other| self.fetches[*other].target.as_ref().is_none_or(|of| of == target))
        };
        let waiting = self.open_clients.iter().map(|at| &self.clients[*at]).filter_map(|client| {
            let message = client.script.get(client.answered)?;
            let Expected::Patroni(target) = &message.expected else { return None };
            client.asked.map(|(asked_ms, step)| (target, asked_ms, step))
        });
        let waiting: Vec<(&String, u64, u64)> = waiting.collect();
        // a fetch's deadline is that of its first client, which may have got its answer
        let is_over = |target: &String| {
            let is_over = |asked_ms: u64| {
                self.now_ms + DEADLINES_APART_MS >= asked_ms + self.settings.timeout_ms
            };
            waiting.iter().any(|(of, asked_ms, _)| *of == target && is_over(*asked_ms))
        };
        let mut starved: Option<(String, u64)> = None;
        let mut others_waited = false;
        for (target, asked_ms, step) in &waiting {
            if *step == self.step || is_over(target) || is_fetched(target) {
                continue;
            }
            others_waited |= !needs_dcs(target) && !target.contains('?');
            let longest = starved.as_ref().is_none_or(|(_, since_ms)| asked_ms < since_ms);
            if target.contains('?') && longest {
                starved = Some((target.to_string(), *asked_ms));
            }
        }
        let fetch = &mut self.fetches[at];
        (fetch.starved, fetch.others_waited) = (starved, others_waited);
    }

    /// Promise 1: at most one fetch per route and ttl, and pauses between those of a failing route.
    fn check_need(&mut self, at: usize, target: &str) -> Outcome {
        let (asked_ms, ttl_ms) = (self.fetches[at].connect_ms, self.settings.cache.ttl_ms);
        self.check_room(at, target)?;
        let ended = self.memory.restarted.is_some_and(|(step, ms)| {
            step >= self.fetches[at].connect_step || ms + ttl_ms >= asked_ms
        });
        let moved = self.moved_ms.is_some_and(|ms| ms + ttl_ms >= asked_ms);
        if target == "/config" {
            let early = |ms: u64| asked_ms < ms + INTERVALS_PAUSE_MS;
            let previous_ms = self.intervals_ms.replace(asked_ms);
            let since = |ms: u64| previous_ms.is_some_and(|previous_ms| ms >= previous_ms);
            let excused = self.moved_ms.is_some_and(since)
                || self.memory.restarted.is_some_and(|(_, ms)| since(ms));
            let often = previous_ms.is_some_and(early) && !excused;
            return if often { Err("promise 1: /config is read too often".into()) } else { Ok(()) };
        }
        if target.contains('?') {
            return self.check_flood(asked_ms, target);
        }
        let pause_ms = ttl_ms.clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        let failed = self.memory.failure(target);
        let forgotten = |failed: Failed| {
            let since = |ms: u64| ms >= failed.asked_ms;
            self.memory.restarted.is_some_and(|(_, ms)| since(ms))
                || self.moved_ms.is_some_and(since)
        };
        let failed = failed.filter(|failed| !forgotten(*failed));
        if failed.is_some_and(|failed| asked_ms < failed.asked_ms + pause_ms) {
            return Err(format!("promise 1: {target} fails, and was fetched again too soon"));
        }
        let is_leaders = super::client::is_leader_family(target);
        let Some(brought) = self.memory.latest(target).filter(|_| failed.is_none()) else {
            return Ok(());
        };
        if self.memory.has_failed_since(brought) {
            return Ok(()); // it may have been this target's
        }
        let in_transition = self.memory.is_in_transition(asked_ms, false)
            || self.memory.is_in_transition(brought.done.ms, false);
        let most_ms = match brought.said.status {
            _ if in_transition => TRANSITION_TTL_MS,
            200 if is_leaders => shortly_kept_ms(brought),
            _ => ttl_ms,
        };
        let kept_ms = ttl_ms.min(most_ms);
        let young = asked_ms < brought.asked_ms + kept_ms - kept_ms / 4;
        let lives = match is_leaders {
            true => !ended && !moved && !bound_passed(brought, self.fetches[at].connect_unix_ms),
            false => {
                let contradicted_step = self.memory.contradicted_step;
                let since = brought.asked_step > contradicted_step;
                !moved && (since || brought.done_step == contradicted_step)
            }
        };
        if young && lives && !self.memory.may_be_ended(brought) {
            return Err(format!("promise 1: {target} was fetched again too soon"));
        }
        Ok(())
    }

    /// Promise 7: fetches that Patroni cannot answer without the DCS leave room to the others, and
    /// plain routes leave room to those with parameters.
    fn check_room(&self, at: usize, target: &str) -> Outcome {
        let fetch = &self.fetches[at];
        if needs_dcs(target) {
            let needs =
                |other: &usize| self.fetches[*other].target.as_deref().is_some_and(needs_dcs);
            if self.open_fetches.iter().filter(|other| **other != at).any(needs) {
                return Err(format!(
                    "promise 7: {target} is not the only fetch that needs the DCS"
                ));
            }
            let alone = self.settings.fetches_max == 1;
            if alone && fetch.others_waited {
                return Err(format!("promise 7: {target} takes the connection of other clients"));
            }
            if !alone && fetch.open_then == self.settings.fetches_max {
                return Err(format!("promise 7: {target} takes the last free connection"));
            }
            return Ok(());
        }
        let Some((starved, since_ms)) = &fetch.starved else { return Ok(()) };
        // a fetch that is begun again is queued again
        let again_ms = self.memory.restarted.map(|(_, ms)| ms).max(self.moved_ms);
        let since_ms = again_ms.unwrap_or(0).max(*since_ms);
        // by the time of its begin: the clients that wait for it now may have asked since
        let late = fetch.connect_ms > since_ms + PARAMETER_WAIT_MS;
        if late && !target.contains('?') {
            return Err(format!("promise 7: {target} is fetched before {starved}"));
        }
        Ok(())
    }

    /// Promise 8: at most `cache.entries` fetches per second of targets that were not in memory;
    /// twice as many if the second is not the engine's.
    fn check_flood(&mut self, asked_ms: u64, target: &str) -> Outcome {
        while self.unknown_variants.front().is_some_and(|(ms, _)| ms + 1_000 <= asked_ms) {
            self.unknown_variants.pop_front();
        }
        let known = self.memory.latest(target).is_some() || self.memory.failure(target).is_some();
        if known || self.unknown_variants.iter().any(|(_, of)| of == target) {
            return Ok(());
        }
        self.unknown_variants.push_back((asked_ms, target.to_owned()));
        let most = 2 * self.settings.cache.variants_max;
        if self.unknown_variants.len() > most {
            return Err(format!("promise 8: more than {most} new targets fetched in a second"));
        }
        Ok(())
    }

    fn close_fetch(&mut self, id: ConnId, at: usize, cause: Cause, step: u64) -> Outcome {
        self.open_fetches.retain(|open| *open != at);
        self.busy_ms = self.busy_ms.map(|_| self.now_ms);
        self.fetches[at].closed = true;
        self.remove(id)?;
        let fetch = &mut self.fetches[at];
        let complete = fetch.delivered >= fetch.planned_bytes;
        let outcome = match cause {
            Cause::Tick => Some(Err(Failure::TimedOut)),
            // a reset after a part of the answer is a cut
            Cause::Input(of, "broken", Some(Failure::Reset)) if of == id && fetch.has_begun() => {
                Some(Err(Failure::Cut))
            }
            Cause::Input(of, "broken" | "connect_failed", Some(why)) if of == id => Some(Err(why)),
            Cause::Input(of, ..) if of == id => fetch.plan.take(),
            _ if self.may_be_restarted(at, step) => {
                self.busy_ms = Some(self.now_ms); // the fetch is queued again
                return Ok(());
            }
            _ => return Err(format!("a fetch was given up at {cause:?}")),
        };
        let Some(outcome) = outcome else {
            return Err("a fetch ended before Patroni answered".into());
        };
        let by_itself = matches!(cause, Cause::Input(_, "receive", _));
        if outcome.is_ok() && by_itself && !complete {
            return Err("a fetch ended before its answer was complete".into());
        }
        self.end_fetch(at, outcome, cause == Cause::Tick, step)
    }

    /// A fetch is begun again when another answer may have made its own untrue.
    fn may_be_restarted(&self, at: usize, step: u64) -> bool {
        let by_an_answer = self.memory.restarted.is_some_and(|(restarted, _)| restarted == step);
        by_an_answer || self.moved_ms.is_some_and(|ms| ms >= self.fetches[at].connect_ms)
    }

    fn end_fetch(
        &mut self,
        at: usize,
        outcome: Result<super::patroni::Said, Failure>,
        timed_out: bool,
        step: u64,
    ) -> Outcome {
        let fetch = &self.fetches[at];
        let ms = self.now_ms;
        let queued = self.busy_ms.is_some_and(|busy_ms| busy_ms + self.settings.timeout_ms > ms);
        let early = ms < fetch.connect_ms + self.settings.timeout_ms;
        let restarted = self.memory.restarted.is_some() || self.moved_ms.is_some();
        // one that needs the DCS waits for others of its kind
        let waited = fetch.target.as_deref().is_none_or(needs_dcs);
        if timed_out && early && !queued && !waited && !restarted {
            return Err("promise 1: a fetch was given up before its time".into());
        }
        match outcome {
            Ok(said) => {
                let brought = Brought {
                    said,
                    asked_ms: fetch.connect_ms,
                    asked_unix_ms: fetch.connect_unix_ms,
                    asked_step: fetch.connect_step,
                    done: self.clock(),
                    done_step: step,
                    moved: self.moved_ms.is_some_and(|ms| ms >= fetch.connect_ms),
                    intervals: None,
                    ttl_ms: 0,
                    ttl_ms_min: 0,
                    is_anothers: false,
                };
                let contradicts = self.memory.fetched(brought);
                self.testimony.patroni_said(step);
                self.trace(|| {
                    format!("       fetched{}", if contradicts { ", contradicting" } else { "" })
                });
            }
            Err(why) => {
                let target = self.fetches[at].target.clone();
                let asked_ms = self.fetches[at].connect_ms;
                let failed = Failed { why, asked_ms, ms, step };
                if timed_out && self.moved_ms.is_some_and(|moved_ms| moved_ms >= asked_ms) {
                    // it may have been begun again instead
                    self.memory.failed(None, failed);
                    self.memory.forget_failures();
                } else {
                    self.memory.failed(target.as_deref(), failed);
                }
                self.trace(|| format!("       {target:?} failed: {why:?}"));
            }
        }
        Ok(())
    }

    // ---- the clients' side

    /// Checks the answer of this client once the engine has begun it.
    pub fn look_at_client(&mut self, id: ConnId) -> Outcome {
        let Some(Owner::Client(at)) = self.owners.get(&id).copied() else { return Ok(()) };
        self.note_asked(at);
        let output = self.engine.output(id);
        if output.is_empty() || self.clients[at].current.is_some() {
            return Ok(());
        }
        let bytes = output.to_vec();
        self.trace(|| format!("    {id:?} gets {:?}", String::from_utf8_lossy(&bytes)));
        self.check_answer(at, &bytes).map_err(|error| {
            format!("{error}; client {at} got {:?}", String::from_utf8_lossy(&bytes))
        })?;
        let client = &mut self.clients[at];
        client.answered += 1;
        client.asked = None;
        client.first_byte_ms = None;
        let closes = client.closes_now;
        client.current = Some(Answering { bytes, sent: 0, since_ms: self.now_ms, closes });
        self.answers += 1;
        Ok(())
    }

    /// Checks an answer against the client's request.
    fn check_answer(&mut self, at: usize, bytes: &[u8]) -> Outcome {
        let client = &self.clients[at];
        if client.ended_ms.is_some() {
            return Err("an answer after the last".into());
        }
        let message = client.script.get(client.answered);
        let message = message.ok_or("an answer to no request")?.clone();
        // before the request is complete its method is not known
        let method = if client.asked.is_some() { message.method } else { "-" };
        let answer = Answer::parse(bytes, method)?;
        self.clients[at].status = Some(answer.status);
        let client = &self.clients[at];
        let date =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.clock().unix_ms / 1_000);
        if answer.date != httpdate::fmt_http_date(date) {
            return Err(format!("promise 2: Date {} is not now", answer.date));
        }
        if answer.status == 408 {
            let late = client.first_byte_ms.is_some_and(|ms| self.now_ms >= ms + REQUEST_MS_MAX);
            if !late || client.asked.is_some() {
                return Err("408, but the request was not late".into());
            }
            self.clients[at].closes_now = true;
            return Ok(());
        }
        let expected = message.expected.clone();
        if let Expected::Refused(statuses) = expected {
            self.clients[at].closes_now = true;
            let right = statuses.contains(&answer.status);
            return if right { Ok(()) } else { Err(format!("not one of {statuses:?}")) };
        }
        let Some((_, asked_step)) = client.asked else {
            return Err("an answer before its request".into());
        };
        self.check_persistence(at, message.persistence, &answer)?;
        match &expected {
            Expected::Own(status) if answer.status == *status => Ok(()),
            Expected::Patroni(target) => {
                self.check_patroni_answer(&answer, asked_step, message.method, target)
            }
            _ => Err(format!("status {} instead of {expected:?}", answer.status)),
        }
    }

    fn check_patroni_answer(
        &mut self,
        answer: &Answer,
        asked_step: u64,
        method: &str,
        target: &str,
    ) -> Outcome {
        let of_a_role =
            super::client::is_leader_family(target) || super::client::is_replica_family(target);
        let drained = of_a_role && self.is_draining;
        if answer.cache.is_none() != drained {
            if answer.status == 503 && self.is_closing() {
                return Ok(());
            }
            let full = target.contains('?') && answer.cache.is_none() && answer.status == 503;
            let why = if drained {
                "not 503, although the node is drained"
            } else {
                "an answer of our own"
            };
            return if full { Ok(()) } else { Err(why.into()) };
        }
        if drained {
            return if answer.status == 503 {
                Ok(())
            } else {
                Err("not 503, although the node is drained".into())
            };
        }
        let (now_ms, settings) = (self.now_ms, &self.settings);
        // of two fetches whose time ends in one tick, either may be given up first
        let silent_ms = PATIENCE_MS.min(settings.timeout_ms);
        let slow = self.is_silent(now_ms.saturating_sub(silent_ms));
        let recent_ms = settings.timeout_ms + 1_100;
        // during shutdown nothing is fetched again, and failures age
        let full = self.open_fetches.len() == settings.fetches_max || self.shutdown_ms.is_some();
        // a fetch that needs the DCS waits for others of its kind, one that is begun again for all
        let again_ms = self.memory.restarted.map(|(_, ms)| ms).max(self.moved_ms);
        // and a failure does not age while the process stands still
        let is_recent =
            |ms: u64| ms + recent_ms + self.overslept_ms.max(self.stood_still_ms(ms)) >= now_ms;
        let busy = full
            || needs_dcs(target)
            || again_ms.is_some_and(is_recent)
            || self.busy_ms.is_some_and(is_recent);
        let served = Served {
            clock: self.clock(),
            asked_step,
            method,
            target,
            answer,
            settings,
            patroni: &self.patroni,
            slow,
            busy,
            late_ms: self.overslept_ms,
            is_shutdown: self.shutdown_ms.is_some(),
        };
        self.memory.check(&served, &mut self.testimony)
    }

    /// Whether the shutdown lets no client wait for a fetch.
    fn is_closing(&self) -> bool {
        self.shutdown_ms.is_some_and(|ms| self.is_over(ms + SHUTDOWN_WAIT_MS_MAX))
    }

    /// Whether a fetch has been in flight since `ms` without an answer.
    pub fn is_silent(&self, ms: u64) -> bool {
        self.open_fetches.iter().any(|fetch| self.fetches[*fetch].connect_ms <= ms)
    }

    fn check_persistence(&mut self, at: usize, wanted: Persistence, answer: &Answer) -> Outcome {
        let shutting_down = self.shutdown_ms.is_some();
        let connection = answer.connection.as_deref();
        let right = match wanted {
            Persistence::Close => connection == Some("close"),
            _ if shutting_down && connection == Some("close") => true,
            Persistence::KeepAlive => connection == Some("keep-alive"),
            Persistence::Persistent => connection.is_none(),
        };
        self.clients[at].closes_now = connection == Some("close");
        if right { Ok(()) } else { Err(format!("Connection: {connection:?} to {wanted:?}")) }
    }

    /// Checks that there was a reason to close this client.
    fn close_client(&mut self, id: ConnId, at: usize, cause: Cause) -> Outcome {
        self.open_clients.retain(|open| *open != at);
        self.remove(id)?;
        let (now_ms, capacity) = (self.now_ms, self.open_clients.len() + 1);
        let full = cause == Cause::Accept && capacity >= self.settings.clients_max;
        let shutting_down = self.shutdown_ms;
        let over = shutting_down.is_some_and(|ms| now_ms >= ms + SHUTDOWN_MS_MAX);
        let client = &mut self.clients[at];
        client.gone = true;
        let own = matches!(cause, Cause::Input(of, "broken", _) if of == id);
        let after = |since_ms: Option<u64>, ms: u64| since_ms.is_some_and(|at| now_ms >= at + ms);
        let reasonable = if own || over {
            true
        } else if let Some(current) = &client.current {
            after(Some(current.since_ms), RESPONSE_MS_MAX)
        } else if client.ended_ms.is_some() || client.has_seen_end() {
            true
        } else if client.asked.is_some() {
            false
        } else if client.is_idle() {
            let most = if client.answered > 0 { IDLE_MS_MAX } else { REQUEST_MS_MAX };
            full || shutting_down.is_some()
                || after(Some(client.since_ms), most)
                || matches!(cause, Cause::Other)
        } else {
            false
        };
        if reasonable {
            return Ok(());
        }
        Err(format!("client {at} was closed for no reason ({cause:?})"))
    }

    // ---- at the end of a turn

    /// Checks what has to hold whenever the loop sleeps.
    pub fn check_turn(&self) -> Outcome {
        self.open_clients.iter().try_for_each(|at| self.check_client(*at))?;
        self.open_fetches.iter().try_for_each(|at| self.check_fetch(*at))?;
        self.check_dcs()?;
        let counts = self.engine.counts();
        let waiting = self.open_clients.iter().filter(|at| self.clients[**at].asked.is_some());
        let exact = counts.clients == self.open_clients.len()
            && counts.fetches == self.open_fetches.len()
            && counts.waiters == waiting.count()
            && counts.stale_inputs == self.stale_expected;
        let bounded = counts.clients <= self.settings.clients_max
            && counts.entries <= ROUTES.len() + self.settings.cache.variants_max
            && counts.queued <= counts.entries + 1;
        if !exact || !bounded {
            return Err(format!(
                "promise 8: {counts:?}, but there are {} clients and {} fetches",
                self.open_clients.len(),
                self.open_fetches.len()
            ));
        }
        Ok(())
    }

    fn check_fetch(&self, at: usize) -> Outcome {
        let fetch = &self.fetches[at];
        if self.is_over(fetch.connect_ms + self.settings.timeout_ms) {
            return Err(format!("promise 1: the fetch of {:?} outlives the timeout", fetch.target));
        }
        let id = fetch.id;
        let forgotten = !self.queue.contains(&id)
            && fetch.connected
            && ((self.engine.wants_read(id) && fetch.pipe.is_readable())
                || (!self.engine.output(id).is_empty() && fetch.pipe.window > 0));
        if forgotten { Err(format!("fetch {at} was not woken")) } else { Ok(()) }
    }

    fn check_client(&self, at: usize) -> Outcome {
        let client = &self.clients[at];
        let id = client.id;
        let output = self.engine.output(id);
        let rest = client.current.as_ref().map_or(0, |answer| answer.bytes.len() - answer.sent);
        if output.len() != rest {
            return Err(format!(
                "client {at}'s answer changed while it was sent, or without a wake-up"
            ));
        }
        let wakes = (!output.is_empty() && client.pipe.window > 0)
            || (self.engine.wants_read(id) && client.pipe.is_readable());
        if wakes && !self.queue.contains(&id) {
            return Err(format!("client {at} was not woken"));
        }
        let deadline_ms = if let Some(current) = &client.current {
            current.since_ms + RESPONSE_MS_MAX
        } else if let Some(ended_ms) = client.ended_ms {
            ended_ms + LINGER_MS_MAX
        } else if let Some((asked_ms, _)) = client.asked {
            return self.check_waiting(at, asked_ms);
        } else if let Some(first_ms) = client.first_byte_ms {
            first_ms + REQUEST_MS_MAX
        } else {
            let kept = client.answered > 0;
            client.since_ms + if kept { IDLE_MS_MAX } else { REQUEST_MS_MAX }
        };
        if self.is_over(deadline_ms) {
            return Err(format!("promise 7: client {at} stays past its deadline"));
        }
        let is_new = |ms: u64| client.answered == 0 && ms < client.since_ms + SILENT_MS_MIN;
        if client.is_idle() && self.shutdown_ms.is_some_and(|ms| !is_new(ms)) {
            return Err(format!("client {at} is idle, and stays during the shutdown"));
        }
        Ok(())
    }

    /// Promise 4.
    fn check_waiting(&self, at: usize, asked_ms: u64) -> Outcome {
        let Some(message) = self.clients[at].script.get(self.clients[at].answered) else {
            return Err("a client waits without a request".into());
        };
        let Expected::Patroni(target) = &message.expected else {
            return Err(format!("promise 4: client {at} waits for {:?}", message.expected));
        };
        if self.is_over(asked_ms + self.settings.timeout_ms) {
            return Err(format!("promise 4: client {at} waits for {target} past the timeout"));
        }
        if self.is_closing() {
            return Err(format!("client {at} waits at the end of the shutdown"));
        }
        if self.clients[at].is_hopeless && !target.contains('?') {
            return Err(format!("client {at} waits for {target}, which fails"));
        }
        let stale_until = self.memory.stale_until_ms(target, &self.settings, self.moved_ms);
        let silent = self.is_over(asked_ms + PATIENCE_MS)
            && self.is_silent(self.now_ms.saturating_sub(PATIENCE_MS + TICK_MS));
        if silent && stale_until.is_some_and(|ms| self.now_ms < ms) {
            return Err(format!(
                "promise 4: client {at} waits, although a stale {target} may be served"
            ));
        }
        // evidence that comes while the client waits: its own patience counts, from tick to tick
        let patience_ms = PATIENCE_MS + 2 * TICK_MS;
        if silent && self.is_over(asked_ms + patience_ms) && self.is_surely_confirmed(target) {
            return Err(format!(
                "promise 4: client {at} waits, although the DCS confirms {target}"
            ));
        }
        Ok(())
    }

    /// Whether this deadline has passed, rounded up to the tick.
    pub fn is_over(&self, deadline_ms: u64) -> bool {
        self.now_ms >= deadline_ms.div_ceil(TICK_MS) * TICK_MS
    }

    pub fn now(&self) -> Now {
        let clock = self.clock();
        Now { time: Time::from_ms(self.base_ms + clock.ms), unix_ms: clock.unix_ms }
    }
}

fn brief(input: &Input) -> String {
    match input {
        Input::Receive(bytes) => format!("receive {:?}", String::from_utf8_lossy(bytes)),
        other => format!("{other:?}"),
    }
}

/// Numbers of this shell; the engine has to hold with any.
/// How much earlier than a waiting client the first one of the same fetch may have asked.
const DEADLINES_APART_MS: u64 = 500;
const SERVE_BUDGET: u32 = 16;
const READ_BYTES: usize = 16 * 1024;
const ACTIONS_AT_ONCE_MAX: usize = 10_000;
/// The promises' numbers, written a second time: an oracle independent of the engine's constants.
const REQUEST_MS_MAX: u64 = 5_000;
const IDLE_MS_MAX: u64 = 30_000;
const RESPONSE_MS_MAX: u64 = 5_000;
const LINGER_MS_MAX: u64 = 1_000;
const SILENT_MS_MIN: u64 = 1_000;
pub const SHUTDOWN_MS_MAX: u64 = 1_000;
pub const SHUTDOWN_WAIT_MS_MAX: u64 = 900;
const PATIENCE_MS: u64 = 240;
const RETRY_MS_MIN: u64 = 100;
const RETRY_MS_MAX: u64 = 1_000;
/// How much longer a route with parameters may wait than a plain one, and a tick.
const PARAMETER_WAIT_MS: u64 = 1_010;
/// Between two fetches of Patroni's intervals.
const INTERVALS_PAUSE_MS: u64 = 4_500;
