//! Builders from what is on disk: `tar:FILE`, `dir:DIR`, `oci:DIR[:TAG]`, `oci-archive:FILE`,
//! `docker-archive:FILE`. Each becomes one changeset.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::stat::{FileStat, SFlag};

use crate::archive::unpack::{Options, Owner, Owners, is_zip, kept_xattrs, unpack, unpack_zip};
use crate::changeset::places::left_out;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;
use crate::tree::{Node, RootPath};

/// Unpacks a root filesystem from a tar or zip file.
pub fn from_tar(path: &Path, into: &Root) -> Result<Owners> {
    let mut owners = Owners::new();
    unpack_file(path, into, &Options::default(), &mut owners).map_err(|e| e.context(path.display()))?;
    Ok(owners)
}

/// A tar file, compressed or not, or a zip file: by its first bytes.
pub fn unpack_file(path: &Path, into: &Root, options: &Options, owners: &mut Owners) -> Result<()> {
    let mut file = file::open_regular(path)?;
    let mut start = [0; 4];
    let n = std::io::Read::read(&mut file, &mut start).map_err(|e| Error::io("read", path, e))?;
    std::io::Seek::rewind(&mut file).map_err(|e| Error::io("seek", path, e))?;
    if is_zip(&start[..n]) {
        unpack_zip(file, into, options, owners)
    } else {
        unpack(file, into, options, owners, &mut |_| {})
    }
}

/// Copies a folder of the host. Its owners are as the caller sees them: what isn't mapped in the
/// caller's user namespace, and what is the caller's own, is root's.
pub fn from_folder(path: &Path, into: &Root, store: &Path) -> Result<Owners> {
    let from = Root::open(path)?;
    let store = nix::sys::stat::stat(store).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let mut copy = Copy { owners: Owners::new(), linked: BTreeMap::new(), into, store, buffer: vec![0; 256 * 1024] };
    let (from, to) = (from.folder(&RootPath::root())?, into.folder(&RootPath::root())?);
    copy.folder(from.as_fd(), to.as_fd(), &RootPath::root())?;
    Ok(copy.owners)
}

/// The kernel shows IDs that aren't mapped as this one (user_namespaces(7)).
const NOT_MAPPED: u32 = 65534;

