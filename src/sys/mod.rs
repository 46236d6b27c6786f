//! The kernel: every raw system call, and all unsafe code, with a reason at each.
//!
//! It speaks the kernel's words and none of the design's. Functions take and give descriptors;
//! an error names the call and the path.
#![allow(unsafe_code)]

pub mod disk;
pub mod file;
pub mod memory;
pub mod mount;
pub mod nursery;
pub mod proc;
pub mod process;
pub mod refusal;
pub mod root;
pub mod seccomp;
pub mod subordinate;
pub mod terminal;
pub mod xattr;
