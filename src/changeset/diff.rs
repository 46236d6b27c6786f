//! Capture: from the upper folder of a snapshot to a changeset, its name, and its kept form.
//!
//! It goes in four passes, each by descriptors below the folder, following no link, when every
//! process of the sandbox is dead:
//! 1. **walk**: each file becomes an entry, with the owner that was recorded for it, or that the
//!    file below has from which it was copied up; whiteouts become removals;
//! 2. **compare**: what equals the snapshot below is dropped, from the changeset and the folder;
//! 3. **normalise**: the folder gets the kept form (see the module above);
//! 4. **name**: each content is read once, for its own digest and the canonical stream's.
//!
//! After a kill there is nothing but a scratch folder that nobody names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};

use super::{Files, places};
use crate::archive::tar_writer;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Change, Changeset, Entry, Node, RootPath, Stack};

/// What the sandbox's init recorded for one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// The identity of the file, as `sys::file::handle` gives it.
    pub handle: Vec<u8>,
    /// The owner it was given.
    pub uid: Option<u32>,
    /// The group it was given.
    pub gid: Option<u32>,
    /// It is a device: character or block, major, minor.
    pub device: Option<(bool, u32, u32)>,
}

/// How to capture.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The changeset's time, in seconds since 1970.
    pub time: i64,
    /// Owner and group of a new file for which nothing was recorded.
    pub owner: (u32, u32),
    /// New numbers for user IDs that the rule allocated.
    pub uids: BTreeMap<u32, u32>,
    /// New numbers for group IDs that the rule allocated.
    pub gids: BTreeMap<u32, u32>,
}

/// A changeset that has no name yet.
pub struct Captured {
    upper: Root,
    below: Stack,
    time: i64,
    changes: BTreeMap<RootPath, Change>,
    /// Files whose content has been hashed; of the others the digest in `changes` is not yet true.
    hashed: BTreeMap<RootPath, Digest>,
}

/// Takes the difference that `upper` makes to the stack below it. `files` gives the kept files of
/// the changesets in the stack, `recorded` is what the sandbox's init recorded.
pub fn capture(upper: &Root, below: &Stack, files: &Files, recorded: &[Recorded], options: &Options) -> Result<Captured> {
    let recorded = recorded.iter().map(|r| (r.handle.as_slice(), r)).collect();
    let mut walk = Walk {
        owners: Owners { below, files, recorded, options, foreign: None, roots: BTreeMap::new() },
        upper,
        found: BTreeMap::new(),
        inodes: BTreeMap::new(),
        opaque: vec![],
    };
    walk.all()?;
    let Walk { found: changes, inodes, opaque, .. } = walk;
    let mut captured = Captured { upper: upper.clone(), below: below.clone(), time: options.time, changes, hashed: BTreeMap::new() };
    captured.drop_unchanged()?;
    for folder in &opaque {
        captured.expand(folder)?;
    }
    captured.separate_links(inodes)?;
    Ok(captured)
}

/// Where content is not known yet.
fn unread() -> Digest {
    Digest::of("")
}

