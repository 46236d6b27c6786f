//! The closure, tried on the programs of the machine that runs the tests.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::*;
use crate::tapeout::testing::{OnDisk, path};
use crate::tree::{Change, Changeset, Content, Layer as Changes};

/// The host's own files as a builder. Digests are of names and sizes: content is not read for a test.
fn host() -> &'static Stack {
    static HOST: OnceLock<Stack> = OnceLock::new();
    HOST.get_or_init(|| {
        let mut changes = BTreeMap::new();
        for top in [
            "bin",
            "sbin",
            "lib",
            "lib64",
            "lib32",
            "libx32",
            "etc",
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "usr/local/lib",
        ] {
            for entry in walkdir::WalkDir::new(format!("/{top}"))
                .max_depth(3)
                .follow_links(false)
                .into_iter()
                .filter_map(|e| e.ok())
            {
                let data = entry.metadata().unwrap();
                let kind = data.file_type();
                let made = if kind.is_dir() {
                    Entry::folder(0o755)
                } else if kind.is_symlink() {
                    Entry::link(std::fs::read_link(entry.path()).unwrap().as_os_str().as_bytes())
                } else if kind.is_file() {
                    let unique = format!("{}:{}", data.dev(), data.ino());
                    let node = Node::File { size: data.len(), digest: Digest::of(unique), group: None };
                    Entry { node, ..Entry::folder(data.permissions().mode() & 0o7777) }
                } else {
                    continue;
                };
                changes.insert(
                    RootPath::new(entry.path().as_os_str().as_bytes()).unwrap(),
                    Change { was: None, now: Some(made) },
                );
            }
        }
        for folder in ["usr", "usr/local"] {
            changes.entry(path(folder)).or_insert(Change { was: None, now: Some(Entry::folder(0o755)) });
        }
        Stack(vec![Changes { digest: Digest::of("host"), changeset: Arc::new(Changeset { time: 0, changes }) }])
    })
}

fn pick(files: &[&str]) -> Selection {
    files
        .iter()
        .map(|f| (path(f), World::new([], host()).pick(&path(f), format!("paths {f}").into()).expect(f)))
        .collect()
}

fn closed_with(
    view: &Stack,
    files: &dyn Files,
    selection: &Selection,
    libraries: &Libraries,
    env: &[(&str, &str)],
) -> Result<Closed> {
    let rule = "//app:tapeout".parse().unwrap();
    let env = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    close(&Request {
        base: &[],
        picked: &[Layer { rule: &rule, libraries, selection }],
        view,
        files,
        user: "",
        env: &env,
        starts: &[],
    })
}

fn closed(selection: &Selection) -> Closed {
    closed_with(host(), &OnDisk("/".into()), selection, &Libraries::Search(true), &[]).unwrap()
}

/// What ldd says: the libraries' paths with all links followed.
fn ldd(program: &str) -> Vec<RootPath> {
    let out = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}");
    let words = text.lines().flat_map(str::split_whitespace).filter(|w| w.starts_with('/'));
    words.map(|w| path(std::fs::canonicalize(w).unwrap().to_str().unwrap())).collect()
}

#[test]
fn the_closure_has_all_that_ldd_finds() {
    let mut tried = 0;
    for program in [
        "/usr/bin/redis-check-rdb",
        "/usr/bin/python3",
        "/usr/bin/git",
        "/usr/bin/curl",
        "/bin/sh",
        "/usr/bin/perl",
        "/usr/sbin/nginx",
        "/usr/bin/ls",
    ] {
        let Ok(real) = std::fs::canonicalize(program) else { continue };
        tried += 1;
        let selection = pick(&[real.to_str().unwrap()]);
        let closed = closed(&selection);
        for library in ldd(program) {
            assert!(closed.selection.contains_key(&library), "{program} needs {library}");
        }
        for picked in closed.selection.values() {
            let why: Why = picked.why.parse().unwrap();
            assert!(matches!(why, Why::Needed { .. } | Why::Holds(_) | Why::Skeleton(_)), "{}", picked.why);
        }
    }
    assert!(tried >= 2);
}

