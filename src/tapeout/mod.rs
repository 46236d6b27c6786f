//! What an image takes, and why: picking, and the closure over what was picked.
//!
//! Each `tapeout` rule becomes one [`Selection`] ([`select`]); the joint point adds one more over
//! all of them ([`libraries`]): libraries, loaders, interpreters and the base skeleton. All of it
//! works on data (stacks of changesets); content is read through [`Files`], bounded, and only
//! where a decision needs it: ELF headers, the first line of scripts, a few tables in `/etc`.
//!
//! - `pattern`: the globs of `include`, `exclude`, `paths`
//! - `lookup`: files as data with their links followed: a rule's view, an image over it
//! - `select`, `place`, `packages`, `written`: what one rule picks, and where it goes
//! - `names`: `/etc/passwd` and `/etc/group`
//! - `elf`, `loader`, `script`: what a program needs, and where the loader finds it
//! - `known`, `openssl`: what programs load that no header names
//! - `skeleton`, `loader_cache`: what every image gets
//! - `libraries`: the joint point, which drives them all
//! - `program`: what the image starts must be in it
//! - `settle`: what is in no layer twice
//! - `why`: the reasons, and the chain of them

pub mod elf;
pub mod known;
pub mod libraries;
pub mod loader;
pub mod loader_cache;
pub mod lookup;
pub mod names;
pub mod openssl;
pub mod packages;
pub mod pattern;
pub mod place;
pub mod program;
pub mod script;
pub mod select;
pub mod settle;
pub mod skeleton;
#[cfg(test)]
pub(crate) mod testing;
pub mod why;
pub mod written;

use std::fs::File;

use crate::digest::Digest;
use crate::error::Result;
use crate::tree::RootPath;

pub use crate::tree::Selection;

/// Reads the content of files that a changeset holds.
pub trait Files {
    /// Opens a regular file of a changeset for reading.
    fn read(&self, changeset: &Digest, path: &RootPath) -> Result<File>;
}
