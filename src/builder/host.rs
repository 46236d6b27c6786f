//! `host`: this machine's own toolchain as a builder. Nothing is downloaded or copied.
//!
//! It has three changesets. The lowest is a list of what lies below `/usr` (and `/bin`, `/lib`, … where these
//! are folders of their own): its `files` in the store is a link to `/`, so whoever reads a file of it reads the
//! host's, in place. Above it is every folder of these, empty and our own, since an overlay can't copy up a
//! folder whose owner isn't mapped; then a skeleton: the links of a merged `/usr`, and the little of `/etc` that programs need to
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
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::stat::SFlag;

use super::{Builder, EPOCH, Request, rootfs};
use crate::archive::kept;
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
    let folders = scratch.folder("folders")?;
    let found = walk(&Root::open(Path::new("/"))?, &Root::open(&folders)?, time)?;

    let files = scratch.folder("files")?;
    let root = Root::open(&files)?;
    let mut owners = Owners::new();
    for top in TOPS {
        let from = Path::new("/").join(top);
        if fs::symlink_metadata(&from).is_ok_and(|stat| stat.is_symlink()) {
            link(&from, Path::new("/"), &root, &mut owners)?;
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

    let made = Changeset { time, changes: found.folders.into_iter().collect() };
    let made_digest = digest_of(&made, |path| root.open_file(path))?;
    store.keep_changeset(made_digest, made, &folders)?;

    let host = Digest::of(format!("{}{time}\n", fingerprint()));
    let link = scratch.path().join("host");
    std::os::unix::fs::symlink("/", &link).map_err(|e| Error::io("symlink", &link, e))?;
    store.keep_changeset(host, Changeset { time, changes: found.files.into_iter().collect() }, &link)?;
    Ok(Builder {
        tag: request.tag.into(),
        from: request.written.into(),
        changesets: vec![host, made_digest, skeleton_digest],
        packages: rootfs::installed_packages(&Root::open(Path::new("/"))?)?,
        lock: None,
        reproducible: false,
    })
}

/// What lies below the tops.
#[derive(Default)]
struct Found {
    folders: Vec<(RootPath, Change)>,
    files: Vec<(RootPath, Change)>,
    /// Folders that are made and still to be filled.
    unfilled: Vec<Unfilled>,
}

struct Unfilled {
    path: RootPath,
    mode: u32,
    device: u64,
    /// Another file system is mounted on it: it stays empty.
    is_mount: bool,
}

/// Lists what lies below the tops, and makes their folders in `into`, one level after the other. There are tens of
/// thousands of both, most of the time of a newcomer's first build, so every processor takes part.
fn walk(host: &Root, into: &Root, time: i64) -> Result<Found> {
    let mut all = Found::default();
    for top in tops() {
        let path = RootPath::new(top)?;
        let Some(stat) = host.stat(&path)? else { continue };
        file::make_folder_at(into.as_fd(), path.name())?;
        all.unfilled.push(Unfilled { path, mode: stat.st_mode & 0o7777, device: stat.st_dev, is_mount: false });
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    while !all.unfilled.is_empty() {
        let level = std::mem::take(&mut all.unfilled);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Found::default();
            while let Some(folder) = level.get(next.fetch_add(1, Ordering::Relaxed)) {
                fill(folder, host, into, time, &mut found)?;
            }
            Ok(found)
        };
        let parts: Vec<Result<Found>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut parts = vec![work()];
            parts.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
            parts
        });
        for part in parts {
            let part = part?;
            all.folders.extend(part.folders);
            all.files.extend(part.files);
            all.unfilled.extend(part.unfilled);
        }
        if all.files.len() + all.folders.len() > PATHS {
            return Err(Error::failed(format!(
                "this machine has more than {PATHS} files below /{}",
                tops().join(", /")
            ))
            .next("take a builder of packages instead: from = \"debian:bookworm\""));
        }
    }
    Ok(all)
}

/// Makes the folders of a folder, lists its files, and finishes it: nothing is made directly in it after that.
fn fill(folder: &Unfilled, host: &Root, into: &Root, time: i64, found: &mut Found) -> Result<()> {
    let made = into.folder(&folder.path)?;
    // A folder that only root may read has nothing for a rule either.
    if let (false, Ok(dir)) = (folder.is_mount, host.folder(&folder.path)) {
        for name in file::list(dir.as_fd())? {
            let Some(stat) = file::stat_at(dir.as_fd(), &name)? else { continue };
            let path = folder.path.join(&name)?;
            let mode = stat.st_mode & 0o7777;
            let (node, mode) = match file::kind(&stat) {
                SFlag::S_IFDIR => {
                    file::make_folder_at(made.as_fd(), &name)?;
                    let is_mount = stat.st_dev != folder.device;
                    found.unfilled.push(Unfilled { path, mode, device: stat.st_dev, is_mount });
                    continue;
                }
                SFlag::S_IFLNK => (Node::Link { target: file::read_link_at(dir.as_fd(), &name)? }, 0o777),
                SFlag::S_IFREG => {
                    let (size, times) = (stat.st_size as u64, (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime));
                    let digest = Digest::of(format!("host {path} {size} {} {} {}", times.0, times.1, times.2));
                    (Node::File { size, digest, group: None }, mode)
                }
                _ => continue,
            };
            found.files.push((path, Change { was: None, now: Some(Entry { node, mode, ..Entry::folder(0o755) }) }));
        }
    }
    let entry = Entry::folder(folder.mode | 0o700);
    file::chmod(made.as_fd(), entry.mode)?;
    kept::settle_folder(made.as_fd(), &folder.path, time)?;
    found.folders.push((folder.path.clone(), Change { was: None, now: Some(entry) }));
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
