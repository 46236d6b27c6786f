//! Writes tar archives whose bytes depend on nothing but what is in them.
//!
//! A ustar header holds what fits; the rest stands in PAX records before it (long names, names that
//! are not ASCII, big numbers, extended attributes). There are no user names, no access times, no
//! padding beyond the two zero blocks at the end. Two dialects are spoken with it: the canonical
//! stream that names a changeset ([`canonical`]) and the layers of images (`image::layer`).
//!
//! PAX: POSIX.1-2017, pax, "pax Interchange Format"; attributes as `SCHILY.xattr.NAME`, the way
//! that the OCI image spec, GNU tar and libarchive have them.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tree::{Change, Changeset, Entry, Node, RootPath};

const BLOCK: usize = 512;

/// PAX record of a removal in a canonical stream.
pub const REMOVED: &str = "TAPEOUT.removed";
/// PAX record with the digest of what was there, in a canonical stream.
pub const WAS: &str = "TAPEOUT.was";
/// PAX record of a kind of file that tar has no letter for, in a canonical stream.
pub const KIND: &str = "TAPEOUT.kind";

/// What kind of member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A regular file of so many bytes; exactly these must follow.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link to this target.
    Link(&'a [u8]),
    /// Another name of a member that came before.
    HardLink(&'a RootPath),
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

/// One member of an archive, before its content.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its name, without slashes around it.
    pub path: &'a [u8],
    /// Its kind.
    pub kind: Kind<'a>,
    /// Permission bits, set-ID and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    /// Further PAX records, written in this order.
    pub records: &'a [(&'a str, &'a str)],
}

/// Writes members one after the other.
pub struct TarWriter<W> {
    out: W,
    /// Bytes of content that are still owed to the last member.
    owed: u64,
    /// Zero bytes that end the last member's content.
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, owed: 0, padding: 0 }
    }

    /// Writes what stands before the content of a member.
    pub fn member(&mut self, member: &Member) -> Result<()> {
        let mut header = Header::new(member)?;
        header.name(member.path, member.kind == Kind::Folder);
        let pax = header.pax;
        self.whole(member.path)?;
        if !pax.is_empty() {
            let mut before = Block::new(b"././@PaxHeader", b'x', 0o644);
            before.octal(SIZE, pax.len() as u64);
            self.put(&before.sealed())?;
            self.put(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        self.put(&header.block.sealed())?;
        if let Kind::File(size) = member.kind {
            self.owed = size;
            self.padding = padding(size);
        }
        Ok(())
    }

    /// Writes a piece of the last member's content.
    pub fn content(&mut self, bytes: &[u8]) -> Result<()> {
        self.owed = (self.owed.checked_sub(bytes.len() as u64)).ok_or_else(grew)?;
        self.put(bytes)?;
        self.padded()
    }

    /// The bytes themselves are written by `write`, which is told how many are owed and says how many there were.
    pub fn content_by(
        &mut self,
        mut write: impl FnMut(&mut W, u64) -> io::Result<usize>,
        path: &RootPath,
    ) -> Result<()> {
        while self.owed > 0 {
            match write(&mut self.out, self.owed).map_err(|e| Error::io("read", path.as_path(), e))? as u64 {
                0 => break,
                n => self.owed = self.owed.checked_sub(n).ok_or_else(grew)?,
            }
        }
        self.whole(path.as_bytes())?;
        self.padded()
    }

    fn padded(&mut self) -> Result<()> {
        if self.owed == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.put(&[0; BLOCK][..padding])?;
        }
        Ok(())
    }

    /// Writes the last member's content from a reader, through a buffer of the caller's.
    pub fn content_from(&mut self, mut reader: impl Read, path: &RootPath, buffer: &mut [u8]) -> Result<()> {
        loop {
            match reader.read(buffer) {
                Ok(0) => break,
                Ok(n) => self.content(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", path.as_path(), e)),
            }
        }
        self.whole(path.as_bytes())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.whole(b"the last file")?;
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn whole(&self, path: &[u8]) -> Result<()> {
        if self.owed == 0 {
            return Ok(());
        }
        Err(Error::failed(format!(
            "a file ended too early while it was written into an archive: {} bytes are missing",
            self.owed
        ))
        .why(format!("seen at {}", String::from_utf8_lossy(path)))
        .next("run tapeout fsck"))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        self.put(&[0; BLOCK][..padding(size)])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("write", "archive", e))
    }
}

fn grew() -> Error {
    Error::failed("a file grew while it was written into an archive").next("build again when nothing changes the store")
}

fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// A field of the header: where, and how long.
type Field = (usize, usize);
const NAME: Field = (0, 100);
const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const LINK_NAME: Field = (157, 100);
const MAJOR: Field = (329, 8);
const MINOR: Field = (337, 8);
const PREFIX: Field = (345, 155);

/// 512 bytes of header.
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &[u8], letter: u8, mode: u32) -> Self {
        let mut block = Self([0; BLOCK]);
        block.bytes(NAME, name);
        block.octal(MODE, mode.into());
        for field in [UID, GID, SIZE, MTIME, MAJOR, MINOR] {
            block.octal(field, 0);
        }
        block.0[156] = letter;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block
    }

    fn bytes(&mut self, (at, length): Field, bytes: &[u8]) {
        let n = bytes.len().min(length);
        self.0[at..at + n].copy_from_slice(&bytes[..n]);
    }

    /// Writes a number with leading zeros and a NUL at the end; `false`: it doesn't fit.
    fn octal(&mut self, (at, length): Field, number: u64) -> bool {
        let digits = length - 1;
        if number >= 1 << (3 * digits) {
            return false;
        }
        for (i, byte) in self.0[at..at + digits].iter_mut().rev().enumerate() {
            *byte = b'0' + (number >> (3 * i) & 7) as u8;
        }
        true
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.bytes(CHECKSUM, b"        ");
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        // Six digits, a NUL and a space: what every tar has written since the seventh edition.
        self.octal((CHECKSUM.0, 7), sum);
        self.0[CHECKSUM.0 + 6] = 0;
        self.0
    }
}

