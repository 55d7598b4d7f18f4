//! Answers recorded from a real Patroni decode to their status and body, in any split.

use std::fs;
use std::path::PathBuf;

use patroniglue::answer::Answer;
use patroniglue::failure::Failure;
use patroniglue::fetch::{Expected, Fetch, Progress, Purpose};
use patroniglue::node::intervals::Intervals;
use patroniglue::node::report::NodeReport;
use patroniglue::time::Time;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/patroni")
}

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn fetched(bytes: &[u8], step: usize) -> Result<Answer, Failure> {
    let expected = Expected { body_bytes_max: 1024 * 1024, bodyless: false };
    let request = b"GET".as_slice().into();
    let mut fetch =
        Fetch::new(Time::ZERO, Purpose::Intervals, expected, request, Time::from_ms(3_000));
    fetch.connect(Time::ZERO);
    fetch.progress(Progress::Open);
    fetch.sent(3);
    for piece in bytes.chunks(step) {
        if let Some(outcome) = fetch.receive(piece) {
            return outcome;
        }
    }
    fetch.eof().expect("the end decides")
}

#[test]
fn every_recorded_answer_is_read_as_indexed() {
    let index = fs::read_to_string(folder().join("index.tsv")).expect("an index");
    assert!(index.lines().count() > 40);
    for line in index.lines() {
        let (name, expected) = line.split_once('\t').expect("two columns");
        let bytes = bytes_of(name);
        let whole = fetched(&bytes, bytes.len().max(1));
        for step in [1, 2, 3, 7, 64, 1_000] {
            assert_eq!(fetched(&bytes, step), whole, "{name} by {step}");
        }
        let got = match &whole {
            Ok(answer) => {
                assert!(bytes.ends_with(&answer.body), "{name}");
                format!("{} {}", answer.status, answer.body.len())
            }
            Err(failure) => format!("{failure:?}"),
        };
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn a_cut_body_is_never_an_answer() {
    let bytes = bytes_of("leader.GET_primary.http");
    for end in 1..bytes.len() {
        let outcome = fetched(&bytes[..end], usize::MAX);
        assert!(matches!(outcome, Err(Failure::Cut)), "cut after {end}: {outcome:?}");
    }
}

#[test]
fn the_status_of_each_recorded_node_is_read() {
    let table = [
        ("leader.GET_primary.http", "running", "primary", false),
        ("replica.GET_replica.http", "running", "replica", false),
        ("paused-leader.GET_primary.http", "running", "primary", true),
        ("pg-stopped-leader.GET_primary.http", "stopped", "", true),
        ("dcs-down-leader.GET_primary.http", "running", "replica", false),
    ];
    for (name, state, role, pause) in table {
        let answer = fetched(&bytes_of(name), usize::MAX).expect(name);
        let status = NodeReport::from_json(&answer.body).expect(name);
        assert_eq!((status.state.as_str(), status.pause), (state, pause), "{name}");
        assert!(role.is_empty() || status.role == role, "{name}: {}", status.role);
        assert!(status.dcs_last_seen.is_some_and(|seen| seen > 1_700_000_000), "{name}");
    }
}

#[test]
fn patronis_intervals_are_read_from_its_config() {
    let answer = fetched(&bytes_of("leader.GET_config.http"), usize::MAX).expect("an answer");
    let intervals = Intervals { ttl: 30, loop_wait: 10, retry_timeout: 10 };
    assert_eq!(Intervals::from_json(&answer.body), Some(intervals));
}
