//! The real binary under a supervisor that speaks systemd's protocols.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, PATIENCE, config};

/// A notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let name = format!("notify-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Manager { socket, path }
    }

    fn environment(&self) -> String {
        format!("export NOTIFY_SOCKET={}", self.path.display())
    }

    /// The next datagram.
    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("a datagram");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_supervisor_is_notified_of_start_reload_and_end() {
    let manager = Manager::new("order");
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
        let reloading = manager.next();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a time");
        assert!(time.parse::<u64>().is_ok_and(|us| us > 0), "{reloading}");
        let ready = manager.next();
        assert!(ready.starts_with(&format!("READY=1\nSTATUS={status}")), "{ready}");
    }
    glue.signal("TERM");
    assert_eq!(manager.next(), "STOPPING=1\nSTATUS=shutting down: 0 clients left");
    assert!(glue.wait().success());
}
