//! A model of etcd: it answers reads of the DCS with what the model of Patroni keeps there, with
//! faults of its own. Its random numbers are its own too, so that seeds without it stay the same.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use patroniglue::engine::{DcsSettings, Settings};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::node::witness::{Credentials, Settings as WitnessSettings};
use patroniglue::slots::ConnId;
use serde_json::{Value, json};

use super::checks::{Memory, Outcome};
use super::faults::Fault;
use super::gateway::{framed, header, range};
use super::keys::Truth;
use super::patroni::{Clock, Freeze, Happening, SYSTEM_IDENTIFIER};
use super::random::Random;
use super::shell::{Cause, Input};
use super::world::{End, Event, Owner, Pipe, World};

/// etcd, and the requests that it got.
pub struct Etcd {
    pub random: Random,
    settings: DcsSettings,
    /// Whether the seed is mainly about a frozen API.
    pub is_the_focus: bool,
    /// How often one request meets each trouble, in thousandths.
    permille: [u64; TROUBLES.len()],
    /// The lasting trouble of each host.
    hosts: Vec<Option<Trouble>>,
    /// The host in use.
    host: usize,
    user: User,
    tokens: Vec<String>,
    tokens_given: u32,
    /// Whether the keys are those of another cluster of the same name.
    is_foreign: bool,
    pub requests: Vec<Request>,
    pub open: Option<usize>,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Silent,
    Refused,
    /// A connection is never accepted.
    ConnectSilent,
    Cut,
    Reset,
    Garbage,
    Slow,
    /// Status 503: no quorum, or no leader at the moment.
    NoQuorum,
    /// A status and its gRPC code, for no reason.
    Status(u16, u32),
    /// The lease is said not to exist.
    NoLease,
    /// The time left is more than was granted, as for a moment after an election.
    Endless,
}

/// An event of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DcsEvent {
    Execute(usize),
    /// A lasting trouble of this host begins or ends.
    Trouble(usize, Option<Trouble>),
    /// The lease is revoked early.
    Revoke,
    /// The lease is reset upward.
    Prolong,
    /// No token is valid any longer.
    ForgetTokens,
    /// The operator reloads another configuration.
    Reload(Reload),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Patroni is asked at another address.
    Patroni,
    WithoutDcs,
    WithDcs,
}

/// The user that patroniglue names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// None, and etcd needs none.
    None,
    Known,
    WrongPassword,
    NoPermission,
    /// etcd knows no users.
    AuthOff,
}

pub struct Request {
    pub id: ConnId,
    pub connect: Clock,
    pub connect_step: u64,
    /// Whether Patroni was silent then.
    is_needed: bool,
    pub bytes: Vec<u8>,
    pub pipe: Pipe,
    pub kind: Option<Kind>,
    /// The member whose keys it asks for.
    pub name: &'static str,
    pub trouble: Option<Trouble>,
    /// What etcd knew when it answered, and the status.
    pub answer: Option<(Truth, u16)>,
    planned_bytes: usize,
    pub delivered: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Authenticate,
    Keys,
    TimeLeft(i64),
}

impl Etcd {
    /// The etcd of a third of the seeds.
    pub fn new(seed: u64) -> Option<Etcd> {
        let mut random = Random::new(seed ^ SEED_MASK);
        if !random.chance(333) {
            return None;
        }
        let user = match random.below(20) {
            0..10 => User::None,
            10..17 => User::Known,
            17 => User::AuthOff,
            18 => User::WrongPassword,
            _ => User::NoPermission,
        };
        let credentials = Credentials { username: "glue".into(), password: "se\"cret".into() };
        let hosts = random.between(1, 3) as usize;
        let witness = WitnessSettings {
            namespace: random.pick(&["service", "/service/", "db"]).into(),
            group: random.pick(&[None, None, None, Some(0), Some(3)]),
            credentials: (user != User::None).then_some(credentials),
            margin_ms: random.pick(&[10_000, 10_000, 0, 500, 2_500, 5_000]),
        };
        let wild = random.pick(&[0, 200, 500]);
        let permille = TROUBLES
            .map(|_| if random.chance(wild) { random.pick(&[20, 100, 300, 600]) } else { 0 });
        Some(Etcd {
            is_the_focus: random.chance(600),
            is_foreign: random.chance(60),
            random,
            settings: DcsSettings { witness, host: "etcd:2379".into(), hosts },
            permille,
            hosts: vec![None; hosts],
            host: 0,
            user,
            tokens: Vec::new(),
            tokens_given: 0,
            requests: Vec::new(),
            open: None,
        })
    }

