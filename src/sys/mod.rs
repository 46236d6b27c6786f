//! The kernel: every raw system call, and all unsafe code, with a reason at each.
