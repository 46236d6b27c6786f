//! `tapeout bootstrap`

use crate::build_file::workspace::Workspace;
use crate::cli::args::{Bootstrap as Args, Global};
use crate::cli::{context, ui};
use crate::error::Result;
use crate::execute::base::{Base, Settings, Wanted};
use crate::execute::room;

/// Makes a builder, or says that it is there.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let directory = context::directory(global)?;
    let store = context::store(global)?;
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
    let settings = Settings {
        mirror: args.mirror.clone(),
        keyring: args.keyring.as_ref().map(|path| directory.join(path)),
        locked: args.locked,
        offline: global.offline,
        keychain: context::keychain(),
        dry: false,
        update: args.update,
        ..Settings::default()
    };
    let wanted = Wanted { config, epoch: ours.and_then(|w| w.epoch), folder: &directory, lock_path };
    // A tag that can't be one is refused before anything is downloaded.
    store.builder(&args.tag)?;
    let progress = ui::Progress::start(&directory);
    Base::ready(&store, wanted, &settings, &progress)?;
    if room::is_open() {
        room::tell(&store, &progress)?;
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
