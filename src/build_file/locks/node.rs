//! `package-lock.json`, version 2 or 3: packages with their places below `node_modules`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Lock, is_plain};
use crate::build_file::spec::{Fetched, Source};
use crate::error::Result;

/// The registry that npm asks, for locks that don't say where a package is.
const REGISTRY: &str = "https://registry.npmjs.org";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PackageLock {
    #[serde(default)]
    lockfile_version: u64,
    #[serde(default)]
    packages: BTreeMap<String, Package>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    name: Option<String>,
    version: Option<String>,
    resolved: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    link: bool,
    #[serde(default)]
    dev: bool,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    in_bundle: bool,
    os: Option<Vec<String>>,
    cpu: Option<Vec<String>>,
    libc: Option<Vec<String>>,
}

/// The packages that a lock pins, each as `package.tgz` in the folder of its place below `folder`.
pub fn packages(lock: &Lock, folder: &str, dev: bool) -> Result<Vec<Source>> {
    let parsed: PackageLock = serde_json::from_str(&lock.text)
        .map_err(|e| lock.error(offset(&lock.text, e.line(), e.column()), format!("{}: {e}", lock.name)))?;
    if !(2..=3).contains(&parsed.lockfile_version) {
        let at = lock.text.find("\"lockfileVersion\"").unwrap_or(0);
        return Err(lock
            .error(at, "a lock of version 2 or 3 is needed")
            .next("npm 7 and later write one: npm install --package-lock-only"));
    }
    let mut made = vec![];
    for (place, package) in &parsed.packages {
        // The package itself, what is in another one's archive, what is not for this system.
        let left_out = place.is_empty() || package.in_bundle || (package.dev && !dev);
        if left_out || (package.optional && !package.is_for_here()) {
            continue;
        }
        let at = lock.text.find(&format!("{place:?}:")).unwrap_or(0);
        if package.link || !place.starts_with("node_modules/") {
            return Err(
                lock.error(at, format!("{place} is a package of this workspace, and only published ones are fetched"))
            );
        }
        let (Some(version), Some(name)) = (&package.version, place.rsplit("node_modules/").next()) else {
            return Err(lock.error(at, format!("{place} has no version")));
        };
        if place.split('/').any(|part| !is_plain(part.strip_prefix('@').unwrap_or(part))) || !is_plain(version) {
            return Err(lock.error(at, format!("not a place and version of a package: {place:?} {version:?}")));
        }
        let Some(digest) = package.integrity.as_deref().and_then(digest) else {
            let why =
                if package.integrity.is_none() { "has no integrity" } else { "has no integrity of sha512 or sha256" };
            return Err(lock
                .error(at, format!("{name} {version} {why}"))
                .next("packages of a registry have one; fetch others with git(…)"));
        };
        let name = package.name.as_deref().unwrap_or(name);
        let url = match &package.resolved {
            Some(url) if url.starts_with("https://") || url.starts_with("http://") => url.clone(),
            Some(url) => {
                return Err(lock.error(
                    at,
                    format!("{name} {version} comes from {url}, and only packages of a registry are fetched"),
                ));
            }
            None => format!("{REGISTRY}/{name}/-/{}-{version}.tgz", name.rsplit('/').next().unwrap_or(name)),
        };
        made.push(Source::Fetched(Fetched { path: format!("{folder}/{place}/package.tgz"), urls: vec![url], digest }));
    }
    lock.bounded(made)
}

impl Package {
    /// Is it for a Linux of this processor, with glibc?
    fn is_for_here(&self) -> bool {
        let cpu = match std::env::consts::ARCH {
            "x86_64" => "x64",
            "aarch64" => "arm64",
            "x86" => "ia32",
            other => other,
        };
        let allows = |list: &Option<Vec<String>>, here: &str| {
            let Some(list) = list else { return true };
            let refused = list.iter().any(|item| item.strip_prefix('!') == Some(here));
            let named =
                list.iter().any(|item| item == here || item == "any") || list.iter().all(|item| item.starts_with('!'));
            !refused && named
        };
        allows(&self.os, "linux") && allows(&self.cpu, cpu) && allows(&self.libc, "glibc")
    }
}

