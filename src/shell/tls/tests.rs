//! A TLS session between a scripted socket and a real rustls peer: splits and faults at each step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion, version,
};

use super::provider::{cryptography, signing_key, ticketer};
use super::{Session, Tls};
use crate::config::{BackendTls, Config, Dcs, Identity};
use crate::engine::Port;
use crate::failure::{Failure, TlsFailure};
use crate::shell::stream::{Broken, Buffers, ReadOutcome, Stream, WriteOutcome};
use crate::time::Time;

/// A scripted socket: data in both directions, limits and faults.
struct Wire {
    inbound: VecDeque<u8>,
    outbound: Vec<u8>,
    read_max: usize,
    write_max: usize,
    /// The call, counted from 1, at which the fault begins.
    fault: Option<(usize, Fault)>,
    /// The index of the received byte that has a bit flipped.
    flipped: Option<usize>,
    received_bytes: usize,
    sent_bytes: usize,
    /// The peer shut down writing.
    has_ended: bool,
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// WouldBlock at one call.
    Blocks,
    /// WouldBlock at about every second call.
    BlocksOften,
    /// End of input; output is discarded.
    Eof,
    Rst,
}

struct Pipe(Rc<RefCell<Wire>>);

impl Wire {
    fn new() -> Wire {
        Wire {
            inbound: VecDeque::new(),
            outbound: Vec::new(),
            read_max: usize::MAX,
            write_max: usize::MAX,
            fault: None,
            flipped: None,
            received_bytes: 0,
            sent_bytes: 0,
            has_ended: false,
            calls: 0,
        }
    }

    /// The fault of this call.
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
            None if wire.inbound.is_empty() && wire.has_ended => return Ok(0),
            None if wire.inbound.is_empty() => return Err(ErrorKind::WouldBlock.into()),
            None => {}
        }
        let count = buffer.len().min(wire.read_max).min(wire.inbound.len());
        for (at, byte) in wire.inbound.drain(..count).enumerate() {
            buffer[at] = byte;
        }
        let flipped = wire.flipped.and_then(|at| at.checked_sub(wire.received_bytes));
        if let Some(byte) = flipped.and_then(|at| buffer[..count].get_mut(at)) {
            *byte ^= 1;
        }
        wire.received_bytes += count;
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
        wire.outbound.extend_from_slice(&bytes[..count]);
        wire.sent_bytes += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One request and its answer between a stream, served as the loop does it, and the peer.
struct Exchange {
    stream: Stream<Pipe>,
    wire: Rc<RefCell<Wire>>,
    peer: Connection,
    buffers: Buffers,
    /// The engine's bytes still to be sent.
    output: Vec<u8>,
    received: Vec<u8>,
    end: Option<End>,
    /// Sent by the peer once it has received enough; then it closes.
    peer_output: Option<Vec<u8>>,
    peer_is_done: bool,
    peer_closes: bool,
    /// The peer closes once it has received this many bytes.
    peer_wants: usize,
    peer_received: Vec<u8>,
    peer_saw_close: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Eof,
    Broken(Broken),
}

impl Exchange {
    fn new(session: Session, peer: Connection) -> Exchange {
        let wire = Rc::new(RefCell::new(Wire::new()));
        Exchange {
            stream: Stream::accepted(Pipe(Rc::clone(&wire)), Some(session), Port::Checks),
            wire,
            peer,
            buffers: Buffers::new(),
            output: Vec::new(),
            received: Vec::new(),
            end: None,
            peer_output: None,
            peer_is_done: false,
            peer_closes: true,
            peer_wants: 0,
            peer_received: Vec::new(),
            peer_saw_close: false,
        }
    }

