//! YAML that every reader reads alike.
//!
//! podman and Kubernetes read YAML 1.1, in which `yes`, `1:30`, `0x1f` and `2001-01-01` are no strings;
//! others read 1.2. So a string is written bare only where no reader can see anything else in it, and in
//! double quotes with everything but plain ASCII escaped otherwise. Texts of several lines become literal
//! blocks where these hold them exactly.

use std::fmt::Write;

use serde_json::Value;

/// Documents, one after the other.
pub fn documents(documents: &[Value]) -> String {
    let mut out = String::new();
    for document in documents {
        out.push_str("---\n");
        block(document, 0, &mut out);
    }
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(out, "{:indent$}{}:", "", scalar(key));
                after_key(value, indent, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        block(item, indent + 2, &mut inner);
                        // The first key stands right after the dash.
                        let _ = write!(out, "{:indent$}- {}", "", &inner[indent + 2..]);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        let _ = writeln!(out, "{:indent$}-", "");
                        block(item, indent + 2, out);
                    }
                    _ => {
                        let _ = write!(out, "{:indent$}-", "");
                        after_key(item, indent, out);
                    }
                }
            }
        }
        // A document is a map.
        other => {
            let _ = writeln!(out, "{:indent$}{}", "", plain(other));
        }
    }
}

fn after_key(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        Value::String(text) if is_block(text) => {
            out.push_str(" |\n");
            let indent = indent + 2;
            for line in text.lines() {
                let _ = if line.is_empty() { writeln!(out) } else { writeln!(out, "{:indent$}{line}", "") };
            }
        }
        other => {
            let _ = writeln!(out, " {}", plain(other));
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A literal block holds it exactly: lines of visible ASCII, the first not indented, one newline at the end.
fn is_block(text: &str) -> bool {
    let lines = text.strip_suffix('\n').is_some_and(|rest| !rest.ends_with('\n'));
    let visible = text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n'));
    lines && visible && !text.starts_with([' ', '\n'])
}

fn scalar(text: &str) -> String {
    if is_bare(text) { text.to_string() } else { quoted(text) }
}

/// Words that begin with a letter or a slash, and that no version of YAML takes for a value.
fn is_bare(text: &str) -> bool {
    let values = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    begins
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
        && !values.contains(&text.to_ascii_lowercase().as_str())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c if u32::from(c) < 0x1_0000 => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let texts = [
            "",
            " ",
            "yes",
            "No",
            "null",
            "~",
            "1:30",
            "0x1f",
            "012",
            "1e3",
            "2001-01-01",
            "a: b",
            "# x",
            "- x",
            "{a}",
            "*x",
            "&x",
            "!x",
            "%x",
            "@x",
            "`x",
            "a\nb\n",
            "a\nb",
            "a\n\n\nb\n",
            "a\n\n",
            "\na\n",
            "  a\nb\n",
            "tab\there",
            "quote\"back\\slash",
            "\u{85}\u{2028}\u{feff}é",
            "\u{1f600}",
            "\0\u{1b}[0m",
            "${HOME} $(X) $$",
            "trailing \n space\n",
            "-leading",
            "plain",
            "/a/b.c",
            "key: |\n  x\n",
            "---\n",
            "a\r\nb\n",
            "'single'",
            "<<",
            "=",
            ".inf",
        ];
        let map: serde_json::Map<String, Value> =
            texts.iter().map(|t| (t.to_string(), json!([t, {"k": t, "l": [t]}]))).collect();
        let documents = [
            json!({"texts": texts.to_vec(), "map": map, "empty": {}, "none": [], "n": 5, "yes": true, "lists": [[1, [2]], [], {}]}),
            json!({"second": texts.to_vec()}),
        ];
        let text = super::documents(&documents);
        let read: Vec<Value> =
            serde_yaml_ng::Deserializer::from_str(&text).map(|d| serde::Deserialize::deserialize(d).unwrap()).collect();
        assert_eq!(read, documents, "{text}");
        assert!(text.is_ascii());
    }

    #[test]
    fn the_form_is_what_people_write() {
        let text = documents(&[
            json!({"kind": "Pod", "items": [{"name": "a", "k": 1}, "b"], "version": "1.0", "text": "a\nb\n"}),
        ]);
        assert_eq!(text, "---\nitems:\n- k: 1\n  name: a\n- b\nkind: Pod\ntext: |\n  a\n  b\nversion: \"1.0\"\n");
    }
}
