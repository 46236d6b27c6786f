//! Build files that attack the analysis: each ends within seconds in an error of the request's
//! kind that names file and line, and none takes the process that asked with it.

use std::path::Path;
use std::time::{Duration, Instant};

use tapeout::build_file::workspace;
use tapeout::error::{Error, Kind};
use tapeout::graph::{Request, analyse_by};
use tapeout::label::Package;

use crate::common::{Workspace, have};

fn ask(folder: &Path) -> Result<usize, Error> {
    let request = Request {
        workspace: workspace::Workspace::open(folder)?,
        patterns: vec!["//:a".to_string()],
        here: Package::new("")?,
        parameters: vec![],
    };
    analyse_by(Path::new(env!("CARGO_BIN_EXE_tapeout")), &request).map(|graph| graph.instances.len())
}

fn site(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("tapeout.toml"), "").expect("tapeout.toml");
    std::fs::write(folder.path().join("build.star"), text).expect("build.star");
    folder
}

/// The error of a hostile file; it must name the file and a line.
fn refused(what: &str, folder: &Path) -> Error {
    let start = Instant::now();
    let error = ask(folder).expect_err(what);
    // Not a measure of speed: the promise is that it ends by itself, after 120 s at the latest.
    assert!(start.elapsed() < Duration::from_secs(130), "{what}");
    assert_eq!(error.kind(), Kind::Request, "{what}: {error}");
    let place = &error.places().first().unwrap_or_else(|| panic!("{what}: no place: {error}")).0;
    assert!(place.file.ends_with(".star") && place.line >= 1, "{what}: {place:?}");
    error
}

#[test]
fn hostile_build_files_end_in_an_error_with_the_line() {
    let loops =
        "def f():\n    for i in range(1000000000):\n        for j in range(1000000000):\n            pass\nf()\n";
    let doubled = |start: &str| {
        format!("def f():\n    x = {start}\n    for i in range(60):\n        x = x + x\n    return x\ny = f()\n")
    };
    let calls: String = (0..1000).map(|n| format!("def f{n}():\n    return f{}()\n", n + 1)).collect();
    let calls = format!("{calls}def f1000():\n    return 0\nf0()\n");
    let cases: Vec<(&str, String, usize)> = vec![
        ("endless loops", loops.to_string(), 5),
        ("recursion", "def f(n):\n    return f(n + 1)\nf(0)\n".to_string(), 2),
        ("brackets", format!("x = 1\ny = {}{}\n", "[".repeat(200_000), "]".repeat(200_000)), 2),
        ("a sum", format!("x = 1\ny = {}1\n", "1 + ".repeat(50_000)), 2),
        ("signs", format!("y = {}1\n", "+".repeat(20_000)), 1),
        ("a product of lists", "x = 1\ny = [1]*1000*1000*1000\n".to_string(), 2),
        ("a list doubled", doubled("[1]"), 6),
        ("a string doubled", doubled("'x'"), 6),
        ("a number squared", "def f():\n    x = 2\n    for i in range(60):\n        x = x * x\n    return x\ny = f()\n".to_string(), 6),
        ("a list of a range", "y = list(range(1000000000))\n".to_string(), 1),
        ("a comprehension", "y = [i for i in range(1000000000)]\n".to_string(), 1),
        ("a join", "y = 'a'.join(['b' * 100000] * 100000)\n".to_string(), 1),
        ("a replacement", "x = ('a' * 100000).replace('a', 'b' * 100000)\n".to_string(), 1),
        ("a list in itself", "x = []\nx.append(x)\nrule('a', deps = x)\n".to_string(), 3),
        ("lists of lists", "def f():\n    x = [':a']\n    for i in range(60):\n        x = [x, x]\n    return x\nrule('a', run = f())\n".to_string(), 6),
        ("a function of the parameters", "rule('a',\n    run = lambda p: [i for i in range(1000000000)])\n".to_string(), 2),
        ("ever new values", "parameter('n', type = 'int', default = 0)\nrule('a', deps = [dep(':a', parameters = lambda p: {':n': p['n'] + 1})])\n".to_string(), 2),
        ("a load cycle", "load(':other.star', 'x')\n".to_string(), 1),
        ("a load cycle of two", "load(':one.star', 'x')\n".to_string(), 1),
        ("a long way of loads", "load(':n0.star', 'x')\n".to_string(), 1),
        ("calls inside one another", calls, 398),
        ("a power", "x = 1\ny = range(10**9)\n".to_string(), 2),
        ("a dict of a range", "y = {i: str(i) for i in range(1000000000)}\n".to_string(), 1),
        ("a dict that grows", "def f():\n    x = {}\n    for i in range(1000000000):\n        x[i] = [x]\n    return x\ny = f()\n".to_string(), 6),
        ("a string times a number", "y = 'x' * 100000000000\n".to_string(), 1),
        ("a format that doubles", doubled("'%s%s'").replace("x = x + x", "x = x.replace('%s', x)"), 6),
    ];
    for (what, text, line) in cases {
        let folder = site(&text);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect(name);
        write("other.star", "load(':other.star', 'x')\nx = 1\n");
        write("one.star", "load(':two.star', 'x')\n");
        write("two.star", "load(':one.star', 'x')\n");
        (0..60).for_each(|n| write(&format!("n{n}.star"), &format!("load(':n{}.star', 'x')\n", n + 1)));
        let error = refused(what, folder.path());
        assert_eq!(error.places()[0].0.line, line, "{what}: {error}");
    }
}

