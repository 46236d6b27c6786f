//! Caches of rules: folders that keep their content from run to run, one for each path inside.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::disk::{self, Lock};

/// A cache that is nobody else's while this is held.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    pub(super) fn open(caches: &Path, inside: &str) -> Result<Self> {
        let own = caches.join(Digest::of(inside).hex());
        let folder = own.join("files");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(|e| Error::io("mkdir", &folder, e))?;
        // For people who look into the store.
        let name = own.join("path");
        fs::write(&name, format!("{inside}\n")).map_err(|e| Error::io("write", &name, e))?;
        let path = own.join("lock");
        let lock = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        disk::lock(&lock, Lock::Exclusive).map_err(|e| Error::io("flock", &path, e))?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder with its content.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
