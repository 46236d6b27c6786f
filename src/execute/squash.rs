//! Snapshots of more changesets than the kernel stacks: the lowest ones become one folder.
//!
//! It holds what an overlay of them shows, as hard links to the store's files: lower layers can't be
//! written. It is kept, by the digest of the list, for the rules that stand on the same ones.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::archive::kept;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::{self, Store};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Layer, RootPath, Stack};

/// More the kernel doesn't stack (`OVL_MAX_STACK` in fs/overlayfs).
const MOST: usize = 500;
/// So many become one folder, or a multiple of it: then rules of a long chain share it.
const AT_ONCE: usize = 256;

/// The folders to stack, the lowest first. Rules that changed the same in the same way share one
/// changeset, and the kernel stacks a folder once: the highest place counts.
pub fn folders(store: &Store, snapshot: &Stack) -> Result<Vec<PathBuf>> {
    let digests: Vec<_> = snapshot.0.iter().map(|layer| layer.digest).collect();
    let highest = digests.iter().enumerate().filter(|(at, digest)| !digests[at + 1..].contains(digest));
    let layers = highest.map(|(at, _)| &snapshot.0[at]);
    // The machine's own files are read in place, and are no part of the store that could be linked.
    let of_the_host = |layer: &&Layer| store::is_of_the_host(&store.changeset_files_path(&layer.digest));
    let (host, layers): (Vec<&Layer>, Vec<&Layer>) = layers.partition(of_the_host);
    let squashed = how_many(host.len() + layers.len());
    let mut folders: Vec<_> = host.iter().map(|layer| store.changeset_files_path(&layer.digest)).collect();
    if squashed > 0 {
        folders.push(squash(store, &layers[..squashed])?);
    }
    folders.extend(layers[squashed..].iter().map(|layer| store.changeset_files_path(&layer.digest)));
    Ok(folders)
}

/// How many of so many layers become one.
fn how_many(layers: usize) -> usize {
    // With the one that they become there are one fewer.
    let too_many = layers.saturating_sub(MOST);
    if too_many == 0 { 0 } else { (too_many + 1).div_ceil(AT_ONCE) * AT_ONCE }
}

fn squash(store: &Store, layers: &[&Layer]) -> Result<PathBuf> {
    // Not written through to the disk: another boot of the machine makes it anew.
    let names: String = layers.iter().map(|layer| format!("{}\n", layer.digest)).collect();
    let path = store.squashed_path(&Digest::of(format!("{}\n{names}", store.boot())));
    if !path.is_dir() {
        let scratch = store.scratch()?;
        let new = scratch.folder("squashed")?;
        lay_out(store, &Stack(layers.iter().map(|layer| (*layer).clone()).collect()), &new)?;
        file::rename_new(&new, &path)?;
    }
    store.touch(&path)?;
    Ok(path)
}

fn lay_out(store: &Store, stack: &Stack, to: &Path) -> Result<()> {
    let into = Root::open(to)?;
    let all = stack.below(&RootPath::root());
    for (path, (entry, layer)) in &all {
        let from = store.changeset_files(layer)?.folder(&path.parent().unwrap_or_default())?;
        let dir = into.folder(&path.parent().unwrap_or_default())?;
        if !entry.is_folder() {
            file::link_at(from.as_fd(), path.name(), dir.as_fd(), path.name())?;
            continue;
        }
        file::mkdir_at(dir.as_fd(), path.name(), entry.mode)?;
        for attribute in xattr::list(from.as_fd(), path.name())? {
            // Overlay's own say something of the layers that this folder lay on.
            let kept = [&b"user."[..], b"system.posix_acl_"].iter().any(|kind| attribute.starts_with(kind));
            if kept && !attribute.starts_with(b"user.overlay.") {
                let value = xattr::get(from.as_fd(), path.name(), &attribute)?.unwrap_or_default();
                xattr::set(dir.as_fd(), path.name(), &attribute, &value)?;
            }
        }
    }
    // The deepest first, so that nothing moves a folder's times any more.
    for (path, (entry, layer)) in all.iter().rev().filter(|(_, (entry, _))| entry.is_folder()) {
        let time = stack.0.iter().find(|l| l.digest == *layer).map_or(0, |l| l.changeset.time);
        let dir = into.folder(&path.parent().unwrap_or_default())?;
        kept::settle(dir.as_fd(), path, &entry.node, time)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Changeset;

    #[test]
    fn the_host_is_below_what_is_squashed_and_no_part_of_it() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path()).unwrap();
        let scratch = store.scratch().unwrap();
        let keep = |number: usize, files: &Path| {
            let changeset = Changeset { time: number as i64, changes: Default::default() };
            store.keep_changeset(Digest::of(number.to_string()), changeset, files).unwrap()
        };
        let link = scratch.path().join("host");
        std::os::unix::fs::symlink("/", &link).unwrap();
        let mut layers = vec![keep(0, &link)];
        layers.extend((1..=MOST).map(|number| keep(number, &scratch.folder("files").unwrap())));
        let folders = folders(&store, &Stack(layers)).unwrap();
        assert!(store::is_of_the_host(&folders[0]));
        assert!(folders[1].starts_with(temp.path().join("squashed")), "{}", folders[1].display());
        assert!(folders.len() <= MOST && !folders[1..].iter().any(|folder| store::is_of_the_host(folder)));
    }

    #[test]
    fn what_is_left_can_be_stacked_and_a_chain_shares_what_is_squashed() {
        assert_eq!((how_many(1), how_many(500), how_many(501), how_many(755), how_many(756)), (0, 0, 256, 256, 512));
        for layers in 501..3000 {
            let squashed = how_many(layers);
            assert!(squashed <= layers && layers - squashed < 500, "{layers}");
        }
    }
}
