//! What the tests of this folder share: stacks and selections in few words, the host as a builder.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::Files;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tree::{Change, Changeset, Content, Entry, Layer, Picked, RootPath};

/// A path.
pub fn path(text: &str) -> RootPath {
    RootPath::new(text).unwrap()
}

/// A changeset in which everything is new.
pub fn layer(name: &str, changes: &[(&str, Option<Entry>)]) -> Layer {
    let changes = changes.iter().map(|(p, now)| (path(p), Change { was: None, now: now.clone() })).collect();
    Layer { digest: Digest::of(name), changeset: Arc::new(Changeset { time: 0, changes }) }
}

/// A regular file.
pub fn file(text: &str) -> Option<Entry> {
    Some(Entry::file(text.as_bytes(), 0o644))
}

/// A folder.
pub fn folder() -> Option<Entry> {
    Some(Entry::folder(0o755))
}

/// A picked regular file.
pub fn picked(text: &str, why: &str) -> Picked {
    Picked { entry: file(text), content: Content::Inline(text.into()), why: why.into() }
}

/// Files that are kept in a folder on disk, whatever the changeset.
pub struct OnDisk(pub PathBuf);

impl Files for OnDisk {
    fn read(&self, _: &Digest, path: &RootPath) -> Result<File> {
        let path = path.below(&self.0);
        File::open(&path).map_err(|e| Error::io("open", &path, e))
    }
}

/// A folder with these files in it, and the changesets that say so: path, content (`None`: a folder).
pub fn on_disk(entries: &[(&str, Option<&[u8]>, u32)]) -> (tempfile::TempDir, Layer) {
    let dir = tempfile::tempdir().unwrap();
    let mut changes = std::collections::BTreeMap::new();
    for (text, content, mode) in entries {
        let at = path(text).below(dir.path());
        let entry = match content {
            Some(bytes) => {
                std::fs::create_dir_all(at.parent().unwrap()).unwrap();
                std::fs::write(&at, bytes).unwrap();
                Entry::file(bytes, *mode)
            }
            None => {
                std::fs::create_dir_all(&at).unwrap();
                Entry::folder(*mode)
            }
        };
        for above in path(text).ancestors().filter(|p| !p.is_root()) {
            changes.entry(above).or_insert(Change { was: None, now: folder() });
        }
        changes.insert(path(text), Change { was: None, now: Some(entry) });
    }
    let layer = Layer { digest: Digest::of("on disk"), changeset: Arc::new(Changeset { time: 0, changes }) };
    (dir, layer)
}
