//! Which packages a set of names needs, at which versions: apt's rules, solved by SAT.
//!
//! `Pre-Depends` and `Depends` must hold, alternatives are tried in their order, something provided
//! counts (with its version, if the relation has one), `Conflicts` and `Breaks` must not. The highest
//! version wins. Recommended packages are not taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use resolvo::utils::{Pool, VersionSet};
use resolvo::{
    Candidates, Condition, ConditionId, ConditionalRequirement, Dependencies, DependencyProvider,
    HintDependenciesAvailable, Interner, KnownDependencies, NameId, Problem, Requirement, SolvableId, Solver,
    SolverCache, StringId, UnsolvableOrCancelled, VersionSetId, VersionSetUnionId,
};

use super::index::{Index, Package};
use super::relation::Relation;
use crate::error::{Error, Result};
use crate::nearest::nearest;

/// A package that was chosen, and which of the chosen ones it needs.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// The package.
    pub package: &'a Package,
    /// Names, sorted.
    pub depends: BTreeSet<String>,
    /// Those of them that it needs configured before it is unpacked.
    pub before: BTreeSet<String>,
}

/// What debootstrap's minbase variant has: essential and required packages, and apt; and, since our
/// root is merged before anything is unpacked, what says so.
pub fn minbase(index: &Index) -> Vec<String> {
    let newest = index.packages.values().filter_map(|versions| versions.first());
    let mut names: Vec<_> =
        newest.filter(|p| p.essential || p.priority == "required").map(|p| p.name.clone()).collect();
    let more = ["apt", "usr-is-merged"].into_iter().filter(|name| index.packages.contains_key(*name));
    names.extend(more.map(String::from));
    names.sort();
    names.dedup();
    names
}

/// The packages that `names` need, all together. `locked` are versions that must be taken where such
/// a package is.
pub fn resolve<'a>(
    index: &'a Index,
    names: &[String],
    locked: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Chosen<'a>>> {
    let provider = Provider { index, locked, pool: Pool::default() };
    let wanted: Vec<_> = names.iter().map(|name| Relation { name: name.clone(), version: None }).collect();
    let is_unknown = |relation: &&Relation| provider.alternatives(std::slice::from_ref(*relation)).is_empty();
    let unknown = wanted.iter().filter(is_unknown).map(|relation| unknown(index, &relation.name));
    if let Some(error) = Error::all(unknown.collect()) {
        return Err(error);
    }
    let requirements = wanted.iter().map(|relation| provider.requirement(std::slice::from_ref(relation))).collect();
    let mut solver = Solver::new(provider);
    let solved = solver.solve(Problem::new().requirements(requirements)).map_err(|problem| match problem {
        UnsolvableOrCancelled::Unsolvable(conflict) => {
            let why = conflict.display_user_friendly(&solver).to_string();
            Error::failed(format!("no versions of these packages go together: {}", names.join(", ")))
                .why(why.trim_end().to_string())
        }
        UnsolvableOrCancelled::Cancelled(_) => Error::failed("resolving packages was cancelled"),
    })?;
    let provider = solver.provider();
    let chosen: BTreeMap<&str, &Package> =
        solved.into_iter().map(|id| provider.package(id)).map(|p| (p.name.as_str(), p)).collect();
    Ok(closure(index, &wanted, &chosen))
}

fn unknown(index: &Index, name: &str) -> Error {
    let error = Error::request(format!("there is no package {name:?} in the index"));
    let plain = |name: &str| name.replace(['-', '.', '_'], "");
    let near = index.packages.keys().find(|known| plain(known) == plain(name)).cloned();
    match near.or_else(|| nearest(name, index.packages.keys().map(String::as_str))) {
        Some(near) => error.next(format!("did you mean {near}?")),
        None => error
            .why(format!("read from {}", index.pinned.iter().map(|p| p.suite.as_str()).collect::<Vec<_>>().join(", "))),
    }
}

