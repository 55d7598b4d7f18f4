//! A stand-in for Patroni with a choice of behaviour, which records its requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A server with a thread per connection, like Patroni's.
pub struct StandIn {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

/// The behaviour after a request.
#[derive(Clone)]
pub enum Mood {
    /// Sends these pieces, each followed by a pause, then closes.
    Says(Vec<Vec<u8>>, Duration),
    /// Sends this after the pause, then closes.
    Delays(Duration, Vec<u8>),
    /// Sends, after the pause, a primary's answer with the request's time in Unix milliseconds.
    Stamps(Duration),
    /// Sends nothing and does not close, until the mood changes.
    Silent,
    /// Sends these bytes and does not close, until the mood changes.
    Hangs(Vec<u8>),
    /// Closes without a byte.
    Closes,
    /// Sends these bytes and resets.
    Resets(Vec<u8>),
}

struct Shared {
    mood: Mood,
    /// The number of changes of mood.
    season: u64,
    requests: Vec<String>,
    hanging: usize,
    hanging_most: usize,
}

impl StandIn {
    pub fn start(mood: Mood) -> StandIn {
        StandIn::listen(TcpListener::bind("127.0.0.1:0").expect("a free port"), mood)
    }

    pub fn listen(listener: TcpListener, mood: Mood) -> StandIn {
        let address = listener.local_addr().expect("its address");
        let requests = Vec::new();
        let shared = Shared { mood, season: 0, requests, hanging: 0, hanging_most: 0 };
        let shared = Arc::new(Mutex::new(shared));
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&server);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        StandIn { address, shared }
    }

    pub fn set(&self, mood: Mood) {
        let mut shared = self.shared.lock().expect("no panic");
        shared.mood = mood;
        shared.season += 1;
    }

    /// Every request so far, without those for Patroni's intervals (/config).
    pub fn requests(&self) -> Vec<String> {
        let shared = self.shared.lock().expect("no panic");
        let asked = shared.requests.iter().filter(|text| !text.starts_with("GET /config "));
        asked.cloned().collect()
    }

    /// The maximum of connections that hung at once.
    pub fn hanging_most(&self) -> usize {
        self.shared.lock().expect("no panic").hanging_most
    }
}

fn serve(mut stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            break;
        }
        request.extend_from_slice(&piece[..count]);
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let (mood, season) = {
        let mut shared = shared.lock().expect("no panic");
        shared.requests.push(text.clone());
        (shared.mood.clone(), shared.season)
    };
    let answers = matches!(mood, Mood::Says(..) | Mood::Delays(..) | Mood::Stamps(_));
    if text.starts_with("GET /config ") && answers {
        return stream.write_all(&json(200, "{\"ttl\": 30, \"loop_wait\": 10}"));
    }
    match mood {
        Mood::Says(pieces, pause) => {
            for piece in pieces {
                stream.write_all(&piece)?;
                thread::sleep(pause);
            }
            Ok(())
        }
        Mood::Delays(pause, bytes) => {
            thread::sleep(pause);
            stream.write_all(&bytes)
        }
        Mood::Stamps(pause) => {
            let stamp = format!("{{\"asked_at\": {}, ", unix_ms());
            thread::sleep(pause);
            let answer = String::from_utf8_lossy(&primary()).replacen('{', &stamp, 1);
            stream.write_all(answer.as_bytes())
        }
        Mood::Silent => wait_for_end(&mut stream, shared, season),
        Mood::Hangs(bytes) => {
            stream.write_all(&bytes)?;
            wait_for_end(&mut stream, shared, season)
        }
        Mood::Closes => Ok(()),
        Mood::Resets(bytes) => {
            stream.write_all(&bytes)?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(())
        }
    }
}

/// Waits until the peer closes or the mood changes. Counts as hanging after 100 ms, since a close
/// by the peer may be seen only after its next connection.
fn wait_for_end(
    stream: &mut TcpStream,
    shared: &Mutex<Shared>,
    season: u64,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut turns = 0;
    while shared.lock().expect("no panic").season == season {
        if matches!(stream.read(&mut [0; 64]), Ok(0)) {
            break;
        }
        turns += 1;
        if turns == 5 {
            let mut shared = shared.lock().expect("no panic");
            shared.hanging += 1;
            shared.hanging_most = shared.hanging_most.max(shared.hanging);
        }
    }
    if turns >= 5 {
        shared.lock().expect("no panic").hanging -= 1;
    }
    Ok(())
}

/// An answer as Patroni writes it: without a length, ended by the close.
pub fn json(status: u16, body: &str) -> Vec<u8> {
    let head = "Server: BaseHTTP/0.6 Python/3.11.2\r\nContent-Type: application/json";
    format!("HTTP/1.0 {status} X\r\n{head}\r\n\r\n{body}").into_bytes()
}

/// An answer with a body of 450 bytes, the size of a node's status, for measurements.
pub fn json_of_450_bytes() -> Vec<u8> {
    json(200, &format!("{{\"filler\": \"{}\"}}", "x".repeat(450 - 14)))
}

/// The answer of a healthy primary that saw the DCS just now.
pub fn primary() -> Vec<u8> {
    let seen = unix_ms() / 1000;
    let status = "\"state\": \"running\", \"role\": \"primary\", \"timeline\": 2";
    json(200, &format!("{{{status}, \"dcs_last_seen\": {seen}}}"))
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

pub fn at_once(bytes: Vec<u8>) -> Mood {
    Mood::Delays(Duration::ZERO, bytes)
}
