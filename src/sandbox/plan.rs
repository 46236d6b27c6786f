//! What is done to make a sandbox, in order, as data: init carries it out in one loop, `Display`
//! prints it.
//!
//! Everything is mounted below the new root before pivot_root(2), while the host's `/proc` can
//! still be seen: the kernel gives a fresh one only to who sees one already.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::build_file::spec::Step;
use crate::error::{Error, Result};
use crate::sandbox::place::Isolation;
use crate::sandbox::seen::Known;
use crate::sandbox::spec::{Secret, Spec, Standard};

/// A path of the host, as bytes: it need not be UTF-8.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct HostPath(PathBuf);

impl From<Vec<u8>> for HostPath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(OsString::from_vec(bytes).into())
    }
}

impl From<HostPath> for Vec<u8> {
    fn from(path: HostPath) -> Self {
        path.0.into_os_string().into_vec()
    }
}

impl From<&PathBuf> for HostPath {
    fn from(path: &PathBuf) -> Self {
        Self(path.clone())
    }
}

impl std::ops::Deref for HostPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Debug for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// One thing that is done to make a sandbox. Paths inside are absolute, and no part of them may be a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Mounts made here stay here.
    Private,
    /// The snapshot.
    Overlay {
        /// The lowest first.
        lower: Vec<HostPath>,
        /// What changes.
        upper: HostPath,
        /// For the kernel.
        work: HostPath,
        /// An empty folder of the host.
        root: HostPath,
    },
    /// A folder of the snapshot that is a stack of its own.
    Above {
        /// Inside.
        inside: String,
        /// The lowest first.
        lower: Vec<HostPath>,
        /// What changes.
        upper: HostPath,
        /// For the kernel.
        work: HostPath,
    },
    /// The snapshot, as a folder that is there.
    Tree {
        /// It takes what changes.
        tree: HostPath,
        /// An empty folder of the host.
        root: HostPath,
    },
    /// The same where nothing can be mounted.
    Folders(HostPath),
    /// A copy of a file or folder of the host.
    Copy {
        /// On the host.
        host: HostPath,
        /// Inside.
        inside: String,
    },
    /// A device node of that name, or its opens are answered.
    Node(String),
    /// The steps are this user and no root, where the container lets them; all in the root becomes the user's.
    User {
        /// Who.
        uid: u32,
        /// In which group.
        gid: u32,
    },
    /// What init answers of `/proc` is there to be looked at.
    Answers,
    /// The folder becomes the root.
    Chroot,
    /// A folder of the snapshot becomes a mount of its own, so that it can't be removed or renamed.
    Own(String),
    /// A file or folder of the host.
    Bind {
        /// On the host.
        host: HostPath,
        /// Inside.
        inside: String,
        /// It can't be written.
        read_only: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Inside.
        inside: String,
        /// Of its root.
        mode: u32,
    },
    /// A device node of the host that no harm can be done with.
    Device(String),
    /// Pseudo terminals of its own.
    Terminals,
    /// A symbolic link.
    Link {
        /// Its target.
        target: String,
        /// Inside.
        inside: String,
    },
    /// A folder.
    Folder {
        /// Inside.
        inside: String,
        /// Its mode, if it must be made.
        mode: u32,
    },
    /// The processes of this sandbox.
    Proc,
    /// No further control group namespace: in one of its own a rule could mount the host's control
    /// groups, which reach processes outside (`cgroup.kill`).
    NoControlGroups,
    /// What is there can't be written any more.
    ReadOnly(String),
    /// What is there can't be read any more: it looks as `/dev/null` or `/sys` do.
    Mask(String),
    /// A file in memory that the steps may read: `/run/secrets/NAME`.
    Secret(String),
    /// The loopback interface is brought up.
    Loopback,
    /// The host name.
    Hostname(String),
    /// How many processes there may be.
    Processes(u64),
    /// The root can't be written any more.
    ReadOnlyRoot,
    /// The new root becomes the root, and the old one is let go.
    Pivot,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => write!(f, "keep mounts private"),
            Self::Overlay { lower, upper, .. } => write!(f, "stack {} folders below {}", lower.len(), upper.display()),
            Self::Above { inside, lower, .. } => write!(f, "stack {} folders at {inside}", lower.len()),
            Self::Tree { tree, .. } => write!(f, "take {} as it is", tree.display()),
            Self::Folders(tree) => write!(f, "take {} as it is, and mount nothing", tree.display()),
            Self::Copy { host, inside } => write!(f, "copy {} to {inside}", host.display()),
            Self::Node(name) => write!(f, "node /dev/{name}, or answer its opens"),
            Self::User { uid, gid } => write!(f, "become {uid}:{gid}, and own all"),
            Self::Answers => write!(f, "answer what builds ask of /proc"),
            Self::Chroot => write!(f, "change the root"),
            Self::Own(inside) => write!(f, "make {inside} a mount of its own"),
            Self::Bind { host, inside, read_only } => {
                write!(f, "show {} at {inside}{}", host.display(), if *read_only { ", read-only" } else { "" })
            }
            Self::Tmpfs { inside, mode } => write!(f, "empty {inside} in memory, mode {mode:04o}"),
            Self::Device(name) => write!(f, "device /dev/{name}"),
            Self::Terminals => write!(f, "terminals at /dev/pts"),
            Self::Link { target, inside } => write!(f, "link {inside} -> {target}"),
            Self::Folder { inside, mode } => write!(f, "folder {inside}, mode {mode:04o}"),
            Self::Proc => write!(f, "processes at /proc"),
            Self::NoControlGroups => write!(f, "no further control group namespaces"),
            Self::ReadOnly(inside) => write!(f, "{inside} read-only"),
            Self::Mask(inside) => write!(f, "{inside} masked"),
            Self::Secret(name) => write!(f, "secret at {SECRETS}/{name}"),
            Self::Loopback => write!(f, "loopback interface up"),
            Self::Hostname(name) => write!(f, "host name {name}"),
            Self::Processes(most) => write!(f, "at most {most} processes"),
            Self::ReadOnlyRoot => write!(f, "root read-only"),
            Self::Pivot => write!(f, "enter the new root"),
        }
    }
}

