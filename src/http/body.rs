//! Separates a body from its framing and finds its end: by length, chunked, or at EOF.

use super::LONG_RESPONSE_BODY_BYTES_MAX;
use super::head::Framing;

/// Decodes one body from pieces of any size.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

/// The result of one call of [`BodyDecoder::decode`].
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Number of bytes consumed; the rest is for the next call.
    pub taken: usize,
    /// The bytes of the body among them.
    pub data: &'a [u8],
}

/// The framing is malformed, or one of its lines exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFraming;

#[derive(Clone, Copy, Debug)]
enum State {
    /// RFC 9112, section 6.3, rule 6: remaining bytes.
    Length(u64),
    /// Rule 8.
    Eof,
    /// Section 7.1: the digits of a chunk's size received so far.
    Size {
        size: u64,
        digits: u32,
    },
    /// Section 7.1.1: bytes of the extension received so far; its content is ignored.
    Extension {
        size: u64,
        bytes: usize,
    },
    /// After the CR of the size line.
    SizeLineFeed {
        size: u64,
    },
    /// Remaining bytes of the chunk.
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// Section 7.1.2: bytes of this field's name and of all trailer fields so far.
    TrailerName {
        name_bytes: usize,
        bytes: usize,
    },
    /// After the colon: bytes of all trailer fields so far.
    Trailer {
        bytes: usize,
    },
    TrailerLineFeed {
        bytes: usize,
    },
    LastLineFeed,
    Done,
}

