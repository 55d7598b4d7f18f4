//! Connections to upstreams, from the engine's action until they are open.

use std::rc::Rc;

use log::warn;
use mio::net::TcpStream;
use mio::{Registry, Token};

use super::Daemon;
use super::connector::{Connected, Connector, Servers};
use super::resolver::Lookup;
use super::stream::Stream;
use super::stream_table::token_of;
use super::tls::{Session, TlsError};
use crate::config::{Backend, Config, DcsHost};
use crate::engine::{DCS_REQUEST_MS_MAX, UpstreamId};
use crate::failure::Failure;
use crate::fetch::Progress;
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// A connector for each upstream.
pub(super) struct Connectors {
    registry: Rc<Registry>,
    lookup: Lookup,
    patroni: Connector<Rc<Registry>>,
    /// `None` without `dcs`: its name is not resolved either.
    dcs: Option<Box<Connector<Rc<Registry>>>>,
}

impl Connectors {
    pub(super) fn new(config: &Config, registry: Registry, lookup: Lookup) -> Connectors {
        let registry = Rc::new(registry);
        let patroni = Connector::new(Servers::One, Rc::clone(&lookup), Rc::clone(&registry));
        let mut connectors = Connectors { registry, lookup, patroni, dcs: None };
        connectors.configure(config);
        connectors
    }

    pub(super) fn configure(&mut self, config: &Config) {
        let Backend { host, port, timeout_ms, .. } = &config.backend;
        self.patroni.configure([(host.as_str(), *port)], *timeout_ms);
        let Some(dcs) = &config.dcs else {
            self.dcs = None;
            return;
        };
        let connector = self.dcs.get_or_insert_with(|| {
            let (lookup, registry) = (Rc::clone(&self.lookup), Rc::clone(&self.registry));
            Box::new(Connector::new(Servers::Any, lookup, registry))
        });
        let hosts = dcs.hosts.iter().map(|DcsHost { host, port }| (host.as_str(), *port));
        connector.configure(hosts, DCS_REQUEST_MS_MAX);
    }

    pub(super) fn mark(&mut self, token: Token) {
        self.all().for_each(|connector| connector.mark(token));
    }

    pub(super) fn give_up(&mut self, id: ConnId) {
        self.all().for_each(|connector| connector.give_up(id));
    }

    pub(super) fn next_address(&mut self, upstream: UpstreamId) {
        if let Some(connector) = self.of(upstream) {
            connector.next_address();
        }
    }

    pub(super) fn next_deadline(&mut self) -> Option<Time> {
        self.all().filter_map(|connector| connector.next_deadline()).min()
    }

    fn are_connecting(&self) -> bool {
        self.patroni.is_connecting() || self.dcs.as_ref().is_some_and(|dcs| dcs.is_connecting())
    }

    fn of(&mut self, upstream: UpstreamId) -> Option<&mut Connector<Rc<Registry>>> {
        match upstream {
            UpstreamId::Patroni => Some(&mut self.patroni),
            UpstreamId::Dcs => self.dcs.as_deref_mut(),
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Connector<Rc<Registry>>> {
        std::iter::once(&mut self.patroni).chain(self.dcs.as_deref_mut())
    }
}

impl Daemon {
    pub(super) fn connect(&mut self, now: Now, id: ConnId, upstream: UpstreamId) {
        match self.connectors.of(upstream) {
            Some(connector) => connector.connect(now.time, id),
            None => return self.connect_failed(now, id, upstream, Failure::Unresolved),
        }
        self.advance(now, upstream);
    }

    /// Continues the connections that are being made, with new addresses if there are any.
    pub(super) fn continue_connecting(&mut self, now: Now) {
        if std::mem::take(&mut self.woken) {
            self.take_certificates(now);
            self.connectors.all().for_each(|connector| connector.take_addresses(now.time));
        }
        // most turns only serve hits
        if self.connectors.are_connecting() {
            self.advance(now, UpstreamId::Patroni);
            self.advance(now, UpstreamId::Dcs);
        }
        self.perform_actions(now);
    }

    /// The caller performs the actions: no recursion, however many fetches fail at once.
    fn advance(&mut self, now: Now, upstream: UpstreamId) {
        while let Some(connector) = self.connectors.of(upstream) {
            match connector.advance(now.time) {
                Some((id, Ok(connected))) => self.add_upstream(now, id, upstream, connected),
                Some((id, Err(why))) => self.connect_failed(now, id, upstream, why),
                None => return,
            }
        }
    }

    fn add_upstream(
        &mut self,
        now: Now,
        id: ConnId,
        upstream: UpstreamId,
        connected: Connected<TcpStream>,
    ) {
        let tls = match upstream {
            UpstreamId::Patroni => &mut self.tls.client,
            UpstreamId::Dcs => &mut self.tls.dcs,
        };
        if let Some(tls) = tls {
            tls.forget_old_sessions(now.time);
        }
        let session = tls.as_ref().map(|tls| Session::client(tls, &connected.host)).transpose();
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                self.log_upstream_tls_error(now, upstream, &error);
                return self.connect_failed(now, id, upstream, error.failure);
            }
        };
        let mut stream = Stream::connected(connected.socket, session, upstream);
        // the connector has seen the events so far: bytes or an end may be among them
        if stream.reregister(self.poll.registry(), token_of(id)).is_err() {
            return self.connect_failed(now, id, upstream, Failure::NoDescriptor);
        }
        let progress = stream.progress();
        self.streams.insert(id, stream);
        self.engine.connected_to(id, connected.address);
        self.engine.progress(id, progress);
        self.enqueue(id);
    }

