//! What the rule graph promises, as sessions in small workspaces: each is a file of `golden/graph/` that a reader
//! judges, with the build files, the commands and what they print (TAPEOUT_WRITE_GOLDEN=1 writes them).

use std::fs;
use std::path::Path;

use crate::common::{Layout, Workspace, have};

/// A session: files, then commands, each with what it prints.
struct Session {
    workspace: Workspace,
    text: String,
}

impl Session {
    fn of(files: &[(&str, &str)]) -> Option<Self> {
        have(&["busybox"]).then(|| {
            let mut session = Self { workspace: Workspace::tiny(), text: String::new() };
            files.iter().for_each(|(path, text)| _ = session.file(path, text));
            session
        })
    }

    fn file(&mut self, path: &str, text: &str) -> &mut Self {
        self.workspace.file(path, text);
        self.text += &format!("=== {path}\n{}\n", text.trim_matches('\n'));
        self
    }

    /// A command that goes well.
    fn shows(&mut self, arguments: &str) -> &mut Self {
        let outcome = self.workspace.run(arguments).success();
        self.prints(arguments, 0, &outcome.stdout)
    }

    /// A command that is refused.
    fn refuses(&mut self, arguments: &str) -> &mut Self {
        let outcome = self.workspace.run(arguments).failure(2);
        assert!(outcome.stdout.is_empty(), "{outcome}");
        let count = |word: &str| outcome.stderr.lines().filter(|line| line.starts_with(word)).count();
        assert_eq!(count("error: "), count("next: "), "an error without a next step{outcome}");
        self.prints(arguments, 2, &outcome.stderr)
    }

    fn prints(&mut self, arguments: &str, code: i32, text: &str) -> &mut Self {
        let text = text.replace(&self.workspace.everything().display().to_string(), "[HERE]");
        let code = if code == 0 { String::new() } else { format!("  (exit code {code})") };
        self.text += &format!("=== $ tapeout {arguments}{code}\n{}\n", text.trim_end());
        self
    }

    fn is(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/graph").join(format!("{name}.txt"));
        if std::env::var_os("TAPEOUT_WRITE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(&path, &self.text).expect("write");
        }
        let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (found, expected) in self.text.split("=== ").zip(expected.split("=== ")) {
            assert!(found == expected, "{name}\n--- expected\n{expected}\n--- found\n{found}");
        }
        assert_eq!(self.text.len(), expected.len(), "{name}");
    }
}

#[test]
fn only_what_was_asked_for_is_reached() {
    let Some(mut session) = Session::of(&[(
        "app/build.star",
        "
rule('build', deps = ['//base:build'], run = 'true')
tapeout('tapeout', deps = [':build'])
image('web', deps = [':tapeout'])
",
    )]) else {
        return;
    };
    // A rule doesn't pull in its joint point, and a joint point pulls in nothing.
    session.shows("graph //app:tapeout").shows("graph //base:tapeout").shows("graph //app:tapeout //base:tapeout");
    session.shows("graph //app:web").is("only_what_was_asked_for");
}

#[test]
fn two_images_with_different_closures_have_a_joint_point_each() {
    let Some(mut session) = Session::of(&[
        (
            "py/build.star",
            "
# A language's own joint point: what its packages tape out, and then the whole.
tapeout('tapeout', deps = ['//base:build'])
",
        ),
        (
            "lib/build.star",
            "
parameter('debug', type = 'bool', default = False)
parameter('flavour', default = 'plain')
rule('build', deps = ['//base:build'], run = lambda p: 'make ' + p['flavour'])
tapeout('c', deps = [':build'])
tapeout('py', deps = [':build'], reverse_deps = ['//py:tapeout', dep('//base:tapeout', when = lambda p: p['debug'])])
tapeout('symbols', deps = [':build'], reverse_deps = [dep('//base:tapeout', when = lambda p: p['debug']), '//py:tapeout'])
",
        ),
        (
            "app/build.star",
            "
image('small', deps = ['//lib:c'])
image('large', deps = [dep('//lib:c', parameters = {'//lib:flavour': 'rich'}), '//lib:py', '//lib:symbols', '//py:tapeout'])
",
        ),
    ]) else {
        return;
    };
    session.shows("graph //app:small //app:large").shows("graph --parameter //lib:debug=true //app:large");
    session.shows("graph --dot //app:small").is("two_images");
}

