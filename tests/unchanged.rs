//! A build with nothing to do is told from its record, and whatever changes, it is built: the record is never believed
//! against what stands on the disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::places::tiny_root;
use crate::common::workspace::tiny_toml;
use crate::common::{Outcome, Workspace, have};

const BUILD: &str = r#"
parameter("word", default = "one")
rule(
    "build",
    deps = ["//base:build"],
    sources = ["a.txt", "folder", input("outside")],
    run = lambda p: "mkdir /out; cat a.txt folder/* outside >/out/a; ls -l >/out/b; echo %s >/out/c" % p["word"],
)
tapeout("tapeout", deps = [":build"], include = ["/out/*"])
image("web", deps = [":tapeout"])
"#;

const COMMAND: &str = "build //app:web/build_image";

fn workspace() -> Option<Workspace> {
    if !have(&["busybox"]) {
        return None;
    }
    let workspace = Workspace::tiny();
    workspace.file("tapeout.toml", toml(None, "1767225600")).file("outside.txt", "x");
    workspace.file("app/build.star", BUILD).file("app/a.txt", "one\n").file("app/folder/b.txt", "two\n");
    Some(workspace)
}

fn toml(from: Option<&str>, epoch: &str) -> String {
    let text = tiny_toml();
    let known = tiny_root().display().to_string();
    assert!(text.contains(&known) && text.contains("1767225600"), "{text}");
    let text = text.replace(&known, from.unwrap_or(&known)).replace("1767225600", epoch);
    format!("{text}[inputs]\noutside = \"outside.txt\"\n")
}

/// The records in the store: each is a new file when it is written anew.
fn records(workspace: &Workspace) -> BTreeMap<String, (u64, i64)> {
    let entries = fs::read_dir(workspace.store().join("graphs")).expect("graphs");
    let record = |entry: fs::DirEntry| {
        let stat = entry.metadata().expect("stat");
        (entry.file_name().to_string_lossy().into_owned(), (stat.ino(), stat.mtime_nsec()))
    };
    entries.flatten().map(record).collect()
}

/// Builds until the record is there, and then once more: that one is told, or else it would have been written again.
#[track_caller]
fn told(workspace: &Workspace) {
    workspace.run(COMMAND).success();
    // A time in a file's inode can't be set; only waiting makes it old.
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let fresh = records(workspace);
    let built = workspace.run(COMMAND).success();
    let recorded = records(workspace);
    assert_ne!(fresh, recorded, "no record was written");
    let again = workspace.run(COMMAND).success();
    assert_eq!(records(workspace), recorded, "it was not told from its record");
    assert_eq!((built.stdout, built.stderr), (again.stdout, again.stderr), "it says the same");
}

/// Once more, after a change.
#[track_caller]
fn builds(workspace: &Workspace, verb: &str) -> Outcome {
    workspace.run(COMMAND).success().says(&format!("{verb:>8}  //app:"))
}

#[test]
fn what_changed_is_built() {
    let Some(workspace) = workspace() else { return };
    told(&workspace);
    let path = workspace.path("app/a.txt");
    let before = fs::metadata(&path).and_then(|stat| stat.modified()).expect("mtime");
    fs::write(&path, "eno\n").expect("write");
    fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(before)).expect("set_modified");
    builds(&workspace, "built");
    told(&workspace);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    builds(&workspace, "built");
    told(&workspace);
    workspace.file("app/folder/c.txt", "three\n");
    builds(&workspace, "built");
    told(&workspace);
    workspace.file("outside.txt", "y");
    builds(&workspace, "built");
    told(&workspace);
    workspace.file("app/build.star", BUILD.replace("echo %s", "echo the %s"));
    builds(&workspace, "built");
}

