//! A Debian builder: from a mirror's signed index to a base system.
//!
//! Sources → index (verified) → resolved set → lock → packages in the store → unpacked → configured.
//! With a lock at hand the first three are passed over: nothing but packages is ever fetched.

use std::collections::BTreeMap;
use std::path::Path;

pub mod deb;
pub mod download;
pub mod index;
pub mod install;
pub mod names;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod signature;
pub mod sources;

use index::{Index, Reader};
use signature::Keyring;
use sources::Source;

use super::lock_file::{Lock, LockedPackage};
use crate::error::{Error, Result};
use crate::remote::http::Http;
use crate::store::Store;

/// Where a Debian suite is to be had.
pub struct Archive<'a> {
    /// `bookworm`
    pub suite: &'a str,
    /// `amd64`
    pub architecture: &'a str,
    /// Mirrors that were named; none: the host's apt sources.
    pub mirrors: &'a [String],
    /// `/etc/apt`
    pub apt: &'a Path,
    /// Keys that we trust.
    pub keyring: &'a Keyring,
    /// The way there.
    pub http: &'a Http,
    /// Where all of it is kept.
    pub store: &'a Store,
    /// The time now, in seconds since 1970.
    pub now: i64,
}

/// Debian's name for this machine's architecture.
pub fn host_architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        "x86" => Ok("i386"),
        "arm" => Ok("armhf"),
        "powerpc64" => Ok("ppc64el"),
        "riscv64" => Ok("riscv64"),
        "s390x" => Ok("s390x"),
        other => Err(Error::request(format!("Debian has no architecture {other}"))),
    }
}

impl Archive<'_> {
    /// The sources that offer it.
    pub fn sources(&self) -> Result<Vec<Source>> {
        sources::sources(self.suite, self.architecture, self.mirrors, self.apt)
    }

    /// The URLs at which a path below the archive (`pool/main/…`) may lie.
    pub fn urls(&self, path: &str) -> Result<Vec<String>> {
        if !names::is_pool_path(path) {
            return Err(Error::request(format!("not a path in an archive: {path:?}")).next("write debian:pool/main/…"));
        }
        let mut urls: Vec<_> = self.sources()?.iter().map(|source| format!("{}/{path}", source.uri)).collect();
        urls.dedup();
        Ok(urls)
    }

    /// For the package index.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            http: self.http,
            store: self.store,
            keyring: self.keyring,
            architecture: self.architecture,
            now: self.now,
        }
    }

    /// A lock of the base system and `more`, at the versions of the newest index. It may not be older
    /// than that of the lock that was there, whose numbers of users stay. With `only`, all that was locked
    /// stays in it, and what isn't named keeps its version, where the index still has that.
    pub fn new_lock(&self, more: &[String], old: Option<&Lock>, only: &[String]) -> Result<Lock> {
        let seen = old.map(|l| l.index.as_slice()).unwrap_or_default();
        let index = self.reader().newest(&self.sources()?, seen)?;
        let mut lock = Lock {
            architecture: self.architecture.into(),
            suite: self.suite.into(),
            index: index.pinned.clone(),
            ..Lock::default()
        };
        if let Some(old) = old {
            (lock.users, lock.groups) = (old.users.clone(), old.groups.clone());
        }
        let base = resolve::minbase(&index);
        let names = [base.as_slice(), more].concat();
        let mut kept = BTreeMap::new();
        if let (Some(old), false) = (old, only.is_empty()) {
            if let [name, ..] = old.unlocked(only).as_slice() {
                return Err(Error::request(format!("the lock has no package {name}"))
                    .next("name packages that are in it, or none, for all of them"));
            }
            let there = |p: &&LockedPackage| {
                let versions = index.packages.get(&p.name).map_or(&[][..], Vec::as_slice);
                versions.iter().any(|package| package.version.to_string() == p.version)
            };
            let stays = old.packages.values().filter(there).filter(|p| !only.contains(&p.name));
            kept.extend(stays.map(|p| (p.name.clone(), p.version.clone())));
        }
        let chosen = match old.filter(|_| !only.is_empty()) {
            Some(old) => {
                let all = old.packages.keys().filter(|name| index.packages.contains_key(*name)).chain(&names);
                let all: Vec<String> = all.cloned().collect();
                resolve::resolve(&index, &all, &kept)
                    .map_err(|e| e.next("take the newest versions of all of them: tapeout lock --update"))?
            }
            None => resolve::resolve(&index, &names, &kept)?,
        };
        add(&mut lock, chosen.values());
        let closed: Vec<String> =
            lock.closure(base.iter().map(String::as_str))?.into_keys().map(String::from).collect();
        for package in lock.packages.values_mut() {
            package.base = closed.contains(&package.name);
        }
        Ok(lock)
    }

    /// Adds packages to the lock, at the versions of the index that it pins; gives the names that it didn't have.
    pub fn extend(&self, lock: &mut Lock, names: &[String]) -> Result<Vec<String>> {
        if lock.unlocked(names).is_empty() {
            return Ok(vec![]);
        }
        let index = self.reader().pinned(&self.sources()?, &lock.index)?;
        let locked: BTreeMap<String, String> =
            lock.packages.iter().map(|(name, package)| (name.clone(), package.version.clone())).collect();
        let chosen = with_all(&index, lock, names, &locked).or_else(|_| with_base(&index, lock, names, &locked))?;
        let added: Vec<String> = chosen.keys().filter(|name| !lock.packages.contains_key(*name)).cloned().collect();
        let new = chosen.values().filter(|c| added.contains(&c.package.name)).collect::<Vec<_>>();
        add(lock, new.into_iter());
        Ok(added)
    }
}

