//! The network around the engine: the shell's part, without sockets, in virtual time.
//!
//! Keeps to the shell's rules: a connection is served only after an input or an action for it,
//! is read only while the engine wants it, and after every input all actions are taken in order.
//! A break of a rule that holds in every story is an error at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, UNIX_EPOCH};

use patroniglue::VERSION;
use patroniglue::admin::ShellView;
use patroniglue::answer::AddressId;
use patroniglue::engine::{Action, Counts, Engine, Port, Settings, UpstreamId};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::routes::ROUTES;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};
use patroniglue::wheel::TICK_MS;

use super::etcd::{Etcd, Fault};
use super::script::{Closing, Connects, ReadLimit};

/// The engine, its clients and Patroni.
pub struct World {
    engine: Engine,
    settings: Settings,
    now_ms: u64,
    /// The sum of the wall clock's jumps.
    jumped_ms: i64,
    /// The maximum of bytes of one read or write.
    piece_bytes: usize,
    pub clients: BTreeMap<String, Client>,
    pub fetches: Vec<Fetch>,
    /// The owners of the open connections.
    owners: BTreeMap<ConnId, Owner>,
    /// Connections to serve.
    queue: VecDeque<ConnId>,
    pub connects: Connects,
    /// The address that accepts connections.
    pub patroni_address: AddressId,
    /// How far Patroni's clock is ahead of ours.
    pub patroni_ahead_ms: i64,
    /// Connections that Patroni did not accept, and the story has not expected yet.
    pub tried: usize,
    pub asked: VecDeque<String>,
    pub connections_closed: VecDeque<String>,
    pub given_up: usize,
    stale_expected: u64,
    pub etcd: Etcd,
    /// Connections to etcd.
    reads: BTreeSet<ConnId>,
}

/// A client, and the outcomes that the story has not expected yet.
pub struct Client {
    id: ConnId,
    /// Bytes that the engine has not read.
    inbox: VecDeque<u8>,
    end: End,
    read_limit: ReadLimit,
    /// An answer that is partly read, and the number of bytes read.
    answer: Option<(Vec<u8>, usize)>,
    pub seen: VecDeque<Seen>,
    /// Whether the engine has closed it.
    gone: bool,
}

/// An outcome for a client.
#[derive(Debug)]
pub enum Seen {
    Answer(Vec<u8>),
    HalfClosed,
    Closed(Closing),
    TurnedAway,
}

/// A connection to Patroni.
pub struct Fetch {
    id: ConnId,
    begun_ms: u64,
    accepted: bool,
    request: Vec<u8>,
    pub target: Option<String>,
    inbox: VecDeque<u8>,
    end: End,
    pub closed: bool,
}

/// The end of a direction of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// FIN follows the bytes in flight.
    Ended,
    /// The engine has seen the end.
    Seen,
}

#[derive(Clone)]
enum Owner {
    Client(String),
    Fetch(usize),
}

type Outcome = Result<(), String>;

impl World {
    pub fn new(settings: &Settings, piece_bytes: usize) -> World {
        World {
            engine: Engine::new(settings.clone()),
            settings: settings.clone(),
            now_ms: 0,
            jumped_ms: 0,
            piece_bytes,
            clients: BTreeMap::new(),
            fetches: Vec::new(),
            owners: BTreeMap::new(),
            queue: VecDeque::new(),
            connects: Connects::Accepted,
            patroni_address: AddressId::default(),
            patroni_ahead_ms: 0,
            tried: 0,
            asked: VecDeque::new(),
            connections_closed: VecDeque::new(),
            given_up: 0,
            stale_expected: 0,
            etcd: Etcd::new(),
            reads: BTreeSet::new(),
        }
    }

    // ---- clients

