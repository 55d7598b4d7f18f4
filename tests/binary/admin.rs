//! The admin and agent ports of the real binary: counters that agree with what clients counted, the
//! page's files, and answers while the frontend is full or Patroni is frozen.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::standin::{Mood, StandIn, at_once, json, primary};
use crate::common::{
    Glue, PATIENCE, body, config, free_port, header, read_to_end, status_of, wait_for,
};
use crate::tls_support::patroni::{TlsPatroni, server};
use crate::tls_support::{self, Ca, Folder, ONLY_12, ONLY_13, client, read_answer, section};

const PORTS: &str = "admin: {port: 0}\nagent: {port: 0, route: /primary}\n";

/// A daemon with both ports.
struct Watched {
    glue: Glue,
    admin: SocketAddr,
    agent: SocketAddr,
}

impl Watched {
    fn start(patroni: &StandIn, more: &[(&str, &str)]) -> Watched {
        Watched::start_at(patroni.address, more)
    }

    fn start_at(backend: SocketAddr, more: &[(&str, &str)]) -> Watched {
        let text = config(&backend.ip().to_string(), backend.port(), more) + PORTS;
        let mut glue = Glue::start_with(&text, &[], None);
        let mut address = |name: &str| {
            let line = glue.wait_for_line(name);
            line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address")
        };
        let (admin, agent) = (address("admin listening on "), address("agent listening on "));
        Watched { glue, admin, agent }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = connect(self.admin);
        stream.write_all(format!("{request} HTTP/1.0\r\n").as_bytes()).expect("it reads");
        stream.write_all(b"\r\n").expect("it reads");
        read_to_end(&mut stream)
    }

    fn status(&self) -> Value {
        let text = self.ask("GET /status");
        assert_eq!(status_of(&text), 200, "{text}");
        serde_json::from_str(body(&text)).expect("JSON")
    }

