//! The check of an image: a command in the finished file system, as the image's user, with no
//! network and no capability, before the image is written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::build_file::spec::{Image, Limits};
use crate::error::{Error, Result};
use crate::execute::failure::of_32_bits;
use crate::execute::log::Live;
use crate::execute::secrets::Search;
use crate::execute::{log, room};
use crate::image::config::User;
use crate::sandbox::{Hit, Snapshots, Spec, Status, Turn};
use crate::store::{Scratch, Store};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tapeout::program::PATH;
use crate::tree::{Content, Entry, Node, RootPath, Selection};

/// Seconds that a check may take. It shows that an image works; one that waits for ever would hold up the build for as long.
const TIME: u64 = 600;
const MISSING: &str = "pick what is missing in a tapeout rule, or correct the check";

/// Runs the check of an image whose files, all layers together, are `files`. What it prints is told, and goes to `kept`.
pub fn run(
    store: &Store,
    image: &Image,
    user: &User,
    files: &Selection,
    epoch: i64,
    live: Live<'_>,
    kept: &Path,
) -> Result<()> {
    let (scratch, spec) = finished(store, image, user, files, epoch)?;
    let spec = checking(spec, image);
    let log_path = scratch.path().join("log");
    let outcome = log::run(&spec, &log_path, &Search::default(), Some(live), Turn::NOW)?;
    fs::rename(&log_path, kept).map_err(|e| Error::io("rename", kept, e))?;
    match failure(outcome.status) {
        None => Ok(()),
        Some((what, next)) => Err(log::told(of_32_bits(Error::failed(what), &outcome), kept).next(next)),
    }
}

fn checking(spec: Spec, image: &Image) -> Spec {
    Spec { steps: image.check.clone(), limits: Limits { time: Some(TIME), ..spec.limits }, ..spec }
}

/// What went wrong, and what to do next.
fn failure(status: Status) -> Option<(String, &'static str)> {
    let (how, next) = match status {
        Status::Exited(0) => return None,
        Status::Exited(code) => (format!("ended with exit code {code}"), MISSING),
        Status::Signalled(signal) => (format!("was ended by signal {signal}"), MISSING),
        Status::Limit(Hit::Time) => (
            format!("took longer than {TIME} s"),
            "let it end by itself: a server is started, asked, and stopped again; what takes long belongs in a rule",
        ),
        Status::Limit(hit) => (format!("went over its limit of {hit}"), "let it need less, or do it in a rule"),
    };
    Some((format!("the check {how}"), next))
}

/// A finished image to run something in, as its user, in its environment; its folders are in the scratch folder.
pub(super) fn finished(
    store: &Store,
    image: &Image,
    user: &User,
    files: &Selection,
    epoch: i64,
) -> Result<(Scratch, Spec)> {
    let scratch = store.scratch()?;
    let root = scratch.folder("image")?;
    unpack(store, files, user, &root, epoch)?;
    let mut env = BTreeMap::from([("PATH".to_string(), PATH.to_string())]);
    env.extend(image.env.clone());
    let place = room::place(store)?;
    let copied = place.snapshots == Snapshots::Copy;
    let spec = Spec {
        tree: copied.then(|| root.clone()),
        isolation: place.isolation,
        lower: vec![root],
        upper: scratch.folder("upper")?,
        work: scratch.folder("work")?,
        root: scratch.folder("root")?,
        tmp: scratch.folder("tmp")?,
        env,
        cwd: if image.working_dir.is_empty() { "/".to_string() } else { image.working_dir.clone() },
        uid: user.uid,
        gid: user.gid,
        hostname: "tapeout".to_string(),
        no_capabilities: true,
        ..Spec::default()
    };
    Ok((scratch, spec))
}

