//! Decompression by what the first bytes say: gzip, xz, zstd, or plain.
//!
//! A name or a media type may lie about the format; the magic number can't. Everything streams,
//! and a limit on the bytes that come out stops a bomb where it would begin to hurt.

use std::io::{self, BufRead, BufReader, Read};

use super::holes;

/// The largest window that a zstd frame may ask for: 2^27 bytes, as `zstd -d` has it without `--long`.
pub(super) const ZSTD_WINDOW_LOG: u32 = 27;
/// The most memory that an xz stream may ask for: `xz -9` needs 65 MiB to decompress.
const XZ_MEMORY: u64 = 192 << 20;
/// How many bytes may come out of one that went in. deflate reaches 1032; text in zstd and xz more. Zeros don't count:
/// a file of holes, as a layer of ours may have, packs to nothing, and unpacked it is one of holes again.
const RATIO: u64 = 5000;
/// Below this size the ratio doesn't matter.
const RATIO_FROM: u64 = 64 << 20;

/// What a stream turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952
    Gzip,
    /// xz
    Xz,
    /// RFC 8878
    Zstd,
    /// Not compressed, as far as can be seen.
    Plain,
}

impl Format {
    /// From the first bytes.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may stand first (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// A stream of decompressed bytes, at most `limit` of them: one more is an error.
pub fn decompress<'a>(reader: impl Read + Send + 'a, limit: u64) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut reader = BufReader::with_capacity(128 * 1024, reader);
    let start = first_bytes(&mut reader)?;
    let format = Format::of(&start);
    let counted = Counted { inner: io::Cursor::new(start).chain(reader), count: Default::default() };
    let went_in = counted.count.clone();
    let input = BufReader::with_capacity(128 * 1024, counted);
    let plain: Box<dyn Read + Send + 'a> = match format {
        Format::Plain => return Ok(Box::new(Limited { inner: input, went_in: None, came_out: 0, zeros: 0, limit })),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Format::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(io::Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(Limited { inner: plain, went_in: Some(went_in), came_out: 0, zeros: 0, limit }))
}

/// Up to six bytes, read to be told what follows. A pipe may give them one by one.
fn first_bytes(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut start = vec![];
    reader.take(6).read_to_end(&mut start)?;
    Ok(start)
}

/// Counts what was read from it.
struct Counted<R> {
    inner: R,
    count: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(n)
    }
}

/// Fails where more comes out than was allowed.
struct Limited<R> {
    inner: R,
    went_in: Option<std::sync::Arc<std::sync::atomic::AtomicU64>>,
    came_out: u64,
    /// How much of that came in reads of nothing but zeros.
    zeros: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.came_out += n as u64;
        if self.came_out > self.limit {
            return Err(io::Error::other(format!("it holds more than the {} bytes that are allowed", self.limit)));
        }
        if n >= holes::BLOCK && buffer[..n].iter().all(|byte| *byte == 0) {
            self.zeros += n as u64;
        }
        let counts = self.came_out - self.zeros;
        if let Some(went_in) = &self.went_in
            && counts > RATIO_FROM
            && counts / went_in.load(std::sync::atomic::Ordering::Relaxed).max(1) > RATIO
        {
            return Err(io::Error::other(format!("it grows to more than {RATIO} times its size")));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = liblzma::write::XzEncoder::new(vec![], 1);
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn read(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut out = vec![];
        decompress(bytes, limit)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_format_is_known_by_its_first_bytes() {
        let text = b"a text that is long enough to be compressed, compressed, compressed".as_slice();
        for packed in [
            text.to_vec(),
            gzip(text),
            xz(text),
            zstd::encode_all(text, 3).unwrap(),
            [gzip(&text[..9]), gzip(&text[9..])].concat(),
        ] {
            assert_eq!(read(&packed, 1000).unwrap(), text);
        }
        assert_eq!(read(b"", 10).unwrap(), b"");
    }

    #[test]
    fn a_stream_that_ends_too_early_is_an_error() {
        let text = vec![b'x'; 100_000];
        for packed in [gzip(&text), xz(&text), zstd::encode_all(text.as_slice(), 3).unwrap()] {
            assert!(read(&packed[..packed.len() - 3], 1 << 20).is_err());
        }
    }

    #[test]
    fn more_bytes_than_allowed_are_an_error_and_not_cut() {
        let text = vec![b'x'; 1000];
        for packed in [text.clone(), gzip(&text), xz(&text), zstd::encode_all(text.as_slice(), 3).unwrap()] {
            assert!(read(&packed, 999).is_err());
            assert_eq!(read(&packed, 1000).unwrap(), text);
        }
    }

    #[test]
    fn a_bomb_is_stopped_by_its_ratio() {
        let bomb = zstd::encode_all(io::repeat(b'x').take(RATIO_FROM * 2), 3).unwrap();
        assert!((RATIO_FROM * 2) / bomb.len() as u64 > RATIO);
        let mut out = decompress(bomb.as_slice(), u64::MAX).unwrap();
        assert!(io::copy(&mut out, &mut io::sink()).unwrap_err().to_string().contains("times its size"));
    }

    #[test]
    fn a_file_of_holes_is_no_bomb() {
        let text = vec![b'x'; 5000];
        let holes = || io::repeat(0).take(RATIO_FROM * 3);
        let packed = zstd::encode_all(text.chain(holes()).chain(text.as_slice()), 3).unwrap();
        assert!((RATIO_FROM * 3) / packed.len() as u64 > RATIO);
        let mut out = decompress(packed.as_slice(), u64::MAX).unwrap();
        assert_eq!(io::copy(&mut out, &mut io::sink()).unwrap(), RATIO_FROM * 3 + 10_000);
        // The limit counts them.
        let mut out = decompress(packed.as_slice(), RATIO_FROM).unwrap();
        assert!(io::copy(&mut out, &mut io::sink()).is_err());
    }

    #[test]
    fn a_zstd_window_that_is_too_large_is_refused() {
        let mut encoder = zstd::Encoder::new(vec![], 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.include_contentsize(false).unwrap();
        io::copy(&mut io::repeat(7).take(300 << 20), &mut encoder).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(io::copy(&mut decompress(packed.as_slice(), u64::MAX).unwrap(), &mut io::sink()).is_err());
    }
}
