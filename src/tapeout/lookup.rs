//! Files as data, with their links followed: a rule's view, or an image over it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Files;
use crate::error::{Error, Result};
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection, Stack};

/// Links followed on one way, as the kernel has it: path_resolution(7).
const MOST_LINKS: usize = 40;

/// Something that has files, as data.
pub trait Lookup {
    /// What is at a path, no link followed.
    fn entry(&self, path: &RootPath) -> Option<&Entry>;

    /// Where the bytes of the file at a path are.
    fn content(&self, path: &RootPath) -> Content;

    /// What is in a folder, sorted; empty when there is none.
    fn list(&self, folder: &RootPath) -> Vec<RootPath>;

    /// Follows the links on the way to a path, and the last one too when `last` says so.
    fn walk(&self, path: &RootPath, last: bool) -> Walk {
        walk(&|path| self.entry(path), path.as_bytes(), RootPath::root(), last)
    }

    /// The same for a path in which `..` may stand: it leaves the folder that a link led to.
    fn walk_text(&self, path: &str) -> Walk {
        walk(&|path| self.entry(path), path.as_bytes(), RootPath::root(), true)
    }

    /// The path of a regular file with all links followed.
    fn file(&self, path: &RootPath) -> Option<RootPath> {
        let walk = self.walk(path, true);
        (walk.there && matches!(self.entry(&walk.path)?.node, Node::File { .. })).then_some(walk.path)
    }

    /// Opens a regular file; the path has no links in it.
    fn open(&self, path: &RootPath, files: &dyn Files) -> Result<Bytes> {
        match self.content(path) {
            Content::Stored { changeset, path } => {
                let file = files.read(&changeset, &path)?;
                let size = file.metadata().map_err(|e| Error::io("fstat", path.to_string(), e))?.len();
                Ok(Bytes::File { file, size, path: path.to_string() })
            }
            Content::Inline(bytes) => Ok(Bytes::Inline(bytes)),
            Content::None => Err(Error::failed(format!("{path} is not a regular file"))),
        }
    }

    /// The whole of a small file, links followed; `None`: there is no regular file.
    fn read(&self, path: &RootPath, files: &dyn Files, most: u64) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.file(path) else { return Ok(None) };
        let bytes = self.open(&path, files)?;
        if bytes.size() > most {
            return Err(Error::failed(format!("{path} is too large"))
                .why(format!("it has {} bytes; at most {most} are read here", bytes.size())));
        }
        bytes.at(0, bytes.size()).map(Some)
    }
}

impl Lookup for Stack {
    fn entry(&self, path: &RootPath) -> Option<&Entry> {
        self.get(path).map(|(entry, _)| entry)
    }

    fn content(&self, path: &RootPath) -> Content {
        match self.get(path) {
            Some((Entry { node: Node::File { .. }, .. }, layer)) => {
                Content::Stored { changeset: layer.digest, path: path.clone() }
            }
            _ => Content::None,
        }
    }

    fn list(&self, folder: &RootPath) -> Vec<RootPath> {
        self.visible(folder).into_keys().filter(|path| path.parent().as_ref() == Some(folder)).cloned().collect()
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Without links; the part that isn't there is as it was written.
    pub path: RootPath,
    /// The links that were followed, each by its path without links above it.
    pub links: Vec<RootPath>,
    /// Is there something? (`false` for what leads in a circle, too.)
    pub there: bool,
}

fn walk<'a>(entry: &dyn Fn(&RootPath) -> Option<&'a Entry>, path: &[u8], start: RootPath, last: bool) -> Walk {
    let mut walk = Walk { path: start, links: vec![], there: true };
    let mut todo: Vec<Vec<u8>> = parts(path);
    while let Some(part) = todo.pop() {
        if part == b".." {
            walk.path = walk.path.parent().unwrap_or_default();
            continue;
        }
        let Ok(next) = walk.path.join(&part) else {
            walk.there = false;
            return walk;
        };
        let node = if walk.there { entry(&next).map(|e| &e.node) } else { None };
        match node {
            Some(Node::Link { target }) if last || !todo.is_empty() => {
                walk.links.push(next.clone());
                if walk.links.len() > MOST_LINKS {
                    walk.there = false;
                    return walk;
                }
                if target.starts_with(b"/") {
                    walk.path = RootPath::root();
                }
                todo.extend(parts(target));
                continue;
            }
            None => walk.there = false,
            // A file can have nothing below it.
            Some(node) if *node != Node::Folder && !todo.is_empty() => walk.there = false,
            Some(_) => {}
        }
        walk.path = next;
    }
    walk
}

/// The parts of a path, the first one last.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")).rev().map(<[u8]>::to_vec).collect()
}

/// The bytes of one file.
#[derive(Debug)]
pub enum Bytes {
    /// On disk.
    File {
        /// Open for reading.
        file: File,
        /// Its size when it was opened.
        size: u64,
        /// For messages.
        path: String,
    },
    /// In memory.
    Inline(Vec<u8>),
}

impl Bytes {
    /// How many there are.
    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }

    /// At most `length` bytes from `offset`; fewer at the end of the file.
    pub fn at(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let length = length.min(self.size().saturating_sub(offset)) as usize;
        match self {
            Self::Inline(bytes) => {
                Ok(bytes.get(offset as usize..offset as usize + length).unwrap_or_default().to_vec())
            }
            Self::File { file, path, .. } => {
                let mut buffer = vec![0; length];
                let mut done = 0;
                while done < length {
                    match file.read_at(&mut buffer[done..], offset + done as u64) {
                        Ok(0) => break,
                        Ok(n) => done += n,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(Error::io("read", path, e)),
                    }
                }
                buffer.truncate(done);
                Ok(buffer)
            }
        }
    }
}

