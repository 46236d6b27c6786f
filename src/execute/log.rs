//! What the steps of a rule print: through a pipe into a file. Given the file itself, a rule could
//! read its path in `/proc/self/fd`. A secret in it is an error: what follows is thrown away, and so is
//! the file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{Error, Result};
use crate::execute::secrets::Search;
use crate::sandbox::{self, Outcome, Spec};

/// A log is cut here: a rule that prints without end must not fill the disk.
const LONGEST: u64 = 256 << 20;

/// Runs the sandbox with its output going to `path`; an error when one of these secrets is printed.
pub fn run(spec: &Spec, path: &Path, secrets: &Search) -> Result<Outcome> {
    let mut file = File::create_new(path).map_err(|e| Error::io("create", path, e))?;
    let (mut reader, writer) = io::pipe().map_err(|e| Error::io("pipe", path, e))?;
    std::thread::scope(|scope| {
        let kept = scope.spawn(move || keep(&mut reader, &mut file, secrets));
        // It owns our end of the pipe: when it returns, the last writer is gone.
        let outcome = sandbox::run(spec, File::from(OwnedFd::from(writer)));
        let kept = kept.join().unwrap_or_else(|_| Err(io::Error::other("the thread that keeps it ended")));
        let outcome = outcome?;
        match kept.map_err(|e| Error::io("write", path, e))? {
            None => Ok(outcome),
            Some(name) => {
                // Its beginning may be there.
                std::fs::remove_file(path).map_err(|e| Error::io("unlink", path, e))?;
                Err(Error::failed(format!("it printed the secret {name}"))
                    .why("its log was thrown away")
                    .next("keep its commands from printing it: no set -x, no --verbose"))
            }
        }
    })
}

/// Which secret was printed, if any. It reads to the end, whatever happens: the steps must not wait
/// for a reader, nor be killed for want of one.
fn keep<'a>(reader: &mut impl Read, file: &mut impl Write, secrets: &'a Search) -> io::Result<Option<&'a str>> {
    let mut stream = secrets.stream();
    let mut left = LONGEST;
    let (mut found, mut written) = (None, Ok(()));
    let mut buffer = vec![0; 64 << 10];
    loop {
        let piece = match reader.read(&mut buffer) {
            Ok(0) => return written.map(|()| found),
            Ok(n) => &buffer[..n],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        found = found.or_else(|| stream.feed(piece));
        if found.is_some() || written.is_err() || left == 0 {
            continue;
        }
        let kept = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        left -= kept.len() as u64;
        written = file.write_all(kept);
        if left == 0 && written.is_ok() {
            let _ = file.write_all(b"\n(the log is cut here)\n");
        }
    }
}

/// The lines of a failed step's log that its error shows.
const LAST_LINES: usize = 20;
/// They are looked for in so many bytes at the end.
const LAST_BYTES: u64 = 16 << 10;

/// An error with the end of the log: that is what a person looks for first.
pub fn told(error: Error, log: &Path) -> Error {
    let end = || -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(LAST_BYTES)))?;
        let mut bytes = vec![];
        file.take(LAST_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = end().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    match &lines[lines.len().saturating_sub(LAST_LINES)..] {
        [] => error.why("it printed nothing"),
        last => error.why(format!("it printed last:\n{}", last.join("\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_cannot_be_written_is_still_read_to_its_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printed: &[u8] = &[b'x'; 100_000];
        assert_eq!(keep(&mut printed, &mut Full, &Search::default()).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(printed.is_empty());
    }
}
