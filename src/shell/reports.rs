//! The shell's part of the reports on the admin port.

use std::net::SocketAddr;

use log::Level;

use super::process::ProcessFacts;
use super::{Daemon, logger, operate};
use crate::admin::{ClientTls, Report, ShellView};
use crate::changes::Kind;
use crate::config::{Config, FrontendTls, VerifyClient};
use crate::engine::Port;
use crate::slots::ConnId;
use crate::time::Now;

/// What is remembered for the reports.
pub(super) struct Reports {
    /// Whether the last reload succeeded.
    pub is_reloaded: bool,
    /// The Unix milliseconds at which the process started.
    pub started_unix_ms: u64,
    /// The Unix milliseconds at which the configuration in force was read.
    pub configured_unix_ms: u64,
    process: ProcessFacts,
}

impl Reports {
    /// Those of a process that starts now.
    pub fn new(now: Now) -> Reports {
        let (started_unix_ms, configured_unix_ms) = (now.unix_ms, now.unix_ms);
        let process = ProcessFacts::default();
        Reports { is_reloaded: true, started_unix_ms, configured_unix_ms, process }
    }
}

impl Daemon {
    /// The line with which the daemon begins.
    pub(super) fn log_start(&mut self, address: SocketAddr) {
        let now = self.clock.now();
        let clients_max = self.engine.clients_max(Port::Checks);
        let line = operate::start_line(&self.config, address, clients_max);
        self.engine.log_change(now, Level::Info, Kind::Start, &line);
        self.reports.process.measure_descriptors(self.streams.count());
        for port in [Port::Admin, Port::Agent] {
            if let Some(address) = self.address_of(port) {
                log::info!("{} listening on {address}", operate::section_of(port));
            }
        }
    }

    /// Answers a request for a report.
    pub(super) fn report(&mut self, now: Now, id: ConnId, report: Report) {
        let listening = self.listeners.iter().filter_map(|listener| {
            let name = match listener.port() {
                Port::Checks => "checks",
                Port::Admin => "admin",
                Port::Agent => "agent",
            };
            Some((name, listener.address()?.to_string()))
        });
        let view = ShellView {
            listening: listening.collect(),
            client_tls: client_tls(&self.config),
            patroni: self.config.backend.origin(),
            certificates: self.tls.findings.not_after.clone(),
            is_reloaded: self.reports.is_reloaded,
            started_unix_ms: self.reports.started_unix_ms,
            configured_unix_ms: self.reports.configured_unix_ms,
            log_lines_dropped: logger::dropped_count(),
            process: self.reports.process.read(self.streams.count()),
        };
        self.engine.report(now, id, report, &view);
    }
}

/// TLS on the checks' port, as configured.
pub(super) fn client_tls(config: &Config) -> ClientTls {
    match &config.frontend.tls {
        None => ClientTls::Off,
        Some(FrontendTls { cafile: None, .. }) => ClientTls::WithoutCertificates,
        Some(tls) if tls.verify_client == VerifyClient::Required => ClientTls::RequiredCertificates,
        Some(_) => ClientTls::OptionalCertificates,
    }
}
