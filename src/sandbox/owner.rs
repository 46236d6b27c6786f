//! Owners and devices, recorded: what a step asks of `chown` and `mknod` is answered here, in init.
//! With `owners = "seen"` it is also shown again, by answering `stat` and its like.
//! So is what it asks of `rename`, when it is about a folder (`rename.rs`), and of access control lists (`lists.rs`).
//!
//! One ID is mapped, so the kernel would refuse every other one. Instead the file is changed to the
//! owner that it has, which costs it what a real change would (it is copied up, set-ID bits and
//! capabilities go), and what was asked for is kept in a table, by the identity of the file in the
//! upper folder. That identity is not its number alone: a new file that gets the number of a removed
//! one is another file. Which file a call means is found out in `asked.rs`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, ResolveFlag};
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::sandbox::answered::Answers;
use crate::sandbox::asked::{Answer, Asked, Caller, MOUNT_NAMESPACE, Target, name_of, split, top, understand};
use crate::sandbox::lists;
use crate::sandbox::plan::Order;
use crate::sandbox::range;
use crate::sandbox::rename::{self, End};
use crate::sandbox::seen::{Below, Facts, Upper};
use crate::sandbox::spec::Recorded;
use crate::sys::mount::{self, Place};
use crate::sys::seccomp::{self, Notification};
use crate::sys::{file, proc, process, xattr};

/// Nobody has more files than this, and init's memory has an end.
const MOST: usize = 8_000_000;
/// Files without a name that are kept open until the end, in case they get one.
const MOST_NAMELESS: usize = 512;
const UNCHANGED: u32 = u32::MAX;
/// Overlay leaves it on what it copies up.
const ORIGIN: &[u8] = b"user.overlay.origin";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    uid: Option<u32>,
    gid: Option<u32>,
    device: Option<(bool, u32, u32)>,
    /// A folder that stands for the one that the layers below have at this path.
    instead_of: Option<Box<[u8]>>,
}

impl Record {
    fn own(&mut self, uid: u32, gid: u32) {
        self.uid = if uid == UNCHANGED { self.uid } else { Some(uid) };
        self.gid = if gid == UNCHANGED { self.gid } else { Some(gid) };
    }
}

/// A file that had no name when its owner was asked for (`O_TMPFILE`). It is kept open, so that its
/// number stays its own, and looked for at the end.
struct Nameless {
    fd: OwnedFd,
    place: Place,
    record: Record,
}

pub(super) struct Owners {
    upper: OwnedFd,
    /// Of the snapshot: that of the root, and of what is a stack of its own in it.
    mounts: Vec<u64>,
    uid: u32,
    gid: u32,
    /// The steps have capabilities: they may change owners at all.
    allowed: bool,
    /// Our mount namespace: in another one, paths may lead elsewhere.
    namespace: Vec<u8>,
    records: BTreeMap<Vec<u8>, Record>,
    nameless: Vec<Nameless>,
    answers: Answers,
    /// Where the snapshot is a folder as it is: what was born before this time is part of it.
    began: Option<(i64, i64)>,
    seen: Option<Seen>,
    /// Subordinate IDs are mapped: a step may be somebody else, whom the kernel allows less than us.
    several_users: bool,
}

/// For steps that see what is recorded.
struct Seen {
    below: Below,
    /// `/tmp` is a mount of its own; what is unpacked there is seen like the rest.
    tmp_mount: u64,
}

