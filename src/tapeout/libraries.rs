//! The joint point: all that the picked files need at run time, and isn't picked.
//!
//! Every program is loaded in thought, as its dynamic loader would: first the programs, each with
//! the libraries that it needs in the order in which they are found, then the libraries that
//! no program named (modules, plug-ins). Scripts need their interpreters; links need what they
//! lead to; `known` tells what no header names. What is found in the builder alone comes
//! along, with the links on the way and the folders above. Then `skeleton` adds its part.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use super::Files;
use super::elf::{self, Elf, Machine};
use super::known;
use super::loader::{self, Loader, Object};
use super::loader_cache;
use super::lookup::{Bytes, Lookup, World};
use super::pattern::Pattern;
use super::place::add_folders;
use super::script::{self, Program};
use super::skeleton;
use super::why::Why;
use crate::build_file::spec::Libraries;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::label::Label;
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection, Stack};

/// What one rule picked, and whether the closure looks at it.
pub struct Layer<'a> {
    /// The rule.
    pub rule: &'a Label,
    /// Its `libraries`.
    pub libraries: &'a Libraries,
    /// Its files.
    pub selection: &'a Selection,
}

/// What the joint point of one image works on.
pub struct Request<'a> {
    /// The layers of the image's `base`, the lowest first; they are seen, and not searched again.
    pub base: &'a [Selection],
    /// What the rules picked, in the order of the layers.
    pub picked: &'a [Layer<'a>],
    /// All that the joint point sees, the builder included.
    pub view: &'a Stack,
    /// Content.
    pub files: &'a dyn Files,
    /// The image's user, as its build file has it; empty: root.
    pub user: &'a str,
    /// The image's environment: `PATH`, `LD_LIBRARY_PATH` and the locale count.
    pub env: &'a BTreeMap<String, String>,
    /// Where what the image starts may be, the first that is there counts: `program::candidates`.
    pub starts: &'a [String],
}

/// What the joint point adds.
#[derive(Debug, Default)]
pub struct Closed {
    /// The layer.
    pub selection: Selection,
    /// What programs and libraries can't be loaded without, with the first that needs it: also what was there already.
    pub required: BTreeMap<RootPath, Why>,
    /// What people should know, and what is no error.
    pub warnings: Vec<String>,
}

/// The layer that the joint point adds to an image.
pub fn close(request: &Request<'_>) -> Result<Closed> {
    let all = request.base.iter().chain(request.picked.iter().map(|layer| layer.selection));
    let mut closing = Closing::new(request, World::new(all, request.view));
    closing.seed()?;
    closing.drain()?;
    if let Some(error) = Error::all(std::mem::take(&mut closing.errors)) {
        return Err(error);
    }
    closing.finish()
}

/// Where programs are looked up when the image says nothing of it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Scripts here are run by what an image doesn't have: an init, a cron daemon, a package manager.
const RUN_BY_OTHERS: &[&str] = &[
    "etc/init.d",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "etc/rcS.d",
    "etc/cron.d",
    "etc/cron.hourly",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/cron.monthly",
    "etc/cron.yearly",
    "etc/network",
    "etc/NetworkManager",
    "etc/dhcp",
    "etc/ppp",
    "etc/resolvconf",
    "etc/X11",
    "etc/kernel",
    "etc/initramfs-tools",
    "etc/update-motd.d",
    "etc/ufw",
    "etc/apm",
    "etc/acpi",
    "etc/pm",
    "lib/systemd",
    "usr/lib/systemd",
    "usr/lib/init",
    "usr/lib/pm-utils",
    "usr/share/initramfs-tools",
    "usr/share/doc",
    "usr/share/bug",
    "usr/lib/debug",
    "var/lib/dpkg",
];

/// Folders of modules, by their whole names; those of one version alone in [`is_modules`].
const MODULES: &[&[u8]] = &[
    b"dist-packages",
    b"site-packages",
    b"perl5",
    b"perl-base",
    b"vendor_perl",
    b"site_perl",
    b"vendor_ruby",
    b"site_ruby",
    b"node_modules",
];