/// A header block and the PAX records that go before it.
struct Header {
    block: Block,
    pax: Vec<u8>,
}

impl Header {
    fn new(member: &Member) -> Result<Self> {
        let letter = match member.kind {
            Kind::File(_) => b'0',
            Kind::HardLink(_) => b'1',
            Kind::Link(_) => b'2',
            Kind::Device { character: true, .. } => b'3',
            Kind::Device { character: false, .. } => b'4',
            Kind::Folder => b'5',
            Kind::Fifo => b'6',
        };
        let mut header = Self { block: Block::new(b"", letter, member.mode & 0o7777), pax: vec![] };
        let link: Option<&[u8]> = match member.kind {
            Kind::Link(target) => Some(target),
            Kind::HardLink(to) => Some(to.as_bytes()),
            _ => None,
        };
        // A name that is not UTF-8 is said to be bytes; records are UTF-8 otherwise.
        if [Some(member.path), link].into_iter().flatten().any(|name| std::str::from_utf8(name).is_err()) {
            header.record(b"hdrcharset", b"BINARY");
        }
        if let Some(link) = link {
            header.block.bytes(LINK_NAME, link);
            if link.len() > LINK_NAME.1 || !link.is_ascii() {
                header.record(b"linkpath", link);
            }
        }
        header.number(UID, "uid", member.uid.into());
        header.number(GID, "gid", member.gid.into());
        if let Kind::File(size) = member.kind {
            header.number(SIZE, "size", size);
        }
        if member.mtime < 0 || !header.block.octal(MTIME, member.mtime as u64) {
            header.record(b"mtime", member.mtime.to_string().as_bytes());
        }
        if let Kind::Device { major, minor, .. } = member.kind
            && !(header.block.octal(MAJOR, major.into()) && header.block.octal(MINOR, minor.into()))
        {
            return Err(
                Error::failed(format!("a device number that tar can't hold: {major}:{minor}")).why(shown(member.path))
            );
        }
        for (key, value) in member.xattrs {
            if key.contains(&b'=') || key.contains(&0) || key.is_empty() {
                return Err(Error::failed(format!(
                    "an extended attribute whose name tar can't hold: {:?}",
                    String::from_utf8_lossy(key)
                ))
                .why(format!("{} has it", shown(member.path)))
                .next("remove it in the rule: setfattr -x NAME FILE"));
            }
            header.record(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
        }
        for (key, value) in member.records {
            header.record(key.as_bytes(), value.as_bytes());
        }
        Ok(header)
    }

    /// Into the name field, with what doesn't fit in the prefix, or all of it in a record.
    fn name(&mut self, path: &[u8], folder: bool) {
        let mut name = path.to_vec();
        if folder {
            name.push(b'/');
        }
        if name.len() <= NAME.1 {
            self.block.bytes(NAME, &name);
        } else if let Some(cut) = split(&name) {
            self.block.bytes(PREFIX, &name[..cut]);
            self.block.bytes(NAME, &name[cut + 1..]);
        } else {
            self.block.bytes(NAME, &name);
            return self.record(b"path", &name);
        }
        if !name.is_ascii() {
            self.record(b"path", &name);
        }
    }

    fn number(&mut self, field: Field, key: &str, number: u64) {
        if !self.block.octal(field, number) {
            self.record(key.as_bytes(), number.to_string().as_bytes());
        }
    }

    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.pax.extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.pax.extend_from_slice(part);
        }
    }
}

