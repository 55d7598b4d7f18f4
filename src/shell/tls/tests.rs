//! The pump between a scripted socket and a real rustls peer: every split, every fault, every step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion, version,
};

use super::{Session, Tls};
use crate::config::Config;
use crate::engine::Port;
use crate::failure::{Failure, TlsFailure};
use crate::shell::stream::{Broken, Buffers, ReadOutcome, Stream, WriteOutcome};
use crate::time::Time;

/// What the socket does, and what is in it.
struct Wire {
    to_us: VecDeque<u8>,
    from_us: Vec<u8>,
    read_max: usize,
    write_max: usize,
    /// From this call on, counted from 1.
    fault: Option<(usize, Fault)>,
    /// Of the bytes that come, this one has a bit flipped.
    flipped: Option<usize>,
    came_bytes: usize,
    sent_bytes: usize,
    /// The peer has closed its half.
    has_ended: bool,
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// WouldBlock at one call.
    Blocks,
    /// WouldBlock at about every other call.
    BlocksOften,
    /// The end of what comes; what is sent goes nowhere.
    Eof,
    Rst,
}

struct Pipe(Rc<RefCell<Wire>>);

impl Wire {
    fn new() -> Wire {
        Wire {
            to_us: VecDeque::new(),
            from_us: Vec::new(),
            read_max: usize::MAX,
            write_max: usize::MAX,
            fault: None,
            flipped: None,
            came_bytes: 0,
            sent_bytes: 0,
            has_ended: false,
            calls: 0,
        }
    }

