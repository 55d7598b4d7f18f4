//! `-health`: whether the daemon answers, also while Patroni is silent.

use crate::common::standin::{Mood, StandIn};
use crate::common::{Glue, config, free_port, run};
use crate::tls_support::{Ca, Folder, section};

fn health(file: &std::path::Path) -> (Option<i32>, String) {
    let (code, stdout, stderr) = run(&["-health", "-config", file.to_str().expect("a name")]);
    assert_eq!(stdout, "");
    (code, stderr)
}

fn at_port(text: &str, host: &str, port: u16) -> String {
    text.replace("  host: 127.0.0.1\n  port: 0\n", &format!("  host: {host}\n  port: {port}\n"))
}

#[test]
fn a_daemon_in_front_of_a_silent_patroni_is_healthy() {
    let patroni = StandIn::start(Mood::Silent);
    for host in ["127.0.0.1", "\"*\"", "localhost"] {
        let text = config("127.0.0.1", patroni.address.port(), &[]);
        let mut glue = Glue::start_with(&at_port(&text, host, free_port()), &[], None);
        assert_eq!(health(&glue.config), (Some(0), String::new()), "{host}");
        assert_eq!(patroni.requests().len(), 0);
        glue.signal("STOP");
        let (code, error) = health(&glue.config);
        assert_eq!(code, Some(1), "{error}");
        glue.signal("CONT");
        glue.signal("TERM");
        glue.wait();
        let (code, error) = health(&glue.config);
        assert_eq!(code, Some(1));
        assert!(error.contains("Connection refused"), "{error}");
    }
}

#[test]
fn a_daemon_on_tls_is_healthy_also_with_client_certificates() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(Mood::Silent);
    let mut lines = ca.issue().lines(&folder, "server").to_vec();
    for more in [None, Some(format!("cafile: {}", folder.write("clients.pem", &ca.pem)))] {
        lines.extend(more);
        let text = config("127.0.0.1", patroni.address.port(), &section("frontend", &lines));
        let glue = Glue::start_with(&at_port(&text, "127.0.0.1", free_port()), &[], None);
        assert_eq!(health(&glue.config), (Some(0), String::new()));
    }
}

#[test]
fn another_server_or_an_unknown_port_is_not_healthy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("the question");
        std::io::Write::write_all(&mut client, b"220 mail\r\n").expect("it reads");
    });
    let text = config("127.0.0.1", 8008, &[]);
    let file = crate::common::config_file(&at_port(&text, "127.0.0.1", port));
    let (code, error) = health(&file);
    assert_eq!(code, Some(1), "{error}");
    let (code, error) = health(&crate::common::config_file(&text));
    assert_eq!(code, Some(1));
    assert!(error.contains("frontend.port is 0"), "{error}");
}