/// What is reached from the wanted names, with each alternative decided.
fn closure<'a>(
    index: &Index,
    wanted: &[Relation],
    chosen: &BTreeMap<&str, &'a Package>,
) -> BTreeMap<String, Chosen<'a>> {
    let mut reached = BTreeMap::new();
    let mut todo: Vec<&Package> =
        wanted.iter().filter_map(|relation| satisfied_by(index, std::slice::from_ref(relation), chosen)).collect();
    while let Some(package) = todo.pop() {
        if reached.contains_key(&package.name) {
            continue;
        }
        let needed = |groups: &[Vec<Relation>]| -> Vec<&Package> {
            groups
                .iter()
                .filter_map(|group| satisfied_by(index, group, chosen))
                .filter(|p| p.name != package.name)
                .collect()
        };
        let names = |packages: Vec<&Package>| packages.into_iter().map(|p| p.name.clone()).collect();
        todo.extend(needed(&package.depends));
        if let Some(package) = chosen.get(package.name.as_str()) {
            let (depends, before) =
                (names(needed(&package.depends)), names(needed(&package.depends[..package.pre_depends])));
            reached.insert(package.name.clone(), Chosen { package, depends, before });
        }
    }
    reached
}

/// The chosen package that satisfies the first alternative that is satisfied.
pub fn satisfied_by<'a>(
    index: &Index,
    group: &[Relation],
    chosen: &BTreeMap<&str, &'a Package>,
) -> Option<&'a Package> {
    group.iter().find_map(|relation| {
        let real = chosen.get(relation.name.as_str()).filter(|p| relation.fits(&p.version));
        let providers = index.providers.get(&relation.name).into_iter().flatten();
        let mut provided = providers
            .filter_map(|name| chosen.get(name.as_str()))
            .filter(|p| p.provides.iter().any(|given| relation.fits_provided(given)));
        real.or_else(|| provided.next()).copied()
    })
}

/// Some versions of one package, by a relation.
#[derive(Debug, Clone)]
struct Set {
    relation: Relation,
    /// Those that provide what the relation names, not those that are it.
    provided: bool,
    /// All others.
    not: bool,
}

impl Set {
    fn holds(&self, package: &Package) -> bool {
        let fits = if self.provided {
            package.provides.iter().any(|given| self.relation.fits_provided(given))
        } else {
            self.relation.fits(&package.version)
        };
        fits != self.not
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.not { "not " } else { "" };
        match (&self.relation.version, self.provided) {
            (_, true) => write!(f, "{not}as {}", self.relation),
            (Some((operator, version)), false) => write!(f, "{not}{operator} {version}"),
            (None, false) => f.write_str(if self.not { "none" } else { "*" }),
        }
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        (self.provided, self.not, &self.relation) == (other.provided, other.not, &other.relation)
    }
}

impl Eq for Set {}

impl Hash for Set {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Versions that are equal may be written differently, so only the name counts here.
        (&self.relation.name, self.provided, self.not).hash(state);
    }
}

/// A version, as its place in the index.
#[derive(Debug, Clone)]
struct Version {
    place: usize,
    shown: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl VersionSet for Set {
    type V = Version;
}

struct Provider<'a, 'l> {
    index: &'a Index,
    locked: &'l BTreeMap<String, String>,
    pool: Pool<Set>,
}

impl<'a> Provider<'a, '_> {
    fn package(&self, id: SolvableId) -> &'a Package {
        let solvable = self.pool.resolve_solvable(id);
        &self.index.packages[self.pool.resolve_package_name(solvable.name)][solvable.record.place]
    }

    fn set(&self, package: &str, relation: &Relation, provided: bool, not: bool) -> VersionSetId {
        let name = self.pool.intern_package_name(package);
        self.pool.intern_version_set(name, Set { relation: relation.clone(), provided, not })
    }

    /// All that satisfies a group, as sets of versions of real packages, in order.
    fn alternatives(&self, group: &[Relation]) -> Vec<VersionSetId> {
        let mut sets = vec![];
        for relation in group {
            if self
                .index
                .packages
                .get(&relation.name)
                .is_some_and(|versions| versions.iter().any(|p| relation.fits(&p.version)))
            {
                sets.push(self.set(&relation.name, relation, false, false));
            }
            for name in
                self.index.providers.get(&relation.name).into_iter().flatten().filter(|name| **name != relation.name)
            {
                if self.index.packages[name]
                    .iter()
                    .any(|p| p.provides.iter().any(|given| relation.fits_provided(given)))
                {
                    sets.push(self.set(name, relation, true, false));
                }
            }
        }
        sets
    }

    fn requirement(&self, group: &[Relation]) -> ConditionalRequirement {
        let sets = self.alternatives(group);
        match (sets.as_slice(), group.first()) {
            // Nothing satisfies it: the solver says so.
            ([], Some(first)) => self.set(&first.name, first, false, false).into(),
            ([one], _) => (*one).into(),
            ([first, rest @ ..], _) => {
                Requirement::Union(self.pool.intern_version_set_union(*first, rest.iter().copied())).into()
            }
            ([], None) => Requirement::default().into(),
        }
    }

    fn constraints(&self, package: &Package) -> Vec<VersionSetId> {
        let mut sets = vec![];
        for relation in package.conflicts.iter().filter(|r| r.name != package.name) {
            if self.index.packages.contains_key(&relation.name) {
                sets.push(self.set(&relation.name, relation, false, true));
            }
            for name in self
                .index
                .providers
                .get(&relation.name)
                .into_iter()
                .flatten()
                .filter(|n| **n != package.name && **n != relation.name)
            {
                sets.push(self.set(name, relation, true, true));
            }
        }
        sets
    }
}

