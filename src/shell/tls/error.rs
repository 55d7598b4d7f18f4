//! TLS errors in plain words: no names of rustls and no bytes in log lines and responses.

use std::fmt::{self, Debug};

use rustls::pki_types::UnixTime;
use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved,
};

use super::certificate::{Signature, date};
use super::verify::{Explained, is_ca_as_server};
use crate::failure::{Failure, TlsFailure, UNSUPPORTED_KEY, UNSUPPORTED_SIGNATURE};

/// Why a session failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// The fetch's failure.
    pub failure: Failure,
    /// The cause, for the log. *It* is the peer.
    pub text: String,
}

/// The peer of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

impl TlsError {
    pub(super) fn of(error: &Error, peer: Peer) -> TlsError {
        TlsError { failure: Failure::Tls(failure(error)), text: describe(error, peer) }
    }

    /// No certificate can contain this name.
    pub(super) fn no_name(host: &str) -> TlsError {
        let text = format!("{host:?} is neither a host name nor an address");
        TlsError { failure: Failure::Tls(TlsFailure::Other), text }
    }

    /// The peer's first bytes are not TLS.
    pub(super) fn not_tls(first: &[u8]) -> TlsError {
        let begins_with = |starts: &[&[u8]]| starts.iter().any(|start| first.starts_with(start));
        let text = if begins_with(PLAIN_HTTP) {
            "it speaks plain HTTP"
        } else if begins_with(PROXY_HEADERS) {
            "it sends a PROXY header; set frontend.proxy-protocol, or remove check-send-proxy and send-proxy"
        } else {
            "it does not speak TLS"
        };
        TlsError { failure: Failure::Tls(TlsFailure::NotTls), text: text.to_owned() }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The failure of a fetch.
fn failure(error: &Error) -> TlsFailure {
    use AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(why) => certificate_failure(why),
        Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate,
        ) => TlsFailure::ClientCertificate,
        // TLS 1.2 sends it for a missing client certificate, among other causes
        Error::AlertReceived(Alert::HandshakeFailure) => TlsFailure::HandshakeRefused,
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            TlsFailure::NoCommonVersion
        }
        _ => TlsFailure::Other,
    }
}

fn certificate_failure(why: &CertificateError) -> TlsFailure {
    use CertificateError as Why;
    match why {
        Why::Expired | Why::ExpiredContext { .. } => TlsFailure::CertificateExpired,
        Why::NotValidYet | Why::NotValidYetContext { .. } => TlsFailure::CertificateNotYetValid,
        Why::NotValidForName | Why::NotValidForNameContext { .. } => TlsFailure::CertificateName,
        Why::UnknownIssuer => TlsFailure::CertificateIssuer,
        Why::InvalidPurpose | Why::InvalidPurposeContext { .. } => TlsFailure::CertificatePurpose,
        why if is_ca_as_server(why) => TlsFailure::CertificateOfCa,
        why => explained(why).unwrap_or(TlsFailure::CertificateInvalid),
    }
}

/// The cause that our verifier found.
fn explained(why: &CertificateError) -> Option<TlsFailure> {
    let CertificateError::Other(other) = why else { return None };
    other.0.downcast_ref().map(|Explained(failure)| *failure)
}

fn describe(error: &Error, peer: Peer) -> String {
    let text = match error {
        Error::InvalidCertificate(why) => return describe_certificate(why, peer),
        Error::AlertReceived(alert) => return describe_alert(*alert, peer),
        Error::PeerIncompatible(why) => return describe_incompatible(why, peer),
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName)
        | Error::InvalidMessage(InvalidMessage::InvalidServerName) => {
            "its SNI is not a host name; in HAProxy use check-sni"
        }
        Error::InvalidMessage(why) => {
            return format!("it sent an invalid TLS message: {}", in_words(why));
        }
        Error::PeerMisbehaved(why) => return format!("it violates TLS: {}", in_words(why)),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "it sent a TLS message out of order"
        }
        Error::NoCertificatesPresented => {
            "it presents no certificate; frontend.cafile requires one"
        }
        Error::DecryptError => "it sent a record that cannot be decrypted",
        Error::PeerSentOversizedRecord => "it sent a TLS message over the size limit",
        Error::NoApplicationProtocol => "its ALPN offers neither http/1.1 nor http/1.0",
        Error::FailedToGetRandomBytes => "the system returns no random bytes",
        other => return format!("TLS failed: {}", in_words(other)),
    };
    text.to_owned()
}

