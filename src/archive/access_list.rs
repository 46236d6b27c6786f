//! Access control lists, as attributes hold them: `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` of
//! linux/posix_acl_xattr.h. The text is that of `SCHILY.acl.…` in tar (star(5)).
//!
//! A sandbox has one ID, and its kernel takes no list that names another. On disk a list that names somebody is
//! therefore one of entries that all name the mapped ID, in which rights are digits: see [`to_disk`]. The kernel carries
//! it with the file, hands it down from a folder to what is made in it, and keeps owner, group, mask and others of it in
//! step with the mode, as it would with the names.

use crate::error::{Error, Result};

/// The attributes that are lists: acl(5).
pub const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// No list of a file is longer: XATTR_SIZE_MAX of linux/limits.h.
pub const LONGEST: usize = 64 << 10;

const HEAD: [u8; 4] = [2, 0, 0, 0];
const NOBODY: u32 = u32::MAX;
const USER: u16 = 2;
const GROUP: u16 = 8;
/// The owner, users by name, the group, groups by name, the mask, all others.
const TAGS: [(&[u8], bool, u16); 6] = [
    (b"user", false, 1),
    (b"user", true, USER),
    (b"group", false, 4),
    (b"group", true, GROUP),
    (b"mask", false, 16),
    (b"other", false, 32),
];

/// One line of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    tag: u16,
    rights: u16,
    /// Whom it names, where its tag is one that names somebody.
    id: u32,
}

impl Line {
    fn is_named(&self) -> bool {
        matches!(self.tag, USER | GROUP)
    }
}

fn lines(value: &[u8]) -> Option<Vec<Line>> {
    let entries = value.strip_prefix(&HEAD)?.as_chunks::<8>();
    let line = |[a, b, c, d, id @ ..]: &[u8; 8]| Line {
        tag: u16::from_le_bytes([*a, *b]),
        rights: u16::from_le_bytes([*c, *d]),
        id: u32::from_le_bytes(*id),
    };
    entries.1.is_empty().then(|| entries.0.iter().map(line).collect())
}

fn bytes(lines: &[Line]) -> Vec<u8> {
    let entry =
        |line: &Line| [&line.tag.to_le_bytes()[..], &line.rights.to_le_bytes(), &line.id.to_le_bytes()].concat();
    HEAD.into_iter().chain(lines.iter().flat_map(entry)).collect()
}

/// Does it give rights to a user or group by name?
pub fn names_somebody(value: &[u8]) -> bool {
    lines(value).is_some_and(|lines| lines.iter().any(Line::is_named))
}

/// A list that a kernel would take on which all that it names are mapped.
pub fn is_valid(value: &[u8]) -> bool {
    let Some(lines) = lines(value) else { return false };
    let count = |tag: u16| lines.iter().filter(|line| line.tag == tag).count();
    let named = lines.iter().any(Line::is_named);
    lines.is_sorted_by_key(|line| line.tag)
        && lines.iter().all(|line| TAGS.iter().any(|(.., tag)| *tag == line.tag) && line.rights < 8)
        && [1, 4, 32].into_iter().all(|tag| count(tag) == 1)
        && (usize::from(named)..=1).contains(&count(16))
        && lines.iter().all(|line| !line.is_named() || line.id != NOBODY)
}

/// Octal digits of an ID.
const DIGITS: usize = 11;

/// A valid list as it lies on disk. Each line that names somebody becomes [`DIGITS`] lines whose rights are the digits
/// of the ID, most significant first, and one with its rights; all of them name the `mapped` user or group, the only one
/// that this kernel takes. A list that names nobody is what it is.
pub fn to_disk(value: &[u8], mapped: (u32, u32)) -> Vec<u8> {
    let Some(lines) = lines(value) else { return value.to_vec() };
    let mut on_disk = vec![];
    for line in lines {
        if !line.is_named() {
            on_disk.push(line);
            continue;
        }
        let id = if line.tag == USER { mapped.0 } else { mapped.1 };
        let digits = (0..DIGITS).rev().map(|at| u16::from((line.id >> (3 * at)) as u8 & 7));
        on_disk.extend(digits.chain([line.rights]).map(|rights| Line { rights, id, ..line }));
    }
    bytes(&on_disk)
}

/// The list that lies on disk so; `None`: [`to_disk`] made none of this.
pub fn from_disk(value: &[u8]) -> Option<Vec<u8>> {
    let lines = lines(value)?;
    let mut list = vec![];
    for run in lines.chunk_by(|one, next| one.tag == next.tag) {
        if !run[0].is_named() {
            list.extend(run);
            continue;
        }
        let (known, []) = run.as_chunks::<{ DIGITS + 1 }>() else { return None };
        // A list of a kernel that knows them all names each once.
        if run.iter().any(|line| line.id != run[0].id) {
            return None;
        }
        for [digits @ .., rights] in known {
            let id = digits.iter().fold(0u64, |id, digit| id << 3 | u64::from(digit.rights));
            list.push(Line { id: u32::try_from(id).ok().filter(|id| *id != NOBODY)?, ..*rights });
        }
    }
    Some(bytes(&list))
}

/// Does it say no more than the mode does? Then the kernel keeps none.
pub fn is_the_mode(attribute: &[u8], value: &[u8]) -> bool {
    attribute == ACLS[0] && value.len() == HEAD.len() + 3 * 8 && !names_somebody(value)
}

