//! Packages into a root, with no tool of the host.
//!
//! A bootstrap is two changesets: **unpacked**, which our own code makes from the `.deb` files on all
//! cores, in the state that `dpkg --unpack` would leave (files at their final names, scripts in
//! `var/lib/dpkg/info`, the status file says `install ok unpacked`), and **configured**, which the
//! builder's own dpkg makes of it in the sandbox. A union of further packages is installed by dpkg
//! alone. What comes out must be the same everywhere: [`clean_steps`] removes what isn't.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use md5::Digest as _;

use super::deb::{Unpacked as Deb, unpack_deb};
use super::download::Progress;
use crate::archive::unpack::{Owner, Owners, tree_of};
use crate::build_file::spec::Step;
use crate::builder::lock_file::LockedPackage;
use crate::error::{Error, Result};
use crate::store::{Scratch, Store};
use crate::sys::root::Root;
use crate::tree::{Changeset, RootPath};

/// The name under which the packages of a union are bound into the sandbox.
pub const DEBS: &str = "/run/tapeout/debs";

/// An unpacked base system: a folder in a scratch folder of the store, and what is in it.
pub struct Unpacked {
    /// Holds the folder.
    pub scratch: Scratch,
    /// The folder.
    pub files: PathBuf,
    /// What is in it.
    pub changeset: Changeset,
}

/// Unpacks packages that lie in the store.
pub fn prepare(
    store: &Store,
    packages: &[&LockedPackage],
    architecture: &str,
    time: i64,
    progress: &dyn Progress,
) -> Result<Unpacked> {
    let scratch = store.scratch()?;
    let files = scratch.folder("files")?;
    let root = Root::open(&files)?;
    let mut owners = Owners::new();
    let mut base = Base { files: &files, owners: &mut owners };
    base.merged_usr(architecture)?;
    progress.phase("unpack", packages.len(), packages.iter().map(|p| p.size).sum());
    let debs = unpack_all(store, packages, &root, progress)?;
    let all = merge(packages, &debs)?;
    base.owners.extend(all.into_iter().filter(|(path, _)| path.as_bytes() != b"").collect::<Owners>());
    base.database(packages, &debs)?;
    crate::builder::rootfs::complete(&root, &mut owners)?;
    let changeset = tree_of(&root, &owners, time)?;
    Ok(Unpacked { scratch, files, changeset })
}

/// On all cores, the largest first. Packages share folders and nothing else, so their order doesn't
/// matter; that nothing else is shared is checked by [`merge`].
fn unpack_all(store: &Store, packages: &[&LockedPackage], root: &Root, progress: &dyn Progress) -> Result<Vec<Deb>> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(packages[*i].size));
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Result<Deb>>> = Mutex::default();
    let work = || {
        while let Some(place) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let package = packages[*place];
            let result = store
                .blob(&package.digest)
                .and_then(|file| unpack_deb(file, root))
                .map_err(|e| e.context(format!("package {}", package.name)));
            if result.is_err() {
                next.store(order.len(), Ordering::Relaxed);
            }
            progress.bytes(package.size);
            progress.done(&package.name);
            done.lock().unwrap_or_else(|e| e.into_inner()).insert(*place, result);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(packages.len()) {
            scope.spawn(work);
        }
    });
    let done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    let debs = done.into_values().collect::<Result<Vec<_>>>()?;
    if debs.len() == packages.len() { Ok(debs) } else { Err(Error::failed("not every package was unpacked")) }
}

/// The owners of all packages. A folder is its first package's, `base-files` before all others.
fn merge(packages: &[&LockedPackage], debs: &[Deb]) -> Result<Owners> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|i| (packages[*i].name != "base-files", packages[*i].name.as_str()));
    let mut all = Owners::new();
    let mut from: BTreeMap<&RootPath, &str> = BTreeMap::new();
    for place in order {
        for (path, owner) in &debs[place].owners {
            let Some(known) = all.get(path) else {
                all.insert(path.clone(), owner.clone());
                from.insert(path, &packages[place].name);
                continue;
            };
            if known.implied {
                all.insert(path.clone(), owner.clone());
            } else if known.content.is_some() || owner.content.is_some() {
                return Err(Error::failed(format!(
                    "packages {} and {} both have {path}",
                    from[path], packages[place].name
                )));
            }
        }
    }
    Ok(all)
}

struct Base<'a> {
    files: &'a Path,
    owners: &'a mut Owners,
}

