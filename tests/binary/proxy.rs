//! `frontend.proxy-protocol`: headers of HAProxy's PROXY protocol before each connection.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, config, config_file, free_port, read_to_end, run, status_of};
use crate::tls_support::{BOTH, Ca, Folder, ask, client, section};

const VERSION_1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.8 56324 8009\r\n";
/// As HAProxy sends it with a check of its own.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0";

fn proxied(patroni: &StandIn, more: &[(&str, &str)], flags: &[&str]) -> Glue {
    let lines = [&[("frontend", "proxy-protocol: true")], more].concat();
    Glue::start_with(&config("127.0.0.1", patroni.address.port(), &lines), flags, None)
}

#[test]
fn a_header_comes_first_and_its_address_is_logged() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = proxied(&patroni, &[], &["-verbose"]);
    for (header, address) in [(VERSION_1, "192.0.2.7"), (LOCAL, "127.0.0.1")] {
        // in one piece, and with a pause within the header
        for split in [0, 9] {
            let mut stream = glue.connect();
            stream.write_all(&header[..split]).expect("it reads");
            let rest = [&header[split..], b"GET /primary HTTP/1.1\r\n\r\n"].concat();
            stream.write_all(&rest).expect("it reads");
            stream.write_all(b"GET /replica HTTP/1.0\r\n\r\n").expect("it reads");
            let text = read_to_end(&mut stream);
            assert_eq!(status_of(&text), 200);
            assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
        }
        glue.wait_for_line(&format!("{address} - GET /primary"));
    }
}

#[test]
fn a_header_comes_before_the_tls_handshake() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let lines = ca.issue().lines(&folder, "server");
    let mut glue = proxied(&patroni, &section("frontend", &lines), &["-verbose"]);
    let mut socket = glue.connect();
    socket.write_all(VERSION_1).expect("it reads");
    let name = ServerName::try_from("localhost").expect("a name");
    let config = Arc::new(client(&ca.pem, BOTH, None));
    let session = ClientConnection::new(config, name).expect("a session");
    let mut stream = StreamOwned::new(session, socket);
    assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    glue.wait_for_line("192.0.2.7 - GET /primary");
}

#[test]
fn without_a_header_the_connection_is_closed() {
    let patroni = StandIn::start(at_once(primary()));
    let mut glue = proxied(&patroni, &[], &[]);
    for wrong in ["GET /primary HTTP/1.1\r\n\r\n", "PROXY TCP4 here there 1 2\r\n"] {
        let mut stream = glue.connect();
        stream.write_all(wrong.as_bytes()).expect("it reads");
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes); // FIN or RST
        assert_eq!(bytes, b"");
    }
    glue.wait_for_line("client 127.0.0.1: there is no PROXY header; set send-proxy or");
    assert_eq!(patroni.requests().len(), 0);
}

#[test]
fn haproxys_check_send_proxy_is_accepted() {
    let patroni = StandIn::start(at_once(primary()));
    let log = [("frontend", "logformat: \"%m %U %s\"")];
    let mut glue = proxied(&patroni, &log, &["-verbose"]);
    let text = format!(
        "global\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  \
         timeout server 1s\nlisten write\n  bind 127.0.0.1:{}\n  \
         option httpchk OPTIONS /primary\n  \
         http-check expect status 200\n  \
         server pg1 {} check check-send-proxy inter 100ms\n",
        free_port(),
        glue.address
    );
    let file = config_file(&text);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut haproxy) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none(), "haproxy is missing in CI");
        return eprintln!("skipped: haproxy is not installed");
    };
    glue.wait_for_line("OPTIONS /primary 200");
    haproxy.kill().expect("it runs");
    haproxy.wait().expect("it ends");
    std::fs::remove_file(file).expect("its configuration");
}

#[test]
fn health_sends_a_header() {
    let patroni = StandIn::start(at_once(primary()));
    let port = free_port();
    let text = config("127.0.0.1", 8008, &[("frontend", "proxy-protocol: true")]);
    let text = text.replace("port: 8008", &format!("port: {}", patroni.address.port()));
    let text = text.replace("port: 0", &format!("port: {port}"));
    let glue = Glue::start_with(&text, &[], None);
    let file = glue.config.to_str().expect("a name").to_owned();
    assert_eq!(run(&["-health", "-config", &file]), (Some(0), String::new(), String::new()));
}
