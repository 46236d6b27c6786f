//! What a build needs from outside: computed from the graph and the lock, before anything runs. What
//! `tapeout fetch` brings, and what a build without a network looks for, is this one list.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::build_file::spec::{Git, Id, Source, Spec, Wheel};
use crate::builder::debian::host_architecture;
use crate::builder::lock_file::LockedPackage;
use crate::builder::pull;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::{Build, Forecast};
use crate::execute::commit;
use crate::execute::fetch::{self, Expected};
use crate::execute::snapshot;
use crate::execute::unpack;
use crate::remote::http::shown;
use crate::remote::reference::Reference;
use crate::store::Store;
use crate::store::inputs::{Input, Role};

/// Fetched at once.
const AT_ONCE: usize = 8;

/// Something from outside.
#[derive(Debug, Clone)]
pub enum What {
    /// The lock of a builder that has none yet: it says which packages.
    Lock,
    /// The package index that the lock pins, where the lock lacks packages: its digest.
    Index(Digest),
    /// A Debian package.
    Package(LockedPackage),
    /// A file of a URL.
    File {
        /// Where it may be had.
        urls: Vec<String>,
        /// What it must be.
        expected: Expected,
    },
    /// A wheel.
    Wheel(Wheel),
    /// A commit.
    Commit(Git),
    /// An image of a registry.
    Image(Reference),
}

/// What is wanted, and by whom.
#[derive(Debug, Clone)]
pub struct Want {
    /// What.
    pub what: What,
    /// The instance that wants it; `None`: the builder.
    pub by: Option<Id>,
}

impl What {
    /// For people, and what makes two of them one.
    pub fn name(&self) -> String {
        match self {
            Self::Lock => "a tapeout.lock, which names its packages".into(),
            Self::Index(digest) => format!("package index {digest}"),
            Self::Package(package) => format!("package {} {} ({})", package.name, package.version, package.digest),
            Self::File { urls, expected } => {
                let url = urls.iter().find(|url| is_outside(url)).or(urls.first()).map_or("", String::as_str);
                format!("{} ({expected})", shown(url))
            }
            Self::Wheel(wheel) => format!("wheel of {} {} for Python {}", wheel.name, wheel.version, wheel.python),
            Self::Commit(git) => {
                let with = if git.submodules { " with its submodules" } else { "" };
                format!("commit {}{with} of {}", git.commit, git.urls.first().map_or(String::new(), |url| shown(url)))
            }
            Self::Image(reference) => format!("image {reference}"),
        }
    }

    /// The blobs that it is, as the store and the files of inputs have them, with what they are for a file of
    /// inputs; `Err`: what isn't there.
    fn blobs(&self, store: &Store) -> Result<std::result::Result<Vec<Input>, String>> {
        let one = |role: Role, title: String, key: Option<String>, digest: Option<Digest>| match digest {
            Some(digest) => Ok(Ok(vec![Input { role, title, key, digest, size: store.blob(&digest)?.size() }])),
            None => Ok(Err(self.name())),
        };
        let given = |digest: &Digest| store.gives(digest).then_some(*digest);
        match self {
            Self::Lock => Ok(Err(self.name())),
            Self::Index(digest) => one(Role::Index, "Packages".into(), None, given(digest)),
            Self::Package(package) => {
                let name = package.file.rsplit('/').next().unwrap_or_default();
                one(Role::Package, name.into(), None, given(&package.digest))
            }
            Self::File { urls, expected } => {
                let url = urls.iter().find(|url| is_outside(url)).or(urls.first()).map_or("", String::as_str);
                let key = match expected {
                    Expected::Sha512(hex) => Some(hex.clone()),
                    Expected::Sha256(_) => None,
                };
                one(Role::File, shown(url), key, expected.known(store)?)
            }
            Self::Wheel(wheel) => match fetch::chosen(store, wheel) {
                Some(chosen) => one(Role::Wheel, chosen.file, None, Some(chosen.digest)),
                None if fetch::left_out(store, wheel) => Ok(Ok(vec![])),
                None => Ok(Err(self.name())),
            },
            Self::Commit(git) => match commit::closure(store, &git.commit, git.submodules)? {
                Ok(all) => {
                    let inputs = all.into_iter().map(|(id, digest)| {
                        let title = format!("{id}.git.tar");
                        Ok(Input {
                            role: Role::Commit,
                            title,
                            key: Some(id),
                            digest,
                            size: store.blob(&digest)?.size(),
                        })
                    });
                    inputs.collect::<Result<Vec<_>>>().map(Ok)
                }
                Err(missing) if missing == git.commit => Ok(Err(self.name())),
                Err(missing) => Ok(Err(format!("{}: the submodule's commit {missing}", self.name()))),
            },
            Self::Image(reference) => match pull::kept(reference, store, host_architecture()?)? {
                Ok(all) => {
                    let inputs = all.into_iter().map(|digest| {
                        let (title, size) = (format!("{reference} {}", digest.short()), store.blob(&digest)?.size());
                        Ok(Input { role: Role::Image, title, key: None, digest, size })
                    });
                    inputs.collect::<Result<Vec<_>>>().map(Ok)
                }
                Err(Some(missing)) if Some(missing) != reference.digest => {
                    Ok(Err(format!("{}: its blob {missing}", self.name())))
                }
                Err(_) => Ok(Err(self.name())),
            },
        }
    }

