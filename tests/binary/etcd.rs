//! The lease witness of the real binary; and its stand-in for etcd, which answers as a real one.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::common::etcd::{Auth, Etcd, Fault, Remaining, State, to_base64};
use super::common::standin::{Mood, StandIn, at_once, json, unix_ms};
use super::common::{Glue, config, wait_for};

/// One line of `index.tsv`.
struct Recorded<'a> {
    name: &'a str,
    path: &'a str,
    body: &'a str,
}

#[test]
fn the_stand_in_answers_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/etcd");
    let index = fs::read_to_string(folder.join("index.tsv")).expect("the index");
    let mut compared = 0;
    for line in index.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[name, _, _, path, body] = &fields[..] else { panic!("{line}") };
        let recorded = fs::read_to_string(folder.join(format!("{name}.http"))).expect("a file");
        let Some(etcd) = in_state_of(name, &recorded) else { continue };
        let token = token_of(&etcd, name);
        let answer = ask(etcd.address, &Recorded { name, path, body }, token.as_deref());
        assert_eq!(comparable(&answer), comparable(&recorded), "{name}");
        compared += 1;
    }
    assert_eq!(compared, index.lines().count() - 3, "without the three that need a real etcd");
}

/// etcd as it was when the answer was recorded; `None`: what the stand-in does not do.
fn in_state_of(name: &str, recorded: &str) -> Option<Etcd> {
    if ["malformed.txn", "no-quorum.timetolive", "plain-http-to-tls"].contains(&name) {
        return None;
    }
    let etcd = Etcd::start();
    etcd.change(|state| {
        state.members[0].1 = MEMBER.to_owned();
        state.config = Some(CONFIG.to_owned());
        if name.starts_with("auth-on.") {
            state.auth = users();
        }
        if name.starts_with("lease-over.") {
            state.remaining = Remaining::Until(Instant::now());
        }
        match name {
            "no-quorum.txn" => state.fault = Fault::Status(503),
            "other-leader.txn" => state.leader = Some("pg2".to_owned()),
            "auth-on.txn-no-permission" => {
                let Auth::On { may_read, .. } = &mut state.auth else { panic!("it is on") };
                *may_read = false;
            }
            "large-config.txn" => state.config = Some(recorded_config(state, recorded)),
            _ => {}
        }
    });
    Some(etcd)
}

/// A long configuration of the recorded one's size: what it says does not matter.
fn recorded_config(state: &State, recorded: &str) -> String {
    let key = to_base64(format!("{}config", state.prefix).as_bytes());
    let value = recorded.split(&key).nth(1).and_then(|rest| rest.split("\"value\":\"").nth(1));
    let length = value.and_then(|value| value.find('"')).expect("a value") / 4 * 3;
    let config = format!("{CONFIG}{}", " ".repeat(length));
    config[..length].to_owned()
}

fn users() -> Auth {
    let (username, password) = ("glue".to_owned(), "secret".to_owned());
    Auth::On { username, password, may_read: true, tokens: Vec::new() }
}

/// The token that the recorded request had.
fn token_of(etcd: &Etcd, name: &str) -> Option<String> {
    match name {
        "auth-off.txn-with-token" => return Some("stale.1".to_owned()),
        name if name.ends_with("unknown-token") => return Some("stale.1".to_owned()),
        name if !name.starts_with("auth-on.txn") || name.ends_with("without-token") => return None,
        _ => {}
    }
    let body = r#"{"name":"glue","password":"secret"}"#;
    let request = Recorded { name, path: "/v3/auth/authenticate", body };
    let answer = ask(etcd.address, &request, None);
    let token = answer.split("\"token\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let bearer = if name.ends_with("bearer") { "Bearer " } else { "" };
    token.map(|token| format!("{bearer}{token}"))
}

fn ask(address: SocketAddr, request: &Recorded<'_>, token: Option<&str>) -> String {
    let Recorded { path, body, .. } = request;
    let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {length}\r\n{token}");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{}: {error}", request.name));
    answer
}

