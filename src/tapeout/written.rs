//! Files that the builder never had: records of `files = [...]`, in a tapeout rule and in a pod.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::build_file::spec::{FileKind, FileRecord};
use crate::error::{Error, Result};
use crate::tree::{Content, Entry, Picked, RootPath, Selection};

use super::why::Why;

/// What records may hold in sum: it passes through memory. More is work for a rule.
const MOST: u64 = 256 << 20;

/// Looks up an owner and a group, names or numbers.
pub type Owner<'a> = &'a dyn Fn(&str, &str) -> Result<(u32, u32)>;

/// What records write. `folder` is where their sources are: the package's folder; `None`: the
/// package is built in.
pub fn write(records: &[FileRecord], folder: Option<&Path>, owner: Owner<'_>) -> Result<Selection> {
    let mut written = Selection::new();
    let mut room = MOST;
    for record in records {
        one(record, folder, owner, &mut room, &mut written)
            .map_err(|e| e.context(format!("file {:?}", record.path)))?;
    }
    Ok(written)
}

fn one(
    record: &FileRecord,
    folder: Option<&Path>,
    owner: Owner<'_>,
    room: &mut u64,
    written: &mut Selection,
) -> Result<()> {
    let path = RootPath::new(&record.path).map_err(|e| e.with_kind(crate::error::Kind::Request))?;
    // What a folder holds may lie right below the root, which nobody writes.
    let lays_out = record.source.is_some() && record.content.is_none() && record.target.is_none();
    if path.is_root() && !lays_out {
        return Err(Error::request("a file can't be the root itself").next("write a path below it"));
    }
    if let Some(mode) = record.mode.filter(|mode| mode & !0o7777 != 0) {
        return Err(Error::request(format!("not a mode: 0o{mode:o}")).next("write permission bits as 0o644"));
    }
    let (uid, gid) = owner(&record.owner, &record.group)?;
    let mut put = |path: RootPath, entry: Entry, content: Content| -> Result<()> {
        let entry = Entry { uid, gid, ..entry };
        let picked = Picked { entry: Some(entry), content, why: Why::Written.shared() };
        match written.insert(path.clone(), picked) {
            Some(before) if before.entry.as_ref().is_none_or(|e| !e.is_folder()) => {
                Err(Error::request(format!("{path} is written twice")).next("remove one of the two records"))
            }
            _ => Ok(()),
        }
    };
    let mut file = |bytes: Vec<u8>, mode: u32| -> Result<(Entry, Content)> {
        *room = room.checked_sub(bytes.len() as u64).ok_or_else(too_much)?;
        Ok((Entry::file(&bytes, mode), Content::Inline(bytes)))
    };
    match (record.kind, &record.content, &record.source, &record.target) {
        (FileKind::File, Some(content), None, None) => {
            let (entry, content) = file(content.clone().into_bytes(), record.mode.unwrap_or(0o644))?;
            put(path, entry, content)
        }
        (FileKind::File | FileKind::Folder, None, Some(source), None) => {
            for (below, found) in sources(source, folder)? {
                let at = path.join(below.as_bytes())?;
                match found {
                    Found::Folder if at.is_root() => {}
                    _ if at.is_root() => {
                        return Err(Error::request(format!(
                            "a file can't be the root itself, and {source:?} is no folder"
                        ))
                        .next("write a path below it"));
                    }
                    Found::Folder => put(
                        at,
                        Entry::folder(if record.kind == FileKind::Folder {
                            record.mode.unwrap_or(0o755)
                        } else {
                            0o755
                        }),
                        Content::None,
                    )?,
                    Found::Link(target) => put(at, Entry::link(target), Content::None)?,
                    Found::File { host, executable } => {
                        let alone = if record.kind == FileKind::File { record.mode } else { None };
                        let (entry, content) =
                            file(read(&host)?, alone.unwrap_or(if executable { 0o755 } else { 0o644 }))?;
                        put(at, entry, content)?;
                    }
                }
            }
            Ok(())
        }
        (FileKind::Folder, None, None, None) => put(path, Entry::folder(record.mode.unwrap_or(0o755)), Content::None),
        (FileKind::Link, None, None, Some(target))
            if target.is_empty() || target.len() > 4095 || target.contains('\0') =>
        {
            Err(Error::request("a link has a target of 1 to 4095 bytes without NUL"))
        }
        (FileKind::Link, None, None, Some(target)) => put(path, Entry::link(target.as_bytes()), Content::None),
        _ => Err(Error::request("a file record says not exactly what it holds")
            .next("give a file content or source, a link its target, a folder nothing or a source")),
    }
}

