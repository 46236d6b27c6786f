//! What an analysis looked at on disk: files, listings of folders, and what wasn't there. A later one
//! asks [`Seen::check`] whether it would see the same.
//!
//! What has the size, the times and the inode that it had is not read again, as in git's index; and as there, a
//! thing that changed just before it was looked at may change once more without a trace in its times, so it is
//! read again until it has come to rest.
//!
//! Each look is noted where it happens, for the thread that said [`begin`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hashing};
use crate::sys::file;

/// What changed less than this before a look is not at rest: file systems whose times have seconds, and clocks of
/// file servers, are allowed for.
const REST: Duration = Duration::from_secs(2);

/// All looks of one analysis, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen(BTreeMap<String, Look>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Look {
    /// Nothing is there.
    Absent,
    /// Something is there.
    There,
    /// A folder, and no link to one.
    Folder,
    /// A regular file that was read.
    File(Stamp, Digest),
    /// A folder whose names, and their kinds, were read.
    Listing(Stamp, Digest),
}

/// What tells that a file or a folder didn't change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    id: (u64, u64),
    mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    at_rest: bool,
}

/// When a look began.
#[derive(Debug, Clone, Copy)]
pub struct Moment(Duration);

impl Moment {
    /// Now: taken before anything is read.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl Stamp {
    fn of(stat: &Metadata, began: Moment) -> Self {
        let changed = Duration::new(
            u64::try_from(stat.ctime()).unwrap_or(u64::MAX >> 1),
            u32::try_from(stat.ctime_nsec()).unwrap_or_default(),
        );
        Self {
            id: (stat.dev(), stat.ino()),
            mode: stat.mode(),
            size: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
            at_rest: changed.checked_add(REST).is_some_and(|rested| rested < began.0),
        }
    }

    /// Was it at rest, and is it as it was?
    fn holds(&self, stat: &Metadata, now: Moment) -> bool {
        self.at_rest && *self == Self::of(stat, now)
    }
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// All is as it was.
    Same,
    /// All that was read is as it was, but not all times are: these looks are worth keeping instead.
    Touched,
    /// Something else would be seen.
    Changed,
}

impl Seen {
    /// Would the same be seen now?
    pub fn check(&mut self) -> Check {
        let mut check = Check::Same;
        for (path, look) in &mut self.0 {
            let Some(now) = look.again(Path::new(path)) else { return Check::Changed };
            if *look != now {
                *look = now;
                check = Check::Touched;
            }
        }
        check
    }

    /// The files that were edited, where nothing else has changed: these looks are forgotten, all others are as good
    /// as new. `None`: something came, went or became another thing.
    pub fn edited(&mut self) -> Option<Vec<String>> {
        let mut edited = vec![];
        for (path, look) in &mut self.0 {
            match look.again(Path::new(path)) {
                Some(now) => *look = now,
                None if matches!(look, Look::File(..))
                    && Path::new(path).symlink_metadata().is_ok_and(|stat| stat.is_file()) =>
                {
                    edited.push(path.clone());
                }
                None => return None,
            }
        }
        edited.iter().for_each(|path| _ = self.0.remove(path));
        Some(edited)
    }

    /// With later looks; `None`: they don't agree.
    pub fn with(mut self, later: Self) -> Option<Self> {
        for (path, look) in later.0 {
            match self.0.get(&path) {
                Some(known) if known.says_more_than(&look) || known.agrees_with(&look) => {}
                Some(known) if !look.says_more_than(known) => return None,
                _ => _ = self.0.insert(path, look),
            }
        }
        Some(self)
    }
}

/// Things that nobody looks into again: each is as it was while its [`Stamp`] holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps(BTreeMap<PathBuf, Stamp>);

impl Stamps {
    /// Takes a file, a link, or a folder and all in it, before anybody reads it. False: it isn't there, or not at
    /// rest, so that its times wouldn't tell.
    pub fn take(&mut self, path: &Path) -> bool {
        let began = Moment::now();
        walkdir::WalkDir::new(path).follow_links(false).follow_root_links(false).into_iter().all(|entry| {
            let Ok(entry) = entry else { return false };
            let Ok(stat) = entry.metadata() else { return false };
            self.add(entry.into_path(), &stat, began)
        })
    }

