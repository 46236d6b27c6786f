//! What the layers of one image repeat: a file that two rules both picked, a folder that must not undo what
//! a layer below says of it, a removal with nothing below. The folders that a layer's files lie in stay,
//! so that the layer of a rule has the same bytes in every image. Where an image wants a single layer, what they come to
//! together is one.

use super::lookup::{lay, merged, put};
use super::why::Why;
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection};

/// Takes out of each layer what the layers below it (and the base) have in the same way. Gives what stands in the end.
pub fn settle(base: &Selection, layers: &mut [Selection]) -> Selection {
    let mut below = merged([base]);
    for layer in layers {
        layer.retain(|path, picked| match (below.get(path), &picked.entry) {
            (None, None) => below.range(path.clone()..).next().is_some_and(|(p, _)| p.starts_with(path)),
            (None, Some(_)) | (Some(_), None) => true,
            (Some(before), Some(entry)) if same(before, entry) => entry.is_folder(),
            (Some(before), Some(entry)) => !only_holds(picked, before, entry),
        });
        let repeats = |(path, picked): (&RootPath, &Picked)| {
            let entry = picked.entry.as_ref();
            entry.is_some_and(|entry| below.get(path).is_some_and(|before| same(before, entry)))
        };
        if layer.iter().all(repeats) {
            layer.clear();
        }
        alone(layer);
        lay(&mut below, layer);
    }
    below
}

/// One layer that makes of the base what these make of it one on another; `files` are what stands then.
pub fn squash(base: &Selection, layers: Vec<Selection>, files: &Selection) -> Selection {
    let (mut one, mut taken) = (Selection::new(), 0);
    for mut layer in layers {
        // Each layer numbers its hard links from nothing.
        let of_layer = taken;
        for group in layer.values_mut().filter_map(group_of_mut) {
            *group += of_layer;
            taken = taken.max(*group + 1);
        }
        if one.is_empty() {
            one = layer.into_iter().filter(|(_, picked)| picked.entry.is_some()).collect();
            continue;
        }
        layer.into_iter().for_each(|(path, picked)| put(&mut one, path, picked));
    }
    alone(&mut one);
    one.extend(gone(base, files).map(|path| (path, Picked { entry: None, content: Content::None, why: "".into() })));
    one
}

/// What the base has and what stands in the end hasn't: the highest folder that is gone, for all that was in it.
fn gone(base: &Selection, files: &Selection) -> impl Iterator<Item = RootPath> {
    let there = |path: &RootPath| files.range(path.clone()..).next().is_some_and(|(p, _)| p.starts_with(path));
    base.keys().filter(|path| !files.contains_key(*path)).filter_map(move |path| {
        let missing = path.ancestors().filter(|above| !above.is_root() && !there(above));
        let highest = missing.last().unwrap_or_else(|| path.clone());
        let above = highest.parent().and_then(|above| files.get(&above)?.entry.as_ref());
        // What replaces a folder hides all of it.
        above.is_none_or(Entry::is_folder).then_some(highest)
    })
}

fn same(before: &Picked, entry: &Entry) -> bool {
    before.entry.as_ref().is_some_and(|before| before.digest() == entry.digest())
}

/// A folder that came along gives way to one that was picked before.
fn only_holds(picked: &Picked, before: &Picked, entry: &Entry) -> bool {
    let came_along = matches!(picked.why.parse(), Ok(Why::Holds(_) | Why::Skeleton(_)));
    came_along && entry.is_folder() && before.entry.as_ref().is_some_and(Entry::is_folder)
}

/// A name whose other names are all gone is an ordinary file.
fn alone(layer: &mut Selection) {
    let group_of = |picked: &Picked| match picked.entry.as_ref().map(|e| &e.node) {
        Some(Node::File { group, .. }) => *group,
        _ => None,
    };
    let mut counts = std::collections::BTreeMap::new();
    for number in layer.values().filter_map(group_of) {
        *counts.entry(number).or_insert(0) += 1;
    }
    for picked in layer.values_mut() {
        if group_of(picked).is_some_and(|number| counts[&number] == 1)
            && let Some(Entry { node: Node::File { group, .. }, .. }) = &mut picked.entry
        {
            *group = None;
        }
    }
}

