//! The safety decision as a whole, as tables: what comes in, and until when it may be served.

use super::dcs_reads::{READS_MAX, RELEVANT_MS};
use super::wall_clock::JUMP_MS_MIN;
use super::*;
use crate::routes::{Family, resolve};

/// The daemon is 100 s old at Unix second 10,000.
fn now_at(unix_seconds: f64) -> Now {
    let unix_ms = (unix_seconds * 1e3) as u64;
    Now { time: Time::from_ms(unix_ms - 9_900_000), unix_ms }
}

fn route(path: &str) -> Route {
    resolve(path, &mut String::new()).expect(path)
}

/// A node's report; `fields` are added to those of a running primary.
fn body(dcs_last_seen: u64, fields: &str) -> String {
    let seen = format!(r#""dcs_last_seen": {dcs_last_seen}"#);
    let comma = if fields.is_empty() { "" } else { ", " };
    let (state, role) = (r#""state": "running""#, r#""role": "primary""#);
    let usual = [(r#""state""#, state), (r#""role""#, role)];
    let usual = usual.iter().filter(|(name, _)| !fields.contains(name)).map(|(_, field)| *field);
    let usual: Vec<&str> = usual.collect();
    let usual = [usual.join(", "), seen].join(", ");
    format!("{{{}{comma}{fields}}}", usual.trim_start_matches(", "))
}

fn answer(asked_at: Time, status: u16, body: &str) -> Answer {
    Answer {
        status,
        passed_on: Default::default(),
        body: body.as_bytes().into(),
        asked_at,
        date_unix_seconds: None,
        address: AddressId(0),
    }
}

/// Learns an answer that was asked for in the same millisecond.
fn learn(node: &mut Node, now: Now, path: &str, status: u16, body: &str) -> Verdict {
    node.learn(now, route(path), &answer(now.time, status, body))
}

fn validity(verdict: Verdict) -> Validity {
    match verdict {
        Verdict::Serve { validity, .. } => validity,
        other => panic!("{other:?}"),
    }
}

fn distrust(verdict: Verdict) -> Vec<Distrust> {
    match verdict {
        Verdict::Serve { distrust, .. } => distrust,
        other => panic!("{other:?}"),
    }
}

fn is_fetched_again(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::FetchAgain { .. })
}

/// A node whose intervals are known and whose HA loop was not seen yet.
fn unseen(ttl: u64, loop_wait: u64, retry_timeout: u64) -> Node {
    let mut node = Node::default();
    node.intervals.learn(now_at(9_990.0), Intervals { ttl, loop_wait, retry_timeout });
    node
}

/// The same, and its HA loop was seen in second 9,990.
fn seen(ttl: u64, loop_wait: u64, retry_timeout: u64) -> Node {
    let mut node = unseen(ttl, loop_wait, retry_timeout);
    learn(&mut node, now_at(9_990.0), "/health", 200, &body(9_990, ""));
    node
}

fn usual() -> Node {
    seen(30, 10, 10)
}

/// The Unix second from which on `/primary`'s 200 is no longer served stale.
fn stale_until(node: &mut Node, now: Now, body: &str) -> Option<u64> {
    if let Some(intervals) = node.intervals.last() {
        node.intervals.learn(now, intervals); // fetched again meanwhile
    }
    let until = validity(learn(node, now, "/primary", 200, body)).stale_until?;
    let offset_ms = until.unix_ms as i64 - until.time.as_ms() as i64;
    let is_past = until.unix_ms <= now.unix_ms;
    assert!(is_past || offset_ms == 9_900_000, "both clocks say the same");
    Some(until.unix_ms / 1_000)
}

/// Runs a table of rows `time | dcs_last_seen | our DCS read | stale until`. A row without a
/// `dcs_last_seen` has no answer, `-` means never stale.
fn run(node: &mut Node, table: &str) {
    for row in table.trim().lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [time, seen, read, expected] = cells[..] else { panic!("{row}") };
        let now = now_at(time.parse().expect("a time"));
        let words: Vec<&str> = read.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["begins", number] => node.dcs_read_begins(now, fetch(number)),
            ["ends", number] => node.fetch_ended(now, fetch(number), true, true),
            ["is", "abandoned", number] => node.fetch_ended(now, fetch(number), false, true),
            _ => panic!("{row}"),
        }
        if !seen.is_empty() {
            let seen = seen.parse().expect("a second");
            let until = stale_until(node, now, &body(seen, ""));
            let until = until.map_or("-".to_owned(), |until| until.to_string());
            assert_eq!(until, expected, "{row}");
        }
    }
}

fn fetch(number: &str) -> ConnId {
    ConnId { slot: number.parse().expect("a number"), generation: 0 }
}

#[test]
fn a_leader_is_believed_until_its_lease_is_not_sure() {
    run(&mut usual(), "10000.5 | 9999 | | 10009");
    run(&mut usual(), "10000.0 | 10000 | | 10010");
    // a cycle is known before the present one
    let cycle = "9997.0 | 9997 | | 10010\n10000.5 | 9999 | | 10014";
    run(&mut seen(20, 2, 3), cycle);
    // Patroni raises smaller values to 1 and 3
    run(&mut seen(20, 2, 0), cycle);
    run(&mut seen(20, 0, 4), cycle);
    // ZooKeeper ends a session after 40 s, however long ttl is
    run(&mut seen(60, 10, 10), "10000.5 | 9999 | | 10019");
}

#[test]
fn a_200_that_rests_on_no_lease_is_never_stale() {
    let table = [
        body(9_999, r#""pause": true"#),
        body(9_999, r#""cluster_unlocked": true"#),
        body(9_999, r#""failsafe_mode_is_active": true"#),
        body(9_999, r#""state": "stopping""#),
        r#"{"state": "running", "role": "primary"}"#.to_owned(),
        String::new(),
        body(10_001, ""), // the future
    ];
    for body in table {
        assert_eq!(stale_until(&mut usual(), now_at(10_000.5), &body), None, "{body}");
    }
    let mut unread = Node::default();
    assert_eq!(stale_until(&mut unread, now_at(10_000.5), &body(9_999, "")), None);
    let denied = learn(&mut usual(), now_at(10_000.5), "/primary", 503, &body(9_999, ""));
    assert_eq!(validity(denied).stale_until, None);
}

#[test]
fn only_some_of_the_other_routes_are_served_stale() {
    let stale = [Family::Leader, Family::Replica, Family::Health];
    for (path, family) in crate::routes::ROUTES {
        for status in [200, 503] {
            let now = now_at(10_000.5);
            let verdict = learn(&mut usual(), now, path, status, &body(9_999, ""));
            let expected = status == 200 && stale.contains(family);
            assert_eq!(validity(verdict).stale_until.is_some(), expected, "{path} {status}");
        }
    }
}

#[test]
fn a_fresh_200_older_than_a_second_ends_with_the_sure_lease() {
    let fresh = |node: &mut Node, body: &str| {
        let Validity { fresh_until, aging_until, .. } =
            validity(learn(node, now_at(10_000.5), "/primary", 200, body));
        (fresh_until.unix_ms, aging_until.unix_ms)
    };
    assert_eq!(fresh(&mut usual(), &body(9_999, "")), (10_029_000, 10_009_000));
    // the minimum that Patroni accepts, while its own is not known
    assert_eq!(fresh(&mut Node::default(), &body(9_999, "")), (10_019_000, 10_001_500));
    // ZooKeeper's session may end after 40 s
    assert_eq!(fresh(&mut seen(60, 10, 10), &body(9_999, "")), (10_039_000, 10_019_000));
    // a dcs_last_seen in the future, or none at all, says nothing
    assert_eq!(fresh(&mut usual(), &body(10_001, "")), (10_001_500, 10_001_500));
    assert_eq!(fresh(&mut usual(), ""), (10_001_500, 10_001_500));
}

#[test]
fn a_200_asked_for_after_its_bound_rests_on_patronis_word() {
    let word = |node: &mut Node, asked: f64, fields: &str| {
        let (asked, now) = (now_at(asked), now_at(10_050.5));
        let answer = answer(asked.time, 200, &body(10_000, fields));
        match node.learn(now, route("/primary"), &answer) {
            Verdict::Serve { validity, notice, .. } => {
                assert_eq!(validity.stale_until, None);
                Some((validity.fresh_until.unix_ms - asked.unix_ms, notice))
            }
            Verdict::FetchAgain { .. } => None,
            other => panic!("{other:?}"),
        }
    };
    let passed = Some(Notice::LeaseBoundPassed);
    assert_eq!(word(&mut usual(), 10_050.4, ""), Some((250, passed)));
    assert_eq!(word(&mut usual(), 10_050.4, r#""pause": true"#), Some((1_000, None)));
    let failsafe = r#""cluster_unlocked": true, "failsafe_mode_is_active": true"#;
    assert_eq!(word(&mut usual(), 10_050.4, failsafe), Some((1_000, None)));
    // D had passed before, and the ttl passed meanwhile
    let recent = || {
        let mut node = usual();
        node.intervals.learn(now_at(10_049.0), node.intervals.last().expect("intervals"));
        node
    };
    assert_eq!(word(&mut recent(), 10_029.9, ""), None);
    assert_eq!(word(&mut recent(), 10_030.0, ""), Some((250, passed)));
    // second 10,020 of an unknown ttl's minimum passed meanwhile
    assert_eq!(word(&mut Node::default(), 10_019.9, ""), None);
    assert_eq!(word(&mut Node::default(), 10_020.0, ""), Some((250, passed)));
}

#[test]
fn a_slow_answer_counts_where_no_lease_is_ever_sure() {
    // `ttl: 20` alone: Patroni lowers loop_wait to 1 s, and reads the DCS while it answers
    let mut node = seen(20, 10, 10);
    learn(&mut node, now_at(9_999.0), "/health", 200, &body(9_999, ""));
    let slow = answer(now_at(10_000.0).time, 200, &body(10_001, ""));
    let validity = validity(node.learn(now_at(10_001.5), route("/primary"), &slow));
    assert_eq!(validity.stale_until, None);
    assert_eq!(validity.aging_until.unix_ms, 10_001_000, "1 s after the question");
}

#[test]
fn either_clock_ends_it() {
    let until = Until::after_ms(now_at(10_000.0), 1_000);
    let (before, after) = (now_at(10_000.999), now_at(10_001.0));
    assert!(!until.is_over(before) && until.is_over(after));
    assert!(until.is_over(Now { unix_ms: after.unix_ms, ..before }));
    assert!(until.is_over(Now { time: after.time, ..before }));
}

#[test]
fn a_future_dcs_last_seen_is_not_remembered() {
    run(
        &mut usual(),
        "10000.0 | 10005 |          | -
         10006.0 |       | begins 1 |
         10007.0 | 10006 |          | -",
    );
    // nor one that is too little ahead for a skewed clock
    run(
        &mut usual(),
        "9999.9  | 10000 |          | -
         10006.0 |       | begins 1 |
         10007.0 | 10006 |          | -",
    );
}

#[test]
fn a_move_that_we_may_have_caused_is_no_renewal() {
    run(
        &mut usual(),
        "9995.0  | 9994  |                | 10004
         9998.2  |       | begins 1       |
         9999.0  | 9998  |                | 10004
         9999.1  |       | ends 1         |
         10000.0 | 9999  |                | 10004
         10000.5 | 10000 |                | 10010
         10001.0 |       | begins 2       |
         10004.0 |       | is abandoned 2 |
         10004.0 |       | ends 7         |
         10021.0 | 10020 |                | 10010
         10033.9 | 10030 |                | 10010
         10035.0 | 10034 |                | 10010
         10045.0 | 10045 |                | 10030
         10055.0 | 10055 |                | 10065",
    );
    // no cycle before it is known
    run(
        &mut unseen(30, 10, 10),
        "9998.2 |      | begins 1 |
         9999.0 | 9998 |          | -",
    );
}

#[test]
fn a_move_first_seen_after_our_read_is_ours_whatever_its_second() {
    // Patroni's clock is 5 s slow, which its seconds do not show
    run(
        &mut unseen(30, 10, 10),
        "9990.0  | 9983 |          | -
         9995.0  | 9988 |          | 9998
         9998.0  |      | begins 1 |
         9998.1  |      | ends 1   |
         9999.0  | 9993 |          | 9998
         9999.5  | 9993 |          | 9998
         10004.0 | 9999 |          | 10009",
    );
}

#[test]
fn only_an_answer_asked_for_after_our_read_shows_its_effect() {
    let mut reads = DcsReads::default();
    let is_ours = |reads: &mut DcsReads, asked: f64, seen: u64| {
        reads.learn_dcs_last_seen(now_at(asked + 1.0), now_at(asked).time, seen)
    };
    assert!(!is_ours(&mut reads, 9_990.0, 9_983));
    reads.begin(now_at(9_995.0), fetch("1"));
    reads.end(now_at(9_995.5), fetch("1"), true);
    assert!(is_ours(&mut reads, 9_995.2, 9_988), "it may have been answered before");
    assert!(is_ours(&mut reads, 9_997.0, 9_990));
    assert!(!is_ours(&mut reads, 9_999.0, 9_992));
    // one that Patroni has not seen moved nothing
    reads.begin(now_at(10_000.0), fetch("2"));
    reads.cancel(now_at(10_000.1), fetch("2"));
    assert!(!is_ours(&mut reads, 10_001.0, 9_997));
    // after a jump of the clock one at work may report any time
    reads.begin(now_at(10_002.0), fetch("3"));
    reads.clock_jumped(10_003_000);
    assert!(reads.cover(9_000) && reads.cover(11_000));
}

#[test]
fn a_loop_that_hung_has_to_move_on_twice() {
    run(
        &mut usual(),
        "10004.0 | 9995  | | 10005
         10020.0 | 10020 | | 10025
         10022.0 | 10020 | | 10025
         10022.0 | 9995  | | 10005
         10022.0 | 10020 | | 10025
         10030.0 | 10030 | | 10040",
    );
    // the cycle before the first one seen is not known
    run(
        &mut unseen(30, 10, 10),
        "10000.0 | 9999  | | -
         10001.0 | 9999  | | -
         10010.0 | 10009 | | 10019",
    );
    // nor is it if only our own moves were seen
    run(
        &mut unseen(30, 10, 10),
        "9999.0  | 9990  |          | -
         10000.0 |       | begins 1 |
         10000.1 |       | ends 1   |
         10004.0 | 10000 |          | -
         10010.0 | 10010 |          | 10020",
    );
}

#[test]
fn an_overtaken_dcs_last_seen_lengthens_nothing() {
    run(
        &mut unseen(30, 10, 10),
        "9970.5  | 9970  | | -
         10005.5 | 10005 | | 10000
         10005.6 | 9995  | | 10000",
    );
    // nor does one that a read of ours had set
    run(
        &mut usual(),
        "9993.0  | 9992  |          | 10002
         9995.0  |       | begins 1 |
         9995.5  |       | ends 1   |
         9996.0  | 9995  |          | 10002
         10003.0 | 10002 |          | 10012
         10004.0 | 9995  |          | -",
    );
}

#[test]
fn previous_intervals_count_while_a_lease_under_them_may_last() {
    let until = |node: &mut Node, now: f64, seen: u64| {
        let Validity { fresh_until, stale_until, .. } =
            validity(learn(node, now_at(now), "/primary", 200, &body(seen, "")));
        (stale_until.map(|until| until.unix_ms / 1_000), fresh_until.unix_ms / 1_000)
    };
    let intervals = |ttl, loop_wait| Intervals { ttl, loop_wait, retry_timeout: 10 };
    let mut node = usual();
    until(&mut node, 10_010.0, 10_009);
    assert_eq!(until(&mut node, 10_019.9, 10_019), (Some(10_029), 10_049));
    assert_eq!(until(&mut node, 10_020.0, 10_019), (None, 10_039), "fetched 30 s ago");
    assert!(!node.intervals.learn(now_at(10_021.0), intervals(30, 10)), "the same ones");
    assert!(node.intervals.learn(now_at(10_022.0), intervals(40, 10)));
    assert_eq!(until(&mut node, 10_030.0, 10_029), (Some(10_039), 10_059), "not yet");
    assert!(node.intervals.learn(now_at(10_031.0), intervals(40, 25)));
    assert_eq!(until(&mut node, 10_040.0, 10_039), (Some(10_044), 10_069), "shorter now");
    node.intervals.learn(now_at(10_060.0), intervals(40, 25));
    until(&mut node, 10_060.0, 10_060);
    node.intervals.learn(now_at(10_071.5), intervals(40, 25));
    assert_eq!(until(&mut node, 10_072.0, 10_070), (Some(10_075), 10_110), "the last ones");
}

#[test]
fn previous_intervals_count_for_their_own_ttl() {
    let mut known = KnownIntervals::default();
    let intervals = |ttl, loop_wait| Intervals { ttl, loop_wait, retry_timeout: 10 };
    known.learn(now_at(10_000.0), intervals(40, 25));
    known.learn(now_at(10_001.0), intervals(30, 10));
    known.learn(now_at(10_030.0), intervals(30, 10));
    let sure = |seconds| known.bounds(now_at(seconds)).map(|bounds| bounds.sure_seconds);
    assert_eq!(sure(10_040.9), Some(5));
    assert_eq!(sure(10_041.0), Some(10));
}

#[test]
fn intervals_are_fetched_one_at_a_time_a_failure_sooner() {
    let mut known = KnownIntervals::default();
    let at = |seconds| now_at(seconds).time;
    assert!(known.begin_fetch(at(10_000.0)));
    known.expire(at(10_000.1));
    assert!(!known.begin_fetch(at(10_000.1)), "one is in flight");
    known.fetch_ended(at(10_001.0), false);
    assert!(!known.begin_fetch(at(10_005.9)) && known.begin_fetch(at(10_006.0)));
    known.fetch_ended(at(10_006.0), true);
    assert!(!known.begin_fetch(at(10_014.9)) && known.begin_fetch(at(10_015.0)));
    assert_eq!(Intervals::from_json(b"[30, 10, 10]"), None);
    assert_eq!(Intervals::from_json(b"{}"), Some(Intervals::default()));
}

#[test]
fn many_reads_are_remembered_as_fewer_longer_ones() {
    let mut reads = DcsReads::default();
    let id = |slot: u32| ConnId { slot, generation: 0 };
    for second in 0..200 {
        reads.begin(now_at(10_000.0 + f64::from(second)), id(second));
        reads.end(now_at(10_000.1 + f64::from(second)), id(second), true);
    }
    assert!(reads.count() <= READS_MAX);
    for second in [10_000, 10_050, 10_136, 10_150, 10_199] {
        assert!(reads.cover(second), "{second}");
    }
    assert!(!reads.cover(10_200));
    reads.begin(now_at(10_199.1 + RELEVANT_MS as f64 / 1e3), id(200));
    assert_eq!(reads.count(), 1);
}

#[test]
fn a_jump_right_after_a_reload_is_noticed() {
    let mut node = usual();
    node.observe_clock(now_at(10_000.0));
    node.forget(now_at(10_000.0).time);
    let now = now_at(10_000.0);
    let jumped = Now { unix_ms: now.unix_ms + 2_930, ..now };
    assert_eq!(node.observe_clock(jumped), Some(Distrust::Answers));
}

#[test]
fn after_a_jump_patroni_has_to_move_on_twice() {
    let jumped = |seconds: f64, by_ms: i64| {
        let now = now_at(seconds);
        Now { unix_ms: now.unix_ms.saturating_add_signed(by_ms), ..now }
    };
    let mut node = usual();
    assert_eq!(node.observe_clock(now_at(10_000.0)), None);
    assert_eq!(node.observe_clock(jumped(10_001.0, JUMP_MS_MIN as i64)), None, "slewing");
    for by_ms in [-5_000, 5_000] {
        let mut node = usual();
        node.observe_clock(now_at(10_000.0));
        assert_eq!(node.observe_clock(jumped(10_001.0, by_ms)), Some(Distrust::Answers));
        assert_eq!(node.observe_clock(jumped(10_002.0, by_ms)), None, "once");
        let first = jumped(10_002.0, by_ms).unix_ms / 1_000 - 3;
        let mut until = |seconds: f64, seen: u64| {
            let verdict =
                learn(&mut node, jumped(seconds, by_ms), "/primary", 200, &body(seen, ""));
            validity(verdict).stale_until.map(|until| until.unix_ms / 1_000)
        };
        assert_eq!(until(10_002.0, first), None);
        assert_eq!(until(10_003.0, first), None);
        // the lease may rest on a second of the clock before the jump
        assert_eq!(until(10_008.0, first + 4), None);
        assert_eq!(until(10_010.0, first + 10), Some(first + 20));
    }
}

#[test]
fn a_skewed_clock_of_patroni_allows_no_stale_leader() {
    let mut node = usual();
    let now = now_at(10_000.5);
    let dated =
        |date| Answer { date_unix_seconds: Some(date), ..answer(now.time, 200, &body(9_999, "")) };
    let mut until = |date| match node.learn(now, route("/primary"), &dated(date)) {
        Verdict::Serve { validity, notice, .. } => (validity.stale_until.is_some(), notice),
        other => panic!("{other:?}"),
    };
    assert_eq!(until(10_000), (true, None));
    assert_eq!(until(9_999), (false, Some(Notice::ClockSkewed)));
    assert_eq!(until(10_000), (false, None), "for a minute");
}

#[test]
fn a_leader_routes_503_ends_the_routes_it_speaks_for() {
    let table = [
        ("/leader", LeaderRoutes::Any, [true, true, true]),
        ("/primary", LeaderRoutes::Primary, [false, true, false]),
        ("/", LeaderRoutes::Primary, [false, true, false]),
        ("/standby-leader", LeaderRoutes::StandbyLeader, [false, false, true]),
    ];
    for (path, routes, ends) in table {
        let mut node = usual();
        let (asked, now, later) = (now_at(10_000.0), now_at(10_000.1), now_at(10_000.2));
        let denied = learn(&mut node, now, path, 503, &body(9_999, ""));
        assert_eq!(distrust(denied), [Distrust::Leaders(routes)], "{path}");
        for (other, ends) in ["/leader", "/master", "/standby_leader"].into_iter().zip(ends) {
            // the same millisecond may be before
            for asked in [asked, now] {
                let before = answer(asked.time, 200, &body(9_999, ""));
                let verdict = node.learn(later, route(other), &before);
                assert_eq!(is_fetched_again(&verdict), ends, "{path} {other}");
            }
            let after = answer(later.time, 200, &body(9_999, ""));
            assert!(!is_fetched_again(&node.learn(later, route(other), &after)));
        }
    }
    for path in ["/replica", "/health", "/liveness"] {
        let denied = learn(&mut usual(), now_at(10_000.1), path, 503, &body(9_999, ""));
        assert_eq!(distrust(denied), [], "{path}");
    }
}

#[test]
fn an_unlocked_cluster_ends_all_leader_answers_once() {
    let mut node = usual();
    let unlocked = body(9_999, r#""cluster_unlocked": true"#);
    let mut ends = |body: &str| distrust(learn(&mut node, now_at(10_000.0), "/replica", 200, body));
    let all = Distrust::Leaders(LeaderRoutes::Any);
    assert_eq!(ends(&unlocked), [all, Distrust::StaleLeaders]);
    assert_eq!(ends(&unlocked), [Distrust::StaleLeaders]);
    assert_eq!(ends(&body(9_999, "")), []);
    let failsafe = body(9_999, r#""cluster_unlocked": true, "failsafe_mode_is_active": true"#);
    assert_eq!(ends(&failsafe), [Distrust::StaleLeaders]);
}

#[test]
fn the_later_request_wins_over_the_later_answer() {
    let mut node = Node::default();
    let (first, second, now) = (now_at(10_000.0), now_at(10_000.1), now_at(10_000.5));
    let primary = answer(second.time, 200, &body(9_999, ""));
    assert_eq!(distrust(node.learn(now, route("/primary"), &primary)), []);
    let replica = answer(first.time, 200, &body(9_999, r#""role": "replica""#));
    assert!(is_fetched_again(&node.learn(now, route("/replica"), &replica)));
    let replica = answer(now.time, 200, &body(9_999, r#""role": "replica""#));
    assert_eq!(distrust(node.learn(now, route("/replica"), &replica)), [Distrust::Answers]);
}

#[test]
fn what_a_later_question_brought_against_the_lease_counts() {
    let (first, second, third) = (now_at(10_000.0), now_at(10_000.1), now_at(10_000.2));
    for against in
        [r#""pause": true"#, r#""failsafe_mode_is_active": true"#, r#""state": "stopped""#]
    {
        let mut node = unseen(30, 10, 10);
        node.lease.learn(9_980);
        node.lease.learn(9_990);
        let paused = answer(third.time, 200, &body(9_999, against));
        node.learn(now_at(10_000.3), route("/health"), &paused);
        let overtaken = answer(first.time, 200, &body(9_999, ""));
        let verdict = node.learn(now_at(10_000.4), route("/primary"), &overtaken);
        assert_eq!(validity(verdict).stale_until, None, "{against}");
        assert_eq!(node.witness_subject(), Err(Why::NotUnderLease));
        // and the first question did not make the second the last one
        let replica = answer(second.time, 200, &body(9_999, r#""role": "replica""#));
        let verdict = node.learn(now_at(10_000.5), route("/replica"), &replica);
        assert!(is_fetched_again(&verdict), "{verdict:?}");
    }
}

#[test]
fn an_overtaken_answer_keeps_its_own_bound() {
    let mut node = Node::default();
    let without = answer(now_at(10_029.9).time, 200, r#"{"state": "running", "role": "primary"}"#);
    node.learn(now_at(10_029.95), route("/leader"), &without);
    let mut learn = |now: f64| {
        // the smallest ttl, 20 s, ends in second 10,030
        let overtaken = answer(now_at(10_029.8).time, 200, &body(10_010, ""));
        node.learn(now_at(now), route("/primary"), &overtaken)
    };
    let in_time = validity(learn(10_029.96));
    assert_eq!((in_time.fresh_until.unix_ms, in_time.stale_until), (10_030_000, None));
    assert!(is_fetched_again(&learn(10_030.1)), "it passed meanwhile");
}

#[test]
fn another_node_at_another_address_is_not_believed() {
    let of = |name: &str, address: u32| Answer {
        address: AddressId(address),
        ..answer(
            now_at(10_000.0).time,
            200,
            &body(9_999, &format!(r#""patroni": {{"name": "{name}", "scope": "main"}}"#)),
        )
    };
    let mut node = usual();
    let mut learn =
        |name, address| node.learn(now_at(10_000.0), route("/primary"), &of(name, address));
    let other = |is_news| Verdict::OtherNode { difference: "this is pg2, not pg1".into(), is_news };
    assert_eq!(distrust(learn("pg1", 0)), []);
    assert_eq!(learn("pg2", 1), other(true));
    assert_eq!(learn("pg2", 1), other(false));
    let Verdict::Serve { notice, .. } = learn("pg1", 0) else { panic!("the first node is back") };
    assert_eq!(notice, Some(Notice::FirstNodeBack));
    // the first node moved to another address
    assert_eq!(distrust(learn("pg1", 2)), []);
    // a renamed or reinstalled node
    let Verdict::Serve { notice, distrust: ends, .. } = learn("pg3", 2) else { panic!("renamed") };
    assert_eq!((notice, &ends[..]), (Some(Notice::Renamed), &[Distrust::Everything][..]));
    assert_eq!(node.intervals.last(), None, "it may be of another cluster");
    let now = now_at(10_100.0); // they may have changed just now
    node.intervals.learn(now, Intervals { ttl: 40, loop_wait: 5, retry_timeout: 5 });
    let bounds = node.intervals.bounds(now).map(|bounds| (bounds.ttl_seconds, bounds.sure_seconds));
    assert_eq!(bounds, Some((30, 10)), "or of the same, under the previous ones");
    node.forget_address();
    let mut learn =
        |name, address| node.learn(now_at(10_000.0), route("/primary"), &of(name, address));
    assert_eq!(distrust(learn("pg2", 1)), [Distrust::Everything]);
    assert_eq!(distrust(learn("pg2", 1)), []);
}

#[test]
fn intervals_of_another_address_are_not_learned() {
    let mut node = usual();
    let now = now_at(10_000.0);
    let mut learn = |address, ttl: u64| {
        let body = format!(r#"{{"ttl": {ttl}, "loop_wait": 10, "retry_timeout": 10}}"#);
        let answer = Answer { address: AddressId(address), ..answer(now.time, 200, &body) };
        node.learn_intervals(now, Some(&answer));
        node.intervals.last().map(|intervals| intervals.ttl)
    };
    assert_eq!(learn(1, 40), Some(30));
    assert_eq!(learn(0, 40), Some(40));
    node.forget_address();
    let answer = Answer { address: AddressId(1), ..answer(now.time, 200, "{}") };
    node.learn_intervals(now, Some(&answer));
    assert_eq!(node.intervals.last(), Some(Intervals::default()));
}

#[test]
fn a_renamed_node_has_no_lease_of_the_previous_one() {
    let named = |seen, name| body(seen, &format!(r#""patroni": {{"name": "{name}"}}"#));
    let mut node = usual();
    let until = |node: &mut Node, seconds, seen, name| {
        stale_until(node, now_at(seconds), &named(seen, name))
    };
    assert_eq!(until(&mut node, 10_000.0, 9_999, "pg1"), Some(10_009));
    assert_eq!(until(&mut node, 10_001.0, 10_000, "pg2"), None);
    node.intervals.learn(now_at(10_001.0), Intervals::default());
    assert_eq!(until(&mut node, 10_010.0, 10_009, "pg2"), Some(10_019));
}

#[test]
fn a_changing_node_is_in_transition_for_a_while() {
    let mut node = usual();
    let mut until = |seconds: f64, fields: &str| {
        learn(&mut node, now_at(seconds), "/health", 200, &body(9_990, fields));
        let until = node.in_transition_until();
        (until > now_at(seconds).time).then(|| until.as_ms() as f64 / 1e3 + 9_900.0)
    };
    assert_eq!(until(10_000.0, ""), None);
    let stopping = r#""state": "stopping""#;
    assert_eq!(until(10_001.0, stopping), Some(10_031.0));
    assert_eq!(until(10_020.0, stopping), Some(10_031.0));
    assert_eq!(until(10_031.0, stopping), None, "it stops for 30 s");
    let starting = r#""state": "starting", "role": "replica""#;
    assert_eq!(until(10_040.0, starting), Some(10_070.0));
    assert_eq!(until(10_042.0, r#""role": "replica""#), Some(10_045.0));
    assert_eq!(until(10_050.0, r#""role": "replica""#), None);
    assert_eq!(until(10_051.0, r#""state": "unknown", "role": "replica""#), None);
}

#[test]
fn a_fenced_leader_ends_when_its_loop_hangs() {
    let verdict = |seconds: f64, fields: &str| {
        let mut node = usual();
        node.set_fenced(true);
        learn(&mut node, now_at(seconds), "/primary", 200, &body(9_995, fields))
    };
    // loop_wait + retry_timeout after second 9,995
    let before = validity(verdict(10_014.9, ""));
    assert_eq!(before.fresh_until.unix_ms, 10_015_000);
    let is_fenced = |verdict: &Verdict| matches!(verdict, Verdict::Fenced { .. });
    assert!(is_fenced(&verdict(10_015.0, "")));
    for fields in [r#""pause": true"#, r#""failsafe_mode_is_active": true"#] {
        assert!(!is_fenced(&verdict(10_016.0, fields)), "{fields}");
    }
    // what else it says counts all the same
    let Verdict::Fenced { distrust } = verdict(10_015.0, r#""state": "stopping""#) else {
        panic!("it is fenced");
    };
    assert_eq!(distrust, [Distrust::Answers, Distrust::StaleLeaders]);
    let mut open = usual();
    let verdict = learn(&mut open, now_at(10_015.0), "/primary", 200, &body(9_995, ""));
    assert!(!is_fenced(&verdict));
    // nor is one whose clock is skewed
    let mut node = usual();
    node.set_fenced(true);
    let now = now_at(10_015.0);
    let slow =
        Answer { date_unix_seconds: Some(10_000), ..answer(now.time, 200, &body(9_995, "")) };
    assert!(!is_fenced(&node.learn(now, route("/primary"), &slow)), "a skewed clock");
    // nor is a replica, nor a leader whose intervals are not known
    for (mut node, path) in [(usual(), "/replica"), (Node::default(), "/primary")] {
        node.set_fenced(true);
        let verdict = learn(&mut node, now_at(10_015.0), path, 200, &body(9_995, ""));
        assert!(!is_fenced(&verdict), "{path}");
    }
}

#[test]
fn intervals_in_force_fulfil_patronis_rule() {
    // ttl, loop_wait, retry_timeout as written; loop_wait, retry_timeout in force
    let table = [
        ((30, 10, 10), (10, 10)),
        ((20, 10, 10), (1, 9)),
        ((20, 10, 6), (8, 6)),
        ((21, 10, 10), (1, 10)),
        ((60, 10, 10), (10, 10)),
        ((30, u64::MAX, u64::MAX), (1, 14)),
        ((0, 10, 10), (0, 0)),
    ];
    for ((ttl, loop_wait, retry_timeout), in_force) in table {
        let lowered = Intervals { ttl: 30, loop_wait, retry_timeout }.lowered_to(ttl);
        assert_eq!((lowered.loop_wait, lowered.retry_timeout), in_force, "{ttl}");
        assert!(lowered.loop_wait + 2 * lowered.retry_timeout <= ttl, "{ttl}");
    }
}

#[test]
fn evidence_is_about_patronis_last_report() {
    let member = r#""timeline": 2, "database_system_identifier": "77",
        "patroni": {"name": "pg1", "scope": "main"}"#;
    let evidence = Evidence {
        standing: Standing::Leader,
        until: Until::after_ms(now_at(10_000.0), 15_000),
        lease: None,
    };
    let at = now_at(10_000.2).time;
    let known = || {
        let mut node = usual();
        learn(&mut node, now_at(10_000.0), "/primary", 200, &body(9_999, member));
        assert_eq!(node.testify(at, &Outcome::Evidence(evidence), false), None);
        node
    };
    let holds = |node: &Node, seconds, path| node.evidence(now_at(seconds), route(path)).is_some();
    let node = known();
    assert!(holds(&node, 10_014.9, "/primary") && holds(&node, 10_014.9, "/replica"));
    assert!(!holds(&node, 10_015.0, "/primary"), "it has its own end");
    // the same once more, and something else
    for (fields, holds_on) in [
        (member.to_owned(), true),
        (member.replace("2,", "3,"), false),
        (format!(r#"{member}, "pause": true"#), false),
        (format!(r#"{member}, "role": "replica""#), false),
        (member.replace("pg1", "pg2"), false),
    ] {
        let mut node = known();
        learn(&mut node, now_at(10_001.0), "/primary", 200, &body(9_999, &fields));
        assert_eq!(holds(&node, 10_002.0, "/primary"), holds_on, "{fields}");
    }
    let mut node = known();
    let contradiction = Outcome::Contradiction(Why::Paused);
    let ended = node.testify(at, &contradiction, false);
    assert_eq!(ended, Some(Distrust::Leaders(LeaderRoutes::Any)));
    assert!(!holds(&node, 10_002.0, "/primary"));
    for (asked, is_stale_allowed) in [(10_000.2, false), (10_000.3, true)] {
        let answer = answer(now_at(asked).time, 200, &body(9_999, member));
        let verdict = node.learn(now_at(10_000.4), route("/primary"), &answer);
        assert_eq!(validity(verdict).stale_until.is_some(), is_stale_allowed, "{asked}");
    }
    assert_eq!(known().testify(at, &contradiction, true), Some(Distrust::StaleLeaders));
    let mut node = known();
    assert_eq!(node.testify(at, &Outcome::Nothing(Why::OtherLease), false), None);
    assert!(holds(&node, 10_002.0, "/primary"), "a failed read says nothing");
}
