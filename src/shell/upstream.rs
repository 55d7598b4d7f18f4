//! Connections to upstreams, from the engine's action until they are open.

use std::sync::Arc;

use log::warn;
use mio::Waker;
use mio::net::TcpStream;

use super::Daemon;
use super::connector::{Attempted, Connector};
use super::resolver::Resolver;
use super::stream::Stream;
use super::stream_table::token_of;
use super::tls::Session;
use crate::config::{Backend, Config};
use crate::engine::UpstreamId;
use crate::failure::Failure;
use crate::fetch::Progress;
use crate::slots::ConnId;
use crate::time::Now;

/// A connector for each upstream.
pub(super) struct Connectors {
    patroni: Connector,
}

impl Connectors {
    pub(super) fn new(config: &Config, waker: Arc<Waker>) -> Connectors {
        let Backend { host, port, .. } = &config.backend;
        Connectors { patroni: Connector::new(Resolver::new(host, *port, waker)) }
    }

    pub(super) fn configure(&mut self, config: &Config) {
        self.patroni.set_host(&config.backend.host, config.backend.port);
    }

    pub(super) fn give_up(&mut self, id: ConnId) {
        for upstream in UPSTREAMS {
            self.of(upstream).give_up(id);
        }
    }

    fn of(&mut self, upstream: UpstreamId) -> &mut Connector {
        match upstream {
            UpstreamId::Patroni => &mut self.patroni,
        }
    }
}

impl Daemon {
    pub(super) fn connect(&mut self, now: Now, id: ConnId, upstream: UpstreamId) {
        let progress = self.connectors.of(upstream).connect(id);
        self.handle_attempted(now, id, upstream, progress);
    }

    fn handle_attempted(
        &mut self,
        now: Now,
        id: ConnId,
        upstream: UpstreamId,
        progress: Attempted,
    ) {
        match progress {
            Attempted::Connecting(socket) => self.add_connecting(now, id, upstream, socket),
            Attempted::Resolving => {}
            Attempted::Failed(why) => self.connect_failed(now, id, why),
        }
    }

    fn add_connecting(&mut self, now: Now, id: ConnId, upstream: UpstreamId, socket: TcpStream) {
        if let Some(client) = &mut self.tls.client {
            client.forget_old_sessions(now.time);
        }
        let session = self.tls.client.as_ref().map(Session::client).transpose();
        let mut stream = match session {
            Ok(session) => Stream::connecting(socket, session, upstream),
            Err(error) => {
                self.log_tls_error(now, id, &error);
                return self.connect_failed(now, id, error.failure);
            }
        };
        let registered = stream.register(self.poll.registry(), token_of(id));
        self.streams.insert(id, stream);
        if registered.is_err() {
            self.streams.remove(id);
            self.connect_failed(now, id, Failure::NoDescriptor);
        }
    }

    pub(super) fn check_connect(&mut self, now: Now, id: ConnId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let Some(upstream) = stream.upstream() else { return };
        let connector = self.connectors.of(upstream);
        match stream.connect_outcome() {
            None => {}
            Some(Ok(progress)) => {
                connector.connected(id);
                self.engine.progress(id, progress);
            }
            Some(Err(why)) => {
                let progress = connector.try_next(id, why);
                self.streams.remove(id);
                self.handle_attempted(now, id, upstream, progress);
                self.perform_actions(now);
            }
        }
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

    pub(super) fn connect_failed(&mut self, now: Now, id: ConnId, why: Failure) {
        if why == Failure::NoDescriptor && self.engine.make_room(now) {
            warn!("no descriptor for a connection to Patroni: closed an idle client");
        }
        // the caller performs the actions: no recursion, however many fetches fail at once
        self.engine.connect_failed(now, id, why);
    }

    pub(super) fn use_addresses(&mut self, now: Now) {
        if !std::mem::take(&mut self.resolved) {
            return;
        }
        for upstream in UPSTREAMS {
            for id in self.connectors.of(upstream).use_addresses() {
                let progress = self.connectors.of(upstream).resume(id);
                self.handle_attempted(now, id, upstream, progress);
            }
        }
        self.perform_actions(now);
    }
}

const UPSTREAMS: [UpstreamId; 1] = [UpstreamId::Patroni];