    /// The same of a folder alone: which names it has.
    pub fn take_folder(&mut self, path: &Path) -> bool {
        let began = Moment::now();
        path.symlink_metadata().is_ok_and(|stat| self.add(path.to_path_buf(), &stat, began))
    }

    fn add(&mut self, path: PathBuf, stat: &Metadata, began: Moment) -> bool {
        let stamp = Stamp::of(stat, began);
        let at_rest = stamp.at_rest;
        // Of two looks the earlier one counts.
        self.0.entry(path).or_insert(stamp);
        at_rest
    }

    /// Is all of it as it was?
    pub fn hold(&self) -> bool {
        let now = Moment::now();
        self.0.iter().all(|(path, stamp)| path.symlink_metadata().is_ok_and(|stat| stamp.holds(&stat, now)))
    }
}

impl Look {
    /// The same look now; `None`: it would see something else.
    fn again(&self, path: &Path) -> Option<Self> {
        let now = Moment::now();
        match self {
            Self::Absent => path.symlink_metadata().is_err().then_some(Self::Absent),
            Self::There => path.symlink_metadata().is_ok().then_some(Self::There),
            Self::Folder => path.symlink_metadata().is_ok_and(|stat| stat.is_dir()).then_some(Self::Folder),
            Self::File(stamp, digest) => {
                let stat = path.symlink_metadata().ok()?;
                if stamp.holds(&stat, now) {
                    return Some(self.clone());
                }
                if !stat.is_file() || stat.size() > stamp.size {
                    // What grew is not what it was, and may be without end.
                    return None;
                }
                let file = file::open_regular(path).ok()?;
                let stat = file.metadata().ok()?;
                let (found, _) = Digest::of_reader(file.take(stamp.size + 1)).ok()?;
                (found == *digest).then(|| Self::File(Stamp::of(&stat, now), found))
            }
            Self::Listing(stamp, digest) => {
                let stat = path.metadata().ok()?;
                if stamp.holds(&stat, now) {
                    return Some(self.clone());
                }
                let found = listing(path)?;
                (found == *digest).then(|| Self::Listing(Stamp::of(&stat, now), found))
            }
        }
    }

    /// Did both see the same?
    fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(_, one), Self::File(_, other)) | (Self::Listing(_, one), Self::Listing(_, other)) => {
                one == other
            }
            _ => self == other,
        }
    }

    /// A look that says more than another one of the same thing.
    fn says_more_than(&self, other: &Self) -> bool {
        match other {
            Self::There => !matches!(self, Self::Absent | Self::There),
            Self::Folder => matches!(self, Self::Listing(..)),
            _ => false,
        }
    }
}

/// The digest of a folder's names and kinds.
fn listing(folder: &Path) -> Option<Digest> {
    let mut entries = vec![];
    for entry in std::fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        entries.push((entry.file_name(), entry.file_type().ok()?));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut listing = Hashing::new(std::io::sink());
    entries.iter().for_each(|(name, kind)| add(&mut listing, name.as_bytes(), *kind));
    Some(listing.finish().1)
}

fn add(listing: &mut Hashing<std::io::Sink>, name: &[u8], kind: std::fs::FileType) {
    let kind = match kind {
        kind if kind.is_dir() => b'd',
        kind if kind.is_file() => b'f',
        kind if kind.is_symlink() => b'l',
        _ => b'o',
    };
    // A sink takes everything.
    let _ = std::io::Write::write_all(listing, &[name, &[0, kind]].concat());
}

/// The looks of one thread; `None` inside: they can't be told.
type Notes = Option<Option<BTreeMap<String, Look>>>;

thread_local! {
    static NOTES: RefCell<Notes> = const { RefCell::new(None) };
}

/// From here on, this thread notes what it looks at.
pub fn begin() {
    NOTES.with_borrow_mut(|notes| *notes = Some(Some(BTreeMap::new())));
}

/// What was noted since [`begin`]; `None`: it can't be told later by its paths and times.
pub fn end() -> Option<Seen> {
    NOTES.with_borrow_mut(Option::take).flatten().map(Seen)
}

