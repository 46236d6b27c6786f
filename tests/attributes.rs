//! What a file has besides owner and mode: access control lists, kept or refused, never lost; and calls of other tables.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Layout, User, Workspace, have, places};

/// `attributes.c` as a static program.
fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attributes.c");
    let changed = fs::metadata(&source).expect("attributes.c").mtime();
    let folder = places::once(&format!("attributes-{changed}"), |folder| {
        let out = folder.join("attributes");
        // Below 4 GiB, where a call of 32 bits can name its memory.
        let made = Command::new("gcc").args(["-static", "-no-pie", "-Wall", "-o"]).arg(&out).arg(&source).output();
        let made = made.expect("gcc");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::set_permissions(&out, PermissionsExt::from_mode(0o755)).expect("chmod");
    });
    folder.join("attributes")
}

fn workspace(rules: &str) -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/tool", fs::read(program()).expect("read"));
    let tool =
        r#"rule("tool", deps = ["//base:build"], sources = ["tool"], run = "cp tool /bin/tool; chmod 755 /bin/tool")"#;
    workspace.file("app/build.star", format!("{tool}\n{rules}"));
    workspace
}

/// Owner, group, mask and others, and none by name.
const LISTS: &str = r#"
rule("build", deps = ["//base:build", ":tool"], run = """
mkdir -m 755 -p /opt/shared/old /opt/plain; echo 1 >/opt/masked; chmod 664 /opt/masked
/bin/tool acl /opt/shared default 1:7:-1 4:7:-1 32:0:-1
/bin/tool acl /opt/masked access 1:6:-1 4:6:-1 16:4:-1 32:4:-1
echo 2 >/opt/shared/file; stat -c %a /opt/shared/file /opt/masked
""")
rule("next/build", deps = [":build"], run = """
echo 3 >/opt/shared/later; mkdir /opt/shared/below; chown 33:33 /opt/masked; stat -c %a /opt/shared/later /opt/masked
""")
tapeout("tapeout", deps = [":next/build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
"#;

#[test]
fn an_access_list_that_names_nobody_is_kept_and_holds_in_the_next_rule() {
    if !have(&["gcc", "busybox"]) {
        return;
    }
    let mut digests = vec![];
    for way in ["overlay", "copy"] {
        let workspace = workspace(LISTS);
        workspace.run(&format!("build --snapshots {way} //app:image")).success();
        let log = |label: &str| workspace.run(&format!("log {label}")).success().stdout;
        assert_eq!(log("//app:build"), "660\n644\n", "{way}");
        assert_eq!(log("//app:next/build"), "660\n644\n", "the folder's default holds for what comes later: {way}");
        let image = Layout::open(&workspace.output("app/image/build_image")).only();
        let list = |path: &str, which: &str| image.file(path).xattrs.get(&format!("system.posix_acl_{which}")).cloned();
        let entry = |tag: u8, rights: u8| [tag, 0, rights, 0, 255, 255, 255, 255];
        let expected = |entries: &[(u8, u8)]| {
            let all = entries.iter().flat_map(|(tag, rights)| entry(*tag, *rights));
            Some([2, 0, 0, 0].into_iter().chain(all).collect::<Vec<u8>>())
        };
        let default = expected(&[(1, 7), (4, 7), (32, 0)]);
        assert_eq!(list("opt/shared", "default"), default, "{way}");
        assert_eq!(list("opt/shared/below", "default"), default, "{way}");
        assert_eq!(list("opt/masked", "access"), expected(&[(1, 6), (4, 6), (16, 4), (32, 4)]), "{way}");
        assert_eq!(image.file("opt/masked").owner(), "33:33", "{way}");
        assert_eq!(list("opt/plain", "default"), None, "{way}");
        digests.push(image.digest);
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn an_access_list_with_names_is_an_error_in_the_rule_or_at_its_end() {
    if !have(&["gcc", "busybox"]) {
        return;
    }
    let build = |id: u32| {
        let run = format!("echo 1 >/f; /bin/tool acl /f access 1:6:-1 2:4:{id} 4:4:-1 16:4:-1 32:4:-1");
        let workspace = workspace(&format!("rule('build', deps = ['//base:build', ':tool'], run = '{run}')\n"));
        workspace.run("build //app:build").failure(1)
    };
    build(33).stderr_has("setxattr: Invalid argument");
    build(0).stderr_has("by name: /f").stderr_has("setfacl -b").stderr_has("//app:build");
}

#[test]
fn a_builder_keeps_an_access_list_that_names_nobody_and_refuses_one_that_does() {
    if !have(&["gcc", "busybox", "tar"]) {
        return;
    }
    let workspace = Workspace::empty(crate::common::User::plain());
    let give = |file: &str, entries: &str| {
        let words: Vec<&str> = ["acl", file].into_iter().chain(entries.split(' ')).collect();
        workspace.tool(&program().display().to_string(), &words).success();
    };
    workspace.tool("cp", &["-a", &places::tiny_root().display().to_string(), "root"]).success();
    for path in ["root/etc/list", "root/etc/linked", "root/etc/plain"] {
        workspace.file(path, "x");
        workspace.tool("chmod", &["0640", path]).success();
    }
    give("root/etc/list", "access 1:6:-1 4:6:-1 16:4:-1 32:0:-1");
    workspace.tool("ln", &["-f", "root/etc/list", "root/etc/linked"]).success();
    give("root/var/lib", "default 1:7:-1 4:7:-1 32:0:-1");
    workspace.tool("tar", &["--acls", "--owner=0", "--group=0", "-C", "root", "-cf", "acls.tar", "."]).success();
    workspace.file(
        "app/build.star",
        r#"
rule("build", deps = ["//base:build"], run = "echo more >>/etc/list; echo new >/var/lib/new; stat -c %a /etc/list /var/lib/new")
tapeout("tapeout", deps = [":build"], include = ["/etc/list"], paths = ["/etc/linked", "/etc/plain", "/var/lib/new"])
image("image", deps = [":tapeout"])
"#,
    );
    let mut images = vec![];
    for from in ["dir:root", "tar:acls.tar"] {
        let tag = &from[..3];
        workspace.file("tapeout.toml", format!("[builder]\ntag = \"{tag}\"\nfrom = \"{from}\"\n"));
        for way in ["overlay", "copy"] {
            let store = workspace.everything().join(format!("store-{tag}-{way}"));
            workspace
                .run_words(&["--store", &store.display().to_string(), "build", "--snapshots", way, "//app:image"])
                .success()
                .stderr_has("//app:build | 640\n//app:build | 660\n");
            images.push(Layout::open(&workspace.output("app/image/build_image")).only());
        }
    }
    for image in &images {
        let list = |path: &str| image.file(path).xattrs.get("system.posix_acl_access").map(|list| list[4..].to_vec());
        let entry = |tag: u8, rights: u8| [tag, 0, rights, 0, 255, 255, 255, 255];
        let kept = [entry(1, 6), entry(4, 6), entry(16, 4), entry(32, 0)].concat();
        assert_eq!(list("etc/list"), Some(kept.clone()));
        assert_eq!(list("etc/linked"), Some(kept));
        assert_eq!(list("etc/plain"), None);
        assert_eq!(image.digest, images[0].digest);
    }
    give("root/etc/list", "access 1:6:-1 2:4:33 4:4:-1 16:4:-1 32:4:-1");
    workspace.tool("tar", &["--acls", "-C", "root", "-cf", "acls.tar", "."]).success();
    for from in ["dir:root", "tar:acls.tar"] {
        let refused = workspace.run(&format!("bootstrap named --from {from}")).failure(1);
        refused.stderr_has("gives rights to a user or group by name").stderr_has("/etc/li").stderr_has("--no-acls");
    }
}

#[test]
fn what_the_stores_folder_gives_to_all_below_it_reaches_no_rule() {
    if !have(&["gcc", "busybox"]) {
        return;
    }
    let digest = |listed: bool, way: &str| {
        let workspace = workspace(LISTS);
        if listed {
            fs::create_dir(workspace.store()).expect("create_dir");
            workspace.user.owns(workspace.store());
            let store = workspace.store().display().to_string();
            let list = ["acl", &store, "default", "1:7:-1", "2:7:33", "4:0:-1", "16:7:-1", "32:0:-1"];
            assert!(Command::new(program()).args(list).status().expect("acl").success());
        }
        workspace.run(&format!("build --snapshots {way} //app:image")).success();
        Layout::open(&workspace.output("app/image/build_image")).only().digest
    };
    let expected = digest(false, "overlay");
    assert_eq!(digest(true, "overlay"), expected);
    assert_eq!(digest(true, "copy"), expected);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_call_of_32_bits_is_refused_and_loses_no_owner() {
    if !have(&["gcc", "busybox"]) {
        return;
    }
    let rule = "rule('build', deps = ['//base:build', ':tool'], run = 'echo 1 >/f; /bin/tool chown32 /f')\n";
    let refused = workspace(rule).run("build //app:build").failure(1);
    // A kernel without such calls ends the program.
    assert!(refused.stderr.contains("Function not implemented") || refused.stderr.contains("SEGV"), "{refused}");
}

/// Whatever it makes of its refusals, it neither runs for ever nor tells a success.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_program_of_32_bits_is_named_as_why_a_rule_failed() {
    if !have(&["busybox", "root"]) {
        return;
    }
    for (user, way) in [
        (User::plain(), "--snapshots overlay"),
        (User::plain(), "--snapshots copy"),
        (User::root(), "--isolation chroot"),
    ] {
        let workspace = Workspace::tiny_of(user);
        workspace.file("app/old", places::program_of_32_bits()).file(
            "app/build.star",
            r#"
rule("put", deps = ["//base:build"], sources = ["old"], run = "cp old /opt-old; chmod 755 /opt-old; echo 1 >/f")
rule("last", deps = [":put"], run = "/opt-old; true")
rule("within", deps = [":put"], run = "sh -c '/opt-old; exit 7'; true")
rule("argv", deps = [":put"], run = ["/opt-old"])
rule("slow", deps = [":put"], run = "/opt-old || sleep 100", limits = {"time": 1})
rule("other", deps = [":put"], run = "false")
tapeout("tapeout", deps = [":put"], include = ["/opt-old"], libraries = False)
image("image", deps = [":tapeout"], check = ["/opt-old"])
"#,
        );
        let fails = |rule: &str| workspace.run(&format!("build {way} //app:{rule}")).failure(1);
        for (rule, how) in [
            ("last", "exit code 137"),
            ("within", "exit code 7"),
            ("argv", "signal 9"),
            ("slow", "limit of time"),
            ("image", "the check was ended by signal 9"),
        ] {
            fails(rule).stderr_has(how).stderr_has("a 32-bit program ran: /opt-old").stderr_has("a 64-bit build");
        }
        fails("other").says_not("32-bit");
    }
}
