//! `tapeout image diff`

use super::find;
use crate::cli::args::{Ask, Global};
use crate::cli::ui;
use crate::error::{Error, Result};
use crate::image::diff::{Diff, Differing, diff};

/// Holds two images against each other; where they differ it is an error, as with diff(1).
pub fn run(global: &Global, ask: &Ask, a: &str, b: &str) -> Result<()> {
    let (a, b) = (find(global, ask, a)?, find(global, ask, b)?);
    let scratch = a.store.scratch()?;
    let diff = diff(&a.image, &b.image, scratch.path())?;
    if global.json {
        ui::print_json(&diff)?;
    } else {
        print(&diff);
    }
    if diff.same {
        return Ok(());
    }
    if diff.files.is_empty() && diff.settings.is_empty() {
        return Err(Error::failed(format!("{} and {} are not the same image", a.shown, b.shown))
            .why("they differ in how their layers are written: times, order, compression, or in annotations"));
    }
    Err(Error::failed(format!("{} and {} differ", a.shown, b.shown)))
}

fn print(diff: &Diff) {
    if diff.same {
        return ui::print("the same image");
    }
    let mut text = String::new();
    if !diff.files.is_empty() {
        let rows: Vec<_> = diff.files.iter().map(row).collect();
        text.push_str(&ui::table(&["", ">SIZE", ">CHANGE", "OWNER", "MODE", "LAYER", "PATH", ""], &rows));
        text.push('\n');
    }
    if !diff.settings.is_empty() {
        let rows: Vec<_> =
            diff.settings.iter().map(|s| vec![s.name.clone(), s.a.to_string(), "->".into(), s.b.to_string()]).collect();
        text.push_str(&ui::table(&["SETTING", "", "", ""], &rows));
        text.push('\n');
    }
    let size = |size: Option<u64>| size.map_or("-".to_string(), ui::size);
    let rows: Vec<_> = diff
        .layers
        .iter()
        .map(|pair| {
            let how = match (pair.same, pair.a.is_some() && pair.b.is_some(), pair.differing) {
                (true, ..) => "same".to_string(),
                (false, true, 0) => "the same files: their times or order differ".to_string(),
                (false, _, n) => format!("{n} files differ"),
            };
            vec![pair.rule.clone(), size(pair.a), size(pair.b), how]
        })
        .collect();
    text.push_str(&ui::table(&["LAYER", ">FIRST", ">SECOND", ""], &rows));
    if diff.files.is_empty() {
        text.push_str("\nthe files are the same\n");
        return ui::print(&text);
    }
    let count = |how: &str| diff.files.iter().filter(|file| file.how[0] == how).count();
    let (added, removed) = (count("added"), count("removed"));
    text.push_str(&format!(
        "\n{added} added, {removed} removed, {} changed: {} in sum\n",
        diff.files.len() - added - removed,
        signed(diff.files.iter().map(change).sum())
    ));
    ui::print(&text);
}

fn change(file: &Differing) -> i64 {
    let size = |side: &Option<crate::image::diff::Side>| side.as_ref().map_or(0, |side| side.size as i64);
    size(&file.b) - size(&file.a)
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { '-' } else { '+' };
    format!("{sign}{}", ui::size(bytes.unsigned_abs()))
}

fn row(file: &Differing) -> Vec<String> {
    let letter = match file.how[0] {
        "added" => "+",
        "removed" => "-",
        _ => "~",
    };
    // Both sides where they differ, one where they don't.
    let both = |show: fn(&crate::image::diff::Side) -> String| {
        let sides: Vec<_> = [&file.a, &file.b].into_iter().flatten().map(show).collect();
        match sides.as_slice() {
            [one, other] if one != other => format!("{one} -> {other}"),
            sides => sides.first().cloned().unwrap_or_default(),
        }
    };
    let mut how = if letter == "~" { file.how.join(", ") } else { String::new() };
    if let Some(byte) = file.byte {
        how.push_str(&format!(", from byte {byte}"));
    }
    vec![
        letter.to_string(),
        file.b.as_ref().or(file.a.as_ref()).map_or(String::new(), |side| side.size.to_string()),
        if change(file) == 0 { String::new() } else { signed(change(file)) },
        both(|side| format!("{}:{}", side.uid, side.gid)),
        both(|side| side.mode.clone()),
        both(|side| side.rule.clone()),
        file.path.clone(),
        how,
    ]
}
