//! Which system calls a rule may make: the policy, with a reason at each line.
//!
//! What a build uses is left alone, the mount calls too: without CAP_SYS_ADMIN they work in user
//! namespaces of the rule's own alone, and whoever builds containers inside a rule needs them.

use caps::Capability;

use crate::sys::seccomp::{Action, Rule, When};

/// The highest number that was looked at when this was written: file_setattr, Linux 6.17. What
/// comes later is unknown, and could change owners past our eyes; programs fall back on ENOSYS.
const LAST_CALL: i64 = 469;

const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;

/// How calls that change an owner or make a device are dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// Init answers them.
    Recorded,
    /// It answers what reads an owner, too.
    Seen,
    /// The step is a user without capabilities: the kernel answers them, as init would.
    Users,
    /// Subordinate IDs are mapped: the kernel answers them, but makes no device.
    Real,
    /// The same without a listener: no device can be had.
    RealAlone,
    /// There is no listener to be had: an owner other than the mapped one is an error.
    MappedOnly,
}

/// What has to be closed or answered where there are no namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Open {
    /// The network is somebody else's: only sockets of this machine's file systems are left.
    pub network: bool,
    /// Init opens the devices that there is no node for.
    pub devices: bool,
    /// There is no `/proc`: init answers what builds ask of it.
    pub proc: bool,
}

/// The filter as a program; `mapped` is the only owner that there is.
pub(super) fn program(owners: Owners, mapped: (u32, u32), open: Open) -> Vec<libc::sock_filter> {
    let mut rules = vec![];
    if open.network {
        // Before the longer list of what is left where the network is a rule's own.
        let when = When::NotIn(0, vec![libc::AF_UNIX as u32]);
        rules.push(Rule { call: libc::SYS_socket, when, action: Action::Errno(libc::EAFNOSUPPORT) });
    }
    rules.extend(refused());
    if !matches!(owners, Owners::Real | Owners::RealAlone) {
        rules.extend(without_effect());
    }
    rules.extend(owner_calls(owners, mapped.0, mapped.1));
    if owners != Owners::MappedOnly {
        if open.devices {
            rules.extend(opens(|_| When::Always));
        }
        if open.proc {
            rules.extend(opens(|flags| When::Is(flags, NO_FILE_OF_PROC, 0)));
            rules.extend(links());
        }
    }
    if !matches!(owners, Owners::Users | Owners::MappedOnly | Owners::RealAlone) {
        rules.extend(renames());
    }
    if owners == Owners::Seen {
        rules.extend(reads());
    }
    rules.extend(lists(owners));
    crate::sys::seccomp::program(&rules, LAST_CALL)
}

fn refused() -> Vec<Rule> {
    let refuse = |call, errno| Rule { call, when: When::Always, action: Action::Errno(errno) };
    let mut rules = vec![
        // Keyrings have no namespace: a session's keys, a kerberos ticket among them, would be in reach.
        refuse(libc::SYS_keyctl, libc::EPERM),
        refuse(libc::SYS_add_key, libc::EPERM),
        refuse(libc::SYS_request_key, libc::EPERM),
        // Code in the kernel, and many ways out of it.
        refuse(libc::SYS_bpf, libc::EPERM),
        // Measures the whole machine, and its checks have failed often.
        refuse(libc::SYS_perf_event_open, libc::EPERM),
        // Replace or extend the running kernel, or end it.
        refuse(libc::SYS_kexec_load, libc::EPERM),
        refuse(libc::SYS_init_module, libc::EPERM),
        refuse(libc::SYS_finit_module, libc::EPERM),
        refuse(libc::SYS_delete_module, libc::EPERM),
        refuse(libc::SYS_reboot, libc::EPERM),
        // Holds the kernel still in the middle of a copy: the tool of choice for winning its races.
        refuse(libc::SYS_userfaultfd, libc::EPERM),
        // Its operations pass no filter. Programs fall back when it isn't there.
        refuse(libc::SYS_io_uring_setup, libc::ENOSYS),
        refuse(libc::SYS_io_uring_enter, libc::ENOSYS),
        refuse(libc::SYS_io_uring_register, libc::ENOSYS),
        // Opens by number what no path leads to: the way out of the first containers.
        refuse(libc::SYS_open_by_handle_at, libc::EPERM),
        // The same calls by another name (setxattrat, getxattrat, of Linux 6.13), with their arguments in memory.
        refuse(463, libc::ENOSYS),
        refuse(464, libc::ENOSYS),
        // The host kernel's log.
        refuse(libc::SYS_syslog, libc::EPERM),
        // The whole machine's swap, accounting, quotas and clock.
        refuse(libc::SYS_swapon, libc::EPERM),
        refuse(libc::SYS_swapoff, libc::EPERM),
        refuse(libc::SYS_acct, libc::EPERM),
        refuse(libc::SYS_quotactl, libc::EPERM),
        refuse(libc::SYS_quotactl_fd, libc::EPERM),
        refuse(libc::SYS_settimeofday, libc::EPERM),
        refuse(libc::SYS_clock_settime, libc::EPERM),
        // Types into the terminal of whoever started us; the second one does on a console.
        Rule { call: libc::SYS_ioctl, when: When::Is(1, u32::MAX, TIOCSTI), action: Action::Errno(libc::EPERM) },
        Rule { call: libc::SYS_ioctl, when: When::Is(1, u32::MAX, TIOCLINUX), action: Action::Errno(libc::EPERM) },
        // vsock reaches the hypervisor from any network namespace, AF_ALG and the rare families are
        // kernel code that nobody needs here, packet sockets write raw frames.
        Rule {
            call: libc::SYS_socket,
            when: When::NotIn(
                0,
                [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(|n| n as u32).to_vec(),
            ),
            action: Action::Errno(libc::EAFNOSUPPORT),
        },
    ];
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        // As kexec_load.
        refuse(libc::SYS_kexec_file_load, libc::EPERM),
        // The ports of the hardware.
        refuse(libc::SYS_iopl, libc::EPERM),
        refuse(libc::SYS_ioperm, libc::EPERM),
    ]);
    #[cfg(target_arch = "aarch64")]
    rules.push(refuse(294, libc::EPERM)); // kexec_file_load
    rules
}