fn group_of_mut(picked: &mut Picked) -> Option<&mut u32> {
    match picked.entry.as_mut().map(|entry| &mut entry.node) {
        Some(Node::File { group, .. }) => group.as_mut(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::tapeout::testing::{path, picked};

    fn folder(mode: u32, why: &str) -> Picked {
        Picked { entry: Some(Entry::folder(mode)), content: Content::None, why: why.into() }
    }

    fn names(layer: &Selection) -> Vec<String> {
        layer.keys().map(|p| p.to_string()).collect()
    }

    #[test]
    fn each_file_is_in_the_lowest_layer_that_has_it() {
        let gone = Picked { entry: None, content: Content::None, why: "".into() };
        let base = Selection::from([(path("b"), picked("b", ""))]);
        let mut layers = [
            Selection::from([
                (path("d"), folder(0o700, "include /d")),
                (path("d/x"), picked("1", "")),
                (path("b"), picked("b", "")),
            ]),
            Selection::from([
                (path("d"), folder(0o755, "holds /d/y")),
                (path("d/x"), picked("1", "")),
                (path("d/y"), picked("2", "")),
                (path("none"), gone.clone()),
            ]),
            Selection::from([
                (path("d"), folder(0o711, "include /d")),
                (path("d/x"), picked("changed", "")),
                (path("b"), gone),
            ]),
        ];
        let all = settle(&base, &mut layers);
        assert_eq!(all, merged([&base].into_iter().chain(&layers)));
        assert_eq!(layers.each_ref().map(names), [vec!["/d", "/d/x"], vec!["/d/y"], vec!["/b", "/d", "/d/x"]]);
    }

    fn removal() -> Picked {
        Picked { entry: None, content: Content::None, why: "".into() }
    }

    /// A layer as rules leave them: the folders above each path are in it.
    fn some_layer(rng: &mut impl rand::Rng) -> Selection {
        let mut layer = Selection::new();
        for _ in 0..rng.gen_range(1..6) {
            let depth = rng.gen_range(1..4);
            let names: Vec<_> = (0..depth).map(|_| ["a", "b", "c"][rng.gen_range(0..3)]).collect();
            let at = path(&names.join("/"));
            // What has something below it in this layer is a folder of it.
            let is_free = !layer.keys().any(|there: &RootPath| there.starts_with(&at));
            let is_in_folder = at.ancestors().all(|above| {
                layer.get(&above).is_none_or(|there: &Picked| there.entry.as_ref().is_some_and(Entry::is_folder))
            });
            if !is_free || !is_in_folder {
                continue;
            }
            let what = match rng.gen_range(0..4) {
                0 => removal(),
                1 => folder(0o755, "include"),
                2 => Picked { entry: Some(Entry::link("x")), content: Content::None, why: "".into() },
                _ => picked(["1", "2"][rng.gen_range(0..2)], ""),
            };
            for above in at.ancestors().filter(|above| !above.is_root()) {
                layer.entry(above).or_insert(folder(0o755, "holds"));
            }
            layer.insert(at, what);
        }
        layer
    }

    #[test]
    fn one_layer_leaves_what_many_leave() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let shown = |files: &Selection| -> Vec<(String, Option<Digest>)> {
            files.iter().map(|(path, picked)| (path.to_string(), picked.entry.as_ref().map(Entry::digest))).collect()
        };
        for _ in 0..20_000 {
            let base = merged([&some_layer(&mut rng), &some_layer(&mut rng)]);
            let mut layers: Vec<_> = (0..rng.gen_range(1..5)).map(|_| some_layer(&mut rng)).collect();
            let written = layers.clone();
            let files = settle(&base, &mut layers);
            let one = squash(&base, layers, &files);
            assert_eq!(shown(&merged([&base, &one])), shown(&files), "{base:?}\n{written:?}");
            for (path, picked) in one.iter().filter(|(path, _)| !path.is_root()) {
                // Whoever unpacks it writes each path into a folder, and removes what is there.
                let above = path.parent().filter(|above| !above.is_root());
                let in_folder = above.is_none_or(|above| files[&above].entry.as_ref().is_some_and(Entry::is_folder));
                assert!(in_folder, "{path} {written:?}");
                assert!(picked.entry.is_some() || !files.contains_key(path), "{path} {written:?}");
            }
        }
    }

    #[test]
    fn hard_links_of_one_layer_are_not_those_of_another() {
        let linked = |text: &str| {
            let mut entry = Entry::file(text.as_bytes(), 0o644);
            let Node::File { group, .. } = &mut entry.node else { unreachable!() };
            *group = Some(0);
            Picked { entry: Some(entry), content: Content::Inline(text.into()), why: "".into() }
        };
        let layers = vec![
            Selection::from([(path("a"), linked("1")), (path("d"), linked("1"))]),
            Selection::from([(path("b"), linked("2")), (path("c"), linked("2")), (path("e"), linked("2"))]),
            Selection::from([(path("d"), picked("alone", "")), (path("e"), removal())]),
        ];
        let files = merged(&layers);
        let mut one = squash(&Selection::new(), layers, &files);
        let mut group = |name: &str| one.get_mut(&path(name)).and_then(group_of_mut).copied();
        assert_eq!([group("a"), group("d")], [None, None]);
        assert!(group("b").is_some() && group("b") == group("c"));
    }
}
