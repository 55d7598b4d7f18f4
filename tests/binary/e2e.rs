//! The real binary between real sockets: answers to clients, requests to Patroni, signals, log.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::standin::{Mood, StandIn, at_once, json, primary};
use crate::common::{
    Glue, Stderr, body, config, header, read_response, read_to_end, status_of, wait_for,
};
use socket2::SockRef;

#[test]
fn five_hundred_clients_of_an_uncached_route_cause_one_fetch() {
    let patroni = StandIn::start(Mood::Delays(Duration::from_millis(300), primary()));
    let glue = Glue::start(patroni.address, &[]);
    let mut clients: Vec<_> = (0..500).map(|_| glue.connect()).collect();
    for client in &mut clients {
        client.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    }
    for mut client in clients {
        let text = read_to_end(&mut client);
        assert_eq!(status_of(&text), 200, "{text}");
        assert!(body(&text).contains("\"role\": \"primary\""), "{text}");
    }
    let asked = patroni.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let version = env!("CARGO_PKG_VERSION");
    let host = patroni.address;
    let request = format!(
        "GET /primary HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\
         User-Agent: patroniglue/{version}\r\n\r\n"
    );
    assert_eq!(asked[0], request);
}

#[test]
fn steady_checks_cost_at_most_one_fetch_per_750_ms() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[]);
    let begun = Instant::now();
    let mut checks = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(glue.send(b"OPTIONS /primary HTTP/1.0\r\n\r\n").0, 200);
        checks += 1;
        thread::sleep(Duration::from_millis(5));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let asked = patroni.requests().len();
    println!("{checks} checks, {asked} fetches in {seconds:.1} s");
    // one per three quarters of the ttl, and one more at the start
    assert!(asked as f64 <= seconds / 0.75 + 1.0, "{asked} in {seconds} s");
    assert!(checks > 20 * asked);
}

#[test]
fn with_a_frozen_patroni_only_the_first_clients_wait() {
    let patroni = StandIn::start(Mood::Silent);
    let glue = Glue::start(patroni.address, &[("backend", "timeout: 1")]);
    let routes = ["/primary", "/replica", "/leader", "/health", "/patroni", "/sync"];
    let begun = Instant::now();
    let mut clients: Vec<_> = routes.iter().map(|_| glue.connect()).collect();
    for (client, route) in clients.iter_mut().zip(routes) {
        write!(client, "GET {route} HTTP/1.0\r\n\r\n").expect("it reads");
    }
    let mut reasons = Vec::new();
    for mut client in clients {
        let text = read_to_end(&mut client);
        assert_eq!(status_of(&text), 503);
        assert_eq!(header(&text, "Content-Type"), Some("application/json"));
        reasons.push(body(&text).to_owned());
    }
    // three were asked for; the others had no connection until their time was up
    let is_silent = |reason: &&String| reason.contains("Patroni did not answer in time");
    let is_queued = |reason: &&String| reason.contains("all connections to Patroni are busy");
    assert!(reasons.iter().filter(is_silent).count() >= 3, "{reasons:?}");
    assert!(reasons.iter().all(|reason| is_silent(&reason) || is_queued(&reason)), "{reasons:?}");
    let waited = begun.elapsed();
    println!("{} clients had their 503 after {waited:?}", routes.len());
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(3), "{waited:?}");
    assert_eq!(patroni.hanging_most(), 3, "backend.connections");
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(glue.get("/primary").0, 503);
    }
    let later = begun.elapsed();
    assert!(later < waited, "fifty later clients took {later:?}");
    patroni.set(at_once(primary()));
    wait_for("Patroni's return", || (glue.get("/primary").0 == 200).then_some(()));
}

