//! What the collector may remove, and how it stays out of everybody's way.
//!
//! It holds the store's lock alone, so no build is under way, and moves what goes into a scratch
//! folder: that takes a rename for each, and a kill at any moment leaves a whole store and a scratch
//! folder, which the next command removes. The lock is let go before anything is deleted.
//!
//! A thing stays when it is younger than the limit, when a list in `uses/` that is younger than the
//! limit has it, or when it is a changeset of a builder or a result with one. Folders that this file does not know are
//! somebody else's caches: what lies directly in them stays while its modification time is younger
//! than the limit, or while its name is the digest of something that stays.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::runs::{names, read_run};
use super::{Scratch, Store};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::file;

/// What no build has used for so long is removed.
pub const LIMIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is no store of things: the lock and such, builders, and scratch folders, which have locks of their own.
const NEVER: [&str; 4] = ["format", "lock", "builders", "tmp"];

/// What goes, or would.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// For each folder of the store, how many things.
    pub removed: std::collections::BTreeMap<String, u64>,
    /// Bytes that this gives back.
    pub freed: u64,
    /// Bytes that the store holds after it.
    pub kept: u64,
}

/// What is to go.
struct Found {
    victims: Vec<(String, PathBuf)>,
    staying: Vec<PathBuf>,
}

/// Removes what no build has used since the limit; `all`: whatever no builder needs. `dry`: only says so.
pub fn collect(path: &Path, all: bool, dry: bool, waiting: impl FnOnce()) -> Result<Collected> {
    if dry {
        let store = Store::open(path)?;
        return weigh(&find(&store, all)?);
    }
    let store = Store::open_alone(path, waiting)?;
    let found = find(&store, all)?;
    let scratch = store.scratch()?;
    let mut moved = vec![];
    for (i, (kind, victim)) in found.victims.iter().enumerate() {
        let to = scratch.path().join(i.to_string());
        fs::rename(victim, &to).map_err(|e| Error::io("rename", victim, e))?;
        moved.push((kind.clone(), to));
    }
    drop_lock_and_weigh(store, scratch, Found { victims: moved, staying: found.staying })
}

/// Builds may go on; what is deleted is out of their way.
fn drop_lock_and_weigh(store: Store, scratch: Scratch, found: Found) -> Result<Collected> {
    let shared = store.path().to_path_buf();
    drop(store);
    let _store = Store::open(&shared)?;
    let collected = weigh(&found);
    drop(scratch);
    collected
}

fn find(store: &Store, all: bool) -> Result<Found> {
    let limit = if all { None } else { SystemTime::now().checked_sub(LIMIT) };
    let young = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|m| m.modified());
        // With `all` nothing is young; without a clock that makes sense everything is.
        !all && modified.is_ok_and(|time| limit.is_none_or(|limit| time >= limit))
    };
    let mut keep: BTreeSet<Digest> = store.builders()?.into_iter().flat_map(|builder| builder.changesets).collect();
    // A builder is found by the result that made it, and so is what that was made of.
    let of_builders: Vec<String> = keep.iter().map(Digest::hex).collect();
    let makes_builder = |path: &Path| {
        let document = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&document);
        of_builders.iter().any(|hex| text.contains(hex.as_str()))
    };
    let uses = store.path().join("uses");
    for name in names(&uses)? {
        if young(&uses.join(&name)) {
            keep.extend(read_use(&uses.join(&name)));
        }
    }
    let mut found = Found { victims: vec![], staying: vec![] };
    for top in names(store.path())? {
        if NEVER.contains(&top.as_str()) {
            continue;
        }
        let folders = match top.as_str() {
            "blobs" => vec![store.path().join("blobs/sha256")],
            "unsynced" => names(&store.path().join(&top))?.iter().map(|n| store.path().join(&top).join(n)).collect(),
            other => vec![store.path().join(other)],
        };
        for folder in folders {
            if !folder.is_dir() {
                continue;
            }
            for name in names(&folder)? {
                let path = folder.join(&name);
                let used = match top.as_str() {
                    "runs" => read_run(&path).is_some_and(|run| keep.contains(&run.key)),
                    _ => Digest::from_hex(&name).is_ok_and(|digest| keep.contains(&digest)),
                };
                let is_result = matches!(top.as_str(), "actions" | "unsynced");
                if used || young(&path) || (is_result && makes_builder(&path)) {
                    found.staying.push(path);
                } else {
                    found.victims.push((top.clone(), path));
                }
            }
        }
    }
    Ok(found)
}

/// A list of what a command used: digests, one after the other.
fn read_use(path: &Path) -> Vec<Digest> {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.chunks_exact(32).filter_map(|chunk| Some(Digest::from_bytes(chunk.try_into().ok()?))).collect()
}

fn weigh(found: &Found) -> Result<Collected> {
    let mut collected = Collected::default();
    let mut seen = BTreeSet::new();
    for path in &found.staying {
        collected.kept += size(path, &mut seen)?;
    }
    for (kind, path) in &found.victims {
        *collected.removed.entry(kind.clone()).or_default() += 1;
        collected.freed += size(path, &mut seen)?;
    }
    Ok(collected)
}

