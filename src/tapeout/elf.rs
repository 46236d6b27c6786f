//! What an ELF file says of its needs: elf(5), and "Symbol versioning" of the LSB.
//!
//! Read in pieces, each with a bound: a library of gigabytes costs what its tables cost.

use std::collections::{BTreeMap, BTreeSet};

use goblin::container::{Ctx, Endian};
use goblin::elf::dynamic as tag;
use goblin::elf::header::{ET_DYN, ET_EXEC, header64::SIZEOF_EHDR as HEADER};
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE, ProgramHeader};
use goblin::elf::{Elf as Goblin, Header};

use super::lookup::Bytes;
use crate::error::{Error, Result};

/// The type of the notes in `.note.dlopen`: the ELF dlopen metadata specification of systemd.
const NOTE_DLOPEN: u32 = 0x407c_0c0a;

/// What the dynamic section has an address of, and may follow the table of symbols.
const TABLES: &[u64] = &[
    tag::DT_STRTAB,
    tag::DT_HASH,
    tag::DT_GNU_HASH,
    tag::DT_VERSYM,
    tag::DT_VERDEF,
    tag::DT_VERNEED,
    tag::DT_RELA,
    tag::DT_REL,
    tag::DT_JMPREL,
    tag::DT_INIT,
];

const MOST_HEADERS: usize = 4096;
const MOST_DYNAMIC: u64 = 1 << 20;
const MOST_STRINGS: u64 = 64 << 20;
const MOST_SYMBOLS: u64 = 1 << 20;
const MOST_VERSIONS: u64 = 4 << 20;
const MOST_NOTES: u64 = 1 << 20;

/// What can be loaded together: class, byte order and machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine {
    /// 64 bits, or 32.
    pub wide: bool,
    /// The byte order is little endian.
    pub little: bool,
    /// `e_machine`.
    pub number: u16,
}

/// A file that a program loads by itself while it runs, as it declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Names, the first that is there counts.
    pub sonames: Vec<String>,
    /// `required`, `recommended` or `suggested`.
    pub priority: String,
}

/// A program or a shared library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// What it can be loaded with.
    pub machine: Machine,
    /// Its loader; libraries have none.
    pub interpreter: Option<String>,
    /// The name that it has for the loader.
    pub soname: Option<String>,
    /// Names of the libraries that it needs.
    pub needed: Vec<String>,
    /// `DT_RPATH`; void where there is a `DT_RUNPATH`.
    pub rpath: Vec<String>,
    /// `DT_RUNPATH`.
    pub runpath: Option<Vec<String>>,
    /// `-z nodefaultlib`.
    pub no_default: bool,
    /// Symbol versions that it needs, by library.
    pub wants: BTreeMap<String, BTreeSet<String>>,
    /// Symbol versions that it has.
    pub has: BTreeSet<String>,
    /// Symbols that others must have, of those that were asked for.
    pub imports: BTreeSet<String>,
    /// What it says it loads by itself.
    pub declared: Vec<Declared>,
}

/// Does a file begin as an ELF file?
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

/// Reads a program or library. `None`: it is another kind of ELF file (an object file, a core, one
/// with nothing to load). `watched` are the imported symbols that are of interest.
pub fn read(bytes: &Bytes, watched: &[&str]) -> Result<Option<Elf>> {
    let start = bytes.at(0, HEADER as u64)?;
    let header = Goblin::parse_header(&padded(start)).map_err(broken)?;
    if !matches!(header.e_type, ET_EXEC | ET_DYN) {
        return Ok(None);
    }
    Reading::new(bytes, header)?.read(watched)
}

/// The header of the 32-bit form is shorter than what is asked for.
fn padded(mut start: Vec<u8>) -> Vec<u8> {
    if is_elf(&start) && start.get(4) == Some(&1) && start.len() >= 52 {
        start.resize(HEADER, 0);
    }
    start
}

fn broken(why: impl std::fmt::Display) -> Error {
    Error::failed("not a whole ELF file").why(why.to_string())
}

struct Reading<'a> {
    bytes: &'a Bytes,
    headers: Vec<ProgramHeader>,
    machine: Machine,
}

/// The entries of the dynamic section that say one number.
struct Dynamic(Vec<(u64, u64)>);

impl Dynamic {
    fn one(&self, wanted: u64) -> Option<u64> {
        self.0.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value)
    }

    fn all(&self, wanted: u64) -> impl Iterator<Item = u64> {
        self.0.iter().filter(move |(tag, _)| *tag == wanted).map(|(_, value)| *value)
    }
}

