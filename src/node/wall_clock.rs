//! Whether the wall clock can be believed: compared with the monotonic clock, which stands still
//! while the machine sleeps and is never set.

use crate::time::Now;

/// The wall clock as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WallClock {
    /// Not seen yet.
    #[default]
    Unknown,
    /// It runs as the monotonic clock does, this many milliseconds ahead of it.
    Steady(i64),
    /// It jumped, and a `dcs_last_seen` may be from before; once that moves on it is not.
    Jumped {
        /// Milliseconds ahead of the monotonic clock, since the jump.
        ahead_ms: i64,
        /// The `dcs_last_seen` of the first answer since.
        seen: Option<u64>,
    },
}

impl WallClock {
    /// Looks at both clocks. Returns, if the wall clock jumped, what it would say now if it had
    /// not.
    pub fn observe(&mut self, now: Now) -> Option<u64> {
        let ahead_ms = now.unix_ms as i64 - now.time.as_ms() as i64;
        let last_ms = match self {
            WallClock::Unknown => {
                *self = WallClock::Steady(ahead_ms);
                return None;
            }
            WallClock::Steady(last_ms) | WallClock::Jumped { ahead_ms: last_ms, .. } => last_ms,
        };
        let before_ms = std::mem::replace(last_ms, ahead_ms);
        if before_ms.abs_diff(ahead_ms) <= JUMP_MS_MIN {
            return None;
        }
        *self = WallClock::Jumped { ahead_ms, seen: None };
        Some(now.time.as_ms().saturating_add_signed(before_ms))
    }

    /// An answer reported this `dcs_last_seen`, which a DCS read of ours may have set
    /// (`may_be_ours`). Returns whether it is the first that is certainly of the time since a jump.
    pub fn learn_dcs_last_seen(&mut self, seen: u64, may_be_ours: bool) -> bool {
        let WallClock::Jumped { ahead_ms, seen: before } = self else { return false };
        let moved_on = before.replace(seen).is_some_and(|before| before != seen);
        let trusted = moved_on && !may_be_ours;
        if trusted {
            *self = WallClock::Steady(*ahead_ms);
        }
        trusted
    }

    /// Whether it jumped, and `dcs_last_seen` has not moved on since.
    pub fn is_distrusted(&self) -> bool {
        matches!(self, WallClock::Jumped { .. })
    }
}

/// NTP slews by less than this between two looks, and the scheduler does not come between the
/// reading of two clocks for longer.
pub const JUMP_MS_MIN: u64 = 250;
