//! Values of parameters: given by the command line or an edge, else the default, else derived.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::analysis::{Analysis, Errors, list, shown};
use super::load::{Defined, Found, Packages, argument_place};
use super::{Given, GivenValue, Question};
use crate::build_file::data::{Data, Function};
use crate::build_file::reference::article;
use crate::build_file::spec::Value;
use crate::build_file::starlark::{Outcome, Reads, Scene, progress};
use crate::error::{Error, Place};
use crate::label::{Label, Package, Pattern};
use crate::nearest::nearest;

/// What is given: by the command line, then by the edges above.
pub(super) type Settings = BTreeMap<Label, Value>;
/// Which settings: an index into the analysis' list.
pub(super) type SettingsId = usize;

/// Different settings of one analysis: each edge with parameters can make one.
const SETTINGS: usize = 100_000;
/// Parameters that derive from one another.
const DERIVE_DEPTH: usize = 1_000;

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int,
    String,
    Path,
    List,
}

impl Type {
    pub const NAMES: [&'static str; 5] = ["bool", "int", "string", "path", "list"];

    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Bool, Self::Int, Self::String, Self::Path, Self::List];
        all.into_iter().find(|type_name| type_name.name() == text)
    }

    /// How a value is written.
    pub fn example(self) -> &'static str {
        match self {
            Self::Bool => "a bool is True or False; on the command line true or false",
            Self::Int => "an int is a whole number of 64 bits",
            Self::String => "a string stands in quotes, and has no NUL byte in it",
            Self::Path => "a path is a string without .., NUL byte and newline",
            Self::List => "a list is one of strings; on the command line a,b or [\"a\", \"b\"]",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::String => "string",
            Self::Path => "path",
            Self::List => "list",
        }
    }
}

/// A value and what it came from.
#[derive(Clone)]
pub(super) struct Known {
    pub value: Value,
    /// What was looked up among the given: enough to know whether other settings give the same.
    pub trace: Rc<BTreeMap<Label, Option<Value>>>,
    /// This value, and those that it was derived from.
    pub seen: Rc<BTreeMap<Label, Value>>,
}

/// What the functions of one rule have read.
#[derive(Default)]
pub(super) struct Collected {
    pub seen: BTreeMap<Label, Value>,
    pub trace: BTreeMap<Label, Option<Value>>,
}

/// A value of the right type, or why it isn't.
pub(super) fn typed(type_name: Type, data: &Data) -> Result<Value, String> {
    match (type_name, data.value()) {
        (Type::Bool, Some(value @ Value::Bool(_)))
        | (Type::Int, Some(value @ Value::Int(_)))
        | (Type::List, Some(value @ Value::List(_))) => Ok(value),
        (Type::String, Some(Value::Text(text))) if !text.contains('\0') => Ok(Value::Text(text)),
        (Type::Path, Some(Value::Text(text))) => path(text),
        (Type::List, None) if matches!(data, Data::List(_)) => {
            Err("a list of strings is wanted, and not all are".to_string())
        }
        _ => Err(format!("{} {} is wanted, and this is {}", article(type_name.name()), type_name.name(), data.kind())),
    }
}

fn path(text: String) -> Result<Value, String> {
    if text.is_empty() || text.contains(['\0', '\n']) || text.split('/').any(|part| part == "..") {
        return Err(format!("not a path: {text:?}: it is empty, or has a .., a NUL byte or a newline in it"));
    }
    Ok(Value::Text(text))
}

/// As typed on the command line.
fn parsed(type_name: Type, text: &str) -> Result<Value, String> {
    let wrong = || format!("{} {} is wanted, and this is {text:?}", article(type_name.name()), type_name.name());
    match type_name {
        Type::Bool => match text {
            "true" | "True" => Ok(Value::Bool(true)),
            "false" | "False" => Ok(Value::Bool(false)),
            _ => Err(format!("{}: write true or false", wrong())),
        },
        Type::Int => text.parse().map(Value::Int).map_err(|_| wrong()),
        Type::String if text.contains('\0') => Err(wrong()),
        Type::String => Ok(Value::Text(text.to_string())),
        Type::Path => path(text.to_string()),
        Type::List if text.is_empty() => Ok(Value::List(vec![])),
        Type::List if text.starts_with('[') => {
            serde_json::from_str(text).map(Value::List).map_err(|_| format!("{}: write a,b or [\"a\", \"b\"]", wrong()))
        }
        Type::List => Ok(Value::List(text.split(',').map(str::to_string).collect())),
    }
}

