//! The program that an image starts: is it there, and may it be executed? Found where nothing was written
//! yet, and not in production.

use super::lookup::{Lookup, World};
use crate::build_file::spec::Image;
use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::tree::{Node, RootPath, Selection, Stack};

/// Where a runtime looks for a program without a slash when the image's `env` says nothing.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image starts, and which of its attributes says so.
fn started(image: &Image) -> Option<(&'static str, &String)> {
    match image.entrypoint.is_empty() {
        false => Some(("entrypoint", image.entrypoint.first()?)),
        true => Some(("cmd", image.cmd.first()?)),
    }
}

/// Where a runtime looks for what an image starts.
pub fn candidates(image: &Image) -> Vec<String> {
    let Some((_, program)) = started(image) else { return vec![] };
    match program.contains('/') {
        true if program.starts_with('/') => vec![program.clone()],
        true => vec![format!("{}/{program}", image.working_dir)],
        false => {
            let path = image.env.get("PATH").map_or(PATH, String::as_str);
            path.split(':').map(|folder| format!("{folder}/{program}")).collect()
        }
    }
}

/// Looks for what an image starts among its files.
pub fn check(image: &Image, files: &Selection) -> Result<()> {
    let Some((what, program)) = started(image) else { return Ok(()) };
    let candidates = candidates(image);
    let none = Stack::default();
    let world = World::new([files], &none);
    let mut found = None;
    for candidate in &candidates {
        let walk = world.walk_text(candidate);
        // What is mounted there is known to whoever starts it.
        let mounted = |volume: &String| RootPath::new(volume).is_ok_and(|volume| walk.path.starts_with(&volume));
        if image.volumes.iter().any(mounted) {
            return Ok(());
        }
        match world.entry(&walk.path).filter(|_| walk.there) {
            Some(entry) if matches!(entry.node, Node::File { .. }) && entry.mode & 0o111 != 0 => return Ok(()),
            Some(entry) => found = found.or(Some((walk.path, entry.is_folder()))),
            None => {}
        }
    }
    match found {
        Some((path, true)) => {
            Err(Error::failed(format!("{what} {program:?} is a folder: {path}")).next("name a program of the image"))
        }
        Some((path, false)) => Err(Error::failed(format!("{what} {program:?} can't be executed: {path}"))
            .why("it has no executable bit")
            .next(format!("modes = {{{:?}: 0o755}} on the rule that picks it", path.to_string()))),
        None => Err(not_there(what, program, &candidates, files)),
    }
}

fn not_there(what: &str, program: &str, candidates: &[String], files: &Selection) -> Error {
    let error = Error::failed(format!("{what} {program:?} is not in the image"));
    let error = match candidates {
        [only] if only == program => error,
        _ => error.why(format!("it was looked for at {}", candidates.join(", "))),
    };
    let programs = || {
        files.iter().filter_map(|(path, picked)| {
            let entry = picked.entry.as_ref()?;
            (!entry.is_folder() && entry.mode & 0o111 != 0).then_some(path)
        })
    };
    let name = program.rsplit('/').next().unwrap_or_default();
    let same = programs().find(|path| path.name() == name.as_bytes()).map(RootPath::to_string);
    let near = || {
        let all: Vec<(String, String)> =
            programs().map(|path| (String::from_utf8_lossy(path.name()).into_owned(), path.to_string())).collect();
        let near = nearest(name, all.iter().map(|(name, _)| name.as_str()))?;
        all.into_iter().find(|(name, _)| *name == near).map(|(_, path)| path)
    };
    match same.or_else(near) {
        Some(path) => error.next(format!("did you mean {path:?}?")),
        None => error.next("pick it in a tapeout rule of the image"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::path;
    use crate::tree::{Content, Entry, Picked};

    fn files(all: &[(&str, Entry)]) -> Selection {
        let picked = |entry: &Entry| Picked { entry: Some(entry.clone()), content: Content::None, why: "".into() };
        all.iter().map(|(at, entry)| (path(at), picked(entry))).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
        let list = |words: &[&str]| words.iter().map(|w| w.to_string()).collect();
        Image { entrypoint: list(entrypoint), cmd: list(cmd), working_dir: "/srv".into(), ..Image::default() }
    }

    #[test]
    fn what_an_image_starts_must_be_in_it() {
        let files = files(&[
            ("bin", Entry::link("usr/bin")),
            ("usr", Entry::folder(0o755)),
            ("usr/bin", Entry::folder(0o755)),
            ("usr/bin/web", Entry::file(b"x", 0o755)),
            ("usr/bin/w", Entry::link("web")),
            ("usr/bin/text", Entry::file(b"x", 0o644)),
            ("srv", Entry::folder(0o755)),
            ("srv/run", Entry::file(b"x", 0o755)),
        ]);
        for (entrypoint, cmd, wrong) in [
            (&["/usr/bin/web"][..], &[][..], ""),
            (&["/bin/w", "x"], &["nothing"], ""),
            (&["web"], &[], ""),
            (&[], &["web"], ""),
            (&["./run"], &[], ""),
            (&[], &[], ""),
            (&["/usr/bin/wev"], &[], "did you mean \"/usr/bin/web\"?"),
            (&["/opt/run"], &[], "did you mean \"/srv/run\"?"),
            (&["something-else"], &[], "pick it in a tapeout rule"),
            (&[], &["nothing-of-it"], "pick it"),
            (&["text"], &[], "0o755"),
            (&["/usr/bin"], &[], "name a program"),
        ] {
            match check(&image(entrypoint, cmd), &files) {
                Ok(()) => assert_eq!(wrong, "", "{entrypoint:?} {cmd:?}"),
                Err(error) => {
                    assert!(!wrong.is_empty(), "{error}");
                    assert!(error.next_step().unwrap().contains(wrong), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_will_be_mounted_is_not_looked_for() {
        let image = Image { volumes: vec!["/data".into()], ..image(&["/data/run"], &[]) };
        assert!(check(&image, &Selection::new()).is_ok());
    }
}
