//! Every error of a build file: what it says, where it points, what it proposes.

use super::{Site, whole};
use crate::graph::definitions_here;

/// (what, app/build.star, label, parameters)
type Case<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

/// Compares with the golden file of this name, which a reader judges: TAPEOUT_WRITE_GOLDEN=1 writes it.
fn check(name: &str, cases: &[Case]) {
    let mut found = String::new();
    for (what, text, label, parameters) in cases {
        let library = "parameter('x', type = 'int', default = 1)\nrule('build', deps = ['//base:build'])\n";
        let site = Site::new(&[
            ("app/build.star", text),
            ("app/src/main.c", ""),
            ("app/src/requirements.txt", "six==1.16.0\nrequests\n"),
            ("lib/build.star", library),
        ]);
        found += &format!("=== {what}\n");
        text.lines().for_each(|line| found += &format!("    {line}\n"));
        let error = site.analyse(&[label], parameters).map(|_| ()).expect_err(what);
        assert_eq!(error.exit_code(), 2, "{what}");
        for error in std::iter::once(&error).chain(error.others()) {
            assert!(error.next_step().is_some_and(|next| !next.is_empty()), "{what}: no next step: {error}");
        }
        found += &format!("$ {label} {}\n{}\n", parameters.join(" "), whole(&error));
    }
    golden(name, &found);
}

