//! `tapeout.lock`: exact versions and digests of every package, and the numbers of their users.
//!
//! The same lock gives the same bytes on any machine. What a package needs stands here as names
//! within the lock, so that a set of packages is closed without the index. It is written by
//! Tapeout, meant to be kept under version control and read by people, and sorted, so that two
//! branches merge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::debian::names::{is_name, is_pool_path, version};
use super::debian::release::parse_time;
use crate::digest::Digest;
use crate::error::{Error, Place, Result};
use crate::sys::disk;
use crate::sys::file;

/// The format that this program reads and writes.
const FORMAT: u32 = 1;
/// The largest lock that is read.
const MAX_SIZE: u64 = 64 << 20;

/// A lock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// `amd64`
    pub architecture: String,
    /// `bookworm`
    pub suite: String,
    /// The index files that the versions come from.
    pub index: Vec<Pinned>,
    /// Numbers of users that packages made, by name.
    pub users: BTreeMap<String, u32>,
    /// Numbers of groups, by name.
    pub groups: BTreeMap<String, u32>,
    /// Packages by name.
    pub packages: BTreeMap<String, LockedPackage>,
}

/// One index, as the lock pins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// The suite.
    pub suite: String,
    /// The component.
    pub component: String,
    /// When it was made: `2026-07-11T10:16:37Z`.
    pub date: String,
    /// Of the compressed `Packages` file.
    pub sha256: String,
    /// Its size.
    pub size: u64,
}

/// A package at its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Of the `.deb`.
    pub digest: Digest,
    /// Of the `.deb`.
    pub size: u64,
    /// Path below the archive.
    pub file: String,
    /// The suite whose archive has it.
    pub suite: String,
    /// It is part of the base system.
    pub base: bool,
    /// Names of packages that it needs.
    pub depends: BTreeSet<String>,
    /// Those of them that must be configured before it is unpacked.
    pub before: BTreeSet<String>,
}

