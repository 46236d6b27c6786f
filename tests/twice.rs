//! `build --twice`: what comes out differently is named, with its rule and its byte.

use crate::common::{Workspace, have};

const BUILD: &str = r#"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt && echo same >/opt/same")
rule("clock/build", deps = [":build"], run = "printf 'made at ' >/opt/clock && cat /proc/sys/kernel/random/uuid >>/opt/clock && ln -s $(cat /proc/sys/kernel/random/uuid) /opt/link")
tapeout("tapeout", deps = [":build"], include = ["/opt/same"])
tapeout("clock/tapeout", deps = [":clock/build"], include = ["/opt/clock"])
image("good", deps = [":tapeout"])
image("bad", deps = [":tapeout", ":clock/tapeout"])
"#;

#[test]
fn a_rule_that_comes_out_differently_is_named_with_its_file_and_its_byte() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD);
    workspace.run("build --twice //app:good/build_image").success().says("same  //app:build");
    let bad = workspace.run("build --twice --json //app:bad/build_image").failure(1);
    let files = bad.json();
    let files = files.as_array().expect("a list");
    let paths: Vec<_> = files.iter().map(|file| file["path"].as_str().expect("path")).collect();
    assert_eq!(paths, ["/opt/clock", "/opt/link"]);
    assert!(files.iter().all(|file| file["rule"] == "//app:clock/build"), "{files:#?}");
    let byte = files[0]["byte"].as_u64().expect("byte");
    assert!((8..20).contains(&byte), "{byte}");
    assert_ne!(files[0]["first"], files[0]["second"]);
    assert_eq!(files[1]["how"], serde_json::json!(["link"]));
    bad.stderr_has("//app:clock/build");

    // A rule alone; the store keeps the first result, so the image stays what it was.
    let before = workspace.run("image cat //app:bad /opt/clock").success();
    workspace.run("build --twice //app:clock/build").failure(1).stdout_has("/opt/clock").stdout_has("from byte");
    let after = workspace.run("image cat //app:bad /opt/clock").success();
    assert_eq!(before.stdout, after.stdout);
    workspace.run("build --twice //base:build").failure(2).stderr_has("no rule to run twice");
}
