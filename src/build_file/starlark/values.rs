//! The types that the interpreter keeps for us.
#![expect(
    unsafe_code,
    reason = "the interpreter's derive of ProvidesStaticType is an unsafe impl that it writes itself"
)]

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use allocative::Allocative;
use starlark::any::ProvidesStaticType;
use starlark::starlark_simple_value;
use starlark::values::{Heap, NoSerialize, StarlarkPagablePanic, StarlarkValue, Value, starlark_value};

use super::{Reads, Scene};
use crate::build_file::spec;
use crate::error::{Error, Place};

/// What an evaluation sees of us, and what it notes.
#[derive(Debug, ProvidesStaticType)]
pub(super) struct Stage {
    pub(super) scene: Scene,
    pub(super) noted: RefCell<Vec<Noted>>,
}

/// A call that defines something.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) place: Place,
}

/// `p`: it allows `p["…"]` alone, so that what a function reads is known.
#[derive(Debug, ProvidesStaticType, NoSerialize, Allocative, StarlarkPagablePanic)]
pub(super) struct Parameters {
    #[allocative(skip)]
    reads: Arc<Reads>,
}

starlark_simple_value!(Parameters);

impl Parameters {
    pub(super) fn new(reads: Arc<Reads>) -> Self {
        Self { reads }
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters")
    }
}

#[starlark_value(type = "parameters")]
impl<'v> StarlarkValue<'v> for Parameters {
    fn at(&self, index: Value<'v>, heap: Heap<'v>) -> starlark::Result<Value<'v>> {
        let Some(name) = index.unpack_str() else {
            return Err(starlark::Error::new_other(
                Error::request(format!("p[…] takes the name of a parameter, not {}", index.get_type()))
                    .next("write p[\"jobs\"] or p[\"//app:jobs\"]"),
            ));
        };
        match self.reads.values.get(name) {
            Some(spec::Value::None) => Ok(Value::new_none()),
            Some(spec::Value::Bool(flag)) => Ok(Value::new_bool(*flag)),
            Some(spec::Value::Int(number)) => Ok(heap.alloc(*number)),
            Some(spec::Value::Text(text)) => Ok(heap.alloc(text.as_str())),
            Some(spec::Value::List(items)) => Ok(heap.alloc(items.clone())),
            None => {
                if let Ok(mut wanted) = self.reads.wanted.lock() {
                    wanted.get_or_insert_with(|| name.to_string());
                }
                Err(starlark::Error::new_other(Error::request(format!("the parameter {name:?} isn't known yet"))))
            }
        }
    }
}
