//! What was made last of each rule: so that `log`, `explain` and `shell --failed` find it by its label.
//!
//! One small file for each label under each set of parameter values that it was built with, replaced
//! by the next run. What a failed rule left is kept beside it, until the rule succeeds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Store;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::label::Label;

/// What failed rules left can be large: so many are kept, the latest.
const MOST_FAILED: usize = 8;

/// Which rule under which values: what tells the runs of one label apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// The workspace: others may call their rules the same.
    pub workspace: PathBuf,
    /// The rule.
    pub label: Label,
    /// The image that this joint point is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Label>,
    /// The values that it sees.
    pub parameters: BTreeMap<Label, Value>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whose.
    #[serde(flatten)]
    pub whose: Whose,
    /// The key of what ran.
    pub key: Digest,
    /// Its log is kept under this.
    pub log: Digest,
    /// All that made the key, by name.
    pub parts: BTreeMap<String, Value>,
    /// What it came to; `None`: it failed.
    pub made: Option<Digest>,
    /// Seconds since 1970.
    pub ended: u64,
}

/// What a failed rule left.
#[derive(Debug)]
pub struct Left {
    /// The folder with what it changed, in overlay's form.
    pub upper: PathBuf,
    /// What whoever kept it wrote about it.
    pub about: Vec<u8>,
}

impl Whose {
    fn name(&self) -> String {
        let values = serde_json::to_vec(&(&self.image, &self.parameters)).unwrap_or_default();
        format!("{}-{}", rule_name(&self.workspace, &self.label), &Digest::of(values).hex()[..32])
    }
}

/// For people: `//app:web for //app:web/build_image, //app:jobs=8`.
impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.label)?;
        if let Some(image) = &self.image {
            write!(f, " for {image}")?;
        }
        self.parameters.iter().try_for_each(|(name, value)| write!(f, ", {name}={value}"))
    }
}

fn rule_name(workspace: &Path, label: &Label) -> String {
    let bytes = [std::os::unix::ffi::OsStrExt::as_bytes(workspace.as_os_str()), label.to_string().as_bytes()].join(&0);
    Digest::of(bytes).hex()[..32].to_string()
}

impl Store {
    fn run_path(&self, whose: &Whose) -> PathBuf {
        self.path().join("runs").join(whose.name())
    }

    /// Remembers what a rule came to, where that isn't known already. After a success, what a failed
    /// run left is of no more use.
    pub fn remember_run(
        &self,
        whose: Whose,
        (key, log): (&Digest, &Digest),
        made: Option<Digest>,
        parts: impl FnOnce() -> BTreeMap<String, Value>,
    ) -> Result<()> {
        let path = self.run_path(&whose);
        // The first line says enough for a build in which nothing is new.
        let line = format!("{} {}\n", key.hex(), made.map_or("-".to_string(), |made| made.hex()));
        let mut first = vec![0; line.len()];
        if File::open(&path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == line.as_bytes() {
            return Ok(());
        }
        if made.is_some() {
            self.forget_left(&whose.name())?;
        }
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let run = Run { whose, key: *key, log: *log, parts: parts(), made, ended };
        let text = serde_json::to_string(&run).map_err(|e| Error::failed(format!("can't write a run: {e}")))?;
        self.replace(&path, (line + &text).as_bytes())
    }

    /// The last runs of a rule, the latest last: one for each set of values.
    pub fn runs(&self, workspace: &Path, label: &Label) -> Result<Vec<Run>> {
        let folder = self.path().join("runs");
        let prefix = format!("{}-", rule_name(workspace, label));
        let mut runs: Vec<_> = names(&folder)?
            .into_iter()
            .filter(|name| name.starts_with(&prefix))
            .filter_map(|name| read_run(&folder.join(name)))
            .filter(|run| run.whose.label == *label && run.whose.workspace == workspace)
            .collect();
        runs.sort_by_key(|run| run.ended);
        Ok(runs)
    }

    /// The last runs of all labels.
    pub fn all_runs(&self) -> Result<Vec<Run>> {
        let folder = self.path().join("runs");
        Ok(names(&folder)?.into_iter().filter_map(|name| read_run(&folder.join(name))).collect())
    }

    /// Keeps the folder with what a failed rule changed, which is moved, in place of what an earlier run left.
    pub fn keep_left(&self, whose: &Whose, upper: &Path, about: &[u8]) -> Result<()> {
        let staged = self.scratch()?;
        let folder = staged.path().join("left");
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|e| Error::io("mkdir", &folder, e))?;
        let to = folder.join("about");
        fs::write(&to, about).map_err(|e| Error::io("write", &to, e))?;
        fs::rename(upper, folder.join("upper")).map_err(|e| Error::io("rename", upper, e))?;
        self.forget_left(&whose.name())?;
        let failed = self.path().join("failed");
        let to = failed.join(whose.name());
        fs::rename(&folder, &to).map_err(|e| Error::io("rename", &to, e))?;
        let mut all: Vec<_> = names(&failed)?
            .into_iter()
            .filter_map(|name| Some((fs::metadata(failed.join(&name)).ok()?.modified().ok()?, name)))
            .collect();
        all.sort();
        let extra = all.len().saturating_sub(MOST_FAILED);
        all.into_iter().take(extra).try_for_each(|(_, name)| self.forget_left(&name))
    }

