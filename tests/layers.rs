//! What a tapeout rule may say, how layers are made of it, and what an image says of itself.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use crate::common::image::Image;
use crate::common::{Layout, Outcome, Workspace, have, needs};

/// A workspace of one package with this build file.
fn workspace(build: &str) -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", build);
    workspace
}

fn image(workspace: &Workspace, name: &str) -> Image {
    Layout::open(&workspace.output(&format!("app/{name}/build_image"))).only()
}

/// The paths of all layers but the joint point's.
fn picked(image: &Image) -> Vec<String> {
    let all = image.layers[..image.layers.len() - 1].iter().flatten();
    all.filter(|entry| entry.kind != tar::EntryType::Directory)
        .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
        .collect()
}

const MAKE: &str = r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /opt/stage/bin /opt/stage/share/doc /opt/keys
cd /opt/stage
printf '#!/bin/sh\necho tool\n' >bin/tool; chmod 755 bin/tool
echo page >share/page; echo notes >share/doc/notes; echo a >share/a.tmp
echo key >/opt/keys/key; chmod 600 /opt/keys/key
""")
"#;

#[test]
fn what_was_picked_goes_where_the_rule_says_and_belongs_to_whom_it_says() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(&format!(
        r#"{MAKE}
tapeout(
    "tapeout",
    deps = [":build"],
    include = ["/opt/stage", "/opt/keys/key"],
    exclude = ["**/*.tmp"],
    paths = ["/etc/group"],
    strip_prefix = "/opt/stage",
    prefix = "/srv",
    rename = {{"/opt/stage/bin/tool": "/usr/bin/renamed", "/opt/keys": "/etc/keys"}},
    owner = "www-data",
    modes = {{"/etc/keys/*": 0o640, "/srv/share/**": "0444"}},
    files = [
        file("/etc/app.conf", content = "port 1\n", owner = "daemon", mode = 0o600),
        file("/srv/from-source", source = "text"),
        file("/srv/link", target = "share/page"),
        file("/srv/empty", kind = "folder", group = "daemon"),
    ],
)
image("app", deps = [":tapeout"], exclude = ["/srv/share/doc"])
"#
    ));
    workspace.file("app/text", "a source\n");
    workspace.run("build //app:app").success();
    let image = image(&workspace, "app");
    assert_eq!(
        picked(&image),
        [
            "etc/app.conf",
            "etc/keys/key",
            "srv/etc/group",
            "srv/from-source",
            "srv/link",
            "srv/share/page",
            "usr/bin/renamed"
        ]
    );
    let said = |path: &str| {
        let entry = image.file(path);
        format!("{} {:o}", entry.owner(), entry.mode & 0o7777)
    };
    for (path, expected) in [
        ("usr/bin/renamed", "33:33 755"),
        ("etc/keys/key", "33:33 640"),
        ("srv/share/page", "33:33 444"),
        ("etc/app.conf", "1:0 600"),
        ("srv/from-source", "0:0 644"),
        ("srv/empty", "0:1 755"),
    ] {
        assert_eq!(said(path), expected, "{path}");
    }
    assert!(!image.has("srv/share/doc"), "the image's exclude takes a folder with all that is in it");
    assert_eq!(image.file("srv/link").link.as_deref(), Some(&b"share/page"[..]));
    for (uid, name) in [(1, "daemon"), (33, "www-data")] {
        assert!(image.text("etc/passwd").contains(&format!("{name}:x:{uid}:")), "who owns a file has a name");
    }
}

#[test]
fn every_field_of_an_image_is_as_the_build_file_has_it() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(&format!(
        r#"{MAKE}
parameter("release", type = "string", default = "0.1")
tapeout("tapeout", deps = [":build"], include = ["/opt/stage/bin/tool"], paths = ["/bin/busybox", "/bin/sh"])
image(
    "app",
    deps = [":tapeout"],
    entrypoint = ["/opt/stage/bin/tool", "--serve"],
    cmd = ["--port", "80"],
    env = {{"B": "2", "A": "1"}},
    user = "www-data",
    working_dir = "/opt/stage",
    ports = [80, "53/udp"],
    volumes = ["/var/lib/app"],
    stop_signal = "SIGINT",
    labels = {{"org.example.tier": "web"}},
    annotations = {{"org.example.note": "hi"}},
    check = ["/opt/stage/bin/tool"],
    version = lambda p: p["release"] + ".7",
)
"#
    ));
    workspace.run("build --parameter //app:release=1.2 //app:app").success();
    let layout = Layout::open(&workspace.output("app/app/build_image"));
    assert_eq!(layout.tags(), ["1.2.7"]);
    let image = layout.only();
    let expected = serde_json::json!({
        "Entrypoint": ["/opt/stage/bin/tool", "--serve"],
        "Cmd": ["--port", "80"],
        "Env": ["A=1", "B=2"],
        "User": "33:33",
        "WorkingDir": "/opt/stage",
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
        "Volumes": {"/var/lib/app": {}},
        "StopSignal": "SIGINT",
        "Labels": {"org.example.tier": "web"},
    });
    assert_eq!(image.config["config"], expected);
    assert_eq!(image.config["created"], "2026-01-01T00:00:00Z");
    assert_eq!(image.config["os"], "linux");
    let history: Vec<_> = (image.config["history"].as_array().expect("history").iter())
        .map(|step| format!("{} {}", step["created_by"].as_str().unwrap(), step["created"].as_str().unwrap()))
        .collect();
    assert_eq!(history, ["//app:tapeout 2026-01-01T00:00:00Z", "//base:tapeout 2026-01-01T00:00:00Z"]);
    let annotations = serde_json::json!({
        "org.example.note": "hi",
        "org.opencontainers.image.created": "2026-01-01T00:00:00Z",
        "org.opencontainers.image.title": "app",
        "org.opencontainers.image.version": "1.2.7",
    });
    assert_eq!(image.manifest["annotations"], annotations);
    assert!(image.layers.iter().flatten().all(|entry| entry.mtime == 1767225600), "all times are the epoch");
}

#[test]
fn what_an_image_starts_must_be_in_it_before_anything_is_written() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(&format!(
        r#"{MAKE}
parameter("program", type = "string")
tapeout("tapeout", deps = [":build"], include = ["/opt/stage"], paths = ["/bin/busybox", "/bin/sh"])
image("app", deps = [":tapeout"], entrypoint = lambda p: [p["program"]])
"#
    ));
    let with = |program: &str| {
        workspace.run_words(&["build", "--parameter", &format!("//app:program={program}"), "//app:app"])
    };
    with("/usr/bin/tool")
        .failure(1)
        .stderr_has("entrypoint \"/usr/bin/tool\" is not in the image")
        .stderr_has("did you mean \"/opt/stage/bin/tool\"?")
        .stderr_has("app/build.star");
    assert!(!workspace.output("app/app").exists() || !workspace.output("app/app/build_image").exists());
    with("/opt/stage/share/page").failure(1).stderr_has("can't be executed").stderr_has("0o755");
    with("sh").success();
}

/// The manifest's media types and the sizes of its layers.
fn layers(workspace: &Workspace, name: &str) -> Vec<(String, u64)> {
    let manifest = image(workspace, name).manifest;
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers
        .map(|layer| {
            let kind = layer["mediaType"].as_str().unwrap().trim_start_matches("application/vnd.oci.image.layer.v1.");
            (kind.to_string(), layer["size"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn layers_are_compressed_as_asked_and_hold_the_same() {
    if !have(&["busybox"]) {
        return;
    }
    let forms = ["zstd", "zstd:1", "zstd:19", "gzip", "gzip:1", "gzip:12", "none"];
    let images: String = forms
        .iter()
        .map(|form| format!("image(\"{}\", deps = [\":tapeout\"], compression = \"{form}\")\n", form.replace(':', "-")))
        .collect();
    let workspace = workspace(&format!(
        "{MAKE}tapeout(\"tapeout\", deps = [\":build\"], include = [\"/opt/stage\"], paths = [\"/bin/busybox\"])\n\
         {images}image(\"single\", deps = [\":tapeout\"], layers = \"single\")\n"
    ));
    workspace.run("build //app:*").success();
    let of = |form: &str| layers(&workspace, &form.replace(':', "-"));
    let size = |form: &str| of(form).iter().map(|(_, size)| size).sum::<u64>();
    for (form, kind) in [("zstd", "tar+zstd"), ("zstd:19", "tar+zstd"), ("gzip:12", "tar+gzip"), ("none", "tar")] {
        assert!(of(form).iter().all(|(found, _)| found == kind), "{form}: {:?}", of(form));
    }
    assert!(size("zstd:19") < size("zstd") && size("zstd") < size("zstd:1"), "a level counts");
    assert!(size("gzip:12") < size("gzip") && size("gzip") < size("gzip:1") && size("gzip:1") < size("none"));
    let plain = image(&workspace, "none");
    for form in forms {
        let other = image(&workspace, &form.replace(':', "-"));
        assert_eq!(other.config["rootfs"], plain.config["rootfs"], "{form}: the diff IDs");
    }
    let single = image(&workspace, "single");
    assert_eq!((single.layers.len(), plain.layers.len()), (1, 2));
    assert_eq!(single.files(), plain.files());
    assert_eq!(single.config["history"][0]["created_by"], "//app:single/build_image");

    let bad = "tapeout(\"t\")\nimage(\"bad\", deps = [\":t\"], compression = \"gzip:13\", stop_signal = \"SIGNAL\")\n";
    workspace.file("bad/build.star", bad);
    workspace.run("build //bad:bad").failure(2).stderr_has("gzip:12").stderr_has("not a signal: \"SIGNAL\"");
}

/// A file that is a block of its own, and one that isn't.
const BIG: &str = r#"
rule("build", deps = ["//base:build"], sources = ["word"], run = """
mkdir /big
cp word /big
seq 1 700000 >/big/numbers
seq 5 600000 >/big/more
""")
tapeout("tapeout", deps = [":build"], include = ["/big"])
image("gzip", deps = [":tapeout"], compression = "gzip")
image("zstd", deps = [":tapeout"])
"#;

/// Other people's gzip and zstd read what is made of several members or frames.
#[test]
fn a_large_layer_is_one_file_for_other_tools_and_tar() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(BIG);
    workspace.file("app/word", "a word");
    workspace.run("build //app:*").success();
    for tool in ["gzip", "zstd"].into_iter().filter(|tool| needs::find(tool).is_some()) {
        let layer = image(&workspace, tool).manifest["layers"][0]["digest"].as_str().unwrap()[7..].to_string();
        let blob = workspace.output(&format!("app/{tool}/build_image/blobs/sha256")).join(layer);
        let script = format!("{tool} -t <{0} && {tool} -dc <{0} | tar -xO big/more | tail -n 1", blob.display());
        let said = Command::new("sh").args(["-c", &script]).output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "600000\n", "{}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn a_layer_that_takes_a_large_file_over_is_the_one_that_compresses_it() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(BIG);
    workspace.file("app/word", "a word");
    workspace.run("build //app:*").success();
    workspace.file("app/word", "another one, which moves all that follows it in the layer".repeat(99));
    workspace.run("build //app:*").success();
    let digests = |workspace: &Workspace| ["gzip", "zstd"].map(|name| image(workspace, name).digest);
    let taken_over = digests(&workspace);
    let elsewhere = workspace.everything().join("another store");
    let workspace = workspace.stored_in(elsewhere);
    std::fs::remove_dir_all(workspace.output("app")).unwrap();
    workspace.run("build //app:*").success();
    assert_eq!(digests(&workspace), taken_over);
}

#[test]
fn a_file_of_holes_is_read_and_unpacked_again_whatever_its_layer_packs_to() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(
        r#"
rule("build", deps = ["//base:build"], run = "echo begin >/disk; truncate -s 300M /disk; echo end >>/disk")
tapeout("tapeout", deps = [":build"], include = ["/disk"])
image("app", deps = [":tapeout"])
"#,
    );
    workspace.run("build //app:app").success();
    let size = 300 << 20;
    let listed = workspace.run("image ls //app:app").success();
    assert!(listed.stdout.contains("/disk"), "{}", listed.stdout);
    workspace.run("export //app:app -o app.tar --format docker-archive").success();
    workspace.run("image unpack //app:app root").success();
    let disk = std::fs::File::open(workspace.path("root/disk")).unwrap();
    let ends = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        disk.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!((ends(0, 7), ends(size - 1, 5)), (b"begin\n\0".to_vec(), b"\0end\n".to_vec()));
    let data = disk.metadata().unwrap();
    assert_eq!(data.len(), size + 4);
    assert!(data.blocks() * 512 < size / 10, "it has no holes");
}

/// The whole chain of images: what a base left out by its `exclude` is not there for what stands on it.
#[test]
fn an_image_on_a_base_has_the_difference_alone_and_knows_what_the_base_left_out() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(&format!(
        r#"{MAKE}
rule("more", deps = [":build"], run = "echo more >/opt/more; rm /opt/stage/share/a.tmp")
tapeout("lower", deps = [":build"], include = ["/opt/stage"], paths = ["/bin/busybox", "/bin/sh"])
tapeout("upper", deps = [":more"], include = ["/opt/stage", "/opt/more"])
tapeout("top", deps = [":more"], files = [file("/top", content = "top\n")])
image("one", deps = [":lower"], exclude = ["/opt/stage/share/page"], entrypoint = ["/opt/stage/bin/tool"])
image("two", base = ":one", deps = [":upper"], entrypoint = ["/opt/stage/bin/tool"])
image("three", base = ":two", deps = [":top"], entrypoint = ["/opt/stage/bin/tool"])
image("same", base = ":two", deps = [":upper"])
"#
    ));
    workspace.run("build --jobs 4 //app:*").success();
    let [one, two, three, same] = ["one", "two", "three", "same"].map(|name| image(&workspace, name));
    assert!(one.has("opt/stage/share/a.tmp") && !one.has("opt/stage/share/page"));
    assert_eq!(two.layers[..one.layers.len()], one.layers[..], "it stands on the base");
    assert_eq!(two.text("opt/stage/share/page"), "page\n", "the base doesn't have it, so this layer does");
    assert!(!two.has("opt/stage/share/a.tmp"), "what a later rule removed is gone");
    let own: Vec<_> =
        two.layers[one.layers.len()..].iter().flatten().map(|e| String::from_utf8_lossy(&e.path)).collect();
    assert!(!own.iter().any(|path| path.ends_with("bin/tool") || path.ends_with("busybox")), "{own:?}");
    assert_eq!(three.layers[..two.layers.len()], two.layers[..]);
    assert_eq!(three.text("top"), "top\n");
    assert_eq!(same.layers, two.layers, "no layer where nothing changed");
}

const TWO_IMAGES: &str = r#"
rule("tools", deps = ["//base:build"], run = "mkdir -p /opt/t; echo tools >/opt/t/tools")
rule("one/build", deps = [":tools"], run = "echo one >/opt/one")
rule("two/build", deps = [":tools"], run = "echo two >/opt/two")
tapeout("one/tapeout", deps = [":one/build"], include = ["/opt/one", "/opt/t"], paths = ["/bin/busybox"])
tapeout("two/tapeout", deps = [":two/build"], include = ["/opt/two", "/opt/t"], paths = ["/bin/busybox"])
image("one", deps = [":one/tapeout"], entrypoint = ["/bin/busybox"], user = "www-data")
image("two", deps = [":two/tapeout"], entrypoint = ["/bin/busybox"])
pod("both", containers = [container("one", image = ":one"), container("two", image = ":two")])
"#;

fn times(outcome: &Outcome, line: &str) -> usize {
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    text.lines().filter(|found| found.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(line)).count()
}

/// "Unfortunately our build system cannot build multiple images in one-pass because we use //base:tapeout as a
/// joint point", said the system that this one descends from.
#[test]
fn two_images_and_a_pod_are_one_pass_that_runs_what_they_share_once() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(TWO_IMAGES);
    workspace.file("base/build.star", "rule(\"build\", run = \"mkdir /opt; echo base >/opt/base\")\ntapeout(\"tapeout\", deps = [\":build\"], reverse_deps = [])\n");
    let outcome = workspace.run("build --jobs 2 //app:one //app:two //app:both").success();
    for (line, expected) in [
        ("built //base:build", 1),
        ("built //app:tools", 1),
        ("built //app:one/build", 1),
        ("built //app:two/build", 1),
        ("picked //base:tapeout for //app:one/build_image", 1),
        ("picked //base:tapeout for //app:two/build_image", 1),
        ("image //app:one/build_image", 1),
        ("image //app:two/build_image", 1),
        ("wrote //app:both/build_pod", 1),
    ] {
        assert_eq!(times(&outcome, line), expected, "{line}\n{}{}", outcome.stdout, outcome.stderr);
    }
    let [one, two] = ["one", "two"].map(|name| image(&workspace, name));
    assert!(one.has("opt/one") && !one.has("opt/two") && two.has("opt/two") && !two.has("opt/one"));
    assert!(one.text("etc/passwd").contains("www-data") && !two.text("etc/passwd").contains("www-data"));
    let pod = Layout::open(&workspace.output("app/both/build_pod/images"));
    let mut digests: Vec<_> = pod.images().into_iter().map(|image| image.digest).collect();
    digests.sort();
    let mut expected = vec![one.digest, two.digest];
    expected.sort();
    assert_eq!(digests, expected, "the pod has the very images");
}

/// A blob of the output is never one of the store's files, and one that was spoilt is not taken over.
#[test]
fn the_output_shares_nothing_with_the_store_and_is_mended() {
    use std::os::unix::fs::MetadataExt;
    if !have(&["busybox"]) {
        return;
    }
    let build = |text: &str| {
        format!(
            "rule(\"a\", deps = [\"//base:build\"], run = \"echo a >/a\")\nrule(\"b\", deps = [\"//base:build\"], run = \"echo {text} >/b\")\n\
             tapeout(\"t/a\", deps = [\":a\"], include = [\"/a\"])\ntapeout(\"t/b\", deps = [\":b\"], include = [\"/b\"])\n\
             image(\"app\", deps = [\":t/a\", \":t/b\"])\n"
        )
    };
    let workspace = workspace(&build("one"));
    workspace.run("build //app:app").success();
    let blobs = workspace.output("app/app/build_image/blobs/sha256");
    let first = image(&workspace, "app");
    let digest_of =
        |image: &Image, at: usize| image.manifest["layers"][at]["digest"].as_str().unwrap()[7..].to_string();
    for blob in std::fs::read_dir(&blobs).expect("blobs").flatten() {
        let meta = blob.metadata().expect("metadata");
        assert_eq!((meta.nlink(), meta.mode() & 0o7777), (1, 0o644), "{}", blob.path().display());
    }
    // Somebody wrote to a layer that stays, in the output.
    let kept = blobs.join(digest_of(&first, 0));
    std::fs::write(&kept, "spoilt").expect("write");
    workspace.file("app/build.star", build("two"));
    workspace.run("build //app:app").success();
    let second = image(&workspace, "app");
    assert_eq!(digest_of(&second, 0), digest_of(&first, 0));
    assert_eq!(second.text("b"), "two\n");
    assert_eq!(std::fs::read_dir(&blobs).expect("blobs").count(), 2 + second.layers.len(), "nothing of the old image");
    for blob in std::fs::read_dir(&blobs).expect("blobs").flatten() {
        assert_eq!(blob.metadata().expect("metadata").nlink(), 1, "{}", blob.path().display());
    }
}

/// In a Debian builder: real packages, real programs.
const DEBIAN: &str = r#"
rule("broken/build", deps = ["//base:build"], run = """
cp /bin/bash /usr/local/bin/broken
rm /lib/x86_64-linux-gnu/libtinfo.so.6*
printf '#!/usr/bin/env perl\nprint "hi";\n' >/usr/local/bin/script; chmod 755 /usr/local/bin/script
""")
rule("script/build", deps = ["//base:build"], run = """
printf '#!/usr/bin/env perl\nprint "from perl\\n";\n' >/usr/local/bin/script; chmod 755 /usr/local/bin/script
""")
tapeout("broken/tapeout", deps = [":broken/build"], include = ["/usr/local/bin/broken"])
tapeout("script/tapeout", deps = [":script/build"], include = ["/usr/local/bin/script"])
tapeout("owned/tapeout", deps = ["//base:build"], packages = ["login", "bash"])
image("broken", deps = [":broken/tapeout"])
image("script", deps = [":script/tapeout"], entrypoint = ["/usr/local/bin/script"], check = ["/usr/local/bin/script"])
image("owned", deps = [":owned/tapeout"], entrypoint = ["/bin/login"])
"#;

#[test]
fn what_an_image_starts_gets_its_interpreter_wherever_it_lies() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(
        r##"
tapeout("tapeout", deps = ["//base:build"], files = [
    file("/app/lib/python3.11/run.py", content = "#!/bin/no-such-python\n", mode = 0o755),
    file("/app/lib/python3.11/all.py", content = "#!/bin/sh\n", mode = 0o755),
    file("/srv/a (b)/run", content = "#!/bin/sh\n", mode = 0o755),
])
image("none", deps = [":tapeout"])
image("app", deps = [":tapeout"], entrypoint = ["/app/lib/python3.11/run.py"])
image("path", deps = [":tapeout"], cmd = ["run.py"], env = {"PATH": "/app/lib/python3.11:/bin"})
"##,
    );
    workspace.run("build //app:none").success();
    for name in ["app", "path"] {
        workspace
            .run(&format!("build //app:{name}"))
            .failure(1)
            .stderr_has("interpreter /bin/no-such-python is missing, which /app/lib/python3.11/run.py needs");
    }
    workspace
        .run("image why //app:none /bin/sh")
        .success()
        .stdout_has("/srv/a (b)/run")
        .stdout_has("written by the build file");
}

#[test]
fn the_closure_names_who_needs_what_is_missing_and_brings_what_is_there() {
    let workspace = Workspace::debian();
    workspace.file("app/build.star", DEBIAN);
    workspace
        .run("build //app:broken")
        .failure(1)
        .stderr_has("library libtinfo.so.6 is missing, which /usr/local/bin/broken needs")
        .stderr_has("it was searched in");
    workspace.run("build //app:script //app:owned").success();

    let script = image(&workspace, "script");
    for path in ["usr/bin/env", "usr/bin/perl", "lib64", "etc/passwd"] {
        assert!(script.has(path), "{path}");
    }
    assert!(!script.has("bin/bash") && !script.has("usr/bin/bash"), "no shell that nobody asked for");
    workspace.run("image why //app:script /usr/bin/perl").success().stdout_has("/usr/local/bin/script");

    let owned = image(&workspace, "owned");
    assert!(owned.text("var/lib/dpkg/status.d/login").starts_with("Package: login\n"), "scanners see what is inside");
    for path in ["etc/login.defs", "etc/pam.d/login", "etc/skel/.bashrc"] {
        assert!(owned.has(path), "a configuration file stays: {path}");
    }
    assert!(owned.has("usr/share/doc/bash/copyright") || owned.has("usr/share/doc/login/copyright"), "licences stay");
    let all = owned.files();
    let left_out = |folder: &str| all.keys().filter(|path| path.starts_with(folder.as_bytes())).count();
    assert_eq!(left_out("usr/share/man/") + left_out("usr/share/locale/") + left_out("usr/share/info/"), 0);
    let pam = all.keys().filter(|path| path.ends_with(b"/security/pam_unix.so")).count();
    assert_eq!(pam, 1, "the modules that the image's own PAM files name");
}
