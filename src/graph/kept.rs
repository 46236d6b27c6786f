//! The analysed graph, kept in the store: while nothing that the analysis looked at has changed, it isn't done
//! again, and no process has to stay for that.
//!
//! The key is the question (search path, labels, parameters, where the caller stands) and which tapeout asks. What
//! is kept is what was [`Seen`] (postcard, behind its length) and the graph as the child wrote it (JSON). A record
//! that is stale, damaged or not there means one analysis, never a wrong graph.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Answer, Question, Request, Wanted, child};
use crate::build_file::seen::{Check, Seen};
use crate::build_file::spec::Graph;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;

/// Raised when the same question would be answered by another record.
const FORMAT: u32 = 1;

/// As [`super::analyse`], from the store where nothing has changed.
pub fn analyse(store: &Store, request: &Request) -> Result<Graph> {
    Ok(analyse_and_see(store, request)?.0)
}

/// The same, and what was seen; `None`: that can't be told.
pub fn analyse_and_see(store: &Store, request: &Request) -> Result<(Graph, Option<Seen>)> {
    if cfg!(test) {
        return Ok((super::analyse_here(request)?, None));
    }
    ask(Path::new(super::OURSELVES), store, request)
}

/// Names the question, and who answers it.
pub fn key_of(request: &Request) -> Result<Digest> {
    key(Path::new(super::OURSELVES), &Question::new(request, Wanted::Graph)?)
}

/// As [`analyse`], where the executable that knows the child's role isn't this one: for tests.
pub fn analyse_by(executable: &Path, store: &Store, request: &Request) -> Result<Graph> {
    Ok(ask(executable, store, request)?.0)
}

fn ask(executable: &Path, store: &Store, request: &Request) -> Result<(Graph, Option<Seen>)> {
    let question = Question::new(request, Wanted::Graph)?;
    let key = key(executable, &question)?;
    if let Some((graph, seen)) = kept(store, &key, &question) {
        return Ok((graph, Some(seen)));
    }
    let answered = child::ask(executable, &question)?;
    let Answer::Graph(graph) = answered.answer else { return Err(child::nonsense()) };
    if let (Some(seen), Ok(graph)) = (&answered.seen, serde_json::to_vec(&graph)) {
        keep(store, &key, seen, &graph);
    }
    Ok((graph, answered.seen))
}

fn key(executable: &Path, question: &Question) -> Result<Digest> {
    // Another build of the same version may analyse otherwise.
    let which = executable.metadata().map_or((0, 0, 0), |stat| (stat.size(), stat.mtime(), stat.mtime_nsec()));
    let asked =
        serde_json::to_string(question).map_err(|e| Error::failed(format!("the question can't be kept: {e}")))?;
    Ok(Digest::of(format!("tapeout graph {FORMAT} {} {which:?}\n{asked}", env!("CARGO_PKG_VERSION"))))
}

fn kept(store: &Store, key: &Digest, question: &Question) -> Option<(Graph, Seen)> {
    let record = store.kept_graph(key)?;
    let (length, rest) = record.split_first_chunk()?;
    let (seen, graph) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let mut seen: Seen = postcard::from_bytes(seen).ok()?;
    let check = seen.check();
    if check == Check::Changed {
        return None;
    }
    let answer = Answer::Graph(serde_json::from_slice(graph).ok()?);
    child::check(&answer, question).ok()?;
    if check == Check::Touched {
        keep(store, key, &seen, graph);
    }
    match answer {
        Answer::Graph(graph) => Some((graph, seen)),
        _ => None,
    }
}

/// A graph that can't be kept is analysed again: who needs the disk will say that it is full.
fn keep(store: &Store, key: &Digest, seen: &Seen, graph: &[u8]) {
    let Ok(seen) = postcard::to_stdvec(seen) else { return };
    let length = (seen.len() as u64).to_le_bytes();
    let _ = store.keep_graph(key, &[&length[..], &seen, graph].concat());
}
