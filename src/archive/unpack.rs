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
use super::holes::WithHoles;
use super::kept;
use super::tar_reader::{Item, Kind, Limits, read_tar};
use crate::archive::access_list::{self, ACLS};
use crate::archive::kept::give_attribute;
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
pub fn unpack(
    reader: impl Read + Send,
    into: &Root,
    options: &Options,
    owners: &mut Owners,
    on_path: &mut dyn FnMut(&RootPath),
) -> Result<()> {
    // Headers and padding come on top of the content.
    let most = options.limits.bytes.saturating_add(options.limits.entries.saturating_mul(4096));
    let plain = decompress(reader, most).map_err(|e| Error::failed(format!("the archive can't be read: {e}")))?;
    unpack_plain(plain, into, options, owners, on_path)
}

/// The same of a stream that isn't compressed.
pub fn unpack_plain(
    plain: impl Read,
    into: &Root,
    options: &Options,
    owners: &mut Owners,
    on_path: &mut dyn FnMut(&RootPath),
) -> Result<()> {
    let mut unpacker = Unpacker::new(into, options, owners);
    read_tar(plain, &options.limits, &mut |item, content| {
        on_path(&item.path);
        unpacker.apply(item, content)
    })
}

/// Unpacks a zip file.
pub fn unpack_zip(zip: impl Read + io::Seek, into: &Root, options: &Options, owners: &mut Owners) -> Result<()> {
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
        left = capped
            .limit()
            .checked_sub(1)
            .ok_or_else(|| Error::failed(format!("the zip file holds more than {} bytes", limits.bytes)))?;
    }
    Ok(())
}

/// Is it a zip file? (It begins with a local header, or is empty.)
pub fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

