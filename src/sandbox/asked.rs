//! What a step asks, as init reads it: a call taken apart, the thread that asks, and the file that it means.
//!
//! Its paths are resolved in init, whose root is the sandbox, as the caller would resolve them: from its own folder,
//! descriptors and root. What lies in its memory may change meanwhile, and leads nowhere else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};

use crate::sandbox::rename::End;
use crate::sys::seccomp::Notification;
use crate::sys::{file, proc, process};

pub(super) const MOUNT_NAMESPACE: &str = "self/ns/mnt";

/// A call, its arguments taken apart.
pub(super) enum Asked {
    Own {
        target: Target,
        uid: u32,
        gid: u32,
    },
    Device {
        folder: i32,
        path: u64,
        mode: u32,
        device: u64,
    },
    Rename {
        old: (i32, u64),
        new: (i32, u64),
        flags: u32,
    },
    Open {
        at: (i32, u64),
        how: How,
    },
    ReadLink {
        at: (i32, u64),
        into: (u64, usize),
    },
    Stat {
        target: Target,
        into: u64,
    },
    Statx {
        target: Target,
        mask: u32,
        into: u64,
    },
    /// `name` is an address, as all that is read or written in the caller's memory.
    GetAttribute {
        target: Target,
        name: u64,
        into: (u64, usize),
    },
    SetAttribute {
        target: Target,
        name: u64,
        value: (u64, usize),
        flags: i32,
    },
}

/// What a caller is told.
pub(super) enum Answer {
    Done(nix::Result<()>),
    /// So many bytes are in its memory.
    Length(usize),
    /// The kernel does it.
    Proceed,
    /// It has its answer already.
    Given,
}

/// How something is to be opened.
pub(super) enum How {
    Flags(i32),
    /// Where they lie: `struct open_how`.
    At(u64),
}

pub(super) enum Target {
    Descriptor(i32),
    Path { folder: i32, path: u64, flags: i32 },
}

