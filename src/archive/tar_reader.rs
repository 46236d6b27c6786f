//! Reads tar streams that nobody vouches for: ustar, old GNU and PAX (POSIX.1-2017, pax).
//!
//! The crate `tar` reads the header blocks; which blocks belong together is decided here, because
//! what is ambiguous must be an error: readers that disagree about where an entry ends see different
//! archives (CVE-2025-62518). The list of entries equals GNU tar's or reading fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::archive::access_list;
use crate::error::{Error, Result};
use crate::tree::RootPath;

const BLOCK: u64 = 512;
/// The largest extended header (attributes are at most 64 KiB each).
const MAX_EXTENDED: u64 = 1 << 20;
/// The most pieces of a sparse file.
const MAX_PIECES: usize = 1 << 20;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Parts of a path.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000, depth: 256 }
    }
}

/// What kind of entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this size.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Another name of a file that came earlier.
    HardLink(RootPath),
    /// A device.
    Device {
        /// `false`: a block device.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// An entry, its content aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where; an absolute name is made relative.
    pub path: RootPath,
    /// What.
    pub kind: Kind,
    /// Permission bits, set-ID and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes, all that the archive has.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Is called with each entry and its content.
pub type OnItem<'a> = &'a mut dyn FnMut(Item, &mut dyn Read) -> Result<()>;

/// Reads a tar stream (not compressed) to its end.
pub fn read_tar(reader: impl Read, limits: &Limits, on_item: OnItem) -> Result<()> {
    let mut tar = Tar { reader, limits: *limits, bytes: 0, entries: 0 };
    while let Some((header, extended)) = tar.next()? {
        tar.entry(&header, extended, on_item)?;
    }
    // What follows the end belongs to nobody, but whoever hashes the stream wants all of it.
    io::copy(&mut tar.reader, &mut io::sink()).map_err(broken)?;
    Ok(())
}

/// An entry of a tar file, and where its content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// The first byte of its content.
    pub offset: u64,
}

/// Where everything in a tar file (not compressed) lies. The content of its files is passed over, so
/// this takes as long as the file has entries. What stands in it twice, what is sparse, and anything
/// but zeros after its end are errors: a file that is read in place has one meaning.
pub fn index_tar(file: &File, limits: &Limits) -> Result<BTreeMap<RootPath, Place>> {
    let length = file.metadata().map_err(broken)?.len();
    let mut tar = Tar { reader: Walk { file, at: 0 }, limits: *limits, bytes: 0, entries: 0 };
    let mut found = BTreeMap::new();
    loop {
        let at = tar.reader.at;
        let next = tar.next().map_err(|e| e.context(format!("at byte {at}")))?;
        let Some((header, extended)) = next else { break };
        let pax = extended.pax.unwrap_or_default();
        let size = match pax.get(&b"size"[..]) {
            Some(text) => decimal(text, "size")?,
            None => header.entry_size().map_err(malformed)?,
        };
        if header.entry_type().is_gnu_sparse() || pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(malformed("it has a sparse file").next("pack it without tar's --sparse"));
        }
        let name = one_of(extended.long_name, pax.get(&b"path"[..]), "names")?
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = one_of(extended.long_link, pax.get(&b"linkpath"[..]), "link targets")?
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let shown = String::from_utf8_lossy(&name).into_owned();
        let kind = kind(&header, &name, link.unwrap_or_default(), &Pieces { data: vec![], size });
        let kind = kind.map_err(|e| e.context(&shown))?;
        if size > 0 && !matches!(kind, Kind::File(_)) {
            return Err(malformed(format!("{shown} is no regular file and has content")));
        }
        let offset = tar.reader.at;
        tar.reader.at = offset
            .checked_add(size)
            .and_then(|end| end.checked_add(padding(size)))
            .filter(|end| *end <= length)
            .ok_or_else(|| malformed(format!("it ends in the middle of {shown}")))?;
        let mode = header.mode().map_err(malformed)? & 0o7777;
        if found.insert(path(&name, limits.depth)?, Place { kind, mode, offset }).is_some() {
            return Err(malformed(format!("{shown} stands in it twice")));
        }
    }
    let mut rest = vec![];
    (&mut tar.reader).take(MAX_EXTENDED).read_to_end(&mut rest).map_err(broken)?;
    if rest.iter().any(|byte| *byte != 0) || tar.reader.at < length {
        return Err(malformed("something follows its end"));
    }
    Ok(found)
}

