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
