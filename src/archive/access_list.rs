//! Access control lists, as attributes hold them: `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` of
//! linux/posix_acl_xattr.h. The text is that of `SCHILY.acl.…` in tar (star(5)).
//!
//! A list is kept only where it names nobody: one ID stands for every owner in a sandbox, so that the numbers in a list
//! would mean nobody, or somebody else.

use crate::error::{Error, Result};

/// The attributes that are lists: acl(5).
pub const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

const HEAD: [u8; 4] = [2, 0, 0, 0];
const NOBODY: u32 = u32::MAX;
/// The owner, users by name, the group, groups by name, the mask, all others.
const TAGS: [(&[u8], bool, u16); 6] = [
    (b"user", false, 1),
    (b"user", true, 2),
    (b"group", false, 4),
    (b"group", true, 8),
    (b"mask", false, 16),
    (b"other", false, 32),
];

/// Does it give rights to a user or group by name?
pub fn names_somebody(value: &[u8]) -> bool {
    let tags = value.get(HEAD.len()..).unwrap_or_default().chunks(8).filter_map(|entry| entry.first_chunk::<2>());
    tags.map(|tag| u16::from_le_bytes(*tag)).any(|tag| TAGS.iter().any(|(_, named, of)| *named && *of == tag))
}

/// A list that the kernel would take, of nobody by name.
pub fn is_nameless(value: &[u8]) -> bool {
    let entries = value.strip_prefix(&HEAD).unwrap_or_default().chunks(8);
    let tags: Vec<u8> = entries.map(|entry| if entry.len() == 8 { entry[0] } else { 0 }).collect();
    matches!(tags[..], [1, 4, 32] | [1, 4, 16, 32])
}

/// Does it say no more than the mode does? Then the kernel keeps none.
pub fn is_the_mode(attribute: &[u8], value: &[u8]) -> bool {
    attribute == ACLS[0] && value.len() == HEAD.len() + 3 * 8 && !names_somebody(value)
}

/// What a tar stream has as text; names in it need no number here.
pub fn of_text(text: &[u8]) -> Result<Vec<u8>> {
    let wrong = || Error::failed(format!("not an access control list: {:?}", String::from_utf8_lossy(text)));
    let mut entries = vec![];
    for entry in text.split(|byte| b",\n".contains(byte)).map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
        let mut fields = entry.split(|byte| *byte == b':');
        let (kind, name) = (fields.next().unwrap_or_default(), fields.next().ok_or_else(wrong)?);
        let rights = fields.next().filter(|rights| rights.len() == 3).ok_or_else(wrong)?;
        let bits = rights.iter().zip([(b'r', 4), (b'w', 2), (b'x', 1)]).map(|(found, (letter, bit))| match *found {
            b'-' => Ok(0u16),
            found if found == letter => Ok(bit),
            _ => Err(wrong()),
        });
        let bits = bits.sum::<Result<u16>>()?;
        let tag = TAGS.iter().find(|(of, named, _)| *of == kind && *named != name.is_empty()).ok_or_else(wrong)?.2;
        entries.push((tag, bits));
    }
    // The kernel wants them in this order.
    entries.sort();
    let bytes = entries
        .iter()
        .flat_map(|(tag, bits)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &NOBODY.to_le_bytes()].concat());
    Ok(HEAD.into_iter().chain(bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_text_is_what_the_kernel_keeps() {
        let list = of_text(b"user::rw-,group::r-x\nmask::r--,other::---\n").unwrap();
        assert_eq!(list.len(), 4 + 4 * 8);
        assert_eq!(list[4..12], [1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(list[28..32], [32, 0, 0, 0]);
        assert!(is_nameless(&list) && !is_nameless(&list[..20]) && !is_nameless(b""));
        assert!(!names_somebody(&list) && !is_the_mode(ACLS[0], &list));
        for named in ["user:bob:rwx:1000", "group:12:r--"] {
            assert!(names_somebody(&of_text(format!("user::rw-,{named},other::---").as_bytes()).unwrap()));
        }
        let mode = of_text(b"user::rw-,group::r--,other::r--").unwrap();
        assert!(is_the_mode(ACLS[0], &mode) && !is_the_mode(ACLS[1], &mode));
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["user", "user:", "user::", "user::rwxx", "user::xwr", "mask:bob:rwx", "owner::rwx"] {
            assert!(of_text(text.as_bytes()).is_err(), "{text}");
        }
        assert!(!names_somebody(b"") && !names_somebody(&[2, 0, 0, 0, 2]));
    }
}
