//! Rules under values. A **node** is a rule, the values that it sees, and the nodes that its true
//! ordinary edges lead to; two rules that agree in all three are one node, however they were
//! reached and whatever else is set.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::analysis::Analysis;
use super::load::{Defined, fault_errors};
use super::memo::Own;
use super::parameters::{Collected, Settings, SettingsId};
use crate::build_file::attributes::{self, Edge};
use crate::build_file::data::{Data, Function};
use crate::build_file::reference::article;
use crate::build_file::seen;
use crate::build_file::spec::{Spec, Value, Values};
use crate::build_file::starlark::progress;
use crate::error::{Error, Place};
use crate::label::Label;
use crate::nearest::nearest;

/// Which node: an index into the analysis' list.
pub(super) type NodeId = usize;

/// What was looked up among the given values, by a rule and all below it.
pub(super) type Trace = BTreeMap<Label, Option<Value>>;

/// What makes a node one: the rule, what it sees, its edges, its reverse edges' parameters.
pub(super) type NodeKey = (Label, Arc<Values>, Vec<NodeId>, Vec<(Label, Values)>);

/// Rules below one another.
const DEPTH: usize = 20_000;
/// Nodes of one analysis.
const NODES: usize = 1_000_000;
/// A trace of more values than this is not kept: it would cost more than evaluating again.
const TRACE: usize = 64;

/// The label of the first build rule.
pub(super) const BASE: &str = "//base:build";

/// A rule under values.
pub(super) struct Node {
    pub own: Arc<Own>,
    /// Settings under which it was reached first.
    pub settings: SettingsId,
    pub deps: Vec<NodeEdge>,
    /// An image's base, a pod's images.
    pub images: Vec<NodeId>,
    pub reverse: Vec<ReverseEdge>,
    /// The node of `//base:build` that it reaches.
    pub base: Option<NodeId>,
    /// `None`: of too much.
    pub trace: Option<Arc<Trace>>,
}

impl Deref for Node {
    type Target = Own;

    fn deref(&self) -> &Own {
        &self.own
    }
}

/// A true ordinary edge.
pub(super) struct NodeEdge {
    pub to: NodeId,
    pub written: Written,
}

/// How an edge is written: enough to find its place, should an error need it.
#[derive(Clone)]
pub(super) struct Written {
    pub attribute: &'static str,
    pub literal: String,
    pub is_conditional: bool,
}

/// A true reverse edge.
pub(super) struct ReverseEdge {
    pub joint: Label,
    pub parameters: Values,
    pub written: Written,
}

/// A rule that is being evaluated, and the edge that led to it.
pub(super) struct Step {
    label: Label,
    settings: SettingsId,
    edge: Option<(Rc<Defined>, Written)>,
}

impl Analysis {
    /// The node of a rule under settings; `None`: reported. `edge` is what leads to it.
    pub fn node(
        &mut self,
        label: &Label,
        settings: SettingsId,
        edge: Option<(&Rc<Defined>, &Written)>,
    ) -> Option<NodeId> {
        let key = (label.clone(), settings);
        if let Some(known) = self.node_by_settings.get(&key) {
            return *known;
        }
        if let Some(start) = self.stack.iter().position(|step| step.settings == settings && step.label == *label) {
            self.report_cycle(start, label, edge);
            return None;
        }
        if let Some(known) = self.node_by_trace(label, settings) {
            self.node_by_settings.insert(key, Some(known));
            return Some(known);
        }
        if self.stack.len() > DEPTH || self.nodes.len() > NODES {
            let what = format!("more than {DEPTH} rules below one another, or {NODES} in all, at {label}");
            let mut error = Error::request(what).next("a dependency may set a parameter to ever new values");
            if let Some((defined, written)) = edge {
                error = error.at(self.edge_place(defined, written), "");
            }
            self.errors.report(error);
            return None;
        }
        let kept = self.recalled.find(label, &self.settings[settings]);
        let defined = if kept.is_some() { None } else { Some(self.rule_definition(label, edge)?) };
        self.stack.push(Step {
            label: label.clone(),
            settings,
            edge: edge.map(|(defined, written)| (defined.clone(), written.clone())),
        });
        let node = match (kept, defined) {
            (Some(kept), _) => self.revive(&kept, settings),
            (None, Some(defined)) => self.evaluate(&defined, settings),
            (None, None) => None,
        };
        self.stack.pop();
        self.node_by_settings.insert(key, node);
        node
    }

