//! `tapeout pod …`

use std::path::{Path, PathBuf};

use crate::build_file::workspace::Workspace;
use crate::cli::args::Global;
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::label::{Package, Pattern};
use crate::pod::carried::{self, Checked};

/// Makes one file of a bundle.
pub fn pack(global: &Global, bundle: &str, output: &Path) -> Result<()> {
    let directory = context::directory(global)?;
    let from = folder(&directory, bundle)?;
    let checked = carried::pack(&from, &directory.join(output))?;
    tell(global, &checked, &format!("packed into {}", output.display()))
}

/// Checks a bundle.
pub fn verify(global: &Global, bundle: &Path) -> Result<()> {
    let checked = carried::verify(&context::directory(global)?.join(bundle))?;
    tell(global, &checked, "whole")
}

fn tell(global: &Global, checked: &Checked, what: &str) -> Result<()> {
    if global.json {
        return ui::print_json(checked);
    }
    let Checked { name, label, digest, files, bytes } = checked;
    ui::print(&format!("pod {name} of {} is {what}: {files} files, {}, {digest}", ui::clean(label), ui::size(*bytes)));
    Ok(())
}

/// A folder, or where the bundle of a label lies.
fn folder(directory: &Path, bundle: &str) -> Result<PathBuf> {
    let path = directory.join(bundle);
    if !bundle.starts_with("//") && !bundle.starts_with(':') {
        return match path.is_dir() {
            true => Ok(path),
            false => Err(Error::request(format!("there is no folder {bundle}"))
                .next("name a bundle's folder, or the label of a pod: //shop:shop")),
        };
    }
    let workspace = Workspace::find(directory)?;
    let below = directory.strip_prefix(&workspace.root).unwrap_or(Path::new(""));
    let here = below.to_str().and_then(|below| Package::new(below).ok()).map_or_else(|| Package::new(""), Ok)?;
    let name = if bundle.ends_with("/build_pod") { bundle.to_string() } else { format!("{bundle}/build_pod") };
    let label = Pattern::one_in(&name, &here)?;
    let folder = workspace.root.join("tapeout-out").join(label.package().path()).join(label.name());
    match folder.is_dir() {
        true => Ok(folder),
        false => Err(Error::request(format!("{label} has not been built into {}", folder.display()))
            .next(format!("tapeout build {label}, or name the folder that holds its bundle"))),
    }
}
