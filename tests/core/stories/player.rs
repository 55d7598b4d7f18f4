//! Plays a story: carries out its events and compares its expectations with the outcome.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::script::{Detail, Expectation, Step, Story, count};
use super::world::{Seen, World};

/// Plays the story. The error is the line that failed, and the actual outcome.
pub fn play(story: &Story, piece_bytes: usize) -> Result<(), (usize, String)> {
    let line = Cell::new(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut player =
            Player { world: World::new(&story.settings, piece_bytes), groups: BTreeMap::new() };
        for step in story.lines.iter().flat_map(|line| line.steps.iter().map(move |s| (line, s))) {
            line.set(step.0.number);
            player.step(step.1)?;
        }
        player.no_unexpected_event()?;
        player.world.end()
    }));
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err((line.get(), why)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            Err((line.get(), format!("panicked: {}", text.unwrap_or("without a message"))))
        }
    }
}

struct Player {
    world: World,
    /// Names of groups of clients.
    groups: BTreeMap<String, Vec<String>>,
}

type Outcome = Result<(), String>;

impl Player {
    fn step(&mut self, step: &Step) -> Outcome {
        if let Step::Expect(expectation) = step {
            return self.expect(expectation);
        }
        self.no_unexpected_event()?;
        match step {
            Step::Connect { client, count } => {
                if let Some(count) = count {
                    let members = (1..=*count).map(|number| format!("{client}{number}"));
                    self.groups.insert(client.clone(), members.collect());
                }
                self.each(client, |world, name| world.connect(name))
            }
            Step::Send { client, bytes, every_ms: None } => {
                self.each(client, |world, name| world.send(name, bytes))
            }
            Step::Send { client, bytes, every_ms: Some(ms) } => {
                self.drip(bytes, *ms, |world, byte| world.send(client, byte))
            }
            Step::SendLate { client, bytes } => self.world.send_late(client, bytes),
            Step::HalfClose(client) => self.each(client, World::half_close),
            Step::HalfCloseSeen(client) => self.each(client, World::half_close_seen),
            Step::Reset(client) => self.each(client, World::reset),
            Step::Take(client, read_limit) => {
                self.each(client, |world, name| world.take(name, *read_limit))
            }
            Step::Pass(ms) => self.world.pass(*ms),
            Step::MakeRoom => self.world.make_room(),
            Step::Start => self.world.start(),
            Step::JumpMs(ms) => {
                self.world.jump(*ms);
                Ok(())
            }
            Step::Drain(draining) => {
                self.world.drain(*draining);
                Ok(())
            }
            Step::Configure(text) => self.world.configure(text),
            step => self.patroni_step(step),
        }
    }