/// Writes an image of the host's files, and of compiled ones, below a folder.
fn lay_out(dir: &std::path::Path, layers: [&Selection; 2], compiled: &std::path::Path) {
    for (path, picked) in crate::tapeout::lookup::merged(layers) {
        let (at, entry) = (path.below(dir), picked.entry.unwrap());
        match (&entry.node, &picked.content) {
            (Node::Folder, _) => std::fs::create_dir_all(&at).unwrap(),
            (Node::Link { target }, _) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &at).unwrap(),
            (_, Content::Inline(bytes)) => std::fs::write(&at, bytes).unwrap(),
            (_, Content::Stored { changeset, .. }) if *changeset == Digest::of("compiled") => {
                std::fs::copy(path.below(compiled), &at).unwrap();
            }
            _ => drop(std::fs::copy(path.below("/".as_ref()), &at).unwrap()),
        }
    }
}

/// Runs a program in an image; `None`: nothing can be run so here.
fn run_inside(dir: &std::path::Path, argv: &[&str]) -> Option<std::process::Output> {
    let allowed = Command::new("unshare").args(["-r", "true"]).output().is_ok_and(|out| out.status.success());
    if !allowed {
        #[expect(clippy::print_stderr, reason = "a test that skips says so aloud")]
        {
            eprintln!("skipped: no user namespace can be made here");
        }
        return None;
    }
    Some(Command::new("unshare").args(["-r", "/usr/sbin/chroot"]).arg(dir).args(argv).env_clear().output().unwrap())
}

#[test]
fn programs_run_with_nothing_but_their_closure() {
    for (program, args, says) in [
        ("usr/bin/ls", &["/"][..], "etc"),
        ("usr/bin/env", &["--version"], "coreutils"),
        ("usr/bin/git", &["--version"], "git version"),
        ("usr/bin/curl", &["--version"], "https"),
        ("usr/bin/perl", &["-e", "use strict; print 'perl runs'"], "perl runs"),
        ("usr/sbin/nginx", &["-v"], "nginx"),
    ] {
        let Some(real) = host().file(&path(program)) else { continue };
        let selection = pick(&[&real.to_string()]);
        let dir = tempfile::tempdir().unwrap();
        let mut image = selection.clone();
        add_folders(&mut image, host(), &BTreeMap::new()).unwrap();
        lay_out(dir.path(), [&image, &closed(&selection).selection], dir.path());
        // git opens it before all; a runtime would put the device there.
        std::fs::write(dir.path().join("dev/null"), "").unwrap();
        let Some(out) = run_inside(dir.path(), &[&[real.to_string().as_str()], args].concat()) else { return };
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && text.contains(says), "{program}: {text}");
    }
}

#[test]
fn what_is_added_has_its_links_and_the_folders_above() {
    let closed = closed(&pick(&["usr/bin/ls"]));
    for (path, picked) in &closed.selection {
        for above in path.ancestors().filter(|p| !p.is_root()) {
            let there = closed.selection.get(&above).is_some_and(|p| p.entry.as_ref().unwrap().is_folder());
            assert!(there || ["/usr", "/usr/bin"].contains(&above.to_string().as_str()), "{above} above {path}");
        }
        if let Node::Link { .. } = picked.entry.as_ref().unwrap().node {
            assert!(picked.why.contains("needed by") || picked.why.contains("skeleton"), "{path}: {}", picked.why);
        }
    }
    if std::fs::symlink_metadata("/lib64").is_ok_and(|d| d.is_symlink()) {
        assert!(closed.selection.contains_key(&path("lib64")));
    }
    let libc = closed.selection.iter().find(|(path, _)| path.name() == b"libc.so.6").unwrap();
    assert!(libc.1.why.starts_with("needed by /usr/") && libc.1.why.ends_with("(libc.so.6)"), "{}", libc.1.why);
}

