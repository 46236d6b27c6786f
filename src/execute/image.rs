//! An image: the selections of its tapeout rules as layers, then config and manifest, and before
//! it is written the check inside of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::archive::compress::{self, Earlier};
use crate::build_file::spec::{Id, Image, ImageRef, Layers, Spec};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::execute::build::{Build, Output};
use crate::execute::check;
use crate::execute::log::Live;
use crate::execute::request::own_key;
use crate::execute::tapeout::{JOINT_POINT, is_base_tapeout};
use crate::image::config::{self, ImageLayer};
use crate::image::layer::{self, LayerInfo, Packing};
use crate::image::layout::{self, LayoutImage};
use crate::label::Label;
use crate::report::{Event, counted};
use crate::store::{self, Blob, Unhashed};
use crate::sys::memory;
use crate::tapeout;
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection};

/// A finished image: its documents and layers are blobs in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Built {
    /// Its name: the label's without `/build_image`.
    pub name: String,
    /// The tag: the version, or `latest`.
    pub tag: String,
    /// The manifest.
    pub manifest: Blob,
    /// The config.
    pub config: Blob,
    /// The layers, the lowest first.
    pub layers: Vec<ImageLayer>,
    /// The blob with all its files, as its layers together show them.
    pub files: Digest,
    /// User and group as numbers.
    pub user: (u32, u32),
    /// Where its layout was written, if it was asked for.
    pub path: Option<PathBuf>,
}

/// All that an image depends on.
#[derive(Serialize)]
struct Document<'a> {
    packing: u32,
    label: &'a Label,
    spec: &'a Image,
    selections: &'a [(Label, Digest)],
    base: Option<Digest>,
    builder: &'a [Digest],
    epoch: i64,
    architecture: &'a str,
}

impl Built {
    /// As it goes into a layout.
    pub fn in_layout(&self, tag: String) -> LayoutImage {
        let layers = self.layers.iter().map(|layer| layer.info.digest);
        LayoutImage {
            tag,
            name: None,
            manifest: (self.manifest.digest, self.manifest.size),
            blobs: std::iter::once(self.config.digest).chain(layers).collect(),
        }
    }
}

/// Who is said to have made the layer of `tapeouts = ALL`.
const WHOLE_BUILDER: &str = "builder";
/// And why its files are in the image.
const WHOLE: &str = "tapeouts = ALL";

/// The annotation of an image that another machine would make otherwise.
const NOT_REPRODUCIBLE: &str = "tapeout.not-reproducible";

