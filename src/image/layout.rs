//! An image layout on disk (OCI image-spec 1.1, image-layout.md):
//!
//! ```text
//! oci-layout           its version
//! index.json           which manifests it holds, each under a tag
//! blobs/sha256/HEX     manifests, configs, layers
//! ```
//!
//! It is written beside its place and swapped in, so that a reader sees the old one or the new one;
//! after a kill at most a folder `.NAME.PID.new` is left, which the next write removes. A layer that
//! is being made goes there and to the store at once ([`New::blob`]); one that the old output has
//! already is taken over, unhashed where stat(2) finds it as it was written ([`Written`]); any other is copied from the
//! store. No blob is a hard link to the store's:
//! whoever writes to the output would write to the store.
//! Layouts are read as somebody else's: digests and sizes are checked, documents bounded.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, ImageConfiguration, ImageIndexBuilder, ImageManifest, MediaType, OciLayoutBuilder,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::descriptor;
use super::json;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::disk::{self, Flowing};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// An image that goes into a layout. Its documents and layers lie in a folder of blobs.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    /// `org.opencontainers.image.ref.name`: the tag by which other tools find it.
    pub tag: String,
    /// `io.containerd.image.name`: by this, REPOSITORY:TAG, podman and docker call what they load from an archive.
    pub name: Option<String>,
    /// Digest and size of the manifest.
    pub manifest: (Digest, u64),
    /// The config and the layers.
    pub blobs: Vec<Digest>,
}

/// Writes a layout of these images to `to`, in the place of what was there, whole or not at all.
/// `blob` says where the blob with a digest lies.
pub fn write(to: &Path, images: &[LayoutImage], blob: &dyn Fn(&Digest) -> PathBuf) -> Result<()> {
    New::begin(to)?.finish(images, blob, &Written::default(), |old| file::remove_tree(&old)).map(drop)
}

/// A layout that is being written beside its place. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct New {
    replacing: Replacing,
}

impl New {
    /// Begins one that is to be at `to`.
    pub fn begin(to: &Path) -> Result<Self> {
        let replacing = Replacing::begin(to)?;
        make_folder(&replacing.new.join("blobs"))?;
        make_folder(&replacing.new.join(BLOBS))?;
        Ok(Self { replacing })
    }

    /// Begins a blob of it, whose digest is known at its end.
    pub fn blob(&self) -> Result<NewBlob> {
        let folder = self.replacing.new.join(BLOBS);
        let path = folder.join("new");
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(NewBlob { file: Flowing::new(file), path, folder })
    }

    /// Puts it into its place, with the blobs that weren't written to it, or that the old one has. `written` is
    /// what the old one's writer got of this. `discard` removes the folder that is left of the old one.
    pub fn finish(
        self,
        images: &[LayoutImage],
        blob: &dyn Fn(&Digest) -> PathBuf,
        written: &Written,
        discard: impl FnOnce(PathBuf) -> Result<()>,
    ) -> Result<Written> {
        let (old, place) = (self.replacing.to.join(BLOBS), self.replacing.to.clone());
        let taken = RefCell::new(vec![]);
        let have = |digest: &Digest, to: &Path| {
            let takes = take_over(&old, digest, to, written);
            taken.borrow_mut().extend(takes.then(|| digest.hex()));
            takes || to.exists()
        };
        fill(&self.replacing.new, images, &have, blob)?;
        let mut changed = file::now();
        self.replacing.finish(|old| {
            // A blob changes when it loses a name: it is looked at when it has one alone. One that can't lose it now
            // (somebody else wrote to this place meanwhile) is only hashed again the next time.
            for name in taken.into_inner() {
                let _ = fs::remove_file(old.join(BLOBS).join(name));
            }
            changed = file::now();
            discard(old)
        })?;
        // A change that has the same time as ours would leave no trace.
        file::wait_for_other_time(changed);
        Written::of(&place, images)
    }
}

const BLOBS: &str = "blobs/sha256";

/// The specification has a tag alone; this is what buildkit began, and podman and containerd read.
const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// The blobs of a layout as stat(2) found them when they had just been written.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Written(BTreeMap<Digest, Stamp>);

