//! `tapeout init`

use std::fs::File;
use std::io::Write;

use crate::build_file::workspace::FILE;
use crate::cli::args::Global;
use crate::cli::{context, ui};
use crate::error::{Error, Result};

const TEXT: &str = "\
# This folder is a workspace: each folder below it that has a build.star is a package.
[builder]
tag = \"bookworm\"
from = \"debian:bookworm\"
";

/// Writes a `tapeout.toml`.
pub fn run(global: &Global) -> Result<()> {
    let path = context::directory(global)?.join(FILE);
    let mut file = File::create_new(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::request(format!("{} is there already", path.display()))
            .next("this is a workspace: tapeout list shows its rules"),
        _ => Error::io("create", &path, e),
    })?;
    file.write_all(TEXT.as_bytes()).map_err(|e| Error::io("write", &path, e))?;
    ui::print(&format!(
        "{} is written; add a package: docs/build-files.md, or the tutorial in README.md",
        path.display()
    ));
    Ok(())
}
