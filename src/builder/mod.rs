//! Where rules run: base root filesystems.

pub mod debian;
