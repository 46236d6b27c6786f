//! An image into a registry: blobs first, a few at once, the manifest last, so that whoever pulls sees all
//! of it or the one before.
//!
//! Which repositories of a registry have a blob is remembered in the store: another repository there is
//! then asked to take it from them, and no byte is sent.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::builder::image::Image;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::remote::registry::{Pushed, Repository};
use crate::report::{Event, Report};
use crate::store::Store;

/// Blobs that are sent at once.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// What a push came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Where it is now, by digest.
    pub reference: String,
    /// Bytes that were sent, documents aside.
    pub bytes: u64,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs from other repositories of this registry.
    pub mounted: usize,
    /// Blobs that were there.
    pub there: usize,
}

/// A blob of an image: which, how large, and which layer (`None`: the config).
type Blob = (Digest, u64, Option<usize>);

/// Pushes an image under a tag.
pub fn push(image: &Image, repository: &Repository, tag: &str, store: &Store, report: &dyn Report) -> Result<Outcome> {
    let reference = repository.reference();
    let digest = image.digest();
    let mut outcome = Outcome {
        reference: format!("docker://{}/{}@{digest}", reference.registry, reference.repository),
        ..Outcome::default()
    };
    let mut blobs: Vec<Blob> =
        image.layers.iter().enumerate().map(|(at, layer)| (layer.digest, layer.size, Some(at))).collect();
    blobs.push((Digest::of(&image.config.1), image.config.1.len() as u64, None));
    blobs.sort();
    blobs.dedup_by_key(|(digest, ..)| *digest);
    if repository.manifest_digest(tag)? == Some(digest) {
        outcome.there = blobs.len();
        return Ok(outcome);
    }
    // The largest first: the end is not one worker with a large one.
    blobs.sort_by_key(|(_, size, _)| *size);
    let what = format!("push {reference}");
    report.event(Event::Started { what: &what, total: Some(blobs.iter().map(|(_, size, _)| size).sum()) });
    let pushed =
        push_all(image, repository, blobs, store, &|bytes| report.event(Event::Advanced { what: &what, bytes }));
    report.event(Event::Ended { what: &what });
    let (ways, bytes) = pushed?;
    for way in ways {
        match way {
            Pushed::There => outcome.there += 1,
            Pushed::Mounted => outcome.mounted += 1,
            Pushed::Sent => outcome.sent += 1,
        }
    }
    outcome.bytes = bytes;
    repository.put_manifest(tag, &image.manifest.0, &image.manifest.1)?;
    Ok(outcome)
}

fn push_all(
    image: &Image,
    repository: &Repository,
    blobs: Vec<Blob>,
    store: &Store,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<(Vec<Pushed>, u64)> {
    let workers = AT_ONCE.get().min(blobs.len());
    let (queue, done, errors) = (Mutex::new(blobs), Mutex::new(vec![]), Mutex::new(vec![]));
    let bytes = AtomicU64::new(0);
    let work = || {
        loop {
            // Not `while let`: the lock would be held while the blob is sent.
            let Some(blob) = lock(&queue).pop() else { return };
            let sent = &|n| {
                bytes.fetch_add(n, Ordering::Relaxed);
                on_bytes(n);
            };
            match push_one(image, repository, blob, store, sent) {
                Ok(way) => lock(&done).push(way),
                Err(error) => {
                    lock(&queue).clear();
                    lock(&errors).push(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    match lock(&errors).drain(..).next() {
        Some(error) => Err(error),
        None => Ok((std::mem::take(&mut *lock(&done)), bytes.into_inner())),
    }
}

fn push_one(
    image: &Image,
    repository: &Repository,
    (digest, size, layer): Blob,
    store: &Store,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<Pushed> {
    let reference = repository.reference();
    let key = Digest::of(format!("tapeout blob at 1\n{}\n{digest}\n", reference.registry));
    let known = store.action(&key).and_then(|bytes| String::from_utf8(bytes).ok());
    let known = known.filter(|known| *known != reference.repository);
    let open = |from: u64| -> Result<Box<dyn Read>> {
        let Some(at) = layer else {
            let mut bytes = Cursor::new(image.config.1.clone());
            bytes.set_position(from);
            return Ok(Box::new(bytes));
        };
        let mut file = image.open_layer(at)?;
        file.seek(SeekFrom::Start(from)).map_err(|e| Error::io("seek", digest.hex(), e))?;
        Ok(Box::new(file))
    };
    let way = repository.push_blob(&digest, size, known.as_deref(), &open, on_bytes)?;
    store.record_action(&key, reference.repository.as_bytes())?;
    Ok(way)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
