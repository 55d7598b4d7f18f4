//! Reads the files: the configuration, and what it names.

use std::fs;
use std::path::Path;

use super::tls::Tls;
use crate::config::{Config, ConfigError};

/// Reads and checks a configuration file, and the certificates it names. The error is one line
/// with file, line and key.
pub fn read_config(path: &Path) -> Result<(Config, Tls), String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let read = Config::from_yaml(&text).and_then(|config| match Tls::read(&config) {
        Ok(tls) => Ok((config, tls)),
        Err(wrong) => Err(wrong.at_line_in(&text)),
    });
    read.map_err(|ConfigError { line, message }| match line {
        Some(line) => format!("{name}:{line}: {message}"),
        None => format!("{name}: {message}"),
    })
}
