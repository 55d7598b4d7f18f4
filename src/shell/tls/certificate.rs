//! Facts of an X.509 certificate that webpki does not return, read from its DER (RFC 5280).
//!
//! Nothing is verified here: the facts explain refusals, and warn of them before they happen.

use std::time::{Duration, UNIX_EPOCH};

use super::provider::PROVIDER;

/// A certificate, as far as its facts are needed.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// 1, 2 or 3.
    pub version: u8,
    /// The algorithm of the issuer's signature.
    pub signature: Signature,
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub not_after: u64,
    pub key: Key,
    /// The whole SubjectPublicKeyInfo.
    pub public_key_info: &'a [u8],
    pub has_alt_name: bool,
    /// Whether basicConstraints marks it as a CA's.
    pub is_ca: bool,
}

/// A kind of public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Rsa {
        bits: usize,
    },
    P256,
    P384,
    P521,
    Ed25519,
    MlDsa,
    /// A kind that no provider has code for.
    Other(&'static str),
}

/// An algorithm of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// Both providers verify it with the right kind of key.
    Supported,
    /// RSA-PSS: supported with some of its parameters.
    RsaPss,
    EcdsaSha512,
    MlDsa,
    /// An algorithm that no provider has code for.
    Other(&'static str),
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` if its DER is invalid.
    pub fn read(der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut fields = Reader(Reader(der).expect(SEQUENCE)?);
        let mut fields = Reader(fields.expect(SEQUENCE)?);
        let version = match fields.optional(VERSION)? {
            Some(explicit) => Reader(explicit).expect(INTEGER)?.last()?.checked_add(1)?,
            None => 1,
        };
        fields.expect(INTEGER)?;
        let signature = Signature::read_algorithm(fields.expect(SEQUENCE)?)?;
        let issuer = fields.expect(SEQUENCE)?;
        let mut validity = Reader(fields.expect(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = fields.expect(SEQUENCE)?;
        let before_key = fields.0;
        let key = Key::read(fields.expect(SEQUENCE)?)?;
        let public_key_info = &before_key[..before_key.len() - fields.0.len()];
        let mut certificate = Certificate {
            version,
            signature,
            issuer,
            subject,
            not_before,
            not_after,
            key,
            public_key_info,
            has_alt_name: false,
            is_ca: false,
        };
        while let Some((tag, content)) = fields.next_element()? {
            if tag == EXTENSIONS {
                certificate.read_extensions(content)?;
            }
        }
        Some(certificate)
    }

    fn read_extensions(&mut self, explicit: &[u8]) -> Option<()> {
        let mut extensions = Reader(Reader(explicit).expect(SEQUENCE)?);
        while let Some(extension) = extensions.optional(SEQUENCE)? {
            let mut extension = Reader(extension);
            let id = extension.expect(OBJECT_ID)?;
            extension.optional(BOOLEAN)?;
            let value = extension.expect(OCTET_STRING)?;
            self.has_alt_name |= id == oid::SUBJECT_ALT_NAME;
            if id == oid::BASIC_CONSTRAINTS {
                let mut constraints = Reader(Reader(value).expect(SEQUENCE)?);
                let ca = constraints.optional(BOOLEAN)?;
                self.is_ca = ca.is_some_and(|value| value != [0]);
            }
        }
        Some(())
    }

    /// Whether it may be a trust anchor: a CA's, or self-signed.
    pub fn is_anchor(&self) -> bool {
        self.is_ca || self.issuer == self.subject
    }
}

impl Key {
    /// Reads the content of a SubjectPublicKeyInfo.
    fn read(info: &[u8]) -> Option<Key> {
        let mut info = Reader(info);
        let algorithm = info.expect(SEQUENCE)?;
        let bits = info.expect(BIT_STRING)?.get(1..)?;
        let mut algorithm = Reader(algorithm);
        Some(match algorithm.expect(OBJECT_ID)? {
            oid::RSA => {
                let modulus = Reader(Reader(bits).expect(SEQUENCE)?).expect(INTEGER)?;
                let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
                let first = modulus.get(zeros)?;
                Key::Rsa { bits: (modulus.len() - zeros) * 8 - first.leading_zeros() as usize }
            }
            oid::EC => match algorithm.optional(OBJECT_ID)? {
                Some(oid::P256) => Key::P256,
                Some(oid::P384) => Key::P384,
                Some(oid::P521) => Key::P521,
                Some(_) => Key::Other("of another curve than P-256, P-384 and P-521"),
                None => Key::Other("of a curve with explicit parameters"),
            },
            oid::ED25519 => Key::Ed25519,
            oid::ML_DSA_44 | oid::ML_DSA_65 | oid::ML_DSA_87 => Key::MlDsa,
            oid::ED448 => Key::Other("Ed448"),
            oid::RSA_PSS => Key::Other("RSA-PSS"),
            oid::DSA => Key::Other("DSA"),
            _ => Key::Other("of an unknown kind"),
        })
    }

    /// The kind of the key, if this build cannot verify its signatures.
    pub fn unverifiable(self) -> Option<&'static str> {
        match self {
            Key::Rsa { bits } if bits < PROVIDER.rsa_bits_min => Some("RSA of less than 2048 bits"),
            Key::Rsa { bits } if bits > RSA_VERIFY_BITS_MAX => Some("RSA of more than 8192 bits"),
            Key::Rsa { .. } | Key::P256 | Key::P384 | Key::Ed25519 => None,
            Key::P521 => (!PROVIDER.has_p521_and_sha512).then_some("P-521"),
            Key::MlDsa => (!PROVIDER.has_ml_dsa).then_some("ML-DSA"),
            Key::Other(kind) => Some(kind),
        }
    }

    /// The kind of the key, if this build cannot sign with it.
    pub fn unusable(self) -> Option<&'static str> {
        self.unverifiable().or(match self {
            Key::Rsa { bits } if bits > PROVIDER.rsa_sign_bits_max => {
                Some("RSA of more than 4096 bits")
            }
            _ => None,
        })
    }
}

impl Signature {
    /// Reads the content of an AlgorithmIdentifier.
    pub fn read_algorithm(algorithm: &[u8]) -> Option<Signature> {
        Some(match Reader(algorithm).expect(OBJECT_ID)? {
            oid::RSA_SHA256 | oid::RSA_SHA384 | oid::RSA_SHA512 => Signature::Supported,
            oid::ECDSA_SHA256 | oid::ECDSA_SHA384 | oid::ED25519 => Signature::Supported,
            oid::ML_DSA_44 | oid::ML_DSA_65 | oid::ML_DSA_87 => Signature::MlDsa,
            oid::RSA_PSS => Signature::RsaPss,
            oid::ECDSA_SHA1 => Signature::Other("ECDSA with SHA-1"),
            oid::ECDSA_SHA224 => Signature::Other("ECDSA with SHA-224"),
            oid::ECDSA_SHA512 => Signature::EcdsaSha512,
            oid::RSA_MD5 => Signature::Other("RSA with MD5"),
            oid::RSA_SHA1 => Signature::Other("RSA with SHA-1"),
            oid::RSA_SHA224 => Signature::Other("RSA with SHA-224"),
            oid::ED448 => Signature::Other("Ed448"),
            _ => Signature::Other("an unknown algorithm"),
        })
    }

    /// The algorithm's name, if this build may be unable to verify it.
    pub fn unverifiable(self) -> Option<&'static str> {
        match self {
            Signature::Supported => None,
            Signature::EcdsaSha512 => {
                (!PROVIDER.has_p521_and_sha512).then_some("ECDSA with SHA-512")
            }
            Signature::MlDsa => (!PROVIDER.has_ml_dsa).then_some("ML-DSA"),
            Signature::RsaPss => Some("RSA-PSS with unusual parameters"),
            Signature::Other(name) => Some(name),
        }
    }
}

/// A time as log lines show it.
pub(super) fn date(unix_seconds: u64) -> String {
    // httpdate has no years over 9999
    let shown = unix_seconds.min(LAST_SECOND);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(shown))
}

/// Reads DER elements one after another. All methods return `None` if the DER is invalid.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element's tag and content; `Some(None)` at the end.
    fn next_element(&mut self) -> Option<Option<(u8, &'a [u8])>> {
        let [tag, rest @ ..] = self.0 else { return Some(None) };
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match usize::from(*first) {
            short if short < 0x80 => (short, rest),
            long => {
                let count = long - 0x80;
                if count == 0 || count > LENGTH_BYTES_MAX || count > rest.len() {
                    return None;
                }
                let (bytes, rest) = rest.split_at(count);
                (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
        };
        if length > rest.len() {
            return None;
        }
        let (content, rest) = rest.split_at(length);
        self.0 = rest;
        Some(Some((*tag, content)))
    }

    /// The content of the next element, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.optional(tag)?
    }

    /// The content of the next element, if it has this tag.
    fn optional(&mut self, tag: u8) -> Option<Option<&'a [u8]>> {
        if self.0.first() != Some(&tag) {
            return Some(None);
        }
        Some(self.next_element()?.map(|(_, content)| content))
    }

    /// UTCTime or GeneralizedTime in seconds since 1970; earlier times are 0.
    fn time(&mut self) -> Option<u64> {
        let (tag, text) = self.next_element()??;
        let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
        let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
        let (year, rest) = match tag {
            // RFC 5280, section 4.1.2.5.1
            UTC_TIME => match number(0, 2)? {
                year if year < 50 => (2000 + year, 2),
                year => (1900 + year, 2),
            },
            GENERALIZED_TIME => (number(0, 4)?, 4),
            _ => return None,
        };
        let at = |field: usize| number(rest + 2 * field, rest + 2 * field + 2);
        let (month, day) = (at(0)?, at(1)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let seconds = (at(2)? * 60 + at(3)?) * 60 + at(4)?;
        Some(days_since_1970(year, month, day) * 24 * 60 * 60 + seconds)
    }
}

/// Days from 1970 to a date of the Gregorian calendar; 0 for earlier dates.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // years begin in March, so that the leap day is the last one
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.max(1) - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    days.saturating_sub(DAYS_TO_1970)
}

/// Days from 1 March of the year 0 to 1970.
const DAYS_TO_1970: u64 = 719_468;
/// The end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;
/// Both providers' limit.
const RSA_VERIFY_BITS_MAX: usize = 8_192;
const LENGTH_BYTES_MAX: usize = 4;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// Object identifiers: RFC 3279, 4055, 5480, 5758, 8410, 9881.
mod oid {
    pub const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    pub const RSA_MD5: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04";
    pub const RSA_SHA1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05";
    pub const RSA_PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
    pub const RSA_SHA256: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
    pub const RSA_SHA384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c";
    pub const RSA_SHA512: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d";
    pub const RSA_SHA224: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e";
    pub const DSA: &[u8] = b"\x2a\x86\x48\xce\x38\x04\x01";
    pub const EC: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
    pub const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
    pub const P384: &[u8] = b"\x2b\x81\x04\x00\x22";
    pub const P521: &[u8] = b"\x2b\x81\x04\x00\x23";
    pub const ECDSA_SHA1: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x01";
    pub const ECDSA_SHA224: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x01";
    pub const ECDSA_SHA256: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
    pub const ECDSA_SHA384: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x03";
    pub const ECDSA_SHA512: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x04";
    pub const ED25519: &[u8] = b"\x2b\x65\x70";
    pub const ED448: &[u8] = b"\x2b\x65\x71";
    pub const ML_DSA_44: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x03\x11";
    pub const ML_DSA_65: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x03\x12";
    pub const ML_DSA_87: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x03\x13";
    pub const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
    pub const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    fn fixture(name: &str) -> CertificateDer<'static> {
        let path = format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"));
        CertificateDer::from_pem_file(path).expect("a certificate")
    }

    #[test]
    fn facts_are_read_from_certificates() {
        for (name, key) in [("ecdsa.pem", Key::P256), ("rsa.pem", Key::Rsa { bits: 2048 })] {
            let der = fixture(name);
            let certificate = Certificate::read(&der).expect("valid DER");
            assert_eq!((certificate.version, certificate.key), (3, key), "{name}");
            assert_eq!(certificate.signature, Signature::Supported, "{name}");
            assert_eq!(date(certificate.not_before), "Wed, 01 Jan 2020 00:00:00 GMT", "{name}");
            assert_eq!(date(certificate.not_after), "Fri, 31 Dec 2049 00:00:00 GMT", "{name}");
            assert!(certificate.has_alt_name && certificate.is_anchor(), "{name}");
            assert_eq!(certificate.public_key_info[0], SEQUENCE, "{name}");
        }
    }

    #[test]
    fn a_cut_certificate_is_invalid_and_nothing_panics() {
        let der = fixture("ecdsa.pem");
        for end in 0..der.len() {
            assert!(Certificate::read(&der[..end]).is_none(), "{end}");
            let mut changed = der.to_vec();
            for byte in [0, 0x30, 0x80, 0x84, 0xff] {
                changed[end] = byte;
                let _ = Certificate::read(&changed);
            }
        }
    }

    #[test]
    fn times_of_both_forms_are_seconds_since_1970() {
        let table: [(u8, &str, Option<u64>); 9] = [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (UTC_TIME, "000229123456Z", Some(951_827_696)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(LAST_SECOND)),
            (GENERALIZED_TIME, "20001301000000Z", None),
            (UTC_TIME, "0001010000Z", None),
            (INTEGER, "000101000000Z", None),
        ];
        for (tag, text, expected) in table {
            let der = [&[tag, text.len() as u8], text.as_bytes()].concat();
            assert_eq!(Reader(&der).time(), expected, "{text}");
        }
    }
}