/// Where secrets lie: a file system in memory, that no changeset holds.
pub(super) const SECRETS: &str = "/run/secrets";

/// The devices of the host that are shown: none of them holds anything.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Parts of `/proc` that act on the whole machine. Started by real root, the ID that is mapped IS
/// the host's root, which the kernel lets write most of them without a capability.
const READ_ONLY: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];

/// Parts of `/proc` that tell about the host's memory, keys, timers and hardware.
const MASKED: [&str; 16] = [
    "kcore",
    "keys",
    "timer_list",
    "latency_stats",
    "sched_debug",
    "acpi",
    "asound",
    "scsi",
    "interrupts",
    "vmallocinfo",
    "slabinfo",
    "pagetypeinfo",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "cmdline",
];

/// What nobody asked to be limited may still not eat the machine.
const DEFAULT_PROCESSES: u64 = 16_384;

/// A file of holes costs a rule nothing, and everything that reads it a long time: a terabyte of them is a
/// mistake far more often than a wish.
pub const DEFAULT_FILE_SIZE: u64 = 64 << 30;

/// What is done for a spec, in order.
pub fn plan(spec: &Spec) -> Result<Vec<Operation>> {
    check(spec)?;
    if spec.isolation == Isolation::Chroot {
        return without_namespaces(spec);
    }
    let folder = |inside: &str, mode| Operation::Folder { inside: inside.into(), mode };
    let link = |target: &str, inside: &str| Operation::Link { target: target.into(), inside: inside.into() };
    let tmpfs = |inside: &str, mode| Operation::Tmpfs { inside: inside.into(), mode };
    let root = match &spec.tree {
        Some(tree) => Operation::Tree { tree: tree.into(), root: (&spec.root).into() },
        None => Operation::Overlay {
            lower: spec.lower.iter().map(HostPath::from).collect(),
            upper: (&spec.upper).into(),
            work: (&spec.work).into(),
            root: (&spec.root).into(),
        },
    };
    let mut plan = vec![Operation::Private, root];
    plan.extend(spec.places.iter().map(|above| Operation::Above {
        inside: above.inside.clone(),
        lower: above.lower.iter().map(HostPath::from).collect(),
        upper: (&above.upper).into(),
        work: (&above.work).into(),
    }));
    plan.extend([
        Operation::Own("/tmp".into()),
        tmpfs("/run", 0o755),
        tmpfs("/dev", 0o755),
        folder("/dev/shm", 0o1777),
        Operation::Terminals,
        link("pts/ptmx", "/dev/ptmx"),
        link("/proc/self/fd", "/dev/fd"),
        link("/proc/self/fd/0", "/dev/stdin"),
        link("/proc/self/fd/1", "/dev/stdout"),
        link("/proc/self/fd/2", "/dev/stderr"),
    ]);
    plan.extend(DEVICES.map(|name| Operation::Device(name.into())));
    plan.push(Operation::Proc);
    plan.push(Operation::NoControlGroups);
    plan.push(Operation::Processes(spec.limits.processes.unwrap_or(DEFAULT_PROCESSES)));
    plan.extend(READ_ONLY.map(|name| Operation::ReadOnly(format!("/proc/{name}"))));
    plan.push(tmpfs("/sys", 0o555));
    plan.push(Operation::ReadOnly("/sys".into()));
    plan.extend(MASKED.map(|name| Operation::Mask(format!("/proc/{name}"))));
    plan.extend(spec.mounts.iter().map(|bind| Operation::Bind {
        host: (&bind.host).into(),
        inside: bind.inside.clone(),
        read_only: bind.read_only,
    }));
    if !spec.secrets.is_empty() {
        plan.push(folder(SECRETS, 0o700));
        plan.extend(spec.secrets.iter().map(|secret| Operation::Secret(secret.name.clone())));
    }
    if !spec.network {
        plan.push(Operation::Loopback);
    }
    plan.push(Operation::Hostname(spec.hostname.clone()));
    if spec.read_only_root {
        plan.push(Operation::ReadOnlyRoot);
    }
    plan.push(Operation::Pivot);
    Ok(plan)
}

