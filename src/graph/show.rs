//! What the graph looks like: trees, DOT, and who depends on whom. Nothing is printed here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use super::analysis::shown;
use crate::build_file::spec::{Definition, Graph, Id, Instance, Spec};
use crate::error::{Error, Result};
use crate::label::{Label, Package};
use crate::nearest::nearest;

/// The phases of a build, in order.
const PHASES: [&str; 4] = ["build", "tapeout", "build image", "build pod"];

/// The phase of an instance.
pub fn phase(instance: &Instance) -> &'static str {
    match instance.spec {
        Spec::Rule(_) | Spec::Archive(_) | Spec::Git(_) => PHASES[0],
        Spec::Tapeout(_) => PHASES[1],
        Spec::Image(_) => PHASES[2],
        Spec::Pod(_) => PHASES[3],
    }
}

/// What distinguishes an instance from others of its label: values, image, packages; may be empty.
pub fn distinction(graph: &Graph, id: Id) -> String {
    Distinctions::of(graph).text(id)
}

/// Labels of which the graph has instances with different packages.
struct Distinctions<'a> {
    graph: &'a Graph,
    packages: BTreeSet<&'a Label>,
}

impl<'a> Distinctions<'a> {
    fn of(graph: &'a Graph) -> Self {
        let mut first: BTreeMap<&Label, &Vec<String>> = BTreeMap::new();
        let differs =
            |instance: &&'a Instance| *first.entry(&instance.label).or_insert(&instance.packages) != &instance.packages;
        let packages = graph.instances.iter().filter(differs).map(|instance| &instance.label).collect();
        Self { graph, packages }
    }

    fn text(&self, id: Id) -> String {
        let instance = &self.graph.instances[id];
        let value = |(label, value)| format!("{}={}", short(label, &instance.label), shown(value));
        let mut parts: Vec<String> = instance.parameters.iter().map(value).collect();
        parts.extend(instance.image.iter().map(|image| format!("for {image}")));
        if self.packages.contains(&instance.label) {
            let none = instance.packages.is_empty();
            parts.push(format!("packages {}", if none { "none".to_string() } else { instance.packages.join(" ") }));
        }
        parts.join(", ")
    }
}

fn short(label: &Label, here: &Label) -> String {
    if label.package() == here.package() { label.name().to_string() } else { label.to_string() }
}

/// A tree of what was requested: each instance once, later only named.
pub fn tree(graph: &Graph) -> String {
    let distinctions = Distinctions::of(graph);
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    for id in &graph.requested {
        // (instance, its indentation, what stands before its label)
        let mut stack = vec![(*id, String::new(), "")];
        while let Some((id, indent, branch)) = stack.pop() {
            let instance = &graph.instances[id];
            let distinction = distinctions.text(id);
            let distinction = if distinction.is_empty() { distinction } else { format!("  [{distinction}]") };
            let is_new = seen.insert(id);
            let again = if is_new || instance.deps.is_empty() { "" } else { "  (above)" };
            let _ = writeln!(text, "{indent}{branch}{}{distinction}{again}", instance.label);
            if !is_new {
                continue;
            }
            let below = match branch {
                "" => String::new(),
                "└── " => format!("{indent}    "),
                _ => format!("{indent}│   "),
            };
            for (position, dep) in instance.deps.iter().enumerate().rev() {
                let branch = if position + 1 == instance.deps.len() { "└── " } else { "├── " };
                stack.push((*dep, below.clone(), branch));
            }
        }
    }
    text
}

/// Graphviz, phases as clusters; edges point to dependencies, those that joined are dashed.
pub fn dot(graph: &Graph) -> String {
    let distinctions = Distinctions::of(graph);
    let mut text = String::from("digraph tapeout {\n  rankdir = LR;\n  node [shape = box];\n");
    for (number, phase_name) in PHASES.iter().enumerate() {
        let of_phase: Vec<Id> =
            (0..graph.instances.len()).filter(|id| phase(&graph.instances[*id]) == *phase_name).collect();
        if of_phase.is_empty() {
            continue;
        }
        let _ = writeln!(text, "  subgraph cluster_{number} {{\n    label = {};", quoted(phase_name));
        for id in of_phase {
            let distinction = distinctions.text(id);
            let label = if distinction.is_empty() {
                graph.instances[id].label.to_string()
            } else {
                format!("{}\n{distinction}", graph.instances[id].label)
            };
            let _ = writeln!(text, "    n{id} [label = {}];", quoted(&label));
        }
        text.push_str("  }\n");
    }
    for (id, instance) in graph.instances.iter().enumerate() {
        for dep in &instance.deps {
            let style = if instance.joined.contains(dep) { " [style = dashed]" } else { "" };
            let _ = writeln!(text, "  n{id} -> n{dep}{style};");
        }
    }
    text.push_str("}\n");
    text
}

