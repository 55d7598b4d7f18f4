//! Certificates and key exchanges that aws-lc-rs takes, and ring refuses in plain words.

use std::sync::Arc;

use patroniglue::shell::tls::PROVIDER;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, HandshakeKind, NamedGroup, ProtocolVersion};

use crate::common::standin::{StandIn, at_once, primary};
use crate::common::{Glue, body, config, config_file, run, status_of};
use crate::tls_support::{
    Ca, Folder, ONLY_13, ask, client, connect, cryptography, refusal, section,
};
use crate::tls_tools::{Kind, OpenSsl, P256, P521, Server, tool};

const IS_AWS_LC: bool = cfg!(feature = "aws-lc-rs");
const RSA_4104: Kind = &["RSA", "-pkeyopt", "rsa_keygen_bits:4104"];

/// A CA's key, the digest that it signs with, and what ring's build says of it.
const CAS: [(Kind, &str, &str); 3] = [
    (P521, "sha512", "the key of Patroni's CA is P-521, which this build does not support"),
    (P521, "sha256", "the key of Patroni's CA is P-521, which this build does not support"),
    (P256, "sha512", "chain is signed by ECDSA with SHA-512, which this build does not support"),
];

#[test]
fn the_provider_is_the_one_that_was_chosen() {
    assert_eq!(PROVIDER.name, if IS_AWS_LC { "aws-lc-rs" } else { "ring" });
}

#[test]
fn a_ca_of_patroni_with_p521_or_sha512() {
    let Some(openssl) = OpenSsl::new() else { return };
    for (kind, digest, why) in CAS {
        let [ca, _] = openssl.ca(kind, digest);
        let [cert, key] = openssl.leaf(P256, digest, 3);
        let server = Server::start(&openssl.0, &["-cert", &cert, "-key", &key]);
        let cafile = format!("cafile: {ca}");
        let lines = [("backend", "scheme: https"), ("backend", cafile.as_str())];
        let mut glue = Glue::start(server.address, &lines);
        let (status, text) = glue.get("/primary");
        if IS_AWS_LC {
            assert_eq!((status, body(&text)), (200, "all is well"), "{why}: {text}");
            assert_eq!(glue.lines_with("does not support"), Vec::<String>::new());
            continue;
        }
        assert!(status == 503 && body(&text).contains(why), "{why}: {text}");
        let line = glue.wait_for_line("TLS with Patroni failed: ");
        assert!(line.contains(why), "{why}: {line}");
        if kind == P521 {
            let line = glue.wait_for_line("backend.cafile: ");
            assert!(line.contains("certificate 1 is P-521, which this build does not"), "{line}");
        }
    }
}

#[test]
fn a_certificate_of_patroni_with_a_p521_key() {
    let Some(openssl) = OpenSsl::new() else { return };
    let [ca, _] = openssl.ca(P256, "sha256");
    let [cert, key] = openssl.leaf(P521, "sha256", 3);
    let cafile = format!("cafile: {ca}");
    let lines = [("backend", "scheme: https"), ("backend", cafile.as_str())];
    let refusal = "its key is of a kind that this build does not support";
    // in TLS 1.2 rustls would have to offer P-521 as a key exchange group as well
    for (version, is_taken) in [("-tls1_3", IS_AWS_LC), ("-tls1_2", false)] {
        let server = Server::start(&openssl.0, &["-cert", &cert, "-key", &key, version]);
        let (status, text) = Glue::start(server.address, &lines).get("/primary");
        let (expected, words) = if is_taken { (200, "all is well") } else { (503, refusal) };
        assert_eq!((status, body(&text).contains(words)), (expected, true), "{version}: {text}");
    }
}

#[test]
fn a_certificate_of_ours_with_a_p521_or_long_rsa_key() {
    let Some(openssl) = OpenSsl::new() else { return };
    let [ca, _] = openssl.ca(P256, "sha256");
    for (kind, name) in [(P521, "P-521"), (RSA_4104, "RSA of more than 4096 bits")] {
        let [cert, key] = openssl.leaf(kind, "sha256", 3);
        let lines = [format!("certfile: {cert}"), format!("keyfile: {key}")];
        let frontend = section("frontend", &lines);
        if !IS_AWS_LC {
            let path = config_file(&config("127.0.0.1", 1, &frontend));
            let (code, _, stderr) = run(&["-check", "-config", &path.display().to_string()]);
            assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{name}: {stderr}");
            let why = format!("the certificate's key is {name}, which this build does not support");
            assert!(stderr.contains(&why), "{why}: {stderr}");
            let _ = std::fs::remove_file(path);
            continue;
        }
        let patroni = StandIn::start(at_once(primary()));
        let glue = Glue::start(patroni.address, &frontend);
        let connect = glue.address.to_string();
        let common = ["s_client", "-connect", &connect, "-CAfile", &ca, "-verify_return_error"];
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments = [&common[..], &["-ign_eof", version]].concat();
            let text = tool("openssl", &arguments, REQUEST).expect("installed");
            assert!(text.contains("HTTP/1.1 200 OK"), "{name} {version}: {text}");
        }
        // and presented to a Patroni that requires a certificate
        let arguments = ["-cert", &cert, "-key", &key, "-CAfile", &ca, "-Verify", "1"];
        let arguments = [&arguments[..], &["-verify_return_error"]].concat();
        let server = Server::start(&openssl.0, &arguments);
        let mut lines = section("backend", &lines);
        lines.extend([("backend", "scheme: https"), ("backend", "insecure: yes")]);
        let (status, text) = Glue::start(server.address, &lines).get("/primary");
        assert_eq!((status, body(&text)), (200, "all is well"), "{name}: {text}");
    }
}