impl Owners {
    /// For a snapshot whose upper folder this is. The sandbox is our root by now.
    pub fn new(upper: OwnedFd, order: &Order, mut answers: Answers) -> Result<Self> {
        let root = file::open_path(std::path::Path::new("/"))?;
        let mut mounts = vec![mount::place(root.as_fd()).map_err(|errno| Error::io("statx", "/", errno))?.mount];
        for inside in &order.places {
            let place = file::open_path(std::path::Path::new(inside))?;
            mounts.push(mount::place(place.as_fd()).map_err(|errno| Error::io("statx", inside, errno))?.mount);
        }
        let own = nix::unistd::getpid().to_string();
        answers.no_capabilities = order.no_capabilities;
        answers.outer_proc = proc::link("self").is_ok_and(|number| number != own.as_bytes());
        let namespace = proc::link(MOUNT_NAMESPACE).map_err(|errno| Error::io("readlink", MOUNT_NAMESPACE, errno))?;
        let seen = match &order.seen {
            None => None,
            Some(known) => {
                let tmp = file::open_path(std::path::Path::new("/tmp"))?;
                let place = mount::place(tmp.as_fd()).map_err(|errno| Error::io("statx", "/tmp", errno))?;
                Some(Seen { below: Below::new(known), tmp_mount: place.mount })
            }
        };
        Ok(Self {
            upper,
            mounts,
            uid: order.uid,
            gid: order.gid,
            allowed: !order.no_capabilities && order.uid == 0,
            namespace,
            records: BTreeMap::new(),
            nameless: vec![],
            answers,
            began: order.tree.then(file::now),
            seen,
            several_users: order.range.is_some(),
        })
    }

    /// Answers the next call that waits.
    pub fn answer(&mut self, listener: BorrowedFd) {
        let Ok(Some(asked)) = seccomp::receive(listener) else { return };
        let answer = match understand(&asked) {
            Some(Asked::Own { target, uid, gid }) => {
                Answer::Done(self.change_owner(listener, &asked, &target, uid, gid))
            }
            Some(Asked::Device { folder, path, mode, device }) => {
                Answer::Done(self.make_device(listener, &asked, folder, path, mode, device))
            }
            Some(Asked::Rename { old, new, flags }) => self.rename(listener, &asked, old, new, flags),
            Some(Asked::Open { at, how }) => self.answers.open(listener, &asked, at, &how),
            Some(Asked::ReadLink { at, into }) => self.answers.read_link(listener, &asked, at, into),
            // What can't be answered here is as the kernel says it: an error, or nobody else's file.
            Some(Asked::Stat { target, into }) => {
                self.show(listener, &asked, &target, into, file::stat_as).unwrap_or(Answer::Proceed)
            }
            Some(Asked::Statx { target, mask, into }) => self
                .show(listener, &asked, &target, into, |fd, shown| file::statx_as(fd, mask, shown))
                .unwrap_or(Answer::Proceed),
            Some(Asked::GetAttribute { target, name, into }) => {
                self.get_list(listener, &asked, &target, name, into).unwrap_or(Answer::Proceed)
            }
            Some(Asked::SetAttribute { target, name, value, flags }) => self
                .set_list(listener, &asked, &target, name, value, flags)
                .unwrap_or_else(|errno| Answer::Done(Err(errno))),
            None => Answer::Done(Err(Errno::ENOSYS)),
        };
        match answer {
            Answer::Given => {}
            Answer::Done(result) => seccomp::reply(listener, asked.id, result.map(|()| 0)),
            Answer::Length(bytes) => seccomp::reply(listener, asked.id, Ok(bytes as i64)),
            Answer::Proceed => seccomp::proceed(listener, asked.id),
        }
    }