fn zip_item(entry: &mut zip::read::ZipFile<'_, impl Read>, depth: usize) -> Result<Item> {
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

/// No root filesystem has more bytes in names beyond the first of a file.
const LINKED: u64 = 2 << 30;

struct Unpacker<'a> {
    into: &'a Root,
    options: &'a Options,
    owners: &'a mut Owners,
    /// What this archive made: whiteouts don't apply to it.
    created: BTreeSet<RootPath>,
    /// By the path as the archive writes it.
    folders: BTreeMap<RootPath, Rc<Folder>>,
    /// Bytes of hard-linked names, each of which becomes a file of its own.
    linked: u64,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(into: &'a Root, options: &'a Options, owners: &'a mut Owners) -> Self {
        Self {
            into,
            options,
            owners,
            created: BTreeSet::new(),
            folders: BTreeMap::new(),
            linked: 0,
            buffer: vec![0; 256 * 1024],
        }
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
                let (file, digest, size) =
                    self.write(file, content).map_err(|e| Error::io("write", path.below(self.into.path()), e))?;
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
        let implied =
            Owner { uid: 0, gid: 0, mode: 0o755, xattrs: BTreeMap::new(), device: None, content: None, implied: true };
        self.record(parent.path.join(name)?, implied);
        Ok(())
    }

    fn add_folder(&mut self, folder: &Folder, name: &[u8], path: RootPath, item: &Item) -> Result<()> {
        let kind = file::stat_at(folder.fd.as_fd(), name)?.map(|stat| file::kind(&stat));
        match kind {
            Some(SFlag::S_IFDIR) => {}
            Some(SFlag::S_IFLNK)
                if self.options.follow_folder_links && self.into.folder_following(&item.path).is_ok() =>
            {
                return Ok(());
            }
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
        let missing =
            || Error::failed(format!("{path} is a hard link to {target}, which the archive does not hold before it"));
        let target = stripped(target, &self.options.strip_prefix).filter(|t| !t.is_root()).ok_or_else(missing)?;
        let (from, from_path) =
            self.into.folder_following(&target.parent().unwrap_or_default()).map_err(|_| missing())?;
        let from_path = from_path.join(target.name())?;
        let stat = file::stat_at(from.as_fd(), target.name())?
            .filter(|stat| file::kind(stat) != SFlag::S_IFDIR)
            .ok_or_else(missing)?;
        if from_path == path {
            return Ok(());
        }
        let shared = self.owners.get(&from_path).cloned().ok_or_else(missing)?;
        self.make_room(folder, name)?;
        // Each name becomes a file of its own later, so a small archive could fill the disk with them.
        self.linked = self.linked.saturating_add(stat.st_size.try_into().unwrap_or(0));
        if self.linked > LINKED {
            return Err(Error::failed(format!("its hard links stand for more than {} GiB of files", LINKED >> 30)));
        }
        // Making room may have removed a folder with the target in it; the kernel says so here.
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
        let mut hashing = Hashing::new(WithHoles::new(file));
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => {
                    let (file, digest, size) = hashing.finish();
                    return Ok((file.finish()?, digest, size));
                }
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
        let gone: Vec<_> =
            self.owners.range(path.clone()..).map(|(p, _)| p).take_while(|p| p.starts_with(path)).cloned().collect();
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

/// Those that go into layers: file capabilities as version 2, access control lists, and the users' own, but for
/// those with which overlay mounts speak to themselves.
pub fn kept_xattrs(all: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut kept = BTreeMap::new();
    for (name, value) in all {
        if name.as_slice() == b"security.capability" {
            kept.insert(name.clone(), capability_version_2(value));
        } else if (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || (ACLS.contains(&name.as_slice()) && !access_list::is_the_mode(name, value))
        {
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
/// linked become separate files with the same content (the changeset records the group). Attributes
/// are given to the files where they can have some; one that would mean somebody else is an error.
pub fn tree_of(folder: &Root, owners: &Owners, time: i64) -> Result<Changeset> {
    let mut walk = Walk { owners, time, changes: BTreeMap::new(), linked: BTreeMap::new() };
    let fd = folder.folder(&RootPath::root())?;
    walk.folder(fd.as_fd(), &RootPath::root())?;
    // By their first name: inodes differ from run to run.
    let mut groups: Vec<_> = walk.linked.into_values().filter(|paths| paths.len() > 1).collect();
    groups.sort();
    for (number, paths) in (0..).zip(&groups) {
        for path in paths {
            if let Some(Change { now: Some(Entry { node: Node::File { group, .. }, .. }), .. }) =
                walk.changes.get_mut(path)
            {
                *group = Some(number);
            }
        }
        for path in &paths[1..] {
            separate(folder, path, time)?;
        }
    }
    for (path, change) in &walk.changes {
        let Some(entry) = change.now.as_ref().filter(|entry| !entry.xattrs.is_empty()) else { continue };
        let dir = folder.folder(&path.parent().unwrap_or_default())?;
        for (attribute, value) in &entry.xattrs {
            if ACLS.contains(&attribute.as_slice()) && !access_list::is_valid(value) {
                return Err(Error::failed(format!("{path} has an access control list that no kernel takes"))
                    .why("it lacks an entry, has one that nobody knows, or names somebody who is not mapped here")
                    .next(
                        "take it away where it comes from (setfacl -b FILE), or make the archive with tar --no-acls",
                    ));
            }
            // Without an overlay the store may lie where there are none: then they are data alone.
            let _ = give_attribute(dir.as_fd(), path.name(), attribute, value);
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
    file::set_times_at(dir.as_fd(), path.name(), kept::mark(path, time), time)?;
    if let Some(parent) = path.parent().filter(|p| !p.is_root()) {
        let above = root.folder(&parent.parent().unwrap_or_default())?;
        file::set_times_at(above.as_fd(), parent.name(), kept::mark(&parent, time), time)?;
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
            let stat = file::stat_at(dir, &name)?.ok_or_else(|| {
                Error::io("stat", file::shown(dir, &name), io::Error::from_raw_os_error(libc::ENOENT))
            })?;
            let owner = self.owners.get(&path);
            let entry = Entry {
                mode: owner.map_or(stat.st_mode & 0o7777, |o| o.mode),
                uid: owner.map_or(0, |o| o.uid),
                gid: owner.map_or(0, |o| o.gid),
                xattrs: owner.map(|o| o.xattrs.clone()).unwrap_or_default(),
                node: node(dir, &name, &stat, owner)?,
            };
            let (mode, node) = (entry.mode, entry.node.clone());
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
            kept::settle(dir, &path, &node, self.time)?;
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
                None => Digest::of_reader(file::open_regular_at(dir, name)?)
                    .map_err(|e| Error::io("read", file::shown(dir, name), e))?,
            };
            Node::File { size, digest, group: None }
        }
        _ => return Err(Error::failed(format!("{} is a device", file::shown(dir, name).display()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tar_reader::tests::{archive, entry, header, pax};

    /// A folder `root` in a folder with a file `secret` beside it.
    struct Here {
        temp: tempfile::TempDir,
    }

    impl Here {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            std::fs::create_dir(temp.path().join("root")).unwrap();
            std::fs::write(temp.path().join("secret"), "untouched").unwrap();
            Self { temp }
        }

        fn root(&self) -> Root {
            Root::open(&self.temp.path().join("root")).unwrap()
        }

        fn apply(&self, options: &Options, owners: &mut Owners, parts: &[Vec<u8>]) -> Result<()> {
            unpack(archive(parts).as_slice(), &self.root(), options, owners, &mut |_| {})
        }

        fn unpack(&self, options: &Options, parts: &[Vec<u8>]) -> Result<BTreeMap<String, Entry>> {
            let mut owners = Owners::new();
            self.apply(options, &mut owners, parts)?;
            self.tree(&owners)
        }

        fn tree(&self, owners: &Owners) -> Result<BTreeMap<String, Entry>> {
            let tree = tree_of(&self.root(), owners, 1000)?;
            Ok(tree.changes.into_iter().map(|(path, change)| (path.to_string(), change.now.unwrap())).collect())
        }

        fn nothing_outside_changed(&self) {
            assert_eq!(std::fs::read_to_string(self.temp.path().join("secret")).unwrap(), "untouched");
            assert_eq!(std::fs::read_dir(self.temp.path()).unwrap().count(), 2);
        }
    }

    fn link(kind: u8, name: &str, target: &str) -> Vec<u8> {
        let mut header = header(kind, name, 0);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        entry(&header, b"")
    }

    fn file(name: &str, content: &str) -> Vec<u8> {
        entry(&header(b'0', name, content.len() as u64), content.as_bytes())
    }

    fn folder(name: &str) -> Vec<u8> {
        let mut header = header(b'5', name, 0);
        header.set_mode(0o755);
        header.set_cksum();
        entry(&header, b"")
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        for target in ["..", "../..", "/..", "../../../../../../tmp"] {
            let here = Here::new();
            let outcome = here.unpack(&Options::default(), &[link(b'2', "a", target), file("a/secret", "changed")]);
            here.nothing_outside_changed();
            drop(outcome);
        }
        for (first, second) in
            [(link(b'2', "s", "../secret"), file("s", "changed")), (link(b'2', "s", "../secret"), link(b'1', "h", "s"))]
        {
            let here = Here::new();
            let tree = here.unpack(&Options::default(), &[first, second]).unwrap();
            here.nothing_outside_changed();
            assert!(tree.contains_key("/s"));
        }
    }

    #[test]
    fn a_hard_link_out_of_the_root_is_an_error() {
        let here = Here::new();
        for target in ["../secret", "/secret", "missing", "."] {
            assert!(here.unpack(&Options::default(), &[link(b'1', "h", target)]).is_err(), "{target}");
        }
        let through = [link(b'2', "up", ".."), link(b'1', "h", "up/secret")];
        assert!(here.unpack(&Options::default(), &through).is_err());
        here.nothing_outside_changed();
    }

    #[test]
    fn the_root_itself_can_not_be_replaced() {
        for name in [".", "/", "./"] {
            let here = Here::new();
            assert!(here.unpack(&Options::default(), &[link(b'2', name, "../x")]).is_err(), "{name:?}");
            here.nothing_outside_changed();
        }
        let here = Here::new();
        assert!(here.unpack(&Options::default(), &[folder("./"), file("./a", "x")]).is_ok());
    }

    #[test]
    fn owners_modes_devices_and_attributes_are_data() {
        let here = Here::new();
        let mut su = header(b'0', "su", 1);
        su.set_mode(0o4755);
        su.set_uid(33);
        su.set_gid(44);
        su.set_cksum();
        let mut null = header(b'3', "null", 0);
        null.set_device_major(1).unwrap();
        null.set_device_minor(3).unwrap();
        null.set_cksum();
        let capability = [&[1u8, 0, 0, 3][..], &[0; 16], &[9, 9, 9, 9]].concat();
        let attributes = pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.x", b"1"),
        ]);
        let mut closed = header(b'5', "closed", 0);
        closed.set_mode(0);
        closed.set_cksum();
        let tree = here
            .unpack(
                &Options::default(),
                &[
                    attributes,
                    entry(&su, b"x"),
                    entry(&null, b""),
                    entry(&closed, b""),
                    file("closed/x", "1"),
                    entry(&header(b'6', "fifo", 0), b""),
                ],
            )
            .unwrap();
        assert_eq!((tree["/su"].mode, tree["/su"].uid, tree["/su"].gid), (0o4755, 33, 44));
        assert_eq!(
            tree["/su"].xattrs.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect::<Vec<_>>(),
            ["security.capability", "user.a"]
        );
        assert_eq!(tree["/su"].xattrs[&b"security.capability"[..]], [&[1u8, 0, 0, 2][..], &[0; 16]].concat());
        assert_eq!(tree["/null"].node, Node::Device { character: true, major: 1, minor: 3 });
        assert_eq!(std::fs::metadata(here.root().path().join("null")).unwrap().len(), 0);
        assert_eq!(tree["/closed"].mode, 0);
        assert_eq!(
            std::fs::symlink_metadata(here.root().path().join("closed")).unwrap().permissions().mode() & 0o7777,
            0
        );
        assert_eq!(tree["/closed/x"], Entry::file(b"1", 0o644));
        assert_eq!(tree["/fifo"].node, Node::Fifo);
        let time = |name: &str| {
            std::os::unix::fs::MetadataExt::mtime(&std::fs::symlink_metadata(here.root().path().join(name)).unwrap())
        };
        assert!(["su", "null", "closed", "fifo"].iter().all(|name| time(name) == 1000));
    }

    #[test]
    fn linked_names_are_one_group_and_separate_files() {
        let here = Here::new();
        let tree = here
            .unpack(
                &Options::default(),
                &[file("z", "zz"), link(b'1', "y", "z"), file("b", "bb"), link(b'1', "d/c", "/b"), file("alone", "x")],
            )
            .unwrap();
        let group = |name: &str| match tree[name].node {
            Node::File { group, .. } => group,
            _ => panic!("{name} is no file"),
        };
        assert_eq!(
            (group("/b"), group("/d/c"), group("/y"), group("/z"), group("/alone")),
            (Some(0), Some(0), Some(1), Some(1), None)
        );
        let metadata = |name: &str| std::fs::metadata(here.root().path().join(name)).unwrap();
        for name in ["b", "d/c", "y", "z"] {
            assert_eq!(std::os::unix::fs::MetadataExt::nlink(&metadata(name)), 1, "{name}");
            assert_eq!(std::os::unix::fs::MetadataExt::mtime(&metadata(name)), 1000, "{name}");
        }
        assert_eq!(std::fs::read(here.root().path().join("y")).unwrap(), b"zz");
    }

    #[test]
    fn a_folder_onto_a_link_keeps_it_only_as_dpkg_does() {
        for (follow, expected) in [(true, Node::Link { target: b"usr/lib".to_vec() }), (false, Node::Folder)] {
            let here = Here::new();
            let options = Options { follow_folder_links: follow, ..Options::default() };
            let tree = here
                .unpack(
                    &options,
                    &[folder("usr/lib"), link(b'2', "lib", "usr/lib"), folder("lib/"), file("lib/x", "1")],
                )
                .unwrap();
            assert_eq!(tree["/lib"].node, expected);
            assert_eq!(tree.contains_key("/usr/lib/x"), follow);
        }
    }

    #[test]
    fn a_folder_is_never_replaced_by_a_plain_archive() {
        let here = Here::new();
        assert!(here.unpack(&Options::default(), &[file("a/b", "1"), file("a", "2")]).is_err());
        assert!(here.unpack(&Options::default(), &[file("f", "1"), file("f/x", "2")]).is_err(), "a file in a file");
    }

    #[test]
    fn a_prefix_is_dropped_and_what_is_not_below_it_left_out() {
        let here = Here::new();
        let options = Options { strip_prefix: RootPath::new("zlib-1.3").unwrap(), ..Options::default() };
        let tree = here
            .unpack(
                &options,
                &[
                    folder("zlib-1.3"),
                    file("zlib-1.3/a", "1"),
                    link(b'1', "zlib-1.3/b", "zlib-1.3/a"),
                    file("other", "2"),
                    file("zlib-1.30", "3"),
                ],
            )
            .unwrap();
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["/a", "/b"]);
    }

    #[test]
    fn whiteouts_hide_earlier_layers_alone_whatever_the_order() {
        let here = Here::new();
        let options = Options { whiteouts: true, ..Options::default() };
        let mut owners = Owners::new();
        here.apply(
            &options,
            &mut owners,
            &[
                file("a/old", "1"),
                file("a/both", "1"),
                file("gone/x", "1"),
                file("kept", "1"),
                link(b'2', "l", "a"),
                file("f", "1"),
                file("d/deep/x", "1"),
            ],
        )
        .unwrap();
        here.apply(
            &options,
            &mut owners,
            &[
                file("a/both", "2"),
                file("a/new", "2"),
                file("a/.wh..wh..opq", ""),
                file(".wh.gone", ""),
                file(".wh.never", ""),
                folder("l"),
                folder("f"),
                file("d/deep/y", "2"),
                file("d/.wh.deep", ""),
            ],
        )
        .unwrap();
        let tree = here.tree(&owners).unwrap();
        assert_eq!(
            tree.keys().collect::<Vec<_>>(),
            ["/a", "/a/both", "/a/new", "/d", "/d/deep", "/d/deep/y", "/f", "/kept", "/l"]
        );
        assert_eq!(tree["/a/both"], Entry::file(b"2", 0o644));
        assert!(tree["/l"].is_folder() && tree["/f"].is_folder());
        assert!(
            here.apply(&options, &mut owners, &[file("a/.wh...", "")]).is_err()
                && here.apply(&options, &mut owners, &[file("a/.wh.", "")]).is_err()
        );
        here.nothing_outside_changed();
    }

    #[test]
    fn without_layers_such_a_name_is_a_file_like_any_other() {
        let here = Here::new();
        let tree = here.unpack(&Options::default(), &[file("x", "1"), file(".wh.x", "")]).unwrap();
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["/.wh.x", "/x"]);
    }

    #[test]
    fn a_zip_file_is_unpacked_with_modes_and_links_and_never_outside() {
        use std::io::Seek;
        use zip::write::SimpleFileOptions;
        let zip = |names: &[(&str, u32, &str)]| {
            let mut out = zip::ZipWriter::new(tempfile::tempfile().unwrap());
            for (name, mode, content) in names {
                if mode & libc::S_IFMT == libc::S_IFLNK {
                    out.add_symlink(*name, *content, SimpleFileOptions::default()).unwrap();
                } else {
                    out.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
                    out.write_all(content.as_bytes()).unwrap();
                }
            }
            let mut file = out.finish().unwrap();
            file.rewind().unwrap();
            file
        };
        let here = Here::new();
        let mut owners = Owners::new();
        unpack_zip(
            zip(&[("d/run", 0o755, "x"), ("l", libc::S_IFLNK, "d/run")]),
            &here.root(),
            &Options::default(),
            &mut owners,
        )
        .unwrap();
        let tree = here.tree(&owners).unwrap();
        assert_eq!((&tree["/d/run"], &tree["/l"]), (&Entry::file(b"x", 0o755), &Entry::link("d/run")));
        for bad in [
            zip(&[("../secret", 0o644, "changed")]),
            zip(&[("up", libc::S_IFLNK, ".."), ("up/../../secret", 0o644, "changed")]),
        ] {
            assert!(unpack_zip(bad, &here.root(), &Options::default(), &mut Owners::new()).is_err());
        }
        let small = Options { limits: Limits { bytes: 10, ..Limits::default() }, ..Options::default() };
        assert!(
            unpack_zip(zip(&[("a", 0o644, "12345"), ("b", 0o644, "123456")]), &here.root(), &small, &mut Owners::new())
                .is_err()
        );
        here.nothing_outside_changed();
    }
}
