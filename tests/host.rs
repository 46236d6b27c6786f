//! This machine's own toolchain as a builder: nothing is downloaded, and nothing else of the machine is there.

use crate::common::{Layout, User, Workspace, have};

const TOML: &str = "[builder]\ntag = \"host\"\nfrom = \"host\"\n";

fn workspace(build: &str) -> Workspace {
    let workspace = Workspace::empty(User::plain());
    workspace.file("tapeout.toml", TOML).file("app/build.star", build);
    workspace
}

#[test]
fn a_script_and_what_it_needs_become_an_image_without_a_download() {
    if !have(&["skopeo", "strace"]) {
        return;
    }
    let workspace = workspace(
        r##"
rule("build", deps = ["//base:build"], run = "printf '#!/bin/sh\necho Hello\n' >/usr/local/bin/hello && chmod 0755 /usr/local/bin/hello && chown 33:33 /usr/local/bin/hello")
tapeout("tapeout", deps = [":build"], include = ["/usr/local/bin/hello"], paths = ["/usr/bin/env"])
image("app", deps = [":tapeout"], entrypoint = ["/usr/local/bin/hello"], check = ["/usr/bin/env", "/usr/local/bin/hello"])
"##,
    );
    let log = workspace.path("connect.log").display().to_string();
    let strace = crate::common::needs::find("strace").expect("strace").display().to_string();
    let workspace = workspace.behind(&[&strace, "-f", "-qq", "-e", "trace=connect", "-o", &log]);
    workspace.run("build //app:app/build_image").success().says("not reproducible");
    // (The rule's own chown looks for a name service, in its sandbox, where there is none.)
    let log = workspace.read("connect.log");
    assert!(!log.contains("AF_INET"), "somebody was asked for something: {log}");
    let workspace = workspace.behind(&[]);
    let image = Layout::open(&workspace.output("app/app/build_image")).only();
    assert_eq!(image.file("usr/local/bin/hello").owner(), "33:33");
    assert!(image.has("usr/bin/env"), "a file of this machine, by its path");
    assert_eq!(image.text("etc/passwd").lines().next(), Some("root:x:0:0:root:/root:/bin/sh"));
    let layout = format!("oci:{}", workspace.output("app/app/build_image").display());
    workspace.tool("skopeo", &["inspect", &layout]).success();
    assert!(image.manifest["annotations"]["tapeout.not-reproducible"].is_string());
    workspace.run("build --dry-run //app:app/build_image").success().stdout_has("not reproducible");
    workspace.run("list").success().stdout_has("not reproducible");
    workspace.run("image why //app:app /usr/bin/env").success().stdout_has("/usr/bin/env");
    workspace.run("build //app:app/build_image").success().says("cached").says_not("built  //");
}

#[test]
fn files_of_the_machine_are_replaced_and_removed_and_stay_so_but_never_written() {
    let workspace = workspace(
        r#"
rule("build", deps = ["//base:build"], run = "rm /usr/bin/env /usr/bin/head; echo mine >/usr/bin/head; mkdir /usr/lib/mine && echo 1 >/usr/lib/mine/one; ls /usr/share >/dev/null")
rule("after", deps = [":build"], run = "test ! -e /usr/bin/env; read -r word </usr/bin/head; test $word = mine; rm -r /usr/lib/mine")
rule("last", deps = [":after"], run = "test ! -e /usr/lib/mine; test -e /usr/bin/tail")
rule("bad", deps = ["//base:build"], run = "echo bad >>/usr/bin/env")
rule("missing", deps = ["//base:build"], packages = ["no-such-package"], run = "true")
"#,
    );
    workspace.run("build //app:last").success();
    assert!(std::path::Path::new("/usr/bin/env").exists());
    let bad = workspace.run("build //app:bad");
    // Whoever the files of this machine belong to may write a copy of them.
    if !nix::unistd::geteuid().is_root() || workspace.user.uid != 0 {
        bad.failure(1).stderr_has("in place").stderr_has("debian:SUITE");
    }
    workspace.run("build //app:missing").failure(2).stderr_has("no-such-package").stderr_has("//app:missing wants it");
}

#[test]
fn what_a_failed_rule_left_on_the_machine_can_be_looked_at() {
    let workspace = workspace(
        r#"
rule("below", deps = ["//base:build"], run = "mkdir /usr/lib/mine; echo 1 >/usr/lib/mine/one; rm /usr/bin/head")
rule("build", deps = [":below"], run = "rm -r /usr/lib/mine; rm /usr/bin/env; echo 2 >/usr/bin/new; mkdir /left; echo 3 >/left/it; exit 3")
"#,
    );
    workspace.run("build //app:build").failure(1);
    let look = "cat /usr/bin/new /left/it; for f in /usr/lib/mine /usr/bin/env /usr/bin/head; do test ! -e $f || echo $f; done; \
        test -e /usr/bin/tail; echo changed >/usr/bin/new; echo more >/usr/bin/more-of-it";
    for _ in 0..2 {
        let seen = workspace.run_words(&["shell", "--failed", "//app:build", "--", "/bin/sh", "-ec", look]).success();
        assert_eq!(seen.stdout, "2\n3\n");
    }
    workspace.run("shell //app:build -- /bin/cat /usr/lib/mine/one").success().stdout_has("1");
}

#[test]
fn nothing_of_the_machine_is_there_but_its_programs() {
    let workspace = workspace(
        r#"
rule("build", deps = ["//base:build"], run = """
for folder in home root var/lib opt mnt srv media boot; do
    test ! -e /$folder || test -z "$(ls -A /$folder)" || { echo "/$folder is not empty"; exit 1; }
done
for file in shadow gshadow ssh ssl/private hostname resolv.conf machine-id sudoers; do
    test ! -e /etc/$file || { echo "/etc/$file is there"; exit 1; }
done
test "$(cut -d: -f1 /etc/passwd | tr '\\n' ' ')" = 'root nobody '
""")
"#,
    );
    workspace.run("build //app:build").success();
}
