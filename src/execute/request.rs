//! One self-contained step: from a request document and what it names by digest to a changeset
//! and a result document.
//!
//! The request holds all that may change the outcome, and nothing of the machine, the time, the
//! path, the jobs. Its digest is the key under which the result is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::build_file::spec::{Ids, Limits, Owners, Step};
use crate::digest::Digest;

/// Raised when the same request would come out as something else.
pub const FORMAT: u32 = 1;

/// A request document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Of this document, and of what running it means.
    pub format: u32,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder it runs in.
    pub working_dir: String,
    /// The snapshot: changesets, the lowest first.
    pub snapshot: Vec<Digest>,
    /// The time that the files of its changeset get.
    pub time: i64,
    /// The mapped user and group.
    pub user: (u32, u32),
    /// How many IDs are mapped.
    pub ids: Ids,
    /// What it reads of owners.
    pub owners: Owners,
    /// It has the host's network.
    pub network: bool,
    /// Its limits.
    pub limits: Limits,
    /// Blobs that lie read-only below `/run/tapeout/debs` while it runs: name to digest.
    pub packages: BTreeMap<String, Digest>,
    /// Names of the secrets that it may read; what they are is not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Folders that keep their content between runs; what is in them is not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<String>,
}

/// A result document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of this document.
    pub format: u32,
    /// What it changed.
    pub changeset: Digest,
}

impl Request {
    /// The document, always the same bytes for the same request.
    pub fn document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a request is plain data with text keys, which JSON always holds")
    }

    /// Its digest.
    pub fn key(&self) -> Digest {
        key("run", &self.document())
    }
}

/// The key of what our own code makes of changesets (a selection, a layer, an image, a bundle): another
/// version of this program may make something else of the same document.
pub fn own_key(kind: &str, document: &[u8]) -> Digest {
    key(&format!("{kind} by {}", env!("CARGO_PKG_VERSION")), document)
}

/// The key of any action: what kind, and its document. The kind is framed, so that no document of
/// one kind is another one of another kind.
pub fn key(kind: &str, document: &[u8]) -> Digest {
    let mut framed = format!("tapeout {kind} {FORMAT} {}\n", document.len()).into_bytes();
    framed.extend_from_slice(document);
    Digest::of(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_each_field() {
        let one = Request {
            format: FORMAT,
            steps: vec![Step::Shell("true".into())],
            env: BTreeMap::new(),
            working_dir: "/workspace/a".into(),
            snapshot: vec![Digest::of("a")],
            time: 1,
            user: (0, 0),
            ids: Ids::One,
            owners: Owners::Recorded,
            network: false,
            limits: Limits::default(),
            packages: BTreeMap::new(),
            secrets: vec![],
            caches: vec![],
        };
        let others = [
            Request { steps: vec![Step::Argv(vec!["true".into()])], ..one.clone() },
            Request { env: BTreeMap::from([("A".into(), "b".into())]), ..one.clone() },
            Request { snapshot: vec![Digest::of("b")], ..one.clone() },
            Request { time: 2, ..one.clone() },
            Request { user: (1, 1), ..one.clone() },
            Request { network: true, ..one.clone() },
            Request { owners: Owners::Seen, ..one.clone() },
            Request { secrets: vec!["token".into()], ..one.clone() },
            Request { caches: vec!["token".into()], ..one.clone() },
            Request { packages: BTreeMap::from([("x.deb".into(), Digest::of("x"))]), ..one.clone() },
        ];
        assert_eq!(one.key(), one.clone().key());
        for other in others {
            assert_ne!(one.key(), other.key());
        }
    }
}
