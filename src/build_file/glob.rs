//! `glob(…)`: files of a package's folder by pattern. Links are never followed.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use walkdir::{DirEntry, WalkDir};

use super::seen;
use crate::error::{Error, Result};

/// Files that one walk may look at.
const FILES: usize = 200_000;

/// The files below `folder` that match, sorted, relative to it.
pub fn glob(folder: &Path, include: &[String], exclude: &[String]) -> Result<Vec<String>> {
    let (included, excluded) = (set(include)?, set(exclude)?);
    let mut found = vec![];
    let mut listed = seen::Walk::begin(folder);
    let enters = |entry: &DirEntry| {
        listed.meets(entry);
        let is_of_package = is_of_package(entry, folder, include);
        if is_of_package && entry.file_type().is_dir() {
            listed.enters(entry.path());
        }
        is_of_package
    };
    let walk = WalkDir::new(folder).follow_links(false).min_depth(1).sort_by_file_name().into_iter();
    for (number, entry) in walk.filter_entry(enters).enumerate() {
        if number > FILES {
            return Err(Error::request(format!("glob() looks at more than {FILES} files below {}", folder.display()))
                .next("make a package of the part that is needed, or name it in sources"));
        }
        let entry = entry.map_err(|e| Error::failed(format!("glob() below {}: {e}", folder.display())))?;
        let Ok(path) = entry.path().strip_prefix(folder) else { continue };
        if entry.file_type().is_dir() || !included.is_match(path) || excluded.is_match(path) {
            continue;
        }
        match path.to_str() {
            Some(path) => found.push(path.to_string()),
            None => {
                return Err(Error::request(format!("a file's name is not UTF-8: {}", entry.path().display()))
                    .next("name the folder that holds it in sources: it is taken whole"));
            }
        }
    }
    listed.end();
    found.sort();
    Ok(found)
}

/// Not a folder of another package, and not hidden, unless a pattern begins with it.
fn is_of_package(entry: &DirEntry, folder: &Path, include: &[String]) -> bool {
    if !entry.file_type().is_dir() {
        return true;
    }
    let Ok(path) = entry.path().strip_prefix(folder) else { return false };
    let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
    let named = || include.iter().any(|pattern| Path::new(pattern).starts_with(path));
    if hidden && !named() {
        return false;
    }
    // What builds write is no source of theirs.
    if entry.file_name() == "tapeout-out" {
        return false;
    }
    !seen::is_there(&entry.path().join("build.star")) && !seen::is_there(&entry.path().join("tapeout.toml"))
}

fn set(patterns: &[String]) -> Result<GlobSet> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        let bad = |why: &str| {
            Error::request(format!("not a pattern: {pattern:?}"))
                .why(why.to_string())
                .next("write src/**, *.c or a name")
        };
        if pattern.is_empty() || pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
            return Err(bad("a pattern names files below the package's folder"));
        }
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        builder.add(glob.map_err(|e| bad(&e.kind().to_string()))?);
    }
    builder.build().map_err(|e| Error::request(format!("these patterns can't be used together: {}", e.kind())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "a.c",
            "a.h",
            "src/b.c",
            "src/deep/c.c",
            "src/deep/c.o",
            "other/build.star",
            "other/d.c",
            ".git/x.c",
            "link/e.c",
        ] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink("/etc", folder.path().join("src/etc")).unwrap();
        folder
    }

    #[test]
    fn patterns_match_as_the_docs_say() {
        let folder = folder();
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&["*.c"], &[], &["a.c"]),
            (&["**/*.c"], &["link/**"], &["a.c", "src/b.c", "src/deep/c.c"]),
            (&["src/**"], &["**/*.o"], &["src/b.c", "src/deep/c.c", "src/etc"]),
            (&[".git/*"], &[], &[".git/x.c"]),
            (&["a.?"], &[], &["a.c", "a.h"]),
            (&["none"], &[], &[]),
        ];
        for (include, exclude, expected) in cases {
            let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            assert_eq!(glob(folder.path(), &strings(include), &strings(exclude)).unwrap(), expected, "{include:?}");
        }
    }

    #[test]
    fn patterns_that_lead_out_are_refused() {
        for bad in ["../x", "/etc/*", "", "a/../../x", "[", "{"] {
            assert!(glob(Path::new("/nonexistent"), &[bad.to_string()], &[]).is_err(), "{bad:?}");
        }
    }
}
