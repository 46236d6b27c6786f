//! `tapeout log`

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::cli::args::{Global, Log as Args};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::label::Pattern;
use crate::report::{Event, Report};
use crate::store::Store;
use crate::store::runs::{Run, Whose};

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    whose: Whose,
    failed: bool,
    ended: u64,
    log: String,
}

/// Prints what the last run of a rule printed, whether it went well or not; one log for each set of
/// values that it ran under.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let (workspace, here) = context::workspace(global, &context::nothing_asked())?;
    let store = context::store(global)?;
    let mut label = Pattern::one_in(&args.label, &here)?;
    let mut runs = store.runs(&workspace.root, &label)?;
    if runs.is_empty() {
        // `:web` means the image, as elsewhere.
        let image = label.sibling(&format!("{}/build_image", label.name()))?;
        runs = store.runs(&workspace.root, &image)?;
        if !runs.is_empty() {
            label = image;
        }
    }
    let known = runs.len();
    for wanted in &args.parameters {
        let (name, value) = wanted.split_once('=').ok_or_else(|| {
            Error::request(format!("--parameter {wanted}: no =")).next("write --parameter LABEL=VALUE")
        })?;
        let name = Pattern::one_in(name, &here)?;
        runs.retain(|run| run.whose.parameters.get(&name).is_some_and(|found| text(found) == value));
    }
    if runs.is_empty() {
        let error = Error::request(format!("no run of {label} is known"));
        return Err(match known {
            0 => error
                .why("it was not built in this workspace, or it runs nothing: it only groups, or picks from what others made")
                .next(format!("tapeout build {label}")),
            _ => error.why("it ran under other values only").next(format!("see them: tapeout log {label}")),
        });
    }
    if global.json {
        let told = runs.iter().map(|run| {
            let bytes = std::fs::read(store.log_path(&run.log)).unwrap_or_default();
            let log = String::from_utf8_lossy(&bytes).into_owned();
            Told { whose: run.whose.clone(), failed: run.made.is_none(), ended: run.ended, log }
        });
        return ui::print_json(&told.collect::<Vec<_>>());
    }
    let progress = ui::Progress::start(&context::directory(global)?);
    for run in &runs {
        if runs.len() > 1 {
            ui::print(&format!("--- {}{}\n", run.whose, if run.made.is_none() { ", failed" } else { "" }));
        }
        one(&store, run, &progress)?;
    }
    Ok(())
}

fn one(store: &Store, run: &Run, report: &dyn Report) -> Result<()> {
    let path = store.log_path(&run.log);
    let silent = |why: &str| report.event(Event::Note { text: &format!("{}: {why}", run.whose) });
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            silent("it printed nothing: it runs no command, or its log was removed by tapeout gc");
            return Ok(());
        }
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        silent("it printed nothing");
    }
    print(file, &path)
}

/// As it is, but that a terminal gets no control character.
fn print(mut file: File, path: &Path) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !out.is_terminal() {
        return match std::io::copy(&mut file, &mut out) {
            // A reader that went away is no error.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("read", path, e)),
            _ => Ok(()),
        };
    }
    let mut lines = BufReader::new(file);
    let mut line = vec![];
    loop {
        line.clear();
        // A line without end is told in pieces.
        let mut piece = std::io::Read::take(&mut lines, 1 << 20);
        if piece.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, e))? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).replace("\r\n", "\n");
        if out.write_all(ui::clean(&text).as_bytes()).is_err() {
            return Ok(());
        }
    }
}

/// A value as one types it.
fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
