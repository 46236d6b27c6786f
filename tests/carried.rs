//! A bundle on its way: one file for a folder, and whatever was changed on the way is named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::image::fingerprint;
use crate::common::{Workspace, have};

const POD: &str = r##"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt && echo one >/opt/one && chmod 0755 /opt/one")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("app", deps = [":tapeout"], entrypoint = ["/opt/one"])
pod(
    "shop",
    containers = [container("app", image = ":app", mounts = [mount("data", "/data"), mount("app.conf", "/etc/app.conf")])],
    volumes = [volume("data", files = [file("/greeting", content = "Hello\n")])],
    files = [file("app.conf", content = "loud = yes\n"), file("hook", content = "#!/bin/sh\n", mode = "0755")],
)
"##;

fn built() -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", POD);
    workspace.run("build //app:shop/build_pod").success();
    workspace
}

fn copied(workspace: &Workspace, to: &str) -> std::path::PathBuf {
    let from = workspace.output("app/shop/build_pod");
    workspace.tool("cp", &["-r", &from.display().to_string(), to]).success();
    workspace.path(to)
}

#[test]
fn a_bundle_becomes_one_file_that_other_tools_unpack_into_the_same_bundle() {
    if !have(&["busybox", "tar"]) {
        return;
    }
    let workspace = built();
    workspace.run("build --dry-run //app:shop/build_pod").success().stdout_has("cached  //app:shop/build_pod");
    workspace.run("pod pack //app:shop -o shop.tar").success().stdout_has("//app:shop/build_pod");
    // A copy without its times and umask's modes gives the same file.
    let copy = copied(&workspace, "copy");
    workspace.run_words(&["pod", "pack", &copy.display().to_string(), "-o", "again.tar"]).success();
    assert_eq!(
        fs::read(workspace.path("shop.tar")).expect("read"),
        fs::read(workspace.path("again.tar")).expect("read")
    );
    workspace.run("pod verify shop.tar").success().stdout_has("whole");
    workspace.run("pod verify copy").success();

    workspace.tool("tar", &["-xf", "shop.tar"]).success();
    assert_eq!(fingerprint(&workspace.path("shop")), fingerprint(&workspace.output("app/shop/build_pod")));
    workspace.tool("sh", &["-c", "cd shop && sha256sum --quiet -c SHA256SUMS"]).success();
    let checked = workspace.run("--json pod verify shop").success().json();
    assert_eq!(checked["name"], "shop");
}

/// All files of a folder, sorted.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let walk = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(|entry| entry.expect("walk"));
    walk.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()).collect()
}

#[test]
fn one_flipped_bit_a_missing_file_and_an_added_one_are_named() {
    if !have(&["busybox", "tar"]) {
        return;
    }
    let workspace = built();
    let copy = copied(&workspace, "shop");
    let packed = |workspace: &Workspace| workspace.tool("tar", &["-cf", "shop.tar", "shop"]).success();
    // The name by which the error calls it: of SHA256SUMS, what it no longer fits.
    let named = |path: &Path| path.strip_prefix(&copy).expect("below").display().to_string();
    let mut seen = 0;
    for path in files(&copy) {
        let good = fs::read(&path).expect("read");
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        let name = named(&path);
        for change in ["flipped", "missing"] {
            match change {
                "flipped" => fs::write(&path, &bad).expect("write"),
                _ => fs::remove_file(&path).expect("remove"),
            }
            packed(&workspace);
            for bundle in ["shop", "shop.tar"] {
                let outcome = workspace.run(&format!("pod verify {bundle}")).failure(1);
                assert!(
                    outcome.stderr.contains(&name) || name == "SHA256SUMS",
                    "{change} {name} is not named{outcome}"
                );
            }
        }
        workspace.file(path.strip_prefix(workspace.path("")).expect("below").to_str().expect("UTF-8"), &good);
        seen += 1;
    }
    assert!(seen > 8, "{seen}");
    // A copy made by the test has other modes than the bundle, and is whole all the same.
    workspace.run("pod verify shop").success();

    workspace.file("shop/files/more", "x").run("pod verify shop").failure(1).stderr_has("files/more: it was added");
    fs::remove_file(copy.join("files/more")).expect("remove");
    fs::create_dir(copy.join("empty")).expect("mkdir");
    workspace.run("pod verify shop").failure(1).stderr_has("empty: it was added");
    fs::remove_dir(copy.join("empty")).expect("rmdir");
    symlink("/etc/passwd", copy.join("files/passwd")).expect("symlink");
    workspace.run("pod verify shop").failure(1).stderr_has("files/passwd");
    workspace.run("pod pack shop -o bad.tar").failure(1);
    assert!(!workspace.path("bad.tar").exists(), "what isn't whole is not packed");
}

#[test]
fn one_who_changes_the_sums_too_is_found_by_the_blobs_and_by_pod_json() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = built();
    let copy = copied(&workspace, "shop");
    let sums = "cd shop && rm SHA256SUMS && find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum >../sums && mv ../sums SHA256SUMS";
    let whole = || {
        workspace.tool("rm", &["-rf", "shop"]).success();
        copied(&workspace, "shop")
    };
    let blobs = files(&copy.join("images/blobs"));
    let mut blob = fs::read(&blobs[0]).expect("read");
    blob[0] ^= 1;
    fs::write(&blobs[0], blob).expect("write");
    workspace.tool("sh", &["-c", sums]).success();
    let name = blobs[0].file_name().expect("a name").to_string_lossy().into_owned();
    workspace.run("pod verify shop").failure(1).stderr_has(&name);

    let copy = whole();
    fs::write(copy.join("files/app.conf"), "loud = no\n").expect("write");
    workspace.tool("sh", &["-c", sums]).success();
    workspace.run("pod verify shop").failure(1).stderr_has("files/app.conf: pod.json says");

    let copy = whole();
    let document = fs::read_to_string(copy.join("pod.json")).expect("read");
    fs::write(copy.join("pod.json"), document.replace("\"restart\": \"always\"", "\"restart\": \"sometimes\""))
        .expect("write");
    workspace.tool("sh", &["-c", sums]).success();
    workspace.run("pod verify shop").failure(1).stderr_has("pod.json.containers[0].restart");
}

#[test]
fn a_file_that_is_no_bundle_is_refused_and_harms_nothing() {
    let workspace = Workspace::tiny();
    workspace.file("empty", "").file("text", "not a tar file").file("half.tar", vec![b'x'; 700]);
    for bundle in ["empty", "text", "half.tar", "nowhere", "."] {
        workspace.run(&format!("pod verify {bundle}")).fails();
    }
    workspace
        .tool("sh", &["-c", "mkdir shop && mkfifo shop/pod.json && touch shop/SHA256SUMS && tar -cf fifo.tar shop"])
        .success();
    workspace.run("pod verify fifo.tar").failure(1).stderr_has("pod.json");
    workspace.run("pod verify shop").failure(1).stderr_has("pod.json");
    workspace.run("pod pack //app:shop -o x.tar").failure(2).stderr_has("tapeout build //app:shop/build_pod");
}
