//! Scrapes and page polls during a steady load: no check waits for them, and memory does not grow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::alone;
use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, PATIENCE, config, read_response, status_of};

/// Asks one kept connection at a fixed rate; returns how long each check took.
fn check(address: SocketAddr) -> Vec<Duration> {
    let mut client = TcpStream::connect(address).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let begun = Instant::now();
    let mut took = Vec::new();
    for number in 0..CHECKS {
        thread::sleep((PAUSE * number).saturating_sub(begun.elapsed()));
        let asked = Instant::now();
        client.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
        assert_eq!(status_of(&read_response(&mut client)), 200);
        took.push(asked.elapsed());
    }
    took
}

/// How long the checks of all clients took, sorted.
fn checks(glue: &Glue) -> Vec<Duration> {
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| glue.address).map(|at| thread::spawn(move || check(at))).collect();
    let mut took: Vec<_> =
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect();
    took.sort();
    took
}

/// Scrapes, each on a connection of its own, and now and then a poll of the page.
fn scrape(admin: SocketAddr, count: u32) {
    let begun = Instant::now();
    for number in 0..count {
        thread::sleep((SCRAPE_PAUSE * number).saturating_sub(begun.elapsed()));
        let path = if number % 11 == 10 { "/status" } else { "/metrics" };
        let mut stream = TcpStream::connect(admin).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a response");
        assert_eq!(status_of(&text), 200, "{text}");
    }
}

#[test]
fn ten_thousand_scrapes_delay_no_check() {
    let _alone = alone();
    let patroni = StandIn::start(at_once(primary()));
    let backend = patroni.address;
    let text = config(&backend.ip().to_string(), backend.port(), &[]) + "admin: {port: 0}\n";
    let mut glue = Glue::start_with(&text, &[], None);
    let line = glue.wait_for_line("admin listening on ");
    let admin = line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address");
    assert_eq!(glue.get("/primary").0, 200);
    scrape(admin, 100); // so that memory has reached its final size
    let (alone, before) = (checks(&glue), glue.resident_kib());
    let scrapes = thread::spawn(move || scrape(admin, SCRAPES));
    let during = checks(&glue);
    let are_over = scrapes.is_finished();
    scrapes.join().expect("no panic");
    let after = glue.resident_kib();
    let of = |took: &[Duration], share: f64| took[((took.len() - 1) as f64 * share) as usize];
    for (name, took) in [("alone", &alone), ("during scrapes", &during)] {
        println!(
            "checks {name}: p50 {:?}, p99 {:?}, p99.9 {:?}, slowest {:?}",
            of(took, 0.5),
            of(took, 0.99),
            of(took, 0.999),
            of(took, 1.0)
        );
    }
    println!("resident memory: {before:?} KiB before, {after:?} KiB after");
    assert!(!are_over, "the scrapes lasted as long as the checks");
    // the tail is the scheduler's, with more threads than processors
    let (alone, during) = (of(&alone, 0.5), of(&during, 0.5));
    assert!(during <= alone * RATIO_MAX, "{during:?} instead of {alone:?}");
    let (before, after) = (before.unwrap_or(1), after.unwrap_or(1));
    assert!(after * 100 <= before * GROWTH_PERCENT_MAX, "{before} to {after} KiB");
}

/// Together 1,000 checks a second, for 10 s.
const CLIENTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);
const CHECKS: u32 = 1_000;
/// 10,000 scrapes and 1,000 polls, in a little more than that time.
const SCRAPES: u32 = 11_000;
const SCRAPE_PAUSE: Duration = Duration::from_micros(950);
/// Measured: 0.5 to 1.5, in a debug build on a machine busy with other work.
const RATIO_MAX: u32 = 4;
/// The allocator's share of a scrape; measured: 1 %.
const GROWTH_PERCENT_MAX: u64 = 105;
