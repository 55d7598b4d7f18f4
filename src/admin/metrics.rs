//! Prometheus' text format, version 0.0.4: every series with its type and help.

use std::borrow::Cow;
use std::fmt::{self, Arguments, Display, Formatter, Write};

use super::{ClientTls, LeaseView, ShellView, State, View, cut, role_name};
use crate::VERSION;
use crate::stats::{Histogram, OTHER, Standing};

/// The media type (Prometheus, "Exposition formats").
pub const CONTENT_TYPE: &[u8] = b"text/plain; version=0.0.4; charset=utf-8";

/// All series.
pub fn text(view: &View<'_>, shell: &ShellView) -> String {
    let mut out = Exposition { text: String::with_capacity(BYTES_USUAL), name: "" };
    daemon(&mut out, view, shell);
    requests(&mut out, view);
    clients(&mut out, view);
    tls(&mut out, view, shell);
    fetches(&mut out, view);
    patroni(&mut out, view);
    node(&mut out, view);
    lease(&mut out, view);
    answers(&mut out, view);
    process(&mut out, shell);
    out.text
}

fn daemon(out: &mut Exposition, view: &View<'_>, shell: &ShellView) {
    out.family("patroniglue_build_info", GAUGE, "Version of patroniglue; always 1.");
    out.sample("", &[("version", VERSION)], 1);
    out.single(
        "patroniglue_config_last_reload_successful",
        GAUGE,
        "Whether the configuration was read without an error the last time.",
        u8::from(shell.is_reloaded),
    );
    out.single(
        "patroniglue_config_last_reload_success_timestamp_seconds",
        GAUGE,
        "Unix time at which the configuration in force was read.",
        Seconds(shell.configured_unix_ms),
    );
    let help = "Whether health checks come by TLS, and with client certificates; always 1.";
    out.family("patroniglue_frontend_info", GAUGE, help);
    let (scheme, certificates) = match shell.client_tls {
        ClientTls::Off => ("http", "none"),
        ClientTls::WithoutCertificates => ("https", "none"),
        ClientTls::OptionalCertificates => ("https", "optional"),
        ClientTls::RequiredCertificates => ("https", "required"),
    };
    out.sample("", &[("scheme", scheme), ("client_certificates", certificates)], 1);
    out.single(
        "patroniglue_draining",
        GAUGE,
        "Whether the primary and replica routes answer 503 because of SIGUSR1.",
        u8::from(view.state == State::Draining),
    );
    out.single(
        "patroniglue_log_lines_dropped_total",
        COUNTER,
        "Log lines dropped because nobody read the log.",
        shell.log_lines_dropped,
    );
}

fn requests(out: &mut Exposition, view: &View<'_>) {
    let help = "Requests answered, by route, status and where the answer came from.";
    out.family("patroniglue_requests_total", COUNTER, help);
    for (route, requests) in view.stats.requests() {
        for one in requests {
            let status = one.status.to_string();
            let code = if one.status == 0 { OTHER } else { &status };
            let cache = one.cache_status.map_or("none", |status| status.label());
            out.sample("", &[("route", route), ("code", code), ("cache", cache)], one.count);
        }
    }
    out.histogram(
        "patroniglue_request_wait_seconds",
        "Time that requests waited for a fetch; those answered from memory are not in it.",
        &view.stats.request_wait,
    );
}

fn clients(out: &mut Exposition, view: &View<'_>) {
    let (open, max) = view.clients;
    out.single(
        "patroniglue_client_connections",
        GAUGE,
        "Connections of clients that are open.",
        open,
    );
    out.single(
        "patroniglue_client_connections_max",
        GAUGE,
        "Most connections of clients at once.",
        max,
    );
    let help = "Connections of clients, accepted, or turned away because there was no room.";
    out.family("patroniglue_client_connections_total", COUNTER, help);
    out.sample("", &[("outcome", "accepted")], view.stats.clients_accepted);
    out.sample("", &[("outcome", "refused")], view.stats.clients_refused);
    let help = "Connections of clients closed because they were too slow.";
    out.family("patroniglue_client_timeouts_total", COUNTER, help);
    for (phase, count) in view.stats.slow_clients() {
        out.sample("", &[("phase", phase)], count);
    }
    out.single(
        "patroniglue_descriptor_shortages_total",
        COUNTER,
        "Times that no descriptor was left for a client or a fetch.",
        view.stats.descriptor_shortages,
    );
}

