//! A shell where a rule runs: in what it sees, in what it left when it failed, or in a finished image.
//! What is changed there is thrown away.

use std::fs;
use std::path::PathBuf;

use crate::build_file::spec::{Id, Spec, Step};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::Request;
use crate::execute::{check, rule};
use crate::sandbox;
use crate::store::runs::Whose;
use crate::store::{Scratch, Store};

/// A place to look around in.
pub struct Room {
    /// What is to be run: `steps` and `standard` are the caller's to fill in.
    pub spec: sandbox::Spec,
    /// What it is, for people.
    pub what: String,
    /// Its folders, removed at the end.
    _scratch: Scratch,
}

impl Build<'_> {
    /// Runs all that an instance stands on, and an image itself.
    pub fn run_for_shell(&self, id: Id) -> Result<()> {
        let image = matches!(self.graph.instances[id].spec, Spec::Image(_));
        self.run_some(|other| self.order.below[id].contains(&other) || (image && other == id))
    }

    /// The place that an instance sees; all below it must have run.
    pub fn room(&self, id: Id) -> Result<Room> {
        let instance = &self.graph.instances[id];
        let label = &instance.label;
        match &instance.spec {
            Spec::Image(image) => {
                let user = self.built(id)?.user;
                let (scratch, spec) = check::room(self.store, image, user, &self.image_files(id)?, self.options.epoch)?;
                Ok(Room { spec, what: format!("the image {label}"), _scratch: scratch })
            }
            _ => {
                let (request, snapshot) = self.request(id)?.ok_or_else(|| {
                    Error::request(format!("{label} runs nothing"))
                        .why(
                            "it only groups, unpacks, or picks from what others made, so there is nothing that it sees",
                        )
                        .next("name a rule that has a run, or an image")
                })?;
                let stack = snapshot.stack(self.store, self.graph, &self.order)?;
                let scratch = self.store.scratch()?;
                fs::create_dir(scratch.path().join("upper"))
                    .map_err(|e| Error::io("mkdir", scratch.path().join("upper"), e))?;
                let mut spec = rule::spec(self.store, &request, &stack, &scratch)?;
                // The host's network is for labels that the command line names, here as in a build.
                spec.network = request.network && self.options.allow_network.contains(label) && !self.options.offline;
                spec.limits.time = None;
                Ok(Room { spec, what: format!("what {label} sees"), _scratch: scratch })
            }
        }
    }
}

/// What the last run of a rule left, if it failed.
pub fn left(store: &Store, whose: &Whose) -> Result<Option<Room>> {
    let Some(left) = store.left(whose) else { return Ok(None) };
    let damaged = || Error::failed(format!("what {} left can't be read", whose.label)).next("build it again");
    let (request, stack): (Request, Vec<Digest>) = serde_json::from_slice(&left.about).map_err(|_| damaged())?;
    if let Some(gone) = stack.iter().find(|digest| !store.has_changeset(digest)) {
        return Err(Error::failed(format!("what {} stood on is not in the store any more", whose.label))
            .why(format!("changeset {} was removed", gone.short()))
            .next(format!("tapeout build {}", whose.label)));
    }
    let scratch = store.scratch()?;
    let mut lower: Vec<PathBuf> = vec![];
    for (at, digest) in stack.iter().enumerate() {
        // The kernel stacks a folder once: the highest place counts.
        if !stack[at + 1..].contains(digest) {
            lower.push(store.changeset_files_path(digest));
        }
    }
    lower.push(left.upper);
    let spec = sandbox::Spec {
        lower,
        upper: scratch.folder("upper")?,
        work: scratch.folder("work")?,
        root: scratch.folder("root")?,
        tmp: scratch.folder("tmp")?,
        env: request.env,
        cwd: request.working_dir,
        uid: request.user.0,
        gid: request.user.1,
        hostname: "tapeout".to_string(),
        ..sandbox::Spec::default()
    };
    Ok(Some(Room { spec, what: format!("what {} left when it failed", whose.label), _scratch: scratch }))
}

/// What runs where no command was named: bash where there is one, since it edits lines.
pub fn default_shell() -> Step {
    let script = "if [ -x /bin/bash ]; then exec /bin/bash; fi; exec /bin/sh";
    Step::Argv(["/bin/sh", "-c", script].map(str::to_string).to_vec())
}
