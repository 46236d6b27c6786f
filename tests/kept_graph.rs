//! The analysed graph is kept, and is the one that an analysis would give: whatever changes on disk that the
//! analysis looked at, it is done again. Whether it was done is seen by an executable that can't be started.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tapeout::build_file::spec::Graph;
use tapeout::build_file::workspace::Workspace;
use tapeout::error::Result;
use tapeout::graph::{Request, analyse_by, kept};
use tapeout::label::Package;
use tapeout::store::Store;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_tapeout");

struct Site {
    folder: tempfile::TempDir,
    store: Store,
    labels: Vec<String>,
    parameters: Vec<String>,
    paths: Vec<PathBuf>,
}

const FILES: [(&str, &str); 10] = [
    ("tapeout.toml", ""),
    (
        "app/build.star",
        "load('//t/t.star', 't')\nparameter('x', default = 'y')\nt('a')\nrule('l', sources = cargo_crates('Cargo.lock'))\n",
    ),
    ("app/Cargo.lock", "version = 3\n"),
    (
        "t/t.star",
        "def t(name):\n    rule(name, deps = ['//base:build', '//lib:b'], sources = glob(['src/**'], allow_empty = True) + ['one.c'], run = lambda p: p['x'])\n",
    ),
    ("app/src/m.c", "one"),
    ("app/src/deep/n.c", "two"),
    ("app/src/other/build.star", ""),
    ("app/one.c", ""),
    ("lib/build.star", "rule('b')\n"),
    ("doc/readme", ""),
];

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("store")).expect("a store");
        // For the key it is the executable; started it can't be.
        let stat = fs::metadata(EXECUTABLE).expect("stat");
        let dead = fs::File::create(folder.path().join("tapeout")).expect("create");
        dead.set_len(stat.len()).and_then(|()| dead.set_modified(stat.modified()?)).expect("size and time");
        let site =
            Self { folder, store, labels: vec!["//app:a".into(), "//app:l".into()], parameters: vec![], paths: vec![] };
        FILES.iter().for_each(|(path, text)| site.write(path, text));
        site
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("workspace").join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn request(&self) -> Request {
        Request {
            workspace: Workspace::open(&self.path("")).expect("a workspace").with_paths(self.paths.iter().cloned()),
            patterns: self.labels.clone(),
            here: Package::new("").expect("a package"),
            parameters: self.parameters.clone(),
        }
    }

    fn ask(&self) -> Result<Graph> {
        kept::analyse_by(Path::new(EXECUTABLE), &self.store, &self.request())
    }

    /// The answer is there without a child.
    fn is_kept(&self) -> bool {
        kept::analyse_by(&self.folder.path().join("tapeout"), &self.store, &self.request()).is_ok()
    }

    /// Asks, and holds the answer against that of an analysis.
    #[track_caller]
    fn is_right(&self, what: &str) {
        let text = |graph: Result<Graph>| {
            graph.map(|graph| serde_json::to_string(&graph).expect("JSON")).map_err(|e| e.what().to_string())
        };
        let fresh = analyse_by(Path::new(EXECUTABLE), &self.request());
        assert_eq!(text(self.ask()), text(fresh), "{what}");
    }
}

/// Times that are long past, so that the files are at rest: what a change does is then seen by their times alone.
fn rested(site: &Site) {
    // ctime can't be set; only waiting makes it old.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    site.is_right("at rest");
    assert!(site.is_kept(), "at rest");
}

