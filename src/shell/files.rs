//! Reads the configuration file and the PEM files it names.

use std::fs;
use std::path::Path;

use log::warn;

use super::tls::Tls;
use crate::config::{Config, ConfigError};

/// A checked configuration and the certificates it names.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// TLS of all sides, as configured.
    pub tls: Tls,
}

impl Loaded {
    /// The warnings of both.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.config.warnings.iter().chain(&self.tls.warnings)
    }

    /// Logs the warnings of both.
    pub fn log_warnings(&self) {
        for warning in self.warnings() {
            warn!("{warning}");
        }
    }
}

/// Reads and checks a configuration file and the certificates it names. The error is one line
/// with file, line and key.
pub fn read_config(path: &Path) -> Result<Loaded, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let loaded = Config::from_yaml(&text).and_then(|config| match Tls::read(&config) {
        Ok(tls) => Ok(Loaded { config, tls }),
        Err(wrong) => Err(wrong.at_line_in(&text)),
    });
    loaded.map_err(|ConfigError { line, message }| match line {
        Some(line) => format!("{name}:{line}: {message}"),
        None => format!("{name}: {message}"),
    })
}
