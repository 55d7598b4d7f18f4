//! Patroni's answers: any split gives the same answer or the same failure, within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::answer::Answer;
use patroniglue::backend::{Failure, Fetch, Subject};
use patroniglue::http::RESPONSE_BODY_BYTES_MAX;
use patroniglue::wheel::Time;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = fetched(bytes, bytes.len().max(1));
    if bytes.len() < 8192 {
        assert_eq!(whole, fetched(bytes, usize::from(step) + 1));
    }
    if let Ok(answer) = whole {
        assert!((200..=599).contains(&answer.status));
        assert!(answer.body.len() <= RESPONSE_BODY_BYTES_MAX);
    }
});

fn fetched(bytes: &[u8], step: usize) -> Result<Answer, Failure> {
    let mut fetch =
        Fetch::new(Time::ZERO, Subject::Timing, b"GET"[..].into(), Time::from_ms(1_000));
    fetch.connect(Time::ZERO);
    fetch.connected();
    fetch.sent(3);
    for piece in bytes.chunks(step) {
        if let Some(outcome) = fetch.receive(piece) {
            return outcome;
        }
    }
    fetch.eof().expect("the end decides")
}
