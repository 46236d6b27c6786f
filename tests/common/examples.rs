//! The example workspace, built once for all tests that look at what came out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::image::fingerprint;
use super::{Layout, Workspace, places};

/// The example workspace as it stands in the repository.
pub fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// An image of any example workspace, what runs in it to show that it works, and what that prints.
pub struct Example {
    /// The folder of the workspace, below `examples`.
    pub workspace: &'static str,
    /// The package.
    pub package: &'static str,
    /// The name in it.
    pub name: &'static str,
    /// A command.
    pub command: &'static [&'static str],
    /// What it prints.
    pub prints: &'static str,
}

/// All of them.
pub const ALL: [Example; 14] = [
    example("", "hello", "hello", &["/usr/local/bin/hello", "you"], "Hello, you!"),
    example("", "lua", "lua", &["/usr/local/bin/lua", "-e", "print(6 * 7)"], "42"),
    example("", "redis", "redis", &["/usr/bin/redis-server", "--version"], "Redis server v="),
    example("", "shop/web", "web", &["/usr/sbin/lighttpd", "-v"], "lighttpd/"),
    example("programs", "redis", "redis", &["/usr/bin/redis-cli", "--version"], "redis-cli "),
    example("programs", "nginx", "nginx", &["/usr/sbin/nginx", "-v"], "nginx version: nginx/"),
    example(
        "programs",
        "postgresql",
        "postgresql",
        &["/usr/lib/postgresql/15/bin/postgres", "--version"],
        "(PostgreSQL) 15",
    ),
    example(
        "programs",
        "python",
        "python",
        &["/usr/bin/python3.11", "-c", "import ssl, lxml.etree as e; print(e.XML(\"<a>yes</a>\").text)"],
        "yes",
    ),
    example(
        "programs",
        "java",
        "java",
        &["/usr/lib/jvm/java-17-openjdk-amd64/bin/java", "-version"],
        "OpenJDK Runtime",
    ),
    example("programs", "git", "git", &["/usr/bin/git", "--version"], "git version"),
    example("programs", "curl", "curl", &["/usr/bin/curl", "--version"], "curl 7."),
    example("languages", "node", "hello", &["/usr/bin/node", "/opt/app/hello.js"], "hello from Node.js"),
    example("languages", "python", "hello", &["/opt/app/bin/greet"], "hello from Python"),
    example("languages", "rust", "hello", &["/usr/local/bin/hello-rust"], "hello from Rust"),
];

const fn example(
    workspace: &'static str,
    package: &'static str,
    name: &'static str,
    command: &'static [&'static str],
    prints: &'static str,
) -> Example {
    Example { workspace, package, name, command, prints }
}

impl Example {
    /// The layout of the image in a compression.
    pub fn layout(&self, compression: &str) -> PathBuf {
        self.layout_in(&output(self.workspace, compression))
    }

    /// The layout of the image in what a build wrote.
    pub fn layout_in(&self, output: &Path) -> PathBuf {
        output.join(self.package).join(self.name).join("build_image")
    }
}

/// The images of an example workspace.
pub fn of(which: &str) -> impl Iterator<Item = &'static Example> {
    ALL.iter().filter(move |example| example.workspace == which)
}

/// What two builds of an example workspace wrote is the same: each image by its digest, then all bytes.
pub fn equal(built: &Path, expected: &Path, which: &str) {
    for example in of(which) {
        let digest = |output: &Path| Layout::open(&example.layout_in(output)).only().digest;
        assert_eq!(digest(built), digest(expected), "{}/{}", example.package, example.name);
    }
    let (built, expected) = (fingerprint(built), fingerprint(expected));
    let differs: Vec<_> = expected.keys().filter(|path| built.get(*path) != expected.get(*path)).collect();
    assert!(differs.is_empty() && built.len() == expected.len(), "{differs:#?}");
    let layouts = built.keys().filter(|path| path.ends_with("build_image/index.json")).count();
    assert_eq!(layouts, of(which).count(), "{built:#?}");
}

/// What a build of all images (and pods) of an example workspace wrote, in a compression: `zstd`, `gzip` or `none`.
pub fn output(which: &str, compression: &str) -> PathBuf {
    let folder = super::workspace::shared().join(format!("examples-{which}-{compression}"));
    let name = folder.strip_prefix(places::base()).expect("below the base").display().to_string();
    places::once(&name, |folder| {
        let mut workspace = Workspace::debian();
        workspace.copy(&source().join(which), "");
        workspace.limit = Duration::from_secs(900);
        workspace.user.owns(folder);
        let parameter = format!("//images:compression={compression}");
        let folder = folder.display().to_string();
        let mut words = vec!["build", "--parameter", &parameter, "--output", &folder];
        // What else is in that workspace makes no image, and takes its time.
        words.extend(if which == "languages" {
            &["//node:hello", "//python:hello", "//rust:hello"][..]
        } else {
            &["//..."]
        });
        let built = workspace.run_words(&words).success();
        if which == "programs" {
            built.says_not("trusts nobody");
        }
    })
}