/// Folders of what people and programs start by its name.
const PROGRAMS: &[&[u8]] = &[b"bin", b"sbin", b".bin"];

/// Names of files that are neither programs nor libraries, so that most files aren't even opened.
const DATA: &[&[u8]] = &[
    b"a", b"c", b"cc", b"class", b"conf", b"cpp", b"css", b"csv", b"gif", b"gz", b"h", b"hpp", b"htm", b"html", b"jar",
    b"jpg", b"js", b"json", b"la", b"md", b"mo", b"o", b"pc", b"pem", b"pl", b"pm", b"png", b"po", b"pod", b"py",
    b"pyc", b"pyi", b"rb", b"rst", b"svg", b"tcl", b"toml", b"ttf", b"txt", b"woff", b"woff2", b"xml", b"xz", b"yaml",
    b"yml", b"zip", b"zst",
];

struct Closing<'a> {
    request: &'a Request<'a>,
    world: World<'a>,
    added: BTreeSet<RootPath>,
    elves: HashMap<Digest, Option<Rc<Elf>>>,
    loaders: BTreeMap<String, Rc<Loader>>,
    /// The loader that programs of a machine use, once one is known.
    usual: BTreeMap<Machine, String>,
    /// Files to look at: as roots, programs before libraries.
    programs: VecDeque<RootPath>,
    libraries: VecDeque<RootPath>,
    /// Files that were looked at or loaded.
    visited: BTreeSet<RootPath>,
    /// Scripts that nobody is known to start, and those that somebody does.
    passed_over: BTreeSet<RootPath>,
    started: BTreeSet<RootPath>,
    /// Files that were asked for their known cases, and with which loader.
    known: BTreeSet<(String, RootPath)>,
    /// Files that a known case brought: what they miss is a warning.
    optional: BTreeSet<RootPath>,
    /// As in [`Closed`].
    required: BTreeMap<RootPath, Why>,
    /// A library was found through the loader's cache alone.
    cached: bool,
    library_path: Vec<String>,
    path: Vec<String>,
    errors: Vec<Error>,
    warnings: Vec<String>,
}

impl<'a> Closing<'a> {
    fn new(request: &'a Request<'a>, world: World<'a>) -> Self {
        let env = |name: &str, default: &str| folders(request.env.get(name).map_or(default, String::as_str));
        Self {
            request,
            world,
            added: BTreeSet::new(),
            elves: HashMap::new(),
            loaders: BTreeMap::new(),
            usual: BTreeMap::new(),
            programs: VecDeque::new(),
            libraries: VecDeque::new(),
            visited: BTreeSet::new(),
            passed_over: BTreeSet::new(),
            started: BTreeSet::new(),
            known: BTreeSet::new(),
            optional: BTreeSet::new(),
            required: BTreeMap::new(),
            cached: false,
            library_path: env("LD_LIBRARY_PATH", ""),
            path: env("PATH", PATH),
            errors: vec![],
            warnings: vec![],
        }
    }

    /// What the rules picked and asked for by name.
    fn seed(&mut self) -> Result<()> {
        let starts = self.request.starts.iter().map(|path| self.world.walk_text(path));
        if let Some(walk) = starts.into_iter().find(|walk| walk.there && self.world.has(&walk.path)) {
            self.start(walk.path);
        }
        let searched: Vec<&Layer<'_>> =
            self.request.picked.iter().filter(|layer| *layer.libraries != Libraries::Search(false)).collect();
        for layer in &searched {
            for (path, picked) in layer.selection {
                // A later layer may have replaced or removed it.
                if let Some(entry) = &picked.entry
                    && self.world.entry(path) == Some(entry)
                {
                    self.look_at(path)?;
                }
            }
        }
        for layer in &searched {
            if let Libraries::Also(names) = layer.libraries {
                for name in names {
                    self.also(name).map_err(|e| e.context(format!("rule {}: libraries", layer.rule)))?;
                }
            }
        }
        Ok(())
    }

