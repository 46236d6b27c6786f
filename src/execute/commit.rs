//! The tree of a git commit as one blob: what `tapeout fetch` keeps of it, and what is laid out without `git`.
//!
//! A tar stream: `commit` (the commit object itself), `submodules` (`ID PATH NUL` for each), then `tree/PATH`
//! for each file and link, in git's order, with git's modes. It is trusted for nothing: what is read is hashed as
//! git hashes it, and must come out as the commit's ID.

use std::collections::BTreeMap;
use std::io::{self, Read};

use sha2::Digest as _;

use crate::archive::tar_reader::{self, Limits, read_tar};
use crate::archive::tar_writer::{Kind, Member, TarWriter};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::request::key;
use crate::remote::git::{Repository, TreeKind};
use crate::store::Store;
use crate::store::inputs::Role;
use crate::tree::RootPath;

/// Bytes of a commit object, and of the list of submodules.
const DOCUMENT: u64 = 16 << 20;
const COMMIT: &str = "commit";
const SUBMODULES: &str = "submodules";
const TREE: &str = "tree";

/// The blob of a commit, if the store or a file of inputs has it.
pub fn known(store: &Store, commit: &str) -> Option<Digest> {
    let kept = store.action(&key(COMMIT, commit.as_bytes())).and_then(|text| serde_json::from_slice(&text).ok());
    let named = store.inputs().into_iter().flat_map(|inputs| inputs.of(Role::Commit));
    let named = named.filter(|input| input.key.as_deref() == Some(commit)).map(|input| input.digest);
    kept.into_iter().chain(named).find(|digest| store.gives(digest))
}

/// All blobs that a commit consists of, with those of its submodules if they are wanted; the ID of one that
/// isn't there.
pub fn closure(
    store: &Store,
    commit: &str,
    submodules: bool,
) -> Result<std::result::Result<Vec<(String, Digest)>, String>> {
    let (mut coming, mut found) = (vec![commit.to_string()], BTreeMap::new());
    while let Some(commit) = coming.pop() {
        if found.contains_key(&commit) {
            continue;
        }
        let Some(digest) = known(store, &commit) else { return Ok(Err(commit)) };
        let below = read(store.blob(&digest)?, &commit, &mut |_, _| Ok(()))?;
        if submodules {
            coming.extend(below.into_values());
        }
        found.insert(commit, digest);
    }
    Ok(Ok(found.into_iter().collect()))
}

/// Keeps the commit of a repository as a blob.
pub fn keep(store: &Store, repository: &Repository, commit: &str) -> Result<Digest> {
    let files = repository.files()?;
    let mut tar = TarWriter::new(store.begin()?);
    let none = BTreeMap::new();
    let put = |tar: &mut TarWriter<_>, path: &[u8], kind: Kind, mode: u32| {
        tar.member(&Member { path, kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: &none, records: &[] })
    };
    let mut submodules = vec![];
    for file in files.iter().filter(|file| file.kind == TreeKind::Submodule) {
        submodules.extend([file.object.as_bytes(), b" ", file.path.as_bytes(), b"\0"].concat());
    }
    for (name, bytes) in [(COMMIT, &repository.object()?), (SUBMODULES, &submodules)] {
        put(&mut tar, name.as_bytes(), Kind::File(bytes.len() as u64), 0o644)?;
        tar.content(bytes)?;
    }
    let top = RootPath::new(TREE)?;
    let mut buffer = vec![0; 1 << 16];
    repository.contents(&files, &mut |file, size, content| {
        let path = top.join(file.path.as_bytes())?;
        if file.kind == TreeKind::Link {
            let target = link_target(content, &path)?;
            return put(&mut tar, path.as_bytes(), Kind::Link(&target), 0o777);
        }
        put(&mut tar, path.as_bytes(), Kind::File(size), file.mode & 0o777)?;
        match size {
            0 => Ok(()),
            _ => tar.content_from(content, &path, &mut buffer),
        }
    })?;
    let digest = tar.finish()?.finish()?.digest;
    // What a later reader would refuse is refused now.
    read(store.blob(&digest)?, commit, &mut |_, _| Ok(()))?;
    let document = serde_json::to_vec(&digest).map_err(|e| Error::failed(e.to_string()))?;
    store.record_action(&key(COMMIT, commit.as_bytes()), &document)?;
    Ok(digest)
}

/// Bytes of a link's target.
const TARGET: u64 = 4095;

/// The target of a link that comes as content.
pub fn link_target(content: &mut dyn Read, path: &RootPath) -> Result<Vec<u8>> {
    let mut target = vec![];
    content.take(TARGET + 1).read_to_end(&mut target).map_err(|e| Error::io("read", "git", e))?;
    match target.len() as u64 > TARGET || target.is_empty() || target.contains(&0) {
        true => Err(Error::failed(format!("{path} is a link that can't be one"))),
        false => Ok(target),
    }
}

