//! `tapeout gc`

use crate::cli::args::{Gc as Args, Global};
use crate::cli::{context, ui};
use crate::error::Result;
use crate::report::{Event, Report};
use crate::store::gc;

/// Removes what no build has used for a while.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let path = context::store_path(global)?;
    let progress = ui::Progress::start(&context::directory(global)?);
    let waiting = || progress.event(Event::Note { text: "the store is in use: waiting until it is not" });
    let collected = gc::collect(&path, args.all, args.dry_run, waiting)?;
    if global.json {
        return ui::print_json(&collected);
    }
    let count = |kind: &str| collected.removed.get(kind).copied().unwrap_or(0);
    let results = count("actions") + count("unsynced");
    let others = collected.removed.values().sum::<u64>() - count("blobs") - count("changesets") - results;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    ui::print(&format!(
        "{verb}: {}, {}, {}, {others} other; {} {}, {} kept",
        counted(count("blobs"), "blob"),
        counted(count("changesets"), "changeset"),
        counted(results, "result"),
        if args.dry_run { "would free" } else { "freed" },
        ui::size(collected.freed),
        ui::size(collected.kept),
    ));
    Ok(())
}

fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