impl Base<'_> {
    /// /bin, /lib and /sbin are links into /usr before anything is unpacked (Debian bug 978636): so
    /// packages that still have files there bring them to the right place.
    fn merged_usr(&mut self, architecture: &str) -> Result<()> {
        let more: &[&str] = match architecture {
            "amd64" => &["lib32", "lib64", "libx32"],
            "i386" => &["lib64", "libx32"],
            "ppc64el" | "s390x" => &["lib64"],
            _ => &[],
        };
        self.folder("usr")?;
        for name in ["bin", "lib", "sbin"].iter().chain(more) {
            self.folder(&format!("usr/{name}"))?;
            let link = self.files.join(name);
            std::os::unix::fs::symlink(format!("usr/{name}"), &link).map_err(|e| Error::io("symlink", &link, e))?;
        }
        Ok(())
    }

    fn folder(&mut self, path: &str) -> Result<()> {
        let host = self.files.join(path);
        std::fs::create_dir(&host).map_err(|e| Error::io("mkdir", &host, e))?;
        self.own(path, 0o755)
    }

    fn own(&mut self, path: &str, mode: u32) -> Result<()> {
        let owner =
            Owner { uid: 0, gid: 0, mode, xattrs: BTreeMap::new(), device: None, content: None, implied: false };
        self.owners.entry(RootPath::new(path)?).or_insert(owner);
        Ok(())
    }

    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let root = Root::open(self.files)?;
        let path = RootPath::new(path)?;
        let folder = root.folder(&path.parent().unwrap_or_default())?;
        let mut file = crate::sys::file::create_file_at(std::os::fd::AsFd::as_fd(&folder), path.name(), mode)?;
        std::io::Write::write_all(&mut file, content).map_err(|e| Error::io("write", path.below(self.files), e))?;
        let digest = crate::digest::Digest::of(content);
        let owner = Owner {
            uid: 0,
            gid: 0,
            mode,
            xattrs: BTreeMap::new(),
            device: None,
            content: Some((digest, content.len() as u64)),
            implied: false,
        };
        self.owners.insert(path, owner);
        Ok(())
    }

    /// What dpkg keeps in `var/lib/dpkg`.
    fn database(&mut self, packages: &[&LockedPackage], debs: &[Deb]) -> Result<()> {
        let dpkg = self.files.join("var/lib/dpkg");
        for folder in ["", "info", "alternatives", "parts", "triggers", "updates"] {
            let host = dpkg.join(folder);
            if !host.is_dir() {
                std::fs::create_dir_all(&host).map_err(|e| Error::io("mkdir", &host, e))?;
                self.own(&format!("var/lib/dpkg/{folder}"), 0o755)?;
            }
        }
        let mut status = String::new();
        let mut triggers = Triggers::default();
        let mut order: Vec<usize> = (0..packages.len()).collect();
        order.sort_by_key(|i| packages[*i].name.as_str());
        for place in order {
            let (name, deb) = (&packages[place].name, &debs[place]);
            self.package(name, deb, &mut status, &mut triggers).map_err(|e| e.context(format!("package {name}")))?;
        }
        self.file("var/lib/dpkg/status", status.as_bytes(), 0o644)?;
        self.file("var/lib/dpkg/available", b"", 0o644)?;
        self.file("var/lib/dpkg/info/format", b"1\n", 0o644)?;
        for (trigger, interested) in &triggers.explicit {
            self.file(&format!("var/lib/dpkg/triggers/{trigger}"), interested.as_bytes(), 0o644)?;
        }
        self.file("var/lib/dpkg/triggers/File", triggers.file.as_bytes(), 0o644)
    }

    fn package(&mut self, name: &str, deb: &Deb, status: &mut String, triggers: &mut Triggers) -> Result<()> {
        let member = |member: &str| deb.control.get(member).map(|(bytes, _)| bytes.as_slice()).unwrap_or_default();
        let control =
            std::str::from_utf8(member("control")).map_err(|_| Error::failed("its control file is not UTF-8"))?;
        let control = control.trim_matches('\n');
        if control.is_empty() || control.contains("\n\n") || field(control, "Package") != name {
            return Err(Error::failed("its control file is not its own"));
        }
        // Where packages of several architectures may stand side by side the name tells them apart
        // (format 1 of the database).
        let full = match field(control, "Multi-Arch") {
            "same" => format!("{name}:{}", field(control, "Architecture")),
            _ => name.to_string(),
        };
        for (member, (content, mode)) in deb.control.iter().filter(|(member, _)| *member != "control") {
            let mode = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
            self.file(&format!("var/lib/dpkg/info/{full}.{member}"), content, mode)?;
        }
        self.file(&format!("var/lib/dpkg/info/{full}.list"), &deb.list, 0o644)?;
        triggers.add(&full, member("triggers"))?;
        let conffiles = self.conffiles(member("conffiles"))?;
        let (first, rest) = control.split_once('\n').unwrap_or((control, ""));
        let _ = write!(status, "{first}\nStatus: install ok unpacked\n{rest}\n{conffiles}\n");
        Ok(())
    }

    /// The status file's `Conffiles` field: each with the MD5 of what the package brought.
    fn conffiles(&self, list: &[u8]) -> Result<String> {
        let root = Root::open(self.files)?;
        let mut out = String::new();
        for line in String::from_utf8_lossy(list).lines().map(str::trim).filter(|l| l.starts_with('/')) {
            let mut hash = md5::Md5::new();
            let mut file = root.open_file_following(&RootPath::new(line)?)?;
            let mut content = vec![];
            std::io::Read::read_to_end(&mut file, &mut content).map_err(|e| Error::io("read", line, e))?;
            hash.update(&content);
            let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            let _ = write!(out, "{}\n {line} {hex}", if out.is_empty() { "Conffiles:" } else { "" });
        }
        if !out.is_empty() {
            out.push('\n');
        }
        Ok(out)
    }
}