    /// What the last run under these values left, if it failed.
    pub fn left(&self, whose: &Whose) -> Option<Left> {
        let folder = self.path().join("failed").join(whose.name());
        let about = fs::read(folder.join("about")).ok()?;
        Some(Left { upper: folder.join("upper"), about })
    }

    fn forget_left(&self, name: &str) -> Result<()> {
        let path = self.path().join("failed").join(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let scratch = self.scratch()?;
        match fs::rename(&path, scratch.path().join("left")) {
            // Another build has done it.
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("rename", &path, e)),
            _ => Ok(()),
        }
    }
}

/// What can't be read says nothing: it is a memory, not a result.
pub(super) fn read_run(path: &Path) -> Option<Run> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(text.split_once('\n')?.1).ok()
}

/// The names in a folder of the store, sorted.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io("readdir", folder, e)),
    };
    let mut names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        (temp, store)
    }

    fn whose(label: &str, jobs: i64) -> Whose {
        let parameters = BTreeMap::from([("//a:jobs".parse().unwrap(), Value::from(jobs))]);
        Whose { workspace: "/w".into(), label: label.parse().unwrap(), image: None, parameters }
    }

    #[test]
    fn the_last_run_under_each_set_of_values_is_remembered() {
        let (_temp, store) = store();
        let remember = |label, jobs, key: &str| {
            let key = Digest::of(key);
            store.remember_run(whose(label, jobs), (&key, &key), Some(Digest::of("x")), BTreeMap::new).unwrap()
        };
        remember("//a:b", 1, "old");
        remember("//a:b", 1, "new");
        remember("//a:b", 2, "other");
        remember("//a:bc", 1, "another");
        let mut keys: Vec<_> =
            store.runs(Path::new("/w"), &"//a:b".parse().unwrap()).unwrap().into_iter().map(|run| run.key).collect();
        assert_eq!(store.runs(Path::new("/v"), &"//a:b".parse().unwrap()).unwrap(), []);
        keys.sort();
        let mut expected = [Digest::of("new"), Digest::of("other")];
        expected.sort();
        assert_eq!(keys, expected);
        // Known already: nothing is asked for, nothing written.
        let new = Digest::of("new");
        let known = || panic!("it is known");
        store.remember_run(whose("//a:b", 1), (&new, &new), Some(Digest::of("x")), known).unwrap();
    }

    #[test]
    fn what_failed_rules_left_is_bounded_and_goes_with_the_next_success() {
        let (_temp, store) = store();
        for jobs in 0..12 {
            let scratch = store.scratch().unwrap();
            let upper = scratch.folder("upper").unwrap();
            fs::write(upper.join("a"), "x").unwrap();
            store.keep_left(&whose("//a:b", jobs), &upper, b"about").unwrap();
        }
        assert_eq!(names(&store.path().join("failed")).unwrap().len(), MOST_FAILED);
        let last = whose("//a:b", 11);
        let left = store.left(&last).unwrap();
        assert!(left.upper.join("a").is_file() && left.about == b"about");
        let key = Digest::of("k");
        store.remember_run(last.clone(), (&key, &key), Some(Digest::of("x")), BTreeMap::new).unwrap();
        assert!(store.left(&last).is_none());
    }
}
