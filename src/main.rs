//! The `tapeout` binary.

fn main() {}
