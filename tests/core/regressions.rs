//! Bugs that the simulator and mutants found, each as a small story.

use patroniglue::cache::CacheSettings;
use patroniglue::engine::{Action, DcsSettings, Engine, Port, Settings, UpstreamId};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::node::witness;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};

use crate::stories::etcd::Etcd;

/// The engine and a clock that the test sets.
struct Story {
    engine: Engine,
    ms: u64,
    unix_ms: u64,
}

impl Story {
    fn new(limits: CacheSettings) -> Story {
        Story::of_many(limits, 10)
    }

    fn of_many(limits: CacheSettings, clients_max: usize) -> Story {
        Story::with(settings(limits, clients_max))
    }

    fn with(settings: Settings) -> Story {
        Story { engine: Engine::new(settings), ms: 0, unix_ms: 1_700_000_000_000 }
    }

    fn now(&self) -> Now {
        Now { time: Time::from_ms(self.ms), unix_ms: self.unix_ms + self.ms }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.engine.poll_action()).collect()
    }

    fn client(&mut self, bytes: &[u8]) -> ConnId {
        let id = self.engine.accept(self.now(), Port::Checks).expect("there is room");
        self.engine.receive(self.now(), id, bytes);
        id
    }

    /// Patroni gets one request and answers with this JSON at once.
    fn patroni_answers(&mut self, body: &str) {
        let actions = self.actions();
        let fetches = connects(&actions);
        let [fetch] = fetches[..] else { panic!("{actions:?}") };
        self.answer(fetch, body);
    }

    fn answer(&mut self, fetch: ConnId, body: &str) {
        self.engine.progress(fetch, Progress::Open);
        let request = self.engine.output(fetch).len();
        self.take(fetch, request);
        let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n";
        self.engine.receive(self.now(), fetch, format!("{head}{body}").as_bytes());
        self.engine.eof(self.now(), fetch);
    }

    /// etcd gets one request and answers at once.
    fn etcd_answers(&mut self) {
        let actions = self.actions();
        let [read] = connects(&actions)[..] else { panic!("{actions:?}") };
        self.engine.progress(read, Progress::Open);
        let count = self.engine.output(read).len();
        let request = self.take(read, count);
        let answer = Etcd::new().answer(self.ms, &String::from_utf8_lossy(&request));
        self.engine.receive(self.now(), read, &answer.expect("it is not silent"));
    }

    /// Time passes, and as many hosts of the DCS refuse the connection. Returns the fetches from
    /// Patroni that began.
    fn dcs_refuses(&mut self, ms: u64, hosts: usize) -> Vec<ConnId> {
        self.ms = ms;
        self.engine.tick(self.now());
        let mut fetches = Vec::new();
        for _ in 0..hosts {
            let mut reads = Vec::new();
            for action in self.actions() {
                match action {
                    Action::Connect(id, UpstreamId::Dcs) => reads.push(id),
                    Action::Connect(id, UpstreamId::Patroni) => fetches.push(id),
                    _ => {}
                }
            }
            let [read] = reads[..] else { panic!("{reads:?}") };
            self.engine.connect_failed(self.now(), read, Failure::Refused);
        }
        fetches
    }

    /// A kept client asks at `ms`; Patroni answers that the HA loop saw the DCS `ago_ms` before.
    /// If the intervals are due, they are answered, and the client asks again a second later.
    fn leader(&mut self, client: ConnId, ms: u64, ago_ms: u64) {
        self.ms = ms;
        self.check(client, ago_ms);
        let actions = self.actions();
        if let [fetch] = connects(&actions)[..] {
            self.answer(fetch, INTERVALS);
            self.ms += 1_000;
            self.check(client, ago_ms + 1_000);
        }
    }

    fn check(&mut self, client: ConnId, ago_ms: u64) {
        self.engine.receive(self.now(), client, b"GET /primary HTTP/1.1\r\n\r\n");
        let seen = (self.now().unix_ms - ago_ms) / 1_000;
        let status = r#"{"state": "running", "role": "primary", "dcs_last_seen": "#;
        self.patroni_answers(&format!("{status}{seen}}}"));
        let answer = self.engine.output(client).len();
        assert!(self.take(client, answer).starts_with(b"HTTP/1.1 200 OK\r\n"));
    }

    /// Whether a stale answer is served to a client that asks at `ms`, while Patroni is silent.
    fn is_stale_served(&mut self, client: ConnId, ms: u64) -> bool {
        self.ms = ms;
        self.engine.receive(self.now(), client, b"GET /primary HTTP/1.1\r\n\r\n");
        self.ms += 300;
        self.engine.tick(self.now());
        !self.engine.output(client).is_empty()
    }

    fn take(&mut self, id: ConnId, count: usize) -> Vec<u8> {
        let bytes = self.engine.output(id)[..count].to_vec();
        self.engine.sent(self.now(), id, count);
        bytes
    }
}

