//! The names that Tapeout gives to build files.
//!
//! The calls that define something only note their arguments here; the analysis reads them.
//! Records (`dep(…)`, `file(…)`) are Starlark structs whose hidden first field says what they are.

use starlark::collections::SmallMap;
use starlark::environment::{Globals, GlobalsBuilder};
use starlark::eval::Evaluator;
use starlark::values::Value;
use starlark::values::dict::AllocDict;
use starlark::values::none::NoneType;
use starlark::values::structs::AllocStruct;

use super::values::{Noted, Stage};
use super::{place, variable};
use crate::build_file::glob;
use crate::build_file::locks::{self, Lock};
use crate::build_file::reference::{self, FunctionKind};
use crate::build_file::spec::Source;
use crate::error::{Error, Place};

/// The hidden field of a record.
pub(super) const KIND: &str = "a record of";

/// Starlark's own names, and ours.
pub(super) fn globals() -> Globals {
    GlobalsBuilder::standard()
        .with(definitions)
        .with(records)
        .with(|builder| builder.set("ALL", AllocStruct([(KIND, "ALL")])))
        .build()
}

fn stage<'a>(evaluator: &Evaluator<'_, 'a, '_>) -> Result<&'a Stage, starlark::Error> {
    let extra = evaluator.extra.and_then(|extra| extra.downcast_ref::<Stage>());
    extra.ok_or_else(|| ours(Error::failed("no stage is set")))
}

fn ours(error: Error) -> starlark::Error {
    starlark::Error::new_other(error)
}

/// Notes a call that defines something.
fn define<'v>(
    kind: &'static str,
    name: &str,
    arguments: SmallMap<String, Value<'v>>,
    evaluator: &mut Evaluator<'v, '_, '_>,
) -> starlark::Result<NoneType> {
    let stage = stage(evaluator)?;
    let Some(file) = &stage.scene.build_file else {
        return Err(ours(
            Error::request(format!("{kind}({name:?}) is called where nothing can be defined"))
                .why("only a build file defines: neither the top of a file that is loaded nor a function of the parameters can")
                .next("put it into a function, and call that from build.star"),
        ));
    };
    let place = calling_place(evaluator, file);
    let number = stage.noted.borrow().len();
    stage.noted.borrow_mut().push(Noted { kind, name: name.to_string(), place });
    let dict = evaluator.heap().alloc(AllocDict(arguments));
    evaluator.module().set(&variable(number), dict);
    Ok(NoneType)
}

/// The innermost place that is in the build file itself: a template's caller, not the template.
fn calling_place(evaluator: &Evaluator, file: &str) -> Place {
    let frames = evaluator.call_stack().into_frames();
    let mut places = frames.iter().rev().filter_map(|frame| frame.location.as_ref());
    let own = places.find(|span| span.filename() == file);
    own.map(place).unwrap_or(Place { file: file.to_string(), line: 1, column: 1, length: 1, source: None })
}

/// A record, its names checked against the reference.
fn record<'v>(
    kind: &'static str,
    first: Option<Value<'v>>,
    mut arguments: SmallMap<String, Value<'v>>,
    evaluator: &mut Evaluator<'v, '_, '_>,
) -> starlark::Result<Value<'v>> {
    let Some(function) = reference::function(kind).filter(|f| f.kind == FunctionKind::Record) else {
        return Err(ours(Error::failed(format!("{kind} is no record"))));
    };
    if let (Some(first), Some(name)) = (first, function.attributes.first()) {
        arguments.insert(name.name.to_string(), first);
    }
    for name in arguments.keys() {
        if !function.attributes.iter().any(|attribute| attribute.name == name) {
            return Err(ours(reference::unknown_attribute(function, name)));
        }
    }
    for attribute in function.attributes.iter().filter(|attribute| attribute.default == reference::REQUIRED) {
        if !arguments.contains_key(attribute.name) {
            return Err(ours(Error::request(format!("{kind}() needs {}", attribute.name)).next(attribute.doc)));
        }
    }
    let heap = evaluator.heap();
    let hidden = std::iter::once((KIND.to_string(), heap.alloc(kind)));
    Ok(heap.alloc(AllocStruct(hidden.chain(arguments).collect::<Vec<_>>())))
}

