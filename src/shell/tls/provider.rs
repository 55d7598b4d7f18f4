//! The cryptography of TLS, chosen by a feature of the crate. No other file names a provider.

use std::sync::Arc;

use rustls::Error;
use rustls::crypto::CryptoProvider;
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as chosen;
#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
use rustls::crypto::ring as chosen;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::ProducesTickets;
use rustls::sign::SigningKey;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!(
    "no cryptography is chosen: build with the default feature aws-lc-rs, or with \
     --no-default-features --features ring"
);

/// What the chosen provider is called, and what it supports.
pub struct Provider {
    /// The name of its crate, and of the feature that chooses it.
    pub name: &'static str,
    /// Whether it knows P-521, and SHA-512 with all curves of ECDSA.
    pub has_p521_and_sha512: bool,
    /// Whether it knows ML-DSA (RFC 9881).
    pub has_ml_dsa: bool,
    /// The shortest RSA key that it verifies and signs with.
    pub rsa_bits_min: usize,
    /// The longest RSA key that it signs with.
    pub rsa_sign_bits_max: usize,
    /// The private keys that it signs with, in words.
    pub keys: &'static str,
}

/// The provider of this build: aws-lc-rs, if both are chosen, as by `--all-features`.
pub const PROVIDER: Provider = if cfg!(feature = "aws-lc-rs") {
    Provider {
        name: "aws-lc-rs",
        has_p521_and_sha512: true,
        has_ml_dsa: true,
        rsa_bits_min: 2_048,
        rsa_sign_bits_max: 8_192,
        keys: "RSA of 2048 to 8192 bits, ECDSA P-256/P-384/P-521 or Ed25519",
    }
} else {
    Provider {
        name: "ring",
        has_p521_and_sha512: false,
        has_ml_dsa: false,
        // it rounds the length up to whole bytes
        rsa_bits_min: 2_041,
        rsa_sign_bits_max: 4_096,
        keys: "RSA of 2048 to 4096 bits, ECDSA P-256/P-384 or Ed25519",
    }
};

/// Its cipher suites, key exchange groups and signature algorithms.
pub(super) fn cryptography() -> CryptoProvider {
    chosen::default_provider()
}

/// Encrypts the tickets of a listener, with keys that change every six hours.
pub(super) fn ticketer() -> Result<Arc<dyn ProducesTickets>, Error> {
    chosen::Ticketer::new()
}

/// The key of a certificate of ours. The error has no usable reason.
pub(super) fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
    chosen::sign::any_supported_type(key)
}