/// An answer without numbers that differ between two clusters, between two tokens, or with time.
fn comparable(answer: &str) -> String {
    let mut text: String = answer
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("Date: ") && !line.starts_with("Content-Length: "))
        .collect();
    let has_length = answer.contains("Content-Length: ");
    let names = ["cluster_id", "member_id", "revision", "raft_term", "create_revision"];
    for name in names.into_iter().chain(["mod_revision", "version", "token", "TTL"]) {
        let begin = format!("\"{name}\":\"");
        let mut pieces = text.split(&begin).map(str::to_owned).collect::<Vec<_>>();
        for piece in pieces.iter_mut().skip(1).filter(|piece| !piece.starts_with('-')) {
            let end = piece.find('"').expect("the end of a value");
            piece.replace_range(..end, "N");
        }
        text = pieces.join(&begin);
    }
    // a long value counts by its length alone
    let long = text.split('"').find(|piece| piece.len() > 1_000).map(str::to_owned);
    if let Some(long) = long {
        text = text.replace(&long, &format!("{} bytes", long.len() / 4));
    }
    format!("{has_length} {text}")
}

const MEMBER: &str = "{\"conn_url\":\"postgres://127.0.0.1:5432/postgres\",\
    \"api_url\":\"http://127.0.0.1:8008/patroni\",\"state\":\"running\",\"role\":\"primary\",\
    \"version\":\"4.1.5\",\"xlog_location\":67108960,\"timeline\":1}";
const CONFIG: &str = "{\"ttl\":30,\"loop_wait\":10,\"retry_timeout\":10,\
    \"maximum_lag_on_failover\":1048576,\"postgresql\":{\"use_pg_rewind\":true}}";

#[test]
fn the_stand_in_misbehaves_on_request() {
    let etcd = Etcd::start();
    let body = r#"{"ID":"7587895443109810437"}"#;
    let request = Recorded { name: "a fault", path: "/v3/lease/timetolive", body };
    assert!(ask(etcd.address, &request, None).contains("\"TTL\":\"29\",\"grantedTTL\":\"30\""));
    for _ in 0..2 {
        etcd.set_fault(Fault::Refused);
        let refused = TcpStream::connect(etcd.address).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
        etcd.set_fault(Fault::Status(401));
        assert!(ask(etcd.address, &request, None).starts_with("HTTP/1.0 401 "));
    }
    etcd.set_fault(Fault::Cut);
    assert!(!ask(etcd.address, &request, None).ends_with('}'));

    etcd.set_fault(Fault::Silent);
    let mut silent = TcpStream::connect(etcd.address).expect("it listens");
    write!(
        silent,
        "POST {} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        request.path,
        body.len()
    )
    .expect("it reads");
    silent.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    assert!(silent.read(&mut [0]).is_err(), "it says nothing");
    silent.set_read_timeout(None).expect("no timeout");
    etcd.set_fault(Fault::None);
    let mut answer = String::new();
    silent.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    assert_eq!((etcd.count("/timetolive"), etcd.count("/txn")), (5, 0));

    // a lease that counts down and ends
    etcd.renew();
    assert!(ask(etcd.address, &request, None).contains("\"TTL\":\"2"));
    etcd.change(|state| state.remaining = Remaining::Until(Instant::now()));
    assert!(ask(etcd.address, &request, None).contains("\"TTL\":\"-1\"}"));
}

/// The daemon in front of a stand-in for Patroni, with etcd's address as the second of two.
fn start_daemon(patroni: &StandIn, etcd: &Etcd, more: &str) -> Glue {
    let text = config("127.0.0.1", patroni.address.port(), &[("cache", "ttl: 0.1")]);
    let hosts = format!("[\"127.0.0.1:1\", \"localhost:{}\"]", etcd.address.port());
    Glue::start_with(&format!("{text}dcs:\n  type: etcd3\n  hosts: {hosts}\n{more}"), &[], None)
}

/// The answer of the leader whose keys the stand-in for etcd has.
fn leader() -> Vec<u8> {
    let seen = unix_ms() / 1000;
    let status = "\"state\": \"running\", \"role\": \"primary\", \"timeline\": 2";
    let node = "\"database_system_identifier\": \"7587895443109810434\", \
                \"patroni\": {\"version\": \"4.1.5\", \"scope\": \"main\", \"name\": \"pg1\"}";
    json(200, &format!("{{{status}, \"dcs_last_seen\": {seen}, {node}}}"))
}