fn json(value: &serde_json::Value) -> Data {
    match value {
        serde_json::Value::Null => Data::None,
        serde_json::Value::Bool(flag) => Data::Bool(*flag),
        serde_json::Value::Number(number) => number.as_i64().map_or(Data::Dict(vec![]), Data::Int),
        serde_json::Value::String(text) => Data::Text(text.clone()),
        serde_json::Value::Array(items) => Data::List(items.iter().map(json).collect()),
        serde_json::Value::Object(_) => Data::Dict(vec![]),
    }
}

impl Analysis {
    /// The settings of the command line.
    pub fn given(&mut self, question: &Question) -> SettingsId {
        let mut settings = Settings::new();
        for given in &question.parameters {
            if let Some((label, value)) = self.one_given(given, &question.here) {
                // null, as None on an edge: its own default again.
                match value {
                    Value::None => _ = settings.remove(&label),
                    value => _ = settings.insert(label, value),
                }
            }
        }
        self.intern(settings)
    }

    fn one_given(&mut self, given: &Given, here: &Package) -> Option<(Label, Value)> {
        let label =
            Pattern::one_in(&given.name, here).map_err(|error| self.errors.report(error.context(&given.shown))).ok()?;
        if !given.name.starts_with("//")
            && !self.packages_know(&label)
            && let Some(near) = self.parameters_named(label.name())
        {
            let error = Error::request(format!("{}: there is no parameter {label}", given.shown));
            self.errors.report(error.next(near));
            return None;
        }
        let defined = self.parameter_definition(&label, None)?;
        let type_name = defined.parameter.as_ref()?.type_name;
        let value = match &given.value {
            GivenValue::Typed(text) => parsed(type_name, text),
            GivenValue::Json(serde_json::Value::Null) => Ok(Value::None),
            GivenValue::Json(serde_json::Value::Number(number)) if number.as_i64().is_none() => {
                Err(format!("not a whole number of 64 bits: {number}"))
            }
            GivenValue::Json(value) => typed(type_name, &json(value)),
        };
        self.value_or_report(value, &defined, &given.shown, None).map(|value| (label, value))
    }

    /// What was meant by a name without a package: all build files are looked at, because something is wrong anyway.
    /// They are read for themselves: what is wrong with them is told where they are needed.
    fn parameters_named(&self, name: &str) -> Option<String> {
        let mut packages = Packages::new(self.packages.search_path().clone());
        let all = packages.search_path().packages_below(&Package::new("").ok()?).ok()?;
        let mut found = vec![];
        for package in all {
            if let Found::Package(package) = packages.package(&package, &mut Errors::default()) {
                found.extend(
                    package.order.iter().filter(|defined| defined.parameter.is_some()).map(|d| d.label.clone()),
                );
            }
        }
        let known = nearest(name, found.iter().map(Label::name))?;
        let labels: Vec<String> =
            found.iter().filter(|label| label.name() == known).map(|label| label.to_string()).collect();
        let one_of = if labels.len() > 1 { "one of " } else { "" };
        Some(format!("did you mean {one_of}{}?", list(labels.iter().map(String::as_str))))
    }

    fn value_or_report(
        &mut self,
        value: Result<Value, String>,
        defined: &Defined,
        shown: &str,
        place: Option<Place>,
    ) -> Option<Value> {
        let what = match value {
            Ok(value) => return Some(value),
            Err(what) => what,
        };
        let mut error = Error::request(format!("{shown}: {what}"));
        if let Some(place) = place {
            error = error.at(place, "");
        }
        let next = defined.parameter.as_ref().map(|parameter| parameter.type_name.example());
        let error = error.at(defined.place.clone(), "defined here");
        self.errors.report(error.next(next.unwrap_or_default()));
        None
    }

    /// Settings by value.
    pub fn intern(&mut self, settings: Settings) -> SettingsId {
        let settings = Rc::new(settings);
        if let Some(id) = self.settings_by_value.get(&settings) {
            return *id;
        }
        self.settings.push(settings.clone());
        self.settings_by_value.insert(settings, self.settings.len() - 1);
        self.settings.len() - 1
    }

