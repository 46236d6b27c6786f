//! What comes from outside: archives, commits, and the packages that lock files pin are fetched before
//! anything runs, and each template builds real software from them without a network.

use std::fs;
use std::path::Path;

use crate::common::{Workspace, have};

/// A workspace in the builder of busybox, with the machine's programs in its `PATH`.
fn with_tools() -> Workspace {
    Workspace::tiny().env("PATH", "/usr/bin:/bin")
}

/// The digest of the changeset that a label comes to.
fn digest(workspace: &Workspace, label: &str) -> String {
    let built = workspace.run(&format!("build --json {label}")).success().json();
    built[0]["digest"].as_str().expect("a digest").to_owned()
}

/// A script as that user, with the machine's programs.
fn script(workspace: &Workspace, script: &str) -> String {
    workspace.tool("sh", &["-ec", script]).success().stdout.trim().to_owned()
}

const GIT: &str = r#"
git(
    "source",
    urls = ["input:repository"],
    commit = "COMMIT",
    submodules = SUBMODULES,
    patches = PATCHES,
)
rule("see", deps = [":source"], run = """
cd source
test ! -e .git
cat file folder/deep/run
readlink link
test -x folder/deep/run
test ! -x file
ls sub
""")
"#;

/// Repositories of the user: one with a submodule, which is the other one.
fn repositories(workspace: &Workspace) -> String {
    script(
        workspace,
        r#"
export GIT_AUTHOR_DATE='@1000000000 +0000' GIT_COMMITTER_DATE='@1000000000 +0000'
make() { git init -q "$1"; cd "$1"; git config user.name x; git config user.email x@x; }
mkdir repositories; cd repositories
(make inner; echo inside >inner-file; git add .; git commit -qm 1)
make outer
mkdir -p folder/deep; echo one >file; echo two >folder/deep/run; chmod +x folder/deep/run; ln -s ../nowhere link
printf '* export-ignore\n' >.gitattributes
git add .; git -c protocol.file.allow=always submodule --quiet add ../inner sub; git commit -qm 1
git rev-parse HEAD"#,
    )
}

#[test]
fn a_commit_is_laid_out_as_it_is_with_its_submodules_where_they_are_wanted() {
    if !have(&["git"]) {
        return;
    }
    let workspace = with_tools();
    let commit = repositories(&workspace);
    let toml = workspace.read("tapeout.toml");
    workspace.file("tapeout.toml", format!("{toml}[inputs]\nrepository = \"repositories/outer\"\n"));
    let write = |submodules: &str, patches: &str| {
        let text = GIT.replace("COMMIT", &commit).replace("SUBMODULES", submodules).replace("PATCHES", patches);
        workspace.file("app/build.star", text);
    };
    write("False", "[]");
    let without = digest(&workspace, "//app:source");
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("one\ntwo\n../nowhere\n").says_not("inner-file");

    write("True", "[]");
    let whole = digest(&workspace, "//app:source");
    assert_ne!(without, whole);
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("inner-file");

    workspace.file("app/a.patch", "--- a/file\n+++ b/file\n@@ -1 +1,2 @@\n one\n+more\n--- a/sub/inner-file\n+++ b/sub/inner-file\n@@ -1 +1 @@\n-inside\n+patched\n");
    write("True", "[\"a.patch\"]");
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("one\nmore\ntwo\n");

    // What is in the store needs neither the repository nor git.
    fs::remove_dir_all(workspace.path("repositories")).expect("remove");
    write("True", "[]");
    assert_eq!(digest(&workspace, "//app:source"), whole);
}

