//! Why a fetch brought no answer, whose fault it is, and the sentence about it for clients and the
//! log.

use std::fmt;

/// Why a fetch brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens at Patroni's address.
    Refused,
    /// The network or the system gave another error on connecting.
    Unreachable,
    /// Patroni's name has no address at the moment.
    Unresolved,
    /// This process has no file descriptor left.
    NoDescriptor,
    /// The fetch's time ran out while it was queued.
    NoRoom,
    /// No connection, or no whole answer, in time.
    TimedOut,
    /// The TLS handshake did not complete in time: Patroni is frozen, or it speaks plain HTTP and
    /// waits for the end of a line.
    HandshakeTimedOut,
    /// RST, or another error on an open connection, before a byte of the answer.
    Reset,
    /// Patroni closed the connection without a byte, as a handler that throws does.
    Closed,
    /// The answer ended too early, or its JSON is not whole.
    Cut,
    /// The answer is not HTTP.
    Garbage,
    /// The answer is larger than the limit.
    TooLarge,
    /// The answer is patroniglue's own: `backend` is its own frontend, or another patroniglue's.
    Patroniglue,
    /// TLS failed.
    Tls(TlsFailure),
}

/// Why TLS with Patroni failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// Patroni's certificate has expired.
    CertificateExpired,
    /// Patroni's certificate is not valid yet.
    CertificateNotYetValid,
    /// Patroni's certificate is for another name.
    CertificateName,
    /// Patroni's certificate is not signed by a trusted CA.
    CertificateIssuer,
    /// Patroni's certificate is a CA certificate that `backend.cafile` does not contain.
    CertificateOfCa,
    /// Patroni's certificate has no subjectAltName.
    CertificateWithoutNames,
    /// Patroni's certificate, or one of its chain, is older than X.509 version 3.
    CertificateVersion,
    /// Patroni's certificate is not for servers.
    CertificatePurpose,
    /// Patroni's certificate is signed by another key than the CA's of that name.
    CertificateSignature,
    /// The key of Patroni's CA is of this kind.
    UnsupportedCaKey(&'static str),
    /// The key of Patroni's certificate is of this kind.
    UnsupportedKey(&'static str),
    /// Patroni's certificate chain has a signature by this algorithm.
    UnsupportedSignature(&'static str),
    /// Patroni's certificate is not valid for another reason.
    CertificateInvalid,
    /// Patroni requires a client certificate, or rejected ours.
    ClientCertificate,
    /// Patroni refused the handshake without a reason.
    HandshakeRefused,
    /// No TLS version or cipher suite in common.
    NoCommonVersion,
    /// Patroni's answer to the TLS hello is not TLS.
    NotTls,
    /// Any other TLS error.
    Other,
}

/// Whose fault a failure is, and so what it means for answers in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// Patroni is silent: it may only be frozen, and stale answers may be served.
    Silent,
    /// Patroni is gone: nothing it said before may be served stale.
    Gone,
    /// Patroni answered, but not usably: this ends the answer in memory to the same target.
    Broken,
    /// We could not ask: nothing is known about Patroni.
    Ours,
}

impl Failure {
    /// Whose fault it is.
    pub fn culprit(self) -> Culprit {
        match self {
            Failure::TimedOut | Failure::HandshakeTimedOut => Culprit::Silent,
            Failure::Refused | Failure::Unreachable | Failure::Unresolved | Failure::Reset => {
                Culprit::Gone
            }
            Failure::Closed
            | Failure::Cut
            | Failure::Garbage
            | Failure::TooLarge
            | Failure::Patroniglue
            | Failure::Tls(_) => Culprit::Broken,
            Failure::NoDescriptor | Failure::NoRoom => Culprit::Ours,
        }
    }

    /// Its name in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::Unreachable => "unreachable",
            Failure::Unresolved => "unresolved",
            Failure::NoDescriptor => "no_descriptor",
            Failure::NoRoom => "no_room",
            Failure::TimedOut => "timed_out",
            Failure::HandshakeTimedOut => "handshake_timed_out",
            Failure::Reset => "reset",
            Failure::Closed => "closed",
            Failure::Cut => "cut",
            Failure::Garbage => "garbage",
            Failure::TooLarge => "too_large",
            Failure::Patroniglue => "patroniglue",
            Failure::Tls(why) => why.name(),
        }
    }

    /// Whether Patroni has certainly not seen the request.
    pub fn is_before_request(self) -> bool {
        use Failure::{NoDescriptor, NoRoom, Refused, Unreachable, Unresolved};
        matches!(self, Refused | Unreachable | Unresolved | NoDescriptor | NoRoom)
    }
}

