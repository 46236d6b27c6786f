//! A bundle as it is carried: made one file, and checked where it arrives.
//!
//! The file is a plain tar archive of one folder, named after the pod, in one form for the same bundle.
//! What is checked lies in a folder or such a file that anybody may have changed: every file against
//! `SHA256SUMS`, `pod.json` against its schema and against what is there, every blob of `images/` against
//! its name and against what names it. Nothing is unpacked, links are not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::SFlag;
use serde_json::Value;

use super::described::{self, Pod};
use super::schema;
use crate::archive::section::Section;
use crate::archive::tar_reader::{self, Kind, Limits, Place};
use crate::archive::tar_writer::{self, Member, TarWriter};
use crate::archive::whole_file;
use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::image::json;
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// Paths of a bundle.
const ENTRIES: u64 = 1_000_000;
/// Parts of a path.
const DEPTH: usize = 64;
/// Bytes of a document in it.
const DOCUMENT: u64 = 64 << 20;
const SUMS: &str = "SHA256SUMS";

/// What was checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// The pod's name.
    pub name: String,
    /// The rule that made it.
    pub label: String,
    /// The digest of its SHA256SUMS: names the whole bundle.
    pub digest: Digest,
    /// Files.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// An entry of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    /// A file of this size; may it be executed?
    File(u64, bool),
    Folder,
    Link(Vec<u8>),
    /// What has no place in a bundle.
    Other(&'static str),
}

enum Source {
    Folder(Root),
    Tar(Arc<File>, BTreeMap<RootPath, Place>),
}

/// A bundle that somebody else may have written or changed.
struct Bundle {
    source: Source,
    entries: BTreeMap<RootPath, Entry>,
    /// What lies beside the bundle's folder in its file.
    beside: Vec<RootPath>,
}

impl Bundle {
    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let root = Root::open(path)?;
            let mut entries = BTreeMap::new();
            walk(&root, &RootPath::root(), 0, &mut entries)?;
            return Ok(Self { source: Source::Folder(root), entries, beside: vec![] });
        }
        let file = Arc::new(file::open_regular(path).map_err(|e| e.with_kind(crate::error::Kind::Request))?);
        let limits = Limits { entries: ENTRIES, depth: DEPTH + 1, ..Limits::default() };
        let index = tar_reader::index_tar(&file, &limits).map_err(|e| {
            e.context(path.display()).next("name a bundle's folder, or a file that tapeout pod pack made")
        })?;
        let top = index.keys().map(RootPath::top).find(|top| !top.is_empty()).unwrap_or_default().to_vec();
        let (mut places, mut beside) = (BTreeMap::new(), vec![]);
        for (path, place) in index {
            match path.as_bytes().strip_prefix(top.as_slice()) {
                Some(below) if below.is_empty() || below.starts_with(b"/") => {
                    places.insert(RootPath::new(below)?, place);
                }
                _ if path.is_root() => {}
                _ => beside.push(path),
            }
        }
        let entries = places.iter().filter(|(path, _)| !path.is_root()).map(|(path, place)| {
            let entry = match &place.kind {
                Kind::File(size) => Entry::File(*size, place.mode & 0o111 != 0),
                Kind::Folder => Entry::Folder,
                Kind::Link(target) => Entry::Link(target.clone()),
                Kind::HardLink(_) => Entry::Other("a hard link"),
                Kind::Device { .. } => Entry::Other("a device"),
                Kind::Fifo => Entry::Other("a named pipe"),
            };
            (path.clone(), entry)
        });
        Ok(Self { entries: entries.collect(), source: Source::Tar(file, places), beside })
    }

    fn read(&self, path: &RootPath) -> Result<Box<dyn Read>> {
        match &self.source {
            Source::Folder(root) => Ok(Box::new(root.open_file(path)?)),
            Source::Tar(file, places) => match places.get(path) {
                Some(Place { kind: Kind::File(size), offset, .. }) => {
                    Ok(Box::new(Section::new(file.clone(), *offset, *size)))
                }
                _ => Err(Error::failed(format!("{path} is not in it"))),
            },
        }
    }

    /// A document; `None`: it isn't there.
    fn document(&self, path: &RootPath) -> Result<Option<Vec<u8>>> {
        let Some(Entry::File(..)) = self.entries.get(path) else { return Ok(None) };
        let mut bytes = vec![];
        self.read(path)?
            .take(DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", path.as_path(), e))?;
        match bytes.len() as u64 > DOCUMENT {
            true => Err(Error::failed(format!("{path} is longer than {DOCUMENT} bytes"))),
            false => Ok(Some(bytes)),
        }
    }
}

