//! The store: what is kept, named by digest.
//!
//! ```text
//! format                  the number of this layout; another number is refused
//! lock                    flock: builds share it, the collector holds it alone
//! blobs/sha256/HEX        packages, archives, layers: whole files
//! changesets/HEX/tree     its SHA-256 (32 bytes), then a `tree::Changeset`
//! changesets/HEX/files/   its files, as an overlay takes them for a lower layer; of the builder `host` a link to `/`
//! actions/HEX             the result document of the request with this digest, after its own SHA-256
//! packed/actions          what actions/ holds, in one file (packed.rs): a cache
//! unsynced/BOOT/HEX       the same, but not yet known to be on the disk
//! graphs/HEX              its SHA-256 (32 bytes), then what an analysis gave, or a build that did nothing: a cache, the newest few
//! builders/TAG.json       which changesets a builder is made of
//! caches/HEX/files/       the content of a cache: HEX is the digest of its path inside, which `path` holds
//! caches/HEX/lock         flock: held by the rule that has it mounted
//! logs/HEX                what the steps of that request printed
//! trees/N/                snapshots where no overlay can be had (changeset/kept_tree/); may be removed
//! squashed/HEX/           many changesets as one folder, hard-linked (execute/squash.rs); may be removed
//! runs/LABEL-VALUES       what a rule came to last, for `log` and `explain` (runs.rs)
//! failed/LABEL-VALUES/    what it left when it failed, for `shell --failed`
//! uses/HEX                digests of what a command used, one after the other (gc.rs)
//! tmp/NAME/               a scratch folder; its `lock` is held by its process
//! ```
//!
//! **What holds after a kill**: everything appears by one rename or link of something whole. A
//! killed process leaves at most its scratch folder, which the next one removes.
//! **What holds after a crash of the machine**: a result counts when it is in `actions/`. It gets
//! there from `unsynced/` (named after this boot of the machine, so that a later boot distrusts
//! it) only after one syncfs(2) of the whole store, at the end of the command.
//!
//! **What the collector may remove** (gc.rs): whatever has not been used for some time. Every digest
//! that a command asks this file for counts as used. A folder that is not in this list is taken for
//! somebody else's cache, whose entries go one by one when they are old or when `gc --all` asks: who
//! keeps one says [`Store::touch`] of what it uses, holds the store open while it does, and can do
//! without any of it in the next command.

mod cache;
pub mod fsck;
pub mod gc;
pub mod inputs;
mod packed;
pub mod runs;
mod scratch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use crate::archive::section::Section;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::disk::{self, Flowing, Lock};
use crate::sys::file;
use crate::sys::memory;
use crate::sys::root::Root;
use crate::tree::{Changeset, Layer, RootPath};

pub use cache::Cache;
use scratch::Den;
pub use scratch::{Scratch, discard, help_removing, wait_until_clean};

/// What a store has from the start; the first is itself.
const FOLDERS: [&str; 16] = [
    "",
    "blobs/sha256",
    "changesets",
    "actions",
    "unsynced",
    "packed",
    "graphs",
    "builders",
    "caches",
    "logs",
    "runs",
    "failed",
    "uses",
    "trees",
    "squashed",
    "tmp",
];

/// The layout that this program reads and writes.
const FORMAT: &str = "2\n";

/// A `tree` larger than this is not read: no changeset has ten million paths.
const LARGEST_TREE: u64 = 4 << 30;

/// Records that are kept in `graphs/`: four for each request.
const GRAPHS: usize = 64;

/// A store on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    boot: String,
    changesets: Mutex<BTreeMap<Digest, Arc<Changeset>>>,
    /// Result documents that were read at once, when the first was asked for.
    packed: Mutex<Option<packed::Documents>>,
    /// Those that had to be read one by one.
    single: Mutex<packed::Documents>,
    /// Files of inputs, which give blobs that the store doesn't have.
    inputs: OnceLock<inputs::Inputs>,
    /// What this command used.
    used: Mutex<BTreeSet<Digest>>,
    /// Made when the first scratch folder is.
    den: Mutex<Option<Arc<Den>>>,
    /// Is something being brought to the disk ahead of [`Store::sync`]?
    ahead: Arc<AtomicBool>,
    /// Held for as long as the store is open. Opened before anything is written, it is what syncfs(2) tells by whether
    /// anything went wrong since, whoever heard of it meanwhile.
    lock: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What isn't written down only looks older than it is.
        let used = self.used.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = gc::write_use(&self.path, used);
    }
}

