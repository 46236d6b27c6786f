//! What an analysis found out, for the next one: after an edit of a few build files only what depends on them is
//! evaluated again.
//!
//! What a rule says itself (its attributes, which edges are true, where they lead) follows from the build file of its
//! package and what that loads, from those of the parameters that it reads or sets, from the given values that it looks
//! up, and from what else was seen on disk. The asker vouches for all but the edited build files; so a rule
//! that none of those had a part in says the same, under settings that agree. What is below it is looked up anew.
//!
//! An analysis from a memo answers only when nothing is wrong. Otherwise the whole is done, so that errors are the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::nodes::{Node, NodeEdge, NodeId, ReverseEdge, Trace, Written, agrees, merge};
use super::parameters::{Settings, SettingsId};
use crate::build_file::search_path::BUILD_FILE;
use crate::build_file::spec::{Spec, Values};
use crate::error::{Error, Place};
use crate::label::{Label, Package};

/// What one analysis leaves to the next.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Memo {
    files: BTreeMap<Package, File>,
    /// Each once: what many rules see, and what they looked up.
    seen: Vec<Arc<Values>>,
    traces: Vec<Arc<Trace>>,
    /// Which of both, and the rest.
    rules: Vec<(usize, usize, Arc<Own>)>,
}

/// A build file.
#[derive(Clone, Serialize, Deserialize)]
struct File {
    /// `None`: built in.
    path: Option<PathBuf>,
    /// All that it defines but parameters, as written.
    rules: Vec<String>,
}

/// What a rule says itself under values, without what is below it.
#[derive(Serialize, Deserialize)]
pub(super) struct Own {
    pub label: Label,
    pub kind: String,
    pub place: Place,
    pub folder: Option<PathBuf>,
    /// The values that it sees.
    #[serde(skip)]
    pub seen: Arc<Values>,
    /// What its functions looked up among the given values, what is below left out.
    #[serde(skip)]
    pub looked_up: Arc<Trace>,
    /// Its true edges.
    pub ways: Vec<Way>,
    /// An image's base, a pod's images.
    pub image_ways: Vec<Way>,
    /// Its true reverse edges.
    pub reverse_ways: Vec<Way>,
    pub spec: Spec,
    pub packages: Vec<String>,
    pub doc: String,
    pub annotations: BTreeMap<String, String>,
}

/// Where an edge leads, and the values that it sets.
pub(super) type Way = (Label, Values);

/// A memo, less what the edited files had a part in.
#[derive(Default)]
pub(super) struct Recalled {
    files: BTreeMap<Package, File>,
    rules: HashMap<Label, Vec<Arc<Own>>>,
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
        let mut rules: HashMap<Label, Vec<Arc<Own>>> = HashMap::with_capacity(memo.rules.len());
        for (seen, looked_up, mut own) in memo.rules {
            let whole = Arc::get_mut(&mut own)?;
            whole.seen = memo.seen.get(seen)?.clone();
            whole.looked_up = memo.traces.get(looked_up)?.clone();
            if !own.is_from(&stale) {
                rules.entry(own.label.clone()).or_default().push(own);
            }
        }
        Some(Self { files: memo.files, rules })
    }

    /// What a package defines but parameters, as written, where that is known.
    pub fn rules_of(&self, package: &Package) -> Option<&[String]> {
        self.files.get(package).map(|file| &file.rules[..])
    }

    /// The rule, if it says the same under these settings.
    pub fn find(&self, label: &Label, settings: &Settings) -> Option<Arc<Own>> {
        self.rules.get(label)?.iter().find(|own| agrees(&own.looked_up, settings)).cloned()
    }
}

impl Own {
    /// Did one of these packages' build files have a part in it?
    fn is_from(&self, packages: &BTreeSet<Package>) -> bool {
        let ways = [&self.ways, &self.image_ways, &self.reverse_ways].into_iter().flatten();
        let set = ways.flat_map(|(_, values)| values.keys());
        [&self.label].into_iter().chain(self.seen.keys()).chain(set).any(|label| packages.contains(label.package()))
    }
}

impl Analysis {
    /// The node of a kept rule; `None`: something is wrong.
    pub fn revive(&mut self, own: &Arc<Own>, settings: SettingsId) -> Option<NodeId> {
        let mut trace = Some(Arc::default());
        let mut deps: Vec<NodeEdge> = vec![];
        for way in &own.ways {
            let to = self.again(way, settings, &mut trace)?;
            if matches!(self.nodes[to].spec, Spec::Image(_) | Spec::Pod(_)) {
                return self.wrong();
            }
            if !deps.iter().any(|known| known.to == to) {
                deps.push(NodeEdge { to, written: Written::before() });
            }
        }
        let mut images = vec![];
        for way in &own.image_ways {
            let to = self.again(way, settings, &mut trace)?;
            if !matches!(self.nodes[to].spec, Spec::Image(_)) {
                return self.wrong();
            }
            images.push(to);
        }
        merge(&mut trace, &own.looked_up, &Values::new());
        let reverse = own.reverse_ways.iter().map(|(joint, parameters)| ReverseEdge {
            joint: joint.clone(),
            parameters: parameters.clone(),
            written: Written::before(),
        });
        let reverse = reverse.collect();
        self.add(Node { own: own.clone(), settings, deps, images, reverse, base: None, trace })
    }

    fn again(&mut self, (label, values): &Way, settings: SettingsId, trace: &mut Option<Arc<Trace>>) -> Option<NodeId> {
        let below = self.below_edge(settings, values)?;
        let to = self.node(label, below, None)?;
        self.trace_below(to, values, trace);
        Some(to)
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
        let (mut seen, mut traces) = (Numbered::default(), Numbered::default());
        let rules = self.nodes.iter().map(|node| (seen.of(&node.seen), traces.of(&node.looked_up), node.own.clone()));
        let rules = rules.collect();
        Memo { files, seen: seen.each, traces: traces.each, rules }
    }
}

/// Each of many once, by its number.
struct Numbered<T> {
    each: Vec<Arc<T>>,
    number: BTreeMap<Arc<T>, usize>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { each: vec![], number: BTreeMap::new() }
    }
}

impl<T: Ord> Numbered<T> {
    fn of(&mut self, one: &Arc<T>) -> usize {
        if let Some(number) = self.number.get(one) {
            return *number;
        }
        self.each.push(one.clone());
        self.number.insert(one.clone(), self.each.len() - 1);
        self.each.len() - 1
    }
}
