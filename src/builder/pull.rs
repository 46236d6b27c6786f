//! An image from a registry, by digest: its blobs come into the store, each checked before it counts, and are
//! read from there like those of a layout.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use super::image::{self, Blob, Image};
use crate::archive::tar_reader::Limits;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::remote::credentials::Keychain;
use crate::remote::http::Network;
use crate::remote::reference::Reference;
use crate::remote::registry::{Manifest, Repository};
use crate::store::Store;
use crate::sys::root::Root;

use super::debian::download::Progress;

/// Blobs that are fetched at once.
const AT_ONCE: usize = 4;

/// Brings an image into the store, and finds it there. What is there already is not fetched.
pub fn pull(
    reference: &Reference,
    keychain: &Keychain,
    network: Network,
    store: &Store,
    architecture: &str,
    progress: &dyn Progress,
) -> Result<Image> {
    let repository = Repository::new(reference, keychain, network);
    let Some(digest) = reference.digest else {
        return Err(Error::request(format!("{reference} may be another image tomorrow"))
            .why("it names no digest")
            .next(format!("write {}, which is what it is today", pinned(reference, keychain, network)?)));
    };
    let folder = Root::open(store.path())?;
    let mut top = manifest(&repository, store, &digest)?;
    // An index leads to the manifest for this machine, an index of indexes is nobody's habit.
    if let Some(inner) = image::of_this_machine(&top.media_type, &top.bytes, architecture)? {
        top = manifest(&repository, store, &inner)?;
    }
    let blobs: Vec<Blob> = image::blobs_of(&top.media_type, &top.bytes)?
        .into_iter()
        .filter(|(digest, _)| !store.has_blob(digest))
        .collect();
    let most = Limits::default().bytes;
    if let Some((digest, size)) = blobs.iter().find(|(_, size)| *size > most) {
        return Err(Error::failed(format!("{reference}: the blob {digest} claims {size} bytes")));
    }
    progress.phase("pull", blobs.len(), blobs.iter().map(|(_, size)| size).sum());
    fetch_all(&repository, store, blobs, progress)?;
    image::in_blobs(&folder, &top.media_type, top.digest, top.bytes.len() as u64, architecture)
}

/// With the digest of the image that its tag means now.
pub fn pinned(reference: &Reference, keychain: &Keychain, network: Network) -> Result<Reference> {
    let digest = match reference.digest {
        Some(digest) => digest,
        None => Repository::new(reference, keychain, network).manifest(&reference.wanted())?.digest,
    };
    Ok(Reference { digest: Some(digest), ..reference.clone() })
}

/// All blobs of an image, its manifests among them, where the store gives them all; `Err`: the first that it lacks.
pub fn kept(
    reference: &Reference,
    store: &Store,
    architecture: &str,
) -> Result<std::result::Result<BTreeSet<Digest>, Option<Digest>>> {
    let Some(mut next) = reference.digest else { return Ok(Err(None)) };
    let mut all = BTreeSet::new();
    loop {
        let Some((media_type, bytes)) = document(store, &next)? else { return Ok(Err(Some(next))) };
        all.insert(next);
        match image::of_this_machine(&media_type, &bytes, architecture)? {
            Some(inner) if all.len() == 1 => next = inner,
            _ => {
                all.extend(image::blobs_of(&media_type, &bytes)?.into_iter().map(|(digest, _)| digest));
                break;
            }
        }
    }
    Ok(match all.iter().find(|digest| !store.gives(digest)) {
        Some(missing) => Err(Some(*missing)),
        None => Ok(all),
    })
}

fn document(store: &Store, digest: &Digest) -> Result<Option<(String, Vec<u8>)>> {
    if store.gives(digest) { image::document_of(store.blob(digest)?, digest) } else { Ok(None) }
}

/// From the store, where it was pulled before, or a file of inputs.
fn manifest(repository: &Repository, store: &Store, digest: &Digest) -> Result<Manifest> {
    let manifest = match document(store, digest)? {
        Some((media_type, bytes)) => Manifest { media_type, bytes, digest: *digest },
        None => repository.manifest(&digest.to_string())?,
    };
    if !store.has_blob(digest) {
        store.put(&manifest.bytes)?;
    }
    Ok(manifest)
}

fn fetch_all(repository: &Repository, store: &Store, blobs: Vec<Blob>, progress: &dyn Progress) -> Result<()> {
    let workers = AT_ONCE.min(blobs.len());
    let (queue, errors) = (Mutex::new(blobs), Mutex::new(vec![]));
    let fetch = |(digest, size): Blob| -> Result<()> {
        let mut partial = store.begin()?;
        if store.gives(&digest) {
            // From a file of inputs.
            io::copy(&mut store.blob(&digest)?, &mut partial).map_err(|e| Error::io("copy", digest.hex(), e))?;
            return partial.finish_as(&digest).map(drop);
        }
        repository.blob(&digest, size, &mut partial, &|n| progress.bytes(n))?;
        partial.finish_as(&digest).map(drop).map_err(|e| e.context(format!("{}", repository.reference())))
    };
    let work = || {
        loop {
            let Some(blob) = lock(&queue).pop() else { return };
            if let Err(error) = fetch(blob) {
                lock(&queue).clear();
                lock(&errors).push(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    lock(&errors).drain(..).next().map_or(Ok(()), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
