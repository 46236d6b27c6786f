//! A rule's sources: copied into the store in one normal form, so that umask, checkout and clock
//! don't matter: owner 0:0, mode 0644 or 0755, the time of the epoch, links as they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::archive::section::Section;
use crate::build_file::spec::Source;
use crate::changeset;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::execute::secrets::Search;
use crate::label::Package;
use crate::store::Store;
use crate::sys::file;
use crate::tree::{Change, Changeset, Entry, Layer, Node, RootPath};

/// The folder in a snapshot where the rules of a package work.
pub fn folder(package: &Package) -> String {
    match package.path() {
        "" => "/workspace".to_string(),
        path => format!("/workspace/{path}"),
    }
}

/// Where sources come from.
pub struct From<'a> {
    /// The package's folder; `None`: built in.
    pub folder: Option<&'a Path>,
    /// Inputs by name.
    pub inputs: &'a BTreeMap<String, PathBuf>,
    /// Blobs of the store, by their path in the rule's folder.
    pub fetched: &'a [(String, Digest)],
}

/// Copies the sources of a rule into the store, if there is no secret in them. Without any, the changeset still has the
/// folder that the rule works in.
pub fn gather(
    store: &Store,
    package: &Package,
    from: &From,
    sources: &[Source],
    time: i64,
    secrets: &Search,
) -> Result<Layer> {
    let top = RootPath::new(folder(package))?;
    let mut found = Found::default();
    found.folders_to(&top);
    for source in sources {
        match source {
            Source::Path(path) => {
                let root =
                    from.folder.ok_or_else(|| Error::request(format!("a built-in package has no sources: {path}")))?;
                let inside = RootPath::new(path).and_then(|p| top.join(p.as_bytes()))?;
                let from = root.join(path);
                stays_inside(&from, root)?;
                found.take(&from, &inside)?;
            }
            Source::Input(name) => {
                let from = from.inputs.get(name).ok_or_else(|| {
                    Error::request(format!("no input is named {name:?}"))
                        .next(format!("add {name} = \"PATH\" below [inputs] in tapeout.toml, or --input {name}=PATH"))
                })?;
                found.take(from, &top.join(name)?)?;
            }
            Source::Fetched(_) | Source::Wheel(_) => {}
        }
    }
    for (path, digest) in from.fetched {
        found.put(store, &top.join(path)?, digest)?;
    }
    found.keep(store, time, secrets)
}

#[derive(Default)]
struct Found {
    changes: BTreeMap<RootPath, Change>,
    files: BTreeMap<RootPath, Content>,
}

/// Where the content of a source lies.
enum Content {
    Path(PathBuf),
    Blob(Digest),
}

impl Content {
    fn open(&self, store: &Store) -> Result<Section> {
        match self {
            Self::Path(path) => Section::whole(open(path)?).map_err(|e| Error::io("fstat", path, e)),
            Self::Blob(digest) => store.blob(digest),
        }
    }
}

impl Found {
    fn add(&mut self, path: RootPath, entry: Entry) {
        self.changes.insert(path, Change { was: None, now: Some(entry) });
    }

    fn folders_to(&mut self, path: &RootPath) {
        let missing: Vec<_> = std::iter::once(path.clone()).chain(path.ancestors()).filter(|p| !p.is_root()).collect();
        for folder in missing {
            self.changes.entry(folder).or_insert_with(|| Change { was: None, now: Some(Entry::folder(0o755)) });
        }
    }

    fn put(&mut self, store: &Store, inside: &RootPath, digest: &Digest) -> Result<()> {
        if let Some(parent) = inside.parent() {
            self.folders_to(&parent);
        }
        let size = store.blob(digest)?.size();
        self.add(
            inside.clone(),
            Entry { node: Node::File { size, digest: *digest, group: None }, ..Entry::file(b"", 0o644) },
        );
        self.files.insert(inside.clone(), Content::Blob(*digest));
        Ok(())
    }

