//! What the build file language offers: every function and attribute, with type, default and doc.
//!
//! Names are checked against this table, and `docs/build-files.md` holds it as text (a test keeps
//! them together), so the reference can't drift.

use std::fmt::Write;

use crate::error::Error;
use crate::nearest::nearest;

/// The type of an attribute, in words.
pub fn type_of(kind: &str, attribute: &str) -> Option<String> {
    let found = function(kind)?.attributes.iter().find(|known| known.name == attribute)?;
    let name = found.type_name;
    // What is written as it is has no article: `ALL`.
    Some(if name.starts_with('`') { name.to_string() } else { format!("{} {name}", article(name)) })
}

/// `an image`, `a rule`.
pub fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The default of an attribute that must be given.
pub const REQUIRED: &str = "(required)";

/// What a function does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionKind {
    /// It defines something with a label.
    Definition,
    /// It gives a record that stands in an attribute.
    Record,
    /// It gives a plain value.
    Value,
}

/// A function of the language.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub kind: FunctionKind,
    /// What it is for.
    pub doc: &'static str,
    /// Its attributes; the first may be given without its name.
    pub attributes: &'static [Attribute],
}

/// An attribute of a function.
#[derive(Debug)]
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// Its type, in words.
    pub type_name: &'static str,
    /// Its default, as it would be written.
    pub default: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

const fn a(name: &'static str, type_name: &'static str, default: &'static str, doc: &'static str) -> Attribute {
    Attribute { name, type_name, default, doc }
}

const DOC: Attribute = a("doc", "string", "\"\"", "What it is for; `tapeout list` shows it.");
const ANNOTATIONS: Attribute =
    a("annotations", "dict of strings", "{}", "Whatever other tools want to find; `tapeout list --json` shows them.");
const DEPS: Attribute =
    a("deps", "list of labels and `dep(…)`", "[]", "What is built before, and whose changesets it sees.");
const PATCHES: Attribute = a(
    "patches",
    "list of paths",
    "[]",
    "Files of the package, applied in this order to what was unpacked, as `patch -p1` would, but a hunk must match exactly (its line may differ).",
);
const FILES: &str = "list of `file(…)`";
const RUN: &str = "script, argv list, or list of either";

