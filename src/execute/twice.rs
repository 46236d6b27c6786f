//! `build --twice`: rules run again in the snapshot that they ran in, and what they change is held against
//! what they changed. A rule that comes out differently makes images that nobody can make again.
//!
//! The store keeps the first result: what ran again is only looked at.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::build_file::spec::{Id, Spec};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::{Build, Output};
use crate::execute::secrets::Given;
use crate::execute::{rule, snapshot};
use crate::image::diff::same_bytes;
use crate::label::Label;
use crate::report::Event;
use crate::tree::{Entry, Layer, Node, RootPath};

/// A path that came out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// The rule.
    pub rule: Label,
    /// The path.
    pub path: String,
    /// In which ways: `only the first time`, `only the second time`, or of `kind`, `content`, `mode`, `owner`,
    /// `link`, `attributes`.
    pub how: Vec<&'static str>,
    /// Of the content the first time.
    pub first: Option<Digest>,
    /// Of the content the second time.
    pub second: Option<Digest>,
    /// How many bytes are the same before the first that differs.
    pub byte: Option<u64>,
}

impl Build<'_> {
    /// Runs again what was asked for: a rule itself; of an image, pod or tapeout rule all that runs below it, but
    /// not `//base:build`.
    pub fn again(&self) -> Result<Vec<Differing>> {
        let mut ids: BTreeSet<Id> = BTreeSet::new();
        for &id in &self.graph.requested {
            if !matches!(self.graph.instances[id].spec, Spec::Rule(_)) {
                ids.extend(self.order.as_written(id));
            }
            ids.insert(id);
        }
        let (mut differing, mut ran) = (vec![], 0);
        for id in ids.into_iter().filter(|id| !snapshot::is_base_build(self.graph, *id)) {
            if let Some(found) = self.one_again(id)? {
                differing.extend(found);
                ran += 1;
            }
        }
        match ran {
            0 => Err(Error::request("there is no rule to run twice").next("name a rule that has a run, or an image")),
            _ => Ok(differing),
        }
    }

    /// `None`: it has nothing to run.
    fn one_again(&self, id: Id) -> Result<Option<Vec<Differing>>> {
        let instance = &self.graph.instances[id];
        let Some((request, snapshot)) = self.request(id)? else { return Ok(None) };
        let first = match self.output(id)? {
            Output::Changeset(first) | Output::Selection { own: first, .. } => *first,
            _ => None,
        };
        let Some(first) = first else { return Ok(None) };
        self.permit_network(instance, &request)?;
        let name = format!("{} again", instance.label);
        self.report.event(Event::Started { what: &name, total: None });
        let own = self.options.secrets.of(&request.secrets);
        let secrets = Given { own: &own, all: &self.search };
        let made = snapshot
            .stack(self.store, self.graph, &self.order)
            .and_then(|stack| rule::again(self.store, &request, &stack, secrets));
        self.report.event(Event::Ended { what: &name });
        let second = made.map_err(|e| e.context(format!("rule {}, the second time", instance.label)))?;
        let found = self.compare(&instance.label, &self.store.changeset(&first)?, &second)?;
        let verb = if found.is_empty() { "same" } else { "differs" };
        self.done(verb, id, "");
        Ok(Some(found))
    }

    fn compare(&self, rule: &Label, first: &Layer, second: &Layer) -> Result<Vec<Differing>> {
        if first.digest == second.digest {
            return Ok(vec![]);
        }
        let (one, other) = (&first.changeset.changes, &second.changeset.changes);
        let paths: BTreeSet<&RootPath> = one.keys().chain(other.keys()).collect();
        let mut differing = vec![];
        for path in paths {
            let how = match (one.get(path), other.get(path)) {
                (Some(_), None) => vec!["only the first time"],
                (None, _) => vec!["only the second time"],
                (Some(a), Some(b)) => match (&a.now, &b.now) {
                    (Some(a), Some(b)) => ways(a, b),
                    (None, None) => vec![],
                    _ => vec!["kind"],
                },
            };
            if how.is_empty() {
                continue;
            }
            let digest = |layer: &Layer| match layer.changeset.changes.get(path)?.now.as_ref()?.node {
                Node::File { digest, .. } => Some(digest),
                _ => None,
            };
            let byte = match how.contains(&"content") {
                true => {
                    let (a, b) = (self.store.read(&first.digest, path)?, self.store.read(&second.digest, path)?);
                    Some(same_bytes(a, b).map_err(|e| Error::io("read", path.as_path(), e))?)
                }
                false => None,
            };
            let (rule, path) = (rule.clone(), path.to_string());
            differing.push(Differing { rule, path, how, first: digest(first), second: digest(second), byte });
        }
        Ok(differing)
    }
}

fn ways(a: &Entry, b: &Entry) -> Vec<&'static str> {
    let kind = match (&a.node, &b.node) {
        (Node::File { digest: one, .. }, Node::File { digest: other, .. }) => (one != other).then_some("content"),
        (Node::Link { target: one }, Node::Link { target: other }) => (one != other).then_some("link"),
        (one, other) => (one != other).then_some("kind"),
    };
    let ways = [
        kind,
        (a.mode != b.mode).then_some("mode"),
        ((a.uid, a.gid) != (b.uid, b.gid)).then_some("owner"),
        (a.xattrs != b.xattrs).then_some("attributes"),
    ];
    ways.into_iter().flatten().collect()
}