/// Device, inode, size, and when content and inode last changed.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl Written {
    /// Are the blobs of these images in the layout, as they were written?
    pub fn stands(&self, layout: &Path, images: &[LayoutImage]) -> bool {
        blobs(images).into_iter().all(|digest| {
            let found = fs::symlink_metadata(layout.join(BLOBS).join(digest.hex()));
            found.is_ok_and(|data| self.0.get(&digest) == Some(&stamp(&data)))
        })
    }

    fn of(layout: &Path, images: &[LayoutImage]) -> Result<Self> {
        let stamps = blobs(images).into_iter().map(|digest| {
            let path = layout.join(BLOBS).join(digest.hex());
            let data = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", &path, e))?;
            Ok((digest, stamp(&data)))
        });
        stamps.collect::<Result<_>>().map(Self)
    }
}

fn stamp(data: &fs::Metadata) -> Stamp {
    (data.dev(), data.ino(), data.size(), (data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()))
}

/// A blob of a new layout. Whoever writes it hashes it.
#[derive(Debug)]
pub struct NewBlob {
    file: Flowing,
    path: PathBuf,
    folder: PathBuf,
}

impl NewBlob {
    /// Where it is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    pub fn finish(self, digest: &Digest) -> Result<()> {
        let to = self.folder.join(digest.hex());
        let file = self.file.into_inner();
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(|e| Error::io("fchmod", &self.path, e))?;
        fs::rename(&self.path, &to).map_err(|e| Error::io("rename", &to, e))
    }
}

impl Write for NewBlob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Gives a blob of the old layout a name in the new one, if it is still what it says.
fn take_over(old: &Path, digest: &Digest, to: &Path, written: &Written) -> bool {
    let from = old.join(digest.hex());
    let whole = || {
        let file = file::open_regular(&from).ok()?;
        let data = file.metadata().ok()?;
        let plain = data.nlink() == 1 && data.permissions().mode() & 0o7777 == 0o644;
        let known = written.0.get(digest) == Some(&stamp(&data));
        (plain && (known || Digest::of_reader(&file).ok()?.0 == *digest)).then_some(())
    };
    !to.exists() && whole().is_some() && fs::hard_link(&from, to).is_ok()
}

/// Writes a layout into an empty folder that somebody else swaps in.
pub fn write_in(folder: &Path, images: &[LayoutImage], blob: &dyn Fn(&Digest) -> PathBuf) -> Result<()> {
    make_folder(&folder.join("blobs"))?;
    make_folder(&folder.join(BLOBS))?;
    fill(folder, images, &|_, _| false, blob)
}

/// Writes what a layout holds into a folder; `have` may see to a blob by itself.
fn fill(
    folder: &Path,
    images: &[LayoutImage],
    have: &dyn Fn(&Digest, &Path) -> bool,
    blob: &dyn Fn(&Digest) -> PathBuf,
) -> Result<()> {
    let documents = documents(images)?;
    for digest in blobs(images) {
        let to = folder.join(BLOBS).join(digest.hex());
        if !have(&digest, &to) {
            copy(&blob(&digest), &to, &digest)?;
        }
    }
    documents.into_iter().try_for_each(|(name, bytes)| put(&folder.join(name), &bytes))
}

/// The blobs of a layout: what its images name, each once.
pub fn blobs(images: &[LayoutImage]) -> BTreeSet<Digest> {
    images.iter().flat_map(|image| std::iter::once(image.manifest.0).chain(image.blobs.iter().copied())).collect()
}

/// The documents of a layout besides its blobs, by name.
pub fn documents(images: &[LayoutImage]) -> Result<[(&'static str, Vec<u8>); 2]> {
    let bad = |e: oci_spec::OciSpecError| Error::failed(format!("can't write an image layout: {e}"));
    let mut manifests = vec![];
    let mut tags = BTreeSet::new();
    for image in images {
        if !tags.insert(&image.tag) {
            return Err(Error::failed(format!("two images of one layout have the tag {:?}", image.tag))
                .next("give them different names or versions"));
        }
        let (digest, size) = &image.manifest;
        let mut manifest = descriptor(MediaType::ImageManifest, digest, *size)?;
        let name = image.name.iter().map(|name| (ANNOTATION_IMAGE_NAME.to_string(), name.clone()));
        let tag = (ANNOTATION_REF_NAME.to_string(), image.tag.clone());
        manifest.set_annotations(Some(name.chain([tag]).collect()));
        manifests.push(manifest);
    }
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .map_err(bad)?;
    let version = OciLayoutBuilder::default().image_layout_version("1.0.0").build().map_err(bad)?;
    Ok([("oci-layout", json::write(&version)?), ("index.json", json::write(&index)?)])
}

/// Modes in a layout don't depend on the umask.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let made = fs::create_dir(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    made.map_err(|e| Error::io("mkdir", path, e))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let made = File::create_new(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))
    });
    made.map_err(|e| Error::io("write", path, e))
}

