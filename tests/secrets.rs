//! Secrets reach the rule that names them and nothing else; caches keep what a rule puts there and are in nothing.

use crate::common::{Workspace, have};

const TOKEN: &str = "tok-3f9a8c1d77e2";

fn workspace(build: &str) -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", build);
    workspace.file("token", format!("{TOKEN}\n"));
    workspace
}

/// Every file of the store, and every name in it.
fn holds(workspace: &Workspace, text: &str) -> Vec<String> {
    let mut found = vec![];
    for entry in walkdir::WalkDir::new(workspace.store()).into_iter().flatten() {
        let path = entry.path().display().to_string();
        let content =
            if entry.file_type().is_file() { std::fs::read(entry.path()).unwrap_or_default() } else { vec![] };
        if path.contains(text) || content.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

const GOOD: &str = r#"
rule("build", deps = ["//base:build"], secrets = ["npm_token"], run = """
wc -c </run/secrets/npm_token
stat -c '%a %u' /run/secrets /run/secrets/npm_token
ls /run/secrets
grep ' /run ' /proc/self/mountinfo | grep -o tmpfs | head -1
cp /run/secrets/npm_token /tmp/home/.npmrc
sha256sum /run/secrets/npm_token >/dev/null
echo done >/usr/lib/out
""")
rule("after", deps = [":build"], run = "! ls /run/secrets; cat /usr/lib/out")
tapeout("tapeout", deps = [":after"], include = ["/usr/lib/out"])
image("web", deps = [":tapeout"])
"#;

#[test]
fn a_secret_is_in_memory_for_one_rule_and_nowhere_else() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(GOOD);
    workspace.run("build //app:web --secret npm_token=file:token").success().says_not(TOKEN);
    let log = workspace.run("log //app:build").success().stdout;
    assert_eq!(log, "17\n700 0\n400 0\nnpm_token\ntmpfs\n");
    assert_eq!(holds(&workspace, TOKEN), [] as [String; 0]);
    // What is made needs no secret any more, and another value is the same rule.
    workspace.run("build //app:web").success().says("cached  //app:build");
    std::fs::remove_dir_all(workspace.output("")).expect("remove");
    let other = workspace.env("TOKEN", "another-token-than-before");
    other.run("build //app:web --secret npm_token=env:TOKEN").success().says("cached  //app:build");
}

#[test]
fn a_secret_that_no_rule_names_is_told_before_anything_runs() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(GOOD);
    let note = "no rule of this command names the secret npm_tokn";
    workspace.run("build //app:build --secret npm_tokn=file:token").failure(2).stderr_has(note).stderr_has("npm_token");
    let both = "--secret npm_token=file:token --secret npm_tokn=file:token";
    let told = workspace.run(&format!("build //app:build --json {both}")).success();
    told.stderr_has(note).says_not("names the secret npm_token:").json();
    workspace.run("build //app:build --secret npm_token=file:token").success().says_not("names the secret");
}

#[test]
fn a_missing_secret_is_told_before_anything_runs() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(
        r#"
rule("first", deps = ["//base:build"], run = "echo ran")
rule("build", deps = [":first"], secrets = ["npm_token", "other"], run = "true")
"#,
    );
    for flags in ["", " --secret npm_token=file:token"] {
        let missing = if flags.is_empty() { "npm_token" } else { "other" };
        workspace
            .run(&format!("build //app:build{flags}"))
            .failure(2)
            .stderr_has(&format!("rule //app:build needs the secret {missing}"))
            .stderr_has("app/build.star:3")
            .stderr_has(&format!("--secret {missing}=file:PATH"))
            .says_not("built");
    }
    workspace.run("build --dry-run //app:build").success().stdout_has("//app:build  (needs --secret npm_token, other)");
    workspace.run("list //app:*").success().stdout_has("(needs --secret npm_token, other)");
    let plan = workspace.run("--json build --dry-run //app:build").success().json();
    let rule = plan.as_array().unwrap().iter().find(|step| step["label"] == "//app:build").unwrap();
    assert_eq!(rule["secrets"], serde_json::json!(["npm_token", "other"]));
}

