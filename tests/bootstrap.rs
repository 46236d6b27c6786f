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
