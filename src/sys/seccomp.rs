//! seccomp(2): a filter from a list of rules, and user notification.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// The architecture that system call numbers mean (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
/// The architecture that system call numbers mean (linux/audit.h).
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The call returns this errno; 0 is success without effect.
    Errno(i32),
    /// The listener answers.
    Notify,
    /// The process ends: signal 31, SIGSYS.
    Kill,
}

/// For which arguments. Only the low 32 bits count, as they do for the calls that are looked at.
#[derive(Debug, Clone)]
pub enum When {
    /// For all.
    Always,
    /// The argument of this index, masked, is this.
    Is(u8, u32, u32),
    /// The argument of this index is none of these.
    NotIn(u8, Vec<u32>),
    /// All of these hold.
    All(Vec<When>),
}

/// How a program of 32 bits ends itself (exit, exit_group), by the numbers of its own architecture.
#[cfg(target_arch = "x86_64")]
pub const FOREIGN_EXITS: [i64; 2] = [1, 252];
/// How a program of 32 bits ends itself (exit, exit_group), by the numbers of its own architecture.
#[cfg(target_arch = "aarch64")]
pub const FOREIGN_EXITS: [i64; 2] = [1, 248];

/// One line of a filter.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The number of the system call.
    pub call: i64,
    /// For which arguments.
    pub when: When,
    /// What is answered.
    pub action: Action,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const OFFSET_CALL: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;

fn offset_argument(index: u8) -> u32 {
    16 + 8 * u32::from(index)
}

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: yes, jf: no, k }
}

