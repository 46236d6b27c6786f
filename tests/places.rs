//! The same bytes in every place, however snapshots are made and rules kept apart, whoever builds.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::containers::Containers;
use super::common::outcome::Running;
use super::common::{Layout, Outcome, User, Workspace, have, places};

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
    built_in(&Workspace::tiny_of(user), arguments)
}

fn built_in(workspace: &Workspace, arguments: &str) -> BTreeSet<String> {
    workspace.file("app/build.star", RULES);
    workspace.run(&format!("build {arguments} //app:fails")).failure(1);
    workspace.run(&format!("build {arguments} //app:web/build_image")).success();
    let changesets = fs::read_dir(workspace.store().join("changesets")).expect("changesets").flatten();
    let mut names: BTreeSet<_> = changesets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let index = fs::read(workspace.output("app/web/build_image/index.json")).expect("index.json");
    names.insert(super::common::image::sha256(&index));
    names
}

/// Makes an ordinary user what they are in a container of their own: root, of one mapped ID.
pub const CONTAINER: [&str; 3] = ["/usr/bin/unshare", "--user", "--map-root-user"];

/// Every way to build there is: (overlay, copy × namespaces, chroot × started by a user, by root × 1 and 4 jobs).
/// Only an overlay without namespaces there is not: `only_root_changes_the_root_and_no_overlay_goes_with_it`.
#[test]
fn every_way_to_build_gives_the_same_changesets_and_images() {
    if !have(&["root", "unshare"]) {
        return;
    }
    let expected = built(User::plain(), "--snapshots overlay --jobs 1");
    for way in ["--snapshots overlay", "--snapshots copy", "--isolation chroot"] {
        for user in [User::plain(), User::root()] {
            for jobs in [1, 4] {
                let arguments = format!("{way} --jobs {jobs}");
                let mut workspace = Workspace::tiny_of(user.clone());
                if way.ends_with("chroot") && user != User::root() {
                    workspace = workspace.behind(&CONTAINER);
                }
                assert_eq!(built_in(&workspace, &arguments), expected, "{user:?} {arguments}");
            }
        }
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
if echo x 2>/dev/null >/dev/full || (: </dev/tty) 2>/dev/null || test -e /proc/1; then exit 1; fi
nc -w 1 127.0.0.1 1 </dev/null 2>/out || true; grep -q 'not supported' /out; rm /out
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

/// Nothing is mounted there: init answers, with what is true of the rule, and with nothing else.
#[test]
fn what_builds_ask_of_proc_is_answered_in_a_changed_root_and_nothing_else_of_it() {
    if !have(&["root", "setpriv"]) {
        return;
    }
    const RULES: &str = r#"
rule("asks/build", deps = ["//base:build"], run = """
test -d /proc/self; test -r /proc/self/maps; test -h /proc/self/exe; test -e /proc/mounts
test "$(readlink /proc/self/exe)" = /bin/busybox; test "$(readlink /proc/$$/exe)" = /bin/busybox
sleep 1000 & other=$!; test "$(readlink /proc/$other/exe)" = /bin/busybox; kill $other
test "$(readlink /proc/self/cwd)" = /workspace/app; test "$(cd /usr; readlink /proc/self/cwd)" = /usr
sh -c 'test "$(cd /proc; exec readlink self)" -gt 0'
grep -q ' /bin/busybox$' /proc/self/maps; grep -q 'stack' /proc/$$/maps
grep -q '^Name:.grep' /proc/self/status; grep -q '^Name:.sh' /proc/$$/status
test "$(cut -d ' ' -f 1 /proc/$$/stat)" = $$; test "$(cat /proc/self/cmdline | tr '\\0' ' ')" = 'cat /proc/self/cmdline '
test "$(cat /proc/self/cgroup)" = 0::/
grep -q ' / /proc rw,' /proc/self/mountinfo; grep -q '^proc /proc proc ' /proc/mounts
(cd /proc; grep -q MemTotal meminfo; cd self; grep -q ' /bin/busybox$' maps; cd /; grep -q MemTotal proc/meminfo)
test "$(echo in | cat /dev/stdin)" = in; test "$(echo out >/dev/stdout)" = out; test "$( (echo err >/dev/stderr) 2>&1)" = err
echo file >/tmp/f; exec 4</tmp/f 5>>/tmp/f; read x </dev/fd/4; test "$x" = file; echo more >>/proc/self/fd/5; echo new >/proc/self/fd/5
test "$(cat /tmp/f)" = new; test "$(echo piped | sh -c 'exec 6<&0; cat /proc/self/fd/6')" = piped; exec 4<&- 5>&-
test "$(cat /proc/sys/kernel/random/uuid)" != "$(cat /proc/sys/kernel/random/uuid)"
# The kernel cuts this name in the middle of a character.
printf '#!/bin/sh\\nread x </proc/self/stat && echo read\\n' >/tmp/äöüäöüäöü; chmod 755 /tmp/äöüäöüäöü; test "$(/tmp/äöüäöüäöü)" = read
# In another root it is that one's.
mkdir -p /tmp/r/bin /tmp/r/lib; cp /bin/busybox /tmp/r/bin; test "$(chroot /tmp/r /bin/busybox readlink /proc/self/exe)" = /bin/busybox

# Nothing of the machine is to be seen, and what isn't in the lists isn't there.
no() { if "$@"; then echo "it can: $*"; exit 1; fi; }
no grep -F 'STORE' /proc/self/maps /proc/self/mountinfo /proc/self/mounts /proc/self/status
test "$(cd /proc; find . -type f -size +0)" = ''
for name in 1/cmdline 1/stat 1/maps OTHER/cmdline OTHER/status self/fd self/mem self/environ self/root self/ns self/fd/7 kcore keys kallsyms cmdline; do
    if cat /proc/$name 2>/dev/null || test -e /proc/$name; then echo "/proc/$name is there"; exit 1; fi
done
no readlink /proc/1/exe; no readlink /proc/OTHER/exe; no readlink /proc/OTHER/cwd; no readlink /proc/self/root
no ls /proc/self/fd; no ls /proc/self/exe/; no /proc/self/exe true
exec 3</proc/meminfo; no sh -c 'echo x >&3'
""")
rule("leaves/build", deps = ["//base:build"], run = """
cat /proc/self/maps /proc/cpuinfo >/dev/null; mkdir -p /proc/x 2>/dev/null || true; rm -f /proc/meminfo 2>/dev/null || true; echo x >/made
""")
"#;
    let clean = Workspace::tiny();
    clean.file("app/build.star", RULES);
    let expected = clean.run("build --json //app:leaves/build").success().json()[0]["digest"].clone();
    for prefix in [&[][..], &["/usr/bin/setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod"]] {
        let workspace = Workspace::tiny_of(User::root()).behind(prefix);
        let rules = RULES.replace("OTHER", &std::process::id().to_string());
        workspace.file("app/build.star", rules.replace("STORE", &workspace.everything().display().to_string()));
        in_a_closed_place(&workspace, "build --isolation chroot //app:asks/build").success();
        let left = in_a_closed_place(&workspace, "build --json --isolation chroot //app:leaves/build").success();
        assert_eq!(left.json()[0]["digest"], expected, "{prefix:?}: {left}");
    }
}

/// There is no user namespace to make root look like the user: the check is the user, wherever the container lets it be.
#[test]
fn the_check_of_an_image_is_its_user_in_a_changed_root() {
    if !have(&["root", "setpriv"]) {
        return;
    }
    const RULES: &str = r#"
rule("made", deps = ["//base:build"], run = "echo s >/closed; chmod 600 /closed; echo r >/shown; mkdir /own; chown 33:33 /own")
tapeout("tapeout", deps = [":made"], include = ["/closed", "/shown", "/own"], paths = ["/bin/busybox", "/bin/sh"], libraries = False)
image("strict", deps = [":tapeout"], user = "www-data", working_dir = "/new", check = """
alias b=/bin/busybox; no() { if "$@"; then echo "it can: $*"; exit 1; fi; }
test "$(b id -u) $(b id -g) $(b id -G)" = '33 33 33'
b cat /shown; no /bin/busybox cat /closed; echo x >/own/x; echo x >x; echo x >/tmp/x; test "$(b stat -c %u:%g /tmp/x /own)" = "$(echo 33:33; echo 33:33)"
b chown 33:33 /tmp/x; no /bin/busybox chown 0 /tmp/x; no /bin/busybox mknod /tmp/null c 1 3
echo n >/dev/null; test "$(b head -c 8 /dev/urandom | b wc -c)" = 8; no /bin/sh -c ': </dev/tty'; test "$(b echo in | b cat /dev/stdin)" = in; b chmod 400 /own/x; exec 4</own/x; no /bin/sh -c 'echo y >/dev/fd/4'
echo said >/dev/stdout; echo said >/dev/stderr
test "$(b readlink /proc/self/exe)" = /bin/busybox; b grep -q ' /bin/busybox$' /proc/self/maps; test "$(b readlink /proc/self/cwd)" = /new
b grep -q '^CapPrm:.0*$' /proc/self/status; no /bin/busybox readlink /proc/1/exe
b sleep 7656 & (b setsid /bin/busybox sleep 7656 &); true
""")
image("lax", deps = [":tapeout"], user = "www-data", check = "/bin/busybox cat /shown; if /bin/busybox cat /closed; then exit 1; fi; echo x >/own/x")
"#;
    let images = ["strict", "lax"];
    let built = |workspace: &Workspace, way: &str| {
        workspace.file("app/build.star", RULES);
        let build = format!("build {way} //app:strict //app:lax");
        if way.is_empty() { workspace.run(&build) } else { in_a_closed_place(workspace, &build) }.success();
        images.map(|image| Layout::open(&workspace.output(&format!("app/{image}/build_image"))).only().digest)
    };
    let expected = built(&Workspace::tiny(), "");
    for prefix in [&[][..], &["/usr/bin/setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod"]] {
        let workspace = Workspace::tiny_of(User::root()).behind(prefix);
        assert_eq!(built(&workspace, "--isolation chroot"), expected, "{prefix:?}");
        let alive = workspace.tool("pgrep", &["-f", "sleep 7656$"]);
        assert!(!alive.succeeded(), "a process of the check is alive: {alive}");
    }
    // Where it may not become somebody else, it is root without any capability.
    let drop = ["/usr/bin/setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"];
    let workspace = Workspace::tiny_of(User::root()).behind(&drop);
    workspace.file("app/build.star", RULES);
    in_a_closed_place(&workspace, "build --isolation chroot //app:lax").success();
}

/// Who has the network asks the machine's name servers, whatever stands at the place of their file; what shows them is in
/// no changeset.
#[test]
fn a_rule_with_the_network_has_the_name_servers_in_a_changed_root_and_behind_a_link() {
    if !have(&["root"]) {
        return;
    }
    const RULES: &str = r#"
rule("file", deps = ["//base:build"], network = True, run = "cat /etc/resolv.conf >/shown")
rule("link", deps = ["//base:build"], run = "ln -sf ../run/systemd/resolve/stub.conf /etc/resolv.conf")
rule("linked", deps = [":link"], network = True, run = "cat /etc/resolv.conf >/shown")
rule("own", deps = ["//base:build"], network = True, run = "rm -f /etc/resolv.conf; echo mine >/etc/resolv.conf")
tapeout("tapeout", deps = [":file"], include = ["/shown"], libraries = False)
tapeout("own/tapeout", deps = [":own"], include = ["/etc/**"], libraries = False)
image("image", deps = [":tapeout"])
image("own/image", deps = [":own/tapeout"])
"#;
    let servers = fs::read("/etc/resolv.conf").expect("/etc/resolv.conf");
    let digests = |workspace: &Workspace, arguments: &str, rules: &[&str]| {
        workspace.file("app/build.star", RULES);
        let digest = |rule| {
            let built = workspace.run(&format!("build --json --allow-network //app:{rule} {arguments} //app:{rule}"));
            built.success().json()[0]["digest"].clone()
        };
        rules.iter().map(digest).collect::<Vec<_>>()
    };
    let (user, root) = (Workspace::tiny(), Workspace::tiny_of(User::root()));
    let expected = digests(&user, "", &["file", "linked"]);
    assert_eq!(digests(&root, "--isolation chroot", &["file", "linked"]), expected);
    let built = |workspace: &Workspace, arguments: &str, rule: &str, image: &str| {
        workspace.run(&format!("build --allow-network //app:{rule} {arguments} //app:{image}")).success();
        Layout::open(&workspace.output(&format!("app/{image}/build_image"))).only()
    };
    for (workspace, arguments) in [(&user, ""), (&root, "--isolation chroot")] {
        assert_eq!(built(workspace, arguments, "file", "image").file("shown").content, servers);
    }
    assert_eq!(built(&root, "--isolation chroot", "own", "own/image").text("etc/resolv.conf"), "mine\n");
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

#[test]
fn what_a_shell_or_a_failed_rule_changes_in_a_copied_snapshot_is_in_no_later_one() {
    let workspace = Workspace::tiny();
    let rule =
        |name: &str, run: &str| format!("rule(\"{name}/build\", deps = [\"//base:build\"], run = \"\"\"{run}\"\"\")\n");
    let spoil = "echo leaked >>/etc/passwd; rm /bin/ls; mkdir /leaked; ln /bin/busybox /linked; chmod 700 /etc";
    workspace.file(
        "app/build.star",
        rule("first", "true")
            + &rule("fails", &format!("{spoil}; exit 3"))
            + &rule("ends", &format!("{spoil}; kill -9 $$")),
    );
    let look = "ls -a /; cd /; find bin etc usr | sort | xargs stat -c '%n %a %Y'; cat /etc/passwd";
    let look = rule("looks", &format!("({look}) >/list"));
    let clean = Workspace::tiny();
    clean.file("app/build.star", &look);
    let digest = |workspace: &Workspace, snapshots: &str| {
        let built = workspace.run(&format!("build --json --snapshots {snapshots} //app:looks/build")).success();
        built.json()[0]["digest"].to_string()
    };
    let expected = digest(&clean, "overlay");
    let spoiled: [&dyn Fn(); 3] = [
        &|| {
            drop(
                workspace
                    .run_words(&["shell", "--snapshots", "copy", "//app:first/build", "--", "/bin/sh", "-c", spoil])
                    .success(),
            )
        },
        &|| drop(workspace.run("build --snapshots copy //app:fails/build").failure(1)),
        &|| drop(workspace.run("build --snapshots copy //app:ends/build").failure(1)),
    ];
    let rules = workspace.read("app/build.star");
    for (round, spoil) in spoiled.into_iter().enumerate() {
        spoil();
        // Another comment is another script, so that it runs.
        workspace.file("app/build.star", format!("{rules}{}", look.replace("(ls", &format!(": {round}; (ls"))));
        assert_eq!(digest(&workspace, "copy"), expected, "round {round}");
    }
}

/// Processes with this command line, but no dead ones.
fn alive(line: &[u8]) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let found = all.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == line));
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The parent of a process.
fn parent(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    status.lines().find_map(|line| line.strip_prefix("PPid:\t")).expect("PPid").to_owned()
}

#[test]
fn an_init_that_is_killed_leaves_nobody_who_could_change_what_the_next_rule_sees() {
    if !have(&["root"]) {
        return;
    }
    let rule = |run: &str| format!("rule(\"killed/build\", deps = [\"//base:build\"], run = \"\"\"{run}\"\"\")\n");
    let sees = "rule(\"sees/build\", deps = [\"//base:build\"], run = \"sleep 1; find /etc /opt | sort >/list\")\n";
    // One that was left alone by its parent, and goes on writing.
    let number = 100_000 + std::process::id();
    let daemon = format!(
        "mkdir -p /opt; (setsid sh -c 'while :; do echo x >>/opt/x; echo y >/etc/y; sleep 0.01; done' &); sleep {number}; true"
    );
    let sleep = format!("sleep\0{number}\0").into_bytes();
    let clean = Workspace::tiny();
    clean.file("app/build.star", sees);
    let expected = clean.run("build --json //app:sees/build").success().json();
    let workspace = Workspace::tiny_of(User::root());
    for nursery in [false, true] {
        workspace
            .file("app/build.star", rule(&format!(": {nursery}; {daemon}")) + &sees.replace("sleep 1", "sleep 1.0"));
        let running = workspace.start("build --isolation chroot //app:killed/build");
        let step = loop {
            if let Some(sleep) = alive(&sleep).first() {
                break parent(sleep);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let init = parent(&step);
        let kill = |pid: &str| {
            let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a number"));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
        };
        if nursery {
            // Without it init goes on; the build is then killed as well.
            kill(&parent(&init));
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert_eq!(alive(&sleep).len(), 1, "init and its step go on");
            running.kill();
        } else {
            kill(&init);
            running.wait(workspace.limit).failure(1).stderr_has("init died");
        }
        let since = std::time::Instant::now();
        while !alive(&sleep).is_empty()
            || !alive(b"sh\0-c\0while :; do echo x >>/opt/x; echo y >/etc/y; sleep 0.01; done\0").is_empty()
        {
            assert!(since.elapsed().as_secs() < 60, "somebody lives on");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let seen = workspace.run("build --json --isolation chroot //app:sees/build").success().json();
        assert_eq!(seen[0]["digest"], expected[0]["digest"]);
    }
}

/// Docker's profile, made of podman's: no namespaces, no mounts.
const CLOSED: &str = r#"(.syscalls |= map(.names -= ["unshare", "mount", "umount", "umount2", "setns", "fsopen", "fsmount", "fsconfig",
    "fspick", "move_mount", "open_tree", "pivot_root", "clone", "clone3"])) | .syscalls += [
    {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
    {"names": ["unshare", "mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]"#;

#[test]
fn in_containers_of_podman_the_bytes_are_the_same() {
    if !have(&["root", "podman", "jq"]) {
        return;
    }
    const RULE: &str = r#"rule("build", deps = ["//base:build"], run = "echo 1 >/x; chown 33:34 /x; mv /usr/bin /usr/moved; echo n >/dev/null")"#;
    let clean = Workspace::tiny();
    clean.file("app/build.star", RULE);
    let expected = clean.run("build --json //app:build").success().json();
    let containers = Containers::new();
    let binary = places::binary();
    let root = places::tiny_root();
    let script = |options: &str, arguments: &str| {
        format!(
            r#"rm -rf place; mkdir -p place/root/usr place/root/etc place/work/app place/store; cd place
            for name in bin lib lib64 sbin; do ln -s usr/$name root/$name; done; mkdir root/proc root/dev root/sys root/run root/tmp
            cp -r {root} builder; cp {binary} tapeout; printf '[builder]\ntag = "tiny"\nfrom = "dir:/w/builder"\n[build]\nepoch = 1767225600\n' >work/tapeout.toml
            echo '{RULE}' >work/app/build.star; jq '{CLOSED}' /usr/share/containers/seccomp.json >closed.json
            podman --cgroup-manager=cgroupfs run --rm --cgroups=disabled --network=none {options} -v /usr:/usr:ro -v "$PWD:/w" \
                -e TAPEOUT_STORE=/w/store -w /w/work --rootfs "$PWD/root" /w/tapeout build --json {arguments} //app:build"#,
            root = root.display(),
            binary = binary.display(),
        )
    };
    let open = containers.podman(&script("", "")).success();
    assert_eq!(open.json()[0]["digest"], expected[0]["digest"], "{open}");
    // What is weaker there is said.
    open.says("/proc is that of the container").says("host name of the container");
    let closed = "--security-opt seccomp=closed.json";
    containers.podman(&script(closed, "")).failure(1).says("--isolation chroot");
    for more in ["--cap-drop mknod", "--cap-add mknod"] {
        let built = containers.podman(&script(&format!("{closed} {more}"), "--isolation chroot")).success();
        assert_eq!(built.json()[0]["digest"], expected[0]["digest"], "{more}: {built}");
        built.says("is no boundary");
    }
}

#[test]
fn inside_a_rule_a_build_works_and_another_owner_is_an_error_that_says_why() {
    let workspace = Workspace::tiny();
    // The binary is linked to libraries, and the builder is busybox alone.
    let told = workspace.tool("ldd", &[&places::binary().display().to_string()]).success().stdout;
    let mut sources = vec![];
    for path in told.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = path.rsplit('/').next().expect("a name");
        workspace.file(&format!("app/lib/{name}"), fs::read(path).expect(path));
        sources.push(format!("lib/{name}"));
    }
    workspace.file("app/tapeout", fs::read(places::binary()).expect("binary"));
    sources.push("tapeout".into());
    let run = |label: &str| {
        format!(
            r#"
set -e; mkdir -p /lib64 /tmp/w/app /tmp/bb/bin /tmp/bb/etc /tmp/bb/tmp /tmp/bb/run /tmp/bb/dev /tmp/bb/proc /tmp/bb/sys; cp lib/ld-* /lib64; cp lib/* /usr/lib; chmod 755 tapeout /lib64/* /usr/lib/*
cp /bin/busybox /tmp/bb/bin; for n in sh cat chown; do ln -s busybox /tmp/bb/bin/$n; done; cp /etc/passwd /etc/group /tmp/bb/etc
cd /tmp/w; printf '[builder]\\ntag = \"in\"\\nfrom = \"dir:/tmp/bb\"\\n' >tapeout.toml
echo 'rule(\"build\", deps = [\"//base:build\"], run = \"echo 1 >/x; chown 0:0 /x\")' >app/build.star
echo 'rule(\"owner/build\", deps = [\"//base:build\"], run = \"echo 1 >/x; chown 33 /x\")' >>app/build.star
TAPEOUT_STORE=/tmp/store /workspace/app/tapeout build //app:{label}"#
        )
    };
    let rule = |name: &str, label: &str| {
        format!(
            "rule(\"{name}/build\", deps = [\"//base:build\"], sources = {sources:?}, run = \"\"\"{}\"\"\")\n",
            run(label)
        )
    };
    workspace.file("app/build.star", rule("plain", "build") + &rule("foreign", "owner/build"));
    workspace.run("build //app:plain/build").success();
    workspace.run("log //app:plain/build").success().says("listens to seccomp already").says("built  //app:build");
    workspace.run("build //app:foreign/build").failure(1);
    workspace.run("log //app:foreign/build").success().says("listens to seccomp already").says("Invalid argument");
}
