//! The safety decision as a whole: what comes in, and until when it may be served.

use super::dcs_reads::{READS_MAX, RELEVANT_MS};
use super::wall_clock::JUMP_MS_MIN;
use super::*;

/// The daemon is 100 s old, and it is Unix second 10,000.
fn now_at(unix_seconds: f64) -> Now {
    let unix_ms = (unix_seconds * 1e3) as u64;
    Now { time: Time::from_ms(unix_ms - 9_900_000), unix_ms }
}

fn leader(seen: u64) -> NodeReport {
    NodeReport {
        state: "running".into(),
        role: "primary".into(),
        timeline: Some(2),
        dcs_last_seen: Some(seen),
        ..NodeReport::default()
    }
}

/// Of a node whose HA loop was not seen yet.
fn unseen(intervals: Intervals) -> Node {
    let mut node = Node::default();
    node.intervals.learn(now_at(9_990.0), intervals);
    node
}

fn knowing(intervals: Intervals) -> Node {
    let mut lease = unseen(intervals);
    judge(&mut lease, now_at(9_990.0), Family::Health, 200, Some(&leader(9_990)));
    lease
}

fn known() -> Node {
    knowing(Intervals::default())
}

fn read(slot: u32) -> ConnId {
    ConnId { slot, generation: 0 }
}

fn judge(
    node: &mut Node,
    now: Now,
    family: Family,
    status: u16,
    report: Option<&NodeReport>,
) -> Validity {
    let body = report.map_or(String::new(), |report| {
        let NodeReport { state, role, pause, cluster_unlocked, .. } = report;
        let failsafe = report.failsafe_mode_is_active;
        let seen = report.dcs_last_seen.map_or("null".to_owned(), |seen| seen.to_string());
        format!(
            r#"{{"state": "{state}", "role": "{role}", "dcs_last_seen": {seen}, "pause": {pause},
            "cluster_unlocked": {cluster_unlocked}, "failsafe_mode_is_active": {failsafe}}}"#
        )
    });
    let body = body.into_bytes().into();
    let answer = Answer { status, content_type: None, body, asked_at: now.time };
    node.learn(now, family, &answer, false).validity
}

fn jumps(node: &mut Node, now: Now) -> bool {
    node.observe_clock(now) != Distrust::Nothing
}

/// The second from which on a leader's answer that came at `now` is no longer served stale.
fn stale_until(lease: &mut Node, now: f64, status: &NodeReport) -> Option<f64> {
    if let Some(intervals) = lease.intervals.current() {
        lease.intervals.learn(now_at(now), intervals); // fetched again meanwhile
    }
    let validity = judge(lease, now_at(now), Family::Leader, 200, Some(status));
    validity.stale_until.map(|until| {
        let offset_ms = until.unix_ms as i64 - until.time.as_ms() as i64;
        let is_past = until.unix_ms <= now_at(now).unix_ms;
        assert!(is_past || offset_ms == 9_900_000, "both clocks say the same");
        until.unix_ms as f64 / 1e3
    })
}

#[test]
fn a_node_says_what_it_is() {
    let body = br#"{"state": "running", "role": "primary", "xlog": {"location": 1}, "timeline": 2,
        "dcs_last_seen": 9999, "pause": true}"#;
    let status = NodeReport { pause: true, ..leader(9_999) };
    assert_eq!(NodeReport::from_json(body), Some(status));
    for body in ["", "[]", "{}", "{\"state\": 1}", "{\"state\": \"running\""] {
        assert_eq!(NodeReport::from_json(body.as_bytes()), None, "{body}");
    }
}

