//! TLS on both sides of the real binary: certificates, versions, failures, reload.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::common::standin::{Mood, StandIn, at_once, primary};
use crate::common::strace::{name_of_call, trace};
use crate::common::{Glue, body, config, config_file, run, status_of, wait_for};
use crate::tls_support::patroni::{Ending, TlsPatroni, server};
use crate::tls_support::{BOTH, Ca, Folder, Identity, ONLY_12, ONLY_13, TlsStream, Valid};
use crate::tls_support::{
    ask, client, connect, cryptography, fixture, refusal, section, self_signed_ca,
};
use rustls::{CipherSuite, HandshakeKind, ProtocolVersion, ServerConfig, SupportedProtocolVersion};

/// The daemon on TLS, with more lines in `frontend`.
fn tls_glue(backend: SocketAddr, folder: &Folder, identity: &Identity, more: &[&str]) -> Glue {
    let mut lines = identity.lines(folder, "server").to_vec();
    lines.extend(more.iter().map(|line| (*line).to_owned()));
    Glue::start(backend, &section("frontend", &lines))
}

/// The lines of `backend` for TLS with a Patroni whose certificate this CA signed.
fn https(folder: &Folder, ca: &Ca) -> Vec<String> {
    let cafile = folder.write("patroni-ca.pem", &ca.pem);
    vec!["scheme: https".to_owned(), format!("cafile: {cafile}")]
}

fn assert_answers(stream: &mut TlsStream) {
    let text = ask(stream, "/primary").expect("an answer");
    assert_eq!(status_of(&text), 200, "{text}");
    assert!(body(&text).contains("\"role\": \"primary\""), "{text}");
}

#[test]
fn all_four_combinations_of_plain_and_tls() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let plain = StandIn::start(at_once(primary()));
    let tls = TlsPatroni::start(server(&ca.issue(), BOTH, None));
    let identity = ca.issue().lines(&folder, "server");
    for (backend, lines) in [(plain.address, vec![]), (tls.address, https(&folder, &ca))] {
        let mut more = section("backend", &lines);
        let glue = Glue::start(backend, &more);
        let (status, text) = glue.get("/primary");
        assert_eq!(status, 200, "{text}");
        more.extend(section("frontend", &identity));
        let glue = Glue::start(backend, &more);
        let config = Arc::new(client(&ca.pem, BOTH, None));
        assert_answers(&mut connect(&config, glue.address));
    }
}

#[test]
fn rsa_and_ecdsa_keys_in_all_formats_work() {
    let patroni = StandIn::start(at_once(primary()));
    let table = [
        ("rsa.pem", "rsa.pkcs8.key"),
        ("rsa.pem", "rsa.pkcs1.key"),
        ("ecdsa.pem", "ecdsa.pkcs8.key"),
        ("ecdsa.pem", "ecdsa.sec1.key"),
        ("ecdsa.pem", "ecdsa-with-parameters.key"),
    ];
    for (pem, key) in table {
        let lines = [format!("certfile: {}", fixture(pem)), format!("keyfile: {}", fixture(key))];
        let glue = Glue::start(patroni.address, &section("frontend", &lines));
        let root = std::fs::read_to_string(fixture(pem)).expect("a fixture");
        for versions in [ONLY_12, ONLY_13] {
            let config = Arc::new(client(&root, versions, None));
            assert_answers(&mut connect(&config, glue.address));
        }
    }
}

#[test]
fn intermediates_are_sent_and_those_of_patroni_followed() {
    let (folder, root) = (Folder::new(), Ca::new("root"));
    let intermediate = root.intermediate("middle").intermediate("low");
    let patroni = TlsPatroni::start(server(&intermediate.issue(), BOTH, None));
    let mut more = https(&folder, &root);
    let mut lines = section("backend", &more);
    let identity = intermediate.issue().lines(&folder, "server");
    lines.extend(section("frontend", &identity));
    let glue = Glue::start(patroni.address, &lines);
    let config = Arc::new(client(&root.pem, BOTH, None));
    let mut stream = connect(&config, glue.address);
    assert_answers(&mut stream);
    assert_eq!(stream.conn.peer_certificates().map(<[_]>::len), Some(3));
    // an address instead of a name, and a name other than the host's
    for (names, line) in [(&["127.0.0.1"], None), (&["pg1.test"], Some("server-name: pg1.test"))] {
        let identity = root.issue_for(names, Valid::Now);
        let patroni = TlsPatroni::start(server(&identity, BOTH, None));
        more.truncate(2);
        more.extend(line.map(str::to_owned));
        let glue = Glue::start(patroni.address, &section("backend", &more));
        assert_eq!(glue.get("/primary").0, 200);
    }
}