    /// `libraries = ["libnss_myhostname.so.2", "/usr/lib/x/*.so"]`
    fn also(&mut self, name: &str) -> Result<()> {
        let why = Why::Asked(name.to_string());
        if name.starts_with('/') {
            let pattern = Pattern::parse(name)?.through(&self.world)?;
            let start = pattern.start();
            let mut taken: Vec<_> = self.request.view.visible(&start).into_keys().cloned().collect();
            taken.push(start);
            taken.retain(|path| pattern.takes(path) && self.world.entry(path).is_some());
            if taken.is_empty() {
                return Err(Error::request(format!("{name:?} matches nothing"))
                    .next("add what has it to the packages or deps of a rule"));
            }
            return taken.iter().try_for_each(|path| self.bring(&path.to_string(), &why).map(drop));
        }
        let machine = self.machine()?;
        let Some(loader) = self.loader_for(machine, None)? else {
            return Err(Error::failed(format!("{name:?} can't be looked for: the builder has no dynamic loader")));
        };
        let object = Rc::new(Object {
            path: RootPath::new("usr/bin/a program")?,
            elf: Rc::new(known::empty(machine)),
            loader: None,
        });
        let found = self.find(name, &object, &loader)?;
        if found.is_empty() {
            return Err(Error::request(format!("library {name:?} is not in the builder"))
                .why(self.searched(name, &object, &loader))
                .next("add the package that has it to the packages of a rule"));
        }
        found.iter().try_for_each(|path| self.bring(path, &why).map(drop))
    }

    /// The machine of the first program that was picked, else of the builder's own.
    fn machine(&mut self) -> Result<Machine> {
        let own = ["bin/sh", "usr/bin/env", "bin/ls", "sbin/ldconfig"].iter().filter_map(|p| RootPath::new(p).ok());
        let candidates: Vec<RootPath> = self.programs.iter().chain(&self.libraries).cloned().chain(own).collect();
        for path in candidates {
            if let Some(path) = self.world.file(&path)
                && let Some(elf) = self.elf(&path)?
            {
                return Ok(elf.machine);
            }
        }
        Ok(Machine { wide: true, little: true, number: 62 })
    }

