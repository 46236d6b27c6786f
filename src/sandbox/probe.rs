//! What can only be tried inside, by a child in namespaces of its own, which is our own executable.

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
use crate::sys::nursery::{Birth, Newborn};
use crate::sys::refusal::Refusal;
use crate::sys::{file, process, seccomp, xattr};

/// What the child found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Why there are no mounts of our own.
    pub no_mounts: Option<String>,
    /// What came of an overlay; `None`: there was no folder to try it in.
    pub overlay: Option<Overlay>,
    /// Why there is no `/proc` of our own.
    pub no_proc: Option<Refusal>,
    /// Why no seccomp listener can be installed.
    pub no_listener: Option<Refusal>,
}

/// What came of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlay {
    /// It stacks up to 500 folders.
    Many,
    /// It stacks as many as their names fit on a page.
    Few,
    /// The kernel refused, and wrote these lines about it.
    Refused(Refusal, Vec<String>),
}

/// Why there was nothing to be tried.
#[derive(Debug, Clone)]
pub enum NotInside {
    /// The kernel gives no namespaces.
    Refused(Refusal),
    /// Something else.
    Broken(Error),
}

/// What the child says.
type Answer = Result<Inside, Refusal>;

/// Tries it all. `scratch` is a folder on the store's file system; what is made in it is removed.
pub fn look_inside(scratch: Option<&Path>) -> Result<Inside, NotInside> {
    let answer = match scratch {
        Some(scratch) => with_folders(scratch, |folder| ask(folder, start::PROBE)),
        None => ask(Path::new(""), start::PROBE),
    };
    answer.map_err(NotInside::Broken)?.map_err(NotInside::Refused)
}

/// Why snapshots can't be stacked here; `None`: they can. An error: there are no namespaces at all.
pub(super) fn no_overlay(scratch: &Path) -> Result<Option<String>> {
    with_folders(scratch, |folder| {
        if !xattr::has_user_attributes(folder) {
            return Ok(Some(format!("files in {} have no attributes (user.*)", scratch.display())));
        }
        let inside = ask(folder, start::OVERLAY)??;
        if let Some(words) = inside.no_mounts {
            return Err(Error::failed(words).next("see `tapeout doctor`"));
        }
        Ok(match inside.overlay {
            Some(Overlay::Refused(refusal, log)) => {
                let error = super::init::overlay_refused(Errno::from_raw(refusal.errno), 1, log);
                Some([&[error.what().to_string()], error.reasons()].concat().join("; "))
            }
            _ => None,
        })
    })
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

fn ask(folder: &Path, task: u32) -> Result<Answer> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", "", e))?;
    let pass: [BorrowedFd; 1] = [theirs.as_fd()];
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    let child = match start::try_to_make(Birth { task, namespaces, uid: 0, gid: 0, range: false }, &pass)? {
        Ok(child) => child,
        Err(refusal) => return Ok(Err(refusal)),
    };
    drop(theirs);
    let folder = std::os::unix::ffi::OsStrExt::as_bytes(folder.as_os_str());
    let answer = start::write_frame(&ours, folder).and_then(|()| start::read_frame(&ours, 1 << 20));
    child.wait()?;
    let answer = answer.map_err(|e| Error::io("read", "probe", e))?;
    postcard::from_bytes(&answer).map_err(|e| Error::failed(format!("probe: {e}")))
}

/// A child of the nursery that tries things; gives its exit code.
pub(super) fn inside(mut newborn: Newborn) -> i32 {
    let Some(control) = newborn.passed.pop().map(UnixStream::from) else { return 2 };
    let Ok(folder) = start::read_frame(&control, 4096) else { return 2 };
    let folder = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&folder));
    let answer: Answer = newborn.map_one().map(|()| look(folder, newborn.birth.task != start::OVERLAY));
    let sent = postcard::to_stdvec(&answer).is_ok_and(|bytes| start::write_frame(&control, &bytes).is_ok());
    i32::from(!sent)
}

fn look(folder: &Path, all: bool) -> Inside {
    let mut inside = Inside { no_mounts: None, overlay: None, no_proc: None, no_listener: None };
    if let Err(error) = mount::make_all_private() {
        inside.no_mounts = Some(error.what().to_string());
        return inside;
    }
    inside.overlay = (!folder.as_os_str().is_empty()).then(|| overlay(folder));
    if all {
        let flags = attribute::NO_SUID | attribute::NO_DEV | attribute::NO_EXEC;
        let proc = mount::file_system("proc", &[Setting::Text("source", "proc")], flags);
        inside.no_proc = proc.err().map(|refused| Refusal::new(refused.call, refused.errno));
        inside.no_listener = listener();
    }
    inside
}

fn overlay(folder: &Path) -> Overlay {
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
        Ok(true) => Overlay::Many,
        Ok(false) => Overlay::Few,
        Err(refused) => Overlay::Refused(Refusal::new(refused.call, refused.errno), refused.log),
    }
}

/// Tried in a child: a filter can't be taken off again.
fn listener() -> Option<Refusal> {
    let refused = |errno| Some(Refusal::new("seccomp(listener)", errno));
    let tried = process::spawn(|| {
        let program = filter::program(Owners::Recorded, (0, 0), Open::default());
        let done = nix::sys::prctl::set_no_new_privs().and_then(|()| seccomp::filter_with_listener(&program));
        done.err().map_or(0, |errno| errno as i32)
    });
    match tried.map(|pid| nix::sys::wait::waitpid(pid, None)) {
        Ok(Ok(nix::sys::wait::WaitStatus::Exited(_, 0))) => None,
        Ok(Ok(nix::sys::wait::WaitStatus::Exited(_, errno))) => refused(Errno::from_raw(errno)),
        _ => refused(Errno::ECHILD),
    }
}
