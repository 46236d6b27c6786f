//! Looks at images, ours and anybody's, and takes them out as files and folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::image::fingerprint;
use crate::common::{Layout, User, Workspace, have};

const BUILD: &str = r#"
parameter("word", type = "string", default = "one")
rule(
    "build",
    deps = ["//base:build"],
    run = lambda p: "mkdir -p /opt/d && echo the same, then %s >/opt/word && ln /opt/word /opt/again && chown 33:33 /opt/word && chmod 4755 /opt/word && ln -s word /opt/link && echo x >/opt/d/x && touch '/opt/d/one\n-rwsr-xr-x  0:0' && chmod 700 /opt/d" % p["word"],
)
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("image", deps = [":tapeout"], entrypoint = ["/opt/word"], env = {"A": "1"}, user = "www-data")
image("gzip", deps = [":tapeout"], compression = "gzip", version = "2", user = "www-data", env = {"B": "2"})
"#;

fn built() -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD);
    workspace.run("build //app:image/build_image //app:gzip/build_image").success();
    workspace
}

#[test]
fn an_image_is_looked_at_by_label_in_a_layout_and_in_both_archives() {
    if !have(&["busybox", "skopeo"]) {
        return;
    }
    let workspace = built();
    let layout = workspace.output("app/image/build_image").display().to_string();
    // skopeo writes no docker archive of zstd layers.
    let gzip = workspace.output("app/gzip/build_image").display().to_string();
    workspace.run("export //app:image -o ours.tar").success();
    workspace.run("export //app:image -o docker.tar --format docker-archive").success();
    let theirs = format!("docker-archive:{}:app/image:1", workspace.path("theirs.tar").display());
    workspace.tool("skopeo", &["--insecure-policy", "copy", &format!("oci:{gzip}:2"), &theirs]).success();
    let digest = Layout::open(&workspace.output("app/image/build_image")).only().digest;
    for (image, same) in [
        ("//app:image".to_string(), true),
        (format!("oci:{layout}"), true),
        (format!("oci:{layout}:latest"), true),
        ("oci-archive:ours.tar".into(), true),
        ("docker-archive:docker.tar".into(), false),
        ("docker-archive:theirs.tar:docker.io/app/image:1".into(), false),
    ] {
        let inspected = workspace.run(&format!("image inspect --json {image}")).success().json();
        assert_eq!(inspected["digest"].as_str() == Some(&digest), same, "{image}: {inspected:#}");
        assert_eq!(inspected["config"]["config"]["User"], "33:33", "{image}");
        assert_eq!(inspected["layers"][0]["rule"], "//app:tapeout", "{image}");
        workspace
            .run(&format!("image ls -l {image} /opt"))
            .success()
            .stdout_has("-rwsr-xr-x  33:33")
            .stdout_has("/opt/link -> word")
            .stdout_has("drwx------  0:0");
        workspace.run(&format!("image cat {image} /opt/link")).success().stdout_has("the same, then one");
    }
    workspace.run("image inspect //app:image").success().stdout_has("33:33").stdout_has("Entrypoint  [\"");
    workspace.run("image cat //app:image /opt/none").failure(2).stderr_has("tapeout image ls //app:image");
    workspace.run("image cat //app:image /opt").failure(2).stderr_has("no regular file");
    workspace.run("image ls --parameter //app:word=new //app:image").failure(2).stderr_has("tapeout build //app:image");
    workspace.run("image ls oci:nowhere").fails().stderr_has("nowhere");
    // A line end in a name forges no row.
    for look in ["image ls //app:image /opt", "image ls -l //app:image /opt", "image why //app:image"] {
        workspace.run(look).success().stdout_has("/opt/d/one\u{fffd}-rwsr-xr-x  0:0");
    }
    workspace.run("image why oci:there /opt").failure(2).stderr_has("name the image by its label");
}

#[test]
fn what_differs_is_told_with_its_byte_and_its_rule() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = built();
    workspace.run("export //app:image -o before.tar").success();
    workspace.run("image diff oci-archive:before.tar //app:image").success().stdout_has("the same image");
    // Only the compression differs.
    let diff = workspace.run("image diff --json //app:image //app:gzip").failure(1).json();
    assert_eq!(diff["files"].as_array().map(Vec::len), Some(0), "{diff:#}");
    assert!(diff["layers"].as_array().expect("layers").iter().all(|layer| layer["same"] == true), "{diff:#}");

    workspace.file("app/build.star", BUILD.replace("default = \"one\"", "default = \"two\"").replace("33:33", "1:33"));
    workspace.run("build //app:image/build_image").success();
    let diff = workspace.run("image diff --json oci-archive:before.tar //app:image").failure(1).json();
    let files = diff["files"].as_array().expect("files");
    let paths: Vec<_> = files.iter().map(|file| file["path"].as_str().expect("path")).collect();
    assert_eq!(paths, ["/etc/group", "/etc/passwd", "/opt/again", "/opt/word"]);
    for file in &files[2..] {
        assert_eq!(file["how"], serde_json::json!(["content", "owner"]), "{file:#}");
        assert_eq!(file["byte"], 15, "{file:#}");
        assert_eq!((&file["a"]["uid"], &file["b"]["uid"]), (&33.into(), &1.into()));
        assert_eq!(file["b"]["rule"], "//app:tapeout");
    }
    workspace
        .run("image diff oci-archive:before.tar //app:image")
        .failure(1)
        .stdout_has("33:33 -> 1:33")
        .stdout_has("content, owner, from byte 15")
        .stdout_has("2 files differ");
}

