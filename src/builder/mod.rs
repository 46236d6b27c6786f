//! Where rules run: base root filesystems under a TAG.
//!
//! A builder is an ordered list of changesets in the store. One from Debian has two: what our own
//! code unpacked, and what the builder's own dpkg made of it in the sandbox, which is started through
//! [`Configure`], so that this module knows no sandbox. One from a root filesystem has one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::archive::unpack::{Owners, tree_of};
use crate::build_file::spec::Step;
use crate::changeset::digest_of;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::label::{Label, Package};
use crate::remote::credentials::Keychain;
use crate::remote::reference::Reference;
use crate::sys::root::Root;
use crate::tree::Layer;

pub mod debian;
pub mod host;
pub mod ids;
pub mod image;
pub mod lock_file;
pub mod pull;
pub mod rootfs;

use debian::Archive;
use debian::download::{Progress, download};
use lock_file::{Lock, LockedPackage};

pub use crate::store::Builder;
use crate::store::Store;

/// What a builder is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// `debian:SUITE`
    Debian(String),
    /// `tar:FILE`
    Tar(PathBuf),
    /// `dir:DIR`
    Folder(PathBuf),
    /// `oci:DIR[:TAG]`
    Layout(PathBuf, Option<String>),
    /// `oci-archive:FILE[:TAG]`
    OciArchive(PathBuf, Option<String>),
    /// `docker-archive:FILE[:NAME]`
    DockerArchive(PathBuf, Option<String>),
    /// `docker://REF@DIGEST`
    Registry(Reference),
    /// `host`
    Host,
    /// `rule://LABEL`
    Rule(Label),
}

impl From {
    /// The file or folder that it is read from, for those whose name doesn't say what they hold.
    pub fn files(&self) -> Option<&Path> {
        match self {
            Self::Tar(path)
            | Self::Folder(path)
            | Self::Layout(path, _)
            | Self::OciArchive(path, _)
            | Self::DockerArchive(path, _) => Some(path),
            Self::Debian(_) | Self::Registry(_) | Self::Host | Self::Rule(_) => None,
        }
    }

    /// Relative paths start in this folder.
    pub fn in_folder(self, folder: &Path) -> Self {
        match self {
            Self::Debian(suite) => Self::Debian(suite),
            Self::Host => Self::Host,
            Self::Rule(label) => Self::Rule(label),
            Self::Tar(path) => Self::Tar(folder.join(path)),
            Self::Folder(path) => Self::Folder(folder.join(path)),
            Self::Layout(path, tag) => Self::Layout(folder.join(path), tag),
            Self::OciArchive(path, tag) => Self::OciArchive(folder.join(path), tag),
            Self::DockerArchive(path, tag) => Self::DockerArchive(folder.join(path), tag),
            Self::Registry(reference) => Self::Registry(reference),
        }
    }
}

impl std::str::FromStr for From {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::request(format!("a builder can't be made from {text:?}")).why(why).next(
                "write debian:SUITE, docker://REF@DIGEST, tar:FILE, dir:DIR, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, host or rule://PACKAGE:NAME",
            )
        };
        if text == "host" {
            return Ok(Self::Host);
        }
        let (kind, rest) = text.split_once(':').ok_or_else(|| bad("it has no kind before a colon"))?;
        if rest.is_empty() {
            return Err(bad("nothing follows the colon"));
        }
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (PathBuf::from(path), Some(tag.to_string())),
            None => (PathBuf::from(rest), None),
        };
        match kind {
            "debian" if lock_file::is_suite(rest) => Ok(Self::Debian(rest.into())),
            "debian" => Err(bad("that is no name of a suite")),
            "tar" => Ok(Self::Tar(rest.into())),
            "dir" => Ok(Self::Folder(rest.into())),
            "oci" => Ok(Self::Layout(path, tag)),
            "oci-archive" => Ok(Self::OciArchive(path, tag)),
            "docker-archive" => Ok(Self::DockerArchive(path, tag)),
            "docker" => text.parse().map(Self::Registry),
            "rule" if rest.starts_with("//") => {
                Label::parse_in(rest, &Package::new("")?).map(Self::Rule).map_err(|e| bad(e.what()))
            }
            "rule" => Err(bad("that is no label from the top of a workspace")),
            _ => Err(bad("that kind is not known")),
        }
    }
}

