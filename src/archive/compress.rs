//! Compression whose bytes depend on the input alone: never on the number of threads, nor on how
//! the input was cut into writes.
//!
//! zstd gets a fixed job size and always at least one worker (with none it takes another path
//! through the library). gzip is a run of members, one for each block of the input, made side by
//! side: RFC 1952 says that such a run is one file, and layers that are read in parts (eStargz) have
//! made every registry and runtime read it. libdeflate, which makes them, wants a whole block at once
//! and is more than twice as fast as what compresses a stream.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use libdeflater::{CompressionLvl, Compressor as Deflate};
use zstd::zstd_safe::CParameter;

/// A writer that compresses; [`Compressor::finish`] ends it and gives back what it wrote to.
pub enum Compressor<W: Write> {
    /// As it comes.
    Plain(W),
    /// One zstd frame.
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
    /// gzip members.
    Gzip(Box<Gzip<W>>),
}

/// zstd's own default, which is where more time stops to buy much.
const ZSTD_LEVEL: u8 = 3;
/// Higher ones want more memory of whoever unpacks than a reader of layers must have.
pub const ZSTD_MOST: u8 = 19;
/// Fixed, so that the bytes are: zstd would choose it from the window otherwise. Each worker holds
/// a few of these.
const ZSTD_JOB: u32 = 4 << 20;
/// So much is written at once: a file system takes it in fewer steps than zstd's own 32 KiB.
const ZSTD_OUT: usize = 256 << 10;
/// More workers would only want more memory.
const MOST_WORKERS: usize = 6;

impl<W: Write> Compressor<W> {
    /// Passes everything on.
    pub fn plain(out: W) -> Self {
        Self::Plain(out)
    }

    /// Compresses with zstd on so many threads. Levels: 1 to [`ZSTD_MOST`].
    pub fn zstd(out: W, level: Option<u8>, threads: NonZeroUsize) -> io::Result<Self> {
        let level = level.unwrap_or(ZSTD_LEVEL).clamp(1, ZSTD_MOST);
        let mut encoder = zstd::stream::raw::Encoder::new(level.into())?;
        encoder.set_parameter(CParameter::NbWorkers(threads.get().min(MOST_WORKERS) as u32))?;
        encoder.set_parameter(CParameter::JobSize(ZSTD_JOB))?;
        let writer = zstd::stream::zio::Writer::new_with_capacity(out, encoder, ZSTD_OUT);
        Ok(Self::Zstd(Box::new(zstd::stream::write::Encoder::with_writer(writer))))
    }

