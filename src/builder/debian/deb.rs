//! One `.deb`: an ar archive with `debian-binary`, `control.tar` and `data.tar` (deb(5)).

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use crate::archive::decompress::decompress;
use crate::archive::tar_reader::{Kind, Limits, read_tar};
use crate::archive::unpack::{Options, Owners, unpack};
use crate::error::{Error, Result};
use crate::sys::root::Root;

/// What a control archive may hold: Debian's largest has some MiB of symbols and templates.
const MAX_CONTROL: u64 = 256 << 20;
/// What one package may install.
const MAX_DATA: u64 = 32 << 30;

/// The control part, and what the data part installed.
pub struct Unpacked {
    /// Members of the control archive: content and mode.
    pub control: BTreeMap<String, (Vec<u8>, u32)>,
    /// What the data part made.
    pub owners: Owners,
    /// Every path of the data part, in its order, as `*.list` has them.
    pub list: Vec<u8>,
}

/// Unpacks a package below `root` as dpkg does it: a folder onto a link to a folder keeps the link.
pub fn unpack_deb(file: impl Read + Send, root: &Root) -> Result<Unpacked> {
    let mut archive = ar::Archive::new(BufReader::with_capacity(128 * 1024, file));
    let mut control = None;
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|e| Error::failed(format!("not a Debian package: {e}")))?;
        let name = String::from_utf8_lossy(member.header().identifier()).trim_end_matches('/').to_string();
        match (name.as_str(), &control) {
            ("debian-binary", None) => {}
            (name, None) if name.starts_with("control.tar") => {
                control = Some(read_control(member).map_err(|e| e.context(name))?)
            }
            (name, Some(_)) if name.starts_with("data.tar") => {
                let (owners, list) = unpack_data(member, root).map_err(|e| e.context(name))?;
                return Ok(Unpacked { control: control.unwrap_or_default(), owners, list });
            }
            // deb(5): members that begin with an underscore are to be passed over.
            (name, _) if name.starts_with('_') => {}
            (name, _) => return Err(Error::failed(format!("not a Debian package: unexpected member {name:?}"))),
        }
    }
    Err(Error::failed("not a Debian package: it has no data"))
}

fn read_control(member: impl Read + Send) -> Result<BTreeMap<String, (Vec<u8>, u32)>> {
    let mut members = BTreeMap::new();
    let plain = decompress(member, MAX_CONTROL).map_err(|e| Error::failed(e.to_string()))?;
    let limits = Limits { bytes: MAX_CONTROL, entries: 1000, depth: 2 };
    read_tar(plain, &limits, &mut |item, content| {
        let mut bytes = vec![];
        match item.kind {
            Kind::Folder if item.path.is_root() => return Ok(()),
            Kind::File(_) => content.read_to_end(&mut bytes).map_err(|e| Error::failed(e.to_string()))?,
            _ => return Err(Error::failed(format!("the control archive has {}, which is no file", item.path))),
        };
        let name = std::str::from_utf8(item.path.as_bytes())
            .ok()
            .filter(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
        let name = name.ok_or_else(|| Error::failed(format!("the control archive has a member {}", item.path)))?;
        members.insert(name.to_string(), (bytes, item.mode & 0o777));
        Ok(())
    })?;
    Ok(members)
}

fn unpack_data(member: impl Read + Send, root: &Root) -> Result<(Owners, Vec<u8>)> {
    let limits = Limits { bytes: MAX_DATA, ..Limits::default() };
    let options = Options { follow_folder_links: true, limits, ..Options::default() };
    let mut owners = Owners::new();
    let mut list = b"/.\n".to_vec();
    unpack(member, root, &options, &mut owners, &mut |path| {
        if !path.is_root() {
            list.push(b'/');
            list.extend_from_slice(path.as_bytes());
            list.push(b'\n');
        }
    })?;
    Ok((owners, list))
}
