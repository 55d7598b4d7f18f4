//! JSON as etcd and Patroni write it, read strictly: a repeated name in an object is an error at
//! any depth, an array is never taken for an object, a number never for a string.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Object),
}

/// A JSON object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<(String, Json)>);

/// The value is of another type than expected, or out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected;

impl Object {
    /// Parses a whole document. `None`: it is not valid, or not an object.
    pub fn from_slice(bytes: &[u8]) -> Option<Object> {
        match serde_json::from_slice(bytes).ok()? {
            Json::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The value with this name.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(its, _)| its == name).map(|(_, value)| value)
    }

    /// The value with this name, if the object has no other.
    pub fn only(&self, name: &str) -> Option<&Json> {
        self.get(name).filter(|_| self.0.len() == 1)
    }

    /// A string; empty if absent, as protocol buffers have it.
    pub fn text(&self, name: &str) -> Result<&str, Unexpected> {
        match self.get(name) {
            None => Ok(""),
            Some(Json::Text(text)) => Ok(text),
            Some(_) => Err(Unexpected),
        }
    }

    /// A bool; `false` if absent.
    pub fn flag(&self, name: &str) -> Result<bool, Unexpected> {
        match self.get(name) {
            None => Ok(false),
            Some(Json::Flag(flag)) => Ok(*flag),
            Some(_) => Err(Unexpected),
        }
    }

    /// An int64, which protocol buffers spell as a JSON string; 0 if absent.
    pub fn int64(&self, name: &str) -> Result<i64, Unexpected> {
        let Some(value) = self.get(name) else { return Ok(0) };
        let Json::Text(text) = value else { return Err(Unexpected) };
        let number = text.parse::<i64>().map_err(|_| Unexpected)?;
        // no leading sign or zero that etcd would not write
        if number.to_string() == *text { Ok(number) } else { Err(Unexpected) }
    }

    /// A list; empty if absent.
    pub fn list(&self, name: &str) -> Result<&[Json], Unexpected> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Json::List(list)) => Ok(list),
            Some(_) => Err(Unexpected),
        }
    }
}

impl Json {
    /// Whether it is true for Python.
    pub fn is_truthy(&self) -> bool {
        match self {
            Json::Null | Json::Flag(false) | Json::Integer(0) => false,
            Json::Flag(true) | Json::Integer(_) | Json::Number => true,
            Json::Text(text) => !text.is_empty(),
            Json::List(list) => !list.is_empty(),
            Json::Object(object) => !object.0.is_empty(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Flag(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number, Json::Integer))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Object::default();
        while let Some((name, value)) = entries.next_entry::<String, Json>()? {
            if object.0.len() >= NAMES_MAX || object.get(&name).is_some() {
                return Err(de::Error::custom("a name twice, or too many names"));
            }
            object.0.push((name, value));
        }
        Ok(Json::Object(object))
    }
}

/// Maximum names of one object; the cost is quadratic. `postgresql.parameters` in Patroni's
/// configuration may have a few hundred.
const NAMES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_objects_without_repeated_names_are_read() {
        for text in ["{}", r#"{"a": [1, -1.5, "x", null, {"b": true}]}"#, " {\"a\": 1e400} "] {
            let is_read = Object::from_slice(text.as_bytes()).is_some();
            assert_eq!(is_read, !text.contains("1e400"), "{text}");
        }
        let table = [
            "",
            "1",
            "[]",
            "null",
            "{",
            r#"{"a": 1"#,
            "{} {}",
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": [{"b": {"c": 1, "c": 2}}]}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            "{\"a\": NaN}",
        ];
        for text in table {
            assert_eq!(Object::from_slice(text.as_bytes()), None, "{text}");
        }
        let many = |count: usize| {
            let names: Vec<String> = (0..count).map(|at| format!("\"{at}\":1")).collect();
            format!("{{{}}}", names.join(","))
        };
        assert!(Object::from_slice(many(NAMES_MAX).as_bytes()).is_some());
        assert!(Object::from_slice(many(NAMES_MAX + 1).as_bytes()).is_none());
    }

    #[test]
    fn an_int64_is_a_string_as_etcd_writes_it() {
        let table = [
            (r#"{}"#, Ok(0)),
            (r#"{"n": "0"}"#, Ok(0)),
            (r#"{"n": "-1"}"#, Ok(-1)),
            (r#"{"n": "9223372036854775807"}"#, Ok(i64::MAX)),
            (r#"{"n": "9223372036854775808"}"#, Err(Unexpected)),
            (r#"{"n": 1}"#, Err(Unexpected)),
            (r#"{"n": null}"#, Err(Unexpected)),
            (r#"{"n": ""}"#, Err(Unexpected)),
            (r#"{"n": "+1"}"#, Err(Unexpected)),
            (r#"{"n": "01"}"#, Err(Unexpected)),
            (r#"{"n": " 1"}"#, Err(Unexpected)),
            (r#"{"n": "1.0"}"#, Err(Unexpected)),
            (r#"{"n": "-0"}"#, Err(Unexpected)),
        ];
        for (text, number) in table {
            let object = Object::from_slice(text.as_bytes()).expect(text);
            assert_eq!(object.int64("n"), number, "{text}");
        }
    }

    #[test]
    fn another_type_is_no_default() {
        let object = Object::from_slice(br#"{"a": null, "b": [1], "c": "x"}"#).expect("whole");
        assert_eq!((object.text("a"), object.flag("a")), (Err(Unexpected), Err(Unexpected)));
        assert_eq!((object.list("a"), object.text("b")), (Err(Unexpected), Err(Unexpected)));
        assert_eq!((object.text("z"), object.flag("z")), (Ok(""), Ok(false)));
        assert_eq!((object.list("z"), object.text("c")), (Ok(&[][..]), Ok("x")));
        assert_eq!((object.only("a"), Object::default().only("a")), (None, None));
    }
}
