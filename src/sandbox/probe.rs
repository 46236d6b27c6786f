//! What this machine can give to a sandbox: tried, not guessed from versions. `doctor` prints it.
//!
//! What can only be tried inside is tried by a child in namespaces of its own, which is our own
//! executable.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sandbox::filter::{self, Open, Owners};
use crate::sandbox::start;
use crate::sys::mount::{self, Setting, attribute};
use crate::sys::nursery::{self, Birth, Newborn};
use crate::sys::{file, process, seccomp};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The kernel's release.
    pub kernel: String,
    /// Each thing that matters, in the order in which a sandbox needs it.
    pub findings: Vec<Finding>,
}

/// One thing that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was tried: `user namespaces`.
    pub name: String,
    /// Is it there?
    pub state: State,
    /// What it is for, or what is done without it.
    pub meaning: String,
    /// Why it isn't there, where that is known.
    pub why: Vec<String>,
    /// What mends it.
    pub next: Option<String>,
}

/// Is something there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Yes.
    Good,
    /// No; rules run all the same, and the output says what is weaker.
    Weak,
    /// No, and no rule can run.
    Missing,
}

impl Probe {
    /// Tries it all. `scratch` is a folder on the store's file system; what is made in it is removed.
    pub fn this_machine(scratch: &Path) -> Self {
        let kernel =
            nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
        let mut findings = vec![executable()];
        match tried(scratch) {
            Ok(more) => {
                findings
                    .push(Finding::good("user namespaces", "a rule has its own users, mounts, processes and network"));
                findings.extend(more);
            }
            Err(error) => findings.push(Finding::from_error(
                "user namespaces",
                State::Missing,
                "no rule can run without them",
                &error,
            )),
        }
        findings.push(subordinate());
        Self { kernel, findings }
    }

    /// Can a rule run here?
    pub fn can_run(&self) -> bool {
        self.findings.iter().all(|finding| finding.state != State::Missing)
    }
}

impl Finding {
    fn good(name: &str, meaning: &str) -> Self {
        Self { name: name.into(), state: State::Good, meaning: meaning.into(), why: vec![], next: None }
    }

    fn from_error(name: &str, state: State, meaning: &str, error: &Error) -> Self {
        let why = std::iter::once(error.what().to_string()).chain(error.reasons().iter().cloned()).collect();
        Self { name: name.into(), state, meaning: meaning.into(), why, next: error.next_step().map(str::to_string) }
    }

    fn from_errno(name: &str, state: State, meaning: &str, call: &str, errno: Errno) -> Self {
        Self {
            name: name.into(),
            state,
            meaning: meaning.into(),
            why: vec![format!("{call}: {}", errno.desc())],
            next: None,
        }
    }
}

fn subordinate() -> Finding {
    let name = "subordinate IDs";
    match nursery::has_subordinate() {
        Ok(()) => Finding::good(name, "rules with ids = \"range\" have several real IDs"),
        Err(error) => Finding::from_error(
            name,
            State::Weak,
            "all rules run but those with ids = \"range\", which are an error",
            &error,
        ),
    }
}

/// The AppArmor profile to ask for where only named programs may make user namespaces (Ubuntu 24.04).
pub fn apparmor_profile(executable: &Path) -> String {
    format!(
        "abi <abi/4.0>,\ninclude <tunables/global>\nprofile tapeout {} flags=(unconfined) {{\n  userns,\n}}\n",
        executable.display()
    )
}

fn executable() -> Finding {
    let name = "sealed executable";
    match process::own_executable() {
        Ok(_) if process::is_sealed() => {
            Finding::good(name, "the sandbox's init runs from memory: a rule can't find our binary")
        }
        Ok(_) => Finding {
            next: Some("ask the administrator for: sysctl vm.memfd_noexec=0".into()),
            why: vec!["vm.memfd_noexec forbids executing a memfd".into()],
            ..Finding {
                state: State::Weak,
                ..Finding::good(
                    name,
                    "the sandbox's init runs from the binary on disk; its links in /proc stay closed to a rule",
                )
            }
        },
        Err(error) => Finding::from_error(name, State::Missing, "the sandbox's init can't be started", &error),
    }
}

const OVERLAY_NAME: &str = "overlay";

/// What the child says.
type Answer = Result<Vec<Finding>>;

/// What the child found.
fn tried(scratch: &Path) -> Result<Vec<Finding>> {
    with_folders(scratch, |folder| ask(folder, start::PROBE))
}

/// Why snapshots can't be stacked here; `None`: they can. An error: there are no namespaces at all.
pub(super) fn no_overlay(scratch: &Path) -> Result<Option<String>> {
    let tried = |folder: &Path| {
        let dir = file::open_path(folder)?;
        if file::set_xattr(dir.as_fd(), b"upper", b"user.tapeout", b"1").is_err() {
            return Ok(Some(format!("files in {} have no attributes (user.*)", scratch.display())));
        }
        let findings = ask(folder, start::OVERLAY)?;
        let missing = findings.into_iter().find(|finding| finding.name == OVERLAY_NAME && finding.state != State::Good);
        Ok(missing.map(|finding| finding.why.join("; ")))
    };
    with_folders(scratch, tried)
}

fn with_folders<T>(scratch: &Path, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = scratch.join(format!("probe-{}", std::process::id()));
    for name in ["lower", "upper", "work"] {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).map_err(|e| Error::io("mkdir", &path, e))?;
    }
    let answer = run(&folder);
    file::remove_tree(&folder)?;
    answer
}

