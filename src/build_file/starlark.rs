//! The door to the Starlark interpreter: nothing else in the crate names it.
//!
//! A file is parsed, the files that it loads are evaluated first, then the file itself, once; its
//! module is frozen, so that the functions which stand in its calls can be called later, each time
//! in a heap of their own. What comes out is [`Data`]. A function reads parameters through `p[…]`:
//! a value that isn't known yet ends the call with [`Outcome::Wants`], the caller finds it, and
//! calls again (functions are pure, so this is sound, and no interpreter is ever entered twice).
//!
//! A hostile file may still end the process (memory, the stack): the analysis runs in a child.

mod bounds;
mod globals;
mod places;
pub mod progress;
mod values;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use ::starlark::codemap::FileSpan;
use ::starlark::environment::{FrozenModule, Globals, Module};
use ::starlark::eval::{BeforeStmtFunc, Evaluator, ReturnFileLoader};
use ::starlark::syntax::{AstModule, Dialect};
use ::starlark::values::dict::DictRef;
use ::starlark::values::list_or_tuple::UnpackListOrTuple;
use ::starlark::values::structs::StructRef;
use ::starlark::values::{OwnedFrozenValue, UnpackValue, Value as StarlarkValue};
use nix::time::ClockId;

use super::data::{Data, Function, Record};
use super::spec::Value;
use crate::error::{Error, Place, Result};
use crate::label::Package;
use values::Stage;

pub use places::argument as argument_place;

/// Calls inside one another.
const CALL_DEPTH: usize = 200;
/// Calls and loop turns of one evaluation.
const TICKS: u64 = 20_000_000;
/// Bytes of one evaluation's heap.
const HEAP: usize = 256 << 20;
/// One evaluation, where ticks are slow.
const TIME: Duration = Duration::from_secs(3);
/// Items in all arguments of one call, lists in lists counted.
const ITEMS: usize = 1_000_000;
/// Lists in lists.
const NESTING: usize = 20;

thread_local! {
    /// When all of this thread's evaluations must have ended.
    static END: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From here on, this thread's evaluations end when this does; `None`: each has its own time again.
pub fn end_at(end: Option<Instant>) {
    END.set(end);
}

static GLOBALS: LazyLock<Globals> = LazyLock::new(globals::globals);

/// The names that a build file may use besides Starlark's own.
pub fn global_names() -> Vec<String> {
    GLOBALS.names().map(|name| name.as_str().to_string()).collect()
}

/// A file that was read and understood, not yet evaluated.
pub struct Parsed {
    name: String,
    text: String,
    ast: AstModule,
}

/// Parses; `name` is what messages call the file.
pub fn parse(name: &str, text: &str) -> Result<Parsed> {
    bounds::check(name, text)?;
    let ast = AstModule::parse(name, text.to_string(), &Dialect::Standard).map_err(|e| error(&e))?;
    Ok(Parsed { name: name.to_string(), text: text.to_string(), ast })
}

impl Parsed {
    /// What it loads, and where that is written.
    pub fn loads(&self) -> Vec<(String, Place)> {
        self.ast.loads().iter().map(|load| (load.module_id.to_string(), place(&load.span))).collect()
    }
}

/// An evaluated file, for others to load.
#[derive(Clone)]
pub struct Loaded(FrozenModule);

/// Where an evaluation stands: what `glob` looks into, and whether rules may be defined.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The package.
    pub package: Package,
    /// Its folder on disk; `None`: built in.
    pub folder: Option<PathBuf>,
    /// The name of the build file, while it is evaluated.
    pub build_file: Option<String>,
}

/// A call that defines something: `rule(…)`, `parameter(…)` and so on.
#[derive(Debug, Clone)]
pub struct Call {
    /// The function.
    pub kind: String,
    /// Its first argument.
    pub name: String,
    /// Where the build file calls it, or the template that does.
    pub place: Place,
    /// The named arguments.
    pub arguments: BTreeMap<String, Data>,
}

/// What an evaluation gave.
pub struct Evaluated {
    /// For others to load; `None`: it failed.
    pub module: Option<Loaded>,
    /// The calls that it made, those before a failure too.
    pub calls: Vec<Call>,
    /// What was wrong.
    pub errors: Vec<Error>,
}