fn settings(limits: CacheSettings, clients_max: usize) -> Settings {
    Settings {
        cache: limits,
        interval_ms: 250,
        timeout_ms: 3_000,
        fetches_max: 3,
        clients_max,
        fence: false,
        dcs: None,
        host: "patroni:8008".into(),
        agent_target: "/replica".into(),
        records: false,
    }
}

fn dcs() -> DcsSettings {
    let namespace = "service".into();
    let witness =
        witness::Settings { namespace, group: None, credentials: None, margin_ms: 10_000 };
    DcsSettings { witness, host: "etcd:2379".into(), hosts: 1 }
}

fn connects(actions: &[Action]) -> Vec<ConnId> {
    let connects = actions.iter().filter_map(|action| match action {
        Action::Connect(fetch, _) => Some(*fetch),
        _ => None,
    });
    connects.collect()
}

const RUNNING: &str = r#"{"state": "running", "role": "replica"}"#;
const LIMITS: CacheSettings = CacheSettings { ttl_ms: 1_000, grace_ms: 0, variants_max: 64 };

/// A kept client whose answer was being sent when the shutdown began stayed, idle, until the end of
/// the shutdown.
#[test]
fn in_a_shutdown_a_client_is_closed_after_its_answer() {
    let mut story = Story::new(LIMITS);
    let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    let actions = story.actions();
    let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
    story.engine.connect_failed(story.now(), fetch, Failure::Refused);
    story.actions();
    story.take(client, 10);
    story.engine.begin_shutdown(story.now());
    assert_eq!(story.actions(), []);
    let rest = story.engine.output(client).len();
    story.take(client, rest);
    assert_eq!(story.actions(), [Action::Close(client)]);
    assert!(story.engine.is_shut_down());
}

/// After a sleep longer than the timer wheel's horizon the time of the shutdown had passed at once,
/// and waiting clients were closed without an answer.
#[test]
fn a_shutdown_lets_clients_wait_after_a_long_sleep_too() {
    let mut story = Story::new(LIMITS);
    story.ms = 60_000;
    let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    story.engine.begin_shutdown(story.now());
    story.engine.tick(story.now());
    let actions = story.actions();
    let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
    story.engine.connect_failed(story.now(), fetch, Failure::Refused);
    let response = String::from_utf8_lossy(story.engine.output(client));
    assert!(response.starts_with("HTTP/1.1 503") && response.contains("Connection: close"));
}

/// Waiting clients kept the daemon from ending for 5 s, and got nothing then.
#[test]
fn a_shutdown_answers_waiting_clients_within_a_second() {
    let mut story = Story::new(LIMITS);
    let waiting = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    let late = story.client(b"GET /primary HTTP/1.1\r\n");
    story.actions();
    story.engine.begin_shutdown(story.now());
    story.ms += 890;
    story.engine.tick(story.now());
    assert_eq!((story.actions(), story.engine.output(waiting)), (vec![], &b""[..]));
    story.ms += 20;
    story.engine.tick(story.now());
    assert_eq!(story.actions(), [Action::Wake(waiting)]);
    story.engine.receive(story.now(), late, b"\r\n");
    for client in [waiting, late] {
        let response = String::from_utf8_lossy(story.engine.output(client)).into_owned();
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
        assert!(response.contains("Connection: close") && response.contains("is shutting down"));
    }
    story.take(waiting, story.engine.output(waiting).len());
    assert_eq!(story.actions(), [Action::Close(waiting)]);
    assert!(!story.engine.is_shut_down(), "one response is not taken");
    story.ms += 110;
    story.engine.tick(story.now());
    assert!(story.engine.is_shut_down());
}

