//! Reads the configuration file and the files it names.

use std::fs;
use std::path::Path;

use log::warn;

use super::tls::Tls;
use crate::config::{Config, ConfigError, Password, WrongValue};

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
        self.config.warnings.iter().chain(&self.tls.findings.warnings)
    }

    /// Logs the warnings of both.
    pub fn log_warnings(&self) {
        for warning in self.warnings() {
            warn!("{warning}");
        }
    }
}

/// Reads and checks a configuration file, and the certificates and the password that it names. The
/// error is one line with file, line and key.
pub fn read_config(path: &Path) -> Result<Loaded, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let loaded = Config::from_yaml(&text).and_then(|mut config| {
        let tls = read_password(&mut config).and_then(|()| Tls::read(&config));
        let tls = tls.map_err(|wrong| wrong.at_line_in(&text))?;
        Ok(Loaded { config, tls })
    });
    loaded.map_err(|ConfigError { line, message }| match line {
        Some(line) => format!("{name}:{line}: {message}"),
        None => format!("{name}: {message}"),
    })
}

/// Reads `dcs.password-file`, if there is one.
pub(super) fn read_password(config: &mut Config) -> Result<(), WrongValue> {
    let Some(user) = config.dcs.as_mut().and_then(|dcs| dcs.user.as_mut()) else { return Ok(()) };
    let Password::File(file) = &user.password else { return Ok(()) };
    let content = fs::read_to_string(file).map_err(|error| {
        WrongValue::new("dcs", "password-file", &format!("{}: {error}", file.escape_debug()))
    })?;
    user.set_password(&content)
}