    /// Puts a file of the image in line, by what it is.
    fn look_at(&mut self, path: &RootPath) -> Result<()> {
        if self.visited.contains(path) {
            return Ok(());
        }
        let Some(entry) = self.world.entry(path) else { return Ok(()) };
        match &entry.node {
            Node::Link { .. } => {
                self.visited.insert(path.clone());
                // What a link leads to comes along, with the links between; of a folder only what was picked in it.
                let walk = self.world.walk(path, true);
                let target = self.world.entry(&walk.path).is_some_and(|e| matches!(e.node, Node::File { .. }));
                if walk.there && walk.path.top() != b"workspace" && (target || self.world.has(&walk.path)) {
                    if target && is_in_programs(path) {
                        self.start(walk.path);
                    }
                    self.bring(&path.to_string(), &Why::needed(path, "the target of the link"))?;
                }
            }
            Node::File { size, .. } if *size >= 4 && !is_data(path, entry) => {
                let script = entry.mode & 0o111 != 0;
                match self.elf(path)? {
                    Some(elf) if elf.interpreter.is_some() => self.programs.push_back(path.clone()),
                    Some(_) => self.libraries.push_back(path.clone()),
                    None if !script => {}
                    None if is_run_by_others(path) && !self.started.contains(path) => {
                        self.passed_over.insert(path.clone());
                    }
                    None => self.programs.push_back(path.clone()),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody starts this file: a script is looked at, wherever it lies.
    fn start(&mut self, path: RootPath) {
        if self.passed_over.remove(&path) {
            self.programs.push_back(path.clone());
        }
        self.started.insert(path);
    }

    fn drain(&mut self) -> Result<()> {
        loop {
            let next = self.programs.pop_front().or_else(|| self.libraries.pop_front());
            let Some(path) = next else { break };
            if !self.visited.insert(path.clone()) {
                continue;
            }
            match self.elf(&path)? {
                Some(elf) => self.load(Object { path, elf, loader: None })?,
                None => self.script(&path)?,
            }
        }
        Ok(())
    }

    /// Reads what an ELF file says, once for each content.
    fn elf(&mut self, path: &RootPath) -> Result<Option<Rc<Elf>>> {
        let Some(Entry { node: Node::File { digest, .. }, .. }) = self.world.entry(path) else { return Ok(None) };
        let digest = *digest;
        if let Some(known) = self.elves.get(&digest) {
            return Ok(known.clone());
        }
        let bytes = self.world.open(path, self.request.files)?;
        let read = self.read_elf(path, &bytes)?.map(Rc::new);
        self.elves.insert(digest, read.clone());
        Ok(read)
    }

    fn read_elf(&mut self, path: &RootPath, bytes: &Bytes) -> Result<Option<Elf>> {
        if !elf::is_elf(&bytes.at(0, 4)?) || path.starts_with(&RootPath::new("usr/lib/debug")?) {
            return Ok(None);
        }
        match elf::read(bytes, &known::WATCHED) {
            Ok(elf) => Ok(elf),
            // Test data of archivers and debuggers looks like this; no loader would load it.
            Err(error) => {
                let why = error.reasons().join("; ");
                self.warnings.push(format!(
                    "{path} begins as an ELF file and is not a whole one ({why}): what it needs is not known"
                ));
                Ok(None)
            }
        }
    }

    fn script(&mut self, path: &RootPath) -> Result<()> {
        if self.optional.contains(path) {
            return Ok(());
        }
        let start = self.world.open(path, self.request.files)?.at(0, script::LOOKED_AT)?;
        let Some(interpreter) = script::interpreter(&start) else { return Ok(()) };
        self.bring_interpreter(path, &interpreter.path, &interpreter.path)?;
        match interpreter.program {
            Some(program) if program.name.starts_with('/') => {
                self.bring_interpreter(path, &program.name, &program.name)
            }
            // Such a path begins wherever the script is started.
            Some(program) if program.name.contains('/') => Ok(()),
            Some(Program { name, path: own }) => {
                let folders = own.as_deref().map(folders);
                let at = folders.as_ref().unwrap_or(&self.path).iter().map(|folder| format!("{folder}/{name}"));
                let found = at.into_iter().find(|at| self.is_file(at)).unwrap_or_else(|| name.clone());
                self.bring_interpreter(path, &found, &name)
            }
            None => Ok(()),
        }
    }

    fn bring_interpreter(&mut self, script: &RootPath, path: &str, name: &str) -> Result<()> {
        if path.starts_with('/') && self.bring(path, &Why::needed(script, name))?.is_some() {
            return Ok(());
        }
        // Examples and templates for other systems lie there; what is run from there is found elsewhere.
        if script.starts_with(&RootPath::new("usr/share")?) {
            self.warnings.push(format!("{script} is a script for {name}, which neither the image nor the builder has"));
            return Ok(());
        }
        self.errors.push(
            Error::failed(format!("interpreter {name} is missing, which {script} needs"))
                .why(format!("{script} begins with #! and names it; neither the image nor the builder has it"))
                .next(format!("add the package that has {name} to the packages of a rule, or exclude {script}")),
        );
        Ok(())
    }

    fn is_file(&self, path: &str) -> bool {
        let walk = self.world.walk_text(path);
        walk.there && self.world.entry(&walk.path).is_some_and(|e| matches!(e.node, Node::File { .. }))
    }

    /// Puts a file into the image, with the links on the way to it. Gives where it is in the end.
    fn bring(&mut self, path: &str, why: &Why) -> Result<Option<RootPath>> {
        let walk = self.world.walk_text(path);
        if !walk.there {
            return Ok(None);
        }
        for part in walk.links.iter().chain([&walk.path]) {
            if !self.world.has(part) {
                self.add(part, why)?;
            }
        }
        Ok(Some(walk.path))
    }

    /// Notes that `by` can't be loaded without the file at a path, and the links on the way to it.
    fn require(&mut self, path: &str, by: &RootPath, what: &str) {
        let walk = self.world.walk_text(path);
        for part in walk.links.into_iter().chain([walk.path]) {
            self.required.entry(part).or_insert_with(|| Why::needed(by, what));
        }
    }

    fn add(&mut self, path: &RootPath, why: &Why) -> Result<()> {
        if let Some(picked) = self.world.pick(path, why.shared()) {
            self.world.put(path.clone(), picked);
            self.added.insert(path.clone());
            self.look_at(path)?;
        }
        Ok(())
    }

    /// Loads a program or library in thought, with all that it needs.
    fn load(&mut self, root: Object) -> Result<()> {
        let loader = match &root.elf.interpreter {
            Some(path) => {
                let path = path.clone();
                match self.bring(&path, &Why::needed(&root.path, path.clone()))? {
                    Some(_) => {
                        self.require(&path, &root.path, &path);
                        self.loader_for(root.elf.machine, Some(&path))?
                    }
                    None => {
                        self.errors.push(
                            Error::failed(format!("loader {path} is missing, which {} needs", root.path))
                                .why("neither the image nor the builder has it")
                                .next(format!("build {} for the builder's C library, add the package that has the loader, or exclude it", root.path)),
                        );
                        return Ok(());
                    }
                }
            }
            None => self.loader_for(root.elf.machine, None)?,
        };
        let Some(loader) = loader else {
            if !root.elf.needed.is_empty() {
                self.warnings
                    .push(format!("{} is for another machine than the builder: what it needs is not known", root.path));
            }
            return Ok(());
        };
        Loading::new(self, loader).run(Rc::new(root))
    }

    fn loader_for(&mut self, machine: Machine, named: Option<&str>) -> Result<Option<Rc<Loader>>> {
        let path = match (named, self.usual.get(&machine)) {
            (Some(path), _) => path.to_string(),
            (None, Some(path)) => path.clone(),
            (None, None) => match loader::usual(machine).iter().find(|path| self.is_file(path)) {
                Some(path) => path.to_string(),
                None => return Ok(None),
            },
        };
        self.usual.entry(machine).or_insert_with(|| path.clone());
        if let Some(known) = self.loaders.get(&path) {
            return Ok(Some(known.clone()));
        }
        let loader = Rc::new(Loader::read(&path, &self.world, self.request.files)?);
        self.loaders.insert(path, loader.clone());
        Ok(Some(loader))
    }

    /// Where the loader finds a library: the first place that has one for this machine. Newer processors may find
    /// another one, or one at all, in `glibc-hwcaps`: which one is loaded is known only there, so all are given, the
    /// one for the oldest first.
    fn find(&mut self, name: &str, object: &Rc<Object>, loader: &Loader) -> Result<Vec<String>> {
        let machine = object.elf.machine;
        let levels = if name.contains('/') { &[] } else { loader.levels(machine) };
        let mut found: Vec<Option<String>> = vec![None; levels.len() + 1];
        for candidate in loader.candidates(name, object, &self.library_path) {
            let mut here = self.fits(&candidate.path, machine)?.then(|| candidate.path.clone());
            let above = candidate.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let above = format!("{above}/glibc-hwcaps");
            let levels = if self.world.walk_text(&above).there { levels } else { &[] };
            for (processor, found) in found.iter_mut().enumerate() {
                if let Some(level) = processor.checked_sub(1).and_then(|at| levels.get(at)) {
                    let variant = format!("{above}/{level}/{name}");
                    here = if self.fits(&variant, machine)? { Some(variant) } else { here };
                }
                if found.is_none() && here.is_some() {
                    self.cached |= candidate.cached;
                    *found = here.clone();
                }
            }
            if found[0].is_some() {
                break;
            }
        }
        let mut found: Vec<String> = found.into_iter().flatten().collect();
        found.dedup();
        Ok(found)
    }

    /// Is there something that can be loaded on this machine?
    fn fits(&mut self, path: &str, machine: Machine) -> Result<bool> {
        let walk = self.world.walk_text(path);
        Ok(walk.there && self.elf(&walk.path)?.is_some_and(|elf| elf.machine == machine))
    }

    fn searched(&self, name: &str, object: &Rc<Object>, loader: &Loader) -> String {
        let all = loader.candidates(name, object, &self.library_path);
        let folders: Vec<_> = all
            .iter()
            .filter_map(|c| c.path.rsplit_once('/'))
            .map(|(folder, _)| if folder.is_empty() { "/" } else { folder })
            .collect();
        if folders.is_empty() {
            "it is a relative path, which no loader finds".into()
        } else {
            format!("it was searched in {}", folders.join(", "))
        }
    }

    /// A cache for the loader, when it finds a library of this image through one alone.
    fn loader_cache(&mut self) -> Result<Selection> {
        let at = RootPath::new("etc/ld.so.cache")?;
        let generated = self.world.image().get(&at).is_none_or(|p| matches!(p.why.parse(), Ok(Why::Skeleton(_))));
        if !self.cached || !generated {
            return Ok(Selection::new());
        }
        let loaders: Vec<Rc<Loader>> = self.loaders.values().cloned().collect();
        let mut libraries = vec![];
        for named in loader_cache::candidates(&self.world, &loaders) {
            if let Some(elf) = self.elf(&named.file)? {
                libraries.push((named, elf.machine));
            }
        }
        let cache = loader_cache::write(&libraries);
        let why = Why::Skeleton("the loader's cache, for libraries in folders that /etc/ld.so.conf names".into());
        Ok(Selection::from([(
            at,
            Picked { entry: Some(Entry::file(&cache, 0o644)), content: Content::Inline(cache), why: why.shared() },
        )]))
    }

    fn finish(mut self) -> Result<Closed> {
        let mut generated = skeleton::make(&mut skeleton::Making {
            world: &mut self.world,
            files: self.request.files,
            user: self.request.user,
            warnings: &mut self.warnings,
        })?;
        generated.extend(self.loader_cache()?);
        let mut selection: Selection =
            self.added.iter().filter_map(|path| Some((path.clone(), self.world.image().get(path)?.clone()))).collect();
        selection.extend(generated);
        // A folder that the image has already is in the layer of the rule that picked it.
        let own: BTreeSet<RootPath> = selection.keys().cloned().collect();
        add_folders(&mut selection, &self.world, &BTreeMap::new())?;
        selection.retain(|path, _| own.contains(path) || !self.world.has(path));
        self.warnings.dedup();
        Ok(Closed { selection, required: self.required, warnings: self.warnings })
    }
}

/// One program with its libraries, as they would lie in memory together.
struct Loading<'c, 'a> {
    closing: &'c mut Closing<'a>,
    loader: Rc<Loader>,
    /// By the names under which the loader knows them.
    loaded: BTreeMap<String, Rc<Object>>,
    queue: VecDeque<Rc<Object>>,
}

impl<'c, 'a> Loading<'c, 'a> {
    fn new(closing: &'c mut Closing<'a>, loader: Rc<Loader>) -> Self {
        Self { closing, loader, loaded: BTreeMap::new(), queue: VecDeque::new() }
    }

    fn run(mut self, root: Rc<Object>) -> Result<()> {
        // The loader is in memory before all, and libraries name it.
        let path = self.loader.path.clone();
        if let Some(file) = RootPath::new(&path).ok().and_then(|path| self.closing.world.file(&path))
            && let Some(elf) = self.closing.elf(&file)?
        {
            self.closing.visited.insert(file.clone());
            let object = Rc::new(Object { path: file, elf, loader: None });
            self.know(path.rsplit('/').next().unwrap_or_default(), &object);
        }
        self.queue.push_back(root);
        while let Some(object) = self.queue.pop_front() {
            for name in object.elf.needed.clone() {
                self.need(&name, &object)?;
            }
            self.check_versions(&object);
            self.known(&object)?;
        }
        Ok(())
    }

    fn know(&mut self, name: &str, object: &Rc<Object>) {
        self.loaded.insert(name.to_string(), object.clone());
        if let Some(soname) = &object.elf.soname {
            self.loaded.entry(soname.clone()).or_insert_with(|| object.clone());
        }
    }

    fn need(&mut self, name: &str, object: &Rc<Object>) -> Result<()> {
        if self.loaded.contains_key(name) || self.is_the_loader_itself(name) {
            return Ok(());
        }
        let mut top = object;
        while let Some(above) = &top.loader {
            top = above;
        }
        let optional = self.closing.optional.contains(&top.path);
        if let Some(found) = self.take(name, object)? {
            if !optional {
                self.closing.require(&found, &object.path, name);
            }
            return Ok(());
        }
        // A library that another one loaded before satisfies the name too: a JVM's do so.
        if self.closing.in_image(name) {
            return Ok(());
        }
        if optional {
            self.closing.warnings.push(format!(
                "{} can't be loaded: it needs {name}, which neither the image nor the builder has",
                top.path
            ));
            return Ok(());
        }
        let why = self.closing.searched(name, object, &self.loader);
        let mut chain = vec![object.path.to_string()];
        let mut next = object.loader.as_ref();
        while let Some(object) = next {
            chain.push(object.path.to_string());
            next = object.loader.as_ref();
        }
        let whole = if chain.len() > 1 { format!(" (loaded by {})", chain[1..].join(", by ")) } else { String::new() };
        let error = Error::failed(format!("library {name} is missing, which {} needs{whole}", object.path)).why(why);
        let elsewhere = self.closing.elsewhere(name);
        let error = match elsewhere.is_empty() {
            true => error.next(format!(
                "add the package that has {name} to the packages of a rule, or exclude {}",
                chain[chain.len() - 1]
            )),
            false => error.why(format!("the builder has it as {}", elsewhere.join(", "))).next(
                "set LD_LIBRARY_PATH in the image's env, or build with an RPATH, or pick it to where it is searched",
            ),
        };
        if !self.closing.errors.iter().any(|e| e.what() == error.what()) {
            self.closing.errors.push(error);
        }
        Ok(())
    }

    /// Looks a library up, brings it, and puts it in line. Gives where the loader finds it.
    fn take(&mut self, name: &str, object: &Rc<Object>) -> Result<Option<String>> {
        let loader = self.loader.clone();
        let why = Why::needed(&object.path, name);
        let mut all = self.closing.find(name, object, &loader)?.into_iter();
        let Some(found) = all.next() else { return Ok(None) };
        let Some(file) = self.closing.bring(&found, &why)? else { return Ok(None) };
        for variant in all {
            self.closing.bring(&variant, &why)?;
        }
        let Some(elf) = self.closing.elf(&file)? else { return Ok(None) };
        self.closing.visited.insert(file);
        let again = elf.soname.as_ref().is_some_and(|soname| self.loaded.contains_key(soname));
        let (folder, last) = found.rsplit_once('/').unwrap_or(("", &found));
        let path = self.closing.world.walk_text(folder).path.join(last)?;
        let library = Rc::new(Object { path, elf, loader: Some(object.clone()) });
        self.know(name, &library);
        if !again {
            self.queue.push_back(library);
        }
        Ok(Some(found))
    }

    /// musl's loader is libc, libpthread and so on as well.
    fn is_the_loader_itself(&self, name: &str) -> bool {
        let reserved = ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];
        self.loader.flavour == loader::Flavour::Musl && reserved.iter().any(|start| name.starts_with(start))
    }

    fn check_versions(&mut self, object: &Rc<Object>) {
        for (library, versions) in &object.elf.wants {
            let loaded = self.loaded.get(library).map(|object| &object.elf);
            let Some(loaded) = loaded.filter(|elf| !elf.has.is_empty()) else { continue };
            let missing: Vec<_> = versions.iter().filter(|v| !loaded.has.contains(*v)).map(String::as_str).collect();
            if !missing.is_empty() {
                let error = Error::failed(format!(
                    "{library} is too old for {}: it has no version {}",
                    object.path,
                    missing.join(", ")
                ))
                .why(format!("{} was built against a newer {library} than the image has", object.path))
                .next("build it in the builder that the image is taken from, or take both from the same place");
                self.closing.errors.push(error);
            }
        }
    }

    /// What it loads by itself, as it declares, or as is known.
    fn known(&mut self, object: &Rc<Object>) -> Result<()> {
        for declared in object.elf.declared.clone() {
            let mut there = declared.priority == "suggested";
            for name in &declared.sonames {
                if there || self.loaded.contains_key(name) || self.take(name, object)?.is_some() {
                    there = true;
                    break;
                }
            }
            if !there && declared.priority == "required" {
                self.need(&declared.sonames[0], object)?;
            }
        }
        if !self.closing.known.insert((self.loader.path.clone(), object.path.clone())) {
            return Ok(());
        }
        for case in known::cases(object) {
            let asking = known::Asking {
                world: &self.closing.world,
                files: self.closing.request.files,
                object,
                loader: &self.loader,
                loaded: &self.loaded,
                env: self.closing.request.env,
            };
            for path in (case.brings)(&asking)? {
                let before = self.closing.world.walk_text(&path).path;
                let picked = self.closing.world.has(&before);
                if self.closing.bring(&path, &Why::needed(&object.path, case.name))?.is_some() && !picked {
                    self.closing.optional.insert(before);
                }
            }
        }
        Ok(())
    }
}

impl Closing<'_> {
    /// Is there a file of this name in the image, whatever its folder?
    fn in_image(&self, name: &str) -> bool {
        self.world.image().iter().any(|(path, picked)| {
            path.name() == name.as_bytes() && picked.entry.as_ref().is_some_and(|e| !e.is_folder())
        })
    }

    /// Where else the builder has it: for a message.
    fn elsewhere(&self, name: &str) -> Vec<String> {
        let all = self.request.view.visible(&RootPath::root());
        all.iter()
            .filter(|(path, (entry, _))| path.name() == name.as_bytes() && !entry.is_folder())
            .take(3)
            .map(|(path, _)| path.to_string())
            .collect()
    }
}

/// The folders of a variable such as `PATH`.
fn folders(text: &str) -> Vec<String> {
    let folders = text.split(':').filter(|folder| folder.starts_with('/'));
    folders.map(|folder| folder.trim_end_matches('/').to_string()).collect()
}

/// Is it a script that something else than a name in `PATH` runs, if anything does?
fn is_run_by_others(path: &RootPath) -> bool {
    let by_service = RUN_BY_OTHERS
        .iter()
        .any(|folder| path.as_bytes().strip_prefix(folder.as_bytes()).is_some_and(|rest| rest.starts_with(b"/")));
    let example = [&b".sample"[..], b".example"].iter().any(|end| path.name().ends_with(end));
    by_service || example || (is_module(path) && !is_in_programs(path))
}

/// Modules of a language are loaded by its interpreter; some keep the first line of a script.
fn is_module(path: &RootPath) -> bool {
    let Some(folder) = path.parent() else { return false };
    let parts: Vec<&[u8]> = folder.as_bytes().split(|b| *b == b'/').collect();
    parts.iter().any(|part| MODULES.contains(part)) || parts.windows(2).any(|pair| is_modules(pair[0], pair[1]))
}

/// `lib/python3.11`, `lib/python3`, `perl/5.36`, `ruby/3.1.0`, `gems/3.1.0`.
fn is_modules(above: &[u8], name: &[u8]) -> bool {
    let is_version = |text: &[u8]| {
        text.first().is_some_and(u8::is_ascii_digit) && text.iter().all(|b| b.is_ascii_digit() || *b == b'.')
    };
    match above {
        b"lib" | b"lib64" => name
            .strip_prefix(b"python")
            .is_some_and(|version| is_version(version.strip_suffix(b"t").unwrap_or(version))),
        b"perl" | b"ruby" | b"gems" => is_version(name),
        _ => false,
    }
}

/// Is it directly in a folder of programs?
fn is_in_programs(path: &RootPath) -> bool {
    path.parent().is_some_and(|folder| PROGRAMS.contains(&folder.name()))
}

fn is_data(path: &RootPath, entry: &Entry) -> bool {
    let name = path.name();
    let Some(dot) = name.iter().rposition(|b| *b == b'.') else { return false };
    entry.mode & 0o111 == 0 && DATA.contains(&&name[dot + 1..])
}

#[cfg(test)]
#[path = "libraries_tests.rs"]
mod tests;