/// A whole blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A builder: a base root filesystem under a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// Its tag.
    pub tag: String,
    /// What it was made from, as the user wrote it.
    pub from: String,
    /// Its changesets, the lowest first.
    pub changesets: Vec<Digest>,
    /// Packages that are in it: name to version.
    pub packages: BTreeMap<String, String>,
    /// The digest of the part of the lock that it was made from.
    pub lock: Option<Digest>,
    /// Other machines get the same bytes.
    pub reproducible: bool,
}

impl Store {
    /// Opens the store, and makes it when it isn't there. Its folders are 0700 whatever the umask.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, |lock| disk::lock(lock, Lock::Shared).map(drop))
    }

    /// Opens it for nobody else to use meanwhile; `waiting` is called when somebody does. This
    /// process must not have it open.
    pub fn open_alone(path: &Path, waiting: impl FnOnce()) -> Result<Self> {
        Self::open_with(path, |lock| {
            if disk::lock(lock, Lock::TryExclusive)? {
                return Ok(());
            }
            waiting();
            disk::lock(lock, Lock::Exclusive).map(drop)
        })
    }

    fn open_with(path: &Path, take: impl FnOnce(&File) -> io::Result<()>) -> Result<Self> {
        for folder in FOLDERS {
            let folder = path.join(folder);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| {
                Error::io("mkdir", &folder, e).next("name another folder with TAPEOUT_STORE, or --store DIR")
            })?;
        }
        check_format(path)?;
        let lock_path = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(|e| {
            Error::io("open", &lock_path, e)
                .why("a store is written to even where it is only looked at")
                .next("name another folder with TAPEOUT_STORE, or --store DIR")
        })?;
        take(&lock).map_err(|e| Error::io("flock", &lock_path, e))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot: String = boot.chars().filter(|c| c.is_ascii_hexdigit() || *c == '-').collect();
        let boot = if boot.is_empty() { "unknown".to_string() } else { boot.trim().to_string() };
        let inner = Inner {
            path: path.to_path_buf(),
            boot,
            changesets: Mutex::default(),
            packed: Mutex::default(),
            single: Mutex::default(),
            inputs: OnceLock::new(),
            used: Mutex::default(),
            den: Mutex::default(),
            ahead: Arc::default(),
            lock,
        };
        let store = Self(Arc::new(inner));
        store.forget_earlier_boots()?;
        scratch::remove_stale(&store.path().join("tmp"));
        Ok(store)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Names this boot of the machine.
    pub fn boot(&self) -> &str {
        &self.0.boot
    }

    /// The folder with kept trees: snapshots where no overlay can be had.
    pub fn trees_path(&self) -> PathBuf {
        self.path().join("trees")
    }

    /// Where many changesets lie as one folder, or would.
    pub fn squashed_path(&self, digest: &Digest) -> PathBuf {
        self.path().join("squashed").join(digest.hex())
    }

    /// A private folder below `tmp`, removed when it is dropped.
    pub fn scratch(&self) -> Result<Scratch> {
        Scratch::new(self.den()?)
    }

    /// Where this process has its scratch folders.
    fn den(&self) -> Result<Arc<Den>> {
        let mut den = self.0.den.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*den {
            Some(den) => Ok(den.clone()),
            None => Ok(den.insert(Den::new(&self.path().join("tmp"))?).clone()),
        }
    }

    /// The cache for a path inside; waits while another rule has it. Nothing else in the store depends
    /// on what is in it: the collector, which holds the store alone, may remove `caches/HEX` whole.
    pub fn cache_of(&self, inside: &str) -> Result<Cache> {
        let cache = Cache::open(&self.path().join("caches"), inside)?;
        self.touch(cache.folder().parent().unwrap_or(cache.folder()))?;
        Ok(cache)
    }

    // Blobs.

    /// Where a blob lies, or would.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    /// Is it there?
    pub fn has_blob(&self, digest: &Digest) -> bool {
        let there = self.blob_path(digest).is_file();
        if there {
            self.used(digest);
        }
        there
    }

    /// From now on these give what the store doesn't have.
    pub fn use_inputs(&self, inputs: inputs::Inputs) {
        let _ = self.0.inputs.set(inputs);
    }

    /// The files of inputs of this command.
    pub fn inputs(&self) -> Option<&inputs::Inputs> {
        self.0.inputs.get()
    }

    /// Can it be read: is it in the store, or in a file of inputs?
    pub fn gives(&self, digest: &Digest) -> bool {
        self.has_blob(digest) || self.inputs().is_some_and(|inputs| inputs.has(digest))
    }

    /// A blob for reading: the store's, or that of a file of inputs, whose content was checked.
    pub fn blob(&self, digest: &Digest) -> Result<Section> {
        let path = self.blob_path(digest);
        self.used(digest);
        match File::open(&path) {
            Ok(file) => Section::whole(file).map_err(|e| Error::io("fstat", &path, e)),
            Err(e) => match self.inputs().map(|inputs| inputs.blob(digest)).transpose()?.flatten() {
                Some(section) => Ok(section),
                None => Err(Error::io("open", path, e)),
            },
        }
    }

    /// Begins a blob: nothing is there until it is finished.
    pub fn begin(&self) -> Result<Partial> {
        let file = file::nameless_file(&self.path().join("blobs/sha256"), 0o600)?;
        Ok(Partial { store: self.clone(), file: Hashing::new(Flowing::new(file)) })
    }

    /// Begins a blob whose writer hashes what it writes, so that it isn't hashed twice.
    pub fn begin_unhashed(&self) -> Result<Unhashed> {
        let file = file::nameless_file(&self.path().join("blobs/sha256"), 0o600)?;
        Ok(Unhashed { store: self.clone(), file: Flowing::new(file) })
    }

    /// A small blob.
    pub fn put(&self, bytes: &[u8]) -> Result<Blob> {
        let mut partial = self.begin()?;
        partial.write_all(bytes).map_err(|e| Error::io("write", self.path(), e))?;
        partial.finish()
    }

    // Changesets.

    fn changeset_path(&self, digest: &Digest) -> PathBuf {
        self.path().join("changesets").join(digest.hex())
    }

    /// Is it there?
    pub fn has_changeset(&self, digest: &Digest) -> bool {
        let there = self.changeset_path(digest).join("tree").is_file();
        if there {
            self.used(digest);
        }
        there
    }

    /// A changeset as data; read once a command.
    pub fn changeset(&self, digest: &Digest) -> Result<Layer> {
        if let Some(changeset) = self.cache().get(digest) {
            return Ok(Layer { digest: *digest, changeset: changeset.clone() });
        }
        Ok(self.remember(*digest, self.read_tree(digest)?))
    }

    fn read_tree(&self, digest: &Digest) -> Result<Changeset> {
        let path = self.changeset_path(digest).join("tree");
        let size = fs::metadata(&path).map_err(|e| Error::io("open", &path, e))?.len();
        if size > LARGEST_TREE {
            return Err(Error::failed(format!("{} is larger than a changeset can be", path.display())));
        }
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let damaged = |why: String| {
            Error::failed(format!("{} is damaged", path.display()))
                .why(why)
                .next("see which rule has it, and mend it: tapeout fsck --repair")
        };
        let tree = split_sum(&bytes).ok_or_else(|| damaged("its content is not what was written".into()))?;
        postcard::from_bytes(tree).map_err(|e| damaged(e.to_string()))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Arc<Changeset>>> {
        self.0.changesets.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn remember(&self, digest: Digest, changeset: Changeset) -> Layer {
        self.used(&digest);
        let changeset = Arc::new(changeset);
        self.cache().insert(digest, changeset.clone());
        Layer { digest, changeset }
    }

    /// Forgets changesets of very many files, but these: whoever needs one once more reads it again.
    pub fn forget_large(&self, but: &[Digest]) {
        self.cache().retain(|digest, changeset| changeset.changes.len() <= memory::MANY_FILES || but.contains(digest));
    }

    /// The folder with a changeset's files.
    pub fn changeset_files(&self, digest: &Digest) -> Result<Root> {
        Root::open(&self.changeset_files_path(digest))
    }

    /// Its path, for mounting.
    pub fn changeset_files_path(&self, digest: &Digest) -> PathBuf {
        self.changeset_path(digest).join("files")
    }

    /// Keeps a changeset under its name. `files` lies in a scratch folder of this store and is
    /// moved; where the changeset is there already, that one stays.
    pub fn keep_changeset(&self, digest: Digest, changeset: Changeset, files: &Path) -> Result<Layer> {
        if self.has_changeset(&digest) {
            return Ok(self.remember(digest, changeset));
        }
        let staged = self.scratch()?;
        let folder = staged.path().join("changeset");
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|e| Error::io("mkdir", &folder, e))?;
        let tree = folder.join("tree");
        let bytes = postcard::to_stdvec(&changeset)
            .map_err(|e| Error::failed(format!("can't write {}: {e}", tree.display())))?;
        fs::write(&tree, with_sum(&bytes)).map_err(|e| Error::io("write", &tree, e))?;
        let to = folder.join("files");
        fs::rename(files, &to).map_err(|e| Error::io("rename", files, e))?;
        file::rename_new(&folder, &self.changeset_path(&digest))?;
        Ok(self.remember(digest, changeset))
    }

    /// Reads one file of a changeset, links in no part followed.
    pub fn read(&self, changeset: &Digest, path: &RootPath) -> Result<File> {
        self.changeset_files(changeset)?.open_file(path)
    }

    // Actions.

    /// The result document of a request.
    pub fn action(&self, key: &Digest) -> Option<Vec<u8>> {
        if let Some(known) = self.packed(|packed| packed.get(key).cloned()) {
            self.used(key);
            return Some(known);
        }
        // A newer one is in unsynced/; a damaged one is none: what it was the result of is made again.
        let document = |folder: &Path| split_sum(&fs::read(folder.join(key.hex())).ok()?).map(<[u8]>::to_vec);
        let found = document(&self.unsynced()).or_else(|| {
            let document = document(&self.path().join("actions"))?;
            self.single().insert(*key, document.clone());
            Some(document)
        })?;
        self.used(key);
        Some(found)
    }

    fn packed<T>(&self, with: impl FnOnce(&mut packed::Documents) -> T) -> T {
        let mut packed = self.0.packed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        with(packed.get_or_insert_with(|| packed::read(self.path(), &self.unsynced())))
    }

    fn single(&self) -> std::sync::MutexGuard<'_, packed::Documents> {
        self.0.single.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn unsynced(&self) -> PathBuf {
        self.path().join("unsynced").join(&self.0.boot)
    }

    /// Records the result document of a request: it counts at once for this boot of the machine,
    /// and for good after [`Store::sync`].
    pub fn record_action(&self, key: &Digest, result: &[u8]) -> Result<()> {
        let folder = self.unsynced();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| Error::io("mkdir", &folder, e))?;
        self.used(key);
        self.replace(&folder.join(key.hex()), &with_sum(result))?;
        self.packed(|packed| packed.remove(key));
        Ok(())
    }

    /// Writes a small file whole or not at all.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.replace_by(path, &[bytes])
    }

    fn replace_by(&self, path: &Path, parts: &[&[u8]]) -> Result<()> {
        let den = self.den()?;
        let new = den.unused();
        let written = File::create(&new).and_then(|mut file| parts.iter().try_for_each(|part| file.write_all(part)));
        let written = written.map_err(|e| Error::io("write", &new, e));
        let done = written.and_then(|()| fs::rename(&new, path).map_err(|e| Error::io("rename", path, e)));
        if done.is_err() {
            let _ = fs::remove_file(&new);
        }
        done
    }

    /// Begins to bring to the disk what was written so far, while other work goes on: [`Store::sync`], which does the
    /// rest and tells what went wrong, then takes less time.
    pub fn sync_ahead(&self) {
        let (ahead, unsynced) = (self.0.ahead.clone(), self.unsynced());
        if !ahead.swap(true, Ordering::Relaxed)
            && let Ok(folder) = File::open(self.path())
        {
            // Without the thread all is left to the sync at the end.
            let _ = std::thread::Builder::new().name("sync".into()).spawn(move || {
                let synced = disk::sync_file_system(folder.as_fd());
                forget_if_failed(&synced, &unsynced);
                ahead.store(false, Ordering::Relaxed);
            });
        }
    }

    /// All that was written is on the disk, or nothing of it counts.
    fn sync_written(&self) -> Result<()> {
        let synced = disk::sync_file_system(self.0.lock.as_fd());
        forget_if_failed(&synced, &self.unsynced());
        synced.map_err(|e| Error::io("syncfs", self.path(), e))
    }

    /// Brings all results of this command to the disk.
    pub fn sync(&self) -> Result<()> {
        let unsynced = self.unsynced();
        let mut synced = std::mem::take(&mut *self.single());
        let entries = fs::read_dir(&unsynced).into_iter().flatten();
        let keys: Vec<_> = entries.filter_map(|e| e.ok()).map(|e| e.file_name()).collect();
        if keys.is_empty() {
            return packed::add(self, synced);
        }
        self.sync_written()?;
        let actions = self.path().join("actions");
        for key in keys {
            let digest = key.to_str().and_then(|hex| Digest::from_hex(hex).ok());
            let document = fs::read(unsynced.join(&key)).ok().and_then(|bytes| split_sum(&bytes).map(<[u8]>::to_vec));
            synced.extend(digest.zip(document));
            match fs::rename(unsynced.join(&key), actions.join(&key)) {
                // Another build of the same store may have moved it meanwhile.
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("rename", actions.join(&key), e));
                }
                _ => {}
            }
        }
        File::open(&actions).and_then(|f| f.sync_all()).map_err(|e| Error::io("fsync", &actions, e))?;
        packed::add(self, synced)
    }

    fn forget_earlier_boots(&self) -> Result<()> {
        let folder = self.path().join("unsynced");
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("readdir", &folder, e))?.filter_map(|e| e.ok()) {
            if entry.file_name().to_string_lossy() != self.0.boot {
                file::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Where the log of a request is, or will be.
    pub fn log_path(&self, key: &Digest) -> PathBuf {
        self.path().join("logs").join(key.hex())
    }

    /// Folders whose times tell whether anything that counts was added or removed, by this command or another.
    pub fn told_by(&self) -> Vec<PathBuf> {
        let folders = ["actions", "blobs/sha256", "builders", "changesets", "runs", "unsynced"];
        let folders = folders.into_iter().map(|folder| self.path().join(folder));
        folders.chain(Some(self.unsynced()).filter(|folder| folder.is_dir())).collect()
    }

    // Graphs.

    /// What was kept under this key, if it is whole.
    pub fn kept_graph(&self, key: &Digest) -> Option<Vec<u8>> {
        let mut record = fs::read(self.path().join("graphs").join(key.hex())).ok()?;
        let (sum, graph) = record.split_first_chunk::<32>()?;
        if Digest::of(graph).as_bytes() != sum {
            return None;
        }
        record.drain(..32);
        self.used(key);
        Some(record)
    }

    /// Keeps it, in as many parts as it comes in, and forgets the oldest where there are many.
    pub fn keep_graph(&self, key: &Digest, graph: &[&[u8]]) -> Result<()> {
        let folder = self.path().join("graphs");
        let mut sum = Hashing::new(io::sink());
        for part in graph {
            sum.write_all(part).map_err(|e| Error::io("write", &folder, e))?;
        }
        let (_, sum, _) = sum.finish();
        let parts: Vec<&[u8]> = [&sum.as_bytes()[..]].into_iter().chain(graph.iter().copied()).collect();
        self.replace_by(&folder.join(key.hex()), &parts)?;
        let entries = fs::read_dir(&folder).map_err(|e| Error::io("readdir", &folder, e))?.filter_map(|e| e.ok());
        let mut kept: Vec<_> = entries.filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
        kept.sort();
        for (_, path) in &kept[..kept.len().saturating_sub(GRAPHS)] {
            // Another build may have removed it.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    // Builders.

    fn builder_path(&self, tag: &str) -> Result<PathBuf> {
        let plain = !tag.is_empty()
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
        if !plain {
            return Err(Error::request(format!("not a tag: {tag:?}"))
                .next("use letters, digits and . _ + - for a builder's tag"));
        }
        Ok(self.path().join("builders").join(format!("{tag}.json")))
    }

    /// The builder of a tag.
    pub fn builder(&self, tag: &str) -> Result<Option<Builder>> {
        let path = self.builder_path(tag)?;
        if path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let builder = self.read_builder(&path)?;
        // Its record may have reached the disk before a crash took its files.
        Ok(builder.changesets.iter().all(|c| self.has_changeset(c)).then_some(builder))
    }

    fn read_builder(&self, path: &Path) -> Result<Builder> {
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::failed(format!("{} is damaged: {e}", path.display()))
                .next("make the builder again with tapeout bootstrap")
        })
    }

    /// All builders whose records can be read.
    pub fn builders(&self) -> Result<Vec<Builder>> {
        let folder = self.path().join("builders");
        let records = runs::names(&folder)?.into_iter().filter(|name| name.ends_with(".json"));
        Ok(records.filter_map(|name| self.read_builder(&folder.join(name)).ok()).collect())
    }

    /// Keeps a builder under its tag.
    pub fn keep_builder(&self, builder: &Builder) -> Result<()> {
        let path = self.builder_path(&builder.tag)?;
        self.sync_written()?;
        let text = serde_json::to_vec_pretty(builder)
            .map_err(|e| Error::failed(format!("can't write {}: {e}", path.display())))?;
        self.replace(&path, &text)
    }
}

/// An error of syncfs(2) is told once to each that was there when it happened: another command would hear of none, and
/// take the results in `unsynced/` for good.
fn forget_if_failed(synced: &io::Result<()>, unsynced: &Path) {
    if synced.is_err() {
        let _ = file::remove_tree(unsynced);
    }
}

/// Bytes after their own SHA-256: so that a damaged file is told from a whole one.
fn with_sum(bytes: &[u8]) -> Vec<u8> {
    [Digest::of(bytes).as_bytes().as_slice(), bytes].concat()
}

/// What [`with_sum`] was given; `None`: it is damaged.
fn split_sum(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, content) = bytes.split_at_checked(32)?;
    (Digest::of(content).as_bytes() == sum).then_some(content)
}