#[test]
fn every_failure_of_a_fetch_is_named() {
    let refusing = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it");
    let glue = Glue::start(refusing, &[]);
    let begun = Instant::now();
    assert!(glue.get("/primary").1.contains("Patroni refused the connection"));
    assert!(begun.elapsed() < Duration::from_secs(2), "at once");
    let cut = json(200, "{\"state\": \"run");
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_vec();
    let huge = json(200, &format!("[\"{}\"]", "x".repeat(1024 * 1024)));
    let table = [
        (Mood::Closes, "closed the connection without an answer"),
        (Mood::Resets(Vec::new()), "reset the connection"),
        (at_once(b"<html>an error page</html>\n".to_vec()), "is not HTTP"),
        (at_once(cut), "was cut short"),
        (at_once(short), "was cut short"),
        (at_once(huge), "is too large"),
        (Mood::Hangs(b"HTTP/1.0 200 OK\r\nContent-Ty".to_vec()), "did not answer in time"),
        (Mood::Hangs(b"HTTP/1.1 200 OK\r\n\r\nhalf".to_vec()), "did not answer in time"),
    ];
    for (mood, why) in table {
        let patroni = StandIn::start(mood);
        let glue = Glue::start(patroni.address, &[("backend", "timeout: 0.5")]);
        let (status, text) = glue.get("/primary");
        assert_eq!(status, 503);
        assert!(text.contains(why), "{why}: {text}");
    }
}

#[test]
fn an_answer_complete_in_itself_needs_no_end() {
    let text = "{\"state\": \"running\", \"role\": \"primary\", \"lag\": NaN, \"x\": [-Infinity]}";
    let mut pieces: Vec<Vec<u8>> = json(200, text).iter().map(|byte| vec![*byte]).collect();
    pieces.push(b"\n".to_vec());
    let empty = b"HTTP/1.0 200 OK\r\nServer: BaseHTTP/0.6\r\n\r\n".to_vec();
    let table = [
        ("/primary", Mood::Hangs(json(200, text)), text),
        ("/primary", Mood::Resets(json(200, text)), text),
        ("/primary", Mood::Says(pieces, Duration::ZERO), text),
        ("/patroni", Mood::Hangs(json(200, &format!("{text}\n{{\"more"))), text),
        ("/liveness", Mood::Hangs(empty.clone()), ""),
        ("/readiness", Mood::Resets(empty), ""),
    ];
    for (at, (route, mood, whole)) in table.into_iter().enumerate() {
        let patroni = StandIn::start(mood);
        let glue = Glue::start(patroni.address, &[("cache", "ttl: 5")]);
        let (status, text) = glue.get(route);
        assert_eq!((status, body(&text)), (200, whole), "{at}: {text}");
    }
}

#[test]
fn another_patroniglue_is_not_taken_for_patroni() {
    let patroni = StandIn::start(at_once(primary()));
    let other = Glue::start(patroni.address, &[]);
    let mut glue = Glue::start(other.address, &[]);
    let (status, text) = glue.get("/primary");
    let why = "this is patroniglue itself; set backend.host and backend.port to Patroni's";
    assert!(status == 503 && body(&text).contains(why), "{text}");
    glue.wait_for_line(why);
}

/// By the name of the machine, which the configuration alone does not show to be itself.
#[test]
fn a_daemon_that_asks_itself_says_so() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let free = TcpListener::bind("[::]:0").and_then(|listener| listener.local_addr());
    let port = free.map_or(0, |address| address.port());
    if (name.trim(), port).to_socket_addrs().is_err() || port == 0 {
        eprintln!("skipped: no IPv6, or this machine's name has no address");
        return;
    }
    let frontend = format!("frontend: {{host: \"\", port: {port}}}\n");
    let text = format!("{frontend}backend: {{host: {}, port: {port}, timeout: 1}}\n", name.trim());
    let glue = Glue::start_with(&text, &[], None);
    // the first fetch is answered by its own outcome: only its timeout ends it
    let named = || glue.get("/primary").1.contains("this is patroniglue itself").then_some(());
    wait_for("the reason", named);
}

#[test]
fn every_framing_is_served_byte_for_byte() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: a/b\r\n\r\n\
        2;x=y\r\nbo\r\n2\r\ndy\r\n0\r\nA: b\r\n\r\n";
    let table = [
        ("HTTP/1.0 200 OK\r\n\r\n", 200, None, ""),
        ("HTTP/1.0 503 Service Unavailable\r\n\r\n", 503, None, ""),
        (
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nbody",
            200,
            Some("text/plain"),
            "body",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodymore", 200, None, "body"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nbody", 200, None, "body"),
        (chunked, 200, Some("a/b"), "body"),
    ];
    for (answer, status, content_type, text) in table {
        let pieces = answer.bytes().map(|byte| vec![byte]).collect();
        let patroni = StandIn::start(Mood::Says(pieces, Duration::ZERO));
        let glue = Glue::start(patroni.address, &[]);
        let (got, response) = glue.get("/health");
        assert_eq!((got, body(&response)), (status, text), "{answer:?}");
        assert_eq!(header(&response, "Content-Type"), content_type);
        assert_eq!(header(&response, "Content-Length"), Some(text.len().to_string().as_str()));
        assert_eq!(header(&response, "Age"), Some("0"));
        assert_eq!(header(&response, "Cache-Control"), Some("no-store"));
        assert!(header(&response, "Date").is_some_and(|date| date.ends_with(" GMT")));
    }
}

