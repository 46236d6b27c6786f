//! What an image stands on: an image of this build, or one of a registry.
//!
//! One of a registry comes into the store blob by blob. Its layers go into our image as they are; its files
//! are kept as one changeset, for the joint point, which looks for libraries in them, and for the image's check.

use std::sync::Arc;

use crate::build_file::spec::{Compression, Id, Image, ImageRef, Spec};
use crate::builder;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::own_key;
use crate::image::config::ImageLayer;
use crate::image::layer::LayerInfo;
use crate::remote::reference::Reference;
use crate::tree::{Content, Layer, Node, Picked, RootPath, Selection};

/// What is below an image's own layers.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Below {
    /// Its layers, the lowest first.
    pub layers: Vec<ImageLayer>,
    /// The blob with all its files.
    pub files: Digest,
}

impl Build<'_> {
    /// Names what an image stands on, before that is there.
    pub(super) fn base_digest(&self, image: &Image) -> Result<Option<Digest>> {
        match &image.base {
            None => Ok(None),
            Some(ImageRef::Built(id)) => Ok(Some(self.built(*id)?.manifest.digest)),
            Some(ImageRef::Registry(text)) => Ok(text.parse::<Reference>()?.digest),
        }
    }

    /// What an image stands on.
    pub(super) fn stands_on(&self, image: &Image) -> Result<Option<Below>> {
        match &image.base {
            None => Ok(None),
            Some(ImageRef::Built(id)) => {
                let built = self.built(*id)?;
                Ok(Some(Below { layers: built.layers.clone(), files: built.files }))
            }
            Some(ImageRef::Registry(text)) => self.pulled(text).map(Some),
        }
    }

    /// The base, where that is what has a file of an image.
    pub fn base_with(&self, id: Id, path: &RootPath) -> Result<Option<String>> {
        let Spec::Image(image) = &self.graph.instances[id].spec else { return Ok(None) };
        let Some(below) = self.stands_on(image)? else { return Ok(None) };
        let has = |files: &Digest| Ok::<_, Error>(self.read_selection(files)?.contains_key(path));
        // What is above it may have removed the file.
        let has = has(&below.files)? && has(&self.built(id)?.files)?;
        Ok(image.base.as_ref().filter(|_| has).map(|base| match base {
            ImageRef::Built(id) => self.graph.instances[*id].label.to_string(),
            ImageRef::Registry(text) => text.clone(),
        }))
    }

    /// An image of a registry: from the store, where it was pulled before.
    fn pulled(&self, text: &str) -> Result<Below> {
        let reference: Reference = text.parse()?;
        let digest = reference.digest.map(|digest| digest.to_string()).unwrap_or_default();
        // The joint point and the image want it at once.
        let _one = self.pulling.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = own_key("base", format!("{digest}\n{}\n", self.options.epoch).as_bytes());
        let known = self.store.action(&key).and_then(|bytes| serde_json::from_slice::<(Below, Digest)>(&bytes).ok());
        if let Some((below, changeset)) = known
            && self.store.has_changeset(&changeset)
            && below.layers.iter().map(|l| &l.info.digest).chain([&below.files]).all(|d| self.store.has_blob(d))
        {
            return Ok(below);
        }
        let image = self.base.pull(&reference, self.report)?;
        let Layer { digest, changeset } = builder::keep_image(self.store, &image, self.options.epoch, text)?;
        let why: Arc<str> = format!("base {text}").into();
        let files: Selection = (changeset.changes.iter())
            .filter_map(|(path, change)| {
                let entry = change.now.clone()?;
                let content = match entry.node {
                    Node::File { .. } => Content::Stored { changeset: digest, path: path.clone() },
                    _ => Content::None,
                };
                Some((path.clone(), Picked { entry: Some(entry), content, why: why.clone() }))
            })
            .collect();
        let layers = image.layers.iter().map(|layer| ImageLayer {
            info: LayerInfo {
                diff_id: layer.diff_id,
                digest: layer.digest,
                size: layer.size,
                compression: compression(&layer.media_type),
            },
            created_by: layer.created_by.clone().unwrap_or_else(|| text.to_string()),
        });
        let below = Below { layers: layers.collect(), files: self.keep_selection(&files)? };
        let document = serde_json::to_vec(&(&below, digest)).map_err(|e| Error::failed(e.to_string()))?;
        self.store.record_action(&key, &document)?;
        Ok(below)
    }
}

/// OCI's media types and docker's end alike.
fn compression(media_type: &str) -> Compression {
    match media_type {
        zstd if zstd.ends_with("zstd") => Compression::Zstd,
        gzip if gzip.ends_with("gzip") => Compression::Gzip,
        _ => Compression::None,
    }
}