fn describe_certificate(why: &CertificateError, peer: Peer) -> String {
    use CertificateError as Why;
    let seconds = |time: &UnixTime| date(time.as_secs());
    let text = match (why, peer) {
        (Why::ExpiredContext { not_after, .. }, _) => {
            return format!("its certificate expired on {}", seconds(not_after));
        }
        (Why::NotValidYetContext { not_before, .. }, _) => {
            return format!("its certificate is not valid before {}", seconds(not_before));
        }
        (Why::NotValidForNameContext { expected, presented }, _) => {
            let expected = expected.to_str();
            return format!("its certificate is for {}, not for {expected}", names(presented));
        }
        (Why::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. }, _) => {
            let algorithm = Signature::read_algorithm(signature_algorithm_id);
            let algorithm = algorithm.and_then(Signature::unverifiable).unwrap_or("a key");
            return format!(
                "its certificate is signed by {algorithm}, which {UNSUPPORTED_SIGNATURE}"
            );
        }
        (Why::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }, _) => {
            return format!("the key of its CA is of a kind that {UNSUPPORTED_KEY}");
        }
        (Why::UnknownIssuer, Peer::Client) => {
            "its certificate is not signed by a CA in frontend.cafile"
        }
        (Why::UnknownIssuer, Peer::Server) => "its certificate is not signed by a trusted CA",
        (Why::BadSignature, _) => {
            "its certificate is not signed by the trusted CA, but by another one of the same \
             name, or the CA's RSA key has less than 2048 bits"
        }
        (Why::InvalidPurpose | Why::InvalidPurposeContext { .. }, Peer::Client) => {
            "its certificate is not for clients: its extendedKeyUsage lacks clientAuth"
        }
        (Why::InvalidPurpose | Why::InvalidPurposeContext { .. }, Peer::Server) => {
            "its certificate is not for servers: its extendedKeyUsage lacks serverAuth"
        }
        (Why::Other(other), _) => match explained(why) {
            Some(failure) => return failure.to_string(),
            None if is_ca_as_server(why) => "its certificate is a CA certificate",
            None if other.to_string() == "UnsupportedCertVersion" => {
                "its certificate is not of X.509 version 3"
            }
            None => return format!("its certificate is not valid: {}", in_words(&other.0)),
        },
        (other, _) => return format!("its certificate is not valid: {}", in_words(other)),
    };
    text.to_owned()
}

fn describe_alert(alert: AlertDescription, peer: Peer) -> String {
    use AlertDescription as Alert;
    let name = match alert.as_str() {
        Some(name) => words(name).replace(' ', "_"),
        None => u8::from(alert).to_string(),
    };
    let meaning = match (alert, peer) {
        (
            Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate,
            _,
        ) => "it does not accept our certificate",
        (Alert::CertificateRequired, _) => "it requires a client certificate",
        (Alert::ProtocolVersion, _) => "no TLS version in common",
        (Alert::HandshakeFailure, _) => "it refuses the handshake",
        (Alert::UnrecognisedName, Peer::Server) => "it does not know backend.server-name",
        (Alert::NoApplicationProtocol, _) => "it does not speak HTTP/1.1",
        _ => "it ends the connection",
    };
    format!("{meaning} (alert {name})")
}

fn describe_incompatible(why: &PeerIncompatible, peer: Peer) -> String {
    use PeerIncompatible as Why;
    let (text, hint) = match why {
        // TLS 1.2 introduced this extension: a hello without it is of an older version,
        // and rustls checks this first
        Why::SignatureAlgorithmsExtensionRequired => ("it offers only TLS 1.1 or older", ""),
        Why::ServerDoesNotSupportTls12Or13
        | Why::ServerTlsVersionIsDisabledByOurConfig
        | Why::SupportedVersionsExtensionRequired
        | Why::Tls12NotOffered
        | Why::Tls12NotOfferedOrEnabled => {
            ("no TLS version in common", "; see frontend.tls-min-version")
        }
        Why::NoCipherSuitesInCommon => {
            ("no cipher suite in common", "; see frontend.tls-ciphers and the kind of the key")
        }
        Why::NoKxGroupsInCommon | Why::NamedGroupsExtensionRequired => {
            ("no key exchange group in common", "")
        }
        Why::NoSignatureSchemesInCommon => {
            ("no signature algorithm in common that fits the key", " in frontend.keyfile")
        }
        Why::NoCertificateRequestSignatureSchemesInCommon => {
            ("no signature algorithm in common that fits the key in backend.keyfile", "")
        }
        other => return format!("it lacks a part of TLS that is required: {}", in_words(other)),
    };
    match peer {
        Peer::Client => format!("{text}{hint}"),
        Peer::Server => text.to_owned(),
    }
}

/// The names of a certificate, at most `NAMES_MAX`. rustls returns them as `DnsName("pg1")`.
fn names(presented: &[String]) -> String {
    let shown = presented.iter().take(NAMES_MAX).map(|name| {
        let inside = name.split_once('(').map_or(name.as_str(), |(_, inside)| inside);
        let is_plain = |char: &char| char.is_ascii_alphanumeric() || "-_.:*".contains(*char);
        inside.chars().filter(is_plain).take(NAME_CHARS_MAX).collect::<String>()
    });
    let mut shown: Vec<String> = shown.collect();
    if presented.len() > NAMES_MAX {
        shown.push(format!("{} more", presented.len() - NAMES_MAX));
    }
    shown.join(", ")
}

/// The name of an enum's variant in words, without its data.
fn in_words(value: &impl Debug) -> String {
    words(&format!("{value:?}"))
}

