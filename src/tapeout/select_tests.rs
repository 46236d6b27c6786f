use std::path::PathBuf;

use super::*;
use crate::build_file::spec::{FileKind, FileRecord};
use crate::tapeout::testing::{OnDisk, file, folder, layer, on_disk, path};
use crate::tree::{Change, Changeset};

/// A builder with `/usr`, `/lib` as a link, a library of its own, users.
fn builder() -> (tempfile::TempDir, Layer) {
    let (dir, mut layer) = on_disk(&[
        ("usr/lib/libz.so.1", Some(b"z"), 0o644),
        ("usr/bin/tool", Some(b"t"), 0o755),
        ("usr/local/lib", None, 0o755),
        ("etc/passwd", Some(b"root:x:0:0::/root:/x\napp:x:100:101::/:/x\n"), 0o644),
        ("etc/group", Some(b"root:x:0:\napp:x:101:\nweb:x:102:\n"), 0o644),
        (
            "var/lib/dpkg/status",
            Some(b"Package: z\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n"),
            0o644,
        ),
        ("var/lib/dpkg/info/z.list", Some(b"/.\n/lib\n/lib/libz.so.1\n/usr\n/usr/share/man/z.1\n/lib/gone\n"), 0o644),
    ]);
    let changes = &mut Arc::get_mut(&mut layer.changeset).unwrap().changes;
    changes.insert(path("lib"), Change { was: None, now: Some(Entry::link("usr/lib")) });
    changes.insert(path("bin"), Change { was: None, now: Some(Entry::link("usr/bin")) });
    (dir, layer)
}

use std::sync::Arc;

/// What a rule installed: two libraries linked to one another, a link, a program, something in /workspace.
fn installed() -> Layer {
    let mut made = layer(
        "installed",
        &[
            ("usr", folder()),
            ("usr/local", folder()),
            ("usr/local/lib", folder()),
            ("usr/local/lib/liba.so", Some(Entry::link("liba.so.1"))),
            ("usr/local/lib/liba.so.1", file("a")),
            ("usr/local/lib/liba.a", file("static")),
            ("usr/local/bin", folder()),
            ("usr/local/bin/web", file("web")),
            ("usr/local/bin/web2", file("web")),
            ("usr/local/empty", Some(Entry::folder(0o700))),
            ("opt", folder()),
            ("opt/socket", Some(Entry { node: Node::Socket, ..Entry::folder(0o755) })),
            ("usr/bin/tool", None),
            ("workspace", folder()),
            ("workspace/app", folder()),
            ("workspace/app/out.so", file("w")),
        ],
    );
    let changeset = Arc::get_mut(&mut made.changeset).unwrap();
    for folder in ["usr", "usr/local", "usr/local/lib"] {
        let change = changeset.changes.get_mut(&path(folder)).unwrap();
        change.was = change.now.as_ref().map(Entry::digest);
    }
    for name in ["usr/local/bin/web", "usr/local/bin/web2"] {
        let Some(Entry { node: Node::File { group, .. }, .. }) =
            &mut changeset.changes.get_mut(&path(name)).unwrap().now
        else {
            panic!()
        };
        *group = Some(7);
    }
    made
}

fn selecting(spec: &Tapeout, own: Option<&Layer>, package: Option<PathBuf>) -> Result<Selection> {
    let (dir, builder) = builder();
    let deps = [installed()];
    let view = Stack(vec![builder, deps[0].clone()]);
    let files = OnDisk(dir.path().into());
    let rule = "//app:tapeout".parse().unwrap();
    select(&Request {
        spec,
        rule: &rule,
        deps: &deps,
        view: &view,
        files: &files,
        own,
        package_folder: package.as_deref(),
    })
}

fn picked(spec: Tapeout) -> Vec<String> {
    selecting(&spec, None, None).unwrap().keys().map(|p| p.to_string()).collect()
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| s.to_string()).collect()
}

#[test]
fn include_takes_what_dependencies_changed_with_the_folders_above() {
    let names = picked(Tapeout { include: texts(&["/usr/local/lib/*.so*"]), ..Tapeout::default() });
    assert_eq!(names, ["/usr", "/usr/local", "/usr/local/lib", "/usr/local/lib/liba.so", "/usr/local/lib/liba.so.1"]);
    let names = picked(Tapeout {
        include: texts(&["/usr/local"]),
        exclude: texts(&["**/*.a", "**/nothing"]),
        ..Tapeout::default()
    });
    assert!(
        names.contains(&"/usr/local/empty".into()) && !names.contains(&"/usr/local/lib/liba.a".into()),
        "{names:?}"
    );
}