/// Steps to run in the sandbox.
#[derive(Debug, Clone)]
pub struct Run {
    /// What the steps stand on, the lowest first.
    pub lower: Vec<Digest>,
    /// In order.
    pub steps: Vec<Step>,
    /// Besides the sandbox's own.
    pub environment: BTreeMap<String, String>,
    /// The time of the changeset.
    pub time: i64,
}

/// Runs steps in a sandbox, captures what they changed and keeps it.
pub trait Configure {
    /// The digest of the changeset.
    fn run(&self, run: &Run) -> Result<Digest>;
}

/// A request for a builder.
pub struct Request<'a> {
    /// Its tag.
    pub tag: &'a str,
    /// What it is made from.
    pub from: &'a From,
    /// That, as the user wrote it.
    pub written: &'a str,
    /// Packages besides the base system (`[builder] packages`).
    pub packages: &'a [String],
    /// `tapeout.lock`
    pub lock: &'a Path,
    /// The lock may not change (`--locked`).
    pub locked: bool,
    /// Take new versions (`--update`).
    pub update: bool,
    /// Of these packages alone; empty: of all.
    pub update_only: &'a [String],
    /// Where Debian's packages are to be had; its suite is that of `from`.
    pub archive: &'a Archive<'a>,
    /// `SOURCE_DATE_EPOCH`; `None`: the date of the lock's index, else 1980-01-02.
    pub epoch: Option<i64>,
    /// Who we are to registries.
    pub keychain: &'a Keychain,
    /// Is told how it goes.
    pub progress: &'a dyn Progress,
}

/// 1980-01-02: the first day that a zip file can hold in every time zone.
pub const EPOCH: i64 = 315_619_200;

/// Makes a builder and keeps it under its tag. Where all of it is in the store already, nothing runs.
pub fn make(request: &Request, configure: &dyn Configure) -> Result<Builder> {
    let builder = match request.from {
        From::Debian(_) => make_debian(request, configure)?,
        From::Host => host::make(request)?,
        From::Rule(_) => return Err(unbuilt(request)),
        _ => make_rootfs(request)?,
    };
    let store = request.archive.store;
    store.keep_builder(&builder)?;
    let lock = Lock::read(request.lock)?.filter(|_| builder.lock.is_some());
    let time = request.epoch.or_else(|| lock.as_ref().and_then(Lock::date)).unwrap_or(EPOCH);
    let document = serde_json::to_vec(&builder).map_err(|e| Error::failed(format!("can't keep a builder: {e}")))?;
    store.record_action(&identity(request, lock.as_ref(), time)?, &document)?;
    Ok(builder)
}

/// The lock that a request stands on: read, made or extended, and written if it changed.
pub fn ensure_lock(request: &Request) -> Result<Lock> {
    let old = Lock::read(request.lock)?;
    let archive = request.archive;
    let stale = |what: String| Error::request(what).next("run once without --locked, and commit tapeout.lock");
    let mut lock = match &old {
        Some(old) if !request.update => {
            if (old.suite.as_str(), old.architecture.as_str()) != (archive.suite, archive.architecture) {
                return Err(Error::request(format!(
                    "{} is for {} on {}, and the builder is {} on {}",
                    request.lock.display(),
                    old.suite,
                    old.architecture,
                    archive.suite,
                    archive.architecture
                ))
                .next("remove it, or run tapeout lock --update"));
            }
            let mut lock = old.clone();
            let unlocked = lock.unlocked(request.packages);
            if request.locked && !unlocked.is_empty() {
                return Err(stale(format!(
                    "the lock does not have these packages: {}",
                    unlocked.into_iter().cloned().collect::<Vec<_>>().join(", ")
                )));
            }
            archive.extend(&mut lock, request.packages)?;
            lock
        }
        _ if request.locked => return Err(stale(format!("{} would be written", request.lock.display()))),
        old => archive.new_lock(request.packages, old.as_ref(), request.update_only)?,
    };
    if old.as_ref() != Some(&lock) {
        match request.update {
            true => lock.write(request.lock)?,
            false => lock.write_after(old.as_ref(), request.lock)?,
        }
    }
    Ok(lock)
}

