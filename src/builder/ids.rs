//! One number for a name, everywhere.
//!
//! A package's scripts take the next free user and group number, so the number depends on the order
//! of installation. Owners are only records here, so they are renumbered after the fact: a name that
//! is new gets the lock's number, and one that the lock doesn't know yet gets a number that depends
//! on the name alone, so that it doesn't matter what was built first. Numbers below 100 and from
//! 1000 on are given by Debian's policy or by people, and stay.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// What scripts allocate (`adduser --system`, `useradd -r`).
const ALLOCATED: std::ops::RangeInclusive<u32> = 100..=999;
/// Where numbers that depend on a name lie: 300 to 899. adduser starts at 100, useradd -r at 999.
const FIRST: u32 = 300;
const COUNT: u32 = 600;

/// `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Copy)]
pub struct Accounts<'a> {
    /// `/etc/passwd`
    pub passwd: &'a [u8],
    /// `/etc/group`
    pub group: &'a [u8],
}

/// Old number to new one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renumbering {
    /// User IDs.
    pub users: BTreeMap<u32, u32>,
    /// Group IDs.
    pub groups: BTreeMap<u32, u32>,
}

impl Renumbering {
    /// The new number of a user.
    pub fn user(&self, uid: u32) -> u32 {
        self.users.get(&uid).copied().unwrap_or(uid)
    }

    /// The new number of a group.
    pub fn group(&self, gid: u32) -> u32 {
        self.groups.get(&gid).copied().unwrap_or(gid)
    }

    /// Does it change nothing?
    pub fn is_empty(&self) -> bool {
        self.users.iter().chain(&self.groups).all(|(old, new)| old == new)
    }

    /// `/etc/passwd` with the new numbers.
    pub fn passwd(&self, text: &[u8]) -> Vec<u8> {
        rewrite(text, |field, number| match field {
            2 => self.user(number),
            3 => self.group(number),
            _ => number,
        })
    }

    /// `/etc/group` with the new numbers.
    pub fn group_file(&self, text: &[u8]) -> Vec<u8> {
        rewrite(text, |field, number| if field == 2 { self.group(number) } else { number })
    }
}

/// Compares the accounts before and after an installation. `users` and `groups` are the lock's numbers;
/// names that it doesn't know are added.
pub fn renumber(
    before: Accounts,
    after: Accounts,
    users: &mut BTreeMap<String, u32>,
    groups: &mut BTreeMap<String, u32>,
) -> Result<Renumbering> {
    let (old_users, old_groups) = (numbers(before.passwd), numbers(before.group));
    let (new_users, new_groups) = (numbers(after.passwd), numbers(after.group));
    // A number that an old name has too can't be told apart from it, and stays.
    let fresh = |old: &BTreeMap<String, u32>, new: &BTreeMap<String, u32>| -> BTreeMap<String, u32> {
        let is_fresh = |name: &String, number: &u32| {
            !old.contains_key(name) && ALLOCATED.contains(number) && !old.values().any(|o| o == number)
        };
        new.iter().filter(|(name, number)| is_fresh(name, number)).map(|(n, i)| (n.clone(), *i)).collect()
    };
    let (fresh_users, fresh_groups) = (fresh(&old_users, &new_users), fresh(&old_groups, &new_groups));
    let kept = |all: &BTreeMap<String, u32>, fresh: &BTreeMap<String, u32>| -> BTreeSet<u32> {
        all.iter().filter(|(name, _)| !fresh.contains_key(*name)).map(|(_, number)| *number).collect()
    };
    let (kept_users, kept_groups) = (kept(&new_users, &fresh_users), kept(&new_groups, &fresh_groups));
    let names: BTreeSet<&String> = fresh_users.keys().chain(fresh_groups.keys()).collect();
    for name in names {
        // A user and its group get the same number: what is free is free in both.
        let both = free(name, [&*users, &*groups], [&kept_users, &kept_groups]);
        let one = [users.get(name), groups.get(name)].into_iter().flatten().next().copied();
        if fresh_users.contains_key(name) && !users.contains_key(name) {
            let number = one
                .filter(|n| !users.values().any(|u| u == n) && !kept_users.contains(n))
                .or(both)
                .ok_or_else(|| full(name))?;
            users.insert(name.clone(), number);
        }
        let one = users.get(name).copied().or(one);
        if fresh_groups.contains_key(name) && !groups.contains_key(name) {
            let number = one
                .filter(|n| !groups.values().any(|g| g == n) && !kept_groups.contains(n))
                .or(both)
                .ok_or_else(|| full(name))?;
            groups.insert(name.clone(), number);
        }
    }
    let map = |fresh: &BTreeMap<String, u32>,
               lock: &BTreeMap<String, u32>,
               kept: &BTreeSet<u32>|
     -> Result<BTreeMap<u32, u32>> {
        let mut map = BTreeMap::new();
        for (name, old) in fresh {
            let new = lock[name];
            if kept.contains(&new) {
                return Err(Error::failed(format!(
                    "the lock gives number {new} to {name}, which another name has in this builder"
                ))
                .next(format!("remove {name} from [users] and [groups] in tapeout.lock")));
            }
            if map.insert(*old, new).is_some_and(|other| other != new) {
                return Err(Error::failed(format!("{name} shares number {old} with another new name")));
            }
        }
        Ok(map)
    };
    Ok(Renumbering { users: map(&fresh_users, users, &kept_users)?, groups: map(&fresh_groups, groups, &kept_groups)? })
}

fn full(name: &str) -> Error {
    Error::failed(format!("no number is free for {name}")).why(format!("{FIRST} to {} are taken", FIRST + COUNT - 1))
}

