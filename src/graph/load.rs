//! Packages: each build file is read and evaluated once, when it is first needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::analysis::Errors;
use super::parameters::{Type, typed};
use crate::build_file::attributes::{self, Edge, Fault};
use crate::build_file::data::{Data, Function};
use crate::build_file::reference;
use crate::build_file::search_path::{BUILD_FILE, SearchPath, SourceFile};
use crate::build_file::spec::Value;
use crate::build_file::starlark::{self, Call, Evaluated, Loaded, Scene};
use crate::error::{Error, Place, Result};
use crate::label::{Label, Package};
use crate::nearest::nearest;

/// Files that load one another.
const LOAD_DEPTH: usize = 50;
/// Definitions of one file.
const DEFINITIONS: usize = 100_000;

/// An evaluated build file.
pub(super) struct PackageFile {
    /// As messages call it.
    pub file: String,
    /// Its text, to show places in it.
    pub text: Rc<str>,
    /// `None`: built in.
    pub folder: Option<PathBuf>,
    /// By name.
    pub defined: BTreeMap<String, Rc<Defined>>,
    /// As written.
    pub order: Vec<Rc<Defined>>,
    /// Some of its definitions could not be read: a name that is missing may be one of them.
    pub is_broken: bool,
}

/// A definition as written, before any parameter has a value.
pub(super) struct Defined {
    pub label: Label,
    pub kind: String,
    pub place: Place,
    pub arguments: BTreeMap<String, Data>,
    /// What is wrong with it was reported.
    pub is_broken: bool,
    pub doc: String,
    pub annotations: BTreeMap<String, String>,
    pub deps: Vec<Edge>,
    pub reverse_deps: Vec<Edge>,
    pub parameter: Option<Parameter>,
}

/// `parameter(…)`
pub(super) struct Parameter {
    pub type_name: Type,
    pub default: Option<Value>,
    pub derive: Option<Function>,
}

/// What a look-up found.
pub(super) enum Found {
    Package(Rc<PackageFile>),
    /// Its errors were reported.
    Broken,
    Missing(Error),
}

/// All packages that were needed so far.
pub(super) struct Packages {
    search_path: SearchPath,
    packages: BTreeMap<Package, Option<Rc<PackageFile>>>,
    modules: BTreeMap<(Package, String), Option<Loaded>>,
    /// Files that are being loaded, with the place of the load.
    loading: Vec<(Package, String, Place)>,
}

impl Packages {
    pub fn new(search_path: SearchPath) -> Self {
        Self { search_path, packages: BTreeMap::new(), modules: BTreeMap::new(), loading: vec![] }
    }

    pub fn search_path(&self) -> &SearchPath {
        &self.search_path
    }

    /// Those that were evaluated.
    pub fn loaded(&self) -> impl Iterator<Item = (&Package, &Rc<PackageFile>)> {
        self.packages.iter().filter_map(|(package, found)| Some((package, found.as_ref()?)))
    }

    pub fn package(&mut self, package: &Package, errors: &mut Errors) -> Found {
        if let Some(known) = self.packages.get(package) {
            return known.clone().map_or(Found::Broken, Found::Package);
        }
        if !self.search_path.has(package) {
            return Found::Missing(self.search_path.missing(package));
        }
        let loaded = self.load_package(package, errors).unwrap_or_else(|error| {
            errors.report(error);
            None
        });
        self.packages.insert(package.clone(), loaded.clone());
        loaded.map_or(Found::Broken, Found::Package)
    }

    fn load_package(&mut self, package: &Package, errors: &mut Errors) -> Result<Option<Rc<PackageFile>>> {
        let file = self.search_path.build_file(package)?;
        let scene =
            Scene { package: package.clone(), folder: file.folder.clone(), build_file: Some(file.name.clone()) };
        let Some(evaluated) = self.evaluate(&file, &scene, errors)? else { return Ok(None) };
        let mut made = PackageFile {
            file: file.name.clone(),
            text: file.text.into(),
            folder: file.folder,
            defined: BTreeMap::new(),
            order: vec![],
            is_broken: !evaluated.errors.is_empty(),
        };
        if evaluated.calls.len() > DEFINITIONS {
            return Err(Error::request(format!("{} defines more than {DEFINITIONS} things", made.file)));
        }
        for call in evaluated.calls {
            match label(package, &call) {
                Ok(label) => made.add(label, call, errors),
                Err(error) => {
                    made.is_broken = true;
                    let at = argument_place(&made.text, &call.place, "name", Some(&call.name));
                    errors.report(error.at(at, ""));
                }
            }
        }
        evaluated.errors.into_iter().for_each(|error| errors.report(error));
        Ok(Some(Rc::new(made)))
    }