    fn take(&mut self, from: &Path, inside: &RootPath) -> Result<()> {
        if let Some(parent) = inside.parent() {
            self.folders_to(&parent);
        }
        for found in WalkDir::new(from).follow_links(false).follow_root_links(false).sort_by_file_name() {
            let found = found.map_err(|e| {
                let path = e.path().unwrap_or(from).to_path_buf();
                Error::io("read", path, e.into_io_error().unwrap_or_else(|| io::Error::other("a loop")))
                    .with_kind(crate::error::Kind::Request)
                    .next("name a source that exists and that you may read")
            })?;
            let below = found.path().strip_prefix(from).unwrap_or(Path::new(""));
            let path = inside.join(below.as_os_str().as_bytes())?;
            let metadata = found.metadata().map_err(|e| Error::io("stat", found.path(), e))?;
            let kind = metadata.file_type();
            if kind.is_dir() {
                self.add(path, Entry::folder(0o755));
            } else if kind.is_symlink() {
                let target = fs::read_link(found.path()).map_err(|e| Error::io("readlink", found.path(), e))?;
                self.add(path, Entry::link(target.as_os_str().as_bytes()));
            } else if kind.is_file() {
                let digest = File::open(found.path()).and_then(Digest::of_reader);
                let (digest, size) = digest.map_err(|e| {
                    Error::io("read", found.path(), e)
                        .with_kind(crate::error::Kind::Request)
                        .next("make it readable, or leave it out of the sources")
                })?;
                let mode = if metadata.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
                let node = Node::File { size, digest, group: None };
                self.add(path.clone(), Entry { node, ..Entry::file(b"", mode) });
                self.files.insert(path, Content::Path(found.path().to_path_buf()));
            } else {
                return Err(Error::request(format!(
                    "a source that is neither file, folder nor link: {}",
                    found.path().display()
                ))
                .why(format!("its mode is {:o}", metadata.mode()))
                .next("leave it out of the sources"));
            }
        }
        Ok(())
    }

    fn keep(mut self, store: &Store, time: i64, secrets: &Search) -> Result<Layer> {
        // Copied before it is named: a file that is edited meanwhile is taken as it was copied.
        let digest = changeset::digest_of(&self.changeset(time), |path| self.files[path].open(store));
        if let Ok(digest) = digest
            && store.has_changeset(&digest)
        {
            secrets.refuses_sources(&self.changes, |path| self.files[path].open(store))?;
            return store.changeset(&digest);
        }
        let scratch = store.scratch()?;
        let files = scratch.folder("files")?;
        self.copy_to(store, &files, time)?;
        secrets.refuses_sources(&self.changes, |path| open(&path.below(&files)))?;
        let changeset = self.changeset(time);
        let digest = changeset::digest_of(&changeset, |path| open(&path.below(&files)))?;
        store.keep_changeset(digest, changeset, &files)
    }

    fn changeset(&self, time: i64) -> Changeset {
        Changeset { time, changes: self.changes.clone() }
    }

    fn copy_to(&mut self, store: &Store, files: &Path, time: i64) -> Result<()> {
        for (path, change) in &mut self.changes {
            let Some(entry) = &mut change.now else { continue };
            let to = path.below(files);
            match &mut entry.node {
                Node::Folder => {
                    fs::create_dir(&to).map_err(|e| Error::io("mkdir", &to, e))?;
                    set_mode(&to, entry.mode)?;
                }
                Node::Link { target } => {
                    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &to)
                        .map_err(|e| Error::io("symlink", &to, e))?;
                }
                Node::File { size, digest, .. } => {
                    let from = &self.files[path];
                    let mut hashing = Hashing::new(File::create_new(&to).map_err(|e| Error::io("create", &to, e))?);
                    io::copy(&mut from.open(store)?, &mut hashing).map_err(|e| Error::io("copy", &to, e))?;
                    (_, *digest, *size) = hashing.finish();
                    set_mode(&to, entry.mode)?;
                }
                _ => {}
            }
        }
        // The highest last, so that nothing written below changes a folder's time again.
        for path in self.changes.keys().rev() {
            let to = path.below(files);
            let parent = File::open(to.parent().unwrap_or(files)).map_err(|e| Error::io("open", &to, e))?;
            file::set_mtime_at(parent.as_fd(), path.name(), time)?;
        }
        Ok(())
    }
}

/// A link above a source must not lead out of its package: the build file is somebody else's.
fn stays_inside(path: &Path, package: &Path) -> Result<()> {
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|e| {
            Error::io("open", path, e).with_kind(crate::error::Kind::Request).next("name a source that exists")
        })
    };
    let parent = path.parent().unwrap_or(package);
    // The package itself has its parent outside.
    if parent == package || path == package {
        return Ok(());
    }
    let parent = real(parent)?;
    if parent.starts_with(real(package)?) {
        return Ok(());
    }
    Err(Error::request(format!("a source that lies outside of its package: {}", path.display()))
        .why(format!("a link leads to {}", parent.display()))
        .next("copy it into the package, or name it below [inputs] in tapeout.toml and write input(\"NAME\")"))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| Error::io("chmod", path, e))
}
