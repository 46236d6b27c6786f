//! A workspace that someone writes anew in an empty folder from the docs alone: three packages, two images
//! that share a library, one pod. It builds at the first try; what a newcomer gets wrong is said, with what
//! to do.

use crate::common::{Layout, Workspace};

const LIBRARY: &str = r#"
parameter("libdir", type = "path", default = "/usr/local/lib", doc = "Where libraries are installed.")

rule(
    "build",
    doc = "The library that both programs share.",
    deps = ["//base:build"],
    sources = glob(["*.c", "*.h"]),
    packages = ["gcc", "libc6-dev"],
    run = lambda p: """
gcc -shared -fPIC -Wl,-soname,libgreet.so.1 -o libgreet.so.1 greet.c
install -D -m 0755 libgreet.so.1 {libdir}/libgreet.so.1
ln -s libgreet.so.1 {libdir}/libgreet.so
install -D -m 0644 greet.h /usr/local/include/greet.h
ldconfig
""".format(libdir = p["libdir"]),
)

tapeout("tapeout", deps = [":build"], include = lambda p: [p["libdir"] + "/libgreet.so.1"])
"#;

const PROGRAM: &str = r#"
rule(
    "build",
    deps = ["//greet:build"],
    sources = ["main.c"],
    run = "gcc -o /usr/local/bin/NAME main.c -lgreet",
)

tapeout("tapeout", deps = [":build"], include = ["/usr/local/bin/NAME"])

image(
    "NAME",
    deps = [":tapeout", "//greet:tapeout"],
    entrypoint = ["/usr/local/bin/NAME"],
    user = "nobody",
    check = ["/usr/local/bin/NAME"],
)
"#;

const POD: &str = r#"

pod(
    "pair",
    containers = [
        container("hello", image = ":hello", mounts = [mount("words", "/words"), mount("hello.conf", "/etc/hello.conf")]),
        container("bye", image = "//bye:bye", restart = "never"),
    ],
    volumes = [volume("words", files = [file("/greeting", content = "Hello\n")])],
    files = [file("hello.conf", content = "loud = yes\n", mode = "0640")],
)
"#;

fn workspace() -> Workspace {
    let workspace = Workspace::debian();
    workspace
        .file("greet/greet.h", "void greet(const char *word);\n")
        .file("greet/greet.c", "#include <stdio.h>\nvoid greet(const char *word) { printf(\"%s, world\\n\", word); }\n")
        .file("greet/build.star", LIBRARY);
    for name in ["hello", "bye"] {
        workspace.file(
            &format!("{name}/main.c"),
            format!("#include <greet.h>\nint main(void) {{ greet(\"{name}\"); return 0; }}\n"),
        );
        workspace.file(&format!("{name}/build.star"), PROGRAM.replace("NAME", name));
    }
    workspace.file("hello/build.star", PROGRAM.replace("NAME", "hello") + POD);
    workspace
}

#[test]
fn a_workspace_written_from_the_docs_builds_at_the_first_try() {
    let workspace = workspace();
    workspace.run("build //hello:pair/build_pod").success();
    let bundle = workspace.output("hello/pair/build_pod");
    for part in [
        "pod.json",
        "images/index.json",
        "volumes/words.tar.zst",
        "files/hello.conf",
        "kube.yaml",
        "SHA256SUMS",
        "README",
    ] {
        assert!(bundle.join(part).is_file(), "the bundle lacks {part}");
    }
    let sums = format!("cd '{}' && sha256sum --quiet -c SHA256SUMS", bundle.display());
    workspace.tool("sh", &["-c", &sums]).success();

    // The two images share the library's layer: its blob is there once.
    let images = Layout::open(&bundle.join("images")).images();
    assert_eq!(images.len(), 2);
    let layer_with = |image: &crate::common::image::Image, path: &[u8]| {
        let number = image.layers.iter().position(|layer| layer.iter().any(|entry| entry.path == path));
        let number = number.unwrap_or_else(|| panic!("no layer has {}", String::from_utf8_lossy(path)));
        image.manifest["layers"][number]["digest"].as_str().map(str::to_owned)
    };
    let library = b"usr/local/lib/libgreet.so.1";
    assert_eq!(layer_with(&images[0], library), layer_with(&images[1], library));
    for image in &images {
        assert!(image.has("etc/passwd"), "the base skeleton");
        assert!(!image.has("usr/local/include/greet.h"), "nobody taped that out");
        assert!(image.files().keys().all(|path| !path.starts_with(b"workspace")), "the workspace stays behind");
    }
}

