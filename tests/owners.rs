//! Owners, special bits and odd names come out right in the layer, though only one ID was mapped.

use std::os::unix::ffi::OsStrExt;

use crate::common::image::Image;
use crate::common::{Layout, Workspace, have};

/// Two rules: the second renames, changes, copies up, deletes and replaces what the first one made.
const BUILD: &str = r#"
rule("build", deps = ["//base:build", ":second"])

rule("first", deps = ["//base:build"], run = """
mkdir -p /opt/t/replaced /opt/t/through
cd /opt/t
for file in given renamed changed copied reborn; do
    echo $file >$file
    chown 33:33 $file
done
echo program >setuid; chown 33:33 setuid; chmod 4755 setuid
ln -s given symlink; chown -h 33:33 symlink
ln given hardlink
mkdir empty; chown 33:65534 empty; chmod 1777 empty
mkdir closed; chown 33:33 closed; chmod 0 closed
truncate -s 20971520 sparse; printf end >>sparse
touch $(printf '%255s' '' | tr ' ' n)
touch "$(printf 'caf\\351')"
mknod null c 1 3; chmod 666 null
mkfifo fifo; chown 33:33 fifo
echo deleted >deleted
echo old >replaced/old
echo plain >.wh.plain-looking 2>/dev/null || true
rm -f .wh.plain-looking
""")

rule("second", deps = [":first"], run = """
cd /opt/t
mv renamed new-name
echo more >>changed
chmod 600 copied
rm reborn; echo reborn >reborn
touch through/here
rm deleted
rm -r replaced; mkdir replaced; echo new >replaced/new
""")

tapeout("lower", deps = [":first"], include = ["/opt/t", "/opt/t/**"])
tapeout("whole", deps = [":build"], include = ["/opt/t", "/opt/t/**"])
image("below", deps = [":lower"])
image("flat", deps = [":whole"])
image("above", base = ":below", deps = [":whole"])
image("packed", deps = [":whole"], compression = "gzip")
"#;

const LONG: usize = 255;

fn workspace() -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("files/build.star", BUILD);
    workspace
}

fn check(image: &Image) {
    for (path, content, owner, mode) in [
        ("given", "given\n", "33:33", 0o644),
        ("new-name", "renamed\n", "33:33", 0o644),
        ("changed", "changed\nmore\n", "33:33", 0o644),
        ("copied", "copied\n", "33:33", 0o600),
        ("reborn", "reborn\n", "0:0", 0o644),
        ("setuid", "program\n", "33:33", 0o4755),
        ("replaced/new", "new\n", "0:0", 0o644),
    ] {
        let file = image.file(&format!("opt/t/{path}"));
        let hard_link = file.kind == tar::EntryType::Link;
        let is = (String::from_utf8_lossy(&file.content).into_owned(), file.owner(), file.mode & 0o7777);
        assert!(hard_link || is == (content.into(), owner.into(), mode), "{path} is {is:?}");
        assert_eq!(file.owner(), owner, "{path}");
    }
    let symlink = image.file("opt/t/symlink");
    assert_eq!((symlink.kind, symlink.link.as_deref()), (tar::EntryType::Symlink, Some(&b"given"[..])));
    assert_eq!(symlink.owner(), "33:33");
    let (empty, closed) = (image.file("opt/t/empty"), image.file("opt/t/closed"));
    assert_eq!(
        (empty.kind, empty.owner(), empty.mode & 0o7777),
        (tar::EntryType::Directory, "33:65534".into(), 0o1777)
    );
    assert_eq!((closed.kind, closed.owner(), closed.mode & 0o7777), (tar::EntryType::Directory, "33:33".into(), 0));
    let sparse = image.file("opt/t/sparse");
    assert_eq!(sparse.size, 20 * 1024 * 1024 + 3);
    assert!(sparse.content.ends_with(b"\0\0end"));
    let null = image.file("opt/t/null");
    assert_eq!((null.kind, null.mode & 0o7777, null.owner()), (tar::EntryType::Char, 0o666, "0:0".into()));
    assert_eq!(
        (image.file("opt/t/fifo").kind, image.file("opt/t/fifo").owner()),
        (tar::EntryType::Fifo, "33:33".into())
    );
    assert!(image.has(&format!("opt/t/{}", "n".repeat(LONG))));
    assert!(image.files().contains_key(&b"opt/t/caf\xe9"[..]), "the name that is not UTF-8");
    for gone in ["renamed", "deleted", "replaced/old"] {
        assert!(!image.has(&format!("opt/t/{gone}")), "{gone} is still there");
    }
}

