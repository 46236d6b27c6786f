//! Processes: namespaces, ID maps, capabilities, and our own executable as a sealed memfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::memfd::MFdFlags;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sys::memory;
use crate::sys::refusal::Refusal;

// --- Our own executable, and the roles that it plays.

/// Begins the first argument of a process that is one of our own roles: `tapeout:sandbox`.
const ROLE: &str = "tapeout:";

static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();
static OWN: OnceLock<Own> = OnceLock::new();

/// Our executable, open for reading.
struct Own {
    fd: OwnedFd,
    sealed: bool,
}

/// For tests, whose own executable has not our `main`: which one plays the roles. The first call counts.
pub fn set_executable(path: PathBuf) {
    let _ = EXECUTABLE.set(path);
}

/// The role that this process was executed for, if any.
pub fn role() -> Option<String> {
    let first = std::env::args_os().next()?;
    first.to_str()?.strip_prefix(ROLE).map(str::to_string)
}

/// Our own executable as a sealed memfd, made once per process: what runs it can reach no file of
/// the host through `/proc/PID/exe`, and nobody can change it. Where the machine forbids to execute
/// a memfd it is the file on disk.
pub fn own_executable() -> Result<BorrowedFd<'static>> {
    if let Some(own) = OWN.get() {
        return Ok(own.fd.as_fd());
    }
    let path = EXECUTABLE.get().map_or_else(|| PathBuf::from("/proc/self/exe"), Clone::clone);
    let source = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let own = match memory::new_file(c"tapeout", flags, libc::MFD_EXEC) {
        Ok(memfd) => Own { fd: seal(&source, File::from(memfd), &path)?, sealed: true },
        // vm.memfd_noexec is 2 (EACCES), or the kernel has no memfd.
        Err(Errno::EACCES | Errno::EPERM | Errno::ENOSYS) => Own { fd: source.into(), sealed: false },
        Err(errno) => return Err(Error::io("memfd_create", "tapeout", errno)),
    };
    // Two threads may have made one each; the first stays, the other is closed.
    Ok(OWN.get_or_init(|| own).fd.as_fd())
}

/// Is what [`own_executable`] gave a sealed memfd?
pub fn is_sealed() -> bool {
    OWN.get().is_some_and(|own| own.sealed)
}

fn seal(mut source: &File, mut copy: File, path: &std::path::Path) -> Result<OwnedFd> {
    io::copy(&mut source, &mut copy).map_err(|e| Error::io("copy", path, e))?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes a number.
    if unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(Error::io("fcntl(F_ADD_SEALS)", "tapeout", io::Error::last_os_error()));
    }
    // The writable descriptor would keep execve at ETXTBSY; a new read-only one doesn't.
    let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
    File::open(&name).map(OwnedFd::from).map_err(|e| Error::io("open", &name, e))
}

/// A command that runs our own executable in a role; `main` sees it by [`role`].
pub fn own_command(role: &str) -> Result<std::process::Command> {
    Ok(command_in_role(own_executable()?, role))
}

/// The same with a descriptor that [`own_executable`] gave to another process.
pub fn command_in_role(executable: BorrowedFd, role: &str) -> std::process::Command {
    use std::os::unix::process::CommandExt;
    // The name is looked up in the child, which has the descriptor until it executes.
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
    command.arg0(format!("{ROLE}{role}"));
    command
}

// --- Namespaces.

/// Real root, or the root of a container: it owns what it makes, and its own rights suffice.
fn is_capable_root() -> bool {
    use caps::{CapSet, Capability};
    let has = |cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false);
    nix::unistd::geteuid().is_root()
        && has(Capability::CAP_DAC_OVERRIDE)
        && has(Capability::CAP_FOWNER)
        && has(Capability::CAP_SETFCAP)
}

/// Enters a user namespace in which 0 is the caller, so that files of any mode that a rule made can
/// be read and removed. Root needs none: then it is only rid of its supplementary groups, which
/// nothing that it starts could drop later. To be called before there are threads.
pub fn enter_user_namespace() -> Result<()> {
    if is_capable_root() {
        drop_groups();
        return Ok(());
    }
    let outside = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| Refusal::new("unshare", errno))?;
    Ok(map_ids((0, 0), outside)?)
}

/// Root's supplementary groups, which are of no use to it; refused, they stay.
pub fn drop_groups() {
    let _ = nix::unistd::setgroups(&[]);
}

