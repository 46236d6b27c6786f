//! Build files: the workspace, the Starlark that people write, and what it says as plain data.

pub mod attributes;
pub mod data;
pub mod glob;
pub mod locks;
pub mod reference;
pub mod search_path;
pub mod seen;
pub mod spec;
pub mod starlark;
pub mod workspace;