fn tls(out: &mut Exposition, view: &View<'_>, shell: &ShellView) {
    let help = "TLS handshakes, with clients and with Patroni.";
    out.family("patroniglue_tls_handshakes_total", COUNTER, help);
    for (side, outcome, count) in view.stats.handshakes().filter(|(_, _, count)| *count > 0) {
        out.sample("", &[("side", side), ("outcome", outcome)], count);
    }
    let help = "Unix time at which the first certificate of the file expires.";
    out.family("patroniglue_tls_certificate_not_after_timestamp_seconds", GAUGE, help);
    for (key, not_after) in &shell.certificates {
        out.sample("", &[("key", key)], not_after);
    }
}

fn fetches(out: &mut Exposition, view: &View<'_>) {
    let help = "Fetches from Patroni that run or wait for a place.";
    out.family("patroniglue_fetches", GAUGE, help);
    out.sample("", &[("state", "running")], view.fetches.0);
    out.sample("", &[("state", "queued")], view.fetches.1);
    out.single("patroniglue_fetch_waiters", GAUGE, "Requests that wait for a fetch.", view.waiters);
    out.histogram(
        "patroniglue_fetch_duration_seconds",
        "Time from the decision to ask Patroni until its whole answer was there.",
        &view.stats.fetch_duration,
    );
    let help = "Fetches from Patroni that brought no answer, by reason.";
    out.family("patroniglue_fetch_failures_total", COUNTER, help);
    for (reason, count) in view.stats.fetch_failures() {
        out.sample("", &[("reason", reason)], count);
    }
}

fn patroni(out: &mut Exposition, view: &View<'_>) {
    let patroni = &view.stats.patroni;
    let help = "Whether the last fetch of any route brought an answer.";
    out.family("patroniglue_patroni_up", GAUGE, help);
    if patroni.standing != Standing::Unknown {
        out.sample("", &[], u8::from(patroni.standing == Standing::Answers));
    }
    let help = "1 for what Patroni is at the moment, 0 for the others.";
    out.family("patroniglue_patroni_state", GAUGE, help);
    for standing in Standing::ALL {
        let is_it = u8::from(standing == view.standing.0);
        out.sample("", &[("state", standing.name())], is_it);
    }
    let help = "Unix time of Patroni's last answer.";
    out.family("patroniglue_patroni_last_answer_timestamp_seconds", GAUGE, help);
    if let Some(at) = patroni.answered_at {
        out.sample("", &[], Seconds(view.unix_ms(at)));
    }
}

fn node(out: &mut Exposition, view: &View<'_>) {
    let report = view.node.map(|(report, _)| report);
    let help = "The node as Patroni describes it; always 1.";
    out.family("patroniglue_node_info", GAUGE, help);
    if let Some(report) = report {
        let text = |field: &Option<String>| cut(field.as_deref().unwrap_or("")).to_owned();
        let member = &report.patroni;
        let [scope, name, version] = [&member.scope, &member.name, &member.version].map(text);
        let labels = [("scope", &*scope), ("name", &*name), ("patroni_version", &*version)];
        out.sample("", &labels, 1);
    }
    let help = "1 for the role of the last answer, 0 for the others.";
    out.family("patroniglue_node_role", GAUGE, help);
    if let Some(report) = report {
        let found = role_name(&report.role);
        let is_known = ROLES.contains(&found);
        for role in ROLES {
            out.sample("", &[("role", role)], u8::from(role == found));
        }
        out.sample("", &[("role", OTHER)], u8::from(!is_known));
    }
    out.family("patroniglue_node_timeline", GAUGE, "Timeline of the last answer.");
    if let Some(timeline) = report.and_then(|report| report.timeline) {
        out.sample("", &[], timeline);
    }
    out.single(
        "patroniglue_node_role_changes_total",
        COUNTER,
        "Times that the role changed.",
        view.role_changes,
    );
    let help = "Unix time at which Patroni last saw the DCS, as it says.";
    out.family("patroniglue_node_dcs_last_seen_timestamp_seconds", GAUGE, help);
    if let Some(seen) = report.and_then(|report| report.dcs_last_seen) {
        out.sample("", &[], seen);
    }
}

