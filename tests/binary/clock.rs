//! The wall clock is stepped under the real binary: all clients are answered, with no stale answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::common::standin::{Mood, StandIn, unix_ms};
use crate::common::{Glue, config, header, status_of, wait_for};

/// The library that fakes the wall clock alone, by a file; from Debian's package faketime.
fn faketime() -> Option<PathBuf> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let library = Path::new("/usr/lib").join(triple).join("faketime/libfaketime.so.1");
    if library.exists() {
        return Some(library);
    }
    assert!(std::env::var_os("CI").is_none(), "CI has faketime");
    eprintln!("skipped: faketime is not installed");
    None
}

/// With a short timeout, so that fetches from a silent Patroni end soon.
const LINES: [(&str, &str); 2] = [("cache", "grace: 20"), ("backend", "timeout: 1")];

struct Setup {
    glue: Glue,
    patroni: StandIn,
    /// The file with the offset of the wall clock.
    offset: PathBuf,
}

impl Setup {
    fn new(library: &Path, name: &str) -> Setup {
        let patroni = StandIn::start(Mood::Stamps(Duration::ZERO));
        let backend = patroni.address;
        let text = config(&backend.ip().to_string(), backend.port(), &LINES);
        let offset = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{name}"));
        fs::write(&offset, "+0").expect("a folder to write to");
        let environment = format!(
            "export LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1",
            library.display(),
            offset.display()
        );
        Setup { glue: Glue::start_with(&text, &[], Some(&environment)), patroni, offset }
    }

    /// Replaces the file atomically: the daemon reads it each time it asks for the time.
    fn step(&self, offset: &str) {
        let next = self.offset.with_extension("next");
        fs::write(&next, offset).expect("a folder to write to");
        fs::rename(&next, &self.offset).expect("the same folder");
    }

    /// Seconds between the daemon's Date and the real time.
    fn is_off_by(&self) -> u64 {
        let (status, text) = self.glue.get("/liveness");
        assert!(status == 200 || status == 503, "{text}");
        let date = header(&text, "Date").and_then(|date| httpdate::parse_http_date(date).ok());
        let date = date.expect("a date").duration_since(UNIX_EPOCH).expect("after 1970");
        date.as_secs().abs_diff(unix_ms() / 1_000)
    }

    fn primary(&self) -> (u16, String) {
        let (status, text) = self.glue.get("/primary");
        let cache = header(&text, "Cache-Status").unwrap_or_default().to_owned();
        (status, cache)
    }
}

fn stepped(name: &str, offset: &str) {
    let Some(library) = faketime() else { return };
    let setup = Setup::new(&library, name);
    setup.glue.wait_for_known_lease(&setup.patroni);
    setup.patroni.set(Mood::Silent);
    let stale = || Some(setup.primary()).filter(|(_, cache)| cache.contains("silent"));
    let stale = wait_for("a stale answer", stale);
    assert_eq!(stale.0, 200, "{stale:?}");
    setup.step(offset);
    // the current turn still has the previous time
    wait_for("the clock's step", || (setup.is_off_by() > 20).then_some(()));
    assert_eq!(setup.primary().0, 503);
    // nor when the clock is right again
    setup.step("+0");
    wait_for("the clock's return", || (setup.is_off_by() < 2).then_some(()));
    assert_eq!(setup.primary().0, 503);
    setup.patroni.set(Mood::Stamps(Duration::ZERO));
    let back = || Some(setup.glue.get("/primary").1).filter(|text| status_of(text) == 200);
    let back = wait_for("Patroni's return", back);
    assert!(header(&back, "Age") == Some("0"), "{back}");
}

#[test]
fn after_a_step_of_a_day_back_no_stale_answer_is_served() {
    stepped("back", "-1d");
}

#[test]
fn after_a_step_of_years_ahead_no_stale_answer_is_served() {
    stepped("ahead", "+3650d");
}

#[test]
fn after_a_step_of_30_s_ahead_no_stale_answer_is_served() {
    stepped("half", "+30");
}
