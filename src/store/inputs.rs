//! Inputs: all that a build needs from outside, in one file (`tapeout fetch -o FILE`, `--inputs FILE`).
//!
//! The file is an OCI archive: a tar file with an image layout in which one artifact lies, so that tools
//! for images carry, copy and push it. docs/air-gap.md describes it:
//!
//! ```text
//! oci-layout, index.json      one manifest
//! blobs/sha256/HEX            the manifest, its config, and a layer for each input
//! ```
//!
//! It is read in place: opened, its tar headers are walked; a blob is hashed where it lies before anybody
//! sees a byte of it. The file is believed in nothing: digests decide what a blob is, and annotations only say
//! where to look for what is then checked by its own rules (a SHA-512, a commit's ID, a signature).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::archive::section::Section;
use crate::archive::tar_reader::{self, Kind, Limits};
use crate::archive::tar_writer::{self, Member, TarWriter};
use crate::archive::whole_file;
use crate::digest::{Digest, HashingReader};
use crate::error::{self, Error, Result};
use crate::sys::file;
use crate::tree::RootPath;

/// The artifact's type.
pub const ARTIFACT: &str = "application/vnd.tapeout.inputs.v1";
const CONFIG: &str = "application/vnd.tapeout.inputs.config.v1+json";
const LAYER: &str = "application/vnd.tapeout.input.v1";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Annotations of a layer. The first is what other tools name a layer's file by.
const TITLE: &str = "org.opencontainers.image.title";
const KIND: &str = "tapeout.kind";
const KEY: &str = "tapeout.key";
/// The annotation by which tools for image layouts tell images apart.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes of a document in it, and entries of the file.
const DOCUMENT: u64 = 256 << 20;
const ENTRIES: u64 = 1_000_000;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `tapeout.lock`.
    Lock,
    /// A suite's `InRelease`, which is signed; key: the suite.
    Release,
    /// A `Packages` file that the lock pins.
    Index,
    /// A Debian package.
    Package,
    /// A file from a URL; key: its SHA-512, where that is what it is asked for by.
    File,
    /// A wheel of Python; its title is its name in the index.
    Wheel,
    /// The tree of a git commit; key: its ID.
    Commit,
    /// A manifest, config or layer of an image in a registry.
    Image,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// What it is.
    pub role: Role,
    /// A name for people.
    pub title: String,
    /// By what else than its digest it is asked for.
    pub key: Option<String>,
    /// Its content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The artifact's config: what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Of this document.
    pub format_version: u32,
    /// The machine that it is for, as Rust names it: `x86_64`.
    pub architecture: String,
    /// The labels, as they were asked for, sorted.
    pub labels: Vec<String>,
    /// Optional packages of Python lock files that have no file for this machine.
    pub left_out: Vec<String>,
    /// Manifests of the files that hold the rest (`--since`).
    pub since: Vec<Digest>,
}

/// The format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Files of inputs, open.
#[derive(Debug, Default)]
pub struct Inputs {
    files: Vec<Opened>,
    /// Blobs that were hashed and are what they should be.
    verified: Mutex<BTreeSet<Digest>>,
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: Arc<File>,
    /// As it was when it was opened.
    state: State,
    manifest: Digest,
    config: Config,
    inputs: Vec<Input>,
    /// Where blobs lie.
    places: BTreeMap<Digest, (u64, u64)>,
}

/// What changes when a file is written: its size and its times.
type State = (u64, (i64, i64), (i64, i64));

fn state_of(file: &File) -> std::io::Result<State> {
    let stat = file.metadata()?;
    Ok((stat.len(), (stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec())))
}