/// Lays the files of an image out. Inside, all belong to the one mapped ID, so the owner's bits
/// become what this user may do.
fn unpack(store: &Store, files: &Selection, user: &User, root: &Path, epoch: i64) -> Result<()> {
    let into = Root::open(root)?;
    for (path, picked) in files {
        let (Some(entry), Some(parent)) = (&picked.entry, path.parent()) else { continue };
        fs::create_dir_all(parent.below(root)).map_err(|e| Error::io("mkdir", parent.below(root), e))?;
        let folder = into.folder(&parent)?;
        let mode = as_user(entry, user);
        let name = path.name();
        match &entry.node {
            Node::Folder => match file::stat_at(folder.as_fd(), name)? {
                Some(_) => file::chmod_at(folder.as_fd(), name, mode | 0o700)?,
                None => file::mkdir_at(folder.as_fd(), name, mode | 0o700)?,
            },
            Node::Link { target } => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path.below(root))
                .map_err(|e| Error::io("symlink", path.below(root), e))?,
            Node::File { .. } => {
                let mut new = file::create_file_at(folder.as_fd(), name, mode)?;
                write(store, path, &picked.content, &mut new)?;
            }
            Node::Fifo => file::mkfifo_at(folder.as_fd(), name, mode)?,
            Node::Device { .. } | Node::Socket => drop(file::create_file_at(folder.as_fd(), name, mode)?),
        }
    }
    // The deepest first: a folder that this user can't enter still had to be filled.
    for (path, picked) in files.iter().rev() {
        let (Some(entry), Some(parent)) = (&picked.entry, path.parent()) else { continue };
        let folder = into.folder(&parent)?;
        if entry.is_folder() {
            file::chmod_at(folder.as_fd(), path.name(), as_user(entry, user))?;
        }
        file::set_mtime_at(folder.as_fd(), path.name(), epoch)?;
    }
    Ok(())
}

fn write(store: &Store, path: &RootPath, content: &Content, new: &mut File) -> Result<()> {
    match content {
        Content::None => Ok(()),
        Content::Inline(bytes) => io::Write::write_all(new, bytes).map_err(|e| Error::io("write", path.as_path(), e)),
        Content::Stored { changeset, path } => {
            let from = store.read(changeset, path)?;
            file::reflink_or_copy(&from, new).map_err(|e| Error::io("copy", path.as_path(), e))
        }
    }
}

fn as_user(entry: &Entry, user: &User) -> u32 {
    let allowed = if user.uid == 0 || entry.uid == user.uid {
        entry.mode >> 6
    } else if entry.gid == user.gid || user.groups.contains(&entry.gid) {
        entry.mode >> 3
    } else {
        entry.mode
    } & 0o7;
    (entry.mode & 0o077) | allowed << 6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_file::spec::Step;

    #[test]
    fn a_check_that_never_ends_is_ended_and_what_ended_it_is_said() {
        let image = Image { check: vec![Step::Shell("sleep infinity".to_string())], ..Image::default() };
        let spec = checking(Spec::default(), &image);
        assert_eq!((spec.steps, spec.limits.time), (image.check, Some(TIME)));
        assert!(failure(Status::Exited(0)).is_none());
        for (status, what, next) in [
            (Status::Exited(3), "the check ended with exit code 3", MISSING),
            (Status::Limit(Hit::Time), "the check took longer than 600 s", "let it end by itself"),
            (Status::Limit(Hit::FileSize), "the check went over its limit of file_size", "let it need less"),
        ] {
            let found = failure(status).unwrap();
            assert_eq!(found.0, what);
            assert!(found.1.starts_with(next), "{found:?}");
        }
    }

    #[test]
    fn the_owner_may_what_the_user_of_the_image_may() {
        let entry = |uid, gid, mode| Entry { uid, gid, ..Entry::file(b"", mode) };
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        assert_eq!(as_user(&entry(0, 0, 0o640), &user(33, 33, &[])) & 0o700, 0);
        assert_eq!(as_user(&entry(0, 33, 0o640), &user(33, 33, &[])) & 0o700, 0o400);
        assert_eq!(as_user(&entry(33, 0, 0o640), &user(33, 33, &[])) & 0o700, 0o600);
        assert_eq!(as_user(&entry(33, 0, 0o640), &user(0, 0, &[])) & 0o700, 0o600);
        assert_eq!(as_user(&entry(0, 110, 0o640), &user(33, 33, &[4, 110])) & 0o700, 0o400);
        assert_eq!(as_user(&entry(33, 110, 0o040), &user(33, 33, &[110])) & 0o700, 0, "the owner's bits count first");
    }
}
