//! Hostile and broken peers on the TLS port and on the plain one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::standin::{StandIn, at_once, json, primary};
use crate::common::{Glue, PATIENCE, status_of, wait_for};
use crate::tls_support::{BOTH, Ca, Folder, TlsStream};
use crate::tls_support::{ask, client, connect, fixture, read_answer, section};
use rustls::ClientConfig;

/// A daemon with TLS, a client's configuration, and Patroni's stand-in.
struct Setup {
    glue: Glue,
    trusting: Arc<ClientConfig>,
    patroni: StandIn,
    _folder: Folder,
}

impl Setup {
    fn new(more: &[(&str, &str)]) -> Setup {
        let (folder, ca) = (Folder::new(), Ca::new("root"));
        let patroni = StandIn::start(at_once(primary()));
        let identity = ca.issue().lines(&folder, "server");
        let mut lines = section("frontend", &identity);
        lines.extend(more);
        let glue = Glue::start(patroni.address, &lines);
        let trusting = Arc::new(client(&ca.pem, BOTH, None));
        Setup { glue, trusting, patroni, _folder: folder }
    }

    fn raw(&self) -> TcpStream {
        raw(self.glue.address)
    }

    /// A client's first flight.
    fn hello(&self) -> Vec<u8> {
        let mut stream = connect(&self.trusting, self.glue.address);
        written(&mut stream)
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.glue.process_id());
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    fn assert_answers(&self) {
        let text = ask(&mut connect(&self.trusting, self.glue.address), "/primary");
        assert_eq!(status_of(&text.expect("an answer")), 200);
    }
}

fn raw(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a listener");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// The records that the session has to send.
fn written(stream: &mut TlsStream) -> Vec<u8> {
    let mut records = Vec::new();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut records).expect("memory");
    }
    records
}

/// Connects and completes the handshake.
fn connected(setup: &Setup) -> TlsStream {
    let mut stream = connect(&setup.trusting, setup.glue.address);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    stream
}

/// Reads until EOF or an error.
fn read_to_any_end(mut socket: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    bytes
}

#[test]
fn silent_clients_cost_a_slot_and_a_timer() {
    let setup = Setup::new(&[]);
    setup.assert_answers();
    let baseline = setup.descriptors();
    let hello = setup.hello();
    let begun = Instant::now();
    let mut held = Vec::new();
    for _ in 0..20 {
        // no byte, part of a record's head, half a hello, a hello whose answer is never read
        for part in [0, 3, hello.len() / 2, hello.len()] {
            let mut socket = setup.raw();
            socket.write_all(&hello[..part]).expect("an open socket");
            held.push(socket);
        }
        held.push(connected(&setup).sock);
        let mut half = connected(&setup);
        half.write_all(b"GET /primary HTT").expect("an open socket");
        held.push(half.sock);
    }
    let mut kept = connected(&setup);
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    while begun.elapsed() < Duration::from_millis(3_500) {
        let asking = Instant::now();
        assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 200);
        slowest = slowest.max(asking.elapsed());
        asked += 1;
        thread::sleep(Duration::from_millis(5));
    }
    println!("{asked} answers with {} silent clients, the slowest in {slowest:?}", held.len());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(setup.descriptors() >= baseline + held.len(), "each occupies a slot");
    for socket in &held {
        read_to_any_end(socket);
    }
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(12), "{waited:?}");
    drop(kept);
    wait_for("the slots", || (setup.descriptors() <= baseline).then_some(()));
}

#[test]
fn garbage_closes_the_connection_at_once() {
    let mut setup = Setup::new(&[]);
    setup.assert_answers();
    let baseline = setup.descriptors();
    let hello = setup.hello();
    let two_records = [&hello[..], &[0x16, 3, 3, 0, 4, 0x63, 0, 0, 0]].concat();
    let after_a_part = [&[0x16, 3, 1, 0, 4, 1, 0, 1, 0][..], &[0x17, 3, 3, 0, 1, 0]].concat();
    let too_long = [0x16, 3, 1, 0xff, 0xff].to_vec();
    let many: Vec<Vec<u8>> = vec![
        b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 40_000],
        vec![0x80, 0x2e, 1, 0, 2, 0, 0, 0, 0, 0],
        vec![0x15, 3, 3, 0, 2, 2, 40],
        vec![0x15, 3, 3, 0, 2, 1, 0],
        vec![0x17, 3, 3, 0, 1, 0],
        vec![0x14, 3, 3, 0, 1, 1],
        two_records,
        after_a_part,
        too_long,
    ];
    for bytes in many {
        let begun = Instant::now();
        let mut socket = setup.raw();
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let received = read_to_any_end(&socket);
        // only handshake records and an alert
        assert!(received.first().is_none_or(|kind| [0x15, 0x16].contains(kind)), "{received:?}");
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(4), "{waited:?} for {:?}", &bytes[..6]);
        setup.assert_answers();
        // the first failure is logged; those within the same second are counted
        setup.glue.wait_for_line("TLS client 127.0.0.1: it speaks plain HTTP (1 times)");
    }
    // a valid beginning, then pseudo-random bits
    let mut seed = 1_u32;
    for cut in (0..hello.len()).step_by(7) {
        let mut bytes = hello.clone();
        for byte in &mut bytes[cut..] {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte ^= (seed >> 24) as u8;
        }
        let mut socket = setup.raw();
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        read_to_any_end(&socket);
    }
    setup.assert_answers();
    wait_for("the slots", || (setup.descriptors() <= baseline).then_some(()));
    let lines = setup.glue.lines_with("TLS client 127.0.0.1: ");
    assert!((1..=20).contains(&lines.len()), "{lines:?}");
}