/// In a new user namespace: maps one user and one group ID, inside to outside.
pub fn map_ids(inside: (u32, u32), outside: (u32, u32)) -> Result<(), Refusal> {
    // setgroups must say "deny" before gid_map is written, or the kernel answers EPERM: user_namespaces(7).
    let files = [
        ("setgroups", "deny".to_string()),
        ("uid_map", format!("{} {} 1", inside.0, outside.0)),
        ("gid_map", format!("{} {} 1", inside.1, outside.1)),
    ];
    for (name, text) in files {
        let path = format!("/proc/self/{name}");
        std::fs::write(&path, text)
            .map_err(|e| Refusal { call: format!("write({path})"), errno: e.raw_os_error().unwrap_or(libc::EIO) })?;
    }
    Ok(())
}

// --- What a process does to itself.

/// Nobody may look into this process, and it dies with the thread that started it.
///
/// In a user namespace of its own init has capabilities that no step has, and the kernel lets nobody trace who may more.
/// Where there is none, both may have the same, and only the first of these keeps a step out of init.
pub fn harden_self() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| Error::io("prctl(PR_SET_DUMPABLE)", "", errno))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| Error::io("prctl(PR_SET_PDEATHSIG)", "", errno))
}

/// Takes back that it dies with its parent.
pub fn outlive_parent() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(None).map_err(|errno| Error::io("prctl(PR_SET_PDEATHSIG)", "", errno))
}

/// Whoever descends from us and loses its parent becomes our child.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| Error::io("prctl(PR_SET_CHILD_SUBREAPER)", "", errno))
}

/// chroot(2) to an open folder.
pub fn change_root(root: BorrowedFd) -> Result<()> {
    nix::unistd::fchdir(root)
        .and_then(|()| nix::unistd::chroot("."))
        .and_then(|()| nix::unistd::chdir("/"))
        .map_err(|errno| Error::io("chroot", super::file::shown(root, b""), errno))
}

/// Closes every descriptor from 3 on but these.
pub fn close_all_but(keep: &[BorrowedFd]) {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    keep.sort_unstable();
    let mut first = 3;
    for number in keep {
        if first < number {
            close_range(first, number - 1, 0);
        }
        first = number + 1;
    }
    close_range(first, u32::MAX, 0);
}

/// Every descriptor from 3 on is closed when this process executes.
pub fn close_all_on_exec() {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) {
    // SAFETY: the numbers that are closed are owned by no `OwnedFd` that is used later: one caller
    // has just executed and owns but what it keeps, the other only marks.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// dup2(2) onto 0, 1 or 2.
pub fn set_standard(fd: BorrowedFd, number: RawFd) -> nix::Result<()> {
    // SAFETY: dup2 takes two numbers; the standard descriptors belong to nobody else in this process.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// All signals as a new process has them: none blocked, none ignored.
pub fn reset_signals() {
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: the default action runs no code of ours.
            let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
        }
    }
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// The capabilities that this process can keep and give on: these and no others, none inheritable,
/// none ambient.
pub fn keep_only(keep: &caps::CapsHashSet) -> Result<()> {
    use caps::CapSet;
    let failed = |e: caps::errors::CapsError| Error::failed(format!("capset: {e}"));
    let bits = keep.iter().fold(0u64, |bits, cap| bits | cap.bitmask());
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    for number in (0..64).filter(|number| bits & (1 << number) == 0) {
        // SAFETY: PR_CAPBSET_DROP takes a number; EINVAL is how the kernel says that it has none of it.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } < 0 && Errno::last() != Errno::EINVAL {
            return Err(Error::io("prctl(PR_CAPBSET_DROP)", number.to_string(), Errno::last()));
        }
    }
    let have = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let left: caps::CapsHashSet = have.intersection(keep).copied().collect();
    caps::set(None, CapSet::Effective, &left).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &left).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

/// This process's real IDs become those of a user, its effective ones stay: it may look into the user's processes
/// (process_vm_readv(2)) and signal them, and do all that it could. An error: nothing has changed.
pub fn take_real_ids(uid: u32, gid: u32) -> nix::Result<()> {
    use nix::unistd::{Gid, Uid, setresgid, setresuid};
    let (same_user, same_group) = (Uid::from_raw(u32::MAX), Gid::from_raw(u32::MAX));
    let before = nix::unistd::getgid();
    setresgid(Gid::from_raw(gid), same_group, same_group)?;
    setresuid(Uid::from_raw(uid), same_user, same_user).inspect_err(|_| {
        let _ = setresgid(before, same_group, same_group);
    })
}

