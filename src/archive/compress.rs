//! Compression whose bytes depend on the input alone: never on the number of threads, nor on how
//! the input was cut into writes.
//!
//! zstd gets a fixed job size and always at least one worker (with none it takes another path
//! through the library). gzip is one member made of blocks that are deflated side by side, each
//! with the 32 KiB before it as its dictionary, the way pigz does it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::{Compress, Compression as Level, Crc, FlushCompress, Status};

/// A writer that compresses; [`Compressor::finish`] ends it and gives back what it wrote to.
pub enum Compressor<W: Write> {
    /// As it comes.
    Plain(W),
    /// One zstd frame.
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
    /// One gzip member.
    Gzip(Box<Gzip<W>>),
}

/// zstd's own default, which is where more time stops to buy much.
const ZSTD_LEVEL: i32 = 3;
/// Fixed, so that the bytes are: zstd would choose it from the window otherwise. Each worker holds
/// a few of these.
const ZSTD_JOB: u32 = 4 << 20;
/// More workers would only want more memory.
const MOST_WORKERS: usize = 6;

impl<W: Write> Compressor<W> {
    /// Passes everything on.
    pub fn plain(out: W) -> Self {
        Self::Plain(out)
    }

    /// Compresses with zstd on so many threads.
    pub fn zstd(out: W, threads: NonZeroUsize) -> io::Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
        encoder.set_parameter(zstd::zstd_safe::CParameter::NbWorkers(threads.get().min(MOST_WORKERS) as u32))?;
        encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(ZSTD_JOB))?;
        Ok(Self::Zstd(Box::new(encoder)))
    }

    /// Compresses with gzip on so many threads.
    pub fn gzip(out: W, threads: NonZeroUsize) -> io::Result<Self> {
        Ok(Self::Gzip(Box::new(Gzip::new(out, threads)?)))
    }

    /// Ends the compressed stream.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(gzip) => gzip.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
        }
    }

    /// Does nothing: a flush in the middle would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Input bytes of one block. Each block begins with new Huffman codes, so larger ones are smaller
/// in sum; several are in memory for each thread.
const GZIP_BLOCK: usize = 1 << 20;
const GZIP_LEVEL: u32 = 6;
const WINDOW: usize = 32 << 10;
/// No name, no time, made on Unix (RFC 1952).
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// One block on its way to a worker: its bytes, the block before it, and whether it is the last.
struct Job {
    bytes: Arc<Vec<u8>>,
    before: Option<Arc<Vec<u8>>>,
    last: bool,
    answer: SyncSender<Deflated>,
}

/// A block that came back.
struct Deflated {
    bytes: io::Result<Vec<u8>>,
    crc: Crc,
}

/// gzip on several threads.
pub struct Gzip<W: Write> {
    out: W,
    block: Vec<u8>,
    before: Option<Arc<Vec<u8>>>,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
    /// Answers in the order of the blocks.
    waiting: VecDeque<Receiver<Deflated>>,
    crc: Crc,
    most_waiting: usize,
}

