//! The last changes of state, in the words of the log, for the status page.

use std::collections::VecDeque;

use log::Level;

use crate::time::Time;

/// The last changes.
#[derive(Debug, Default)]
pub struct Changes(VecDeque<Change>);

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When it was logged.
    pub at: Time,
    /// As in the log.
    pub level: Level,
    /// What changed.
    pub kind: Kind,
    /// The log line, cut to 200 characters.
    pub text: Box<str>,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon started or ends.
    Start,
    /// The node's role, or which node answers.
    Role,
    /// Whether Patroni answers.
    Patroni,
    /// Whether stale answers are served, or may be.
    Stale,
    /// What the DCS says.
    Witness,
    /// The configuration.
    Reload,
    /// The drain.
    Drain,
    /// Certificates.
    Tls,
}

impl Changes {
    /// Logs a change and remembers it.
    pub fn log(&mut self, now: Time, level: Level, kind: Kind, text: &str) {
        log::log!(level, "{text}");
        if self.0.len() == CHANGES_MAX {
            self.0.pop_back();
        }
        let text = text.chars().take(TEXT_CHARS_MAX).collect::<String>().into();
        self.0.push_front(Change { at: now, level, kind, text });
    }

    /// The changes, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.0.iter()
    }
}

impl Kind {
    /// Its name in the status.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Start => "start",
            Kind::Role => "role",
            Kind::Patroni => "patroni",
            Kind::Stale => "stale",
            Kind::Witness => "witness",
            Kind::Reload => "reload",
            Kind::Drain => "drain",
            Kind::Tls => "tls",
        }
    }
}

/// How many changes are remembered.
const CHANGES_MAX: usize = 100;
/// The longest usual line is shorter: only the long name of a file, target or node is cut.
const TEXT_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_hundred_changes_are_kept_and_cut() {
        let mut changes = Changes::default();
        for count in 0..150 {
            let text = format!("{count} {}", "\u{e9}".repeat(300));
            changes.log(Time::from_ms(count), Level::Info, Kind::Role, &text);
        }
        let kept: Vec<_> = changes.iter().collect();
        assert_eq!((kept.len(), kept[0].at), (100, Time::from_ms(149)));
        assert_eq!(kept[99].at, Time::from_ms(50));
        assert_eq!(kept[0].text.chars().count(), TEXT_CHARS_MAX);
    }
}
