//! The operator's requests: signals, reload, drain, shutdown.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use log::{Level, info, warn};

use super::files::Loaded;
use super::listener::{BoundTo, Listener};
use super::reports::client_tls;
use super::signals::Event as SignalEvent;
use super::{Daemon, Phase, descriptors, files, sockets, token_of_port};
use crate::VERSION;
use crate::admin::ClientTls;
use crate::cache::CacheSettings;
use crate::changes::Kind;
use crate::config::{Config, DCS_MARGIN_MS_MAX, Dcs, DcsHost, Password};
use crate::engine::{DcsSettings, Port, Settings};
use crate::node::witness::rule::MARGIN_MS_MAX;
use crate::node::witness::{Credentials, Settings as WitnessSettings};
use crate::time::Now;

impl Daemon {
    pub(super) fn handle_signals(&mut self, now: Now) {
        if !std::mem::take(&mut self.signalled) {
            return;
        }
        let Some(signals) = &mut self.signals else { return };
        let events: Vec<SignalEvent> = signals.pending().collect();
        for event in events {
            match event {
                SignalEvent::Shutdown => self.begin_shutdown(now),
                SignalEvent::Reload => self.handle_reload(now),
                SignalEvent::Drain(draining) => {
                    let text = if draining { "draining" } else { "no longer draining" };
                    self.engine.log_change(now, Level::Info, Kind::Drain, text);
                    self.engine.drain(draining);
                }
            }
        }
    }

    fn begin_shutdown(&mut self, now: Now) {
        if self.phase == Phase::ShuttingDown {
            info!("shutting down at once");
            self.engine.begin_shutdown(now);
            return self.perform_actions(now);
        }
        self.phase = Phase::ShuttingDown;
        // connections in the backlog may already have sent a request: accept them before closing
        (0..self.listeners.len()).for_each(|place| self.accept_backlog(now, place));
        let line = format!("shutting down: {} clients left", self.engine.counts().clients);
        self.engine.log_change(now, Level::Info, Kind::Start, &line);
        self.supervisor.stopping(&line);
        for listener in self.listeners.drain(..) {
            listener.close(self.poll.registry());
        }
        self.engine.begin_shutdown(now);
        self.perform_actions(now);
    }

    fn handle_reload(&mut self, now: Now) {
        info!("status: {}", self.engine.counts());
        let Some(path) = self.options.config_file.clone() else { return };
        if self.phase == Phase::ShuttingDown {
            return; // what listens next is another process
        }
        self.supervisor.reloading(now.time);
        let outcome = self.reload(now, &path);
        let line = match &outcome {
            Ok(()) => format!("reloaded {}", path.display()),
            Err(error) => format!("not reloaded: {error}"),
        };
        self.reports.is_reloaded = outcome.is_ok();
        let level = if outcome.is_ok() { Level::Info } else { Level::Error };
        self.engine.log_change(now, level, Kind::Reload, &line);
        self.supervisor.ready(&line);
    }

    fn reload(&mut self, now: Now, path: &Path) -> Result<(), String> {
        let loaded = files::read_config(path)?;
        // the last step that can fail: until then nothing has changed
        self.listen_as_configured(now, &loaded.config)?;
        defer_accept(&self.listeners, &loaded.config);
        loaded.log_warnings();
        let Loaded { config, tls } = loaded;
        self.connectors.configure(&config);
        let settings = engine_settings(&config, self.options.verbose);
        // set first: fetches that are restarted use the new certificates
        self.certificates.watch(&config, &tls);
        (self.config, self.tls) = (config, tls);
        self.reports.configured_unix_ms = now.unix_ms;
        self.engine.configure(now, settings);
        self.perform_actions(now);
        Ok(())
    }

    /// Moves the listeners to the configured addresses, opens those of new ports and closes those
    /// that are no longer wanted. After an error everything listens as before.
    fn listen_as_configured(&mut self, now: Now, config: &Config) -> Result<(), String> {
        let wanted = ports(config);
        for (port, (host, _)) in &wanted {
            let previous = self.listener(*port).and_then(|listener| listener.bound_to().0.as_ref());
            if host.as_deref().is_some_and(is_other_name) && host.as_ref() != previous {
                // resolving may block for seconds
                let section = section_of(*port);
                return Err(format!(
                    "{section}.host: another name needs a restart; write an address"
                ));
            }
        }
        let mut added = Vec::new();
        for (port, bound_to) in &wanted {
            if self.listener(*port).is_none() {
                let (registry, token) = (self.poll.registry(), token_of_port(*port));
                let listener = Listener::new(*port, bound_to.clone(), registry, token);
                added.push(listener.map_err(|error| error.to_string())?);
            }
        }
        self.move_listeners(now, &wanted).map_err(|error| error.to_string())?;
        for listener in added {
            self.supervisor.keep(&listener);
            if let Some(address) = listener.address() {
                info!("{} listening on {address}", section_of(listener.port()));
            }
            self.listeners.push(listener);
        }
        let is_unwanted = |port: Port| wanted.iter().all(|(wanted, _)| *wanted != port);
        while let Some(at) = self.listeners.iter().position(|it| is_unwanted(it.port())) {
            self.close_listener(now, at);
        }
        Ok(())
    }

