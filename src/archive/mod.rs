//! Archives: tar streams and compression.

pub mod decompress;
pub mod tar_reader;
pub mod unpack;
