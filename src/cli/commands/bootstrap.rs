//! `tapeout bootstrap`

use crate::build_file::workspace::Workspace;
use crate::builder::From;
use crate::cli::args::{Ask, Bootstrap as Args, Global};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::execute::base::{Base, Settings, Wanted};
use crate::execute::build::{Build, Options};
use crate::execute::room;
use crate::graph;
use crate::label::Label;
use crate::report::Report;
use crate::store::Store;

/// Makes a builder, or says that it is there.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let directory = context::directory(global)?;
    let store = context::store(global)?;
    // A tag that can't be one is refused before anything is downloaded or built.
    store.builder(&args.tag)?;
    let progress = ui::Progress::start(&directory);
    match args.from.as_deref().map(str::parse) {
        Some(Ok(From::Rule(label))) => of_rule(global, args, &store, &label, &progress)?,
        _ => of_source(global, args, &store, &progress)?,
    }
    store.sync()?;
    if let Some(builder) = store.builder(&args.tag)? {
        if global.json {
            return ui::print_json(&builder);
        }
        ui::print(&format!("builder {} is ready: {}, {} packages", builder.tag, builder.from, builder.packages.len()));
    }
    Ok(())
}

fn settings(global: &Global, args: &Args) -> Result<Settings> {
    let directory = context::directory(global)?;
    Ok(Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        locked: args.locked,
        offline: global.offline,
        keychain: context::keychain(),
        update: args.update,
        ..Settings::default()
    })
}

/// From a rule of the workspace that one stands in, which is built first.
fn of_rule(global: &Global, args: &Args, store: &Store, label: &Label, report: &dyn Report) -> Result<()> {
    if args.update || !args.include.is_empty() {
        return Err(Error::request(format!("{label} says itself what is in the builder"))
            .next("leave --include and --update out; packages of the rule go into its build file"));
    }
    let request = context::request(global, &Ask::default(), &[label.to_string()])?;
    let wanted = super::build::wanted(&request.workspace);
    if wanted.config.tag == args.tag {
        return Err(Error::request(format!("{label} is built in the builder {}, and can't take its place", args.tag))
            .next("give the new one another tag"));
    }
    let mut graph = graph::kept::analyse(store, &request)?;
    let requested = std::mem::take(&mut graph.requested);
    let [id] = requested[..] else {
        return Err(Error::request(format!("{label} names {} rules", requested.len())).next("name one"));
    };
    let base = Base::ready(store, wanted, &settings(global, args)?, report)?;
    let options = Options {
        jobs: super::build::processors(),
        offline: global.offline,
        ..super::build::as_is(&request.workspace, &base)
    };
    let build = Build::new(store, &graph, &base, &options, report);
    let built = build.run();
    base.save_lock()?;
    built?;
    store.keep_builder(&build.as_builder(id, &args.tag, &format!("rule:{label}"))?)
}

/// From packages, an image, a folder, or this machine.
fn of_source(global: &Global, args: &Args, store: &Store, report: &dyn Report) -> Result<()> {
    let directory = context::directory(global)?;
    let workspace = Workspace::find(&directory).ok();
    let ours = workspace.as_ref().filter(|w| w.builder.as_ref().is_none_or(|b| b.tag == args.tag));
    let mut config = ours.and_then(|w| w.builder.clone()).unwrap_or_else(Base::default_config);
    config.tag = args.tag.clone();
    if let Some(from) = &args.from {
        config.from = Some(from.clone());
    }
    config.packages.extend(args.include.iter().cloned());
    // The lock of a builder that is no workspace's lies beside it.
    let lock_path = match ours {
        Some(workspace) => workspace.root.join("tapeout.lock"),
        None => store.path().join("builders").join(format!("{}.lock", args.tag)),
    };
    let wanted = Wanted { config, epoch: ours.and_then(|w| w.epoch), folder: &directory, lock_path };
    let settings = Settings { renew: true, ..settings(global, args)? };
    Base::ready(store, wanted, &settings, report)?;
    if room::is_open() {
        room::tell(store, report)?;
    }
    Ok(())
}
