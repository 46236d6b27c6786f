//! Unpacks archives into a folder that is the root of something untrusted.
//!
//! Each entry is applied below the root's descriptor. A link in the name of an entry is resolved
//! inside the root, as it would be if the root were `/`: none is ever followed out of it. Owners,
//! modes of folders, devices and attributes are data ([`Owners`]); on disk everything belongs to
//! the caller, folders are writable until [`tree_of`] settles them, and devices are empty files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use nix::sys::stat::SFlag;

use super::decompress::decompress;
use super::tar_reader::{Item, Kind, Limits, read_tar};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Change, Changeset, Entry, Node, RootPath};

/// How an archive is applied.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// As dpkg does it: a folder entry onto a link to a folder keeps the link, and a folder that is
    /// there keeps its owner and mode.
    pub follow_folder_links: bool,
    /// `.wh.` names remove what earlier layers put there (OCI image layers), and an entry replaces
    /// a folder that is in its way.
    pub whiteouts: bool,
    /// Dropped from the front of each path; what is not below it is left out.
    pub strip_prefix: RootPath,
    /// Caps.
    pub limits: Limits,
}

/// What an archive says about a file and the disk does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, set-ID and sticky bits.
    pub mode: u32,
    /// Attributes that go into layers.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A device, which is an empty regular file on disk.
    pub device: Option<Node>,
    /// Content of a regular file, hashed as it was written.
    pub content: Option<(Digest, u64)>,
    /// A folder that was made because something in it was there; an entry of its own wins.
    pub implied: bool,
}

/// What was created, by its path without links in any part.
pub type Owners = BTreeMap<RootPath, Owner>;

/// Unpacks a tar stream, compressed or not, and adds what it created to `owners`. `on_path` is told
/// each entry's path as the archive has it.
pub fn unpack(reader: impl Read + Send, into: &Root, options: &Options, owners: &mut Owners, on_path: &mut dyn FnMut(&RootPath)) -> Result<()> {
    // Headers and padding come on top of the content.
    let most = options.limits.bytes.saturating_add(options.limits.entries.saturating_mul(4096));
    let plain = decompress(reader, most).map_err(|e| Error::failed(format!("the archive can't be read: {e}")))?;
    unpack_plain(plain, into, options, owners, on_path)
}

/// The same of a stream that isn't compressed.
pub fn unpack_plain(plain: impl Read, into: &Root, options: &Options, owners: &mut Owners, on_path: &mut dyn FnMut(&RootPath)) -> Result<()> {
    let mut unpacker = Unpacker::new(into, options, owners);
    read_tar(plain, &options.limits, &mut |item, content| {
        on_path(&item.path);
        unpacker.apply(item, content)
    })
}

/// Unpacks a zip file.
pub fn unpack_zip(zip: File, into: &Root, options: &Options, owners: &mut Owners) -> Result<()> {
    let bad = |e: zip::result::ZipError| Error::failed(format!("the zip file can't be read: {e}"));
    let mut zip = zip::ZipArchive::new(zip).map_err(bad)?;
    let limits = &options.limits;
    if zip.len() as u64 > limits.entries {
        return Err(Error::failed(format!("the zip file has more than {} entries", limits.entries)));
    }
    let mut unpacker = Unpacker::new(into, options, owners);
    let mut left = limits.bytes;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(bad)?;
        if entry.encrypted() {
            return Err(Error::failed("the zip file is encrypted"));
        }
        let item = zip_item(&mut entry, limits.depth)?;
        // The size in the directory is a claim: the cap counts what comes out.
        let mut capped = (&mut entry).take(left + 1);
        unpacker.apply(item, &mut capped)?;
        left = capped.limit().checked_sub(1).ok_or_else(|| Error::failed(format!("the zip file holds more than {} bytes", limits.bytes)))?;
    }
    Ok(())
}

/// Is it a zip file? (It begins with a local header, or is empty.)
pub fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

