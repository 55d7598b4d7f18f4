//! The real binary under a supervisor that speaks systemd's protocols.

use std::collections::HashMap;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::standin::{Mood, StandIn, at_once, json, primary};
use crate::common::{Glue, PATIENCE, config, config_file, free_port, supervised, wait_for};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A notification socket at an abstract address.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new() -> Manager {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("patroniglue-{}-{number}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Manager { socket, name }
    }

    fn environment(&self) -> String {
        format!("export NOTIFY_SOCKET=@{}", self.name)
    }

    /// The next datagram, and the descriptor that came with it.
    fn next_with_descriptor(&self) -> (String, Option<OwnedFd>) {
        let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); 256]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, &mut slices, &mut control, RecvFlags::empty());
        let length = received.expect("a datagram").bytes;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        (String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptor)
    }

    /// The next datagram that is not about the status alone, which comes in its own time.
    fn next_but_status(&self) -> String {
        loop {
            let next = self.next();
            if !next.starts_with("STATUS=") {
                return next;
            }
        }
    }

    fn next(&self) -> String {
        self.next_with_descriptor().0
    }

    /// Reads up to READY. Returns the descriptor that was stored on the way.
    fn wait_until_ready(&self) -> Option<OwnedFd> {
        let mut stored = None;
        loop {
            let (text, descriptor) = self.next_with_descriptor();
            if text.starts_with("READY=1\n") {
                return stored;
            }
            if text.starts_with("FDSTORE=1\n") {
                stored = descriptor;
            }
        }
    }
}

/// The environment of one descriptor with this name.
fn one_named(name: &str) -> String {
    format!("export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name}")
}

/// Exit code and log of a start that fails.
fn failed_start(handed: Option<OwnedFd>, shell: &str) -> (Option<i32>, String) {
    let file = config_file(&config("127.0.0.1", 8008, &[]));
    let output = supervised(handed, shell).arg("-config").arg(&file).output();
    let output = output.expect("the binary starts");
    let _ = std::fs::remove_file(&file);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_supervisor_is_notified_of_start_reload_and_end() {
    let manager = Manager::new();
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let mut glue = Glue::start_supervised(&text, None, &manager.environment());
    assert_eq!(manager.next(), "FDSTOREREMOVE=1\nFDNAME=kept-frontend");
    assert_eq!(manager.next(), "FDSTORE=1\nFDNAME=kept-frontend");
    assert_eq!(manager.next(), format!("READY=1\nSTATUS=listening on {}", glue.address));
    for (text, status) in [(text.as_str(), "reloaded "), ("frontend:\n  prot: 1\n", "not reloaded")]
    {
        std::fs::write(&glue.config, text).expect("written");
        glue.signal("HUP");
        let reloading = manager.next_but_status();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a time");
        assert!(time.parse::<u64>().is_ok_and(|us| us > 0), "{reloading}");
        let ready = manager.next_but_status();
        assert!(ready.starts_with(&format!("READY=1\nSTATUS={status}")), "{ready}");
    }
    glue.signal("TERM");
    assert_eq!(manager.next_but_status(), "STOPPING=1\nSTATUS=shutting down: 0 clients left");
    assert!(glue.wait().success());
}

#[test]
fn the_status_follows_role_patroni_and_drain() {
    let manager = Manager::new();
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[("cache", "ttl: 0")]);
    let glue = Glue::start_supervised(&text, None, &manager.environment());
    manager.wait_until_ready();
    // at most one a second, while checks come
    let short = Some(Duration::from_millis(50));
    manager.socket.set_read_timeout(short).expect("a timeout");
    let next = || {
        wait_for("a status", || {
            glue.get("/primary");
            let mut bytes = [0; 256];
            let length = manager.socket.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        })
    };
    assert_eq!(next(), "STATUS=primary; Patroni answers");
    patroni.set(at_once(json(503, "{\"state\": \"running\", \"role\": \"replica\"}")));
    assert_eq!(next(), "STATUS=replica; Patroni answers");
    patroni.set(Mood::Closes);
    assert_eq!(next(), "STATUS=replica; Patroni does not answer");
    glue.signal("USR1");
    assert_eq!(next(), "STATUS=draining");
}

