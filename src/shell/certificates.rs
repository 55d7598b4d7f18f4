//! Certificates that are replaced while the daemon runs: cert-manager and certbot send no signal.
//!
//! A thread looks at the files once a minute and reads them when one of them has changed. The loop
//! takes over what was read; a pair that is half-written leaves the previous one in force.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use log::{Level, warn};
use mio::Waker;

use super::Daemon;
use super::tls::Tls;
use crate::changes::Kind;
use crate::config::Config;
use crate::time::Now;

/// The state of a file, by which a change is noticed: also of the target of a symbolic link, as
/// Kubernetes replaces a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    modified_s: i64,
    modified_ns: i64,
    bytes: u64,
}

/// The files of a configuration, as they were when they were read last.
pub struct Watch {
    config: Config,
    stamps: Vec<Option<Stamp>>,
    /// Why they could not be read since.
    error: Option<String>,
}

/// What a look at the files brought.
pub enum Look {
    /// No file has changed.
    Unchanged,
    /// The files have changed and were read.
    Read(Box<Tls>),
    /// The files have changed and cannot be used. Each reason is reported once.
    Failed(Option<String>),
}

impl Watch {
    /// Watches the files that this configuration names. `stamps` are those before the last reading.
    pub fn new(config: Config, stamps: Vec<Option<Stamp>>) -> Watch {
        Watch { config, stamps, error: None }
    }

    /// Looks at the files.
    pub fn look(&mut self) -> Look {
        if stamps(&self.config) == self.stamps {
            self.error = None;
            return Look::Unchanged;
        }
        match Tls::read(&self.config) {
            Ok(tls) => {
                self.stamps.clone_from(&tls.stamps);
                self.error = None;
                Look::Read(Box::new(tls))
            }
            Err(wrong) => {
                let error = Some(wrong.to_string());
                let is_news = error != self.error;
                self.error.clone_from(&error);
                Look::Failed(error.filter(|_| is_news))
            }
        }
    }
}

/// The stamps of all files, in the order of the configuration; `None`: a file cannot be looked at.
pub fn stamps(config: &Config) -> Vec<Option<Stamp>> {
    config.certificate_files().map(stamp).collect()
}

fn stamp(file: &str) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        modified_s: found.mtime(),
        modified_ns: found.mtime_nsec(),
        bytes: found.size(),
    })
}

/// The thread that looks, and what it has found.
pub struct Certificates {
    waker: Arc<Waker>,
    look_every: Duration,
    thread: Option<Thread>,
    /// The number of configurations so far: what was read for an earlier one does not count.
    generation: u32,
}

/// What the thread is to watch, and what it has found, with the number of the configuration.
type Thread = (Sender<(Watch, u32)>, Receiver<(Found, u32)>);

enum Found {
    /// The files have changed.
    Changed(Box<Tls>),
    /// They have not, but a day has passed: what expires soon is logged again.
    Daily(Vec<String>),
    Failed(String),
}

impl Certificates {
    /// Nothing is looked at before [`Certificates::watch`].
    pub fn new(waker: Arc<Waker>, look_every: Duration) -> Certificates {
        Certificates { waker, look_every, thread: None, generation: 0 }
    }

    /// Watches the files of this configuration from now on. Without any there is no thread.
    pub fn watch(&mut self, config: &Config, tls: &Tls) {
        self.generation = self.generation.wrapping_add(1);
        if self.thread.is_none() && tls.stamps.is_empty() {
            return;
        }
        let watch = Watch::new(config.clone(), tls.stamps.clone());
        let thread = self.thread.get_or_insert_with(|| begin_thread(&self.waker, self.look_every));
        // fails if the thread could not begin: then SIGHUP is the only way
        let _ = thread.0.send((watch, self.generation));
    }

    fn found(&self) -> Option<Found> {
        let (_, found) = self.thread.as_ref()?;
        found
            .try_iter()
            .filter(|(_, generation)| *generation == self.generation)
            .last()
            .map(|(found, _)| found)
    }
}

impl Daemon {
    /// Takes over the certificates that the thread has read.
    pub(super) fn take_certificates(&mut self, now: Now) {
        match self.certificates.found() {
            Some(Found::Changed(tls)) => {
                tls.findings.warnings.iter().for_each(|warning| warn!("{warning}"));
                self.tls = *tls;
                let text = "certificates have changed, and were read again";
                self.engine.log_change(now, Level::Info, Kind::Tls, text);
            }
            Some(Found::Daily(warnings)) => warnings.iter().for_each(|warning| warn!("{warning}")),
            Some(Found::Failed(error)) => {
                let text = format!("certificates have changed, but are not used: {error}");
                self.engine.log_change(now, Level::Warn, Kind::Tls, &text);
            }
            None => {}
        }
    }
}

fn begin_thread(waker: &Arc<Waker>, look_every: Duration) -> Thread {
    let (waker, (watches, to_watch), (sender, found)) = (Arc::clone(waker), channel(), channel());
    let thread = thread::Builder::new().name("certificates".into()).stack_size(STACK_BYTES);
    let _ = thread.spawn(move || look_for_ever(&to_watch, look_every, &sender, &waker));
    (watches, found)
}

fn look_for_ever(
    watches: &Receiver<(Watch, u32)>,
    look_every: Duration,
    sender: &Sender<(Found, u32)>,
    waker: &Waker,
) {
    let Ok((mut watch, mut generation)) = watches.recv() else { return };
    let (mut pause, mut unlogged) = (look_every, Duration::ZERO);
    loop {
        match watches.recv_timeout(pause) {
            Ok(next) => {
                ((watch, generation), pause) = (next, look_every);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return, // the daemon has ended
            Err(RecvTimeoutError::Timeout) => unlogged += pause,
        }
        let look = watch.look();
        pause =
            if matches!(look, Look::Failed(_)) { look_every.min(RETRY_PAUSE) } else { look_every };
        let found = match look {
            Look::Read(tls) => Found::Changed(tls),
            Look::Failed(Some(error)) => Found::Failed(error),
            Look::Failed(None) => continue,
            Look::Unchanged if unlogged < A_DAY => continue,
            Look::Unchanged => Found::Daily(
                Tls::read(&watch.config).map(|tls| tls.findings.warnings).unwrap_or_default(),
            ),
        };
        unlogged = Duration::ZERO;
        if sender.send((found, generation)).is_err() || waker.wake().is_err() {
            return;
        }
    }
}

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure, sooner: a certificate without its key is often half of a replacement.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
const A_DAY: Duration = Duration::from_secs(86_400);
/// Enough for reading PEM files.
const STACK_BYTES: usize = 256 * 1024;
