//! Every attribute takes a function of the parameters: what it gives counts as if it were written there.

use super::Site;
use crate::build_file::reference::{FUNCTIONS, FunctionKind};

/// Attributes, each with a value as it is written.
type Named<'a> = &'a [(&'a str, &'a str)];

/// A function, what it needs besides, and a value for each of its attributes that is another than the default.
const VALUES: [(&str, Named, Named); 6] = [
    (
        "rule",
        &[("deps", "['//base:build']")],
        &[
            ("deps", "['//base:build', '//lib:build']"),
            ("reverse_deps", "['//j:j']"),
            ("sources", "['f.c']"),
            ("packages", "['gcc']"),
            ("run", "'true'"),
            ("env", "{'A': 'b'}"),
            ("exports", "{'A': ['b']}"),
            ("user", "'bin'"),
            ("ids", "'range'"),
            ("owners", "'seen'"),
            ("network", "True"),
            ("secrets", "['s']"),
            ("caches", "['/c']"),
            ("limits", "{'time': 5}"),
        ],
    ),
    (
        "archive",
        &[("urls", "['https://x/y.tar']"), ("sha256", "'1' * 64")],
        &[
            ("urls", "['https://x/z.tar']"),
            ("sha256", "'2' * 64"),
            ("strip_prefix", "'s'"),
            ("into", "'i'"),
            ("patches", "['f.c']"),
        ],
    ),
    (
        "git",
        &[("urls", "['https://x/y']"), ("commit", "'1' * 40")],
        &[
            ("urls", "['https://x/z']"),
            ("commit", "'2' * 40"),
            ("submodules", "True"),
            ("into", "'i'"),
            ("patches", "['f.c']"),
        ],
    ),
    (
        "tapeout",
        &[("deps", "['//base:build']")],
        &[
            ("deps", "['//lib:build']"),
            ("reverse_deps", "['//j:j']"),
            ("include", "['/a']"),
            ("exclude", "['/a']"),
            ("paths", "['/a']"),
            ("packages", "['gcc']"),
            ("libraries", "['libx.so']"),
            ("files", "[file('/f', content = '')]"),
            ("run", "'true'"),
            ("strip_prefix", "'/s'"),
            ("prefix", "'/s'"),
            ("rename", "{'/a': '/b'}"),
            ("owner", "'5'"),
            ("modes", "{'/a': '0600'}"),
        ],
    ),
    (
        "image",
        &[("deps", "[':t']")],
        &[
            ("deps", "[':t', ':t2']"),
            ("base", "':i'"),
            ("tapeouts", "ALL"),
            ("entrypoint", "['/e']"),
            ("cmd", "['c']"),
            ("env", "{'A': 'b'}"),
            ("user", "'5'"),
            ("working_dir", "'/w'"),
            ("ports", "[80]"),
            ("volumes", "['/v']"),
            ("stop_signal", "'SIGINT'"),
            ("labels", "{'a': 'b'}"),
            ("layers", "'single'"),
            ("compression", "'gzip:9'"),
            ("exclude", "['/a']"),
            ("check", "'true'"),
            ("version", "'1'"),
            ("platform", "'linux/arm64'"),
        ],
    ),
    (
        "pod",
        &[("containers", "[container('a', image = ':i')]")],
        &[
            ("containers", "[container('b', image = ':i')]"),
            ("volumes", "[volume('v', empty = True)]"),
            ("files", "[file('f', content = '')]"),
            ("ports", "[80]"),
            ("systemd_units", "{'a.service': 'x'}"),
            ("version", "'1'"),
        ],
    ),
];

const OF_ALL: [(&str, &str); 2] = [("doc", "'What it is.'"), ("annotations", "{'a': 'b'}")];

/// A lock of Node.js that pins a package for development.
fn node_lock(version: &str) -> String {
    let integrity = format!("sha512-{}==", "A".repeat(86));
    let package = serde_json::json!({"version": version, "dev": true, "integrity": integrity});
    serde_json::json!({"lockfileVersion": 3, "packages": {"": {}, "node_modules/x": package}}).to_string()
}

