//! One build: every instance of the graph, in order, from what its dependencies came to.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::build_file::spec::{Graph, Id, Ids, Instance, Rule, Source, Spec};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::base::Base;
use crate::execute::log::Live;
use crate::execute::request::{FORMAT, Request};
use crate::execute::rule::Onlooker;
use crate::execute::schedule::{self, Order, Turn};
use crate::execute::secrets::{self, Given, Search, Secrets};
use crate::execute::snapshot::{self, Snapshot};
use crate::execute::{environment, fetch, identity, room, rule, sources, unpack};
use crate::label::Package;
use crate::report::{Event, Report, Silent};
use crate::sandbox;
use crate::store::Store;
use crate::tree::{Layer, Selection};

/// How to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// The workspace's folder: what ran last is remembered for it.
    pub workspace: PathBuf,
    /// Rules at once.
    pub jobs: NonZeroUsize,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: i64,
    /// Where images and pods go.
    pub output: PathBuf,
    /// Labels that may have the host's network.
    pub allow_network: Vec<crate::label::Label>,
    /// Inputs by name.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Where to go instead of a URL that begins with the key.
    pub mirrors: BTreeMap<String, String>,
    /// What tools of this machine (`git`) get of the environment: `PATH`, proxies.
    pub environment: BTreeMap<OsString, OsString>,
    /// No network at all.
    pub offline: bool,
    /// What rules may read that no build file holds.
    pub secrets: Secrets,
}

impl Options {
    /// Where a URL is fetched from: the longest of the mirrors' keys that it begins with counts.
    pub fn mirrored(&self, url: &str) -> String {
        let begins = |from: &&String| {
            url.strip_prefix(from.as_str())
                .is_some_and(|rest| rest.is_empty() || from.ends_with('/') || rest.starts_with('/'))
        };
        match self.mirrors.keys().filter(begins).max_by_key(|from| from.len()) {
            Some(from) => format!("{}{}", self.mirrors[from], &url[from.len()..]),
            None => url.to_string(),
        }
    }
}

/// What an instance came to.
#[derive(Debug, Clone)]
pub enum Output {
    /// A changeset, or nothing where a rule only groups.
    Changeset(Option<Digest>),
    /// What a tapeout rule picked, and what its `run` changed.
    Selection {
        /// The blob with it.
        selection: Digest,
        /// The changeset of `run`.
        own: Option<Digest>,
    },
    /// A finished image.
    Image(Box<crate::execute::image::Built>),
    /// A bundle on disk.
    Pod(PathBuf),
}

impl Output {
    /// What dependents find in their snapshot.
    pub fn changeset(&self) -> Option<Digest> {
        match self {
            Self::Changeset(changeset) => *changeset,
            Self::Selection { own, .. } => *own,
            _ => None,
        }
    }
}

/// A build in progress.
pub struct Build<'a> {
    pub(super) store: &'a Store,
    pub(super) graph: &'a Graph,
    pub(super) order: Order,
    pub(super) base: &'a Base,
    pub(super) options: &'a Options,
    pub(super) report: &'a dyn Report,
    outputs: Vec<OnceLock<Output>>,
    /// What rules without sources find in their package's folder: one for all of them.
    bare: Mutex<BTreeMap<Package, Layer>>,
    /// What rules did weaker than elsewhere.
    weakened: Mutex<BTreeSet<String>>,
    /// Held while a base image is pulled.
    pub(super) pulling: Mutex<()>,
    /// Looks for the command's secrets.
    pub(super) search: Search,
    /// Changesets in which it found none.
    searched: Mutex<BTreeSet<Digest>>,
}

/// What is said wherever a rule that has the network is shown.
pub const NOT_HERMETIC: &str = "not hermetic: it has the host's network";

/// What a dry run says of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Forecast {
    /// Its result is in the store.
    Cached,
    /// It would run.
    Run,
    /// Something below it would run first; then this one may or may not.
    Unknown,
    /// It has nothing to run.
    Group,
}

impl<'a> Build<'a> {
    /// Nothing runs yet.
    pub fn new(
        store: &'a Store,
        graph: &'a Graph,
        base: &'a Base,
        options: &'a Options,
        report: &'a dyn Report,
    ) -> Self {
        let outputs = graph.instances.iter().map(|_| OnceLock::new()).collect();
        Self {
            store,
            graph,
            order: Order::of(graph),
            base,
            options,
            report,
            outputs,
            bare: Mutex::default(),
            weakened: Mutex::default(),
            pulling: Mutex::default(),
            search: options.secrets.search(),
            searched: Mutex::default(),
        }
    }

