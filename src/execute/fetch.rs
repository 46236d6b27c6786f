//! Files from outside: the places that a URL can name, tried in order, and the digest that decides.
//! What was fetched once is a blob of the store, and never fetched again.

use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use crate::build_file::spec::{Fetched, Instance, Source, Wheel};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::build::Build;
use crate::execute::request::key;
use crate::remote::http::shown;
use crate::remote::python_index;
use crate::report::Event;
use crate::store::inputs::Role;
use crate::store::{Partial, Store};
use crate::sys::root::Root;
use crate::tree::RootPath;

/// A file larger than this is refused.
const LARGEST: u64 = 64 << 30;
/// Bytes of a page of a Python index.
const PAGE: u64 = 64 << 20;
/// Files fetched at once, for one rule.
const AT_ONCE: usize = 8;

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Of this SHA-256.
    Sha256(Digest),
    /// Of this SHA-512: 128 hex digits.
    Sha512(String),
}

impl Expected {
    /// From `sha256:…` or `sha512:…`.
    pub fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("sha512:") {
            Some(hex) if hex.len() == 128 => Ok(Self::Sha512(hex.to_string())),
            _ => text.parse().map(Self::Sha256),
        }
    }

    /// The blob that it is, if the store or a file of inputs has it.
    pub fn known(&self, store: &Store) -> Result<Option<Digest>> {
        let given = |digest: Digest| store.gives(&digest).then_some(digest);
        let hex = match self {
            Self::Sha256(digest) => return Ok(given(*digest)),
            Self::Sha512(hex) => hex,
        };
        let action = key("sha512", hex.as_bytes());
        if let Some(digest) = remembered::<Digest>(store, &action).and_then(given) {
            return Ok(Some(digest));
        }
        for input in store.inputs().into_iter().flat_map(|inputs| inputs.of(Role::File)) {
            if input.key.as_deref() != Some(hex) || !store.gives(&input.digest) {
                continue;
            }
            let mut hash = Sink { partial: io::sink(), sha512: Some(Sha512::new()) };
            io::copy(&mut store.blob(&input.digest)?, &mut hash).map_err(|e| Error::io("read", &input.title, e))?;
            if hash.sha512().as_ref() == Some(hex) {
                remember(store, &action, &input.digest)?;
                return Ok(Some(input.digest));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "{digest}"),
            Self::Sha512(hex) => write!(f, "sha512:{hex}"),
        }
    }
}

fn remembered<T: serde::de::DeserializeOwned>(store: &Store, key: &Digest) -> Option<T> {
    serde_json::from_slice(&store.action(key)?).ok()
}

fn remember(store: &Store, key: &Digest, what: &impl Serialize) -> Result<()> {
    let document = serde_json::to_vec(what).map_err(|e| Error::failed(format!("can't write a result: {e}")))?;
    store.record_action(key, &document)
}

/// A file that lies in a rule's folder: where, and which blob it is.
pub type Laid = (String, Digest);

/// The file that was chosen for a wheel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chosen {
    /// Its name in the index.
    pub file: String,
    /// Its blob.
    pub digest: Digest,
}

/// Is all there that these sources would fetch?
pub fn all_here(store: &Store, sources: &[Source]) -> bool {
    sources.iter().all(|source| match source {
        Source::Path(_) | Source::Input(_) => true,
        Source::Fetched(fetched) => {
            Expected::parse(&fetched.digest).is_ok_and(|expected| matches!(expected.known(store), Ok(Some(_))))
        }
        Source::Wheel(wheel) => chosen(store, wheel).is_some() || left_out(store, wheel),
    })
}

/// The files that sources name by digest: those that the store lacks are fetched.
pub fn files(build: &Build, instance: &Instance, sources: &[Source]) -> Result<Vec<Laid>> {
    let wanted: Vec<&Source> =
        sources.iter().filter(|source| matches!(source, Source::Fetched(_) | Source::Wheel(_))).collect();
    let (next, made) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let fetch_some = || {
        while let Some(source) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let laid = match source {
                Source::Fetched(fetched) => fetched_file(build, instance, fetched).map(Some),
                Source::Wheel(wheel) => wheel_file(build, instance, wheel),
                Source::Path(_) | Source::Input(_) => Ok(None),
            };
            if laid.is_err() {
                // The others stop where they are.
                next.store(wanted.len(), Ordering::Relaxed);
            }
            made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(laid);
        }
    };
    if all_here(build.store, sources) {
        fetch_some();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(wanted.len()) {
                scope.spawn(fetch_some);
            }
        });
    }
    let made: Vec<Option<Laid>> =
        made.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).into_iter().collect::<Result<_>>()?;
    let mut laid: Vec<Laid> = made.into_iter().flatten().collect();
    laid.sort();
    Ok(laid)
}

