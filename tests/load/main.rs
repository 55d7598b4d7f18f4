//! The real binary under load: measured, one test at a time.

mod abuse;
#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod scrapes;
mod steady;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps the other tests of this target waiting until the guard is dropped. A test that failed
/// does not fail the next one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
