//! The walk through a certificate's DER: any bytes have at most one warning about their dates, and
//! the same one however often they are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::shell::tls::warnings_of_der;

fuzz_target!(|input: (u64, &[u8])| {
    let (now, der) = input;
    let warnings = warnings_of_der(der, now);
    assert!(warnings.len() <= 1);
    assert_eq!(warnings, warnings_of_der(der, now));
    for warning in &warnings {
        assert!(warning.starts_with("certificate 1 ") && !warning.contains(char::is_control));
    }
});
