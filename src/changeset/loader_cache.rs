//! `/etc/ld.so.cache`, the list by which the loader finds libraries: the union of two of them.
//!
//! Two rules that install libraries each run ldconfig, and each cache lacks the other's. The format
//! is that of glibc's sysdeps/generic/dl-cache.h (2.32 and later): a header of 48 bytes, entries of
//! 24 bytes, strings, and an extension that names the glibc-hwcaps folders. All offsets are from
//! the start of the file.

use std::cmp::Ordering;
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// In `hwcap`: the low 32 bits number a folder of the extension.
const BY_FOLDER: u64 = 1 << 62;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
const FOLDERS: u32 = 1;

/// One library: which kind, its soname, where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Library {
    flags: u32,
    name: Vec<u8>,
    path: Vec<u8>,
    version: u32,
    /// Without the number of the folder.
    hardware: u64,
    /// The folder below glibc-hwcaps.
    folder: Option<Vec<u8>>,
}

/// The entries of both, the first one's before the second's where both have a library of one name;
/// `None` when one has a form that is not known here.
pub fn union(one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let (flags, mut all) = parse(one)?;
    let (other_flags, more) = parse(other)?;
    if flags != other_flags {
        return None;
    }
    for library in more {
        if !all.contains(&library) {
            all.push(library);
        }
    }
    all.sort_by(order);
    write(flags, &all)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_ne_bytes)
}

fn text_at(bytes: &[u8], at: u32) -> Option<Vec<u8>> {
    let rest = bytes.get(at as usize..)?;
    rest.iter().position(|b| *b == 0).map(|end| rest[..end].to_vec())
}

fn parse(bytes: &[u8]) -> Option<(u8, Vec<Library>)> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    let count = u32_at(bytes, 20)? as usize;
    let entries = bytes.get(HEADER..HEADER.checked_add(count.checked_mul(ENTRY)?)?)?;
    let folders = folders(bytes, u32_at(bytes, 32)? as usize)?;
    let mut libraries = vec![];
    for entry in entries.chunks_exact(ENTRY) {
        let hardware = number(entry, 16).map(u64::from_ne_bytes)?;
        let (hardware, folder) = if hardware & BY_FOLDER == 0 {
            (hardware, None)
        } else {
            (hardware & !u64::from(u32::MAX), Some(folders.get(hardware as u32 as usize)?.clone()))
        };
        libraries.push(Library {
            flags: u32_at(entry, 0)?,
            name: text_at(bytes, u32_at(entry, 4)?)?,
            path: text_at(bytes, u32_at(entry, 8)?)?,
            version: u32_at(entry, 12)?,
            hardware,
            folder,
        });
    }
    Some((bytes[28], libraries))
}

/// `struct cache_extension`: magic, count, then sections of tag, flags, offset, size.
fn folders(bytes: &[u8], at: usize) -> Option<Vec<Vec<u8>>> {
    if at == 0 {
        return Some(vec![]);
    }
    if u32_at(bytes, at)? != EXTENSION_MAGIC {
        return None;
    }
    let count = u32_at(bytes, at + 4)? as usize;
    for section in bytes.get(at + 8..)?.chunks_exact(16).take(count) {
        if u32_at(section, 0)? == FOLDERS {
            let (from, size) = (u32_at(section, 8)? as usize, u32_at(section, 12)? as usize);
            let list = bytes.get(from..from.checked_add(size)?)?;
            return list.chunks_exact(4).map(|at| text_at(bytes, u32_at(at, 0)?)).collect();
        }
    }
    Some(vec![])
}

/// The order that the loader's binary search needs: `compare` in glibc's elf/cache.c.
fn order(a: &Library, b: &Library) -> Ordering {
    let by_folder = || match (&a.folder, &b.folder) {
        (Some(a), Some(b)) => a.cmp(b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    compare_names(&b.name, &a.name).then(b.flags.cmp(&a.flags)).then_with(by_folder).then(b.hardware.cmp(&a.hardware))
}

/// `_dl_cache_libcmp`: runs of digits are compared as numbers, and a digit is more than another byte.
fn compare_names(mut a: &[u8], mut b: &[u8]) -> Ordering {
    fn digits(text: &mut &[u8]) -> u128 {
        let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
        let value = text[..count]
            .iter()
            .fold(0u128, |sum, digit| sum.saturating_mul(10).saturating_add(u128::from(digit - b'0')));
        *text = &text[count..];
        value
    }
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => match (x.is_ascii_digit(), y.is_ascii_digit()) {
                (true, true) => match digits(&mut a).cmp(&digits(&mut b)) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                },
                (true, false) => return Ordering::Greater,
                (false, true) => return Ordering::Less,
                (false, false) if x != y => return (*x as i8).cmp(&(*y as i8)),
                (false, false) => (a, b) = (&a[1..], &b[1..]),
            },
        }
    }
}

/// Strings in a table, each once.
struct Strings {
    bytes: Vec<u8>,
    start: usize,
    at: BTreeMap<Vec<u8>, u32>,
}

