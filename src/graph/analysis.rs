//! One analysis: its state, and how it is asked and answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use super::load::{Defined, Found, Packages};
use super::memo::Recalled;
use super::nodes::{Node, NodeId, NodeKey, Trace};
use super::parameters::{Collected, Known, Settings, SettingsId};
use super::{Answer, Question, Wanted};
use crate::build_file::attributes;
use crate::build_file::data::Data;
use crate::build_file::spec::{DefinedDependency, Definition, Spec, Value, Values};
use crate::error::{Error, Place, Result};
use crate::label::{Label, Package, Pattern};
use crate::nearest::nearest;

/// What is wanted, in messages.
const PARAMETER: &str = "parameter ";

/// What the name of an image or a pod ends in, and what people leave out.
const ENDS: [&str; 2] = ["/build_image", "/build_pod"];

/// Errors that are shown; a broken package can give thousands.
const ERRORS: usize = 50;

/// The state of one analysis.
pub(super) struct Analysis {
    pub packages: Packages,
    pub errors: Errors,
    pub settings: Vec<Rc<Settings>>,
    pub settings_by_value: BTreeMap<Rc<Settings>, SettingsId>,
    pub values: BTreeMap<(Label, SettingsId), Option<Known>>,
    /// Parameters that are being derived, with the place that reads each.
    pub deriving: Vec<(Label, Option<Place>)>,
    pub nodes: Vec<Node>,
    /// Looked up by hand only: their order is nobody's.
    pub node_by_settings: HashMap<(Label, SettingsId), Option<NodeId>>,
    pub node_by_trace: HashMap<Label, Vec<(Arc<Trace>, NodeId)>>,
    pub node_by_key: HashMap<NodeKey, NodeId>,
    /// Each once: ten thousand rules mostly see the same.
    pub seen: BTreeSet<Arc<Values>>,
    pub traces: BTreeSet<Arc<Trace>>,
    pub stack: Vec<super::nodes::Step>,
    /// What an earlier analysis found, as far as it still holds.
    pub recalled: Recalled,
}

/// All that went wrong, each once.
#[derive(Default)]
pub(super) struct Errors {
    found: Vec<Error>,
    seen: BTreeSet<(String, String)>,
    left_out: usize,
}

impl Errors {
    pub fn report(&mut self, error: Error) {
        let place = error.places().first().map(|(place, _)| format!("{}:{}:{}", place.file, place.line, place.column));
        if !self.seen.insert((error.what().to_string(), place.unwrap_or_default())) {
            return;
        }
        if self.found.len() < ERRORS {
            self.found.push(error.with_kind(crate::error::Kind::Request));
        } else {
            self.left_out += 1;
        }
    }

    fn take(&mut self) -> Result<()> {
        let mut found = std::mem::take(&mut self.found);
        if self.left_out > 0 {
            found.push(Error::request(format!("and {} more errors", self.left_out)).next("mend these first"));
        }
        Error::all(found).map_or(Ok(()), Err)
    }
}

/// Answers a question, in this thread, from what is recalled of an earlier answer.
pub(super) fn run(question: &Question, recalled: Recalled) -> Result<Answer> {
    let mut analysis = Analysis {
        packages: Packages::new(question.search_path.clone()),
        errors: Errors::default(),
        settings: vec![],
        settings_by_value: BTreeMap::new(),
        values: BTreeMap::new(),
        deriving: vec![],
        nodes: vec![],
        node_by_settings: HashMap::new(),
        node_by_trace: HashMap::new(),
        node_by_key: HashMap::new(),
        seen: BTreeSet::new(),
        traces: BTreeSet::new(),
        stack: vec![],
        recalled,
    };
    let settings = analysis.given(question);
    let answer = match question.wanted {
        Wanted::Graph => {
            let requested = analysis.requested(question);
            let nodes: Vec<Option<NodeId>> =
                requested.iter().map(|label| analysis.node(label, settings, None)).collect();
            analysis.errors.take()?;
            let graph = analysis.join(nodes.into_iter().flatten().collect());
            analysis.errors.take()?;
            let memo = analysis.memo();
            // The child ends with its answer: to take all of it apart would be a tenth of its time.
            std::mem::forget(analysis);
            Answer::Graph(graph, memo)
        }
        Wanted::Definitions => {
            let definitions = analysis.definitions(question, settings);
            analysis.errors.take()?;
            Answer::Definitions(definitions)
        }
    };
    Ok(answer)
}