#[test]
fn an_sni_that_is_no_host_name_is_logged() {
    let mut setup = Setup::new(&[]);
    let mut hello = setup.hello();
    let name = b"localhost";
    let at = hello.windows(name.len()).position(|bytes| bytes == name).expect("an SNI");
    hello[at + 5] = b' ';
    let mut socket = setup.raw();
    socket.write_all(&hello).expect("an open socket");
    let alert = read_to_any_end(&socket);
    assert_eq!(alert.first(), Some(&0x15), "{alert:?}");
    let why = "its SNI is not a host name; in HAProxy use check-sni";
    setup.glue.wait_for_line(&format!("TLS client 127.0.0.1: {why} (1 times)"));
    setup.assert_answers();
}

#[test]
fn a_hello_on_the_plain_port_is_400() {
    let setup = Setup::new(&[]);
    let patroni = StandIn::start(at_once(primary()));
    let plain = Glue::start(patroni.address, &[]);
    let mut socket = plain.connect();
    socket.write_all(&setup.hello()).expect("an open socket");
    let text = String::from_utf8_lossy(&read_to_any_end(&socket)).into_owned();
    assert_eq!(status_of(&text), 400, "{text}");
}

#[test]
fn records_of_one_byte_and_of_16_kib_are_read() {
    let setup = Setup::new(&[]);
    // a hello in records of one byte each, sent byte by byte
    let hello = setup.hello();
    let mut stream = connect(&setup.trusting, setup.glue.address);
    let own = written(&mut stream);
    assert_eq!(own[..3], hello[..3]);
    let mut small = Vec::new();
    for byte in &own[5..] {
        small.extend_from_slice(&[0x16, 3, 1, 0, 1, *byte]);
    }
    for piece in small.chunks(1) {
        stream.sock.write_all(piece).expect("an open socket");
    }
    assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    // application data in the smallest records rustls makes
    for (size, count) in [(Some(32), 20), (None, 600)] {
        let mut config = ClientConfig::clone(&setup.trusting);
        config.max_fragment_size = size;
        let mut stream = connect(&Arc::new(config), setup.glue.address);
        let requests = "GET /primary HTTP/1.1\r\n\r\n".repeat(count);
        // in whole records, and all at once
        stream.write_all(requests.as_bytes()).expect("an open socket");
        stream.flush().expect("an open socket");
        let mut text = String::new();
        while text.matches("HTTP/1.1 200 OK").count() < count {
            let mut piece = [0; 16_384];
            let read = stream.read(&mut piece).expect("answers");
            assert!(read > 0, "{} answers", text.matches("HTTP/1.1 200 OK").count());
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }
}

#[test]
fn cuts_and_resets_at_each_place_free_the_slot() {
    let setup = Setup::new(&[]);
    setup.assert_answers();
    let baseline = setup.descriptors();
    let hello = setup.hello();
    let reset = |socket: &TcpStream| {
        socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("an option");
    };
    for (at, resets) in (0..=hello.len()).step_by(31).flat_map(|at| [(at, false), (at, true)]) {
        let mut socket = setup.raw();
        socket.write_all(&hello[..at]).expect("an open socket");
        if resets {
            reset(&socket);
        } else {
            socket.shutdown(Shutdown::Write).expect("an open socket");
            read_to_any_end(&socket);
        }
    }
    // after the handshake: part of a record, then FIN or RST
    for (at, resets) in [0, 1, 4, 5, 6, 20].into_iter().flat_map(|at| [(at, false), (at, true)]) {
        let mut stream = connected(&setup);
        stream.conn.writer().write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("memory");
        let records = written(&mut stream);
        stream.sock.write_all(&records[..at]).expect("an open socket");
        if resets {
            reset(&stream.sock);
        } else {
            stream.sock.shutdown(Shutdown::Write).expect("an open socket");
            read_to_any_end(&stream.sock);
        }
    }
    // RST while the answer is in flight
    for _ in 0..20 {
        let mut stream = connected(&setup);
        stream.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("an open socket");
        reset(&stream.sock);
    }
    setup.assert_answers();
    wait_for("the slots", || (setup.descriptors() <= baseline).then_some(()));
}

#[test]
fn a_client_that_never_reads_is_closed() {
    let setup = Setup::new(&[("cache", "ttl: 60")]);
    setup.assert_answers();
    let baseline = setup.descriptors();
    let begun = Instant::now();
    let mut stream = connected(&setup);
    // answers larger than the kernel's buffers: it takes small ones bit by bit for half a minute,
    // which counts as reading slowly
    setup.patroni.set(at_once(json(200, &format!("[\"{}\"]", "x".repeat(500_000)))));
    stream.sock.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let requests = "GET /history HTTP/1.1\r\n\r\n".repeat(100);
    // until both sides' buffers are full, and then until the close
    let (mut sent, mut resident, mut blocked) = (0, 0, false);
    let error = loop {
        assert!(sent < 20_000_000, "the daemon reads on although the client does not");
        assert!(begun.elapsed() < Duration::from_secs(25), "the client was not closed");
        match stream.write_all(requests.as_bytes()) {
            Ok(()) => sent += requests.len(),
            Err(error) if error.kind() != ErrorKind::WouldBlock => break error,
            Err(_) => {
                blocked = true;
                resident = resident.max(setup.glue.resident_kib().unwrap_or(0));
            }
        }
    };
    assert!(blocked && resident < 40_000, "{resident} KiB");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    setup.assert_answers();
    wait_for("its end", || (setup.descriptors() <= baseline).then_some(()));
}

#[test]
fn a_flood_of_handshakes_does_not_starve_kept_clients() {
    let setup = Setup::new(&[("cache", "ttl: 60")]);
    setup.assert_answers();
    let (address, trusting) = (setup.glue.address, Arc::clone(&setup.trusting));
    let flood = thread::spawn(move || {
        let begun = Instant::now();
        let mut count = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            let mut config = ClientConfig::clone(&trusting);
            config.resumption = rustls::client::Resumption::disabled();
            let text = ask(&mut connect(&Arc::new(config), address), "/primary");
            assert_eq!(status_of(&text.expect("an answer")), 200);
            count += 1;
        }
        count
    });
    let mut kept = connected(&setup);
    let mut waits = Vec::new();
    while !flood.is_finished() {
        let begun = Instant::now();
        assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 200);
        waits.push(begun.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    waits.sort();
    let count = flood.join().expect("no panic");
    let (middle, last) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("{count} handshakes; {} answers in {middle:?}, at most {last:?}", waits.len());
    assert!(count > 50 && middle < Duration::from_millis(50), "{count} {middle:?}");
}

/// Sends the hellos of many connections at once, with a request on a kept connection. Returns the
/// slowest answer on the kept connection, and the time of all handshakes.
fn burst(setup: &Setup, kept: &mut TlsStream) -> (Duration, Duration) {
    wait_for("the previous connections to close", || {
        (setup.descriptors() < BURST / 2).then_some(())
    });
    let mut streams: Vec<TlsStream> =
        (0..BURST).map(|_| connect(&setup.trusting, setup.glue.address)).collect();
    wait_for("the daemon to accept", || (setup.descriptors() >= BURST).then_some(()));
    setup.glue.signal("STOP");
    for stream in &mut streams {
        let hello = written(stream);
        stream.sock.write_all(&hello).expect("room in the socket");
    }
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("room in the socket");
    let begun = Instant::now();
    setup.glue.signal("CONT");
    let answered = thread::spawn(move || {
        for stream in &streams {
            assert!(stream.sock.peek(&mut [0]).is_ok_and(|count| count > 0));
        }
        (begun.elapsed(), streams)
    });
    assert_eq!(status_of(&read_answer(kept).expect("an answer")), 200);
    let mut slowest = begun.elapsed();
    while !answered.is_finished() {
        let asking = Instant::now();
        assert_eq!(status_of(&ask(kept, "/primary").expect("an answer")), 200);
        slowest = slowest.max(asking.elapsed());
    }
    (slowest, answered.join().expect("answers").0)
}

const BURST: usize = 200;

#[test]
fn a_burst_of_hellos_does_not_starve_kept_clients() {
    let (certfile, keyfile) = (fixture("rsa.pem"), fixture("rsa.pkcs8.key"));
    let root = std::fs::read_to_string(&certfile).expect("a fixture");
    let lines = [format!("certfile: {certfile}"), format!("keyfile: {keyfile}")];
    let patroni = StandIn::start(at_once(primary()));
    let mut lines = section("frontend", &lines);
    lines.push(("cache", "ttl: 60"));
    let glue = Glue::start(patroni.address, &lines);
    let trusting = Arc::new(client(&root, BOTH, None));
    let setup = Setup { glue, trusting, patroni, _folder: Folder::new() };
    setup.assert_answers();
    let mut kept = connected(&setup);
    // other load on the machine may spoil one or two attempts
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (slowest, all) = burst(&setup, &mut kept);
        println!("an answer within {slowest:?} while {BURST} handshakes took {all:?}");
        if slowest * 5 < all {
            return;
        }
        seen.push((slowest, all));
    }
    panic!("kept connections wait for handshakes: {seen:?}");
}

#[test]
fn a_kept_connection_ends_with_close_notify() {
    let setup = Setup::new(&[]);
    let mut stream = connected(&setup);
    for _ in 0..3 {
        assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    }
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("an open socket");
    read_answer(&mut stream).expect("an answer");
    // without close_notify this is an error
    assert_eq!(stream.read(&mut [0; 16]).expect("a clean end"), 0);
}
