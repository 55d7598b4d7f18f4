//! Peers that mean no good on the TLS port and on the plain one: each costs a slot and a timer.

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

/// A daemon with TLS, its clients' configuration, and Patroni behind it.
struct House {
    glue: Glue,
    trusting: Arc<ClientConfig>,
    patroni: StandIn,
    _folder: Folder,
}

impl House {
    fn new(more: &[(&str, &str)]) -> House {
        let (folder, ca) = (Folder::new(), Ca::new("root"));
        let patroni = StandIn::start(at_once(primary()));
        let identity = ca.issue().lines(&folder, "server");
        let mut lines = section("frontend", &identity);
        lines.extend(more);
        let glue = Glue::start(patroni.address, &lines);
        let trusting = Arc::new(client(&ca.pem, BOTH, None));
        House { glue, trusting, patroni, _folder: folder }
    }

    fn raw(&self) -> TcpStream {
        raw(self.glue.address)
    }

    /// The first flight of a client.
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
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// What the session has to send now.
fn written(stream: &mut TlsStream) -> Vec<u8> {
    let mut records = Vec::new();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut records).expect("memory");
    }
    records
}

/// Shakes hands and does no more.
fn shaken(house: &House) -> TlsStream {
    let mut stream = connect(&house.trusting, house.glue.address);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    stream
}

/// Waits for the other's end, whichever it is.
fn read_to_any_end(mut socket: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    bytes
}

#[test]
fn silent_ones_cost_a_slot_and_a_timer() {
    let house = House::new(&[]);
    house.assert_answers();
    let baseline = house.descriptors();
    let hello = house.hello();
    let begun = Instant::now();
    let mut held = Vec::new();
    for _ in 0..20 {
        // nothing, half a hello, half a record's head, a hello whose answer is never read
        for part in [0, 3, hello.len() / 2, hello.len()] {
            let mut socket = house.raw();
            socket.write_all(&hello[..part]).expect("it reads");
            held.push(socket);
        }
        held.push(shaken(&house).sock);
        let mut half = shaken(&house);
        half.write_all(b"GET /primary HTT").expect("it reads");
        held.push(half.sock);
    }
    let mut kept = shaken(&house);
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    while begun.elapsed() < Duration::from_millis(3_500) {
        let asking = Instant::now();
        assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 200);
        slowest = slowest.max(asking.elapsed());
        asked += 1;
        thread::sleep(Duration::from_millis(5));
    }
    println!("{asked} answers among {} silent ones, the slowest in {slowest:?}", held.len());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(house.descriptors() >= baseline + held.len(), "each has its slot still");
    for socket in &held {
        read_to_any_end(socket);
    }
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(12), "{waited:?}");
    drop(kept);
    wait_for("the slots", || (house.descriptors() <= baseline).then_some(()));
}

#[test]
fn garbage_is_shown_out_at_once() {
    let mut house = House::new(&[]);
    house.assert_answers();
    let baseline = house.descriptors();
    let hello = house.hello();
    let two_records = [&hello[..], &[0x16, 3, 3, 0, 4, 0x63, 0, 0, 0]].concat();
    let behind_a_part = [&[0x16, 3, 1, 0, 4, 1, 0, 1, 0][..], &[0x17, 3, 3, 0, 1, 0]].concat();
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
        behind_a_part,
        too_long,
    ];
    for bytes in many {
        let begun = Instant::now();
        let mut socket = house.raw();
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let said = read_to_any_end(&socket);
        // an alert at the most, perhaps behind what a server says first
        assert!(said.first().is_none_or(|kind| [0x15, 0x16].contains(kind)), "{said:?}");
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(4), "{waited:?} for {:?}", &bytes[..6]);
        house.assert_answers();
        // the first of them is said; those within the same second are counted
        house.glue.wait_for_line("no TLS with 127.0.0.1: it does not speak TLS (1 times)");
    }
    // pseudo-random bits behind a good start
    let mut seed = 1_u32;
    for cut in (0..hello.len()).step_by(7) {
        let mut bytes = hello.clone();
        for byte in &mut bytes[cut..] {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte ^= (seed >> 24) as u8;
        }
        let mut socket = house.raw();
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        read_to_any_end(&socket);
    }
    house.assert_answers();
    wait_for("the slots", || (house.descriptors() <= baseline).then_some(()));
    let lines = house.glue.lines_with("no TLS with 127.0.0.1");
    assert!((1..=20).contains(&lines.len()), "{lines:?}");
}

#[test]
fn a_hello_on_the_plain_port_is_400() {
    let house = House::new(&[]);
    let patroni = StandIn::start(at_once(primary()));
    let plain = Glue::start(patroni.address, &[]);
    let mut socket = plain.connect();
    socket.write_all(&house.hello()).expect("it reads");
    let text = String::from_utf8_lossy(&read_to_any_end(&socket)).into_owned();
    assert_eq!(status_of(&text), 400, "{text}");
}

