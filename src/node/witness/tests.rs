//! Reads against answers as recorded from etcd 3.4.23.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::failure::{Failure, TlsFailure};
use crate::node::intervals::Intervals;
use crate::node::report::NodeReport;
use crate::time::Time;

const LEASE: &str = "7587862094812345678";
const T0: Now = Now { time: Time::from_ms(50_000), unix_ms: 1_700_000_000_000 };
const PRIMARY: &str = r#"{"conn_url":"postgres://10.0.0.1/postgres","state":"running",
    "role":"primary","version":"4.1.5","tags":{"lag":NaN},"xlog_location":67417408,"timeline":2}"#;
const CONFIG: &str = r#"{"ttl":30,"loop_wait":10,"retry_timeout":10,"postgresql":{}}"#;

/// The cluster's keys as value and lease; "" is a key that does not exist.
#[derive(Clone, Debug)]
struct Dcs {
    leader: (String, String),
    member: (String, String),
    config: String,
    initialize: String,
    left: String,
    granted: String,
}

impl Dcs {
    fn new() -> Dcs {
        Dcs {
            leader: ("pg1".into(), LEASE.into()),
            member: (PRIMARY.into(), LEASE.into()),
            config: CONFIG.into(),
            initialize: "77".into(),
            left: "24".into(),
            granted: "30".into(),
        }
    }

    fn txn(&self) -> Value {
        let range = |key: &str, value: &str, lease: &str| {
            let header = json!({ "revision": "5" });
            if value.is_empty() {
                return json!({ "response_range": { "header": header } });
            }
            let mut pair = json!({
                "key": STANDARD.encode(format!("/service/main/{key}")),
                "create_revision": "2", "mod_revision": "2", "version": "1",
                "value": STANDARD.encode(value),
            });
            if !lease.is_empty() {
                pair["lease"] = lease.into();
            }
            json!({ "response_range": { "header": header, "kvs": [pair], "count": "1" } })
        };
        let responses = [
            range("leader", &self.leader.0, &self.leader.1),
            range("members/pg1", &self.member.0, &self.member.1),
            range("config", &self.config, ""),
            range("initialize", &self.initialize, ""),
        ];
        json!({ "header": header(), "succeeded": true, "responses": responses })
    }

    fn time_to_live(&self, lease: &str) -> Value {
        let mut answer = json!({ "header": header(), "ID": lease });
        for (name, value) in [("TTL", &self.left), ("grantedTTL", &self.granted)] {
            if !value.is_empty() {
                answer[name] = value.as_str().into();
            }
        }
        answer
    }

