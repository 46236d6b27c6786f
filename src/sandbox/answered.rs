//! Opens and links that init answers where nothing can be mounted: of devices that there is no node for, and of what builds
//! need of `/proc`.
//!
//! Empty files stand at those names, for who only looks whether they are there. Who opens a device gets it as init has it
//! open. Who opens a file of `/proc` gets a copy in memory of what it would read, and never a descriptor of the machine's
//! own `/proc`: links and folders of that lead out of the root, and whoever is root may change its modes. Who opens what it has
//! open already, by its name, gets it opened again, with its own rights. What is in no list here isn't there.
//!
//! Init opens fixed names alone, and of processes those of the rule. The path that was asked for is copied before it is looked
//! at, so that nobody can make another one of it meanwhile.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use crate::sandbox::asked::{Answer, Caller, How, name_of};
use crate::sys::seccomp::{self, Notification};
use crate::sys::{file, memory, proc, process};

/// Of the machine.
const MACHINE: [&str; 9] = [
    "cpuinfo",                  // how many processors there are: scripts, Java
    "filesystems",              // libselinux, whenever ls, cp or dpkg starts: is there selinuxfs
    "loadavg",                  // make -l
    "meminfo",                  // how much memory to take: sort, gcc, Java
    "stat",                     // processors and their time: Java, older C libraries
    "sys/kernel/cap_last_cap",  // libcap, so setpriv and others
    "sys/kernel/random/uuid",   // scripts that want a name which nobody has
    "sys/vm/overcommit_memory", // the allocators of the C library and of rustc
    "version",                  // scripts that ask what kernel this is
];

/// Of a process.
const PROCESS: [&str; 8] = [
    "cgroup",    // Java: is its memory limited
    "cmdline",   // start-stop-daemon, and who wants to know how it was called
    "comm",      // the same
    "maps",      // where the stack lies: pthread_getattr_np, so rustc, and Java
    "mountinfo", // mountpoint, as Java's packages ask it for /proc; df
    "mounts",    // the same
    "stat",      // what processes start-stop-daemon and shells' scripts look for
    "status",    // the same; how much memory one has taken
];

/// As it is in namespaces, where nothing of the machine is to be seen in them.
const CGROUP: &str = "0::/\n";
const MOUNTS: [(&str, &str, &str); 5] = [
    ("/", "overlay", "rw"),
    ("/run", "tmpfs", "rw,nosuid,nodev"),
    ("/dev", "tmpfs", "rw,nosuid,nodev"),
    ("/proc", "proc", "rw,nosuid,nodev,noexec"),
    ("/sys", "tmpfs", "ro,nosuid,nodev"),
];

/// Of a process, where they lead.
const LINKS: [&str; 2] = [
    "cwd", // the folder where it works
    "exe", // the loader for $ORIGIN, so Java and rustc for their libraries; who wants to know where it lies
];

/// What is answered.
#[derive(Default)]
pub(super) struct Answers {
    /// Devices without a node: the path of each, and the device open for both; `None`: there is none.
    pub devices: Vec<(Vec<u8>, Option<OwnedFd>)>,
    /// There is no `/proc`.
    pub proc: bool,
    /// The `/proc` that init has open is that of a container around us, where threads have other numbers.
    pub outer_proc: bool,
    /// Who the steps are, where that isn't root.
    pub user: Option<(u32, u32)>,
    /// The steps have no capability.
    pub no_capabilities: bool,
}

