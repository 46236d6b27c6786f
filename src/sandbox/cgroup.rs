//! A control group for one rule: where this place gives us one to divide (it is delegated), a limit of memory is that of
//! all processes of the rule together, and it is known whether it was hit.
//!
//! `…/tapeout-<process>-<number>` below the group that we are in; removed when the rule has ended. What a kill
//! leaves behind is empty, and removed by the next command. Elsewhere the limit is that of each process.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How the two versions of the kernel's interface name the same: cgroup-v1/memory.rst, cgroup-v2.rst.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    limit: &'static str,
    /// What may be swapped out; in version 1 together with the memory.
    swap: &'static str,
    swap_counts_memory: bool,
    /// A line of it says how often the kernel killed for want of memory.
    events: &'static str,
}

const ONE: Version = Version {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    swap_counts_memory: true,
    events: "memory.oom_control",
};
const TWO: Version =
    Version { limit: "memory.max", swap: "memory.swap.max", swap_counts_memory: false, events: "memory.events" };

const PREFIX: &str = "tapeout-";

/// The group of one rule.
#[derive(Debug)]
pub(super) struct Group {
    folder: PathBuf,
    version: &'static Version,
}

impl Group {
    /// With this much memory; `None`: there is none to be had here.
    pub fn with(memory: u64) -> Option<Self> {
        static BASE: OnceLock<Option<(PathBuf, &'static Version)>> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let (base, version) = BASE.get_or_init(base).as_ref()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        // From here on it is removed when it can't be used.
        let group = Self { folder, version };
        fs::write(group.folder.join(version.limit), memory.to_string()).ok()?;
        // Not every kernel counts what is swapped out.
        let swap = if version.swap_counts_memory { memory } else { 0 };
        let _ = fs::write(group.folder.join(version.swap), swap.to_string());
        Some(group)
    }

    /// Who writes `0` to it is in the group, and so are all that it starts.
    pub fn door(&self) -> Option<File> {
        OpenOptions::new().write(true).open(self.folder.join("cgroup.procs")).ok()
    }

    /// Did the kernel kill a process of it for want of memory?
    pub fn was_exhausted(&self) -> bool {
        fs::read_to_string(self.folder.join(self.version.events)).is_ok_and(|events| kills(&events) > 0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may be dead and not yet gone.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) {
            match fs::remove_dir(&self.folder) {
                Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

fn kills(events: &str) -> u64 {
    let found = events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).next();
    found.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The group below which ours are made, if we may.
fn base() -> Option<(PathBuf, &'static Version)> {
    let (own, version) = own(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
    remove_left_over(&own);
    if *version == TWO {
        share_memory(&own)?;
    }
    Some((own, version))
}

/// The group that we are in and that counts memory, at its usual place.
fn own(groups: &str) -> Option<(PathBuf, &'static Version)> {
    let found = |of: &dyn Fn(&str) -> bool| {
        let mut lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(controllers, _)| of(controllers)).map(|(_, path)| path.trim_start_matches('/').to_string())
    };
    // Outside of what we see of the tree it is named by `..`.
    let inside = |path: &String| !path.split('/').any(|part| part == "..");
    if let Some(path) = found(&|controllers| controllers.split(',').any(|one| one == "memory")) {
        return Some(path).filter(inside).map(|path| (Path::new("/sys/fs/cgroup/memory").join(path), &ONE));
    }
    found(&str::is_empty).filter(inside).map(|path| (Path::new("/sys/fs/cgroup").join(path), &TWO))
}

/// Groups of commands that are dead. One that lives may just have made its own.
fn remove_left_over(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if of.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Only where it is empty.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// In version 2 a group with processes in it can't limit those below it: they go one floor down, if all are ours.
fn share_memory(own: &Path) -> Option<()> {
    let has = |name: &str| {
        fs::read_to_string(own.join(name)).is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"))
    };
    if has("cgroup.subtree_control") {
        return Some(());
    }
    let processes = fs::read_to_string(own.join("cgroup.procs")).ok()?;
    if !has("cgroup.controllers") || !processes.lines().all(is_ours) {
        return None;
    }
    let floor = own.join(format!("{PREFIX}{}-0", std::process::id()));
    fs::create_dir(&floor).ok()?;
    let all_go = |to: &Path| processes.lines().all(|process| fs::write(to.join("cgroup.procs"), process).is_ok());
    if all_go(&floor) && fs::write(own.join("cgroup.subtree_control"), "+memory").is_ok() {
        return Some(());
    }
    all_go(own);
    let _ = fs::remove_dir(&floor);
    None
}

/// This process, or one that descends from it.
fn is_ours(process: &str) -> bool {
    let mut at = process.to_string();
    while at != std::process::id().to_string() {
        let status = fs::read_to_string(format!("/proc/{at}/status")).unwrap_or_default();
        match status.lines().find_map(|line| line.strip_prefix("PPid:")) {
            Some(parent) if parent.trim() != "0" => at = parent.trim().to_string(),
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_both_versions() {
        let folder = |groups: &str| own(groups).map(|(folder, _)| folder.display().to_string());
        assert_eq!(folder("9:name=systemd:/\n4:cpu,memory:/a/b:c\n0::/\n").unwrap(), "/sys/fs/cgroup/memory/a/b:c");
        assert_eq!(own("0::/user.slice/x.scope\n").unwrap(), ("/sys/fs/cgroup/user.slice/x.scope".into(), &TWO));
        assert_eq!(folder("0::/../x\n"), None);
        assert_eq!(folder("1:name=systemd:/\n"), None);
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(kills("oom_kill_disable 1\n"), 0);
    }

    #[test]
    fn a_process_is_ours_when_it_descends_from_us() {
        assert!(is_ours(&std::process::id().to_string()));
        assert!(!is_ours("1") && !is_ours("no process"));
    }
}
