//! Ten thousand idle clients: their memory, and that they delay no other client.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::alone;
use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, read_response, read_to_end, status_of};

/// Raises this process's descriptor limit; `None`: not enough for the `wanted` number.
fn clients_possible(wanted: u64) -> Option<u64> {
    let limit = rlimit::increase_nofile_limit(wanted + 500).ok()?;
    (limit >= wanted + 500).then_some(wanted)
}

#[test]
fn ten_thousand_idle_clients_cost_under_300_bytes_each() {
    let _alone = alone();
    let Some(count) = clients_possible(10_000) else {
        assert!(std::env::var_os("CI").is_none(), "CI has descriptors enough");
        eprintln!("skipped: the hard limit of descriptors is too low for ten thousand clients");
        return;
    };
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[]);
    let check = || {
        let begun = Instant::now();
        assert_eq!(glue.send(b"OPTIONS /primary HTTP/1.0\r\n\r\n").0, 200);
        begun.elapsed()
    };
    let before: Vec<Duration> = (0..200).map(|_| check()).collect();
    let weight_before = glue.resident_kib();
    let mut idle = Vec::new();
    for _ in 0..count {
        let mut client = glue.connect();
        client.write_all(b"HEAD /primary HTTP/1.1\r\n\r\n").expect("it reads");
        idle.push(client);
    }
    for client in &mut idle {
        assert_eq!(status_of(&read_head(client)), 200);
    }
    let after: Vec<Duration> = (0..200).map(|_| check()).collect();
    if let Some((before, after)) = weight_before.zip(glue.resident_kib()) {
        let bytes = (after.saturating_sub(before)) * 1024 / count;
        println!("{bytes} bytes of resident memory for each of {count} idle clients");
        assert!(bytes < 300, "{bytes} bytes each");
    }
    let (before, after) = (median(before), median(after));
    println!("a check took {before:?} before them and {after:?} with them");
    assert!(after < 3 * before + Duration::from_millis(1), "{before:?}, then {after:?}");
    drop(idle);
    assert!(check() < Duration::from_secs(5));
}

/// Reads the answer of a HEAD, which ends with its head.
fn read_head(client: &mut std::net::TcpStream) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    while !bytes.ends_with(b"\r\n\r\n") {
        let count = client.read(&mut piece).expect("an answer");
        assert!(count > 0, "closed after {bytes:?}");
        bytes.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn twenty_thousand_connections_in_a_burst_are_all_answered() {
    let _alone = alone();
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[]);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let address = glue.address;
            std::thread::spawn(move || {
                for _ in 0..5_000 {
                    let mut client = std::net::TcpStream::connect(address).expect("it listens");
                    client.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").expect("it reads");
                    assert_eq!(status_of(&read_to_end(&mut client)), 200);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("every answer was a 200"));
    let mut kept = glue.connect();
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    assert_eq!(status_of(&read_response(&mut kept)), 200);
}
