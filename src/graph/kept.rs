//! The analysed graph, kept in the store: while nothing that the analysis looked at has changed, it isn't done
//! again, and no process has to stay for that. After an edit of some build files only what depends on them is
//! (`memo`).
//!
//! The key is the question (search path, labels, parameters, where the caller stands) and which tapeout asks. Under it
//! lies what was [`Seen`], with the digest of the graph's plan; beside it, each in a file of its own that is read
//! only when it is needed, the graph as the child wrote it, and its memo. All three bear the mark of the analysis that
//! they are from. A record that is stale, damaged or not there means one analysis, never a wrong graph.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Encoded, Question, Request, Wanted, child};
use crate::build_file::seen::{Check, Seen};
use crate::build_file::spec::{Definition, Graph};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;

/// Raised when the same question would be answered by another record.
const FORMAT: u32 = 3;

/// What is read first.
#[derive(Serialize, Deserialize)]
struct Head {
    /// Which analysis it is from.
    mark: Digest,
    plan: Digest,
    seen: Seen,
}

/// An answer that is there, but perhaps not read yet.
pub struct Answered<'a> {
    asking: Asking<'a>,
    plan: Option<Digest>,
    held: Held,
}

enum Held {
    Store(Digest),
    Memory(Encoded),
    Graph(Graph),
}

struct Asking<'a> {
    executable: &'a Path,
    store: &'a Store,
    question: Question,
    key: Digest,
}

/// As [`super::analyse`], from the store where nothing has changed.
pub fn analyse(store: &Store, request: &Request) -> Result<Graph> {
    ask(store, request)?.graph()
}

/// The same, without reading the graph.
pub fn ask<'a>(store: &'a Store, request: &Request) -> Result<Answered<'a>> {
    let asking = Asking::new(Path::new(super::OURSELVES), store, request, Wanted::Graph)?;
    if cfg!(test) {
        return Ok(Answered { asking, plan: None, held: Held::Graph(super::analyse_here(request)?) });
    }
    asking.graph()
}

/// As [`super::definitions`], from the store where nothing has changed.
pub fn definitions(store: &Store, request: &Request) -> Result<Vec<Definition>> {
    if cfg!(test) {
        return super::definitions_here(request);
    }
    Asking::new(Path::new(super::OURSELVES), store, request, Wanted::Definitions)?.definitions()
}

/// Names the question, and who answers it.
pub fn key_of(request: &Request) -> Result<Digest> {
    key(Path::new(super::OURSELVES), &Question::new(request, Wanted::Graph)?)
}

/// As [`analyse`], where the executable that knows the child's role isn't this one: for tests.
pub fn analyse_by(executable: &Path, store: &Store, request: &Request) -> Result<Graph> {
    Asking::new(executable, store, request, Wanted::Graph)?.graph()?.graph()
}

impl Answered<'_> {
    /// Names all of the graph that a build depends on; `None`: later it couldn't be told whether it is the same.
    pub fn plan(&self) -> Option<Digest> {
        self.plan
    }

    /// The graph.
    pub fn graph(self) -> Result<Graph> {
        match self.held {
            Held::Graph(graph) => Ok(graph),
            Held::Memory(encoded) => encoded.read(&self.asking.question),
            Held::Store(mark) => match self.asking.read(&mark) {
                Some(graph) => Ok(graph),
                None => self.asking.analysed(None)?.graph(),
            },
        }
    }
}

impl<'a> Asking<'a> {
    fn new(executable: &'a Path, store: &'a Store, request: &Request, wanted: Wanted) -> Result<Self> {
        let question = Question::new(request, wanted)?;
        let key = key(executable, &question)?;
        Ok(Self { executable, store, question, key })
    }

