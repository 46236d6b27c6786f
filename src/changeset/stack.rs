//! Changesets of several rules in one snapshot: do they go together, and how?
//!
//! Two that are not ordered by a dependency conflict when, at one path, they differ in type,
//! content, mode, owner or attributes, or when one removed or replaced a folder below which the
//! other writes. One that was made on a builder with fewer packages conflicts with the fuller one
//! when it changed what is another thing there. Since a changeset lists each folder above its
//! changes, all of this shows at single paths.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use super::diff::set_times;
use super::merge::{self, Clash};
use super::places::{self, Joint};
use super::{Files, digest_of};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::label::{Label, Package};
use crate::store::Store;
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Change, Changeset, Entry, Layer, Node, RootPath, Stack};

/// One rule's changeset in a snapshot.
#[derive(Debug, Clone)]
pub struct Member {
    /// Whose it is.
    pub label: Label,
    /// What it changed.
    pub layer: Layer,
    /// Its transitive dependencies among the members, by index.
    pub after: std::collections::BTreeSet<usize>,
    /// It was made on the very builder and packages of this snapshot.
    pub same_base: bool,
}

/// A merged file is never larger.
const LARGEST: u64 = 64 << 20;

/// Stacks the members, in the order given, on the builder and the sources (`base`); an error when
/// they conflict. What is merged lies on top, in a changeset of its own that the store keeps.
pub fn merge(store: &Store, base: Stack, members: Vec<Member>) -> Result<Stack> {
    let files = |digest: &Digest| store.changeset_files(digest);
    conflicts(&base, &members)?;
    let mut stack = base.clone();
    stack.0.extend(members.iter().map(|member| member.layer.clone()));
    let joined = Joined { base: &base, members: &members, files: &files }.all(&stack)?;
    if !joined.is_empty() {
        let layer = keep(store, &stack, joined)?;
        stack.0.push(layer);
    }
    Ok(stack)
}

/// A changeset of another package must not write what is a source here.
pub fn foreign_sources(sources: &Changeset, package: &Package, members: &[Member]) -> Result<()> {
    for member in members.iter().filter(|member| member.label.package() != package) {
        for (path, change) in &sources.changes {
            if change.now.as_ref().is_some_and(Entry::is_folder) {
                continue;
            }
            if member.layer.changeset.changes.contains_key(path) {
                return Err(Error::failed(format!(
                    "rule {} of another package wrote a source of {package}: {path}",
                    member.label
                ))
                .next(format!("let {} write it somewhere else, or leave it out of sources", member.label)));
            }
        }
    }
    Ok(())
}

/// Finds the conflicts among members and with the base; the first one at each pair of rules.
fn conflicts(base: &Stack, members: &[Member]) -> Result<()> {
    let mut errors = vec![];
    for (i, one) in members.iter().enumerate() {
        for (j, other) in members.iter().enumerate().take(i) {
            if !one.after.contains(&j) && !other.after.contains(&i) {
                errors.extend(between(base, members, j, i));
            }
        }
        if !one.same_base {
            errors.extend(with_base(base, members, i));
        }
    }
    Error::all(errors).map_or(Ok(()), Err)
}

/// Is this a path about which nobody conflicts?
fn free(path: &RootPath) -> bool {
    places::in_workspace(path) || places::joint(path).is_some()
}

fn between(base: &Stack, members: &[Member], i: usize, j: usize) -> Option<Error> {
    let (one, other) = (&members[i].layer.changeset, &members[j].layer.changeset);
    let (few, many) = if one.changes.len() < other.changes.len() { (one, other) } else { (other, one) };
    for path in few.changes.keys().filter(|path| many.changes.contains_key(path) && !free(path)) {
        let (a, b) = (&one.changes[path], &other.changes[path]);
        let how = if !same(a, b) {
            difference(a, b)
        } else if replaced_below(base, members, (i, j), path) {
            "one replaced this folder, the other writes below it".to_string()
        } else {
            continue;
        };
        return Some(conflict(&members[i].label, &members[j].label, path, &how));
    }
    None
}

