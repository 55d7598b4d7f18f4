//! Whether the wall clock can be believed: ours, compared with the monotonic clock, which stands
//! still while the machine sleeps and is never set; and Patroni's, compared with ours.

use crate::time::{Now, Time};

/// What is known about our wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WallClock {
    /// Not observed yet.
    #[default]
    Unknown,
    /// It runs as the monotonic clock does.
    Steady(Offset),
    /// It jumped, or Patroni is another one: `dcs_last_seen` may be from before until it moves.
    Distrusted {
        /// As in `Steady`.
        offset: Offset,
        /// The `dcs_last_seen` of the first answer since.
        seen: Option<u64>,
    },
}

/// How far the wall clock is ahead of the monotonic one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Follows a slewed clock at [`SLEW_PER_MILLE_MAX`] at most: small steps add up to a jump.
    ahead_ms: i64,
    /// When `ahead_ms` last followed.
    followed_at: Time,
}

/// Patroni's clock, compared with ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatroniClock {
    /// Until then Patroni's times are not believed.
    skewed_until: Time,
}

impl WallClock {
    /// Compares both clocks. If the wall clock jumped, returns the Unix milliseconds it would show
    /// now without the jump.
    pub fn observe(&mut self, now: Now) -> Option<u64> {
        let ahead_ms = now.unix_ms as i64 - now.time.as_ms() as i64;
        let found = Offset { ahead_ms, followed_at: now.time };
        let offset = match self {
            WallClock::Unknown => {
                *self = WallClock::Steady(found);
                return None;
            }
            WallClock::Steady(offset) | WallClock::Distrusted { offset, .. } => offset,
        };
        if offset.ahead_ms.abs_diff(ahead_ms) <= JUMP_MS_MIN {
            offset.follow(found);
            return None;
        }
        let before_unix_ms = now.time.as_ms().saturating_add_signed(offset.ahead_ms);
        *self = WallClock::Distrusted { offset: found, seen: None };
        Some(before_unix_ms)
    }

    /// An answer reported this `dcs_last_seen`, which one of our DCS reads may have set
    /// (`may_be_ours`). Returns whether it is the first since the distrust that is certainly new.
    pub fn learn_dcs_last_seen(&mut self, seen: u64, may_be_ours: bool) -> bool {
        let WallClock::Distrusted { offset, seen: before } = self else { return false };
        let moved_on = before.replace(seen).is_some_and(|before| before != seen);
        let trusted = moved_on && !may_be_ours;
        if trusted {
            *self = WallClock::Steady(*offset);
        }
        trusted
    }

    /// The clock after another Patroni is configured, as after a jump: it may be the same one under
    /// another name, and our forgotten requests may have set its `dcs_last_seen`.
    pub fn without_patroni(self) -> Self {
        match self {
            WallClock::Steady(offset) | WallClock::Distrusted { offset, .. } => {
                WallClock::Distrusted { offset, seen: None }
            }
            WallClock::Unknown => WallClock::Unknown,
        }
    }

    /// Whether it jumped, or Patroni is another one, and Patroni has not moved `dcs_last_seen` on
    /// its own since.
    pub fn is_distrusted(&self) -> bool {
        matches!(self, WallClock::Distrusted { .. })
    }
}

impl Offset {
    fn follow(&mut self, found: Offset) {
        let elapsed_ms = found.followed_at.ms_since(self.followed_at);
        let limit_ms = i64::try_from(elapsed_ms * SLEW_PER_MILLE_MAX / 1_000).unwrap_or(i64::MAX);
        if limit_ms > 0 {
            let step_ms = (found.ahead_ms - self.ahead_ms).clamp(-limit_ms, limit_ms);
            *self = Offset { ahead_ms: self.ahead_ms + step_ms, followed_at: found.followed_at };
        }
    }
}

impl PatroniClock {
    /// Compares the times of an answer with ours. `asked_unix_ms` and `now` enclose the moment at
    /// which Patroni read its clock. Returns whether Patroni's clock is skewed and was not before.
    pub fn observe(
        &mut self,
        now: Now,
        asked_unix_ms: u64,
        date_unix_seconds: Option<u64>,
        dcs_last_seen: Option<u64>,
    ) -> bool {
        let is_ahead =
            |seconds: u64| seconds.saturating_mul(1_000) > now.unix_ms.saturating_add(AHEAD_MS_MAX);
        let is_behind =
            |seconds: u64| seconds.saturating_add(1).saturating_mul(1_000) <= asked_unix_ms;
        let is_skewed = date_unix_seconds.is_some_and(|date| is_ahead(date) || is_behind(date))
            || dcs_last_seen.is_some_and(is_ahead);
        let was_skewed = self.is_skewed(now.time);
        if is_skewed {
            self.skewed_until = now.time.plus_ms(SKEWED_MS);
        }
        is_skewed && !was_skewed
    }