    /// What goes wrong at this call.
    fn fault(&mut self) -> Option<Fault> {
        self.calls += 1;
        let (from, fault) = self.fault?;
        let is_now = match fault {
            Fault::Blocks => self.calls == from,
            Fault::BlocksOften => (self.calls * self.calls / 3) % 2 == 1,
            Fault::Eof | Fault::Rst => self.calls >= from,
        };
        is_now.then_some(fault)
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        match wire.fault() {
            Some(Fault::Blocks | Fault::BlocksOften) => return Err(ErrorKind::WouldBlock.into()),
            Some(Fault::Eof) => return Ok(0),
            Some(Fault::Rst) => return Err(ErrorKind::ConnectionReset.into()),
            None if wire.to_us.is_empty() && wire.has_ended => return Ok(0),
            None if wire.to_us.is_empty() => return Err(ErrorKind::WouldBlock.into()),
            None => {}
        }
        let count = buffer.len().min(wire.read_max).min(wire.to_us.len());
        for (at, byte) in wire.to_us.drain(..count).enumerate() {
            buffer[at] = byte;
        }
        let flipped = wire.flipped.and_then(|at| at.checked_sub(wire.came_bytes));
        if let Some(byte) = flipped.and_then(|at| buffer[..count].get_mut(at)) {
            *byte ^= 1;
        }
        wire.came_bytes += count;
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        match wire.fault() {
            Some(Fault::Blocks | Fault::BlocksOften) => return Err(ErrorKind::WouldBlock.into()),
            Some(Fault::Eof) => return Ok(bytes.len()),
            Some(Fault::Rst) => return Err(ErrorKind::BrokenPipe.into()),
            None => {}
        }
        let count = bytes.len().min(wire.write_max);
        wire.from_us.extend_from_slice(&bytes[..count]);
        wire.sent_bytes += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One request and its answer, between a stream, served as the loop serves it, and the peer.
struct Talk {
    stream: Stream<Pipe>,
    wire: Rc<RefCell<Wire>>,
    peer: Connection,
    buffers: Buffers,
    /// What the engine has to send still.
    output: Vec<u8>,
    received: Vec<u8>,
    end: Option<End>,
    /// What the peer sends once it has heard us; then it closes.
    peer_says: Option<Vec<u8>>,
    peer_is_done: bool,
    peer_closes: bool,
    /// So many bytes it hears in all, before it closes.
    peer_wants: usize,
    peer_received: Vec<u8>,
    peer_saw_close: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Eof,
    Broken(Broken),
}

impl Talk {
    fn new(session: Session, peer: Connection) -> Talk {
        let wire = Rc::new(RefCell::new(Wire::new()));
        Talk {
            stream: Stream::accepted(Pipe(Rc::clone(&wire)), Some(session), Port::Checks),
            wire,
            peer,
            buffers: Buffers::new(),
            output: Vec::new(),
            received: Vec::new(),
            end: None,
            peer_says: None,
            peer_is_done: false,
            peer_closes: true,
            peer_wants: 0,
            peer_received: Vec::new(),
            peer_saw_close: false,
        }
    }

    /// Until nothing changes any more. `heard`: bytes that the peer waits for before it speaks,
    /// `asked`: bytes that come before our `answer`.
    fn run(&mut self, heard: usize, asked: usize, answer: &[u8]) {
        let mut answer = Some(answer);
        let mut quiet_turns = 0;
        for _ in 0..TURNS_MAX {
            let before = self.state();
            self.serve();
            if self.received.len() >= asked && self.end.is_none() {
                self.output.extend_from_slice(answer.take().unwrap_or_default());
            }
            self.serve_peer(heard);
            quiet_turns = if self.state() == before { quiet_turns + 1 } else { 0 };
            if quiet_turns == QUIET_TURNS {
                return;
            }
        }
        panic!("it never came to rest");
    }

    fn state(&self) -> (usize, usize, usize, usize, bool) {
        let wire = self.wire.borrow();
        let (received, heard) = (self.received.len(), self.peer_received.len());
        (received, heard, wire.came_bytes, wire.sent_bytes, self.end.is_some())
    }

    /// As the loop does: reads and writes while there is progress.
    fn serve(&mut self) {
        self.stream.mark_ready();
        for _ in 0..CALLS_PER_TURN {
            if self.end.is_some() || !(self.read() | self.write()) {
                return;
            }
        }
        panic!("a busy loop");
    }

    fn read(&mut self) -> bool {
        if !self.stream.is_readable() {
            return false;
        }
        let end = match self.stream.read(&mut self.buffers) {
            ReadOutcome::Data(bytes) => {
                assert!(!bytes.is_empty());
                self.received.extend_from_slice(bytes);
                return true;
            }
            ReadOutcome::Progress => return true,
            ReadOutcome::Blocked => return false,
            ReadOutcome::Eof => End::Eof,
            ReadOutcome::Broken(broken) => End::Broken(broken),
        };
        self.stop(end);
        false
    }

    fn write(&mut self) -> bool {
        let wanted = !self.output.is_empty() || self.stream.has_outgoing();
        if !wanted || !self.stream.is_writable() || self.end.is_some() {
            return false;
        }
        match self.stream.write(&self.output) {
            WriteOutcome::Sent(count) => {
                self.output.drain(..count);
                assert!(count == 0 || !self.stream.is_handshaking());
                true
            }
            WriteOutcome::Blocked => false,
            WriteOutcome::Broken(broken) => {
                self.stop(End::Broken(broken));
                false
            }
        }
    }

    fn stop(&mut self, end: End) {
        self.end = Some(end);
        self.output.clear();
        self.stream.say_goodbye();
    }

    fn serve_peer(&mut self, heard: usize) {
        let mut wire = self.wire.borrow_mut();
        let sent = std::mem::take(&mut wire.from_us);
        let mut rest = &sent[..];
        while !rest.is_empty() && self.peer.read_tls(&mut rest).is_ok_and(|count| count > 0) {
            match self.peer.process_new_packets() {
                Ok(state) => self.peer_saw_close |= state.peer_has_closed(),
                Err(_) => {
                    wire.has_ended = true;
                    self.peer_says = None;
                }
            }
            // at the end there is nothing, a clean end, or an error: none of them is more
            let _ = self.peer.reader().read_to_end(&mut self.peer_received);
        }
        if let Some(bytes) = self.peer_says.take_if(|_| self.peer_received.len() >= heard) {
            self.peer.set_buffer_limit(None);
            self.peer.writer().write_all(&bytes).expect("no limit");
            self.peer_is_done = true;
        }
        if self.peer_is_done
            && self.peer_closes
            && !self.peer.is_handshaking()
            && self.peer_received.len() >= self.peer_wants
        {
            self.peer.send_close_notify();
            self.peer_is_done = false;
        }
        let mut records = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut records).expect("memory");
        }
        wire.to_us.extend(records);
    }
}

// ---- the two roles, as the configuration makes ours

struct Setting {
    ours: Tls,
    peer_client: Arc<ClientConfig>,
    peer_server: Arc<ServerConfig>,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Server,
    Client,
}