#[test]
fn what_is_no_file_of_bounded_size_is_not_read() {
    let folder = site("");
    let path = folder.path().join("build.star");
    let fresh = || std::fs::remove_file(&path).expect("remove");
    fresh();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("mkfifo");
    assert!(refused("a FIFO", folder.path()).what().contains("not a regular file"));
    fresh();
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
    assert!(refused("1 GiB", folder.path()).what().contains("longer than"));
    fresh();
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("symlink");
    assert!(refused("a link", folder.path()).what().contains("is a link"));
    fresh();
    std::fs::write(&path, b"x = 1\ny = '\xff'\n").expect("write");
    assert_eq!(refused("not UTF-8", folder.path()).places()[0].0.line, 2);
}

/// As a user meets them: an exit code, and a place.
#[test]
fn the_command_line_says_where_a_hostile_file_stands() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let refused = || workspace.run("build //app:a").failure(2).stderr_has("app/build.star:");
    for text in [
        "def f():\n    for i in range(1000000000):\n        pass\n    f()\nf()\n".to_string(),
        format!("y = {}{}\n", "[".repeat(200_000), "]".repeat(200_000)),
        "y = [1]*1000*1000*1000\n".to_string(),
    ] {
        workspace.file("app/build.star", text);
        refused();
    }
    let path = workspace.path("app/build.star");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
    refused();
    std::fs::remove_file(&path).expect("remove");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("mkfifo");
    refused();
}

#[test]
fn a_glob_looks_at_a_bounded_number_of_files_and_follows_no_link() {
    // In memory, where there is such a place: 200,000 files are soon made there.
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/var/tmp") }).expect("a folder");
    std::fs::write(folder.path().join("tapeout.toml"), "").expect("tapeout.toml");
    std::fs::write(folder.path().join("build.star"), "rule('a', sources = glob(['**']))\n").expect("build.star");
    let deep = folder.path().join("deep");
    std::fs::create_dir(&deep).expect("mkdir");
    std::fs::write(deep.join("file"), "").expect("write");
    std::os::unix::fs::symlink("..", deep.join("loop")).expect("symlink");
    std::os::unix::fs::symlink("loop", deep.join("again")).expect("symlink");
    assert_eq!(ask(folder.path()).expect("a graph"), 1);
    // More than a glob looks at.
    for part in 0..201 {
        let part = deep.join(part.to_string());
        std::fs::create_dir(&part).expect("mkdir");
        (0..1000).for_each(|n| std::fs::write(part.join(n.to_string()), "").expect("write"));
    }
    let error = refused("200,000 files", folder.path());
    assert!(error.what().contains("200000 files"), "{error}");
}

#[test]
fn a_package_behind_a_link_is_not_read() {
    let outside = site("rule('a')\n");
    let folder = site("load('//out/x.star', 'x')\nrule('a')\n");
    std::fs::write(outside.path().join("x.star"), "x = 1\n").expect("x.star");
    std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).expect("symlink");
    let error = refused("a link to a folder", folder.path());
    assert!(error.reasons().iter().any(|why| why.contains("link")), "{error}");
}

#[test]
fn what_is_asked_in_a_child_is_answered_as_in_this_process() {
    let folder = site("rule('a', deps = ['//base:build'], run = lambda p: 'true')\n");
    assert_eq!(ask(folder.path()).expect("an answer"), 2);
}