impl Strings {
    fn add(&mut self, text: &[u8]) -> Option<u32> {
        if let Some(at) = self.at.get(text) {
            return Some(*at);
        }
        let at = u32::try_from(self.start + self.bytes.len()).ok()?;
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
        self.at.insert(text.to_vec(), at);
        Some(at)
    }
}

fn write(flags: u8, libraries: &[Library]) -> Option<Vec<u8>> {
    let mut names: Vec<&Vec<u8>> = libraries.iter().filter_map(|l| l.folder.as_ref()).collect();
    names.sort();
    names.dedup();
    let mut strings = Strings { bytes: vec![], start: HEADER + ENTRY * libraries.len(), at: BTreeMap::new() };
    let mut entries = vec![];
    for library in libraries {
        let folder = library.folder.as_ref().and_then(|folder| names.binary_search(&folder).ok()).unwrap_or(0);
        entries.extend(library.flags.to_ne_bytes());
        entries.extend(strings.add(&library.name)?.to_ne_bytes());
        entries.extend(strings.add(&library.path)?.to_ne_bytes());
        entries.extend(library.version.to_ne_bytes());
        entries.extend((library.hardware | folder as u64).to_ne_bytes());
    }
    let folders = names.iter().map(|name| strings.add(name)).collect::<Option<Vec<_>>>()?;
    let end = strings.start + strings.bytes.len();
    let extension = if folders.is_empty() { 0 } else { end.next_multiple_of(4) };
    let mut out = MAGIC.to_vec();
    out.extend(u32::try_from(libraries.len()).ok()?.to_ne_bytes());
    out.extend(u32::try_from(strings.bytes.len()).ok()?.to_ne_bytes());
    out.extend([flags, 0, 0, 0]);
    out.extend(u32::try_from(extension).ok()?.to_ne_bytes());
    out.extend([0; 12]);
    out.extend(entries);
    out.extend(strings.bytes);
    if !folders.is_empty() {
        out.resize(extension, 0);
        let section = [FOLDERS, 0, u32::try_from(extension + 8 + 16).ok()?, 4 * folders.len() as u32];
        out.extend([EXTENSION_MAGIC, 1].iter().chain(&section).chain(&folders).flat_map(|n| n.to_ne_bytes()));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(name: &str, path: &str, folder: Option<&str>) -> Library {
        let hardware = if folder.is_some() { BY_FOLDER } else { 0 };
        Library {
            flags: 0x303,
            name: name.into(),
            path: path.into(),
            version: 0,
            hardware,
            folder: folder.map(|f| f.as_bytes().to_vec()),
        }
    }

    fn cache(libraries: &[Library]) -> Vec<u8> {
        let mut sorted = libraries.to_vec();
        sorted.sort_by(order);
        write(2, &sorted).unwrap()
    }

    #[test]
    fn the_libraries_of_both_are_there_in_the_loaders_order() {
        let one = cache(&[
            library("libz.so.1", "/lib/libz.so.1", None),
            library("liba.so.2", "/usr/local/lib/liba.so.2", None),
        ]);
        let other = cache(&[
            library("libz.so.1", "/lib/libz.so.1", None),
            library("liba.so.10", "/opt/liba.so.10", None),
            library("liba.so.2", "/opt/hw/liba.so.2", Some("x86-64-v3")),
        ]);
        let (_, all) = parse(&union(&one, &other).unwrap()).unwrap();
        let paths: Vec<_> = all.iter().map(|l| String::from_utf8_lossy(&l.path).into_owned()).collect();
        assert_eq!(paths, ["/lib/libz.so.1", "/opt/liba.so.10", "/opt/hw/liba.so.2", "/usr/local/lib/liba.so.2"]);
        assert_eq!(all[2].folder.as_deref(), Some(&b"x86-64-v3"[..]));
    }

    #[test]
    fn what_is_no_such_cache_is_not_read() {
        let good = cache(&[library("liba.so", "/liba.so", Some("v3"))]);
        assert!(parse(&good).is_some());
        for length in 0..good.len() - 1 {
            // Any shorter one is refused or read without a panic.
            let _ = parse(&good[..length]);
        }
        assert!(union(b"ld.so-1.7.0", &good).is_none());
        assert!(union(&good, b"").is_none());
    }

    #[test]
    fn the_cache_of_this_machine_comes_back_whole() {
        let Ok(own) = std::fs::read("/etc/ld.so.cache") else { return };
        let Some((_, before)) = parse(&own) else { return };
        let (_, after) = parse(&union(&own, &own).unwrap()).unwrap();
        assert_eq!(after, before, "ldconfig's own order is ours");
        let file = tempfile::NamedTempFile::new().unwrap();
        let more = cache(&[library("libtapeout-test.so.1", "/opt/libtapeout-test.so.1", None)]);
        std::fs::write(file.path(), union(&own, &more).unwrap()).unwrap();
        let Ok(listed) = std::process::Command::new("/sbin/ldconfig").arg("-p").arg("-C").arg(file.path()).output()
        else {
            return;
        };
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            listed.starts_with(&format!("{} libs found", before.len() + 1))
                && listed.contains("=> /opt/libtapeout-test.so.1"),
            "{listed}"
        );
    }
}