/// This process becomes a user for good, without any capability.
pub fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The kernel has taken them already, unless somebody around us has told it not to (securebits, capabilities(7)).
    caps::clear(None, caps::CapSet::Effective)
        .and_then(|()| caps::clear(None, caps::CapSet::Permitted))
        .map_err(|_| Errno::EPERM)
}

/// Does something with a user's rights on files, and on processes where `/proc` asks for them.
pub fn with_files_of<T>((uid, gid): (u32, u32), run: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
    let (gid, uid) = (setfsgid(Gid::from_raw(gid)), setfsuid(Uid::from_raw(uid)));
    // The kernel has taken those that count for files already, unless somebody around us has told it not to (securebits).
    let result = without_capabilities(run);
    // They say who it was before, and refuse nothing to who was it.
    setfsuid(uid);
    setfsgid(gid);
    // The kernel sets it to fs.suid_dumpable whenever these change (prctl(2)).
    nix::sys::prctl::set_dumpable(false)?;
    result
}

/// Does something without any capability in effect, so that the kernel looks at modes.
pub fn without_capabilities<T>(run: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    use caps::CapSet;
    let failed = |_: caps::errors::CapsError| Errno::EPERM;
    let effective = caps::read(None, CapSet::Effective).map_err(failed)?;
    caps::clear(None, CapSet::Effective).map_err(failed)?;
    let result = run();
    caps::set(None, CapSet::Effective, &effective).map_err(failed)?;
    result
}

/// A child that shares our memory while we wait for it to execute or exit, as vfork(2) does: it has
/// nothing to copy. `run` gives its exit code, should it come back. Its descriptors, folder, signals
/// and rights are its own.
pub fn spawn(run: impl FnOnce() -> i32) -> Result<Pid> {
    use std::os::unix::fs::MetadataExt;
    // A folder has two links and one more for each folder in it: one thread makes three.
    if std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() != 3) {
        return Err(Error::failed("clone: this process has several threads"));
    }
    extern "C" fn enter<F: FnOnce() -> i32>(run: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `spawn` passes its own `Option<F>`, and waits; nobody else looks at it.
        let run = unsafe { &mut *run.cast::<Option<F>>() }.take();
        let code = run.map_or(127, |run| run());
        // SAFETY: _exit takes a number, and runs nothing of the process whose memory this is.
        unsafe { libc::_exit(code) }
    }
    fn entry<F: FnOnce() -> i32>(_: &Option<F>) -> extern "C" fn(*mut libc::c_void) -> libc::c_int {
        enter::<F>
    }
    let mut run = Some(run);
    let enter = entry(&run);
    let mut stack = vec![0u128; 16 * 1024];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `stack` is the child's alone, and its end is aligned to 16 bytes. We have one thread, and
    // with CLONE_VFORK it waits until the child has executed or exited: so never do two run on this
    // memory, no lock is held by anybody else, and `run` and all that it borrows outlive the child.
    let pid = unsafe { libc::clone(enter, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut run).cast()) };
    if pid < 0 { Err(Error::io("clone", "", Errno::last())) } else { Ok(Pid::from_raw(pid)) }
}

/// Sends a descriptor over a socket, with one byte.
pub fn send_descriptor(socket: &UnixStream, fd: BorrowedFd) -> nix::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds = [fd.as_raw_fd()];
    let byte = [io::IoSlice::new(&[0])];
    sendmsg::<()>(socket.as_raw_fd(), &byte, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Receives one byte, and the descriptor that came with it; `None`: the other side is closed.
pub fn receive_descriptor(socket: &UnixStream) -> nix::Result<Option<(u8, Option<OwnedFd>)>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0u8];
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let (bytes, fd) = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(message) => {
                let fd = message.cmsgs()?.find_map(|m| match m {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                });
                break (message.bytes, fd);
            }
        }
    };
    // SAFETY: the kernel has just installed this descriptor for us.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((bytes > 0).then_some((byte[0], fd)))
}