type Change = (&'static str, fn(&Site));

const SEEN: [Change; 16] = [
    ("a build file", |site| site.write("app/build.star", "rule('a')\nrule('l', run = 'x')\n")),
    ("a build file, as long and as old as before", |site| {
        let path = site.path("lib/build.star");
        let before = fs::metadata(&path).expect("stat").modified().expect("mtime");
        fs::write(&path, "rule('B')\n").expect("write");
        fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(before)).expect("set_modified");
    }),
    ("a build file that is gone", |site| fs::remove_file(site.path("lib/build.star")).expect("unlink")),
    ("a file that is loaded", |site| site.write("t/t.star", "def t(name):\n    rule(name)\n")),
    ("a lock", |site| site.write("app/Cargo.lock", "version = 4\n")),
    ("a new file that a glob takes", |site| site.write("app/src/deep/new.c", "")),
    ("a new folder below a glob", |site| site.write("app/src/new/new.c", "")),
    ("a file less", |site| fs::remove_file(site.path("app/src/deep/n.c")).expect("unlink")),
    ("a file renamed", |site| fs::rename(site.path("app/src/m.c"), site.path("app/src/k.c")).expect("rename")),
    ("a folder that became a package", |site| site.write("app/src/deep/build.star", "")),
    ("a package that is none any more", |site| {
        fs::remove_file(site.path("app/src/other/build.star")).expect("unlink");
        site.write("app/src/other/o.c", "");
    }),
    ("a source that is gone", |site| fs::remove_file(site.path("app/one.c")).expect("unlink")),
    ("a build file that became a link", |site| {
        fs::rename(site.path("lib/build.star"), site.path("lib/real.star")).expect("rename");
        symlink("real.star", site.path("lib/build.star")).expect("symlink");
    }),
    ("a package that became a link", |site| {
        fs::rename(site.path("lib"), site.path("real")).expect("rename");
        symlink("real", site.path("lib")).expect("symlink");
    }),
    ("a package of a higher folder", |site| {
        fs::create_dir_all(site.folder.path().join("high/lib")).expect("mkdir");
        fs::write(site.folder.path().join("high/lib/build.star"), "rule('b', run = 'higher')\n").expect("write");
    }),
    ("a folder of the search path, a link that leads elsewhere", |site| {
        let other = site.folder.path().join("other");
        fs::create_dir_all(other.join("lib")).expect("mkdir");
        fs::write(other.join("lib/build.star"), "rule('b', run = 'other')\n").expect("write");
        fs::remove_file(site.folder.path().join("high")).expect("unlink");
        symlink(&other, site.folder.path().join("high")).expect("symlink");
    }),
];

/// In a site of its own each: with what is at rest, and with what changed a moment ago.
#[test]
fn whatever_the_analysis_looked_at_is_looked_at_again() {
    std::thread::scope(|scope| {
        for (what, change) in SEEN {
            for rest in [false, true] {
                scope.spawn(move || {
                    let mut site = Site::new();
                    let high = site.folder.path().join("high");
                    site.paths.push(high.clone());
                    if what.contains("a link that leads elsewhere") {
                        fs::create_dir(site.folder.path().join("empty")).expect("mkdir");
                        symlink(site.folder.path().join("empty"), &high).expect("symlink");
                    } else {
                        fs::create_dir(&high).expect("mkdir");
                    }
                    site.is_right(what);
                    assert!(site.is_kept(), "{what}: before");
                    if rest {
                        rested(&site);
                    }
                    change(&site);
                    assert!(!site.is_kept(), "{what}: a stale graph was taken");
                    site.is_right(what);
                });
            }
        }
    });
}

