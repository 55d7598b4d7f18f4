//! The line logged per request: `frontend.logformat` parsed once, filled in often.

use crate::http::Method;
use crate::slots::ConnId;

/// Text with places for what a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat {
    pieces: Vec<Piece>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The client's connection.
    pub id: ConnId,
    /// `Method::Unknown`, a dash in the log, if the bytes were not a request.
    pub method: Method,
    /// As the client asked, without scheme and authority.
    pub target: Box<str>,
    /// The status of the response.
    pub status: u16,
    /// Milliseconds from the complete request to the response.
    pub elapsed_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// `%a`
    Address,
    /// `%m`
    Method,
    /// `%U`
    Target,
    /// `%s`
    Status,
    /// `%D`, which is known to the millisecond
    Microseconds,
}

impl LogFormat {
    /// Reads a format, and names what looks like a place in it but is plain text, which it was
    /// for the Go program.
    pub fn parse(text: &str) -> (LogFormat, Vec<String>) {
        let (mut pieces, mut unknown) = (Vec::new(), Vec::new());
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            let verb = if char == '%' { chars.next() } else { None };
            let piece = match (char, verb) {
                ('%', Some('a')) => Piece::Address,
                ('%', Some('m')) => Piece::Method,
                ('%', Some('U')) => Piece::Target,
                ('%', Some('s')) => Piece::Status,
                ('%', Some('D')) => Piece::Microseconds,
                ('%', Some('%')) => {
                    plain.push('%');
                    continue;
                }
                ('%', verb) => {
                    let place: String = ['%'].into_iter().chain(verb).collect();
                    plain.push_str(&place);
                    unknown.push(place);
                    continue;
                }
                (other, _) => {
                    plain.push(other);
                    continue;
                }
            };
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(piece);
        }
        pieces.push(Piece::Text(plain));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        (LogFormat { pieces }, unknown)
    }

    /// The line for a request from `address`.
    pub fn line(&self, record: &Record, address: &str) -> String {
        let fill = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Address => address.to_owned(),
            Piece::Method => record.method.name().to_owned(),
            Piece::Target => record.target.to_string(),
            Piece::Status => record.status.to_string(),
            Piece::Microseconds => (record.elapsed_ms * 1000).to_string(),
        };
        self.pieces.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let record = Record {
            id: ConnId { slot: 0, generation: 0 },
            method: Method::Options,
            target: "/primary".into(),
            status: 503,
            elapsed_ms: 3,
        };
        let table = [
            ("%a - %m %U", "127.0.0.1 - OPTIONS /primary"),
            ("%s %D%%", "503 3000%"),
            ("", ""),
            ("plain", "plain"),
        ];
        for (format, line) in table {
            let (format, unknown) = LogFormat::parse(format);
            assert_eq!(format.line(&record, "127.0.0.1"), line);
            assert_eq!(unknown, Vec::<String>::new());
        }
        let (format, unknown) = LogFormat::parse("%h%m %\u{e9}%%h 100%");
        assert_eq!(format.line(&record, ""), "%hOPTIONS %\u{e9}%h 100%");
        assert_eq!(unknown, ["%h", "%\u{e9}", "%"]);
    }
}