impl Lock {
    /// From its file; `None`: there is none yet.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let file = file::open_regular(path)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_SIZE), &mut text)
            .map_err(|e| Error::io("read", path, e))?;
        Self::parse(&text, &path.display().to_string()).map(Some)
    }

    /// Writes it in the place of what was read; what another command has added to that meanwhile is kept.
    pub fn write_after(&mut self, was: Option<&Self>, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let alone = File::open(folder).map_err(|e| Error::io("open", folder, e))?;
        // Where there are no locks there is one writer, as before.
        let _ = disk::lock(&alone, disk::Lock::Exclusive);
        if let Some(now) = Self::read(path)?.filter(|now| Some(now) != was) {
            self.take_in(now, path)?;
        }
        self.write(path)
    }

    fn take_in(&mut self, other: Self, path: &Path) -> Result<()> {
        let renewed = || {
            Error::failed(format!("another command has changed {} meanwhile", path.display()))
                .why("what it wrote and what this one would write don't go together")
                .next("run this one again")
        };
        let of = |lock: &Self| (lock.suite.clone(), lock.architecture.clone(), lock.index.clone());
        if of(self) != of(&other) {
            return Err(renewed());
        }
        for (name, package) in other.packages {
            self.packages.entry(name).or_insert(package);
        }
        for (mine, theirs) in [(&mut self.users, other.users), (&mut self.groups, other.groups)] {
            for (name, number) in theirs {
                mine.entry(name).or_insert(number);
            }
            if mine.values().collect::<BTreeSet<_>>().len() != mine.len() {
                return Err(renewed());
            }
        }
        Ok(())
    }

    /// Writes it whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let beside = path.with_extension(format!("lock.{}", std::process::id()));
        std::fs::write(&beside, self.to_text()).map_err(|e| Error::io("write", &beside, e))?;
        std::fs::rename(&beside, path).map_err(|e| {
            let _ = std::fs::remove_file(&beside);
            Error::io("rename", path, e)
        })
    }

    /// From its text; `file` is its name for messages.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let reader = Reader { text, file };
        let written: Written = toml::from_str(text).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            reader.error(&span, e.message().to_string())
        })?;
        reader.lock(written)
    }

    /// When the newest of its indexes was made: the default of `SOURCE_DATE_EPOCH`.
    pub fn date(&self) -> Option<i64> {
        self.index.iter().filter_map(|pin| parse_time(&pin.date)).max()
    }

    /// The named packages and all that they need, sorted by name.
    pub fn closure<'a>(
        &'a self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeMap<&'a str, &'a LockedPackage>> {
        let mut closed = BTreeMap::new();
        let mut todo: Vec<&str> = names.into_iter().collect();
        while let Some(name) = todo.pop() {
            let package = self.packages.get(name).ok_or_else(|| {
                Error::failed(format!("package {name} is not in the lock"))
                    .next("build without --locked, so that it is added")
            })?;
            if closed.insert(package.name.as_str(), package).is_none() {
                todo.extend(package.depends.iter().map(String::as_str));
            }
        }
        Ok(closed)
    }

    /// What the builder consists of: the base system, and `more` with all that it needs.
    pub fn builder_packages<'a>(&'a self, more: &'a [String]) -> Result<BTreeMap<&'a str, &'a LockedPackage>> {
        let base = self.packages.values().filter(|p| p.base).map(|p| p.name.as_str());
        self.closure(base.chain(more.iter().map(String::as_str)))
    }

    /// The names among these that the lock doesn't have.
    pub fn unlocked<'a>(&self, names: &'a [String]) -> Vec<&'a String> {
        names.iter().filter(|name| !self.packages.contains_key(*name)).collect()
    }

    /// What must be installed into a builder for this union of packages.
    pub fn missing(&self, union: &[String], builder: &BTreeMap<String, String>) -> Result<Vec<LockedPackage>> {
        let closed = self.closure(union.iter().map(String::as_str))?;
        Ok(closed.into_values().filter(|p| builder.get(&p.name) != Some(&p.version)).cloned().collect())
    }

    /// As it is written to disk.
    pub fn to_text(&self) -> String {
        let mut out = String::from(
            "# tapeout.lock: exact packages of the builder. Written by tapeout; keep it under version control.\n",
        );
        let quoted = |text: &str| toml::Value::String(text.into()).to_string();
        let list =
            |names: &BTreeSet<String>| format!("[{}]", names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", "));
        let _ = writeln!(
            out,
            "version = {FORMAT}\narchitecture = {}\nsuite = {}",
            quoted(&self.architecture),
            quoted(&self.suite)
        );
        for (title, numbers) in [("users", &self.users), ("groups", &self.groups)] {
            if !numbers.is_empty() {
                let _ = writeln!(out, "\n[{title}]");
                numbers.iter().for_each(|(name, number)| {
                    let _ = writeln!(out, "{} = {number}", quoted(name));
                });
            }
        }
        for pin in &self.index {
            let _ = writeln!(
                out,
                "\n[[index]]\nsuite = {}\ncomponent = {}\ndate = {}\nsha256 = {}\nsize = {}",
                quoted(&pin.suite),
                quoted(&pin.component),
                quoted(&pin.date),
                quoted(&pin.sha256),
                pin.size
            );
        }
        for package in self.packages.values() {
            let _ = writeln!(
                out,
                "\n[[package]]\nname = {}\nversion = {}\nsha256 = {}\nsize = {}\nfile = {}\nsuite = {}",
                quoted(&package.name),
                quoted(&package.version),
                quoted(&package.digest.hex()),
                package.size,
                quoted(&package.file),
                quoted(&package.suite)
            );
            if package.base {
                out.push_str("base = true\n");
            }
            if !package.depends.is_empty() {
                let _ = writeln!(out, "depends = {}", list(&package.depends));
            }
            if !package.before.is_empty() {
                let _ = writeln!(out, "before = {}", list(&package.before));
            }
        }
        out
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: Spanned<u32>,
    architecture: Spanned<String>,
    suite: Spanned<String>,
    #[serde(default)]
    index: Vec<Spanned<Pinned>>,
    #[serde(default)]
    users: BTreeMap<Spanned<String>, u32>,
    #[serde(default)]
    groups: BTreeMap<Spanned<String>, u32>,
    #[serde(default)]
    package: Vec<WrittenPackage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPackage {
    name: Spanned<String>,
    version: Spanned<String>,
    sha256: Spanned<String>,
    size: u64,
    file: Spanned<String>,
    suite: Spanned<String>,
    #[serde(default)]
    base: bool,
    #[serde(default)]
    depends: Vec<Spanned<String>>,
    #[serde(default)]
    before: Vec<Spanned<String>>,
}