/// The strongest of `sha512-BASE64 sha256-BASE64`, in hex; sha1 says nothing.
fn digest(integrity: &str) -> Option<String> {
    for (name, bytes) in [("sha512", 64), ("sha256", 32)] {
        let found = integrity.split_whitespace().filter_map(|part| part.strip_prefix(name)?.strip_prefix('-'));
        for text in found {
            let text = text.split('?').next().unwrap_or_default();
            if let Some(hash) = base64(text).filter(|hash| hash.len() == bytes) {
                return Some(hash.iter().fold(format!("{name}:"), |made, byte| format!("{made}{byte:02x}")));
            }
        }
    }
    None
}

fn base64(text: &str) -> Option<Vec<u8>> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut made, mut bits, mut count) = (vec![], 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        bits = (bits << 6) | LETTERS.iter().position(|letter| *letter == byte)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            made.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(made)
}

fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    start + column.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_file::locks::tests::lock;

    const INTEGRITY: &str =
        "sha512-CQpnWPrDwmP1+SMHXZhtLtJv90yiyVfluGsX5iNCVkrhQtU3TQHsUWPG9wkdk9Lgd5yNpAg9jQEo90CBaXgWMA==";

    fn text(packages: &str) -> String {
        format!("{{\"name\": \"app\",\n\"lockfileVersion\": 3,\n\"packages\": {{\n\"\": {{}},\n{packages}\n}}}}\n")
    }

    #[test]
    fn packages_are_sources_at_their_places() {
        let text = text(&format!(
            "\"node_modules/@a/b\": {{\"version\": \"3.0.1\", \"integrity\": \"{INTEGRITY}\"}},\n\
             \"node_modules/c/node_modules/d\": {{\"version\": \"1.0.0\", \"resolved\": \"https://host/d.tgz\", \"integrity\": \"sha1-x {INTEGRITY}\"}},\n\
             \"node_modules/e\": {{\"version\": \"1.0.0\", \"dev\": true, \"integrity\": \"{INTEGRITY}\"}},\n\
             \"node_modules/f\": {{\"version\": \"1.0.0\", \"optional\": true, \"os\": [\"darwin\"], \"integrity\": \"{INTEGRITY}\"}},\n\
             \"node_modules/g\": {{\"version\": \"1.0.0\", \"inBundle\": true}}"
        ));
        let lock = lock("package-lock.json", &text);
        let made = packages(&lock, ".packages", false).unwrap();
        let [Source::Fetched(b), Source::Fetched(d)] = &made[..] else { panic!("{made:?}") };
        assert_eq!(b.path, ".packages/node_modules/@a/b/package.tgz");
        assert_eq!(b.urls, ["https://registry.npmjs.org/@a/b/-/b-3.0.1.tgz"]);
        assert!(b.digest.starts_with("sha512:090a6758fac3c263f5f92307") && b.digest.len() == 7 + 128, "{}", b.digest);
        assert_eq!(
            (d.path.as_str(), d.urls[0].as_str()),
            (".packages/node_modules/c/node_modules/d/package.tgz", "https://host/d.tgz")
        );
        assert_eq!(packages(&lock, "x", true).unwrap().len(), 3);
    }

    #[test]
    fn what_is_not_pinned_is_an_error_with_its_line() {
        let cases = [
            (text("\"node_modules/a\": {\"version\": \"1.0.0\"}"), 5, "no integrity"),
            (text("\"node_modules/a\": {\"version\": \"1.0.0\", \"integrity\": \"sha1-abc=\"}"), 5, "sha512"),
            (text("\"node_modules/a\": {\"resolved\": \"a\", \"link\": true}"), 5, "workspace"),
            (
                text(&format!("\"node_modules/../a\": {{\"version\": \"1.0.0\", \"integrity\": \"{INTEGRITY}\"}}")),
                5,
                "not a place",
            ),
            (
                text(&format!(
                    "\"node_modules/a\": {{\"version\": \"1\", \"resolved\": \"git+ssh://x\", \"integrity\": \"{INTEGRITY}\"}}"
                )),
                5,
                "comes from git",
            ),
            ("{\n\"lockfileVersion\": 1}\n".to_string(), 2, "version 2 or 3"),
            ("{\n\n\"packages\": [}\n".to_string(), 3, "package-lock.json:"),
            ("[".repeat(100_000), 1, "package-lock.json:"),
        ];
        for (text, line, what) in cases {
            let error = packages(&lock("package-lock.json", &text), "x", false).unwrap_err();
            assert!(error.what().contains(what), "{error}");
            assert_eq!(error.places()[0].0.line, line, "{error}");
        }
    }
}
