//! The `tapeout` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before threads, arguments or anything else: this program is also the first process of its
    // own sandboxes, and the child that evaluates build files.
    tapeout::sandbox::take_over_if_asked();
    tapeout::graph::analysis_child_if_asked();
    tapeout::cli::main()
}
