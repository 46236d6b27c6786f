//! A commit of a git repository: fetched and read by the machine's own `git`, outside of any sandbox.
//!
//! `git` gets an environment of its own: no configuration of the system or the user, no hooks, no
//! question, and of the transports only those that are named here. Nothing that a build file or a
//! repository says stands where an option could, and no shell sees it. What comes in is checked by its
//! object IDs, which `git` computes itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Error, Result};
use crate::remote::http::{Network, shown};
use crate::sys::process;
use crate::tree::RootPath;

/// Files of a tree.
const FILES: usize = 1_000_000;
/// Bytes of all files of a tree, and of what a repository sends.
const BYTES: u64 = 64 << 30;
/// Bytes of a list that git prints.
const LIST: u64 = 256 << 20;

/// The machine's `git`, and what it may have of the environment (`PATH`, proxies).
#[derive(Debug, Clone)]
pub struct Git {
    environment: BTreeMap<OsString, OsString>,
    network: Network,
}

/// A repository with one commit in it, in a folder of ours.
pub struct Repository<'a> {
    git: &'a Git,
    folder: PathBuf,
    commit: String,
}

/// An entry of a tree that is not a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Where.
    pub path: RootPath,
    /// What.
    pub kind: TreeKind,
    /// Its mode, as git has it: `0o100644`.
    pub mode: u32,
    /// Its object; of a submodule the commit.
    pub object: String,
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeKind {
    /// A file; true: executable.
    File(bool),
    /// A symbolic link.
    Link,
    /// A commit of another repository.
    Submodule,
}

impl Git {
    /// With these variables.
    pub fn new(environment: BTreeMap<OsString, OsString>, network: Network) -> Self {
        Self { environment, network }
    }

    fn command(&self, folder: &Path, transports: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(&self.environment).current_dir(folder).stdin(Stdio::null());
        process::bind(&mut command, BYTES);
        let settings = [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "false"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_DIR", "."),
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C"),
        ];
        command.envs(settings);
        command.args([
            "-c",
            "protocol.allow=never",
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "credential.helper=",
            "-c",
            "gc.auto=0",
            "-c",
            "maintenance.auto=false",
        ]);
        // A server that says next to nothing for a minute is given up.
        command.args(["-c", "http.lowSpeedLimit=100", "-c", "http.lowSpeedTime=60"]);
        for transport in transports {
            command.args(["-c", &format!("protocol.{transport}.allow=always")]);
        }
        command
    }

    fn run(&self, folder: &Path, transports: &[&str], arguments: &[&str]) -> Result<Vec<u8>> {
        let mut child = self
            .command(folder, transports)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_there)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::failed("git has no pipes"));
        };
        let printed = std::thread::scope(|scope| {
            let said = scope.spawn(|| read_at_most(stderr, LIST));
            let list = read_at_most(stdout, LIST);
            if list.is_err() {
                end(&mut child);
            }
            (list, said.join().unwrap_or_else(|_| Ok(vec![])))
        });
        let status = child.wait().map_err(|e| Error::io("wait", "git", e))?;
        let list = printed.0?;
        if status.success() {
            return Ok(list);
        }
        let said = printed.1.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).take(8).collect();
        let what = arguments
            .iter()
            .find(|word| ["init", "fetch", "cat-file", "ls-tree", "config"].contains(word))
            .unwrap_or(&"");
        Err(Error::failed(format!("git {what}: {status}")).why(said.join("\n")))
    }

    /// Fetches a commit from a repository into an empty folder.
    pub fn fetch<'a>(&'a self, url: &str, commit: &str, folder: &Path) -> Result<Repository<'a>> {
        let is_file = url.starts_with("file:/");
        if !is_file && !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(Error::request(format!("{} is no repository that is fetched here", shown(url)))
                .next("use https:, http: or file:/"));
        }
        if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::request(format!("not a commit id: {commit:?}")).next("write 40 hex digits"));
        }
        if !is_file && self.network == Network::Offline {
            return Err(Error::failed(format!("{} is needed, and --offline forbids to fetch it", shown(url)))
                .next("run once without --offline, so that it gets into the store"));
        }
        let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.run(folder, &[], &["init", "--quiet", "--bare", "--template=", format, "."])?;
        let one = |what: &[&str]| {
            let mut arguments = vec![
                "-c",
                "fetch.fsckObjects=true",
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                "--no-auto-maintenance",
            ];
            arguments.extend(what);
            self.run(folder, if is_file { &["file"] } else { &["https", "http"] }, &arguments)
        };
        // A server that gives only what its branches and tags name gives all of them.
        if one(&["--depth=1", "--", url, commit]).is_err() {
            one(&["--", url, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"])
                .map_err(|e| e.context(format!("fetch {}", shown(url))))?;
        }
        let repository = Repository { git: self, folder: folder.to_path_buf(), commit: commit.to_string() };
        let found = self.run(folder, &[], &["cat-file", "-t", commit]).unwrap_or_default();
        if found.trim_ascii() != b"commit" {
            return Err(Error::failed(format!("{} has no commit {commit}", shown(url)))
                .next("write the whole id of a commit that is on a branch or tag"));
        }
        Ok(repository)
    }
}