    pub fn connect(&mut self, name: &str) -> Outcome {
        let accepted = self.engine.accept(self.now(), Port::Checks);
        self.perform_actions()?;
        let id = accepted.unwrap_or(ConnId { slot: u32::MAX, generation: u32::MAX });
        let client = Client {
            id,
            inbox: VecDeque::new(),
            end: End::Open,
            read_limit: ReadLimit::Unlimited,
            answer: None,
            seen: VecDeque::new(),
            gone: accepted.is_none(),
        };
        let previous = self.clients.insert(name.into(), client);
        if previous.is_some_and(|previous| !previous.gone) {
            return Err(format!("{name} is connected already"));
        }
        if accepted.is_none() {
            self.client(name)?.seen.push_back(Seen::TurnedAway);
        } else if self.owners.insert(id, Owner::Client(name.into())).is_some() {
            return Err(format!("{id:?} was assigned twice"));
        }
        self.queue.push_back(id);
        self.settle()
    }

    pub fn send(&mut self, name: &str, bytes: &[u8]) -> Outcome {
        let client = self.client(name)?;
        if !client.gone {
            client.inbox.extend(bytes);
            let id = client.id;
            self.queue.push_back(id);
        }
        self.settle()
    }

    /// Bytes of a closed connection, whose slot may have a new client.
    pub fn send_late(&mut self, name: &str, bytes: &[u8]) -> Outcome {
        let client = self.client(name)?;
        if !client.gone {
            return Err(format!("{name} is not closed"));
        }
        let id = client.id;
        self.stale_expected += 1;
        self.engine.receive(self.now(), id, bytes);
        self.perform_actions()?;
        self.settle()
    }

    pub fn half_close(&mut self, name: &str) -> Outcome {
        let client = self.client(name)?;
        client.end = End::Ended;
        let id = client.id;
        self.queue.push_back(id);
        self.settle()
    }

    /// The shell never does this, but the engine has to handle it.
    pub fn half_close_seen(&mut self, name: &str) -> Outcome {
        let client = self.client(name)?;
        client.end = End::Seen;
        let id = client.id;
        self.engine.eof(self.now(), id);
        self.perform_actions()?;
        self.queue.push_back(id);
        self.settle()
    }

    pub fn reset(&mut self, name: &str) -> Outcome {
        let client = self.client(name)?;
        if client.gone {
            return Err(format!("{name} is closed already"));
        }
        let id = client.id;
        client.inbox.clear();
        self.engine.broken(self.now(), id, Failure::Reset);
        self.perform_actions()?;
        // the client's own reset: the story need not expect the close
        let client = self.client(name)?;
        match client.seen.back() {
            Some(Seen::Closed(_)) => drop(client.seen.pop_back()),
            _ => return Err(format!("{name} reset the connection and it was not closed")),
        }
        self.settle()
    }

    pub fn take(&mut self, name: &str, read_limit: ReadLimit) -> Outcome {
        let client = self.client(name)?;
        client.read_limit = read_limit;
        let id = client.id;
        self.queue.push_back(id);
        self.settle()
    }

    pub fn make_room(&mut self) -> Outcome {
        if !self.engine.make_room(self.now()) {
            return Err("no client could be closed".into());
        }
        self.perform_actions()?;
        self.settle()
    }

    // ---- the operator and the machine

    pub fn start(&mut self) -> Outcome {
        self.engine.start(self.now());
        self.perform_actions()?;
        self.settle()
    }

    pub fn drain(&mut self, draining: bool) {
        self.engine.drain(draining);
    }

    pub fn configure(&mut self, text: &str) -> Outcome {
        super::script::setting(&mut self.settings, text).ok_or("no setting")?;
        let now = self.now();
        self.engine.configure(now, self.settings.clone());
        self.perform_actions()?;
        self.settle()
    }

    pub fn jump(&mut self, ms: i64) {
        self.jumped_ms += ms;
    }