#[test]
fn a_request_in_any_split_has_the_same_answer() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    let request = b"GET //primary/?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let expected = body(&glue.send(request).1).to_owned();
    for at in 1..request.len() {
        let mut client = glue.connect();
        client.set_nodelay(true).expect("an option");
        client.write_all(&request[..at]).expect("it reads");
        thread::yield_now();
        client.write_all(&request[at..]).expect("it reads");
        assert_eq!(body(&read_to_end(&mut client)), expected, "split at {at}");
    }
    let mut client = glue.connect();
    client.set_nodelay(true).expect("an option");
    for byte in request {
        client.write_all(&[*byte]).expect("it reads");
    }
    assert_eq!(body(&read_to_end(&mut client)), expected, "byte by byte");
    assert_eq!(patroni.requests().len(), 1);
}

#[test]
fn a_thousand_pipelined_requests_are_answered_in_order() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    glue.get("/primary");
    let mut client = glue.connect();
    let mut writer = client.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        let pair = "GET /primary HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\n";
        writer.write_all(pair.repeat(500).as_bytes()).expect("it reads");
        writer.shutdown(Shutdown::Write).expect("half closed");
    });
    let text = read_to_end(&mut client);
    sender.join().expect("sent");
    let statuses: Vec<&str> = text.matches("HTTP/1.1 ").collect();
    assert_eq!(statuses.len(), 1000);
    let codes: Vec<u16> =
        text.split("HTTP/1.1 ").skip(1).filter_map(|t| t[..3].parse().ok()).collect();
    assert!(codes.chunks(2).all(|pair| pair == [200, 404]));
}

#[test]
fn only_a_get_of_a_known_route_reaches_patroni() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[]);
    let evil = "GET /secret HTTP/1.1\r\n\r\n";
    let length = evil.len();
    let table = [
        ("POST /restart HTTP/1.0\r\nContent-Length: 0\r\n\r\n".to_owned(), vec![404]),
        ("POST /primary HTTP/1.0\r\n\r\n".to_owned(), vec![405]),
        ("PUT /primary HTTP/1.0\r\n\r\n".to_owned(), vec![405]),
        ("PATCH /config HTTP/1.0\r\n\r\n".to_owned(), vec![404]),
        ("DELETE /primary HTTP/1.0\r\n\r\n".to_owned(), vec![405]),
        ("TRACE /primary HTTP/1.0\r\n\r\n".to_owned(), vec![405]),
        ("CONNECT patroni:8008 HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), vec![405]),
        ("BREW /primary HTTP/1.0\r\n\r\n".to_owned(), vec![501]),
        ("GET /config HTTP/1.0\r\n\r\n".to_owned(), vec![404]),
        ("GET /failsafe HTTP/1.0\r\n\r\n".to_owned(), vec![404]),
        ("GET /%70rimary HTTP/1.0\r\n\r\n".to_owned(), vec![404]),
        // a request within a body is part of the body
        (
            format!(
                "POST /primary HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{evil}"
            ),
            vec![405],
        ),
        (
            format!(
                "GET /nowhere HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{evil}"
            ),
            vec![404],
        ),
        (
            format!(
                "GET /nowhere HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{evil}\r\n0\r\n\r\n"
            ),
            vec![404],
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{evil}"
            ),
            vec![400],
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"
            ),
            vec![400],
        ),
        (
            format!("GET / HTTP/1.1\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n{evil}"),
            vec![501],
        ),
        (format!("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"), vec![400]),
        (format!("GET / HTTP/1.1\r\nContent-Length : {length}\r\n\r\n{evil}"), vec![400]),
        (format!("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n{evil}"), vec![400]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), vec![400]),
        ("\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03".to_owned(), vec![400]),
    ];
    for (request, statuses) in table {
        let (_, text) = glue.send(request.as_bytes());
        let codes = text.split("HTTP/1.1 ").skip(1).filter_map(|text| text[..3].parse().ok());
        assert_eq!(codes.collect::<Vec<u16>>(), statuses, "{request:?}: {text}");
        if statuses == [405] {
            assert_eq!(header(&text, "Allow"), Some("GET, HEAD, OPTIONS"));
        }
    }
    assert_eq!(patroni.requests(), Vec::<String>::new());
}

