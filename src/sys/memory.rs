//! Memory of this process.

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
