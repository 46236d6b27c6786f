//! Compression whose bytes depend on the input alone: never on the number of threads, nor on how the input was cut
//! into writes.
//!
//! The input goes in blocks, each packed by itself, side by side: a gzip file is a run of members (RFC 1952), a zstd
//! file one of frames (RFC 8878, 3.1). That costs about 0.3 % of size. Layers that are read in parts (eStargz,
//! zstd:chunked) have made every registry and runtime read both. A large file begins and ends blocks of its own
//! ([`Blocks::file`]): their packed bytes are the same in every stream that holds the file, so that [`Earlier`] ones
//! give them again.
//!
//! One thread fills blocks, one hashes them, others pack them, and the caller's hashes and writes what comes out. A
//! bounded number of blocks is on its way, so memory does not grow with the stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use libdeflater::{CompressionLvl, Compressor as Deflate};
use serde::{Deserialize, Serialize};

use crate::archive::decompress::ZSTD_WINDOW_LOG;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::sys::memory::Buffer;

/// Raised when the same input packs to other bytes: nothing that was packed before is then taken for it.
pub const FORMAT: u32 = 1;

/// What blocks are packed with. A level that isn't given is the format's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Nothing.
    Plain,
    /// zstd frames; levels 1 to [`ZSTD_MOST`].
    Zstd(Option<u8>),
    /// gzip members; levels 1 to [`GZIP_MOST`].
    Gzip(Option<u8>),
}

/// zstd's own default, which is where more time stops to buy much.
const ZSTD_LEVEL: u8 = 3;
/// Higher ones want more memory of whoever packs than they save.
pub const ZSTD_MOST: u8 = 19;
/// gzip's own default.
const GZIP_LEVEL: u8 = 6;
/// libdeflate's highest: slow, and a few per cent smaller than gzip's 9.
pub const GZIP_MOST: u8 = 12;

/// Input bytes of one block. Each begins with new tables and an empty window, so larger ones are smaller in sum;
/// several are in memory for each thread. gzip has a window of 32 KiB alone.
const ZSTD_BLOCK: usize = 4 << 20;
const GZIP_BLOCK: usize = 1 << 20;
/// From this level on zstd looks back so far that a block of 4 MiB would cost 2 % of size.
const ZSTD_FAR: u8 = 16;
const ZSTD_FAR_BLOCK: usize = 16 << 20;
/// A file of this size has blocks of its own. Its neighbours have little in common with it: layers get no larger by it.
const LARGE: u64 = 4 << 20;
/// More would only want more memory.
const ZSTD_THREADS: usize = 6;
const GZIP_THREADS: usize = 16;

impl Codec {
    fn threads(self, of: NonZeroUsize) -> usize {
        match self {
            Self::Plain => 1,
            Self::Zstd(_) => of.get().min(ZSTD_THREADS),
            Self::Gzip(_) => of.get().min(GZIP_THREADS),
        }
    }

    fn block(self) -> usize {
        match self {
            Self::Plain | Self::Gzip(_) => GZIP_BLOCK,
            Self::Zstd(Some(ZSTD_FAR..)) => ZSTD_FAR_BLOCK,
            Self::Zstd(_) => ZSTD_BLOCK,
        }
    }
}

/// A stream that was packed.
#[derive(Debug)]
pub struct Packed {
    /// Of what went in.
    pub plain: Digest,
    /// Of what came out.
    pub digest: Digest,
    /// Bytes that came out.
    pub size: u64,
    /// Where the large files are in it.
    pub files: PackedFiles,
}

/// Large files of a packed stream, by the digest of their content: where each block is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedFiles(BTreeMap<Digest, Vec<PackedBlock>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct PackedBlock {
    offset: u64,
    length: u64,
    sums: Option<Sums>,
}

/// Of the bytes of a block as they were and packed. Once it has been taken from an earlier stream they are known, and
/// the next one to take it need not unpack it; who packs it would have more to do for no one, as most are never taken.
/// They are BLAKE3's, which takes a third of the time: SHA-256 of both streams there is besides.
type Sums = ([u8; 32], [u8; 32]);

impl PackedFiles {
    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, of: Part, block: PackedBlock) {
        let blocks = self.0.entry(of.content).or_default();
        // The same content may come once more.
        if blocks.len() == of.index {
            blocks.push(block);
        }
    }
}

