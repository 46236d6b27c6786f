//! Extended attributes (xattr(7)) by descriptor, links not followed.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;

use super::file::{c, checked, open_path, proc_name, shown};
use crate::error::{Error, Result};

/// Runs `f` with the name under which xattr calls reach this very file without following a link:
/// `/proc/self/fd/FOLDER/NAME` with the `l…xattr` calls.
fn with_xattr_name<T>(dir: BorrowedFd, name: &[u8], f: impl FnOnce(&CStr) -> T) -> Result<T> {
    let mut path = proc_name(dir).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name);
    Ok(f(&c(&path)?))
}

/// lgetxattr(2); `None`: it has none of that name, or the file system has no attributes.
pub fn get(dir: BorrowedFd, name: &[u8], attribute: &[u8]) -> Result<Option<Vec<u8>>> {
    let attribute_c = c(attribute)?;
    let mut value = vec![0u8; 256];
    loop {
        let n = with_xattr_name(dir, name, |path| {
            // SAFETY: both strings end in NUL, and the size passed is that of the live buffer.
            unsafe { libc::lgetxattr(path.as_ptr(), attribute_c.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
        })?;
        if n >= 0 {
            value.truncate(n as usize);
            return Ok(Some(value));
        }
        match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => return Ok(None),
            e if e.raw_os_error() == Some(libc::ERANGE) && value.len() < 128 * 1024 => value.resize(value.len() * 4, 0),
            e => return Err(Error::io("getxattr", shown(dir, name), e)),
        }
    }
}

/// llistxattr(2), sorted; empty where the file system has none.
pub fn list(dir: BorrowedFd, name: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut names = vec![0u8; 1024];
    loop {
        let n = with_xattr_name(dir, name, |path| {
            // SAFETY: the path ends in NUL, and the size passed is that of the live buffer.
            unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) }
        })?;
        if n >= 0 {
            names.truncate(n as usize);
            let mut found: Vec<_> = names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
            found.sort_unstable();
            return Ok(found);
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(vec![]),
            e if e.raw_os_error() == Some(libc::ERANGE) && names.len() < 128 * 1024 => names.resize(names.len() * 4, 0),
            e => return Err(Error::io("listxattr", shown(dir, name), e)),
        }
    }
}

/// lsetxattr(2).
pub fn set(dir: BorrowedFd, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<()> {
    let attribute_c = c(attribute)?;
    let n = with_xattr_name(dir, name, |path| {
        // SAFETY: both strings end in NUL, and the size passed is that of the live value.
        unsafe { libc::lsetxattr(path.as_ptr(), attribute_c.as_ptr(), value.as_ptr().cast(), value.len(), 0) }
    })?;
    checked("setxattr", dir, name, n.into()).map(drop)
}

/// fgetxattr(2) of an attribute that is no longer than `longest` bytes.
pub fn get_open(file: BorrowedFd, attribute: &CStr, longest: usize) -> nix::Result<Vec<u8>> {
    let mut value = vec![0u8; longest];
    // SAFETY: the name ends in NUL, and the size passed is that of the live buffer.
    let n = unsafe { libc::fgetxattr(file.as_raw_fd(), attribute.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(Errno::result(n)? as usize);
    Ok(value)
}

/// fsetxattr(2); `flags`: XATTR_CREATE, XATTR_REPLACE.
pub fn set_open(file: BorrowedFd, attribute: &CStr, value: &[u8], flags: i32) -> nix::Result<()> {
    // SAFETY: the name ends in NUL, and the size passed is that of the live value.
    let n = unsafe { libc::fsetxattr(file.as_raw_fd(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(n).map(drop)
}

/// May files in this folder have attributes `user.*`? Tried on the folder itself.
pub fn has_user_attributes(folder: &Path) -> bool {
    let tried = open_path(folder).and_then(|dir| {
        set(dir.as_fd(), b".", b"user.tapeout", b"1")?;
        remove(dir.as_fd(), b".", b"user.tapeout")
    });
    tried.is_ok()
}

/// Takes a folder's access control lists away, which it has when the folder above gives all that is
/// made in it rights: what is made in this one has the mode that it is given.
pub fn inherit_no_acl(folder: &Path) -> Result<()> {
    let dir = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
    remove(dir.as_fd(), b".", b"system.posix_acl_default")?;
    remove(dir.as_fd(), b".", b"system.posix_acl_access")
}

/// lremovexattr(2); having none is fine.
pub fn remove(dir: BorrowedFd, name: &[u8], attribute: &[u8]) -> Result<()> {
    let attribute_c = c(attribute)?;
    let n = with_xattr_name(dir, name, |path| {
        // SAFETY: both strings end in NUL.
        unsafe { libc::lremovexattr(path.as_ptr(), attribute_c.as_ptr()) }
    })?;
    match n {
        0 => Ok(()),
        _ if matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
        _ => checked("removexattr", dir, name, n.into()).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::create_file_at;

    #[test]
    fn attributes_are_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_path(temp.path()).unwrap();
        create_file_at(dir.as_fd(), b"f", 0o600).unwrap();
        set(dir.as_fd(), b"f", b"user.a", b"1").unwrap();
        assert_eq!(list(dir.as_fd(), b"f").unwrap(), [b"user.a".to_vec()]);
        assert_eq!(get(dir.as_fd(), b"f", b"user.a").unwrap().unwrap(), b"1");
        remove(dir.as_fd(), b"f", b"user.a").unwrap();
        assert!(get(dir.as_fd(), b"f", b"user.a").unwrap().is_none());
    }
}