    /// What was weaker or slower in this build than elsewhere, as it was said meanwhile.
    pub fn weakened(&self) -> Vec<String> {
        let of_rules = self.weakened.lock().unwrap_or_else(PoisonError::into_inner);
        room::told().into_iter().chain(of_rules.iter().cloned()).collect()
    }

    /// Runs all of it. Results are on the disk when it returns, after an error too.
    pub fn run(&self) -> Result<()> {
        self.run_some(|_| true)
    }

    /// The same of some instances, among which is all that they stand on.
    pub(super) fn run_some(&self, wanted: impl Fn(Id) -> bool + Sync) -> Result<()> {
        if room::is_open() {
            // Also when everything is cached: what is in the store was made so.
            room::tell(self.store, self.report)?;
        }
        self.options.secrets.are_in_no_build_file(self.graph)?;
        self.has_secrets(&wanted)?;
        let mut deps: Vec<_> = self.graph.instances.iter().map(|i| i.deps.clone()).collect();
        // The joint point of an image on a base looks at what the base has.
        for instance in &self.graph.instances {
            if let Spec::Image(image) = &instance.spec
                && let Some(base) = image.built_base()
            {
                for joint in instance.deps.iter().filter(|id| self.is_base_tapeout(**id)) {
                    deps[*joint].push(base);
                }
            }
        }
        let run = |id, turn: &Turn| {
            if wanted(id) {
                let _ = self.outputs[id].set(self.instance(id, turn)?);
            }
            Ok(())
        };
        schedule::run(&deps, self.options.jobs, run, |id, error| self.of(id, error)).and(self.store.sync())
    }

    /// An error says of which instance it is, and where that stands.
    fn of(&self, id: Id, error: Error) -> Error {
        let instance = &self.graph.instances[id];
        // A joint point is that of an image, whose build file is the user's.
        let place = self.image_of(id).map_or(&instance.place, |(image, _)| &self.graph.instances[image].place);
        let name = format!("{} {}", kind(&instance.spec), self.name(id));
        error.each(|error| {
            let error = if error.places().is_empty() { error.at(place.clone(), "") } else { error };
            rule::on_full_disk(error, &[self.store.path(), &self.options.output]).context(&name)
        })
    }

    /// A rule whose secret is missing is told before anything runs, unless it needs not run itself.
    fn has_secrets(&self, wanted: &dyn Fn(Id) -> bool) -> Result<()> {
        let missing = |spec| self.options.secrets.missing(secrets::wanted(spec));
        if self.graph.instances.iter().all(|instance| missing(&instance.spec).is_none()) {
            return Ok(());
        }
        let forecast = Build::new(self.store, self.graph, self.base, self.options, &Silent).forecast()?;
        let errors = self.graph.instances.iter().zip(forecast).enumerate().filter(|(id, _)| wanted(*id)).filter_map(
            |(_, (instance, forecast))| {
                let name = missing(&instance.spec).filter(|_| matches!(forecast, Forecast::Run | Forecast::Unknown))?;
                Some(
                    Error::request(format!("rule {} needs the secret {name}", instance.label))
                        .at(instance.place.clone(), "")
                        .next(format!("give it: --secret {name}=file:PATH, or --secret {name}=env:VARIABLE")),
                )
            },
        );
        Error::all(errors.collect()).map_or(Ok(()), Err)
    }

    /// What an instance came to; it must have run.
    pub fn output(&self, id: Id) -> Result<&Output> {
        self.outputs[id]
            .get()
            .ok_or_else(|| Error::request(format!("{} has not run as it is now", self.graph.instances[id].label)))
    }

    fn instance(&self, id: Id, turn: &Turn) -> Result<Output> {
        if !matches!(&self.graph.instances[id].spec, Spec::Rule(_)) {
            turn.take()?;
        }
        match &self.graph.instances[id].spec {
            Spec::Rule(_) | Spec::Archive(_) | Spec::Git(_) => self.changeset(id, turn).map(Output::Changeset),
            Spec::Tapeout(_) => self.tapeout(id, turn),
            Spec::Image(image) => self.image(id, image).map(Box::new).map(Output::Image),
            Spec::Pod(pod) => self.pod(id, pod).map(Output::Pod),
        }
    }

