//! From the arguments of a call to what the rest of the crate knows: types, names and paths checked.
//!
//! Everything wrong with a call is found in one pass. A function that hasn't been called yet counts
//! as absent, so a definition can be checked before any parameter has a value.

mod files;
mod pods;

use std::collections::BTreeMap;

use super::data::{Data, Record};
use super::reference;
use super::spec::{
    Archive, Compression, Export, Fetched, Git, Ids, Image, ImageRef, Layers, Libraries, Limits, Owners, Rule, Source,
    Spec, Step, Tapeout, Wheel,
};
use crate::archive::compress::{GZIP_MOST, ZSTD_MOST};
use crate::error::Result;
use crate::label::{Label, Package};
use crate::remote::reference::Reference;

/// Something wrong with an attribute.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The attribute.
    pub attribute: String,
    /// The string in it that is meant, when there is one.
    pub literal: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub next: Option<String>,
}

/// An edge of the graph as written.
#[derive(Debug, Clone)]
pub struct Edge {
    /// The attribute that it stands in.
    pub attribute: &'static str,
    /// To what.
    pub label: Label,
    /// As it is written.
    pub written: String,
    /// `None`: always.
    pub when: Option<Data>,
    /// A dict, or a function that gives one.
    pub parameters: Data,
}

/// A definition, its functions called.
#[derive(Debug)]
pub struct Definition {
    /// What it is. An image's `base` and a pod's containers hold indices into `images`.
    pub spec: Spec,
    /// Ordinary dependencies.
    pub deps: Vec<Edge>,
    /// Reverse dependencies.
    pub reverse_deps: Vec<Edge>,
    /// The images that an image or a pod stands on.
    pub images: Vec<Edge>,
    /// Its own packages.
    pub packages: Vec<String>,
    /// Its doc.
    pub doc: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Paths of the package's folder that must exist, by attribute.
    pub needs: Vec<(&'static str, String)>,
}

/// The joint point of every image.
pub const JOINT: &str = "//base:tapeout";

/// Reads the arguments of a call (all but a parameter's).
pub fn read<'a>(kind: &'a str, label: &'a Label, values: &'a BTreeMap<String, Data>) -> (Definition, Vec<Fault>) {
    let mut attributes = Attributes { kind, values, package: label.package(), faults: vec![], needs: vec![] };
    attributes.check_names(kind);
    let spec = match kind {
        "archive" => Spec::Archive(attributes.archive(label.name())),
        "git" => Spec::Git(attributes.git(label.name())),
        "tapeout" => Spec::Tapeout(attributes.tapeout()),
        "image" => Spec::Image(attributes.image()),
        "pod" => Spec::Pod(Default::default()),
        _ => Spec::Rule(attributes.rule()),
    };
    let mut definition = Definition {
        spec,
        deps: attributes.edges("deps"),
        reverse_deps: attributes.edges("reverse_deps"),
        images: vec![],
        packages: attributes.package_names(),
        doc: attributes.text("doc").unwrap_or_default(),
        annotations: attributes.dict("annotations"),
        needs: vec![],
    };
    match &mut definition.spec {
        Spec::Tapeout(_) if !values.contains_key("reverse_deps") => {
            definition.reverse_deps.extend(joint("reverse_deps"))
        }
        Spec::Image(image) => {
            if !definition.deps.iter().any(|edge| edge.label.is_base_tapeout()) {
                definition.deps.extend(joint("deps"));
            }
            image.base = attributes.base(&mut definition.images);
        }
        Spec::Pod(pod) => *pod = attributes.pod(&mut definition.images),
        _ => {}
    }
    definition.needs = attributes.needs;
    (definition, attributes.faults)
}

/// Every image stands on its joint point, and every tapeout rule joins it.
fn joint(attribute: &'static str) -> Option<Edge> {
    let label = JOINT.parse().ok()?;
    Some(Edge { attribute, label, written: JOINT.to_string(), when: None, parameters: Data::None })
}

