//! Lines of keys: what only the YAML reader knows of a text, and tells with an error alone.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The line of a key, given with those above it, that has so many like it before it.
pub fn line_of(text: &str, path: &[&str], previous_count: usize) -> Option<usize> {
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    let error = Place { path, previous_count }.deserialize(document).err()?;
    error.location().map(|location| location.line())
}

/// Where a key stands that serde calls a duplicate: serde_yaml tells where its mapping begins.
pub fn line_of_duplicate(message: &str, text: &str) -> Option<usize> {
    let (above, key) = message.split_once("duplicate field `")?;
    let path = above.split_terminator(": ").chain([key.trim_end_matches('`')]);
    line_of(text, &path.collect::<Vec<_>>(), 1)
}

/// A key looked for in a text that was read before. The reader tells a line only with an error:
/// this fails at the key, and nowhere else.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The keys on the way to it, the outermost first.
    path: &'a [&'a str],
    /// How many like it stand before it in the same mapping.
    previous_count: usize,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Of a key: is it the next one on the way?
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
    fn a_wrong_value_has_the_line_of_its_key() {
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
        // a key that is not there has no line, and only a name has another key's
        let absent = WrongValue::new("backend", "cafile", "bad").at_line_in("backend: {host: x}");
        assert_eq!((absent.line, absent.message.as_str()), (None, "backend.cafile: bad"));
    }
}