#[test]
fn head_and_options_cause_a_get() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[]);
    let head = glue.send(b"HEAD /primary HTTP/1.1\r\nconnection: close\r\n\r\n").1;
    assert_eq!((status_of(&head), body(&head)), (200, ""));
    let options = glue.send(b"OPTIONS /primary HTTP/1.0\r\n\r\n").1;
    assert_eq!((status_of(&options), header(&options, "Content-Length")), (200, Some("0")));
    assert_eq!(header(&options, "Allow"), Some("GET, HEAD, OPTIONS"));
    let get = glue.get("/primary").1;
    assert_eq!(header(&head, "Content-Length"), header(&get, "Content-Length"));
    assert_eq!(header(&get, "Cache-Status"), Some("patroniglue; hit"));
    assert_eq!(glue.send(b"OPTIONS * HTTP/1.0\r\n\r\n").0, 200);
    assert!(patroni.requests().iter().all(|request| request.starts_with("GET /primary ")));
}

#[test]
fn connections_are_kept_half_closed_and_closed_as_asked() {
    let patroni = StandIn::start(Mood::Delays(Duration::from_millis(100), primary()));
    let glue = Glue::start(patroni.address, &[]);
    let mut kept = glue.connect();
    for _ in 0..3 {
        kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
        let text = read_response(&mut kept);
        assert_eq!((status_of(&text), header(&text, "Connection")), (200, None));
    }
    kept.write_all(b"GET /primary HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("it reads");
    assert_eq!(header(&read_response(&mut kept), "Connection"), Some("keep-alive"));
    kept.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    assert_eq!(header(&read_to_end(&mut kept), "Connection"), Some("close"));
    let mut half = glue.connect();
    half.write_all(b"GET /leader HTTP/1.1\r\n\r\n").expect("it reads");
    half.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(status_of(&read_to_end(&mut half)), 200);
}

#[test]
fn a_client_that_sends_too_much_gets_its_answer_and_fin() {
    let patroni = StandIn::start(Mood::Delays(Duration::from_millis(300), primary()));
    let glue = Glue::start(patroni.address, &[]);
    let mut client = glue.connect();
    client.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    wait_for("the fetch", || (!patroni.requests().is_empty()).then_some(()));
    client.write_all(&b"GET /replica HTTP/1.1\r\n\r\n".repeat(2_000)).expect("room");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("FIN, not RST");
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert_eq!((status_of(&text), text.matches("HTTP/1.1 ").count()), (200, 1));
}

#[test]
fn silent_clients_delay_no_other_client() {
    let body = "x".repeat(900 * 1024);
    let patroni = StandIn::start(at_once(json(200, &format!("\"{body}\""))));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    glue.get("/metrics");
    // 200 silent clients, 200 with half a head, 20 that never read their answer
    let silent: Vec<_> = (0..200).map(|_| glue.connect()).collect();
    let mut half: Vec<_> = (0..200).map(|_| glue.connect()).collect();
    half.iter_mut().for_each(|client| client.write_all(b"GET /pri").expect("it reads"));
    let mut unread: Vec<_> = (0..20).map(|_| glue.connect()).collect();
    let three = "GET /metrics HTTP/1.1\r\n\r\n".repeat(3);
    unread.iter_mut().for_each(|client| client.write_all(three.as_bytes()).expect("it reads"));
    let mut times = Vec::new();
    for client in &mut half {
        let begun = Instant::now();
        assert_eq!(glue.send(b"HEAD /metrics HTTP/1.0\r\n\r\n").0, 200);
        times.push(begun.elapsed());
        client.write_all(b"m").expect("it reads");
    }
    times.sort_unstable();
    println!("p50 {:?}, p99 {:?}, max {:?}", times[100], times[198], times[199]);
    assert!(times[100] < Duration::from_millis(100), "{:?}", times[100]);
    drop((silent, half, unread));
    assert_eq!(glue.get("/nowhere").0, 404);
}

#[test]
fn a_reset_while_waiting_frees_the_slot_at_once() {
    let patroni = StandIn::start(Mood::Silent);
    let more = [("frontend", "connections: 2"), ("backend", "timeout: 15")];
    let mut glue = Glue::start(patroni.address, &more);
    let clients = [glue.connect(), glue.connect()];
    for mut client in &clients {
        client.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    }
    wait_for("two waiters", || (glue.counts()[3] == 2).then_some(()));
    for client in clients {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option");
    }
    wait_for("their end", || (glue.counts()[..4] == [0, 1, 0, 0]).then_some(()));
}

#[test]
fn a_host_that_does_not_resolve_delays_no_other_client() {
    let text = config("does-not-exist.invalid", 8008, &[("backend", "timeout: 1")]);
    let glue = Glue::start_with(&text, &[], None);
    let mut waiting = glue.connect();
    waiting.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    for _ in 0..20 {
        assert_eq!(glue.get("/nowhere").0, 404);
    }
    let text = read_to_end(&mut waiting);
    assert_eq!(status_of(&text), 503);
    let named = ["cannot be resolved", "did not answer in time"];
    assert!(named.iter().any(|why| text.contains(why)), "{text}");
}

#[test]
fn a_stuck_or_closed_log_stops_nothing() {
    let patroni = StandIn::start(at_once(primary()));
    let backend = patroni.address;
    let text = config(&backend.ip().to_string(), backend.port(), &[("cache", "ttl: 60")]);
    for (fate, asked) in [(Stderr::Stuck, 3_000), (Stderr::Closed, 300)] {
        let mut glue = Glue::start_saying(&text, &["-verbose"], None, fate);
        for _ in 0..asked {
            assert_eq!(glue.send(b"OPTIONS /primary?a=padding HTTP/1.0\r\n\r\n").0, 200);
        }
        assert!(glue.is_running());
    }
}

#[test]
fn after_sigterm_or_sigint_waiting_clients_are_answered() {
    for signal in ["TERM", "INT"] {
        let patroni = StandIn::start(Mood::Delays(Duration::from_millis(500), primary()));
        let mut glue = Glue::start(patroni.address, &[]);
        let mut idle = glue.connect();
        idle.write_all(b"GET /nowhere HTTP/1.1\r\n\r\n").expect("it reads");
        assert_eq!(status_of(&read_response(&mut idle)), 404);
        let mut waiting = glue.connect();
        waiting.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
        wait_for("the fetch", || (!patroni.requests().is_empty()).then_some(()));
        glue.signal(signal);
        let text = read_to_end(&mut waiting);
        assert_eq!((status_of(&text), header(&text, "Connection")), (200, Some("close")));
        assert_eq!(idle.read(&mut [0; 8]).ok(), Some(0), "the idle client was closed");
        assert_eq!(glue.wait().code(), Some(0));
    }
}

#[test]
fn after_sigterm_nobody_delays_the_end() {
    let patroni = StandIn::start(Mood::Silent);
    let mut glue = Glue::start(patroni.address, &[("backend", "timeout: 20")]);
    let mut waiting = glue.connect();
    waiting.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    let mut half = glue.connect();
    half.write_all(b"GET /primary HTT").expect("it reads");
    wait_for("the fetch", || (!patroni.requests().is_empty()).then_some(()));
    glue.signal("TERM");
    let text = read_to_end(&mut waiting);
    assert_eq!((status_of(&text), header(&text, "Connection")), (503, Some("close")));
    assert_eq!(body(&text), "{\"error\":\"patroniglue is shutting down\"}\n");
    assert_eq!(read_to_end(&mut half), "");
    assert_eq!(glue.wait().code(), Some(0), "long before the timeout");
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let patroni = StandIn::start(Mood::Silent);
    let mut glue = Glue::start(patroni.address, &[]);
    let mut waiting = glue.connect();
    waiting.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    wait_for("the fetch", || (!patroni.requests().is_empty()).then_some(()));
    glue.signal("TERM");
    glue.wait_for_line("shutting down: 1 clients left");
    glue.signal("TERM");
    assert_eq!(read_to_end(&mut waiting), "");
    assert_eq!(glue.wait().code(), Some(0));
}

#[test]
fn requests_that_arrive_with_sigterm_are_answered() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    let mut kept = glue.connect();
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
    assert_eq!(status_of(&read_response(&mut kept)), 200);
    // stopped, so that one turn sees both requests and the signal
    glue.signal("STOP");
    let state = format!("/proc/{}/stat", glue.process_id());
    wait_for("its standstill", || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains(") T ")).then_some(())
    });
    kept.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("the kernel buffers it");
    let mut fresh = glue.connect();
    fresh.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("the kernel buffers it");
    glue.signal("TERM");
    glue.signal("CONT");
    for client in [&mut kept, &mut fresh] {
        assert_eq!(status_of(&read_to_end(client)), 200);
    }
    assert_eq!(glue.wait().code(), Some(0));
}

