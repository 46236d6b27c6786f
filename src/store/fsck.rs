//! Every kept thing against the digest that it was kept under.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;

use super::runs::names;
use super::{Store, split_sum};
use crate::archive::tar_writer;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::report::{Event, Report};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Changeset, Entry, Node, RootPath};

/// Something that is not what was kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// `blob`, `changeset`, `result` or `builder`.
    pub kind: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Vec<String>,
    /// Rules and builders that are known to have made it or to stand on it.
    pub of: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// How many things were looked at.
    pub checked: u64,
    /// What is damaged.
    pub damaged: Vec<Damage>,
}

/// So many lines are said of one changeset.
const MOST_LINES: usize = 10;

/// Looks at everything; removes nothing.
pub fn check(store: &Store, report: &dyn Report) -> Result<Checked> {
    let mut checked = Checked::default();
    type Look<'a> = &'a dyn Fn(&str, &Path) -> Result<Vec<String>>;
    let look = |checked: &mut Checked, kind: &'static str, folder: PathBuf, one: Look| {
        let what = folder.display().to_string();
        report.event(Event::Started { what: &what, total: None });
        for name in names(&folder)? {
            let path = folder.join(&name);
            checked.checked += 1;
            let why = one(&name, &path)?;
            if !why.is_empty() {
                checked.damaged.push(Damage { kind, path, why, of: vec![] });
            }
        }
        report.event(Event::Ended { what: &what });
        Ok::<_, Error>(())
    };
    let all = &mut checked;
    look(all, "blob", store.path().join("blobs/sha256"), &|name, path| blob(name, path))?;
    look(all, "changeset", store.path().join("changesets"), &|name, path| changeset(store, name, path))?;
    let mut folders = vec![store.path().join("actions")];
    let unsynced = store.path().join("unsynced");
    folders.extend(names(&unsynced)?.iter().map(|name| unsynced.join(name)));
    for folder in folders {
        look(all, "result", folder, &|name, path| Ok(result(name, path)))?;
    }
    // A builder is no better than what it is made of, which a repair takes away.
    let damaged: Vec<PathBuf> = all.damaged.iter().map(|damage| damage.path.clone()).collect();
    look(all, "builder", store.path().join("builders"), &|name, path| builder(store, name, path, &damaged))?;
    if !checked.damaged.is_empty() {
        name_owners(store, &mut checked.damaged)?;
    }
    Ok(checked)
}

/// Removes what is damaged: whatever needs it is made or fetched again. Nobody else may have the store.
pub fn repair(store: &Store, damaged: &[Damage]) -> Result<()> {
    let scratch = store.scratch()?;
    for (i, damage) in damaged.iter().enumerate() {
        match fs::rename(&damage.path, scratch.path().join(i.to_string())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("rename", &damage.path, e)),
            _ => {}
        }
    }
    Ok(())
}

fn said(why: &str) -> Vec<String> {
    vec![why.to_string()]
}

fn blob(name: &str, path: &Path) -> Result<Vec<String>> {
    let Ok(expected) = Digest::from_hex(name) else { return Ok(said("its name is no digest")) };
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok(match Digest::of_reader(file) {
        Ok((digest, _)) if digest == expected => vec![],
        Ok((digest, size)) => vec![format!("its content is {digest} ({size} bytes)")],
        // EIO: the disk itself can't give it back.
        Err(e) => vec![Error::io("read", path, e).what().to_string()],
    })
}

fn result(name: &str, path: &Path) -> Vec<String> {
    match fs::read(path) {
        _ if Digest::from_hex(name).is_err() => said("its name is no digest"),
        Ok(bytes) if split_sum(&bytes).is_some() => vec![],
        Ok(_) => said("its content is not what was written"),
        Err(e) => vec![Error::io("read", path, e).what().to_string()],
    }
}

fn builder(store: &Store, name: &str, path: &Path, damaged: &[PathBuf]) -> Result<Vec<String>> {
    let Some(tag) = name.strip_suffix(".json") else { return Ok(vec![]) };
    match store.read_builder(path) {
        Err(e) => Ok(vec![e.what().to_string()]),
        Ok(builder) if builder.tag != tag => Ok(vec![format!("it is the record of {:?}", builder.tag)]),
        Ok(builder) => {
            let why = |digest: &Digest| match store.has_changeset(digest) {
                false => Some(format!("its changeset {} is missing", digest.short())),
                true if damaged.contains(&store.changeset_path(digest)) => {
                    Some(format!("its changeset {} is damaged", digest.short()))
                }
                true => None,
            };
            Ok(builder.changesets.iter().filter_map(why).collect())
        }
    }
}