#[test]
fn application_protocols_are_http_only() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let glue = tls_glue(patroni.address, &folder, &ca.issue(), &[]);
    /// The protocols that the client offers, and the one chosen.
    type Offer<'a> = (&'a [&'a [u8]], Option<&'a [u8]>);
    let offers: [Offer<'_>; 4] = [
        (&[b"h2", b"http/1.1"], Some(b"http/1.1")),
        (&[b"http/1.0"], Some(b"http/1.0")),
        (&[], None),
        (&[b"h2"], Some(b"refused")),
    ];
    for (offer, chosen) in offers {
        let mut config = client(&ca.pem, BOTH, None);
        config.alpn_protocols = offer.iter().map(|name| name.to_vec()).collect();
        let mut stream = connect(&Arc::new(config), glue.address);
        if chosen == Some(b"refused") {
            let error = refusal(&mut stream);
            assert!(error.contains("NoApplicationProtocol"), "{error}");
        } else {
            assert_answers(&mut stream);
            assert_eq!(stream.conn.alpn_protocol(), chosen);
        }
    }
}

#[test]
fn sessions_are_resumed_by_clients_and_with_patroni() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    for versions in [ONLY_12, ONLY_13] {
        let patroni = TlsPatroni::start(server(&ca.issue(), versions, None));
        let identity = ca.issue().lines(&folder, "server");
        let lines = https(&folder, &ca);
        let mut more = section("backend", &lines);
        more.extend(section("frontend", &identity));
        more.push(("cache", "ttl: 0"));
        let glue = Glue::start(patroni.address, &more);
        let config = Arc::new(client(&ca.pem, versions, None));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut stream = connect(&config, glue.address);
            assert_answers(&mut stream);
            kinds.push(stream.conn.handshake_kind());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let resumed = Some(HandshakeKind::Resumed);
        assert_eq!(kinds, [Some(HandshakeKind::Full), resumed, resumed], "{versions:?}");
        let seen = patroni.wait_for_seen(3);
        // ordered by their ends; one of them is the daemon's own fetch
        let resumed_count = seen.iter().filter(|seen| seen.resumed).count();
        assert!((1..seen.len()).contains(&resumed_count), "{seen:?}");
    }
}

#[test]
fn close_notify_of_patroni_is_answered_at_once() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    for versions in [ONLY_12, ONLY_13] {
        let patroni = TlsPatroni::start(server(&ca.issue(), versions, None));
        let glue = Glue::start(patroni.address, &section("backend", &https(&folder, &ca)));
        for target in ["/primary", "/replica", "/health", "/patroni"] {
            assert_eq!(glue.get(target).0, 200);
        }
        let seen = patroni.wait_for_seen(4);
        let slowest = seen.iter().map(|seen| seen.closed_after.expect("close_notify")).max();
        println!("close_notify came within {slowest:?}");
        assert!(slowest < Some(Duration::from_millis(1_500)), "{seen:?}");
    }
}

#[test]
fn a_complete_answer_needs_no_close_notify() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    for (versions, ending) in [ONLY_12, ONLY_13].into_iter().flat_map(|versions| {
        [Ending::Fin, Ending::Reset, Ending::Nothing].map(|ending| (versions, ending))
    }) {
        let patroni = TlsPatroni::start(server(&ca.issue(), versions, None));
        patroni.set_ending(ending);
        let glue = Glue::start(patroni.address, &section("backend", &https(&folder, &ca)));
        for route in ["/primary", "/health"] {
            let (status, text) = glue.get(route);
            let is_whole = body(&text).ends_with('}') && body(&text).contains("dcs_last_seen");
            assert!(status == 200 && is_whole, "{ending:?}: {text}");
        }
        if ending == Ending::Nothing {
            let seen = patroni.wait_for_seen(2);
            assert!(seen.iter().all(|seen| seen.closed_after.is_some()), "{seen:?}");
        }
    }
}

