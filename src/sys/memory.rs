//! Memory of this process, and files in memory.

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::sys::proc;

/// A file in memory that can be read alone.
pub fn file_of(bytes: &[u8]) -> nix::Result<OwnedFd> {
    let create = |flags: libc::c_uint| {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"answer".as_ptr(), flags) };
        // SAFETY: the call succeeded, so the number is a new descriptor of ours.
        if fd < 0 { Err(Errno::last()) } else { Ok(unsafe { std::fs::File::from_raw_fd(fd) }) }
    };
    // Kernels before 6.3 don't know the second flag and need none.
    let mut file = match create(libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL) {
        Err(Errno::EINVAL) => create(libc::MFD_CLOEXEC)?,
        other => other?,
    };
    file.write_all(bytes).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    proc::open(&format!("self/fd/{}", file.as_raw_fd()), OFlag::O_RDONLY)
}

/// From so many files on a list of them is worth the time of giving its memory back.
pub const MANY_FILES: usize = 10_000;

/// Gives the kernel back what was freed. glibc keeps it for the thread that had it, and the next long list may be
/// another thread's.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches free memory alone, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
