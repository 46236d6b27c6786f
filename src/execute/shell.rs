//! A shell where a rule runs: in what it sees, in what it left when it failed, or in a finished image.
//! What is changed there is thrown away.

use crate::build_file::spec::{Id, Spec, Step};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::Request;
use crate::execute::{check, room, rule};
use crate::sandbox;
use crate::store::runs::Whose;
use crate::store::{Scratch, Store};
use crate::tree::Stack;

/// A place to look around in.
pub struct Room {
    /// What is to be run: `steps` and `standard` are the caller's to fill in.
    pub spec: sandbox::Spec,
    /// What it is, for people.
    pub what: String,
    /// Its folders, removed at the end.
    _folders: Folders,
}

/// What a place lies in.
enum Folders {
    Scratch { _it: Scratch },
    Room { _it: room::Room },
}

impl Build<'_> {
    /// Runs all that an instance stands on, and an image itself.
    pub fn run_for_shell(&self, id: Id) -> Result<()> {
        let image = matches!(self.graph.instances[id].spec, Spec::Image(_));
        let below = self.order.below(id);
        self.run_some(|other| below.contains(other) || (image && other == id))
    }

    /// The place that an instance sees; all below it must have run.
    pub fn room(&self, id: Id) -> Result<Room> {
        let instance = &self.graph.instances[id];
        let label = &instance.label;
        match &instance.spec {
            Spec::Image(image) => {
                let built = self.built(id)?;
                let files = self.read_selection(&built.files)?;
                let (scratch, spec) = check::finished(self.store, image, &built.user, &files, self.options.epoch)?;
                Ok(Room { spec, what: format!("the image {label}"), _folders: Folders::Scratch { _it: scratch } })
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
                let room = room::Room::of(self.store, &stack)?;
                let mut spec = rule::spec(self.store, &request, &stack, &room)?;
                // The host's network is for labels that the command line names, here as in a build.
                spec.network = request.network && self.options.allow_network.contains(label) && !self.options.offline;
                spec.limits.time = None;
                Ok(Room { spec, what: format!("what {label} sees"), _folders: Folders::Room { _it: room } })
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
    let stack = Stack(stack.iter().map(|digest| store.changeset(digest)).collect::<Result<_>>()?);
    let room = room::Room::with_left(store, &stack, left.upper)?;
    let spec = sandbox::Spec {
        env: request.env,
        cwd: request.working_dir,
        uid: request.user.0,
        gid: request.user.1,
        ..room.spec()?
    };
    Ok(Some(Room {
        spec,
        what: format!("what {} left when it failed", whose.label),
        _folders: Folders::Room { _it: room },
    }))
}

/// What runs where no command was named: bash where there is one, since it edits lines.
pub fn default_shell() -> Step {
    let script = "if [ -x /bin/bash ]; then exec /bin/bash; fi; exec /bin/sh";
    Step::Argv(["/bin/sh", "-c", script].map(str::to_string).to_vec())
}
