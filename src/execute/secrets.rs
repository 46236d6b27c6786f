//! Secrets: what a rule may read below `/run/secrets` while it runs, and what must be nowhere else.
//!
//! Their values come from the command line (`--secret`) and stay in memory: they go to init with its
//! order, which writes them to a file system in memory. A rule's key holds their names alone. Nothing
//! keeps a rule from writing down what it read, nor anybody from leaving a secret in a file that a rule takes, so all
//! that a command with secrets makes or takes from its store is searched for the very bytes: build files, sources, logs,
//! changesets, what goes into images. Encoded or compressed they are not found. A command without secrets searches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use memchr::memmem::Finder;
use nix::sys::stat::SFlag;

use crate::build_file::spec::{Graph, Rule, Spec};
use crate::changeset::Captured;
use crate::digest::Digest;
use crate::error::{Error, Kind, Place, Result};
use crate::sandbox::Secret;
use crate::sys::file;
use crate::tree::{Change, Content, Entry, Node, RootPath, Selection};

/// Shorter ones would be found everywhere.
const SHORTEST: usize = 8;
/// A file with a key or a token is never longer.
pub const LONGEST: usize = 64 << 10;
/// A file is searched in pieces of this length.
const PIECE: usize = 256 << 10;

/// The secrets of a command, by name.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<String, Secret>);

impl Secrets {
    /// Adds one. Whatever is wrong with it, its value is not told.
    pub fn add(&mut self, name: &str, value: Vec<u8>) -> Result<()> {
        let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
        if !good || name.is_empty() || name.starts_with(['-', '.']) {
            return Err(Error::request(format!("not the name of a secret: {name:?}"))
                .next("use letters, digits and . _ + - for it"));
        }
        let length = searched(&value).len();
        if length < SHORTEST {
            return Err(Error::request(format!("the secret {name} has {length} bytes"))
                .why(format!("one of less than {SHORTEST} bytes can't be told from what else is in logs and files"))
                .next("use a longer one"));
        }
        if value.len() > LONGEST {
            return Err(Error::request(format!("the secret {name} has more than {LONGEST} bytes")));
        }
        self.0.insert(name.to_string(), Secret { name: name.to_string(), value });
        Ok(())
    }

    /// None was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks for any of them.
    pub fn search(&self) -> Search {
        Search::of(&self.0.values().cloned().collect::<Vec<_>>())
    }

    /// Those that a rule names, as many as there are.
    pub fn of(&self, names: &[String]) -> Vec<Secret> {
        names.iter().collect::<BTreeSet<_>>().into_iter().filter_map(|name| self.0.get(name)).cloned().collect()
    }

    /// Those that no rule of a graph names.
    pub fn unused<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = &'a str> {
        let named = |name: &String| graph.instances.iter().any(|instance| wanted(&instance.spec).contains(name));
        self.0.keys().filter(move |name| !named(name)).map(String::as_str)
    }

    /// The first of the names that is not there.
    pub fn missing<'n>(&self, names: &'n [String]) -> Option<&'n str> {
        names.iter().find(|name| !self.0.contains_key(*name)).map(String::as_str)
    }

    /// No build file may hold one: it would be in keys, configurations and the bundle.
    pub fn are_in_no_build_file(&self, graph: &Graph) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let search = self.search();
        for instance in &graph.instances {
            let spec = serde_json::to_value(&instance.spec);
            let rest = serde_json::to_value((&instance.parameters, &instance.annotations, &instance.doc));
            let values = [spec, rest].into_iter().map(|value| value.map_err(|e| Error::failed(e.to_string())));
            for value in values {
                if let Some((name, attribute)) = search.in_json(&value?, "") {
                    // The line may be the one that holds it.
                    let place = Place { source: None, ..instance.place.clone() };
                    return Err(Error::request(format!("{}: the secret {name} is in its attributes", instance.label))
                        .at(place, "")
                        .why(format!("it would be in the key, and in what is made of {}", attribute.trim_matches('.')))
                        .next(format!("read it in a rule with secrets = [{name:?}], from /run/secrets/{name}")));
                }
            }
        }
        Ok(())
    }
}