#[test]
fn a_link_brings_every_link_between_also_when_its_end_was_picked() {
    let changes = [
        ("usr", Entry::folder(0o755)),
        ("usr/x", Entry::link("/etc/y")),
        ("etc", Entry::folder(0o755)),
        ("etc/y", Entry::link("../opt/z")),
        ("etc/dir", Entry::link("../opt/more")),
        ("opt", Entry::folder(0o755)),
        ("opt/z", Entry::file(b"end", 0o644)),
        ("opt/more", Entry::folder(0o755)),
        ("opt/more/inside", Entry::file(b"inside", 0o644)),
    ];
    let changes = changes.map(|(p, e)| (path(p), Change { was: None, now: Some(e) })).into();
    let view =
        Stack(vec![Changes { digest: Digest::of("links"), changeset: Arc::new(Changeset { time: 0, changes }) }]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("opt")).unwrap();
    std::fs::write(dir.path().join("opt/z"), "end").unwrap();
    for picked in [&["usr/x", "opt/z"][..], &["usr/x"]] {
        let selection =
            picked.iter().map(|p| (path(p), World::new([], &view).pick(&path(p), "".into()).unwrap())).collect();
        let closed = closed_with(&view, &OnDisk(dir.path().into()), &selection, &Libraries::Search(true), &[]).unwrap();
        assert_eq!(&*closed.selection[&path("etc/y")].why, "needed by /usr/x (the target of the link)");
        assert_eq!(closed.selection.contains_key(&path("opt/z")), picked.len() == 1);
    }
    let selection = [(path("etc/dir"), World::new([], &view).pick(&path("etc/dir"), "".into()).unwrap())].into();
    let closed = closed_with(&view, &OnDisk(dir.path().into()), &selection, &Libraries::Search(true), &[]).unwrap();
    assert!(!closed.selection.contains_key(&path("opt/more")), "a folder does not come with a link");
}

#[test]
fn rules_that_say_so_are_not_searched() {
    let closed =
        closed_with(host(), &OnDisk("/".into()), &pick(&["usr/bin/ls"]), &Libraries::Search(false), &[]).unwrap();
    assert!(!closed.selection.keys().any(|p| p.name() == b"libc.so.6"));
}

#[test]
fn a_script_brings_its_interpreter_and_what_that_needs() {
    let mut selection = Selection::new();
    let text = b"#!/usr/bin/env sh\n";
    selection.insert(
        path("opt/run"),
        Picked { entry: Some(Entry::file(text, 0o755)), content: Content::Inline(text.to_vec()), why: "files".into() },
    );
    let closed = closed(&selection);
    let sh = std::fs::canonicalize("/bin/sh").unwrap();
    for needed in ["/usr/bin/env", "/usr/bin/sh", sh.to_str().unwrap()] {
        assert!(closed.selection.contains_key(&path(needed)), "{needed}");
    }
    assert!(closed.selection.keys().any(|p| p.name() == b"libc.so.6"));
}

#[test]
fn a_missing_interpreter_is_an_error_that_names_the_script() {
    let script = |at: &str, text: &[u8], mode: u32| {
        Selection::from([(
            path(at),
            Picked { entry: Some(Entry::file(text, mode)), content: Content::Inline(text.to_vec()), why: "".into() },
        )])
    };
    let close =
        |selection: &Selection| closed_with(host(), &OnDisk("/".into()), selection, &Libraries::Search(true), &[]);
    for text in ["#!/opt/none\n", "#!/usr/bin/env no-such-program\n"] {
        let error = close(&script("opt/run", text.as_bytes(), 0o755)).unwrap_err();
        assert!(error.what().contains("/opt/run"), "{error}");
    }
    assert!(close(&script("opt/data", b"#!/opt/none\n", 0o644)).is_ok(), "it can't be run");
    assert!(close(&script("etc/init.d/x", b"#!/opt/none\n", 0o755)).is_ok(), "an image has no init");
    assert_eq!(close(&script("usr/share/x/y", b"#!/opt/none\n", 0o755)).unwrap().warnings.len(), 1);
}

/// Written files, executable if they begin as a script; a text without a line is the target of a link.
fn written(files: &[(&str, &str)]) -> Selection {
    let picked = |text: &str| match text.contains('\n') {
        true => Picked {
            entry: Some(Entry::file(text.as_bytes(), 0o755)),
            content: Content::Inline(text.into()),
            why: "".into(),
        },
        false => Picked { entry: Some(Entry::link(text)), content: Content::None, why: "".into() },
    };
    let mut all = files.iter().map(|(at, text)| (path(at), picked(text))).collect();
    add_folders(&mut all, host(), &BTreeMap::new()).unwrap();
    all
}

