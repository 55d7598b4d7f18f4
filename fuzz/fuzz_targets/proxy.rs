//! The PROXY header: its length is within the input, and a shorter input is never another header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::http::proxy::{PROXY_HEADER_BYTES_MAX, ProxyHeader};

fuzz_target!(|input: &[u8]| {
    match ProxyHeader::read(input) {
        ProxyHeader::Whole { bytes, .. } => {
            assert!(bytes <= input.len() && bytes <= PROXY_HEADER_BYTES_MAX);
            assert_eq!(ProxyHeader::read(&input[..bytes]), ProxyHeader::read(input));
            assert_eq!(ProxyHeader::read(&input[..bytes - 1]), ProxyHeader::Incomplete);
        }
        ProxyHeader::Incomplete => assert!(input.len() < PROXY_HEADER_BYTES_MAX),
        ProxyHeader::Invalid(_) => {}
    }
});
