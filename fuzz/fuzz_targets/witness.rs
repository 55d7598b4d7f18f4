//! etcd's answers: evidence only of answers that a lenient reader takes for evidence as well, and
//! never of a prefix, a name that comes twice, a number out of range or another key.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use patroniglue::http::json::lenient;
use patroniglue::node::report::NodeReport;
use patroniglue::node::witness::{Access, Credentials, Evidence, Outcome, Read, Settings, Step};
use patroniglue::node::witness::{Subject, Why};
use patroniglue::time::{Now, Time};
use serde_json::{Value, from_slice};

const T0: Now = Now { time: Time::from_ms(50_000), unix_ms: 1_700_000_000_000 };
const REPORT: &str = r#"{"state": "running", "role": "primary", "timeline": 2,
    "dcs_last_seen": 1699999990, "database_system_identifier": "77",
    "patroni": {"version": "4.1.5", "scope": "main", "name": "pg1"}}"#;

// the answers to txn and timetolive, and before them to authenticate if there are three, each
// after its status and with a NUL between
fuzz_target!(|input: (u8, &[u8])| {
    let (status, bytes) = input;
    let status = if status < 250 { 200 } else { u16::from(status) + 150 };
    let answers: Vec<&[u8]> = bytes.split(|byte| *byte == 0).take(3).collect();
    let Some(evidence) = evidence(status, &answers) else { return };
    let ([txn, time] | [_, txn, time]) = answers[..] else { panic!("{}", answers.len()) };
    assert_eq!(status, 200);
    let left = left_seconds(txn, time).expect("a lenient reader finds no evidence");
    let until_ms = T0.time.plus_ms(left * 1_000).as_ms();
    assert!(evidence.is_over(Now { time: Time::from_ms(until_ms), ..T0 }), "{left}");
    assert!(evidence.is_over(Now { unix_ms: T0.unix_ms + left * 1_000, ..T0 }), "{left}");
    for at in 0..answers.len() {
        let with = |answer: &[u8]| {
            let mut others = answers.clone();
            others[at] = answer;
            self::evidence(200, &others)
        };
        let answer = answers[at].trim_ascii();
        for end in [answer.len() - 1, answer.len() / 2, 1, 0] {
            assert_eq!(with(&answer[..end]), None, "a prefix");
        }
        for (name, value) in from_slice::<Value>(answer).expect("JSON").as_object().expect("one") {
            let field = format!("{{\"{name}\":{value},");
            assert_eq!(with(&[field.as_bytes(), &answer[1..]].concat()), None, "{name} twice");
        }
        assert_eq!(with(&[answer, b"{}"].concat()), None, "surplus");
    }
});

/// The evidence of a read that gets these answers.
fn evidence(status: u16, answers: &[&[u8]]) -> Option<Evidence> {
    let user = || Credentials { username: "ro".into(), password: "p".into() };
    let credentials = (answers.len() == 3).then(user);
    let mut access = Access::new(Settings {
        namespace: "service".into(),
        group: None,
        credentials,
        margin_ms: 10_000,
    });
    let report = NodeReport::from_json(REPORT.as_bytes()).expect("a report");
    let subject = Subject::new(&report, None).expect("a subject");
    let mut read = Read::begin(T0, subject, &access);
    for answer in answers {
        let request = read.request(&access, "etcd:2379");
        assert!(!request.windows(12).any(|bytes| bytes == b"serializable"));
        match read.answered(&mut access, status, answer) {
            Step::Ask => {}
            Step::Done(Outcome::Evidence(evidence)) => return Some(evidence),
            Step::NextHost(failure) => {
                assert!(matches!(failure.outcome(), Outcome::Nothing(Why::Failed(_))));
                return None;
            }
            Step::Done(Outcome::Contradiction(_)) if status != 200 => panic!("of a failed read"),
            Step::Done(Outcome::Contradiction(why) | Outcome::Nothing(why)) => {
                assert!(!why.to_string().contains('\n'));
                return None;
            }
        }
    }
    None
}

/// Reads the answers with serde_json alone: the time left if they are evidence.
fn left_seconds(txn: &[u8], time: &[u8]) -> Option<u64> {
    let (txn, time): (Value, Value) = (from_slice(txn).ok()?, from_slice(time).ok()?);
    let pair = |at: usize, key: &str| {
        let pairs = &txn["responses"][at]["response_range"]["kvs"];
        let pair = Some(&pairs[0]).filter(|_| pairs[1].is_null())?;
        let is_key = pair["key"].as_str()? == STANDARD.encode(format!("/service/main/{key}"));
        let value = STANDARD.decode(pair["value"].as_str().unwrap_or_default()).ok()?;
        is_key.then(|| (value, pair["lease"].clone()))
    };
    let (leader, lease) = pair(0, "leader")?;
    let (member, member_lease) = pair(1, "members/pg1")?;
    let (_, (initialize, _)) = (pair(2, "config")?, pair(3, "initialize")?);
    let member: Value = from_slice(&lenient(&member)).ok()?;
    let is_same = leader == b"pg1" && initialize == b"77" && lease == member_lease;
    let is_primary = member["role"] == "primary" || member["role"] == "master";
    let is_running = member["state"] == "running" && is_primary;
    let number = |name: &str| time[name].as_str().unwrap_or("0").parse::<i64>().ok();
    let (left, granted) = (number("TTL")?, number("grantedTTL")?);
    let is_lease = time["ID"] == lease && 0 <= left && left <= granted && granted <= 86_400;
    (is_same && is_running && is_lease).then_some(left as u64)
}