fn walk(root: &Root, folder: &RootPath, depth: usize, entries: &mut BTreeMap<RootPath, Entry>) -> Result<()> {
    if depth > DEPTH || entries.len() as u64 > ENTRIES {
        return Err(Error::failed(format!("a bundle has at most {ENTRIES} paths of {DEPTH} parts")));
    }
    let fd = root.folder(folder)?;
    for name in file::list(fd.as_fd())? {
        let path = folder.join(&name)?;
        let Some(stat) = file::stat_at(fd.as_fd(), &name)? else { continue };
        let entry = match file::kind(&stat) {
            SFlag::S_IFREG => Entry::File(u64::try_from(stat.st_size).unwrap_or(0), stat.st_mode & 0o111 != 0),
            SFlag::S_IFDIR => Entry::Folder,
            SFlag::S_IFLNK => Entry::Link(file::read_link_at(fd.as_fd(), &name)?),
            SFlag::S_IFIFO => Entry::Other("a named pipe"),
            SFlag::S_IFSOCK => Entry::Other("a socket"),
            _ => Entry::Other("a device"),
        };
        let is_folder = entry == Entry::Folder;
        entries.insert(path.clone(), entry);
        if is_folder {
            walk(root, &path, depth + 1, entries)?;
        }
    }
    Ok(())
}

/// Checks a bundle, a folder or a file. The error names all that is wrong with it.
pub fn verify(path: &Path) -> Result<Checked> {
    Whole::of(&Bundle::open(path)?, path).map(|whole| whole.checked)
}

/// Makes one file of a bundle that is whole: the same bytes for the same bundle.
pub fn pack(from: &Path, to: &Path) -> Result<Checked> {
    let bundle = Bundle::open(from)?;
    let whole = Whole::of(&bundle, from)?;
    write(&bundle, &whole, to)?;
    Ok(whole.checked)
}

/// What a bundle was found to be.
struct Whole {
    checked: Checked,
    pod: Pod,
    /// Of every file.
    digests: BTreeMap<RootPath, Digest>,
}

impl Whole {
    fn of(bundle: &Bundle, path: &Path) -> Result<Self> {
        Check { bundle, digests: BTreeMap::new(), faults: vec![] }.run(path)
    }
}