/// A process, as a path says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Callers,
    Number(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Machine(&'static str),
    Process(Whose, &'static str),
    /// A link; an empty name: `/proc/self` itself.
    Link(Whose, &'static str),
}

/// Which of the names a path is.
fn meant(path: &[u8]) -> Option<Meant> {
    let below = std::str::from_utf8(path.strip_prefix(b"/proc/")?).ok()?;
    let known = |names: &[&'static str], wanted: &str| names.iter().copied().find(|name| *name == wanted);
    if let Some(name) = known(&MACHINE, below) {
        return Some(Meant::Machine(name));
    }
    match below {
        "self" => return Some(Meant::Link(Whose::Callers, "")),
        "mounts" => return Some(Meant::Process(Whose::Callers, "mounts")),
        _ => {}
    }
    let (whose, name) = below.split_once('/')?;
    let whose = match whose {
        "self" | "thread-self" => Whose::Callers,
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => Whose::Number(digits.parse().ok()?),
        _ => return None,
    };
    let file = known(&PROCESS, name).map(|name| Meant::Process(whose, name));
    file.or_else(|| known(&LINKS, name).map(|name| Meant::Link(whose, name)))
}

/// Can a relative path be one of the names at all? Most can't, and where it starts needn't be found out.
fn may_be_meant(path: &[u8]) -> bool {
    fn last(path: &[u8]) -> &[u8] {
        path.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }
    let names = MACHINE.iter().chain(&PROCESS).chain(&LINKS).chain(&["self"]);
    names.map(|name| last(name.as_bytes())).any(|name| name == last(path))
}

/// The names that stand in `/proc`: of files, below it, and of links.
pub(super) fn names() -> (impl Iterator<Item = String>, impl Iterator<Item = String>) {
    let of_processes = PROCESS.into_iter().map(|name| format!("/proc/self/{name}"));
    let of_the_machine = MACHINE.into_iter().chain(["mounts"]).map(|name| format!("/proc/{name}"));
    (of_the_machine.chain(of_processes), LINKS.into_iter().map(|name| format!("/proc/self/{name}")))
}

/// Where `resolve` stands in `struct open_how`, behind flags and mode: openat2(2).
const RESOLVE: u64 = 16;

/// Something that is answered when it is opened.
enum Known<'a> {
    Device(Option<&'a OwnedFd>),
    /// What the caller has open, by its name below `/proc`.
    Descriptor(String),
    Text(Meant, Caller),
}

impl Answers {
    /// An open of a device for which there is no node, or of a file of `/proc`. Every other one is the kernel's, of a path
    /// that may be another one by then: this refuses nothing.
    pub fn open(&self, listener: BorrowedFd, asked: &Notification, (folder, path): (i32, u64), how: &How) -> Answer {
        let Ok(path) = process::read_string(asked.thread, path) else { return Answer::Proceed };
        let device = self.devices.iter().find(|(name, _)| *name == path);
        let known = match device {
            Some((_, device)) => Some(Known::Device(device.as_ref())),
            None => self.known(asked, folder, &path),
        };
        let Some(known) = known else { return Answer::Proceed };
        let flags = match how {
            How::Flags(flags) => Ok(*flags),
            How::At(address) => match process::read_number(asked.thread, *address + RESOLVE) {
                // Who says how the path is to be resolved means another root, or no links.
                Ok(1..) => return Answer::Proceed,
                Ok(0) => process::read_number(asked.thread, *address).map(|flags| flags as i32),
                Err(errno) => Err(errno),
            },
        };
        let names_alone = flags.is_ok_and(|flags| flags & libc::O_PATH != 0);
        if names_alone && !matches!(known, Known::Device(_)) {
            return Answer::Proceed;
        }
        let given = flags.and_then(|flags| {
            let exclusive = libc::O_CREAT | libc::O_EXCL;
            if flags & exclusive == exclusive {
                return Err(Errno::EEXIST);
            }
            if flags & libc::O_DIRECTORY != 0 && !matches!(known, Known::Descriptor(_)) {
                return Err(Errno::ENOTDIR);
            }
            if flags & libc::O_NOFOLLOW != 0 && matches!(known, Known::Descriptor(_)) {
                return Err(Errno::ELOOP);
            }
            let opened = match &known {
                Known::Descriptor(name) => self.looking(|| open_again(name, flags))?,
                Known::Device(device) => open_device(device.ok_or(Errno::ENXIO)?, flags)?,
                Known::Text(..) if flags & libc::O_ACCMODE != libc::O_RDONLY => return Err(Errno::EACCES),
                Known::Text(meant, caller) => memory::file_of(&self.text(*meant, caller)?)?,
            };
            if !seccomp::still_waits(listener, asked.id) {
                return Err(Errno::EINTR);
            }
            if flags & libc::O_TRUNC != 0 && matches!(known, Known::Descriptor(_)) {
                empty(&opened, flags)?;
            }
            seccomp::give(listener, asked.id, opened.as_fd(), flags & libc::O_CLOEXEC != 0)
        });
        match given {
            Ok(()) => Answer::Given,
            Err(errno) => Answer::Done(Err(errno)),
        }
    }

    /// What a link of `/proc` says; every other link is the kernel's.
    pub fn read_link(
        &self,
        listener: BorrowedFd,
        asked: &Notification,
        (folder, path): (i32, u64),
        (into, size): (u64, usize),
    ) -> Answer {
        let Ok(path) = process::read_string(asked.thread, path) else { return Answer::Proceed };
        let Some((Meant::Link(whose, name), caller)) = self.meant(asked, folder, &path) else { return Answer::Proceed };
        let told = self.link(&caller, whose, name).and_then(|link| {
            if size == 0 {
                return Err(Errno::EINVAL);
            }
            if !seccomp::still_waits(listener, asked.id) {
                return Err(Errno::EINTR);
            }
            let told = link.get(..size).unwrap_or(&link);
            process::write_memory(asked.thread, into, told)?;
            Ok(told.len())
        });
        match told {
            Ok(length) => Answer::Length(length),
            Err(errno) => Answer::Done(Err(errno)),
        }
    }

    /// What of `/proc` is opened.
    fn known(&self, asked: &Notification, folder: i32, path: &[u8]) -> Option<Known<'_>> {
        if self.proc && [b"/dev/".as_slice(), b"/proc/"].into_iter().any(|top| path.starts_with(top)) {
            let caller = Caller::of(asked, self.outer_proc).ok()?;
            if let Some(name) = caller.own_descriptor(path) {
                return Some(Known::Descriptor(name));
            }
        }
        match self.meant(asked, folder, path)? {
            (Meant::Link(..), _) => None,
            (meant, caller) => Some(Known::Text(meant, caller)),
        }
    }

    /// Which of the names a caller means, and the caller.
    fn meant(&self, asked: &Notification, folder: i32, path: &[u8]) -> Option<(Meant, Caller)> {
        if !self.proc || !may_be_meant(path) {
            return None;
        }
        let caller = Caller::of(asked, self.outer_proc).ok()?;
        if path.starts_with(b"/") {
            return Some((meant(path)?, caller));
        }
        let start = self.looking(|| caller.start(folder).and_then(|start| name_of(start.as_fd()))).ok()?;
        let start = if start == b"/" { b"" } else { start.as_slice() };
        Some((meant(&[start, b"/", path].concat())?, caller))
    }

    fn text(&self, meant: Meant, caller: &Caller) -> nix::Result<Vec<u8>> {
        match meant {
            Meant::Machine(name) => proc::read_bytes(name),
            Meant::Process(whose, name) => {
                let number = self.number(caller, whose)?;
                match name {
                    "cgroup" => Ok(CGROUP.into()),
                    "mountinfo" => Ok(mountinfo().into()),
                    "mounts" => Ok(mounts().into()),
                    _ => {
                        let text = self.looking(|| proc::read_bytes(&format!("{number}/{name}")))?;
                        // It was none of somebody who got its number meanwhile.
                        self.number(caller, whose).map(|_| text)
                    }
                }
            }
            Meant::Link(..) => Err(Errno::EINVAL),
        }
    }

    fn link(&self, caller: &Caller, whose: Whose, name: &str) -> nix::Result<Vec<u8>> {
        let number = self.number(caller, whose)?;
        if name.is_empty() {
            return Ok(number.to_string().into());
        }
        let link = self.looking(|| {
            // As our root has it, which is that of the snapshot.
            let (link, root) = (proc::link(&format!("{number}/{name}"))?, proc::link(&caller.own("root"))?);
            Ok(match link.strip_prefix(root.as_slice()) {
                Some(below) if root != b"/" && below.starts_with(b"/") => below.to_vec(),
                _ => link,
            })
        })?;
        self.number(caller, whose).map(|_| link)
    }

    /// The number of a process: of the caller, or of another one of the rule.
    fn number(&self, caller: &Caller, whose: Whose) -> nix::Result<i32> {
        match whose {
            Whose::Callers => {
                let status = proc::read(&caller.own("status"))?;
                let number = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
                number.and_then(|number| number.trim().parse().ok()).ok_or(Errno::ESRCH)
            }
            Whose::Number(number) if proc::is_descendant(number) => Ok(number),
            Whose::Number(_) => Err(Errno::ENOENT),
        }
    }

    /// Looks into a process, or opens what it has, as the kernel lets the step itself.
    fn looking<T>(&self, look: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
        match self.user {
            Some(user) => process::with_files_of(user, look),
            None if self.no_capabilities => process::without_capabilities(look),
            None => look(),
        }
    }
}

/// A descriptor of its own, for what its flags let it do.
fn open_device(device: &OwnedFd, flags: i32) -> nix::Result<OwnedFd> {
    let wanted = OFlag::from_bits_truncate(flags & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND));
    proc::open(&format!("self/fd/{}", device.as_raw_fd()), wanted)
}

/// What is open already, as the kernel opens it by its link. Init waits for nobody at the other end of a pipe.
fn open_again(name: &str, flags: i32) -> nix::Result<OwnedFd> {
    let kept = libc::O_ACCMODE | libc::O_APPEND | libc::O_DIRECTORY;
    let opened = proc::open(name, OFlag::from_bits_truncate(flags & kept) | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    let wanted = OFlag::from_bits_truncate(flags & (libc::O_APPEND | libc::O_NONBLOCK));
    nix::fcntl::fcntl(&opened, nix::fcntl::FcntlArg::F_SETFL(wanted))?;
    Ok(opened)
}

/// What O_TRUNC does to a file, once it is sure whose it is.
fn empty(opened: &OwnedFd, flags: i32) -> nix::Result<()> {
    let regular = file::kind(&nix::sys::stat::fstat(opened)?) == SFlag::S_IFREG;
    if regular && flags & libc::O_ACCMODE != libc::O_RDONLY { nix::unistd::ftruncate(opened, 0) } else { Ok(()) }
}

fn mountinfo() -> String {
    let line = |(number, (path, kind, options)): (usize, &(&str, &str, &str))| {
        let parent = usize::from(number > 0);
        format!("{} {parent} 0:{} / {path} {options},relatime - {kind} {kind} rw\n", number + 1, number + 1)
    };
    MOUNTS.iter().enumerate().map(line).collect()
}

fn mounts() -> String {
    MOUNTS.iter().map(|(path, kind, options)| format!("{kind} {path} {kind} {options},relatime 0 0\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_in_the_list_or_is_not_answered() {
        let of = |path: &str| meant(path.as_bytes());
        assert_eq!(of("/proc/meminfo"), Some(Meant::Machine("meminfo")));
        assert_eq!(of("/proc/sys/vm/overcommit_memory"), Some(Meant::Machine("sys/vm/overcommit_memory")));
        assert_eq!(of("/proc/mounts"), Some(Meant::Process(Whose::Callers, "mounts")));
        assert_eq!(of("/proc/thread-self/maps"), Some(Meant::Process(Whose::Callers, "maps")));
        assert_eq!(of("/proc/42/status"), Some(Meant::Process(Whose::Number(42), "status")));
        assert_eq!(of("/proc/self/exe"), Some(Meant::Link(Whose::Callers, "exe")));
        assert_eq!(of("/proc/self"), Some(Meant::Link(Whose::Callers, "")));
        let others = "/proc /proc/ /proc/kcore /proc/self/root /proc/self/mem /proc/self/environ /proc/self/fd/1 /proc/self/ns/mnt \
             /proc/1/root/etc/passwd /proc/1/../kcore /proc/+1/stat /proc/-1/stat /proc//stat /proc/99999999999/stat \
             /proc/self/maps/.. /proc/self/../1/environ /procmeminfo meminfo /x/proc/meminfo";
        for path in others.split_whitespace() {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn where_a_relative_path_starts_is_found_out_only_for_the_last_part_of_a_name() {
        for path in ["cpuinfo", "self/maps", "../../proc/sys/vm/overcommit_memory", "uuid", "self"] {
            assert!(may_be_meant(path.as_bytes()), "{path}");
        }
        for path in ["", "main.c", "maps/", "self/mapsx", "/usr/lib/libc.so.6"] {
            assert!(!may_be_meant(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn mounts_are_those_of_a_namespace() {
        assert!(mountinfo().starts_with("1 0 0:1 / / rw,relatime - overlay overlay rw\n2 1 0:2 / /run "));
        assert!(mounts().contains("proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n"));
    }
}
