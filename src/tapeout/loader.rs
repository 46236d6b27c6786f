//! Where a dynamic loader looks for a library: ld.so(8), ldconfig(8); musl's `ldso/dynlink.c`.
//!
//! This is data in, data out: the folders that are searched, in order. `libraries` asks which of
//! them has the file.

use std::collections::HashMap;
use std::rc::Rc;

use super::Files;
use super::elf::{Elf, Machine};
use super::lookup::Lookup;
use super::pattern::Pattern;
use crate::error::Result;
use crate::tree::RootPath;

const X86_64: u16 = 62;
const MOST_CONF: u64 = 1 << 20;
/// A loader has a quarter of a megabyte.
const MOST_LOADER: u64 = 8 << 20;

/// Which C library's loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// glibc.
    Glibc,
    /// musl.
    Musl,
}

/// A loader, as far as a search needs it.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Which kind.
    pub flavour: Flavour,
    /// Its path, as programs name it.
    pub path: String,
    /// Folders that `/etc/ld.so.conf` adds (musl: none).
    pub configured: Vec<String>,
    /// Folders that it knows by itself.
    pub built_in: Vec<String>,
}

/// One place where a library may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The path, which may hold `..` and links.
    pub path: String,
    /// It is found there only through the loader's cache.
    pub cached: bool,
}

/// A program or library that was loaded, and by which one.
#[derive(Debug)]
pub struct Object {
    /// As it was found: the folder that `$ORIGIN` means.
    pub path: RootPath,
    /// What it says.
    pub elf: Rc<Elf>,
    /// What loaded it; the program has none.
    pub loader: Option<Rc<Object>>,
}

impl Loader {
    /// The loader of this path in a root file system.
    pub fn read(path: &str, root: &dyn Lookup, files: &dyn Files) -> Result<Self> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if let Some(machine) = name.strip_prefix("ld-musl-").and_then(|rest| rest.strip_suffix(".so.1")) {
            let text = root.read(&RootPath::new(format!("etc/ld-musl-{machine}.path"))?, files, MOST_CONF)?;
            let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let text = text.unwrap_or_else(|| "/lib:/usr/local/lib:/usr/lib".into());
            let built_in =
                text.split([':', '\n']).map(str::trim).filter(|d| d.starts_with('/')).map(str::to_string).collect();
            return Ok(Self { flavour: Flavour::Musl, path: path.into(), configured: vec![], built_in });
        }
        let mut built_in = vec![];
        if let Ok(at) = RootPath::new(path)
            && let Some(file) = root.file(&at)
        {
            let bytes = root.open(&file, files)?;
            built_in = system_folders(&bytes.at(0, MOST_LOADER)?);
        }
        if built_in.is_empty() {
            built_in = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_string).to_vec();
        }
        Ok(Self { flavour: Flavour::Glibc, path: path.into(), configured: configured(root, files)?, built_in })
    }

    /// Where `name` is looked for when `object` needs it, in order. `library_path` is what
    /// `LD_LIBRARY_PATH` says in the image.
    pub fn candidates(&self, name: &str, object: &Rc<Object>, library_path: &[String]) -> Vec<Candidate> {
        if name.contains('/') {
            let path = self.expand(name, object).into_iter().next().unwrap_or_default();
            return if path.starts_with('/') { vec![Candidate { path, cached: false }] } else { vec![] };
        }
        let mut all = vec![];
        let mut add = |folder: &str, cached: bool| {
            let path = format!("{}/{name}", folder.trim_end_matches('/'));
            if !all.iter().any(|c: &Candidate| c.path == path) {
                all.push(Candidate { path, cached });
            }
        };
        for folder in self.inherited(object) {
            add(&folder, false);
        }
        for folder in library_path {
            add(folder, false);
        }
        for text in object.elf.runpath.iter().flatten() {
            for folder in self.expand(text, object) {
                add(&folder, false);
            }
        }
        if !object.elf.no_default {
            for folder in &self.configured {
                // A folder that the loader knows by itself needs no cache.
                add(
                    folder,
                    !self.built_in.iter().any(|known| known.trim_end_matches('/') == folder.trim_end_matches('/')),
                );
            }
            for folder in &self.built_in {
                add(folder, false);
            }
        }
        all
    }

    /// Variants of a library for newer processors that may lie below its folder, the oldest first.
    pub fn levels(&self, machine: Machine) -> &'static [&'static str] {
        match (self.flavour, machine.number) {
            (Flavour::Glibc, X86_64) if machine.wide => &["x86-64-v2", "x86-64-v3", "x86-64-v4"],
            (Flavour::Glibc, 21) => &["power9", "power10"],
            (Flavour::Glibc, 22) => &["z13", "z14", "z15", "z16"],
            _ => &[],
        }
    }

    /// RPATH of the object and of those that loaded it; glibc: not when the object has a RUNPATH.
    fn inherited(&self, object: &Rc<Object>) -> Vec<String> {
        if self.flavour == Flavour::Glibc && object.elf.runpath.is_some() {
            return vec![];
        }
        let mut folders = vec![];
        let mut next = Some(object);
        while let Some(object) = next {
            let own = object
                .elf
                .rpath
                .iter()
                .chain(object.elf.runpath.iter().flatten().filter(|_| self.flavour == Flavour::Musl));
            folders.extend(own.flat_map(|text| self.expand(text, object)));
            next = object.loader.as_ref();
        }
        folders
    }

    /// `$ORIGIN`, `$LIB` and `$PLATFORM`, each with or without braces.
    fn expand(&self, text: &str, object: &Object) -> Vec<String> {
        let origin = object.path.parent().unwrap_or_default();
        let origin = if origin.is_root() { String::new() } else { origin.to_string() };
        let replace = |text: &str, name: &str, value: &str| {
            text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
        };
        let text = replace(text, "ORIGIN", &origin);
        let text = replace(&text, "PLATFORM", platform(object.elf.machine));
        if !text.contains("$LIB") && !text.contains("${LIB}") {
            return vec![text].into_iter().filter(|t| t.starts_with('/')).collect();
        }
        // What $LIB stands for is built into the loader; its own folders tell.
        let libs =
            self.built_in.iter().filter_map(|folder| folder.trim_matches('/').strip_prefix("usr/").map(str::to_string));
        libs.map(|lib| replace(&text, "LIB", &lib)).filter(|t| t.starts_with('/')).collect()
    }
}

