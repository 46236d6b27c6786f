//! Patterns over the paths of an image: the globs of `include`, `exclude` and `paths`.
//!
//! A pattern is absolute (or begins with `**`). `*` and `?` stop at a slash, `**` doesn't; `[a-z]`,
//! `{a,b}` and a backslash before a special character work as in a shell; a dot at the beginning of
//! a name is nothing special. What lies below a folder that a pattern names is taken too. Files
//! below `/workspace` are taken only by patterns that begin with `/workspace`.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobMatcher};

use super::lookup::Lookup;
use crate::error::{Error, Result};
use crate::tree::RootPath;

/// One pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    glob: GlobMatcher,
    workspace: bool,
    /// Links of the view that stand in the part before the first special character.
    links: Vec<RootPath>,
}

const SPECIAL: &[char] = &['*', '?', '[', ']', '{', '}', '\\'];

impl Pattern {
    /// As written in a build file.
    pub fn parse(text: &str) -> Result<Self> {
        if !text.starts_with('/') && !text.starts_with("**") {
            return Err(Error::request(format!("not a pattern: {text:?}"))
                .why("a pattern is absolute, as paths are inside the image")
                .next(format!("write {:?}", format!("/{}", text.trim_start_matches("./")))));
        }
        Self::build(text, text)
    }

    /// Where the part before the first special character leads through links of the view (`/lib` is
    /// one to `/usr/lib` in most distributions), the pattern follows them: changesets know files
    /// by the path without links.
    pub fn through(self, view: &dyn Lookup) -> Result<Self> {
        let clean = self.text.trim_matches('/');
        let plain = clean.split('/').take_while(|part| !part.contains(SPECIAL)).count();
        let parts: Vec<&str> = clean.split('/').collect();
        // The last part is never followed: it may be a link that is wanted as such.
        let fixed = plain.min(parts.len().saturating_sub(1));
        let Ok(start) = RootPath::new(parts[..fixed].join("/")) else { return Ok(self) };
        let walk = view.walk(&start, true);
        if !walk.there || walk.links.is_empty() {
            return Ok(self);
        }
        let Ok(real) = String::from_utf8(walk.path.as_bytes().to_vec()) else { return Ok(self) };
        let moved = format!("/{}/{}", escape(&real), parts[fixed..].join("/"));
        Ok(Self { links: walk.links, ..Self::build(&self.text, &moved)? })
    }

    fn build(text: &str, pattern: &str) -> Result<Self> {
        let bad = |why: String| Error::request(format!("not a pattern: {text:?}")).why(why);
        if text.contains('\0') || text.len() > 4096 {
            return Err(bad("it holds a NUL character, or is longer than 4096 bytes".into()));
        }
        if pattern.split('/').any(|part| part == ".." || part == ".") {
            return Err(bad("it has a part that is . or ..".into()));
        }
        let mut glob = GlobBuilder::new(pattern.trim_matches('/'));
        glob.literal_separator(true).backslash_escape(true).empty_alternates(true);
        let glob = glob.build().map_err(|e| bad(e.kind().to_string()))?;
        let workspace = text == "/workspace" || text.starts_with("/workspace/");
        Ok(Self { text: text.to_string(), glob: glob.compile_matcher(), workspace, links: vec![] })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Links of the view on the way to what it names.
    pub fn links(&self) -> &[RootPath] {
        &self.links
    }

    /// Does it name this very path?
    pub fn names(&self, path: &RootPath) -> bool {
        self.reaches(path) && self.glob.is_match(path.as_path())
    }

    /// What is below `/workspace` is out of reach for most patterns.
    fn reaches(&self, path: &RootPath) -> bool {
        self.workspace || path.top() != b"workspace"
    }

    /// Does it name this path or a folder above it?
    pub fn takes(&self, path: &RootPath) -> bool {
        self.reaches(path) && (self.names(path) || path.ancestors().any(|folder| self.names(&folder)))
    }

    /// The part before the first special character, as a path: all that it names is there or below.
    pub fn start(&self) -> RootPath {
        let text = self.glob.glob().glob();
        let parts: Vec<&str> = text.split('/').take_while(|part| !part.contains(SPECIAL)).collect();
        RootPath::new(parts.join("/")).unwrap_or_default()
    }

    /// A pattern for the last part alone, to find what was perhaps meant.
    pub fn last_part(&self) -> Option<Pattern> {
        let last = self.text.trim_end_matches('/').rsplit('/').find(|part| !matches!(*part, "" | "*" | "**"))?;
        Self::build(&self.text, &format!("**/{last}")).ok()
    }
}

fn escape(text: &str) -> String {
    text.chars().flat_map(|c| if SPECIAL.contains(&c) { vec!['\\', c] } else { vec![c] }).collect()
}

/// Several patterns, asked about many paths.
#[derive(Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    folders: HashMap<RootPath, Vec<usize>>,
}