/// What was looked at can't be told.
pub fn untold() {
    NOTES.with_borrow_mut(|notes| _ = notes.as_mut().map(Option::take));
}

fn note(path: &Path, look: impl FnOnce() -> Look) {
    NOTES.with_borrow_mut(|notes| {
        let Some(told) = notes else { return };
        let Some(looks) = told else { return };
        let Some(path) = path.to_str() else { return *told = None };
        let look = look();
        match looks.get(path) {
            None => _ = looks.insert(path.to_string(), look),
            Some(known) if look.says_more_than(known) => _ = looks.insert(path.to_string(), look),
            Some(known) if *known == look || known.says_more_than(&look) => {}
            // It changed between two looks.
            Some(_) => *told = None,
        }
    });
}

/// Is something there? Links are not followed.
pub fn is_there(path: &Path) -> bool {
    let is_there = path.symlink_metadata().is_ok();
    note(path, || if is_there { Look::There } else { Look::Absent });
    is_there
}

/// The folders between `top` and a file below it are no links.
pub fn folders_above(path: &Path, top: &Path) {
    for folder in path.ancestors().skip(1).take_while(|folder| *folder != top && folder.starts_with(top)) {
        note(folder, || Look::Folder);
    }
}

/// A regular file was opened, and this is what was read of it.
pub fn file(path: &Path, file: &File, began: Moment, bytes: &[u8]) {
    match file.metadata() {
        Ok(stat) => note(path, || Look::File(Stamp::of(&stat, began), Digest::of(bytes))),
        Err(_) => untold(),
    }
}

/// Folders that a walk lists. It tells each entry that it meets, sorted by name in each folder, those too that it
/// doesn't enter.
pub struct Walk {
    began: Moment,
    folders: BTreeMap<PathBuf, (Option<Metadata>, Hashing<std::io::Sink>)>,
}

impl Walk {
    /// Before the walk begins.
    pub fn begin(top: &Path) -> Self {
        let mut walk = Self { began: Moment::now(), folders: BTreeMap::new() };
        walk.enters(top);
        walk
    }

    /// It enters this folder.
    pub fn enters(&mut self, folder: &Path) {
        self.folders.insert(folder.to_path_buf(), (folder.metadata().ok(), Hashing::new(std::io::sink())));
    }

    /// It met this entry.
    pub fn meets(&mut self, entry: &walkdir::DirEntry) {
        if let Some((_, listing)) = entry.path().parent().and_then(|folder| self.folders.get_mut(folder)) {
            add(listing, entry.file_name().as_bytes(), entry.file_type());
        }
    }

    /// The walk is done.
    pub fn end(self) {
        for (folder, (stat, listing)) in self.folders {
            match stat {
                Some(stat) => note(&folder, || Look::Listing(Stamp::of(&stat, self.began), listing.finish().1)),
                None => untold(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_just_before_a_look_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "x").unwrap();
        let stat = path.metadata().unwrap();
        let changed = Duration::new(stat.ctime().try_into().unwrap(), stat.ctime_nsec().try_into().unwrap());
        for (later, holds) in [(Duration::ZERO, false), (REST, false), (REST + Duration::from_nanos(1), true)] {
            let began = Moment(changed + later);
            assert_eq!(Stamp::of(&stat, began).holds(&stat, began), holds, "{later:?}");
        }
        // Its times say that nothing happened, and they can't be relied upon yet.
        let mut seen = Seen(BTreeMap::from([(
            path.display().to_string(),
            Look::File(Stamp::of(&stat, Moment(changed)), Digest::of("y")),
        )]));
        assert_eq!(seen.check(), Check::Changed);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "x").unwrap();
        begin();
        file(&path, &File::open(&path).unwrap(), Moment::now(), b"x");
        let mut seen = end().unwrap();
        assert_ne!(seen.check(), Check::Changed);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        assert_eq!(seen.check(), Check::Changed);
    }

    #[test]
    fn two_looks_that_differ_can_not_be_told() {
        let folder = tempfile::tempdir().unwrap();
        begin();
        assert!(!is_there(&folder.path().join("a")));
        std::fs::write(folder.path().join("a"), "").unwrap();
        assert!(is_there(&folder.path().join("a")));
        assert!(end().is_none());
    }
}
