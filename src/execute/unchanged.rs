//! A build with nothing to do, told without looking at any of its rules.
//!
//! A build that left the store and the outputs as it found them is recorded beside the kept graph: all that it
//! looked at, what it used, and what it said. While all of that stands, the next build of the same request would
//! find and say the same, so it does that at once. It stands while
//!
//! - the graph says the same to a build, whatever was edited in build files, and the builder and its lock are the same;
//! - the sources, and the folder with images where there are some, have the times that they had ([`Stamps`]);
//! - nothing was added to the store or removed from it, by whomever, and all changesets are there.
//!
//! Whatever can't be told so (secrets on the command line, a pod, whose bundle is written each time, a builder that is
//! this machine, times that are too fresh) is built in the ordinary way, and so is everything after a doubt: that
//! costs time, and never a wrong answer.

use std::path::PathBuf;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::build_file::seen::Stamps;
use crate::build_file::spec::{Archive, Git, Graph, Instance, Source, Spec};
use crate::digest::Digest;
use crate::error::Result;
use crate::execute::base::Base;
use crate::execute::build::Options;
use crate::execute::room;
use crate::graph::{self, Request};
use crate::report::{Event, Report};
use crate::store::Store;

/// Raised when the same build would be told by another record.
const FORMAT: u32 = 2;

/// Names a request, and what else its outcome depends on that no stamp tells.
pub fn key(request: &Request, others: &impl std::fmt::Debug) -> Result<Digest> {
    let workspace = &request.workspace;
    let told = (&workspace.root, &workspace.builder, workspace.epoch, &workspace.inputs, others);
    Ok(Digest::of(format!("tapeout unchanged {FORMAT} {}\n{told:?}", graph::kept::key_of(request)?)))
}

/// A build that is watched, from before it begins.
pub struct Watch<'a> {
    store: &'a Store,
    key: Digest,
    plan: Digest,
    stamps: Stamps,
    base: Digest,
}

/// What a build that did nothing found.
#[derive(Serialize, Deserialize)]
pub struct Record {
    base: Digest,
    /// Of the graph.
    plan: Digest,
    stamps: Stamps,
    /// All of the store that it used, and what of it are changesets.
    used: Vec<Digest>,
    changesets: Vec<Digest>,
    said: Vec<Said>,
    /// What it came to, as JSON.
    pub outcomes: String,
}

#[derive(Serialize, Deserialize)]
enum Said {
    Done { verb: String, what: String, detail: String },
    Note(String),
}

impl<'a> Watch<'a> {
    /// Before anything is read. `None`: later it couldn't be told whether all is as it was.
    pub fn begin(
        store: &'a Store,
        key: Digest,
        plan: Option<Digest>,
        graph: &Graph,
        base: &Base,
        options: &Options,
    ) -> Option<Self> {
        if !options.secrets.is_empty() || room::is_open() {
            return None;
        }
        let mut watch = Self { store, key, plan: plan?, stamps: Stamps::default(), base: base.identity()? };
        let at_rest = store.told_by().iter().all(|folder| watch.stamps.take_folder(folder))
            && graph.instances.iter().enumerate().all(|(id, instance)| {
                let label = &instance.label;
                let written = || options.output.join(label.package().path()).join(label.name());
                let written = graph.requested.contains(&id).then(written);
                watch.takes(instance, written, options).unwrap_or(false)
            });
        at_rest.then_some(watch)
    }

    /// Stamps of what is read for an instance, build files left out; `None`: that can't be told.
    fn takes(&mut self, instance: &Instance, written: Option<PathBuf>, options: &Options) -> Option<bool> {
        let below = |path: &String| Some(instance.folder.as_deref()?.join(path));
        let paths: Option<Vec<PathBuf>> = match &instance.spec {
            Spec::Rule(rule) => rule
                .sources
                .iter()
                .filter_map(|source| match source {
                    Source::Path(path) => Some(below(path)),
                    Source::Input(name) => Some(options.inputs.get(name).cloned()),
                    // By digest.
                    Source::Fetched(_) | Source::Wheel(_) => None,
                })
                .collect(),
            // What is unpacked is known by its digest or commit.
            Spec::Archive(Archive { patches, .. }) | Spec::Git(Git { patches, .. }) => {
                patches.iter().map(below).collect()
            }
            Spec::Tapeout(tapeout) => tapeout.files.iter().filter_map(|file| file.source.as_ref()).map(below).collect(),
            // Written out where it was asked for.
            Spec::Image(_) => Some(written.into_iter().collect()),
            Spec::Pod(_) => None,
        };
        Some(paths?.iter().all(|path| self.stamps.take(path)))
    }

    /// After the build: records it, if it did nothing. A record that can't be kept is made by the next one.
    pub fn end(self, base: &Base, said: Recorder, outcomes: &str) {
        if base.identity() != Some(self.base) || !self.stamps.hold() {
            return;
        }
        let used: Vec<_> = self.store.all_used().into_iter().collect();
        let record = Record {
            base: self.base,
            plan: self.plan,
            stamps: self.stamps,
            changesets: used.iter().filter(|digest| self.store.has_changeset(digest)).copied().collect(),
            used,
            said: said.said.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
            outcomes: outcomes.to_string(),
        };
        if let Ok(bytes) = postcard::to_stdvec(&record) {
            let _ = self.store.keep_graph(&self.key, &[&bytes]);
        }
    }
}

/// The record of such a build, if all but the graph and the builder stands as it was.
pub fn recall(store: &Store, key: &Digest) -> Option<Record> {
    let record: Record = postcard::from_bytes(&store.kept_graph(key)?).ok()?;
    let stands = record.stamps.hold() && record.changesets.iter().all(|changeset| store.has_changeset(changeset));
    stands.then_some(record)
}

impl Record {
    /// Was it a build of this graph?
    pub fn is_of(&self, plan: &Digest) -> bool {
        self.plan == *plan
    }

    /// Is it the same builder?
    pub fn stands_on(&self, base: &Base) -> bool {
        base.identity() == Some(self.base)
    }

    /// Says what the build said, and what it used.
    pub fn tell(&self, store: &Store, report: &dyn Report) {
        self.used.iter().for_each(|digest| store.used(digest));
        for said in &self.said {
            report.event(match said {
                Said::Done { verb, what, detail } => Event::Done { verb, what, detail },
                Said::Note(text) => Event::Note { text },
            });
        }
    }
}

/// Hears what a build says, and passes it on.
pub struct Recorder<'a> {
    report: &'a dyn Report,
    said: Mutex<Vec<Said>>,
}

impl<'a> Recorder<'a> {
    /// Passes it on to this one.
    pub fn new(report: &'a dyn Report) -> Self {
        Self { report, said: Mutex::default() }
    }
}

impl Report for Recorder<'_> {
    fn event(&self, event: Event<'_>) {
        let said = match event {
            Event::Done { verb, what, detail } => {
                Some(Said::Done { verb: verb.to_string(), what: what.to_string(), detail: detail.to_string() })
            }
            Event::Note { text } => Some(Said::Note(text.to_string())),
            _ => None,
        };
        self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(said);
        self.report.event(event);
    }
}
