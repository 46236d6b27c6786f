//! Where packages come from: built-in ones (inside the binary) lowest, then the workspace, then
//! each `--path`; the highest that has a package gives it, whole.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;
use serde::{Deserialize, Serialize};

use super::seen;
use crate::error::{Error, Place, Result};
use crate::label::Package;
use crate::nearest::nearest;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// The name of a build file.
pub const BUILD_FILE: &str = "build.star";
/// Bytes of a build file or template.
const FILE_SIZE: u64 = 1 << 20;
/// Folders that the walk for `//…/...` looks at.
const FOLDERS: usize = 200_000;

/// The packages inside the binary: path and text.
const BUILT_IN: &[(&str, &str)] = &[
    ("base/build.star", include_str!("../../rootfs/base/build.star")),
    ("templates/cargo.star", include_str!("../../rootfs/templates/cargo.star")),
    ("templates/cc.star", include_str!("../../rootfs/templates/cc.star")),
    ("templates/node.star", include_str!("../../rootfs/templates/node.star")),
    ("templates/python.star", include_str!("../../rootfs/templates/python.star")),
    ("templates/rules.star", include_str!("../../rootfs/templates/rules.star")),
];

/// Folders in which packages are looked up, highest first; below all of them are the built-in ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SearchPath {
    /// What messages name files relative to.
    pub workspace: PathBuf,
    /// Highest first.
    pub folders: Vec<PathBuf>,
}

/// A file that was found and read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// What messages call it.
    pub name: String,
    /// Its text.
    pub text: String,
    /// The folder of its package; `None`: built in.
    pub folder: Option<PathBuf>,
}

impl SearchPath {
    /// The build file of a package.
    pub fn build_file(&self, package: &Package) -> Result<SourceFile> {
        match self.find(package, BUILD_FILE)? {
            Some(file) => Ok(file),
            None => Err(self.missing(package)),
        }
    }

    /// A file that is loaded: from the highest place that has the package, or, for a folder
    /// without a build file, from the highest that has this file.
    pub fn loaded_file(&self, package: &Package, name: &str) -> Result<SourceFile> {
        let gives = |folder: &PathBuf| self.is_file(folder, package, BUILD_FILE) || self.is_file(folder, package, name);
        if let Some(folder) = self.folders.iter().find(|folder| gives(folder)) {
            if let Some(file) = self.read(folder, package, name)? {
                return Ok(file);
            }
        } else if let Some(file) = built_in(package, name) {
            return Ok(file);
        }
        Err(Error::request(format!("there is no file {name} in {package}"))
            .why(format!("searched {}", self.searched(package, name)))
            .next(match self.nearest_file(package, name) {
                Some(near) => format!("did you mean //{near}?"),
                None => {
                    "load(\"//package:file.star\", …) is written //package/file.star; in the same package :file.star"
                        .to_string()
                }
            }))
    }

    /// The file that can be loaded whose path is most like this one: of this folder, of one of a like name, or built in.
    fn nearest_file(&self, package: &Package, name: &str) -> Option<String> {
        let mut packages = self.packages_below(&Package::new("").ok()?).ok()?;
        packages.push(package.clone());
        let mut paths: Vec<String> = BUILT_IN.iter().map(|(path, _)| path.to_string()).collect();
        for folder in &self.folders {
            for package in &packages {
                let files = std::fs::read_dir(folder.join(package.path())).into_iter().flatten().flatten();
                paths.extend(files.filter_map(|file| Some(joined(package, file.file_name().to_str()?))));
            }
        }
        let loaded = |path: &&str| path.ends_with(".star") && !path.ends_with(BUILD_FILE);
        nearest(&joined(package, name), paths.iter().map(String::as_str).filter(loaded))
    }

    fn find(&self, package: &Package, name: &str) -> Result<Option<SourceFile>> {
        for folder in &self.folders {
            if let Some(file) = self.read(folder, package, name)? {
                return Ok(Some(file));
            }
        }
        Ok(built_in(package, name))
    }

