//! Tar streams and compression: reads the hostile, writes the deterministic.

pub mod compress;
pub mod pieces;
pub mod tar_writer;
