//! What is recorded of a tree: which changeset put each path there, and how the file was made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use crate::archive::access_list::ACLS;
use crate::changeset::upper;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::RootPath;

/// Raised when a record means something else.
const FORMAT: u32 = 2;

/// A tree and its record, which is true while nobody else writes there.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) store: Store,
    pub(super) root: Root,
    pub(super) record: Record,
}

/// How a file was when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AsMade {
    pub(super) inode: u64,
    pub(super) mode: u32,
    size: i64,
    /// It has several names, which no file of a snapshot has.
    linked: bool,
    modified: (i64, i64),
    pub(super) changed: (i64, i64),
}

impl AsMade {
    pub(super) fn of(stat: &FileStat) -> Self {
        let folder = file::kind(stat) == SFlag::S_IFDIR;
        Self {
            inode: stat.st_ino,
            mode: stat.st_mode,
            // What it is for a folder is the file system's business.
            size: if folder { 0 } else { stat.st_size },
            linked: !folder && stat.st_nlink != 1,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// What a path of the tree holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    /// The changeset that put it there; `None`: a folder that has to be made right again.
    pub(super) layer: Option<Digest>,
    pub(super) as_made: AsMade,
    /// Its identity: [`file::handle`].
    pub(super) handle: Vec<u8>,
}

/// What this file system can.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Abilities {
    /// Files have attributes `user.*`.
    attributes: bool,
    /// Files have capabilities.
    capabilities: bool,
    /// Files have access control lists.
    acls: bool,
    /// Reading a file can leave its access time alone.
    pub(super) access_times: bool,
    /// A write through a mapping changes the times of a file.
    pub(super) mapped_writes: bool,
}

/// What is recorded of a tree.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) boot: String,
    pub(super) abilities: Abilities,
    pub(super) held: BTreeMap<RootPath, Held>,
}

impl Record {
    /// Of an empty tree.
    pub(super) fn new(boot: &str, folder: &Path) -> Result<Self> {
        let abilities = Abilities::of(folder)?;
        Ok(Self { format: FORMAT, boot: boot.to_string(), abilities, held: BTreeMap::new() })
    }

    /// The one in this folder, which it is taken from: who has it alone may believe it. `None`: there is none to be believed.
    pub(super) fn take(folder: &Path, boot: &str) -> Result<Option<Self>> {
        let path = folder.join("record");
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        fs::remove_file(&path).map_err(|e| Error::io("unlink", &path, e))?;
        let Some((sum, text)) = bytes.split_at_checked(32) else { return Ok(None) };
        let Ok(record) = postcard::from_bytes::<Self>(text) else { return Ok(None) };
        let whole = Digest::of(text).as_bytes() == sum;
        Ok((whole && record.format == FORMAT && record.boot == boot).then_some(record))
    }

    /// Puts it into this folder, whole or not at all.
    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        let text = postcard::to_stdvec(self).map_err(|e| Error::failed(format!("a tree's record: {e}")))?;
        let bytes = [Digest::of(&text).as_bytes().as_slice(), &text].concat();
        let (new, path) = (folder.join("record.new"), folder.join("record"));
        fs::write(&new, bytes).map_err(|e| Error::io("write", &new, e))?;
        fs::rename(&new, &path).map_err(|e| Error::io("rename", &path, e))
    }

    /// The newest time in the record.
    pub(super) fn newest(&self) -> (i64, i64) {
        self.held.values().map(|held| held.as_made.changed).max().unwrap_or_default()
    }
}

impl Abilities {
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let dir = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        let (dir, name) = (dir.as_fd(), b"tried".as_slice());
        file::remove_tree_at(dir, name)?;
        let tried = file::create_file_at(dir, name, 0o600)?;
        // A capability of version 2 that nobody has.
        let capability = [[0, 0, 0, 2].as_slice(), &[0; 16]].concat();
        // Read and write for the owner, none for group, mask (without which it is but a mode) and others.
        let entries = [[1, 6], [4, 0], [16, 0], [32, 0]];
        let entries = entries.iter().flat_map(|[tag, may]| [*tag, 0, *may, 0, 255, 255, 255, 255]);
        let acl: Vec<u8> = [2, 0, 0, 0].into_iter().chain(entries).collect();
        let found = Self {
            attributes: xattr::set(dir, name, b"user.tapeout", b"1").is_ok(),
            capabilities: xattr::set(dir, name, upper::CAPABILITY, &capability).is_ok(),
            acls: xattr::set(dir, name, ACLS[0], &acl).is_ok(),
            access_times: file::keep_access_time_at(dir, name)?,
            mapped_writes: file::tells_mapped_writes(&tried).map_err(|e| Error::io("mmap", folder, e))?,
        };
        file::unlink_at(dir, name)?;
        Ok(found)
    }

    /// Can a file here have this attribute?
    pub(super) fn can_have(&self, attribute: &[u8]) -> bool {
        match attribute {
            upper::CAPABILITY => self.capabilities,
            acl if ACLS.contains(&acl) => self.acls,
            _ => self.attributes,
        }
    }
}