impl Analysis {
    /// What the command line names, each once, in its order.
    fn requested(&mut self, question: &Question) -> Vec<Label> {
        let mut labels = vec![];
        let mut seen = BTreeSet::new();
        for text in &question.patterns {
            let found = match Pattern::parse_in(text, &question.here) {
                Ok(Pattern::One(label)) => vec![self.meant(label)],
                Ok(pattern) => self.rules_matching(&pattern, text),
                Err(error) => {
                    self.errors.report(error);
                    vec![]
                }
            };
            labels.extend(found.into_iter().filter(|label| seen.insert(label.clone())));
        }
        labels
    }

    /// On the command line, the name of an image or a pod alone will do, where nothing else has it.
    fn meant(&mut self, label: Label) -> Label {
        if self.recalled.rules_of(label.package()).is_some_and(|rules| rules.iter().any(|rule| rule == label.name())) {
            return label;
        }
        let Found::Package(package) = self.packages.package(label.package(), &mut self.errors) else { return label };
        if package.defined.contains_key(label.name()) {
            return label;
        }
        let longer = ["build_image", "build_pod"].map(|last| format!("{}/{last}", label.name()));
        let found: Vec<&String> = longer.iter().filter(|name| package.defined.contains_key(*name)).collect();
        match found[..] {
            [name] => label.sibling(name).unwrap_or(label),
            _ => label,
        }
    }

    /// All that a pattern names, as written in its files.
    fn matching(&mut self, pattern: &Pattern, text: &str) -> Vec<Rc<Defined>> {
        if let Pattern::One(label) = pattern {
            let label = self.meant(label.clone());
            return self.defined(&label, None).into_iter().collect();
        }
        self.packages_matching(pattern, text)
            .iter()
            .filter_map(|package| self.package(package, None))
            .flat_map(|found| found.order.clone())
            .collect()
    }

    /// The same, parameters left out.
    fn rules_matching(&mut self, pattern: &Pattern, text: &str) -> Vec<Label> {
        let mut labels = vec![];
        for package in self.packages_matching(pattern, text) {
            if let Some(rules) = self.recalled.rules_of(&package) {
                labels.extend(rules.iter().filter_map(|rule| Label::new(package.clone(), rule).ok()));
            } else if let Some(found) = self.package(&package, None) {
                let rules = found.order.iter().filter(|defined| defined.parameter.is_none());
                labels.extend(rules.map(|defined| defined.label.clone()));
            }
        }
        labels
    }

    fn packages_matching(&mut self, pattern: &Pattern, text: &str) -> Vec<Package> {
        let packages = match pattern {
            Pattern::One(label) => Ok(vec![label.package().clone()]),
            Pattern::All(package) => Ok(vec![package.clone()]),
            Pattern::Below(package) => self.packages.search_path().packages_below(package),
        };
        let packages = packages.unwrap_or_else(|error| {
            self.errors.report(error);
            vec![]
        });
        if packages.is_empty() {
            self.errors
                .report(Error::request(format!("{text} names no package")).next("tapeout list shows all packages"));
        }
        packages
    }

    /// The package, loaded; its errors are reported, a missing one at the place that needs it.
    pub fn package(&mut self, package: &Package, place: Option<&Place>) -> Option<Rc<super::load::PackageFile>> {
        match self.packages.package(package, &mut self.errors) {
            Found::Package(found) => Some(found),
            Found::Broken => None,
            Found::Missing(error) => {
                self.errors.report(match place {
                    Some(place) => error.at(place.clone(), ""),
                    None => error,
                });
                None
            }
        }
    }

