//! Why the steps of a rule failed, as far as it can be told, and what to do about it.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::build_file::spec::Limits;
use crate::error::Error;
use crate::execute::log;
use crate::execute::request::Request;
use crate::sandbox::{DEFAULT_FILE_SIZE, Hit, Outcome, Status};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Node, RootPath, Stack};

/// Where what the steps left can be looked at.
pub(super) struct Left<'a> {
    /// What they changed, or all of the snapshot.
    pub root: &'a Root,
    /// What they stood on.
    pub snapshot: &'a Stack,
    /// Their `/tmp`.
    pub tmp: &'a Path,
    /// What they printed.
    pub log: &'a Path,
}

/// How they ended, as an error.
pub(super) fn of(outcome: &Outcome, request: &Request, left: &Left<'_>) -> Error {
    let step = match (outcome.failed_step, request.steps.len()) {
        (Some(i), n) if n > 1 => format!("step {} of {n}", i + 1),
        _ => "its script".to_string(),
    };
    let over = |hit: Hit| {
        of_32_bits(Error::failed(format!("{step} went over its limit of {hit}")), outcome)
            .next(format!("raise limits = {{\"{hit}\": …}} on the rule"))
    };
    let how = match outcome.status {
        Status::Exited(code) => format!("ended with exit code {code}"),
        Status::Signalled(signal) => format!("was ended by signal {signal}"),
        Status::Limit(hit) => return over(hit),
    };
    let printed = log::last_lines(left.log);
    match left.shows_file_size(&request.limits, &printed) {
        Some(shown) => over(Hit::FileSize).why(format!("it {how}, and {shown}")),
        None => maybe(of_32_bits(Error::failed(format!("{step} {how}")), outcome), outcome, &request.limits, &printed),
    }
}

/// What is refused some says so in its own words, or none: these can't be told for sure.
fn maybe(error: Error, outcome: &Outcome, limits: &Limits, printed: &str) -> Error {
    let memory = limits.memory.filter(|_| !outcome.memory_is_counted);
    // The one that nobody set is seldom met.
    let file_size = limits.file_size.or_else(|| too_large(printed).map(|_| DEFAULT_FILE_SIZE));
    let set = [("memory", memory), ("processes", limits.processes), ("file_size", file_size)];
    set.into_iter().filter_map(|(name, limit)| Some((name, limit?))).fold(error, |error, (name, limit)| {
        error.why(format!("it may have hit its limit of {name}, {limit}: what is refused some fails in its own way"))
    })
}

/// A program of 32 bits can do nothing, and fails in its own way.
pub(super) fn of_32_bits(error: Error, outcome: &Outcome) -> Error {
    let Some(program) = &outcome.of_32_bits else { return error };
    let named = if program.is_empty() { String::new() } else { format!(": {program}") };
    error
        .why(format!("a 32-bit program ran{named}"))
        .why("calls of 32 bits are refused, all of them: the owners that they give could not be recorded")
        .next("use a 64-bit build of it, or keep the rule from running it")
}

/// What programs print that ignore the signal, and what shells and make print of one that died of it.
const TOO_LARGE: [&str; 2] = ["File too large", "File size limit exceeded"];

fn too_large(printed: &str) -> Option<&'static str> {
    TOO_LARGE.into_iter().find(|said| printed.contains(said))
}

impl Left<'_> {
    /// What shows that a program went over the limit of a file's size, though no signal says so: it ignores the signal,
    /// or whoever started it makes an exit code of its own of it.
    fn shows_file_size(&self, limits: &Limits, printed: &str) -> Option<String> {
        let limit = limits.file_size.unwrap_or(DEFAULT_FILE_SIZE);
        let cut_off = || {
            let tmp = Root::open(self.tmp).ok()?;
            // A file of the snapshot that has this size had it before.
            let was = |path: &RootPath| {
                let was = self.snapshot.get(path).map(|(entry, _)| &entry.node);
                matches!(was, Some(Node::File { size, .. }) if *size == limit)
            };
            let found = of_size(self.root, limit, was).map(|path| path.to_string());
            found.or_else(|| of_size(&tmp, limit, |_| false).map(|path| format!("/tmp{path}")))
        };
        let said = || too_large(printed).filter(|_| limits.file_size.is_some());
        match cut_off() {
            Some(path) => Some(format!("{path} is as long as that lets a file be, {limit} bytes")),
            None => {
                said().map(|said| format!("{said:?} is what programs say that are refused more than {limit} bytes"))
            }
        }
    }
}

