//! The joining room: order, keys, and one rule from request to changeset.

pub mod base;
mod based;
pub mod build;
mod cached_builder;
pub mod check;
pub mod commit;
pub mod environment;
pub mod explain;
pub mod fetch;
pub mod identity;
pub mod image;
mod log;
mod pod;
pub mod request;
pub mod room;
pub mod rule;
pub mod schedule;
pub mod secrets;
pub mod shell;
pub mod snapshot;
pub mod sources;
mod squash;
mod tapeout;
pub mod twice;
pub mod unchanged;
pub mod unpack;
pub mod wants;