fn too_much() -> Error {
    Error::request(format!("the file records of one rule hold more than {} MiB", MOST >> 20))
        .next("let a rule copy such files, and pick them with include")
}

/// What a source holds.
enum Found {
    Folder,
    Link(Vec<u8>),
    File { host: std::path::PathBuf, executable: bool },
}

/// What lies at and below a source, each by its path below it; sorted as a walk.
fn sources(source: &str, folder: Option<&Path>) -> Result<Vec<(RootPath, Found)>> {
    let folder = folder.ok_or_else(|| {
        Error::request(format!("source {source:?} can't be read: its package is built in and has no folder"))
    })?;
    let relative = RootPath::new(source)?;
    if source.starts_with('/') {
        return Err(
            Error::request(format!("source {source:?} is absolute")).next("write it from the folder of the build file")
        );
    }
    // A link on the way could lead out of the workspace.
    for above in relative.ancestors().filter(|p| !p.is_root()) {
        let at = above.below(folder);
        let data = fs::symlink_metadata(&at).map_err(|e| missing(source, &at, e))?;
        if !data.is_dir() {
            return Err(Error::request(format!("source {source:?}: {} is not a folder", at.display())));
        }
    }
    let mut all = vec![];
    let top = relative.below(folder);
    if relative.is_root() || fs::symlink_metadata(&top).map_err(|e| missing(source, &top, e))?.is_dir() {
        for entry in walkdir::WalkDir::new(&top).follow_links(false).max_depth(100).sort_by_file_name() {
            let entry = entry.map_err(|e| Error::request(format!("source {source:?} can't be read: {e}")))?;
            let below = entry.path().strip_prefix(&top).map(|p| p.as_os_str().as_bytes()).unwrap_or_default();
            all.push((RootPath::new(below)?, found(entry.path())?));
        }
    } else {
        all.push((RootPath::root(), found(&top)?));
    }
    Ok(all)
}

fn missing(source: &str, at: &Path, e: std::io::Error) -> Error {
    Error::io("lstat", at, e).context(format!("source {source:?}")).with_kind(crate::error::Kind::Request)
}

/// In the normal form of sources: modes 0644 and 0755, links as they are.
fn found(host: &Path) -> Result<Found> {
    use std::os::unix::fs::PermissionsExt;
    let data = fs::symlink_metadata(host).map_err(|e| Error::io("lstat", host, e))?;
    let kind = data.file_type();
    match () {
        () if kind.is_dir() => Ok(Found::Folder),
        () if kind.is_symlink() => {
            let target = fs::read_link(host).map_err(|e| Error::io("readlink", host, e))?;
            Ok(Found::Link(target.as_os_str().as_bytes().to_vec()))
        }
        () if kind.is_file() => {
            Ok(Found::File { host: host.to_path_buf(), executable: data.permissions().mode() & 0o100 != 0 })
        }
        () => Err(Error::request(format!("{} is neither a file nor a folder nor a link", host.display()))
            .next("take it out of the source")),
    }
}