    fn read(&self, report: &NodeReport, margin_ms: u64) -> Outcome {
        let subject = match Subject::new(report, None) {
            Ok(subject) => subject,
            Err(why) => return Outcome::Nothing(why),
        };
        let mut access = Access::new(settings(None, margin_ms));
        let mut read = Read::begin(T0, subject, &access);
        assert!(asked(&read, &access).starts_with("POST /v3/kv/txn "));
        match read.answered(&mut access, 200, self.txn().to_string().as_bytes()) {
            Step::Ask => {}
            Step::Done(outcome) => return outcome,
            Step::NextHost(failure) => return failure.outcome(),
        }
        let request = asked(&read, &access);
        assert!(request.starts_with("POST /v3/lease/timetolive "));
        let lease = request.split('"').nth(3).expect("a lease");
        let answer = self.time_to_live(lease).to_string();
        match read.answered(&mut access, 200, answer.as_bytes()) {
            Step::Done(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }
}

fn header() -> Value {
    json!({ "cluster_id": "6140906383092096819", "member_id": "3853769655040810424",
        "revision": "5", "raft_term": "2" })
}

fn settings(credentials: Option<(&str, &str)>, margin_ms: u64) -> Settings {
    let credentials = credentials.map(|(username, password)| Credentials {
        username: username.into(),
        password: password.into(),
    });
    Settings { namespace: "service".into(), group: None, credentials, margin_ms }
}

fn report(changes: &[(&str, Value)]) -> NodeReport {
    let mut report = json!({
        "state": "running", "role": "primary", "timeline": 2, "dcs_last_seen": 1_699_999_990,
        "database_system_identifier": "77",
        "patroni": { "version": "4.1.5", "scope": "main", "name": "pg1" },
    });
    for (name, value) in changes {
        report[*name] = value.clone();
    }
    NodeReport::from_json(report.to_string().as_bytes()).expect("a report")
}

fn begin(access: &Access) -> Read {
    Read::begin(T0, Subject::new(&report(&[]), None).expect("a subject"), access)
}

fn asked(read: &Read, access: &Access) -> String {
    String::from_utf8(read.request(access, "etcd1:2379").to_vec()).expect("text")
}

/// Seconds after T0 until which the evidence lasts.
fn lasts(outcome: &Outcome) -> Option<f64> {
    let Outcome::Evidence(Evidence { until, .. }) = outcome else { return None };
    let ms = until.time.ms_since(T0.time);
    assert_eq!(until.unix_ms, T0.unix_ms + ms, "both clocks");
    Some(ms as f64 / 1e3)
}

#[test]
fn each_request_is_a_post_with_its_length() {
    let mut access = Access::new(settings(None, 10_000));
    let mut read = begin(&access);
    let keys = ["leader", "members/pg1", "config", "initialize"]
        .map(|key| STANDARD.encode(format!("/service/main/{key}")))
        .map(|key| format!(r#"{{"request_range":{{"key":"{key}"}}}}"#));
    // nothing but ranges, and none of them serializable
    let body = format!(r#"{{"success":[{}]}}"#, keys.join(","));
    let request = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.0\r\nHost: etcd1:2379\r\nConnection: close\r\n\
             User-Agent: patroniglue/{}\r\nContent-Length: {}\r\n\r\n{body}",
            crate::VERSION,
            body.len()
        )
    };
    assert_eq!(asked(&read, &access), request("/v3/kv/txn", &body));
    let answer = Dcs::new().txn().to_string();
    assert_eq!(read.answered(&mut access, 200, answer.as_bytes()), Step::Ask);
    let body = format!(r#"{{"ID":"{LEASE}"}}"#);
    assert_eq!(asked(&read, &access), request("/v3/lease/timetolive", &body));
}

#[test]
fn keys_are_spelled_as_patroni_spells_them() {
    let table = [
        ("service", "main", None, "/service/main/leader"),
        ("/service/", "main", None, "/service/main/leader"),
        ("//db//prod/", "a/b", None, "/db/prod/a/b/leader"),
        ("", "main", None, "/main/leader"),
        ("service", "main", Some(0), "/service/main/0/leader"),
        ("service", "main", Some(12), "/service/main/12/leader"),
    ];
    for (namespace, scope, group, leader) in table {
        let body = String::from_utf8(Keys::new(namespace, scope, group, "pg1").txn());
        let key = format!("{{\"key\":\"{}\"}}", STANDARD.encode(leader));
        assert!(body.expect("text").contains(&key), "{leader}");
    }
}

#[test]
fn evidence_lasts_from_t0_to_a_margin_before_the_lease_ends() {
    #[rustfmt::skip]
    let table = [
        // margin, TTL, grantedTTL, config: seconds after t0
        (10_000, "30", "30", CONFIG, Some(20.0)),
        (10_000, "24", "30", CONFIG, Some(14.0)),
        (3_500, "24", "30", CONFIG, Some(20.5)),
        (0, "24", "30", CONFIG, Some(24.0)),
        (10_000, "10", "30", CONFIG, Some(0.0)),
        (10_000, "3", "30", CONFIG, Some(0.0)),
        (10_000, "", "30", CONFIG, Some(0.0)),
        (60_000, "60", "60", CONFIG, Some(50.0)), // no margin above 10 s
        (10_000, "15", "15", r#"{"loop_wait":5,"retry_timeout":5}"#, Some(10.0)),
        (10_000, "30", "30", r#"{"loop_wait":12,"retry_timeout":9}"#, Some(21.0)),
        (10_000, "20", "20", "{}", Some(10.0)), // in force 1 and 9
        (10_000, "31", "30", CONFIG, None),
        (10_000, "9223372036", "30", CONFIG, None),
        (10_000, "9223372036", "9223372036", CONFIG, None),
        (10_000, "-1", "", CONFIG, None),
        (10_000, "-2", "30", CONFIG, None),
        (10_000, "0", "0", CONFIG, None),
        (10_000, "86400", "86400", CONFIG, Some(86_390.0)),
        (10_000, "1", "86401", CONFIG, None),
    ];
    for (margin_ms, left, granted, config, expected) in table {
        let (left, granted) = (left.to_owned(), granted.to_owned());
        let dcs = Dcs { left, granted, config: config.into(), ..Dcs::new() };
        let outcome = dcs.read(&report(&[]), margin_ms);
        assert_eq!(lasts(&outcome), expected, "{margin_ms} {dcs:?}: {outcome:?}");
        match outcome {
            Outcome::Evidence(evidence) => assert_eq!(evidence.standing, Standing::Leader),
            Outcome::Nothing(Why::LeaseGone | Why::ImpossibleTime(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_time_left_is_shown_for_the_log() {
    let Outcome::Evidence(evidence) = Dcs::new().read(&report(&[]), 10_000) else { panic!() };
    assert_eq!(evidence.lease.map(|lease| lease.to_string()).as_deref(), Some("24 of 30 s left"));
    let at = |ms| Now { time: T0.time.plus_ms(ms), unix_ms: T0.unix_ms + ms };
    assert_eq!((evidence.is_over(at(13_999)), evidence.is_over(at(14_000))), (false, true));
}

/// What a change of the cluster's keys makes of a read that was evidence.
#[derive(Debug, PartialEq)]
enum Kind {
    Evidence,
    Contradiction,
    Nothing,
}

fn kind(outcome: &Outcome) -> Kind {
    match outcome {
        Outcome::Evidence(_) => Kind::Evidence,
        Outcome::Contradiction(_) => Kind::Contradiction,
        Outcome::Nothing(_) => Kind::Nothing,
    }
}

type Change<'a> = &'a dyn Fn(&mut Dcs);

fn member(from: &str, to: &str) -> impl Fn(&mut Dcs) {
    let value = PRIMARY.replace(from, to);
    assert_ne!(value, PRIMARY, "{from}");
    move |dcs: &mut Dcs| dcs.member.0 = value.clone()
}

fn config(text: &str) -> impl Fn(&mut Dcs) {
    let text = text.to_owned();
    move |dcs: &mut Dcs| dcs.config = text.clone()
}

#[test]
fn a_leaders_answer_holds_only_if_every_key_agrees() {
    use Kind::{Contradiction, Evidence, Nothing};
    #[rustfmt::skip]
    let table: &[(Change<'_>, Kind, &str)] = &[
        (&|_| {}, Evidence, ""),
        (&|dcs| dcs.leader.0.clear(), Contradiction, "there is no leader key"),
        (&|dcs| dcs.leader.0 = "pg2".into(), Contradiction, "the leader is pg2"),
        (&|dcs| dcs.leader.0 = "pg1\n".into(), Contradiction, "the leader is pg1\\n"),
        (&|dcs| dcs.leader.0 = "PG1".into(), Contradiction, "the leader is PG1"),
        (&|dcs| dcs.leader.1.clear(), Nothing, "the key leader has no lease"),
        (&|dcs| dcs.leader.1 = "5".into(), Nothing, "member key and leader key have different leases"),
        (&|dcs| dcs.initialize = "78".into(), Contradiction, "the keys are of database system 78, not 77; are dcs.hosts and dcs.namespace right?"),
        (&|dcs| dcs.initialize = "77 ".into(), Contradiction, "the keys are of database system 77 , not 77; are dcs.hosts and dcs.namespace right?"),
        (&|dcs| dcs.initialize.clear(), Nothing, "there is no key initialize"),
        (&|dcs| { dcs.initialize.clear(); dcs.leader.0.clear(); }, Contradiction,
            "there is no key of the cluster; are dcs.hosts, dcs.namespace and dcs.group right?"),
        (&|dcs| dcs.member.0.clear(), Nothing, "there is no key members/<name>"),
        (&|dcs| dcs.member.1.clear(), Nothing, "the key members/<name> has no lease"),
        (&|dcs| dcs.member.1 = "5".into(), Nothing, "member key and leader key have different leases"),
        (&|dcs| { dcs.member.1 = "5".into(); member("primary", "replica")(dcs); dcs.member.1 = "5".into() }, Nothing, "member key and leader key have different leases"),
        (&member("primary", "master"), Evidence, ""),
        (&member("primary", "replica"), Contradiction, "the role is replica"),
        (&member("primary", "standby_leader"), Contradiction, "the role is standby_leader"),
        (&member("primary", "promoted"), Contradiction, "the role is promoted"),
        (&member("primary", "demoted"), Contradiction, "the role is demoted"),
        (&member(r#""role":"primary","#, ""), Nothing, "the key members/<name> is not as Patroni writes it"),
        (&member("running", "stopping"), Contradiction, "the state is stopping"),
        (&member(r#""running""#, "null"), Nothing, "the key members/<name> is not as Patroni writes it"),
        (&member(r#","timeline":2"#, ""), Evidence, ""),
        (&member(r#""timeline":2"#, r#""timeline":3"#), Contradiction, "the timeline is 3, not 2"),
        (&member(r#""timeline":2"#, r#""timeline":1"#), Contradiction, "the timeline is 1, not 2"),
        (&member(r#""timeline":2"#, r#""timeline":"2""#), Nothing, "the key members/<name> is not as Patroni writes it"),
        (&member(r#""timeline":2"#, r#""timeline":2,"timeline":2"#), Nothing, "the key members/<name> is not as Patroni writes it"),
        (&member(r#""timeline":2}"#, r#""timeline":2"#), Nothing, "the key members/<name> is not as Patroni writes it"),
        (&member(r#""timeline":2"#, r#""timeline":2,"pause":true"#), Contradiction, "the cluster is paused"),
        (&member(r#""timeline":2"#, r#""timeline":2,"pause":false"#), Evidence, ""),
        (&config(""), Nothing, "there is no key config"),
        (&config("{"), Nothing, "the key config is not as Patroni writes it"),
        (&config("[]"), Nothing, "the key config is not as Patroni writes it"),
        (&config(r#"{"pause":true}"#), Contradiction, "the cluster is paused"),
        (&config(r#"{"pause":"on"}"#), Contradiction, "the cluster is paused"),
        (&config(r#"{"pause":false}"#), Evidence, ""),
        (&config(r#"{"pause":null}"#), Evidence, ""),
        (&config(r#"{"loop_wait":"10"}"#), Nothing, "the key config is not as Patroni writes it"),
        (&config(r#"{"loop_wait":-10}"#), Nothing, "the key config is not as Patroni writes it"),
        (&config(r#"{"standby_cluster":{"host":"10.0.0.9"}}"#), Contradiction, "the cluster is a standby cluster"),
        (&config(r#"{"standby_cluster":{"restore_command":"x"}}"#), Contradiction, "the cluster is a standby cluster"),
        (&config(r#"{"standby_cluster":{"port":5432}}"#), Contradiction, "the cluster is a standby cluster"),
        (&config(r#"{"standby_cluster":null}"#), Evidence, ""),
        (&config(r#"{"standby_cluster":{"host":""}}"#), Evidence, ""),
    ];
    for (change, expected, text) in table {
        let mut dcs = Dcs::new();
        change(&mut dcs);
        let outcome = dcs.read(&report(&[]), 10_000);
        assert_eq!(kind(&outcome), *expected, "{dcs:?}: {outcome:?}");
        if let Outcome::Contradiction(why) | Outcome::Nothing(why) = outcome {
            assert_eq!(why.to_string(), *text, "{dcs:?}");
        }
    }
}

#[test]
fn a_report_that_rests_on_no_lease_is_not_confirmed() {
    let table = [
        ("role", json!("master"), None),
        ("role", json!("demoted"), Some("Patroni's last answer has the role demoted")),
        ("timeline", json!(null), None),
        ("state", json!("stopping"), Some("Patroni's last answer does not rest on a lease")),
        ("pause", json!(true), Some("Patroni's last answer does not rest on a lease")),
        ("cluster_unlocked", json!(true), Some("Patroni's last answer does not rest on a lease")),
        (
            "failsafe_mode_is_active",
            json!(true),
            Some("Patroni's last answer does not rest on a lease"),
        ),
        (
            "database_system_identifier",
            json!(null),
            Some(
                "Patroni's answer has no database_system_identifier; Patroni 3.2 or newer is \
                 needed",
            ),
        ),
        (
            "patroni",
            json!({ "scope": "main" }),
            Some("Patroni's answer has no patroni.name; Patroni 3.2 or newer is needed"),
        ),
        (
            "patroni",
            json!({ "name": "pg1", "scope": "" }),
            Some("Patroni's answer has no patroni.scope; Patroni 3.2 or newer is needed"),
        ),
    ];
    for (field, value, why) in table {
        let outcome = Dcs::new().read(&report(&[(field, value)]), 10_000);
        match (outcome, why) {
            (Outcome::Evidence(_), None) => {}
            (Outcome::Nothing(found), Some(why)) => assert_eq!(found.to_string(), why),
            (outcome, why) => panic!("{field}: {outcome:?} {why:?}"),
        }
    }
}

#[test]
fn a_standby_leader_needs_a_standby_cluster() {
    let standby = report(&[("role", json!("standby_leader"))]);
    let mut dcs = Dcs::new();
    dcs.member.0 = PRIMARY.replace("primary", "standby_leader");
    let outcome = dcs.read(&standby, 10_000);
    assert_eq!(outcome, Outcome::Contradiction(Why::StandbyCluster(false)));
    dcs.config = r#"{"standby_cluster":{"host":"10.0.0.9","port":5432}}"#.into();
    assert_eq!(lasts(&dcs.read(&standby, 10_000)), Some(14.0));
    dcs.member.0 = PRIMARY.into();
    let outcome = dcs.read(&standby, 10_000);
    assert_eq!(outcome, Outcome::Contradiction(Why::OtherRole("primary".into())));
}

#[test]
fn a_replica_needs_its_own_lease_and_no_leader() {
    use Kind::{Contradiction, Evidence, Nothing};
    #[rustfmt::skip]
    let table: &[(Change<'_>, Kind)] = &[
        (&|_| {}, Evidence),
        (&|dcs| dcs.leader.0.clear(), Evidence),
        (&|dcs| dcs.config = r#"{"standby_cluster":{"host":"x"}}"#.into(), Evidence),
        (&|dcs| dcs.member.0 = PRIMARY.replace("primary", "replica").replace(":2}", ":3}"), Evidence),
        (&|dcs| dcs.member.0 = PRIMARY.into(), Contradiction),
        (&|dcs| dcs.member.0 = PRIMARY.replace("primary", "replica").replace("running", "starting"), Contradiction),
        (&|dcs| dcs.config = r#"{"pause":true}"#.into(), Contradiction),
        (&|dcs| dcs.initialize = "78".into(), Contradiction),
        (&|dcs| dcs.initialize.clear(), Nothing),
        (&|dcs| dcs.member.0.clear(), Nothing),
        (&|dcs| dcs.member.1.clear(), Nothing),
        (&|dcs| dcs.left = "-1".into(), Nothing),
        (&|dcs| dcs.left = "31".into(), Nothing),
    ];
    for (change, expected) in table {
        let mut dcs = Dcs::new();
        dcs.leader = ("pg2".into(), "5".into());
        dcs.member.0 = PRIMARY.replace("primary", "replica");
        change(&mut dcs);
        let outcome = dcs.read(&report(&[("role", json!("replica"))]), 10_000);
        assert_eq!(kind(&outcome), *expected, "{dcs:?}: {outcome:?}");
        if let Outcome::Evidence(evidence) = outcome {
            assert_eq!(evidence.standing, Standing::Replica);
            assert_eq!(lasts(&outcome), Some(14.0));
        }
    }
}

#[test]
fn known_intervals_replace_unreadable_ones() {
    let known = Intervals { ttl: 30, loop_wait: 14, retry_timeout: 8 };
    let subject = Subject::new(&report(&[]), Some(known)).expect("a subject");
    let mut access = Access::new(settings(None, 10_000));
    let mut read = Read::begin(T0, subject, &access);
    let dcs = Dcs { config: r#"{"loop_wait":"10s"}"#.into(), ..Dcs::new() };
    assert_eq!(read.answered(&mut access, 200, dcs.txn().to_string().as_bytes()), Step::Ask);
    let answer = dcs.time_to_live(LEASE).to_string();
    let Step::Done(outcome) = read.answered(&mut access, 200, answer.as_bytes()) else { panic!() };
    assert_eq!(lasts(&outcome), Some(16.0));
}

/// A path in JSON and the value to put there; `Value::Null` removes the name.
fn changed(body: &Value, pointer: &str, value: Value) -> String {
    let mut body = body.clone();
    let (parent, name) = pointer.rsplit_once('/').expect("a path");
    match body.pointer_mut(parent).expect(pointer) {
        Value::Object(object) if value.is_null() => drop(object.remove(name)),
        Value::Array(list) if value.is_null() => drop(list.pop()),
        found => found[name] = value,
    }
    body.to_string()
}

#[test]
fn a_transactions_answer_that_is_not_as_expected_is_none() {
    let keys = Keys::new("service", "main", None, "pg1");
    let body = Dcs::new().txn();
    assert!(keys.found(body.to_string().as_bytes()).is_some());
    let range = "/responses/0/response_range";
    let pair = format!("{range}/kvs/0");
    let key = |name: &str| json!(STANDARD.encode(format!("/service/main/{name}")));
    let first = body.pointer(&pair).expect("a pair").clone();
    let responses = body["responses"].as_array().expect("a list");
    let five = [&responses[..], &responses[..1]].concat();
    #[rustfmt::skip]
    let table = [
        ("/header".to_owned(), json!(null)),
        ("/header".to_owned(), json!("x")),
        ("/succeeded".to_owned(), json!(null)),
        ("/succeeded".to_owned(), json!(false)),
        ("/succeeded".to_owned(), json!("true")),
        ("/responses".to_owned(), json!(null)),
        ("/responses".to_owned(), json!({})),
        ("/responses/3".to_owned(), json!(null)),
        ("/responses".to_owned(), json!(five)),
        ("/responses/1/response_put".to_owned(), json!({})),
        (range.to_owned(), json!(null)),
        (range.to_owned(), json!([])),
        (format!("{range}/count"), json!(null)),
        (format!("{range}/count"), json!(1)),
        (format!("{range}/count"), json!("2")),
        (format!("{range}/count"), json!("0")),
        (format!("{range}/more"), json!(true)),
        (format!("{range}/more"), json!("false")),
        (format!("{range}/kvs"), json!(null)),
        (format!("{range}/kvs"), json!([])),
        (format!("{range}/kvs"), json!([first, first])),
        (format!("{range}/kvs"), json!([["a", "b"]])),
        (format!("{pair}/key"), json!(null)),
        (format!("{pair}/key"), key("leade")),
        (format!("{pair}/key"), key("leader/")),
        (format!("{pair}/key"), key("members/pg1")),
        (format!("{pair}/key"), json!("L3NlcnZpY2UvbWFpbi9sZWFkZXI")), // no padding
        (format!("{pair}/value"), json!("cGcx=")),
        (format!("{pair}/value"), json!("cG cx")),
        (format!("{pair}/value"), json!(1)),
        (format!("{pair}/lease"), json!("-1")),
        (format!("{pair}/lease"), json!(5)),
        (format!("{pair}/lease"), json!("9223372036854775808")),
        (format!("{pair}/mod_revision"), json!("0")),
        (format!("{pair}/mod_revision"), json!(null)),
    ];
    for (pointer, value) in table {
        let text = changed(&body, &pointer, value);
        assert_ne!(text, body.to_string(), "{pointer}");
        assert_eq!(keys.found(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn no_prefix_repetition_or_surplus_is_an_answer() {
    let keys = Keys::new("service", "main", None, "pg1");
    let dcs = Dcs::new();
    let lease = LEASE.parse().expect("a number");
    let token = json!({ "header": header(), "token": "TfCsPdlXIPNUIprG.15" });
    let is_read = |text: &str| {
        let bytes = text.as_bytes();
        keys.found(bytes).is_some()
            || etcd::time_left(bytes, lease).is_some()
            || etcd::token(bytes).is_some()
    };
    for body in [dcs.txn(), dcs.time_to_live(LEASE), token] {
        let text = body.to_string();
        assert!(is_read(&text) && is_read(&format!(" {text}\n")), "{text}");
        for end in 0..text.len() {
            assert!(!is_read(&text[..end]), "{}", &text[..end]);
        }
        for surplus in ["{}", "x", ",", "\0", &text] {
            assert!(!is_read(&format!("{text}{surplus}")), "{surplus}");
        }
        // every name of every object a second time
        let names: Vec<usize> = text.match_indices("\":").map(|(at, _)| at).collect();
        for end in names {
            let begin = text[..end].rfind('"').expect("a name");
            let field = &text[begin..=end];
            let twice = format!("{}{field}:\"1\",{}", &text[..begin], &text[begin..]);
            assert!(!is_read(&twice), "{twice}");
        }
    }
}

#[test]
fn a_lease_answer_is_read_only_for_the_lease_asked_for() {
    let answer = |changes: &[(&str, Value)]| {
        let mut body = Dcs::new().time_to_live(LEASE);
        for (name, value) in changes {
            body[*name] = value.clone();
        }
        etcd::time_left(body.to_string().as_bytes(), LEASE.parse().expect("a number"))
    };
    assert_eq!(answer(&[]).map(|time| (time.left, time.granted)), Some((24, 30)));
    let table = [
        ("ID", json!("7587862094812345679")),
        ("ID", json!(7_587_862_094_812_345_678_i64)),
        ("ID", json!(null)),
        ("TTL", json!(24)),
        ("TTL", json!("24.0")),
        ("TTL", json!("9223372036854775808")),
        ("TTL", json!(null)),
        ("grantedTTL", json!(30)),
        ("grantedTTL", json!("+30")),
        ("header", json!(null)),
    ];
    for (name, value) in table {
        assert_eq!(answer(&[(name, value.clone())]), None, "{name} {value}");
    }
}

const ERRORS: [(u16, &str, ReadFailure); 13] = [
    (
        400,
        r#"{"error":"etcdserver: user name is empty","code":3}"#,
        ReadFailure::CredentialsMissing,
    ),
    (
        401,
        r#"{"error":"etcdserver: invalid auth token","code":16}"#,
        ReadFailure::CredentialsMissing,
    ),
    (403, r#"{"error":"etcdserver: permission denied","code":7}"#, ReadFailure::CredentialsMissing),
    (403, "", ReadFailure::CredentialsMissing),
    (
        400,
        "CommonName of client sending a request against gateway will be ignored and not used as \
         expected\n",
        ReadFailure::CommonName,
    ),
    (
        412,
        r#"{"error":"etcdserver: authentication is not enabled","code":9}"#,
        ReadFailure::Status(412),
    ),
    (503, r#"{"error":"etcdserver: request timed out","code":14}"#, ReadFailure::NoQuorum),
    (504, r#"{"error":"context deadline exceeded","code":4}"#, ReadFailure::NoQuorum),
    (404, "404 page not found\n", ReadFailure::NoGateway),
    (400, "Client sent an HTTP request to an HTTPS server.\n", ReadFailure::TlsExpected),
    (400, "", ReadFailure::Status(400)),
    (500, r#"{"error":"not a primary lessor","code":2}"#, ReadFailure::Status(500)),
    (204, "", ReadFailure::Status(204)),
];

#[test]
fn a_failed_read_is_no_evidence_and_has_a_reason() {
    for (status, body, expected) in ERRORS {
        for asked_before in [false, true] {
            let mut access = Access::new(settings(None, 10_000));
            let mut read = begin(&access);
            if asked_before {
                let answer = Dcs::new().txn().to_string();
                assert_eq!(read.answered(&mut access, 200, answer.as_bytes()), Step::Ask);
            }
            let step = read.answered(&mut access, status, body.as_bytes());
            let failure = match step {
                Step::NextHost(failure) => failure,
                Step::Done(Outcome::Nothing(Why::Failed(failure))) => failure,
                other => panic!("{status} {body}: {other:?}"),
            };
            assert_eq!(failure, expected, "{status} {body}");
            assert_eq!(failure.outcome(), Outcome::Nothing(Why::Failed(failure)));
        }
    }
    // an error's body is no evidence, nor is an answer's body with another status
    let mut access = Access::new(settings(None, 10_000));
    let answer = Dcs::new().txn().to_string();
    let step = begin(&access).answered(&mut access, 206, answer.as_bytes());
    assert_eq!(step, Step::NextHost(ReadFailure::Status(206)));
}

#[test]
fn a_password_is_exchanged_for_a_token_that_is_kept() {
    let mut access = Access::new(settings(Some(("r\"o", "p\\")), 10_000));
    let mut read = begin(&access);
    let request = asked(&read, &access);
    assert!(request.starts_with("POST /v3/auth/authenticate HTTP/1.0\r\n"), "{request}");
    assert!(!request.contains("Authorization"));
    assert!(request.ends_with("\r\n\r\n{\"name\":\"r\\\"o\",\"password\":\"p\\\\\"}"), "{request}");
    let token = json!({ "header": header(), "token": "TfCsPdlXIPNUIprG.15" }).to_string();
    assert_eq!(read.answered(&mut access, 200, token.as_bytes()), Step::Ask);
    let authorization = "\r\nAuthorization: TfCsPdlXIPNUIprG.15\r\n\r\n";
    assert!(asked(&read, &access).contains(authorization));
    let answer = Dcs::new().txn().to_string();
    assert_eq!(read.answered(&mut access, 200, answer.as_bytes()), Step::Ask);
    assert!(asked(&read, &access).contains(authorization));
    // the next read begins with it
    let mut read = begin(&access);
    assert!(asked(&read, &access).starts_with("POST /v3/kv/txn "));
    assert!(asked(&read, &access).contains(authorization));
    // it has expired by then: one more request for a token, in this read only one
    let expired = br#"{"error":"etcdserver: invalid auth token","code":16}"#;
    assert_eq!(read.answered(&mut access, 200, answer.as_bytes()), Step::Ask);
    assert_eq!(read.answered(&mut access, 401, expired), Step::Ask);
    assert!(asked(&read, &access).starts_with("POST /v3/auth/authenticate "));
    assert_eq!(read.answered(&mut access, 200, token.as_bytes()), Step::Ask);
    assert!(asked(&read, &access).starts_with("POST /v3/lease/timetolive "));
    let step = read.answered(&mut access, 401, expired);
    assert_eq!(step, Step::NextHost(ReadFailure::TokenRefused));
    assert!(asked(&begin(&access), &access).starts_with("POST /v3/auth/authenticate "));
}

#[test]
fn each_refused_password_or_token_has_its_reason() {
    let with_password = || Access::new(settings(Some(("ro", "wrong")), 10_000));
    let argument = br#"{"error":"etcdserver: authentication failed","code":3}"#;
    let mut access = with_password();
    let step = begin(&access).answered(&mut access, 400, argument);
    assert_eq!(step, Step::Done(ReadFailure::WrongPassword.outcome()));
    let off = br#"{"error":"etcdserver: authentication is not enabled","code":9}"#;
    let mut read = begin(&access);
    assert_eq!(read.answered(&mut access, 412, off), Step::Ask);
    assert!(!asked(&read, &access).contains("Authorization"));
    // without users no token is asked for again, until etcd wants one
    let mut read = begin(&access);
    assert!(asked(&read, &access).starts_with("POST /v3/kv/txn "));
    assert_eq!(read.answered(&mut access, 400, argument), Step::Ask);
    assert!(asked(&read, &access).starts_with("POST /v3/auth/authenticate "));
    for token in ["", "a\r\nX: y", "a b", "\u{e9}", &"x".repeat(5_000)] {
        let mut access = with_password();
        let answer = json!({ "header": header(), "token": token }).to_string();
        let step = begin(&access).answered(&mut access, 200, answer.as_bytes());
        assert_eq!(step, Step::NextHost(ReadFailure::NotUnderstood("auth/authenticate")));
    }
}

#[test]
fn an_answer_that_is_not_understood_goes_to_the_next_host() {
    let mut access = Access::new(settings(None, 10_000));
    let mut read = begin(&access);
    let before = asked(&read, &access);
    let step = read.answered(&mut access, 200, b"{}");
    assert_eq!(step, Step::NextHost(ReadFailure::NotUnderstood("kv/txn")));
    assert_eq!(asked(&read, &access), before, "the same question");
    let answer = Dcs::new().txn().to_string();
    assert_eq!(read.answered(&mut access, 200, answer.as_bytes()), Step::Ask);
    let step = read.answered(&mut access, 200, answer.as_bytes());
    assert_eq!(step, Step::NextHost(ReadFailure::NotUnderstood("lease/timetolive")));
}

#[test]
fn failures_of_etcd_do_not_name_patroni() {
    let tls = [
        TlsFailure::CertificateExpired,
        TlsFailure::CertificateName,
        TlsFailure::CertificateIssuer,
        TlsFailure::ClientCertificate,
        TlsFailure::NotTls,
        TlsFailure::UnsupportedKey("P-521"),
    ];
    let failures = [
        Failure::Refused,
        Failure::Unreachable,
        Failure::Unresolved,
        Failure::NoDescriptor,
        Failure::NoRoom,
        Failure::TimedOut,
        Failure::HandshakeTimedOut,
        Failure::Reset,
        Failure::Closed,
        Failure::Cut,
        Failure::Garbage,
        Failure::TooLarge,
        Failure::Patroniglue,
    ];
    for failure in failures.into_iter().chain(tls.map(Failure::Tls)) {
        let text = ReadFailure::Unreached(failure).to_string();
        assert!(!text.contains("Patroni") && !text.contains("backend"), "{text}");
        assert!(text.contains("etcd"), "{text}");
    }
    let host = |failure| ReadFailure::Unreached(failure).is_of_host();
    assert_eq!((host(Failure::Refused), host(Failure::NoDescriptor)), (true, false));
}

#[test]
fn secrets_are_not_shown() {
    let mut access = Access::new(settings(Some(("ro", "hunter2")), 10_000));
    let token = json!({ "header": header(), "token": "TfCsPdlXIPNUIprG.15" }).to_string();
    let mut read = begin(&access);
    assert_eq!(read.answered(&mut access, 200, token.as_bytes()), Step::Ask);
    let text = format!("{access:?} {read:?}");
    assert!(text.contains("ro") && !text.contains("hunter2") && !text.contains("TfCs"), "{text}");
}
