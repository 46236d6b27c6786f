//! Who owns a file that a rule left: what init recorded for it, or what is known of the file below
//! that it was before the rule changed, renamed or copied it up.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::stat::FileStat;

use crate::archive::kept::mark;
use crate::digest::Digest;
use crate::error::Result;
use crate::sandbox::{Facts, Known, KnownFile, Recorded};
use crate::tree::{Entry, Node, RootPath, Stack};

/// What is recorded of a snapshot, for a sandbox that shows it.
pub fn known(stack: &Stack) -> Known {
    let times: BTreeMap<&Digest, i64> = stack.0.iter().map(|l| (&l.digest, l.changeset.time)).collect();
    let mut files = vec![];
    for (path, (entry, digest)) in stack.below(&RootPath::root()) {
        let facts = facts_of(&entry);
        if (facts.uid, facts.gid, facts.device) == (0, 0, None) {
            continue;
        }
        let mark = mark(&path, times.get(&digest).copied().unwrap_or_default());
        files.push(KnownFile { path: [b"/", path.as_bytes()].concat(), mark, facts });
    }
    Known { files, times: times.into_values().collect() }
}

/// A file as a walk met it.
pub(super) struct Met<'a> {
    /// Where.
    pub path: &'a RootPath,
    /// What the file system says.
    pub stat: &'a FileStat,
    /// It is one of the snapshot's, and not a new one.
    pub of_snapshot: bool,
    /// Gives its identity ([`crate::sys::file::handle`]), which is asked for only where it matters.
    pub handle: &'a dyn Fn() -> Result<Vec<u8>>,
}

fn facts_of(entry: &Entry) -> Facts {
    let device = match entry.node {
        Node::Device { character, major, minor } => Some((character, major, minor)),
        _ => None,
    };
    Facts { uid: entry.uid, gid: entry.gid, device }
}

/// Joins files with what was recorded for them, or for the file below that they were copied from.
pub(super) struct Owners<'a> {
    pub below: &'a Stack,
    recorded: BTreeMap<&'a [u8], &'a Recorded>,
    owner: (u32, u32),
    /// The times of all changesets below.
    times: BTreeSet<i64>,
    /// By mark: the files below that are not root's, or devices. Made when first needed.
    foreign: Option<BTreeMap<(i64, i64), Vec<&'a Entry>>>,
}

impl<'a> Owners<'a> {
    pub fn new(below: &'a Stack, recorded: &'a [Recorded], owner: (u32, u32)) -> Self {
        let recorded = recorded.iter().map(|r| (r.handle.as_slice(), r)).collect();
        let times = below.0.iter().map(|layer| layer.changeset.time).collect();
        Self { below, recorded, owner, times, foreign: None }
    }

    pub fn of(&mut self, met: &Met, node: &Node) -> Result<Facts> {
        let Met { path, stat, .. } = met;
        let (uid, gid) = self.owner;
        let mut facts = self
            .inherited(path, node, (stat.st_atime, stat.st_atime_nsec), met.of_snapshot)
            .unwrap_or(Facts { uid, gid, device: None });
        if !self.recorded.is_empty()
            && let Some(recorded) = self.recorded.get((met.handle)()?.as_slice())
        {
            if let Some(instead_of) = &recorded.instead_of
                && let Some((was, _)) = self.below.get(&RootPath::new(instead_of)?)
                && may_become(&was.node, node)
            {
                facts = facts_of(was);
            }
            facts.uid = recorded.uid.unwrap_or(facts.uid);
            facts.gid = recorded.gid.unwrap_or(facts.gid);
            facts.device = recorded.device.or(facts.device);
        }
        if !matches!(node, Node::File { .. } | Node::Device { .. }) {
            facts.device = None;
        }
        Ok(facts)
    }

    /// What is known of the file below that this one was copied up from; `None`: it is a new one.
    fn inherited(&mut self, path: &RootPath, node: &Node, access: (i64, i64), copied_up: bool) -> Option<Facts> {
        let here = self.below.get(path).filter(|(entry, _)| may_become(&entry.node, node));
        if let Some((entry, layer)) = here
            && access == mark(path, layer.changeset.time)
        {
            return Some(facts_of(entry));
        }
        // Links, pipes and sockets can't hold the attribute that says that they were copied up.
        let special = is_special(node);
        if !copied_up && !special {
            return None;
        }
        let roots = (!special).then_some(Facts { uid: 0, gid: 0, device: None });
        if access.1 != 0 && self.times.contains(&access.0) {
            let from =
                self.foreign().get(&access).and_then(|all| all.iter().find(|entry| may_become(&entry.node, node)));
            return from.map(|entry| facts_of(entry)).or(roots);
        }
        here.map(|(entry, _)| facts_of(entry)).or(roots)
    }

    fn foreign(&mut self) -> &BTreeMap<(i64, i64), Vec<&'a Entry>> {
        let below = self.below;
        self.foreign.get_or_insert_with(|| {
            let mut foreign: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for layer in &below.0 {
                for (path, change) in &layer.changeset.changes {
                    let Some(entry) = &change.now else { continue };
                    if (entry.uid, entry.gid) != (0, 0) || matches!(entry.node, Node::Device { .. }) {
                        foreign.entry(mark(path, layer.changeset.time)).or_default().push(entry);
                    }
                }
            }
            foreign
        })
    }
}

fn is_special(node: &Node) -> bool {
    matches!(node, Node::Link { .. } | Node::Fifo | Node::Socket)
}

/// Can a file of the first kind have become one of the second by being changed in place?
fn may_become(was: &Node, now: &Node) -> bool {
    match (was, now) {
        (Node::File { .. } | Node::Device { .. }, Node::File { .. } | Node::Device { .. }) => true,
        (Node::Folder, Node::Folder) => true,
        _ => is_special(was) && was == now,
    }
}
