//! What a rule sees: which changesets its snapshot holds, in which order, and whether they go together.

use std::collections::BTreeSet;

use crate::build_file::spec::{Graph, Id, Spec};
use crate::changeset::stack::{self, Member};
use crate::digest::Digest;
use crate::error::Result;
use crate::execute::schedule::Order;
use crate::store::Store;
use crate::tree::Stack;

/// The changesets of a snapshot as names: enough for a key, without reading any of them.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The builder's, the lowest first.
    pub builder: Vec<Digest>,
    /// The rule's sources.
    pub sources: Option<Digest>,
    /// `//base:build`'s, then those of the other dependencies as written.
    pub rules: Vec<(Id, Digest)>,
    /// Whose snapshot it is.
    pub of: Id,
}

impl Snapshot {
    /// All of them, the lowest first.
    pub fn digests(&self) -> Vec<Digest> {
        self.builder.iter().chain(&self.sources).chain(self.rules.iter().map(|(_, digest)| digest)).copied().collect()
    }

    /// Reads them, merges what is merged, and finds what conflicts.
    pub fn stack(&self, store: &Store, graph: &Graph, order: &Order) -> Result<Stack> {
        let base_build = graph.instances[self.of].base_build;
        let mut stack = Stack::default();
        for digest in self.builder.iter().chain(&self.sources) {
            stack.0.push(store.changeset(digest)?);
        }
        let members = self
            .rules
            .iter()
            .map(|(id, digest)| {
                let below = order.below(*id);
                let after = self
                    .rules
                    .iter()
                    .enumerate()
                    .filter(|(_, (other, _))| below.contains(*other) || is_base_build(graph, *other))
                    .map(|(i, _)| i);
                let instance = &graph.instances[*id];
                Ok(Member {
                    label: instance.label.clone(),
                    layer: store.changeset(digest)?,
                    after: after.collect::<BTreeSet<_>>(),
                    same_base: Some(*id) == base_build || instance.base_build == base_build,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if let Some(sources) = &self.sources {
            stack::foreign_sources(
                &store.changeset(sources)?.changeset,
                graph.instances[self.of].label.package(),
                &members,
            )?;
        }
        stack::merge(store, stack, members)
    }
}

/// Which instances give their changesets to the snapshot of `id`, `//base:build`'s first.
pub fn members(graph: &Graph, order: &Order, id: Id) -> Vec<Id> {
    let own = graph.instances[id].base_build;
    let others = order.as_written(id).into_iter().filter(|&below| !is_base_build(graph, below));
    own.filter(|&own| own != id).into_iter().chain(others).collect()
}

/// Is it an instance of `//base:build`, where packages are installed?
pub fn is_base_build(graph: &Graph, id: Id) -> bool {
    let instance = &graph.instances[id];
    instance.label.is_base_build() && matches!(instance.spec, Spec::Rule(_))
}
