//! `archive(…)` and `git(…)`: a tree from outside, laid out in the workspace without any tool inside,
//! patched, and kept as a changeset in the normal form of sources.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::stat::SFlag;
use serde::Serialize;

use crate::archive::patch::{self, Applied};
use crate::archive::unpack::{self, Owner, Owners};
use crate::build_file::spec::{Archive, Git, Instance, Spec};
use crate::changeset;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::commit::{self, Entry};
use crate::execute::fetch::{self, Expected};
use crate::execute::request::{FORMAT, Outcome, key};
use crate::execute::sources;
use crate::remote::git::{self, Repository, TreeKind};
use crate::report::Event;
use crate::store::{Scratch, Store};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// Submodules in submodules.
const DEPTH: usize = 10;
/// Repositories of one commit.
const REPOSITORIES: usize = 200;

/// What names an unpacked archive.
#[derive(Serialize)]
struct ArchiveDocument<'a> {
    sha256: &'a str,
    strip_prefix: &'a str,
    folder: String,
    time: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    patches: Vec<Digest>,
}

/// What names a laid out commit: not where it came from, since its ID says what is in it.
#[derive(Serialize)]
struct GitDocument<'a> {
    commit: &'a str,
    submodules: bool,
    folder: String,
    time: i64,
    patches: Vec<Digest>,
}

/// A tree from outside.
struct Unpacking<'a> {
    build: &'a Build<'a>,
    instance: &'a Instance,
    time: i64,
    into: &'a str,
    patches: &'a [String],
}

impl<'a> Unpacking<'a> {
    fn of(build: &'a Build, instance: &'a Instance, time: i64) -> Option<Self> {
        let (into, patches) = match &instance.spec {
            Spec::Archive(archive) => (&archive.into, &archive.patches),
            Spec::Git(git) => (&git.into, &git.patches),
            _ => return None,
        };
        Some(Self { build, instance, time, into, patches })
    }

    fn folder(&self) -> String {
        format!("{}/{}", sources::folder(self.instance.label.package()), self.into)
    }

    fn action(&self) -> Result<Digest> {
        let patches = self
            .patches
            .iter()
            .map(|path| fetch::patch(self.build, self.instance, path))
            .collect::<Result<Vec<_>>>()?;
        let (kind, document) = match &self.instance.spec {
            Spec::Git(git) => {
                let document = GitDocument {
                    commit: &git.commit,
                    submodules: git.submodules,
                    folder: self.folder(),
                    time: self.time,
                    patches,
                };
                ("git", serde_json::to_vec(&document))
            }
            Spec::Archive(Archive { sha256, strip_prefix, .. }) => {
                let document =
                    ArchiveDocument { sha256, strip_prefix, folder: self.folder(), time: self.time, patches };
                ("archive", serde_json::to_vec(&document))
            }
            _ => return Err(Error::failed("nothing to unpack")),
        };
        Ok(key(kind, &document.map_err(|e| Error::failed(format!("can't write a request: {e}")))?))
    }
}

fn known(store: &Store, action: &Digest) -> Option<Digest> {
    let outcome: Outcome = serde_json::from_slice(&store.action(action)?).ok()?;
    store.has_changeset(&outcome.changeset).then_some(outcome.changeset)
}

/// The changeset of a tree that was laid out before.
pub fn cached(build: &Build, instance: &Instance, time: i64) -> Result<Option<Digest>> {
    let Some(unpacking) = Unpacking::of(build, instance, time) else { return Ok(None) };
    Ok(known(build.store, &unpacking.action()?))
}

/// The key of a tree from outside.
pub fn key_of(build: &Build, instance: &Instance, time: i64) -> Result<Digest> {
    Unpacking::of(build, instance, time).ok_or_else(|| Error::failed("nothing to unpack"))?.action()
}