    /// The settings below an edge. `None`, reported: there are too many.
    pub fn below_edge(&mut self, settings: SettingsId, edge: &BTreeMap<Label, Value>) -> Option<SettingsId> {
        if edge.is_empty() {
            return Some(settings);
        }
        if self.settings.len() >= SETTINGS {
            let error = Error::request(format!("edges set parameters in more than {SETTINGS} different ways"));
            self.errors.report(error.next("set fewer parameters on edges"));
            return None;
        }
        let mut made = (*self.settings[settings]).clone();
        for (label, value) in edge {
            match value {
                Value::None => _ = made.remove(label),
                value => _ = made.insert(label.clone(), value.clone()),
            }
        }
        Some(self.intern(made))
    }

    fn parameter_definition(&mut self, label: &Label, place: Option<&Place>) -> Option<Rc<Defined>> {
        let defined = self.defined_parameter(label, place)?;
        if defined.parameter.is_none() {
            let mut error = Error::request(format!("{label} is no parameter"));
            if let Some(place) = place {
                error = error.at(place.clone(), "");
            }
            let note = format!("it is defined here, as {} {}", article(&defined.kind), defined.kind);
            self.errors.report(error.at(defined.place.clone(), note).next("name what parameter(…) defines"));
            return None;
        }
        Some(defined)
    }

    /// The value of a parameter under settings; `None`: reported.
    pub fn value(&mut self, label: &Label, settings: SettingsId, place: Option<&Place>) -> Option<Known> {
        let key = (label.clone(), settings);
        if let Some(known) = self.values.get(&key) {
            return known.clone();
        }
        let defined = self.parameter_definition(label, place)?;
        if let Some(start) = self.deriving.iter().position(|(deriving, _)| deriving == label) {
            self.report_derive_cycle(start, label, place);
            return None;
        }
        if self.deriving.len() > DERIVE_DEPTH {
            self.errors.report(
                Error::request(format!("more than {DERIVE_DEPTH} parameters derive from one another"))
                    .at(defined.place.clone(), "")
                    .next("give one of them a default instead"),
            );
            return None;
        }
        let known = self.find_value(&defined, settings, place);
        self.values.insert(key, known.clone());
        known
    }

    fn find_value(&mut self, defined: &Rc<Defined>, settings: SettingsId, place: Option<&Place>) -> Option<Known> {
        let (label, parameter) = (&defined.label, defined.parameter.as_ref()?);
        if defined.is_broken {
            return None;
        }
        let given = self.settings[settings].get(label).cloned();
        let mut collected = Collected::default();
        collected.trace.insert(label.clone(), given.clone());
        let value = match (given, &parameter.derive) {
            (Some(value), _) => value,
            (None, Some(derive)) => {
                progress::note(&defined.place.file, defined.place.line);
                self.deriving.push((label.clone(), place.cloned()));
                let derived = self.call(derive, defined, "derive", settings, &mut collected);
                self.deriving.pop();
                match derived? {
                    Data::None => Value::None,
                    data => {
                        let at = self.attribute_place(defined, "derive", None);
                        self.value_or_report(
                            typed(parameter.type_name, &data),
                            defined,
                            &format!("{label}: derive"),
                            Some(at),
                        )?
                    }
                }
            }
            (None, None) => parameter.default.clone().unwrap_or(Value::None),
        };
        collected.seen.insert(label.clone(), value.clone());
        Some(Known { value, trace: Rc::new(collected.trace), seen: Rc::new(collected.seen) })
    }

    fn report_derive_cycle(&mut self, start: usize, label: &Label, place: Option<&Place>) {
        let cycle = &self.deriving[start..];
        let names: Vec<String> = cycle.iter().map(|(label, _)| label.to_string()).collect();
        let mut error = Error::request(format!("parameters derive from one another: {} → {label}", names.join(" → ")));
        let places = cycle[1..].iter().map(|(_, place)| place.as_ref()).chain([place]);
        for ((reader, _), place) in cycle.iter().zip(places) {
            if let Some(place) = place {
                error = error.at(place.clone(), format!("{reader} reads it here"));
            }
        }
        self.errors.report(error.next("give one of them a default instead"));
    }