    /// `@now-2` becomes the Unix second two seconds ago, by Patroni's clock.
    pub fn with_time(&self, bytes: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(bytes) else { return bytes.to_vec() };
        let unix_ms = self.now().unix_ms.saturating_add_signed(self.patroni_ahead_ms);
        let date = UNIX_EPOCH + Duration::from_millis(unix_ms);
        let text = text.replace("@date", &httpdate::fmt_http_date(date));
        let mut parts = text.split("@now");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|char: char| !"+-0123456789".contains(char)).unwrap_or(part.len());
            let offset: i64 = part[..end].parse().unwrap_or(0);
            let seconds = (unix_ms / 1_000) as i64 + offset;
            text.push_str(&format!("{seconds}{}", &part[end..]));
        }
        text.into_bytes()
    }

    // ---- Patroni

    pub fn accept_waiting(&mut self) -> Outcome {
        for at in 0..self.fetches.len() {
            if !self.fetches[at].closed && !self.fetches[at].accepted {
                self.accept_fetch(at)?;
            }
        }
        self.settle()
    }

    /// Bytes of an answer; those after the engine's close are lost.
    pub fn patroni_sends(&mut self, fetch: usize, bytes: &[u8]) -> Outcome {
        let fetch = &mut self.fetches[fetch];
        fetch.inbox.extend(bytes);
        self.queue.push_back(fetch.id);
        self.settle()
    }

    /// A whole answer and its end, which the engine need not wait for.
    pub fn patroni_answers(&mut self, fetch: usize, bytes: &[u8]) -> Outcome {
        let fetch = &mut self.fetches[fetch];
        fetch.inbox.extend(bytes);
        fetch.end = End::Ended;
        self.queue.push_back(fetch.id);
        self.settle()?;
        self.ended_ones_are_closed()
    }

    pub fn patroni_ends(&mut self, fetch: usize) -> Outcome {
        let fetch = &mut self.fetches[fetch];
        fetch.end = End::Ended;
        self.queue.push_back(fetch.id);
        self.settle()?;
        self.ended_ones_are_closed()
    }

    pub fn patroni_resets(&mut self, fetch: usize) -> Outcome {
        let fetch = &mut self.fetches[fetch];
        fetch.end = End::Seen;
        let id = fetch.id;
        self.engine.broken(self.now(), id, Failure::Reset);
        self.perform_actions()?;
        self.ended_ones_are_closed()?;
        self.settle()
    }

    // ---- the DCS

    pub fn set_dcs(&mut self, words: &str) -> Outcome {
        let known = self.etcd.set(self.now_ms, words);
        known.ok_or_else(|| format!("the dcs knows no such state: {words}"))
    }

    // ---- time

    /// Advances the clock from deadline to deadline.
    pub fn pass(&mut self, ms: u64) -> Outcome {
        let until_ms = self.now_ms + ms;
        let mut firings_at_once = 0;
        while let Some(due) = self.engine.next_deadline() {
            let due_ms = due.as_ms().max(self.now_ms);
            if due_ms > until_ms {
                break;
            }
            firings_at_once = if due_ms == self.now_ms { firings_at_once + 1 } else { 0 };
            if firings_at_once > FIRINGS_AT_ONCE_MAX {
                return Err("the same deadline comes again and again".into());
            }
            self.now_ms = due_ms;
            self.settle()?;
        }
        self.now_ms = until_ms;
        self.settle()
    }

    /// All clients leave and Patroni refuses: a minute later nothing may be left.
    pub fn end(&mut self) -> Outcome {
        self.connects = Connects::Fail(Failure::Refused);
        for id in self.owners.keys().copied().collect::<Vec<_>>() {
            if self.owners.contains_key(&id) {
                self.engine.broken(self.now(), id, Failure::Reset);
                self.perform_actions()?;
            }
        }
        self.pass(60_000)?;
        let left = self.counts();
        // the next rehearsal of the witness
        let timers = usize::from(self.settings.dcs.is_some()).min(left.timers);
        let nothing = Counts {
            entries: ROUTES.len(),
            timers,
            stale_inputs: self.stale_expected,
            ..Counts::default()
        };
        if left != nothing || !self.owners.is_empty() {
            return Err(format!("after all clients left there remain {left:?}"));
        }
        Ok(())
    }

    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }

    pub fn client(&mut self, name: &str) -> Result<&mut Client, String> {
        self.clients.get_mut(name).ok_or_else(|| format!("there is no {name}"))
    }

    // ---- the shell's part

    /// One turn: serves the queue, ticks, serves the queue again.
    fn settle(&mut self) -> Outcome {
        self.serve_queue()?;
        self.engine.tick(self.now());
        self.perform_actions()?;
        self.serve_queue()?;
        self.check()
    }

    fn serve_queue(&mut self) -> Outcome {
        while let Some(id) = self.queue.pop_front() {
            if self.reads.contains(&id) {
                self.serve_dcs(id)?;
                continue;
            }
            while let Some(owner) = self.owners.get(&id).cloned() {
                let progress = match owner {
                    Owner::Client(name) => self.serve_client(id, &name)?,
                    Owner::Fetch(at) => self.serve_fetch(id, at)?,
                };
                if !progress {
                    break;
                }
            }
        }
        Ok(())
    }

    fn serve_client(&mut self, id: ConnId, name: &str) -> Result<bool, String> {
        let (now, wants_read) = (self.now(), self.engine.wants_read(id));
        let count = self.piece_bytes;
        let client = self.client(name)?;
        let read = wants_read && !client.inbox.is_empty();
        let ended = wants_read && !read && client.end == End::Ended;
        if read {
            let piece = taken(&mut client.inbox, count);
            self.engine.receive(now, id, &piece);
        } else if ended {
            client.end = End::Seen;
            self.engine.eof(now, id);
        }
        self.perform_actions()?;
        Ok(self.write_to_client(id, name)? || read || ended)
    }

    fn write_to_client(&mut self, id: ConnId, name: &str) -> Result<bool, String> {
        let Some(client) = self.clients.get_mut(name) else { return Ok(false) };
        let output = self.engine.output(id);
        if client.gone || output.is_empty() {
            return Ok(false);
        }
        let (answer, sent) = client.answer.get_or_insert_with(|| (output.to_vec(), 0));
        let read_limit = match &mut client.read_limit {
            ReadLimit::Unlimited => usize::MAX,
            ReadLimit::Bytes(left) => *left,
        };
        let count = output.len().min(self.piece_bytes).min(read_limit);
        if count == 0 {
            return Ok(false);
        }
        if answer.len() - *sent != output.len() || answer[*sent..][..count] != output[..count] {
            return Err(format!("the rest of {name}'s answer changed while it was sent"));
        }
        if let ReadLimit::Bytes(left) = &mut client.read_limit {
            *left -= count;
        }
        *sent += count;
        if *sent == answer.len() {
            let answer = std::mem::take(answer);
            client.answer = None;
            client.seen.push_back(Seen::Answer(answer));
        }
        self.engine.sent(self.now(), id, count);
        self.perform_actions()?;
        Ok(true)
    }

    fn serve_fetch(&mut self, id: ConnId, at: usize) -> Result<bool, String> {
        if !self.fetches[at].accepted {
            return Ok(false);
        }
        let (now, wants_read) = (self.now(), self.engine.wants_read(id));
        let count = self.engine.output(id).len().min(self.piece_bytes);
        if count > 0 {
            let bytes = &self.engine.output(id)[..count];
            self.fetches[at].request.extend_from_slice(bytes);
            self.engine.sent(now, id, count);
            self.perform_actions()?;
            self.read_request(at)?;
            return Ok(true);
        }
        let fetch = &mut self.fetches[at];
        if !wants_read {
            return Ok(false);
        }
        if !fetch.inbox.is_empty() {
            let piece = taken(&mut fetch.inbox, self.piece_bytes);
            self.engine.receive(now, id, &piece);
        } else if fetch.end == End::Ended {
            fetch.end = End::Seen;
            self.engine.eof(now, id);
        } else {
            return Ok(false);
        }
        self.perform_actions()?;
        Ok(true)
    }

    /// Promise 6, read only: Patroni gets a GET of a target and nothing else.
    fn read_request(&mut self, at: usize) -> Outcome {
        let fetch = &mut self.fetches[at];
        let text = String::from_utf8_lossy(&fetch.request).into_owned();
        if !text.ends_with("\r\n\r\n") {
            return Ok(());
        }
        let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let expected = format!(
            "GET {target} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\
             User-Agent: patroniglue/{VERSION}\r\n\r\n",
            host = self.settings.host
        );
        if text != expected {
            return Err(format!("Patroni was sent {text:?}"));
        }
        fetch.target = Some(target.clone());
        self.asked.push_back(target);
        Ok(())
    }

    /// Takes all actions, in order.
    fn perform_actions(&mut self) -> Outcome {
        let mut actions = 0;
        while let Some(action) = self.engine.poll_action() {
            actions += 1;
            if actions > ACTIONS_AT_ONCE_MAX {
                return Err(format!("endless actions: {action:?}"));
            }
            match action {
                Action::Connect(id, UpstreamId::Dcs) => self.connect_dcs(id),
                Action::Connect(id, UpstreamId::Patroni) => self.connect_fetch(id)?,
                Action::Wake(id) => {
                    self.alive(id, action)?;
                    self.queue.push_back(id);
                }
                Action::ShutdownWrite(id) => {
                    let Owner::Client(name) = self.alive(id, action)? else {
                        return Err("a fetch was finished".into());
                    };
                    self.client(&name)?.seen.push_back(Seen::HalfClosed);
                    self.queue.push_back(id);
                }
                Action::Close(id) => self.close(id, action)?,
                Action::NextAddress(_) => {}
                Action::Report(id, report) => {
                    let now = self.now();
                    self.engine.report(now, id, report, &ShellView::default());
                }
            }
        }
        Ok(())
    }

    fn connect_dcs(&mut self, id: ConnId) {
        self.reads.insert(id);
        self.queue.push_back(id);
    }

    /// etcd takes a request and answers it, whole and at once.
    fn serve_dcs(&mut self, id: ConnId) -> Outcome {
        let now = self.now();
        if self.etcd.fault == Fault::Refused {
            self.etcd.requests_ms.push(self.now_ms);
            self.engine.connect_failed(now, id, Failure::Refused);
            return self.perform_actions();
        }
        self.engine.progress(id, Progress::Open);
        let request = self.engine.output(id).to_vec();
        self.engine.sent(now, id, request.len());
        self.perform_actions()?;
        let text = String::from_utf8(request).map_err(|error| error.to_string())?;
        if let Some(answer) = self.etcd.answer(self.now_ms, &text) {
            for piece in answer.chunks(self.piece_bytes) {
                self.engine.receive(now, id, piece);
            }
        }
        let last = &self.etcd.requests_ms;
        if last.len() > 2 && last[last.len() - 1] - last[last.len() - 3] < 1_000 {
            return Err(format!("three requests to the DCS within a second: {last:?}"));
        }
        self.perform_actions()
    }

    fn alive(&self, id: ConnId, action: Action) -> Result<Owner, String> {
        self.owners.get(&id).cloned().ok_or_else(|| format!("{action:?} names a closed connection"))
    }

    fn connect_fetch(&mut self, id: ConnId) -> Outcome {
        let at = self.fetches.len();
        if self.owners.insert(id, Owner::Fetch(at)).is_some() {
            return Err(format!("{id:?} was assigned twice"));
        }
        self.fetches.push(Fetch {
            id,
            begun_ms: self.now_ms,
            accepted: false,
            request: Vec::new(),
            target: None,
            inbox: VecDeque::new(),
            end: End::Open,
            closed: false,
        });
        match self.connects {
            Connects::Accepted => return self.accept_fetch(at),
            Connects::Pending => {}
            Connects::Fail(why) => {
                self.fetches[at].end = End::Seen;
                self.engine.connect_failed(self.now(), id, why);
            }
        }
        self.tried += 1;
        Ok(())
    }

    fn accept_fetch(&mut self, at: usize) -> Outcome {
        self.fetches[at].accepted = true;
        let id = self.fetches[at].id;
        self.engine.connected_to(id, self.patroni_address);
        self.engine.progress(id, Progress::Open);
        self.queue.push_back(id);
        Ok(())
    }

    fn close(&mut self, id: ConnId, action: Action) -> Outcome {
        if self.reads.remove(&id) {
            return Ok(());
        }
        let owner = self.alive(id, action)?;
        self.owners.remove(&id);
        if !self.engine.output(id).is_empty() || self.engine.wants_read(id) {
            return Err(format!("{id:?} was closed, and still has output or reads"));
        }
        match owner {
            Owner::Client(name) => {
                let client = self.client(&name)?;
                client.gone = true;
                let how = match (&client.answer, client.inbox.is_empty()) {
                    (Some(_), _) => Closing::WithinAnswer,
                    (None, true) => Closing::Clean,
                    (None, false) => Closing::BytesUnread,
                };
                client.seen.push_back(Seen::Closed(how));
            }
            Owner::Fetch(at) => {
                let fetch = &mut self.fetches[at];
                fetch.closed = true;
                match (&fetch.target, fetch.end) {
                    (_, End::Seen | End::Ended) => {}
                    (Some(target), _) => self.connections_closed.push_back(target.clone()),
                    (None, _) => self.given_up += 1,
                }
            }
        }
        Ok(())
    }

    /// Checks what has to hold at any time (promise 1, one fetch).
    fn check(&self) -> Outcome {
        let open: Vec<&Fetch> = self.fetches.iter().filter(|fetch| !fetch.closed).collect();
        if open.len() > self.settings.fetches_max || open.len() != self.counts().fetches {
            return Err(format!("{} connections to Patroni are open", open.len()));
        }
        if self.counts().stale_inputs != self.stale_expected {
            return Err("an input was counted as late".into());
        }
        for (at, fetch) in open.iter().enumerate() {
            let same = |other: &&Fetch| other.target == fetch.target && fetch.target.is_some();
            if open[..at].iter().any(same) {
                return Err(format!("{:?} is fetched twice at once", fetch.target));
            }
            if self.now_ms > fetch.begun_ms + self.settings.timeout_ms + TICK_MS {
                return Err(format!("the fetch of {:?} outlives the timeout", fetch.target));
            }
        }
        Ok(())
    }

    fn ended_ones_are_closed(&self) -> Outcome {
        let left = self.fetches.iter().find(|fetch| fetch.end != End::Open && !fetch.closed);
        match left {
            Some(fetch) => Err(format!("the connection for {:?} stays open", fetch.target)),
            None => Ok(()),
        }
    }

    fn now(&self) -> Now {
        let unix_ms = (UNIX_MS_AT_START + self.now_ms).saturating_add_signed(self.jumped_ms);
        Now { time: Time::from_ms(self.now_ms), unix_ms }
    }
}

/// Up to `count` bytes from the front.
fn taken(bytes: &mut VecDeque<u8>, count: usize) -> Vec<u8> {
    let count = bytes.len().min(count);
    bytes.drain(..count).collect()
}

/// The example of RFC 9110, section 5.6.7: every story begins on Sun, 06 Nov 1994 08:49:37 GMT.
const UNIX_MS_AT_START: u64 = 784_111_777_000;
/// How often a deadline may be due at the same time.
const FIRINGS_AT_ONCE_MAX: u32 = 100;
/// More than a group of clients that is answered at once needs.
const ACTIONS_AT_ONCE_MAX: u32 = 10_000;
