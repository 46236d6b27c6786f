//! `tapeout list`

use crate::build_file::spec::{DefinedDependency, Definition, Value};
use crate::cli::args::{Global, List};
use crate::cli::{context, ui};
use crate::error::{Error, Result};
use crate::graph;
use crate::label::{Label, Pattern};
use crate::report::{Event, Report};

/// Prints rules and parameters as a table or as JSON, or what depends on what.
pub fn run(global: &Global, args: &List) -> Result<()> {
    let labels = if args.labels.is_empty() { vec!["//...".to_string()] } else { args.labels.clone() };
    let request = context::request(global, &args.ask, &labels)?;
    let definitions = match context::store(global) {
        Ok(store) => graph::kept::definitions(&store, &request)?,
        Err(_) => graph::definitions(&request)?,
    };
    let label = |text: &str| Pattern::one_in(text, &request.here).map(|label| whole(label, &definitions));
    let progress = ui::Progress::start(&context::directory(global)?);
    // Nothing at all would look like a command that didn't work.
    let unless_found = |found: String, text: String| {
        if found.is_empty() {
            progress.event(Event::Note { text: &text });
        }
        Some(found)
    };
    let edges = graph::show::Edges::of_definitions(&definitions);
    let found = if let Some(pair) = &args.why {
        let (from, to) = (label(&pair[0])?, label(&pair[1])?);
        let path = edges.why(&from, &to)?;
        if path.is_empty() {
            return Err(Error::request(format!("{from} does not depend on {to}"))
                .next(format!("see on what it does: tapeout list --deps {from}")));
        }
        Some(path)
    } else if let Some(of) = &args.deps {
        let of = label(of)?;
        unless_found(edges.deps(&of)?, format!("{of} depends on nothing"))
    } else if let Some(of) = &args.rdeps {
        let of = label(of)?;
        unless_found(edges.rdeps(&of)?, format!("nothing depends on {of} among {}", labels.join(" ")))
    } else {
        None
    };
    if let Some(found) = found {
        return if global.json {
            ui::print_json(&found.lines().collect::<Vec<_>>())
        } else {
            ui::print(&found);
            Ok(())
        };
    }
    if global.json {
        return ui::print_json(&definitions);
    }
    let builder = request.workspace.builder.as_ref().and_then(|builder| builder.from.as_deref());
    let marked = if builder == Some("host") { "not reproducible: the builder is this machine (host)\n" } else { "" };
    ui::print(&format!("{marked}{}", table(&definitions)));
    Ok(())
}

/// `//app:web` stands for `//app:web/build_image` or `…/build_pod`, as on every command line.
fn whole(label: Label, definitions: &[Definition]) -> Label {
    let defined = |label: &Label| definitions.iter().any(|d| d.label == *label);
    let longer =
        ["build_image", "build_pod"].iter().filter_map(|last| label.sibling(&format!("{}/{last}", label.name())).ok());
    match longer.into_iter().find(|longer| !defined(&label) && defined(longer)) {
        Some(longer) => longer,
        None => label,
    }
}

fn table(definitions: &[Definition]) -> String {
    let width = definitions.iter().map(|d| d.label.to_string().len()).max().unwrap_or(0).min(60);
    let mut text = String::new();
    for definition in definitions {
        text.push_str(&format!(
            "{:<width$}  {:<9}  {}\n",
            definition.label.to_string(),
            definition.kind,
            ui::clean(&summary(definition))
        ));
    }
    text
}

fn summary(definition: &Definition) -> String {
    let doc = definition.doc.lines().next().unwrap_or("").to_string();
    if let Some(type_name) = &definition.type_name {
        let value = match (&definition.default, definition.derived) {
            (_, true) => ", derived".to_string(),
            (Some(value), _) => format!(" = {}", shown(value)),
            (None, _) => ", unset".to_string(),
        };
        return [format!("{type_name}{value}"), doc]
            .iter()
            .filter(|s| !s.is_empty())
            .cloned()
            .collect::<Vec<_>>()
            .join("  ");
    }
    let edges = |arrow: &str, edges: &[DefinedDependency]| match edges {
        [] => String::new(),
        some => format!("{arrow} {}", some.iter().map(edge).collect::<Vec<_>>().join(", ")),
    };
    let mut marks = vec![];
    if definition.network {
        marks.push("(not hermetic: it has the host's network)".to_string());
    }
    if !definition.secrets.is_empty() {
        marks.push(format!("(needs --secret {})", definition.secrets.join(", ")));
    }
    [doc, marks.join(" "), edges("<-", &definition.deps), edges("->", &definition.reverse_deps)]
        .iter()
        .filter(|s| !s.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join("  ")
}

fn edge(dep: &DefinedDependency) -> String {
    format!("{}{}", dep.label, if dep.conditional { "?" } else { "" })
}

fn shown(value: &Value) -> String {
    match value {
        Value::None => "None".to_string(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}