    /// Compresses with gzip on so many threads. Levels: 1 to [`GZIP_MOST`].
    pub fn gzip(out: W, level: Option<u8>, threads: NonZeroUsize) -> io::Result<Self> {
        Ok(Self::Gzip(Box::new(Gzip::new(out, level.unwrap_or(GZIP_LEVEL), threads)?)))
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

/// Input bytes of one member. Each begins with new Huffman codes and an empty window, so larger ones
/// are smaller in sum; several are in memory for each thread.
const GZIP_BLOCK: usize = 1 << 20;
/// gzip's own default.
const GZIP_LEVEL: u8 = 6;
/// libdeflate's highest: slow, and a few per cent smaller than gzip's 9.
pub const GZIP_MOST: u8 = 12;

/// One block on its way to a worker.
struct Job {
    bytes: Vec<u8>,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

/// gzip on several threads.
pub struct Gzip<W: Write> {
    out: W,
    block: Vec<u8>,
    /// A member was begun: an empty input has one too.
    begun: bool,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
    /// Answers in the order of the blocks.
    waiting: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    most_waiting: usize,
}

impl<W: Write> Gzip<W> {
    fn new(out: W, level: u8, threads: NonZeroUsize) -> io::Result<Self> {
        let level = CompressionLvl::new(level.clamp(1, GZIP_MOST).into())
            .map_err(|_| io::Error::other("libdeflate doesn't know this level"))?;
        let threads = threads.get().min(16);
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(std::sync::Mutex::new(queue));
        let workers = (0..threads).map(|_| spawn_worker(Arc::clone(&queue), level)).collect::<io::Result<_>>()?;
        Ok(Self {
            out,
            block: Vec::with_capacity(GZIP_BLOCK),
            begun: false,
            jobs: Some(jobs),
            workers,
            waiting: VecDeque::new(),
            most_waiting: threads + 2,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        let bytes = std::mem::replace(&mut self.block, Vec::with_capacity(GZIP_BLOCK));
        let (answer, answered) = sync_channel(1);
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { bytes, answer }));
        if !matches!(sent, Some(Ok(()))) {
            return Err(io::Error::other("a compressing thread ended early"));
        }
        self.begun = true;
        self.waiting.push_back(answered);
        while self.waiting.len() > self.most_waiting {
            self.take()?;
        }
        Ok(())
    }

    /// Writes the oldest block that is out.
    fn take(&mut self) -> io::Result<()> {
        let Some(answered) = self.waiting.pop_front() else { return Ok(()) };
        let member = answered.recv().map_err(|_| io::Error::other("a compressing thread ended early"))?;
        self.out.write_all(&member?)
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() || !self.begun {
            self.send()?;
        }
        while !self.waiting.is_empty() {
            self.take()?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a compressing thread ended early"))?;
        }
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(GZIP_BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        if self.block.len() == GZIP_BLOCK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spawn_worker(queue: Arc<std::sync::Mutex<Receiver<Job>>>, level: CompressionLvl) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("gzip".into()).spawn(move || {
        let mut deflate = Deflate::new(level);
        loop {
            // The lock is held while waiting; the worker that gets the job lets the next one wait.
            let Ok(job) = queue.lock().map_err(drop).and_then(|queue| queue.recv().map_err(drop)) else { return };
            let member = member(&mut deflate, &job.bytes);
            // Nobody waits for it any more: the writer was dropped.
            let _ = job.answer.send(member);
        }
    })
}

/// One block as a gzip member: no name and no time in its header.
fn member(deflate: &mut Deflate, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; deflate.gzip_compress_bound(bytes.len())];
    let size = deflate.gzip_compress(bytes, &mut out).map_err(io::Error::other)?;
    out.truncate(size);
    Ok(out)
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
        for length in [0, 1, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, 3 * GZIP_BLOCK, 5 * GZIP_BLOCK + 77] {
            let bytes = sample(length);
            let packed = compress(&|out| Compressor::gzip(out, None, threads(2)).unwrap(), &bytes, 100_000);
            assert!(unpacked(&packed) == bytes, "{length}");
            let members = packed.windows(4).filter(|four| *four == [0x1f, 0x8b, 8, 0]).count();
            assert_eq!(members, length.div_ceil(GZIP_BLOCK).max(1), "{length}");
        }
    }

    fn unpacked(packed: &[u8]) -> Vec<u8> {
        let mut back = vec![];
        flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut back).unwrap();
        back
    }

    #[test]
    fn a_level_counts() {
        let bytes = (0..20_000u64).map(|i| format!("{} ", i * i)).collect::<String>().into_bytes();
        let gzip = |level| compress(&move |out| Compressor::gzip(out, Some(level), threads(2)).unwrap(), &bytes, 4096);
        let zstd = |level| compress(&move |out| Compressor::zstd(out, Some(level), threads(2)).unwrap(), &bytes, 4096);
        assert!(gzip(12).len() < gzip(1).len() && unpacked(&gzip(12)) == bytes);
        assert!(zstd(19).len() < zstd(1).len() && zstd::stream::decode_all(zstd(19).as_slice()).unwrap() == bytes);
    }

    #[test]
    fn zstd_comes_back() {
        let bytes = sample(9 << 20);
        let packed = compress(&|out| Compressor::zstd(out, None, threads(2)).unwrap(), &bytes, 1 << 20);
        assert!(zstd::stream::decode_all(packed.as_slice()).unwrap() == bytes);
    }

    #[test]
    fn the_bytes_depend_on_neither_threads_nor_pieces() {
        let bytes = sample(10 << 20);
        let gzip = |n| compress(&move |out| Compressor::gzip(out, None, threads(n)).unwrap(), &bytes, 1000 * n + 1);
        let zstd = |n| compress(&move |out| Compressor::zstd(out, None, threads(n)).unwrap(), &bytes, 100_000 * n + 1);
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
        let packed = compress(&|out| Compressor::gzip(out, None, threads(2)).unwrap(), &noise, 4096);
        assert!(unpacked(&packed) == noise);
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
        let mut out = Compressor::gzip(Full, None, threads(2)).unwrap();
        let wrote = out.write_all(&sample(4 << 20)).and_then(|()| out.finish().map(drop));
        assert_eq!(wrote.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }
}
