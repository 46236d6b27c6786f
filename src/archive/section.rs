//! A part of a file, read in place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes of a file from an offset on. Clones of it share the file and nothing else: each has a place of its own.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    start: u64,
    size: u64,
    at: u64,
}

impl Section {
    /// So many bytes of a file from `start`.
    pub fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, size, at: 0 }
    }

    /// A whole file.
    pub fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, size))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.start + self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the start"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_section_is_a_file_of_its_own() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut section = Section::new(Arc::new(file), 2, 5);
        let mut text = String::new();
        section.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), section.size()), ("23456", 5));
        assert_eq!(section.seek(SeekFrom::End(-2)).unwrap(), 3);
        let mut other = section.clone();
        assert_eq!(io::read_to_string(&mut section).unwrap(), "56");
        assert_eq!(io::read_to_string(&mut other).unwrap(), "56");
        assert!(section.seek(SeekFrom::Current(-6)).is_err());
    }
}
