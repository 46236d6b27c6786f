//! One file that is written whole or not at all: what an archive is written into.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::archive::pieces::{PieceReader, PieceWriter, pieces};
use crate::error::{Error, Result};
use crate::sys::disk::Flowing;
use crate::sys::file;

/// Writes a file that has no name until it is whole and on the disk, and renames it into its place then. What was
/// there before stays until then; after an error or a kill nothing is left. Its mode is what the caller's umask
/// leaves of 0666. What fills it reads and hashes in one thread while another writes; memory doesn't grow with it.
pub fn write(to: &Path, fill: impl FnOnce(&mut PieceWriter) -> Result<()>) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::request(format!("can't write to {}", to.display())).why(why.to_string()).next("name a file"))
    };
    let Some(name) = to.file_name() else { return refused("it names no file") };
    if to.is_dir() {
        return refused("it is a folder");
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return refused(&format!("{} is no folder", parent.display()));
    }
    let beside = parent.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    // Not every file system has files without a name: FAT and NFS have none.
    let nameless = file::nameless_file(parent, 0o666).ok();
    let named = nameless.is_none();
    let write = || {
        let file = match nameless {
            Some(file) => file,
            None => file::create_anew(&beside)?,
        };
        let file = written(file, to, fill)?;
        file.sync_all().map_err(|e| Error::io("fsync", to, e))?;
        while !named && !file::name_file(&file, &beside)? {
            fs::remove_file(&beside).map_err(|e| Error::io("unlink", &beside, e))?;
        }
        fs::rename(&beside, to).map_err(|e| Error::io("rename", to, e))?;
        let folder = File::open(parent).and_then(|folder| folder.sync_all());
        folder.map_err(|e| Error::io("fsync", parent, e))
    };
    write().inspect_err(|_| {
        // What went wrong first is what is told.
        let _ = fs::remove_file(&beside);
    })
}

fn written(file: File, to: &Path, fill: impl FnOnce(&mut PieceWriter) -> Result<()>) -> Result<File> {
    let take = |from: PieceReader| -> io::Result<File> {
        let mut file = Flowing::new(file);
        while let Some(piece) = from.next() {
            file.write_all(&piece)?;
            from.done(piece);
        }
        Ok(file.into_inner())
    };
    let (mut out, from) = pieces(8);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| take(from));
        let filled = fill(&mut out).and_then(|()| out.end().map_err(|e| Error::io("write", to, e)));
        let taken = taker.join().unwrap_or_else(|_| Err(io::Error::other("a thread that writes ended early")));
        // A disk that is full ends the other thread too: the cause is told.
        let file = taken.map_err(|e| Error::io("write", to, e))?;
        filled.map(|()| file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> impl FnOnce(&mut PieceWriter) -> Result<()> + '_ {
        |out| out.write_all(text.as_bytes()).map_err(|e| Error::io("write", "x", e))
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let to = temp.path().join("x.tar");
        fs::write(&to, "old").unwrap();
        let failed = write(&to, |out| {
            says("half")(out)?;
            assert_eq!(
                fs::read_dir(temp.path()).unwrap().count(),
                1,
                "what isn't whole has no name that a kill leaves"
            );
            Err(Error::failed("stop"))
        });
        assert_eq!(failed.unwrap_err().what(), "stop");
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
        write(&to, says("new")).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "nothing is left beside it");
        // In a folder where others write, somebody may wait with a link.
        let (victim, link) = (temp.path().join("victim"), format!(".x.tar.{}.new", std::process::id()));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, temp.path().join(link)).unwrap();
        write(&to, says("newer")).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(&to).unwrap().is_file());
    }

    #[test]
    fn a_place_that_can_hold_no_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        for bad in [temp.path().to_path_buf(), temp.path().join("no/x.tar"), "/".into()] {
            let error = write(&bad, says("x")).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.what().contains(&bad.display().to_string()), "{error}");
        }
    }
}
