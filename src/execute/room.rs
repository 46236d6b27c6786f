//! Where a rule runs: its snapshot, stacked by an overlay or as a kept tree, whichever this place
//! gives; and what it left, captured.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::builder::host;
use crate::changeset::{self, Captured, KeptTree, Options};
use crate::error::{Error, Result};
use crate::execute::squash;
use crate::report::{Event, Report};
use crate::sandbox::{Above, Isolation, Place, Recorded, Snapshots, Spec, Wish};
use crate::store::{self, Scratch, Store};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Layer, RootPath, Stack};

static WISH: OnceLock<Wish> = OnceLock::new();
static PLACE: Mutex<Option<Place>> = Mutex::new(None);

/// What the command line asks for. It counts when it comes before the first room.
pub fn wish(wish: Wish) {
    let _ = WISH.set(wish);
}

/// What this place gives, found out once a command.
pub fn place(store: &Store) -> Result<Place> {
    let mut place = PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(known) = &*place {
        return Ok(known.clone());
    }
    let scratch = store.scratch()?;
    let found = Place::find(WISH.get().copied().unwrap_or_default(), scratch.path())?;
    Ok(place.insert(found).clone())
}

static TOLD: AtomicBool = AtomicBool::new(false);

/// Says once a command what is weaker or slower here than elsewhere.
pub fn tell(store: &Store, report: &dyn Report) -> Result<()> {
    let place = place(store)?;
    if !TOLD.swap(true, Ordering::Relaxed) {
        place.notes.iter().for_each(|text| report.event(Event::Note { text }));
    }
    Ok(())
}

/// What [`tell`] said, if it was called.
pub fn told() -> Vec<String> {
    let place = PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    place.as_ref().filter(|_| TOLD.load(Ordering::Relaxed)).map_or(vec![], |place| place.notes.clone())
}

/// Is there no boundary around the rules of this command?
pub fn is_open() -> bool {
    WISH.get().is_some_and(|wish| wish.isolation == Some(Isolation::Chroot))
}

/// The room of one sandbox.
pub struct Room {
    scratch: Scratch,
    tree: Option<KeptTree>,
    lower: Vec<PathBuf>,
    places: Vec<Above>,
    isolation: Isolation,
}

impl Room {
    /// Makes the snapshot ready.
    pub fn of(store: &Store, snapshot: &Stack) -> Result<Self> {
        Self::with(store, snapshot, None)
    }

    /// The same, and over it what a failed rule left, a folder in overlay's form.
    pub fn with_left(store: &Store, snapshot: &Stack, left: PathBuf) -> Result<Self> {
        Self::with(store, snapshot, Some(left))
    }

    fn with(store: &Store, snapshot: &Stack, left: Option<PathBuf>) -> Result<Self> {
        let place = place(store)?;
        let scratch = store.scratch()?;
        scratch.folder("upper")?;
        let host = |layer: &Layer| store::is_of_the_host(&store.changeset_files_path(&layer.digest));
        if place.snapshots == Snapshots::Copy && snapshot.0.iter().any(host) {
            return Err(Error::request("the builder host needs an overlay, and this place has none")
                .why("this machine's files are read in place, and copying all of /usr would take longer than it is worth")
                .next("see `tapeout doctor`, or use a builder of its own: debian:SUITE"));
        }
        let (tree, mut lower) = match place.snapshots {
            Snapshots::Copy => (Some(KeptTree::at(store, snapshot)?), vec![]),
            Snapshots::Overlay => (None, squash::folders(store, snapshot)?),
        };
        match (&tree, left) {
            (Some(tree), Some(left)) => tree.lay(&Root::open(&left)?)?,
            (None, Some(left)) => lower.push(left),
            (_, None) => {}
        }
        let places = places_of_the_host(&mut lower, &scratch)?;
        Ok(Self { scratch, tree, lower, places, isolation: place.isolation })
    }

    /// What a sandbox needs to know of it. `/tmp` inside is the folder `tmp` of the scratch folder.
    pub fn spec(&self) -> Result<Spec> {
        let work = self.scratch.folder("work")?;
        Ok(Spec {
            lower: self.lower.clone(),
            places: self.places.clone(),
            upper: self.upper(),
            // The kernel has it open when something is mounted on it, and nobody else asks for it.
            root: work.clone(),
            work,
            tmp: self.scratch.folder("tmp")?,
            tree: self.tree.as_ref().map(|tree| tree.path().to_path_buf()),
            isolation: self.isolation,
            hostname: "tapeout".to_string(),
            ..Spec::default()
        })
    }