#[test]
fn a_condition_reads_what_another_package_derives_and_parameters_of_an_edge_win_below_it() {
    let Some(mut session) = Session::of(&[
        (
            "base_system/build.star",
            "
parameter('name', default = 'glibc', doc = 'The C library.')
parameter('static', type = 'bool', derive = lambda p: p['name'] == 'musl')
",
        ),
        ("shim/build.star", "rule('build', deps = ['//base:build'], run = 'shim')\n"),
        (
            "lib/build.star",
            "
parameter('jobs', type = 'int', default = 1)
rule('build', deps = ['//base:build', dep('//shim:build', when = lambda p: p['//base_system:static'])],
     run = lambda p: 'make -j%d' % p['jobs'])
",
        ),
        (
            "app/build.star",
            "
rule('build', deps = ['//base:build', '//lib:build',
                      dep('//lib:build', parameters = {'//base_system:name': 'musl', '//lib:jobs': 4})], run = 'true')
",
        ),
        ("values.json", "{\"//lib:jobs\": 3, \"//base_system:name\": \"glibc\"}"),
    ]) else {
        return;
    };
    session.shows("graph //app:build");
    // Later wins; what an edge sets holds below it, whatever is given.
    session.shows("graph --parameter @values.json //app:build");
    session.shows("graph --parameter @values.json --parameter //lib:jobs=8 //app:build");
    session.shows("graph --parameter //lib:jobs=8 --parameter @values.json //lib:build");
    session.shows("graph --parameter //base_system:name=musl //app:build");
    session.shows("build --dry-run --parameter //lib:jobs=8 //app:build");
    session.is("conditions_and_parameters");
}

#[test]
fn a_site_replaces_what_a_build_file_takes_from_a_parameter() {
    let Some(mut session) = Session::of(&[(
        "app/build.star",
        "
parameter('url', default = 'https://example.org/one.tar.gz')
parameter('sha256', default = '1111111111111111111111111111111111111111111111111111111111111111')
parameter('needs', type = 'list', default = ['gcc'])
parameter('version')
archive('source', urls = lambda p: [p['url']], sha256 = lambda p: p['sha256'])
rule('build', deps = ['//base:build', ':source'], packages = lambda p: p['needs'], run = 'make')
tapeout('tapeout', deps = [':build'], include = lambda p: ['/usr/lib/v%s/**' % (p['version'] or '0')])
image('web', deps = [':tapeout'], version = lambda p: p['version'])
pod('shop', containers = lambda p: [container('web', image = ':web')], version = lambda p: p['version'])
",
    )]) else {
        return;
    };
    let mut specs = |arguments: &str| {
        let graph = session.workspace.run(&format!("graph --json {arguments} //app:shop")).success().json();
        let instances = graph["instances"].as_array().expect("instances");
        let of = |label: &str, what: &[&str]| {
            let instance = instances.iter().find(|i| i["label"] == label).unwrap_or_else(|| panic!("{label}"));
            what.iter().fold(instance, |at, name| &at[*name]).clone()
        };
        let shown = [
            ("urls", of("//app:source", &["spec", "Archive", "urls"])),
            ("sha256", of("//app:source", &["spec", "Archive", "sha256"])),
            ("packages", of("//app:build", &["packages"])),
            ("include", of("//app:tapeout", &["spec", "Tapeout", "include"])),
            ("image", of("//app:web/build_image", &["spec", "Image", "version"])),
            ("pod", of("//app:shop/build_pod", &["spec", "Pod", "version"])),
        ];
        let text: String = shown.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        session.prints(&format!("graph --json {arguments} //app:shop, of it"), 0, &text);
    };
    specs("");
    specs(
        "--parameter //app:url=file:here.tar.gz --parameter //app:sha256=2222222222222222222222222222222222222222222222222222222222222222 --parameter //app:needs=clang,make --parameter //app:version=7",
    );
    session.is("a_site_replaces");
}

