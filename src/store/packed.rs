//! Result documents in one file, beside those in `actions/`: where ten thousand rules are cached, one file and one
//! listing are read, and not ten thousand files.
//!
//! `actions/` and `unsynced/` are what counts. A document of this file is taken only while `actions/` lists its key
//! and no newer one is in `unsynced/`; what it lacks is read from its own file and added at the end of the command.
//! It is replaced whole, by one command at a time, after what it holds reached the disk. Lost or damaged, it costs
//! the time of reading those files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{Store, split_sum, with_sum};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::disk::{self, Lock};

/// Documents by key.
pub(super) type Documents = BTreeMap<Digest, Vec<u8>>;

/// A document larger than this stays in its own file.
const LARGEST: usize = 4096;
/// A file larger than this is not read: it would be slower than what it saves.
const WHOLE: u64 = 256 << 20;

fn path(store: &Path) -> PathBuf {
    store.join("packed/actions")
}

/// What may be taken from it now.
pub(super) fn read(store: &Path, unsynced: &Path) -> Documents {
    let Some(mut documents) = whole(&path(store)) else { return Documents::new() };
    let (listed, newer) = (keys(&store.join("actions")), keys(unsynced));
    documents.retain(|key, _| listed.contains(key) && !newer.contains(key));
    documents
}

fn whole(path: &Path) -> Option<Documents> {
    if fs::metadata(path).ok()?.len() > WHOLE {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    postcard::from_bytes(split_sum(&bytes)?).ok()
}

fn keys(folder: &Path) -> BTreeSet<Digest> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.filter_map(|entry| Digest::from_hex(entry.ok()?.file_name().to_str()?).ok()).collect()
}

/// Adds documents that lie in `actions/`, and forgets those that don't any more.
pub(super) fn add(store: &Store, mut new: Documents) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let path = path(store.path());
    let lock = path.with_extension("lock");
    // Two that read, add and replace at once would lose what one of them added.
    let held = File::options().create(true).truncate(false).write(true).open(&lock);
    let held = held.map_err(|e| Error::io("open", &lock, e))?;
    disk::lock(&held, Lock::Exclusive).map_err(|e| Error::io("flock", &lock, e))?;
    let mut documents = whole(&path).unwrap_or_default();
    documents.append(&mut new);
    // After it has taken the place of an older one, which would be read instead of its own file.
    documents.retain(|_, document| document.len() <= LARGEST);
    let listed = keys(&store.path().join("actions"));
    documents.retain(|key, _| listed.contains(key));
    let bytes =
        postcard::to_stdvec(&documents).map_err(|e| Error::failed(format!("can't write {}: {e}", path.display())))?;
    store.replace(&path, &with_sum(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synced(store: &Store, name: &str, result: &[u8]) -> Digest {
        let key = Digest::of(name);
        store.record_action(&key, result).unwrap();
        store.sync().unwrap();
        key
    }

    #[test]
    fn what_was_synced_is_read_from_one_file_while_it_is_listed() {
        let temp = tempfile::tempdir().unwrap();
        let open = || Store::open(temp.path()).unwrap();
        let (a, b) = (synced(&open(), "a", b"1"), synced(&open(), "b", b"2"));
        // The single file is not opened: it may hold anything.
        fs::write(temp.path().join("actions").join(a.hex()), "other").unwrap();
        assert_eq!(open().action(&a).unwrap(), b"1");
        // Who removes it there has removed it.
        fs::remove_file(temp.path().join("actions").join(b.hex())).unwrap();
        assert!(open().action(&b).is_none());
    }

    #[test]
    fn a_newer_result_that_is_too_large_is_read_from_its_own_file() {
        let temp = tempfile::tempdir().unwrap();
        let open = || Store::open(temp.path()).unwrap();
        let key = synced(&open(), "a", b"1");
        let large = vec![b'x'; LARGEST + 1];
        assert_eq!(synced(&open(), "a", &large), key);
        assert_eq!(open().action(&key).unwrap(), large);
    }

    #[test]
    fn a_newer_result_counts_before_and_after_it_was_synced() {
        let temp = tempfile::tempdir().unwrap();
        let key = synced(&Store::open(temp.path()).unwrap(), "a", b"1");
        let store = Store::open(temp.path()).unwrap();
        assert_eq!(store.action(&key).unwrap(), b"1");
        store.record_action(&key, b"2").unwrap();
        assert_eq!(store.action(&key).unwrap(), b"2", "in the command that recorded it");
        let other = Store::open(temp.path()).unwrap();
        assert_eq!(other.action(&key).unwrap(), b"2", "in another one");
        store.sync().unwrap();
        assert_eq!(Store::open(temp.path()).unwrap().action(&key).unwrap(), b"2", "after it");
    }

    #[test]
    fn lost_or_damaged_it_costs_nothing_but_time() {
        let temp = tempfile::tempdir().unwrap();
        let key = synced(&Store::open(temp.path()).unwrap(), "a", b"1");
        let packed = path(temp.path());
        let whole = fs::read(&packed).unwrap();
        for damaged in [&b""[..], &whole[..40], &[whole.clone(), vec![0]].concat()] {
            fs::write(&packed, damaged).unwrap();
            let store = Store::open(temp.path()).unwrap();
            assert_eq!(store.action(&key).unwrap(), b"1");
            store.sync().unwrap();
            assert_eq!(fs::read(&packed).unwrap(), whole, "it is whole again");
        }
    }

    #[test]
    fn two_that_add_at_once_lose_nothing() {
        let temp = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let temp = &temp;
                scope.spawn(move || synced(&Store::open(temp.path()).unwrap(), &n.to_string(), b"x"));
            }
        });
        assert_eq!(whole(&path(temp.path())).unwrap().len(), 8);
    }
}