/// Evaluates a file whose loads are evaluated.
pub fn evaluate(parsed: Parsed, loaded: &BTreeMap<String, Loaded>, scene: &Scene) -> Evaluated {
    progress::note(&parsed.name, 1);
    let stage = Stage { scene: scene.clone(), noted: RefCell::default() };
    let modules = loaded.iter().map(|(name, module)| (name.as_str(), &module.0)).collect();
    let loader = ReturnFileLoader { modules: &modules };
    let mut errors = vec![];
    let module = Module::with_temp_heap(|module| {
        let evaluated = evaluate_in(&module, parsed.ast, &stage, &loader);
        let is_whole = evaluated.is_ok();
        errors.extend(evaluated.err().map(|e| with_line(error(&e), &parsed.text)));
        // Frozen all the same, so that what is wrong with the calls before is shown too.
        module
            .freeze()
            .map(|module| (module, is_whole))
            .map_err(|e| Error::request(format!("{}: {}", parsed.name, e.err_msg)))
    });
    let (module, is_whole) = match module {
        Ok(frozen) => frozen,
        Err(error) => {
            errors.push(error);
            return Evaluated { module: None, calls: vec![], errors };
        }
    };
    let mut calls = vec![];
    for (number, noted) in stage.noted.into_inner().into_iter().enumerate() {
        match arguments(&module, number) {
            Ok(arguments) => {
                calls.push(Call { kind: noted.kind.to_string(), name: noted.name, place: noted.place, arguments })
            }
            Err(what) => {
                let error = Error::request(format!("{}({:?}): {what}", noted.kind, noted.name)).at(noted.place, "");
                errors.push(error.next("lists, dicts, strings, numbers, True, False and None can stand there"));
            }
        }
    }
    Evaluated { module: is_whole.then_some(Loaded(module)), calls, errors }
}

fn evaluate_in<'v>(
    module: &Module<'v>,
    ast: AstModule,
    stage: &Stage,
    loader: &ReturnFileLoader,
) -> ::starlark::Result<()> {
    let mut evaluator = Evaluator::new(module);
    prepare(&mut evaluator, stage)?;
    evaluator.set_loader(loader);
    evaluator.eval_module(ast, &GLOBALS)?;
    Ok(())
}

fn prepare<'v, 'a, 'e>(evaluator: &mut Evaluator<'v, 'a, 'e>, stage: &'a Stage) -> ::starlark::Result<()>
where
    'a: 'e,
{
    let limits = [
        evaluator.set_max_callstack_size(CALL_DEPTH),
        evaluator.set_max_heap_size(HEAP),
        evaluator.set_max_tick_count(TICKS),
    ];
    for limit in limits {
        limit.map_err(::starlark::Error::new_other)?;
    }
    let (start, end) = (worked(), END.get());
    let is_over = move || worked().saturating_sub(start) > TIME || end.is_some_and(|end| Instant::now() > end);
    evaluator.set_check_cancelled(Box::new(is_over));
    evaluator.before_stmt_for_dap(BeforeStmtFunc::from_dyn(Box::new(progress::Line)));
    evaluator.extra = Some(stage);
    Ok(())
}

/// The time of the processor that this thread has had: by the clock it may have had none of it.
fn worked() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}

/// The hidden variable that keeps a call's arguments; no name in Starlark begins with a digit.
fn variable(number: usize) -> String {
    format!("{number} arguments")
}

fn arguments(module: &FrozenModule, number: usize) -> Result<BTreeMap<String, Data>, String> {
    let owned = module.get(&variable(number)).map_err(|e| e.to_string())?;
    match convert(owned.value(), Some(&owned)).map_err(Unfit::text)? {
        Data::Dict(items) => Ok(items.into_iter().collect()),
        other => Err(format!("arguments are {}", other.kind())),
    }
}

/// What a function gave.
#[derive(Debug)]
pub enum Outcome {
    /// Its value.
    Value(Data),
    /// It reads a parameter (as written, with the place) whose value isn't among those given.
    Wants(String, Option<Place>),
}

/// The values that a function may read, by the names it uses for them.
#[derive(Debug, Default)]
pub struct Reads {
    values: BTreeMap<String, Value>,
    wanted: Mutex<Option<String>>,
}

impl Reads {
    /// From values.
    pub fn new(values: BTreeMap<String, Value>) -> Arc<Self> {
        Arc::new(Self { values, wanted: Mutex::default() })
    }
}

