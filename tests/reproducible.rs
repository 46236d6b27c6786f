//! The same inputs give the same bytes, whoever builds, where, when and with how many hands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::common::examples;
use crate::common::image::fingerprint;
use crate::common::{Layout, User, Workspace, have};
use crate::places;

/// What someone with a strict umask gets from a checkout.
fn close_the_sources(workspace: &Workspace) {
    for entry in walkdir::WalkDir::new(workspace.path("")) {
        let entry = entry.expect("walk");
        let mode = fs::metadata(entry.path()).expect("metadata").permissions().mode() & 0o700;
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).expect("chmod");
    }
}

#[test]
fn two_users_on_two_days_in_two_places_get_the_same_images_and_the_same_bundle() {
    if !have(&["root", "faketime"]) {
        return;
    }
    let here = Workspace::empty(User::plain()).env("TZ", "UTC");
    here.copy(&examples::source(), "");
    here.run("build --jobs 1 //...").success();

    let there = Workspace::empty(User::other()).env("TZ", "Asia/Tokyo").env("LANG", "C").behind(&[
        "/bin/sh",
        "-c",
        "umask 077; exec \"$@\"",
        "sh",
        "/usr/bin/faketime",
        "-f",
        "+400d",
    ]);
    let store = there.everything().join("a store with spaces/deeper");
    let there = there.stored_in(store);
    there.copy(&examples::source(), "some/where/else");
    there.file("some/where/else/tapeout.lock", here.read("tapeout.lock"));
    close_the_sources(&there);
    there.run("build -C some/where/else --locked --jobs 4 //...").success();

    let (mine, yours) = (here.output(""), there.path("some/where/else/tapeout-out"));
    for example in examples::of("") {
        let image = format!("//{}:{}", example.package, example.name);
        let (mine, yours) = [&mine, &yours].map(|output| Layout::open(&example.layout_in(output)).only()).into();
        assert_eq!(mine.config, yours.config, "{image}");
        for (mine, yours) in mine.layers.iter().flatten().zip(yours.layers.iter().flatten()) {
            assert_eq!(mine, yours, "{image}: {}", String::from_utf8_lossy(&mine.path));
        }
    }
    examples::equal(&mine, &yours, "");
}

/// The corners of the digest matrix (the whole of it, for a small workspace, is
/// `places::every_way_to_build_gives_the_same_changesets_and_images`), builder and all. Copied snapshots, by a user with four jobs,
/// are in `airgap`. What comes from outside is in one file.
#[test]
fn the_examples_are_the_same_in_every_corner_of_snapshots_isolation_user_and_jobs() {
    if !have(&["root", "unshare"]) {
        return;
    }
    let first = Workspace::debian();
    first.copy(&examples::source(), "");
    first.run("fetch //... -o inputs").success();
    let inputs = first.path("inputs").display().to_string();
    for (user, prefix, options) in [
        (User::plain(), &places::CONTAINER[..], "--isolation chroot --jobs 1"),
        (User::root(), &[], "--snapshots overlay --jobs 1"),
        (User::root(), &[], "--isolation chroot --jobs 4"),
    ] {
        let workspace = Workspace::empty(user).behind(prefix);
        workspace.copy(&examples::source(), "").file("tapeout.lock", first.read("tapeout.lock"));
        workspace.run(&format!("build --offline --inputs {inputs} {options} //...")).success();
        examples::equal(&workspace.output(""), &examples::output("", "zstd"), "");
    }
}

#[test]
fn the_programs_are_the_same_in_chroot_isolation() {
    if have(&["root"]) {
        same_in_chroot_isolation("programs");
    }
}

#[test]
fn the_languages_are_the_same_in_chroot_isolation() {
    if have(&["root", "registries"]) {
        same_in_chroot_isolation("languages");
    }
}

/// Another example workspace in chroot isolation: its rules ask for `/proc`, and its checks are run as many a user.
fn same_in_chroot_isolation(which: &str) {
    let images: Vec<_> = examples::of(which).collect();
    let labels: String = images.iter().map(|image| format!(" //{}:{}", image.package, image.name)).collect();
    let mut first = Workspace::debian();
    first.limit = Duration::from_secs(900);
    first.copy(&examples::source().join(which), "");
    first.run(&format!("fetch{labels} -o inputs")).success();
    let inputs = first.path("inputs").display().to_string();
    let mut workspace = Workspace::empty(User::root());
    workspace.limit = Duration::from_secs(900);
    workspace.copy(&examples::source().join(which), "").file("tapeout.lock", first.read("tapeout.lock"));
    workspace.run(&format!("--offline build --isolation chroot --jobs 1 --inputs {inputs}{labels}")).success();
    for image in images {
        let digest = |layout: &Path| Layout::open(layout).only().digest;
        let (built, expected) = (image.layout_in(&workspace.output("")), image.layout("zstd"));
        assert_eq!(digest(&built), digest(&expected), "//{}:{}", image.package, image.name);
    }
}

