//! The harness: a test reads like a session at a terminal.
//!
//! ```ignore
//! let ws = Workspace::tiny();
//! ws.file("app/build.star", HELLO);
//! ws.run("build //app:web/build_image").success().stdout_has("//app:build");
//! ```
//!
//! Nothing of the machine reaches a test: it has its own home, store, environment and an empty
//! `PATH`. Started by root, a test runs the binary as an ordinary user who has no subordinate IDs;
//! only the *child* changes its user, so tests may also run as threads of one process.
//!
//! On disk, below `$TAPEOUT_TEST_DIR` (default: `/var/tmp/tapeout-tests-<who>-<which checkout>`):
//! `bin/<binary>/tapeout` (world-readable), `tiny-root/` (a builder made of busybox alone),
//! `shared-<binary>/` (one store with a Debian builder; it is safe for many builds at once) and
//! `work/` (one folder a test, removed at its end unless `TAPEOUT_TEST_KEEP` is set).

pub mod containers;
pub mod examples;
pub mod image;
pub mod needs;
pub mod outcome;
pub mod places;
pub mod registry;
pub mod user;
pub mod workspace;

pub use image::Layout;
pub use needs::have;
pub use outcome::Outcome;
pub use user::User;
pub use workspace::Workspace;
