//! Why a rule runs again: what made its key, by name, against what made it the last time.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::build_file::spec::{Id, Spec};
use crate::digest::Digest;
use crate::error::Result;
use crate::execute::build::{Build, Forecast, Output};
use crate::execute::request::Request;
use crate::execute::{fetch, snapshot, unpack};
use crate::store::Store;
use crate::store::runs::{Run, Whose};
use crate::tree::{Changeset, Stack};

/// By name, all that makes a key.
type Parts = BTreeMap<String, Value>;

/// What is said of one instance.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// Which.
    #[serde(flatten)]
    pub whose: Whose,
    /// What a build would do with it, and why.
    pub state: State,
    /// What is not as it was, for [`State::Changed`], [`State::Waits`] and [`State::Otherwise`].
    pub changes: Vec<Difference>,
    /// Dependencies that would run first: with what they come to, more may have changed.
    pub first: Vec<String>,
}

/// What a build would do with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing: its result is there, and it is as it was the last time.
    Cached,
    /// Nothing: its result is there from an earlier build, though it is not as it was the last time.
    Otherwise,
    /// It has nothing to run.
    Group,
    /// It runs: it is written anew at each build.
    Always,
    /// It runs: no run of it is known.
    Never,
    /// It runs: it is not as it was.
    Changed,
    /// It runs again: the last time it failed, as it is now.
    Failed,
    /// It runs again, as it was: its result is not in the store any more.
    Gone,
    /// What it stands on runs first.
    Waits,
}

/// One part that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `run`, `env CC`, `sources`, `dependency //lib:build`, …
    pub part: String,
    /// As it was; `None`: it wasn't there.
    pub old: Option<Value>,
    /// As it is; `None`: it isn't there any more.
    pub new: Option<Value>,
    /// For what has a digest: which files differ, where both are still in the store.
    pub files: Vec<String>,
}

/// So many files are named of one changeset.
const MOST_FILES: usize = 10;

