//! An image as a folder: its layers unpacked one over the other, for whoever calls.
//!
//! It appears whole or not at all. An ordinary user owns all of it, whatever the image says, and makes
//! no devices, nor programs that run as their owner where that is not the image's: what could not be done is told, and nothing else is different.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;

use super::layout::{make_folder, new_beside};
use crate::archive::unpack::{Owner, Owners};
use crate::builder::image::Image;
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Node, RootPath};

/// What an unpacked image lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Unpacked {
    /// How many paths it has.
    pub paths: usize,
    /// Those that belong to somebody else in the image, which also cost a file its set-ID bits: path, user, group.
    pub owners: Vec<(String, u32, u32)>,
    /// Devices: empty files here.
    pub devices: Vec<String>,
    /// Those with attributes that could not be set.
    pub attributes: Vec<String>,
}

/// Unpacks an image into a folder that is not there yet, or empty. All times are `time`.
pub fn unpack(image: &Image, to: &Path, time: i64) -> Result<Unpacked> {
    let occupied = || {
        Error::request(format!("{} is there already", to.display()))
            .why("what is in it would be mixed with the image, or lost")
            .next("name a folder that does not exist, or an empty one")
    };
    if fs::symlink_metadata(to).is_ok() && !fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(occupied());
    }
    let new = new_beside(to)?;
    make_folder(&new)?;
    let fill = || {
        let root = Root::open(&new)?;
        let owners = image.unpack(&root)?;
        let unpacked = settle(&root, &owners, time)?;
        // An empty folder may be replaced by rename(2); one that was filled meanwhile is not.
        match fs::rename(&new, to) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST | libc::ENOTDIR)) => {
                Err(occupied())
            }
            renamed => renamed.map(|()| unpacked).map_err(|e| Error::io("rename", to, e)),
        }
    };
    fill().inspect_err(|_| {
        // What went wrong first is what is told.
        let _ = file::remove_tree(&new);
    })
}

/// Gives every file the owner, attributes, mode and time that it has in the image, as far as we may.
fn settle(root: &Root, owners: &Owners, time: i64) -> Result<Unpacked> {
    let mut lacks = Unpacked { paths: owners.len(), ..Unpacked::default() };
    // The deepest first: a folder that can't be written or entered still has to be settled inside.
    for (path, owner) in owners.iter().rev() {
        let folder = root.folder(&path.parent().unwrap_or_default())?;
        let (folder, name) = (folder.as_fd(), path.name());
        let Some(stat) = file::stat_at(folder, name)? else { continue };
        let is_link = file::kind(&stat) == nix::sys::stat::SFlag::S_IFLNK;
        if let Some(Node::Device { character, major, minor }) = owner.device
            && !file::make_device_at(folder, name, character, (major, minor))?
        {
            lacks.devices.push(path.to_string());
        }
        let owned = file::chown_at(folder, name, owner.uid, owner.gid)?;
        if !owned {
            lacks.owners.push((path.to_string(), owner.uid, owner.gid));
        }
        if !is_link {
            // A change of owner takes the set-ID bits away. Where it could not be made they stay away: a
            // program of the image would run as us, for whoever on this machine calls it.
            let is_folder = file::kind(&stat) == nix::sys::stat::SFlag::S_IFDIR;
            let set_id = if owned || is_folder { 0 } else { 0o6000 };
            file::chmod_at(folder, name, owner.mode & !set_id)?;
            set_attributes(root, path, owner, &mut lacks)?;
        }
        file::set_mtime_at(folder, name, time)?;
    }
    for list in [&mut lacks.devices, &mut lacks.attributes] {
        list.reverse();
    }
    lacks.owners.reverse();
    Ok(lacks)
}

fn set_attributes(root: &Root, path: &RootPath, owner: &Owner, lacks: &mut Unpacked) -> Result<()> {
    if owner.xattrs.is_empty() {
        return Ok(());
    }
    let folder = root.folder(&path.parent().unwrap_or_default())?;
    let set = |(name, value): (&Vec<u8>, &Vec<u8>)| xattr::set(folder.as_fd(), path.name(), name, value).is_ok();
    if !owner.xattrs.iter().all(set) {
        lacks.attributes.push(path.to_string());
    }
    Ok(())
}
