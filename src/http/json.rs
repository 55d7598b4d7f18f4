//! Finds where a JSON value ends, and makes what Python writes as JSON readable to serde_json.
//!
//! JSON is RFC 8259, plus what Python's `json.dumps` writes beyond it: `NaN`, `Infinity` and
//! `-Infinity`, escapes of lone surrogates (`"\ud800"`), numbers of any size. Patroni's answers
//! have no `Content-Length`, so the end of the object or array is the end of the answer.

use std::borrow::Cow;

/// Finds the end of one JSON value, fed in pieces of any size; any split gives the same result.
/// Duplicate keys are accepted.
#[derive(Clone, Debug, Default)]
pub struct JsonScanner {
    state: State,
    /// A bit for each open object (1) or array (0), the innermost in the lowest bit.
    objects: u128,
    /// Open objects and arrays, at most [`DEPTH_MAX`].
    depth: u32,
}

/// The bytes cannot begin a JSON value, or are nested deeper than [`DEPTH_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// Most objects and arrays open at once; at 128 serde_json reports its recursion limit.
pub const DEPTH_MAX: u32 = 127;

/// What may come next.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A value.
    #[default]
    Value,
    /// The first element of an array, or its end.
    FirstElement,
    /// The first key of an object, or its end.
    FirstKey,
    /// A key, after a comma.
    Key,
    /// The colon after a key.
    Colon,
    /// The rest of `true`, `false`, `null`, `NaN` or `Infinity`; never empty.
    Word(&'static [u8]),
    Number(Number),
    Text {
        text: Text,
        is_key: bool,
    },
    /// A comma or the end of the enclosing value; at the top level only whitespace.
    AfterValue,
    /// The top-level object or array has ended.
    Ended,
    /// [`NotJson`] was returned.
    Broken,
}

/// The part of a number before the next byte (RFC 8259, section 6).
#[derive(Clone, Copy, Debug)]
enum Number {
    Minus,
    /// A leading zero; no digit may follow.
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// The position in a string (RFC 8259, section 7).
#[derive(Clone, Copy, Debug)]
enum Text {
    /// Between characters.
    Plain,
    /// After a backslash.
    Escape,
    /// Hexadecimal digits of a `\u` escape still to come.
    Hex { left: u8 },
    /// Continuation bytes still to come, the next one between `low` and `high` (RFC 3629,
    /// section 4).
    Utf8 { left: u8, low: u8, high: u8 },
}

/// Whether `bytes` are one whole value with nothing but whitespace around it.
pub fn is_whole(bytes: &[u8]) -> bool {
    let mut scanner = JsonScanner::default();
    match scanner.feed(bytes) {
        Ok(Some(end)) => bytes[end..].iter().all(|byte| is_space(*byte)),
        Ok(None) => scanner.eof(),
        Err(NotJson) => false,
    }
}

/// A whole value as serde_json can parse it: `NaN` and the infinities become `null`, the escape of
/// a lone surrogate becomes that of U+FFFD. Borrowed if nothing has to change.
///
/// Numbers out of f64's range stay: serde_json skips them in fields that a struct does not have.
/// Bytes that are not a whole value do not become one.
pub fn lenient(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut readable = Vec::new();
    let (mut at, mut copied) = (0, 0);
    let mut in_text = false;
    while let Some(byte) = bytes.get(at) {
        in_text ^= *byte == b'"';
        let (length, replacement) = match byte {
            b'\\' if in_text => escape(&bytes[at..]),
            b'N' | b'I' | b'-' if !in_text => constant(&bytes[at..]),
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            readable.extend_from_slice(&bytes[copied..at]);
            readable.extend_from_slice(replacement);
            copied = at + length;
        }
        at += length;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    readable.extend_from_slice(&bytes[copied..]);
    Cow::Owned(readable)
}

impl JsonScanner {
    /// Returns how many of `bytes` belong to the value once its top-level object or array has
    /// ended (0 in later calls), `None` if it has not. Other values end only with the input.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, NotJson> {
        let mut taken = 0;
        while taken < bytes.len() && !matches!(self.state, State::Ended | State::Broken) {
            self.state = self.next(bytes[taken]);
            taken += 1;
        }
        match self.state {
            State::Ended => Ok(Some(taken)),
            State::Broken => Err(NotJson),
            _ => Ok(None),
        }
    }

    /// Whether the input up to here is one whole value.
    pub fn eof(&self) -> bool {
        match self.state {
            State::Ended => true,
            State::AfterValue => self.depth == 0,
            State::Number(number) => self.depth == 0 && number.is_complete(),
            _ => false,
        }
    }

    fn next(&mut self, byte: u8) -> State {
        match self.state {
            State::Number(number) => self.number(number, byte),
            State::Text { text, is_key } => text.next(is_key, byte),
            State::Word(rest) => word(rest, byte),
            State::AfterValue => self.after_value(byte),
            between if is_space(byte) => between,
            State::FirstElement if byte == b']' => self.close(),
            State::FirstElement | State::Value => self.value(byte),
            State::FirstKey if byte == b'}' => self.close(),
            State::FirstKey | State::Key if byte == b'"' => {
                State::Text { text: Text::Plain, is_key: true }
            }
            State::Colon if byte == b':' => State::Value,
            _ => State::Broken,
        }
    }

    fn value(&mut self, byte: u8) -> State {
        match byte {
            b'{' => self.open(1, State::FirstKey),
            b'[' => self.open(0, State::FirstElement),
            b'"' => State::Text { text: Text::Plain, is_key: false },
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Integer),
            b't' => State::Word(b"rue"),
            b'f' => State::Word(b"alse"),
            b'n' => State::Word(b"ull"),
            b'N' => State::Word(b"aN"),
            b'I' => State::Word(b"nfinity"),
            _ => State::Broken,
        }
    }

