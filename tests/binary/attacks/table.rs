//! Reads the tables of attacks: a line is a case with its outcome, its name and its bytes.
//!
//! ```text
//! # RFC 9112 2.2: the rule of the cases below
//! 400 close               | a name | GET / HTTP/1.1\r\nA: {x*9}\r\n\r\n
//! 200 keep                | a name | ...
//! 200 keep /replica?lag=1 | a name | ...      Patroni may be asked for this, and nothing else
//! 200,400 close           | a name | ...      two answers, then the end
//! - close                 | a name | ...      no answer: the request never ends
//! ```
//!
//! `\r \n \t \0 \xNN \\` stand for bytes, `{x*9}` for `xxxxxxxxx`, `{evil}` for [`EVIL`]. Lines
//! that begin with `--` are remarks.

use std::path::Path;

/// A request that must never be executed: only attacks ask for `/sync`. It has 31 bytes, 1F in
/// hexadecimal, and the tables use this in lengths and chunk sizes.
pub const EVIL: &str = "GET /sync HTTP/1.1\r\nHost: x\r\n\r\n";

/// One attack and its expected outcome.
#[derive(Debug)]
pub struct Case {
    /// The section that decides it, and the rule.
    pub reference: String,
    pub name: String,
    pub bytes: Vec<u8>,
    pub statuses: Vec<u16>,
    /// Whether the connection is kept.
    pub kept: bool,
    /// The target that Patroni may be asked for.
    pub asks: Option<String>,
}

/// All cases of all tables, by file.
pub fn read() -> Vec<Case> {
    assert_eq!(EVIL.len(), 0x1f);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/binary/attacks");
    let files = std::fs::read_dir(folder).expect("the folder of tables").flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    paths.iter().flat_map(|path| read_file(path)).collect()
}

fn read_file(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).expect("a table is text");
    let mut reference = String::new();
    let mut cases = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if let Some(section) = line.strip_prefix("# ") {
            section.clone_into(&mut reference);
        } else if !line.is_empty() && !line.starts_with("--") {
            let case = case(&reference, line);
            cases.push(case.unwrap_or_else(|| panic!("{}:{}: {line}", path.display(), at + 1)));
        }
    }
    cases
}

fn case(reference: &str, line: &str) -> Option<Case> {
    assert!(reference.starts_with("RFC "), "a reference comes first: {line}");
    let mut columns = line.splitn(3, '|').map(str::trim);
    let (outcome, name, bytes) = (columns.next()?, columns.next()?, columns.next()?);
    let mut words = outcome.split_whitespace();
    let statuses = match words.next()? {
        "-" => Vec::new(),
        list => list.split(',').map(|status| status.parse().ok()).collect::<Option<_>>()?,
    };
    let kept = match words.next()? {
        "keep" => true,
        "close" => false,
        _ => return None,
    };
    let (reference, name) = (reference.to_owned(), name.to_owned());
    let asks = words.next().map(str::to_owned);
    Some(Case { reference, name, bytes: unescaped(bytes)?, statuses, kept, asks })
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' => {
                let kind = rest.chars().next()?;
                rest = &rest[1..];
                match kind {
                    'r' => bytes.push(b'\r'),
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    '0' => bytes.push(0),
                    '\\' => bytes.push(b'\\'),
                    'x' => {
                        bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                        rest = &rest[2..];
                    }
                    _ => return None,
                }
            }
            '{' => {
                let (inside, after) = rest.split_once('}')?;
                rest = after;
                bytes.extend_from_slice(&repeated(inside)?);
            }
            _ => bytes.extend_from_slice(first.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(bytes)
}

fn repeated(inside: &str) -> Option<Vec<u8>> {
    if inside == "evil" {
        return Some(EVIL.as_bytes().to_vec());
    }
    let (text, count) = inside.rsplit_once('*')?;
    Some(unescaped(text)?.repeat(count.parse().ok()?))
}
