//! `tapeout fsck`

use crate::cli::args::{Fsck as Args, Global};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::report::{Event, Report};
use crate::store::{Store, fsck};

/// Checks the store, and removes what is damaged if that is asked for.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let path = context::store_path(global)?;
    let progress = ui::Progress::start(&context::directory(global)?);
    let store = if args.repair {
        let waiting = || progress.event(Event::Note { text: "the store is in use: waiting until it is not" });
        Store::open_alone(&path, waiting)?
    } else {
        Store::open(&path)?
    };
    let checked = fsck::check(&store, &progress)?;
    if args.repair {
        fsck::repair(&store, &checked.damaged)?;
    }
    if global.json {
        ui::print_json(&checked)?;
    } else {
        let mut text = String::new();
        for damage in &checked.damaged {
            let name = damage.path.file_name().unwrap_or_default().to_string_lossy();
            let of = if damage.of.is_empty() { String::new() } else { format!("  of {}", damage.of.join(", ")) };
            text.push_str(&format!("damaged  {} {name}{of}\n", damage.kind));
            for why in &damage.why {
                text.push_str(&format!("         {}\n", ui::clean(why)));
            }
        }
        let removed = if args.repair && !checked.damaged.is_empty() { ", and removed" } else { "" };
        text.push_str(&format!("{} checked, {} damaged{removed}", checked.checked, checked.damaged.len()));
        ui::print(&text);
    }
    if checked.damaged.is_empty() || args.repair {
        return Ok(());
    }
    Err(Error::failed(format!("the store {} is damaged", path.display()))
        .next("remove what is damaged, so that it is made again: tapeout fsck --repair"))
}