fn make_debian(request: &Request, configure: &dyn Configure) -> Result<Builder> {
    let archive = request.archive;
    let lock = ensure_lock(request)?;
    let packages: Vec<&LockedPackage> = lock.builder_packages(request.packages)?.into_values().collect();
    let time = request.epoch.or_else(|| lock.date()).unwrap_or(EPOCH);
    let part = part_of_lock(&lock, &packages, time);
    if packages.iter().any(|p| !archive.store.gives(&p.digest)) {
        download(&packages, &archive.sources()?, archive.http, archive.store, request.progress)?;
    }
    let unpacked = unpacked(request, &packages, &part, time)?;
    request.progress.phase("configure", packages.len(), 0);
    let run = Run {
        lower: vec![unpacked],
        steps: debian::install::configure_steps(),
        environment: debian::install::environment(),
        time,
    };
    let configured = configure.run(&run)?;
    Ok(Builder {
        tag: request.tag.into(),
        from: request.written.into(),
        changesets: vec![unpacked, configured],
        packages: packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect(),
        lock: Some(part),
        reproducible: true,
    })
}

/// Names the packages of a builder, and with them all that its bytes depend on.
fn part_of_lock(lock: &Lock, packages: &[&LockedPackage], time: i64) -> Digest {
    let lines: Vec<String> = packages.iter().map(|p| format!("{} {} {}\n", p.name, p.version, p.digest)).collect();
    Digest::of(format!("tapeout builder 1\n{}\n{time}\n{}", lock.architecture, lines.concat()))
}

/// The builder that the store has, if it is what would be made now: a tag is only a name, which other
/// workspaces may use for another builder. One from files is taken as it was made under this tag: what it came
/// from may have changed, or gone, and whoever wants it anew says so (`tapeout bootstrap TAG`).
pub fn current(request: &Request, lock: Option<&Lock>, time: i64) -> Result<Option<Builder>> {
    let store = request.archive.store;
    let known = match request.from {
        // Its label doesn't say what it came to: that depends on the workspace that has it.
        From::Rule(_) => store.builder(request.tag)?.filter(|builder| builder.from == request.written),
        _ => store.action(&identity(request, lock, time)?).and_then(|bytes| serde_json::from_slice(&bytes).ok()),
    };
    let whole = |builder: &Builder| builder.changesets.iter().all(|digest| store.has_changeset(digest));
    Ok(known.filter(whole).map(|builder| Builder { tag: request.tag.into(), ..builder }))
}

/// Only who can build a workspace's rules makes a builder of them.
fn unbuilt(request: &Request) -> Error {
    let Request { tag, written, .. } = request;
    Error::failed(format!("the store has no builder {tag} from {written}"))
        .next(format!("make it, in the workspace that has that rule: tapeout bootstrap {tag} --from {written}"))
}

/// Names what a builder is made from.
fn identity(request: &Request, lock: Option<&Lock>, time: i64) -> Result<Digest> {
    let from = match (request.from, lock) {
        (From::Debian(_), Some(lock)) => {
            let packages: Vec<&LockedPackage> = lock.builder_packages(request.packages)?.into_values().collect();
            part_of_lock(lock, &packages, time).to_string()
        }
        (From::Host, _) => host::fingerprint(),
        // What they hold isn't known before all of it is read. Another tag is another reading.
        (from, _) if from.files().is_some() => format!("{from:?} {}", request.tag),
        (from, _) => format!("{from:?}"),
    };
    Ok(Digest::of(format!("tapeout made 2\n{from}\n{time}\n")))
}

/// The unpacked base system: from the store, where the same packages were unpacked before.
fn unpacked(request: &Request, packages: &[&LockedPackage], part: &Digest, time: i64) -> Result<Digest> {
    let store = request.archive.store;
    let key = Digest::of(format!("tapeout unpacked 2\n{part}\n{time}\n"));
    let known =
        store.action(&key).and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.parse::<Digest>().ok());
    if let Some(known) = known.filter(|digest| store.has_changeset(digest)) {
        return Ok(known);
    }
    let unpacked = debian::install::prepare(store, packages, request.archive.architecture, time, request.progress)?;
    let root = Root::open(&unpacked.files)?;
    let digest = digest_of(&unpacked.changeset, |path| root.open_file(path))?;
    store.keep_changeset(digest, unpacked.changeset, &unpacked.files)?;
    store.record_action(&key, digest.to_string().as_bytes())?;
    Ok(digest)
}

