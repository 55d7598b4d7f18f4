//! Patroni's answers: any split gives the same answer or the same failure, within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::answer::{Answer, CacheStatus, Form, Rendered};
use patroniglue::failure::Failure;
use patroniglue::fetch::{Expected, Fetch, Progress, Purpose};
use patroniglue::http::{Method, Persistence, RESPONSE_BODY_BYTES_MAX};
use patroniglue::time::{Now, Time};

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    for bodyless in [false, true] {
        assert_fetched(bytes, usize::from(step) + 1, bodyless);
    }
});

fn assert_fetched(bytes: &[u8], step: usize, bodyless: bool) {
    let whole = fetched(bytes, bytes.len().max(1), bodyless);
    if bytes.len() < 8192 {
        assert_eq!(whole, fetched(bytes, step, bodyless));
    }
    if let Ok(answer) = whole {
        assert!((200..=599).contains(&answer.status));
        assert!(answer.body.len() <= RESPONSE_BODY_BYTES_MAX);
        // the response to a client is refused as our own, and else parses as the same answer
        let form = Form {
            method: Method::Get,
            persistence: Persistence::Close,
            cache_status: CacheStatus::Hit,
        };
        let now = Now { time: Time::ZERO, unix_ms: 1_700_000_000_000 };
        let given_on = Rendered::new(answer.clone()).form(now, form);
        let own = fetched(&given_on, given_on.len(), bodyless);
        assert_eq!(own, Err(Failure::Patroniglue));
        let mut given_on = given_on.to_vec();
        let name = given_on.windows(CACHE_STATUS.len()).position(|bytes| bytes == CACHE_STATUS);
        given_on[name.expect("the field") + 2] = b'X';
        let date_unix_seconds = Some(now.unix_ms / 1_000);
        let expected = Answer { date_unix_seconds, ..answer };
        assert_eq!(fetched(&given_on, given_on.len(), bodyless), Ok(expected));
    }
}

fn fetched(bytes: &[u8], step: usize, bodyless: bool) -> Result<Answer, Failure> {
    let expected = Expected { body_bytes_max: RESPONSE_BODY_BYTES_MAX, bodyless };
    let deadline = Time::from_ms(1_000);
    let mut fetch =
        Fetch::new(Time::ZERO, Purpose::Intervals, expected, b"GET"[..].into(), deadline);
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

const CACHE_STATUS: &[u8] = b"\r\nCache-Status: patroniglue";