/// Is the folder of a changeset the host itself: does it lie where it always was, and nothing in the store?
pub fn is_of_the_host(files: &Path) -> bool {
    fs::read_link(files).is_ok_and(|target| target == Path::new("/"))
}

fn check_format(path: &Path) -> Result<()> {
    let named = path.join("format");
    match fs::read_to_string(&named) {
        Ok(text) if text == FORMAT => Ok(()),
        Ok(text) => Err(Error::request(format!("the store {} has format {:?}", path.display(), text.trim()))
            .why(format!("this tapeout reads format {}", FORMAT.trim()))
            .next("use another TAPEOUT_STORE, or the tapeout that made this one")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Nameless until it is whole: who comes at the same moment, from another container too, makes one of its own.
            let mut new = file::nameless_file(path, 0o600)?;
            new.write_all(FORMAT.as_bytes()).map_err(|e| Error::io("write", &named, e))?;
            if file::name_file(&new, &named)? { Ok(()) } else { check_format(path) }
        }
        Err(e) => Err(Error::io("read", &named, e)),
    }
}

/// A blob that is not one yet. Dropped, it leaves nothing.
pub struct Partial {
    store: Store,
    file: Hashing<Flowing>,
}

impl Partial {
    /// Names it by its digest.
    pub fn finish(self) -> Result<Blob> {
        let (file, digest, size) = self.file.finish();
        name(&self.store, file, Blob { digest, size })
    }

