//! What a build says, as plain data: the analysed graph. It knows no Starlark, no disk and no kernel.
//!
//! The analysis runs in a child process; this is what leaves it, and all that the rest
//! of the crate ever sees of a build file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Place;
use crate::label::Label;

/// In JSON a value is written as it is; a format without names of its own (postcard) needs to be told which variant it is.
macro_rules! untagged_as_text {
    ($name:ident $text:literal { $($variant:ident $(($inner:ty))?),* }) => {
        const _: () = {
            #[derive(Serialize, Deserialize)]
            #[serde(remote = $text, untagged)]
            enum Readable { $($variant $(($inner))?),* }

            #[derive(Serialize, Deserialize)]
            #[serde(remote = $text)]
            enum Binary { $($variant $(($inner))?),* }

            impl Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                    if s.is_human_readable() { Readable::serialize(self, s) } else { Binary::serialize(self, s) }
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                    if d.is_human_readable() { Readable::deserialize(d) } else { Binary::deserialize(d) }
                }
            }
        };
    };
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Unset: neither given, nor a default, nor derived.
    None,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `string` and `path`
    Text(String),
    /// `list` of strings
    List(Vec<String>),
}

untagged_as_text!(Value "Value" { None, Bool(bool), Int(i64), Text(String), List(Vec<String>) });

/// Values of parameters.
pub type Values = BTreeMap<Label, Value>;

/// Which instance: an index into [`Graph::instances`].
pub type Id = usize;

/// What was asked for, analysed: every instance that it needs, each after all that it depends on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Graph {
    /// In execution order: an instance stands after its dependencies, and among independent ones
    /// the order is as written.
    pub instances: Vec<Instance>,
    /// What the command line named, in its order.
    pub requested: Vec<Id>,
}

impl Graph {
    /// Written down in two parts, the second of which only people read: places and docs. A build of two graphs whose
    /// first parts are the same does the same.
    pub fn in_two(mut self) -> postcard::Result<(Vec<u8>, Vec<u8>)> {
        let nowhere = || Place { file: String::new(), line: 0, column: 0, length: 0, source: None };
        let take = |one: &mut Instance| (std::mem::replace(&mut one.place, nowhere()), std::mem::take(&mut one.doc));
        let shown: Vec<(Place, String)> = self.instances.iter_mut().map(take).collect();
        Ok((postcard::to_stdvec(&self)?, postcard::to_stdvec(&shown)?))
    }

    /// And back; `None`: they are no graph.
    pub fn of_two(plan: &[u8], shown: &[u8]) -> Option<Self> {
        let mut graph: Self = postcard::from_bytes(plan).ok()?;
        let shown: Vec<(Place, String)> = postcard::from_bytes(shown).ok()?;
        if shown.len() != graph.instances.len() {
            return None;
        }
        for (instance, (place, doc)) in graph.instances.iter_mut().zip(shown) {
            (instance.place, instance.doc) = (place, doc);
        }
        Some(graph)
    }
}

/// A rule under the parameter values that it sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    /// The rule.
    pub label: Label,
    /// The values that it sees itself: those that its functions read, and those that they were
    /// derived from. With the label and `deps`, its identity (what its dependencies see is theirs).
    /// Shared: a map of one value takes a kilobyte, and many rules see the same.
    pub parameters: Arc<Values>,
    /// The image for which this joint point (or what stands only on one) was instantiated.
    pub image: Option<Label>,
    /// True ordinary dependencies, as written; for a joint point, then what joined it.
    pub deps: Vec<Id>,
    /// Those of `deps` that joined by a reverse dependency.
    pub joined: Vec<Id>,
    /// Packages: the sorted union over this rule and its transitive dependencies.
    pub packages: Vec<String>,
    /// The instance of `//base:build` with this very union: the only one that this rule's snapshot
    /// holds (those that its dependencies were made on are left out). `None`: it reaches none, and
    /// its snapshot is the bare builder's. It is one of `deps`; pods have none.
    pub base_build: Option<Id>,
    /// The folder of its package on disk; `None`: built in.
    pub folder: Option<PathBuf>,
    /// Where it is defined.
    pub place: Place,
    /// Its doc.
    pub doc: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What it is.
    pub spec: Spec,
}

