//! What a failed rule left, laid over the snapshot that it stood on, for who looks into it.

use std::collections::HashMap;
use std::os::fd::AsFd;

use nix::sys::stat::{FileStat, SFlag};

use super::KeptTree;
use super::bring::Like;
use crate::changeset::found::is_whiteout;
use crate::changeset::places;
use crate::digest::Digest;
use crate::error::Result;
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Node, RootPath};

impl KeptTree {
    /// Lays a folder in overlay's form over the snapshot. No record says what the tree is from now on: it goes when it is
    /// dropped, and must not be captured.
    pub fn lay(&self, upper: &Root) -> Result<()> {
        let root = self.root();
        let mut made: Vec<(RootPath, FileStat)> = vec![];
        // Of files with several names: the first of them.
        let mut first_names: HashMap<u64, RootPath> = HashMap::new();
        let mut folders = vec![RootPath::root()];
        while let Some(folder) = folders.pop() {
            let (from, into) = (upper.folder(&folder)?, root.folder(&folder)?);
            let (from, into) = (from.as_fd(), into.as_fd());
            let like = Like { source: from, abilities: self.tree.record.abilities };
            for name in file::list(from)? {
                let path = folder.join(&name)?;
                let Some(stat) = file::stat_at(from, &name)? else { continue };
                if places::left_out(&path) {
                    continue;
                }
                let is_folder = file::kind(&stat) == SFlag::S_IFDIR;
                let opaque = || xattr::get(from, &name, b"user.overlay.opaque").map(|value| value.is_some());
                let there = file::stat_at(into, &name)?;
                let stays = is_folder && there.is_some_and(|stat| file::kind(&stat) == SFlag::S_IFDIR) && !opaque()?;
                if !stays {
                    file::remove_tree_at(into, &name)?;
                }
                if is_whiteout(&stat) {
                    continue;
                }
                let several = file::kind(&stat) == SFlag::S_IFREG && stat.st_nlink > 1;
                if let Some(first) = first_names.get(&stat.st_ino).filter(|_| several) {
                    let other = root.folder(&first.parent().unwrap_or_default())?;
                    file::link_at(other.as_fd(), first.name(), into, &name)?;
                    continue;
                }
                let node = match file::kind(&stat) {
                    SFlag::S_IFDIR => Node::Folder,
                    SFlag::S_IFLNK => Node::Link { target: file::read_link_at(from, &name)? },
                    SFlag::S_IFIFO => Node::Fifo,
                    SFlag::S_IFSOCK => Node::Socket,
                    _ => Node::File { size: stat.st_size as u64, digest: Digest::of(""), group: None },
                };
                // It has to be filled first.
                let mode = stat.st_mode & 0o7777 | if is_folder { 0o700 } else { 0 };
                like.make(into, &name, &node, mode, stays)?;
                if several {
                    first_names.insert(stat.st_ino, path.clone());
                }
                if is_folder {
                    folders.push(path.clone());
                }
                made.push((path, stat));
            }
        }
        // What is in a folder comes behind it, and moves its times no more.
        for (path, stat) in made.iter().rev() {
            let dir = root.folder(&path.parent().unwrap_or_default())?;
            if file::kind(stat) == SFlag::S_IFDIR {
                file::chmod_at(dir.as_fd(), path.name(), stat.st_mode & 0o7777)?;
            }
            file::set_times_at(dir.as_fd(), path.name(), (stat.st_atime, stat.st_atime_nsec), stat.st_mtime)?;
        }
        Ok(())
    }
}