    /// The same, if it is what was expected: else it leaves nothing.
    pub fn finish_as(self, expected: &Digest) -> Result<Blob> {
        let (file, digest, size) = self.file.finish();
        if digest != *expected {
            return Err(Error::failed("the content is not what its digest says")
                .why(format!("expected {expected}, got {digest} ({size} bytes)")));
        }
        name(&self.store, file, Blob { digest, size })
    }
}

fn name(store: &Store, file: Flowing, blob: Blob) -> Result<Blob> {
    let (file, path) = (file.into_inner(), store.blob_path(&blob.digest));
    file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(|e| Error::io("fchmod", &path, e))?;
    file::name_file(&file, &path)?;
    store.used(&blob.digest);
    Ok(blob)
}

/// The same, whose writer hashes. Dropped, it leaves nothing.
pub struct Unhashed {
    store: Store,
    file: Flowing,
}

impl Unhashed {
    /// Names it by the digest of what was written, which the writer knows.
    pub fn finish(self, written: Blob) -> Result<Blob> {
        name(&self.store, self.file, written)
    }
}

impl Write for Unhashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Change, Entry};

    fn store() -> (tempfile::TempDir, Store) {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        (temp, store)
    }

    #[test]
    fn a_blob_is_there_whole_or_not_at_all() {
        let (_temp, store) = store();
        let mut partial = store.begin().unwrap();
        partial.write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(store.path().join("blobs/sha256")).unwrap().count(), 0);
        let blob = store.put(b"whole").unwrap();
        assert!(store.has_blob(&blob.digest));
        assert_eq!(store.put(b"whole").unwrap(), blob);
    }

    #[test]
    fn other_content_than_expected_leaves_nothing() {
        let (_temp, store) = store();
        let mut partial = store.begin().unwrap();
        partial.write_all(b"other").unwrap();
        assert!(partial.finish_as(&Digest::of("expected")).is_err());
        assert!(!store.has_blob(&Digest::of("other")));
    }

    #[test]
    fn a_changeset_is_read_back_and_kept_once() {
        let (_temp, store) = store();
        let mut changeset = Changeset { time: 1, ..Default::default() };
        changeset
            .changes
            .insert(RootPath::new("a").unwrap(), Change { was: None, now: Some(Entry::file(b"x", 0o644)) });
        for _ in 0..2 {
            let scratch = store.scratch().unwrap();
            let files = scratch.path().join("files");
            fs::create_dir(&files).unwrap();
            fs::write(files.join("a"), "x").unwrap();
            store.keep_changeset(Digest::of("name"), changeset.clone(), &files).unwrap();
        }
        let again = Store::open(store.path()).unwrap();
        assert_eq!(*again.changeset(&Digest::of("name")).unwrap().changeset, changeset);
        assert!(again.changeset_files(&Digest::of("name")).unwrap().open_file(&RootPath::new("a").unwrap()).is_ok());
    }

    #[test]
    fn a_result_of_another_boot_counts_only_when_it_was_synced() {
        let (_temp, store) = store();
        let (kept, lost) = (Digest::of("kept"), Digest::of("lost"));
        store.record_action(&kept, b"1").unwrap();
        store.sync().unwrap();
        store.record_action(&lost, b"2").unwrap();
        assert_eq!(store.action(&lost).unwrap(), b"2");
        fs::rename(store.unsynced(), store.path().join("unsynced/another")).unwrap();
        let later = Store::open(store.path()).unwrap();
        assert_eq!(later.action(&kept).unwrap(), b"1");
        assert!(later.action(&lost).is_none());
    }

    #[test]
    fn another_format_is_refused() {
        let (_temp, store) = store();
        fs::write(store.path().join("format"), "99\n").unwrap();
        let error = Store::open(store.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_tag_stays_in_its_folder() {
        let (_temp, store) = store();
        for bad in ["../x", "", "-x", "a/b", ".x", "a\nb"] {
            assert!(store.builder(bad).is_err(), "{bad:?}");
        }
    }
}