/// Reads a file from a place that can be set.
struct Walk<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Walk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn broken(error: io::Error) -> Error {
    Error::failed(format!("the archive can't be read: {error}"))
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::failed(format!("the archive is malformed: {why}"))
}

/// What stands before an entry's own header.
#[derive(Default)]
struct Extended {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

struct Tar<R> {
    reader: R,
    limits: Limits,
    bytes: u64,
    entries: u64,
}

impl<R: Read> Tar<R> {
    /// The next entry's header, and the extended headers before it.
    fn next(&mut self) -> Result<Option<(Header, Extended)>> {
        let mut extended = Extended::default();
        let mut first = true;
        loop {
            let Some(header) = self.header()? else {
                return if first { Ok(None) } else { Err(malformed("it ends after an extended header")) };
            };
            let known = header.as_gnu().is_some() || header.as_ustar().is_some();
            match header.entry_type() {
                EntryType::GNULongName if known => set_once(&mut extended.long_name, self.text(&header)?)?,
                EntryType::GNULongLink if known => set_once(&mut extended.long_link, self.text(&header)?)?,
                EntryType::XHeader => set_once(&mut extended.pax, parse_pax(&self.content(&header)?)?)?,
                EntryType::XGlobalHeader => check_global(&parse_pax(&self.content(&header)?)?)?,
                _ => return Ok(Some((header, extended))),
            }
            first = false;
        }
    }

    /// One header block; `None`: the end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        match read_block(&mut self.reader, header.as_mut_bytes()).map_err(broken)? {
            false => return Ok(None),
            true if header.as_bytes().iter().all(|b| *b == 0) => return Ok(None),
            true => {}
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(malformed(format!("it has more than {} entries", self.limits.entries)));
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        if header.cksum().map_err(malformed)? != sum {
            return Err(malformed("the checksum of a header is wrong"));
        }
        Ok(Some(header))
    }

    /// The content of an extended header.
    fn content(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.entry_size().map_err(malformed)?;
        if size > MAX_EXTENDED {
            return Err(malformed(format!("an extended header has {size} bytes")));
        }
        let mut content = vec![0; size as usize];
        self.reader.read_exact(&mut content).map_err(broken)?;
        self.skip(padding(size))?;
        Ok(content)
    }