fn changeset(store: &Store, name: &str, path: &Path) -> Result<Vec<String>> {
    let Ok(digest) = Digest::from_hex(name) else { return Ok(said("its name is no digest")) };
    let changeset = match store.read_tree(&digest) {
        Ok(changeset) => changeset,
        Err(e) => return Ok(std::iter::once(e.what().to_string()).chain(e.reasons().iter().cloned()).collect()),
    };
    // Its files are the machine's own, and change as they like.
    if super::is_of_the_host(&path.join("files")) {
        return Ok(vec![]);
    }
    let files = match Root::open(&path.join("files")) {
        Ok(files) => files,
        Err(e) => return Ok(said(e.what())),
    };
    let mut wrong: Vec<String> = vec![];
    for (path, change) in &changeset.changes {
        if let Some(entry) = &change.now
            && let Some(why) = not_as_kept(&files, path, entry, changeset.time)?
        {
            wrong.push(format!("{path}: {why}"));
        }
    }
    wrong.extend(strangers(&files, &changeset)?);
    // Contents, each read once: against the digest in the list, and the whole against its name.
    let mut contents = vec![];
    let whole = tar_writer::canonical(&changeset, Hashing::new(io::sink()), &mut |path, entry, put| {
        let Node::File { size, digest: expected, .. } = &entry.node else { return Ok(()) };
        match read(&files, path, put) {
            Ok((digest, _)) if digest == *expected => Ok(()),
            Ok((_, read)) => {
                contents.push(format!("{path}: its content is not what was kept ({read} bytes of {size})"));
                Ok(())
            }
            Err(e) => {
                contents.push(format!("{path}: {}", e.what()));
                Ok(())
            }
        }
    });
    wrong.extend(contents);
    match whole.map(|hashing| hashing.finish().1) {
        // A content of another length ends the stream early.
        _ if !wrong.is_empty() => {}
        Ok(name) if name == digest => {}
        Ok(_) => wrong.push("its list of files is not what its name says".to_string()),
        Err(e) => wrong.push(e.what().to_string()),
    }
    let more = wrong.len().saturating_sub(MOST_LINES);
    wrong.truncate(MOST_LINES);
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    Ok(wrong)
}

fn read(files: &Root, path: &RootPath, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<(Digest, u64)> {
    let mut file = files.open_file(path)?;
    let mut hashing = Hashing::new(io::sink());
    let mut buffer = vec![0; 256 << 10];
    // What the stream takes no more of is still counted: it says what is wrong.
    let mut taken = true;
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                io::Write::write_all(&mut hashing, &buffer[..n]).map_err(|e| Error::io("hash", path.as_path(), e))?;
                taken = taken && put(&buffer[..n]).is_ok();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path.as_path(), e)),
        }
    }
    let (_, digest, size) = hashing.finish();
    Ok((digest, size))
}

/// Is a file of the kept form of the kind, mode, size and time that the list says?
fn not_as_kept(files: &Root, path: &RootPath, entry: &Entry, time: i64) -> Result<Option<&'static str>> {
    let Some(stat) = files.stat(path)? else { return Ok(Some("it is missing")) };
    let kind = match &entry.node {
        // The kept form of a device is an empty file.
        Node::File { .. } | Node::Device { .. } => SFlag::S_IFREG,
        Node::Folder => SFlag::S_IFDIR,
        Node::Link { .. } => SFlag::S_IFLNK,
        Node::Fifo => SFlag::S_IFIFO,
        Node::Socket => SFlag::S_IFSOCK,
    };
    if file::kind(&stat) != kind {
        return Ok(Some("it is of another kind"));
    }
    if let Node::Link { target } = &entry.node {
        let parent = files.folder(&path.parent().unwrap_or_default())?;
        let same = file::read_link_at(parent.as_fd(), path.name())? == *target;
        return Ok((!same).then_some("it leads elsewhere"));
    }
    if stat.st_mode & 0o7777 != entry.mode {
        return Ok(Some("its mode is another one"));
    }
    Ok((stat.st_mtime != time).then_some("its time is another one"))
}

/// What lies there and is in no list; whiteouts stand for what was removed.
fn strangers(files: &Root, changeset: &Changeset) -> Result<Vec<String>> {
    let mut found = vec![];
    let listed: BTreeSet<&[u8]> = changeset.changes.keys().map(RootPath::as_bytes).collect();
    let top = files.path();
    for entry in walkdir::WalkDir::new(top).min_depth(1).follow_links(false).sort_by_file_name() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                found.push(format!("a folder can't be read: {e}"));
                continue;
            }
        };
        let below = entry.path().strip_prefix(top).unwrap_or(entry.path());
        let name = std::os::unix::ffi::OsStrExt::as_bytes(below.as_os_str());
        if !listed.contains(name) {
            found.push(format!("/{}: nobody put it there", below.display()));
        }
    }
    Ok(found)
}