#[test]
fn an_image_is_unpacked_whole_or_not_at_all() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = built();
    let told = workspace.run("image unpack //app:image rootfs").success();
    let word = workspace.path("rootfs/opt/word");
    let data = fs::metadata(&word).expect("word");
    // It is 33's in the image: as the caller's it must not run as the caller for everybody.
    assert_eq!((data.uid(), data.permissions().mode() & 0o7777), (workspace.user.uid, 0o755));
    assert_eq!((data.mtime(), data.nlink()), (1767225600, 2));
    assert_eq!(fs::read_link(workspace.path("rootfs/opt/link")).expect("link").to_str(), Some("word"));
    assert_eq!(fs::metadata(workspace.path("rootfs/opt/d")).expect("d").permissions().mode() & 0o777, 0o700);
    told.stdout_has("/opt/again (33:33)");
    workspace.run("image unpack //app:image rootfs").failure(2).stderr_has("there already");
    assert!(word.exists());

    // A hostile archive: a file through a link out of it.
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "out", workspace.everything()).expect("link");
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    tar.append_data(&mut header, "out/evil", b"evil".as_slice()).expect("file");
    let layer = tar.into_inner().expect("tar");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        crate::common::image::sha256(&layer)
    );
    let mut docker = tar::Builder::new(vec![]);
    let manifest = r#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l.tar"]}]"#;
    for (name, bytes) in
        [("l.tar", layer.as_slice()), ("c.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        docker.append_data(&mut header, name, bytes).expect("file");
    }
    workspace.file("hostile.tar", docker.into_inner().expect("tar"));
    workspace.run("image unpack docker-archive:hostile.tar hostile");
    assert!(!workspace.everything().join("evil").exists(), "it left its folder");

    // A damaged layer leaves nothing.
    let layout = workspace.output("app/gzip/build_image");
    let image = Layout::open(&layout).only();
    let first = image.manifest["layers"][0]["digest"].as_str().expect("digest").replace("sha256:", "");
    let blob = layout.join("blobs/sha256").join(first);
    let mut bytes = fs::read(&blob).expect("blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).expect("write");
    workspace.run(&format!("image unpack oci:{} damaged", layout.display())).failure(1);
    let left: Vec<_> = fs::read_dir(workspace.path("")).expect("workspace").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("damaged")), "{left:?}");
}

#[test]
fn an_exported_file_has_one_spelling_and_others_read_it() {
    if !have(&["busybox", "skopeo"]) {
        return;
    }
    let workspace = built();
    for (image, tag) in [("image", "latest"), ("gzip", "2")] {
        let built = Layout::open(&workspace.output(&format!("app/{image}/build_image"))).only();
        for format in ["oci-archive", "docker-archive"] {
            let name = format!("{image}.{format}");
            workspace.run(&format!("export //app:{image} -o {name} --format {format}")).success();
            workspace.run(&format!("export //app:{image} -o again --format {format}")).success();
            let (one, other) = (fs::read(workspace.path(&name)), fs::read(workspace.path("again")));
            assert!(one.expect("read") == other.expect("read"), "{name} has two spellings");
            let reference = match format {
                "oci-archive" => format!("oci-archive:{name}:{tag}"),
                _ => format!("docker-archive:{name}:docker.io/library/{image}:{tag}"),
            };
            let back = format!("{name}.back");
            workspace.tool("skopeo", &["--insecure-policy", "copy", &reference, &format!("oci:{back}:x")]).success();
            let back = Layout::open(&workspace.path(&back)).only();
            assert_eq!(back.config["rootfs"], built.config["rootfs"], "{name}: the diff IDs");
            assert_eq!(format == "oci-archive", back.digest == built.digest, "{name}");
        }
    }
    // What was there stays when the new one can't be written.
    fs::write(workspace.path("kept"), "old").expect("write");
    workspace.run("export //app:none -o kept").fails();
    assert_eq!(workspace.read("kept"), "old");
    assert_eq!(User::plain(), workspace.user);
}

