//! The command line: flags as Go's flag package accepts them, errors in one line, exit codes.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use patroniglue::shell::tls::PROVIDER;

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, config, config_file, run};

#[test]
fn flags_with_one_dash_and_with_two() {
    let file = config_file("frontend: {port: 8009}\n");
    let file = file.to_str().expect("a name");
    let equals = format!("-config={file}");
    let table: [&[&str]; 8] = [
        &["-check", "-config", file],
        &["--check", "--config", file],
        &["-check", &equals],
        &["-config", file, "-check=true", "-debug=false"],
        &["-check", "-config", file, "-quiet", "-verbose", "-debug"],
        &["-check=1", "-config", file, "-debug=F", "-help=0"],
        &["-config", "nowhere", "-check", "-check", &equals],
        &["-help", "-check=false", "-check=T", "-help=false", "-config", file],
    ];
    for arguments in table {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(
            (code, stdout.as_str(), stderr.as_str()),
            (Some(0), "OK\n", ""),
            "{arguments:?}"
        );
    }
    let version = format!("patroniglue {} ({})\n", env!("CARGO_PKG_VERSION"), PROVIDER.name);
    assert_eq!(run(&["-version"]), (Some(0), version, String::new()));
    assert!(run(&["-help"]).1.starts_with("usage: patroniglue"));
    let file_and = |surplus: &'static str| vec!["-config", file, surplus];
    let wrong = ["-nonsense", "-nonsense=false", "surplus", "-check=maybe", "-", "--", "-config"];
    for arguments in wrong.map(file_and) {
        let (code, stdout, stderr) = run(&arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains("usage: patroniglue"), "{stderr}");
    }
}

#[test]
fn check_prints_warnings_and_still_succeeds() {
    let text = "frontend: {port: 8009, tls-ciphers: [TLS_FALLBACK_SCSV]}\ncache: {ttl: 10}\n";
    let file = config_file(text);
    let (code, stdout, stderr) = run(&["-check", "-config", file.to_str().expect("a name")]);
    assert_eq!((code, stdout.as_str()), (Some(0), "OK\n"));
    let warnings = "frontend.tls-ciphers has no effect without certfile\n\
        cache.ttl: load balancers may see a change of the node 10 s late; use 5 or less\n";
    assert_eq!(stderr, warnings);
}

#[test]
fn check_warns_of_hosts_that_are_not_there() {
    let text = "frontend: {host: 192.0.2.1, port: 8009}\nbackend: {host: nowhere.invalid}\n\
        dcs: {type: etcd3, hosts: [\"127.0.0.1:2379\", \"nobody.invalid:2379\"]}\n";
    let file = config_file(text);
    let (code, stdout, stderr) = run(&["-check", "-config", file.to_str().expect("a name")]);
    assert_eq!((code, stdout.as_str()), (Some(0), "OK\n"));
    let lines: Vec<_> = stderr.lines().collect();
    let expected = [
        "frontend.host: this machine does not have the address 192.0.2.1",
        "backend.host: nowhere.invalid cannot be resolved: ",
        "dcs.hosts: nobody.invalid cannot be resolved: ",
    ];
    assert_eq!(lines.len(), expected.len(), "{stderr}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_file_name_need_not_be_utf_8() {
    let name = OsStr::from_bytes(b"nowhere-\xff=.yml");
    let equals = OsStr::from_bytes(b"-config=nowhere-\xff=.yml");
    for arguments in [&["-config".as_ref(), name][..], &[equals]] {
        let output = Command::new(env!("CARGO_BIN_EXE_patroniglue")).args(arguments).output();
        let output = output.expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("nowhere-\u{fffd}=.yml: "), "{arguments:?}: {stderr}");
    }
}

#[test]
fn quiet_overrides_debug_and_verbose() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let text = format!(
        "frontend: {{host: 127.0.0.1, port: {port}}}\nbackend: {{scheme: https, insecure: yes}}\n"
    );
    let file = config_file(&text);
    let file = file.to_str().expect("a name");
    let table: [(&[&str], bool); 4] = [
        (&["-debug", "-verbose"], true),
        (&["-quiet"], false),
        (&["-quiet", "-debug"], false),
        (&["-debug", "-verbose", "-quiet"], false),
    ];
    for (flags, warns) in table {
        let (code, _, stderr) = run(&[&["-config", file], flags].concat());
        assert_eq!((code, stderr.contains("cannot listen")), (Some(1), true), "{stderr}");
        assert_eq!(stderr.contains("backend.insecure"), warns, "{flags:?}: {stderr}");
    }
}

#[test]
fn a_wrong_configuration_is_one_line_and_exit_code_1() {
    let table = [
        ("frontend:\n  prot: 80\n", ":2: frontend.prot is not a key; did you mean frontend.port?"),
        ("cache:\n  ttl: soon\n", ":2: cache.ttl: \"soon\" is not a number of seconds"),
        ("frontend:\n  port: 1\n  certfile: x\n", ":3: frontend.certfile: keyfile is missing"),
        ("backend:\n  scheme: https\n  cafile: nowhere.pem\n", ":3: backend.cafile: nowhere.pem: "),
        ("backend:\n  scheme: https\n  host: a..b\n", ":3: backend.host: \"a..b\" is neither"),
        (
            "frontend:\n  host: 127.0.0.1\n  port: 8008\nbackend:\n  host: localhost\n  port: 8008\n",
            ":6: backend.port: patroniglue would ask itself; set backend.port to Patroni's",
        ),
        ("frontend:\n  port: 8008\n", ":2: frontend.port: patroniglue would ask itself"),
        (
            "agent:\n  route: /x\n",
            ":2: agent.route: \"/x\" is not a route of Patroni; write one such",
        ),
        ("frontend: [", ":1: "),
    ];
    for (text, message) in table {
        let file = config_file(text);
        let file = file.to_str().expect("a name");
        for check in [&["-config", file, "-check"][..], &["-config", file]] {
            let (code, stdout, stderr) = run(check);
            assert_eq!(
                (code, stdout.as_str(), stderr.lines().count()),
                (Some(1), "", 1),
                "{stderr}"
            );
            assert!(stderr.starts_with(file) && stderr.contains(message), "{message}: {stderr}");
        }
    }
    let (code, _, stderr) = run(&["-config", "does-not-exist.yml"]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1));
    assert!(stderr.starts_with("does-not-exist.yml: "), "{stderr}");
}

