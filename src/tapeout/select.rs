//! What one tapeout rule picks.
//!
//! `include` looks at what the rule's dependencies changed, `paths` at all that they see,
//! `from_packages` at what distribution packages own, `run` at what the rule itself changed;
//! `exclude` prunes all four. Then files are moved, `files` are written, the folders above are
//! added, owners and modes set.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::Files;
use super::lookup::Lookup;
use super::names::Names;
use super::packages::Database;
use super::pattern::{Pattern, Patterns};
use super::place::{Placing, add_folders};
use super::why::Why;
use super::written;
use crate::build_file::spec::Tapeout;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::label::Label;
use crate::tree::{Content, Entry, Layer, Node, Picked, RootPath, Selection, Stack};

/// What a rule asks for, and what it may pick from.
pub struct Request<'a> {
    /// What it asks for.
    pub spec: &'a Tapeout,
    /// The rule, for messages.
    pub rule: &'a Label,
    /// The changesets of its transitive dependencies in the order of the view, all but
    /// `//base:build`'s.
    pub deps: &'a [Layer],
    /// All that its dependencies see, the builder included.
    pub view: &'a Stack,
    /// Content.
    pub files: &'a dyn Files,
    /// What its `run` changed.
    pub own: Option<&'a Layer>,
    /// Where sources of `files` are; `None`: the package is built in.
    pub package_folder: Option<&'a Path>,
}

/// What the rule picks: one layer.
pub fn select(request: &Request<'_>) -> Result<Selection> {
    Selecting::new(request).and_then(Selecting::run)
}

/// Takes what the patterns name out of a selection: `image(exclude = …)`, after the joint point.
pub fn prune(selection: &mut Selection, patterns: &[String], view: &Stack) -> Result<Pruned> {
    let mut patterns = Patterns::parse(patterns, view)?;
    let mut pruned = Pruned { counts: vec![0; patterns.all().len()], paths: vec![] };
    selection.retain(|path, _| {
        let taking = patterns.taking(path);
        taking.iter().for_each(|i| pruned.counts[*i] += 1);
        if !taking.is_empty() {
            pruned.paths.push(path.clone());
        }
        taking.is_empty()
    });
    Ok(pruned)
}

/// What [`prune`] took out of a selection.
pub struct Pruned {
    /// How much by each pattern, in their order.
    pub counts: Vec<usize>,
    /// All of it.
    pub paths: Vec<RootPath>,
}

struct Selecting<'a> {
    request: &'a Request<'a>,
    /// The view, and what the rule's own `run` changed.
    seen: Stack,
    exclude: Patterns,
    /// By their paths in the builder.
    picks: BTreeMap<RootPath, Picked>,
}

impl<'a> Selecting<'a> {
    fn new(request: &'a Request<'a>) -> Result<Self> {
        let mut seen = request.view.clone();
        seen.0.extend(request.own.cloned());
        let exclude = Patterns::parse(&request.spec.exclude, &seen)?;
        Ok(Self { request, seen, exclude, picks: BTreeMap::new() })
    }

    fn run(mut self) -> Result<Selection> {
        self.include()?;
        self.paths()?;
        let stanzas = self.packages()?;
        self.changed_by_run();
        let names = Names::read(&self.seen, self.request.files)?;
        self.place(&names, stanzas)
    }

    /// Picks a path if no `exclude` takes it; what picked it first stays the reason.
    fn pick(&mut self, path: &RootPath, why: &Arc<str>) {
        if self.picks.contains_key(path) || !self.exclude.taking(path).is_empty() {
            return;
        }
        let Some((entry, layer)) = self.seen.get(path) else { return };
        let (entry, digest) = (entry.clone(), layer.digest);
        self.keep(path, entry, digest, why);
    }

    fn keep(&mut self, path: &RootPath, entry: Entry, changeset: Digest, why: &Arc<str>) {
        let content = match &entry.node {
            Node::Socket => return,
            Node::File { .. } => Content::Stored { changeset, path: path.clone() },
            _ => Content::None,
        };
        self.picks.insert(path.clone(), Picked { entry: Some(entry), content, why: why.clone() });
    }

    /// Picks that it goes.
    fn remove(&mut self, path: &RootPath, why: &Arc<str>) {
        self.picks.insert(path.clone(), Picked { entry: None, content: Content::None, why: why.clone() });
    }