fn same(a: &Change, b: &Change) -> bool {
    match (&a.now, &b.now) {
        (None, None) => true,
        (Some(a), Some(b)) => a.same_as(b),
        _ => false,
    }
}

/// In what two changes at one path differ, in words.
fn difference(a: &Change, b: &Change) -> String {
    let (Some(a), Some(b)) = (&a.now, &b.now) else { return "one removed it, the other wrote it".to_string() };
    let kind = |entry: &Entry| match entry.node {
        Node::File { .. } => "a file",
        Node::Folder => "a folder",
        Node::Link { .. } => "a symbolic link",
        Node::Device { .. } => "a device",
        Node::Fifo => "a named pipe",
        Node::Socket => "a socket",
    };
    if kind(a) != kind(b) {
        return format!("for one it is {}, for the other {}", kind(a), kind(b));
    }
    if a.mode != b.mode {
        return format!("they give it the modes {:04o} and {:04o}", a.mode, b.mode);
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        return format!("they give it the owners {}:{} and {}:{}", a.uid, a.gid, b.uid, b.gid);
    }
    let what = if a.xattrs != b.xattrs { "attributes" } else { "contents" };
    format!("they give it different {what}")
}

/// Did one of them remove all that it saw in this folder, so that it would have removed what the
/// other writes there too?
fn replaced_below(base: &Stack, members: &[Member], (i, j): (usize, usize), folder: &RootPath) -> bool {
    [(i, j), (j, i)].into_iter().any(|(one, other)| {
        let (mine, theirs) = (&members[one].layer.changeset, &members[other].layer.changeset);
        let inside = |c: &Changeset, test: &dyn Fn(&RootPath, &Change) -> bool| {
            c.below(folder).any(|(path, change)| path.parent().as_ref() == Some(folder) && test(path, change))
        };
        let removes = inside(mine, &|path, change| change.now.is_none() && !theirs.changes.contains_key(path));
        let writes = removes
            && inside(theirs, &|path, change| {
                change.now.is_some() && !change.passed_through() && !mine.changes.contains_key(path)
            });
        writes && {
            let saw = seen_by(base, members, one).below(folder);
            saw.keys()
                .filter(|path| path.parent().as_ref() == Some(folder))
                .all(|path| mine.changes.get(path).is_some_and(|c| !c.passed_through()))
        }
    })
}

/// What a member stands on.
fn seen_by(base: &Stack, members: &[Member], i: usize) -> Stack {
    let mut stack = base.clone();
    stack.0.extend(members[i].after.iter().map(|j| members[*j].layer.clone()));
    stack
}

fn with_base(base: &Stack, members: &[Member], i: usize) -> Option<Error> {
    let member = &members[i];
    let seen = seen_by(base, members, i);
    for (path, change) in member.layer.changeset.changes.iter().filter(|(path, _)| !free(path)) {
        let here = seen.get(path);
        let is = here.map(|(entry, _)| entry.digest());
        if is == change.was || is == change.now.as_ref().map(Entry::digest) {
            continue;
        }
        let whose = here.and_then(|(_, layer)| members.iter().find(|m| m.layer.digest == layer.digest));
        let (whose, next) = match whose {
            Some(owner) => (
                owner.label.to_string(),
                format!("add the packages of {} that bring it to packages of {}", owner.label, member.label),
            ),
            None => ("the builder".to_string(), format!("let {} write it somewhere else", member.label)),
        };
        return Some(
            Error::failed(format!("rules that conflict: {whose} and {}, at {path}", member.label))
                .why(format!("{} changed it where something else was than what {whose} has there", member.label))
                .next(next),
        );
    }
    None
}

fn conflict(one: &Label, other: &Label, path: &RootPath, how: &str) -> Error {
    Error::failed(format!("rules that conflict: {one} and {other}, at {path}")).why(how.to_string()).next(format!(
        "order them: add \"{one}\" to deps of {other}, or the other way round; or let one of them write somewhere else"
    ))
}

