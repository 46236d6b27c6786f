//! `tapeout completions`

use clap::CommandFactory;

use crate::cli::args::Cli;
use crate::cli::ui;
use crate::error::Result;

/// Prints the completion script of a shell.
pub fn run(shell: clap_complete::Shell) -> Result<()> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), "tapeout", &mut script);
    ui::print(&String::from_utf8_lossy(&script));
    Ok(())
}
