//! The command line: every command has a help with an example, what a machine may read is JSON, and the exit
//! code says whose fault it was.

use crate::common::{User, Workspace, have};

const BUILD: &str = r#"
parameter("word", type = "string", default = "hello", doc = "What is written.")

rule("build", doc = "Write a word.", deps = ["//base:build"],
     run = lambda p: "mkdir -p /opt && echo %s >/opt/word && echo the log says %s" % (p["word"], p["word"]))

tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("web", doc = "An image.", deps = [":tapeout"])
"#;

fn workspace() -> Option<Workspace> {
    have(&["busybox"]).then(|| {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", BUILD);
        workspace
    })
}

#[test]
fn every_command_has_a_help_with_an_example() {
    let workspace = Workspace::empty(User::plain());
    let help = workspace.run("--help").success().stdout;
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // A line that goes on with the one above is further in.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    for expected in ["bootstrap", "build", "list", "graph", "log", "doctor"] {
        assert!(commands.contains(&expected), "no {expected} in {commands:?}");
    }
    for command in commands {
        let help = workspace.run(&format!("{command} --help")).success().stdout;
        assert!(help.contains("tapeout ") && help.contains("Usage:"), "{help}");
        // A command that has commands shows their examples.
        assert!(help.contains("Example") || help.contains("Commands:"), "{command} --help has no example:\n{help}");
    }
}

#[test]
fn a_wrong_request_exits_2_and_a_failed_build_exits_1() {
    let Some(workspace) = workspace() else { return };
    workspace.run("no-such-command").failure(2);
    workspace.run("build").failure(2);
    workspace.run("build //app:nothing").failure(2).stderr_has("//app:nothing");
    workspace.run("build //nowhere:build").failure(2).stderr_has("nowhere");
    workspace.run("build --parameter //app:wrod=x //app:web/build_image").failure(2).stderr_has("//app:wrod");
    workspace.file("bad/build.star", "rule(\"build\", deps = [\"//base:build\"], run = \"echo before; exit 3\")");
    workspace.run("build //bad:build").failure(1).stderr_has("//bad:build").says("before");
    workspace.file("worse/build.star", "rule(\"build\", deps = [\"//base:build\"]\n");
    workspace.run("build //worse:build").failure(2).stderr_has("worse/build.star");
}

#[test]
fn outside_of_a_workspace_the_error_says_how_to_begin() {
    let nowhere = Workspace::empty(User::plain());
    nowhere.run("build //app:web/build_image").failure(2).stderr_has("tapeout.toml");
}

#[test]
fn a_second_build_runs_nothing_and_a_changed_parameter_runs_what_reads_it() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    let image = workspace.output("app/web/build_image/index.json");
    let first = workspace.read("tapeout-out/app/web/build_image/index.json");
    let made = image.metadata().expect("index.json").modified().expect("mtime");
    workspace.run("build //app:web/build_image").success();
    assert_eq!(image.metadata().expect("index.json").modified().expect("mtime"), made, "it was written again");
    workspace.run("build --parameter //app:word=bye //app:web/build_image").success();
    let other = workspace.read("tapeout-out/app/web/build_image/index.json");
    assert_ne!(other, first);
    workspace.run("build //app:web/build_image").success();
    assert_eq!(workspace.read("tapeout-out/app/web/build_image/index.json"), first, "back again");
}

#[test]
fn labels_are_relative_to_the_folder_one_stands_in() {
    let Some(workspace) = workspace() else { return };
    for label in [":web", ":web/build_image", "web/build_image", "//app:web/build_image", "../app:web", "."] {
        let outcome = workspace.run(&format!("-C app build {label} --dry-run")).success();
        assert!(outcome.stdout.contains("//app:web/build_image"), "{label}{outcome}");
    }
}

#[test]
fn a_dry_run_shows_every_rule_in_order_and_runs_none() {
    let Some(workspace) = workspace() else { return };
    let plan = workspace.run("build --dry-run //app:web/build_image").success().stdout;
    let place = |label: &str| plan.find(label).unwrap_or_else(|| panic!("{label} is not in the plan:\n{plan}"));
    let order = ["//base:build", "//app:build", "//app:tapeout", "//base:tapeout", "//app:web/build_image"].map(place);
    assert!(order.is_sorted(), "{plan}");
    assert!(!workspace.output("").exists(), "a dry run writes nothing");
}

#[test]
fn list_shows_rules_and_parameters_with_their_docs_and_json() {
    let Some(workspace) = workspace() else { return };
    workspace
        .run("list //app:*")
        .success()
        .stdout_has("//app:build")
        .stdout_has("Write a word.")
        .stdout_has("//app:word")
        .stdout_has("What is written.")
        .stdout_has("//app:web/build_image");
    let json = workspace.run("list --json //app:*").success().json();
    assert!(json.to_string().contains("//app:build"), "{json:#}");
}

#[test]
fn that_nothing_depends_on_a_label_is_said_and_not_to_machines() {
    let Some(workspace) = workspace() else { return };
    let said = [
        ("list --rdeps //app:web //app:*", "nothing depends on //app:web/build_image among //app:*"),
        ("list --deps //base:build //base:*", "//base:build depends on nothing"),
    ];
    for (command, note) in said {
        let told = workspace.run(command).success();
        assert_eq!(told.stderr_has(note).stdout, "");
        assert_eq!(workspace.run(&format!("{command} --json")).success().json(), serde_json::json!([]));
    }
    workspace.run("list --rdeps //app:build").success().stdout_has("//app:tapeout").says_not("nothing");
}

