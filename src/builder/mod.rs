//! Where rules run: base root filesystems.

pub mod debian;
pub mod ids;
pub mod lock_file;