#[test]
fn an_edit_that_changes_nothing_is_told() {
    let Some(workspace) = workspace() else { return };
    let below = "rule('build', deps = ['//base:build'], run = 'echo WORD >/below')\n";
    workspace.file("below/build.star", below.replace("WORD", "one"));
    let build = BUILD.replace("deps = [\"//base:build\"]", "deps = [\"//base:build\", \"//below:build\"]");
    assert_ne!(build, BUILD);
    workspace.file("app/build.star", &build);
    told(&workspace);
    let before = records(&workspace);
    for text in ["# A comment, above all, so that each place is another one.\n", "\n\n\n"] {
        workspace.file("app/build.star", format!("{text}{build}"));
        workspace.run(COMMAND).success().says("  cached  //app:build").says_not("   built");
        let after = records(&workspace);
        let same = before.iter().filter(|(name, record)| after.get(*name) == Some(record)).count();
        assert_eq!(
            (same, after.len()),
            (1, before.len()),
            "what was seen, the graph and the memo are new, the record isn't"
        );
    }
    // What another package depends on.
    workspace.file("below/build.star", below.replace("WORD", "two"));
    workspace.run(COMMAND).success().says("   built  //below:build");
    workspace.file("below/build.star", format!("{}\nparameter('more')\n", below.replace("WORD", "one")));
    workspace.run(COMMAND).success().says("  cached  //below:build");
    // A file that it read besides.
    workspace.file("app/a.txt", "another\n").file("app/build.star", &build);
    builds(&workspace, "built");
}

#[test]
fn another_request_is_another_one() {
    let Some(workspace) = workspace() else { return };
    told(&workspace);
    workspace.run(&format!("{COMMAND} -p //app:word=two")).success().says("   built  //app:build");
    told(&workspace);
    workspace.file("tapeout.toml", toml(None, "1767225601"));
    builds(&workspace, "built");
    told(&workspace);
    workspace.copy(&tiny_root(), "root").file("tapeout.toml", toml(Some("root"), "1767225601"));
    // A copy without links, in which no shell runs: that it was tried is enough.
    workspace.run(COMMAND).failure(1).says(" builder  tiny").says_not("cached  //app:build");
    workspace.file("tapeout.toml", toml(None, "1767225601"));
    let elsewhere = workspace.home().join("elsewhere");
    workspace.run(&format!("{COMMAND} --output {}", elsewhere.display())).success().says("   wrote  //app:web");
    // What a dry run says, it says itself.
    workspace.run(&format!("{COMMAND} --dry-run")).success().stdout_has("  cached  //app:build");
}

#[test]
fn what_is_gone_is_made_again() {
    let Some(workspace) = workspace() else { return };
    told(&workspace);
    let output = workspace.output("app/web/build_image");
    fs::remove_file(output.join("index.json")).expect("unlink");
    builds(&workspace, "wrote");
    assert!(output.join("index.json").is_file());
    told(&workspace);
    fs::remove_dir_all(&output).expect("remove");
    builds(&workspace, "wrote");
    assert!(output.join("index.json").is_file());

    let digest = workspace.run("build //app:build --json").success().json()[0]["digest"].clone();
    let hex = digest.as_str().and_then(|text| text.strip_prefix("sha256:")).expect("a digest").to_string();
    let changeset = workspace.store().join("changesets").join(hex);
    told(&workspace);
    // Nothing tells it but the changeset itself.
    fs::rename(changeset.join("tree"), changeset.join("eert")).expect("rename");
    builds_again_or_says_what_is_missing(&workspace);
    fs::rename(changeset.join("eert"), changeset.join("tree")).expect("rename");
    told(&workspace);
    fs::remove_dir_all(&changeset).expect("remove");
    builds(&workspace, "built");
    told(&workspace);
    fs::remove_dir_all(workspace.store().join("actions")).expect("remove");
    builds(&workspace, "built");
}

/// A changeset that is there by half can't be replaced; it must not pass for a whole one.
#[track_caller]
fn builds_again_or_says_what_is_missing(workspace: &Workspace) {
    let outcome = workspace.run(COMMAND);
    assert!(!outcome.stderr.contains("cached  //app:build\n"), "{}", outcome.stderr);
}