    /// A long name: up to its first NUL.
    fn text(&mut self, header: &Header) -> Result<Vec<u8>> {
        let mut text = self.content(header)?;
        if let Some(end) = text.iter().position(|b| *b == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.reader).take(bytes), &mut io::sink()).map_err(broken)?;
        if skipped < bytes { Err(malformed("it ends in the middle of an entry")) } else { Ok(()) }
    }

    fn entry(&mut self, header: &Header, extended: Extended, on_item: OnItem) -> Result<()> {
        let pax = extended.pax.unwrap_or_default();
        let stored = match pax.get(&b"size"[..]) {
            Some(text) => decimal(text, "size")?,
            None => header.entry_size().map_err(malformed)?,
        };
        let sparse_name = pax.get(&b"GNU.sparse.name"[..]);
        let name = one_of(extended.long_name, sparse_name.or(pax.get(&b"path"[..])), "names")?
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = one_of(extended.long_link, pax.get(&b"linkpath"[..]), "link targets")?
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let shown = String::from_utf8_lossy(&name).into_owned();
        let entry = || -> Result<()> {
            let pieces = self.pieces(header, &pax, stored)?;
            let kind = kind(header, &name, link.unwrap_or_default(), &pieces)?;
            if stored > 0 && !matches!(kind, Kind::File(_)) {
                return Err(malformed("an entry that is no regular file has content"));
            }
            let item = Item {
                path: path(&name, self.limits.depth)?,
                mode: header.mode().map_err(malformed)? & 0o7777,
                uid: id(&pax, b"uid", header.uid())?,
                gid: id(&pax, b"gid", header.gid())?,
                xattrs: xattrs(&pax)?,
                kind,
            };
            self.bytes = self.bytes.saturating_add(pieces.size);
            if self.bytes > self.limits.bytes {
                return Err(malformed(format!("it holds more than {} bytes", self.limits.bytes)));
            }
            let mut content =
                Content { reader: &mut self.reader, pieces: &pieces.data, at: 0, size: pieces.size, piece: 0 };
            on_item(item, &mut content)?;
            content.finish()?;
            self.skip(padding(stored))
        };
        entry().map_err(|e| e.context(shown))
    }

    /// Where the content of an entry lies in its file: one piece, or those of a sparse file.
    fn pieces(&mut self, header: &Header, pax: &BTreeMap<Vec<u8>, Vec<u8>>, stored: u64) -> Result<Pieces> {
        if header.entry_type().is_gnu_sparse() {
            return self.old_sparse(header, stored);
        }
        if !pax.keys().any(|k| k.starts_with(b"GNU.sparse.")) {
            return Ok(Pieces { data: vec![(0, stored)], size: stored });
        }
        let number = |key: &[u8]| pax.get(key).map(|text| decimal(text, "GNU.sparse"));
        match (
            number(b"GNU.sparse.major").transpose()?,
            number(b"GNU.sparse.minor").transpose()?,
            number(b"GNU.sparse.realsize").transpose()?,
        ) {
            (Some(1), Some(0), Some(size)) => self.pax_sparse(stored, size),
            _ => Err(malformed("it has a sparse file of a kind that is not read here")
                .next("pack it without tar's --sparse")),
        }
    }

    /// GNU's own format: pieces in the header, and in blocks after it.
    fn old_sparse(&mut self, header: &Header, stored: u64) -> Result<Pieces> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file without a GNU header"))?;
        let mut data = vec![];
        let mut add = |pieces: &[tar::GnuSparseHeader]| -> Result<()> {
            for piece in pieces.iter().filter(|p| !p.is_empty()) {
                data.push((piece.offset().map_err(malformed)?, piece.length().map_err(malformed)?));
            }
            if data.len() > MAX_PIECES { Err(malformed("a sparse file has too many pieces")) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !read_block(&mut self.reader, block.as_mut_bytes()).map_err(broken)? {
                return Err(malformed("it ends in the middle of a sparse file"));
            }
            add(&block.sparse)?;
            more = block.is_extended();
        }
        checked(Pieces { data, size: gnu.real_size().map_err(malformed)? }, stored)
    }

    /// PAX format 1.0: the content begins with the map, decimal numbers on lines of their own.
    fn pax_sparse(&mut self, stored: u64, size: u64) -> Result<Pieces> {
        let mut map = vec![];
        let mut numbers: Vec<u64> = vec![];
        let mut wanted = 1;
        while numbers.len() < wanted {
            let start = map.len();
            if start as u64 + BLOCK > stored || start > 64 * MAX_PIECES {
                return Err(malformed("the map of a sparse file is longer than the file"));
            }
            map.resize(start + BLOCK as usize, 0);
            self.reader.read_exact(&mut map[start..]).map_err(broken)?;
            numbers = lines_of_numbers(&map)?;
            if let Some(count) = numbers.first() {
                wanted = usize::try_from(*count)
                    .ok()
                    .filter(|c| *c <= MAX_PIECES)
                    .ok_or_else(|| malformed("a sparse file has too many pieces"))?
                    * 2
                    + 1;
            }
        }
        let data = numbers[1..wanted].chunks(2).map(|pair| (pair[0], pair[1])).collect();
        checked(Pieces { data, size }, stored - map.len() as u64)
    }
}

