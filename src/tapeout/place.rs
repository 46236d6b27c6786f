//! Where picked files go: `strip_prefix`, `prefix` and `rename`, and the folders above them.

use std::collections::BTreeMap;

use super::lookup::Lookup;
use super::why::Why;
use crate::build_file::spec::Tapeout;
use crate::error::{Error, Result};
use crate::tree::{Content, Entry, Picked, RootPath, Selection};

/// The moves that a rule asks for.
#[derive(Debug)]
pub struct Placing {
    strip: Option<RootPath>,
    prefix: RootPath,
    renames: BTreeMap<RootPath, RootPath>,
}

impl Placing {
    /// From the rule; its paths may go through links of the view.
    pub fn new(spec: &Tapeout, view: &dyn Lookup) -> Result<Self> {
        let strip = spec.strip_prefix.as_deref().filter(|text| !text.is_empty());
        let strip =
            strip.map(|text| Ok::<_, Error>(view.walk(&absolute("strip_prefix", text)?, true).path)).transpose()?;
        let prefix = spec.prefix.as_deref().filter(|text| !text.is_empty());
        let prefix = prefix.map(|text| absolute("prefix", text)).transpose()?.unwrap_or_default();
        let mut renames = BTreeMap::new();
        for (from, to) in &spec.rename {
            let from = view.walk(&absolute("rename", from)?, false).path;
            let new = absolute("rename", to)?;
            // As with cp(1): a slash at the end says "into this folder".
            let new = if to.ends_with('/') { new.join(from.name())? } else { new };
            if from.is_root() || new.is_root() {
                return Err(Error::request("rename: the root itself can't be moved or written over")
                    .next("use strip_prefix or prefix"));
            }
            renames.insert(from, new);
        }
        Ok(Self { strip, prefix, renames })
    }

    /// Does it move anything?
    pub fn moves(&self) -> bool {
        self.strip.is_some() || !self.prefix.is_root() || !self.renames.is_empty()
    }

    /// Where a picked path goes; `None`: it is the stripped folder itself.
    pub fn place(&self, path: &RootPath) -> Result<Option<RootPath>> {
        if let Some((from, to)) = self.renames.iter().rev().find(|(from, _)| path.starts_with(from)) {
            return to.join(&path.as_bytes()[from.as_bytes().len()..]).map(Some);
        }
        let rest = match &self.strip {
            Some(strip) if path.starts_with(strip) => &path.as_bytes()[strip.as_bytes().len()..],
            // A folder above the stripped one only leads there.
            Some(strip) if strip.starts_with(path) => return Ok(None),
            _ => path.as_bytes(),
        };
        let placed = self.prefix.join(rest)?;
        Ok((!placed.is_root()).then_some(placed))
    }

    /// What was asked for and moved nothing.
    pub fn check<'p>(&self, picked: impl Iterator<Item = &'p RootPath> + Clone) -> Result<()> {
        let none = |folder: &RootPath| !picked.clone().any(|path| path.starts_with(folder));
        if let Some(strip) = self.strip.as_ref().filter(|strip| none(strip)) {
            return Err(Error::request(format!("strip_prefix {strip} is at the front of no picked path"))
                .next("write a folder that the picked files lie below"));
        }
        match self.renames.keys().find(|from| none(from)) {
            Some(from) => Err(Error::request(format!("rename: nothing was picked at {from}"))
                .next("pick it with include or paths; a name is as in the builder, before strip_prefix")),
            None => Ok(()),
        }
    }
}

fn absolute(what: &str, text: &str) -> Result<RootPath> {
    if !text.starts_with('/') {
        return Err(
            Error::request(format!("{what}: {text:?} is not absolute")).next(format!("write {:?}", format!("/{text}")))
        );
    }
    RootPath::new(text).map_err(|e| e.context(what).with_kind(crate::error::Kind::Request))
}

