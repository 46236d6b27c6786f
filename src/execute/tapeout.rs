//! A tapeout rule: its `run`, what it picks, and at the joint point the closure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};

use serde::Serialize;

use crate::build_file::spec::{Id, Image, Libraries, Spec, Tapeout};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::{Build, Output};
use crate::execute::request::own_key;
use crate::execute::schedule::Turn;
use crate::execute::{rule, snapshot};
use crate::label::Label;
use crate::report::{Event, counted};
use crate::store::Store;
use crate::sys::memory;
use crate::tapeout::why::Why;
use crate::tapeout::{self, Files};
use crate::tree::{self, Layer, RootPath, Selection, Stack};

/// All that a selection depends on.
#[derive(Serialize)]
struct Document<'a> {
    spec: &'a Tapeout,
    snapshot: Vec<Digest>,
    picks_from: Vec<Digest>,
    own: Option<Digest>,
    sources: Option<Digest>,
    joined: Vec<(Digest, Libraries)>,
    user: &'a str,
    env: BTreeMap<String, String>,
    starts: Vec<String>,
    base: Option<Digest>,
}

/// The joint point of every image, by its label.
pub(super) const JOINT_POINT: &str = "//base:tapeout";

/// Is it that one?
pub(super) fn is_base_tapeout(label: &Label) -> bool {
    label.package().path() == "base" && label.name() == "tapeout"
}