    pub fn settings(&self) -> Option<DcsSettings> {
        Some(self.settings.clone())
    }

    /// Ends all faults but wrong settings.
    pub fn heal(&mut self) {
        self.permille = [0; TROUBLES.len()];
        self.hosts.fill(None);
    }

    /// The trouble that the next request meets.
    fn trouble(&mut self) -> Option<Trouble> {
        let one = |(trouble, permille): (&Trouble, u64), random: &mut Random| {
            random.chance(permille).then_some(*trouble)
        };
        let levels = self.permille;
        let mut found = self.hosts[self.host];
        for level in TROUBLES.iter().zip(levels) {
            found = found.or_else(|| one(level, &mut self.random));
        }
        found
    }

    /// Takes the next host.
    pub fn next_host(&mut self) {
        self.host = (self.host + 1) % self.hosts.len();
    }

    fn prefix(&self) -> String {
        let WitnessSettings { namespace, group, .. } = &self.settings.witness;
        let group = group.map_or(String::new(), |group| format!("{group}/"));
        format!("/{}/main/{group}", namespace.trim_matches('/'))
    }

    /// What a request asks for; the error says why none like it may be sent.
    fn kind(&self, head: &str, body: &str) -> Result<(Kind, &'static str), String> {
        let wrong = || format!("the DCS was sent {head:?} {body}");
        let body: Value = serde_json::from_str(body).map_err(|_| wrong())?;
        let mut lines = head.split("\r\n");
        let path = lines.next().and_then(|line| line.strip_prefix("POST "));
        let credentials = &self.settings.witness.credentials;
        let token = head.split("\r\nAuthorization: ").nth(1);
        match path.and_then(|path| path.strip_suffix(" HTTP/1.0")) {
            Some("/v3/auth/authenticate") if token.is_none() => {
                let Credentials { username, password } = credentials.as_ref().ok_or_else(wrong)?;
                let right = body == json!({ "name": username, "password": password });
                right.then_some((Kind::Authenticate, NAMES[0])).ok_or_else(wrong)
            }
            Some("/v3/kv/txn") => {
                let asks_for = |name: &&str| body == json!({ "success": self.ranges(name) });
                let name = NAMES.into_iter().find(asks_for).ok_or_else(wrong)?;
                Ok((Kind::Keys, name))
            }
            Some("/v3/lease/timetolive") => {
                let id = body["ID"].as_str().and_then(|id| id.parse().ok()).ok_or_else(wrong)?;
                let right = body == json!({ "ID": body["ID"] });
                right.then_some((Kind::TimeLeft(id), NAMES[0])).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }

    /// The keys of a member that may be read: linearizable, and nothing but reads.
    fn ranges(&self, name: &str) -> Value {
        let member = format!("members/{name}");
        let ranges = ["leader", &member, "config", "initialize"].map(|key| {
            let key = STANDARD.encode(self.prefix() + key);
            json!({ "request_range": { "key": key } })
        });
        json!(ranges)
    }

    /// Status and body of an answer.
    fn answer(&mut self, at: usize, truth: &Truth) -> (u16, Value) {
        let request = &self.requests[at];
        let (kind, trouble, name) = (request.kind, request.trouble, request.name);
        let head = String::from_utf8_lossy(&request.bytes).into_owned();
        let token = head.split("\r\nAuthorization: ").nth(1);
        let token = token.and_then(|rest| rest.split("\r\n").next());
        match (trouble, kind) {
            (Some(Trouble::NoQuorum), _) => error(503, 14, "etcdserver: request timed out"),
            (Some(Trouble::Status(status, code)), _) => error(status, code, "etcdserver: fault"),
            (_, Some(Kind::Authenticate)) => self.authenticate(),
            (_, Some(Kind::Keys)) => match self.refusal(token) {
                Some(refusal) => refusal,
                None => (200, self.keys(truth, name)),
            },
            (_, Some(Kind::TimeLeft(id))) => (200, time_left(truth, id, trouble)),
            (_, None) => error(404, 5, "Not Found"),
        }
    }

    fn authenticate(&mut self) -> (u16, Value) {
        match self.user {
            User::None | User::AuthOff => error(412, 9, "authentication is not enabled"),
            User::WrongPassword => error(400, 3, "authentication failed"),
            User::Known | User::NoPermission => {
                self.tokens_given += 1;
                let token = format!("TfCsPdlXIPNUIprG.{}", self.tokens_given);
                self.tokens.push(token.clone());
                (200, json!({ "header": header(), "token": token }))
            }
        }
    }

    fn refusal(&self, token: Option<&str>) -> Option<(u16, Value)> {
        match (self.user, token) {
            (User::None | User::AuthOff, None) => None,
            (User::Known | User::NoPermission | User::WrongPassword, None) => {
                Some(error(400, 3, "user name is empty"))
            }
            (_, Some(token)) if !self.tokens.iter().any(|known| known == token) => {
                Some(error(401, 16, "invalid auth token"))
            }
            (User::NoPermission, _) => Some(error(403, 7, "permission denied")),
            _ => None,
        }
    }

    fn keys(&self, truth: &Truth, name: &str) -> Value {
        let leader = truth.leader.map(|leader| (leader.name.to_owned(), leader.lease));
        let member = truth.member.map(|member| {
            let mut value = json!({ "role": member.role, "state": member.state });
            if let Some(timeline) = member.timeline {
                value["timeline"] = json!(timeline);
            }
            (value.to_string(), member.lease)
        });
        let intervals = truth.intervals;
        let mut config = json!({
            "ttl": intervals.ttl,
            "loop_wait": intervals.loop_wait,
            "retry_timeout": intervals.retry_timeout,
        });
        if truth.paused {
            config["pause"] = json!(true);
        }
        if truth.standby_cluster {
            config["standby_cluster"] = json!({ "host": "10.0.0.9" });
        }
        let initialize = if truth.is_foreign { "1" } else { SYSTEM_IDENTIFIER };
        let values = [
            ("leader".to_owned(), leader),
            (format!("members/{name}"), member),
            ("config".into(), Some((config.to_string(), 0))),
            ("initialize".into(), Some((initialize.into(), 0))),
        ];
        let responses = values.map(|(key, value)| range(&(self.prefix() + &key), value));
        json!({ "header": header(), "succeeded": true, "responses": responses })
    }
}

impl Request {
    fn new(
        id: ConnId,
        connect: Clock,
        connect_step: u64,
        is_needed: bool,
        trouble: Option<Trouble>,
    ) -> Request {
        Request {
            id,
            connect,
            connect_step,
            is_needed,
            bytes: Vec::new(),
            pipe: Pipe { inbox: VecDeque::new(), end: End::Open, window: usize::MAX },
            kind: None,
            name: NAMES[0],
            trouble,
            answer: None,
            planned_bytes: usize::MAX,
            delivered: 0,
        }
    }

    /// Head and body, once they are whole.
    fn parts(&self) -> Option<(String, String)> {
        let text = String::from_utf8_lossy(&self.bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.split("Content-Length: ").nth(1)?.split("\r\n").next()?;
        let is_whole = length.parse() == Ok(body.len());
        is_whole.then(|| (head.to_owned(), body.to_owned()))
    }
}

impl World {
    /// Plans a seed that is about a frozen API, and etcd's events.
    pub fn plan_etcd(&mut self, duration_ms: u64) {
        let leads = self.patroni.role(0) != "replica";
        let Some(etcd) = &mut self.etcd else { return };
        let mut planned = Vec::new();
        let random = &mut etcd.random;
        if etcd.is_the_focus {
            let targets: &[&'static str] = match leads {
                true => &["/primary", "/primary", "/leader", "/standby-leader", "/read-only"],
                false => &["/replica", "/replica", "/read-only", "/primary"],
            };
            for _ in 0..random.between(1, 2) {
                let (target, pause_ms) =
                    (random.pick(targets), random.pick(&[200, 500, 1_000, 1_000, 2_000, 5_000]));
                let begin_ms = random.below(3_000);
                for turn in 0..(duration_ms.saturating_sub(begin_ms) / pause_ms).min(150) {
                    planned.push((begin_ms + turn * pause_ms, Event::Steady(target)));
                }
            }
            for _ in 0..random.between(1, 3) {
                let at_ms = random.below(duration_ms);
                let what = random.pick(&[Freeze::Api, Freeze::Api, Freeze::Process, Freeze::Loop]);
                let lasting_ms = random.between(1_000, 60_000);
                planned.push((at_ms, Event::Cluster(Happening::Freeze(what))));
                planned.push((at_ms + lasting_ms, Event::Cluster(Happening::Thaw(what))));
            }
        }
        let events = random.pick(&[0, 1, 2, 4]);
        for _ in 0..events {
            let at_ms = random.below(duration_ms);
            let lasting_ms = random.skewed(30_000);
            match random.below(12) {
                0..4 => {
                    let host = random.below(etcd.hosts.len() as u64) as usize;
                    let trouble = random.pick(&TROUBLES);
                    let begin = DcsEvent::Trouble(host, Some(trouble));
                    planned.push((at_ms, Event::Dcs(begin)));
                    let end = DcsEvent::Trouble(host, None);
                    planned.push((at_ms + lasting_ms, Event::Dcs(end)));
                }
                4 => planned.push((at_ms, Event::Dcs(DcsEvent::Revoke))),
                5 => planned.push((at_ms, Event::Dcs(DcsEvent::Prolong))),
                6 => planned.push((at_ms, Event::Dcs(DcsEvent::ForgetTokens))),
                7 => planned.push((at_ms, Event::Cluster(Happening::Switchover))),
                8..11 => {
                    planned.push((at_ms, Event::Dcs(DcsEvent::Reload(Reload::Patroni))));
                    let frozen_ms = at_ms + random.between(200, 3_000);
                    planned.push((frozen_ms, Event::Cluster(Happening::Freeze(Freeze::Api))));
                    let thawed_ms = frozen_ms + lasting_ms;
                    planned.push((thawed_ms, Event::Cluster(Happening::Thaw(Freeze::Api))));
                }
                _ => {
                    let off = DcsEvent::Reload(Reload::WithoutDcs);
                    let on = DcsEvent::Reload(Reload::WithDcs);
                    planned.push((at_ms, Event::Dcs(off)));
                    planned.push((at_ms + lasting_ms, Event::Dcs(on)));
                }
            }
        }
        for (at_ms, event) in planned {
            self.at(at_ms, event);
        }
    }

    pub fn dcs_event(&mut self, event: DcsEvent) -> Outcome {
        if !matches!(event, DcsEvent::Execute(_)) {
            self.trace(|| format!("{event:?}"));
        }
        let clock = self.clock();
        let Some(etcd) = &mut self.etcd else { return Ok(()) };
        match event {
            DcsEvent::Execute(at) => self.dcs_answers(at),
            DcsEvent::Trouble(host, trouble) => etcd.hosts[host] = trouble,
            DcsEvent::Revoke => self.patroni.revoke(clock, &mut etcd.random),
            DcsEvent::Prolong => {
                self.patroni.prolong(clock);
                self.take_todo();
            }
            DcsEvent::ForgetTokens => etcd.tokens.clear(),
            DcsEvent::Reload(what) => return self.reload(what),
        }
        Ok(())
    }

    fn reload(&mut self, what: Reload) -> Outcome {
        // after a reload the first answer says which node it is
        if self.shutdown_ms.is_some() || self.may_hear_another_node() {
            return Ok(());
        }
        self.step += 1;
        self.memory.doubt_the_node();
        let Some(etcd) = &self.etcd else { return Ok(()) };
        let mut settings: Settings = self.settings.clone();
        match what {
            Reload::Patroni => {
                let is_second = &*settings.host == "patroni:8008";
                let host = if is_second { "patroni2:8008" } else { "patroni:8008" };
                settings.host = host.into();
                let is_silent = self.memory.is_silent;
                self.memory = Memory::new();
                self.memory.is_silent = is_silent;
                self.memory.restarted = Some((self.step, self.now_ms));
                self.intervals_ms = None;
                self.testimony.forget();
            }
            Reload::WithoutDcs => settings.dcs = None,
            Reload::WithDcs => {
                self.memory.dcs_since_ms = self.now_ms;
                settings.dcs = etcd.settings();
            }
        }
        if settings.dcs != self.settings.dcs {
            self.testimony.forget();
        }
        self.settings = settings.clone();
        self.engine.configure(self.now(), settings);
        self.testimony.reloaded_step = Some(self.step);
        self.perform_actions(Cause::Other)
    }

    /// Records whether Patroni is silent, so that the DCS may be asked.
    pub fn note_silence(&mut self) {
        let silent_ms = self.now_ms.saturating_sub(SILENCE_MS.min(self.settings.timeout_ms));
        let is_silent = self.memory.may_be_silent() || self.is_silent(silent_ms);
        if self.etcd.is_some() && is_silent && self.memory.has_witnessed() {
            self.testimony.needed_ms = Some(self.now_ms);
        }
    }

    /// A read of the DCS opens a connection.
    pub fn connect_dcs(&mut self, id: ConnId) -> Outcome {
        let clock = self.clock();
        self.note_silence();
        let is_needed = self.testimony.is_needed(clock.ms, self.overslept_ms);
        let Some(etcd) = self.etcd.as_mut().filter(|_| self.settings.dcs.is_some()) else {
            return Err("the DCS is asked, and none is configured".into());
        };
        if self.shutdown_ms.is_some() {
            return Err("the DCS is asked during the shutdown".into());
        }
        let at = etcd.requests.len();
        if etcd.open.replace(at).is_some() {
            return Err("two requests to the DCS at once".into());
        }
        if self.owners.insert(id, Owner::Dcs(at)).is_some() {
            return Err(format!("{id:?} was assigned twice"));
        }
        let trouble = etcd.trouble();
        etcd.requests.push(Request::new(id, clock, self.step, is_needed, trouble));
        let connect_ms = etcd.random.skewed(20);
        let fails_at_once = etcd.random.chance(500);
        self.trace(|| format!("    the DCS meets {trouble:?}"));
        self.testimony.connects(clock.ms, trouble.is_some())?;
        match trouble {
            Some(Trouble::ConnectSilent) => {}
            Some(Trouble::Refused) if fails_at_once => {
                return self.input(id, Input::ConnectFailed(Failure::Refused));
            }
            Some(Trouble::Refused) => {
                self.later(connect_ms, Event::ConnectFailed(id, Failure::Refused));
            }
            _ => self.later(connect_ms, Event::Connected(id)),
        }
        Ok(())
    }

    /// The connection of a read of the DCS is open.
    pub fn connected_dcs(&mut self, id: ConnId) -> Outcome {
        self.engine.progress(id, Progress::Open);
        self.perform_actions(Cause::Other)?;
        if self.engine.output(id).is_empty() {
            return Err("the connection is open, and no request is sent to the DCS".into());
        }
        self.queue.push_back(id);
        Ok(())
    }

    /// The engine has sent bytes to etcd.
    pub fn dcs_was_sent(&mut self, at: usize) -> Outcome {
        let Some(etcd) = &mut self.etcd else { return Ok(()) };
        let Some((head, body)) = etcd.requests[at].parts() else { return Ok(()) };
        let (kind, name) = etcd.kind(&head, &body)?;
        let request = &mut etcd.requests[at];
        (request.kind, request.name) = (Some(kind), name);
        let most_ms = if request.trouble == Some(Trouble::Slow) { 1_200 } else { 20 };
        let delay_ms = etcd.random.skewed(most_ms);
        if self.testimony.begins(kind, request.connect_step) && !request.is_needed {
            self.testimony.rehearses(request.connect.ms)?;
        }
        self.later(delay_ms, Event::Dcs(DcsEvent::Execute(at)));
        Ok(())
    }

    fn dcs_answers(&mut self, at: usize) {
        let Some(mut truth) = self.patroni.truth(self.now_ms) else { return };
        let role = self.patroni.role(self.now_ms);
        let Some(etcd) = &mut self.etcd else { return };
        let name = etcd.requests[at].name;
        if etcd.is_foreign {
            truth = truth.of_another_cluster(name, role);
        } else if name != self.patroni.member_name() {
            truth.member = None;
        }
        let (status, body) = etcd.answer(at, &truth);
        let random = &mut etcd.random;
        let is_long = random.chance(500);
        let pause_ms = random.pick(&[0, 2, 50]);
        let request = &mut etcd.requests[at];
        let id = request.id;
        let mut bytes = framed(status, &body, is_long);
        let mut end = End::Fin;
        match request.trouble {
            Some(Trouble::Silent) => return,
            Some(Trouble::Garbage) => bytes = framed(200, &json!({ "header": {} }), true),
            Some(trouble @ (Trouble::Cut | Trouble::Reset)) => {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
                end = if trouble == Trouble::Cut { End::Fin } else { End::Rst };
            }
            _ => {
                request.planned_bytes = bytes.len();
                request.answer = Some((truth, status));
            }
        }
        let pause_ms = random.skewed(pause_ms);
        let half = bytes.len() / 2;
        self.trace(|| format!("the DCS answers {status} {body}"));
        self.later(0, Event::Bytes(id, bytes[..half].to_vec()));
        self.later(pause_ms, Event::Bytes(id, bytes[half..].to_vec()));
        self.later(pause_ms, Event::End(id, end));
    }

    /// The engine has closed the connection of a read.
    pub fn close_dcs(&mut self, id: ConnId, at: usize, cause: Cause, step: u64) -> Outcome {
        self.remove(id)?;
        let (now_ms, is_shutdown) = (self.now_ms, self.shutdown_ms.is_some());
        let Some(etcd) = &mut self.etcd else { return Ok(()) };
        etcd.open = None;
        let request = &etcd.requests[at];
        let is_own = matches!(cause, Cause::Input(of, ..) if of == id);
        let is_late = now_ms >= request.connect.ms + REQUEST_MS_MAX;
        let is_dropped = is_shutdown
            || self.testimony.reloaded_step == Some(step)
            || self.moved_ms.is_some_and(|ms| ms >= request.connect.ms);
        if !is_own && !is_late && !is_dropped {
            return Err(format!("a request to the DCS was given up at {cause:?}"));
        }
        let is_whole = is_own && request.delivered >= request.planned_bytes;
        let subject = self.memory.subject();
        let heard = self.testimony.ended(request, is_whole, (now_ms, step), subject);
        if heard {
            // it may have ended leaders' 200s
            self.memory.restarted = Some((step, now_ms));
        }
        Ok(())
    }

    /// Whether the DCS surely confirms the last 200 of this target.
    pub fn is_surely_confirmed(&self, target: &str) -> bool {
        let is_clock_sure = !self.faults.is_on(Fault::PatroniClock);
        let brought = self.memory.witnessed(target, self.moved_ms).filter(|_| is_clock_sure);
        let node = self.memory.subject();
        brought.is_some_and(|brought| {
            self.testimony.surely_confirms(self.clock(), brought, node, &self.settings)
        })
    }

    pub fn check_dcs(&self) -> Outcome {
        let open = self.etcd.as_ref().and_then(|etcd| Some(&etcd.requests[etcd.open?]));
        let Some(request) = open else { return Ok(()) };
        if self.is_over(request.connect.ms + REQUEST_MS_MAX) {
            return Err("promise 1: a request to the DCS outlives its second".into());
        }
        Ok(())
    }
}

fn time_left(truth: &Truth, id: i64, trouble: Option<Trouble>) -> Value {
    let mut answer = json!({ "header": header(), "ID": id.to_string() });
    let lease = truth.lease(id).filter(|_| trouble != Some(Trouble::NoLease));
    let Some(lease) = lease else {
        answer["TTL"] = json!("-1");
        return answer;
    };
    answer["grantedTTL"] = json!(lease.granted_seconds.to_string());
    let left = (lease.until_ms - truth.at_ms) / 1_000;
    if trouble == Some(Trouble::Endless) {
        answer["TTL"] = json!("9223372036");
    } else if left > 0 {
        answer["TTL"] = json!(left.to_string()); // 0 is left out
    }
    answer
}

fn error(status: u16, code: u32, text: &str) -> (u16, Value) {
    (status, json!({ "error": text, "message": text, "code": code }))
}

const TROUBLES: [Trouble; 13] = [
    Trouble::Silent,
    Trouble::Refused,
    Trouble::ConnectSilent,
    Trouble::Cut,
    Trouble::Reset,
    Trouble::Garbage,
    Trouble::Slow,
    Trouble::NoQuorum,
    Trouble::Status(400, 3),
    Trouble::Status(401, 16),
    Trouble::Status(403, 7),
    Trouble::NoLease,
    Trouble::Endless,
];
/// The names that the node may have.
const NAMES: [&str; 3] = ["pg1", "pg2", "pg3"];
const SEED_MASK: u64 = 0x6574_6364;
/// Promise 1 for a request to the DCS.
const REQUEST_MS_MAX: u64 = 1_000;
/// For how long Patroni does not answer before the DCS is asked.
const SILENCE_MS: u64 = 240;