#[test]
fn the_watchdog_is_notified_by_the_loop() {
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    for (shell, is_notified) in [
        ("export WATCHDOG_USEC=40000", true),
        ("export WATCHDOG_USEC=40000 WATCHDOG_PID=$$", true),
        ("export WATCHDOG_USEC=40000 WATCHDOG_PID=1", false),
        ("export WATCHDOG_USEC=0", false),
    ] {
        let manager = Manager::new();
        let shell = format!("{}; {shell}", manager.environment());
        let glue = Glue::start_supervised(&text, None, &shell);
        manager.wait_until_ready();
        if is_notified {
            (0..5).for_each(|_| assert_eq!(manager.next(), "WATCHDOG=1", "{shell}"));
            glue.signal("STOP");
            let short = Some(Duration::from_millis(200));
            manager.socket.set_read_timeout(short).expect("a timeout");
            while manager.socket.recv(&mut [0; 64]).is_ok() {}
            glue.signal("CONT");
            manager.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            assert_eq!(manager.next(), "WATCHDOG=1");
        } else {
            glue.signal("HUP");
            assert!(manager.next().starts_with("RELOADING=1\n"), "{shell}");
        }
    }
}

/// The queue of a UNIX socket has ten places (net.unix.max_dgram_qlen).
#[test]
fn a_notification_socket_that_is_not_read_stops_nothing() {
    let manager = Manager::new();
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let shell = format!("{}; export WATCHDOG_USEC=20000", manager.environment());
    let mut glue = Glue::start_supervised(&text, None, &shell);
    for round in 0..30 {
        glue.signal("HUP");
        wait_for("a reload", || (glue.lines_with("reloaded ").len() > round).then_some(()));
        assert_eq!(glue.get("/primary").0, 200);
    }
    glue.signal("TERM");
    assert!(glue.wait().success());
}

#[test]
fn a_listener_of_a_socket_unit_is_used_with_any_address() {
    let patroni = StandIn::start(at_once(primary()));
    for (port, is_foreign) in [(0, false), (1, true)] {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let text = config("127.0.0.1", patroni.address.port(), &[]);
        let text = text.replace("  port: 0\n", &format!("  port: {port}\n"));
        // without a name as well, if it is the only one
        let name = if is_foreign { "frontend" } else { "patroniglue.socket" };
        let manager = Manager::new();
        let shell = format!("{}; {}", manager.environment(), one_named(name));
        let mut glue = Glue::start_supervised(&text, Some(socket.into()), &shell);
        assert_eq!((glue.address, glue.get("/primary").0), (address, 200));
        assert!(manager.wait_until_ready().is_none(), "the socket unit keeps it");
        if is_foreign {
            glue.wait_for_line("WARN  [patroniglue] LISTEN_FDS: descriptor 3 (frontend) listens");
        }
    }
}

#[test]
fn a_descriptor_that_is_no_tcp_listener_is_an_error() {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let file = std::fs::File::open(file!()).expect("this file");
    let closed = format!("exec 3<&-; {}", one_named("frontend"));
    let open = one_named("frontend");
    for (handed, shell, why) in [
        (Some(udp.into()), &open, "it is a UDP socket"),
        (Some(stream.into()), &open, "it does not listen"),
        (Some(UnixDatagram::unbound().expect("a socket").into()), &open, "it is not a TCP socket"),
        (Some(file.into()), &open, "it is not a socket"),
        (None, &closed, "it is not open"),
    ] {
        let (code, log) = failed_start(handed, shell);
        let line =
            format!("LISTEN_FDS: descriptor 3 (frontend) is not a listening TCP socket: {why}\n");
        assert_eq!((code, log.as_str()), (Some(1), line.as_str()));
    }
}

#[test]
fn descriptors_of_others_are_left_alone_or_closed() {
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    for (shell, line) in [
        ("export LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=frontend", "listening on 127.0.0.1:"),
        (
            "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:other",
            "WARN  [patroniglue] LISTEN_FDS: descriptor 3 (web) is not used: closed",
        ),
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let mut glue = Glue::start_supervised(&text, Some(socket.into()), shell);
        glue.wait_for_line(line);
        assert_ne!(glue.address, address);
        assert_eq!(glue.get("/primary").0, 200);
    }
}

#[test]
fn in_the_journal_lines_have_priorities_and_no_time() {
    let file = config_file("cache: {ttl: 6}\nfrontend: {host: 127.0.0.1, port: 0}\n");
    let log = file.with_extension("log");
    // with the file of the log as the journal's stream, and with another
    for (stream, prefix) in [("$(stat -Lc %d:%i /proc/self/fd/2)", "<4>"), ("1:1", "20")] {
        let shell = format!("exec 2>{}; export JOURNAL_STREAM={stream}", log.display());
        let _ = std::fs::remove_file(&log);
        let mut child = supervised(None, &shell).arg("-config").arg(&file).spawn().expect("it");
        let lines = wait_for("the start", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.contains("listening on").then_some(text)
        });
        let warning = lines.lines().find(|line| line.contains("cache.ttl")).expect("a warning");
        assert!(warning.starts_with(prefix), "{lines}");
        assert_eq!(lines.contains("[patroniglue]"), prefix != "<4>", "{lines}");
        assert_eq!(lines.contains("<6>"), prefix == "<4>", "{lines}");
        let _ = child.kill().and_then(|()| child.wait());
    }
    let _ = std::fs::remove_file(&log).and_then(|()| std::fs::remove_file(&file));
}

