//! The engine towards its clients: what is asked, what is answered, who has to go.

use std::rc::Rc;

use super::{Asked, Connection, Engine, Peer, Record};
use crate::answer::{CacheStatus, Form};
use crate::cache::{EntryId, Lookup};
use crate::engine::Action;
use crate::frontend::{Frontend, Request, Step};
use crate::http::head::BadRequest;
use crate::http::write::{ResponseFields, error_json, response};
use crate::http::{Method, Persistence};
use crate::routes::{Family, Route, resolve};
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// An answer that is not Patroni's.
struct Own {
    status: u16,
    message: &'static str,
    allow: bool,
}

impl Engine {
    pub(super) fn client_step(&mut self, now: Now, id: ConnId, step: Step) {
        match step {
            Step::Continue if self.finishing && self.is_idle(id) => self.close(id),
            Step::Continue => {}
            Step::Ask(request) => self.ask(now, id, request),
            Step::Refuse(method, why) => self.refuse(now, id, method, Own::refusal(why)),
            Step::TooSlow => self.refuse(now, id, Method::Unknown, Own::TOO_SLOW),
            Step::Drain => self.actions.push_back(Action::Finish(id)),
            Step::Close => self.close(id),
        }
        self.reschedule(id);
    }

    /// The hot path: one lookup, and with a fresh answer nothing else, unless it is about to expire
    /// and nobody had asked when the time for its refresh came.
    fn ask(&mut self, now: Now, id: ConnId, request: Request) {
        if self.settings.records {
            self.remember(now, id, request);
        }
        let entry = match self.entry_for(request) {
            Ok(entry) => entry,
            Err(own) => return self.answer_own(now, id, own),
        };
        self.observe_clock(now);
        match self.cache.lookup(now, entry) {
            Lookup::Fresh => {
                self.answer(now, id, entry, CacheStatus::Hit);
                self.refresh(now, entry);
            }
            Lookup::Stale => self.answer(now, id, entry, CacheStatus::Stale),
            Lookup::Failing => self.answer(now, id, entry, CacheStatus::FailedHit),
            Lookup::Fetching => self.cache.wait(entry, id),
            Lookup::Absent => {
                self.begin_fetch(now, entry);
                self.cache.wait(entry, id);
            }
        }
    }

    /// The entry that a request is about, or what we have to say ourselves.
    fn entry_for(&mut self, request: Request) -> Result<EntryId, Own> {
        match request.method {
            Method::Unknown => return Err(Own::UNKNOWN_METHOD),
            Method::Connect => return Err(Own::METHOD_NOT_ALLOWED),
            Method::Options if self.target == "*" => return Err(Own::SERVER_OPTIONS),
            _ => {}
        }
        let route = resolve(&self.target, &mut self.canonical).ok_or(Own::NOT_FOUND)?;
        match request.method {
            Method::Get | Method::Head | Method::Options => {
                if self.is_drained(route) {
                    return Err(Own::DRAINING);
                }
                self.cache.find(route, &self.canonical).ok_or(Own::FULL)
            }
            _ => Err(Own::METHOD_NOT_ALLOWED),
        }
    }

    fn is_drained(&self, route: Route) -> bool {
        self.draining && matches!(route.family(), Family::Leader | Family::Replica)
    }