/// The names of one file: one of them holds it, the other links to it.
fn hard_linked(image: &Image) {
    let (one, other) = (image.file("opt/t/given"), image.file("opt/t/hardlink"));
    let linked = match (one.kind, other.kind) {
        (tar::EntryType::Link, _) => one.link.as_deref() == Some(&b"opt/t/hardlink"[..]),
        (_, tar::EntryType::Link) => other.link.as_deref() == Some(&b"opt/t/given"[..]),
        _ => false,
    };
    assert!(linked, "given is {:?}, hardlink is {:?}", one.kind, other.kind);
}

#[test]
fn what_a_dependent_rule_renamed_changed_or_copied_up_keeps_its_owner() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace();
    workspace.run("build //files:flat/build_image").success();
    let image = Layout::open(&workspace.output("files/flat/build_image")).only();
    check(&image);
    hard_linked(&image);
}

/// Overlay refuses to rename a folder of a lower layer (EXDEV), and what a program copies instead loses
/// the owners that it can't see: so the sandbox's init renames it.
#[test]
fn what_lies_in_a_folder_that_a_dependent_rule_renamed_keeps_its_owner() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /opt/old/deep/er /opt/old/closed /opt/taken
echo inside >/opt/old/deep/file
echo hidden >/opt/old/closed/file
ln -s deep/file /opt/old/link
mkfifo /opt/old/fifo
mkdir -p /opt/old/$(printf 'd/%.0s' $(seq 200))
chown -R 33:33 /opt/old
chown -h 7:8 /opt/old/link
chown 9:9 /opt/old/deep/er
mknod /opt/old/null c 1 3
chmod 0 /opt/old/closed
""")
rule("later/build", deps = [":build"], run = """
chown 5:5 /opt/old/deep
mkdir /opt/old/added
mv /opt/old /opt/new
echo more >>/opt/new/deep/file
cat /opt/new/deep/file /opt/new/closed/file
mv /opt/new /opt/newer
mv -T /opt/newer /opt/taken
mv /opt/taken /opt/new
""")
tapeout("tapeout", deps = [":later/build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
"#,
    );
    workspace.run("build //app:image/build_image").success();
    let image = Layout::open(&workspace.output("app/image/build_image")).only();
    for gone in ["opt/old", "opt/newer", "opt/taken"] {
        assert!(!image.has(gone), "{gone} is still there");
    }
    for (path, owner) in [
        ("opt/new", "33:33"),
        ("opt/new/deep", "5:5"),
        ("opt/new/deep/er", "9:9"),
        ("opt/new/deep/file", "33:33"),
        ("opt/new/closed", "33:33"),
        ("opt/new/closed/file", "33:33"),
        ("opt/new/link", "7:8"),
        ("opt/new/fifo", "33:33"),
        ("opt/new/null", "0:0"),
        ("opt/new/added", "0:0"),
        (format!("opt/new/{}d", "d/".repeat(199)).as_str(), "33:33"),
    ] {
        assert_eq!(image.file(path).owner(), owner, "{path}");
    }
    assert_eq!(image.text("opt/new/deep/file"), "inside\nmore\n");
    assert_eq!(image.file("opt/new/closed").mode & 0o7777, 0);
    assert_eq!(image.file("opt/new/null").kind, tar::EntryType::Char);
}

#[test]
fn an_image_on_a_base_removes_what_was_deleted_and_replaced() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace();
    workspace.run("build //files:below/build_image //files:above/build_image").success();
    let below = Layout::open(&workspace.output("files/below/build_image")).only();
    for there in ["deleted", "replaced/old", "renamed"] {
        assert!(below.has(&format!("opt/t/{there}")), "the base has {there}");
    }
    let above = Layout::open(&workspace.output("files/above/build_image")).only();
    assert_eq!(above.layers[..below.layers.len()], below.layers[..], "it stands on the base");
    check(&above);
}

#[test]
fn gnu_tar_and_umoci_see_the_same() {
    if !have(&["busybox", "tar", "zstd", "umoci"]) {
        return;
    }
    let workspace = workspace();
    workspace.run("build //files:flat/build_image //files:packed/build_image").success();
    let layout = workspace.output("files/flat/build_image");
    let image = Layout::open(&layout).only();
    let layers = image.manifest["layers"].as_array().expect("layers");
    let mut listing = String::new();
    for layer in layers {
        let hex = layer["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("digest");
        let blob = layout.join("blobs/sha256").join(hex);
        let script = format!("zstd -dc '{}' | tar --numeric-owner --quoting-style=escape -tvf -", blob.display());
        listing += &workspace.tool("sh", &["-c", &script]).success().stdout;
    }
    for (path, starts, owner) in [
        ("opt/t/given", "", "33/33"),
        ("opt/t/setuid", "-rwsr-xr-x", "33/33"),
        ("opt/t/empty/", "drwxrwxrwt", "33/65534"),
        ("opt/t/null", "crw-rw-rw-", "0/0"),
        ("opt/t/fifo", "prw-r--r--", "33/33"),
        ("opt/t/caf\\351", "-rw-r--r--", "0/0"),
        ("opt/t/symlink", "lrwxrwxrwx", "33/33"),
    ] {
        let line = listing.lines().find(|line| {
            let name = line.split_whitespace().nth(5).unwrap_or_default();
            name == path || line.contains(&format!(" {path} ->")) || line.contains(&format!(" {path} link to"))
        });
        let line = line.unwrap_or_else(|| panic!("no {path} in\n{listing}"));
        assert!(line.starts_with(starts) && line.contains(&format!(" {owner} ")), "{line}");
    }

    let packed = workspace.output("files/packed/build_image");
    let tag = Layout::open(&packed).tags().remove(0);
    workspace
        .tool("umoci", &["unpack", "--rootless", "--image", &format!("{}:{tag}", packed.display()), "bundle"])
        .success();
    let root = workspace.path("bundle/rootfs/opt/t");
    let long = std::ffi::OsStr::from_bytes(&[b'n'; LONG]).to_owned();
    assert!(root.join(long).exists());
    assert!(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9")).exists());
    use std::os::unix::fs::MetadataExt;
    let (one, other) =
        (root.join("given").metadata().expect("given"), root.join("hardlink").metadata().expect("hardlink"));
    assert_eq!(one.ino(), other.ino(), "one file with two names");
}

#[test]
fn owners_by_name_and_file_capabilities_reach_the_layer() {
    let workspace = Workspace::debian();
    workspace.file(
        "caps/build.star",
        r#"
rule("build", deps = ["//base:build"], packages = ["libcap2-bin"], run = """
install -D -m 0755 /bin/true /opt/c/program
setcap cap_net_bind_service=+ep /opt/c/program
install -o www-data -g www-data -m 0640 /dev/null /opt/c/page
install -d -o www-data -g adm -m 2750 /opt/c/logs
""")
rule("later/build", deps = [":build"], run = "cp -a /opt/c/program /opt/c/copy; echo changed >/opt/c/page")
tapeout("tapeout", deps = [":later/build"], include = ["/opt/c/**"])
image("caps", deps = [":tapeout"])
"#,
    );
    workspace.run("build //caps:caps/build_image").success();
    let image = Layout::open(&workspace.output("caps/caps/build_image")).only();
    let program = image.file("opt/c/program");
    let capability = program.xattrs.get("security.capability").expect("security.capability of the program");
    // Version 2 (no user namespace's root in it), effective, bit 10: cap_net_bind_service.
    assert_eq!(capability[..], [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(image.file("opt/c/page").owner(), "33:33");
    assert_eq!(image.file("opt/c/page").content, b"changed\n");
    let logs = image.file("opt/c/logs");
    assert_eq!((logs.owner(), logs.mode & 0o7777), ("33:4".into(), 0o2750));
    // What owns a picked file is in the image's own list of users.
    assert!(image.text("etc/passwd").contains("\nwww-data:x:33:33:"), "{}", image.text("etc/passwd"));
    assert!(image.text("etc/group").contains("\nadm:x:4:"), "{}", image.text("etc/group"));
}

/// A rule that copies by reading owners, by every way that there is to read them.
const SEEN: &str = r#"
rule("made", deps = ["//base:build"], run = """
mkdir -p /opt/o/folder /opt/moved
cd /opt/o
for file in one two folder/three; do echo $file >$file; chown 33:34 $file; done
echo four >four; echo five >five; chown 5:0 five; echo six >six; chown 6:6 six
chown 33:33 folder; chmod 2750 folder
ln -s one link; chown -h 7:8 link; mkfifo pipe; chown 9:9 pipe
mknod null c 1 3; chown 3:3 null
""")
rule("plain", deps = [":made"], run = "cd /opt/o; stat -c '%n %u:%g' one folder link null five four")
rule("seen", deps = [":made"], owners = "seen", run = """
cd /opt/o
stat -c '%n %u:%g %F' one folder link pipe null four
stat -L -c '%n %u:%g' link
echo more >>two; mv two moved; stat -c '%n %u:%g' moved
echo more >>folder/three; cat folder/three >/dev/null; stat -c '%n %u:%g' folder/three
rm five; echo new >five; stat -c '%n %u:%g' five
chown 44:44 six; stat -c '%n %u:%g' six; chown 0 six; stat -c '%n %u:%g' six
echo own >own; chown 55:55 own; exec 5<own; stat -L -c '%u:%g' /proc/self/fd/5
echo tmp >/tmp/t; chown 66:66 /tmp/t; cp -p /tmp/t t
mv folder /opt/moved/folder; stat -c '%n %u:%g' /opt/moved/folder /opt/moved/folder/three
find /opt -user 33 | sort
cp -a /opt /copied
mkdir /unpacked; tar -C /opt -cf - . | tar -C /unpacked -xf -
test "$(stat -c %u:%g /run)" = 0:0
""")
rule("user", deps = [":seen"], owners = "seen", user = "www-data", run = """
cd /opt/o; id -u; stat -c '%n %u:%g' . one four own /workspace/seen; echo >mine; stat -c '%n %u:%g' mine
""")
tapeout("tapeout", deps = [":user"], include = ["/opt/**", "/copied/**", "/unpacked/**"])
image("web", deps = [":tapeout"])
"#;

#[test]
fn a_rule_that_asks_for_it_sees_recorded_owners_and_copies_keep_them() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("seen/build.star", SEEN);
    workspace.run("build //seen:plain //seen:web").success();
    let log = |label: &str| workspace.run(&format!("log {label}")).success().stdout;
    assert_eq!(log("//seen:plain"), "one 0:0\nfolder 0:0\nlink 0:0\nnull 0:0\nfive 0:0\nfour 0:0\n");
    let seen = log("//seen:seen");
    let expected = "one 33:34 regular file\nfolder 33:33 directory\nlink 7:8 symbolic link\npipe 9:9 fifo\n\
        null 3:3 character special file\nfour 0:0 regular file\nlink 33:34\nmoved 33:34\nfolder/three 33:34\nfive 0:0\n\
        six 44:44\nsix 0:44\n55:55\n/opt/moved/folder 33:33\n/opt/moved/folder/three 33:34\n\
        /opt/moved/folder\n/opt/moved/folder/three\n/opt/o/moved\n/opt/o/one\n";
    assert_eq!(seen, expected);
    let user = "33\n. 0:0\none 33:34\nfour 0:0\nown 55:55\n/workspace/seen 0:0\nmine 33:33\n";
    assert_eq!(log("//seen:user"), user);
    let image = Layout::open(&workspace.output("seen/web/build_image")).only();
    for (path, owner) in [
        ("o/one", "33:34"),
        ("o/moved", "33:34"),
        ("o/link", "7:8"),
        ("o/pipe", "9:9"),
        ("o/null", "3:3"),
        ("o/six", "0:44"),
        ("o/own", "55:55"),
        ("o/t", "66:66"),
        ("moved/folder", "33:33"),
        ("moved/folder/three", "33:34"),
    ] {
        for at in ["opt", "copied", "unpacked"] {
            // busybox's tar gives links to nobody.
            let owner = if (at, path) == ("unpacked", "o/link") { "0:0" } else { owner };
            let file = image.file(&format!("{at}/{path}"));
            assert_eq!(file.owner(), owner, "{at}/{path}");
            assert_eq!(file.kind, image.file(&format!("opt/{path}")).kind, "{at}/{path}");
        }
    }
    assert_eq!(image.file("opt/o/mine").owner(), "33:33");
}