    /// Evaluates a file, what it loads first; `None`: what it loads is broken, and reported.
    fn evaluate(&mut self, file: &SourceFile, scene: &Scene, errors: &mut Errors) -> Result<Option<Evaluated>> {
        starlark::progress::note(&file.name, 1);
        let parsed = starlark::parse(&file.name, &file.text)?;
        let mut loaded = BTreeMap::new();
        let mut whole = true;
        for (name, place) in parsed.loads() {
            match self.load(&name, place.clone(), &scene.package, errors) {
                Ok(Some(module)) => _ = loaded.insert(name, module),
                Ok(None) => whole = false,
                Err(error) => {
                    errors.report(error.at(place, ""));
                    whole = false;
                }
            }
        }
        if !whole {
            return Ok(None);
        }
        Ok(Some(starlark::evaluate(parsed, &loaded, scene)))
    }

    /// `//package/file.star`, or `:file.star` in the same package.
    fn load(&mut self, name: &str, place: Place, here: &Package, errors: &mut Errors) -> Result<Option<Loaded>> {
        let (package, file) = loaded_name(name, here)?;
        let key = (package, file);
        if let Some(known) = self.modules.get(&key) {
            return Ok(known.clone());
        }
        let start = self.loading.iter().position(|(package, file, _)| (package, file) == (&key.0, &key.1));
        if let Some(start) = start {
            let cycle =
                self.loading[start..].iter().map(|(package, file, _)| (package, file)).chain([(&key.0, &key.1)]);
            let names: Vec<String> =
                cycle.map(|(package, file)| format!("//{}", Path::new(package.path()).join(file).display())).collect();
            let mut error = Error::request(format!("files load one another: {}", names.join(" → ")));
            for (_, _, place) in &self.loading[start + 1..] {
                error = error.at(place.clone(), "loaded from here");
            }
            return Err(error);
        }
        if self.loading.len() >= LOAD_DEPTH {
            return Err(Error::request(format!("more than {LOAD_DEPTH} files load one another")));
        }
        let source = self.search_path.loaded_file(&key.0, &key.1)?;
        let scene = Scene { package: key.0.clone(), folder: source.folder.clone(), build_file: None };
        self.loading.push((key.0.clone(), key.1.clone(), place));
        let evaluated = self.evaluate(&source, &scene, errors);
        self.loading.pop();
        let module = match evaluated {
            Ok(evaluated) => evaluated.and_then(|evaluated| {
                evaluated.errors.into_iter().for_each(|error| errors.report(error));
                evaluated.module
            }),
            Err(error) => {
                errors.report(error);
                None
            }
        };
        self.modules.insert(key, module.clone());
        Ok(module)
    }
}

fn loaded_name(name: &str, here: &Package) -> Result<(Package, String)> {
    let bad = |why: &str| {
        let next = "write load(\"//package/file.star\", …), or load(\":file.star\", …) for one of this package";
        Error::request(format!("not a file that can be loaded: {name:?}")).why(why.to_string()).next(next)
    };
    let (package, file) = match name.strip_prefix("//") {
        Some(rest) => match rest.rsplit_once('/') {
            Some((package, file)) => (Package::new(package)?, file),
            None => (Package::new("")?, rest),
        },
        None => match name.strip_prefix(':') {
            Some(file) => (here.clone(), file),
            None => return Err(bad("it begins with neither // nor :")),
        },
    };
    if !file.ends_with(".star")
        || file.contains(':')
        || Label::new(package.clone(), file).is_err()
        || file.contains('/')
    {
        return Err(bad("it doesn't name a .star file"));
    }
    if file == BUILD_FILE {
        return Err(bad("a build file can't be loaded: its rules belong to its package"));
    }
    Ok((package, file.to_string()))
}

/// `image("web")` defines `web/build_image`, `pod("shop")` `shop/build_pod`.
fn label(package: &Package, call: &Call) -> Result<Label> {
    let suffix = match call.kind.as_str() {
        "image" => "/build_image",
        "pod" => "/build_pod",
        _ => "",
    };
    Label::new(package.clone(), &call.name)?;
    let label = Label::new(package.clone(), &format!("{}{suffix}", call.name))?;
    if suffix.is_empty() && (label.last() == "build_image" || label.last() == "build_pod") {
        return Err(Error::request(format!("a {} can't be named {}", call.kind, label.last()))
            .next("image(\"web\") defines web/build_image, pod(\"shop\") shop/build_pod"));
    }
    Ok(label)
}

