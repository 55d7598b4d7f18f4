//! The known attacks on HTTP/1.1, each sent whole, byte by byte and alone to the real binary.
//!
//! The tables are `*.txt` of this folder. An ordinary request follows each attack: on a kept
//! connection it is the next to be answered, on a closed one no more answers come.

mod table;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, header, status_of};
use table::{Case, EVIL};

/// A way to send an attack. The error is the actual outcome.
type Send = fn(&Glue, &Case) -> Result<(), String>;
const WAYS: [(&str, Send); 3] =
    [("whole", whole), ("byte by byte", byte_by_byte), ("alone", alone)];
/// The request after each attack.
const NEXT: &str = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// An answer that takes longer is due to one of the daemon's deadlines, not to a decision.
const SLOW: Duration = Duration::from_secs(4);
/// Fetched before the attacks begin, so that attacks on these routes cause no fetch.
const WARM: [&str; 3] = ["/", "/primary", "/health"];

#[test]
fn every_attack_has_its_answer_and_smuggles_no_request() {
    let patroni = StandIn::start(at_once(primary()));
    let glue = Glue::start(patroni.address, &[("cache", "ttl: 60")]);
    WARM.iter().for_each(|route| assert_eq!(glue.get(route).0, 200));
    let cases = table::read();
    let mut wrong = Vec::new();
    for case in &cases {
        let asked_before = patroni.requests().len();
        for (way, send) in WAYS {
            let begun = Instant::now();
            if let Err(why) = send(&glue, case) {
                wrong.push(format!("{}, {}, {way}: {why}", case.reference, case.name));
            }
            if begun.elapsed() > SLOW {
                wrong.push(format!("{}, {}, {way}: too slow", case.reference, case.name));
            }
        }
        for request in &patroni.requests()[asked_before..] {
            if !may_be_asked(request, case) {
                let target = request.lines().next().unwrap_or_default();
                wrong.push(format!("{}, {}: Patroni saw {target}", case.reference, case.name));
            }
        }
    }
    println!("{} attacks, each in three ways", cases.len());
    assert!(wrong.is_empty(), "{} outcomes are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let evil = EVIL.split(" HTTP").next().expect("a request line");
    assert!(!patroni.requests().iter().any(|request| request.starts_with(evil)));
}

#[test]
fn the_protocol_of_a_refused_client_is_logged() {
    let patroni = StandIn::start(at_once(primary()));
    for (bytes, line) in [
        ("PROXY TCP4 127.0.0.1 127.0.0.1 1234 8009\r\n", "refused: a PROXY header: set"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "refused: HTTP/2 is not supported"),
        ("\x16\x03\x01", "refused: TLS on a plain port"),
    ] {
        let mut glue = Glue::start(patroni.address, &[]);
        assert_eq!(glue.send(bytes.as_bytes()).0, 400, "{line}");
        glue.wait_for_line(line);
    }
}

/// Whether it is a GET that the case allows, without the client's fields.
fn may_be_asked(request: &str, case: &Case) -> bool {
    let lines: Vec<&str> = request.split("\r\n").collect();
    let asks = WARM.iter().copied().chain(case.asks.as_deref());
    let known = asks.map(|target| format!("GET {target} HTTP/1.0")).any(|line| line == lines[0]);
    let fields = ["Host: 127.0.0.1:", "Connection: close", "User-Agent: patroniglue/", "", ""];
    let ours = lines.len() == 1 + fields.len()
        && lines[1..].iter().zip(fields).all(|(line, field)| line.starts_with(field));
    known && ours
}

fn connect(glue: &Glue) -> TcpStream {
    let client = glue.connect();
    client.set_read_timeout(Some(SLOW)).expect("a timeout");
    client
}

/// Sends attack and ordinary request in one write, then half-closes.
fn whole(glue: &Glue, case: &Case) -> Result<(), String> {
    let mut client = connect(glue);
    // a refused attack may be closed before all of it was sent
    let _ = client.write_all(&[&case.bytes, NEXT.as_bytes()].concat());
    check(client, case)
}

/// The same, each byte in its own segment.
fn byte_by_byte(glue: &Glue, case: &Case) -> Result<(), String> {
    let mut client = connect(glue);
    client.set_nodelay(true).expect("an option");
    let bytes = [&case.bytes, NEXT.as_bytes()].concat();
    let _ = bytes.iter().try_for_each(|byte| client.write_all(&[*byte]));
    check(client, case)
}

fn check(mut client: TcpStream, case: &Case) -> Result<(), String> {
    let _ = client.shutdown(Shutdown::Write);
    let bytes = to_the_end(&mut client);
    let answers = answers(&bytes, case).ok_or_else(|| cut(&bytes))?;
    let next = if case.kept { &[200][..] } else { &[] };
    expect(&answers, &[&case.statuses, next].concat(), case)
}

/// Sends the attack alone, and the ordinary request once its answers have come.
fn alone(glue: &Glue, case: &Case) -> Result<(), String> {
    let mut client = connect(glue);
    let _ = client.write_all(&case.bytes);
    if case.statuses.is_empty() {
        let _ = client.shutdown(Shutdown::Write);
    }
    if !case.kept {
        // the daemon closes by itself
        let bytes = to_the_end(&mut client);
        let answers = answers(&bytes, case).ok_or_else(|| cut(&bytes))?;
        return expect(&answers, &case.statuses, case);
    }
    let mut bytes = Vec::new();
    while answers(&bytes, case).is_none_or(|answers| answers.len() < case.statuses.len()) {
        let mut piece = [0; 4096];
        match client.read(&mut piece) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&piece[..count]),
            other => return Err(format!("{other:?} after {}", cut(&bytes))),
        }
    }
    client.write_all(NEXT.as_bytes()).map_err(|error| error.to_string())?;
    bytes.extend_from_slice(&to_the_end(&mut client));
    let answers = answers(&bytes, case).ok_or_else(|| cut(&bytes))?;
    expect(&answers, &[&case.statuses[..], &[200]].concat(), case)
}

