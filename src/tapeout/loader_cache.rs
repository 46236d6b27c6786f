//! `/etc/ld.so.cache`: how glibc's loader finds libraries in folders that only `/etc/ld.so.conf` names,
//! `/usr/local/lib` first of all. Written anew for each image that has such libraries, so that it names
//! what the image has and no more. Form: `sysdeps/generic/dl-cache.h` of glibc, the new form alone, as
//! ldconfig(8) writes it since 2.32; libraries below `glibc-hwcaps` are in the extension of 2.33.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::elf::Machine;
use super::loader::{Flavour, Loader};
use super::lookup::{Lookup, World};
use crate::tree::{Entry, Node, RootPath};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// Where in the header it stands where the extension is.
const EXTENSION_AT: usize = 32;
/// `cache_extension_magic`, `cache_extension_tag_glibc_hwcaps`, `DL_CACHE_HWCAP_EXTENSION`.
const EXTENSION: u32 = 0xeaa4_2174;
const HWCAPS: u32 = 1;
const OF_EXTENSION: u64 = 1 << 62;

/// A library that the cache may name: its name, its path, and the file that this leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As programs ask for it.
    pub name: String,
    /// As the loader opens it.
    pub path: String,
    /// Without links.
    pub file: RootPath,
    /// The folder of `glibc-hwcaps` that it is in: for these processors alone.
    pub level: Option<String>,
}

/// The libraries of the image in the folders that the loaders' configuration names; where two have one
/// name, the folder named first counts.
pub fn candidates(world: &World<'_>, loaders: &[Rc<Loader>]) -> Vec<Named> {
    let mut all = vec![];
    for loader in loaders.iter().filter(|l| l.flavour == Flavour::Glibc) {
        for folder in &loader.configured {
            add_folder(&mut all, world, folder, None);
            let levels = format!("{folder}/glibc-hwcaps");
            for level in world.list(&world.walk_text(&levels).path) {
                let Ok(level) = std::str::from_utf8(level.name()) else { continue };
                add_folder(&mut all, world, &format!("{levels}/{level}"), Some(level));
            }
        }
    }
    all
}

fn add_folder(all: &mut Vec<Named>, world: &World<'_>, folder: &str, level: Option<&str>) {
    let real = world.walk_text(folder);
    if !real.there {
        return;
    }
    for path in world.list(&real.path).into_iter().filter(|path| world.has(path)) {
        let Ok(name) = std::str::from_utf8(path.name()) else { continue };
        if !name.contains(".so") {
            continue;
        }
        let walk = world.walk(&path, true);
        let is_file = |entry: &Entry| matches!(entry.node, Node::File { .. });
        if walk.there && world.has(&walk.path) && world.entry(&walk.path).is_some_and(is_file) {
            let (name, path) = (name.to_string(), format!("{folder}/{name}"));
            all.push(Named { name, path, file: walk.path, level: level.map(str::to_string) });
        }
    }
}

