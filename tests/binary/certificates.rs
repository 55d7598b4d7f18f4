//! Certificates that are replaced without a signal, in every order.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use patroniglue::config::Config;
use patroniglue::shell::certificates::{Look, Watch};
use patroniglue::shell::tls::Tls;
use patroniglue::shell::{Daemon, Options};

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{config, status_of, wait_for};
use crate::tls_support::{BOTH, Ca, Folder, Identity, ask, client, connect, section};

fn configuration(lines: &[String], port: u16) -> Config {
    let text = config("127.0.0.1", port, &section("frontend", lines));
    Config::from_yaml(&text).expect("a configuration")
}

fn watch(lines: &[String]) -> Watch {
    let config = configuration(lines, 8008);
    let tls = Tls::read(&config).expect("certificates");
    Watch::new(config, tls.stamps)
}

/// What a look brought, in a word, or the reason of a failure.
fn look(watch: &mut Watch) -> String {
    match watch.look() {
        Look::Unchanged => "unchanged".into(),
        Look::Read(tls) => {
            assert!(tls.server.is_some());
            "read".into()
        }
        Look::Failed(error) => error.unwrap_or("failed".into()),
    }
}

fn replace(folder: &Folder, name: &str, text: &str) {
    folder.write("new", text);
    fs::rename(folder.path("new"), folder.path(name)).expect("renamed");
}

#[test]
fn a_pair_replaced_in_either_order_is_read_once_both_are_there() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let mut watch = watch(&ca.issue().lines(&folder, "server"));
    assert_eq!(look(&mut watch), "unchanged");
    for key_first in [true, false] {
        let Identity { chain, key, .. } = ca.issue();
        let mut files = [("server.pem", &chain), ("server.key", &key)];
        if key_first {
            files.reverse();
        }
        replace(&folder, files[0].0, files[0].1);
        let error = look(&mut watch);
        assert!(error.contains("server.key: the key does not belong to"), "{error}");
        assert_eq!(look(&mut watch), "failed", "reported once");
        replace(&folder, files[1].0, files[1].1);
        assert_eq!(look(&mut watch), "read");
        assert_eq!(look(&mut watch), "unchanged");
    }
}

#[test]
fn half_a_file_and_a_missing_one_are_tried_again() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let mut watch = watch(&ca.issue().lines(&folder, "server"));
    let Identity { chain, key, .. } = ca.issue();
    folder.write("server.key", &key);
    folder.write("server.pem", &chain[..chain.len() / 2]);
    let error = look(&mut watch);
    assert!(error.contains("server.pem: "), "{error}");
    fs::remove_file(folder.path("server.pem")).expect("removed");
    let error = look(&mut watch);
    assert!(error.contains("server.pem: No such file"), "{error}");
    folder.write("server.pem", &chain);
    assert_eq!(look(&mut watch), "read");
}

#[test]
fn a_swapped_link_to_a_folder_is_a_change() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    for version in ["1", "2"] {
        fs::create_dir(folder.path(version)).expect("a folder");
        ca.issue().lines(&folder, &format!("{version}/server"));
    }
    symlink("1", folder.path("..data")).expect("a link");
    let [certfile, keyfile] =
        ["server.pem", "server.key"].map(|name| folder.path(&format!("..data/{name}")));
    let mut watch = watch(&[format!("certfile: {certfile}"), format!("keyfile: {keyfile}")]);
    assert_eq!(look(&mut watch), "unchanged");
    symlink("2", folder.path("..next")).expect("a link");
    fs::rename(folder.path("..next"), folder.path("..data")).expect("renamed");
    assert_eq!(look(&mut watch), "read");
    assert_eq!(look(&mut watch), "unchanged");
}

#[test]
fn a_replaced_certificate_is_used_without_a_signal() {
    let (folder, first, second) = (Folder::new(), Ca::new("first"), Ca::new("second"));
    let patroni = StandIn::start(at_once(primary()));
    let lines = first.issue().lines(&folder, "server");
    let config = configuration(&lines, patroni.address.port());
    let (sender, receiver) = channel();
    // the daemon is created in its thread, since it is not Send; it ends with the process
    thread::spawn(move || {
        let look_every = Some(Duration::from_millis(20));
        let options = Options { look_every, ..Options::default() };
        let daemon = Daemon::new(config, options).expect("a free port");
        sender.send(daemon.address()).expect("the test waits");
        daemon.run().expect("it runs");
    });
    let address = receiver.recv().ok().flatten().expect("it listens");
    let mut kept = connect(&Arc::new(client(&first.pem, BOTH, None)), address);
    assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 200);
    second.issue().lines(&folder, "server");
    let trusting = Arc::new(client(&second.pem, BOTH, None));
    wait_for("the new certificate", || ask(&mut connect(&trusting, address), "/primary").ok());
    assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 200);
}