    /// The definition of a label; an unknown one is reported at the place that names it.
    pub fn defined(&mut self, label: &Label, place: Option<&Place>) -> Option<Rc<Defined>> {
        self.named("", label, place)
    }

    /// The same, where nothing but a parameter will do.
    pub fn defined_parameter(&mut self, label: &Label, place: Option<&Place>) -> Option<Rc<Defined>> {
        self.named(PARAMETER, label, place)
    }

    fn named(&mut self, wanted: &str, label: &Label, place: Option<&Place>) -> Option<Rc<Defined>> {
        if place.is_none()
            && !self.packages.search_path().has(label.package())
            && let Some(error) = self.folder_of_that_name(label)
        {
            self.errors.report(error);
            return None;
        }
        let package = self.package(label.package(), place)?;
        if let Some(defined) = package.defined.get(label.name()) {
            return Some(defined.clone());
        }
        if package.is_broken {
            // The definition may be among what could not be read.
            return None;
        }
        if place.is_none()
            && let Some(error) = self.folder_of_that_name(label)
        {
            self.errors.report(error);
            return None;
        }
        let fits = |(_, defined): &(&String, &Rc<Defined>)| wanted != PARAMETER || defined.parameter.is_some();
        let names = || package.defined.iter().filter(fits).map(|(name, _)| name.as_str());
        // What may be left out is left out of the comparison, too: `helo` is nearer to `hello` than to `hello/build_image`.
        let short = || names().filter_map(|name| ENDS.iter().find_map(|end| name.strip_suffix(end)));
        let longer = ["/build_image", "/build_pod", "/build"].map(|end| format!("{}{end}", label.name()));
        let near = longer
            .into_iter()
            .find(|name| names().any(|other| other == name))
            .or_else(|| nearest(label.name(), names().chain(short())));
        let mut error = Error::request(format!("there is no {wanted}{label}"));
        if let Some(place) = place {
            error = error.at(place.clone(), "");
        }
        let file = &package.file;
        self.errors.report(match near {
            Some(near) => error.next(format!("did you mean {}:{near}?", label.package())),
            None if label.name().chars().all(|c| matches!(c, '.' | '*' | '/')) => {
                let package = label.package();
                let below = if package.path().is_empty() { "//...".to_string() } else { format!("{package}/...") };
                error.next(format!("{package}:* is all that {package} defines, and {below} what is below it as well"))
            }
            None if names().next().is_none() => {
                let what = if wanted.is_empty() { "nothing" } else { "no parameter" };
                error.why(format!("{file} defines {what}")).next(format!("define it in {file}"))
            }
            None => error
                .why(format!("{file} defines {}", list(names())))
                .next(format!("define it in {file}, or name one of these")),
        });
        None
    }

    /// What was meant by the name of a package's folder where a label belongs, `tapeout build hello`, or by the
    /// path of a rule, `hello/build`.
    fn folder_of_that_name(&mut self, label: &Label) -> Option<Error> {
        let name = ENDS.iter().find_map(|end| label.name().strip_suffix(end)).unwrap_or(label.name());
        let above = label.package().path();
        let path = if above.is_empty() { name.to_string() } else { format!("{above}/{name}") };
        let error = Error::request(format!("there is no {label}"));
        if let Some(found) = self.known_package(&path) {
            let last = path.rsplit('/').next().unwrap_or_default();
            let defines = ENDS.iter().any(|end| found.defined.contains_key(&format!("{last}{end}")));
            let error = error.why(format!("{} defines {}", found.file, list(found.rules())));
            return Some(error.next(format!("did you mean //{path}:{}?", if defines { last } else { "*" })));
        }
        let parts: Vec<&str> = path.split('/').collect();
        (above.split('/').filter(|part| !part.is_empty()).count() + 1..parts.len()).rev().find_map(|at| {
            let (package, name) = (parts[..at].join("/"), parts[at..].join("/"));
            let found = self.known_package(&package)?;
            let rule = std::iter::once(name.clone()).chain(ENDS.map(|end| format!("{name}{end}")));
            rule.into_iter().find(|rule| found.defined.contains_key(rule))?;
            Some(error.clone().next(format!("did you mean //{package}:{name}?")))
        })
    }