/// The cache. Libraries of machines that have no number in it are left out.
pub fn write(libraries: &[(Named, Machine)]) -> Vec<u8> {
    // The first of a name, a machine and a level counts.
    let mut unique: BTreeMap<(&str, u32, Option<&str>), (&str, Machine)> = BTreeMap::new();
    for (named, machine) in libraries {
        if let Some(flags) = flags(*machine) {
            unique.entry((&named.name, flags, named.level.as_deref())).or_insert((&named.path, *machine));
        }
    }
    let mut entries: Vec<_> = unique.into_iter().collect();
    // The loader searches it halving, from the greatest to the least; of one name those for a level stand first.
    entries.sort_by(|((a, f, l), _), ((b, g, m), _)| {
        compare(b.as_bytes(), a.as_bytes()).then(g.cmp(f)).then(l.is_none().cmp(&m.is_none())).then(l.cmp(m))
    });
    // The loader knows levels by their place in their order.
    let levels: BTreeSet<&str> = entries.iter().filter_map(|((_, _, level), _)| *level).collect();
    let little = entries.first().is_none_or(|(_, (_, machine))| machine.little);
    let mut strings = vec![];
    let mut table = vec![];
    let begin = HEADER + ENTRY * entries.len();
    let number = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
    let mut text = |text: &str| {
        let at = (begin + strings.len()) as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    for ((name, flags, level), (path, _)) in &entries {
        // As ldconfig: the name is the end of the path.
        let path_at = text(path);
        let name_at = match path.strip_suffix(name) {
            Some(folder) => path_at + folder.len() as u32,
            None => text(name),
        };
        let level = level.and_then(|level| levels.iter().position(|l| *l == level));
        let hwcap = level.map_or(0, |at| OF_EXTENSION | at as u64);
        let (low, high) = (hwcap as u32, (hwcap >> 32) as u32);
        let (first, second) = if little { (low, high) } else { (high, low) };
        for value in [*flags, name_at, path_at, 0, first, second] {
            table.extend_from_slice(&number(value));
        }
    }
    let levels: Vec<u32> = levels.into_iter().map(&mut text).collect();
    let mut cache = MAGIC.to_vec();
    cache.extend_from_slice(&number(entries.len() as u32));
    cache.extend_from_slice(&number(strings.len() as u32));
    cache.push(if little { 2 } else { 3 });
    cache.resize(HEADER, 0);
    cache.extend(table);
    cache.extend(strings);
    if !levels.is_empty() {
        cache.resize(cache.len().next_multiple_of(4), 0);
        let at = cache.len() as u32;
        cache[EXTENSION_AT..EXTENSION_AT + 4].copy_from_slice(&number(at));
        // One section, which begins behind these six numbers.
        let section = [EXTENSION, 1, HWCAPS, 0, at + 24, 4 * levels.len() as u32];
        section.into_iter().chain(levels).for_each(|value| cache.extend_from_slice(&number(value)));
    }
    cache
}

/// `FLAG_ELF_LIBC6`, and which ABI.
fn flags(machine: Machine) -> Option<u32> {
    let abi = match (machine.number, machine.wide) {
        (62, true) => 0x0300,
        (62, false) => 0x0800,
        (3, _) => 0,
        (183, true) => 0x0a00,
        (40, _) => 0x0900,
        (21, true) => 0x0500,
        (22, true) => 0x0400,
        (243, true) => 0x1000,
        (258, true) => 0x1200,
        _ => return None,
    };
    Some(abi | 3)
}

/// `_dl_cache_libcmp`: numbers in names are compared as numbers.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (mut a, mut b) = (a, b);
    while let Some(first) = a.first() {
        match (digits(a), digits(b)) {
            (0, 0) => match b.first() {
                Some(other) if first == other => (a, b) = (&a[1..], &b[1..]),
                other => return first.cmp(other.unwrap_or(&0)),
            },
            (0, _) => return Ordering::Less,
            (_, 0) => return Ordering::Greater,
            (m, n) => {
                // As C's int does it.
                let value = |text: &[u8]| {
                    text.iter().fold(0i32, |sum, d| sum.wrapping_mul(10).wrapping_add(i32::from(d - b'0')))
                };
                let order = value(&a[..m]).wrapping_sub(value(&b[..n])).cmp(&0);
                if order != Ordering::Equal {
                    return order;
                }
                (a, b) = (&a[m..], &b[n..]);
            }
        }
    }
    if b.is_empty() { Ordering::Equal } else { Ordering::Less }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: Machine = Machine { wide: true, little: true, number: 62 };

    #[test]
    fn names_are_compared_as_the_loader_does() {
        for (a, b, expected) in [
            ("libz.so.1", "libz.so.1", Ordering::Equal),
            ("libz.so.10", "libz.so.9", Ordering::Greater),
            ("liba.so", "libb.so", Ordering::Less),
            ("lib1.so", "liba.so", Ordering::Greater),
            ("liba", "liba.so", Ordering::Less),
        ] {
            assert_eq!(compare(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        }
    }

    #[test]
    fn ldconfig_reads_what_is_written() {
        let named = |folder: &str, name: &str| Named {
            name: name.into(),
            path: format!("{folder}/{name}"),
            file: RootPath::root(),
            level: None,
        };
        let newer = |level: &str| Named { level: Some(level.into()), ..named(&format!("/n/{level}"), "libb.so.10") };
        let all = [
            newer("x86-64-v3"),
            newer("x86-64-v2"),
            named("/usr/local/lib", "libb.so.9"),
            named("/usr/local/lib", "libb.so.10"),
            named("/opt/x", "libb.so.9"),
            named("/opt/x", "liba.so"),
        ];
        let cache = write(&all.map(|n| (n, X86_64)));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &cache).unwrap();
        // Only glibc's own tool can say whether the form is right; other systems have none.
        let Some(ldconfig) = ["/sbin/ldconfig", "/usr/sbin/ldconfig"].iter().find(|p| std::path::Path::new(p).exists())
        else {
            return;
        };
        let out = std::process::Command::new(ldconfig).arg("-p").arg("-C").arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let lines: Vec<&str> = text.lines().skip(1).take(5).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                r#"libb.so.10 (libc6,x86-64, hwcap: "x86-64-v2") => /n/x86-64-v2/libb.so.10"#,
                r#"libb.so.10 (libc6,x86-64, hwcap: "x86-64-v3") => /n/x86-64-v3/libb.so.10"#,
                "libb.so.10 (libc6,x86-64) => /usr/local/lib/libb.so.10",
                "libb.so.9 (libc6,x86-64) => /usr/local/lib/libb.so.9",
                "liba.so (libc6,x86-64) => /opt/x/liba.so",
            ]
        );
    }
}