#[test]
fn a_client_s_certificate_with_p521_or_sha512() {
    let Some(openssl) = OpenSsl::new() else { return };
    let (folder, own_ca) = (Folder::new(), Ca::new("root"));
    let own = own_ca.issue().lines(&folder, "server");
    let own_cafile = folder.write("ca.pem", &own_ca.pem);
    let table: [(Kind, &str, Kind, &str); 3] = [
        (P521, "sha256", P256, "the key of its CA is of a kind that this build does not support"),
        (P256, "sha512", P256, "is signed by ECDSA with SHA-512, which this build does not"),
        // OpenSSL presents none, because the key fits no scheme that ring's build asks for
        (P256, "sha256", P521, "it presents no certificate; frontend.cafile requires one"),
    ];
    for (ca_kind, digest, kind, why) in table {
        let [ca, _] = openssl.ca(ca_kind, digest);
        let [cert, key] = openssl.leaf(kind, digest, 3);
        let lines = [own.to_vec(), vec![format!("cafile: {ca}")]].concat();
        let patroni = StandIn::start(at_once(primary()));
        let mut glue = Glue::start(patroni.address, &section("frontend", &lines));
        let connect = glue.address.to_string();
        let common = ["s_client", "-connect", &connect, "-CAfile", &own_cafile, "-ign_eof"];
        let arguments = [&common[..], &["-tls1_3", "-cert", &cert, "-key", &key]].concat();
        let text = tool("openssl", &arguments, REQUEST).expect("installed");
        assert_eq!(text.contains("HTTP/1.1 200 OK"), IS_AWS_LC, "{why}: {text}");
        if !IS_AWS_LC {
            let line = glue.wait_for_line("TLS client ");
            assert!(line.contains(why), "{why}: {line}");
        }
    }
}

/// A group that only names itself: its hello is refused, or answered and then not understood.
#[derive(Debug)]
struct HybridInName;

impl SupportedKxGroup for HybridInName {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(HybridInName))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

impl ActiveKeyExchange for HybridInName {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        Err(Error::General("it has no secret".to_owned()))
    }

    fn pub_key(&self) -> &[u8] {
        &[0; 1_216]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

#[test]
fn a_client_that_offers_x25519mlkem768_alone() {
    let (folder, ca) = (Folder::new(), Ca::new("root"));
    let patroni = StandIn::start(at_once(primary()));
    let lines = ca.issue().lines(&folder, "server");
    let mut glue = Glue::start(patroni.address, &section("frontend", &lines));
    let mut hybrid = cryptography::default_provider();
    hybrid.kx_groups.retain(|group| group.name() == NamedGroup::X25519MLKEM768);
    assert_eq!(!hybrid.kx_groups.is_empty(), IS_AWS_LC);
    if !IS_AWS_LC {
        hybrid.kx_groups.push(&HybridInName);
    }
    let trusting = client_with(hybrid, &ca);
    let mut stream = connect(&Arc::new(trusting), glue.address);
    if IS_AWS_LC {
        assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
        let group = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full));
    } else {
        refusal(&mut stream);
        let line = glue.wait_for_line("TLS client ");
        assert!(line.contains("no key exchange group in common"), "{line}");
    }
    // the others are preferred: they cost a third of its CPU
    let mut stream = connect(&Arc::new(client(&ca.pem, ONLY_13, None)), glue.address);
    assert_eq!(status_of(&ask(&mut stream, "/primary").expect("an answer")), 200);
    let group = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, Some(NamedGroup::X25519));
}

fn client_with(provider: rustls::crypto::CryptoProvider, ca: &Ca) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(ONLY_13).expect("a version");
    builder.with_root_certificates(crate::tls_support::roots(&ca.pem)).with_no_client_auth()
}

const REQUEST: &[u8] = b"GET /primary HTTP/1.0\r\n\r\n";
