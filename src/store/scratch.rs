//! Scratch folders: private, on the store's disk, gone with their process.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SendError, Sender, channel};

use crate::error::{Error, Result};
use crate::sys::file::{self, Lock};
use crate::sys::root::Root;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A private folder in the store, removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held while this process lives: what nobody holds is stale.
    lock: Option<File>,
}

impl Scratch {
    pub(super) fn new(tmp: &Path) -> Result<Self> {
        // Process IDs repeat in other PID namespaces that share the store, so a taken name is passed over.
        loop {
            let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = tmp.join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("mkdir", &path, e)),
                Ok(()) => {}
            }
            file::inherit_no_acl(&path)?;
            let lock_path = path.join("lock");
            // Between the two calls another process may have taken the folder for stale.
            match File::create(&lock_path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("create", &lock_path, e)),
                Ok(lock) if file::lock(&lock, Lock::TryExclusive).unwrap_or(false) && path.is_dir() => {
                    return Ok(Self { path, lock: Some(lock) });
                }
                Ok(_) => continue,
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As a root for descriptor work.
    pub fn root(&self) -> Result<Root> {
        Root::open(&self.path)
    }

    /// A new folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(|e| Error::io("mkdir", &path, e))?;
        // The umask may have taken bits away, and what becomes a snapshot's root must not depend on it.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| Error::io("chmod", &path, e))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let (Some(lock), path) = (self.lock.take(), std::mem::take(&mut self.path)) else { return };
        if let Err(SendError(Job::Remove(path, lock))) = cleaner().send(Job::Remove(path, lock)) {
            remove(&path, lock);
        }
    }
}

/// What the cleaner does.
enum Job {
    Remove(PathBuf, File),
    Tell(Sender<()>),
}

/// Removing what a rule left takes as long as running a small one, so another thread does it.
fn cleaner() -> &'static Sender<Job> {
    static CLEANER: OnceLock<Sender<Job>> = OnceLock::new();
    CLEANER.get_or_init(|| {
        let (sender, jobs) = channel();
        // Without the thread the receiver is gone, and whoever sends removes it himself.
        let _ = std::thread::Builder::new().name("cleaner".into()).spawn(move || {
            for job in jobs {
                match job {
                    Job::Remove(path, lock) => remove(&path, lock),
                    Job::Tell(done) => drop(done.send(())),
                }
            }
        });
        sender
    })
}

static HELP: OnceLock<fn(&Path)> = OnceLock::new();

/// Says who helps where a folder can't be removed, because a sandbox with subordinate IDs was killed:
/// it gives everything in it back to us.
pub fn help_removing(help: fn(&Path)) {
    let _ = HELP.set(help);
}

fn remove_all(path: &Path) {
    if file::remove_tree(path).is_err()
        && let Some(help) = HELP.get()
    {
        help(path);
        let _ = file::remove_tree(path);
    }
}

/// The lock is held until the folder is gone. What can't be removed now is stale for the next process.
fn remove(path: &Path, _lock: File) {
    remove_all(path);
}

/// Waits until all that was dropped is gone.
pub fn wait_until_clean() {
    let (done, is_done) = channel();
    if cleaner().send(Job::Tell(done)).is_ok() {
        let _ = is_done.recv();
    }
}

/// Removes the scratch folders whose process is gone. A folder without a lock yet is being made,
/// unless it is old.
pub(super) fn remove_stale(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().filter_map(|e| e.ok()) {
        let path = entry.path();
        let stale = match File::open(path.join("lock")) {
            Ok(lock) => file::lock(&lock, Lock::TryExclusive).unwrap_or(false),
            Err(_) => entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() > 60)),
        };
        if stale {
            remove_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_when_it_is_dropped_and_stays_while_it_is_held() {
        let temp = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(temp.path()).unwrap();
        fs::create_dir_all(scratch.path().join("a/b")).unwrap();
        remove_stale(temp.path());
        assert!(scratch.path().join("a/b").is_dir());
        let path = scratch.path().to_path_buf();
        drop(scratch);
        wait_until_clean();
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let left = temp.path().join("1-1");
        fs::create_dir_all(left.join("deep")).unwrap();
        fs::write(left.join("lock"), "").unwrap();
        remove_stale(temp.path());
        assert!(!left.exists());
    }
}