    /// Does it stand on this machine's own files?
    pub fn is_on_host(&self) -> bool {
        !self.places.is_empty()
    }

    fn upper(&self) -> PathBuf {
        self.scratch.path().join("upper")
    }

    /// A private folder that goes with the room.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where what the rule changed can be read: all of the snapshot, or only that.
    pub fn changed(&self) -> Result<Root> {
        match &self.tree {
            Some(tree) => Ok(tree.root().clone()),
            None => Root::open(&self.upper()),
        }
    }

    /// Shows a file of the host at a path of the snapshot where nothing can be mounted on it.
    pub fn lend(&self, host: &Path, path: RootPath) -> Result<Lent> {
        let (root, aside) = (self.changed()?, self.scratch.root()?);
        let content = fs::read(host).map_err(|e| Error::io("read", host, e))?;
        let mode = fs::metadata(host).map_err(|e| Error::io("stat", host, e))?.permissions().mode() & 0o777;
        let folder = root.folder(&path.parent().unwrap_or_default())?;
        file::rename_at(folder.as_fd(), path.name(), aside.as_fd(), LENT)?;
        let mut shown = file::create_file_at(folder.as_fd(), path.name(), mode)?;
        shown.write_all(&content).map_err(|e| Error::io("write", path.as_path(), e))?;
        Ok(Lent { root, path, aside, content })
    }

    /// Takes what the rule changed; `keep` names it and gives it to the store.
    pub fn capture<T>(
        self,
        snapshot: &Stack,
        recorded: &[Recorded],
        options: &Options,
        keep: impl FnOnce(Captured, &Path) -> Result<T>,
    ) -> Result<T> {
        let upper = self.upper();
        let root = Root::open(&upper)?;
        let captured = match self.tree {
            Some(tree) => tree.capture(&root, snapshot, recorded, options)?,
            None => changeset::capture(&root, snapshot, recorded, options)?,
        };
        keep(captured, &upper)
    }

    /// Throws away what a failed rule changed, after `left` had a look at it.
    pub fn give_up(self, snapshot: &Stack, recorded: &[Recorded], left: &dyn Fn(&Path)) -> Result<()> {
        let upper = self.upper();
        if let Some(tree) = self.tree {
            // What was left is told as an upper folder, whatever made it; what can't be told is left out.
            let root = Root::open(&upper)?;
            drop(tree.capture(&root, snapshot, recorded, &Options::default()));
        }
        left(&upper);
        Ok(())
    }
}

/// The name of what lies aside meanwhile.
const LENT: &[u8] = b"lent";

/// A file of the host that stands for one of the snapshot while a rule runs.
pub struct Lent {
    root: Root,
    path: RootPath,
    aside: Root,
    content: Vec<u8>,
}

impl Lent {
    /// The snapshot's own is there again, unless the rule put something else there.
    pub fn give_back(self) -> Result<()> {
        let mut found = vec![];
        let read = self.root.open_file(&self.path).map(|file| file.take(self.content.len() as u64 + 1));
        if read.is_ok_and(|mut file| file.read_to_end(&mut found).is_ok()) && found == self.content {
            let folder = self.root.folder(&self.path.parent().unwrap_or_default())?;
            file::rename_at(self.aside.as_fd(), LENT, folder.as_fd(), self.path.name())?;
        }
        Ok(())
    }
}

/// Where the host itself is among the folders of a snapshot, it is taken out: each of its top folders becomes the
/// lowest of a stack of its own.
fn places_of_the_host(lower: &mut Vec<PathBuf>, scratch: &Scratch) -> Result<Vec<Above>> {
    let before = lower.len();
    lower.retain(|folder| !store::is_of_the_host(folder));
    if lower.len() == before {
        return Ok(vec![]);
    }
    let mut places = vec![];
    for top in host::tops() {
        let upper = scratch.path().join("upper").join(top);
        fs::create_dir(&upper).map_err(|e| Error::io("mkdir", &upper, e))?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("chmod", &upper, e))?;
        let is_folder = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|stat| stat.is_dir());
        let above = lower.iter().map(|folder| folder.join(top)).filter(is_folder);
        places.push(Above {
            inside: format!("/{top}"),
            lower: std::iter::once(Path::new("/").join(top)).chain(above).collect(),
            work: scratch.folder(&format!("work-{top}"))?,
            upper,
        });
    }
    Ok(places)
}
