//! Why a file is in an image: one reason a file, and the chain of them.
//!
//! A reason is kept as the text that people read ([`crate::tree::Picked::why`]). This file alone
//! knows its form: what [`Why`] prints, it parses. So what would break it in a path or a name is written as
//! `\xHH`: control characters, bytes that are no text, and a backslash itself as two.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::digest::Digest;
use crate::label::Label;
use crate::tree::{Change, Changeset, Layer, Picked, RootPath, Selection, Stack};

/// Why a file is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A pattern of `include` matched it.
    Include(String),
    /// A pattern of `paths` matched it.
    Path(String),
    /// A distribution package owns it.
    Package(String),
    /// A record of `files` wrote it.
    Written,
    /// `libraries = [...]` names it.
    Asked(String),
    /// The rule's `run` changed it.
    Run,
    /// It is a folder above a file that was picked, or a link on the way to one.
    Holds(RootPath),
    /// A file in the image needs it, under this name.
    Needed {
        /// Which file.
        by: RootPath,
        /// What that file calls it.
        what: String,
    },
    /// Every image gets it, or every image of this kind.
    Skeleton(String),
}

impl Why {
    /// The reason of a folder above `path`, or of a link on the way to it.
    pub fn holds(path: &RootPath) -> Self {
        Self::Holds(path.clone())
    }

    /// The reason of something that `by` needs.
    pub fn needed(by: &RootPath, what: impl Into<String>) -> Self {
        Self::Needed { by: by.clone(), what: what.into() }
    }

    /// As files keep it: a hundred thousand of one pattern share it.
    pub fn shared(&self) -> Arc<str> {
        self.to_string().into()
    }

    /// The file that this reason points at.
    fn points_at(self) -> Option<RootPath> {
        match self {
            Self::Holds(path) | Self::Needed { by: path, .. } => Some(path),
            _ => None,
        }
    }
}

/// What stands before the name under which a file is needed.
const UNDER: &str = " (";

/// A path on one line of text, and nothing lost.
fn plain(path: &RootPath) -> String {
    escaped(&[b"/", path.as_bytes()].concat())
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str(r"\\"),
                c if c.is_control() => c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| text.push_str(&hex(b))),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| text.push_str(&hex(*b)));
    }
    text
}

fn hex(byte: u8) -> String {
    format!(r"\x{byte:02x}")
}

/// The bytes that [`escaped`] made text of. A backslash before anything else stands for itself.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = vec![];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.strip_prefix('x').and_then(|h| u8::from_str_radix(h.get(..2)?, 16).ok());
        let (byte, skip) = match byte {
            Some(byte) => (byte, 3),
            None => (b'\\', usize::from(after.starts_with('\\'))),
        };
        bytes.push(byte);
        rest = &after[skip..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Include(pattern) => write!(f, "include {pattern}"),
            Self::Path(pattern) => write!(f, "path {pattern}"),
            Self::Package(name) => write!(f, "package {name}"),
            Self::Written => f.write_str("written by the build file"),
            Self::Asked(name) => write!(f, "libraries {name}"),
            Self::Run => f.write_str("changed by its run"),
            Self::Holds(path) => write!(f, "holds {}", plain(path)),
            // The last one begins the name: paths hold it more often than names of libraries do.
            Self::Needed { by, what } => {
                let what = escaped(what.as_bytes()).replace(UNDER, r"\x20(");
                write!(f, "needed by {}{UNDER}{what})", plain(by))
            }
            Self::Skeleton(what) => write!(f, "base skeleton: {what}"),
        }
    }
}

impl FromStr for Why {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let after = |start: &str| text.strip_prefix(start).map(str::to_string);
        if let Some(rest) = text.strip_prefix("needed by ").and_then(|rest| rest.strip_suffix(')'))
            && let Some((by, what)) = rest.rsplit_once(UNDER)
        {
            let what = String::from_utf8_lossy(&unescaped(what)).into_owned();
            return Ok(Self::Needed { by: RootPath::new(unescaped(by))?, what });
        }
        if let Some(path) = text.strip_prefix("holds ") {
            return Ok(Self::Holds(RootPath::new(unescaped(path))?));
        }
        let known = [
            after("include ").map(Self::Include),
            after("path ").map(Self::Path),
            after("package ").map(Self::Package),
            after("libraries ").map(Self::Asked),
            after("base skeleton: ").map(Self::Skeleton),
            (text == "written by the build file").then_some(Self::Written),
            (text == "changed by its run").then_some(Self::Run),
        ];
        known.into_iter().flatten().next().ok_or_else(|| crate::error::Error::failed(format!("not a reason: {text:?}")))
    }
}

/// One link of a chain of reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The file.
    pub path: String,
    /// The rule that brought it.
    pub rule: Label,
    /// Why.
    pub why: String,
}

/// Why `path` is in the image that these layers make (the lowest first): the reason of the file
/// itself first, then of the file that needed it, to the one that a rule named. Empty: it isn't in
/// the image. Links on the way to a file are followed: `/bin/sh` is in an image that has `/bin -> usr/bin`.
pub fn chain(layers: &[(&Label, &Selection)], path: &RootPath) -> Vec<Reason> {
    let mut reasons = vec![];
    let mut seen = BTreeSet::new();
    let mut next = Some(path.clone()).filter(|path| highest(layers, path).is_some()).or_else(|| followed(layers, path));
    while let Some(path) = next.take() {
        if !seen.insert(path.clone()) {
            break;
        }
        let Some((rule, picked)) = highest(layers, &path) else { break };
        next = picked.why.parse::<Why>().ok().and_then(|why| why.points_at());
        reasons.push(Reason { path: plain(&path), rule: rule.clone(), why: picked.why.to_string() });
    }
    reasons
}