#[test]
fn the_reason_is_the_first_pattern_that_takes_a_file() {
    let selection = selecting(
        &Tapeout { include: texts(&["/usr/local/lib/*", "/usr/local/lib/liba.so.1"]), ..Tapeout::default() },
        None,
        None,
    )
    .unwrap();
    assert_eq!(&*selection[&path("usr/local/lib/liba.so.1")].why, "include /usr/local/lib/*");
    assert!(selection[&path("usr/local")].why.starts_with("holds /usr/local/lib/"));
}

#[test]
fn what_lies_in_the_workspace_or_is_a_socket_is_taken_only_when_it_can_be() {
    assert!(
        picked(Tapeout { include: texts(&["/**"]), ..Tapeout::default() })
            .iter()
            .all(|p| !p.starts_with("/workspace") && p != "/opt/socket")
    );
    assert!(
        picked(Tapeout { include: texts(&["/workspace/app/*.so"]), ..Tapeout::default() })
            .contains(&"/workspace/app/out.so".into())
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error_that_helps() {
    for (include, helps) in [
        ("/usr/lib/liba.so.1", "/usr/local/lib/liba.so.1"),
        ("/usr/lib/libz.so.1", "no dependency of this rule changed it"),
        ("/out.so", "/workspace/app/out.so"),
        ("/nope", "its dependencies changed"),
        ("/usr/bin/tool", "its dependencies changed"),
    ] {
        let error = selecting(&Tapeout { include: texts(&[include]), ..Tapeout::default() }, None, None).unwrap_err();
        assert!(error.what().contains(&format!("{include:?} matches nothing")), "{error}");
        assert!(error.reasons().concat().contains(helps), "{error}");
    }
    let error =
        selecting(&Tapeout { paths: texts(&["/opt/libz.so.1"]), include: vec![], ..Tapeout::default() }, None, None)
            .unwrap_err();
    assert!(error.next_step().unwrap().contains("/usr/lib/libz.so.1"), "{error}");
}

#[test]
fn paths_take_from_all_that_is_seen_and_bring_the_link_that_was_named() {
    let names = picked(Tapeout { paths: texts(&["/lib/libz.so.*"]), ..Tapeout::default() });
    assert_eq!(names, ["/lib", "/usr", "/usr/lib", "/usr/lib/libz.so.1"]);
    assert_eq!(picked(Tapeout { paths: texts(&["/lib"]), ..Tapeout::default() }), ["/lib"], "a link alone is itself");
    assert!(
        selecting(&Tapeout { paths: texts(&["/usr/bin/tool"]), ..Tapeout::default() }, None, None).is_err(),
        "it was removed"
    );
}

#[test]
fn packages_bring_their_files_and_their_paragraph() {
    let spec = Tapeout { from_packages: texts(&["z"]), ..Tapeout::default() };
    let selection = selecting(&spec, None, None).unwrap();
    let names: Vec<_> = selection.keys().map(|p| p.to_string()).collect();
    assert_eq!(
        names,
        [
            "/lib",
            "/usr",
            "/usr/lib",
            "/usr/lib/libz.so.1",
            "/var",
            "/var/lib",
            "/var/lib/dpkg",
            "/var/lib/dpkg/status.d",
            "/var/lib/dpkg/status.d/z"
        ]
    );
    let Content::Inline(stanza) = &selection[&path("var/lib/dpkg/status.d/z")].content else { panic!() };
    assert!(stanza.starts_with(b"Package: z\n"));
    assert!(selecting(&Tapeout { from_packages: texts(&["y"]), ..Tapeout::default() }, None, None).is_err());
}

#[test]
fn what_run_changed_is_picked_and_what_it_removed_is_not() {
    let own = Layer {
        digest: Digest::of("own"),
        changeset: Arc::new(Changeset {
            time: 0,
            changes: [
                ("usr/local/bin/web", None),
                ("srv", folder()),
                ("srv/new", file("new")),
                ("workspace/x", file("x")),
            ]
            .map(|(p, now)| (path(p), Change { was: None, now }))
            .into(),
        }),
    };
    let spec = Tapeout { include: texts(&["/usr/local/bin/*"]), ..Tapeout::default() };
    let selection = selecting(&spec, Some(&own), None).unwrap();
    assert!(selection[&path("usr/local/bin/web")].entry.is_none(), "a removal");
    assert_eq!(
        selection[&path("srv/new")].content,
        Content::Stored { changeset: Digest::of("own"), path: path("srv/new") }
    );
    assert!(!selection.contains_key(&path("workspace/x")));
}

#[test]
fn files_are_moved_owned_and_given_modes() {
    let spec = Tapeout {
        include: texts(&["/usr/local/bin", "/usr/local/lib/liba.so.1"]),
        strip_prefix: Some("/usr/local".into()),
        prefix: Some("/app".into()),
        rename: [("/usr/local/bin/web2".to_string(), "/bin/server".to_string())].into(),
        owner: Some("app:web".into()),
        modes: [("/app/**/*.so.1".to_string(), 0o600), ("/app".to_string(), 0o711)].into(),
        ..Tapeout::default()
    };
    let selection = selecting(&spec, None, None).unwrap();
    let names: Vec<_> = selection.keys().map(|p| p.to_string()).collect();
    assert_eq!(
        names,
        [
            "/app",
            "/app/bin",
            "/app/bin/web",
            "/app/lib",
            "/app/lib/liba.so.1",
            "/bin",
            "/usr",
            "/usr/bin",
            "/usr/bin/server"
        ],
        "/bin is a link of the builder"
    );
    let entry = |text: &str| selection[&path(text)].entry.clone().unwrap();
    assert_eq!((entry("app/bin/web").uid, entry("app/bin/web").gid), (100, 102));
    assert_eq!((entry("app").mode, entry("app").uid, entry("app/lib/liba.so.1").mode), (0o711, 0, 0o600));
}

#[test]
fn hard_links_stay_together_while_they_are_one_file() {
    let group = |selection: &Selection, text: &str| match selection[&path(text)].entry.as_ref().unwrap().node {
        Node::File { group, .. } => group,
        _ => panic!(),
    };
    let both = Tapeout { include: texts(&["/usr/local/bin"]), ..Tapeout::default() };
    let selection = selecting(&both, None, None).unwrap();
    assert_eq!((group(&selection, "usr/local/bin/web"), group(&selection, "usr/local/bin/web2")), (Some(0), Some(0)));
    let one =
        selecting(&Tapeout { include: texts(&["/usr/local/bin/web"]), ..Tapeout::default() }, None, None).unwrap();
    assert_eq!(group(&one, "usr/local/bin/web"), None);
    let apart =
        selecting(&Tapeout { modes: [("/usr/local/bin/web".to_string(), 0o755)].into(), ..both }, None, None).unwrap();
    assert_eq!((group(&apart, "usr/local/bin/web"), group(&apart, "usr/local/bin/web2")), (None, None));
}

#[test]
fn files_are_written_with_their_owners_where_links_lead() {
    let record = FileRecord {
        path: "/lib/app.conf".into(),
        content: Some("x".into()),
        source: None,
        target: None,
        mode: Some(0o640),
        owner: "app".into(),
        group: String::new(),
        kind: FileKind::File,
    };
    let selection = selecting(&Tapeout { files: vec![record], ..Tapeout::default() }, None, None).unwrap();
    let names: Vec<_> = selection.keys().map(|p| p.to_string()).collect();
    assert_eq!(names, ["/lib", "/usr", "/usr/lib", "/usr/lib/app.conf"]);
    let entry = selection[&path("usr/lib/app.conf")].entry.clone().unwrap();
    assert_eq!((entry.mode, entry.uid, entry.gid), (0o640, 100, 101));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let include = texts(&["/usr/local/bin"]);
    for (spec, what) in [
        (
            Tapeout {
                rename: [("/usr/local/bin/web".to_string(), "/usr/local/bin/web2".to_string())].into(),
                ..Tapeout::default()
            },
            "two picked files go to",
        ),
        (Tapeout { strip_prefix: Some("/opt".into()), ..Tapeout::default() }, "strip_prefix"),
        (Tapeout { rename: [("/nope".to_string(), "/x".to_string())].into(), ..Tapeout::default() }, "rename"),
        (Tapeout { modes: [("/nope".to_string(), 0o644)].into(), ..Tapeout::default() }, "modes"),
        (Tapeout { owner: Some("ghost".into()), ..Tapeout::default() }, "ghost"),
        (Tapeout { prefix: Some("app".into()), ..Tapeout::default() }, "not absolute"),
        (
            Tapeout {
                rename: [
                    ("/usr/local/bin/web".to_string(), "/x".to_string()),
                    ("/usr/local/bin/web2".to_string(), "/x/y".to_string()),
                ]
                .into(),
                ..Tapeout::default()
            },
            "below it",
        ),
    ] {
        let error = selecting(&Tapeout { include: include.clone(), ..spec }, None, None).unwrap_err();
        assert!(error.what().contains(what), "{error}");
    }
}

#[test]
fn an_image_is_pruned_by_patterns() {
    let mut selection =
        selecting(&Tapeout { include: texts(&["/usr/local"]), ..Tapeout::default() }, None, None).unwrap();
    let counts = prune(&mut selection, &texts(&["/usr/local/lib", "/nope"]), &Stack::default()).unwrap().counts;
    assert_eq!(counts, [4, 0]);
    assert!(!selection.contains_key(&path("usr/local/lib")));
}
