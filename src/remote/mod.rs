//! The only sockets to the world, and where `--offline` is decided.

pub mod git;
pub mod http;
pub mod python_index;