    /// Gives a client the entry's answer. A waiter that has gone is no error.
    pub(super) fn answer(
        &mut self,
        now: Now,
        id: ConnId,
        entry: EntryId,
        cache_status: CacheStatus,
    ) {
        if self.is_drained(self.cache.route(entry)) {
            return self.answer_own(now, id, Own::DRAINING); // it waits since before
        }
        let Some((_, Request { method, persistence })) = self.waiting_client(id) else { return };
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
            self.journal.served_stale(now.time, self.cache.target(entry), age_ms);
        }
        if let Some((frontend, _)) = self.waiting_client(id) {
            frontend.answer(now.time, bytes);
        }
        self.record(now, id, status);
    }

    fn answer_own(&mut self, now: Now, id: ConnId, own: Own) {
        let Some((frontend, request)) = self.waiting_client(id) else { return };
        let (head_only, status) = (request.method == Method::Head, own.status);
        frontend.answer(now.time, own.response(now, request.persistence, head_only));
        self.record(now, id, status);
    }

    /// Answers what was no request.
    fn refuse(&mut self, now: Now, id: ConnId, method: Method, own: Own) {
        if self.settings.records {
            let request = Request { method, persistence: Persistence::Close };
            self.target.replace_range(.., "-");
            self.remember(now, id, request);
        }
        let Some(Connection { peer: Peer::Client(frontend, _), .. }) = self.connections.get_mut(id)
        else {
            return;
        };
        let status = own.status;
        let head_only = method == Method::Head;
        frontend.refuse(now.time, own.response(now, Persistence::Close, head_only));
        self.record(now, id, status);
    }

    /// Whose request waits for an answer, the last one if the daemon is to end.
    fn waiting_client(&mut self, id: ConnId) -> Option<(&mut Frontend, Request)> {
        let connection = self.connections.get_mut(id)?;
        let Peer::Client(frontend, _) = &mut connection.peer else { return None };
        if self.finishing {
            frontend.close_after_answer();
        }
        let request = frontend.waiting()?;
        Some((frontend, request))
    }

    fn is_idle(&self, id: ConnId) -> bool {
        let connection = self.connections.get(id);
        matches!(connection, Some(Connection { peer: Peer::Client(frontend, _), .. })
            if frontend.is_idle())
    }

    fn remember(&mut self, now: Now, id: ConnId, request: Request) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if let Peer::Client(_, asked) = &mut connection.peer {
            let (method, target) = (request.method, self.target.as_str().into());
            *asked = Some(Box::new(Asked { at: now.time, method, target }));
        }
    }

    fn record(&mut self, now: Now, id: ConnId, status: u16) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Peer::Client(_, asked) = &mut connection.peer else { return };
        let Some(asked) = asked.take() else { return };
        let elapsed_ms = now.time.ms_since(asked.at);
        let Asked { method, target, .. } = *asked;
        self.records.push_back(Record { id, method, target, status, elapsed_ms });
    }

    /// The client to part with when there is no room. The idlest are looked for in batches: one
    /// walk over all connections serves [`IDLEST_BATCH`] newcomers.
    pub(super) fn longest_idle(&mut self, now: Time) -> Option<ConnId> {
        if let Some(id) = self.next_idlest(now) {
            return Some(id);
        }
        let idle = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(frontend, _) = &connection.peer else { return None };
            Some((frontend.idle_since(now)?, id))
        });
        self.idlest.extend(idle);
        if self.idlest.len() > IDLEST_BATCH {
            self.idlest.select_nth_unstable(IDLEST_BATCH);
            self.idlest.truncate(IDLEST_BATCH);
            self.idlest.shrink_to_fit();
        }
        self.idlest.sort_unstable_by(|one, other| other.cmp(one));
        self.next_idlest(now)
    }

    /// Of those found before, the next that is idle still.
    fn next_idlest(&mut self, now: Time) -> Option<ConnId> {
        while let Some((since, id)) = self.idlest.pop() {
            let connection = self.connections.get(id);
            if let Some(Connection { peer: Peer::Client(frontend, _), .. }) = connection
                && frontend.idle_since(now) == Some(since)
            {
                return Some(id);
            }
        }
        None
    }

    pub(super) fn close_clients(&mut self, which: impl Fn(&Frontend) -> bool) {
        let clients = self.connections.iter().filter_map(|(id, connection)| {
            let Peer::Client(frontend, _) = &connection.peer else { return None };
            which(frontend).then_some(id)
        });
        for id in clients.collect::<Vec<_>>() {
            self.close(id);
        }
    }
}

impl Own {
    const NOT_FOUND: Own = Own { status: 404, message: "no such route", allow: false };
    const METHOD_NOT_ALLOWED: Own =
        Own { status: 405, message: "only GET, HEAD and OPTIONS are answered", allow: true };
    const UNKNOWN_METHOD: Own = Own { status: 501, message: "unknown method", allow: false };
    const SERVER_OPTIONS: Own = Own { status: 200, message: "", allow: true };
    const TOO_SLOW: Own =
        Own { status: 408, message: "the request did not come in time", allow: false };
    const DRAINING: Own = Own { status: 503, message: "draining", allow: false };
    const FULL: Own =
        Own { status: 503, message: "too many different parameters are asked for", allow: false };

    fn refusal(why: BadRequest) -> Own {
        let (status, message) = match why {
            BadRequest::Malformed => (400, "not a request of HTTP/1.0 or HTTP/1.1"),
            BadRequest::BodyTooLarge => (413, "no body is wanted"),
            BadRequest::TargetTooLong => (414, "the target is longer than 1 KiB"),
            BadRequest::Expectation => (417, "no body is waited for"),
            BadRequest::HeadTooLarge => (431, "the head has more than 8 KiB or 64 fields"),
            BadRequest::UnknownCoding => (501, "unknown transfer coding"),
        };
        Own { status, message, allow: false }
    }

    fn response(self, now: Now, persistence: Persistence, head_only: bool) -> Rc<[u8]> {
        let silent = self.message.is_empty();
        let body = if silent { String::new() } else { error_json(self.message) };
        let fields = ResponseFields {
            status: self.status,
            date_unix_seconds: now.unix_ms / 1000,
            content_type: if silent { None } else { Some(JSON) },
            content_length: body.len(),
            cached: None,
            allow: self.allow,
            persistence,
        };
        response(&fields, if head_only { b"" } else { body.as_bytes() })
    }
}

/// The response for a client that is turned away because there is no room.
pub fn no_room(now: Now) -> Rc<[u8]> {
    let own = Own { status: 503, message: "too many connections", allow: false };
    own.response(now, Persistence::Close, false)
}

/// How many idle clients one walk finds.
const IDLEST_BATCH: usize = 64;
pub(super) const JSON: &[u8] = b"application/json";