#[test]
fn a_reload_applies_a_valid_file_and_ignores_a_broken_one() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    glue.get("/primary");
    let good = std::fs::read_to_string(&glue.config).expect("its configuration");
    std::fs::write(&glue.config, "cache:\n  ttl: 1\n  tlt: 2\n").expect("written");
    glue.signal("HUP");
    let line = glue.wait_for_line("not reloaded");
    assert!(line.contains(".yml:3: cache.tlt is not a key; did you mean cache.ttl?"), "{line}");
    assert_eq!(glue.get("/primary").0, 200);
    assert_eq!(patroni.requests().len(), 1, "the previous ttl is in force");
    std::fs::write(&glue.config, good.replace("ttl: 60", "ttl: 0")).expect("written");
    glue.signal("HUP");
    glue.wait_for_line("reloaded ");
    wait_for("ttl 0", || {
        let before = patroni.requests().len();
        glue.get("/primary");
        (patroni.requests().len() > before).then_some(())
    });
}

#[test]
fn after_a_change_of_patroni_nothing_of_the_previous_is_served() {
    let previous = StandIn::start(at_once(primary()));
    let next = StandIn::start(at_once(json(503, "{\"state\": \"running\"}")));
    let glue = Glue::start(previous.address, &[("cache", "ttl: 60")]);
    assert_eq!(glue.get("/primary").0, 200);
    previous.set(Mood::Silent);
    let mut waiting = glue.connect();
    waiting.write_all(b"GET /health HTTP/1.0\r\n\r\n").expect("it reads");
    wait_for("its fetch", || {
        previous.requests().iter().any(|r| r.contains("/health")).then_some(())
    });
    let ports = [&previous, &next].map(|patroni| format!("port: {}\n", patroni.address.port()));
    let text = std::fs::read_to_string(&glue.config).expect("its configuration");
    std::fs::write(&glue.config, text.replace(&ports[0], &ports[1])).expect("written");
    glue.signal("HUP");
    assert_eq!(
        status_of(&read_to_end(&mut waiting)),
        503,
        "from the new Patroni, before the timeout"
    );
    assert_eq!(glue.get("/primary").0, 503, "answers of the previous Patroni are dropped");
    assert_eq!((previous.requests().len(), next.requests().len()), (2, 2));
    let host = format!("Host: {}\r\n", next.address);
    assert!(next.requests().iter().all(|request| request.contains(&host)));
}

