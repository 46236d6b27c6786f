//! What distribution packages own: dpkg's database, read from a builder as data. dpkg(1), dpkg-query(1),
//! deb-conffiles(5).

use std::collections::{BTreeMap, BTreeSet};

use super::Files;
use super::lookup::Lookup;
use crate::error::{Error, Result};
use crate::tree::{RootPath, Stack};

/// The status file of a full desktop has 6 MB.
const MOST: u64 = 128 << 20;

/// Left out of what a package owns, as whole folders. Licences (`copyright`) stay.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/linda",
    "usr/share/bash-completion",
    "usr/share/zsh/vendor-completions",
    "usr/share/fish",
    "usr/share/doc-base",
    "usr/share/bug",
    "usr/share/menu",
    "usr/share/gtk-doc",
    "usr/share/help",
    "usr/share/gnome/help",
    "usr/share/omf",
    "usr/share/apport",
    "usr/share/reportbug",
];

/// dpkg's database in a builder.
pub struct Database<'a> {
    view: &'a Stack,
    files: &'a dyn Files,
    installed: BTreeMap<String, Vec<Package>>,
    diversions: Vec<Diversion>,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Name, without its architecture.
    pub name: String,
    /// Architecture.
    pub architecture: String,
    /// Names that it provides.
    pub provides: Vec<String>,
    /// Its paragraph in the status file, with a newline at the end.
    pub stanza: String,
}

/// A file of one package that another one put aside: dpkg-divert(1).
#[derive(Debug)]
struct Diversion {
    from: String,
    to: String,
    by: String,
}

impl<'a> Database<'a> {
    /// The database of a builder; `None`: it has none.
    pub fn open(view: &'a Stack, files: &'a dyn Files) -> Result<Option<Self>> {
        let Some(status) = view.read(&RootPath::new("var/lib/dpkg/status")?, files, MOST)? else { return Ok(None) };
        let mut installed: BTreeMap<String, Vec<Package>> = BTreeMap::new();
        for package in packages(&String::from_utf8_lossy(&status)) {
            installed.entry(package.name.clone()).or_default().push(package);
        }
        let diversions = view.read(&RootPath::new("var/lib/dpkg/diversions")?, files, MOST)?.unwrap_or_default();
        Ok(Some(Self { view, files, installed, diversions: parse_diversions(&String::from_utf8_lossy(&diversions)) }))
    }

    /// An installed package by `name` or `name:architecture`.
    pub fn package(&self, text: &str) -> Result<&Package> {
        let (name, architecture) = text.split_once(':').map_or((text, None), |(n, a)| (n, Some(a)));
        let fitting = |p: &&Package| architecture.is_none_or(|a| a == p.architecture);
        match self.installed.get(name).and_then(|all| all.iter().find(fitting)) {
            Some(package) => Ok(package),
            None => Err(self.not_installed(text, name)),
        }
    }

    fn not_installed(&self, text: &str, name: &str) -> Error {
        let all = || self.installed.values().flatten();
        let provided: Vec<_> =
            all().filter(|p| p.provides.iter().any(|x| x == name)).map(|p| p.name.as_str()).collect();
        let near: Vec<_> = self
            .installed
            .keys()
            .filter(|k| k.starts_with(name) || (name.len() > 3 && name.starts_with(k.as_str())))
            .take(5)
            .map(String::as_str)
            .collect();
        let error = Error::request(format!("package {text:?} is not installed in the builder"));
        let error = match (provided.is_empty(), near.is_empty()) {
            (false, _) => error.why(format!("it is provided by {}", provided.join(", "))),
            (true, false) => error.why(format!("near to it are {}", near.join(", "))),
            (true, true) => error,
        };
        error.next(format!("add {text:?} to the packages of a rule that this one depends on"))
    }

