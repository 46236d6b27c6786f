//! What a caller wants of a sandbox, and what comes out, as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::build_file::spec::{Limits, Step};
use crate::sandbox::place::Isolation;
use crate::sandbox::seen::Known;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Folders of the host that are stacked, the lowest first.
    pub lower: Vec<PathBuf>,
    /// Folders that are seen in place, over the stack: the host's own.
    pub places: Vec<Above>,
    /// An empty folder that takes what changes.
    pub upper: PathBuf,
    /// An empty folder for the kernel, on the same file system as `upper`.
    pub work: PathBuf,
    /// Instead of these three: a folder that is the root as it is, and takes what changes.
    pub tree: Option<PathBuf>,
    /// What keeps the steps apart from the rest of the machine.
    pub isolation: Isolation,
    /// An empty folder to mount the root at.
    pub root: PathBuf,
    /// A folder on the same file system as `upper`, or `tree`; it is `/tmp` while the sandbox lives. `home` is made in it.
    pub tmp: PathBuf,
    /// More that is mounted, in this order.
    pub mounts: Vec<Bind>,
    /// What runs, one after the other.
    pub steps: Vec<Step>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Where the steps start: absolute, made if it isn't there.
    pub cwd: String,
    /// The ID that is mapped.
    pub uid: u32,
    /// The group ID that is mapped.
    pub gid: u32,
    /// The host name inside.
    pub hostname: String,
    /// The steps have the host's network.
    pub network: bool,
    /// Limits.
    pub limits: Limits,
    /// The root can't be written, only `/tmp`, `/run` and `/dev`.
    pub read_only_root: bool,
    /// What the steps have as 0, 1 and 2.
    pub standard: Standard,
    /// The steps have no capability at all.
    pub no_capabilities: bool,
    /// `stat` shows the owners that are recorded: these, and what the steps ask for.
    pub seen: Option<Known>,
    /// Subordinate IDs are mapped behind 0, and files of the snapshot have these owners.
    pub range: Option<Known>,
    /// Files below `/run/secrets`.
    pub secrets: Vec<Secret>,
}

/// What the steps may read at `/run/secrets/NAME`. It never shows its value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name: one part of a path.
    pub name: String,
    /// Its value.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// What steps have as standard input, output and error. Never a descriptor of the host's terminal:
/// who has one can type into it, or change how it behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standard {
    /// Nothing to read; both outputs are the caller's pipe.
    #[default]
    Output,
    /// Three descriptors of the caller's, which should be pipes.
    Given,
    /// A pseudo terminal of the sandbox's own; the caller gets its other side.
    Terminal,
}

/// A folder inside that is a stack of its own, with a folder of the host lowest. (An overlay of `/` is
/// refused when its upper folder lies below it.)
#[derive(Debug, Clone, Default)]
pub struct Above {
    /// Inside: a folder at the top.
    pub inside: String,
    /// Folders of the host, the lowest first.
    pub lower: Vec<PathBuf>,
    /// Takes what changes: the folder of that name in the spec's `upper`, which must be there.
    pub upper: PathBuf,
    /// An empty folder for the kernel.
    pub work: PathBuf,
}

/// A file or folder of the host, seen inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host; its path is trusted, and no link in its last part is followed.
    pub host: PathBuf,
    /// Inside: absolute; made if it isn't there; no part of it may be a link.
    pub inside: String,
    /// It can't be written.
    pub read_only: bool,
}

/// How the steps ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The last step that ran exited with this code; 0: all did.
    Exited(i32),
    /// A step was killed by this signal.
    Signalled(i32),
    /// A limit was hit.
    Limit(Hit),
}

/// Which limit was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hit {
    /// `time`
    Time,
    /// `file_size`
    FileSize,
    /// `memory`, of all processes together
    Memory,
}

/// As the build file names it.
impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time => "time",
            Self::FileSize => "file_size",
            Self::Memory => "memory",
        })
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How the steps ended.
    pub status: Status,
    /// Which step did not succeed.
    pub failed_step: Option<usize>,
    /// Owners and devices that were asked for, by the identity of the file in the upper folder.
    pub recorded: Vec<Recorded>,
    /// What this machine could not give, in words for people.
    pub weakened: Vec<String>,
    /// It is known whether the limit of memory was hit.
    pub memory_is_counted: bool,
    /// The path of the first program that made calls of 32 bits, if any did; empty where it isn't known.
    pub of_32_bits: Option<String>,
}

/// What was asked for one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its identity in the upper folder: [`crate::sys::file::handle`].
    pub handle: Vec<u8>,
    /// Owner; `None`: as it was.
    pub uid: Option<u32>,
    /// Group; `None`: as it was.
    pub gid: Option<u32>,
    /// It stands for a device: is it a character device, major, minor.
    pub device: Option<(bool, u32, u32)>,
    /// It is a folder that init made in place of the one which the stack below has at this path, and
    /// has its owner.
    pub instead_of: Option<Vec<u8>>,
}

impl Status {
    /// Did everything succeed?
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}
