//! A Debian builder: from a mirror's signed index to a base system.

pub mod signature;
pub mod sources;
