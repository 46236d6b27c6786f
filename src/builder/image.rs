//! Reads images on disk, whoever made them: OCI layouts (as a folder or an archive), docker archives,
//! and what lies as blobs in the store.
//!
//! Every blob is checked by digest and size before its content counts, layers by their diff ID as
//! well. A document must be what its descriptor says (CVE-2021-41190), and JSON with a key twice is
//! refused, as readers disagree about which one counts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{self, DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::archive::decompress::{Format, decompress};
use crate::archive::unpack::{Options, Owners, unpack, unpack_plain};
use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::sys::root::Root;
use crate::tree::RootPath;

/// The largest manifest, index or config (registries allow 4 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;

const INDEX: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// The media type of an image's manifest.
pub const MANIFEST_TYPE: &str = MANIFEST[0];
const MANIFEST: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    urls: Vec<String>,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
    #[serde(default)]
    history: Vec<History>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct History {
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// An image: its documents, checked, and where its layers lie. A layer is checked when it is read.
#[derive(Debug, Clone)]
pub struct Image {
    /// How it is called where it lies: a tag, or `REPOSITORY:TAG`.
    pub tag: Option<String>,
    /// Its manifest, and the media type of that. A docker archive has none: it is made up.
    pub manifest: (String, Vec<u8>),
    /// Its config, and the media type of that.
    pub config: (String, Vec<u8>),
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    root: Root,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its media type.
    pub media_type: String,
    /// Of the layer as it lies there.
    pub digest: Digest,
    /// Bytes as it lies there.
    pub size: u64,
    /// Of its tar stream.
    pub diff_id: Digest,
    /// What made it, as the config's history says: a rule's label, in images of ours.
    pub created_by: Option<String>,
    path: RootPath,
}

/// An image of an OCI layout. Without a tag there must be one image alone.
pub fn in_layout(layout: &Root, tag: Option<&str>, architecture: &str) -> Result<Image> {
    let bytes =
        read(layout, "index.json", MAX_DOCUMENT).map_err(|e| e.next("name a folder that holds an OCI image layout"))?;
    let index: Index = document(&bytes, None, "manifests", "layers").map_err(|e| e.context("index.json"))?;
    let named: Vec<_> =
        index.manifests.iter().filter(|d| tag.is_none_or(|t| d.tag().is_some_and(|n| n == t))).collect();
    let known = || index.manifests.iter().filter_map(Descriptor::tag).collect::<Vec<_>>().join(", ");
    let descriptor = match named.as_slice() {
        [one] => *one,
        [] => {
            return Err(Error::request(format!(
                "the image layout {} has no image {:?}",
                layout.path().display(),
                tag.unwrap_or_default()
            ))
            .next(format!("it has: {}", known())));
        }
        several => platform(several.iter().copied(), architecture).ok_or_else(|| {
            Error::request(format!("the image layout {} has several images", layout.path().display()))
                .next(format!("name one: oci:DIR:TAG with one of {}", known()))
        })?,
    };
    image(layout, descriptor, descriptor.tag().map(str::to_string), architecture)
}

/// An image whose blobs lie in `blobs/sha256` of this folder, by its manifest or index.
pub fn in_blobs(folder: &Root, media_type: &str, digest: Digest, size: u64, architecture: &str) -> Result<Image> {
    let descriptor = Descriptor {
        media_type: media_type.to_string(),
        digest,
        size,
        annotations: BTreeMap::new(),
        urls: vec![],
        platform: None,
    };
    image(folder, &descriptor, None, architecture)
}

/// A blob that an image names: which, and how large.
pub type Blob = (Digest, u64);

/// The manifest for this architecture in an index; `None`: the document is no index.
pub fn of_this_machine(media_type: &str, bytes: &[u8], architecture: &str) -> Result<Option<Digest>> {
    if !INDEX.contains(&media_type) {
        return Ok(None);
    }
    let index: Index = document(bytes, Some(media_type), "manifests", "layers")?;
    let found = platform(index.manifests.iter(), architecture);
    found.map(|d| Some(d.digest)).ok_or_else(|| Error::failed(format!("the image is not there for {architecture}")))
}

/// The config and the layers of a manifest.
pub fn blobs_of(media_type: &str, bytes: &[u8]) -> Result<Vec<Blob>> {
    if !MANIFEST.contains(&media_type) {
        return Err(Error::failed(format!("it is a {media_type:?} and not an image")));
    }
    let manifest: Manifest = document(bytes, Some(media_type), "layers", "manifests")?;
    Ok(std::iter::once(&manifest.config).chain(&manifest.layers).map(|d| (d.digest, d.size)).collect())
}

/// A document, if it says what it is; and that.
pub fn document_of(blob: impl Read, digest: &Digest) -> Result<Option<(String, Vec<u8>)>> {
    let mut bytes = vec![];
    blob.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", digest.hex(), e))?;
    if Digest::of(&bytes) != *digest {
        return Ok(None);
    }
    let value: Value = json(&bytes)?;
    Ok(value.get("mediaType").and_then(Value::as_str).map(|media_type| (media_type.to_string(), bytes)))
}

impl Descriptor {
    fn tag(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }
}

impl Image {
    /// Names it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest.1)
    }

    /// What it is called, as its manifest says.
    pub fn title(&self) -> Option<String> {
        let manifest: Value = serde_json::from_slice(&self.manifest.1).ok()?;
        manifest["annotations"]["org.opencontainers.image.title"].as_str().map(str::to_string)
    }

    /// Opens a layer as it lies there; nothing of it is checked yet.
    pub fn open_layer(&self, at: usize) -> Result<File> {
        // docker writes a layer that two images share once, and links to it.
        self.root.open_file_following(&self.layers[at].path)
    }

    /// Has the tar stream of a layer read to its end. What came out counts only if this succeeds: both
    /// digests are right then.
    pub fn read_layer(&self, at: usize, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
        let layer = &self.layers[at];
        let mut check = || -> Result<()> {
            let failed = |e: std::io::Error| Error::failed(format!("it can't be read: {e}"));
            let mut packed = HashingReader::new(self.open_layer(at)?.take(layer.size + 1));
            let (found, _) = {
                let most = Options::default().limits.bytes;
                let mut plain = HashingReader::new(decompress(&mut packed, most).map_err(failed)?);
                read(&mut plain)?;
                plain.finish().map_err(failed)?
            };
            let (digest, size) = packed.finish().map_err(failed)?;
            if digest != layer.digest || size != layer.size {
                return Err(
                    Error::failed(format!("it has digest {digest} and {size} bytes")).why("the image is damaged")
                );
            }
            if found != layer.diff_id {
                return Err(Error::failed(format!("its content is not that of diff ID {}", layer.diff_id)));
            }
            Ok(())
        };
        check().map_err(|e| e.context(format!("layer {}", layer.digest)))
    }

    /// Unpacks all layers, one over the other, into an empty folder.
    pub fn unpack(&self, into: &Root) -> Result<Owners> {
        let options = Options { whiteouts: true, ..Options::default() };
        let mut owners = Owners::new();
        for at in 0..self.layers.len() {
            self.read_layer(at, &mut |plain| unpack_plain(plain, into, &options, &mut owners, &mut |_| {}))?;
        }
        Ok(owners)
    }
}

