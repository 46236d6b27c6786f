//! Small workspaces, analysed in this process. What holds for the child is tested with the binary.

use std::path::Path;

use super::*;
use crate::build_file::spec::{Instance, Spec, Value};

mod diagnostics;
mod functions;
mod memo;

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
        (
            "lib/build.star",
            "parameter('shared', type = 'bool', default = False)\nrule('build', deps = ['//base:build'], packages = ['cmake'], run = lambda p: 'shared %s' % p['shared'])\n",
        ),
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
    assert_eq!(
        script(build),
        "[Shell(\"cd source && ./configure --prefix=/usr/local --bindir=/usr/local/bin && make -j8 install\")]"
    );
    assert_eq!(deps(&graph, build), ["//base:build", "//app:source", "//lib:build"]);
    assert_eq!(build.packages, ["cmake", "gcc", "make"]);
    assert_eq!(graph.instances[build.base_build.unwrap()].packages, ["cmake", "gcc", "make"]);
    let seen: Vec<String> = build.parameters.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    assert_eq!(
        seen,
        [
            "//app:bindir=Text(\"/usr/local/bin\")",
            "//app:jobs=Int(8)",
            "//app:prefix=Text(\"/usr/local\")",
            "//tools:release=Bool(true)"
        ]
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

/// A library with one parameter, and rules that use it under values.
const SHARED: &str = "parameter('x', default = 'default')\nparameter('other', type = 'int', default = 1)\n";

fn library() -> Site {
    Site::new(&[
        (
            "lib/build.star",
            &format!(
                "{SHARED}{ECHO}rule('deaf/build', deps = ['//base:build'], run = 'echo')\nrule('above/build', deps = [':build'])\n"
            ),
        ),
        (
            "app/build.star",
            "
rule('plain/build', deps = ['//lib:build'])
rule('set/build', deps = [dep('//lib:build', parameters = {'//lib:x': 'edge'})])
rule('same/build', deps = [dep('//lib:build', parameters = {'//lib:x': 'default'})])
rule('deaf/build', deps = [dep('//lib:deaf/build', parameters = {'//lib:x': 'edge'}), '//lib:deaf/build'])
rule('irrelevant/build', deps = [dep('//lib:build', parameters = {'//lib:other': 7})])
rule('deep/build', deps = [dep('//lib:above/build', parameters = {'//lib:x': 'deep'})])
rule('twice/build', deps = [dep(':deep/build', parameters = {'//lib:x': 'outer'})])
rule('reset/build', deps = [dep(':again/build', parameters = {'//lib:x': 'outer'})])
rule('again/build', deps = [dep('//lib:build', parameters = {'//lib:x': None})])
rule('function/build', deps = [dep('//lib:build', parameters = lambda p: {'//lib:x': 'f' + p['//lib:x']})])
",
        ),
    ])
}

#[test]
fn the_nearest_edge_wins_over_further_ones_and_over_the_command_line() {
    let site = library();
    let cases: [(&str, &[&str], &str); 9] = [
        ("//app:plain/build", &[], "default"),
        ("//app:plain/build", &["//lib:x=typed"], "typed"),
        ("//app:plain/build", &["//lib:x=first", "//lib:x=later"], "later"),
        ("//app:set/build", &["//lib:x=typed"], "edge"),
        ("//app:deep/build", &["//lib:x=typed"], "deep"),
        ("//app:twice/build", &[], "deep"),
        ("//app:reset/build", &["//lib:x=typed"], "default"),
        ("//app:function/build", &[], "fdefault"),
        ("//app:function/build", &["//lib:x=typed"], "ftyped"),
    ];
    for (label, parameters, expected) in cases {
        let graph = site.graph(&[label], parameters);
        assert_eq!(
            script(one(&graph, "//lib:build")),
            format!("[Shell(\"echo {expected}\")]"),
            "{label} {parameters:?}"
        );
    }
}

#[test]
fn one_rule_under_one_set_of_values_is_one_build_and_under_two_sets_two() {
    let site = library();
    let cases: [(&[&str], &[&str], usize); 6] = [
        (&["//app:plain/build", "//app:set/build"], &[], 2),
        (&["//app:plain/build", "//app:same/build"], &[], 1),
        (&["//app:plain/build", "//app:irrelevant/build"], &[], 1),
        (&["//app:plain/build", "//app:set/build"], &["//lib:x=edge"], 1),
        (&["//app:set/build", "//app:deep/build", "//app:plain/build"], &[], 3),
        (&["//app:reset/build", "//app:plain/build"], &[], 1),
    ];
    for (labels, parameters, builds) in cases {
        let graph = site.graph(labels, parameters);
        assert_eq!(all(&graph, "//lib:build").len(), builds, "{labels:?} {parameters:?}");
    }
    let graph = site.graph(&["//app:deaf/build"], &[]);
    assert_eq!(one(&graph, "//app:deaf/build").deps.len(), 2, "//base:build and the deaf one, once");
}

#[test]
fn when_sees_the_values_of_the_rule_where_it_stands() {
    let site = Site::new(&[
        (
            "conf/build.star",
            "parameter('mode', default = 'debug')\nparameter('release', type = 'bool', derive = lambda p: p['mode'] == 'release')\n",
        ),
        (
            "lib/build.star",
            "rule('build', deps = ['//base:build', dep('//never:build', when = lambda p: p['//conf:release'])])\n",
        ),
        ("never/build.star", "rule('build', deps = ['//base:build'])\n"),
        (
            "app/build.star",
            "rule('build', deps = ['//lib:build', dep('//lib:build', parameters = {'//conf:mode': 'release'})])\n",
        ),
    ]);
    let graph = site.graph(&["//app:build"], &[]);
    assert_eq!(order(&graph), ["//base:build", "//lib:build", "//never:build", "//lib:build", "//app:build"]);
    let [debug, release] = all(&graph, "//lib:build")[..] else { panic!() };
    assert_eq!(deps(&graph, debug), ["//base:build"]);
    assert_eq!(deps(&graph, release), ["//base:build", "//never:build"]);
    assert_eq!(release.parameters.len(), 2, "what was read, and what that was derived from: {:?}", release.parameters);
}

#[test]
fn a_build_file_that_nothing_needs_is_never_read() {
    let site = Site::new(&[
        ("broken/build.star", "this is no Starlark"),
        (
            "lib/build.star",
            "rule('build', deps = ['//base:build', dep('//broken:build', when = lambda p: False), dep('//nowhere:x', when = False)])\n",
        ),
    ]);
    assert_eq!(order(&site.graph(&["//lib:build"], &[])), ["//base:build", "//lib:build"]);
}

#[test]
fn values_are_read_by_type_wherever_they_come_from() {
    let types = "
parameter('b', type = 'bool', default = False)
parameter('i', type = 'int')
parameter('s')
parameter('p', type = 'path', default = '/usr')
parameter('l', type = 'list', default = [])
rule('build', deps = ['//base:build'], run = lambda p: repr([p['b'], p['i'], p['s'], p['p'], p['l']]))
";
    let site = Site::new(&[("build.star", types)]);
    site.write("values.json", r#"{"//:b": true, "//:i": 3, "//:s": "x y", "//:p": "/opt", "//:l": ["a", "b"]}"#);
    let file = format!("@{}", site.path().join("values.json").display());
    let cases: [(&[&str], &str); 6] = [
        (&[], r#"[False, None, None, "/usr", []]"#),
        (&["b=true", ":i=-5", "//:s=a=b", "p=/x", "l=a,b"], r#"[True, -5, "a=b", "/x", ["a", "b"]]"#),
        (&["l=", "s="], r#"[False, None, "", "/usr", []]"#),
        (&[r#"l=["a,b"]"#], r#"[False, None, None, "/usr", ["a,b"]]"#),
        (&["i=1", &file], r#"[True, 3, "x y", "/opt", ["a", "b"]]"#),
        (&[&file, "i=1"], r#"[True, 1, "x y", "/opt", ["a", "b"]]"#),
    ];
    for (parameters, expected) in cases {
        let graph = site.graph(&["//:build"], parameters);
        let Spec::Rule(rule) = &one(&graph, "//:build").spec else { panic!() };
        assert_eq!(format!("{:?}", rule.run), format!("[Shell({expected:?})]"), "{parameters:?}");
    }
}

/// Two applications, two images, one shared library.
fn images() -> Site {
    Site::new(&[
        (
            "lib/build.star",
            "parameter('debug', type = 'bool', default = False)
rule('build', deps = ['//base:build'], packages = ['libtool'], run = lambda p: 'debug %s' % p['debug'])
tapeout('tapeout', deps = [':build'], include = ['/usr/lib/**'])
",
        ),
        (
            "app/build.star",
            "rule('a/build', deps = ['//base:build', '//lib:build'], packages = ['gcc'])
rule('b/build', deps = ['//base:build', '//lib:build'])
tapeout('a/tapeout', deps = [':a/build'], include = ['/usr/bin/a'])
tapeout('b/tapeout', deps = [':b/build'], include = ['/usr/bin/b'])
tapeout('lonely/tapeout', deps = [':b/build'], reverse_deps = [])
image('a', deps = [':a/tapeout', '//lib:tapeout'])
image('b', deps = ['//lib:tapeout', ':b/tapeout'])
image('on-a', base = ':a', deps = [':b/tapeout'])
image('debug', deps = [':b/tapeout', dep('//lib:tapeout', parameters = {'//lib:debug': True})])
pod('both', containers = [container('a', image = ':a'), container('b', image = '//app:b'), container('again', image = ':a/build_image')])
rule('group', deps = [':a/tapeout', ':b/tapeout'])
image('grouped', deps = [':group'])
",
        ),
    ])
}

#[test]
fn a_joint_point_is_instantiated_per_image_and_build_rules_are_shared() {
    let site = images();
    let graph = site.graph(&["//app:both/build_pod"], &[]);
    assert_eq!(all(&graph, "//lib:build").len(), 1);
    assert_eq!(all(&graph, "//lib:tapeout").len(), 1);
    assert_eq!(all(&graph, "//app:a/build_image").len(), 1);
    let [a, b] = all(&graph, "//base:tapeout")[..] else { panic!() };
    assert_eq!(a.image.as_ref().unwrap().to_string(), "//app:a/build_image");
    assert_eq!(deps(&graph, a), ["//base:build", "//app:a/tapeout", "//lib:tapeout"], "as the image names them");
    assert_eq!(b.image.as_ref().unwrap().to_string(), "//app:b/build_image");
    assert_eq!(deps(&graph, b), ["//base:build", "//lib:tapeout", "//app:b/tapeout"]);
    let bases: Vec<String> = all(&graph, "//base:build").iter().map(|base| base.packages.join(" ")).collect();
    assert_eq!(bases, ["libtool", "gcc libtool"]);
    assert_eq!(graph.instances[a.base_build.unwrap()].packages, ["gcc", "libtool"]);
    assert_eq!(graph.instances[b.base_build.unwrap()].packages, ["libtool"]);
    let Spec::Pod(pod) = &one(&graph, "//app:both/build_pod").spec else { panic!() };
    let images: Vec<String> = pod
        .containers
        .iter()
        .map(|container| match container.image {
            crate::build_file::spec::ImageRef::Built(id) => graph.instances[id].label.to_string(),
            _ => panic!(),
        })
        .collect();
    assert_eq!(images, ["//app:a/build_image", "//app:b/build_image", "//app:a/build_image"]);
}

#[test]
fn a_rule_doesnt_pull_in_its_joint_points_and_a_joint_point_pulls_in_nothing() {
    let site = images();
    assert_eq!(
        order(&site.graph(&["//app:a/tapeout"], &[])),
        ["//base:build", "//lib:build", "//base:build", "//app:a/build", "//app:a/tapeout"]
    );
    assert_eq!(order(&site.graph(&["//base:tapeout"], &[])), ["//base:build", "//base:tapeout"]);
    // Both asked for: they meet.
    let graph = site.graph(&["//base:tapeout", "//app:b/tapeout"], &[]);
    assert_eq!(deps(&graph, one(&graph, "//base:tapeout")), ["//base:build", "//app:b/tapeout"]);
}

#[test]
fn an_image_stands_on_its_base_and_takes_only_its_own() {
    let site = images();
    let graph = site.graph(&["//app:on-a/build_image"], &[]);
    let image = one(&graph, "//app:on-a/build_image");
    let Spec::Image(spec) = &image.spec else { panic!() };
    assert_eq!(graph.instances[spec.built_base().unwrap()].label.to_string(), "//app:a/build_image");
    assert!(image.deps.contains(&spec.built_base().unwrap()));
    let own =
        all(&graph, "//base:tapeout").into_iter().find(|joint| joint.image.as_ref() == Some(&image.label)).unwrap();
    assert_eq!(deps(&graph, own), ["//base:build", "//app:b/tapeout"]);
    assert_eq!(image.packages, ["libtool"]);
}

#[test]
fn the_very_instance_that_was_reached_joins() {
    let site = images();
    let graph = site.graph(&["//app:debug/build_image"], &[]);
    let joint = one(&graph, "//base:tapeout");
    let library =
        joint.deps.iter().map(|id| &graph.instances[*id]).find(|dep| dep.label.to_string() == "//lib:tapeout").unwrap();
    let build =
        library.deps.iter().map(|id| &graph.instances[*id]).find(|dep| dep.label.to_string() == "//lib:build").unwrap();
    assert_eq!(script(build), "[Shell(\"debug True\")]");
    assert_eq!(all(&graph, "//lib:build").len(), 2, "the other application has the plain one");
}

#[test]
fn a_group_of_tapeout_rules_is_as_good_as_its_members() {
    let site = images();
    let graph = site.graph(&["//app:grouped/build_image"], &[]);
    assert_eq!(deps(&graph, one(&graph, "//base:tapeout")), ["//base:build", "//app:a/tapeout", "//app:b/tapeout"]);
}

#[test]
fn a_language_can_have_a_joint_point_of_its_own() {
    let site = Site::new(&[
        ("python/build.star", "tapeout('tapeout', paths = ['/usr/lib/python3/**'])\n"),
        (
            "app/build.star",
            "
parameter('native', type = 'bool', default = False)
tapeout('one/tapeout', reverse_deps = ['//python:tapeout'], files = [file('/a', content = '')])
tapeout('two/tapeout', reverse_deps = [dep('//python:tapeout', when = lambda p: not p['native']), dep('//base:tapeout', when = lambda p: p['native'])], files = [file('/b', content = '')])
image('one', deps = [':one/tapeout', '//python:tapeout'])
image('both', deps = ['//python:tapeout', ':one/tapeout', ':two/tapeout'])
image('lost', deps = [':one/tapeout'])
",
        ),
    ]);
    let graph = site.graph(&["//app:one/build_image", "//app:both/build_image"], &[]);
    let [one_joint, both_joint] = all(&graph, "//python:tapeout")[..] else { panic!() };
    assert_eq!(deps(&graph, one_joint), ["//app:one/tapeout"]);
    assert_eq!(deps(&graph, both_joint), ["//app:one/tapeout", "//app:two/tapeout"]);
    for joint in all(&graph, "//base:tapeout") {
        assert_eq!(deps(&graph, joint), ["//base:build", "//python:tapeout"]);
    }
    assert_eq!(all(&graph, "//app:one/tapeout").len(), 1, "what stands on no joint point is shared");
    let native = site.graph(&["//app:both/build_image"], &["//app:native=true"]);
    assert_eq!(deps(&native, one(&native, "//python:tapeout")), ["//app:one/tapeout"]);
    assert_eq!(
        deps(&native, one(&native, "//base:tapeout")),
        ["//base:build", "//python:tapeout", "//app:two/tapeout"]
    );
    let error = site.fails(&["//app:lost/build_image"], &[]);
    assert!(error.starts_with("//app:one/tapeout joins nothing: //app:lost/build_image reaches it"), "{error}");
}

#[test]
fn parameters_of_a_reverse_edge_are_set_on_top_of_those_that_reached_the_rule() {
    let site = Site::new(&[(
        "build.star",
        "
parameter('x', default = 'x')
parameter('y', default = 'y')
tapeout('t', files = lambda p: [file('/' + p['x'] + p['y'], content = '')], reverse_deps = [dep('//base:tapeout', parameters = {':y': 'reverse'})])
image('i', deps = [dep(':t', parameters = {':x': 'edge'})])
",
    )]);
    let graph = site.graph(&["//:i/build_image"], &[]);
    let joining = one(&graph, "//:t");
    let Spec::Tapeout(tapeout) = &joining.spec else { panic!() };
    assert_eq!(tapeout.files[0].path, "/edgereverse");
    assert_eq!(deps(&graph, one(&graph, "//base:tapeout")), ["//base:build", "//:t"]);
    assert_eq!(
        deps(&graph, one(&graph, "//:i/build_image")),
        ["//base:build", "//:t", "//base:tapeout"],
        "in this image it stands for the one that was reached"
    );
}

#[test]
fn each_union_of_packages_has_its_own_base() {
    let site = Site::new(&[(
        "build.star",
        "
rule('a/build', deps = ['//base:build'], packages = ['a'])
rule('b/build', deps = ['//base:build'], packages = ['b'])
rule('ab/build', deps = [':b/build', ':a/build'])
rule('c/build', deps = [':ab/build', '//base:build'], packages = ['a'])
rule('none/build', deps = ['//base:build'])
tapeout('tapeout', deps = [':none/build'], packages = ['d'])
",
    )]);
    let graph = site.graph(&["//:c/build", "//:none/build", "//:tapeout"], &[]);
    for instance in graph.instances.iter().filter(|instance| instance.label.to_string() != "//base:build") {
        let base = &graph.instances[instance.base_build.unwrap()];
        assert_eq!(base.packages, instance.packages, "{}", instance.label);
        assert!(instance.deps.contains(&instance.base_build.unwrap()));
        let bases = deps(&graph, instance).iter().filter(|label| *label == "//base:build").count();
        assert_eq!(bases, 1, "{}", instance.label);
    }
    let bases: Vec<String> = all(&graph, "//base:build").iter().map(|base| base.packages.join(" ")).collect();
    assert_eq!(bases, ["b", "a", "a b", "", "d"]);
    assert_eq!(
        deps(&graph, one(&graph, "//:ab/build")),
        ["//base:build", "//:b/build", "//:a/build"],
        "first, where it isn't written"
    );
    assert_eq!(deps(&graph, one(&graph, "//:c/build")), ["//:ab/build", "//base:build"], "where it is written");
}

#[test]
fn a_package_of_a_higher_path_replaces_one_whole() {
    let site = Site::new(&[
        ("app/build.star", "rule('build', deps = ['//base:build', '//lib:build'])\n"),
        ("lib/build.star", "rule('build', deps = ['//base:build'], run = 'low')\nrule('only-low')\n"),
        ("high/lib/build.star", "load('//lib/x.star', 'x')\nrule('build', deps = ['//base:build'], run = x)\n"),
        ("high/lib/x.star", "x = 'high'\n"),
        ("lib/x.star", "x = 'wrong'\n"),
        ("high/base/build.star", "rule('build', run = 'own base')\ntapeout('tapeout', reverse_deps = [])\n"),
    ]);
    let mut request = site.request(&["//app:build"], &[]);
    request.workspace = request
        .workspace
        .with_paths([site.path().join("none"), site.path().join("high")].into_iter().filter(|path| path.exists()));
    let graph = analyse_here(&request).unwrap();
    assert_eq!(script(one(&graph, "//lib:build")), "[Shell(\"high\")]");
    assert_eq!(script(one(&graph, "//base:build")), "[Shell(\"own base\")]");
    assert_eq!(one(&graph, "//lib:build").folder.as_deref(), Some(site.path().join("high/lib").as_path()));
    request.patterns = vec!["//lib:only-low".to_string()];
    assert!(analyse_here(&request).is_err());
}

#[test]
fn a_template_defines_in_the_package_that_calls_it_and_passes_on_what_it_doesnt_know() {
    let site = Site::new(&[
        (
            "tools/t.star",
            "def twice(name, **arguments):\n    rule(name + '/one/build', **arguments)\n    rule(name + '/two/build', **arguments)\n",
        ),
        (
            "app/build.star",
            "load('//tools/t.star', 'twice')
parameter('x', default = 'app')
twice('t', deps = ['//base:build'], env = {'A': 'b'}, run = lambda p: p['x'])
",
        ),
    ]);
    let graph = site.graph(&["//app:*"], &[]);
    let two = one(&graph, "//app:t/two/build");
    assert_eq!(script(two), "[Shell(\"app\")]");
    assert_eq!((two.place.file.as_str(), two.place.line), ("app/build.star", 3));
}

#[test]
fn the_templates_for_c_make_rules() {
    let site = Site::new(&[(
        "build.star",
        "load('//templates/cc.star', 'autotools', 'cmake', 'make', 'meson')
parameter('jobs', type = 'int', default = 3)
archive('zlib', urls = ['https://x/zlib.tar.gz'], sha256 = '0' * 64)
autotools(source = ':zlib', options = ['--shared', \"it's\"], jobs = lambda p: p['jobs'], include = ['/usr/local/lib/*.so*'], env = {'CC': 'gcc'})
make(name = 'm', sources = ['build.star'], targets = ['all'], packages = ['zlib1g-dev'])
cmake(name = 'c', deps = lambda p: [':m/build'])
meson(name = 'n')
image('i', deps = [':tapeout'])
",
    )]);
    let graph = site.graph(&["//:*"], &[]);
    let build = one(&graph, "//:build");
    assert_eq!(
        script(build),
        r#"[Shell("cd 'zlib'\n./configure --prefix='/usr/local' '--shared' 'it'\\''s'\nmake -j3 \nmake install\nfind . -name config.log -delete\n")]"#
    );
    assert_eq!(deps(&graph, build), ["//base:build", "//:zlib"]);
    assert_eq!(one(&graph, "//:m/build").packages, ["gcc", "libc6-dev", "make", "zlib1g-dev"]);
    assert!(deps(&graph, one(&graph, "//:c/build")).contains(&"//:m/build".to_string()));
    assert_eq!(build.place.line, 4);
}

#[test]
fn patterns_name_rules_and_no_parameters() {
    let site = images();
    site.write("lib/sub/build.star", "rule('x')\n");
    site.write("lib/other/tapeout.toml", "");
    site.write("lib/other/build.star", "no Starlark");
    let requested =
        |graph: &Graph| graph.requested.iter().map(|id| graph.instances[*id].label.to_string()).collect::<Vec<_>>();
    assert_eq!(requested(&site.graph(&["//lib:*"], &[])), ["//lib:build", "//lib:tapeout"]);
    assert_eq!(requested(&site.graph(&["//lib"], &[])), ["//lib:build", "//lib:tapeout"]);
    assert_eq!(
        requested(&site.graph(&["//lib/...", "//lib:build"], &[])),
        ["//lib:build", "//lib:tapeout", "//lib/sub:x"]
    );
    assert_eq!(
        requested(&site.graph(&["//app:a", "//app:both"], &[])),
        ["//app:a/build_image", "//app:both/build_pod"]
    );
    let mut request = site.request(&["build", ":tapeout", "sub:x"], &[":debug=true"]);
    request.here = Package::new("lib").unwrap();
    let graph = analyse_here(&request).unwrap();
    assert_eq!(requested(&graph), ["//lib:build", "//lib:tapeout", "//lib/sub:x"]);
    assert_eq!(script(one(&graph, "//lib:build")), "[Shell(\"debug True\")]");
}

#[test]
fn definitions_are_shown_as_written() {
    let site = Site::new(&[(
        "build.star",
        "
parameter('jobs', type = 'int', default = 2, doc = 'How many.')
parameter('bin', type = 'path', derive = lambda p: '/bin')
parameter('late', type = 'bool', default = True)
rule('build', doc = 'Builds.', deps = ['//base:build', dep(':x', when = lambda p: False, parameters = {':jobs': 3})], reverse_deps = ['//j:j'], annotations = {'team': 'a'})
rule('f', deps = lambda p: [':x'] if p['late'] else [])
rule('x')
image('i', deps = [':x'], base = ':j')
",
    )]);
    let definitions = definitions_here(&site.request(&["//:*"], &[])).unwrap();
    let text = serde_json::to_string(&definitions[4]).unwrap();
    assert_eq!(text, r##"{"label":"//:f","kind":"rule","doc":"","place":{"file":"build.star","line":6,"column":1,"length":52,"source":"rule('f', deps = lambda p: [':x'] if p['late'] else [])"},"deps":[{"label":"//:x","conditional":false,"parameters":{},"place":{"file":"build.star","line":6,"column":1,"length":52,"source":"rule('f', deps = lambda p: [':x'] if p['late'] else [])"}}],"reverse_deps":[],"annotations":{},"type_name":null,"default":null,"derived":false}"##.replace("52", "55"));
    let jobs = &definitions[0];
    assert_eq!(
        (jobs.type_name.as_deref(), &jobs.default, jobs.derived, jobs.doc.as_str()),
        (Some("int"), &Some(Value::Int(2)), false, "How many.")
    );
    assert!(definitions[1].derived);
    let build = &definitions[3];
    assert!(build.deps[1].conditional);
    assert_eq!(build.deps[1].parameters.values().collect::<Vec<_>>(), [&Value::Int(3)]);
    assert_eq!(build.annotations["team"], "a");
    let image = definitions.last().unwrap();
    assert_eq!(image.label.to_string(), "//:i/build_image");
    assert_eq!(
        image.deps.iter().map(|dep| dep.label.to_string()).collect::<Vec<_>>(),
        ["//:x", "//base:tapeout", "//:j/build_image"]
    );
    let edges = show::Edges::of_definitions(&definitions);
    let label = |text: &str| text.parse().unwrap();
    assert_eq!(edges.deps(&label("//:build")).unwrap(), "//base:build\n//:x  (conditional)\n");
    assert_eq!(
        edges.rdeps(&label("//:x")).unwrap(),
        "//:build  (conditional)\n//:f\n//:i/build_image\n//j:j  (joins)\n"
    );
    assert_eq!(edges.why(&label("//j:j"), &label("//:x")).unwrap(), "//j:j\n//:build  (joins)\n//:x  (conditional)\n");
    assert_eq!(edges.why(&label("//:x"), &label("//:build")).unwrap(), "");
    assert!(edges.deps(&label("//no:no")).is_err());
}

#[test]
fn trees_and_dot_show_each_instance_once() {
    let site = images();
    let graph = site.graph(&["//app:b/build_image"], &[]);
    assert_eq!(
        show::tree(&graph),
        "\
//app:b/build_image
├── //base:build
├── //lib:tapeout
│   ├── //base:build
│   └── //lib:build  [debug=False]
│       └── //base:build
├── //app:b/tapeout
│   ├── //base:build
│   └── //app:b/build
│       ├── //base:build
│       └── //lib:build  [debug=False]  (above)
└── //base:tapeout  [for //app:b/build_image]
    ├── //base:build
    ├── //lib:tapeout  (above)
    └── //app:b/tapeout  (above)
"
    );
    let dot = show::dot(&graph);
    assert!(dot.contains("subgraph cluster_0 {\n    label = \"build\";\n    n0 [label = \"//base:build\"];\n    n1 [label = \"//lib:build\\ndebug=False\"];"), "{dot}");
    assert!(dot.contains("style = dashed"), "{dot}");
    assert_eq!(dot.matches(" [label = ").count(), graph.instances.len());
}

#[test]
fn the_graph_is_the_same_after_a_trip_through_json() {
    let graph = images().graph(&["//app:*", "//lib:*"], &[]);
    let text = serde_json::to_string(&graph).unwrap();
    let back: Graph = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
}

#[test]
fn a_compiler_can_be_built_with_itself() {
    let site = Site::new(&[(
        "build.star",
        "
parameter('stage', type = 'int', default = 3)
rule('build', deps = ['//base:build', dep(':build', when = lambda p: p['stage'] > 1, parameters = lambda p: {':stage': p['stage'] - 1})], run = lambda p: 'stage %d' % p['stage'])
",
    )]);
    let graph = site.graph(&["//:build"], &[]);
    let scripts: Vec<String> = all(&graph, "//:build").iter().map(|instance| script(instance)).collect();
    assert_eq!(scripts, ["[Shell(\"stage 1\")]", "[Shell(\"stage 2\")]", "[Shell(\"stage 3\")]"]);
}

#[test]
fn many_edges_that_set_what_nothing_reads_cost_nothing() {
    // Each level sets its own parameter in two ways: 2⁴⁰ settings, were it not for what is read.
    let mut text = String::from("rule('r0')\n");
    for level in 1..=40 {
        text += &format!(
            "parameter('p{level}', type = 'int', default = 0)\nrule('r{level}', deps = [dep(':r{}', parameters = {{':p{level}': 1}}), dep(':r{}', parameters = {{':p{level}': 2}})])\n",
            level - 1,
            level - 1
        );
    }
    let graph = Site::new(&[("build.star", &text)]).graph(&["//:r40"], &[]);
    assert_eq!(graph.instances.len(), 41);
}