    fn graph(self) -> Result<Answered<'a>> {
        let mut before = None;
        if let Some(mut head) = self.head() {
            match head.seen.check() {
                check @ (Check::Same | Check::Touched) => {
                    if check == Check::Touched {
                        self.keep_head(&head);
                    }
                    return Ok(Answered { plan: Some(head.plan), held: Held::Store(head.mark), asking: self });
                }
                Check::Changed => {
                    before =
                        head.seen.edited().and_then(|edited| Some((edited, self.part("memo", &head.mark)?, head.seen)));
                }
            }
        }
        self.analysed(before)
    }

    /// What a child says now, kept; `before`: what was edited, a memo from before that, and what else was seen then.
    fn analysed(self, before: Option<(Vec<String>, Vec<u8>, Seen)>) -> Result<Answered<'a>> {
        let memo = before.as_ref().map(|(edited, memo, _)| (&edited[..], &memo[..]));
        let answered = child::ask(self.executable, &self.question, memo)?;
        let encoded = answered.said.graph()?;
        let seen = match before.filter(|_| answered.from_memo) {
            Some((_, _, before)) => answered.seen.and_then(|seen| before.with(seen)),
            None => answered.seen,
        };
        let plan = Digest::of(encoded.plan());
        let told = seen.is_some();
        if let Some(seen) = seen {
            self.keep(plan, seen, &[("graph", encoded.graph()), ("memo", encoded.memo())]);
        }
        Ok(Answered { asking: self, plan: told.then_some(plan), held: Held::Memory(encoded) })
    }

    fn definitions(self) -> Result<Vec<Definition>> {
        if let Some(mut head) = self.head()
            && head.seen.check() != Check::Changed
            && let Some(text) = self.part("definitions", &head.mark)
            && let Ok(definitions) = serde_json::from_slice(&text)
        {
            return Ok(definitions);
        }
        let answered = child::ask(self.executable, &self.question, None)?;
        let definitions = answered.said.definitions()?;
        if let (Some(seen), Ok(text)) = (answered.seen, serde_json::to_vec(&definitions)) {
            self.keep(Digest::of(&text), seen, &[("definitions", &text)]);
        }
        Ok(definitions)
    }

    fn read(&self, mark: &Digest) -> Option<Graph> {
        let graph = self.part("graph", mark)?;
        let [plan, shown] = child::sections(&graph)?;
        let graph = Graph::of_two(plan, shown)?;
        child::check(&graph, &self.question).ok()?;
        Some(graph)
    }

    fn head(&self) -> Option<Head> {
        postcard::from_bytes(&self.store.kept_graph(&self.key)?).ok()
    }

    fn part_key(&self, name: &str) -> Digest {
        Digest::of(format!("{name} of {}", self.key))
    }

    /// One of the files beside the head, if it is of the same analysis.
    fn part(&self, name: &str, mark: &Digest) -> Option<Vec<u8>> {
        let mut part = self.store.kept_graph(&self.part_key(name))?;
        if !part.starts_with(mark.as_bytes()) {
            return None;
        }
        part.drain(..mark.as_bytes().len());
        Some(part)
    }

    /// A graph that can't be kept is analysed again: who needs the disk will say that it is full.
    fn keep(&self, plan: Digest, seen: Seen, parts: &[(&str, &[u8])]) {
        let Ok(looks) = postcard::to_stdvec(&seen) else { return };
        let digests = parts.iter().map(|(_, part)| Digest::of(part));
        let mark =
            Digest::of(format!("{} {:?}", Digest::of(looks).hex(), digests.map(|d| d.hex()).collect::<Vec<_>>()));
        for (name, part) in parts {
            if self.store.keep_graph(&self.part_key(name), &[mark.as_bytes(), part]).is_err() {
                return;
            }
        }
        self.keep_head(&Head { mark, plan, seen });
    }

    fn keep_head(&self, head: &Head) {
        let Ok(head) = postcard::to_stdvec(head) else { return };
        let _ = self.store.keep_graph(&self.key, &[&head]);
    }
}

fn key(executable: &Path, question: &Question) -> Result<Digest> {
    // Another build of the same version may analyse otherwise.
    let which = executable.metadata().map_or((0, 0, 0), |stat| (stat.size(), stat.mtime(), stat.mtime_nsec()));
    let asked =
        serde_json::to_string(question).map_err(|e| Error::failed(format!("the question can't be kept: {e}")))?;
    Ok(Digest::of(format!("tapeout graph {FORMAT} {} {which:?}\n{asked}", env!("CARGO_PKG_VERSION"))))
}