/// Fetches and lays out.
pub fn unpacked(build: &Build, instance: &Instance, time: i64) -> Result<Digest> {
    let unpacking = Unpacking::of(build, instance, time).ok_or_else(|| Error::failed("nothing to unpack"))?;
    let done = |verb: &str| build.report.event(Event::Done { verb, what: &instance.label.to_string(), detail: "" });
    let here = |e: Error| e.at(instance.place.clone(), "");
    let action = unpacking.action().map_err(here)?;
    if let Some(digest) = known(build.store, &action) {
        // What it was made of is kept as long as it is.
        if let Spec::Archive(Archive { sha256, .. }) = &instance.spec
            && let Ok(packed) = Digest::from_hex(sha256)
        {
            build.store.has_blob(&packed);
        }
        done("cached");
        return Ok(digest);
    }
    let digest = match &instance.spec {
        Spec::Git(git) => unpacking.lay_out(|into, owners| lay_out_commit(build, git, into, owners)).map_err(here)?,
        Spec::Archive(archive) => {
            let blob =
                fetch::get(build, instance, &archive.urls, &Expected::Sha256(Digest::from_hex(&archive.sha256)?))?;
            let what = archive.urls.first().map_or("it", String::as_str);
            unpacking
                .lay_out(|into, owners| unpack(build.store, archive, &blob, into, owners))
                .map_err(|e| here(e.context(format!("unpack {what}"))))?
        }
        _ => return Err(Error::failed("nothing to unpack")),
    };
    let document =
        serde_json::to_vec(&Outcome { format: FORMAT, changeset: digest }).map_err(|e| Error::failed(e.to_string()))?;
    build.store.record_action(&action, &document)?;
    done("unpacked");
    Ok(digest)
}

impl Unpacking<'_> {
    /// Lets `write` write a tree, patches it, and keeps it in the normal form of sources: owner 0:0,
    /// mode 0644 or 0755, one time.
    fn lay_out(&self, write: impl FnOnce(&Root, &mut Owners) -> Result<()>) -> Result<Digest> {
        let store = self.build.store;
        let scratch = store.scratch()?;
        let files = scratch.folder("files")?;
        let folder = RootPath::new(self.folder())?;
        std::fs::create_dir_all(folder.below(&files)).map_err(|e| Error::io("mkdir", folder.below(&files), e))?;
        let root = Root::open(&files)?;
        let into = root.sub(&folder)?;
        let mut owners = Owners::new();
        write(&into, &mut owners)?;
        for path in self.patches {
            self.patch(path, &into, &mut owners).map_err(|e| e.context(path))?;
        }
        let mut normal = Owners::new();
        for (path, mut owner) in owners {
            if owner.device.is_some() {
                return Err(
                    Error::failed(format!("the archive holds a device: {path}")).next("leave it out of the archive")
                );
            }
            owner.xattrs.clear();
            (owner.uid, owner.gid) = (0, 0);
            let is_folder =
                file::stat_at(into.as_fd(), path.as_bytes())?.is_some_and(|s| file::kind(&s) == SFlag::S_IFDIR);
            owner.mode = if is_folder || owner.mode & 0o111 != 0 { 0o755 } else { 0o644 };
            normal.insert(folder.join(path.as_bytes())?, owner);
        }
        let tree = unpack::tree_of(&root, &normal, self.time)?;
        let digest = changeset::digest_of(&tree, |path| root.open_file(path))?;
        store.keep_changeset(digest, tree, &files).map(|layer| layer.digest)
    }

    fn patch(&self, path: &str, into: &Root, owners: &mut Owners) -> Result<()> {
        let digest = fetch::patch(self.build, self.instance, path)?;
        let mut text = vec![];
        self.build.store.blob(&digest)?.read_to_end(&mut text).map_err(|e| Error::io("read", path, e))?;
        for (path, applied) in patch::apply(&text, into)? {
            match applied {
                Applied::Removed => drop(owners.remove(&path)),
                Applied::Written(executable) => {
                    for above in path.ancestors().filter(|above| !above.is_root()) {
                        owners.entry(above).or_insert_with(|| owner(0o755));
                    }
                    owners.insert(path, owner(if executable == Some(true) { 0o755 } else { 0o644 }));
                }
            }
        }
        Ok(())
    }
}

fn owner(mode: u32) -> Owner {
    Owner { uid: 0, gid: 0, mode, xattrs: Default::default(), device: None, content: None, implied: false }
}

