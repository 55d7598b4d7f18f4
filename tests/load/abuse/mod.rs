//! Mixed abuse of the real binary: well-behaved clients are not delayed, and no resources leak.
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

/// The timer of a kept connection stays in the wheel for its 30 s, although the client is gone.
const SETTLED_AFTER: Duration = Duration::from_secs(40);

#[test]
fn under_abuse_all_clients_are_answered_and_nothing_leaks() {
    let _alone = alone();
    let Ok(13_000..) = rlimit::increase_nofile_limit(13_000) else {
        assert!(std::env::var_os("CI").is_none(), "CI has descriptors enough");
        return eprintln!("skipped: the hard limit of descriptors is too low");
    };
    let patroni = FlakyPatroni::start();
    let backend = [("backend", "timeout: 0.5"), ("backend", "connections: 3")];
    let mut glue = Glue::start(patroni.address, &backend);
    // a first round loads code, stacks and the allocator's caches
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
        println!("the median took {ratio:.1} times the calm one");
    }
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.entries, before.entries);
    let allowed = before.resident_kib + before.resident_kib / 10;
    assert!(after.resident_kib <= allowed, "{} KiB, then {after:?}", before.resident_kib);
}

/// Abuse with a healthy Patroni, then with a flaky one, which is healthy again at the end.
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

/// Resources of the daemon.
#[derive(Debug)]
struct Holding {
    descriptors: usize,
    resident_kib: u64,
    entries: u64,
}

/// Its resources once there are no clients, no fetches and no timers of connections.
fn settled(glue: &mut Glue) -> Holding {
    let begun = Instant::now();
    loop {
        let counts = glue.counts();
        // the sweep, and the next fetch of Patroni's intervals
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
fn with_few_descriptors_the_daemon_survives_abuse() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    for limit in [16, 32, 64] {
        let mut glue = survives(&format!("ulimit -n {limit}"), &[], Stderr::Read, time);
        settled(&mut glue);
    }
}

#[test]
fn with_8_mib_of_spare_memory_the_daemon_survives_abuse() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    let needs = {
        let patroni = FlakyPatroni::start();
        let glue = Glue::start(patroni.address, &[]);
        assert_eq!(glue.get("/primary").0, 200);
        let Some(needs) = glue.memory_kib("VmPeak:") else { return };
        needs
    };
    println!("{needs} KiB of address space without clients");
    let mut glue = survives(&format!("ulimit -v {}", needs + 8 * 1024), &[], Stderr::Read, time);
    settled(&mut glue);
}

#[test]
fn with_a_stuck_or_closed_log_the_daemon_survives_abuse() {
    let _alone = alone();
    let time = Duration::from_secs(abuse_seconds().map_or(2, |seconds| seconds / 10));
    for stderr in [Stderr::Stuck, Stderr::Closed] {
        survives("true", &["-verbose"], stderr, time);
    }
}

#[test]
fn slowhttptest_delays_no_other_client() {
    let _alone = alone();
    let patroni = FlakyPatroni::start();
    let glue = Glue::start(patroni.address, &[]);
    let url = format!("http://{}/metrics", glue.address);
    let time = Duration::from_secs(abuse_seconds().map_or(3, |seconds| seconds / 20));
    let seconds = time.as_secs().to_string();
    // slow heads, slow bodies, and answers read byte by byte
    for kind in [&["-H"][..], &["-B"], &["-X", "-w", "1", "-y", "64", "-n", "1", "-k", "5"]] {
        let mut tool = Command::new("slowhttptest");
        tool.args(kind).args(["-c", "1000", "-r", "500", "-i", "1", "-p", "2"]);
        tool.args(["-l", &seconds, "-u", &url]);
        let running = thread::spawn(move || tool.output());
        probe(&format!("slowhttptest {}", kind[0]), glue.address, time, Expect::Answer);
        let Ok(output) = running.join().expect("no panic") else {
            assert!(std::env::var_os("CI").is_none(), "CI has slowhttptest");
            return eprintln!("skipped: slowhttptest is not installed");
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().rfind(|line| line.contains("service available"));
        assert!(line.is_some_and(|line| line.contains("YES")), "{kind:?}: {said}");
    }
}

/// Light abuse with a flaky Patroni, while a client gets complete answers. At the end the daemon
/// answers as before.
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
        // without a descriptor the client may be refused, and with RST
        let _ = client.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n");
        let text = read_to_end(&mut client);
        let at = [200, 503, 0].iter().position(|status| *status == status_of(&text));
        answers[at.unwrap_or_else(|| panic!("{limit}: {text}"))] += 1;
        thread::sleep(Duration::from_millis(10));
    }
    patroni.set_flaky(false);
    let connections = hostile.stop();
    let [fine, refused, none] = answers;
    println!("{limit}, {stderr:?}: {fine} × 200, {refused} × 503, {none} × no answer");
    println!("    next to {connections} hostile connections");
    assert!(glue.is_running(), "{limit}");
    wait_for("Patroni's return", || (glue.get("/primary").0 == 200).then_some(()));
    for _ in 0..50 {
        assert_eq!(glue.get("/primary").0, 200, "{limit}");
    }
    glue
}