/// The loader that programs of a machine name, where a library alone doesn't tell.
pub fn usual(machine: Machine) -> &'static [&'static str] {
    match (machine.number, machine.wide, machine.little) {
        (X86_64, true, _) => &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"],
        (X86_64, false, _) => &["/libx32/ld-linux-x32.so.2"],
        (3, ..) => &["/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1"],
        (183, true, _) => &["/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1"],
        (40, ..) => &["/lib/ld-linux-armhf.so.3", "/lib/ld-linux.so.3", "/lib/ld-musl-armhf.so.1"],
        (243, true, _) => &["/lib/ld-linux-riscv64-lp64d.so.1", "/lib/ld-musl-riscv64.so.1"],
        (21, true, true) => &["/lib64/ld64.so.2", "/lib/ld-musl-powerpc64le.so.1"],
        (22, true, _) => &["/lib/ld64.so.1", "/lib/ld-musl-s390x.so.1"],
        (258, true, _) => &["/lib64/ld-linux-loongarch-lp64d.so.1"],
        _ => &[],
    }
}

fn platform(machine: Machine) -> &'static str {
    match machine.number {
        X86_64 => "x86_64",
        3 => "i686",
        183 => "aarch64",
        40 => "v7l",
        _ => "",
    }
}

/// The folders that glibc's loader was built with: its strings `/lib/…/`, `/usr/lib/…/`, one after the other.
fn system_folders(loader: &[u8]) -> Vec<String> {
    let mut folders: Vec<String> = vec![];
    for text in loader.split(|b| *b == 0) {
        let is_folder = text.len() > 3
            && text.len() < 200
            && text.starts_with(b"/")
            && text.ends_with(b"/")
            && text.iter().all(|b| b.is_ascii_graphic());
        let is_lib = is_folder && text.split(|b| *b == b'/').any(|part| part.starts_with(b"lib"));
        if is_lib && let Ok(text) = std::str::from_utf8(text) {
            let text = text.trim_end_matches('/').to_string();
            if !folders.contains(&text) {
                folders.push(text);
            }
        } else if !folders.is_empty() {
            break;
        }
    }
    folders
}

/// The folders of `/etc/ld.so.conf` and what it includes, in order.
fn configured(root: &dyn Lookup, files: &dyn Files) -> Result<Vec<String>> {
    let mut folders = vec![];
    let mut seen = HashMap::new();
    conf(&RootPath::new("etc/ld.so.conf")?, root, files, &mut seen, &mut folders)?;
    Ok(folders)
}