#[test]
fn what_gives_a_secret_away_fails_with_its_path_and_keeps_nothing() {
    if !have(&["busybox"]) {
        return;
    }
    let big = "dd if=/dev/zero bs=65531 count=1; cat /run/secrets/npm_token; dd if=/dev/zero bs=70000 count=1";
    for (name, script, told) in [
        ("log", "cat /run/secrets/npm_token", "it printed the secret npm_token"),
        ("log of a failure", "cat /run/secrets/npm_token; false", "it printed the secret npm_token"),
        ("log in pieces", "for c in tok-3f 9a8c1d 77e2; do printf %s $c; sleep 0.1; done", "it printed the secret"),
        ("file", "cp /run/secrets/npm_token /etc/npmrc", "/etc/npmrc holds the secret npm_token"),
        ("inside of a file", &format!("({big}) 2>/dev/null >/usr/lib/big"), "/usr/lib/big holds the secret npm_token"),
        ("workspace", "cp /run/secrets/npm_token x", "/workspace/app/x holds the secret npm_token"),
        ("name", "touch /usr/lib/x-$(cat /run/secrets/npm_token)-y", "the name of a file holds the secret npm_token"),
        ("link", "ln -s $(cat /run/secrets/npm_token) /usr/lib/x", "the target of /usr/lib/x holds the secret"),
    ] {
        let script = script.replace('\\', "\\\\");
        let rule = format!("rule('build', deps = ['//base:build'], secrets = ['npm_token'], run = '''{script}''')\n");
        let workspace = workspace(&rule);
        let outcome = workspace.run("build //app:build --secret npm_token=file:token").failure(1).stderr_has(told);
        outcome.stderr_has("//app:build").says_not(TOKEN);
        assert_eq!(holds(&workspace, TOKEN), [] as [String; 0], "{name}");
        workspace.run("log //app:build").says_not(TOKEN);
    }
}

#[test]
fn a_copied_snapshot_in_which_a_secret_was_left_goes_with_its_rule() {
    if !have(&["busybox"]) {
        return;
    }
    let rule = "rule('build', deps = ['//base:build'], secrets = ['npm_token'], \
        run = 'cp /run/secrets/npm_token /etc/npmrc; cat /etc/npmrc')\n";
    let workspace = workspace(rule);
    let outcome = workspace.run("build //app:build --snapshots copy --secret npm_token=file:token").failure(1);
    outcome.stderr_has("it printed the secret npm_token");
    assert_eq!(holds(&workspace, TOKEN), [] as [String; 0]);
}

#[test]
fn a_cache_that_is_given_a_secret_fails_with_its_path_and_loses_it() {
    if !have(&["busybox"]) {
        return;
    }
    for (script, told) in [
        ("cp /run/secrets/npm_token /c/deep/npmrc", "the cache at /c/deep/npmrc was given the secret npm_token"),
        ("cp /run/secrets/npm_token /c/deep/npmrc; false", "the cache at /c/deep/npmrc was given"),
        ("ln -s $(cat /run/secrets/npm_token) /c/link", "the cache at /c/link was given"),
        ("touch /c/x-$(cat /run/secrets/npm_token)", "the cache at /c was given"),
    ] {
        let rule = format!(
            "rule('build', deps = ['//base:build'], secrets = ['npm_token'], caches = ['/c'], \
             run = 'mkdir -p /c/deep; echo kept >/c/deep/kept; {script}')\n"
        );
        let workspace = workspace(&rule);
        let built = workspace.run("build //app:build --secret npm_token=file:token").failure(1).stderr_has(told);
        built.says_not(TOKEN);
        assert_eq!(holds(&workspace, TOKEN), [] as [String; 0], "{script}");
        assert_eq!(holds(&workspace, "kept").iter().filter(|path| path.ends_with("files/deep/kept")).count(), 1);
    }
}

#[test]
fn a_secret_that_stands_in_a_build_file_is_refused() {
    if !have(&["busybox"]) {
        return;
    }
    for (what, definition) in [
        ("env", format!("image('x', deps = [':t'], env = {{'NPM_TOKEN': 'a {TOKEN}'}})")),
        ("labels", format!("image('x', deps = [':t'], labels = {{'a': '{TOKEN}'}})")),
        ("cmd", format!("image('x', deps = [':t'], cmd = ['run', '--token={TOKEN}'])")),
        ("run", format!("rule('x', deps = ['//base:build'], run = 'echo {TOKEN} >/dev/null')")),
        ("files", format!("tapeout('x', files = [file('/etc/npmrc', content = '{TOKEN}')])")),
    ] {
        let more = "tapeout('t', files = [file('/y', content = 'z')])";
        let workspace = workspace(&format!("{definition}\n{more}\n"));
        let label = if definition.starts_with("image") { "//app:x/build_image" } else { "//app:x" };
        workspace
            .run(&format!("build {label} --secret npm_token=file:token"))
            .failure(2)
            .stderr_has(&format!("{label}: the secret npm_token is in its attributes"))
            .stderr_has(what)
            .says_not(TOKEN)
            .says_not("built");
        assert_eq!(holds(&workspace, TOKEN), [] as [String; 0], "{what}");
    }
}