#[test]
fn a_commit_that_is_not_there_and_a_machine_without_git_are_errors() {
    if !have(&["git"]) {
        return;
    }
    let workspace = with_tools();
    let commit = repositories(&workspace);
    let build = |workspace: &Workspace, url: &str, commit: &str| {
        workspace.file("app/build.star", format!("git('source', urls = ['{url}'], commit = '{commit}')\n"));
        workspace.run("build //app:source")
    };
    let outer = format!("file://{}", workspace.path("repositories/outer").display());
    let blob = script(&workspace, "git -C repositories/outer rev-parse HEAD:file");
    build(&workspace, &outer, &"a".repeat(40)).failure(1).stderr_has("app/build.star:1");
    build(&workspace, &outer, &blob).failure(1).stderr_has("no commit");
    build(&workspace, "file:///nowhere", &commit).failure(1).stderr_has("/nowhere");
    build(&workspace, &outer, &commit).success();
    let bare = Workspace::tiny();
    build(&bare, &outer, &commit)
        .failure(1)
        .stderr_has("git is needed, and this machine has none")
        .stderr_has("install git");
}

#[test]
fn no_configuration_of_the_user_or_the_repository_changes_what_git_does() {
    if !have(&["git"]) {
        return;
    }
    let workspace = with_tools();
    let commit = repositories(&workspace);
    let trap = workspace.path("trap");
    let touch = format!("touch '{}'", trap.display());
    fs::write(
        workspace.home().join(".gitconfig"),
        format!("[uploadpack]\npackObjectsHook = {touch}; cat\n[core]\nfsmonitor = {touch}\n[url \"file:///nowhere\"]\ninsteadOf = file://\n"),
    )
    .expect("write");
    script(
        &workspace,
        &format!(
            "cd repositories/outer; git config core.fsmonitor \"{touch}\"; git config filter.x.smudge \"{touch}\"; echo '* filter=x' >.git/info/attributes"
        ),
    );
    let outer = workspace.path("repositories/outer").display().to_string();
    workspace.file("app/build.star", format!("git('source', urls = ['file://{outer}'], commit = '{commit}')\n"));
    workspace.run("build //app:source").success();
    assert!(!trap.exists(), "a command of a configuration ran");
}

#[test]
fn an_archive_is_patched_or_refused() {
    let workspace = with_tools();
    script(
        &workspace,
        "mkdir -p app/x-1/d; cd app; echo old >x-1/d/file; echo gone >x-1/gone; tar -czf x.tar.gz x-1; rm -r x-1",
    );
    let sha256 = script(&workspace, "sha256sum app/x.tar.gz | cut -c 1-64");
    workspace.file(
        "app/build.star",
        format!("archive('source', urls = ['file:x.tar.gz'], sha256 = '{sha256}', strip_prefix = 'x-1', patches = ['p/1.patch', 'p/2.patch'])\nrule('see', deps = [':source'], run = 'cat source/d/file source/new/file; test ! -e source/gone; test -x source/new/file')\n"),
    );
    let first =
        "--- a/d/file\n+++ b/d/file\n@@ -1 +1 @@\n-old\n+new\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n";
    let second = "--- a/d/file\n+++ b/d/file\n@@ -1 +1,2 @@\n new\n+newer\ndiff --git a/new/file b/new/file\nnew file mode 100755\n--- /dev/null\n+++ b/new/file\n@@ -0,0 +1 @@\n+made\n";
    workspace.file("app/p/1.patch", first).file("app/p/2.patch", second);
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("new\nnewer\nmade\n");
    workspace.file("app/p/2.patch", second.replace("newer", "newest"));
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("newest");
    workspace.file("app/p/1.patch", first.replace("-old", "-other"));
    workspace
        .run("build //app:see")
        .failure(1)
        .stderr_has("p/1.patch")
        .stderr_has("doesn't match")
        .stderr_has("app/build.star:1");
}