    /// What init answers beside owners.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    fn caller(&self, asked: &Notification) -> nix::Result<Caller> {
        Caller::of(asked, self.answers.outer_proc)
    }

    fn change_owner(
        &mut self,
        listener: BorrowedFd,
        asked: &Notification,
        target: &Target,
        uid: u32,
        gid: u32,
    ) -> nix::Result<()> {
        let caller = self.caller(asked)?;
        match target {
            Target::Path { flags, .. } if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 => {
                return Err(Errno::EINVAL);
            }
            _ => {}
        }
        let found = caller.target(target)?;
        if !seccomp::still_waits(listener, asked.id) {
            return Err(Errno::EINTR);
        }
        let mapped = (uid == UNCHANGED || uid == self.uid) && (gid == UNCHANGED || gid == self.gid);
        if !self.allowed && !mapped {
            return Err(Errno::EPERM);
        }
        // The real change, to the owner that it has: copies it up, and clears what the kernel clears.
        let own = |asked: u32, mapped: u32| if asked == UNCHANGED { UNCHANGED } else { mapped };
        match process::change_owner(found.as_fd(), own(uid, self.uid), own(gid, self.gid)) {
            // A device of the host, or another file that can't be written but has this owner already.
            Err(Errno::EROFS) if mapped => return Ok(()),
            other => other?,
        }
        self.record(&found, mapped, |record| record.own(uid, gid))
    }

    /// Answers a `stat` with what is recorded, where that is not what the kernel says.
    fn show(
        &self,
        listener: BorrowedFd,
        asked: &Notification,
        target: &Target,
        into: u64,
        stat: impl FnOnce(BorrowedFd, &file::Shown) -> nix::Result<Vec<u8>>,
    ) -> nix::Result<Answer> {
        let caller = self.caller(asked)?;
        let found = self.as_caller(|| caller.target(target))?;
        let Some(facts) = self.facts(&found)? else { return Ok(Answer::Proceed) };
        if (facts.uid, facts.gid, facts.device) == (self.uid, self.gid, None) {
            return Ok(Answer::Proceed);
        }
        let shown = file::Shown { uid: facts.uid, gid: facts.gid, device: facts.device };
        let bytes = stat(found.as_fd(), &shown)?;
        if !seccomp::still_waits(listener, asked.id) {
            return Ok(Answer::Done(Err(Errno::EINTR)));
        }
        process::write_memory(asked.thread, into, &bytes)?;
        Ok(Answer::Done(Ok(())))
    }

    /// Shows a list with the names that were asked for.
    fn get_list(
        &self,
        listener: BorrowedFd,
        asked: &Notification,
        target: &Target,
        name: u64,
        (into, size): (u64, usize),
    ) -> nix::Result<Answer> {
        let Some(attribute) = lists::meant(asked, name) else { return Ok(Answer::Proceed) };
        let caller = self.caller(asked)?;
        let Some(list) = self.as_caller(|| lists::get(caller.target(target)?.as_fd(), attribute))? else {
            return Ok(Answer::Proceed);
        };
        if !seccomp::still_waits(listener, asked.id) {
            return Ok(Answer::Done(Err(Errno::EINTR)));
        }
        match size {
            0 => {}
            size if size < list.len() => return Ok(Answer::Done(Err(Errno::ERANGE))),
            _ => process::write_memory(asked.thread, into, &list)?,
        }
        Ok(Answer::Length(list.len()))
    }

    /// Keeps a list with the names that are asked for.
    fn set_list(
        &self,
        listener: BorrowedFd,
        asked: &Notification,
        target: &Target,
        name: u64,
        (value, size): (u64, usize),
        flags: i32,
    ) -> nix::Result<Answer> {
        let Some(attribute) = lists::meant(asked, name) else { return Ok(Answer::Proceed) };
        let Some(list) = lists::to_keep(asked, value, size, (self.uid, self.gid))? else { return Ok(Answer::Proceed) };
        let caller = self.caller(asked)?;
        let found = self.as_caller(|| caller.target(target))?;
        if !seccomp::still_waits(listener, asked.id) {
            return Ok(Answer::Done(Err(Errno::EINTR)));
        }
        self.as_caller(|| lists::set(found.as_fd(), attribute, &list, flags)).map(|()| Answer::Done(Ok(())))
    }

    /// With the rights that the steps have.
    fn as_caller<T>(&self, run: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
        if self.allowed { run() } else { process::without_capabilities(run) }
    }

    /// What is recorded of a file; `None`: nothing, or it is none of the snapshot.
    fn facts(&self, found: &OwnedFd) -> nix::Result<Option<Facts>> {
        let Some(seen) = &self.seen else { return Ok(None) };
        let place = mount::place(found.as_fd())?;
        if !self.mounts.contains(&place.mount) && place.mount != seen.tmp_mount {
            return Ok(None);
        }
        if place.links == 0 {
            let same = |n: &&Nameless| (n.place.device, n.place.inode) == (place.device, place.inode);
            return Ok(self.nameless.iter().find(same).map(|n| self.with(self.new_file(), Some(&n.record))));
        }
        let path = name_of(found.as_fd())?;
        let upper = match open_plain(self.upper.as_fd(), &path) {
            Ok(upper) => upper,
            Err(Errno::ENOENT) => return Ok(Some(seen.below.at(&path))),
            Err(errno) => return Err(errno),
        };
        let record = file::handle(upper.as_fd()).ok().and_then(|handle| self.records.get(&handle));
        if let Some(instead_of) = record.and_then(|record| record.instead_of.as_ref()) {
            return Ok(Some(self.with(seen.below.at(instead_of), record)));
        }
        let stat = nix::sys::stat::fstat(&upper)?;
        let plain = matches!(file::kind(&stat), SFlag::S_IFREG | SFlag::S_IFDIR);
        let relative = path.strip_prefix(b"/").unwrap_or(&path);
        // Only new files have none; the root is there before all.
        let copied_up = plain
            && match self.began {
                Some(began) => file::born(upper.as_fd()).is_ok_and(|born| born.is_some_and(|born| born < began)),
                None => {
                    relative.is_empty()
                        || xattr::get(self.upper.as_fd(), relative, ORIGIN).is_ok_and(|value| value.is_some())
                }
            };
        let upper = Upper { path: &path, access: (stat.st_atime, stat.st_atime_nsec), copied_up, special: !plain };
        Ok(Some(self.with(seen.below.inherited(upper).unwrap_or_else(|| self.new_file()), record)))
    }

    fn new_file(&self) -> Facts {
        Facts { uid: self.uid, gid: self.gid, device: None }
    }

    fn with(&self, facts: Facts, record: Option<&Record>) -> Facts {
        let Some(record) = record else { return facts };
        Facts {
            uid: record.uid.unwrap_or(facts.uid),
            gid: record.gid.unwrap_or(facts.gid),
            device: record.device.or(facts.device),
        }
    }

    fn make_device(
        &mut self,
        listener: BorrowedFd,
        asked: &Notification,
        folder: i32,
        path: u64,
        mode: u32,
        device: u64,
    ) -> nix::Result<()> {
        let caller = self.caller(asked)?;
        let path = caller.path(path, false)?;
        let (parent, name) = split(&path);
        match name {
            b"" if path.is_empty() => return Err(Errno::ENOENT),
            b"" | b"." | b".." => return Err(Errno::EEXIST),
            _ => {}
        }
        let parent = caller.open(folder, parent, true)?;
        let umask = caller.umask();
        if !seccomp::still_waits(listener, asked.id) {
            return Err(Errno::EINTR);
        }
        if !self.allowed || self.is_somebody_else(&caller) {
            return Err(Errno::EPERM);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let permissions = nix::sys::stat::Mode::from_bits_truncate(mode & 0o7777 & !umask);
        let made = nix::fcntl::openat(&parent, std::ffi::OsStr::from_bytes(name), flags, permissions)?;
        // Our own umask took bits away as well.
        nix::sys::stat::fchmod(&made, permissions)?;
        let character = mode & libc::S_IFMT == libc::S_IFCHR;
        // The kernel takes 32 bits of it (sys_mknodat's `unsigned int dev`).
        let device = u64::from(device as u32);
        let device = (character, libc::major(device), libc::minor(device));
        // A new file's identity in the upper folder is new too, but may have been seen as another's:
        // where there are no handles, a removed file's number comes again.
        self.record(&made, false, |record| *record = Record { device: Some(device), ..Record::default() })
    }

    /// Renames a folder; anything else, and what is not clear, is left to the kernel.
    fn rename(
        &mut self,
        listener: BorrowedFd,
        asked: &Notification,
        old: (i32, u64),
        new: (i32, u64),
        flags: u32,
    ) -> Answer {
        let Some(flags) = RenameFlags::from_bits(flags) else { return Answer::Proceed };
        let Ok(Some((old, new))) = self.ends_of_folder(asked, old, new) else { return Answer::Proceed };
        if !seccomp::still_waits(listener, asked.id) {
            return Answer::Done(Err(Errno::EINTR));
        }
        Answer::Done(match self.as_caller(|| rename::rename(&old, &new, flags)) {
            Err(Errno::EXDEV) if self.in_snapshot(&old) && self.in_snapshot(&new) => {
                rename::carry(&old, &new, flags, &mut |old, new| self.replace_folder(old, new))
            }
            other => other,
        })
    }

    /// The two ends of a rename; `None`: it is not about a folder that we see as the caller does.
    fn ends_of_folder(
        &self,
        asked: &Notification,
        old: (i32, u64),
        new: (i32, u64),
    ) -> nix::Result<Option<(End, End)>> {
        let caller = self.caller(asked)?;
        if self.is_somebody_else(&caller) {
            return Ok(None);
        }
        let Some(old) = caller.end(old)?.filter(|end| end.is_folder().unwrap_or(false)) else { return Ok(None) };
        if proc::link(&caller.own("ns/mnt"))? != self.namespace {
            return Ok(None);
        }
        Ok(caller.end(new)?.map(|new| (old, new)))
    }

    fn is_somebody_else(&self, caller: &Caller) -> bool {
        self.several_users && caller.effective_user() != Some(0)
    }

    /// With subordinate IDs, at the end: files have real owners, which are recorded, and then all are ours.
    pub fn take_back(&mut self) -> Result<()> {
        let upper = file::open_at(self.upper.as_fd(), b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let records = &mut self.records;
        range::take_back(upper.as_fd(), &mut |fd, stat| {
            let record = records.entry(file::handle(fd.as_fd())?).or_default();
            // Under its second name a file is ours already: the first one told whose it was.
            record.uid.get_or_insert(stat.st_uid);
            record.gid.get_or_insert(stat.st_gid);
            lists::to_disk(fd.as_fd())
        })
    }

    fn in_snapshot(&self, end: &End) -> bool {
        mount::place(end.folder.as_fd()).is_ok_and(|place| self.mounts.contains(&place.mount))
    }

    /// A new folder takes the place of one that the layers below have under the very path that it has
    /// now, since overlay has never let it be renamed.
    fn replace_folder(&mut self, old: BorrowedFd, new: BorrowedFd) -> nix::Result<()> {
        let path = name_of(old)?;
        let mut record = match open_plain(self.upper.as_fd(), &path) {
            Ok(upper) => {
                let handle = file::handle(upper.as_fd()).map_err(|_| Errno::EIO)?;
                self.records.get(&handle).cloned().unwrap_or_default()
            }
            // It was not changed so far.
            Err(Errno::ENOENT) => Record::default(),
            Err(errno) => return Err(errno),
        };
        record.instead_of = Some(path.into());
        let handle = self.identity(new)?;
        if self.records.len() >= MOST {
            return Err(Errno::ENOSPC);
        }
        self.records.insert(handle, record);
        Ok(())
    }

    /// Keeps what was asked for a file that is open here, if it is one of the snapshot. Elsewhere
    /// (`/dev`, `/run`) nothing is kept, since nothing there outlives the sandbox.
    fn record(&mut self, found: &OwnedFd, mapped: bool, change: impl Fn(&mut Record)) -> nix::Result<()> {
        let place = mount::place(found.as_fd())?;
        let in_seen_tmp = self.seen.as_ref().is_some_and(|seen| seen.tmp_mount == place.mount);
        if !self.mounts.contains(&place.mount) && !in_seen_tmp && !self.is_ours_elsewhere(found, &place) {
            return if self.is_lost(found, mapped) { Err(Errno::EINVAL) } else { Ok(()) };
        }
        if place.links == 0 {
            return self.record_nameless(found, place, change);
        }
        let handle = self.identity(found.as_fd())?;
        if self.records.len() >= MOST && !self.records.contains_key(&handle) {
            return Err(Errno::ENOSPC);
        }
        change(self.records.entry(handle).or_default());
        Ok(())
    }

    /// Is it the same file of the snapshot, seen through a mount that the rule made in a mount
    /// namespace of its own?
    fn is_ours_elsewhere(&self, found: &OwnedFd, place: &Place) -> bool {
        let same = || -> nix::Result<bool> {
            let path = name_of(found.as_fd())?;
            let again = mount::place(open_plain(top()?.as_fd(), &path)?.as_fd())?;
            Ok(self.mounts.contains(&again.mount) && (again.device, again.inode) == (place.device, place.inode))
        };
        same().unwrap_or(false)
    }

    /// A file of the snapshot that we can't find by name: recording nothing would be silently wrong.
    fn is_lost(&self, found: &OwnedFd, mapped: bool) -> bool {
        let kind = |of: &OwnedFd| nix::sys::statfs::fstatfs(of).map(|found| found.filesystem_type()).ok();
        let overlay = top().is_ok_and(|top| kind(&top) == kind(found));
        let own_mount = || name_of(found.as_fd()).is_ok_and(|path| path.starts_with(b"/tmp/") || path == b"/tmp");
        overlay && !mapped && !own_mount()
    }

    fn record_nameless(&mut self, found: &OwnedFd, place: Place, change: impl Fn(&mut Record)) -> nix::Result<()> {
        let same = |n: &&mut Nameless| (n.place.device, n.place.inode) == (place.device, place.inode);
        if let Some(known) = self.nameless.iter_mut().find(same) {
            change(&mut known.record);
            return Ok(());
        }
        // A removed file can't get a name again, and goes with whoever has it open.
        if !may_get_a_name(&name_of(found.as_fd())?) {
            return Ok(());
        }
        if self.nameless.len() >= MOST_NAMELESS {
            return Err(Errno::ENFILE);
        }
        let mut record = Record::default();
        change(&mut record);
        let fd = found.try_clone().map_err(|_| Errno::EMFILE)?;
        self.nameless.push(Nameless { fd, place, record });
        Ok(())
    }

    /// The identity of a file of the snapshot in the upper folder, where its copy-up has put it
    /// under the same name.
    fn identity(&self, found: BorrowedFd) -> nix::Result<Vec<u8>> {
        for _ in 0..64 {
            let path = name_of(found)?;
            let upper = match open_plain(self.upper.as_fd(), &path) {
                Ok(upper) => upper,
                // It, or a folder above, is just being renamed.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                Err(errno) => return Err(errno),
            };
            let handle = file::handle(upper.as_fd()).map_err(|_| Errno::EIO)?;
            if name_of(found)? == path {
                return Ok(handle);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// All that was asked for, at the end, when nothing else is alive.
    pub fn into_recorded(mut self) -> Result<Vec<Recorded>> {
        self.find_nameless()?;
        let recorded = |(handle, r): (Vec<u8>, Record)| Recorded {
            handle,
            uid: r.uid,
            gid: r.gid,
            device: r.device,
            instead_of: r.instead_of.map(Vec::from),
        };
        Ok(self.records.into_iter().map(recorded).collect())
    }

    /// Files that have got a name since: the upper folder is walked for them, which is seldom needed.
    fn find_nameless(&mut self) -> Result<()> {
        let named = |n: &Nameless| mount::place(n.fd.as_fd()).is_ok_and(|place| place.links > 0);
        let mut wanted: BTreeMap<u64, Record> =
            self.nameless.iter().filter(|n| named(n)).map(|n| (n.place.inode, n.record.clone())).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut folders = vec![self.upper.try_clone().map_err(|e| Error::io("dup", "upper", e))?];
        while let Some(folder) = folders.pop() {
            for name in file::list(folder.as_fd())? {
                let Some(stat) = file::stat_at(folder.as_fd(), &name)? else { continue };
                match file::kind(&stat) {
                    nix::sys::stat::SFlag::S_IFDIR => folders.push(file::open_folder_at(folder.as_fd(), &name)?),
                    nix::sys::stat::SFlag::S_IFREG => {
                        if let Some(record) = wanted.remove(&stat.st_ino) {
                            let fd = file::open_at(folder.as_fd(), &name, OFlag::O_PATH)?;
                            self.records.insert(file::handle(fd.as_fd())?, record);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A file made by `O_TMPFILE` is shown as `/folder/#NUMBER (deleted)`; linkat(2) may name it.
fn may_get_a_name(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let number = name.strip_prefix(b"#").and_then(|rest| rest.strip_suffix(b" (deleted)"));
    number.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Opens a path below a folder, without following anything.
fn open_plain(folder: BorrowedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    file::open_below(folder, path.strip_prefix(b"/").unwrap_or(path), OFlag::O_PATH | OFlag::O_NOFOLLOW, strict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_chown_keeps_the_other_half() {
        let mut record = Record { device: Some((true, 1, 3)), ..Record::default() };
        for (uid, gid, expected) in
            [(33, UNCHANGED, (Some(33), None)), (UNCHANGED, 5, (Some(33), Some(5))), (0, 0, (Some(0), Some(0)))]
        {
            record.own(uid, gid);
            assert_eq!((record.uid, record.gid), expected);
        }
        assert_eq!(record.device, Some((true, 1, 3)));
    }
}
