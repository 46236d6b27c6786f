//! Processes: namespaces, ID maps, capabilities, and our own executable as a sealed memfd.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::Pid;

use crate::error::{Error, Result};

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
    let own = match executable_memfd(c"tapeout") {
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

/// A memfd that may be executed. Kernels before 6.3 don't know the flag and need none.
fn executable_memfd(name: &CStr) -> nix::Result<OwnedFd> {
    let create = |flags: libc::c_uint| {
        // SAFETY: `name` is a C string.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        // SAFETY: the call succeeded, so the number is a new descriptor of ours.
        if fd < 0 { Err(Errno::last()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    match create(flags | libc::MFD_EXEC) {
        Err(Errno::EINVAL) => create(flags),
        other => other,
    }
}

/// A command that runs our own executable in a role; `main` sees it by [`role`].
pub fn own_command(role: &str) -> Result<std::process::Command> {
    use std::os::unix::process::CommandExt;
    // The name is looked up in the child, which has the descriptor until it executes.
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", own_executable()?.as_raw_fd()));
    command.arg0(format!("{ROLE}{role}"));
    Ok(command)
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
        let _ = nix::unistd::setgroups(&[]);
        return Ok(());
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| namespaces_refused("unshare", errno))?;
    let write = |name: &str, text: String| {
        let path = format!("/proc/self/{name}");
        std::fs::write(&path, text).map_err(|e| match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => namespaces_refused(&format!("write({path})"), Errno::EPERM),
            _ => Error::io("write", &path, e),
        })
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// What an errno of the kernel means when it refuses a namespace, which its words don't say.
pub fn namespaces_refused(call: &str, errno: Errno) -> Error {
    let error = Error::failed(format!("this machine gives no user namespace: {call}: {}", errno.desc()));
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default();
    let error = match errno {
        Errno::ENOSPC => error
            .why("a limit on the number of namespaces is reached")
            .next("ask the administrator for a higher user.max_user_namespaces (sysctl), or end what holds namespaces"),
        Errno::EUSERS => error.why("user namespaces are nested too deeply (32 at most)"),
        Errno::EAGAIN => error.why("the limit on processes is reached").next("see ulimit -u"),
        Errno::EINVAL | Errno::ENOSYS => error.why("the kernel was built without namespaces"),
        Errno::EPERM if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" => {
            error.why("kernel.unprivileged_userns_clone is 0").next("ask the administrator for: sysctl kernel.unprivileged_userns_clone=1")
        }
        Errno::EPERM if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" => error
            .why("AppArmor allows user namespaces to named programs only (kernel.apparmor_restrict_unprivileged_userns is 1)")
            .next("ask the administrator for an AppArmor profile with `userns,` for tapeout; `tapeout doctor` prints it"),
        Errno::EPERM if nix::unistd::geteuid().is_root() => error
            .why("we are uid 0 without CAP_SETFCAP, and then the kernel does not map ID 0 (user_namespaces(7))")
            .next("run as another user, or give the container CAP_SETFCAP"),
        Errno::EPERM => error
            .why("a seccomp profile refuses it (a container's, most likely)")
            .next("see `tapeout doctor`"),
        _ => error,
    };
    error.next("see `tapeout doctor`")
}

/// A process to be started in new namespaces, where one ID is mapped.
pub struct Launch<'a> {
    /// What it executes, an open file.
    pub executable: BorrowedFd<'a>,
    /// Its role, for [`role`].
    pub role: &'a str,
    /// Descriptors that it gets; [`inherited`] finds them there, in this order.
    pub pass: &'a [BorrowedFd<'a>],
    /// The namespaces, without the user namespace, which is always made.
    pub namespaces: CloneFlags,
    /// The ID that we have inside.
    pub uid: u32,
    /// The group ID that we have inside.
    pub gid: u32,
}

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its number.
    pub pid: Pid,
    /// Readable when it is dead.
    pub pidfd: OwnedFd,
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// All that the child needs, made before it exists: it shares our memory until it executes
/// (`CLONE_VM`, as vfork(2) does), so it may neither allocate nor take a lock.
struct Prepared {
    executable: RawFd,
    argv: Vec<*const libc::c_char>,
    envp: [*const libc::c_char; 1],
    pass: Vec<RawFd>,
    uid_map: String,
    gid_map: String,
    keep_capabilities: bool,
    failed: Option<(&'static str, i32)>,
}

/// clone(2) into new namespaces, and execve(2) of `executable` there. When this returns, the child
/// has executed.
pub fn launch(launch: &Launch) -> Result<Child> {
    let mut texts = vec![format!("{ROLE}{}", launch.role)];
    texts.extend(launch.pass.iter().map(|fd| fd.as_raw_fd().to_string()));
    let arguments: Vec<CString> = texts.into_iter().filter_map(|text| CString::new(text).ok()).collect();
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut prepared = Prepared {
        executable: launch.executable.as_raw_fd(),
        argv,
        envp: [std::ptr::null()],
        pass: launch.pass.iter().map(|fd| fd.as_raw_fd()).collect(),
        uid_map: format!("{} {} 1", launch.uid, nix::unistd::geteuid()),
        gid_map: format!("{} {} 1", launch.gid, nix::unistd::getegid()),
        keep_capabilities: launch.uid != 0,
        failed: None,
    };
    let mut stack = vec![0u128; 4096];
    let mut pidfd: libc::c_int = -1;
    let flags = (launch.namespaces | CloneFlags::CLONE_NEWUSER).bits()
        | libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_PIDFD
        | libc::SIGCHLD;

    // No handler of ours may run in the child, on memory that both have.
    let mut before = SigSet::empty();
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
        .map_err(|errno| Error::io("sigprocmask", "", errno))?;
    // SAFETY: `stack` is the child's alone and its end is aligned to 16 bytes; with CLONE_VFORK this
    // thread waits until the child has executed or exited, so all that `prepared` points to outlives
    // its use, and nobody else touches it meanwhile; `pidfd` is a live local.
    let pid = unsafe {
        libc::clone(in_child, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut prepared).cast(), &raw mut pidfd)
    };
    let errno = Errno::last();
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    if pid < 0 {
        return Err(namespaces_refused("clone", errno));
    }
    // SAFETY: the call succeeded with CLONE_PIDFD, so this number is a new descriptor of ours.
    let child = Child { pid: Pid::from_raw(pid), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    match prepared.failed {
        None => Ok(child),
        Some((call, errno)) => {
            let _ = nix::sys::wait::waitpid(child.pid, None);
            let errno = Errno::from_raw(errno);
            Err(match (call, errno) {
                (_, Errno::EPERM | Errno::EACCES) if call != "execveat" => {
                    namespaces_refused(&format!("write(/proc/self/{call})"), Errno::EPERM)
                }
                _ => Error::io(call, "tapeout", errno),
            })
        }
    }
}

/// Runs in the child, on our memory: only system calls from here on.
extern "C" fn in_child(prepared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `launch` passes a live `Prepared` and waits, so this is the only reference to it.
    let prepared = unsafe { &mut *prepared.cast::<Prepared>() };
    // setgroups must say "deny" before gid_map is written, or the kernel answers EPERM: user_namespaces(7).
    let files = [
        (c"/proc/self/setgroups", "setgroups", "deny".as_bytes()),
        (c"/proc/self/uid_map", "uid_map", prepared.uid_map.as_bytes()),
        (c"/proc/self/gid_map", "gid_map", prepared.gid_map.as_bytes()),
    ];
    for (path, name, text) in files {
        if let Err(errno) = write_raw(path, text) {
            prepared.failed = Some((name, errno));
            return 127;
        }
    }
    for fd in &prepared.pass {
        // SAFETY: F_SETFD takes a number; it is cleared in this process's own table alone.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) };
    }
    if prepared.keep_capabilities {
        raise_ambient();
    }
    // SAFETY: argv and envp are arrays of C strings that end in null, and live as long as `prepared`.
    unsafe {
        let (argv, envp) = (prepared.argv.as_ptr(), prepared.envp.as_ptr());
        libc::syscall(libc::SYS_execveat, prepared.executable, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
    }
    prepared.failed = Some(("execveat", Errno::last_raw()));
    127
}

fn write_raw(path: &CStr, text: &[u8]) -> Result<(), i32> {
    // SAFETY: `path` is a C string, and the length passed is that of the live `text`.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(Errno::last_raw());
        }
        let n = libc::write(fd, text.as_ptr().cast(), text.len());
        let errno = Errno::last_raw();
        libc::close(fd);
        if n < 0 { Err(errno) } else { Ok(()) }
    }
}

/// An ID other than 0 loses its capabilities when it executes; ambient ones stay (capabilities(7)).
fn raise_ambient() {
    let mut header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 has two data structs, and both pointers are to live locals; PR_CAP_AMBIENT takes numbers.
    unsafe {
        libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr());
        for half in &mut data {
            half.inheritable = half.permitted;
        }
        libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr());
        for capability in 0..64 {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0);
        }
    }
}

