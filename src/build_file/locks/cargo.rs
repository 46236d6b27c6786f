//! `Cargo.lock`: crates of crates.io.

use serde::Deserialize;
use toml::Spanned;

use super::{Lock, is_hex, is_plain};
use crate::build_file::spec::{Fetched, Source};
use crate::error::Result;

/// Where crates.io keeps its files.
const FILES: &str = "https://static.crates.io/crates";
/// What a `Cargo.lock` calls crates.io.
const REGISTRIES: [&str; 2] =
    ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

#[derive(Deserialize)]
struct CargoLock {
    #[serde(default)]
    package: Vec<Crate>,
}

#[derive(Deserialize)]
struct Crate {
    name: Spanned<String>,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

/// The crates that a `Cargo.lock` pins, each as `NAME-VERSION.crate` in a folder. Those that lie in the
/// workspace itself are left out.
pub fn crates(lock: &Lock, folder: &str) -> Result<Vec<Source>> {
    let parsed: CargoLock = toml::from_str(&lock.text).map_err(|e| {
        lock.error(
            e.span().map_or(0, |span| span.start),
            format!("{}: {}", lock.name, e.message().lines().next().unwrap_or_default()),
        )
    })?;
    let mut made = vec![];
    for found in parsed.package {
        let Some(source) = &found.source else { continue };
        let (at, name, version) = (found.name.span().start, found.name.get_ref(), &found.version);
        if !REGISTRIES.contains(&source.as_str()) {
            let error = lock
                .error(at, format!("{name} {version} comes from {source}, and only crates of crates.io are fetched"));
            return Err(error.next("put it into the package and depend on its path, or fetch it with git(…)"));
        }
        if !is_plain(name) || !is_plain(version) {
            return Err(lock.error(at, format!("not the name and version of a crate: {name:?} {version:?}")));
        }
        let Some(checksum) = found.checksum.filter(|checksum| is_hex(checksum, 64)) else {
            return Err(lock
                .error(at, format!("{name} {version} has no checksum"))
                .next("let a cargo of 2020 or later write the lock: cargo update --workspace"));
        };
        made.push(Source::Fetched(Fetched {
            path: format!("{folder}/{name}-{version}.crate"),
            urls: vec![format!("{FILES}/{name}/{name}-{version}.crate")],
            digest: format!("sha256:{checksum}"),
        }));
    }
    lock.bounded(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_file::locks::tests::lock;

    const HEX: &str = "1aab8fc367588b89dcee83ab0fd66b72b50b72fa1904d7095045ace2b0c81c35";

    #[test]
    fn crates_of_the_registry_are_sources_and_those_of_the_workspace_are_not() {
        let text = format!(
            "version = 3\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"itoa\"\nversion = \"1.0.1\"\nsource = \"{}\"\nchecksum = \"{HEX}\"\n",
            REGISTRIES[0]
        );
        let made = crates(&lock("Cargo.lock", &text), ".crates").unwrap();
        let expected = Fetched {
            path: ".crates/itoa-1.0.1.crate".into(),
            urls: vec!["https://static.crates.io/crates/itoa/itoa-1.0.1.crate".into()],
            digest: format!("sha256:{HEX}"),
        };
        assert_eq!(made, [Source::Fetched(expected)]);
    }

    #[test]
    fn what_is_not_pinned_is_an_error_with_its_line() {
        let package = |name: &str, rest: &str| {
            format!("version = 3\n\n[[package]]\nname = \"{name}\"\nversion = \"1.0\"\n{rest}\n")
        };
        let registry = format!("source = \"{}\"", REGISTRIES[1]);
        let cases = [
            (package("a", "source = \"git+https://host/a#12\""), 4, "comes from git"),
            (package("a", &registry), 4, "no checksum"),
            (package("a", &format!("{registry}\nchecksum = \"ABC\"")), 4, "no checksum"),
            (package("../a", &format!("{registry}\nchecksum = \"{HEX}\"")), 4, "not the name"),
            ("[[package]]\nname = 1\n".to_string(), 2, "Cargo.lock:"),
            ("[[package\n".to_string(), 1, "Cargo.lock:"),
        ];
        for (text, line, what) in cases {
            let error = crates(&lock("Cargo.lock", &text), "x").unwrap_err();
            assert!(error.what().contains(what), "{error}");
            assert_eq!(error.places()[0].0.line, line, "{error}");
        }
    }
}