    /// Moves each listener to its address; all of them, or none.
    fn move_listeners(&mut self, now: Now, wanted: &[(Port, BoundTo)]) -> io::Result<()> {
        let mut moved: Vec<(Port, BoundTo)> = Vec::new();
        for (port, bound_to) in wanted {
            let Some(listener) = self.listener(*port) else { continue };
            let previous = listener.bound_to().clone();
            if let Err(error) = self.listen_on(now, *port, bound_to.clone()) {
                self.move_back(now, moved);
                return Err(error);
            }
            moved.push((*port, previous));
        }
        Ok(())
    }

    /// Moves listeners back to where they were: the last first, since it may have the place of an
    /// earlier one. A supervisor has copies of the previous ones until it has closed them.
    fn move_back(&mut self, now: Now, moved: Vec<(Port, BoundTo)>) {
        if !moved.is_empty() {
            self.supervisor.wait_until_read();
        }
        for (port, previous) in moved.into_iter().rev() {
            let outcome = sockets::bind_again(|| self.listen_on(now, port, previous.clone()));
            if let Err(error) = outcome {
                warn!("{} listens at its new address all the same: {error}", section_of(port));
            }
        }
    }

    /// Listens on another address in place of a listener's. Clients in the backlog of the previous
    /// one are accepted first. After an error it listens as before.
    fn listen_on(&mut self, now: Now, port: Port, address: BoundTo) -> io::Result<()> {
        let Some(place) = self.listeners.iter().position(|it| it.port() == port) else {
            return Ok(());
        };
        let listener = &mut self.listeners[place];
        let previous = listener.bound_to().clone();
        if previous == address {
            return Ok(());
        }
        if listener.is_given() {
            return rename_given(listener, address);
        }
        let token = token_of_port(port);
        let registry = self.poll.registry().try_clone()?;
        let listen = |address: &BoundTo| Listener::new(port, address.clone(), &registry, token);
        let mut outcome = listen(&address);
        let in_the_way = |error: &io::Error| self.is_in_the_way(place, &address, error);
        if outcome.is_ok() {
            self.close_listener(now, place);
        } else if outcome.as_ref().is_err_and(in_the_way) {
            // nothing listens for a few microseconds; under a supervisor, until it has closed its
            // copy
            self.close_listener(now, place);
            self.supervisor.wait_until_read();
            outcome = sockets::bind_again(|| listen(&address)).or_else(|error| {
                let listener = sockets::bind_again(|| listen(&previous))?;
                self.supervisor.keep(&listener);
                self.listeners.insert(place, listener);
                Err(error)
            });
        }
        let listener = outcome?;
        self.supervisor.keep(&listener);
        if let Some(address) = listener.address() {
            let section = if port == Port::Checks { "" } else { section_of(port) };
            info!("{}", format!("{section} listening on {address}").trim_start());
        }
        self.listeners.insert(place, listener);
        Ok(())
    }

    /// Whether an address cannot be bound because our own listener has it, or overlaps it.
    fn is_in_the_way(&self, place: usize, (host, port): &BoundTo, error: &io::Error) -> bool {
        let ours = self.listeners.get(place).and_then(Listener::address);
        let Some(ours) = ours.filter(|ours| ours.port() == *port) else { return false };
        let is_unspecified = host
            .as_deref()
            .is_none_or(|host| host.parse().is_ok_and(|address: IpAddr| address.is_unspecified()));
        error.kind() == ErrorKind::AddrInUse
            && (is_unspecified
                || ours.ip().is_unspecified()
                || sockets::is_bound_to(ours, host.as_deref(), *port))
    }

    /// Accepts the clients in a listener's backlog, at most as many as fit in it.
    fn accept_backlog(&mut self, now: Now, place: usize) {
        self.listeners[place].mark_readable();
        self.accept_from(now, place, sockets::BACKLOG.unsigned_abs());
    }

    /// Accepts the clients in a listener's backlog, then closes it.
    fn close_listener(&mut self, now: Now, place: usize) {
        self.accept_backlog(now, place);
        let listener = self.listeners.remove(place);
        self.supervisor.give_up(listener.port());
        listener.close(self.poll.registry());
    }
}

