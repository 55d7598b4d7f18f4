//! The admin port's answers: health, metrics, status, and the files of the status page. Everything
//! is rendered from a [`View`]; nothing here changes anything.

pub mod metrics;
pub mod page;
pub mod status;

use crate::cache::EntryView;
use crate::changes::Changes;
use crate::node::intervals::Intervals;
use crate::node::report::NodeReport;
use crate::stats::{Second, Standing, Stats};
use crate::time::{Now, Time};

/// What an admin path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Whether the loop turns.
    Health,
    /// A report, which needs the shell's part.
    Report(Report),
    /// A file of the status page.
    File(&'static page::File),
}

/// A report about the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Prometheus' text format.
    Metrics,
    /// JSON.
    Status,
}

/// What the engine shows.
#[derive(Debug)]
pub struct View<'a> {
    /// The time of the report.
    pub now: Now,
    /// The counters.
    pub stats: &'a Stats,
    /// The last two minutes, the oldest second first.
    pub seconds: Vec<Second>,
    /// Whether Patroni answers, and since when. A fetch that has not ended counts as well.
    pub standing: (Standing, Time),
    /// The last changes.
    pub changes: &'a Changes,
    /// The node's last report, and since when it has its role.
    pub node: Option<(&'a NodeReport, Time)>,
    /// How often the role has changed.
    pub role_changes: u64,
    /// Patroni's intervals.
    pub intervals: Option<Intervals>,
    /// What may be served stale.
    pub lease: LeaseView,
    /// Milliseconds for which the DCS alone allows a leader's stale 200; 0: it does not.
    pub witnessed_ms: u64,
    /// The targets that clients ask for.
    pub entries: Vec<EntryView<'a>>,
    /// Clients of the checks' port, and their maximum.
    pub clients: (usize, usize),
    /// Fetches from Patroni in flight, and those in the queue.
    pub fetches: (usize, usize),
    /// Clients that wait for a fetch.
    pub waiters: usize,
    /// What the daemon does.
    pub state: State,
    /// Whether a DCS is configured.
    pub has_witness: bool,
}

/// What the daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Serving,
    /// The operator drains the node.
    Draining,
    /// It ends.
    Ending,
}

/// Until when a leader's 200 may be served stale, or why it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseView {
    /// For this time, by this source.
    Sure {
        /// Milliseconds from now.
        left_ms: u64,
        /// Where this is known from.
        source: Source,
    },
    /// It may not.
    Not {
        /// Why.
        why: String,
    },
}

/// Where a lease is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Patroni's answers, within the grace.
    Patroni,
    /// The DCS.
    Dcs,
}

/// What the shell knows.
#[derive(Clone, Debug, Default)]
pub struct ShellView {
    /// Where it listens: the port's name and the address.
    pub listening: Vec<(&'static str, String)>,
    /// Whether clients of the checks' port speak TLS, and whether they must present certificates.
    pub client_tls: ClientTls,
    /// Scheme, host and port of Patroni.
    pub patroni: String,
    /// The key of each certificate, and the Unix second in which it expires.
    pub certificates: Vec<(String, u64)>,
    /// Whether the last reload succeeded.
    pub is_reloaded: bool,
    /// The Unix milliseconds at which the process started. Stored: computed from two clocks for
    /// each scrape, it would move by a millisecond between scrapes.
    pub started_unix_ms: u64,
    /// The Unix milliseconds at which the configuration in force was read.
    pub configured_unix_ms: u64,
    /// Lines that were not logged because stderr was not read.
    pub log_lines_dropped: u64,
    /// What the system says about the process, if it can be read.
    pub process: Option<Process>,
}

/// TLS on the checks' port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientTls {
    /// Plain HTTP.
    #[default]
    Off,
    /// Without client certificates.
    WithoutCertificates,
    /// A client may present one.
    OptionalCertificates,
    /// A client must present one.
    RequiredCertificates,
}

/// A process, as the client libraries of Prometheus describe it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Processor time, user and system.
    pub cpu_ms: u64,
    /// Memory in use.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Their maximum.
    pub descriptors_max: u64,
}

impl State {
    /// Its name in the status.
    pub fn name(self) -> &'static str {
        match self {
            State::Serving => "serving",
            State::Draining => "draining",
            State::Ending => "ending",
        }
    }
}

impl Source {
    /// Its name in the status.
    pub fn name(self) -> &'static str {
        match self {
            Source::Patroni => "patroni",
            Source::Dcs => "dcs",
        }
    }
}

impl View<'_> {
    /// The Unix milliseconds of a time since the start, by the clock as it is now.
    fn unix_ms(&self, time: Time) -> u64 {
        self.now.unix_ms.saturating_sub(self.now.time.ms_since(time))
    }
}

/// The role as Patroni 4 names it.
fn role_name(role: &str) -> &str {
    if role == "master" { "primary" } else { role }
}

/// The first [`TEXT_BYTES_MAX`] bytes of a text from outside: a node's name has a few characters.
fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// The resource of a path, its query ignored; `None`: there is none.
pub fn resolve(target: &str) -> Option<Resource> {
    let path = target.split('?').next().unwrap_or(target);
    match path {
        "/health" => Some(Resource::Health),
        "/metrics" => Some(Resource::Report(Report::Metrics)),
        "/status" => Some(Resource::Report(Report::Status)),
        _ => page::FILES.iter().find(|file| file.path == path).map(Resource::File),
    }
}

/// Maximum bytes of a text from outside in metrics and status.
const TEXT_BYTES_MAX: usize = 256;
