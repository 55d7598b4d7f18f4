//! Each wrong configuration of `config-errors.txt` has exactly the error that stands above it.

use patroniglue::config::Config;

const TABLE: &str = include_str!("config-errors.txt");

#[test]
fn every_wrong_configuration_has_its_error() {
    let mut count = 0;
    for block in TABLE.split("\n## ").skip(1) {
        let (expected, file) = block.split_once('\n').expect("a file below its error");
        let file = file.trim_end_matches('\n');
        let error = Config::from_yaml(file).expect_err(file).to_string();
        assert_eq!(error, expected, "{file}");
        count += 1;
    }
    assert!(count >= 50, "{count} configurations");
}

#[test]
fn no_error_uses_the_words_of_the_yaml_reader() {
    for error in TABLE.lines().filter(|line| line.starts_with("## ")) {
        for word in ["sequence", "mapping", "scalar", "token", "field", "stream", "enum", "`"] {
            // the sign itself is one that has to be in quotes
            let is_sign = word == "`" && error.contains("@ ` %");
            let is_value = error.contains("unknown field `");
            assert!(is_sign || is_value || !error.contains(word), "{error}");
        }
    }
}
