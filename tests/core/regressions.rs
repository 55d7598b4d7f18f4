//! What the simulator and mutants found, each as a small story of its own.

use patroniglue::cache::CacheSettings;
use patroniglue::engine::{Action, Engine, Port, Settings};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};

/// The engine, and a clock to set.
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
        let engine = Engine::new(Settings {
            cache: limits,
            interval_ms: 250,
            timeout_ms: 3_000,
            fetches_max: 3,
            clients_max,
            host: "patroni:8008".into(),
            records: false,
        });
        Story { engine, ms: 0, unix_ms: 1_700_000_000_000 }
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

    /// Patroni is asked for one thing, and answers with this JSON at once.
    fn patroni_answers(&mut self, body: &str) {
        let actions = self.actions();
        let connects = actions.iter().filter_map(|action| match action {
            Action::Connect(fetch, _) => Some(*fetch),
            _ => None,
        });
        let fetches: Vec<ConnId> = connects.collect();
        let [fetch] = fetches[..] else { panic!("{actions:?}") };
        self.engine.progress(fetch, Progress::Open);
        let request = self.engine.output(fetch).len();
        self.take(fetch, request);
        let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n";
        self.engine.receive(self.now(), fetch, format!("{head}{body}").as_bytes());
        self.engine.eof(self.now(), fetch);
    }

    /// A kept client asks at `ms`, and is told by Patroni that the HA loop saw the DCS `ago_ms`
    /// before.
    fn leader(&mut self, client: ConnId, ms: u64, ago_ms: u64) {
        self.ms = ms;
        self.engine.receive(self.now(), client, b"GET /primary HTTP/1.1\r\n\r\n");
        let seen = (self.now().unix_ms - ago_ms) / 1_000;
        let status = r#"{"state": "running", "role": "primary", "dcs_last_seen": "#;
        self.patroni_answers(&format!("{status}{seen}}}"));
        let answer = self.engine.output(client).len();
        assert!(self.take(client, answer).starts_with(b"HTTP/1.1 200 OK\r\n"));
    }

    /// The client asks at `ms`, and Patroni is silent: is an old answer served?
    fn is_old_served(&mut self, client: ConnId, ms: u64) -> bool {
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

const LIMITS: CacheSettings = CacheSettings { ttl_ms: 1_000, grace_ms: 0, variants_max: 64 };

/// A kept client whose answer was being sent when the daemon was told to end stayed, idle, until
/// the five seconds were over, and the daemon with it.
#[test]
fn who_gets_the_rest_of_its_answer_at_the_end_goes_with_it() {
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

/// After a sleep longer than the timer wheel's horizon the five seconds of the end were over at
/// once, and who waited for an answer was closed without one.
#[test]
fn the_end_leaves_its_five_seconds_after_a_long_sleep_too() {
    let mut story = Story::new(LIMITS);
    story.ms = 60_000;
    let client = story.client(b"GET /primary HTTP/1.1\r\n\r\n");
    story.engine.begin_shutdown(story.now());
    story.engine.tick(story.now());
    let actions = story.actions();
    let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
    story.engine.connect_failed(story.now(), fetch, Failure::Refused);
    assert!(story.engine.output(client).starts_with(b"HTTP/1.1 503"));
}

/// With a ttl of a minute the refresh lies beyond the timer wheel's horizon: its timer fired early,
/// nothing was due yet, and steady clients had to wait after all.
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

/// Nothing noticed when inputs for connections that had gone were counted wrongly.
#[test]
fn every_input_for_who_has_gone_is_counted_and_does_nothing() {
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
    // and two timers: the fetch has its time, the client its patience
    assert_eq!((story.engine.next_deadline().is_some(), story.engine.held()), (true, 4));
    story.engine.progress(fetch, Progress::Handshaking);
    assert!(!sends(&story));
    story.engine.progress(fetch, Progress::Open);
    assert!(sends(&story));
    story.engine.connect_failed(story.now(), fetch, Failure::Refused);
    assert!(!sends(&story), "the fetch has ended");
    assert!(!story.engine.is_shut_down());
    story.engine.begin_shutdown(story.now());
    assert!(!story.engine.is_shut_down(), "there is an answer to be taken");
    let answer = story.engine.output(client).len();
    story.take(client, answer);
    assert!(story.engine.is_shut_down());
}

/// Nor when a failing route was fetched again although the daemon was about to end.
#[test]
fn at_the_end_no_failing_route_is_fetched_again() {
    for ending in [false, true] {
        let mut story = Story::new(LIMITS);
        story.client(b"GET /primary HTTP/1.1\r\n\r\n");
        let actions = story.actions();
        let [Action::Connect(fetch, _)] = actions[..] else { panic!("{actions:?}") };
        story.engine.connect_failed(story.now(), fetch, Failure::Refused);
        if ending {
            story.engine.begin_shutdown(story.now());
        }
        story.actions();
        while let Some(due) = story.engine.next_deadline().filter(|due| due.as_ms() < 2_000) {
            story.ms = due.as_ms();
            story.engine.tick(story.now());
        }
        let connects = story.actions().iter().any(|action| matches!(action, Action::Connect(..)));
        assert_eq!(connects, !ending);
    }
}

/// Nor when the wrong one was closed for want of descriptors, or nobody.
#[test]
fn room_is_made_by_who_was_idle_longest_however_many_there_are() {
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
        assert!(!story.engine.make_room(story.now()), "the last one is not idle");
    }
}

/// A loop that had hung before it was first seen, and hung again behind that read of the DCS,
/// renewed the lease long before: the old primary's 200 was served when its lease was over.
#[test]
fn the_first_that_is_seen_of_a_node_is_no_proof_of_its_lease() {
    for seen_before in [false, true] {
        let mut story = Story::new(GRACE);
        story.engine.start(story.now());
        story.patroni_answers(INTERVALS);
        let client = story.client(b"");
        if seen_before {
            story.leader(client, 5_000, 1_000);
        }
        story.leader(client, 13_000, 1_000);
        assert_eq!(story.is_old_served(client, 15_000), seen_before);
    }
}

/// The wall clock was set back between two reads of the DCS, and the earlier one's second, by the
/// former clock, was taken for the present one's: an old 200 was served too long by the jump.
#[test]
fn a_second_of_the_former_clock_is_no_bound_of_the_lease() {
    for cycles_since in [1, 2] {
        let mut story = Story::new(GRACE);
        story.engine.start(story.now());
        story.patroni_answers(INTERVALS);
        let client = story.client(b"");
        story.leader(client, 5_000, 1_000);
        story.leader(client, 15_000, 1_000);
        story.unix_ms -= 4_000;
        story.leader(client, 16_500, 0); // second 14 by either clock: not seen to move on
        for cycle in 1..=cycles_since {
            story.leader(client, 16_000 + cycle * 10_000, 1_000);
        }
        let ms = 18_000 + cycles_since * 10_000;
        assert_eq!(story.is_old_served(client, ms), cycles_since == 2);
    }
}

const GRACE: CacheSettings = CacheSettings { grace_ms: 20_000, ..LIMITS };
const INTERVALS: &str = r#"{"ttl": 30, "loop_wait": 10, "retry_timeout": 10}"#;