struct Answer {
    status: u16,
    closes: bool,
    allows: bool,
}

/// Checks the statuses, and the fields Connection and Allow of each answer.
fn expect(answers: &[Answer], statuses: &[u16], case: &Case) -> Result<(), String> {
    let got: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    if got != statuses {
        return Err(format!("answered {got:?} instead of {statuses:?}"));
    }
    for (at, answer) in answers.iter().enumerate() {
        let last_of_attack = !case.kept && at + 1 == case.statuses.len();
        let is_next = at >= case.statuses.len();
        if answer.closes != (last_of_attack || is_next) {
            return Err(format!("Connection: close at answer {at}: {}", answer.closes));
        }
        if answer.status == 405 && !answer.allows {
            return Err("405 without Allow".into());
        }
    }
    Ok(())
}

/// Splits the answers; `None`: the last one is not complete.
fn answers(bytes: &[u8], case: &Case) -> Option<Vec<Answer>> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut rest = text.as_str();
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let head_end = rest.find("\r\n\r\n")? + 4;
        let head = &rest[..head_end];
        let length: usize = header(head, "Content-Length")?.parse().ok()?;
        let bodiless = answers.is_empty() && case.bytes.starts_with(b"HEAD ");
        answers.push(Answer {
            status: status_of(head),
            closes: header(head, "Connection") == Some("close"),
            allows: header(head, "Allow").is_some(),
        });
        rest = rest.get(head_end + if bodiless { 0 } else { length }..)?;
    }
    Some(answers)
}

fn cut(bytes: &[u8]) -> String {
    format!("not a complete answer: {:?}", String::from_utf8_lossy(bytes))
}

fn to_the_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // an RST after the answers is an end as well
    let _ = client.read_to_end(&mut bytes);
    bytes
}