/// Merges the files that several members may write.
struct Joined<'a> {
    base: &'a Stack,
    members: &'a [Member],
    files: &'a Files<'a>,
}

impl Joined<'_> {
    fn all(&self, stack: &Stack) -> Result<BTreeMap<RootPath, Vec<u8>>> {
        let mut joined = BTreeMap::new();
        for (path, joint) in places::merged() {
            let writers: Vec<usize> = (0..self.members.len())
                .filter(|i| self.members[*i].layer.changeset.changes.contains_key(&path))
                .collect();
            let in_line = |k: usize| {
                self.members[writers[k]].same_base
                    && writers[..k].iter().all(|w| self.members[writers[k]].after.contains(w))
            };
            if (0..writers.len()).all(in_line) {
                continue;
            }
            let bytes = self.merged(&path, joint, &writers)?;
            let on_top = stack.get(&path).map(|(entry, layer)| (entry, layer.digest));
            let Some((Entry { node: Node::File { digest, .. }, .. }, _)) = on_top else { continue };
            if Digest::of(&bytes) != *digest {
                joined.insert(path, bytes);
            }
        }
        Ok(joined)
    }

    /// What these writers (in their order) make of what the base has.
    fn merged(&self, path: &RootPath, joint: Joint, writers: &[usize]) -> Result<Vec<u8>> {
        let mut running = self.content(self.base.get(path), path)?;
        for (k, &i) in writers.iter().enumerate() {
            let member = &self.members[i];
            let before: Vec<usize> = writers[..k].iter().copied().filter(|w| member.after.contains(w)).collect();
            let Some(entry) = &member.layer.changeset.changes[path].now else { continue };
            let made = self.content(Some((entry, &member.layer)), path)?;
            if before.len() == k && member.same_base {
                // It saw all of what came before.
                running = made;
                continue;
            }
            let saw = self.merged(path, joint, &before)?;
            running = merge::three_way(joint, &saw, &made, &running, member.same_base)
                .map_err(|clash| self.clash(path, &clash, &writers[..k], i))?;
        }
        Ok(running)
    }

    fn clash(&self, path: &RootPath, clash: &Clash, others: &[usize], i: usize) -> Error {
        let mine = &self.members[i];
        let unordered = others.iter().rev().find(|j| !mine.after.contains(j)).or(others.last());
        let other = unordered.map(|j| &self.members[*j].label);
        let names = other.map_or_else(|| mine.label.to_string(), |other| format!("{other} and {}", mine.label));
        let error = Error::failed(format!("rules that conflict: {names}, at {path}"))
            .why(format!("{}: {}", clash.name, clash.how));
        match other {
            Some(other) => error.next(format!(
                "order them: add \"{other}\" to deps of {}, or give the numbers yourself (useradd -u, groupadd -g)",
                mine.label
            )),
            None => error.next("give the numbers yourself (useradd -u, groupadd -g)"),
        }
    }

    fn content(&self, at: Option<(&Entry, &Layer)>, path: &RootPath) -> Result<Vec<u8>> {
        let Some((Entry { node: Node::File { size, .. }, .. }, layer)) = at else { return Ok(vec![]) };
        if *size > LARGEST {
            return Err(Error::failed(format!("{path} is larger than such a file can be")));
        }
        let mut bytes = vec![];
        let file = (self.files)(&layer.digest)?.open_file(path)?;
        file.take(LARGEST).read_to_end(&mut bytes).map_err(|e| Error::io("read", path.as_path(), e))?;
        Ok(bytes)
    }
}