    /// Runs until nothing changes. The peer sends after it received `peer_first` bytes, we send
    /// `answer` after we received `our_first` bytes.
    fn run(&mut self, peer_first: usize, our_first: usize, answer: &[u8]) {
        let mut answer = Some(answer);
        let mut quiet_turns = 0;
        for _ in 0..TURNS_MAX {
            let before = self.state();
            self.serve();
            if self.received.len() >= our_first && self.end.is_none() {
                self.output.extend_from_slice(answer.take().unwrap_or_default());
            }
            self.serve_peer(peer_first);
            quiet_turns = if self.state() == before { quiet_turns + 1 } else { 0 };
            if quiet_turns == QUIET_TURNS {
                return;
            }
        }
        panic!("the exchange does not end");
    }

    fn state(&self) -> (usize, usize, usize, usize, bool) {
        let wire = self.wire.borrow();
        let (received, peer_received) = (self.received.len(), self.peer_received.len());
        (received, peer_received, wire.received_bytes, wire.sent_bytes, self.end.is_some())
    }

    /// Reads and writes while there is progress, as the loop does.
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
            ReadOutcome::NoData => return true,
            ReadOutcome::Blocked => return false,
            ReadOutcome::Eof => End::Eof,
            ReadOutcome::Broken(broken) => End::Broken(broken),
        };
        self.stop(end);
        false
    }

    fn write(&mut self) -> bool {
        let has_data = !self.output.is_empty() || self.stream.has_outgoing();
        if !has_data || !self.stream.is_writable() || self.end.is_some() {
            return false;
        }
        match self.stream.write(&self.output) {
            WriteOutcome::Sent(count) => {
                self.output.drain(..count);
                assert!(count == 0 || !self.stream.is_handshaking());
                // bytes that wait in the session are not sent: a client may be closed after them
                assert!(count == 0 || !self.stream.has_outgoing(), "sent too early");
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
        self.stream.send_close_notify();
    }

    fn serve_peer(&mut self, peer_first: usize) {
        let mut wire = self.wire.borrow_mut();
        let sent = std::mem::take(&mut wire.outbound);
        let mut rest = &sent[..];
        while !rest.is_empty() && self.peer.read_tls(&mut rest).is_ok_and(|count| count > 0) {
            match self.peer.process_new_packets() {
                Ok(state) => self.peer_saw_close |= state.peer_has_closed(),
                Err(_) => {
                    wire.has_ended = true;
                    self.peer_output = None;
                }
            }
            // no data, a clean end and an error all leave what was read
            let _ = self.peer.reader().read_to_end(&mut self.peer_received);
        }
        if let Some(bytes) = self.peer_output.take_if(|_| self.peer_received.len() >= peer_first) {
            self.peer.set_buffer_limit(None);
            self.peer.writer().write_all(&bytes).expect("no limit is set");
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
        wire.inbound.extend(records);
    }
}

// ---- both roles, ours built from a configuration

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
    /// The peer supports only this version; with `certificates`, both sides present theirs.
    fn new(version: &'static SupportedProtocolVersion, certificates: bool) -> Setting {
        let (pem, key) = (file("ecdsa.pem"), file("ecdsa.pkcs8.key"));
        let ours = format!("  certfile: {pem}\n  keyfile: {key}\n");
        let cafile = format!("  cafile: {pem}\n");
        let required = if certificates { (&*cafile, &*ours) } else { ("", "") };
        let backend = format!("  scheme: https\n{cafile}{}", required.1);
        let text = format!("frontend:\n{ours}{}backend:\n{backend}", required.0);
        let config = Config::from_yaml(&text).expect("a configuration");

        let provider = || Arc::new(cryptography());
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
        peer_server.ticketer = ticketer().expect("random numbers");
        Setting {
            ours: Tls::read(&config).expect("certificates"),
            peer_client: Arc::new(peer_client),
            peer_server: Arc::new(peer_server),
        }
    }

    fn exchange(&self, role: Role) -> Exchange {
        let name = ServerName::try_from("localhost").expect("a name");
        match role {
            Role::Server => {
                let session = Session::server(self.ours.server.as_ref().expect("TLS"));
                let peer = ClientConnection::new(Arc::clone(&self.peer_client), name);
                Exchange::new(session.expect("a session"), peer.expect("a session").into())
            }
            Role::Client => {
                let session = Session::client(self.ours.client.as_ref().expect("TLS"), "localhost");
                let peer = ServerConnection::new(Arc::clone(&self.peer_server));
                Exchange::new(session.expect("a session"), peer.expect("a session").into())
            }
        }
    }
}

/// Sends `REQUEST` one way and `answer` the other, and ends cleanly.
fn run_exchange(exchange: &mut Exchange, role: Role, answer: &[u8]) {
    match role {
        Role::Server => {
            (exchange.peer_output, exchange.peer_wants) = (Some(REQUEST.to_vec()), answer.len());
            exchange.run(0, REQUEST.len(), answer);
        }
        Role::Client => {
            (exchange.peer_output, exchange.peer_wants) = (Some(answer.to_vec()), REQUEST.len());
            exchange.run(REQUEST.len(), 0, REQUEST);
        }
    }
}

/// The bytes that we and the peer receive.
fn expected_bytes(role: Role, answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match role {
        Role::Server => (REQUEST.to_vec(), answer.to_vec()),
        Role::Client => (answer.to_vec(), REQUEST.to_vec()),
    }
}

/// Both sides received everything, the end is clean, and nothing is buffered.
fn assert_complete(exchange: &Exchange, role: Role, answer: &[u8], which: &str) {
    let (ours, peers) = expected_bytes(role, answer);
    assert_eq!(exchange.end, Some(End::Eof), "{which}");
    assert!(exchange.received == ours, "{which}: {} bytes received", exchange.received.len());
    assert!(
        exchange.peer_received == peers,
        "{which}: {} bytes sent",
        exchange.peer_received.len()
    );
    assert!(exchange.peer_saw_close, "{which}: no close_notify");
    assert!(!exchange.stream.has_outgoing() && !exchange.stream.is_handshaking(), "{which}");
    assert_eq!(exchange.stream.buffered_bytes(), 0, "{which}");
}

fn bytes_of_length(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];
const ROLES: [Role; 2] = [Role::Server, Role::Client];
const REQUEST: &[u8] = b"GET /primary HTTP/1.0\r\n\r\n";
const TURNS_MAX: usize = 40_000;
const CALLS_PER_TURN: usize = 10_000;
/// After this many turns without progress the exchange has ended.
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
                    let mut exchange = setting.exchange(role);
                    let mut wire = exchange.wire.borrow_mut();
                    (wire.read_max, wire.write_max) = (read_max, write_max);
                    drop(wire);
                    let answer = bytes_of_length(bytes);
                    run_exchange(&mut exchange, role, &answer);
                    // closing writes once, so a short write loses part of close_notify
                    exchange.peer_saw_close |= write_max < 40;
                    let which = format!("{version:?} {role:?} {read_max} {write_max} {bytes}");
                    assert_complete(&exchange, role, &answer, &which);
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
            let mut exchange = setting.exchange(role);
            let answer = bytes_of_length(bytes);
            run_exchange(&mut exchange, role, &answer);
            assert_complete(&exchange, role, &answer, &format!("{version:?} {role:?} {bytes}"));
        }
        // small records, so that one read brings many of them
        let mut small = Setting::new(version, false);
        Arc::make_mut(&mut small.peer_server).max_fragment_size = Some(32);
        Arc::make_mut(&mut small.peer_client).max_fragment_size = Some(32);
        for role in ROLES {
            let mut exchange = small.exchange(role);
            let answer = bytes_of_length(2_000);
            run_exchange(&mut exchange, role, &answer);
            assert_complete(&exchange, role, &answer, &format!("{version:?} {role:?} small"));
        }
    }
}