fn platform<'a>(mut descriptors: impl Iterator<Item = &'a Descriptor>, architecture: &str) -> Option<&'a Descriptor> {
    let name = match architecture {
        "i386" => "386",
        "armhf" => "arm",
        "ppc64el" => "ppc64le",
        other => other,
    };
    descriptors.find(|d| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == name))
}

/// Follows indexes to the manifest for this architecture; its descriptor and its bytes.
fn find_manifest(layout: &Root, descriptor: &Descriptor, architecture: &str, depth: u32) -> Result<(String, Vec<u8>)> {
    if INDEX.contains(&descriptor.media_type.as_str()) && depth < 3 {
        let bytes = blob(layout, descriptor)?;
        let index: Index = document(&bytes, Some(&descriptor.media_type), "manifests", "layers")?;
        let next = platform(index.manifests.iter(), architecture)
            .or_else(|| Some(&index.manifests).filter(|all| all.len() == 1).and_then(|all| all.first()))
            .ok_or_else(|| Error::failed(format!("the image is not there for {architecture}")))?;
        return find_manifest(layout, next, architecture, depth + 1);
    }
    if !MANIFEST.contains(&descriptor.media_type.as_str()) {
        return Err(Error::failed(format!("{} is a {:?} and not an image", descriptor.digest, descriptor.media_type)));
    }
    Ok((descriptor.media_type.clone(), blob(layout, descriptor)?))
}