#[test]
fn a_build_file_is_loaded_when_something_needs_it_and_a_higher_folder_has_the_word() {
    let Some(mut session) = Session::of(&[
        (
            "app/build.star",
            "rule('build', deps = ['//base:build', dep('//broken:x', when = lambda p: False)], run = 'true')\n",
        ),
        ("broken/build.star", "rule('x'\n"),
        (
            "site/base/build.star",
            "rule('build', doc = 'The site\\'s own.', run = 'site')\ntapeout('tapeout', reverse_deps = [])\n",
        ),
        ("site/app/build.star", "rule('build', deps = ['//base:build', ':more'], run = 'true')\nrule('more')\n"),
        ("sub/one/build.star", "rule('r', deps = [':s', '//sub/two:t'])\nrule('s')\n"),
        ("sub/two/build.star", "parameter('p')\nrule('t')\n"),
    ]) else {
        return;
    };
    session.shows("graph //app:build").refuses("graph //broken/...").refuses("graph //...");
    session.shows("list --path site //base:*").shows("graph --path site //app:build");
    // Relative to where one stands, paths and labels alike; and patterns.
    session.shows("-C sub graph ./one:s two:t ../sub/two/").shows("-C sub/two graph . ../one").shows("graph ./sub/...");
    session.refuses("-C sub graph ../..:s").refuses("graph app").refuses("graph app/build").refuses("-C sub graph one");
    session.shows("-C sub list ... --why one:r ./two:t").refuses("list //sub/... --deps ./sub/one");
    session.shows("-C sub/one graph r :s").shows("-C sub graph //sub/...").shows("-C sub/two graph ...");
    session.shows("graph //sub/one:* //sub/two:t").refuses("graph //nowhere/...");
    session.is("loading");
}

#[test]
fn list_tells_all_that_is_written() {
    let Some(mut session) = Session::of(&[(
        "app/build.star",
        "
parameter('jobs', type = 'int', default = 2, doc = 'Parallel jobs.')
parameter('dir', type = 'path', derive = lambda p: '/x')
parameter('version', doc = 'Unset unless it is given.')
rule('build', doc = 'Compile it.', deps = ['//base:build', dep(':extra', when = lambda p: p['jobs'] > 2)], annotations = {'owner': 'us'})
rule('extra', deps = lambda p: [dep(':more', parameters = {':jobs': 1})])
rule('more')
tapeout('tapeout', deps = [':build'])
image('web', deps = [':tapeout'])
",
    )]) else {
        return;
    };
    session.shows("list //app:*").shows("list --json //app:*");
    session.shows("list --deps //app:web").shows("list --rdeps //app:more").shows("list --why //app:web //app:more");
    session.refuses("list --why //app:more //app:web").refuses("list --deps //app:wbe");
    session.is("list");
}

/// The places of all edges and all marks that a table has.
#[test]
fn a_table_shows_what_joins_what_and_what_is_not_hermetic() {
    let Some(mut session) = Session::of(&[(
        "app/build.star",
        "
parameter('native', type = 'bool', default = False)
rule('get', doc = 'Fetch it.', network = True, secrets = ['token'])
tapeout('py', reverse_deps = ['//app:joint', dep('//base:tapeout', when = lambda p: p['native'])])
tapeout('joint')
",
    )]) else {
        return;
    };
    session.shows("list //app/...").shows("list --rdeps //app:py //app:*").is("table");
}

#[test]
fn a_plan_stands_in_execution_order_with_values_and_says_what_is_cached() {
    let Some(mut session) = Session::of(&[
        (
            "lib/build.star",
            "
parameter('word', default = 'one')
rule('z/build', deps = ['//base:build'], run = lambda p: 'mkdir -p /opt && echo %s >/opt/z' % p['word'])
rule('a/build', deps = ['//base:build'], run = 'mkdir -p /opt && echo a >/opt/a')
",
        ),
        (
            "app/build.star",
            "
rule('build', deps = ['//base:build', '//lib:z/build', '//lib:a/build'], run = 'cat /opt/z /opt/a >/opt/app')
tapeout('tapeout', deps = [':build'], include = ['/opt/app'])
image('web', deps = [':tapeout'])
",
        ),
    ]) else {
        return;
    };
    // Among rules that don't depend on one another the order is as written: z before a.
    session.shows("build --dry-run //app:web");
    session.workspace.run("build //lib:*").success();
    session.shows("build --dry-run //app:web");
    session.workspace.run("build //app:web").success();
    session.shows("build --dry-run //app:web").shows("build --dry-run --parameter //lib:word=two //app:web");
    session.is("plan");
}

