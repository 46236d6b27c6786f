//! A pod: the bundle of its images, data and configuration, replaced whole or not at all.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::build_file::spec::{Id, ImageRef, Pod, Source, Spec, VolumeKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::own_key;
use crate::image::layout;
use crate::label::Label;
use crate::pod::{self, Image, Request};
use crate::report::Event;

/// All that a bundle depends on.
#[derive(Serialize)]
struct Document<'a> {
    label: &'a Label,
    pod: &'a Pod,
    images: Vec<Digest>,
    sources: Option<Digest>,
    epoch: i64,
}

/// Is the bundle that was written still there? Its sums are the very ones, no file is missing, and none was touched after
/// the sums, which are written last.
fn is_whole(path: &Path, digest: &[u8]) -> bool {
    let touched = |path: PathBuf| {
        let data = std::fs::symlink_metadata(path).ok().filter(Metadata::is_file)?;
        Some((data.ctime(), data.ctime_nsec()))
    };
    let last = path.join("SHA256SUMS");
    let Ok(sums) = std::fs::read_to_string(&last) else { return false };
    let last = touched(last);
    let file =
        |line: &str| line.get(66..).is_some_and(|name| touched(path.join(name)).is_some_and(|at| Some(at) <= last));
    Digest::of(&sums).to_string().as_bytes() == digest && sums.lines().all(file)
}

impl Build<'_> {
    /// Writes the bundle of a pod.
    pub(super) fn pod(&self, id: Id, pod: &Pod) -> Result<PathBuf> {
        let instance = &self.graph.instances[id];
        let label = &instance.label;
        if let Some(path) = self.cached_pod(id, pod)? {
            self.done("cached", id, "");
            return Ok(path);
        }
        let path = self.bundle(id);
        let action = self.pod_key(id, pod)?;
        let mut trees = BTreeMap::new();
        for container in &pod.containers {
            if let ImageRef::Built(image) = container.image {
                trees.insert(image, self.read_selection(&self.built(image)?.files)?);
            }
        }
        let mut images = BTreeMap::new();
        for (image, tree) in &trees {
            let built = self.built(*image)?;
            let Spec::Image(spec) = &self.graph.instances[*image].spec else {
                return Err(Error::failed(format!("{} is no image", self.graph.instances[*image].label)));
            };
            images.insert(
                *image,
                Image {
                    label: &self.graph.instances[*image].label,
                    version: spec.version.as_deref(),
                    user: (built.user.uid, built.user.gid),
                    starts: !spec.entrypoint.is_empty() || !spec.cmd.is_empty(),
                    layout: built.in_layout(String::new()),
                    tree,
                },
            );
        }
        let request = Request {
            pod,
            label,
            images: &images,
            blob: &|digest| self.store.blob_path(digest),
            files: self.store,
            package_folder: instance.folder.as_deref(),
            epoch: self.options.epoch,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let mut written = None;
        layout::replace(&path, |new| {
            written = Some(pod::write(&request, new)?);
            Ok(())
        })?;
        for warning in written.iter().flat_map(|w| &w.warnings) {
            self.report.event(Event::Note { text: &format!("{label}: {warning}") });
        }
        if let Some(written) = &written {
            self.store.record_action(&action, written.digest.to_string().as_bytes())?;
        }
        self.done("wrote", id, &path.display().to_string());
        Ok(path)
    }

    /// Where the bundle lies, if it is there and holds what it would hold now.
    pub(super) fn cached_pod(&self, id: Id, pod: &Pod) -> Result<Option<PathBuf>> {
        let path = self.bundle(id);
        let sums = self.store.action(&self.pod_key(id, pod)?);
        Ok(sums.filter(|sums| is_whole(&path, sums)).map(|_| path))
    }

    fn bundle(&self, id: Id) -> PathBuf {
        let label = &self.graph.instances[id].label;
        self.options.output.join(label.package().path()).join(label.name())
    }

    fn pod_key(&self, id: Id, pod: &Pod) -> Result<Digest> {
        let instance = &self.graph.instances[id];
        let in_volumes = pod.volumes.iter().flat_map(|volume| match &volume.holds {
            VolumeKind::Files(files) => files.as_slice(),
            _ => &[],
        });
        let sources: Vec<_> =
            pod.files.iter().chain(in_volumes).filter_map(|f| f.source.clone()).map(Source::Path).collect();
        let sources = if sources.is_empty() { None } else { Some(self.sources(instance, &sources)?.digest) };
        let images = pod.containers.iter().filter_map(|container| match container.image {
            ImageRef::Built(image) => Some(self.built(image).map(|built| built.manifest.digest)),
            ImageRef::Registry(_) => None,
        });
        // The numbers of instances are others when something else is asked for besides; `images` says what they are.
        let mut pod = pod.clone();
        for container in &mut pod.containers {
            if let ImageRef::Built(image) = &mut container.image {
                *image = 0;
            }
        }
        let document = Document {
            label: &instance.label,
            pod: &pod,
            images: images.collect::<Result<_>>()?,
            sources,
            epoch: self.options.epoch,
        };
        let bytes = serde_json::to_vec(&document).map_err(|e| Error::failed(format!("can't write a request: {e}")))?;
        Ok(own_key("pod", &bytes))
    }
}