fn read(host: &Path) -> Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(host);
    let file = open.map_err(|e| Error::io("open", host, e))?;
    let data = file.metadata().map_err(|e| Error::io("fstat", host, e))?;
    if !data.is_file() {
        return Err(Error::request(format!("{} is not a regular file", host.display())));
    }
    if data.len() > MOST {
        return Err(too_much());
    }
    let mut bytes = Vec::with_capacity(data.len() as usize);
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", host, e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::path;
    use crate::tree::Node;

    fn record(path: &str) -> FileRecord {
        FileRecord {
            path: path.into(),
            content: None,
            source: None,
            target: None,
            mode: None,
            owner: "1".into(),
            group: "2".into(),
            kind: FileKind::File,
        }
    }

    fn numbers(owner: &str, group: &str) -> Result<(u32, u32)> {
        Ok((owner.parse().unwrap(), group.parse().unwrap()))
    }

    #[test]
    fn records_become_files_folders_and_links() {
        let records = [
            FileRecord { content: Some("x".into()), mode: Some(0o600), ..record("/etc/x") },
            FileRecord { kind: FileKind::Folder, ..record("/srv") },
            FileRecord { kind: FileKind::Link, target: Some("../x".into()), ..record("/srv/link") },
        ];
        let written = write(&records, None, &numbers).unwrap();
        let entry = written[&path("etc/x")].entry.as_ref().unwrap();
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o600, 1, 2));
        assert_eq!(written[&path("srv")].entry.as_ref().unwrap().mode, 0o755);
        assert_eq!(written[&path("srv/link")].entry.as_ref().unwrap().node, Node::Link { target: b"../x".to_vec() });
    }

    #[test]
    fn a_source_is_taken_in_normal_form_and_a_folder_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("www/img")).unwrap();
        fs::write(dir.path().join("www/index.html"), "hello").unwrap();
        std::os::unix::fs::symlink("index.html", dir.path().join("www/home")).unwrap();
        let written =
            write(&[FileRecord { source: Some("www".into()), ..record("/srv/www") }], Some(dir.path()), &numbers)
                .unwrap();
        let names: Vec<_> = written.keys().map(|p| p.to_string()).collect();
        assert_eq!(names, ["/srv/www", "/srv/www/home", "/srv/www/img", "/srv/www/index.html"]);
        assert_eq!(written[&path("srv/www/index.html")].content, Content::Inline(b"hello".to_vec()));
    }

    #[test]
    fn what_leaves_the_package_or_says_too_little_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        for bad in [
            record("/x"),
            FileRecord { content: Some("x".into()), source: Some("y".into()), ..record("/x") },
            FileRecord { source: Some("../x".into()), ..record("/x") },
            FileRecord { source: Some("/etc/passwd".into()), ..record("/x") },
            FileRecord { source: Some("out/passwd".into()), ..record("/x") },
            FileRecord { source: Some("missing".into()), ..record("/x") },
            FileRecord { content: Some("x".into()), ..record("/") },
            FileRecord { content: Some("x".into()), ..record("/a/../b") },
            FileRecord { content: Some("x".into()), mode: Some(0o17777), ..record("/x") },
            FileRecord { kind: FileKind::Link, target: Some(String::new()), ..record("/x") },
        ] {
            assert!(write(std::slice::from_ref(&bad), Some(dir.path()), &numbers).is_err(), "{bad:?}");
        }
        let twice = [
            FileRecord { content: Some("1".into()), ..record("/x") },
            FileRecord { content: Some("2".into()), ..record("/x") },
        ];
        assert!(write(&twice, None, &numbers).is_err());
    }

    #[test]
    fn what_a_folder_holds_may_lie_right_below_the_root() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("data/sub")).unwrap();
        fs::write(temp.path().join("data/sub/a"), "a").unwrap();
        let write = |source: Option<&str>| {
            let all = FileRecord { source: source.map(str::to_string), ..record("/") };
            super::write(&[all], Some(temp.path()), &numbers)
        };
        let paths: Vec<String> = write(Some("data")).unwrap().keys().map(RootPath::to_string).collect();
        assert_eq!(paths, ["/sub", "/sub/a"]);
        for source in [None, Some("data/sub/a")] {
            assert!(write(source).unwrap_err().what().contains("can't be the root"), "{source:?}");
        }
    }
}