#[test]
fn values_of_every_type_come_from_a_file_and_wrong_ones_show_where_the_parameter_is_defined() {
    let Some(mut session) = Session::of(&[
        (
            "app/build.star",
            "
parameter('flag', type = 'bool', default = False)
parameter('jobs', type = 'int', default = 2)
parameter('name', default = 'none')
parameter('prefix', type = 'path', default = '/usr')
parameter('words', type = 'list', default = [])
rule('a', run = lambda p: repr([p[name] for name in ['flag', 'jobs', 'name', 'prefix', 'words']]))
",
        ),
        (
            "good.json",
            r#"{"//app:flag": true, "//app:jobs": 8, "//app:name": "x y", "//app:prefix": "/opt", "//app:words": ["a", "b,c"]}"#,
        ),
        ("more.json", r#"{"//app:jobs": 9, "//app:name": null}"#),
        (
            "wrong.json",
            r#"{"//app:flag": "true", "//app:jobs": 1.5, "//app:name": 3, "//app:prefix": "a/../b", "//app:words": ["a", 1], "//app:wrods": []}"#,
        ),
        ("broken.json", "{\n\"//app:jobs\": }"),
    ]) else {
        return;
    };
    session.shows("graph --parameter @good.json //app:a");
    session.shows("graph --parameter @good.json --parameter @more.json //app:a");
    session.shows("-C app graph --parameter jobs=1 --parameter flag=true --parameter words=x,y --parameter name= a");
    session.refuses("graph --parameter @wrong.json //app:a").refuses("graph --parameter @broken.json //app:a");
    session.refuses("graph --parameter @none.json //app:a").refuses("graph --parameter jobs //app:a");
    session.refuses("graph --parameter //app:flag=1 --parameter //app:jobs=x --parameter //app:prefix= //app:a");
    session.refuses("graph --parameter //ap:jobs=1 --parameter //app:a=1 //app:a");
    session.is("values");
}

#[test]
fn a_reverse_dependency_may_be_conditional_and_set_parameters() {
    let Some(mut session) = Session::of(&[
        (
            "plugins/build.star",
            "
parameter('all', type = 'bool', default = False)
parameter('strip', type = 'bool', default = False)
parameter('x', default = 'plain')
rule('build', deps = ['//base:build'], run = lambda p: 'make %s %s' % (p['x'], p['strip']))
tapeout('first', deps = [':build'])
tapeout('stripped', deps = [':build'], reverse_deps = [dep('//base:tapeout', parameters = {':strip': True})])
tapeout('extra', deps = [':build'], reverse_deps = [dep('//app:joint', when = lambda p: p['all'])])
rule('group', deps = [':first', ':stripped', dep(':extra', when = lambda p: p['all'])])
",
        ),
        (
            "app/build.star",
            "
tapeout('joint')
image('web', deps = [dep('//plugins:group', parameters = {'//plugins:x': 'edge'}), ':joint'])
image('bare', deps = ['//plugins:first'])
",
        ),
    ]) else {
        return;
    };
    // Neither the joint point of an image that wasn't asked for, nor what no true condition reached.
    session.shows("graph //plugins:group").shows("graph //app:bare").shows("graph //app:web");
    session.shows("graph --parameter //plugins:all=true //app:web").is("reverse");
}

#[test]
fn every_error_shows_its_source_and_the_next_step() {
    let Some(mut session) = Session::of(&[
        ("syntax/build.star", "rule('a',\n     run = 'x'\nrule('b')\n"),
        (
            "cycle/build.star",
            "parameter('yes', type = 'bool', default = True)\nrule('a', deps = [':b'])\nrule('b', deps = [dep(':c', when = lambda p: p['yes'])])\nrule('c', deps = [':a'])\n",
        ),
        (
            "derive/build.star",
            "parameter('a', derive = lambda p: p['b'])\nparameter('b', derive = lambda p: p['a'])\nrule('r', run = lambda p: p['a'])\n",
        ),
        ("twice/build.star", "rule('a')\n\nrule('a')\n"),
        ("no_base/build.star", "rule('build', run = 'x')\n"),
        ("joins/build.star", "tapeout('t', reverse_deps = [])\nimage('i', deps = [':t'])\n"),
        (
            "types/build.star",
            "parameter('n', type = 'integer', default = 1)\nrule('a', deps = ':x', run = 7, netwrok = True)\n",
        ),
        (
            "names/build.star",
            "rule('a', deps = [':bild', '//tpyes:a', '//types/deep:x'])\nrule('build', deps = ['//base:build'], run = lambda p: p['jbos'])\nparameter('jobs')\n",
        ),
    ]) else {
        return;
    };
    for label in ["syntax:a", "cycle:a", "derive:r", "twice:a", "no_base:build", "joins:i", "types:a", "names:*"] {
        session.refuses(&format!("graph //{label}"));
    }
    session.refuses("build //namse:a").refuses("build //names:biuld").refuses("build names:a");
    session
        .refuses("build --parameter //names:jbos=1 //names:build")
        .refuses("build --parameter //types:n=x //types:a");
    session.is("errors");
}

#[test]
fn what_is_wrong_with_a_pod_is_found_before_anything_runs() {
    let Some(mut session) = Session::of(&[
        (
            "app/build.star",
            "
rule('build', deps = ['//base:build'], run = 'touch /never')
tapeout('tapeout', deps = [':build'], include = ['/never'])
image('web', deps = [':tapeout'])
",
        ),
        (
            "pods/build.star",
            "
pod('ports', containers = [container('a', image = '//app:web', ports = [80]), container('b', image = '//app:web', ports = [80])])
pod('host', containers = [container('a', image = '//app:web')], ports = [port(80, host = 8080), port(81, host = 8080), port(0)])
pod('mounts', containers = [container('a', image = '//app:web', mounts = [mount('dat', '/d'), mount('data', '/proc/x')],
                                      writable = ['/sys'])],
    volumes = [volume('data', empty = True, user = 'www')])
",
        ),
    ]) else {
        return;
    };
    session.refuses("build //pods:ports");
    session.is("pods");
    assert!(!session.workspace.output("").exists());
}

/// The label of a rule stands in its error once, at the place where everybody looks for it.
#[test]
fn an_error_of_a_rule_names_it_once() {
    let Some(session) = Session::of(&[(
        "app/build.star",
        "
rule('build', deps = ['//base:build'], run = 'mkdir /opt && echo x >/opt/x')
rule('user', deps = ['//base:build'], run = 'true', user = 'nobody-knows')
tapeout('nothing', deps = [':build'], include = ['/none/**'])
tapeout('owner', deps = [':build'], include = ['/opt/**'], owner = 'nobody-knows')
tapeout('tapeout', deps = [':build'], include = ['/opt/**'])
image('none', deps = [':nothing'])
image('owned', deps = [':owner'])
image('web', deps = [':tapeout'])
image('user', deps = [':tapeout'], user = 'nobody-knows')
pod('user', containers = [container('c', image = ':web', user = 'nobody-knows')])
",
    )]) else {
        return;
    };
    for (asked, named, line) in [
        ("//app:user", "rule //app:user", 3),
        ("//app:none", "tapeout //app:nothing", 4),
        ("//app:owned", "tapeout //app:owner", 5),
        ("//app:user/build_image", "//base:tapeout", 0),
        ("//app:user/build_pod", "pod //app:user/build_pod", 11),
    ] {
        let outcome = session.workspace.run(&format!("build {asked}")).fails();
        let error = outcome.stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default().to_string();
        assert_eq!(error.matches(named).count(), 1, "{asked}: {error}{outcome}");
        let label = named.rsplit(' ').next().unwrap_or_default();
        assert_eq!(error.matches(label).count(), 1, "{asked}: {error}{outcome}");
        if line > 0 {
            assert!(outcome.stderr.contains(&format!("app/build.star:{line}")), "{asked}{outcome}");
        } else {
            assert!(outcome.stderr.contains("build.star:"), "{asked}{outcome}");
        }
    }
}

#[test]
fn exports_reach_dependents_and_their_keys_and_nobody_else() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let write = |value: &str| {
        workspace.file(
            "app/build.star",
            format!(
                "
rule('tool', deps = ['//base:build'], exports = {{'PATH': ['/opt/{value}/bin'], 'HOME_OF_TOOL': '/opt'}},
     run = 'mkdir -p /opt/{value}/bin && echo echo it is {value} >/opt/{value}/bin/tool && chmod +x /opt/{value}/bin/tool')
rule('group', deps = [':tool'])
rule('user', deps = [':group'], run = 'tool; echo $HOME_OF_TOOL $PATH')
rule('other', deps = ['//base:build'], run = 'echo $PATH; ! tool')
rule('all', deps = [':user', ':other'])
"
            ),
        );
    };
    write("one");
    workspace.run("build //app:all").success();
    workspace
        .run("log //app:user")
        .success()
        .stdout_has("it is one\n/opt /opt/one/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n");
    workspace.run("build //app:all").success().says_not("built");
    // The tool is the same; what it exports is not.
    let exports = workspace.read("app/build.star").replace("'/opt'}", "'/OPT'}");
    workspace.file("app/build.star", exports);
    workspace
        .run("build //app:all")
        .success()
        .stderr_has("cached  //app:tool")
        .stderr_has("built  //app:user")
        .stderr_has("cached  //app:other");
    write("two");
    workspace.run("build //app:all").success().stderr_has("built  //app:user").stderr_has("cached  //app:other");
    workspace.run("log //app:user").success().stdout_has("it is two");
}

