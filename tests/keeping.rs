//! The store is kept: `explain` and `log` say what happened, `gc` and `fsck` keep what is whole and in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::common::{Workspace, have};

const BUILD: &str = r#"
parameter("jobs", type = "int", default = 2)
rule("lib/build", deps = ["//base:build"], sources = ["lib.txt"], run = "mkdir -p /out; cp lib.txt /out/lib")
rule(
    "build",
    deps = ["//base:build", ":lib/build"],
    env = {"COMPILER": "gcc"},
    run = lambda p: "echo jobs %d\nprintf '\\033[31mred\\n'\necho app > /out/app\n" % p["jobs"],
)
rule("quiet/build", deps = ["//base:build"], run = "true")
tapeout("tapeout", deps = [":build"], include = ["/out/*"])
tapeout("shell/tapeout", deps = [":build"], paths = ["/bin/busybox"])
image("web", deps = [":tapeout"])
image("checked", deps = [":shell/tapeout"], check = ["/bin/busybox", "echo", "the check says hello"])
"#;

fn workspace() -> Option<Workspace> {
    if !have(&["busybox"]) {
        return None;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD).file("app/lib.txt", "one\n");
    Some(workspace)
}

fn change(workspace: &Workspace, from: &str, to: &str) {
    let text = workspace.read("app/build.star");
    assert!(text.contains(from));
    workspace.file("app/build.star", text.replace(from, to));
}

#[test]
fn explain_names_what_changed_with_old_and_new_value() {
    let Some(workspace) = workspace() else { return };
    workspace.run("explain //app:build").success().stdout_has("never built").stdout_has("runs first: //app:lib/build");
    workspace.run("build //app:web/build_image").success();
    for label in ["//app:build", "//app:tapeout", "//app:web/build_image"] {
        workspace.run(&format!("explain {label}")).success().stdout_has("nothing changed: cached");
    }
    change(&workspace, "gcc", "clang");
    change(&workspace, "echo app", "echo application");
    let told = workspace.run("explain //app:build").success();
    told.stdout_has("env COMPILER: \"gcc\" -> \"clang\"")
        .stdout_has("- echo app > /out/app")
        .stdout_has("+ echo application");
    workspace
        .run("explain -p //app:jobs=8 //app:build")
        .success()
        .stdout_has("parameter //app:jobs: 2 -> 8")
        .stdout_has("+ echo jobs 8");

    workspace.file("app/lib.txt", "two\n");
    workspace
        .run("explain //app:lib/build")
        .success()
        .stdout_has("sources:")
        .stdout_has("changed /workspace/app/lib.txt");
    workspace.run("build //app:lib/build").success();
    let told = workspace.run("explain --json //app:build").success().json();
    let changes = told[0]["changes"].as_array().expect("a list");
    let dependency = changes.iter().find(|c| c["part"] == "dependency //app:lib/build").expect("the dependency");
    assert_eq!(dependency["files"], serde_json::json!(["changed /out/lib"]), "{told:#}");
    assert_eq!(told[0]["state"], "changed");

    // Built before, as it is now, though not last.
    workspace.run("build //app:build").success();
    workspace.file("app/lib.txt", "one\n");
    change(&workspace, "clang", "gcc");
    change(&workspace, "echo application", "echo app");
    workspace.run("explain //app:build").success().stdout_has("cached, from before its last run");
}

#[test]
fn a_failed_rule_is_explained_as_one() {
    let Some(workspace) = workspace() else { return };
    workspace.file("bad/build.star", "rule(\"build\", deps = [\"//base:build\"], run = \"exit 3\")");
    workspace.run("build //bad:build").failure(1);
    workspace.run("explain //bad:build").success().stdout_has("it failed the last time");
}

#[test]
fn log_shows_checks_says_of_silence_and_keeps_values_apart() {
    let Some(workspace) = workspace() else { return };
    workspace.run("log //app:build").failure(2).stderr_has("no run of //app:build is known");
    workspace.run("build //app:build //app:quiet/build //app:checked/build_image").success();
    workspace.run("log //app:checked").success().stdout_has("the check says hello");
    workspace.run("log //app:quiet/build").success().stderr_has("it printed nothing");
    workspace.run("log //app:build").success().stdout_has("jobs 2").stdout_has("\x1b[31mred").says_not("---");
    workspace.run("build -p //app:jobs=8 //app:build").success();
    workspace.run("log //app:build").success().stdout_has("--- //app:build, //app:jobs=2").stdout_has("jobs 8");
    workspace.run("log -p //app:jobs=8 //app:build").success().stdout_has("jobs 8").says_not("jobs 2");
    workspace.run("log -p //app:jobs=7 //app:build").failure(2).stderr_has("under other values");
    let told = workspace.run("log --json //app:build").success().json();
    assert_eq!(told.as_array().map(Vec::len), Some(2), "{told:#}");
}

#[test]
fn what_a_build_wrote_is_told_from_where_one_stands() {
    let Some(workspace) = workspace() else { return };
    workspace
        .run("build //app:web/build_image")
        .success()
        .stderr_has("//app:web/build_image  tapeout-out/app/web/build_image");
}

