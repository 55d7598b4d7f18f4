//! Requests on the admin port, and what the reports show of the engine. Changes nothing but the
//! client's state.

use super::{Action, Engine, Phase, Port};
use crate::admin::page::{self, File};
use crate::admin::{LeaseView, Report, Resource, ShellView, Source, State, View};
use crate::admin::{metrics, resolve, status};
use crate::cache::{PATIENCE_MS, Served};
use crate::changes::Kind;
use crate::failure::Culprit;
use crate::frontend::Request;
use crate::http::head::PassedOn;
use crate::http::write::{NO_STORE, NOSNIFF, ResponseFields, response};
use crate::http::{Method, Persistence};
use crate::node::WhyNot;
use crate::reply::LocalReply;
use crate::slots::ConnId;
use crate::stats::{PatroniState, Second, Standing};
use crate::time::{Now, Time};

impl Engine {
    /// Answers a request, or asks the shell for its part of a report.
    pub(super) fn ask_admin(&mut self, now: Now, id: ConnId, request: Request) {
        match (request.method, resolve(&self.parser.target)) {
            (Method::Unknown, _) => self.answer_locally(now, id, LocalReply::UNKNOWN_METHOD),
            (Method::Get | Method::Head, None) => {
                self.answer_locally(now, id, LocalReply::NO_SUCH_PAGE);
            }
            (Method::Get | Method::Head, Some(resource)) => match resource {
                Resource::Health => self.answer_health(now, id),
                Resource::Report(report) => self.actions.push_back(Action::Report(id, report)),
                Resource::File(file) => self.answer_file(now, id, request, file),
            },
            _ => self.answer_locally(now, id, LocalReply::READ_ONLY),
        }
    }

    /// Answers the request that [`Action::Report`] named.
    pub fn report(&mut self, now: Now, id: ConnId, report: Report, shell: &ShellView) {
        let seconds = self.stats.recent.whole_seconds(now.time).collect();
        let view = self.view(now, seconds);
        let (content_type, text) = match report {
            Report::Metrics => (metrics::CONTENT_TYPE, metrics::text(&view, shell)),
            Report::Status => (status::CONTENT_TYPE, status::json(&view, shell)),
        };
        self.answer_admin(now, id, content_type, text.as_bytes());
        self.reschedule(id);
    }

    /// Logs a change in the shell, and remembers it for the status.
    pub fn log_change(&mut self, now: Now, level: log::Level, kind: Kind, text: &str) {
        self.journal.log(now.time, level, kind, text);
    }

    /// 200 as long as the loop turns: a probe that depended on Patroni's state would restart this
    /// daemon just when it is needed.
    fn answer_health(&mut self, now: Now, id: ConnId) {
        let patroni = self.standing(now).0.name();
        let body = format!("{{\"status\":\"ok\",\"patroni\":\"{patroni}\"}}\n");
        self.answer_admin(now, id, status::CONTENT_TYPE, body.as_bytes());
    }

    fn answer_admin(&mut self, now: Now, id: ConnId, content_type: &[u8], body: &[u8]) {
        let passed_on = PassedOn { content_type: Some(content_type.into()) };
        let fields = ResponseFields {
            passed_on: &passed_on,
            more: NOSNIFF,
            ..self.admin_fields(now, 200, body.len())
        };
        self.respond_admin(now, id, &fields, body);
    }

    fn answer_file(&mut self, now: Now, id: ConnId, request: Request, file: &File) {
        let passed_on = PassedOn { content_type: Some(file.content_type.into()) };
        let is_known = request.if_none_match == Some(file.tag);
        let fields = ResponseFields {
            passed_on: &passed_on,
            cache_control: file.cache_control,
            more: &format!("{}ETag: {}\r\n", page::FIELDS, file.tag),
            ..self.admin_fields(now, if is_known { 304 } else { 200 }, file.bytes.len())
        };
        self.respond_admin(now, id, &fields, if is_known { b"" } else { file.bytes });
    }

