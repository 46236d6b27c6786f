//! The workspace: the folder with `tapeout.toml`, and what that file says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::search_path::SearchPath;
use crate::error::{Error, Place, Result};
use crate::label::Label;
use crate::nearest::nearest;

/// The file that makes a folder a workspace.
pub const FILE: &str = "tapeout.toml";
/// Bytes of it.
const SIZE: u64 = 1 << 20;

/// A workspace and what its `tapeout.toml` says.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// The folder, absolute.
    pub root: PathBuf,
    /// Where packages are looked up, highest first, the workspace included; below all of them are
    /// the built-in ones.
    pub search_path: Vec<PathBuf>,
    /// The builder that this workspace builds in.
    pub builder: Option<BuilderConfig>,
    /// SOURCE_DATE_EPOCH.
    pub epoch: Option<i64>,
    /// Files and folders outside of the workspace, by name: absolute, or relative to the workspace.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Where to go instead of a URL that begins with the key.
    pub mirrors: BTreeMap<String, String>,
}

/// `[builder]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuilderConfig {
    /// Its name in the store.
    pub tag: String,
    /// How to make it, when it isn't there yet.
    pub from: Option<String>,
    /// The package mirror.
    pub mirror: Option<String>,
    /// Packages besides the base system.
    #[serde(default)]
    pub packages: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    builder: Option<BuilderConfig>,
    build: Option<RawBuild>,
    #[serde(default)]
    inputs: BTreeMap<String, PathBuf>,
    #[serde(default)]
    mirrors: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBuild {
    epoch: Option<i64>,
}

impl Workspace {
    /// The workspace that `start` lies in: the nearest folder above with `tapeout.toml`.
    pub fn find(start: &Path) -> Result<Self> {
        let start = std::path::absolute(start).map_err(|e| Error::io("absolute", start, e))?;
        let found = start.ancestors().find(|folder| folder.join(FILE).symlink_metadata().is_ok());
        let Some(root) = found else {
            return Err(Error::request(format!(
                "not in a workspace: no {FILE} in {} or a folder above",
                start.display()
            ))
            .next(format!("tapeout init makes one, and so does an empty file named {FILE}")));
        };
        Self::open(root)
    }

    /// The workspace in this very folder.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let stat = path.metadata().map_err(|e| Error::io("stat", &path, e))?;
        if !stat.is_file() || stat.len() > SIZE {
            return Err(Error::request(format!("{FILE} is not a regular file of at most {SIZE} bytes")));
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Error::io("read", &path, e).with_kind(crate::error::Kind::Request))?;
        let raw = parse(&text)?;
        let inputs = raw.inputs.into_iter().map(|(name, path)| (name, root.join(path))).collect();
        Ok(Self {
            root: root.to_path_buf(),
            search_path: vec![root.to_path_buf()],
            builder: raw.builder,
            epoch: raw.build.unwrap_or_default().epoch,
            inputs,
            mirrors: raw.mirrors,
        })
    }

    /// With each `--path`, in the order given: the last is the highest.
    pub fn with_paths(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        for path in paths {
            self.search_path.insert(0, path);
        }
        self
    }

    /// For the look-up of packages.
    pub(crate) fn packages(&self) -> SearchPath {
        SearchPath { workspace: self.root.clone(), folders: self.search_path.clone() }
    }
}

fn parse(text: &str) -> Result<Raw> {
    let raw: Raw = toml::from_str(text).map_err(|e| unreadable(text, &e))?;
    let refuse = |line_with: &str, what: String, next: &str| {
        let at = text.find(line_with).unwrap_or(0);
        Err(Error::request(what).at(place(text, at..at + line_with.len()), "").next(next))
    };
    for name in raw.inputs.keys() {
        if name.contains('/') || Label::new(crate::label::Package::new("")?, name).is_err() {
            return refuse(
                name,
                format!("an input can't be named {name:?}"),
                "letters, digits and . _ + - may stand in it",
            );
        }
    }
    for (from, to) in &raw.mirrors {
        let is_url = |text: &str| ["https://", "http://", "file:/"].iter().any(|scheme| text.starts_with(scheme));
        let wrong =
            if from.starts_with("file:") || !is_url(from) { Some(from) } else { Some(to).filter(|to| !is_url(to)) };
        if let Some(wrong) = wrong {
            return refuse(
                wrong,
                format!("not a URL: {wrong:?}"),
                "write \"https://pypi.org/simple\" = \"https://mirror/simple\"",
            );
        }
    }
    if let Some(builder) = &raw.builder {
        let tag = &builder.tag;
        if tag.contains('/') || Label::new(crate::label::Package::new("")?, tag).is_err() {
            return refuse(
                tag,
                format!("a builder can't be named {tag:?}"),
                "letters, digits and . _ + - may stand in it",
            );
        }
    }
    Ok(raw)
}

fn unreadable(text: &str, e: &toml::de::Error) -> Error {
    let message = e.message().lines().next().unwrap_or_default();
    let span = e.span().unwrap_or(0..0);
    let made = Error::request(format!("{FILE}: {message}")).at(place(text, span.clone()), "");
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((name, rest)) = unknown else { return made };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => made.next(format!("did you mean {near}?")),
        None => made.next(format!("here may stand {}", known.join(", "))),
    }
}

fn place(text: &str, span: std::ops::Range<usize>) -> Place {
    let at = (0..=span.start.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let source = text[start..].lines().next().unwrap_or("").to_string();
    let column = text[start..at].chars().count();
    Place {
        file: FILE.to_string(),
        line: text[..at].matches('\n').count() + 1,
        column: column + 1,
        length: span.len().clamp(1, source.chars().count().saturating_sub(column).max(1)),
        source: Some(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_design_names_is_read() {
        let text = "[builder]\ntag = \"bookworm\"\nfrom = \"debian:bookworm\"\n[build]\nepoch = 1767225600\n[inputs]\njdk = \"/data/jdk.tar.gz\"\nrel = \"../x\"\n";
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let workspace = Workspace::find(&folder.path().join("a/b")).unwrap();
        assert_eq!(workspace.root, folder.path());
        assert_eq!(workspace.builder.unwrap().tag, "bookworm");
        assert_eq!(workspace.epoch, Some(1767225600));
        assert_eq!(workspace.inputs["jdk"], Path::new("/data/jdk.tar.gz"));
        assert_eq!(workspace.inputs["rel"], folder.path().join("../x"));
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        let cases = [
            ("[builder]\ntag = \"x\"\nform = \"y\"\n", 3, 1, "did you mean from?"),
            ("\n[bild]\nepoch = 1\n", 2, 2, "did you mean build?"),
            ("[build]\nepoch = \"x\"\n", 2, 9, ""),
            ("[inputs]\n\"a/b\" = \"x\"\n", 2, 2, "letters"),
            ("[builder]\ntag = \"../x\"\n", 2, 8, "letters"),
            ("[mirrors]\n\"pypi\" = \"https://x\"\n", 2, 2, "https://pypi.org"),
            ("[mirrors]\n\"https://x\" = \"/y\"\n", 2, 16, "https://pypi.org"),
            ("[builder\n", 1, 9, ""),
        ];
        for (text, line, column, next) in cases {
            let error = parse(text).unwrap_err();
            let place = &error.places()[0].0;
            assert_eq!((place.line, place.column), (line, column), "{text}: {error}");
            assert!(error.next_step().unwrap_or("").contains(next), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn no_workspace_is_an_error_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Workspace::find(folder.path()).unwrap_err().next_step().unwrap().contains("tapeout init"));
    }
}
