//! `host`: this machine's own toolchain as a builder. Nothing is downloaded or copied.
//!
//! It has two changesets. The lower one is a list of what lies below `/usr` (and `/bin`, `/lib`, … where these
//! are folders of their own): its `files` in the store is a link to `/`, so whoever reads a file of it reads the
//! host's, in place. The upper one is a skeleton of our own: every folder of these, since an overlay can't copy up a
//! folder whose owner isn't mapped, the links of a merged `/usr`, and the little of `/etc` that programs need to
//! start: what the loader knows, alternatives, certificates, and a `passwd` with root and nobody. Nothing else of the host is
//! there: no home, no `/root`, `/var`, `/run`, `/opt`, `/srv`, no other part of `/etc`.
//!
//! Reading all of `/usr` would take longer than most builds, so contents aren't hashed: a file counts as its size,
//! time and path, and the whole as [`fingerprint`]. That's why what is built in it is marked not reproducible.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{Builder, EPOCH, Request, rootfs};
use crate::archive::unpack::{Owner, Owners, tree_of};
use crate::changeset::digest_of;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Change, Changeset, Entry, Node, RootPath};

/// What may be a folder with programs or libraries at the top of a host, or a link into `/usr`.
const TOPS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Folders that are there and empty.
const EMPTY: [&str; 12] =
    ["dev", "etc", "home", "opt", "proc", "root", "run", "sys", "tmp", "var", "var/lib", "var/tmp"];
/// What is copied of `/etc`: nothing of it is secret, and whatever the caller can't read is left out.
const ETC: [&str; 11] = [
    "alternatives",
    "ca-certificates",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "os-release",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "redhat-release",
    "ssl/certs",
];
/// Bytes of a file that is copied, and paths below the tops.
const LARGEST: u64 = 16 << 20;
const PATHS: usize = 4_000_000;
/// What the fingerprint looks at: it changes when packages come and go.
const WITNESSES: [&str; 12] = [
    "/etc/os-release",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/include",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/include",
];

/// The folders at the top of this machine that a rule sees in place.
pub fn tops() -> Vec<&'static str> {
    let is_folder = |top: &&str| fs::symlink_metadata(Path::new("/").join(top)).is_ok_and(|stat| stat.is_dir());
    TOPS.into_iter().filter(|top| is_folder(top)).collect()
}

/// Names the state of this machine's programs and libraries without reading them.
pub fn fingerprint() -> String {
    let mut text = String::from("tapeout host 1\n");
    for witness in WITNESSES {
        if let Ok(stat) = fs::metadata(witness) {
            let (time, change) = ((stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()));
            let _ = writeln!(text, "{witness} {} {} {time:?} {change:?}", stat.ino(), stat.size());
        }
    }
    text
}

/// Makes the builder of this machine.
pub fn make(request: &Request) -> Result<Builder> {
    let store = request.archive.store;
    let time = request.epoch.unwrap_or(EPOCH);
    let scratch = store.scratch()?;
    let files = scratch.folder("files")?;
    let root = Root::open(&files)?;
    let mut owners = Owners::new();
    let mut listed = BTreeMap::new();
    for top in TOPS {
        let from = Path::new("/").join(top);
        match fs::symlink_metadata(&from) {
            Ok(stat) if stat.is_dir() => walk(&from, &root, &mut owners, &mut listed)?,
            Ok(stat) if stat.is_symlink() => link(&from, Path::new("/"), &root, &mut owners)?,
            _ => {}
        }
    }
    for folder in EMPTY {
        let mode = match folder {
            "tmp" | "var/tmp" => 0o1777,
            "root" => 0o700,
            _ => 0o755,
        };
        self::folder(&RootPath::new(folder)?, mode, &root, &mut owners)?;
    }
    for name in ETC {
        copy(&Path::new("/etc").join(name), &root, &mut owners)?;
    }
    let users = [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("hosts", rootfs::HOSTS),
    ];
    for (name, text) in users {
        put(&RootPath::new("etc")?.join(name)?, text.as_bytes(), 0o644, &root, &mut owners)?;
    }
    let skeleton = tree_of(&root, &owners, time)?;
    let skeleton_digest = digest_of(&skeleton, |path| root.open_file(path))?;
    store.keep_changeset(skeleton_digest, skeleton, &files)?;

    let host = Digest::of(format!("{}{time}\n", fingerprint()));
    let link = scratch.path().join("host");
    std::os::unix::fs::symlink("/", &link).map_err(|e| Error::io("symlink", &link, e))?;
    store.keep_changeset(host, Changeset { time, changes: listed }, &link)?;
    Ok(Builder {
        tag: request.tag.into(),
        from: request.written.into(),
        changesets: vec![host, skeleton_digest],
        packages: rootfs::installed_packages(&Root::open(Path::new("/"))?)?,
        lock: None,
        reproducible: false,
    })
}

