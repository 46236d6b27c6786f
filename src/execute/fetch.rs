//! `archive(…)`: a file from outside, fetched by its digest and unpacked without any tool.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;

use crate::archive::unpack::{self, Owners};
use crate::build_file::spec::{Archive, Instance};
use crate::changeset;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::{FORMAT, Outcome, key};
use crate::execute::sources;
use crate::report::Event;
use crate::store::Store;
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// An archive larger than this is refused.
const LARGEST: u64 = 64 << 30;

#[derive(Serialize)]
struct Document<'a> {
    sha256: &'a str,
    strip_prefix: &'a str,
    folder: String,
    time: i64,
}

fn action(instance: &Instance, archive: &Archive, time: i64) -> Result<Digest> {
    let folder = format!("{}/{}", sources::folder(instance.label.package()), archive.into);
    let document = Document { sha256: &archive.sha256, strip_prefix: &archive.strip_prefix, folder, time };
    let bytes = serde_json::to_vec(&document).map_err(|e| Error::failed(format!("can't write a request: {e}")))?;
    Ok(key("archive", &bytes))
}

/// The changeset of an archive that was unpacked before.
pub fn cached(store: &Store, instance: &Instance, archive: &Archive, time: i64) -> Option<Digest> {
    let outcome: Outcome = serde_json::from_slice(&store.action(&action(instance, archive, time).ok()?)?).ok()?;
    store.has_changeset(&outcome.changeset).then_some(outcome.changeset)
}

/// Fetches and unpacks.
pub fn archive(build: &Build, instance: &Instance, archive: &Archive, time: i64) -> Result<Digest> {
    if let Some(digest) = cached(build.store, instance, archive, time) {
        build.report.event(Event::Done { verb: "cached", what: &instance.label.to_string(), detail: "" });
        return Ok(digest);
    }
    let expected = Digest::from_hex(&archive.sha256).map_err(|e| e.at(instance.place.clone(), "sha256"))?;
    if !build.store.has_blob(&expected) {
        fetch(build, instance, archive, &expected)?;
    }
    let digest = unpack(build.store, instance, archive, &expected, time).map_err(|e| {
        e.context(format!("unpack {}", archive.urls.first().map_or("it", String::as_str)))
            .at(instance.place.clone(), "")
    })?;
    let document =
        serde_json::to_vec(&Outcome { format: FORMAT, changeset: digest }).map_err(|e| Error::failed(e.to_string()))?;
    build.store.record_action(&action(instance, archive, time)?, &document)?;
    build.report.event(Event::Done { verb: "unpacked", what: &instance.label.to_string(), detail: "" });
    Ok(digest)
}

/// Tries the places in the order given; the digest decides.
fn fetch(build: &Build, instance: &Instance, archive: &Archive, expected: &Digest) -> Result<()> {
    let name = instance.label.to_string();
    let mut failures = vec![];
    build.report.event(Event::Started { what: &name, total: None });
    for url in &archive.urls {
        match fetch_one(build, instance, url, expected, &name) {
            Ok(()) => {
                build.report.event(Event::Ended { what: &name });
                return Ok(());
            }
            Err(error) => failures.push((url, error)),
        }
    }
    build.report.event(Event::Ended { what: &name });
    let mut error = Error::failed("no place gave the archive").at(instance.place.clone(), "");
    for (url, failure) in failures {
        error = error.why(format!("{}: {failure}", crate::remote::http::shown(url)));
    }
    Err(error.next("correct urls or sha256, or give the file as an input: urls = [\"input:NAME\"]"))
}

fn fetch_one(build: &Build, instance: &Instance, url: &str, expected: &Digest, name: &str) -> Result<()> {
    let mut partial = build.store.begin()?;
    let local = |path: &Path| File::open(path).map_err(|e| Error::io("open", path, e));
    if let Some(input) = url.strip_prefix("input:") {
        let path =
            build.options.inputs.get(input).ok_or_else(|| Error::request(format!("no input is named {input:?}")))?;
        io::copy(&mut local(path)?, &mut partial).map_err(|e| Error::io("read", path, e))?;
    } else if let Some(path) = url.strip_prefix("file:") {
        let folder = instance.folder.as_deref().ok_or_else(|| Error::request("a built-in package has no files"))?;
        let mut file = Root::open(folder)?.open_file(&RootPath::new(path)?)?;
        io::copy(&mut file, &mut partial).map_err(|e| Error::io("read", folder.join(path), e))?;
    } else {
        let urls = match url.strip_prefix("debian:") {
            Some(path) => build.base.pool_urls(path)?,
            None => vec![url.to_string()],
        };
        let on_bytes = |bytes| build.report.event(Event::Advanced { what: name, bytes });
        let mut found = false;
        for url in &urls {
            if build.base.http().fetch_if_there(url, LARGEST, &mut partial, &on_bytes)?.is_some() {
                found = true;
                break;
            }
        }
        if !found {
            return Err(Error::failed("there is no such file"));
        }
    }
    partial.finish_as(expected).map(drop)
}

/// Unpacks in the normal form of sources: owner 0:0, mode 0644 or 0755, one time.
fn unpack(store: &Store, instance: &Instance, archive: &Archive, blob: &Digest, time: i64) -> Result<Digest> {
    let scratch = store.scratch()?;
    let files = scratch.folder("files")?;
    let folder = RootPath::new(sources::folder(instance.label.package()))?.join(&archive.into)?;
    std::fs::create_dir_all(folder.below(&files)).map_err(|e| Error::io("mkdir", folder.below(&files), e))?;
    let root = Root::open(&files)?;
    let into = root.sub(&folder)?;
    let options = unpack::Options { strip_prefix: RootPath::new(&archive.strip_prefix)?, ..Default::default() };
    let mut owners = Owners::new();
    let mut file = store.blob(blob)?;
    let mut start = [0; 4];
    let n = file.read(&mut start).map_err(|e| Error::io("read", store.blob_path(blob), e))?;
    let file = store.blob(blob)?;
    match unpack::is_zip(&start[..n]) {
        true => unpack::unpack_zip(file, &into, &options, &mut owners)?,
        false => unpack::unpack(file, &into, &options, &mut owners, &mut |_| {})?,
    }
    if owners.is_empty() {
        return Err(Error::failed("the archive has nothing below strip_prefix")
            .why(format!("strip_prefix is {:?}", archive.strip_prefix))
            .next("leave strip_prefix out, and look at what is in it"));
    }
    let mut normal = Owners::new();
    for (path, mut owner) in owners {
        if owner.device.is_some() {
            return Err(
                Error::failed(format!("the archive holds a device: {path}")).next("leave it out of the archive")
            );
        }
        owner.xattrs.clear();
        (owner.uid, owner.gid) = (0, 0);
        let is_folder = file::stat_at(into.as_fd(), path.as_bytes())?
            .is_some_and(|s| file::kind(&s) == nix::sys::stat::SFlag::S_IFDIR);
        owner.mode = if is_folder || owner.mode & 0o111 != 0 { 0o755 } else { 0o644 };
        normal.insert(folder.join(path.as_bytes())?, owner);
    }
    let tree = unpack::tree_of(&root, &normal, time)?;
    let digest = changeset::digest_of(&tree, |path| root.open_file(path))?;
    store.keep_changeset(digest, tree, &files).map(|layer| layer.digest)
}
