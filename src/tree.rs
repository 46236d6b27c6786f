//! Files as data: paths, entries, changesets and stacks of them. No disk is touched here.
//!
//! A **changeset** is a sorted list of paths, each with what was there before (the digest of that
//! entry, if any) and what is there now (an entry, or nothing: removed). A folder that a rule only
//! passed through (`was` is the digest of `now`) is listed too, so that a changeset is a tree. A
//! folder that replaced another one lists the removal of each path that the rule saw below and
//! that is gone; a removed folder, or one replaced by something else, is one line.
//!
//! A **stack** is what a snapshot holds: changesets, the lowest first.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A path below a root: bytes, relative, without empty parts, `.`, `..` and NUL. The root is empty.
///
/// The order is that of a walk: a folder stands right before what is in it.
///
/// Copies share its bytes: a list of a hundred thousand files has each path in several places.
#[derive(Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct RootPath(Arc<[u8]>);

impl RootPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// From bytes as they stand in an archive or build file: slashes at both ends, `.` and empty
    /// parts are dropped; `..` and NUL are errors.
    pub fn new(path: impl AsRef<[u8]>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |why: &str| {
            Err(Error::failed(format!("a path that is not allowed here: {:?}", String::from_utf8_lossy(path))).why(why))
        };
        let mut clean = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return bad("it has a part that is .."),
                _ if part.contains(&0) => return bad("it holds a NUL byte"),
                _ if part.len() > 255 => return bad("a part is longer than 255 bytes"),
                _ => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                }
            }
        }
        if clean.len() > 4095 {
            return bad("it is longer than 4095 bytes");
        }
        Ok(Self(clean.into()))
    }

    /// The bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path for the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Below a folder of the host.
    pub fn below(&self, folder: &Path) -> PathBuf {
        folder.join(self.as_path())
    }

    /// Is it the root itself?
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last part; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The folder it is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// All folders above, the nearest first, the root last.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// A path in this folder. `name` is one part or several.
    pub fn join(&self, name: impl AsRef<[u8]>) -> Result<Self> {
        Self::new([self.as_bytes(), b"/", name.as_ref()].concat())
    }

    /// Is it this path or below it?
    pub fn starts_with(&self, folder: &Self) -> bool {
        folder.is_root() || self == folder || (self.0.starts_with(&folder.0) && self.0[folder.0.len()] == b'/')
    }

    /// The first part; empty for the root.
    pub fn top(&self) -> &[u8] {
        self.0.split(|b| *b == b'/').next().unwrap_or_default()
    }
}

impl Ord for RootPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // A slash sorts before every other byte, so that `a/b` comes before `a-b`.
        let key = |b: &u8| if *b == b'/' { 0 } else { *b };
        let same = same_at_first(&self.0, &other.0);
        self.0.get(same).map(key).cmp(&other.0.get(same).map(key))
    }
}

/// How many bytes two begin with: eight at a time, since paths of one tree have most of their bytes in common, and
/// maps of them compare them all the time.
fn same_at_first(one: &[u8], other: &[u8]) -> usize {
    let eights = one.as_chunks::<8>().0.iter().zip(other.as_chunks().0).take_while(|(a, b)| a == b).count() * 8;
    eights + one[eights..].iter().zip(&other[eights..]).take_while(|(a, b)| a == b).count()
}

impl PartialOrd for RootPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<Vec<u8>> for RootPath {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self> {
        Self::new(bytes)
    }
}

impl Serialize for RootPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// With a leading slash, what is not UTF-8 replaced.
impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What kind of file, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Node {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Of the content.
        digest: Digest,
        /// Names with the same number are one file (hard links), within one changeset.
        group: Option<u32>,
    },
    /// A folder.
    Folder,
    /// A symbolic link.
    Link {
        /// As it is stored: bytes, not resolved.
        target: Vec<u8>,
    },
    /// A character or block device.
    Device {
        /// `false`: a block device.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket in the file system; layers have none.
    Socket,
}