/// An entry of a commit's tree, for whoever lays it out.
pub enum Entry<'a> {
    /// A file; true: executable.
    File(bool, &'a mut dyn Read),
    /// A link.
    Link(&'a [u8]),
}

/// Reads a commit's blob, and gives each of its files and links to `each`; gives the submodules: path to commit.
/// What `each` got counts only when this returns well.
pub fn read(
    tar: impl Read,
    commit: &str,
    each: &mut dyn FnMut(&RootPath, Entry) -> Result<()>,
) -> Result<BTreeMap<RootPath, String>> {
    let other = || {
        Error::failed(format!("what is there of the commit {commit} is something else"))
            .next("make the file of inputs again with tapeout fetch")
    };
    let top = RootPath::new(TREE)?;
    let (mut object, mut submodules, mut tree) = (None, BTreeMap::new(), Tree::default());
    read_tar(tar, &Limits::default(), &mut |item, content| {
        let Some(below) =
            item.path.as_bytes().strip_prefix(b"tree/".as_slice()).filter(|_| item.path.starts_with(&top))
        else {
            let mut bytes = vec![];
            content.take(DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", "a commit", e))?;
            match item.path.as_bytes() {
                b"commit" if object.is_none() && bytes.len() as u64 <= DOCUMENT => object = Some(bytes),
                b"submodules" if bytes.len() as u64 <= DOCUMENT => {
                    for line in bytes.split(|b| *b == 0).filter(|line| !line.is_empty()) {
                        let space = line.iter().position(|b| *b == b' ').ok_or_else(other)?;
                        let id = std::str::from_utf8(&line[..space]).map_err(|_| other())?;
                        let path = RootPath::new(&line[space + 1..])?;
                        tree.put(path.as_bytes(), "160000".into(), unhex(id).ok_or_else(other)?).ok_or_else(other)?;
                        submodules.insert(path, id.to_string());
                    }
                }
                _ => return Err(other()),
            }
            return Ok(());
        };
        let path = RootPath::new(below)?;
        let (mode, id) = match &item.kind {
            tar_reader::Kind::File(size) => {
                let mut hash = Hash::object(commit, "blob", *size);
                let mut tee = Tee { inner: content, hash: &mut hash };
                each(&path, Entry::File(item.mode & 0o100 != 0, &mut tee))?;
                io::copy(&mut tee, &mut io::sink()).map_err(|e| Error::io("read", path.as_path(), e))?;
                (format!("100{:o}", item.mode), hash.finish()?)
            }
            tar_reader::Kind::Link(target) => {
                each(&path, Entry::Link(target))?;
                ("120000".into(), Hash::of(commit, "blob", target)?)
            }
            _ => return Err(other()),
        };
        tree.put(path.as_bytes(), mode, id).ok_or_else(other)
    })?;
    let object = object.ok_or_else(other)?;
    let named = object.strip_prefix(b"tree ".as_slice()).and_then(|rest| rest.split(|b| *b == b'\n').next());
    let is = Hash::of(commit, "commit", &object)?;
    if Some(is) != unhex(commit) || named.map(<[u8]>::to_vec) != Some(hex(&tree.id(commit)?).into_bytes()) {
        return Err(other());
    }
    Ok(submodules)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_uppercase());
    let good = matches!(text.len(), 40 | 64);
    let bytes = text.as_bytes().chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8));
    bytes.collect::<Option<Vec<u8>>>().filter(|_| good)
}

/// A folder of a tree: its entries in git's order, in which a folder's name ends in a slash.
#[derive(Default)]
struct Tree(BTreeMap<Vec<u8>, Node>);

enum Node {
    Leaf(String, Vec<u8>),
    Folder(Tree),
}

impl Tree {
    /// `None`: that path stands in it already, or stands in the way.
    fn put(&mut self, path: &[u8], mode: String, id: Vec<u8>) -> Option<()> {
        match path.iter().position(|b| *b == b'/') {
            None => match self.0.insert(path.to_vec(), Node::Leaf(mode, id)) {
                None => Some(()),
                Some(_) => None,
            },
            Some(slash) => {
                let folder = self.0.entry(path[..=slash].to_vec()).or_insert_with(|| Node::Folder(Self::default()));
                match folder {
                    Node::Folder(tree) => tree.put(&path[slash + 1..], mode, id),
                    Node::Leaf(..) => None,
                }
            }
        }
    }

    /// gitformat-tree(5): mode, name, NUL, ID.
    fn id(&self, commit: &str) -> Result<Vec<u8>> {
        let mut object = vec![];
        for (name, node) in &self.0 {
            let (mode, id) = match node {
                Node::Leaf(mode, id) => (mode.as_str(), id.clone()),
                Node::Folder(tree) => ("40000", tree.id(commit)?),
            };
            let name = name.strip_suffix(b"/").unwrap_or(name);
            object.extend([mode.as_bytes(), b" ", name, b"\0", &id].concat());
        }
        Hash::of(commit, "tree", &object)
    }
}

/// The hash of a repository: that of the commit's ID.
enum Hash {
    Sha1(Box<sha1_checked::Sha1>),
    Sha256(sha2::Sha256),
}

impl Hash {
    /// Of an object of this kind and size, before its content.
    fn object(commit: &str, kind: &str, size: u64) -> Self {
        let mut hash = match commit.len() {
            64 => Self::Sha256(sha2::Sha256::new()),
            _ => Self::Sha1(Box::default()),
        };
        hash.update(format!("{kind} {size}\0").as_bytes());
        hash
    }

    fn of(commit: &str, kind: &str, content: &[u8]) -> Result<Vec<u8>> {
        let mut hash = Self::object(commit, kind, content.len() as u64);
        hash.update(content);
        hash.finish()
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hash) => sha1_checked::Digest::update(&mut **hash, bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Result<Vec<u8>> {
        match self {
            Self::Sha1(hash) => {
                let result = hash.try_finalize();
                match result.has_collision() {
                    true => Err(Error::failed("an object of the commit was made to collide with another one")),
                    false => Ok(result.hash().to_vec()),
                }
            }
            Self::Sha256(hash) => Ok(hash.finalize().to_vec()),
        }
    }
}

struct Tee<'a> {
    inner: &'a mut dyn Read,
    hash: &'a mut Hash,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}