/// Sets `frontend.defer-accept` of the checks' listener. It is turned off as well: the listener may
/// be a previous process' or a socket unit's. On the other ports the daemon may be first to write.
pub(super) fn defer_accept(listeners: &[Listener], config: &Config) {
    let defers = config.frontend.defer_accept;
    for listener in listeners.iter().filter(|listener| listener.port() == Port::Checks) {
        // where the option is unknown, it is off
        if let Err(error) = listener.defer_accept(defers)
            && defers
        {
            warn!("frontend.defer-accept: the kernel refuses it: {error}");
        }
    }
}

/// The configuration names another address than the supervisor gave: an error, unless it is the
/// same one in other words.
fn rename_given(listener: &mut Listener, address: BoundTo) -> io::Result<()> {
    let (host, port) = (address.0.as_deref(), address.1);
    let is_same = listener.address().is_some_and(|ours| sockets::is_bound_to(ours, host, port));
    if !is_same {
        return Err(io::Error::other(
            "the supervisor's socket unit has the address; change it there as well, and restart \
             both",
        ));
    }
    listener.rename(address);
    Ok(())
}

/// Whether a host must be looked up in the network.
fn is_other_name(host: &str) -> bool {
    host.parse::<IpAddr>().is_err() && !host.eq_ignore_ascii_case("localhost")
}

/// The ports of a configuration, and what each is bound to.
pub(super) fn ports(config: &Config) -> Vec<(Port, BoundTo)> {
    let frontend = &config.frontend;
    let admin = config.admin.as_ref().map(|admin| (Port::Admin, (admin.host.clone(), admin.port)));
    let agent = config.agent.as_ref().map(|agent| (Port::Agent, (agent.host.clone(), agent.port)));
    let checks = (Port::Checks, (frontend.host.clone(), frontend.port));
    [Some(checks), admin, agent].into_iter().flatten().collect()
}

/// The section of the configuration that a port is from; a socket unit gives its listener the same
/// name.
pub(super) fn section_of(port: Port) -> &'static str {
    match port {
        Port::Checks => "frontend",
        Port::Admin => "admin",
        Port::Agent => "agent",
    }
}

/// What the daemon begins with, in one line.
pub(super) fn start_line(config: &Config, address: SocketAddr, clients_max: usize) -> String {
    let tls = match client_tls(config) {
        ClientTls::Off => "",
        ClientTls::WithoutCertificates => " with TLS,",
        ClientTls::RequiredCertificates => " with TLS and client certificates,",
        ClientTls::OptionalCertificates => " with TLS and optional client certificates,",
    };
    let patroni = config.backend.origin();
    let [ttl, grace] = [config.cache.ttl_ms, config.cache.grace_ms].map(|ms| ms as f64 / 1e3);
    let dcs = if config.dcs.is_some() { ", with dcs" } else { "" };
    format!(
        "patroniglue {VERSION} listening on {address},{tls} asking Patroni at \
         {patroni}; ttl {ttl} s, grace {grace} s{dcs}, at most {clients_max} clients"
    )
}

/// The engine's settings in a configuration.
pub(super) fn engine_settings(config: &Config, records: bool) -> Settings {
    Settings {
        cache: CacheSettings {
            ttl_ms: config.cache.ttl_ms,
            grace_ms: config.cache.grace_ms,
            variants_max: config.cache.entries,
        },
        interval_ms: config.cache.interval_ms,
        timeout_ms: config.backend.timeout_ms,
        fetches_max: config.backend.connections,
        clients_max: descriptors::clients_max(config),
        fence: config.cache.fence,
        dcs: config.dcs.as_ref().map(dcs_settings),
        host: config.backend.authority().into(),
        agent_target: config.agent.as_ref().map_or("", |agent| &agent.route).into(),
        records,
    }
}

fn dcs_settings(dcs: &Dcs) -> DcsSettings {
    let credentials = dcs.user.as_ref().map(|user| Credentials {
        username: user.username.clone(),
        password: match &user.password {
            Password::Text(password) => password.clone(),
            // files::read_config has put its content in its place
            Password::File(_) => String::new(),
        },
    });
    let witness = WitnessSettings {
        namespace: dcs.namespace.clone(),
        group: dcs.group,
        credentials,
        margin_ms: dcs.margin_ms,
    };
    let host = dcs.hosts.first().map(DcsHost::authority).unwrap_or_default().into();
    DcsSettings { witness, host, hosts: dcs.hosts.len() }
}

const _: () = assert!(DCS_MARGIN_MS_MAX == MARGIN_MS_MAX, "a longer margin would be cut");