fn not_there(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::failed("git is needed, and this machine has none")
            .next("install git, or give the sources as an archive"),
        _ => Error::io("execute", "git", error),
    }
}

impl Repository<'_> {
    /// All files, links and submodules of the commit's tree, in its order.
    pub fn files(&self) -> Result<Vec<TreeFile>> {
        let list = self.git.run(&self.folder, &[], &["ls-tree", "-r", "-z", "--full-tree", &self.commit])?;
        let mut made = vec![];
        for line in list.split(|b| *b == 0).filter(|line| !line.is_empty()) {
            let odd = || Error::failed(format!("git ls-tree says {:?}", String::from_utf8_lossy(line)));
            let tab = line.iter().position(|b| *b == b'\t').ok_or_else(odd)?;
            let words: Vec<&str> = std::str::from_utf8(&line[..tab]).unwrap_or_default().split(' ').collect();
            let [mode, _, object] = words[..] else { return Err(odd()) };
            let kind = match mode {
                "100755" => TreeKind::File(true),
                "120000" => TreeKind::Link,
                "160000" => TreeKind::Submodule,
                _ if mode.starts_with("100") => TreeKind::File(false),
                _ => return Err(odd()),
            };
            let mode = u32::from_str_radix(mode, 8).map_err(|_| odd())?;
            made.push(TreeFile { path: RootPath::new(&line[tab + 1..])?, kind, mode, object: object.to_string() });
            if made.len() > FILES {
                return Err(Error::failed(format!("the commit has more than {FILES} files")));
            }
        }
        Ok(made)
    }

    /// The commit object itself.
    pub fn object(&self) -> Result<Vec<u8>> {
        self.git.run(&self.folder, &[], &["cat-file", "commit", &self.commit])
    }

    /// Gives the content of each file and link, and its size, to `take`.
    pub fn contents(
        &self,
        files: &[TreeFile],
        take: &mut dyn FnMut(&TreeFile, u64, &mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let mut child = self
            .git
            .command(&self.folder, &[])
            .args(["cat-file", "--batch", "--buffer"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(not_there)?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::failed("git cat-file has no pipes"));
        };
        let wanted: Vec<&TreeFile> = files.iter().filter(|file| file.kind != TreeKind::Submodule).collect();
        let asked: String = wanted.iter().map(|file| format!("{}\n", file.object)).collect();
        let result = std::thread::scope(|scope| {
            scope.spawn(move || _ = stdin.write_all(asked.as_bytes()));
            let mut stdout = BufReader::with_capacity(128 * 1024, stdout);
            let mut left = BYTES;
            let result = wanted.iter().try_for_each(|file| content(&mut stdout, file, &mut left, take));
            // It may still want to be read when an error ended the reading.
            end(&mut child);
            result
        });
        let _ = child.wait();
        result
    }

    /// The submodules' repositories by their paths, as `.gitmodules` says.
    pub fn submodules(&self) -> Result<BTreeMap<RootPath, String>> {
        let blob = format!("{}:.gitmodules", self.commit);
        let list =
            self.git.run(&self.folder, &[], &["config", "--blob", &blob, "--no-includes", "--null", "--list"])?;
        let list = String::from_utf8_lossy(&list);
        let (mut paths, mut urls) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in list.split('\0').filter_map(|entry| entry.split_once('\n')) {
            let Some((name, key)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else {
                continue;
            };
            match key {
                "path" => drop(paths.insert(name.to_string(), value.to_string())),
                "url" => drop(urls.insert(name.to_string(), value.to_string())),
                _ => {}
            }
        }
        paths
            .into_iter()
            .filter_map(|(name, path)| Some((path, urls.remove(&name)?)))
            .map(|(path, url)| Ok((RootPath::new(path)?, url)))
            .collect()
    }
}

/// It is ours, and has no children when it only reads objects; it may have ended by itself.
fn end(child: &mut Child) {
    let _ = child.kill();
}

fn read_at_most(from: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut read = vec![];
    from.take(limit + 1).read_to_end(&mut read).map_err(|e| Error::io("read", "git", e))?;
    if read.len() as u64 > limit { Err(Error::failed(format!("git prints more than {limit} bytes"))) } else { Ok(read) }
}

fn content(
    stdout: &mut BufReader<impl Read>,
    file: &TreeFile,
    left: &mut u64,
    take: &mut dyn FnMut(&TreeFile, u64, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let odd = |what: &str| Error::failed(format!("git cat-file: {what}: {}", file.path));
    let mut header = vec![];
    (&mut *stdout).take(1000).read_until(b'\n', &mut header).map_err(|e| Error::io("read", "git", e))?;
    let words: Vec<&str> = std::str::from_utf8(&header).unwrap_or_default().split_whitespace().collect();
    let [object, "blob", size] = words[..] else { return Err(odd("no content")) };
    let size: u64 = size.parse().map_err(|_| odd("no size"))?;
    *left = left.checked_sub(size).ok_or_else(|| Error::failed(format!("the commit has more than {BYTES} bytes")))?;
    if object != file.object {
        return Err(odd("another object"));
    }
    let mut content = (&mut *stdout).take(size);
    take(file, size, &mut content)?;
    if content.limit() > 0 {
        return Err(odd("it ended early"));
    }
    let mut end = [0];
    stdout.read_exact(&mut end).map_err(|e| Error::io("read", "git", e))
}

/// The URL of a submodule, which may be relative to its repository's.
pub fn submodule_url(above: &str, url: &str) -> String {
    if !url.starts_with("./") && !url.starts_with("../") {
        return url.to_string();
    }
    let (mut base, mut rest) = (above.trim_end_matches('/'), url);
    loop {
        if let Some(more) = rest.strip_prefix("./") {
            rest = more;
        } else if let Some(more) = rest.strip_prefix("../") {
            rest = more;
            base = base.rsplit_once('/').map_or(base, |(base, _)| base);
        } else {
            return format!("{base}/{rest}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_submodule_begins_at_its_repository() {
        for (above, url, expected) in [
            ("https://host/a/b.git", "../c.git", "https://host/a/c.git"),
            ("https://host/a/b.git/", "./c", "https://host/a/b.git/c"),
            ("https://host/a/b", "../../d/c", "https://host/d/c"),
            ("https://host/a", "https://other/c", "https://other/c"),
        ] {
            assert_eq!(submodule_url(above, url), expected);
        }
    }

    #[test]
    fn what_is_no_repository_that_is_named_here_is_refused_before_git_sees_it() {
        let git = Git::new(BTreeMap::new(), Network::Offline);
        let folder = Path::new("/nonexistent");
        for url in ["--upload-pack=x", "ext::sh -c x", "ssh://host/x", "host:x", "/path", ""] {
            let error = git.fetch(url, &"a".repeat(40), folder).err().unwrap();
            assert!(error.what().contains("no repository"), "{error}");
        }
        for commit in ["--output=x", "main", &"g".repeat(40), ""] {
            let error = git.fetch("https://192.0.2.1/x", commit, folder).err().unwrap();
            assert!(error.what().contains("not a commit"), "{error}");
        }
        assert!(git.fetch("https://192.0.2.1/x", &"a".repeat(40), folder).err().unwrap().what().contains("--offline"));
    }
}