/// One file: its kind, mode, owner and attributes. Times are the changeset's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Kind and content.
    pub node: Node,
    /// Permission bits, set-ID and sticky bits: 0o7777 at most. 0o777 for links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes that go into layers: `security.capability` as version 2, `user.*`,
    /// access control lists that name nobody.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// A folder of root's.
    pub fn folder(mode: u32) -> Self {
        Self { node: Node::Folder, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// A symbolic link of root's.
    pub fn link(target: impl Into<Vec<u8>>) -> Self {
        Self { node: Node::Link { target: target.into() }, mode: 0o777, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// A regular file of root's, from its content.
    pub fn file(content: &[u8], mode: u32) -> Self {
        let node = Node::File { size: content.len() as u64, digest: Digest::of(content), group: None };
        Self { node, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
    }

    /// Is it a folder?
    pub fn is_folder(&self) -> bool {
        self.node == Node::Folder
    }

    /// Names this entry: kind, content, mode, owner, attributes; not which other names it is linked to.
    pub fn digest(&self) -> Digest {
        let mut alone = self.clone();
        if let Node::File { group, .. } = &mut alone.node {
            *group = None;
        }
        Digest::of(postcard::to_stdvec(&alone).expect("an entry is plain data, which postcard always writes"))
    }

    /// Equal in all that a conflict is about.
    pub fn same_as(&self, other: &Self) -> bool {
        match (&self.node, &other.node) {
            (Node::File { size: s, digest: d, .. }, Node::File { size: t, digest: e, .. }) => {
                s == t
                    && d == e
                    && self.mode == other.mode
                    && self.uid == other.uid
                    && self.gid == other.gid
                    && self.xattrs == other.xattrs
            }
            _ => self == other,
        }
    }
}

/// What happened at one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The digest of the entry that the rule saw here; `None`: nothing.
    pub was: Option<Digest>,
    /// What is here now; `None`: removed.
    pub now: Option<Entry>,
}

impl Change {
    /// A folder that was there, and is as it was.
    pub fn passed_through(&self) -> bool {
        matches!((&self.was, &self.now), (Some(was), Some(now)) if now.is_folder() && now.digest() == *was)
    }
}

/// A map is written as its pairs. Made of all of them at once it is half as large as of one after the other.
fn at_once<'de, D: Deserializer<'de>, K: Deserialize<'de> + Ord, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<K, V>, D::Error> {
    struct Reading<K, V>(PhantomData<(K, V)>);
    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Reading<K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BTreeMap<K, V>, A::Error> {
            let pairs: Result<Vec<_>, _> = std::iter::from_fn(|| map.next_entry().transpose()).collect();
            Ok(pairs?.into_iter().collect())
        }
    }
    deserializer.deserialize_map(Reading(PhantomData))
}

/// What one rule changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Changeset {
    /// The time of all its files in a snapshot, in seconds since 1970.
    pub time: i64,
    /// Sorted as a walk; the root itself is never in it.
    #[serde(deserialize_with = "at_once")]
    pub changes: BTreeMap<RootPath, Change>,
}

impl Changeset {
    /// What is at or below `folder`.
    pub fn below<'a>(&'a self, folder: &RootPath) -> impl Iterator<Item = (&'a RootPath, &'a Change)> {
        self.changes.range(folder.clone()..).take_while(move |(path, _)| path.starts_with(folder))
    }

    /// Did this changeset hide everything that was below these folders (the highest first, each in
    /// the one before), by removing or replacing one of them?
    fn hides(&self, above: &[RootPath]) -> bool {
        // Where a folder isn't listed, nothing below it is: a changeset is a tree.
        let listed = above.iter().map_while(|folder| self.changes.get(folder));
        listed.into_iter().any(|change| change.now.as_ref().is_none_or(|entry| !entry.is_folder()))
    }
}

/// A changeset and the name under which the store keeps it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Of the canonical tar stream.
    pub digest: Digest,
    /// Its content.
    pub changeset: Arc<Changeset>,
}

/// What a snapshot holds: changesets, the lowest first.
#[derive(Debug, Clone, Default)]
pub struct Stack(pub Vec<Layer>);

impl Stack {
    /// What is at a path (not following links), and which changeset put it there.
    pub fn get(&self, path: &RootPath) -> Option<(&Entry, &Layer)> {
        let above = above(path);
        for layer in self.0.iter().rev() {
            if let Some(change) = layer.changeset.changes.get(path) {
                return change.now.as_ref().map(|entry| (entry, layer));
            }
            if layer.changeset.hides(&above) {
                return None;
            }
        }
        None
    }