/// `:web` as an image's name means `:web/build_image`.
pub fn image_label(label: Label) -> Result<Label> {
    if label.last() == "build_image" { Ok(label) } else { label.sibling(&format!("{}/build_image", label.name())) }
}

struct Attributes<'a> {
    /// Whose they are: `rule`, `container`.
    kind: &'a str,
    values: &'a BTreeMap<String, Data>,
    package: &'a Package,
    faults: Vec<Fault>,
    needs: Vec<(&'static str, String)>,
}

impl<'a> Attributes<'a> {
    fn fault(&mut self, attribute: &str, literal: Option<&str>, what: impl Into<String>, next: Option<&str>) {
        self.faults.push(Fault {
            attribute: attribute.to_string(),
            literal: literal.map(str::to_string),
            what: what.into(),
            next: next.map(str::to_string),
        });
    }

    fn wrong_type(&mut self, attribute: &str, expected: &str, found: &Data) {
        let what = format!("{attribute} takes {expected}, and this is {}", found.kind());
        let next = reference::type_of(self.kind, attribute).map(|type_name| format!("write {type_name}"));
        self.fault(attribute, None, what, next.as_deref());
    }

    fn check_names(&mut self, kind: &str) {
        let Some(function) = reference::function(kind) else { return };
        for name in self.values.keys() {
            if !function.attributes.iter().any(|attribute| attribute.name == name) {
                let error = reference::unknown_attribute(function, name);
                self.fault(name, None, error.what(), error.next_step());
            }
        }
        for attribute in function.attributes {
            let given = attribute.name == "name" || self.values.contains_key(attribute.name);
            if attribute.default == reference::REQUIRED && !given {
                self.fault(attribute.name, None, format!("{kind}() needs {}", attribute.name), Some(attribute.doc));
            }
        }
    }

