//! `tapeout doctor`

use crate::cli::args::Global;
use crate::error::Result;

/// Says what this machine offers.
pub fn run(_global: &Global) -> Result<()> {
    Ok(())
}