fn image(layout: &Root, descriptor: &Descriptor, tag: Option<String>, architecture: &str) -> Result<Image> {
    let (manifest_type, bytes) = find_manifest(layout, descriptor, architecture, 0)?;
    let manifest: Manifest = document(&bytes, Some(&manifest_type), "layers", "manifests")?;
    if !CONFIG.contains(&manifest.config.media_type.as_str()) {
        return Err(Error::failed(format!(
            "it is no container image: its config is a {:?}",
            manifest.config.media_type
        )));
    }
    let config = blob(layout, &manifest.config)?;
    let layers = manifest.layers.iter().map(|layer| {
        if !LAYERS.contains(&layer.media_type.as_str()) || !layer.urls.is_empty() {
            return Err(Error::failed(format!(
                "layer {} is a {:?}, which is not read here",
                layer.digest, layer.media_type
            )));
        }
        Ok(Found {
            media_type: layer.media_type.clone(),
            digest: layer.digest,
            size: layer.size,
            path: blob_path(&layer.digest)?,
        })
    });
    let layers = with_diff_ids(layers.collect::<Result<_>>()?, &config)?;
    Ok(Image {
        tag,
        manifest: (manifest_type, bytes),
        config: (manifest.config.media_type, config),
        layers,
        root: layout.clone(),
    })
}

/// A layer as a manifest has it.
struct Found {
    media_type: String,
    digest: Digest,
    size: u64,
    path: RootPath,
}

/// With what the config knows of each layer.
fn with_diff_ids(layers: Vec<Found>, config: &[u8]) -> Result<Vec<Layer>> {
    let config: Config = json(config).map_err(|e| e.context("the image's config"))?;
    if config.rootfs.diff_ids.len() != layers.len() {
        return Err(Error::failed("the image's config and manifest have different numbers of layers"));
    }
    let mut made = config.history.into_iter().filter(|made| !made.empty_layer).map(|made| made.created_by);
    Ok(layers
        .into_iter()
        .zip(config.rootfs.diff_ids)
        .map(|(Found { media_type, digest, size, path }, diff_id)| Layer {
            media_type,
            digest,
            size,
            diff_id,
            created_by: made.next().flatten(),
            path,
        })
        .collect())
}

/// An image of an OCI archive: a layout as a tar file. It is unpacked into `scratch`, where it stays.
pub fn in_oci_archive(file: &Path, tag: Option<&str>, architecture: &str, scratch: &Root) -> Result<Image> {
    unpack_archive(file, scratch)?;
    in_layout(scratch, tag, architecture).map_err(|e| e.context(file.display()))
}

