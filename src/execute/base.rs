//! The builder of a build: found in the store or made, and what `packages` means on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::build_file::reference;
use crate::build_file::spec::{Ids, Limits, Owners, Step};
use crate::build_file::workspace::BuilderConfig;
use crate::builder::debian::download::{self, Progress};
use crate::builder::debian::signature::Keyring;
use crate::builder::debian::{self, Archive, install};
use crate::builder::ids::{self, Accounts, Renumbering};
use crate::builder::lock_file::{Lock, LockedPackage};
use crate::builder::{self, Configure, From};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::environment;
use crate::execute::request::{FORMAT, Request};
use crate::execute::rule;
use crate::remote::http::{Http, Network};
use crate::report::{Event, Report};
use crate::store::Store;
use crate::tree::Stack;

/// What a workspace builds in when it says nothing.
const DEFAULT: (&str, &str) = ("bookworm", "debian:bookworm");

/// How a builder may be made.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Instead of the workspace's mirror or the host's.
    pub mirror: Option<String>,
    /// Instead of the built-in one.
    pub keyring: Option<PathBuf>,
    /// The lock must not change.
    pub locked: bool,
    /// No network.
    pub offline: bool,
    /// A builder that isn't there is not made: what would be made is told.
    pub dry: bool,
    /// The lock takes the newest versions.
    pub update: bool,
}

/// What `//base:build` does for a union of packages.
#[derive(Debug, Clone, Default)]
pub struct Install {
    /// Steps before the rule's own.
    pub before: Vec<Step>,
    /// Besides the rule's environment.
    pub env: BTreeMap<String, String>,
    /// What is installed: file name to blob.
    pub packages: BTreeMap<String, Digest>,
}

/// The builder that the rules of one command run in.
pub struct Base {
    /// Its changesets, the lowest first.
    pub changesets: Vec<Digest>,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: i64,
    tag: String,
    packages: BTreeMap<String, String>,
    store: Store,
    settings: Settings,
    http: Http,
    keyring: Keyring,
    architecture: &'static str,
    suite: String,
    mirrors: Vec<String>,
    lock_path: PathBuf,
    /// For a builder with a lock: the lock, and as it stands on the disk.
    lock: Option<Mutex<(Lock, Lock)>>,
}

/// What is wanted.
pub struct Wanted<'a> {
    /// The builder, as the workspace or the command line has it.
    pub config: BuilderConfig,
    /// `SOURCE_DATE_EPOCH` of the workspace.
    pub epoch: Option<i64>,
    /// Where relative paths in `from` start.
    pub folder: &'a Path,
    /// Where the lock is.
    pub lock_path: PathBuf,
}

impl Base {
    /// Finds the builder in the store, or makes it.
    pub fn ready(store: &Store, wanted: Wanted, settings: &Settings, report: &dyn Report) -> Result<Self> {
        // Without a word on how to make it, the builder is whatever was bootstrapped under its tag.
        let kept = match wanted.config.from {
            None => store.builder(&wanted.config.tag)?,
            Some(_) => None,
        };
        let told = wanted.config.from.clone().or_else(|| kept.as_ref().map(|kept| kept.from.clone()));
        let written = told.unwrap_or_else(|| DEFAULT.1.to_string());
        let from = written.parse::<From>()?.in_folder(wanted.folder);
        let network = if settings.offline { Network::Offline } else { Network::Allowed };
        let mut base = Self {
            changesets: vec![],
            epoch: wanted.epoch.unwrap_or(builder::EPOCH),
            tag: wanted.config.tag.clone(),
            packages: BTreeMap::new(),
            store: store.clone(),
            settings: settings.clone(),
            http: Http::new(network),
            keyring: keyring(settings.keyring.as_deref())?,
            architecture: debian::host_architecture()?,
            suite: if let From::Debian(suite) = &from { suite.clone() } else { "bookworm".to_string() },
            mirrors: settings.mirror.iter().chain(&wanted.config.mirror).take(1).cloned().collect(),
            lock_path: wanted.lock_path.clone(),
            lock: None,
        };
        let progress = Told { report, phase: Mutex::new(String::new()) };
        let request = builder::Request {
            tag: &wanted.config.tag,
            from: &from,
            written: &written,
            packages: &wanted.config.packages,
            lock: &wanted.lock_path,
            locked: settings.locked,
            update: settings.update,
            archive: &base.archive(),
            epoch: wanted.epoch,
            progress: &progress,
        };
        let lock = match &from {
            From::Debian(_) if settings.dry && !wanted.lock_path.exists() => return Ok(base),
            From::Debian(_) => Some(builder::ensure_lock(&request)?),
            _ => None,
        };
        let epoch = wanted.epoch.or(lock.as_ref().and_then(Lock::date)).unwrap_or(builder::EPOCH);
        let bootstrapped = kept.filter(|_| lock.is_none());
        let made =
            match bootstrapped.map_or_else(|| builder::current(&request, lock.as_ref(), epoch), |b| Ok(Some(b)))? {
                Some(current) => Some(current),
                None if settings.dry => None,
                None => {
                    let began = Instant::now();
                    let made = builder::make(&request, &InSandbox { base: &base, epoch })?;
                    progress.end();
                    let detail = format!("{} packages, {:.1} s", made.packages.len(), began.elapsed().as_secs_f64());
                    report.event(Event::Done { verb: "builder", what: &made.tag, detail: &detail });
                    Some(made)
                }
            };
        base.epoch = epoch;
        if let Some(made) = made {
            base.changesets = made.changesets;
            base.packages = made.packages;
        }
        base.lock = lock.map(|lock| Mutex::new((lock.clone(), lock)));
        Ok(base)
    }

