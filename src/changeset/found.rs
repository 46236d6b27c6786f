//! What a walk finds: the same from the upper folder of an overlay (`upper.rs`) and from a kept tree
//! (`kept_tree/take.rs`). Each file becomes an entry, with its owner, and gets the kept form on disk.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use nix::sys::stat::{FileStat, SFlag};

use super::owners::{Met, Owners};
use super::places;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::file;
use crate::tree::{Change, Entry, Node, RootPath, Stack};

/// Changes, before they are compared with what was below.
#[derive(Default)]
pub(super) struct Found {
    /// Content is not known yet.
    pub changes: BTreeMap<RootPath, Change>,
    /// Names of files that have several, by device and inode.
    pub inodes: BTreeMap<(u64, u64), Vec<RootPath>>,
    /// Folders that hide what was below.
    pub opaque: Vec<RootPath>,
}

/// Turns files into entries.
pub(super) struct Finder<'a> {
    pub owners: Owners<'a>,
    pub found: Found,
}

/// Attributes that go into layers.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

impl Finder<'_> {
    pub fn below(&self) -> &Stack {
        self.owners.below
    }

    /// Was removed.
    pub fn removed(&mut self, path: &RootPath, was: Digest) {
        self.found.changes.insert(path.clone(), Change { was: Some(was), now: None });
    }

    /// A folder that is as it was.
    pub fn passed_through(&mut self, path: &RootPath, entry: &Entry) {
        let change = Change { was: Some(entry.digest()), now: Some(entry.clone()) };
        self.found.changes.insert(path.clone(), change);
    }

    /// Takes one file, which lies in the folder that is to be kept as this name; `true`: it is a
    /// folder to go into.
    pub fn add(&mut self, dir: BorrowedFd, name: &[u8], met: &Met, xattrs: Xattrs) -> Result<bool> {
        let entry = self.entry(dir, name, met, xattrs)?;
        let folder = entry.is_folder();
        let Met { path, stat, .. } = met;
        if matches!(entry.node, Node::File { .. }) && stat.st_nlink > 1 {
            self.found.inodes.entry((stat.st_dev, stat.st_ino)).or_default().push((*path).clone());
        }
        let was = self.below().get(path).map(|(entry, _)| entry.digest());
        self.found.changes.insert((*path).clone(), Change { was, now: Some(entry) });
        Ok(folder)
    }

    fn entry(&mut self, dir: BorrowedFd, name: &[u8], met: &Met, xattrs: Xattrs) -> Result<Entry> {
        let Met { path, stat, .. } = met;
        let kind = file::kind(stat);
        let mut node = match kind {
            SFlag::S_IFREG => Node::File { size: stat.st_size as u64, digest: Digest::of(""), group: None },
            SFlag::S_IFDIR => Node::Folder,
            SFlag::S_IFLNK => Node::Link { target: file::read_link_at(dir, name)? },
            SFlag::S_IFIFO => Node::Fifo,
            SFlag::S_IFSOCK => Node::Socket,
            SFlag::S_IFCHR | SFlag::S_IFBLK => Node::Device {
                character: kind == SFlag::S_IFCHR,
                major: nix::sys::stat::major(stat.st_rdev) as u32,
                minor: nix::sys::stat::minor(stat.st_rdev) as u32,
            },
            _ => return Err(Error::failed(format!("a kind of file that is not known: {path}"))),
        };
        let facts = self.owners.of(met, &node)?;
        if let Some((character, major, minor)) = facts.device {
            node = Node::Device { character, major, minor };
        }
        if node == (Node::Device { character: true, major: 0, minor: 0 }) {
            return Err(Error::failed(format!("a rule made the device 0/0: {path}"))
                .why("it stands for a removed file where layers are stacked")
                .next("remove it at the end of the rule"));
        }
        let mode = if kind == SFlag::S_IFLNK { 0o777 } else { stat.st_mode & 0o7777 };
        if matches!(node, Node::Device { .. }) && (kind != SFlag::S_IFREG || stat.st_size > 0) {
            // The kept form of a device is an empty file.
            file::unlink_at(dir, name)?;
            file::create_file_at(dir, name, mode)?;
        }
        let mut entry = Entry { node, mode, uid: facts.uid, gid: facts.gid, xattrs };
        self.keep_owner(dir, name, path, &mut entry)?;
        Ok(entry)
    }

    /// A file that programs rewrite with the owner that they see keeps the one it had.
    fn keep_owner(&self, dir: BorrowedFd, name: &[u8], path: &RootPath, entry: &mut Entry) -> Result<()> {
        let Some(model) = places::keeps_owner(path) else { return Ok(()) };
        let below = self.below();
        let Some((as_was, _)) = below.get(path).or_else(|| below.get(&model)) else { return Ok(()) };
        if (entry.uid, entry.gid) != (0, 0)
            || !matches!((&as_was.node, &entry.node), (Node::File { .. }, Node::File { .. }))
        {
            return Ok(());
        }
        (entry.uid, entry.gid) = (as_was.uid, as_was.gid);
        if entry.mode != as_was.mode {
            entry.mode = as_was.mode;
            file::chmod_at(dir, name, entry.mode)?;
        }
        Ok(())
    }
}

/// A removal, as an overlay keeps it.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    file::kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}
