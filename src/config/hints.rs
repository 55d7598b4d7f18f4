//! The words for what the YAML reader rejects. The reader speaks of fields, sequences and tokens;
//! an operator gets the cause and what to write instead.

/// The line and the message of an error of the reader: `whole` is its text, `line` its place.
pub fn explain(whole: &str, line: Option<usize>, text: &str) -> (Option<usize>, String) {
    if let Some((path, name)) = split_at_kind(whole, "unknown field `") {
        let name = name.split('`').next().unwrap_or_default();
        return (line, unknown(path.trim_end_matches(": "), name));
    }
    if let Some((path, name)) = split_at_kind(whole, "duplicate field `") {
        let name = name.split('`').next().unwrap_or_default();
        return (line, format!("{}{name} is written twice", path.replace(": ", ".")));
    }
    if let Some((path, types)) = split_at_kind(whole, "invalid type: ") {
        return (line, format!("{path}{}", wrong_type(types)));
    }
    let is_of_a_key = SECTIONS.iter().any(|(section, _)| {
        whole.strip_prefix(section).is_some_and(|rest| rest.starts_with(['.', ':']))
    });
    if let Some((line, hint)) = layout(whole, line, text).filter(|_| !is_of_a_key) {
        return (line, hint.to_owned());
    }
    let message = without_place(whole).replace('\n', " ");
    match line.and_then(|line| swallowed(&message, line, text)) {
        Some((line, hint)) => (Some(line), hint),
        None => (line, message),
    }
}

/// The path of keys before an error of this kind, and the rest: a value may contain the same words.
fn split_at_kind<'a>(whole: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (path, rest) = whole.split_once(kind)?;
    (path.is_empty() || path.ends_with(": ") && !path.contains('"')).then_some((path, rest))
}

/// A value that ends with the key of the next line, because that is indented deeper or within a
/// bracket.
fn swallowed(message: &str, line: usize, text: &str) -> Option<(usize, String)> {
    let value = message.split('"').nth(1)?;
    let key = value.rsplit_once(' ')?.1;
    let mut lines = text.lines().skip(line - 1);
    let (above, below) = (lines.next()?, lines.next()?);
    if !below.trim_start().starts_with(&format!("{key}:")) {
        return None;
    }
    let indentation = |line: &str| line.len() - line.trim_start().len();
    if indentation(below) <= indentation(above) {
        return Some((line, "the bracket that begins here is not closed".to_owned()));
    }
    let above = above.trim_start().split(':').next().unwrap_or_default();
    Some((line + 1, format!("{key} is indented deeper than {above}")))
}

/// A key or a section that does not exist.
fn unknown(section: &str, name: &str) -> String {
    let Some(keys) = keys_of(section) else {
        let names: Vec<&str> = SECTIONS.iter().map(|(section, _)| *section).collect();
        if let Some(near) = nearest(name, &names) {
            return format!("{name} is not a section; did you mean {near}?");
        }
        let homes = SECTIONS.iter().filter(|(_, keys)| keys.contains(&name));
        let homes: Vec<String> = homes.map(|(section, _)| format!("{section}:")).collect();
        if !homes.is_empty() {
            return format!("{name} belongs below {}", homes.join(" or "));
        }
        return format!("{name} is not a section; the sections are {}", names.join(", "));
    };
    if let Some(near) = nearest(name, keys) {
        return format!("{section}.{name} is not a key; did you mean {section}.{near}?");
    }
    if keys_of(name).is_some() {
        return format!("{name} is indented below {section}; write it at the beginning of a line");
    }
    let home = SECTIONS.iter().find(|(_, keys)| keys.contains(&name));
    if let Some((home, _)) = home {
        return format!("{section}.{name} is not a key; it belongs below {home}:");
    }
    format!("{section}.{name} is not a key; the keys are {}", keys.join(", "))
}

fn keys_of(section: &str) -> Option<&'static [&'static str]> {
    SECTIONS.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys)
}

/// The name that was probably meant: the same letters, or at most two of them differ.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', ' '], "-");
    let spelled = plain(name);
    let distances = known.iter().map(|known| (distance(&spelled, known), *known));
    let limit = if spelled.len() <= SHORT_NAME_BYTES_MAX { 1 } else { 2 };
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, known)| known)
}

