//! A nursery: one process of ours, executed once, with one thread and clean memory, that makes
//! others by clone(2), each in namespaces of its own where there are any.
//!
//! Whoever schedules sandboxes has threads, and after a fork in such a process the child may do next
//! to nothing (fork(2)); so a child must be executed anew, which costs more than all the rest. The
//! nursery pays that once. It dies with whoever started it, since their socket ends then, and its
//! children die with it (`PR_SET_PDEATHSIG`). What a child without a PID namespace leaves behind when it is
//! killed becomes the nursery's, which ends it when it is asked to ([`Nursery::sweep`]).
//!
//! Namespaces take the kernel a while, the network's above all. So while one child works, the nursery makes the next
//! ([`Spare`]): it has nothing but its namespaces, belongs to nobody, and is used once.
//!
//! A nursery that we start is in our user namespace, and so are all that it makes: only our own ID can be
//! mapped there. Where subordinate IDs are wanted, it must come from outside. So before we enter that
//! namespace a copy of ourselves stays behind ([`stay_outside`]), which does nothing but start
//! a nursery when it is asked to.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Stdio;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sys::refusal::Refusal;
use crate::sys::subordinate::Ranges;
use crate::sys::{proc, process};

/// Of an error that the nursery tells.
const LONGEST_WORDS: usize = 1000;
/// No child gets more descriptors.
const MOST: usize = 8;

/// Of a birth, in bytes.
const LENGTH: usize = 20;

/// Asks for what [`Nursery::sweep`] says.
const SWEEP: &[u8] = b"sweep";

/// What a child is to do, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// Says the callback of [`serve`] what this one is for.
    pub task: u32,
    /// Its namespaces; with none of its own it is in all of ours.
    pub namespaces: CloneFlags,
    /// The ID that it has inside.
    pub uid: u32,
    /// The group ID that it has inside.
    pub gid: u32,
    /// Its subordinate IDs are mapped as well.
    pub range: bool,
}

impl Birth {
    fn bytes(self) -> [u8; LENGTH] {
        let numbers = [self.task, self.namespaces.bits() as u32, self.uid, self.gid, self.range.into()];
        let mut bytes = [0; LENGTH];
        for (place, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(4).filter_map(|four| Some(u32::from_le_bytes(four.try_into().ok()?)));
        let (task, namespaces) = (numbers.next()?, numbers.next()?);
        let namespaces = CloneFlags::from_bits_truncate(namespaces as i32);
        let (uid, gid) = (numbers.next()?, numbers.next()?);
        Some(Self { task, namespaces, uid, gid, range: numbers.next()? != 0 })
    }
}

/// A child, as its parent's parent knows it.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
}

/// Why there is no child.
#[derive(Debug)]
pub enum Stillborn {
    /// The nursery is dead: another one has to be started.
    Gone,
    /// The kernel refused.
    Refused(Errno),
    /// Its IDs were not mapped.
    Unmapped(String),
}

/// The copy of ourselves that stayed outside, or why there is none.
static OUTSIDE: OnceLock<Result<OwnedFd>> = OnceLock::new();

/// Leaves a copy of this process outside of the user namespace that it is about to enter, if its user has
/// subordinate IDs. To be called before there are threads. It ends when we do.
pub fn stay_outside() {
    let _ = OUTSIDE.set(Ranges::of_caller().and_then(|_| left_outside()));
}

/// Can subordinate IDs be mapped?
pub fn has_subordinate() -> Result<()> {
    match OUTSIDE.get() {
        Some(outside) => outside.as_ref().map(drop).map_err(Clone::clone),
        None => Ranges::of_caller().map(drop),
    }
}

fn left_outside() -> Result<OwnedFd> {
    let failed = |call: &str| {
        let call = call.to_string();
        move |errno: Errno| Error::io(&call, "", errno)
    };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("socketpair"))?;
    let parent = nix::unistd::getpid();
    // SAFETY: this process has one thread, so its copy may do all that it may.
    match unsafe { nix::unistd::fork() }.map_err(failed("fork"))? {
        nix::unistd::ForkResult::Parent { .. } => Ok(ours),
        nix::unistd::ForkResult::Child => {
            drop(ours);
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            // No signal of the terminal is for us, and the kernel reaps our children.
            let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            // SAFETY: no code of ours runs when SIGCHLD is ignored.
            let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) };
            process::close_all_but(&[theirs.as_fd()]);
            let _ = nix::unistd::chdir("/");
            if nix::unistd::getppid() == parent {
                wait_outside(theirs.as_fd());
            }
            // SAFETY: _exit takes a number; nothing of our original's is written or removed.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Starts a nursery for each message: its role, our executable, and its socket.
