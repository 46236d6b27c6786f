//! Order: each instance after all that it depends on, as many at once as there are jobs.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::build_file::spec::{Graph, Id};
use crate::error::{Error, Result};

/// While one script runs, the sandbox of the next one is made ready, and what the last one left is captured.
const AHEAD: usize = 2;

const BROKE_OFF: &str = "it broke off: an error in Tapeout itself";

/// What the graph implies for each instance.
#[derive(Debug)]
pub struct Order {
    /// The longest chain of instances below each one.
    pub rank: Vec<i64>,
    deps: Vec<Vec<Id>>,
}

impl Order {
    /// Computed once a command. The graph has each instance after its dependencies.
    pub fn of(graph: &Graph) -> Self {
        let mut order = Self { rank: vec![], deps: vec![] };
        for instance in &graph.instances {
            let rank = instance.deps.iter().map(|&dep| order.rank[dep] + 1).max();
            order.rank.push(rank.unwrap_or(0));
            order.deps.push(instance.deps.clone());
        }
        order
    }

    /// All instances below one, each after its own dependencies, else as its dependencies are
    /// written: what else was asked for doesn't change it.
    pub fn as_written(&self, id: Id) -> Vec<Id> {
        let mut seen = Set::with_room_for(self.deps.len());
        seen.insert(id);
        let mut found = vec![];
        let mut path = vec![(id, self.deps[id].iter())];
        while let Some((at, deps)) = path.last_mut() {
            match deps.next() {
                Some(&dep) if seen.insert(dep) => path.push((dep, self.deps[dep].iter())),
                Some(_) => {}
                None => {
                    found.push(*at);
                    path.pop();
                }
            }
        }
        found.pop();
        found
    }

    /// All instances below one, as a set.
    pub fn below(&self, id: Id) -> Set {
        let mut below = Set::with_room_for(self.deps.len());
        self.as_written(id).into_iter().for_each(|id| _ = below.insert(id));
        below
    }
}

/// A set of instances, a bit each: in a graph of ten thousand rules one is made for each of them.
#[derive(Debug, Default)]
pub struct Set(Vec<u64>);

