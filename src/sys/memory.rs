//! Memory of this process, and files in memory.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sys::proc;

/// A new file in memory. `executable` says whether it may be executed ever; kernels before 6.3 don't know that flag and
/// need none.
pub fn new_file(name: &CStr, flags: MFdFlags, executable: libc::c_uint) -> nix::Result<OwnedFd> {
    match memfd_create(name, flags | MFdFlags::from_bits_retain(executable)) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    }
}

/// A file in memory that can be read alone.
pub fn file_of(bytes: &[u8]) -> nix::Result<OwnedFd> {
    let mut file = File::from(new_file(c"answer", MFdFlags::MFD_CLOEXEC, libc::MFD_NOEXEC_SEAL)?);
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

const HUGE: usize = 2 << 20;

/// Memory in whole huge pages of x86-64 and AArch64, at their borders.
#[repr(C, align(2097152))]
struct HugePage([MaybeUninit<u8>; HUGE]);

/// A buffer of megabytes, empty at first. The kernel makes 4 KiB pages one by one when they are first touched, which
/// costs several times what is then read into them; [`Buffer::expect_much`] asks for huge ones.
pub struct Buffer {
    pages: Box<[MaybeUninit<HugePage>]>,
    /// So many bytes from the start are initialised.
    length: usize,
    huge: bool,
}

impl Buffer {
    /// One for at least so many bytes. Nothing is touched yet.
    pub fn new(bytes: usize) -> Self {
        Self { pages: Box::new_uninit_slice(bytes.div_ceil(HUGE)), length: 0, huge: false }
    }

    /// Says that megabytes are about to come, where it is empty.
    pub fn expect_much(&mut self) {
        if self.length > 0 || std::mem::replace(&mut self.huge, true) {
            return;
        }
        let (start, length) = (self.pages.as_mut_ptr().cast(), size_of_val(&*self.pages));
        // A huge page comes where no small one is (madvise(2), MADV_DONTNEED). A kernel without them refuses the
        // advice, and all is as without it.
        // SAFETY: the range is this buffer's own, in whole pages, and no byte of it is initialised.
        unsafe {
            libc::madvise(start, length, libc::MADV_DONTNEED);
            libc::madvise(start, length, libc::MADV_HUGEPAGE);
        }
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Adds as many of these bytes as there is room for up to `most` bytes in all; how many.
    pub fn take(&mut self, bytes: &[u8], most: usize) -> usize {
        let room = self.room(most);
        let n = bytes.len().min(room.len());
        room[..n].write_copy_of_slice(&bytes[..n]);
        self.length += n;
        n
    }

    /// Reads once, up to `most` bytes in all, behind what it holds; 0: the end of the file.
    pub fn read(&mut self, file: &File, most: usize) -> io::Result<usize> {
        let room = self.room(most);
        let read = loop {
            // SAFETY: the kernel writes at most so many bytes, and so many are there behind the pointer.
            let read = unsafe { libc::read(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
            match usize::try_from(read) {
                Ok(read) => break read,
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        };
        self.length += read;
        Ok(read)
    }

    fn room(&mut self, most: usize) -> &mut [MaybeUninit<u8>] {
        let all = size_of_val(&*self.pages);
        // SAFETY: pages are bytes without padding, and what may be uninitialised is said to be.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), all) };
        &mut bytes[self.length..most.min(all).max(self.length)]
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes from the start were written by `take` or `read`.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_holds_what_it_took_and_never_more_than_its_room() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x");
        std::fs::write(&path, [7; 3000]).unwrap();
        let mut buffer = Buffer::new(HUGE + 1);
        for much in [false, true, true] {
            if much {
                buffer.expect_much();
            }
            assert!(buffer.is_empty());
            assert_eq!(buffer.take(&[1; 100], 60), 60);
            assert_eq!(buffer.take(&[2; 100], 60), 0);
            let file = File::open(&path).unwrap();
            assert_eq!([2000, 9000, 9000].map(|most| buffer.read(&file, most).unwrap()), [1940, 1060, 0]);
            assert_eq!(*buffer, [vec![1; 60], vec![7; 3000]].concat());
            let long = vec![3; 3 * HUGE];
            assert_eq!(buffer.take(&long, usize::MAX), 2 * HUGE - 3060);
            assert_eq!(buffer.len(), 2 * HUGE);
            buffer.clear();
            assert_eq!((buffer.len(), buffer.take(&long, 5)), (0, 5));
            buffer.expect_much();
            assert_eq!(*buffer, [3; 5]);
            buffer.clear();
        }
    }
}