fn wait_outside(socket: BorrowedFd) {
    loop {
        let mut role = [0u8; 64];
        let Ok((length @ 1.., passed)) = receive(socket, &mut role) else { return };
        let (Ok([executable, theirs]), Ok(role)) =
            (<[OwnedFd; 2]>::try_from(passed), std::str::from_utf8(&role[..length]))
        else {
            return;
        };
        let mut command = process::command_in_role(executable.as_fd(), role);
        let started = command.env_clear().stdin(Stdio::from(theirs)).spawn();
        let errno = started.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        if send(socket, &errno.to_le_bytes(), &[]).is_err() {
            return;
        }
    }
}

/// The nursery, from outside.
#[derive(Debug)]
pub struct Nursery {
    socket: OwnedFd,
}

impl Nursery {
    /// Executes our own executable in a role, whose `main` calls [`serve`].
    pub fn start(role: &str) -> Result<Self> {
        let failed = |errno: Errno| Error::io("socketpair", "", errno);
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
        let mut command = process::own_command(role)?;
        // Its own standard input is the socket: so it needs to be told no number.
        command.env_clear().stdin(Stdio::from(theirs));
        // It is never waited for: it ends when we do.
        command.spawn().map(drop).map_err(|e| Error::io("execve", "tapeout", e))?;
        Ok(Self { socket: ours })
    }

    /// The same, outside of our user namespace, where subordinate IDs can be mapped.
    pub fn start_outside(role: &str) -> Result<Self> {
        let failed = |errno: Errno| Error::io("socketpair", "", errno);
        let outside = match OUTSIDE.get() {
            Some(Ok(outside)) => outside,
            Some(Err(error)) => return Err(error.clone()),
            None => return Err(Error::failed("nobody stayed outside of our user namespace")),
        };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
        let mut answer = [0u8; 4];
        let asked = send(outside.as_fd(), role.as_bytes(), &[process::own_executable()?, theirs.as_fd()])
            .and_then(|()| receive(outside.as_fd(), &mut answer));
        match (asked, i32::from_le_bytes(answer)) {
            (Ok((4, _)), 0) => Ok(Self { socket: ours }),
            (Ok((4, _)), errno) => Err(Error::io("execve", "tapeout", Errno::from_raw(errno))),
            _ => Err(Error::failed("the process that stayed outside of our user namespace is dead")),
        }
    }

    /// A child with these descriptors.
    pub fn make(&self, birth: Birth, pass: &[BorrowedFd]) -> std::result::Result<Child, Stillborn> {
        let gone = |_| Stillborn::Gone;
        send(self.socket.as_fd(), &birth.bytes(), pass).map_err(gone)?;
        let mut answer = [0u8; 4 + LONGEST_WORDS];
        let (length, fds) = receive(self.socket.as_fd(), &mut answer).map_err(gone)?;
        let (errno, words) = answer[..length].split_first_chunk::<4>().ok_or(Stillborn::Gone)?;
        match fds.into_iter().next() {
            Some(pidfd) => Ok(Child { pidfd }),
            None if !words.is_empty() => Err(Stillborn::Unmapped(String::from_utf8_lossy(words).into_owned())),
            None => Err(Stillborn::Refused(Errno::from_raw(i32::from_le_bytes(*errno)))),
        }
    }
}

impl Nursery {
    /// Ends what descends from children that are dead, and comes back when it is dead.
    pub fn sweep(&self) -> std::result::Result<(), Stillborn> {
        let gone = |_| Stillborn::Gone;
        send(self.socket.as_fd(), SWEEP, &[]).map_err(gone)?;
        match receive(self.socket.as_fd(), &mut [0; 4]) {
            Ok((4, _)) => Ok(()),
            _ => Err(Stillborn::Gone),
        }
    }
}

impl Child {
    /// Waits for its end, and that of all that is in its PID namespace.
    pub fn wait(&self) -> Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Error::io("poll", "pidfd", errno)),
            }
        }
    }

    /// Kills it, whatever it does.
    pub fn kill(&self) {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal takes a descriptor, two numbers and a pointer that may be null.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
    }
}