struct Walk<'a> {
    owners: Owners<'a>,
    upper: &'a Root,
    found: BTreeMap<RootPath, Change>,
    /// Names of files that have several, by device and inode.
    inodes: BTreeMap<(u64, u64), Vec<RootPath>>,
    /// Folders that hide what was below.
    opaque: Vec<RootPath>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<()> {
        // Folders are opened anew from the top, so that depth costs no descriptors.
        let mut folders = vec![RootPath::root()];
        while let Some(folder) = folders.pop() {
            let dir = self.upper.folder(&folder)?;
            let leave_out = places::left_out(&folder);
            for name in file::list(dir.as_fd())? {
                if leave_out {
                    file::remove_tree_at(dir.as_fd(), &name)?;
                    continue;
                }
                let path = folder.join(&name)?;
                if self.one(dir.as_fd(), &name, &path)? {
                    folders.push(path);
                }
            }
            if folder.is_root() {
                forget_overlay(dir.as_fd(), b".")?;
            }
        }
        Ok(())
    }

    /// Takes one file; `true`: it is a folder to go into.
    fn one(&mut self, dir: BorrowedFd, name: &[u8], path: &RootPath) -> Result<bool> {
        let Some(stat) = file::stat_at(dir, name)? else { return Ok(false) };
        let was = self.owners.below.get(path).map(|(entry, _)| entry.digest());
        if is_whiteout(&stat) {
            match was {
                Some(_) => drop(self.found.insert(path.clone(), Change { was, now: None })),
                None => file::unlink_at(dir, name)?,
            }
            return Ok(false);
        }
        let attributes = Attributes::read(dir, name, path)?;
        if attributes.opaque {
            self.opaque.push(path.clone());
        }
        let entry = self.entry(dir, name, path, &stat, attributes)?;
        let folder = entry.is_folder();
        if matches!(entry.node, Node::File { .. }) && stat.st_nlink > 1 {
            self.inodes.entry((stat.st_dev, stat.st_ino)).or_default().push(path.clone());
        }
        self.found.insert(path.clone(), Change { was, now: Some(entry) });
        Ok(folder)
    }

    fn entry(&mut self, dir: BorrowedFd, name: &[u8], path: &RootPath, stat: &FileStat, attributes: Attributes) -> Result<Entry> {
        let kind = file::kind(stat);
        let mut node = match kind {
            SFlag::S_IFREG => Node::File { size: stat.st_size as u64, digest: unread(), group: None },
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
        let facts = self.owners.of(dir, name, path, &node, attributes.origin.as_deref())?;
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
        let mut entry = Entry { node, mode, uid: facts.uid, gid: facts.gid, xattrs: attributes.kept };
        self.keep_owner(dir, name, path, &mut entry)?;
        Ok(entry)
    }

    /// A file that programs rewrite with the owner that they see keeps the one it had.
    fn keep_owner(&self, dir: BorrowedFd, name: &[u8], path: &RootPath, entry: &mut Entry) -> Result<()> {
        let Some(model) = places::keeps_owner(path) else { return Ok(()) };
        let below = self.owners.below;
        let Some((as_was, _)) = below.get(path).or_else(|| below.get(&model)) else { return Ok(()) };
        if (entry.uid, entry.gid) != (0, 0) || !matches!((&as_was.node, &entry.node), (Node::File { .. }, Node::File { .. })) {
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

fn is_whiteout(stat: &FileStat) -> bool {
    file::kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// The extended attributes of a file of the upper folder.
#[derive(Default)]
struct Attributes {
    kept: BTreeMap<Vec<u8>, Vec<u8>>,
    opaque: bool,
    /// The identity of the file below from which it was copied up.
    origin: Option<Vec<u8>>,
}

const CAPABILITY: &[u8] = b"security.capability";
const OVERLAY: &[u8] = b"user.overlay.";
/// What overlay makes of an attribute `user.overlay.…` that a rule sets itself.
const ESCAPED: &[u8] = b"user.overlay.overlay.";

impl Attributes {
    /// Reads them, and removes from the file those that are overlay's own.
    fn read(dir: BorrowedFd, name: &[u8], path: &RootPath) -> Result<Self> {
        let mut found = Self::default();
        for attribute in file::list_xattrs(dir, name)? {
            let value = || file::get_xattr(dir, name, &attribute).map(Option::unwrap_or_default);
            if attribute.starts_with(ESCAPED) {
                return Err(Error::failed(format!("a rule set the attribute {} on {path}", String::from_utf8_lossy(&attribute[8..])))
                    .why("overlay file systems read such attributes as orders")
                    .next("remove it in the rule: setfattr -x NAME FILE"));
            }
            match attribute.as_slice() {
                b"user.overlay.opaque" => found.opaque = value()? == b"y",
                b"user.overlay.origin" => found.origin = origin_identity(&value()?),
                CAPABILITY => drop(found.kept.insert(attribute.clone(), version_2(value()?))),
                other if other.starts_with(OVERLAY) => {}
                other if other.starts_with(b"user.") => drop(found.kept.insert(attribute.clone(), value()?)),
                _ => continue,
            }
            if attribute.starts_with(OVERLAY) {
                file::remove_xattr(dir, name, &attribute)?;
            }
        }
        Ok(found)
    }
}

fn forget_overlay(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    for attribute in file::list_xattrs(dir, name)? {
        if attribute.starts_with(OVERLAY) {
            file::remove_xattr(dir, name, &attribute)?;
        }
    }
    Ok(())
}

/// `struct ovl_fb` of fs/overlayfs/overlayfs.h: version, magic, length, flags, type, 16 bytes of
/// UUID, then the handle. As `sys::file::handle` has it: four bytes of type, then the handle.
fn origin_identity(value: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: u8 = 0xfb;
    let [0, MAGIC, length, _, kind, rest @ ..] = value else { return None };
    let handle = rest.get(16..usize::from(*length).checked_sub(5)?)?;
    Some([&i32::from(*kind).to_le_bytes(), handle].concat())
}

/// File capabilities as version 2. Version 3 also says for which user namespace they hold:
/// `struct vfs_ns_cap_data` of linux/capability.h.
fn version_2(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() == 24 && value[3] == 3 {
        value.truncate(20);
        value[3] = 2;
    }
    value
}

/// What is recorded of a file besides what the file system says.
#[derive(Clone, Copy)]
struct Facts {
    uid: u32,
    gid: u32,
    device: Option<(bool, u32, u32)>,
}

impl Facts {
    fn of(entry: &Entry) -> Self {
        let device = match entry.node {
            Node::Device { character, major, minor } => Some((character, major, minor)),
            _ => None,
        };
        Self { uid: entry.uid, gid: entry.gid, device }
    }
}

/// Joins files with what was recorded for them, or for the file below that they were copied from.
struct Owners<'a> {
    below: &'a Stack,
    files: &'a Files<'a>,
    recorded: BTreeMap<&'a [u8], &'a Recorded>,
    options: &'a Options,
    /// By identity: the files below that are not root's, or devices. Made when first needed.
    foreign: Option<BTreeMap<Vec<u8>, Facts>>,
    roots: BTreeMap<Digest, Root>,
}

impl Owners<'_> {
    fn of(&mut self, dir: BorrowedFd, name: &[u8], path: &RootPath, node: &Node, origin: Option<&[u8]>) -> Result<Facts> {
        let inherited = match origin {
            Some(origin) => Some(self.inherited(path, origin)?),
            None => self.same_special(path, node),
        };
        let options = self.options;
        let mut facts = inherited.unwrap_or(Facts { uid: options.owner.0, gid: options.owner.1, device: None });
        let mut set = (inherited.is_none(), inherited.is_none());
        if !self.recorded.is_empty() {
            let fd = file::open_at(dir, name, OFlag::O_PATH)?;
            if let Some(recorded) = self.recorded.get(file::handle(fd.as_fd())?.as_slice()) {
                set = (set.0 || recorded.uid.is_some(), set.1 || recorded.gid.is_some());
                facts.uid = recorded.uid.unwrap_or(facts.uid);
                facts.gid = recorded.gid.unwrap_or(facts.gid);
                facts.device = recorded.device.or(facts.device);
            }
        }
        // Only numbers that this rule gave are new ones; what it inherited had its number before.
        if set.0 {
            facts.uid = *options.uids.get(&facts.uid).unwrap_or(&facts.uid);
        }
        if set.1 {
            facts.gid = *options.gids.get(&facts.gid).unwrap_or(&facts.gid);
        }
        if !matches!(node, Node::File { .. }) {
            facts.device = facts.device.filter(|_| matches!(node, Node::Device { .. }));
        }
        Ok(facts)
    }

    /// What the stack has for the file with this identity: looked for at the same path first, then
    /// (it was renamed) among all files that are not plainly root's.
    fn inherited(&mut self, path: &RootPath, origin: &[u8]) -> Result<Facts> {
        if let Some((entry, layer)) = self.below.get(path)
            && self.identity(&layer.digest, path)?.is_some_and(|identity| identity == origin)
        {
            return Ok(Facts::of(entry));
        }
        let foreign = match self.foreign.take() {
            Some(foreign) => foreign,
            None => self.all_foreign()?,
        };
        let facts = foreign.get(origin).copied().unwrap_or(Facts { uid: 0, gid: 0, device: None });
        self.foreign = Some(foreign);
        Ok(facts)
    }

    fn all_foreign(&mut self) -> Result<BTreeMap<Vec<u8>, Facts>> {
        let mut foreign = BTreeMap::new();
        for layer in &self.below.0 {
            for (path, change) in &layer.changeset.changes {
                let Some(entry) = &change.now else { continue };
                let facts = Facts::of(entry);
                if (facts.uid, facts.gid, facts.device) == (0, 0, None) {
                    continue;
                }
                if let Some(identity) = self.identity(&layer.digest, path)? {
                    foreign.insert(identity, facts);
                }
            }
        }
        Ok(foreign)
    }

    fn identity(&mut self, changeset: &Digest, path: &RootPath) -> Result<Option<Vec<u8>>> {
        let root = match self.roots.get(changeset) {
            Some(root) => root,
            None => self.roots.entry(*changeset).or_insert((self.files)(changeset)?),
        };
        root.identity(path)
    }

    /// Links, pipes and sockets can't hold the attribute that says what they were copied from: one
    /// that is the same as below is taken for that one.
    fn same_special(&self, path: &RootPath, node: &Node) -> Option<Facts> {
        if !matches!(node, Node::Link { .. } | Node::Fifo | Node::Socket) {
            return None;
        }
        self.below.get(path).filter(|(entry, _)| entry.node == *node).map(|(entry, _)| Facts::of(entry))
    }
}

impl Captured {
    /// What has changed so far. The digests of contents are not yet true.
    pub fn changes(&self) -> &BTreeMap<RootPath, Change> {
        &self.changes
    }

    /// Opens a file that changed; `None`: it didn't, or is none.
    pub fn open(&self, path: &RootPath) -> Result<Option<File>> {
        match self.changes.get(path).and_then(|c| c.now.as_ref()) {
            Some(Entry { node: Node::File { .. }, .. }) => self.upper.open_file(path).map(Some),
            _ => Ok(None),
        }
    }

    /// Replaces the content of a file that changed; its mode, owner and attributes stay.
    pub fn replace_file(&mut self, path: &RootPath, bytes: &[u8]) -> Result<()> {
        let Some(Entry { node: Node::File { size, digest, group }, mode, xattrs, .. }) = self.changes.get_mut(path).and_then(|c| c.now.as_mut()) else {
            return Err(Error::failed(format!("{path} is no file of this changeset")));
        };
        (*size, *digest, *group) = (bytes.len() as u64, Digest::of(bytes), None);
        let dir = self.upper.folder(&path.parent().unwrap_or_default())?;
        file::unlink_at(dir.as_fd(), path.name())?;
        let mut new = file::create_file_at(dir.as_fd(), path.name(), 0o600)?;
        new.write_all(bytes).map_err(|e| Error::io("write", path.below(self.upper.path()), e))?;
        finish_copy(dir.as_fd(), path.name(), *mode, xattrs)?;
        self.hashed.insert(path.clone(), Digest::of(bytes));
        if self.unchanged(path) {
            self.forget(path)?;
        }
        Ok(())
    }

    /// Takes one path, which is no folder with something in it, out of the changeset.
    pub fn forget(&mut self, path: &RootPath) -> Result<()> {
        if self.changes.remove(path).is_some() {
            let dir = self.upper.folder(&path.parent().unwrap_or_default())?;
            file::remove_tree_at(dir.as_fd(), path.name())?;
        }
        Ok(())
    }

    /// Is the file here the same as below?
    fn unchanged(&self, path: &RootPath) -> bool {
        let now = self.changes.get(path).and_then(|c| c.now.as_ref());
        matches!((now, self.below.get(path)), (Some(now), Some((was, _))) if now.same_as(was))
    }

    /// Drops what equals what was below, folders aside. A file is read only when all else is equal.
    fn drop_unchanged(&mut self) -> Result<()> {
        let mut dropped = vec![];
        let mut buffer = vec![];
        for (path, change) in &mut self.changes {
            let Some(now) = &mut change.now else { continue };
            let Some((was, _)) = self.below.get(path) else { continue };
            if now.is_folder() || (now.mode, now.uid, now.gid, &now.xattrs) != (was.mode, was.uid, was.gid, &was.xattrs) {
                continue;
            }
            if let (Node::File { size, digest, .. }, Node::File { size: size_was, .. }) = (&mut now.node, &was.node)
                && size == size_was
            {
                *digest = hash(self.upper.open_file(path)?, path, &mut buffer, &mut |_| Ok(()))?;
                self.hashed.insert(path.clone(), *digest);
            }
            if now.same_as(was) {
                dropped.push(path.clone());
            }
        }
        for path in dropped {
            self.forget(&path)?;
        }
        Ok(())
    }

    /// A folder that hides what was below lists the removal of all that is gone.
    fn expand(&mut self, folder: &RootPath) -> Result<()> {
        if !self.below.get(folder).is_some_and(|(entry, _)| entry.is_folder()) {
            return Ok(());
        }
        for (path, (entry, _)) in self.below.below(folder) {
            let parent = path.parent().unwrap_or_default();
            let gone = self.changes.get(&parent).and_then(|c| c.now.as_ref()).is_none_or(|e| !e.is_folder());
            if gone || self.changes.contains_key(&path) {
                continue;
            }
            let dir = self.upper.folder(&parent)?;
            if file::stat_at(dir.as_fd(), path.name())?.is_some() {
                return Err(Error::failed(format!("{path} was captured twice")));
            }
            file::mknod_at(dir.as_fd(), path.name(), SFlag::S_IFCHR, 0, 0)?;
            self.changes.insert(path, Change { was: Some(entry.digest()), now: None });
        }
        Ok(())
    }

    /// Names of one file get a number, and become files of their own.
    fn separate_links(&mut self, inodes: BTreeMap<(u64, u64), Vec<RootPath>>) -> Result<()> {
        let mut groups: Vec<Vec<RootPath>> = (inodes.into_values())
            .map(|mut names| {
                names.retain(|name| self.changes.contains_key(name));
                names.sort();
                names
            })
            .filter(|names| names.len() > 1)
            .collect();
        groups.sort();
        for (number, names) in (0u32..).zip(groups) {
            for (i, name) in names.iter().enumerate() {
                if let Some(Entry { node: Node::File { group, .. }, .. }) = self.changes.get_mut(name).and_then(|c| c.now.as_mut()) {
                    *group = Some(number);
                }
                if i > 0 {
                    self.copy(&names[0], name)?;
                }
            }
        }
        Ok(())
    }

    /// Makes `to`, a name of the same file as `from`, a file of its own.
    fn copy(&self, from: &RootPath, to: &RootPath) -> Result<()> {
        let Some(Entry { mode, xattrs, .. }) = self.changes.get(to).and_then(|c| c.now.as_ref()) else { return Ok(()) };
        let source = self.upper.open_file(from)?;
        let dir = self.upper.folder(&to.parent().unwrap_or_default())?;
        file::unlink_at(dir.as_fd(), to.name())?;
        let copy = file::create_file_at(dir.as_fd(), to.name(), 0o600)?;
        file::reflink_or_copy(&source, &copy).map_err(|e| Error::io("copy", to.below(self.upper.path()), e))?;
        finish_copy(dir.as_fd(), to.name(), *mode, xattrs)
    }

    /// Drops folders that were only passed through and in which nothing changed.
    fn prune(&mut self) -> Result<()> {
        let mut needed = RootPath::root();
        let mut dropped = vec![];
        for (path, change) in self.changes.iter().rev() {
            // What is below a folder comes right before it, in this direction.
            if change.passed_through() && !(needed != *path && needed.starts_with(path)) {
                dropped.push(path.clone());
            } else {
                needed = path.clone();
            }
        }
        for path in dropped {
            self.forget(&path)?;
        }
        Ok(())
    }

    /// Sets all times, the deepest first, so that no later change moves them.
    fn set_times(&self) -> Result<()> {
        let mut open: Option<(RootPath, OwnedFd)> = None;
        for path in self.changes.iter().rev().filter(|(_, c)| c.now.is_some()).map(|(path, _)| path) {
            let parent = path.parent().unwrap_or_default();
            let dir = match open.take() {
                Some((folder, fd)) if folder == parent => fd,
                _ => self.upper.folder(&parent)?,
            };
            file::set_mtime_at(dir.as_fd(), path.name(), self.time)?;
            open = Some((parent, dir));
        }
        let root = self.upper.folder(&RootPath::root())?;
        file::chmod_at(root.as_fd(), b".", 0o755)?;
        file::set_mtime_at(root.as_fd(), b".", self.time)
    }

    /// Brings the folder into the kept form, reads each content once, and names the changeset.
    /// The folder is then ready for `Store::keep_changeset`.
    pub fn name(mut self) -> Result<(Changeset, Digest)> {
        self.prune()?;
        self.set_times()?;
        let mut changeset = Changeset { time: self.time, changes: std::mem::take(&mut self.changes) };
        let hashed = &mut self.hashed;
        let upper = &self.upper;
        let mut buffer = vec![];
        let mut give = |path: &RootPath, _: &Entry, put: &mut dyn FnMut(&[u8]) -> Result<()>| {
            let digest = hash(upper.open_file(path)?, path, &mut buffer, put)?;
            hashed.insert(path.clone(), digest);
            Ok(())
        };
        let name = stream_digest(&changeset, &mut give)?;
        fill_in(&mut changeset, &self.hashed)?;
        Ok((changeset, name))
    }
}

/// Gives a new copy its mode and attributes.
fn finish_copy(dir: BorrowedFd, name: &[u8], mode: u32, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    for (attribute, value) in xattrs {
        file::set_xattr(dir, name, attribute, value)?;
    }
    file::chmod_at(dir, name, mode)
}

/// Sets the digest of each content, from the first name where a file has several.
fn fill_in(changeset: &mut Changeset, hashed: &BTreeMap<RootPath, Digest>) -> Result<()> {
    let mut groups: BTreeMap<u32, Digest> = BTreeMap::new();
    for (path, change) in &mut changeset.changes {
        let Some(Entry { node: Node::File { digest, group, .. }, .. }) = &mut change.now else { continue };
        let of_group = group.and_then(|group| groups.get(&group));
        *digest = *(hashed.get(path).or(of_group)).ok_or_else(|| Error::failed(format!("{path} was not read")))?;
        if let Some(group) = group {
            groups.entry(*group).or_insert(*digest);
        }
    }
    Ok(())
}

/// Reads a file once: for its digest, and for `put`.
fn hash(mut file: File, path: &RootPath, buffer: &mut Vec<u8>, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Digest> {
    buffer.resize(PIECE, 0);
    let mut hashing = Hashing::new(io::sink());
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(hashing.finish().1),
            Ok(n) => {
                hashing.write_all(&buffer[..n]).map_err(|e| Error::io("hash", path.as_path(), e))?;
                put(&buffer[..n])?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path.as_path(), e)),
        }
    }
}