const SIZES: [usize; 7] = [1, 16_383, 16_384, 16_385, 32_768, 65_537, 300_000];

#[test]
fn a_call_that_would_block_loses_nothing() {
    for version in VERSIONS {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let answer = bytes_of_length(450);
            for step in 0..=clean_calls(&setting, role) {
                let mut exchange = setting.exchange(role);
                let fault = if step == 0 { Fault::BlocksOften } else { Fault::Blocks };
                let mut wire = exchange.wire.borrow_mut();
                (wire.fault, wire.read_max, wire.write_max) = (Some((step, fault)), 400, 200);
                drop(wire);
                run_exchange(&mut exchange, role, &answer);
                let which = format!("{version:?} {role:?} {step}");
                // close_notify is sent only as far as that goes without waiting
                if fault == Fault::Blocks && !exchange.peer_saw_close {
                    assert_eq!(
                        (&exchange.end, step),
                        (&Some(End::Eof), exchange.wire.borrow().calls)
                    );
                    continue;
                }
                if fault == Fault::Blocks {
                    assert_complete(&exchange, role, &answer, &which);
                }
                assert_eq!((&exchange.end, exchange.stream.buffered_bytes()), (&Some(End::Eof), 0));
                assert_eq!(exchange.received, expected_bytes(role, &answer).0, "{which}");
            }
        }
    }
}

