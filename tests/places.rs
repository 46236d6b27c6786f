//! The same bytes in every place, however snapshots are made and rules kept apart, whoever builds.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::outcome::Running;
use super::common::{Outcome, User, Workspace, have, places};

/// What overlay file systems and copies do differently, if they are let.
const RULES: &str = r#"
rule("first", deps = ["//base:build"], run = """
mkdir -p /opt/d/deep/in /opt/e; echo 1 >/opt/d/one; echo 2 >/opt/d/deep/two; chown 33:33 /opt/d/one; chown -R 7:8 /opt/d/deep
echo linked >/opt/a; ln /opt/a /opt/b; chown 5:5 /opt/a
mkdir /opt/gone; echo x >/opt/gone/x; echo y >/opt/gone/y; echo s >/opt/file
ln -s nowhere /opt/link; chown -h 9:9 /opt/link; mkfifo /opt/pipe; chown 4:4 /opt/pipe; mknod /opt/null c 1 3
chmod 4755 /opt/file; mkdir -p /opt/sub/closed; echo c >/opt/sub/closed/c; chmod 000 /opt/sub/closed
""")
rule("side", deps = ["//base:build"], run = "mkdir /side; echo s >/side/s")
rule("second", deps = [":first", ":side"], run = """
mv /opt/d /opt/moved; echo more >>/opt/b; rm -r /opt/gone; echo file >/opt/gone
rm -r /opt/e; mkdir /opt/e; echo new >/opt/e/new; chown 12 /opt/file; echo a >>/opt/file
mv /opt/link /opt/link2; mv /opt/pipe /opt/pipe2; mv /opt/null /opt/null2
ln /opt/moved/one /opt/hard; chmod 700 /opt/sub
dd if=/dev/zero of=/opt/sparse bs=1 count=1 seek=5000000 2>/dev/null
touch /opt/a; touch -d @0 /opt/moved/deep/two /tmp/x; echo r >/run/r
""")
rule("third/build", deps = [":second"], run = """
test ! -e /tmp/x; test ! -e /run/r
cd /opt; find . -type f | sort | grep -v '^./sub' >/list; xargs stat -c '%n %a %u %s %h %Y' </list >/stats; rm /list
find link2 moved a b hard gone ! -type d | sort | xargs tar -cf /side/packed.tar
mv moved again; cp -p again/one copy; rm a; rm -r sub; mkdir -p sub/closed; echo c >sub/closed/c
""")
rule("fails", deps = [":second"], run = "rm -r /opt/moved /bin/ls; echo x >/etc/passwd; echo y >/opt/b; false")
tapeout("tapeout", deps = [":third/build"], include = ["/opt/**", "/side/**", "/stats"], paths = ["/bin/busybox"])
image("web", deps = [":tapeout"], check = ["/bin/busybox", "test", "-e", "/opt/again/deep/two"])
"#;

/// Builds it all in one way: what each changeset is called.
fn built(user: User, arguments: &str) -> BTreeSet<String> {
    let workspace = Workspace::tiny_of(user);
    workspace.file("app/build.star", RULES);
    workspace.run(&format!("build {arguments} //app:fails")).failure(1);
    workspace.run(&format!("build {arguments} //app:web/build_image")).success();
    let changesets = fs::read_dir(workspace.store().join("changesets")).expect("changesets").flatten();
    let mut names: BTreeSet<_> = changesets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let index = fs::read(workspace.output("app/web/build_image/index.json")).expect("index.json");
    names.insert(super::common::image::sha256(&index));
    names
}

#[test]
fn snapshots_are_the_same_stacked_and_copied_for_all_users_and_jobs() {
    let expected = built(User::plain(), "--snapshots overlay --jobs 1");
    let mut ways = vec![(User::plain(), "--snapshots overlay --jobs 4"), (User::plain(), "--snapshots copy --jobs 1")];
    ways.push((User::plain(), "--snapshots copy --jobs 4"));
    if have(&["root"]) {
        ways.push((User::root(), "--snapshots overlay --jobs 1"));
        ways.push((User::root(), "--snapshots copy --jobs 4"));
    }
    for (user, arguments) in ways {
        assert_eq!(built(user.clone(), arguments), expected, "{user:?} {arguments}");
    }
}