impl PackageFile {
    /// The names of its rules, as written.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        self.order.iter().filter(|defined| defined.parameter.is_none()).map(|defined| defined.label.name())
    }

    fn add(&mut self, label: Label, call: Call, errors: &mut Errors) {
        if let Some(first) = self.defined.get(label.name()) {
            errors.report(
                Error::request(format!("{label} is defined twice"))
                    .at(call.place, "here")
                    .at(first.place.clone(), "and here")
                    .next("rename one; parameters and rules share their names"),
            );
            return;
        }
        let defined = Rc::new(self.define(label, call, errors));
        self.defined.insert(defined.label.name().to_string(), defined.clone());
        self.order.push(defined);
    }

    fn define(&self, label: Label, call: Call, errors: &mut Errors) -> Defined {
        let mut report = |faults: Vec<Fault>| {
            let is_broken = !faults.is_empty();
            fault_errors(&self.text, &label, &call.place, &faults).into_iter().for_each(|error| errors.report(error));
            is_broken
        };
        if call.kind == "parameter" {
            let (parameter, faults) = parameter(&call.arguments);
            let is_broken = report(faults);
            let text = |name: &str| match call.arguments.get(name) {
                Some(Data::Text(text)) => text.clone(),
                _ => String::new(),
            };
            return Defined {
                doc: text("doc"),
                annotations: BTreeMap::new(),
                deps: vec![],
                reverse_deps: vec![],
                parameter: Some(parameter),
                is_broken,
                label,
                kind: call.kind,
                place: call.place,
                arguments: call.arguments,
            };
        }
        let (definition, faults) = attributes::read(&call.kind, &label, &call.arguments);
        let is_broken = report(faults);
        let mut deps = definition.deps;
        deps.extend(definition.images);
        Defined {
            doc: definition.doc,
            annotations: definition.annotations,
            deps,
            reverse_deps: definition.reverse_deps,
            parameter: None,
            is_broken,
            label,
            kind: call.kind,
            place: call.place,
            arguments: call.arguments,
        }
    }
}

/// Faults at their places in the text, in that order.
pub(super) fn fault_errors(text: &str, label: &Label, call: &Place, faults: &[Fault]) -> Vec<Error> {
    let mut errors: Vec<Error> = faults.iter().map(|fault| fault_error(text, label, call, fault)).collect();
    errors.sort_by_key(|error| error.places().first().map(|(place, _)| (place.line, place.column)));
    errors
}

fn fault_error(text: &str, label: &Label, call: &Place, fault: &Fault) -> Error {
    let place = argument_place(text, call, &fault.attribute, fault.literal.as_deref());
    let made = Error::request(format!("{label}: {}", fault.what)).at(place, "");
    match &fault.next {
        Some(next) => made.next(next.clone()),
        None => made,
    }
}

/// Where an argument of a call stands; the call itself, where it can't be told.
pub(super) fn argument_place(text: &str, call: &Place, argument: &str, literal: Option<&str>) -> Place {
    starlark::argument_place(text, call, argument, literal).unwrap_or_else(|| call.clone())
}

fn parameter(arguments: &BTreeMap<String, Data>) -> (Parameter, Vec<Fault>) {
    let mut faults = vec![];
    let mut fault = |attribute: &str, literal: Option<&str>, what: String, next: Option<String>| {
        faults.push(Fault { attribute: attribute.to_string(), literal: literal.map(str::to_string), what, next });
    };
    if let Some(function) = reference::function("parameter") {
        for name in arguments.keys() {
            if !function.attributes.iter().any(|attribute| attribute.name == name) {
                let error = reference::unknown_attribute(function, name);
                fault(name, None, error.what().to_string(), error.next_step().map(str::to_string));
            }
        }
    }
    let known = match arguments.get("type") {
        None => Some(Type::String),
        Some(Data::Text(text)) => {
            let known = Type::parse(text);
            if known.is_none() {
                let next = match nearest(text, Type::NAMES) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("it is one of {}", Type::NAMES.join(", ")),
                };
                fault("type", Some(text), format!("there is no type {text:?}"), Some(next));
            }
            known
        }
        Some(other) => {
            let what = format!("type takes a string, and this is {}", other.kind());
            fault("type", None, what, Some(format!("it is one of {}", Type::NAMES.join(", "))));
            None
        }
    };
    let type_name = known.unwrap_or(Type::String);
    let derive = match arguments.get("derive") {
        None | Some(Data::None) => None,
        Some(Data::Function(function)) => Some(function.clone()),
        Some(other) => {
            fault(
                "derive",
                None,
                format!("derive takes a function, and this is {}", other.kind()),
                Some("write derive = lambda p: p[\"…\"]".to_string()),
            );
            None
        }
    };
    let default = match arguments.get("default") {
        None | Some(Data::None) => None,
        // What it should be isn't known: one error is enough.
        Some(_) if known.is_none() => None,
        Some(data) => typed(type_name, data).map_or_else(
            |what| {
                fault("default", None, format!("default: {what}"), Some(type_name.example().to_string()));
                None
            },
            Some,
        ),
    };
    if default.is_some() && derive.is_some() {
        fault("derive", None, "it has a default and a derive".to_string(), Some("keep one of them".to_string()));
    }
    (Parameter { type_name, default, derive }, faults)
}
