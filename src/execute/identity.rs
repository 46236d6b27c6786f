//! Users and groups: who a rule runs as, and one number for a name everywhere.
//!
//! Packages allocate IDs in the order in which they are configured. Owners are only records here,
//! so after an installation each new name gets the number that the lock has for it, in
//! `/etc/passwd` and its like and in every recorded owner.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use crate::builder::ids::{Accounts, Renumbering};
use crate::changeset::Captured;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::execute::base::Base;
use crate::store::Store;
use crate::sys::root::Root;
use crate::tree::{Entry, Node, RootPath, Stack};

/// `/etc/passwd` of a snapshot is never larger.
const LARGEST: u64 = 4 << 20;

/// Reads a small regular file of a snapshot; empty where it has none.
pub fn read(store: &Store, stack: &Stack, path: &str) -> Result<Vec<u8>> {
    let path = RootPath::new(path)?;
    let Some((Entry { node: Node::File { size, .. }, .. }, layer)) = stack.get(&path) else { return Ok(vec![]) };
    if *size > LARGEST {
        return Err(Error::failed(format!("{path} is larger than such a file can be")));
    }
    read_bounded(store.read(&layer.digest, &path)?, &path)
}

/// The numbers of a user of the snapshot, by name or number.
pub fn user(store: &Store, stack: &Stack, name: &str) -> Result<(u32, u32)> {
    let text = |path: &str| read(store, stack, path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    resolve(name, &text("etc/passwd")?, &text("etc/group")?)
        .map_err(|e| e.next("add the package that creates the user to packages, or a dependency on the rule that does"))
}

/// `user` or `user:group`, names or numbers, as numbers; empty is root. A user without a group
/// gets the one that `/etc/passwd` says.
pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<(u32, u32)> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (user, named_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, primary) = match find(passwd, user) {
        Some(fields) => (number(&fields, 2)?, number(&fields, 3)?),
        None => {
            let uid = user.parse().map_err(|_| Error::request(format!("no user is named {user:?} in /etc/passwd")))?;
            (uid, uid)
        }
    };
    let gid = match named_group {
        None => primary,
        Some(name) => match find(group, name) {
            Some(fields) => number(&fields, 2)?,
            None => name.parse().map_err(|_| Error::request(format!("no group is named {name:?} in /etc/group")))?,
        },
    };
    Ok((uid, gid))
}

/// The groups besides its own that a runtime gives to who an image names by this number alone: it looks the number up
/// in `/etc/passwd`, and the name of its line in `/etc/group`. None where that line has another group of its own.
pub fn further_groups(uid: u32, gid: u32, passwd: &str, group: &str) -> Vec<u32> {
    let fields = |line: &'_ str| -> Vec<String> { line.split(':').map(str::to_string).collect() };
    let number_at = |fields: &[String], at: usize| fields.get(at).and_then(|text| text.parse::<u32>().ok());
    let own = passwd.lines().map(fields).find(|fields| number_at(fields, 2) == Some(uid));
    let Some(own) = own.filter(|own| number_at(own, 3) == Some(gid)) else { return vec![] };
    let has = |fields: &Vec<String>| fields.get(3).is_some_and(|members| members.split(',').any(|name| name == own[0]));
    let all = group.lines().map(fields).filter(has).filter_map(|fields| number_at(&fields, 2));
    all.filter(|found| *found != gid).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The line of a name, or of its number.
fn find<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = || table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines().find(|f| f[0] == name).or_else(|| lines().find(|f| f.get(2) == Some(&name)))
}

fn number(fields: &[&str], at: usize) -> Result<u32> {
    fields
        .get(at)
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| Error::failed(format!("the line of {} in /etc/passwd or group has no number", fields[0])))
}

/// Gives the names that an installation added the numbers that the lock has for them.
pub struct Renumber<'a> {
    /// The builder, and the lock.
    pub base: &'a Base,
    /// What the installation saw.
    pub below: &'a Stack,
    /// The store.
    pub store: &'a Store,
}

