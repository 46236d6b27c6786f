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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use super::diff::{Captured, Options, compare};
use super::found::{Finder, Found, Xattrs};
use super::owners::{Met, Owners};
use super::{places, upper};
use crate::archive::access_list::ACLS;
use crate::archive::kept::{self, mark};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sandbox::Recorded;
use crate::store::Store;
use crate::sys::file::{self, Lock};
use crate::sys::root::Root;
use crate::tree::{Entry, Node, RootPath, Stack};

/// Raised when a record means something else.
const FORMAT: u32 = 2;

/// A time of the file system that moves on at least once in this long, or it is out of order.
const LONGEST_GRANULE: Duration = Duration::from_secs(5);

/// How a file was when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AsMade {
    inode: u64,
    mode: u32,
    size: i64,
    /// It has several names, which no file of a snapshot has.
    linked: bool,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl AsMade {
    fn of(stat: &FileStat) -> Self {
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
struct Held {
    /// The changeset that put it there; `None`: a folder that has to be made right again.
    layer: Option<Digest>,
    as_made: AsMade,
    /// Its identity: [`file::handle`].
    handle: Vec<u8>,
}

/// What this file system can.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Abilities {
    /// Files have attributes `user.*`.
    attributes: bool,
    /// Files have capabilities.
    capabilities: bool,
    /// Files have access control lists.
    acls: bool,
    /// Reading a file can leave its access time alone.
    access_times: bool,
    /// A write through a mapping changes the times of a file.
    mapped_writes: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    format: u32,
    boot: String,
    abilities: Abilities,
    held: BTreeMap<RootPath, Held>,
}

/// A tree that is ours until it is dropped.
#[derive(Debug)]
pub struct KeptTree {
    store: Store,
    folder: PathBuf,
    root: Root,
    record: Record,
    kept: bool,
    _lock: File,
}

/// What was not captured goes at once: it may hold what is to be kept nowhere.
impl Drop for KeptTree {
    fn drop(&mut self) {
        if !self.kept {
            // What can't be moved away now is when the tree is used again.
            let _ = move_away(&self.store, &self.folder.join("root"));
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
        self.root.path()
    }

    /// The same, for what reads in it.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The tree as its last user left it, which is marked as being in use.
    fn as_left(store: &Store, folder: &Path, lock: &File) -> Result<Option<Self>> {
        let path = folder.join("record");
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        fs::remove_file(&path).map_err(|e| Error::io("unlink", &path, e))?;
        let Some((sum, text)) = bytes.split_at_checked(32) else { return Ok(None) };
        let Ok(record) = postcard::from_bytes::<Record>(text) else { return Ok(None) };
        let whole = Digest::of(text).as_bytes() == sum;
        if !whole || record.format != FORMAT || record.boot != store.boot() {
            return Ok(None);
        }
        Self::with(store, folder, lock, record).map(Some)
    }

    fn anew(store: &Store, folder: &Path, lock: &File) -> Result<Self> {
        let root = folder.join("root");
        move_away(store, &root)?;
        fs::create_dir(&root).map_err(|e| Error::io("mkdir", &root, e))?;
        let abilities = Abilities::of(folder)?;
        let record = Record { format: FORMAT, boot: store.boot().to_string(), abilities, held: BTreeMap::new() };
        Self::with(store, folder, lock, record)
    }

    fn with(store: &Store, folder: &Path, lock: &File, record: Record) -> Result<Self> {
        let root = Root::open(&folder.join("root"))?;
        let lock = lock.try_clone().map_err(|e| Error::io("dup", folder, e))?;
        Ok(Self { store: store.clone(), folder: folder.into(), root, record, kept: false, _lock: lock })
    }

    // --- From one snapshot to the next.

    fn bring_to(&mut self, stack: &Stack) -> Result<()> {
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
        file::chmod_at(self.root.as_fd(), b".", 0o755)?;
        self.wait_for_the_clock()
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

    /// The newest time in the record.
    fn newest(&self) -> (i64, i64) {
        self.record.held.values().map(|held| held.as_made.changed).max().unwrap_or_default()
    }

    /// Until a change would get another time than the newest that is recorded.
    fn wait_for_the_clock(&self) -> Result<()> {
        let newest = self.newest();
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

    // --- What a rule changed.

    /// Takes what a rule changed into `files`, an empty folder of the same file system, and keeps the
    /// tree for the next rule.
    pub fn capture(
        mut self,
        files: &Root,
        below: &Stack,
        recorded: &[Recorded],
        options: &Options,
    ) -> Result<Captured> {
        let walked = self.walk()?;
        let finder = Finder { owners: Owners::new(below, recorded, options.owner), found: Found::default() };
        let mut harvest =
            Harvest { tree: &self, below, files, finder, made: self.newest(), first_names: HashMap::new() };
        harvest.all(&walked)?;
        let found = harvest.finder.found;
        self.forget(walked)?;
        self.keep()?;
        compare(files, false, below, found, options)
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

    /// Says that the tree is as it is recorded.
    fn keep(mut self) -> Result<()> {
        let text = postcard::to_stdvec(&self.record).map_err(|e| Error::failed(format!("a tree's record: {e}")))?;
        let bytes = [Digest::of(&text).as_bytes().as_slice(), &text].concat();
        let (new, path) = (self.folder.join("record.new"), self.folder.join("record"));
        fs::write(&new, bytes).map_err(|e| Error::io("write", &new, e))?;
        fs::rename(&new, &path).map_err(|e| Error::io("rename", &path, e))?;
        self.kept = true;
        Ok(())
    }
}

/// The sandbox puts an empty folder of its own there.
const TMP: &[u8] = b"tmp";

/// Is this path part of a tree? Not `/tmp`, nor what is in the folders that are made anew for each rule.
fn is_held(path: &RootPath, entry: &Entry) -> bool {
    let in_left_out = path.ancestors().any(|folder| places::left_out(&folder));
    let own = path.as_bytes() == TMP && entry.is_folder();
    !in_left_out && !own
}

/// The first place that nobody uses.
fn free_place(store: &Store) -> Result<(PathBuf, File)> {
    let trees = store.trees_path();
    for number in 0.. {
        let folder = trees.join(number.to_string());
        fs::create_dir_all(&folder).map_err(|e| Error::io("mkdir", &folder, e))?;
        file::inherit_no_acl(&folder)?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Error::io("open", &path, e))?;
        if file::lock(&lock, Lock::TryExclusive).map_err(|e| Error::io("flock", &path, e))? {
            return Ok((folder, lock));
        }
    }
    Err(Error::failed("every tree is in use"))
}

impl Abilities {
    fn of(folder: &Path) -> Result<Self> {
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
            attributes: file::set_xattr(dir, name, b"user.tapeout", b"1").is_ok(),
            capabilities: file::set_xattr(dir, name, upper::CAPABILITY, &capability).is_ok(),
            acls: file::set_xattr(dir, name, ACLS[0], &acl).is_ok(),
            access_times: file::keep_access_time_at(dir, name)?,
            mapped_writes: file::tells_mapped_writes(&tried).map_err(|e| Error::io("mmap", folder, e))?,
        };
        file::unlink_at(dir, name)?;
        Ok(found)
    }

    /// Can a file here have this attribute?
    fn can_have(&self, attribute: &[u8]) -> bool {
        match attribute {
            upper::CAPABILITY => self.capabilities,
            acl if ACLS.contains(&acl) => self.acls,
            _ => self.attributes,
        }
    }
}

/// Makes the files of a snapshot.
struct Maker<'a> {
    tree: &'a mut KeptTree,
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
                for attribute in file::list_xattrs(dir, name)? {
                    if attribute.starts_with(b"user.") || ACLS.contains(&attribute.as_slice()) {
                        file::remove_xattr(dir, name, &attribute)?;
                    }
                }
                file::chmod_at(dir, name, entry.mode)?;
            }
            Node::Folder => file::mkdir_at(dir, name, entry.mode)?,
            Node::File { .. } => {
                let new = file::create_file_at(dir, name, 0o600)?;
                let source = self.source(layer)?.open_file(path)?;
                file::reflink_or_copy(&source, &new).map_err(|e| Error::io("copy", path.below(self.tree.path()), e))?;
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
                    file::set_xattr(dir, name, &attribute, &value)?;
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
    tree: &'a KeptTree,
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
                        file::set_xattr(into.as_fd(), name, attribute, value)?;
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
                    file::set_xattr(into.as_fd(), folder.name(), attribute, value)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::tree::Changeset;

    struct Rules {
        _temp: tempfile::TempDir,
        store: Store,
        stack: Stack,
    }

    impl Rules {
        /// One rule has run.
        fn new(first: impl FnOnce(&Path)) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(&temp.path().join("store")).unwrap();
            let mut rules = Self { _temp: temp, store, stack: Stack::default() };
            rules.run(first);
            rules
        }

        fn tree(&self) -> KeptTree {
            KeptTree::at(&self.store, &self.stack).unwrap()
        }

        /// One more rule, that changes this.
        fn run(&mut self, change: impl FnOnce(&Path)) -> Vec<String> {
            let tree = self.tree();
            change(tree.path());
            let (scratch, options) = (self.store.scratch().unwrap(), Options { time: 7, owner: (0, 0) });
            let files = scratch.folder("files").unwrap();
            let captured = tree.capture(&Root::open(&files).unwrap(), &self.stack, &[], &options).unwrap();
            let (changeset, digest) = captured.name().unwrap();
            let told = told(&changeset);
            if !told.is_empty() {
                self.stack.0.push(self.store.keep_changeset(digest, changeset, &files).unwrap());
            }
            self.expect_right(&self.tree_of_next());
            told
        }

        /// The tree is kept again, unchanged.
        fn tree_of_next(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
            let tree = self.tree();
            let found = walkdir::WalkDir::new(tree.path()).min_depth(1).into_iter().map(|entry| {
                let entry = entry.unwrap();
                let stat = entry.metadata().unwrap();
                let content = match stat.mode() & libc::S_IFMT {
                    libc::S_IFREG => fs::read(entry.path()).unwrap(),
                    libc::S_IFLNK => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
                    _ => vec![],
                };
                let path = entry.path().strip_prefix(tree.path()).unwrap();
                (format!("/{}", path.display()), (stat.mode(), content))
            });
            let found = found.collect();
            tree.keep().unwrap();
            found
        }

        fn expect_right(&self, found: &BTreeMap<String, (u32, Vec<u8>)>) {
            let expected = self.stack.below(&RootPath::root());
            let paths: Vec<_> = expected.keys().map(|path| path.to_string()).collect();
            assert_eq!(found.keys().cloned().collect::<Vec<_>>(), paths);
            for (path, (entry, _)) in expected {
                let (mode, content) = &found[&path.to_string()];
                match &entry.node {
                    Node::File { digest, .. } => assert_eq!(Digest::of(content), *digest, "{path}"),
                    Node::Link { target } => assert_eq!(content, target, "{path}"),
                    _ => {}
                }
                assert!(mode & libc::S_IFMT == libc::S_IFLNK || mode & 0o7777 == entry.mode, "{path}: {mode:o}");
            }
        }

        fn record(&self) -> PathBuf {
            self.store.trees_path().join("0/record")
        }

        fn inode(&self, path: &str) -> u64 {
            fs::symlink_metadata(self.store.trees_path().join("0/root").join(path)).unwrap().ino()
        }
    }

    fn told(changeset: &Changeset) -> Vec<String> {
        let changes = changeset.changes.iter().filter(|(_, change)| !change.passed_through());
        changes
            .map(|(path, change)| match (&change.now, &change.was) {
                (None, _) => format!("- {path}"),
                (Some(_), None) => format!("+ {path}"),
                (Some(_), Some(_)) => format!("~ {path}"),
            })
            .collect()
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn few(root: &Path) {
        for path in ["a", "b", "d/one", "d/two", "d/deep/three", "e/x"] {
            write(root.join(path), path);
        }
        symlink("a", root.join("link")).unwrap();
    }

    #[test]
    fn each_kind_of_change_is_seen_and_the_next_snapshot_is_right() {
        let mut rules = Rules::new(few);
        let kept = rules.inode("d/two");
        assert_eq!(rules.run(|_| {}), Vec::<String>::new());
        let mode = |path: PathBuf, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(rules.run(|root| mode(root.join("a"), 0o4755)), ["~ /a"]);
        assert_eq!(rules.run(|root| mode(root.join("d"), 0o700)), ["~ /d"]);
        let attribute = |root: &Path, name: &[u8]| {
            file::set_xattr(File::open(root).unwrap().as_fd(), name, b"user.some", b"1").unwrap();
        };
        assert_eq!(rules.run(|root| attribute(root, b"b")), ["~ /b"]);
        assert_eq!(rules.run(|root| attribute(root, b"e")), ["~ /e"]);
        // Another kind, at the same name.
        let to_folder = |root: &Path| {
            fs::remove_file(root.join("a")).unwrap();
            write(root.join("a/in"), "it");
        };
        assert_eq!(rules.run(to_folder), ["~ /a", "+ /a/in"]);
        let to_link = |root: &Path| {
            fs::remove_dir_all(root.join("a")).unwrap();
            symlink("d", root.join("a")).unwrap();
        };
        assert_eq!(rules.run(to_link), ["~ /a"]);
        // A link that points elsewhere; a new name for an old file, through which it is then written.
        let relinked = |root: &Path| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("b", root.join("link")).unwrap();
        };
        assert_eq!(rules.run(relinked), ["~ /link"]);
        let append = |root: &Path| {
            fs::hard_link(root.join("d/one"), root.join("e/one")).unwrap();
            fs::OpenOptions::new().append(true).open(root.join("e/one")).unwrap().write_all(b"more").unwrap();
        };
        use std::io::Write;
        assert_eq!(rules.run(append), ["~ /d/one", "+ /e/one"]);
        // It appears as two files, as an overlay shows them.
        assert_ne!(rules.inode("d/one"), rules.inode("e/one"));
        let replaced = |root: &Path| {
            fs::remove_dir_all(root.join("d/deep")).unwrap();
            write(root.join("d/deep/four"), "4");
        };
        assert_eq!(rules.run(replaced), ["+ /d/deep/four", "- /d/deep/three"]);
        let renamed = |root: &Path| fs::rename(root.join("e"), root.join("f")).unwrap();
        assert_eq!(rules.run(renamed), ["- /e", "+ /f", "+ /f/one", "+ /f/x"]);
        // What is the same again is no change.
        let rewritten = |root: &Path| {
            fs::remove_file(root.join("b")).unwrap();
            write(root.join("b"), "b");
            attribute(root, b"b");
        };
        assert_eq!(rules.run(rewritten), Vec::<String>::new());
        assert_eq!(rules.inode("d/two"), kept, "what stays isn't made again");
    }

    #[test]
    fn a_change_at_once_that_hides_in_size_and_times_is_seen() {
        let mut rules = Rules::new(few);
        for round in 0..20 {
            let hidden = |root: &Path| {
                let path = root.join("a");
                let before = fs::metadata(&path).unwrap();
                fs::write(&path, if round % 2 == 0 { "x" } else { "y" }).unwrap();
                let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
                File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
            };
            assert_eq!(rules.run(hidden), ["~ /a"], "round {round}");
        }
    }

    /// A shell ends so, a rule whose sandbox died, and a build that is killed.
    #[test]
    fn what_was_not_captured_is_in_no_later_snapshot() {
        let mut rules = Rules::new(few);
        let tree = rules.tree();
        assert!(!rules.record().exists(), "nobody believes a tree that is in use");
        write(tree.path().join("a"), "a secret");
        write(tree.path().join("new"), "a secret");
        drop(tree);
        assert_eq!(rules.run(|root| assert!(!root.join("new").exists())), Vec::<String>::new());
    }

    #[test]
    fn a_record_that_is_not_whole_or_of_another_time_is_not_believed() {
        let mut rules = Rules::new(few);
        let good = rules.tree();
        let of = |change: fn(&mut Record)| {
            let mut record: Record = postcard::from_bytes(&postcard::to_stdvec(&good.record).unwrap()).unwrap();
            change(&mut record);
            let text = postcard::to_stdvec(&record).unwrap();
            [Digest::of(&text).as_bytes().as_slice(), &text].concat()
        };
        let whole = of(|_| {});
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let bad = [
            vec![],
            whole[..20].to_vec(),
            whole[..whole.len() - 1].to_vec(),
            flipped,
            of(|record| record.boot = "another".into()),
            of(|record| record.format += 1),
        ];
        drop(good);
        for (n, bytes) in bad.into_iter().enumerate() {
            fs::write(rules.record(), bytes).unwrap();
            write(rules.store.trees_path().join("0/root/junk"), "1");
            assert_eq!(rules.run(|root| assert!(!root.join("junk").exists(), "record {n}")), Vec::<String>::new());
        }
    }

    #[test]
    fn a_tree_that_is_not_as_its_record_says_is_made_anew() {
        let mut rules = Rules::new(few);
        // The next rule's snapshot is without the first: what is to be removed isn't there.
        fs::remove_dir_all(rules.store.trees_path().join("0/root/d")).unwrap();
        write(rules.store.trees_path().join("0/root/d"), "a file now");
        rules.stack = Stack::default();
        assert_eq!(rules.run(|root| assert_eq!(fs::read_dir(root).unwrap().count(), 0)), Vec::<String>::new());
    }

    #[test]
    fn two_at_once_have_a_tree_each() {
        let rules = Rules::new(few);
        let (one, other) = (rules.tree(), rules.tree());
        assert_ne!(one.path(), other.path());
        assert_ne!(
            fs::metadata(one.path().join("a")).unwrap().ino(),
            fs::metadata(other.path().join("a")).unwrap().ino()
        );
    }
}
