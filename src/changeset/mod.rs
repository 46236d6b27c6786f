//! Changesets on disk: what a rule changed, captured, named, kept and stacked.
//!
//! - `upper`, `found`, `owners`: what a rule left, as entries with their owners
//! - `kept_tree`: a snapshot, and what a rule left, where no overlay can be had
//! - `diff`: from these to a changeset, its name, and its kept form
//! - `stack`: changesets of several rules in one snapshot: their order, and conflicts
//! - `merge`: the files that several rules may all write: users and groups, the loader's cache
//! - `places`: which files these are, and what is no part of a changeset
//!
//! **The kept form** is the upper folder itself, normalised, so that it can be stacked as it is:
//! a removal is a whiteout (character device 0/0), a device is an empty file, names that are one
//! file are separate ones, all times are the changeset's. No folder is opaque: one that replaced
//! another has a whiteout for each path that is gone, so that what the overlay shows is what the
//! tree says, whatever lies below.

pub mod diff;
mod found;
mod kept_tree;
mod loader_cache;
pub mod merge;
mod owners;
pub mod places;
pub mod stack;
mod upper;

use crate::digest::Digest;
use crate::error::Result;
use crate::sys::root::Root;

pub use diff::{Captured, Options, capture, digest_of, set_times};
pub use kept_tree::KeptTree;
pub use owners::known;

/// Gives the files of a changeset that the store keeps.
pub type Files<'a> = dyn Fn(&Digest) -> Result<Root> + Sync + 'a;
