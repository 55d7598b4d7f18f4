//! The wall clock is stepped under the real binary: everybody is answered, and nothing old is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::common::standin::{Mood, StandIn, unix_ms};
use crate::common::{Glue, config, header, status_of, wait_for};

/// A library that fakes the wall clock alone, as a file says; Debian's package faketime.
fn faketime() -> Option<PathBuf> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let library = Path::new("/usr/lib").join(triple).join("faketime/libfaketime.so.1");
    if library.exists() {
        return Some(library);
    }
    assert!(std::env::var_os("CI").is_none(), "CI has faketime");
    eprintln!("skipped: faketime is not here");
    None
}

/// A fetch in vain is over soon.
const LINES: [(&str, &str); 2] = [("cache", "grace: 20"), ("backend", "timeout: 1")];

struct House {
    glue: Glue,
    patroni: StandIn,
    /// How far the clock is off.
    offset: PathBuf,
}

impl House {
    fn new(library: &Path, name: &str) -> House {
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
        House { glue: Glue::start_with(&text, &[], Some(&environment)), patroni, offset }
    }

    /// In one go: the daemon reads the file at each look at its clock.
    fn step(&self, offset: &str) {
        let next = self.offset.with_extension("next");
        fs::write(&next, offset).expect("a folder to write to");
        fs::rename(&next, &self.offset).expect("the same folder");
    }

    /// Seconds between the daemon's Date and the truth.
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
    let house = House::new(&library, name);
    // the daemon's own look at the intervals, and what Patroni says in that second, lie behind
    let known = || house.primary().0 == 200 && house.patroni.requests().len() > 3;
    wait_for("a leader that is known", || known().then_some(()));
    house.patroni.set(Mood::Silent);
    let old = || Some(house.primary()).filter(|(_, cache)| cache.contains("silent"));
    let old = wait_for("an old answer", old);
    assert_eq!(old.0, 200, "{old:?}");
    house.step(offset);
    // the turn that is under way still has the former time
    wait_for("the clock's step", || (house.is_off_by() > 20).then_some(()));
    assert_eq!(house.primary().0, 503);
    // and not again when the clock is right again
    house.step("+0");
    wait_for("the clock's return", || (house.is_off_by() < 2).then_some(()));
    assert_eq!(house.primary().0, 503);
    house.patroni.set(Mood::Stamps(Duration::ZERO));
    let back = || Some(house.glue.get("/primary").1).filter(|text| status_of(text) == 200);
    let back = wait_for("Patroni's return", back);
    assert!(header(&back, "Age") == Some("0"), "{back}");
}

#[test]
fn a_day_back() {
    stepped("back", "-1d");
}

#[test]
fn years_ahead() {
    stepped("ahead", "+3650d");
}

#[test]
fn half_a_minute_ahead() {
    stepped("half", "+30");
}