/// The descriptors that [`launch`] passed to this process, in its order; a second call gives none.
pub fn inherited() -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return vec![];
    }
    let mut seen = vec![];
    let numbers = std::env::args().skip(1).filter_map(|text| text.parse::<RawFd>().ok());
    for number in numbers.filter(|n| *n > 2) {
        // SAFETY: F_SETFD takes a number; it fails when there is no such descriptor.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        if open && !seen.contains(&number) {
            seen.push(number);
        }
    }
    // SAFETY: they are open, each once, came through execve, and are given away this one time.
    seen.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// Waits for a child's end.
pub fn wait(child: &Child) -> Result<()> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    loop {
        match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            // ECHILD: somebody ignores SIGCHLD, so the kernel has reaped it.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(Error::io("waitid", format!("process {}", child.pid), errno)),
        }
    }
}

/// Kills a child, whatever it does.
pub fn kill(child: &Child) {
    // SAFETY: pidfd_send_signal takes a descriptor, numbers and a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            child.pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
}

// --- What a process does to itself.

/// Nobody may look into this process, and it dies with the thread that started it.
pub fn harden_self() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| Error::io("prctl(PR_SET_DUMPABLE)", "", errno))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| Error::io("prctl(PR_SET_PDEATHSIG)", "", errno))
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

