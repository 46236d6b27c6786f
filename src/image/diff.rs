//! What tells two images apart: files, their sizes and owners, and where the first byte differs.
//!
//! Times and the order of entries are no part of a file; where nothing but these differs, the layers'
//! diff IDs do, and that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::files::{File, Files, Place, contents, files};
use crate::archive::holes::WithHoles;
use crate::archive::tar_reader::Kind;
use crate::builder::image::Image;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tree::RootPath;

/// Two images, held against each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Their manifests are one and the same.
    pub same: bool,
    /// Paths that differ, sorted as a walk.
    pub files: Vec<Differing>,
    /// Settings of the config that differ.
    pub settings: Vec<Setting>,
    /// The layers, those of one rule beside each other.
    pub layers: Vec<LayerPair>,
}

/// A path at which two images differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// The path.
    pub path: String,
    /// In which ways: `added`, `removed`, or of `kind`, `content`, `mode`, `owner`, `link`, `attributes`.
    pub how: Vec<&'static str>,
    /// In the first image.
    pub a: Option<Side>,
    /// In the second image.
    pub b: Option<Side>,
    /// Where the contents begin to differ: the number of bytes that are the same before it.
    pub byte: Option<u64>,
}

/// A file in one of the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The letter that `ls -l` has for its kind, and the mode.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Of its content, where it is a regular file.
    pub digest: Option<Digest>,
    /// What made the layer that it is in: a rule's label.
    pub rule: String,
}

/// A setting that differs: `User`, `Env`, …
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// In the first image.
    pub a: serde_json::Value,
    /// In the second image.
    pub b: serde_json::Value,
}

/// A rule's layer in both images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerPair {
    /// The rule.
    pub rule: String,
    /// Compressed size in the first image, where it has such a layer.
    pub a: Option<u64>,
    /// Compressed size in the second.
    pub b: Option<u64>,
    /// The tar streams are the same.
    pub same: bool,
    /// Paths that differ and that one of these two layers put there.
    pub differing: usize,
}

/// Holds two images against each other. `scratch` is an empty folder for contents that differ.
pub fn diff(a: &Image, b: &Image, scratch: &Path) -> Result<Diff> {
    if a.manifest.1 == b.manifest.1 {
        let layers = pairs(a, b, &[]);
        return Ok(Diff { same: true, files: vec![], settings: vec![], layers });
    }
    let (in_a, in_b) = (files(a, true)?, files(b, true)?);
    let mut differing = differing(a, &in_a, b, &in_b);
    let bytes = first_bytes(a, &in_a, b, &in_b, scratch)?;
    for one in &mut differing {
        one.byte = bytes.get(&one.path).copied();
    }
    let layers = pairs(a, b, &differing);
    Ok(Diff { same: false, files: differing, settings: settings(a, b)?, layers })
}

/// What a layer is called: its rule, or its number where the config doesn't say.
pub fn rule(image: &Image, layer: usize) -> String {
    image.layers[layer].created_by.clone().unwrap_or_else(|| format!("layer {}", layer + 1))
}

/// The letter of a kind and nine of the mode, as `ls -l` has them.
pub fn mode(kind: &Kind, mode: u32) -> String {
    let letter = match kind {
        Kind::File(_) | Kind::HardLink(_) => '-',
        Kind::Folder => 'd',
        Kind::Link(_) => 'l',
        Kind::Device { character: true, .. } => 'c',
        Kind::Device { character: false, .. } => 'b',
        Kind::Fifo => 'p',
    };
    let mut text = String::from(letter);
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 0o7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => set.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn side(image: &Image, file: &File) -> Side {
    Side {
        mode: mode(&file.item.kind, file.item.mode),
        uid: file.item.uid,
        gid: file.item.gid,
        size: file.size(),
        digest: file.digest,
        rule: rule(image, file.layer),
    }
}

fn differing(a: &Image, in_a: &Files, b: &Image, in_b: &Files) -> Vec<Differing> {
    let paths: BTreeSet<&RootPath> = in_a.0.keys().chain(in_b.0.keys()).collect();
    let one = |path: &RootPath| {
        let (of_a, of_b) = (in_a.0.get(path), in_b.0.get(path));
        let how = match (of_a, of_b) {
            (None, _) => vec!["added"],
            (_, None) => vec!["removed"],
            (Some(of_a), Some(of_b)) => ways(of_a, of_b),
        };
        (!how.is_empty()).then(|| Differing {
            path: path.to_string(),
            how,
            a: of_a.map(|file| side(a, file)),
            b: of_b.map(|file| side(b, file)),
            byte: None,
        })
    };
    paths.into_iter().filter_map(one).collect()
}

fn ways(a: &File, b: &File) -> Vec<&'static str> {
    let (x, y) = (&a.item, &b.item);
    let kind = match (&x.kind, &y.kind) {
        (Kind::File(_), Kind::File(_)) => (a.digest != b.digest).then_some("content"),
        (Kind::Link(one), Kind::Link(other)) => (one != other).then_some("link"),
        (one, other) => (one != other).then_some("kind"),
    };
    let is_link = matches!(x.kind, Kind::Link(_));
    let ways = [
        kind,
        (x.mode != y.mode && !is_link).then_some("mode"),
        ((x.uid, x.gid) != (y.uid, y.gid)).then_some("owner"),
        (x.xattrs != y.xattrs).then_some("attributes"),
    ];
    ways.into_iter().flatten().collect()
}

fn keep(content: &mut dyn Read, file: fs::File) -> io::Result<()> {
    let mut file = WithHoles::new(file);
    io::copy(content, &mut file)?;
    file.finish().map(drop)
}