/// Adds the folders above each file, with the mode and owner that the view has. `from` knows where
/// moved files came from: a folder that the view hasn't is made as the one that it was moved from.
pub fn add_folders(selection: &mut Selection, view: &dyn Lookup, from: &BTreeMap<RootPath, RootPath>) -> Result<()> {
    let mut folders: BTreeMap<RootPath, (Entry, RootPath)> = BTreeMap::new();
    let mut done = None;
    for (path, picked) in selection.iter() {
        // Files of one folder follow one another; one that was moved may bring its folder along.
        let parent = path.parent();
        if picked.entry.is_none() || (parent == done && !from.contains_key(path)) {
            continue;
        }
        done = parent;
        let mut source = from.get(path).cloned();
        for above in path.ancestors().filter(|p| !p.is_root()) {
            source = source.and_then(|s| s.parent());
            match selection.get(&above).map(|p| p.entry.as_ref().is_some_and(Entry::is_folder)) {
                Some(true) => continue,
                Some(false) => {
                    return Err(Error::request(format!("{above} is picked as a file, and {path} below it"))
                        .next("exclude one of the two, or move it with rename"));
                }
                None => {}
            }
            if folders.contains_key(&above) {
                continue;
            }
            let folder = |path: &RootPath| view.entry(path).filter(|e| e.is_folder()).cloned();
            let entry = folder(&above).or_else(|| folder(source.as_ref().filter(|s| s.name() == above.name())?));
            folders.insert(above, (entry.unwrap_or_else(|| Entry::folder(0o755)), path.clone()));
        }
    }
    for (path, (entry, holds)) in folders {
        selection.insert(path, Picked { entry: Some(entry), content: Content::None, why: Why::holds(&holds).shared() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{folder, layer, path, picked};
    use crate::tree::Stack;

    fn placing(strip: &str, prefix: &str, renames: &[(&str, &str)]) -> Placing {
        let rename = renames.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let spec =
            Tapeout { strip_prefix: Some(strip.into()), prefix: Some(prefix.into()), rename, ..Tapeout::default() };
        Placing::new(&spec, &Stack::default()).unwrap()
    }

    #[test]
    fn paths_go_where_the_rule_says() {
        let renames = [("/a/b/x", "/bin/y"), ("/a/dir", "/opt/dir2"), ("/a/dir/z", "/z"), ("/q", "/into/")];
        let placing = placing("/a/b", "/app", &renames);
        for (from, to) in [
            ("a/b/c", Some("app/c")),
            ("a/b/x", Some("bin/y")),
            ("a/dir/m", Some("opt/dir2/m")),
            ("a/dir/z", Some("z")),
            ("other", Some("app/other")),
            ("a/b", Some("app")),
            ("a", None),
            ("q", Some("into/q")),
            ("a/bc", Some("app/a/bc")),
        ] {
            assert_eq!(placing.place(&path(from)).unwrap(), to.map(path), "{from}");
        }
        assert_eq!(self::placing("/a", "", &[]).place(&path("a")).unwrap(), None);
    }

    #[test]
    fn what_moves_nothing_is_an_error() {
        let all = [path("a/x")];
        assert!(placing("/a", "", &[]).check(all.iter()).is_ok());
        assert!(placing("/b", "", &[]).check(all.iter()).is_err());
        assert!(placing("", "", &[("/a/y", "/z")]).check(all.iter()).is_err());
    }

    #[test]
    fn folders_above_have_the_mode_of_the_view_or_of_where_they_came_from() {
        let view = Stack(vec![layer(
            "v",
            &[
                ("var", folder()),
                ("var/x", Some(Entry::folder(0o700))),
                ("st", folder()),
                ("st/new", Some(Entry::folder(0o750))),
            ],
        )]);
        let mut selection = Selection::from([
            (path("var/x/f"), picked("f", "")),
            (path("new/g"), picked("g", "")),
            (path("far/h"), picked("h", "")),
        ]);
        add_folders(&mut selection, &view, &BTreeMap::from([(path("new/g"), path("st/new/g"))])).unwrap();
        let mode = |text: &str| selection[&path(text)].entry.as_ref().unwrap().mode;
        assert_eq!((mode("var/x"), mode("new"), mode("far")), (0o700, 0o750, 0o755));
        assert_eq!(&*selection[&path("var")].why, "holds /var/x/f");
    }
}