fn closed_for(selection: &Selection, starts: &[&str]) -> Result<Closed> {
    let rule = "//app:tapeout".parse().unwrap();
    close(&Request {
        base: &[],
        picked: &[Layer { rule: &rule, libraries: &Libraries::Search(true), selection }],
        view: host(),
        files: &OnDisk("/".into()),
        user: "",
        env: &BTreeMap::new(),
        starts: &starts.iter().map(|s| s.to_string()).collect::<Vec<_>>(),
    })
}

#[test]
fn a_script_is_a_module_by_the_whole_name_of_its_folder_unless_something_starts_it() {
    const NONE: &str = "#!/bin/nosuch\n";
    for (at, looked_at) in [
        ("opt/python-app/run", true),
        ("opt/perl-scripts/x", true),
        ("opt/ruby/x", true),
        ("opt/perl/x", true),
        ("opt/node_modules.old/x", true),
        ("opt/python3.11/x", true),
        ("opt/lib/python-x/x", true),
        ("app/node_modules/.bin/tool", true),
        ("opt/venv/lib/python3.11/site-packages/tool/bin/run", true),
        ("opt/perl5/bin/x", true),
        ("usr/local/lib/python3.13t/x.py", false),
        ("usr/lib/python3/dist-packages/a/b.py", false),
        ("opt/venv/lib64/python3.11/pdb.py", false),
        ("usr/lib/x86_64-linux-gnu/perl/5.36/x.pl", false),
        ("usr/local/lib/perl5/5.36.0/x.pl", false),
        ("usr/lib/x86_64-linux-gnu/perl-base/x.pl", false),
        ("usr/lib/ruby/3.1.0/x.rb", false),
        ("var/lib/gems/3.1.0/gems/x/x.rb", false),
        ("app/node_modules/tool/x.js", false),
        ("etc/init.d/x", false),
        ("etc/init.d-own/x", true),
        ("opt/x.sample", false),
    ] {
        let selection = written(&[(at, NONE)]);
        assert_eq!(closed_for(&selection, &[]).is_err(), looked_at, "{at}");
        let error = closed_for(&selection, &["/nowhere", &format!("/{at}")]).unwrap_err();
        assert!(error.what().contains(&format!("interpreter /bin/nosuch is missing, which /{at}")), "{error}");
    }
}

#[test]
fn a_link_among_programs_starts_what_it_leads_to() {
    let module = ("opt/node_modules/tool/cli.js", "#!/bin/nosuch\n");
    for (link, looked_at) in [("opt/node_modules/.bin/tool", true), ("a/bin/tool", true), ("opt/tool", false)] {
        let selection = written(&[module, (link, "/opt/node_modules/tool/cli.js")]);
        assert_eq!(closed_for(&selection, &[]).is_err(), looked_at, "{link}");
    }
    // A link that comes along only later does so, too.
    let selection = written(&[module, ("b/run", "#!/c/bin/tool\n"), ("c/bin/tool", "/opt/node_modules/tool/cli.js")]);
    let view = Stack(
        [
            host().0.clone(),
            vec![crate::tapeout::testing::layer(
                "c",
                &[
                    ("c", Some(Entry::folder(0o755))),
                    ("c/bin", Some(Entry::folder(0o755))),
                    ("c/bin/tool", Some(Entry::link("/opt/node_modules/tool/cli.js"))),
                ],
            )],
        ]
        .concat(),
    );
    let two: Selection = selection.into_iter().filter(|(at, _)| *at != path("c/bin/tool")).collect();
    let error = closed_with(&view, &OnDisk("/".into()), &two, &Libraries::Search(true), &[]).unwrap_err();
    assert!(error.what().contains("which /opt/node_modules/tool/cli.js"), "{error}");
}

