//! Lock files of languages: what they pin becomes sources, fetched outside of the sandbox by digest.
//!
//! A lock file is read from the package's folder like a build file: regular, of bounded size, no link
//! in its path. What it doesn't pin by a digest is an error with its line.

mod cargo;
mod node;
mod python;

use std::io::Read;
use std::path::Path;

use super::search_path::BUILD_FILE;
use super::seen;
use super::spec::Source;
use crate::error::{Error, Kind, Place, Result};
use crate::label::Package;
use crate::sys::root::Root;
use crate::tree::RootPath;

pub use cargo::crates;
pub use node::packages;
pub use python::wheels;

/// Bytes of a lock file.
const SIZE: u64 = 32 << 20;
/// Packages of a lock file.
const PACKAGES: usize = 50_000;

/// A lock file that was read.
pub struct Lock {
    /// What messages call it.
    name: String,
    text: String,
}

impl Lock {
    /// Reads one of a package.
    pub fn read(folder: &Path, package: &Package, path: &str) -> Result<Self> {
        let name = Path::new(package.path()).join(path).display().to_string();
        let wrong = |e: Error| {
            e.with_kind(Kind::Request).next("name a lock file of this package: a regular file, no link in its path")
        };
        let below = RootPath::new(path).map_err(wrong)?;
        let root = Root::open(folder).map_err(wrong)?;
        if root.stat(&below).map_err(wrong)?.is_none() {
            return Err(wrong(Error::request(format!("there is no file {path:?} in {package}"))));
        }
        let began = seen::Moment::now();
        let file = root.open_file(&below).map_err(wrong)?;
        let mut bytes = vec![];
        (&file).take(SIZE + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", &name, e))?;
        seen::folders_above(&folder.join(path), folder);
        seen::file(&folder.join(path), &file, began, &bytes);
        if below.name() == BUILD_FILE.as_bytes() {
            // An edit of it must change more than its own package.
            seen::untold();
        }
        if bytes.len() as u64 > SIZE {
            return Err(Error::request(format!("{name} is longer than {SIZE} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| Error::request(format!("{name} is not UTF-8")))?;
        Ok(Self { name, text })
    }

    /// An error about what stands at a byte of it.
    fn error(&self, at: usize, what: impl Into<String>) -> Error {
        let at = (0..=at.min(self.text.len())).rev().find(|i| self.text.is_char_boundary(*i)).unwrap_or(0);
        let start = self.text[..at].rfind('\n').map_or(0, |i| i + 1);
        let source: String = self.text[start..].lines().next().unwrap_or("").chars().take(200).collect();
        let column = self.text[start..at].chars().count() + 1;
        let length = source.chars().count().saturating_sub(column - 1).max(1);
        let line = self.text[..at].matches('\n').count() + 1;
        Error::request(what).at(Place { file: self.name.clone(), line, column, length, source: Some(source) }, "")
    }

    fn bounded(&self, sources: Vec<Source>) -> Result<Vec<Source>> {
        if sources.len() > PACKAGES {
            return Err(Error::request(format!("{} pins more than {PACKAGES} packages", self.name)));
        }
        Ok(sources)
    }
}

/// A name or a version that may stand in a file name and in a URL.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn lock(name: &str, text: &str) -> Lock {
        Lock { name: name.to_string(), text: text.to_string() }
    }

    #[test]
    fn only_a_regular_file_of_the_package_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let here = Package::new("app").unwrap();
        std::fs::write(folder.path().join("lock"), "x").unwrap();
        std::os::unix::fs::symlink("lock", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", folder.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        std::fs::File::create(folder.path().join("long")).unwrap().set_len(SIZE + 1).unwrap();
        assert_eq!(Lock::read(folder.path(), &here, "lock").unwrap().name, "app/lock");
        for bad in ["link", "etc/passwd", "fifo", "long", "missing", "../lock", "."] {
            let error = Lock::read(folder.path(), &here, bad).err().unwrap_or_else(|| panic!("{bad}"));
            assert_eq!(error.kind(), Kind::Request, "{bad}");
        }
    }
}