const PIECE: usize = 256 << 10;

/// Names a changeset whose entries are all known: reads each content once for the canonical
/// stream. A content of another size than its entry says is an error.
pub fn digest_of(changeset: &Changeset, mut open: impl FnMut(&RootPath) -> Result<File>) -> Result<Digest> {
    let mut buffer = vec![0; PIECE];
    stream_digest(changeset, &mut |path, _, put| {
        let mut file = open(path)?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => put(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", path.as_path(), e)),
            }
        }
    })
}

/// Changesets up to this size are hashed on one thread: starting another takes longer.
const ONE_THREAD: u64 = 4 << 20;

/// The digest of a changeset's canonical stream.
pub fn stream_digest(changeset: &Changeset, give: &mut tar_writer::Give) -> Result<Digest> {
    let size: u64 = (changeset.changes.values())
        .map(|change| match &change.now {
            Some(Entry { node: Node::File { size, .. }, .. }) => *size,
            _ => 0,
        })
        .fold(0, u64::saturating_add);
    if size <= ONE_THREAD {
        return Ok(tar_writer::canonical(changeset, Hashing::new(io::sink()), give)?.finish().1);
    }
    std::thread::scope(|scope| {
        let (pieces, queue) = sync_channel::<Vec<u8>>(4);
        let (returns, spare) = sync_channel::<Vec<u8>>(6);
        let hashed = scope.spawn(move || hash_pieces(&queue, &returns));
        let sender = tar_writer::canonical(changeset, Pieces { piece: Vec::with_capacity(PIECE), pieces, spare }, give)?;
        sender.end()?;
        hashed.join().map_err(|_| Error::failed("the hashing thread ended early"))
    })
}

fn hash_pieces(queue: &Receiver<Vec<u8>>, returns: &SyncSender<Vec<u8>>) -> Digest {
    let mut hashing = Hashing::new(io::sink());
    while let Ok(mut piece) = queue.recv() {
        // A sink takes everything.
        let _ = hashing.write_all(&piece);
        piece.clear();
        let _ = returns.try_send(piece);
    }
    hashing.finish().1
}

/// Hands what is written to another thread, in pieces.
struct Pieces {
    piece: Vec<u8>,
    pieces: SyncSender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let next = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
        let full = std::mem::replace(&mut self.piece, next);
        self.pieces.send(full).map_err(|_| io::Error::other("the hashing thread ended early"))
    }

    fn end(mut self) -> Result<()> {
        self.send().map_err(|e| Error::io("hash", "changeset", e))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
