//! Packages into the store: several at once, each checked by size and SHA-256.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sources::Source;
use crate::builder::lock_file::LockedPackage;
use crate::error::{Error, Result};
use crate::remote::http::{Http, shown};
use crate::store::Store;

/// How many transfers run at once: a mirror's latency counts more than its bandwidth.
const AT_ONCE: usize = 8;

/// Is told how a bootstrap goes on; the command line shows it.
pub trait Progress: Sync {
    /// A phase begins: `download`, `unpack`, `configure`; how many things it works on, and their size.
    fn phase(&self, name: &str, things: usize, bytes: u64);
    /// So many bytes more.
    fn bytes(&self, bytes: u64);
    /// One thing is done.
    fn done(&self, name: &str);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: &str, _: usize, _: u64) {}
    fn bytes(&self, _: u64) {}
    fn done(&self, _: &str) {}
}

/// Brings those of the packages that the store doesn't have yet into it.
pub fn download(
    packages: &[&LockedPackage],
    sources: &[Source],
    http: &Http,
    store: &Store,
    progress: &dyn Progress,
) -> Result<()> {
    let mut missing: Vec<_> = packages.iter().filter(|p| !store.gives(&p.digest)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Large ones first, so that none of them is left at the end alone.
    missing.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
    progress.phase("download", missing.len(), missing.iter().map(|p| p.size).sum());
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(vec![]);
    let gone = Mutex::new(vec![]);
    let work = || {
        while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            match fetch(package, sources, http, store, progress) {
                Ok(true) => progress.done(&package.name),
                // The others are tried all the same: all that is gone is told at once.
                Ok(false) => {
                    let name = format!("{} {} ({})", package.name, package.version, package.file);
                    gone.lock().unwrap_or_else(|e| e.into_inner()).push(name);
                }
                Err(error) => {
                    next.store(missing.len(), Ordering::Relaxed);
                    errors
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push(error.context(format!("package {} {}", package.name, package.version)));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(missing.len()) {
            scope.spawn(work);
        }
    });
    let mut errors = errors.into_inner().unwrap_or_else(|e| e.into_inner());
    let mut gone = gone.into_inner().unwrap_or_else(|e| e.into_inner());
    if !gone.is_empty() {
        gone.sort();
        let what = if gone.len() == 1 { "a package".to_string() } else { format!("{} packages", gone.len()) };
        let mut error = Error::failed(format!("no mirror has {what} of the lock any more"));
        for name in gone {
            error = error.why(name);
        }
        errors.push(error.next(
            "take newer versions with tapeout lock --update, or name a mirror that keeps old ones with --mirror",
        ));
    }
    Error::all(errors).map_or(Ok(()), Err)
}

/// `false`: no mirror has it.
fn fetch(
    package: &LockedPackage,
    sources: &[Source],
    http: &Http,
    store: &Store,
    progress: &dyn Progress,
) -> Result<bool> {
    // A suite and its updates share a pool, so another source may have it too.
    let own = sources.iter().filter(|s| s.suite == package.suite);
    let others = sources.iter().filter(|s| s.suite != package.suite);
    let mut tried = BTreeSet::new();
    for source in own.chain(others).filter(|s| tried.insert(s.uri.clone())) {
        let url = format!("{}/{}", source.uri, package.file);
        let mut blob = store.begin()?;
        let Some(size) = http.fetch_if_there(&url, package.size, &mut blob, &|n| progress.bytes(n))? else { continue };
        if size != package.size {
            return Err(Error::failed(format!("{} has {size} bytes instead of {}", shown(&url), package.size)));
        }
        blob.finish_as(&package.digest).map_err(|e| {
            e.context(shown(&url))
                .next("the mirror gave something else than its signed index says: name another one with --mirror")
        })?;
        return Ok(true);
    }
    Ok(false)
}
