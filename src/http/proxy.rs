//! The header of HAProxy's PROXY protocol, versions 1 and 2 (proxy-protocol.txt, revision of
//! 2020): the address of the client of a proxy. `check-send-proxy` sends it with each check.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the beginning of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// More bytes are needed.
    Incomplete,
    /// A header of this many bytes.
    Whole {
        /// Its length in bytes.
        bytes: usize,
        /// The address of the client; `None`: the proxy itself connects, as for a check, or the
        /// header has no IP address.
        source: Option<IpAddr>,
    },
    /// No header, or not a valid one.
    Invalid(&'static str),
}

impl ProxyHeader {
    /// Reads the beginning of a connection, which must be a header.
    pub fn read(input: &[u8]) -> ProxyHeader {
        if begins(input, SIGNATURE) {
            return version_2(input);
        }
        if begins(input, b"PROXY ") {
            return version_1(input);
        }
        ProxyHeader::Invalid("there is no PROXY header; set send-proxy or check-send-proxy")
    }
}

/// Whether the input begins with these bytes, as far as it goes.
fn begins(input: &[u8], with: &[u8]) -> bool {
    input.iter().zip(with).all(|(one, other)| one == other)
}

fn version_1(input: &[u8]) -> ProxyHeader {
    let line = &input[..input.len().min(VERSION_1_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return match line.len() < VERSION_1_BYTES_MAX {
            true => ProxyHeader::Incomplete,
            false => ProxyHeader::Invalid("the line of its PROXY header has no end"),
        };
    };
    let text = std::str::from_utf8(&line[..end]).unwrap_or_default();
    match source_of_line(text) {
        Some(source) => ProxyHeader::Whole { bytes: end + 2, source },
        None => ProxyHeader::Invalid("its PROXY header is not valid"),
    }
}

/// `PROXY TCP4 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`.
fn source_of_line(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None); // the rest of the line has no meaning
    }
    let (source, destination) = (words.next()?, words.next()?);
    let ports = [words.next()?, words.next()?].map(|port| port.parse::<u16>().ok());
    let address = |text: &str| match family {
        "TCP4" => text.parse().ok().map(IpAddr::V4),
        "TCP6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    let is_whole = ports.iter().all(Option::is_some) && words.next().is_none();
    let source = address(source).filter(|_| is_whole && address(destination).is_some())?;
    Some(Some(source.to_canonical()))
}

fn version_2(input: &[u8]) -> ProxyHeader {
    let Some((fixed, rest)) = input.split_at_checked(VERSION_2_BYTES_MIN) else {
        return ProxyHeader::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > VERSION_2_REST_BYTES_MAX {
        return ProxyHeader::Invalid("its PROXY header is too long");
    }
    let bytes = VERSION_2_BYTES_MIN + length;
    let Some(rest) = rest.get(..length) else { return ProxyHeader::Incomplete };
    let source = match (fixed[12], fixed[13]) {
        (LOCAL, _) => None,
        (PROXY, TCP4) => match rest.split_first_chunk::<4>() {
            Some((source, _)) if length >= TCP4_BYTES => Some(Ipv4Addr::from(*source).into()),
            _ => return ProxyHeader::Invalid("its PROXY header is too short"),
        },
        (PROXY, TCP6) => match rest.split_first_chunk::<16>() {
            Some((source, _)) if length >= TCP6_BYTES => {
                Some(IpAddr::from(Ipv6Addr::from(*source)).to_canonical())
            }
            _ => return ProxyHeader::Invalid("its PROXY header is too short"),
        },
        (PROXY, _) => None,
        _ => return ProxyHeader::Invalid("its PROXY header is not of version 1 or 2"),
    };
    ProxyHeader::Whole { bytes, source }
}

/// The longest line of version 1, with its end (section 2.1).
const VERSION_1_BYTES_MAX: usize = 107;
/// How version 2 begins (section 2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const VERSION_2_BYTES_MIN: usize = 16;
/// Addresses and extensions; HAProxy sends a few hundred bytes at most.
const VERSION_2_REST_BYTES_MAX: usize = 2_048;
/// Maximum bytes of a header.
pub const PROXY_HEADER_BYTES_MAX: usize = VERSION_2_BYTES_MIN + VERSION_2_REST_BYTES_MAX;
/// Version 2, and whether the proxy connects for itself or for a client.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Two addresses and two ports.
const TCP4_BYTES: usize = 12;
const TCP6_BYTES: usize = 36;

const _: () = assert!(VERSION_1_BYTES_MAX < PROXY_HEADER_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn version_2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn headers_of_both_versions_are_read_in_any_split() {
        let v6 = [[0xfe; 16], [0xfd; 16]].concat();
        let v4 = [10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 2, 2];
        let with_extension = [&v4[..], &[4, 0, 1, 0]].concat();
        let mapped = b"PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n";
        let table: Vec<(Vec<u8>, Option<&str>)> = vec![
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 56324 443\r\n".to_vec(), Some("10.0.0.1")),
            (b"PROXY TCP6 fe80::1 fe80::2 1 65535\r\n".to_vec(), Some("fe80::1")),
            (mapped.to_vec(), Some("10.0.0.1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n".to_vec(), None),
            (version_2_header(0x20, 0, b""), None),
            (version_2_header(0x20, 0x11, &v4), None),
            (version_2_header(0x21, 0x11, &v4), Some("10.0.0.1")),
            (version_2_header(0x21, 0x11, &with_extension), Some("10.0.0.1")),
            (version_2_header(0x21, 0x21, &[&v6[..], &[0, 1, 0, 2]].concat()), Some(SIX)),
            (version_2_header(0x21, 0x31, &[0; 216]), None),
            (version_2_header(0x21, 0, b""), None),
        ];
        for (header, source) in table {
            let source = source.map(|text| text.parse().expect("an address"));
            let whole = ProxyHeader::Whole { bytes: header.len(), source };
            let surplus = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(ProxyHeader::read(&surplus), whole, "{header:?}");
            for length in 0..header.len() {
                assert_eq!(ProxyHeader::read(&header[..length]), ProxyHeader::Incomplete);
            }
        }
    }

    const SIX: &str = "fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe";

    #[test]
    fn anything_else_is_refused_as_soon_as_it_shows() {
        let none = "there is no PROXY header; set send-proxy or check-send-proxy";
        let (invalid, short) = ("its PROXY header is not valid", "its PROXY header is too short");
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 107]].concat();
        let table: Vec<(Vec<u8>, &str)> = vec![
            (b"G".to_vec(), none),
            (b"PRI * HTTP/2.0\r\n".to_vec(), none),
            (vec![0x16, 3, 1], none),
            (b"\r\n\r\nG".to_vec(), none),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 56324\r\n".to_vec(), invalid),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n".to_vec(), invalid),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 65536\r\n".to_vec(), invalid),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), invalid),
            (b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), invalid),
            (b"PROXY \r\n".to_vec(), invalid),
            (b"PROXY TCP4 \xff\r\n".to_vec(), invalid),
            (long, "the line of its PROXY header has no end"),
            (version_2_header(0x21, 0x11, &[0; 11]), short),
            (version_2_header(0x21, 0x21, &[0; 35]), short),
            (version_2_header(0x22, 0, b""), "its PROXY header is not of version 1 or 2"),
            (version_2_header(0x10, 0, b""), "its PROXY header is not of version 1 or 2"),
            (version_2_header(0x20, 0, &[0; 2_049]), "its PROXY header is too long"),
        ];
        for (input, why) in table {
            assert_eq!(ProxyHeader::read(&input), ProxyHeader::Invalid(why), "{input:?}");
        }
    }
}
