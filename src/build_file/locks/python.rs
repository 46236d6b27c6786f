//! A requirements file with hashes, as `pip-compile --generate-hashes` and `uv pip compile
//! --generate-hashes` write it: `NAME==VERSION --hash=sha256:…`.

use super::{Lock, is_hex, is_plain};
use crate::build_file::spec::{Source, Wheel};
use crate::error::{Error, Result};

/// The index that pip asks.
const INDEX: &str = "https://pypi.org/simple";

/// The requirements that a lock pins, one wheel each, in a folder; for the Python `3.11`.
pub fn wheels(lock: &Lock, folder: &str, python: &str) -> Result<Vec<Source>> {
    let mut indexes = vec![INDEX.to_string()];
    let mut made = vec![];
    for (at, line) in lines(&lock.text) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            None => {}
            Some(option) if option.starts_with('-') => read_option(lock, at, &line, &mut indexes)?,
            Some(_) => made.push((at, line)),
        }
    }
    let made =
        made.into_iter().map(|(at, line)| requirement(lock, at, &line, folder, python, &indexes).map(Source::Wheel));
    lock.bounded(made.collect::<Result<_>>()?)
}

/// Lines with their place, without comments; one that ends in a backslash goes on in the next.
fn lines(text: &str) -> Vec<(usize, String)> {
    let mut made: Vec<(usize, String)> = vec![];
    let (mut at, mut goes_on) = (0, false);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        // As pip does: a comment begins the line, or follows white space.
        let content =
            if trimmed.starts_with('#') { "" } else { trimmed.split(" #").next().unwrap_or_default().trim_end() };
        let whole = content.strip_suffix('\\');
        let part = whole.unwrap_or(content);
        match made.last_mut() {
            Some((_, before)) if goes_on => {
                before.push(' ');
                before.push_str(part);
            }
            _ => made.push((at, part.to_string())),
        }
        goes_on = whole.is_some() || (goes_on && trimmed.starts_with('#'));
        at += line.len();
    }
    made
}

/// Options that say where packages are matter here, those of pip's taste don't.
fn read_option(lock: &Lock, at: usize, line: &str, indexes: &mut Vec<String>) -> Result<()> {
    let (name, value) = line.split_once(['=', ' ']).unwrap_or((line, ""));
    let value = value.trim();
    match name {
        "-i" | "--index-url" | "--pypi-url" | "--extra-index-url" => {
            if !value.starts_with("https://") && !value.starts_with("http://") {
                return Err(lock.error(at, format!("not the URL of an index: {value:?}")));
            }
            let value = value.trim_end_matches('/').to_string();
            if name == "--extra-index-url" {
                indexes.push(value)
            } else {
                indexes[0] = value
            }
            Ok(())
        }
        "--require-hashes" | "--only-binary" | "--prefer-binary" | "--no-binary" | "--pre" | "--trusted-host"
        | "--no-index" | "-f" | "--find-links" => Ok(()),
        _ => Err(lock
            .error(at, format!("{name} can't stand in this lock"))
            .next("write all requirements into one file, each as NAME==VERSION --hash=sha256:…")),
    }
}

fn requirement(lock: &Lock, at: usize, line: &str, folder: &str, python: &str, indexes: &[String]) -> Result<Wheel> {
    let pins = |error: Error| {
        error.next(
            "pip-compile --generate-hashes (or uv pip compile --generate-hashes) writes NAME==VERSION --hash=sha256:…",
        )
    };
    let (wanted, hashes) = line.split_at(line.find(" --hash").unwrap_or(line.len()));
    let (wanted, marker) = wanted.split_once(';').map_or((wanted, None), |(wanted, marker)| (wanted, Some(marker)));
    let Some((name, version)) = wanted.split_once("==") else {
        return Err(pins(lock.error(at, format!("not pinned: {:?}", wanted.trim()))));
    };
    // Extras change what is required, and that stands in the lock too.
    let name = name.split('[').next().unwrap_or_default().trim();
    let version = version.trim_start_matches('=').trim();
    let is_version =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-!".contains(&b)) && !text.is_empty();
    if !is_plain(name) || !is_version(version) {
        return Err(pins(lock.error(at, format!("not a requirement: {:?}", wanted.trim()))));
    }
    let mut sha256 = vec![];
    for hash in hashes.replace("--hash=", " ").replace("--hash ", " ").split_whitespace() {
        match hash.strip_prefix("sha256:").filter(|hex| is_hex(hex, 64)) {
            Some(hex) => sha256.push(hex.to_string()),
            None => return Err(pins(lock.error(at, format!("{name}: not a hash that is read here: {hash:?}")))),
        }
    }
    if sha256.is_empty() {
        return Err(pins(lock.error(at, format!("{name}=={version} has no hash"))));
    }
    sha256.sort();
    sha256.dedup();
    Ok(Wheel {
        folder: folder.to_string(),
        name: name.to_string(),
        version: version.to_string(),
        sha256,
        python: python.to_string(),
        indexes: indexes.to_vec(),
        optional: marker.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_file::locks::tests::lock;

    fn hex(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn what_the_lock_writers_write_is_read() {
        let (a, b) = (hex('a'), hex('b'));
        let text = format!(
            "# by pip-compile\n--index-url https://corp/simple/\n\nsix==1.16.0 \\\n    --hash=sha256:{b} \\\n    # a comment\n    --hash=sha256:{a}\n    # via x\nrequests[socks]==2.31.0 ; python_version >= \"3.8\" --hash=sha256:{a}  # why\n"
        );
        let made = wheels(&lock("requirements.lock", &text), ".wheels", "3.11").unwrap();
        let [Source::Wheel(six), Source::Wheel(requests)] = &made[..] else { panic!("{made:?}") };
        assert_eq!((six.name.as_str(), six.version.as_str(), six.optional), ("six", "1.16.0", false));
        assert_eq!(six.sha256, [a.clone(), b]);
        assert_eq!(six.indexes, ["https://corp/simple"]);
        assert_eq!(
            (requests.name.as_str(), requests.version.as_str(), requests.optional),
            ("requests", "2.31.0", true)
        );
        assert_eq!(requests.sha256, [a]);
    }

    #[test]
    fn what_is_not_pinned_is_an_error_with_its_line() {
        let a = hex('a');
        let cases = [
            ("\nsix>=1\n".to_string(), 2, "not pinned"),
            ("six==1.16.0\n".to_string(), 1, "no hash"),
            ("six==1.16.0 --hash=md5:12\n".to_string(), 1, "not a hash"),
            ("# x\n-r other.txt\n".to_string(), 2, "-r can't"),
            ("-e .\n".to_string(), 1, "-e can't"),
            (format!("six @ https://host/six.whl --hash=sha256:{a}\n"), 1, "not pinned"),
            (format!("../six==1 --hash=sha256:{a}\n"), 1, "not a requirement"),
            ("--index-url file:///etc\n".to_string(), 1, "not the URL"),
        ];
        for (text, line, what) in cases {
            let error = wheels(&lock("requirements.lock", &text), "x", "3.11").unwrap_err();
            assert!(error.what().contains(what), "{text}: {error}");
            assert_eq!(error.places()[0].0.line, line, "{error}");
        }
    }
}