/// Real software, built twice in one folder under two values, and both in one image.
#[test]
fn a_diamond_under_two_values_is_joined_in_one_image() {
    let workspace = Workspace::debian();
    workspace.file(
        "lib/build.star",
        r#"
load("//templates/cc.star", "autotools")
parameter("where", type = "path", default = "/usr/local", doc = "The prefix.")
archive("hello", urls = ["debian:pool/main/h/hello/hello_2.10.orig.tar.gz"], strip_prefix = "hello-2.10",
        sha256 = "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b")
autotools(source = ":hello", prefix = lambda p: p["where"], options = ["--disable-nls"])
"#,
    );
    workspace.file(
        "app/build.star",
        r#"
def side(name):
    rule(name + "/build", deps = ["//base:build", dep("//lib:build", parameters = {"//lib:where": "/opt/" + name})],
         run = "/opt/%s/bin/hello >/opt/%s/said" % (name, name))
    tapeout(name, deps = [":" + name + "/build"], include = ["/opt/%s/bin/*" % name, "/opt/%s/said" % name])

side("left")
side("right")
rule("both/build", deps = [":left/build", ":right/build"],
     run = "cd /workspace/lib/hello && test -e hello && ls config.status && /opt/left/bin/hello && /opt/right/bin/hello")
tapeout("both", deps = [":both/build"], files = [file("/both", content = "x")])
image("web", deps = [":left", ":right", ":both"], check = ["/opt/right/bin/hello"])
"#,
    );
    let plan = workspace.run("build --dry-run --json //app:web").success().json();
    let of = |label: &str| {
        let steps = plan.as_array().expect("steps").iter();
        steps.filter(|step| step["label"] == label).map(|step| step["parameters"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of("//lib:build"), [r#"{"//lib:where":"/opt/left"}"#, r#"{"//lib:where":"/opt/right"}"#]);
    assert_eq!(of("//lib:hello"), ["{}"], "what sees no value is built once");
    workspace.run("build --dry-run //app:web").success().stdout_has("//base:build  with gcc, libc6-dev, make");
    workspace.run("build //app:web").success();
    let image = Layout::open(&workspace.output("app/web/build_image")).only();
    for path in ["opt/left/bin/hello", "opt/right/bin/hello", "opt/left/said", "opt/right/said", "both"] {
        assert!(image.has(path), "{path}");
    }
    // Nothing of the folder that they were built in.
    assert!(!image.files().keys().any(|path| path.starts_with(b"workspace")));
}
