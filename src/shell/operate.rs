//! The operator's requests: signals, reload, drain, shutdown.

use std::path::Path;

use log::{Level, info, log, warn};

use super::files::Loaded;
use super::signals::Event as SignalEvent;
use super::{Daemon, Phase, descriptors, files};
use crate::cache::CacheSettings;
use crate::config::{Config, DCS_MARGIN_MS_MAX, Dcs, DcsHost, Password};
use crate::engine::{DcsSettings, Settings};
use crate::node::witness::rule::MARGIN_MS_MAX;
use crate::node::witness::{Credentials, Settings as WitnessSettings};
use crate::time::Now;

impl Daemon {
    pub(super) fn handle_signals(&mut self, now: Now) {
        if !std::mem::take(&mut self.signalled) {
            return;
        }
        let Some(signals) = &mut self.signals else { return };
        let events: Vec<SignalEvent> = signals.pending().collect();
        for event in events {
            match event {
                SignalEvent::Shutdown => self.begin_shutdown(now),
                SignalEvent::Reload => self.handle_reload(now),
                SignalEvent::Drain(draining) => {
                    info!("{}", if draining { "draining" } else { "no longer draining" });
                    self.engine.drain(draining);
                }
            }
        }
    }

    fn begin_shutdown(&mut self, now: Now) {
        if self.phase == Phase::ShuttingDown {
            info!("shutting down at once");
            self.engine.begin_shutdown(now);
            return self.perform_actions(now);
        }
        self.phase = Phase::ShuttingDown;
        // connections in the backlog may already have sent a request: accept them before closing
        for listener in &mut self.listeners {
            listener.mark_readable();
        }
        self.accept(now, 0);
        let line = format!("shutting down: {} clients left", self.engine.counts().clients);
        info!("{line}");
        self.supervisor.stopping(&line);
        self.listeners.clear();
        self.engine.begin_shutdown(now);
        self.perform_actions(now);
    }

    fn handle_reload(&mut self, now: Now) {
        info!("status: {}", self.engine.counts());
        let Some(path) = self.options.config_file.clone() else { return };
        self.supervisor.reloading();
        let outcome = self.reload(now, &path);
        let line = match &outcome {
            Ok(()) => format!("reloaded {}", path.display()),
            Err(error) => format!("not reloaded: {error}"),
        };
        log!(if outcome.is_ok() { Level::Info } else { Level::Error }, "{line}");
        self.supervisor.ready(&line);
    }

    fn reload(&mut self, now: Now, path: &Path) -> Result<(), String> {
        let loaded = files::read_config(path)?;
        if self.listeners.iter().any(|listener| !listener.is_bound_to(&loaded.config.frontend)) {
            warn!("frontend.host and frontend.port change only with a restart");
        }
        loaded.log_warnings();
        let Loaded { config, tls } = loaded;
        self.connectors.configure(&config);
        let settings = engine_settings(&config, self.options.verbose);
        // set first: fetches that are restarted use the new certificates
        (self.config, self.tls) = (config, tls);
        self.engine.configure(now, settings);
        self.perform_actions(now);
        Ok(())
    }
}

/// The engine's settings in a configuration.
pub(super) fn engine_settings(config: &Config, records: bool) -> Settings {
    Settings {
        cache: CacheSettings {
            ttl_ms: config.cache.ttl_ms,
            grace_ms: config.cache.grace_ms,
            variants_max: config.cache.entries,
        },
        interval_ms: config.cache.interval_ms,
        timeout_ms: config.backend.timeout_ms,
        fetches_max: config.backend.connections,
        clients_max: descriptors::clients_max(config),
        fence: config.cache.fence,
        dcs: config.dcs.as_ref().map(dcs_settings),
        host: config.backend.authority().into(),
        records,
    }
}

fn dcs_settings(dcs: &Dcs) -> DcsSettings {
    let credentials = dcs.user.as_ref().map(|user| Credentials {
        username: user.username.clone(),
        password: match &user.password {
            Password::Text(password) => password.clone(),
            // files::read_config has put its content in its place
            Password::File(_) => String::new(),
        },
    });
    let witness = WitnessSettings {
        namespace: dcs.namespace.clone(),
        group: dcs.group,
        credentials,
        margin_ms: dcs.margin_ms,
    };
    let host = dcs.hosts.first().map(DcsHost::authority).unwrap_or_default().into();
    DcsSettings { witness, host, hosts: dcs.hosts.len() }
}

const _: () = assert!(DCS_MARGIN_MS_MAX == MARGIN_MS_MAX, "a longer margin would be cut");
