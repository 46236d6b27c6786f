//! Reads image layouts with nothing of ours: what the specification says is what must be there.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// An OCI image layout on disk.
pub struct Layout {
    folder: PathBuf,
    index: Value,
}

/// One image of it.
pub struct Image {
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// The manifest.
    pub manifest: Value,
    /// The configuration.
    pub config: Value,
    /// The layers, lowest first: what each entry of the tar stream says, in its order.
    pub layers: Vec<Vec<Entry>>,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As stored, without a slash at its end; not always UTF-8.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: tar::EntryType,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds.
    pub mtime: u64,
    /// Target of a link.
    pub link: Option<Vec<u8>>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

impl Layout {
    /// Opens one; it must be whole: each blob has the digest of its name.
    pub fn open(folder: &Path) -> Self {
        let read = |name: &str| {
            fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{}/{name}: {error}", folder.display()))
        };
        let marker: Value = serde_json::from_slice(&read("oci-layout")).expect("oci-layout");
        assert_eq!(text(&marker, "/imageLayoutVersion"), "1.0.0");
        for blob in fs::read_dir(folder.join("blobs/sha256")).expect("blobs").flatten() {
            let name = blob.file_name().to_string_lossy().into_owned();
            assert_eq!(sha256(&fs::read(blob.path()).expect("blob")), name, "a blob is not what its name says");
        }
        let index = serde_json::from_slice(&read("index.json")).expect("index.json");
        Self { folder: folder.into(), index }
    }

    /// The tags (`org.opencontainers.image.ref.name`), in order.
    pub fn tags(&self) -> Vec<String> {
        let name = "/annotations/org.opencontainers.image.ref.name";
        self.manifests().iter().filter_map(|one| one.pointer(name)?.as_str().map(Into::into)).collect()
    }

    fn manifests(&self) -> &[Value] {
        self.index["manifests"].as_array().expect("manifests")
    }

    fn blob(&self, descriptor: &Value) -> Vec<u8> {
        let hex = text(descriptor, "/digest").strip_prefix("sha256:").expect("sha256");
        let bytes = fs::read(self.folder.join("blobs/sha256").join(hex)).expect("a blob that a descriptor names");
        assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64), "the descriptor's size");
        bytes
    }

    /// The only image of the layout.
    pub fn only(&self) -> Image {
        assert_eq!(self.manifests().len(), 1, "{:#}", self.index);
        self.read(&self.manifests()[0])
    }

    /// All images, in order.
    pub fn images(&self) -> Vec<Image> {
        self.manifests().iter().map(|descriptor| self.read(descriptor)).collect()
    }

    fn read(&self, descriptor: &Value) -> Image {
        let manifest: Value = serde_json::from_slice(&self.blob(descriptor)).expect("manifest");
        let config: Value = serde_json::from_slice(&self.blob(&manifest["config"])).expect("config");
        let diff_ids = config.pointer("/rootfs/diff_ids").and_then(Value::as_array).expect("diff_ids");
        let layers = manifest["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), diff_ids.len());
        let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
            let stream = uncompressed(text(layer, "/mediaType"), self.blob(layer));
            assert_eq!(diff_id.as_str(), Some(format!("sha256:{}", sha256(&stream)).as_str()), "the diff ID");
            entries(&stream)
        });
        Image { digest: text(descriptor, "/digest").into(), layers: layers.collect(), manifest, config }
    }
}

fn uncompressed(media_type: &str, blob: Vec<u8>) -> Vec<u8> {
    let mut stream = vec![];
    match media_type {
        "application/vnd.oci.image.layer.v1.tar+zstd" => stream = zstd::decode_all(blob.as_slice()).expect("zstd"),
        "application/vnd.oci.image.layer.v1.tar+gzip" => {
            flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut stream).expect("gzip");
        }
        "application/vnd.oci.image.layer.v1.tar" => stream = blob,
        other => panic!("no layer: {other}"),
    }
    stream
}

/// What a tar stream holds.
pub fn entries(stream: &[u8]) -> Vec<Entry> {
    let mut archive = tar::Archive::new(stream);
    archive.entries().expect("entries").map(|entry| read(entry.expect("entry"))).collect()
}

fn read(mut entry: tar::Entry<'_, &[u8]>) -> Entry {
    let mut xattrs = BTreeMap::new();
    for extension in entry.pax_extensions().expect("pax").into_iter().flatten().flatten() {
        if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(String::from_utf8_lossy(name).into_owned(), extension.value_bytes().to_vec());
        }
    }
    let mut content = vec![];
    entry.read_to_end(&mut content).expect("content");
    let header = entry.header();
    let mut path = entry.path_bytes().into_owned();
    while path.len() > 1 && path.last() == Some(&b'/') {
        path.pop();
    }
    Entry {
        path,
        kind: header.entry_type(),
        mode: header.mode().expect("mode"),
        uid: header.uid().expect("uid"),
        gid: header.gid().expect("gid"),
        size: content.len() as u64,
        mtime: header.mtime().expect("mtime"),
        link: entry.link_name_bytes().map(|link| link.into_owned()),
        xattrs,
        content,
    }
}

impl Entry {
    /// `33:33`.
    pub fn owner(&self) -> String {
        format!("{}:{}", self.uid, self.gid)
    }
}

impl Image {
    /// All entries that a container sees, by path: upper layers over lower ones, whiteouts applied; what is no folder
    /// hides what lay below a folder that it replaces.
    pub fn files(&self) -> BTreeMap<Vec<u8>, Entry> {
        let mut files: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        for layer in &self.layers {
            for (folder, name) in layer.iter().map(|entry| split(&entry.path)) {
                if name == b".wh..wh..opq" {
                    files.retain(|path, _| !path.starts_with(folder));
                } else if let Some(gone) = name.strip_prefix(b".wh.") {
                    let gone = [folder, gone].concat();
                    files.retain(|path, _| *path != gone && !path.starts_with(&[&gone[..], b"/"].concat()));
                }
            }
            for entry in layer.iter().filter(|entry| !split(&entry.path).1.starts_with(b".wh.")) {
                if entry.kind != tar::EntryType::Directory {
                    let below = [&entry.path[..], b"/"].concat();
                    files.retain(|path, _| !path.starts_with(&below));
                }
                files.insert(entry.path.clone(), entry.clone());
            }
        }
        files
    }

    /// The entry at a path.
    #[track_caller]
    pub fn file(&self, path: &str) -> Entry {
        let files = self.files();
        files.get(path.as_bytes()).cloned().unwrap_or_else(|| {
            let names: Vec<_> = files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
            panic!("no {path} in the image, which has {names:#?}")
        })
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.files().contains_key(path.as_bytes())
    }

    /// The text of a file.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.file(path).content).expect("UTF-8")
    }

    /// Bytes of all layers, as stored.
    pub fn compressed_size(&self) -> u64 {
        self.manifest["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64()).sum()
    }
}

/// The folder, with its slash, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..=slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Every file below a folder with its type and digest, but no owner, mode and time: two of these are
/// equal when the folders are, byte for byte.
pub fn fingerprint(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.expect("walk");
        let name = entry.path().strip_prefix(folder).expect("below").display().to_string();
        let kind = entry.file_type();
        let what = if kind.is_file() {
            sha256(&fs::read(entry.path()).expect("read"))
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(entry.path()).expect("read_link").display())
        } else {
            "folder".into()
        };
        files.insert(name, what);
    }
    files
}