fn make_rootfs(request: &Request) -> Result<Builder> {
    let store = request.archive.store;
    let scratch = store.scratch()?;
    let files = scratch.folder("files")?;
    let root = Root::open(&files)?;
    let mut owners = unpack_rootfs(request, &root, || Root::open(&scratch.folder("archive")?))?;
    rootfs::drop_left_out(&root, &mut owners)?;
    // An empty one stays empty, which is an error.
    if owners.keys().any(|path| !path.is_root()) {
        rootfs::complete(&root, &mut owners)?;
    }
    let packages = rootfs::installed_packages(&root)?;
    let digest = keep(store, &files, &owners, request.epoch.unwrap_or(EPOCH), request.written)?.digest;
    // A folder of the host is as it is today.
    let reproducible = !matches!(request.from, From::Folder(_));
    Ok(Builder {
        tag: request.tag.into(),
        from: request.written.into(),
        changesets: vec![digest],
        packages,
        lock: None,
        reproducible,
    })
}

/// Keeps the files of an image as one changeset.
pub fn keep_image(store: &Store, image: &image::Image, time: i64, name: &str) -> Result<Layer> {
    let scratch = store.scratch()?;
    let files = scratch.folder("files")?;
    let root = Root::open(&files)?;
    let mut owners = image.unpack(&root)?;
    rootfs::drop_left_out(&root, &mut owners)?;
    keep(store, &files, &owners, time, name)
}

fn keep(store: &Store, files: &Path, owners: &Owners, time: i64, name: &str) -> Result<Layer> {
    let root = Root::open(files)?;
    let changeset = tree_of(&root, owners, time)?;
    if changeset.changes.is_empty() {
        return Err(Error::failed(format!("{name} holds no file")));
    }
    let digest = digest_of(&changeset, |path| root.open_file(path))?;
    store.keep_changeset(digest, changeset, files)
}

fn unpack_rootfs(request: &Request, root: &Root, archive: impl Fn() -> Result<Root>) -> Result<Owners> {
    let architecture = request.archive.architecture;
    match request.from {
        From::Tar(path) => rootfs::from_tar(path, root),
        From::Folder(path) => rootfs::from_folder(path, root, request.archive.store.path()),
        From::Layout(path, tag) => image::in_layout(&Root::open(path)?, tag.as_deref(), architecture)?.unpack(root),
        From::OciArchive(path, tag) => {
            image::in_oci_archive(path, tag.as_deref(), architecture, &archive()?)?.unpack(root)
        }
        From::DockerArchive(path, tag) => image::in_docker_archive(path, tag.as_deref(), &archive()?)?.unpack(root),
        From::Registry(reference) => {
            let (store, network) = (request.archive.store, request.archive.http.network());
            pull::pull(reference, request.keychain, network, store, architecture, request.progress)?.unpack(root)
        }
        From::Debian(_) | From::Host | From::Rule(_) => {
            Err(Error::failed(format!("{} is no root filesystem", request.written)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_as_the_design_has_it() {
        let parse = |text: &str| text.parse::<From>();
        assert_eq!(parse("debian:bookworm").unwrap(), From::Debian("bookworm".into()));
        assert_eq!(parse("oci:a/b:v1").unwrap(), From::Layout("a/b".into(), Some("v1".into())));
        assert_eq!(
            parse("docker-archive:x.tar:repo/name:1").unwrap(),
            From::DockerArchive("x.tar".into(), Some("repo/name:1".into()))
        );
        assert_eq!(parse("host").unwrap(), From::Host);
        assert_eq!(
            parse("rule://a/b:sdk").unwrap(),
            From::Rule(Label::new(Package::new("a/b").unwrap(), "sdk").unwrap())
        );
        assert_eq!(parse("tar:a:b.tar").unwrap(), From::Tar("a:b.tar".into()));
        for bad in ["bookworm", "debian:", "debian:../x", "debian:a b", "ftp:x", "host:x", "rule://a:b:c", "rule:a"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.next_step().is_some(), "{bad}");
        }
    }
}