/// What stands before it on the command line says nothing about an image on a base, nor about a pod.
#[test]
fn an_image_on_a_base_is_the_same_whatever_else_is_asked_for() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
tapeout("one/tapeout", files = [file("/one", content = "1")])
image("one", deps = [":one/tapeout"])
tapeout("two/tapeout", files = [file("/two", content = "2")])
image("two", deps = [":two/tapeout"])
tapeout("tapeout", files = [file("/x", content = "x")])
image("app", base = ":two", deps = [":tapeout"])
pod("pod", containers = [container("app", image = ":app")])
"#,
    );
    workspace.run("build //app:one //app:app //app:pod").success();
    workspace.run("image ls //app:app").success().stdout_has("/x");
    workspace.run("build //app:app").success().says("cached  //app:app/build_image").says_not("image  //app:app");
    workspace.run("build //app:pod //app:one").success().says_not("wrote  //app:pod");
}

/// Somebody wrote to what was built: it is written again, not called cached.
#[test]
fn an_output_that_was_damaged_is_written_again() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
tapeout("tapeout", files = [file("/x", content = "x" * 10000)])
image("app", deps = [":tapeout"])
pod("pod", containers = [container("app", image = ":app")])
"#,
    );
    let build = "build //app:app //app:pod";
    workspace.run(build).success();
    workspace.run(build).success().says_not("wrote");
    let outputs = [workspace.output("app/app/build_image"), workspace.output("app/pod/build_pod/images")];
    let expected = outputs.each_ref().map(|output| fingerprint(output));
    let layer =
        Layout::open(&outputs[0]).only().manifest["layers"][0]["digest"].as_str().expect("a digest").replace(':', "/");
    for output in &outputs {
        let path = output.join("blobs").join(&layer);
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).expect("write");
    }
    workspace.run(build).success().says("wrote  //app:app/build_image").says("wrote  //app:pod/build_pod");
    assert_eq!(outputs.each_ref().map(|output| fingerprint(output)), expected);
    workspace.run(build).success().says_not("wrote");
}

#[test]
fn what_an_image_lacks_is_told_with_the_image_and_its_build_file() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let build = |image: &str| {
        let rule =
            r#"rule("build", deps = ["//base:build"], sources = ["."], run = "mkdir /opt; cp build.star /opt/")"#;
        let tapeout = r#"tapeout("tapeout", deps = [":build"], include = ["/opt"])"#;
        workspace.file("app/build.star", format!("{rule}\n{tapeout}\n{image}\n"));
    };
    build(r#"image("app", deps = [":tapeout"], user = "alice")"#);
    let told = workspace.run("build //app:app").fails();
    told.stderr_has("//base:tapeout for //app:app/build_image").stderr_has("app/build.star:3").stderr_has("alice");
    build(r#"image("app", deps = [":tapeout"])"#);
    workspace.run("build //app:app").success();
    build(r#"tapeout("x", files = [file("/x", content = "x", mode = 755)])"#);
    workspace
        .run("build //app:x")
        .failure(2)
        .stderr_has("755 is the mode 0o1363")
        .stderr_has("write 0o755 or \"0755\"");
}

#[test]
fn why_is_told_of_what_is_in_the_image_and_of_nothing_else() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
rule("build", deps = ["//base:build"], run = "mkdir /opt; echo a >/opt/in; echo b >/opt/out")
tapeout("tapeout", deps = [":build"], include = ["/opt/*"])
image("some", deps = [":tapeout"], exclude = ["/opt/out"])
image("all", deps = [":tapeout"], tapeouts = ALL)
rule("later", deps = [":build"], run = "rm /opt/out; echo c >/opt/new")
tapeout("later/tapeout", deps = [":later"], include = ["/opt/*"])
image("base", deps = [":tapeout"])
image("on", deps = [":later/tapeout"], base = ":base")
"#,
    );
    workspace.run("image why //app:some /opt/in").failure(2).stderr_has("tapeout build //app:some/build_image");
    workspace.run("build //app:some //app:all").success();
    workspace.run("image why //app:some /opt/in").success().stdout_has("/opt/in  include /opt/*  (//app:tapeout)");
    workspace.run("image why //app:some /opt/out").failure(2).stderr_has("/opt/out is not in //app:some/build_image");
    workspace.run("image why //app:some").success().stdout_has("/opt/in").says_not("/opt/out");
    let whole = "/bin/busybox  tapeouts = ALL  (//app:all/build_image)";
    workspace.run("image why //app:all /bin/busybox").success().stdout_has(whole);
    workspace.run("image why //app:all").success().stdout_has(whole).stdout_has("/opt/out");

    workspace.run("build //app:on").success();
    workspace
        .run("image why //app:on /opt/new")
        .success()
        .stdout_has("/opt/new  include /opt/*  (//app:later/tapeout)");
    workspace.run("image why //app:on /opt/in").success().stdout_has("/opt/in  base //app:base/build_image");
    workspace.run("image why //app:on /opt/out").failure(2).stderr_has("/opt/out is not in //app:on/build_image");
    workspace.run("image why //app:on").success().stdout_has("/opt/new").says_not("/opt/in").says_not("/opt/out");
}
