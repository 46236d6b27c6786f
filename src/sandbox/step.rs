//! One step: a process that is rid of all that a build doesn't need, and then executes a program of
//! the snapshot. It reports to init over a socket that execve closes: first
//! its seccomp listener, then, if anything fails, at what and with which errno.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::sandbox::filter::{self, Open, Owners};
use crate::sandbox::init::io_error;
use crate::sandbox::plan::Order;
use crate::sandbox::spec::Standard;
use crate::sys::{process, seccomp};

/// A step that runs.
pub(super) struct Started {
    /// Its number.
    pub pid: Pid,
    /// Where calls that wait for us arrive; `None`: there can be none on this machine.
    pub listener: Option<OwnedFd>,
}

/// What failed between fork and execve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Terminal = 1,
    Descriptors,
    Folder,
    Limits,
    Capabilities,
    User,
    Filter,
    Listener,
    Execute,
}

const STAGES: [Stage; 9] = [
    Stage::Terminal,
    Stage::Descriptors,
    Stage::Folder,
    Stage::Limits,
    Stage::Capabilities,
    Stage::User,
    Stage::Filter,
    Stage::Listener,
    Stage::Execute,
];

/// What a step is given by init.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// Standard output and error.
    pub output: &'a File,
    /// The path of a terminal instead.
    pub terminal: Option<&'a str>,
    /// Of the control group that it joins.
    pub door: Option<&'a OwnedFd>,
    /// Who it is, where that isn't root and there is no user namespace to say so.
    pub user: Option<(u32, u32)>,
}

/// Starts a step. When this returns, its program runs.
pub(super) fn start(order: &Order, number: usize, given: Given<'_>, open: Open) -> Result<Started> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", "", e))?;
    // What it says before its program runs waits in the socket.
    let pid = process::spawn(|| {
        let Err((stage, errno)) = become_step(order, number, given, &theirs, open);
        let mut report = vec![stage as u8];
        report.extend_from_slice(&(errno as i32).to_le_bytes());
        let _ = (&theirs).write_all(&report);
        127
    })?;
    drop(theirs);
    if given.user.is_some() {
        // It had our memory when it became somebody else, and the kernel set this to fs.suid_dumpable.
        nix::sys::prctl::set_dumpable(false).map_err(|errno| Error::io("prctl(PR_SET_DUMPABLE)", "", errno))?;
    }
    let listener = match process::receive_descriptor(&ours) {
        Ok(Some((0, listener))) => listener,
        Ok(Some((stage, _))) => return Err(failed(order, number, stage, &ours)),
        Ok(None) | Err(_) => return Err(numbered(order, number, Error::failed("it died before its program ran"))),
    };
    let mut stage = [0u8];
    match (&ours).read(&mut stage) {
        Ok(1) => Err(failed(order, number, stage[0], &ours)),
        _ => Ok(Started { pid, listener }),
    }
}

fn failed(order: &Order, number: usize, stage: u8, mut socket: &UnixStream) -> Error {
    let mut errno = [0u8; 4];
    let _ = socket.read_exact(&mut errno);
    let errno = i32::from_le_bytes(errno);
    let program = order.steps[number].argv.first().map_or("", String::as_str);
    let error = match STAGES.into_iter().find(|s| *s as u8 == stage) {
        Some(Stage::Folder) => io_error("chdir", &order.cwd, errno),
        Some(Stage::Execute) => not_executed(order, program, Errno::from_raw(errno)),
        Some(Stage::Listener) => Error::failed("owners = \"seen\" can't be had here")
            .why("something around us listens to seccomp already, and the kernel allows one listener")
            .next("run it outside of that container"),
        Some(stage) => io_error(&format!("{stage:?}").to_lowercase(), program, errno),
        None => Error::failed("it reported nonsense"),
    };
    numbered(order, number, error)
}

/// Which step it was, where there are several.
fn numbered(order: &Order, number: usize, error: Error) -> Error {
    if order.steps.len() > 1 { error.context(format!("step {}", number + 1)) } else { error }
}

fn not_executed(order: &Order, program: &str, errno: Errno) -> Error {
    let error = Error::failed(format!("{program} can't be executed: {}", errno.desc()));
    match errno {
        Errno::ENOENT if program.contains(char::is_whitespace) => error
            .why("a list of strings is one command: its first is the program, the others are arguments")
            .next(format!(
                "write {:?}, or several commands as a script: one string of several lines",
                program.split_whitespace().collect::<Vec<_>>()
            )),
        Errno::ENOENT if program.contains('/') => error
            .why(format!("the snapshot has no {program}, or not the loader that it names"))
            .next("add the package that has it to the rule's packages, or for an image pick the program in a tapeout rule"),
        Errno::ENOENT => error
            .why(format!("it is not in PATH: {}", order.path))
            .next("add the package that has it to the rule's packages, or for an image pick the program in a tapeout rule"),
        Errno::E2BIG => error
            .why("a script or argument is longer than the kernel takes (128 KiB)")
            .next("put the script into a file among the rule's sources"),
        Errno::ENOEXEC => error.why("it is for another machine, or a script without #!"),
        _ => error,
    }
}