/// Copies a blob under its name, and checks that it is what its name says. A hard link would let
/// whoever writes to the output write to the store.
fn copy(from: &Path, to: &Path, expected: &Digest) -> Result<()> {
    let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let file = File::create_new(to).map_err(|e| Error::io("create", to, e))?;
    let mut hashing = Hashing::new(Flowing::new(file));
    // `io::copy` goes through 8 KiB, and a layer may have gigabytes.
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hashing.write_all(&buffer[..n]).map_err(|e| Error::io("write", to, e))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", from, e)),
        }
    }
    let (file, digest, _) = hashing.finish();
    if digest != *expected {
        return Err(Error::failed(format!("the blob {} is damaged", from.display()))
            .why(format!("its content has the digest {digest}"))
            .next("remove that file and build again"));
    }
    file.into_inner().set_permissions(fs::Permissions::from_mode(0o644)).map_err(|e| Error::io("fchmod", to, e))
}

/// Replaces a folder (or makes it) with what `fill` writes into a new one: in one step, when all is
/// on the disk.
pub fn replace(to: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let replacing = Replacing::begin(to)?;
    fill(&replacing.new)?;
    replacing.finish(|old| file::remove_tree(&old))
}

/// A folder that is to take the place of another. Dropped, it leaves nothing.
#[derive(Debug)]
struct Replacing {
    parent: PathBuf,
    /// The parent, opened before anything is written below it: syncfs(2) tells what went wrong since then.
    folder: File,
    new: PathBuf,
    to: PathBuf,
    /// What is at `new` is no longer ours.
    given: bool,
}

impl Replacing {
    fn begin(to: &Path) -> Result<Self> {
        let new = new_beside(to)?;
        let parent = new.parent().unwrap_or(Path::new(".")).to_path_buf();
        let folder = File::open(&parent).map_err(|e| Error::io("open", &parent, e))?;
        make_folder(&new)?;
        Ok(Self { parent, folder, new, to: to.to_path_buf(), given: false })
    }

    /// In one step, when all is on the disk. `discard` removes what was there before, where anything was.
    fn finish(mut self, discard: impl FnOnce(PathBuf) -> Result<()>) -> Result<()> {
        disk::sync_file_system(self.folder.as_fd()).map_err(|e| Error::io("syncfs", &self.parent, e))?;
        if !file::rename_new(&self.new, &self.to)? {
            file::exchange(&self.new, &self.to)?;
            self.given = true;
            discard(self.new.clone())?;
        }
        self.folder.sync_all().map_err(|e| Error::io("fsync", &self.parent, e))
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        // After a rename nothing is there. What went wrong before is what is told.
        if !self.given {
            let _ = file::remove_tree(&self.new);
        }
    }
}

/// A name beside a folder for its new content. What killed writers left there is removed.
pub(super) fn new_beside(to: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(Error::request(format!("can't write to {}", to.display())).next("name a folder"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    fs::create_dir_all(parent).map_err(|e| Error::io("mkdir", parent, e))?;
    let name = name.to_string_lossy();
    remove_stale(parent, &name);
    Ok(parent.join(format!(".{name}.{}.new", std::process::id())))
}

/// Removes what writers left that were killed.
fn remove_stale(parent: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let pid = found
            .to_str()
            .and_then(|f| f.strip_prefix(&format!(".{name}."))?.strip_suffix(".new")?.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()) {
            // It is only rubbish; the next write tries again.
            let _ = file::remove_tree(&entry.path());
        }
    }
}

/// A document is never larger.
const LARGEST_DOCUMENT: u64 = 16 << 20;

/// A layout on disk that somebody else may have written.
#[derive(Debug, Clone)]
pub struct Layout {
    root: Root,
}

/// An image of a layout.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its tag, when it has one.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its config.
    pub config: ImageConfiguration,
    /// Its layers: media type, digest, size.
    pub layers: Vec<(MediaType, Digest, u64)>,
}