/// An image of a docker archive (`docker save`). It is unpacked into `scratch`, where it stays.
pub fn in_docker_archive(file: &Path, tag: Option<&str>, scratch: &Root) -> Result<Image> {
    unpack_archive(file, scratch)?;
    let images: Vec<DockerManifest> =
        json(&read(scratch, "manifest.json", MAX_DOCUMENT)?).map_err(|e| e.context("manifest.json"))?;
    let wanted = |image: &&DockerManifest| tag.is_none_or(|t| image.repo_tags.iter().flatten().any(|name| name == t));
    let image = match images.iter().filter(wanted).collect::<Vec<_>>().as_slice() {
        [one] => *one,
        _ => {
            let names: Vec<_> = images.iter().flat_map(|i| i.repo_tags.iter().flatten()).map(String::as_str).collect();
            return Err(Error::request(format!("{} does not have exactly one image of that name", file.display()))
                .next(format!("it has: {}", names.join(", "))));
        }
    };
    let config = read(scratch, &image.config, MAX_DOCUMENT)?;
    let layers = image.layers.iter().map(|name| docker_layer(scratch, name));
    let layers = with_diff_ids(layers.collect::<Result<_>>()?, &config)?;
    let descriptor = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({"mediaType": media_type, "digest": digest, "size": size});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST[0],
        "config": descriptor(CONFIG[0], &Digest::of(&config), config.len() as u64),
        "layers": layers.iter().map(|layer| descriptor(&layer.media_type, &layer.digest, layer.size)).collect::<Vec<_>>(),
    });
    Ok(Image {
        tag: tag.map(str::to_string).or_else(|| image.repo_tags.iter().flatten().next().cloned()),
        manifest: (MANIFEST[0].to_string(), manifest.to_string().into_bytes()),
        config: (CONFIG[0].to_string(), config),
        layers,
        root: scratch.clone(),
    })
}

/// A docker archive says nothing of its layers but where they lie.
fn docker_layer(scratch: &Root, name: &str) -> Result<Found> {
    let path = RootPath::new(name)?;
    let failed = |e: std::io::Error| Error::failed(format!("layer {name} can't be read: {e}"));
    let mut start = [0; 6];
    let n = std::io::Read::read(&mut scratch.open_file_following(&path)?, &mut start).map_err(failed)?;
    let media_type = match Format::of(&start[..n]) {
        Format::Plain => LAYERS[0],
        Format::Gzip => LAYERS[1],
        Format::Zstd => LAYERS[2],
        Format::Xz => return Err(Error::failed(format!("layer {name} is xz, which is not read here"))),
    };
    let (digest, size) = Digest::of_reader(scratch.open_file_following(&path)?).map_err(failed)?;
    Ok(Found { media_type: media_type.to_string(), digest, size, path })
}

fn unpack_archive(path: &Path, scratch: &Root) -> Result<()> {
    let file = crate::sys::file::open_regular(path)?;
    unpack(file, scratch, &Options::default(), &mut Owners::new(), &mut |_| {}).map_err(|e| e.context(path.display()))
}

fn blob_path(digest: &Digest) -> Result<RootPath> {
    RootPath::new(format!("blobs/sha256/{}", digest.hex()))
}

/// A document by its descriptor.
fn blob(layout: &Root, descriptor: &Descriptor) -> Result<Vec<u8>> {
    if descriptor.size > MAX_DOCUMENT {
        return Err(Error::failed(format!("{} claims {} bytes", descriptor.digest, descriptor.size)));
    }
    let bytes = read(layout, &format!("blobs/sha256/{}", descriptor.digest.hex()), descriptor.size)?;
    if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
        return Err(Error::failed(format!("{} is damaged: its content has another digest", descriptor.digest)));
    }
    Ok(bytes)
}

fn read(root: &Root, path: &str, most: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let file = root.open_file(&RootPath::new(path)?)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", root.path().join(path), e))?;
    if bytes.len() as u64 > most {
        return Err(Error::failed(format!("{} is longer than {most} bytes", root.path().join(path).display())));
    }
    Ok(bytes)
}

/// A manifest or an index: of the type that its descriptor says, and not both.
fn document<T: DeserializeOwned>(bytes: &[u8], media_type: Option<&str>, has: &str, has_not: &str) -> Result<T> {
    let value: Value = json(bytes)?;
    if value.get(has).is_none() || value.get(has_not).is_some() {
        return Err(Error::failed(format!("an image document must have {has:?} and not {has_not:?}")));
    }
    if let (Some(expected), Some(found)) = (media_type, value.get("mediaType"))
        && found != expected
    {
        return Err(Error::failed(format!("an image document is a {found} and its descriptor says {expected:?}")));
    }
    serde_json::from_value(value).map_err(|e| Error::failed(format!("an image document can't be read: {e}")))
}