#[test]
fn a_copied_snapshot_is_told_once_and_costs_what_a_rule_changes() {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", RULES);
    let told = workspace.run("build --snapshots copy //app:third/build").success();
    assert_eq!(told.stderr.matches("snapshots are copied here").count(), 1, "{told}");
    let tree = workspace.store().join("trees/0/root");
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(tree.join(path)).expect(path).ino()
    };
    let before = inode("bin/busybox");
    workspace.file(
        "app/other/build.star",
        r#"rule("build", deps = ["//base:build"], run = "test ! -e /opt/a; test ! -e /side")"#,
    );
    workspace.run("build --snapshots copy //app/other:build").success();
    assert_eq!(inode("bin/busybox"), before, "what stays isn't copied again");
    assert!(!tree.join("side").exists() && !tree.join("opt/a").exists());
    // In doubt it is made anew.
    fs::remove_file(workspace.store().join("trees/0/record")).expect("record");
    workspace
        .file("app/other/build.star", r#"rule("build", deps = ["//base:build"], run = "echo again; test -e /bin/ls")"#);
    fs::remove_file(tree.join("bin/ls")).expect("remove");
    workspace.run("build --snapshots copy //app/other:build").success();
}

#[test]
fn more_changesets_than_the_kernel_stacks_are_squashed() {
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
[rule("r%d" % n, deps = [":r%d" % (n - 1) if n else "//base:build"], run = "mkdir -p /x; echo %d >/x/last; echo %d >/x/%d" % (n, n, n)) for n in range(600)]
rule("all/build", deps = [":r599"], run = "test $(ls /x | wc -l) = 601; test $(cat /x/last) = 599; test $(cat /x/17) = 17; ls /x | sort >/list")
"#,
    );
    let stacked = workspace.run("build --json --snapshots overlay //app:all/build").success().json();
    assert!(fs::read_dir(workspace.store().join("squashed")).expect("squashed").count() > 0);
    assert!(stacked[0]["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{stacked:#}");
}

/// What refuses namespaces as Docker's default profile does: `unshare`, `setns`, the mount calls, and
/// `clone` with any of their flags.
fn refuses_namespaces(command: &mut Command) {
    use tapeout::sys::seccomp::{self, Action, Rule, When};
    let refuse = |call| Rule { call, when: When::Always, action: Action::Errno(libc::EPERM) };
    let mut rules = vec![Rule { call: libc::SYS_clone3, when: When::Always, action: Action::Errno(libc::ENOSYS) }];
    rules.extend([libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount, libc::SYS_umount2].map(refuse));
    rules.extend([libc::SYS_pivot_root, libc::SYS_fsopen, libc::SYS_open_tree, libc::SYS_move_mount].map(refuse));
    // A filter has no "any of these": each flag by itself.
    for flag in 17..32 {
        let namespace = 0x7E02_0000 & (1u32 << flag);
        if namespace != 0 {
            let when = When::Is(0, namespace, namespace);
            rules.push(Rule { call: libc::SYS_clone, when, action: Action::Errno(libc::EPERM) });
        }
    }
    let program = seccomp::program(&rules, 0x3fff_ffff);
    let install = move || {
        nix::sys::prctl::set_no_new_privs()?;
        seccomp::filter(&program).map_err(Into::into)
    };
    #[expect(unsafe_code, reason = "it allocates nothing: two system calls between fork and execve")]
    // SAFETY: as the reason says; the filter was made before.
    unsafe {
        command.pre_exec(install);
    }
}

/// Builds in that place.
fn in_a_closed_place(workspace: &Workspace, arguments: &str) -> Outcome {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let mut command = workspace.command(&places::binary(), &words);
    refuses_namespaces(&mut command);
    Running::start(&mut command, format!("tapeout {arguments}")).wait(workspace.limit)
}

