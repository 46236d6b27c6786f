//! `tapeout image unpack`

use std::path::Path;

use super::find;
use crate::cli::args::{Ask, Global};
use crate::cli::{context, ui};
use crate::error::Result;
use crate::image::config::epoch_of;
use crate::image::unpack::unpack;

/// Unpacks an image into a folder, and says what an ordinary user could not make.
pub fn run(global: &Global, ask: &Ask, image: &str, to: &Path) -> Result<()> {
    let found = find(global, ask, image)?;
    let to = context::directory(global)?.join(to);
    let unpacked = unpack(&found.image, &to, epoch_of(&found.image.config.1).unwrap_or(0))?;
    if global.json {
        return ui::print_json(&unpacked);
    }
    let mut text = format!("{} paths in {}\n", unpacked.paths, to.display());
    let mut tell = |n: usize, what: &str, first: Option<String>| {
        if let Some(first) = first {
            text.push_str(&format!("{n} {what}: {first}{}\n", if n > 1 { ", …" } else { "" }));
        }
    };
    let owner = unpacked.owners.first().map(|(path, uid, gid)| format!("{path} ({uid}:{gid})"));
    tell(unpacked.owners.len(), "belong to you and not to whom they belong in the image", owner);
    tell(unpacked.devices.len(), "are empty files in place of devices", unpacked.devices.first().cloned());
    tell(unpacked.attributes.len(), "lack attributes that you may not set", unpacked.attributes.first().cloned());
    ui::print(&text);
    Ok(())
}