/// What a child of the nursery starts with.
#[derive(Debug)]
pub struct Newborn {
    /// What was asked for.
    pub birth: Birth,
    /// What it was given.
    pub passed: Vec<OwnedFd>,
    /// Whose IDs are to be mapped: ours, as the nursery sees them.
    outside: (u32, u32),
    /// Tells when the nursery has mapped a range.
    mapped: Option<OwnedFd>,
}

impl Newborn {
    /// Maps one ID, the one that we have outside, where there is a namespace to map it in; or waits until
    /// the nursery has mapped a range.
    pub fn map_ids(&mut self) -> Result<()> {
        if let Some(mapped) = self.mapped.take() {
            let mut byte = [0u8];
            return match nix::unistd::read(&mapped, &mut byte) {
                Ok(1) => Ok(()),
                _ => Err(Error::failed("no subordinate IDs were mapped")),
            };
        }
        if !self.birth.namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            return Ok(());
        }
        Ok(self.map_one()?)
    }

    /// Maps the ID that we have outside, in a user namespace of our own.
    pub fn map_one(&self) -> Result<(), Refusal> {
        process::map_ids((self.birth.uid, self.birth.gid), self.outside)
    }
}

/// The nursery, from inside: makes children until nobody is there to ask. `run` gives the exit code
/// of a child. Standard input must be the socket.
pub fn serve(run: fn(Newborn) -> i32) -> ! {
    process::close_all_but(&[]);
    // No folder of whoever started us is kept in use.
    let _ = nix::unistd::chdir("/");
    let socket = std::io::stdin();
    // No signal of the terminal is for us, and the kernel reaps our children.
    let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    // SAFETY: no code of ours runs when SIGCHLD is ignored.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    let outside = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    // Those whose orphans we would get.
    let mut children: Vec<(Pid, OwnedFd)> = vec![];
    // What was asked for last, and a child for when it is asked for again.
    let (mut last, mut spare): (Option<CloneFlags>, Option<Spare>) = (None, None);
    loop {
        let mut request = [0u8; LENGTH];
        let Ok((length, passed)) = receive(socket.as_fd(), &mut request) else { std::process::exit(0) };
        // The number of a dead one may be an orphan's by now.
        children.retain(|(_, pidfd)| is_alive(pidfd.as_fd()));
        if &request[..length] == SWEEP {
            let living: Vec<Pid> = children.iter().map(|(pid, _)| *pid).collect();
            proc::kill_descendants(&living);
            if send(socket.as_fd(), &[0; 4], &[]).is_err() {
                std::process::exit(0);
            }
            continue;
        }
        if length != LENGTH {
            std::process::exit(0);
        }
        let Some(birth) = Birth::parse(&request) else { std::process::exit(1) };
        if !birth.namespaces.contains(CloneFlags::CLONE_NEWPID) && process::adopt_orphans().is_err() {
            std::process::exit(1);
        }
        // With a PID namespace nothing that it leaves can outlive it; where a range is mapped, we do that at birth.
        let repeats = birth.namespaces.contains(CloneFlags::CLONE_NEWPID) && !birth.range;
        let fits = |spare: &Spare| repeats && spare.namespaces == birth.namespaces;
        if let Some(ready) = spare.take() {
            if !fits(&ready) {
                ready.end();
            } else if let Some(pidfd) = ready.give(&request, &passed) {
                drop(passed);
                if send(socket.as_fd(), &0i32.to_le_bytes(), &[pidfd.as_fd()]).is_err() {
                    std::process::exit(0);
                }
                spare = Spare::make(birth.namespaces, run, outside);
                continue;
            }
        }
        let Ok((mapped, gate)) = nix::unistd::pipe2(OFlag::O_CLOEXEC) else { std::process::exit(1) };
        let answer = match clone(birth.namespaces) {
            Ok(None) => {
                drop(gate);
                // SAFETY: as above; a child waits for children of its own.
                let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
                let mapped = birth.range.then_some(mapped);
                std::process::exit(run(Newborn { birth, passed, outside, mapped }));
            }
            Ok(Some((pid, pidfd))) if birth.range => {
                match Ranges::of_caller().and_then(|ranges| ranges.map(pid, outside)) {
                    Ok(()) => {
                        let _ = nix::unistd::write(&gate, b"1");
                        send(socket.as_fd(), &0i32.to_le_bytes(), &[pidfd.as_fd()])
                    }
                    // The gate closes, and the child ends.
                    Err(error) => {
                        let mut words = [0i32.to_le_bytes().as_slice(), error.to_string().as_bytes()].concat();
                        words.truncate(4 + LONGEST_WORDS);
                        send(socket.as_fd(), &words, &[])
                    }
                }
            }
            Ok(Some((pid, pidfd))) => {
                let sent = send(socket.as_fd(), &0i32.to_le_bytes(), &[pidfd.as_fd()]);
                if !birth.namespaces.contains(CloneFlags::CLONE_NEWPID) {
                    children.push((Pid::from_raw(pid), pidfd));
                }
                sent
            }
            Err(errno) => send(socket.as_fd(), &(errno as i32).to_le_bytes(), &[]),
        };
        if answer.is_err() {
            std::process::exit(0);
        }
        drop(passed);
        // Who asks once may never ask again.
        if repeats && last == Some(birth.namespaces) {
            spare = Spare::make(birth.namespaces, run, outside);
        }
        last = Some(birth.namespaces);
    }
}

