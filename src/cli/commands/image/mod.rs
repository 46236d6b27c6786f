//! `tapeout image …`: looks at images, built here or anybody's.

pub mod diff;
pub mod look;
pub mod unpack;
pub mod why;

use std::path::Path;

use crate::build_file::spec::{Id, Platform};
use crate::builder::From;
use crate::builder::debian::download::Silent;
use crate::builder::debian::host_architecture;
use crate::builder::image::{self, Image};
use crate::builder::pull;
use crate::cli::args::{Ask, Global, ImageCommand};
use crate::cli::context;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::graph;
use crate::label::Label;
use crate::store::{Scratch, Store};
use crate::sys::root::Root;

/// Which of them.
pub fn run(global: &Global, command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Inspect { image, ask } => look::inspect(global, ask, image),
        ImageCommand::Ls { long, image, path, ask } => look::ls(global, ask, image, path.as_deref(), *long),
        ImageCommand::Cat { image, path, ask } => look::cat(global, ask, image, path),
        ImageCommand::Diff { a, b, ask } => diff::run(global, ask, a, b),
        ImageCommand::Unpack { image, to, ask } => unpack::run(global, ask, image, to),
        ImageCommand::Why { image, path, ask } => why::run(global, ask, image, path.as_deref()),
    }
}

/// An image that was named on the command line.
pub struct Found {
    /// As it was named, a label in full.
    pub shown: String,
    /// What it is called, without a tag, where that is known.
    pub name: Option<String>,
    /// Its tag.
    pub tag: String,
    /// What its build file says that it is for.
    pub platform: Option<Platform>,
    /// The image.
    pub image: Image,
    /// The store.
    pub store: Store,
    /// Where an archive is unpacked, for as long as it is looked at.
    _scratch: Option<Scratch>,
}

/// Finds an image: a label, as it was last built, one on disk, or one in a registry.
pub fn find(global: &Global, ask: &Ask, text: &str) -> Result<Found> {
    match text.split_once(':') {
        Some(("oci" | "oci-archive" | "docker-archive", _)) => on_disk(global, text),
        Some(("docker", _)) if text.starts_with("docker://") => in_registry(global, text),
        _ => {
            let path = context::directory(global)?.join(text);
            built(global, ask, text).map_err(|e| match path.metadata() {
                // Not a label, but something to look at all the same: said how.
                Ok(stat) if stat.is_dir() && path.join("oci-layout").is_file() => {
                    Error::request(format!("{text} is a folder, not a label")).next(format!("write oci:{text}"))
                }
                Ok(stat) if stat.is_file() => Error::request(format!("{text} is a file, not a label"))
                    .next(format!("write oci-archive:{text}, or docker-archive:{text} for what docker save wrote")),
                _ => e,
            })
        }
    }
}

fn built(global: &Global, ask: &Ask, text: &str) -> Result<Found> {
    with_label(global, ask, text, |build, store, id, label| {
        let built = build.finished_image(id).map_err(|e| e.next(format!("tapeout build {label}")))?;
        let folder = Root::open(store.path())?;
        let media_type = image::MANIFEST_TYPE;
        let image =
            image::in_blobs(&folder, media_type, built.manifest.digest, built.manifest.size, host_architecture()?)?;
        Ok(Found {
            shown: label.to_string(),
            name: Some(built.name.clone()),
            tag: built.tag.clone(),
            platform: built.platform.clone(),
            image,
            store: store.clone(),
            _scratch: None,
        })
    })
}

/// Its blobs come into the store, where they stay.
fn in_registry(global: &Global, text: &str) -> Result<Found> {
    let store = context::store(global)?;
    let (keychain, network) = (context::keychain(), context::network(global));
    let reference = pull::pinned(&text.parse()?, &keychain, network)?;
    let image = pull::pull(&reference, &keychain, network, &store, host_architecture()?, &Silent)?;
    Ok(Found {
        shown: reference.to_string(),
        name: Some(format!("{}/{}", reference.registry, reference.repository)),
        tag: reference.tag.unwrap_or_else(|| "latest".to_string()),
        platform: None,
        image,
        store,
        _scratch: None,
    })
}

fn on_disk(global: &Global, text: &str) -> Result<Found> {
    let store = context::store(global)?;
    let from = text.parse::<From>()?.in_folder(&context::directory(global)?);
    let architecture = host_architecture()?;
    let mut scratch = None;
    let mut unpacked = || -> Result<Root> {
        let new = store.scratch()?;
        let folder = Root::open(&new.folder("archive")?)?;
        scratch = Some(new);
        Ok(folder)
    };
    let image = match &from {
        From::Layout(path, tag) => image::in_layout(&root(path)?, tag.as_deref(), architecture)?,
        From::OciArchive(path, tag) => image::in_oci_archive(path, tag.as_deref(), architecture, &unpacked()?)?,
        From::DockerArchive(path, tag) => image::in_docker_archive(path, tag.as_deref(), &unpacked()?)?,
        _ => {
            return Err(Error::request(format!("{text} is no image"))
                .next("write oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE"));
        }
    };
    // REPOSITORY:TAG, or a tag alone: then the image's title may say more.
    let known = image.tag.clone().unwrap_or_default();
    let last = known.rsplit('/').next().unwrap_or_default().len();
    let (name, tag) = match known[known.len() - last..].find(':') {
        Some(at) => {
            (Some(known[..known.len() - last + at].to_string()), known[known.len() - last + at + 1..].to_string())
        }
        None => (image.title(), known),
    };
    let tag = if tag.is_empty() { "latest".to_string() } else { tag };
    Ok(Found { shown: text.to_string(), name, tag, platform: None, image, store, _scratch: scratch })
}

fn root(path: &Path) -> Result<Root> {
    Root::open(path).map_err(|e| e.next("name a folder that holds an OCI image layout"))
}

/// Looks a label's image up, with all that it stands on as the store has it.
fn with_label<T>(
    global: &Global,
    ask: &Ask,
    text: &str,
    look: impl FnOnce(&Build, &Store, Id, &Label) -> Result<T>,
) -> Result<T> {
    let name = if text.ends_with("/build_image") { text.to_string() } else { format!("{text}/build_image") };
    let request = context::request(global, ask, &[name])?;
    let store = context::store(global)?;
    let graph = graph::kept::analyse(&store, &request)?;
    let base = super::build::base_as_is(&store, &request.workspace)?;
    let options = super::build::as_is(&request.workspace, &base);
    let build = Build::new(&store, &graph, &base, &options, &crate::report::Silent);
    build.forecast()?;
    let id = *graph.requested.first().ok_or_else(|| Error::request("no image was named"))?;
    look(&build, &store, id, &graph.instances[id].label)
}
