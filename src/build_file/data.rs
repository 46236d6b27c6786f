//! What a build file's calls hold, as data that knows no Starlark lifetime.

use std::collections::BTreeMap;

use starlark::values::OwnedFrozenValue;

use super::spec::Value;

/// One value that stands in a build file.
#[derive(Debug, Clone)]
pub enum Data {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// A number that fits in 64 bits.
    Int(i64),
    /// A string.
    Text(String),
    /// A list or tuple.
    List(Vec<Data>),
    /// A dict with strings as keys, as written.
    Dict(Vec<(String, Data)>),
    /// What `dep(…)`, `file(…)` and their like give.
    Record(Record),
    /// A function of the parameters.
    Function(Function),
}

/// A function of the parameters: `lambda p: …`. Who evaluates build files calls it.
#[derive(Debug, Clone)]
pub struct Function(pub(super) OwnedFrozenValue);

/// What `dep(…)`, `file(…)` and their like give.
#[derive(Debug, Clone)]
pub struct Record {
    /// The function that made it.
    pub kind: String,
    /// Its arguments.
    pub fields: BTreeMap<String, Data>,
}

impl Data {
    /// For messages: `a list`.
    pub fn kind(&self) -> String {
        match self {
            Self::None => "None".to_string(),
            Self::Bool(_) => "a bool".to_string(),
            Self::Int(_) => "an int".to_string(),
            Self::Text(_) => "a string".to_string(),
            Self::List(_) => "a list".to_string(),
            Self::Dict(_) => "a dict".to_string(),
            Self::Record(record) => format!("{}(…)", record.kind),
            Self::Function(_) => "a function".to_string(),
        }
    }

    /// The string that it is.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// For messages, as written: `"x"`, `port(port = 0)`; what may be long by its kind.
    pub fn shown(&self) -> String {
        match self {
            Self::Bool(true) => "True".to_string(),
            Self::Bool(false) => "False".to_string(),
            Self::Int(number) => number.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Record(Record { kind, fields }) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, field)| format!("{name} = {}", field.shown())).collect();
                format!("{kind}({})", fields.join(", "))
            }
            other => other.kind(),
        }
    }

    /// Is a function of the parameters in it, still to be called? Those of `dep(…)` are called when its edge is followed.
    pub fn is_deferred(&self) -> bool {
        match self {
            Self::Function(_) => true,
            Self::List(items) => items.iter().any(Self::is_deferred),
            Self::Dict(items) => items.iter().any(|(_, item)| item.is_deferred()),
            Self::Record(record) => record.kind != "dep" && record.fields.values().any(Self::is_deferred),
            _ => false,
        }
    }

    /// Calls these functions: `call` gives what stands in their place.
    pub fn resolve<E>(&mut self, call: &mut impl FnMut(&Function) -> Result<Data, E>) -> Result<(), E> {
        match self {
            Self::Function(function) => *self = call(function)?,
            Self::List(items) => items.iter_mut().try_for_each(|item| item.resolve(call))?,
            Self::Dict(items) => items.iter_mut().try_for_each(|(_, item)| item.resolve(call))?,
            Self::Record(record) if record.kind != "dep" => {
                record.fields.values_mut().try_for_each(|item| item.resolve(call))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// As the value of a parameter, whatever its type; `None` when no parameter can have it.
    pub fn value(&self) -> Option<Value> {
        Some(match self {
            Self::None => Value::None,
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(i) => Value::Int(*i),
            Self::Text(text) => Value::Text(text.clone()),
            Self::List(items) => {
                let text = |item: &Data| match item {
                    Data::Text(text) => Some(text.clone()),
                    _ => None,
                };
                Value::List(items.iter().map(text).collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }
}