/// Never returns but with what failed.
fn become_step(
    order: &Order,
    number: usize,
    given: Given<'_>,
    report: &UnixStream,
    open: Open,
) -> Result<std::convert::Infallible, (Stage, Errno)> {
    let at = |stage| move |errno| (stage, errno);
    let Given { output, terminal, door, user } = given;
    nix::unistd::setsid().map_err(at(Stage::Terminal))?;
    let opened = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    match (order.standard, terminal) {
        (Standard::Terminal, Some(path)) => {
            // The first terminal that the leader of a session opens is the session's: so keys are signals.
            let ours = File::options().read(true).write(true).open(path);
            let ours = ours.map_err(|e| (Stage::Terminal, opened(e)))?;
            for number in 0..3 {
                process::set_standard(ours.as_fd(), number).map_err(at(Stage::Descriptors))?;
            }
        }
        // Init has them already.
        (Standard::Given, _) => {}
        _ => {
            // Without namespaces it is init's own, since there may be no node.
            if !order.chroot {
                let null = File::open("/dev/null").map_err(|e| (Stage::Descriptors, opened(e)))?;
                process::set_standard(null.as_fd(), 0).map_err(at(Stage::Descriptors))?;
            }
            process::set_standard(output.as_fd(), 1).map_err(at(Stage::Descriptors))?;
            process::set_standard(output.as_fd(), 2).map_err(at(Stage::Descriptors))?;
        }
    }
    process::close_all_on_exec();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    enter(&order.cwd, user).map_err(at(Stage::Folder))?;
    if let Some(door) = door {
        nix::unistd::write(door, b"0").map_err(at(Stage::Limits))?;
    }
    limits(order).map_err(at(Stage::Limits))?;
    process::reset_signals();
    let program = order.steps[number].argv.clone();
    let (argv, env) = (c_strings(&program), c_strings(&order.env));

    let keep = match user {
        // They go when it isn't root any more.
        Some(_) => caps::CapsHashSet::from([caps::Capability::CAP_SETGID, caps::Capability::CAP_SETUID]),
        None => filter::capabilities(order.no_capabilities || order.uid != 0),
    };
    process::keep_only(&keep).map_err(|_| (Stage::Capabilities, Errno::EPERM))?;
    if let Some((uid, gid)) = user {
        process::become_user(uid, gid).map_err(at(Stage::User))?;
    }
    if order.chroot {
        // No namespace ends with init. Whoever becomes another user loses it.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(at(Stage::Limits))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(at(Stage::Filter))?;
    let mapped = user.unwrap_or((order.uid, order.gid));
    let owners = match (&order.range, &order.seen) {
        _ if user.is_some() => Owners::Users,
        // What `stat` shows is true there.
        (Some(_), _) => Owners::Real,
        (None, Some(_)) => Owners::Seen,
        (None, None) => Owners::Recorded,
    };
    match seccomp::filter_with_listener(&filter::program(owners, mapped, open)) {
        Ok(listener) => process::send_descriptor(report, listener.as_fd()).map_err(at(Stage::Filter))?,
        // Somebody around us has a listener (LXD), or the kernel knows none (before 5.0).
        Err(errno @ (Errno::EBUSY | Errno::EINVAL)) if owners == Owners::Seen => return Err((Stage::Listener, errno)),
        Err(Errno::EBUSY | Errno::EINVAL) => {
            let owners = if owners == Owners::Real { Owners::RealAlone } else { Owners::MappedOnly };
            seccomp::filter(&filter::program(owners, mapped, open)).map_err(at(Stage::Filter))?;
            (&*report).write_all(&[0]).map_err(|_| (Stage::Filter, Errno::EPIPE))?;
        }
        Err(errno) => return Err((Stage::Filter, errno)),
    }
    execute(&argv, &env, &order.path).map_err(at(Stage::Execute))
}

fn enter(folder: &str, user: Option<(u32, u32)>) -> nix::Result<()> {
    match nix::unistd::chdir(folder) {
        Err(Errno::ENOENT) => {
            // We are inside: no link leads out.
            std::fs::create_dir_all(folder).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
            nix::unistd::chdir(folder)?;
            user.map_or(Ok(()), |(uid, gid)| nix::unistd::chown(".", Some(uid.into()), Some(gid.into())))
        }
        other => other,
    }
}

fn limits(order: &Order) -> nix::Result<()> {
    // A core would be written where the host's core_pattern says.
    process::limit(Resource::RLIMIT_CORE, 0)?;
    process::limit(Resource::RLIMIT_NPROC, order.processes)?;
    if let Some(bytes) = order.memory {
        process::limit(Resource::RLIMIT_AS, bytes)?;
    }
    process::limit(Resource::RLIMIT_FSIZE, order.file_size)
}

fn c_strings(texts: &[String]) -> Vec<CString> {
    // The plan has refused NUL bytes.
    texts.iter().filter_map(|text| CString::new(text.as_str()).ok()).collect()
}

/// execvpe(3): a name without a slash is looked for in `path`.
fn execute(argv: &[CString], env: &[CString], path: &str) -> nix::Result<std::convert::Infallible> {
    let Some(program) = argv.first() else { return Err(Errno::EINVAL) };
    if program.as_bytes().contains(&b'/') {
        return nix::unistd::execve(program, argv, env);
    }
    let mut seen = Errno::ENOENT;
    for folder in path.split(':').filter(|folder| !folder.is_empty()) {
        let whole = [folder.as_bytes(), b"/", program.as_bytes()].concat();
        let Ok(whole) = CString::new(whole) else { continue };
        match nix::unistd::execve(&whole, argv, env) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => seen = Errno::EACCES,
            Err(errno) => return Err(errno),
            Ok(never) => match never {},
        }
    }
    Err(seen)
}