    fn include(&mut self) -> Result<()> {
        if self.request.spec.include.is_empty() {
            return Ok(());
        }
        let mut patterns = Patterns::parse(&self.request.spec.include, &self.seen)?;
        let whys: Vec<_> = patterns.all().iter().map(|p| Why::Include(p.text().to_string()).shared()).collect();
        let mut layers = self.request.deps.to_vec();
        layers.extend(self.request.own.cloned());
        let changed = changed(&layers);
        self.removals(&layers, &mut patterns, &whys);
        let (layers, root) = (Stack(layers), RootPath::root());
        let mut used = BTreeSet::new();
        for (path, (entry, changeset)) in layers.visible(&root).into_iter().filter(|(path, _)| changed.contains(path)) {
            let taking = patterns.taking(path);
            let Some(first) = taking.first() else { continue };
            let why = &whys[*first];
            used.extend(taking);
            if !self.picks.contains_key(path) && self.exclude.taking(path).is_empty() {
                self.keep(path, entry.clone(), changeset, why);
            }
        }
        let unused = patterns.all().iter().enumerate().filter(|(i, _)| !used.contains(i));
        let errors = unused.map(|(_, pattern)| self.nothing_included(pattern, &changed)).collect();
        Error::all(errors).map_or(Ok(()), Err)?;
        self.links_on_the_way(&patterns)
    }

    /// What the rules removed: on a base image that has it, it goes. Elsewhere [`super::settle`] drops it.
    fn removals(&mut self, layers: &[Layer], patterns: &mut Patterns, whys: &[Arc<str>]) {
        for (path, change) in layers.iter().flat_map(|layer| &layer.changeset.changes) {
            if change.now.is_some() || self.seen.get(path).is_some() || !self.exclude.taking(path).is_empty() {
                continue;
            }
            if let Some(first) = patterns.taking(path).first() {
                self.remove(path, &whys[*first]);
            }
        }
    }

    fn paths(&mut self) -> Result<()> {
        let patterns = Patterns::parse(&self.request.spec.paths, &self.seen)?;
        let mut errors = vec![];
        for pattern in patterns.all() {
            let start = pattern.start();
            let why = Why::Path(pattern.text().to_string()).shared();
            let mut taken: Vec<RootPath> = vec![];
            if !start.is_root() && self.seen.get(&start).is_some() {
                taken.push(start.clone());
            }
            taken.extend(self.seen.visible(&start).into_keys().cloned());
            taken.retain(|path| pattern.takes(path));
            if taken.is_empty() {
                errors.push(self.nothing_at(pattern));
            }
            for path in taken {
                self.pick(&path, &why);
            }
        }
        Error::all(errors).map_or(Ok(()), Err)?;
        self.links_on_the_way(&patterns)
    }

    /// `/lib/x.so`, where `/lib` is a link: without the link the name that was asked for leads nowhere.
    fn links_on_the_way(&mut self, patterns: &Patterns) -> Result<()> {
        for pattern in patterns.all() {
            for link in pattern.links() {
                self.pick(link, &Why::holds(&RootPath::new(pattern.text())?).shared());
            }
        }
        Ok(())
    }