    /// All that is visible below `folder`, without itself, sorted as a walk.
    pub fn below(&self, folder: &RootPath) -> BTreeMap<RootPath, (Entry, Digest)> {
        let visible = self.visible(folder).into_iter();
        visible.map(|(path, (entry, changeset))| (path.clone(), (entry.clone(), changeset))).collect()
    }

    /// The same in place: what is there, and which changeset put it there.
    pub fn visible(&self, folder: &RootPath) -> BTreeMap<&RootPath, (&Entry, Digest)> {
        let mut all: BTreeMap<&RootPath, (&Entry, Digest)> = BTreeMap::new();
        let above = above(folder);
        for layer in &self.0 {
            if layer.changeset.hides(&above)
                || layer.changeset.changes.get(folder).is_some_and(|c| c.now.as_ref().is_none_or(|e| !e.is_folder()))
            {
                all.clear();
                continue;
            }
            let changes = layer.changeset.below(folder).filter(|(path, _)| *path != folder);
            if all.is_empty() {
                let there = changes.filter_map(|(path, change)| Some((path, (change.now.as_ref()?, layer.digest))));
                all = there.collect();
                continue;
            }
            for (path, change) in changes {
                if change.now.as_ref().is_none_or(|e| !e.is_folder())
                    && all.get(path).is_some_and(|(e, _)| e.is_folder())
                {
                    let gone: Vec<_> =
                        all.range::<RootPath, _>(path..).map(|(p, _)| *p).take_while(|p| p.starts_with(path)).collect();
                    for path in gone {
                        all.remove(path);
                    }
                }
                match &change.now {
                    Some(entry) => all.insert(path, (entry, layer.digest)),
                    None => all.remove(path),
                };
            }
        }
        all
    }

    /// Follows symbolic links in every part, as a process whose root is this stack would
    /// (path_resolution(7)); gives the path without links. `None`: it does not exist or loops.
    pub fn resolve(&self, path: &RootPath) -> Option<RootPath> {
        walk(path, true, |next| {
            Some(match &self.get(next)?.0.node {
                Node::Link { target } => Met::Link(target),
                Node::Folder => Met::Folder,
                _ => Met::File,
            })
        })
    }
}

/// What [`walk`] meets on its way.
#[derive(Debug, Clone, Copy)]
pub enum Met<'a> {
    /// It goes on in it.
    Folder,
    /// It goes on where the target leads.
    Link(&'a [u8]),
    /// It ends here.
    File,
}

/// Links followed on one way (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Goes along a path as a process would whose root this is (path_resolution(7)), its last part a link that is followed if
/// `last`; gives the path without links. `None`: there is none, it loops, or a part above the last is no folder.
pub fn walk<'a>(path: &RootPath, last: bool, meet: impl Fn(&RootPath) -> Option<Met<'a>>) -> Option<RootPath> {
    let parts = |path: &[u8]| path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut done = RootPath::root();
    let mut todo = parts(path.as_bytes());
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                done = done.parent().unwrap_or_default();
                continue;
            }
            _ => {}
        }
        let next = done.join(&part).ok()?;
        let is_last = todo.iter().all(|part| part.is_empty());
        match meet(&next)? {
            Met::Link(target) if last || !todo.is_empty() => {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    done = RootPath::root();
                }
                todo.extend(parts(target));
            }
            Met::Folder => done = next,
            _ if is_last => done = next,
            _ => return None,
        }
    }
    Some(done)
}

/// The folders above a path, the highest first, without the root.
fn above(path: &RootPath) -> Vec<RootPath> {
    let mut above: Vec<_> = path.ancestors().filter(|folder| !folder.is_root()).collect();
    above.reverse();
    above
}

/// Where the bytes of a picked file are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// It has none: a folder, a link, a device, a removal.
    None,
    /// In the files of a changeset in the store.
    Stored {
        /// Which one.
        changeset: Digest,
        /// Where in it.
        path: RootPath,
    },
    /// Written from the build file or generated.
    Inline(Vec<u8>),
}