    /// A step of Patroni or of the DCS.
    fn patroni_step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Connects(connects) => {
                self.world.connects = *connects;
                Ok(())
            }
            Step::AcceptWaiting => self.world.accept_waiting(),
            Step::PatroniMoves(address) => {
                self.world.patroni_address = *address;
                Ok(())
            }
            Step::PatroniClock(ms) => {
                self.world.patroni_ahead_ms = *ms;
                Ok(())
            }
            Step::PatroniSends { target, bytes, every_ms } => {
                let fetch = self.fetch(target)?;
                match every_ms {
                    None => self.world.patroni_sends(fetch, &self.world.with_time(bytes)),
                    Some(ms) => {
                        self.drip(bytes, *ms, |world, byte| world.patroni_sends(fetch, byte))
                    }
                }
            }
            Step::Dcs(words) => self.world.set_dcs(words),
            Step::PatroniAnswers { target, bytes } => {
                let fetch = self.fetch(target)?;
                self.world.patroni_answers(fetch, &self.world.with_time(bytes))
            }
            Step::PatroniEnds(target) => {
                let fetch = self.fetch(target)?;
                self.world.patroni_ends(fetch)
            }
            Step::PatroniResets(target) => {
                let fetch = self.fetch(target)?;
                self.world.patroni_resets(fetch)
            }
            _ => Ok(()),
        }
    }

    fn expect(&mut self, expectation: &Expectation) -> Outcome {
        match expectation {
            Expectation::Asked(target) => match self.world.asked.pop_front() {
                Some(asked) if asked == *target => Ok(()),
                Some(asked) => Err(format!("Patroni was asked for {asked}")),
                None => Err("Patroni was not asked".into()),
            },
            Expectation::Tried(times) => match std::mem::take(&mut self.world.tried) {
                tried if tried == *times => Ok(()),
                tried => Err(format!("Patroni was tried {tried} times")),
            },
            Expectation::ConnectionClosed(target) => {
                match self.world.connections_closed.pop_front() {
                    Some(closed) if closed == *target => Ok(()),
                    Some(closed) => Err(format!("it was the connection for {closed}")),
                    None => Err("no connection was closed".into()),
                }
            }
            Expectation::GivenUp => {
                let left = self.world.given_up.checked_sub(1);
                self.world.given_up = left.ok_or("no connection was given up")?;
                Ok(())
            }
            Expectation::Counts(wanted) => self.expect_counts(wanted),
            Expectation::DcsAsked(expected) => {
                let etcd = &mut self.world.etcd;
                let asked = etcd.requests_ms.len()
                    > std::mem::replace(&mut etcd.expected, etcd.requests_ms.len());
                if asked == *expected { Ok(()) } else { Err(format!("the dcs was asked: {asked}")) }
            }
            Expectation::Nothing => self.no_unexpected_event(),
            Expectation::Gets { client, times, .. } => (0..*times).try_for_each(|_| {
                self.each(client, |world, name| expect_seen(world, name, expectation))
            }),
            Expectation::GetsExactly { client, .. }
            | Expectation::HalfClosed(client)
            | Expectation::Closed { client, .. }
            | Expectation::TurnedAway(client) => {
                self.each(client, |world, name| expect_seen(world, name, expectation))
            }
        }
    }

    fn expect_counts(&self, wanted: &[(usize, String)]) -> Outcome {
        let counts = self.world.counts();
        for (number, what) in wanted {
            let is = count(&counts, what).unwrap_or_default();
            if is != *number {
                return Err(format!("there are {is} {what}"));
            }
        }
        Ok(())
    }

    fn each(&mut self, client: &str, mut deed: impl FnMut(&mut World, &str) -> Outcome) -> Outcome {
        match self.groups.get(client) {
            None => deed(&mut self.world, client),
            Some(names) => names.iter().try_for_each(|name| deed(&mut self.world, name)),
        }
    }

    /// One byte, then another after `ms`.
    fn drip(
        &mut self,
        bytes: &[u8],
        ms: u64,
        mut deed: impl FnMut(&mut World, &[u8]) -> Outcome,
    ) -> Outcome {
        for (at, byte) in bytes.iter().enumerate() {
            if at > 0 {
                self.world.pass(ms)?;
            }
            deed(&mut self.world, &[*byte])?;
        }
        Ok(())
    }

    /// The last fetch of `target`, which may have ended without Patroni's notice.
    fn fetch(&self, target: &str) -> Result<usize, String> {
        let of_target = |fetch: &super::world::Fetch| fetch.target.as_deref() == Some(target);
        let fetches = &self.world.fetches;
        let found = fetches.iter().rposition(of_target);
        found.ok_or_else(|| format!("Patroni was never asked for {target}"))
    }

    /// An outcome that the story does not expect makes it fail.
    fn no_unexpected_event(&self) -> Outcome {
        let world = &self.world;
        for (name, client) in &world.clients {
            if let Some(seen) = client.seen.front() {
                return Err(format!("and {}", said_of(name, seen)));
            }
        }
        if let Some(target) = world.asked.front() {
            return Err(format!("and Patroni was asked for {target}"));
        }
        if let Some(target) = world.connections_closed.front() {
            return Err(format!("and the connection for {target} was closed"));
        }
        match (world.tried, world.given_up) {
            (0, 0) => Ok(()),
            (0, count) => Err(format!("and {count} connections were given up")),
            (count, _) => Err(format!("and Patroni was tried {count} times")),
        }
    }
}

