//! The README is true: what it says to type works, word for word, for an ordinary user with an empty home.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::image::fingerprint;
use crate::common::{User, Workspace, have, places};

/// The fenced blocks of a page that follow `<!-- test: NAME -->`, in order: file name or language, and text.
pub fn blocks(page: &str, name: &str) -> Vec<(String, String)> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("the page");
    let mut found = vec![];
    for part in readme.split(&format!("<!-- test: {name} -->\n")).skip(1) {
        let mut lines = part.lines().skip_while(|line| line.is_empty());
        let language = lines.next().and_then(|line| line.strip_prefix("```")).expect("a fenced block");
        let text: Vec<&str> = lines.take_while(|line| *line != "```").collect();
        found.push((language.to_owned(), text.join("\n") + "\n"));
    }
    assert!(!found.is_empty(), "{page} has no block after <!-- test: {name} -->");
    found
}

/// A user who has cloned the repository and has `cargo` in the `PATH`. (This cargo runs the binary
/// that is tested instead of compiling it once more.)
fn newcomer() -> Workspace {
    let workspace = Workspace::empty(User::plain());
    let cargo = workspace.everything().join("bin/cargo");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || {{ echo \"not a word of the README: cargo $*\" >&2; exit 2; }}\nshift 3\nexec '{}' \"$@\"\n",
        places::binary().display()
    );
    fs::write(&cargo, script).expect("write");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut path = workspace.everything().join("bin").display().to_string();
    path.push_str(":/usr/bin:/bin");
    workspace.env("PATH", &path).env("CI", "")
}

/// The programs of this machine without the setuid helpers, which nobody may need.
fn type_in(workspace: &Workspace, script: &str) -> crate::common::Outcome {
    let hidden = "PATH=$(echo \"$PATH\" | sed \"s#:/usr/bin:/bin#:$PWD/../bin/of-the-machine#\"); export PATH";
    let tools = workspace.everything().join("bin/of-the-machine");
    if !tools.exists() {
        fs::create_dir(&tools).expect("create_dir");
        for folder in ["/bin", "/usr/bin"] {
            for program in fs::read_dir(folder).expect("read_dir").flatten() {
                let name = program.file_name();
                if name != "newuidmap" && name != "newgidmap" {
                    let _ = std::os::unix::fs::symlink(program.path(), tools.join(name));
                }
            }
        }
    }
    let shell = Path::new("/bin/sh");
    let mut command = workspace.command(shell, &["-ec", &format!("{hidden}\n{script}")]);
    crate::common::outcome::Running::start(&mut command, script.into()).wait(workspace.limit)
}

#[test]
fn the_first_command_ends_with_a_bundle_and_again_it_does_nothing() {
    let workspace = newcomer().stored_in(Workspace::debian().store().to_owned());
    workspace.copy(&crate::common::examples::source(), "examples");
    let command = &blocks("README.md", "bundle")[0].1;
    type_in(&workspace, command).success();
    let bundle = workspace.path("examples/tapeout-out/shop/shop/build_pod");
    for part in [
        "pod.json",
        "images/index.json",
        "volumes/pages.tar.zst",
        "files/lighttpd.conf",
        "kube.yaml",
        "SHA256SUMS",
        "README",
    ] {
        assert!(bundle.join(part).is_file(), "the bundle lacks {part}");
    }
    workspace.tool("sh", &["-c", &format!("cd '{}' && sha256sum --quiet -c SHA256SUMS", bundle.display())]).success();
    let (before, made) = (fingerprint(&bundle), bundle.metadata().expect("bundle").modified().expect("mtime"));
    type_in(&workspace, command).success().says_not("ran ");
    assert_eq!(fingerprint(&bundle), before);
    assert_eq!(bundle.metadata().expect("bundle").modified().expect("mtime"), made, "it was written again");
}

/// Nothing is downloaded: the one network that there is has nobody in it.
#[test]
fn the_quick_start_ends_in_an_image_that_other_tools_read() {
    if !have(&["unshare", "skopeo"]) {
        return;
    }
    let workspace = newcomer();
    let tapeout = workspace.everything().join("bin/tapeout");
    std::os::unix::fs::symlink(places::binary(), tapeout).expect("symlink");
    let workspace = workspace.behind(&["/usr/bin/unshare", "-r", "-n"]);
    for (language, text) in blocks("README.md", "quick") {
        match language.split_once(' ') {
            Some((_, file)) => drop(workspace.file(file, text)),
            None => drop(type_in(&workspace, &text).success().says("/usr/local/bin/hello")),
        }
    }
    let layout = format!("oci:{}", workspace.output("hello/hello/build_image").display());
    workspace.tool("skopeo", &["inspect", &layout]).success().stdout_has("sha256:");
}

#[test]
fn the_tutorial_builds_what_it_says() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = newcomer();
    let tapeout = workspace.everything().join("bin/tapeout");
    std::os::unix::fs::symlink(places::binary(), tapeout).expect("symlink");
    let workspace = workspace.stored_in(Workspace::debian().store().to_owned());
    for (language, text) in blocks("README.md", "tutorial") {
        match language.split_once(' ') {
            // ```python app/build.star
            Some((_, file)) => drop(workspace.file(file, text)),
            None => drop(type_in(&workspace, &text).success()),
        }
    }
}

#[test]
fn every_link_of_the_docs_leads_somewhere() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![top.join("README.md"), top.join("CHANGELOG.md")];
    pages.extend(fs::read_dir(top.join("docs")).expect("docs").flatten().map(|entry| entry.path()));
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(page).expect("read");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !link.contains("://") && !file.is_empty() {
                let target = page.parent().expect("a folder").join(file);
                assert!(target.exists(), "{} links to {link}, which isn't there", page.display());
            }
        }
    }
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(top.join("Cargo.toml")).expect("Cargo.toml");
    let page = fs::read_to_string(top.join("docs/dependencies.md")).expect("dependencies.md");
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]")
            && let Some((name, _)) = line.split_once(" =")
        {
            assert!(page.contains(&format!("`{name}`")), "docs/dependencies.md doesn't name {name}");
        }
    }
}

/// A promise whose test was renamed away is a promise that nobody keeps.
#[test]
fn every_test_that_the_security_page_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(top.join("docs/security.md")).expect("security.md");
    let mut seen = 0;
    for named in page.split('`').skip(1).step_by(2).filter(|text| text.contains("::")) {
        let (module, test) = named.rsplit_once("::").expect("a module");
        let module = module.replace("::", "/");
        let places = [format!("tests/{module}.rs"), format!("src/{module}.rs"), format!("src/{module}/mod.rs")];
        let found: Vec<_> = places.iter().filter(|place| top.join(place).is_file()).collect();
        assert!(!found.is_empty(), "docs/security.md names {named}: there is no {module}");
        let defines = |place: &&String| {
            let text = fs::read_to_string(top.join(place)).expect("read");
            test.is_empty() || text.contains(&format!("fn {test}()"))
        };
        assert!(found.iter().any(defines), "docs/security.md names {named}, which isn't there");
        seen += 1;
    }
    assert!(seen > 10);
}