#[test]
fn a_build_rule_that_stands_on_no_builder_is_told_what_to_add() {
    let workspace = workspace();
    workspace.file("lost/build.star", r#"rule("build", run = "true")"#);
    workspace
        .run("build //lost:build")
        .failure(2)
        .stderr_has("//lost:build")
        .stderr_has("//base:build")
        .stderr_has("lost/build.star:1");
}

#[test]
fn what_is_to_be_installed_is_named_in_packages_and_all_that_there_is_not_is_told_at_once() {
    let workspace = workspace();
    let build = |attributes: &str| {
        workspace.file("get/build.star", format!("rule('build', deps = ['//base:build'], {attributes})\n"));
        workspace.run("build //get:build").fails()
    };
    build("packages = ['gcc', 'libssldev', 'zlib-g1-dev', 'no-such-thing'], run = 'true'")
        .stderr_has("there is no package \"libssldev\"")
        .stderr_has("did you mean libssl-dev?")
        .stderr_has("there is no package \"zlib-g1-dev\"")
        .stderr_has("did you mean zlib1g-dev?")
        .stderr_has("there is no package \"no-such-thing\"")
        .stderr_has("get/build.star:1");
    build("run = 'apt-get install -y make zlib1g-dev'")
        .stderr_has("write packages = [\"make\", \"zlib1g-dev\"] on the rule")
        .stderr_has("get/build.star:1");
    build("run = 'apt-get update; apt-get install -y make'").stderr_has("write packages = [\"make\"] on the rule");
}

#[test]
fn several_commands_as_a_list_are_told_to_be_one() {
    let workspace = workspace();
    workspace.file("list/build.star", "rule('build', deps = ['//base:build'], run = ['make all', 'make install'])\n");
    workspace
        .run("build //list:build")
        .failure(1)
        .stderr_has("make all can't be executed")
        .stderr_has("a list of strings is one command")
        .stderr_has("write [\"make\", \"all\"], or several commands as a script");
}

#[test]
fn what_is_no_label_is_told_what_to_write() {
    let workspace = workspace();
    workspace.run("build hello").failure(2).stderr_has("did you mean //hello:hello?");
    workspace.run("build greet").failure(2).stderr_has("did you mean //greet:*?");
    workspace.run("build //hello:helo").failure(2).stderr_has("did you mean //hello:hello?");
    workspace.run("build nowhere").failure(2).stderr_has("write //PACKAGE:NAME");
    workspace.file("out/oci-layout", "{}");
    workspace.run("image inspect out").failure(2).stderr_has("write oci:out");
    workspace.run("image inspect tapeout.toml").failure(2).stderr_has("write oci-archive:tapeout.toml");
}

#[test]
fn a_library_that_is_taken_out_is_named_with_what_needs_it_and_not_missed_in_production() {
    let workspace = workspace();
    workspace.file(
        "hello/build.star",
        PROGRAM
            .replace("NAME", "hello")
            .replace(r#"check = ["/usr/local/bin/hello"]"#, r#"exclude = ["/usr/local/lib/libgreet*"]"#),
    );
    let built = workspace.run("build //hello:hello/build_image").failure(1);
    built.stderr_has("//hello:hello/build_image").stderr_has("hello/build.star").stderr_has(
        "exclude takes out /usr/local/lib/libgreet.so.1, which is needed by /usr/local/bin/hello (libgreet.so.1)",
    );
    assert!(!workspace.output("hello/hello/build_image").exists());
}

#[test]
fn an_image_that_fails_its_check_is_not_written() {
    let workspace = workspace();
    let build = PROGRAM
        .replace("NAME", "hello")
        .replace(r#"check = ["/usr/local/bin/hello"]"#, r#"check = ["/usr/local/bin/hallo"]"#);
    workspace.file("hello/build.star", build);
    workspace
        .run("build //hello:hello/build_image")
        .failure(1)
        .says("/usr/local/bin/hallo")
        .says("//hello:hello/build_image");
    assert!(!workspace.output("hello/hello/build_image").exists());
}

#[test]
fn a_pattern_that_matches_nothing_is_told() {
    let workspace = workspace();
    let build = PROGRAM.replace("NAME", "hello").replace("/usr/local/bin/hello\"])", "/usr/local/bin/hallo\"])");
    workspace.file("hello/build.star", build);
    workspace
        .run("build //hello:hello/build_image")
        .fails()
        .stderr_has("/usr/local/bin/hallo")
        .stderr_has("//hello:tapeout");
}