#[test]
fn client_certificates_are_required_and_verified() {
    let (folder, ca, other) = (Folder::new(), Ca::new("root"), Ca::new("other"));
    let patroni = StandIn::start(at_once(primary()));
    let cafile = format!("cafile: {}", folder.write("clients.pem", &ca.pem));
    let mut glue = tls_glue(patroni.address, &folder, &ca.issue(), &[&cafile]);
    let (good, foreign) = (ca.issue(), other.issue());
    let expired = ca.issue_for(&["me"], Valid::Before);
    for versions in [ONLY_12, ONLY_13] {
        let table = [
            (Some(&good), None),
            (None, Some("CertificateRequired|HandshakeFailure")),
            (Some(&foreign), Some("UnknownCA|UnknownCa")),
            (Some(&expired), Some("CertificateExpired")),
        ];
        for (identity, alert) in table {
            let config = Arc::new(client(&ca.pem, versions, identity));
            let mut stream = connect(&config, glue.address);
            let Some(alert) = alert else {
                assert_answers(&mut stream);
                continue;
            };
            let text = refusal(&mut stream);
            assert!(alert.split('|').any(|alert| text.contains(alert)), "{text}");
        }
    }
    let line = glue.wait_for_line("TLS client 127.0.0.1: ");
    assert!(line.contains("it presents no certificate; frontend.cafile requires one"), "{line}");
}

#[test]
fn client_certificates_may_be_optional() {
    let (folder, ca, other) = (Folder::new(), Ca::new("root"), Ca::new("other"));
    let patroni = StandIn::start(at_once(primary()));
    let cafile = format!("cafile: {}", folder.write("clients.pem", &ca.pem));
    let more = [&*cafile, "verify-client: optional"];
    let mut glue = tls_glue(patroni.address, &folder, &ca.issue(), &more);
    let (good, foreign) = (ca.issue(), other.issue());
    for versions in [ONLY_12, ONLY_13] {
        for identity in [None, Some(&good)] {
            let config = Arc::new(client(&ca.pem, versions, identity));
            assert_answers(&mut connect(&config, glue.address));
        }
        let config = Arc::new(client(&ca.pem, versions, Some(&foreign)));
        let text = refusal(&mut connect(&config, glue.address)).to_ascii_lowercase();
        assert!(text.contains("unknownca"), "{text}");
    }
    glue.wait_for_line(" with TLS and optional client certificates, asking Patroni at ");
}

#[test]
fn tls_min_version_1_3_refuses_1_2() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let line = "tls-min-version: TLSv1.3";
    let glue = tls_glue(patroni.address, &folder, &ca.issue(), &[line]);
    assert_answers(&mut connect(&Arc::new(client(&ca.pem, BOTH, None)), glue.address));
    let config = Arc::new(client(&ca.pem, ONLY_12, None));
    let error = refusal(&mut connect(&config, glue.address));
    assert!(error.contains("ProtocolVersion"), "{error}");
}

/// The list of the Go program's example, and a name that only its table has.
const GO_CIPHERS: &str = "tls-ciphers: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, \
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, \
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, \
    TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, TLS_FALLBACK_SCSV]";

#[test]
fn the_go_programs_cipher_list_works_with_warnings() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let lines = ["tls-min-version: TLSv1.1", GO_CIPHERS];
    let mut glue = tls_glue(patroni.address, &folder, &ca.issue(), &lines);
    glue.wait_for_line("frontend.tls-min-version: TLS below 1.2 is not supported; using TLSv1.2");
    for kind in ["ECDSA", "RSA"] {
        let warning = format!("TLS_ECDHE_{kind}_WITH_AES_128_CBC_SHA256 is not supported");
        assert_eq!(glue.lines_with(&warning).len(), 1, "{warning}");
    }
    assert_eq!(glue.lines_with("TLS_FALLBACK_SCSV is not a cipher suite").len(), 1);
    let known: [(&[&SupportedProtocolVersion], ProtocolVersion, &[CipherSuite]); 2] = [
        (
            ONLY_12,
            ProtocolVersion::TLSv1_2,
            &[
                CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            ],
        ),
        // Go does not let TLS 1.3's suites be configured
        (
            ONLY_13,
            ProtocolVersion::TLSv1_3,
            &[CipherSuite::TLS13_AES_256_GCM_SHA384, CipherSuite::TLS13_AES_128_GCM_SHA256],
        ),
    ];
    for (versions, version, suites) in known {
        let mut stream = connect(&Arc::new(client(&ca.pem, versions, None)), glue.address);
        assert_answers(&mut stream);
        assert_eq!(stream.conn.protocol_version(), Some(version));
        let suite = stream.conn.negotiated_cipher_suite().expect("a suite").suite();
        assert!(suites.contains(&suite), "{suite:?}");
    }
}

