//! How sandboxes are made in this place: found out once, by trying.

use std::path::Path;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sandbox::probe;

/// What keeps a rule apart from the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Isolation {
    /// Namespaces of its own.
    #[default]
    Namespaces,
    /// Another root folder alone. No boundary: for containers that are themselves thrown away.
    Chroot,
}

/// How a snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshots {
    /// Changesets are stacked.
    Overlay,
    /// A folder is brought from one snapshot to the next.
    Copy,
}

/// What is asked for; `None`: what this place gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Never chosen but when asked for: [`Isolation::Chroot`].
    pub isolation: Option<Isolation>,
    /// How snapshots are made.
    pub snapshots: Option<Snapshots>,
}

/// What is done here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Isolation of rules.
    pub isolation: Isolation,
    /// How snapshots are made.
    pub snapshots: Snapshots,
    /// What is weaker or slower than elsewhere, and why, in words for people.
    pub notes: Vec<String>,
}

impl Place {
    /// Tries what this place gives. `scratch` is a folder on the store's file system; what is made in
    /// it is removed.
    pub fn find(wish: Wish, scratch: &Path) -> Result<Self> {
        if wish.isolation == Some(Isolation::Chroot) {
            return Self::chroot(wish);
        }
        let isolation = Isolation::Namespaces;
        let because = match wish.snapshots {
            Some(Snapshots::Overlay) => None,
            Some(Snapshots::Copy) => Some("--snapshots copy asks for it".to_string()),
            None => probe::no_overlay(scratch).map_err(|error| match geteuid().is_root() {
                true => error.why(
                    "as root of a container that is itself thrown away, --isolation chroot runs rules without \
                     namespaces; it is no boundary",
                ),
                false => error,
            })?,
        };
        Ok(match because {
            None => Self { isolation, snapshots: Snapshots::Overlay, notes: vec![] },
            Some(why) => {
                let note = format!("snapshots are copied here, which is slower than an overlay: {why}");
                Self { isolation, snapshots: Snapshots::Copy, notes: vec![note] }
            }
        })
    }

    fn chroot(wish: Wish) -> Result<Self> {
        use caps::{CapSet, Capability};
        if wish.snapshots == Some(Snapshots::Overlay) {
            return Err(Error::request("--isolation chroot has no overlay")
                .why("an overlay is mounted, and without namespaces nothing may be")
                .next("leave out --snapshots"));
        }
        let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_CHROOT).unwrap_or(false);
        if !geteuid().is_root() || !may {
            return Err(Error::request("--isolation chroot needs to be root with CAP_SYS_CHROOT")
                .why("it is for the root of a container that refuses namespaces")
                .next("leave it out: namespaces need no root"));
        }
        let note = "--isolation chroot is no boundary: a rule can leave it, see and signal all processes of this \
                    container, and outlive the build. Use it only in a container that is itself thrown away";
        Ok(Self { isolation: Isolation::Chroot, snapshots: Snapshots::Copy, notes: vec![note.to_string()] })
    }
}