impl Interner for Provider<'_, '_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl fmt::Display + '_ {
        let package = self.package(solvable);
        format!("{} {}", package.name, package.version)
    }

    fn display_name(&self, name: NameId) -> impl fmt::Display + '_ {
        self.pool.resolve_package_name(name)
    }

    fn display_version_set(&self, version_set: VersionSetId) -> impl fmt::Display + '_ {
        self.pool.resolve_version_set(version_set)
    }

    fn display_string(&self, string: StringId) -> impl fmt::Display + '_ {
        self.pool.resolve_string(string)
    }

    fn version_set_name(&self, version_set: VersionSetId) -> NameId {
        self.pool.resolve_version_set_package_name(version_set)
    }

    fn solvable_name(&self, solvable: SolvableId) -> NameId {
        self.pool.resolve_solvable(solvable).name
    }

    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.pool.resolve_version_set_union(union)
    }

    fn resolve_condition(&self, condition: ConditionId) -> Condition {
        self.pool.resolve_condition(condition).clone()
    }
}

impl DependencyProvider for Provider<'_, '_> {
    async fn filter_candidates(
        &self,
        candidates: &[SolvableId],
        version_set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let set = self.pool.resolve_version_set(version_set);
        candidates.iter().copied().filter(|id| set.holds(self.package(*id)) != inverse).collect()
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates> {
        let text = self.pool.resolve_package_name(name);
        let versions = self.index.packages.get(text)?;
        let place = |(place, package): (usize, &Package)| {
            self.pool.intern_solvable(name, Version { place, shown: package.version.to_string() })
        };
        let candidates: Vec<_> = versions.iter().enumerate().map(place).collect();
        let locked = self.locked.get(text).and_then(|version| {
            candidates.iter().copied().find(|id| self.package(*id).version.to_string() == *version)
        });
        Some(Candidates {
            locked,
            candidates,
            hint_dependencies_available: HintDependenciesAvailable::None,
            ..Candidates::default()
        })
    }

    async fn sort_candidates(&self, _: &SolverCache<Self>, solvables: &mut [SolvableId]) {
        // The index has falling versions.
        solvables.sort_by_key(|id| self.pool.resolve_solvable(*id).record.place);
    }

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let package = self.package(solvable);
        let requirements = package.depends.iter().map(|group| self.requirement(group)).collect();
        Dependencies::Known(KnownDependencies { requirements, constrains: self.constraints(package) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of `name version; Field: value; …`.
    fn index(lines: &str) -> Index {
        let digest = crate::digest::Digest::of("x").hex();
        let stanza = |line: &str| {
            let mut parts = line.split(';').map(str::trim);
            let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
            let fields: Vec<_> = parts.collect();
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {digest}\n{}\n\n",
                fields.join("\n")
            )
        };
        Index::of(&lines.lines().map(str::trim).filter(|l| !l.is_empty()).map(stanza).collect::<String>())
    }

    fn solve(lines: &str, names: &[&str]) -> Result<Vec<String>> {
        let index = index(lines);
        let names: Vec<_> = names.iter().map(|n| n.to_string()).collect();
        let chosen = resolve(&index, &names, &BTreeMap::new())?;
        Ok(chosen.values().map(|c| format!("{} {}", c.package.name, c.package.version)).collect())
    }

    #[test]
    fn the_highest_version_wins_and_all_that_is_needed_comes_along() {
        let lines = "a 1\na 2~rc\na 1.10; Depends: b (>= 1)\nb 0.9\nb 1; Pre-Depends: c\nc 1; Recommends: d\nd 1";
        assert_eq!(solve(lines, &["a"]).unwrap(), ["a 2~rc"]);
        assert_eq!(solve(&lines.replace("a 2~rc\n", ""), &["a"]).unwrap(), ["a 1.10", "b 1", "c 1"]);
    }

    #[test]
    fn alternatives_are_tried_in_their_order() {
        let lines = "a 1; Depends: x | y\nx 1\ny 1\nb 1; Depends: y\nc 1; Conflicts: x";
        assert_eq!(solve(lines, &["a"]).unwrap(), ["a 1", "x 1"]);
        assert_eq!(solve(lines, &["a", "c"]).unwrap(), ["a 1", "c 1", "y 1"]);
        assert_eq!(solve("a 1; Depends: none | y\ny 1", &["a"]).unwrap(), ["a 1", "y 1"]);
    }

    #[test]
    fn what_is_provided_counts_with_its_version() {
        let lines = "a 1; Depends: awk\nb 1; Depends: lib (>= 2)\nmawk 1; Provides: awk\nold 1; Provides: lib (= 1)\nnew 1; Provides: lib (= 2)\nbare 1; Provides: lib";
        assert_eq!(solve(lines, &["a"]).unwrap(), ["a 1", "mawk 1"]);
        assert_eq!(solve(lines, &["b"]).unwrap(), ["b 1", "new 1"]);
    }

    #[test]
    fn conflicts_hold_also_against_what_is_provided_but_not_against_oneself() {
        let lines = "exim 1; Provides: mta; Conflicts: mta\npostfix 1; Provides: mta; Conflicts: mta\na 1; Depends: exim\nb 1; Breaks: c (<< 2)\nc 1";
        assert_eq!(solve(lines, &["exim"]).unwrap(), ["exim 1"]);
        assert!(solve(lines, &["a", "postfix"]).is_err());
        assert!(solve(lines, &["b", "c"]).is_err());
        assert!(solve(&format!("{lines}\nc 2"), &["b", "c"]).is_ok());
    }

    #[test]
    fn a_locked_version_stays() {
        let index = index("a 1; Depends: b\nb 1\nb 2");
        let locked = BTreeMap::from([("b".to_string(), "1".to_string())]);
        let chosen = resolve(&index, &["a".into()], &locked).unwrap();
        assert_eq!(chosen["b"].package.version.to_string(), "1");
        assert_eq!(chosen["a"].depends, BTreeSet::from(["b".to_string()]));
    }

    #[test]
    fn an_error_says_who_needs_what() {
        let error = solve("a 1; Depends: b\nb 1; Depends: c (>= 2)\nc 1", &["a"]).unwrap_err();
        let text = error.to_string();
        assert!(["a", "b 1", "c", ">= 2"].iter().all(|part| text.contains(part)), "{text}");
        let error = solve("libfoo-dev 1", &["libfoodev"]).unwrap_err();
        assert!(error.next_step().unwrap().contains("libfoo-dev"));
        let error = solve("a 1\nlibfoo-dev 1", &["libfodev", "a", "zlob"]).unwrap_err();
        let others: Vec<_> = error.others().iter().map(Error::what).collect();
        assert_eq!(error.what(), "there is no package \"libfodev\" in the index");
        assert_eq!(others, ["there is no package \"zlob\" in the index"]);
    }

    #[test]
    fn minbase_is_what_is_essential_or_required_and_apt() {
        let index =
            index("e 1; Essential: yes\nr 1; Priority: required\no 1; Priority: optional\napt 1; Priority: important");
        assert_eq!(minbase(&index), ["apt", "e", "r"]);
    }
}