/// The same where there are no namespaces: a folder, and nothing is mounted. What is left out of
/// changesets is emptied at the end.
fn without_namespaces(spec: &Spec) -> Result<Vec<Operation>> {
    let tree = spec.tree.as_ref().ok_or_else(|| Error::failed("without namespaces there is no overlay"))?;
    let cannot = |what: &str, why: &str| {
        Error::request(format!("--isolation chroot has no {what}"))
            .why(why)
            .next(format!("leave out {what} of the rule, or build where there are namespaces"))
    };
    if !spec.secrets.is_empty() {
        return Err(cannot("secrets", "they are shown in memory, and without namespaces nothing is mounted"));
    }
    if spec.mounts.iter().any(|bind| !bind.read_only) {
        return Err(cannot("caches", "they are mounted, and without namespaces nothing is"));
    }
    let folder = |inside: &str, mode| Operation::Folder { inside: inside.into(), mode };
    let link = |target: &str, inside: &str| Operation::Link { target: target.into(), inside: inside.into() };
    let mut plan = vec![
        Operation::Folders(tree.into()),
        // As they are made, where a builder has none, to mount on them.
        folder("/run", 0o755),
        folder("/dev", 0o755),
        folder("/proc", 0o555),
        folder("/sys", 0o755),
        folder("/dev/shm", 0o1777),
        link("/proc/self/fd", "/dev/fd"),
        link("/proc/self/fd/0", "/dev/stdin"),
        link("/proc/self/fd/1", "/dev/stdout"),
        link("/proc/self/fd/2", "/dev/stderr"),
    ];
    plan.extend(DEVICES.map(|name| Operation::Node(name.into())));
    plan.push(Operation::Answers);
    plan.extend(
        spec.mounts.iter().map(|bind| Operation::Copy { host: (&bind.host).into(), inside: bind.inside.clone() }),
    );
    if spec.uid != 0 {
        plan.push(Operation::User { uid: spec.uid, gid: spec.gid });
    }
    plan.push(Operation::Chroot);
    Ok(plan)
}