/// The number of letters to change, insert, remove or swap with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for (at, byte) in one.iter().enumerate() {
        let mut row = vec![at + 1];
        for (column, with) in other.iter().enumerate() {
            let change = rows[at][column] + usize::from(byte != with);
            let mut least = change.min(rows[at][column + 1] + 1).min(row[column] + 1);
            let is_swap =
                at > 0 && column > 0 && one[at - 1] == *with && *byte == other[column - 1];
            if is_swap {
                least = least.min(rows[at - 1][column - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

/// A value of another kind: `types` is `string "x", expected a sequence`.
fn wrong_type(types: &str) -> String {
    let (found, expected) = types.rsplit_once(", expected ").unwrap_or((types, ""));
    let value = found.split_once(' ').map(|(_, value)| value.trim_matches('`'));
    let found = match found {
        "sequence" => "a list",
        "map" => "a section",
        "enum" => "a tag",
        "unit value" => "nothing",
        other => value.unwrap_or(other),
    };
    match without_place(expected) {
        "a mapping of sections" => {
            format!("a configuration has sections, such as frontend: and backend:, not {found}")
        }
        "a mapping of keys to values" => format!("a section has keys below it, not {found}"),
        "a sequence" => match found {
            "a section" => "a section is not a list; write [NAME, NAME]".to_owned(),
            _ => format!("{found} is not a list; write [{}]", found.trim_matches('"')),
        },
        "a value without a tag" => "a tag that begins with ! has no meaning here".to_owned(),
        "a string" => format!("{found} is not a string; write it in quotes"),
        other => format!("{found} is not {other}"),
    }
}

/// What libyaml rejects, before there are keys: quotes, brackets, indentation.
fn layout(whole: &str, line: Option<usize>, text: &str) -> Option<(Option<usize>, &'static str)> {
    let says = |words: &str| whole.contains(words);
    let line_text = |line: usize| text.lines().nth(line - 1).unwrap_or_default();
    // the second place is where the quote or bracket begins
    let begin = || {
        whole
            .rsplit_once(" at line ")
            .and_then(|(_, place)| place.split(' ').next().and_then(|number| number.parse().ok()))
    };
    if says("while scanning a quoted scalar") && says("unexpected end of stream") {
        return Some((begin().or(line), "the quote that begins here is not closed"));
    }
    if says("cannot start any token") || says("tab character") {
        let has_tab = line.is_some_and(|line| line_text(line).contains('\t'));
        return Some((
            line,
            match has_tab {
                true => "a tab; YAML is indented with spaces",
                false => "a value that begins with one of @ ` % must be in quotes",
            },
        ));
    }
    if says("while parsing a flow") || says("',' or '}'") || says("',' or ']'") {
        return Some((
            begin().or(line),
            "the bracket that begins here is not closed, or a comma is missing",
        ));
    }
    if says("control characters are not allowed") {
        let is_control = |line: &str| line.chars().any(|sign| sign.is_control() && sign != '\t');
        let at = text.lines().position(is_control).map(|at| at + 1);
        return Some((at.or(line), "a control character; remove it"));
    }
    if line.is_some_and(|line| line_text(line).trim_start().starts_with(['}', ']'])) {
        return Some((line, "a bracket is closed that was not opened"));
    }
    let hint = if says("mapping values are not allowed") {
        "a second colon, or the line is indented deeper than the one above; write one key a line, \
         and values with a colon in quotes"
    } else if says("could not find expected ':'") {
        "a key without a colon; write key: value"
    } else if says("unknown escape character") {
        "a backslash in double quotes begins an escape; write single quotes"
    } else if says("did not find expected key") {
        "the line is indented neither like the one above nor like its section"
    } else if says("did not find expected node content") || says("did not find expected <document")
    {
        "a bracket, comma or other sign that YAML does not expect here; put the value in quotes"
    } else if says("did not find expected '-' indicator") {
        "a key among the items of a list; a section has keys only"
    } else if says("incompatible YAML document") {
        "a YAML version other than 1.1 and 1.2; leave out the line"
    } else if says("unknown anchor") {
        "a value that begins with * must be in quotes"
    } else if says("anchor") || says("alias") {
        "a value that begins with & or * must be in quotes"
    } else if says("tag") || says("directive") {
        "a value that begins with ! or % must be in quotes"
    } else {
        return None;
    };
    Some((line, hint))
}

/// Takes the position off the end of the reader's message: ours comes first.
fn without_place(whole: &str) -> &str {
    let is_place = |place: &str| place.starts_with(|first: char| first.is_ascii_digit());
    match whole.rsplit_once(" at line ") {
        Some((message, place)) if is_place(place) => message,
        _ => whole,
    }
}

/// Names up to this length are near another one only if one letter differs.
const SHORT_NAME_BYTES_MAX: usize = 3;

const SECTIONS: [(&str, &[&str]); 6] = [
    (
        "frontend",
        &[
            "host",
            "port",
            "logformat",
            "connections",
            "proxy-protocol",
            "defer-accept",
            "certfile",
            "keyfile",
            "cafile",
            "verify-client",
            "tls-min-version",
            "tls-ciphers",
        ],
    ),
    (
        "backend",
        &[
            "host",
            "port",
            "scheme",
            "timeout",
            "connections",
            "insecure",
            "cafile",
            "certfile",
            "keyfile",
            "server-name",
        ],
    ),
    ("cache", &["ttl", "interval", "entries", "grace", "fence"]),
    (
        "dcs",
        &[
            "type",
            "hosts",
            "scheme",
            "insecure",
            "cafile",
            "certfile",
            "keyfile",
            "server-name",
            "username",
            "password",
            "password-file",
            "namespace",
            "group",
            "margin",
        ],
    ),
    ("admin", &["host", "port"]),
    ("agent", &["host", "port", "route"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::RawConfig;

    #[test]
    fn the_keys_are_those_that_the_reader_knows() {
        let known = |text: &str| {
            let error = RawConfig::read(text).err().expect("an unknown key").to_string();
            let list = error.split_once("expected ").expect("a list").1.to_owned();
            let names = list.split('`').skip(1).step_by(2).map(str::to_owned);
            names.collect::<Vec<_>>()
        };
        let sections: Vec<_> = SECTIONS.iter().map(|(section, _)| *section).collect();
        assert_eq!(known("qqqqqq: 1"), sections);
        for (section, keys) in SECTIONS {
            assert_eq!(known(&format!("{section}: {{qqqqqq: 1}}")), keys);
        }
    }

    #[test]
    fn a_distance_counts_changed_and_swapped_letters() {
        let table = [
            ("port", "port", 0),
            ("prot", "port", 1),
            ("hots", "host", 1),
            ("tls", "ttl", 2),
            ("", "ttl", 3),
            ("certfiles", "certfile", 1),
            ("kefil", "keyfile", 2),
        ];
        for (one, other, expected) in table {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
