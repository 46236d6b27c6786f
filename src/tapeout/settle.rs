//! What the layers of one image repeat: a file that two rules both picked, a folder that must not undo what
//! a layer below says of it, a removal with nothing below. The folders that a layer's files lie in stay,
//! so that the layer of a rule has the same bytes in every image.

use super::lookup::{lay, merged};
use super::why::Why;
use crate::tree::{Entry, Node, Picked, RootPath, Selection};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{path, picked};
    use crate::tree::Content;

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
}