impl Build<'_> {
    /// Makes an image, and writes its layout where it was asked for.
    pub(super) fn image(&self, id: Id, image: &Image) -> Result<Built> {
        let label = &self.graph.instances[id].label;
        let path = self.options.output.join(label.package().path()).join(label.name());
        let asked = self.graph.requested.contains(&id);
        let key = self.image_key(id, image)?;
        if let Some(mut built) = self.cached_image(id, image)? {
            self.done("cached", id, "");
            if asked && !self.is_written(&path, &built)? {
                self.write_layout(id, layout::New::begin(&path)?, &built, &path)?;
            }
            self.remember(id, (&key, &key), Some(built.manifest.digest), None);
            built.path = asked.then_some(path);
            return Ok(built);
        }
        // Layers go to the store and to the layout at once.
        let new = if asked { Some(layout::New::begin(&path)?) } else { None };
        let mut built =
            self.make_image(id, image, new.as_ref()).inspect_err(|_| self.remember(id, (&key, &key), None, None))?;
        self.remember(id, (&key, &key), Some(built.manifest.digest), None);
        if let Some(new) = new {
            self.write_layout(id, new, &built, &path)?;
            built.path = Some(path);
        }
        Ok(built)
    }

    /// Is this very image there already, as it was written?
    fn is_written(&self, path: &Path, built: &Built) -> Result<bool> {
        let found = layout::Layout::open(path).and_then(|layout| layout.image_tagged(Some(&built.tag)));
        let same = found.is_ok_and(|found| found.digest == built.manifest.digest);
        Ok(same && self.written(path)?.1.stands(path, &[built.in_layout(built.tag.clone())]))
    }

    /// What is known of the layout that was written to a place, and under which key.
    fn written(&self, path: &Path) -> Result<(Digest, layout::Written)> {
        let place = std::path::absolute(path).map_err(|e| Error::io("getcwd", path, e))?;
        let key = own_key("written", place.as_os_str().as_bytes());
        let known = self.store.action(&key).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok((key, known.unwrap_or_default()))
    }

    fn write_layout(&self, id: Id, new: layout::New, built: &Built, path: &Path) -> Result<()> {
        let (key, known) = self.written(path)?;
        let blob = |digest: &Digest| self.store.blob_path(digest);
        let discard = |old| {
            store::discard(old);
            Ok(())
        };
        let written = new.finish(&[built.in_layout(built.tag.clone())], &blob, &known, discard)?;
        let written = serde_json::to_vec(&written).map_err(|e| Error::failed(e.to_string()))?;
        self.store.record_action(&key, &written)?;
        self.done("wrote", id, &path.display().to_string());
        Ok(())
    }

    /// The selections that become this image's layers, the lowest first; those of its base left out.
    pub(super) fn selections_of(&self, id: Id) -> Result<Vec<(Label, Digest)>> {
        let Spec::Image(image) = &self.graph.instances[id].spec else {
            return Err(Error::failed("not an image"));
        };
        let in_base = image.built_base().map(|base| self.order.below(base)).unwrap_or_default();
        let mut selections = vec![];
        for below in self.order.as_written(id).into_iter().filter(|below| !in_base.contains(*below)) {
            if let (Spec::Tapeout(_), Output::Selection { selection, .. }) =
                (&self.graph.instances[below].spec, self.output(below)?)
            {
                selections.push((self.graph.instances[below].label.clone(), *selection));
            }
        }
        Ok(selections)
    }

    /// What a finished image has and its base doesn't, by who brought it, the lowest first: a whole builder, then what its
    /// tapeout rules picked. What was picked and is not in it is left out.
    pub fn brought(&self, id: Id) -> Result<Vec<(Label, Selection)>> {
        let Spec::Image(image) = &self.graph.instances[id].spec else {
            return Err(Error::failed("not an image"));
        };
        let files = self.read_selection(&self.built(id)?.files)?;
        let below =
            self.stands_on(image)?.map(|below| self.read_selection(&below.files)).transpose()?.unwrap_or_default();
        let mut brought = vec![];
        for (label, digest) in self.selections_of(id)? {
            let mut selection = self.read_selection(&digest)?;
            selection.retain(|path, picked| {
                files.get(path).is_some_and(|file| file.why == picked.why && below.get(path) != Some(file))
            });
            brought.push((label, selection));
        }
        let whole: Selection = files.into_iter().filter(|(_, file)| *file.why == *WHOLE).collect();
        brought.insert(0, (self.graph.instances[id].label.clone(), whole));
        Ok(brought)
    }

    pub(super) fn image_key(&self, id: Id, image: &Image) -> Result<Digest> {
        // The number of an instance is another one when something else is asked for besides; `base` says what it is.
        let base = image.base.clone().filter(|base| matches!(base, ImageRef::Registry(_)));
        let document = Document {
            packing: compress::FORMAT,
            label: &self.graph.instances[id].label,
            spec: &Image { base, ..image.clone() },
            selections: &self.selections_of(id)?,
            base: self.base_digest(image)?,
            // What is marked for its builder is another image.
            builder: if image.whole_builder || self.base.is_host() { &self.base.changesets } else { &[] },
            epoch: self.options.epoch,
            architecture: config::ARCHITECTURE,
        };
        let bytes = serde_json::to_vec(&document).map_err(|e| Error::failed(format!("can't write a request: {e}")))?;
        Ok(own_key("image", &bytes))
    }

    /// The image that an instance came to.
    pub(super) fn built(&self, id: Id) -> Result<&Built> {
        match self.output(id)? {
            Output::Image(built) => Ok(built),
            _ => Err(Error::failed(format!("{} is no image", self.graph.instances[id].label))),
        }
    }

    /// An image that was finished before.
    pub(super) fn cached_image(&self, id: Id, image: &Image) -> Result<Option<Built>> {
        let Some(bytes) = self.store.action(&self.image_key(id, image)?) else { return Ok(None) };
        let built: Option<Built> = serde_json::from_slice(&bytes).ok();
        let whole = |b: &Built| {
            [b.manifest.digest, b.config.digest, b.files]
                .iter()
                .chain(b.layers.iter().map(|l| &l.info.digest))
                .all(|d| self.store.has_blob(d))
        };
        Ok(built.filter(whole))
    }

    fn make_image(&self, id: Id, image: &Image, new: Option<&layout::New>) -> Result<Built> {
        let instance = &self.graph.instances[id];
        let (mut names, mut selections): (Vec<String>, Vec<Selection>) = (vec![], vec![]);
        if image.whole_builder {
            names.push(WHOLE_BUILDER.to_string());
            selections.push(self.whole_builder(id)?);
        }
        for (label, digest) in self.selections_of(id)? {
            let mut selection = self.read_selection(&digest)?;
            if image.whole_builder && is_base_tapeout(&label) {
                // The builder has all that the joint point would add, and more of it.
                selection.retain(|path, _| !selections[0].contains_key(path));
            }
            names.push(label.to_string());
            selections.push(selection);
        }
        let many = selections.iter().map(Selection::len).sum::<usize>() > memory::MANY_FILES;
        if many {
            self.store.forget_large(&self.base.changesets);
            memory::give_back();
        }
        self.prune(id, image, &mut selections)?;
        self.clash(id, &names, &selections)?;
        let below = self.stands_on(image)?;
        let files = {
            let base_files = match &below {
                None => Selection::new(),
                Some(below) => self.read_selection(&below.files)?,
            };
            let files = tapeout::settle::settle(&base_files, &mut selections);
            if image.layers == Layers::Single {
                names = vec![instance.label.to_string()];
                selections = vec![selections.into_iter().flatten().collect()];
                tapeout::lookup::merged(std::iter::once(&base_files).chain(&selections))
            } else {
                files
            }
        };
        tapeout::program::check(image, &files).map_err(|e| e.at(instance.place.clone(), ""))?;
        let user = self.numbers(id, image, &files)?;
        let kept = self.keep_selection(&files)?;
        // While layers are written memory holds what they need: of a hundred thousand files each list is 30 MB.
        let checked_files = (!image.check.is_empty()).then_some(files);
        if many {
            memory::give_back();
        }
        let mut layers = below.map(|below| below.layers).unwrap_or_default();
        for (created_by, selection) in names.into_iter().zip(selections).filter(|(_, selection)| !selection.is_empty())
        {
            let info = self.layer(id, &created_by, &selection, image, new)?;
            layers.push(ImageLayer { info, created_by });
        }
        let named = (!image.user.is_empty()).then_some(user);
        let config = config::config(image, named, &layers, self.options.epoch)?;
        let name = instance.label.name().trim_end_matches("/build_image").to_string();
        let mut annotations = config::annotations(image, &name, self.options.epoch)?;
        if self.base.is_host() {
            annotations
                .insert(NOT_REPRODUCIBLE.to_string(), "built with the tools of one machine (builder host)".to_string());
        }
        let manifest = config::manifest(&config, &layers, &annotations)?;
        if let Some(files) = checked_files {
            let log = self.store.log_path(&self.image_key(id, image)?);
            let what = format!("the check of {}", instance.label);
            self.report.event(Event::Started { what: &what, total: None });
            let live = Live::new(self.report, &what);
            let checked = check::run(self.store, image, user, &files, self.options.epoch, live, &log);
            self.report.event(Event::Ended { what: &what });
            checked.map_err(|e| e.at(instance.place.clone(), "its check"))?;
        }
        let built = Built {
            name,
            tag: image.version.clone().unwrap_or_else(|| "latest".to_string()),
            manifest: self.store.put(&manifest)?,
            config: self.store.put(&config)?,
            layers,
            files: kept,
            user,
            path: None,
        };
        let document = serde_json::to_vec(&built).map_err(|e| Error::failed(e.to_string()))?;
        self.store.record_action(&self.image_key(id, image)?, &document)?;
        let size: u64 = built.layers.iter().map(|layer| layer.info.size).sum();
        let layers = counted(built.layers.len(), "layer");
        let checked = if image.check.is_empty() { "" } else { ", checked" };
        self.done("image", id, &format!("{layers}, {:.1} MB{checked}", size as f64 / 1e6));
        Ok(built)
    }

    /// `tapeouts = ALL`: everything that the image's snapshot shows.
    fn whole_builder(&self, id: Id) -> Result<Selection> {
        let view = self.snapshot(id, None)?.stack(self.store, self.graph, &self.order)?;
        let workspace = RootPath::new("workspace")?;
        let root = RootPath::root();
        let all = view.visible(&root).into_iter().filter(|(path, _)| !path.starts_with(&workspace));
        let why: Arc<str> = WHOLE.into();
        Ok(all
            .map(|(path, (entry, changeset))| {
                let content = match entry.node {
                    Node::File { .. } => Content::Stored { changeset, path: path.clone() },
                    _ => Content::None,
                };
                (path.clone(), Picked { entry: Some(entry.clone()), content, why: why.clone() })
            })
            .collect())
    }

    /// Two rules that put different things at one path are an error, unless one comes after the other.
    fn clash(&self, id: Id, names: &[String], selections: &[Selection]) -> Result<()> {
        let below = self.order.as_written(id);
        let of_label = below.into_iter().rev().map(|i| (self.graph.instances[i].label.to_string(), i));
        let instances: BTreeMap<String, Id> = of_label.collect();
        let mut first: BTreeMap<&RootPath, (usize, &Entry)> = BTreeMap::new();
        for (at, selection) in selections.iter().enumerate() {
            for (path, picked) in selection {
                let Some(entry) = picked.entry.as_ref() else { continue };
                let Some(&(before, other)) = first.get(path) else {
                    first.insert(path, (at, entry));
                    continue;
                };
                let ordered = match (instances.get(&names[before]), instances.get(&names[at])) {
                    (Some(before), Some(&at)) => self.order.below(at).contains(*before),
                    _ => true,
                };
                let folders = entry.is_folder() && other.is_folder();
                if !ordered && !folders && !entry.same_as(other) {
                    let error = Error::failed(format!(
                        "two rules put different things at {path}: {} and {}",
                        names[before], names[at]
                    ));
                    return Err(error.at(self.graph.instances[id].place.clone(), "both are in this image").next(
                        format!(
                            "exclude it from one of them, or give {} a dependency on {}: it then has the last word",
                            names[at], names[before]
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn prune(&self, id: Id, image: &Image, selections: &mut [Selection]) -> Result<()> {
        if image.exclude.is_empty() {
            return Ok(());
        }
        let place = &self.graph.instances[id].place;
        let view = self.snapshot(id, None)?.stack(self.store, self.graph, &self.order)?;
        let (mut counts, mut out) = (vec![0; image.exclude.len()], BTreeSet::new());
        for selection in selections.iter_mut() {
            let pruned = tapeout::select::prune(selection, &image.exclude, &view)?;
            counts.iter_mut().zip(pruned.counts).for_each(|(count, n)| *count += n);
            out.extend(pruned.paths);
        }
        if let Some((pattern, _)) = image.exclude.iter().zip(counts).find(|(_, n)| *n == 0) {
            return Err(Error::request(format!("exclude matches nothing in the image: {pattern:?}"))
                .at(place.clone(), "")
                .next("correct the pattern, or take it out"));
        }
        // A whole builder was no closure before, either.
        if image.whole_builder {
            return Ok(());
        }
        let missed = self.missed(id, image, selections, &out, &view)?;
        let errors = missed.into_iter().map(|(path, why)| {
            Error::failed(format!("exclude takes out {path}, which is {why}"))
                .at(place.clone(), "")
                .next("keep it, or exclude what needs it, too; rules with libraries = False aren't looked at")
        });
        Error::all(errors.collect()).map_or(Ok(()), Err)
    }

    /// The image's user and group as numbers, from the image's own tables.
    fn numbers(&self, id: Id, image: &Image, files: &Selection) -> Result<(u32, u32)> {
        let table = |path: &str| -> Result<String> {
            let path = RootPath::new(path)?;
            let Some(picked) = files.get(&path) else { return Ok(String::new()) };
            let bytes = match &picked.content {
                Content::Inline(bytes) => bytes.clone(),
                Content::Stored { changeset, path } => {
                    let mut bytes = vec![];
                    let file = self.store.read(changeset, path)?;
                    io::Read::read_to_end(&mut io::Read::take(file, 4 << 20), &mut bytes)
                        .map_err(|e| Error::io("read", path.as_path(), e))?;
                    bytes
                }
                Content::None => vec![],
            };
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        super::identity::resolve(&image.user, &table("etc/passwd")?, &table("etc/group")?)
            .map_err(|e| e.at(self.graph.instances[id].place.clone(), "user"))
    }

    fn layer_key(&self, selection: &Selection, image: &Image) -> Result<Digest> {
        let document = (compress::FORMAT, Layered(selection), image.compression, image.level, self.options.epoch);
        let hashing = BufWriter::with_capacity(64 << 10, Hashing::new(io::sink()));
        let hashed = postcard::to_io(&document, hashing)
            .map_err(|e| Error::failed(e.to_string()))
            .and_then(|out| out.into_inner().map_err(|e| Error::io("write", "a request", e.into_error())));
        let (_, digest, _) = hashed?.finish();
        Ok(own_key("layer", digest.as_bytes()))
    }

    /// A layer, compressed once for the same files. One that is made now goes into the new layout too.
    fn layer(
        &self,
        id: Id,
        created_by: &str,
        selection: &Selection,
        image: &Image,
        new: Option<&layout::New>,
    ) -> Result<LayerInfo> {
        let action = self.layer_key(selection, image)?;
        if let Some(info) =
            self.store.action(&action).and_then(|bytes| serde_json::from_slice::<LayerInfo>(&bytes).ok())
            && self.store.has_blob(&info.digest)
        {
            return Ok(info);
        }
        let packing = Packing {
            compression: image.compression,
            level: image.level,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let mut both = Both {
            kept: self.store.begin_unhashed()?,
            written: new.map(layout::New::blob).transpose()?,
            store: self.store.path(),
            refused: None,
        };
        let files = |digest: &Digest| self.store.changeset_files(digest);
        // Each image has these of its own.
        let own = matches!(created_by, WHOLE_BUILDER | JOINT_POINT);
        let of = own.then_some(&self.graph.instances[id].label);
        let packed_key = packed_key(of, created_by, packing)?;
        let earlier = self.earlier(&packed_key);
        let written =
            layer::write_layer_after(earlier.as_ref(), selection, &files, packing, self.options.epoch, &mut both);
        let (info, packed) = written.map_err(|e| both.refused.take().unwrap_or(e))?;
        both.kept.finish(Blob { digest: info.digest, size: info.size })?;
        both.written.map_or(Ok(()), |written| written.finish(&info.digest))?;
        self.store.sync_ahead();
        let document = serde_json::to_vec(&info).map_err(|e| Error::failed(e.to_string()))?;
        self.store.record_action(&action, &document)?;
        if !packed.is_empty() {
            let document = postcard::to_stdvec(&(info.digest, packed)).map_err(|e| Error::failed(e.to_string()))?;
            self.store.record_action(&packed_key, &document)?;
        }
        Ok(info)
    }

    /// The layer that was made before of the same rule, if it is still there.
    fn earlier(&self, packed_key: &Digest) -> Option<Earlier> {
        let bytes = self.store.action(packed_key)?;
        let (digest, files) = postcard::from_bytes::<(Digest, _)>(&bytes).ok()?;
        Some(Earlier { file: File::open(self.store.blob_path(&digest)).ok()?, files })
    }
}

/// Where it stands which large files the last layer of a rule has, and where they are in it.
fn packed_key(of: Option<&Label>, created_by: &str, packing: Packing) -> Result<Digest> {
    let document = postcard::to_stdvec(&(compress::FORMAT, of, created_by, packing.compression, packing.level))
        .map_err(|e| Error::failed(format!("can't write a request: {e}")))?;
    Ok(own_key("packed files", &document))
}

/// What of a selection a layer depends on: not why a file was picked.
struct Layered<'a>(&'a Selection);

impl Serialize for Layered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(path, picked)| (path, (&picked.entry, &picked.content))))
    }
}

/// A layer on its way to the store, and to a layout.
struct Both<'a> {
    kept: Unhashed,
    written: Option<layout::NewBlob>,
    store: &'a Path,
    /// Which of the two could not be written: whoever compresses sees but one writer.
    refused: Option<Error>,
}

impl Both<'_> {
    fn refused(&mut self, place: PathBuf, error: io::Error) -> io::Error {
        let kind = error.kind();
        self.refused = Some(Error::io("write", place, error));
        kind.into()
    }
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.kept.write_all(bytes) {
            return Err(self.refused(self.store.to_path_buf(), error));
        }
        let Some(written) = &mut self.written else { return Ok(bytes.len()) };
        match written.write_all(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let place = written.path().to_path_buf();
                Err(self.refused(place, error))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