struct Copy<'a> {
    owners: Owners,
    /// Hard links, by inode.
    linked: BTreeMap<(u64, u64), RootPath>,
    into: &'a Root,
    /// The store itself, which may lie below the folder.
    store: Option<(u64, u64)>,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    fn folder(&mut self, from: BorrowedFd, to: BorrowedFd, path: &RootPath) -> Result<()> {
        if left_out(path) {
            return Ok(());
        }
        for name in file::list(from)? {
            let Some(stat) = file::stat_at(from, &name)? else { continue };
            if self.store == Some((stat.st_dev, stat.st_ino)) {
                continue;
            }
            self.entry(from, to, &name, path.join(&name)?, &stat)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd, to: BorrowedFd, name: &[u8], path: RootPath, stat: &FileStat) -> Result<()> {
        let mode = stat.st_mode & 0o7777;
        let (mut device, mut content) = (None, None);
        match file::kind(stat) {
            SFlag::S_IFDIR => {
                file::mkdir_at(to, name, 0o755)?;
                let (from, to) = (file::open_folder_at(from, name)?, file::open_folder_at(to, name)?);
                self.folder(from.as_fd(), to.as_fd(), &path)?;
            }
            SFlag::S_IFLNK => file::symlink_at(&file::read_link_at(from, name)?, to, name)?,
            SFlag::S_IFIFO => file::mkfifo_at(to, name, mode)?,
            SFlag::S_IFREG => {
                if stat.st_nlink > 1
                    && let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino))
                {
                    let folder = self.into.folder(&first.parent().unwrap_or_default())?;
                    file::link_at(folder.as_fd(), first.name(), to, name)?;
                    let owner = self.owners[first].clone();
                    self.owners.insert(path, owner);
                    return Ok(());
                }
                content = Some(self.file(from, to, name, mode)?);
                self.linked.insert((stat.st_dev, stat.st_ino), path.clone());
            }
            SFlag::S_IFCHR | SFlag::S_IFBLK => {
                file::create_file_at(to, name, mode & 0o777)?;
                let (major, minor) = (nix::sys::stat::major(stat.st_rdev), nix::sys::stat::minor(stat.st_rdev));
                device = Some(Node::Device {
                    character: file::kind(stat) == SFlag::S_IFCHR,
                    major: major as u32,
                    minor: minor as u32,
                });
            }
            // Nobody listens at a socket that was copied.
            _ => return Ok(()),
        }
        let mut xattrs = BTreeMap::new();
        for attribute in xattr::list(from, name)? {
            if let Some(value) = xattr::get(from, name, &attribute)? {
                xattrs.insert(attribute, value);
            }
        }
        let own = |id: u32, mine: u32| if id == NOT_MAPPED || id == mine { 0 } else { id };
        let (uid, gid) =
            (own(stat.st_uid, nix::unistd::geteuid().as_raw()), own(stat.st_gid, nix::unistd::getegid().as_raw()));
        let mode = if file::kind(stat) == SFlag::S_IFLNK { 0o777 } else { mode };
        let owner = Owner { uid, gid, mode, xattrs: kept_xattrs(&xattrs), device, content, implied: false };
        self.owners.insert(path, owner);
        Ok(())
    }

    fn file(&mut self, from: BorrowedFd, to: BorrowedFd, name: &[u8], mode: u32) -> Result<(Digest, u64)> {
        let mut source = file::open_regular_at(from, name)?;
        let mut copy = Hashing::new(file::create_file_at(to, name, 0o600)?);
        let failed = |e| Error::io("copy", file::shown(from, name), e);
        loop {
            match std::io::Read::read(&mut source, &mut self.buffer) {
                Ok(0) => break,
                Ok(n) => std::io::Write::write_all(&mut copy, &self.buffer[..n]).map_err(failed)?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let (copy, digest, size) = copy.finish();
        copy.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok((digest, size))
    }
}

/// Removes what is no part of a changeset: what lies below /proc, /sys, /dev, /run and /tmp.
pub fn drop_left_out(root: &Root, owners: &mut Owners) -> Result<()> {
    let top = root.folder(&RootPath::root())?;
    for name in file::list(top.as_fd())? {
        let path = RootPath::new(&name)?;
        let is_folder = file::stat_at(top.as_fd(), &name)?.is_some_and(|stat| file::kind(&stat) == SFlag::S_IFDIR);
        if !left_out(&path) || !is_folder {
            continue;
        }
        let folder = root.folder(&path)?;
        for child in file::list(folder.as_fd())? {
            file::remove_tree_at(folder.as_fd(), &child)?;
        }
        owners.retain(|p, _| *p == path || !p.starts_with(&path));
    }
    Ok(())
}

/// The address of `localhost`: what most images leave to the runtime, and a rule has no runtime that writes it.
pub const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Writes what a container's runtime otherwise would: `/etc/hosts` where there is none, or an empty one, as
/// `docker export` leaves it, and an empty `/etc/resolv.conf`, on which a rule with a network finds the host's.
pub fn complete(root: &Root, owners: &mut Owners) -> Result<()> {
    let etc = RootPath::new("etc")?;
    let owner =
        |mode, content| Owner { uid: 0, gid: 0, mode, xattrs: BTreeMap::new(), device: None, content, implied: false };
    let top = root.folder(&RootPath::root())?;
    match file::stat_at(top.as_fd(), b"etc")? {
        None => {
            file::mkdir_at(top.as_fd(), b"etc", 0o755)?;
            owners.insert(etc.clone(), owner(0o755, None));
        }
        Some(stat) if file::kind(&stat) == SFlag::S_IFDIR => {}
        Some(_) => return Ok(()),
    }
    let folder = root.folder(&etc)?;
    for (name, text) in [("hosts", HOSTS), ("resolv.conf", "")] {
        match file::stat_at(folder.as_fd(), name.as_bytes())? {
            None => {}
            Some(stat) if file::kind(&stat) == SFlag::S_IFREG && stat.st_size == 0 && !text.is_empty() => {
                file::unlink_at(folder.as_fd(), name.as_bytes())?;
            }
            Some(_) => continue,
        }
        let path = etc.join(name.as_bytes())?;
        let mut made = file::create_file_at(folder.as_fd(), name.as_bytes(), 0o644)?;
        std::io::Write::write_all(&mut made, text.as_bytes())
            .map_err(|e| Error::io("write", path.below(root.path()), e))?;
        owners.insert(path, owner(0o644, Some((Digest::of(text.as_bytes()), text.len() as u64))));
    }
    Ok(())
}

/// What dpkg's database in a root says is installed: name to version.
pub fn installed_packages(root: &Root) -> Result<BTreeMap<String, String>> {
    let path = RootPath::new("var/lib/dpkg/status")?;
    let mut installed = BTreeMap::new();
    if root.stat(&path)?.is_none() {
        return Ok(installed);
    }
    let mut bytes = vec![];
    std::io::Read::read_to_end(&mut std::io::Read::take(root.open_file(&path)?, 256 << 20), &mut bytes)
        .map_err(|e| Error::io("read", path.below(root.path()), e))?;
    for stanza in String::from_utf8_lossy(&bytes).split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ")).map(str::trim);
        if let (Some(name), Some(version), Some(status)) = (field("Package"), field("Version"), field("Status"))
            && status.ends_with(" installed")
        {
            installed.insert(name.to_string(), version.to_string());
        }
    }
    Ok(installed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::unpack::tree_of;
    use crate::tree::Entry;

    #[test]
    fn a_folder_is_copied_whole_and_the_store_in_it_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        for folder in ["usr/bin", "proc/1", "tmp/x", "home/store/blobs"] {
            std::fs::create_dir_all(from.join(folder)).unwrap();
        }
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("usr/bin/su"), "su").unwrap();
        std::fs::set_permissions(from.join("usr/bin/su"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::fs::hard_link(from.join("usr/bin/su"), from.join("usr/bin/other")).unwrap();
        std::os::unix::fs::symlink("usr/bin", from.join("bin")).unwrap();
        let root = Root::open(&to).unwrap();
        let mut owners = from_folder(&from, &root, &from.join("home/store")).unwrap();
        drop_left_out(&root, &mut owners).unwrap();
        let tree = tree_of(&root, &owners, 5).unwrap().changes;
        let paths: Vec<_> = tree.keys().map(|p| p.to_string()).collect();
        assert_eq!(paths, ["/bin", "/home", "/proc", "/tmp", "/usr", "/usr/bin", "/usr/bin/other", "/usr/bin/su"]);
        let entry = |path: &str| tree[&RootPath::new(path).unwrap()].now.clone().unwrap();
        assert_eq!(entry("bin"), Entry::link("usr/bin"));
        assert!(matches!(entry("usr/bin/su").node, Node::File { group: Some(0), .. }));
        assert_eq!(entry("usr/bin/other").mode, 0o4755);
    }

    #[test]
    fn dpkg_s_database_says_what_is_installed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        assert!(installed_packages(&root).unwrap().is_empty());
        std::fs::create_dir_all(temp.path().join("var/lib/dpkg")).unwrap();
        std::fs::write(temp.path().join("var/lib/dpkg/status"), "Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 1\n").unwrap();
        assert_eq!(installed_packages(&root).unwrap(), BTreeMap::from([("a".to_string(), "1".to_string())]));
        std::fs::remove_file(temp.path().join("var/lib/dpkg/status")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("var/lib/dpkg/status")).unwrap();
        assert!(installed_packages(&root).is_err(), "a link is not followed out of the root");
    }

    #[test]
    fn a_root_without_an_address_of_localhost_gets_one() {
        let hosts = |prepare: &dyn Fn(&Path)| {
            let temp = tempfile::tempdir().unwrap();
            prepare(temp.path());
            let (root, mut owners) = (Root::open(temp.path()).unwrap(), Owners::new());
            complete(&root, &mut owners).unwrap();
            std::fs::read_to_string(temp.path().join("etc/hosts")).ok()
        };
        let etc = |path: &Path| std::fs::create_dir(path.join("etc")).unwrap();
        let with = |text: &'static str| {
            move |path: &Path| {
                etc(path);
                std::fs::write(path.join("etc/hosts"), text).unwrap();
            }
        };
        assert_eq!(hosts(&|_| ()).unwrap(), HOSTS);
        assert_eq!(hosts(&etc).unwrap(), HOSTS);
        assert_eq!(hosts(&with("")).unwrap(), HOSTS);
        assert_eq!(hosts(&with("1.2.3.4 localhost\n")).unwrap(), "1.2.3.4 localhost\n");
        assert_eq!(hosts(&|path| std::os::unix::fs::symlink("nowhere", path.join("etc")).unwrap()), None);
        let temp = tempfile::tempdir().unwrap();
        etc(temp.path());
        std::os::unix::fs::symlink("../run/resolv.conf", temp.path().join("etc/resolv.conf")).unwrap();
        complete(&Root::open(temp.path()).unwrap(), &mut Owners::new()).unwrap();
        assert!(temp.path().join("etc/resolv.conf").is_symlink(), "what a builder has stays");
    }
}