/// What a tar stream has as text. A user or group in it is a number, or has one behind its rights (star(5)).
pub fn of_text(text: &[u8]) -> Result<Vec<u8>> {
    let wrong = || Error::failed(format!("not an access control list: {:?}", String::from_utf8_lossy(text)));
    let mut list = vec![];
    for entry in text.split(|byte| b",\n".contains(byte)).map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
        let mut fields = entry.split(|byte| *byte == b':');
        let (kind, name) = (fields.next().unwrap_or_default(), fields.next().ok_or_else(wrong)?);
        let rights = fields.next().filter(|rights| rights.len() == 3).ok_or_else(wrong)?;
        let bits = rights.iter().zip([(b'r', 4), (b'w', 2), (b'x', 1)]).map(|(found, (letter, bit))| match *found {
            b'-' => Ok(0u16),
            found if found == letter => Ok(bit),
            _ => Err(wrong()),
        });
        let rights = bits.sum::<Result<u16>>()?;
        let tag = TAGS.iter().find(|(of, named, _)| *of == kind && *named != name.is_empty()).ok_or_else(wrong)?.2;
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok().filter(|id| *id != NOBODY);
        let id = match name {
            b"" => NOBODY,
            name => fields.next().and_then(number).or_else(|| number(name)).ok_or_else(|| {
                let name = String::from_utf8_lossy(name);
                wrong()
                    .why(format!("{name} is a name without a number, and means nobody here"))
                    .next("make the archive with tar --acls --numeric-owner")
            })?,
        };
        list.push(Line { tag, rights, id });
    }
    // The kernel wants them in this order.
    list.sort();
    Ok(bytes(&list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<u8> {
        of_text(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_list_as_text_is_what_the_kernel_keeps() {
        let masked = list("user::rw-,group::r-x\nmask::r--,other::---\n");
        assert_eq!(masked.len(), 4 + 4 * 8);
        assert_eq!(masked[4..12], [1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(masked[28..32], [32, 0, 0, 0]);
        assert!(is_valid(&masked) && !is_valid(&masked[..20]) && !is_valid(b""));
        assert!(!names_somebody(&masked) && !is_the_mode(ACLS[0], &masked));
        let mode = list("user::rw-,group::r--,other::r--");
        assert!(is_the_mode(ACLS[0], &mode) && !is_the_mode(ACLS[1], &mode));
    }

    #[test]
    fn whoever_is_named_has_a_number() {
        let named = list("user::rw-,user:bob:rwx:1000,group::r--,group:12:r--,mask::rwx,other::---");
        assert!(names_somebody(&named) && is_valid(&named));
        assert_eq!(named[12..20], [2, 0, 7, 0, 232, 3, 0, 0]);
        assert_eq!(named[28..36], [8, 0, 4, 0, 12, 0, 0, 0]);
        let error = of_text(b"user::rw-,user:bob:rwx,group::r--,mask::rwx,other::---").unwrap_err().to_string();
        assert!(error.contains("bob") && error.contains("--numeric-owner"), "{error}");
        for unmasked in ["user::rw-,user:1:r--,group::r--,other::r--", "user::rw-,group::r--", "group::r--,other::r--"]
        {
            assert!(!is_valid(&list(unmasked)), "{unmasked}");
        }
    }

    #[test]
    fn on_disk_a_list_names_the_mapped_id_alone_and_is_told_again() {
        let id = u32::MAX - 1;
        let named = list(&format!("user::rw-,user:0:---,user:{id}:r-x,group::r--,group:33:-w-,mask::rwx,other::---"));
        let kept = to_disk(&named, (26, 27));
        assert!(is_valid(&kept) && lines(&kept).unwrap().len() == 4 + 3 * 12);
        for line in lines(&kept).unwrap().iter().filter(|line| line.is_named()) {
            assert_eq!(line.id, if line.tag == USER { 26 } else { 27 });
        }
        assert_eq!(from_disk(&kept).unwrap(), named);
        assert_eq!(from_disk(&named), None);
        // As many as one name takes, where IDs are real.
        let dozen: String = (1..=12).map(|id| format!("user:{id}:--x,")).collect();
        let real = list(&format!("user::rw-,{dozen}group::r--,mask::rwx,other::---"));
        assert_eq!(from_disk(&real), None);
        assert_eq!(from_disk(&to_disk(&real, (0, 0))).unwrap(), real);
        let nameless = list("user::rw-,group::r-x,mask::r--,other::---");
        assert_eq!((to_disk(&nameless, (0, 0)), from_disk(&nameless)), (nameless.clone(), Some(nameless)));
        // Digits of more than an ID, and of the one that means nobody.
        for first in [7, 3] {
            let mut wrong = to_disk(&list("user::rw-,user:4294967294:r--,group::r--,mask::r--,other::---"), (0, 0));
            wrong[4 + 8 + 2] = first;
            wrong[4 + 8 * 11 + 2] = 7;
            assert_eq!(from_disk(&wrong), None, "{first}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["user", "user:", "user::", "user::rwxx", "user::xwr", "mask:bob:rwx", "owner::rwx"] {
            assert!(of_text(text.as_bytes()).is_err(), "{text}");
        }
        assert!(!names_somebody(b"") && !names_somebody(&[2, 0, 0, 0, 2]));
        assert_eq!((from_disk(b""), from_disk(&[2, 0, 0, 0, 2])), (None, None));
    }
}