/// What a rule is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Spec {
    /// `rule(…)`
    Rule(Rule),
    /// `archive(…)`
    Archive(Archive),
    /// `git(…)`
    Git(Git),
    /// `tapeout(…)`
    Tapeout(Tapeout),
    /// `image(…)`
    Image(Image),
    /// `pod(…)`
    Pod(Pod),
}

/// One step of a `run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A script for `/bin/sh -e`.
    Shell(String),
    /// A program and its arguments.
    Argv(Vec<String>),
}

untagged_as_text!(Step "Step" { Shell(String), Argv(Vec<String>) });

/// A file or folder that a rule works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Below the package's folder, as written; a folder is taken whole.
    Path(String),
    /// `input("jdk")`: a file or folder that `tapeout.toml` or `--input` names. It lies in the
    /// rule's folder under the input's name.
    Input(String),
    /// `fetched(…)`: a file from outside, not unpacked.
    Fetched(Fetched),
    /// One of `python_wheels(…)`.
    Wheel(Wheel),
}

/// A file from outside, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Where it lies in the rule's folder.
    pub path: String,
    /// As in [`Archive::urls`].
    pub urls: Vec<String>,
    /// `sha256:` or `sha512:`, and hex digits.
    pub digest: String,
}

/// A package of a Python index: the one of its files that has one of these digests and fits best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wheel {
    /// The folder of the rule's folder that it lies in, under the name that the index has for it.
    pub folder: String,
    /// The package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// 64 hex digits each.
    pub sha256: Vec<String>,
    /// `3.11`: the Python that it is for.
    pub python: String,
    /// Indexes, tried in order.
    pub indexes: Vec<String>,
    /// It is wanted on some machines only: where no file fits it is left out.
    pub optional: bool,
}

/// Which IDs are mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ids {
    /// One: the rule's user.
    #[default]
    One,
    /// A range, through newuidmap.
    Range,
}

/// What a rule reads of owners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// Every file is the mapped ID's.
    #[default]
    Recorded,
    /// `stat` is answered with the recorded owner.
    Seen,
}

/// Limits of one rule; `None` is the default of the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processes at once.
    pub processes: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of one file.
    pub file_size: Option<u64>,
    /// Seconds.
    pub time: Option<u64>,
}

/// `rule(…)`, its functions evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Empty: it only groups.
    pub run: Vec<Step>,
    /// Globs are expanded, sorted.
    pub sources: Vec<Source>,
    /// Its own environment.
    pub env: BTreeMap<String, String>,
    /// What it gives to its dependents.
    pub exports: BTreeMap<String, Export>,
    /// Runs as this user of the snapshot instead of root.
    pub user: Option<String>,
    /// Which IDs are mapped.
    pub ids: Ids,
    /// What it reads of owners.
    pub owners: Owners,
    /// It has the host's network.
    pub network: bool,
    /// Names of secrets.
    pub secrets: Vec<String>,
    /// Folders kept between runs: absolute paths inside.
    pub caches: Vec<String>,
    /// Limits.
    pub limits: Limits,
}

/// One exported variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Export {
    /// Set.
    Set(String),
    /// Prepended, joined by `:`.
    Prepend(Vec<String>),
}

untagged_as_text!(Export "Export" { Set(String), Prepend(Vec<String>) });

/// `archive(…)`: a file from outside, unpacked into `/workspace/<package>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Tried in order: `https:`, `http:`, `debian:pool/…` (the configured mirror), `input:NAME`,
    /// `file:` below the package's folder.
    pub urls: Vec<String>,
    /// 64 hex digits.
    pub sha256: String,
    /// Dropped from the front of each path in it; a path without it is left out.
    pub strip_prefix: String,
    /// The folder below the package's; the name of the rule unless said.
    pub into: String,
    /// Files of the package, applied in this order.
    pub patches: Vec<String>,
}

/// `git(…)`: the tree of a commit, laid out in `/workspace/<package>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Git {
    /// Tried in order: `https:`, `http:`, `file:/…`, `input:NAME`.
    pub urls: Vec<String>,
    /// The whole commit id.
    pub commit: String,
    /// Submodules too, and theirs.
    pub submodules: bool,
    /// The folder below the package's; the name of the rule unless said.
    pub into: String,
    /// Files of the package, applied in this order.
    pub patches: Vec<String>,
}