impl Inputs {
    /// Opens files of inputs; their blobs are not read yet.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let files =
            paths.iter().map(|path| open(path).map_err(|e| e.context(path.display()))).collect::<Result<_>>()?;
        Ok(Self { files, verified: Mutex::default() })
    }

    fn place(&self, digest: &Digest) -> Option<(&Opened, u64, u64)> {
        self.files.iter().find_map(|file| file.places.get(digest).map(|(offset, size)| (file, *offset, *size)))
    }

    /// Is a blob there? Its content is not looked at.
    pub fn has(&self, digest: &Digest) -> bool {
        self.place(digest).is_some()
    }

    /// A blob for reading, after its content proved to be what its digest says; `None`: it isn't there.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Section>> {
        let Some((file, offset, size)) = self.place(digest) else { return Ok(None) };
        let section = Section::new(file.file.clone(), offset, size);
        let known = || self.verified.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // What was verified would be no longer what is read.
        if state_of(&file.file).map_err(|e| Error::io("fstat", &file.path, e))? != file.state {
            return Err(Error::failed(format!("{} was changed while it was in use", file.path.display()))
                .next("leave it alone until the command has ended, and try again"));
        }
        if !known().contains(digest) {
            let (is, _) = Digest::of_reader(section.clone()).map_err(|e| Error::io("read", &file.path, e))?;
            if is != *digest {
                let title = file.inputs.iter().find(|input| input.digest == *digest).map(|input| input.title.as_str());
                return Err(Error::failed(format!(
                    "{}: {} ({digest}) is damaged",
                    file.path.display(),
                    title.unwrap_or("a blob")
                ))
                .why(format!("its content has the digest {is}"))
                .next("carry the file again, or make it again with tapeout fetch"));
            }
            known().insert(*digest);
        }
        Ok(Some(section))
    }

    /// The inputs of a kind.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Input> {
        self.files.iter().flat_map(|file| &file.inputs).filter(move |input| input.role == role)
    }

    /// All inputs that are named, those too whose blobs are missing.
    pub fn all(&self) -> impl Iterator<Item = &Input> {
        self.files.iter().flat_map(|file| &file.inputs)
    }

    /// The manifests of the files.
    pub fn manifests(&self) -> Vec<Digest> {
        self.files.iter().map(|file| file.manifest).collect()
    }

    /// Was it known to have no file for this machine?
    pub fn left_out(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.config.left_out.iter().any(|left| left == name))
    }
}

fn open(path: &Path) -> Result<Opened> {
    let file = Arc::new(file::open_regular(path).map_err(|e| e.with_kind(error::Kind::Request))?);
    let state = state_of(&file).map_err(|e| Error::io("fstat", path, e))?;
    let limits = Limits { entries: ENTRIES, depth: 16, ..Limits::default() };
    let not_one = |e: Error| e.next("name a file that tapeout fetch -o wrote");
    let index = tar_reader::index_tar(&file, &limits).map_err(not_one)?;
    padded_with_zeros(&file, &index)?;
    let section = |name: &str| {
        let place = RootPath::new(name).ok().and_then(|name| index.get(&name))?;
        match place.kind {
            Kind::File(size) => Some(Section::new(file.clone(), place.offset, size)),
            _ => None,
        }
    };
    let document = |name: &str| {
        let section = section(name).ok_or_else(|| not_one(Error::failed(format!("it has no {name}"))))?;
        bytes(section, name)
    };
    let version: BTreeMap<String, String> = parse(&document("oci-layout")?, "oci-layout")?;
    if version.get("imageLayoutVersion").map(String::as_str) != Some("1.0.0") {
        return Err(not_one(Error::failed("oci-layout: it is no image layout of version 1.0.0")));
    }
    let described = |descriptor: &Descriptor, what: &str| -> Result<Vec<u8>> {
        let Descriptor { digest, size, .. } = descriptor;
        let name = format!("blobs/sha256/{}", digest.hex());
        let bytes = document(&name).map_err(|e| e.context(what))?;
        if bytes.len() as u64 != *size || Digest::of(&bytes) != *digest {
            return Err(Error::failed(format!("{what} ({digest}) is damaged"))
                .next("carry the file again, or make it again with tapeout fetch"));
        }
        Ok(bytes)
    };
    let found: Index = parse(&document("index.json")?, "index.json")?;
    let [descriptor] = found.manifests.as_slice() else {
        return Err(not_one(Error::failed(format!("index.json: it has {} manifests", found.manifests.len()))));
    };
    let manifest: Manifest = parse(&described(descriptor, "its manifest")?, "its manifest")?;
    if manifest.artifact_type.as_deref() != Some(ARTIFACT) || manifest.config.media_type != CONFIG {
        return Err(not_one(Error::failed(format!("it is an artifact of another type than {ARTIFACT}"))));
    }
    let config: Config = parse(&described(&manifest.config, "its config")?, "its config")?;
    if config.format_version != FORMAT {
        return Err(Error::failed(format!("it has format {}", config.format_version))
            .why(format!("this tapeout reads format {FORMAT}"))
            .next("make it with the tapeout that reads it"));
    }
    let mut opened = Opened {
        path: path.to_path_buf(),
        file: file.clone(),
        state,
        manifest: descriptor.digest,
        config,
        inputs: vec![],
        places: BTreeMap::new(),
    };
    for layer in manifest.layers {
        let role = layer.annotations.get(KIND).map(|kind| serde_json::from_value(kind.as_str().into()));
        // What a later version puts in is nothing that this one asks for.
        let Some(Ok(role)) = role else { continue };
        let title = layer.annotations.get(TITLE).cloned().unwrap_or_default();
        let key = layer.annotations.get(KEY).cloned();
        let name = format!("blobs/sha256/{}", layer.digest.hex());
        let place = RootPath::new(&name).ok().and_then(|name| index.get(&name));
        if let Some(tar_reader::Place { kind: Kind::File(size), offset, .. }) = place {
            if *size != layer.size {
                return Err(Error::failed(format!("{title} ({}) is damaged", layer.digest))
                    .why(format!("it has {size} bytes, the manifest says {}", layer.size))
                    .next("carry the file again, or make it again with tapeout fetch"));
            }
            opened.places.insert(layer.digest, (*offset, *size));
        }
        opened.inputs.push(Input { role, title, key, digest: layer.digest, size: layer.size });
    }
    Ok(opened)
}

