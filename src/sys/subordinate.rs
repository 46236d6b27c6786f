//! Subordinate IDs: ranges of IDs that the administrator has given to a user (subuid(5), subgid(5)),
//! which newuidmap(1) and newgidmap(1) map, since the kernel lets nobody else.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// IDs that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first, outside.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What a user was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// Of `/etc/subuid`.
    pub users: Range,
    /// Of `/etc/subgid`.
    pub groups: Range,
}

impl Ranges {
    /// What this process' user was given; to be asked outside of any user namespace of our own.
    pub fn of_caller() -> Result<Self> {
        let (uid, name) = (nix::unistd::getuid(), std::cell::OnceCell::new());
        let name = || name.get_or_init(|| name_of(uid.as_raw())).clone().unwrap_or_else(|| uid.to_string());
        let read = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            // Whose name is looked up only where there is something to find.
            let found = if text.trim().is_empty() { None } else { largest(&text, &name(), uid.as_raw()) };
            found.ok_or_else(|| {
                Error::failed(format!("{path} gives user {} no subordinate IDs", name())).next(format!(
                    "ask the administrator for: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}",
                    name()
                ))
            })
        };
        let ranges = Self { users: read("/etc/subuid")?, groups: read("/etc/subgid")? };
        for program in [NEWUIDMAP, NEWGIDMAP] {
            find(program)?;
        }
        Ok(ranges)
    }

    /// Maps 0 to these IDs, and the range behind it, in the user namespace of a child.
    pub fn map(&self, child: i32, outside: (u32, u32)) -> Result<()> {
        let maps = [(NEWUIDMAP, "uid_map", outside.0, self.users), (NEWGIDMAP, "gid_map", outside.1, self.groups)];
        for (program, map, id, range) in maps {
            let numbers = [child as u32, 0, id, 1, 1, range.first, range.count].map(|number| number.to_string());
            let failed = |e: std::io::Error| Error::io("execve", program, e);
            let mut command = Command::new(find(program)?);
            command.args(numbers).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut running = command.spawn().map_err(failed)?;
            let mut said = String::new();
            if let Some(stderr) = running.stderr.take() {
                let _ = stderr.take(4096).read_to_string(&mut said);
            }
            // Whoever ignores SIGCHLD is told nothing of the end (wait(2)): the map tells.
            let _ = running.wait();
            let written = std::fs::read_to_string(format!("/proc/{child}/{map}")).unwrap_or_default();
            if written.lines().count() < 2 {
                return Err(Error::failed(format!("{program} maps no subordinate IDs")).why(said.trim().to_string()));
            }
        }
        Ok(())
    }
}

/// A user's name by `/etc/passwd` itself: getpwuid(3) asks name services, over sockets, which `--offline`
/// forbids, and through shared libraries, which a static binary must not load.
fn name_of(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|parts| parts.get(2).and_then(|text| text.parse().ok()) == Some(uid))?;
    Some(found[0].to_string())
}

const NEWUIDMAP: &str = "newuidmap";
const NEWGIDMAP: &str = "newgidmap";

fn find(program: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::failed(format!("this machine has no {program}"))
            .next("ask the administrator to install it (Debian and Ubuntu: package uidmap)")
    })
}

/// The largest range of a user in a table of lines `name-or-number:first:count`.
fn largest(table: &str, name: &str, uid: u32) -> Option<Range> {
    let number = uid.to_string();
    let range = |line: &str| {
        let fields: Vec<_> = line.trim().split(':').collect();
        let [who, first, count] = fields[..] else { return None };
        let range = Range { first: first.parse().ok()?, count: count.parse().ok()? };
        (who == name || who == number).then_some(range)
    };
    table.lines().filter_map(range).filter(|range| range.count > 0).max_by_key(|range| range.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_name_or_number_counts() {
        let table = "other:100000:65536\nme:1:10\n\n# x\nme:200000:65536\n1000:300000:70000\nme:x:y\n";
        let range = |first, count| Some(Range { first, count });
        assert_eq!(largest(table, "me", 1), range(200_000, 65_536));
        assert_eq!(largest(table, "me", 1000), range(300_000, 70_000));
        assert_eq!(largest(table, "nobody", 1), None);
        assert_eq!(largest("me:5:0", "me", 1), None);
    }
}
