//! `kill -9` at any moment leaves no process behind and a store that the next run accepts.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::common::{Layout, User, Workspace, have, places};

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
        assert!(since.elapsed() < Duration::from_secs(60), "killed {when}, these live on: {left:#?}");
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
    workspace.run(&build).success();
    // The first makes the builder too; what is killed below is what comes after.
    workspace.file("app/input", "1");
    let mut whole = workspace.run(&build).success().took;
    expect_no_process(&user, "at its end");

    let moments = 40;
    let mut interrupted = 0;
    for moment in 0..moments {
        let in_time = |input: &str, whole: Duration| {
            workspace.file("app/input", input);
            let after = whole * moment / moments;
            let running = workspace.start(&build);
            std::thread::sleep(after);
            let killed = running.kill().killed();
            expect_no_process(&user, &format!("after {after:?}"));
            killed
        };
        let mut killed = in_time(&format!("{moment}"), whole);
        if !killed {
            // It was done: the machine is quicker than when this was measured.
            workspace.file("app/input", format!("{moment} measured"));
            whole = workspace.run(&build).success().took;
            killed = in_time(&format!("{moment} again"), whole);
        }
        interrupted += u32::from(killed);
        workspace.run(&build).success();
    }
    assert!(interrupted > moments / 2, "only {interrupted} of {moments} were killed in time");

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

/// Daemons that ignore what can be ignored, one that stopped itself, processes that make more, and a pipe that
/// is filled without end. The script itself prints nothing: where nobody reads, it would wait behind `yes` forever.
// The last line needs no further process: soon there is none to be had.
const HOSTILE: &str = r#"
rule("build", deps = ["//base:build"], limits = {"processes": 200}, run = """
trap '' INT TERM HUP QUIT PIPE
(setsid sh -c 'while :; do sleep 0.05; done' &)
(setsid sleep 300 &)
setsid sh -c 'kill -STOP $$' &
yes 'what nobody asked for' &
more() { more & more & sleep 300; }
(more 2>/dev/null &)
exec sleep 300
""")
rule("quick/build", deps = ["//base:build"], run = "true")
"#;

fn children(parent: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers = lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    numbers.filter_map(|number| number.parse().ok()).map(Pid::from_raw).collect()
}