/// Which rules and builders have what is damaged, as far as the last runs say.
fn name_owners(store: &Store, damaged: &mut [Damage]) -> Result<()> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for run in store.all_runs()? {
        if let Some(made) = run.made {
            owners.entry(made.hex()).or_default().insert(run.whose.label.to_string());
        }
        owners.entry(run.key.hex()).or_default().insert(run.whose.label.to_string());
        // An image's layers are named in its result.
        if let Some(document) = store.action(&run.key) {
            let text = String::from_utf8_lossy(&document).into_owned();
            for damage in damaged.iter().filter(|damage| damage.kind == "blob") {
                let name = damage.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if text.contains(&name) {
                    owners.entry(name).or_default().insert(run.whose.label.to_string());
                }
            }
        }
    }
    for builder in store.builders()? {
        for digest in &builder.changesets {
            owners.entry(digest.hex()).or_default().insert(format!("builder {}", builder.tag));
        }
    }
    for damage in damaged {
        let name = damage.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        damage.of = owners.get(&name).into_iter().flatten().cloned().collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset;
    use crate::report::Silent;
    use crate::tree::Change;

    fn kept(store: &Store) -> Digest {
        let mut changeset = Changeset { time: 7, ..Default::default() };
        let mut add = |path: &str, entry| {
            changeset.changes.insert(RootPath::new(path).unwrap(), Change { was: None, now: Some(entry) })
        };
        add("a", Entry::folder(0o755));
        add("a/b", Entry::file(b"content", 0o644));
        add("a/c", Entry::link("b"));
        let scratch = store.scratch().unwrap();
        let files = scratch.folder("files").unwrap();
        fs::create_dir(files.join("a")).unwrap();
        fs::write(files.join("a/b"), "content").unwrap();
        std::os::unix::fs::symlink("b", files.join("a/c")).unwrap();
        for (path, mode) in [("a", 0o755), ("a/b", 0o644)] {
            fs::set_permissions(files.join(path), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        let root = Root::open(&files).unwrap();
        changeset::set_times(&root, &changeset).unwrap();
        let digest = changeset::digest_of(&changeset, |path| root.open_file(path)).unwrap();
        store.keep_changeset(digest, changeset, &files).unwrap().digest
    }

    #[test]
    fn whatever_is_changed_is_found_named_and_removed() {
        type Harm = fn(&Path);
        let harms: [(&str, Harm); 8] = [
            ("/a/b: its content is not what was kept", |c| {
                let path = c.join("files/a/b");
                fs::write(&path, "kontent").unwrap();
                let folder = File::open(c.join("files/a")).unwrap();
                file::set_mtime_at(folder.as_fd(), b"b", 7).unwrap();
            }),
            ("/a/b: it is missing", |c| fs::remove_file(c.join("files/a/b")).unwrap()),
            ("/a/b: its mode is another one", |c| {
                fs::set_permissions(c.join("files/a/b"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap()
            }),
            ("/a/b: its time is another one", |c| {
                File::open(c.join("files/a/b")).unwrap().set_modified(std::time::SystemTime::now()).unwrap()
            }),
            ("/a/c: it leads elsewhere", |c| {
                fs::remove_file(c.join("files/a/c")).unwrap();
                std::os::unix::fs::symlink("d", c.join("files/a/c")).unwrap();
            }),
            ("/a/c: it is of another kind", |c| {
                fs::remove_file(c.join("files/a/c")).unwrap();
                fs::write(c.join("files/a/c"), "").unwrap();
            }),
            ("/a/new: nobody put it there", |c| fs::write(c.join("files/a/new"), "").unwrap()),
            ("its content is not what was written", |c| {
                let mut bytes = fs::read(c.join("tree")).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(c.join("tree"), bytes).unwrap();
            }),
        ];
        for (expected, harm) in harms {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(&temp.path().join("store")).unwrap();
            let digest = kept(&store);
            assert_eq!(check(&store, &Silent).unwrap().damaged, []);
            harm(&store.path().join("changesets").join(digest.hex()));
            let found = check(&store, &Silent).unwrap();
            let why = found.damaged[0].why.join("\n");
            assert!(why.contains(expected), "{expected:?} in\n{why}");
            repair(&store, &found.damaged).unwrap();
            assert!(!store.has_changeset(&digest));
            assert_eq!(check(&store, &Silent).unwrap().damaged, []);
        }
    }

    #[test]
    fn blobs_and_results_are_checked() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let blob = store.put(b"blob").unwrap().digest;
        store.record_action(&Digest::of("key"), b"result").unwrap();
        store.sync().unwrap();
        assert_eq!(check(&store, &Silent).unwrap(), Checked { checked: 2, damaged: vec![] });
        for path in [store.blob_path(&blob), store.path().join("actions").join(Digest::of("key").hex())] {
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        // A result that is damaged is none.
        assert!(store.action(&Digest::of("key")).is_none());
        let kinds: Vec<_> = check(&store, &Silent).unwrap().damaged.iter().map(|d| d.kind).collect();
        assert_eq!(kinds, ["blob", "result"]);
    }
}
