//! Where packages come from: a mirror that was named, or the host's own apt sources.
//!
//! Of apt's sources only those count that offer the suite, its updates or its security updates, in
//! component `main`, over http, https or file, and that are not signed by somebody else's key.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One suite of one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The archive, without a slash at its end: `dists/` and `pool/` are below it.
    pub uri: String,
    /// `bookworm`, `bookworm-updates`, `bookworm-security`.
    pub suite: String,
    /// `main`.
    pub components: Vec<String>,
}

/// A source as it was written, before anything is chosen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Written {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    architectures: Vec<String>,
    signed_by: Option<String>,
}

/// The sources of `suite`: from `mirrors` if there are any, else from the apt configuration in `apt`
/// (`/etc/apt`). A mirror is a URL, which is asked for the suite itself, or a whole line as apt has it:
/// `deb http://mirror/debian bookworm main`.
pub fn sources(suite: &str, architecture: &str, mirrors: &[String], apt: &Path) -> Result<Vec<Source>> {
    let written = if mirrors.is_empty() { host_sources(apt)? } else { named(suite, mirrors)? };
    let chosen = choose(written, suite, architecture);
    if !chosen.iter().any(|source| source.suite == suite) {
        let none = match mirrors {
            [] => Error::request(format!("no mirror is known for Debian's suite {suite:?}"))
                .why(format!("the apt sources in {} do not offer it", apt.display())),
            _ => Error::request(format!("the mirrors that were named do not offer Debian's suite {suite:?}")),
        };
        return Err(none.next("name a mirror: --mirror URL, or mirror = \"URL\" under [builder] in tapeout.toml"));
    }
    Ok(chosen)
}

fn named(suite: &str, mirrors: &[String]) -> Result<Vec<Written>> {
    let mut all = vec![];
    for mirror in mirrors {
        if mirror.starts_with("deb ") {
            let line = one_line(mirror).ok_or_else(|| {
                Error::request(format!("not a line as apt has them: {mirror:?}")).next("write deb URL SUITE COMPONENT")
            })?;
            all.push(line);
        } else if mirror.contains(char::is_whitespace) || !is_fetchable(mirror) {
            return Err(
                Error::request(format!("not the URL of a mirror: {mirror:?}")).next("use http:, https: or file:")
            );
        } else {
            all.push(Written {
                uris: vec![mirror.clone()],
                suites: vec![suite.into()],
                components: vec!["main".into()],
                ..Default::default()
            });
        }
    }
    Ok(all)
}

fn is_fetchable(uri: &str) -> bool {
    ["http://", "https://", "file:/"].iter().any(|scheme| uri.starts_with(scheme))
}

fn choose(written: Vec<Written>, suite: &str, architecture: &str) -> Vec<Source> {
    let wanted =
        [suite.to_string(), format!("{suite}-updates"), format!("{suite}-security"), format!("{suite}/updates")];
    let mut chosen: Vec<Source> = vec![];
    for source in written {
        let other_arch = !source.architectures.is_empty() && !source.architectures.iter().any(|a| a == architecture);
        let other_key = source.signed_by.as_ref().is_some_and(|key| !key.contains("debian-archive"));
        if other_arch || other_key || !source.components.iter().any(|c| c == "main") {
            continue;
        }
        let Some(uri) = source.uris.iter().find(|uri| is_fetchable(uri)) else { continue };
        for suite in source.suites.iter().filter(|s| wanted.contains(s)) {
            let new =
                Source { uri: uri.trim_end_matches('/').into(), suite: suite.clone(), components: vec!["main".into()] };
            if !chosen.iter().any(|old| old.suite == new.suite) {
                chosen.push(new);
            }
        }
    }
    chosen.sort_by_key(|source| wanted.iter().position(|w| *w == source.suite));
    chosen
}

/// All that apt would read, in its order.
fn host_sources(apt: &Path) -> Result<Vec<Written>> {
    let mut written = vec![];
    for path in source_files(apt)? {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if path.extension().is_some_and(|e| e == "sources") {
            written.extend(deb822(&text));
        } else {
            written.extend(text.lines().filter_map(one_line));
        }
    }
    Ok(written)
}

fn source_files(apt: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![apt.join("sources.list")];
    let folder = apt.join("sources.list.d");
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut found = entries
                .map(|e| e.map(|e| e.path()))
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|e| Error::io("readdir", &folder, e))?;
            found.retain(|p| p.extension().is_some_and(|e| e == "list" || e == "sources"));
            found.sort();
            files.extend(found);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("opendir", &folder, e)),
    }
    Ok(files)
}