    /// The builder that a workspace gets when it names none.
    pub fn default_config() -> BuilderConfig {
        BuilderConfig { tag: DEFAULT.0.to_string(), from: Some(DEFAULT.1.to_string()), mirror: None, packages: vec![] }
    }

    fn archive(&self) -> Archive<'_> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() as i64);
        Archive {
            suite: &self.suite,
            architecture: self.architecture,
            mirrors: &self.mirrors,
            apt: Path::new("/etc/apt"),
            keyring: &self.keyring,
            http: &self.http,
            store: &self.store,
            now,
        }
    }

    // Packages of rules.

    /// What `//base:build` does for a union of packages: brings the packages into the store, and
    /// says how they are installed.
    pub fn install(&self, union: &[String], report: &dyn Report) -> Result<Install> {
        let missing = match &self.lock {
            Some(lock) => self.locked(lock, union, report)?,
            None => {
                self.check(union)?;
                vec![]
            }
        };
        if missing.is_empty() {
            return Ok(Install::default());
        }
        let all: Vec<_> = missing.iter().collect();
        if all.iter().any(|p| !self.store.has_blob(&p.digest)) && !self.settings.dry {
            let progress = Told { report, phase: Mutex::new(String::new()) };
            let downloaded = download::download(&all, &self.archive().sources()?, &self.http, &self.store, &progress);
            progress.end();
            downloaded?;
        }
        Ok(Install {
            before: install::install_steps(&missing),
            env: install::environment(),
            packages: missing.iter().map(|p| (format!("{}.deb", p.name), p.digest)).collect(),
        })
    }

    /// The packages of a union that the builder doesn't have, after the lock learnt what it didn't have.
    fn locked(&self, lock: &Mutex<(Lock, Lock)>, union: &[String], report: &dyn Report) -> Result<Vec<LockedPackage>> {
        let mut locks = held(lock);
        let unlocked: Vec<_> = locks.0.unlocked(union).into_iter().cloned().collect();
        if !unlocked.is_empty() {
            if self.settings.locked {
                return Err(Error::request(format!("the lock has no {}", unlocked.join(", ")))
                    .next("build without --locked, so that it is added"));
            }
            let added = self.archive().extend(&mut locks.0, union)?;
            report.event(Event::Note {
                text: &format!(
                    "{} of {} went into {}",
                    counted(added.len(), "package"),
                    union.join(", "),
                    self.lock_path.display()
                ),
            });
        }
        locks.0.missing(union, &self.packages)
    }

    /// On a builder without a lock `packages` is a check.
    pub fn check(&self, packages: &[String]) -> Result<()> {
        let missing: Vec<_> = packages.iter().filter(|name| !self.packages.contains_key(*name)).cloned().collect();
        // A builder that isn't there yet (in a dry run) can't be asked.
        if self.lock.is_some() || missing.is_empty() || self.changesets.is_empty() {
            return Ok(());
        }
        let names = || self.packages.keys().map(String::as_str);
        let near = missing.iter().find_map(|name| Some((name, reference::nearest(name, names())?)));
        Err(Error::request(format!("the builder {} has no package {}", self.tag, missing.join(", ")))
            .why("it has no lock, so packages can't be added to it")
            .next(match near {
                Some((name, near)) => format!("did you mean {near} instead of {name}?"),
                None => "use a builder that has them, or one from debian:SUITE".to_string(),
            }))
    }

    /// New numbers for the names that an installation added; the lock learns those that it didn't know.
    pub fn number(&self, before: Accounts, after: Accounts) -> Result<Renumbering> {
        let Some(lock) = &self.lock else { return Ok(Renumbering::default()) };
        let mut locks = held(lock);
        let Lock { users, groups, .. } = &mut locks.0;
        ids::renumber(before, after, users, groups)
    }

    /// Writes the lock where the build added to it.
    pub fn save_lock(&self) -> Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let mut locks = held(lock);
        if locks.0 == locks.1 || self.settings.dry {
            return Ok(());
        }
        if self.settings.locked {
            return Err(Error::request(format!(
                "{} would change: packages made users or groups that it doesn't have",
                self.lock_path.display()
            ))
            .next("build without --locked once"));
        }
        locks.0.write(&self.lock_path)?;
        locks.1 = locks.0.clone();
        Ok(())
    }

    /// Where a path of the Debian archive (`pool/main/…`) may be had.
    pub fn pool_urls(&self, path: &str) -> Result<Vec<String>> {
        self.archive().urls(path)
    }

    /// The way to the world.
    pub fn http(&self) -> &Http {
        &self.http
    }
}

