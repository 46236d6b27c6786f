//! A name has one number everywhere, whatever was built first.

use crate::common::{Layout, Workspace};

/// Two rules with different packages: one's package adds a system user, the other adds one by hand.
const BUILD: &str = r#"
rule("cache/build", deps = ["//base:build"], packages = ["redis-server"], run = """
install -D -o redis -g redis -m 0640 /dev/null /srv/cache/data
install -o redis -g adm -m 0640 /dev/null /srv/cache/log
""")
rule("worker/build", deps = ["//base:build"], packages = ["openssh-client", "dbus"], run = """
useradd -r -d /srv/worker worker
install -D -o worker -g worker -m 0600 /dev/null /srv/worker/key
install -o messagebus -g _ssh -m 0640 /dev/null /srv/worker/bus
""")
tapeout("cache/tapeout", deps = [":cache/build"], include = ["/srv/cache/**"])
tapeout("worker/tapeout", deps = [":worker/build"], include = ["/srv/worker/**"])
image("joined", deps = [":cache/tapeout", ":worker/tapeout"], user = "worker")
"#;

/// What `/etc/passwd` and `group` of an image say, as sorted lines.
fn accounts(text: &str) -> Vec<Vec<String>> {
    let mut lines: Vec<Vec<String>> = text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect();
    lines.sort();
    lines
}

fn build(order: &[&str]) -> Workspace {
    // A store and a lock of its own: what comes first here allocates its numbers first.
    let workspace = Workspace::empty(crate::common::User::plain());
    workspace.file("tapeout.toml", crate::common::workspace::DEBIAN_TOML);
    workspace.file("app/build.star", BUILD);
    for label in order {
        workspace.run(&format!("build {label}")).success();
    }
    workspace.run("build //app:joined/build_image").success();
    workspace
}

#[test]
fn two_rules_that_add_system_users_are_joined_right_whatever_was_built_first() {
    let digests: Vec<String> =
        [build(&["//app:worker/build", "//app:cache/build"]), build(&["//app:cache/build", "//app:worker/build"])]
            .iter()
            .map(|workspace| {
                let image = Layout::open(&workspace.output("app/joined/build_image")).only();
                let (users, groups) = (accounts(&image.text("etc/passwd")), accounts(&image.text("etc/group")));
                let number = |lines: &[Vec<String>], name: &str| -> u64 {
                    let found: Vec<_> = lines.iter().filter(|line| line[0] == name).collect();
                    assert_eq!(found.len(), 1, "{name} in {lines:#?}");
                    found[0][2].parse().expect("a number")
                };
                for lines in [&users, &groups] {
                    let mut numbers: Vec<_> = lines.iter().map(|line| line[2].clone()).collect();
                    numbers.sort();
                    let all = numbers.len();
                    numbers.dedup();
                    assert_eq!(numbers.len(), all, "two names have one number: {lines:#?}");
                }
                for (path, user, group) in [
                    ("srv/cache/data", "redis", "redis"),
                    ("srv/cache/log", "redis", "adm"),
                    ("srv/worker/key", "worker", "worker"),
                    ("srv/worker/bus", "messagebus", "_ssh"),
                ] {
                    let file = image.file(path);
                    assert_eq!((file.uid, file.gid), (number(&users, user), number(&groups, group)), "{path}");
                }
                for name in ["root", "nobody"] {
                    number(&users, name);
                }
                image.digest
            })
            .collect();
    assert_eq!(digests[0], digests[1], "it depends on what was built first");
}

/// What `//base:build` of one workspace came to is in the store of all; the lock of each says the numbers.
#[test]
fn an_installation_that_is_cached_gives_its_numbers_to_the_lock_or_is_done_again() {
    let (one, other) = (Workspace::debian(), Workspace::debian());
    for workspace in [&one, &other] {
        workspace.file(
            "app/build.star",
            r#"
rule("build", deps = ["//base:build"], packages = ["redis-server"], run = "id -u redis >/uid")
tapeout("tapeout", deps = [":build"], include = ["/uid"])
image("image", deps = [":tapeout"])
"#,
        );
    }
    one.run("build //app:image").success();
    let lock = one.read("tapeout.lock");
    let number = lock.lines().find_map(|line| line.strip_prefix("\"redis\" = ")).expect("a number of redis").to_owned();
    other.run("build //app:image").success().stderr_has("cached  //base:build");
    assert_eq!(other.read("tapeout.lock"), lock);
    other.run("build --locked //app:image").success();

    let uid = || Layout::open(&other.output("app/image/build_image")).only().text("uid").trim().to_owned();
    assert_eq!(uid(), number);
    other.file("tapeout.lock", lock.replace(&format!("\"redis\" = {number}"), "\"redis\" = 412"));
    other.run("build --locked //app:image").success();
    assert_eq!(uid(), "412");
}

#[test]
fn a_package_more_in_one_rule_leaves_the_others_cached() {
    let workspace = Workspace::debian();
    let rules = |packages: &str| {
        format!(
            r#"
rule("a/build", deps = ["//base:build"], packages = ["less"], run = "less --version | head -n 1 >/opt-a")
rule("b/build", deps = ["//base:build"], packages = [{packages}], run = "echo b >/opt-b")
"#
        )
    };
    workspace.file("app/build.star", rules("\"bc\""));
    workspace.run("build //app:a/build //app:b/build").success();
    workspace.file("app/build.star", rules("\"bc\", \"dc\""));
    let planned = workspace.run("build --dry-run //app:a/build //app:b/build").success();
    let line = |name: &str| {
        let line = planned.stdout.lines().find(|line| line.contains(name));
        line.unwrap_or_else(|| panic!("{name} is not in the plan{planned}")).to_owned()
    };
    assert!(line("//app:a/build").contains("cached"), "{planned}");
    assert!(!line("//app:b/build").contains("cached"), "{planned}");
}

#[test]
fn a_package_that_is_not_there_is_an_error_that_names_the_rule() {
    let workspace = Workspace::debian();
    workspace
        .file("app/build.star", r#"rule("build", deps = ["//base:build"], packages = ["no-such-package-anywhere"])"#);
    workspace.run("build //app:build").fails().stderr_has("no-such-package-anywhere").stderr_has("//app:build");
}