#[test]
fn a_flag_that_is_no_secret_is_refused_and_not_repeated() {
    let workspace = workspace("rule('build', deps = ['//base:build'], secrets = ['t'], run = 'true')\n");
    let workspace = workspace.env("SHORT", "1234567");
    workspace.file("long", vec![b'x'; 70_000]);
    for (flag, told) in [
        (TOKEN, "NAME=file:PATH"),
        ("t=tok-3f9a8c1d77e2", "neither file: nor env:"),
        ("t=file:nowhere", "No such file"),
        ("t=file:.", "not a regular file"),
        ("t=file:long", "more than 65536 bytes"),
        ("t=env:NOT_SET", "NOT_SET is not set"),
        ("t=env:SHORT", "7 bytes"),
        ("../t=file:token", "not the name of a secret"),
    ] {
        let outcome = workspace.run_words(&["build", "//app:build", "--secret", flag]).failure(2).stderr_has(told);
        outcome.says_not(TOKEN);
    }
}

const CACHED: &str = r#"
rule("first", deps = ["//base:build"], caches = ["/root/.cargo/registry", "/var/lib"], run = """
echo kept >>/root/.cargo/registry/log; mkdir -p /root/.cargo/registry/deep; echo x >/var/lib/x
chown 33:33 /root/.cargo/registry/log
""")
rule("second", deps = [":first"], caches = ["/root/.cargo/registry"], run = """
test ! -e /var/lib/x
cat /root/.cargo/registry/log
echo own >/root/.cargo/config
""")
rule("third", deps = [":second"], run = "find /root /var/lib | sort; cat /root/.cargo/config")
tapeout("tapeout", deps = [":third"], include = ["/root/**", "/var/**"])
"#;

#[test]
fn a_cache_keeps_its_content_and_is_in_no_changeset() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(CACHED);
    workspace.run("build //app:third").success();
    assert_eq!(workspace.run("log //app:second").success().stdout, "kept\n");
    let third = workspace.run("log //app:third").success().stdout;
    assert_eq!(third, "/root\n/root/.cargo\n/root/.cargo/config\n/var/lib\nown\n");
    // Another rule that runs finds what was left, and what is cached stays so whatever a cache holds.
    let changed = CACHED.replace("echo kept", "echo again");
    workspace.file("app/build.star", changed);
    workspace.run("build //app:third").success().says("built  //app:first").says("cached  //app:second");
    workspace.file("app/build.star", CACHED.replace("cat /root", "echo; cat /root"));
    workspace.run("build //app:second").success();
    assert_eq!(workspace.run("log //app:second").success().stdout, "\nkept\nagain\n");
}

#[test]
fn two_rules_never_write_one_cache_at_once() {
    if !have(&["busybox"]) {
        return;
    }
    let script = "test ! -e /c/busy; echo >/c/busy; sleep 0.3; rm /c/busy; echo $0 >>/c/done; cat /c/done | wc -l";
    let rules: String = ["a", "b", "c"]
        .iter()
        .map(|name| {
            format!(
                "rule('{name}', deps = ['//base:build'], caches = ['/c'], run = '{script}', env = {{'N': '{name}'}})\n"
            )
        })
        .collect();
    let workspace = workspace(&format!("{rules}rule('build', deps = [':a', ':b', ':c'])\n"));
    workspace.run("build -j 3 //app:build").success();
    let mut lines: Vec<_> =
        ["a", "b", "c"].map(|name| workspace.run(&format!("log //app:{name}")).success().stdout).into();
    lines.sort();
    assert_eq!(lines.concat(), "1\n2\n3\n");
}

#[test]
fn a_cache_over_what_a_rule_stands_on_is_refused() {
    for (path, told) in [
        ("/", "hide all"),
        ("/proc", "its own /proc"),
        ("/run/x", "its own /run"),
        ("/tmp", "hide all"),
        ("cache", "must begin with /"),
        ("/a/../b", "a part that is .."),
        ("//proc", "doubled slashes"),
        ("/var/./x", "doubled slashes"),
        ("/workspace", "the rule's sources"),
        ("/workspace/app", "the rule's sources"),
    ] {
        let workspace =
            workspace(&format!("rule('build', deps = ['//base:build'], caches = [{path:?}], run = 'true')\n"));
        workspace.run("build //app:build").failure(2).stderr_has(told).stderr_has("app/build.star:1");
    }
}

#[test]
fn a_cache_whose_place_is_a_link_or_a_file_is_an_error() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = workspace(
        r#"
rule("links", deps = ["//base:build"], run = "ln -s /tmp /link; echo >/file")
rule("link", deps = [":links"], caches = ["/link/x"], run = "true")
rule("file", deps = [":links"], caches = ["/file"], run = "true")
"#,
    );
    for name in ["link", "file"] {
        workspace.run(&format!("build //app:{name}")).failure(1).stderr_has("is no folder");
    }
}
