//! What every image gets, unless a rule picked it: users and groups, a few folders, the links of a merged
//! `/usr`, `nsswitch.conf`, and certificates where TLS is used.

use std::collections::BTreeSet;

use super::Files;
use super::lookup::{Lookup, World};
use super::names::{Names, User};
use super::openssl;
use super::why::Why;
use crate::error::Result;
use crate::tree::{Content, Entry, Node, Picked, RootPath, Selection};

/// Empty folders: runtimes mount over the first five, also where the root can't be written.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// Links of a merged `/usr`, where the builder has them.
const MERGED: &[&str] = &["bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin"];

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Libraries that speak TLS, by the beginning of their names.
const TLS: &[&str] = &["libssl.so.", "libgnutls.so.", "libmbedtls.so.", "libwolfssl.so.", "libssl3.so"];

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";

/// What the skeleton is made from.
pub struct Making<'m, 'a> {
    /// The image, and the builder below it. What is made is put into the image too.
    pub world: &'m mut World<'a>,
    /// Content.
    pub files: &'a dyn Files,
    /// The image's user.
    pub user: &'a str,
    /// What people should know.
    pub warnings: &'m mut Vec<String>,
}

/// Makes it; gives what was added.
pub fn make(making: &mut Making<'_, '_>) -> Result<Selection> {
    let mut skeleton = Skeleton { added: Selection::new() };
    for (folder, mode) in FOLDERS {
        skeleton.put(making, folder, Entry::folder(*mode), Content::None, "a usual folder")?;
    }
    skeleton.put(
        making,
        "etc/nsswitch.conf",
        Entry::file(NSSWITCH.as_bytes(), 0o644),
        Content::Inline(NSSWITCH.into()),
        "where names are looked up",
    )?;
    skeleton.certificates(making)?;
    skeleton.merged_links(making)?;
    skeleton.users(making)?;
    Ok(skeleton.added)
}

struct Skeleton {
    added: Selection,
}

impl Skeleton {
    /// Adds a file, unless the image has something there.
    fn put(
        &mut self,
        making: &mut Making<'_, '_>,
        path: &str,
        entry: Entry,
        content: Content,
        what: &str,
    ) -> Result<()> {
        let path = RootPath::new(path)?;
        if !making.world.has(&path) {
            self.force(making, path, Picked { entry: Some(entry), content, why: Why::Skeleton(what.into()).shared() });
        }
        Ok(())
    }

    fn force(&mut self, making: &mut Making<'_, '_>, path: RootPath, picked: Picked) {
        making.world.put(path.clone(), picked.clone());
        self.added.insert(path, picked);
    }

    /// Adds a file of the builder, and the links on the way. Is it there?
    fn bring(&mut self, making: &mut Making<'_, '_>, path: &str, what: &str) -> bool {
        let walk = making.world.walk_text(path);
        if !walk.there {
            return false;
        }
        for part in walk.links.iter().chain([&walk.path]) {
            if !making.world.has(part)
                && let Some(picked) = making.world.pick(part, Why::Skeleton(what.into()).shared())
            {
                self.force(making, part.clone(), picked);
            }
        }
        true
    }

    fn certificates(&mut self, making: &mut Making<'_, '_>) -> Result<()> {
        let speaks = |name: &[u8]| TLS.iter().any(|start| name.starts_with(start.as_bytes()));
        let Some(library) = making.world.image().keys().find(|path| speaks(path.name())).cloned() else {
            return Ok(());
        };
        let what = format!("certificates, as {library} speaks TLS");
        if !self.bring(making, CERTIFICATES, &what) {
            making.warnings.push(format!(
                "{library} speaks TLS, and the builder has no {CERTIFICATES}: the image trusts nobody; add ca-certificates to the packages of a rule"
            ));
            return Ok(());
        }
        self.openssl_folder(making, &what)
    }

    /// OpenSSL reads its trusted certificates from `cert.pem` in the folder that it was built with, where
    /// Debian's `libssl` has nothing: SSL_CTX_set_default_verify_paths(3).
    fn openssl_folder(&mut self, making: &mut Making<'_, '_>, what: &str) -> Result<()> {
        let is_crypto = |entry: &Option<Entry>| matches!(entry.as_ref().map(|e| &e.node), Some(Node::File { .. }));
        let found = making
            .world
            .image()
            .iter()
            .find(|(path, picked)| path.name().starts_with(b"libcrypto.so.") && is_crypto(&picked.entry));
        let Some(path) = found.map(|(path, _)| path.clone()) else { return Ok(()) };
        let Some(folder) = openssl::Folders::read(&path, making.world, making.files)?.own else { return Ok(()) };
        self.bring(making, &format!("{folder}/openssl.cnf"), "the configuration of OpenSSL");
        let pem = format!("{folder}/cert.pem");
        if !self.bring(making, &pem, what) {
            let parent = making.world.walk_text(&folder);
            let at = parent.path.join("cert.pem")?;
            self.put(making, &at.to_string(), Entry::link(CERTIFICATES), Content::None, what)?;
        }
        Ok(())
    }