/// JSON in which no object has a key twice.
fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bad = |e: serde_json::Error| Error::failed(format!("JSON can't be read: {e}"));
    let unique: Unique = serde_json::from_slice(bytes).map_err(bad)?;
    serde_json::from_value(unique.0).map_err(bad)
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unique, A::Error> {
        let mut all = vec![];
        while let Some(Unique(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Unique(Value::Array(all)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique, A::Error> {
        let mut all = serde_json::Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if all.contains_key(&key) {
                return Err(de::Error::custom(format!("{key:?} stands in it twice")));
            }
            all.insert(key, value);
        }
        Ok(Unique(Value::Object(all)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tar_reader::tests::{archive, entry, header};
    use crate::archive::unpack::tree_of;
    use std::io::Write;
    use std::path::PathBuf;

    fn layer(files: &[(&str, &str)]) -> Vec<u8> {
        archive(
            &files
                .iter()
                .map(|(name, content)| entry(&header(b'0', name, content.len() as u64), content.as_bytes()))
                .collect::<Vec<_>>(),
        )
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    /// An image layout with two layers under tag `v1`.
    struct Image {
        temp: tempfile::TempDir,
    }

    impl Image {
        fn new() -> Self {
            Self::with(|document| document)
        }

        /// Each document goes through `change` before it is written.
        fn with(change: impl Fn(String) -> String) -> Self {
            let image = Self { temp: tempfile::tempdir().unwrap() };
            std::fs::create_dir_all(image.layout().join("blobs/sha256")).unwrap();
            let layers = [layer(&[("a", "1"), ("b", "1")]), layer(&[("a", "2"), (".wh.b", "")])];
            let packed = [gzip(&layers[0]), zstd::encode_all(layers[1].as_slice(), 1).unwrap()];
            let types = [LAYERS[1], LAYERS[2]];
            let diff_ids: Vec<_> = layers.iter().map(|l| format!("{:?}", Digest::of(l).to_string())).collect();
            let described: Vec<_> =
                packed.iter().zip(types).map(|(bytes, media_type)| image.put(media_type, bytes)).collect();
            let config = change(format!(
                r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
                diff_ids.join(",")
            ));
            let config = image.put(CONFIG[0], config.as_bytes());
            let manifest = change(format!(
                r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{}]}}"#,
                MANIFEST[0],
                described.join(",")
            ));
            let manifest = image.put(MANIFEST[0], manifest.as_bytes());
            let named = format!(
                r#"{},"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}"#,
                &manifest[..manifest.len() - 1]
            );
            std::fs::write(
                image.layout().join("index.json"),
                format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#),
            )
            .unwrap();
            image
        }

        fn layout(&self) -> PathBuf {
            self.temp.path().join("layout")
        }

        fn put(&self, media_type: &str, bytes: &[u8]) -> String {
            let digest = Digest::of(bytes);
            std::fs::write(self.layout().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
        }

        fn read(&self, tag: Option<&str>) -> Result<Vec<String>> {
            let into = tempfile::tempdir().unwrap();
            let root = Root::open(into.path()).unwrap();
            let owners = in_layout(&Root::open(&self.layout()).unwrap(), tag, "amd64")?.unpack(&root)?;
            let tree = tree_of(&root, &owners, 0)?;
            Ok(tree
                .changes
                .keys()
                .map(|p| format!("{p}={}", std::fs::read_to_string(into.path().join(p.as_path())).unwrap()))
                .collect())
        }
    }

    #[test]
    fn layers_are_applied_with_their_whiteouts() {
        let image = Image::new();
        for tag in [None, Some("v1")] {
            assert_eq!(image.read(tag).unwrap(), ["/a=2"]);
        }
        let error = image.read(Some("v2")).unwrap_err();
        assert!(error.next_step().unwrap().contains("v1"));
    }

    #[test]
    fn one_flipped_byte_in_any_blob_is_found() {
        let image = Image::new();
        let mut blobs: Vec<_> =
            std::fs::read_dir(image.layout().join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
        blobs.sort();
        assert_eq!(blobs.len(), 4);
        for path in blobs {
            let good = std::fs::read(&path).unwrap();
            for at in [0, good.len() / 2, good.len() - 1] {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                assert!(image.read(None).is_err(), "{} at {at}", path.display());
            }
            std::fs::write(&path, [good.as_slice(), b"\0"].concat()).unwrap();
            assert!(image.read(None).is_err(), "{} longer", path.display());
            std::fs::write(&path, &good).unwrap();
        }
        assert!(image.read(None).is_ok());
    }

    #[test]
    fn a_document_must_be_what_it_says_and_nothing_twice() {
        type Change = (&'static str, fn(String) -> String);
        let changes: [Change; 7] = [
            ("both an index and a manifest", |d| d.replace(r#""config""#, r#""manifests":[],"config""#)),
            ("another media type", |d| {
                d.replace(&format!(r#"2,"mediaType":"{}""#, MANIFEST[0]), &format!(r#"2,"mediaType":"{}""#, INDEX[0]))
            }),
            ("a key twice", |d| d.replace(r#""architecture""#, r#""architecture":"arm64","architecture""#)),
            ("a foreign layer", |d| {
                d.replace(LAYERS[1], "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
            }),
            ("a digest that is a path", |d| {
                if d.contains("layers\":[") { d.replace("sha256:", "sha256:../../") } else { d }
            }),
            ("a diff ID of something else", |d| match d.find("sha256:").filter(|_| d.contains("diff_ids")) {
                Some(at) => format!("{}{}{}", &d[..at], Digest::of("x"), &d[at + 71..]),
                None => d,
            }),
            ("no layers", |d| d.replace(r#""layers""#, r#""layer""#)),
        ];
        for (what, change) in changes {
            assert!(Image::with(change).read(None).is_err(), "{what}");
        }
        assert!(json::<Value>(br#"{"a":[{"b":1,"b":1}]}"#).is_err());
        assert_eq!(json::<Value>(br#"{"a":[{"b":-1,"c":null,"d":1.5,"e":true}]}"#).unwrap()["a"][0]["b"], -1);
    }

    #[test]
    fn archives_of_images_are_read() {
        let image = Image::new();
        let mut tar = tar::Builder::new(vec![]);
        tar.append_dir_all(".", image.layout()).unwrap();
        let file = image.temp.path().join("image.tar");
        std::fs::write(&file, tar.into_inner().unwrap()).unwrap();
        let folder = |name: &str| {
            std::fs::create_dir(image.temp.path().join(name)).unwrap();
            Root::open(&image.temp.path().join(name)).unwrap()
        };
        let into = folder("into");
        in_oci_archive(&file, None, "amd64", &folder("scratch")).unwrap().unpack(&into).unwrap();
        assert_eq!(std::fs::read_to_string(into.path().join("a")).unwrap(), "2");

        let plain = layer(&[("x", "1")]);
        let config = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::of(&plain));
        let manifest = r#"[{"Config":"c.json","RepoTags":["r:1"],"Layers":["l/layer.tar"]}]"#;
        let file_of = |name: &str, content: &[u8]| entry(&header(b'0', name, content.len() as u64), content);
        let docker = image.temp.path().join("docker.tar");
        std::fs::write(
            &docker,
            archive(&[
                file_of("l/layer.tar", &plain),
                file_of("c.json", config.as_bytes()),
                file_of("manifest.json", manifest.as_bytes()),
            ]),
        )
        .unwrap();
        let into = folder("into2");
        in_docker_archive(&docker, Some("r:1"), &folder("scratch2")).unwrap().unpack(&into).unwrap();
        assert_eq!(std::fs::read_to_string(into.path().join("x")).unwrap(), "1");
        assert!(
            in_docker_archive(&docker, Some("r:2"), &folder("scratch3"))
                .unwrap_err()
                .next_step()
                .unwrap()
                .contains("r:1")
        );
    }
}