/// Number of socket calls in one exchange.
fn clean_calls(setting: &Setting, role: Role) -> usize {
    let mut exchange = setting.exchange(role);
    let mut wire = exchange.wire.borrow_mut();
    (wire.read_max, wire.write_max) = (400, 200);
    drop(wire);
    run_exchange(&mut exchange, role, &bytes_of_length(450));
    exchange.wire.borrow().calls
}

#[test]
fn eof_and_rst_at_each_step_are_told_apart() {
    for (version, fault) in VERSIONS.into_iter().flat_map(|v| [(v, Fault::Eof), (v, Fault::Rst)]) {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let answer = bytes_of_length(450);
            let (ours, _) = expected_bytes(role, &answer);
            for step in 1..=clean_calls(&setting, role) {
                let mut exchange = setting.exchange(role);
                let mut wire = exchange.wire.borrow_mut();
                (wire.fault, wire.read_max, wire.write_max) = (Some((step, fault)), 400, 200);
                drop(wire);
                run_exchange(&mut exchange, role, &answer);
                let which = format!("{version:?} {role:?} {fault:?} {step}");
                let broken = match fault {
                    Fault::Eof if exchange.stream.is_handshaking() => Broken::Closed,
                    Fault::Eof => Broken::Cut,
                    _ => Broken::Io,
                };
                match &exchange.end {
                    // the clean end came before the fault
                    Some(End::Eof) => assert_eq!(exchange.received, ours, "{which}"),
                    other => assert_eq!(other, &Some(End::Broken(broken)), "{which}"),
                }
                assert!(ours.starts_with(&exchange.received), "{which}");
            }
        }
    }
}

#[test]
fn an_end_without_close_notify_is_a_cut() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        for role in ROLES {
            let mut exchange = setting.exchange(role);
            exchange.peer_closes = false;
            run_exchange(&mut exchange, role, &bytes_of_length(450));
            assert_eq!(exchange.end, None);
            assert_eq!(exchange.received, expected_bytes(role, &bytes_of_length(450)).0);
            assert!(!exchange.stream.has_outgoing() && !exchange.stream.is_handshaking());
            assert_eq!(exchange.stream.buffered_bytes(), 0);
            exchange.wire.borrow_mut().has_ended = true;
            exchange.run(0, usize::MAX, b"");
            assert_eq!(exchange.end, Some(End::Broken(Broken::Cut)));
        }
    }
}