#[test]
fn while_drained_leader_and_replica_routes_are_503() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start(patroni.address, &[]);
    assert_eq!(glue.get("/primary").0, 200);
    glue.signal("USR1");
    glue.wait_for_line("INFO  [patroniglue] draining");
    let (status, text) = glue.get("/primary");
    assert_eq!((status, body(&text)), (503, "{\"error\":\"draining\"}\n"));
    assert_eq!((glue.get("/replica").0, glue.get("/health").0), (503, 200));
    glue.signal("USR2");
    glue.wait_for_line("no longer draining");
    assert_eq!(glue.get("/primary").0, 200);
}

#[test]
fn with_few_descriptors_checks_are_still_answered() {
    for limit in [16, 32, 64] {
        let patroni = StandIn::start(at_once(primary()));
        let backend = patroni.address;
        let text = config(&backend.ip().to_string(), backend.port(), &[]);
        let glue = Glue::start_with(&text, &[], Some(&format!("ulimit -n {limit}")));
        let mut kept: Vec<_> = (0..limit * 2).map(|_| glue.connect()).collect();
        for client in &mut kept {
            // some are refused with an answer, the others are idle from now on
            client.write_all(b"GET /primary HTTP/1.1\r\n\r\n").expect("it reads");
            assert!([200, 503].contains(&status_of(&read_response(client))));
        }
        for _ in 0..20 {
            assert_eq!(glue.get("/primary").0, 200, "with {limit} descriptors");
        }
    }
}