/// `deb [option=value …] URI SUITE COMPONENT…`; `None` for all else.
fn one_line(line: &str) -> Option<Written> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut written = Written::default();
    let rest = match rest.strip_prefix('[') {
        None => rest,
        Some(rest) => {
            let (options, rest) = rest.split_once(']')?;
            for option in options.split_whitespace() {
                match option.split_once('=') {
                    Some(("arch", value)) => written.architectures = value.split(',').map(Into::into).collect(),
                    Some(("signed-by", value)) => written.signed_by = Some(value.into()),
                    _ => {}
                }
            }
            rest
        }
    };
    let mut words = rest.split_whitespace().map(String::from);
    written.uris.push(words.next()?);
    written.suites.push(words.next()?);
    written.components = words.collect();
    Some(written)
}

/// The stanzas of a `.sources` file that are enabled and of type `deb`.
fn deb822(text: &str) -> Vec<Written> {
    let mut all = vec![];
    // apt allows comments between the fields, which end no stanza.
    let text: String = text.lines().filter(|l| !l.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
    let Ok(stanzas) = deb822_fast::borrowed::parse_borrowed(&text) else { return all };
    for stanza in &stanzas {
        let words = |field: &str| -> Vec<String> {
            let lines = stanza.get(field).unwrap_or_default();
            lines.iter().flat_map(|l| l.split_whitespace()).map(String::from).collect()
        };
        let enabled = !words("Enabled")
            .iter()
            .any(|w| matches!(w.to_lowercase().as_str(), "no" | "false" | "without" | "off" | "disable"));
        if !enabled || !words("Types").iter().any(|t| t == "deb") {
            continue;
        }
        all.push(Written {
            uris: words("URIs"),
            suites: words("Suites"),
            components: words("Components"),
            architectures: words("Architectures"),
            signed_by: Some(words("Signed-By")).filter(|w| !w.is_empty()).map(|w| w.join(" ")),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn found(suite: &str, apt: &Path) -> Vec<(String, String)> {
        sources(suite, "amd64", &[], apt).unwrap().into_iter().map(|s| (s.uri, s.suite)).collect()
    }

    #[test]
    fn both_formats_of_apt_are_read_and_only_what_offers_the_suite_counts() {
        let folder = apt(&[
            (
                "sources.list",
                "# deb http://no/debian bookworm main\ndeb-src http://no/debian bookworm main\n\
                deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://one/debian/ bookworm main contrib # yes\n\
                deb [arch=arm64] http://no/debian bookworm-updates main\ndeb http://no/ sid main\n",
            ),
            (
                "sources.list.d/a.sources",
                "Types: deb\n# a comment\nURIs: http://two/debian-security\nSuites: bookworm-security sid\nComponents: main\n\n\
                Types: deb deb-src\nURIs: http://three/debian\nSuites:\n bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            ),
            (
                "sources.list.d/b.sources",
                "Enabled: no\nTypes: deb\nURIs: http://no\nSuites: bookworm\nComponents: main\n",
            ),
            ("sources.list.d/c.list", "deb [signed-by=/usr/share/keyrings/other.gpg] http://other bookworm main\n"),
            ("sources.list.d/d.txt", "deb http://no bookworm main\n"),
        ]);
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(
            found("bookworm", folder.path()),
            [
                pair("http://one/debian", "bookworm"),
                pair("http://three/debian", "bookworm-updates"),
                pair("http://two/debian-security", "bookworm-security")
            ]
        );
    }

    #[test]
    fn a_mirror_that_is_named_wins_over_the_host() {
        let folder = apt(&[("sources.list", "deb http://one/debian bookworm main\n")]);
        let named = sources("trixie", "amd64", &["file:///srv/debian/".into()], folder.path()).unwrap();
        assert_eq!((named[0].uri.as_str(), named.len()), ("file:///srv/debian", 1));
        let lines = ["deb http://a/debian trixie main".into(), "deb http://b/security trixie-security main".into()];
        assert_eq!(sources("trixie", "amd64", &lines, folder.path()).unwrap().len(), 2);
        assert!(sources("trixie", "amd64", &["ftp://x".into()], folder.path()).is_err());
    }

    #[test]
    fn a_suite_that_nobody_offers_says_what_to_do() {
        let error = sources("bookworm", "amd64", &[], apt(&[]).path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.next_step().unwrap().contains("--mirror"));
    }
}