#[test]
fn a_client_that_sent_close_notify_is_still_answered() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        let mut exchange = setting.exchange(Role::Server);
        // close_notify in the same flight as the request
        exchange.peer_output = Some(REQUEST.to_vec());
        exchange.run(0, usize::MAX, b"");
        assert_eq!(
            (&exchange.received[..], &exchange.end),
            (REQUEST, &Some(End::Eof)),
            "{version:?}"
        );
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
        session.encrypt(b"late").expect("writing is open");
        session.close_notify();
        feed(&mut client, &session.take_outgoing());
        let mut received = Vec::new();
        client.reader().read_to_end(&mut received).expect("a clean end");
        assert_eq!(received, b"late", "{version:?}");
    }
}

fn feed(client: &mut ClientConnection, mut records: &[u8]) {
    while !records.is_empty() {
        client.read_tls(&mut records).expect("memory");
        client.process_new_packets().expect("valid records");
    }
}

/// Runs one exchange and returns the peer's kind of handshake.
fn handshake_kind(setting: &Setting, role: Role) -> Option<HandshakeKind> {
    let mut exchange = setting.exchange(role);
    run_exchange(&mut exchange, role, &bytes_of_length(450));
    assert_complete(&exchange, role, &bytes_of_length(450), "resumed or not");
    match &exchange.peer {
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
        // a client's certificate is verified each time
        let setting = Setting::new(version, true);
        let kinds = [0; 3].map(|_| handshake_kind(&setting, Role::Server));
        assert_eq!(kinds, [full; 3], "{version:?}");
    }
}

#[test]
fn one_ticket_is_sent_but_none_with_client_certificates() {
    for (certificates, count) in [(false, 1), (true, 0)] {
        let setting = Setting::new(&version::TLS13, certificates);
        let mut exchange = setting.exchange(Role::Server);
        run_exchange(&mut exchange, Role::Server, &bytes_of_length(450));
        let Connection::Client(client) = &exchange.peer else { panic!("we are the server") };
        assert_eq!(client.tls13_tickets_received(), count);
    }
}

