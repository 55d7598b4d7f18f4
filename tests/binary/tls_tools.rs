//! curl, `openssl s_client` and sslscan against the TLS port.
//!
//! HAProxy's `check-ssl` is tested with the real cluster, with client certificates.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use patroniglue::shell::tls::PROVIDER;

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, body, config, config_file, run};
use crate::tls_support::{Ca, Folder, section};

struct Setup {
    folder: Folder,
    ca: Ca,
    glue: Glue,
    _patroni: StandIn,
}

/// The daemon on TLS; with `client_ca`, client certificates are required.
fn setup(client_ca: bool) -> Setup {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let cafile = folder.write("ca.pem", &ca.pem);
    let mut lines = ca.issue().lines(&folder, "server").to_vec();
    if client_ca {
        lines.push(format!("cafile: {cafile}"));
    }
    ca.issue().lines(&folder, "client");
    let glue = Glue::start(patroni.address, &section("frontend", &lines));
    Setup { folder, ca, glue, _patroni: patroni }
}

/// The output of a tool, with `input` on its standard input; `None` if it is not installed.
pub fn tool(name: &str, arguments: &[&str], input: &[u8]) -> Option<String> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none(), "{name} is missing in CI");
        eprintln!("skipped: {name} is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    // the tool may have ended before it reads
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("an exit code");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(text(&output.stdout) + &text(&output.stderr))
}

impl Setup {
    /// The name in the certificates, with the port.
    fn authority(&self) -> String {
        format!("localhost:{}", self.glue.address.port())
    }
}

/// `openssl s_server`, which serves the files of a folder; killed on drop.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(folder: &Folder, arguments: &[&str]) -> Server {
        folder.write("primary", "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall is well");
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-http_server_binmode"]);
        command.args(arguments).current_dir(folder.path(""));
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("installed");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let line = stdout.lines().map_while(Result::ok).find(|line| line.starts_with("ACCEPT "));
        let address = line.as_deref().and_then(|line| line.strip_prefix("ACCEPT "));
        let address = address.and_then(|text| text.parse().ok()).expect("an address");
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Self-signed certificates that webpki cannot read or whose signatures the provider cannot verify.
#[test]
fn insecure_accepts_any_certificate_of_patroni() {
    let folder = Folder::new();
    let [cert, key, request] = ["odd.pem", "odd.key", "odd.csr"].map(|name| folder.path(name));
    let make = ["req", "-x509", "-nodes", "-days", "9", "-subj", "/CN=odd", "-keyout", &key];
    let kinds: [&[&str]; 4] = [
        &["-newkey", "rsa:1024"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
        &["-newkey", "ed448"],
        // without extensions: X.509 version 1
        &["-newkey", "rsa:2048"],
    ];
    for (at, kind) in kinds.into_iter().enumerate() {
        let is_version_1 = at == 3;
        let arguments = [&make[..], kind, &["-out", &cert]].concat();
        if tool("openssl", &arguments, b"").is_none() {
            return;
        }
        if is_version_1 {
            let ask = ["req", "-new", "-key", &key, "-subj", "/CN=odd", "-out", &request];
            tool("openssl", &ask, b"").expect("installed");
            let sign = ["x509", "-req", "-in", &request, "-signkey", &key, "-out", &cert];
            tool("openssl", &sign, b"").expect("installed");
            let text = tool("openssl", &["x509", "-in", &cert, "-noout", "-text"], b"");
            assert!(text.is_some_and(|text| text.contains("Version: 1 (0x0)")));
        }
        // in TLS 1.2 other curves belong to cipher suites that rustls does not have
        let versions = ["-tls1_3", "-tls1_2"];
        let known_count = if kind[1].starts_with("rsa") { 2 } else { 1 };
        for version in &versions[..known_count] {
            let level = ["-cipher", "DEFAULT@SECLEVEL=0"];
            let names = ["-cert", &cert, "-key", &key, version];
            let server = Server::start(&folder, &[&names[..], &level].concat());
            let lines = [("backend", "scheme: https"), ("backend", "insecure: yes")];
            let glue = Glue::start(server.address, &lines);
            let (status, text) = glue.get("/primary");
            assert_eq!((status, body(&text)), (200, "all is well"), "{kind:?} {version}: {text}");
        }
    }
}

/// Makes certificates with openssl, in a folder of their own.
pub struct OpenSsl(pub Folder);

impl OpenSsl {
    /// `None` if openssl is not installed.
    pub fn new() -> Option<OpenSsl> {
        tool("openssl", &["version"], b"")?;
        Some(OpenSsl(Folder::new()))
    }

    fn run(&self, arguments: &[&str]) {
        tool("openssl", arguments, b"").expect("installed");
    }

    /// A self-signed CA certificate; returns the paths of certificate and key.
    pub fn ca(&self, kind: &[&str], digest: &str) -> [String; 2] {
        let paths = ["ca.pem", "ca.key"].map(|name| self.0.path(name));
        self.run(&[&["genpkey", "-out", &paths[1], "-algorithm"], kind].concat());
        let [cert, key] = &paths;
        let make = ["req", "-x509", "-days", "99", "-subj", "/CN=ca", "-key", key, "-out", cert];
        self.run(&[&make[..], digest_option(digest)].concat());
        paths
    }

    /// A certificate for 127.0.0.1, or of X.509 version 1 without names.
    pub fn leaf(&self, kind: &[&str], digest: &str, version: u8) -> [String; 2] {
        let paths = ["leaf.pem", "leaf.key"].map(|name| self.0.path(name));
        let [cert, key] = &paths;
        self.run(&[&["genpkey", "-out", key, "-algorithm"], kind].concat());
        let request = self.0.path("leaf.csr");
        self.run(&["req", "-new", "-key", key, "-subj", "/CN=leaf", "-out", &request]);
        let (ca, ca_key) = (self.0.path("ca.pem"), self.0.path("ca.key"));
        let names = self.0.write("names", "subjectAltName = IP:127.0.0.1, DNS:localhost\n");
        let sign =
            ["x509", "-req", "-days", "99", "-CAcreateserial", "-in", &request, "-out", cert];
        let sign = [&sign[..], &["-CA", &ca, "-CAkey", &ca_key], digest_option(digest)].concat();
        let extensions = ["-extfile", &names];
        self.run(&[&sign[..], if version == 1 { &[] } else { &extensions }].concat());
        let text = tool("openssl", &["x509", "-in", cert, "-noout", "-text"], b"");
        let text = text.expect("installed");
        assert!(text.contains(&format!("Version: {version} ")), "{kind:?} {digest}: {text}");
        paths
    }
}

/// Ed25519 and Ed448 have a digest of their own.
fn digest_option(digest: &str) -> &[&'static str] {
    match digest {
        "sha256" => &["-sha256"],
        "sha512" => &["-sha512"],
        _ => &[],
    }
}

/// Arguments of `openssl genpkey -algorithm`.
pub type Kind = &'static [&'static str];

