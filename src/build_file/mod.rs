//! Build files: the workspace, the Starlark that people write, and what it says as plain data.

pub mod spec;
