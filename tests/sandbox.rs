//! The sandbox does what it promises, on a root file system of one busybox.
//!
//! They run as whoever runs them: as root, and as an ordinary user (`ci/test` does both).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tapeout::build_file::spec::{Limits, Step};
use tapeout::error::Result;
use tapeout::sandbox::{self, Hit, Outcome, Recorded, Spec, Status};
use tapeout::sys::{file, process};

/// A root file system, and the folders of one run.
struct Room {
    temp: tempfile::TempDir,
    spec: Spec,
}

struct Ran {
    result: Result<Outcome>,
    output: String,
}

fn sh(script: &str) -> Step {
    Step::Shell(script.into())
}

/// Where `apt-get install busybox-static` puts it.
fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|p| p.exists()).expect("busybox-static is installed")
}

impl Room {
    fn new() -> Self {
        process::set_executable(env!("CARGO_BIN_EXE_tapeout").into());
        let temp = tempfile::Builder::new().prefix("sandbox").tempdir().unwrap();
        let lower = temp.path().join("lower");
        for folder in ["bin", "etc", "dev", "proc", "sys", "run", "tmp", "usr/bin", "var/lib"] {
            std::fs::create_dir_all(lower.join(folder)).unwrap();
        }
        std::fs::copy(busybox(), lower.join("bin/busybox")).unwrap();
        let applets = std::process::Command::new(busybox()).arg("--list").output().unwrap();
        for name in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        std::fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        std::fs::write(lower.join("etc/kept"), "lower\n").unwrap();
        for folder in ["upper", "work", "root", "tmp"] {
            std::fs::create_dir(temp.path().join(folder)).unwrap();
        }
        let at = |name: &str| temp.path().join(name);
        let env = [("PATH", "/bin:/usr/bin"), ("HOME", "/tmp/home")].map(|(k, v)| (k.to_string(), v.to_string()));
        let spec = Spec {
            lower: vec![lower],
            upper: at("upper"),
            work: at("work"),
            root: at("root"),
            tmp: at("tmp"),
            env: BTreeMap::from(env),
            cwd: "/workspace".into(),
            hostname: "tapeout".into(),
            ..Spec::default()
        };
        Self { temp, spec }
    }

    fn lower(&self) -> PathBuf {
        self.temp.path().join("lower")
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.temp.path().join("upper").join(path)
    }

    fn run_steps(&mut self, steps: Vec<Step>) -> Ran {
        self.spec.steps = steps;
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut text = vec![];
            reader.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let result = sandbox::run(&self.spec, File::from(std::os::fd::OwnedFd::from(writer)));
        Ran { result, output: reading.join().unwrap() }
    }

    fn run(&mut self, script: &str) -> Ran {
        self.run_steps(vec![sh(script)])
    }

    /// Runs a script that must succeed; gives what it wrote.
    fn ok(&mut self, script: &str) -> (String, Outcome) {
        let ran = self.run(script);
        let outcome = ran.result.unwrap_or_else(|e| panic!("{e}\n{}", ran.output));
        assert!(outcome.status.success(), "{:?}\n{}", outcome.status, ran.output);
        (ran.output, outcome)
    }

    /// What was recorded for a file of the upper folder.
    fn recorded(&self, outcome: &Outcome, path: &str) -> Option<Recorded> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW;
        let fd = nix::fcntl::open(&self.upper(path), flags, nix::sys::stat::Mode::empty()).unwrap();
        let handle = file::handle(fd.as_fd()).unwrap();
        outcome.recorded.iter().find(|r| r.handle == handle).cloned()
    }

    fn owner(&self, outcome: &Outcome, path: &str) -> (Option<u32>, Option<u32>) {
        self.recorded(outcome, path).map_or((None, None), |r| (r.uid, r.gid))
    }
}

#[test]
fn a_step_runs_in_its_own_world() {
    let mut room = Room::new();
    let (output, outcome) = room.ok(
        "id -u; id -g; hostname; pwd; echo $HOME $0; umask; ls /dev; echo $$; ls -d /proc/[0-9]*; env | sort; cat /proc/self/cgroup; echo made > /made; ls -ld /tmp /tmp/home; echo x > /tmp/x",
    );
    println!("{output}{outcome:?}");
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..6], ["0", "0", "tapeout", "/workspace", "/tmp/home /bin/sh", "0022"]);
    assert_eq!(std::fs::read_to_string(room.upper("made")).unwrap(), "made\n");
    assert!(!room.upper("tmp").exists(), "/tmp is no part of what changed");
    assert!(room.temp.path().join("tmp/x").exists());
}
