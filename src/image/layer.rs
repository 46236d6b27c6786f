//! A layer: a selection as a tar stream, hashed and compressed while it is made.
//!
//! One thread reads the files and writes tar; [`pack`] hashes that for the diff ID, compresses it and hashes for the
//! digest, side by side. What waits between them is bounded, so memory does not grow with the layer or with a file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::archive::compress::{Blocks, Codec, Earlier, Packed, PackedFiles, pack};
use crate::archive::tar_writer::{Kind, Links, Member, TarWriter};
use crate::build_file::spec::Compression;
use crate::changeset::Files;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::root::Root;
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection};

/// A finished layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Of the tar stream.
    pub diff_id: Digest,
    /// Of the compressed stream.
    pub digest: Digest,
    /// Bytes, compressed.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy)]
pub struct Packing {
    /// The format.
    pub compression: Compression,
    /// Its level; `None`: the format's own default.
    pub level: Option<u8>,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

impl Packing {
    fn codec(self) -> Codec {
        match self.compression {
            Compression::None => Codec::Plain,
            Compression::Zstd => Codec::Zstd(self.level),
            Compression::Gzip => Codec::Gzip(self.level),
        }
    }
}

/// Writes a selection as a layer. `files` gives the kept files of changesets; all times in it are
/// `epoch`. The bytes do not depend on the number of threads.
pub fn write_layer(
    selection: &Selection,
    files: &Files,
    packing: Packing,
    epoch: i64,
    out: impl Write,
) -> Result<LayerInfo> {
    write_layer_after(None, selection, files, packing, epoch, out).map(|(info, _)| info)
}

/// The same where an earlier layer of this packing may have some of the files: they need not be compressed again.
/// Gives where the large files are in this one.
pub fn write_layer_after(
    earlier: Option<&Earlier>,
    selection: &Selection,
    files: &Files,
    packing: Packing,
    epoch: i64,
    out: impl Write,
) -> Result<(LayerInfo, PackedFiles)> {
    let fill = |out: &mut Blocks| write_tar(selection, files, epoch, out);
    let packed = pack(packing.codec(), packing.threads, earlier, fill, out)?;
    let Packed { plain: diff_id, digest, size, files } = packed;
    Ok((LayerInfo { diff_id, digest, size, compression: packing.compression }, files))
}

fn write_tar(selection: &Selection, files: &Files, epoch: i64, out: &mut Blocks) -> Result<()> {
    let mut layer =
        TarLayer { tar: TarWriter::new(out), links: Links::default(), roots: BTreeMap::new(), files, epoch };
    for (path, picked) in selection {
        layer.one(path, picked)?;
    }
    layer.tar.finish().map(drop)
}

struct TarLayer<'a> {
    tar: TarWriter<&'a mut Blocks>,
    links: Links,
    roots: BTreeMap<Digest, Root>,
    files: &'a Files<'a>,
    epoch: i64,
}

/// Folders of changesets that are open at once: a process may have a thousand files open, and a layer files of more.
const KEPT_OPEN: usize = 64;

/// What stands before the name of what a layer removes (image-spec layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";

impl TarLayer<'_> {
    fn one(&mut self, path: &RootPath, picked: &Picked) -> Result<()> {
        if path.name().starts_with(WHITEOUT) {
            return Err(Error::failed(format!("a layer can't hold a file with this name: {path}"))
                .why("names that begin with .wh. stand for removed files in layers")
                .next("leave it out with exclude, or give it another name"));
        }
        let Some(entry) = &picked.entry else { return self.removal(path) };
        if entry.node == Node::Socket {
            return Ok(());
        }
        if matches!(entry.node, Node::Device { character: true, major: 0, minor: 0 }) {
            return Err(Error::failed(format!("a layer can't hold the device 0/0: {path}"))
                .why("it stands for a removed file where layers are stacked"));
        }
        let changeset = match &picked.content {
            Content::Stored { changeset, .. } => Some(*changeset),
            _ => None,
        };
        let kind = self.links.kind(path, entry, changeset);
        self.tar.member(&member(path.as_bytes(), kind, entry, self.epoch))?;
        match (&entry.node, &picked.content) {
            (Node::File { size, .. }, _) if *size == 0 || !self.links.first(path) => Ok(()),
            (Node::File { .. }, Content::Inline(bytes)) => self.tar.content(bytes),
            (Node::File { size, digest, .. }, Content::Stored { changeset, path: at }) => {
                if self.roots.len() == KEPT_OPEN && !self.roots.contains_key(changeset) {
                    self.roots.clear();
                }
                let root = match self.roots.get(changeset) {
                    Some(root) => root,
                    None => self.roots.entry(*changeset).or_insert((self.files)(changeset)?),
                };
                let mut file = root.open_file(at)?;
                let mut begun = false;
                let take = |out: &mut &mut Blocks, most| {
                    if !std::mem::replace(&mut begun, true) {
                        out.file(*digest, *size)?;
                    }
                    out.take_from(&file, most)
                };
                self.tar.content_by(take, path)?;
                match file.read(&mut [0]) {
                    Ok(0) => Ok(()),
                    Ok(_) => Err(Error::failed(format!("a file of a changeset is longer than it was: {path}"))
                        .next("run tapeout fsck")),
                    Err(e) => Err(Error::io("read", path.as_path(), e)),
                }
            }
            (Node::File { .. }, Content::None) => Err(Error::failed(format!("a picked file without content: {path}"))),
            _ => Ok(()),
        }
    }

    fn removal(&mut self, path: &RootPath) -> Result<()> {
        let parent = path.parent().unwrap_or_default();
        let name = parent.join([WHITEOUT, path.name()].concat())?;
        let entry = Entry::file(b"", 0o644);
        self.tar.member(&member(name.as_bytes(), Kind::File(0), &entry, self.epoch))
    }
}