#[test]
fn sessions_with_patroni_are_dropped_after_an_hour() {
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
fn each_host_of_the_dcs_must_have_its_name_in_its_certificate() {
    let wrong_name = Err(Failure::Tls(TlsFailure::CertificateName));
    let untrusted = Err(Failure::Tls(TlsFailure::CertificateIssuer));
    let ours = |change: fn(&mut BackendTls)| {
        let mut config = dcs_config();
        change(config.dcs.as_mut().and_then(|dcs| dcs.tls.as_mut()).expect("TLS"));
        Tls::read(&config).expect("certificates")
    };
    let by_host = ours(|_| {});
    let by_server_name = ours(|tls| tls.server_name = Some("localhost".to_owned()));
    let by_public_cas = ours(|tls| tls.cafile = None);
    let insecure = ours(|tls| tls.insecure = true);
    let table = [
        (&by_host, "localhost", Ok(())),
        (&by_host, "127.0.0.1", Ok(())),
        (&by_host, "etcd2", wrong_name),
        (&by_host, "127.0.0.2", wrong_name),
        (&by_server_name, "etcd2", Ok(())),
        (&by_public_cas, "localhost", untrusted),
        (&insecure, "etcd2", Ok(())),
    ];
    for version in VERSIONS {
        let setting = Setting::new(version, true);
        for (ours, host, outcome) in &table {
            assert!(ours.client.is_none() && ours.server.is_none());
            let session = Session::client(ours.dcs.as_ref().expect("TLS"), host);
            let peer = ServerConnection::new(Arc::clone(&setting.peer_server)).expect("a session");
            let mut exchange = Exchange::new(session.expect("a session"), peer.into());
            run_exchange(&mut exchange, Role::Client, b"answer");
            let came = match exchange.end {
                Some(End::Broken(broken)) => Err(broken.failure()),
                _ => Ok(()),
            };
            assert_eq!(&came, outcome, "{version:?} {host}");
        }
    }
}

#[test]
fn an_unusable_file_of_the_dcs_is_an_error_at_its_key() {
    type Change = fn(&mut Dcs, &mut BackendTls);
    let table: [(Change, &str); 5] = [
        (|_, tls| tls.cafile = Some("/none".to_owned()), "dcs.cafile: /none: "),
        (|_, tls| tls.cafile = Some(file("rsa.pkcs1.key")), "dcs.cafile: "),
        (|_, tls| identity_of(tls).certfile = file("rsa.pem"), "dcs.keyfile: "),
        (
            |_, tls| tls.server_name = Some("a..b".to_owned()),
            "dcs.server-name: \"a..b\" is neither",
        ),
        (|dcs, _| dcs.hosts[1].host = "a..b".to_owned(), "dcs.server-name: \"a..b\" is neither"),
    ];
    for (change, message) in table {
        let mut config = dcs_config();
        let mut dcs = config.dcs.take().expect("it is set");
        let mut tls = dcs.tls.take().expect("TLS");
        change(&mut dcs, &mut tls);
        config.dcs = Some(Dcs { tls: Some(tls), ..dcs });
        let error = Tls::read(&config).err().map(|wrong| wrong.to_string()).unwrap_or_default();
        assert!(error.starts_with(message), "{error:?} instead of {message:?}");
    }
    assert_eq!(Tls::read(&dcs_config()).map(|tls| tls.findings.warnings), Ok(Vec::new()));
}

fn identity_of(tls: &mut BackendTls) -> &mut Identity {
    tls.identity.as_mut().expect("it is set")
}

/// The DCS over TLS on two hosts, with a client certificate.
fn dcs_config() -> Config {
    let identity = Identity { certfile: file("ecdsa.pem"), keyfile: file("ecdsa.pkcs8.key") };
    let tls = BackendTls {
        insecure: false,
        cafile: Some(file("ecdsa.pem")),
        identity: Some(identity),
        server_name: None,
    };
    let text = "dcs: {type: etcd3, hosts: [\"localhost\", \"[fe80::1%eth0]:2379\"]}";
    let mut config = Config::from_yaml(text).expect("a configuration");
    config.dcs = config.dcs.map(|dcs| Dcs { tls: Some(tls), ..dcs });
    config
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
        // a record length over the limit
        (vec![0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0], Failure::Tls(TlsFailure::Other)),
        // an unknown handshake message
        (vec![0x16, 3, 1, 0, 5, 0x63, 0, 0, 1, 0], Failure::Tls(TlsFailure::Other)),
    ];
    for (role, (bytes, failure)) in ROLES.into_iter().flat_map(|r| table.clone().map(|t| (r, t))) {
        for read_max in [1, usize::MAX] {
            let mut exchange = setting.exchange(role);
            exchange.wire.borrow_mut().read_max = read_max;
            exchange.wire.borrow_mut().inbound.extend(&bytes);
            bytes.iter().for_each(|_| exchange.serve());
            let Some(End::Broken(Broken::Tls(error))) = &exchange.end else {
                panic!("{role:?} {bytes:?}: {:?}", exchange.end);
            };
            assert_eq!(error.failure, failure, "{role:?} {bytes:?}: {error}");
            let wire = exchange.wire.borrow();
            let alert = [0x15, 3, 3, 0, 2, 2];
            assert!(wire.outbound.windows(6).any(|bytes| bytes == alert), "{:?}", wire.outbound);
        }
    }
}

#[test]
fn a_client_s_chain_may_take_more_than_one_record() {
    for version in VERSIONS {
        let mut setting = Setting::new(version, true);
        let (chain, key) = identity();
        let chain: Vec<_> = chain.iter().cycle().take(100).cloned().collect();
        let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
        assert!((24 * 1024..60 * 1024).contains(&bytes), "{bytes}");
        let key = signing_key(&key).expect("a key");
        let peer = Arc::get_mut(&mut setting.peer_client).expect("the only one");
        let identity = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        peer.client_auth_cert_resolver = Arc::new(identity);
        let mut exchange = setting.exchange(Role::Server);
        run_exchange(&mut exchange, Role::Server, b"answer");
        assert_complete(&exchange, Role::Server, b"answer", &format!("{version:?}"));
    }
}