/// A workspace in the builder of busybox alone that uses what could differ: sources with modes and links, owners,
/// devices, hard links, times, rules side by side, every compression, a base, a pod with a volume.
const EVERYTHING: &str = r#"
rule("sources", deps = ["//base:build"], sources = glob(["src/**"]), run = """
mkdir -p /opt/s; cp -a src/. /opt/s/; ls -la --full-time src >/opt/s/listing 2>&1 || ls -la src >/opt/s/listing
""")
rule("owners", deps = ["//base:build"], run = """
mkdir -p /opt/o; cd /opt/o
for name in $(seq 1 40); do echo $name >$name; done
chown 33:33 7; chmod 4711 7; ln 7 seven; mknod null c 1 3; (umask 0; mknod open c 1 5; mkfifo pipe); ln -s 7 link
truncate -s 3000000 sparse; printf end >>sparse
""")
rule("world", deps = ["//base:build"], run = """
mkdir -p /opt/w
{ env | sort; id; hostname; umask; pwd; stat -c '%U %a' / /tmp .; stat -c %Y . /bin/busybox; } >/opt/w/world
""")
tapeout("one/tapeout", deps = [":sources", ":owners"], include = ["/opt/s", "/opt/o"], files = [file("/etc/x", source = "src/b")])
tapeout("two/tapeout", deps = [":world", ":owners"], include = ["/opt/w", "/opt/o/sparse"], paths = ["/bin/busybox"])
image("one", deps = [":one/tapeout"], user = "www-data", labels = {"b": "1", "a": "2"}, env = {"Z": "1", "A": "2"})
image("two", deps = [":two/tapeout", ":one/tapeout"], compression = "gzip")
image("three", base = ":one", deps = [":two/tapeout"], compression = "none")
pod(
    "all",
    containers = [container("one", image = ":one"), container("two", image = ":two", mounts = [mount("data", "/data")])],
    volumes = [volume("data", files = [file("/data", source = "src")])],
)
"#;

/// The sources of [`EVERYTHING`], written in this order.
const SOURCES: [(&str, u32); 5] =
    [("a", 0o644), ("b", 0o755), ("sub/c", 0o644), ("sub/deeper/d", 0o600), ("z \u{e9}", 0o644)];

fn fill(workspace: &Workspace, below: &str, backwards: bool) {
    let mut order = SOURCES.to_vec();
    if backwards {
        order.reverse();
    }
    for (name, mode) in order {
        let path = format!("{below}app/src/{name}");
        workspace.file(&path, format!("source {name}\n").repeat(100));
        fs::set_permissions(workspace.path(&path), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    std::os::unix::fs::symlink("sub/c", workspace.path(&format!("{below}app/src/link"))).expect("symlink");
    workspace.file(&format!("{below}app/build.star"), EVERYTHING);
    workspace.file(&format!("{below}tapeout.toml"), crate::common::workspace::tiny_toml());
}

/// One thing differs at a time, so that what shows is named: then all bytes of all images and of the bundle are
/// compared.
#[test]
fn nothing_but_the_inputs_shows_in_any_byte() {
    if !have(&["root", "busybox", "faketime", "unshare"]) {
        return;
    }
    let plain = || Workspace::empty(User::plain());
    let shell = |script: &str| vec!["/bin/sh".to_string(), "-c".into(), format!("{script}; exec \"$@\""), "sh".into()];
    let behind = |workspace: Workspace, words: Vec<String>| {
        workspace.behind(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let build = |workspace: &Workspace, below: &str, backwards: bool, options: &str| {
        fill(workspace, below, backwards);
        let folder = if below.is_empty() { String::new() } else { format!("-C {below} ") };
        workspace.run(&format!("build {folder}{options} //app:*")).success();
        fingerprint(&workspace.path(&format!("{below}tapeout-out")))
    };
    let expected = build(&plain(), "", false, "--jobs 1");
    assert!(expected.len() > 20, "{expected:#?}");

    let stored = |name: &str| {
        let workspace = plain();
        let store = workspace.everything().join(name);
        workspace.stored_in(store)
    };
    let faked = ["/usr/bin/faketime", "-f", "+400d"].map(String::from).to_vec();
    let elsewhere = ["/usr/bin/unshare", "--uts", "/bin/sh", "-c", "hostname elsewhere; exec \"$@\"", "sh"];
    let axes = [
        ("another user", Workspace::empty(User::other()), "", false, ""),
        ("root", Workspace::empty(User::root()), "", false, ""),
        ("root on a host of another name", Workspace::empty(User::root()).behind(&elsewhere), "", false, ""),
        ("umask", behind(plain(), shell("umask 077")), "", false, ""),
        ("open umask", behind(plain(), shell("umask 0")), "", false, ""),
        ("time zone", plain().env("TZ", "Asia/Tokyo"), "", false, ""),
        ("locale", plain().env("LANG", "tr_TR.UTF-8").env("LC_ALL", "tr_TR.UTF-8"), "", false, ""),
        ("a variable of the caller", plain().env("SOURCE_DATE_EPOCH", "7").env("CFLAGS", "-O9"), "", false, ""),
        ("day", behind(plain(), faked), "", false, ""),
        ("store path", stored("a store/much deeper"), "", false, ""),
        ("workspace path", plain(), "some/where/else/", false, ""),
        ("file order on disk", plain(), "", true, ""),
        ("jobs", plain(), "", false, "--jobs 4"),
        ("copied snapshots", plain(), "", false, "--snapshots copy --jobs 4"),
    ];
    let mut axes = Vec::from(axes);
    if std::env::var_os("TAPEOUT_STATIC_BINARY").is_some() {
        axes.push(("static binary", plain().with_static_binary(), "", false, ""));
    }
    for (name, workspace, below, backwards, options) in axes {
        let found = build(&workspace, below, backwards, options);
        let differs: Vec<_> = expected.keys().filter(|path| found.get(*path) != expected.get(*path)).collect();
        assert!(differs.is_empty() && found.len() == expected.len(), "{name}: {differs:#?}");
    }
}