#[test]
fn while_patroni_is_silent_the_lease_in_etcd_counts() {
    let (etcd, patroni) = (Etcd::start(), StandIn::start(at_once(leader())));
    etcd.change(|state| state.auth = users());
    let mut glue = start_daemon(&patroni, &etcd, "  username: glue\n  password: secret\n");
    assert_eq!(glue.get("/primary").0, 200);
    patroni.set(Mood::Silent);
    let rests = "stale answers rest on the lease in the dcs";
    wait_for(rests, || {
        assert_eq!(glue.get("/primary").0, 200);
        glue.lines_with(rests).pop()
    });
    assert_eq!(etcd.count("/authenticate"), 1, "the token is kept");
    assert!(etcd.requests().iter().all(|request| request.path.starts_with("/v3/")));
    etcd.change(|state| state.leader = Some("pg2".to_owned()));
    wait_for("503", || (glue.get("/primary").0 == 503).then_some(()));
    assert!(glue.wait_for_line("no longer rest on the dcs").contains("WARN"));
}

#[test]
fn a_reload_removes_the_dcs_and_adds_it_again() {
    let (etcd, patroni) = (Etcd::start(), StandIn::start(at_once(leader())));
    let mut glue = start_daemon(&patroni, &etcd, "");
    let with = fs::read_to_string(&glue.config).expect("its configuration");
    let without = with.split("dcs:").next().expect("the other sections").to_owned();
    assert_eq!(glue.get("/primary").0, 200);
    glue.wait_for_line("the lease is readable"); // no request is on its way
    let reload = |glue: &mut Glue, text: &str| {
        let before = glue.lines_with("reloaded ").len();
        fs::write(&glue.config, text).expect("a file");
        glue.signal("HUP");
        wait_for("the reload", || glue.lines_with("reloaded ").into_iter().nth(before));
    };
    reload(&mut glue, &without);
    let count = etcd.requests().len();
    patroni.set(Mood::Silent);
    wait_for("503", || (glue.get("/primary").0 == 503).then_some(()));
    assert_eq!(etcd.requests().len(), count, "it is not asked");

    patroni.set(at_once(leader()));
    reload(&mut glue, &with);
    wait_for("200", || (glue.get("/primary").0 == 200).then_some(()));
    patroni.set(Mood::Silent);
    wait_for("a read", || {
        glue.get("/primary");
        (etcd.count("/timetolive") > 0 && etcd.requests().len() > count).then_some(())
    });
}

#[test]
fn what_the_dcs_allows_is_shown_beside_a_longer_grace() {
    let (etcd, patroni) = (Etcd::start(), StandIn::start(at_once(leader())));
    // allows a stale answer for 8 s, Patroni's word for 10 s
    etcd.change(|state| state.remaining = Remaining::Seconds(18));
    let port = etcd.address.port();
    let dcs = format!("dcs: {{type: etcd3, hosts: \"localhost:{port}\"}}\nadmin: {{port: 0}}\n");
    let more = [("cache", "ttl: 0.1"), ("cache", "grace: 60")];
    let text = config("127.0.0.1", patroni.address.port(), &more);
    let mut glue = Glue::start_with(&format!("{text}{dcs}"), &[], None);
    let line = glue.wait_for_line("admin listening on ");
    let admin = line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address");
    let ask = |path| ask_for(admin, path);
    wait_for("a lease by Patroni's word", || {
        patroni.set(at_once(leader())); // its HA loop goes on
        assert_eq!(glue.get("/primary").0, 200);
        ask("/status").contains("\"source\":\"patroni\"").then_some(())
    });
    let metrics = ask("/metrics");
    let remaining = metrics.split("\npatroniglue_lease_remaining_seconds ").nth(1);
    let seconds: f64 = remaining.and_then(|rest| rest.lines().next()?.parse().ok()).expect("it");
    assert!((1.0..=8.0).contains(&seconds), "{seconds}");
}

/// A response of the admin port.
fn ask_for(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).expect("it listens");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("its end");
    text
}