/// A file that the builder never had: `tapeout(files = …)` and `pod(files = …)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Absolute inside the image, or relative inside the bundle.
    pub path: String,
    /// Its text, for kind `file`.
    pub content: Option<String>,
    /// A file of the package to take it from, instead of `content`.
    pub source: Option<String>,
    /// The target, for kind `link`.
    pub target: Option<String>,
    /// Permission bits; `None`: 0644, a folder 0755.
    pub mode: Option<u32>,
    /// Name or number; names are looked up in the snapshot.
    pub owner: String,
    /// Name or number.
    pub group: String,
    /// Kind.
    pub kind: FileKind,
}

/// Kind of a file record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    #[default]
    File,
    /// An empty folder.
    Folder,
    /// A symbolic link.
    Link,
}

/// What the closure does with the files of a tapeout rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libraries {
    /// `True`: searched. `False`: left out of the search.
    Search(bool),
    /// Searched, and these besides (names as in `dlopen`, or paths).
    Also(Vec<String>),
}

untagged_as_text!(Libraries "Libraries" { Search(bool), Also(Vec<String>) });

/// `tapeout(…)`, its functions evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tapeout {
    /// Patterns over the changesets of its transitive dependencies.
    pub include: Vec<String>,
    /// Patterns.
    pub exclude: Vec<String>,
    /// Patterns over all that its dependencies see.
    pub paths: Vec<String>,
    /// Distribution packages whose files are taken.
    pub from_packages: Vec<String>,
    /// Whether the closure looks at its files.
    pub libraries: Libraries,
    /// Files that the builder never had.
    pub files: Vec<FileRecord>,
    /// What no list can say: what it changes is picked.
    pub run: Vec<Step>,
    /// Dropped from the front of each picked path.
    pub strip_prefix: Option<String>,
    /// Put before each picked path.
    pub prefix: Option<String>,
    /// New names: from a picked path to another one.
    pub rename: BTreeMap<String, String>,
    /// Owner of all that it picked: `user` or `user:group`, names or numbers.
    pub owner: Option<String>,
    /// Modes by pattern; the last that matches counts.
    pub modes: BTreeMap<String, u32>,
    /// `//base:tapeout`, or a joint point of a language: others join it.
    pub joint: bool,
}

impl Default for Tapeout {
    fn default() -> Self {
        Self {
            include: vec![],
            exclude: vec![],
            paths: vec![],
            from_packages: vec![],
            libraries: Libraries::Search(true),
            files: vec![],
            run: vec![],
            strip_prefix: None,
            prefix: None,
            rename: BTreeMap::new(),
            owner: None,
            modes: BTreeMap::new(),
            joint: false,
        }
    }
}

/// One layer a tapeout rule, or one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layers {
    /// A change moves one small layer.
    #[default]
    Rule,
    /// Squashed.
    Single,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    #[default]
    Zstd,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar`
    None,
}

/// What an image is for, in OCI's words: `linux/arm64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH's word.
    pub architecture: String,
    /// `v7`.
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// `image(…)`, its functions evaluated. Its joint points are among the instance's `deps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What it stands on: an image of this build, or one of a registry by its digest (`docker://REF@sha256:…`).
    pub base: Option<ImageRef>,
    /// The builder itself becomes the lowest layers (`tapeouts = ALL`).
    pub whole_builder: bool,
    /// What it is for; `None`: the machine that it is built on.
    pub platform: Option<Platform>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// `user`, `user:group`, names or numbers; empty: root.
    pub user: String,
    /// Absolute; empty: `/`.
    pub working_dir: String,
    /// `6379/tcp`.
    pub ports: Vec<String>,
    /// Absolute paths.
    pub volumes: Vec<String>,
    /// The signal that asks it to end, `SIGINT`; empty: the runtime's default.
    pub stop_signal: String,
    /// Labels of the config.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// One layer a rule, or one.
    pub layers: Layers,
    /// How layers are compressed.
    pub compression: Compression,
    /// And how hard; `None`: the format's default.
    pub level: Option<u8>,
    /// Patterns pruned after the joint point.
    pub exclude: Vec<String>,
    /// Runs in the finished image.
    pub check: Vec<Step>,
    /// `org.opencontainers.image.version`, and the tag in the layout.
    pub version: Option<String>,
}

