//! A pod.
use std::path::PathBuf;
use crate::build_file::spec::{Id, Pod};
use crate::error::{Error,Result};
use crate::execute::build::Build;

impl Build<'_> {
    pub(super) fn pod(&self, _id: Id, _pod: &Pod) -> Result<PathBuf> { Err(Error::failed("no pods yet")) }
}
