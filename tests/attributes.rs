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
    workspace_of(User::plain(), rules)
}

fn workspace_of(user: User, rules: &str) -> Workspace {
    let workspace = Workspace::tiny_of(user);
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

/// Users and groups by name: set, changed, handed down to what is made in a folder, moved, copied up, linked, cut by
/// chmod, taken away; each list is read again by this rule and the next.
const NAMED: &str = r#"
rule("build", deps = ["//base:build", ":tool"], run = """
mkdir -p /opt/team; cd /opt; echo 1 >one; chmod 640 one; echo 2 >two; echo 3 >gone
/bin/tool acl one access 1:6:-1 2:4:33 4:4:-1 8:6:4294967294 8:1:5 16:6:-1 32:0:-1
/bin/tool acl one access 1:6:-1 2:4:33 2:0:0 4:4:-1 8:6:4294967294 16:6:-1 32:0:-1
/bin/tool acl two access 1:6:-1 2:6:1000 4:4:-1 16:6:-1 32:0:-1; ln two linked; mv two moved; chmod 600 moved
/bin/tool acl gone access 1:6:-1 2:6:1000 4:4:-1 16:6:-1 32:0:-1
/bin/tool acl gone access 1:6:-1 4:4:-1 32:0:-1
/bin/tool acl team default 1:7:-1 2:5:33 4:5:-1 16:7:-1 32:0:-1
echo 4 >team/file; mkdir team/below; echo 5 >team/below/file; chown 33:33 team/file
for file in one linked gone team/file team/below/file; do /bin/tool acl-of $file access; done
/bin/tool acl-of team/below default
""")
rule("next/build", deps = [":build"], run = """
cd /opt; echo more >>one; echo 6 >team/later; mv team/below moved-below; chmod g-w one
for file in one linked team/later moved-below/file; do /bin/tool acl-of $file access; done
/bin/tool acl-of moved-below default
""")
tapeout("tapeout", deps = [":next/build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
"#;

#[test]
fn an_access_list_with_names_has_them_in_every_rule_and_in_the_image() {
    if !have(&["root", "gcc", "busybox"]) {
        return;
    }
    let (one, linked, handed_down) = (
        "1:6:-1 2:4:33 2:0:0 4:4:-1 8:6:-2 16:6:-1 32:0:-1",
        "1:6:-1 2:6:1000 4:4:-1 16:0:-1 32:0:-1",
        "1:6:-1 2:5:33 4:5:-1 16:4:-1 32:0:-1",
    );
    // The kernel takes from what is handed down what the umask and the call don't give.
    let (file, default) = (handed_down.replace("16:4", "16:6"), "1:7:-1 2:5:33 4:5:-1 16:7:-1 32:0:-1");
    let mut digests = vec![];
    for (user, way) in [
        (User::plain(), "--snapshots overlay"),
        (User::plain(), "--snapshots copy"),
        (User::root(), "--snapshots overlay"),
        (User::root(), "--isolation chroot"),
    ] {
        let workspace = workspace_of(user, NAMED);
        workspace.run(&format!("build {way} //app:image")).success();
        let log = |label: &str| workspace.run(&format!("log {label}")).success().stdout;
        let first = format!("{one}\n{linked}\nNo data available\n{file}\n{file}\n{default}\n");
        assert_eq!(log("//app:build"), first, "{way}");
        let cut = one.replace("16:6", "16:4");
        assert_eq!(log("//app:next/build"), format!("{cut}\n{linked}\n{file}\n{file}\n{default}\n"), "{way}");

        let image = Layout::open(&workspace.output("app/image/build_image")).only();
        let list = |path: &str, which: &str| {
            let list = image.file(path).xattrs.get(&format!("system.posix_acl_{which}"))?.clone();
            let entry = |e: &[u8]| format!("{}:{}:{}", e[0], e[2], i32::from_le_bytes(e[4..8].try_into().expect("4")));
            Some(list[4..].chunks(8).map(entry).collect::<Vec<_>>().join(" "))
        };
        for (path, which, expected) in [
            ("opt/one", "access", Some(cut.as_str())),
            ("opt/linked", "access", Some(linked)),
            ("opt/moved", "access", Some(linked)),
            ("opt/gone", "access", None),
            ("opt/team", "default", Some(default)),
            ("opt/team", "access", None),
            ("opt/team/file", "access", Some(&file)),
            ("opt/team/later", "access", Some(&file)),
            ("opt/moved-below", "default", Some(default)),
            ("opt/moved-below/file", "access", Some(&file)),
        ] {
            assert_eq!(list(path, which).as_deref(), expected, "{path} {which}: {way}");
        }
        assert_eq!(image.file("opt/team/file").owner(), "33:33", "{way}");
        digests.push(image.digest);
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

/// Where IDs are real, the kernel takes new lists as they are, and those of the rules below are shown.
const RANGE: &str = r#"
rule("build", deps = ["//base:build", ":tool"], run = """
mkdir -p /opt/team; cd /opt; echo 1 >one; /bin/tool acl one access 1:6:-1 2:4:33 4:4:-1 16:6:-1 32:0:-1
/bin/tool acl team default 1:7:-1 2:5:33 4:5:-1 16:7:-1 32:0:-1
""")
rule("range/build", deps = [":build"], ids = "range", run = """
cd /opt; echo 2 >new; /bin/tool acl new access 1:6:-1 4:4:-1 8:6:1500 16:6:-1 32:0:-1; echo 3 >team/file; echo more >>one
for file in one new team/file; do /bin/tool acl-of $file access; done
""")
rule("next/build", deps = [":range/build"], run = """
cd /opt; echo more >>new; for file in one new team/file; do /bin/tool acl-of $file access; done
""")
"#;

#[test]
fn an_access_list_with_names_is_the_same_where_ids_are_real() {
    if !have(&["root", "gcc", "busybox", "newuidmap"]) {
        return;
    }
    let workspace = workspace_of(User::subordinate(), RANGE);
    workspace.run("build //app:next/build").success();
    let lists = "1:6:-1 2:4:33 4:4:-1 16:6:-1 32:0:-1\n1:6:-1 4:4:-1 8:6:1500 16:6:-1 32:0:-1\n1:6:-1 2:5:33 4:5:-1 16:6:-1 32:0:-1\n";
    for rule in ["//app:range/build", "//app:next/build"] {
        assert_eq!(workspace.run(&format!("log {rule}")).success().stdout, lists, "{rule}");
    }
}

#[test]
fn an_access_list_that_no_kernel_takes_is_refused_as_it_would() {
    if !have(&["gcc", "busybox"]) {
        return;
    }
    // No mask; an entry of nobody; rights that there are none; in no order.
    for wrong in [
        "1:6:-1 2:4:33 4:4:-1 32:4:-1",
        "1:6:-1 2:4:-1 4:4:-1 16:4:-1 32:4:-1",
        "1:6:-1 2:9:33 4:4:-1 16:4:-1 32:4:-1",
        "2:4:33 1:6:-1 4:4:-1 16:4:-1 32:4:-1",
    ] {
        let run = format!("echo 1 >/f; /bin/tool acl /f access {wrong}");
        let workspace = workspace(&format!("rule('build', deps = ['//base:build', ':tool'], run = '{run}')\n"));
        workspace.run("build //app:build").failure(1).stderr_has("setxattr: Invalid argument");
    }
}

#[test]
fn a_builder_keeps_access_lists() {
    if !have(&["gcc", "busybox", "tar", "/usr/bin/python3"]) {
        return;
    }
    let workspace = Workspace::empty(User::plain());
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
    // With names: as an attribute, as text with numbers; without numbers, and from a folder of ours, where the kernel
    // says of no ID but our own whose it is, nobody knows who is meant.
    let text = |list: &str| {
        let script = r#"
import sys, tarfile
with tarfile.open("named.tar", "w", format=tarfile.PAX_FORMAT) as out, tarfile.open("acls.tar") as base:
    for item in base:
        item.pax_headers = {}
        if item.name == "./etc/plain":
            item.pax_headers["SCHILY.acl.access"] = sys.argv[1]
        out.addfile(item, base.extractfile(item) if item.isreg() else None)
"#;
        workspace.tool("/usr/bin/python3", &["-c", script, list]).success();
    };
    text("user::rw-,user:www-data:r--:33,group::---,group:5:-w-,mask::rw-,other::---");
    workspace.file("tapeout.toml", "[builder]\ntag = \"named\"\nfrom = \"tar:named.tar\"\n");
    for way in ["overlay", "copy"] {
        let store = workspace.everything().join(format!("store-named-{way}"));
        workspace
            .run_words(&["--store", &store.display().to_string(), "build", "--snapshots", way, "//app:image"])
            .success();
        let image = Layout::open(&workspace.output("app/image/build_image")).only();
        let list = &image.file("etc/plain").xattrs["system.posix_acl_access"];
        let named: Vec<_> =
            list[4..].chunks(8).filter(|e| [2, 8].contains(&e[0])).map(|e| (e[0], e[2], e[4])).collect();
        assert_eq!(named, [(2, 4, 33), (8, 2, 5)], "{way}");
    }
    text("user::rw-,user:somebody:r--,group::---,mask::rw-,other::---");
    workspace
        .run("bootstrap unknown --from tar:named.tar")
        .failure(1)
        .stderr_has("somebody")
        .stderr_has("--numeric-owner");
    give("root/etc/list", "access 1:6:-1 2:4:33 4:4:-1 16:4:-1 32:4:-1");
    workspace.run("bootstrap folder --from dir:root").failure(1).stderr_has("/etc/li").stderr_has("not mapped");
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
