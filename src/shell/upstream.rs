//! Connections to upstreams, from the engine's action until they are open.

use std::sync::Arc;

use log::warn;
use mio::net::TcpStream;
use mio::{Registry, Token, Waker};

use super::Daemon;
use super::connector::{Connected, Connector};
use super::resolver::{Resolver, lookup_in_thread};
use super::stream::Stream;
use super::stream_table::token_of;
use super::tls::Session;
use crate::config::{Backend, Config};
use crate::engine::UpstreamId;
use crate::failure::Failure;
use crate::fetch::Progress;
use crate::slots::ConnId;
use crate::time::{Now, Time};

/// A connector for each upstream.
pub(super) struct Connectors {
    patroni: Connector<Registry>,
}

impl Connectors {
    pub(super) fn new(config: &Config, registry: Registry, waker: Waker) -> Connectors {
        let Backend { host, port, timeout_ms, .. } = &config.backend;
        let resolver = Resolver::new(host, *port, lookup_in_thread(Arc::new(waker)));
        Connectors { patroni: Connector::new(resolver, registry, *timeout_ms) }
    }

    pub(super) fn configure(&mut self, config: &Config) {
        let Backend { host, port, timeout_ms, .. } = &config.backend;
        self.patroni.configure(host, *port, *timeout_ms);
    }

    pub(super) fn mark(&mut self, token: Token) {
        for upstream in UPSTREAMS {
            self.of(upstream).mark(token);
        }
    }

    pub(super) fn give_up(&mut self, id: ConnId) {
        for upstream in UPSTREAMS {
            self.of(upstream).give_up(id);
        }
    }

    pub(super) fn next_deadline(&mut self) -> Option<Time> {
        UPSTREAMS.iter().filter_map(|upstream| self.of(*upstream).next_deadline()).min()
    }

    fn of(&mut self, upstream: UpstreamId) -> &mut Connector<Registry> {
        match upstream {
            UpstreamId::Patroni | UpstreamId::Dcs => &mut self.patroni,
        }
    }
}

impl Daemon {
    pub(super) fn connect(&mut self, now: Now, id: ConnId, upstream: UpstreamId) {
        self.connectors.of(upstream).connect(now.time, id);
        self.advance(now, upstream);
    }

    /// Continues the connections that are being made, with new addresses if there are any.
    pub(super) fn continue_connecting(&mut self, now: Now) {
        let resolved = std::mem::take(&mut self.resolved);
        for upstream in UPSTREAMS {
            if resolved {
                self.connectors.of(upstream).take_addresses(now.time);
            }
            self.advance(now, upstream);
        }
        self.perform_actions(now);
    }

    /// The caller performs the actions: no recursion, however many fetches fail at once.
    fn advance(&mut self, now: Now, upstream: UpstreamId) {
        while let Some((id, outcome)) = self.connectors.of(upstream).advance(now.time) {
            match outcome {
                Ok(connected) => self.add_upstream(now, id, upstream, connected),
                Err(why) => self.connect_failed(now, id, why),
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
        if let Some(client) = &mut self.tls.client {
            client.forget_old_sessions(now.time);
        }
        let session = match self.tls.client.as_ref().map(Session::client).transpose() {
            Ok(session) => session,
            Err(error) => {
                self.log_tls_error(now, id, &error);
                return self.connect_failed(now, id, error.failure);
            }
        };
        let mut stream = Stream::connected(connected.socket, session, upstream);
        // the connector has seen the events so far: bytes or an end may be among them
        if stream.reregister(self.poll.registry(), token_of(id)).is_err() {
            return self.connect_failed(now, id, Failure::NoDescriptor);
        }
        let progress = stream.progress();
        self.streams.insert(id, stream);
        self.engine.connected_to(id, connected.address);
        self.engine.progress(id, progress);
        self.enqueue(id);
    }

    /// Reports to the engine that a fetch's TLS handshake has completed. Returns whether it has
    /// just now.
    pub(super) fn report_opened(&mut self, id: ConnId) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        let opened = stream.has_just_opened() && stream.is_upstream();
        if opened {
            self.engine.progress(id, Progress::Open);
        }
        opened
    }

    fn connect_failed(&mut self, now: Now, id: ConnId, why: Failure) {
        if why == Failure::NoDescriptor && self.engine.make_room(now) {
            warn!("no descriptor for a connection to Patroni: closed an idle client");
        }
        self.engine.connect_failed(now, id, why);
    }
}

const UPSTREAMS: [UpstreamId; 1] = [UpstreamId::Patroni];
