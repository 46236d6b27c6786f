//! Small workspaces, analysed in this process. What holds for the child is tested with the binary.

use std::path::Path;

use super::*;
use crate::build_file::spec::{Instance, Spec, Value};

mod diagnostics;
mod hostile;

/// A workspace of some files.
struct Site(tempfile::TempDir);

impl Site {
    fn new(files: &[(&str, &str)]) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        site.write("tapeout.toml", "");
        for (path, text) in files {
            site.write(path, text);
        }
        site
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn request(&self, patterns: &[&str], parameters: &[&str]) -> Request {
        let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        Request {
            workspace: Workspace::open(self.path()).unwrap(),
            patterns: strings(patterns),
            here: Package::new("").unwrap(),
            parameters: strings(parameters),
        }
    }

    fn analyse(&self, patterns: &[&str], parameters: &[&str]) -> Result<Graph> {
        analyse_here(&self.request(patterns, parameters))
    }

    fn graph(&self, patterns: &[&str], parameters: &[&str]) -> Graph {
        self.analyse(patterns, parameters).unwrap_or_else(|error| panic!("{}", whole(&error)))
    }

    fn fails(&self, patterns: &[&str], parameters: &[&str]) -> String {
        let error = self.analyse(patterns, parameters).map(|graph| order(&graph)).expect_err("an error");
        assert_eq!(error.exit_code(), 2);
        whole(&error)
    }
}

/// An error with its places, as a test can compare it.
fn whole(error: &Error) -> String {
    let mut text = format!("{}\n", error.what());
    for (place, note) in error.places() {
        let source = place.source.as_deref().unwrap_or("");
        let marked: String = source.chars().skip(place.column - 1).take(place.length).collect();
        text += &format!("  {}:{}:{} `{marked}` {note}\n", place.file, place.line, place.column);
    }
    for why in error.reasons() {
        text += &format!("  why: {why}\n");
    }
    if let Some(next) = error.next_step() {
        text += &format!("  next: {next}\n");
    }
    for other in error.others() {
        text += &whole(other);
    }
    text
}

/// The labels in execution order.
fn order(graph: &Graph) -> Vec<String> {
    graph.instances.iter().map(|instance| instance.label.to_string()).collect()
}

fn all<'a>(graph: &'a Graph, label: &str) -> Vec<&'a Instance> {
    graph.instances.iter().filter(|instance| instance.label.to_string() == label).collect()
}

fn one<'a>(graph: &'a Graph, label: &str) -> &'a Instance {
    let found = all(graph, label);
    assert_eq!(found.len(), 1, "{label} in {:?}", order(graph));
    found[0]
}

fn deps(graph: &Graph, instance: &Instance) -> Vec<String> {
    instance.deps.iter().map(|id| graph.instances[*id].label.to_string()).collect()
}

fn script(instance: &Instance) -> String {
    match &instance.spec {
        Spec::Rule(rule) => format!("{:?}", rule.run),
        other => panic!("{other:?}"),
    }
}

/// As a rule's script shows its values.
const ECHO: &str = "rule('build', deps = ['//base:build'], run = lambda p: 'echo %s' % p['x'])\n";

#[test]
fn the_example_of_the_design_is_analysed() {
    let site = Site::new(&[
        (
            "app/build.star",
            r#"
parameter("jobs", type = "int", default = 2, doc = "Parallel compiler jobs.")
parameter("prefix", type = "path", default = "/usr/local")
parameter("bindir", type = "path", derive = lambda p: p["prefix"] + "/bin")
parameter("version", type = "string")

archive("source", urls = ["debian:pool/main/z/zlib/zlib_1.3.1.orig.tar.gz"], sha256 = "9a93b2b7dfdac77ceba5a558a580e74667dd6fede4585b91eefb60f03b72df23", strip_prefix = "zlib-1.3.1")

rule(
    "build",
    doc = "Compile and install zlib.",
    deps = [
        "//base:build",
        ":source",
        dep("//tools:ccache", when = lambda p: not p["//tools:release"]),
        dep("//lib:build", parameters = {"//lib:shared": True}),
    ],
    sources = glob(["src/**"], exclude = ["**/*.o"]),
    packages = ["gcc", "make"],
    run = lambda p: "cd source && ./configure --prefix=%s --bindir=%s && make -j%d install" % (p["prefix"], p["bindir"], p["jobs"]),
)

tapeout("tapeout", deps = [":build"], include = ["/usr/local/lib/*.so*"])
image("web", deps = [":tapeout"], entrypoint = ["/usr/local/bin/web"])
pod("shop", containers = [container("web", image = ":web")])
"#,
        ),
        ("app/src/a.c", ""),
        ("app/src/a.o", ""),
        ("tools/build.star", "parameter('release', type = 'bool', default = True)\n"),
        ("lib/build.star", "parameter('shared', type = 'bool', default = False)\nrule('build', deps = ['//base:build'], packages = ['cmake'], run = lambda p: 'shared %s' % p['shared'])\n"),
    ]);
    let graph = site.graph(&["//app:shop/build_pod"], &["//app:jobs=8"]);
    assert_eq!(
        order(&graph),
        [
            "//app:source",
            "//base:build",
            "//lib:build",
            "//base:build",
            "//app:build",
            "//app:tapeout",
            "//base:tapeout",
            "//app:web/build_image",
            "//app:shop/build_pod",
        ]
    );
    let build = one(&graph, "//app:build");
    assert_eq!(script(build), "[Shell(\"cd source && ./configure --prefix=/usr/local --bindir=/usr/local/bin && make -j8 install\")]");
    assert_eq!(deps(&graph, build), ["//base:build", "//app:source", "//lib:build"]);
    assert_eq!(build.packages, ["cmake", "gcc", "make"]);
    assert_eq!(graph.instances[build.base_build.unwrap()].packages, ["cmake", "gcc", "make"]);
    let seen: Vec<String> = build.parameters.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    assert_eq!(
        seen,
        ["//app:bindir=Text(\"/usr/local/bin\")", "//app:jobs=Int(8)", "//app:prefix=Text(\"/usr/local\")", "//tools:release=Bool(true)"]
    );
    let Spec::Rule(rule) = &build.spec else { panic!() };
    assert_eq!(format!("{:?}", rule.sources), "[Path(\"src/a.c\")]");
    let library = one(&graph, "//lib:build");
    assert_eq!(script(library), "[Shell(\"shared True\")]");
    assert_eq!(graph.instances[library.base_build.unwrap()].packages, ["cmake"]);
    let joint = one(&graph, "//base:tapeout");
    assert_eq!(joint.image.as_ref().unwrap().to_string(), "//app:web/build_image");
    assert_eq!(deps(&graph, joint), ["//base:build", "//app:tapeout"]);
    assert_eq!(joint.joined.len(), 1);
    assert_eq!(joint.packages, ["cmake", "gcc", "make"]);
    let image = one(&graph, "//app:web/build_image");
    assert_eq!(deps(&graph, image), ["//base:build", "//app:tapeout", "//base:tapeout"]);
    assert_eq!(build.place.line, 9);
    assert_eq!(build.place.source.as_deref(), Some("rule("));
}