fn unpack(store: &Store, archive: &Archive, blob: &Digest, into: &Root, owners: &mut Owners) -> Result<()> {
    let options = unpack::Options { strip_prefix: RootPath::new(&archive.strip_prefix)?, ..Default::default() };
    let mut start = [0; 4];
    let n = store.blob(blob)?.read(&mut start).map_err(|e| Error::io("read", store.blob_path(blob), e))?;
    let file = store.blob(blob)?;
    match unpack::is_zip(&start[..n]) {
        true => unpack::unpack_zip(file, into, &options, owners)?,
        false => unpack::unpack(file, into, &options, owners, &mut |_| {})?,
    }
    if owners.is_empty() {
        return Err(Error::failed("the archive has nothing below strip_prefix")
            .why(format!("strip_prefix is {:?}", archive.strip_prefix))
            .next("leave strip_prefix out, and look at what is in it"));
    }
    Ok(())
}

/// A commit, and where in the tree it goes.
struct Checkout {
    urls: Vec<String>,
    commit: String,
    at: RootPath,
    depth: usize,
}

/// The tree of a commit, with its submodules if they are wanted: from its blob where there is one, else from
/// its repository.
fn lay_out_commit(build: &Build, wanted: &Git, into: &Root, owners: &mut Owners) -> Result<()> {
    let git = git::Git::new(build.options.environment.clone(), build.base.http().network());
    checkouts(wanted, &mut |checkout, coming| {
        let put = |owners: &mut Owners, path: &RootPath, entry: Entry| -> Result<()> {
            let path = checkout.at.join(path.as_bytes())?;
            folders_to(&path, into, owners)?;
            let folder = into.folder(&path.parent().unwrap_or_default())?;
            let executable = matches!(entry, Entry::File(true, _));
            match entry {
                Entry::Link(target) => file::symlink_at(target, folder.as_fd(), path.name())?,
                Entry::File(_, content) => {
                    let mode = if executable { 0o755 } else { 0o644 };
                    let mut made = file::create_file_at(folder.as_fd(), path.name(), mode)?;
                    io::copy(content, &mut made).map_err(|e| Error::io("write", path.as_path(), e))?;
                }
            }
            owners.insert(path, owner(if executable { 0o755 } else { 0o644 }));
            Ok(())
        };
        // As git itself: a submodule is a folder that is empty.
        let empty = |owners: &mut Owners, at: &RootPath| -> Result<()> {
            folders_to(at, into, owners)?;
            let folder = into.folder(&at.parent().unwrap_or_default())?;
            file::mkdir_at(folder.as_fd(), at.name(), 0o755)?;
            owners.insert(at.clone(), owner(0o755));
            Ok(())
        };
        if let Some(blob) = commit::known(build.store, &checkout.commit) {
            let submodules =
                commit::read(build.store.blob(&blob)?, &checkout.commit, &mut |path, entry| put(owners, path, entry))?;
            for (path, commit) in submodules {
                let at = checkout.at.join(path.as_bytes())?;
                empty(owners, &at)?;
                if wanted.submodules {
                    coming.push(Checkout { urls: vec![], commit, at, depth: checkout.depth + 1 });
                }
            }
            return Ok(());
        }
        let scratch = build.store.scratch()?;
        let (url, repository) = clone(build, &git, checkout, &scratch)?;
        let files = repository.files()?;
        repository.contents(&files, &mut |file, _, content| match file.kind {
            TreeKind::Link => put(owners, &file.path, Entry::Link(&commit::link_target(content, &file.path)?)),
            kind => put(owners, &file.path, Entry::File(kind == TreeKind::File(true), content)),
        })?;
        for submodule in submodules(&repository, &url, &files, wanted.submodules, checkout)? {
            empty(owners, &submodule.at)?;
            if wanted.submodules {
                coming.push(submodule);
            }
        }
        Ok(())
    })
}