fn zip_item(entry: &mut zip::read::ZipFile<'_, File>, depth: usize) -> Result<Item> {
    let path = RootPath::new(entry.name_raw())?;
    if path.as_bytes().split(|b| *b == b'/').count() > depth {
        return Err(Error::failed(format!("{path} has more than {depth} parts")));
    }
    let unix = entry.unix_mode();
    let kind = match unix.map(|mode| mode & libc::S_IFMT) {
        Some(libc::S_IFLNK) => {
            let mut target = vec![];
            entry.take(4096).read_to_end(&mut target).map_err(|e| Error::failed(format!("{path}: {e}")))?;
            if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                return Err(Error::failed(format!("{path} is a symbolic link without a target")));
            }
            Kind::Link(target)
        }
        _ if entry.is_dir() => Kind::Folder,
        None | Some(0 | libc::S_IFREG) => Kind::File(entry.size()),
        Some(_) => return Err(Error::failed(format!("{path} is neither a file, a folder nor a link"))),
    };
    let usual = if kind == Kind::Folder { 0o755 } else { 0o644 };
    let mode = unix.map(|m| m & 0o7777).filter(|m| *m != 0).unwrap_or(usual);
    Ok(Item { path, kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() })
}

/// A folder that entries are put in.
struct Folder {
    fd: OwnedFd,
    path: RootPath,
}

/// How many folders are kept open.
const KEPT_OPEN: usize = 64;