fn answer(action: Action) -> u32 {
    match action {
        Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xffff),
        Action::Notify => libc::SECCOMP_RET_USER_NOTIF,
        Action::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// A filter: calls of another architecture get the `foreign` answer, those numbered above `last` ENOSYS; the first
/// rule that fits answers; all else is allowed.
///
/// The test for the last one matters on x86-64 for the x32 calls too: their numbers begin at 0x40000000.
pub fn program(rules: &[Rule], last: i64, foreign: Action) -> Vec<libc::sock_filter> {
    let mut program = vec![
        instruction(LOAD, OFFSET_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        instruction(RETURN, answer(foreign)),
        instruction(LOAD, OFFSET_CALL),
        jump(JUMP_GREATER, last as u32, 0, 1),
        instruction(RETURN, answer(Action::Errno(libc::ENOSYS))),
    ];
    for rule in rules {
        let mut body = tests(&rule.when);
        let tested = !body.is_empty();
        body.push(instruction(RETURN, answer(rule.action)));
        let after = body.len();
        for (at, test) in body.iter_mut().enumerate() {
            for way in [&mut test.jt, &mut test.jf].into_iter().filter(|way| **way == FAILS) {
                *way = (after - at - 1) as u8;
            }
        }
        if tested {
            body.push(instruction(LOAD, OFFSET_CALL));
        }
        program.push(jump(JUMP_EQUAL, rule.call as u32, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

/// A jump to behind the answer, whose length isn't known yet. No rule is so long.
const FAILS: u8 = u8::MAX;

/// What goes on to what follows where it holds, and jumps where not.
fn tests(when: &When) -> Vec<libc::sock_filter> {
    match when {
        When::Always => vec![],
        When::Is(index, mask, value) => vec![
            instruction(LOAD, offset_argument(*index)),
            instruction(AND, *mask),
            jump(JUMP_EQUAL, *value, 0, FAILS),
        ],
        When::NotIn(index, values) => std::iter::once(instruction(LOAD, offset_argument(*index)))
            .chain(values.iter().map(|value| jump(JUMP_EQUAL, *value, FAILS, 0)))
            .collect(),
        When::All(all) => all.iter().flat_map(tests).collect(),
    }
}

fn install(program: &[libc::sock_filter], flags: libc::c_ulong) -> nix::Result<libc::c_long> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` points at `program`, which lives until the call returns; the kernel only reads it.
    let n = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if n < 0 { Err(Errno::last()) } else { Ok(n) }
}

/// Puts this process (which must have `no_new_privs`) under a filter that has no `Notify`.
pub fn filter(program: &[libc::sock_filter]) -> nix::Result<()> {
    install(program, 0).map(drop)
}

/// Puts this process under a filter, and gives its listener. EBUSY: a filter above has one already.
pub fn filter_with_listener(program: &[libc::sock_filter]) -> nix::Result<OwnedFd> {
    // Once init has seen a call, only a deadly signal interrupts it: without this, a signal makes
    // the caller repeat what is done already (seccomp(2); since 5.19).
    let uninterrupted = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd = match install(program, uninterrupted) {
        Err(Errno::EINVAL) => install(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?,
        other => other?,
    };
    // SAFETY: the call succeeded with NEW_LISTENER, so this number is a new descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Names it.
    pub id: u64,
    /// The thread that made it, in our PID namespace.
    pub thread: i32,
    /// It is none of this architecture: its number means another call.
    pub foreign: bool,
    /// The number of the call.
    pub call: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Makes the kernel run the two sides on one CPU, since one waits for the other (6.6; older ones
/// don't know it, and it changes nothing but time).
pub fn prefer_one_cpu(listener: BorrowedFd) {
    // SAFETY: SET_FLAGS takes a number.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as _, 1 as libc::c_ulong) };
}

/// The next call that waits; `None`: whoever made it died meanwhile.
pub fn receive(listener: BorrowedFd) -> nix::Result<Option<Notification>> {
    // The kernel may know longer structs than we do, and writes as long a one as it knows
    // (seccomp_unotify(2)): there is room for a kilobyte, zeroed, as it must be.
    #[repr(C)]
    union Room {
        notification: libc::seccomp_notif,
        bytes: [u64; 128],
    }
    let mut room = Room { bytes: [0; 128] };
    // SAFETY: RECV writes a seccomp_notif, for which `room` is large enough and aligned.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut room) } < 0 {
        return match Errno::last() {
            Errno::ENOENT | Errno::EINTR => Ok(None),
            errno => Err(errno),
        };
    }
    // SAFETY: the call succeeded, so the kernel has written a notification; it is plain numbers.
    let found = unsafe { room.notification };
    Ok(Some(Notification {
        id: found.id,
        thread: found.pid as i32,
        foreign: found.data.arch != ARCHITECTURE,
        call: found.data.nr.into(),
        arguments: found.data.args,
    }))
}

/// Does the caller still wait? Asked after its memory and descriptors were looked at, so that they
/// were its own and not those of a process that got its number.
pub fn still_waits(listener: BorrowedFd, id: u64) -> bool {
    // SAFETY: ID_VALID reads a u64, which `id` is.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) == 0 }
}

/// Answers: the errno that the call returns, or the number.
pub fn reply(listener: BorrowedFd, id: u64, result: Result<i64, Errno>) {
    let (val, error) = match result {
        Ok(number) => (number, 0),
        Err(errno) => (0, -(errno as i32)),
    };
    respond(listener, libc::seccomp_notif_resp { id, val, error, flags: 0 });
}

/// Lets the kernel carry the call out (5.5). Its arguments may be others by now: this refuses nothing.
pub fn proceed(listener: BorrowedFd, id: u64) {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    respond(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags });
}

/// Answers with a descriptor that becomes the caller's own (5.14).
pub fn give(listener: BorrowedFd, id: u64, fd: BorrowedFd, close_on_exec: bool) -> nix::Result<()> {
    let flags = libc::SECCOMP_ADDFD_FLAG_SEND as u32;
    let newfd_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
    let given = libc::seccomp_notif_addfd { id, flags, srcfd: fd.as_raw_fd() as u32, newfd: 0, newfd_flags };
    // SAFETY: ADDFD reads a seccomp_notif_addfd, which `given` is.
    match unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const given) } {
        0.. => Ok(()),
        _ => Err(Errno::last()),
    }
}

fn respond(listener: BorrowedFd, response: libc::seccomp_notif_resp) {
    // An error here means that the caller died, and nobody waits for the answer.
    // SAFETY: SEND reads a seccomp_notif_resp, which `response` is.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const response) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would, for tests.
    fn run(program: &[libc::sock_filter], architecture: u32, call: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            match i.code {
                LOAD => {
                    a = match i.k {
                        OFFSET_CALL => call,
                        OFFSET_ARCHITECTURE => architecture,
                        offset => arguments[(offset as usize - 16) / 8],
                    }
                }
                AND => a &= i.k,
                JUMP_EQUAL => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                JUMP_GREATER => at += usize::from(if a > i.k { i.jt } else { i.jf }),
                RETURN => return i.k,
                code => panic!("no such instruction: {code}"),
            }
        }
    }

    #[test]
    fn the_first_rule_that_fits_answers() {
        let errno = |n: i32| libc::SECCOMP_RET_ERRNO | n as u32;
        let rules = [
            Rule { call: 10, when: When::Always, action: Action::Errno(1) },
            Rule { call: 11, when: When::Is(1, 0o170000, 0o20000), action: Action::Notify },
            Rule { call: 11, when: When::Is(1, 0o170000, 0o60000), action: Action::Errno(2) },
            Rule { call: 12, when: When::NotIn(0, vec![1, 2]), action: Action::Errno(3) },
            Rule { call: 13, when: When::Always, action: Action::Errno(0) },
            Rule {
                call: 15,
                when: When::All(vec![When::Is(0, u32::MAX, 16), When::NotIn(1, vec![4, 5])]),
                action: Action::Errno(6),
            },
        ];
        let enosys = Action::Errno(libc::ENOSYS);
        let all = [(enosys, errno(libc::ENOSYS)), (Action::Kill, libc::SECCOMP_RET_KILL_PROCESS)];
        for (foreign, expected) in all {
            let program = program(&rules, 470, foreign);
            assert_eq!(run(&program, 0x4000_0003, 14, [0; 6]), expected, "i386");
        }
        let program = program(&rules, 470, enosys);
        let allow = libc::SECCOMP_RET_ALLOW;
        for (call, first, second, expected) in [
            (10, 0, 0, errno(1)),
            (11, 0, 0o20644, libc::SECCOMP_RET_USER_NOTIF),
            (11, 0, 0o60644, errno(2)),
            (11, 0, 0o100644, allow),
            (12, 1, 0, allow),
            (12, 2, 0, allow),
            (12, 40, 0, errno(3)),
            (13, 0, 0, errno(0)),
            (14, 0, 0, allow),
            (15, 16, 3, errno(6)),
            (15, 16, 4, allow),
            (15, 16, 5, allow),
            (15, 17, 3, allow),
            (470, 0, 0, allow),
            (471, 0, 0, errno(libc::ENOSYS)),
            (0x4000_0001, 0, 0, errno(libc::ENOSYS)),
        ] {
            assert_eq!(
                run(&program, ARCHITECTURE, call, [first, second, 0, 0, 0, 0]),
                expected,
                "{call} {first} {second}"
            );
        }
    }
}