impl Set {
    fn with_room_for(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    /// Is it new?
    fn insert(&mut self, id: Id) -> bool {
        let before = self.0[id / 64];
        self.0[id / 64] |= 1 << (id % 64);
        self.0[id / 64] != before
    }

    /// Is it in?
    pub fn contains(&self, id: Id) -> bool {
        self.0.get(id / 64).is_some_and(|bits| bits & 1 << (id % 64) != 0)
    }
}

struct State {
    ready: BTreeSet<Id>,
    missing: Vec<usize>,
    left: usize,
    turns: usize,
    /// Who waits for a turn.
    waiting: BTreeSet<Id>,
    errors: Vec<Error>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, now: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(now).unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance's turn: no more than there are jobs have one. A rule takes it for its script alone, so that while one
/// script runs the next one's sandbox is made ready, and what the last one left is captured.
pub struct Turn<'a> {
    shared: &'a Shared,
    id: Id,
    at: Cell<At>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Before,
    Has,
    After,
    CalledOff,
}

impl Turn<'_> {
    /// Waits for it; once it was had, there is nothing to wait for. An error: something failed, and nothing new begins.
    pub fn take(&self) -> Result<()> {
        if matches!(self.at.get(), At::Has | At::After) {
            return Ok(());
        }
        let mut now = self.shared.lock();
        now.waiting.insert(self.id);
        // Of those that are ready the first in the graph's order.
        while now.errors.is_empty() && (now.turns == 0 || now.waiting.first() != Some(&self.id)) {
            now = self.shared.wait(now);
        }
        now.waiting.remove(&self.id);
        if !now.errors.is_empty() {
            self.at.set(At::CalledOff);
            return Err(Error::failed("called off, because something else failed"));
        }
        now.turns -= 1;
        self.at.set(At::Has);
        if now.turns > 0 && !now.waiting.is_empty() {
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Gives it to the next. Who fails keeps it, so that nothing begins before the error is known.
    pub fn give(&self) {
        if self.at.get() == At::Has {
            self.at.set(At::After);
            self.shared.lock().turns += 1;
            self.shared.changed.notify_all();
        }
    }

    /// Was there an error instead of a turn? Then it is nobody's.
    pub fn is_called_off(&self) -> bool {
        self.at.get() == At::CalledOff
    }
}

/// Calls `run` for each instance after its dependencies, in the graph's order among those that
/// are ready; [`AHEAD`] more than there are jobs, which wait for their [`Turn`]. After an error nothing new
/// begins; what runs is waited for, and all errors are told: `of` says of which instance each one is.
pub fn run(
    deps: &[Vec<Id>],
    jobs: NonZeroUsize,
    run: impl Fn(Id, &Turn) -> Result<()> + Sync,
    of: impl Fn(Id, Error) -> Error + Sync,
) -> Result<()> {
    let missing: Vec<_> = deps.iter().map(|d| d.iter().collect::<BTreeSet<_>>().len()).collect();
    let mut dependents = vec![vec![]; deps.len()];
    for (id, deps) in deps.iter().enumerate() {
        for &dep in deps.iter().collect::<BTreeSet<_>>() {
            dependents[dep].push(id);
        }
    }
    let ready = (0..deps.len()).filter(|&id| missing[id] == 0).collect();
    let (left, turns) = (deps.len(), jobs.get());
    let state = State { ready, missing, left, turns, waiting: BTreeSet::new(), errors: vec![] };
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new() };
    let work = || {
        loop {
            let mut now = shared.lock();
            let id = loop {
                if now.left == 0 || !now.errors.is_empty() {
                    return;
                }
                match now.ready.pop_first() {
                    Some(id) => break id,
                    None => now = shared.wait(now),
                }
            };
            drop(now);
            let turn = Turn { shared: &shared, id, at: Cell::new(At::Before) };
            // Others would wait for ever for an instance that broke off.
            let result = catch_unwind(AssertUnwindSafe(|| run(id, &turn)));
            let result = result.unwrap_or_else(|_| Err(Error::failed(BROKE_OFF).next("report what stands above")));
            let result = result.map_err(|error| (!turn.is_called_off()).then(|| of(id, error)));
            let mut now = shared.lock();
            now.left -= 1;
            match result {
                Err(error) => now.errors.extend(error),
                Ok(()) => {
                    for &dependent in &dependents[id] {
                        now.missing[dependent] -= 1;
                        if now.missing[dependent] == 0 {
                            now.ready.insert(dependent);
                        }
                    }
                }
            }
            let gives = turn.at.get() == At::Has;
            now.turns += usize::from(gives);
            // One that is ready is this thread's own: who waits is woken for more, for a turn, and at the end.
            if gives || now.ready.len() > 1 || now.left == 0 || !now.errors.is_empty() {
                shared.changed.notify_all();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.get().saturating_add(AHEAD).min(deps.len()) {
            scope.spawn(work);
        }
        work();
    });
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    Error::all(state.errors).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_below_stands_as_written_whatever_else_was_asked_for() {
        let deps = vec![vec![], vec![0], vec![0], vec![1, 2], vec![2, 1]];
        let order = Order { rank: vec![], deps };
        assert_eq!(order.as_written(3), [0, 1, 2]);
        assert_eq!(order.as_written(4), [0, 2, 1]);
        assert_eq!(order.as_written(0), [] as [Id; 0]);
        assert_eq!([0, 1, 2, 3, 4].map(|id| order.below(3).contains(id)), [true, true, true, false, false]);
    }

    fn run(deps: &[Vec<Id>], jobs: NonZeroUsize, run: impl Fn(Id, &Turn) -> Result<()> + Sync) -> Result<()> {
        super::run(deps, jobs, run, |id, error| error.context(format!("instance {id}")))
    }

    fn jobs(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn each_runs_once_after_its_dependencies() {
        let deps = vec![vec![], vec![0], vec![0, 0], vec![1, 2], vec![]];
        for n in [1, 4] {
            let (seen, have_turns) = (Mutex::new(vec![]), AtomicUsize::new(0));
            run(&deps, jobs(n), |id, turn| {
                turn.take()?;
                assert!(have_turns.fetch_add(1, Ordering::SeqCst) < n);
                {
                    let mut seen = seen.lock().unwrap();
                    assert!(deps[id].iter().all(|d| seen.contains(d)));
                    seen.push(id);
                }
                have_turns.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
            .unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn of_those_that_wait_for_a_turn_the_first_in_the_graphs_order_has_it() {
        for _ in 0..50 {
            let (seen, begun) = (Mutex::new(vec![]), Barrier::new(3));
            run(&[vec![], vec![], vec![]], jobs(1), |id, turn| {
                if id == 0 {
                    turn.take()?;
                }
                begun.wait();
                turn.take()?;
                seen.lock().unwrap().push(id);
                while id == 0 && turn.shared.lock().waiting.len() < 2 {
                    std::thread::yield_now();
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(seen.into_inner().unwrap(), [0, 1, 2]);
        }
    }

    #[test]
    fn one_that_breaks_off_is_an_error_and_nobody_waits_for_it() {
        for n in [1, 4] {
            let broke = run(&[vec![], vec![0], vec![]], jobs(n), |id, turn| {
                turn.take()?;
                if id == 0 { panic!("on purpose") } else { Ok(()) }
            });
            assert_eq!(broke.unwrap_err().what(), format!("instance 0: {BROKE_OFF}"));
        }
    }

    #[test]
    fn after_an_error_nothing_new_begins() {
        let deps = vec![vec![], vec![0], vec![1]];
        let seen = Mutex::new(vec![]);
        let error = run(&deps, jobs(2), |id, turn| {
            turn.take()?;
            seen.lock().unwrap().push(id);
            if id == 1 { Err(Error::failed("one")) } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().what(), "instance 1: one");
        assert_eq!(*seen.lock().unwrap(), [0, 1]);
    }

    #[test]
    fn no_more_have_a_turn_than_there_are_jobs_and_one_more_works_without() {
        for n in [1, 3] {
            let (have, all) = (AtomicUsize::new(0), Barrier::new(n + 1));
            run(&vec![vec![]; n + 1], jobs(n), |_, turn| {
                turn.take()?;
                turn.take()?;
                assert!(have.fetch_add(1, Ordering::SeqCst) < n);
                std::thread::sleep(Duration::from_millis(10));
                have.fetch_sub(1, Ordering::SeqCst);
                turn.give();
                turn.give();
                // No one is done before the last has had its turn.
                all.wait();
                Ok(())
            })
            .unwrap();
        }
    }

    #[test]
    fn what_waits_for_its_turn_when_something_fails_is_called_off_and_no_error() {
        let seen = Mutex::new(vec![]);
        let error = run(&[vec![], vec![], vec![]], jobs(1), |id, turn| {
            turn.take()?;
            seen.lock().unwrap().push(id);
            std::thread::sleep(Duration::from_millis(20));
            Err(Error::failed(format!("failed: {}", seen.lock().unwrap().len())))
        });
        assert_eq!(error.unwrap_err().what(), "instance 0: failed: 1");
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
}
