//! Finds the line of a key in a configuration's text.
//!
//! serde_yaml reports a line only with an error, so the text is read again with a visitor that
//! fails at the key.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Returns the line of the key at the end of `path`; `previous_count` equal keys are skipped.
pub fn line_of(text: &str, path: &[&str], previous_count: usize) -> Option<usize> {
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    let error = Place { path, previous_count }.deserialize(document).err()?;
    error.location().map(|location| location.line())
}

/// Returns the line of a key that serde reports as a duplicate. serde_yaml's own line is that of
/// the mapping the key is in.
pub fn line_of_duplicate(message: &str, text: &str) -> Option<usize> {
    let (above, key) = message.split_once("duplicate field `")?;
    let key = key.split('`').next().unwrap_or_default();
    let path = above.split_terminator(": ").chain([key]);
    line_of(text, &path.collect::<Vec<_>>(), 1)
}

/// A key to be found. Reading fails at this key and nowhere else.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The keys that lead to it, outermost first, itself last.
    path: &'a [&'a str],
    /// The number of equal keys before it in the same mapping.
    previous_count: usize,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Returns, for a key, whether it is the next one of the path.
impl<'de> Visitor<'de> for Place<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key or a mapping")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match self.path {
            [last] if *last == key && self.previous_count == 0 => Err(E::custom("here")),
            path => Ok(path.first() == Some(&key)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<bool, A::Error> {
        while let Some(is_next) = map.next_key_seed(self)? {
            match self.path {
                [_, rest @ ..] if is_next && !rest.is_empty() => {
                    map.next_value_seed(Place { path: rest, ..self })?;
                }
                _ => {
                    self.previous_count -= usize::from(is_next);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, WrongValue};

    #[test]
    fn a_wrong_value_is_reported_with_the_line_of_its_key() {
        #[rustfmt::skip]
        let table = [
            ("frontend: {certfile: a}\nbackend:\n  certfile: b\n  keyfile: c", 1, "frontend.certfile"),
            ("\"frontend\":\n  'certfile': a", 2, "frontend.certfile"),
            ("backend:\n  host: keyfile\n  # keyfile: y\n  ? keyfile\n  : x", 4, "backend.keyfile"),
            ("backend: {host: x,\n  keyfile: y}", 2, "backend.keyfile"),
            ("frontend: &same\n  keyfile: y\nbackend: *same", 2, "frontend.keyfile"),
        ];
        for (text, line, key) in table {
            let error = Config::from_yaml(text).expect_err(text);
            assert_eq!(error.line, Some(line), "{text:?}: {error}");
            assert!(error.message.starts_with(&format!("{key}: ")), "{text:?}: {error}");
        }
        let wrong = || WrongValue::new("backend", "server-name", "bad");
        let table = [
            ("backend:\n  scheme: https\n  host: a..b\n", "line 3: backend.host: bad"),
            ("backend:\n  host: x\n  server-name: y\n", "line 3: backend.server-name: bad"),
        ];
        for (text, error) in table {
            assert_eq!(wrong().at_line_in(text).to_string(), error);
        }
        assert_eq!(wrong().to_string(), "backend.server-name: bad");
        // an absent key has its section's line; only server-name falls back to another key
        let absent = WrongValue::new("backend", "cafile", "bad");
        let error = absent.clone().at_line_in("cache:\nbackend: {host: x}");
        assert_eq!(error.to_string(), "line 2: backend.cafile: bad");
        assert_eq!(absent.at_line_in("cache:").to_string(), "backend.cafile: bad");
    }
}