#[test]
fn env_comes_along_with_a_program_that_is_named_by_its_path() {
    let ls = std::fs::canonicalize("/usr/bin/ls").unwrap();
    for argument in ["-S /usr/bin/ls -l", "-S PATH=/usr/bin ls", "/usr/bin/ls"] {
        let closed = closed_for(&written(&[("opt/run", &format!("#!/usr/bin/env {argument}\n"))]), &[]).unwrap();
        for needed in ["/usr/bin/env", ls.to_str().unwrap()] {
            assert!(closed.selection.contains_key(&path(needed)), "{argument}: {needed}");
        }
    }
    let error = closed_for(&written(&[("opt/run", "#!/usr/bin/env -S PATH=/opt/none ls\n")]), &[]).unwrap_err();
    assert!(error.what().contains("interpreter ls is missing"), "{error}");
    assert!(closed_for(&written(&[("opt/run", "#!/usr/bin/env -S ./beside\n")]), &[]).is_ok(), "nobody knows where");
}

/// A program and libraries compiled for the test, in a folder that stands for the whole root.
struct Compiled {
    dir: tempfile::TempDir,
}

impl Compiled {
    fn new() -> Option<Self> {
        Command::new("cc").arg("--version").output().ok().filter(|o| o.status.success())?;
        Some(Self { dir: tempfile::tempdir().unwrap() })
    }