/// What fills a member's last block is no content, but where it isn't zeros the file isn't the one that was written.
fn padded_with_zeros(file: &Arc<File>, index: &BTreeMap<RootPath, tar_reader::Place>) -> Result<()> {
    for (path, place) in index {
        let Kind::File(size) = place.kind else { continue };
        let padding = size.next_multiple_of(512) - size;
        let name = path.to_string();
        let mut bytes = vec![];
        let mut section = Section::new(file.clone(), place.offset + size, padding);
        section.read_to_end(&mut bytes).map_err(|e| Error::io("read", &name, e))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(Error::failed(format!("{name} is damaged"))
                .why("zeros should follow its content, and something else does")
                .next("carry the file again, or make it again with tapeout fetch"));
        }
    }
    Ok(())
}

fn bytes(section: Section, name: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    section.take(DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", name, e))?;
    match bytes.len() as u64 > DOCUMENT {
        true => Err(Error::failed(format!("{name} is longer than {DOCUMENT} bytes"))),
        false => Ok(bytes),
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::failed(format!("{name} can't be read: {e}")))
}

/// Writes a file of inputs, whole or not at all; `blob` gives their content, which is hashed on its way. The
/// same inputs give the same bytes. Gives the size of the file.
pub fn write(
    to: &Path,
    config: &Config,
    inputs: &BTreeSet<Input>,
    blob: &dyn Fn(&Digest) -> Result<Section>,
) -> Result<u64> {
    let described = |media_type: &str, bytes: &[u8]| Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    };
    let config_bytes = json(config)?;
    let layers = inputs.iter().map(|input| {
        let kind = serde_json::to_value(input.role).ok().and_then(|kind| Some(kind.as_str()?.to_string()));
        let annotations = [(TITLE, Some(input.title.clone())), (KIND, kind), (KEY, input.key.clone())];
        Descriptor {
            media_type: LAYER.into(),
            digest: input.digest,
            size: input.size,
            annotations: annotations.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect(),
        }
    });
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.into()),
        artifact_type: Some(ARTIFACT.into()),
        config: described(CONFIG, &config_bytes),
        layers: layers.collect(),
    })?;
    let mut named = described(MANIFEST, &manifest);
    named.annotations.insert(REF_NAME.into(), "inputs".into());
    let index = json(&Index { schema_version: 2, media_type: Some(INDEX.into()), manifests: vec![named] })?;
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;

    /// A blob that goes in.
    enum Content<'a> {
        Bytes(&'a [u8]),
        Blob(u64),
    }
    let mut blobs: BTreeMap<Digest, Content> = BTreeMap::new();
    for input in inputs {
        blobs.insert(input.digest, Content::Blob(input.size));
    }
    for document in [&config_bytes, &manifest] {
        blobs.insert(Digest::of(document), Content::Bytes(document));
    }
    let none = BTreeMap::new();
    whole_file::write(to, |out| {
        let mut tar = TarWriter::new(out);
        let member = |path: &str, kind: tar_writer::Kind, tar: &mut TarWriter<_>| {
            let mode = if kind == tar_writer::Kind::Folder { 0o755 } else { 0o644 };
            let path = path.as_bytes();
            tar.member(&Member { path, kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: &none, records: &[] })
        };
        for (name, content) in [("oci-layout", layout.as_slice()), ("index.json", &index)] {
            member(name, tar_writer::Kind::File(content.len() as u64), &mut tar)?;
            tar.content(content)?;
        }
        member("blobs", tar_writer::Kind::Folder, &mut tar)?;
        member("blobs/sha256", tar_writer::Kind::Folder, &mut tar)?;
        let mut buffer = vec![0; 256 << 10];
        for (digest, content) in &blobs {
            let name = format!("blobs/sha256/{}", digest.hex());
            match content {
                Content::Bytes(bytes) => {
                    member(&name, tar_writer::Kind::File(bytes.len() as u64), &mut tar)?;
                    tar.content(bytes)?;
                }
                Content::Blob(size) => {
                    member(&name, tar_writer::Kind::File(*size), &mut tar)?;
                    let mut hashed = HashingReader::new(blob(digest)?);
                    if *size > 0 {
                        tar.content_from(&mut hashed, &RootPath::new(&name)?, &mut buffer)?;
                    }
                    let (is, _) = hashed.finish().map_err(|e| Error::io("read", &name, e))?;
                    if is != *digest {
                        return Err(Error::failed(format!("the blob {digest} of the store is damaged"))
                            .why(format!("its content has the digest {is}"))
                            .next("tapeout fsck, then fetch again"));
                    }
                }
            }
        }
        tar.finish().map(drop)
    })?;
    fs::metadata(to).map(|data| data.len()).map_err(|e| Error::io("stat", to, e))
}