    /// The changeset of a rule or archive: cached, or made now.
    fn changeset(&self, id: Id, turn: &Turn) -> Result<Option<Digest>> {
        let instance = &self.graph.instances[id];
        if let Spec::Archive(_) | Spec::Git(_) = &instance.spec {
            let digest = unpack::unpacked(self, instance, self.time(id))?;
            self.holds_no_secret(&digest)?;
            let key = unpack::key_of(self, instance, self.time(id))?;
            self.remember(id, (&key, &key), Some(digest), None);
            return Ok(Some(digest));
        }
        let Some((request, snapshot)) = self.request(id)? else { return Ok(None) };
        let key = request.key();
        if request.network {
            self.weaker(format!("{}: {NOT_HERMETIC}", self.name(id)));
        }
        if let Some(digest) = self.cached_rule(&request, &snapshot)? {
            self.holds_no_secret(&digest)?;
            self.done("cached", id, if request.network { NOT_HERMETIC } else { "" });
            self.remember(id, (&key, &key), Some(digest), Some(&request));
            return Ok(Some(digest));
        }
        self.permit_network(instance, &request)?;
        self.base.bring_named(&request.packages, self.report)?;
        let digest = self.run_request(id, &request, &snapshot, turn)?;
        self.remember(id, (&key, &key), Some(digest), Some(&request));
        Ok(Some(digest))
    }

    /// What a changeset of the store has, whoever made it and when, must hold no secret of this command.
    pub(super) fn holds_no_secret(&self, changeset: &Digest) -> Result<()> {
        if self.search.is_empty() || !self.searched().insert(*changeset) {
            return Ok(());
        }
        let Layer { changeset: changes, .. } = self.store.changeset(changeset)?;
        let files = self.store.changeset_files(changeset)?;
        self.search.refuses_kept(&changes.changes, |path| files.open_file(path))
    }

    /// And so must what goes into an image.
    pub(super) fn picked_holds_no_secret(&self, selection: &Selection) -> Result<()> {
        self.search.refuses_picked(selection, |changeset, path| match self.searched().contains(changeset) {
            true => Ok(None),
            false => self.store.read(changeset, path).map(Some),
        })
    }