impl<'a> Reading<'a> {
    fn new(bytes: &'a Bytes, header: Header) -> Result<Self> {
        let ctx = Ctx::new(header.container().map_err(broken)?, header.endianness().map_err(broken)?);
        let count = usize::from(header.e_phnum);
        if count > MOST_HEADERS {
            return Err(broken(format!("it has {count} program headers")));
        }
        let size = ProgramHeader::size(ctx) * count;
        let table = bytes.at(header.e_phoff, size as u64)?;
        let headers = if count == 0 { vec![] } else { ProgramHeader::parse(&table, 0, count, ctx).map_err(broken)? };
        let machine = Machine { wide: ctx.is_big(), little: ctx.le == Endian::Little, number: header.e_machine };
        Ok(Self { bytes, headers, machine })
    }

    fn read(&self, watched: &[&str]) -> Result<Option<Elf>> {
        let mut elf = Elf {
            machine: self.machine,
            interpreter: self.interpreter()?,
            soname: None,
            needed: vec![],
            rpath: vec![],
            runpath: None,
            no_default: false,
            wants: BTreeMap::new(),
            has: BTreeSet::new(),
            imports: BTreeSet::new(),
            declared: self.declared()?,
        };
        let Some(dynamic) = self.dynamic()? else {
            // Nothing to load at run time: a static program, or debug symbols alone.
            return Ok(elf.interpreter.is_some().then_some(elf));
        };
        let strings = self.strings(&dynamic)?;
        let text = |offset: u64| string(&strings, offset);
        let folders = |offset: u64| -> Vec<String> {
            text(offset).split(':').filter(|d| !d.is_empty()).map(str::to_string).collect()
        };
        elf.soname = dynamic.one(tag::DT_SONAME).map(text).filter(|name| !name.is_empty());
        elf.needed = dynamic.all(tag::DT_NEEDED).map(text).filter(|name| !name.is_empty()).collect();
        elf.runpath = dynamic.one(tag::DT_RUNPATH).map(folders);
        if elf.runpath.is_none() {
            elf.rpath = dynamic.one(tag::DT_RPATH).map(folders).unwrap_or_default();
        }
        elf.no_default = dynamic.one(tag::DT_FLAGS_1).is_some_and(|flags| flags & tag::DF_1_NODEFLIB != 0);
        elf.wants = self.wants(&dynamic, &strings)?;
        elf.has = self.has(&dynamic, &strings)?;
        elf.imports = self.imports(&dynamic, &strings, watched)?;
        Ok(Some(elf))
    }

    fn interpreter(&self) -> Result<Option<String>> {
        let Some(header) = self.headers.iter().find(|h| h.p_type == PT_INTERP && h.p_filesz > 0) else {
            return Ok(None);
        };
        let path = self.bytes.at(header.p_offset, header.p_filesz.min(4096))?;
        Ok(Some(string(&path, 0)).filter(|path| path.starts_with('/')))
    }

    fn dynamic(&self) -> Result<Option<Dynamic>> {
        let Some(header) = self.headers.iter().find(|h| h.p_type == PT_DYNAMIC && h.p_filesz > 0) else {
            return Ok(None);
        };
        let table = self.bytes.at(header.p_offset, header.p_filesz.min(MOST_DYNAMIC))?;
        let word = self.word();
        let pairs = table.chunks_exact(2 * word).map(|pair| (self.number(&pair[..word]), self.number(&pair[word..])));
        let entries: Vec<_> = pairs.take_while(|(tag, _)| *tag != tag::DT_NULL).collect();
        Ok(Some(Dynamic(entries)).filter(|d| !d.0.is_empty()))
    }

    fn strings(&self, dynamic: &Dynamic) -> Result<Vec<u8>> {
        let Some(offset) = dynamic.one(tag::DT_STRTAB).and_then(|address| self.offset(address)) else {
            return Ok(vec![]);
        };
        let size = dynamic.one(tag::DT_STRSZ).unwrap_or_default();
        if size > MOST_STRINGS {
            return Err(broken(format!("its string table has {size} bytes")));
        }
        self.bytes.at(offset, size)
    }

    /// `.gnu.version_r`: for each library the versions that are needed of it, weak ones left out.
    fn wants(&self, dynamic: &Dynamic, strings: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut wants: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let table = self.versions(dynamic, tag::DT_VERNEED)?;
        let mut at = 0usize;
        for _ in 0..dynamic.one(tag::DT_VERNEEDNUM).unwrap_or_default().min(65_536) {
            let Some([_, count, file, aux, next]) = self.fields(&table, at, [2, 2, 4, 4, 4]) else { break };
            let mut here = at.saturating_add(aux as usize);
            for _ in 0..count {
                let Some([_, flags, _, name, next]) = self.fields(&table, here, [4, 2, 2, 4, 4]) else { break };
                const WEAK: u64 = 2;
                if flags & WEAK == 0 {
                    wants.entry(string(strings, file)).or_default().insert(string(strings, name));
                }
                if next == 0 {
                    break;
                }
                here = here.saturating_add(next as usize);
            }
            if next == 0 {
                break;
            }
            at = at.saturating_add(next as usize);
        }
        Ok(wants)
    }

