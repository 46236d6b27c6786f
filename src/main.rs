//! The `tapeout` binary.

fn main() {
    // A sandbox's init is this same program: before threads, arguments and everything else.
    tapeout::sandbox::take_over_if_asked();
    // And so is the process that evaluates build files.
    tapeout::graph::analysis_child_if_asked();
}