/// Writes merged files as a changeset on top of a stack, and keeps it.
fn keep(store: &Store, stack: &Stack, joined: BTreeMap<RootPath, Vec<u8>>) -> Result<Layer> {
    let time = stack.0.iter().map(|layer| layer.changeset.time).max().unwrap_or_default();
    let mut changeset = Changeset { time, changes: BTreeMap::new() };
    for (path, bytes) in &joined {
        for folder in path.ancestors().filter(|folder| !folder.is_root()) {
            if let Some((entry, _)) = stack.get(&folder) {
                changeset.changes.insert(folder, Change { was: Some(entry.digest()), now: Some(entry.clone()) });
            }
        }
        if let Some((entry, _)) = stack.get(path) {
            let now = Entry {
                node: Node::File { size: bytes.len() as u64, digest: Digest::of(bytes), group: None },
                ..entry.clone()
            };
            changeset.changes.insert(path.clone(), Change { was: Some(entry.digest()), now: Some(now) });
        }
    }
    let scratch = store.scratch()?;
    let files = scratch.folder("merged")?;
    lay_out(&changeset, &joined, &files)?;
    let root = Root::open(&files)?;
    let digest = digest_of(&changeset, |path| root.open_file(path))?;
    store.keep_changeset(digest, changeset, &files)
}