    /// The value of a series, by its whole name with labels; `None`: it is not written.
    fn metric(&self, series: &str) -> Option<f64> {
        let text = self.ask("GET /metrics");
        let line =
            body(&text).lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().expect("a number"))
    }

    /// TLS handshakes with a side: full, resumed, failed.
    fn handshakes(&self, side: &str) -> [f64; 3] {
        ["full", "resumed", "failed"].map(|outcome| {
            let labels = format!("{{side=\"{side}\",outcome=\"{outcome}\"}}");
            self.metric(&format!("patroniglue_tls_handshakes_total{labels}")).unwrap_or(0.0)
        })
    }

    /// `patroniglue_requests_total`: code and source, of all routes.
    fn requests(&self) -> BTreeMap<(String, String), u64> {
        let text = self.ask("GET /metrics");
        let mut counts = BTreeMap::new();
        for line in body(&text).lines() {
            let Some(rest) = line.strip_prefix("patroniglue_requests_total{") else { continue };
            let label = |name: &str| {
                let value = rest.split(&format!("{name}=\"")).nth(1);
                value.and_then(|value| value.split('"').next()).expect("a label").to_owned()
            };
            let count: u64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a count");
            *counts.entry((label("code"), label("cache"))).or_insert(0) += count;
        }
        counts
    }

    fn agent_line(&self) -> String {
        let mut stream = connect(self.agent);
        let _ = stream.write_all(b"a line, if agent-send is set\n");
        read_to_end(&mut stream)
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// The code and source of a response, as the metrics name them.
fn counted(text: &str) -> (String, String) {
    let source = match header(text, "Cache-Status").unwrap_or_default() {
        "" => "none",
        "patroniglue; hit" => "hit",
        "patroniglue; fwd=miss; stored" => "miss",
        "patroniglue; fwd=miss; collapsed" => "collapsed",
        "patroniglue; hit; detail=silent" => "stale",
        "patroniglue; hit; detail=failed" => "failed_hit",
        "patroniglue; fwd=miss; detail=failed" => "failed",
        other => panic!("{other}"),
    };
    (status_of(text).to_string(), source.to_owned())
}

#[test]
fn counters_agree_with_what_clients_counted() {
    let patroni = StandIn::start(Mood::Stamps(Duration::from_millis(50)));
    let watched = Watched::start(&patroni, &[("cache", "grace: 60"), ("backend", "timeout: 1")]);
    let glue = &watched.glue;
    let mut counts = BTreeMap::new();
    let mut count = |text: &str| *counts.entry(counted(text)).or_insert(0) += 1;
    let address = glue.address;
    let collapsed: Vec<_> = (0..20)
        .map(|_| {
            thread::spawn(move || {
                let mut stream = connect(address);
                stream.write_all(b"GET /replica HTTP/1.0\r\n\r\n").expect("it reads");
                read_to_end(&mut stream)
            })
        })
        .collect();
    collapsed.into_iter().for_each(|client| count(&client.join().expect("a response")));
    // hits, misses, and a lease that is known in the end
    wait_for("a lease that is known", || {
        count(&glue.get("/primary").1);
        (patroni.requests().len() > 8).then_some(())
    });
    for bytes in [&b"GET /nothing HTTP/1.0\r\n\r\n"[..], b"POST / HTTP/1.0\r\n\r\n", b"\0\r\n\r\n"]
    {
        count(&glue.send(bytes).1);
    }
    patroni.set(Mood::Silent);
    wait_for("stale and failed answers", || {
        count(&glue.get("/primary").1);
        count(&glue.get("/health").1);
        let requests = watched.requests();
        let has = |source: &str| requests.keys().any(|(_, known)| known == source);
        ["stale", "failed", "failed_hit"].iter().all(|source| has(source)).then_some(())
    });
    glue.signal("USR1");
    wait_for("the drain", || {
        let text = glue.get("/primary").1;
        count(&text);
        text.contains("draining").then_some(())
    });
    for source in ["hit", "miss", "collapsed", "stale", "failed", "failed_hit", "none"] {
        assert!(counts.keys().any(|(_, known)| known == source), "{source}: {counts:?}");
    }
    assert_eq!(watched.requests(), counts);
    let total: u64 = counts.values().sum();
    let accepted = "patroniglue_client_connections_total{outcome=\"accepted\"}";
    assert_eq!(watched.metric(accepted), Some(total as f64), "a connection each");
}

#[test]
fn the_status_says_what_the_log_and_the_clients_see() {
    let patroni = StandIn::start(Mood::Stamps(Duration::ZERO));
    let watched = Watched::start(&patroni, &[("cache", "grace: 60"), ("backend", "timeout: 1")]);
    let status = watched.status();
    assert_eq!((&status["node"], &status["state"]), (&Value::Null, &"serving".into()));
    assert_eq!(status["lease"]["why_not"], "Patroni has not answered yet");
    watched.glue.wait_for_known_lease(&patroni);
    let status = watched.status();
    assert_eq!(status["node"]["role"], "primary");
    assert_eq!(status["lease"]["source"], "patroni", "{status}");
    let left = status["lease"]["remaining_seconds"].as_f64().expect("a number");
    assert!((5.0..=10.0).contains(&left), "30 - 10 - 10 s after dcs_last_seen: {left}");
    let route = &status["routes"][0];
    assert_eq!((&route["target"], &route["status"]), (&"/primary".into(), &200.into()));
    patroni.set(Mood::Silent);
    wait_for("a stale answer", || {
        watched.glue.get("/primary").1.contains("detail=silent").then_some(())
    });
    let status = watched.status();
    assert_eq!(status["patroni"]["state"], "silent");
    assert_eq!(status["routes"][0]["served"], "stale");
    let changes: Vec<_> = status["changes"].as_array().expect("a list").iter().collect();
    for change in &changes {
        let text = change["text"].as_str().expect("a text");
        let is_logged = || (watched.glue.lines_with(text).len() == 1).then_some(());
        wait_for(&format!("{text:?} in the log, once"), is_logged);
    }
    assert_eq!(changes[0]["kind"], "stale", "the newest first: {changes:?}");
    let health = watched.ask("GET /health");
    assert_eq!(
        (status_of(&health), body(&health)),
        (200, "{\"status\":\"ok\",\"patroni\":\"silent\"}\n")
    );
}

#[test]
fn the_admin_port_answers_get_and_head_of_its_own_paths_only() {
    let patroni = StandIn::start(at_once(primary()));
    let watched = Watched::start(&patroni, &[]);
    let table = [
        ("GET /", 200, None),
        ("HEAD /metrics", 200, None),
        ("GET /primary", 404, None),
        ("POST /status", 405, Some("GET, HEAD")),
        ("OPTIONS /", 405, Some("GET, HEAD")),
        ("BREW /", 501, None),
        ("GET", 400, None),
    ];
    for (request, status, allow) in table {
        let text = watched.ask(request);
        assert_eq!((status_of(&text), header(&text, "Allow")), (status, allow), "{request}");
        assert_eq!(header(&text, "X-Content-Type-Options"), Some("nosniff"), "{request}");
        let has_body = !body(&text).is_empty();
        assert_eq!(has_body, !request.starts_with("HEAD"), "{text}");
    }
    assert_eq!(watched.metric("patroniglue_patroni_up"), None, "it was not asked");
    assert_eq!(watched.requests(), BTreeMap::new(), "they are not health checks");
    let page = watched.ask("GET /");
    let policy = header(&page, "Content-Security-Policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    let tag = header(&page, "ETag").expect("a tag").to_owned();
    for (known, status) in [(tag.as_str(), 304), ("\"0123456789abcdef\"", 200), ("*", 200)] {
        let again = watched.ask(&format!("GET / HTTP/1.0\r\nIf-None-Match: W/{known}\r\nX:"));
        assert_eq!(status_of(&again), status, "{known}");
        assert_eq!(body(&again).is_empty(), status == 304);
    }
}

#[test]
fn the_admin_port_answers_while_the_frontend_is_full() {
    let patroni = StandIn::start(Mood::Silent);
    let watched = Watched::start(&patroni, &[("frontend", "connections: 2")]);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = connect(watched.glue.address);
            stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
            stream
        })
        .collect();
    wait_for("waiting clients", || {
        (watched.metric("patroniglue_fetch_waiters") == Some(2.0)).then_some(())
    });
    assert_eq!(watched.glue.get("/primary").0, 503, "turned away");
    let refused = "patroniglue_client_connections_total{outcome=\"refused\"}";
    assert_eq!(watched.metric(refused), Some(1.0));
    assert_eq!(watched.metric("patroniglue_client_connections"), Some(2.0));
    // its own limit closes the longest idle
    let idle: Vec<_> = (0..70).map(|_| connect(watched.admin)).collect();
    thread::sleep(Duration::from_millis(1_100)); // a silent client counts as idle after 1 s
    assert_eq!(status_of(&watched.ask("GET /health")), 200);
    drop((waiting, idle));
}