#[test]
fn where_namespaces_are_refused_the_error_names_the_way_and_it_gives_the_same() {
    if !have(&["root", "setpriv"]) {
        return;
    }
    let expected = built(User::plain(), "--snapshots overlay");
    for prefix in [&[][..], &["/usr/bin/setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod"]] {
        let workspace = Workspace::tiny_of(User::root()).behind(prefix);
        workspace.file("app/build.star", RULES);
        let none = in_a_closed_place(&workspace, "build //app:first").failure(1);
        assert!(none.stderr.contains("--isolation chroot"), "{none}");
        let built = in_a_closed_place(&workspace, "build --isolation chroot --jobs 4 //app:web/build_image").success();
        assert!(built.stderr.contains("is no boundary"), "{built}");
        let again = in_a_closed_place(&workspace, "build --json --isolation chroot //app:web/build_image").success();
        assert!(again.stderr.contains("is no boundary"), "also when all is cached: {again}");
        assert!(again.json()[0]["weakened"].to_string().contains("is no boundary"), "{again}");
        let changesets = fs::read_dir(workspace.store().join("changesets")).expect("changesets").flatten();
        for name in changesets.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            assert!(expected.contains(&name), "{prefix:?}: {name} is none of {expected:?}");
        }
        let index = fs::read(workspace.output("app/web/build_image/index.json")).expect("index.json");
        assert!(expected.contains(&super::common::image::sha256(&index)), "{prefix:?}");
    }
}

/// The finding of this name in what `doctor --json` printed.
fn finding(examined: &serde_json::Value, name: &str) -> serde_json::Value {
    let all = examined["findings"].as_array().expect("findings");
    all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}: {examined:#}")).clone()
}

#[test]
fn doctor_says_who_refuses_namespaces_and_what_mends_it() {
    let user = Workspace::tiny();
    let refused = in_a_closed_place(&user, "doctor --offline").failure(1);
    assert!(refused.stdout.contains("missing  user namespaces"), "{refused}");
    for said in ["seccomp profile", "administrator: ", "seccomp=unconfined"] {
        assert!(refused.stdout.contains(said), "{refused}");
    }
    refused.stderr_has("nothing can be built here");
    if !have(&["root"]) {
        return;
    }
    let root = Workspace::tiny_of(User::root());
    let refused = in_a_closed_place(&root, "doctor --offline --json").failure(1);
    let way = finding(&refused.json(), "--isolation chroot");
    assert!(
        way["state"] == "weak" && way["user"].as_str().is_some_and(|u| u.contains("--isolation chroot")),
        "{way:#}"
    );
    let chosen = in_a_closed_place(&root, "doctor --offline --json --isolation chroot").success().json();
    assert!(chosen["can_build"] == true, "{chosen:#}");
    let way = finding(&chosen, "--isolation chroot");
    assert!(way["meaning"].as_str().is_some_and(|words| words.contains("no boundary")), "{way:#}");
}

