//! The log line per request: `frontend.logformat`, parsed once and filled in for each request.

use core::net::IpAddr;

/// A text with placeholders for the values of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFormat {
    pieces: Vec<Piece>,
}

/// The values of a request, for its line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The client's; `None`, a dash in the log, if it has disconnected.
    pub address: Option<IpAddr>,
    /// A dash if the client sent no valid request.
    pub method: &'a str,
    /// As the client sent it, without scheme and authority.
    pub target: &'a str,
    /// The response's status.
    pub status: u16,
    /// From the complete request to the response.
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
    /// `%D`, with a resolution of a millisecond
    Microseconds,
}

impl LogFormat {
    /// Parses a format. Also returns the unknown placeholders, which are plain text, as in the Go
    /// program.
    pub fn parse(text: &str) -> (LogFormat, Vec<String>) {
        let (mut pieces, mut unknown) = (Vec::new(), Vec::new());
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                plain.push(char);
                continue;
            }
            let piece = match chars.next() {
                Some('a') => Piece::Address,
                Some('m') => Piece::Method,
                Some('U') => Piece::Target,
                Some('s') => Piece::Status,
                Some('D') => Piece::Microseconds,
                Some('%') => {
                    plain.push('%');
                    continue;
                }
                other => {
                    let placeholder = other.map_or("%".to_owned(), |char| format!("%{char}"));
                    plain.push_str(&placeholder);
                    unknown.push(placeholder);
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

    /// Returns the log line of a request.
    pub fn line(&self, request: &Line<'_>) -> String {
        let fill = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Address => request.address.map_or("-".to_owned(), |address| address.to_string()),
            Piece::Method => request.method.to_owned(),
            Piece::Target => request.target.to_owned(),
            Piece::Status => request.status.to_string(),
            Piece::Microseconds => (request.elapsed_ms * 1000).to_string(),
        };
        self.pieces.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_and_unknown_ones_kept() {
        let request = Line {
            address: Some(IpAddr::from([127, 0, 0, 1])),
            method: "OPTIONS",
            target: "/primary",
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
            assert_eq!(format.line(&request), line);
            assert_eq!(unknown, Vec::<String>::new());
        }
        let (format, unknown) = LogFormat::parse("%h%m %\u{e9}%%h 100%");
        assert_eq!(format.line(&request), "%hOPTIONS %\u{e9}%h 100%");
        assert_eq!(unknown, ["%h", "%\u{e9}", "%"]);
        let (format, _) = LogFormat::parse("%a");
        assert_eq!(format.line(&Line { address: None, ..request }), "-");
    }
}
