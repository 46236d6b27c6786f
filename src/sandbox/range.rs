//! `ids = "range"`: several real IDs, mapped by newuidmap. Files have their real owners while the steps
//! run; before, those of the snapshot get them, and after, everything is given back to the one ID
//! that is ours outside, with the owners in the same record as everywhere.
//!
//! What a killed sandbox leaves behind has owners that nobody outside can remove: [`give_back`] does
//! the same for a whole folder, in a namespace of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sched::CloneFlags;
use nix::sys::stat::{FileStat, SFlag};

use crate::error::{Error, Result};
use crate::sandbox::seen::Known;
use crate::sandbox::start;
use crate::sys::nursery::{Birth, Newborn};
use crate::sys::{file, process, xattr};

const CAPABILITY: &[u8] = b"security.capability";

/// No part of a path may be a link, nor lead out.
const STRICT: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Gives everything below a folder of ours back to us, in a process that has the range. What can't be
/// given back stays.
pub fn give_back(folder: &Path) {
    let give = || -> Result<()> {
        let folder = nix::fcntl::open(
            folder,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(|errno| Error::io("open", folder, errno))?;
        let birth =
            Birth { task: start::GIVE_BACK, namespaces: CloneFlags::CLONE_NEWUSER, uid: 0, gid: 0, range: true };
        start::make(birth, &[folder.as_fd()])?.wait()
    };
    let _ = give();
}

/// The same, inside: the exit code.
pub(super) fn give_back_inside(mut newborn: Newborn) -> i32 {
    let mut given = || -> Result<()> {
        newborn.map_ids()?;
        let folder = newborn.passed.first().ok_or_else(|| Error::failed("no folder was passed"))?;
        take_back(folder.as_fd(), &mut |_, _| Ok(()))
    };
    i32::from(given().is_err())
}

/// Files of the snapshot get their real owners.
pub(super) fn give_owners(known: &Known) -> Result<()> {
    let root = file::open_path(Path::new("/"))?;
    for known in &known.files {
        let path = String::from_utf8_lossy(&known.path).into_owned();
        let relative = known.path.strip_prefix(b"/").unwrap_or(&known.path);
        let (parent, name) = match relative.iter().rposition(|b| *b == b'/') {
            Some(at) => (&relative[..at], &relative[at + 1..]),
            None => (b".".as_slice(), relative),
        };
        // What the sandbox has mounted its own over is not to be found.
        let Ok(folder) = file::open_below(root.as_fd(), parent, OFlag::O_PATH, STRICT) else { continue };
        let Some(stat) = file::stat_at(folder.as_fd(), name)? else { continue };
        let owner = (known.facts.uid, known.facts.gid);
        change(folder.as_fd(), name, &stat, owner).map_err(|e| {
            let why = format!("{path} is {}:{}, which may be outside of the range that is mapped", owner.0, owner.1);
            e.why(why).next("ask the administrator for a longer range in /etc/subuid and /etc/subgid")
        })?;
    }
    Ok(())
}

/// Everything below a folder, and itself, becomes 0:0; `tell` hears of each file before.
pub(super) fn take_back(top: BorrowedFd, tell: &mut dyn FnMut(&OwnedFd, &FileStat) -> Result<()>) -> Result<()> {
    give_all(top, (0, 0), tell)
}

/// The same with another owner.
pub(super) fn give_all(
    top: BorrowedFd,
    owner: (u32, u32),
    tell: &mut dyn FnMut(&OwnedFd, &FileStat) -> Result<()>,
) -> Result<()> {
    // Folders are opened anew from the top, so that a wide tree costs no descriptors.
    let mut folders: Vec<Vec<u8>> = vec![b".".to_vec()];
    while let Some(path) = folders.pop() {
        let opened = file::open_below(top, &path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, STRICT);
        let folder = opened.map_err(|errno| Error::io("open", String::from_utf8_lossy(&path).as_ref(), errno))?;
        for name in file::list(folder.as_fd())? {
            let Some(stat) = file::stat_at(folder.as_fd(), &name)? else { continue };
            tell(&file::open_at(folder.as_fd(), &name, OFlag::O_PATH)?, &stat)?;
            change(folder.as_fd(), &name, &stat, owner)?;
            if file::kind(&stat) == SFlag::S_IFDIR {
                folders.push([path.as_slice(), b"/", &name].concat());
            }
        }
    }
    let stat = nix::sys::stat::fstat(top).map_err(|errno| Error::io("fstat", "", errno))?;
    change(top, b".", &stat, owner)
}

/// chown(2) that takes nothing else away: it clears set-ID bits and capabilities, of folders neither.
fn change(dir: BorrowedFd, name: &[u8], stat: &FileStat, (uid, gid): (u32, u32)) -> Result<()> {
    if (stat.st_uid, stat.st_gid) == (uid, gid) {
        return Ok(());
    }
    let plain = file::kind(stat) == SFlag::S_IFREG;
    let capability = if plain { xattr::get(dir, name, CAPABILITY)? } else { None };
    let fd = file::open_at(dir, name, OFlag::O_PATH)?;
    process::change_owner(fd.as_fd(), uid, gid).map_err(|errno| match errno {
        Errno::EINVAL => Error::failed(format!("{uid}:{gid} is not mapped")),
        errno => Error::io("chown", file::shown(dir, name), errno),
    })?;
    if plain && stat.st_mode & 0o6000 != 0 {
        file::chmod_at(dir, name, stat.st_mode & 0o7777)?;
    }
    match capability {
        Some(value) => xattr::set(dir, name, CAPABILITY, &value),
        None => Ok(()),
    }
}