#[test]
fn under_a_masked_proc_rules_see_the_container_s_and_doctor_says_so() {
    if !have(&["root", "unshare", "setpriv"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", RULES);
    let User { uid, gid, .. } = workspace.user;
    let run = |arguments: &str| {
        // What container engines lay over it.
        let script = format!(
            "set -e; for name in kcore keys timer_list; do test ! -e /proc/$name || mount --bind /dev/null /proc/$name; done
             mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
             export TAPEOUT_STORE=\"$1\"; exec setpriv --reuid {uid} --regid {gid} --clear-groups \"$2\" {arguments}"
        );
        let mut command = Command::new("unshare");
        let (store, binary) = (workspace.store().display().to_string(), places::binary().display().to_string());
        command.args(["--mount", "sh", "-c", &script, "sh", &store, &binary]).current_dir(workspace.path(""));
        Running::start(&mut command, arguments.to_owned()).wait(workspace.limit).success()
    };
    let examined = run("doctor --offline --json").json();
    let proc = finding(&examined, "/proc");
    assert!(proc["state"] == "weak" && examined["can_build"] == true, "{examined:#}");
    assert!(proc["administrator"].as_str().is_some_and(|c| c.contains("unmask=ALL")), "{proc:#}");
    let built = run("build //app:web/build_image");
    assert!(built.stderr.contains("/proc is that of the container around us"), "{built}");
    let changesets = fs::read_dir(workspace.store().join("changesets")).expect("changesets").flatten();
    let expected = self::built(User::plain(), "--snapshots overlay");
    for name in changesets.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        assert!(expected.contains(&name), "{name} is none of {expected:?}");
    }
}

#[test]
fn doctor_says_that_we_are_root_without_the_right_to_map_it() {
    if !have(&["root", "setpriv"]) {
        return;
    }
    let drop = ["/usr/bin/setpriv", "--bounding-set=-setfcap", "--inh-caps=-setfcap"];
    let root = Workspace::tiny_of(User::root()).behind(&drop);
    let namespaces = finding(&root.run("doctor --offline --json").failure(1).json(), "user namespaces");
    assert!(namespaces["why"][1].as_str().is_some_and(|why| why.contains("CAP_SETFCAP")), "{namespaces:#}");
    assert!(namespaces["administrator"].as_str().is_some_and(|c| c.contains("--cap-add SETFCAP")), "{namespaces:#}");
}

#[test]
fn doctor_knows_the_file_system_of_the_store_and_the_room_on_it() {
    if !have(&["root", "unshare", "setpriv"]) {
        return;
    }
    let examined = |mount: &str| {
        let workspace = Workspace::tiny();
        let script = format!(
            "set -e; mkdir -p \"$1\"; {mount}; chmod 777 \"$1\" || true; ulimit -n 512
             exec setpriv --reuid {0} --regid {0} --clear-groups \"$2\" doctor --offline --json",
            workspace.user.uid
        );
        let mut command = Command::new("unshare");
        let (store, binary) = (workspace.store().display().to_string(), places::binary().display().to_string());
        command.args(["--mount", "sh", "-c", &script, "sh", &store, &binary]).current_dir(workspace.path(""));
        command.env("TAPEOUT_STORE", &store);
        Running::start(&mut command, mount.to_owned()).wait(workspace.limit)
    };
    let tiny = examined("mount -t tmpfs -o size=8m none \"$1\"").failure(1).json();
    assert_eq!(finding(&tiny, "room")["state"], "missing", "{tiny:#}");
    assert!(finding(&tiny, "store")["meaning"].as_str().is_some_and(|words| words.contains("on tmpfs")), "{tiny:#}");
    assert_eq!(finding(&tiny, "open files")["state"], "weak", "{tiny:#}");
    let bare = examined("mount -t ramfs none \"$1\"").json();
    assert!(finding(&bare, "overlay")["why"][0].as_str().is_some_and(|why| why.contains("user.*")), "{bare:#}");
    let read_only = examined("mount -t tmpfs -o size=8m none \"$1\"; mount -o remount,ro \"$1\"").failure(1).json();
    assert_eq!(finding(&read_only, "store")["state"], "missing", "{read_only:#}");
    assert_eq!(finding(&read_only, "user namespaces")["state"], "good", "{read_only:#}");
}

#[test]
fn a_changed_root_has_devices_no_network_and_leaves_no_process() {
    if !have(&["root", "setpriv"]) {
        return;
    }
    const RULE: &str = r#"
rule("devices/build", deps = ["//base:build"], run = """
echo gone >/dev/null; test -z "$(cat /dev/null)"
test "$(head -c 3 /dev/zero | od -An -tx1 | tr -d ' ')" = 000000
test "$(head -c 8 /dev/urandom | wc -c)" = 8
! echo x 2>/dev/null >/dev/full
! (: </dev/tty) 2>/dev/null
! test -e /proc/self
! nc -w 1 127.0.0.1 1 </dev/null 2>/out; grep -q 'not supported' /out; rm /out
chown 33 /etc/passwd; chown 0 /etc/passwd
sleep 7654 & (setsid sleep 7654 &) ; true
""")
rule("other/build", deps = ["//base:build"], user = "www-data", run = "true")
"#;
    for prefix in [&[][..], &["/usr/bin/setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod"]] {
        let workspace = Workspace::tiny_of(User::root()).behind(prefix);
        workspace.file("app/build.star", RULE);
        in_a_closed_place(&workspace, "build --isolation chroot //app:devices/build").success();
        let alive = workspace.tool("pgrep", &["-f", "^sleep 7654$"]);
        assert!(!alive.succeeded(), "a process of the rule is alive: {alive}");
        let refused = in_a_closed_place(&workspace, "build --isolation chroot //app:other/build").failure(2);
        assert!(refused.stderr.contains("can't run a rule as user 33"), "{refused}");
    }
}

#[test]
fn only_root_changes_the_root_and_no_overlay_goes_with_it() {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", RULES);
    if !nix::unistd::geteuid().is_root() || have(&["root"]) {
        workspace.run("build --isolation chroot //app:first").failure(2).stderr_has("CAP_SYS_CHROOT");
    }
    workspace.run("build --isolation chroot --snapshots overlay //app:first").failure(2).stderr_has("no overlay");
}

/// Builds with the store on a file system that `mount` puts there, as an ordinary user: what each
/// changeset is called, and what was said.
fn on_another_file_system(mount: &str) -> (BTreeSet<String>, String) {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", RULES);
    let User { uid, gid, .. } = workspace.user;
    let store = workspace.store().display().to_string();
    // `$1` is the store, `$2` the binary.
    let script = format!(
        "set -e; mkdir -p \"$1\"; {mount}; chown {uid}:{gid} \"$1\"; chmod 700 \"$1\"
         export TAPEOUT_STORE=\"$1\"; setpriv --reuid {uid} --regid {gid} --clear-groups \"$2\" build //app:web/build_image
         ls \"$1/changesets\""
    );
    let mut command = Command::new("unshare");
    let binary = places::binary().display().to_string();
    command.args(["--mount", "sh", "-c", &script, "sh", &store, &binary]).current_dir(workspace.path(""));
    let done = Running::start(&mut command, mount.to_owned()).wait(workspace.limit).success();
    (done.stdout.lines().map(str::to_owned).collect(), done.stderr)
}

#[test]
fn a_store_anywhere_gives_the_same() {
    if !have(&["root", "unshare", "setpriv"]) {
        return;
    }
    let expected = built(User::plain(), "--snapshots overlay");
    for (mount, copied) in [
        ("mount -t tmpfs none \"$1\"", false),
        ("mount -t ramfs none \"$1\"", true),
        (
            "mount -t tmpfs none \"$1\"; mkdir \"$1/a\" \"$1/b\" \"$1/c\"
             mount -t overlay none -o lowerdir=\"$1/a\",upperdir=\"$1/b\",workdir=\"$1/c\" \"$1\"",
            true,
        ),
    ] {
        let (changesets, said) = on_another_file_system(mount);
        assert_eq!(said.contains("snapshots are copied here"), copied, "{mount}: {said}");
        for name in changesets {
            assert!(expected.contains(&name), "{mount}: {name} is none of {expected:?}");
        }
    }
}

/// Starts a command under somebody's seccomp listener, who refuses overlay file systems to it, as a
/// kernel does that has none for users, and lets all else pass.
fn under_a_listener(command: &mut Command, limit: std::time::Duration) -> Outcome {
    use tapeout::sys::process;
    use tapeout::sys::seccomp::{self, Action, Rule, When};
    let asked = [libc::SYS_fsopen, libc::SYS_mount];
    let rules = asked.map(|call| Rule { call, when: When::Always, action: Action::Notify });
    let program = seccomp::program(&rules, 0x3fff_ffff);
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let install = move || {
        nix::sys::prctl::set_no_new_privs()?;
        let listener = seccomp::filter_with_listener(&program)?;
        process::send_descriptor(&theirs, listener.as_fd()).map_err(Into::into)
    };
    #[expect(unsafe_code, reason = "it allocates next to nothing between fork and execve, in a copy of one thread")]
    // SAFETY: three system calls on what was made before.
    unsafe {
        command.pre_exec(install);
    }
    let supervisor = std::thread::spawn(move || {
        let Ok(Some((_, Some(listener)))) = process::receive_descriptor(&ours) else { return };
        // It ends when nobody is left under the filter.
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE).is_ok() {
            let events = fds[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                return;
            }
            let Ok(Some(call)) = seccomp::receive(listener.as_fd()) else { continue };
            let kind = call.arguments[if call.call == libc::SYS_fsopen { 0 } else { 2 }];
            match process::read_string(call.thread, kind) {
                Ok(name) if name == b"overlay" => {
                    seccomp::reply(listener.as_fd(), call.id, Err(nix::errno::Errno::EPERM));
                }
                _ => seccomp::proceed(listener.as_fd(), call.id),
            }
        }
    });
    let outcome = Running::start(command, "tapeout under a listener".to_owned()).wait(limit);
    supervisor.join().expect("the supervisor");
    outcome
}