/// After a standstill a client joined a refresh whose time had run out in the queue. It got a 503,
/// "all connections to Patroni are busy", although none was.
#[test]
fn a_client_that_joins_a_refresh_after_a_standstill_is_answered() {
    let mut story = Story::with(Settings { fetches_max: 1, ..settings(LIMITS, 10) });
    let steady = story.client(b"GET /replica HTTP/1.1\r\n\r\n");
    story.patroni_answers(RUNNING);
    story.take(steady, story.engine.output(steady).len());
    story.client(b"GET /health HTTP/1.1\r\n\r\n");
    let [slow] = connects(&story.actions())[..] else { panic!("one fetch of /health") };
    story.engine.next_deadline();
    story.ms = 760;
    story.engine.tick(story.now());
    assert_eq!(story.engine.counts().queued, 1, "the refresh of /replica");
    story.engine.next_deadline();
    story.ms = 10_000;
    story.answer(slow, RUNNING);
    assert_eq!(connects(&story.actions()), [], "the time of the refresh has run out");
    story.engine.receive(story.now(), steady, b"GET /replica HTTP/1.1\r\n\r\n");
    let [refresh] = connects(&story.actions())[..] else { panic!("one fetch of /replica") };
    story.engine.tick(story.now());
    story.answer(refresh, RUNNING);
    assert!(story.engine.output(steady).starts_with(b"HTTP/1.1 200 OK\r\n"));
}

/// Clients that had just connected were closed without an answer.
#[test]
fn a_shutdown_answers_clients_that_have_just_connected() {
    let mut story = Story::new(LIMITS);
    let silent = story.client(b"");
    story.ms += 1_000;
    let new = story.client(b"");
    story.engine.begin_shutdown(story.now());
    assert_eq!(story.actions(), [Action::Close(silent)]);
    story.engine.receive(story.now(), new, b"GET /nowhere HTTP/1.0\r\n\r\n");
    story.take(new, story.engine.output(new).len());
    assert!(story.engine.is_shut_down());
}

/// After a standstill in the shutdown its two deadlines passed in one turn.
#[test]
fn a_shutdown_answers_after_a_standstill_too() {
    let mut story = Story::new(LIMITS);
    let waiting = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    story.engine.begin_shutdown(story.now());
    story.ms += 10_000;
    story.engine.tick(story.now());
    assert!(!story.engine.output(waiting).is_empty() && !story.engine.is_shut_down());
}

/// Half a head, or a response that nobody read, kept the daemon from ending.
#[test]
fn a_second_shutdown_closes_every_client() {
    let mut story = Story::new(LIMITS);
    let clients = ["GET /primary HTTP/1.1\r\n", "GET /primary HTTP/1.1\r\n\r\n"];
    let clients = clients.map(|text| story.client(text.as_bytes()));
    story.engine.begin_shutdown(story.now());
    assert!(!story.engine.is_shut_down());
    story.engine.begin_shutdown(story.now());
    assert!(story.engine.is_shut_down());
    assert!(clients.iter().all(|id| story.engine.output(*id).is_empty()));
}

/// With a ttl of 60 s the refresh lies beyond the timer wheel's horizon: its timer fired early,
/// nothing was due, and steady clients had to wait.
#[test]
fn a_route_with_a_long_ttl_is_fetched_ahead_too() {
    let mut story = Story::new(CacheSettings { ttl_ms: 60_000, ..LIMITS });
    story.client(b"GET /liveness HTTP/1.0\r\n\r\n");
    let actions = story.actions();
    let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
    story.engine.progress(fetch, Progress::Open);
    let request = story.engine.output(fetch).len();
    story.take(fetch, request);
    story.engine.receive(story.now(), fetch, b"HTTP/1.0 200 OK\r\n\r\n");
    story.engine.eof(story.now(), fetch);
    story.actions();
    let mut ahead_ms = None;
    while let Some(due) = story.engine.next_deadline().filter(|due| due.as_ms() < 59_000) {
        story.ms = due.as_ms();
        story.engine.tick(story.now());
        let connects = story.actions().iter().any(|action| matches!(action, Action::Connect(..)));
        ahead_ms = ahead_ms.or(connects.then_some(story.ms));
    }
    assert_eq!(ahead_ms, Some(45_000));
}

