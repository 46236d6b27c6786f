//! The rule graph: what was asked for, from patterns and parameters to instances in order.
//!
//! 1. `load` evaluates build files, each once, when the analysis first needs its package.
//! 2. `parameters` finds values: given (command line, edges), default, derived.
//! 3. `nodes` evaluates rules under values: the true ordinary edges, and the attributes. The same
//!    rule that sees the same values is one node.
//! 4. `join` turns nodes into instances: joint points once per image, `//base:build` once per
//!    union of packages.
//!
//! All of it runs in a child process with limits (`child`), because a build file is not trusted;
//! what leaves the child is plain data. `kept` saves the child where nothing has changed, and `memo` most of its work
//! where little has. [`analyse_here`] does the same in this process, for tests.

mod analysis;
mod child;
mod join;
pub mod kept;
mod load;
mod memo;
mod nodes;
mod parameters;
pub mod show;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::build_file::search_path::SearchPath;
use crate::build_file::seen::Seen;
use crate::build_file::spec::{Definition, Graph};
use crate::build_file::workspace::Workspace;
use crate::error::{Error, Result};
use crate::label::{Package, Pattern};

pub use child::analysis_child_if_asked;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The workspace, with `--path` applied.
    pub workspace: Workspace,
    /// Labels and patterns, as typed.
    pub patterns: Vec<String>,
    /// The package that the caller stands in.
    pub here: Package,
    /// `//app:jobs=8`, or `@file.json`, as typed; later wins.
    pub parameters: Vec<String>,
}

/// Analyses: true edges only, in execution order. Executes nothing.
pub fn analyse(request: &Request) -> Result<Graph> {
    if cfg!(test) { analyse_here(request) } else { analyse_by(Path::new(OURSELVES), request) }
}

/// As [`analyse`], where the executable that knows the child's role isn't this one: for tests.
pub fn analyse_by(executable: &Path, request: &Request) -> Result<Graph> {
    let question = Question::new(request, Wanted::Graph)?;
    child::ask(executable, &question, None)?.said.graph()?.read(&question)
}

/// What is defined: for `tapeout list`. Values are needed only where a function gives edges.
pub fn definitions(request: &Request) -> Result<Vec<Definition>> {
    if cfg!(test) {
        return definitions_here(request);
    }
    child::ask(Path::new(OURSELVES), &Question::new(request, Wanted::Definitions)?, None)?.said.definitions()
}

/// This executable, whatever became of its path.
const OURSELVES: &str = "/proc/self/exe";

/// As [`analyse`], in this very process: a hostile build file can end it.
pub fn analyse_here(request: &Request) -> Result<Graph> {
    match answer_here(Question::new(request, Wanted::Graph)?) {
        Answer::Graph(graph, _) => Ok(graph),
        Answer::Error(error) => Err(error),
        Answer::Definitions(_) => Err(child::nonsense()),
    }
}

/// As [`definitions`], in this very process.
pub fn definitions_here(request: &Request) -> Result<Vec<Definition>> {
    match answer_here(Question::new(request, Wanted::Definitions)?) {
        Answer::Definitions(definitions) => Ok(definitions),
        Answer::Error(error) => Err(error),
        Answer::Graph(..) => Err(child::nonsense()),
    }
}

/// What the child is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    search_path: SearchPath,
    patterns: Vec<String>,
    here: Package,
    parameters: Vec<Given>,
    wanted: Wanted,
}