impl Build<'_> {
    /// Which rule under which values.
    pub fn whose(&self, id: Id) -> Whose {
        let instance = &self.graph.instances[id];
        let value = |value| serde_json::to_value(value).unwrap_or_default();
        Whose {
            workspace: self.options.workspace.clone(),
            label: instance.label.clone(),
            image: instance.image.clone(),
            parameters: instance.parameters.iter().map(|(name, v)| (name.clone(), value(v))).collect(),
        }
    }

    /// Remembers a run for `log` and `explain`. Nothing stands on it, so a failure fails no build.
    pub(super) fn remember(&self, id: Id, keys: (&Digest, &Digest), made: Option<Digest>, request: Option<&Request>) {
        let _ = self.store.remember_run(self.whose(id), keys, made, || self.parts(id, request).unwrap_or_default());
    }

    /// Keeps what a failed rule left, for `shell --failed`.
    pub(super) fn keep_left(&self, id: Id, request: &Request, stack: &Stack, upper: &Path) -> Result<()> {
        let stack: Vec<_> = stack.0.iter().map(|layer| layer.digest).collect();
        let about = serde_json::to_vec(&(request, stack)).unwrap_or_default();
        self.store.keep_left(&self.whose(id), upper, &about)
    }

    /// What makes the key of an instance, by name. `request`: of a rule, where it is at hand.
    fn parts(&self, id: Id, request: Option<&Request>) -> Result<Parts> {
        let instance = &self.graph.instances[id];
        let json = |value: Value| match value {
            Value::Object(map) => map.into_iter().collect::<Parts>(),
            other => Parts::from([("value".to_string(), other)]),
        };
        let mut parts = match &instance.spec {
            Spec::Rule(rule) => {
                let drafted;
                let request = match request {
                    Some(request) => request,
                    None => match self.draft(id)? {
                        Some((draft, ..)) => {
                            drafted = draft;
                            &drafted
                        }
                        None => return Ok(Parts::new()),
                    },
                };
                let mut parts = json(serde_json::to_value(request).unwrap_or_default());
                // The snapshot is told by what gave it, the folder by the label; the script as it is written.
                parts.retain(|name, _| name != "snapshot" && name != "working_dir");
                let steps = parts.remove("steps").unwrap_or_default();
                parts.insert("run".into(), steps);
                parts.insert("builder".into(), digests(&self.base.changesets));
                parts.insert("user".into(), rule.user.clone().map_or(Value::Null, Value::from));
                // They stand right above the builder's. A draft has no snapshot yet.
                let sources = match request.snapshot.get(self.base.changesets.len()) {
                    Some(sources) => *sources,
                    None => self.sources(instance, &rule.sources)?.digest,
                };
                parts.insert("sources".into(), Value::from(sources.to_string()));
                if !snapshot::is_base_build(self.graph, id) {
                    // The request has the files to install; for others it is a union of names.
                    parts.insert("packages".into(), instance.packages.clone().into());
                }
                parts
            }
            Spec::Pod(_) => Parts::new(),
            spec => {
                let mut spec = json(serde_json::to_value(spec).unwrap_or_default());
                // Each kind stands below its own name.
                let inner = spec.pop_first().map(|(_, inner)| json(inner)).unwrap_or_default();
                inner.into_iter().filter(|(name, _)| !matches!(name.as_str(), "base" | "urls")).collect()
            }
        };
        match &instance.spec {
            Spec::Archive(_) | Spec::Git(_) => {
                let named = match &instance.spec {
                    Spec::Archive(archive) => &archive.patches,
                    Spec::Git(git) => &git.patches,
                    _ => return Ok(parts),
                };
                let patches = named.iter().map(|path| {
                    let digest = fetch::patch(self, instance, path)?;
                    Ok((path.clone(), Value::from(digest.to_string())))
                });
                parts.insert("patches".into(), Value::Object(patches.collect::<Result<_>>()?));
                parts.insert("time".into(), self.time(id).into());
                return Ok(parts);
            }
            Spec::Tapeout(_) | Spec::Image(_) => {
                parts.insert("tapeout's version".into(), env!("CARGO_PKG_VERSION").into());
                parts.insert("builder".into(), digests(&self.base.changesets));
            }
            _ => {}
        }
        for (name, value) in instance.parameters.iter() {
            parts.insert(format!("parameter {name}"), serde_json::to_value(value).unwrap_or_default());
        }
        for (name, digest) in self.below(id) {
            parts.insert(format!("dependency {name}"), digest.map_or(Value::Null, |d| Value::from(d.to_string())));
        }
        Ok(parts)
    }

    /// What gives an instance its files, by name; `None`: it has not come to anything as it is now.
    fn below(&self, id: Id) -> BTreeMap<String, Option<Digest>> {
        let mut below = BTreeMap::new();
        for member in snapshot::members(self.graph, &self.order, id) {
            let digest = match self.output(member) {
                Err(_) => None,
                Ok(Output::Changeset(None) | Output::Pod(_)) => continue,
                Ok(Output::Changeset(digest)) => *digest,
                Ok(Output::Selection { selection, .. }) => Some(*selection),
                Ok(Output::Image(image)) => Some(image.manifest.digest),
            };
            let label = &self.graph.instances[member].label;
            let taken = |name: &str| below.contains_key(name);
            let mut name = label.to_string();
            let mut n = 2;
            while taken(&name) {
                name = format!("{label} #{n}");
                n += 1;
            }
            below.insert(name, digest);
        }
        below
    }

    /// The key of an instance; all below it must have come to something.
    fn key_of(&self, id: Id) -> Result<Option<Digest>> {
        let instance = &self.graph.instances[id];
        Ok(match &instance.spec {
            Spec::Rule(_) => self.request(id)?.map(|(request, _)| request.key()),
            Spec::Archive(_) | Spec::Git(_) => Some(unpack::key_of(self, instance, self.time(id))?),
            Spec::Tapeout(_) => match self.output(id) {
                Ok(Output::Selection { own, .. }) => Some(self.selection_key(id, *own)?),
                _ if self.request(id)?.is_none() => Some(self.selection_key(id, None)?),
                _ => None,
            },
            Spec::Image(image) => Some(self.image_key(id, image)?),
            Spec::Pod(_) => None,
        })
    }

    /// Why a build would run this instance, or not; `forecasts` are those of all instances.
    pub fn explain(&self, id: Id, forecasts: &[Forecast]) -> Result<Explained> {
        let instance = &self.graph.instances[id];
        let whose = self.whose(id);
        let mut below = self.order.as_written(id);
        below.sort_unstable();
        let first = (below.into_iter())
            .filter(|&below| forecasts[below] == Forecast::Run)
            .map(|below| self.graph.instances[below].label.to_string())
            .collect();
        let mut explained = Explained { whose, state: State::Always, changes: vec![], first };
        if forecasts[id] == Forecast::Group {
            explained.state = State::Group;
            return Ok(explained);
        }
        if let Spec::Pod(_) = &instance.spec {
            return Ok(explained);
        }
        let Some(last) = self.last_run(&explained.whose)? else {
            explained.state = match forecasts[id] {
                Forecast::Cached => State::Cached,
                _ => State::Never,
            };
            return Ok(explained);
        };
        let key = if forecasts[id] == Forecast::Unknown { None } else { self.key_of(id)? };
        if key == Some(last.key) {
            explained.state = match (forecasts[id], last.made) {
                (Forecast::Cached, _) => State::Cached,
                (_, None) => State::Failed,
                _ => State::Gone,
            };
            return Ok(explained);
        }
        explained.state = match forecasts[id] {
            Forecast::Cached => State::Otherwise,
            Forecast::Unknown => State::Waits,
            _ => State::Changed,
        };
        let mut now = self.parts(id, None)?;
        // What isn't known yet is told as what runs first.
        now.retain(|part, value| {
            !(part.starts_with("dependency ") && value.is_null() && last.parts.contains_key(part))
        });
        let unknown = |part: &String| part.starts_with("dependency ") && !now.contains_key(part);
        let waits = !explained.first.is_empty();
        let old = last.parts.into_iter().filter(|(part, _)| !(waits && unknown(part))).collect();
        explained.changes = differences(&old, &now, &|old, new| files(self.store, old, new));
        Ok(explained)
    }

    /// The last run under the same values, else the last of all.
    fn last_run(&self, whose: &Whose) -> Result<Option<Run>> {
        let mut runs = self.store.runs(&whose.workspace, &whose.label)?;
        Ok(match runs.iter().position(|run| run.whose == *whose) {
            Some(same) => Some(runs.swap_remove(same)),
            None => runs.pop(),
        })
    }
}

