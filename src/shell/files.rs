//! Reads the files the configuration names, the configuration first.

use std::fs;
use std::path::Path;

use crate::config::Config;

/// Reads and checks a configuration file. The error is one line with file, line and key.
pub fn read_config(path: &Path) -> Result<Config, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    Config::from_yaml(&text).map_err(|error| match error.line {
        Some(line) => format!("{name}:{line}: {}", error.message),
        None => format!("{name}: {}", error.message),
    })
}
