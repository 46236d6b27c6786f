//! Images: selections become layers, layers an image, images a layout on disk.
//!
//! - `layer`: a selection as a tar stream, hashed and compressed while it is made
//! - `config`: the config and the manifest
//! - `layout`: the folder that other tools read, written whole or not at all, and read back
//! - `archive`: an image as one file, as OCI and docker have it
//! - `files`, `diff`, `unpack`: looks at images, whoever made them
//! - `push`: into a registry
//! - `json`: documents with one spelling, read without trust

pub mod archive;
pub mod config;
pub mod diff;
pub mod files;
pub mod json;
pub mod layer;
pub mod layout;
pub mod push;
pub mod unpack;