    /// `.gnu.version_d`: the versions that a library has.
    fn has(&self, dynamic: &Dynamic, strings: &[u8]) -> Result<BTreeSet<String>> {
        let mut has = BTreeSet::new();
        let table = self.versions(dynamic, tag::DT_VERDEF)?;
        let mut at = 0usize;
        for _ in 0..dynamic.one(tag::DT_VERDEFNUM).unwrap_or_default().min(65_536) {
            let Some([_, _, _, _, _, aux, next]) = self.fields(&table, at, [2, 2, 2, 2, 4, 4, 4]) else { break };
            if let Some([name, _]) = self.fields(&table, at.saturating_add(aux as usize), [4, 4]) {
                has.insert(string(strings, name));
            }
            if next == 0 {
                break;
            }
            at = at.saturating_add(next as usize);
        }
        Ok(has)
    }

    fn versions(&self, dynamic: &Dynamic, of: u64) -> Result<Vec<u8>> {
        match dynamic.one(of).and_then(|address| self.offset(address)) {
            Some(offset) => self.bytes.at(offset, MOST_VERSIONS),
            None => Ok(vec![]),
        }
    }

    /// Nothing says how long the table of symbols is: the GNU hash table knows the exported ones, and where
    /// there are none, as in most programs, not even how many stand before them. So it is read up to where the
    /// next of the tables begins, or the segment ends; what is no symbol there has no name that is watched.
    fn imports(&self, dynamic: &Dynamic, strings: &[u8], watched: &[&str]) -> Result<BTreeSet<String>> {
        let Some(begin) = dynamic.one(tag::DT_SYMTAB) else { return Ok(BTreeSet::new()) };
        let Some((offset, rest)) = self.place(begin) else { return Ok(BTreeSet::new()) };
        let next = TABLES.iter().filter_map(|table| dynamic.one(*table)?.checked_sub(begin)).filter(|n| *n > 0).min();
        let size = if self.machine.wide { 24 } else { 16 };
        let table = self.bytes.at(offset, next.unwrap_or(rest).min(rest).min(MOST_SYMBOLS * size))?;
        let mut imports = BTreeSet::new();
        for symbol in table.chunks_exact(size as usize) {
            let section = if self.machine.wide { &symbol[6..8] } else { &symbol[14..16] };
            if self.number(section) == 0 {
                let name = bytes_of(strings, self.number(&symbol[..4]));
                imports.extend(watched.iter().find(|w| w.as_bytes() == name).map(|w| w.to_string()));
            }
        }
        Ok(imports)
    }

    fn declared(&self) -> Result<Vec<Declared>> {
        let mut all = vec![];
        for header in self.headers.iter().filter(|h| h.p_type == PT_NOTE && h.p_filesz > 0) {
            let notes = self.bytes.at(header.p_offset, header.p_filesz.min(MOST_NOTES))?;
            let align = if header.p_align == 8 { 8 } else { 4 };
            let mut at = 0usize;
            while let Some([name, size, kind]) = self.fields(&notes, at, [4, 4, 4]) {
                let round = |n: usize| n.saturating_add(align - 1) & !(align - 1);
                let begin = round(at.saturating_add(12).saturating_add(name as usize));
                let end = begin.saturating_add(size as usize);
                let Some(text) = notes.get(begin..end) else { break };
                if kind == u64::from(NOTE_DLOPEN) && notes.get(at + 12..).is_some_and(|n| n.starts_with(b"FDO\0")) {
                    all.extend(parse_declared(text));
                }
                at = round(end);
            }
        }
        Ok(all)
    }

    /// Fields of these widths, one after the other.
    fn fields<const N: usize>(&self, table: &[u8], at: usize, widths: [usize; N]) -> Option<[u64; N]> {
        let mut values = [0; N];
        let mut here = at;
        for (value, width) in values.iter_mut().zip(widths) {
            *value = self.number(table.get(here..here.checked_add(width)?)?);
            here += width;
        }
        Some(values)
    }

    fn word(&self) -> usize {
        if self.machine.wide { 8 } else { 4 }
    }

    fn number(&self, bytes: &[u8]) -> u64 {
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.machine.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }

    /// Where in the file an address is.
    fn offset(&self, address: u64) -> Option<u64> {
        self.place(address).map(|(offset, _)| offset)
    }