#[test]
fn the_go_programs_plain_files_work_unchanged() {
    let text = "---\nfrontend:\n  host: 127.0.0.1\n  port: 8443\n  logformat: \"%a - %m %U %h\"\n\
        backend:\n  host: 127.0.0.1\n  port: 8008\n  scheme: http\n  insecure: yes\n\
        cache:\n  ttl: 1.0\n  interval: 0.25\n";
    let file = config_file(text);
    assert_eq!(run(&["-check", "-config", file.to_str().expect("a name")]).1, "OK\n");
}

#[test]
fn the_example_file_states_the_defaults() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yml.example");
    assert_eq!(run(&["-check", "-config", example]), (Some(0), "OK\n".into(), String::new()));
    let text = std::fs::read_to_string(example).expect("the example");
    let read = |text: &str| patroniglue::config::Config::from_yaml(text).expect("a configuration");
    let example = read(&text);
    let defaults = read("frontend: {host: 127.0.0.1, port: 8009}\nbackend: {host: 127.0.0.1}");
    assert_eq!(example, defaults);
    // a commented-out key shows its default
    let keys = ["logformat", "scheme", "insecure", "timeout", "connections: 3", "ttl", "interval"];
    let keys = keys.into_iter().chain([
        "grace",
        "entries",
        "fence",
        "proxy-protocol",
        "defer-accept",
        "tls-min-version: TLSv1.2",
    ]);
    let mut spelled = text.clone();
    for key in keys {
        let commented = format!("  #{key}");
        assert!(text.contains(&commented), "{key}");
        spelled = spelled.replace(&commented, &format!("  {key}"));
    }
    // except for these, whose values are examples according to the file's head
    let rest = spelled.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
    let rest = rest.filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
    let rest: Vec<&str> = rest.filter_map(|line| line.split(':').next()).collect();
    let frontend = ["certfile", "keyfile", "cafile", "verify-client", "tls-ciphers", "connections"];
    let backend = ["cafile", "server-name", "certfile", "keyfile"];
    assert_eq!(rest, [&frontend[..], &backend, &["dcs", "admin", "agent"]].concat());
    let spelled = read(&spelled);
    assert_eq!((spelled.cache, spelled.backend), (defaults.cache, defaults.backend));
    assert_eq!(spelled.frontend, defaults.frontend);
}

#[test]
fn the_examples_section_dcs_is_valid() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yml.example");
    let text = std::fs::read_to_string(example).expect("the example");
    let section = text.lines().skip_while(|line| *line != "#dcs:");
    let section = section.take_while(|line| !line.is_empty()).map(|line| &line[1..]);
    let text = section.collect::<Vec<_>>().join("\n");
    let dcs = patroniglue::config::Config::from_yaml(&text).expect("valid").dcs.expect("there");
    assert_eq!((dcs.hosts.len(), dcs.namespace.as_str(), dcs.margin_ms), (3, "service", 10_000));
    assert_eq!((dcs.user.is_some(), dcs.tls.is_some()), (true, true));
}

#[test]
fn the_password_file_of_the_dcs_is_read() {
    let password = config_file("hunter2\n");
    let name = password.to_str().expect("a name");
    let check = |file: &str| {
        let text = format!(
            "dcs:\n  type: etcd3\n  hosts: 127.0.0.1:1\n  username: u\n  password-file: {file}\n"
        );
        run(&["-check", "-config", config_file(&text).to_str().expect("a name")])
    };
    // nothing listens there: the section is checked, the DCS is not asked
    assert_eq!(check(name), (Some(0), "OK\n".into(), String::new()));
    let (code, _, stderr) = check("/does/not/exist");
    assert_eq!((code, stderr.lines().count()), (Some(1), 1));
    assert!(stderr.contains(":5: dcs.password-file: /does/not/exist: "), "{stderr}");
    std::fs::write(&password, "hunter2\nhunter3\n").expect("a file");
    let (code, _, stderr) = check(name);
    assert_eq!(code, Some(1));
    assert!(stderr.contains(":5: dcs.password-file: the file has more than one"), "{stderr}");
    assert!(!stderr.contains("hunter"), "{stderr}");
}

#[test]
fn requests_are_logged_only_with_verbose() {
    let patroni = StandIn::start(at_once(primary()));
    let backend = patroni.address;
    let format = [("frontend", "logformat: \"seen %a %m %U %s\"")];
    let text = config(&backend.ip().to_string(), backend.port(), &format);
    let mut glue = Glue::start_with(&text, &["-verbose"], None);
    glue.get("/primary?x=1");
    glue.send(b"nonsense\r\n\r\n");
    glue.wait_for_line("seen 127.0.0.1 GET /primary?x=1 200");
    glue.wait_for_line("seen 127.0.0.1 - - 400");
    let mut plain = Glue::start_with(&text, &[], None);
    plain.get("/primary?x=1");
    plain.signal("TERM");
    plain.wait_for_line("ended");
    assert_eq!(plain.lines_with("seen "), Vec::<String>::new());
}