fn holds(path: &RootPath, name: &str) -> Error {
    Error::failed(format!("{path} holds the secret {name}"))
}

/// The secrets of a command as a rule has them.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Those that it names: it may read them.
    pub own: &'a [Secret],
    /// Looks for all of them: nobody may write one down.
    pub all: &'a Search,
}

/// The names of secrets that an instance needs.
pub fn wanted(spec: &Spec) -> &[String] {
    match spec {
        Spec::Rule(Rule { secrets, .. }) => secrets,
        _ => &[],
    }
}

/// A line end that an editor added is no part of what is looked for.
fn searched(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |at| at + 1);
    &value[..end]
}

/// Looks for secrets.
#[derive(Debug, Default)]
pub struct Search {
    wanted: Vec<(String, Finder<'static>)>,
    longest: usize,
}

impl Search {
    /// For these.
    pub fn of(secrets: &[Secret]) -> Self {
        let finder = |secret: &Secret| (secret.name.clone(), Finder::new(searched(&secret.value)).into_owned());
        let longest = secrets.iter().map(|secret| searched(&secret.value).len()).max().unwrap_or(0);
        Self { wanted: secrets.iter().map(finder).collect(), longest }
    }

    /// There is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Which secret is in these bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<&str> {
        self.wanted.iter().find(|(_, finder)| finder.find(bytes).is_some()).map(|(name, _)| name.as_str())
    }