/// The whole lines of a sparse map; an unfinished last one is left for later.
fn lines_of_numbers(map: &[u8]) -> Result<Vec<u64>> {
    let whole = map.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let lines = map[..whole].split(|b| *b == b'\n').take_while(|line| !line.is_empty());
    lines.map(|line| decimal(line, "a sparse map")).collect()
}

/// Pieces: `(offset in the file, length)`, in order. Between them are holes.
struct Pieces {
    data: Vec<(u64, u64)>,
    size: u64,
}

/// Pieces in order, within the file, and as long together as what is stored.
fn checked(pieces: Pieces, stored: u64) -> Result<Pieces> {
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, length) in &pieces.data {
        let next = offset.checked_add(*length).filter(|_| *offset >= end);
        end = next.ok_or_else(|| malformed("the pieces of a sparse file overlap"))?;
        sum = sum.saturating_add(*length);
    }
    if end > pieces.size || sum != stored {
        return Err(malformed("the pieces of a sparse file don't fit its size"));
    }
    Ok(pieces)
}

/// The content of an entry; holes are zeros.
struct Content<'a, R> {
    reader: &'a mut R,
    pieces: &'a [(u64, u64)],
    at: u64,
    size: u64,
    piece: usize,
}

impl<R: Read> Content<'_, R> {
    /// Reads what nobody wanted.
    fn finish(&mut self) -> Result<()> {
        io::copy(self, &mut io::sink()).map(drop).map_err(broken)
    }
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.get(self.piece).is_some_and(|(offset, length)| self.at >= offset + length) {
            self.piece += 1;
        }
        let (hole, left) = match self.pieces.get(self.piece) {
            Some((offset, _)) if self.at < *offset => (true, offset - self.at),
            Some((offset, length)) => (false, offset + length - self.at),
            None => (true, self.size - self.at),
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = if hole {
            buffer[..most].fill(0);
            most
        } else {
            match self.reader.read(&mut buffer[..most])? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry")),
                n => n,
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// Fills a block; `false`: nothing was left.
fn read_block(reader: &mut impl Read, block: &mut [u8]) -> io::Result<bool> {
    let mut done = 0;
    while done < block.len() {
        match reader.read(&mut block[done..]) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a header")),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn set_once<T>(place: &mut Option<T>, value: T) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("an entry has two extended headers of one kind")),
    }
}

fn one_of(long: Option<Vec<u8>>, pax: Option<&Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>> {
    match (long, pax) {
        (Some(long), Some(pax)) if long != *pax => Err(malformed(format!("an entry has two {what}"))),
        (long, pax) => Ok(long.or_else(|| pax.cloned())),
    }
}

/// `"%d %s=%s\n"`, the length counting the whole record (POSIX pax, "pax Extended Header").
fn parse_pax(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let (record, rest) = pax_record(bytes).ok_or_else(|| malformed("a PAX record is broken"))?;
        let equals = record
            .iter()
            .position(|b| *b == b'=')
            .filter(|at| *at > 0)
            .ok_or_else(|| malformed("a PAX record is broken"))?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if value.is_empty() && (key == b"path" || key == b"linkpath" || key == b"size") {
            return Err(malformed("a PAX record is empty"));
        }
        records.insert(key.to_vec(), value.to_vec());
        bytes = rest;
    }
    Ok(records)
}

/// The first record without its length and newline, and what follows it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|b| *b == b' ')?;
    let length: usize =
        std::str::from_utf8(&bytes[..space]).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    let record = bytes.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &bytes[length..]))
}

/// Global records change every entry after them: only those that change nothing are read.
fn check_global(records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let harmless = |key: &[u8]| {
        matches!(key, b"comment" | b"mtime" | b"atime" | b"ctime" | b"uname" | b"gname" | b"charset" | b"hdrcharset")
    };
    match records.keys().find(|key| !harmless(key)) {
        Some(key) => Err(malformed(format!("a global PAX record sets {:?}", String::from_utf8_lossy(key)))),
        None => Ok(()),
    }
}