    /// A node that other settings led to, and that these would lead to too.
    fn node_by_trace(&self, label: &Label, settings: SettingsId) -> Option<NodeId> {
        let given = &self.settings[settings];
        self.node_by_trace.get(label)?.iter().find(|(trace, _)| agrees(trace, given)).map(|(_, node)| *node)
    }

    fn rule_definition(&mut self, label: &Label, edge: Option<(&Rc<Defined>, &Written)>) -> Option<Rc<Defined>> {
        // A place is looked up only for an error.
        let known = match self.packages.package(label.package(), &mut self.errors) {
            super::load::Found::Package(package) => package.defined.get(label.name()).cloned(),
            _ => None,
        };
        let known = known.filter(|defined| defined.parameter.is_none());
        if known.is_some() {
            // A broken one too: its edges may be wrong besides.
            return known;
        }
        let place = edge.map(|(defined, written)| self.edge_place(defined, written));
        let defined = self.defined(label, place.as_ref())?;
        let mut error = Error::request(format!("{label} is a parameter, not a rule"));
        if let Some(place) = place {
            error = error.at(place, "");
        }
        let error = error.at(defined.place.clone(), "defined here");
        self.errors.report(error.next("read it in a function: lambda p: p[…], or name a rule"));
        None
    }

    fn edge_place(&mut self, defined: &Rc<Defined>, written: &Written) -> Place {
        self.attribute_place(defined, written.attribute, Some(&written.literal))
    }

    fn report_cycle(&mut self, start: usize, label: &Label, edge: Option<(&Rc<Defined>, &Written)>) {
        let names: Vec<String> = self.stack[start..].iter().map(|step| step.label.to_string()).collect();
        let mut edges: Vec<(Rc<Defined>, Written)> =
            self.stack[start + 1..].iter().filter_map(|step| step.edge.clone()).collect();
        edges.extend(edge.map(|(defined, written)| (defined.clone(), written.clone())));
        let mut error = Error::request(format!("a cycle of dependencies: {} → {label}", names.join(" → ")));
        for (defined, written) in edges {
            let condition = if written.is_conditional { ", on a condition that is true" } else { "" };
            let note = format!("{} depends on {}{condition}", defined.label, written.literal);
            error = error.at(self.edge_place(&defined, &written), note);
        }
        self.errors.report(error.next("remove one of these edges"));
    }