/// A file that goes into an image, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picked {
    /// What goes in; `None`: what the layers below have here is removed.
    pub entry: Option<Entry>,
    /// Its bytes.
    pub content: Content,
    /// Why, for people: `include /usr/local/lib/*.so*`, `needed by /usr/bin/redis-server (libssl.so.3)`.
    pub why: Arc<str>,
}

/// What one rule picked: one layer of an image.
pub type Selection = BTreeMap<RootPath, Picked>;

/// The files of a selection as they are read back, in its order. What they have in common is held once: a file that
/// lies where it was picked has one path, and what one pattern picked has one reason.
pub struct Files(pub Vec<(RootPath, Picked)>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a selection")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut files = vec![];
                let mut last: Arc<str> = "".into();
                while let Some((path, mut picked)) = map.next_entry::<RootPath, Picked>()? {
                    if let Content::Stored { path: at, .. } = &mut picked.content
                        && *at == path
                    {
                        *at = path.clone();
                    }
                    if picked.why == last {
                        picked.why = last.clone();
                    }
                    last = picked.why.clone();
                    files.push((path, picked));
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_map(Reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::new(text).unwrap()
    }

    fn layer(name: &str, changes: &[(&str, Option<Entry>)]) -> Layer {
        let changes = changes.iter().map(|(p, now)| (path(p), Change { was: None, now: now.clone() })).collect();
        Layer { digest: Digest::of(name), changeset: Arc::new(Changeset { time: 0, changes }) }
    }

    #[test]
    fn a_path_is_cleaned_or_refused() {
        for (text, clean) in [("/a//b/./c/", "a/b/c"), ("", ""), ("/", ""), ("a", "a")] {
            assert_eq!(path(text).as_bytes(), clean.as_bytes());
        }
        for bad in [&b"a/../b"[..], b"..", b"a\0b", &[b'x'; 256]] {
            assert!(RootPath::new(bad).is_err());
        }
    }

    #[test]
    fn the_order_is_that_of_a_walk() {
        for length in 0..20 {
            let folder = "f".repeat(length);
            let mut paths = ["a-b", "a/b", "a", "a/b/c", "a.b"].map(|name| path(&format!("{folder}{name}")));
            paths.sort();
            let sorted = ["a", "a/b", "a/b/c", "a-b", "a.b"].map(|name| format!("/{folder}{name}"));
            assert_eq!(paths.map(|p| p.to_string()), sorted);
        }
    }

    #[test]
    fn a_stack_shows_the_highest_and_hides_what_is_removed() {
        let file = |text: &str| Some(Entry::file(text.as_bytes(), 0o644));
        let stack = Stack(vec![
            layer("1", &[("a", Some(Entry::folder(0o755))), ("a/x", file("1")), ("a/y", file("1")), ("b", file("1"))]),
            layer("2", &[("a", None), ("b", file("2"))]),
            layer("3", &[("a", Some(Entry::folder(0o700))), ("a/z", file("3"))]),
        ]);
        assert!(stack.get(&path("a/x")).is_none());
        assert_eq!(stack.get(&path("b")).unwrap().1.digest, Digest::of("2"));
        assert_eq!(stack.get(&path("a")).unwrap().0.mode, 0o700);
        let seen: Vec<_> = stack.below(&RootPath::root()).keys().map(|p| p.to_string()).collect();
        assert_eq!(seen, ["/a", "/a/z", "/b"]);
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let stack = Stack(vec![layer(
            "1",
            &[
                ("usr", Some(Entry::folder(0o755))),
                ("usr/lib", Some(Entry::folder(0o755))),
                ("usr/lib/libz.so.1", Some(Entry::link("libz.so.1.2"))),
                ("usr/lib/libz.so.1.2", Some(Entry::file(b"z", 0o644))),
                ("lib", Some(Entry::link("usr/lib"))),
                ("up", Some(Entry::link("../../../usr/lib"))),
                ("loop", Some(Entry::link("/loop"))),
            ],
        )]);
        assert_eq!(stack.resolve(&path("lib/libz.so.1")).unwrap(), path("usr/lib/libz.so.1.2"));
        assert_eq!(stack.resolve(&path("up/libz.so.1")).unwrap(), path("usr/lib/libz.so.1.2"));
        assert!(stack.resolve(&path("loop")).is_none());
        assert!(stack.resolve(&path("usr/lib/libz.so.1/x")).is_none());
    }
}
