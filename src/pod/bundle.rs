//! Writes the bundle: files, modes and times that depend on nothing but the pod.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::plan::{Plan, Request, plan};
use super::{kube, readme};
use crate::build_file::spec::Compression;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::layer::{self, Packing};
use crate::image::layout::{self, LayoutImage};
use crate::sys::file;
use crate::tree::{Content, Entry, Node, RootPath, Selection};

/// A bundle that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The digest of SHA256SUMS: names the whole bundle.
    pub digest: Digest,
    /// What people should know.
    pub warnings: Vec<String>,
}

/// Writes a bundle into an empty folder that somebody else swaps in.
pub fn write(request: &Request<'_>, out: &Path) -> Result<Written> {
    let mut plan = plan(request)?;
    images(request, &plan, out)?;
    volumes(request, &mut plan, out)?;
    configuration(&plan.files, &out.join("files"))?;
    let units = request.pod.systemd_units.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
    if !request.pod.systemd_units.is_empty() {
        make_folder(&out.join("systemd"))?;
        units.clone().try_for_each(|(name, text)| put(&out.join("systemd").join(name), text, 0o644))?;
    }
    let mut document =
        serde_json::to_vec_pretty(&plan.described).map_err(|e| Error::failed(format!("can't write pod.json: {e}")))?;
    document.push(b'\n');
    put(&out.join("pod.json"), &document, 0o644)?;
    put(&out.join("kube.yaml"), kube::write(&plan)?.as_bytes(), 0o644)?;
    put(&out.join("README"), readme::write(&plan.described).as_bytes(), 0o644)?;
    let sums = sums(out)?;
    put(&out.join("SHA256SUMS"), sums.as_bytes(), 0o644)?;
    settle(out, request.epoch)?;
    // Its inode changes last: whoever touches a file later is found by that.
    mode(&out.join("SHA256SUMS"), 0o644)?;
    Ok(Written { digest: Digest::of(&sums), warnings: plan.warnings })
}

fn images(request: &Request<'_>, plan: &Plan, out: &Path) -> Result<()> {
    let mut images: Vec<LayoutImage> = vec![];
    for (id, tag) in &plan.tags {
        if let Some(image) = request.images.get(id) {
            images.push(LayoutImage { tag: tag.clone(), ..image.layout.clone() });
        }
    }
    images.sort_by(|a, b| a.tag.cmp(&b.tag));
    let folder = out.join("images");
    make_folder(&folder)?;
    layout::write_in(&folder, &images, request.blob)
}

fn volumes(request: &Request<'_>, plan: &mut Plan, out: &Path) -> Result<()> {
    if plan.volumes.is_empty() {
        return Ok(());
    }
    make_folder(&out.join("volumes"))?;
    for (name, selection) in &plan.volumes {
        let path = out.join("volumes").join(format!("{name}.tar.zst"));
        let mut archive = create(&path, 0o644)?;
        let none = |digest: &Digest| Err(Error::failed(format!("a volume has no files of the changeset {digest}")));
        let packing = Packing { compression: Compression::Zstd, level: None, threads: request.threads };
        let info = layer::write_layer(selection, &none, packing, request.epoch, &mut archive)?;
        for volume in plan.described.volumes.iter_mut().filter(|v| v.name == *name) {
            volume.digest = Some(info.digest);
        }
    }
    Ok(())
}

/// The pod's files. Modes are the two that every copy keeps; `pod.json` says which ones are meant.
fn configuration(files: &Selection, folder: &Path) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    make_folder(folder)?;
    for (path, picked) in files {
        let at = path.below(folder);
        for above in path.ancestors().collect::<Vec<_>>().into_iter().rev().filter(|p| !p.is_root()) {
            let above = above.below(folder);
            if fs::symlink_metadata(&above).is_err() {
                make_folder(&above)?;
            }
        }
        match (&picked.entry, &picked.content) {
            (Some(Entry { node: Node::File { .. }, mode, .. }), Content::Inline(bytes)) => {
                put(&at, bytes, if mode & 0o111 == 0 { 0o644 } else { 0o755 })?
            }
            (Some(Entry { node: Node::Link { target }, .. }), _) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &at)
                    .map_err(|e| Error::io("symlink", &at, e))?;
            }
            _ if fs::symlink_metadata(&at).is_ok_and(|d| d.is_dir()) => {}
            _ => make_folder(&at)?,
        }
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(|e| Error::io("mkdir", path, e))?;
    mode(path, 0o755)
}

fn create(path: &Path, bits: u32) -> Result<File> {
    let file =
        fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| Error::io("create", path, e))?;
    mode(path, bits)?;
    Ok(file)
}

fn put(path: &Path, bytes: &[u8], bits: u32) -> Result<()> {
    create(path, bits)?.write_all(bytes).map_err(|e| Error::io("write", path, e))
}

/// Whatever the umask.
fn mode(path: &Path, bits: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).map_err(|e| Error::io("chmod", path, e))
}

/// As sha256sum prints them: each regular file, sorted by its path's bytes.
fn sums(out: &Path) -> Result<String> {
    let mut sums: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for (path, kind) in walk(out)? {
        if kind.is_file() {
            let at = path.below(out);
            let file = File::open(&at).map_err(|e| Error::io("open", &at, e))?;
            let (digest, _) = Digest::of_reader(file).map_err(|e| Error::io("read", &at, e))?;
            sums.insert(path.as_bytes().to_vec(), digest.hex());
        }
    }
    Ok(sums.iter().map(|(path, hex)| format!("{hex}  {}\n", String::from_utf8_lossy(path))).collect())
}

/// Sets modes and times of all that is there: what others wrote (the layout) has them by the umask and the clock.
fn settle(out: &Path, epoch: i64) -> Result<()> {
    for (path, kind) in walk(out)?.into_iter().rev() {
        let at = path.below(out);
        if kind.is_dir() {
            mode(&at, 0o755)?;
        } else if kind.is_file() && !path.as_bytes().starts_with(b"files/") {
            mode(&at, 0o644)?;
        }
        let folder = at.parent().unwrap_or(out);
        let folder = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        let name = if path.is_root() { b"." } else { path.name() };
        if path.is_root() {
            let own = File::open(&at).map_err(|e| Error::io("open", &at, e))?;
            file::set_mtime_at(std::os::fd::AsFd::as_fd(&own), name, epoch)?;
        } else {
            file::set_mtime_at(std::os::fd::AsFd::as_fd(&folder), name, epoch)?;
        }
    }
    Ok(())
}

fn walk(out: &Path) -> Result<Vec<(RootPath, fs::FileType)>> {
    let mut all = vec![];
    for entry in walkdir::WalkDir::new(out).follow_links(false).sort_by_file_name() {
        let entry = entry
            .map_err(|e| Error::io("walk", out, e.into_io_error().unwrap_or_else(|| io::Error::other("a loop"))))?;
        let below = entry.path().strip_prefix(out).map(|p| p.as_os_str().as_bytes().to_vec()).unwrap_or_default();
        all.push((RootPath::new(below)?, entry.file_type()));
    }
    Ok(all)
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
pub(crate) mod tests;