    fn evaluate(&mut self, defined: &Rc<Defined>, settings: SettingsId) -> Option<NodeId> {
        progress::note(&defined.place.file, defined.place.line);
        let mut collected = Collected::default();
        let package = self.package(defined.label.package(), None)?;
        // Whatever is wrong with one attribute, the others and the edges are looked at all the same.
        let (arguments, mut whole) = self.arguments(defined, settings, &mut collected);
        let (definition, faults) = attributes::read(&defined.kind, &defined.label, &arguments);
        let found = fault_errors(&package.text, &defined.label, &defined.place, &faults);
        found.into_iter().for_each(|error| self.errors.report(error));
        whole &= faults.is_empty() && !defined.is_broken;
        whole &= self.check_files(defined, package.folder.as_deref(), &definition.needs);
        let mut trace = Some(Arc::default());
        let (mut ways, mut image_ways) = (vec![], vec![]);
        let mut deps: Vec<NodeEdge> = vec![];
        for edge in &definition.deps {
            match self.follow(edge, defined, settings, &mut collected, &mut trace) {
                Follow::To(to, values) => {
                    let may = self.may_depend(defined, edge, to);
                    whole &= may;
                    ways.push((edge.label.clone(), values));
                    if may && !deps.iter().any(|known| known.to == to) {
                        deps.push(NodeEdge { to, written: written(edge) });
                    }
                }
                Follow::False => {}
                Follow::Broken => whole = false,
            }
        }
        let mut images = vec![];
        for edge in &definition.images {
            match self.follow(edge, defined, settings, &mut collected, &mut trace) {
                Follow::To(to, values) if matches!(self.nodes[to].spec, Spec::Image(_)) => {
                    images.push(to);
                    image_ways.push((edge.label.clone(), values));
                }
                Follow::To(to, _) => {
                    let place = self.attribute_place(defined, edge.attribute, Some(&edge.written));
                    let kind = self.nodes[to].kind.clone();
                    let error = Error::request(format!(
                        "{}: {} is {} {kind}, not an image",
                        defined.label,
                        edge.label,
                        article(&kind)
                    ));
                    self.errors.report(error.at(place, "").next("name what image(…) defines"));
                    whole = false;
                }
                Follow::False => {
                    let error = Error::request(format!(
                        "{}: the image {} can't be left out by a condition",
                        defined.label, edge.label
                    ));
                    let next = "let a function of the parameters choose the image or the containers";
                    self.errors.report(error.at(defined.place.clone(), "").next(next));
                    whole = false;
                }
                Follow::Broken => whole = false,
            }
        }
        let mut reverse = vec![];
        for edge in &definition.reverse_deps {
            match self.reverse_edge(edge, defined, settings, &mut collected) {
                Ok(Some(edge)) => reverse.push(edge),
                Ok(None) => {}
                Err(()) => whole = false,
            }
        }
        if !whole {
            return None;
        }
        let looked_up = shared(&mut self.traces, collected.trace);
        merge(&mut trace, &looked_up, &Values::new());
        let own = Own {
            label: defined.label.clone(),
            kind: defined.kind.clone(),
            place: defined.place.clone(),
            folder: package.folder.clone(),
            seen: shared(&mut self.seen, collected.seen),
            looked_up,
            ways,
            image_ways,
            reverse_ways: reverse.iter().map(|edge| (edge.joint.clone(), edge.parameters.clone())).collect(),
            spec: definition.spec,
            packages: definition.packages,
            doc: definition.doc,
            annotations: definition.annotations,
        };
        self.add(Node { own: Arc::new(own), settings, deps, images, reverse, base: None, trace })
    }

    /// The arguments, each function called; false: one failed, was reported, and is still a function.
    pub fn arguments(
        &mut self,
        defined: &Rc<Defined>,
        settings: SettingsId,
        collected: &mut Collected,
    ) -> (BTreeMap<String, Data>, bool) {
        let mut made = defined.arguments.clone();
        let mut whole = true;
        for (name, value) in &mut made {
            let mut call = |function: &Function| match self.call(function, defined, name, settings, collected) {
                // A second look would take it for absent.
                Some(data) if data.is_deferred() => {
                    let place = self.attribute_place(defined, name, None);
                    let what = format!("{}: {name}: a function that gives a function", defined.label);
                    self.errors.report(Error::request(what).at(place, "").next("let it give the value itself"));
                    Err(())
                }
                Some(data) => Ok(data),
                None => Err(()),
            };
            whole &= value.resolve(&mut call).is_ok();
        }
        (made, whole)
    }