/// A field of a control file; empty: it has none.
fn field<'a>(control: &'a str, name: &str) -> &'a str {
    let value = control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim()
}

/// Who is interested in what, as `dpkg --unpack` records it (deb-triggers(5), dpkg's triglib.c).
#[derive(Default)]
struct Triggers {
    explicit: BTreeMap<String, String>,
    file: String,
}

impl Triggers {
    fn add(&mut self, package: &str, control: &[u8]) -> Result<()> {
        for line in String::from_utf8_lossy(control).lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else { continue };
            let suffix = match directive {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            if trigger.starts_with('/') {
                let _ = writeln!(self.file, "{trigger} {package}{suffix}");
            } else if trigger.contains('/')
                || trigger.starts_with('.')
                || matches!(trigger, "File" | "Unincorp" | "Lock")
            {
                return Err(Error::failed(format!("its trigger {trigger:?} can't be a file name")));
            } else {
                let _ = writeln!(self.explicit.entry(trigger.into()).or_default(), "{package}{suffix}");
            }
        }
        Ok(())
    }
}

/// The environment in which packages are configured.
pub fn environment() -> BTreeMap<String, String> {
    let all = [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        ("DEBCONF_TERSE", "true"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C.UTF-8"),
        ("HOME", "/root"),
        ("TERM", "dumb"),
    ];
    all.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Services that a package starts would outlive nothing here: policy-rc.d (invoke-rc.d(8)) keeps them
/// down while packages are configured, and where one is there already it stays.
const POLICY: &str = "\
policy=/usr/sbin/policy-rc.d
[ -e $policy ] && policy=
if [ -n \"$policy\" ]; then printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod 755 $policy; fi
";
const NO_POLICY: &str = "if [ -n \"$policy\" ]; then rm -f $policy; fi\n";
/// dpkg runs a package's preinst, from this folder, before it unpacks it. Ours are all unpacked by then,
/// which is a state that they are used to: an installation that was cut off and begins anew looks like that.
const PREINST: &str = "\
preinst() {
    package=${1##*/}; package=${package%.preinst}
    cp -p $1 /var/lib/dpkg/tmp.ci/preinst
    DPKG_MAINTSCRIPT_PACKAGE=${package%:*} DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_MAINTSCRIPT_ARCH=$arch DPKG_MAINTSCRIPT_NAME=preinst \\
        DPKG_RUNNING_VERSION=1.21.0 DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= /var/lib/dpkg/tmp.ci/preinst install
}
arch=$(dpkg --print-architecture)
mkdir /var/lib/dpkg/tmp.ci
[ ! -x /var/lib/dpkg/info/base-passwd.preinst ] || preinst /var/lib/dpkg/info/base-passwd.preinst
for script in /var/lib/dpkg/info/*.preinst; do
    [ ! -x $script ] || preinst $script
done
rm -rf /var/lib/dpkg/tmp.ci
";
const DPKG: &str = "dpkg --force-unsafe-io --force-confold --force-confdef";

/// Configures an unpacked base system. Names of owners come from base-passwd and folders from
/// base-files, so these two come first, before what they depend on.
pub fn configure_steps() -> Vec<Step> {
    let script = format!(
        "set -e\n{POLICY}\
        [ -e /usr/bin/awk ] || [ ! -e /usr/bin/mawk ] || ln -s mawk /usr/bin/awk\n\
        {PREINST}\
        {DPKG} --force-depends --configure base-passwd base-files\n\
        {DPKG} --configure -a\n{NO_POLICY}"
    );
    [vec![Step::Shell(script)], clean_steps()].concat()
}

/// Installs packages that are bound to [`DEBS`], each as `NAME.deb`, into a builder.
pub fn install_steps(packages: &[LockedPackage]) -> Vec<Step> {
    let mut script = format!("set -e\n{POLICY}");
    let stages = stages(packages);
    for (number, stage) in stages.iter().enumerate() {
        let debs: Vec<_> = stage.iter().map(|name| format!("{DEBS}/{name}.deb")).collect();
        let _ = writeln!(script, "{DPKG} --auto-deconfigure --unpack {}", debs.join(" "));
        if number + 1 < stages.len() {
            let _ = writeln!(script, "{DPKG} --configure {}", stage.iter().copied().collect::<Vec<_>>().join(" "));
        }
    }
    let _ = write!(script, "{DPKG} --configure -a\n{NO_POLICY}");
    [vec![Step::Shell(script)], clean_steps()].concat()
}

/// What must be configured before another is unpacked (`Pre-Depends`), with all that it needs, comes
/// in an earlier stage; all the rest in the last one.
fn stages(packages: &[LockedPackage]) -> Vec<BTreeSet<&str>> {
    let by_name: BTreeMap<&str, &LockedPackage> = packages.iter().map(|p| (p.name.as_str(), p)).collect();
    let closure = |names: &BTreeSet<&str>| {
        let mut closed = BTreeSet::new();
        let mut todo: Vec<&str> = names.iter().copied().collect();
        while let Some(name) = todo.pop() {
            // What isn't among them is in the builder already.
            let Some(package) = by_name.get(name) else { continue };
            if closed.insert(package.name.as_str()) {
                todo.extend(package.depends.iter().map(String::as_str));
            }
        }
        closed
    };
    let mut stages: Vec<BTreeSet<&str>> = vec![];
    let mut rest: BTreeSet<&str> = by_name.keys().copied().collect();
    while !rest.is_empty() {
        let before = |names: &BTreeSet<&str>| -> BTreeSet<&str> {
            let first = names
                .iter()
                .flat_map(|name| by_name[name].before.iter())
                .map(String::as_str)
                .filter(|n| rest.contains(n))
                .collect();
            closure(&first).intersection(&rest).copied().collect()
        };
        // The innermost set of what has to come before: it needs nothing to be before itself.
        let mut stage = rest.clone();
        loop {
            let earlier = before(&stage);
            if earlier.is_empty() || earlier.len() >= stage.len() {
                break;
            }
            stage = earlier;
        }
        rest = rest.difference(&stage).copied().collect();
        stages.push(stage);
    }
    stages
}

/// A Java key store (JKS, version 2) holds when each certificate was added. Behind the entries stands the
/// SHA-1 of the password in UTF-16, a fixed text, and all before it (sun.security.provider.JavaKeyStore).
const JAVA_KEYS: &str = r#"
keys=/etc/ssl/certs/java/cacerts
if [ -f $keys ]; then
    perl -e '
        open my $file, "<:raw", $ARGV[0] or die; local $/; my $keys = <$file>;
        my ($magic, $version, $count) = unpack "N3", $keys;
        exit 0 if $magic != 0xfeedfeed || $version != 2;
        my $at = 12;
        my $date = pack "Q>", ($ENV{SOURCE_DATE_EPOCH} || 0) * 1000;
        for (1 .. $count) {
            exit 0 if unpack("N", substr $keys, $at, 4) != 2;
            $at += 6 + unpack "n", substr $keys, $at + 4, 2;
            substr($keys, $at, 8) = $date;
            $at += 10 + unpack "n", substr $keys, $at + 8, 2;
            $at += 4 + unpack "N", substr $keys, $at, 4;
        }
        exit 0 if $at + 20 != length $keys;
        $keys = substr $keys, 0, $at;
        open my $sum, "|-:raw", "sha1sum > /tmp/cacerts.sum" or die;
        print $sum join("", map "\0$_", split //, "changeit"), "Mighty Aphrodite", $keys; close $sum or die;
        open $sum, "<", "/tmp/cacerts.sum" or die; <$sum> =~ /^([0-9a-f]{40})/ or die;
        open $file, ">:raw", $ARGV[0] or die; print $file $keys, pack "H*", $1; close $file or die;
    ' $keys
    rm -f /tmp/cacerts.sum
fi
"#;

/// Removes what is different each time or of no use in a builder. `docs/builders.md` has this list.
///
/// - `/var/log`: times (empty files stay)
/// - `/var/cache/ldconfig/aux-cache`: inodes and times
/// - `passwd-`, `group-`, `shadow-`, `gshadow-`, `subuid-`, `subgid-`, `*-old` of dpkg and debconf: the state before
/// - lock files
/// - `/var/cache/apt`, `/var/lib/apt/lists`: caches
/// - the content of `/etc/machine-id`, all of `/var/lib/dbus/machine-id`: random
/// - the dates in Java's `/etc/ssl/certs/java/cacerts`: set to `SOURCE_DATE_EPOCH`
/// - `/var/lib/systemd/random-seed`, `/etc/ssh/ssh_host_*_key*`, `ssl-cert-snakeoil.*`: random, and nobody's secret should be in an image
pub fn clean_steps() -> Vec<Step> {
    let script = "\
        set -e\n\
        find /var/log -type f ! -size 0 -delete\n\
        [ ! -d /var/lib/apt/lists ] || find /var/lib/apt/lists -type f -delete\n\
        rm -rf /var/cache/ldconfig/aux-cache /var/cache/apt/archives/*.deb /var/cache/apt/*.bin\n\
        rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/.pwd.lock\n\
        rm -f /var/lib/dpkg/*-old /var/lib/dpkg/lock /var/lib/dpkg/lock-frontend /var/lib/dpkg/triggers/Lock /var/cache/debconf/*-old\n\
        rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub\n\
        rm -f /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem\n\
        [ ! -e /etc/machine-id ] || : > /etc/machine-id\n";
    vec![Step::Shell(format!("{script}{JAVA_KEYS}"))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn package(name: &str, depends: &[&str], before: &[&str]) -> LockedPackage {
        let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
        let depends = set(&[depends, before].concat());
        LockedPackage {
            name: name.into(),
            version: "1".into(),
            digest: Digest::of(name),
            size: 1,
            file: "x".into(),
            suite: "s".into(),
            base: false,
            depends,
            before: set(before),
        }
    }

    #[test]
    fn what_must_be_configured_before_comes_in_an_earlier_stage() {
        let packages = [
            package("python3", &["libpython"], &["python3-minimal"]),
            package("python3-minimal", &["zlib"], &["python3.11-minimal"]),
            package("python3.11-minimal", &["expat", "libc6"], &["libc6"]),
            package("libpython", &["expat"], &[]),
            package("expat", &[], &[]),
            package("zlib", &[], &[]),
        ];
        let stages = stages(&packages);
        let at = |name: &str| stages.iter().position(|s| s.contains(name)).unwrap();
        assert!(at("python3.11-minimal") < at("python3-minimal") && at("python3-minimal") < at("python3"));
        assert!(at("expat") <= at("python3.11-minimal") && at("zlib") <= at("python3-minimal"));
        assert_eq!(stages.iter().map(BTreeSet::len).sum::<usize>(), packages.len());
    }

    #[test]
    fn a_circle_of_pre_depends_ends() {
        let packages = [package("a", &[], &["b"]), package("b", &[], &["a"])];
        assert_eq!(stages(&packages).iter().map(BTreeSet::len).sum::<usize>(), 2);
    }

    #[test]
    fn triggers_are_recorded_as_dpkg_has_them() {
        let mut triggers = Triggers::default();
        triggers.add("libc-bin", b"# a comment\ninterest-noawait ldconfig\nactivate x\n").unwrap();
        triggers.add("man-db", b"interest /usr/share/man\n").unwrap();
        assert_eq!(triggers.explicit["ldconfig"], "libc-bin/noawait\n");
        assert_eq!(triggers.file, "/usr/share/man man-db\n");
        assert!(triggers.add("x", b"interest ../../x\n").is_err());
    }
}