    /// Whether Patroni's times cannot be compared with ours.
    pub fn is_skewed(&self, now: Time) -> bool {
        now < self.skewed_until
    }
}

/// Smaller differences are not a jump: the process may be preempted between reading the two clocks.
pub const JUMP_MS_MIN: u64 = 250;
/// How fast a clock may be slewed without counting as a jump; ntpd slews by 0.5 per mille.
const SLEW_PER_MILLE_MAX: u64 = 1;
/// How far Patroni's times may be ahead of our clock, which is read when a turn begins.
const AHEAD_MS_MAX: u64 = 250;
/// A skewed clock is believed again after this time without a sign of skew. `Date` has whole
/// seconds, so a small skew shows in few answers.
const SKEWED_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, unix_ms: u64) -> Now {
        Now { time: Time::from_ms(ms), unix_ms }
    }

    /// Looks once a second; each step moves the wall clock by this much. Returns the first second
    /// at which it counts as a jump.
    fn first_jump(step_ms: i64) -> Option<u64> {
        let mut clock = WallClock::default();
        (0..1_000).find(|second| {
            let ms = second * 1_000;
            let unix_ms = (1_000_000_u64 + ms).saturating_add_signed(step_ms * *second as i64);
            clock.observe(at(ms, unix_ms)).is_some()
        })
    }

    #[test]
    fn small_steps_sum_up_and_a_slew_does_not() {
        assert_eq!((first_jump(0), first_jump(1), first_jump(-1)), (None, None, None));
        assert_eq!((first_jump(251), first_jump(-251)), (Some(1), Some(1)));
        // the offset follows by 1 ms a second
        assert_eq!((first_jump(200), first_jump(-200)), (Some(2), Some(2)));
        assert_eq!((first_jump(11), first_jump(-11)), (Some(25), Some(25)));
    }

    #[test]
    fn after_a_jump_the_time_without_it_is_returned() {
        let mut clock = WallClock::default();
        assert_eq!(clock.observe(at(0, 50_000)), None);
        assert_eq!(clock.observe(at(1_000, 61_000)), Some(51_000));
        assert_eq!(clock.observe(at(2_000, 62_000)), None, "once");
        assert_eq!(clock.observe(at(3_000, 60_000)), Some(63_000));
    }

    #[test]
    fn patronis_clock_is_compared_with_the_fetchs_begin_and_end() {
        let table = [
            // asked, received, Date, dcs_last_seen: skewed
            (10_000, 10_200, Some(10), Some(9), false),
            (10_900, 11_100, Some(10), None, false),
            (10_900, 11_100, Some(11), None, false),
            (10_900, 10_950, Some(11), None, false), // within AHEAD_MS_MAX
            (10_100, 10_700, Some(11), None, true),
            (10_100, 10_200, Some(9), None, true),
            (10_100, 10_200, Some(10), Some(11), true),
            (10_100, 10_200, None, None, false),
        ];
        for (asked, received, date, seen, skewed) in table {
            let mut clock = PatroniClock::default();
            let now = at(received, received);
            assert_eq!(clock.observe(now, asked, date, seen), skewed, "{asked} {date:?} {seen:?}");
            assert_eq!(clock.is_skewed(now.time), skewed);
            assert!(!clock.observe(now, asked, date, seen), "said once");
            assert_eq!(clock.is_skewed(now.time.plus_ms(59_999)), skewed);
            assert!(!clock.is_skewed(now.time.plus_ms(60_000)));
        }
    }

    #[test]
    fn another_patroni_has_to_move_on_twice_as_well() {
        let mut clock = WallClock::default();
        clock.observe(at(0, 10_000));
        let mut clock = clock.without_patroni();
        assert!(!clock.learn_dcs_last_seen(5, false), "our requests may have set it");
        assert!(clock.learn_dcs_last_seen(15, false));
        let mut clock = WallClock::default();
        clock.observe(at(0, 10_000));
        clock.observe(at(1, 20_001));
        clock.learn_dcs_last_seen(15, false);
        let mut clock = clock.without_patroni();
        assert!(!clock.learn_dcs_last_seen(17, false), "another Patroni's first");
        assert!(clock.learn_dcs_last_seen(18, false));
    }
}
