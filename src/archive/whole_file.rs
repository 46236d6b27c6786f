//! One file that is written whole or not at all: what an archive is written into.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::sys::file;

/// Writes a file beside its place, and renames it there when it is on the disk. What was there before stays
/// until then; after an error nothing is left. Its mode is what the caller's umask leaves of 0666.
pub fn write(to: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
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
    let write = || {
        let file = file::create_anew(&beside)?;
        let mut out = BufWriter::with_capacity(256 << 10, &file);
        fill(&mut out)?;
        out.flush().map_err(|e| Error::io("write", to, e))?;
        file.sync_all().map_err(|e| Error::io("fsync", to, e))?;
        fs::rename(&beside, to).map_err(|e| Error::io("rename", to, e))?;
        let folder = File::open(parent).and_then(|folder| folder.sync_all());
        folder.map_err(|e| Error::io("fsync", parent, e))
    };
    write().inspect_err(|_| {
        // What went wrong first is what is told.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> impl FnOnce(&mut BufWriter<&File>) -> Result<()> + '_ {
        |out| out.write_all(text.as_bytes()).map_err(|e| Error::io("write", "x", e))
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let to = temp.path().join("x.tar");
        fs::write(&to, "old").unwrap();
        let failed = write(&to, |out| says("half")(out).and(Err(Error::failed("stop"))));
        assert!(failed.is_err());
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