#[test]
fn wrong_files_and_names_end_the_start_with_one_line() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let [cert, key] = ca.issue().lines(&folder, "server");
    let [_, other_key] = ca.issue().lines(&folder, "other");
    let empty = folder.write("empty.pem", "");
    let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
    let broken = folder.write("broken.pem", broken);
    let missing = folder.path("missing.pem");
    let file =
        |line: &str, name: &str| line.replace("server.pem", name).replace("server.key", name);
    let rows: Vec<(Vec<String>, &str)> = vec![
        (vec![cert.clone(), other_key.clone()], "other.key"),
        (vec![file(&cert, "empty.pem"), key.clone()], "empty.pem: no certificate found"),
        (vec![cert.clone(), file(&key, "empty.pem")], "empty.pem: no private key found"),
        (vec![file(&cert, "broken.pem"), key.clone()], &broken),
        (vec![cert.clone(), file(&key, "missing.pem")], &missing),
        (vec![file(&cert, "server.pem/x"), key.clone()], "server.pem/x"),
        (vec![cert.replace("pem", "key"), key.clone()], "server.key: no certificate found"),
        (vec![cert.clone(), cert.replace("cert", "key")], "server.pem: no private key found"),
        (vec![cert.clone(), key.clone(), format!("cafile: {empty}")], "empty.pem"),
        (vec![cert.clone(), key.clone(), format!("cafile: {broken}")], "broken.pem"),
        (vec![cert.clone()], "keyfile is missing"),
        (vec![format!("cafile: {missing}")], "client certificates need TLS"),
        (vec![cert.clone(), key.clone(), "tls-ciphers: [NULL_MD6]".into()], "NULL_MD6"),
        (
            vec![cert, key, "tls-ciphers: [TLS_RSA_WITH_AES_128_CBC_SHA]".into()],
            "none of these cipher suites is supported",
        ),
    ];
    for (lines, why) in rows {
        let text = config("127.0.0.1", 1, &section("frontend", &lines));
        let path = config_file(&text);
        for check in [&[][..], &["-check"]] {
            let name = path.display().to_string();
            let arguments = [&["-config", &name], check].concat();
            let (code, _, stderr) = run(&arguments);
            assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{lines:?}: {stderr}");
            assert!(stderr.contains(why) && stderr.contains(".yml:"), "{why}: {stderr}");
        }
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn check_warns_of_certificates_that_will_fail() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let good = ca.issue().lines(&folder, "good");
    let expired = ca.issue_for(&["x.test"], Valid::Before);
    let leaf = format!("cafile: {}", folder.write("leaf.pem", &expired.chain));
    let root = format!("cafile: {}", folder.write("root.pem", &ca.pem));
    let table = [
        (expired.lines(&folder, "old").to_vec(), "certificate 1 expired on Fri, 01 Jan 2021"),
        (
            ca.issue_for(&["x.test"], Valid::Later).lines(&folder, "new").to_vec(),
            "certificate 1 is not valid before Sun, 01 Jan 2090",
        ),
        ([&good[..], std::slice::from_ref(&leaf)].concat(), "all certificates in it have expired"),
        ([&good[..], &[leaf]].concat(), "no CA certificate in it, nor a self-signed one"),
        ([&good[..], &[root]].concat(), ""),
    ];
    for (lines, warning) in table {
        let path = config_file(&config("127.0.0.1", 1, &section("frontend", &lines)));
        let (code, stdout, stderr) = run(&["-check", "-config", &path.display().to_string()]);
        assert_eq!((code, stdout.trim()), (Some(0), "OK"), "{stderr}");
        assert!(stderr.contains(warning), "{warning}: {stderr}");
        assert_eq!(stderr.is_empty(), warning.is_empty(), "{stderr}");
        let _ = std::fs::remove_file(path);
    }
}

/// A backend that sends the same bytes on each connection.
fn parrot(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it");
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(bytes);
        }
    });
    address
}

