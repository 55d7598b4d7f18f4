//! Verifiers of an upstream's certificate.

use std::sync::Arc;
use std::{fmt, iter};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::certificate::Certificate;
use crate::failure::TlsFailure;

/// Accepts certificates that a trusted CA signed, and certificates that `cafile` itself contains:
/// `openssl req -x509` makes a CA certificate, which webpki does not accept as a server's.
#[derive(Debug)]
pub(super) struct OwnOrSigned {
    pub(super) webpki: Arc<WebPkiServerVerifier>,
    pub(super) own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OwnOrSigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // webpki checks the validity before this, and the name after it
            Err(Error::InvalidCertificate(why))
                if is_ca_as_server(&why) && self.own.contains(end_entity) =>
            {
                let name =
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name);
                name.map_err(|error| self.explained(error, end_entity, intermediates))?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(self.explained(error, end_entity, intermediates)),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls12_signature(message, cert, signature);
        verified.map_err(|error| explained_by_key(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls13_signature(message, cert, signature);
        verified.map_err(|error| explained_by_key(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// A cause that webpki's error does not name.
#[derive(Debug)]
pub(super) struct Explained(pub TlsFailure);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Explained {}

impl OwnOrSigned {
    /// webpki's error, replaced if the certificates show a cause that it does not name.
    fn explained(
        &self,
        error: Error,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Error {
        let Error::InvalidCertificate(why) = &error else { return error };
        let chain: Vec<&CertificateDer<'_>> = iter::once(end_entity).chain(intermediates).collect();
        let roots: Vec<&CertificateDer<'_>> = self.own.iter().collect();
        match cause(why, &read(&chain), &read(&roots)) {
            Some(failure) => explain(failure),
            None => error,
        }
    }
}

fn read<'a>(ders: &[&'a CertificateDer<'_>]) -> Vec<Certificate<'a>> {
    ders.iter().filter_map(|der| Certificate::read(der)).collect()
}

/// What the certificates show of webpki's refusal of `chain`, which begins with the server's.
fn cause(
    why: &CertificateError,
    chain: &[Certificate<'_>],
    roots: &[Certificate<'_>],
) -> Option<TlsFailure> {
    use CertificateError as Why;
    let unsupported_key = || {
        let signs = |root: &&Certificate<'_>| chain.iter().any(|one| one.issuer == root.subject);
        let mut issuers = chain.iter().skip(1).chain(roots.iter().filter(signs));
        let kind = issuers.find_map(|issuer| issuer.key.unverifiable())?;
        Some(TlsFailure::UnsupportedCaKey(kind))
    };
    match why {
        Why::NotValidForName | Why::NotValidForNameContext { .. } => {
            (!chain.first()?.has_alt_name).then_some(TlsFailure::CertificateWithoutNames)
        }
        // both providers report an RSA key of a wrong size as a wrong signature
        Why::BadSignature => unsupported_key().or(Some(TlsFailure::CertificateSignature)),
        Why::UnsupportedSignatureAlgorithmContext { .. }
        | Why::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => unsupported_key()
            .or_else(|| {
                let algorithm = chain.iter().find_map(|one| one.signature.unverifiable())?;
                Some(TlsFailure::UnsupportedSignature(algorithm))
            }),
        Why::Other(_) => {
            let is_old = chain.iter().any(|one| one.version < 3);
            is_old.then_some(TlsFailure::CertificateVersion)
        }
        _ => None,
    }
}

/// The error of a handshake's signature, replaced if the server's key is of an unsupported kind.
fn explained_by_key(error: Error, certificate: &CertificateDer<'_>) -> Error {
    let certificate = Certificate::read(certificate);
    match certificate.and_then(|certificate| certificate.key.unverifiable()) {
        Some(kind) => explain(TlsFailure::UnsupportedKey(kind)),
        None => error,
    }
}

fn explain(failure: TlsFailure) -> Error {
    CertificateError::Other(OtherError(Arc::new(Explained(failure)))).into()
}

/// Whether webpki reports a CA certificate as a server's: rustls has no variant for this error.
pub(super) fn is_ca_as_server(why: &CertificateError) -> bool {
    matches!(why, CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity")
}

/// Accepts any certificate of an upstream, as `insecure` says. An attacker in the middle can
/// present its own, so checking the handshake's signature would protect nothing. Without that
/// check, certificates work that webpki cannot read: X.509 v1, RSA of 1024 bits, P-521.
#[derive(Debug)]
pub(super) struct Unchecked;

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        EVERY_SCHEME.to_vec()
    }
}

/// All schemes that rustls has a name for; a server picks one that fits its certificate.
const EVERY_SCHEME: [SignatureScheme; 16] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::ED448,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::ML_DSA_44,
    SignatureScheme::ML_DSA_65,
    SignatureScheme::ML_DSA_87,
    SignatureScheme::ECDSA_SHA1_Legacy,
    SignatureScheme::RSA_PKCS1_SHA1,
];
