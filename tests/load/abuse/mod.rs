//! Mixed abuse of the real binary: nobody well-behaved notices, and nothing is left of it.
//!
//! `cargo test` runs the short form. The long one:
//! `PATRONIGLUE_ABUSE_SECONDS=600 cargo test --release --test load abuse -- --nocapture`

mod flaky_patroni;
mod hostile_clients;
mod probers;

use std::fs;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::alone;
use crate::common::{Glue, Stderr, config, read_to_end, status_of, wait_for};
use flaky_patroni::FlakyPatroni;
use hostile_clients::{HostileClients, Load};
use probers::{Expect, probe};

/// The timer of a kept connection stays in the wheel for its 30 s, though the client is gone.
const SETTLED_AFTER: Duration = Duration::from_secs(40);

#[test]
fn abused_from_all_sides_it_answers_everybody_and_keeps_nothing() {
    let _alone = alone();
    let Ok(13_000..) = rlimit::increase_nofile_limit(13_000) else {
        assert!(std::env::var_os("CI").is_none(), "CI has descriptors enough");
        return eprintln!("skipped: the hard limit of descriptors is too low");
    };
    let patroni = FlakyPatroni::start();
    let backend = [("backend", "timeout: 0.5"), ("backend", "connections: 3")];
    let mut glue = Glue::start(patroni.address, &backend);
    // a round of everything first: code, stacks and the allocator's own stores are there then
    let small = Load { idle: 500, slow: 20, burst: 500 };
    abuse(&glue, &patroni, small, Duration::from_secs(2), "warming up");
    let before = settled(&mut glue);
    let calm = probe("calm", glue.address, Duration::from_secs(1), Expect::Answer);
    let half = Duration::from_secs(abuse_seconds().unwrap_or(8)) / 2;
    let large = Load { idle: 10_000, slow: 300, burst: 20_000 };
    let abused = abuse(&glue, &patroni, large, half, "abused");
    let after = settled(&mut glue);
    println!("before: {before:?}");
    println!("after:  {after:?}");
    for (calm, abused) in calm.iter().zip(&abused) {
        let ratio = abused.percentile(50).as_secs_f64() / calm.percentile(50).as_secs_f64();
        println!("the median took {ratio:.1} times as long");
    }
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.entries, before.entries);
    let allowed = before.resident_kib + before.resident_kib / 10;
    assert!(after.resident_kib <= allowed, "{} KiB, then {after:?}", before.resident_kib);
}

/// While Patroni is well, and then while it comes and goes; then it is well again.
fn abuse(
    glue: &Glue,
    patroni: &FlakyPatroni,
    load: Load,
    half: Duration,
    name: &str,
) -> [probers::Report; 2] {
    let hostile = HostileClients::start(glue.address, load);
    let reports = probe(name, glue.address, half, Expect::Answer);
    patroni.set_flaky(true);
    probe(&format!("{name}, Patroni too"), glue.address, half, Expect::AnswerOrReason);
    patroni.set_flaky(false);
    let connections = hostile.stop();
    println!("{name}: {connections} connections of {load:?}");
    wait_for("Patroni's return", || (glue.get("/primary").0 == 200).then_some(()));
    reports
}

/// What the daemon holds.
#[derive(Debug)]
struct Holding {
    descriptors: usize,
    resident_kib: u64,
    entries: u64,
}

/// What it holds when all has gone: nobody connected, nothing under way, no timer of a connection.
fn settled(glue: &mut Glue) -> Holding {
    let begun = Instant::now();
    loop {
        let counts = glue.counts();
        // a sweep, and the reading of Patroni's intervals
        if counts[..4].iter().all(|count| *count == 0) && counts[4] <= 2 {
            let id = glue.process_id();
            return Holding {
                descriptors: fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count),
                resident_kib: glue.resident_kib().unwrap_or(0),
                entries: counts[5],
            };
        }
        assert!(begun.elapsed() < SETTLED_AFTER, "{counts:?} are left");
        thread::sleep(Duration::from_millis(200));
    }
}