/// There is one ID, so changing to another one can't be had; but nearly every daemon, package
/// script and `su` that asks for it works as well without, and none without the answer "done".
fn without_effect() -> Vec<Rule> {
    [
        libc::SYS_setuid,
        libc::SYS_setreuid,
        libc::SYS_setresuid,
        libc::SYS_setfsuid,
        libc::SYS_setgid,
        libc::SYS_setregid,
        libc::SYS_setresgid,
        libc::SYS_setfsgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
    ]
    .map(|call| Rule { call, when: When::Always, action: Action::Errno(0) })
    .to_vec()
}

fn owner_calls(owners: Owners, uid: u32, gid: u32) -> Vec<Rule> {
    // The index of the argument with the user; the group's is the next.
    #[cfg(target_arch = "x86_64")]
    let chowns = [(libc::SYS_chown, 1u8), (libc::SYS_lchown, 1), (libc::SYS_fchown, 1), (libc::SYS_fchownat, 2)];
    #[cfg(not(target_arch = "x86_64"))]
    let chowns = [(libc::SYS_fchown, 1u8), (libc::SYS_fchownat, 2)];
    // The index of the argument with the mode.
    #[cfg(target_arch = "x86_64")]
    let mknods = [(libc::SYS_mknod, 1u8), (libc::SYS_mknodat, 2)];
    #[cfg(not(target_arch = "x86_64"))]
    let mknods = [(libc::SYS_mknodat, 2u8)];

    let action = match owners {
        Owners::Recorded | Owners::Seen | Owners::Real => Action::Notify,
        Owners::Users | Owners::MappedOnly | Owners::RealAlone => Action::Errno(libc::EINVAL),
    };
    let mut rules = vec![];
    for (call, user) in chowns {
        match owners {
            Owners::Recorded | Owners::Seen => rules.push(Rule { call, when: When::Always, action }),
            Owners::Users | Owners::Real | Owners::RealAlone => {}
            Owners::MappedOnly => {
                rules.push(Rule { call, when: When::NotIn(user, vec![uid, u32::MAX]), action });
                rules.push(Rule { call, when: When::NotIn(user + 1, vec![gid, u32::MAX]), action });
            }
        }
    }
    for (call, mode) in mknods {
        // 0/0 too, which the kernel allows to everybody: it is how an overlay says "removed", and a
        // rule must not forge that.
        let action = if action == Action::Notify { action } else { Action::Errno(libc::EPERM) };
        for kind in [CHARACTER_DEVICE, BLOCK_DEVICE] {
            rules.push(Rule { call, when: When::Is(mode, FILE_TYPE, kind), action });
        }
    }
    rules
}

