//! Scratch folders: private, on the store's disk, gone with their process.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::sys::disk::{self, Lock};
use crate::sys::file;
use crate::sys::root::Root;
use crate::sys::xattr;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Where the scratch folders of one process lie: `tmp/PROCESS-NUMBER/`. It is locked while it is there, which is from
/// the first of them until the store is closed: for a small rule a folder, a lock and their removal more would count.
#[derive(Debug)]
pub(super) struct Den {
    path: PathBuf,
    /// What nobody holds is stale.
    _lock: File,
}

impl Den {
    pub(super) fn new(tmp: &Path) -> Result<Arc<Self>> {
        // Process IDs repeat in other PID namespaces that share the store, so a taken name is passed over.
        loop {
            let path = unused(tmp, &format!("{}-", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("mkdir", &path, e)),
                Ok(()) => {}
            }
            xattr::inherit_no_acl(&path)?;
            let lock_path = path.join("lock");
            // Between the two calls another process may have taken the folder for stale.
            match File::create(&lock_path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("create", &lock_path, e)),
                Ok(lock) if disk::lock(&lock, Lock::TryExclusive).unwrap_or(false) && path.is_dir() => {
                    return Ok(Arc::new(Self { path, _lock: lock }));
                }
                Ok(_) => continue,
            }
        }
    }

    /// A path in it that nobody has.
    pub(super) fn unused(&self) -> PathBuf {
        unused(&self.path, "")
    }
}

/// What can't be removed now is stale for the next process.
impl Drop for Den {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path.join("lock"));
        let _ = fs::remove_dir(&self.path);
    }
}

fn unused(folder: &Path, prefix: &str) -> PathBuf {
    folder.join(format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// A private folder in the store, removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    den: Arc<Den>,
}

impl Scratch {
    pub(super) fn new(den: Arc<Den>) -> Result<Self> {
        let path = den.unused();
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| Error::io("mkdir", &path, e))?;
        Ok(Self { path, den })
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
        remove_later(std::mem::take(&mut self.path), Some(self.den.clone()));
    }
}

fn remove_later(path: PathBuf, den: Option<Arc<Den>>) {
    if let Err(SendError(Job::Remove(path, _den))) = cleaner().send(Job::Remove(path, den)) {
        remove_all(&path);
    }
}

/// Removes a folder that nobody needs any more, sooner or later: a kill may leave it.
pub fn discard(folder: PathBuf) {
    remove_later(folder, None);
}

/// What the cleaner does.
enum Job {
    /// What is removed, and in what it lies.
    Remove(PathBuf, Option<Arc<Den>>),
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
                    Job::Remove(path, _den) => remove_all(&path),
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

/// Waits until all that was dropped is gone.
pub fn wait_until_clean() {
    let (done, is_done) = channel();
    if cleaner().send(Job::Tell(done)).is_ok() {
        let _ = is_done.recv();
    }
}

/// Removes the folders whose process is gone. One without a lock yet is being made,
/// unless it is old.
pub(super) fn remove_stale(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().filter_map(|e| e.ok()) {
        let path = entry.path();
        // Held until all is gone: whoever has just made it must not take it for theirs.
        let lock = File::open(path.join("lock"));
        let stale = match &lock {
            Ok(lock) => disk::lock(lock, Lock::TryExclusive).unwrap_or(false),
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
        let den = Den::new(temp.path()).unwrap();
        let (one, other) = (Scratch::new(den.clone()).unwrap(), Scratch::new(den).unwrap());
        fs::create_dir_all(one.path().join("a/b")).unwrap();
        remove_stale(temp.path());
        assert!(one.path().join("a/b").is_dir() && other.path().is_dir());
        let path = one.path().to_path_buf();
        drop(one);
        wait_until_clean();
        assert!(!path.exists() && other.path().is_dir());
        // The last one leaves nothing.
        drop(other);
        wait_until_clean();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
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
