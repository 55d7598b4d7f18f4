//! The share of one turn of the loop that a single client gets, counted in system calls.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::common::Glue;
use crate::common::standin::{StandIn, at_once, json, primary};
use crate::common::strace::{name_of_call, trace};

/// The writes of one turn: their number and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    writes: usize,
    bytes: usize,
}

fn turns(text: &str) -> Vec<Turn> {
    let mut turns = vec![Turn::default()];
    for line in text.lines() {
        match name_of_call(line) {
            Some("epoll_wait") => turns.push(Turn::default()),
            Some("sendto") => {
                let result = line.rsplit("= ").next().and_then(|rest| rest.trim().parse().ok());
                let turn = turns.last_mut().expect("at least one");
                turn.writes += 1;
                turn.bytes += result.unwrap_or(0);
            }
            _ => {}
        }
    }
    turns
}

fn most(turns: &[Turn], what: impl Fn(&Turn) -> usize) -> usize {
    turns.iter().map(what).max().unwrap_or(0)
}

/// Writes until the daemon reads no more.
fn write_all_it_takes(client: &mut TcpStream, requests: &[u8], times: usize) {
    client.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    for _ in 0..times {
        match client.write_all(requests) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            other => other.expect("it is open"),
        }
    }
}

/// Reads until the daemon closes, after the last request.
fn read_to_the_end(client: &mut TcpStream) -> Vec<u8> {
    client.shutdown(Shutdown::Write).expect("it is open");
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("its end");
    bytes
}

#[test]
fn a_client_that_never_reads_takes_a_small_part_of_a_turn() {
    let patroni = StandIn::start(at_once(json(200, &format!("[\"{}\"]", "x".repeat(900_000)))));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 600")]);
    glue.get("/history");
    let mut unread: Vec<TcpStream> = (0..3).map(|_| glue.connect()).collect();
    let requests = "GET /history HTTP/1.1\r\n\r\n".repeat(5);
    let text = trace(&glue, || {
        for client in &mut unread {
            write_all_it_takes(client, requests.as_bytes(), 1);
        }
        assert_eq!(glue.get("/patroni").0, 200);
        assert_eq!(glue.get("/health").0, 200);
    });
    let Some(text) = text else { return };
    let turns = turns(&text);
    let total: usize = turns.iter().map(|turn| turn.bytes).sum();
    println!(
        "{total} bytes in {} turns, at most {:?}",
        turns.len(),
        most(&turns, |turn| turn.bytes)
    );
    assert!(total > 300_000, "the kernel takes some of it: {total}");
    assert!(most(&turns, |turn| turn.bytes) <= unread.len() * 2 * BYTES_EACH + SURPLUS_BYTES);
}

#[test]
fn a_client_that_pipelines_takes_a_small_part_of_a_turn() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 600")]);
    glue.get("/health");
    let mut client = glue.connect();
    let requests = "GET /health HTTP/1.1\r\n\r\n".repeat(ASKED);
    let text = trace(&glue, || {
        write_all_it_takes(&mut client, requests.as_bytes(), 1);
        let answers = String::from_utf8_lossy(&read_to_the_end(&mut client)).into_owned();
        assert_eq!(answers.matches("HTTP/1.1 200").count(), ASKED);
    });
    let Some(text) = text else { return };
    let turns = turns(&text);
    let (writes, most) =
        (turns.iter().map(|turn| turn.writes).sum::<usize>(), { most(&turns, |turn| turn.writes) });
    println!("{writes} writes in {} turns, at most {most}", turns.len());
    assert_eq!(writes, ASKED);
    assert!(most <= 2 * WRITES_EACH, "{most}");
}

/// The shell's budget for one stream, written a second time; it may be served twice in a turn.
const BYTES_EACH: usize = 64 * 1024;
const WRITES_EACH: usize = 16;
const SURPLUS_BYTES: usize = 20_000;
const ASKED: usize = 1_000;