/// The number that a name's hash points at, or the next one that nobody has.
fn free(name: &str, lock: [&BTreeMap<String, u32>; 2], kept: [&BTreeSet<u32>; 2]) -> Option<u32> {
    let hex = Digest::of(name).hex();
    let start = u32::from_str_radix(&hex[..7], 16).unwrap_or(0) % COUNT;
    (0..COUNT).map(|step| FIRST + (start + step) % COUNT).find(|number| {
        !lock.iter().any(|l| l.values().any(|n| n == number)) && !kept.iter().any(|k| k.contains(number))
    })
}

/// Name to number: the first and third field. What isn't of this form is left alone.
fn numbers(text: &[u8]) -> BTreeMap<String, u32> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b':');
        let name = std::str::from_utf8(fields.next()?).ok()?.to_string();
        let number = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        Some((name, number))
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Gives each field that is a number to `new`, with its place in the line.
fn rewrite(text: &[u8], new: impl Fn(usize, u32) -> u32) -> Vec<u8> {
    let field = |(place, bytes): (usize, &[u8])| match std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()) {
        Some(number) if new(place, number) != number => new(place, number).to_string().into_bytes(),
        _ => bytes.to_vec(),
    };
    let line = |line: &[u8]| line.split(|b| *b == b':').enumerate().map(field).collect::<Vec<_>>().join(&b':');
    text.split(|b| *b == b'\n').map(line).collect::<Vec<_>>().join(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n_apt:x:100:65534::/nonexistent:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

    fn run(
        passwd: &str,
        group: &str,
        users: &mut BTreeMap<String, u32>,
        groups: &mut BTreeMap<String, u32>,
    ) -> (String, String) {
        let (passwd, group) = (format!("{PASSWD}{passwd}"), format!("{GROUP}{group}"));
        let before = Accounts { passwd: PASSWD.as_bytes(), group: GROUP.as_bytes() };
        let after = Accounts { passwd: passwd.as_bytes(), group: group.as_bytes() };
        let map = renumber(before, after, users, groups).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(map.passwd(passwd.as_bytes())), text(map.group_file(group.as_bytes())))
    }

    #[test]
    fn a_name_has_one_number_whatever_was_installed_first() {
        let (mut users, mut groups) = (BTreeMap::new(), BTreeMap::new());
        let one = run("redis:x:101:101::/:/f\n", "redis:x:101:\n", &mut users, &mut groups);
        let (mut users2, mut groups2) = (BTreeMap::new(), BTreeMap::new());
        run("messagebus:x:101:101::/:/f\n", "messagebus:x:101:\n_ssh:x:102:\n", &mut users2, &mut groups2);
        let two = run(
            "messagebus:x:101:101::/:/f\nredis:x:102:103::/:/f\n",
            "messagebus:x:101:\n_ssh:x:102:\nredis:x:103:\n",
            &mut users2,
            &mut groups2,
        );
        assert_eq!(users["redis"], users2["redis"]);
        assert_eq!(users["redis"], groups["redis"]);
        let line = |text: &str, name: &str| text.lines().find(|l| l.starts_with(name)).unwrap().to_string();
        assert_eq!(line(&one.0, "redis"), line(&two.0, "redis"));
        assert_eq!(line(&one.1, "redis"), line(&two.1, "redis"));
        assert!(one.0.starts_with(PASSWD), "what was there stays");
    }

    #[test]
    fn fixed_numbers_stay_and_numbers_that_swap_do_not_mix() {
        let (mut users, mut groups) =
            (BTreeMap::from([("a".to_string(), 101), ("b".to_string(), 102)]), BTreeMap::new());
        let (passwd, _) = run(
            "a:x:102:50::/:/f\nb:x:101:50::/:/f\nc:x:50:50::/:/f\nd:x:1000:1000::/:/f\n",
            "",
            &mut users,
            &mut groups,
        );
        for line in ["a:x:101:50:", "b:x:102:50:", "c:x:50:50:", "d:x:1000:1000:"] {
            assert!(passwd.contains(line), "{passwd}");
        }
    }

    #[test]
    fn a_number_that_is_taken_is_passed_over() {
        let first = free("redis", [&BTreeMap::new(), &BTreeMap::new()], [&BTreeSet::new(), &BTreeSet::new()]).unwrap();
        let taken = BTreeMap::from([("other".to_string(), first)]);
        let second = free("redis", [&BTreeMap::new(), &taken], [&BTreeSet::new(), &BTreeSet::new()]).unwrap();
        assert!(second != first && (FIRST..FIRST + COUNT).contains(&second));
    }

    #[test]
    fn a_lock_that_contradicts_the_builder_is_an_error() {
        let mut users = BTreeMap::from([("redis".to_string(), 100)]);
        let passwd = format!("{PASSWD}redis:x:101:65534::/:/f\n");
        let before = Accounts { passwd: PASSWD.as_bytes(), group: GROUP.as_bytes() };
        let after = Accounts { passwd: passwd.as_bytes(), group: GROUP.as_bytes() };
        assert!(renumber(before, after, &mut users, &mut BTreeMap::new()).is_err());
    }

    #[test]
    fn lines_of_another_form_are_left_alone() {
        let map = Renumbering { users: BTreeMap::from([(101, 400)]), groups: BTreeMap::new() };
        let text = b"+::::::\n#x\na:\xff:101:5:101::\n\n";
        assert_eq!(map.passwd(text), b"+::::::\n#x\na:\xff:400:5:101::\n\n");
    }
}
