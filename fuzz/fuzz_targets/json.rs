//! The JSON scanner: it agrees with serde_json, in any split, and what it accepts is parsed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::http::json::{DEPTH_MAX, JsonScanner, NotJson, is_whole, lenient};
use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value, from_slice};

fuzz_target!(|bytes: &[u8]| {
    let whole = scan(bytes, bytes.len().max(1));
    for step in [1, 2, 3, 7, bytes.len() / 2 + 1] {
        assert_eq!(whole, scan(bytes, step), "by {step}");
    }
    let accepted = is_whole(bytes);
    let value = from_slice::<Value>(bytes);
    let ignored = from_slice::<IgnoredAny>(bytes);
    let readable = lenient(bytes);
    let unchanged = readable[..] == *bytes;
    let readable = from_slice::<Value>(&readable);
    if accepted {
        assert!(readable.is_ok() || is_out_of_range(&readable), "{readable:?}");
        assert!(!unchanged || ignored.is_ok());
    } else {
        assert!(value.is_err() && readable.is_err());
        // without a Value, serde_json checks neither UTF-8 nor the depth
        assert!(ignored.is_err() || std::str::from_utf8(bytes).is_err() || is_too_deep(bytes));
    }
    if value.is_ok() {
        assert!(unchanged);
    }
    assert_end(bytes, whole);
});

/// A value that serde_json finds at the front ends for the scanner at the same byte.
fn assert_end(bytes: &[u8], whole: Result<(Option<usize>, bool), NotJson>) {
    let mut values = Deserializer::from_slice(bytes).into_iter::<Value>();
    if let Some(Ok(Value::Array(_) | Value::Object(_))) = values.next() {
        assert_eq!(whole, Ok((Some(values.byte_offset()), true)));
    }
    if let Ok((Some(end), _)) = whole {
        assert!(is_whole(&bytes[..end]) && !is_whole(&bytes[..end - 1]));
    }
}

/// Where the value ends, and whether it is whole.
fn scan(bytes: &[u8], step: usize) -> Result<(Option<usize>, bool), NotJson> {
    let mut scanner = JsonScanner::default();
    let mut fed = 0;
    for piece in bytes.chunks(step) {
        if let Some(end) = scanner.feed(piece)? {
            return Ok((Some(fed + end), scanner.eof()));
        }
        fed += piece.len();
    }
    Ok((None, scanner.eof()))
}

fn is_out_of_range(parsed: &serde_json::Result<Value>) -> bool {
    parsed.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range"))
}

/// Whether well-formed JSON has more objects and arrays open at once than the limit.
fn is_too_deep(bytes: &[u8]) -> bool {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_u32, 0, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest > DEPTH_MAX
}