#[test]
fn under_a_listener_and_without_an_overlay_rules_run_and_another_owner_is_an_error() {
    if !have(&["root"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
rule("plain/build", deps = ["//base:build"], run = "echo 1 >/made; chown 0:0 /made; mv /usr/bin /usr/moved")
rule("owner/build", deps = [":plain/build"], run = "chown 33 /made")
"#,
    );
    let expected = workspace.run("build --json //app:plain/build").success().json();
    let alone = Workspace::tiny();
    alone.file("app/build.star", workspace.read("app/build.star"));
    let build = |label: &str| {
        let mut command = alone.command(&places::binary(), &["build", "--json", label]);
        under_a_listener(&mut command, alone.limit)
    };
    let built = build("//app:plain/build").success();
    assert_eq!(built.json()[0]["digest"], expected[0]["digest"], "{built}");
    assert_eq!(expected[0]["weakened"].as_array().map(Vec::len), Some(0), "{expected:#}");
    for said in ["snapshots are copied here", "listens to seccomp already"] {
        assert!(built.stderr.contains(said), "{built}");
        assert!(built.json()[0]["weakened"].to_string().contains(said), "{built}");
    }
    build("//app:owner/build").failure(1).stderr_has("Invalid argument");
}

#[test]
fn owners_that_a_rule_sees_are_those_of_a_copied_snapshot_too() {
    let rules = r#"
rule("first", deps = ["//base:build"], run = """
mkdir /o; echo 1 >/o/a; echo 2 >/o/b; chown 33:34 /o/a; chown 7 /o/b; mkdir /o/d; chown 5:6 /o/d; echo 3 >/o/d/e
""")
rule("second/build", deps = [":first"], owners = "seen", run = """
cd /o; stat -c '%n %u:%g' * >/list; mv a moved; echo more >>moved; echo new >b.new; mv b.new b; mv d away; touch -d @0 moved
stat -c '%n %u:%g' * away/* >>/list; cp -a moved copy; stat -c '%n %u:%g' copy >>/list
""")
"#;
    let lists = ["overlay", "copy"].map(|snapshots| {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", rules);
        let arguments = format!("build --json --snapshots {snapshots} //app:second/build");
        let digest = workspace.run(&arguments).success().json()[0]["digest"].to_string();
        let hex = digest.trim_matches('"').trim_start_matches("sha256:").to_owned();
        let list = fs::read_to_string(workspace.store().join("changesets").join(hex).join("files/list"));
        (digest, list.expect("list"))
    });
    assert!(lists[0].1.contains("a 33:34\n") && lists[0].1.contains("away 5:6\n"), "{lists:?}");
    assert_eq!(lists[0], lists[1]);
}