impl Renumber<'_> {
    /// Which numbers change, after an installation that wrote `upper`.
    pub fn map(&self, upper: &Root) -> Result<Renumbering> {
        let before = |name: &str| read(self.store, self.below, &format!("etc/{name}"));
        let after = |name: &str| -> Result<Vec<u8>> {
            let path = RootPath::new(format!("etc/{name}"))?;
            match upper.stat(&path)? {
                Some(_) => read_bounded(upper.open_file(&path)?, &path),
                None => before(name),
            }
        };
        let (old, new) = ((before("passwd")?, before("group")?), (after("passwd")?, after("group")?));
        self.base.number(Accounts { passwd: &old.0, group: &old.1 }, Accounts { passwd: &new.0, group: &new.1 })
    }
}

/// Has an installation that ran before the numbers that the lock has now? The lock learns those that it doesn't know.
/// `below` are the changesets that it saw, the lowest first.
pub fn numbers_hold(base: &Base, store: &Store, below: &[Digest], installed: &Digest) -> Result<bool> {
    // The highest that has the file; in a builder nobody removes these.
    let file = |name: &str, changesets: &[&Digest]| -> Result<Vec<u8>> {
        let path = RootPath::new(format!("etc/{name}"))?;
        let found = changesets.iter().rev().find_map(|changeset| store.read(changeset, &path).ok());
        found.map_or(Ok(vec![]), |file| read_bounded(file, &path))
    };
    let before: Vec<_> = below.iter().collect();
    let after: Vec<_> = below.iter().chain([installed]).collect();
    let (old, new) =
        ((file("passwd", &before)?, file("group", &before)?), (file("passwd", &after)?, file("group", &after)?));
    let map = base.number(Accounts { passwd: &old.0, group: &old.1 }, Accounts { passwd: &new.0, group: &new.1 })?;
    Ok(map.is_empty())
}

/// Rewrites the tables of users and groups in a captured changeset.
pub fn rewrite(captured: &mut Captured, map: &Renumbering) -> Result<()> {
    let (passwd, group) = (RootPath::new("etc/passwd")?, RootPath::new("etc/group")?);
    if let Some(file) = captured.open(&passwd)? {
        captured.replace_file(&passwd, &map.passwd(&read_bounded(file, &passwd)?))?;
    }
    if let Some(file) = captured.open(&group)? {
        captured.replace_file(&group, &map.group_file(&read_bounded(file, &group)?))?;
    }
    Ok(())
}

fn read_bounded(file: File, path: &RootPath) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    file.take(LARGEST).read_to_end(&mut bytes).map_err(|e| Error::io("read", path.as_path(), e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_or_a_number_with_or_without_a_group() {
        let passwd = "root:x:0:0:::\nweb:x:33:34:::\n";
        let group = "root:x:0:\nwww:x:34:\nssl:x:50:web\n";
        for (text, expected) in
            [("", (0, 0)), ("web", (33, 34)), ("33", (33, 34)), ("web:ssl", (33, 50)), ("7", (7, 7)), ("7:8", (7, 8))]
        {
            assert_eq!(resolve(text, passwd, group).unwrap(), expected, "{text}");
        }
        for bad in ["nobody", "web:nobody", "-1", ":"] {
            assert!(resolve(bad, passwd, group).is_err(), "{bad}");
        }
    }

    #[test]
    fn further_groups_are_those_that_runtimes_find_by_the_number() {
        let passwd = "root:x:0:0:::\nweb:x:33:34:::\ntwin:x:33:35:::\nbroken\nalone:x:7:7:::\n";
        let group =
            "root:x:0:\nwww:x:34:web\nssl:x:50:other,web\nweb:x:12:web,web\ntwins:x:51:twin\nnot:x:52:webber\nbad\n";
        for (uid, gid, expected) in
            [(33, 34, &[12, 50][..]), (33, 35, &[]), (33, 50, &[]), (7, 7, &[]), (0, 0, &[]), (99, 99, &[])]
        {
            assert_eq!(further_groups(uid, gid, passwd, group), expected, "{uid}:{gid}");
        }
    }
}
