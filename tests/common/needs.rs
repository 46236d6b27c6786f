//! What a test needs of the machine: it skips aloud at home, and fails where `CI` is set.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Whether all of these are there: names of programs, `root`, or `registries` (crates.io, PyPI, npm).
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
        "registries" => ["static.crates.io", "pypi.org", "registry.npmjs.org"].into_iter().all(answers),
        "root" => nix::unistd::geteuid().is_root(),
        program => find(program).is_some(),
    }
}

fn answers(host: &str) -> bool {
    let addresses = (host, 443).to_socket_addrs().into_iter().flatten();
    let addresses: Vec<_> = addresses.take(2).collect();
    let answers = |address| TcpStream::connect_timeout(address, Duration::from_secs(5)).is_ok();
    (0..3).any(|_| addresses.iter().any(answers))
}

/// The program in the machine's own `PATH`, and where Debian keeps those for root.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        .map(|folder| PathBuf::from(folder).join(program))
        .find(|file| file.is_file())
}