impl Layout {
    /// Opens a layout and checks its version.
    pub fn open(path: &Path) -> Result<Self> {
        let root = Root::open(path).map_err(|e| e.next("name a folder that holds an OCI image layout"))?;
        let layout = Self { root };
        let version: Value =
            layout.document("oci-layout").map_err(|e| e.next("name a folder that holds an OCI image layout"))?;
        match version.get("imageLayoutVersion").and_then(Value::as_str) {
            Some("1.0.0") => Ok(layout),
            other => Err(Error::failed(format!("an image layout of a version that is not known: {other:?}"))
                .why(format!("it lies at {}", path.display()))),
        }
    }

    /// Its images, in the order of its index. Indexes in it are followed one level.
    pub fn images(&self) -> Result<Vec<Found>> {
        let index: Value = self.document("index.json")?;
        let mut found = vec![];
        for descriptor in manifests(&index, "index.json")? {
            let tag = descriptor.annotations().as_ref().and_then(|a| a.get(ANNOTATION_REF_NAME)).cloned();
            if *descriptor.media_type() == MediaType::ImageIndex {
                let inner: Value = self.described(&descriptor)?;
                for descriptor in manifests(&inner, descriptor.digest().as_ref())? {
                    found.push(self.image(&descriptor, tag.clone())?);
                }
            } else {
                found.push(self.image(&descriptor, tag)?);
            }
        }
        Ok(found)
    }

    /// The image with a tag, or the only one.
    pub fn image_tagged(&self, tag: Option<&str>) -> Result<Found> {
        let mut images = self.images()?;
        let tags: Vec<_> = images.iter().filter_map(|image| image.tag.clone()).collect();
        let next = format!("it holds: {}", tags.join(", "));
        match tag {
            Some(tag) => {
                let at = images.iter().position(|image| image.tag.as_deref() == Some(tag));
                let at = at.ok_or_else(|| {
                    Error::request(format!("no image in {} has the tag {tag:?}", self.root.path().display())).next(next)
                })?;
                Ok(images.swap_remove(at))
            }
            None if images.len() == 1 => Ok(images.swap_remove(0)),
            None => {
                Err(Error::request(format!("{} holds {} images", self.root.path().display(), images.len())).next(next))
            }
        }
    }

    fn image(&self, descriptor: &Descriptor, tag: Option<String>) -> Result<Found> {
        let name = descriptor.digest().to_string();
        if *descriptor.media_type() != MediaType::ImageManifest {
            return Err(Error::failed(format!("{name} is not an image manifest but {}", descriptor.media_type())));
        }
        let document: Value = self.described(descriptor)?;
        // CVE-2021-41190: one document must not be an index for one reader and a manifest for another.
        if document.get("manifests").is_some() {
            return Err(Error::failed(format!("{name} is both an index and a manifest")));
        }
        agrees(&document, MediaType::ImageManifest, &name)?;
        let manifest: ImageManifest = from_value(document, &name)?;
        let config: ImageConfiguration =
            from_value(self.described(manifest.config())?, manifest.config().digest().as_ref())?;
        let layers = (manifest.layers().iter())
            .map(|layer| {
                let digest = digest(layer)?;
                let size = self.blob(&digest)?.metadata().map_err(|e| Error::io("fstat", digest.hex(), e))?.len();
                if size != layer.size() {
                    return Err(wrong_size(&digest, layer.size(), size));
                }
                Ok((layer.media_type().clone(), digest, size))
            })
            .collect::<Result<Vec<_>>>()?;
        if config.rootfs().diff_ids().len() != layers.len() {
            return Err(Error::failed(format!(
                "{name} has {} layers, its config {}",
                layers.len(),
                config.rootfs().diff_ids().len()
            )));
        }
        Ok(Found { tag, digest: digest(descriptor)?, manifest, config, layers })
    }

    /// A blob for reading; its content is not checked yet.
    pub fn blob(&self, digest: &Digest) -> Result<File> {
        self.root.open_file(&blob_path(digest)?)
    }

    /// Reads every blob that the images name and checks its digest.
    pub fn verify(&self) -> Result<()> {
        let mut checked = BTreeSet::new();
        for image in self.images()? {
            let layers = image.layers.iter().map(|(_, digest, _)| *digest);
            for expected in layers.filter(|digest| checked.insert(*digest)).collect::<Vec<_>>() {
                let (is, _) =
                    Digest::of_reader(self.blob(&expected)?).map_err(|e| Error::io("read", expected.hex(), e))?;
                if is != expected {
                    return Err(Error::failed(format!("the blob {expected} is damaged"))
                        .why(format!("its content has the digest {is}")));
                }
            }
        }
        Ok(())
    }

