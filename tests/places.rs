//! The same bytes in every place, however snapshots are made and rules kept apart, whoever builds.

use std::collections::BTreeSet;
use std::fs;

use super::common::{User, Workspace, have};

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
find . ! -type d ! -type p -exec touch -h -d @0 {} +; find . -type d -exec touch -d @0 {} +
tar -cf /side/packed.tar link2 moved a b hard gone
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
