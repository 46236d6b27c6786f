//! An analysis from a memo gives what one without it gives, and reads no more build files than it must.

use super::*;
use crate::graph::memo::Recalled;

const FILES: [(&str, &str); 6] = [
    (
        "t/t.star",
        "def t(name, deps):\n    rule(name, deps = ['//base:build'] + deps, run = lambda p: 'echo %s' % p['//conf:word'])\n",
    ),
    (
        "conf/build.star",
        "parameter('word', default = 'one')\nparameter('loud', type = 'bool', derive = lambda p: p[':word'] == 'two')\n",
    ),
    (
        "lib/build.star",
        "load('//t/t.star', 't')\nt('a', [])\nt('b', [':a'])\nrule('plain', deps = ['//base:build'], run = 'true')\n",
    ),
    (
        "app/build.star",
        "rule('build', deps = ['//lib:b', dep('//lib:plain', when = lambda p: p['//conf:loud']), \
         dep('//lib:a', parameters = {'//conf:word': 'edge'})], run = 'x')\n\
         tapeout('tapeout', deps = [':build'], include = ['/x'])\nimage('web', deps = [':tapeout'])\n",
    ),
    ("pod/build.star", "pod('shop', containers = [container('web', image = '//app:web')])\n"),
    ("other/build.star", "rule('alone', deps = ['//lib:plain'], doc = 'A doc.')\nparameter('unread')\n"),
];

/// What is edited, what it becomes, and which packages nobody reads because of that.
const EDITS: [(&str, &str, &[&str]); 19] = [
    (
        "lib",
        "# A comment.\nload('//t/t.star', 't')\nt('a', [])\nt('b', [':a'])\nrule('plain', deps = ['//base:build'], run = 'true')\n",
        &["app", "pod", "other"],
    ),
    (
        "lib",
        "load('//t/t.star', 't')\nt('a', [])\nt('b', [':a', ':c'])\nrule('plain', deps = ['//base:build'], run = 'false')\nt('c', [])\n",
        &["app", "pod", "other"],
    ),
    ("lib", "load('//t/t.star', 't')\nt('b', [])\n", &[]),
    (
        "lib",
        "load('//t/t.star', 't')\nt('a', ['//app:build'])\nt('b', [':a'])\nrule('plain', deps = ['//base:build'])\n",
        &[],
    ),
    ("lib", "rule('a')\nrule('plain', packages = ['gcc'])\nrule('b')\n", &["pod"]),
    (
        "lib",
        "rule('a', deps = ['//base:build'], reverse_deps = ['//base:tapeout'])\nrule('b', deps = ['//base:build'])\nrule('plain')\n",
        &["app", "pod", "other"],
    ),
    ("lib", "tapeout('a', deps = ['//base:build'], include = ['/y'])\nrule('b')\nrule('plain')\n", &["pod"]),
    ("lib", "rule('a'\n", &[]),
    ("lib", "image('b', tapeouts = ALL)\nrule('a')\nrule('plain')\n", &[]),
    (
        "conf",
        "parameter('word', default = 'two')\nparameter('loud', type = 'bool', derive = lambda p: p[':word'] == 'two')\n",
        &["pod", "other"],
    ),
    (
        "conf",
        "parameter('word', default = 'two')\nparameter('loud', type = 'bool', default = False)\n",
        &["pod", "other"],
    ),
    ("conf", "parameter('word', type = 'int')\nparameter('loud', type = 'bool')\n", &[]),
    ("conf", "parameter('loud', type = 'bool')\n", &[]),
    (
        "app",
        "rule('build', deps = ['//lib:b', '//lib:plain'], run = 'x')\n\
     tapeout('tapeout', deps = [':build'], include = ['/x'])\nimage('web', deps = [':tapeout'], user = 'nobody')\n",
        &["lib", "pod", "other", "conf"],
    ),
    (
        "app",
        "rule('build', deps = ['//lib:b'], run = 'x')\ntapeout('tapeout', deps = [':build'], include = ['/x'])\n\
     image('low', deps = [':tapeout'])\nimage('web', base = ':low', deps = [':tapeout'])\n",
        &["lib", "pod", "other", "conf"],
    ),
    ("app", "rule('build', deps = ['//base:build'])\nrule('web/x')\n", &[]),
    (
        "app",
        "rule('build', deps = [dep('//lib:b', parameters = {'//conf:word': 'two', '//other:unread': 'x'})])\n\
     tapeout('tapeout', deps = [':build'], include = ['/x'])\nimage('web', deps = [':tapeout'])\n",
        &["pod"],
    ),
    ("pod", "", &["lib", "app", "other", "conf"]),
    ("other", "rule('more', deps = ['//lib:b'])\n", &["lib", "app", "pod", "conf"]),
];

