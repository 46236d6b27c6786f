//! `/proc` of this process, also after it has changed its root to a place that has none.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::Result;

static KEPT: OnceLock<OwnedFd> = OnceLock::new();

/// Keeps `/proc` open, for the time when it can't be named any more. The first call counts.
pub fn keep_open() -> Result<()> {
    let _ = KEPT.set(super::file::open_path(std::path::Path::new("/proc"))?);
    Ok(())
}

/// Where names in `/proc` start.
fn start() -> nix::Result<OwnedFd> {
    match KEPT.get() {
        Some(kept) => kept.try_clone().map_err(|_| Errno::EMFILE),
        None => nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()),
    }
}

/// Opens `/proc/NAME`, a link of it followed.
pub fn open(name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::openat(start()?, name, flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// What the link `/proc/NAME` says.
pub fn link(name: &str) -> nix::Result<Vec<u8>> {
    nix::fcntl::readlinkat(start()?, name).map(OsStringExt::into_vec)
}

/// The text of `/proc/NAME`. The name of a process in it may be cut in the middle of a character.
pub fn read(name: &str) -> nix::Result<String> {
    read_bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// No file that is read whole is longer.
const LONGEST: u64 = 16 << 20;

/// The bytes of `/proc/NAME`.
pub fn read_bytes(name: &str) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![];
    std::fs::File::from(open(name, OFlag::O_RDONLY)?)
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(bytes)
}

/// The path, as our root has it, of what is open here.
pub fn name_of(fd: BorrowedFd) -> nix::Result<Vec<u8>> {
    link(&format!("self/fd/{}", fd.as_raw_fd()))
}

/// The state of a process, and the number of its parent.
fn state_and_parent(pid: i32) -> Option<(String, i32)> {
    // Its name, in brackets, may hold anything: what follows the last one counts (proc_pid_stat(5)).
    let stat = read_bytes(&format!("{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    Some((fields.next()?.to_string(), fields.next()?.parse().ok()?))
}

/// Does this process descend from us?
pub fn is_descendant(mut pid: i32) -> bool {
    let own = nix::unistd::getpid().as_raw();
    // Numbers come again: a circle ends, too.
    for _ in 0..1 << 16 {
        match state_and_parent(pid) {
            Some((_, parent)) if parent == own => return true,
            Some((_, parent)) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// All processes that descend from this one and are not dead, but none of `spared` nor what descends from it.
pub fn descendants(spared: &[Pid]) -> nix::Result<Vec<Pid>> {
    let mut parents = std::collections::BTreeMap::new();
    for name in super::file::list(open(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?.as_fd()).map_err(|_| Errno::EIO)? {
        let Some(pid) = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some((state, parent)) = state_and_parent(pid) {
            parents.insert(pid, (parent, !matches!(state.as_str(), "Z" | "X")));
        }
    }
    let own = nix::unistd::getpid().as_raw();
    let descends = |mut pid: i32| {
        for _ in 0..parents.len() {
            if spared.contains(&Pid::from_raw(pid)) {
                return false;
            }
            match parents.get(&pid) {
                Some((parent, _)) if *parent == own => return true,
                Some((parent, _)) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    Ok(parents
        .iter()
        .filter(|(pid, (_, alive))| *alive && descends(**pid))
        .map(|(pid, _)| Pid::from_raw(*pid))
        .collect())
}

/// Kills all that descend from this process, which must be a subreaper, but for `spared` and what descends
/// from those. Who is stopped can't fork: they are killed when all are.
pub fn kill_descendants(spared: &[Pid]) {
    let mut stopped = vec![];
    while let Ok(all) = descendants(spared) {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG))
        {}
        let signal = if all == stopped { Signal::SIGKILL } else { Signal::SIGSTOP };
        if all.is_empty() {
            return;
        }
        for pid in &all {
            let _ = kill(*pid, signal);
        }
        stopped = all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_and_nobody_else() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let found = loop {
            let found = descendants(&[]).unwrap();
            if found.len() >= 2 {
                break found;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(found.contains(&Pid::from_raw(child.id() as i32)));
        assert!(found.iter().all(|pid| is_descendant(pid.as_raw())));
        assert!(![1, nix::unistd::getpid().as_raw(), nix::unistd::getppid().as_raw()].into_iter().any(is_descendant));
        assert!(!found.contains(&nix::unistd::getpid()) && !found.contains(&nix::unistd::getppid()));
        let spared = descendants(&[Pid::from_raw(child.id() as i32)]).unwrap();
        assert!(!found.iter().any(|pid| spared.contains(pid)), "{spared:?} of {found:?}");
        for pid in found {
            let _ = kill(pid, Signal::SIGKILL);
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_file_that_is_open_has_its_name() {
        let file = std::fs::File::open("/etc/passwd").unwrap();
        assert_eq!(name_of(file.as_fd()).unwrap(), b"/etc/passwd");
        assert!(read("self/status").unwrap().starts_with("Name:"));
    }
}
