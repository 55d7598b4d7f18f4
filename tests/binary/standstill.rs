//! The process is stopped in the middle of a turn: what was decided on before is not sent after.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::standin::{Mood, StandIn, unix_ms};
use crate::common::{Glue, body, header, status_of, wait_for};

/// Asks until `ended`; returns by how many milliseconds each answer was older than its `Age`.
fn lateness(glue: &Glue, ended: &AtomicBool) -> Vec<u64> {
    let mut client = glue.connect();
    let mut late_ms = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let Some(text) = ask(&mut client) else {
            client = glue.connect();
            continue;
        };
        let now_ms = unix_ms();
        if status_of(&text) == 200 {
            let age_ms = 1_000 * header(&text, "Age").and_then(|age| age.parse().ok()).unwrap_or(0);
            let stamp = body(&text).split("\"asked_at\": ").nth(1);
            let stamp = stamp.and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
            late_ms.push((now_ms - stamp.expect("a stamp")).saturating_sub(age_ms));
        }
    }
    late_ms
}

/// `None`: the connection was closed.
fn ask(client: &mut TcpStream) -> Option<String> {
    client.write_all(b"GET /primary HTTP/1.1\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = client.read(&mut piece).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let end = text.find("\r\n\r\n").map(|end| end + 4);
        let length = header(&text, "Content-Length").and_then(|value| value.parse().ok());
        if end.zip(length).is_some_and(|(end, length): (_, usize)| text.len() >= end + length) {
            return Some(text.into_owned());
        }
    }
}

#[test]
fn after_a_standstill_no_earlier_answer_is_sent() {
    let patroni = StandIn::start(Mood::Stamps(Duration::ZERO));
    let mut glue = Glue::start(patroni.address, &[("cache", "ttl: 0.2")]);
    let state = format!("/proc/{}/stat", glue.process_id());
    let ended = AtomicBool::new(false);
    let late_ms: Vec<u64> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| lateness(&glue, &ended))).collect();
        for number in 0..STANDSTILLS {
            thread::sleep(Duration::from_millis(300 + 37 * number));
            glue.signal("STOP");
            wait_for("its standstill", || {
                fs::read_to_string(&state).is_ok_and(|text| text.contains(") T ")).then_some(())
            });
            thread::sleep(STANDSTILL);
            glue.signal("CONT");
        }
        thread::sleep(Duration::from_millis(300));
        ended.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    let late = late_ms.iter().filter(|ms| **ms > LATE_MS).count() as u64;
    println!("{} answers, {late} of them late, {:?} ms", late_ms.len(), late_ms.iter().max());
    // a stop may fall between the daemon's look at the clock and its system call
    assert!(late <= STANDSTILLS, "{late} of {} answers", late_ms.len());
    glue.wait_for_line("the process stood still for ");
    assert_eq!(glue.get("/primary").0, 200);
}

const CLIENTS: u64 = 48;
const STANDSTILLS: u64 = 4;
const STANDSTILL: Duration = Duration::from_secs(3);
/// More than an answer's age beyond full seconds, its way and the test's threads take.
const LATE_MS: u64 = 2_500;