fn write(bundle: &Bundle, Whole { pod, digests, .. }: &Whole, to: &Path) -> Result<()> {
    let created = chrono::DateTime::parse_from_rfc3339(&pod.created)
        .map_err(|e| Error::failed(format!("pod.json: created is no time: {e}")))?;
    let none = BTreeMap::new();
    whole_file::write(to, |out| {
        let mut tar = TarWriter::new(out);
        let mut buffer = vec![0; 256 << 10];
        let member = |tar: &mut TarWriter<_>, path: &[u8], kind: tar_writer::Kind, mode: u32| {
            let mtime = created.timestamp();
            tar.member(&Member { path, kind, mode, uid: 0, gid: 0, mtime, xattrs: &none, records: &[] })
        };
        let top = RootPath::new(&pod.name)?;
        member(&mut tar, top.as_bytes(), tar_writer::Kind::Folder, 0o755)?;
        for (path, entry) in &bundle.entries {
            let name = top.join(path.as_bytes())?;
            match entry {
                Entry::Folder => member(&mut tar, name.as_bytes(), tar_writer::Kind::Folder, 0o755)?,
                Entry::Link(target) => member(&mut tar, name.as_bytes(), tar_writer::Kind::Link(target), 0o777)?,
                Entry::File(size, executable) => {
                    // As the bundle was written: only files of the pod may be executed.
                    let mode = if *executable && path.top() == b"files" { 0o755 } else { 0o644 };
                    member(&mut tar, name.as_bytes(), tar_writer::Kind::File(*size), mode)?;
                    let mut hashed = HashingReader::new(bundle.read(path)?);
                    if *size > 0 {
                        tar.content_from(&mut hashed, path, &mut buffer)?;
                    }
                    // What was checked may be another file by now.
                    let (packed, _) = hashed.finish().map_err(|e| Error::io("read", path.as_path(), e))?;
                    if digests.get(path) != Some(&packed) {
                        return Err(Error::failed(format!("{path} was changed while the bundle was packed"))
                            .next("pack it again when nothing writes into it"));
                    }
                }
                Entry::Other(what) => return Err(Error::failed(format!("{path} is {what}"))),
            }
        }
        tar.finish().map(drop)
    })
}

struct Check<'a> {
    bundle: &'a Bundle,
    digests: BTreeMap<RootPath, Digest>,
    faults: Vec<String>,
}

