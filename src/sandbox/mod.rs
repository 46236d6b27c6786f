//! The sandbox: namespaces, the snapshot, recorded owners.
//!
//! Three processes, one file each, two for the one between:
//!
//! ```text
//! start.rs  outside   makes the namespaces, sends the plan, waits until all inside are dead
//! init.rs   PID 1     carries out the plan
//! watch.rs  PID 1     starts the steps, answers (asked.rs) chown, mknod (owner.rs), rename (rename.rs) and, without mounts, /proc (answered.rs)
//! step.rs   the rule  no capability, descriptor or signal more than a build needs (filter.rs)
//! ```
//!
//! `place.rs` finds out what this place gives, `cgroup.rs` whether a rule's memory can be limited as a whole; `machine.rs` and `findings.rs` tell people about it. `spec.rs` is what a caller wants, `plan.rs` the ordered list of what is done for it, as data.
//! Init is a child of the nursery (`sys/nursery.rs`), which is our own executable, run from a sealed
//! memfd once per command. The nursery dies with the command, init with the nursery, and everything
//! inside with init, because it is PID 1 there. Nothing is mounted outside of
//! the new mount namespace: after a kill there is nothing to clean up but folders of the caller.

mod answered;
mod asked;
mod cgroup;
mod filter;
pub mod findings;
mod init;
mod lists;
pub mod machine;
mod owner;
mod place;
mod plan;
pub mod probe;
mod range;
mod rename;
mod seen;
mod spec;
mod start;
mod step;
mod watch;

pub use findings::{Finding, State, findings};
pub use init::take_over_if_asked;
pub use machine::Machine;
pub use place::{Isolation, Place, Snapshots, Wish};
pub use plan::{Operation, plan};
pub use range::give_back;
pub use seen::{Facts, Known, KnownFile};
pub use spec::{Above, Bind, Hit, Outcome, Recorded, Secret, Spec, Standard, Status};
pub use start::{Turn, run, run_in_turn, run_on_terminal, run_with};
pub use watch::NO_OWNERS;
