//! Writes log lines to stderr in a separate thread, so that a full or closed stderr cannot stop
//! the loop.
//!
//! The loop adds its lines to a queue of limited length and never waits: when the queue is full,
//! lines are dropped and counted. simple_logger blocks when the pipe is full and panics when it is
//! closed; in that thread both are harmless.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// Sends lines to the writing thread.
struct Queue {
    sender: SyncSender<Message>,
    level: LevelFilter,
    /// Lines dropped since the last one that was written.
    dropped_count: AtomicU64,
}

/// Lines dropped since the start.
static DROPPED_COUNT: AtomicU64 = AtomicU64::new(0);

enum Message {
    Line {
        level: Level,
        target: String,
        text: String,
    },
    /// Requests a reply once all previous lines are written.
    Flush(SyncSender<()>),
}

/// Starts the writing thread and directs the log macros to it. Works once per process.
pub fn start(level: LevelFilter) -> io::Result<()> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let thread = thread::Builder::new().name("log".into()).stack_size(STACK_BYTES);
    thread.spawn(move || write_lines(&receiver, level))?;
    let queue = Queue { sender, level, dropped_count: AtomicU64::new(0) };
    log::set_boxed_logger(Box::new(queue)).map_err(io::Error::other)?;
    log::set_max_level(level);
    Ok(())
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let line = Message::Line { level: record.level(), target: TARGET.to_owned(), text };
        if let Err(TrySendError::Full(_)) = self.sender.try_send(line) {
            self.dropped_count.fetch_add(1, Ordering::Relaxed);
            DROPPED_COUNT.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped_count = self.dropped_count.swap(0, Ordering::Relaxed);
        if dropped_count > 0 {
            let text = format!("{dropped_count} log lines dropped: stderr is not read fast enough");
            let line = Message::Line { level: Level::Warn, target: TARGET.to_owned(), text };
            let _ = self.sender.try_send(line);
        }
    }

    /// Waits until all previous lines are written, at most [`FLUSH_TIMEOUT`].
    fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.sender.try_send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// How many lines were dropped since the start because stderr was not read.
pub fn dropped_count() -> u64 {
    DROPPED_COUNT.load(Ordering::Relaxed)
}

/// Prints one line to stderr at once, for use without a started logger.
pub fn print_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn write_lines(receiver: &Receiver<Message>, level: LevelFilter) {
    let logger = SimpleLogger::new().with_level(level).with_utc_timestamps();
    let is_journal = is_journal();
    while let Ok(message) = receiver.recv() {
        match message {
            Message::Line { level, text, .. } if is_journal => {
                print_line(&format!("<{}>{text}", priority(level)));
            }
            Message::Line { level, target, text } => {
                // simple_logger panics when stderr is closed; the line is lost, the daemon is not
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    let arguments = format_args!("{text}");
                    let mut record = Record::builder();
                    logger.log(&record.level(level).target(&target).args(arguments).build());
                }));
            }
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// Whether stderr is the journal's stream, which adds the time and the name itself.
/// `JOURNAL_STREAM` is device and inode of that stream (systemd.exec(5)); a stderr that was
/// redirected since is another one.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let metadata = stderr.and_then(|stderr| stderr.metadata());
    metadata.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The priority of a level in the journal (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Lines in the queue. 100 KiB at a hundred bytes each, 1 MiB with `-verbose` and the longest
/// targets.
const LINES_MAX: usize = 1024;
const TARGET: &str = "patroniglue";
const STACK_BYTES: usize = 128 * 1024;
/// How long the end of the process waits for the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
