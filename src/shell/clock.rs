//! The clocks: read once per turn; all other code gets the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::time::{Now, Time};

/// The steady clock and the wall clock.
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts the steady clock at zero.
    pub fn new() -> Self {
        Clock { start: Instant::now() }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            time: Time::from_ms(self.start.elapsed().as_millis() as u64),
            unix_ms: unix.as_millis() as u64,
        }
    }
}
