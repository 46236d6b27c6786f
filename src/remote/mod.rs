//! The only sockets to the world, and where `--offline` is decided.

pub mod credentials;
pub mod git;
pub mod http;
pub mod python_index;
pub mod reference;
pub mod registry;
