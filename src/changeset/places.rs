//! Paths that changesets treat in a way of their own; `docs/changesets.md` tells users the same.

use crate::tree::RootPath;

/// Folders whose content is no part of a changeset: made anew for each rule.
const LEFT_OUT: [&[u8]; 5] = [b"proc", b"sys", b"dev", b"run", b"tmp"];

/// Is this folder's content no part of a changeset?
pub fn left_out(folder: &RootPath) -> bool {
    LEFT_OUT.contains(&folder.as_bytes())
}

/// Programs that rewrite these (useradd, passwd) take over the owner and mode that they see; under
/// one mapped ID they see 0:0. So these keep what they had: the file here, else its model.
const KEEP_OWNER: [(&[u8], &[u8]); 4] = [
    (b"etc/gshadow", b"etc/gshadow"),
    (b"etc/gshadow-", b"etc/gshadow"),
    (b"etc/shadow", b"etc/shadow"),
    (b"etc/shadow-", b"etc/shadow"),
];

/// If a rewritten file keeps its owner and mode: whose it takes when it is new itself.
pub fn keeps_owner(path: &RootPath) -> Option<RootPath> {
    let (_, model) = KEEP_OWNER.iter().find(|(p, _)| *p == path.as_bytes())?;
    RootPath::new(model).ok()
}

/// How a file that several rules may write comes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joint {
    /// Lines whose first field is a name: users and groups.
    Lines {
        /// The field with the number that belongs to one name alone.
        number: Option<usize>,
        /// Fields that are lists of names, joined by commas.
        lists: &'static [usize],
    },
    /// Paragraphs that are named by these fields.
    Paragraphs(&'static [&'static str]),
    /// `/etc/ld.so.cache`: the libraries of all.
    LoaderCache,
    /// Nothing is lost when the last one wins: caches, backups and logs.
    Last,
}

const JOINTS: [(&[u8], Joint); 9] = [
    (b"etc/passwd", Joint::Lines { number: Some(2), lists: &[] }),
    (b"etc/group", Joint::Lines { number: Some(2), lists: &[3] }),
    (b"etc/shadow", Joint::Lines { number: None, lists: &[] }),
    (b"etc/gshadow", Joint::Lines { number: None, lists: &[2, 3] }),
    (b"etc/subuid", Joint::Lines { number: None, lists: &[] }),
    (b"etc/subgid", Joint::Lines { number: None, lists: &[] }),
    (b"etc/ld.so.cache", Joint::LoaderCache),
    (b"var/lib/dpkg/status", Joint::Paragraphs(&["Package", "Architecture"])),
    (b"var/cache/debconf/config.dat", Joint::Paragraphs(&["Name"])),
];

/// Files of which the last one wins.
const LAST: [&[u8]; 22] = [
    b"etc/.pwd.lock",
    b"etc/group-",
    b"etc/gshadow-",
    b"etc/passwd-",
    b"etc/shadow-",
    b"etc/subgid-",
    b"etc/subuid-",
    b"usr/share/applications/mimeinfo.cache",
    b"usr/share/glib-2.0/schemas/gschemas.compiled",
    b"usr/share/info/dir",
    b"usr/share/info/dir.old",
    b"var/cache/debconf/config.dat-old",
    b"var/cache/debconf/passwords.dat",
    b"var/cache/debconf/templates.dat",
    b"var/cache/debconf/templates.dat-old",
    b"var/lib/dpkg/available",
    b"var/lib/dpkg/available-old",
    b"var/lib/dpkg/lock",
    b"var/lib/dpkg/lock-frontend",
    b"var/lib/dpkg/status-old",
    b"var/lib/dpkg/triggers/Lock",
    b"var/lib/dpkg/triggers/Unincorp",
];

/// Folders below which the last one wins.
const LAST_BELOW: [&[u8]; 4] = [b"var/cache/fontconfig", b"var/cache/ldconfig", b"var/cache/man", b"var/log"];

/// The files that are merged, not only the last one taken.
pub fn merged() -> impl Iterator<Item = (RootPath, Joint)> {
    JOINTS.iter().filter_map(|(path, joint)| Some((RootPath::new(path).ok()?, *joint)))
}

/// Is this a file that several rules may write?
pub fn joint(path: &RootPath) -> Option<Joint> {
    let bytes = path.as_bytes();
    if let Some((_, joint)) = JOINTS.iter().find(|(p, _)| *p == bytes) {
        return Some(*joint);
    }
    let below = |folder: &&[u8]| bytes.len() > folder.len() && bytes.starts_with(folder) && bytes[folder.len()] == b'/';
    (LAST.contains(&bytes) || LAST_BELOW.iter().any(below)).then_some(Joint::Last)
}

/// The folder where rules work: a later named dependency wins there.
pub fn in_workspace(path: &RootPath) -> bool {
    path.top() == b"workspace"
}