/// Lists what lies below a top, and makes its folders in the skeleton.
fn walk(top: &Path, root: &Root, owners: &mut Owners, listed: &mut BTreeMap<RootPath, Change>) -> Result<()> {
    for found in walkdir::WalkDir::new(top).follow_links(false).same_file_system(true).sort_by_file_name() {
        // A folder that only root may read has nothing for a rule either.
        let Ok(found) = found else { continue };
        let Ok(stat) = found.metadata() else { continue };
        let path = inside(found.path())?;
        let kind = stat.file_type();
        let mode = stat.mode() & 0o7777;
        if kind.is_dir() {
            folder(&path, mode | 0o700, root, owners)?;
            continue;
        }
        let node = if kind.is_symlink() {
            let target = fs::read_link(found.path()).map_err(|e| Error::io("readlink", found.path(), e))?;
            Node::Link { target: target.as_os_str().as_bytes().to_vec() }
        } else if kind.is_file() {
            let digest = Digest::of(format!(
                "host {path} {} {} {} {}",
                stat.size(),
                stat.mtime(),
                stat.mtime_nsec(),
                stat.ctime()
            ));
            Node::File { size: stat.size(), digest, group: None }
        } else {
            continue;
        };
        let mode = if kind.is_symlink() { 0o777 } else { mode };
        let entry = Entry { node, mode, ..Entry::folder(0o755) };
        listed.insert(path, Change { was: None, now: Some(entry) });
        if listed.len() > PATHS {
            return Err(Error::failed(format!("{} has more than {PATHS} files", top.display())));
        }
    }
    Ok(())
}

fn inside(path: &Path) -> Result<RootPath> {
    RootPath::new(path.as_os_str().as_bytes())
}

fn owner(mode: u32, content: Option<(Digest, u64)>) -> Owner {
    Owner { uid: 0, gid: 0, mode, xattrs: BTreeMap::new(), device: None, content, implied: false }
}

/// Makes a folder, with those above it.
fn folder(path: &RootPath, mode: u32, root: &Root, owners: &mut Owners) -> Result<()> {
    if path.is_root() || owners.contains_key(path) {
        return Ok(());
    }
    let above = path.parent().unwrap_or_default();
    folder(&above, 0o755, root, owners)?;
    file::mkdir_at(root.folder(&above)?.as_fd(), path.name(), 0o755)?;
    owners.insert(path.clone(), owner(mode, None));
    Ok(())
}

fn put(path: &RootPath, bytes: &[u8], mode: u32, root: &Root, owners: &mut Owners) -> Result<()> {
    let above = path.parent().unwrap_or_default();
    folder(&above, 0o755, root, owners)?;
    let mut made = file::create_file_at(root.folder(&above)?.as_fd(), path.name(), 0o600)?;
    std::io::Write::write_all(&mut made, bytes).map_err(|e| Error::io("write", path.as_path(), e))?;
    made.set_permissions(fs::Permissions::from_mode(mode)).map_err(|e| Error::io("fchmod", path.as_path(), e))?;
    owners.insert(path.clone(), owner(mode, Some((Digest::of(bytes), bytes.len() as u64))));
    Ok(())
}

fn link(from: &Path, top: &Path, root: &Root, owners: &mut Owners) -> Result<()> {
    let target = fs::read_link(from).map_err(|e| Error::io("readlink", from, e))?;
    let path = RootPath::new(from.strip_prefix(top).unwrap_or(from).as_os_str().as_bytes())?;
    let above = path.parent().unwrap_or_default();
    folder(&above, 0o755, root, owners)?;
    file::symlink_at(target.as_os_str().as_bytes(), root.folder(&above)?.as_fd(), path.name())?;
    owners.insert(path, owner(0o777, None));
    Ok(())
}

/// Copies a file or folder of `/etc`, as far as the caller may read it.
fn copy(from: &Path, root: &Root, owners: &mut Owners) -> Result<()> {
    for found in walkdir::WalkDir::new(from).follow_links(false).sort_by_file_name().into_iter().flatten() {
        let Ok(stat) = found.metadata() else { continue };
        let path = inside(found.path())?;
        // What only its owner may read is somebody's secret, wherever it lies.
        let for_all = stat.mode() & 0o004 != 0;
        match stat.file_type() {
            kind if kind.is_symlink() => link(found.path(), Path::new("/"), root, owners)?,
            kind if kind.is_dir() => folder(&path, 0o755, root, owners)?,
            kind if kind.is_file() && for_all && stat.size() <= LARGEST => {
                if let Ok(bytes) = fs::read(found.path()) {
                    put(&path, &bytes, if stat.mode() & 0o111 == 0 { 0o644 } else { 0o755 }, root, owners)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}
