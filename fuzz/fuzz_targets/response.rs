//! Patroni's answers: any split gives the same answer or the same failure, within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::answer::{Answer, CacheStatus, Form, Rendered};
use patroniglue::failure::Failure;
use patroniglue::fetch::{Fetch, Progress, Purpose};
use patroniglue::http::{Method, Persistence, RESPONSE_BODY_BYTES_MAX};
use patroniglue::time::{Now, Time};

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = fetched(bytes, bytes.len().max(1));
    if bytes.len() < 8192 {
        assert_eq!(whole, fetched(bytes, usize::from(step) + 1));
    }
    if let Ok(answer) = whole {
        assert!((200..=599).contains(&answer.status));
        assert!(answer.body.len() <= RESPONSE_BODY_BYTES_MAX);
        // the response to a client parses as the same answer
        let form = Form {
            method: Method::Get,
            persistence: Persistence::Close,
            cache_status: CacheStatus::Hit,
        };
        let now = Now { time: Time::ZERO, unix_ms: 1_700_000_000_000 };
        let given_on = Rendered::new(answer.clone()).form(now, form);
        assert_eq!(fetched(&given_on, given_on.len()), Ok(answer));
    }
});

fn fetched(bytes: &[u8], step: usize) -> Result<Answer, Failure> {
    let mut fetch =
        Fetch::new(Time::ZERO, Purpose::Intervals, b"GET"[..].into(), Time::from_ms(1_000));
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
