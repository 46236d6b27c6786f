//! The packages that a mirror offers: `InRelease`, verified, and the `Packages` file that it names.

use std::collections::BTreeMap;
use std::io::Read;

use debversion::Version;

use super::names::{is_name, is_pool_path, version};
use super::relation::{Provided, Relation, parse_provides, parse_relations};
use super::release::Release;
use super::signature::{Keyring, MAX_RELEASE, signed_text};
use super::sources::Source;
use crate::archive::decompress::decompress;
use crate::builder::lock_file::{Lock, Pinned};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::remote::http::Http;
use crate::store::Store;

/// The largest `Packages` file, unpacked.
const MAX_PACKAGES: u64 = 1 << 30;

/// A package as the index has it.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: Version,
    /// `Essential: yes`
    pub essential: bool,
    /// `required`, `important`, …
    pub priority: String,
    /// `Pre-Depends`, then `Depends`, each a list of alternatives.
    pub depends: Vec<Vec<Relation>>,
    /// How many of them are `Pre-Depends`.
    pub pre_depends: usize,
    /// `Conflicts` and `Breaks`.
    pub conflicts: Vec<Relation>,
    /// `Provides`
    pub provides: Vec<Provided>,
    /// Path below the archive.
    pub filename: String,
    /// Of the `.deb`.
    pub digest: Digest,
    /// Of the `.deb`.
    pub size: u64,
    /// Which index it comes from.
    pub suite: String,
}

/// All packages, by name; versions in falling order.
#[derive(Debug, Default)]
pub struct Index {
    /// By name.
    pub packages: BTreeMap<String, Vec<Package>>,
    /// Who provides a name: packages that have such a version.
    pub providers: BTreeMap<String, Vec<String>>,
    /// What it was read from.
    pub pinned: Vec<Pinned>,
}

/// What is needed to read an index.
pub struct Reader<'a> {
    /// The way to the mirror.
    pub http: &'a Http,
    /// Where index files are kept.
    pub store: &'a Store,
    /// Keys that we trust.
    pub keyring: &'a Keyring,
    /// `amd64`
    pub architecture: &'a str,
    /// The time now.
    pub now: i64,
}