/// The graph of a workspace with this build file, its places and the parameters that were read left out;
/// and whether one was.
fn analysed(text: &str) -> (String, bool) {
    let more = "
parameter('v', type = 'bool', default = True)
tapeout('t', files = [file('/t', content = '')])
tapeout('t2', files = [file('/t2', content = '')])
image('i', deps = [':t'])
";
    let site = Site::new(&[
        ("build.star", &format!("{text}{more}")),
        ("f.c", ""),
        ("requirements.lock", &format!("six==1.16.0 --hash=sha256:{}\n", "1".repeat(64))),
        ("other.lock", &format!("six==1.17.0 --hash=sha256:{}\n", "2".repeat(64))),
        ("Cargo.lock", "version = 3\n"),
        (
            "Other.lock",
            &format!(
                "version = 3\n[[package]]\nname = \"itoa\"\nversion = \"1.0.1\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{}\"\n",
                "1".repeat(64)
            ),
        ),
        ("package-lock.json", &node_lock("1")),
        ("other.json", &node_lock("2")),
        ("lib/build.star", "rule('build', deps = ['//base:build'], run = 'lib')\n"),
        ("j/build.star", "tapeout('j', reverse_deps = [])\n"),
    ]);
    let mut graph = site.graph(&["//:*", "//j:j"], &[]);
    let mut read = false;
    for instance in &mut graph.instances {
        read |= instance.label.to_string().starts_with("//:x") && !instance.parameters.is_empty();
        instance.parameters = Default::default();
        instance.folder = None;
        instance.place = crate::error::Place { file: String::new(), line: 1, column: 1, length: 1, source: None };
    }
    (serde_json::to_string_pretty(&graph).unwrap(), read)
}

/// With the value, with a function that gives it, and without it.
fn compare(what: &str, call: impl Fn(Option<&str>) -> String, value: &str) {
    let (written, _) = analysed(&call(Some(value)));
    let (given, read) = analysed(&call(Some(&format!("lambda p: {value} if p['v'] else 1"))));
    assert_eq!(given, written, "{what}");
    assert!(read, "{what}: the parameter was not read");
    assert_ne!(analysed(&call(None)).0, written, "{what}: this value changes nothing");
}

#[test]
fn every_attribute_of_every_definition() {
    for (kind, needed, values) in VALUES {
        let function = FUNCTIONS.iter().find(|function| function.name == kind).unwrap();
        for attribute in function.attributes.iter().filter(|attribute| attribute.name != "name") {
            let value = values.iter().chain(&OF_ALL).find(|(name, _)| *name == attribute.name);
            let (name, value) = value.unwrap_or_else(|| panic!("{kind}: no value of {} is tried", attribute.name));
            let call = |value: Option<&str>| {
                let others = needed.iter().filter(|(other, _)| value.is_none() || other != name);
                let all = others.copied().chain(value.map(|value| (*name, value)));
                let all: String = all.map(|(name, value)| format!(", {name} = {value}")).collect();
                format!("{kind}('x'{all})\n")
            };
            compare(&format!("{kind}: {name}"), call, value);
        }
    }
    let tried = VALUES.map(|(kind, ..)| kind);
    let defining = FUNCTIONS.iter().filter(|f| f.kind == FunctionKind::Definition && f.name != "parameter");
    defining.for_each(|function| assert!(tried.contains(&function.name), "{}", function.name));
}