    fn cc(&self, out: &str, source: &str, args: &[&str]) {
        let out = self.dir.path().join(out);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let file = self.dir.path().join("source.c");
        std::fs::write(&file, source).unwrap();
        let here = self.dir.path().to_str().unwrap();
        let args = args.iter().map(|a| a.replace("@", here));
        let done = Command::new("cc").arg("-o").arg(&out).arg(&file).args(args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// The host's loader and libraries below what was compiled.
    fn view(&self) -> Stack {
        let mut stack = host().clone();
        let mut changes = BTreeMap::new();
        for entry in walkdir::WalkDir::new(self.dir.path()).min_depth(1).into_iter().filter_map(|e| e.ok()) {
            let at = RootPath::new(entry.path().strip_prefix(self.dir.path()).unwrap().as_os_str().as_bytes()).unwrap();
            let made = if entry.file_type().is_dir() {
                Entry::folder(0o755)
            } else {
                Entry::file(&std::fs::read(entry.path()).unwrap(), 0o755)
            };
            changes.insert(at, Change { was: None, now: Some(made) });
        }
        stack.0.push(Changes { digest: Digest::of("compiled"), changeset: Arc::new(Changeset { time: 0, changes }) });
        stack
    }

    fn close(&self, picked: &[&str], libraries: &Libraries, env: &[(&str, &str)]) -> Result<Closed> {
        let view = self.view();
        let selection: Selection =
            picked.iter().map(|f| (path(f), World::new([], &view).pick(&path(f), "".into()).expect(f))).collect();
        closed_with(&view, self, &selection, libraries, env)
    }
}

impl Files for Compiled {
    fn read(&self, changeset: &Digest, path: &RootPath) -> Result<std::fs::File> {
        let root = if *changeset == Digest::of("compiled") { self.dir.path() } else { std::path::Path::new("/") };
        let path = path.below(root);
        std::fs::File::open(&path).map_err(|e| Error::io("open", &path, e))
    }
}

const MAIN: &str = "int a(void); int main(void) { return a(); }";
const LIB_A: &str = "int b(void); int a(void) { return b(); }";
const LIB_B: &str = "int b(void) { return 0; }";

#[test]
fn libraries_are_found_by_rpath_runpath_environment_and_configuration() {
    let Some(dir) = Compiled::new() else { return };
    dir.cc("opt/lib/libb.so", LIB_B, &["-shared", "-fPIC"]);
    dir.cc("opt/lib/liba.so", LIB_A, &["-shared", "-fPIC", "-L@/opt/lib", "-lb"]);
    let link = ["-L@/opt/lib", "-la", "-Wl,-rpath-link,@/opt/lib"];
    let with = |flag: &'static str| [&link[..], &[flag][..]].concat();
    dir.cc("opt/bin/rpath", MAIN, &with("-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib"));
    dir.cc("opt/bin/runpath", MAIN, &with("-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"));
    dir.cc("opt/bin/none", MAIN, &link);
    let has = |closed: &Closed, name: &str| closed.selection.contains_key(&path(name));

    let closed = dir.close(&["opt/bin/rpath"], &Libraries::Search(true), &[]).unwrap();
    assert!(
        has(&closed, "opt/lib/liba.so") && has(&closed, "opt/lib/libb.so"),
        "an RPATH holds for libraries of libraries"
    );
    assert_eq!(&*closed.selection[&path("opt/lib/libb.so")].why, "needed by /opt/lib/liba.so (libb.so)");

    let error = dir.close(&["opt/bin/runpath"], &Libraries::Search(true), &[]).unwrap_err();
    assert!(
        error.what().contains("libb.so is missing, which /opt/lib/liba.so needs (loaded by /opt/bin/runpath)"),
        "a RUNPATH does not: {error}"
    );
    assert!(error.reasons().concat().contains("/opt/lib/libb.so"), "it says where the builder has it: {error}");

    let error = dir.close(&["opt/bin/none"], &Libraries::Search(true), &[]).unwrap_err();
    assert!(error.what().contains("liba.so") && error.reasons()[0].contains("/usr/lib"), "{error}");
    let closed = dir.close(&["opt/bin/none"], &Libraries::Search(true), &[("LD_LIBRARY_PATH", "/opt/lib")]).unwrap();
    assert!(has(&closed, "opt/lib/libb.so") && !has(&closed, "etc/ld.so.cache"));

    std::fs::create_dir_all(dir.dir.path().join("etc")).unwrap();
    std::fs::write(dir.dir.path().join("etc/ld.so.conf"), "/opt/lib\n").unwrap();
    let closed = dir.close(&["opt/bin/none"], &Libraries::Search(true), &[]).unwrap();
    assert!(
        has(&closed, "opt/lib/libb.so") && has(&closed, "etc/ld.so.cache"),
        "what only the configuration names needs a cache in the image"
    );
}

#[test]
fn a_library_for_newer_processors_alone_is_found_and_all_that_may_be_loaded_comes_along() {
    let Some(dir) = Compiled::new() else { return };
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let shared = ["-shared", "-fPIC"];
    dir.cc("opt/lib/libb.so", LIB_B, &shared);
    dir.cc("opt/only/glibc-hwcaps/x86-64-v2/liba.so", "int a(void) { return 0; }", &shared);
    dir.cc("opt/more/glibc-hwcaps/x86-64-v3/liba.so", LIB_A, &[&shared[..], &["-L@/opt/lib", "-lb"]].concat());
    let link = |folders: &str| format!("-Wl,-rpath,{folders}");
    let only = "-L@/opt/only/glibc-hwcaps/x86-64-v2";
    dir.cc("opt/bin/x", MAIN, &[only, "-la", &link("/opt/only")]);
    let closed = dir.close(&["opt/bin/x"], &Libraries::Search(true), &[]).unwrap();
    assert!(closed.selection.contains_key(&path("opt/only/glibc-hwcaps/x86-64-v2/liba.so")));
    assert!(closed.required.contains_key(&path("opt/only/glibc-hwcaps/x86-64-v2/liba.so")));

    // One folder has it for the newest alone, the next for all: which is loaded depends on where it runs.
    dir.cc("opt/plain/liba.so", "int a(void) { return 0; }", &shared);
    dir.cc(
        "opt/bin/y",
        MAIN,
        &["-L@/opt/plain", "-la", &link("/opt/more:/opt/plain:/opt/only"), "-Wl,-rpath-link,@/opt/lib"],
    );
    let env = [("LD_LIBRARY_PATH", "/opt/lib")];
    let closed = dir.close(&["opt/bin/y"], &Libraries::Search(true), &env).unwrap();
    for needed in ["opt/plain/liba.so", "opt/more/glibc-hwcaps/x86-64-v3/liba.so", "opt/lib/libb.so"] {
        assert!(closed.selection.contains_key(&path(needed)), "{needed}");
    }
    assert!(!closed.selection.contains_key(&path("opt/only/glibc-hwcaps/x86-64-v2/liba.so")), "it comes too late");
}

/// This machine's own loader says whether the cache names it in the right form.
#[test]
fn a_library_for_newer_processors_is_found_through_the_cache() {
    let Some(compiled) = Compiled::new() else { return };
    let v2 = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" sse4_2 "));
    if !cfg!(target_arch = "x86_64") || !v2 {
        return;
    }
    let shared = ["-shared", "-fPIC"];
    let from = |level: &str| format!("opt/lib/glibc-hwcaps/{level}/liba.so");
    compiled.cc(&from("x86-64-v2"), "int a(void) { return 42; }", &shared);
    compiled.cc("opt/bin/x", MAIN, &["-L@/opt/lib/glibc-hwcaps/x86-64-v2", "-la"]);
    std::fs::create_dir_all(compiled.dir.path().join("etc")).unwrap();
    std::fs::write(compiled.dir.path().join("etc/ld.so.conf"), "/opt/lib\n").unwrap();
    let run = || {
        let closed = compiled.close(&["opt/bin/x"], &Libraries::Search(true), &[]).unwrap();
        let mut image = Selection::from([(
            path("opt/bin/x"),
            World::new([], &compiled.view()).pick(&path("opt/bin/x"), "".into()).unwrap(),
        )]);
        add_folders(&mut image, &compiled.view(), &BTreeMap::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), [&image, &closed.selection], compiled.dir.path());
        run_inside(dir.path(), &["/opt/bin/x"]).map(|out| {
            let says = String::from_utf8_lossy(&out.stderr).into_owned();
            (out.status.code(), says)
        })
    };
    let Some(found) = run() else { return };
    assert_eq!(found, (Some(42), String::new()), "it is there alone");
    compiled.cc("opt/lib/liba.so", "int a(void) { return 7; }", &shared);
    assert_eq!(run().unwrap(), (Some(42), String::new()), "it is better than the one for all");
    std::fs::remove_dir_all(compiled.dir.path().join("opt/lib/glibc-hwcaps")).unwrap();
    assert_eq!(run().unwrap(), (Some(7), String::new()));
}