/// Waits until at least so many processes of this user live.
fn expect_processes(user: &User, many: usize) {
    let since = Instant::now();
    while processes(user).len() < many {
        assert!(since.elapsed() < Duration::from_secs(60), "only these are there: {:#?}", processes(user));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The next command finds nothing that is held, and leaves no folder behind.
fn expect_clean(workspace: &Workspace, when: &str) {
    expect_no_process(&workspace.user, when);
    workspace.run("build //app:quick/build").success();
    let left: Vec<_> = std::fs::read_dir(workspace.store().join("tmp")).expect("tmp").flatten().collect();
    assert!(left.is_empty(), "{when}, this stays: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let store = workspace.store().display().to_string();
    assert!(!mounts.contains(&store), "{when}, a mount of {store} stays");
}

#[test]
fn whatever_ends_a_build_ends_a_hostile_rule_too() {
    if !have(&["root", "busybox"]) {
        return;
    }
    let user = User::numbered(64110);
    let workspace = Workspace::tiny_of(user.clone());
    workspace.file("app/build.star", HOSTILE);
    workspace.run("build //app:quick/build").success();
    for (when, signal, group) in [
        ("by Ctrl-C", Signal::SIGINT, true),
        ("by SIGTERM", Signal::SIGTERM, false),
        ("by SIGHUP", Signal::SIGHUP, false),
        ("by SIGQUIT", Signal::SIGQUIT, true),
        ("by kill -9", Signal::SIGKILL, false),
    ] {
        let running = workspace.start("build //app:build");
        expect_processes(&user, 60);
        if group { killpg(running.pid(), signal) } else { kill(running.pid(), signal) }.expect("kill");
        let ended = running.wait(workspace.limit);
        assert!(!ended.succeeded(), "{when}{ended}");
        expect_clean(&workspace, when);
    }
    // Any process of ours on the way to init: the build fails, and says so.
    for generation in [1, 2] {
        let running = workspace.start("build //app:build");
        expect_processes(&user, 60);
        let victims =
            (0..generation).fold(vec![running.pid()], |these, _| these.into_iter().flat_map(children).collect());
        assert!(!victims.is_empty());
        for victim in victims {
            let _ = kill(victim, Signal::SIGKILL);
        }
        running.wait(workspace.limit).failure(1);
        expect_clean(&workspace, &format!("in generation {generation}"));
    }
}

#[test]
fn a_lost_terminal_ends_a_build_and_its_hostile_rule() {
    if !have(&["root", "busybox", "setsid"]) {
        return;
    }
    let user = User::numbered(64105);
    let workspace = Workspace::tiny_of(user.clone()).behind(&["/usr/bin/setsid", "--ctty"]);
    workspace.file("app/build.star", HOSTILE);
    let pair = nix::pty::openpty(None, None).expect("openpty");
    let side = || Stdio::from(pair.slave.try_clone().expect("dup"));
    // What the build inherits would keep the terminal.
    fcntl(&pair.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("fcntl");
    let mut command = workspace.command(&places::binary(), &["build", "//app:build"]);
    let mut child = command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm").spawn().expect("spawn");
    drop((command, pair.slave));
    expect_processes(&user, 60);
    drop(pair.master);
    assert!(!child.wait().expect("wait").success());
    expect_no_process(&user, "with its terminal");
}

#[test]
fn no_control_character_of_a_rule_reaches_a_terminal() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let rule = r#"rule("build", deps = ["//base:build"], run = "printf 'a\\033]0;title\\007b\\233c\\n'; exit 1")"#;
    workspace.file("app/build.star", rule);
    for arguments in [["build", "//app:build"], ["log", "//app:build"]] {
        let pair = nix::pty::openpty(None, None).expect("openpty");
        let side = || Stdio::from(pair.slave.try_clone().expect("dup"));
        let mut command = workspace.command(&places::binary(), &arguments);
        let mut child =
            command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm").spawn().expect("spawn");
        drop((command, pair.slave));
        let mut seen = vec![];
        // When nobody has the other side any more, it is an error.
        let _ = std::fs::File::from(pair.master).read_to_end(&mut seen);
        child.wait().expect("wait");
        let seen = String::from_utf8_lossy(&seen);
        // Shown while it runs, and with the error.
        let times = if arguments[0] == "build" { 2 } else { 1 };
        assert_eq!(seen.matches("a\u{fffd}]0;title").count(), times, "{seen:?}");
        assert!(!seen.contains("\u{1b}]0;") && !seen.contains('\u{7}'), "{seen:?}");
    }
}

#[test]
fn an_analysis_that_is_killed_is_an_error_and_ends_with_its_parent() {
    if !have(&["root", "busybox"]) {
        return;
    }
    let user = User::numbered(64106);
    let workspace = Workspace::tiny_of(user.clone());
    workspace.file("app/build.star", "[len(str(n)) for n in range(10000000) for m in range(1000)]\n");
    let running = workspace.start("list //app:*");
    expect_processes(&user, 2);
    let analysis = children(running.pid());
    assert_eq!(analysis.len(), 1);
    kill(analysis[0], Signal::SIGKILL).expect("kill");
    running.wait(workspace.limit).fails().stderr_has("can't be evaluated");
    let running = workspace.start("list //app:*");
    expect_processes(&user, 2);
    assert!(running.kill().killed());
    expect_no_process(&user, "in the analysis");
}

#[test]
fn output_is_shown_while_the_rule_runs_behind_its_label() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let rule = r#"rule("build", deps = ["//base:build"], caches = ["/c"], run = """
printf one; printf ' line\\n50%%\\r100%%\\nend'
until test -e /c/go; do sleep 0.05; done
""")
"#;
    workspace.file("app/build.star", rule);
    let mut command = workspace.command(&places::binary(), &["build", "//app:build"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("spawn");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("stderr")));
    let mut next = || lines.next().expect("a line").expect("a line");
    let shown = std::iter::repeat_with(&mut next).find(|line| line.starts_with("//app:build | ")).expect("a line");
    assert_eq!((shown.as_str(), next().as_str()), ("//app:build | one line", "//app:build | 100%"));
    // It waits for this: so it was told while the rule ran.
    let cache = std::fs::read_dir(workspace.store().join("caches")).expect("caches").flatten();
    cache.for_each(|folder| std::fs::write(folder.path().join("files/go"), "").expect("go"));
    assert_eq!(next(), "//app:build | end");
    assert!(child.wait().expect("wait").success());
}

#[test]
fn output_without_end_is_kept_in_part() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let rule = "rule('build', deps = ['//base:build'], run = 'yes | head -c 300000000; echo the end')\n";
    workspace.file("app/build.star", rule);
    let built = workspace.run("build //app:build").success().stderr_has("//app:build | (the rest is in its log)\n");
    assert!(built.stderr.len() < 1 << 20, "{} bytes are shown", built.stderr.len());
    let log = workspace.run("log //app:build").success().stdout;
    let end = "\n(the log is cut here)\n";
    assert!(log.ends_with(end) && log.len() == (256 << 20) + end.len(), "{} bytes are kept", log.len());
}
