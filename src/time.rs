//! The two clocks as values. They are read in the shell, once a turn; everything below it gets them
//! as arguments.

/// Milliseconds since the daemon started; monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// The two clocks, read once per turn of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock: for everything that is measured.
    pub time: Time,
    /// The wall clock in Unix milliseconds: for times sent to others and received from them.
    pub unix_ms: u64,
}

impl Time {
    /// When the daemon started.
    pub const ZERO: Time = Time(0);
    /// Later than any deadline.
    pub const NEVER: Time = Time(u64::MAX);

    /// The time `ms` milliseconds after the start.
    pub const fn from_ms(ms: u64) -> Time {
        Time(ms)
    }

    /// Milliseconds after the start.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// The time `ms` milliseconds later.
    pub const fn plus_ms(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here; 0 if that is later.
    pub const fn ms_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
