//! The one error of the crate: what went wrong, where, why, and what to do next.
//!
//! It knows no other module. A function low down says what failed and at which path; whoever
//! calls it adds what it knows (the label, the line, the next step) and passes it on. An error is
//! returned or reported, never both: only `cli` reports.

use std::fmt;
use std::path::Path;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault it is; gives the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// The build failed: exit code 1.
    Failed,
    /// The request was wrong (command line, build file, lock): exit code 2.
    Request,
}

/// A place in a text: a build file, a lock file, a script.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The file as the user knows it (relative to the workspace where it lies below it).
    pub file: String,
    /// First line, from 1.
    pub line: usize,
    /// First column, from 1, in characters.
    pub column: usize,
    /// How many characters are underlined on that line (at least 1).
    pub length: usize,
    /// The text of that line, when it is known.
    pub source: Option<String>,
}

/// What went wrong, where, why, and what to do next.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Inner {
    kind: Kind,
    what: String,
    places: Vec<(Place, String)>,
    why: Vec<String>,
    next: Option<String>,
    others: Vec<Error>,
}

impl Error {
    /// The build failed.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what.into())
    }

    /// The request was wrong.
    pub fn request(what: impl Into<String>) -> Self {
        Self::new(Kind::Request, what.into())
    }

    fn new(kind: Kind, what: String) -> Self {
        Self(Box::new(Inner { kind, what, places: vec![], why: vec![], next: None, others: vec![] }))
    }

    /// A system call or file operation at a path: `open(/a/b): No such file or directory`.
    pub fn io(call: &str, path: impl AsRef<Path>, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let path = path.as_ref();
        let made = Self::failed(format!("{call}({}): {}", path.display(), Plain(&error)));
        match error.raw_os_error() {
            // A name without its folder says nothing of the file system: who knows it will say so.
            _ if path.is_relative() => made,
            Some(libc::ENOSPC) => made.next(format!("make room on the file system that holds {}", path.display())),
            Some(libc::EDQUOT) => {
                made.next(format!("your quota on the file system that holds {} is used up", path.display()))
            }
            _ => made,
        }
    }

    /// Adds a place, with a word on what is there (may be empty).
    pub fn at(mut self, place: Place, note: impl Into<String>) -> Self {
        self.0.places.push((place, note.into()));
        self
    }

    /// Adds a reason.
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.0.why.push(why.into());
        self
    }

    /// Says what to do next. The first one said stays: it was said nearest to the cause.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.0.next.get_or_insert_with(|| next.into());
        self
    }

    /// Puts words before what went wrong: `rule //app:build: …`.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.what = format!("{context}: {}", self.0.what);
        self
    }

    /// The same error as the other kind.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Several errors as one; `None` when there are none.
    pub fn all(errors: Vec<Error>) -> Option<Error> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        first.0.others.extend(errors);
        Some(first)
    }

    /// The same change to this error and to those found with it.
    pub fn each(mut self, change: impl Fn(Error) -> Error) -> Error {
        let others = std::mem::take(&mut self.0.others);
        let mut changed = change(self);
        changed.0.others = others.into_iter().map(change).collect();
        changed
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// 1 or 2, as the design has them.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Failed => 1,
            Kind::Request => 2,
        }
    }

    /// What went wrong, in one line.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// Where, each with a word on it.
    pub fn places(&self) -> &[(Place, String)] {
        &self.0.places
    }

    /// Why.
    pub fn reasons(&self) -> &[String] {
        &self.0.why
    }

    /// What to do next.
    pub fn next_step(&self) -> Option<&str> {
        self.0.next.as_deref()
    }

    /// The other errors that were found in the same pass.
    pub fn others(&self) -> &[Error] {
        &self.0.others
    }
}

/// An `io::Error` without Rust's "(os error 2)".
struct Plain<'a>(&'a std::io::Error);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        for why in &self.0.why {
            write!(f, "\nwhy:  {why}")?;
        }
        if let Some(next) = &self.0.next {
            write!(f, "\nnext: {next}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_gives_the_exit_code() {
        assert_eq!(Error::failed("x").exit_code(), 1);
        assert_eq!(Error::request("x").exit_code(), 2);
    }

    #[test]
    fn a_full_disk_names_the_path_and_the_next_step() {
        let error = Error::io("write", "/store/blobs/x", std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.what(), "write(/store/blobs/x): No space left on device");
        assert!(error.next_step().unwrap().contains("/store/blobs/x"));
    }

    #[test]
    fn the_first_next_step_stays() {
        assert_eq!(Error::failed("x").next("a").next("b").next_step(), Some("a"));
    }

    #[test]
    fn several_errors_are_one_that_carries_the_others() {
        assert!(Error::all(vec![]).is_none());
        let one = Error::all(vec![Error::request("a"), Error::failed("b")]).unwrap();
        assert_eq!((one.what(), one.others()[0].what()), ("a", "b"));
        let each = one.each(|error| error.context("rule"));
        assert_eq!((each.what(), each.others()[0].what()), ("rule: a", "rule: b"));
    }
}