impl Patterns {
    /// As written in a build file.
    pub fn parse(texts: &[String], view: &dyn Lookup) -> Result<Self> {
        let patterns = texts.iter().map(|text| Pattern::parse(text)?.through(view)).collect::<Result<_>>()?;
        Ok(Self { patterns, folders: HashMap::new() })
    }

    /// All of them, as written.
    pub fn all(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Which of them take this path, in the order written.
    pub fn taking(&mut self, path: &RootPath) -> Vec<usize> {
        let mut taking = match path.parent() {
            Some(folder) => self.folder(&folder),
            None => vec![],
        };
        taking.retain(|i| self.patterns[*i].reaches(path));
        taking.extend(self.naming(path));
        taking.sort_unstable();
        taking.dedup();
        taking
    }

    fn naming(&self, path: &RootPath) -> impl Iterator<Item = usize> {
        self.patterns.iter().enumerate().filter(|(_, pattern)| pattern.names(path)).map(|(i, _)| i)
    }

    fn folder(&mut self, folder: &RootPath) -> Vec<usize> {
        if let Some(known) = self.folders.get(folder) {
            return known.clone();
        }
        let taking = self.taking(folder);
        self.folders.insert(folder.clone(), taking.clone());
        taking
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{folder, layer, path};
    use crate::tree::{Entry, Stack};

    #[test]
    fn patterns_take_what_they_say() {
        for (pattern, text, expected) in [
            ("/usr/lib/*.so*", "usr/lib/liba.so.1", true),
            ("/usr/lib/*.so*", "usr/lib/x/liba.so.1", false),
            ("/usr/**/*.so", "usr/liba.so", true),
            ("/usr/**/*.so", "usr/a/b/liba.so", true),
            ("**/*.so", "opt/liba.so", true),
            ("/opt/app", "opt/app/bin/x", true),
            ("/opt/app/", "opt/app/bin/x", true),
            ("/opt/app", "opt/app2", false),
            ("/opt/*", "opt/app/bin/x", true),
            ("/opt/[a-c]x", "opt/bx", true),
            ("/opt/[!a-c]x", "opt/bx", false),
            ("/opt/{a,b/c}/x", "opt/b/c/x", true),
            ("/opt/lib{,64}/x", "opt/lib/x", true),
            ("/opt/a?", "opt/ab", true),
            ("/opt/a?b", "opt/a/b", false),
            ("/opt/*", "opt/.hidden", true),
            (r"/opt/\*", "opt/*", true),
            (r"/opt/\*", "opt/x", false),
            ("/", "anything/below", true),
            ("/**", "usr/x", true),
            ("/**", "workspace/app/x", false),
            ("/workspace/app/**", "workspace/app/x", true),
            ("/workspaces/**", "workspace/app/x", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().takes(&path(text)), expected, "{pattern} {text}");
            let view = Stack::default();
            let taking = Patterns::parse(&[pattern.to_string()], &view).unwrap().taking(&path(text));
            assert_eq!(!taking.is_empty(), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["usr/lib", "", "./x", "/a/../b", "/a[", "/a{b", "/a\0"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_matched() {
        assert!(Pattern::parse("/a/*").unwrap().takes(&RootPath::new(b"a/\xff\xfe").unwrap()));
    }

    #[test]
    fn links_before_the_first_special_character_are_followed() {
        let view =
            Stack(vec![layer("v", &[("usr", folder()), ("usr/lib", folder()), ("lib", Some(Entry::link("usr/lib")))])]);
        let pattern = Pattern::parse("/lib/*.so").unwrap().through(&view).unwrap();
        assert!(pattern.takes(&path("usr/lib/a.so")));
        assert_eq!((pattern.text(), pattern.links()), ("/lib/*.so", &[path("lib")][..]));
        let link = Pattern::parse("/lib").unwrap().through(&view).unwrap();
        assert!(link.names(&path("lib")) && !link.takes(&path("usr/lib/a.so")));
    }
}