fn file(name: &str) -> String {
    format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn identity() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(file("ecdsa.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(file("ecdsa.pkcs8.key")).expect("a key");
    (vec![certificate], key)
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(identity().0.remove(0)).expect("a root");
    roots
}

impl Setting {
    /// The peer speaks this version only; with `certificates`, both sides must show theirs.
    fn new(version: &'static SupportedProtocolVersion, certificates: bool) -> Setting {
        let (pem, key) = (file("ecdsa.pem"), file("ecdsa.pkcs8.key"));
        let ours = format!("  certfile: {pem}\n  keyfile: {key}\n");
        let cafile = format!("  cafile: {pem}\n");
        let wanted = if certificates { (&*cafile, &*ours) } else { ("", "") };
        let backend = format!("  scheme: https\n{cafile}{}", wanted.1);
        let text = format!("frontend:\n{ours}{}backend:\n{backend}", wanted.0);
        let config = Config::from_yaml(&text).expect("a configuration");

        let provider = || Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[version]).expect("a version");
        let builder = builder.with_root_certificates(roots());
        let (chain, key) = identity();
        let peer_client = builder.with_client_auth_cert(chain, key).expect("an identity");

        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[version]).expect("a version");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots().into(), provider());
        let builder = match certificates {
            true => builder.with_client_cert_verifier(verifier.build().expect("a verifier")),
            false => builder.with_no_client_auth(),
        };
        let (chain, key) = identity();
        let mut peer_server = builder.with_single_cert(chain, key).expect("an identity");
        peer_server.ticketer = ring::Ticketer::new().expect("random numbers");
        Setting {
            ours: Tls::read(&config).expect("certificates"),
            peer_client: Arc::new(peer_client),
            peer_server: Arc::new(peer_server),
        }
    }

    fn talk(&self, role: Role) -> Talk {
        let name = ServerName::try_from("localhost").expect("a name");
        match role {
            Role::Server => {
                let session = Session::server(self.ours.server.as_ref().expect("TLS"));
                let peer = ClientConnection::new(Arc::clone(&self.peer_client), name);
                Talk::new(session.expect("a session"), peer.expect("a session").into())
            }
            Role::Client => {
                let session = Session::client(self.ours.client.as_ref().expect("TLS"));
                let peer = ServerConnection::new(Arc::clone(&self.peer_server));
                Talk::new(session.expect("a session"), peer.expect("a session").into())
            }
        }
    }
}

/// `REQUEST` one way, `answer` the other, and a clean end, whoever is the server.
fn exchange(talk: &mut Talk, role: Role, answer: &[u8]) {
    match role {
        Role::Server => {
            (talk.peer_says, talk.peer_wants) = (Some(REQUEST.to_vec()), answer.len());
            talk.run(0, REQUEST.len(), answer);
        }
        Role::Client => {
            (talk.peer_says, talk.peer_wants) = (Some(answer.to_vec()), REQUEST.len());
            talk.run(REQUEST.len(), 0, REQUEST);
        }
    }
}

fn heard_by_us(role: Role, answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match role {
        Role::Server => (REQUEST.to_vec(), answer.to_vec()),
        Role::Client => (answer.to_vec(), REQUEST.to_vec()),
    }
}

/// All was said and heard, the end is clean, and nothing is left over.
fn assert_whole(talk: &Talk, role: Role, answer: &[u8], which: &str) {
    let (ours, peers) = heard_by_us(role, answer);
    assert_eq!(talk.end, Some(End::Eof), "{which}");
    assert!(talk.received == ours, "{which}: {} bytes came", talk.received.len());
    assert!(talk.peer_received == peers, "{which}: {} bytes went", talk.peer_received.len());
    assert!(talk.peer_saw_close, "{which}: no close_notify");
    assert!(!talk.stream.has_outgoing() && !talk.stream.is_handshaking(), "{which}");
    assert_eq!(talk.stream.buffered_bytes(), 0, "{which}");
}

fn answer_of(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];
const ROLES: [Role; 2] = [Role::Server, Role::Client];
const REQUEST: &[u8] = b"GET /primary HTTP/1.0\r\n\r\n";
const TURNS_MAX: usize = 40_000;
const CALLS_PER_TURN: usize = 10_000;
/// After as many turns in which nothing happens, nothing will.
const QUIET_TURNS: u32 = 12;

