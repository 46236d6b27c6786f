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
        if !index::is_pool_path(path) {
            return Err(Error::request(format!("not a path in an archive: {path:?}")).next("write debian:pool/main/…"));
        }
        let mut urls: Vec<_> = self.sources()?.iter().map(|source| format!("{}/{path}", source.uri)).collect();
        urls.dedup();
        Ok(urls)
    }

    fn reader(&self) -> Reader<'_> {
        Reader { http: self.http, store: self.store, keyring: self.keyring, architecture: self.architecture, now: self.now }
    }

    /// A lock of the base system and `more`, at the versions of the newest index. It may not be older
    /// than that of the lock that was there, whose numbers of users stay.
    pub fn new_lock(&self, more: &[String], old: Option<&Lock>) -> Result<Lock> {
        let seen = old.map(|l| l.index.as_slice()).unwrap_or_default();
        let index = self.reader().newest(&self.sources()?, seen)?;
        let mut lock = Lock { architecture: self.architecture.into(), suite: self.suite.into(), index: index.pinned.clone(), ..Lock::default() };
        if let Some(old) = old {
            (lock.users, lock.groups) = (old.users.clone(), old.groups.clone());
        }
        let base = resolve::minbase(&index);
        let names = [base.as_slice(), more].concat();
        let chosen = resolve::resolve(&index, &names, &BTreeMap::new())?;
        add(&mut lock, chosen.values());
        let closed: Vec<String> = lock.closure(base.iter().map(String::as_str))?.into_keys().map(String::from).collect();
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
        let locked: BTreeMap<String, String> = lock.packages.iter().map(|(name, package)| (name.clone(), package.version.clone())).collect();
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
    use crate::remote::http::Network;

    /// By hand: `TAPEOUT_TRY=/tmp/x cargo nextest run --lib --run-ignored only real_mirror`
    #[test]
    #[ignore = "asks the mirror that this machine's apt sources name"]
    fn a_base_system_is_unpacked_from_the_real_mirror() {
        let folder = std::path::PathBuf::from(std::env::var("TAPEOUT_TRY").unwrap());
        let store = Store::open(&folder.join("store")).unwrap();
        let (keyring, http) = (Keyring::debian().unwrap(), Http::new(Network::Allowed));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let archive = Archive {
            suite: "bookworm", architecture: host_architecture().unwrap(), mirrors: &[], apt: Path::new("/etc/apt"),
            keyring: &keyring, http: &http, store: &store, now,
        };
        let step = std::cell::Cell::new(std::time::Instant::now());
        let took = |what: &str| {
            let report = format!("{what}: {:.2} s\n", step.replace(std::time::Instant::now()).elapsed().as_secs_f64());
            std::io::Write::write_all(&mut std::io::stderr(), report.as_bytes()).unwrap();
        };
        let path = folder.join("tapeout.lock");
        let more = ["build-essential".to_string()];
        let lock = match Lock::read(&path).unwrap() {
            Some(lock) => lock,
            None => archive.new_lock(&more, None).unwrap(),
        };
        lock.write(&path).unwrap();
        took("lock");
        let packages: Vec<_> = lock.builder_packages(&more).unwrap().into_values().collect();
        download::download(&packages, &archive.sources().unwrap(), &http, &store, &download::Silent).unwrap();
        took("download");
        let unpacked = install::prepare(&store, &packages, archive.architecture, lock.date().unwrap(), &download::Silent).unwrap();
        took("unpack");
        let root = crate::sys::root::Root::open(&unpacked.files).unwrap();
        let digest = crate::changeset::digest_of(&unpacked.changeset, |path| root.open_file(path)).unwrap();
        took("name");
        store.keep_changeset(digest, unpacked.changeset, &unpacked.files).unwrap();
        took("keep");
        let mut longer = lock.clone();
        let added = archive.extend(&mut longer, &["redis-server".into(), "python3".into(), "openjdk-17-jre-headless".into()]).unwrap();
        took(&format!("extend by {added:?}"));
        assert!(longer.packages.len() > lock.packages.len());
        std::fs::write(folder.join("digest"), digest.hex()).unwrap();
        longer.write(&folder.join("longer.lock")).unwrap();
        let union: Vec<_> = longer.packages.values().filter(|p| added.contains(&p.name)).cloned().collect();
        download::download(&union.iter().collect::<Vec<_>>(), &archive.sources().unwrap(), &http, &store, &download::Silent).unwrap();
        let script = |steps: Vec<crate::build_file::spec::Step>| -> String {
            steps.into_iter().map(|step| match step {
                crate::build_file::spec::Step::Shell(script) => format!("({script})\n"),
                crate::build_file::spec::Step::Argv(argv) => argv.join(" "),
            }).collect()
        };
        std::fs::write(folder.join("configure.sh"), script(install::configure_steps())).unwrap();
        std::fs::write(folder.join("install.sh"), script(install::install_steps(&union))).unwrap();
        let links: String = union.iter().map(|p| format!("{} {}\n", store.blob_path(&p.digest).display(), p.name)).collect();
        std::fs::write(folder.join("union"), links).unwrap();
    }
}