/// Makes all of a folder look as if it was made and used long ago.
fn age(folder: &Path) {
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.expect("walk");
        if entry.file_type().is_file() || entry.file_type().is_dir() {
            let file = fs::File::open(entry.path()).expect("open");
            file.set_modified(SystemTime::now() - Duration::from_secs(31 * 24 * 3600)).expect("utimens");
        }
    }
}

/// Ages the store, but not the files of its changesets: their times are content.
fn age_store(workspace: &Workspace) {
    for folder in ["actions", "blobs", "logs", "runs", "uses"] {
        age(&workspace.store().join(folder));
    }
    for entry in fs::read_dir(workspace.store().join("changesets")).expect("changesets") {
        let folder = fs::File::open(entry.expect("entry").path()).expect("open");
        folder.set_modified(SystemTime::now() - Duration::from_secs(31 * 24 * 3600)).expect("utimens");
    }
}

#[test]
fn gc_removes_what_no_build_used_lately_and_keeps_what_one_did() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image //app:quiet/build").success();
    workspace.run("gc").success().stdout_has("removed: 0 blobs, 0 changesets, 0 results");
    age_store(&workspace);
    workspace.run("build //app:web/build_image").success().stderr_has("cached  //app:build");
    workspace.run("gc --dry-run").success().stdout_has("would remove: 0 blobs, 1 changeset");
    workspace.run("gc").success().stdout_has("removed: 0 blobs, 1 changeset,");
    workspace.run("fsck").success();
    workspace
        .run("build //app:web/build_image //app:quiet/build")
        .success()
        .stderr_has("cached  //app:build")
        .stderr_has("built  //app:quiet/build");
    let told = workspace.run("gc --all --json").success().json();
    assert!(told["removed"]["changesets"].as_u64() > Some(2), "{told:#}");
    workspace.run("gc --all").success().stdout_has("removed: 0 blobs, 0 changesets, 0 results");
    // The builder stayed.
    workspace.run("build //app:web/build_image").success().stderr_has("built  //app:build").says_not("builder  tiny");
}

#[test]
fn a_build_during_a_collection_is_whole_and_so_is_the_store_after_a_kill() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    for round in 0..6 {
        workspace.file("app/lib.txt", format!("{round}\n"));
        let build = workspace.start("build //app:web/build_image");
        let collector = workspace.start("gc --all");
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(round * 15));
            collector.kill();
        } else {
            collector.wait(workspace.limit).success();
        }
        build.wait(workspace.limit).success();
        workspace.run("fsck").success().stdout_has(" 0 damaged");
        workspace.run("build //app:web/build_image").success();
    }
}

/// The one changeset that has this file.
fn kept_file(workspace: &Workspace, path: &str) -> PathBuf {
    let folders = fs::read_dir(workspace.store().join("changesets")).expect("changesets");
    let mut found = folders.map(|e| e.expect("entry").path().join("files").join(path)).filter(|path| path.is_file());
    found.next().unwrap_or_else(|| panic!("no changeset has {path}"))
}

#[test]
fn a_flipped_byte_is_found_named_and_mended() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    workspace.run("fsck").success().stdout_has(" 0 damaged");
    let before = fs::read(workspace.output("app/web/build_image").join("index.json")).expect("index");

    let file = kept_file(&workspace, "out/app");
    let time = fs::metadata(&file).expect("stat").modified().expect("mtime");
    let mut bytes = fs::read(&file).expect("read");
    bytes[0] ^= 1;
    fs::write(&file, bytes).expect("write");
    fs::File::open(&file).and_then(|f| f.set_modified(time)).expect("utimens");

    let told = workspace.run("fsck").failure(1);
    told.stdout_has("of //app:build")
        .stdout_has("/out/app: its content is not what was kept")
        .stderr_has("fsck --repair");
    let told = workspace.run("fsck --json").failure(1).json();
    assert_eq!(told["damaged"][0]["of"], serde_json::json!(["//app:build"]), "{told:#}");
    workspace.run("fsck --repair").success().stdout_has("1 damaged, and removed");
    workspace.run("fsck").success().stdout_has(" 0 damaged");
    workspace.run("explain //app:build").success().stdout_has("its result is not in the store any more");
    workspace.run("build //app:web/build_image").success().stderr_has("built  //app:build");
    assert_eq!(fs::read(workspace.output("app/web/build_image").join("index.json")).expect("index"), before);
}

#[test]
fn a_builder_whose_files_are_damaged_goes_with_them_in_one_repair() {
    let Some(workspace) = workspace() else { return };
    workspace.run("build //app:web/build_image").success();
    fs::write(kept_file(&workspace, "etc/passwd"), "not what was kept").expect("write");
    workspace.run("fsck").failure(1).stdout_has("damaged  changeset").stdout_has("damaged  builder tiny.json");
    workspace.run("fsck --repair").success().stdout_has("2 damaged, and removed");
    workspace.run("fsck").success().stdout_has(" 0 damaged");
    workspace.run("build //app:web/build_image").success().stderr_has("builder  tiny");
}