impl TlsFailure {
    fn name(self) -> &'static str {
        match self {
            TlsFailure::CertificateExpired => "certificate_expired",
            TlsFailure::CertificateNotYetValid => "certificate_not_yet_valid",
            TlsFailure::CertificateName => "certificate_name",
            TlsFailure::CertificateIssuer => "certificate_issuer",
            TlsFailure::CertificateOfCa => "certificate_of_ca",
            TlsFailure::CertificateWithoutNames => "certificate_without_names",
            TlsFailure::CertificateVersion => "certificate_version",
            TlsFailure::CertificatePurpose => "certificate_purpose",
            TlsFailure::CertificateSignature => "certificate_signature",
            TlsFailure::UnsupportedCaKey(_) => "unsupported_ca_key",
            TlsFailure::UnsupportedKey(_) => "unsupported_key",
            TlsFailure::UnsupportedSignature(_) => "unsupported_signature",
            TlsFailure::CertificateInvalid => "certificate_invalid",
            TlsFailure::ClientCertificate => "client_certificate",
            TlsFailure::HandshakeRefused => "handshake_refused",
            TlsFailure::NoCommonVersion => "no_common_version",
            TlsFailure::NotTls => "not_tls",
            TlsFailure::Other => "tls_other",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Refused => "Patroni refused the connection",
            Failure::Unreachable => "Patroni's address cannot be reached",
            Failure::Unresolved => "Patroni's name cannot be resolved",
            Failure::NoDescriptor => "no file descriptor is left to ask Patroni",
            Failure::NoRoom => "all connections to Patroni are busy",
            Failure::TimedOut => "Patroni did not answer in time",
            Failure::HandshakeTimedOut => {
                "Patroni did not complete the TLS handshake in time; is backend.scheme right?"
            }
            Failure::Reset => "Patroni reset the connection",
            Failure::Closed => "Patroni closed the connection without an answer",
            Failure::Cut => "Patroni's answer was cut short",
            Failure::Garbage => "Patroni's answer is not HTTP",
            Failure::TooLarge => "Patroni's answer is too large",
            Failure::Patroniglue => {
                "this is patroniglue itself; set backend.host and backend.port to Patroni's"
            }
            Failure::Tls(why) => return why.fmt(f),
        })
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            TlsFailure::UnsupportedCaKey(kind) => {
                return write!(f, "the key of Patroni's CA is {kind}, which {UNSUPPORTED_KEY}");
            }
            TlsFailure::UnsupportedKey(kind) => {
                let whose = "the key of Patroni's certificate";
                return write!(f, "{whose} is {kind}, which {UNSUPPORTED_KEY}");
            }
            TlsFailure::UnsupportedSignature(algorithm) => {
                let whose = "Patroni's certificate chain";
                return write!(
                    f,
                    "{whose} is signed by {algorithm}, which {UNSUPPORTED_SIGNATURE}"
                );
            }
            TlsFailure::CertificateExpired => "Patroni's certificate has expired",
            TlsFailure::CertificateNotYetValid => "Patroni's certificate is not valid yet",
            TlsFailure::CertificateName => {
                "Patroni's certificate is for another name than backend.server-name"
            }
            TlsFailure::CertificateIssuer => {
                "Patroni's certificate is not signed by a trusted CA; set backend.cafile"
            }
            TlsFailure::CertificateOfCa => {
                "Patroni's certificate is a CA certificate that backend.cafile does not contain"
            }
            TlsFailure::CertificateWithoutNames => {
                "Patroni's certificate has no subjectAltName; issue it with one (the common name \
                 is not looked at)"
            }
            TlsFailure::CertificateVersion => {
                "Patroni's certificate is not of X.509 version 3; issue it with extensions, such \
                 as subjectAltName"
            }
            TlsFailure::CertificatePurpose => {
                "Patroni's certificate is not for servers; issue it with serverAuth in its \
                 extendedKeyUsage"
            }
            TlsFailure::CertificateSignature => {
                "Patroni's certificate is not signed by the CA in backend.cafile, but by another \
                 one of the same name"
            }
            TlsFailure::CertificateInvalid => "Patroni's certificate is not valid",
            TlsFailure::ClientCertificate => {
                "Patroni requires a client certificate that it trusts; set backend.certfile"
            }
            TlsFailure::HandshakeRefused => {
                "Patroni refused the TLS handshake: it may require backend.certfile, or there is \
                 no TLS version or cipher suite in common, or its key is of a kind that this build \
                 does not support"
            }
            TlsFailure::NoCommonVersion => {
                "no TLS version, cipher suite or key exchange in common with Patroni"
            }
            TlsFailure::NotTls => "Patroni does not speak TLS on this port; set backend.scheme",
            TlsFailure::Other => "the TLS connection to Patroni failed",
        };
        f.write_str(text)
    }
}

/// Follows the name of an unsupported kind of key.
pub const UNSUPPORTED_KEY: &str =
    "this build does not support; use P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits";
/// Follows the name of an unsupported algorithm of a signature.
pub const UNSUPPORTED_SIGNATURE: &str =
    "this build does not support; have the CA sign with SHA-256 or SHA-384";

#[cfg(test)]
mod tests {
    use super::*;
    use Failure::*;

    #[test]
    fn every_failure_has_its_culprit() {
        // whose fault, and whether Patroni has certainly not seen the request
        let table = [
            (Refused, Culprit::Gone, true),
            (Unreachable, Culprit::Gone, true),
            (Unresolved, Culprit::Gone, true),
            (Reset, Culprit::Gone, false),
            (TimedOut, Culprit::Silent, false),
            (HandshakeTimedOut, Culprit::Silent, false),
            (Closed, Culprit::Broken, false),
            (Cut, Culprit::Broken, false),
            (Garbage, Culprit::Broken, false),
            (TooLarge, Culprit::Broken, false),
            (Patroniglue, Culprit::Broken, false),
            (Tls(TlsFailure::Other), Culprit::Broken, false),
            (NoDescriptor, Culprit::Ours, true),
            (NoRoom, Culprit::Ours, true),
        ];
        for (failure, culprit, is_unseen) in table {
            assert_eq!(failure.culprit(), culprit, "{failure:?}");
            assert_eq!(failure.is_before_request(), is_unseen, "{failure:?}");
        }
    }
}