#[test]
fn records_of_one_byte_and_of_sixteen_kib() {
    let house = House::new(&[]);
    // a hello in records of one byte each, sent byte by byte
    let hello = house.hello();
    let mut stream = connect(&house.trusting, house.glue.address);
    let own = written(&mut stream);
    assert_eq!(own[..3], hello[..3]);
    let mut small = Vec::new();
    for byte in &own[5..] {
        small.extend_from_slice(&[0x16, 3, 1, 0, 1, *byte]);
    }
    for piece in small.chunks(1) {
        stream.sock.write_all(piece).expect("it reads");
    }
    assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    // application data in the smallest records rustls makes
    for (size, count) in [(Some(32), 20), (None, 600)] {
        let mut config = ClientConfig::clone(&house.trusting);
        config.max_fragment_size = size;
        let mut stream = connect(&Arc::new(config), house.glue.address);
        let requests = "GET /primary HTTP/1.1\r\n\r\n".repeat(count);
        // in whole records, and all at once
        stream.write_all(requests.as_bytes()).expect("it reads");
        stream.flush().expect("it reads");
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
fn cut_records_and_resets_at_every_place() {
    let house = House::new(&[]);
    house.assert_answers();
    let baseline = house.descriptors();
    let hello = house.hello();
    let reset = |socket: &TcpStream| {
        socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("an option");
    };
    for (at, resets) in (0..=hello.len()).step_by(31).flat_map(|at| [(at, false), (at, true)]) {
        let mut socket = house.raw();
        socket.write_all(&hello[..at]).expect("it reads");
        if resets {
            reset(&socket);
        } else {
            socket.shutdown(Shutdown::Write).expect("it is open");
            read_to_any_end(&socket);
        }
    }
    // behind a handshake: part of a record, then FIN or RST
    for (at, resets) in [0, 1, 4, 5, 6, 20].into_iter().flat_map(|at| [(at, false), (at, true)]) {
        let mut stream = shaken(&house);
        stream.conn.writer().write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("memory");
        let records = written(&mut stream);
        stream.sock.write_all(&records[..at]).expect("it reads");
        if resets {
            reset(&stream.sock);
        } else {
            stream.sock.shutdown(Shutdown::Write).expect("it is open");
            read_to_any_end(&stream.sock);
        }
    }
    // RST while the answer is on its way
    for _ in 0..20 {
        let mut stream = shaken(&house);
        stream.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
        reset(&stream.sock);
    }
    house.assert_answers();
    wait_for("the slots", || (house.descriptors() <= baseline).then_some(()));
}

#[test]
fn who_never_reads_his_answers_is_closed() {
    let house = House::new(&[("cache", "ttl: 60")]);
    house.assert_answers();
    let baseline = house.descriptors();
    let begun = Instant::now();
    let mut stream = shaken(&house);
    // answers so large that the kernel never takes one by and by: short of memory for small ones,
    // it drops and takes them again for half a minute, which counts as reading slowly
    house.patroni.set(at_once(json(200, &format!("[\"{}\"]", "x".repeat(500_000)))));
    stream.sock.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let requests = "GET /history HTTP/1.1\r\n\r\n".repeat(100);
    // until neither side's buffers take more, and on, until it is closed
    let (mut sent, mut resident, mut blocked) = (0, 0, false);
    let error = loop {
        assert!(sent < 20_000_000, "it read on without being read");
        assert!(begun.elapsed() < Duration::from_secs(25), "it was not closed");
        match stream.write_all(requests.as_bytes()) {
            Ok(()) => sent += requests.len(),
            Err(error) if error.kind() != ErrorKind::WouldBlock => break error,
            Err(_) => {
                blocked = true;
                resident = resident.max(house.glue.resident_kib().unwrap_or(0));
            }
        }
    };
    assert!(blocked && resident < 40_000, "{resident} KiB");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    house.assert_answers();
    wait_for("its end", || (house.descriptors() <= baseline).then_some(()));
}

#[test]
fn a_flood_of_handshakes_leaves_the_kept_ones_their_turn() {
    let house = House::new(&[("cache", "ttl: 60")]);
    house.assert_answers();
    let (address, trusting) = (house.glue.address, Arc::clone(&house.trusting));
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
    let mut kept = shaken(&house);
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
    println!("{count} handshakes; {} answers in {middle:?}, {last:?} at the most", waits.len());
    assert!(count > 50 && middle < Duration::from_millis(50), "{count} {middle:?}");
}

/// Opens connections, then has all their hellos come at once with a request on a kept connection:
/// how long answers take at the most, and all handshakes.
fn burst(house: &House, kept: &mut TlsStream) -> (Duration, Duration) {
    wait_for("the former ones to go", || (house.descriptors() < BURST / 2).then_some(()));
    let mut streams: Vec<TlsStream> =
        (0..BURST).map(|_| connect(&house.trusting, house.glue.address)).collect();
    wait_for("the daemon to accept", || (house.descriptors() >= BURST).then_some(()));
    house.glue.signal("STOP");
    for stream in &mut streams {
        let hello = written(stream);
        stream.sock.write_all(&hello).expect("the kernel takes it");
    }
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("the kernel takes it");
    let begun = Instant::now();
    house.glue.signal("CONT");
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
    (slowest, answered.join().expect("each is answered").0)
}

const BURST: usize = 200;

#[test]
fn a_burst_of_hellos_leaves_the_kept_ones_their_turn() {
    let (certfile, keyfile) = (fixture("rsa.pem"), fixture("rsa.pkcs8.key"));
    let root = std::fs::read_to_string(&certfile).expect("a fixture");
    let lines = [format!("certfile: {certfile}"), format!("keyfile: {keyfile}")];
    let patroni = StandIn::start(at_once(primary()));
    let mut lines = section("frontend", &lines);
    lines.push(("cache", "ttl: 60"));
    let glue = Glue::start(patroni.address, &lines);
    let trusting = Arc::new(client(&root, BOTH, None));
    let house = House { glue, trusting, patroni, _folder: Folder::new() };
    house.assert_answers();
    let mut kept = shaken(&house);
    // the machine may have looked elsewhere once, or twice
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (slowest, all) = burst(&house, &mut kept);
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
    let house = House::new(&[]);
    let mut stream = shaken(&house);
    for _ in 0..3 {
        assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    }
    stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    read_answer(&mut stream).expect("an answer");
    // close_notify, or this is an error
    assert_eq!(stream.read(&mut [0; 16]).expect("a clean end"), 0);
}