    /// May it be had without a socket: from a mirror that is a folder of this machine?
    fn is_local(&self, build: &Build) -> bool {
        let local = |url: &String| build.options.mirrored(url).starts_with("file:") || !is_outside(url);
        match self {
            Self::Lock | Self::Index(_) | Self::Package(_) => build.base.has_local_mirror(),
            Self::File { urls, .. } => urls
                .iter()
                .any(|url| if url.starts_with("debian:") { build.base.has_local_mirror() } else { local(url) }),
            Self::Wheel(wheel) => wheel.indexes.iter().any(local),
            Self::Commit(git) => git.urls.iter().any(local),
            Self::Image(_) => false,
        }
    }
}

/// Does it come over a network, and not from the workspace or an input that it names?
fn is_outside(url: &str) -> bool {
    !url.starts_with("input:") && !url.starts_with("file:")
}

/// All that the instances of a graph need from outside, each once, with the first that wants it.
pub fn of(build: &Build) -> Result<Vec<Want>> {
    let mut wants = vec![];
    if build.base.lacks_lock() {
        wants.push(Want { what: What::Lock, by: None });
    }
    for package in build.base.builder_packages()? {
        wants.push(Want { what: What::Package(package), by: None });
    }
    if let Some(reference) = build.base.builder_image() {
        wants.push(Want { what: What::Image(reference.clone()), by: None });
    }
    for (id, instance) in build.graph.instances.iter().enumerate() {
        let mut want = |what: What| wants.push(Want { what, by: Some(id) });
        let here = |e: Error| e.at(instance.place.clone(), "");
        match &instance.spec {
            Spec::Rule(rule) => {
                if snapshot::is_base_build(build.graph, id) && !instance.packages.is_empty() {
                    match build.base.lacks_index(&instance.packages)? {
                        pins if !pins.is_empty() => pins.into_iter().for_each(|pin| want(What::Index(pin))),
                        _ => {
                            let packages = build.base.packages_of(&instance.packages, build.report).map_err(here)?;
                            packages.into_iter().for_each(|package| want(What::Package(package)));
                        }
                    }
                }
                for source in &rule.sources {
                    match source {
                        Source::Fetched(fetched) if fetched.urls.iter().any(|url| is_outside(url)) => {
                            let expected = Expected::parse(&fetched.digest)?;
                            want(What::File { urls: fetched.urls.clone(), expected });
                        }
                        Source::Wheel(wheel) => want(What::Wheel(wheel.clone())),
                        _ => {}
                    }
                }
            }
            Spec::Archive(archive) if archive.urls.iter().any(|url| is_outside(url)) => {
                let expected = Expected::Sha256(Digest::from_hex(&archive.sha256)?);
                want(What::File { urls: archive.urls.clone(), expected });
            }
            Spec::Image(image) => {
                if let Some(base) = image.pulled_base() {
                    want(What::Image(base.parse()?));
                }
            }
            Spec::Git(git) if git.urls.iter().any(|url| is_outside(url)) => want(What::Commit(git.clone())),
            _ => {}
        }
    }
    let mut seen = BTreeSet::new();
    wants.retain(|want| seen.insert(want.what.name()));
    Ok(wants)
}