/// No test failed when inputs for closed connections were counted wrongly.
#[test]
fn an_input_for_a_closed_connection_is_counted_and_ignored() {
    let mut story = Story::new(LIMITS);
    let gone = story.client(b"");
    story.engine.broken(story.now(), gone, Failure::Reset);
    assert_eq!(story.actions(), [Action::Close(gone)]);
    let now = story.now();
    story.engine.receive(now, gone, b"GET / HTTP/1.1\r\n\r\n");
    story.engine.sent(now, gone, 1);
    story.engine.eof(now, gone);
    story.engine.broken(now, gone, Failure::Reset);
    story.engine.progress(gone, Progress::Open);
    story.engine.progress(gone, Progress::Handshaking);
    story.engine.connect_failed(now, gone, Failure::Refused);
    assert_eq!(story.engine.counts().stale_inputs, 7);
    assert_eq!((story.actions(), story.engine.next_deadline()), (vec![], None));
    assert!(!story.engine.wants_read(gone) && story.engine.output(gone).is_empty());
}

/// Output before the connection is open would be lost.
#[test]
fn a_request_is_sent_once_the_connection_is_open() {
    let mut story = Story::new(LIMITS);
    let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    let actions = story.actions();
    let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
    let sends = |story: &Story| !story.engine.output(fetch).is_empty();
    assert!(!sends(&story));
    // two timers: the timeout of the fetch and the 250 ms of the client
    assert_eq!(
        (story.engine.next_deadline().is_some(), story.engine.connections_and_timers()),
        (true, 4)
    );
    story.engine.progress(fetch, Progress::Handshaking);
    assert!(!sends(&story));
    story.engine.progress(fetch, Progress::Open);
    assert!(sends(&story));
    story.engine.connect_failed(story.now(), fetch, Failure::Refused);
    assert!(!sends(&story), "the fetch has ended");
    assert!(!story.engine.is_shut_down());
    story.engine.begin_shutdown(story.now());
    assert!(!story.engine.is_shut_down(), "an answer is not sent yet");
    let answer = story.engine.output(client).len();
    story.take(client, answer);
    assert!(story.engine.is_shut_down());
}

/// The first report began a rehearsal of the DCS read although the daemon was shutting down.
#[test]
fn in_a_shutdown_no_rehearsal_begins() {
    for shutting_down in [false, true] {
        let mut story = Story::with(Settings { dcs: Some(dcs()), ..settings(LIMITS, 10) });
        story.client(b"GET /primary HTTP/1.1\r\n\r\n");
        let actions = story.actions();
        let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
        if shutting_down {
            story.engine.begin_shutdown(story.now());
        }
        story.answer(fetch, CONFIRMABLE);
        let is_dcs = |action: &Action| matches!(action, Action::Connect(_, UpstreamId::Dcs));
        assert_eq!(story.actions().iter().any(is_dcs), !shutting_down);
    }
}

/// The end of a read of the DCS did not look at the clock: after a jump waiting clients got a stale
/// answer of unknown age.
#[test]
fn a_jump_is_seen_at_the_end_of_a_read_of_the_dcs() {
    for jump_ms in [0, 5_000] {
        let mut story = Story::with(Settings { dcs: Some(dcs()), ..settings(LIMITS, 10) });
        story.client(b"GET /primary HTTP/1.1\r\n\r\n");
        story.patroni_answers(CONFIRMABLE);
        let actions = story.actions();
        let [rehearsal] = connects(&actions)[..] else { panic!("{actions:?}") };
        story.engine.connect_failed(story.now(), rehearsal, Failure::Refused);
        story.ms = 2_000;
        let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
        story.actions();
        story.ms = 2_300;
        story.engine.tick(story.now());
        story.etcd_answers();
        story.unix_ms += jump_ms;
        story.etcd_answers();
        assert_eq!(story.engine.output(client).is_empty(), jump_ms > 0);
    }
}

