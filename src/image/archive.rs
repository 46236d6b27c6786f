//! Images as one file: an OCI archive (an image layout as a tar file), and what `docker save` writes.
//!
//! Both are written in one pass, in an order that depends on nothing but their content, with the
//! owner 0:0, mode 0644 and the time 0: the same image gives the same bytes. What is copied into
//! an archive is hashed on its way, so that a damaged blob is found and named.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use super::json;
use super::layout::{self, LayoutImage};
use crate::archive::tar_writer::{Kind, Member, TarWriter};
use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Result};
use crate::tree::RootPath;

/// Opens a blob for reading: its bytes, and how many they are.
pub type OpenBlob<'a> = &'a dyn Fn(&Digest) -> Result<(Box<dyn Read>, u64)>;

/// Writes an OCI archive that holds these images, as `layout::write` lays them out in a folder.
pub fn write_oci(images: &[LayoutImage], open: OpenBlob, out: impl Write) -> Result<()> {
    let mut archive = Archive::new(out);
    for (name, bytes) in layout::documents(images)? {
        archive.bytes(name, &bytes)?;
    }
    archive.folder("blobs")?;
    archive.folder("blobs/sha256")?;
    for digest in layout::blobs(images) {
        let (reader, size) = open(&digest)?;
        archive.blob(&format!("blobs/sha256/{}", digest.hex()), reader, size, &digest)?;
    }
    archive.finish()
}

/// A layer as it goes into a docker archive.
pub struct DockerLayer {
    /// Names it there.
    pub diff_id: Digest,
    /// Its content: plain or gzip, which is all that docker loads.
    pub reader: Box<dyn Read>,
    /// How many bytes.
    pub size: u64,
    /// Of these bytes.
    pub digest: Digest,
}

/// Writes a docker archive of one image: `config` is its config, `names` are `REPOSITORY:TAG`.
pub fn write_docker(
    config: &[u8],
    names: &[String],
    diff_ids: &[Digest],
    layer: &dyn Fn(usize) -> Result<DockerLayer>,
    out: impl Write,
) -> Result<()> {
    let layer_name = |diff_id: &Digest| format!("{}.tar", diff_id.hex());
    let config_name = format!("{}.json", Digest::of(config).hex());
    let manifest = json::write(&serde_json::json!([{
        "Config": config_name,
        "RepoTags": names,
        "Layers": diff_ids.iter().map(layer_name).collect::<Vec<_>>(),
    }]))?;
    let mut archive = Archive::new(out);
    archive.bytes("manifest.json", &manifest)?;
    archive.bytes(&config_name, config)?;
    // Two layers may be one and the same; it is written once.
    let once: BTreeMap<&Digest, usize> = diff_ids.iter().enumerate().rev().map(|(at, diff_id)| (diff_id, at)).collect();
    for (at, diff_id) in diff_ids.iter().enumerate().filter(|(at, diff_id)| once[*diff_id] == *at) {
        let layer = layer(at)?;
        archive.blob(&layer_name(diff_id), layer.reader, layer.size, &layer.digest)?;
    }
    archive.finish()
}

/// A tar file of plain files.
struct Archive<W> {
    tar: TarWriter<W>,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { tar: TarWriter::new(out), buffer: vec![0; 256 * 1024] }
    }

    fn member(&mut self, name: &str, kind: Kind, mode: u32) -> Result<()> {
        let (xattrs, records) = (&BTreeMap::new(), &[]);
        self.tar.member(&Member { path: name.as_bytes(), kind, mode, uid: 0, gid: 0, mtime: 0, xattrs, records })
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.member(name, Kind::Folder, 0o755)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.member(name, Kind::File(bytes.len() as u64), 0o644)?;
        self.tar.content(bytes)
    }

    fn blob(&mut self, name: &str, reader: impl Read, size: u64, expected: &Digest) -> Result<()> {
        self.member(name, Kind::File(size), 0o644)?;
        let mut reader = HashingReader::new(reader);
        self.tar.content_from(&mut reader, &RootPath::new(name)?, &mut self.buffer)?;
        let (digest, _) = reader.finish().map_err(|e| Error::io("read", name, e))?;
        if digest != *expected {
            return Err(Error::failed(format!("the blob {expected} is damaged"))
                .why(format!("its content has the digest {digest}"))
                .next("build the image again, or get it again from where it came"));
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let mut out = self.tar.finish()?;
        out.flush().map_err(|e| Error::io("write", "archive", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::unpack::{Options, Owners, unpack};
    use crate::image::layout::Layout;
    use crate::sys::root::Root;

    fn image() -> (BTreeMap<Digest, Vec<u8>>, LayoutImage) {
        let diff_id = Digest::of("layer");
        let config =
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#);
        let manifest = format!(
            concat!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"#,
                r#""layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":5}}]}}"#
            ),
            Digest::of(&config),
            config.len(),
            diff_id
        );
        let image = LayoutImage {
            tag: "one".into(),
            name: None,
            platform: None,
            manifest: (Digest::of(&manifest), manifest.len() as u64),
            blobs: vec![Digest::of(&config), diff_id],
        };
        let blobs = [b"layer".to_vec(), config.into_bytes(), manifest.into_bytes()];
        (blobs.into_iter().map(|bytes| (Digest::of(&bytes), bytes)).collect(), image)
    }

    fn open(blobs: &BTreeMap<Digest, Vec<u8>>) -> impl Fn(&Digest) -> Result<(Box<dyn Read>, u64)> {
        |digest| {
            let bytes = blobs[digest].clone();
            let size = bytes.len() as u64;
            Ok((Box::new(std::io::Cursor::new(bytes)) as Box<dyn Read>, size))
        }
    }

    #[test]
    fn an_oci_archive_is_the_layout_and_has_one_spelling() {
        let (blobs, image) = image();
        let mut bytes = vec![];
        write_oci(std::slice::from_ref(&image), &open(&blobs), &mut bytes).unwrap();
        let mut again = vec![];
        write_oci(std::slice::from_ref(&image), &open(&blobs), &mut again).unwrap();
        assert_eq!(bytes, again);
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        unpack(bytes.as_slice(), &root, &Options::default(), &mut Owners::new(), &mut |_| {}).unwrap();
        let layout = Layout::open(temp.path()).unwrap();
        layout.verify().unwrap();
        assert_eq!(layout.image_tagged(Some("one")).unwrap().digest, image.manifest.0);
    }

    #[test]
    fn a_damaged_blob_does_not_get_into_an_archive() {
        let (mut blobs, image) = image();
        *blobs.get_mut(&Digest::of("layer")).unwrap() = b"lawyer"[..5].to_vec();
        let error = write_oci(&[image], &open(&blobs), &mut vec![]).unwrap_err();
        assert!(error.what().contains(&Digest::of("layer").to_string()), "{error}");
    }

    #[test]
    fn a_layer_that_stands_twice_is_in_a_docker_archive_once() {
        let diff_ids = [Digest::of("a"), Digest::of("b"), Digest::of("a")];
        let layer = |at: usize| {
            let bytes: &[u8] = [b"a", b"b", b"a"][at];
            Ok(DockerLayer { diff_id: diff_ids[at], reader: Box::new(bytes), size: 1, digest: Digest::of(bytes) })
        };
        let mut bytes = vec![];
        write_docker(b"{}", &["web:1".into()], &diff_ids, &layer, &mut bytes).unwrap();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> = tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        let [a, b] = [Digest::of("a"), Digest::of("b")].map(|d| format!("{}.tar", d.hex()));
        assert_eq!(names, ["manifest.json".to_string(), format!("{}.json", Digest::of("{}").hex()), a, b]);
    }
}
