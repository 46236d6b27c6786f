//! What a machine is, as data: what can be read is read, what can only be tried is tried
//! (probe.rs). What it means for a build is said in findings.rs.

use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use crate::error::Error;
use crate::sandbox::place::Isolation;
use crate::sandbox::probe::{self, Inside, NotInside};
use crate::sys::refusal::Surroundings;
use crate::sys::{nursery, process, xattr};

/// A machine, as `doctor` looks at it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// Our user ID.
    pub uid: u32,
    /// Seconds since 1970.
    pub now: i64,
    /// How rules are to be kept apart.
    pub isolation: Isolation,
    /// What decides on namespaces.
    pub surroundings: Surroundings,
    /// CAP_SYS_CHROOT
    pub may_chroot: bool,
    /// CAP_MKNOD
    pub may_make_devices: bool,
    /// Is the sandbox's init executed from a sealed memfd?
    pub sealed: Result<bool, Error>,
    /// What a child in namespaces of its own found; `None`: it was not to be tried.
    pub inside: Option<Result<Inside, NotInside>>,
    /// Can IDs of a range be mapped?
    pub subordinate: Result<(), Error>,
    /// Where the store is, or why there can be none.
    pub store: Result<Disk, Error>,
    /// Files that a process may have open; `None`: as many as it likes.
    pub open_files: Option<u64>,
    /// Processes that our user may have.
    pub processes: Option<u64>,
    /// Bytes of a file that we may write.
    pub file_size: Option<u64>,
}

/// The file system that the store lies on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    /// The store.
    pub path: PathBuf,
    /// `ext4`; empty where it has no name that we know.
    pub kind: String,
    /// Bytes that are free for us.
    pub free: u64,
    /// Inodes that are free; `None`: they are made as they are needed.
    pub inodes: Option<u64>,
    /// May files have attributes `user.*`?
    pub attributes: bool,
    /// Does it hold them in memory?
    pub in_memory: bool,
    /// Is it at the other end of a network?
    pub remote: bool,
}

impl Machine {
    /// This one. `scratch` is a folder in the store, and what is made in it is removed.
    pub fn here(isolation: Isolation, store: Result<(&Path, &Path), Error>) -> Self {
        let has = |cap| caps::has_cap(None, caps::CapSet::Effective, cap).unwrap_or(false);
        let limit =
            |resource| getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != libc::RLIM_INFINITY);
        let inside = match isolation {
            Isolation::Chroot => None,
            Isolation::Namespaces => Some(probe::look_inside(store.as_ref().ok().map(|(_, scratch)| *scratch))),
        };
        Self {
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            uid: nix::unistd::geteuid().as_raw(),
            now: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
            isolation,
            surroundings: Surroundings::here(),
            may_chroot: has(caps::Capability::CAP_SYS_CHROOT),
            may_make_devices: has(caps::Capability::CAP_MKNOD),
            sealed: process::own_executable().map(|_| process::is_sealed()),
            inside,
            subordinate: nursery::has_subordinate(),
            store: store.and_then(|(path, scratch)| Disk::of(path, scratch)),
            open_files: limit(Resource::RLIMIT_NOFILE),
            processes: limit(Resource::RLIMIT_NPROC),
            file_size: limit(Resource::RLIMIT_FSIZE),
        }
    }
}

impl Disk {
    fn of(path: &Path, scratch: &Path) -> Result<Self, Error> {
        let stat = nix::sys::statfs::statfs(path).map_err(|errno| Error::io("statfs", path, errno))?;
        let magic = stat.filesystem_type().0 as u32;
        let (kind, where_) =
            KINDS.iter().find(|(number, ..)| *number == magic).map_or(("", ON_DISK), |(_, k, w)| (*k, *w));
        Ok(Self {
            path: path.to_path_buf(),
            kind: kind.to_string(),
            free: stat.blocks_available() * u64::try_from(stat.block_size()).unwrap_or(1),
            // btrfs and its like count none.
            inodes: (stat.files() > 0).then(|| stat.files_free()),
            attributes: xattr::has_user_attributes(scratch),
            in_memory: where_ == IN_MEMORY,
            remote: where_ == REMOTE,
        })
    }
}

const ON_DISK: u8 = 0;
const IN_MEMORY: u8 = 1;
const REMOTE: u8 = 2;

/// File systems by the number that statfs(2) gives.
const KINDS: [(u32, &str, u8); 19] = [
    (0xEF53, "ext4", ON_DISK),
    (0x5846_5342, "xfs", ON_DISK),
    (0x9123_683E, "btrfs", ON_DISK),
    (0x2FC1_2FC1, "zfs", ON_DISK),
    (0xF2F5_2010, "f2fs", ON_DISK),
    (0xCA45_1A4E, "bcachefs", ON_DISK),
    (0x794C_7630, "overlay", ON_DISK),
    (0x4D44, "vfat", ON_DISK),
    (0x0102_1994, "tmpfs", IN_MEMORY),
    (0x8584_58F6, "ramfs", IN_MEMORY),
    (0x6969, "NFS", REMOTE),
    (0xFF53_4D42, "CIFS", REMOTE),
    (0xFE53_4D42, "SMB", REMOTE),
    (0x0102_1997, "9p", REMOTE),
    (0x0BD0_0BD0, "Lustre", REMOTE),
    (0x4750_4653, "GPFS", REMOTE),
    (0x1983_0326, "BeeGFS", REMOTE),
    (0x00C3_6400, "CephFS", REMOTE),
    (0x6573_5546, "FUSE", ON_DISK),
];
