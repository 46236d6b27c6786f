//! Files in the store's kept form: their times, which make a file known again when a rule's overlay has copied it up,
//! and their attributes.

use std::os::fd::BorrowedFd;

use crate::archive::access_list::{self, ACLS};
use crate::error::Result;
use crate::sys::{file, xattr};
use crate::tree::{Node, RootPath};

/// The access time of a file in the kept form: the changeset's time, and nanoseconds that mark the
/// path. It stays with the file when a rule's overlay copies it up, and when it is then written or
/// renamed, so that the file can be told again; an unprivileged overlay leaves no other trace of
/// which file it was. (Overlay's own record, `user.overlay.origin`, is empty without
/// CAP_DAC_READ_SEARCH on the host: `ovl_can_decode_fh` in fs/overlayfs/util.c.) A file that was
/// touched has lost the mark, and counts as the one at its path.
pub fn mark(path: &RootPath, time: i64) -> (i64, i64) {
    let hash = (path.as_bytes().iter())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    (time, 1 + (hash % 999_999_999) as i64)
}

/// Gives a file an attribute as the kept form has it.
pub fn give_attribute(dir: BorrowedFd, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<()> {
    if ACLS.contains(&attribute) {
        // We are root where we are, whoever that is outside.
        return xattr::set(dir, name, attribute, &access_list::to_disk(value, (0, 0)));
    }
    xattr::set(dir, name, attribute, value)
}

/// Gives a file its times. Nothing may touch it after this; reading it is harmless.
pub fn settle(dir: BorrowedFd, path: &RootPath, node: &Node, time: i64) -> Result<()> {
    if !matches!(node, Node::Link { .. } | Node::Fifo | Node::Socket) {
        // Where it can't be, the mark lasts until somebody reads the file.
        let _ = file::keep_access_time_at(dir, path.name());
    }
    file::set_times_at(dir, path.name(), mark(path, time), time)
}

/// [`settle`] of an open folder.
pub fn settle_folder(folder: BorrowedFd, path: &RootPath, time: i64) -> Result<()> {
    let _ = file::keep_access_time(folder);
    file::set_times_at(folder, b".", mark(path, time), time)
}