    /// Where in the file an address is, and how many bytes of its segment follow.
    fn place(&self, address: u64) -> Option<(u64, u64)> {
        let holds =
            |h: &&ProgramHeader| h.p_type == PT_LOAD && address >= h.p_vaddr && address - h.p_vaddr < h.p_filesz;
        let header = self.headers.iter().find(holds)?;
        let skip = address - header.p_vaddr;
        Some((header.p_offset.checked_add(skip)?, header.p_filesz - skip))
    }
}

/// `[{"soname": ["libx.so.1"], "priority": "required"}]`; what isn't in this form is passed over.
fn parse_declared(text: &[u8]) -> Vec<Declared> {
    let text = text.split(|b| *b == 0).next().unwrap_or_default();
    let Ok(serde_json::Value::Array(items)) = serde_json::from_slice(text) else { return vec![] };
    let declared = |item: &serde_json::Value| {
        let names = item.get("soname")?.as_array()?;
        let sonames: Vec<_> = names.iter().filter_map(|n| n.as_str()).map(str::to_string).collect();
        let priority = item.get("priority").and_then(|p| p.as_str()).unwrap_or("recommended").to_string();
        (!sonames.is_empty()).then_some(Declared { sonames, priority })
    };
    items.iter().filter_map(declared).collect()
}

fn bytes_of(strings: &[u8], offset: u64) -> &[u8] {
    let rest = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or_default();
    rest.split(|b| *b == 0).next().unwrap_or_default()
}

fn string(strings: &[u8], offset: u64) -> String {
    String::from_utf8_lossy(bytes_of(strings, offset)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_host(path: &str) -> Option<Elf> {
        let bytes = Bytes::Inline(std::fs::read(path).unwrap());
        read(&bytes, &["getaddrinfo", "dlopen", "malloc", "fork", "execve"]).unwrap()
    }

    #[test]
    fn a_program_of_this_machine_says_what_it_needs() {
        let elf = of_host("/bin/sh").unwrap();
        assert!(elf.interpreter.unwrap().contains("/ld-"));
        assert!(elf.needed.iter().any(|n| n.starts_with("libc.")), "{:?}", elf.needed);
        assert!(elf.wants.values().flatten().any(|v| v.starts_with("GLIBC_")), "{:?}", elf.wants);
        assert!(elf.imports.contains("execve"), "{:?}", elf.imports);
        assert!(!elf.imports.contains("getaddrinfo"));
    }

    /// With and without exported symbols, position-independent and not, in both forms of the hash table.
    #[test]
    fn imports_are_seen_however_a_program_was_linked() {
        if !std::process::Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success()) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("x.c");
        std::fs::write(
            &source,
            "#include <iconv.h>\n#include <unistd.h>\nint shown;\n
             int main(void) { return iconv_open(\"a\", \"b\") == 0 && fork() && shown; }",
        )
        .unwrap();
        for style in ["gnu", "sysv", "both"] {
            for flags in [&["-no-pie"][..], &["-pie", "-fPIE"], &["-no-pie", "-rdynamic"], &["-shared", "-fPIC"]] {
                let out = dir.path().join("x");
                let cc = std::process::Command::new("cc")
                    .args(flags)
                    .arg(format!("-Wl,--hash-style={style}"))
                    .arg("-o")
                    .arg(&out)
                    .arg(&source)
                    .status();
                assert!(cc.unwrap().success());
                let bytes = Bytes::Inline(std::fs::read(&out).unwrap());
                let imports = read(&bytes, &["iconv_open", "fork", "shown", "execve"]).unwrap().unwrap().imports;
                assert_eq!(imports, BTreeSet::from(["iconv_open".into(), "fork".into()]), "{style} {flags:?}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_an_error_or_says_less() {
        let whole = std::fs::read("/bin/true").unwrap();
        for length in (0..whole.len().min(8192)).step_by(7).chain((0..whole.len()).step_by(997)) {
            let _ = read(&Bytes::Inline(whole[..length].to_vec()), &["malloc"]);
        }
        assert!(read(&Bytes::Inline(whole[..40].to_vec()), &[]).is_err());
    }

    #[test]
    fn a_file_with_one_byte_changed_never_panics() {
        let whole = std::fs::read("/bin/true").unwrap();
        for at in (0..whole.len().min(4096)).chain((4096..whole.len()).step_by(61)) {
            let mut changed = whole.clone();
            changed[at] = !changed[at];
            let _ = read(&Bytes::Inline(changed), &["malloc"]);
        }
    }

    #[test]
    fn declared_loads_are_read() {
        let text = br#"[{"soname":["libx.so.1","libx.so"],"priority":"required"},{"feature":"y"}]"#;
        assert_eq!(
            parse_declared(text),
            [Declared { sonames: vec!["libx.so.1".into(), "libx.so".into()], priority: "required".into() }]
        );
        assert!(parse_declared(b"{}").is_empty() && parse_declared(b"\xff").is_empty());
    }
}
