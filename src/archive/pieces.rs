//! Bytes on their way from one thread to another, in pieces, with a bound on how many wait.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How large a piece is.
pub const PIECE: usize = 256 << 10;

/// Writes pieces for the other thread.
pub struct PieceWriter {
    piece: Vec<u8>,
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// Takes pieces from the other thread.
pub struct PieceReader {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
}

/// A way on which so many pieces wait at most.
pub fn pieces(waiting: usize) -> (PieceWriter, PieceReader) {
    let (full, full_end) = sync_channel(waiting);
    let (empty, empty_end) = sync_channel(waiting + 2);
    (PieceWriter { piece: Vec::with_capacity(PIECE), full, empty: empty_end }, PieceReader { full: full_end, empty })
}

impl PieceWriter {
    /// Sends a piece as it is, and takes an empty one back.
    fn send(&mut self, piece: Vec<u8>) -> io::Result<Vec<u8>> {
        self.full.send(piece).map_err(|_| io::Error::other("the thread that takes it ended early"))?;
        Ok(self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE)))
    }

    /// Sends what is left. Without this the reader sees an early end.
    pub fn end(mut self) -> io::Result<()> {
        let last = std::mem::take(&mut self.piece);
        if last.is_empty() { Ok(()) } else { self.send(last).map(drop) }
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            let full = std::mem::take(&mut self.piece);
            self.piece = self.send(full)?;
        }
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PieceReader {
    /// The next piece; `None` at the end, or when the writer is gone.
    pub fn next(&self) -> Option<Vec<u8>> {
        self.full.recv().ok()
    }

    /// Gives a piece back, to be filled again.
    pub fn done(&self, mut piece: Vec<u8>) {
        piece.clear();
        let _ = self.empty.try_send(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_in_pieces_and_whole() {
        let content: Vec<u8> = (0..3 * PIECE + 5).map(|n| (n % 251) as u8).collect();
        let content = content.as_slice();
        let (mut writer, reader) = pieces(2);
        let taken = std::thread::scope(|scope| {
            scope.spawn(move || {
                content.chunks(PIECE - 1).for_each(|part| writer.write_all(part).unwrap());
                writer.end().unwrap();
            });
            let mut taken = vec![];
            while let Some(piece) = reader.next() {
                assert!(piece.len() <= PIECE);
                taken.extend_from_slice(&piece);
                reader.done(piece);
            }
            taken
        });
        assert!(taken == content);
    }
}