    fn admin_fields(&self, now: Now, status: u16, bytes: usize) -> ResponseFields<'static> {
        ResponseFields {
            status,
            date_unix_seconds: now.unix_ms / 1000,
            passed_on: &PassedOn::NONE,
            content_length: bytes,
            cached: None,
            allow: None,
            cache_control: NO_STORE,
            more: "",
            persistence: Persistence::Close,
        }
    }

    /// Responds to a request, without the body if it is HEAD.
    fn respond_admin(&mut self, now: Now, id: ConnId, fields: &ResponseFields<'_>, body: &[u8]) {
        let Some((frontend, request)) = self.waiting_client(id) else { return };
        let fields = ResponseFields { persistence: request.persistence, ..fields.clone() };
        let body = if request.method == Method::Head { b"" } else { body };
        frontend.respond(now.time, response(&fields, body));
        self.record(now, id, fields.status);
    }

    fn view(&self, now: Now, seconds: Vec<Second>) -> View<'_> {
        let mut entries: Vec<_> = self.cache.views(now).collect();
        for entry in entries.iter_mut().filter(|entry| entry.served != Served::Fresh) {
            if self.evidence(now, entry.id).is_some() {
                entry.served = Served::Stale;
            }
        }
        entries.sort_by(|one, other| other.per_second.total_cmp(&one.per_second));
        let (lease, witnessed_ms) = self.lease_view(now);
        View {
            now,
            stats: &self.stats,
            seconds,
            standing: self.standing(now),
            changes: self.journal.changes(),
            node: self.node.report().map(|report| (report, self.journal.role_since())),
            role_changes: self.journal.role_changes(),
            intervals: self.node.intervals(),
            lease,
            witnessed_ms,
            entries,
            clients: (self.clients[Port::Checks as usize], self.clients_max(Port::Checks)),
            fetches: (self.fetches.in_flight(), self.fetches.queued()),
            waiters: self.cache.waiters(),
            state: match self.phase {
                Phase::Starting | Phase::Serving if self.draining => State::Draining,
                Phase::Starting | Phase::Serving => State::Serving,
                Phase::ShuttingDown | Phase::Closing => State::Ending,
            },
            has_witness: self.witness.is_some(),
        }
    }

    /// Whether Patroni answers, and since when. It counts as silent as soon as stale answers are
    /// served, even before the first fetch times out.
    fn standing(&self, now: Now) -> (Standing, Time) {
        let PatroniState { standing, since, .. } = self.stats.patroni;
        match self.fetches.silent_at().filter(|at| *at <= now.time) {
            Some(at) if matches!(standing, Standing::Unknown | Standing::Answers) => {
                (Standing::Silent, Time::from_ms(at.as_ms().saturating_sub(PATIENCE_MS)))
            }
            _ => (standing, since),
        }
    }

    /// Until when a leader's 200 may be served stale: by grace or by the evidence of the DCS,
    /// whichever ends later; and how many milliseconds the latter alone allows.
    fn lease_view(&self, now: Now) -> (LeaseView, u64) {
        let (has_leaders, is_witnessed) = self.cache.leaders_in_memory();
        let evidence = self.node.leaders_evidence(now).filter(|_| is_witnessed);
        let witnessed_ms = evidence.map_or(0, |evidence| evidence.until.left_ms(now));
        let word_ms = self.cache.leader_stale_until(now).map_or(0, |until| until.left_ms(now));
        let known = [(word_ms, Source::Patroni), (witnessed_ms, Source::Dcs)];
        let lease = match known.into_iter().max_by_key(|(left_ms, _)| *left_ms) {
            Some((left_ms @ 1.., source)) => LeaseView::Sure { left_ms, source },
            _ => LeaseView::Not { why: self.why_not(now, has_leaders) },
        };
        (lease, witnessed_ms)
    }

    /// Why no leader's 200 may be served stale, in the order in which an operator asks.
    fn why_not(&self, now: Now, has_leaders: bool) -> String {
        let of_node = self.node.why_no_lease(now);
        if let Some(why @ (WhyNot::NoReport | WhyNot::NotLeader)) = of_node {
            return why.to_string();
        }
        let failure = self.stats.patroni.failure.map(|(failure, _)| failure);
        match failure.map(|failure| (failure.culprit(), failure)) {
            Some((Culprit::Gone | Culprit::Broken, failure)) => return failure.to_string(),
            _ if self.settings.cache.grace_ms == 0 && self.witness.is_none() => {
                return "grace is 0".to_owned();
            }
            _ => {}
        }
        if let Some(why) = of_node {
            return why.to_string();
        }
        if !has_leaders {
            return "no leader's 200 is in memory".to_owned();
        }
        match &self.journal.last_rehearsal() {
            Some(text) if self.witness.is_some() => format!("it has expired; dcs: {text}"),
            _ => "it has expired".to_owned(),
        }
    }
}

/// Maximum clients of the admin port, and of the agent port. They are separate from those of the
/// checks' port, so that its state can be seen when it is full.
pub const ADMIN_CLIENTS_MAX: usize = 64;
