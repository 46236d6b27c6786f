//! `ids = "range"`: several real IDs through newuidmap, for users who were given some.

use std::time::{Duration, Instant};

use crate::common::{Layout, User, Workspace, have};

const BUILD: &str = r#"
rule("made", deps = ["//base:build"], run = """
mkdir -p /opt/r/foreign; cd /opt/r
echo one >one; chown 33:34 one; chmod 6755 one; ln -s one link; chown -h 7:8 link; echo plain >plain
chown 5:5 foreign; echo deep >foreign/deep; echo gone >gone; chown 9:9 gone; mknod null c 1 3; chown 3:3 null
""")
rule("range", deps = [":made"], ids = "range", caches = ["/cache"], run = """
cat /proc/self/uid_map | wc -l
cd /opt/r
stat -c '%n %u:%g %a' one link foreign foreign/deep plain
echo more >>plain; chown 0 foreign/deep; rm gone; mv one moved; chown 44:45 plain
echo new >new; chown 1000:1001 new; mkdir -m 1777 sticky; mkdir -m 700 closed; echo x >closed/x; chown -R 5:6 closed
mknod made c 1 3; chown 66:66 made; mkfifo pipe; chown 7:7 pipe; echo x >twin; chown 8:9 twin; chmod 4755 twin; ln twin both; echo x >/cache/x; chown 77:77 /cache/x /tmp/home
su -s /bin/sh www-data -c 'id -u; id -g; echo mine >sticky/mine; ! echo x 2>/dev/null >/opt/r/closed/y; ! mknod sticky/d c 1 3 2>/dev/null'
! chown 70000 new 2>/dev/null
""")
rule("after", deps = [":range"], owners = "seen", caches = ["/cache"], run = "cat /opt/r/closed/x; ls /cache; stat -c %u /opt/r/sticky/mine")
tapeout("tapeout", deps = [":after"], include = ["/opt/r/**"])
image("web", deps = [":tapeout"])
"#;

#[test]
fn with_a_range_files_have_real_owners_and_the_record_is_the_same() {
    if !have(&["root", "busybox", "newuidmap", "newgidmap"]) {
        return;
    }
    let workspace = Workspace::tiny_of(User::subordinate());
    workspace.file("r/build.star", BUILD);
    workspace.run("build //r:web").success();
    let log = |label: &str| workspace.run(&format!("log {label}")).success().stdout;
    assert_eq!(
        log("//r:range"),
        "2\none 33:34 6755\nlink 7:8 777\nforeign 5:5 755\nforeign/deep 0:0 644\nplain 0:0 644\n33\n33\n"
    );
    assert_eq!(log("//r:after"), "x\nx\n33\n");
    let image = Layout::open(&workspace.output("r/web/build_image")).only();
    for (path, owner, mode) in [
        ("moved", "33:34", 0o6755),
        ("link", "7:8", 0o777),
        ("foreign", "5:5", 0o755),
        ("foreign/deep", "0:0", 0o644),
        ("plain", "44:45", 0o644),
        ("new", "1000:1001", 0o644),
        ("sticky", "0:0", 0o1777),
        ("sticky/mine", "33:33", 0o644),
        ("closed", "5:6", 0o700),
        ("closed/x", "5:6", 0o644),
        ("made", "66:66", 0o644),
        ("null", "3:3", 0o644),
        ("pipe", "7:7", 0o644),
        ("both", "8:9", 0o4755),
    ] {
        let file = image.file(&format!("opt/r/{path}"));
        assert_eq!((file.owner().as_str(), file.mode & 0o7777), (owner, mode), "{path}");
    }
    assert_eq!(image.file("opt/r/made").kind, tar::EntryType::Char);
    assert!(!image.has("opt/r/one") && !image.has("opt/r/gone"));
    // Nobody else's file is left in the store.
    let own = workspace.user.uid;
    for entry in walkdir::WalkDir::new(workspace.store()).into_iter().flatten() {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(entry.metadata().expect("metadata").uid(), own, "{}", entry.path().display());
    }
}

#[test]
fn a_rule_that_changes_nothing_with_a_range_has_an_empty_changeset() {
    if !have(&["root", "busybox", "newuidmap", "newgidmap"]) {
        return;
    }
    let workspace = Workspace::tiny_of(User::subordinate());
    let nothing = "rule('same', deps = [':made'], ids = 'range', run = 'cat /opt/r/one >/dev/null')\n\
        rule('none', deps = [':made'], run = 'true')\n";
    workspace.file("r/build.star", format!("{BUILD}{nothing}"));
    let digest = |label: &str| workspace.run(&format!("--json build {label}")).success().json()[0]["digest"].clone();
    assert_eq!(digest("//r:same"), digest("//r:none"));
}

#[test]
fn what_a_killed_rule_left_to_others_is_removed_by_the_next_run() {
    if !have(&["root", "busybox", "newuidmap", "newgidmap"]) {
        return;
    }
    let workspace = Workspace::tiny_of(User::subordinate());
    workspace.file(
        "r/build.star",
        r#"
rule("build", deps = ["//base:build"], ids = "range", run = """
mkdir -p /opt; mkdir -m 1777 /opt/s /tmp/s; echo >/opt/s/a; echo >/tmp/s/b; mkdir -m 700 /opt/s/c; echo >/opt/s/c/d
chown -R 33:33 /opt/s/a /opt/s/c /tmp/s/b /opt/s; echo >/opt/ready; sleep 300
""")
rule("other", deps = ["//base:build"], run = "true")
"#,
    );
    workspace.run("build //r:other").success();
    let running = workspace.start("build //r:build");
    let tmp = workspace.store().join("tmp");
    let since = Instant::now();
    let upper = || std::fs::read_dir(&tmp).expect("tmp").flatten().any(|e| e.path().join("upper/opt/ready").exists());
    while !upper() {
        assert!(since.elapsed() < Duration::from_secs(60), "it never got ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(running.kill().killed());
    assert!(upper(), "nothing was left, so that nothing is tested");
    // All of it ends with the process that was killed, a moment later.
    std::thread::sleep(Duration::from_millis(500));
    workspace.run("build //r:other").success();
    let left: Vec<_> = std::fs::read_dir(&tmp).expect("tmp").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_subordinate_ids_the_error_names_the_file_and_the_command() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("r/build.star", "rule('build', deps = ['//base:build'], ids = 'range', run = 'true')\n");
    let refused = workspace.run("build //r:build").failure(1).stderr_has("/etc/subuid").stderr_has("--add-subuids");
    refused.stderr_has("//r:build").stderr_has("ids = \"range\"");
    let user = "rule('build', deps = ['//base:build'], ids = 'range', user = 'www-data', run = 'true')\n";
    workspace.file("r/build.star", user);
    workspace.run("build //r:build").failure(2).stderr_has("don't go together").stderr_has("r/build.star:1");
}
