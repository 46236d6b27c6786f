//! What this machine can give to a sandbox.

/// What was found.
#[derive(Debug, Clone)]
pub struct Probe {}