/// process_vm_readv(2): a C string of another process, at most 4096 bytes with its NUL.
pub fn read_string(thread: i32, address: u64) -> nix::Result<Vec<u8>> {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    const PAGE: usize = 4096;
    let mut text = vec![0u8; PAGE];
    let base = address as usize;
    // What follows the string may not be mapped: each page is asked for by itself.
    let first = (PAGE - base % PAGE).min(PAGE);
    let mut got = 0;
    for (from, length) in [(base, first), (base.wrapping_add(first), PAGE - first)] {
        if length == 0 {
            continue;
        }
        let part = &mut text[got..got + length];
        let n = match process_vm_readv(
            Pid::from_raw(thread),
            &mut [io::IoSliceMut::new(part)],
            &[RemoteIoVec { base: from, len: length }],
        ) {
            Ok(n) => n,
            Err(_) if got > 0 => break,
            Err(errno) => return Err(errno),
        };
        if let Some(end) = text[got..got + n].iter().position(|b| *b == 0) {
            text.truncate(got + end);
            return Ok(text);
        }
        got += n;
        if n < length {
            break;
        }
    }
    Err(if got == PAGE { Errno::ENAMETOOLONG } else { Errno::EFAULT })
}

/// Eight bytes of another process's memory, as a number.
pub fn read_number(thread: i32, address: u64) -> nix::Result<u64> {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let mut bytes = [0u8; 8];
    let from = [RemoteIoVec { base: address as usize, len: bytes.len() }];
    match process_vm_readv(Pid::from_raw(thread), &mut [io::IoSliceMut::new(&mut bytes)], &from)? {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(Errno::EFAULT),
    }
}

/// process_vm_readv(2): so many bytes of another process's memory, all of them or an error.
pub fn read_memory(thread: i32, address: u64, length: usize) -> nix::Result<Vec<u8>> {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let mut bytes = vec![0u8; length];
    let from = [RemoteIoVec { base: address as usize, len: length }];
    let read = process_vm_readv(Pid::from_raw(thread), &mut [io::IoSliceMut::new(&mut bytes)], &from)?;
    if read == length { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// process_vm_writev(2): into the memory of another process, all of it or an error.
pub fn write_memory(thread: i32, address: u64, bytes: &[u8]) -> nix::Result<()> {
    use nix::sys::uio::{RemoteIoVec, process_vm_writev};
    let to = [RemoteIoVec { base: address as usize, len: bytes.len() }];
    let written = process_vm_writev(Pid::from_raw(thread), &[io::IoSlice::new(bytes)], &to)?;
    if written == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// fchownat(2) of the very file that is open, O_PATH too. `u32::MAX` leaves a half as it is.
pub fn change_owner(fd: BorrowedFd, uid: u32, gid: u32) -> nix::Result<()> {
    let id = |n: u32| (n != u32::MAX).then_some(n);
    let (uid, gid) = (id(uid).map(nix::unistd::Uid::from_raw), id(gid).map(nix::unistd::Gid::from_raw));
    nix::unistd::fchownat(fd, "", uid, gid, nix::fcntl::AtFlags::AT_EMPTY_PATH)
}

/// The number that a thread has in the `/proc` that is mounted here, when that is not the one of
/// our PID namespace. A pidfd tells: pidfd_open(2), proc_pid_fdinfo(5).
pub fn number_in_proc(thread: i32) -> nix::Result<i32> {
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    let open = |flags: libc::c_int| {
        // SAFETY: pidfd_open takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, thread, flags) };
        // SAFETY: the call succeeded, so this number is a new descriptor of ours.
        if fd < 0 { Err(Errno::last()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) }
    };
    // Before 6.9 only the first thread of a process has one.
    let pidfd = open(PIDFD_THREAD).or_else(|_| open(0))?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).map_err(|_| Errno::ESRCH)?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|text| text.trim().parse().ok());
    number.filter(|n| *n > 0).ok_or(Errno::ESRCH)
}

/// Lets a program of the machine end when the thread that starts it does, and write no file longer than this.
pub fn bind(command: &mut std::process::Command, file_size: u64) {
    use std::os::unix::process::CommandExt;
    let parent = nix::unistd::getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        limit(nix::sys::resource::Resource::RLIMIT_FSIZE, file_size)?;
        // It may have died before the first call.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes system calls alone; it neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
}

/// setrlimit(2), soft and hard, never above the hard limit that there is.
pub fn limit(resource: nix::sys::resource::Resource, value: u64) -> nix::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource)?;
    nix::sys::resource::setrlimit(resource, value.min(hard), value.min(hard))
}