    /// If a fetch's TLS handshake has just completed, reports it to the engine. Returns whether it
    /// has.
    pub(super) fn report_opened(&mut self, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        if !stream.has_just_opened() {
            return false;
        }
        let (upstream, handshake) = (stream.upstream(), stream.handshake());
        if let Some(handshake) = handshake.filter(|_| upstream != Some(UpstreamId::Dcs)) {
            self.engine.handshake_ended(id, handshake);
        }
        if upstream.is_some() {
            self.engine.progress(id, Progress::Open);
        }
        upstream.is_some()
    }

    pub(super) fn log_upstream_tls_error(
        &mut self,
        now: Now,
        upstream: UpstreamId,
        error: &TlsError,
    ) {
        let (failures, section) = match upstream {
            UpstreamId::Patroni => (&mut self.patroni_tls_failures, "backend."),
            UpstreamId::Dcs => (&mut self.dcs_tls_failures, "dcs."),
        };
        if let Some(times) = failures.count(now.time) {
            // the texts are written for Patroni
            let text = error.to_string().replace("backend.", section);
            let text = text.replace("Patroni", name_of(upstream));
            warn!("TLS with {} failed: {text} ({times} times)", name_of(upstream));
        }
    }

    fn connect_failed(&mut self, now: Now, id: ConnId, upstream: UpstreamId, why: Failure) {
        if why == Failure::NoDescriptor && self.engine.make_room(now) {
            let name = name_of(upstream);
            warn!("no descriptor for a connection to {name}: closed an idle client");
        }
        self.engine.connect_failed(now, id, why);
    }
}

/// The upstream's name in log lines.
pub(super) fn name_of(upstream: UpstreamId) -> &'static str {
    match upstream {
        UpstreamId::Patroni => "Patroni",
        UpstreamId::Dcs => "the DCS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::Poll;
    use std::cell::RefCell;

    const ID: ConnId = ConnId { slot: 1, generation: 1 };

    #[test]
    fn without_dcs_nothing_is_resolved_or_connected() {
        let poll = Poll::new().expect("a poll");
        let registry = poll.registry().try_clone().expect("a registry");
        let asked = Rc::new(RefCell::new(Vec::new()));
        let lookup = {
            let asked = Rc::clone(&asked);
            Rc::new(move |host, _, _| {
                asked.borrow_mut().push(host);
                true
            })
        };
        let mut config = Config::from_yaml("backend: {host: pg1}").expect("a configuration");
        let mut connectors = Connectors::new(&config, registry, lookup);
        connectors.next_address(UpstreamId::Dcs);
        assert!(connectors.of(UpstreamId::Dcs).is_none());
        assert_eq!(*asked.borrow(), ["pg1"]);

        // a reload adds it, changes it and removes it
        let dcs = |hosts| {
            let text = format!("dcs: {{type: etcd3, hosts: \"{hosts}\"}}");
            Config::from_yaml(&text).expect("a configuration").dcs
        };
        config.dcs = dcs("e1, e2");
        connectors.configure(&config);
        assert_eq!(asked.borrow()[1..], ["e1", "e2"]);
        config.dcs = dcs("e1, e3");
        connectors.configure(&config);
        let dcs = connectors.of(UpstreamId::Dcs).expect("a connector");
        dcs.connect(Time::ZERO, ID);
        assert!(dcs.advance(Time::ZERO).is_none(), "the names are being resolved");
        config.dcs = None;
        connectors.configure(&config);
        connectors.give_up(ID);
        assert!(connectors.of(UpstreamId::Dcs).is_none());
    }
}