/// Keys sorted, so that a document has one spelling.
fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    let value = serde_json::to_value(document).and_then(|value| serde_json::to_vec(&value));
    value.map_err(|e| Error::failed(format!("can't write a JSON document: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};

    fn section(content: &[u8]) -> Section {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Section::whole(file).unwrap()
    }

    fn input(role: Role, title: &str, content: &str) -> Input {
        Input { role, title: title.into(), key: None, digest: Digest::of(content), size: content.len() as u64 }
    }

    fn config() -> Config {
        Config {
            format_version: FORMAT,
            architecture: "x86_64".into(),
            labels: vec!["//...".into()],
            left_out: vec![],
            since: vec![],
        }
    }

    fn written(folder: &Path) -> PathBuf {
        let to = folder.join("inputs.oci.tar");
        let inputs =
            [input(Role::Package, "a.deb", "one"), input(Role::File, "b.tar.gz", ""), input(Role::Lock, "l", "lock")];
        let contents = ["one", "", "lock"];
        let blob = |digest: &Digest| {
            let content = contents.iter().find(|content| Digest::of(content) == *digest).unwrap();
            Ok(section(content.as_bytes()))
        };
        write(&to, &config(), &BTreeSet::from(inputs), &blob).unwrap();
        to
    }

    #[test]
    fn what_is_written_is_read_in_place_and_the_same_inputs_give_the_same_bytes() {
        let temp = tempfile::tempdir().unwrap();
        let to = written(temp.path());
        let bytes = fs::read(&to).unwrap();
        written(temp.path());
        assert_eq!(fs::read(&to).unwrap(), bytes);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "nothing lies beside it");
        let inputs = Inputs::open(&[to]).unwrap();
        assert_eq!(inputs.of(Role::Package).collect::<Vec<_>>(), [&input(Role::Package, "a.deb", "one")]);
        let blob = inputs.blob(&Digest::of("one")).unwrap().unwrap();
        assert_eq!(io::read_to_string(blob).unwrap(), "one");
        assert!(inputs.blob(&Digest::of("two")).unwrap().is_none());
    }

    #[test]
    fn a_file_that_changes_after_a_blob_was_verified_is_not_read_again() {
        let temp = tempfile::tempdir().unwrap();
        let to = written(temp.path());
        let inputs = Inputs::open(std::slice::from_ref(&to)).unwrap();
        assert!(inputs.blob(&Digest::of("one")).unwrap().is_some());
        let at = fs::read(&to).unwrap().windows(3).position(|part| part == b"one").unwrap();
        // Where the clock of the file system is coarse, the time may not have moved on yet.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let file = File::options().write(true).open(&to).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"eno", at as u64).unwrap();
        let error = inputs.blob(&Digest::of("one")).unwrap_err();
        assert!(error.what().contains("was changed"), "{error}");
    }

    /// Is it found that this is not the file that was written? Until then it must say and give what that one did.
    fn is_found(bad: &[u8], to: &Path, all: &[Input]) -> bool {
        fs::write(to, bad).unwrap();
        let Ok(inputs) = Inputs::open(&[to.to_path_buf()]) else { return true };
        assert!(inputs.all().eq(all.iter()), "the file says something else, and nobody finds it");
        let mut found = false;
        for input in all {
            match inputs.blob(&input.digest) {
                Ok(Some(blob)) => assert_eq!(Digest::of_reader(blob).unwrap().0, input.digest),
                Ok(None) => found = true,
                Err(error) => {
                    assert!(error.what().contains(&input.title), "{error}");
                    found = true;
                }
            }
        }
        found
    }

    /// Every bit of the file matters, but for two places that say nothing here: how the sum of a tar header ends, and
    /// what index.json says besides where the manifest is (tools that copy images write a name of theirs there).
    #[test]
    fn a_flipped_bit_is_found_wherever_it_says_something() {
        let temp = tempfile::tempdir().unwrap();
        let to = written(temp.path());
        let good = fs::read(&to).unwrap();
        let all: Vec<Input> = Inputs::open(std::slice::from_ref(&to)).unwrap().all().cloned().collect();
        let index = tar_reader::index_tar(&File::open(&to).unwrap(), &Limits::default()).unwrap();
        let mut says_nothing = BTreeSet::new();
        for (path, place) in &index {
            let header = place.offset - 512;
            says_nothing.extend(header + 148..header + 156);
            if let (Kind::File(size), true) = (&place.kind, path.to_string().ends_with("index.json")) {
                says_nothing.extend(place.offset..place.offset + size);
            }
        }
        assert_eq!(index.len(), 9, "three inputs, two documents, two more and two folders");
        for at in 0..good.len() {
            for bit in [0, 6] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(is_found(&bad, &to, &all) || says_nothing.contains(&(at as u64)), "bit {bit} at {at}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_or_goes_on_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let to = written(temp.path());
        let good = fs::read(&to).unwrap();
        let all: Vec<Input> = Inputs::open(std::slice::from_ref(&to)).unwrap().all().cloned().collect();
        let content = good.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for length in 0..content {
            assert!(is_found(&good[..length], &to, &all), "cut off after {length} bytes");
        }
        for more in [&b"x"[..], &[0, 0, 0, 1], &good] {
            assert!(is_found(&[&good, more].concat(), &to, &all), "{} more bytes", more.len());
        }
        // The end itself is zeros, more or less of them.
        assert!(!is_found(&[&good, &[0; 1024][..]].concat(), &to, &all));
    }

    #[test]
    fn what_is_no_file_of_inputs_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let good = fs::read(written(temp.path())).unwrap();
        let path = temp.path().join("bad");
        let swapped = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
            let mut bad = good.clone();
            bad[at..at + from.len()].copy_from_slice(to.as_bytes());
            bad
        };
        for bad in [
            vec![],
            b"text".to_vec(),
            good[..good.len() / 2].to_vec(),
            swapped("imageLayoutVersion\":\"1", "imageLayoutVersion\":\"2"),
            swapped("vnd.tapeout.inputs.v1\"", "vnd.tapeout.inputs.v2\""),
            swapped("\"formatVersion\":1", "\"formatVersion\":2"),
        ] {
            fs::write(&path, bad).unwrap();
            assert!(Inputs::open(std::slice::from_ref(&path)).is_err());
        }
    }
}