/// `NoKxGroupsInCommon` as "no kx groups in common".
fn words(name: &str) -> String {
    let name: Vec<char> = name.chars().take_while(char::is_ascii_alphanumeric).collect();
    let mut words = String::new();
    for (at, char) in name.iter().enumerate() {
        let follows_small = at > 0 && !name[at - 1].is_ascii_uppercase();
        let before_small = name.get(at + 1).is_some_and(char::is_ascii_lowercase);
        if char.is_ascii_uppercase() && at > 0 && (follows_small || before_small) {
            words.push(' ');
        }
        words.push(char.to_ascii_lowercase());
    }
    words
}

/// First bytes of requests and responses. A TLS record's head has five bytes, so no more are sure
/// to be there.
const PLAIN_HTTP: &[&[u8]] = &[b"GET ", b"HEAD ", b"OPTIO", b"POST ", b"PUT ", b"HTTP/"];
/// First bytes of both versions of the PROXY protocol.
const PROXY_HEADERS: &[&[u8]] = &[b"PROXY", b"\r\n\r\n\0"];
const NAMES_MAX: usize = 4;
const NAME_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{ContentType, OtherError};
    use std::sync::Arc;

    fn certificate(why: CertificateError) -> Error {
        Error::InvalidCertificate(why)
    }

    #[test]
    fn each_error_is_a_plain_sentence() {
        let (time, end) = (UnixTime::since_unix_epoch(std::time::Duration::ZERO), "host name");
        let expected = ServerName::try_from("pg1").expect("a name");
        let presented = vec!["DnsName(\"x.test\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()];
        let signature_algorithm_id = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x01".to_vec();
        let unsupported = CertificateError::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id,
            supported_algorithms: Vec::new(),
        };
        let other = |text: &str| CertificateError::Other(OtherError(Arc::from(Box::from(text))));
        let table = [
            (PeerMisbehaved::ServerNameMustContainOneHostName.into(), "its SNI is not a host name"),
            (InvalidMessage::InvalidServerName.into(), end),
            (PeerMisbehaved::IncorrectBinder.into(), "it violates TLS: incorrect binder"),
            (InvalidMessage::MissingData("Key").into(), "an invalid TLS message: missing data"),
            (PeerIncompatible::Tls12NotOffered.into(), "in common; see frontend.tls-min-version"),
            (PeerIncompatible::NoKxGroupsInCommon.into(), "no key exchange group in common"),
            (PeerIncompatible::NoEcPointFormatsInCommon.into(), "no ec point formats in common"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "certificate (alert unknown_ca)"),
            (Error::AlertReceived(AlertDescription::UnknownPSKIdentity), "unknown_psk_identity)"),
            (Error::AlertReceived(AlertDescription::from(200)), "(alert 200)"),
            (Error::NoApplicationProtocol, "its ALPN offers neither http/1.1 nor http/1.0"),
            (Error::General("Rust".to_owned()), "TLS failed: general"),
            (Error::NoCertificatesPresented, "it presents no certificate"),
            (certificate(CertificateError::UnknownIssuer), "by a CA in frontend.cafile"),
            (certificate(CertificateError::BadEncoding), "is not valid: bad encoding"),
            (certificate(unsupported), "signed by ECDSA with SHA-224, which this build does not"),
            (certificate(other("CaUsedAsEndEntity")), "its certificate is a CA certificate"),
            (certificate(other("UnsupportedCertVersion")), "is not of X.509 version 3"),
            (certificate(CertificateError::InvalidPurpose), "lacks clientAuth"),
            (
                certificate(CertificateError::ExpiredContext { time, not_after: time }),
                "its certificate expired on Thu, 01 Jan 1970 00:00:00 GMT",
            ),
            (
                certificate(CertificateError::NotValidForNameContext { expected, presented }),
                "its certificate is for x.test, 10.0.0.1, not for pg1",
            ),
            (
                Error::InappropriateMessage {
                    expect_types: vec![ContentType::Handshake],
                    got_type: ContentType::ApplicationData,
                },
                "it sent a TLS message out of order",
            ),
        ];
        for (error, expected) in table {
            let text = TlsError::of(&error, Peer::Client).text;
            assert!(text.contains(expected), "{expected}: {text}");
            assert!(text.len() < 160 && !text.contains(['{', '[', '"', '\n']), "{text}");
        }
    }

    #[test]
    fn other_protocols_on_the_port_are_named() {
        let table: [(&[u8], &str); 6] = [
            (b"GET /", "it speaks plain HTTP"),
            (b"OPTIONS / HTTP/1.0\r\n", "it speaks plain HTTP"),
            (b"HTTP/1.0 400", "it speaks plain HTTP"),
            (b"PROXY TCP4", "it sends a PROXY header"),
            (b"\r\n\r\n\0\r\nQUIT\n", "it sends a PROXY header"),
            (b"\x80\x2e\x01\x00\x02", "it does not speak TLS"),
        ];
        for (first, expected) in table {
            let error = TlsError::not_tls(first);
            assert!(error.text.starts_with(expected), "{first:?}: {error}");
        }
    }
}
