//! Tar streams and compression: reads the hostile, writes the deterministic.

pub mod access_list;
pub mod compress;
pub mod decompress;
pub mod holes;
pub mod kept;
pub mod patch;
pub mod pieces;
pub mod section;
pub mod tar_reader;
pub mod tar_writer;
pub mod unpack;
pub mod whole_file;
