//! What only the YAML reader knows: a value while it has a line, and the line of a key.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// A value as YAML has it.
#[derive(Debug)]
pub enum Scalar<'a> {
    Null,
    Flag(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
    /// A sequence or a mapping.
    Collection,
}

/// A type that one scalar makes, or says why not.
pub trait FromScalar: Sized {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String>;
}

/// `None`: an empty text or nothing, which mean the default as in the Go program.
pub struct Given<T>(pub Option<T>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Given(None)
    }
}

impl<T: FromScalar> FromScalar for Given<T> {
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Null | Scalar::Text("") => Ok(Given(None)),
            other => T::from_scalar(other).map(|value| Given(Some(value))),
        }
    }
}

impl<'de, T: FromScalar> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor::new())
    }
}

impl FromScalar for bool {
    /// In YAML 1.1's words too, which the Go program's reader took.
    fn from_scalar(scalar: Scalar<'_>) -> Result<Self, String> {
        match scalar {
            Scalar::Flag(flag) => Ok(flag),
            Scalar::Text(text) => match text.to_ascii_lowercase().as_str() {
                "y" | "yes" | "on" | "true" => Ok(true),
                "n" | "no" | "off" | "false" => Ok(false),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            other => Err(format!("{other} is neither true nor false")),
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Null => f.write_str("nothing"),
            Scalar::Flag(flag) => write!(f, "{flag}"),
            Scalar::Integer(integer) => write!(f, "{integer}"),
            Scalar::Float(float) => write!(f, "{float:?}"),
            Scalar::Text(text) => write!(f, "{text:?}"),
            Scalar::Collection => f.write_str("a collection"),
        }
    }
}

/// Hands each kind of scalar to [`FromScalar`] while the reader still knows the line.
pub struct ScalarVisitor<T>(PhantomData<T>);

impl<T> ScalarVisitor<T> {
    /// Makes one value.
    pub fn new() -> Self {
        ScalarVisitor(PhantomData)
    }
}

impl<'de, T: FromScalar> Visitor<'de> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        T::from_scalar(Scalar::Null).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        T::from_scalar(Scalar::Flag(value)).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value.into())).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value.into())).map_err(E::custom)
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<T, E> {
        T::from_scalar(Scalar::Integer(value)).map_err(E::custom)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<T, E> {
        // beyond every range, so its last digits do not matter
        let huge = Scalar::Float(value as f64);
        T::from_scalar(i128::try_from(value).map_or(huge, Scalar::Integer)).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        T::from_scalar(Scalar::Float(value)).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        T::from_scalar(Scalar::Text(value)).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::from_scalar(Scalar::Collection).map_err(de::Error::custom)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::from_scalar(Scalar::Collection).map_err(de::Error::custom)
    }
}

/// A key looked for in a text that was read before. The reader tells a line only with an error:
/// this fails at the key, and nowhere else.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The keys on the way to it, the outermost first.
    pub path: &'a [&'a str],
    /// How many like it stand before it in the same mapping.
    pub former_count: usize,
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
            [last] if *last == key && self.former_count == 0 => Err(E::custom("here")),
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
                    self.former_count -= usize::from(is_next);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(false)
    }
}