    /// Calls a function of the parameters, finding each value that it reads.
    pub fn call(
        &mut self,
        function: &Function,
        defined: &Rc<Defined>,
        attribute: &str,
        settings: SettingsId,
        collected: &mut Collected,
    ) -> Option<Data> {
        let package = self.package(defined.label.package(), None)?;
        let scene =
            Scene { package: defined.label.package().clone(), folder: package.folder.clone(), build_file: None };
        let mut values = BTreeMap::new();
        loop {
            let outcome = function.call(&Reads::new(values.clone()), &scene).map_err(|error| {
                let known = error.places().first().map(|(place, _)| place.clone());
                let own = argument_place(&package.text, &defined.place, attribute, None);
                let error = error.context(format!("{}: {attribute}", defined.label));
                self.errors.report(if known.is_some_and(|known| known.line == own.line && known.file == own.file) {
                    error
                } else {
                    error.at(own, "the function stands here")
                });
            });
            let (name, place) = match outcome.ok()? {
                Outcome::Value(data) => return Some(data),
                Outcome::Wants(name, place) => (name, place),
            };
            let place = place.unwrap_or_else(|| defined.place.clone());
            let label = match Label::parse_in(&name, defined.label.package()) {
                Ok(label) => label,
                Err(error) => {
                    self.errors.report(error.at(place, ""));
                    return None;
                }
            };
            let known = self.value(&label, settings, Some(&place))?;
            collected.seen.extend(known.seen.iter().map(|(label, value)| (label.clone(), value.clone())));
            collected.trace.extend(known.trace.iter().map(|(label, value)| (label.clone(), value.clone())));
            values.insert(name, known.value);
        }
    }

    /// The values that an edge sets, their types checked.
    pub fn edge_values(
        &mut self,
        parameters: &Data,
        defined: &Rc<Defined>,
        attribute: &str,
    ) -> Option<BTreeMap<Label, Value>> {
        let mut made = BTreeMap::new();
        let entries = match parameters {
            Data::None => return Some(made),
            Data::Dict(entries) => entries,
            other => {
                let place = self.attribute_place(defined, attribute, None);
                self.errors.report(
                    Error::request(format!("{}: parameters takes a dict, and this is {}", defined.label, other.kind()))
                        .at(place, "")
                        .next("write {\"//lib:shared\": True}"),
                );
                return None;
            }
        };
        let mut whole = true;
        for (name, data) in entries {
            match self.edge_value(name, data, defined, attribute) {
                Some((label, value)) => _ = made.insert(label, value),
                None => whole = false,
            }
        }
        whole.then_some(made)
    }

    fn edge_value(
        &mut self,
        name: &str,
        data: &Data,
        defined: &Rc<Defined>,
        attribute: &str,
    ) -> Option<(Label, Value)> {
        let place = self.attribute_place_if_needed(defined, attribute, name);
        let label = match Label::parse_in(name, defined.label.package()) {
            Ok(label) => label,
            Err(error) => {
                let at = place(self);
                self.errors.report(error.at(at, ""));
                return None;
            }
        };
        let known = self.packages_know(&label);
        let shown_place = if known { None } else { Some(place(self)) };
        let parameter = self.parameter_definition(&label, shown_place.as_ref())?;
        let type_name = parameter.parameter.as_ref()?.type_name;
        let value = if matches!(data, Data::None) { Ok(Value::None) } else { typed(type_name, data) };
        let at = value.is_err().then(|| place(self));
        let shown =
            format!("{}: {label} = {}", defined.label, data.value().map_or_else(|| data.kind(), |value| shown(&value)));
        self.value_or_report(value, &parameter, &shown, at).map(|value| (label, value))
    }

    /// Is this a known parameter? Then no place has to be found for a message.
    fn packages_know(&mut self, label: &Label) -> bool {
        match self.packages.package(label.package(), &mut self.errors) {
            Found::Package(package) => {
                package.defined.get(label.name()).is_some_and(|defined| defined.parameter.is_some())
            }
            _ => false,
        }
    }

    fn attribute_place_if_needed(
        &self,
        defined: &Rc<Defined>,
        attribute: &str,
        literal: &str,
    ) -> impl Fn(&mut Self) -> Place + use<> {
        let (defined, attribute, literal) = (defined.clone(), attribute.to_string(), literal.to_string());
        move |analysis| analysis.attribute_place(&defined, &attribute, Some(&literal))
    }

    /// Where an attribute of a definition stands.
    pub fn attribute_place(&mut self, defined: &Defined, attribute: &str, literal: Option<&str>) -> Place {
        self.place_in(&defined.label, &defined.place, attribute, literal)
    }

    /// The same, of the definition of this label at this place.
    pub fn place_in(&mut self, label: &Label, call: &Place, attribute: &str, literal: Option<&str>) -> Place {
        match self.package(label.package(), None) {
            Some(package) => argument_place(&package.text, call, attribute, literal),
            None => call.clone(),
        }
    }
}