fn expect_seen(world: &mut World, name: &str, expectation: &Expectation) -> Outcome {
    let seen = world.client(name)?.seen.pop_front();
    let seen = seen.ok_or_else(|| format!("nothing happened to {name}"))?;
    match (expectation, &seen) {
        (Expectation::Gets { status, details, .. }, Seen::Answer(bytes)) => {
            let answer = Answer::parse(bytes)?;
            if answer.status != *status {
                return Err(format!("{name} got {}: {}", answer.status, said(bytes)));
            }
            details.iter().try_for_each(|detail| answer.check(detail))
        }
        (Expectation::GetsExactly { bytes, .. }, Seen::Answer(got)) if bytes == got => Ok(()),
        (Expectation::GetsExactly { .. }, Seen::Answer(got)) => {
            Err(format!("{name} got {:?}", String::from_utf8_lossy(got)))
        }
        (Expectation::HalfClosed(_), Seen::HalfClosed)
        | (Expectation::TurnedAway(_), Seen::TurnedAway) => Ok(()),
        (Expectation::Closed { how, .. }, Seen::Closed(was)) if how == was => Ok(()),
        _ => Err(format!("but {}", said_of(name, &seen))),
    }
}

/// An answer as a client parses it.
struct Answer<'a> {
    status: u16,
    fields: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Parses a complete answer, and checks the conditions on every answer.
    fn parse(bytes: &'a [u8]) -> Result<Answer<'a>, String> {
        let wrong = || format!("this is not an answer: {}", said(bytes));
        let head_bytes = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(wrong)?;
        let head = std::str::from_utf8(&bytes[..head_bytes]).map_err(|_| wrong())?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let (status, reason) = status.and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
        let fields: Option<Vec<_>> = lines.map(|line| line.split_once(": ")).collect();
        let answer = Answer {
            status: status.parse().map_err(|_| wrong())?,
            fields: fields.ok_or_else(wrong)?,
            body: &bytes[head_bytes + 4..],
        };
        let length = answer.field("Content-Length").and_then(|length| length.parse().ok());
        let framed = length.is_some() != (answer.status == 204);
        let whole = answer.body.is_empty() || length == Some(answer.body.len());
        let safe = answer.field("Cache-Control") == Some("no-store");
        let dated = answer.field("Date").is_some_and(|date| date.ends_with(" GMT"));
        let named = answer.status < 400 || !reason.is_empty();
        if framed && whole && safe && dated && named { Ok(answer) } else { Err(wrong()) }
    }

    fn check(&self, detail: &Detail) -> Outcome {
        match detail {
            Detail::Field(name, value) => match self.field(name) {
                Some(is) if is == value => Ok(()),
                Some(is) => Err(format!("it is {name}: {is}")),
                None => Err(format!("there is no {name}")),
            },
            Detail::NoField(name) => match self.field(name) {
                None => Ok(()),
                Some(is) => Err(format!("there is {name}: {is}")),
            },
            Detail::Body(body) if body == self.body => Ok(()),
            Detail::Body(body) if body.len() != self.body.len() => {
                Err(format!("the body is {} bytes: {}", self.body.len(), said(self.body)))
            }
            Detail::Body(_) => Err(format!("the body is {}", said(self.body))),
        }
    }

    /// The value of the field of this name; a second such field is an error.
    fn field(&self, name: &str) -> Option<&'a str> {
        let mut values = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next()?.1;
        if values.next().is_some() { Some("two of them") } else { Some(value) }
    }
}

fn said_of(name: &str, seen: &Seen) -> String {
    match seen {
        Seen::Answer(bytes) => match Answer::parse(bytes) {
            Ok(answer) => format!("{name} has a {}: {}", answer.status, said(bytes)),
            Err(_) => format!("{name} has {}", said(bytes)),
        },
        Seen::HalfClosed => format!("{name} was half-closed"),
        Seen::Closed(how) => format!("{name} was closed ({how:?})"),
        Seen::TurnedAway => format!("{name} was turned away"),
    }
}

/// The beginning of some bytes, for a message.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SAID_BYTES_MAX)]).into_owned();
    text.replace("\r\n", " | ")
}

const SAID_BYTES_MAX: usize = 400;
