//! JSON documents: written in one spelling, read without trust.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Compact, keys sorted whatever they were kept in, so that a document has one digest.
pub fn write(document: &impl Serialize) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::failed(format!("can't write a JSON document: {e}"));
    let value = serde_json::to_value(document).map_err(bad)?;
    serde_json::to_vec(&sorted(value)).map_err(bad)
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        Value::Object(map) => {
            let mut fields: Vec<_> = map.into_iter().collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        other => other,
    }
}

/// Reads a document in which no key stands twice.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bad = |e: serde_json::Error| Error::failed("not the JSON document that it should be").why(e.to_string());
    let Strict(value) = serde_json::from_slice(bytes).map_err(bad)?;
    serde_json::from_value(value).map_err(bad)
}

/// A value without duplicate keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut values = vec![];
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Strict(values.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key {key:?} stands twice")));
            }
            fields.insert(key, value);
        }
        Ok(Strict(fields.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_an_error() {
        assert!(read::<Value>(br#"{"a": {"b": 1, "b": 2}}"#).unwrap_err().reasons()[0].contains("\"b\""));
        assert_eq!(read::<Value>(br#"{"a": [1, null, "x"]}"#).unwrap()["a"][2], "x");
    }

    #[test]
    fn one_document_has_one_spelling() {
        let hash = std::collections::HashMap::from([("b", 1), ("a", 2), ("c", 3)]);
        assert_eq!(write(&hash).unwrap(), br#"{"a":2,"b":1,"c":3}"#);
    }
}