/// A string of DOT.
fn quoted(text: &str) -> String {
    let mut made = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => made.push_str("\\\""),
            '\\' => made.push_str("\\\\"),
            '\n' => made.push_str("\\n"),
            letter if letter.is_control() => made.push('\u{fffd}'),
            letter => made.push(letter),
        }
    }
    made.push('"');
    made
}

/// Who depends on whom, by label.
#[derive(Debug, Default)]
pub struct Edges {
    below: BTreeMap<Label, Vec<(Label, &'static str)>>,
}

impl Edges {
    /// As written: conditional edges too, and reverse dependencies as edges from the joint point.
    pub fn of_definitions(definitions: &[Definition]) -> Self {
        let mut edges = Self::default();
        for definition in definitions {
            edges.below.entry(definition.label.clone()).or_default();
        }
        for definition in definitions {
            for dep in &definition.deps {
                let note = if dep.conditional { "conditional" } else { "" };
                edges.add(&definition.label, &dep.label, note);
            }
        }
        for definition in definitions {
            for dep in &definition.reverse_deps {
                let note = if dep.conditional { "joins, conditional" } else { "joins" };
                edges.add(&dep.label, &definition.label, note);
            }
        }
        edges
    }

    /// The true edges of an analysed graph.
    pub fn of_graph(graph: &Graph) -> Self {
        let mut edges = Self::default();
        for instance in &graph.instances {
            edges.below.entry(instance.label.clone()).or_default();
            for dep in &instance.deps {
                let note = if instance.joined.contains(dep) { "joins" } else { "" };
                edges.add(&instance.label, &graph.instances[*dep].label, note);
            }
        }
        edges
    }

    fn add(&mut self, from: &Label, to: &Label, note: &'static str) {
        let list = self.below.entry(from.clone()).or_default();
        if !list.iter().any(|(known, _)| known == to) {
            list.push((to.clone(), note));
        }
        self.below.entry(to.clone()).or_default();
    }

    fn known(&self, label: &Label) -> Result<()> {
        if self.below.contains_key(label) {
            return Ok(());
        }
        let ends = ["/build_image", "/build_pod"];
        let short = |name: &'_ str| ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_string();
        let near = |package: &Package| {
            let names = self.below.keys().filter(|known| known.package() == package).map(|known| short(known.name()));
            nearest(&short(label.name()), names.collect::<Vec<_>>().iter().map(String::as_str))
        };
        Err(Error::request(format!("there is no {label} among them")).next(match near(label.package()) {
            Some(near) => format!("did you mean {}:{near}?", label.package()),
            None => "tapeout list shows all labels".to_string(),
        }))
    }

    /// All that a label depends on, one a line, nearest first.
    pub fn deps(&self, label: &Label) -> Result<String> {
        self.known(label)?;
        Ok(lines(&self.reach(label, |at| self.below.get(at).cloned().unwrap_or_default())))
    }

    /// All that depends on a label, one a line, nearest first.
    pub fn rdeps(&self, label: &Label) -> Result<String> {
        self.known(label)?;
        let mut above: BTreeMap<&Label, Vec<(Label, &'static str)>> = BTreeMap::new();
        for (from, list) in &self.below {
            for (to, note) in list {
                above.entry(to).or_default().push((from.clone(), note));
            }
        }
        Ok(lines(&self.reach(label, |at| above.get(at).cloned().unwrap_or_default())))
    }

    fn reach(&self, label: &Label, next: impl Fn(&Label) -> Vec<(Label, &'static str)>) -> Vec<(Label, &'static str)> {
        let mut seen = BTreeSet::from([label.clone()]);
        let mut left = VecDeque::from([label.clone()]);
        let mut found = vec![];
        while let Some(at) = left.pop_front() {
            for (to, note) in next(&at) {
                if seen.insert(to.clone()) {
                    left.push_back(to.clone());
                    found.push((to, note));
                }
            }
        }
        found
    }

    /// One shortest path over which `from` depends on `to`, one label a line; empty: there is none.
    pub fn why(&self, from: &Label, to: &Label) -> Result<String> {
        self.known(from)?;
        self.known(to)?;
        let mut came: BTreeMap<Label, (Label, &'static str)> = BTreeMap::new();
        let mut left = VecDeque::from([from.clone()]);
        while let Some(at) = left.pop_front() {
            for (next, note) in self.below.get(&at).into_iter().flatten() {
                if next != from && !came.contains_key(next) {
                    came.insert(next.clone(), (at.clone(), note));
                    left.push_back(next.clone());
                }
            }
        }
        let mut path = vec![];
        let mut at = to;
        while let Some((above, note)) = came.get(at) {
            path.push((at.clone(), *note));
            at = above;
        }
        if path.is_empty() {
            return Ok(String::new());
        }
        path.push((from.clone(), ""));
        path.reverse();
        Ok(lines(&path))
    }
}

fn lines(labels: &[(Label, &'static str)]) -> String {
    labels
        .iter()
        .map(|(label, note)| if note.is_empty() { format!("{label}\n") } else { format!("{label}  ({note})\n") })
        .collect()
}
