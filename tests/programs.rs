//! Programs that no one here wrote: taped out of Debian packages they start and answer in images of their own.

use std::path::PathBuf;

use crate::common::containers::Containers;
use crate::common::{Layout, examples, have};

/// The name of each, which of them a shell was asked for, and the bytes of what
/// `mmdebstrap --variant=minbase --include=PACKAGE` makes, as zstd; `ci/bench --only sizes` measures it.
const PROGRAMS: [(&str, bool, u64); 7] = [
    ("redis", false, 56_473_600),
    ("nginx", false, 57_541_439),
    ("postgresql", true, 150_725_035),
    ("python", false, 83_909_411),
    ("java", false, 128_355_893),
    ("git", true, 78_798_426),
    ("curl", false, 63_143_624),
];

/// All of them in gzip, which umoci reads; each image's `check` has passed then.
fn output() -> PathBuf {
    examples::output("programs", "gzip")
}

#[test]
fn seven_programs_start_and_answer_with_nothing_but_their_closure() {
    if !have(&["root", "umoci", "crun", "jq"]) {
        return;
    }
    let script = include_str!("programs.sh");
    // Before the one user of podman is taken, for which others wait.
    let output = output();
    let said = Containers::new().run(&format!(
        "rm -rf programs; mkdir programs; cd programs; export OUTPUT={}
         unshare --user --map-root-user --net --pid --fork --kill-child --mount-proc sh -euc \"$(cat <<'END'\n{script}\nEND\n)\"",
        output.display()
    ));
    let said = said.success().says_not("was believed");
    for (name, answer) in [
        ("nginx", "<title>Welcome to nginx!</title>"),
        ("python", "<html><p>Hello from /lxml</p></html>"),
        ("java", "Hello from /java"),
        ("redis", "OK\n42"),
        ("postgresql", "Ä42"),
        ("git", "the first"),
    ] {
        let (_, rest) = said.stdout.split_once(&format!("{name} says\n")).expect(name);
        let answered = rest.split(" says\n").next().unwrap_or_default();
        assert!(answered.contains(answer), "{name}{said}");
    }
}

#[test]
fn no_shell_is_brought_where_none_was_asked_for() {
    for (name, asked, _) in PROGRAMS {
        let image = Layout::open(&output().join(name).join(name).join("build_image")).only();
        let shells = ["sh", "dash", "bash", "busybox"];
        let found: Vec<String> = image
            .layers
            .iter()
            .flatten()
            .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
            .filter(|path| {
                path.rsplit_once('/').is_some_and(|(folder, n)| folder.ends_with("bin") && shells.contains(&n))
            })
            .collect();
        assert_eq!(!found.is_empty(), asked, "{name}: {found:?}");
    }
}

#[test]
fn each_is_at_most_half_as_large_as_a_minimal_system_with_it() {
    for (name, _, whole) in PROGRAMS {
        let image = Layout::open(&output().join(name).join(name).join("build_image")).only();
        let layers = image.manifest["layers"].as_array().expect("layers");
        let size: u64 = layers.iter().filter_map(|layer| layer["size"].as_u64()).sum();
        // A Java runtime is most of both.
        let most = if name == "java" { whole * 2 / 3 } else { whole / 2 };
        assert!(size <= most, "{name}: {size} bytes of {whole}");
    }
}