impl Function {
    /// Calls it with these values.
    pub fn call(&self, reads: &Arc<Reads>, scene: &Scene) -> Result<Outcome> {
        let stage = Stage { scene: scene.clone(), noted: RefCell::default() };
        let wanted = || reads.wanted.lock().ok().and_then(|mut wanted| wanted.take());
        Module::with_temp_heap(|module| {
            // The reference keeps the function's heap alive as long as this module, frozen or not.
            module.frozen_heap().add_reference(self.0.owner());
            let Some(function) = self.0.value().unpack_frozen() else {
                return Err(Error::failed("a function that is not frozen"));
            };
            let parameters = module.heap().alloc(values::Parameters::new(reads.clone()));
            let mut evaluator = Evaluator::new(&module);
            prepare(&mut evaluator, &stage).map_err(|e| error(&e))?;
            let value = match evaluator.eval_function(function.to_value(), &[parameters], &[]) {
                Ok(value) => value,
                Err(e) => {
                    return match wanted() {
                        Some(name) => Ok(Outcome::Wants(name, e.span().map(place))),
                        None => Err(error(&e)),
                    };
                }
            };
            drop(evaluator);
            match convert(value, None) {
                Ok(data) => Ok(Outcome::Value(data)),
                Err(Unfit::Unfrozen) => {
                    module.set("result", value);
                    let frozen = module.freeze().map_err(|e| Error::request(e.err_msg.to_string()))?;
                    let owned = frozen.get("result").map_err(|e| Error::request(e.to_string()))?;
                    convert(owned.value(), Some(&owned))
                        .map(Outcome::Value)
                        .map_err(|unfit| Error::request(unfit.text()))
                }
                Err(unfit) => Err(Error::request(unfit.text())),
            }
        })
    }
}

/// Why a value can't be data.
enum Unfit {
    /// A function that a function made: its heap must be frozen first.
    Unfrozen,
    Wrong(String),
}

impl Unfit {
    fn text(self) -> String {
        match self {
            Self::Unfrozen => "a function can't stand here".to_string(),
            Self::Wrong(text) => text,
        }
    }
}

fn convert(value: StarlarkValue, owner: Option<&OwnedFrozenValue>) -> Result<Data, Unfit> {
    Conversion { owner, left: ITEMS }.data(value, 0)
}

/// Bounded, because a list of a few lines can hold itself, or 2⁶⁰ items.
struct Conversion<'a> {
    owner: Option<&'a OwnedFrozenValue>,
    left: usize,
}

impl Conversion<'_> {
    fn data(&mut self, value: StarlarkValue, depth: usize) -> Result<Data, Unfit> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Unfit::Wrong(format!("more than {ITEMS} items")))?;
        if depth > NESTING {
            return Err(Unfit::Wrong(format!("lists nested more than {NESTING} deep")));
        }
        if value.is_none() {
            return Ok(Data::None);
        }
        if let Some(flag) = value.unpack_bool() {
            return Ok(Data::Bool(flag));
        }
        if let Some(text) = value.unpack_str() {
            self.left = self.left.saturating_sub(text.len() / 64);
            return Ok(Data::Text(text.to_string()));
        }
        if let Ok(Some(number)) = i64::unpack_value(value) {
            return Ok(Data::Int(number));
        }
        if let Some(dict) = DictRef::from_value(value) {
            return dict
                .iter()
                .map(|(key, item)| self.entry(key, item, depth))
                .collect::<Result<_, _>>()
                .map(Data::Dict);
        }
        if let Some(record) = StructRef::from_value(value) {
            return self.record(&record, depth);
        }
        if let Ok(Some(list)) = UnpackListOrTuple::<StarlarkValue>::unpack_value(value) {
            return list
                .items
                .into_iter()
                .map(|item| self.data(item, depth + 1))
                .collect::<Result<_, _>>()
                .map(Data::List);
        }
        match (value.get_type(), self.owner) {
            ("function", None) => Err(Unfit::Unfrozen),
            ("function", Some(owner)) => match value.unpack_frozen() {
                Some(frozen) => Ok(Data::Function(Function(owner.map(|_| frozen)))),
                None => Err(Unfit::Unfrozen),
            },
            ("int", _) => Err(Unfit::Wrong("a number that doesn't fit in 64 bits".to_string())),
            ("range", _) => Err(Unfit::Wrong("a range can't stand here: write list(range(…))".to_string())),
            (other, _) => Err(Unfit::Wrong(format!("a value of type {other} can't stand here"))),
        }
    }

    fn entry(&mut self, key: StarlarkValue, item: StarlarkValue, depth: usize) -> Result<(String, Data), Unfit> {
        let Some(key) = key.unpack_str() else {
            return Err(Unfit::Wrong(format!("keys of a dict are strings here, not {}", key.get_type())));
        };
        Ok((key.to_string(), self.data(item, depth + 1)?))
    }

    fn record(&mut self, record: &StructRef, depth: usize) -> Result<Data, Unfit> {
        let mut kind = String::new();
        let mut fields = BTreeMap::new();
        for (name, value) in record.iter() {
            match (name.as_str(), value.unpack_str()) {
                (globals::KIND, Some(text)) => kind = text.to_string(),
                (name, _) => {
                    fields.insert(name.to_string(), self.data(value, depth + 1)?);
                }
            }
        }
        Ok(Data::Record(Record { kind, fields }))
    }
}

