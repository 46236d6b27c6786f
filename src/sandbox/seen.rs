//! What the files of a snapshot are recorded as, for steps that see it (`owners = "seen"`): the owner
//! that a layer below has for them, found again as the capture of a changeset finds it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What is recorded of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Files that are not the mapped user's, or are devices.
    pub files: Vec<KnownFile>,
    /// The times of all layers.
    pub times: BTreeSet<i64>,
}

/// One file of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    /// Its absolute path.
    pub path: Vec<u8>,
    /// Its access time in the kept form: a copy of the file has it too, wherever it goes.
    pub mark: (i64, i64),
    /// What is recorded.
    pub facts: Facts,
}

/// Owner, group, and which device it stands for: is it a character device, major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// It stands for a device.
    pub device: Option<(bool, u32, u32)>,
}

/// Most files below are root's.
const ROOTS: Facts = Facts { uid: 0, gid: 0, device: None };

/// The same, to look up in.
#[derive(Debug)]
pub(super) struct Below {
    by_path: BTreeMap<Vec<u8>, ((i64, i64), Facts)>,
    by_mark: BTreeMap<(i64, i64), Facts>,
    times: BTreeSet<i64>,
}

/// A file of the upper folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upper<'a> {
    /// Its absolute path inside.
    pub path: &'a [u8],
    /// Its access time.
    pub access: (i64, i64),
    /// It was copied up.
    pub copied_up: bool,
    /// It can't hold the attribute that says so: a link, pipe or socket.
    pub special: bool,
}

impl Below {
    pub fn new(known: &Known) -> Self {
        let by_path = known.files.iter().map(|file| (file.path.clone(), (file.mark, file.facts))).collect();
        let by_mark = known.files.iter().map(|file| (file.mark, file.facts)).collect();
        Self { by_path, by_mark, times: known.times.clone() }
    }

    /// Of the file at a path of the layers below.
    pub fn at(&self, path: &[u8]) -> Facts {
        self.by_path.get(path).map_or(ROOTS, |(_, facts)| *facts)
    }

    /// Of the file below that one of the upper folder was copied from; `None`: it is a new one.
    /// `Owners::inherited` of `changeset/diff.rs` decides the same.
    pub fn inherited(&self, upper: Upper) -> Option<Facts> {
        let here = self.by_path.get(upper.path);
        if let Some((mark, facts)) = here
            && *mark == upper.access
        {
            return Some(*facts);
        }
        if !upper.copied_up && !upper.special {
            return None;
        }
        let roots = (!upper.special).then_some(ROOTS);
        if upper.access.1 != 0 && self.times.contains(&upper.access.0) {
            return self.by_mark.get(&upper.access).copied().or(roots);
        }
        here.map(|(_, facts)| *facts).or(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_mark_wherever_it_goes_and_by_its_path_without_one() {
        let facts = |uid| Facts { uid, gid: uid, device: None };
        let file = |path: &[u8], mark, uid| KnownFile { path: path.to_vec(), mark, facts: facts(uid) };
        let files = vec![file(b"/a", (5, 11), 33), file(b"/b", (5, 22), 44)];
        let below = Below::new(&Known { files, times: BTreeSet::from([5]) });
        let upper = |path, access, copied_up| Upper { path, access, copied_up, special: false };
        assert_eq!(below.at(b"/a"), facts(33));
        assert_eq!(below.at(b"/c"), ROOTS);
        for (what, path, access, copied_up, expected) in [
            ("changed in place", b"/a".as_slice(), (5, 11), true, Some(33)),
            ("moved", b"/new", (5, 11), true, Some(33)),
            ("moved over another", b"/b", (5, 11), true, Some(33)),
            ("root's, moved over another", b"/b", (5, 99), true, Some(0)),
            ("touched", b"/a", (9, 0), true, Some(33)),
            ("touched and moved", b"/new", (9, 0), true, Some(0)),
            ("new at its path", b"/a", (9, 1), false, None),
        ] {
            assert_eq!(below.inherited(upper(path, access, copied_up)), expected.map(facts), "{what}");
        }
    }
}