#[test]
fn failures_of_tls_with_patroni_are_named() {
    let (folder, ca, other) = (Folder::new(), Ca::new("root"), Ca::new("other"));
    let (twin, names) = (Ca::new("root"), ["127.0.0.1"]);
    let start = |config| TlsPatroni::start(config).address;
    let valid = |valid| start(server(&ca.issue_for(&names, valid), BOTH, None));
    let named = |names: &[&str]| start(server(&ca.issue_for(names, Valid::Now), BOTH, None));
    let wants = |versions| start(server(&ca.issue(), versions, Some(&ca.pem)));
    let named_for_client = start(server(&ca.issue_for_client(), BOTH, None));
    let page = b"HTTP/1.0 400 Bad Request\r\n\r\n";
    // protocol_version, handshake_failure
    let (version, refusal) = (&[0x15, 3, 3, 0, 2, 2, 70], &[0x15, 3, 3, 0, 2, 2, 40]);
    let table = [
        (valid(Valid::Before), "Patroni's certificate has expired", "expired on Fri, 01 Jan 2021"),
        (valid(Valid::Later), "Patroni's certificate is not valid yet", "not valid before Sun, 01"),
        (named(&["x.test", "y.test"]), "is for another name", "is for x.test, y.test, not for 127"),
        (named(&[]), "has no subjectAltName; issue it with one", "has no subjectAltName"),
        (start(server(&other.issue(), BOTH, None)), "not signed by a trusted CA", "is not signed"),
        (start(server(&twin.issue(), BOTH, None)), "one of the same name", "one of the same name"),
        (named_for_client, "is not for servers", "lacks serverAuth"),
        (wants(ONLY_13), "set backend.certfile", "requires a client certificate (alert"),
        (wants(ONLY_12), "set backend.certfile", "requires a client certificate (alert"),
        (parrot(version), "no TLS version, cipher suite or key", "(alert protocol_version)"),
        (parrot(refusal), "it may require backend.certfile", "(alert handshake_failure)"),
        (start(server_of_rsa_suites(&ca.issue())), "or there is no TLS version or", "it refuses"),
        (parrot(page), "does not speak TLS on this port", "it speaks plain HTTP"),
    ];
    for (address, why, detail) in table {
        let lines = https(&folder, &ca);
        let mut glue = Glue::start(address, &section("backend", &lines));
        let (status, text) = glue.get("/primary");
        assert_eq!(status, 503);
        assert!(body(&text).starts_with("{\"error\":\"") && text.contains(why), "{why}: {text}");
        let line = glue.wait_for_line("fetching ");
        assert!(line.contains(why), "{line}");
        assert_eq!(glue.lines_with("fetching ").len(), 1);
        let line = glue.wait_for_line("TLS with Patroni failed: ");
        assert!(line.contains(detail) && line.ends_with(" (1 times)"), "{detail}: {line}");
    }
    // public roots, `insecure`, and a client certificate
    let address = start(server(&ca.issue(), BOTH, None));
    let glue = Glue::start(address, &[("backend", "scheme: https")]);
    assert!(glue.get("/primary").1.contains("not signed by a trusted CA"));
    let lines = [("backend", "scheme: https"), ("backend", "insecure: yes")];
    let mut glue = Glue::start(address, &lines);
    assert_eq!(glue.get("/primary").0, 200);
    glue.wait_for_line("backend.insecure: Patroni's certificate is not checked");
    for versions in [ONLY_12, ONLY_13] {
        let patroni = TlsPatroni::start(server(&ca.issue(), versions, Some(&ca.pem)));
        let mut lines = https(&folder, &ca);
        lines.extend(ca.issue().lines(&folder, "client"));
        let glue = Glue::start(patroni.address, &section("backend", &lines));
        assert_eq!(glue.get("/primary").0, 200);
        assert!(patroni.wait_for_seen(1)[0].has_certificate);
    }
}

/// A TLS 1.2 server whose key fits none of its cipher suites.
fn server_of_rsa_suites(identity: &Identity) -> ServerConfig {
    let mut provider = cryptography::default_provider();
    provider.cipher_suites.retain(|suite| {
        suite.suite().as_str().is_some_and(|name| name.starts_with("TLS_ECDHE_RSA_"))
    });
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(ONLY_12).expect("versions").with_no_client_auth();
    let config = builder.with_single_cert(identity.certificates(), identity.private_key());
    config.expect("an identity")
}

#[test]
fn a_handshake_that_does_not_complete_is_named() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    // a Patroni without TLS waits for the end of a line
    let plain = StandIn::start(at_once(primary()));
    let table = [
        (plain.address, "did not complete the TLS handshake in time; is backend.scheme right?"),
        (parrot(b""), "Patroni closed the connection without an answer"),
    ];
    for (address, why) in table {
        let mut lines = https(&folder, &ca);
        lines.push("timeout: 1".to_owned());
        let glue = Glue::start(address, &section("backend", &lines));
        let (status, text) = glue.get("/primary");
        assert_eq!(status, 503);
        assert!(body(&text).contains(why), "{why}: {text}");
    }
}

