//! One rule: from a request to a changeset in the store.
//!
//! `log` → sandbox → upper folder → captured changeset → store → result document, in this order:
//! the result is recorded last, so that a kill leaves either nothing or all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::build_file::spec::{Ids, Owners};
use crate::builder::debian::install::DEBS;
use crate::changeset::{self, Options};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::failure;
use crate::execute::identity::{self, Renumber};
use crate::execute::log::{self, Live};
use crate::execute::request::{FORMAT, Outcome, Request};
use crate::execute::room::{self, Lent, Room};
use crate::execute::secrets::Given;
use crate::sandbox::{Bind, NO_OWNERS, Snapshots, Spec, Turn};
use crate::store::{Cache, Scratch, Store};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::{Layer, Met, Node, RootPath, Stack, walk};

/// The changeset of a request that ran before.
pub fn cached(store: &Store, request: &Request) -> Option<Digest> {
    let outcome: Outcome = serde_json::from_slice(&store.action(&request.key())?).ok()?;
    (outcome.format == FORMAT && store.has_changeset(&outcome.changeset)).then_some(outcome.changeset)
}

/// Who looks on while a rule runs.
pub struct Onlooker<'a> {
    /// Is told what it prints.
    pub live: Option<Live<'a>>,
    /// Where a step fails, it gets the folder with what was changed, and may move it.
    pub left: &'a dyn Fn(&Path),
    /// When its steps may begin.
    pub turn: Turn<'a>,
}

impl Onlooker<'_> {
    /// Nobody does.
    pub fn nobody() -> Self {
        Self { live: None, left: &|_| {}, turn: Turn::NOW }
    }
}

/// Runs a request in a sandbox over `snapshot` and keeps what it changed. Where it installed
/// packages, the users and groups that are new get the lock's numbers.
pub fn run(
    store: &Store,
    request: &Request,
    snapshot: &Stack,
    renumber: Option<&Renumber>,
    secrets: Given<'_>,
    onlooker: Onlooker<'_>,
) -> Result<(Layer, Vec<String>)> {
    let kept = store.log_path(&request.key());
    let (layer, weakened) = make(store, request, snapshot, renumber, secrets, onlooker, &kept)?;
    let document = serde_json::to_vec(&Outcome { format: FORMAT, changeset: layer.digest })
        .map_err(|e| Error::failed(e.to_string()))?;
    store.record_action(&request.key(), &document)?;
    Ok((layer, weakened))
}

/// Runs a request once more: the result and the log that the store has of it stay.
pub fn again(store: &Store, request: &Request, snapshot: &Stack, secrets: Given<'_>) -> Result<Layer> {
    let scratch = store.scratch()?;
    make(store, request, snapshot, None, secrets, Onlooker::nobody(), &scratch.path().join("log"))
        .map(|(layer, _)| layer)
}

fn make(
    store: &Store,
    request: &Request,
    snapshot: &Stack,
    renumber: Option<&Renumber>,
    secrets: Given<'_>,
    onlooker: Onlooker<'_>,
    kept: &Path,
) -> Result<(Layer, Vec<String>)> {
    let caches = caches(store, request)?;
    let turn = match room::place(store)?.snapshots {
        Snapshots::Overlay => onlooker.turn,
        // A kept tree is one rule's at a time, and for a second one the whole builder would be copied.
        Snapshots::Copy => {
            (onlooker.turn.begin)()?;
            Turn::NOW
        }
    };
    let room = Room::of(store, snapshot)?;
    let log_path = room.scratch().path().join("log");
    let mut spec = spec(store, request, snapshot, &room)?;
    spec.secrets = secrets.own.to_vec();
    spec.mounts.extend(caches.iter().map(|(inside, cache)| Bind {
        host: cache.folder().to_path_buf(),
        inside: inside.to_string(),
        read_only: false,
    }));
    let resolver = if request.network { resolver(snapshot)? } else { None };
    let lent =
        resolver.filter(|shown| !can_be_mounted(shown)).map(|(host, path)| room.lend(&host, path)).transpose()?;
    // The clock of the file system that the caches lie on.
    let began = fs::metadata(&spec.tmp).map_err(|e| Error::io("stat", &spec.tmp, e))?;
    let outcome = log::run(&spec, &log_path, secrets.all, onlooker.live, turn);
    for (inside, cache) in &caches {
        secrets.all.refuses_in_cache(cache.folder(), inside, (began.ctime(), began.ctime_nsec()))?;
    }
    let outcome = outcome?;
    lent.map_or(Ok(()), Lent::give_back)?;
    for (inside, _) in caches.iter().rev() {
        forget_mount_point(&room.changed()?, snapshot, inside)?;
    }
    drop(caches);
    fs::rename(&log_path, kept).map_err(|e| Error::io("rename", kept, e))?;
    if !outcome.status.success() {
        let left = failure::Left { root: &room.changed()?, snapshot, tmp: &spec.tmp, log: kept };
        let error = failure::of(&outcome, request, &left);
        // What it wrote may hold a secret, and those are kept nowhere.
        let keep: &dyn Fn(&Path) = if secrets.own.is_empty() { onlooker.left } else { &|_| {} };
        let on_host = room.is_on_host();
        room.give_up(snapshot, &outcome.recorded, keep)?;
        let may_be_owners = outcome.weakened.iter().any(|weaker| weaker == NO_OWNERS);
        let error = if may_be_owners { error.why(NO_OWNERS) } else { error };
        let error = failure::of_the_host(log::told(error, kept), !on_host);
        return Err(failure::without_network(failure::without_packages(error), request.network));
    }
    let map = renumber.map(|renumber| renumber.map(&room.changed()?)).transpose()?.unwrap_or_default();
    let options = Options { time: request.time, owner: request.user };
    let layer = room.capture(snapshot, &outcome.recorded, &options, |mut captured, files| {
        if !map.is_empty() {
            captured.renumber(&map.users, &map.groups);
            identity::rewrite(&mut captured, &map)?;
        }
        secrets.all.refuses(&captured)?;
        let (changeset, digest) = captured.name()?;
        store.keep_changeset(digest, changeset, files)
    })?;
    Ok((layer, outcome.weakened))
}