/// A read of the DCS whose first request had to wait was about what Patroni had said before, and
/// did not count: clients waited for the next one.
#[test]
fn a_read_that_had_to_wait_is_about_what_patroni_said_last() {
    let three_hosts = DcsSettings { hosts: 3, ..dcs() };
    let mut story = Story::with(Settings { dcs: Some(three_hosts), ..settings(LIMITS, 10) });
    story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    story.patroni_answers(CONFIRMABLE);
    // a rehearsal and a read with two requests a second, as each host refuses the connection
    story.dcs_refuses(0, 2);
    let [fetch] = story.dcs_refuses(1_000, 1)[..] else { panic!("no refresh") };
    story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    for (ms, requests) in [(1_250, 1), (2_000, 1), (2_250, 1), (2_500, 0)] {
        story.dcs_refuses(ms, requests);
    }
    // the next read waits for its time; Patroni answers, and is silent again
    story.ms = 2_600;
    story.answer(fetch, &CONFIRMABLE.replacen('{', r#"{"timeline": 2, "#, 1));
    let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    story.actions();
    for ms in [3_000, 3_250] {
        story.ms = ms;
        story.engine.tick(story.now());
        assert!(story.engine.output(client).is_empty());
        story.etcd_answers();
    }
    assert!(!story.engine.output(client).is_empty());
}

/// No test failed when a failing route was fetched again during the shutdown.
#[test]
fn in_a_shutdown_no_failing_route_is_fetched_again() {
    for shutting_down in [false, true] {
        let mut story = Story::new(LIMITS);
        story.client(b"GET /primary HTTP/1.1\r\n\r\n");
        let actions = story.actions();
        let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
        story.engine.connect_failed(story.now(), fetch, Failure::Refused);
        if shutting_down {
            story.engine.begin_shutdown(story.now());
        }
        story.actions();
        while let Some(due) = story.engine.next_deadline().filter(|due| due.as_ms() < 2_000) {
            story.ms = due.as_ms();
            story.engine.tick(story.now());
        }
        let connects = story.actions().iter().any(|action| matches!(action, Action::Connect(..)));
        assert_eq!(connects, !shutting_down);
    }
}

/// No test failed when, without descriptors, the wrong client was closed, or none.
#[test]
fn the_longest_idle_client_is_closed_among_any_number() {
    for count in [1, 63, 64, 65, 200] {
        let mut story = Story::of_many(LIMITS, count + 1);
        let mut idle = Vec::new();
        for _ in 0..count {
            story.ms += 1;
            idle.push(story.client(b""));
        }
        story.client(b"GET /prim");
        story.ms += 2_000;
        for client in idle {
            assert!(story.engine.make_room(story.now()));
            assert_eq!(story.actions(), [Action::Close(client)]);
        }
        assert!(!story.engine.make_room(story.now()), "the last client is not idle");
    }
}

/// An HA loop that had hung before its first read of the DCS was seen, and hung again after it, had
/// renewed the lease long before: the previous primary's 200 was served after its lease.
#[test]
fn the_first_dcs_last_seen_does_not_prove_a_lease() {
    for seen_before in [false, true] {
        let mut story = Story::new(GRACE);
        story.engine.start(story.now());
        story.patroni_answers(INTERVALS);
        let client = story.client(b"");
        if seen_before {
            story.leader(client, 5_000, 1_000);
        }
        story.leader(client, 13_000, 1_000);
        assert_eq!(story.is_stale_served(client, 15_000), seen_before);
    }
}

/// The wall clock was set back between two reads of the DCS, and the second of the earlier read, by
/// the previous clock, was taken for one of the new clock: a stale 200 was served too long.
#[test]
fn a_second_of_the_previous_clock_does_not_bound_the_lease() {
    for cycles_since in [1, 2] {
        let mut story = Story::new(GRACE);
        story.engine.start(story.now());
        story.patroni_answers(INTERVALS);
        let client = story.client(b"");
        story.leader(client, 5_000, 1_000);
        story.leader(client, 15_000, 1_000);
        story.unix_ms -= 4_000;
        // second 14 by either clock: dcs_last_seen does not move on
        story.leader(client, 18_500, 0);
        for cycle in 1..=cycles_since {
            story.leader(client, 16_000 + cycle * 10_000, 1_000);
        }
        let ms = 18_000 + cycles_since * 10_000;
        assert_eq!(story.is_stale_served(client, ms), cycles_since == 2);
    }
}

const GRACE: CacheSettings = CacheSettings { grace_ms: 20_000, ..LIMITS };
const INTERVALS: &str = r#"{"ttl": 30, "loop_wait": 10, "retry_timeout": 10}"#;
/// What the lease witness can confirm.
const CONFIRMABLE: &str = r#"{"state": "running", "role": "primary", "dcs_last_seen": 1699999999,
    "database_system_identifier": "77", "patroni": {"name": "pg1", "scope": "main"}}"#;