#[test]
fn cafile_may_be_the_certificate_of_patroni() {
    let (folder, other) = (Folder::new(), Ca::new("other"));
    let me = ["localhost", "127.0.0.1"];
    let table = [
        (self_signed_ca(&me, Valid::Now), "\"role\": \"primary\""),
        (self_signed_ca(&me, Valid::Before), "Patroni's certificate has expired"),
        (self_signed_ca(&me, Valid::Later), "Patroni's certificate is not valid yet"),
        (self_signed_ca(&["x.test"], Valid::Now), "is for another name"),
        (self_signed_ca(&[], Valid::Now), "subjectAltName; issue it with one (the common name is"),
    ];
    for (identity, expected) in &table {
        let patroni = TlsPatroni::start(server(identity, BOTH, None));
        let cafile = format!("cafile: {}", folder.write("own.pem", &identity.chain));
        let lines = [("backend", "scheme: https"), ("backend", &cafile)];
        let (_, text) = Glue::start(patroni.address, &lines).get("/primary");
        assert!(body(&text).contains(expected), "{expected}: {text}");
        // another cafile does not accept it
        let glue = Glue::start(patroni.address, &section("backend", &https(&folder, &other)));
        let text = glue.get("/primary").1;
        let is_valid = expected.contains("role") || expected.contains("name");
        assert_eq!(text.contains("is a CA certificate that backend.cafile"), is_valid, "{text}");
    }
}

#[test]
fn a_reload_replaces_certificates() {
    let folder = Folder::new();
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let patroni = TlsPatroni::start(server(&second.issue(), BOTH, None));
    let mut lines = https(&folder, &first);
    lines.truncate(2);
    let identity = first.issue().lines(&folder, "server");
    let mut more = section("backend", &lines);
    more.extend(section("frontend", &identity));
    more.push(("cache", "ttl: 0"));
    let mut glue = Glue::start(patroni.address, &more);
    let trusting = |ca: &Ca| Arc::new(client(&ca.pem, BOTH, None));
    let mut kept = connect(&trusting(&first), glue.address);
    // the backend's CA is still the wrong one
    assert_eq!(status_of(&ask(&mut kept, "/primary").expect("an answer")), 503);

    // a new key with the previous certificate is not loaded
    second.issue().lines(&folder, "server");
    let good = std::fs::read_to_string(folder.path("server.key")).expect("it");
    first.issue().lines(&folder, "server");
    let chain = std::fs::read_to_string(folder.path("server.pem")).expect("it");
    folder.write("server.key", &good);
    glue.signal("HUP");
    let line = glue.wait_for_line("not reloaded: ");
    assert!(line.contains("server.key"), "{line}");
    let mut fresh = connect(&trusting(&first), glue.address);
    assert_eq!(status_of(&ask(&mut fresh, "/replica").expect("an answer")), 503);

    let next = second.issue();
    assert_ne!(next.chain, chain);
    next.lines(&folder, "server");
    folder.write("patroni-ca.pem", &second.pem);
    glue.signal("HUP");
    glue.wait_for_line(" reloaded /");
    // a failure is remembered for a second; open connections keep the previous certificate
    let mut newest = connect(&trusting(&second), glue.address);
    for stream in [&mut newest, &mut kept, &mut fresh] {
        wait_for("Patroni's answer", || {
            let text = ask(stream, "/primary").expect("an answer");
            (status_of(&text) == 200).then_some(())
        });
    }
    let error = refusal(&mut connect(&trusting(&first), glue.address));
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn a_fetch_restarted_by_a_reload_uses_the_new_tls() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let silent = StandIn::start(Mood::Silent);
    let next = TlsPatroni::start(server(&ca.issue(), BOTH, None));
    let glue = Glue::start(silent.address, &[]);
    let mut waiting = glue.connect();
    waiting.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
    wait_for("the fetch", || (!silent.requests().is_empty()).then_some(()));
    let lines = https(&folder, &ca);
    let (host, port) = (next.address.ip().to_string(), next.address.port());
    let text = config(&host, port, &section("backend", &lines));
    std::fs::write(&glue.config, text).expect("written");
    glue.signal("HUP");
    let mut text = String::new();
    waiting.read_to_string(&mut text).expect("an answer");
    assert_eq!(status_of(&text), 200, "{text}");
}