/// `1 package`, `2 packages`.
pub fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn held(lock: &Mutex<(Lock, Lock)>) -> MutexGuard<'_, (Lock, Lock)> {
    lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn keyring(path: Option<&Path>) -> Result<Keyring> {
    match path {
        None => Keyring::debian(),
        Some(path) => {
            let bytes =
                std::fs::read(path).map_err(|e| Error::io("read", path, e).with_kind(crate::error::Kind::Request))?;
            Keyring::parse(&path.display().to_string(), &bytes)
        }
    }
}

/// Runs the steps that make a builder in the sandbox that rules run in.
struct InSandbox<'a> {
    base: &'a Base,
    epoch: i64,
}

impl Configure for InSandbox<'_> {
    fn run(&self, run: &builder::Run) -> Result<Digest> {
        let store = &self.base.store;
        let request = Request {
            format: FORMAT,
            steps: run.steps.clone(),
            env: environment::of(self.epoch, std::iter::empty(), &run.environment),
            working_dir: "/".to_string(),
            snapshot: run.lower.clone(),
            time: run.time,
            user: (0, 0),
            ids: Ids::One,
            owners: Owners::Recorded,
            network: false,
            limits: Limits::default(),
            packages: BTreeMap::new(),
            secrets: vec![],
            caches: vec![],
        };
        if let Some(digest) = rule::cached(store, &request) {
            return Ok(digest);
        }
        let snapshot = Stack(run.lower.iter().map(|digest| store.changeset(digest)).collect::<Result<_>>()?);
        let (layer, _) = rule::run(store, &request, &snapshot, None, &[], &|_| ())
            .map_err(|e| e.context(format!("configure the builder {}", self.base.tag)))?;
        Ok(layer.digest)
    }
}

/// Tells the progress of downloads on.
struct Told<'a> {
    report: &'a dyn Report,
    phase: Mutex<String>,
}

impl Told<'_> {
    fn phase(&self) -> std::sync::MutexGuard<'_, String> {
        self.phase.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn end(&self) {
        let phase = std::mem::take(&mut *self.phase());
        if !phase.is_empty() {
            self.report.event(Event::Ended { what: &phase });
        }
    }
}

impl Progress for Told<'_> {
    fn phase(&self, name: &str, _count: usize, bytes: u64) {
        self.end();
        *Told::phase(self) = name.to_string();
        self.report.event(Event::Started { what: name, total: Some(bytes) });
    }

    fn bytes(&self, bytes: u64) {
        let phase = Told::phase(self).clone();
        self.report.event(Event::Advanced { what: &phase, bytes });
    }

    fn done(&self, _name: &str) {}
}
