//! What `list` and `graph` print for other programs: JSON as its schema says, DOT as graphviz reads it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::{Workspace, have};

const ALL_KINDS: &str = r#"
parameter('jobs', type = 'int', default = 2)
parameter('words', type = 'list', default = ['a'])
parameter('dir', type = 'path', derive = lambda p: '/x')
parameter('text', default = 'a "quote", a \\ and a\nnew line }')
rule('build', deps = ['//base:build', ':source', dep(':more', when = lambda p: p['jobs'] > 1, parameters = {':words': ['b'], ':dir': None})],
     run = lambda p: p['text'], annotations = {'owner': 'us'})
rule('more', deps = lambda p: ['//base:build'], network = True, secrets = ['s'])
archive('source', urls = ['https://x/y.tar'], sha256 = '1' * 64)
git('commit', urls = ['https://x/y'], commit = '1' * 40)
tapeout('t', deps = [':build'])
image('web', deps = [':t'])
pod('shop', containers = [container('c', image = ':web')])
"#;

fn workspace() -> Option<Workspace> {
    // The package python3-jsonschema has this program.
    have(&["/usr/bin/jsonschema", "busybox"]).then(|| {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", ALL_KINDS);
        workspace
    })
}

const VALIDATE: &str = "
import json, sys, jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
wrong = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(json.load(open(sys.argv[2])))]
sys.exit('; '.join(wrong) or 0)
";

#[test]
fn what_list_prints_is_as_its_schema_says() {
    let Some(workspace) = workspace() else { return };
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/list.schema.json");
    workspace.file("schema.json", std::fs::read(schema).expect("the schema"));
    let fits = |document: &Value| {
        workspace.file("list.json", document.to_string());
        workspace.tool("/usr/bin/python3", &["-c", VALIDATE, "schema.json", "list.json"])
    };
    for labels in ["//...", "//app:jobs", "//base:*"] {
        fits(&workspace.run(&format!("list --json {labels}")).success().json()).success();
    }
    let all = workspace.run("list --json //app:*").success().json();
    let kind = |one: &Value| one["kind"].as_str().expect("a kind").to_owned();
    let kinds: BTreeSet<String> = all.as_array().expect("an array").iter().map(kind).collect();
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    // It sees what is missing, what is new and what has another type.
    for (name, value) in [("conditional", json!(1)), ("label", json!("x")), ("more", json!(1))] {
        let mut wrong = all.clone();
        wrong[4]["deps"][0][name] = value;
        fits(&wrong).fails();
    }
    let mut wrong = all;
    wrong[0].as_object_mut().expect("an object").remove("derived");
    fits(&wrong).fails();
}

/// The words of a DOT file, strings as they read after a `"`: graphviz' grammar (its `doc/info/lang`) has all of them.
fn words(dot: &str) -> Vec<String> {
    let mut words = vec![];
    let mut letters = dot.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            letter if letter.is_whitespace() => {}
            '"' => {
                let mut text = String::from("\"");
                loop {
                    match letters.next().expect("the end of a string") {
                        '"' => break,
                        '\\' => match letters.next().expect("the end of a string") {
                            'n' => text.push('\n'),
                            other => text.push(other),
                        },
                        other => text.push(other),
                    }
                }
                words.push(text);
            }
            '-' => words.push(format!("-{}", letters.next().expect("an arrow"))),
            '{' | '}' | '[' | ']' | '=' | ';' => words.push(letter.to_string()),
            letter if letter.is_ascii_alphanumeric() => {
                let mut name = letter.to_string();
                while let Some(more) = letters.next_if(|l| l.is_ascii_alphanumeric() || *l == '_') {
                    name.push(more);
                }
                words.push(name);
            }
            other => panic!("{other:?} can't stand in DOT outside of a string:\n{dot}"),
        }
    }
    words
}

#[test]
fn the_dot_file_has_every_phase_as_a_cluster_and_every_edge() {
    let Some(workspace) = workspace() else { return };
    let dot = workspace.run("graph --dot //app:shop").success().stdout;
    let graph = workspace.run("graph --json //app:shop").success().json();
    let words = words(&dot);
    assert_eq!(words[..3], ["digraph", "tapeout", "{"]);
    let count = |word: &str| words.iter().filter(|known| *known == word).count();
    assert_eq!((count("{"), count("[")), (count("}"), count("]")));
    // (node, its cluster, what it is called), and edges.
    let (mut cluster, mut nodes, mut edges) = (String::new(), vec![], vec![]);
    let padded: Vec<String> = words.iter().cloned().chain(std::iter::repeat_n(String::new(), 5)).collect();
    for window in padded.windows(6) {
        match window.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["{", "label", "=", name, ..] => cluster = name.to_owned(),
            [node, "[", "label", "=", name, "]"] => nodes.push((node.to_owned(), cluster.clone(), name.to_owned())),
            [from, "->", to, ..] => edges.push((from.to_owned(), to.to_owned())),
            _ => {}
        }
    }
    let instances = graph["instances"].as_array().expect("instances");
    assert_eq!(nodes.len(), instances.len());
    let mut expected = vec![];
    for (id, instance) in instances.iter().enumerate() {
        let (_, cluster, name) = nodes.iter().find(|(node, ..)| *node == format!("n{id}")).expect("a node");
        let phase = match instance["spec"].as_object().expect("a spec").keys().next().expect("a kind").as_str() {
            "Tapeout" => "\"tapeout",
            "Image" => "\"build image",
            "Pod" => "\"build pod",
            _ => "\"build",
        };
        assert_eq!(cluster, phase, "{instance}");
        assert!(name.starts_with(&format!("\"{}", instance["label"].as_str().expect("a label"))), "{name}");
        let deps = instance["deps"].as_array().expect("deps").iter();
        expected.extend(deps.map(|dep| (format!("n{id}"), format!("n{dep}"))));
    }
    assert_eq!(edges, expected);
    let (.., name) = nodes.iter().find(|(.., name)| name.starts_with("\"//app:build")).expect("the rule");
    assert!(name.contains("quote") && name.contains("new line }"), "{name}");
}
