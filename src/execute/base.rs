//! The builder of a build: found in the store or made, and what `packages` means on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::build_file::spec::{Ids, Limits, Owners, Step};
use crate::build_file::workspace::BuilderConfig;
use crate::builder::debian::download::{self, Progress};
use crate::builder::debian::signature::Keyring;
use crate::builder::debian::{self, Archive, install};
use crate::builder::ids::{self, Accounts, Renumbering};
use crate::builder::image::Image;
use crate::builder::lock_file::{Lock, LockedPackage};
use crate::builder::{self, Configure, From, pull};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::environment;
use crate::execute::request::{FORMAT, Request};
use crate::execute::rule::{self, Onlooker};
use crate::execute::secrets::{Given, Search};
use crate::nearest::nearest;
use crate::remote::credentials::Keychain;
use crate::remote::http::{Http, Network};
use crate::remote::reference::Reference;
use crate::report::{Event, Report, counted};
use crate::store::Store;
use crate::store::inputs::{Input, Role};
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
    /// Who we are to registries.
    pub keychain: Keychain,
    /// The lock takes the newest versions.
    pub update: bool,
    /// Of these packages alone; empty: of all.
    pub update_only: Vec<String>,
    /// The builder is not made; the lock may grow.
    pub only_lock: bool,
    /// The builder is what is asked for: what its files hold now, under this tag.
    pub renew: bool,
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
    config: BuilderConfig,
    from: From,
    written: String,
    /// `SOURCE_DATE_EPOCH` of the workspace.
    asked_epoch: Option<i64>,
    /// It is in the store.
    made: bool,
    reproducible: bool,
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
        let mut base = Self::planned(store, wanted, settings, report)?;
        base.make(report)?;
        Ok(base)
    }

    /// Finds the builder in the store, or says what it would be made from: its lock is there, and nothing has run.
    pub fn planned(store: &Store, wanted: Wanted, settings: &Settings, report: &dyn Report) -> Result<Self> {
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
            from: from.clone(),
            written,
            asked_epoch: wanted.epoch,
            made: false,
            reproducible: false,
            packages: BTreeMap::new(),
            store: store.clone(),
            settings: settings.clone(),
            http: Http::new(network),
            keyring: keyring(settings.keyring.as_deref())?,
            architecture: debian::host_architecture()?,
            suite: if let From::Debian(suite) = &from { suite.clone() } else { "bookworm".to_string() },
            mirrors: settings.mirror.iter().chain(&wanted.config.mirror).take(1).cloned().collect(),
            lock_path: wanted.lock_path,
            lock: None,
            config: wanted.config,
        };
        if base.is_host() {
            report.event(Event::Note {
                text: "the builder is this machine's own toolchain (host): what is built in it is not reproducible",
            });
        }
        let progress = Told { report, phase: Mutex::new(String::new()) };
        if matches!(from, From::Debian(_)) && !base.lock_path.exists() && !settings.locked {
            base.adopt_lock(report)?;
        }
        let lock = match &from {
            From::Debian(_) if settings.dry && !base.lock_path.exists() => return Ok(base),
            From::Debian(_) => Some(base.with_request(&progress, settings.update, builder::ensure_lock)?),
            _ => None,
        };
        base.epoch = base.asked_epoch.or(lock.as_ref().and_then(Lock::date)).unwrap_or(builder::EPOCH);
        let bootstrapped = kept.filter(|_| lock.is_none());
        let current = match bootstrapped {
            Some(builder) => Some(builder),
            None => {
                base.with_request(&progress, false, |request| builder::current(request, lock.as_ref(), base.epoch))?
            }
        };
        base.lock = lock.map(|lock| Mutex::new((lock.clone(), lock)));
        if let Some(current) = current.filter(|_| !base.is_read_again(report)) {
            if settings.renew {
                store.keep_builder(&current)?;
            }
            base.is(current);
        }
        Ok(base)
    }

    /// Is a builder that is there made anew from files that are there, too?
    fn is_read_again(&self, report: &dyn Report) -> bool {
        // Whoever doesn't name the files wants what is under the tag.
        let Some(files) = self.from.files().filter(|_| self.settings.renew && self.config.from.is_some()) else {
            return false;
        };
        let there = files.exists();
        if !there {
            let tag = &self.config.tag;
            report.event(Event::Note { text: &format!("{} is gone: {tag} stays as it was made", files.display()) });
        }
        there
    }

    /// Names all that the rules of a build take from it; `None`: it isn't there yet, or nothing names it.
    pub fn identity(&self) -> Option<Digest> {
        if !self.made || self.is_host() {
            return None;
        }
        let lock = match &self.lock {
            Some(_) => Some(Digest::of(std::fs::read(&self.lock_path).ok()?)),
            None => None,
        };
        Some(Digest::of(serde_json::to_vec(&(&self.changesets, &self.packages, self.epoch, lock)).ok()?))
    }

    /// Is it this machine's own toolchain?
    pub fn is_host(&self) -> bool {
        self.from == From::Host
    }

    /// Do other machines get the same bytes?
    pub fn is_reproducible(&self) -> bool {
        self.reproducible
    }

    /// The packages that are in it: name to version.
    pub fn installed(&self) -> &BTreeMap<String, String> {
        &self.packages
    }

    /// Makes the builder, where it isn't there.
    pub fn make(&mut self, report: &dyn Report) -> Result<()> {
        if self.made || self.settings.dry || self.settings.only_lock {
            return Ok(());
        }
        let progress = Told { report, phase: Mutex::new(String::new()) };
        let began = Instant::now();
        let made = self.with_request(&progress, false, |request| {
            builder::make(request, &InSandbox { base: self, epoch: self.epoch })
        });
        progress.end();
        let made = made?;
        let detail = format!("{} packages, {:.1} s", made.packages.len(), began.elapsed().as_secs_f64());
        report.event(Event::Done { verb: "builder", what: &made.tag, detail: &detail });
        self.is(made);
        Ok(())
    }

    fn is(&mut self, builder: builder::Builder) {
        self.made = true;
        self.reproducible = builder.reproducible;
        self.changesets = builder.changesets;
        self.packages = builder.packages;
    }

    fn with_request<T>(
        &self,
        progress: &dyn Progress,
        update: bool,
        act: impl FnOnce(&builder::Request) -> Result<T>,
    ) -> Result<T> {
        act(&builder::Request {
            tag: &self.config.tag,
            from: &self.from,
            written: &self.written,
            packages: &self.config.packages,
            lock: &self.lock_path,
            locked: self.settings.locked,
            update,
            update_only: &self.settings.update_only,
            archive: &self.archive(),
            epoch: self.asked_epoch,
            keychain: &self.settings.keychain,
            progress,
        })
    }

    /// A workspace without a lock takes that of a file of inputs, if what it says is signed.
    fn adopt_lock(&self, report: &dyn Report) -> Result<()> {
        let Some(inputs) = self.store.inputs() else { return Ok(()) };
        let Some(input) = inputs.of(Role::Lock).last() else { return Ok(()) };
        let mut text = String::new();
        let mut blob = self.store.blob(&input.digest)?;
        std::io::Read::read_to_string(&mut blob, &mut text).map_err(|e| Error::io("read", &input.title, e))?;
        let lock = Lock::parse(&text, &input.title)?;
        let releases: Vec<Digest> = inputs.of(Role::Release).map(|input| input.digest).collect();
        self.archive().reader().check_lock(&lock, &releases)?;
        lock.write(&self.lock_path)?;
        report.event(Event::Note { text: &format!("{} is the lock of the inputs", self.lock_path.display()) });
        Ok(())
    }

    /// The lock as it stands now.
    pub fn lock(&self) -> Option<Lock> {
        self.lock.as_ref().map(|lock| held(lock).0.clone())
    }

    // What comes from outside.

    /// Is it made of packages that no lock names yet? Only a dry run gets that far.
    pub fn lacks_lock(&self) -> bool {
        matches!(self.from, From::Debian(_)) && self.lock.is_none()
    }

    /// The packages of a Debian builder that isn't made yet, or of any for a file of inputs.
    pub fn builder_packages(&self) -> Result<Vec<LockedPackage>> {
        let Some(lock) = &self.lock else { return Ok(vec![]) };
        if self.made && !self.settings.only_lock {
            return Ok(vec![]);
        }
        Ok(held(lock).0.builder_packages(&self.config.packages)?.into_values().cloned().collect())
    }

    /// The image of a registry that a builder is made of which isn't made yet, or any for a file of inputs.
    pub fn builder_image(&self) -> Option<&Reference> {
        match &self.from {
            From::Registry(reference) if !self.made || self.settings.only_lock => Some(reference),
            _ => None,
        }
    }

    /// The packages that a union adds to the builder; the lock learns what it didn't have.
    pub fn packages_of(&self, union: &[String], report: &dyn Report) -> Result<Vec<LockedPackage>> {
        match &self.lock {
            Some(lock) => self.locked(lock, union, report),
            None => self.check(union).map(|()| vec![]),
        }
    }

    /// The indexes that must be read for a union, because the lock doesn't have all of it, and aren't there.
    pub fn lacks_index(&self, union: &[String]) -> Result<Vec<Digest>> {
        let Some(lock) = self.lock.as_ref().filter(|_| self.settings.offline) else { return Ok(vec![]) };
        let lock = held(lock);
        if lock.0.unlocked(union).is_empty() {
            return Ok(vec![]);
        }
        let pins = lock.0.index.iter().map(|pin| Digest::from_hex(&pin.sha256)).collect::<Result<Vec<_>>>()?;
        Ok(pins.into_iter().filter(|digest| !self.store.gives(digest)).collect())
    }

    /// Is one of the mirrors a folder of this machine?
    pub fn has_local_mirror(&self) -> bool {
        self.archive().sources().is_ok_and(|sources| sources.iter().any(|source| source.uri.starts_with("file:")))
    }

    /// Brings packages into the store that aren't there.
    pub fn bring(&self, packages: &[&LockedPackage], report: &dyn Report) -> Result<()> {
        if packages.iter().all(|package| self.store.gives(&package.digest)) {
            return Ok(());
        }
        let progress = Told { report, phase: Mutex::new(String::new()) };
        let brought = download::download(packages, &self.archive().sources()?, &self.http, &self.store, &progress);
        progress.end();
        brought
    }

    /// The same for what a request installs.
    pub fn bring_named(&self, packages: &BTreeMap<String, Digest>, report: &dyn Report) -> Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let wanted: Vec<LockedPackage> = {
            let lock = held(lock);
            let named = |package: &&LockedPackage| packages.values().any(|digest| *digest == package.digest);
            lock.0.packages.values().filter(named).cloned().collect()
        };
        self.bring(&wanted.iter().collect::<Vec<_>>(), report)
    }

    /// The lock and the signed index that it pins, for a file of inputs; `left_out` is told what no mirror has.
    pub fn lock_inputs(&self, left_out: &mut dyn FnMut(String)) -> Result<Vec<Input>> {
        let Some(lock) = &self.lock else { return Ok(vec![]) };
        let lock = held(lock).0.clone();
        let archive = self.archive();
        let sources = archive.sources().unwrap_or_default();
        let text = self.store.put(lock.to_text().as_bytes())?;
        let title = "tapeout.lock".to_string();
        let mut found = vec![Input { role: Role::Lock, title, key: None, digest: text.digest, size: text.size }];
        let mut add = |role: Role, title: String, key: Option<String>, digest: Digest| -> Result<()> {
            found.push(Input { role, title, key, digest, size: self.store.blob(&digest)?.size() });
            Ok(())
        };
        for pin in &lock.index {
            let reader = archive.reader();
            match reader.keep_pinned(&sources, pin) {
                Ok(digest) => add(Role::Index, format!("{}_{}_Packages", pin.suite, pin.component), None, digest)?,
                Err(error) => left_out(format!("the package index of {} of {}: {error}", pin.suite, pin.date)),
            }
            match reader.release_of(&sources, pin) {
                Some(digest) => {
                    add(Role::Release, format!("{}_InRelease", pin.suite), Some(pin.suite.clone()), digest)?
                }
                None => left_out(format!("the signature of the package index of {} of {}", pin.suite, pin.date)),
            }
        }
        Ok(found)
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

    /// What `//base:build` does for a union of packages: how they are installed.
    pub fn install(&self, union: &[String], report: &dyn Report) -> Result<Install> {
        let missing = self.packages_of(union, report)?;
        if missing.is_empty() {
            return Ok(Install::default());
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
        let have = match self.made {
            true => self.packages.clone(),
            false => {
                let builder = locks.0.builder_packages(&self.config.packages)?;
                builder.into_values().map(|package| (package.name.clone(), package.version.clone())).collect()
            }
        };
        locks.0.missing(union, &have)
    }

    /// On a builder without a lock `packages` is a check.
    pub fn check(&self, packages: &[String]) -> Result<()> {
        let missing: Vec<_> = packages.iter().filter(|name| !self.packages.contains_key(*name)).cloned().collect();
        // A builder that isn't there yet (in a dry run) can't be asked.
        if self.lock.is_some() || missing.is_empty() || self.changesets.is_empty() {
            return Ok(());
        }
        let names = || self.packages.keys().map(String::as_str);
        let near = missing.iter().find_map(|name| Some((name, nearest(name, names())?)));
        Err(Error::request(format!("the builder {} has no package {}", self.config.tag, missing.join(", ")))
            .why(match (self.is_host(), self.packages.is_empty()) {
                (true, true) => "it is this machine, whose packages can't be told: it has no /var/lib/dpkg/status",
                (true, false) => "it is this machine, to which tapeout adds nothing",
                (false, _) => "it has no lock, so packages can't be added to it",
            })
            .next(match (near, self.is_host()) {
                (Some((name, near)), _) => format!("did you mean {near} instead of {name}?"),
                (None, true) => "install them on this machine, or use a builder from debian:SUITE".to_string(),
                (None, false) => "use a builder that has them, or one from debian:SUITE".to_string(),
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
        let (now, was) = &mut *locks;
        now.write_after(Some(was), &self.lock_path)?;
        *was = now.clone();
        Ok(())
    }

    /// Where a path of the Debian archive (`pool/main/…`) may be had.
    pub fn pool_urls(&self, path: &str) -> Result<Vec<String>> {
        self.archive().urls(path)
    }

    /// Brings an image of a registry into the store.
    pub fn pull(&self, reference: &Reference, report: &dyn Report) -> Result<Image> {
        let progress = Told { report, phase: Mutex::new(String::new()) };
        let network = self.http.network();
        let image = pull::pull(reference, &self.settings.keychain, network, &self.store, self.architecture, &progress);
        progress.end();
        image
    }

    /// The way to the world.
    pub fn http(&self) -> &Http {
        &self.http
    }
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
        let no_secrets = Given { own: &[], all: &Search::default() };
        let (layer, _) = rule::run(store, &request, &snapshot, None, no_secrets, Onlooker::nobody())
            .map_err(|e| e.context(format!("configure the builder {}", self.base.config.tag)))?;
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