/// The path without links in its folders.
fn followed(layers: &[(&Label, &Selection)], path: &RootPath) -> Option<RootPath> {
    let stack = layers.iter().map(|(_, selection)| {
        let change = |picked: &Picked| Change { was: None, now: picked.entry.clone() };
        let changes = selection.iter().map(|(path, picked)| (path.clone(), change(picked))).collect();
        Layer { digest: Digest::of(""), changeset: Arc::new(Changeset { time: 0, changes }) }
    });
    Stack(stack.collect()).resolve(&path.parent()?)?.join(path.name()).ok()
}

fn highest<'a>(layers: &[(&'a Label, &'a Selection)], path: &RootPath) -> Option<(&'a Label, &'a Picked)> {
    let found = layers.iter().rev().find_map(|(label, selection)| Some((*label, selection.get(path)?)))?;
    found.1.entry.is_some().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{path, picked};
    use crate::tree::Entry;

    #[test]
    fn parse_and_print_are_inverse() {
        for why in [
            Why::Include("/usr/**".into()),
            Why::Path("/bin/sh".into()),
            Why::Package("libc6:amd64".into()),
            Why::Written,
            Why::Run,
            Why::Asked("libnss_x.so.2".into()),
            Why::holds(&path("usr/bin/x")),
            Why::needed(&path("usr/bin/x"), "libc.so.6 (again)"),
            Why::needed(&path("opt/a (b)/x) (y"), "lib (c).so"),
            Why::needed(&path("usr/lib/systemd/system/dev-x\\x2dy.mount"), "x\ny\\"),
            Why::Skeleton("certificates".into()),
        ] {
            assert_eq!(why.to_string().parse::<Why>().unwrap(), why);
        }
        assert_eq!(
            Why::needed(&path("usr/bin/x"), "libc.so.6").to_string(),
            "needed by /usr/bin/x (libc.so.6)",
            "what needs no escape has none"
        );
        let strange = RootPath::new(b"a\nb\xff\xc3\xa4\\x41\\").unwrap();
        let why = Why::needed(&strange, "x");
        assert_eq!(why.to_string(), r"needed by /a\x0ab\xffä\\x41\\ (x)");
        assert_eq!(why.to_string().parse::<Why>().unwrap(), why);
        assert!("no reason".parse::<Why>().is_err());
    }

    #[test]
    fn a_chain_ends_at_what_a_rule_named() {
        let (app, joint): (Label, Label) = ("//app:tapeout".parse().unwrap(), "//base:tapeout".parse().unwrap());
        let first = Selection::from([(path("usr/bin/x"), picked("x", "include /usr/bin/*"))]);
        let second = Selection::from([
            (path("lib/liba.so"), picked("a", "needed by /usr/bin/x (liba.so)")),
            (path("lib/libb.so"), picked("b", "needed by /lib/liba.so (libb.so)")),
            (path("lib/strange (1)\n"), picked("s", "needed by /lib/libb.so (s)")),
            (path("lib/last"), picked("l", &Why::needed(&path("lib/strange (1)\n"), "last").to_string())),
            (path("lib/c"), picked("c", "needed by /lib/d (d)")),
            (path("lib/d"), picked("d", "needed by /lib/c (c)")),
        ]);
        let layers = [(&app, &first), (&joint, &second)];
        let chain_of = |text: &str| chain(&layers, &path(text)).into_iter().map(|r| r.path).collect::<Vec<_>>();
        assert_eq!(chain_of("lib/libb.so"), ["/lib/libb.so", "/lib/liba.so", "/usr/bin/x"]);
        assert_eq!(
            chain_of("lib/last"),
            ["/lib/last", "/lib/strange (1)\\x0a", "/lib/libb.so", "/lib/liba.so", "/usr/bin/x"]
        );
        assert_eq!(chain_of("lib/c"), ["/lib/c", "/lib/d"], "a circle ends");
        assert!(chain_of("nowhere").is_empty());
    }

    #[test]
    fn a_file_is_found_through_links_on_the_way_to_it() {
        let joint: Label = "//base:tapeout".parse().unwrap();
        let (mut link, mut folder) = (picked("", "holds /usr/bin/sh"), picked("", "holds /usr/bin/sh"));
        link.entry = Some(Entry::link("usr/bin"));
        folder.entry = Some(Entry::folder(0o755));
        let one = Selection::from([
            (path("bin"), link),
            (path("usr"), folder.clone()),
            (path("usr/bin"), folder),
            (path("usr/bin/sh"), picked("x", "path /bin/sh")),
        ]);
        let first = |text: &str| chain(&[(&joint, &one)], &path(text)).into_iter().next().map(|r| r.path);
        assert_eq!(first("bin/sh").as_deref(), Some("/usr/bin/sh"));
        assert_eq!(first("bin").as_deref(), Some("/bin"), "a link itself is what is asked for");
        assert_eq!(first("bin/bash"), None);
    }
}