/// What stands in a record, a list or a dict is as good a place.
#[test]
fn whatever_stands_inside_of_an_attribute() {
    let pod = |inside: &str| format!("pod('x', containers = [container('a', image = ':i'{inside})])\n");
    // (around, value, other value)
    let cases = [
        ("pod('x', containers = [container('a', image = @)])", "':i'", "'x@sha256:' + '1' * 64"),
        (&pod(", command = @"), "['a']", "[]"),
        (&pod(", env = {'A': @}"), "'b'", "'c'"),
        (&pod(", user = @"), "5", "6"),
        (&pod(", read_only = @"), "False", "True"),
        (&pod(", ports = [port(80, host = @)]"), "7", "8"),
        (&pod(", mounts = [mount('v', @)])], volumes = [volume('v', empty = True"), "'/a'", "'/b'"),
        (&pod(", probes = {'liveness': probe(port = 1, period = @)}"), "7", "8"),
        (&pod(")], volumes = [volume('v', host_path = @"), "'/a'", "'/b'"),
        (&pod(")], volumes = [volume('v', files = [file('/a', content = @)]"), "'a'", "'b'"),
        (&pod(")], files = [file(@, content = ''"), "'a'", "'b'"),
        ("tapeout('x', files = [file('/x', source = @)])", "'f.c'", "'lib'"),
        ("tapeout('x', files = [file('/x', content = '', mode = @)])", "0o600", "0o644"),
        ("rule('x', sources = ['f.c', @])", "input('i')", "input('j')"),
        ("rule('x', sources = [fetched(@, urls = ['https://x'], digest = 'sha256:' + '1' * 64)])", "'a'", "'b'"),
    ];
    for (around, value, other) in cases {
        compare(around, |value| format!("{}\n", around.replace('@', value.unwrap_or(other))), value);
    }
}

#[test]
fn every_argument_of_every_template() {
    let all = [
        ("deps", "['//lib:build']"),
        ("env", "{'A': 'b'}"),
        ("include", "['/opt/**']"),
        ("packages", "['zlib1g-dev']"),
        ("prefix", "'/opt/y'"),
        ("sources", "['f.c']"),
        ("tools", "['other']"),
    ];
    let cc = [("source", "':a'"), ("folder", "'f'"), ("options", "['o']"), ("targets", "['t']"), ("jobs", "7")];
    let cargo = [("lock", "'Other.lock'"), ("folder", "'f'"), ("options", "['o']"), ("jobs", "7")];
    let python = [("lock", "'other.lock'"), ("package", "'p'"), ("version", "'3.12'")];
    let node = [("lock", "'other.json'"), ("script", "'make'"), ("dev", "True"), ("files", "['f']")];
    let templates: [(&str, &str, Named, &str); 7] = [
        ("cc", "make", &cc, ""),
        ("cc", "autotools", &cc, ""),
        ("cc", "cmake", &cc, ""),
        ("cc", "meson", &cc, ""),
        ("cargo", "cargo", &cargo, ""),
        ("python", "python", &python, "lock = 'requirements.lock'"),
        ("node", "node", &node, "lock = 'package-lock.json'"),
    ];
    for (file, template, own, needed) in templates {
        let path = format!("{}/rootfs/templates/{file}.star", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let (_, signature) = text.split_once(&format!("def {template}(")).unwrap();
        let (signature, _) = signature.split_once("**arguments").unwrap();
        let mut names: Vec<&str> =
            signature.split(" = ").filter_map(|part| part.split([' ', '(']).next_back()).collect();
        names.pop();
        for name in names.into_iter().filter(|name| *name != "name") {
            assert!(own.iter().chain(&all).any(|(tried, _)| *tried == name), "{template}: no value of {name} is tried");
        }
        for (name, value) in own.iter().chain(&all) {
            let call = |value: Option<&str>| {
                let first = needed.split(" = ").next() == Some(name) && value.is_some();
                let own = value.map(|value| format!(", {name} = {value}")).unwrap_or_default();
                let needed = if first || needed.is_empty() { String::new() } else { format!(", {needed}") };
                let archive = "archive('a', urls = ['https://x/y.tar'], sha256 = '1' * 64)";
                format!(
                    "load('//templates/{file}.star', '{template}')\n{archive}\n{template}(name = 'x'{own}{needed})\n"
                )
            };
            compare(&format!("{template}: {name}"), call, value);
        }
    }
}
