//! Other people's ways to run a container, on any machine where the tests are root.
//!
//! crun and podman refuse a hybrid cgroup tree, so they run in a mount namespace of their own that has
//! cgroup2; podman wants a user with subordinate IDs (Tapeout does not).

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::outcome::{Outcome, Running};
use super::places;

const NAME: &str = "tapeout-podman";

/// As root, in a mount namespace: $1 is the home, $2 the script.
const ENTER: &str = r#"
set -e
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
install -d -m 700 -o NAME -g NAME /run/NAME
exec setpriv --reuid NAME --regid NAME --init-groups env -i \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$1" USER=NAME XDG_RUNTIME_DIR=/run/NAME \
    sh -ec "cd; $2"
"#;

const SETTINGS: &str =
    "[containers]\ncgroups = \"disabled\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";

/// The user of crun and podman, with its home: for one test at a time, since it has one state.
pub struct Containers {
    home: PathBuf,
    _alone: File,
}

impl Containers {
    /// Makes the user where there is none.
    pub fn new() -> Self {
        let home = places::once("containers", |home| {
            if nix::unistd::User::from_name(NAME).expect("getpwnam").is_none() {
                let made = Command::new("useradd").args(["--no-create-home", "--shell", "/bin/sh", NAME]).status();
                assert!(made.expect("useradd").success(), "useradd {NAME}");
            }
            let settings = home.join(".config/containers");
            fs::create_dir_all(&settings).expect("create_dir_all");
            fs::write(settings.join("containers.conf"), SETTINGS).expect("write");
            let user = nix::unistd::User::from_name(NAME).expect("getpwnam").expect("the user just made");
            for entry in walkdir::WalkDir::new(home) {
                std::os::unix::fs::lchown(
                    entry.expect("walk").path(),
                    Some(user.uid.as_raw()),
                    Some(user.gid.as_raw()),
                )
                .expect("chown");
            }
        });
        let alone = File::create(places::folder("").join("containers.use")).expect("lock file");
        alone.lock().expect("lock");
        Self { home, _alone: alone }
    }

    /// Runs a script as that user, where containers can run.
    pub fn run(&self, script: &str) -> Outcome {
        let home = self.home.display().to_string();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &ENTER.replace("NAME", NAME), "sh", &home, script]).current_dir("/");
        Running::start(&mut command, script.to_owned()).wait(Duration::from_secs(900))
    }

    /// The same, and podman's leftovers (its pause process) end with it.
    pub fn podman(&self, script: &str) -> Outcome {
        let ends = "trap 'podman pod rm -fa >/dev/null 2>&1; podman rm -fa >/dev/null 2>&1; podman system migrate >/dev/null 2>&1' EXIT";
        self.run(&format!("{ends}\n{script}"))
    }

    /// Unpacks a gzip image with umoci and runs it with crun: its output. `umoci --rootless` maps one ID,
    /// so all files are root's, and so is the process.
    pub fn crun(&self, layout: &str, tag: &str, arguments: &[&str]) -> Outcome {
        let arguments = serde_json::to_string(arguments).expect("JSON");
        self.run(&format!(
            r#"rm -rf bundle; umoci unpack --rootless --image '{layout}:{tag}' bundle >&2; cd bundle
            jq '.process.args={arguments} | .process.terminal=false | .process.user={{"uid":0,"gid":0}} | del(.linux.resources)' \
                config.json >new; mv new config.json
            crun --cgroup-manager=disabled run "tapeout-$$" </dev/null"#
        ))
    }
}
