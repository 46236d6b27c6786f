//! Limits of rules, and users that aren't there: the error says which, and where.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::outcome::Running;
use crate::common::{Outcome, Workspace, have, places};

#[test]
fn a_failure_names_the_limit_that_was_hit_or_may_have_been() {
    if !have(&["busybox"]) {
        return;
    }
    for (rule, told) in [
        // Without a limit of its own, a terabyte of holes is not read for an hour.
        ("run = 'truncate -s 1024G /big'", "went over its limit of file_size"),
        ("run = 'truncate -s 2M /big', limits = {'file_size': '1M'}", "went over its limit of file_size"),
        ("run = 'sleep 100', limits = {'time': 1}", "went over its limit of time"),
        (
            "run = 'dd if=/dev/zero of=/dev/null bs=500M count=1', limits = {'memory': '64M'}",
            "may have hit its limit of memory, 67108864",
        ),
        ("run = 'kill -9 $$', limits = {'processes': 400}", "may have hit its limit of processes, 400"),
    ] {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", format!("rule('build', deps = ['//base:build'], {rule})\n"));
        workspace.run("build //app:build").failure(1).stderr_has(told).stderr_has("app/build.star:1");
    }
    let workspace = Workspace::tiny();
    let rules = "rule('big', deps = ['//base:build'], run = 'truncate -s 1G /big; rm /big')\n\
        rule('plain', deps = ['//base:build'], run = 'false')\n";
    workspace.file("app/build.star", rules);
    workspace.run("build //app:big").success();
    workspace.run("build //app:plain").failure(1).says_not("its limit of");
}

#[test]
fn the_limit_of_a_files_size_is_told_though_nobody_dies_of_its_signal() {
    if !have(&["busybox"]) {
        return;
    }
    let over = "went over its limit of file_size";
    let may = "may have hit its limit of file_size, 1048576";
    let write = "dd if=/dev/zero bs=1000 count=2000 of=";
    for snapshots in ["overlay", "copy"] {
        for (rule, run, told, shown) in [
            // The file shows it, wherever it is.
            ("left", format!("trap '' XFSZ; {write}/opt-big 2>/dev/null"), over, "/opt-big is as long as"),
            ("in_tmp", format!("trap '' XFSZ; {write}/tmp/big 2>/dev/null"), over, "/tmp/big is as long as"),
            (
                "in_a_closed_folder",
                format!("trap '' XFSZ; mkdir /c; chmod 0 /c; {write}/c/b 2>/dev/null"),
                over,
                "/c/b is",
            ),
            // What it printed does.
            (
                "removed",
                format!("trap '' XFSZ; {write}/big || {{ rm /big; exit 4; }}"),
                over,
                "exit code 4, and \"File too large\"",
            ),
            ("of_a_child", format!("sh -c '{write}/big; rm /big; exit 2'"), over, "\"File size limit exceeded\""),
            // Nothing does.
            ("silent", format!("trap '' XFSZ; {write}/big 2>/dev/null || {{ rm /big; exit 4; }}"), may, "exit code 4"),
            // What was there before says nothing.
            ("before", "test $(stat -c %s /before) = 1048576; false".to_owned(), may, "exit code 1"),
        ] {
            let workspace = Workspace::tiny();
            workspace.file(
                "app/build.star",
                format!(
                    "rule('before_it', deps = ['//base:build'], run = 'truncate -s 1M /before')\n\
                     rule('{rule}', deps = [':before_it'], limits = {{'file_size': '1M'}}, run = \"\"\"{run}\"\"\")\n"
                ),
            );
            let failed = workspace.run(&format!("build --snapshots {snapshots} //app:{rule}")).failure(1);
            failed.stderr_has(told).stderr_has(shown);
        }
    }
    // Of the limit that every rule has, it is a guess.
    let workspace = Workspace::tiny();
    let run = "echo File too large; false";
    workspace.file("app/build.star", format!("rule('build', deps = ['//base:build'], run = '{run}')\n"));
    let guess = workspace.run("build //app:build").failure(1).says_not(over);
    guess.stderr_has("may have hit its limit of file_size, 68719476736");
}

