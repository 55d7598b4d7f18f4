//! Why a fetch brought no answer, by whose fault it is, and the sentence that clients and the log
//! get of it.

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
    /// No connection, or no whole answer, in time.
    TimedOut,
    /// The TLS handshake did not complete in time: Patroni is frozen, or it speaks plain HTTP and
    /// waits for the end of a line.
    HandshakeTimedOut,
    /// RST, or another error on an open connection.
    Reset,
    /// Patroni closed the connection without a byte, as a handler that throws does.
    Closed,
    /// The answer ended too early, or its JSON does not parse.
    Cut,
    /// The answer is not HTTP.
    Garbage,
    /// The answer is larger than the limit.
    TooLarge,
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

impl Failure {
    /// Whether Patroni may only be frozen. Any other failure says that it is gone, or broken.
    pub fn is_silence(self) -> bool {
        matches!(self, Failure::TimedOut | Failure::HandshakeTimedOut)
    }

    /// Whether Patroni has certainly not seen the request.
    pub fn is_before_request(self) -> bool {
        use Failure::{NoDescriptor, Refused, Unreachable, Unresolved};
        matches!(self, Refused | Unreachable | Unresolved | NoDescriptor)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Refused => "Patroni refused the connection",
            Failure::Unreachable => "Patroni's address cannot be reached",
            Failure::Unresolved => "Patroni's name cannot be resolved",
            Failure::NoDescriptor => "no file descriptor is left to ask Patroni",
            Failure::TimedOut => "Patroni did not answer in time",
            Failure::HandshakeTimedOut => {
                "Patroni did not complete the TLS handshake in time; is backend.scheme right?"
            }
            Failure::Reset => "Patroni reset the connection",
            Failure::Closed => "Patroni closed the connection without an answer",
            Failure::Cut => "Patroni's answer was cut short",
            Failure::Garbage => "Patroni's answer is not HTTP",
            Failure::TooLarge => "Patroni's answer is too large",
            Failure::Tls(why) => return why.fmt(f),
        })
    }
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
            TlsFailure::CertificateInvalid => "Patroni's certificate is not valid",
            TlsFailure::ClientCertificate => {
                "Patroni requires a client certificate that it trusts; set backend.certfile"
            }
            TlsFailure::HandshakeRefused => {
                "Patroni refused the TLS handshake: it may require backend.certfile, or there is \
                 no TLS version or cipher suite in common"
            }
            TlsFailure::NoCommonVersion => {
                "no TLS version, cipher suite or key exchange in common with Patroni"
            }
            TlsFailure::NotTls => "Patroni does not speak TLS on this port; set backend.scheme",
            TlsFailure::Other => "the TLS connection to Patroni failed",
        })
    }
}