    /// Every path that a package owns, as its list has it (links above it not followed).
    pub fn list(&self, package: &Package) -> Result<Vec<String>> {
        let info = |suffix: &str| -> Result<Option<String>> {
            for name in [package.name.clone(), format!("{}:{}", package.name, package.architecture)] {
                let path = RootPath::new(format!("var/lib/dpkg/info/{name}.{suffix}"))?;
                if let Some(bytes) = self.view.read(&path, self.files, MOST)? {
                    return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
            Ok(None)
        };
        let list = info("list")?.ok_or_else(|| {
            Error::failed(format!("the builder has no list of the files of package {}", package.name))
                .why(format!("/var/lib/dpkg/info/{}.list is not there, though the package is installed", package.name))
        })?;
        let conffiles: BTreeSet<String> = info("conffiles")?.unwrap_or_default().lines().filter_map(conffile).collect();
        let diverted = |path: &str| {
            let diversion = self.diversions.iter().find(|d| d.from == path && d.by != package.name);
            diversion.map_or_else(|| path.to_string(), |d| d.to.clone())
        };
        let kept = list.lines().filter(|path| conffiles.contains(*path) || !left_out(path)).map(diverted);
        Ok(kept.filter(|path| path.starts_with('/') && path != "/.").collect())
    }

    /// Every installed package.
    pub fn all(&self) -> impl Iterator<Item = &Package> {
        self.installed.values().flatten()
    }
}

/// Documentation, translations and the like.
fn left_out(path: &str) -> bool {
    let path = path.trim_start_matches('/');
    let folder = LEFT_OUT
        .iter()
        .any(|folder| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    folder && !(path.starts_with("usr/share/doc/") && path.ends_with("/copyright"))
}

/// `/etc/x`, or `/etc/x remove-on-upgrade` in newer ones.
fn conffile(line: &str) -> Option<String> {
    let path = line.strip_prefix("remove-on-upgrade ").unwrap_or(line).trim();
    path.starts_with('/').then(|| path.to_string())
}

fn packages(status: &str) -> Vec<Package> {
    let mut all = vec![];
    for stanza in status.split("\n\n") {
        let field = |name: &str| {
            let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).unwrap_or_default()
        };
        if field("Package").is_empty() || !field("Status").ends_with(" installed") {
            continue;
        }
        let provides =
            field("Provides").split(',').filter_map(|p| p.split_whitespace().next()).map(str::to_string).collect();
        all.push(Package {
            name: field("Package").to_string(),
            architecture: field("Architecture").to_string(),
            provides,
            stanza: format!("{}\n", stanza.trim_matches('\n')),
        });
    }
    all
}

fn parse_diversions(text: &str) -> Vec<Diversion> {
    let lines: Vec<&str> = text.lines().collect();
    let three = |lines: &[&str]| Diversion { from: lines[0].into(), to: lines[1].into(), by: lines[2].into() };
    lines.chunks_exact(3).map(three).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{OnDisk, on_disk};

    const STATUS: &str = "Package: libz\nStatus: install ok installed\nArchitecture: amd64\nProvides: z (= 1), zed\n\n\
        Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\n\n\
        Package: sh\nStatus: install ok installed\nArchitecture: amd64\nDescription: x\n more\n";

    #[test]
    fn a_package_owns_its_list_without_documents() {
        let list = "/.\n/usr\n/usr/lib/libz.so\n/usr/share/doc/libz\n/usr/share/doc/libz/copyright\n/usr/share/doc/libz/changelog.gz\n/usr/share/man/man1/z.1.gz\n/usr/share/doc/libz/z.conf\n/bin/sh\n";
        let (dir, layer) = on_disk(&[
            ("var/lib/dpkg/status", Some(STATUS.as_bytes()), 0o644),
            ("var/lib/dpkg/info/libz:amd64.list", Some(list.as_bytes()), 0o644),
            ("var/lib/dpkg/info/libz:amd64.conffiles", Some(b"/usr/share/doc/libz/z.conf\n"), 0o644),
            ("var/lib/dpkg/diversions", Some(b"/bin/sh\n/bin/sh.distrib\ndash\n"), 0o644),
        ]);
        let (view, files) = (Stack(vec![layer]), OnDisk(dir.path().into()));
        let database = Database::open(&view, &files).unwrap().unwrap();
        let package = database.package("libz:amd64").unwrap();
        assert_eq!(
            database.list(package).unwrap(),
            [
                "/usr",
                "/usr/lib/libz.so",
                "/usr/share/doc/libz/copyright",
                "/usr/share/doc/libz/z.conf",
                "/bin/sh.distrib"
            ]
        );
        assert!(database.package("sh").unwrap().stanza.ends_with("Description: x\n more\n"));
    }

    #[test]
    fn what_is_not_installed_is_an_error_that_knows_who_provides_it() {
        let (dir, layer) = on_disk(&[("var/lib/dpkg/status", Some(STATUS.as_bytes()), 0o644)]);
        let (view, files) = (Stack(vec![layer]), OnDisk(dir.path().into()));
        let database = Database::open(&view, &files).unwrap().unwrap();
        for (name, why) in
            [("zed", "provided by libz"), ("lib", "near to it are libz"), ("gone", ""), ("libz:arm64", "libz")]
        {
            let error = database.package(name).unwrap_err();
            assert!(error.reasons().concat().contains(why), "{error}");
            assert!(error.next_step().is_some());
        }
    }
}