impl<W: Write> Gzip<W> {
    fn new(mut out: W, threads: NonZeroUsize) -> io::Result<Self> {
        out.write_all(&GZIP_HEADER)?;
        let threads = threads.get().min(16);
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(std::sync::Mutex::new(queue));
        let workers = (0..threads).map(|_| spawn_worker(Arc::clone(&queue))).collect::<io::Result<_>>()?;
        Ok(Self {
            out,
            block: Vec::with_capacity(GZIP_BLOCK),
            before: None,
            jobs: Some(jobs),
            workers,
            waiting: VecDeque::new(),
            crc: Crc::new(),
            most_waiting: threads + 2,
        })
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        let bytes = Arc::new(std::mem::replace(&mut self.block, Vec::with_capacity(GZIP_BLOCK)));
        let (answer, answered) = sync_channel(1);
        let before = self.before.replace(Arc::clone(&bytes));
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { bytes, before, last, answer }));
        if !matches!(sent, Some(Ok(()))) {
            return Err(io::Error::other("a compressing thread ended early"));
        }
        self.waiting.push_back(answered);
        while self.waiting.len() > self.most_waiting {
            self.take()?;
        }
        Ok(())
    }

    /// Writes the oldest block that is out.
    fn take(&mut self) -> io::Result<()> {
        let Some(answered) = self.waiting.pop_front() else { return Ok(()) };
        let deflated = answered.recv().map_err(|_| io::Error::other("a compressing thread ended early"))?;
        self.crc.combine(&deflated.crc);
        self.out.write_all(&deflated.bytes?)
    }

    fn finish(mut self) -> io::Result<W> {
        self.send(true)?;
        while !self.waiting.is_empty() {
            self.take()?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a compressing thread ended early"))?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        // The size modulo 2^32, as RFC 1952 has it.
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full block waits for one more byte, so that the last one is never an empty one after it.
        if self.block.len() == GZIP_BLOCK && !bytes.is_empty() {
            self.send(false)?;
        }
        let n = bytes.len().min(GZIP_BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spawn_worker(queue: Arc<std::sync::Mutex<Receiver<Job>>>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("gzip".into()).spawn(move || {
        loop {
            // The lock is held while waiting; the worker that gets the job lets the next one wait.
            let Ok(job) = queue.lock().map_err(drop).and_then(|queue| queue.recv().map_err(drop)) else { return };
            let mut crc = Crc::new();
            crc.update(&job.bytes);
            let bytes = deflate_block(&job);
            // Nobody waits for it any more: the writer was dropped.
            let _ = job.answer.send(Deflated { bytes, crc });
        }
    })
}

/// Deflates one block as a run of whole bytes: ended by a sync flush, or as the end of the stream.
///
/// With a state of its own: after a reset, what the window held before can show in the bytes.
fn deflate_block(job: &Job) -> io::Result<Vec<u8>> {
    let mut deflate = Compress::new(Level::new(GZIP_LEVEL), false);
    if let Some(before) = &job.before {
        let from = before.len().saturating_sub(WINDOW);
        deflate.set_dictionary(&before[from..]).map_err(io::Error::other)?;
    }
    let flush = if job.last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut out = Vec::with_capacity(job.bytes.len() / 2 + 1024);
    loop {
        let done = deflate.total_in() as usize;
        let status = deflate.compress_vec(&job.bytes[done..], &mut out, flush).map_err(io::Error::other)?;
        let all_in = deflate.total_in() as usize == job.bytes.len();
        match status {
            Status::StreamEnd => return Ok(out),
            // A sync flush is complete when room is left in the output.
            Status::Ok | Status::BufError if !job.last && all_in && out.len() < out.capacity() => return Ok(out),
            _ => out.reserve(64 << 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn threads(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    /// Bytes that compress a little, always the same.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                b"the quick brown fox"[(state >> 33) as usize % 19]
            })
            .collect()
    }

    fn compress(make: &dyn Fn(Vec<u8>) -> Compressor<Vec<u8>>, bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut out = make(vec![]);
        for piece in bytes.chunks(piece) {
            out.write_all(piece).unwrap();
        }
        out.finish().unwrap()
    }

    #[test]
    fn gzip_comes_back_at_every_length() {
        for length in [0, 1, WINDOW, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, 3 * GZIP_BLOCK, 5 * GZIP_BLOCK + 77] {
            let bytes = sample(length);
            let packed = compress(&|out| Compressor::gzip(out, threads(2)).unwrap(), &bytes, 100_000);
            let mut back = vec![];
            let mut reader = flate2::bufread::GzDecoder::new(packed.as_slice());
            reader.read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{length}");
            assert!(reader.into_inner().is_empty(), "one member alone");
        }
    }

    #[test]
    fn zstd_comes_back() {
        let bytes = sample(9 << 20);
        let packed = compress(&|out| Compressor::zstd(out, threads(2)).unwrap(), &bytes, 1 << 20);
        assert!(zstd::stream::decode_all(packed.as_slice()).unwrap() == bytes);
    }

    #[test]
    fn the_bytes_depend_on_neither_threads_nor_pieces() {
        let bytes = sample(10 << 20);
        let gzip = |n| compress(&move |out| Compressor::gzip(out, threads(n)).unwrap(), &bytes, 1000 * n + 1);
        let zstd = |n| compress(&move |out| Compressor::zstd(out, threads(n)).unwrap(), &bytes, 100_000 * n + 1);
        assert!(gzip(1) == gzip(2) && gzip(1) == gzip(5));
        assert!(zstd(1) == zstd(2) && zstd(1) == zstd(5));
    }

    #[test]
    fn what_does_not_compress_comes_back_too() {
        let mut state = 7u64;
        let noise: Vec<u8> = (0..700_000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let packed = compress(&|out| Compressor::gzip(out, threads(2)).unwrap(), &noise, 4096);
        let mut back = vec![];
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut back).unwrap();
        assert!(back == noise);
    }

    #[test]
    fn an_error_of_the_writer_is_seen() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes.len() == 10 { Ok(10) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Compressor::gzip(Full, threads(2)).unwrap();
        let wrote = out.write_all(&sample(4 << 20)).and_then(|()| out.finish().map(drop));
        assert_eq!(wrote.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }
}
