//! A kept tree: the snapshot of a rule where no overlay can be had, as one folder in the store that
//! is brought from one snapshot to the next. So a rule costs what it changes, and one walk.
//!
//! ```text
//! trees/N/lock     flock: whoever uses the tree holds it alone
//! trees/N/record   SHA-256 (32 bytes), then a `Record`; only there while the tree is as it says
//! trees/N/root/    the tree
//! ```
//!
//! The record says of each path which changeset put it there, and how the file was made: its inode,
//! size, mode, links, and times. A rule can set all of these but the time of the last change (ctime),
//! which no call sets: a file that still has it is as it was made. Two things are minded:
//! - the clock of a file system has a granule. A rule starts only when it has moved on past the newest
//!   time in the record;
//! - where a write through a mapping leaves no trace in the times (tmpfs), contents are compared.
//!
//! Files are copies (reflinks, where there are any) and never links to the store's: what a rule writes
//! stays in the tree. **In doubt it is thrown away**: when there is no record, since the last user
//! was killed; a damaged one; one of another boot, or of another format; when anything fails while it
//! is brought to a snapshot. The folder `trees` may be removed at any time when nothing builds.
//!
//! `record.rs` is what is recorded, `bring.rs` goes from one snapshot to the next, `take.rs` takes what a rule changed.

mod bring;
mod record;
mod take;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::record::{Record, Tree};
use super::diff::{Captured, Options, compare};
use crate::error::{Error, Result};
use crate::sandbox::Recorded;
use crate::store::Store;
use crate::sys::disk::{self, Lock};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::Stack;

/// A time of the file system that moves on at least once in this long, or it is out of order.
const LONGEST_GRANULE: Duration = Duration::from_secs(5);

/// The sandbox puts an empty folder of its own there.
const TMP: &[u8] = b"tmp";

/// A tree that is ours until it is dropped.
#[derive(Debug)]
pub struct KeptTree {
    tree: Tree,
    folder: PathBuf,
    kept: bool,
    _lock: File,
}

/// What was not captured goes at once: it may hold what is to be kept nowhere.
impl Drop for KeptTree {
    fn drop(&mut self) {
        if !self.kept {
            // What can't be moved away now is when the tree is used again.
            let _ = move_away(&self.tree.store, &self.folder.join("root"));
        }
    }
}

/// It may be large: the thread that removes scratch folders does it.
fn move_away(store: &Store, root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let scratch = store.scratch()?;
    fs::rename(root, scratch.path().join("tree")).map_err(|e| Error::io("rename", root, e))
}

impl KeptTree {
    /// A tree that nobody uses, brought to this snapshot.
    pub fn at(store: &Store, stack: &Stack) -> Result<Self> {
        let (folder, lock) = free_place(store)?;
        let mut tree = match Self::as_left(store, &folder, &lock)? {
            Some(tree) => tree,
            None => Self::anew(store, &folder, &lock)?,
        };
        if tree.bring_to(stack).is_err() {
            drop(tree);
            // It isn't what its record says. A new one fails for what is wrong with the snapshot.
            tree = Self::anew(store, &folder, &lock)?;
            tree.bring_to(stack)?;
        }
        Ok(tree)
    }

    /// The folder that is the root of the snapshot.
    pub fn path(&self) -> &Path {
        self.tree.root.path()
    }

    /// The same, for what reads in it.
    pub fn root(&self) -> &Root {
        &self.tree.root
    }

    /// The tree as its last user left it, which is marked as being in use.
    fn as_left(store: &Store, folder: &Path, lock: &File) -> Result<Option<Self>> {
        let record = Record::take(folder, store.boot())?;
        record.map(|record| Self::with(store, folder, lock, record)).transpose()
    }

    fn anew(store: &Store, folder: &Path, lock: &File) -> Result<Self> {
        let root = folder.join("root");
        move_away(store, &root)?;
        fs::create_dir(&root).map_err(|e| Error::io("mkdir", &root, e))?;
        Self::with(store, folder, lock, Record::new(store.boot(), folder)?)
    }

    fn with(store: &Store, folder: &Path, lock: &File, record: Record) -> Result<Self> {
        let root = Root::open(&folder.join("root"))?;
        let lock = lock.try_clone().map_err(|e| Error::io("dup", folder, e))?;
        let tree = Tree { store: store.clone(), root, record };
        Ok(Self { tree, folder: folder.into(), kept: false, _lock: lock })
    }

    fn bring_to(&mut self, stack: &Stack) -> Result<()> {
        self.tree.bring_to(stack)?;
        self.wait_for_the_clock()
    }

    /// Until a change would get another time than the newest that is recorded.
    fn wait_for_the_clock(&self) -> Result<()> {
        let newest = self.tree.record.newest();
        let began = Instant::now();
        let dir = File::open(&self.folder).map_err(|e| Error::io("open", &self.folder, e))?;
        loop {
            file::remove_tree_at(dir.as_fd(), b"clock")?;
            drop(file::create_file_at(dir.as_fd(), b"clock", 0o600)?);
            if file::stat_at(dir.as_fd(), b"clock")?.is_some_and(|s| (s.st_ctime, s.st_ctime_nsec) > newest) {
                return Ok(());
            }
            if began.elapsed() > LONGEST_GRANULE {
                return Err(Error::failed(format!("the clock of {} stands still", self.folder.display()))
                    .why("what a rule changes is told by the times that the file system gives")
                    .next("set the clock of this machine (or of its file server) right"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what a rule changed into `files`, an empty folder of the same file system, and keeps the
    /// tree for the next rule.
    pub fn capture(
        mut self,
        files: &Root,
        below: &Stack,
        recorded: &[Recorded],
        options: &Options,
    ) -> Result<Captured> {
        let found = self.tree.take(files, below, recorded, options.owner)?;
        self.keep()?;
        compare(files, false, below, found, options)
    }

    /// Says that the tree is as it is recorded.
    fn keep(mut self) -> Result<()> {
        self.tree.record.keep(&self.folder)?;
        self.kept = true;
        Ok(())
    }
}

/// The first place that nobody uses.
fn free_place(store: &Store) -> Result<(PathBuf, File)> {
    let trees = store.trees_path();
    for number in 0.. {
        let folder = trees.join(number.to_string());
        fs::create_dir_all(&folder).map_err(|e| Error::io("mkdir", &folder, e))?;
        xattr::inherit_no_acl(&folder)?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Error::io("open", &path, e))?;
        if disk::lock(&lock, Lock::TryExclusive).map_err(|e| Error::io("flock", &path, e))? {
            return Ok((folder, lock));
        }
    }
    Err(Error::failed("every tree is in use"))
}
