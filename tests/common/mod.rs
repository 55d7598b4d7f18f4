//! The real binary on a free port, and small clients.
#![allow(dead_code)] // each target uses its own part

pub mod etcd;
pub mod standin;
pub mod strace;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A running daemon, killed when dropped.
pub struct Glue {
    pub address: SocketAddr,
    pub config: PathBuf,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// The fate of the daemon's log once it listens.
#[derive(Clone, Copy, Debug)]
pub enum Stderr {
    /// The pipe is read to the end.
    Read,
    /// The pipe is not read, so that it fills.
    Stuck,
    /// The pipe's other end is closed.
    Closed,
}

impl Glue {
    /// Starts it in front of `backend`, with further lines of configuration: `("cache", "ttl: 2")`.
    pub fn start(backend: SocketAddr, more: &[(&str, &str)]) -> Glue {
        Glue::start_with(&config(&backend.ip().to_string(), backend.port(), more), &[], None)
    }

    /// Starts it with this configuration and these flags, after a shell command (`ulimit -n 32`).
    pub fn start_with(text: &str, flags: &[&str], shell: Option<&str>) -> Glue {
        Glue::start_saying(text, flags, shell, Stderr::Read)
    }

    /// The same, with a choice of the log's fate.
    pub fn start_saying(text: &str, flags: &[&str], shell: Option<&str>, fate: Stderr) -> Glue {
        let config = config_file(text);
        let binary = env!("CARGO_BIN_EXE_patroniglue");
        let mut command = match shell {
            None => Command::new(binary),
            Some(before) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), binary]);
                command
            }
        };
        command.args(flags).stdin(Stdio::null());
        Glue::spawn(command, config, fate)
    }

    /// Starts it under a supervisor: with a socket as descriptor 3, after a shell command.
    pub fn start_supervised(text: &str, handed: Option<OwnedFd>, shell: &str) -> Glue {
        Glue::spawn(supervised(handed, shell), config_file(text), Stderr::Read)
    }

    /// Starts it under another program, such as valgrind with its options.
    pub fn start_under(text: &str, runner: &[&str]) -> Glue {
        let mut command = Command::new(runner[0]);
        command.args(&runner[1..]).arg(env!("CARGO_BIN_EXE_patroniglue")).stdin(Stdio::null());
        Glue::spawn(command, config_file(text), Stderr::Read)
    }

    fn spawn(mut command: Command, config: PathBuf, fate: Stderr) -> Glue {
        let command = command.arg("-config").arg(&config);
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().expect("a pipe");
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|count| count > 0) {
                let listens = line.contains("listening on ");
                lines.lock().expect("no panic").push(std::mem::take(&mut line).trim_end().into());
                match fate {
                    Stderr::Stuck if listens => return std::mem::forget(stderr),
                    Stderr::Closed if listens => return,
                    _ => {}
                }
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut glue = Glue { address, config, child, log };
        let line = glue.wait_for_line("listening on ");
        let address = line.split("listening on ").nth(1).and_then(|rest| rest.split(',').next());
        glue.address = address.and_then(|text| text.parse().ok()).expect("an address");
        glue
    }

    /// Waits for a line of the log that holds `text`.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        wait_for(text, || self.lines_with(text).into_iter().next())
    }

    pub fn lines_with(&self, text: &str) -> Vec<String> {
        let log = self.log.lock().expect("no panic");
        log.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Sends the signal of this name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    /// Clients, fetches, queued, waiters, timers, entries, late inputs, as logged after SIGHUP.
    pub fn counts(&mut self) -> Vec<u64> {
        let seen = self.lines_with("status: ").len();
        self.signal("HUP");
        let line = wait_for("the counts", || self.lines_with("status: ").into_iter().nth(seen));
        let list = line.split("status: ").nth(1).unwrap_or_default();
        let numbers = list.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok());
        let numbers: Vec<u64> = numbers.collect();
        assert_eq!(numbers.len(), 7, "{line}");
        numbers
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the daemon's end", || self.child.try_wait().expect("a child"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Resident memory in KiB, where there is /proc.
    pub fn resident_kib(&self) -> Option<u64> {
        self.memory_kib("VmRSS:")
    }

    /// A line of /proc's status, in KiB.
    pub fn memory_kib(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Sends a request on a new connection; returns status and text of the answer.
    pub fn get(&self, target: &str) -> (u16, String) {
        self.send(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes())
    }

    /// Sends bytes on a new connection, reads to the end.
    pub fn send(&self, bytes: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("it reads");
        let text = read_to_end(&mut stream);
        (status_of(&text), text)
    }

    /// Asks for `/primary` until the lease is known, by which stale answers are served. The daemon
    /// reads Patroni's intervals at the start, which may explain the first two values of
    /// `dcs_last_seen`. Two more are needed, one a second; a fetch takes place every 750 ms.
    pub fn wait_for_known_lease(&self, patroni: &standin::StandIn) {
        let is_known = || self.get("/primary").0 == 200 && patroni.requests().len() > 6;
        wait_for("a lease that is known", || is_known().then_some(()));
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }
}

impl Drop for Glue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.config);
    }
}

/// The binary with a socket as descriptor 3, after a shell command.
pub fn supervised(handed: Option<OwnedFd>, shell: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("exec 3<&0 0</dev/null; {shell}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_patroniglue")]);
    command.stdin(handed.map_or(Stdio::null(), Stdio::from));
    command
}

/// A configuration with the frontend on a free port.
pub fn config(host: &str, port: u16, more: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for section in ["frontend", "backend", "cache"] {
        text.push_str(&format!("{section}:\n"));
        match section {
            "frontend" => text.push_str("  host: 127.0.0.1\n  port: 0\n"),
            "backend" => text.push_str(&format!("  host: {host}\n  port: {port}\n")),
            _ => {}
        }
        for (_, line) in more.iter().filter(|(name, _)| *name == section) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A new file with this text, in cargo's folder for tests.
pub fn config_file(text: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("config-{}-{number}.yml", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).expect("a folder to write to");
    path
}

/// Runs the binary to its end; returns exit code, stdout and stderr.
pub fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_patroniglue")).args(arguments).output();
    let output = output.expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Asks until there is an answer, for at most [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads until FIN or RST.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one response with a `Content-Length` from a kept connection.
pub fn read_response(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = header(&text, "Content-Length").and_then(|value| value.parse().ok());
            if text.len() >= end + 4 + length.unwrap_or(0) {
                return text;
            }
        }
        match stream.read(&mut piece) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&piece[..count]),
            other => panic!("{other:?} after {text:?}"),
        }
    }
}

pub fn status_of(text: &str) -> u16 {
    text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0)
}

pub fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let head = text.split("\r\n\r\n").next()?;
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(field, _)| *field == name).map(|(_, value)| value)
}

pub fn body(text: &str) -> &str {
    text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Longer than anything in these tests takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
