//! Tapeout: build in a full builder, ship only what you tape out.
//!
//! Data flows one way, and so do the modules' dependencies (a module imports from those below it):
//!
//! build files → graph → plan → sandboxed rule → changeset → layer → image layout → bundle
//!
//! - `cli`: arguments into requests, results onto the screen; the only place that prints
//! - `execute`: the joining room: schedule, keys, one rule
//! - `pod`, `image`: bundles and image layouts
//! - `changeset`, `tapeout`, `builder`: what a rule changed, what an image takes, where rules run
//! - `sandbox`: namespaces, the snapshot, recorded owners
//! - `build_file`, `graph`: what was asked for, as plain data
//! - `store`, `remote`: what is kept, and the only sockets to the world
//! - `tree`, `archive`: files as data
//! - `sys`: the kernel; all unsafe code
//! - `error`, `label`, `digest`: the ground words

pub mod archive;
pub mod build_file;
pub mod builder;
pub mod changeset;
pub mod cli;
pub mod digest;
pub mod error;
pub mod execute;
pub mod graph;
pub mod image;
pub mod label;
pub mod nearest;
pub mod pod;
pub mod remote;
pub mod report;
pub mod sandbox;
pub mod store;
pub mod sys;
pub mod tapeout;
pub mod tree;
