//! Capture: from the upper folder of a snapshot to a changeset, its name, and its kept form.
//!
//! It goes in four passes, each by descriptors below the folder, following no link, when every
//! process of the sandbox is dead:
//! 1. **walk** (`upper.rs`, `found.rs`): each file becomes an entry, with the owner that was recorded
//!    for it, or that the file below has from which it was copied up (`owners.rs`); whiteouts become
//!    removals;
//! 2. **compare**: a folder that hides what was below lists what is gone; what equals the snapshot
//!    below is dropped, from the changeset and the folder;
//! 3. **normalise**: the folder gets the kept form (see the module above);
//! 4. **name**: each content is read once, for its own digest and the canonical stream's.
//!
//! After a kill there is nothing but a scratch folder that nobody names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::SFlag;

use super::found::Found;
use super::owners::Owners;
use super::upper::{self, ORIGIN};
use crate::archive::kept;
use crate::archive::pieces::{PIECE, pieces};
use crate::archive::tar_writer;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sandbox::Recorded;
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Change, Changeset, Entry, Node, RootPath, Stack};

/// How to capture.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The changeset's time, in seconds since 1970.
    pub time: i64,
    /// Owner and group of a new file for which nothing was recorded.
    pub owner: (u32, u32),
}

/// A changeset that has no name yet.
pub struct Captured {
    /// Of an overlay; else the same, filled from a kept tree.
    overlay: bool,
    upper: Root,
    below: Stack,
    time: i64,
    changes: BTreeMap<RootPath, Change>,
    /// Files whose content has been hashed; of the others the digest in `changes` is not yet true.
    hashed: BTreeMap<RootPath, Digest>,
}

/// Takes the difference that the upper folder of an overlay makes to the stack below it. `recorded`
/// is what the sandbox's init recorded.
pub fn capture(upper: &Root, below: &Stack, recorded: &[Recorded], options: &Options) -> Result<Captured> {
    let found = upper::walk(upper, Owners::new(below, recorded, options.owner))?;
    compare(upper, true, below, found, options)
}