fn lease(out: &mut Exposition, view: &View<'_>) {
    let left_ms = match view.lease {
        LeaseView::Sure { left_ms, .. } => left_ms,
        LeaseView::Not { .. } => 0,
    };
    let until = if left_ms > 0 { view.now.unix_ms.saturating_add(left_ms) } else { 0 };
    out.single(
        "patroniglue_lease_sure_until_timestamp_seconds",
        GAUGE,
        "Unix time until which a leader's answer may be served stale; 0 when it may not.",
        Seconds(until),
    );
    if !view.has_witness {
        return;
    }
    out.single(
        "patroniglue_lease_remaining_seconds",
        GAUGE,
        "Seconds for which the lease in the DCS allows a leader's stale answer; 0 when it does not.",
        Seconds(view.witnessed_ms),
    );
    let help = "Whether the last read of the DCS succeeded.";
    out.family("patroniglue_witness_up", GAUGE, help);
    if let Some(is_up) = view.stats.witness_up {
        out.sample("", &[], u8::from(is_up));
    }
    let help = "Reads of the DCS, by what they said about the lease.";
    out.family("patroniglue_witness_reads_total", COUNTER, help);
    for (outcome, count) in view.stats.witness_reads() {
        out.sample("", &[("outcome", outcome)], count);
    }
}

fn answers(out: &mut Exposition, view: &View<'_>) {
    out.family("patroniglue_answer_status", GAUGE, "Status that the route has in memory.");
    for entry in view.entries.iter().filter(|entry| !entry.route.has_parameters) {
        if let Some(status) = entry.status {
            out.sample("", &[("route", entry.route.path())], status);
        }
    }
}

fn process(out: &mut Exposition, shell: &ShellView) {
    out.single(
        "process_start_time_seconds",
        GAUGE,
        "Start time of the process since unix epoch in seconds.",
        Seconds(shell.started_unix_ms),
    );
    let Some(process) = shell.process else { return };
    out.single(
        "process_cpu_seconds_total",
        COUNTER,
        "Total user and system CPU time spent in seconds.",
        Seconds(process.cpu_ms),
    );
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory size in bytes.", process.resident_bytes),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", process.virtual_bytes),
        ("process_open_fds", "Number of open file descriptors.", process.descriptors),
        ("process_max_fds", "Maximum number of open file descriptors.", process.descriptors_max),
    ];
    for (name, help, value) in gauges {
        out.single(name, GAUGE, help, value);
    }
}

/// The text that is being written.
struct Exposition {
    text: String,
    /// The name of the last family.
    name: &'static str,
}

/// Milliseconds, written as seconds.
struct Seconds(u64);

impl Exposition {
    /// Begins a family of series.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A series of the last family. `suffix` belongs to its name.
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let name = self.name;
        self.write(format_args!("{name}{suffix}"));
        for (at, (label, value)) in labels.iter().enumerate() {
            let opening = if at == 0 { '{' } else { ',' };
            self.write(format_args!("{opening}{label}=\"{}\"", escaped(value)));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{closing} {value}\n"));
    }

    /// A family with one series without labels.
    fn single(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample("", &[], value);
    }

    fn write(&mut self, text: Arguments<'_>) {
        let _ = self.text.write_fmt(text); // into memory: it does not fail
    }

    fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        for (bound, count) in histogram.cumulative() {
            self.sample("_bucket", &[("le", bound)], count);
        }
        self.sample("_sum", &[], Seconds(histogram.sum_ms));
        self.sample("_count", &[], histogram.count());
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 % 1_000 {
            0 => write!(f, "{}", self.0 / 1_000),
            ms => write!(f, "{}.{ms:03}", self.0 / 1_000),
        }
    }
}

/// A label's value: three characters have an escape.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// The size of a usual scrape, with some space.
const BYTES_USUAL: usize = 16 * 1024;
const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";
/// The roles that have a series of their own.
const ROLES: [&str; 3] = ["primary", "standby_leader", "replica"];
