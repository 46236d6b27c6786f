//! Archives: tar streams and compression.

pub mod decompress;
