//! A root that is not trusted: what a rule, an archive or an image made is opened through this,
//! never by joining strings. Every look-up is openat2(2) below the root's descriptor, so that no
//! link, no `..` and no race leads out of it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{FileStat, SFlag};

use crate::error::{Error, Result};
use crate::sys::file;
use crate::tree::RootPath;

/// A folder of the host that is the root of something untrusted.
#[derive(Debug, Clone)]
pub struct Root {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

/// No link in any part, and no way out.
const STRICT: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_MAGICLINKS);
/// Links lead where they would if this were `/`.
const INSIDE: ResolveFlag = ResolveFlag::RESOLVE_IN_ROOT.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

impl Root {
    /// A folder whose own path is trusted.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { fd: Arc::new(file::open_path(path)?), path: path.to_path_buf() })
    }

    /// Its path on the host, for messages and for what takes no descriptor.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn strict(&self, call: &str, path: &RootPath, flags: OFlag) -> Result<OwnedFd> {
        file::open_below(self.as_fd(), path.as_bytes(), flags | OFlag::O_NOFOLLOW, STRICT)
            .map_err(|errno| Error::io(call, path.below(&self.path), errno))
    }

    /// A regular file for reading; a link in any part is an error.
    pub fn open_file(&self, path: &RootPath) -> Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        // Access times carry marks (archive/kept.rs). Who doesn't own the file may not ask for that.
        let quietly =
            file::open_below(self.as_fd(), path.as_bytes(), flags | OFlag::O_NOATIME | OFlag::O_NOFOLLOW, STRICT);
        let fd = match quietly {
            Err(nix::Error::EPERM) => self.strict("open", path, flags)?,
            other => other.map_err(|errno| Error::io("open", path.below(&self.path), errno))?,
        };
        regular(fd, &path.below(&self.path))
    }

    /// A regular file for reading, links resolved inside the root.
    pub fn open_file_following(&self, path: &RootPath) -> Result<File> {
        let host = path.below(&self.path);
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = file::open_below(self.as_fd(), path.as_bytes(), flags, INSIDE)
            .map_err(|errno| Error::io("open", &host, errno))?;
        regular(fd, &host)
    }

    /// A folder, for descriptor work in it; a link in any part is an error.
    pub fn folder(&self, path: &RootPath) -> Result<OwnedFd> {
        self.strict("open", path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// A folder, links resolved inside the root, and its path without links.
    pub fn folder_following(&self, path: &RootPath) -> Result<(OwnedFd, RootPath)> {
        let host = path.below(&self.path);
        let fd = file::open_below(self.as_fd(), path.as_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, INSIDE)
            .map_err(|errno| Error::io("open", &host, errno))?;
        let name = |fd: BorrowedFd| {
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|e| Error::io("readlink", &host, e))
        };
        let (root, found) = (name(self.as_fd())?, name(fd.as_fd())?);
        let below = found
            .strip_prefix(&root)
            .map_err(|_| Error::failed(format!("{} leads out of its root", host.display())))?;
        let canonical = RootPath::new(std::os::unix::ffi::OsStrExt::as_bytes(below.as_os_str()))?;
        Ok((fd, canonical))
    }

    /// lstat; `None`: it or a folder above is not there.
    pub fn stat(&self, path: &RootPath) -> Result<Option<FileStat>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        match file::open_below(self.as_fd(), path.as_bytes(), flags, STRICT) {
            Ok(fd) => {
                nix::sys::stat::fstat(&fd).map(Some).map_err(|errno| Error::io("stat", path.below(&self.path), errno))
            }
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => Ok(None),
            Err(errno) => Err(Error::io("stat", path.below(&self.path), errno)),
        }
    }

    /// A folder of it as a root of its own.
    pub fn sub(&self, path: &RootPath) -> Result<Self> {
        let fd = self.strict("open", path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Self { fd: Arc::new(fd), path: path.below(&self.path) })
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn regular(fd: OwnedFd, path: &Path) -> Result<File> {
    let stat = nix::sys::stat::fstat(&fd).map_err(|errno| Error::io("fstat", path, errno))?;
    if file::kind(&stat) != SFlag::S_IFREG {
        return Err(Error::failed(format!("not a regular file: {}", path.display())));
    }
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn path(text: &str) -> RootPath {
        RootPath::new(text).unwrap()
    }

    #[test]
    fn no_link_leads_out() {
        let temp = tempfile::tempdir().unwrap();
        let inside = temp.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::write(inside.join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc", inside.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", inside.join("up")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", inside.join("file")).unwrap();
        let root = Root::open(&inside).unwrap();
        for link in ["absolute/passwd", "up/passwd", "file"] {
            assert!(root.open_file(&path(link)).is_err(), "{link}");
            let mut text = String::new();
            root.open_file_following(&path(link)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{link}");
        }
        assert_eq!(root.folder_following(&path("up")).unwrap().1, path("etc"));
        assert!(root.folder(&path("absolute")).is_err());
    }

    #[test]
    fn a_fifo_is_not_read() {
        let temp = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&temp.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Root::open(temp.path()).unwrap().open_file(&path("pipe")).is_err());
    }
}
