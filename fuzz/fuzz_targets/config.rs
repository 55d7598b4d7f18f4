//! Configurations: an error names a line of the file, in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::config::Config;

fuzz_target!(|text: &str| {
    if let Err(error) = Config::from_yaml(text) {
        assert!(!error.to_string().contains('\n'));
        if let Some(line) = error.line {
            // YAML 1.1 knows more line breaks than Rust does
            let breaks = text.matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            assert!(line <= breaks + 2, "line {line}");
        }
    }
});
