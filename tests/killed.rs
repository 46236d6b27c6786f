//! `kill -9` at any moment leaves no process behind and a store that the next run accepts.

use std::time::{Duration, Instant};

use crate::common::{Layout, User, Workspace, have};

/// Processes of this user that still live (a zombie is one that its parent has not asked about).
fn processes(user: &User) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.bytes().all(|byte| byte.is_ascii_digit());
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        // An undumpable process's folder belongs to root, so its status is asked as well.
        let real = status.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next()?.parse().ok());
        let owner = entry.metadata().map(|data| data.uid()).unwrap_or(0);
        let zombie = status.lines().any(|line| line.starts_with("State:\tZ"));
        if number && !zombie && (real == Some(user.uid) || owner == user.uid) {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{name} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// The kernel ends a PID namespace a moment after its last parent.
fn expect_no_process(user: &User, when: &str) {
    let since = Instant::now();
    loop {
        let left = processes(user);
        if left.is_empty() {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "killed {when}, these live on: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const BUILD: &str = r#"
rule("first", deps = ["//base:build"], sources = ["input"], run = "mkdir -p /opt; cp input /opt/input; sleep 0.1")
rule("left", deps = [":first"], run = "cp /bin/busybox /opt/left; (sleep 300 &) ; sleep 0.1; cat /opt/input >>/opt/left")
rule("right", deps = [":first"], run = "chown 33:33 /opt/input; mkdir -m 0 /opt/closed; setsid sleep 300 & sleep 0.1")
rule("build", deps = ["//base:build", ":left", ":right"], run = "sha256sum /opt/left >/opt/sum")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
"#;

fn digest(workspace: &Workspace) -> String {
    Layout::open(&workspace.output("app/image/build_image")).only().digest
}

#[test]
fn killed_at_any_moment_a_build_leaves_no_process_and_a_good_store() {
    killed_at_any_moment(User::numbered(64102), "overlay");
}

#[test]
fn killed_at_any_moment_with_copied_snapshots_it_does_too() {
    killed_at_any_moment(User::numbered(64104), "copy");
}

fn killed_at_any_moment(user: User, snapshots: &str) {
    if !have(&["root", "busybox"]) {
        return;
    }
    let build = format!("build --snapshots {snapshots} --jobs 2 //app:image/build_image");
    let workspace = Workspace::tiny_of(user.clone());
    workspace.file("app/build.star", BUILD).file("app/input", "0");
    let whole = workspace.run(&build).success().took;
    expect_no_process(&user, "at its end");

    let moments = 40;
    let mut interrupted = 0;
    for moment in 0..moments {
        workspace.file("app/input", format!("{moment}"));
        let after = whole * moment / moments;
        let running = workspace.start(&build);
        std::thread::sleep(after);
        interrupted += u32::from(running.kill().killed());
        expect_no_process(&user, &format!("after {after:?}"));
        workspace.run(&build).success();
    }
    assert!(interrupted > moments / 5, "only {interrupted} of {moments} were killed in time");

    let fresh = Workspace::tiny_of(user);
    fresh.file("app/build.star", BUILD).file("app/input", workspace.read("app/input"));
    fresh.run("build //app:image/build_image").success();
    assert_eq!(digest(&workspace), digest(&fresh), "what survived {interrupted} kills is another image");
    let left: Vec<_> = std::fs::read_dir(workspace.store().join("tmp")).expect("tmp").flatten().collect();
    assert!(left.len() < 10, "nobody clears what killed runs left: {left:?}");
}

#[test]
fn killed_at_any_moment_a_bootstrap_leaves_no_process_and_goes_on() {
    if !have(&["root"]) {
        return;
    }
    let user = User::numbered(64103);
    let workspace = Workspace::empty(user.clone());
    workspace.file("tapeout.toml", crate::common::workspace::DEBIAN_TOML);
    let mut interrupted = 0;
    for tenths in [2, 5, 10, 15, 20, 30, 40, 60, 80] {
        let running = workspace.start("bootstrap bookworm --from debian:bookworm");
        std::thread::sleep(Duration::from_millis(100 * tenths));
        interrupted += u32::from(running.kill().killed());
        expect_no_process(&user, &format!("after {tenths} tenths of a second"));
    }
    assert!(interrupted > 2, "only {interrupted} were killed in time");
    workspace.run("bootstrap bookworm --from debian:bookworm").success();
    expect_no_process(&user, "at its end");
    workspace.file("app/build.star", r#"rule("build", deps = ["//base:build"], run = "dpkg --audit && perl -e 1")"#);
    workspace.run("build //app:build").success();
}
