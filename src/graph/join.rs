//! From nodes to instances.
//!
//! Each image is a **context**: the nodes that it reaches over ordinary edges, and for each joint
//! point among them the nodes that join it. A node that is a joint point, or stands on one, is
//! instantiated per context; all others are shared. An image's `base` has its own context.
//!
//! `//base:build` is instantiated per union of packages: every instance that reaches it depends on
//! the instance of its own union.

use std::collections::{BTreeMap, BTreeSet};

use super::analysis::Analysis;
use super::nodes::{BASE, NodeId, Written};
use crate::build_file::attributes::JOINT;
use crate::build_file::spec::{Graph, Id, ImageRef, Instance, Spec};
use crate::error::Error;
use crate::label::Label;

/// What one image (or the request, for rules that are asked for by themselves) reaches.
struct Context {
    image: Option<NodeId>,
    /// Which nodes join a joint point, in the order in which they were reached.
    joined: BTreeMap<NodeId, Vec<Joining>>,
    /// Nodes whose reverse edge sets parameters: in this image the node under those stands for them.
    replaced: BTreeMap<NodeId, NodeId>,
    /// `None`: it is being made.
    made: BTreeMap<NodeId, Option<Made>>,
    stack: Vec<NodeId>,
    /// What is wrong with these was reported.
    broken: BTreeSet<NodeId>,
}

#[derive(Clone)]
struct Joining {
    node: NodeId,
    /// The rule whose reverse dependency it is, and how that is written.
    by: NodeId,
    written: Written,
}

#[derive(Clone, Copy)]
struct Made {
    id: Id,
    /// It is a joint point or stands on one.
    of_context: bool,
}

struct Joiner<'a> {
    analysis: &'a mut Analysis,
    graph: Graph,
    shared: BTreeMap<NodeId, Id>,
    images: BTreeMap<NodeId, Option<Id>>,
    bases: BTreeMap<(NodeId, Vec<String>), Id>,
    base_nodes: BTreeMap<Id, NodeId>,
    /// What a `//base:build` and all below it need themselves.
    base_packages: BTreeMap<NodeId, Vec<String>>,
}

impl Analysis {
    /// The graph of what was requested; what can't be joined is reported.
    pub fn join(&mut self, requested: Vec<NodeId>) -> Graph {
        let mut joiner = Joiner {
            analysis: self,
            graph: Graph::default(),
            shared: BTreeMap::new(),
            images: BTreeMap::new(),
            bases: BTreeMap::new(),
            base_nodes: BTreeMap::new(),
            base_packages: BTreeMap::new(),
        };
        joiner.run(&requested);
        joiner.graph
    }
}

