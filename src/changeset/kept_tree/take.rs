//! What a rule changed: one walk finds what is not as it was made, and that is taken out of the tree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use super::TMP;
use super::record::{AsMade, Held, Tree};
use crate::archive::kept::{give_attribute, mark};
use crate::changeset::found::{Finder, Found, Xattrs};
use crate::changeset::owners::{Met, Owners};
use crate::changeset::{places, upper};
use crate::error::{Error, Result};
use crate::sandbox::Recorded;
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Entry, RootPath, Stack};

impl Tree {
    /// Takes what a rule changed into `files`, an empty folder of the same file system; what is left is as it was made.
    pub(super) fn take(
        &mut self,
        files: &Root,
        below: &Stack,
        recorded: &[Recorded],
        owner: (u32, u32),
    ) -> Result<Found> {
        let walked = self.walk()?;
        let finder = Finder { owners: Owners::new(below, recorded, owner), found: Found::default() };
        let made = self.record.newest();
        let mut harvest = Harvest { tree: self, below, files, finder, made, first_names: HashMap::new() };
        harvest.all(&walked)?;
        let found = harvest.finder.found;
        self.forget(walked)?;
        Ok(found)
    }

    fn walk(&self) -> Result<Walked> {
        let mut walked = Walked::default();
        let mut unseen: BTreeSet<&RootPath> = self.record.held.keys().collect();
        let mut folders = vec![RootPath::root()];
        while let Some(folder) = folders.pop() {
            let dir = self.root.folder(&folder)?;
            let leave_out = places::left_out(&folder);
            for name in file::list(dir.as_fd())? {
                let path = folder.join(&name)?;
                if leave_out {
                    file::remove_tree_at(dir.as_fd(), &name)?;
                    walked.emptied.insert(folder.clone());
                    continue;
                }
                if path.as_bytes() == TMP {
                    continue;
                }
                let Some(stat) = file::stat_at(dir.as_fd(), &name)? else { continue };
                if file::kind(&stat) == SFlag::S_IFDIR {
                    folders.push(path.clone());
                }
                unseen.remove(&path);
                if !self.is_as_made(&path, &stat)? {
                    walked.changed.insert(path, stat);
                }
            }
        }
        walked.missing = unseen.into_iter().cloned().collect();
        Ok(walked)
    }

    fn is_as_made(&self, path: &RootPath, stat: &FileStat) -> Result<bool> {
        let Some(held) = self.record.held.get(path) else { return Ok(false) };
        if held.as_made != AsMade::of(stat) {
            return Ok(false);
        }
        match held.layer {
            Some(layer) if !self.record.abilities.mapped_writes && file::kind(stat) == SFlag::S_IFREG => {
                same_content(self.root.open_file(path)?, self.store.read(&layer, path)?)
                    .map_err(|e| Error::io("read", path.as_path(), e))
            }
            _ => Ok(true),
        }
    }

    /// Removes from tree and record what is not as it was made; its folders are made right later.
    fn forget(&mut self, walked: Walked) -> Result<()> {
        let mut touched = walked.emptied;
        let parents = walked.changed.keys().chain(&walked.missing).filter_map(RootPath::parent);
        touched.extend(parents);
        for (path, stat) in &walked.changed {
            let folder = file::kind(stat) == SFlag::S_IFDIR;
            let same = self.record.held.get(path).is_some_and(|held| held.as_made.inode == stat.st_ino);
            if folder && same {
                touched.insert(path.clone());
                continue;
            }
            self.record.held.remove(path);
            // It may be gone with a folder above.
            if let Ok(dir) = self.root.folder(&path.parent().unwrap_or_default()) {
                file::remove_tree_at(dir.as_fd(), path.name())?;
            }
            let below: Vec<_> = self
                .record
                .held
                .range(path.clone()..)
                .map(|(p, _)| p)
                .take_while(|p| p.starts_with(path))
                .cloned()
                .collect();
            below.iter().for_each(|path| drop(self.record.held.remove(path)));
        }
        walked.missing.iter().for_each(|path| drop(self.record.held.remove(path)));
        for path in touched {
            if let Some(held) = self.record.held.get_mut(&path) {
                held.layer = None;
            }
        }
        Ok(())
    }
}

/// What is not as it was made.
#[derive(Default)]
struct Walked {
    /// New or changed.
    changed: BTreeMap<RootPath, FileStat>,
    /// Held, and gone.
    missing: Vec<RootPath>,
    /// Folders that were emptied, since their content is no part of a changeset.
    emptied: BTreeSet<RootPath>,
}

/// Takes what changed out of the tree, into the folder that is to be kept.
struct Harvest<'a> {
    tree: &'a Tree,
    below: &'a Stack,
    files: &'a Root,
    finder: Finder<'a>,
    /// When the snapshot was made.
    made: (i64, i64),
    /// Of files with several names: where the first of them went.
    first_names: HashMap<u64, RootPath>,
}

