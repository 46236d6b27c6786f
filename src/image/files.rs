//! What a container sees of an image: its layers, one over the other, as data. Nothing is unpacked.
//!
//! Paths are without links in any part, as a container's kernel would find them. A file's content
//! stays in its layer and is named by where it stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use crate::archive::tar_reader::{Item, Kind, Limits, read_tar};
use crate::builder::image::Image;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tree::{Met, RootPath, walk};

/// Where the content of a file is: in which layer, and which entry of it.
pub type Place = (usize, u64);

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What it is. A hard link is the file that it leads to.
    pub item: Item,
    /// The layer that put it there.
    pub layer: usize,
    /// Of its content, where that is a regular file and was asked for.
    pub digest: Option<Digest>,
    /// Where its content is.
    pub content: Place,
}

impl File {
    /// Bytes of a regular file.
    pub fn size(&self) -> u64 {
        if let Kind::File(size) = self.item.kind { size } else { 0 }
    }
}

/// The files of an image, sorted as a walk.
#[derive(Debug, Clone, Default)]
pub struct Files(pub BTreeMap<RootPath, File>);

/// No image has more files: hostile ones are stopped before memory is.
const MAX_FILES: usize = 8_000_000;

/// Reads all layers of an image. `digests`: the content of each file is hashed.
pub fn files(image: &Image, digests: bool) -> Result<Files> {
    let mut files = Files::default();
    for layer in 0..image.layers.len() {
        let mut entry = 0;
        image.read_layer(layer, &mut |plain| {
            read_tar(plain, &Limits::default(), &mut |item, content| {
                entry += 1;
                let digest = match item.kind {
                    Kind::File(_) if digests => Some(Digest::of_reader(content).map_err(|e| broken(&item.path, &e))?.0),
                    _ => None,
                };
                files.apply(item, layer, (layer, entry), digest)
            })
        })?;
    }
    Ok(files)
}