impl Build<'_> {
    /// Runs a tapeout rule's `run` and picks.
    pub(super) fn tapeout(&self, id: Id, turn: &Turn) -> Result<Output> {
        let own = match self.request(id)? {
            None => None,
            Some((request, _)) => match rule::cached(self.store, &request) {
                Some(digest) => Some((request.key(), digest)),
                None => self.changeset_of_run(id, turn)?.map(|digest| (request.key(), digest)),
            },
        };
        let (ran, own) = own.unzip();
        let key = self.selection_key(id, own)?;
        let log = ran.unwrap_or(key);
        if let Some(selection) = self.cached_selection(&key) {
            self.done("cached", id, "");
            self.remember(id, (&key, &log), Some(selection), None);
            return Ok(Output::Selection { selection, own });
        }
        let picked = self.pick(id, own)?;
        let selection = self.keep_selection(&picked)?;
        self.store.record_action(&key, selection.to_string().as_bytes())?;
        let files = picked.values().filter(|p| p.entry.as_ref().is_some_and(|e| !e.is_folder())).count();
        if files > memory::MANY_FILES {
            drop(picked);
            memory::give_back();
        }
        self.done("picked", id, &counted(files, "file"));
        self.remember(id, (&key, &log), Some(selection), None);
        Ok(Output::Selection { selection, own })
    }

    /// The outcome of a tapeout rule that ran before.
    pub(super) fn cached_tapeout(&self, id: Id) -> Result<Option<Output>> {
        let own = match self.request(id)? {
            None => None,
            Some((request, _)) => match rule::cached(self.store, &request) {
                None => return Ok(None),
                own => own,
            },
        };
        let selection = self.cached_selection(&self.selection_key(id, own)?);
        Ok(selection.map(|selection| Output::Selection { selection, own }))
    }

    fn cached_selection(&self, key: &Digest) -> Option<Digest> {
        let digest: Digest = std::str::from_utf8(&self.store.action(key)?).ok()?.parse().ok()?;
        self.store.has_blob(&digest).then_some(digest)
    }

    pub(super) fn selection_key(&self, id: Id, own: Option<Digest>) -> Result<Digest> {
        let Spec::Tapeout(spec) = &self.graph.instances[id].spec else {
            return Err(Error::failed("not a tapeout rule"));
        };
        let joined = self.joined(id)?.into_iter().map(|(_, digest, libraries)| (digest, libraries)).collect();
        // Of the image that it is for a joint point alone knows.
        let image = self.image_of(id).map(|(_, image)| image);
        let document = Document {
            spec,
            snapshot: self.snapshot(id, None)?.digests(),
            picks_from: self.picks_from(id)?,
            own,
            sources: self.file_sources(id, spec)?,
            joined,
            user: image.map_or("", |image| image.user.as_str()),
            env: image.map(|image| image.env.clone()).unwrap_or_default(),
            starts: image.map(tapeout::program::candidates).unwrap_or_default(),
            base: image.map_or(Ok(None), |image| self.base_digest(image))?,
        };
        let bytes = serde_json::to_vec(&document).map_err(|e| Error::failed(format!("can't write a request: {e}")))?;
        Ok(own_key("tapeout", &bytes))
    }

    /// The changesets that `include` sees: all below, but `//base:build`'s.
    fn picks_from(&self, id: Id) -> Result<Vec<Digest>> {
        let mut digests = vec![];
        for member in snapshot::members(self.graph, &self.order, id) {
            if !snapshot::is_base_build(self.graph, member) {
                digests.extend(self.output(member)?.changeset());
            }
        }
        Ok(digests)
    }

    /// Files of the package that `files = [file(source = …)]` takes.
    fn file_sources(&self, id: Id, spec: &Tapeout) -> Result<Option<Digest>> {
        let sources: Vec<_> =
            spec.files.iter().filter_map(|f| f.source.clone()).map(crate::build_file::spec::Source::Path).collect();
        if sources.is_empty() {
            return Ok(None);
        }
        self.sources(&self.graph.instances[id], &sources).map(|layer| Some(layer.digest))
    }

    /// At `//base:tapeout`: the selections of all tapeout rules of this image, in the graph's order.
    fn joined(&self, id: Id) -> Result<Vec<(Label, Digest, Libraries)>> {
        if !self.is_base_tapeout(id) {
            return Ok(vec![]);
        }
        let mut joined = vec![];
        for below in self.order.as_written(id) {
            if let (Spec::Tapeout(spec), Output::Selection { selection, .. }) =
                (&self.graph.instances[below].spec, self.output(below)?)
            {
                joined.push((self.graph.instances[below].label.clone(), *selection, spec.libraries.clone()));
            }
        }
        Ok(joined)
    }

    pub(super) fn is_base_tapeout(&self, id: Id) -> bool {
        is_base_tapeout(&self.graph.instances[id].label)
    }

    /// The image that a joint point is for. Other tapeout rules know none: several images may share one, and what
    /// it picks must not depend on which of them are asked for together.
    pub(super) fn image_of(&self, id: Id) -> Option<(Id, &Image)> {
        if !self.is_base_tapeout(id) {
            return None;
        }
        self.graph.instances.iter().enumerate().find_map(|(image_id, instance)| match &instance.spec {
            Spec::Image(image) if instance.deps.contains(&id) => Some((image_id, image)),
            _ => None,
        })
    }

    /// A selection as a blob.
    pub(super) fn keep_selection(&self, selection: &Selection) -> Result<Digest> {
        let bad = |e| Error::io("write", self.store.path(), e);
        let mut out = BufWriter::with_capacity(64 << 10, self.store.begin()?);
        if let Err(error) = postcard::to_io(selection, &mut out) {
            // What the file system refuses it refuses again, and says why.
            out.flush().map_err(bad)?;
            return Err(Error::failed(format!("can't keep a selection: {error}")));
        }
        Ok(out.into_inner().map_err(|e| bad(e.into_error()))?.finish()?.digest)
    }

    /// A selection, read back.
    pub(super) fn read_selection(&self, digest: &Digest) -> Result<Selection> {
        let path = self.store.blob_path(digest);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let files: tree::Files = postcard::from_bytes(&bytes).map_err(|e| {
            Error::failed(format!("{} is damaged: {e}", path.display()))
                .next("tapeout fsck --repair removes it, and its rule picks again")
        })?;
        drop(bytes);
        // Made of all of them at once the map is half as large as of one after the other.
        Ok(files.0.into_iter().collect())
    }

    /// Picks: by the rule's own lists, or at `//base:tapeout` the closure over what joined.
    fn pick(&self, id: Id, own: Option<Digest>) -> Result<Selection> {
        let instance = &self.graph.instances[id];
        let Spec::Tapeout(spec) = &instance.spec else {
            return Err(Error::failed("not a tapeout rule"));
        };
        let mut snapshot = self.snapshot(id, None)?;
        snapshot.rules.extend(own.map(|own| (id, own)));
        let view = snapshot.stack(self.store, self.graph, &self.order)?;
        let deps =
            self.picks_from(id)?.iter().map(|digest| self.store.changeset(digest)).collect::<Result<Vec<Layer>>>()?;
        let own = own.map(|own| self.store.changeset(&own)).transpose()?;
        let request = tapeout::select::Request {
            spec,
            rule: &instance.label,
            deps: &deps,
            view: &view,
            files: self.store,
            own: own.as_ref(),
            package_folder: instance.folder.as_deref(),
        };
        let picked = tapeout::select::select(&request).map_err(|e| e.at(instance.place.clone(), ""))?;
        if self.is_base_tapeout(id) { self.close(id, picked, &view) } else { Ok(picked) }
    }

    /// The joint point: what it picked itself, and all that the image needs besides.
    fn close(&self, id: Id, mut picked: Selection, view: &Stack) -> Result<Selection> {
        // All rules below have run.
        self.store.sync_ahead();
        let joined = self.joined(id)?;
        let selections = joined.iter().map(|(_, digest, _)| self.read_selection(digest)).collect::<Result<Vec<_>>>()?;
        let layers: Vec<_> = joined
            .iter()
            .zip(&selections)
            .map(|((rule, _, libraries), selection)| tapeout::libraries::Layer { rule, libraries, selection })
            .collect();
        let closed = self.closed(self.image_of(id).map(|(_, image)| image), &layers, view)?;
        if selections.iter().map(Selection::len).sum::<usize>() > memory::MANY_FILES {
            drop(selections);
            memory::give_back();
        }
        for warning in &closed.warnings {
            self.report.event(Event::Note { text: warning });
        }
        picked.extend(closed.selection);
        Ok(picked)
    }

    /// What was taken out of an image although what is left in it can't be loaded without, and why.
    pub(super) fn missed(
        &self,
        id: Id,
        image: &Image,
        left: &[Selection],
        out: &BTreeSet<RootPath>,
        view: &Stack,
    ) -> Result<Vec<(RootPath, Why)>> {
        let rules = self.order.as_written(id).into_iter().map(|below| &self.graph.instances[below]);
        let rules: BTreeMap<&Label, &Libraries> = rules
            .filter_map(|instance| match &instance.spec {
                Spec::Tapeout(spec) => Some((&instance.label, &spec.libraries)),
                _ => None,
            })
            .collect();
        let labels: Vec<_> = self.selections_of(id)?.into_iter().map(|(label, _)| label).collect();
        let layers: Vec<_> = (labels.iter().zip(left))
            .map(|(rule, selection)| tapeout::libraries::Layer {
                rule,
                libraries: rules.get(rule).copied().unwrap_or(&Libraries::Search(true)),
                selection,
            })
            .collect();
        let required = self.closed(Some(image), &layers, view)?.required;
        Ok(required.into_iter().filter(|(path, _)| out.contains(path)).collect())
    }

    fn closed(
        &self,
        image: Option<&Image>,
        picked: &[tapeout::libraries::Layer],
        view: &Stack,
    ) -> Result<tapeout::libraries::Closed> {
        let below = image.map_or(Ok(None), |image| self.stands_on(image))?;
        let base = below.map(|below| self.read_selection(&below.files)).transpose()?;
        tapeout::libraries::close(&tapeout::libraries::Request {
            base: base.as_slice(),
            picked,
            view,
            files: self.store,
            user: image.map_or("", |image| image.user.as_str()),
            env: &image.map(|image| image.env.clone()).unwrap_or_default(),
            starts: &image.map(tapeout::program::candidates).unwrap_or_default(),
        })
    }

    /// What an instance's `run` changed; it runs now.
    fn changeset_of_run(&self, id: Id, turn: &Turn) -> Result<Option<Digest>> {
        match self.request(id)? {
            None => Ok(None),
            Some((request, snapshot)) => self.run_request(id, &request, &snapshot, turn).map(Some),
        }
    }
}

impl Files for Store {
    fn read(&self, changeset: &Digest, path: &RootPath) -> Result<std::fs::File> {
        Store::read(self, changeset, path)
    }
}