#[starlark::starlark_module]
fn definitions(builder: &mut GlobalsBuilder) {
    fn parameter<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("parameter", name, arguments, eval)
    }

    fn rule<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("rule", name, arguments, eval)
    }

    fn archive<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("archive", name, arguments, eval)
    }

    fn git<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("git", name, arguments, eval)
    }

    fn tapeout<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("tapeout", name, arguments, eval)
    }

    fn image<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("image", name, arguments, eval)
    }

    fn pod<'v>(
        name: &str,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        define("pod", name, arguments, eval)
    }

    /// `src/**` below the package's folder, sorted.
    fn glob<'v>(
        include: starlark::values::list_or_tuple::UnpackListOrTuple<String>,
        #[starlark(default = starlark::values::list_or_tuple::UnpackListOrTuple::default())]
        exclude: starlark::values::list_or_tuple::UnpackListOrTuple<String>,
        #[starlark(require = named, default = false)] allow_empty: bool,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Vec<String>> {
        let scene = &stage(eval)?.scene;
        let Some(folder) = &scene.folder else {
            return Err(ours(Error::request(format!(
                "glob() in {}, a built-in package: it has no folder",
                scene.package
            ))));
        };
        let found = glob::glob(folder, &include.items, &exclude.items).map_err(ours)?;
        if found.is_empty() && !allow_empty {
            return Err(ours(
                Error::request(format!("glob({:?}) matches no file below {}", include.items, scene.package))
                    .next("correct the pattern, or say allow_empty = True"),
            ));
        }
        Ok(found)
    }

    /// The crates that a `Cargo.lock` pins.
    fn cargo_crates<'v>(
        lock: &str,
        #[starlark(require = named, default = ".crates")] into: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Vec<Value<'v>>> {
        let found = locks::crates(&read_lock("cargo_crates", lock, eval)?, into).map_err(ours)?;
        Ok(sources(found, eval))
    }

    /// The packages that a requirements file with hashes pins.
    fn python_wheels<'v>(
        lock: &str,
        #[starlark(require = named, default = ".wheels")] into: &str,
        #[starlark(require = named, default = "3.11")] python: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Vec<Value<'v>>> {
        let found = locks::wheels(&read_lock("python_wheels", lock, eval)?, into, python).map_err(ours)?;
        Ok(sources(found, eval))
    }

    /// The packages that a `package-lock.json` pins.
    fn node_packages<'v>(
        lock: &str,
        #[starlark(require = named, default = ".packages")] into: &str,
        #[starlark(require = named, default = false)] dev: bool,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Vec<Value<'v>>> {
        let found = locks::packages(&read_lock("node_packages", lock, eval)?, into, dev).map_err(ours)?;
        Ok(sources(found, eval))
    }
}

/// A lock file of the package.
fn read_lock(function: &str, path: &str, evaluator: &Evaluator) -> starlark::Result<Lock> {
    let scene = &stage(evaluator)?.scene;
    match &scene.folder {
        Some(folder) => Lock::read(folder, &scene.package, path).map_err(ours),
        None => Err(ours(Error::request(format!(
            "{function}() in {}, a built-in package: it has no folder",
            scene.package
        )))),
    }
}

/// Sources as records.
fn sources<'v>(sources: Vec<Source>, evaluator: &Evaluator<'v, '_, '_>) -> Vec<Value<'v>> {
    let heap = evaluator.heap();
    let text = |value: String| heap.alloc(value);
    let record = |kind: &str, fields: Vec<(&str, Value<'v>)>| {
        heap.alloc(AllocStruct([(KIND, heap.alloc(kind))].into_iter().chain(fields)))
    };
    let made = sources.into_iter().map(|source| match source {
        Source::Path(path) => text(path),
        Source::Input(name) => record("input", vec![("name", text(name))]),
        Source::Fetched(fetched) => {
            let fields = vec![
                ("path", text(fetched.path)),
                ("urls", heap.alloc(fetched.urls)),
                ("digest", text(fetched.digest)),
            ];
            record("fetched", fields)
        }
        Source::Wheel(wheel) => {
            let fields = vec![
                ("folder", text(wheel.folder)),
                ("name", text(wheel.name)),
                ("version", text(wheel.version)),
                ("sha256", heap.alloc(wheel.sha256)),
                ("python", text(wheel.python)),
                ("indexes", heap.alloc(wheel.indexes)),
                ("optional", Value::new_bool(wheel.optional)),
            ];
            record("wheel", fields)
        }
    });
    made.collect()
}

#[starlark::starlark_module]
fn records(builder: &mut GlobalsBuilder) {
    fn dep<'v>(
        label: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("dep", Some(label), arguments, eval)
    }

    fn input<'v>(name: Value<'v>, eval: &mut Evaluator<'v, '_, '_>) -> starlark::Result<Value<'v>> {
        record("input", Some(name), SmallMap::new(), eval)
    }

    fn fetched<'v>(
        path: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("fetched", Some(path), arguments, eval)
    }

    fn file<'v>(
        path: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("file", Some(path), arguments, eval)
    }

    fn container<'v>(
        name: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("container", Some(name), arguments, eval)
    }

    fn volume<'v>(
        name: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("volume", Some(name), arguments, eval)
    }

    fn mount<'v>(
        volume: Value<'v>,
        path: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let mut arguments = arguments;
        arguments.insert("path".to_string(), path);
        record("mount", Some(volume), arguments, eval)
    }

    fn port<'v>(
        port: Value<'v>,
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("port", Some(port), arguments, eval)
    }

    fn probe<'v>(
        #[starlark(kwargs)] arguments: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        record("probe", None, arguments, eval)
    }
}