fn abuse_seconds() -> Option<u64> {
    std::env::var("PATRONIGLUE_ABUSE_SECONDS").ok()?.parse().ok()
}

#[test]
fn with_few_descriptors_it_survives_and_answers_again() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    for limit in [16, 32, 64] {
        let mut glue = survives(&format!("ulimit -n {limit}"), &[], Stderr::Read, time);
        settled(&mut glue);
    }
}

#[test]
fn within_the_memory_it_needs_and_eight_megabytes_it_survives() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    let needs = {
        let patroni = FlakyPatroni::start();
        let glue = Glue::start(patroni.address, &[]);
        assert_eq!(glue.get("/primary").0, 200);
        let Some(needs) = glue.memory_kib("VmPeak:") else { return };
        needs
    };
    println!("{needs} KiB of addresses without any clients");
    let mut glue = survives(&format!("ulimit -v {}", needs + 8 * 1024), &[], Stderr::Read, time);
    settled(&mut glue);
}

#[test]
fn with_a_log_that_is_stuck_or_closed_it_survives() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    for stderr in [Stderr::Stuck, Stderr::Closed] {
        survives("true", &["-verbose"], stderr, time);
    }
}

#[test]
fn slowhttptest_makes_nobody_wait() {
    let _alone = alone();
    let patroni = FlakyPatroni::start();
    let glue = Glue::start(patroni.address, &[]);
    let url = format!("http://{}/metrics", glue.address);
    let time = Duration::from_secs(abuse_seconds().map_or(3, |seconds| seconds / 20));
    let seconds = time.as_secs().to_string();
    // heads, bodies, and answers that are read byte by byte
    for kind in [&["-H"][..], &["-B"], &["-X", "-w", "1", "-y", "64", "-n", "1", "-k", "5"]] {
        let mut tool = Command::new("slowhttptest");
        tool.args(kind).args(["-c", "1000", "-r", "500", "-i", "1", "-p", "2"]);
        tool.args(["-l", &seconds, "-u", &url]);
        let running = thread::spawn(move || tool.output());
        probe(&format!("slowhttptest {}", kind[0]), glue.address, time, Expect::Answer);
        let Ok(output) = running.join().expect("no panic") else {
            assert!(std::env::var_os("CI").is_none(), "CI has slowhttptest");
            return eprintln!("skipped: there is no slowhttptest");
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().rfind(|line| line.contains("service available"));
        assert!(line.is_some_and(|line| line.contains("YES")), "{kind:?}: {said}");
    }
}

/// Abused by few while Patroni comes and goes; a client of its own asks all the while, and what
/// it gets is whole. In the end everything is as before.
fn survives(limit: &str, flags: &[&str], stderr: Stderr, time: Duration) -> Glue {
    let patroni = FlakyPatroni::start();
    let backend = [("backend", "timeout: 0.5")];
    let text = config(&patroni.address.ip().to_string(), patroni.address.port(), &backend);
    let mut glue = Glue::start_saying(&text, flags, Some(limit), stderr);
    let hostile =
        HostileClients::start(glue.address, Load { idle: 1000, slow: 100, burst: 20_000 });
    patroni.set_flaky(true);
    let (begun, mut answers) = (Instant::now(), [0; 3]);
    while begun.elapsed() < time {
        let mut client = glue.connect();
        // without a descriptor for him he may be turned away, and that with RST
        let _ = client.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n");
        let text = read_to_end(&mut client);
        let at = [200, 503, 0].iter().position(|status| *status == status_of(&text));
        answers[at.unwrap_or_else(|| panic!("{limit}: {text}"))] += 1;
        thread::sleep(Duration::from_millis(10));
    }
    patroni.set_flaky(false);
    let connections = hostile.stop();
    let [fine, refused, none] = answers;
    println!("{limit}, {stderr:?}: {fine} times 200, {refused} times 503, {none} times nothing");
    println!("    beside {connections} connections");
    assert!(glue.is_running(), "{limit}");
    wait_for("Patroni's return", || (glue.get("/primary").0 == 200).then_some(()));
    for _ in 0..50 {
        assert_eq!(glue.get("/primary").0, 200, "{limit}");
    }
    glue
}