impl Harvest<'_> {
    fn all(&mut self, walked: &Walked) -> Result<()> {
        let mut by_inode: HashMap<u64, (&RootPath, &Held)> = HashMap::new();
        if !walked.changed.is_empty() {
            by_inode.extend(self.tree.record.held.iter().map(|(path, held)| (held.as_made.inode, (path, held))));
        }
        for (path, stat) in &walked.changed {
            // What is mounted on these, or lay in them, says nothing of them.
            if places::left_out(path) && self.below.get(path).is_some_and(|(entry, _)| entry.is_folder()) {
                continue;
            }
            let dir = self.tree.root.folder(&path.parent().unwrap_or_default())?;
            let handle = file::handle(file::open_at(dir.as_fd(), path.name(), OFlag::O_PATH)?.as_fd())?;
            let was = by_inode.get(&stat.st_ino).filter(|(_, held)| held.handle == handle).map(|(path, _)| *path);
            self.take(dir, path, stat, handle, was)?;
        }
        for path in &walked.missing {
            let parent = path.parent().unwrap_or_default();
            let in_folder = self.tree.root.stat(&parent)?.is_some_and(|stat| file::kind(&stat) == SFlag::S_IFDIR);
            let (Some((entry, _)), true) = (self.below.get(path), in_folder) else { continue };
            let was = entry.digest();
            let into = self.folder(&parent)?;
            // A store that no overlay stacks needs none, and where it lies there may be none to be had.
            let _ = file::mknod_at(into.as_fd(), path.name(), SFlag::S_IFCHR, 0, 0);
            self.finder.removed(path, was);
        }
        Ok(())
    }

    /// `was`: where the snapshot has this very file.
    fn take(
        &mut self,
        dir: OwnedFd,
        path: &RootPath,
        stat: &FileStat,
        handle: Vec<u8>,
        was: Option<&RootPath>,
    ) -> Result<()> {
        let name = path.name();
        let into = self.folder(&path.parent().unwrap_or_default())?;
        let before = was.and_then(|was| self.below.get(was));
        let mut xattrs = upper::plain_attributes(dir.as_fd(), name, path)?;
        self.add_what_cannot_be_had(&mut xattrs, stat, before.map(|(entry, layer)| (entry, layer.changeset.time)));
        let kind = file::kind(stat);
        let several = kind == SFlag::S_IFREG && stat.st_nlink > 1;
        match (kind, self.first_names.get(&stat.st_ino).filter(|_| several)) {
            (SFlag::S_IFDIR, _) => {
                file::mkdir_at(into.as_fd(), name, stat.st_mode & 0o7777)?;
                for (attribute, value) in &xattrs {
                    if self.tree.record.abilities.can_have(attribute) {
                        give_attribute(into.as_fd(), name, attribute, value)?;
                    }
                }
            }
            (_, Some(first)) => {
                let folder = self.files.folder(&first.parent().unwrap_or_default())?;
                file::link_at(folder.as_fd(), first.name(), into.as_fd(), name)?;
                file::unlink_at(dir.as_fd(), name)?;
            }
            (_, None) => {
                file::rename_at(dir.as_fd(), name, into.as_fd(), name)?;
                if several {
                    self.first_names.insert(stat.st_ino, path.clone());
                }
            }
        }
        let mut stat = *stat;
        // As with an overlay the access time of a regular file says which one it was, until the rule sets
        // it. Of others, and where reading a file sets it to now, we know better.
        let may_be_read = !self.tree.record.abilities.access_times && (stat.st_atime, stat.st_atime_nsec) > self.made;
        if let (Some(was), Some((_, layer))) = (was, before)
            && (kind != SFlag::S_IFREG || may_be_read)
        {
            (stat.st_atime, stat.st_atime_nsec) = mark(was, layer.changeset.time);
        }
        let met = Met { path, stat: &stat, of_snapshot: before.is_some(), handle: &|| Ok(handle.clone()) };
        self.finder.add(into.as_fd(), name, &met, xattrs).map(drop)
    }

    /// Attributes that this file system can't hold stay with the file. A capability goes when the
    /// file is written.
    fn add_what_cannot_be_had(&self, xattrs: &mut Xattrs, stat: &FileStat, before: Option<(&Entry, i64)>) {
        let Some((entry, time)) = before else { return };
        for (attribute, value) in &entry.xattrs {
            let lost = attribute == upper::CAPABILITY && (stat.st_mtime, stat.st_mtime_nsec) != (time, 0);
            if !self.tree.record.abilities.can_have(attribute) && !lost {
                xattrs.insert(attribute.clone(), value.clone());
            }
        }
    }

    /// A folder of those that are to be kept; one that the rule only passed through is made.
    fn folder(&mut self, path: &RootPath) -> Result<OwnedFd> {
        let mut passed: Vec<RootPath> = vec![];
        let above = std::iter::once(path.clone()).chain(path.ancestors());
        passed.extend(above.take_while(|p| !p.is_root() && !self.finder.found.changes.contains_key(p)));
        for folder in passed.iter().rev() {
            let Some((entry, _)) = self.below.get(folder) else {
                return Err(Error::failed(format!("{folder} was captured before what is in it")));
            };
            let into = self.files.folder(&folder.parent().unwrap_or_default())?;
            file::mkdir_at(into.as_fd(), folder.name(), entry.mode)?;
            for (attribute, value) in &entry.xattrs {
                if self.tree.record.abilities.can_have(attribute) {
                    give_attribute(into.as_fd(), folder.name(), attribute, value)?;
                }
            }
            self.finder.passed_through(folder, entry);
        }
        self.files.folder(path)
    }
}

/// Are two regular files the same, byte for byte?
fn same_content(one: File, other: File) -> std::io::Result<bool> {
    let (mut one, mut other) =
        (std::io::BufReader::with_capacity(1 << 16, one), std::io::BufReader::with_capacity(1 << 16, other));
    loop {
        let (a, b) = (std::io::BufRead::fill_buf(&mut one)?, std::io::BufRead::fill_buf(&mut other)?);
        let n = a.len().min(b.len());
        if n == 0 {
            return Ok(a.len() == b.len());
        }
        if a[..n] != b[..n] {
            return Ok(false);
        }
        std::io::BufRead::consume(&mut one, n);
        std::io::BufRead::consume(&mut other, n);
    }
}
