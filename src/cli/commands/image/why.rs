//! `tapeout image why`

use super::with_label;
use crate::cli::args::{Ask, Global};
use crate::cli::ui;
use crate::error::{Error, Result};
use crate::tapeout::why;
use crate::tree::RootPath;

/// Says why a file is in an image: the rule, and the chain of what needed what.
pub fn run(global: &Global, ask: &Ask, image: &str, path: Option<&str>) -> Result<()> {
    if let Some(("oci" | "oci-archive" | "docker-archive" | "docker", _)) = image.split_once(':') {
        return Err(Error::request(format!("{image} is an image alone, which doesn't hold its reasons"))
            .why("they are kept in the store of the machine that built it, by label")
            .next("name the image by its label: tapeout image why //path/to/package:name"));
    }
    with_label(global, ask, image, |build, _, id, label| {
        let brought = build.brought(id).map_err(|e| e.next(format!("tapeout build {label}")))?;
        let layers: Vec<_> = brought.iter().map(|(label, selection)| (label, selection)).collect();
        match path {
            Some(path) => {
                let at = RootPath::new(path)?;
                let mut reasons = why::chain(&layers, &at);
                if reasons.is_empty() {
                    let base = build.base_with(id, &at)?;
                    let reason =
                        |base| why::Reason { path: at.to_string(), rule: label.clone(), why: format!("base {base}") };
                    reasons.extend(base.map(reason));
                }
                chain(global, &reasons, label, path)
            }
            None => all(global, &layers),
        }
    })
}

fn chain(global: &Global, reasons: &[why::Reason], label: &crate::label::Label, path: &str) -> Result<()> {
    if reasons.is_empty() {
        return Err(Error::request(format!("{path} is not in {label}"))
            .next(format!("see all that is: tapeout image why {label}")));
    }
    if global.json {
        return ui::print_json(&reasons);
    }
    let lines: Vec<_> = reasons
        .iter()
        .enumerate()
        .map(|(i, r)| format!("{}{}  {}  ({})", "  ".repeat(i), r.path, ui::line(&r.why), r.rule))
        .collect();
    ui::print(&lines.join("\n"));
    Ok(())
}

fn all(global: &Global, layers: &[(&crate::label::Label, &crate::tree::Selection)]) -> Result<()> {
    let mut rows = vec![];
    for (label, selection) in layers {
        for (path, picked) in selection.iter().filter(|(_, p)| p.entry.as_ref().is_some_and(|e| !e.is_folder())) {
            rows.push((path.to_string(), label.to_string(), picked.why.to_string()));
        }
    }
    if global.json {
        return ui::print_json(&rows);
    }
    let lines: Vec<_> =
        rows.iter().map(|(path, label, why)| format!("{}  {}  ({label})", ui::line(path), ui::line(why))).collect();
    ui::print(&lines.join("\n"));
    Ok(())
}
