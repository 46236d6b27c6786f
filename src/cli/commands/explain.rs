//! `tapeout explain`

use serde_json::Value;

use crate::cli::args::{Explain as Args, Global};
use crate::cli::{context, ui};
use crate::error::Result;
use crate::execute::build::Build;
use crate::execute::explain::{Difference, Explained, State};
use crate::graph;

/// So many lines are shown of a script.
const MOST_LINES: usize = 12;

/// Says why a build would run what the labels name, or not. Nothing runs.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let request = context::request(global, &args.ask, &args.labels)?;
    let store = context::store(global)?;
    let graph = graph::kept::analyse(&store, &request)?;
    let base = super::build::base_as_is(&store, &request.workspace)?;
    let options = super::build::as_is(&request.workspace, &base);
    let build = Build::new(&store, &graph, &base, &options, &crate::report::Silent);
    let forecasts = build.forecast()?;
    let explained = graph.requested.iter().map(|&id| build.explain(id, &forecasts)).collect::<Result<Vec<_>>>()?;
    if global.json {
        return ui::print_json(&explained);
    }
    let text: String = explained.iter().map(text).collect();
    ui::print(&ui::clean(&text));
    Ok(())
}

fn text(explained: &Explained) -> String {
    let said = match explained.state {
        State::Cached => "nothing changed: cached",
        State::Otherwise => "cached, from before its last run; since that one this changed:",
        State::Group => "it has nothing to run",
        State::Always => "it is written at each build; see its images",
        State::Never => "never built here",
        State::Changed => "it runs again, for this changed:",
        State::Failed => "nothing changed, but it failed the last time: it runs again",
        State::Gone => "nothing changed, but its result is not in the store any more: it runs again",
        State::Waits if explained.changes.is_empty() => {
            "nothing of its own changed; whether it runs depends on what runs first:"
        }
        State::Waits => "it runs again, for this changed:",
    };
    let mut text = format!("{}: {said}\n", explained.whose);
    for change in &explained.changes {
        text.push_str(&difference(change));
    }
    if !explained.first.is_empty() && matches!(explained.state, State::Waits | State::Never) {
        for label in &explained.first {
            text.push_str(&format!("  runs first: {label} (tapeout explain {label})\n"));
        }
    }
    text
}

fn difference(change: &Difference) -> String {
    let mut text = match (&change.old, &change.new) {
        (Some(Value::Array(old)), Some(Value::Array(new))) => format!("  {}:\n{}", change.part, lists(old, new)),
        (old, new) => format!("  {}: {} -> {}\n", change.part, value(old.as_ref()), value(new.as_ref())),
    };
    for file in &change.files {
        text.push_str(&format!("    {file}\n"));
    }
    text
}

fn value(value: Option<&Value>) -> String {
    match value {
        None => "(none)".to_string(),
        // A digest is known by its beginning.
        Some(Value::String(text)) => match text.parse::<crate::digest::Digest>() {
            Ok(digest) => digest.short(),
            Err(_) => format!("{text:?}"),
        },
        Some(other) => other.to_string(),
    }
}

/// What is in one list and not in the other; steps and digests, line by line.
fn lists(old: &[Value], new: &[Value]) -> String {
    let lines = |list: &[Value]| -> Vec<String> {
        let lines = list.iter().flat_map(|item| match item {
            Value::String(text) if text.contains('\n') => text.lines().map(str::to_string).collect::<Vec<_>>(),
            Value::String(text) => vec![text.clone()],
            other => vec![other.to_string()],
        });
        lines.collect()
    };
    let (old, new) = (lines(old), lines(new));
    // What is alike at both ends says nothing.
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    for (sign, lines) in [("-", &old[start..old.len() - end]), ("+", &new[start..new.len() - end])] {
        for line in lines.iter().take(MOST_LINES) {
            text.push_str(&format!("    {sign} {line}\n"));
        }
        if lines.len() > MOST_LINES {
            text.push_str(&format!("    {sign} and {} more lines\n", lines.len() - MOST_LINES));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_script_is_told_by_the_lines_that_differ() {
        let list = |value: Value| value.as_array().unwrap().clone();
        let told = lists(&list(json!(["a\nb\nc", ["x"]])), &list(json!(["a\nB\nc", ["x"]])));
        assert_eq!(told, "    - b\n    + B\n");
        assert_eq!(lists(&list(json!(["a"])), &list(json!(["a", "a"]))), "    + a\n");
    }
}