    fn merged_links(&mut self, making: &mut Making<'_, '_>) -> Result<()> {
        for name in MERGED {
            let path = RootPath::new(name)?;
            let Some(entry) = making.world.view().entry(&path).filter(|e| matches!(e.node, Node::Link { .. })).cloned()
            else {
                continue;
            };
            let target = making.world.walk(&path, true).path;
            let used =
                making.world.image().range(target.clone()..).next().is_some_and(|(path, _)| path.starts_with(&target));
            if used {
                self.put(making, name, entry, Content::None, "a link of the merged /usr")?;
            }
        }
        Ok(())
    }

    /// `/etc/passwd` and `/etc/group` with root, nobody, the image's user and every owner of a file.
    fn users(&mut self, making: &mut Making<'_, '_>) -> Result<()> {
        let (passwd, group) = (RootPath::new("etc/passwd")?, RootPath::new("etc/group")?);
        let generated = |world: &World<'_>, path: &RootPath| {
            world.image().get(path).is_none_or(|p| matches!(p.why.parse(), Ok(Why::Skeleton(_))))
        };
        let (make_passwd, make_group) = (generated(making.world, &passwd), generated(making.world, &group));
        let mut names = Names::read(making.world.view(), making.files)?;
        names.add(Names::read(making.world, making.files)?);
        if !make_passwd || !make_group {
            names = Names::read(making.world, making.files)?;
        }
        let (user, user_group) = image_user(&names, making.user)?;
        let mut uids: BTreeSet<u32> = [0, 65534, user].into();
        let mut gids: BTreeSet<u32> = [0, 65534].into();
        gids.extend(user_group);
        for entry in making.world.image().values().filter_map(|picked| picked.entry.as_ref()) {
            uids.insert(entry.uid);
            gids.insert(entry.gid);
        }
        names.complete();
        let users: Vec<&User> = uids.iter().filter_map(|uid| names.user(*uid)).collect();
        gids.extend(users.iter().map(|user| user.gid));
        let kept: BTreeSet<&str> = users.iter().map(|user| user.name.as_str()).collect();
        gids.extend(names.groups.iter().filter(|g| g.members.iter().any(|m| kept.contains(m.as_str()))).map(|g| g.gid));
        let lines: String = users.iter().map(|user| format!("{}\n", user.line)).collect();
        let groups: String =
            gids.iter().filter_map(|gid| names.group(*gid)).map(|group| group_line(group, &kept)).collect();
        let what = "root, nobody, the image's user and the owners of its files";
        for (path, text, made) in [(passwd, lines, make_passwd), (group, groups, make_group)] {
            if made {
                let picked = Picked {
                    entry: Some(Entry::file(text.as_bytes(), 0o644)),
                    content: Content::Inline(text.into_bytes()),
                    why: Why::Skeleton(what.into()).shared(),
                };
                self.force(making, path, picked);
            }
        }
        self.homes(making, &[names.user(0), names.user(user)])
    }

    /// The home folders of root and of the image's user, as the builder has them.
    fn homes(&mut self, making: &mut Making<'_, '_>, users: &[Option<&User>]) -> Result<()> {
        for user in users.iter().flatten() {
            let walk = making.world.walk_text(&user.home);
            let is_folder = making.world.entry(&walk.path).is_some_and(Entry::is_folder);
            let usual = !walk.path.is_root() && walk.path.top() != b"workspace" && user.home != "/nonexistent";
            if walk.there && is_folder && usual {
                self.bring(making, &user.home.clone(), &format!("the home of {}", user.name));
            }
        }
        Ok(())
    }
}

/// The number of the image's user, and of the group that it names or has.
fn image_user(names: &Names, text: &str) -> Result<(u32, Option<u32>)> {
    if text.is_empty() {
        return Ok((0, Some(0)));
    }
    let found = match text.split_once(':') {
        Some((user, group)) => names.find_user(user).and_then(|(uid, _)| Ok((uid, Some(names.find_group(group)?)))),
        None => names.find_user(text),
    };
    found.map_err(|e| e.context(format!("the image's user {text:?}")))
}

