//! A Debian builder: from a mirror's signed index to a base system.

pub mod index;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod signature;
pub mod sources;