/// From what a walk found to what changed; `files` is the folder that is to be kept.
pub(super) fn compare(files: &Root, overlay: bool, below: &Stack, found: Found, options: &Options) -> Result<Captured> {
    let Found { changes, inodes, opaque } = found;
    let mut captured = Captured {
        overlay,
        upper: files.clone(),
        below: below.clone(),
        time: options.time,
        changes,
        hashed: BTreeMap::new(),
    };
    // Before anything is dropped: what is the same as below is not gone.
    for folder in &opaque {
        captured.expand(folder)?;
    }
    captured.drop_unchanged()?;
    captured.separate_links(inodes)?;
    Ok(captured)
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

    /// Gives users and groups that the rule made other numbers. Numbers that the snapshot below
    /// knew must not be among them.
    pub fn renumber(&mut self, uids: &BTreeMap<u32, u32>, gids: &BTreeMap<u32, u32>) {
        for entry in self.changes.values_mut().filter_map(|change| change.now.as_mut()) {
            entry.uid = *uids.get(&entry.uid).unwrap_or(&entry.uid);
            entry.gid = *gids.get(&entry.gid).unwrap_or(&entry.gid);
        }
    }

    /// Replaces the content of a file that changed; its mode, owner and attributes stay.
    pub fn replace_file(&mut self, path: &RootPath, bytes: &[u8]) -> Result<()> {
        let Some(Entry { node: Node::File { size, digest, group }, mode, xattrs, .. }) =
            self.changes.get_mut(path).and_then(|c| c.now.as_mut())
        else {
            return Err(Error::failed(format!("{path} is no file of this changeset")));
        };
        (*size, *digest, *group) = (bytes.len() as u64, Digest::of(bytes), None);
        let dir = self.upper.folder(&path.parent().unwrap_or_default())?;
        file::unlink_at(dir.as_fd(), path.name())?;
        let mut new = file::create_file_at(dir.as_fd(), path.name(), 0o600)?;
        new.write_all(bytes).map_err(|e| Error::io("write", path.below(self.upper.path()), e))?;
        finish_copy(dir.as_fd(), path.name(), (*mode, xattrs), self.overlay)?;
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
            if now.is_folder() || (now.mode, now.uid, now.gid, &now.xattrs) != (was.mode, was.uid, was.gid, &was.xattrs)
            {
                continue;
            }
            if let (Node::File { size, digest, .. }, Node::File { size: size_was, .. }) = (&mut now.node, &was.node)
                && size == size_was
            {
                *digest = hash(self.upper.open_file(path)?, *size, path, &mut buffer, &mut |_| Ok(()))?;
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
                if let Some(Entry { node: Node::File { group, .. }, .. }) =
                    self.changes.get_mut(name).and_then(|c| c.now.as_mut())
                {
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
        finish_copy(dir.as_fd(), to.name(), (*mode, xattrs), self.overlay)
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

    /// Marks folders that hold whiteouts. A folder that lies in one layer alone is listed as it is,
    /// whiteouts and all, unless it has an origin; an empty one means that it isn't known
    /// (`ovl_path_check_origin_xattr` in fs/overlayfs/inode.c).
    fn mark_whiteouts(&self) -> Result<()> {
        let removed = self.changes.iter().filter(|(_, change)| change.now.is_none());
        let folders: BTreeSet<RootPath> =
            removed.filter_map(|(path, _)| path.parent()).filter(|folder| !folder.is_root()).collect();
        for folder in folders {
            let dir = self.upper.folder(&folder.parent().unwrap_or_default())?;
            // Where a file system has no attributes, it isn't overlay that stacks it.
            if self.overlay {
                xattr::set(dir.as_fd(), folder.name(), ORIGIN, b"")?;
            } else {
                let _ = xattr::set(dir.as_fd(), folder.name(), ORIGIN, b"");
            }
        }
        Ok(())
    }

    /// Brings the folder into the kept form, reads each content once, and names the changeset.
    /// The folder is then ready for `Store::keep_changeset`.
    pub fn name(mut self) -> Result<(Changeset, Digest)> {
        self.prune()?;
        self.mark_whiteouts()?;
        let mut changeset = Changeset { time: self.time, changes: std::mem::take(&mut self.changes) };
        let hashed = &mut self.hashed;
        let upper = &self.upper;
        let mut buffer = vec![];
        let mut give = |path: &RootPath, entry: &Entry, put: &mut dyn FnMut(&[u8]) -> Result<()>| {
            let size = if let Node::File { size, .. } = entry.node { size } else { 0 };
            let digest = hash(upper.open_file(path)?, size, path, &mut buffer, put)?;
            hashed.insert(path.clone(), digest);
            Ok(())
        };
        let name = stream_digest(&changeset, &mut give)?;
        fill_in(&mut changeset, &self.hashed)?;
        set_times(&self.upper, &changeset)?;
        Ok((changeset, name))
    }
}

/// Gives the kept form its times, the deepest first, so that no later change moves them. After this
/// nothing in it may be touched; reading is harmless.
pub fn set_times(files: &Root, changeset: &Changeset) -> Result<()> {
    let mut open: Option<(RootPath, OwnedFd)> = None;
    for (path, change) in changeset.changes.iter().rev() {
        let Some(entry) = &change.now else { continue };
        let parent = path.parent().unwrap_or_default();
        let dir = match open.take() {
            Some((folder, fd)) if folder == parent => fd,
            _ => files.folder(&parent)?,
        };
        kept::settle(dir.as_fd(), path, &entry.node, changeset.time)?;
        open = Some((parent, dir));
    }
    let root = files.folder(&RootPath::root())?;
    file::chmod_at(root.as_fd(), b".", 0o755)?;
    file::set_mtime_at(root.as_fd(), b".", changeset.time)
}

/// Gives a new copy its mode and attributes. Without an overlay it may lie where there are none: then
/// they are data alone.
fn finish_copy(dir: BorrowedFd, name: &[u8], entry: (u32, &BTreeMap<Vec<u8>, Vec<u8>>), overlay: bool) -> Result<()> {
    let (mode, xattrs) = entry;
    for (attribute, value) in xattrs {
        let given = kept::give_attribute(dir, name, attribute, value);
        if overlay {
            given?;
        }
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
fn hash(
    mut file: File,
    size: u64,
    path: &RootPath,
    buffer: &mut Vec<u8>,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Digest> {
    // No larger than needed: filling it is most of the time that a trivial rule's capture takes.
    let enough = usize::try_from(size).unwrap_or(PIECE).clamp(4096, PIECE);
    buffer.resize(enough.max(buffer.len()), 0);
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

/// Names a changeset whose entries are all known: reads each content once for the canonical
/// stream. A content of another size than its entry says is an error.
pub fn digest_of<R: Read>(changeset: &Changeset, mut open: impl FnMut(&RootPath) -> Result<R>) -> Result<Digest> {
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
        let (writer, reader) = pieces(4);
        let hashed = scope.spawn(move || {
            let mut hashing = Hashing::new(io::sink());
            while let Some(piece) = reader.next() {
                // A sink takes everything.
                let _ = hashing.write_all(&piece);
                reader.done(piece);
            }
            hashing.finish().1
        });
        tar_writer::canonical(changeset, writer, give)?.end().map_err(|e| Error::io("hash", "changeset", e))?;
        hashed.join().map_err(|_| Error::failed("the hashing thread ended early"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::{fs, path::Path};

    use nix::fcntl::OFlag;

    use super::*;
    use crate::changeset::found::is_whiteout;
    use crate::changeset::upper::version_2;
    use crate::tree::Layer;

    fn path(text: impl AsRef<[u8]>) -> RootPath {
        RootPath::new(text).unwrap()
    }

    /// Layers in folders of their own, and an upper folder.
    struct Snapshot {
        temp: tempfile::TempDir,
        stack: Stack,
        upper: PathBuf,
    }

    impl Snapshot {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let upper = temp.path().join("upper");
            fs::create_dir(&upper).unwrap();
            Self { temp, stack: Stack::default(), upper }
        }

        fn files(&self, digest: &Digest) -> Result<Root> {
            Root::open(&self.temp.path().join(digest.hex()))
        }

        fn capture(&self, recorded: &[Recorded]) -> Result<Captured> {
            let options = Options { time: 7, owner: (0, 0) };
            capture(&Root::open(&self.upper)?, &self.stack, recorded, &options)
        }

        fn named(&self) -> (Changeset, Digest) {
            self.capture(&[]).unwrap().name().unwrap()
        }

        /// Captures, and puts the changeset on the stack.
        fn stacked(&mut self) -> Changeset {
            let (changeset, digest) = self.named();
            fs::rename(&self.upper, self.temp.path().join(digest.hex())).unwrap();
            fs::create_dir(&self.upper).unwrap();
            self.stack.0.push(Layer { digest, changeset: Arc::new(changeset.clone()) });
            changeset
        }

        fn write(&self, at: &str, text: &str) {
            let at = self.upper.join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        }

        fn whiteout(&self, at: &str) {
            fs::create_dir_all(self.upper.join(at).parent().unwrap()).unwrap();
            file::mknod_at(Root::open(&self.upper).unwrap().as_fd(), at.as_bytes(), SFlag::S_IFCHR, 0, 0).unwrap();
        }

        fn attribute(&self, at: &str, name: &str, value: &[u8]) {
            xattr::set(File::open(&self.upper).unwrap().as_fd(), at.as_bytes(), name.as_bytes(), value).unwrap();
        }

        fn identity(&self, at: &str) -> Vec<u8> {
            let dir = Root::open(&self.upper).unwrap().folder(&path(at).parent().unwrap()).unwrap();
            file::handle(file::open_at(dir.as_fd(), path(at).name(), OFlag::O_PATH).unwrap().as_fd()).unwrap()
        }

        /// What overlay leaves on a file that it copied up: a mark that it did, and the times.
        fn copied_up(&self, at: &str, from: &str) {
            let (_, layer) = self.stack.get(&path(from)).unwrap();
            let stat = self.files(&layer.digest).unwrap().stat(&path(from)).unwrap().unwrap();
            self.attribute(at, "user.overlay.origin", b"");
            file::set_times_at(
                File::open(&self.upper).unwrap().as_fd(),
                at.as_bytes(),
                (stat.st_atime, stat.st_atime_nsec),
                1,
            )
            .unwrap();
        }

        /// Captures with records, and puts the changeset on the stack.
        fn stacked_with(&mut self, recorded: &[Recorded]) {
            let (changeset, digest) = self.capture(recorded).unwrap().name().unwrap();
            fs::rename(&self.upper, self.temp.path().join(digest.hex())).unwrap();
            fs::create_dir(&self.upper).unwrap();
            self.stack.0.push(Layer { digest, changeset: Arc::new(changeset) });
        }
    }

    fn told(changeset: &Changeset) -> Vec<String> {
        let tell = |(path, change): (&RootPath, &Change)| match &change.now {
            None => format!("- {path}"),
            Some(_) if change.passed_through() => format!("  {path}"),
            Some(_) if change.was.is_none() => format!("+ {path}"),
            Some(_) => format!("~ {path}"),
        };
        changeset.changes.iter().map(tell).collect()
    }

    fn owner(changeset: &Changeset, at: &str) -> (u32, u32) {
        let entry = changeset.changes[&path(at)].now.as_ref().unwrap();
        (entry.uid, entry.gid)
    }

    #[test]
    fn what_is_new_changed_and_removed_is_told_apart() {
        let mut snapshot = Snapshot::new();
        snapshot.write("etc/a", "1");
        snapshot.write("etc/b", "1");
        snapshot.write("usr/bin/x", "1");
        assert_eq!(
            told(&snapshot.stacked()),
            ["+ /etc", "+ /etc/a", "+ /etc/b", "+ /usr", "+ /usr/bin", "+ /usr/bin/x"]
        );
        snapshot.write("etc/a", "2");
        snapshot.write("etc/c", "1");
        snapshot.whiteout("etc/b");
        snapshot.whiteout("etc/never-there");
        let changeset = snapshot.stacked();
        assert_eq!(told(&changeset), ["  /etc", "~ /etc/a", "- /etc/b", "+ /etc/c"]);
        let seen: Vec<_> = snapshot.stack.below(&RootPath::root()).keys().map(|p| p.to_string()).collect();
        assert_eq!(seen, ["/etc", "/etc/a", "/etc/c", "/usr", "/usr/bin", "/usr/bin/x"]);
    }

    #[test]
    fn what_equals_the_snapshot_is_not_in_it() {
        let mut snapshot = Snapshot::new();
        snapshot.write("a/b/c", "1");
        snapshot.write("a/d", "12");
        symlink("c", snapshot.upper.join("a/b/l")).unwrap();
        snapshot.stacked();
        snapshot.write("a/b/c", "1");
        snapshot.write("a/d", "21");
        symlink("c", snapshot.upper.join("a/b/l")).unwrap();
        assert_eq!(told(&snapshot.stacked()), ["  /a", "~ /a/d"]);
        assert!(!snapshot.temp.path().join(snapshot.stack.0[1].digest.hex()).join("a/b").exists(), "nor in its files");
        snapshot.write("a/d", "21");
        assert!(snapshot.named().0.changes.is_empty());
        assert_eq!(fs::read_dir(&snapshot.upper).unwrap().count(), 0);
    }

    #[test]
    fn a_replaced_folder_is_the_removals_of_what_was_seen() {
        let mut snapshot = Snapshot::new();
        snapshot.write("d/gone", "1");
        snapshot.write("d/kept", "1");
        snapshot.write("d/deep/in/it", "1");
        snapshot.write("d/sub/old", "1");
        snapshot.stacked();
        snapshot.write("d/kept", "1");
        snapshot.write("d/sub/new", "1");
        snapshot.attribute("d", "user.overlay.opaque", b"y");
        let changeset = snapshot.stacked();
        assert_eq!(told(&changeset), ["  /d", "- /d/deep", "- /d/gone", "  /d/sub", "+ /d/sub/new", "- /d/sub/old"]);
        let seen: Vec<_> = snapshot.stack.below(&path("d")).keys().map(|p| p.to_string()).collect();
        assert_eq!(seen, ["/d/kept", "/d/sub", "/d/sub/new"]);
        let files = snapshot.files(&snapshot.stack.0[1].digest).unwrap();
        assert!(is_whiteout(&files.stat(&path("d/gone")).unwrap().unwrap()));
        assert!(xattr::get(files.as_fd(), b"d", b"user.overlay.opaque").unwrap().is_none());
    }

    #[test]
    fn the_content_of_what_is_made_anew_for_each_rule_is_left_out() {
        let snapshot = Snapshot::new();
        for at in ["tmp/x", "run/a/b", "proc/1", "sys/x", "dev/null", "var/tmp/kept"] {
            snapshot.write(at, "1");
        }
        let told = told(&snapshot.named().0);
        assert_eq!(
            told,
            ["+ /dev", "+ /proc", "+ /run", "+ /sys", "+ /tmp", "+ /var", "+ /var/tmp", "+ /var/tmp/kept"]
        );
    }

    #[test]
    fn a_copied_up_file_keeps_its_owner_wherever_it_goes() {
        let mut snapshot = Snapshot::new();
        for name in ["www", "mail", "plain", "plain2", "null"] {
            snapshot.write(name, if name == "null" { "" } else { name });
        }
        let record = |at: &str, uid, gid, device| Recorded {
            handle: snapshot.identity(at),
            uid,
            gid,
            device,
            ..Recorded::default()
        };
        let recorded = [
            record("www", Some(33), Some(34), None),
            record("mail", Some(8), None, None),
            record("null", None, None, Some((true, 1, 3))),
        ];
        snapshot.stacked_with(&recorded);
        let (below, _) = snapshot.stack.get(&path("mail")).unwrap();
        assert_eq!((below.uid, below.gid), (8, 0));

        for (to, from, text) in [
            ("www", "www", "changed"),
            ("moved", "www", "changed and moved"),
            ("mail", "plain", "root's, moved over another's"),
            ("zero", "null", ""),
        ] {
            snapshot.write(to, text);
            snapshot.copied_up(to, from);
        }
        snapshot.write("plain", "new");
        snapshot.write("null", "new at this name");
        let (changeset, _) = snapshot.named();
        let owners = ["www", "moved", "mail", "plain", "null"].map(|at| owner(&changeset, at));
        assert_eq!(owners, [(33, 34), (33, 34), (0, 0), (0, 0), (0, 0)]);
        let node = |at: &str| changeset.changes[&path(at)].now.as_ref().unwrap().node.clone();
        assert_eq!(node("zero"), Node::Device { character: true, major: 1, minor: 3 });
        assert!(matches!(node("null"), Node::File { .. }));
    }

    #[test]
    fn a_touched_file_is_the_one_at_its_path() {
        let mut snapshot = Snapshot::new();
        snapshot.write("www", "1");
        let recorded =
            [Recorded { handle: snapshot.identity("www"), uid: Some(33), gid: Some(33), ..Recorded::default() }];
        snapshot.stacked_with(&recorded);
        snapshot.write("www", "2");
        snapshot.attribute("www", "user.overlay.origin", b"");
        assert_eq!(owner(&snapshot.named().0, "www"), (33, 33));
    }

    #[test]
    fn the_kept_form_has_one_time_and_no_trace_of_overlay() {
        let snapshot = Snapshot::new();
        snapshot.write("d/f", "1");
        fs::hard_link(snapshot.upper.join("d/f"), snapshot.upper.join("d/g")).unwrap();
        fs::set_permissions(snapshot.upper.join("d/f"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("/nowhere", snapshot.upper.join("d/l")).unwrap();
        nix::unistd::mkfifo(&snapshot.upper.join("d/p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        snapshot.attribute("d", "user.overlay.opaque", b"y");
        snapshot.attribute("d/f", "user.kept", b"1");
        let (changeset, _) = snapshot.named();
        for at in ["", "d", "d/f", "d/g", "d/l", "d/p"] {
            assert_eq!(fs::symlink_metadata(snapshot.upper.join(at)).unwrap().mtime(), 7, "{at}");
        }
        let [f, g] = ["d/f", "d/g"].map(|at| fs::metadata(snapshot.upper.join(at)).unwrap());
        assert!(f.ino() != g.ino() && f.mode() == g.mode() && f.mode() & 0o7777 == 0o4711);
        let dir = File::open(&snapshot.upper).unwrap();
        assert!(xattr::list(dir.as_fd(), b"d").unwrap().is_empty());
        assert_eq!(xattr::get(dir.as_fd(), b"d/g", b"user.kept").unwrap().unwrap(), b"1");
        let group = |at: &str| match changeset.changes[&path(at)].now.as_ref().unwrap().node {
            Node::File { group, digest, .. } => (group, digest),
            _ => panic!(),
        };
        assert_eq!((group("d/f"), group("d/g")), ((Some(0), Digest::of("1")), (Some(0), Digest::of("1"))));
    }

    #[test]
    fn the_name_is_that_of_the_stream_and_depends_on_nothing_else() {
        let names = |reverse: bool| {
            let snapshot = Snapshot::new();
            let mut files: Vec<_> =
                (0..50).map(|i| (format!("d{}/f{i}", i % 7), format!("{i}").repeat(i * 100))).collect();
            if reverse {
                files.reverse();
            }
            for (at, text) in &files {
                snapshot.write(at, text);
            }
            let (changeset, digest) = snapshot.named();
            let root = Root::open(&snapshot.upper).unwrap();
            assert_eq!(digest_of(&changeset, |path| root.open_file(path)).unwrap(), digest);
            digest
        };
        assert_eq!(names(false), names(true));
    }

    #[test]
    fn a_large_changeset_has_the_name_of_a_small_one() {
        let snapshot = Snapshot::new();
        snapshot.write("big", &"0123456789abcdef".repeat((ONE_THREAD as usize + 4096) / 16));
        let (changeset, digest) = snapshot.named();
        let mut out = vec![];
        tar_writer::canonical(&changeset, &mut out, &mut |path, _, put| {
            put(&fs::read(path.below(&snapshot.upper)).unwrap())
        })
        .unwrap();
        assert_eq!(Digest::of(&out), digest);
    }

    #[test]
    fn a_replaced_content_is_in_the_name() {
        let mut snapshot = Snapshot::new();
        snapshot.write("etc/passwd", "root");
        snapshot.stacked();
        snapshot.write("etc/passwd", "root and a");
        snapshot.write("etc/group", "x");
        let mut captured = snapshot.capture(&[]).unwrap();
        captured.replace_file(&path("etc/group"), b"yy").unwrap();
        captured.replace_file(&path("etc/passwd"), b"root").unwrap();
        assert!(captured.replace_file(&path("etc/other"), b"").is_err());
        let (changeset, _) = captured.name().unwrap();
        assert_eq!(told(&changeset), ["  /etc", "+ /etc/group"]);
        assert!(
            matches!(changeset.changes[&path("etc/group")].now.as_ref().unwrap().node, Node::File { size: 2, digest, .. } if digest == Digest::of("yy"))
        );
    }

    #[test]
    fn a_rewritten_shadow_keeps_its_owner_and_mode() {
        let mut snapshot = Snapshot::new();
        snapshot.write("etc/shadow", "1");
        fs::set_permissions(snapshot.upper.join("etc/shadow"), fs::Permissions::from_mode(0o640)).unwrap();
        let recorded =
            [Recorded { handle: snapshot.identity("etc/shadow"), uid: Some(0), gid: Some(42), ..Recorded::default() }];
        snapshot.stacked_with(&recorded);
        snapshot.write("etc/shadow", "2");
        snapshot.write("etc/shadow-", "1");
        let (changeset, _) = snapshot.named();
        for at in ["etc/shadow", "etc/shadow-"] {
            let entry = changeset.changes[&path(at)].now.as_ref().unwrap();
            assert_eq!((entry.uid, entry.gid, entry.mode), (0, 42, 0o640), "{at}");
            assert_eq!(fs::metadata(snapshot.upper.join(at)).unwrap().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn a_file_capability_of_a_namespace_becomes_version_2() {
        let mut value = vec![1, 0, 0, 3];
        value.extend([7; 16]);
        value.extend(1000u32.to_le_bytes());
        let two = version_2(value);
        assert_eq!((two.len(), two[3], two[0]), (20, 2, 1));
        assert_eq!(version_2(two.clone()), two);
    }

    #[test]
    fn a_deep_tree_is_captured() {
        let snapshot = Snapshot::new();
        let deep = "d/".repeat(1500);
        fs::create_dir_all(snapshot.upper.join(Path::new(&deep))).unwrap();
        assert_eq!(snapshot.named().0.changes.len(), 1500);
    }
}