#[test]
fn what_the_analysis_did_not_look_at_costs_no_analysis() {
    let site = Site::new();
    site.is_right("first");
    rested(&site);
    site.write("app/src/m.c", "other content, which is the rule's and not the graph's");
    site.write("doc/new", "");
    site.write("tapeout-out/x", "");
    assert!(site.is_kept());
    // Written again as it was: read once more, and known by its times after that.
    site.write("lib/build.star", FILES[8].1);
    assert!(site.is_kept());
    rested(&site);
    fs::set_permissions(site.path("lib/build.star"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(site.is_kept());
    site.is_right("all of it");
}

#[test]
fn another_question_has_another_answer() {
    let mut site = Site::new();
    site.is_right("first");
    site.parameters = vec!["//app:x=z".into()];
    assert!(!site.is_kept(), "parameters");
    site.is_right("parameters");
    assert!(site.is_kept());
    site.labels = vec!["//app:a".into()];
    assert!(!site.is_kept(), "labels");
    site.is_right("labels");
    site.labels = vec!["//...".into()];
    site.is_right("a pattern");
    assert!(site.is_kept());
    site.write("new/build.star", "rule('n')\n");
    assert!(!site.is_kept(), "a new package");
    site.is_right("a new package");
    fs::remove_file(site.path("new/build.star")).expect("unlink");
    site.is_right("a package less");
    site.write("lib/tapeout.toml", "");
    assert!(!site.is_kept(), "a workspace of its own");
    // Another build of tapeout, if only by its time.
    site.labels = vec!["//app:a".into()];
    site.is_right("before");
    let executable = fs::File::options().write(true).open(site.folder.path().join("tapeout")).expect("open");
    executable.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("set_modified");
    drop(executable);
    assert!(!site.is_kept(), "another tapeout");
}

#[test]
fn a_damaged_record_means_an_analysis() {
    let site = Site::new();
    site.is_right("first");
    let graphs = site.store.path().join("graphs");
    // What was seen, the graph, and the memo, which is looked at only after an edit.
    let records: Vec<_> = fs::read_dir(&graphs).expect("graphs").flatten().map(|entry| entry.path()).collect();
    assert_eq!(records.len(), 3);
    let needed: usize = records.iter().map(|record| usize::from(is_needed(&site, record))).sum();
    assert_eq!(needed, 2);
}

/// Damages it in many ways. Is it read while nothing was edited?
fn is_needed(site: &Site, record: &Path) -> bool {
    let whole = fs::read(record).expect("read");
    let mut flipped: Vec<Vec<u8>> = [0, 31, 32, 39, 60, whole.len() / 2, whole.len() - 1]
        .iter()
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[*at] ^= 1;
            bytes
        })
        .collect();
    flipped.extend([0, 16, 32, 40, whole.len() - 1].map(|length| whole[..length].to_vec()));
    let mut is_needed = None;
    for bytes in flipped {
        fs::write(record, &bytes).expect("write");
        let needed = !site.is_kept();
        assert_eq!(*is_needed.get_or_insert(needed), needed, "{} bytes", bytes.len());
    }
    // After an edit it may be read, and isn't believed.
    for text in ["rule('b', run = 'one')\n", FILES[8].1] {
        site.write("lib/build.star", text);
        site.is_right("damaged");
    }
    assert!(site.is_kept(), "it was written again");
    is_needed.expect("it was damaged")
}

#[test]
fn only_the_newest_are_kept() {
    let mut site = Site::new();
    for number in 0..70 {
        site.parameters = vec![format!("//app:x={number}")];
        site.ask().expect("a graph");
    }
    assert!(site.is_kept(), "the last one");
    let count = fs::read_dir(site.store.path().join("graphs")).expect("graphs").count();
    assert!(count <= 64, "{count}");
}

#[test]
fn a_part_of_another_analysis_is_none() {
    let site = Site::new();
    let names = || fs::read_dir(site.store.path().join("graphs")).expect("graphs").flatten().map(|entry| entry.path());
    site.is_right("first");
    let first: Vec<_> = names().map(|path| (path.clone(), fs::read(path).expect("read"))).collect();
    site.write("lib/build.star", "rule('b', run = 'other')\n");
    site.is_right("other");
    // As if two commands had written at once, or one had been killed in the middle: each file from either.
    let second: Vec<_> = first.iter().map(|(path, _)| fs::read(path).expect("read")).collect();
    for mixture in 0..1 << first.len() {
        for (at, (path, old)) in first.iter().enumerate() {
            fs::write(path, if mixture >> at & 1 == 1 { old } else { &second[at] }).expect("write");
        }
        site.is_right("a mixture");
        site.write("app/build.star", &format!("{}# {mixture}\nrule('n')\n", FILES[1].1));
        site.is_right("a mixture, after an edit");
        site.write("app/build.star", FILES[1].1);
    }
}

#[test]
fn a_request_that_is_wrong_is_wrong_each_time() {
    let site = Site::new();
    site.write("lib/build.star", "rule('b', deps = [':none'])\n");
    for _ in 0..2 {
        assert!(site.ask().expect_err("an error").what().contains("//lib:none"));
    }
}
