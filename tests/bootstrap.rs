//! Builders from everything that can be one: a folder, a tar file, an image layout, Debian's packages.

use crate::common::places::tiny_root;
use crate::common::{Layout, User, Workspace, have};

const BUILD: &str = r#"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt && cat /etc/passwd >/opt/users && chown 33:33 /opt/users")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
image("builder", tapeouts = ALL)
"#;

/// A workspace in a builder from this source.
fn workspace(from: &str) -> Workspace {
    let workspace = Workspace::empty(User::plain());
    workspace
        .file("tapeout.toml", format!("[builder]\ntag = \"mine\"\nfrom = \"{from}\"\n[build]\nepoch = 1767225600\n"));
    workspace.file("app/build.star", BUILD);
    workspace
}

fn digest(workspace: &Workspace) -> String {
    workspace.run("build //app:image/build_image").success();
    let image = Layout::open(&workspace.output("app/image/build_image")).only();
    assert_eq!(image.file("opt/users").owner(), "33:33");
    image.digest
}

#[test]
fn a_folder_and_a_tar_file_of_it_are_the_same_builder() {
    if !have(&["busybox", "tar"]) {
        return;
    }
    let folder = workspace(&format!("dir:{}", tiny_root().display()));
    let expected = digest(&folder);

    // Names with and without ./, as people make them; compressed or not is seen by the bytes.
    let packed = workspace("tar:root.tar.gz");
    let from = tiny_root().display().to_string();
    packed.tool("tar", &["-C", &from, "--owner=0", "--group=0", "-czf", "root.tar.gz", "."]).success();
    assert_eq!(digest(&packed), expected, "tar:");
}

/// `tapeouts = ALL` packs the builder as it is, so that its image is the same builder again.
#[test]
fn an_image_of_the_whole_builder_is_a_builder_with_the_same_users() {
    if !have(&["busybox"]) {
        return;
    }
    let folder = workspace(&format!("dir:{}", tiny_root().display()));
    folder.run("build //app:builder/build_image").success();
    let layout = folder.output("app/builder/build_image");
    let users = std::fs::read_to_string(tiny_root().join("etc/passwd")).expect("passwd");
    assert_eq!(Layout::open(&layout).only().text("etc/passwd"), users);

    let again = workspace(&format!("oci:{}", layout.display()));
    digest(&again);
    let image = Layout::open(&again.output("app/image/build_image")).only();
    assert_eq!(image.text("opt/users"), users, "what a rule sees in it");
}

#[test]
fn bootstrap_makes_a_builder_by_name_and_says_where_it_comes_from() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(&format!("dir:{}", tiny_root().display()));
    workspace.run("bootstrap mine").success().says("mine");
    workspace.run("bootstrap other --from tar:nowhere.tar").fails().stderr_has("nowhere.tar");
    workspace.run("bootstrap other --from ftp:somewhere").failure(2).stderr_has("ftp:somewhere");
    workspace.run("bootstrap ../other --from dir:.").failure(2);
}

/// A build keeps to the builder that it has; who asks for a builder gets what is there now.
#[test]
fn bootstrap_takes_what_the_files_hold_now_and_a_build_what_was_bootstrapped() {
    if !have(&["busybox", "tar"]) {
        return;
    }
    for from in ["dir:root", "tar:root.tar"] {
        let workspace = workspace(from);
        workspace.tool("cp", &["-a", &tiny_root().display().to_string(), "root"]).success();
        let becomes = |kind: &str| {
            workspace.tool("sh", &["-c", "echo $1 >root/etc/kind; tar -C root -cf root.tar .", "sh", kind]).success();
        };
        let kind = || workspace.run("shell //app:build -- /bin/cat /etc/kind").success().stdout;
        becomes("one");
        assert_eq!(kind(), "one\n", "{from}");
        becomes("two");
        assert_eq!(kind(), "one\n", "{from}: a build keeps the builder that it has");
        workspace.run("bootstrap mine").success().stdout_has("builder mine is ready");
        assert_eq!(kind(), "two\n", "{from}: it was bootstrapped");
        workspace.run("build //app:image/build_image").success();
        workspace.run("bootstrap mine").success();
        workspace.run("build //app:image/build_image").success().says("cached").says_not("built");
        // Another tag is another builder.
        becomes("three");
        workspace.run(&format!("bootstrap other --from {from}")).success().stdout_has("builder other is ready");
        assert_eq!(kind(), "two\n", "{from}: the other tag is none of its business");
        let toml = workspace.read("tapeout.toml");
        workspace.file("tapeout.toml", toml.replace("mine", "other"));
        assert_eq!(kind(), "three\n", "{from}: of the other tag");
        workspace.file("tapeout.toml", toml);
        // What it was made of has done its work.
        workspace.tool("rm", &["-r", "root", "root.tar"]).success();
        workspace.run("bootstrap mine").success().stderr_has("is gone").stdout_has("builder mine is ready");
        assert_eq!(kind(), "two\n", "{from}: nothing came in its place");
        workspace.run(&format!("bootstrap third --from {from}")).fails().stderr_has("root");
    }
}