/// Without a network: is all there that this build is going to need? All that is missing or damaged is one error.
pub fn check(build: &Build, asked: &[String]) -> Result<()> {
    let (mut missing, mut damaged) = (vec![], vec![]);
    for want in of(build)? {
        match want.what.blobs(build.store) {
            Ok(Ok(_)) => {}
            Ok(Err(name)) if !want.what.is_local(build) => missing.push((name, want.by)),
            Ok(Err(_)) => {}
            Err(error) => damaged.push((error, want.by)),
        }
    }
    if missing.is_empty() && damaged.is_empty() {
        return Ok(());
    }
    // What is wanted by a rule whose result is known is not needed. Where what is missing keeps results from being
    // looked for (the package index does), all of it is.
    let forecast = build.forecast().ok();
    let needed = |by: &Option<Id>| match (by, &forecast) {
        (Some(id), Some(forecast)) => build.graph.instances[*id].needs(forecast[*id]),
        _ => true,
    };
    let mut errors: Vec<Error> = vec![];
    missing.retain(|(_, by)| needed(by));
    if !missing.is_empty() {
        let things = if missing.len() == 1 { "an input".to_string() } else { format!("{} inputs", missing.len()) };
        let mut error = Error::failed(format!("{things} of this build is not here, and --offline forbids to fetch it"));
        if missing.len() > 1 {
            error = Error::failed(format!("{things} of this build are not here, and --offline forbids to fetch them"));
        }
        for (name, by) in missing {
            error = error.why(format!("{} wants {name}", build.wanting(by)));
        }
        errors.push(error.next(format!(
            "where there is a network: tapeout fetch {} -o inputs.oci.tar; then here: --inputs inputs.oci.tar",
            asked.join(" ")
        )));
    }
    errors.extend(damaged.into_iter().filter(|(_, by)| needed(by)).map(|(error, by)| {
        let wanting = build.wanting(by);
        error.why(format!("{wanting} wants it"))
    }));
    Error::all(errors).map_or(Ok(()), Err)
}

/// What a fetch came to.
#[derive(Debug, Default)]
pub struct Fetched {
    /// All inputs.
    pub inputs: BTreeSet<Input>,
    /// Optional packages of Python that have no file for this machine.
    pub left_out: BTreeSet<String>,
}

/// Brings all that is wanted into the store, several at once.
pub fn bring(build: &Build, wants: &[Want]) -> Result<Fetched> {
    let packages = wants.iter().filter_map(|want| match &want.what {
        What::Package(package) => Some(package),
        _ => None,
    });
    build.base.bring(&packages.collect::<Vec<_>>(), build.report)?;
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let work = || {
        while let Some(want) = wants.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = bring_one(build, want) {
                failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(wants.len()) {
            scope.spawn(work);
        }
    });
    if let Some(error) = Error::all(failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())) {
        return Err(error);
    }
    let mut fetched = Fetched::default();
    for want in wants {
        match want.what.blobs(build.store)? {
            Ok(inputs) => {
                if let (What::Wheel(wheel), true) = (&want.what, inputs.is_empty()) {
                    fetched.left_out.insert(fetch::left_out_name(wheel));
                }
                fetched.inputs.extend(inputs);
            }
            Err(name) => return Err(Error::failed(format!("{name} was fetched and is not there"))),
        }
    }
    Ok(fetched)
}

fn bring_one(build: &Build, want: &Want) -> Result<()> {
    let Some(id) = want.by else {
        return match &want.what {
            What::Image(reference) => build.base.pull(reference, build.report).map(drop),
            _ => Ok(()),
        };
    };
    let instance = &build.graph.instances[id];
    let brought = match &want.what {
        What::Lock | What::Package(_) | What::Index(_) => Ok(()),
        What::File { urls, expected } => fetch::get(build, instance, urls, expected).map(drop),
        What::Wheel(wheel) => fetch::wheel_file(build, instance, wheel).map(drop),
        What::Commit(git) => unpack::keep_commit(build, git),
        What::Image(reference) => build.base.pull(reference, build.report).map(drop),
    };
    brought.map_err(|e| e.at(instance.place.clone(), "").context(&instance.label))
}

/// Does an instance need what its sources name, given what is known of it?
trait Needs {
    fn needs(&self, forecast: Forecast) -> bool;
}

impl Needs for crate::build_file::spec::Instance {
    fn needs(&self, forecast: Forecast) -> bool {
        forecast != Forecast::Cached
    }
}