fn fetched_file(build: &Build, instance: &Instance, fetched: &Fetched) -> Result<Laid> {
    let digest = get(build, instance, &fetched.urls, &Expected::parse(&fetched.digest)?)?;
    Ok((fetched.path.clone(), digest))
}

/// Which file a wheel is depends on its digests and the machine alone: an index only says where they are.
fn wheel_key(wheel: &Wheel) -> Digest {
    let document = serde_json::to_vec(&(&wheel.sha256, &wheel.python, std::env::consts::ARCH)).unwrap_or_default();
    key("wheel", &document)
}

/// The file that a wheel is, if the store or a file of inputs has it.
pub fn chosen(store: &Store, wheel: &Wheel) -> Option<Chosen> {
    let known = remembered(store, &wheel_key(wheel)).filter(|chosen: &Chosen| store.gives(&chosen.digest));
    known.or_else(|| {
        let named = store.inputs().into_iter().flat_map(|inputs| inputs.of(Role::Wheel));
        let files: Vec<_> = named
            .filter(|input| wheel.sha256.contains(&input.digest.hex()) && store.gives(&input.digest))
            .filter(|input| python_index::is_file_name(&input.title))
            .map(|input| python_index::IndexFile {
                name: input.title.clone(),
                url: String::new(),
                sha256: input.digest.hex(),
            })
            .collect();
        let best = python_index::best(&files, &wheel.python, std::env::consts::ARCH)?;
        Some(Chosen { file: best.name.clone(), digest: Digest::from_hex(&best.sha256).ok()? })
    })
}

/// How a file of inputs says that an optional wheel has no file for this machine.
pub fn left_out_name(wheel: &Wheel) -> String {
    format!("{} {} for Python {}", wheel.name, wheel.version, wheel.python)
}

/// Was it known, where the inputs were fetched, that no file of an optional wheel fits?
pub fn left_out(store: &Store, wheel: &Wheel) -> bool {
    wheel.optional && store.inputs().is_some_and(|inputs| inputs.left_out(&left_out_name(wheel)))
}

/// The file of a wheel, fetched where nobody has it yet; `None`: it is optional, and none fits.
pub fn wheel_file(build: &Build, instance: &Instance, wheel: &Wheel) -> Result<Option<Laid>> {
    let laid = |chosen: Chosen| Some((format!("{}/{}", wheel.folder, chosen.file), chosen.digest));
    if let Some(chosen) = chosen(build.store, wheel) {
        return Ok(laid(chosen));
    }
    if left_out(build.store, wheel) {
        return Ok(None);
    }
    let mut pages = vec![];
    for index in &wheel.indexes {
        let page = python_index::page(index, &wheel.name);
        let mut html = vec![];
        if build.base.http().fetch_if_there(&build.options.mirrored(&page), PAGE, &mut html, &|_| {})?.is_none() {
            continue;
        }
        let listed = python_index::files(&page, &String::from_utf8_lossy(&html))?;
        let allowed: Vec<_> = listed.into_iter().filter(|file| wheel.sha256.contains(&file.sha256)).collect();
        if let Some(best) = python_index::best(&allowed, &wheel.python, std::env::consts::ARCH) {
            let digest = get(
                build,
                instance,
                std::slice::from_ref(&best.url),
                &Expected::Sha256(Digest::from_hex(&best.sha256)?),
            )?;
            let chosen = Chosen { file: best.name.clone(), digest };
            remember(build.store, &wheel_key(wheel), &chosen)?;
            return Ok(laid(chosen));
        }
        let names = allowed.iter().map(|file| file.name.as_str()).take(8).collect::<Vec<_>>().join(", ");
        pages.push(if names.is_empty() {
            format!("{} has no file with one of the lock's digests", shown(&page))
        } else {
            format!("{} has {names}", shown(&page))
        });
    }
    if wheel.optional && !pages.is_empty() {
        return Ok(None);
    }
    let mut error = Error::failed(format!(
        "no wheel of {} {} fits Python {} on {}",
        wheel.name,
        wheel.version,
        wheel.python,
        std::env::consts::ARCH
    ));
    for page in pages {
        error = error.why(page);
    }
    Err(error.next("lock a version that has a wheel, or build one and name it in the sources"))
}