    /// The files that the build file names are there.
    fn check_files(&mut self, defined: &Rc<Defined>, folder: Option<&Path>, needs: &[(&'static str, String)]) -> bool {
        let mut whole = true;
        for (attribute, path) in needs {
            let found = folder.is_some_and(|folder| seen::is_there(&folder.join(path)));
            if !found {
                let place = self.attribute_place(defined, attribute, Some(path));
                let near = folder.and_then(|folder| nearest_file(folder, path));
                let error = Error::request(format!(
                    "{}: {attribute}: there is no file {path:?} in {}",
                    defined.label,
                    defined.label.package()
                ));
                let error = error.at(place, "");
                self.errors.report(match near {
                    Some(near) => error.next(format!("did you mean {near:?}?")),
                    None => error.next("write it, or name one that is there"),
                });
                whole = false;
            }
        }
        whole
    }

    fn follow(
        &mut self,
        edge: &Edge,
        defined: &Rc<Defined>,
        settings: SettingsId,
        collected: &mut Collected,
        trace: &mut Option<Arc<Trace>>,
    ) -> Follow {
        match self.is_true(edge, defined, settings, collected) {
            Some(true) => {}
            Some(false) => return Follow::False,
            None => return Follow::Broken,
        }
        let Some(values) = self.parameters_of(edge, defined, settings, collected) else { return Follow::Broken };
        let Some(below) = self.below_edge(settings, &values) else { return Follow::Broken };
        match self.node(&edge.label, below, Some((defined, &written(edge)))) {
            Some(to) => {
                self.trace_below(to, &values, trace);
                Follow::To(to, values)
            }
            None => Follow::Broken,
        }
    }

    /// Adds what was looked up by a node below an edge that sets these values.
    pub fn trace_below(&self, to: NodeId, values: &Values, trace: &mut Option<Arc<Trace>>) {
        match &self.nodes[to].trace {
            Some(inner) => merge(trace, inner, values),
            None => *trace = None,
        }
    }

    fn is_true(
        &mut self,
        edge: &Edge,
        defined: &Rc<Defined>,
        settings: SettingsId,
        collected: &mut Collected,
    ) -> Option<bool> {
        let function = match &edge.when {
            None => return Some(true),
            Some(Data::Function(function)) => function.clone(),
            Some(data) => return Some(matches!(data, Data::Bool(true))),
        };
        match self.call(&function, defined, edge.attribute, settings, collected)? {
            Data::Bool(flag) => Some(flag),
            other => {
                let place = self.attribute_place(defined, edge.attribute, Some(&edge.written));
                let what = format!("{}: when gives {}, and takes True or False", defined.label, other.kind());
                self.errors.report(Error::request(what).at(place, "").next("compare: p[…] == …"));
                None
            }
        }
    }

    fn parameters_of(
        &mut self,
        edge: &Edge,
        defined: &Rc<Defined>,
        settings: SettingsId,
        collected: &mut Collected,
    ) -> Option<Values> {
        match &edge.parameters {
            Data::Function(function) => {
                let data = self.call(&function.clone(), defined, edge.attribute, settings, collected)?;
                self.edge_values(&data, defined, edge.attribute)
            }
            data => self.edge_values(data, defined, edge.attribute),
        }
    }

    fn reverse_edge(
        &mut self,
        edge: &Edge,
        defined: &Rc<Defined>,
        settings: SettingsId,
        collected: &mut Collected,
    ) -> Result<Option<ReverseEdge>, ()> {
        if !self.is_true(edge, defined, settings, collected).ok_or(())? {
            return Ok(None);
        }
        let parameters = self.parameters_of(edge, defined, settings, collected).ok_or(())?;
        Ok(Some(ReverseEdge { joint: edge.label.clone(), parameters, written: written(edge) }))
    }

    /// Rules stand on rules; images and pods are the end of the way.
    fn may_depend(&mut self, defined: &Rc<Defined>, edge: &Edge, to: NodeId) -> bool {
        let kind = self.nodes[to].kind.clone();
        if kind != "image" && kind != "pod" {
            return true;
        }
        let place = self.attribute_place(defined, edge.attribute, Some(&edge.written));
        let what = format!(
            "{} can't depend on {}: {} {kind}'s result is written out, and no rule sees it",
            defined.label,
            edge.label,
            article(&kind)
        );
        let error = Error::request(what).at(place, "");
        self.errors.report(if kind == "image" {
            error.next("an image stands on another with base = …")
        } else {
            error.next("a pod is the end of the way: ask for it on the command line")
        });
        false
    }

    /// Finds what it reaches, checks it, and gives it its number.
    pub fn add(&mut self, mut node: Node) -> Option<NodeId> {
        let is_base = node.label.is_base_build();
        let mut bases: Vec<NodeId> = node.deps.iter().filter_map(|edge| self.nodes[edge.to].base).collect();
        bases.dedup();
        if bases.iter().any(|base| *base != bases[0]) {
            let what = format!("{} stands on two different {BASE}: their parameters differ", node.label);
            self.errors.report(
                Error::request(what).at(node.place.clone(), "").next("let all its dependencies see the same values"),
            );
            return None;
        }
        node.base = bases.first().copied();
        if node.base.is_none() && !is_base && !self.needs_no_base(&node) {
            return None;
        }
        let key = (
            node.label.clone(),
            node.seen.clone(),
            node.deps.iter().map(|edge| edge.to).chain(node.images.iter().copied()).collect::<Vec<_>>(),
            node.reverse_ways.clone(),
        );
        let id = self.nodes.len();
        if let Some(known) = self.node_by_key.get(&key) {
            let known = *known;
            self.remember(&node, known);
            return Some(known);
        }
        if is_base {
            node.base = Some(id);
        }
        self.remember(&node, id);
        self.node_by_key.insert(key, id);
        self.nodes.push(node);
        Some(id)
    }

    fn remember(&mut self, node: &Node, id: NodeId) {
        if let Some(trace) = &node.trace {
            self.node_by_trace.entry(node.label.clone()).or_default().push((trace.clone(), id));
        }
    }

    /// A build rule must reach `//base:build`, and so must a rule that needs packages.
    fn needs_no_base(&mut self, node: &Node) -> bool {
        let what = if node.label.is_build() && matches!(node.spec, Spec::Rule(_)) {
            format!("{} is a build rule that doesn't reach {BASE}", node.label)
        } else if !node.packages.is_empty() {
            format!("{} needs packages and doesn't reach {BASE}, which installs them", node.label)
        } else {
            return true;
        };
        let place = self.place_in(&node.label, &node.place, "deps", None);
        self.errors.report(Error::request(what).at(place, "").next(format!("add {BASE:?} to its deps")));
        false
    }
}

enum Follow {
    To(NodeId, Values),
    False,
    Broken,
}

fn written(edge: &Edge) -> Written {
    Written { attribute: edge.attribute, literal: edge.written.clone(), is_conditional: edge.when.is_some() }
}

impl Written {
    /// Of an edge that was followed before: what an error would say of it is said by another analysis.
    pub fn before() -> Self {
        Self { attribute: "deps", literal: String::new(), is_conditional: false }
    }
}

/// Would the same be found among these?
pub(super) fn agrees(trace: &Trace, given: &Settings) -> bool {
    trace.iter().all(|(label, value)| given.get(label) == value.as_ref())
}

/// Adds what was looked up below an edge: what the edge itself sets doesn't come from above.
pub(super) fn merge(trace: &mut Option<Arc<Trace>>, inner: &Arc<Trace>, set: &Values) {
    let Some(made) = trace else { return };
    if made.is_empty() && set.is_empty() {
        *made = inner.clone();
    } else if !Arc::ptr_eq(made, inner) {
        for (label, value) in inner.iter().filter(|(label, _)| !set.contains_key(*label)) {
            if made.get(label) != Some(value) {
                Arc::make_mut(made).insert(label.clone(), value.clone());
            }
        }
    }
    if made.len() > TRACE {
        *trace = None;
    }
}

/// The same of all that are equal.
fn shared<T: Ord>(known: &mut BTreeSet<Arc<T>>, one: T) -> Arc<T> {
    if let Some(known) = known.get(&one) {
        return known.clone();
    }
    let one = Arc::new(one);
    known.insert(one.clone());
    one
}

/// A file of the same folder with nearly this name.
fn nearest_file(folder: &Path, path: &str) -> Option<String> {
    let (above, name) = path.rsplit_once('/').map_or(("", path), |(above, name)| (above, name));
    let entries = std::fs::read_dir(folder.join(above)).ok()?;
    let names: Vec<String> =
        entries.take(1000).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let near = nearest(name, names.iter().map(String::as_str))?;
    Some(if above.is_empty() { near } else { format!("{above}/{near}") })
}
