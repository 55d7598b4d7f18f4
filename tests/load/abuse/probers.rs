//! Well-behaved clients: their answers and delays while others misbehave.

use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, body, header, read_response, read_to_end, status_of};

/// The answers accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    /// Patroni is healthy: only its answer.
    Answer,
    /// Patroni is flaky: its answer, or a 503 with the reason.
    AnswerOrReason,
}

/// The results of one client.
#[derive(Debug, Default)]
pub struct Report {
    pub times: Vec<Duration>,
    pub reasons: usize,
    pub wrong: Vec<String>,
}

/// Two clients ask every 10 ms, one on a kept connection, one on a new one each time.
pub fn probe(name: &str, address: SocketAddr, time: Duration, expect: Expect) -> [Report; 2] {
    let kept = thread::spawn(move || kept(address, time, expect));
    let fresh = thread::spawn(move || fresh(address, time, expect));
    let reports = [kept, fresh].map(|thread| thread.join().expect("a prober does not panic"));
    for (kind, report) in ["kept", "new"].iter().zip(&reports) {
        println!("{name:>24}, {kind:>4}: {}", report.line());
        assert!(report.wrong.is_empty(), "{name}, {kind}: {:?}", report.wrong);
        assert!(!report.times.is_empty(), "{name}, {kind}: no answers at all");
    }
    reports
}

impl Report {
    /// The time that `percent` of the answers did not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[(times.len() * percent / 100).min(times.len() - 1)]
    }

    fn line(&self) -> String {
        let [half, most, all] = [50, 99, 100].map(|percent| self.percentile(percent));
        let (answers, reasons) = (self.times.len(), self.reasons);
        format!("p50 {half:?}, p99 {most:?}, max {all:?} of {answers} answers, {reasons} reasons")
    }

    fn record(&mut self, begun: Instant, text: &str, expect: Expect) {
        self.times.push(begun.elapsed());
        let length = header(text, "Content-Length").and_then(|length| length.parse().ok());
        let whole = length == Some(body(text).len());
        let role = body(text).contains("\"role\": \"primary\"");
        match (status_of(text), whole, expect) {
            (200, true, _) if role => {}
            (503, true, Expect::AnswerOrReason) if body(text).starts_with("{\"error\":\"Patr") => {
                self.reasons += 1;
            }
            _ => self.wrong.push(text.to_owned()),
        }
    }
}

fn kept(address: SocketAddr, time: Duration, expect: Expect) -> Report {
    let mut report = Report::default();
    let mut client = connect(address);
    every_10_ms(time, |begun| {
        client.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").expect("it is kept");
        report.record(begun, &read_response(&mut client), expect);
    });
    report
}

fn fresh(address: SocketAddr, time: Duration, expect: Expect) -> Report {
    let mut report = Report::default();
    every_10_ms(time, |begun| {
        let mut client = connect(address);
        client.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
        report.record(begun, &read_to_end(&mut client), expect);
    });
    report
}

fn every_10_ms(time: Duration, mut ask: impl FnMut(Instant)) {
    let first = Instant::now();
    while first.elapsed() < time {
        let begun = Instant::now();
        ask(begun);
        thread::sleep(Duration::from_millis(10).saturating_sub(begun.elapsed()));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("it listens");
    client.set_nodelay(true).expect("an option");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client
}
