//! A stand-in for Patroni that answers at once, or on demand fails in turn in every way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::standin::{json, primary};

/// A Patroni that may refuse, hang, reset and cut.
pub struct FlakyPatroni {
    pub address: SocketAddr,
    flaky: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Refuses,
    Hangs,
    Resets,
    Cuts,
}

/// Its behaviour in turn while it is flaky.
const MOODS: [Mood; 8] = [
    Mood::Refuses,
    Mood::Answers,
    Mood::Hangs,
    Mood::Answers,
    Mood::Resets,
    Mood::Refuses,
    Mood::Cuts,
    Mood::Answers,
];
const MOOD_LASTS: Duration = Duration::from_millis(300);

impl FlakyPatroni {
    pub fn start() -> FlakyPatroni {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let flaky = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&flaky);
        thread::spawn(move || live(listener, &shared));
        FlakyPatroni { address, flaky }
    }

    /// Sets whether it refuses, hangs, resets and cuts from now on, or answers.
    pub fn set_flaky(&self, flaky: bool) {
        self.flaky.store(flaky, Ordering::Relaxed);
    }
}

fn live(mut listener: TcpListener, flaky: &AtomicBool) {
    let address = listener.local_addr().expect("its address");
    loop {
        while !flaky.load(Ordering::Relaxed) {
            serve_for(&listener, Mood::Answers, Duration::from_millis(50));
        }
        for mood in MOODS {
            if mood == Mood::Refuses {
                drop(listener);
                thread::sleep(MOOD_LASTS);
                listener = TcpListener::bind(address).expect("its port again");
            } else {
                let times = if mood == Mood::Answers { 3 } else { 1 };
                serve_for(&listener, mood, MOOD_LASTS * times);
            }
        }
    }
}

fn serve_for(listener: &TcpListener, mood: Mood, time: Duration) {
    listener.set_nonblocking(true).expect("an option");
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        match listener.accept() {
            Ok((stream, _)) => drop(thread::spawn(move || answer(stream, mood))),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn answer(mut stream: TcpStream, mood: Mood) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&piece[..count]),
        }
    }
    let whole = match request.as_slice() {
        [b'G', b'E', b'T', b' ', b'/', b'c', b'o', ..] => json(200, "{\"ttl\": 30}"),
        [b'G', b'E', b'T', b' ', b'/', b'm', ..] => json(200, &format!("\"{}\"", large())),
        _ => primary(),
    };
    match mood {
        Mood::Answers | Mood::Refuses => stream.write_all(&whole),
        Mood::Hangs => stream.read(&mut piece).map(|_| ()),
        Mood::Resets => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
        Mood::Cuts => stream.write_all(&whole[..whole.len() - 5]),
    }
}

/// Three of these are more than the socket buffers of the daemon and a slow reader.
fn large() -> String {
    "x".repeat(100 * 1024)
}