#[test]
fn without_a_network_and_without_packages_the_error_says_so() {
    let workspace = workspace("debian:bookworm");
    workspace.run("--offline bootstrap mine").fails().stderr_has("--offline");
}

#[test]
fn a_lock_that_would_have_to_change_is_an_error_with_locked() {
    let workspace = Workspace::debian();
    workspace.file("app/build.star", r#"rule("build", deps = ["//base:build"], packages = ["bc"])"#);
    let before = workspace.read("tapeout.lock");
    workspace.run("build --locked //app:build").fails().stderr_has("bc");
    assert_eq!(workspace.read("tapeout.lock"), before);
    workspace.run("build //app:build").success().says("bc");
    assert_ne!(workspace.read("tapeout.lock"), before);
    workspace.run("build --locked //app:build").success();
}

#[test]
fn a_lock_with_another_digest_stops_the_build_and_names_the_package() {
    let workspace = Workspace::debian();
    // What the lock says of a package is believed over the mirror.
    let lock = workspace.read("tapeout.lock");
    let at = lock.find("name = \"zlib1g\"").expect("zlib1g is in every base system");
    let digest = at + lock[at..].find("sha256 = \"").expect("a digest") + "sha256 = \"".len();
    let flipped = if lock[digest..].starts_with('0') { "1" } else { "0" };
    let wrong = format!("{}{flipped}{}", &lock[..digest], &lock[digest + 1..]);
    let fresh = Workspace::empty(User::plain());
    fresh.file("tapeout.toml", crate::common::workspace::DEBIAN_TOML).file("tapeout.lock", wrong);
    fresh.run("bootstrap bookworm").fails().stderr_has("zlib1g");
}

/// `rule://`: what a rule that depends on it sees is the builder of another workspace.
#[test]
fn a_builder_with_rules_already_built_in_is_what_their_dependents_see() {
    if !have(&["busybox"]) {
        return;
    }
    let first = Workspace::tiny();
    first.file("sdk/source", "a source").file(
        "sdk/build.star",
        r#"
rule("lib", deps = ["//base:build"], run = "mkdir /opt; echo one >/opt/one; chown 33:33 /opt/one; rm /bin/vi; echo x >/opt/gone")
rule("build", deps = [":lib"], sources = ["source"], run = "rm /opt/gone; cat source >/opt/two; mv /opt /sdk")
tapeout("tapeout", deps = [":build"], include = ["/sdk"])
image("image", deps = [":tapeout"])
"#,
    );
    first.run("bootstrap warm --from rule://sdk:build").success().says("built").stdout_has("builder warm is ready");
    first.run("bootstrap warm --from rule://sdk:build").success().says("cached").says_not("built");
    for (arguments, says) in [
        ("tiny --from rule://sdk:build", "can't take its place"),
        ("warm --from rule://sdk:image/build_image", "is of kind image"),
        ("warm --from rule://sdk:nosuch", "nosuch"),
        ("warm --from rule:sdk:build", "no label from the top"),
        ("warm --from rule://sdk:build --include bc", "says itself what is in the builder"),
    ] {
        first.run(&format!("bootstrap {arguments}")).failure(2).stderr_has(says).stderr_has("next:");
    }

    let second = Workspace::empty(User::plain()).stored_in(first.store().to_owned());
    second.file("app/build.star", r#"
rule("build", deps = ["//base:build"], run = "test ! -e /bin/vi && test ! -e /opt && test ! -e /workspace/sdk && cat /sdk/two >>/sdk/one")
tapeout("tapeout", deps = [":build"], include = ["/sdk/one"])
image("app", deps = [":tapeout"])
"#);
    let named = "[builder]\ntag = \"warm\"\n";
    for toml in [named.to_string(), format!("{named}from = \"rule://sdk:build\"\n")] {
        second.file("tapeout.toml", toml).run("build //app:app/build_image").success();
        let image = Layout::open(&second.output("app/app/build_image")).only();
        assert_eq!(image.text("sdk/one"), "one\na source");
        assert_eq!(image.file("sdk/one").owner(), "33:33");
    }
    second.run("gc --all").success();
    second.run("build //app:app/build_image").success().says("built");
    // Elsewhere there is none, and the error says who can make it.
    let elsewhere = Workspace::tiny();
    elsewhere.file("tapeout.toml", format!("{named}from = \"rule://sdk:build\"\n"));
    let make = "tapeout bootstrap warm --from rule://sdk:build";
    elsewhere.run("build //base:build").failure(1).stderr_has("no builder warm").stderr_has(make);
}