    fn is_file(&self, folder: &Path, package: &Package, name: &str) -> bool {
        seen::is_there(&folder.join(package.path()).join(name))
    }

    /// Read below its folder without following a link, and only if it is a regular file of bounded size.
    fn read(&self, folder: &Path, package: &Package, name: &str) -> Result<Option<SourceFile>> {
        let path = RootPath::new(format!("{}/{name}", package.path()))?;
        let root = Root::open(folder).map_err(|e| e.with_kind(crate::error::Kind::Request))?;
        let shown = self.shown(&path.below(folder));
        let start = Place { file: shown.clone(), line: 1, column: 1, length: 1, source: None };
        let whole = |e: Error| e.with_kind(crate::error::Kind::Request).at(start.clone(), "");
        match root.stat(&path).map_err(|e| link(whole(e)))?.map(|stat| crate::sys::file::kind(&stat)) {
            None => {
                seen::is_there(&path.below(folder));
                return Ok(None);
            }
            Some(SFlag::S_IFREG) => {}
            Some(SFlag::S_IFLNK) => return Err(link(whole(Error::request(format!("{shown} is a link"))))),
            Some(_) => return Err(whole(Error::request(format!("{shown} is not a regular file")))),
        }
        let began = seen::Moment::now();
        let file = root.open_file(&path).map_err(whole)?;
        let mut bytes = vec![];
        (&file).take(FILE_SIZE + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path.below(folder), e))?;
        seen::folders_above(&path.below(folder), folder);
        seen::file(&path.below(folder), &file, began, &bytes);
        if bytes.len() as u64 > FILE_SIZE {
            return Err(whole(Error::request(format!("{shown} is longer than {FILE_SIZE} bytes")))
                .next("split it: load() takes functions from other files"));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            let error = Error::request(format!("{shown} is not UTF-8")).at(Place { line, ..start.clone() }, "");
            error.next("write it in UTF-8: iconv converts it")
        })?;
        Ok(Some(SourceFile { name: shown, text, folder: Some(folder.join(package.path())) }))
    }

    /// A line of a file as messages call it, for the message about a file that broke the analysis.
    pub fn line(&self, shown: &str, line: usize) -> Option<String> {
        let text = match shown.strip_prefix("(built in)/") {
            Some(path) => BUILT_IN.iter().find(|(built_in, _)| *built_in == path)?.1.to_string(),
            None => {
                let root = Root::open(&self.workspace).ok()?;
                let file = root.open_file(&RootPath::new(shown).ok()?).ok()?;
                let mut text = String::new();
                file.take(FILE_SIZE).read_to_string(&mut text).ok()?;
                text
            }
        };
        text.lines().nth(line.checked_sub(1)?).map(|line| line.chars().take(200).collect())
    }

    /// A path as messages show it.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.workspace).unwrap_or(path).display().to_string()
    }

    /// The error of a package that is nowhere.
    pub fn missing(&self, package: &Package) -> Error {
        let here = RootPath::new(package.path()).map(|path| path.below(&self.workspace));
        let made = Error::request(format!("there is no package {package}"))
            .why(format!("searched {}", self.searched(package, BUILD_FILE)));
        match here {
            // A bare name typed at the top, more likely than a build file that somebody wants there.
            Ok(_) if package.path().is_empty() => {
                made.next("write //PACKAGE:NAME, where PACKAGE is a folder with a build.star")
            }
            Ok(folder) if folder.is_dir() => made.next(format!("write {}", self.shown(&folder.join(BUILD_FILE)))),
            _ => match self.nearest(package) {
                Some(near) => made.next(format!("did you mean {near}?")),
                None => made.next(format!("write {}/{BUILD_FILE}", package.path())),
            },
        }
    }

    /// The package whose name is most like this one; all are looked at, because something is wrong anyway.
    fn nearest(&self, package: &Package) -> Option<String> {
        let top = Package::new("").ok()?;
        let known = self.packages_below(&top).ok()?;
        let built_in = BUILT_IN.iter().filter_map(|(path, _)| path.strip_suffix("/build.star"));
        let paths = known.iter().map(Package::path).chain(built_in).filter(|path| !path.is_empty());
        nearest(package.path(), paths).map(|near| format!("//{near}"))
    }

    fn searched(&self, package: &Package, name: &str) -> String {
        let mut places: Vec<String> =
            self.folders.iter().map(|folder| self.shown(&folder.join(package.path()).join(name))).collect();
        places.push("the built-in packages (//base, //templates)".to_string());
        places.join(", ")
    }

    /// All packages at and below one, built-in ones only where they are named; sorted.
    pub fn packages_below(&self, package: &Package) -> Result<Vec<Package>> {
        let mut found = BTreeSet::new();
        for folder in &self.folders {
            walk(folder, package, &mut found)?;
        }
        if !package.path().is_empty() {
            for (path, _) in BUILT_IN {
                if let Some(built_in) = path.strip_suffix(&format!("/{BUILD_FILE}")).map(Package::new) {
                    found.extend(built_in.ok().filter(|built_in| package.holds(built_in)));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Is this a package?
    pub fn has(&self, package: &Package) -> bool {
        self.folders.iter().any(|folder| self.is_file(folder, package, BUILD_FILE))
            || built_in(package, BUILD_FILE).is_some()
    }
}

fn link(e: Error) -> Error {
    e.why("a link stands in the path: packages are read without following any")
}

fn joined(package: &Package, name: &str) -> String {
    if package.path().is_empty() { name.to_string() } else { format!("{}/{name}", package.path()) }
}

fn built_in(package: &Package, name: &str) -> Option<SourceFile> {
    let path = joined(package, name);
    let (_, text) = BUILT_IN.iter().find(|(built_in, _)| *built_in == path)?;
    Some(SourceFile { name: format!("(built in)/{path}"), text: text.to_string(), folder: None })
}

/// Not into hidden folders, links, and workspaces of their own; folders whose name can't stand in
/// a label hold no packages.
fn walk(folder: &Path, package: &Package, found: &mut BTreeSet<Package>) -> Result<()> {
    let top = folder.join(package.path());
    if !top.is_dir() {
        if seen::is_there(&top) {
            // What it leads to is not looked at.
            seen::untold();
        }
        return Ok(());
    }
    let entries = walkdir::WalkDir::new(&top).follow_links(false).sort_by_file_name().into_iter();
    let mut listed = seen::Walk::begin(&top);
    let enters = |entry: &walkdir::DirEntry| {
        let name = entry.file_name();
        if entry.depth() == 0 {
            return true;
        }
        listed.meets(entry);
        let enters = entry.file_type().is_dir()
            && name.as_encoded_bytes().first() != Some(&b'.')
            // What builds write is no source of theirs.
            && name != "tapeout-out"
            && !seen::is_there(&entry.path().join("tapeout.toml"));
        if enters {
            listed.enters(entry.path());
        }
        enters
    };
    for (number, entry) in entries.filter_entry(enters).enumerate() {
        if number > FOLDERS {
            return Err(Error::request(format!("more than {FOLDERS} folders below {}", top.display()))
                .next("name a smaller part than ..."));
        }
        let entry = entry.map_err(|e| Error::failed(format!("looking for packages below {}: {e}", top.display())))?;
        let is_package = entry.path().join(BUILD_FILE).symlink_metadata().is_ok();
        let path = entry.path().strip_prefix(folder).ok().and_then(Path::to_str);
        if let (true, Some(path)) = (is_package, path) {
            found.extend(Package::new(path).ok());
        }
    }
    listed.end();
    Ok(())
}
