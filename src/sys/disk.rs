//! What several processes may hold of a file, and when what is written reaches the disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How [`lock`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Shared; waits.
    Shared,
    /// Exclusive; waits.
    Exclusive,
    /// Exclusive; `false` when somebody else has it.
    TryExclusive,
}

/// flock(2); the lock goes with the open file, so with the process.
pub fn lock(file: &File, how: Lock) -> io::Result<bool> {
    let operation = match how {
        Lock::Shared => libc::LOCK_SH,
        Lock::Exclusive => libc::LOCK_EX,
        Lock::TryExclusive => libc::LOCK_EX | libc::LOCK_NB,
    };
    loop {
        // SAFETY: flock takes an open descriptor and a number.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EWOULDBLOCK) => return Ok(false),
            e if e.kind() == io::ErrorKind::Interrupted => {}
            e => return Err(e),
        }
    }
}

/// syncfs(2): all that was written to the file system that `fd` is on reaches the disk.
pub fn sync_file_system(fd: BorrowedFd) -> io::Result<()> {
    // SAFETY: syncfs takes an open descriptor.
    match unsafe { libc::syncfs(fd.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file that begins to reach the disk while it is written, so that a sync at its end finds little left to do.
#[derive(Debug)]
pub struct Flowing {
    file: File,
    written: u64,
    begun: u64,
}

/// So much is written before the disk begins: little at first, as small files want it, then as much again each time,
/// until it is large enough to lie in one piece.
const FLOW: std::ops::RangeInclusive<u64> = 1 << 20..=8 << 20;

impl Flowing {
    /// An empty file that is open for writing.
    pub fn new(file: File) -> Self {
        Self { file, written: 0, begun: 0 }
    }

    /// The file, which is whole, but not known to be on the disk.
    pub fn into_inner(self) -> File {
        self.file
    }
}

impl io::Write for Flowing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        if self.written - self.begun >= self.begun.clamp(*FLOW.start(), *FLOW.end()) {
            let (from, length) = (self.begun as i64, (self.written - self.begun) as i64);
            // Only a hint: a file system that can't has everything to do at the end.
            // SAFETY: sync_file_range takes an open descriptor and numbers.
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE) };
            self.begun = self.written;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
