//! Patroni's stand-in on TLS: sends close_notify and waits for the peer's, as Patroni does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, ServerConfig, ServerConnection, Stream, SupportedProtocolVersion};

use super::{Identity, cryptography, roots};
use crate::common::standin::primary;
use crate::common::{PATIENCE, wait_for};

/// A server with one thread per connection.
pub struct TlsPatroni {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

/// How the server ends an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Sends close_notify and waits for the client's.
    CloseNotify,
    /// Sends FIN without close_notify, as Patroni before 2.1.5 does.
    Fin,
    /// Sends RST without close_notify.
    Reset,
    /// Sends nothing more, until the client closes.
    Nothing,
}

struct Shared {
    ending: Ending,
    pause: Duration,
    seen: Vec<Seen>,
}

/// One connection, as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub resumed: bool,
    pub has_certificate: bool,
    /// Time until the peer's close_notify, if it came.
    pub closed_after: Option<Duration>,
}

/// A server's configuration; with `ca`, clients must present a certificate of that CA.
pub fn server(
    identity: &Identity,
    versions: &[&'static SupportedProtocolVersion],
    ca: Option<&str>,
) -> ServerConfig {
    let provider = Arc::new(cryptography::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(versions).expect("versions");
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca).into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let config = builder.with_single_cert(identity.certificates(), identity.private_key());
    let mut config = config.expect("an identity");
    config.ticketer = cryptography::Ticketer::new().expect("random numbers");
    config
}

impl TlsPatroni {
    pub fn start(config: ServerConfig) -> TlsPatroni {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let ending = Ending::CloseNotify;
        let shared = Shared { ending, pause: Duration::ZERO, seen: Vec::new() };
        let shared = Arc::new(Mutex::new(shared));
        let (config, server) = (Arc::new(config), Arc::clone(&shared));
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, shared) = (Arc::clone(&config), Arc::clone(&server));
                thread::spawn(move || serve(socket, config, &shared));
            }
        });
        TlsPatroni { address, shared }
    }

    pub fn set_ending(&self, ending: Ending) {
        self.shared.lock().expect("no panic").ending = ending;
    }

    /// Sets the time between request and answer.
    pub fn set_pause(&self, pause: Duration) {
        self.shared.lock().expect("no panic").pause = pause;
    }

    /// Waits for the end of the `count`th connection.
    pub fn wait_for_seen(&self, count: usize) -> Vec<Seen> {
        wait_for("connections to end", || {
            let shared = self.shared.lock().expect("no panic");
            (shared.seen.len() >= count).then(|| shared.seen.clone())
        })
    }
}

fn serve(
    mut socket: TcpStream,
    config: Arc<ServerConfig>,
    shared: &Mutex<Shared>,
) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut session = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = Stream::new(&mut session, &mut socket);
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => break,
            count => request.extend_from_slice(&piece[..count]),
        }
    }
    let (ending, pause) = {
        let shared = shared.lock().expect("no panic");
        (shared.ending, shared.pause)
    };
    thread::sleep(pause);
    if ending == Ending::Reset {
        // RST discards what Nagle's algorithm holds back
        stream.sock.set_nodelay(true)?;
    }
    let text = String::from_utf8(primary()).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    stream.write_all(format!("{head}\r\n\r\n").as_bytes())?;
    stream.flush()?;
    stream.write_all(body.as_bytes())?;
    stream.flush()?;
    let mut closed_after = None;
    if ending == Ending::CloseNotify {
        stream.conn.send_close_notify();
        stream.flush()?;
    }
    if matches!(ending, Ending::CloseNotify | Ending::Nothing) {
        let begun = Instant::now();
        closed_after = matches!(stream.read(&mut piece), Ok(0)).then(|| begun.elapsed());
    }
    if ending == Ending::Reset {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    }
    let has_certificate = session.peer_certificates().is_some();
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let seen = Seen { resumed, has_certificate, closed_after };
    shared.lock().expect("no panic").seen.push(seen);
    Ok(())
}