fn group_line(group: &super::names::Group, kept: &BTreeSet<&str>) -> String {
    let members: Vec<&str> = group.members.iter().map(String::as_str).filter(|m| kept.contains(m)).collect();
    format!("{}:x:{}:{}\n", group.name, group.gid, members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{OnDisk, on_disk, path, picked};
    use crate::tree::Stack;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/x\nwww-data:x:33:33::/var/www:/x\napp:x:100:101::/home/app:/x\nnobody:x:65534:65534::/nonexistent:/x\n";
    const GROUP: &[u8] =
        b"root:x:0:\ndaemon:x:1:\nwww-data:*:33:\napp:x:101:\nssl:x:110:daemon,app\nnogroup:x:65534:\n";

    fn made(image: Selection, user: &str) -> (Selection, Vec<String>) {
        let (dir, layer) = on_disk(&[
            ("etc/passwd", Some(PASSWD), 0o644),
            ("etc/group", Some(GROUP), 0o644),
            ("home/app", None, 0o750),
            ("etc/ssl/certs/ca-certificates.crt", Some(b"certs"), 0o644),
            ("usr/lib/libcrypto.so.3", Some(b"x\0OPENSSLDIR: \"/usr/lib/ssl\"\0"), 0o644),
        ]);
        let view = Stack(vec![layer]);
        let mut world = World::new([&image], &view);
        let mut warnings = vec![];
        let files = OnDisk(dir.path().into());
        let made = make(&mut Making { world: &mut world, files: &files, user, warnings: &mut warnings }).unwrap();
        (made, warnings)
    }

    fn text(made: &Selection, at: &str) -> String {
        match &made[&path(at)].content {
            Content::Inline(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn users_are_root_nobody_the_images_own_and_the_owners() {
        let mut owned = picked("x", "include /x");
        owned.entry.as_mut().unwrap().uid = 33;
        owned.entry.as_mut().unwrap().gid = 1;
        let (made, _) = made(Selection::from([(path("x"), owned)]), "app");
        let names =
            |at: &str| text(&made, at).lines().map(|l| l.split(':').next().unwrap().to_string()).collect::<Vec<_>>();
        assert_eq!(names("etc/passwd"), ["root", "www-data", "app", "nobody"]);
        assert_eq!(names("etc/group"), ["root", "daemon", "www-data", "app", "ssl", "nogroup"]);
        assert!(text(&made, "etc/group").contains("ssl:x:110:app\n"), "members that the image hasn't are left out");
        assert_eq!(made[&path("home/app")].entry.as_ref().unwrap().mode, 0o750);
    }

    #[test]
    fn what_a_rule_picked_stays() {
        let (made, _) = made(
            Selection::from([
                (path("etc/passwd"), picked("me:x:5:5::/:/x\n", "include /etc/passwd")),
                (path("tmp"), picked("file", "")),
            ]),
            "5",
        );
        assert!(!made.contains_key(&path("etc/passwd")) && !made.contains_key(&path("tmp")));
        assert!(made.contains_key(&path("etc/group")));
    }

    #[test]
    fn certificates_come_with_tls_alone() {
        assert!(!made(Selection::new(), "").0.contains_key(&path("etc/ssl/certs/ca-certificates.crt")));
        let libraries = Selection::from([
            (path("usr/lib/libssl.so.3"), picked("s", "")),
            (path("usr/lib/libcrypto.so.3"), picked("x\0OPENSSLDIR: \"/usr/lib/ssl\"\0", "")),
        ]);
        let (made, warnings) = made(libraries, "");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert!(made[&path("etc/ssl/certs/ca-certificates.crt")].why.contains("/usr/lib/libssl.so.3"));
        assert_eq!(
            made[&path("usr/lib/ssl/cert.pem")].entry.as_ref().unwrap().node,
            Node::Link { target: CERTIFICATES.into() }
        );
    }

    #[test]
    fn a_user_that_nobody_knows_is_an_error() {
        let view = Stack::default();
        let mut world = World::new([], &view);
        let files = OnDisk("/nowhere".into());
        let made = make(&mut Making { world: &mut world, files: &files, user: "ghost", warnings: &mut vec![] });
        assert!(made.unwrap_err().what().contains("ghost"));
    }

    #[test]
    fn a_builder_without_tables_gives_root_and_nobody() {
        let view = Stack::default();
        let mut world = World::new([], &view);
        let files = OnDisk("/nowhere".into());
        let made = make(&mut Making { world: &mut world, files: &files, user: "1000", warnings: &mut vec![] }).unwrap();
        assert_eq!(text(&made, "etc/passwd").lines().count(), 2);
    }
}