fn golden(name: &str, found: &str) {
    let path = format!("{}/src/graph/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("TAPEOUT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (found, expected) in found.split("=== ").zip(expected.split("=== ")) {
        assert!(found == expected, "--- expected\n{expected}\n--- found\n{found}");
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn labels_that_lead_nowhere() {
    check(
        "labels_that_lead_nowhere",
        &[
            (
                "near",
                "rule('a', deps = ['//base:build', ':bild'])\nrule('build', deps = ['//base:build'])\n",
                "//app:a",
                &[],
            ),
            ("far", "rule('a', deps = [':zzzzzzz'])\n", "//app:a", &[]),
            ("no package", "rule('a', deps = ['//nowhere:x'])\n", "//app:a", &[]),
            ("folder without build file", "rule('a', deps = ['//app/src:x'])\n", "//app:a", &[]),
            ("image", "image('web', deps = [])\nrule('a', deps = [':web'])\n", "//app:a", &[]),
            ("asked for", "rule('build', deps = ['//base:build'])\n", "//app:biuld", &[]),
            ("no label", "rule('a', deps = ['//app:../x', '//app', 'b c', ''])\n", "//app:a", &[]),
            ("parameter as a rule", "parameter('p')\nrule('a', deps = [':p'])\n", "//app:a", &[]),
            (
                "rule on an image",
                "tapeout('t', files = [])\nimage('i', deps = [':t'])\nrule('a', deps = [':i/build_image'])\n",
                "//app:a",
                &[],
            ),
            (
                "base is no image",
                "tapeout('t', files = [])\nimage('i', deps = [':t'], base = ':x')\nrule('x/build_imag')\n",
                "//app:i/build_image",
                &[],
            ),
            ("a pattern of nothing", "", "//nowhere/...", &[]),
        ],
    );
}

#[test]
fn definitions_that_are_wrong() {
    check(
        "definitions_that_are_wrong",
        &[
            ("syntax", "rule('a'\nrule('b')\n", "//app:a", &[]),
            ("unknown attribute", "rule('a', dep = [], bogus = 1)\n", "//app:a", &[]),
            ("unknown function", "rul('a')\n", "//app:a", &[]),
            ("print", "print('here', 1)\n", "//app:a", &[]),
            (
                "wrong types, all of them",
                "rule('a', deps = ':b', run = 7, env = ['x'], network = 'yes', packages = [1], ids = 'two')\n",
                "//app:a",
                &[],
            ),
            ("duplicate", "rule('a')\n\nparameter('a')\n", "//app:a", &[]),
            ("bad name", "rule('../a')\n", "//app:*", &[]),
            ("image's name", "rule('x/build_image')\n", "//app:*", &[]),
            ("fail", "def f(x):\n    fail('no ' + x)\nf('way')\n", "//app:*", &[]),
            ("paths", "rule('a', sources = ['/etc/passwd', '../x', 'src/man.c'], caches = ['x'])\n", "//app:a", &[]),
            ("glob", "rule('a', sources = glob(['*.rs']))\n", "//app:a", &[]),
            ("archive", "archive('a', urls = ['ftp://x'], sha256 = 'ABC')\narchive('b')\n", "//app:a", &[]),
            (
                "git",
                "git('a', urls = ['ssh://x', 'ext::sh'], commit = 'main', patches = ['none.patch', '../x'])\ngit('b')\n",
                "//app:a",
                &[],
            ),
            (
                "fetched",
                "rule('a', sources = [fetched('../x', urls = ['https://x'], digest = 'sha256:ab'), fetched('x', urls = [], digest = 1)])\n",
                "//app:a",
                &[],
            ),
            ("a lock that isn't there", "rule('a', sources = cargo_crates('Cargo.lock'))\n", "//app:a", &[]),
            (
                "a lock that pins nothing",
                "rule('a', sources = python_wheels('src/requirements.txt'))\n",
                "//app:a",
                &[],
            ),
            (
                "names",
                "rule('a', packages = ['-x', 'a b'], secrets = ['../x'], env = {'a=b': 'c'}, user = 'a b')\n",
                "//app:a",
                &[],
            ),
            (
                "files",
                "tapeout('t', include = ['usr/bin/x', '/a/../b', '/a['], files = [file('x', content = ''), file('/y'), file('/z', content = '', mode = '9')])\n",
                "//app:t",
                &[],
            ),
            (
                "image",
                "image('i', working_dir = '/proc/self', ports = [0, 'x/sctp'], layers = 'many', tapeouts = 'ALL', version = '../x')\n",
                "//app:i/build_image",
                &[],
            ),
            (
                "pod",
                "pod('p', containers = [container('A', image = 'redis:7'), container('b', image = ':x', mounts = [mount('dat', '/d')], restart = 'no', probes = {'live': probe(port = 1), 'liveness': probe()})], volumes = [volume('data'), volume('data', empty = True)])\n",
                "//app:p/build_pod",
                &[],
            ),
            (
                "ports",
                "pod('p', containers = [container('c', image = ':i', ports = ['x', 0, port(80, protocol = 'sctp'), [80]])], ports = ['8080:80'])\n",
                "//app:p/build_pod",
                &[],
            ),
            ("a pod without a container", "pod('p', containers = [])\n", "//app:p/build_pod", &[]),
            (
                "one fault, one error",
                "pod('p', containers = [container('c', image = 'redis:7')])\n",
                "//app:p/build_pod",
                &[],
            ),
            (
                "pods that no runtime could start",
                "def c(name, **more):
    return container(name, image = ':i', **more)

pod('p',
    containers = [
        c('web', mounts = [mount('data', '/srv'), mount('data', '/srv/')], writable = ['/srv', '/a\\tb'], working_dir = '/proc/self/fd/7',
          command = ['echo $$', '$(A)'], env = {'A': 'x', '1B': 'y', 'C D': 'z'}, ports = [80, port(81, protocol = 'sctp')]),
        c('web', mounts = [mount('data', '/proc/x'), mount('data', '/'), mount('data', '/./dev'), mount('data', '/a:ro'), mount('data', 'srv')],
          ports = [80, port(82, host = 8080)]),
        c('-x', probes = {'liveness': probe(exec = ['$(A)'], port = 1)}),
        container('y', image = '-x@sha256:' + '1' * 64),
    ],
    ports = [port(83, host = 8080)],
    volumes = [volume('data', host_path = 'x', user = 'www')],
    systemd_units = {'../x.service': '', '-x.service': ''})
tapeout('t', files = [file('/x', content = '')])
image('i', deps = [':t'])
",
                "//app:p/build_pod",
                &[],
            ),
            ("record", "pod('p', containers = [container('a', imag = ':x')])\n", "//app:*", &[]),
            ("record without", "pod('p', containers = [container('a')])\n", "//app:*", &[]),
            (
                "types of parameters",
                "parameter('a', type = 'integer')\nparameter('b', type = 'int', default = 'x')\nparameter('c', type = 'path', default = 'a/../b')\nparameter('d', default = 'x', derive = lambda p: 'x')\nparameter('e', derive = 'x')\n",
                "//app:*",
                &[],
            ),
            ("range", "rule('a', deps = range(3))\n", "//app:a", &[]),
        ],
    );
}

#[test]
fn parameters_that_are_wrong() {
    let app = "parameter('jobs', type = 'int', default = 2)\nrule('a', deps = ['//base:build'], run = lambda p: 'make -j%d' % p['jobs'])\n";
    check(
        "parameters_that_are_wrong",
        &[
            ("undefined, typed", app, "//app:a", &["//app:jbos=8"]),
            ("nearer to a rule than to a parameter", app, "//app:a", &["//app:b=8"]),
            ("where there is none", "rule('a', deps = ['//base:build'])\n", "//app:a", &["//app:b=8"]),
            ("of no package", app, "//app:a", &["jobs=8"]),
            ("of no package, and misspelt", app, "//app:a", &["jbos=8"]),
            ("of no package, and strange", app, "//app:a", &["colour=red"]),
            ("of a package that isn't there", app, "//app:a", &["//nowhere:jobs=8"]),
            ("a wrong type, typed", app, "//app:a", &["//app:jobs=many"]),
            ("a rule, typed", app, "//app:a", &["//app:a=1"]),
            ("undefined, read", "parameter('jobs')\nrule('a', run = lambda p: 'x' + p['jbos'])\n", "//app:a", &[]),
            ("None", "parameter('v')\nrule('a', run = lambda p: 'x' + p['v'])\n", "//app:a", &[]),
            (
                "p is no dict",
                "rule('a', run = lambda p: p.jobs)\nrule('b', run = lambda p: ' '.join([x for x in p]))\nrule('c', run = lambda p: p[1])\n",
                "//app:*",
                &[],
            ),
            (
                "undefined, on an edge",
                "rule('a', deps = [dep('//lib:build', parameters = {'//lib:y': 1})])\n",
                "//app:a",
                &[],
            ),
            (
                "a wrong type, on an edge",
                "rule('a', deps = [dep('//lib:build', parameters = {'//lib:x': 'many'})])\n",
                "//app:a",
                &[],
            ),
            (
                "a wrong type, derived",
                "parameter('d', type = 'int', derive = lambda p: 'x')\nrule('a', run = lambda p: p['d'])\n",
                "//app:a",
                &[],
            ),
            (
                "a wrong type, from a function",
                "rule('a', run = lambda p: 7, deps = lambda p: [':x', 1])\nrule('x')\n",
                "//app:a",
                &[],
            ),
            (
                "when gives no bool",
                "rule('a', deps = [dep('//lib:build', when = lambda p: p['//lib:x'])])\n",
                "//app:a",
                &[],
            ),
            (
                "a cycle of derive",
                "parameter('a', derive = lambda p: p['b'])\nparameter('b', derive = lambda p: p['c'])\nparameter('c', derive = lambda p: p['a'])\nrule('r', run = lambda p: p['a'])\n",
                "//app:r",
                &[],
            ),
            ("a rule in a function", "rule('a', run = lambda p: rule('b'))\n", "//app:a", &[]),
        ],
    );
}

#[test]
fn graphs_that_are_wrong() {
    check(
        "graphs_that_are_wrong",
        &[
            (
                "a cycle",
                "parameter('yes', type = 'bool', default = True)\nrule('a', deps = [':b'])\nrule('b', deps = [dep(':c', when = lambda p: p['yes'])])\nrule('c', deps = ['//base:build', ':a'])\n",
                "//app:c",
                &[],
            ),
            ("a rule on itself", "rule('a', deps = [':a'])\n", "//app:a", &[]),
            ("a build rule without base", "rule('x/build', deps = [':y'])\nrule('y')\n", "//app:x/build", &[]),
            ("packages without base", "rule('x', packages = ['gcc'])\n", "//app:x", &[]),
            ("an empty image", "image('i')\n", "//app:i/build_image", &[]),
            (
                "a tapeout that joins nothing",
                "tapeout('t', reverse_deps = [])\nimage('i', deps = [':t'])\n",
                "//app:i/build_image",
                &[],
            ),
            (
                "a rule that joins what it stands on",
                "tapeout('t', deps = ['//base:tapeout'])\nimage('i', deps = [':t'])\n",
                "//app:i/build_image",
                &[],
            ),
            (
                "an edge and a function",
                "rule('a', deps = ['//base:buld'], run = lambda p: p['x'], env = {'a=': 'b'})\n",
                "//app:a",
                &[],
            ),
            ("a pattern that is none", "rule('a')\n", "//app:...", &[]),
            (
                "several errors at once",
                "rule('a', deps = [':x1', ':x2', '//lib:biuld'], sources = ['none.c'])\n",
                "//app:a",
                &[],
            ),
        ],
    );
}

#[test]
fn a_template_shows_the_caller_and_the_way() {
    let site = Site::new(&[
        ("t/t.star", "def t(name):\n    rule(name, bogus = 1)\n    f(name)\n\ndef f(name):\n    rule(name + 1)\n"),
        ("app/build.star", "load('//t/t.star', 't')\nt('a')\n"),
    ]);
    golden("a_template", &site.fails(&["//app:*"], &[]));
}

#[test]
fn loads_that_fail_are_all_shown() {
    let site = Site::new(&[
        (
            "app/build.star",
            "load('//t/none.star', 'x')\nload('t.star', 'y')\nload(':broken.star', 'z')\nload('//app/build.star', 'u')\nload(':ok.star', 'none')\nload(':okk.star', 'one')\nload('//templates/c.star', 'autotools')\nload('//lib/cc.star', 'x')\n",
        ),
        ("app/broken.star", "def f(:\n"),
        ("app/ok.star", "one = 1\nrule('x')\n"),
        ("libs/build.star", ""),
        ("libs/cc.star", "x = 1\n"),
    ]);
    let error = whole(&definitions_here(&site.request(&["//app:*"], &[])).unwrap_err());
    golden("loads", &error);
}