/// The blob of a file: the store's, or fetched from the first place that gives it.
pub fn get(build: &Build, instance: &Instance, urls: &[String], expected: &Expected) -> Result<Digest> {
    if let Some(digest) = expected.known(build.store)? {
        return Ok(digest);
    }
    let file = urls.first().and_then(|url| url.rsplit('/').next()).unwrap_or_default();
    let name = format!("{} {file}", instance.label);
    let mut failures = vec![];
    build.report.event(Event::Started { what: &name, total: None });
    for url in urls {
        match get_from(build, instance, url, expected, &name) {
            Ok(digest) => {
                build.report.event(Event::Ended { what: &name });
                return Ok(digest);
            }
            Err(error) => failures.push((url, error)),
        }
    }
    build.report.event(Event::Ended { what: &name });
    let mut error = Error::failed(format!("no place gave {file}"));
    error = error.at(instance.place.clone(), "");
    for (url, failure) in failures {
        error = error.why(format!("{}: {failure}", shown(url)));
    }
    Err(error.next("correct the URL or the digest, say where it is below [mirrors] in tapeout.toml, or give the file as an input: urls = [\"input:NAME\"]"))
}

fn get_from(build: &Build, instance: &Instance, url: &str, expected: &Expected, name: &str) -> Result<Digest> {
    let mut sink =
        Sink { partial: build.store.begin()?, sha512: matches!(expected, Expected::Sha512(_)).then(Sha512::new) };
    if let Some(input) = url.strip_prefix("input:") {
        let path =
            build.options.inputs.get(input).ok_or_else(|| Error::request(format!("no input is named {input:?}")))?;
        io::copy(&mut crate::sys::file::open_regular(path)?, &mut sink).map_err(|e| Error::io("read", path, e))?;
    } else if let Some(path) = url.strip_prefix("file:") {
        let folder = instance.folder.as_deref().ok_or_else(|| Error::request("a built-in package has no files"))?;
        let mut file = Root::open(folder)?.open_file(&RootPath::new(path)?)?;
        io::copy(&mut file, &mut sink).map_err(|e| Error::io("read", folder.join(path), e))?;
    } else {
        let urls = match url.strip_prefix("debian:") {
            Some(path) => build.base.pool_urls(path)?,
            None => vec![build.options.mirrored(url)],
        };
        let on_bytes = |bytes| build.report.event(Event::Advanced { what: name, bytes });
        let mut found = false;
        for url in &urls {
            if build.base.http().fetch_if_there(url, LARGEST, &mut sink, &on_bytes)?.is_some() {
                found = true;
                break;
            }
        }
        if !found {
            return Err(Error::failed("there is no such file"));
        }
    }
    sink.finish(build.store, expected)
}

/// Hashes what goes into the store once more, where it must be known by another hash.
struct Sink<W> {
    partial: W,
    sha512: Option<Sha512>,
}

impl<W> Sink<W> {
    fn sha512(&self) -> Option<String> {
        let sum = self.sha512.clone()?.finalize();
        Some(sum.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")))
    }
}

impl Sink<Partial> {
    fn finish(self, store: &Store, expected: &Expected) -> Result<Digest> {
        match (expected, self.sha512()) {
            (Expected::Sha512(expected), Some(hex)) => {
                if hex != *expected {
                    return Err(Error::failed("the content is not what its digest says")
                        .why(format!("expected sha512:{expected}, got sha512:{hex}")));
                }
                let digest = self.partial.finish()?.digest;
                remember(store, &key("sha512", hex.as_bytes()), &digest)?;
                Ok(digest)
            }
            (Expected::Sha256(expected), _) => self.partial.finish_as(expected).map(|blob| blob.digest),
            (Expected::Sha512(_), None) => Err(Error::failed("a file was not hashed")),
        }
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.partial.write(bytes)?;
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(&bytes[..n]);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.partial.flush()
    }
}

/// A patch of the package, kept as a blob, so that what was read is what is applied.
pub fn patch(build: &Build, instance: &Instance, path: &str) -> Result<Digest> {
    let folder = instance.folder.as_deref().ok_or_else(|| Error::request("a built-in package has no files"))?;
    let mut file = Root::open(folder)?.open_file(&RootPath::new(path)?)?.take(crate::archive::patch::SIZE);
    let mut partial = build.store.begin()?;
    io::copy(&mut file, &mut partial).map_err(|e| Error::io("read", folder.join(path), e))?;
    partial.finish().map(|blob| blob.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_known_by_its_sha512_is_found_again_and_a_wrong_one_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let hex: String = Sha512::digest(b"content").iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = Expected::parse(&format!("sha512:{hex}")).unwrap();
        let put = |content: &[u8]| {
            let mut sink = Sink { partial: store.begin().unwrap(), sha512: Some(Sha512::new()) };
            sink.write_all(content).unwrap();
            sink.finish(&store, &expected)
        };
        assert!(put(b"other").is_err());
        assert_eq!((expected.known(&store).unwrap(), store.has_blob(&Digest::of("other"))), (None, false));
        assert_eq!(put(b"content").unwrap(), Digest::of("content"));
        assert_eq!(expected.known(&store).unwrap(), Some(Digest::of("content")));
        assert!(Expected::parse("sha512:ab").is_err() && Expected::parse("md5:ab").is_err());
    }
}