/// A regular file of this size: a write that goes over a limit is cut off right there.
fn of_size(root: &Root, size: u64, passed_over: impl Fn(&RootPath) -> bool) -> Option<RootPath> {
    let mut folders = vec![RootPath::root()];
    while let Some(folder) = folders.pop() {
        // It is only looked for: what can't be read has no answer.
        let Ok(dir) = root.folder(&folder) else { continue };
        for name in file::list(dir.as_fd()).unwrap_or_default() {
            let (Ok(path), Ok(Some(stat))) = (folder.join(&name), file::stat_at(dir.as_fd(), &name)) else { continue };
            match file::kind(&stat) {
                SFlag::S_IFDIR => folders.push(path),
                SFlag::S_IFREG if stat.st_size as u64 == size && !passed_over(&path) => return Some(path),
                _ => {}
            }
        }
    }
    None
}

/// What belongs to somebody else on this machine can't be written in place, and programs tell it in words that mislead.
pub(super) fn of_the_host(error: Error, is_ours: bool) -> Error {
    let said = [Errno::EOVERFLOW.desc(), Errno::EACCES.desc()];
    if is_ours || !error.reasons().iter().any(|reason| said.iter().any(|said| reason.contains(said))) {
        return error;
    }
    error
        .why(
            "on the builder host a file of this machine can't be changed or renamed in place: its owner isn't mapped \
             (EACCES, EOVERFLOW)",
        )
        .next("let the rule remove it and write a new one, or use a builder of its own: debian:SUITE")
}

/// What programs print when they find no network: libc, curl, apt, wget, Node.js, Rust, Go, Java and busybox.
const NO_NETWORK: [&str; 13] = [
    "Temporary failure in name resolution",
    "Temporary failure resolving",
    "Name or service not known",
    "Name does not resolve",
    "Could not resolve host",
    "unable to resolve host address",
    "failed to lookup address information",
    "getaddrinfo EAI_AGAIN",
    "getaddrinfo ENOTFOUND",
    "UnknownHostException",
    "wget: bad address",
    "dial tcp: lookup ",
    "Network is unreachable",
];

/// A rule that wants to download something hears where that is done instead.
pub(super) fn without_network(error: Error, network: bool) -> Error {
    let said = |reason: &String| NO_NETWORK.iter().any(|said| reason.contains(said));
    if network || !error.reasons().iter().any(said) {
        return error;
    }
    error
        .why("rules have no network: what they need from outside is named in the build file, and fetched before they run")
        .next(
            "get it by archive(…), git(…) or sources = [fetched(…)], a distribution's package by packages = […], those of a lock \
             file by //templates/cargo.star, node.star or python.star; network = True gives this rule the machine's \
             network, and marks it not hermetic",
        )
}

/// A rule that wants to install packages hears what does that instead.
pub(super) fn without_packages(error: Error) -> Error {
    let name = |line: &str| {
        let (first, installs) = line.trim().strip_prefix("E: ")?.rsplit_once(' ')?;
        match first {
            "Unable to locate package" => Some(installs.to_string()),
            _ => Some(first.strip_prefix("Package '")?.strip_suffix("' has no installation")?.to_string()),
        }
    };
    let names: Vec<String> = error.reasons().iter().flat_map(|reason| reason.lines()).filter_map(name).collect();
    if names.is_empty() {
        return error;
    }
    error
        .why("a builder has no list of what can be installed: packages are locked, and installed before a rule runs")
        .next(format!("write packages = {names:?} on the rule instead"))
}