    fn document(&self, name: &str) -> Result<Value> {
        let bytes = read_bounded(self.root.open_file(&RootPath::new(name)?)?, name)?;
        json::read(&bytes).map_err(|e| e.context(self.root.path().join(name).display()))
    }

    /// The document that a descriptor names, when it is what the descriptor says.
    fn described(&self, descriptor: &Descriptor) -> Result<Value> {
        let digest = digest(descriptor)?;
        let bytes = read_bounded(self.blob(&digest)?, &digest.to_string())?;
        if bytes.len() as u64 != descriptor.size() {
            return Err(wrong_size(&digest, descriptor.size(), bytes.len() as u64));
        }
        if Digest::of(&bytes) != digest {
            return Err(Error::failed(format!("the blob {digest} is damaged"))
                .why(format!("its content has the digest {}", Digest::of(&bytes))));
        }
        json::read(&bytes).map_err(|e| e.context(digest))
    }
}

fn blob_path(digest: &Digest) -> Result<RootPath> {
    RootPath::new(format!("blobs/sha256/{}", digest.hex()))
}

fn digest(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse().map_err(|e: Error| e.with_kind(crate::error::Kind::Failed))
}

fn wrong_size(digest: &Digest, said: u64, is: u64) -> Error {
    Error::failed(format!("the blob {digest} has {is} bytes, its descriptor says {said}"))
}

fn read_bounded(file: File, name: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    file.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e: io::Error| Error::io("read", name, e))?;
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        return Err(Error::failed(format!("{name} is larger than a document of an image can be")));
    }
    Ok(bytes)
}

/// Does a document's own media type, if it has one, agree with what it was named as?
fn agrees(document: &Value, media_type: MediaType, name: &str) -> Result<()> {
    if document.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(Error::failed(format!("{name} is not of schema version 2")));
    }
    match document.get("mediaType").map(|own| own.as_str().unwrap_or_default()) {
        Some(own) if own != media_type.to_string() => {
            Err(Error::failed(format!("{name} says that it is {own:?}, and was named as {media_type}")))
        }
        _ => Ok(()),
    }
}

fn manifests(index: &Value, name: &str) -> Result<Vec<Descriptor>> {
    if index.get("layers").is_some() || index.get("config").is_some() {
        return Err(Error::failed(format!("{name} is both an index and a manifest")));
    }
    agrees(index, MediaType::ImageIndex, name)?;
    let list = index.get("manifests").cloned().ok_or_else(|| Error::failed(format!("{name} has no manifests")))?;
    from_value(list, name)
}

fn from_value<T: serde::de::DeserializeOwned>(value: Value, name: &str) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|e| Error::failed(format!("{name} is not the document that it should be")).why(e.to_string()))
}