type Solved<'a> = Result<BTreeMap<String, resolve::Chosen<'a>>>;

/// Together with everything that is locked, so that one machine can have all of it.
fn with_all<'a>(index: &'a Index, lock: &Lock, names: &[String], locked: &BTreeMap<String, String>) -> Solved<'a> {
    let all: Vec<String> = lock.packages.keys().chain(names).cloned().collect();
    resolve::resolve(index, &all, locked)
}

/// Together with the base system alone: two rules may need packages that exclude each other.
fn with_base<'a>(index: &'a Index, lock: &Lock, names: &[String], locked: &BTreeMap<String, String>) -> Solved<'a> {
    let base: Vec<String> = lock.packages.values().filter(|p| p.base).map(|p| &p.name).chain(names).cloned().collect();
    resolve::resolve(index, &base, locked)
}

fn add<'a, 'i: 'a>(lock: &mut Lock, chosen: impl Iterator<Item = &'a resolve::Chosen<'i>>) {
    for chosen in chosen {
        let package = chosen.package;
        let locked = LockedPackage {
            name: package.name.clone(),
            version: package.version.to_string(),
            digest: package.digest,
            size: package.size,
            file: package.filename.clone(),
            suite: package.suite.clone(),
            base: false,
            depends: chosen.depends.clone(),
            before: chosen.before.clone(),
        };
        lock.packages.insert(locked.name.clone(), locked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Configure, From, Request, Run, make};
    use crate::digest::Digest;
    use crate::remote::http::Network;
    use crate::tree::RootPath;
    use signature::tests::{key, keyring, now, sign};

    /// A package as dpkg-deb would build it; `files` end in a slash where they are folders.
    fn deb(control: &str, files: &[(&str, &str)], scripts: &[(&str, &str)]) -> Vec<u8> {
        let tar = |members: &[(&str, &str)]| {
            let mut tar = tar::Builder::new(vec![]);
            for (name, content) in members {
                let mut header = tar::Header::new_gnu();
                let folder = name.ends_with('/');
                header.set_entry_type(if folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
                header.set_mode(if folder || !content.contains("data") { 0o755 } else { 0o644 });
                header.set_size(content.len() as u64);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                tar.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
            tar.into_inner().unwrap()
        };
        let control = tar(&[&[("./control", control)], scripts].concat());
        let mut xz = liblzma::write::XzEncoder::new(vec![], 1);
        std::io::Write::write_all(&mut xz, &tar(files)).unwrap();
        let (control, data) = (zstd::encode_all(control.as_slice(), 1).unwrap(), xz.finish().unwrap());
        let mut out = ar::Builder::new(vec![]);
        for (name, bytes) in
            [("debian-binary", b"2.0\n".as_slice()), ("control.tar.zst", &control), ("data.tar.xz", &data)]
        {
            out.append(&ar::Header::new(name.into(), bytes.len() as u64), bytes).unwrap();
        }
        out.into_inner().unwrap()
    }

    const BASE: &str = "Package: base-files\nVersion: 1\nArchitecture: amd64\nEssential: yes\nPre-Depends: awk";
    const AWK: &str = "Package: mawk\nVersion: 2\nArchitecture: amd64\nMulti-Arch: same\nProvides: awk";
    const APT: &str = "Package: apt\nVersion: 3\nArchitecture: all\nPriority: important";
    const GCC: &str = "Package: gcc\nVersion: 4\nArchitecture: amd64\nDepends: base-files (>= 1)";

    const MD5_OF_DATA_OS: &str = "36b3b1c7b8a4486e2ebe2b4f3bcbc281";

    /// A mirror in a folder, a store, and a lock beside them.
    struct World {
        folder: tempfile::TempDir,
        secret: pgp::composed::SignedSecretKey,
    }

    impl World {
        fn new() -> Self {
            let world = Self { folder: tempfile::tempdir().unwrap(), secret: key(true) };
            world.publish(
                "Sat, 11 Jul 2026 10:16:37 UTC",
                &[
                    (
                        BASE,
                        deb(
                            BASE,
                            &[
                                ("./", ""),
                                ("./etc/", ""),
                                ("./etc/os", "data os"),
                                ("./bin/", ""),
                                ("./bin/ls", "ls"),
                                ("./var/lib/dpkg/", ""),
                            ],
                            &[("./conffiles", "/etc/os\n"), ("./postinst", "#!/bin/sh\n")],
                        ),
                    ),
                    (
                        AWK,
                        deb(
                            AWK,
                            &[("./usr/bin/", ""), ("./usr/bin/mawk", "mawk")],
                            &[("./triggers", "interest-noawait ldconfig\n")],
                        ),
                    ),
                    (APT, deb(APT, &[("./usr/bin/apt", "apt")], &[])),
                    (GCC, deb(GCC, &[("./usr/bin/gcc", "gcc")], &[])),
                ],
            );
            world
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join(name)
        }

        fn publish(&self, date: &str, packages: &[(&str, Vec<u8>)]) {
            let mirror = self.path("mirror");
            std::fs::create_dir_all(mirror.join("pool")).unwrap();
            let folder = mirror.join("dists/test/main/binary-amd64");
            std::fs::create_dir_all(&folder).unwrap();
            let mut index = String::new();
            for (control, deb) in packages {
                let name = control.lines().next().unwrap().strip_prefix("Package: ").unwrap();
                std::fs::write(mirror.join(format!("pool/{name}.deb")), deb).unwrap();
                index.push_str(&format!(
                    "{control}\nFilename: pool/{name}.deb\nSize: {}\nSHA256: {}\n\n",
                    deb.len(),
                    Digest::of(deb).hex()
                ));
            }
            std::fs::write(folder.join("Packages"), &index).unwrap();
            let text = format!(
                "Codename: test\nDate: {date}\nSHA256:\n {} {} main/binary-amd64/Packages\n",
                Digest::of(&index).hex(),
                index.len()
            );
            std::fs::write(mirror.join("dists/test/InRelease"), sign(&self.secret, &text)).unwrap();
        }

        /// Does something with the archive; `store` is the name of a folder.
        fn with<T>(&self, store: &str, act: impl FnOnce(&Archive) -> T) -> T {
            let store = Store::open(&self.path(store)).unwrap();
            let (keyring, http) = (keyring(&[&self.secret]), Http::new(Network::Offline));
            let mirrors = [format!("file:{}", self.path("mirror").display())];
            act(&Archive {
                suite: "test",
                architecture: "amd64",
                mirrors: &mirrors,
                apt: Path::new("/nonexistent"),
                keyring: &keyring,
                http: &http,
                store: &store,
                now: now(),
            })
        }

        fn bootstrap(&self, store: &str, packages: &[&str], locked: bool) -> Result<crate::builder::Builder> {
            let packages: Vec<String> = packages.iter().map(|p| p.to_string()).collect();
            self.with(store, |archive| {
                let request = Request {
                    tag: "t",
                    from: &From::Debian("test".into()),
                    written: "debian:test",
                    packages: &packages,
                    lock: &self.path("tapeout.lock"),
                    locked,
                    update: false,
                    update_only: &[],
                    archive,
                    epoch: None,
                    keychain: &Default::default(),
                    progress: &download::Silent,
                };
                make(&request, &Nothing(archive.store.clone()))
            })
        }
    }

    /// A sandbox in which configuring changes nothing.
    struct Nothing(Store);

    impl Configure for Nothing {
        fn run(&self, run: &Run) -> Result<Digest> {
            assert!(self.0.has_changeset(&run.lower[0]) && !run.steps.is_empty());
            Ok(Digest::of("configured"))
        }
    }

    #[test]
    fn a_mirror_becomes_a_builder_and_the_lock_gives_the_same_bytes_again() {
        let world = World::new();
        let builder = world.bootstrap("store", &[], false).unwrap();
        assert_eq!(builder.packages.keys().collect::<Vec<_>>(), ["apt", "base-files", "mawk"]);
        let tree = world.with("store", |archive| archive.store.changeset(&builder.changesets[0]).unwrap());
        let entry = |path: &str| {
            tree.changeset
                .changes
                .get(&RootPath::new(path).unwrap())
                .and_then(|c| c.now.clone())
                .unwrap_or_else(|| panic!("{path} is missing"))
        };
        assert_eq!(entry("bin"), crate::tree::Entry::link("usr/bin"));
        assert_eq!(entry("usr/bin/ls"), crate::tree::Entry::file(b"ls", 0o755));
        assert_eq!(tree.changeset.time, 1783764997);
        let read = |path: &str| {
            let mut file = world
                .with("store", |archive| archive.store.read(&builder.changesets[0], &RootPath::new(path).unwrap()))
                .unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut file, &mut text).unwrap();
            text
        };
        assert_eq!(read("var/lib/dpkg/info/base-files.list"), "/.\n/etc\n/etc/os\n/bin\n/bin/ls\n/var/lib/dpkg\n");
        assert_eq!(read("var/lib/dpkg/triggers/ldconfig"), "mawk:amd64/noawait\n");
        let status = read("var/lib/dpkg/status");
        let conffile = status.lines().find(|l| l.starts_with(" /etc/os ")).unwrap();
        assert_eq!(conffile, format!(" /etc/os {MD5_OF_DATA_OS}"));
        assert_eq!(status.matches("Status: install ok unpacked\n").count(), 3);
        // Another machine, without the mirror's index, and later: the lock alone decides.
        std::fs::remove_dir_all(world.path("mirror/dists")).unwrap();
        assert_eq!(world.bootstrap("other", &[], true).unwrap(), builder);
    }

    #[test]
    fn packages_are_added_to_the_lock_at_the_versions_of_its_index() {
        let world = World::new();
        world.bootstrap("store", &[], false).unwrap();
        let before = Lock::read(&world.path("tapeout.lock")).unwrap().unwrap();
        assert!(world.bootstrap("store", &["gcc"], true).unwrap_err().to_string().contains("gcc"));
        let newer = GCC.replace("Version: 4", "Version: 5");
        world.publish("Sun, 12 Jul 2026 10:16:37 UTC", &[(&newer, deb(&newer, &[], &[]))]);
        let mut lock = before.clone();
        let added = world.with("store", |archive| archive.extend(&mut lock, &["gcc".into()])).unwrap();
        assert_eq!(
            (added, lock.packages["gcc"].version.as_str(), &lock.index),
            (vec!["gcc".to_string()], "4", &before.index)
        );
        assert!(lock.packages["base-files"].base && !lock.packages["gcc"].base);
        assert_eq!(lock.packages["base-files"].before.iter().collect::<Vec<_>>(), ["mawk"]);
    }

    #[test]
    fn one_flipped_byte_from_the_index_to_the_package_names_the_file() {
        for file in ["dists/test/InRelease", "dists/test/main/binary-amd64/Packages", "pool/mawk.deb"] {
            let world = World::new();
            let path = world.path("mirror").join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = world.bootstrap("store", &[], false).unwrap_err();
            assert!(error.what().contains(file), "{file}: {error}");
        }
    }

    #[test]
    fn a_mirror_that_goes_back_in_time_is_refused() {
        let world = World::new();
        world.bootstrap("store", &[], false).unwrap();
        world.publish("Fri, 10 Jul 2026 10:16:37 UTC", &[(BASE, deb(BASE, &[], &[])), (AWK, deb(AWK, &[], &[]))]);
        let lock = Lock::read(&world.path("tapeout.lock")).unwrap();
        let error = world.with("store", |archive| archive.new_lock(&[], lock.as_ref(), &[])).unwrap_err();
        assert!(error.what().contains("older"), "{error}");
    }

    #[test]
    fn two_packages_with_one_file_are_an_error_that_names_both() {
        let world = World::new();
        let more = "Package: more\nVersion: 1\nArchitecture: all\nEssential: yes";
        world.publish(
            "Sat, 11 Jul 2026 10:16:37 UTC",
            &[
                (BASE, deb(BASE, &[("./bin/x", "x")], &[])),
                (AWK, deb(AWK, &[], &[])),
                (APT, deb(APT, &[], &[])),
                (more, deb(more, &[("./usr/bin/x", "y")], &[])),
            ],
        );
        let error = world.bootstrap("store", &[], false).unwrap_err();
        assert!(error.what().contains("base-files") && error.what().contains("more"), "{error}");
    }

    #[test]
    fn a_package_that_is_no_package_is_an_error() {
        for (what, bytes) in [
            ("text", b"hello".to_vec()),
            ("another's control file", deb(&BASE.replace("base-files", "other"), &[], &[])),
            ("no data", {
                let mut out = ar::Builder::new(vec![]);
                out.append(&ar::Header::new(b"debian-binary".to_vec(), 4), b"2.0\n".as_slice()).unwrap();
                out.into_inner().unwrap()
            }),
        ] {
            let world = World::new();
            world.publish(
                "Sat, 11 Jul 2026 10:16:37 UTC",
                &[(BASE, bytes), (AWK, deb(AWK, &[], &[])), (APT, deb(APT, &[], &[]))],
            );
            let error = world.bootstrap("store", &[], false).unwrap_err();
            assert!(error.what().contains("base-files"), "{what}: {error}");
        }
    }
}