#[test]
fn a_dry_run_without_a_lock_says_that_packages_would_be_installed() {
    let workspace = Workspace::empty(User::plain());
    workspace.file("tapeout.toml", "[builder]\ntag = \"bookworm\"\nfrom = \"debian:bookworm\"\n");
    workspace.file("app/build.star", "rule('build', deps = ['//base:build'], packages = ['gcc'], run = 'gcc')\n");
    workspace
        .run("build --dry-run //app:build")
        .success()
        .stdout_has("run  //base:build  with gcc")
        .stdout_has("maybe  //app:build");
}

#[test]
fn graph_shows_what_a_label_needs_and_graphviz_can_read_it() {
    let Some(workspace) = workspace() else { return };
    workspace.run("graph //app:web/build_image").success().stdout_has("//base:tapeout").stdout_has("//app:build");
    let dot = workspace.run("graph --dot //app:web/build_image").success().stdout;
    assert!(dot.trim_start().starts_with("digraph"), "{dot}");
    workspace.run("graph --json //app:web/build_image").success().json();
}

#[test]
fn log_shows_what_a_rule_printed_also_of_one_that_failed() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    workspace.run("log //app:build").success().stdout_has("the log says hello");
    workspace.file("bad/build.star", "rule(\"build\", deps = [\"//base:build\"], run = \"echo last words; exit 3\")");
    workspace.run("build //bad:build").failure(1);
    workspace.run("log //bad:build").success().stdout_has("last words");
}

#[test]
fn a_rule_that_finds_no_network_hears_where_downloads_belong() {
    let Some(workspace) = workspace() else { return };
    let hint = "rules have no network";
    let build = |run: &str| {
        let text = format!("rule('get', deps = ['//base:build'], run = '''{run}''')\n");
        workspace.file("net/build.star", text);
        workspace.run("build //net:get").failure(1)
    };
    build("wget http://example.org/x").stderr_has(hint).stderr_has("archive(").stderr_has("network = True");
    let said = [
        "curl: (6) Could not resolve host: example.org",
        "E: Failed to fetch x  Temporary failure resolving mirror.example.org",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "connect: Network is unreachable",
        "npm error request failed, reason: getaddrinfo EAI_AGAIN registry.npmjs.org",
        "Get x: dial tcp: lookup proxy.golang.org on [::1]:53: connection refused",
    ];
    said.iter().for_each(|said| _ = build(&format!("echo \"{said}\"; exit 1")).stderr_has(hint));
    build("echo no such file; exit 1").says_not(hint);
}

#[test]
fn localhost_has_an_address_in_a_rule() {
    let Some(workspace) = workspace() else { return };
    let run = "httpd -p 127.0.0.1:8099 -h /etc; wget -qO- http://localhost:8099/hosts";
    let digest = |run: &str| {
        workspace.file("lo/build.star", format!("rule('build', deps = ['//base:build'], run = '{run}')\n"));
        workspace.run("build --json //lo:build").success().json()[0]["digest"].clone()
    };
    let served = digest(run);
    workspace.run("log //lo:build").success().stdout_has("127.0.0.1\tlocalhost\n");
    assert_eq!(served, digest("true"), "it is the builder's, and no rule's change");
}

/// Everybody calls the builder "bookworm", and has one store.
#[test]
fn workspaces_whose_builders_have_one_name_do_not_disturb_each_other() {
    let (one, other) = (Workspace::debian(), Workspace::debian());
    for workspace in [&one, &other] {
        workspace.file("app/build.star", BUILD);
    }
    other.file("tapeout.toml", other.read("tapeout.toml").replace("epoch = 1767225600", "epoch = 1700000000"));
    one.run("build //app:web/build_image").success();
    other.run("build //app:web/build_image").success();
    one.run("log //app:build").success().stdout_has("the log says hello");
    one.run("build --dry-run //app:web/build_image").success().stdout_has("cached").says_not("run ");
}

#[test]
fn doctor_says_what_this_machine_offers() {
    let Some(workspace) = workspace() else { return };
    workspace.run("doctor").success().stdout_has("good     user namespaces").says_not("mirror");
    workspace.file("tapeout.toml", "[builder]\ntag = \"b\"\nfrom = \"debian:bookworm\"\nmirror = \"file:/nowhere\"\n");
    workspace.run("doctor").success().stdout_has("weak     mirror").stdout_has("stat(/nowhere/dists");
    workspace.run("doctor --offline").success().stdout_has("keyring").says_not("mirror");
    // What the page promises is there, and nothing else.
    let page = include_str!("../docs/kernel.md");
    let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let example: serde_json::Value = serde_json::from_str(example).expect("JSON");
    let examined = workspace.run("doctor --json --offline").success().json();
    let keys = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&examined), keys(&example));
    for finding in examined["findings"].as_array().expect("findings") {
        assert_eq!(keys(finding), keys(&example["findings"][0]));
    }
}

#[test]
fn nothing_is_written_but_store_and_output() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    for folder in ["home", "tmp"] {
        let folder = workspace.everything().join(folder);
        let inside: Vec<_> =
            std::fs::read_dir(&folder).expect("read_dir").flatten().map(|entry| entry.path()).collect();
        assert!(inside.is_empty(), "{inside:?}");
    }
    let mut top: Vec<_> =
        std::fs::read_dir(workspace.path("")).expect("read_dir").flatten().map(|entry| entry.file_name()).collect();
    top.sort();
    assert_eq!(top, ["app", "tapeout-out", "tapeout.toml"]);
    use std::os::unix::fs::PermissionsExt;
    let mode = workspace.store().metadata().expect("store").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "the store is its user's alone");
}