/// fork(2) of a process that has one thread; `None`: we are the child.
pub fn fork() -> Result<Option<Pid>> {
    use std::os::unix::fs::MetadataExt;
    // A folder has two links and one more for each folder in it: one thread makes three.
    if std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() != 3) {
        return Err(Error::failed("fork: this process has several threads"));
    }
    // SAFETY: there is one thread, so no lock is held by another one that the child would lack.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Parent { child }) => Ok(Some(child)),
        Ok(nix::unistd::ForkResult::Child) => Ok(None),
        Err(errno) => Err(Error::io("fork", "", errno)),
    }
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

/// fchownat(2) of the very file that is open, O_PATH too. `u32::MAX` leaves a half as it is.
pub fn change_owner(fd: BorrowedFd, uid: u32, gid: u32) -> nix::Result<()> {
    let id = |n: u32| (n != u32::MAX).then_some(n);
    let (uid, gid) = (id(uid).map(nix::unistd::Uid::from_raw), id(gid).map(nix::unistd::Gid::from_raw));
    nix::unistd::fchownat(fd, "", uid, gid, nix::fcntl::AtFlags::AT_EMPTY_PATH)
}

/// The terminal's foreground is ours again, after a child had it.
pub fn take_terminal_back() {
    // Whoever is in the background and asks gets SIGTTOU, which stops; it is blocked for the moment.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before));
    let _ = nix::unistd::tcsetpgrp(io::stdin(), nix::unistd::getpgrp());
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
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