/// Reads the content of the files at these places, each layer once, in the order of the places.
pub fn contents(
    image: &Image,
    places: &BTreeSet<Place>,
    on: &mut dyn FnMut(Place, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let layers: BTreeSet<usize> = places.iter().map(|(layer, _)| *layer).collect();
    for layer in layers {
        let mut entry = 0;
        image.read_layer(layer, &mut |plain| {
            read_tar(plain, &Limits::default(), &mut |_, content| {
                entry += 1;
                if places.contains(&(layer, entry)) { on((layer, entry), content) } else { Ok(()) }
            })
        })?;
    }
    Ok(())
}

fn broken(path: &RootPath, error: &std::io::Error) -> Error {
    Error::failed(format!("{path} can't be read: {error}"))
}

impl Files {
    /// What is at a path, links in it followed and the last one as well; its path without links.
    pub fn find(&self, path: &RootPath) -> Option<(RootPath, Option<&File>)> {
        let found = self.resolve(path, true)?;
        let file = self.0.get(&found);
        (file.is_some() || found.is_root()).then_some((found, file))
    }

    /// The path without links; the last part need not exist. `None`: a loop, or a part that is no folder.
    fn resolve(&self, path: &RootPath, last: bool) -> Option<RootPath> {
        walk(path, last, |next| {
            Some(match self.0.get(next).map(|file| &file.item.kind) {
                Some(Kind::Link(target)) => Met::Link(target),
                Some(Kind::Folder) | None => Met::Folder,
                Some(_) => Met::File,
            })
        })
    }

    /// Applies an entry of a layer, as unpacking it would.
    fn apply(&mut self, mut item: Item, layer: usize, content: Place, digest: Option<Digest>) -> Result<()> {
        if item.path.is_root() {
            return Ok(());
        }
        let parent = item.path.parent().unwrap_or_default();
        let folder = self
            .resolve(&parent, true)
            .ok_or_else(|| Error::failed(format!("{}: a folder above it can't be reached", item.path)))?;
        let name = item.path.name().to_vec();
        let path = folder.join(&name)?;
        if name.starts_with(b".wh.") {
            self.white_out(&folder, &name, layer)?;
            return Ok(());
        }
        self.make_folders(&folder, layer);
        let mut file = File { layer, digest, content, item: item.clone() };
        if let Kind::HardLink(target) = &item.kind {
            let missing = || Error::failed(format!("{path} is a hard link to {target}, which is not there"));
            let target = self.resolve(target, false).ok_or_else(missing)?;
            if target == path {
                return Ok(());
            }
            let first = self.0.get(&target).filter(|file| file.item.kind != Kind::Folder).ok_or_else(missing)?;
            file = File { layer, ..first.clone() };
        }
        item.path = path.clone();
        file.item.path = path.clone();
        let both_folders =
            item.kind == Kind::Folder && self.0.get(&path).is_some_and(|file| file.item.kind == Kind::Folder);
        if !both_folders {
            self.remove(&path, usize::MAX);
        }
        self.0.insert(path, file);
        if self.0.len() > MAX_FILES {
            return Err(Error::failed(format!("it holds more than {MAX_FILES} files")));
        }
        Ok(())
    }

    /// Folders that no entry named.
    fn make_folders(&mut self, folder: &RootPath, layer: usize) {
        let mut path = folder.clone();
        while !path.is_root() && !self.0.contains_key(&path) {
            let (xattrs, kind) = (BTreeMap::new(), Kind::Folder);
            let item = Item { path: path.clone(), kind, mode: 0o755, uid: 0, gid: 0, xattrs };
            self.0.insert(path.clone(), File { item, layer, digest: None, content: (layer, 0) });
            path = path.parent().unwrap_or_default();
        }
    }

    /// image-spec layer.md, "Whiteouts": they apply to what earlier layers put there, whatever the order.
    fn white_out(&mut self, folder: &RootPath, name: &[u8], layer: usize) -> Result<()> {
        match &name[4..] {
            b".wh..opq" => {
                let below: Vec<_> = self.below(folder).filter(|path| *path != folder).cloned().collect();
                for path in below {
                    if path.parent().as_ref() == Some(folder) {
                        self.remove(&path, layer);
                    }
                }
                Ok(())
            }
            b"" | b"." | b".." => Err(Error::failed(format!("a whiteout without a name in {folder}"))),
            hidden => {
                self.remove(&folder.join(hidden)?, layer);
                Ok(())
            }
        }
    }

    /// All paths at or below one.
    pub fn below<'a>(&'a self, path: &'a RootPath) -> impl Iterator<Item = &'a RootPath> {
        self.0.range(path.clone()..).map(|(found, _)| found).take_while(move |found| found.starts_with(path))
    }

    /// Removes what layers below `layer` put at this path or below; a folder stays as long as something is in it.
    fn remove(&mut self, path: &RootPath, layer: usize) {
        let found: Vec<_> = self.below(path).cloned().collect();
        let stays = |path: &RootPath| self.0[path].layer >= layer;
        let kept: BTreeSet<RootPath> = found
            .iter()
            .filter(|path| stays(path))
            .flat_map(|p| std::iter::once(p.clone()).chain(p.ancestors()))
            .collect();
        for path in found.iter().filter(|path| !kept.contains(*path)) {
            self.0.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::new(text).unwrap()
    }

    /// `a` a file, `a/` a folder, `a -> b` a link, `a = b` a hard link.
    fn of(layers: &[&[&str]]) -> Vec<String> {
        let mut files = Files::default();
        for (layer, entries) in layers.iter().enumerate() {
            for (entry, text) in entries.iter().enumerate() {
                let (name, kind) = match (text.split_once(" -> "), text.split_once(" = "), text.strip_suffix('/')) {
                    (Some((name, target)), ..) => (name, Kind::Link(target.into())),
                    (_, Some((name, target)), _) => (name, Kind::HardLink(path(target))),
                    (_, _, Some(name)) => (name, Kind::Folder),
                    _ => (*text, Kind::File(0)),
                };
                let item = Item { path: path(name), kind, mode: 0o644, uid: 0, gid: 0, xattrs: BTreeMap::new() };
                files.apply(item, layer, (layer, entry as u64), None).unwrap();
            }
        }
        files.0.iter().map(|(path, file)| format!("{path} {}", file.layer)).collect()
    }

    #[test]
    fn upper_layers_hide_and_remove_what_lower_ones_have() {
        assert_eq!(of(&[&["a", "b/c"], &["a", ".wh.b"]]), ["/a 1"]);
        assert_eq!(of(&[&["b/c", "b/d"], &["b/", "b/.wh..wh..opq", "b/e"]]), ["/b 1", "/b/e 1"]);
        assert_eq!(of(&[&["b/c", "b/d"], &["b/e", "b/.wh..wh..opq"]]), ["/b 0", "/b/e 1"]);
        assert_eq!(of(&[&["b/c", "b/d"], &["b/c", ".wh.b"]]), ["/b 0", "/b/c 1"]);
        assert_eq!(of(&[&["b/c"], &["b"]]), ["/b 1"]);
        assert_eq!(of(&[&["b"], &["b/"]]), ["/b 1"]);
    }

    #[test]
    fn links_in_a_path_are_followed_inside_the_image() {
        assert_eq!(
            of(&[&["usr/bin/", "bin -> usr/bin"], &["bin/sh"]]),
            ["/bin 0", "/usr 0", "/usr/bin 0", "/usr/bin/sh 1"]
        );
        assert_eq!(of(&[&["out -> ../../etc"], &["out/x"]]), ["/etc 1", "/etc/x 1", "/out 0"]);
        assert_eq!(of(&[&["a/x"], &["b = a/x"], &[".wh.a"]]), ["/b 1"]);
    }

    #[test]
    fn a_loop_and_a_hard_link_to_nothing_are_errors() {
        let mut files = Files::default();
        let item = |name: &str, kind| Item { path: path(name), kind, mode: 0, uid: 0, gid: 0, xattrs: BTreeMap::new() };
        files.apply(item("a", Kind::Link(b"a".to_vec())), 0, (0, 0), None).unwrap();
        assert!(files.apply(item("a/x", Kind::File(0)), 0, (0, 0), None).is_err());
        assert!(files.apply(item("b", Kind::HardLink(path("c"))), 0, (0, 0), None).is_err());
        assert!(files.find(&path("a")).is_none());
    }
}