#[test]
fn data_before_a_tls_error_is_received() {
    for version in VERSIONS {
        let setting = Setting::new(version, false);
        for role in ROLES {
            let mut exchange = setting.exchange(role);
            exchange.peer_closes = false;
            exchange.run(0, usize::MAX, b"");
            assert!(!exchange.stream.is_handshaking(), "{version:?} {role:?}");
            exchange.peer.writer().write_all(REQUEST).expect("memory");
            let mut records = Vec::new();
            exchange.peer.write_tls(&mut records).expect("memory");
            records.extend([0xff; 100]);
            exchange.wire.borrow_mut().inbound.extend(records); // one read has both
            exchange.serve();
            assert_eq!(exchange.received, REQUEST, "{version:?} {role:?}");
            assert!(
                matches!(exchange.end, Some(End::Broken(Broken::Tls(_)))),
                "{:?}",
                exchange.end
            );
        }
    }
}

#[test]
fn a_bit_flipped_on_the_wire_is_detected() {
    for version in VERSIONS {
        let setting = Setting::new(version, true);
        for role in ROLES {
            let mut exchange = setting.exchange(role);
            run_exchange(&mut exchange, role, &bytes_of_length(450));
            let received_bytes = exchange.wire.borrow().received_bytes;
            let (ours, _) = expected_bytes(role, &bytes_of_length(450));
            for at in (0..received_bytes).step_by(5) {
                let mut exchange = setting.exchange(role);
                exchange.wire.borrow_mut().flipped = Some(at);
                run_exchange(&mut exchange, role, &bytes_of_length(450));
                assert!(ours.starts_with(&exchange.received), "{version:?} {role:?} {at}");
            }
        }
    }
}

#[test]
fn a_handshake_message_without_end_is_bounded() {
    // without client certificates less is buffered for a client
    let table = [(Role::Server, false, 20), (Role::Server, true, 96), (Role::Client, false, 96)];
    for (role, certificates, kib_max) in table {
        let setting = Setting::new(&version::TLS13, certificates);
        let mut exchange = setting.exchange(role);
        // a hello of 16 MiB, in records of 16 KiB
        let kind = if matches!(role, Role::Server) { 1 } else { 2 };
        let mut hello = vec![kind, 0xff, 0xff, 0xff];
        hello.resize(16_384, 0);
        let mut buffered_bytes_max = 0;
        for _ in 0..100 {
            exchange.wire.borrow_mut().inbound.extend([0x16, 3, 1, 0x40, 0]);
            exchange.wire.borrow_mut().inbound.extend(&hello);
            exchange.serve();
            buffered_bytes_max = buffered_bytes_max.max(exchange.stream.buffered_bytes());
        }
        let which = format!("{role:?} {certificates}: {buffered_bytes_max}");
        assert!(
            matches!(exchange.end, Some(End::Broken(Broken::Tls(_)))),
            "{which} {:?}",
            exchange.end
        );
        assert!(buffered_bytes_max <= kib_max * 1024, "{which}");
    }
    // an incomplete hello below the limit is kept; the handshake's deadline ends it
    let setting = Setting::new(&version::TLS13, false);
    let mut exchange = setting.exchange(Role::Server);
    let mut unfinished = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    unfinished.resize(16_384, 0);
    exchange.wire.borrow_mut().inbound.extend(&unfinished);
    exchange.serve();
    assert_eq!(exchange.end, None);
    assert!(exchange.stream.buffered_bytes() <= 20 * 1024, "{}", exchange.stream.buffered_bytes());
}
