//! The joining room: order, keys, and one rule from request to changeset.

pub mod request;
pub mod schedule;