fn check(spec: &Spec) -> Result<()> {
    if spec.range.is_some() && spec.tree.is_some() {
        return Err(Error::request("ids = \"range\" can't be had here")
            .why("it needs namespaces and an overlay: a kept tree is one user's alone")
            .next("leave it out of the rule, or build where `tapeout doctor` says that there are overlays"));
    }
    let relative = spec
        .lower
        .iter()
        .chain([&spec.upper, &spec.work, &spec.root, &spec.tmp])
        .chain(&spec.tree)
        .chain(spec.mounts.iter().map(|b| &b.host));
    if let Some(path) = relative.into_iter().find(|path| !path.is_absolute()) {
        return Err(Error::failed(format!("not an absolute path: {}", path.display())));
    }
    for inside in spec.mounts.iter().map(|bind| &bind.inside).chain([&spec.cwd]) {
        let plain = inside.starts_with('/') && !inside.contains('\0') && inside.split('/').all(|part| part != "..");
        if !plain {
            return Err(Error::request(format!("not an absolute path without ..: {inside:?}")));
        }
        // A working folder of /proc/self/fd/7 led out of other people's sandboxes (CVE-2024-21626).
        if inside.split('/').find(|part| !part.is_empty()) == Some("proc") {
            return Err(Error::request(format!("nothing may be mounted or run below /proc: {inside:?}")));
        }
    }
    let name = &spec.hostname;
    if name.is_empty() || name.len() > 64 || name.contains('\0') {
        return Err(Error::request(format!("not a host name: {name:?}")));
    }
    let texts = spec.steps.iter().flat_map(|step| match step {
        Step::Shell(script) => std::slice::from_ref(script),
        Step::Argv(argv) => argv.as_slice(),
    });
    if let Some(text) = texts.chain(spec.env.keys()).chain(spec.env.values()).find(|text| text.contains('\0')) {
        return Err(Error::request(format!("a NUL byte in a script, an argument or the environment: {text:?}")));
    }
    Ok(())
}

/// All that init is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub operations: Vec<Operation>,
    pub steps: Vec<Program>,
    pub env: Vec<String>,
    pub path: String,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub secrets: Vec<Secret>,
    pub seen: Option<Known>,
    pub range: Option<Known>,
    pub standard: Standard,
    pub no_capabilities: bool,
    /// The snapshot is a folder as it is.
    pub tree: bool,
    /// Folders that are a stack of their own.
    pub places: Vec<String>,
    /// There are no namespaces.
    pub chroot: bool,
    /// The network is that of the machine or container, and not for this rule.
    pub foreign_network: bool,
    pub processes: u64,
    pub memory: Option<u64>,
    pub file_size: u64,
    pub time: Option<u64>,
}

/// What one step executes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Program {
    pub argv: Vec<String>,
}

impl Order {
    pub fn new(spec: &Spec) -> Result<Self> {
        let program = |step: &Step| match step {
            Step::Shell(script) => Program { argv: ["/bin/sh", "-e", "-c", script].map(str::to_string).to_vec() },
            Step::Argv(argv) => Program { argv: argv.clone() },
        };
        let chroot = spec.isolation == Isolation::Chroot;
        // Without a map we are who we are: root. A step without capabilities can be the user, or may no more than that
        // user: `Operation::User`.
        let (uid, gid) = if chroot { (0, 0) } else { (spec.uid, spec.gid) };
        if chroot && !spec.no_capabilities && (uid, gid) != (spec.uid, spec.gid) {
            return Err(Error::request(format!("--isolation chroot can't run a rule as user {}", spec.uid))
                .why("another user than root is mapped by a user namespace, and there is none")
                .next("leave out user = … of the rule, or build where there are namespaces"));
        }
        Ok(Self {
            tree: spec.tree.is_some(),
            places: spec.places.iter().map(|above| above.inside.clone()).collect(),
            chroot,
            foreign_network: chroot && !spec.network,
            operations: plan(spec)?,
            steps: spec.steps.iter().map(program).collect(),
            env: spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            path: spec
                .env
                .get("PATH")
                .cloned()
                .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
            cwd: spec.cwd.clone(),
            uid,
            gid,
            secrets: spec.secrets.clone(),
            seen: spec.seen.clone(),
            range: spec.range.clone(),
            standard: spec.standard,
            no_capabilities: spec.no_capabilities,
            processes: spec.limits.processes.unwrap_or(DEFAULT_PROCESSES),
            memory: spec.limits.memory,
            file_size: spec.limits.file_size.unwrap_or(DEFAULT_FILE_SIZE),
            time: spec.limits.time,
        })
    }
}

