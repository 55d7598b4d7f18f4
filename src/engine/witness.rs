//! Reads of the DCS for the lease witness: when one begins, and what its outcome changes.
//!
//! A read begins when a check waits for a silent Patroni, and then once a second while clients ask
//! and Patroni stays silent. A rehearsal at the start and every minute shows a wrong password or
//! address before it matters. At most one read runs at a time, and at most two requests begin per
//! second.

use super::{Action, Connection, Engine, Peer, Timer, UpstreamId};
use crate::answer::{Answer, CacheStatus};
use crate::cache::EntryId;
use crate::failure::Failure;
use crate::fetch::{Expected, Fetch, Purpose};
use crate::node::witness::{
    Access, Outcome, Read, ReadFailure, Settings as WitnessSettings, Step, Why,
};
use crate::slots::ConnId;
use crate::stats::WitnessRead;
use crate::time::{Now, Time};

/// The settings of the DCS as an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DcsSettings {
    /// How its keys are read.
    pub witness: WitnessSettings,
    /// The name or address for `Host`.
    pub host: Box<str>,
    /// The number of hosts.
    pub hosts: usize,
}

/// The state of the reads.
#[derive(Debug)]
pub(super) struct Witness {
    access: Access,
    reading: Option<Reading>,
    /// When the last two requests began.
    requests: [Option<Time>; 2],
    /// When the last read began.
    read_at: Option<Time>,
    rehearsal_at: Time,
}

/// The read in progress.
#[derive(Debug)]
struct Reading {
    read: Read,
    /// `None`: the next request may not begin yet.
    fetch: Option<ConnId>,
    /// Whether its first request has begun.
    has_asked: bool,
    hosts_left: usize,
    is_rehearsal: bool,
}

impl Witness {
    pub(super) fn new(settings: &DcsSettings) -> Self {
        Witness {
            access: Access::new(settings.witness.clone()),
            reading: None,
            requests: [None; 2],
            read_at: None,
            rehearsal_at: Time::ZERO,
        }
    }

    /// When the next request may begin.
    fn next_request_at(&self) -> Time {
        self.requests[0].map_or(Time::ZERO, |at| at.plus_ms(REQUESTS_MS))
    }
}

impl Engine {
    /// Begins a read if it is due: Patroni is silent, and a client waits or gets a stale answer.
    pub(super) fn call_witness(&mut self, now: Now, entry: EntryId) {
        if self.witness.is_none() || !self.cache.is_witnessed(entry) {
            return;
        }
        if self.evidence(now, entry).is_none() {
            self.journal.witness_ended(now.time, "the evidence is over");
        }
        let Some(witness) = &self.witness else { return };
        let is_due = witness.read_at.is_none_or(|at| now.time.ms_since(at) >= READ_MS);
        if is_due && !self.is_shutting_down() {
            self.begin_read(now, false);
        }
    }

    /// Begins a rehearsal if it is due. Before the node's first report there is nothing to ask for.
    pub(super) fn rehearse(&mut self, now: Now) {
        let Some(witness) = &self.witness else { return };
        let is_due = now.time >= witness.rehearsal_at && witness.reading.is_none();
        if !is_due || self.node.report().is_none() || self.is_shutting_down() {
            return;
        }
        let Some(witness) = &mut self.witness else { return };
        witness.rehearsal_at = now.time.plus_ms(REHEARSAL_MS);
        self.wheel.schedule(now.time.plus_ms(REHEARSAL_MS), Timer::Rehearsal);
        self.begin_read(now, true);
    }

    fn begin_read(&mut self, now: Now, is_rehearsal: bool) {
        let (Some(witness), Some(dcs)) = (&mut self.witness, &self.settings.dcs) else { return };
        if witness.reading.is_some() {
            return;
        }
        let subject = match self.node.witness_subject() {
            Ok(subject) => subject,
            Err(why) if is_rehearsal => {
                return self.journal.rehearsed(now.time, &Outcome::Nothing(why));
            }
            Err(_) => return,
        };
        witness.read_at = Some(now.time);
        let read = Read::begin(now, subject, &witness.access);
        let hosts_left = dcs.hosts;
        witness.reading =
            Some(Reading { read, fetch: None, has_asked: false, hosts_left, is_rehearsal });
        self.continue_read(now);
    }