fn digests(digests: &[Digest]) -> Value {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().into()
}

/// Part by part; maps one level deeper, so that each variable and limit is one.
fn differences(old: &Parts, new: &Parts, files: &dyn Fn(&str, &str) -> Vec<String>) -> Vec<Difference> {
    let (old, new) = (flat(old), flat(new));
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut found = vec![];
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        if was == is {
            continue;
        }
        let files = match (was, is) {
            (Some(Value::String(was)), Some(Value::String(is))) => files(was, is),
            _ => vec![],
        };
        found.push(Difference { part: name.clone(), old: was.cloned(), new: is.cloned(), files });
    }
    found
}

fn flat(parts: &Parts) -> Parts {
    let mut flat = Parts::new();
    for (name, value) in parts {
        match value {
            Value::Object(map) => flat.extend(map.iter().map(|(key, value)| (format!("{name} {key}"), value.clone()))),
            Value::Null => {}
            other => drop(flat.insert(name.clone(), other.clone())),
        }
    }
    flat
}

/// Which files two changesets don't have alike; nothing where they are not both there.
fn files(store: &Store, old: &str, new: &str) -> Vec<String> {
    let read = |text: &str| {
        let digest: Digest = text.parse().ok()?;
        store.has_changeset(&digest).then(|| store.changeset(&digest).ok()).flatten()
    };
    match (read(old), read(new)) {
        (Some(old), Some(new)) => changed_files(&old.changeset, &new.changeset),
        _ => vec![],
    }
}

fn changed_files(old: &Changeset, new: &Changeset) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = old.changes.keys().chain(new.changes.keys()).collect();
    let mut found = vec![];
    for path in paths {
        let at = |changeset: &Changeset| changeset.changes.get(path).and_then(|change| change.now.clone());
        let verb = match (at(old), at(new)) {
            (Some(was), Some(is)) if was.same_as(&is) => continue,
            (None, None) => continue,
            (Some(_), Some(_)) => "changed",
            (None, Some(_)) => "new",
            (Some(_), None) => "gone",
        };
        found.push(format!("{verb} {path}"));
    }
    let more = found.len().saturating_sub(MOST_FILES);
    found.truncate(MOST_FILES);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tree::{Change, Entry, RootPath};

    fn parts(value: Value) -> Parts {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn each_variable_limit_and_dependency_is_a_part_of_its_own() {
        let old =
            parts(json!({"env": {"A": "1", "B": "2"}, "run": ["make"], "dependency //b:c": "sha256:1", "user": null}));
        let new =
            parts(json!({"env": {"A": "1", "B": "3", "C": "4"}, "run": ["make"], "dependency //b:c": "sha256:2"}));
        let found = differences(&old, &new, &|old, new| vec![format!("{old} {new}")]);
        let told: Vec<_> = found.iter().map(|d| (d.part.as_str(), d.old.clone(), d.new.clone())).collect();
        assert_eq!(
            told,
            [
                ("dependency //b:c", Some("sha256:1".into()), Some("sha256:2".into())),
                ("env B", Some("2".into()), Some("3".into())),
                ("env C", None, Some("4".into())),
            ]
        );
        assert_eq!(found[0].files, ["sha256:1 sha256:2"]);
    }

    #[test]
    fn files_that_differ_are_named() {
        let changeset = |files: &[(&str, &[u8])]| {
            let mut changeset = Changeset::default();
            for (path, content) in files {
                let change = Change { was: None, now: Some(Entry::file(content, 0o644)) };
                changeset.changes.insert(RootPath::new(path).unwrap(), change);
            }
            changeset
        };
        let (old, new) =
            (changeset(&[("a", b"1"), ("b", b"2"), ("c", b"3")]), changeset(&[("a", b"1"), ("b", b"x"), ("d", b"4")]));
        assert_eq!(changed_files(&old, &new), ["changed /b", "gone /c", "new /d"]);
    }
}
