//! One test binary: a file per command or promise.

mod sandbox;
