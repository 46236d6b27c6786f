//! Who runs the binary: an ordinary user, also when the tests were started by root.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{getegid, geteuid};

/// A user of this machine, by number; none of them has subordinate IDs unless said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Its name (`USER`), also where `/etc/passwd` has none.
    pub name: String,
}

impl User {
    /// The one that nearly all tests run as. Started by an ordinary user, it is that user.
    pub fn plain() -> Self {
        match geteuid().is_root() {
            true => Self { uid: 64101, gid: 64101, name: "plain".into() },
            false => Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), name: "me".into() },
        }
    }

    /// One whose processes are those of a single test; only root can be somebody else.
    pub fn numbered(id: u32) -> Self {
        Self { uid: id, gid: id, name: format!("user{id}") }
    }

    /// Another one, with other numbers and a real name; only root can be somebody else.
    pub fn other() -> Self {
        Self::made("tapeout-other")
    }

    fn made(name: &str) -> Self {
        if nix::unistd::User::from_name(name).expect("getpwnam").is_none() {
            // A system user: Debian's useradd gives it no subordinate IDs.
            // Two tests may do so at once: what counts is that it is there.
            Command::new("useradd")
                .args(["--system", "--user-group", "--no-create-home", name])
                .output()
                .expect("useradd");
        }
        let user = nix::unistd::User::from_name(name).expect("getpwnam").expect("the user just made");
        Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: name.into() }
    }

    /// One with subordinate IDs, for the tests of `ids = "range"`; only root can be somebody else.
    pub fn subordinate() -> Self {
        let user = Self::made("tapeout-range");
        let tables = ["/etc/subuid", "/etc/subgid"];
        let missing = |table: &&str| {
            let lines = std::fs::read_to_string(table).unwrap_or_default();
            !lines.lines().any(|line| line.starts_with(&format!("{}:", user.name)))
        };
        if tables.iter().any(missing) {
            // usermod wants them to be there.
            for table in tables {
                std::fs::OpenOptions::new().create(true).append(true).open(table).expect(table);
            }
            // It locks the tables, which others change too.
            let ranges = ["--add-subuids", "300000-365535", "--add-subgids", "300000-365535"];
            let told = Command::new("usermod").args(ranges).arg(&user.name).output().expect("usermod");
            assert!(tables.iter().all(|table| !missing(table)), "{}", String::from_utf8_lossy(&told.stderr));
        }
        user
    }

    /// Root, for the few promises that are about it.
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, name: "root".into() }
    }

    fn is_me(&self) -> bool {
        self.uid == geteuid().as_raw()
    }

    /// Gives the user a file or folder, not what is below it.
    pub fn owns(&self, path: &Path) {
        if !self.is_me() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
        }
    }

    /// Lets the command run as this user: no supplementary groups, no capability.
    pub fn runs(&self, command: &mut Command) {
        if !self.is_me() {
            // std drops all supplementary groups, since root sets the user.
            command.uid(self.uid).gid(self.gid);
        }
    }
}