#[test]
fn a_reload_opens_moves_and_closes_the_admin_port() {
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let glue = Glue::start_with(&text, &[], None);
    let reload = |ports: &str| {
        let before = glue.lines_with("reloaded ").len();
        std::fs::write(&glue.config, format!("{text}{ports}")).expect("written");
        glue.signal("HUP");
        wait_for("the reload", || glue.lines_with("reloaded ").get(before).cloned());
        let lines = glue.lines_with("admin listening on ");
        let line = lines.last().map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned());
        line.and_then(|text| text.parse::<SocketAddr>().ok())
    };
    assert_eq!(reload(""), None);
    let first = reload("admin: {port: 0}\n").expect("an address");
    connect(first);
    let second = reload("admin: {host: 127.0.0.2, port: 0}\n").expect("an address");
    connect(second);
    assert!(TcpStream::connect(first).is_err(), "it has moved");
    reload("");
    assert!(TcpStream::connect(second).is_err(), "it is off");
    assert_eq!(glue.get("/primary").0, 200);
}

#[test]
fn an_agent_learns_what_a_check_would_get() {
    let patroni = StandIn::start(at_once(primary()));
    let watched = Watched::start(&patroni, &[("cache", "ttl: 0"), ("backend", "timeout: 1")]);
    assert_eq!(watched.agent_line(), "up ready 100%\n");
    watched.glue.signal("USR1");
    wait_for("the drain", || (watched.agent_line() == "up drain 100%\n").then_some(()));
    watched.glue.signal("USR2");
    wait_for("its end", || (watched.agent_line() == "up ready 100%\n").then_some(()));
    patroni.set(at_once(json(503, "{\"state\": \"running\", \"role\": \"replica\"}")));
    assert_eq!(watched.agent_line(), "down ready #503 on /primary\n");
    patroni.set(Mood::Silent);
    assert_eq!(watched.agent_line(), "down ready #503 on /primary\n");
    let mut silent = connect(watched.agent);
    let mut line = String::new();
    silent.read_to_string(&mut line).expect("its end, without a word sent");
    assert_eq!(line, "down ready #503 on /primary\n");
}