#[test]
fn every_split_has_the_same_outcome() {
    for (version, certificates) in [(VERSIONS[0], false), (VERSIONS[1], false), (VERSIONS[1], true)]
    {
        let setting = Setting::new(version, certificates);
        for role in ROLES {
            let splits = [(1, usize::MAX), (usize::MAX, 1), (1, 1), (5, 5), (7, 300), (4096, 7)];
            for (read_max, write_max) in splits {
                for bytes in [1, 450, 3_000] {
                    let mut talk = setting.talk(role);
                    let mut wire = talk.wire.borrow_mut();
                    (wire.read_max, wire.write_max) = (read_max, write_max);
                    drop(wire);
                    let answer = answer_of(bytes);
                    exchange(&mut talk, role, &answer);
                    // the last words are one write, and what it does not take is lost
                    talk.peer_saw_close |= write_max < 40;
                    let which = format!("{version:?} {role:?} {read_max} {write_max} {bytes}");
                    assert_whole(&talk, role, &answer, &which);
                }
            }
        }
    }
}

#[test]
fn records_of_every_size_and_many_at_once() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        for (role, bytes) in ROLES.into_iter().flat_map(|role| SIZES.map(|bytes| (role, bytes))) {
            let mut talk = setting.talk(role);
            let answer = answer_of(bytes);
            exchange(&mut talk, role, &answer);
            assert_whole(&talk, role, &answer, &format!("{version:?} {role:?} {bytes}"));
        }
        // of one byte each, so that a read brings hundreds of them
        let mut small = Setting::new(version, false);
        Arc::make_mut(&mut small.peer_server).max_fragment_size = Some(32);
        Arc::make_mut(&mut small.peer_client).max_fragment_size = Some(32);
        for role in ROLES {
            let mut talk = small.talk(role);
            let answer = answer_of(2_000);
            exchange(&mut talk, role, &answer);
            assert_whole(&talk, role, &answer, &format!("{version:?} {role:?} small"));
        }
    }
}

const SIZES: [usize; 7] = [1, 16_383, 16_384, 16_385, 32_768, 65_537, 300_000];

#[test]
fn a_call_that_blocks_changes_nothing() {
    for version in VERSIONS {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let answer = answer_of(450);
            for step in 0..=clean_calls(&setting, role) {
                let mut talk = setting.talk(role);
                let fault = if step == 0 { Fault::BlocksOften } else { Fault::Blocks };
                let mut wire = talk.wire.borrow_mut();
                (wire.fault, wire.read_max, wire.write_max) = (Some((step, fault)), 400, 200);
                drop(wire);
                exchange(&mut talk, role, &answer);
                let which = format!("{version:?} {role:?} {step}");
                // the last words are said as far as that goes without waiting
                if fault == Fault::Blocks && !talk.peer_saw_close {
                    assert_eq!((&talk.end, step), (&Some(End::Eof), talk.wire.borrow().calls));
                    continue;
                }
                if fault == Fault::Blocks {
                    assert_whole(&talk, role, &answer, &which);
                }
                assert_eq!((&talk.end, talk.stream.buffered_bytes()), (&Some(End::Eof), 0));
                assert_eq!(talk.received, heard_by_us(role, &answer).0, "{which}");
            }
        }
    }
}

/// Calls of the socket that one exchange takes.
fn clean_calls(setting: &Setting, role: Role) -> usize {
    let mut talk = setting.talk(role);
    let mut wire = talk.wire.borrow_mut();
    (wire.read_max, wire.write_max) = (400, 200);
    drop(wire);
    exchange(&mut talk, role, &answer_of(450));
    talk.wire.borrow().calls
}

#[test]
fn an_end_at_every_step_is_an_end() {
    for (version, fault) in VERSIONS.into_iter().flat_map(|v| [(v, Fault::Eof), (v, Fault::Rst)]) {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let answer = answer_of(450);
            let (ours, _) = heard_by_us(role, &answer);
            for step in 1..=clean_calls(&setting, role) {
                let mut talk = setting.talk(role);
                let mut wire = talk.wire.borrow_mut();
                (wire.fault, wire.read_max, wire.write_max) = (Some((step, fault)), 400, 200);
                drop(wire);
                exchange(&mut talk, role, &answer);
                let which = format!("{version:?} {role:?} {fault:?} {step}");
                let broken = match fault {
                    Fault::Eof if talk.stream.is_handshaking() => Broken::Closed,
                    Fault::Eof => Broken::Cut,
                    _ => Broken::Io,
                };
                match &talk.end {
                    // it came before the fault did
                    Some(End::Eof) => assert_eq!(talk.received, ours, "{which}"),
                    other => assert_eq!(other, &Some(End::Broken(broken)), "{which}"),
                }
                assert!(ours.starts_with(&talk.received), "{which}");
            }
        }
    }
}