#[test]
fn a_known_case_holds_for_each_program_of_an_image() {
    let Some(dir) = Compiled::new() else { return };
    for prefix in ["opt/p1", "opt/p2"] {
        dir.cc(&format!("{prefix}/bin/python3.11"), "int main(void) { return 0; }", &[]);
        let library = dir.dir.path().join(prefix).join("lib/python3.11");
        std::fs::create_dir_all(&library).unwrap();
        std::fs::write(library.join("os.py"), "").unwrap();
    }
    let picked = ["opt/p1/bin/python3.11", "opt/p2/bin/python3.11"];
    let closed = dir.close(&picked, &Libraries::Search(true), &[]).unwrap();
    for prefix in ["opt/p1", "opt/p2"] {
        let at = path(&format!("{prefix}/lib/python3.11/os.py"));
        let why = closed.selection.get(&at).map(|picked| picked.why.to_string());
        assert_eq!(why.as_deref(), Some(&*format!("needed by /{prefix}/bin/python3.11 (the Python library)")));
    }
}

/// Against this machine's own OpenSSL.
#[test]
fn engines_and_providers_come_with_what_loads_them() {
    let crypto = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
    let (engine, provider) = (
        path("usr/lib/x86_64-linux-gnu/engines-3/padlock.so"),
        path("usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so"),
    );
    let Some(dir) = Compiled::new() else { return };
    if ![&path(crypto), &engine, &provider].iter().all(|file| file.below("/".as_ref()).exists()) {
        return;
    }
    let calls = |name: &str| format!("int {name}(void); int main(void) {{ return {name}(); }}");
    dir.cc("opt/engine", &calls("ENGINE_by_id"), &["-no-pie", crypto]);
    dir.cc("opt/provider", &calls("OSSL_PROVIDER_load"), &["-no-pie", crypto]);
    dir.cc("opt/neither", &calls("RAND_status"), &["-no-pie", crypto]);
    let has = |program: &str| {
        let closed = dir.close(&[program], &Libraries::Search(true), &[]).unwrap();
        [&engine, &provider].map(|file| closed.selection.contains_key(file))
    };
    assert_eq!(has("opt/engine"), [true, false]);
    assert_eq!(has("opt/provider"), [false, true]);
    assert_eq!(has("opt/neither"), [false, false]);
    let conf = "openssl_conf = i\n[i]\nproviders = p\nengines = e\n[p]\nlegacy = l\n[l]\nactivate = 1\n[e]\npadlock = o\n[o]\ninit = 1\n";
    std::fs::create_dir_all(dir.dir.path().join("etc/ssl")).unwrap();
    std::fs::write(dir.dir.path().join("etc/ssl/openssl.cnf"), conf).unwrap();
    assert_eq!(has("opt/neither"), [true, true], "its configuration has it load both");
}