#[test]
fn patronis_intervals_have_patronis_defaults() {
    let table = [
        (r#"{"ttl": 20, "loop_wait": 2, "retry_timeout": 3, "x": {}}"#, Some((20, 2, 3))),
        ("{}", Some((30, 10, 10))),
        (r#"{"ttl": 60}"#, Some((60, 10, 10))),
        (r#"{"ttl": "x"}"#, None),
        ("[20, 2, 3]", None),
        ("", None),
    ];
    for (body, intervals) in table {
        let intervals = intervals.map(|(ttl, loop_wait, retry_timeout)| Intervals {
            ttl,
            loop_wait,
            retry_timeout,
        });
        assert_eq!(Intervals::from_json(body.as_bytes()), intervals, "{body}");
    }
}

#[test]
fn a_leader_is_believed_until_the_lease_is_not_sure() {
    assert_eq!(stale_until(&mut known(), 10_000.5, &leader(9_999)), Some(10_009.0));
    for (loop_wait, retry_timeout) in [(2, 3), (2, 0), (0, 4)] {
        // too small values are raised to 1 and 3
        let mut lease = knowing(Intervals { ttl: 20, loop_wait, retry_timeout });
        stale_until(&mut lease, 9_997.0, &leader(9_997));
        let until = stale_until(&mut lease, 10_000.5, &leader(9_999));
        assert_eq!(until, Some(10_014.0));
    }
}

#[test]
fn and_not_at_all_when_its_word_does_not_rest_on_a_lease() {
    let table = [
        NodeReport { pause: true, ..leader(9_999) },
        NodeReport { cluster_unlocked: true, ..leader(9_999) },
        NodeReport { failsafe_mode_is_active: true, ..leader(9_999) },
        NodeReport { state: "stopping".into(), ..leader(9_999) },
        NodeReport { dcs_last_seen: None, ..leader(9_999) },
        leader(10_001), // the future
    ];
    for status in table {
        assert_eq!(stale_until(&mut known(), 10_000.5, &status), None, "{status:?}");
    }
    let mut unread = Node::default();
    assert_eq!(stale_until(&mut unread, 10_000.5, &leader(9_999)), None);
    let now = now_at(10_000.5);
    assert_eq!(judge(&mut known(), now, Family::Leader, 200, None).stale_until, None);
    assert_eq!(
        judge(&mut known(), now, Family::Leader, 503, Some(&leader(9_999))).stale_until,
        None
    );
}

#[test]
fn other_routes_risk_only_errors_and_some_must_never_be_old() {
    for (family, code, may) in [
        (Family::Replica, 200, true),
        (Family::Health, 200, true),
        (Family::Replica, 503, false),
        (Family::Status, 200, false),
        (Family::Liveness, 200, false),
        (Family::Readiness, 200, false),
        (Family::Metrics, 200, false),
        (Family::Topology, 200, false),
    ] {
        let validity = judge(&mut known(), now_at(10_000.5), family, code, Some(&leader(9_999)));
        assert_eq!(validity.stale_until.is_some(), may, "{family:?} {code}");
        assert_eq!(validity.fresh_until, Until::NEVER);
    }
}

#[test]
fn from_memory_a_leader_leads_no_longer_than_its_lease_can_last() {
    let validity = judge(&mut known(), now_at(10_000.5), Family::Leader, 200, Some(&leader(9_999)));
    assert!(!validity.fresh_until.is_over(now_at(10_028.999)));
    assert!(validity.fresh_until.is_over(now_at(10_029.0)));
    // the least that Patroni accepts, while its own is not known
    let mut unread = Node::default();
    let validity = judge(&mut unread, now_at(10_000.5), Family::Leader, 200, Some(&leader(9_999)));
    assert!(validity.aging_until.is_over(now_at(10_019.0)));
    // one that saw the DCS in the future says nothing of it
    let validity =
        judge(&mut known(), now_at(10_000.5), Family::Leader, 200, Some(&leader(10_001)));
    assert!(validity.fresh_until.is_over(now_at(10_001.5)));
    // nothing is known at all
    let validity = judge(&mut known(), now_at(10_000.5), Family::Leader, 200, None);
    assert!(!validity.fresh_until.is_over(now_at(10_001.4)));
    assert!(validity.fresh_until.is_over(now_at(10_001.5)));
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
fn the_present_second_is_seen_and_the_next_is_not() {
    assert_eq!(stale_until(&mut known(), 10_000.0, &leader(10_000)), Some(10_010.0));
    let mut lease = known();
    assert_eq!(stale_until(&mut lease, 10_000.0, &leader(10_005)), None);
    // nor is it remembered for the time when it is the past
    lease.dcs_read_begins(now_at(10_006.0), read(1));
    assert_eq!(stale_until(&mut lease, 10_007.0, &leader(10_006)), None);
}

#[test]
fn what_our_own_reads_moved_is_no_sign_of_renewal() {
    let mut lease = known();
    assert_eq!(stale_until(&mut lease, 9_995.0, &leader(9_994)), Some(10_004.0));
    lease.dcs_read_begins(now_at(9_998.2), read(1));
    // while it is on its way, any second from its beginning may be its doing
    assert_eq!(stale_until(&mut lease, 9_999.0, &leader(9_998)), Some(10_004.0));
    lease.dcs_reads.end(now_at(9_999.1), read(1), true);
    assert_eq!(stale_until(&mut lease, 10_000.0, &leader(9_999)), Some(10_004.0));
    assert_eq!(stale_until(&mut lease, 10_000.5, &leader(10_000)), Some(10_010.0));
    // a fetch we gave up on may be carried out later
    lease.dcs_read_begins(now_at(10_001.0), read(2));
    lease.dcs_reads.end(now_at(10_004.0), read(2), false);
    lease.dcs_reads.patroni_answered(now_at(10_004.0), lease.intervals.dcs_read_ms_max());
    assert_eq!(stale_until(&mut lease, 10_021.0, &leader(10_020)), Some(10_010.0));
    // the cycle before this one may be the one of second 10,000
    assert_eq!(stale_until(&mut lease, 10_036.0, &leader(10_035)), Some(10_030.0));
    // also much later, when it was frozen meanwhile
    lease.dcs_read_begins(now_at(10_041.0), read(3));
    lease.dcs_reads.end(now_at(10_044.0), read(3), false);
    lease.dcs_reads.patroni_answered(now_at(10_100.0), lease.intervals.dcs_read_ms_max());
    assert_eq!(stale_until(&mut lease, 10_100.0, &leader(10_100)), Some(10_030.0));
    assert_eq!(stale_until(&mut lease, 10_132.0, &leader(10_131)), Some(10_065.0));
    assert_eq!(stale_until(&mut lease, 10_140.0, &leader(10_140)), Some(10_150.0));
    // nothing before it is known
    let mut lease = unseen(Intervals::default());
    lease.dcs_read_begins(now_at(9_998.2), read(1));
    assert_eq!(stale_until(&mut lease, 9_999.0, &leader(9_998)), None);
}

#[test]
fn a_loop_that_hung_has_to_move_on_twice() {
    let mut lease = known();
    assert_eq!(stale_until(&mut lease, 10_020.0, &leader(9_995)), Some(10_005.0));
    // it read the DCS again, and may hang before it renews the lease of second 9,995
    assert_eq!(stale_until(&mut lease, 10_020.0, &leader(10_020)), Some(10_025.0));
    assert_eq!(stale_until(&mut lease, 10_022.0, &leader(10_020)), Some(10_025.0));
    // an answer that was overtaken is no way round that
    assert_eq!(stale_until(&mut lease, 10_022.0, &leader(9_995)), Some(10_005.0));
    assert_eq!(stale_until(&mut lease, 10_022.0, &leader(10_020)), Some(10_025.0));
    assert_eq!(stale_until(&mut lease, 10_030.0, &leader(10_030)), Some(10_040.0));
    // nothing is known of the cycle before when only what we moved ourselves was seen
    let mut ours = unseen(Intervals::default());
    ours.dcs_read_begins(now_at(10_000.0), read(1));
    ours.dcs_reads.end(now_at(10_000.1), read(1), true);
    assert_eq!(stale_until(&mut ours, 10_029.0, &leader(10_000)), None);
    assert_eq!(stale_until(&mut ours, 10_030.0, &leader(10_030)), None);
    assert_eq!(stale_until(&mut ours, 10_040.0, &leader(10_040)), Some(10_050.0));
    // nor when it is seen for the first time
    let mut first = unseen(Intervals::default());
    assert_eq!(stale_until(&mut first, 10_000.0, &leader(9_999)), None);
    assert_eq!(stale_until(&mut first, 10_001.0, &leader(9_999)), None);
    assert_eq!(stale_until(&mut first, 10_010.0, &leader(10_009)), Some(10_019.0));
    // nor is a clock that was set, nor a node that talks nonsense
    jumps(&mut lease, now_at(10_031.0));
    let now = now_at(10_061.0);
    jumps(&mut lease, Now { time: now_at(10_032.0).time, ..now });
    assert_eq!(stale_until(&mut lease, 10_061.0, &leader(10_030)), None);
    assert_eq!(stale_until(&mut lease, 10_061.0, &leader(10_061)), None);
    let nonsense = judge(&mut lease, now, Family::Leader, 200, Some(&leader(u64::MAX)));
    assert_eq!(nonsense.stale_until, None);
}

#[test]
fn intervals_are_believed_for_a_minute_and_others_only_when_the_lease_has_them() {
    let until = |lease: &mut Node, now: f64, seen: u64| {
        let validity = judge(lease, now_at(now), Family::Leader, 200, Some(&leader(seen)));
        (validity.stale_until.map(|old| old.unix_ms / 1_000), validity.fresh_until.unix_ms / 1_000)
    };
    let intervals = |ttl, loop_wait| Intervals { ttl, loop_wait, retry_timeout: 10 };
    let mut lease = knowing(intervals(60, 10));
    until(&mut lease, 10_050.0, 10_050);
    assert_eq!(until(&mut lease, 10_064.9, 10_060), (Some(10_100), 10_120));
    assert_eq!(until(&mut lease, 10_065.0, 10_060), (None, 10_080), "read 75 s ago");
    assert!(!lease.intervals.learn(now_at(10_070.0), intervals(60, 10)), "no other ones");
    assert_eq!(until(&mut lease, 10_071.0, 10_070), (Some(10_110), 10_130));
    assert!(lease.intervals.learn(now_at(10_080.0), intervals(120, 10)));
    assert_eq!(until(&mut lease, 10_090.0, 10_085), (Some(10_125), 10_145), "not yet");
    assert!(lease.intervals.learn(now_at(10_100.0), intervals(120, 70)));
    assert_eq!(until(&mut lease, 10_110.0, 10_105), (Some(10_145), 10_165), "shorter now");
    lease.intervals.learn(now_at(10_170.0), intervals(120, 70));
    until(&mut lease, 10_214.0, 10_213); // the HA loop is not hanging
    assert_eq!(until(&mut lease, 10_219.9, 10_215), (Some(10_255), 10_275), "the first's");
    assert_eq!(until(&mut lease, 10_220.0, 10_216), (Some(10_256), 10_336));
    // the first's time is over when the third come, to the second
    let mut lease = unseen(intervals(20, 10));
    lease.intervals.learn(now_at(10_000.0), intervals(60, 10));
    lease.intervals.learn(now_at(10_020.0), intervals(90, 10));
    assert_eq!(lease.intervals.bounds(now_at(10_021.0)), Some(intervals(60, 10).bounds()));
}

#[test]
fn many_reads_are_remembered_as_fewer_longer_ones() {
    let mut lease = known();
    for second in 0..200 {
        lease.dcs_read_begins(now_at(10_000.0 + f64::from(second)), read(second));
        lease.dcs_reads.end(now_at(10_000.1 + f64::from(second)), read(second), true);
    }
    assert!(lease.dcs_reads.count() <= READS_MAX);
    for second in [10_000, 10_050, 10_136, 10_150, 10_199] {
        assert!(lease.dcs_reads.cover(second), "{second}");
    }
    assert!(!lease.dcs_reads.cover(10_200));
    // and forgotten in the end
    let much_later = now_at(10_199.1 + RELEVANT_MS as f64 / 1e3);
    lease.dcs_read_begins(much_later, read(200));
    assert_eq!(lease.dcs_reads.count(), 1);
}

#[test]
fn a_clock_that_jumped_is_not_believed_until_patroni_has_moved_on_twice() {
    let mut lease = known();
    let jumped = |seconds: f64, by_ms: i64| {
        let now = now_at(seconds);
        Now { unix_ms: (now.unix_ms as i64 + by_ms) as u64, ..now }
    };
    assert!(!jumps(&mut lease, now_at(10_000.0)));
    assert!(!jumps(&mut lease, jumped(10_001.0, JUMP_MS_MIN as i64)), "slewing");
    for by_ms in [-5_000, 5_000] {
        let mut lease = known();
        jumps(&mut lease, now_at(10_000.0));
        assert!(jumps(&mut lease, jumped(10_001.0, by_ms)));
        assert!(!jumps(&mut lease, jumped(10_002.0, by_ms)), "only once");
        let seen = (jumped(10_002.0, by_ms).unix_ms / 1_000) - 3;
        let mut judge = |seconds: f64, seen: u64| {
            let now = jumped(seconds, by_ms);
            let validity = judge(&mut lease, now, Family::Leader, 200, Some(&leader(seen)));
            validity.stale_until.map(|until| until.unix_ms / 1_000)
        };
        assert_eq!(judge(10_002.0, seen), None);
        assert_eq!(judge(10_003.0, seen), None);
        // the lease may rest on a second of the former clock's
        assert_eq!(judge(10_008.0, seen + 4), None);
        assert_eq!(judge(10_009.0, seen + 4), None);
        assert_eq!(judge(10_010.0, seen + 10), Some(seen + 20));
    }
}

#[test]
fn what_contradicts() {
    let former = leader(9_999);
    let table = [
        (leader(10_005), false),
        (NodeReport { timeline: None, ..leader(1) }, false),
        (NodeReport { timeline: Some(3), ..leader(1) }, true),
        (NodeReport { role: "replica".into(), ..leader(1) }, true),
        (NodeReport { state: "stopping".into(), ..leader(1) }, true),
    ];
    for (status, contradicts) in table {
        assert_eq!(status.contradicts(&former), contradicts, "{status:?}");
    }
    let starting = NodeReport { state: "starting".into(), ..leader(1) };
    assert!(!former.contradicts(&starting), "what was not running was not promised");
}