fn member<'a>(path: &'a [u8], kind: Kind<'a>, entry: &'a Entry, mtime: i64) -> Member<'a> {
    Member { path, kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime, xattrs: &entry.xattrs, records: &[] }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn path(text: impl AsRef<[u8]>) -> RootPath {
        RootPath::new(text).unwrap()
    }

    fn inline(content: &[u8]) -> Picked {
        Picked { entry: Some(Entry::file(content, 0o644)), content: Content::Inline(content.to_vec()), why: "".into() }
    }

    fn nothing(_: &Digest) -> Result<Root> {
        Err(Error::failed("no changeset"))
    }

    fn layer(selection: &Selection, compression: Compression, threads: usize) -> Result<(LayerInfo, Vec<u8>)> {
        let mut out = vec![];
        let packing = Packing { compression, level: None, threads: NonZeroUsize::new(threads).unwrap() };
        let info = write_layer(selection, &nothing, packing, 1, &mut out)?;
        Ok((info, out))
    }

    fn sample() -> Selection {
        let mut selection = Selection::new();
        selection
            .insert(path("etc"), Picked { entry: Some(Entry::folder(0o755)), content: Content::None, why: "".into() });
        selection.insert(path("etc/gone"), Picked { entry: None, content: Content::None, why: "".into() });
        for i in 0..300 {
            selection.insert(path(format!("etc/{i}")), inline(format!("{i}").repeat(i * 50).as_bytes()));
        }
        selection
    }

    #[test]
    fn the_info_is_that_of_the_bytes() {
        for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
            let (info, out) = layer(&sample(), compression, 2).unwrap();
            assert_eq!((info.digest, info.size), (Digest::of(&out), out.len() as u64));
            let tar = match compression {
                Compression::Zstd => zstd::stream::decode_all(out.as_slice()).unwrap(),
                Compression::Gzip => {
                    let mut tar = vec![];
                    io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(out.as_slice()), &mut tar).unwrap();
                    tar
                }
                Compression::None => out,
            };
            assert_eq!(info.diff_id, Digest::of(&tar));
            assert_eq!(info, layer(&sample(), compression, 5).unwrap().0, "threads don't matter");
        }
    }

    #[test]
    fn a_removal_is_a_whiteout() {
        let (_, out) = layer(&sample(), Compression::None, 1).unwrap();
        let mut archive = tar::Archive::new(out.as_slice());
        assert!(archive.entries().unwrap().any(|e| e.unwrap().path_bytes().as_ref() == b"etc/.wh.gone"));
    }

    #[test]
    fn what_would_forge_a_whiteout_is_an_error() {
        let device = Entry { node: Node::Device { character: true, major: 0, minor: 0 }, ..Entry::folder(0o600) };
        for (name, entry) in [(".wh.x", Entry::file(b"", 0o644)), ("a", device)] {
            let selection = Selection::from([(
                path(name),
                Picked { entry: Some(entry), content: Content::Inline(vec![]), why: "".into() },
            )]);
            assert!(layer(&selection, Compression::None, 1).is_err());
        }
    }

    #[test]
    fn an_error_of_the_reader_or_the_writer_is_seen() {
        let stored = Content::Stored { changeset: Digest::of("x"), path: path("a") };
        let mut selection = sample();
        selection.insert(path("a"), Picked { entry: Some(Entry::file(b"x", 0o644)), content: stored, why: "".into() });
        assert_eq!(layer(&selection, Compression::Zstd, 2).unwrap_err().what(), "no changeset");

        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
            let packing = Packing { compression, level: None, threads: NonZeroUsize::MIN };
            let error = write_layer(&sample(), &nothing, packing, 0, Full).unwrap_err();
            assert!(error.what().contains("No space left"), "{error}");
        }
    }
}
