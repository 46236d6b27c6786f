//! Access control lists that name users or groups: the kernel knows none of them here, so init keeps such a list in a form
//! that it takes ([`access_list::to_disk`]), and shows it as it was asked for. One that names nobody is the kernel's.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::archive::access_list::{self, LONGEST};
use crate::error::{Error, Result};
use crate::sys::seccomp::Notification;
use crate::sys::{file, proc, process, xattr};

const NAMES: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// The list that a caller means by the name of an attribute; `None`: another attribute, or it can't be read, which the
/// kernel answers.
pub(super) fn meant(asked: &Notification, name: u64) -> Option<&'static CStr> {
    let name = process::read_string(asked.thread, name).ok()?;
    NAMES.into_iter().find(|list| list.to_bytes() == name)
}

/// A list that a caller sets, as it is kept; `None`: it names nobody, or is none.
pub(super) fn to_keep(
    asked: &Notification,
    value: u64,
    size: usize,
    mapped: (u32, u32),
) -> nix::Result<Option<Vec<u8>>> {
    if size > LONGEST {
        return Err(Errno::E2BIG);
    }
    let list = process::read_memory(asked.thread, value, size)?;
    match access_list::names_somebody(&list) {
        false => Ok(None),
        true if access_list::is_valid(&list) => Ok(Some(access_list::to_disk(&list, mapped))),
        true => Err(Errno::EINVAL),
    }
}

/// A file that has lists is open for a moment: the calls want no descriptor that only names it.
fn opened<T>(found: BorrowedFd, run: impl FnOnce(BorrowedFd) -> nix::Result<T>) -> nix::Result<Option<T>> {
    if !matches!(file::kind(&nix::sys::stat::fstat(found)?), SFlag::S_IFREG | SFlag::S_IFDIR) {
        return Ok(None);
    }
    let open = proc::open(&format!("self/fd/{}", found.as_raw_fd()), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    run(open.as_fd()).map(Some)
}

/// The list of a file, where it is one that the kernel would show otherwise.
pub(super) fn get(found: BorrowedFd, attribute: &CStr) -> nix::Result<Option<Vec<u8>>> {
    let Some(kept) = opened(found, |open| xattr::get_open(open, attribute, LONGEST))? else { return Ok(None) };
    Ok(access_list::from_disk(&kept).filter(|list| *list != kept))
}

/// Gives a file a list that is kept.
pub(super) fn set(found: BorrowedFd, attribute: &CStr, kept: &[u8], flags: i32) -> nix::Result<()> {
    opened(found, |open| xattr::set_open(open, attribute, kept, flags))?.ok_or(Errno::EOPNOTSUPP)
}

/// Where IDs are real, lists of a file name them: they become such as are kept.
pub(super) fn to_disk(found: BorrowedFd) -> Result<()> {
    let io = |call: &'static str| move |errno: Errno| Error::io(call, file::shown(found, b""), errno);
    let all = opened(found, |open| {
        for attribute in NAMES {
            match xattr::get_open(open, attribute, LONGEST) {
                Ok(list) if access_list::from_disk(&list).is_none() => {
                    xattr::set_open(open, attribute, &access_list::to_disk(&list, (0, 0)), 0)?;
                }
                Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    });
    all.map(drop).map_err(io("setxattr"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::access_list::ACLS;

    #[test]
    fn the_names_are_those_of_the_archive() {
        assert_eq!(NAMES.map(CStr::to_bytes), ACLS);
    }
}