/// Where a long name is cut between prefix and name: at the last slash that makes both fit.
fn split(name: &[u8]) -> Option<usize> {
    let inner = &name[..name.len() - 1];
    let first = name.len().checked_sub(NAME.1 + 1)?;
    (first.max(1)..inner.len().min(PREFIX.1 + 1)).rev().find(|at| inner[*at] == b'/')
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// How a member's content comes into a canonical stream: called for each file that is not another
/// name of one that came before, it must give exactly its bytes to the writer it gets.
pub type Give<'a> = dyn FnMut(&RootPath, &Entry, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a;

/// Writes the canonical stream of a changeset; the SHA-256 of it is the changeset's name.
///
/// Members stand sorted as a walk. A removal is an empty file with [`REMOVED`]; [`WAS`] holds the
/// digest of the entry that was there. Of names that are one file the first has the content, the
/// others are hard links to it. A socket is an empty file with [`KIND`]. Times are the changeset's.
pub fn canonical<W: Write>(changeset: &Changeset, out: W, give: &mut Give) -> Result<W> {
    let mut tar = TarWriter::new(out);
    let mut links = Links::default();
    for (path, change) in &changeset.changes {
        canonical_member(&mut tar, &mut links, changeset.time, path, change)?;
        if let Some(entry) = &change.now
            && matches!(entry.node, Node::File { .. })
            && links.first(path)
        {
            give(path, entry, &mut |bytes| tar.content(bytes))?;
        }
    }
    tar.finish()
}

fn canonical_member<W: Write>(
    tar: &mut TarWriter<W>,
    links: &mut Links,
    time: i64,
    path: &RootPath,
    change: &Change,
) -> Result<()> {
    let was = change.was.as_ref().map(Digest::to_string);
    let mut records = vec![];
    if change.now.is_none() {
        records.push((REMOVED, "1"));
    }
    if let Some(Node::Socket) = change.now.as_ref().map(|e| &e.node) {
        records.push((KIND, "socket"));
    }
    if let Some(was) = &was {
        records.push((WAS, was.as_str()));
    }
    let none = BTreeMap::new();
    let (kind, mode, uid, gid, xattrs) = match &change.now {
        Some(entry) => (links.kind(path, entry, None), entry.mode, entry.uid, entry.gid, &entry.xattrs),
        None => (Kind::File(0), 0, 0, 0, &none),
    };
    tar.member(&Member { path: path.as_bytes(), kind, mode, uid, gid, mtime: time, xattrs, records: &records })
}

/// Remembers which names are one file while a tree is written in order.
#[derive(Default)]
pub struct Links {
    firsts: BTreeMap<(Option<Digest>, u32), (RootPath, Entry)>,
    /// The last name was another one's.
    linked: Option<RootPath>,
    to: RootPath,
}

impl Links {
    /// The kind of member for an entry: a hard link if its group (of this changeset) had a name
    /// before that is the same in all else.
    pub fn kind<'a>(&'a mut self, path: &RootPath, entry: &'a Entry, changeset: Option<Digest>) -> Kind<'a> {
        self.linked = None;
        match &entry.node {
            Node::File { size, group, .. } => {
                if let Some(group) = group {
                    match self.firsts.get(&(changeset, *group)) {
                        Some((first, as_first)) if as_first.same_as(entry) => {
                            self.to = first.clone();
                            self.linked = Some(path.clone());
                            return Kind::HardLink(&self.to);
                        }
                        _ => {
                            self.firsts.insert((changeset, *group), (path.clone(), entry.clone()));
                        }
                    }
                }
                Kind::File(*size)
            }
            Node::Folder => Kind::Folder,
            Node::Link { target } => Kind::Link(target),
            Node::Device { character, major, minor } => {
                Kind::Device { character: *character, major: *major, minor: *minor }
            }
            Node::Fifo => Kind::Fifo,
            Node::Socket => Kind::File(0),
        }
    }

    /// Was the last name asked about not another one's?
    pub fn first(&self, path: &RootPath) -> bool {
        self.linked.as_ref() != Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(path: impl AsRef<[u8]>) -> RootPath {
        RootPath::new(path).unwrap()
    }

    fn archive(members: &[(&[u8], Kind, &[u8])]) -> Vec<u8> {
        let mut tar = TarWriter::new(vec![]);
        for (path, kind, content) in members {
            let xattrs = BTreeMap::new();
            tar.member(&Member {
                path,
                kind: *kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: 1,
                xattrs: &xattrs,
                records: &[],
            })
            .unwrap();
            if !content.is_empty() {
                tar.content(content).unwrap();
            }
        }
        tar.finish().unwrap()
    }

    /// Path, kind letter, link name, size and uid as the tar crate reads them.
    fn read(bytes: &[u8]) -> Vec<(Vec<u8>, u8, Vec<u8>, u64)> {
        let mut archive = tar::Archive::new(bytes);
        (archive.entries().unwrap())
            .map(|e| {
                let e = e.unwrap();
                let link = e.link_name_bytes().map(|l| l.to_vec()).unwrap_or_default();
                (e.path_bytes().to_vec(), e.header().as_bytes()[156], link, e.size())
            })
            .collect()
    }

    #[test]
    fn names_of_every_length_come_back() {
        for length in [1, 99, 100, 101, 155, 156, 254, 255] {
            for folder in ["", "d", &"d".repeat(200), &["e".repeat(90), "f".repeat(90)].join("/")] {
                for kind in [Kind::File(0), Kind::Folder] {
                    let mut path = folder.as_bytes().to_vec();
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend(vec![b'n'; length]);
                    let seen = read(&archive(&[(&path, kind, b"")]));
                    let seen = seen[0].0.strip_suffix(b"/").unwrap_or(&seen[0].0);
                    assert_eq!(seen, path, "{length} in {}", folder.len());
                }
            }
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_comes_back_as_bytes() {
        let seen = read(&archive(&[
            (b"a\xff\xfeb", Kind::Link(b"\xff"), b""),
            (&[b"x".repeat(99), b"\xff\xff".to_vec()].concat(), Kind::Fifo, b""),
        ]));
        assert_eq!((seen[0].0.as_slice(), seen[0].2.as_slice()), (&b"a\xff\xfeb"[..], &b"\xff"[..]));
        assert!(seen[1].0.ends_with(b"x\xff\xff"));
    }

    #[test]
    fn big_numbers_stand_in_records() {
        let mut tar = TarWriter::new(vec![]);
        let xattrs = BTreeMap::from([(b"user.x".to_vec(), b"a\0\nb".to_vec())]);
        let kind = Kind::File(1 << 40);
        tar.member(&Member {
            path: b"f",
            kind,
            mode: 0o4755,
            uid: u32::MAX - 1,
            gid: 1 << 21,
            mtime: -5,
            xattrs: &xattrs,
            records: &[("A.b", "c")],
        })
        .unwrap();
        let text = String::from_utf8_lossy(&tar.out).into_owned();
        for record in [
            "18 uid=4294967294\n",
            "15 gid=2097152\n",
            "22 size=1099511627776\n",
            "12 mtime=-5\n",
            " SCHILY.xattr.user.x=a\0\nb\n",
            "8 A.b=c\n",
        ] {
            assert!(text.contains(record), "{record:?}");
        }
        assert!(tar.finish().is_err(), "content is missing");
    }

    #[test]
    fn content_of_another_length_than_said_is_an_error() {
        let member = |size| Member {
            path: b"f",
            kind: Kind::File(size),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: const { &BTreeMap::new() },
            records: &[],
        };
        let mut tar = TarWriter::new(vec![]);
        tar.member(&member(3)).unwrap();
        assert!(tar.content(b"1234").is_err());
        let mut tar = TarWriter::new(vec![]);
        tar.member(&member(3)).unwrap();
        assert!(tar.content_from(&b"12"[..], &root("f"), &mut [0; 10]).is_err());
        assert!(tar.member(&member(0)).is_err());
    }

    #[test]
    fn an_attribute_whose_name_has_an_equals_sign_is_an_error() {
        let xattrs = BTreeMap::from([(b"user.a=b".to_vec(), vec![])]);
        let member =
            Member { path: b"f", kind: Kind::Folder, mode: 0, uid: 0, gid: 0, mtime: 0, xattrs: &xattrs, records: &[] };
        assert!(TarWriter::new(vec![]).member(&member).unwrap_err().next_step().is_some());
    }

    #[test]
    fn a_canonical_stream_says_what_was_removed_and_what_was_there() {
        let linked = |text: &str| {
            let mut entry = Entry::file(text.as_bytes(), 0o644);
            if let Node::File { group, .. } = &mut entry.node {
                *group = Some(0);
            }
            Some(entry)
        };
        let was = Digest::of("x");
        let changes = [
            ("d", Some(Entry::folder(0o755)), Some(was)),
            ("d/gone", None, Some(was)),
            ("one", linked("1"), None),
            ("two", linked("1"), None),
        ];
        let changes = changes.into_iter().map(|(p, now, was)| (root(p), Change { was, now })).collect();
        let mut given = vec![];
        let bytes = canonical(&Changeset { time: 7, changes }, vec![], &mut |path, _, put| {
            given.push(path.to_string());
            put(b"1")
        })
        .unwrap();
        assert_eq!(given, ["/one"]);
        let seen: Vec<_> = read(&bytes)
            .into_iter()
            .map(|(p, kind, link, _)| (String::from_utf8(p).unwrap(), kind as char, String::from_utf8(link).unwrap()))
            .collect();
        let expected = [("d/", '5', ""), ("d/gone", '0', ""), ("one", '0', ""), ("two", '1', "one")];
        assert_eq!(seen, expected.map(|(p, k, l)| (p.to_string(), k, l.to_string())));
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches(&format!("TAPEOUT.was={was}\n")).count(), 2);
        assert_eq!(text.matches(" TAPEOUT.removed=1\n").count(), 1);
    }
}