/// All functions, in the order of the docs.
pub const FUNCTIONS: &[Function] = &[
    Function {
        name: "parameter",
        kind: FunctionKind::Definition,
        doc: "Defines a value that the command line, a file or an edge of the graph can set. A label like a rule's.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name."),
            a("type", "string", "\"string\"", "`bool`, `int`, `string`, `path` or `list` (of strings)."),
            a(
                "default",
                "a value of that type",
                "None",
                "Its value where nothing sets it. Without `default` and `derive` it is then None.",
            ),
            a(
                "derive",
                "function",
                "None",
                "Its value where nothing sets it, from other parameters: `lambda p: p[\"prefix\"] + \"/bin\"`. Not together with `default`.",
            ),
            DOC,
            ANNOTATIONS,
        ],
    },
    Function {
        name: "rule",
        kind: FunctionKind::Definition,
        doc: "Defines a rule: a script that runs in the builder, on top of what its dependencies made. A rule without `run` groups others.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name. One named `build` or `…/build` must reach `//base:build`."),
            DOC,
            DEPS,
            a(
                "reverse_deps",
                "list of labels and `dep(…)`",
                "[]",
                "Joint points: each gets an edge to this rule, where both are reached.",
            ),
            a(
                "sources",
                "list of paths, `input(…)`, `fetched(…)`",
                "[]",
                "Files and folders of the package, copied to `/workspace/<package>`; a folder is taken whole. What lies elsewhere, and what lock files pin, is brought there too.",
            ),
            a(
                "packages",
                "list of strings",
                "[]",
                "Distribution packages that this rule and all that depends on it find installed (by `//base:build`, which it must reach).",
            ),
            a(
                "run",
                RUN,
                "[]",
                "A string is a script for `/bin/sh -e`; a list of strings is a program with its arguments; in a list of lists and strings each is a step. It runs in `/workspace/<package>`. A list of strings alone is one argv.",
            ),
            a("env", "dict of strings", "{}", "Environment variables of `run`."),
            a(
                "exports",
                "dict of strings or lists",
                "{}",
                "Environment variables that the rules which depend on this one get: a list is prepended, joined by `:`.",
            ),
            a(
                "user",
                "string",
                "None",
                "The user of the snapshot that `run` runs as, instead of root. See [what a rule may ask for](rules.md#another-user).",
            ),
            a(
                "ids",
                "string",
                "\"one\"",
                "`one` mapped ID, or a `range` of subordinate IDs through newuidmap. See [what a rule may ask for](rules.md#several-real-ids).",
            ),
            a(
                "owners",
                "string",
                "\"recorded\"",
                "What `stat` shows: `recorded`: every file is the mapped user's; `seen`: the owners that are recorded. See [what a rule may ask for](rules.md#owners).",
            ),
            a("network", "bool", "False", "True: it has the host's network, and is marked not hermetic."),
            a(
                "secrets",
                "list of strings",
                "[]",
                "Names of secrets: files below `/run/secrets` while `run` runs, given by `--secret`. See [what a rule may ask for](rules.md#secrets).",
            ),
            a(
                "caches",
                "list of paths",
                "[]",
                "Folders whose content is kept between runs, and is in no changeset. See [what a rule may ask for](rules.md#caches).",
            ),
            a(
                "limits",
                "dict",
                "{}",
                "`processes`, `memory` and `file_size` (bytes, or `\"512M\"`), `time` (seconds). See [what a rule may ask for](rules.md#limits).",
            ),
            ANNOTATIONS,
        ],
    },
    Function {
        name: "archive",
        kind: FunctionKind::Definition,
        doc: "Defines a rule that fetches a tar or zip archive by its digest and unpacks it into `/workspace/<package>/<into>`.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name."),
            DOC,
            a(
                "urls",
                "list of strings",
                REQUIRED,
                "Tried in order: `https:`, `http:`, `debian:pool/…` (below the configured mirror), `input:NAME`, `file:` below the package.",
            ),
            a("sha256", "string", REQUIRED, "64 hex digits."),
            a(
                "strip_prefix",
                "string",
                "\"\"",
                "Dropped from the front of each path in it; a path that doesn't begin with it is left out.",
            ),
            a("into", "string", "its name", "The folder below the package's."),
            PATCHES,
            ANNOTATIONS,
        ],
    },
    Function {
        name: "git",
        kind: FunctionKind::Definition,
        doc: "Defines a rule that lays out the tree of a commit in `/workspace/<package>/<into>`: its files as git keeps them, without `.git`. The machine's own `git` fetches it, outside of the sandbox.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name."),
            DOC,
            a(
                "urls",
                "list of strings",
                REQUIRED,
                "Repositories, tried in order: `https:`, `http:`, `file:/…`, `input:NAME`.",
            ),
            a("commit", "string", REQUIRED, "The whole commit id, 40 hex digits."),
            a("submodules", "bool", "False", "True: the submodules too, and theirs."),
            a("into", "string", "its name", "The folder below the package's."),
            PATCHES,
            ANNOTATIONS,
        ],
    },
    Function {
        name: "tapeout",
        kind: FunctionKind::Definition,
        doc: "Defines a rule that picks files for an image. It becomes one layer. One that picks nothing is a joint point's, or a group.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name, by custom `tapeout` or `…/tapeout`."),
            DOC,
            DEPS,
            a(
                "reverse_deps",
                "list of labels and `dep(…)`",
                "[\"//base:tapeout\"]",
                "Joint points. What is given replaces the default: a joint point of your own joins `//base:tapeout` itself, and its rules join it.",
            ),
            a(
                "include",
                "list of patterns",
                "[]",
                "Files that its transitive dependencies made or changed (all but what `//base:build` installed).",
            ),
            a("exclude", "list of patterns", "[]", "Not these, whatever picked them."),
            a("paths", "list of patterns", "[]", "Files by path, whoever made them: the builder's too."),
            a(
                "packages",
                "list of strings",
                "[]",
                "What these distribution packages own. They count as `packages` of this rule.",
            ),
            a(
                "libraries",
                "bool or list of strings",
                "True",
                "False: its files are left out of the search for shared libraries. A list: these are needed besides (names as in `dlopen`, or paths).",
            ),
            a("files", FILES, "[]", "Files that the builder never had."),
            a("run", RUN, "[]", "What no list can say: what it changes is picked."),
            a("strip_prefix", "string", "None", "Dropped from the front of each picked path."),
            a("prefix", "path", "None", "Put before each picked path."),
            a("rename", "dict of paths", "{}", "From a picked path to another."),
            a("owner", "string", "None", "Owner of all that it picked: `user` or `user:group`, names or numbers."),
            a(
                "modes",
                "dict of modes",
                "{}",
                "Modes by pattern (`\"0750\"` or `0o750`); the last that matches counts.",
            ),
            ANNOTATIONS,
        ],
    },
    Function {
        name: "image",
        kind: FunctionKind::Definition,
        doc: "Defines `NAME/build_image`: a container image of all that is taped out below it.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name: the label is `//package:NAME/build_image`."),
            DOC,
            a("deps", "list of labels and `dep(…)`", "[]", "Its tapeout rules. `//base:tapeout` is always among them."),
            a(
                "base",
                "label of an image",
                "None",
                "It stands on that image: `:web` means `:web/build_image`. Or one of a registry, pinned by digest: `docker://REF@sha256:…`.",
            ),
            a(
                "tapeouts",
                "`ALL`",
                "None",
                "`ALL`: the builder itself and all that was built, not only what was taped out.",
            ),
            a("entrypoint", "list of strings", "[]", "Entrypoint: a program of the image (or below one of `volumes`)."),
            a("cmd", "list of strings", "[]", "Command: the arguments; without an entrypoint the program too."),
            a("env", "dict of strings", "{}", "Environment."),
            a("user", "string", "\"\"", "`user` or `user:group`, names or numbers; empty: root."),
            a("working_dir", "path", "\"\"", "Absolute; empty: `/`."),
            a("ports", "list of ints and strings", "[]", "`6379` or `\"53/udp\"`."),
            a("volumes", "list of paths", "[]", "Folders that are meant to be mounted."),
            a(
                "stop_signal",
                "string",
                "\"\"",
                "What asks it to end: `SIGINT`, `SIGRTMIN+3`; empty: the runtime's default.",
            ),
            a("labels", "dict of strings", "{}", "Labels of the image's configuration."),
            a("annotations", "dict of strings", "{}", "Annotations of its manifest."),
            a("layers", "string", "\"rule\"", "One layer a tapeout `rule`, or a `single` one."),
            a(
                "compression",
                "string",
                "\"zstd\"",
                "`zstd`, `gzip` or `none`; a level may follow: `zstd:19` (1 to 19, else 3), `gzip:9` (1 to 12, else 6).",
            ),
            a("exclude", "list of patterns", "[]", "Pruned after the joint point."),
            a("check", RUN, "[]", "Runs in the finished image before it is written, for ten minutes at most."),
            a("version", "string", "None", "Its version, and its tag in the layout."),
        ],
    },
    Function {
        name: "pod",
        kind: FunctionKind::Definition,
        doc: "Defines `NAME/build_pod`: a bundle of images, static data and configuration files.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name: the label is `//package:NAME/build_pod`."),
            DOC,
            a("containers", "list of `container(…)`", REQUIRED, "Its containers."),
            a("volumes", "list of `volume(…)`", "[]", "Its volumes."),
            a("files", FILES, "[]", "Configuration files of the bundle: relative paths, mounted by `mount(PATH, …)`."),
            a(
                "ports",
                "list of ints and `port(…)`",
                "[]",
                "Ports that the pod publishes: `8080` under the same number on the host, `port(8080, host = 80)` under another one.",
            ),
            a("systemd_units", "dict of strings", "{}", "Units to write: name to text."),
            a("version", "string", "None", "Its version."),
            ANNOTATIONS,
        ],
    },
    Function {
        name: "dep",
        kind: FunctionKind::Record,
        doc: "A dependency with a condition or with parameters.",
        attributes: &[
            a("label", "label", REQUIRED, "On what."),
            a(
                "when",
                "function or bool",
                "True",
                "The edge is there only where this is true: `lambda p: p[\"//base:release\"]`, with the values of the rule where it stands.",
            ),
            a(
                "parameters",
                "dict, or function that gives one",
                "{}",
                "Values by the labels of parameters. They hold for all that is below this edge, and win over the command line there; an edge further down wins over this one. None: its own default again.",
            ),
        ],
    },
    Function {
        name: "input",
        kind: FunctionKind::Record,
        doc: "A file or folder from outside of the workspace, by the name that `[inputs]` or `--input` gives it.",
        attributes: &[a("name", "string", REQUIRED, "Its name; it lies in the rule's folder under this name.")],
    },
    Function {
        name: "fetched",
        kind: FunctionKind::Record,
        doc: "A file from outside as a source, fetched by its digest and not unpacked.",
        attributes: &[
            a("path", "path", REQUIRED, "Where it lies in the rule's folder."),
            a("urls", "list of strings", REQUIRED, "As in `archive`."),
            a("digest", "string", REQUIRED, "`sha256:` or `sha512:`, and the hex digits."),
        ],
    },
    Function {
        name: "file",
        kind: FunctionKind::Record,
        doc: "A file, folder or link to write.",
        attributes: &[
            a(
                "path",
                "path",
                REQUIRED,
                "Where: absolute in an image or volume (a volume's `/` is the volume's top), relative in `pod(files = …)`.",
            ),
            a("content", "string", "None", "Its text."),
            a("source", "path", "None", "Instead of `content`: a file of the package, taken as it is."),
            a("target", "string", "None", "What a link points to."),
            a("mode", "int or string", "None", "Permission bits: `0o640` or `\"0640\"`. None: 0644, a folder 0755."),
            a("owner", "string or int", "\"root\"", "Name or number."),
            a("group", "string or int", "\"root\"", "Name or number."),
            a("kind", "string", "\"file\"", "`file`, `folder` or `link`; with a `target` it is a link."),
        ],
    },
    Function {
        name: "container",
        kind: FunctionKind::Record,
        doc: "A container of a pod.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name in the pod: lower-case letters, digits and `-`."),
            a(
                "image",
                "label, `dep(…)` or string",
                REQUIRED,
                "`:web` means `:web/build_image`; or an image of a registry, pinned by digest: `docker.io/library/redis@sha256:…`.",
            ),
            a("command", "list of strings", "[]", "Instead of the image's entrypoint and command."),
            a("env", "dict of strings", "{}", "Besides the image's."),
            a("user", "string or int", "\"\"", "Empty: the image's."),
            a("group", "string or int", "\"\"", "Empty: the user's."),
            a("working_dir", "path", "\"\"", "Empty: the image's."),
            a("read_only", "bool", "True", "Its root file system can't be written."),
            a(
                "writable",
                "list of paths",
                "[]",
                "Folders that are writable all the same: an empty one each, at each start.",
            ),
            a("mounts", "list of `mount(…)`", "[]", "Volumes and files that it sees."),
            a("ports", "list of ints and `port(…)`", "[]", "Ports that it listens on."),
            a("probes", "dict of `probe(…)`", "{}", "`liveness`, `readiness`, `startup`."),
            a("restart", "string", "\"always\"", "`always`, `on-failure` or `never`."),
        ],
    },
    Function {
        name: "volume",
        kind: FunctionKind::Record,
        doc: "A volume of a pod: exactly one of `files`, `host_path` and `empty`.",
        attributes: &[
            a("name", "string", REQUIRED, "Its name in the pod: lower-case letters, digits and `-`."),
            a(
                "files",
                FILES,
                "None",
                "Static data, packed into the bundle. A `source` that is a folder is taken whole.",
            ),
            a("host_path", "path", "None", "A folder of the machine where the pod runs."),
            a("empty", "bool", "False", "True: empty at each start."),
            a("user", "string or int", "\"\"", "Its owner; empty: as in the files."),
            a("group", "string or int", "\"\"", "Its group; empty: as in the files."),
            a("read_only", "bool", "False", "No container can write it."),
        ],
    },
    Function {
        name: "mount",
        kind: FunctionKind::Record,
        doc: "Where a container sees a volume, or a file of the pod.",
        attributes: &[
            a("volume", "string", REQUIRED, "The name of a volume, or the path of one of the pod's `files`."),
            a("path", "path", REQUIRED, "Where, absolute (the second argument)."),
            a("read_only", "bool", "False", "It can't be written there; a file of the pod never can."),
        ],
    },
    Function {
        name: "port",
        kind: FunctionKind::Record,
        doc: "A port. A bare number is `port(NUMBER)`.",
        attributes: &[
            a("port", "int", REQUIRED, "Inside."),
            a("host", "int", "None", "On the host; None: not published, and in a pod's own `ports` the same number."),
            a("protocol", "string", "\"tcp\"", "`tcp` or `udp`."),
        ],
    },
    Function {
        name: "probe",
        kind: FunctionKind::Record,
        doc: "How to see whether a container is well: `exec`, or `http` on `port`, or `port` alone.",
        attributes: &[
            a("exec", "list of strings", "[]", "A command that exits 0."),
            a("http", "string", "None", "A path that answers, on `port`."),
            a("port", "int", "None", "A port that accepts connections."),
            a("period", "int", "10", "Seconds between two."),
        ],
    },
    Function {
        name: "glob",
        kind: FunctionKind::Value,
        doc: "The files of the package's folder that match, sorted: a list of strings. `*` and `?` stop at a slash, `**` doesn't; links are files. It does not look into folders that have a `build.star` of their own, nor into hidden ones, unless the pattern names them.",
        attributes: &[
            a("include", "list of patterns", REQUIRED, "At least one file must match."),
            a("exclude", "list of patterns", "[]", "But not these."),
            a("allow_empty", "bool", "False", "True: matching nothing is fine."),
        ],
    },
    Function {
        name: "cargo_crates",
        kind: FunctionKind::Value,
        doc: "The crates of crates.io that a `Cargo.lock` pins, as a list of `fetched(…)`: each lies as `NAME-VERSION.crate` in a folder.",
        attributes: &[
            a("lock", "path", REQUIRED, "The lock file, in the package's folder."),
            a("into", "path", "\".crates\"", "The folder in the rule's."),
        ],
    },
    Function {
        name: "python_wheels",
        kind: FunctionKind::Value,
        doc: "The packages that a requirements file with hashes pins, as a list of sources: of each the one wheel with one of these hashes that fits best, under its own name in a folder. Other files than wheels are not taken. What a marker (`; sys_platform == …`) restricts is left out where no wheel fits.",
        attributes: &[
            a("lock", "path", REQUIRED, "The lock file, in the package's folder: `NAME==VERSION --hash=sha256:…`."),
            a("into", "path", "\".wheels\"", "The folder in the rule's."),
            a("python", "string", "\"3.11\"", "The version of Python that they are for."),
        ],
    },
    Function {
        name: "node_packages",
        kind: FunctionKind::Value,
        doc: "The packages that a `package-lock.json` (version 2 or 3) pins, as a list of `fetched(…)`: each lies as `package.tgz` in the folder of its place (`node_modules/…`) in a folder. Optional packages for other systems are left out.",
        attributes: &[
            a("lock", "path", REQUIRED, "The lock file, in the package's folder."),
            a("into", "path", "\".packages\"", "The folder in the rule's."),
            a("dev", "bool", "False", "True: what is needed for development too."),
        ],
    },
];

