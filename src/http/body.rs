//! Finds where a body ends, and what of the bytes is body: by length, chunked, or to EOF.

use super::head::Framing;

/// Decodes one body, fed in pieces of any size.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

/// One step of the decoder over the front of the bytes given.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes of the input this step took; the rest is for the next step.
    pub taken: usize,
    /// The body's bytes among them.
    pub data: &'a [u8],
}

/// The framing itself is broken, or a line of it is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFraming;

#[derive(Clone, Copy, Debug)]
enum State {
    /// RFC 9112, section 6.3, rule 6: bytes that are still to come.
    Length(u64),
    /// Rule 8.
    Eof,
    /// Section 7.1: the digits of a chunk's size so far.
    Size {
        size: u64,
        digits: u32,
    },
    /// Section 7.1.1: bytes of the extension seen, all skipped.
    Extension {
        size: u64,
        bytes: usize,
    },
    /// The LF behind the size line's CR.
    SizeLineFeed {
        size: u64,
    },
    /// Bytes of the chunk that are still to come.
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// Section 7.1.2: bytes of this line's name so far, and of all trailer lines.
    TrailerName {
        name_bytes: usize,
        bytes: usize,
    },
    /// Behind the colon: bytes of all trailer lines.
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
    /// A decoder at the start of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::Eof => State::Eof,
        };
        BodyDecoder { state }
    }

    /// Takes what it can from the front of `bytes`: a run of body, or framing up to the next run.
    /// Call it until it took everything or is done.
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

    /// The peer sent FIN: was that the body's end?
    pub fn eof(&mut self) -> bool {
        if matches!(self.state, State::Eof) {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Nothing more belongs to this body.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many bytes of body come next, without framing in between.
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

    /// A trailer is a field, though nobody reads it: what is none may be the next request, for
    /// somebody who does not know trailers.
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

/// What may stand in an extension or a trailer: a field's bytes, no control ones.
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// What a field's name is made of (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Hexadecimal digits of a chunk's size: 4 GiB are more than any limit here.
const SIZE_DIGITS_MAX: u32 = 8;
/// Bytes of one chunk's extensions.
const EXTENSION_BYTES_MAX: usize = 256;
/// Bytes of all trailer fields.
const TRAILER_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in pieces of `step`: the body, and how many bytes it took.
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
    fn any_split_decodes_the_same() {
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
    fn broken_framing_is_refused() {
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
    fn each_limit_is_the_last_that_passes() {
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
        for (text, most) in limits {
            let (last, first) = (text(most), text(most + 1));
            let expected = Ok((b"a".to_vec(), last.len()));
            assert_eq!(decode(Framing::Chunked, last.as_bytes(), 64), expected, "{last}");
            assert_eq!(decode(Framing::Chunked, first.as_bytes(), 64), Err(BadFraming), "{first}");
        }
    }
}
