//! What a name, a version and a path in a Debian archive may look like. All of them come from outside.

use std::str::FromStr;

use debversion::Version;

/// A version of Debian's policy, 5.6.12.
pub fn version(text: &str) -> Option<Version> {
    let plain = !text.is_empty()
        && text.len() < 256
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-~:".contains(&b));
    if plain { Version::from_str(text).ok() } else { None }
}

/// A package's name (policy 5.6.1).
pub fn is_name(text: &str) -> bool {
    text.len() < 128
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

/// A path below the archive that leads nowhere else.
pub fn is_pool_path(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._~/:%@".contains(&b));
    plain
        && !text.is_empty()
        && text.len() < 1024
        && !text.starts_with('/')
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