/// What init says at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// All steps ran, or one of them failed.
    Done(crate::sandbox::spec::Outcome),
    /// The sandbox could not be made, or a step not be started.
    Failed(Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;

    fn spec() -> Spec {
        Spec {
            lower: vec!["/store/a".into(), "/store/b".into()],
            upper: "/scratch/upper".into(),
            work: "/scratch/work".into(),
            root: "/scratch/root".into(),
            tmp: "/scratch/tmp".into(),
            cwd: "/workspace/app".into(),
            hostname: "tapeout".into(),
            ..Spec::default()
        }
    }

    #[test]
    fn the_plan_reads_in_order() {
        let text = plan(&spec()).unwrap().iter().fold(String::new(), |mut text, operation| {
            writeln!(text, "{operation}").unwrap();
            text
        });
        assert_eq!(
            text,
            "keep mounts private\nstack 2 folders below /scratch/upper\nmake /tmp a mount of its own\n\
             empty /run in memory, mode 0755\nempty /dev in memory, mode 0755\nfolder /dev/shm, mode 1777\n\
             terminals at /dev/pts\nlink /dev/ptmx -> pts/ptmx\nlink /dev/fd -> /proc/self/fd\n\
             link /dev/stdin -> /proc/self/fd/0\nlink /dev/stdout -> /proc/self/fd/1\nlink /dev/stderr -> /proc/self/fd/2\n\
             device /dev/null\ndevice /dev/zero\ndevice /dev/full\ndevice /dev/random\ndevice /dev/urandom\ndevice /dev/tty\n\
             processes at /proc\nno further control group namespaces\nat most 16384 processes\n\
             /proc/sys read-only\n/proc/sysrq-trigger read-only\n/proc/irq read-only\n/proc/bus read-only\n/proc/fs read-only\n\
             empty /sys in memory, mode 0555\n/sys read-only\n\
             /proc/kcore masked\n/proc/keys masked\n/proc/timer_list masked\n/proc/latency_stats masked\n/proc/sched_debug masked\n\
             /proc/acpi masked\n/proc/asound masked\n/proc/scsi masked\n/proc/interrupts masked\n/proc/vmallocinfo masked\n\
             /proc/slabinfo masked\n/proc/pagetypeinfo masked\n/proc/kpagecount masked\n/proc/kpageflags masked\n/proc/kpagecgroup masked\n\
             /proc/cmdline masked\n\
             loopback interface up\nhost name tapeout\nenter the new root\n"
        );
    }

    #[test]
    fn a_working_folder_that_leads_elsewhere_is_refused() {
        for cwd in ["", "app", "/a/../b", "/proc/self/fd/7", "//proc/1", "/a\0b"] {
            assert!(plan(&Spec { cwd: cwd.into(), ..spec() }).is_err(), "{cwd:?}");
        }
    }

    #[test]
    fn a_host_path_need_not_be_utf8() {
        let path = HostPath(PathBuf::from(OsString::from_vec(vec![b'/', 0xff])));
        let bytes = postcard::to_stdvec(&path).unwrap();
        assert_eq!(postcard::from_bytes::<HostPath>(&bytes).unwrap(), path);
        assert_eq!(path.as_os_str().as_bytes(), [b'/', 0xff]);
    }
}