/// Bytes on the disk; what has several names counts once, and not at all where another name stays.
fn size(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> Result<u64> {
    let mut sum = 0;
    for entry in walkdir::WalkDir::new(path).follow_links(false) {
        // Folders of mode 000 and what goes meanwhile are left out: it is a number for people.
        let Some(metadata) = entry.ok().and_then(|e| e.metadata().ok()) else { continue };
        if metadata.nlink() == 1 || metadata.is_dir() || seen.insert((metadata.dev(), metadata.ino())) {
            sum += metadata.blocks() * 512;
        }
    }
    Ok(sum)
}

impl Store {
    /// Says that something in a folder of its own is in use: the collector looks at the modification
    /// time, which is set at most once a day.
    pub fn touch(&self, path: &Path) -> Result<()> {
        let modified = fs::metadata(path).and_then(|m| m.modified()).map_err(|e| Error::io("stat", path, e))?;
        if modified.elapsed().is_ok_and(|age| age < Duration::from_secs(24 * 60 * 60)) {
            return Ok(());
        }
        fs::File::open(path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(|e| Error::io("utimens", path, e))
    }

    /// What this command has used so far.
    pub fn all_used(&self) -> BTreeSet<Digest> {
        self.0.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Says that a result, changeset or blob is in use.
    pub fn used(&self, digest: &Digest) {
        self.0.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(*digest);
    }
}

/// Writes down what a command used: one file, which the next command of the same kind only touches.
pub(super) fn write_use(store: &Path, used: &BTreeSet<Digest>) -> std::io::Result<()> {
    if used.is_empty() {
        return Ok(());
    }
    let bytes: Vec<u8> = used.iter().flat_map(|digest| *digest.as_bytes()).collect();
    let path = store.join("uses").join(Digest::of(&bytes).hex());
    match fs::File::open(&path) {
        Ok(file) => file.set_modified(SystemTime::now()),
        Err(_) => {
            let mut new = file::nameless_file(&store.join("uses"), 0o600).map_err(std::io::Error::other)?;
            std::io::Write::write_all(&mut new, &bytes)?;
            file::name_file(&new, &path).map(drop).map_err(std::io::Error::other)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Builder;

    fn age(path: &Path) {
        let old = SystemTime::now() - LIMIT - Duration::from_secs(60);
        for entry in walkdir::WalkDir::new(path) {
            fs::File::open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }

    fn folder(store: &Store, name: &str) -> Digest {
        let scratch = store.scratch().unwrap();
        let files = scratch.folder("files").unwrap();
        fs::write(files.join("a"), name).unwrap();
        store.keep_changeset(Digest::of(name), Default::default(), &files).unwrap().digest
    }

    #[test]
    fn what_was_used_lately_or_is_a_builders_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store");
        let store = Store::open(&path).unwrap();
        let [blob, other] = ["used", "unused"].map(|text| store.put(text.as_bytes()).unwrap().digest);
        let [builder, rule, gone] = ["builder", "rule", "gone"].map(|name| folder(&store, name));
        for key in ["kept", "lost"] {
            store.record_action(&Digest::of(key), b"x").unwrap();
        }
        store.sync().unwrap();
        let record = Builder {
            tag: "b".into(),
            from: "x".into(),
            changesets: vec![builder],
            packages: Default::default(),
            lock: None,
            reproducible: true,
        };
        store.keep_builder(&record).unwrap();
        fs::create_dir(path.join("of_others")).unwrap();
        for name in ["young", "old"] {
            fs::create_dir(path.join("of_others").join(name)).unwrap();
        }
        drop(store);
        age(&path);

        let store = Store::open(&path).unwrap();
        assert!(store.has_blob(&blob) && store.has_changeset(&rule) && store.action(&Digest::of("kept")).is_some());
        store.touch(&path.join("of_others/young")).unwrap();
        drop(store);

        let would = collect(&path, false, true, || ()).unwrap();
        assert!(path.join("changesets").join(gone.hex()).exists(), "a dry run removes nothing");
        let did = collect(&path, false, false, || panic!("nobody has it")).unwrap();
        assert_eq!(did.removed, would.removed);
        let store = Store::open(&path).unwrap();
        assert!(store.has_blob(&blob) && store.has_changeset(&rule) && store.has_changeset(&builder));
        assert!(store.action(&Digest::of("kept")).is_some());
        assert!(!store.has_blob(&other) && !store.has_changeset(&gone));
        assert!(store.action(&Digest::of("lost")).is_none());
        assert!(path.join("of_others/young").exists() && !path.join("of_others/old").exists());
        drop(store);

        collect(&path, true, false, || ()).unwrap();
        let store = Store::open(&path).unwrap();
        assert!(store.has_changeset(&builder) && !store.has_changeset(&rule) && !store.has_blob(&blob));
        crate::store::wait_until_clean();
        assert_eq!(names(&path.join("tmp")).unwrap(), [] as [String; 0]);
    }

    #[test]
    fn a_command_that_uses_the_same_again_writes_no_further_list() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store");
        let blob = Store::open(&path).unwrap().put(b"x").unwrap().digest;
        for _ in 0..3 {
            assert!(Store::open(&path).unwrap().has_blob(&blob));
        }
        assert_eq!(names(&path.join("uses")).unwrap().len(), 1);
    }
}
