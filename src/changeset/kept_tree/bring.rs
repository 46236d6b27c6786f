//! From one snapshot to the next: only what differs is removed and made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use super::TMP;
use super::record::{AsMade, Held, Tree};
use crate::archive::access_list::ACLS;
use crate::archive::kept;
use crate::changeset::{places, upper};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Entry, Node, RootPath, Stack};

impl Tree {
    /// Makes it what this snapshot is.
    pub(super) fn bring_to(&mut self, stack: &Stack) -> Result<()> {
        let mut target = stack.below(&RootPath::root());
        target.retain(|path, (entry, _)| is_held(path, entry));
        let mut touched = self.remove_what_differs(&target)?;
        let times: BTreeMap<Digest, i64> = stack.0.iter().map(|l| (l.digest, l.changeset.time)).collect();
        let mut made = BTreeSet::new();
        let mut maker = Maker { tree: self, sources: HashMap::new(), open: None };
        for (path, (entry, layer)) in &target {
            if maker.tree.record.held.get(path).is_some_and(|held| held.layer == Some(*layer)) {
                continue;
            }
            maker.make(path, entry, layer)?;
            made.insert(path.clone());
            touched.insert(path.parent().unwrap_or_default());
        }
        touched.retain(|folder| target.get(folder).is_some_and(|(entry, _)| entry.is_folder()));
        made.extend(touched);
        // The deepest first, so that nothing moves a folder's times any more.
        for path in made.iter().rev() {
            let (entry, layer) = &target[path];
            let dir = self.root.folder(&path.parent().unwrap_or_default())?;
            kept::settle(dir.as_fd(), path, &entry.node, times.get(layer).copied().unwrap_or_default())?;
        }
        for path in made {
            let held = self.look_at(&path, target[&path].1)?;
            self.record.held.insert(path, held);
        }
        file::chmod_at(self.root.as_fd(), b".", 0o755)
    }

    /// Removes what the target has not, or has otherwise; gives the folders in which it was.
    fn remove_what_differs(&mut self, target: &BTreeMap<RootPath, (Entry, Digest)>) -> Result<BTreeSet<RootPath>> {
        let is_folder = |held: &Held| held.as_made.mode & libc::S_IFMT == libc::S_IFDIR;
        let differs = self.record.held.iter().filter(|(path, held)| match target.get(path) {
            None => true,
            // A folder stays, and is made right.
            Some((entry, _)) if entry.is_folder() && is_folder(held) => false,
            Some((_, layer)) => held.layer != Some(*layer),
        });
        let differs: Vec<_> = differs.map(|(path, _)| path.clone()).collect();
        let mut touched = BTreeSet::new();
        let mut removed: Option<RootPath> = None;
        for path in differs {
            if removed.as_ref().is_none_or(|folder| !path.starts_with(folder)) {
                let parent = path.parent().unwrap_or_default();
                file::remove_tree_at(self.root.folder(&parent)?.as_fd(), path.name())?;
                touched.insert(parent);
                removed = Some(path.clone());
            }
            self.record.held.remove(&path);
        }
        Ok(touched)
    }

    fn look_at(&self, path: &RootPath, layer: Digest) -> Result<Held> {
        let dir = self.root.folder(&path.parent().unwrap_or_default())?;
        let fd = file::open_at(dir.as_fd(), path.name(), OFlag::O_PATH)?;
        let stat = nix::sys::stat::fstat(&fd).map_err(|errno| Error::io("fstat", path.as_path(), errno))?;
        Ok(Held { layer: Some(layer), as_made: AsMade::of(&stat), handle: file::handle(fd.as_fd())? })
    }
}

/// Is this path part of a tree? Not `/tmp`, nor what is in the folders that are made anew for each rule.
fn is_held(path: &RootPath, entry: &Entry) -> bool {
    let in_left_out = path.ancestors().any(|folder| places::left_out(&folder));
    let own = path.as_bytes() == TMP && entry.is_folder();
    !in_left_out && !own
}

/// Makes the files of a snapshot.
struct Maker<'a> {
    tree: &'a mut Tree,
    sources: HashMap<Digest, Root>,
    /// The folder that was made in last.
    open: Option<(RootPath, OwnedFd)>,
}

impl Maker<'_> {
    fn make(&mut self, path: &RootPath, entry: &Entry, layer: &Digest) -> Result<()> {
        let parent = path.parent().unwrap_or_default();
        let dir = match self.open.take() {
            Some((folder, dir)) if folder == parent => dir,
            _ => self.tree.root.folder(&parent)?,
        };
        let made = self.make_in(&dir, path, entry, layer);
        self.open = Some((parent, dir));
        made
    }

    fn make_in(&mut self, dir: &OwnedFd, path: &RootPath, entry: &Entry, layer: &Digest) -> Result<()> {
        let (dir, name) = (dir.as_fd(), path.name());
        match &entry.node {
            Node::Folder if self.tree.record.held.contains_key(path) => {
                for attribute in xattr::list(dir, name)? {
                    if attribute.starts_with(b"user.") || ACLS.contains(&attribute.as_slice()) {
                        xattr::remove(dir, name, &attribute)?;
                    }
                }
                file::chmod_at(dir, name, entry.mode)?;
            }
            Node::Folder => file::mkdir_at(dir, name, entry.mode)?,
            Node::File { .. } => {
                let new = file::create_file_at(dir, name, 0o600)?;
                let source = self.source(layer)?.open_file(path)?;
                file::reflink_or_copy(&source, &new)
                    .map_err(|e| Error::io("copy", path.below(self.tree.root.path()), e))?;
            }
            Node::Link { target } => file::symlink_at(target, dir, name)?,
            // As an overlay shows what the store keeps of it.
            Node::Device { .. } => drop(file::create_file_at(dir, name, entry.mode)?),
            Node::Fifo => file::mkfifo_at(dir, name, entry.mode)?,
            Node::Socket => {
                file::mknod_at(dir, name, SFlag::S_IFSOCK, 0o600, 0)?;
                file::chmod_at(dir, name, entry.mode)?;
            }
        }
        if matches!(entry.node, Node::File { .. } | Node::Folder) {
            // What the store's files have on disk, since that is what an overlay shows.
            let parent = self.source(layer)?.folder(&path.parent().unwrap_or_default())?;
            let abilities = self.tree.record.abilities;
            for (attribute, value) in upper::plain_attributes_of_kept(parent.as_fd(), name)? {
                if abilities.can_have(&attribute) {
                    xattr::set(dir, name, &attribute, &value)?;
                }
            }
        }
        // Last, since whoever owns a file that can't be written sets no attribute on it either.
        if matches!(entry.node, Node::File { .. }) {
            file::chmod_at(dir, name, entry.mode)?;
        }
        Ok(())
    }

    fn source(&mut self, layer: &Digest) -> Result<&Root> {
        if !self.sources.contains_key(layer) {
            self.sources.insert(*layer, self.tree.store.changeset_files(layer)?);
        }
        Ok(&self.sources[layer])
    }
}