/// A workspace with lock files whose packages lie in folders that stand for crates.io, PyPI and npm.
fn locked(workspace: &Workspace) {
    let registry = workspace.everything().join("registry");
    let toml = workspace.read("tapeout.toml");
    let mirrors: String = [
        ("https://static.crates.io/crates", "crates"),
        ("https://pypi.org/simple/six/", "six.html"),
        ("https://files.example/", "files/"),
        ("https://registry.npmjs.org", "npm"),
    ]
    .map(|(from, to)| format!("\"{from}\" = \"file://{}/{to}\"\n", registry.display()))
    .concat();
    workspace.file("tapeout.toml", format!("{toml}[mirrors]\n{mirrors}"));
    let write = |path: &str, content: &str| {
        let path = registry.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("create_dir_all");
        fs::write(path, content).expect("write");
    };
    write("crates/itoa/itoa-1.0.1.crate", "a crate");
    write("files/six-1.16.0-py2.py3-none-any.whl", "a wheel");
    write("npm/is-odd/-/is-odd-3.0.1.tgz", "a package");
    let hash = |program: &str, path: &str| {
        script(workspace, &format!("{program} '{}' | cut -d ' ' -f 1", registry.join(path).display()))
    };
    let (of_crate, of_wheel) =
        (hash("sha256sum", "crates/itoa/itoa-1.0.1.crate"), hash("sha256sum", "files/six-1.16.0-py2.py3-none-any.whl"));
    write(
        "six.html",
        &format!(
            "<a href=\"https://files.example/six-1.16.0.tar.gz#sha256={}\">x</a><a href=\"https://files.example/six-1.16.0-py2.py3-none-any.whl#sha256={of_wheel}\">x</a>",
            "a".repeat(64)
        ),
    );
    let of_package = script(
        workspace,
        &format!(
            "openssl dgst -sha512 -binary '{}' | base64 -w 0",
            registry.join("npm/is-odd/-/is-odd-3.0.1.tgz").display()
        ),
    );
    workspace.file("app/Cargo.lock", format!("version = 3\n[[package]]\nname = \"itoa\"\nversion = \"1.0.1\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{of_crate}\"\n"));
    workspace.file(
        "app/requirements.lock",
        format!("six==1.16.0 \\\n    --hash=sha256:{} \\\n    --hash=sha256:{of_wheel}\n", "a".repeat(64)),
    );
    workspace.file("app/package-lock.json", format!("{{\"lockfileVersion\": 3, \"packages\": {{\"\": {{}}, \"node_modules/is-odd\": {{\"version\": \"3.0.1\", \"integrity\": \"sha512-{of_package}\"}}}}}}\n"));
    workspace.file("app/build.star", SEE);
}

const SEE: &str = r#"
rule(
    "see",
    sources = cargo_crates("Cargo.lock") + python_wheels("requirements.lock") + node_packages("package-lock.json"),
    env = {"RUN": "1"},
    run = "cat .crates/itoa-1.0.1.crate .wheels/six-1.16.0-py2.py3-none-any.whl .packages/node_modules/is-odd/package.tgz; ip -o addr | grep -v lo:; test $RUN = 1",
)
"#;

#[test]
fn what_lock_files_pin_is_fetched_once_and_then_found_without_any_network() {
    if !have(&["openssl"]) {
        return;
    }
    let workspace = with_tools();
    locked(&workspace);
    // A plan fetches nothing.
    workspace.run("build --dry-run //app:see").success().stdout_has("run  //app:see");
    workspace.file("app/build.star", SEE.replace("; ip -o addr | grep -v lo:", ""));
    workspace.run("build //app:see").success();
    workspace.run("log //app:see").success().stdout_has("a cratea wheela package");
    fs::remove_dir_all(workspace.everything().join("registry")).expect("remove");
    workspace
        .file("app/build.star", SEE.replace("; ip -o addr | grep -v lo:", "").replace("test $RUN = 1", "echo again"));
    workspace.run("build --offline //app:see").success();
    workspace.run("log //app:see").success().stdout_has("a packageagain");
}