    /// A package of that path, if there is one, loaded.
    fn known_package(&mut self, path: &str) -> Option<Rc<super::load::PackageFile>> {
        let package = Package::new(path).ok().filter(|package| self.packages.search_path().has(package))?;
        match self.packages.package(&package, &mut self.errors) {
            Found::Package(found) => Some(found),
            _ => None,
        }
    }

    fn definitions(&mut self, question: &Question, settings: SettingsId) -> Vec<Definition> {
        let mut seen = BTreeSet::new();
        let mut made = vec![];
        for text in &question.patterns {
            let defined = match Pattern::parse_in(text, &question.here) {
                Ok(pattern) => self.matching(&pattern, text),
                Err(error) => {
                    self.errors.report(error);
                    continue;
                }
            };
            for defined in defined {
                if seen.insert(defined.label.clone()) {
                    made.push(self.definition(&defined, settings));
                }
            }
        }
        made
    }

    /// As written; edges that a function gives, as it gives them under these settings.
    fn definition(&mut self, defined: &Rc<Defined>, settings: SettingsId) -> Definition {
        let mut made = definition(defined);
        let named = ["deps", "reverse_deps", "base", "containers", "network", "secrets"];
        if named.iter().any(|name| matches!(defined.arguments.get(*name), Some(Data::Function(_)))) {
            let (arguments, whole) = self.arguments(defined, settings, &mut Collected::default());
            if whole {
                let (read, _) = attributes::read(&defined.kind, &defined.label, &arguments);
                made.deps = read.deps.iter().chain(&read.images).map(|edge| dependency(edge, &defined.place)).collect();
                made.reverse_deps = read.reverse_deps.iter().map(|edge| dependency(edge, &defined.place)).collect();
                if let Spec::Rule(rule) = read.spec {
                    (made.network, made.secrets) = (rule.network, rule.secrets);
                }
            }
        }
        made
    }
}

fn definition(defined: &Defined) -> Definition {
    let parameter = defined.parameter.as_ref();
    Definition {
        label: defined.label.clone(),
        kind: defined.kind.clone(),
        doc: defined.doc.clone(),
        place: defined.place.clone(),
        deps: defined.deps.iter().map(|edge| dependency(edge, &defined.place)).collect(),
        reverse_deps: defined.reverse_deps.iter().map(|edge| dependency(edge, &defined.place)).collect(),
        annotations: defined.annotations.clone(),
        network: matches!(defined.arguments.get("network"), Some(Data::Bool(true))),
        secrets: match defined.arguments.get("secrets") {
            Some(Data::List(names)) => {
                let text = |name: &Data| if let Data::Text(name) = name { Some(name.clone()) } else { None };
                names.iter().filter_map(text).collect()
            }
            _ => vec![],
        },
        type_name: parameter.map(|parameter| parameter.type_name.name().to_string()),
        default: parameter.and_then(|parameter| parameter.default.clone()),
        derived: parameter.is_some_and(|parameter| parameter.derive.is_some()),
    }
}

fn dependency(edge: &attributes::Edge, place: &Place) -> DefinedDependency {
    let mut parameters = BTreeMap::new();
    if let Data::Dict(entries) = &edge.parameters {
        for (name, value) in entries {
            if let (Ok(label), Some(value)) = (Label::parse_in(name, edge.label.package()), value.value()) {
                parameters.insert(label, value);
            }
        }
    }
    DefinedDependency { label: edge.label.clone(), conditional: edge.when.is_some(), parameters, place: place.clone() }
}

/// Some names for a message.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len() {
        0 => "nothing".to_string(),
        1..=8 => names.join(", "),
        more => format!("{} and {} more", names[..8].join(", "), more - 8),
    }
}

/// A value as a person would write it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::None => "None".to_string(),
        Value::Bool(true) => "True".to_string(),
        Value::Bool(false) => "False".to_string(),
        Value::Int(number) => number.to_string(),
        Value::Text(text) => format!("{text:?}"),
        Value::List(items) => format!("{items:?}"),
    }
}
