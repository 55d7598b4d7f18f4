//! Health checks: their requests and responses, and which client is closed to make room.

use std::rc::Rc;

use super::admin::ADMIN_CLIENTS_MAX;
use super::{Asked, Client, Connection, Engine, Peer, Phase, Port, Record};
use crate::answer::{CacheStatus, Form};
use crate::cache::{EntryId, Lookup, NoEntry};
use crate::engine::Action;
use crate::frontend::{Frontend, Request, Step};
use crate::http::head::BadRequest;
use crate::http::{Method, Persistence};
use crate::reply::LocalReply;
use crate::routes::{Route, resolve};
use crate::slots::ConnId;
use crate::time::{Now, Time};

impl Engine {
    /// The maximum number of clients of a port.
    pub fn clients_max(&self, port: Port) -> usize {
        match port {
            Port::Checks => self.settings.clients_max,
            Port::Admin | Port::Agent => ADMIN_CLIENTS_MAX,
        }
    }

    pub(super) fn client_step(&mut self, now: Now, id: ConnId, step: Step) {
        match step {
            Step::Continue if self.is_shutting_down() && self.is_idle(id) => self.close_client(id),
            Step::Continue => {}
            Step::Ask(request) => self.ask(now, id, request),
            Step::Refuse(method, why) => {
                if let BadRequest::NotHttp(foreign) = why {
                    self.journal.refused(now.time, foreign.text());
                }
                self.refuse(now, id, method, LocalReply::refusal(why));
            }
            Step::TooSlow => self.refuse(now, id, Method::Unknown, LocalReply::TOO_SLOW),
            Step::Linger => self.actions.push_back(Action::ShutdownWrite(id)),
            Step::Close => self.close_client(id),
        }
        self.reschedule(id);
    }

    /// The hot path: one lookup. With a fresh answer that is all, unless a refresh is overdue
    /// because no client had asked before.
    pub(super) fn ask(&mut self, now: Now, id: ConnId, request: Request) {
        if self.settings.records {
            self.remember(now, id, request);
        }
        if self.port_of(id) == Some(Port::Admin) {
            return self.ask_admin(now, id, request);
        }
        let entry = match self.entry_for(now, id, request) {
            Ok(entry) => entry,
            Err(reply) => return self.answer_locally(now, id, reply),
        };
        self.observe_clock(now);
        let lookup = self.cache.lookup(now, entry);
        if lookup != Lookup::Fresh && self.is_silent(now, entry) {
            self.call_witness(now, entry);
        }
        match lookup {
            Lookup::Fresh => {
                self.answer(now, id, entry, CacheStatus::Hit);
                self.refresh(now, entry);
            }
            _ if self.serves_stale(now, entry) => self.answer(now, id, entry, CacheStatus::Stale),
            Lookup::Failing => self.answer(now, id, entry, CacheStatus::FailedHit),
            _ if self.phase == Phase::Closing => {
                self.answer_locally(now, id, LocalReply::SHUTTING_DOWN);
            }
            Lookup::Fetching => {
                self.join_fetch(now, entry);
                self.wait(now, entry, id);
            }
            Lookup::Absent => {
                self.begin_fetch(now, entry);
                self.wait(now, entry, id);
            }
        }
    }

    /// The entry of a request, or a local reply.
    fn entry_for(&mut self, now: Now, id: ConnId, request: Request) -> Result<EntryId, LocalReply> {
        match request.method {
            Method::Unknown => return Err(LocalReply::UNKNOWN_METHOD),
            Method::Connect => return Err(LocalReply::METHOD_NOT_ALLOWED),
            Method::Options if self.parser.target == "*" => return Err(LocalReply::SERVER_OPTIONS),
            _ => {}
        }
        let route =
            resolve(&self.parser.target, &mut self.canonical).ok_or(LocalReply::NOT_FOUND)?;
        self.set_route(id, Some(route));
        match request.method {
            Method::Get | Method::Head | Method::Options => {
                if self.is_drained(route) {
                    return Err(LocalReply::DRAINING);
                }
                self.cache.find(now.time, route, &self.canonical).map_err(|why| match why {
                    NoEntry::Full => LocalReply::TOO_MANY_TARGETS,
                    NoEntry::TooManyNew => LocalReply::TOO_MANY_NEW_TARGETS,
                })
            }
            _ => Err(LocalReply::METHOD_NOT_ALLOWED),
        }
    }

    fn is_drained(&self, route: Route) -> bool {
        self.draining && route.family().is_drained()
    }

    /// Sends a client the entry's answer. A waiter that disconnected is not an error.
    pub(super) fn answer(
        &mut self,
        now: Now,
        id: ConnId,
        entry: EntryId,
        cache_status: CacheStatus,
    ) {
        if self.is_drained(self.cache.route(entry)) {
            return self.answer_locally(now, id, LocalReply::DRAINING); // it has waited since before
        }
        let Some((_, Request { method, persistence, .. })) = self.waiting_client(id) else {
            return;
        };
        let form = Form { method, persistence, cache_status };
        let rendered = match cache_status {
            CacheStatus::Failed | CacheStatus::FailedHit => self.cache.failure(entry),
            _ => self.cache.answer(entry),
        };
        let rendered = rendered.expect("an answer in memory");
        let (status, asked_at) = (rendered.answer().status, rendered.answer().asked_at);
        let bytes = rendered.form(now, form);
        if cache_status == CacheStatus::Stale {
            let age_ms = now.time.ms_since(asked_at);
            let by_grace = self.cache.may_serve_stale(now, entry);
            let evidence = self.evidence(now, entry).filter(|_| !by_grace);
            match evidence {
                Some(evidence) => self.journal.on_witness(now.time, evidence),
                None => self.journal.served_stale(now.time, self.cache.target(entry), age_ms),
            }
        }
        self.cache.served(entry, status);
        self.respond(now, id, status, Some(cache_status), bytes);
    }