impl Check<'_> {
    fn fault(&mut self, path: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.faults.push(format!("{path}: {what}"));
    }

    fn run(mut self, path: &Path) -> Result<Whole> {
        let sums = self.bundle.document(&RootPath::new(SUMS)?)?;
        let Some(sums) = sums else {
            return Err(Error::failed(format!("{} is no bundle", path.display()))
                .why(format!("it has no {SUMS}"))
                .next("name the folder that tapeout build wrote for a pod, or a file that tapeout pod pack made"));
        };
        self.sums(&sums)?;
        let pod = self.pod()?;
        self.images(pod.as_ref())?;
        self.shape(pod.as_ref())?;
        match (pod, self.faults.is_empty()) {
            (Some(pod), true) => {
                let sizes = self.bundle.entries.values().filter_map(|entry| match entry {
                    Entry::File(size, _) => Some(*size),
                    _ => None,
                });
                let checked = Checked {
                    name: pod.name.clone(),
                    label: pod.label.clone(),
                    digest: Digest::of(&sums),
                    files: sizes.clone().count(),
                    bytes: sizes.sum(),
                };
                self.digests.insert(RootPath::new(SUMS)?, checked.digest);
                Ok(Whole { checked, pod, digests: self.digests })
            }
            (_, _) => {
                let mut error = Error::failed(format!("the bundle {} is not as it was written", path.display()));
                for fault in std::mem::take(&mut self.faults) {
                    error = error.why(fault);
                }
                Err(error.next("carry it again, or build it again"))
            }
        }
    }

    /// Every file is in the sums, every sum has its file.
    fn sums(&mut self, text: &[u8]) -> Result<()> {
        let mut named = BTreeMap::new();
        for (number, line) in text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let parsed = line.split_at_checked(66).and_then(|(sum, name)| {
                let sum = std::str::from_utf8(sum.strip_suffix(b"  ")?).ok()?;
                Some((RootPath::new(name).ok().filter(|path| path.as_bytes() == name)?, Digest::from_hex(sum).ok()?))
            });
            let Some((path, digest)) = parsed else {
                self.fault(SUMS, format!("line {} is not one of sha256sum", number + 1));
                continue;
            };
            if named.insert(path.clone(), digest).is_some() {
                self.fault(path, format!("it stands in {SUMS} twice"));
            }
        }
        for (path, entry) in &self.bundle.entries {
            let (Entry::File(..), true) = (entry, path.as_bytes() != SUMS.as_bytes()) else { continue };
            let (digest, _) =
                Digest::of_reader(self.bundle.read(path)?).map_err(|e| Error::io("read", path.as_path(), e))?;
            self.digests.insert(path.clone(), digest);
            match named.remove(path) {
                None => self.fault(path, format!("it was added: {SUMS} doesn't name it")),
                Some(expected) if expected != digest => {
                    self.fault(path, format!("it is damaged: expected {expected}, got {digest}"));
                }
                Some(_) => {}
            }
        }
        for path in named.into_keys() {
            self.fault(path, "it is missing");
        }
        Ok(())
    }

    fn json(&mut self, path: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.bundle.document(&RootPath::new(path)?)? else { return Ok(None) };
        match json::read(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.fault(path, format!("{error}: {}", error.reasons().join("; ")));
                Ok(None)
            }
        }
    }

    /// `pod.json` fits its schema, and what it names is there.
    fn pod(&mut self) -> Result<Option<Pod>> {
        let Some(document) = self.json("pod.json")? else {
            if !self.bundle.entries.contains_key(&RootPath::new("pod.json")?) {
                self.fault("pod.json", "it is missing");
            }
            return Ok(None);
        };
        let faults = schema::faults(&document)?;
        if !faults.is_empty() {
            self.faults.extend(faults.into_iter().map(|fault| format!("{fault} (docs/pod.schema.json)")));
            return Ok(None);
        }
        let pod: Pod = match serde_json::from_value(document) {
            Ok(pod) => pod,
            Err(error) => {
                self.fault("pod.json", error);
                return Ok(None);
            }
        };
        for volume in &pod.volumes {
            if let (Some(archive), Some(digest)) = (&volume.archive, &volume.digest) {
                self.is(archive, digest, "pod.json");
            }
        }
        for file in &pod.files {
            if let Some(digest) = &file.digest {
                self.is(&format!("files/{}", file.path), digest, "pod.json");
            }
        }
        Ok(Some(pod))
    }

    /// Is that file there with this content? One that differs from SHA256SUMS is told already.
    fn is(&mut self, path: &str, digest: &Digest, says: &str) {
        let found = RootPath::new(path).ok().and_then(|path| self.digests.get(&path).copied());
        match found {
            None => self.fault(path, format!("it is missing: {says} names it")),
            Some(found) if found != *digest => {
                self.fault(path, format!("{says} says that it is {digest}, and it is {found}"));
            }
            Some(_) => {}
        }
    }

    /// The layout has every blob that is named, and no other.
    fn images(&mut self, pod: Option<&Pod>) -> Result<()> {
        const BLOBS: &str = "images/blobs/sha256";
        match self.json("images/oci-layout")? {
            Some(version) if version["imageLayoutVersion"] == "1.0.0" => {}
            _ => self.fault("images/oci-layout", "it is no image layout of version 1.0.0"),
        }
        let Some(index) = self.json("images/index.json")? else {
            self.fault("images/index.json", "it is not there");
            return Ok(());
        };
        let mut wanted = BTreeSet::new();
        for manifest in descriptors(&index["manifests"]) {
            if !self.blob(&manifest, "images/index.json", &mut wanted) {
                continue;
            }
            let path = format!("{BLOBS}/{}", manifest.0.hex());
            let Some(document) = self.json(&path)? else { continue };
            let parts = descriptors(&document["layers"]);
            for part in descriptors(&Value::Array(vec![document["config"].clone()])).into_iter().chain(parts) {
                self.blob(&part, &path, &mut wanted);
            }
        }
        for image in pod.iter().flat_map(|pod| &pod.images) {
            if !wanted.contains(&image.digest) {
                self.fault(
                    "images/index.json",
                    format!("it has no {}, which pod.json names {}", image.digest, image.name),
                );
            }
        }
        let blobs = RootPath::new(BLOBS)?;
        let found: Vec<_> = (self.digests.iter())
            .filter(|(path, _)| path.starts_with(&blobs))
            .map(|(path, digest)| (path.clone(), *digest))
            .collect();
        for (path, digest) in found {
            if path.name() != digest.hex().as_bytes() {
                self.fault(&path, format!("its content has the digest {digest}"));
            } else if !wanted.contains(&digest) {
                self.fault(&path, "it was added: no image has it");
            }
        }
        Ok(())
    }

    /// Is a blob there, and of its size?
    fn blob(&mut self, (digest, size): &(Digest, u64), by: &str, wanted: &mut BTreeSet<Digest>) -> bool {
        wanted.insert(*digest);
        let path = format!("images/blobs/sha256/{}", digest.hex());
        let entry = RootPath::new(&path).ok().and_then(|path| self.bundle.entries.get(&path));
        match entry {
            Some(Entry::File(is, _)) if is == size => return true,
            Some(Entry::File(is, _)) => self.fault(path, format!("it has {is} bytes, {by} says {size}")),
            _ => self.fault(path, format!("it is missing: {by} names it")),
        }
        false
    }

    /// Links, folders and all else: what `pod.json` says, and what files stand in.
    fn shape(&mut self, pod: Option<&Pod>) -> Result<()> {
        let mut folders = BTreeSet::new();
        for (path, entry) in &self.bundle.entries {
            if matches!(entry, Entry::File(..) | Entry::Link(_)) {
                folders.extend(path.ancestors());
            }
        }
        let mut described: BTreeMap<RootPath, &described::File> = BTreeMap::new();
        for file in pod.iter().flat_map(|pod| &pod.files) {
            described.insert(RootPath::new(format!("files/{}", file.path))?, file);
        }
        for path in described.keys() {
            folders.extend(path.ancestors());
        }
        for (path, entry) in &self.bundle.entries {
            let said = described.get(path).copied();
            match entry {
                Entry::Other(what) => self.fault(path, format!("it was added: {what} has no place in a bundle")),
                Entry::Link(target) => {
                    let expected = said.and_then(|file| file.target.as_ref());
                    if pod.is_some() && expected.is_none_or(|expected| expected.as_bytes() != target.as_slice()) {
                        self.fault(path, "it is a link that pod.json doesn't name");
                    }
                }
                Entry::Folder if !folders.contains(path) && said.is_none_or(|file| file.kind != "folder") => {
                    self.fault(path, "it was added: an empty folder");
                }
                Entry::Folder | Entry::File(..) => {}
            }
        }
        for (path, file) in described.iter().filter(|(_, file)| file.kind != "file") {
            let fits = match self.bundle.entries.get(path) {
                Some(Entry::Folder) => file.kind == "folder",
                Some(Entry::Link(_)) => file.kind == "link",
                _ => false,
            };
            if !fits {
                self.fault(path, format!("it is missing: pod.json names a {}", file.kind));
            }
        }
        for path in self.bundle.beside.clone() {
            self.fault(path, "it was added: it lies beside the bundle's folder");
        }
        Ok(())
    }
}

/// Digest and size of each descriptor; what is none is left for who misses it.
fn descriptors(list: &Value) -> Vec<(Digest, u64)> {
    let one = |value: &Value| Some((value["digest"].as_str()?.parse().ok()?, value["size"].as_u64()?));
    list.as_array().into_iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::written;
    use super::super::plan::tests::shop;
    use super::*;

    #[test]
    fn a_file_that_changes_after_it_was_checked_is_not_packed() {
        let (folder, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        written(&shop(), folder.path());
        let (bundle, to) = (Bundle::open(folder.path()).unwrap(), temp.path().join("shop.tar"));
        for name in ["files/web.conf", SUMS] {
            let whole = Whole::of(&bundle, folder.path()).unwrap();
            let path = folder.path().join(name);
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            bad[0] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let error = write(&bundle, &whole, &to).unwrap_err();
            assert!(error.what().contains(name) && !to.exists(), "{error}");
            std::fs::write(&path, good).unwrap();
        }
        assert_eq!(pack(folder.path(), &to).unwrap(), verify(&to).unwrap());
    }
}
