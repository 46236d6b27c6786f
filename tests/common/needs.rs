//! What a test needs of the machine: it skips aloud at home, and fails where `CI` is set.

use std::path::PathBuf;

/// Whether all of these are there: names of programs, or `root`.
pub fn have(needs: &[&str]) -> bool {
    let missing: Vec<&str> = needs.iter().copied().filter(|need| !there(need)).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var_os("CI").is_none(), "this machine lacks {missing}, and CI must test everything");
    eprintln!("SKIPPED: this machine lacks {missing}");
    false
}

fn there(need: &str) -> bool {
    match need {
        "root" => nix::unistd::geteuid().is_root(),
        program => find(program).is_some(),
    }
}

/// The program in the machine's own `PATH`, and where Debian keeps those for root.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        .map(|folder| PathBuf::from(folder).join(program))
        .find(|file| file.is_file())
}