/// A check on a new connection. The error is what a load balancer would see.
fn check(address: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let sent = stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n");
    let mut text = String::new();
    let read = sent.and_then(|()| stream.read_to_string(&mut text));
    read.map_err(|error| error.to_string())?;
    if text.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(format!("{text:?}")) }
}

#[test]
fn no_check_is_lost_when_the_listener_is_stored() {
    let patroni = StandIn::start(at_once(primary()));
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let manager = Manager::new();
    let mut glue = Glue::start_supervised(&text, None, &manager.environment());
    let stored = manager.wait_until_ready().expect("the listener");
    let address = glue.address;
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [0; 4].map(|_| {
            scope.spawn(|| {
                let mut checks = 0;
                while !ends.load(Ordering::Relaxed) {
                    check(address)?;
                    checks += 1;
                }
                Ok::<u32, String>(checks)
            })
        });
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(50));
            glue.signal("TERM");
            glue.wait();
            let shell = format!("{}; {}", manager.environment(), one_named("kept-frontend"));
            let handed = stored.try_clone().expect("a copy");
            glue = Glue::start_supervised(&text, Some(handed), &shell);
            assert_eq!(glue.address, address);
            assert!(manager.wait_until_ready().is_none(), "it is in the store already");
        }
        ends.store(true, Ordering::Relaxed);
        for client in clients {
            let checks = client.join().expect("no panic");
            assert!(checks.as_ref().is_ok_and(|count| *count > 5), "{checks:?}");
        }
    });
}

#[test]
fn a_stored_listener_that_is_not_configured_is_given_up() {
    let patroni = StandIn::start(Mood::Silent);
    let socket = TcpListener::bind("127.0.0.2:0").expect("a port");
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let manager = Manager::new();
    let shell = format!("{}; {}", manager.environment(), one_named("kept-frontend"));
    thread::scope(|scope| {
        let start = scope.spawn(|| Glue::start_supervised(&text, Some(socket.into()), &shell));
        assert_eq!(manager.next(), "FDSTOREREMOVE=1\nFDNAME=kept-frontend");
        let (barrier, descriptor) = manager.next_with_descriptor();
        assert!(barrier == "BARRIER=1" && descriptor.is_some());
        drop(descriptor);
        assert!(manager.wait_until_ready().is_some(), "the new one is stored");
        let mut glue = start.join().expect("it listens");
        glue.wait_for_line("descriptor 3 (kept-frontend) listens on 127.0.0.2:");
        assert!(glue.address.to_string().starts_with("127.0.0.1:"));
    });
}

#[test]
fn a_failed_reload_moves_a_stored_listener_back() {
    let patroni = StandIn::start(at_once(primary()));
    let manager = Manager::new();
    let front = free_port();
    let text = config("127.0.0.1", patroni.address.port(), &[]);
    let text = text.replacen("port: 0", &format!("port: {front}"), 1);
    let environment = manager.environment();
    let started = format!("{text}admin: {{port: 0}}\n");
    let glue = Glue::start_supervised(&started, None, &environment);
    // closes what is removed from the store a moment later, as systemd does
    thread::spawn(move || {
        let mut store = HashMap::new();
        loop {
            let (text, descriptor) = manager.next_with_descriptor();
            if let Some(name) = text.strip_prefix("FDSTORE=1\n") {
                store.insert(name.to_owned(), descriptor);
            } else if let Some(name) = text.strip_prefix("FDSTOREREMOVE=1\n") {
                thread::sleep(Duration::from_millis(20));
                store.remove(name);
            }
        }
    });
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let text = text.replacen("127.0.0.1", "127.0.0.2", 1) + &format!("admin: {{port: {port}}}\n");
    std::fs::write(&glue.config, text).expect("written");
    glue.signal("HUP");
    let refusal = "not reloaded: cannot listen on admin";
    wait_for("the reload", || (!glue.lines_with(refusal).is_empty()).then_some(()));
    check(SocketAddr::from(([127, 0, 0, 1], front))).expect("a check as before");
}