/// An image in the making: what was picked so far, over all that the builder has.
pub struct World<'a> {
    image: BTreeMap<RootPath, Picked>,
    view: &'a Stack,
}

impl<'a> World<'a> {
    /// The image that these layers make (the lowest first), over a view.
    pub fn new<'s>(layers: impl IntoIterator<Item = &'s Selection>, view: &'a Stack) -> Self {
        Self { image: merged(layers), view }
    }

    /// Is it in the image?
    pub fn has(&self, path: &RootPath) -> bool {
        self.image.contains_key(path)
    }

    /// What the image has, sorted as a walk.
    pub fn image(&self) -> &BTreeMap<RootPath, Picked> {
        &self.image
    }

    /// Puts a file into the image.
    pub fn put(&mut self, path: RootPath, picked: Picked) {
        self.image.insert(path, picked);
    }

    /// The builder's files.
    pub fn view(&self) -> &'a Stack {
        self.view
    }

    /// The file at a path as it would be picked; links aren't followed.
    pub fn pick(&self, path: &RootPath, why: Arc<str>) -> Option<Picked> {
        let mut entry = self.entry(path)?.clone();
        if let Node::File { group, .. } = &mut entry.node {
            *group = None;
        }
        Some(Picked { entry: Some(entry), content: self.content(path), why })
    }
}

impl Lookup for World<'_> {
    fn entry(&self, path: &RootPath) -> Option<&Entry> {
        match self.image.get(path) {
            Some(picked) => picked.entry.as_ref(),
            None => self.view.entry(path),
        }
    }

    fn content(&self, path: &RootPath) -> Content {
        match self.image.get(path) {
            Some(picked) => picked.content.clone(),
            None => self.view.content(path),
        }
    }

    fn list(&self, folder: &RootPath) -> Vec<RootPath> {
        let mut all = self.view.list(folder);
        let here = self.image.range(folder.clone()..).map(|(path, _)| path).take_while(|path| path.starts_with(folder));
        all.extend(here.filter(|path| path.parent().as_ref() == Some(folder)).cloned());
        all.sort();
        all.dedup();
        all
    }
}

/// What stands in the end when layers are put on one another: no removals left.
pub fn merged<'s>(layers: impl IntoIterator<Item = &'s Selection>) -> Selection {
    let mut all = Selection::new();
    layers.into_iter().for_each(|layer| lay(&mut all, layer));
    all
}

/// Puts one more layer on what stands.
pub fn lay(all: &mut Selection, layer: &Selection) {
    if all.is_empty() {
        // At once: most images have one large layer below small ones.
        let there = layer.iter().filter(|(_, picked)| picked.entry.is_some());
        *all = there.map(|(path, picked)| (path.clone(), picked.clone())).collect();
        return;
    }
    for (path, picked) in layer {
        put(all, path.clone(), picked.clone());
    }
}

/// Puts what one layer has at a path on what stands: what replaces or removes a folder hides what lies below it.
pub fn put(all: &mut Selection, path: RootPath, picked: Picked) {
    let folder_stays = picked.entry.as_ref().is_some_and(Entry::is_folder);
    if !folder_stays && all.get(&path).and_then(|p| p.entry.as_ref()).is_some_and(Entry::is_folder) {
        let below: Vec<_> =
            all.range(path.clone()..).map(|(p, _)| p).take_while(|p| p.starts_with(&path)).cloned().collect();
        for gone in below {
            all.remove(&gone);
        }
    }
    match picked.entry {
        Some(_) => all.insert(path, picked),
        None => all.remove(&path),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{layer, path, picked};

    fn view() -> Stack {
        Stack(vec![layer(
            "v",
            &[
                ("usr", Some(Entry::folder(0o755))),
                ("usr/lib", Some(Entry::folder(0o755))),
                ("usr/lib/a.so.1", Some(Entry::link("a.so.1.2"))),
                ("usr/lib/a.so.1.2", Some(Entry::file(b"a", 0o644))),
                ("lib", Some(Entry::link("usr/lib"))),
                ("loop", Some(Entry::link("loop"))),
            ],
        )])
    }

    #[test]
    fn a_walk_tells_each_link_and_where_it_ends() {
        let walk = view().walk(&path("lib/a.so.1"), true);
        assert_eq!((walk.path, walk.there), (path("usr/lib/a.so.1.2"), true));
        assert_eq!(walk.links, [path("lib"), path("usr/lib/a.so.1")]);
        let walk = view().walk(&path("lib/a.so.1"), false);
        assert_eq!((walk.path, walk.links), (path("usr/lib/a.so.1"), vec![path("lib")]));
    }

    #[test]
    fn what_is_not_there_keeps_its_written_tail() {
        let walk = view().walk(&path("lib/new/x"), true);
        assert_eq!((walk.path, walk.there), (path("usr/lib/new/x"), false));
        assert!(!view().walk(&path("loop"), true).there);
        assert!(!view().walk(&path("usr/lib/a.so.1.2/x"), true).there);
    }

    #[test]
    fn layers_hide_what_lies_below_a_replaced_folder() {
        let low = Selection::from([
            (path("a"), Picked { entry: Some(Entry::folder(0o755)), content: Content::None, why: "".into() }),
            (path("a/x"), picked("x", "")),
            (path("b"), picked("b", "")),
        ]);
        let high = Selection::from([
            (path("a"), picked("file", "")),
            (path("b"), Picked { entry: None, content: Content::None, why: "".into() }),
        ]);
        assert_eq!(merged([&low, &high]).into_keys().collect::<Vec<_>>(), [path("a")]);
    }
}
