//! The `tapeout` binary.

fn main() {
    // A sandbox's init is this same program: before threads, arguments and everything else.
    tapeout::sandbox::take_over_if_asked();
}