/// Keeps a commit and its submodules as blobs, from which it is laid out without `git` and a network.
pub fn keep_commit(build: &Build, wanted: &Git) -> Result<()> {
    if commit::closure(build.store, &wanted.commit, wanted.submodules)?.is_ok() {
        return Ok(());
    }
    let git = git::Git::new(build.options.environment.clone(), build.base.http().network());
    checkouts(wanted, &mut |checkout, coming| {
        let scratch = build.store.scratch()?;
        let (url, repository) = clone(build, &git, checkout, &scratch)?;
        commit::keep(build.store, &repository, &checkout.commit)?;
        if wanted.submodules {
            coming.extend(submodules(&repository, &url, &repository.files()?, true, checkout)?);
        }
        Ok(())
    })
}

/// Calls `each` for a commit, and for what it adds: submodules, submodules of these.
fn checkouts(wanted: &Git, each: &mut dyn FnMut(&Checkout, &mut Vec<Checkout>) -> Result<()>) -> Result<()> {
    let mut coming =
        vec![Checkout { urls: wanted.urls.clone(), commit: wanted.commit.clone(), at: RootPath::root(), depth: 0 }];
    let mut done = 0;
    while let Some(checkout) = coming.pop() {
        done += 1;
        if done > REPOSITORIES || checkout.depth > DEPTH {
            return Err(Error::failed(format!("more than {REPOSITORIES} submodules, or {DEPTH} in one another")));
        }
        each(&checkout, &mut coming)?;
    }
    Ok(())
}

/// The submodules of a commit; those that are wanted have the URL of their repository.
fn submodules(
    repository: &Repository,
    url: &str,
    files: &[git::TreeFile],
    wanted: bool,
    checkout: &Checkout,
) -> Result<Vec<Checkout>> {
    let mut made = vec![];
    {
        let submodules = files.iter().filter(|file| file.kind == TreeKind::Submodule);
        let urls =
            if wanted && submodules.clone().next().is_some() { repository.submodules()? } else { Default::default() };
        for file in submodules {
            let at = checkout.at.join(file.path.as_bytes())?;
            let mut from = vec![];
            if wanted {
                let written = urls
                    .get(&file.path)
                    .ok_or_else(|| Error::failed(format!("{at} is a submodule that .gitmodules doesn't name")))?;
                let written = git::submodule_url(url, written);
                if written.starts_with("file:") && !url.starts_with("file:") {
                    return Err(Error::failed(format!("{at} is a submodule that lies on this machine: {written}")));
                }
                from.push(written);
            }
            made.push(Checkout { urls: from, commit: file.object.clone(), at, depth: checkout.depth + 1 });
        }
    }
    Ok(made)
}

/// The first repository that has the commit, and its URL.
fn clone<'a>(
    build: &Build,
    git: &'a git::Git,
    checkout: &Checkout,
    scratch: &Scratch,
) -> Result<(String, Repository<'a>)> {
    let mut failures = vec![];
    for (number, url) in checkout.urls.iter().enumerate() {
        let url = match url.strip_prefix("input:") {
            Some(input) => {
                let path = build
                    .options
                    .inputs
                    .get(input)
                    .ok_or_else(|| Error::request(format!("no input is named {input:?}")))?;
                let path: PathBuf = path.canonicalize().map_err(|e| Error::io("open", path, e))?;
                format!("file://{}", path.display())
            }
            None => build.options.mirrored(url),
        };
        match git.fetch(&url, &checkout.commit, &scratch.folder(&format!("git{number}"))?) {
            Ok(repository) => return Ok((url, repository)),
            Err(error) => failures.push(error),
        }
    }
    Error::all(failures).map_or_else(|| Err(Error::failed("no repository is named")), Err)
}

fn folders_to(path: &RootPath, into: &Root, owners: &mut Owners) -> Result<()> {
    let mut above: Vec<RootPath> =
        path.ancestors().filter(|above| !above.is_root() && !owners.contains_key(above)).collect();
    above.reverse();
    for folder in above {
        let parent = into.folder(&folder.parent().unwrap_or_default())?;
        file::mkdir_at(parent.as_fd(), folder.name(), 0o755)?;
        owners.insert(folder, owner(0o755));
    }
    Ok(())
}