    /// Sends the next request of the read, or schedules it. A read whose first request had to wait
    /// is about what Patroni said last.
    pub(super) fn continue_read(&mut self, now: Now) {
        let (Some(witness), Some(dcs)) = (&mut self.witness, &self.settings.dcs) else { return };
        let next_at = witness.next_request_at();
        let Some(reading) = witness.reading.as_mut().filter(|reading| reading.fetch.is_none())
        else {
            return;
        };
        if next_at > now.time {
            return self.wheel.schedule(next_at, Timer::NextRead);
        }
        if !std::mem::replace(&mut reading.has_asked, true)
            && let Ok(subject) = self.node.witness_subject()
        {
            reading.read = Read::begin(now, subject, &witness.access);
        }
        let request = reading.read.request(&witness.access, &dcs.host);
        let expected = Expected { body_bytes_max: ANSWER_BYTES_MAX, bodyless: false };
        let deadline = now.time.plus_ms(DCS_REQUEST_MS_MAX);
        let mut fetch = Fetch::new(now.time, Purpose::Dcs, expected, request, deadline);
        fetch.connect(now.time);
        let peer = Peer::Upstream(Box::new(fetch));
        let id = self.connections.insert(Connection { peer, scheduled: Time::NEVER });
        reading.fetch = Some(id);
        witness.requests = [witness.requests[1], Some(now.time)];
        self.unscheduled.push(id);
        self.actions.push_back(Action::Connect(id, UpstreamId::Dcs));
    }

    /// A request of the read has ended; its connection is already forgotten.
    pub(super) fn read_step(&mut self, now: Now, id: ConnId, outcome: Result<Answer, Failure>) {
        self.actions.push_back(Action::Close(id));
        self.observe_clock(now);
        let Some(witness) = &mut self.witness else { return };
        let Some(reading) = witness.reading.as_mut().filter(|reading| reading.fetch == Some(id))
        else {
            return; // the read was dropped
        };
        reading.fetch = None;
        let step = match outcome {
            Ok(answer) => reading.read.answered(&mut witness.access, answer.status, &answer.body),
            Err(failure) => Step::NextHost(ReadFailure::Unreached(failure)),
        };
        match step {
            Step::Ask => self.continue_read(now),
            Step::NextHost(failure) => {
                reading.hosts_left = reading.hosts_left.saturating_sub(1);
                let is_last = reading.hosts_left == 0;
                self.actions.push_back(Action::NextAddress(UpstreamId::Dcs));
                if is_last {
                    self.end_read(now, failure.outcome());
                } else {
                    self.continue_read(now);
                }
            }
            Step::Done(outcome) => self.end_read(now, outcome),
        }
    }

    fn end_read(&mut self, now: Now, outcome: Outcome) {
        let reading = self.witness.as_mut().and_then(|witness| witness.reading.take());
        let Some(reading) = reading else { return };
        self.stats.witness_read(match outcome {
            Outcome::Evidence(_) => WitnessRead::Evidence,
            Outcome::Contradiction(_) => WitnessRead::Contradiction,
            Outcome::Nothing(Why::Failed(_)) => WitnessRead::Failed,
            Outcome::Nothing(_) => WitnessRead::Nothing,
        });
        if reading.is_rehearsal {
            self.journal.rehearsed(now.time, &outcome);
        }
        if self.node.witness_subject().as_ref() != Ok(reading.read.subject()) {
            return; // Patroni has said something else since
        }
        if let Some(distrust) = self.node.testify(now.time, &outcome, reading.is_rehearsal) {
            if let Outcome::Contradiction(why) = &outcome {
                self.journal.witness_ended(now.time, &why.to_string());
            }
            self.distrust(now, distrust);
        }
        for entry in self.cache.awaited() {
            if self.serves_stale(now, entry) {
                let waiters = self.cache.take_waiters(entry);
                self.answer_waiters(now, entry, waiters, [CacheStatus::Stale; 2]);
            }
        }
    }

    /// Drops a read whose subject is no longer what Patroni says.
    pub(super) fn drop_read(&mut self) {
        let Some(witness) = &mut self.witness else { return };
        let Some(Reading { fetch: Some(id), .. }) = witness.reading.take() else { return };
        if self.connections.remove(id).is_some() {
            self.actions.push_back(Action::Close(id));
        }
    }
}

/// While Patroni is silent, a read begins at most this often.
const READ_MS: u64 = 1_000;
/// The interval of rehearsals.
const REHEARSAL_MS: u64 = 60_000;
/// The time of one request; then the next host is asked.
pub const DCS_REQUEST_MS_MAX: u64 = 1_000;
/// At most two requests begin in this time.
const REQUESTS_MS: u64 = 1_000;
/// Maximum bytes of an answer: four keys, of which etcd takes at most 1.5 MiB each by default; a
/// member's key and the configuration have a few KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