    /// Sends a client its response, and counts it. Its request waits.
    fn respond(
        &mut self,
        now: Now,
        id: ConnId,
        status: u16,
        cache_status: Option<CacheStatus>,
        bytes: Rc<[u8]>,
    ) {
        let Some(client) = self.client(id) else { return };
        let (port, route) = (client.port, client.route.take());
        if port == Port::Agent {
            return self.answer_agent(now, id, status);
        }
        client.frontend.respond(now.time, bytes);
        if port == Port::Checks {
            self.stats.answered(now.time, route, status, cache_status);
        }
        self.record(now, id, status);
    }

    pub(super) fn answer_locally(&mut self, now: Now, id: ConnId, reply: LocalReply) {
        let reply = self.reply_of_port(id, reply);
        let Some((_, request)) = self.waiting_client(id) else { return };
        let bytes = reply.response(now, request.persistence, request.method == Method::Head);
        self.respond(now, id, reply.status, None, bytes);
    }

    /// Responds to bytes that are not a request.
    fn refuse(&mut self, now: Now, id: ConnId, method: Method, reply: LocalReply) {
        if self.settings.records {
            let persistence = Persistence::Close;
            let request = Request { method, persistence, if_none_match: None };
            self.parser.target.replace_range(.., "-");
            self.remember(now, id, request);
        }
        let reply = self.reply_of_port(id, reply);
        let status = reply.status;
        if self.port_of(id) == Some(Port::Checks) {
            self.stats.answered(now.time, None, status, None);
        }
        let Some(client) = self.client(id) else { return };
        let head_only = method == Method::Head;
        client.frontend.refuse(now.time, reply.response(now, Persistence::Close, head_only));
        self.record(now, id, status);
    }

    pub(super) fn client(&mut self, id: ConnId) -> Option<&mut Client> {
        match &mut self.connections.get_mut(id)?.peer {
            Peer::Client(client) => Some(client),
            Peer::Upstream(_) => None,
        }
    }

    fn port_of(&self, id: ConnId) -> Option<Port> {
        match &self.connections.get(id)?.peer {
            Peer::Client(client) => Some(client.port),
            Peer::Upstream(_) => None,
        }
    }

    fn reply_of_port(&self, id: ConnId, reply: LocalReply) -> LocalReply {
        if self.port_of(id) == Some(Port::Admin) { reply.for_browsers() } else { reply }
    }

    fn set_route(&mut self, id: ConnId, route: Option<Route>) {
        if let Some(client) = self.client(id) {
            client.route = route;
        }
    }

    /// The client, if its request waits for an answer. During shutdown this request is its last.
    pub(super) fn waiting_client(&mut self, id: ConnId) -> Option<(&mut Frontend, Request)> {
        let is_last = self.is_shutting_down();
        let frontend = &mut self.client(id)?.frontend;
        if is_last {
            frontend.close_after_response();
        }
        let request = frontend.waiting()?;
        Some((frontend, request))
    }

    fn is_idle(&self, id: ConnId) -> bool {
        let connection = self.connections.get(id);
        matches!(connection, Some(Connection { peer: Peer::Client(client), .. })
            if client.frontend.is_idle())
    }

    fn remember(&mut self, now: Now, id: ConnId, request: Request) {
        let (method, target) = (request.method, self.parser.target.as_str().into());
        if let Some(client) = self.client(id) {
            client.asked = Some(Box::new(Asked { at: now.time, method, target }));
        }
    }

    pub(super) fn record(&mut self, now: Now, id: ConnId, status: u16) {
        if !self.settings.records {
            return;
        }
        let asked = self.client(id).and_then(|client| client.asked.take());
        let Some(asked) = asked else { return };
        let elapsed_ms = now.time.ms_since(asked.at);
        let Asked { method, target, .. } = *asked;
        self.records.push_back(Record { id, method, target, status, elapsed_ms });
    }

    /// The client to close when there is no room. The longest idle are found in batches: one walk
    /// over all connections makes room for [`IDLEST_BATCH`] new clients.
    pub(super) fn longest_idle(&mut self, now: Time, port: Port) -> Option<ConnId> {
        if let Some(id) = self.next_idlest(now, port) {
            return Some(id);
        }
        let idle = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(client) = &connection.peer else { return None };
            let idle_since = client.frontend.idle_since(now).filter(|_| client.port == port);
            Some((idle_since?, id))
        });
        let idlest = &mut self.idlest[port as usize];
        idlest.extend(idle);
        if idlest.len() > IDLEST_BATCH {
            idlest.select_nth_unstable(IDLEST_BATCH);
            idlest.truncate(IDLEST_BATCH);
            idlest.shrink_to_fit();
        }
        idlest.sort_unstable_by(|one, other| other.cmp(one));
        self.next_idlest(now, port)
    }

    /// The next client of the last batch that is still idle.
    fn next_idlest(&mut self, now: Time, port: Port) -> Option<ConnId> {
        while let Some((since, id)) = self.idlest[port as usize].pop() {
            let connection = self.connections.get(id);
            if let Some(Connection { peer: Peer::Client(client), .. }) = connection
                && client.frontend.idle_since(now) == Some(since)
            {
                return Some(id);
            }
        }
        None
    }

    pub(super) fn close_clients(&mut self, which: impl Fn(&Frontend) -> bool) {
        let clients = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(client) = &connection.peer else { return None };
            which(&client.frontend).then_some(id)
        });
        for id in clients.collect::<Vec<_>>() {
            self.close_client(id);
        }
    }
}

/// Maximum idle clients in a batch.
const IDLEST_BATCH: usize = 64;