/// The poll reports the backlog once: the daemon must look at it again by itself.
#[test]
fn a_client_in_the_backlog_is_served_once_descriptors_are_free() {
    let patroni = StandIn::start(at_once(primary()));
    let backend = patroni.address;
    let text = config(&backend.ip().to_string(), backend.port(), &[]);
    // more descriptors are in use than the daemon knows of: its own limit does not apply
    let shell = "ulimit -n 32; exec 3</dev/null 4<&3 5<&3 6<&3 7<&3 8<&3 9<&3";
    let mut glue = Glue::start_with(&text, &[], Some(shell));
    let mut held = Vec::new();
    while glue.lines_with("not accepting connections").is_empty() {
        let mut client = glue.connect();
        client.write_all(b"GET /pri").expect("it reads"); // not idle: no room is made
        held.push(client);
        assert!(held.len() < 100, "descriptors have run out by then");
        thread::sleep(Duration::from_millis(5));
    }
    // nothing connects from now on: the last one stays in the backlog
    let before = glue.lines_with("not accepting connections").len();
    wait_for("another try", || {
        (glue.lines_with("not accepting connections").len() > before).then_some(())
    });
    let mut last = held.pop().expect("the last one");
    // a path without a route: a fetch would need a descriptor as well
    last.write_all(b"ce HTTP/1.0\r\n\r\n").expect("it reads");
    held.clear();
    assert_eq!(status_of(&read_to_end(&mut last)), 404);
    assert!(glue.is_running());
}

#[test]
fn stale_answers_are_logged_once_with_their_age() {
    let patroni = StandIn::start(Mood::Stamps(Duration::ZERO));
    let more = [("cache", "grace: 60"), ("backend", "timeout: 1")];
    let mut glue = Glue::start(patroni.address, &more);
    let silent = |text: &str| header(text, "Cache-Status").is_some_and(|it| it.contains("silent"));
    glue.wait_for_known_lease(&patroni);
    patroni.set(Mood::Silent);
    let age = wait_for("a stale answer", || {
        let (status, text) = glue.get("/primary");
        let age = header(&text, "Age").and_then(|age| age.parse::<u64>().ok());
        (status == 200 && silent(&text)).then_some(age?)
    });
    for _ in 0..3 {
        assert!(silent(&glue.get("/primary").1));
    }
    let line = glue.wait_for_line("patroni is silent: serving stale /primary, age ");
    let seconds = line.split(' ').rev().nth(1).and_then(|text| text.parse::<f64>().ok());
    let seconds = seconds.unwrap_or_else(|| panic!("no seconds in {line}"));
    assert!((age as f64 - 1.0..age as f64 + 1.0).contains(&seconds), "{line}, and {age}");
    assert_eq!(glue.lines_with("serving stale").len(), 1);
}

#[test]
fn changes_are_logged_once_and_failures_once_a_second() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start(patroni.address, &[("cache", "ttl: 0")]);
    glue.get("/primary");
    glue.wait_for_line("patroni answers");
    glue.wait_for_line("this node is primary");
    patroni.set(at_once(json(503, "{\"state\": \"running\", \"role\": \"replica\"}")));
    glue.get("/primary");
    glue.wait_for_line("from primary to replica; /primary was last answered with 200, 0.");
    patroni.set(Mood::Closes);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        glue.get("/primary");
    }
    glue.wait_for_line("patroni stopped answering");
    let lines = glue.lines_with("closed the connection without an answer").len() as u64;
    assert!(lines >= 1 && lines <= begun.elapsed().as_secs() + 1, "{lines} lines");
}

#[test]
fn concurrent_clients_all_get_the_same_answer() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Arc::new(Glue::start(patroni.address, &[]));
    let barrier = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (glue, barrier) = (Arc::clone(&glue), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                (0..200).all(|_| glue.get("/primary").0 == 200)
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().expect("no panic")));
}