    fn searched(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.searched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changeset of a rule that ran before. Where it installed packages under another lock, the lock learns
    /// the numbers that it gave, and where the lock has others, it runs again.
    fn cached_rule(&self, request: &Request, snapshot: &Snapshot) -> Result<Option<Digest>> {
        let found = rule::cached(self.store, request);
        match found {
            Some(digest) if !request.packages.is_empty() => {
                let below: Vec<_> = snapshot.digests();
                let holds = identity::numbers_hold(self.base, self.store, &below, &digest)?;
                Ok(found.filter(|_| holds))
            }
            _ => Ok(found),
        }
    }

    pub(super) fn run_request(&self, id: Id, request: &Request, snapshot: &Snapshot, turn: &Turn) -> Result<Digest> {
        let instance = &self.graph.instances[id];
        let name = self.name(id);
        let began = Cell::new(Instant::now());
        room::tell(self.store, self.report)?;
        let begin = || {
            turn.take()?;
            began.set(Instant::now());
            self.report.event(Event::Started { what: &name, total: None });
            Ok(())
        };
        let made = snapshot.stack(self.store, self.graph, &self.order).and_then(|stack| {
            let renumber = identity::Renumber { base: self.base, below: &stack, store: self.store };
            // It is for who looks into it: without it the build is no worse.
            let left = |upper: &Path| drop(self.keep_left(id, request, &stack, upper));
            // What installs packages prints much that nobody asked for.
            let live = request.packages.is_empty().then(|| Live::new(self.report, &name));
            rule::run(
                self.store,
                request,
                &stack,
                (!request.packages.is_empty()).then_some(&renumber),
                Given { own: &self.options.secrets.of(&request.secrets), all: &self.search },
                Onlooker { live, left: &left, turn: sandbox::Turn { begin: &begin, ended: &|| turn.give() } },
            )
        });
        self.report.event(Event::Ended { what: &name });
        let (layer, weakened) = made.map_err(|e| {
            if turn.is_called_off() {
                return e;
            }
            self.remember(id, (&request.key(), &request.key()), None, Some(request));
            e.next(format!("see all that it printed: tapeout log {}", instance.label)).at(instance.place.clone(), "")
        })?;
        self.searched().insert(layer.digest);
        for text in weakened {
            let text = format!("{name}: {text}");
            self.report.event(Event::Note { text: &text });
            self.weaker(text);
        }
        let hermetic = if request.network { format!(", {NOT_HERMETIC}") } else { String::new() };
        self.done("built", id, &format!("{:.1} s{hermetic}", began.get().elapsed().as_secs_f64()));
        Ok(layer.digest)
    }

    fn weaker(&self, text: String) {
        self.weakened.lock().unwrap_or_else(PoisonError::into_inner).insert(text);
    }

    /// The request of a rule, and its snapshot; `None`: there is nothing to run.
    pub(super) fn request(&self, id: Id) -> Result<Option<(Request, Snapshot)>> {
        let Some((mut request, sources, user)) = self.draft(id)? else { return Ok(None) };
        let snapshot = self.snapshot(id, Some(&sources))?;
        if let Some(name) = user {
            let stack = snapshot.stack(self.store, self.graph, &self.order)?;
            request.user = identity::user(self.store, &stack, &name)
                .map_err(|e| e.at(self.graph.instances[id].place.clone(), ""))?;
        }
        request.snapshot = snapshot.digests();
        Ok(Some((request, snapshot)))
    }

    /// A request without what its dependencies give, which need not have run: no snapshot, root for
    /// the user. With it the sources, and the user's name.
    pub(super) fn draft(&self, id: Id) -> Result<Option<(Request, Layer, Option<String>)>> {
        let instance = &self.graph.instances[id];
        let (rule, packages) = match &instance.spec {
            Spec::Rule(rule) if snapshot::is_base_build(self.graph, id) => {
                let wanted = |e: Error| match self.graph.instances.iter().find(|other| other.base_build == Some(id)) {
                    Some(rule) => e.each(|e| e.why(format!("{} wants it", rule.label)).at(rule.place.clone(), "")),
                    None => e,
                };
                let install = self.base.install(&instance.packages, self.report).map_err(wanted)?;
                let mut rule = rule.clone();
                rule.run.splice(0..0, install.before);
                rule.env.extend(install.env);
                (rule, install.packages)
            }
            Spec::Rule(rule) => {
                self.base.check(&instance.packages).map_err(|e| e.at(instance.place.clone(), ""))?;
                (rule.clone(), BTreeMap::new())
            }
            Spec::Tapeout(tapeout) => (Rule { run: tapeout.run.clone(), ..Rule::default() }, BTreeMap::new()),
            _ => return Ok(None),
        };
        if rule.user.is_some() && rule.ids == Ids::Range {
            return Err(Error::request("user and ids = \"range\" don't go together")
                .at(instance.place.clone(), "")
                .why("with a range the rule is root, and becomes others as it likes")
                .next("leave user out, and let run change the user: setpriv, su, runuser"));
        }
        if rule.run.is_empty() {
            return Ok(None);
        }
        let sources = self.sources(instance, &rule.sources)?;
        let below = self.order.as_written(id);
        let below = below.iter().filter_map(|&below| match &self.graph.instances[below].spec {
            Spec::Rule(rule) => Some(&rule.exports),
            _ => None,
        });
        let request = Request {
            format: FORMAT,
            env: environment::of(self.options.epoch, below, &rule.env),
            steps: rule.run,
            working_dir: sources::folder(instance.label.package()),
            snapshot: vec![],
            time: self.time(id),
            user: (0, 0),
            ids: rule.ids,
            owners: rule.owners,
            network: rule.network,
            limits: rule.limits,
            packages,
            secrets: rule.secrets,
            caches: rule.caches,
        };
        Ok(Some((request, sources, rule.user)))
    }

    pub(super) fn sources(&self, instance: &Instance, sources: &[Source]) -> Result<Layer> {
        let here = |e: Error| e.at(instance.place.clone(), "");
        let bare = || self.bare.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let package = instance.label.package();
        if sources.is_empty()
            && let Some(layer) = bare().get(package)
        {
            return Ok(layer.clone());
        }
        let fetched = fetch::files(self, instance, sources).map_err(here)?;
        let from =
            sources::From { folder: instance.folder.as_deref(), inputs: &self.options.inputs, fetched: &fetched };
        let layer =
            sources::gather(self.store, package, &from, sources, self.options.epoch, &self.search).map_err(here)?;
        if sources.is_empty() {
            bare().insert(package.clone(), layer.clone());
        }
        Ok(layer)
    }

    pub(super) fn snapshot(&self, id: Id, sources: Option<&Layer>) -> Result<Snapshot> {
        let mut rules = vec![];
        for member in snapshot::members(self.graph, &self.order, id) {
            rules.extend(self.output(member)?.changeset().map(|digest| (member, digest)));
        }
        Ok(Snapshot { builder: self.base.changesets.clone(), sources: sources.map(|s| s.digest), rules, of: id })
    }

    /// Newer than all that it stands on.
    pub(super) fn time(&self, id: Id) -> i64 {
        self.options.epoch + self.order.rank[id] + 1
    }

    pub(super) fn permit_network(&self, instance: &Instance, request: &Request) -> Result<()> {
        if !request.network {
            return Ok(());
        }
        let label = &instance.label;
        if self.options.offline {
            return Err(Error::request("it wants the network, and --offline forbids it").at(instance.place.clone(), ""));
        }
        if !self.options.allow_network.contains(label) {
            return Err(Error::request("it wants the host's network")
                .at(instance.place.clone(), "")
                .next(format!("allow it by name: --allow-network {label}")));
        }
        Ok(())
    }

    pub(super) fn done(&self, verb: &str, id: Id, detail: &str) {
        self.report.event(Event::Done { verb, what: &self.name(id), detail });
    }

    /// Who wants something from outside, for people.
    pub(super) fn wanting(&self, by: Option<Id>) -> String {
        match by {
            None => "the builder".to_string(),
            Some(id) if snapshot::is_base_build(self.graph, id) => {
                let rule = self.graph.instances.iter().find(|other| other.base_build == Some(id));
                rule.map_or_else(|| self.name(id), |rule| rule.label.to_string())
            }
            Some(id) => self.graph.instances[id].label.to_string(),
        }
    }

    /// An instance for people: its label, and what tells it from others of that label.
    fn name(&self, id: Id) -> String {
        let instance = &self.graph.instances[id];
        let label = &instance.label;
        match &instance.image {
            Some(image) => format!("{label} for {image}"),
            None if snapshot::is_base_build(self.graph, id) && !instance.packages.is_empty() => {
                let shown = instance.packages.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = instance.packages.len().saturating_sub(3);
                if more > 0 { format!("{label} with {shown} and {more} more") } else { format!("{label} with {shown}") }
            }
            None => label.to_string(),
        }
    }

    /// The finished image that an instance came to.
    pub fn finished_image(&self, id: Id) -> Result<&crate::execute::image::Built> {
        self.built(id)
    }

    /// What would happen, in execution order; nothing runs.
    pub fn forecast(&self) -> Result<Vec<Forecast>> {
        let mut forecasts = vec![];
        for (id, instance) in self.graph.instances.iter().enumerate() {
            let known = |id: &Id| matches!(forecasts[*id], Forecast::Cached | Forecast::Group);
            // What stands on something unknown is unknown itself: what is nearest tells it all.
            let forecast = match instance.deps.iter().all(known) {
                false => Forecast::Unknown,
                true => self
                    .forecast_one(id, instance)
                    .map_err(|e| e.context(format!("{} {}", kind(&instance.spec), self.name(id))))?,
            };
            forecasts.push(forecast);
        }
        Ok(forecasts)
    }

    fn forecast_one(&self, id: Id, instance: &Instance) -> Result<Forecast> {
        let output = match &instance.spec {
            // What is still to be fetched isn't known; a forecast fetches nothing.
            Spec::Rule(rule) if !fetch::all_here(self.store, &rule.sources) => None,
            // Without a lock what it installs isn't known, and it is no group for that.
            Spec::Rule(_)
                if self.base.lacks_lock()
                    && snapshot::is_base_build(self.graph, id)
                    && !instance.packages.is_empty() =>
            {
                None
            }
            Spec::Rule(_) => match self.request(id)? {
                None => Some(Output::Changeset(None)),
                Some((request, snapshot)) => {
                    self.cached_rule(&request, &snapshot)?.map(|digest| Output::Changeset(Some(digest)))
                }
            },
            Spec::Archive(_) | Spec::Git(_) => {
                unpack::cached(self, instance, self.time(id))?.map(|digest| Output::Changeset(Some(digest)))
            }
            Spec::Tapeout(_) => self.cached_tapeout(id)?,
            Spec::Image(image) => self.cached_image(id, image)?.map(Box::new).map(Output::Image),
            Spec::Pod(pod) => self.cached_pod(id, pod)?.map(Output::Pod),
        };
        let group = matches!(output, Some(Output::Changeset(None)));
        Ok(match output {
            None => Forecast::Run,
            Some(output) => {
                let _ = self.outputs[id].set(output);
                if group { Forecast::Group } else { Forecast::Cached }
            }
        })
    }
}

/// `rule`, `archive`, `git`, `tapeout`, `image`, `pod`.
pub fn kind(spec: &Spec) -> &'static str {
    match spec {
        Spec::Rule(_) => "rule",
        Spec::Archive(_) => "archive",
        Spec::Git(_) => "git",
        Spec::Tapeout(_) => "tapeout",
        Spec::Image(_) => "image",
        Spec::Pod(_) => "pod",
    }
}
