//! The program that an image starts: is it there, and may it be executed? Found where nothing was written
//! yet, and not in production.

use super::Files;
use super::elf::{Machine, is_elf};
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

/// Looks for what an image starts among its files: where it is. `None`: it starts nothing, or what is mounted there.
pub fn check(image: &Image, files: &Selection) -> Result<Option<RootPath>> {
    let Some((what, program)) = started(image) else { return Ok(None) };
    let candidates = candidates(image);
    let none = Stack::default();
    let world = World::new([files], &none);
    let mut found = None;
    for candidate in &candidates {
        let walk = world.walk_text(candidate);
        // What is mounted there is known to whoever starts it.
        let mounted = |volume: &String| RootPath::new(volume).is_ok_and(|volume| walk.path.starts_with(&volume));
        if image.volumes.iter().any(mounted) {
            return Ok(None);
        }
        match world.entry(&walk.path).filter(|_| walk.there) {
            Some(entry) if matches!(entry.node, Node::File { .. }) && entry.mode & 0o111 != 0 => {
                return Ok(Some(walk.path));
            }
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

/// Is a program that an image starts of the machine that the image is for? A script, or what no machine loads, is of all.
pub fn is_for(architecture: &str, program: &RootPath, files: &Selection, contents: &dyn Files) -> Result<()> {
    let none = Stack::default();
    let start = World::new([files], &none).open(program, contents)?.at(0, 20)?;
    let Some(found) = machine(&start) else { return Ok(()) };
    let known = |name: &str| MACHINES.iter().find(|(known, _)| *known == name).map(|(_, machine)| *machine);
    let runs = match architecture {
        "amd64" => &["amd64", "386"][..],
        "arm64" => &["arm64", "arm"],
        other => &[other],
    };
    if known(architecture).is_none() || runs.iter().any(|name| known(name) == Some(found)) {
        return Ok(());
    }
    let error = |what: &str| {
        Error::failed(format!("{program} is a program for {what}, and the image for linux/{architecture}"))
    };
    match MACHINES.iter().find(|(_, machine)| *machine == found) {
        Some((name, _)) => Err(error(name)
            .next(format!("write platform = \"linux/{name}\" on the image, or pick the program for {architecture}"))),
        None => Err(error(&format!("another machine (ELF's number {})", found.number))
            .next(format!("pick the program for {architecture}"))),
    }
}

/// The machines of OCI's words, as elf(5) has them.
const MACHINES: &[(&str, Machine)] = &[
    ("386", Machine { wide: false, little: true, number: 3 }),
    ("amd64", Machine { wide: true, little: true, number: 62 }),
    ("arm", Machine { wide: false, little: true, number: 40 }),
    ("arm64", Machine { wide: true, little: true, number: 183 }),
    ("loong64", Machine { wide: true, little: true, number: 258 }),
    ("mips", Machine { wide: false, little: false, number: 8 }),
    ("mips64", Machine { wide: true, little: false, number: 8 }),
    ("mips64le", Machine { wide: true, little: true, number: 8 }),
    ("mipsle", Machine { wide: false, little: true, number: 8 }),
    ("ppc64", Machine { wide: true, little: false, number: 21 }),
    ("ppc64le", Machine { wide: true, little: true, number: 21 }),
    ("riscv64", Machine { wide: true, little: true, number: 243 }),
    ("s390x", Machine { wide: true, little: false, number: 22 }),
];

/// The machine of an ELF file, by its first 20 bytes.
fn machine(start: &[u8]) -> Option<Machine> {
    let (&[class, order], number) = (start.get(4..6)?.first_chunk()?, *start.get(18..20)?.first_chunk()?);
    let little = order == 1;
    let number = if little { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
    is_elf(start).then_some(Machine { wide: class == 2, little, number })
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
                Ok(_) => assert_eq!(wrong, "", "{entrypoint:?} {cmd:?}"),
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

    #[test]
    fn a_program_is_for_the_machine_that_its_image_is_for() {
        use crate::tapeout::testing::{OnDisk, picked};
        let elf = |class: u8, order: u8, number: [u8; 2]| {
            let mut bytes = b"\x7fELF".to_vec();
            bytes.extend([class, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
            bytes.extend(number);
            bytes
        };
        let (amd64, x86) = (elf(2, 1, [62, 0]), elf(1, 1, [3, 0]));
        let (arm64, s390x) = (elf(2, 1, [183, 0]), elf(2, 2, [0, 22]));
        for (architecture, bytes, told) in [
            ("amd64", &amd64, None),
            ("amd64", &x86, None),
            ("386", &amd64, Some("a program for amd64, and the image for linux/386")),
            ("amd64", &arm64, Some("a program for arm64, and the image for linux/amd64")),
            ("arm64", &arm64, None),
            ("s390x", &s390x, None),
            ("amd64", &s390x, Some("a program for s390x")),
            ("amd64", &elf(2, 1, [1, 9]), Some("another machine (ELF's number 2305)")),
            ("unknown", &arm64, None),
            ("amd64", &b"#!/bin/sh\n".to_vec(), None),
            ("amd64", &b"\x7fELF\x02".to_vec(), None),
            ("amd64", &vec![], None),
        ] {
            let mut file = picked("", "");
            file.content = Content::Inline(bytes.clone());
            let files = Selection::from([(path("x"), file)]);
            let found = is_for(architecture, &path("x"), &files, &OnDisk("/nowhere".into()));
            match told {
                None => found.unwrap(),
                Some(told) => assert!(found.unwrap_err().what().contains(told), "{architecture} {told}"),
            }
        }
    }
}