/// A control group below ours that counts memory, given to a user as a container engine or systemd gives one.
struct Delegated(PathBuf);

impl Delegated {
    /// `None`: this machine gives its root none to divide.
    fn to(uid: u32) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path_of = |controllers: &str| {
            let mut lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
            lines.find(|(of, _)| of.split(',').any(|of| of == controllers)).map(|(_, path)| path.to_owned())
        };
        let own = match path_of("memory") {
            Some(path) => format!("/sys/fs/cgroup/memory{path}"),
            None => format!("/sys/fs/cgroup{}", path_of("")?),
        };
        let folder = PathBuf::from(own).join(format!("tests-of-tapeout-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let made = Self(folder);
        let counts = |name: &str| fs::read_to_string(made.0.join(name)).is_ok_and(|all| all.contains("memory"));
        if !made.0.join("memory.limit_in_bytes").exists() && !counts("cgroup.controllers") {
            return None;
        }
        for name in ["", "cgroup.procs", "cgroup.subtree_control"] {
            let _ = std::os::unix::fs::chown(made.0.join(name), Some(uid), Some(uid));
        }
        Some(made)
    }

    fn below(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).expect("group").flatten().map(|e| e.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // The last process may be dead and not yet gone.
        for _ in 0..50 {
            self.below().iter().for_each(|group| drop(fs::remove_dir(group)));
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn in_a_control_group_of_our_own_memory_is_limited_for_the_whole_rule() {
    if !have(&["root", "busybox", "setpriv"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let uid = workspace.user.uid;
    let Some(group) = Delegated::to(uid) else {
        assert!(std::env::var_os("CI").is_none(), "this machine gives its root no control group to divide");
        return eprintln!("SKIPPED: this machine gives its root no control group to divide");
    };
    // No process has it: it is in memory all the same.
    let written = "head -c 100000000 /dev/zero >/run/much";
    workspace.file(
        "app/build.star",
        format!(
            "rule('over', deps = ['//base:build'], limits = {{'memory': '64M'}}, run = '{written}')\n\
             rule('below', deps = ['//base:build'], limits = {{'memory': '512M'}}, run = '{written}; ulimit -v')\n\
             rule('false', deps = ['//base:build'], limits = {{'memory': '64M'}}, run = 'false')\n\
             rule('each', deps = ['//base:build'], limits = {{'memory': '64M'}}, run = '{written}; ulimit -v')\n"
        ),
    );
    // As if a command had been killed.
    fs::create_dir(group.0.join("tapeout-99999999-1")).expect("create_dir");
    let build = |label: &str| -> Outcome {
        let script = format!(
            "echo 0 >\"$1/cgroup.procs\"; shift; exec setpriv --reuid {uid} --regid {uid} --clear-groups \"$@\""
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &script, "sh"]).arg(&group.0).arg(places::binary()).args(["build", label]);
        command.env_clear().env("TAPEOUT_STORE", workspace.store()).env("HOME", workspace.home());
        command.env("PATH", "/usr/bin:/bin").current_dir(workspace.path(""));
        Running::start(&mut command, format!("tapeout build {label}")).wait(workspace.limit)
    };
    build("//app:over").failure(1).stderr_has("went over its limit of memory").says_not("may have hit");
    build("//app:below").success().stderr_has("//app:below | unlimited");
    build("//app:false").failure(1).says_not("its limit of");
    assert_eq!(group.below(), [] as [PathBuf; 0], "groups are left");
    drop(group);
    // Elsewhere each process has so much.
    workspace.run("build //app:each").success().stderr_has("//app:each | 65536");
}

#[test]
fn a_user_that_is_not_in_the_snapshot_is_told_with_its_line() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let rules = "rule('first', deps = ['//base:build'], run = 'true')\n\
        rule('build', deps = [':first'], user = 'postgres', run = 'true')\n";
    workspace.file("app/build.star", rules);
    let refused = workspace.run("build //app:build").failure(2).stderr_has("no user is named \"postgres\"");
    refused.stderr_has("app/build.star:2").stderr_has("//app:build");
}