fn ask(folder: &Path, task: u32) -> Result<Vec<Finding>> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", "", e))?;
    let pass: [BorrowedFd; 1] = [theirs.as_fd()];
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    let child = start::make(Birth { task, namespaces, uid: 0, gid: 0, range: false }, &pass)?;
    drop(theirs);
    let folder = std::os::unix::ffi::OsStrExt::as_bytes(folder.as_os_str());
    let answer = start::write_frame(&ours, folder).and_then(|()| start::read_frame(&ours, 1 << 20));
    child.wait()?;
    let answer = answer.map_err(|e| Error::io("read", "probe", e))?;
    postcard::from_bytes::<Answer>(&answer).map_err(|e| Error::failed(format!("probe: {e}")))?
}

/// A child of the nursery that tries things; gives its exit code.
pub(super) fn inside(mut newborn: Newborn) -> i32 {
    let Some(control) = newborn.passed.pop().map(UnixStream::from) else { return 2 };
    let Ok(folder) = start::read_frame(&control, 4096) else { return 2 };
    let folder = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&folder));
    let answer: Answer = newborn.map_ids().and_then(|()| match newborn.birth.task {
        start::OVERLAY => mount::make_all_private().map(|()| overlay(folder)),
        _ => Ok(try_all(folder)),
    });
    let sent = postcard::to_stdvec(&answer).is_ok_and(|bytes| start::write_frame(&control, &bytes).is_ok());
    i32::from(!sent)
}

fn try_all(folder: &Path) -> Vec<Finding> {
    let mut findings = vec![];
    if let Err(error) = mount::make_all_private() {
        findings.push(Finding::from_error(
            "mounts",
            State::Missing,
            "no rule can run without mounts of its own",
            &error,
        ));
        return findings;
    }
    findings.extend(overlay(folder));
    findings.push(fresh_proc());
    findings.push(listener());
    findings
}

fn overlay(folder: &Path) -> Vec<Finding> {
    let (name, needed) = (OVERLAY_NAME, "snapshots are stacked, not copied");
    let refused = |errno, log: Vec<String>| {
        let error = super::init::overlay_refused(errno, 1, log);
        Finding::from_error(name, State::Weak, "snapshots are copied, which is slower", &error)
    };
    let text = |part: &str| folder.join(part).to_string_lossy().into_owned();
    let made = || -> Result<bool, mount::Refused> {
        let overlay = mount::FileSystem::open("overlay")?;
        overlay.set(&Setting::Text("source", "overlay"))?;
        overlay.set(&Setting::Flag("userxattr"))?;
        overlay.set(&Setting::Flag("volatile"))?;
        let many = overlay.set(&Setting::Text("lowerdir+", &text("lower"))).is_ok();
        if !many {
            overlay.set(&Setting::Text("lowerdir", &text("lower")))?;
        }
        overlay.set(&Setting::Text("upperdir", &text("upper")))?;
        overlay.set(&Setting::Text("workdir", &text("work")))?;
        overlay.mount(0)?;
        Ok(many)
    };
    match made() {
        Ok(true) => {
            vec![Finding::good(name, needed), Finding::good("many layers", "a snapshot stacks up to 500 changesets")]
        }
        Ok(false) => vec![
            Finding::good(name, needed),
            Finding::from_errno(
                "many layers",
                State::Weak,
                "a snapshot stacks some two hundred changesets",
                "fsconfig(lowerdir+), Linux 6.7",
                Errno::EINVAL,
            ),
        ],
        Err(r) => vec![refused(r.errno, r.log)],
    }
}

fn fresh_proc() -> Finding {
    let flags = attribute::NO_SUID | attribute::NO_DEV | attribute::NO_EXEC;
    match mount::file_system("proc", &[Setting::Text("source", "proc")], flags) {
        Ok(_) => Finding::good("fresh /proc", "a rule sees its own processes alone"),
        Err(r) => Finding {
            why: vec![format!("{}: {}", r.call, r.errno.desc()), "a container around us masks parts of /proc".into()],
            next: Some("run the container with an unmasked /proc (podman: --security-opt unmask=ALL; Kubernetes: procMount: Unmasked)".into()),
            ..Finding::from_errno("fresh /proc", State::Weak, "the container's /proc is shown: a rule sees the container's processes", "", r.errno)
        },
    }
}

/// Tried in a child: a filter can't be taken off again.
fn listener() -> Finding {
    let (name, good) = ("recorded owners", "chown and mknod are recorded and replayed into layers");
    let weak = |call: &str, errno| {
        Finding::from_errno(name, State::Weak, "a rule that gives a file to another owner fails", call, errno)
    };
    let tried = process::spawn(|| {
        let program = filter::program(Owners::Recorded, (0, 0), Open::default());
        let done = nix::sys::prctl::set_no_new_privs().and_then(|()| seccomp::filter_with_listener(&program));
        done.err().map_or(0, |errno| errno as i32)
    });
    match tried {
        Ok(pid) => match nix::sys::wait::waitpid(pid, None) {
            Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => Finding::good(name, good),
            Ok(nix::sys::wait::WaitStatus::Exited(_, errno)) => weak("seccomp(listener)", Errno::from_raw(errno)),
            _ => weak("seccomp(listener)", Errno::ECHILD),
        },
        Err(error) => Finding::from_error(name, State::Weak, "a rule that gives a file to another owner fails", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_can_run_with_what_is_weak_but_not_with_what_is_missing() {
        let with = |state| Probe { kernel: String::new(), findings: vec![Finding { state, ..Finding::good("x", "") }] };
        assert!(with(State::Good).can_run() && with(State::Weak).can_run() && !with(State::Missing).can_run());
    }
}