/// The function of this name.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// The error of an attribute that a function doesn't have.
pub fn unknown_attribute(function: &Function, name: &str) -> Error {
    let names = || function.attributes.iter().map(|attribute| attribute.name);
    let made = Error::request(format!("{}() has no attribute {name}", function.name));
    match nearest(name, names()) {
        Some(near) => made.next(format!("did you mean {near}?")),
        None => made.next(format!("it has {}", names().collect::<Vec<_>>().join(", "))),
    }
}

/// The reference as it stands in `docs/build-files.md`.
pub fn markdown() -> String {
    let mut text = String::new();
    for function in FUNCTIONS {
        let _ = writeln!(text, "### `{}`\n\n{}\n", function.name, function.doc);
        let _ = writeln!(text, "| attribute | type | default | what it says |\n| --- | --- | --- | --- |");
        for attribute in function.attributes {
            let default =
                if attribute.default == REQUIRED { "required".to_string() } else { format!("`{}`", attribute.default) };
            let cell = |text: &str| text.replace('|', "\\|");
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                attribute.name,
                cell(attribute.type_name),
                cell(&default),
                cell(attribute.doc)
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "<!-- The rest is written by a test from src/build_file/reference.rs. -->\n";

    #[test]
    fn every_function_of_the_reference_exists_and_the_other_way_round() {
        let globals = crate::build_file::starlark::global_names();
        let standard = ["ALL"];
        for function in FUNCTIONS {
            assert!(globals.iter().any(|name| name == function.name), "{}", function.name);
        }
        for name in standard {
            assert!(globals.iter().any(|global| global == name));
        }
    }

    #[test]
    fn the_page_holds_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/build-files.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (prose, held) = page.split_once(MARK).unwrap();
        if std::env::var_os("TAPEOUT_WRITE_REFERENCE").is_some() {
            std::fs::write(path, format!("{prose}{MARK}{}\n", markdown().trim_end())).unwrap();
        } else if held.trim() != markdown().trim() {
            panic!("the page is old: run TAPEOUT_WRITE_REFERENCE=1 cargo test reference");
        }
    }
}