/// Folders and files in the kept form.
fn lay_out(changeset: &Changeset, contents: &BTreeMap<RootPath, Vec<u8>>, to: &Path) -> Result<()> {
    for (path, change) in &changeset.changes {
        let (Some(entry), host) = (&change.now, path.below(to)) else { continue };
        match contents.get(path) {
            Some(bytes) => fs::write(&host, bytes).map_err(|e| Error::io("write", &host, e))?,
            None => fs::create_dir(&host).map_err(|e| Error::io("mkdir", &host, e))?,
        }
        let root = Root::open(to)?;
        let dir = root.folder(&path.parent().unwrap_or_default())?;
        file::chmod_at(dir.as_fd(), path.name(), entry.mode)?;
    }
    set_times(&Root::open(to)?, changeset)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::new(text).unwrap()
    }

    fn file(text: &str) -> Option<Entry> {
        Some(Entry::file(text.as_bytes(), 0o644))
    }

    fn folder() -> Option<Entry> {
        Some(Entry::folder(0o755))
    }

    /// Was, and is.
    type Line<'a> = (&'a str, Option<Entry>, Option<Entry>);

    fn layer(lines: &[Line]) -> Layer {
        let mut changes = BTreeMap::new();
        for (at, was, now) in lines {
            for above in path(at).ancestors().filter(|p| !p.is_root()) {
                changes.entry(above).or_insert(Change { was: folder().map(|e| e.digest()), now: folder() });
            }
            changes.insert(path(at), Change { was: was.as_ref().map(Entry::digest), now: now.clone() });
        }
        let changeset = Changeset { time: 1, changes };
        Layer { digest: Digest::of(format!("{changeset:?}")), changeset: Arc::new(changeset) }
    }

    fn base() -> Stack {
        let lines = [
            ("etc/conf", None, file("base")),
            ("d/x", None, file("x")),
            ("d/y", None, file("y")),
            ("usr", None, folder()),
        ];
        Stack(vec![layer(&lines)])
    }

    fn member(label: &str, lines: &[Line], after: &[usize]) -> Member {
        Member {
            label: label.parse().unwrap(),
            layer: layer(lines),
            after: after.iter().copied().collect(),
            same_base: true,
        }
    }

    /// Two rules that don't depend on each other.
    fn two(a: &[Line], b: &[Line]) -> Result<()> {
        conflicts(&base(), &[member("//a:build", a, &[]), member("//b:build", b, &[])])
    }

    #[test]
    fn rules_that_do_not_meet_go_together() {
        two(&[("usr/a", None, file("1"))], &[("usr/b", None, file("1"))]).unwrap();
    }

    #[test]
    fn what_differs_at_one_path_is_a_conflict_that_says_how() {
        let owned = Entry { uid: 33, ..Entry::file(b"1", 0o644) };
        let capable =
            Entry { xattrs: BTreeMap::from([(b"security.capability".to_vec(), vec![1])]), ..Entry::file(b"1", 0o644) };
        for (other, how) in [
            (file("2"), "contents"),
            (Some(Entry::file(b"1", 0o755)), "0644 and 0755"),
            (Some(owned), "0:0 and 33:0"),
            (Some(capable), "attributes"),
            (Some(Entry::link("x")), "a file, for the other a symbolic link"),
            (folder(), "a folder"),
            (None, "removed"),
        ] {
            let error = two(&[("usr/x", None, file("1"))], &[("usr/x", None, other)]).unwrap_err();
            assert_eq!(error.what(), "rules that conflict: //a:build and //b:build, at /usr/x");
            assert!(error.reasons()[0].contains(how), "{how}: {error}");
            assert!(error.next_step().unwrap().contains("deps of //b:build"));
        }
        two(&[("usr/x", None, file("1"))], &[("usr/x", None, file("1"))]).unwrap();
        two(&[("etc/conf", file("base"), None)], &[("etc/conf", file("base"), None)]).unwrap();
    }

    #[test]
    fn an_ordered_change_is_no_conflict() {
        let first = member("//a:build", &[("etc/conf", file("base"), file("1"))], &[]);
        let second = member("//b:build", &[("etc/conf", file("1"), file("2"))], &[0]);
        conflicts(&base(), &[first, second]).unwrap();
    }

    #[test]
    fn a_removed_or_replaced_folder_and_writes_below_it_conflict() {
        let writes = [("d/new", None, file("1"))];
        assert!(two(&[("d", folder(), None)], &writes).is_err());
        assert!(two(&[("d", folder(), file("now a file"))], &writes).is_err());
        let replaced = [("d/x", file("x"), None), ("d/y", file("y"), None), ("d/mine", None, file("1"))];
        assert!(two(&replaced, &writes).unwrap_err().reasons()[0].contains("replaced"));
        two(&[("d/x", file("x"), None)], &writes).unwrap();
    }

    #[test]
    fn a_changed_folder_and_one_passed_through_conflict() {
        let changed = [("d", folder(), Some(Entry::folder(0o700)))];
        assert!(two(&changed, &[("d/new", None, file("1"))]).is_err());
    }

    #[test]
    fn in_the_workspace_and_in_generated_files_the_later_one_wins() {
        for at in ["workspace/a/x", "var/log/dpkg.log", "etc/passwd-"] {
            two(&[(at, None, file("1"))], &[(at, None, file("2"))]).unwrap();
        }
    }

    #[test]
    fn a_change_of_what_is_another_thing_in_a_fuller_builder_is_a_conflict() {
        let mut late = member("//a:build", &[("etc/conf", None, file("mine"))], &[]);
        conflicts(&base(), std::slice::from_ref(&late)).unwrap();
        late.same_base = false;
        let error = conflicts(&base(), std::slice::from_ref(&late)).unwrap_err();
        assert!(error.what().contains("the builder and //a:build, at /etc/conf"), "{error}");
        let packages = member("//base:build", &[("usr/bin/x", None, file("of a package"))], &[]);
        let mut mine = member("//a:build", &[("usr/bin/x", None, file("mine"))], &[0]);
        mine.same_base = false;
        let error = conflicts(&base(), &[packages, mine]).unwrap_err();
        assert!(error.next_step().unwrap().contains("packages of //a:build"), "{error}");
    }

    #[test]
    fn a_source_that_another_package_wrote_is_an_error() {
        let sources = layer(&[("workspace/a/x.c", None, file("x"))]);
        let package = Package::new("a").unwrap();
        let foreign = member("//b:build", &[("workspace/a/x.c", None, file("y"))], &[]);
        let own = member("//a:gen", &[("workspace/a/x.c", None, file("y"))], &[]);
        assert!(
            foreign_sources(&sources.changeset, &package, &[own.clone(), foreign])
                .unwrap_err()
                .what()
                .contains("//b:build")
        );
        foreign_sources(&sources.changeset, &package, &[own]).unwrap();
    }

    /// A store with a builder that has users, and members that change them.
    struct Users {
        _temp: tempfile::TempDir,
        store: Store,
        stack: Stack,
        members: Vec<Member>,
    }

    const ROOT: &str = "root:x:0:0::/:/bin/sh\n";

    impl Users {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(&temp.path().join("store")).unwrap();
            let mut users = Self { _temp: temp, store, stack: Stack::default(), members: vec![] };
            let base = users.keep(&[("etc/passwd", ROOT), ("etc/other", "1")], None);
            users.stack.0.push(base);
            users
        }

        fn keep(&self, files: &[(&str, &str)], was: Option<&str>) -> Layer {
            let scratch = self.store.scratch().unwrap();
            let folder = scratch.folder("files").unwrap();
            let lines: Vec<Line> = files.iter().map(|(at, text)| (*at, was.and_then(file), file(text))).collect();
            let changeset = layer(&lines).changeset;
            for (at, text) in files {
                fs::create_dir_all(folder.join(at).parent().unwrap()).unwrap();
                fs::write(folder.join(at), text).unwrap();
            }
            let root = Root::open(&folder).unwrap();
            let digest = digest_of(&changeset, |path| root.open_file(path)).unwrap();
            self.store.keep_changeset(digest, (*changeset).clone(), &folder).unwrap()
        }

        fn rule(&mut self, label: &str, line: &str, after: &[usize]) {
            let layer = self.keep(&[("etc/passwd", &format!("{ROOT}{line}"))], Some(ROOT));
            let after: BTreeSet<_> = after.iter().copied().collect();
            self.members.push(Member { label: label.parse().unwrap(), layer, after, same_base: true });
        }

        fn passwd(&self) -> Result<String> {
            let stack = merge(&self.store, self.stack.clone(), self.members.clone())?;
            let (_, layer) = stack.get(&path("etc/passwd")).unwrap();
            let mut text = String::new();
            self.store.read(&layer.digest, &path("etc/passwd"))?.read_to_string(&mut text).unwrap();
            Ok(text)
        }
    }

    #[test]
    fn users_of_rules_that_know_nothing_of_each_other_are_all_there() {
        let mut users = Users::new();
        users.rule("//a:build", "a:x:100:100::/:\n", &[]);
        assert_eq!(users.passwd().unwrap(), format!("{ROOT}a:x:100:100::/:\n"));
        users.rule("//b:build", "b:x:101:101::/:\n", &[]);
        assert_eq!(users.passwd().unwrap(), format!("{ROOT}a:x:100:100::/:\nb:x:101:101::/:\n"));
        // This one saw both, merged, and added a third.
        users.rule("//c:build", "a:x:100:100::/:\nb:x:101:101::/:\nc:x:102:102::/:\n", &[0, 1]);
        assert_eq!(users.passwd().unwrap(), format!("{ROOT}a:x:100:100::/:\nb:x:101:101::/:\nc:x:102:102::/:\n"));
        users.rule("//d:build", "d:x:103:103::/:\n", &[]);
        assert!(users.passwd().unwrap().ends_with("c:x:102:102::/:\nd:x:103:103::/:\n"));
    }

    #[test]
    fn one_number_for_two_users_names_both_rules() {
        let mut users = Users::new();
        users.rule("//a:build", "a:x:100:100::/:\n", &[]);
        users.rule("//b:build", "b:x:100:100::/:\n", &[]);
        let error = users.passwd().unwrap_err();
        assert!(error.what().contains("//a:build and //b:build, at /etc/passwd"), "{error}");
    }

    #[test]
    fn a_user_of_a_fuller_builder_stays() {
        let mut users = Users::new();
        users.rule("//base:build", "redis:x:100:101::/:\n", &[]);
        users.rule("//a:build", "a:x:102:102::/:\n", &[0]);
        users.members[1].same_base = false;
        assert_eq!(users.passwd().unwrap(), format!("{ROOT}redis:x:100:101::/:\na:x:102:102::/:\n"));
    }
}