#[test]
fn a_library_that_was_picked_counts_and_modules_are_named_by_the_user() {
    let Some(dir) = Compiled::new() else { return };
    dir.cc("opt/lib/libb.so", LIB_B, &["-shared", "-fPIC"]);
    dir.cc("opt/lib/liba.so", LIB_A, &["-shared", "-fPIC", "-L@/opt/lib", "-lb"]);
    // libb is in memory before liba: a program that was picked with it sees to that.
    assert!(dir.close(&["opt/lib/liba.so"], &Libraries::Search(true), &[]).is_err());
    assert!(dir.close(&["opt/lib/liba.so", "opt/lib/libb.so"], &Libraries::Search(true), &[]).is_ok());

    let closed =
        dir.close(&["usr/bin/ls"], &Libraries::Also(vec!["/opt/lib/libb*".into(), "libm.so.6".into()]), &[]).unwrap();
    assert_eq!(&*closed.selection[&path("opt/lib/libb.so")].why, "libraries /opt/lib/libb*");
    assert!(closed.selection.keys().any(|p| p.name() == b"libm.so.6"));
    let error = dir.close(&["usr/bin/ls"], &Libraries::Also(vec!["libnone.so".into()]), &[]).unwrap_err();
    assert!(error.what().contains("libnone.so"), "{error}");
}

#[test]
fn a_version_that_a_library_has_not_is_an_error() {
    let Some(dir) = Compiled::new() else { return };
    let map = |text: &str| std::fs::write(dir.dir.path().join("map"), text).unwrap();
    map("V1 { b; };\nV2 { } V1;\n");
    let versioned = "__asm__(\".symver b_new,b@@V2\"); int b_new(void) { return 0; }";
    dir.cc("opt/lib/libb.so", versioned, &["-shared", "-fPIC", "-Wl,-soname,libb.so,--version-script,@/map"]);
    dir.cc("opt/bin/x", "int b(void); int main(void) { return b(); }", &["-L@/opt/lib", "-lb", "-Wl,-rpath,/opt/lib"]);
    assert!(dir.close(&["opt/bin/x"], &Libraries::Search(true), &[]).is_ok());
    map("V1 { b; };\n");
    dir.cc("opt/lib/libb.so", LIB_B, &["-shared", "-fPIC", "-Wl,-soname,libb.so,--version-script,@/map"]);
    let error = dir.close(&["opt/bin/x"], &Libraries::Search(true), &[]).unwrap_err();
    assert!(error.what().contains("V2"), "{error}");
}

#[test]
fn the_same_picks_give_the_same_layer() {
    let one = closed(&pick(&["usr/bin/ls", "usr/bin/env"]));
    let two = closed(&pick(&["usr/bin/env", "usr/bin/ls"]));
    assert_eq!(one.selection, two.selection);
}

#[test]
fn a_base_that_has_a_library_keeps_it() {
    let base = [closed(&pick(&["usr/bin/ls"])).selection];
    let rule = "//app:tapeout".parse().unwrap();
    let selection = pick(&["usr/bin/env"]);
    let picked = [Layer { rule: &rule, libraries: &Libraries::Search(true), selection: &selection }];
    let closed = close(&Request {
        base: &base,
        picked: &picked,
        view: host(),
        files: &OnDisk("/".into()),
        user: "",
        env: &BTreeMap::new(),
        starts: &[],
    })
    .unwrap();
    assert!(!closed.selection.keys().any(|p| p.name() == b"libc.so.6"), "{:?}", closed.selection.keys());
}
