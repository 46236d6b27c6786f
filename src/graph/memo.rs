//! What an analysis found out, for the next one: after an edit of a few build files only what depends on them is
//! evaluated again.
//!
//! What a rule says itself (its attributes, which edges are true, where they lead) follows from the build file of its
//! package and what that loads, from those of the parameters that it reads or sets, from the given values that it looks
//! up, and from what else was seen on disk. The asker vouches for all but the edited build files; so a rule
//! that none of those had a part in says the same, under settings that agree. What is below it is looked up anew.
//!
//! An analysis from a memo answers only when nothing is wrong. Otherwise the whole is done, so that errors are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::load::Defined;
use super::nodes::{Node, NodeEdge, NodeId, ReverseEdge, Trace, Written, agrees, merge};
use super::parameters::{Settings, SettingsId};
use crate::build_file::search_path::BUILD_FILE;
use crate::build_file::spec::{Spec, Value};
use crate::error::{Error, Place};
use crate::label::{Label, Package};

/// What one analysis leaves to the next.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Memo {
    files: BTreeMap<Package, File>,
    rules: Vec<Arc<Kept>>,
}

/// A build file.
#[derive(Clone, Serialize, Deserialize)]
struct File {
    /// `None`: built in.
    path: Option<PathBuf>,
    /// All that it defines but parameters, as written.
    rules: Vec<String>,
}

/// A rule under values, without what is below it.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    label: Label,
    kind: String,
    place: Place,
    folder: Option<PathBuf>,
    seen: BTreeMap<Label, Value>,
    own: Own,
    reverse: Vec<Way>,
    spec: Spec,
    packages: Vec<String>,
    doc: String,
    annotations: BTreeMap<String, String>,
}

/// What only the next analysis needs of a node.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Own {
    /// What its functions looked up among the given values, what is below left out.
    pub trace: Trace,
    /// Its true edges.
    pub deps: Vec<Way>,
    /// An image's base, a pod's images.
    pub images: Vec<Way>,
}

/// Where an edge leads, and the values that it sets.
pub(super) type Way = (Label, BTreeMap<Label, Value>);

/// A memo, less what the edited files had a part in.
#[derive(Default)]
pub(super) struct Recalled {
    files: BTreeMap<Package, File>,
    rules: BTreeMap<Label, Vec<Arc<Kept>>>,
}

impl Recalled {
    /// `None`: one of the edited files isn't a build file that the memo knows.
    pub fn new(bytes: &[u8], edited: &[String]) -> Option<Self> {
        let mut memo: Memo = postcard::from_bytes(bytes).ok()?;
        let by_path: BTreeMap<&str, &Package> =
            memo.files.iter().filter_map(|(package, file)| Some((file.path.as_ref()?.to_str()?, package))).collect();
        let stale: BTreeSet<Package> = edited
            .iter()
            .map(|path| by_path.get(path.as_str()).map(|package| (*package).clone()))
            .collect::<Option<_>>()?;
        memo.files.retain(|package, _| !stale.contains(package));
        let mut rules: BTreeMap<Label, Vec<Arc<Kept>>> = BTreeMap::new();
        for kept in memo.rules.into_iter().filter(|kept| kept.from().all(|package| !stale.contains(package))) {
            rules.entry(kept.label.clone()).or_default().push(kept);
        }
        Some(Self { files: memo.files, rules })
    }

    /// What a package defines but parameters, as written, where that is known.
    pub fn rules_of(&self, package: &Package) -> Option<&[String]> {
        self.files.get(package).map(|file| &file.rules[..])
    }

    /// The rule, if it says the same under these settings.
    pub fn find(&self, label: &Label, settings: &Settings) -> Option<Arc<Kept>> {
        self.rules.get(label)?.iter().find(|kept| agrees(&kept.own.trace, settings)).cloned()
    }
}

impl Kept {
    /// The packages whose build files had a part in it.
    fn from(&self) -> impl Iterator<Item = &Package> {
        let set =
            self.own.deps.iter().chain(&self.own.images).chain(&self.reverse).flat_map(|(_, values)| values.keys());
        [&self.label].into_iter().chain(self.seen.keys()).chain(set).map(Label::package)
    }
}

impl Analysis {
    /// The node of a kept rule; `None`: something is wrong.
    pub fn revive(&mut self, kept: &Arc<Kept>, settings: SettingsId) -> Option<NodeId> {
        let defined = Rc::new(Defined::kept(kept.label.clone(), kept.kind.clone(), kept.place.clone()));
        let mut trace = Some(Trace::new());
        let mut deps: Vec<NodeEdge> = vec![];
        for way in &kept.own.deps {
            let (to, written) = self.again(way, &defined, settings, &mut trace)?;
            if matches!(self.nodes[to].spec, Spec::Image(_) | Spec::Pod(_)) {
                return self.wrong();
            }
            if !deps.iter().any(|known| known.to == to) {
                deps.push(NodeEdge { to, written });
            }
        }
        let mut images = vec![];
        for way in &kept.own.images {
            let (to, _) = self.again(way, &defined, settings, &mut trace)?;
            if !matches!(self.nodes[to].spec, Spec::Image(_)) {
                return self.wrong();
            }
            images.push(to);
        }
        merge(&mut trace, &kept.own.trace, &BTreeMap::new());
        let reverse = kept.reverse.iter().map(|(joint, parameters)| ReverseEdge {
            joint: joint.clone(),
            parameters: parameters.clone(),
            written: Written::kept(joint),
        });
        self.add(Node {
            label: kept.label.clone(),
            defined,
            folder: kept.folder.clone(),
            seen: kept.seen.clone(),
            settings,
            deps,
            images,
            reverse: reverse.collect(),
            spec: kept.spec.clone(),
            packages: kept.packages.clone(),
            doc: kept.doc.clone(),
            annotations: kept.annotations.clone(),
            base: None,
            trace: trace.map(Rc::new),
            own: kept.own.clone(),
        })
    }

    fn again(
        &mut self,
        (label, values): &Way,
        defined: &Rc<Defined>,
        settings: SettingsId,
        trace: &mut Option<Trace>,
    ) -> Option<(NodeId, Written)> {
        let written = Written::kept(label);
        let below = self.below_edge(settings, values)?;
        let to = self.node(label, below, Some((defined, &written)))?;
        self.trace_below(to, values, trace);
        Some((to, written))
    }

    /// Whoever asked does it all again, and says what is wrong in better words.
    fn wrong(&mut self) -> Option<NodeId> {
        self.errors.report(Error::request("an edge leads to something else than before"));
        None
    }

    /// For the next analysis.
    pub fn memo(&mut self) -> Memo {
        let mut files = std::mem::take(&mut self.recalled.files);
        files.extend(self.packages.loaded().map(|(package, found)| {
            let rules = found.order.iter().filter(|defined| defined.parameter.is_none());
            let path = found.folder.as_ref().map(|folder| folder.join(BUILD_FILE));
            let rules = rules.map(|defined| defined.label.name().to_string()).collect();
            (package.clone(), File { path, rules })
        }));
        let rules = std::mem::take(&mut self.nodes).into_iter().map(|node| {
            Arc::new(Kept {
                kind: node.defined.kind.clone(),
                place: node.defined.place.clone(),
                label: node.label,
                folder: node.folder,
                seen: node.seen,
                own: node.own,
                reverse: node.reverse.into_iter().map(|edge| (edge.joint, edge.parameters)).collect(),
                spec: node.spec,
                packages: node.packages,
                doc: node.doc,
                annotations: node.annotations,
            })
        });
        Memo { files, rules: rules.collect() }
    }
}