    /// What stands there, unless it is None or a function in it is still to be called.
    fn get(&self, name: &str) -> Option<&'a Data> {
        self.values.get(name).filter(|data| !matches!(data, Data::None) && !data.is_deferred())
    }

    fn string(&mut self, attribute: &str, data: &Data) -> Option<String> {
        match data {
            Data::Text(text) if text.contains('\0') => {
                self.fault(attribute, None, format!("{attribute} holds a NUL byte"), Some("remove it"));
                None
            }
            Data::Text(text) => Some(text.clone()),
            other => {
                self.wrong_type(attribute, "strings", other);
                None
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.get(name)? {
            Data::Text(text) if text.contains('\0') => {
                self.fault(name, None, format!("{name} holds a NUL byte"), Some("remove it"));
                None
            }
            Data::Text(text) => Some(text.clone()),
            other => {
                self.wrong_type(name, "a string", other);
                None
            }
        }
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(Data::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong_type(name, "True or False", other);
                default
            }
        }
    }

    fn items(&mut self, name: &str) -> &'a [Data] {
        match self.get(name) {
            None => &[],
            Some(Data::List(items)) => items,
            Some(other) => {
                self.wrong_type(name, "a list", other);
                &[]
            }
        }
    }

    fn texts(&mut self, name: &str) -> Vec<String> {
        self.items(name).iter().filter_map(|item| self.string(name, item)).collect()
    }

    fn entries(&mut self, name: &str) -> &'a [(String, Data)] {
        match self.get(name) {
            None => &[],
            Some(Data::Dict(entries)) => entries,
            Some(other) => {
                self.wrong_type(name, "a dict", other);
                &[]
            }
        }
    }

    fn dict(&mut self, name: &str) -> BTreeMap<String, String> {
        let mut made = BTreeMap::new();
        for (key, value) in self.entries(name) {
            if let Some(value) = self.string(name, value) {
                made.insert(key.clone(), value);
            }
        }
        made
    }

    fn environment(&mut self, name: &str) -> BTreeMap<String, String> {
        let made = self.dict(name);
        made.keys().for_each(|key| self.variable(name, key));
        made
    }

    fn variable(&mut self, attribute: &str, name: &str) {
        if name.is_empty() || name.contains(['=', '\0', '\n']) {
            let what = format!("not a name of an environment variable: {name:?}");
            self.fault(attribute, Some(name), what, Some("write it without = and newlines"));
        }
    }

    fn choice<T: Default + Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let Some(text) = self.text(name) else { return T::default() };
        match choices.iter().find(|(choice, _)| *choice == text) {
            Some((_, value)) => *value,
            None => {
                let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
                self.fault(
                    name,
                    Some(&text),
                    format!("{name} can't be {text:?}"),
                    Some(&format!("it is one of {}", names.join(", "))),
                );
                T::default()
            }
        }
    }

    fn steps(&mut self, name: &str) -> Vec<Step> {
        match self.get(name) {
            None => vec![],
            Some(script @ Data::Text(_)) => self.string(name, script).map(Step::Shell).into_iter().collect(),
            Some(Data::List(items)) if items.iter().any(|item| matches!(item, Data::List(_))) => {
                items.iter().filter_map(|item| self.step(name, item)).collect()
            }
            Some(Data::List(items)) if items.is_empty() => vec![],
            Some(argv) => self.step(name, argv).into_iter().collect(),
        }
    }

    fn step(&mut self, name: &str, data: &Data) -> Option<Step> {
        match data {
            Data::Text(_) => self.string(name, data).map(Step::Shell),
            Data::List(items) if !items.is_empty() => {
                let words: Vec<String> = items.iter().filter_map(|item| self.string(name, item)).collect();
                Some(Step::Argv(words))
            }
            other => {
                self.wrong_type(name, "a script, a list of words, or a list of these", other);
                None
            }
        }
    }

    fn edges(&mut self, name: &'static str) -> Vec<Edge> {
        self.items(name).iter().filter_map(|item| self.edge(name, item)).collect()
    }

    fn edge(&mut self, name: &'static str, data: &Data) -> Option<Edge> {
        let none = BTreeMap::new();
        let (written, fields) = match data {
            Data::Text(text) => (text.clone(), &none),
            Data::Record(Record { kind, fields }) if kind == "dep" => match fields.get("label") {
                Some(Data::Text(text)) => (text.clone(), fields),
                other => {
                    self.wrong_type(name, "dep(LABEL)", other.unwrap_or(&Data::None));
                    return None;
                }
            },
            other => {
                self.wrong_type(name, "labels and dep(…)", other);
                return None;
            }
        };
        let label = match Label::parse_in(&written, self.package) {
            Ok(label) => label,
            Err(error) => {
                let why = error.reasons().first().map(|why| format!(": {why}")).unwrap_or_default();
                self.fault(name, Some(&written), format!("{}{why}", error.what()), error.next_step());
                return None;
            }
        };
        let when = match fields.get("when") {
            None | Some(Data::Bool(true)) => None,
            Some(condition @ (Data::Bool(false) | Data::Function(_))) => Some(condition.clone()),
            Some(other) => {
                self.wrong_type(name, "when = a function or a bool", other);
                None
            }
        };
        let parameters = match fields.get("parameters") {
            None => Data::None,
            Some(given @ (Data::Dict(_) | Data::Function(_) | Data::None)) => given.clone(),
            Some(other) => {
                self.wrong_type(name, "parameters = a dict or a function", other);
                Data::None
            }
        };
        Some(Edge { attribute: name, label, written, when, parameters })
    }

    /// An image of this build, whose place in the graph is known later, or one of a registry.
    fn base(&mut self, images: &mut Vec<Edge>) -> Option<ImageRef> {
        let data = self.get("base")?;
        if let Data::Text(text) = data
            && text.starts_with("docker://")
        {
            let text = text.clone();
            match text.parse::<Reference>() {
                Ok(reference) if reference.digest.is_some() => return Some(ImageRef::Registry(text)),
                Ok(_) => self.fault(
                    "base",
                    Some(&text),
                    format!("the image {text} is not pinned by digest"),
                    Some("write docker://REF@sha256:…"),
                ),
                Err(error) => self.fault("base", Some(&text), error.what().to_string(), None),
            }
            return None;
        }
        let edge = self.edge("base", data)?;
        images.push(Edge { label: image_label(edge.label).ok()?, ..edge });
        Some(ImageRef::Built(0))
    }

    fn package_names(&mut self) -> Vec<String> {
        let names = self.texts("packages");
        for name in &names {
            let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:".contains(&b));
            if name.is_empty() || name.starts_with('-') || !good {
                let next = Some("letters, digits and + - . : may stand in it");
                self.fault("packages", Some(name), format!("not the name of a package: {name:?}"), next);
            }
        }
        names
    }

    fn rule(&mut self) -> Rule {
        Rule {
            run: self.steps("run"),
            sources: self.sources(),
            env: self.environment("env"),
            exports: self.exports(),
            user: self.user("user"),
            ids: self.choice("ids", &[("one", Ids::One), ("range", Ids::Range)]),
            owners: self.choice("owners", &[("recorded", Owners::Recorded), ("seen", Owners::Seen)]),
            network: self.flag("network", false),
            secrets: self.plain_names("secrets"),
            caches: self.cache_paths("caches"),
            limits: self.limits(),
        }
    }

    fn sources(&mut self) -> Vec<Source> {
        let mut made = vec![];
        for item in self.items("sources") {
            match item {
                Data::Text(path) => {
                    if self.relative("sources", path) {
                        self.needs.push(("sources", path.clone()));
                        made.push(Source::Path(path.clone()));
                    }
                }
                Data::Record(Record { kind, fields }) if kind == "input" => match fields.get("name") {
                    Some(Data::Text(name)) if self.is_plain("sources", name) => made.push(Source::Input(name.clone())),
                    Some(Data::Text(_)) => {}
                    other => self.wrong_type("sources", "input(NAME)", other.unwrap_or(&Data::None)),
                },
                Data::Record(Record { kind, fields }) if kind == "fetched" => {
                    made.extend(self.fetched(fields).map(Source::Fetched))
                }
                Data::Record(Record { kind, fields }) if kind == "wheel" => match wheel(fields) {
                    Some(wheel) if self.relative("sources", &wheel.folder) => made.push(Source::Wheel(wheel)),
                    Some(_) => {}
                    None => self.fault(
                        "sources",
                        None,
                        "not what python_wheels() gives",
                        Some("write sources = python_wheels(\"requirements.lock\")"),
                    ),
                },
                other => self.wrong_type("sources", "paths, input(…) and fetched(…)", other),
            }
        }
        made
    }

    fn fetched(&mut self, fields: &BTreeMap<String, Data>) -> Option<Fetched> {
        let (Some(Data::Text(path)), Some(Data::Text(digest)), Some(urls)) =
            (fields.get("path"), fields.get("digest"), fields.get("urls").and_then(texts))
        else {
            let next = "write fetched(PATH, urls = [\"https://…\"], digest = \"sha256:…\")";
            self.fault("sources", None, "fetched() takes strings, and a list of them as urls", Some(next));
            return None;
        };
        let length = [("sha256:", 64), ("sha512:", 128)]
            .into_iter()
            .find_map(|(name, length)| Some((digest.strip_prefix(name)?, length)));
        if !length.is_some_and(|(hex, length)| is_hex(hex, length)) {
            let next = "write sha256: or sha512:, and its hex digits in lower case";
            self.fault("sources", Some(digest), format!("not a digest: {digest:?}"), Some(next));
            return None;
        }
        let good = self.relative("sources", path);
        (self.urls("sources", &urls, ARCHIVE_URLS) && good).then(|| Fetched {
            path: path.clone(),
            urls,
            digest: digest.clone(),
        })
    }

    /// URLs of these kinds, at least one.
    fn urls(&mut self, attribute: &str, urls: &[String], known: &[&str]) -> bool {
        let before = self.faults.len();
        for url in urls {
            if !known.iter().any(|scheme| url.starts_with(scheme)) || url.contains(|c: char| c.is_control() || c == ' ')
            {
                self.fault(
                    attribute,
                    Some(url),
                    format!("not a URL that can be fetched: {url:?}"),
                    Some(&format!("it begins with one of {}", known.join(" "))),
                );
            }
        }
        if urls.is_empty() {
            self.fault(attribute, None, "urls is empty", Some("name one at least"));
        }
        self.faults.len() == before
    }

    fn exports(&mut self) -> BTreeMap<String, Export> {
        let mut made = BTreeMap::new();
        for (name, value) in self.entries("exports") {
            self.variable("exports", name);
            let export = match value {
                Data::List(items) => {
                    Export::Prepend(items.iter().filter_map(|item| self.string("exports", item)).collect())
                }
                other => match self.string("exports", other) {
                    Some(text) => Export::Set(text),
                    None => continue,
                },
            };
            made.insert(name.clone(), export);
        }
        made
    }

    fn limits(&mut self) -> Limits {
        let mut limits = Limits::default();
        for (name, value) in self.entries("limits") {
            let number = match value {
                Data::Int(number) if *number > 0 => Some(*number as u64),
                Data::Text(text) => bytes(text),
                _ => None,
            };
            let field = match name.as_str() {
                "processes" => &mut limits.processes,
                "memory" => &mut limits.memory,
                "file_size" => &mut limits.file_size,
                "time" => &mut limits.time,
                other => {
                    self.fault(
                        "limits",
                        Some(other),
                        format!("there is no limit {other:?}"),
                        Some("there are processes, memory, file_size, time"),
                    );
                    continue;
                }
            };
            *field = number;
            if number.is_none() {
                let what = format!("the limit {name} takes a number above 0, or \"512M\"");
                self.fault("limits", Some(name), what, Some("write limits = {\"memory\": \"512M\", \"time\": 60}"));
            }
        }
        limits
    }

    fn archive(&mut self, name: &str) -> Archive {
        let urls = self.texts("urls");
        if self.get("urls").is_some() {
            self.urls("urls", &urls, ARCHIVE_URLS);
        }
        for url in &urls {
            if let Some(path) = url.strip_prefix("debian:").or(url.strip_prefix("file:")) {
                self.relative("urls", path);
            }
        }
        let sha256 = self.text("sha256").unwrap_or_default();
        if self.get("sha256").is_some() && !is_hex(&sha256, 64) {
            self.fault(
                "sha256",
                Some(&sha256),
                "sha256 takes 64 hex digits in lower case",
                Some("sha256sum FILE prints them"),
            );
        }
        let strip_prefix = self.text("strip_prefix").unwrap_or_default();
        if !strip_prefix.is_empty() {
            self.relative("strip_prefix", &strip_prefix);
        }
        let into = self.text("into").unwrap_or_else(|| name.to_string());
        self.relative("into", &into);
        Archive { urls, sha256, strip_prefix, into, patches: self.patches() }
    }

    fn git(&mut self, name: &str) -> Git {
        let urls = self.texts("urls");
        if self.get("urls").is_some() {
            self.urls("urls", &urls, &["https:", "http:", "file:/", "input:"]);
        }
        let commit = self.text("commit").unwrap_or_default();
        if self.get("commit").is_some() && !is_hex(&commit, 40) && !is_hex(&commit, 64) {
            self.fault(
                "commit",
                Some(&commit),
                "commit takes a whole commit id: 40 hex digits in lower case",
                Some("git rev-parse NAME prints it; what a branch or tag means can change"),
            );
        }
        let into = self.text("into").unwrap_or_else(|| name.to_string());
        self.relative("into", &into);
        Git { urls, commit, submodules: self.flag("submodules", false), into, patches: self.patches() }
    }

    fn patches(&mut self) -> Vec<String> {
        let patches = self.texts("patches");
        for path in &patches {
            if self.relative("patches", path) {
                self.needs.push(("patches", path.clone()));
            }
        }
        patches
    }

    fn tapeout(&mut self) -> Tapeout {
        Tapeout {
            include: self.patterns("include"),
            exclude: self.patterns("exclude"),
            paths: self.patterns("paths"),
            from_packages: self.texts("packages"),
            libraries: self.libraries(),
            files: self.files("files", true),
            run: self.steps("run"),
            strip_prefix: self.absolute_path("strip_prefix"),
            prefix: self.absolute_path("prefix"),
            rename: self.rename(),
            owner: self.user("owner"),
            modes: self.modes(),
            joint: false,
        }
    }

    fn libraries(&mut self) -> Libraries {
        match self.get("libraries") {
            None => Libraries::Search(true),
            Some(Data::Bool(search)) => Libraries::Search(*search),
            Some(Data::List(_)) => Libraries::Also(self.texts("libraries")),
            Some(other) => {
                self.wrong_type("libraries", "True, False or a list", other);
                Libraries::Search(true)
            }
        }
    }

    fn rename(&mut self) -> BTreeMap<String, String> {
        let made = self.dict("rename");
        for (from, to) in &made {
            self.is_absolute("rename", from);
            self.is_absolute("rename", to);
        }
        made
    }

    fn modes(&mut self) -> BTreeMap<String, u32> {
        let mut made = BTreeMap::new();
        for (pattern, value) in self.entries("modes") {
            self.is_pattern("modes", pattern);
            if let Some(mode) = self.mode("modes", value) {
                made.insert(pattern.clone(), mode);
            }
        }
        made
    }

    fn image(&mut self) -> Image {
        let whole_builder = match self.get("tapeouts") {
            None => false,
            Some(Data::Record(record)) if record.kind == "ALL" => true,
            Some(other) => {
                self.wrong_type("tapeouts", "ALL", other);
                false
            }
        };
        let (compression, level) = self.compression();
        let image = Image {
            base: None,
            whole_builder,
            entrypoint: self.texts("entrypoint"),
            cmd: self.texts("cmd"),
            env: self.environment("env"),
            user: self.user("user").unwrap_or_default(),
            working_dir: self.absolute_path("working_dir").unwrap_or_default(),
            ports: self.image_ports(),
            volumes: self.absolute_paths("volumes"),
            stop_signal: self.stop_signal(),
            labels: self.dict("labels"),
            annotations: self.dict("annotations"),
            layers: self.choice("layers", &[("rule", Layers::Rule), ("single", Layers::Single)]),
            compression,
            level,
            exclude: self.patterns("exclude"),
            check: self.steps("check"),
            version: self.version(),
        };
        self.not_of_proc(&image.working_dir);
        image
    }

    /// A working folder of /proc/self/fd/7 led out of other people's containers (CVE-2024-21626).
    fn not_of_proc(&mut self, working_dir: &str) {
        if working_dir.split('/').find(|part| !part.is_empty() && *part != ".") == Some("proc") {
            let next = Some("name a folder of the image");
            self.fault("working_dir", Some(working_dir), "working_dir can't be below /proc", next);
        }
    }

    /// `zstd`, or with a level `zstd:19`.
    fn compression(&mut self) -> (Compression, Option<u8>) {
        let Some(text) = self.text("compression") else { return Default::default() };
        let (name, level) = text.split_once(':').map_or((text.as_str(), None), |(name, level)| (name, Some(level)));
        let known = match name {
            "zstd" => Some((Compression::Zstd, ZSTD_MOST)),
            "gzip" => Some((Compression::Gzip, GZIP_MOST)),
            "none" => Some((Compression::None, 0)),
            _ => None,
        };
        let number = level.map(|level| level.parse::<u8>().ok());
        match (known, number) {
            (Some((compression, _)), None) => (compression, None),
            (Some((compression, most)), Some(Some(level))) if (1..=most).contains(&level) => (compression, Some(level)),
            _ => {
                self.fault(
                    "compression",
                    Some(&text),
                    format!("compression can't be {text:?}"),
                    Some(&format!("it is zstd, gzip or none; a level may follow: zstd:1 to zstd:{ZSTD_MOST}, gzip:1 to gzip:{GZIP_MOST}")),
                );
                Default::default()
            }
        }
    }

    /// As signal(7) has them; runtimes take the numbers too.
    fn stop_signal(&mut self) -> String {
        let text = self.text("stop_signal").unwrap_or_default();
        let name = text.strip_prefix("SIG").unwrap_or_default();
        let (name, more) = name.split_once(['+', '-']).map_or((name, None), |(name, more)| (name, Some(more)));
        let named = match more {
            None => SIGNALS.contains(&name),
            Some(more) => ["RTMIN", "RTMAX"].contains(&name) && more.parse::<u8>().is_ok_and(|n| n <= 30),
        };
        if !text.is_empty() && !named && !text.parse::<u8>().is_ok_and(|n| (1..=64).contains(&n)) {
            self.fault(
                "stop_signal",
                Some(&text),
                format!("not a signal: {text:?}"),
                Some("write it as signal(7) does: SIGINT, SIGQUIT, SIGRTMIN+3"),
            );
        }
        text
    }

    fn image_ports(&mut self) -> Vec<String> {
        let mut made = vec![];
        for item in self.items("ports") {
            let (number, protocol) = match item {
                Data::Int(number) => (*number, "tcp"),
                Data::Text(text) => {
                    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                    (number.parse().unwrap_or(0), protocol)
                }
                other => {
                    self.wrong_type("ports", "numbers and \"53/udp\"", other);
                    continue;
                }
            };
            if (1..=65535).contains(&number) && ["tcp", "udp"].contains(&protocol) {
                made.push(format!("{number}/{protocol}"));
            } else {
                self.fault(
                    "ports",
                    item.text(),
                    format!("not a port: {}", item.shown()),
                    Some("write 6379 or \"53/udp\""),
                );
            }
        }
        made
    }

    fn version(&mut self) -> Option<String> {
        let version = self.text("version")?;
        let good = version.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~".contains(&b));
        if version.is_empty() || version.starts_with('-') || !good || version.len() > 128 {
            self.fault(
                "version",
                Some(&version),
                format!("not a version: {version:?}"),
                Some("letters, digits and . _ + - ~ may stand in it"),
            );
        }
        Some(version)
    }
}

/// Signals by name, without the SIG.
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "KILL", "PIPE", "PROF", "PWR", "QUIT",
    "RTMAX", "RTMIN", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2",
    "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// What may stand in the urls of an archive.
const ARCHIVE_URLS: &[&str] = &["https:", "http:", "debian:", "input:", "file:"];

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn texts(data: &Data) -> Option<Vec<String>> {
    match data.value() {
        Some(super::spec::Value::List(texts)) => Some(texts),
        _ => None,
    }
}

/// What `python_wheels` made, which checked it.
fn wheel(fields: &BTreeMap<String, Data>) -> Option<Wheel> {
    let text = |name: &str| match fields.get(name) {
        Some(Data::Text(text)) => Some(text.clone()),
        _ => None,
    };
    Some(Wheel {
        folder: text("folder")?,
        name: text("name")?,
        version: text("version")?,
        sha256: texts(fields.get("sha256")?)?,
        python: text("python")?,
        indexes: texts(fields.get("indexes")?)?,
        optional: matches!(fields.get("optional"), Some(Data::Bool(true))),
    })
}

/// `512M`: powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    for (unit, shift) in units {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift);
        }
    }
    text.parse().ok().filter(|n| *n > 0)
}