    fn number(&mut self, number: Number, byte: u8) -> State {
        use Number::*;
        State::Number(match (number, byte) {
            (Minus, b'I') => return State::Word(b"nfinity"),
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Integer,
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            _ if number.is_complete() => return self.after_value(byte),
            _ => return State::Broken,
        })
    }

    fn after_value(&mut self, byte: u8) -> State {
        let in_object = self.objects & 1 == 1;
        match byte {
            _ if is_space(byte) => State::AfterValue,
            _ if self.depth == 0 => State::Broken,
            b',' if in_object => State::Key,
            b',' => State::Value,
            b'}' if in_object => self.close(),
            b']' if !in_object => self.close(),
            _ => State::Broken,
        }
    }

    fn open(&mut self, object: u128, first: State) -> State {
        if self.depth == DEPTH_MAX {
            return State::Broken;
        }
        self.depth += 1;
        self.objects = self.objects << 1 | object;
        first
    }

    fn close(&mut self) -> State {
        self.depth -= 1;
        self.objects >>= 1;
        if self.depth == 0 { State::Ended } else { State::AfterValue }
    }
}

impl Number {
    fn is_complete(self) -> bool {
        use Number::*;
        matches!(self, Zero | Integer | Fraction | ExponentDigits)
    }
}

impl Text {
    fn next(self, is_key: bool, byte: u8) -> State {
        let text = match (self, byte) {
            (Text::Plain, b'"') if is_key => return State::Colon,
            (Text::Plain, b'"') => return State::AfterValue,
            (Text::Plain, b'\\') => Some(Text::Escape),
            (Text::Plain, b' '..=0x7f) => Some(Text::Plain),
            (Text::Plain, _) => first_byte(byte),
            (Text::Escape, b'u') => Some(Text::Hex { left: 4 }),
            (Text::Escape, _) => br#""\/bfnrt"#.contains(&byte).then_some(Text::Plain),
            (Text::Hex { .. }, _) if !byte.is_ascii_hexdigit() => None,
            (Text::Utf8 { low, high, .. }, _) if !(low..=high).contains(&byte) => None,
            (Text::Hex { left: ..=1 } | Text::Utf8 { left: ..=1, .. }, _) => Some(Text::Plain),
            (Text::Hex { left }, _) => Some(Text::Hex { left: left - 1 }),
            (Text::Utf8 { left, .. }, _) => {
                Some(Text::Utf8 { left: left - 1, low: 0x80, high: 0xbf })
            }
        };
        text.map_or(State::Broken, |text| State::Text { text, is_key })
    }
}

/// After the first byte of a multibyte character; `None` if it is not one.
fn first_byte(byte: u8) -> Option<Text> {
    let (left, low, high) = match byte {
        0xc2..=0xdf => (1, 0x80, 0xbf),
        0xe0 => (2, 0xa0, 0xbf),
        0xed => (2, 0x80, 0x9f),
        0xe1..=0xef => (2, 0x80, 0xbf),
        0xf0 => (3, 0x90, 0xbf),
        0xf1..=0xf3 => (3, 0x80, 0xbf),
        0xf4 => (3, 0x80, 0x8f),
        _ => return None,
    };
    Some(Text::Utf8 { left, low, high })
}

fn word(rest: &'static [u8], byte: u8) -> State {
    match rest {
        [last] if *last == byte => State::AfterValue,
        [first, rest @ ..] if *first == byte => State::Word(rest),
        _ => State::Broken,
    }
}

