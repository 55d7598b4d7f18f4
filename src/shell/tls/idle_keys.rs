//! Keys of idle sessions: the key of received records is kept as 32 bytes, and expanded for each.
//!
//! rustls keeps a client's chain until the connection ends, 640 bytes for one certificate, and has
//! no way to drop it. An expanded key is 560 bytes. To expand it again takes 1,600 instructions a
//! record, so that only sessions with client certificates do so.

use std::sync::{Mutex, PoisonError};

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::{ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls13CipherSuite};

/// Lets the sessions of this provider keep keys of received records unexpanded: with TLS 1.3 and
/// keys of 32 bytes, the only ones that rustls lets others make.
pub fn keep_unexpanded(provider: &mut CryptoProvider) {
    for suite in &mut provider.cipher_suites {
        match *suite {
            SupportedCipherSuite::Tls13(inner) if inner.aead_alg.key_len() == KEY_BYTES => {
                *suite = SupportedCipherSuite::Tls13(unexpanded(inner));
            }
            _ => {}
        }
    }
}

/// A suite that expands keys for each record. rustls takes suites that live forever: each is made
/// once, however often the configuration is read.
fn unexpanded(inner: &'static Tls13CipherSuite) -> &'static Tls13CipherSuite {
    static MADE: Mutex<Vec<&'static Tls13CipherSuite>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let known = made.iter().find(|suite| suite.common.suite == inner.common.suite);
    if let Some(suite) = known {
        return suite;
    }
    let CipherSuiteCommon { suite, hash_provider, confidentiality_limit } = inner.common;
    let suite: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon { suite, hash_provider, confidentiality_limit },
        hkdf_provider: inner.hkdf_provider,
        aead_alg: Box::leak(Box::new(Unexpanded(inner.aead_alg))),
        quic: None,
    }));
    made.push(suite);
    suite
}

/// An algorithm whose decrypters keep the key as it is.
struct Unexpanded(&'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for Unexpanded {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Decrypter { algorithm: self.0, key, iv })
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct Decrypter {
    algorithm: &'static dyn Tls13AeadAlgorithm,
    key: AeadKey,
    iv: Iv,
}

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(
        &mut self,
        record: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let key = <[u8; KEY_BYTES]>::try_from(self.key.as_ref());
        let key = AeadKey::from(key.map_err(|_| Error::DecryptError)?);
        let iv = Iv::copy(self.iv.as_ref());
        self.algorithm.decrypter(key, iv).decrypt(record, sequence)
    }
}

/// Of AES-256 and ChaCha20.
const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::super::provider::cryptography;
    use super::*;

    #[test]
    fn only_suites_of_tls_1_3_with_long_keys_are_replaced() {
        let (plain, mut kept) = (cryptography(), cryptography());
        keep_unexpanded(&mut kept);
        let names = |provider: &CryptoProvider| -> Vec<_> {
            provider.cipher_suites.iter().map(SupportedCipherSuite::suite).collect()
        };
        assert_eq!(names(&kept), names(&plain));
        let pairs = kept.cipher_suites.iter().zip(&plain.cipher_suites);
        let replaced = pairs.filter(|(kept, plain)| match (kept.tls13(), plain.tls13()) {
            (Some(kept), Some(plain)) => !std::ptr::eq(kept, plain),
            _ => false,
        });
        let replaced: Vec<_> = replaced.map(|(kept, _)| format!("{:?}", kept.suite())).collect();
        assert_eq!(replaced, ["TLS13_AES_256_GCM_SHA384", "TLS13_CHACHA20_POLY1305_SHA256"]);
    }

    #[test]
    fn a_suite_is_made_once() {
        let of = |mut provider: CryptoProvider| {
            keep_unexpanded(&mut provider);
            provider.cipher_suites[0].tls13().expect("the first is of TLS 1.3")
        };
        assert!(std::ptr::eq(of(cryptography()), of(cryptography())));
    }
}