#[test]
fn a_handshake_counts_also_if_the_request_comes_with_its_end() {
    let patroni = StandIn::start(at_once(primary()));
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let lines = ca.issue().lines(&folder, "server");
    let watched = Watched::start(&patroni, &section("frontend", &lines));
    for count in 1..=5 {
        let config = Arc::new(client(&ca.pem, ONLY_13, None));
        let mut stream = tls_support::connect(&config, watched.glue.address);
        // sent as soon as TLS allows it: with the last message of the handshake
        let request = b"GET /primary HTTP/1.0\r\n\r\n";
        stream.conn.writer().write_all(request).expect("a session takes it");
        let text = read_answer(&mut stream).expect("an answer");
        assert_eq!(status_of(&text), 200, "{text}");
        assert_eq!(watched.handshakes("client"), [f64::from(count), 0.0, 0.0]);
    }
}

#[test]
fn a_handshake_that_patroni_refuses_afterwards_counts_once() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    for (versions, expected) in [(ONLY_13, [1.0, 0.0, 0.0]), (ONLY_12, [0.0, 0.0, 1.0])] {
        let patroni = TlsPatroni::start(server(&ca.issue(), versions, Some(&ca.pem)));
        let cafile = folder.write("patroni-ca.pem", &ca.pem);
        let lines = ["scheme: https".to_owned(), format!("cafile: {cafile}")];
        let watched = Watched::start_at(patroni.address, &section("backend", &lines));
        let text = watched.glue.get("/primary").1;
        assert!(text.contains("set backend.certfile"), "{text}");
        let failures = "patroniglue_fetch_failures_total{reason=\"client_certificate\"}";
        let failed = watched.metric(failures).expect("at least that fetch");
        assert_eq!(watched.handshakes("patroni"), expected.map(|one| one * failed));
    }
}

#[test]
fn a_failed_reload_moves_every_port_back() {
    let patroni = StandIn::start(at_once(primary()));
    let front = free_port();
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let text = text.replacen("port: 0", &format!("port: {front}"), 1);
    let glue = Glue::start_with(&format!("{text}{PORTS}"), &[], None);
    // the checks move away, admin takes their place, and agent's new one is taken
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let text = text.replacen("127.0.0.1", "127.0.0.2", 1);
    let text = format!("{text}admin: {{port: {front}}}\nagent: {{port: {port}}}\n");
    std::fs::write(&glue.config, text).expect("written");
    glue.signal("HUP");
    let refusal = "not reloaded: cannot listen on agent";
    wait_for("the reload", || (!glue.lines_with(refusal).is_empty()).then_some(()));
    assert_eq!(glue.get("/primary").0, 200, "{front} serves checks as before");
}

#[test]
fn another_patroni_begins_without_the_answers_of_the_first() {
    let first = StandIn::start(at_once(primary()));
    let watched = Watched::start(&first, &[]);
    assert_eq!(watched.glue.get("/primary").0, 200);
    assert_eq!(watched.status()["patroni"]["state"], "answers");
    let second = StandIn::start(Mood::Silent);
    let text = std::fs::read_to_string(&watched.glue.config).expect("the configuration");
    let port = |patroni: &StandIn| format!("port: {}\n", patroni.address.port());
    let text = text.replace(&port(&first), &port(&second));
    std::fs::write(&watched.glue.config, text).expect("written");
    watched.glue.signal("HUP");
    wait_for("the reload", || (!watched.glue.lines_with("reloaded ").is_empty()).then_some(()));
    let patroni = &watched.status()["patroni"];
    assert_eq!(patroni["address"], format!("http://{}", second.address));
    assert_eq!(patroni["last_answer"], Value::Null, "{patroni}");
    assert_ne!(patroni["state"], "answers");
}