fn decimal(text: &[u8], what: &str) -> Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| malformed(format!("{what} is not a number: {:?}", String::from_utf8_lossy(text))))
}

fn id(pax: &BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8], header: io::Result<u64>) -> Result<u32> {
    let number = match pax.get(key) {
        Some(text) => decimal(text, "an owner")?,
        None => header.map_err(malformed)?,
    };
    u32::try_from(number).map_err(|_| malformed(format!("an owner is out of range: {number}")))
}

fn path(name: &[u8], depth: usize) -> Result<RootPath> {
    let path = RootPath::new(name)?;
    if path.as_bytes().split(|b| *b == b'/').count() > depth {
        return Err(malformed(format!("a path has more than {depth} parts")));
    }
    Ok(path)
}

fn xattrs(pax: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for (key, value) in pax {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            found.insert(name.to_vec(), value.clone());
        }
    }
    for (key, name) in [&b"SCHILY.acl.access"[..], b"SCHILY.acl.default"].into_iter().zip(access_list::ACLS) {
        if let Some(text) = pax.get(key) {
            found.insert(name.to_vec(), access_list::of_text(text)?);
        }
    }
    Ok(found)
}

fn kind(header: &Header, name: &[u8], link: Vec<u8>, pieces: &Pieces) -> Result<Kind> {
    let device = |character| -> Result<Kind> {
        let number =
            |n: io::Result<Option<u32>>| n.map_err(malformed)?.ok_or_else(|| malformed("a device without numbers"));
        Ok(Kind::Device { character, major: number(header.device_major())?, minor: number(header.device_minor())? })
    };
    match header.entry_type() {
        // Before ustar a folder was a file whose name ends in a slash.
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Ok(Kind::Folder),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Ok(Kind::File(pieces.size)),
        EntryType::Directory => Ok(Kind::Folder),
        EntryType::Symlink if link.is_empty() || link.len() > 4095 || link.contains(&0) => {
            Err(malformed("a symbolic link without a target"))
        }
        EntryType::Symlink => Ok(Kind::Link(link)),
        EntryType::Link => RootPath::new(&link).map(Kind::HardLink).map_err(|e| e.context("the target of a hard link")),
        EntryType::Char => device(true),
        EntryType::Block => device(false),
        EntryType::Fifo => Ok(Kind::Fifo),
        other => Err(malformed(format!("an entry of type {:?}", char::from(other.as_byte())))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header block for tests.
    pub(crate) fn header(kind: u8, name: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }

    /// Header and content, padded.
    pub(crate) fn entry(header: &Header, content: &[u8]) -> Vec<u8> {
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    /// An extended header for the entry that follows.
    pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let content = pax_records(records);
        entry(&header(b'x', "pax", content.len() as u64), &content)
    }

    fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut content = vec![];
        for (key, value) in records {
            let rest = 3 + key.len() + value.len();
            let length = (rest + 1..).find(|n| rest + n.to_string().len() == *n).unwrap();
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        content
    }

    /// Blocks and the end of the archive.
    pub(crate) fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
        [parts.concat(), vec![0; 1024]].concat()
    }

    fn list(bytes: &[u8]) -> Result<Vec<(Item, Vec<u8>)>> {
        let mut items = vec![];
        read_tar(bytes, &Limits { bytes: 1 << 20, entries: 50, depth: 8 }, &mut |item, content| {
            let mut bytes = vec![];
            content.read_to_end(&mut bytes).map_err(broken)?;
            items.push((item, bytes));
            Ok(())
        })?;
        Ok(items)
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        list(bytes).unwrap().into_iter().map(|(item, _)| item.path.to_string()).collect()
    }

    #[test]
    fn names_are_made_relative_and_long_ones_are_read() {
        let long = "x/".repeat(5) + &"y".repeat(200);
        let tar = archive(&[
            entry(&header(b'0', "/etc/./a", 1), b"a"),
            entry(&header(b'L', "././@LongLink", long.len() as u64 + 1), format!("{long}\0").as_bytes()),
            entry(&header(b'0', "cut", 0), b""),
            pax(&[("path", b"b\nc"), ("mtime", b"1.5")]),
            entry(&header(b'0', "other", 0), b""),
            entry(&header(0, "folder/", 0), b""),
        ]);
        assert_eq!(names(&tar), ["/etc/a", &format!("/{long}"), "/b\nc", "/folder"]);
        assert_eq!(list(&tar).unwrap()[3].0.kind, Kind::Folder);
    }

    #[test]
    fn a_pax_size_counts_and_hides_no_entry() {
        let inner = entry(&header(b'0', "hidden", 0), b"");
        let tar =
            archive(&[pax(&[("size", inner.len().to_string().as_bytes())]), entry(&header(b'0', "a", 0), &inner)]);
        let items = list(&tar).unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].1, inner);
    }

    #[test]
    fn attributes_may_hold_any_byte() {
        let tar = archive(&[pax(&[("SCHILY.xattr.user.x", b"a\n12 b=c\n\0")]), entry(&header(b'0', "a", 0), b"")]);
        assert_eq!(list(&tar).unwrap()[0].0.xattrs[&b"user.x"[..]], b"a\n12 b=c\n\0");
    }

    #[test]
    fn what_is_malformed_is_an_error_and_never_skipped() {
        let broken_pax = |text: &[u8]| {
            archive(&[entry(&header(b'x', "p", text.len() as u64), text), entry(&header(b'0', "a", 0), b"")])
        };
        let mut wrong_sum = header(b'0', "a", 0);
        wrong_sum.as_mut_bytes()[0] = b'b';
        let mut bad_link = header(b'1', "a", 0);
        bad_link.set_link_name_literal("../x").unwrap();
        bad_link.set_cksum();
        for (what, tar) in [
            ("dots", archive(&[entry(&header(b'0', "a/../../b", 0), b"")])),
            ("a hard link out", archive(&[entry(&bad_link, b"")])),
            ("a pax length", broken_pax(b"99 path=x\n")),
            ("a pax length of words", broken_pax(b"+9 path=x\n")),
            ("a pax record without a newline", broken_pax(b"9 path=xy")),
            ("a pax record without a key", broken_pax(b"6 =xy\n")),
            ("a pax size", archive(&[pax(&[("size", b"1x")]), entry(&header(b'0', "a", 1), b"1")])),
            ("a pax name with a NUL", archive(&[pax(&[("path", b"a\0b")]), entry(&header(b'0', "a", 0), b"")])),
            (
                "two names",
                archive(&[
                    pax(&[("path", b"a")]),
                    entry(&header(b'L', "L", 2), b"b\0"),
                    entry(&header(b'0', "c", 0), b""),
                ]),
            ),
            (
                "two pax headers",
                archive(&[pax(&[("path", b"a")]), pax(&[("path", b"b")]), entry(&header(b'0', "c", 0), b"")]),
            ),
            (
                "a global path",
                archive(&[entry(&header(b'g', "g", 9), b"9 path=a\n"), entry(&header(b'0', "c", 0), b"")]),
            ),
            ("a pax header at the end", archive(&[pax(&[("path", b"a")])])),
            ("a checksum", archive(&[entry(&wrong_sum, b"")])),
            ("a folder with content", archive(&[entry(&header(b'5', "a", 5), b"12345")])),
            ("an unknown type", archive(&[entry(&header(b'M', "a", 0), b"")])),
            ("a cut entry", entry(&header(b'0', "a", 600), b"123")),
            ("a cut header", entry(&header(b'0', "a", 0), b"")[..100].to_vec()),
            ("an owner", archive(&[pax(&[("uid", b"4294967296")]), entry(&header(b'0', "a", 0), b"")])),
            ("depth", archive(&[entry(&header(b'0', &"a/".repeat(9), 0), b"")])),
            ("bytes", archive(&[entry(&header(b'0', "a", 2 << 20), &vec![0; 2 << 20])])),
            ("entries", archive(&vec![entry(&header(b'0', "a", 0), b""); 51])),
        ] {
            assert!(list(&tar).is_err(), "{what} is accepted");
        }
    }

    #[test]
    fn a_sparse_file_has_its_holes_and_no_more_than_the_limit() {
        let sparse = |real: u64, pieces: &[(u64, u64)], content: &[u8]| {
            let mut header = header(b'S', "s", content.len() as u64);
            let gnu = header.as_gnu_mut().unwrap();
            let octal = |place: &mut [u8], n: u64| place.copy_from_slice(format!("{n:011o}\0").as_bytes());
            octal(&mut gnu.realsize, real);
            for (place, (offset, length)) in gnu.sparse.iter_mut().zip(pieces) {
                octal(&mut place.offset, *offset);
                octal(&mut place.numbytes, *length);
            }
            header.set_cksum();
            archive(&[entry(&header, content)])
        };
        let items = list(&sparse(10, &[(2, 3), (10, 0)], b"abc")).unwrap();
        assert_eq!(items[0].1, b"\0\0abc\0\0\0\0\0");
        assert!(list(&sparse(7 << 30, &[(0, 3)], b"abc")).is_err(), "a claim of 7 GiB");
        assert!(list(&sparse(10, &[(2, 3), (4, 1)], b"abcd")).is_err(), "overlapping pieces");
        assert!(list(&sparse(10, &[(2, 4)], b"abc")).is_err(), "more than is stored");
        assert!(list(&sparse(4, &[(2, 3)], b"abc")).is_err(), "past the end");
    }

    #[test]
    fn a_sparse_file_in_pax_form_is_read() {
        let mut content = b"1\n2\n3\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"abc");
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"6"),
        ];
        let tar = archive(&[
            pax(records),
            entry(&header(b'0', "GNUSparseFile.0/s", content.len() as u64), &content),
            entry(&header(b'0', "next", 0), b""),
        ]);
        let items = list(&tar).unwrap();
        assert_eq!((items[0].0.path.to_string().as_str(), items[0].1.as_slice()), ("/s", &b"\0\0abc\0"[..]));
        assert_eq!(items[1].0.path.to_string(), "/next");
    }

    #[test]
    fn an_index_says_where_content_lies_and_refuses_what_has_two_meanings() {
        let indexed = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, bytes).unwrap();
            index_tar(&file, &Limits::default())
        };
        let file = |name: &str, content: &str| entry(&header(b'0', name, content.len() as u64), content.as_bytes());
        let good = archive(&[file("a", "one"), file("b/c", "two")]);
        let found = indexed(&good).unwrap();
        for (name, content) in [("a", "one"), ("b/c", "two")] {
            let place = &found[&RootPath::new(name).unwrap()];
            assert_eq!(place.kind, Kind::File(3));
            assert_eq!(&good[place.offset as usize..][..3], content.as_bytes());
        }
        let big = header(b'0', "a", 1 << 40);
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        for (bad, says) in [
            (archive(&[file("a", "one"), file("./a", "two")]), "twice"),
            ([good.clone(), file("x", "y")].concat(), "follows"),
            (archive(&[entry(&big, b"x")]), "middle of a"),
            (good[..1024].to_vec(), ""),
            (archive(&[file("../a", "x")]), ""),
            (flipped, "checksum"),
        ] {
            match indexed(&bad) {
                Err(error) => assert!(error.what().contains(says), "{says}: {error}"),
                // An archive that ends between two entries has lost them: whoever wants one says so.
                Ok(found) => assert!(says.is_empty() && found.len() < 2),
            }
        }
    }
}
