//! `ids = "range"`: several real IDs through newuidmap, for users who were given some.

use std::path::Path;
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

/// Programs that want several real IDs at once: what `docs/sandbox.md` says needs `ids`.
const SEVERAL: &str = r#"
rule("build", deps = ["//base:build"], packages = ["apt-utils", "openssh-server", "postgresql", "rsync"], run = """
useradd -m -u 1500 -p '*' alice; mkdir -p /opt/x; echo 1 >/opt/x/a; chown 1234:4321 /opt/x/a; chmod 6755 /opt/x/a
chown postgres: /var/lib/postgresql
mkdir /repository; echo 'deb [trusted=yes] file:/repository ./' >/etc/apt/sources.list
cd /repository; apt-ftparchive packages . >Packages; apt-ftparchive release . >/tmp/Release; mv /tmp/Release .
""")
rule("range/build", deps = [":build"], ids = "range", run = """
rsync -a /opt/x/ /opt/rsync/; cp -a /opt/x /opt/cp; cp -p /opt/x/a /opt/cp-p
mkdir /opt/tar; tar -C /opt/x -cf - . | tar -C /opt/tar -xpf - --numeric-owner
install -o alice -m 700 -d /home/alice/.ssh; mkdir -p -m 700 /root/.ssh; mkdir -p /run/sshd
ssh-keygen -q -A; ssh-keygen -q -N '' -t ed25519 -f /tmp/key
cp /tmp/key.pub /root/.ssh/authorized_keys; install -o alice -m 600 /tmp/key.pub /home/alice/.ssh/authorized_keys
/usr/sbin/sshd -p 2222 -o UsePAM=no -E /tmp/sshd.log
until ssh-keyscan -p 2222 127.0.0.1 2>&1 | grep -q SSH-2.0; do sleep 0.1; done
for user in root alice; do
    ssh -i /tmp/key -p 2222 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null $user@127.0.0.1 id -un 2>/tmp/said ||
        { cat /tmp/said /tmp/sshd.log; exit 1; }
done
su alice -c 'id -u; echo mine >/home/alice/mine'
su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /var/lib/postgresql/data >/dev/null'
su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -D /var/lib/postgresql/data -s -o "-k /tmp -h 127.0.0.1" start'
psql -U postgres -h 127.0.0.1 -tAc 'select 6 * 7' postgres
su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -D /var/lib/postgresql/data -s stop'
apt-get update >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
""")
tapeout("tapeout", deps = [":range/build"], libraries = False,
    include = ["/opt/**", "/home/alice/**", "/var/lib/postgresql/data/PG_VERSION"])
image("web", deps = [":tapeout"])
"#;

#[test]
fn programs_that_need_several_ids_work_with_a_range_and_leave_the_owners_that_root_gives() {
    if !have(&["root", "newuidmap", "newgidmap"]) {
        return;
    }
    let first = Workspace::debian();
    first.file("r/build.star", SEVERAL);
    first.run("fetch //r:web -o inputs").success();
    let mut workspace = Workspace::empty(User::subordinate());
    workspace.limit = Duration::from_secs(540);
    workspace.file("tapeout.toml", first.read("tapeout.toml")).file("tapeout.lock", first.read("tapeout.lock"));
    workspace.file("r/build.star", SEVERAL);
    let inputs = first.path("inputs").display().to_string();
    workspace.run(&format!("build --offline --inputs {inputs} //r:web")).success();
    let log = workspace.run("log //r:range/build").success().stdout;
    let answers = ["root", "alice", "1500", "42"];
    assert_eq!(log.lines().filter(|line| answers.contains(line)).collect::<Vec<_>>(), answers, "{log}");
    let image = Layout::open(&workspace.output("r/web/build_image")).only();
    for path in ["x/a", "rsync/a", "cp/a", "cp-p", "tar/a"] {
        let file = image.file(&format!("opt/{path}"));
        assert_eq!((file.owner().as_str(), file.mode & 0o7777), ("1234:4321", 0o6755), "{path}");
    }
    for path in ["mine", ".ssh/authorized_keys"] {
        assert_eq!(image.file(&format!("home/alice/{path}")).uid, 1500, "{path}");
    }
    let postgres = image.file("var/lib/postgresql/data/PG_VERSION");
    assert!(postgres.uid >= 100 && postgres.mode & 0o777 == 0o600, "{}", postgres.owner());
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
    // Below the folder of the process.
    let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let upper = || below(&tmp).flat_map(|of| below(&of)).any(|scratch| scratch.join("upper/opt/ready").exists());
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