/// Whitespace by RFC 8259, section 2.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Length of what `bytes` begin with, and its replacement if it is a constant of Python's.
fn constant(bytes: &[u8]) -> (usize, Option<&'static [u8]>) {
    let words: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let found = words.iter().find(|word| bytes.starts_with(word));
    found.map_or((1, None), |word| (word.len(), Some(b"null")))
}

/// Length of an escape (without the digits of a `\u` that is no surrogate), and the replacement
/// of a lone surrogate's.
fn escape(bytes: &[u8]) -> (usize, Option<&'static [u8]>) {
    let next = bytes.get(6..).and_then(code_unit);
    match (code_unit(bytes), next) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, None),
        (Some(0xd800..=0xdfff), _) => (6, Some(br"\ufffd")),
        _ => (2, None),
    }
}

/// The UTF-16 code unit of the `\u` escape that `bytes` begin with.
fn code_unit(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.strip_prefix(br"\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

const _: () = assert!(DEPTH_MAX <= u128::BITS);

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    /// Feeds `bytes` in pieces of `step`: where the value ends, and whether it is whole.
    fn scan(bytes: &[u8], step: usize) -> Result<(Option<usize>, bool), NotJson> {
        let mut scanner = JsonScanner::default();
        let mut fed = 0;
        for piece in bytes.chunks(step) {
            if let Some(end) = scanner.feed(piece)? {
                return Ok((Some(fed + end), scanner.eof()));
            }
            fed += piece.len();
        }
        Ok((None, scanner.eof()))
    }

    fn nested(open: &str, close: &str, depth: usize) -> String {
        format!("{}0{}", open.repeat(depth), close.repeat(depth))
    }

    #[test]
    fn whole_values_are_accepted() {
        #[rustfmt::skip]
        let table = [
            "{}", "[]", " { } ", "\t[\r\n]\n", "{\"a\":1}", "{\"a\":1,\"a\":2}", "{ \"\" : [ ] , \"b\":{}}",
            "[1,2 , 3]", "[[],[[]],{}]", "[0]", "[-0,-1,10,1.5,0.0,1e5,9E+9,2.99,1.25e-07,0e0,-0.0E-0]",
            "[true,false,null]", "\"\"", " \"a\" ", "0", "-0", "1.5 ", " 1e9", "true", "false\n", "null",
            r#"["\"\\\/\b\f\n\r\t\u00e9\uABCD"]"#,
            "[\"\u{7f}é€😀\u{10ffff}\u{fffd}\"]", "{\"é\": \"😀\"}",
        ];
        for text in table {
            assert!(is_whole(text.as_bytes()), "{text}");
            assert!(serde_json::from_str::<Value>(text).is_ok(), "serde_json: {text}");
            assert!(matches!(lenient(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn what_python_writes_beyond_json_is_accepted() {
        #[rustfmt::skip]
        let table = [
            ("[NaN,Infinity,-Infinity]", "[null,null,null]"),
            ("{\"a\":NaN}", "{\"a\":null}"), ("NaN", "null"), (" -Infinity ", " null "), ("Infinity", "null"),
            ("[\"NaN\",NaN,\"\\\"NaN\", -1]", "[\"NaN\",null,\"\\\"NaN\", -1]"),
            (r#"["\ud800"]"#, r#"["\ufffd"]"#), (r#"["\uDFFF"]"#, r#"["\ufffd"]"#),
            (r#"["\ud800\udc00"]"#, r#"["\ud800\udc00"]"#),
            (r#"["\ud800\ud800\udc00"]"#, r#"["\ufffd\ud800\udc00"]"#),
            (r#"["\udc00\ud800"]"#, r#"["\ufffd\ufffd"]"#),
            (r#"["\udc00\udc00"]"#, r#"["\ufffd\ufffd"]"#),
            (r#"["\uD83D\n\ud83d"]"#, r#"["\ufffd\n\ufffd"]"#),
            (r#"["\\ud800"]"#, r#"["\\ud800"]"#), (r#"["\\\ud800"]"#, r#"["\\\ufffd"]"#),
            (r#"{"\ud800": "\ud7ff\ue000"}"#, r#"{"\ufffd": "\ud7ff\ue000"}"#),
        ];
        for (text, readable) in table {
            assert!(is_whole(text.as_bytes()), "{text}");
            let got = lenient(text.as_bytes());
            assert_eq!(String::from_utf8_lossy(&got), readable);
            assert_eq!(matches!(got, Cow::Borrowed(_)), text == readable, "{text}");
            assert!(serde_json::from_str::<Value>(readable).is_ok(), "serde_json: {readable}");
        }
    }

    #[test]
    fn a_struct_is_parsed_from_what_python_writes() {
        #[derive(Deserialize)]
        struct Report {
            state: String,
            lag: Option<f64>,
            timeline: u64,
        }
        let digits = "9".repeat(400);
        let body = format!(
            "{{\"tags\": {{\"a\": [NaN, {digits}, 1e999]}}, \"b\": -{digits}, \"\\ud800\": Infinity, \
             \"state\": \"run\\udcff\", \"lag\": NaN, \"timeline\": 7}}"
        );
        assert!(is_whole(body.as_bytes()));
        let report: Report = serde_json::from_slice(&lenient(body.as_bytes())).expect("a report");
        assert_eq!((report.state.as_str(), report.lag, report.timeline), ("run\u{fffd}", None, 7));
    }

    #[test]
    fn anything_else_is_refused() {
        #[rustfmt::skip]
        let table: [&[u8]; 97] = [
            b"", b" ", b"{", b"[", b"[1", b"[1,", b"{\"a\"", b"{\"a\":", b"{\"a\":1", b"{\"a\":1,",
            b"\"", b"\"\\\"", b"[1,]", b"[,1]", b"[,]", b"{,}", b"{\"a\":1,}", b"{\"a\"}",
            b"{\"a\":}", b"{\"a\",1}", b"{\"a\" 1}", b"{a:1}", b"{1:1}", b"{'a':1}", b"['a']",
            b"{\"a\":1 \"b\":2}", b"[1 2]", b"[1:2]", b"[}", b"{]", b"[1}", b"{\"a\":1]", b"]",
            b"}", b",", b":", b"{{}}", b"{[]}", b"{}{}", b"[] []", b"{}x", b"[],", b"1 2", b"1,",
            b"true false", b"truex", b"tru", b"True", b"nul", b"nulL", b"nan", b"Nan", b"NAN",
            b"NaNN", b"-NaN", b"+Infinity", b"Inf", b"-Inf", b"infinity", b"--1", b"-", b"+1",
            b"01", b"-01", b"00", b"1.", b".5", b"1.e5", b"-.5", b"1e", b"1e+", b"1e+-1", b"1.5.5",
            b"1e5.5", b"0x10", b"1_000", b"[-]", b"[1.]", b"\"a\nb\"", b"\"\0\"", b"\"\x1f\"",
            br#""\a""#, br#""\'""#, br#""\x41""#, br#""\u00""#, br#""\u00g0""#, br#""\U0041""#,
            b"\xef\xbb\xbf{}", b"/**/{}", b"[\x0c]", b"\xc2\xa0{}", b"[\xa0]",
            b"1]", b"1,2", b"\"a\"}", br#""\u004""#, br#""\v""#,
        ];
        for bytes in table {
            let text = String::from_utf8_lossy(bytes);
            assert!(!is_whole(bytes), "{text}");
            assert!(serde_json::from_slice::<Value>(bytes).is_err(), "serde_json: {text}");
            let readable = lenient(bytes);
            assert!(serde_json::from_slice::<Value>(&readable).is_err(), "lenient: {text}");
        }
    }

    #[test]
    fn strings_must_be_valid_utf8() {
        let edges = [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff];
        for first in 0x80..=0xff {
            for second in edges {
                for tail in [&b""[..], b"\x80", b"\xbf\x80", b"\x80\xc0", b"\x7f"] {
                    let text = [&[first, second], tail].concat();
                    let expected = std::str::from_utf8(&text).is_ok() && second >= b' ';
                    let body = [b"[\"", &text[..], b"\"]"].concat();
                    assert_eq!(is_whole(&body), expected, "{text:x?}");
                }
            }
        }
    }

    #[test]
    fn a_top_level_object_or_array_ends_by_itself() {
        #[rustfmt::skip]
        let table: [(&[u8], Option<usize>); 14] = [
            (b"{}", Some(2)), (b"[]", Some(2)), (b" {} ", Some(3)), (b"{}{}", Some(2)), (b"[]]", Some(2)),
            (b"{\"a\": [1]}\r\nHTTP/1.0 200 OK", Some(10)), (b"[\"]\"]\xff", Some(5)), (b"[\"\\\"]\"]\0", Some(7)),
            (b"[NaN]NaN", Some(5)), (b"[[], {}] ", Some(8)),
            (b"1", None), (b"\"a\" ", None), (b"null", None), (b"[{}", None),
        ];
        for (bytes, end) in table {
            for step in 1..=bytes.len() {
                let got = scan(bytes, step).map(|(end, _)| end);
                assert_eq!(got, Ok(end), "{bytes:?} by {step}");
            }
        }
    }

    #[test]
    fn nothing_is_taken_after_the_end_or_an_error() {
        let mut scanner = JsonScanner::default();
        assert_eq!(scanner.feed(b"{}x"), Ok(Some(2)));
        assert_eq!((scanner.feed(b"}"), scanner.feed(b"")), (Ok(Some(0)), Ok(Some(0))));
        assert!(scanner.eof());
        let mut scanner = JsonScanner::default();
        assert_eq!(scanner.feed(b"{]"), Err(NotJson));
        assert_eq!((scanner.feed(b"{}"), scanner.feed(b"")), (Err(NotJson), Err(NotJson)));
        assert!(!scanner.eof());
    }

    #[test]
    fn any_split_gives_the_same_result() {
        #[rustfmt::skip]
        let table: [&[u8]; 8] = [
            "{\"é\\u20ac\": [1.5e-3, -Infinity, \"😀\\ud83d\\n\", {}], \"b\": null}{".as_bytes(),
            b" [true , false, NaN, 0.0, \"\xf0\x9f\x98\x80\"] x", b"Infinity ", b"  -12.5E+10 ",
            b"\"a\\\\\" ", b"{\"a\": \"\xed\xa0\x80\"}", b"[1, 02]", b"[\"\\u12\"]",
        ];
        for bytes in table {
            let whole = scan(bytes, bytes.len());
            for step in 1..bytes.len() {
                assert_eq!(scan(bytes, step), whole, "{bytes:?} by {step}");
                let mut scanner = JsonScanner::default();
                let (front, back) = bytes.split_at(step);
                let result = match scanner.feed(front) {
                    Ok(None) => scanner.feed(back).map(|end| end.map(|end| end + step)),
                    decided => decided,
                };
                assert_eq!(result.map(|end| (end, scanner.eof())), whole, "{bytes:?} at {step}");
            }
        }
    }

    #[test]
    fn no_prefix_of_an_object_is_whole() {
        let body =
            "{\"a\": [1.5e3, NaN, {\"é\": \"\\ud800 \\\"}\"}], \"b\": {\"c\": []}}".as_bytes();
        for end in 0..body.len() {
            assert_eq!(scan(&body[..end], usize::MAX), Ok((None, false)), "cut after {end}");
            assert!(!is_whole(&body[..end]), "cut after {end}");
        }
        assert_eq!(scan(body, usize::MAX), Ok((Some(body.len()), true)));
    }

    #[test]
    fn the_depth_is_limited_where_serde_json_limits_it() {
        let depth = DEPTH_MAX as usize;
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let (last, first) = (nested(open, close, depth), nested(open, close, depth + 1));
            assert_eq!(scan(last.as_bytes(), 7), Ok((Some(last.len()), true)));
            assert!(serde_json::from_str::<Value>(&last).is_ok());
            assert_eq!(scan(first.as_bytes(), 7), Err(NotJson));
            assert!(serde_json::from_str::<Value>(&first).is_err());
        }
        let mixed = nested("[{\"a\":", "}]", depth / 2);
        assert_eq!(scan(mixed.as_bytes(), 7), Ok((Some(mixed.len()), true)));
        assert_eq!(scan(mixed.replace("}]", "]}").as_bytes(), 7), Err(NotJson));
        // the end of an array lowers the depth
        assert!(is_whole(format!("[{}[]]", "[[]],".repeat(1_000)).as_bytes()));
    }

    #[test]
    fn recorded_answers_agree_with_serde_json() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/patroni");
        let mut whole = 0;
        for entry in std::fs::read_dir(folder).expect("recorded answers").flatten() {
            let bytes = std::fs::read(entry.path()).expect("a file");
            let Some(head_end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            let body = &bytes[head_end + 4..];
            let value = serde_json::from_slice::<Value>(body);
            assert_eq!(is_whole(body), value.is_ok(), "{:?}", entry.path());
            if value.is_ok_and(|value| value.is_object() || value.is_array()) {
                whole += 1;
                assert!(matches!(lenient(body), Cow::Borrowed(_)));
                assert_eq!(scan(body, 3), Ok((Some(body.trim_ascii_end().len()), true)));
                let cut = scan(&body[..body.trim_ascii_end().len() - 1], 3);
                assert_eq!(cut, Ok((None, false)), "{:?}", entry.path());
            }
        }
        assert!(whole > 30, "only {whole} bodies are JSON");
    }
}