#[test]
fn an_end_without_close_notify_is_a_cut() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        for role in ROLES {
            let mut talk = setting.talk(role);
            talk.peer_closes = false;
            exchange(&mut talk, role, &answer_of(450));
            assert_eq!(talk.end, None);
            assert_eq!(talk.received, heard_by_us(role, &answer_of(450)).0);
            // connected, and idle
            assert!(!talk.stream.has_outgoing() && !talk.stream.is_handshaking());
            assert_eq!(talk.stream.buffered_bytes(), 0);
            talk.wire.borrow_mut().has_ended = true;
            talk.run(0, usize::MAX, b"");
            assert_eq!(talk.end, Some(End::Broken(Broken::Cut)));
        }
    }
}

#[test]
fn who_has_closed_his_half_is_answered_still() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        let mut talk = setting.talk(Role::Server);
        // close_notify in the same flight as the request
        talk.peer_says = Some(REQUEST.to_vec());
        talk.run(0, usize::MAX, b"");
        assert_eq!((&talk.received[..], &talk.end), (REQUEST, &Some(End::Eof)), "{version:?}");
    }
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        let mut session = Session::server(setting.ours.server.as_ref().expect("TLS"));
        let session = session.as_mut().expect("a session");
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::clone(&setting.peer_client), name);
        let mut client = client.expect("a session");
        let mut plain = Vec::new();
        for _ in 0..4 {
            let mut records = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut records).expect("memory");
            }
            session.receive(&mut records, &mut plain).expect("a handshake");
            feed(&mut client, &session.take_outgoing());
        }
        client.send_close_notify();
        let mut records = Vec::new();
        client.write_tls(&mut records).expect("memory");
        session.receive(&mut records, &mut plain).expect("close_notify");
        assert!(session.peer_closed() && !session.is_handshaking());
        session.encrypt(b"late").expect("a half that is open");
        session.close_notify();
        feed(&mut client, &session.take_outgoing());
        let mut said = Vec::new();
        client.reader().read_to_end(&mut said).expect("a clean end");
        assert_eq!(said, b"late", "{version:?}");
    }
}

fn feed(client: &mut ClientConnection, mut records: &[u8]) {
    while !records.is_empty() {
        client.read_tls(&mut records).expect("memory");
        client.process_new_packets().expect("what a server says");
    }
}

/// Exchanges, and tells how the peer has it that hands were shaken.
fn handshake_kind(setting: &Setting, role: Role) -> Option<HandshakeKind> {
    let mut talk = setting.talk(role);
    exchange(&mut talk, role, &answer_of(450));
    assert_whole(&talk, role, &answer_of(450), "resumed or not");
    match &talk.peer {
        Connection::Client(client) => client.handshake_kind(),
        Connection::Server(server) => server.handshake_kind(),
    }
}

#[test]
fn a_second_connection_resumes_the_first() {
    let (full, resumed) = (Some(HandshakeKind::Full), Some(HandshakeKind::Resumed));
    for version in VERSIONS {
        for (role, certificates) in [(ROLES[0], false), (ROLES[1], false), (ROLES[1], true)] {
            let setting = Setting::new(version, certificates);
            let kinds = [0; 3].map(|_| handshake_kind(&setting, role));
            assert_eq!(kinds, [full, resumed, resumed], "{version:?} {role:?}");
        }
        // a client's certificate is looked at each time
        let setting = Setting::new(version, true);
        let kinds = [0; 3].map(|_| handshake_kind(&setting, Role::Server));
        assert_eq!(kinds, [full; 3], "{version:?}");
    }
}

#[test]
fn one_ticket_is_sent_and_none_with_client_certificates() {
    for (certificates, count) in [(false, 1), (true, 0)] {
        let setting = Setting::new(&version::TLS13, certificates);
        let mut talk = setting.talk(Role::Server);
        exchange(&mut talk, Role::Server, &answer_of(450));
        let Connection::Client(client) = &talk.peer else { panic!("we are the server") };
        assert_eq!(client.tls13_tickets_received(), count);
    }
}

#[test]
fn sessions_with_patroni_are_forgotten_after_an_hour() {
    let (full, resumed) = (Some(HandshakeKind::Full), Some(HandshakeKind::Resumed));
    let hour_ms = 60 * 60 * 1_000;
    let table = [
        (0, full),
        (1, resumed),
        (hour_ms - 1, resumed),
        (hour_ms, full),
        (hour_ms + 1, resumed),
        (3 * hour_ms, full),
    ];
    for version in VERSIONS {
        let mut setting = Setting::new(version, false);
        for (at_ms, kind) in table {
            let client = setting.ours.client.as_mut().expect("TLS");
            client.forget_old_sessions(Time::from_ms(at_ms));
            assert_eq!(handshake_kind(&setting, Role::Client), kind, "{version:?} {at_ms}");
        }
    }
}

