//! `tapeout fetch`

use std::collections::BTreeSet;

use crate::cli::args::{Fetch as Args, Global};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::execute::base::{Base, Settings};
use crate::execute::build::{Build, Options};
use crate::execute::wants;
use crate::graph;
use crate::report::{Event, Report, counted};
use crate::store::inputs::{self, Config, Input, Inputs};

/// Brings what the labels need from outside into the store, and writes it into a file.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let request = context::request(global, &args.ask, &args.labels)?;
    let store = context::store(global)?;
    let graph = graph::kept::analyse(&store, &request)?;
    let directory = context::directory(global)?;
    let progress = ui::Progress::start(&directory);
    let settings = Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        locked: args.locked,
        offline: global.offline,
        keychain: context::keychain(),
        only_lock: true,
        ..Settings::default()
    };
    let base = Base::planned(&store, super::build::wanted(&request.workspace), &settings, &progress)?;
    let options = Options { offline: global.offline, ..super::build::as_is(&request.workspace, &base) };
    let build = Build::new(&store, &graph, &base, &options, &progress);
    let wants = wants::of(&build)?;
    let fetched = wants::bring(&build, &wants)?;
    base.save_lock()?;
    let mut all = fetched.inputs;
    let bytes = |inputs: &BTreeSet<Input>| inputs.iter().map(|input| input.size).sum::<u64>();
    let Some(output) = &args.output else {
        store.sync()?;
        let detail = format!("{}, {}", counted(all.len(), "input"), ui::size(bytes(&all)));
        progress.event(Event::Done { verb: "fetched", what: &args.labels.join(" "), detail: &detail });
        return Ok(());
    };
    let mut left_out = vec![];
    all.extend(base.lock_inputs(&mut |what| left_out.push(what))?);
    for what in left_out {
        progress.event(Event::Note { text: &format!("left out: {what}") });
    }
    let before: Vec<_> = args.since.iter().map(|path| directory.join(path)).collect();
    let since = Inputs::open(&before)?;
    let known: BTreeSet<_> = since.all().map(|input| input.digest).collect();
    all.retain(|input| !known.contains(&input.digest));
    let mut labels = args.labels.clone();
    labels.sort();
    labels.dedup();
    let config = Config {
        format_version: inputs::FORMAT,
        architecture: std::env::consts::ARCH.into(),
        labels,
        left_out: fetched.left_out.into_iter().collect(),
        since: since.manifests(),
    };
    let to = directory.join(output);
    if to.is_dir() {
        return Err(Error::request(format!("{} is a folder", to.display())).next("name a file: -o inputs.oci.tar"));
    }
    let size = inputs::write(&to, &config, &all, &|digest| store.blob(digest))?;
    store.sync()?;
    let detail = format!("{}, {}", counted(all.len(), "input"), ui::size(size));
    progress.event(Event::Done { verb: "wrote", what: &to.display().to_string(), detail: &detail });
    if global.json {
        ui::print_json(&serde_json::json!({ "path": to, "inputs": all.len(), "size": size }))?;
    }
    Ok(())
}
