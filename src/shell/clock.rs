//! The clocks: read once a turn, everything else gets the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::time::{Now, Time};

/// The daemon's two clocks.
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Time begins.
    pub fn new() -> Self {
        Clock { start: Instant::now() }
    }

    /// Both clocks, now.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            time: Time::from_ms(self.start.elapsed().as_millis() as u64),
            unix_ms: unix.as_millis() as u64,
        }
    }
}