pub const P256: Kind = &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const EXPLICIT: Kind =
    &["EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"];
pub const P521: Kind = &["EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
const RSA_1024: Kind = &["RSA", "-pkeyopt", "rsa_keygen_bits:1024"];
const RSA_2048: Kind = &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

#[test]
fn unsupported_certificates_of_patroni_are_named() {
    let Some(openssl) = OpenSsl::new() else { return };
    let ca_key = "the key of Patroni's CA is ";
    let table: [(Kind, &str, Kind, u8, &str, &str); 5] = [
        (RSA_1024, "sha256", P256, 3, ca_key, "RSA of less than 2048 bits"),
        (&["RSA-PSS"], "sha256", P256, 3, ca_key, "RSA-PSS"),
        (&["ED448"], "", P256, 3, ca_key, "Ed448"),
        (P256, "sha256", RSA_1024, 3, "of Patroni's certificate is ", "RSA of less than 2048 bits"),
        (P256, "sha256", P256, 1, "is not of X.509 version 3; issue it with extensions", ""),
    ];
    for (ca_kind, digest, kind, version, before, name) in table {
        let [ca, _] = openssl.ca(ca_kind, digest);
        let [cert, key] = openssl.leaf(kind, digest, version);
        let arguments = ["-cert", &cert, "-key", &key, "-cipher", "DEFAULT@SECLEVEL=0"];
        let server = Server::start(&openssl.0, &arguments);
        let cafile = format!("cafile: {ca}");
        let lines = [("backend", "scheme: https"), ("backend", cafile.as_str())];
        let mut glue = Glue::start(server.address, &lines);
        let (status, text) = glue.get("/primary");
        let why = format!("{before}{name}");
        assert!(status == 503 && body(&text).contains(&why), "{why}: {text}");
        let line = glue.wait_for_line("TLS with Patroni failed: ");
        assert!(line.contains(&why) && line.len() < 250, "{why}: {line}");
        if before == ca_key {
            let line = glue.wait_for_line("backend.cafile: ");
            let warning = format!("the key of certificate 1 is {name}, which this build does not");
            assert!(line.contains(&warning), "{line}");
        }
    }
}

#[test]
fn a_certificate_of_x509_version_1_is_served() {
    let Some(openssl) = OpenSsl::new() else { return };
    let [ca, _] = openssl.ca(P256, "sha256");
    for kind in [P256, RSA_2048] {
        let [cert, key] = openssl.leaf(kind, "sha256", 1);
        let lines = [format!("certfile: {cert}"), format!("keyfile: {key}")];
        let patroni = StandIn::start(at_once(primary()));
        let glue = Glue::start(patroni.address, &section("frontend", &lines));
        let connect = glue.address.to_string();
        let common = ["s_client", "-connect", &connect, "-CAfile", &ca, "-verify_return_error"];
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments = [&common[..], &["-ign_eof", version]].concat();
            let request = b"GET /primary HTTP/1.0\r\n\r\n";
            let text = tool("openssl", &arguments, request).expect("installed");
            assert!(text.contains("HTTP/1.1 200 OK"), "{kind:?} {version}: {text}");
        }
        // and presented to a Patroni that requires a certificate
        let arguments = ["-cert", &cert, "-key", &key, "-CAfile", &ca, "-Verify", "1"];
        let server =
            Server::start(&openssl.0, &[&arguments[..], &["-verify_return_error"]].concat());
        let mut lines = section("backend", &lines);
        lines.extend([("backend", "scheme: https"), ("backend", "insecure: yes")]);
        let (status, text) = Glue::start(server.address, &lines).get("/primary");
        assert_eq!((status, body(&text)), (200, "all is well"), "{kind:?}: {text}");
        // the key must belong to it
        openssl.run(&[&["genpkey", "-out", &key, "-algorithm"], kind].concat());
        let lines = [format!("certfile: {cert}"), format!("keyfile: {key}")];
        let path = config_file(&config("127.0.0.1", 1, &section("frontend", &lines)));
        let (code, _, stderr) = run(&["-check", "-config", &path.display().to_string()]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("the key does not belong to the certificate in"), "{stderr}");
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn certificates_with_unsupported_keys_are_named() {
    let Some(openssl) = OpenSsl::new() else { return };
    let table: [(Kind, &str); 5] = [
        (EXPLICIT, "of a curve with explicit parameters"),
        (
            &["EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
            "of another curve than P-256, P-384 and P-521",
        ),
        (&["RSA-PSS"], "RSA-PSS"),
        (&["ED448"], "Ed448"),
        (RSA_1024, "RSA of less than 2048 bits"),
    ];
    for (kind, name) in table {
        let [cert, key] = openssl.ca(kind, "");
        let lines = [format!("certfile: {cert}"), format!("keyfile: {key}")];
        let path = config_file(&config("127.0.0.1", 1, &section("frontend", &lines)));
        let (code, _, stderr) = run(&["-check", "-config", &path.display().to_string()]);
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{name}: {stderr}");
        let why = format!("ca.pem: the certificate's key is {name}, which this build does not");
        assert!(stderr.contains("frontend.certfile: ") && stderr.contains(&why), "{why}: {stderr}");
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn unsupported_keys_are_named() {
    let folder = Folder::new();
    let [cert, key] = Ca::new("root").issue().lines(&folder, "server");
    let path = folder.path("server.key");
    let unsupported = &*format!("the key is not {}", PROVIDER.keys);
    let encrypted = "encrypted keys are not supported";
    let rsa = ["genpkey", "-algorithm", "RSA", "-out", &path];
    let curve = ["genpkey", "-algorithm", "EC", "-out", &path, "-pkeyopt"];
    let password = ["-aes256", "-pass", "pass:word"];
    let traditional = ["genrsa", "-traditional", "-aes256", "-passout", "pass:word", "-out", &path];
    let table = [
        ([&rsa[..], &["-pkeyopt", "rsa_keygen_bits:1024"]].concat(), unsupported),
        ([&curve[..], &["ec_paramgen_curve:secp256k1"]].concat(), unsupported),
        (vec!["genpkey", "-algorithm", "ED448", "-out", &path], unsupported),
        ([&rsa[..], &password].concat(), encrypted),
        (traditional.to_vec(), encrypted),
    ];
    let text = config("127.0.0.1", 1, &[("frontend", &cert), ("frontend", &key)]);
    let file = config_file(&text);
    for (arguments, why) in table {
        if tool("openssl", &arguments, b"").is_none() {
            return;
        }
        let (code, _, stderr) = run(&["-check", "-config", &file.display().to_string()]);
        assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("server.key: ") && stderr.contains(why), "{arguments:?}: {stderr}");
    }
    let _ = std::fs::remove_file(file);
}

#[test]
fn curl_uses_both_versions_and_a_client_certificate() {
    for client_ca in [false, true] {
        let setup = setup(client_ca);
        let url = format!("https://{}/primary", setup.authority());
        let ca = setup.folder.path("ca.pem");
        assert!(!setup.ca.pem.is_empty());
        for version in ["1.2", "1.3"] {
            let mut arguments = vec!["-sS", "--ipv4", "--max-time", "20", "--tls-max", version];
            arguments.extend(["--cacert", &ca, "-w", " %{http_code}", &url]);
            let Some(text) = tool("curl", &arguments, b"") else { return };
            assert_eq!(text.ends_with("} 200"), !client_ca, "TLS {version}: {text}");
            let (cert, key) = (setup.folder.path("client.pem"), setup.folder.path("client.key"));
            arguments.extend(["--cert", &cert, "--key", &key]);
            let text = tool("curl", &arguments, b"").expect("installed");
            assert!(text.ends_with("} 200"), "TLS {version}: {text}");
        }
    }
}

#[test]
fn sslscan_finds_no_weakness() {
    let setup = setup(false);
    let arguments = ["--ipv4", "--no-colour", &setup.authority()];
    let Some(text) = tool("sslscan", &arguments, b"") else { return };
    let expected = [
        "SSLv2     disabled",
        "SSLv3     disabled",
        "TLSv1.0   disabled",
        "TLSv1.1   disabled",
        "TLSv1.2   enabled",
        "TLSv1.3   enabled",
        "Session renegotiation not supported",
        "TLSv1.2 not vulnerable to heartbleed",
        "TLSv1.3 not vulnerable to heartbleed",
    ];
    for line in expected {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(!text.contains("Compression enabled"), "{text}");
    // all suites have forward secrecy and authenticated encryption
    let suites =
        text.lines().filter(|line| line.starts_with("Preferred ") || line.starts_with("Accepted "));
    let suites: Vec<&str> = suites.filter_map(|line| line.split_whitespace().nth(4)).collect();
    assert_eq!(suites.len(), 6, "{text}");
    for suite in suites {
        let has_forward_secrecy = ["TLS_", "ECDHE-"].iter().any(|kind| suite.starts_with(kind));
        let is_authenticated =
            ["_GCM_", "-GCM-", "CHACHA20"].iter().any(|kind| suite.contains(kind));
        assert!(has_forward_secrecy && is_authenticated, "{suite}: {text}");
    }
}

#[test]
fn openssl_presents_a_client_certificate() {
    let setup = setup(true);
    let (ca, connect) = (setup.folder.path("ca.pem"), setup.authority());
    let (cert, key) = (setup.folder.path("client.pem"), setup.folder.path("client.key"));
    let common = ["s_client", "-4", "-connect", &connect, "-CAfile", &ca, "-ign_eof"];
    let request = b"GET /primary HTTP/1.0\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let without = [&common[..], &[version]].concat();
        let Some(text) = tool("openssl", &without, request) else { return };
        // TLS 1.2 has no alert of its own for a missing certificate
        let is_refused =
            text.contains("alert handshake failure") || text.contains("alert certificate required");
        assert!(is_refused && !text.contains("HTTP/1.1"), "{version}: {text}");
        let with = [&without[..], &["-cert", &cert, "-key", &key]].concat();
        let text = tool("openssl", &with, request).expect("installed");
        assert!(text.contains("HTTP/1.1 200 OK"), "{version}: {text}");
        assert!(text.contains("Acceptable client certificate CA names"), "{version}: {text}");
    }
    // no session is resumed: resuming would skip verification
    let arguments = [&common[..6], &["-tls1_2", "-reconnect", "-cert", &cert, "-key", &key]];
    let text = tool("openssl", &arguments.concat(), b"").expect("installed");
    let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("New, "), count("Reused, ")), (6, 0), "{text}");
}

#[test]
fn openssl_uses_both_versions_and_resumes() {
    let mut setup = setup(false);
    let (ca, connect) = (setup.folder.path("ca.pem"), setup.authority());
    let common = ["s_client", "-4", "-connect", &connect, "-CAfile", &ca, "-verify_return_error"];
    let request = b"GET /primary HTTP/1.0\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments = [&common[..], &[version, "-ign_eof", "-alpn", "http/1.1"]].concat();
        let Some(text) = tool("openssl", &arguments, request) else { return };
        for expected in ["Verify return code: 0 (ok)", "HTTP/1.1 200 OK", "protocol: http/1.1"] {
            assert!(text.contains(expected), "{version}: {expected}: {text}");
        }
    }
    let arguments = [&common[..], &["-tls1_2", "-reconnect"]].concat();
    let text = tool("openssl", &arguments, b"").expect("installed");
    let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("New, "), count("Reused, ")), (1, 5), "{text}");
    let arguments = [&common[..], &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]].concat();
    let text = tool("openssl", &arguments, b"").expect("installed");
    assert!(text.contains(" alert ") && !text.contains("New, TLSv1.1"), "{text}");
    setup.glue.wait_for_line("TLS client 127.0.0.1: it offers only TLS 1.1 or older (1 times)");
}
