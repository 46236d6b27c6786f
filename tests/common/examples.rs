//! The example workspace, built once for all tests that look at what came out.

use std::path::PathBuf;
use std::time::Duration;

use super::{Workspace, places};

/// The example workspace as it stands in the repository.
pub fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The images of the examples: package and name.
pub const IMAGES: [(&str, &str); 4] = [("hello", "hello"), ("redis", "redis"), ("lua", "lua"), ("shop/web", "web")];

/// A workspace that holds the examples, in the shared store.
pub fn workspace() -> Workspace {
    let workspace = Workspace::debian();
    workspace.copy(&source(), "");
    workspace
}

/// What a build of all examples wrote, in the form that is asked for: `zstd` or `gzip`.
pub fn output(compression: &str) -> PathBuf {
    let folder = super::workspace::shared().join(format!("examples-{compression}"));
    let name = folder.strip_prefix(places::base()).expect("below the base").display().to_string();
    places::once(&name, |folder| {
        let mut workspace = workspace();
        workspace.limit = Duration::from_secs(540);
        workspace.user.owns(folder);
        let parameter = format!("//images:compression={compression}");
        workspace
            .run_words(&["build", "--parameter", &parameter, "--output", &folder.display().to_string(), "//..."])
            .success();
    })
}