fn recall(site: &Site, request: &Request, memo: &[u8], edited: &str) -> Result<(Graph, Vec<u8>)> {
    let path = site.path().join(edited).join("build.star").display().to_string();
    let recalled = Recalled::new(memo, &[path]).expect("a build file that it knows");
    analysed(request, recalled)
}

fn analysed(request: &Request, recalled: Recalled) -> Result<(Graph, Vec<u8>)> {
    match analysis::run(&Question::new(request, Wanted::Graph)?, recalled)? {
        Answer::Graph(graph, memo) => Ok((graph, postcard::to_stdvec(&memo).unwrap())),
        _ => panic!("not a graph"),
    }
}

fn text(graph: &Graph) -> String {
    serde_json::to_string_pretty(graph).unwrap()
}

#[test]
fn after_an_edit_it_gives_what_the_whole_gives() {
    let questions: [(&[&str], &[&str]); 4] = [
        (&["//..."], &[]),
        (&["//..."], &["//conf:word=two"]),
        (&["//pod:shop/build_pod", "//other:*", "//lib:a"], &[]),
        (&["//app:web/build_image", "//other:alone"], &["//conf:loud=true"]),
    ];
    for (patterns, parameters) in questions {
        for (edited, becomes, untouched) in EDITS {
            let site = Site::new(&FILES);
            let what = format!("{patterns:?} {parameters:?} {edited}: {becomes}");
            let request = site.request(patterns, parameters);
            let (before, memo) = analysed(&request, Recalled::default()).unwrap();
            let file = format!("{edited}/build.star");
            if !text(&before).contains(&file) {
                // Nobody asked for it.
                continue;
            }
            site.write(&file, becomes);
            let fresh = site.analyse(patterns, parameters);
            let Ok((graph, memo)) = recall(&site, &request, &memo, edited) else {
                assert!(fresh.is_err(), "{what}: it found an error that isn't there");
                continue;
            };
            assert_eq!(text(&graph), text(&fresh.expect(&what)), "{what}");
            // There and back again, from what that one left.
            let old = FILES.iter().find(|(path, _)| *path == file).unwrap().1;
            site.write(&file, old);
            let (again, memo) = recall(&site, &request, &memo, edited).expect(&what);
            assert_eq!(text(&again), text(&before), "{what}, and back");
            // What had no part in it is not even looked at; but a parameter that is given is checked each time.
            site.write(&file, becomes);
            for package in untouched.iter().filter(|package| parameters.is_empty() || **package != "conf") {
                site.write(&format!("{package}/build.star"), "fail('it was read')\n");
            }
            let (unread, _) =
                recall(&site, &request, &memo, edited).unwrap_or_else(|e| panic!("{what}\n{}", super::whole(&e)));
            assert_eq!(text(&unread), text(&graph), "{what}, the others unread");
        }
    }
}

#[test]
fn what_is_no_build_file_makes_a_memo_void() {
    let site = Site::new(&FILES);
    let (_, memo) = analysed(&site.request(&["//..."], &[]), Recalled::default()).unwrap();
    let path = |path: &str| site.path().join(path).display().to_string();
    assert!(Recalled::new(&memo, &[path("lib/build.star"), path("app/build.star")]).is_some());
    assert!(Recalled::new(&memo, &[path("lib/build.star"), path("t/t.star")]).is_none());
    assert!(Recalled::new(&memo[..memo.len() - 1], &[path("lib/build.star")]).is_none());
    assert!(Recalled::new(&[], &[]).is_none());
}