#[test]
fn garbage_is_refused_with_an_alert() {
    let setting = Setting::new(&version::TLS13, false);
    let page = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>no</html>".to_vec();
    let table = [
        (page.clone(), Failure::Tls(TlsFailure::NotTls)),
        (b"GET / HTTP/1.0\r\n\r\n".to_vec(), Failure::Tls(TlsFailure::NotTls)),
        (vec![0x80, 0x2e, 1, 0, 2, 0, 0, 0, 0, 0], Failure::Tls(TlsFailure::NotTls)),
        (vec![0xff; 100], Failure::Tls(TlsFailure::NotTls)),
        // a record that says it is longer than one may be
        (vec![0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0], Failure::Tls(TlsFailure::Other)),
        // a handshake message without a meaning
        (vec![0x16, 3, 1, 0, 5, 0x63, 0, 0, 1, 0], Failure::Tls(TlsFailure::Other)),
    ];
    for (role, (bytes, failure)) in ROLES.into_iter().flat_map(|r| table.clone().map(|t| (r, t))) {
        for read_max in [1, usize::MAX] {
            let mut talk = setting.talk(role);
            talk.wire.borrow_mut().read_max = read_max;
            talk.wire.borrow_mut().to_us.extend(&bytes);
            bytes.iter().for_each(|_| talk.serve());
            let Some(End::Broken(Broken::Tls(error))) = &talk.end else {
                panic!("{role:?} {bytes:?}: {:?}", talk.end);
            };
            assert_eq!(error.failure, failure, "{role:?} {bytes:?}: {error}");
            let wire = talk.wire.borrow();
            let alert = [0x15, 3, 3, 0, 2, 2];
            assert!(wire.from_us.windows(6).any(|bytes| bytes == alert), "{:?}", wire.from_us);
        }
    }
}

#[test]
fn any_bit_that_was_changed_on_the_way_is_noticed() {
    for version in VERSIONS {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let mut talk = setting.talk(role);
            exchange(&mut talk, role, &answer_of(450));
            let came_bytes = talk.wire.borrow().came_bytes;
            let (ours, _) = heard_by_us(role, &answer_of(450));
            for at in (0..came_bytes).step_by(5) {
                let mut talk = setting.talk(role);
                talk.wire.borrow_mut().flipped = Some(at);
                exchange(&mut talk, role, &answer_of(450));
                assert!(ours.starts_with(&talk.received), "{version:?} {role:?} {at}");
            }
        }
    }
}

#[test]
fn who_never_ends_a_message_is_cut_off() {
    // a client of whom no certificate is wanted has less to say
    let table = [(Role::Server, false, 20), (Role::Server, true, 96), (Role::Client, false, 96)];
    for (role, certificates, kib_max) in table {
        let setting = Setting::new(&version::TLS13, certificates);
        let mut talk = setting.talk(role);
        // a hello of 16 MiB, in records of 16 KiB
        let kind = if matches!(role, Role::Server) { 1 } else { 2 };
        let mut hello = vec![kind, 0xff, 0xff, 0xff];
        hello.resize(16_384, 0);
        let mut kept_bytes_most = 0;
        for _ in 0..100 {
            talk.wire.borrow_mut().to_us.extend([0x16, 3, 1, 0x40, 0]);
            talk.wire.borrow_mut().to_us.extend(&hello);
            talk.serve();
            kept_bytes_most = kept_bytes_most.max(talk.stream.buffered_bytes());
        }
        let which = format!("{role:?} {certificates}: {kept_bytes_most}");
        assert!(matches!(talk.end, Some(End::Broken(Broken::Tls(_)))), "{which} {:?}", talk.end);
        assert!(kept_bytes_most <= kib_max * 1024, "{which}");
    }
    // never more than a part of a hello: who goes slowly is cut off by his timer
    let setting = Setting::new(&version::TLS13, false);
    let mut talk = setting.talk(Role::Server);
    let mut unfinished = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    unfinished.resize(16_384, 0);
    talk.wire.borrow_mut().to_us.extend(&unfinished);
    talk.serve();
    assert_eq!(talk.end, None);
    assert!(talk.stream.buffered_bytes() <= 20 * 1024, "{}", talk.stream.buffered_bytes());
}
