//! Scratch folders: private, on the store's disk, gone with their process.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::sys::file::{self, Lock};
use crate::sys::root::Root;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A private folder in the store, removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held while this process lives: what nobody holds is stale.
    _lock: File,
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
            let lock_path = path.join("lock");
            // Between the two calls another process may have taken the folder for stale.
            match File::create(&lock_path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("create", &lock_path, e)),
                Ok(lock) if file::lock(&lock, Lock::TryExclusive).unwrap_or(false) && path.is_dir() => {
                    return Ok(Self { path, _lock: lock });
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
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(|e| Error::io("chmod", &path, e))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed now is stale for the next process.
        let _ = file::remove_tree(&self.path);
    }
}

/// Removes the scratch folders whose process is gone. A folder without a lock yet is being made,
/// unless it is old.
pub(super) fn remove_stale(tmp: &Path) {
    for entry in fs::read_dir(tmp).into_iter().flatten().filter_map(|e| e.ok()) {
        let path = entry.path();
        let stale = match File::open(path.join("lock")) {
            Ok(lock) => file::lock(&lock, Lock::TryExclusive).unwrap_or(false),
            Err(_) => entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() > 60)),
        };
        if stale {
            let _ = file::remove_tree(&path);
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