/// What a request wants of a sandbox, in a room of its own.
pub(super) fn spec(store: &Store, request: &Request, snapshot: &Stack, room: &Room) -> Result<Spec> {
    let packages =
        (!request.packages.is_empty()).then(|| lay_out(store, &request.packages, room.scratch())).transpose()?;
    let packages = packages.map(|host| Bind { host, inside: DEBS.to_string(), read_only: true });
    let resolver = if request.network { resolver(snapshot)? } else { None };
    let resolver =
        resolver.filter(can_be_mounted).map(|(host, path)| Bind { host, inside: path.to_string(), read_only: true });
    Ok(Spec {
        mounts: packages.into_iter().chain(resolver).collect(),
        steps: request.steps.clone(),
        env: request.env.clone(),
        cwd: request.working_dir.clone(),
        uid: request.user.0,
        gid: request.user.1,
        network: request.network,
        limits: request.limits,
        seen: (request.owners == Owners::Seen).then(|| changeset::known(snapshot)),
        range: (request.ids == Ids::Range).then(|| changeset::known(snapshot)),
        ..room.spec()?
    })
}

/// The caches of a rule by their paths. All take them in the same order, so that no two rules wait
/// for each other.
fn caches<'a>(store: &Store, request: &'a Request) -> Result<BTreeMap<&'a str, Cache>> {
    let paths: BTreeSet<_> = request.caches.iter().map(|path| path.trim_end_matches('/')).collect();
    paths.into_iter().map(|path| Ok((path, store.cache_of(path)?))).collect()
}

/// The folders that were made to mount a cache on are no part of what a rule changed.
fn forget_mount_point(root: &Root, snapshot: &Stack, inside: &str) -> Result<()> {
    let mut path = RootPath::new(inside)?;
    while !path.is_root() && snapshot.get(&path).is_none() {
        let parent = path.parent().unwrap_or_default();
        match root.folder(&parent).and_then(|folder| file::remove_folder_at(folder.as_fd(), path.name())) {
            // The rule put something beside it.
            Ok(false) => return Ok(()),
            Ok(true) => path = parent,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Who has the host's network asks the host's name servers, where its builder has a file to show them at: often a link, to
/// what a resolver writes below `/run`, which is made anew for each rule. The host's file, and where it is shown.
fn resolver(snapshot: &Stack) -> Result<Option<(PathBuf, RootPath)>> {
    let path = walk(&RootPath::new("etc/resolv.conf")?, true, |next| match snapshot.get(next) {
        Some((entry, _)) => Some(match &entry.node {
            Node::Link { target } => Met::Link(target),
            Node::Folder => Met::Folder,
            _ => Met::File,
        }),
        None => is_made_anew(next).then_some(Met::Folder),
    });
    let is_file =
        |path: &RootPath| snapshot.get(path).is_some_and(|(entry, _)| matches!(entry.node, Node::File { .. }));
    let path = path.filter(|path| is_made_anew(path) || is_file(path));
    // Often a link as well.
    let host = fs::canonicalize("/etc/resolv.conf").ok().filter(|host| host.is_file());
    Ok(host.zip(path))
}

fn is_made_anew(path: &RootPath) -> bool {
    path.as_bytes().starts_with(b"run/")
}

fn can_be_mounted((_, path): &(PathBuf, RootPath)) -> bool {
    !room::is_open() || is_made_anew(path)
}

/// A folder with the packages under their names. Hard links are safe here: it is mounted read-only.
fn lay_out(store: &Store, packages: &BTreeMap<String, Digest>, scratch: &Scratch) -> Result<PathBuf> {
    let folder = scratch.folder("packages")?;
    for (name, digest) in packages {
        let to = folder.join(name);
        if store.has_blob(digest) {
            fs::hard_link(store.blob_path(digest), &to).map_err(|e| Error::io("link", &to, e))?;
        } else {
            let mut made = fs::File::create_new(&to).map_err(|e| Error::io("create", &to, e))?;
            std::io::copy(&mut store.blob(digest)?, &mut made).map_err(|e| Error::io("copy", &to, e))?;
        }
    }
    Ok(folder)
}

/// What failed on a full disk may not have been able to say so, or not where: `places` are what was written to.
pub fn on_full_disk(error: Error, places: &[&Path]) -> Error {
    let is_full = |place: &&&Path| {
        // A place that isn't there yet lies on the disk of its nearest folder.
        let there = place.ancestors().find(|path| path.exists()).unwrap_or(place);
        nix::sys::statvfs::statvfs(there).is_ok_and(|stat| {
            stat.blocks_available() * stat.fragment_size() < 1 << 20
                || (stat.files() > 0 && stat.files_available() == 0)
        })
    };
    let full = places.iter().find(is_full);
    let said = error.what().contains(Errno::ENOSPC.desc());
    match full {
        Some(place) => error
            .why(format!("{}: {}", place.display(), Errno::ENOSPC.desc()))
            .next(format!("make room on the file system that holds {}", place.display())),
        None if said => error.next("make room on the file system that holds it"),
        None => error,
    }
}
