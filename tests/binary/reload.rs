//! Reloads of the real binary: listeners that move, and load that notices nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, PATIENCE, config, free_port, read_response, status_of, wait_for};

fn frontend(host: &str, port: u16, patroni: &StandIn) -> String {
    let text = config("127.0.0.1", patroni.address.port(), &[("cache", "ttl: 60")]);
    text.replace("  host: 127.0.0.1\n  port: 0\n", &format!("  host: {host}\n  port: {port}\n"))
}

fn reload(glue: &Glue, text: &str, outcome: &str) -> String {
    let before = glue.lines_with(outcome).len();
    std::fs::write(&glue.config, text).expect("written");
    glue.signal("HUP");
    wait_for("the reload", || glue.lines_with(outcome).get(before).cloned())
}

fn check(address: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.get(9..12)?.parse().ok()
}

#[test]
fn a_reload_moves_the_listener_and_keeps_clients_and_answers() {
    let patroni = StandIn::start(at_once(primary()));
    let first = free_port();
    let glue = Glue::start_with(&frontend("127.0.0.1", first, &patroni), &[], None);
    let mut kept = glue.connect();
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    assert_eq!(status_of(&read_response(&mut kept)), 200);
    let second = free_port();
    reload(&glue, &frontend("127.0.0.1", second, &patroni), "reloaded ");
    assert_eq!(check(([127, 0, 0, 1], second).into()), Some(200));
    let refused = TcpStream::connect(("127.0.0.1", first)).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it is open");
    assert_eq!(status_of(&read_response(&mut kept)), 200);
    assert_eq!(patroni.requests().len(), 1, "the answer in memory is kept");
}

#[test]
fn a_reload_to_an_overlapping_address_works_both_ways() {
    let patroni = StandIn::start(at_once(primary()));
    let port = free_port();
    let glue = Glue::start_with(&frontend("127.0.0.1", port, &patroni), &[], None);
    for (host, other) in [("\"*\"", Some(200)), ("127.0.0.1", None)] {
        reload(&glue, &frontend(host, port, &patroni), "reloaded ");
        assert_eq!(check(([127, 0, 0, 1], port).into()), Some(200), "{host}");
        assert_eq!(check(([127, 0, 0, 2], port).into()), other, "{host}");
    }
}

#[test]
fn a_reload_to_a_taken_port_changes_nothing() {
    let patroni = StandIn::start(at_once(primary()));
    let first = free_port();
    let glue = Glue::start_with(&frontend("127.0.0.1", first, &patroni), &[], None);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let text = frontend("127.0.0.1", port, &patroni).replace("ttl: 60", "ttl: 0");
    let line = reload(&glue, &text, "not reloaded");
    let named = format!("cannot listen on frontend.host 127.0.0.1, frontend.port {port}: ");
    assert!(line.contains(&named), "{line}");
    for _ in 0..3 {
        assert_eq!(check(([127, 0, 0, 1], first).into()), Some(200));
    }
    assert_eq!(patroni.requests().len(), 1, "the previous ttl is in force");
}

/// The listener was closed and bound again because another address had the same port.
#[test]
fn an_address_of_another_process_leaves_the_listener_alone() {
    let patroni = StandIn::start(at_once(primary()));
    let taken = TcpListener::bind("127.0.0.2:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    // with this ttl nothing is fetched at the start: no socket comes and goes
    let at = |host: &str| frontend(host, port, &patroni).replace("ttl: 60", "ttl: 1");
    let glue = Glue::start_with(&at("127.0.0.1"), &[], None);
    let sockets = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", glue.process_id()));
        let links = descriptors.expect("its descriptors").flatten().map(|one| one.path());
        let links = links.filter_map(|path| std::fs::read_link(path).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).collect::<Vec<_>>()
    };
    let before = sockets();
    reload(&glue, &at("127.0.0.2"), "not reloaded");
    assert_eq!(sockets(), before);
    assert_eq!(check(([127, 0, 0, 1], port).into()), Some(200));
}

#[test]
fn a_hundred_reloads_under_load_fail_no_check() {
    let patroni = StandIn::start(at_once(primary()));
    let port = free_port();
    let mut glue = Glue::start_with(&frontend("127.0.0.1", port, &patroni), &[], None);
    let ends = Arc::new(AtomicBool::new(false));
    let checks = Arc::new(AtomicU32::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (ends, checks) = (Arc::clone(&ends), Arc::clone(&checks));
            thread::spawn(move || {
                let mut failed = 0;
                while !ends.load(Ordering::Relaxed) {
                    let status = check(([127, 0, 0, 1], port).into());
                    failed += u32::from(status != Some(200));
                    checks.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        })
        .collect();
    for number in 0..100 {
        let ttl = format!("ttl: {}", 10 + number);
        let text = frontend("127.0.0.1", port, &patroni).replace("ttl: 60", &ttl);
        reload(&glue, &text, "reloaded ");
    }
    ends.store(true, Ordering::Relaxed);
    let failed: u32 = clients.into_iter().map(|client| client.join().expect("it ends")).sum();
    let checks = checks.load(Ordering::Relaxed);
    assert!(checks > 100, "{checks} checks");
    assert_eq!(failed, 0, "of {checks}");
    glue.signal("TERM");
    assert_eq!(glue.wait().code(), Some(0));
}

/// Only one batch was accepted before the listener was closed.
#[test]
fn clients_in_the_backlog_are_answered_at_the_end() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start(patroni.address, &[]);
    glue.get("/primary");
    // stopped, so that the signal finds them all in the backlog
    glue.signal("STOP");
    let clients: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = glue.connect();
            stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n").expect("the kernel buffers it");
            stream
        })
        .collect();
    glue.signal("TERM");
    glue.signal("CONT");
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).expect("no reset");
        assert!(text.starts_with("HTTP/1.1 "), "{text:?}");
    }
    assert_eq!(glue.wait().code(), Some(0));
}

#[test]
fn a_reload_during_the_shutdown_listens_nowhere() {
    let patroni = StandIn::start(at_once(primary()));
    let port = free_port();
    let mut glue = Glue::start_with(&frontend("127.0.0.1", port, &patroni), &[], None);
    let mut half = glue.connect();
    half.write_all(b"GET /primary HTT").expect("it reads");
    glue.signal("TERM");
    glue.wait_for_line("shutting down: 1 clients left");
    glue.signal("HUP");
    glue.wait_for_line("status: ");
    let refused = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(glue.lines_with("listening on").len(), 1);
    assert_eq!(glue.wait().code(), Some(0));
}

#[test]
fn another_name_needs_a_restart() {
    let patroni = StandIn::start(at_once(primary()));
    let port = free_port();
    let glue = Glue::start_with(&frontend("127.0.0.1", port, &patroni), &[], None);
    let line = reload(&glue, &frontend("nowhere.invalid", port, &patroni), "not reloaded");
    assert!(line.contains("frontend.host: another name needs a restart"), "{line}");
    reload(&glue, &frontend("localhost", port, &patroni), "reloaded ");
    assert_eq!(check(([127, 0, 0, 1], port).into()), Some(200));
}