/// Where the contents of files begin to differ, by path.
fn first_bytes(a: &Image, in_a: &Files, b: &Image, in_b: &Files, scratch: &Path) -> Result<BTreeMap<String, u64>> {
    // Several names may lead to one content.
    let mut wanted: BTreeMap<Place, Vec<(&RootPath, Place)>> = BTreeMap::new();
    for (path, of_a) in &in_a.0 {
        if let Some(of_b) = in_b.0.get(path)
            && let (Some(one), Some(other)) = (of_a.digest, of_b.digest)
            && one != other
        {
            wanted.entry(of_a.content).or_default().push((path, of_b.content));
        }
    }
    let name = |(layer, entry): Place| scratch.join(format!("{layer}.{entry}"));
    contents(a, &wanted.keys().copied().collect(), &mut |place, content| {
        let kept = fs::File::create_new(name(place)).and_then(|file| keep(content, file));
        kept.map_err(|e| Error::io("write", name(place), e))
    })?;
    let mut of_b: BTreeMap<Place, Vec<(&RootPath, Place)>> = BTreeMap::new();
    for (place, paths) in &wanted {
        for (path, other) in paths {
            of_b.entry(*other).or_default().push((path, *place));
        }
    }
    let mut found = BTreeMap::new();
    let other = scratch.join("other");
    contents(b, &of_b.keys().copied().collect(), &mut |place, content| {
        let failed = |e| Error::io("read", scratch, e);
        let pairs = &of_b[&place];
        // Names that share one content here and not there are rare: then it is kept as well.
        if pairs.len() > 1 {
            fs::File::create(&other).and_then(|file| keep(&mut *content, file)).map_err(failed)?;
        }
        for (path, kept) in pairs {
            let kept = fs::File::open(name(*kept)).map_err(failed)?;
            let same = if pairs.len() > 1 {
                fs::File::open(&other).and_then(|other| same_bytes(kept, other))
            } else {
                same_bytes(kept, &mut *content)
            };
            found.insert(path.to_string(), same.map_err(failed)?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// How many bytes are the same at the beginning of both.
pub fn same_bytes(a: impl Read, b: impl Read) -> io::Result<u64> {
    let (a, b) = (BufReader::with_capacity(64 * 1024, a), BufReader::with_capacity(64 * 1024, b));
    let mut same = 0;
    let mut b = b.bytes();
    for byte in a.bytes() {
        match b.next().transpose()? {
            Some(other) if byte? == other => same += 1,
            _ => break,
        }
    }
    Ok(same)
}

fn settings(a: &Image, b: &Image) -> Result<Vec<Setting>> {
    let read = |image: &Image| -> Result<BTreeMap<String, serde_json::Value>> {
        let mut config: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&image.config.1).map_err(|e| Error::failed(format!("the image's config: {e}")))?;
        let run = config.remove("config").and_then(|run| serde_json::from_value(run).ok());
        let mut all: BTreeMap<String, serde_json::Value> = run.unwrap_or_default();
        // What the layers are is told with them.
        config.retain(|name, _| name != "rootfs" && name != "history");
        all.append(&mut config);
        Ok(all)
    };
    let (a, b) = (read(a)?, read(b)?);
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let one = |name: &&String| {
        let (a, b) = (a.get(*name).cloned().unwrap_or_default(), b.get(*name).cloned().unwrap_or_default());
        (a != b).then(|| Setting { name: (*name).clone(), a, b })
    };
    Ok(names.iter().filter_map(one).collect())
}

/// The layers of both in the order of the first; of each rule the first beside the first, and so on.
fn pairs(a: &Image, b: &Image, differing: &[Differing]) -> Vec<LayerPair> {
    let mut left: Vec<Option<usize>> = (0..b.layers.len()).map(Some).collect();
    let mut take = |name: &str| {
        let found = left.iter_mut().find(|at| at.is_some_and(|at| rule(b, at) == name));
        found.and_then(Option::take)
    };
    let mut both: Vec<(String, Option<usize>, Option<usize>)> = (0..a.layers.len())
        .map(|at| {
            let name = rule(a, at);
            let other = take(&name);
            (name, Some(at), other)
        })
        .collect();
    both.extend(left.into_iter().flatten().map(|at| (rule(b, at), None, Some(at))));
    both.into_iter()
        .map(|(rule, of_a, of_b)| {
            let in_rule = |side: &Option<Side>| side.as_ref().is_some_and(|side| side.rule == rule);
            LayerPair {
                a: of_a.map(|at| a.layers[at].size),
                b: of_b.map(|at| b.layers[at].size),
                same: of_a.zip(of_b).is_some_and(|(x, y)| a.layers[x].diff_id == b.layers[y].diff_id),
                differing: differing.iter().filter(|one| in_rule(&one.a) || in_rule(&one.b)).count(),
                rule,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_that_differs_is_found() {
        for (a, b, same) in [("abc", "abd", 2), ("abc", "abc", 3), ("abc", "abcd", 3), ("", "x", 0), ("xa", "ya", 0)] {
            assert_eq!(same_bytes(a.as_bytes(), b.as_bytes()).unwrap(), same, "{a} {b}");
        }
    }

    #[test]
    fn a_mode_is_written_as_ls_has_it() {
        assert_eq!(mode(&Kind::File(0), 0o4755), "-rwsr-xr-x");
        assert_eq!(mode(&Kind::Folder, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(&Kind::Link(vec![]), 0o777), "lrwxrwxrwx");
        assert_eq!(mode(&Kind::File(0), 0o2640), "-rw-r-S---");
    }
}
