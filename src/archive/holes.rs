//! Files of holes stay files of holes when they are unpacked: no disk is taken for zeros, whoever packed them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Fewer zeros are written: file systems take space in blocks of this.
pub(super) const BLOCK: usize = 4096;

/// Writes an empty file, where a write of nothing but zeros leaves a hole.
#[derive(Debug)]
pub struct WithHoles {
    file: File,
    length: u64,
    ends_in_hole: bool,
}

impl WithHoles {
    /// An empty file that is open for writing.
    pub fn new(file: File) -> Self {
        Self { file, length: 0, ends_in_hole: false }
    }

    /// The file, at its full length.
    pub fn finish(self) -> io::Result<File> {
        if self.ends_in_hole {
            self.file.set_len(self.length)?;
        }
        Ok(self.file)
    }
}

impl Write for WithHoles {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let hole = bytes.len() >= BLOCK && bytes.iter().all(|byte| *byte == 0);
        let n = if hole {
            self.file.seek(SeekFrom::Current(bytes.len() as i64))?;
            bytes.len()
        } else {
            self.file.write(bytes)?
        };
        if n > 0 {
            self.ends_in_hole = hole;
        }
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_take_no_disk_and_are_there() {
        let (text, zeros) = (vec![7; 10_000], vec![0; 1 << 20]);
        for pieces in [vec![&zeros], vec![&text, &zeros], vec![&zeros, &text, &zeros], vec![&text, &zeros, &text]] {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("x");
            let mut file = WithHoles::new(File::create(&path).unwrap());
            for piece in &pieces {
                file.write_all(piece).unwrap();
            }
            let file = file.finish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), pieces.into_iter().flatten().copied().collect::<Vec<_>>());
            assert!(file.metadata().unwrap().blocks() * 512 < 1 << 19);
        }
    }
}
