//! Runs the steps of a rule, one after the other, inside: waits for each, answers what it asks, ends what it left, and
//! tells how it went. A part of init ([`super::init`]), once the room is made.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sandbox::filter::Open;
use crate::sandbox::owner::Owners;
use crate::sandbox::plan::{Operation, Order};
use crate::sandbox::spec::{Hit, Outcome, Status};
use crate::sandbox::{range, step};
use crate::sys::{proc, seccomp};

/// What is weaker where owners can't be recorded.
pub const NO_OWNERS: &str =
    "something around us listens to seccomp already: a rule that gives a file to another owner fails";

/// What init was given.
pub(super) struct Pipes<'a> {
    pub control: &'a UnixStream,
    pub output: &'a File,
    pub door: Option<OwnedFd>,
}

/// Of one sandbox, from its first step on.
pub(super) struct Watch<'a> {
    pipes: &'a Pipes<'a>,
    order: &'a Order,
    children: SignalFd,
    deadline: Option<Instant>,
    owners: Owners,
    weakened: Vec<String>,
    terminal: Option<String>,
    killed_of_32_bits: bool,
}

enum End {
    Status(WaitStatus),
    Time,
}

impl<'a> Watch<'a> {
    pub fn new(
        pipes: &'a Pipes<'a>,
        order: &'a Order,
        owners: Owners,
        weakened: Vec<String>,
        terminal: Option<String>,
    ) -> Result<Self> {
        let mut child = SigSet::empty();
        child.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| Error::io("signalfd", "", errno))?;
        let deadline = order.time.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        Ok(Self { pipes, order, children, deadline, owners, weakened, terminal, killed_of_32_bits: false })
    }

    /// Runs the steps, one after the other, and tells how they went.
    pub fn run(mut self) -> Result<Outcome> {
        let ran = self.steps();
        if self.order.range.is_some() {
            // However it went: nobody outside could remove what belongs to others.
            kill_all(self.order.chroot);
            self.owners.take_back()?;
            for operation in &self.order.operations {
                if let Operation::Bind { inside, read_only: false, .. } = operation {
                    range::take_back(open_folder(inside)?.as_fd(), &mut |_, _| Ok(()))?;
                }
            }
        }
        let (status, failed_step) = ran?;
        let of_32_bits = self.owners.of_32_bits().map(str::to_string).or(self.killed_of_32_bits.then(String::new));
        let recorded = self.owners.into_recorded()?;
        Ok(Outcome { status, failed_step, recorded, weakened: self.weakened, memory_is_counted: false, of_32_bits })
    }

    fn steps(&mut self) -> Result<(Status, Option<usize>)> {
        let (mut status, mut failed_step) = (Status::Exited(0), None);
        for number in 0..self.order.steps.len() {
            let answers = self.owners.answers();
            let (devices, proc) = (!answers.devices.is_empty(), answers.proc);
            let open = Open { network: self.order.foreign_network, devices, proc };
            let started = step::start(self.order, number, self.outputs(), open)?;
            if started.listener.is_none() && number == 0 {
                self.weakened.push(NO_OWNERS.into());
            }
            let end = self.wait_for(&started)?;
            kill_all(self.order.chroot);
            // Where nobody listens, the filter ends a program of 32 bits, and no other.
            self.killed_of_32_bits |= started.listener.is_none() && died_of(&end, Signal::SIGSYS);
            status = self.judge(end);
            if !status.success() {
                failed_step = Some(number);
                break;
            }
        }
        Ok((status, failed_step))
    }

    fn outputs(&self) -> step::Given<'_> {
        let (output, door) = (self.pipes.output, self.pipes.door.as_ref());
        let user = self.owners.answers().user;
        step::Given { output, terminal: self.terminal.as_deref(), door, user }
    }

    fn wait_for(&mut self, started: &step::Started) -> Result<End> {
        let mut listener = started.listener.as_ref();
        if let Some(fd) = listener {
            seccomp::prefer_one_cpu(fd.as_fd());
        }
        loop {
            let timeout = match self.deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(End::Time),
                // Rounded up, so that it isn't asked over and over in the last millisecond.
                Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let mut fds = vec![
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.pipes.control.as_fd(), PollFlags::empty()),
            ];
            if let Some(listener) = listener {
                fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("poll", "", errno)),
            }
            let has = |i: usize, flag| fds.get(i).and_then(PollFd::revents).is_some_and(|e| e.intersects(flag));
            let (child, parent) = (has(0, PollFlags::POLLIN), has(1, PollFlags::POLLHUP));
            let (asked, silent) = (has(2, PollFlags::POLLIN), has(2, PollFlags::POLLHUP));
            if parent {
                // Whoever started us is dead. So is everything in here, then.
                if self.order.chroot {
                    kill_all(true);
                }
                std::process::exit(1);
            }
            match listener {
                Some(fd) if asked => self.owners.answer(fd.as_fd()),
                // All that could ask are dead. Asked again, it would say so again, until they are reaped.
                Some(_) if silent => listener = None,
                _ => {}
            }
            if child {
                while let Ok(Some(_)) = self.children.read_signal() {}
                if let Some(status) = reap(started.pid) {
                    return Ok(End::Status(status));
                }
            }
        }
    }

    fn judge(&self, end: End) -> Status {
        match end {
            End::Time => Status::Limit(Hit::Time),
            end if died_of(&end, Signal::SIGXFSZ) => Status::Limit(Hit::FileSize),
            End::Status(WaitStatus::Signaled(_, signal, _)) => Status::Signalled(signal as i32),
            End::Status(WaitStatus::Exited(_, code)) => Status::Exited(code),
            End::Status(_) => Status::Exited(1),
        }
    }
}

/// A signal ended it; or a command of it, of which a shell makes 128 and the signal's number.
fn died_of(end: &End, signal: Signal) -> bool {
    match end {
        End::Status(WaitStatus::Signaled(_, deadly, _)) => *deadly == signal,
        End::Status(WaitStatus::Exited(_, code)) => *code == 128 + signal as i32,
        _ => false,
    }
}

fn open_folder(inside: &str) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(inside, flags, nix::sys::stat::Mode::empty()).map_err(|errno| Error::io("open", inside, errno))
}

/// Reaps all that is dead; the status of the step if it was among them.
fn reap(step: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _))) if pid == step => {
                found = Some(status)
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return found,
        }
    }
}

/// Kills all that is left, and waits until it is dead. A process that is about to be killed can't
/// fork, so one signal to all reaches all.
pub(super) fn kill_all(chroot: bool) {
    if chroot {
        // -1 would be all of the container around us. Orphans become our children, so all descend from us.
        return proc::kill_descendants(&[]);
    }
    let _ = nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
    loop {
        match waitpid(None::<Pid>, None) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return,
        }
    }
}