pub(super) fn understand(n: &Notification) -> Option<Asked> {
    let a = n.arguments;
    let path = |folder: i32, path, flags| Target::Path { folder, path, flags };
    let here = libc::AT_FDCWD;
    Some(match n.call {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown => Asked::Own { target: path(here, a[0], 0), uid: a[1] as u32, gid: a[2] as u32 },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown => {
            Asked::Own { target: path(here, a[0], libc::AT_SYMLINK_NOFOLLOW), uid: a[1] as u32, gid: a[2] as u32 }
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod => Asked::Device { folder: here, path: a[0], mode: a[1] as u32, device: a[2] },
        libc::SYS_fchown => Asked::Own { target: Target::Descriptor(a[0] as i32), uid: a[1] as u32, gid: a[2] as u32 },
        libc::SYS_fchownat => {
            Asked::Own { target: path(a[0] as i32, a[1], a[4] as i32), uid: a[2] as u32, gid: a[3] as u32 }
        }
        libc::SYS_mknodat => Asked::Device { folder: a[0] as i32, path: a[1], mode: a[2] as u32, device: a[3] },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => Asked::Rename { old: (here, a[0]), new: (here, a[1]), flags: 0 },
        libc::SYS_renameat => Asked::Rename { old: (a[0] as i32, a[1]), new: (a[2] as i32, a[3]), flags: 0 },
        libc::SYS_renameat2 => Asked::Rename { old: (a[0] as i32, a[1]), new: (a[2] as i32, a[3]), flags: a[4] as u32 },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => Asked::Open { at: (here, a[0]), how: How::Flags(a[1] as i32) },
        libc::SYS_openat => Asked::Open { at: (a[0] as i32, a[1]), how: How::Flags(a[2] as i32) },
        libc::SYS_openat2 => Asked::Open { at: (a[0] as i32, a[1]), how: How::At(a[2]) },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink => Asked::ReadLink { at: (here, a[0]), into: (a[1], a[2] as usize) },
        libc::SYS_readlinkat => Asked::ReadLink { at: (a[0] as i32, a[1]), into: (a[2], a[3] as usize) },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat => Asked::Stat { target: path(here, a[0], 0), into: a[1] },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat => Asked::Stat { target: path(here, a[0], libc::AT_SYMLINK_NOFOLLOW), into: a[1] },
        libc::SYS_fstat => Asked::Stat { target: Target::Descriptor(a[0] as i32), into: a[1] },
        libc::SYS_newfstatat => Asked::Stat { target: path(a[0] as i32, a[1], a[3] as i32), into: a[2] },
        libc::SYS_statx => Asked::Statx { target: path(a[0] as i32, a[1], a[2] as i32), mask: a[3] as u32, into: a[4] },
        libc::SYS_getxattr | libc::SYS_lgetxattr | libc::SYS_fgetxattr => {
            Asked::GetAttribute { target: holder(n), name: a[1], into: (a[2], a[3] as usize) }
        }
        libc::SYS_setxattr | libc::SYS_lsetxattr | libc::SYS_fsetxattr => {
            Asked::SetAttribute { target: holder(n), name: a[1], value: (a[2], a[3] as usize), flags: a[4] as i32 }
        }
        _ => return None,
    })
}

/// Of which file an attribute is asked for.
fn holder(n: &Notification) -> Target {
    let path = |flags| Target::Path { folder: libc::AT_FDCWD, path: n.arguments[0], flags };
    match n.call {
        libc::SYS_fgetxattr | libc::SYS_fsetxattr => Target::Descriptor(n.arguments[0] as i32),
        libc::SYS_lgetxattr | libc::SYS_lsetxattr => path(libc::AT_SYMLINK_NOFOLLOW),
        _ => path(0),
    }
}

/// The path under which a file that is open here is known in our root.
pub(super) fn name_of(fd: BorrowedFd) -> nix::Result<Vec<u8>> {
    proc::name_of(fd)
}

/// Our root.
pub(super) fn top() -> nix::Result<OwnedFd> {
    nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

/// A path without its last part, and that part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let trimmed = &path[..end];
    match trimmed.iter().rposition(|b| *b == b'/') {
        Some(0) => (b"/", &trimmed[1..]),
        Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
        None => (b".", trimmed),
    }
}

/// The thread that asks.
pub(super) struct Caller {
    thread: i32,
    /// Its number in `/proc`.
    in_proc: i32,
}

impl Caller {
    /// Whoever made this call; `outer_proc`: `/proc` is that of a container around us, where threads have other numbers.
    pub fn of(asked: &Notification, outer_proc: bool) -> nix::Result<Self> {
        let in_proc = if outer_proc { process::number_in_proc(asked.thread)? } else { asked.thread };
        Ok(Self { thread: asked.thread, in_proc })
    }

    /// The name below `/proc` of something that it has.
    pub fn own(&self, name: &str) -> String {
        format!("{}/{name}", self.in_proc)
    }

    /// The name below `/proc` of a descriptor of its own, if that is what a path is: `/dev/stdout`, `/proc/self/fd/3`.
    pub fn own_descriptor(&self, path: &[u8]) -> Option<String> {
        let (link, rest) = own_link(path, self.in_proc)?;
        (rest.is_empty() && link.starts_with("fd/")).then(|| self.own(&link))
    }

    /// A descriptor of its own.
    fn descriptor(&self, number: i32) -> nix::Result<OwnedFd> {
        if number < 0 {
            return Err(Errno::EBADF);
        }
        self.follow(&self.own(&format!("fd/{number}")))
            .map_err(|errno| if errno == Errno::ENOENT { Errno::EBADF } else { errno })
    }

    /// Where a relative path starts.
    pub fn start(&self, folder: i32) -> nix::Result<OwnedFd> {
        if folder == libc::AT_FDCWD { self.follow(&self.own("cwd")) } else { self.descriptor(folder) }
    }

    fn follow(&self, in_proc: &str) -> nix::Result<OwnedFd> {
        proc::open(in_proc, OFlag::O_PATH)
    }

    /// What a call is about.
    pub fn target(&self, target: &Target) -> nix::Result<OwnedFd> {
        match target {
            Target::Descriptor(number) => self.descriptor(*number),
            Target::Path { folder, path, flags } => {
                let empty = flags & libc::AT_EMPTY_PATH != 0;
                match self.path(*path, empty)? {
                    path if path.is_empty() && empty => self.start(*folder),
                    path if path.is_empty() => Err(Errno::ENOENT),
                    path => self.open(*folder, &path, flags & libc::AT_SYMLINK_NOFOLLOW == 0),
                }
            }
        }
    }

    /// A path in its memory. A null pointer is an empty path where that is allowed (since 6.11).
    pub fn path(&self, address: u64, may_be_empty: bool) -> nix::Result<Vec<u8>> {
        if address == 0 && may_be_empty { Ok(vec![]) } else { process::read_string(self.thread, address) }
    }

    /// What it would open.
    pub fn open(&self, folder: i32, path: &[u8], follow: bool) -> nix::Result<OwnedFd> {
        if let Some((link, rest)) = own_link(path, self.in_proc) {
            let start = self.follow(&self.own(&link))?;
            match rest.iter().position(|b| *b != b'/') {
                // Without a rest it is the link that is meant, unless it is followed.
                None if follow || !rest.is_empty() => return Ok(start),
                None => {}
                Some(at) => return self.open_in(&start, &rest[at..], follow),
            }
        }
        let flags = OFlag::O_PATH | if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        let root = proc::link(&self.own("root"))?;
        if root == b"/" && !self.mounts_are_its_own()? {
            let start = if path.starts_with(b"/") { top()? } else { self.start(folder)? };
            return self.open_in(&start, path, follow);
        }
        // It has changed its root: the path is put together as it sees it, and resolved below that.
        let new_root = self.follow(&self.own("root"))?;
        if path.starts_with(b"/") {
            return file::open_below(new_root.as_fd(), path, flags, ResolveFlag::RESOLVE_IN_ROOT);
        }
        let start = self.start(folder)?;
        let whole = name_of(start.as_fd())?;
        match whole.strip_prefix(root.as_slice()) {
            Some(below) if below.is_empty() || below.starts_with(b"/") => {
                let whole = [below, b"/", path].concat();
                file::open_below(new_root.as_fd(), &whole, flags, ResolveFlag::RESOLVE_IN_ROOT)
            }
            // A folder outside of its root, which it has kept open.
            _ => self.open_in(&start, path, follow),
        }
    }

    /// It has a mount namespace that is not ours: the same path may be another file there.
    fn mounts_are_its_own(&self) -> nix::Result<bool> {
        Ok(proc::link(&self.own("ns/mnt"))? != proc::link(MOUNT_NAMESPACE)?)
    }

    /// A name in a folder, which need not be there; `None`: the path ends otherwise.
    pub fn end(&self, (folder, path): (i32, u64)) -> nix::Result<Option<End>> {
        let path = self.path(path, false)?;
        match split(&path) {
            (_, b"" | b"." | b"..") => Ok(None),
            (parent, name) => Ok(Some(End { folder: self.open(folder, parent, true)?, name: name.to_vec() })),
        }
    }

    /// Links lead where they do in our root, but for those of /proc that lead to what init has open.
    fn open_in(&self, start: &OwnedFd, path: &[u8], follow: bool) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        file::open_below(start.as_fd(), path, flags, ResolveFlag::RESOLVE_NO_MAGICLINKS)
    }

    pub fn effective_user(&self) -> Option<u32> {
        let status = proc::read(&self.own("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
    }

    pub fn umask(&self) -> u32 {
        let status = proc::read(&self.own("status")).unwrap_or_default();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
    }
}

/// A path that begins at one of the caller's own links, as `/proc/self/fd/3` or `/dev/stdout/x` do:
/// which link, and what follows it. Resolved in init, it would be init's own.
fn own_link(path: &[u8], thread: i32) -> Option<(String, &[u8])> {
    let standard: [(&[u8], i32); 3] = [(b"/dev/stdin", 0), (b"/dev/stdout", 1), (b"/dev/stderr", 2)];
    if let Some((_, number)) = standard.iter().find(|(name, _)| *name == path) {
        return Some((format!("fd/{number}"), b""));
    }
    let by_number = format!("/proc/{thread}/");
    let below = |prefix: &[u8]| path.strip_prefix(prefix);
    let whole = match below(b"/dev/fd/") {
        Some(rest) => [b"fd/", rest].concat(),
        None => [b"/proc/self/", b"/proc/thread-self/".as_slice(), by_number.as_bytes()]
            .into_iter()
            .find_map(below)?
            .to_vec(),
    };
    let parts = if whole.starts_with(b"fd/") { 2 } else { 1 };
    let end = whole.iter().enumerate().filter(|(_, b)| **b == b'/').nth(parts - 1).map_or(whole.len(), |(at, _)| at);
    let link = std::str::from_utf8(&whole[..end]).ok()?;
    let known = match link.strip_prefix("fd/") {
        Some(number) => number.parse::<u32>().is_ok(),
        None => matches!(link, "cwd" | "root"),
    };
    known.then(|| (link.to_string(), &path[path.len() - (whole.len() - end)..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_in_a_name() {
        for (path, parts) in [
            ("a", (".", "a")),
            ("a/b/", ("a", "b")),
            ("/a//", ("/", "a")),
            ("/a/b/..", ("/a/b", "..")),
            ("//", (".", "")),
            ("", (".", "")),
        ] {
            assert_eq!(split(path.as_bytes()), (parts.0.as_bytes(), parts.1.as_bytes()), "{path}");
        }
    }

    #[test]
    fn names_of_descriptors_are_the_callers() {
        for (path, expected) in [
            ("/dev/stdout", Some(("fd/1", ""))),
            ("/dev/fd/7", Some(("fd/7", ""))),
            ("/dev/fd/7/a/b", Some(("fd/7", "/a/b"))),
            ("/proc/self/fd/3", Some(("fd/3", ""))),
            ("/proc/self/cwd/x", Some(("cwd", "/x"))),
            ("/proc/thread-self/root", Some(("root", ""))),
            ("/proc/42/fd/3/", Some(("fd/3", "/"))),
            ("/proc/43/fd/3", None),
            ("/proc/self/exe", None),
            ("/proc/self/fd", None),
            ("/proc/self/fd/x", None),
            ("/etc/passwd", None),
        ] {
            let found =
                own_link(path.as_bytes(), 42).map(|(link, rest)| (link, String::from_utf8_lossy(rest).into_owned()));
            assert_eq!(found, expected.map(|(link, rest)| (link.to_string(), rest.to_string())), "{path}");
        }
    }
}
