//! `tapeout lock`

use std::collections::BTreeSet;

use serde::Serialize;

use crate::builder::lock_file::Lock;
use crate::cli::args::{Ask, Global, Lock as Args};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::execute::base::{Base, Settings};
use crate::execute::snapshot;
use crate::graph;
use crate::report::counted;

/// One package whose version is another one now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Changed {
    package: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<String>,
}

/// Completes the lock for all of the workspace, or renews it; says which versions changed.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let ask = Ask { parameters: vec![], paths: vec![], inputs: vec![] };
    let request = context::request(global, &ask, &["//...".to_string()])?;
    // A workspace that has no package yet has a builder all the same.
    let store = context::store(global)?;
    let graph = graph::kept::analyse(&store, &request)?;
    let directory = context::directory(global)?;
    let progress = ui::Progress::start(&directory);
    let path = request.workspace.root.join("tapeout.lock");
    let before = Lock::read(&path)?;
    let settings = Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        offline: global.offline,
        update: args.update.is_some(),
        update_only: args.update.clone().unwrap_or_default(),
        only_lock: true,
        ..Settings::default()
    };
    let base = Base::planned(&store, super::build::wanted(&request.workspace), &settings, &progress)?;
    for (id, instance) in graph.instances.iter().enumerate().filter(|(_, instance)| !instance.packages.is_empty()) {
        if snapshot::is_base_build(&graph, id) {
            base.packages_of(&instance.packages, &crate::report::Silent)?;
        }
    }
    let Some(after) = base.lock() else {
        return Err(Error::request("the builder of this workspace has no lock")
            .why("only a builder from debian:SUITE has one")
            .next("write from = \"debian:bookworm\" below [builder] in tapeout.toml"));
    };
    base.save_lock()?;
    store.sync()?;
    let changed = changes(before.as_ref(), &after);
    if global.json {
        return ui::print_json(&changed);
    }
    let mut text = String::new();
    for Changed { package, was, now } in &changed {
        text.push_str(&match (was, now) {
            (Some(was), Some(now)) => format!("  {package}  {was} -> {now}\n"),
            (None, Some(now)) => format!("+ {package}  {now}\n"),
            (Some(was), None) => format!("- {package}  {was}\n"),
            (None, None) => String::new(),
        });
    }
    let same = after.packages.len() - changed.iter().filter(|changed| changed.now.is_some()).count();
    ui::print(&format!("{text}{}: {} as before", path.display(), counted(same, "package")));
    Ok(())
}

fn changes(before: Option<&Lock>, after: &Lock) -> Vec<Changed> {
    let version = |lock: Option<&Lock>, name: &str| Some(lock?.packages.get(name)?.version.clone());
    let names: BTreeSet<&String> =
        before.iter().flat_map(|lock| lock.packages.keys()).chain(after.packages.keys()).collect();
    names
        .into_iter()
        .map(|name| Changed { package: name.clone(), was: version(before, name), now: version(Some(after), name) })
        .filter(|changed| changed.was != changed.now)
        .collect()
}