/// What stands in a layout, for tests and sums: relative path to size.
pub fn files(path: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::failed(format!("can't read {}: {e}", path.display())))?;
        let metadata =
            entry.metadata().map_err(|e| Error::failed(format!("can't read {}: {e}", entry.path().display())))?;
        if metadata.is_file() {
            found.insert(entry.path().strip_prefix(path).unwrap_or(entry.path()).to_path_buf(), metadata.len());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_file::spec::{Compression, Image};
    use crate::image::config::{ImageLayer, annotations, config, manifest};
    use crate::image::layer::LayerInfo;

    /// A folder of blobs with one image in it.
    fn image(folder: &Path, tag: &str) -> LayoutImage {
        let keep = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(folder.join(digest.hex()), bytes).unwrap();
            digest
        };
        let layer = format!("layer of {tag}");
        let digest = keep(layer.as_bytes());
        let info = LayerInfo { diff_id: digest, digest, size: layer.len() as u64, compression: Compression::None };
        let layers = [ImageLayer { info, created_by: "//app:tapeout".into() }];
        let image = Image::default();
        let config = config(&image, None, &layers, 0).unwrap();
        let manifest = manifest(&config, &layers, &annotations(&image, tag, 0).unwrap()).unwrap();
        LayoutImage {
            tag: tag.into(),
            name: None,
            manifest: (keep(&manifest), manifest.len() as u64),
            blobs: vec![keep(&config), digest],
        }
    }

    fn written(tags: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let blobs = temp.path().join("blobs");
        fs::create_dir(&blobs).unwrap();
        let images: Vec<_> = tags.iter().map(|tag| image(&blobs, tag)).collect();
        let to = temp.path().join("out/web/build_image");
        write(&to, &images, &|digest| blobs.join(digest.hex())).unwrap();
        (temp, to)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (_temp, to) = written(&["a", "b"]);
        let layout = Layout::open(&to).unwrap();
        let tags: Vec<_> = layout.images().unwrap().into_iter().map(|image| image.tag.unwrap()).collect();
        assert_eq!(tags, ["a", "b"]);
        layout.verify().unwrap();
        assert_eq!(layout.image_tagged(Some("b")).unwrap().layers.len(), 1);
        assert!(layout.image_tagged(None).is_err());
        assert!(layout.image_tagged(Some("c")).unwrap_err().next_step().unwrap().contains("a, b"));
    }

    #[test]
    fn the_output_is_replaced_whole_or_not_at_all() {
        let (temp, to) = written(&["a"]);
        let before = files(&to).unwrap();
        let failed = replace(&to, |new| {
            fs::write(new.join("half"), "x").unwrap();
            Err(Error::failed("stop"))
        });
        assert!(failed.is_err());
        assert_eq!(files(&to).unwrap(), before);
        fs::create_dir_all(to.parent().unwrap().join(".build_image.4194999.new/rest")).unwrap();
        let blobs = temp.path().join("blobs");
        write(&to, &[image(&blobs, "c")], &|digest| blobs.join(digest.hex())).unwrap();
        assert_eq!(Layout::open(&to).unwrap().images().unwrap()[0].tag.as_deref(), Some("c"));
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_blob_of_the_old_layout_is_taken_over_as_long_as_it_is_what_it_was() {
        let temp = tempfile::tempdir().unwrap();
        let (to, images) = (temp.path().join("out"), [image(temp.path(), "a")]);
        let blob = |digest: &Digest| temp.path().join(digest.hex());
        let finish = |written: &Written| {
            New::begin(&to).unwrap().finish(&images, &blob, written, |old| file::remove_tree(&old)).unwrap()
        };
        let written = finish(&Written::default());
        let layer = images[0].blobs[1];
        let path = to.join(BLOBS).join(layer.hex());
        let inode = fs::metadata(&path).unwrap().ino();
        let written = finish(&written);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "it was copied");
        // As long as before and with the same time: only the inode knows.
        let (data, mut bytes) = (fs::metadata(&path).unwrap(), fs::read(&path).unwrap());
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(data.modified().unwrap()).unwrap();
        finish(&written);
        Layout::open(&to).unwrap().verify().unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), inode, "what is damaged was taken over");
    }

    #[test]
    fn a_damaged_blob_is_named() {
        for (which, how) in [
            (0, "x"),
            (1, "longer than it was, by a lot of bytes that nobody expects there at all, and then some more of them"),
        ] {
            let (_temp, to) = written(&["a"]);
            let found = Layout::open(&to).unwrap().images().unwrap().remove(0);
            let digest = [found.layers[0].1, found.digest][which];
            let path = to.join("blobs/sha256").join(digest.hex());
            fs::remove_file(&path).unwrap();
            fs::write(&path, how).unwrap();
            let error = Layout::open(&to).unwrap().verify().unwrap_err();
            assert!(error.to_string().contains(&digest.to_string()), "{error}");
        }
    }

    #[test]
    fn documents_that_two_readers_would_read_differently_are_refused() {
        let (_temp, to) = written(&["a"]);
        let index = fs::read_to_string(to.join("index.json")).unwrap();
        for (from, into) in [
            ("{\"manifests\"", "{\"layers\":[],\"manifests\""),
            ("\"schemaVersion\":2", "\"schemaVersion\":2,\"schemaVersion\":2"),
            ("image.index.v1", "image.manifest.v1"),
            ("\"digest\":\"sha256:", "\"digest\":\"sha256:../../"),
            ("\"size\":", "\"size\":1"),
        ] {
            let bad = index.replacen(from, into, 1);
            assert_ne!(bad, index);
            fs::write(to.join("index.json"), bad).unwrap();
            assert!(Layout::open(&to).and_then(|layout| layout.images()).is_err(), "{into}");
        }
    }

    #[test]
    fn one_tag_names_one_image() {
        let temp = tempfile::tempdir().unwrap();
        let one = image(temp.path(), "a");
        let blob = |digest: &Digest| temp.path().join(digest.hex());
        assert!(write(&temp.path().join("out"), &[one.clone(), one], &blob).is_err());
        assert!(!temp.path().join("out").exists());
    }
}