    /// The same for bytes that come in pieces.
    pub fn stream(&self) -> Stream<'_> {
        Stream { search: self, tail: vec![] }
    }

    /// Bytes of the longest.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// A captured changeset must hold none: neither in names, nor in what they stand for.
    pub fn refuses(&self, captured: &Captured) -> Result<()> {
        let found = self.in_changes(captured.changes(), |path| captured.open(path))?;
        found.map_or(Ok(()), |error| {
            Err(error
                .why("what a rule writes is kept, and gets into images")
                .next("let the rule remove it before it ends, or write it below /tmp"))
        })
    }

    /// Of a changeset that the store has.
    pub fn refuses_kept<F: Read>(
        &self,
        changes: &BTreeMap<RootPath, Change>,
        open: impl Fn(&RootPath) -> Result<F>,
    ) -> Result<()> {
        let found = self.in_changes(changes, |path| open(path).map(Some))?;
        found.map_or(Ok(()), |error| {
            Err(error
                .why("it is in the store, and gets into images")
                .next("keep it out of what is taken and written here; tapeout gc then removes what was made of it"))
        })
    }

    /// Of the sources of a rule.
    pub fn refuses_sources<F: Read>(
        &self,
        changes: &BTreeMap<RootPath, Change>,
        open: impl Fn(&RootPath) -> Result<F>,
    ) -> Result<()> {
        let found = self.in_changes(changes, |path| open(path).map(Some))?;
        found.map_or(Ok(()), |error| {
            Err(error
                .with_kind(Kind::Request)
                .context("among the sources")
                .why("sources are kept, and get into images")
                .next("leave it out, and read it in a rule with secrets = […], from /run/secrets"))
        })
    }

    fn in_changes<F: Read>(
        &self,
        changes: &BTreeMap<RootPath, Change>,
        open: impl Fn(&RootPath) -> Result<Option<F>>,
    ) -> Result<Option<Error>> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut buffer = vec![];
        for (path, change) in changes {
            let Some(entry) = &change.now else { continue };
            let file = if matches!(entry.node, Node::File { .. }) { open(path)? } else { None };
            let found = match (self.in_entry(path, entry), file) {
                (None, Some(file)) => self.in_content(path, file, &mut buffer)?,
                (found, _) => found,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// What a rule picks, or an image has below. `open` gives a file of a changeset; `None`: that one was searched.
    pub fn refuses_picked<F: Read>(
        &self,
        selection: &Selection,
        open: impl Fn(&Digest, &RootPath) -> Result<Option<F>>,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut buffer = vec![];
        for (path, picked) in selection {
            let Some(entry) = &picked.entry else { continue };
            let found = match (self.in_entry(path, entry), &picked.content) {
                (None, Content::Inline(bytes)) => self.find(bytes).map(|name| holds(path, name)),
                (None, Content::Stored { changeset, path: at }) => match open(changeset, at)? {
                    Some(file) => self.in_content(path, file, &mut buffer)?,
                    None => None,
                },
                (found, _) => found,
            };
            if let Some(error) = found {
                return Err(error
                    .why("it would be in the image")
                    .next("don't pick it; what needs it reads it where it runs, or in a rule with secrets = […]"));
            }
        }
        Ok(())
    }

    fn in_content(&self, path: &RootPath, file: impl Read, buffer: &mut Vec<u8>) -> Result<Option<Error>> {
        let found = self.in_file(file, buffer).map_err(|e| Error::io("read", path.as_path(), e))?;
        Ok(found.map(|name| holds(path, name)))
    }

    /// A document that goes into an image: its strings.
    pub fn refuses_document(&self, what: &str, json: &[u8]) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let value = serde_json::from_slice(json).map_err(|e| Error::failed(format!("{what} can't be read: {e}")))?;
        match self.in_json(&value, "") {
            Some((name, at)) => {
                Err(Error::failed(format!("{what} holds the secret {name} in {}", at.trim_matches('.'))))
            }
            None => Ok(()),
        }
    }

    /// In what an entry says of itself.
    fn in_entry(&self, path: &RootPath, entry: &Entry) -> Option<Error> {
        if let Some(name) = self.find(path.as_bytes()) {
            // A name that is the secret is not told.
            return Some(Error::failed(format!("the name of a file holds the secret {name}")));
        }
        let target = match &entry.node {
            Node::Link { target } => self.find(target).map(|name| (name, "the target of")),
            _ => None,
        };
        let attribute = || {
            let mut all = entry.xattrs.iter().flat_map(|(key, value)| [key, value]);
            all.find_map(|bytes| self.find(bytes)).map(|name| (name, "an attribute of"))
        };
        let (name, what) = target.or_else(attribute)?;
        Some(Error::failed(format!("{what} {path} holds the secret {name}")))
    }

    fn in_file(&self, mut file: impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<&str>> {
        buffer.resize(PIECE, 0);
        let mut stream = self.stream();
        loop {
            match file.read(buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    if let Some(name) = stream.feed(&buffer[..n]) {
                        return Ok(Some(name));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// A cache must hold none of what was written since this time of its file system: others see it.
    /// What does is removed.
    pub fn refuses_in_cache(&self, folder: &Path, inside: &str, since: (i64, i64)) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.below(file::open_path(folder)?.as_fd(), inside, since, &mut vec![])
    }

    fn below(&self, dir: BorrowedFd, inside: &str, since: (i64, i64), buffer: &mut Vec<u8>) -> Result<()> {
        for name in file::list(dir)? {
            let Some(stat) = file::stat_at(dir, &name)? else { continue };
            let is_folder = file::kind(&stat) == SFlag::S_IFDIR;
            let mut found = self.find(&name).map(|found| (found, inside.to_string()));
            if found.is_none() && (stat.st_ctime, stat.st_ctime_nsec) >= since {
                let shown = format!("{inside}/{}", String::from_utf8_lossy(&name));
                let content = match file::kind(&stat) {
                    SFlag::S_IFREG => self
                        .in_file(file::open_regular_at(dir, &name)?, buffer)
                        .map_err(|e| Error::io("read", file::shown(dir, &name), e))?,
                    SFlag::S_IFLNK => self.find(&file::read_link_at(dir, &name)?),
                    _ => None,
                };
                found = content.map(|found| (found, shown));
            }
            if let Some((secret, shown)) = found {
                file::remove_tree_at(dir, &name)?;
                return Err(Error::failed(format!("the cache at {shown} was given the secret {secret}"))
                    .why("a cache is kept, and other rules see it; what held the secret was removed from it")
                    .next("let the rule write it below /tmp"));
            }
            if is_folder {
                let folder = file::open_folder_at(dir, &name)?;
                let shown = format!("{inside}/{}", String::from_utf8_lossy(&name));
                self.below(folder.as_fd(), &shown, since, buffer)?;
            }
        }
        Ok(())
    }

    fn in_json(&self, value: &serde_json::Value, at: &str) -> Option<(&str, String)> {
        use serde_json::Value::{Array, Object, String};
        match value {
            String(text) => self.find(text.as_bytes()).map(|name| (name, at.to_string())),
            Array(items) => items.iter().find_map(|item| self.in_json(item, at)),
            Object(fields) => fields.iter().find_map(|(key, item)| match self.find(key.as_bytes()) {
                Some(name) => Some((name, at.to_string())),
                None => self.in_json(item, &format!("{at}.{key}")),
            }),
            _ => None,
        }
    }
}

/// Bytes that come in pieces: what lies across two of them is found too.
pub struct Stream<'a> {
    search: &'a Search,
    /// The end of what came, one byte shorter than the longest secret.
    tail: Vec<u8>,
}

impl<'a> Stream<'a> {
    /// Which secret ends in this piece.
    pub fn feed(&mut self, piece: &[u8]) -> Option<&'a str> {
        let across = self.search.longest.saturating_sub(1);
        let before = self.tail.len();
        self.tail.extend_from_slice(&piece[..piece.len().min(across)]);
        let found = if before > 0 { self.search.find(&self.tail) } else { None };
        if piece.len() >= across {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - across..]);
        } else {
            self.tail.drain(..self.tail.len().saturating_sub(across));
        }
        found.or_else(|| self.search.find(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(values: &[&str]) -> Search {
        let secret = |value: &&str| Secret { name: format!("s{}", value.len()), value: value.as_bytes().to_vec() };
        Search::of(&values.iter().map(secret).collect::<Vec<_>>())
    }

    #[test]
    fn a_secret_is_found_however_its_bytes_are_cut() {
        let search = search(&["0123456789abcdef\n", "shorter-one"]);
        let text = b"before 0123456789abcdef after; before shorter-one after";
        for secret in ["0123456789abcdef", "shorter-one"] {
            let at = text.windows(secret.len()).position(|window| window == secret.as_bytes()).unwrap();
            for size in 1..text.len() {
                let mut stream = search.stream();
                let part = &text[at.saturating_sub(5)..(at + secret.len())];
                assert!(part.chunks(size).filter_map(|piece| stream.feed(piece)).next().is_some(), "{secret} {size}");
            }
        }
        let mut stream = search.stream();
        assert!(text[..20].chunks(3).chain(text[24..45].chunks(3)).all(|piece| stream.feed(piece).is_none()));
    }

    #[test]
    fn what_is_too_short_is_refused_and_not_told() {
        let mut secrets = Secrets::default();
        let error = secrets.add("pin", b"1234567\r\n".to_vec()).unwrap_err();
        assert!(!error.to_string().contains("1234567") && error.exit_code() == 2, "{error}");
        secrets.add("pin", b"12345678\n".to_vec()).unwrap();
        assert!(!format!("{secrets:?}").contains("1234"));
        assert!(secrets.add("../x", b"12345678".to_vec()).is_err());
        assert!(secrets.add("long", vec![b'x'; LONGEST + 1]).is_err());
        assert_eq!(secrets.missing(&["pin".into(), "other".into()]), Some("other"));
    }
}