impl Joiner<'_> {
    fn run(&mut self, requested: &[NodeId]) {
        let alone: Vec<NodeId> = requested.iter().copied().filter(|node| !self.is_end(*node)).collect();
        let mut context = self.context(None, &alone);
        for node in requested {
            let id = match self.analysis.nodes[*node].spec {
                Spec::Image(_) => self.image(*node),
                Spec::Pod(_) => self.pod(*node),
                _ => self.instance(*node, &mut context).map(|made| made.id),
            };
            self.graph.requested.extend(id);
        }
    }

    fn is_end(&self, node: NodeId) -> bool {
        matches!(self.analysis.nodes[node].spec, Spec::Image(_) | Spec::Pod(_))
    }

    /// What these nodes reach, dependencies first, as written.
    fn reached(&self, roots: &[NodeId]) -> Vec<NodeId> {
        let mut seen = BTreeSet::new();
        let mut order = vec![];
        // An own stack: (node, next edge).
        for root in roots {
            let mut stack = vec![(*root, 0)];
            if !seen.insert(*root) {
                continue;
            }
            while let Some((node, next)) = stack.pop() {
                match self.analysis.nodes[node].deps.get(next) {
                    Some(edge) => {
                        stack.push((node, next + 1));
                        if seen.insert(edge.to) {
                            stack.push((edge.to, 0));
                        }
                    }
                    None => order.push(node),
                }
            }
        }
        order
    }

    fn context(&mut self, image: Option<NodeId>, roots: &[NodeId]) -> Context {
        let reached = self.reached(roots);
        let nodes = &self.analysis.nodes;
        let wanted: BTreeSet<&Label> =
            reached.iter().flat_map(|node| &nodes[*node].reverse).map(|edge| &edge.joint).collect();
        let mut joints: BTreeMap<Label, Vec<NodeId>> = BTreeMap::new();
        for node in reached.iter().filter(|node| wanted.contains(&nodes[**node].label)) {
            joints.entry(self.analysis.nodes[*node].label.clone()).or_default().push(*node);
        }
        let mut joined: BTreeMap<NodeId, Vec<Joining>> = BTreeMap::new();
        let mut replaced = BTreeMap::new();
        for node in &reached {
            for edge in 0..self.analysis.nodes[*node].reverse.len() {
                let reverse = &self.analysis.nodes[*node].reverse[edge];
                let Some(points) = joints.get(&reverse.joint) else { continue };
                let (written, parameters) = (reverse.written.clone(), reverse.parameters.clone());
                let Some(joining) = self.joining(*node, &parameters) else { continue };
                if joining != *node {
                    replaced.entry(*node).or_insert(joining);
                }
                for point in points {
                    let list = joined.entry(*point).or_default();
                    if !list.iter().any(|known| known.node == joining) {
                        list.push(Joining { node: joining, by: *node, written: written.clone() });
                    }
                }
            }
        }
        Context { image, joined, replaced, made: BTreeMap::new(), stack: vec![], broken: BTreeSet::new() }
    }

    /// The very node that was reached; with parameters on the reverse edge, the same rule below them.
    fn joining(
        &mut self,
        node: NodeId,
        parameters: &BTreeMap<Label, crate::build_file::spec::Value>,
    ) -> Option<NodeId> {
        if parameters.is_empty() {
            return Some(node);
        }
        let settings = self.analysis.below_edge(self.analysis.nodes[node].settings, parameters)?;
        let label = self.analysis.nodes[node].label.clone();
        self.analysis.node(&label, settings, None)
    }

    fn instance(&mut self, node: NodeId, context: &mut Context) -> Option<Made> {
        if context.broken.contains(&node) {
            return None;
        }
        match context.made.get(&node) {
            Some(Some(made)) => return Some(*made),
            Some(None) => {
                self.report_cycle(node, context);
                return None;
            }
            None => {}
        }
        context.made.insert(node, None);
        context.stack.push(node);
        let made = self.make(node, context);
        context.stack.pop();
        match made {
            Some(made) => _ = context.made.insert(node, Some(made)),
            None => {
                context.made.remove(&node);
                context.broken.insert(node);
            }
        }
        made
    }

    fn make(&mut self, node: NodeId, context: &mut Context) -> Option<Made> {
        let written = self.analysis.nodes[node].deps.iter().map(|edge| edge.to);
        let ordinary: Vec<NodeId> = written.map(|dep| context.replaced.get(&dep).copied().unwrap_or(dep)).collect();
        let replaces = self.analysis.nodes[node].deps.iter().any(|edge| context.replaced.contains_key(&edge.to));
        let joining: Vec<NodeId> =
            context.joined.get(&node).map(|list| list.iter().map(|joining| joining.node).collect()).unwrap_or_default();
        let is_joint = !joining.is_empty() || self.analysis.nodes[node].label.is_base_tapeout();
        let mut of_context = is_joint || replaces;
        let mut deps = Deps::default();
        let mut whole = true;
        for (position, dep) in ordinary.iter().chain(&joining).enumerate() {
            if self.is_base(*dep) {
                deps.base_at = deps.base_at.or(Some(deps.ids.len()));
                deps.base_nodes.insert(*dep);
                continue;
            }
            match self.instance(*dep, context) {
                Some(made) => {
                    of_context |= made.of_context;
                    if !deps.ids.contains(&made.id) {
                        deps.ids.push(made.id);
                    }
                    if position >= ordinary.len() {
                        deps.joined.push(made.id);
                    }
                }
                None => whole = false,
            }
        }
        if !whole {
            return None;
        }
        if !of_context && let Some(id) = self.shared.get(&node) {
            return Some(Made { id: *id, of_context });
        }
        let image = if of_context { context.image } else { None };
        let id = self.push(node, deps, image, is_joint)?;
        if !of_context {
            self.shared.insert(node, id);
        }
        Some(Made { id, of_context })
    }

    fn is_base(&self, node: NodeId) -> bool {
        self.analysis.nodes[node].label.is_base_build()
    }

    /// Adds an instance whose dependencies stand in the graph, and the `//base:build` of its union.
    fn push(&mut self, node: NodeId, mut deps: Deps, image: Option<NodeId>, is_joint: bool) -> Option<Id> {
        let mut packages: BTreeSet<String> = self.analysis.nodes[node].packages.iter().cloned().collect();
        for id in &deps.ids {
            let dep = &self.graph.instances[*id];
            if matches!(dep.spec, Spec::Image(_)) {
                continue;
            }
            packages.extend(dep.packages.iter().cloned());
            deps.base_nodes.extend(dep.base_build.and_then(|base| self.base_nodes.get(&base)));
        }
        let mut base_nodes = deps.base_nodes.iter().copied();
        let base_node = base_nodes.next();
        if base_nodes.next().is_some() {
            let found = &self.analysis.nodes[node];
            let what = format!("{} stands on two different {BASE}: their parameters differ", found.label);
            let error = Error::request(what).at(found.place.clone(), "");
            self.analysis.errors.report(error.next("let all that joins it see the same values"));
            return None;
        }
        if self.is_base(node) {
            let union = packages.into_iter().collect();
            return Some(self.base(node, union, deps));
        }
        let mut base_build = None;
        if let Some(base_node) = base_node {
            packages.extend(self.base_packages(base_node).iter().cloned());
            let below = self.base_deps(base_node)?;
            let id = self.base(base_node, packages.iter().cloned().collect(), below);
            deps.ids.insert(deps.base_at.unwrap_or(0), id);
            base_build = Some(id);
        }
        let found = &self.analysis.nodes[node];
        let mut spec = found.spec.clone();
        if let Spec::Tapeout(tapeout) = &mut spec {
            tapeout.joint = is_joint;
        }
        Some(self.add(Instance {
            label: found.label.clone(),
            parameters: found.seen.clone(),
            image: image.map(|image| self.analysis.nodes[image].label.clone()),
            deps: deps.ids,
            joined: deps.joined,
            packages: packages.into_iter().collect(),
            base_build,
            folder: found.folder.clone(),
            place: found.place.clone(),
            doc: found.doc.clone(),
            annotations: found.annotations.clone(),
            spec,
        }))
    }

    fn add(&mut self, instance: Instance) -> Id {
        self.graph.instances.push(instance);
        self.graph.instances.len() - 1
    }

    /// What `//base:build` stands on: what no union changes.
    fn base_deps(&mut self, base: NodeId) -> Option<Deps> {
        let mut context = Context {
            image: None,
            joined: BTreeMap::new(),
            replaced: BTreeMap::new(),
            made: BTreeMap::new(),
            stack: vec![],
            broken: BTreeSet::new(),
        };
        let below: Vec<NodeId> = self.analysis.nodes[base].deps.iter().map(|edge| edge.to).collect();
        let mut deps = Deps::default();
        for node in below {
            deps.ids.push(self.instance(node, &mut context)?.id);
        }
        Some(deps)
    }

    fn base_packages(&mut self, base: NodeId) -> &[String] {
        if !self.base_packages.contains_key(&base) {
            let reached = self.reached(&[base]);
            let packages = reached.iter().flat_map(|node| self.analysis.nodes[*node].packages.clone());
            self.base_packages.insert(base, packages.collect());
        }
        &self.base_packages[&base]
    }

    /// The instance of `//base:build` for a union.
    fn base(&mut self, node: NodeId, union: Vec<String>, deps: Deps) -> Id {
        let key = (node, union);
        if let Some(id) = self.bases.get(&key) {
            return *id;
        }
        let found = &self.analysis.nodes[node];
        let instance = Instance {
            label: found.label.clone(),
            parameters: found.seen.clone(),
            image: None,
            deps: deps.ids,
            joined: vec![],
            packages: key.1.clone(),
            base_build: None,
            folder: found.folder.clone(),
            place: found.place.clone(),
            doc: found.doc.clone(),
            annotations: found.annotations.clone(),
            spec: found.spec.clone(),
        };
        let id = self.add(instance);
        self.bases.insert(key, id);
        self.base_nodes.insert(id, node);
        id
    }

    fn image(&mut self, node: NodeId) -> Option<Id> {
        if let Some(known) = self.images.get(&node) {
            return *known;
        }
        let bases = self.analysis.nodes[node].images.clone();
        let base = match bases.first() {
            Some(base) => Some(self.image(*base)?),
            None => None,
        };
        let is_based = matches!(&self.analysis.nodes[node].spec, Spec::Image(image) if image.base.is_some());
        let roots: Vec<NodeId> = self.analysis.nodes[node].deps.iter().map(|edge| edge.to).collect();
        let mut context = self.context(Some(node), &roots);
        let id = self.instance(node, &mut context).map(|made| made.id);
        if let Some(id) = id {
            if let (Spec::Image(image), Some(base)) = (&mut self.graph.instances[id].spec, base) {
                image.base = Some(ImageRef::Built(base));
            }
            // It stands before the image, because it was made before.
            self.graph.instances[id].deps.extend(base);
            self.graph.instances[id].image = None;
            self.check_image(id, is_based);
        }
        self.images.insert(node, id);
        id
    }

    /// An image takes something, and all that its tapeout rules pick gets into it.
    fn check_image(&mut self, image: Id, has_base: bool) {
        let instance = &self.graph.instances[image];
        let Spec::Image(spec) = &instance.spec else { return };
        let reached = self.below(&[image]);
        let joint =
            reached.iter().copied().filter(|id| self.graph.instances[*id].label.is_base_tapeout()).collect::<Vec<_>>();
        let in_joint = self.below(&joint);
        let tapeouts: Vec<Id> =
            reached.iter().copied().filter(|id| matches!(self.graph.instances[*id].spec, Spec::Tapeout(_))).collect();
        if tapeouts.iter().all(|id| joint.contains(id)) && !has_base && !spec.whole_builder {
            let error = Error::request(format!("{} takes nothing: it reaches no tapeout rule", instance.label))
                .at(instance.place.clone(), "");
            self.analysis.errors.report(error.next("add a tapeout rule to its deps"));
        }
        for id in tapeouts.iter().filter(|id| !in_joint.contains(id)) {
            let lost = &self.graph.instances[*id];
            let what =
                format!("{} joins nothing: {} reaches it, but no joint point of it does", lost.label, instance.label);
            let error = Error::request(what).at(lost.place.clone(), "").next(format!(
                "let its reverse_deps lead to {JOINT}, perhaps over a joint point that the image depends on"
            ));
            self.analysis.errors.report(error);
        }
    }

    /// These and all below, images' own bases left out.
    fn below(&self, from: &[Id]) -> BTreeSet<Id> {
        let mut seen = BTreeSet::new();
        let mut left = from.to_vec();
        while let Some(id) = left.pop() {
            if seen.insert(id) {
                let deps = &self.graph.instances[id].deps;
                left.extend(
                    deps.iter().copied().filter(|dep| !matches!(self.graph.instances[*dep].spec, Spec::Image(_))),
                );
            }
        }
        seen
    }

    fn pod(&mut self, node: NodeId) -> Option<Id> {
        if let Some(known) = self.images.get(&node) {
            return *known;
        }
        let nodes = self.analysis.nodes[node].images.clone();
        let images: Vec<Id> = nodes.iter().map(|image| self.image(*image)).collect::<Option<_>>()?;
        let found = &self.analysis.nodes[node];
        let mut spec = found.spec.clone();
        if let Spec::Pod(pod) = &mut spec {
            for container in &mut pod.containers {
                if let ImageRef::Built(index) = &mut container.image {
                    *index = *images.get(*index)?;
                }
            }
        }
        let mut deps = vec![];
        let mut packages = BTreeSet::new();
        for id in &images {
            if !deps.contains(id) {
                deps.push(*id);
                packages.extend(self.graph.instances[*id].packages.iter().cloned());
            }
        }
        let instance = Instance {
            label: found.label.clone(),
            parameters: found.seen.clone(),
            image: None,
            deps,
            joined: vec![],
            packages: packages.into_iter().collect(),
            base_build: None,
            folder: found.folder.clone(),
            place: found.place.clone(),
            doc: found.doc.clone(),
            annotations: found.annotations.clone(),
            spec,
        };
        let id = self.add(instance);
        self.images.insert(node, Some(id));
        Some(id)
    }

    /// A rule joins a joint point that it depends on.
    fn report_cycle(&mut self, node: NodeId, context: &Context) {
        let start = context.stack.iter().position(|known| *known == node).unwrap_or(0);
        let cycle: Vec<NodeId> = context.stack[start..].iter().copied().chain([node]).collect();
        let names: Vec<String> = cycle.iter().map(|node| self.analysis.nodes[*node].label.to_string()).collect();
        let mut error = Error::request(format!("a cycle of dependencies: {}", names.join(" → ")));
        for pair in cycle.windows(2) {
            let [from, to] = [pair[0], pair[1]];
            let ordinary = self.analysis.nodes[from]
                .deps
                .iter()
                .find(|edge| edge.to == to)
                .map(|edge| (from, edge.written.clone(), "depends on"));
            let joined = || {
                let joining = context.joined.get(&from)?.iter().find(|joining| joining.node == to)?;
                Some((joining.by, joining.written.clone(), "joins"))
            };
            if let Some((by, written, word)) = ordinary.or_else(joined) {
                let own = self.analysis.nodes[by].own.clone();
                let place = self.analysis.place_in(&own.label, &own.place, written.attribute, Some(&written.literal));
                let condition = if written.is_conditional { ", on a condition that is true" } else { "" };
                error = error.at(place, format!("{} {word} {}{condition}", own.label, written.literal));
            }
        }
        self.analysis.errors.report(error.next("a rule can't join what it depends on: remove one of these edges"));
    }
}

/// The dependencies of an instance that is being made.
#[derive(Default)]
struct Deps {
    ids: Vec<Id>,
    joined: Vec<Id>,
    /// Where `//base:build` is written among them.
    base_at: Option<usize>,
    base_nodes: BTreeSet<NodeId>,
}