fn conf(
    path: &RootPath,
    root: &dyn Lookup,
    files: &dyn Files,
    seen: &mut HashMap<RootPath, ()>,
    folders: &mut Vec<String>,
) -> Result<()> {
    if seen.len() > 1000 || seen.insert(path.clone(), ()).is_some() {
        return Ok(());
    }
    let Some(text) = root.read(path, files, MOST_CONF)? else { return Ok(()) };
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("include") => {
                for included in words {
                    let glob = if included.starts_with('/') {
                        included.to_string()
                    } else {
                        format!("{}/{included}", path.parent().unwrap_or_default())
                    };
                    let Ok(pattern) = Pattern::parse(&glob) else { continue };
                    let start = pattern.start();
                    let mut all = root.list(&start);
                    all.push(start);
                    for file in all.iter().filter(|p| pattern.names(p)) {
                        conf(file, root, files, seen, folders)?;
                    }
                }
            }
            Some("hwcap") | None => {}
            // `folder=libc6` is an old form that is still read.
            Some(_) => {
                for folder in line
                    .split([' ', '\t', ',', ':'])
                    .map(|f| f.split('=').next().unwrap_or_default().trim_end_matches('/'))
                {
                    if folder.starts_with('/') && !folders.iter().any(|f| f == folder) {
                        folders.push(folder.to_string());
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{OnDisk, on_disk, path};
    use crate::tree::Stack;
    use std::collections::{BTreeMap, BTreeSet};

    fn object(at: &str, rpath: &[&str], runpath: Option<&[&str]>, loader: Option<Rc<Object>>) -> Rc<Object> {
        let list = |all: &[&str]| all.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let elf = Elf {
            machine: Machine { wide: true, little: true, number: X86_64 },
            interpreter: None,
            soname: None,
            needed: vec![],
            rpath: list(rpath),
            runpath: runpath.map(list),
            no_default: false,
            wants: BTreeMap::new(),
            has: BTreeSet::new(),
            imports: BTreeSet::new(),
            declared: vec![],
        };
        Rc::new(Object { path: path(at), elf: Rc::new(elf), loader })
    }

    fn glibc() -> Loader {
        let (configured, built_in) = (
            vec!["/usr/local/lib".into()],
            vec!["/lib/x".into(), "/usr/lib/x".into(), "/lib".into(), "/usr/lib".into()],
        );
        Loader { flavour: Flavour::Glibc, path: "/lib64/ld-linux-x86-64.so.2".into(), configured, built_in }
    }

    fn places(loader: &Loader, object: &Rc<Object>) -> Vec<String> {
        let all = loader.candidates("a.so", object, &["/env".into()]);
        all.into_iter().map(|c| c.path.strip_suffix("/a.so").unwrap().to_string()).collect()
    }

    #[test]
    fn the_order_is_that_of_ld_so() {
        let app = object("opt/bin/app", &["$ORIGIN/../lib", "rel"], None, None);
        assert_eq!(places(&glibc(), &app)[..3], ["/opt/bin/../lib", "/env", "/usr/local/lib"]);
        let library = object("opt/lib/b.so", &["/own"], None, Some(app.clone()));
        assert_eq!(places(&glibc(), &library)[..3], ["/own", "/opt/bin/../lib", "/env"], "an RPATH is inherited");
        let library = object("opt/lib/c.so", &[], Some(&["${ORIGIN}/p"]), Some(app));
        assert_eq!(
            places(&glibc(), &library)[..2],
            ["/env", "/opt/lib/p"],
            "a RUNPATH stands alone, after the environment"
        );
    }

    #[test]
    fn what_only_the_cache_knows_is_marked() {
        let all = glibc().candidates("a.so", &object("bin/x", &[], None, None), &[]);
        let cached: Vec<_> = all.iter().filter(|c| c.cached).map(|c| c.path.as_str()).collect();
        assert_eq!(cached, ["/usr/local/lib/a.so"]);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        let object = object("opt/x", &["/r"], None, None);
        assert_eq!(glibc().candidates("/a/b.so", &object, &[]).len(), 1);
        assert_eq!(glibc().candidates("$ORIGIN/b.so", &object, &[])[0].path, "/opt/b.so");
        assert!(glibc().candidates("a/b.so", &object, &[]).is_empty());
    }

    #[test]
    fn lib_stands_for_the_folders_of_the_loader() {
        let object = object("opt/x", &["/q/$LIB"], None, None);
        assert_eq!(places(&glibc(), &object)[..2], ["/q/lib/x", "/q/lib"]);
    }

    #[test]
    fn the_folders_of_this_machines_loader_are_found() {
        let loader = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
        assert!(system_folders(&loader).contains(&"/usr/lib".to_string()), "{:?}", system_folders(&loader));
    }

    #[test]
    fn the_configuration_includes_files_in_order() {
        let (dir, layer) = on_disk(&[
            ("etc/ld.so.conf", Some(b"include /etc/ld.so.conf.d/*.conf\n/last # x\n"), 0o644),
            ("etc/ld.so.conf.d/b.conf", Some(b"/b/\n/b2=libc6\n"), 0o644),
            ("etc/ld.so.conf.d/a.conf", Some(b"# x\n/a\ninclude /etc/ld.so.conf\nhwcap 1 nosegneg\n"), 0o644),
        ]);
        let view = Stack(vec![layer]);
        assert_eq!(configured(&view, &OnDisk(dir.path().into())).unwrap(), ["/a", "/b", "/b2", "/last"]);
    }
}