/// Overlay refuses to rename a folder of a lower layer; init does it then. What is an exchange, or
/// leaves a whiteout, stays the kernel's.
fn renames() -> Vec<Rule> {
    let others = libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    let mut rules = vec![Rule { call: libc::SYS_renameat2, when: When::Is(4, others, 0), action: Action::Notify }];
    #[cfg(target_arch = "x86_64")]
    rules.push(Rule { call: libc::SYS_rename, when: When::Always, action: Action::Notify });
    rules.push(Rule { call: libc::SYS_renameat, when: When::Always, action: Action::Notify });
    rules
}

/// Whoever asks for one of these means no file of `/proc`: it is made, a folder, or only named.
const NO_FILE_OF_PROC: u32 = (libc::O_EXCL | libc::O_DIRECTORY | libc::O_PATH) as u32;

/// Opens with these flags, since a filter can't read a path: init answers those of its own, and lets all others pass.
/// `when` is given the index of the flags; those of openat2 lie in memory.
fn opens(when: fn(u8) -> When) -> Vec<Rule> {
    #[cfg(target_arch = "x86_64")]
    let calls = [(libc::SYS_open, when(1)), (libc::SYS_openat, when(2)), (libc::SYS_openat2, When::Always)];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [(libc::SYS_openat, when(2)), (libc::SYS_openat2, When::Always)];
    calls.map(|(call, when)| Rule { call, when, action: Action::Notify }).to_vec()
}

/// The same of every link that is read.
fn links() -> Vec<Rule> {
    #[cfg(target_arch = "x86_64")]
    let calls = [libc::SYS_readlink, libc::SYS_readlinkat];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [libc::SYS_readlinkat];
    calls.map(|call| Rule { call, when: When::Always, action: Action::Notify }).to_vec()
}

/// Access control lists that name somebody (`lists.rs`). Where IDs are real, new ones are as well.
fn lists(owners: Owners) -> Vec<Rule> {
    if matches!(owners, Owners::MappedOnly | Owners::RealAlone) {
        return vec![];
    }
    let gets = [libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr];
    let mut rules = gets.map(|call| Rule { call, when: When::Always, action: Action::Notify }).to_vec();
    if owners != Owners::Real {
        // A list is a head of four bytes and entries of eight.
        let sets = [libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr];
        rules.extend(sets.map(|call| Rule { call, when: When::Is(3, 7, 4), action: Action::Notify }));
    }
    rules
}

/// The calls that show an owner.
fn reads() -> Vec<Rule> {
    #[cfg(target_arch = "x86_64")]
    let calls = [libc::SYS_stat, libc::SYS_lstat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx];
    calls.map(|call| Rule { call, when: When::Always, action: Action::Notify }).to_vec()
}

/// The capabilities of a step: what package scripts and builds use on files and processes of their
/// own. Not among them:
/// - SYS_PTRACE: init is root of the same user namespace, and could be attached to
/// - SYS_ADMIN: would take the masks off /proc, and remount what is read-only
/// - NET_ADMIN, NET_RAW: the network namespace is made, and nobody is there to talk to
/// - DAC_READ_SEARCH: DAC_OVERRIDE is all of it that a build needs
/// - the rest asks for the host's own root anyway
pub(super) fn capabilities(none: bool) -> caps::CapsHashSet {
    let kept: &[Capability] = &[
        Capability::CAP_CHOWN,
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_FOWNER,
        Capability::CAP_FSETID,
        Capability::CAP_KILL,
        Capability::CAP_SETGID,
        Capability::CAP_SETUID,
        Capability::CAP_SETPCAP,
        Capability::CAP_SETFCAP,
        Capability::CAP_MKNOD,
        Capability::CAP_NET_BIND_SERVICE,
        Capability::CAP_SYS_CHROOT,
        Capability::CAP_AUDIT_WRITE,
    ];
    if none { caps::CapsHashSet::new() } else { kept.iter().copied().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_fits_the_kernels_limits() {
        use Owners::{MappedOnly, Real, RealAlone, Recorded, Seen, Users};
        for owners in [Recorded, Seen, Users, Real, RealAlone, MappedOnly] {
            for open in [Open::default(), Open { network: true, devices: true, proc: true }] {
                assert!(program(owners, (0, 0), open).len() < 4096);
            }
        }
    }

    #[test]
    fn no_step_can_trace_init_or_undo_the_mounts() {
        for cap in
            [Capability::CAP_SYS_PTRACE, Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]
        {
            assert!(!capabilities(false).contains(&cap));
        }
        assert!(capabilities(true).is_empty());
    }
}