#[test]
fn another_content_than_a_lock_file_pins_is_refused() {
    if !have(&["openssl"]) {
        return;
    }
    for (path, what) in [
        ("crates/itoa/itoa-1.0.1.crate", "itoa-1.0.1.crate"),
        ("files/six-1.16.0-py2.py3-none-any.whl", "six-1.16.0"),
        ("npm/is-odd/-/is-odd-3.0.1.tgz", "is-odd-3.0.1.tgz"),
    ] {
        let workspace = with_tools();
        locked(&workspace);
        fs::write(workspace.everything().join("registry").join(path), "something else").expect("write");
        workspace
            .run("build //app:see")
            .failure(1)
            .stderr_has(what)
            .stderr_has("not what its digest says")
            .stderr_has("app/build.star:2");
    }
}

/// The example workspace of the languages, in the shared store.
fn languages() -> Workspace {
    let workspace = Workspace::debian();
    workspace.copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/languages"), "languages");
    workspace.file("languages/tapeout.lock", workspace.read("tapeout.lock"));
    workspace
}

/// Builds an example, runs its images' checks, and builds it again from other sources without any network.
fn build_twice(package: &str, changed: &str, from: &str, to: &str) {
    if !have(&["registries"]) {
        return;
    }
    let workspace = languages();
    let run = |options: &str| workspace.run(&format!("build -C languages {options} //{package}:hello/build_image"));
    run("").success();
    let plan =
        workspace.run(&format!("build -C languages --dry-run --json //{package}:hello/build_image")).success().json();
    let steps = plan.as_array().expect("steps");
    assert!(steps.iter().all(|step| step["hermetic"] == true), "{plan:#}");
    let made = digest(&workspace, &format!("-C languages //{package}:build"));

    let file = format!("languages/{package}/{changed}");
    let text = workspace.read(&file);
    assert!(text.contains(from), "{text}");
    workspace.file(&file, text.replace(from, to));
    run("--offline").success().says(&format!("//{package}:build"));
    assert_ne!(made, digest(&workspace, &format!("-C languages //{package}:build")));
    // A variable that nothing reads runs it again, and what it makes is the same.
    workspace.file(&file, &text);
    let build = workspace.read(&format!("languages/{package}/build.star"));
    let template = if package == "rust" { "cargo" } else { package };
    let (load, call) = build.split_once(&format!("\n{template}(")).expect("a call");
    workspace.file(
        &format!("languages/{package}/build.star"),
        format!("{load}\n{template}(env = {{\"UNUSED\": \"1\"}}, {call}"),
    );
    workspace.run(&format!("build -C languages //{package}:build")).success().says("built");
    assert_eq!(made, digest(&workspace, &format!("-C languages //{package}:build")));
}

#[test]
fn a_python_package_with_a_compiled_wheel_is_built_and_runs() {
    build_twice("python", "greet/greet/__init__.py", "hello from Python", "good morning from Python");
}

#[test]
fn a_rust_program_with_crates_is_built_and_runs() {
    build_twice("rust", "src/main.rs", "hello from Rust", "good morning from Rust");
}

#[test]
fn a_node_program_with_packages_is_built_and_runs() {
    build_twice("node", "hello.js", "hello from Node.js", "good morning from Node.js");
}

#[test]
fn make_autotools_cmake_and_meson_build_real_software() {
    let workspace = languages();
    let build = workspace.read("languages/cc/build.star");
    let see = r#"
rule("see", deps = [":%s/build" % name for name in ["make", "autotools", "cmake", "meson"]], run = """
lz4 --version | grep "by Yann Collet, taped out"
test "$(hello)" = "Hello, world!"
test -e /opt/cmake/lib/libtinyxml2.so && test -e /opt/meson/lib/libtinyxml2.so
""")
"#;
    workspace.file("languages/cc/build.star", build + see);
    // Their logs and build folders differ from run to run; what they leave does not.
    let rules = ["make", "autotools", "cmake", "meson"].map(|name| format!("//cc:{name}/build"));
    workspace.run(&format!("build -C languages --twice {}", rules.join(" "))).success();
    workspace.run("build -C languages //cc/...").success();
}