#[test]
fn a_reload_replaces_the_ca_of_clients() {
    let folder = Folder::new();
    let (ca, first, second) = (Ca::new("root"), Ca::new("first"), Ca::new("second"));
    let patroni = StandIn::start(at_once(primary()));
    let cafile = format!("cafile: {}", folder.write("clients.pem", &first.pem));
    let mut glue = tls_glue(patroni.address, &folder, &ca.issue(), &[&cafile]);
    let with = |identity: &Identity| Arc::new(client(&ca.pem, BOTH, Some(identity)));
    let (previous, new) = (with(&first.issue()), with(&second.issue()));
    let mut kept = connect(&previous, glue.address);
    assert_answers(&mut kept);
    assert!(refusal(&mut connect(&new, glue.address)).contains("UnknownC"));

    // an empty file and a missing one change nothing
    folder.write("clients.pem", "");
    glue.signal("HUP");
    let line = glue.wait_for_line("not reloaded: ");
    assert!(line.contains("frontend.cafile") && line.contains("no certificate found"), "{line}");
    std::fs::remove_file(folder.path("clients.pem")).expect("it was there");
    glue.signal("HUP");
    wait_for("another line", || (glue.lines_with("not reloaded: ").len() == 2).then_some(()));
    let line = glue.lines_with("not reloaded: ").remove(1);
    assert!(line.contains("clients.pem: No such file"), "{line}");
    assert_answers(&mut connect(&previous, glue.address));

    folder.write("clients.pem", &second.pem);
    glue.signal("HUP");
    glue.wait_for_line(" reloaded /");
    assert_answers(&mut connect(&new, glue.address));
    assert!(refusal(&mut connect(&previous, glue.address)).contains("UnknownC"));
    // open connections go on
    assert_answers(&mut kept);
}

/// Patroni's two session tickets and its answer are small writes under Nagle's algorithm: each
/// would wait for our kernel's delayed acknowledgement of the previous one.
#[test]
fn bytes_after_the_request_are_acknowledged_at_once() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = TlsPatroni::start(server(&ca.issue(), ONLY_13, None));
    let glue = Glue::start(patroni.address, &section("backend", &https(&folder, &ca)));
    let Some(text) = trace(&glue, || assert_eq!(glue.get("/health").0, 200)) else { return };
    let lines: Vec<&str> = text.lines().collect();
    let port = format!("htons({})", patroni.address.port());
    let connects = |line: &&str| name_of_call(line) == Some("connect") && line.contains(&port);
    let connect = lines.iter().position(connects).expect("a fetch");
    let descriptor = lines[connect].split(['(', ',']).nth(1).expect("a descriptor");
    let of_fetch = |call: &str| {
        let call = format!(" {call}({descriptor},");
        let from = lines[connect..].iter().enumerate();
        from.filter(|(_, line)| line.contains(&call)).map(|(at, _)| at).collect::<Vec<_>>()
    };
    // the last one is close_notify
    let sent = of_fetch("sendto");
    let request = sent[sent.len() - 2];
    let answer = of_fetch("recvfrom").into_iter().find(|at| *at > request).expect("an answer");
    let acknowledging = of_fetch("setsockopt").into_iter().filter(|at| {
        lines[connect + at].contains("TCP_QUICKACK, [1]") && (request..answer).contains(at)
    });
    assert_eq!(acknowledging.count(), 1, "{text}");
}

#[test]
fn a_client_waiting_after_close_notify_costs_no_cpu() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(Mood::Delays(Duration::from_millis(600), primary()));
    let glue = tls_glue(patroni.address, &folder, &ca.issue(), &[]);
    for versions in [ONLY_12, ONLY_13] {
        let mut stream = connect(&Arc::new(client(&ca.pem, versions, None)), glue.address);
        stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").expect("it reads");
        stream.conn.send_close_notify();
        stream.flush().expect("it reads");
        let before = cpu_ticks(glue.process_id());
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a clean end");
        assert_eq!(status_of(&text), 200, "{text}");
        let ticks = cpu_ticks(glue.process_id()) - before;
        assert!(ticks < 20, "{ticks} hundredths of a second of CPU while waiting");
    }
}

/// User and system time, in hundredths of a second.
fn cpu_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}