fn place(span: &FileSpan) -> Place {
    let resolved = span.resolve_span();
    let source = span.file.source_line(resolved.begin.line);
    let shown = source.trim_end_matches(['\n', '\r']).to_string();
    let end = if resolved.end.line == resolved.begin.line { resolved.end.column } else { shown.chars().count() };
    Place {
        file: span.filename().to_string(),
        line: resolved.begin.line + 1,
        column: resolved.begin.column + 1,
        length: end.saturating_sub(resolved.begin.column).max(1),
        source: Some(shown),
    }
}

/// The interpreter's error as ours: one that a function of ours made keeps its own words.
fn error(e: &::starlark::Error) -> Error {
    use ::starlark::ErrorKind::{Fail, Native, Other};
    let ours = match e.kind() {
        Other(inner) | Native(inner) => inner.downcast_ref::<Error>().cloned(),
        _ => None,
    };
    let mut made = ours.unwrap_or_else(|| with_next(words(e)));
    if let Fail(_) = e.kind() {
        made = made.why("the build file calls fail()");
    }
    let mut last = e.span().map(place);
    if let Some(place) = &last {
        made = made.at(place.clone(), "");
    }
    for frame in e.call_stack().clone().into_frames().into_iter().rev().take(8) {
        let called = frame.location.as_ref().map(place);
        if let Some(called) = called.filter(|called| Some(called) != last.as_ref()) {
            made = made.at(called.clone(), format!("{} is called from here", frame.name));
            last = Some(called);
        }
    }
    made
}

/// What the interpreter says, and what to do about it.
fn with_next(what: String) -> Error {
    let limit = ["more than", "it takes longer"].iter().any(|start| what.starts_with(start));
    let next = if limit {
        "limits of build files: docs/build-files.md"
    } else if what.starts_with("Variable `print` ") {
        // What is kept isn't evaluated again, and a function of the parameters is called as often as it takes.
        return Error::request("build files have no print").next("fail(\"…\") stops here and shows a value");
    } else if let Some((what, near)) = what.strip_suffix('?').and_then(|what| what.split_once(", did you mean ")) {
        return Error::request(what).next(format!("did you mean {}?", near.trim_matches('`')));
    } else if what.starts_with("not Starlark") {
        "mend it there or just before: Starlark has Python's syntax, without classes, import, while and try"
    } else if what.starts_with("Variable ") {
        "define it above, or load(\"//package/file.star\", …) it"
    } else if what.contains("`parameters`") {
        "a function of the parameters reads them as p[\"jobs\"] or p[\"//app:jobs\"], and in no other way"
    } else if what.contains("NoneType") {
        "a parameter that nothing sets is None: give it a default, or write p[\"…\"] or \"…\""
    } else {
        "mend it there, or the call that led there: docs/build-files.md has the language"
    };
    Error::request(what).next(next)
}

/// An error of a limit has no place: the statement where it was met.
fn with_line(error: Error, text: &str) -> Error {
    match progress::here() {
        Some((file, line)) if error.places().is_empty() => {
            let source = text.lines().nth(line - 1).map(str::to_string);
            let length = source.as_ref().map_or(1, |source| source.chars().count().max(1));
            error.at(Place { file, line, column: 1, length, source }, "it stood here")
        }
        _ => error,
    }
}

fn words(e: &::starlark::Error) -> String {
    let text = e.without_diagnostic().to_string();
    let limits = [
        ("Execution duration limit", format!("more than {TICKS} calls and loop turns")),
        ("Heap memory limit", format!("more than {} MiB of memory are used", HEAP >> 20)),
        ("Evaluation cancelled", format!("it takes longer than {} s", TIME.as_secs())),
        ("Starlark call stack overflow", format!("more than {CALL_DEPTH} calls inside calls")),
    ];
    if let Some((_, ours)) = limits.into_iter().find(|(theirs, _)| text.starts_with(theirs)) {
        return ours;
    }
    let text = text.strip_prefix("fail: ").unwrap_or(&text);
    match text.strip_prefix("Parse error: ") {
        Some(rest) => format!("not Starlark: {rest}"),
        None => text.to_string(),
    }
}