struct Unpacker<'a> {
    into: &'a Root,
    options: &'a Options,
    owners: &'a mut Owners,
    /// What this archive made: whiteouts don't apply to it.
    created: BTreeSet<RootPath>,
    /// By the path as the archive writes it.
    folders: BTreeMap<RootPath, Rc<Folder>>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(into: &'a Root, options: &'a Options, owners: &'a mut Owners) -> Self {
        Self { into, options, owners, created: BTreeSet::new(), folders: BTreeMap::new(), buffer: vec![0; 256 * 1024] }
    }

    fn apply(&mut self, mut item: Item, content: &mut dyn Read) -> Result<()> {
        let Some(path) = stripped(&item.path, &self.options.strip_prefix) else { return Ok(()) };
        if path.is_root() {
            return match item.kind {
                Kind::Folder => Ok(()),
                _ => Err(Error::failed("the root of the archive is not a folder")),
            };
        }
        item.path = path;
        let folder = self.folder(&item.path.parent().unwrap_or_default())?;
        let name = item.path.name().to_vec();
        if self.options.whiteouts && name.starts_with(b".wh.") {
            return self.white_out(&folder, &name);
        }
        let path = folder.path.join(&name)?;
        let content = match &item.kind {
            Kind::Folder => return self.add_folder(&folder, &name, path, &item),
            Kind::HardLink(target) => return self.add_hard_link(&folder, &name, path, target),
            Kind::File(_) => {
                let file = self.create(&folder, &name)?;
                let (file, digest, size) = self.write(file, content).map_err(|e| Error::io("write", path.below(self.into.path()), e))?;
                let mode = std::fs::Permissions::from_mode(item.mode);
                file.set_permissions(mode).map_err(|e| Error::io("fchmod", path.below(self.into.path()), e))?;
                Some((digest, size))
            }
            Kind::Link(target) => {
                self.make_room(&folder, &name)?;
                file::symlink_at(target, folder.fd.as_fd(), &name)?;
                None
            }
            Kind::Fifo => {
                self.make_room(&folder, &name)?;
                file::mkfifo_at(folder.fd.as_fd(), &name, item.mode)?;
                None
            }
            Kind::Device { .. } => {
                self.make_room(&folder, &name)?;
                file::create_file_at(folder.fd.as_fd(), &name, item.mode & 0o777)?;
                None
            }
        };
        self.record(path, owner(&item, content)?);
        Ok(())
    }

    fn record(&mut self, path: RootPath, owner: Owner) {
        if self.options.whiteouts {
            self.created.insert(path.clone());
        }
        self.owners.insert(path, owner);
    }

    /// The folder of that name, made with those above it when it isn't there.
    fn folder(&mut self, path: &RootPath) -> Result<Rc<Folder>> {
        if let Some(folder) = self.folders.get(path) {
            return Ok(folder.clone());
        }
        let (fd, canonical) = match self.into.folder_following(path) {
            Ok(found) => found,
            Err(error) => {
                let Some(parent) = path.parent() else { return Err(error) };
                let parent = self.folder(&parent)?;
                self.make_implied(&parent, path.name())?;
                self.into.folder_following(path)?
            }
        };
        if self.folders.len() >= KEPT_OPEN {
            self.folders.clear();
        }
        let folder = Rc::new(Folder { fd, path: canonical });
        self.folders.insert(path.clone(), folder.clone());
        Ok(folder)
    }

    fn make_implied(&mut self, parent: &Folder, name: &[u8]) -> Result<()> {
        match file::stat_at(parent.fd.as_fd(), name)? {
            // Another thread made it, or it is a link, which the caller follows.
            Some(stat) if matches!(file::kind(&stat), SFlag::S_IFDIR | SFlag::S_IFLNK) => return Ok(()),
            Some(_) if self.options.whiteouts => self.make_room(parent, name)?,
            _ => {}
        }
        make_folder(parent.fd.as_fd(), name)?;
        let implied = Owner { uid: 0, gid: 0, mode: 0o755, xattrs: BTreeMap::new(), device: None, content: None, implied: true };
        self.record(parent.path.join(name)?, implied);
        Ok(())
    }

    fn add_folder(&mut self, folder: &Folder, name: &[u8], path: RootPath, item: &Item) -> Result<()> {
        let kind = file::stat_at(folder.fd.as_fd(), name)?.map(|stat| file::kind(&stat));
        match kind {
            Some(SFlag::S_IFDIR) => {}
            Some(SFlag::S_IFLNK) if self.options.follow_folder_links && self.into.folder_following(&item.path).is_ok() => return Ok(()),
            Some(_) => {
                self.make_room(folder, name)?;
                make_folder(folder.fd.as_fd(), name)?;
            }
            None => make_folder(folder.fd.as_fd(), name)?,
        }
        let known = self.owners.get(&path).is_some_and(|known| !known.implied);
        if !(known && self.options.follow_folder_links) {
            self.record(path, owner(item, None)?);
        }
        Ok(())
    }

    fn add_hard_link(&mut self, folder: &Folder, name: &[u8], path: RootPath, target: &RootPath) -> Result<()> {
        let missing = || Error::failed(format!("{path} is a hard link to {target}, which the archive does not hold before it"));
        let target = stripped(target, &self.options.strip_prefix).filter(|t| !t.is_root()).ok_or_else(missing)?;
        let (from, from_path) = self.into.folder_following(&target.parent().unwrap_or_default()).map_err(|_| missing())?;
        let from_path = from_path.join(target.name())?;
        let stat = file::stat_at(from.as_fd(), target.name())?.filter(|stat| file::kind(stat) != SFlag::S_IFDIR).ok_or_else(missing)?;
        if from_path == path {
            return Ok(());
        }
        let shared = self.owners.get(&from_path).cloned().ok_or_else(missing)?;
        self.make_room(folder, name)?;
        // Making room may have removed a folder with the target in it; the kernel says so here.
        let _ = stat;
        file::link_at(from.as_fd(), target.name(), folder.fd.as_fd(), name)?;
        self.record(path, shared);
        Ok(())
    }

    /// A new file; what was there under its name is gone.
    fn create(&mut self, folder: &Folder, name: &[u8]) -> Result<File> {
        match file::create_file_at(folder.fd.as_fd(), name, 0o600) {
            Ok(file) => Ok(file),
            Err(error) => {
                if file::stat_at(folder.fd.as_fd(), name)?.is_none() {
                    return Err(error);
                }
                self.make_room(folder, name)?;
                file::create_file_at(folder.fd.as_fd(), name, 0o600)
            }
        }
    }

    fn write(&mut self, file: File, content: &mut dyn Read) -> io::Result<(File, Digest, u64)> {
        let mut hashing = Hashing::new(file);
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => return Ok(hashing.finish()),
                Ok(n) => hashing.write_all(&self.buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Removes what has this name. A folder goes only where a layer may replace it, or when it is empty.
    fn make_room(&mut self, folder: &Folder, name: &[u8]) -> Result<()> {
        let Some(stat) = file::stat_at(folder.fd.as_fd(), name)? else { return Ok(()) };
        let path = folder.path.join(name)?;
        if file::kind(&stat) != SFlag::S_IFDIR {
            file::unlink_at(folder.fd.as_fd(), name)?;
        } else if self.options.whiteouts {
            file::remove_tree_at(folder.fd.as_fd(), name)?;
        } else {
            return Err(Error::failed(format!("{path} is a folder, and an entry of the archive would replace it")));
        }
        self.folders.clear();
        self.forget(&path);
        Ok(())
    }

    fn forget(&mut self, path: &RootPath) {
        let gone: Vec<_> = self.owners.range(path.clone()..).map(|(p, _)| p).take_while(|p| p.starts_with(path)).cloned().collect();
        for path in gone {
            self.created.remove(&path);
            self.owners.remove(&path);
        }
    }

    /// image-spec layer.md, "Whiteouts": they apply to what earlier layers put there, whatever the order.
    fn white_out(&mut self, folder: &Folder, name: &[u8]) -> Result<()> {
        match &name[4..] {
            b".wh..opq" => {
                for child in file::list(folder.fd.as_fd())? {
                    self.remove_earlier(folder, &child)?;
                }
                Ok(())
            }
            b"" | b"." | b".." => Err(Error::failed(format!("a whiteout without a name in {}", folder.path))),
            hidden => self.remove_earlier(folder, hidden),
        }
    }

    fn remove_earlier(&mut self, folder: &Folder, name: &[u8]) -> Result<()> {
        let path = folder.path.join(name)?;
        let Some(stat) = file::stat_at(folder.fd.as_fd(), name)? else { return Ok(()) };
        let is_folder = file::kind(&stat) == SFlag::S_IFDIR;
        let kept = self.created.range(path.clone()..).next().is_some_and(|p| p.starts_with(&path));
        if kept && is_folder {
            let inner = Folder { fd: file::open_folder_at(folder.fd.as_fd(), name)?, path };
            for child in file::list(inner.fd.as_fd())? {
                self.remove_earlier(&inner, &child)?;
            }
        } else if !kept {
            file::remove_tree_at(folder.fd.as_fd(), name)?;
            self.folders.clear();
            self.forget(&path);
        }
        Ok(())
    }
}

/// A folder of the caller's; another thread may have made it in the meantime.
fn make_folder(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    let Err(error) = file::mkdir_at(dir, name, 0o755) else { return Ok(()) };
    match file::stat_at(dir, name)? {
        Some(stat) if file::kind(&stat) == SFlag::S_IFDIR => Ok(()),
        _ => Err(error),
    }
}

fn stripped(path: &RootPath, prefix: &RootPath) -> Option<RootPath> {
    if !path.starts_with(prefix) {
        return None;
    }
    RootPath::new(&path.as_bytes()[prefix.as_bytes().len()..]).ok()
}

fn owner(item: &Item, content: Option<(Digest, u64)>) -> Result<Owner> {
    let device = match item.kind {
        Kind::Device { character, major, minor } => Some(Node::Device { character, major, minor }),
        _ => None,
    };
    let mode = if matches!(item.kind, Kind::Link(_)) { 0o777 } else { item.mode };
    Ok(Owner { uid: item.uid, gid: item.gid, mode, xattrs: kept_xattrs(&item.xattrs), device, content, implied: false })
}

/// Those that go into layers: file capabilities as version 2, and the users' own, but for those
/// with which overlay mounts speak to themselves.
pub fn kept_xattrs(all: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut kept = BTreeMap::new();
    for (name, value) in all {
        if name.as_slice() == b"security.capability" {
            kept.insert(name.clone(), capability_version_2(value));
        } else if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// A version 3 capability names the root of a user namespace at its end (capabilities(7)).
fn capability_version_2(value: &[u8]) -> Vec<u8> {
    match value {
        [flags, _, _, 3, rest @ ..] if rest.len() == 20 => [&[*flags, 0, 0, 2], &rest[..16]].concat(),
        _ => value.to_vec(),
    }
}

/// Settles an unpacked folder and says what is in it: a complete changeset, every entry an addition.
///
/// Modes of folders become what `owners` says, every time becomes `time`, and names that are hard
/// linked become separate files with the same content (the changeset records the group).
pub fn tree_of(folder: &Root, owners: &Owners, time: i64) -> Result<Changeset> {
    let mut walk = Walk { owners, time, changes: BTreeMap::new(), linked: BTreeMap::new() };
    let fd = folder.folder(&RootPath::root())?;
    walk.folder(fd.as_fd(), &RootPath::root())?;
    // By their first name: inodes differ from run to run.
    let mut groups: Vec<_> = walk.linked.into_values().filter(|paths| paths.len() > 1).collect();
    groups.sort();
    for (number, paths) in (0..).zip(&groups) {
        for path in paths {
            if let Some(Change { now: Some(Entry { node: Node::File { group, .. }, .. }), .. }) = walk.changes.get_mut(path) {
                *group = Some(number);
            }
        }
        for path in &paths[1..] {
            separate(folder, path, time)?;
        }
    }
    Ok(Changeset { time, changes: walk.changes })
}

/// Replaces a hard-linked name by a copy of its file.
fn separate(root: &Root, path: &RootPath, time: i64) -> Result<()> {
    let dir = root.folder(&path.parent().unwrap_or_default())?;
    let host = path.below(root.path());
    let from = file::open_regular_at(dir.as_fd(), path.name())?;
    let mode = from.metadata().map_err(|e| Error::io("fstat", &host, e))?.permissions();
    file::unlink_at(dir.as_fd(), path.name())?;
    let to = file::create_file_at(dir.as_fd(), path.name(), 0o600)?;
    file::reflink_or_copy(&from, &to).map_err(|e| Error::io("copy", &host, e))?;
    to.set_permissions(mode).map_err(|e| Error::io("fchmod", &host, e))?;
    file::set_mtime_at(dir.as_fd(), path.name(), time)?;
    if let Some(parent) = path.parent().filter(|p| !p.is_root()) {
        let above = root.folder(&parent.parent().unwrap_or_default())?;
        file::set_mtime_at(above.as_fd(), parent.name(), time)?;
    }
    Ok(())
}

struct Walk<'a> {
    owners: &'a Owners,
    time: i64,
    changes: BTreeMap<RootPath, Change>,
    /// Names by inode.
    linked: BTreeMap<(u64, u64), Vec<RootPath>>,
}

impl Walk<'_> {
    fn folder(&mut self, dir: BorrowedFd, path: &RootPath) -> Result<()> {
        for name in file::list(dir)? {
            let path = path.join(&name)?;
            let stat = file::stat_at(dir, &name)?.ok_or_else(|| Error::io("stat", file::shown(dir, &name), io::Error::from_raw_os_error(libc::ENOENT)))?;
            let owner = self.owners.get(&path);
            let entry = Entry {
                mode: owner.map_or(stat.st_mode & 0o7777, |o| o.mode),
                uid: owner.map_or(0, |o| o.uid),
                gid: owner.map_or(0, |o| o.gid),
                xattrs: owner.map(|o| o.xattrs.clone()).unwrap_or_default(),
                node: node(dir, &name, &stat, owner)?,
            };
            let mode = entry.mode;
            let is_folder = entry.is_folder();
            if stat.st_nlink > 1 && matches!(entry.node, Node::File { .. }) {
                self.linked.entry((stat.st_dev, stat.st_ino)).or_default().push(path.clone());
            }
            self.changes.insert(path.clone(), Change { was: None, now: Some(entry) });
            if is_folder {
                let inner = file::open_folder_at(dir, &name)?;
                self.folder(inner.as_fd(), &path)?;
                if stat.st_mode & 0o7777 != mode {
                    file::chmod_at(dir, &name, mode)?;
                }
            }
            file::set_mtime_at(dir, &name, self.time)?;
        }
        Ok(())
    }
}

fn node(dir: BorrowedFd, name: &[u8], stat: &nix::sys::stat::FileStat, owner: Option<&Owner>) -> Result<Node> {
    if let Some(device) = owner.and_then(|o| o.device.clone()) {
        return Ok(device);
    }
    Ok(match file::kind(stat) {
        SFlag::S_IFDIR => Node::Folder,
        SFlag::S_IFLNK => Node::Link { target: file::read_link_at(dir, name)? },
        SFlag::S_IFIFO => Node::Fifo,
        SFlag::S_IFSOCK => Node::Socket,
        SFlag::S_IFREG => {
            let (digest, size) = match owner.and_then(|o| o.content) {
                Some(known) => known,
                None => Digest::of_reader(file::open_regular_at(dir, name)?).map_err(|e| Error::io("read", file::shown(dir, name), e))?,
            };
            Node::File { size, digest, group: None }
        }
        _ => return Err(Error::failed(format!("{} is a device", file::shown(dir, name).display()))),
    })
}
