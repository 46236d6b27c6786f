//! `/etc/passwd` and `/etc/group`: passwd(5), group(5).

use super::Files;
use super::lookup::Lookup;
use crate::error::{Error, Result};
use crate::tree::RootPath;

/// More than any table of users that is kept in a file.
const MOST: u64 = 16 << 20;

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Number of the first group.
    pub gid: u32,
    /// Home folder.
    pub home: String,
    /// The line, without the newline.
    pub line: String,
}

/// One line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Number.
    pub gid: u32,
    /// Names of the users that have it as a further group.
    pub members: Vec<String>,
}

/// Who there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// In the order of the file.
    pub users: Vec<User>,
    /// In the order of the file.
    pub groups: Vec<Group>,
}

impl Names {
    /// From a root file system; tables that aren't there are empty.
    pub fn read(root: &dyn Lookup, files: &dyn Files) -> Result<Self> {
        let table = |path: &str| -> Result<String> {
            let bytes = root.read(&RootPath::new(path)?, files, MOST)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Self::parse(&table("etc/passwd")?, &table("etc/group")?))
    }

    /// From the text of the two tables; lines that aren't in their form are passed over, as libc does.
    pub fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_line).collect(),
        }
    }

    /// Adds those of another table whose names and numbers are free.
    pub fn add(&mut self, other: Self) {
        for user in other.users {
            if !self.users.iter().any(|u| u.name == user.name || u.uid == user.uid) {
                self.users.push(user);
            }
        }
        for group in other.groups {
            if !self.groups.iter().any(|g| g.name == group.name || g.gid == group.gid) {
                self.groups.push(group);
            }
        }
    }

    /// Adds root and nobody where no table has them.
    pub fn complete(&mut self) {
        self.add(Self::parse(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            "root:x:0:\nnogroup:x:65534:\n",
        ));
    }

    /// The user of this number.
    pub fn user(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }

    /// The group of this number.
    pub fn group(&self, gid: u32) -> Option<&Group> {
        self.groups.iter().find(|group| group.gid == gid)
    }

    /// The number of a user by name or number, and its first group where a table has it.
    pub fn find_user(&self, text: &str) -> Result<(u32, Option<u32>)> {
        if let Some(user) = self.users.iter().find(|user| user.name == text) {
            return Ok((user.uid, Some(user.gid)));
        }
        match number(text).or((text == "root").then_some(0)) {
            Some(uid) => Ok((uid, self.user(uid).map(|user| user.gid))),
            None => Err(unknown("user", text, "/etc/passwd", self.users.iter().map(|user| user.name.as_str()))),
        }
    }

    /// The number of a group by name or number.
    pub fn find_group(&self, text: &str) -> Result<u32> {
        match (self.groups.iter().find(|group| group.name == text), number(text).or((text == "root").then_some(0))) {
            (Some(group), _) => Ok(group.gid),
            (None, Some(gid)) => Ok(gid),
            (None, None) => {
                Err(unknown("group", text, "/etc/group", self.groups.iter().map(|group| group.name.as_str())))
            }
        }
    }

    /// `user` or `user:group`, names or numbers. A user alone has its own group; a number that
    /// no table has is its own group's number too.
    pub fn find_owner(&self, text: &str) -> Result<(u32, u32)> {
        match text.split_once(':') {
            Some((user, group)) => Ok((self.find_user(user)?.0, self.find_group(group)?)),
            None => self.find_user(text).map(|(uid, gid)| (uid, gid.unwrap_or(uid))),
        }
    }
}

/// (uid_t) -1 means "leave it as it is" to chown(2), so it is no one's number.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|n| *n != u32::MAX)
}

fn user(line: &str) -> Option<User> {
    let parts: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, _] = parts[..] else { return None };
    let valid = !name.is_empty() && !name.starts_with('#');
    valid.then_some(User {
        name: name.into(),
        uid: number(uid)?,
        gid: number(gid)?,
        home: home.into(),
        line: line.into(),
    })
}

fn group_line(line: &str) -> Option<Group> {
    let parts: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members] = parts[..] else { return None };
    let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_string).collect();
    (!name.is_empty() && !name.starts_with('#')).then_some(Group { name: name.into(), gid: number(gid)?, members })
}

fn unknown<'a>(what: &str, text: &str, table: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let mut known: Vec<&str> = known.take(60).collect();
    known.sort_unstable();
    let has = if known.is_empty() { "is not there, or empty".to_string() } else { format!("has {}", known.join(", ")) };
    Error::request(format!("no {what} {text:?} is known"))
        .why(format!("{table} {has}"))
        .next("write a number, or add it in a rule's run (useradd, groupadd)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::parse(
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:34:www:/var/www:/bin/false\nbroken\n#x:x:1:1::/:/\n",
            "root:x:0:\nwww:x:34:app,www-data\n",
        )
    }

    #[test]
    fn owners_are_found_by_name_and_number() {
        for (text, expected) in [
            ("www-data", (33, 34)),
            ("33", (33, 34)),
            ("33:0", (33, 0)),
            ("www-data:www", (33, 34)),
            ("7", (7, 7)),
            ("0:www", (0, 34)),
        ] {
            assert_eq!(names().find_owner(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn who_is_not_there_is_an_error_that_tells_who_is() {
        for bad in ["nobody", "www-data:x", "", "-1", "4294967295", "99999999999", "+5"] {
            assert!(names().find_owner(bad).is_err(), "{bad}");
        }
        assert!(names().find_user("ww").unwrap_err().reasons()[0].contains("www-data"));
    }
}