    /// Gives the paragraphs that tell scanners what is inside, by their path.
    fn packages(&mut self) -> Result<Vec<(RootPath, String, Arc<str>)>> {
        let asked = &self.request.spec.from_packages;
        if asked.is_empty() {
            return Ok(vec![]);
        }
        let seen = self.seen.clone();
        let database = Database::open(&seen, self.request.files)?.ok_or_else(|| {
            Error::request(format!("packages {asked:?} can't be picked: the builder has no /var/lib/dpkg/status"))
                .next("pick files with include or paths")
        })?;
        let (mut stanzas, mut errors) = (vec![], vec![]);
        for text in asked {
            let package = match database.package(text) {
                Ok(package) => package,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let why = Why::Package(text.clone()).shared();
            for listed in database.list(package)? {
                let walk = seen.walk(&RootPath::new(&listed)?, false);
                // What the package once installed and a rule removed is not there; so it be.
                for path in walk.links.iter().chain(walk.there.then_some(&walk.path)) {
                    self.pick(path, &why);
                }
            }
            stanzas.push((
                RootPath::new(format!("var/lib/dpkg/status.d/{}", package.name))?,
                package.stanza.clone(),
                why,
            ));
        }
        Error::all(errors).map_or(Ok(stanzas), Err)
    }

    fn changed_by_run(&mut self) {
        let Some(own) = self.request.own else { return };
        let why = Why::Run.shared();
        for (path, change) in &own.changeset.changes {
            if path.top() == b"workspace" || change.passed_through() {
                continue;
            }
            if change.now.is_some() {
                self.pick(path, &why);
            } else {
                self.remove(path, &why);
            }
        }
    }

    fn place(self, names: &Names, stanzas: Vec<(RootPath, String, Arc<str>)>) -> Result<Selection> {
        let spec = self.request.spec;
        let placing = Placing::new(spec, &self.seen)?;
        placing.check(self.picks.keys())?;
        let owner =
            spec.owner.as_deref().map(|text| names.find_owner(text)).transpose().map_err(|e| e.context("owner"))?;
        let mut picks = self.picks;
        if let Some((uid, gid)) = owner {
            for entry in picks.values_mut().filter_map(|picked| picked.entry.as_mut()) {
                (entry.uid, entry.gid) = (uid, gid);
            }
        }
        let mut from: BTreeMap<RootPath, RootPath> = BTreeMap::new();
        // Where nothing moves there is no second list of all files.
        let mut selection = if placing.moves() { Selection::new() } else { std::mem::take(&mut picks) };
        for (path, picked) in picks {
            let Some(placed) = placing.place(&path)? else { continue };
            let placed = through(&self.seen, placed, &mut selection);
            if let Some(other) = from.get(&placed).filter(|_| !picked.entry.as_ref().is_some_and(Entry::is_folder)) {
                return Err(Error::request(format!("two picked files go to {placed}: {other} and {path}"))
                    .next("exclude one of them, or give it another name with rename"));
            }
            from.insert(placed.clone(), path);
            selection.insert(placed, picked);
        }
        let with_group = selection.iter().filter_map(|(path, picked)| Some((path.clone(), group(picked)?)));
        let mut groups: BTreeMap<RootPath, (Digest, u32)> = with_group.collect();
        for (path, stanza, why) in stanzas {
            let picked = Picked {
                entry: Some(Entry::file(stanza.as_bytes(), 0o644)),
                content: Content::Inline(stanza.into_bytes()),
                why,
            };
            selection.entry(path).or_insert(picked);
        }
        let of_record = |owner: &str, group: &str| record_owner(names, owner, group);
        for (path, picked) in written::write(&spec.files, self.request.package_folder, &of_record)? {
            let placed = through(&self.seen, path, &mut selection);
            groups.remove(&placed);
            selection.insert(placed, picked);
        }
        add_folders(&mut selection, &self.seen, &from)?;
        set_modes(&mut selection, &spec.modes, &self.seen)?;
        link_groups(&mut selection, &groups);
        Ok(selection)
    }

    fn nothing_included(&self, pattern: &Pattern, changed: &BTreeSet<RootPath>) -> Error {
        let error = Error::request(format!("include {:?} matches nothing", pattern.text()));
        if self.request.deps.is_empty() && self.request.own.is_none() {
            return error
                .why("no dependency of this rule changed a file")
                .next("add the build rule to deps, or use paths for files of the builder");
        }
        let near = |all: &mut dyn Iterator<Item = &RootPath>| -> Vec<String> {
            let Some(last) = pattern.last_part() else { return vec![] };
            all.filter(|path| last.names(path)).take(5).map(|p| p.to_string()).collect()
        };
        let found = near(&mut changed.iter());
        if !found.is_empty() {
            return error
                .why(format!("its dependencies changed {}", found.join(", ")))
                .next(format!("write {:?}", found[0]));
        }
        let workspace: Vec<_> = changed.iter().filter(|p| p.top() == b"workspace").collect();
        if let Some(last) = pattern.last_part()
            && let Some(below) = workspace
                .iter()
                .find(|path| Pattern::parse(&format!("/workspace/{}", last_text(&last))).is_ok_and(|p| p.names(path)))
        {
            return error
                .why(format!("its dependencies made {below}, which is below /workspace"))
                .next(format!("install it in a rule's run, or write {:?}", below.to_string()));
        }
        let start = pattern.start();
        let start = start.parent().unwrap_or_default();
        let view = self.seen.visible(&start);
        let taken: Vec<_> = view.keys().filter(|path| pattern.takes(path)).take(3).map(|p| p.to_string()).collect();
        if !taken.is_empty() {
            return error
                .why(format!("the builder has {}, but no dependency of this rule changed it", taken.join(", ")))
                .next("use paths for files of the builder, or packages for what a distribution package owns");
        }
        let some: Vec<_> = changed.iter().filter(|p| p.top() != b"workspace").take(5).map(|p| p.to_string()).collect();
        match some.is_empty() {
            true => error
                .why("its dependencies changed nothing outside of /workspace")
                .next("install into / in a rule's run, or write a pattern that begins with /workspace"),
            false => error.why(format!(
                "its dependencies changed {}: {}{}",
                if changed.len() == 1 { "one path".to_string() } else { format!("{} paths", changed.len()) },
                some.join(", "),
                if some.len() < changed.len() { ", …" } else { "" }
            )),
        }
    }

    fn nothing_at(&self, pattern: &Pattern) -> Error {
        let error = Error::request(format!("paths {:?} matches nothing", pattern.text()));
        let Some(last) = pattern.last_part() else { return error };
        let near: Vec<_> = self
            .seen
            .below(&RootPath::root())
            .into_keys()
            .filter(|path| last.names(path))
            .take(5)
            .map(|p| p.to_string())
            .collect();
        match near.first() {
            Some(first) => {
                error.why(format!("of that name the builder has {}", near.join(", "))).next(format!("write {first:?}"))
            }
            None => error
                .why("neither the builder nor a dependency has a file of that name")
                .next("add the package that has it to the packages of a rule, or the rule that makes it to deps"),
        }
    }
}

fn last_text(pattern: &Pattern) -> String {
    format!("**/{}", pattern.text().trim_end_matches('/').rsplit('/').next().unwrap_or_default())
}

/// The paths that some layer changed, folders that it only passed through left out.
fn changed(layers: &[Layer]) -> BTreeSet<RootPath> {
    let changes = layers.iter().flat_map(|layer| layer.changeset.changes.iter());
    changes
        .filter(|(_, change)| change.now.is_some() && !change.passed_through())
        .map(|(path, _)| path.clone())
        .collect()
}

/// A place may lead through links that the builder has (`/bin` is one to `/usr/bin`): the file goes
/// where the link leads, and the link comes along.
fn through(seen: &Stack, placed: RootPath, selection: &mut Selection) -> RootPath {
    let walk = seen.walk(&placed, false);
    for link in walk.links {
        if let Some(entry) = seen.entry(&link).cloned() {
            let why = Why::holds(&placed).shared();
            selection.entry(link).or_insert(Picked { entry: Some(entry), content: Content::None, why });
        }
    }
    walk.path
}

/// Owner and group of a record: root's unless said; a group that isn't said is the owner's.
fn record_owner(names: &Names, owner: &str, group: &str) -> Result<(u32, u32)> {
    let owner = if owner.is_empty() { "0" } else { owner };
    match group {
        "" => names.find_owner(owner),
        _ => names.find_owner(&format!("{owner}:{group}")),
    }
}

/// Modes by pattern, over where files are in the end; exactly what a pattern names.
fn set_modes(selection: &mut Selection, modes: &BTreeMap<String, u32>, view: &dyn Lookup) -> Result<()> {
    for (text, mode) in modes {
        if mode & !0o7777 != 0 {
            return Err(Error::request(format!("modes: not a mode for {text:?}: 0o{mode:o}"))
                .next("write permission bits as 0o644"));
        }
        let pattern = Pattern::parse(text)?.through(view).map_err(|e| e.context("modes"))?;
        let mut found = false;
        for (path, picked) in selection.iter_mut().filter(|(path, _)| pattern.names(path)) {
            found = true;
            if let Some(entry) = picked.entry.as_mut().filter(|e| !matches!(e.node, Node::Link { .. })) {
                entry.mode = *mode;
            }
            debug_assert!(!path.is_root());
        }
        if !found {
            return Err(Error::request(format!("modes: {text:?} matches nothing that was picked")).next(
                "a mode's pattern is over where files are in the image, and names files themselves, not their folder",
            ));
        }
    }
    Ok(())
}

/// The changeset and its group: names with the same are one file.
fn group(picked: &Picked) -> Option<(Digest, u32)> {
    match (&picked.content, picked.entry.as_ref().map(|entry| &entry.node)) {
        (Content::Stored { changeset, .. }, Some(Node::File { group, .. })) => group.map(|group| (*changeset, group)),
        _ => None,
    }
}

/// Numbers hard links anew: numbers are those of one changeset, and a selection mixes several.
fn link_groups(selection: &mut Selection, groups: &BTreeMap<RootPath, (Digest, u32)>) {
    let mut members: HashMap<(Digest, u32, Digest), Vec<RootPath>> = HashMap::new();
    let mut order = vec![];
    for (path, picked) in selection.iter_mut() {
        let Some(entry) = &mut picked.entry else { continue };
        if let Node::File { group, .. } = &mut entry.node {
            *group = None;
        }
        // Names that got another mode or owner are no longer one file.
        if let Some((changeset, number)) = groups.get(path) {
            let key = (*changeset, *number, entry.digest());
            let of_key = members.entry(key).or_default();
            if of_key.is_empty() {
                order.push(key);
            }
            of_key.push(path.clone());
        }
    }
    let linked = order.iter().filter_map(|key| members.get(key)).filter(|paths| paths.len() > 1);
    for (number, paths) in (0..).zip(linked) {
        for path in paths {
            if let Some(Entry { node: Node::File { group, .. }, .. }) =
                selection.get_mut(path).and_then(|p| p.entry.as_mut())
            {
                *group = Some(number);
            }
        }
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
