//! `frontend.defer-accept`: the kernel keeps back connections that have sent nothing.
#![cfg(target_os = "linux")]

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, config, wait_for};

const ON: &[(&str, &str)] = &[("frontend", "defer-accept: true")];

fn text_of(patroni: &StandIn, more: &[(&str, &str)]) -> String {
    config("127.0.0.1", patroni.address.port(), more)
}

/// Connects without a request; returns the number of clients that the daemon then counts. A later
/// connection has its answer meanwhile, so that the earlier one would have been accepted.
fn clients_with_a_silent_one(glue: &mut Glue) -> (TcpStream, u64) {
    loop {
        let begun = Instant::now();
        let silent = glue.connect();
        assert_eq!(glue.get("/primary").0, 200);
        let clients = glue.counts()[0];
        // on a busy machine the kernel may have given the connection up to the daemon
        if begun.elapsed() < Duration::from_millis(900) {
            return (silent, clients);
        }
        drop(silent);
        wait_for("no client", || (glue.counts()[0] == 0).then_some(()));
    }
}

#[test]
fn a_silent_connection_is_accepted_a_second_later() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start_with(&text_of(&patroni, ON), &[], None);
    let begun = Instant::now();
    let (_silent, clients) = clients_with_a_silent_one(&mut glue);
    assert_eq!(clients, 0);
    wait_for("the silent client", || (glue.counts()[0] == 1).then_some(()));
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[test]
fn a_reload_changes_it_on_the_open_listener() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = Glue::start_with(&text_of(&patroni, &[]), &[], None);
    for (more, expected) in [(&[][..], 1), (ON, 0), (&[], 1)] {
        // `counts` reloads, but the listener has to be changed before the connection comes
        std::fs::write(&glue.config, text_of(&patroni, more)).expect("written");
        wait_for("no client", || (glue.counts()[0] == 0).then_some(()));
        let (_silent, clients) = clients_with_a_silent_one(&mut glue);
        assert_eq!(clients, expected, "{more:?}");
    }
}

/// As after a restart: the socket unit or the descriptor store keeps the option of the socket.
#[test]
fn a_socket_handed_over_gets_the_configured_value() {
    let patroni = StandIn::start(at_once(primary()));
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let shell = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=frontend";
    for (more, expected) in [(&[][..], 1), (ON, 0), (&[], 1)] {
        let handed = socket.try_clone().expect("a descriptor").into();
        let mut glue = Glue::start_supervised(&text_of(&patroni, more), Some(handed), shell);
        let (_silent, clients) = clients_with_a_silent_one(&mut glue);
        assert_eq!(clients, expected, "{more:?}");
    }
}
