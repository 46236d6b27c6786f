//! `docs/pod.schema.json`, applied: what of a `pod.json` is not as its schema says.

use regex::Regex;
use serde_json::Value;

use crate::error::{Error, Result};

/// The schema, as it is documented.
const SCHEMA: &str = include_str!("../../docs/pod.schema.json");

/// What is wrong with a document, each with its place in it; nothing: it fits.
pub fn faults(document: &Value) -> Result<Vec<String>> {
    let broken = |why: String| Error::failed("the schema of pod.json can't be applied").why(why);
    let root: Value = serde_json::from_str(SCHEMA).map_err(|e| broken(e.to_string()))?;
    let mut faults = vec![];
    Schema { root: &root }.check(&root, document, "pod.json", &mut faults).map_err(broken)?;
    Ok(faults)
}

struct Schema<'a> {
    root: &'a Value,
}

impl Schema<'_> {
    /// As much of JSON Schema as ours uses; a word of it that isn't known here is an error.
    fn check(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) -> Result<(), String> {
        for (word, rule) in schema.as_object().into_iter().flatten() {
            let number = rule.as_u64().unwrap_or_default();
            let text = rule.as_str().unwrap_or_default();
            let fields = || value.as_object().into_iter().flatten();
            let known = |name: &str| schema["properties"].get(name);
            let wrong = match word.as_str() {
                "$ref" => {
                    let name = text.strip_prefix("#/$defs/").unwrap_or_default();
                    let named = self.root["$defs"].get(name).ok_or_else(|| format!("it has no {text}"))?;
                    self.check(named, value, at, faults)?;
                    false
                }
                "type" => !match text {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64(),
                    other => return Err(format!("type {other}")),
                },
                "const" => value != rule,
                "enum" => !rule.as_array().is_some_and(|allowed| allowed.contains(value)),
                "minimum" => value.as_u64().is_some_and(|n| n < number),
                "maximum" => value.as_u64().is_some_and(|n| n > number),
                "minItems" => value.as_array().is_some_and(|items| (items.len() as u64) < number),
                "pattern" => {
                    let pattern = Regex::new(text).map_err(|e| e.to_string())?;
                    value.as_str().is_some_and(|value| !pattern.is_match(value))
                }
                "required" => {
                    let mut names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                    value.is_object() && names.any(|name| value.get(name).is_none())
                }
                "items" => {
                    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{at}[{n}]"), faults)?;
                    }
                    false
                }
                "properties" => {
                    for (name, inner) in fields() {
                        if let Some(rule) = rule.get(name) {
                            self.check(rule, inner, &format!("{at}.{name}"), faults)?;
                        }
                    }
                    false
                }
                "additionalProperties" if rule == false => fields().any(|(name, _)| known(name).is_none()),
                "additionalProperties" => {
                    for (name, inner) in fields().filter(|(name, _)| known(name).is_none()) {
                        self.check(rule, inner, &format!("{at}.{name}"), faults)?;
                    }
                    false
                }
                "description" | "title" | "$schema" | "$id" | "$defs" => false,
                other => return Err(format!("the word {other}")),
            };
            if wrong {
                faults.push(format!("{at}: {word} {rule}"));
            }
        }
        Ok(())
    }
}
