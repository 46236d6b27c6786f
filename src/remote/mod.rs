//! The only sockets to the world, and where being offline is decided.
