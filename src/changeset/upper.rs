//! The walk of an overlay's upper folder: whiteouts become removals, folders that hide what was
//! below are told, and all that overlay wrote for itself is taken off.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::OFlag;

use super::found::{Finder, Found, Xattrs, is_whiteout};
use super::owners::{Met, Owners};
use super::places;
use crate::archive::access_list::{self, ACLS};
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::RootPath;

/// Finds what changed.
pub(super) fn walk(upper: &Root, owners: Owners) -> Result<Found> {
    let mut walk = Walk { finder: Finder { owners, found: Found::default() }, upper, copied_up: BTreeSet::new() };
    walk.all()?;
    Ok(walk.finder.found)
}

struct Walk<'a> {
    finder: Finder<'a>,
    upper: &'a Root,
    /// Files with several names that were copied up: the mark is taken off at the first name.
    copied_up: BTreeSet<(u64, u64)>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<()> {
        // Folders are opened anew from the top, so that depth costs no descriptors.
        let mut folders = vec![RootPath::root()];
        while let Some(folder) = folders.pop() {
            let dir = self.upper.folder(&folder)?;
            let leave_out = places::left_out(&folder);
            for name in file::list(dir.as_fd())? {
                if leave_out {
                    file::remove_tree_at(dir.as_fd(), &name)?;
                    continue;
                }
                let path = folder.join(&name)?;
                if self.one(dir.as_fd(), &name, &path)? {
                    folders.push(path);
                }
            }
            if folder.is_root() {
                forget_overlay(dir.as_fd(), b".")?;
            }
        }
        Ok(())
    }

    /// Takes one file; `true`: it is a folder to go into.
    fn one(&mut self, dir: BorrowedFd, name: &[u8], path: &RootPath) -> Result<bool> {
        let Some(stat) = file::stat_at(dir, name)? else { return Ok(false) };
        if is_whiteout(&stat) {
            match self.finder.below().get(path).map(|(entry, _)| entry.digest()) {
                Some(was) => self.finder.removed(path, was),
                None => file::unlink_at(dir, name)?,
            }
            return Ok(false);
        }
        let attributes = Attributes::read(dir, name, path)?;
        if attributes.opaque {
            self.finder.found.opaque.push(path.clone());
        }
        let inode = (stat.st_dev, stat.st_ino);
        if attributes.copied_up && stat.st_nlink > 1 {
            self.copied_up.insert(inode);
        }
        let copied_up = attributes.copied_up || self.copied_up.contains(&inode);
        let handle = || file::handle(file::open_at(dir, name, OFlag::O_PATH)?.as_fd());
        let met = Met { path, stat: &stat, of_snapshot: copied_up, handle: &handle };
        self.finder.add(dir, name, &met, attributes.kept)
    }
}

/// The extended attributes of a file of the upper folder.
#[derive(Default)]
struct Attributes {
    kept: Xattrs,
    opaque: bool,
    /// It was copied up from a file below.
    copied_up: bool,
}

/// On a folder of the kept form: it holds whiteouts.
pub(super) const ORIGIN: &[u8] = b"user.overlay.origin";
/// What a program may that has it.
pub(super) const CAPABILITY: &[u8] = b"security.capability";
const OVERLAY: &[u8] = b"user.overlay.";
/// What overlay makes of an attribute `user.overlay.…` that a rule sets itself.
const ESCAPED: &[u8] = b"user.overlay.overlay.";

impl Attributes {
    /// Reads them, and removes from the file those that are overlay's own.
    fn read(dir: BorrowedFd, name: &[u8], path: &RootPath) -> Result<Self> {
        let mut found = Self::default();
        for attribute in xattr::list(dir, name)? {
            let value = || xattr::get(dir, name, &attribute).map(Option::unwrap_or_default);
            if attribute.starts_with(ESCAPED) {
                return Err(an_order(&attribute[8..], path));
            }
            match attribute.as_slice() {
                b"user.overlay.opaque" => found.opaque = value()? == b"y",
                ORIGIN => found.copied_up = true,
                CAPABILITY => drop(found.kept.insert(attribute.clone(), version_2(value()?))),
                acl if ACLS.contains(&acl) => drop(found.kept.insert(attribute.clone(), list_of(&value()?, path)?)),
                other if other.starts_with(OVERLAY) => {}
                other if other.starts_with(b"user.") => drop(found.kept.insert(attribute.clone(), value()?)),
                _ => continue,
            }
            if attribute.starts_with(OVERLAY) {
                xattr::remove(dir, name, &attribute)?;
            }
        }
        Ok(found)
    }
}

/// The attributes that go into layers of a file that no overlay has shown.
pub(super) fn plain_attributes(dir: BorrowedFd, name: &[u8], path: &RootPath) -> Result<Xattrs> {
    if let Some(order) = xattr::list(dir, name)?.into_iter().find(|attribute| attribute.starts_with(OVERLAY)) {
        return Err(an_order(&order, path));
    }
    let mut kept = plain_attributes_of_kept(dir, name)?;
    for acl in ACLS {
        if let Some(value) = kept.remove(acl) {
            kept.insert(acl.to_vec(), list_of(&value, path)?);
        }
    }
    Ok(kept)
}

/// The same of a file in the kept form, which may have some that are overlay's.
pub(super) fn plain_attributes_of_kept(dir: BorrowedFd, name: &[u8]) -> Result<Xattrs> {
    let mut kept = Xattrs::new();
    for attribute in xattr::list(dir, name)? {
        let value = || xattr::get(dir, name, &attribute).map(Option::unwrap_or_default);
        match attribute.as_slice() {
            CAPABILITY => drop(kept.insert(attribute.clone(), version_2(value()?))),
            order if order.starts_with(OVERLAY) => {}
            other if other.starts_with(b"user.") || ACLS.contains(&other) => {
                drop(kept.insert(attribute.clone(), value()?));
            }
            _ => {}
        }
    }
    Ok(kept)
}

/// The access list that a file has in the kept form.
fn list_of(value: &[u8], path: &RootPath) -> Result<Vec<u8>> {
    access_list::from_disk(value).ok_or_else(|| {
        Error::failed(format!("{path} has an access control list that can't be kept"))
            .why("it names users or groups, and was not set by way of the sandbox's init")
            .next("take the names out in the rule (setfacl -b FILE)")
    })
}

fn an_order(attribute: &[u8], path: &RootPath) -> Error {
    Error::failed(format!("a rule set the attribute {} on {path}", String::from_utf8_lossy(attribute)))
        .why("overlay file systems read such attributes as orders")
        .next("remove it in the rule: setfattr -x NAME FILE")
}

fn forget_overlay(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    for attribute in xattr::list(dir, name)? {
        if attribute.starts_with(OVERLAY) {
            xattr::remove(dir, name, &attribute)?;
        }
    }
    Ok(())
}

/// File capabilities as version 2. Version 3 also says for which user namespace they hold:
/// `struct vfs_ns_cap_data` of linux/capability.h.
pub(super) fn version_2(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() == 24 && value[3] == 3 {
        value.truncate(20);
        value[3] = 2;
    }
    value
}
