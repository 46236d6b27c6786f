//! The only sockets to the world, and where `--offline` is decided.

pub mod http;