struct Reader<'a> {
    text: &'a str,
    file: &'a str,
}

impl Reader<'_> {
    fn error(&self, span: &std::ops::Range<usize>, what: String) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let source = self.text.lines().nth(line).map(String::from);
        let length =
            self.text.get(span.clone()).map_or(1, |t| t.lines().next().unwrap_or_default().chars().count()).max(1);
        let place = Place { file: self.file.into(), line: line + 1, column: column + 1, length, source };
        Error::request(format!("the lock can't be read: {what}"))
            .at(place, "")
            .next("restore it from version control, or remove it to make a new one")
    }

    fn check(&self, text: &Spanned<String>, good: bool, what: &str) -> Result<String> {
        if good {
            Ok(text.get_ref().clone())
        } else {
            Err(self.error(&text.span(), format!("not {what}: {:?}", text.get_ref())))
        }
    }

    fn lock(&self, written: Written) -> Result<Lock> {
        if *written.version.get_ref() != FORMAT {
            let what = format!("it has format {}, and this tapeout reads format {FORMAT}", written.version.get_ref());
            return Err(self.error(&written.version.span(), what));
        }
        let mut lock = Lock {
            architecture: self.check(
                &written.architecture,
                is_name(written.architecture.get_ref()),
                "an architecture",
            )?,
            suite: self.check(&written.suite, is_suite(written.suite.get_ref()), "a suite")?,
            users: self.numbers(written.users)?,
            groups: self.numbers(written.groups)?,
            ..Lock::default()
        };
        for pin in written.index {
            let (span, pin) = (pin.span(), pin.into_inner());
            let good = is_suite(&pin.suite)
                && is_name(&pin.component)
                && Digest::from_hex(&pin.sha256).is_ok()
                && parse_time(&pin.date).is_some();
            if !good {
                return Err(self.error(&span, "not an index".into()));
            }
            lock.index.push(pin);
        }
        let mut needed = vec![];
        for package in written.package {
            let span = package.name.span();
            needed.extend(package.depends.iter().chain(&package.before).cloned());
            let package = self.package(package)?;
            let name = package.name.clone();
            if lock.packages.insert(name.clone(), package).is_some() {
                return Err(self.error(&span, format!("package {name} stands in it twice")));
            }
        }
        match needed.iter().find(|name| !lock.packages.contains_key(name.get_ref())) {
            Some(name) => Err(self.error(&name.span(), format!("package {} is needed and not in it", name.get_ref()))),
            None => Ok(lock),
        }
    }

    fn package(&self, written: WrittenPackage) -> Result<LockedPackage> {
        let names = |list: Vec<Spanned<String>>| list.into_iter().map(Spanned::into_inner).collect();
        Ok(LockedPackage {
            name: self.check(&written.name, is_name(written.name.get_ref()), "a package")?,
            version: self.check(&written.version, version(written.version.get_ref()).is_some(), "a version")?,
            digest: Digest::from_hex(written.sha256.get_ref())
                .map_err(|_| self.error(&written.sha256.span(), "not a SHA-256 digest".into()))?,
            size: written.size,
            file: self.check(&written.file, is_pool_path(written.file.get_ref()), "a path in an archive")?,
            suite: self.check(&written.suite, is_suite(written.suite.get_ref()), "a suite")?,
            base: written.base,
            depends: names(written.depends),
            before: names(written.before),
        })
    }

    fn numbers(&self, written: BTreeMap<Spanned<String>, u32>) -> Result<BTreeMap<String, u32>> {
        let mut taken = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (name, number) in written {
            let good = !name.get_ref().is_empty() && !name.get_ref().contains([':', '\n', '\0']);
            let text = self.check(&name, good, "a name")?;
            if let Some(other) = taken.insert(number, text.clone()) {
                return Err(self.error(&name.span(), format!("{text} has number {number}, which {other} has too")));
            }
            numbers.insert(text, number);
        }
        Ok(numbers)
    }
}