/// A stream that was packed before with the same codec. Its bytes are trusted for nothing: a block is taken where it
/// unpacks to the very bytes that are to be packed, or did so before and both are what they were by their sums. The
/// sums are a result in the store like any other.
#[derive(Debug)]
pub struct Earlier {
    /// Where it lies.
    pub file: File,
    /// What it holds.
    pub files: PackedFiles,
}

/// Packs what `fill` writes.
pub fn pack(
    codec: Codec,
    threads: NonZeroUsize,
    earlier: Option<&Earlier>,
    fill: impl FnOnce(&mut Blocks) -> Result<()> + Send,
    out: impl Write,
) -> Result<Packed> {
    let threads = codec.threads(threads);
    let (empty, empties) = sync_channel(threads + 2);
    let (jobs, queue) = sync_channel(1);
    let (hashed, to_hash) = sync_channel(1);
    let (answers, answered) = sync_channel(threads);
    std::thread::scope(|scope| {
        let hasher = spawn(scope, "hash", move || hash(to_hash))?;
        let queue = Arc::new(Mutex::new(queue));
        let mut packers = vec![];
        for _ in 0..threads {
            let queue = queue.clone();
            match spawn(scope, "pack", move || work(&queue, codec, earlier)) {
                Ok(packer) => packers.push(packer),
                // Where no more threads may be, one does it all.
                Err(_) if !packers.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        drop(queue);
        let mut blocks = Blocks {
            codec,
            block: None,
            begun: false,
            room: codec.block(),
            large: None,
            empties,
            empty,
            jobs,
            hashed,
            answers,
        };
        let filler = spawn(scope, "fill", move || fill(&mut blocks).and_then(|()| blocks.end()))?;
        // Its error ends the threads before it: what they send is no longer taken.
        let written = write(answered, out).map_err(|e| Error::io("write", "layer", e));
        // All are waited for: one that broke off is an error then, and takes nobody with it.
        let (filled, hashed) = (filler.join(), hasher.join());
        let packed = packers.into_iter().try_for_each(ScopedJoinHandle::join);
        let (digest, size, files) = written?;
        let joined = |_| Error::failed(ENDED);
        filled.map_err(joined)??;
        packed.map_err(joined)?;
        Ok(Packed { plain: hashed.map_err(joined)?, digest, size, files })
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.into()).spawn_scoped(scope, run).map_err(|e| Error::io("clone", name, e))
}

const ENDED: &str = "a thread that packs ended early";

fn ended() -> io::Error {
    io::Error::other(ENDED)
}

/// A block of input. Whoever drops it last gives its memory back, to be filled again.
struct Block {
    bytes: Option<Buffer>,
    empty: SyncSender<Buffer>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(mut bytes) = self.bytes.take() {
            bytes.clear();
            let _ = self.empty.try_send(bytes);
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

/// Which block of a large file.
#[derive(Debug, Clone, Copy)]
struct Part {
    content: Digest,
    index: usize,
}

/// A block on its way to a thread that packs.
struct Job {
    block: Arc<Block>,
    part: Option<Part>,
    answer: SyncSender<io::Result<Out>>,
}

/// What became of it.
enum Out {
    AsItWas(Arc<Block>),
    Packed(Vec<u8>, Option<Sums>),
}

impl Deref for Out {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::AsItWas(block) => block,
            Self::Packed(bytes, _) => bytes,
        }
    }
}

/// An answer that is still to come, in the order of the blocks.
type Coming = (Option<Part>, Receiver<io::Result<Out>>);

/// Takes the input.
pub struct Blocks {
    codec: Codec,
    block: Option<Buffer>,
    /// A block was sent: an empty input has one too.
    begun: bool,
    /// How large this block gets.
    room: usize,
    /// The large file that is being written, and how many bytes of it are still to come.
    large: Option<(Part, u64)>,
    empties: Receiver<Buffer>,
    empty: SyncSender<Buffer>,
    jobs: SyncSender<Job>,
    hashed: SyncSender<Arc<Block>>,
    answers: SyncSender<Coming>,
}

impl Blocks {
    /// Says that the next so many bytes are a file with this content: they come next, and by [`Blocks::take_from`].
    pub fn file(&mut self, content: Digest, size: u64) -> io::Result<()> {
        if size < LARGE {
            return Ok(());
        }
        self.send_begun()?;
        // As many blocks as it needs, all of one size: several threads have something of it.
        self.room = size.div_ceil(size.div_ceil(self.codec.block() as u64)) as usize;
        self.large = Some((Part { content, index: 0 }, size));
        Ok(())
    }

    /// Takes at most so many bytes of a file with one read and no buffer between; how many there were, 0 at its end.
    pub fn take_from(&mut self, file: &File, most: u64) -> io::Result<usize> {
        let room = self.room;
        let block = self.block();
        let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(block.len()).min(room);
        let n = block.read(file, most)?;
        self.took(n)?;
        Ok(n)
    }

    /// The block that is being filled; a new one where there is none.
    fn block(&mut self) -> &mut Buffer {
        self.block.get_or_insert_with(|| {
            let mut block = self.empties.try_recv().unwrap_or_else(|_| Buffer::new(self.codec.block()));
            if self.large.is_some() {
                block.expect_much();
            }
            block
        })
    }

    /// The block has so many bytes more.
    fn took(&mut self, n: usize) -> io::Result<()> {
        let ended = match &mut self.large {
            Some((_, left)) => {
                *left = left.saturating_sub(n as u64);
                *left == 0
            }
            None => false,
        };
        if ended || self.block.as_ref().is_some_and(|block| block.len() == self.room) {
            self.send()?;
        }
        if ended {
            (self.large, self.room) = (None, self.codec.block());
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        self.begun = true;
        let block = Arc::new(Block { bytes: self.block.take(), empty: self.empty.clone() });
        let part = self.large.as_mut().map(|(part, _)| {
            let this = *part;
            part.index += 1;
            this
        });
        let (answer, coming) = sync_channel(1);
        self.answers.send((part, coming)).map_err(|_| ended())?;
        self.hashed.send(block.clone()).map_err(|_| ended())?;
        self.jobs.send(Job { block, part, answer }).map_err(|_| ended())
    }

    fn send_begun(&mut self) -> io::Result<()> {
        if self.block.as_ref().is_none_or(|block| block.is_empty()) { Ok(()) } else { self.send() }
    }

    fn end(&mut self) -> Result<()> {
        let sent = if self.begun { self.send_begun() } else { self.send() };
        sent.map_err(|e| Error::io("write", "layer", e))
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room;
        let n = self.block().take(bytes, room);
        self.took(n)?;
        Ok(n)
    }

    /// Does nothing: a flush in the middle would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash(blocks: Receiver<Arc<Block>>) -> Digest {
    let mut hashing = Hashing::new(io::sink());
    for block in blocks {
        // A sink takes everything.
        let _ = hashing.write_all(&block);
    }
    hashing.finish().1
}

/// Writes what comes, in the order of the blocks.
fn write(answers: Receiver<Coming>, out: impl Write) -> io::Result<(Digest, u64, PackedFiles)> {
    let mut out = Hashing::new(out);
    let (mut at, mut files) = (0, PackedFiles::default());
    for (part, coming) in answers {
        let packed = coming.recv().map_err(|_| ended())??;
        out.write_all(&packed)?;
        if let (Some(part), Out::Packed(bytes, sums)) = (part, &packed) {
            files.add(part, PackedBlock { offset: at, length: bytes.len() as u64, sums: *sums });
        }
        at += packed.len() as u64;
    }
    let (_, digest, size) = out.finish();
    Ok((digest, size, files))
}

fn work(queue: &Mutex<Receiver<Job>>, codec: Codec, earlier: Option<&Earlier>) {
    let mut packer = Packer::new(codec);
    loop {
        // The lock is held while waiting; the thread that gets the job lets the next one wait.
        let Ok(Job { block, part, answer }) = queue.lock().map_err(drop).and_then(|queue| queue.recv().map_err(drop))
        else {
            return;
        };
        let taken = || earlier?.block(codec, part?, &block).map(|(packed, sums)| Ok(Out::Packed(packed, Some(sums))));
        let out = taken().unwrap_or_else(|| match &mut packer {
            Ok(None) => Ok(Out::AsItWas(block)),
            Ok(Some(packer)) => packer.pack(&block).map(|packed| Out::Packed(packed, None)),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        });
        // Nobody waits for it any more: the writer failed.
        let _ = answer.send(out);
    }
}

enum Packer {
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Gzip(Deflate),
}

impl Packer {
    /// `None`: blocks stay as they are.
    fn new(codec: Codec) -> io::Result<Option<Self>> {
        Ok(Some(match codec {
            Codec::Plain => return Ok(None),
            Codec::Zstd(level) => {
                let level = level.unwrap_or(ZSTD_LEVEL).clamp(1, ZSTD_MOST);
                Self::Zstd(Box::new(zstd::bulk::Compressor::new(level.into())?))
            }
            Codec::Gzip(level) => {
                let level = level.unwrap_or(GZIP_LEVEL).clamp(1, GZIP_MOST);
                let level = CompressionLvl::new(level.into());
                Self::Gzip(Deflate::new(level.map_err(|_| io::Error::other("libdeflate doesn't know this level"))?))
            }
        }))
    }

    /// One block: no name and no time stand in its header.
    fn pack(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = match self {
            Self::Zstd(zstd) => zstd.compress(bytes)?,
            Self::Gzip(deflate) => {
                let mut out = vec![0; deflate.gzip_compress_bound(bytes.len())];
                let size = deflate.gzip_compress(bytes, &mut out).map_err(io::Error::other)?;
                out.truncate(size);
                out
            }
        };
        // It had room for what doesn't pack, and may wait for its turn.
        out.shrink_to_fit();
        Ok(out)
    }
}

impl Earlier {
    /// The packed bytes of a block that it has.
    fn block(&self, codec: Codec, part: Part, plain: &[u8]) -> Option<(Vec<u8>, Sums)> {
        let PackedBlock { offset, length, sums } = *self.files.0.get(&part.content)?.get(part.index)?;
        // What doesn't pack gets a few bytes longer.
        let mut packed = vec![0; usize::try_from(length).ok().filter(|length| *length <= 2 * plain.len())?];
        self.file.read_exact_at(&mut packed, offset).ok()?;
        let now = (blake3::hash(plain).into(), blake3::hash(&packed).into());
        let same = match sums {
            Some(sums) => sums == now,
            None => unpacks_to(codec, &packed, plain).unwrap_or(false),
        };
        same.then_some((packed, now))
    }
}

/// Is this one block, with nothing behind it, that every reader unpacks to these bytes?
fn unpacks_to(codec: Codec, packed: &[u8], plain: &[u8]) -> io::Result<bool> {
    let (mut unpacked, most) = (Vec::with_capacity(plain.len() + 1), plain.len() as u64 + 1);
    let left = match codec {
        Codec::Plain => return Ok(false),
        Codec::Zstd(_) => {
            let mut decoder = zstd::Decoder::with_buffer(packed)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            decoder.by_ref().take(most).read_to_end(&mut unpacked)?;
            decoder.finish()
        }
        Codec::Gzip(_) => {
            let mut decoder = flate2::bufread::GzDecoder::new(packed);
            decoder.by_ref().take(most).read_to_end(&mut unpacked)?;
            decoder.into_inner()
        }
    };
    Ok(left.is_empty() && unpacked == plain)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn threads(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    const ZSTD: Codec = Codec::Zstd(None);
    const GZIP: Codec = Codec::Gzip(None);

    /// Bytes that compress a little, always the same for a seed.
    fn sample(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                b"the quick brown fox"[(state >> 33) as usize % 19]
            })
            .collect()
    }

    fn packed(codec: Codec, n: usize, bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut out = vec![];
        let fill = |blocks: &mut Blocks| bytes.chunks(piece).try_for_each(|piece| put(blocks, piece));
        let packed = pack(codec, threads(n), None, fill, &mut out).unwrap();
        assert_eq!((packed.plain, packed.digest, packed.size), (Digest::of(bytes), Digest::of(&out), out.len() as u64));
        out
    }

    fn put(blocks: &mut Blocks, bytes: &[u8]) -> Result<()> {
        blocks.write_all(bytes).map_err(|e| Error::io("write", "layer", e))
    }

    fn unpacked(codec: Codec, packed: &[u8]) -> Vec<u8> {
        let mut back = vec![];
        match codec {
            Codec::Plain => back.extend(packed),
            Codec::Zstd(_) => back = zstd::stream::decode_all(packed).unwrap(),
            Codec::Gzip(_) => drop(flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut back).unwrap()),
        }
        back
    }

    #[test]
    fn it_comes_back_at_every_length() {
        for (codec, magic) in [(GZIP, &[0x1f, 0x8b, 8, 0]), (ZSTD, &[0x28, 0xb5, 0x2f, 0xfd]), (Codec::Plain, &[0; 4])]
        {
            let block = codec.block();
            for length in [0, 1, block - 1, block, block + 1, 3 * block, 5 * block + 77] {
                let bytes = sample(1, length);
                let packed = packed(codec, 2, &bytes, 100_000);
                assert!(unpacked(codec, &packed) == bytes, "{length}");
                let blocks = packed.windows(4).filter(|four| four == magic).count();
                let expected = if codec == Codec::Plain { 0 } else { length.div_ceil(block).max(1) };
                assert_eq!(blocks, expected, "{length}");
            }
        }
    }

    #[test]
    fn a_block_is_one_block_and_nothing_behind_it() {
        let plain = sample(3, 100_000);
        for codec in [ZSTD, GZIP] {
            let block = Packer::new(codec).unwrap().unwrap().pack(&plain).unwrap();
            let same = |packed: &[u8]| unpacks_to(codec, packed, &plain).unwrap_or(false);
            assert!(same(&block));
            let skippable = [&block[..], &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7]].concat();
            for other in [[&block[..], b"junk"].concat(), block.repeat(2), skippable, block[..block.len() - 1].into()] {
                assert!(!same(&other));
            }
            let longer = Packer::new(codec).unwrap().unwrap().pack(&[&plain[..], b"x"].concat()).unwrap();
            assert!(!same(&longer));
        }
    }

    #[test]
    fn threads_count_at_no_level() {
        // It repeats itself: the highest levels are slow where nothing does.
        let bytes = sample(5, 90_000).repeat(190);
        for codec in
            [5, 12, 16, 19].map(|n| Codec::Zstd(Some(n))).into_iter().chain([1, 10, 12].map(|n| Codec::Gzip(Some(n))))
        {
            let bytes = &bytes[..codec.block() + 99_999];
            assert!(packed(codec, 1, bytes, 1 << 20) == packed(codec, 3, bytes, 77_777), "{codec:?}");
        }
    }

    #[test]
    fn a_level_counts() {
        let bytes = (0..20_000u64).map(|i| format!("{} ", i * i)).collect::<String>().into_bytes();
        let of = |codec| packed(codec, 2, &bytes, 4096);
        assert!(of(Codec::Gzip(Some(12))).len() < of(Codec::Gzip(Some(1))).len());
        assert!(of(Codec::Zstd(Some(19))).len() < of(Codec::Zstd(Some(1))).len());
    }

    #[test]
    fn the_bytes_depend_on_neither_threads_nor_pieces() {
        let bytes = sample(1, 10 << 20);
        for codec in [ZSTD, GZIP] {
            let one = packed(codec, 1, &bytes, 100_001);
            assert!(one == packed(codec, 2, &bytes, 200_001) && one == packed(codec, 5, &bytes, 500_001));
        }
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
        for codec in [ZSTD, GZIP] {
            assert!(unpacked(codec, &packed(codec, 2, &noise, 4096)) == noise);
        }
    }

    /// A stream with two large files, and what stands around them.
    fn with_files(codec: Codec, files: [&[u8]; 2], around: &str, earlier: Option<&Earlier>) -> (Packed, Vec<u8>) {
        let mut out = vec![];
        let fill = |blocks: &mut Blocks| {
            for file in files {
                put(blocks, around.as_bytes())?;
                blocks.file(Digest::of(file), file.len() as u64).map_err(|e| Error::io("write", "layer", e))?;
                file.chunks(99_999).try_for_each(|piece| put(blocks, piece))?;
            }
            put(blocks, around.as_bytes())
        };
        let packed = pack(codec, threads(2), earlier, fill, &mut out).unwrap();
        assert!(
            unpacked(codec, &out)
                == [around.as_bytes(), files[0], around.as_bytes(), files[1], around.as_bytes()].concat()
        );
        (packed, out)
    }

    fn kept(packed: &[u8], files: PackedFiles) -> Earlier {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(packed).unwrap();
        Earlier { file, files }
    }

    #[test]
    fn a_large_file_gives_the_same_bytes_wherever_it_stands() {
        let (one, other) = (sample(1, 9 << 20), sample(2, 4 << 20));
        for codec in [ZSTD, GZIP] {
            let (before, bytes) = with_files(codec, [&one, &other], "around", None);
            assert_eq!(before.files.0.len(), 2);
            let (after, again) = with_files(codec, [&one, &other], "something else around", None);
            for (content, blocks) in &before.files.0 {
                let at = |bytes: &[u8], b: PackedBlock| bytes[b.offset as usize..][..b.length as usize].to_vec();
                let same = blocks.iter().zip(&after.files.0[content]).all(|(a, b)| at(&bytes, *a) == at(&again, *b));
                assert!(same && blocks.len() == after.files.0[content].len());
            }
            let (_, with_earlier) =
                with_files(codec, [&one, &other], "something else around", Some(&kept(&bytes, before.files)));
            assert!(with_earlier == again, "what is there doesn't change the bytes");
        }
    }

    #[test]
    fn an_earlier_block_is_taken_where_it_unpacks_to_the_same() {
        let (one, other) = (sample(1, 5 << 20), sample(2, 4 << 20));
        // Packed with another level it has other bytes, which tell whether they were taken.
        let (before, bytes) = with_files(Codec::Zstd(Some(1)), [&one, &other], "x", None);
        let (plain, fresh) = with_files(ZSTD, [&one, &other], "x", None);
        let (taken, again) = with_files(ZSTD, [&one, &other], "x", Some(&kept(&bytes, before.files.clone())));
        assert!(again != fresh && taken.plain == plain.plain);
        assert!(taken.files.0.values().flatten().all(|block| block.sums.is_some()), "the next one need not unpack it");
        let (_, once_more) = with_files(ZSTD, [&one, &other], "x", Some(&kept(&again, taken.files.clone())));
        assert!(once_more == again);
        // Damaged or of something else it is not, whether it was taken before or not.
        for (files, bytes) in [(&before.files, &bytes), (&taken.files, &again)] {
            let mut damaged = bytes.clone();
            for block in files.0.values().flatten() {
                damaged[(block.offset + block.length / 2) as usize] ^= 1;
            }
            let (_, again) = with_files(ZSTD, [&one, &other], "x", Some(&kept(&damaged, files.clone())));
            assert!(again == fresh);
        }
        let short = kept(&bytes[..bytes.len() / 2], before.files.clone());
        with_files(ZSTD, [&one, &other], "x", Some(&short));
        let swapped = before.files.0.keys().rev().copied().zip(before.files.0.values().cloned()).collect();
        let (_, again) = with_files(ZSTD, [&one, &other], "x", Some(&kept(&bytes, PackedFiles(swapped))));
        assert!(again == fresh);
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
        let bytes = sample(1, 40 << 20);
        for codec in [ZSTD, GZIP, Codec::Plain] {
            let error = pack(codec, threads(2), None, |blocks| put(blocks, &bytes), Full).unwrap_err();
            assert!(error.what().contains("No space left"), "{error}");
        }
    }

    #[test]
    fn an_error_of_who_fills_is_seen() {
        let fill = |blocks: &mut Blocks| put(blocks, &[0; 9999]).and(Err(Error::failed("no more")));
        assert_eq!(pack(ZSTD, threads(2), None, fill, io::sink()).unwrap_err().what(), "no more");
    }

    #[test]
    fn a_file_comes_whole_between_what_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let content = sample(1, (3 << 20) + 5);
        let path = temp.path().join("file");
        std::fs::write(&path, &content).unwrap();
        let fill = |blocks: &mut Blocks| {
            let bad = |e| Error::io("read", "file", e);
            let file = File::open(&path).map_err(bad)?;
            put(blocks, b"before")?;
            let mut left = content.len() as u64;
            while left > 0 {
                left -= blocks.take_from(&file, left).map_err(bad)? as u64;
            }
            assert_eq!(blocks.take_from(&file, 9).map_err(bad)?, 0, "the end");
            put(blocks, b"after")
        };
        let mut out = vec![];
        pack(GZIP, threads(2), None, fill, &mut out).unwrap();
        assert!(unpacked(GZIP, &out) == [b"before".as_slice(), &content, b"after"].concat());
    }
}