/// `pod(…)`, its functions evaluated. Its images are among the instance's `deps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Containers, as written.
    pub containers: Vec<Container>,
    /// Volumes, as written.
    pub volumes: Vec<Volume>,
    /// Configuration files, in the bundle's `files/`.
    pub files: Vec<FileRecord>,
    /// Published by the pod.
    pub ports: Vec<Port>,
    /// Units to write: name to text.
    pub systemd_units: BTreeMap<String, String>,
    /// Version.
    pub version: Option<String>,
}

/// An image, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRef {
    /// An image of this build.
    Built(Id),
    /// `registry/name@sha256:…`.
    Registry(String),
}

impl Image {
    /// The image of this build that it stands on.
    pub fn built_base(&self) -> Option<Id> {
        match self.base {
            Some(ImageRef::Built(id)) => Some(id),
            _ => None,
        }
    }

    /// The image of a registry that it stands on.
    pub fn pulled_base(&self) -> Option<&str> {
        match &self.base {
            Some(ImageRef::Registry(reference)) => Some(reference),
            _ => None,
        }
    }
}

/// `container(…)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// Its image.
    pub image: ImageRef,
    /// Instead of the image's entrypoint and command.
    pub command: Vec<String>,
    /// Besides the image's.
    pub env: BTreeMap<String, String>,
    /// Name or number; empty: the image's.
    pub user: String,
    /// Name or number; empty: the user's.
    pub group: String,
    /// Absolute; empty: the image's.
    pub working_dir: String,
    /// The root file system can't be written.
    pub read_only: bool,
    /// Folders that are writable all the same: a tmpfs each.
    pub writable: Vec<String>,
    /// Volumes, and files of the pod.
    pub mounts: Vec<Mount>,
    /// Ports it listens on.
    pub ports: Vec<Port>,
    /// `liveness`, `readiness`, `startup`.
    pub probes: BTreeMap<String, Probe>,
    /// `always`, `on-failure`, `never`.
    pub restart: String,
}

impl Container {
    /// Would Kubernetes change this text? `k8s.io/kubernetes/third_party/forked/golang/expansion`.
    pub fn expands(&self, text: &str) -> bool {
        expands(text, &self.env)
    }
}

/// As [`Container::expands`].
pub fn expands(text: &str, env: &BTreeMap<String, String>) -> bool {
    text.contains("$$") || env.keys().any(|name| text.contains(&format!("$({name})")))
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The name of a volume, or the path of one of the pod's `files`.
    pub volume: String,
    /// Where, absolute.
    pub path: String,
    /// It can't be written there.
    pub read_only: bool,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Inside.
    pub port: u16,
    /// On the host; `None`: not published.
    pub host: Option<u16>,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// How to see whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// A command that exits 0.
    pub exec: Vec<String>,
    /// Or an HTTP path on `port`.
    pub http: Option<String>,
    /// Or that this port accepts.
    pub port: Option<u16>,
    /// Seconds between two.
    pub period: u64,
}

/// `volume(…)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// What it holds.
    pub holds: VolumeKind,
    /// Owner, name or number; empty: as in the files.
    pub user: String,
    /// Group, name or number.
    pub group: String,
    /// It can't be written by any container.
    pub read_only: bool,
}

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// Static data: files written from the build file, or taken from the package.
    Files(Vec<FileRecord>),
    /// A folder of the machine where the pod runs.
    HostPath(String),
    /// Empty at each start.
    Empty,
}

/// What `list` shows: a rule as defined, before any parameter has a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Definition {
    /// The label.
    pub label: Label,
    /// `rule`, `archive`, `git`, `tapeout`, `image`, `pod`, `parameter`.
    pub kind: String,
    /// The doc.
    pub doc: String,
    /// Where.
    pub place: Place,
    /// Dependencies as written.
    pub deps: Vec<DefinedDependency>,
    /// Reverse dependencies as written.
    pub reverse_deps: Vec<DefinedDependency>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// It wants the host's network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub network: bool,
    /// Names of the secrets that it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// For a parameter: `bool`, `int`, `string`, `path`, `list`.
    pub type_name: Option<String>,
    /// For a parameter: its default.
    pub default: Option<Value>,
    /// For a parameter: it is derived from others.
    pub derived: bool,
}

/// A dependency as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DefinedDependency {
    /// On what.
    pub label: Label,
    /// It has a `when`.
    pub conditional: bool,
    /// It sets parameters for what is below.
    pub parameters: BTreeMap<Label, Value>,
    /// Where.
    pub place: Place,
}