impl Reader<'_> {
    /// The index of all these sources as it is now. `seen` are those of the lock, which it may not be older than.
    pub fn newest(&self, sources: &[Source], seen: &[Pinned]) -> Result<Index> {
        let mut index = Index::default();
        for source in sources {
            let (release, signed) = self.release(source, seen)?;
            for component in &source.components {
                let (pinned, bytes) = self.packages(source, &release, component)?;
                self.keep_release(&pinned, &signed)?;
                index.add(&bytes, &source.suite, self.architecture)?;
                index.pinned.push(pinned);
            }
        }
        index.sort();
        Ok(index)
    }

    /// The index that the lock pins: from the store, else from a mirror that still has it by its digest.
    pub fn pinned(&self, sources: &[Source], pins: &[Pinned]) -> Result<Index> {
        let mut index = Index::default();
        for pin in pins {
            let digest = Digest::from_hex(&pin.sha256)?;
            if !self.store.gives(&digest) {
                let gone = |e: Error| {
                    e.why(format!("the lock pins the index of {} that was made at {}", pin.suite, pin.date))
                        .next("make a new lock with tapeout lock --update")
                };
                let source = sources
                    .iter()
                    .find(|s| s.suite == pin.suite)
                    .ok_or_else(|| gone(Error::failed(format!("no mirror of {} is known", pin.suite))))?;
                let url = format!(
                    "{}/dists/{}/{}/binary-{}/by-hash/SHA256/{}",
                    source.uri, source.suite, pin.component, self.architecture, pin.sha256
                );
                self.keep(&url, &digest, pin.size).map_err(gone)?;
            }
            index.add(&self.unpacked(&digest)?, &pin.suite, self.architecture)?;
            index.pinned.push(pin.clone());
        }
        index.sort();
        Ok(index)
    }

    /// Keeps the signed file that names an index, for whoever can't ask the mirror.
    fn keep_release(&self, pinned: &Pinned, signed: &[u8]) -> Result<()> {
        let blob = self.store.put(signed)?;
        self.store.record_action(&release_key(pinned), blob.digest.to_string().as_bytes())
    }

    /// The signed file that names a pinned index: as it was kept, or the mirror's, while that is the same one.
    pub fn release_of(&self, sources: &[Source], pin: &Pinned) -> Option<Digest> {
        let kept = self.store.action(&release_key(pin)).and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
        kept.filter(|digest| self.store.has_blob(digest)).or_else(|| {
            let source = sources.iter().find(|source| source.suite == pin.suite)?;
            let (release, signed) = self.release(source, &[]).ok()?;
            let same = super::release::shown_time(release.date) == pin.date && names(&release, pin);
            self.store.put(&signed).ok().filter(|_| same).map(|blob| blob.digest)
        })
    }

    /// The lock that a file of inputs brought: every package of it stands in an index that a signed file names.
    pub fn check_lock(&self, lock: &Lock, releases: &[Digest]) -> Result<()> {
        let unsigned = |pin: &Pinned, why: String| {
            Error::failed(format!("nothing says that the index of {} of {} is the distribution's", pin.suite, pin.date))
                .why(why)
                .next("copy tapeout.lock into the workspace, from where the inputs were fetched")
        };
        for pin in &lock.index {
            let mut why = "there is no InRelease that names it".to_string();
            let signed = releases.iter().any(|digest| match self.signed(digest) {
                Ok(release) => names(&release, pin) && release.check(&pin.suite, release.date, None).is_ok(),
                Err(error) => {
                    why = error.reasons().first().cloned().unwrap_or_else(|| error.what().to_string());
                    false
                }
            });
            if !signed {
                return Err(unsigned(pin, why));
            }
        }
        let index = self.pinned(&[], &lock.index)?;
        for locked in lock.packages.values() {
            let same = |package: &&Package| {
                (package.version.to_string(), package.digest, package.size, &package.filename)
                    == (locked.version.clone(), locked.digest, locked.size, &locked.file)
            };
            if !index.packages.get(&locked.name).is_some_and(|versions| versions.iter().any(|p| same(&p))) {
                return Err(Error::failed(format!(
                    "the lock has {} {}, which the distribution's index doesn't have",
                    locked.name, locked.version
                ))
                .next("copy tapeout.lock into the workspace, from where the inputs were fetched"));
            }
        }
        Ok(())
    }

    /// A release that lies in the store or a file of inputs.
    fn signed(&self, digest: &Digest) -> Result<Release> {
        let mut bytes = vec![];
        let blob = self.store.blob(digest)?;
        blob.take(MAX_RELEASE).read_to_end(&mut bytes).map_err(|e| Error::io("read", "InRelease", e))?;
        Release::parse(&signed_text(&bytes, self.keyring, self.now, "InRelease")?)
    }

    /// Brings a pinned index into the store, where a mirror still has it.
    pub fn keep_pinned(&self, sources: &[Source], pin: &Pinned) -> Result<Digest> {
        self.pinned(sources, std::slice::from_ref(pin))?;
        Digest::from_hex(&pin.sha256)
    }

    fn release(&self, source: &Source, seen: &[Pinned]) -> Result<(Release, Vec<u8>)> {
        let url = format!("{}/dists/{}/InRelease", source.uri, source.suite);
        let file = self.http.get(&url, MAX_RELEASE)?;
        let text = signed_text(&file, self.keyring, self.now, &crate::remote::http::shown(&url))?;
        let release = Release::parse(&text)?;
        let seen = seen
            .iter()
            .filter(|pin| pin.suite == source.suite)
            .filter_map(|pin| super::release::parse_time(&pin.date))
            .max();
        release.check(&source.suite, self.now, seen)?;
        Ok((release, file))
    }

    fn packages(&self, source: &Source, release: &Release, component: &str) -> Result<(Pinned, Vec<u8>)> {
        let folder = format!("{component}/binary-{}", self.architecture);
        let found = ["Packages.xz", "Packages.gz", "Packages"].iter().find_map(|name| {
            let path = format!("{folder}/{name}");
            release.files.get(&path).map(|(digest, size)| (path, *digest, *size))
        });
        let Some((path, digest, size)) = found else {
            return Err(Error::failed(format!("the mirror has no {folder}/Packages for {}", source.suite))
                .next("name another mirror with --mirror"));
        };
        if !self.store.gives(&digest) {
            let base = format!("{}/dists/{}", source.uri, source.suite);
            let by_hash = format!("{base}/{folder}/by-hash/SHA256/{}", digest.hex());
            let plain = format!("{base}/{path}");
            if !release.by_hash || self.keep(&by_hash, &digest, size).is_err() {
                self.keep(&plain, &digest, size)?;
            }
        }
        let pinned = Pinned {
            suite: source.suite.clone(),
            component: component.into(),
            date: super::release::shown_time(release.date),
            sha256: digest.hex(),
            size,
        };
        Ok((pinned, self.unpacked(&digest)?))
    }

    fn keep(&self, url: &str, digest: &Digest, size: u64) -> Result<()> {
        let mut blob = self.store.begin()?;
        self.http.fetch(url, size, &mut blob, &|_| {})?;
        blob.finish_as(digest).map(drop).map_err(|e| e.context(crate::remote::http::shown(url)))
    }

    fn unpacked(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bad = |e| Error::failed(format!("the package index {} can't be read: {e}", digest.short()));
        let mut bytes = vec![];
        decompress(self.store.blob(digest)?, MAX_PACKAGES).and_then(|mut r| r.read_to_end(&mut bytes)).map_err(bad)?;
        Ok(bytes)
    }
}