/// `bookworm`, `bookworm-security`, `buster/updates`.
pub fn is_suite(text: &str) -> bool {
    !text.is_empty()
        && text.len() < 128
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, depends: &[&str]) -> LockedPackage {
        LockedPackage {
            name: name.into(),
            version: "1:1.0-1".into(),
            digest: Digest::of(name),
            size: 3,
            file: format!("pool/main/{name}.deb"),
            suite: "bookworm".into(),
            base: name == "base",
            depends: depends.iter().map(|d| d.to_string()).collect(),
            before: BTreeSet::new(),
        }
    }

    fn lock() -> Lock {
        let packages = [package("a", &["b"]), package("b", &["a", "c"]), package("c", &[]), package("base", &["c"])];
        Lock {
            architecture: "amd64".into(),
            suite: "bookworm".into(),
            index: vec![Pinned {
                suite: "bookworm".into(),
                component: "main".into(),
                date: "2026-07-11T10:16:37Z".into(),
                sha256: Digest::of("i").hex(),
                size: 9,
            }],
            users: BTreeMap::from([("redis".into(), 412), ("_ssh.x y".into(), 413)]),
            groups: BTreeMap::from([("redis".into(), 412)]),
            packages: packages.into_iter().map(|p| (p.name.clone(), p)).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let lock = lock();
        assert_eq!(Lock::parse(&lock.to_text(), "tapeout.lock").unwrap(), lock);
        assert_eq!(lock.date(), Some(1783764997));
    }

    #[test]
    fn a_set_is_closed_within_the_lock() {
        let lock = lock();
        assert_eq!(lock.closure(["a"]).unwrap().into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(lock.closure(["x"]).is_err());
        let builder = BTreeMap::from([("c".to_string(), "1:1.0-1".to_string()), ("b".to_string(), "0".to_string())]);
        let missing: Vec<_> = lock.missing(&["a".into()], &builder).unwrap().into_iter().map(|p| p.name).collect();
        assert_eq!(missing, ["a", "b"]);
        assert_eq!(lock.builder_packages(&[]).unwrap().into_keys().collect::<Vec<_>>(), ["base", "c"]);
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_line() {
        let text = lock().to_text();
        let line = |needle: &str| text.lines().position(|l| l.contains(needle)).unwrap() + 1;
        let digest = Digest::of("a").hex();
        for (from, to, at) in [
            ("name = \"c\"", "name = \"a\"", Some("name = \"c\"")),
            (digest.as_str(), "abc", Some(digest.as_str())),
            ("depends = [\"b\"]", "depends = [\"zz\"]", Some("depends = [\"b\"]")),
            ("version = 1\n", "version = 2\n", Some("version = 1")),
            ("file = \"pool/main/a.deb\"", "file = \"../a.deb\"", Some("pool/main/a.deb")),
            ("size = 9", "size = \"x\"", None),
            ("size = 9", "size = 9\nmore = 1", None),
            ("\"redis\" = 412", "\"redis\" = 413", None),
            ("[[package]]", "[[package", None),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Lock::parse(&text.replacen(from, to, 1), "tapeout.lock").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let (place, _) = &error.places()[0];
            assert_eq!(place.file, "tapeout.lock");
            if let Some(needle) = at {
                assert_eq!(place.line, line(needle), "{to}: {error}");
            }
        }
    }

    #[test]
    fn what_another_command_added_meanwhile_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("tapeout.lock");
        let was = lock();
        was.write(&path).unwrap();
        let with = |name: &str, number| {
            let mut lock = was.clone();
            let package = lock.packages.values().next().unwrap().clone();
            lock.packages.insert(name.into(), LockedPackage { name: name.into(), ..package });
            lock.users.insert(name.into(), number);
            lock
        };
        with("one", 300).write_after(Some(&was), &path).unwrap();
        let mut second = with("two", 301);
        second.write_after(Some(&was), &path).unwrap();
        let both = Lock::read(&path).unwrap().unwrap();
        assert_eq!(both, second);
        assert!(["one", "two"].iter().all(|name| both.packages.contains_key(*name) && both.users.contains_key(*name)));
        let error = with("three", 300).write_after(Some(&was), &path).unwrap_err();
        assert!(error.what().contains("changed"), "{error}");
        let mut newer = was.clone();
        newer.index[0].date = "2027-01-01T00:00:00Z".into();
        newer.write(&path).unwrap();
        let error = with("two", 301).write_after(Some(&was), &path).unwrap_err();
        assert!(error.what().contains("changed") && error.next_step().is_some(), "{error}");
        assert_eq!(Lock::read(&path).unwrap().unwrap(), newer);
    }
}