/// A parameter as given: its name, its value, and how the caller wrote it.
#[derive(Debug, Serialize, Deserialize)]
struct Given {
    name: String,
    value: GivenValue,
    shown: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum GivenValue {
    /// From the command line: read by the parameter's type.
    Typed(String),
    /// From a file.
    Json(serde_json::Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Wanted {
    Graph,
    Definitions,
}

/// What an analysis gives.
enum Answer {
    Graph(Graph, memo::Memo),
    Definitions(Vec<Definition>),
    Error(Error),
}

/// What the child says.
struct Answered {
    said: Said,
    /// What it looked at; `None`: that can't be told.
    seen: Option<Seen>,
    /// The rest of what it says rests on what was seen before.
    from_memo: bool,
}

enum Said {
    Graph(Encoded),
    Definitions(Vec<Definition>),
}

impl Said {
    fn graph(self) -> Result<Encoded> {
        if let Self::Graph(encoded) = self { Ok(encoded) } else { Err(child::nonsense()) }
    }

    fn definitions(self) -> Result<Vec<Definition>> {
        if let Self::Definitions(definitions) = self { Ok(definitions) } else { Err(child::nonsense()) }
    }
}

/// A graph as the child wrote it, in the child's answer: these are megabytes, and not copied.
struct Encoded {
    answer: Vec<u8>,
    graph: Range<usize>,
    memo: Range<usize>,
}

impl Encoded {
    /// As it is kept: [`plan`](Self::plan), and what only people read of it.
    fn graph(&self) -> &[u8] {
        &self.answer[self.graph.clone()]
    }

    /// All that a build depends on.
    fn plan(&self) -> &[u8] {
        child::sections::<2>(self.graph()).map_or(&[], |[plan, _]| plan)
    }

    /// For the next analysis.
    fn memo(&self) -> &[u8] {
        &self.answer[self.memo.clone()]
    }

    fn read(&self, question: &Question) -> Result<Graph> {
        let [plan, shown] = child::sections(self.graph()).ok_or_else(child::nonsense)?;
        let graph = Graph::of_two(plan, shown).ok_or_else(child::nonsense)?;
        child::check(&graph, question)?;
        Ok(graph)
    }
}

impl Question {
    fn new(request: &Request, wanted: Wanted) -> Result<Self> {
        for pattern in &request.patterns {
            Pattern::parse_in(pattern, &request.here)?;
        }
        let given: Vec<Vec<Given>> = request.parameters.iter().map(|text| given(text)).collect::<Result<_>>()?;
        Ok(Self {
            search_path: request.workspace.packages(),
            patterns: request.patterns.clone(),
            here: request.here.clone(),
            parameters: given.into_iter().flatten().collect(),
            wanted,
        })
    }
}

/// Bytes of a parameter file.
const PARAMETER_FILE: u64 = 16 << 20;

fn given(text: &str) -> Result<Vec<Given>> {
    let Some(path) = text.strip_prefix('@') else {
        let Some((name, value)) = text.split_once('=') else {
            return Err(Error::request(format!("not a parameter: {text:?}")).next("write LABEL=VALUE or @FILE.json"));
        };
        return Ok(vec![Given {
            name: name.to_string(),
            value: GivenValue::Typed(value.to_string()),
            shown: format!("--parameter {text}"),
        }]);
    };
    let path = PathBuf::from(path);
    let wrong = |e: Error| e.with_kind(crate::error::Kind::Request);
    let file = std::fs::File::open(&path)
        .map_err(|e| wrong(Error::io("open", &path, e)).next("name a JSON file that exists"))?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, PARAMETER_FILE + 1), &mut text)
        .map_err(|e| wrong(Error::io("read", &path, e)))?;
    if text.len() as u64 > PARAMETER_FILE {
        return Err(Error::request(format!("{} is longer than {PARAMETER_FILE} bytes", path.display())));
    }
    let values: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        Error::request(format!("{}:{}:{}: {what}", path.display(), e.line(), e.column()))
            .next("write {\"//app:jobs\": 8}")
    })?;
    let given = |(name, value)| Given {
        shown: format!("{} in {}", name, path.display()),
        name,
        value: GivenValue::Json(value),
    };
    Ok(values.into_iter().map(given).collect())
}

/// The stack of the analysis: rules that depend on one another recurse.
const STACK: usize = 512 << 20;

fn answer_here(question: Question) -> Answer {
    let run = move || match analysis::run(&question, memo::Recalled::default()) {
        Ok(answer) => answer,
        Err(error) => Answer::Error(error),
    };
    let thread = std::thread::Builder::new().name("analysis".to_string()).stack_size(STACK).spawn(run);
    match thread.map(|thread| thread.join()) {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            Answer::Error(Error::request("the analysis broke off").why("the interpreter of build files failed"))
        }
        Err(e) => Answer::Error(Error::failed(format!("no thread for the analysis: {e}"))),
    }
}

#[cfg(test)]
mod tests;