impl Index {
    /// Adds a `Packages` file.
    pub fn add(&mut self, bytes: &[u8], suite: &str, architecture: &str) -> Result<()> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::failed(format!("the package index of {suite} is not UTF-8")))?;
        for stanza in text.split("\n\n").map(str::trim).filter(|s| !s.is_empty()) {
            let package = parse_package(stanza, suite, architecture)
                .map_err(|e| e.context(format!("the package index of {suite}")))?;
            if let Some(package) = package {
                self.packages.entry(package.name.clone()).or_default().push(package);
            }
        }
        Ok(())
    }

    /// Falling versions, one of each; and who provides what.
    fn sort(&mut self) {
        for (name, versions) in &mut self.packages {
            versions.sort_by(|a, b| b.version.cmp(&a.version));
            versions.dedup_by(|a, b| a.version == b.version);
            for provided in versions.iter().flat_map(|v| &v.provides) {
                let providers = self.providers.entry(provided.name.clone()).or_default();
                if providers.last() != Some(name) {
                    providers.push(name.clone());
                }
            }
        }
    }

    /// From stanzas, for tests.
    #[cfg(test)]
    pub fn of(text: &str) -> Self {
        let mut index = Self::default();
        index.add(text.as_bytes(), "test", "amd64").unwrap();
        index.sort();
        index
    }
}

/// The action under which the signed file of an index is kept.
fn release_key(pinned: &Pinned) -> Digest {
    Digest::of(format!("tapeout release 1\n{}\n{}\n", pinned.suite, pinned.sha256))
}

/// Does a release have this very index?
fn names(release: &Release, pin: &Pinned) -> bool {
    release.files.values().any(|(digest, size)| digest.hex() == pin.sha256 && *size == pin.size)
}

/// One stanza; `None`: not for this architecture.
fn parse_package(stanza: &str, suite: &str, architecture: &str) -> Result<Option<Package>> {
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in stanza.lines().filter(|l| !l.starts_with([' ', '\t'])) {
        let (name, value) = line.split_once(':').ok_or_else(|| Error::failed(format!("not a field: {line:?}")))?;
        fields.insert(name, value.trim());
    }
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    let name = field("Package");
    let bad = |what: &str| Error::failed(format!("package {name:?} has no good {what}"));
    if !is_name(name) {
        return Err(bad("name"));
    }
    if ![architecture, "all"].contains(&field("Architecture")) {
        return Ok(None);
    }
    let mut depends = parse_relations(field("Pre-Depends"), architecture)?;
    let pre_depends = depends.len();
    depends.extend(parse_relations(field("Depends"), architecture)?);
    let mut conflicts = parse_relations(field("Conflicts"), architecture)?;
    conflicts.extend(parse_relations(field("Breaks"), architecture)?);
    Ok(Some(Package {
        name: name.into(),
        version: version(field("Version")).ok_or_else(|| bad("version"))?,
        essential: field("Essential") == "yes",
        priority: field("Priority").into(),
        depends,
        pre_depends,
        conflicts: conflicts.into_iter().flatten().collect(),
        provides: parse_provides(field("Provides"))?,
        filename: Some(field("Filename")).filter(|f| is_pool_path(f)).ok_or_else(|| bad("file name"))?.into(),
        digest: Digest::from_hex(field("SHA256")).map_err(|_| bad("digest"))?,
        size: field("Size").parse().map_err(|_| bad("size"))?,
        suite: suite.into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_with_what_could_lead_elsewhere_is_refused() {
        let stanza = |name: &str, file: &str, sha: &str| {
            format!(
                "Package: {name}\nVersion: 1.0\nArchitecture: amd64\nFilename: {file}\nSize: 3\nSHA256: {sha}\nDescription: x\n more: y\n"
            )
        };
        let digest = Digest::of("x").hex();
        assert!(parse_package(&stanza("a", "pool/a_1.deb", &digest), "s", "amd64").unwrap().is_some());
        assert!(parse_package(&stanza("a", "pool/a_1.deb", &digest), "s", "arm64").unwrap().is_none());
        for (name, file, sha) in [
            ("../a", "p", digest.as_str()),
            ("a", "../p", &digest),
            ("a", "/p", &digest),
            ("a", "p//q", &digest),
            ("a", "p", "abc"),
            ("-a", "p", &digest),
            ("a", "p q", &digest),
        ] {
            assert!(parse_package(&stanza(name, file, sha), "s", "amd64").is_err(), "{name} {file}");
        }
    }
}