/// A child that was made before it is asked for. It waits for its birth, and ends when nobody is there to give it one.
struct Spare {
    namespaces: CloneFlags,
    socket: OwnedFd,
    pidfd: OwnedFd,
}

impl Spare {
    /// `None`: where the kernel has no room for one more, the next is made when it is needed.
    fn make(namespaces: CloneFlags, run: fn(Newborn) -> i32, outside: (u32, u32)) -> Option<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).ok()?;
        match clone(namespaces).ok()? {
            Some((_, pidfd)) => Some(Self { namespaces, socket: ours, pidfd }),
            None => {
                // Held by us, neither socket would tell that the nursery is dead, and no pipe that somebody closed it.
                drop(ours);
                process::close_all_but(&[theirs.as_fd()]);
                let _ = File::open("/dev/null").map(|null| process::set_standard(null.as_fd(), 0));
                // SAFETY: no handler is set; a child waits for children of its own.
                let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
                let mut request = [0u8; LENGTH];
                let birth = match receive(theirs.as_fd(), &mut request) {
                    Ok((LENGTH, passed)) => Birth::parse(&request).map(|birth| (birth, passed)),
                    _ => None,
                };
                let Some((birth, passed)) = birth else { std::process::exit(0) };
                drop(theirs);
                std::process::exit(run(Newborn { birth, passed, outside, mapped: None }));
            }
        }
    }

    /// Its birth. `None`: somebody killed it.
    fn give(self, request: &[u8], passed: &[OwnedFd]) -> Option<OwnedFd> {
        let passed: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        // Dead, it may be so before its socket is closed.
        let given = is_alive(self.pidfd.as_fd()) && send(self.socket.as_fd(), request, &passed).is_ok();
        given.then_some(self.pidfd)
    }

    /// Ends it, and waits: its namespaces count as the user's until then.
    fn end(self) {
        drop(self.socket);
        let _ = poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    }
}

/// A pidfd can be read when its process has ended.
fn is_alive(pidfd: BorrowedFd) -> bool {
    !matches!(poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1..))
}

/// clone(2) as fork(2) does; `None`: we are the child.
fn clone(namespaces: CloneFlags) -> nix::Result<Option<(i32, OwnedFd)>> {
    let flags = namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    // SAFETY: this process has one thread and no handlers, so its copy may do all that it may. Without
    // a stack the child continues on a copy of ours. All machines take flags, stack and the place
    // for the pidfd in this order, and the rest is null.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, &raw mut pidfd, 0, 0) };
    match pid {
        0 => Ok(None),
        // SAFETY: the call succeeded with CLONE_PIDFD, so this number is a new descriptor of ours.
        1.. => Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
        _ => Err(Errno::last()),
    }
}

fn send(socket: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> nix::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[std::io::IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// One message, and the descriptors that came with it; 0: the other side is closed.
fn receive(socket: BorrowedFd, bytes: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut slices = [std::io::IoSliceMut::new(bytes)];
    loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(message) => {
                let numbers = message.cmsgs()?.flat_map(|m| match m {
                    ControlMessageOwned::ScmRights(numbers) => numbers,
                    _ => vec![],
                });
                // SAFETY: the kernel has just installed these descriptors for us.
                let fds = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
                return Ok((message.bytes, fds));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_birth_is_read_as_it_was_written() {
        let birth = Birth {
            task: 1,
            namespaces: CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID,
            uid: 33,
            gid: u32::MAX,
            range: true,
        };
        assert_eq!(Birth::parse(&birth.bytes()), Some(birth));
        assert_eq!(Birth::parse(&[0; 19]), None);
    }
}