impl BodyDecoder {
    /// Creates a decoder at the start of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::Eof => State::Eof,
        };
        BodyDecoder { state }
    }

    /// Consumes the next run of body bytes and the framing before it. To be called until all
    /// bytes are consumed or the body is done.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Decoded<'a>, BadFraming> {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_done() {
            if let Some(left) = self.run_bytes() {
                let run = bytes.len() - taken;
                let run = usize::try_from(left).map_or(run, |left| left.min(run));
                self.advance(run as u64);
                let data = &bytes[taken..taken + run];
                return Ok(Decoded { taken: taken + run, data });
            }
            self.state = self.framing_byte(bytes[taken])?;
            taken += 1;
        }
        Ok(Decoded { taken, data: &[] })
    }

    /// The peer sent FIN: returns whether the body is complete.
    pub fn eof(&mut self) -> bool {
        if matches!(self.state, State::Eof) {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The number of body bytes before the next framing byte.
    fn run_bytes(&self) -> Option<u64> {
        match self.state {
            State::Length(left) | State::Data(left) => Some(left),
            State::Eof => Some(u64::MAX),
            _ => None,
        }
    }

    fn advance(&mut self, run: u64) {
        self.state = match self.state {
            State::Length(left) if left == run => State::Done,
            State::Length(left) => State::Length(left - run),
            State::Data(left) if left == run => State::DataReturn,
            State::Data(left) => State::Data(left - run),
            other => other,
        };
    }

    fn framing_byte(&self, byte: u8) -> Result<State, BadFraming> {
        match (self.state, byte) {
            (State::Size { size, digits }, _) => size_byte(size, digits, byte),
            (State::Extension { size, .. }, b'\r') => Ok(State::SizeLineFeed { size }),
            (State::Extension { size, bytes }, _)
                if bytes < EXTENSION_BYTES_MAX && is_field_byte(byte) =>
            {
                Ok(State::Extension { size, bytes: bytes + 1 })
            }
            (State::SizeLineFeed { size: 0 }, b'\n') => {
                Ok(State::TrailerName { name_bytes: 0, bytes: 0 })
            }
            (State::SizeLineFeed { size }, b'\n') => Ok(State::Data(size)),
            (State::DataReturn, b'\r') => Ok(State::DataLineFeed),
            (State::DataLineFeed, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            (State::TrailerName { .. } | State::Trailer { .. }, _) => self.trailer_byte(byte),
            (State::TrailerLineFeed { bytes }, b'\n') => {
                Ok(State::TrailerName { name_bytes: 0, bytes })
            }
            (State::LastLineFeed, b'\n') => Ok(State::Done),
            _ => Err(BadFraming),
        }
    }

    /// Trailers are discarded but must be valid fields: otherwise a peer that ignores trailers
    /// could read the line as the next request.
    fn trailer_byte(&self, byte: u8) -> Result<State, BadFraming> {
        match (self.state, byte) {
            (State::TrailerName { name_bytes: 0, .. }, b'\r') => Ok(State::LastLineFeed),
            (State::TrailerName { name_bytes: 1.., bytes }, b':') => Ok(State::Trailer { bytes }),
            (State::TrailerName { name_bytes, bytes }, _)
                if bytes < TRAILER_BYTES_MAX && is_token_byte(byte) =>
            {
                Ok(State::TrailerName { name_bytes: name_bytes + 1, bytes: bytes + 1 })
            }
            (State::Trailer { bytes }, b'\r') => Ok(State::TrailerLineFeed { bytes }),
            (State::Trailer { bytes }, _) if bytes < TRAILER_BYTES_MAX && is_field_byte(byte) => {
                Ok(State::Trailer { bytes: bytes + 1 })
            }
            _ => Err(BadFraming),
        }
    }
}

fn size_byte(size: u64, digits: u32, byte: u8) -> Result<State, BadFraming> {
    match ((byte as char).to_digit(16), byte) {
        (Some(digit), _) if digits < SIZE_DIGITS_MAX => {
            Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
        }
        (None, b'\r') if digits > 0 => Ok(State::SizeLineFeed { size }),
        (None, b';' | b' ' | b'\t') if digits > 0 => Ok(State::Extension { size, bytes: 1 }),
        _ => Err(BadFraming),
    }
}

/// Whether `byte` may be part of an extension or a trailer's value: no control bytes.
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// Whether `byte` may be part of a field's name (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Maximum hexadecimal digits of a chunk's size: 4 GiB, more than any limit of a body.
const SIZE_DIGITS_MAX: u32 = 8;
/// Maximum bytes of one chunk's extensions.
const EXTENSION_BYTES_MAX: usize = 256;
/// Maximum bytes of all trailer fields.
const TRAILER_BYTES_MAX: usize = 4096;

const _: () = assert!((LONG_RESPONSE_BODY_BYTES_MAX as u64) < 1 << (4 * SIZE_DIGITS_MAX));

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `bytes` in pieces of `step` bytes; returns the body and the bytes consumed.
    fn decode(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize), BadFraming> {
        let mut decoder = BodyDecoder::new(framing);
        let (mut body, mut taken) = (Vec::new(), 0);
        for piece in bytes.chunks(step) {
            let mut at = 0;
            while at < piece.len() && !decoder.is_done() {
                let decoded = decoder.decode(&piece[at..])?;
                assert!(decoded.taken > 0);
                body.extend_from_slice(decoded.data);
                at += decoded.taken;
            }
            taken += at;
        }
        if decoder.eof() { Ok((body, taken)) } else { Err(BadFraming) }
    }

    #[test]
    fn the_body_does_not_depend_on_how_bytes_are_split() {
        #[rustfmt::skip]
        let table: [(Framing, &[u8], &[u8], usize); 8] = [
            (Framing::Length(5), b"helloGET", b"hello", 5),
            (Framing::Length(0), b"GET", b"", 0),
            (Framing::Eof, b"hello", b"hello", 5),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n\r\nGET", b"hello", 15),
            (Framing::Chunked, b"3;a=b\r\nhel\r\n0002 ; c\r\nlo\r\n0\r\nX: y\r\n\r\n", b"hello", 37),
            (Framing::Chunked, b"0\r\n\r\n", b"", 5),
            (Framing::Chunked, b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", 20),
            (Framing::Chunked, b"a\r\n0\r\n\r\n45\r\n6\r\n0\r\n\r\n", b"0\r\n\r\n45\r\n6", 20),
        ];
        for (framing, bytes, body, taken) in table {
            for step in 1..=bytes.len() {
                let expected = Ok((body.to_vec(), taken));
                assert_eq!(decode(framing, bytes, step), expected, "{bytes:?} by {step}");
            }
        }
    }

    #[test]
    fn malformed_framing_is_refused() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(EXTENSION_BYTES_MAX + 1));
        let long_trailer = format!("0\r\nX: {}\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX + 1));
        #[rustfmt::skip]
        let table = [
            "", "5", "5\r\nhell", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "\r\n",
            "5\nhello\n0\n\n", "5\r\nhelloo\r\n0\r\n\r\n", "x\r\n", "-1\r\n", "0x5\r\nhello\r\n0\r\n\r\n",
            "123456789\r\n", ";a\r\n", "5;a\nhello\r\n0\r\n\r\n", "5;\0\r\nhello\r\n0\r\n\r\n",
            "0\r\nX: y\n\r\n", "0\r\nX\r\n\r\n", "0\r\n: y\r\n\r\n", "0\r\nX : y\r\n\r\n",
            "000000005\r\nhello\r\n0\r\n\r\n", "\r\n\r\n", ";a\r\n\r\n", " \r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n", "0\r\nGET / HTTP/1.1\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", &long_extension, &long_trailer,
        ];
        for text in table {
            let outcome = decode(Framing::Chunked, text.as_bytes(), 64);
            assert_eq!(outcome, Err(BadFraming), "{text:?}");
        }
        let long_name = format!("0\r\n{}: y\r\n\r\n", "x".repeat(TRAILER_BYTES_MAX + 1));
        assert_eq!(decode(Framing::Chunked, long_name.as_bytes(), 64), Err(BadFraming));
        assert_eq!(decode(Framing::Length(5), b"hell", 9), Err(BadFraming));
    }

    #[test]
    fn each_limit_is_accepted_and_one_more_is_refused() {
        let extension = |bytes| format!("1{}\r\na\r\n0\r\n\r\n", ";".repeat(bytes));
        let value = |bytes| format!("1\r\na\r\n0\r\nX:{}\r\n\r\n", "x".repeat(bytes - 1));
        let name = |bytes| format!("1\r\na\r\n0\r\n{}:\r\n\r\n", "x".repeat(bytes));
        let size = |digits| format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(digits - 1));
        let limits: [(&dyn Fn(usize) -> String, usize); 4] = [
            (&extension, EXTENSION_BYTES_MAX),
            (&value, TRAILER_BYTES_MAX),
            (&name, TRAILER_BYTES_MAX),
            (&size, SIZE_DIGITS_MAX as usize),
        ];
        for (text, max) in limits {
            let (last, first) = (text(max), text(max + 1));
            let expected = Ok((b"a".to_vec(), last.len()));
            assert_eq!(decode(Framing::Chunked, last.as_bytes(), 64), expected, "{last}");
            assert_eq!(decode(Framing::Chunked, first.as_bytes(), 64), Err(BadFraming), "{first}");
        }
    }
}
