//! Renaming a folder of a lower layer, which overlay refuses with EXDEV.
//!
//! All in it but such folders is renamed by the kernel, one by one, into new folders beside the
//! target: that copies a file up with all by which it is known again later. Then the new folder gets
//! its name in one step, and the old ones, which are empty, go. Before that step an error gives
//! everything back. Every name is looked up below a descriptor and no link is followed, so that
//! processes of the rule that write here meanwhile can spoil nothing but their own tree.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, ResolveFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::UnlinkatFlags;

use crate::sys::file;
use crate::sys::xattr;

/// A name in a folder.
pub(super) struct End {
    pub folder: OwnedFd,
    pub name: Vec<u8>,
}

impl End {
    /// What is there; `None`: nothing.
    fn stat(&self) -> nix::Result<Option<FileStat>> {
        match nix::sys::stat::fstatat(&self.folder, OsStr::from_bytes(&self.name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub fn is_folder(&self) -> nix::Result<bool> {
        Ok(self.stat()?.is_some_and(|stat| file::kind(&stat) == SFlag::S_IFDIR))
    }

    fn open(&self) -> nix::Result<OwnedFd> {
        open(self.folder.as_fd(), &self.name)
    }
}

/// renameat2(2).
pub(super) fn rename(old: &End, new: &End, flags: RenameFlags) -> nix::Result<()> {
    rename_at(old.folder.as_fd(), &old.name, new.folder.as_fd(), &new.name, flags)
}

fn rename_at(old: BorrowedFd, name: &[u8], new: BorrowedFd, new_name: &[u8], flags: RenameFlags) -> nix::Result<()> {
    nix::fcntl::renameat2(old, OsStr::from_bytes(name), new, OsStr::from_bytes(new_name), flags)
}

/// A folder below a folder, links in no part followed; an empty path is that folder itself.
fn open(top: BorrowedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    file::open_below(top, path, OFlag::O_PATH | OFlag::O_DIRECTORY, strict)
}

fn names(folder: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    file::list(folder.as_fd()).map_err(|_| Errno::EIO)
}

/// A folder that was made anew: where below the top, and what the old one was like.
struct Made {
    path: Vec<u8>,
    was: FileStat,
}

/// Carries a folder over, when the kernel has answered [`rename`] with EXDEV and both ends are in
/// one overlay: then it has checked all else, but not that a folder in the way is empty. `keep` is
/// told of each folder and the new one in its place.
pub(super) fn carry(
    old: &End,
    new: &End,
    flags: RenameFlags,
    keep: &mut dyn FnMut(BorrowedFd, BorrowedFd) -> nix::Result<()>,
) -> nix::Result<()> {
    if new.is_folder()? && !names(&new.open()?)?.is_empty() {
        return Err(Errno::ENOTEMPTY);
    }
    let old_top = old.open()?;
    let beside = make_beside(new)?;
    let new_top = beside.open()?;
    let mut made = vec![];
    let done = fill(&old_top, &new_top, keep, &mut made)
        .and_then(|()| made.iter().try_for_each(|folder| give_times(&new_top, folder)))
        .and_then(|()| rename(&beside, new, flags));
    if let Err(errno) = done {
        give_back(&old_top, &new_top, &made);
        let _ = remove(&beside, &new_top, &made);
        return Err(errno);
    }
    match remove(old, &old_top, &made) {
        // Somebody has put something there meanwhile; it stays.
        Err(Errno::ENOTEMPTY | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// A new folder in the one of `new`.
fn make_beside(new: &End) -> nix::Result<End> {
    for number in 0.. {
        let name = format!(".renamed-{number}");
        match nix::sys::stat::mkdirat(&new.folder, name.as_str(), Mode::S_IRWXU) {
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
            Ok(()) => {
                let folder = new.folder.try_clone().map_err(|_| Errno::EMFILE)?;
                return Ok(End { folder, name: name.into_bytes() });
            }
        }
    }
    Err(Errno::EEXIST)
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// Folders are opened anew from the top, so that depth costs no descriptors.
fn fill(
    old_top: &OwnedFd,
    new_top: &OwnedFd,
    keep: &mut dyn FnMut(BorrowedFd, BorrowedFd) -> nix::Result<()>,
    made: &mut Vec<Made>,
) -> nix::Result<()> {
    made.push(Made { path: vec![], was: nix::sys::stat::fstat(old_top)? });
    let mut next = 0;
    while let Some(Made { path, was }) = made.get(next) {
        let (old, new) = (open(old_top.as_fd(), path)?, open(new_top.as_fd(), path)?);
        keep(old.as_fd(), new.as_fd())?;
        give_mode_and_attributes(&old, &new, was)?;
        let folder = path.clone();
        for name in names(&old)? {
            match rename_at(old.as_fd(), &name, new.as_fd(), &name, RenameFlags::RENAME_NOREPLACE) {
                // Somebody has just removed it.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EXDEV) => made.push(Made { path: join(&folder, &name), was: make_anew(&old, &new, &name)? }),
                Err(errno) => return Err(errno),
            }
        }
        next += 1;
    }
    Ok(())
}

fn make_anew(old: &OwnedFd, new: &OwnedFd, name: &[u8]) -> nix::Result<FileStat> {
    let name = OsStr::from_bytes(name);
    let was = nix::sys::stat::fstatat(old, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    nix::sys::stat::mkdirat(new, name, Mode::S_IRWXU)?;
    Ok(was)
}

fn give_mode_and_attributes(old: &OwnedFd, new: &OwnedFd, was: &FileStat) -> nix::Result<()> {
    for attribute in xattr::list(old.as_fd(), b".").map_err(|_| Errno::EIO)? {
        let Ok(Some(value)) = xattr::get(old.as_fd(), b".", &attribute) else { continue };
        let given = xattr::set(new.as_fd(), b".", &attribute, &value);
        // Others are not the rule's.
        if given.is_err() && (attribute.starts_with(b"user.") || attribute.starts_with(b"system.posix_acl_")) {
            return Err(Errno::EIO);
        }
    }
    let mode = Mode::from_bits_truncate(was.st_mode & 0o7777);
    nix::sys::stat::fchmodat(new, ".", mode, FchmodatFlags::FollowSymlink)
}

fn give_times(new_top: &OwnedFd, folder: &Made) -> nix::Result<()> {
    let new = open(new_top.as_fd(), &folder.path)?;
    let access = TimeSpec::new(folder.was.st_atime, folder.was.st_atime_nsec);
    let modification = TimeSpec::new(folder.was.st_mtime, folder.was.st_mtime_nsec);
    nix::sys::stat::utimensat(&new, ".", &access, &modification, UtimensatFlags::NoFollowSymlink)
}

/// Undoes [`fill`]. What can't go back has nowhere to go; the rule is told that it failed.
fn give_back(old_top: &OwnedFd, new_top: &OwnedFd, made: &[Made]) {
    // The deepest first: a folder that was made anew goes when it is empty, and is not taken for one
    // that was renamed.
    for folder in made.iter().rev() {
        let (Ok(old), Ok(new)) = (open(old_top.as_fd(), &folder.path), open(new_top.as_fd(), &folder.path)) else {
            continue;
        };
        for name in names(&new).unwrap_or_default() {
            let _ = rename_at(new.as_fd(), &name, old.as_fd(), &name, RenameFlags::RENAME_NOREPLACE);
        }
        if !folder.path.is_empty() {
            let _ = remove_one(new_top, &folder.path);
        }
    }
}

/// Removes folders in which nothing is but each other.
fn remove(end: &End, top: &OwnedFd, made: &[Made]) -> nix::Result<()> {
    let below = made.iter().rev().filter(|folder| !folder.path.is_empty());
    for folder in below {
        match remove_one(top, &folder.path) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    nix::unistd::unlinkat(&end.folder, OsStr::from_bytes(&end.name), UnlinkatFlags::RemoveDir)
}

fn remove_one(top: &OwnedFd, path: &[u8]) -> nix::Result<()> {
    let (folder, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    nix::unistd::unlinkat(open(top.as_fd(), folder)?, OsStr::from_bytes(name), UnlinkatFlags::RemoveDir)
}
