//! Files by descriptor: a folder and a name, never a path that somebody else could turn into
//! another one between two calls.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, OFlag, RenameFlags};
use nix::sys::stat::{FileStat, Mode, SFlag};

use crate::error::{Error, Result};

/// How a path is shown in errors: what the descriptor is, as the kernel knows it, and the name.
pub fn shown(dir: BorrowedFd, name: impl AsRef<[u8]>) -> PathBuf {
    let folder =
        std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).unwrap_or_else(|_| PathBuf::from("?"));
    folder.join(OsStr::from_bytes(name.as_ref()))
}

pub(super) fn c(name: &[u8]) -> Result<CString> {
    CString::new(name)
        .map_err(|_| Error::failed(format!("a name that holds a NUL byte: {:?}", String::from_utf8_lossy(name))))
}

fn done<T>(call: &str, dir: BorrowedFd, name: &[u8], result: nix::Result<T>) -> Result<T> {
    result.map_err(|errno| Error::io(call, shown(dir, name), errno))
}

pub(super) fn checked(call: &str, dir: BorrowedFd, name: &[u8], result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Error::io(call, shown(dir, name), io::Error::last_os_error())) } else { Ok(result) }
}

/// openat(2) with `O_CLOEXEC` and `O_NOFOLLOW` added. `name` is one part.
pub fn open_at(dir: BorrowedFd, name: &[u8], flags: OFlag) -> Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    done("open", dir, name, nix::fcntl::openat(dir, OsStr::from_bytes(name), flags, Mode::empty()))
}

/// A regular file for reading. What is not one is an error (a FIFO would block, a device could do anything).
pub fn open_regular_at(dir: BorrowedFd, name: &[u8]) -> Result<File> {
    let fd = open_at(dir, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
    let stat = done("fstat", dir, name, nix::sys::stat::fstat(&fd))?;
    if kind(&stat) != SFlag::S_IFREG {
        return Err(Error::failed(format!("not a regular file: {}", shown(dir, name).display())));
    }
    Ok(File::from(fd))
}

/// A regular file by a path that somebody named: what is none, a pipe or a device, is an error and
/// never waited for.
pub fn open_regular(path: &Path) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| Error::io("open", path, errno))?;
    let stat = nix::sys::stat::fstat(&fd).map_err(|errno| Error::io("fstat", path, errno))?;
    if kind(&stat) != SFlag::S_IFREG {
        return Err(Error::request(format!("not a regular file: {}", path.display())));
    }
    Ok(File::from(fd))
}

/// A folder, `O_PATH` or readable.
pub fn open_folder_at(dir: BorrowedFd, name: &[u8]) -> Result<OwnedFd> {
    open_at(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// A new regular file for writing; it must not exist. Its mode is exactly `mode`, whatever the umask.
pub fn create_file_at(dir: BorrowedFd, name: &[u8], mode: u32) -> Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = done(
        "create",
        dir,
        name,
        nix::fcntl::openat(dir, OsStr::from_bytes(name), flags, Mode::from_bits_truncate(0o600)),
    )?;
    done("fchmod", dir, name, nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(mode)))?;
    Ok(File::from(fd))
}

/// A new regular file at a path: what is there already is removed, and never written through, be it a link.
pub fn create_anew(path: &Path) -> Result<File> {
    let removed = std::fs::remove_file(path);
    removed
        .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .and_then(|()| File::create_new(path))
        .map_err(|e| Error::io("create", path, e))
}

/// mkdirat(2), then exactly this mode.
pub fn mkdir_at(dir: BorrowedFd, name: &[u8], mode: u32) -> Result<()> {
    make_folder_at(dir, name)?;
    chmod_at(dir, name, mode)
}

/// mkdirat(2): a folder that is its owner's alone, until [`chmod`].
pub fn make_folder_at(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    done("mkdir", dir, name, nix::sys::stat::mkdirat(dir, OsStr::from_bytes(name), Mode::from_bits_truncate(0o700)))
}

/// symlinkat(2).
pub fn symlink_at(target: &[u8], dir: BorrowedFd, name: &[u8]) -> Result<()> {
    done("symlink", dir, name, nix::unistd::symlinkat(OsStr::from_bytes(target), dir, OsStr::from_bytes(name)))
}

/// mknodat(2): a FIFO, a socket, or a 0/0 character device (a whiteout, allowed in a user namespace).
pub fn mknod_at(dir: BorrowedFd, name: &[u8], kind: SFlag, mode: u32, device: u64) -> Result<()> {
    let perm = Mode::from_bits_truncate(mode);
    done("mknod", dir, name, nix::sys::stat::mknodat(dir, OsStr::from_bytes(name), kind, perm, device as libc::dev_t))
}

/// mkfifoat(3), then exactly this mode.
pub fn mkfifo_at(dir: BorrowedFd, name: &[u8], mode: u32) -> Result<()> {
    mknod_at(dir, name, SFlag::S_IFIFO, 0o600, 0)?;
    chmod_at(dir, name, mode)
}

/// linkat(2), links themselves not followed.
pub fn link_at(dir: BorrowedFd, name: &[u8], new_dir: BorrowedFd, new_name: &[u8]) -> Result<()> {
    done(
        "link",
        new_dir,
        new_name,
        nix::unistd::linkat(dir, OsStr::from_bytes(name), new_dir, OsStr::from_bytes(new_name), AtFlags::empty()),
    )
}

/// renameat(2).
pub fn rename_at(dir: BorrowedFd, name: &[u8], new_dir: BorrowedFd, new_name: &[u8]) -> Result<()> {
    done("rename", dir, name, nix::fcntl::renameat(dir, OsStr::from_bytes(name), new_dir, OsStr::from_bytes(new_name)))
}

/// renameat2(2) with `RENAME_NOREPLACE`; `false`: something is there already.
pub fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    let cwd = nix::fcntl::AT_FDCWD;
    match nix::fcntl::renameat2(cwd, from, cwd, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(true),
        Err(nix::Error::EEXIST | nix::Error::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(Error::io("rename", to, errno)),
    }
}

/// renameat2(2) with `RENAME_EXCHANGE`: both exist afterwards, swapped in one step.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    let cwd = nix::fcntl::AT_FDCWD;
    nix::fcntl::renameat2(cwd, one, cwd, other, RenameFlags::RENAME_EXCHANGE)
        .map_err(|errno| Error::io("rename", other, errno))
}

/// unlinkat(2) of what is not a folder.
pub fn unlink_at(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    done(
        "unlink",
        dir,
        name,
        nix::unistd::unlinkat(dir, OsStr::from_bytes(name), nix::unistd::UnlinkatFlags::NoRemoveDir),
    )
}

/// Removes an empty folder; nothing there is fine. `false`: something is in it.
pub fn remove_folder_at(dir: BorrowedFd, name: &[u8]) -> Result<bool> {
    match nix::unistd::unlinkat(dir, OsStr::from_bytes(name), nix::unistd::UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(true),
        Err(nix::Error::ENOTEMPTY | nix::Error::ENOTDIR) => Ok(false),
        Err(errno) => Err(Error::io("rmdir", shown(dir, name), errno)),
    }
}

/// Removes a file or a whole folder, following no link; folders of mode 000 too. Nothing there is fine.
pub fn remove_tree_at(dir: BorrowedFd, name: &[u8]) -> Result<()> {
    // Depth is kept on the heap, so that a deep tree can't overflow the stack.
    enum Todo {
        Visit(std::rc::Rc<OwnedFd>, Vec<u8>),
        Leave(std::rc::Rc<OwnedFd>, Vec<u8>),
    }
    let top = std::rc::Rc::new(dir.try_clone_to_owned().map_err(|e| Error::io("dup", shown(dir, name), e))?);
    let mut todo = vec![Todo::Visit(top, name.to_vec())];
    while let Some(next) = todo.pop() {
        match next {
            Todo::Leave(dir, name) => {
                let dir = dir.as_fd();
                done(
                    "rmdir",
                    dir,
                    &name,
                    nix::unistd::unlinkat(dir, OsStr::from_bytes(&name), nix::unistd::UnlinkatFlags::RemoveDir),
                )?;
            }
            Todo::Visit(dir, name) => {
                let fd = dir.as_fd();
                let Some(stat) = stat_at(fd, &name)? else { continue };
                if kind(&stat) != SFlag::S_IFDIR {
                    unlink_at(fd, &name)?;
                    continue;
                }
                let folder = match open_folder_at(fd, &name) {
                    Ok(folder) => folder,
                    Err(_) => {
                        chmod_at(fd, &name, 0o700)?;
                        open_folder_at(fd, &name)?
                    }
                };
                if stat.st_mode & 0o300 != 0o300 {
                    done("fchmod", fd, &name, nix::sys::stat::fchmod(&folder, Mode::S_IRWXU))?;
                }
                let names = list(folder.as_fd())?;
                let folder = std::rc::Rc::new(folder);
                todo.push(Todo::Leave(dir.clone(), name));
                todo.extend(names.into_iter().map(|name| Todo::Visit(folder.clone(), name)));
            }
        }
    }
    Ok(())
}

/// Removes a whole folder by its (trusted) path.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::failed(format!("can't remove {}", path.display())));
    };
    match File::open(parent) {
        Ok(parent) => remove_tree_at(parent.as_fd(), name.as_bytes()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("open", parent, e)),
    }
}

/// readlinkat(2).
pub fn read_link_at(dir: BorrowedFd, name: &[u8]) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    done("readlink", dir, name, nix::fcntl::readlinkat(dir, OsStr::from_bytes(name))).map(OsStringExt::into_vec)
}

/// fstatat(2), links not followed; `None`: nothing there.
pub fn stat_at(dir: BorrowedFd, name: &[u8]) -> Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(nix::Error::ENOENT) => Ok(None),
        Err(errno) => Err(Error::io("stat", shown(dir, name), errno)),
    }
}

/// What a file is shown as.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A device that it stands for: is it a character device, major, minor.
    pub device: Option<(bool, u32, u32)>,
}

/// The bytes of a struct of numbers that the kernel has filled.
fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: `value` is live and as long as said. It was zeroed before the kernel filled it, so its
    // padding is set too.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn kind_of_device(character: bool) -> u32 {
    if character { libc::S_IFCHR } else { libc::S_IFBLK }
}

/// fstat(2), as the kernel lays it out for programs of this machine, with another owner.
pub fn stat_as(fd: BorrowedFd, shown: &Shown) -> nix::Result<Vec<u8>> {
    // SAFETY: stat is plain numbers, for which zeros are a value.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat fills the struct that it is given, a live local.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut found) } < 0 {
        return Err(nix::Error::last());
    }
    (found.st_uid, found.st_gid) = (shown.uid, shown.gid);
    if let Some((character, major, minor)) = shown.device {
        found.st_mode = found.st_mode & !libc::S_IFMT | kind_of_device(character);
        found.st_rdev = libc::makedev(major, minor);
    }
    Ok(bytes_of(&found))
}

/// statx(2) of an open file, the same way.
pub fn statx_as(fd: BorrowedFd, mask: u32, shown: &Shown) -> nix::Result<Vec<u8>> {
    // SAFETY: statx is plain numbers, for which zeros are a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is a static C string, `found` a live local of the type that the call fills.
    if unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut found) } < 0 {
        return Err(nix::Error::last());
    }
    (found.stx_uid, found.stx_gid) = (shown.uid, shown.gid);
    if let Some((character, major, minor)) = shown.device {
        found.stx_mode = found.stx_mode & !(libc::S_IFMT as u16) | kind_of_device(character) as u16;
        (found.stx_rdev_major, found.stx_rdev_minor) = (major, minor);
    }
    Ok(bytes_of(&found))
}

/// The kind bits of a mode.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

/// Sets the mode of what is no link. fchmodat(2) follows links, so the file is opened first and
/// changed through its descriptor's name in /proc.
pub fn chmod_at(dir: BorrowedFd, name: &[u8], mode: u32) -> Result<()> {
    let fd = open_at(dir, name, OFlag::O_PATH)?;
    let stat = done("fstat", dir, name, nix::sys::stat::fstat(&fd))?;
    if kind(&stat) == SFlag::S_IFLNK {
        return Err(Error::io("chmod", shown(dir, name), nix::Error::ELOOP));
    }
    chmod_path(fd.as_fd(), mode).map_err(|errno| Error::io("chmod", shown(dir, name), errno))
}

/// fchmod(2).
pub fn chmod(fd: BorrowedFd, mode: u32) -> Result<()> {
    done("fchmod", fd, b"", nix::sys::stat::fchmod(fd, Mode::from_bits_truncate(mode)))
}

fn chmod_path(fd: BorrowedFd, mode: u32) -> nix::Result<()> {
    let bits = Mode::from_bits_truncate(mode);
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        proc_name(fd).as_str(),
        bits,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
}

pub(super) fn proc_name(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Changes the owner, links not followed; `false`: we may not, or the ID isn't mapped here.
pub fn chown_at(dir: BorrowedFd, name: &[u8], uid: u32, gid: u32) -> Result<bool> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    match nix::unistd::fchownat(dir, OsStr::from_bytes(name), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(nix::Error::EPERM | nix::Error::EINVAL | nix::Error::EOVERFLOW) => Ok(false),
        Err(errno) => Err(Error::io("chown", shown(dir, name), errno)),
    }
}

/// Replaces a file by a device; `false`: we may not make one, and the file stays.
pub fn make_device_at(dir: BorrowedFd, name: &[u8], character: bool, (major, minor): (u32, u32)) -> Result<bool> {
    let new = [b".tapeout-device.", name].concat();
    let kind = if character { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
    let device = nix::sys::stat::makedev(major.into(), minor.into());
    match nix::sys::stat::mknodat(dir, OsStr::from_bytes(&new), kind, Mode::empty(), device) {
        Ok(()) => rename_at(dir, &new, dir, name).map(|()| true),
        Err(nix::Error::EPERM | nix::Error::ENAMETOOLONG) => Ok(false),
        Err(errno) => Err(Error::io("mknod", shown(dir, name), errno)),
    }
}

/// Sets access and modification time, links not followed.
pub fn set_mtime_at(dir: BorrowedFd, name: &[u8], seconds: i64) -> Result<()> {
    set_times_at(dir, name, (seconds, 0), seconds)
}

/// Sets the access time (seconds, nanoseconds) and the modification time, links not followed.
pub fn set_times_at(dir: BorrowedFd, name: &[u8], access: (i64, i64), modification: i64) -> Result<()> {
    let access = nix::sys::time::TimeSpec::new(access.0, access.1);
    let modification = nix::sys::time::TimeSpec::new(modification, 0);
    let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    done("utimensat", dir, name, nix::sys::stat::utimensat(dir, OsStr::from_bytes(name), &access, &modification, flag))
}

/// Lets reading a regular file or folder leave its access time alone (chattr(1), `A`); `false`:
/// this file system can't.
pub fn keep_access_time_at(dir: BorrowedFd, name: &[u8]) -> Result<bool> {
    Ok(keep_access_time(open_at(dir, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?.as_fd()))
}

/// The same of an open one.
pub fn keep_access_time(fd: BorrowedFd) -> bool {
    const FS_NOATIME_FL: libc::c_int = 0x80;
    let mut flags: libc::c_int = 0;
    // SAFETY: both ioctls take a pointer to a C int (ioctl_iflags(2)), and this one is a live local.
    unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) == 0 && {
            flags |= FS_NOATIME_FL;
            libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) == 0
        }
    }
}

/// The names in a folder, sorted, without `.` and `..`.
pub fn list(dir: BorrowedFd) -> Result<Vec<Vec<u8>>> {
    // A folder's position belongs to its open file, so it is opened anew.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder = done("open", dir, b"", nix::dir::Dir::openat(dir, ".", flags, Mode::empty()))?;
    let mut names = vec![];
    for entry in folder.iter() {
        let entry = done("readdir", dir, b"", entry)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The identity of a file on its file system: the bytes of its handle (name_to_handle_at(2)),
/// which hold its inode and generation, so that a reused inode is another identity. `fd` may be
/// an `O_PATH` one. Where the file system has no handles: device, inode and time of birth.
pub fn handle(fd: BorrowedFd) -> Result<Vec<u8>> {
    const ROOM: usize = 128;
    #[repr(C)]
    struct FileHandle {
        bytes: u32,
        kind: i32,
        data: [u8; ROOM],
    }
    let mut handle = FileHandle { bytes: ROOM as u32, kind: 0, data: [0; ROOM] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: the path is a C string; `handle` has room for the ROOM bytes that it announces; both
    // pointers are to live locals.
    let n = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if n == 0 {
        let mut identity = handle.kind.to_le_bytes().to_vec();
        identity.extend_from_slice(&handle.data[..(handle.bytes as usize).min(ROOM)]);
        return Ok(identity);
    }
    let stat = nix::sys::stat::fstat(fd).map_err(|errno| Error::io("fstat", shown(fd, b""), errno))?;
    let mut identity = b"inode".to_vec();
    identity.extend_from_slice(&stat.st_dev.to_le_bytes());
    identity.extend_from_slice(&stat.st_ino.to_le_bytes());
    for number in born(fd).ok().flatten().map_or([0, 0], |(seconds, nanoseconds)| [seconds, nanoseconds]) {
        identity.extend_from_slice(&number.to_le_bytes());
    }
    Ok(identity)
}

/// When a file was made, which no call can set: seconds and nanoseconds; `None`: its file system
/// doesn't say.
pub fn born(fd: BorrowedFd) -> nix::Result<Option<(i64, i64)>> {
    // SAFETY: statx is plain numbers, for which zeros are a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a static C string, `found` a live local of the type that the call fills.
    let n =
        unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_BTIME, &raw mut found) };
    nix::errno::Errno::result(n)?;
    let known = found.stx_mask & libc::STATX_BTIME != 0;
    Ok(known.then_some((found.stx_btime.tv_sec, i64::from(found.stx_btime.tv_nsec))))
}

/// The time that a file gets which is made now.
pub fn now() -> (i64, i64) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live local of the type that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    (now.tv_sec, now.tv_nsec)
}

/// Waits until a file that changes gets another time than one that changed at `before` ([`now`]): a tick of the kernel's
/// clock, of which the slowest has a hundred in a second.
pub fn wait_for_other_time(before: (i64, i64)) {
    const SLOWEST: Duration = Duration::from_millis(10);
    let began = Instant::now();
    while now() == before && began.elapsed() < SLOWEST {
        std::thread::sleep(SLOWEST / 20);
    }
}

/// Does a write through a shared mapping change the times of a file, as POSIX wants it (tmpfs does
/// not)? Tried with an empty file, open for reading and writing.
pub fn tells_mapped_writes(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    const SIZE: usize = 4096;
    // It has its place on the disk before it is mapped: a write through a mapping to a full one is SIGBUS.
    file.write_all_at(&[0; SIZE], 0)?;
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    file.set_times(std::fs::FileTimes::new().set_modified(long_ago))?;
    let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, placed by the kernel, of an open file that is as long as it.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, how, file.as_raw_fd(), 0) };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is SIZE bytes long, writable, ours alone, and gone after the second call.
    unsafe {
        place.cast::<u8>().write_volatile(1);
        libc::msync(place, SIZE, libc::MS_SYNC);
        libc::munmap(place, SIZE);
    }
    Ok(file.metadata()?.modified()? != long_ago)
}

/// Makes `to` (empty) hold what `from` holds: shared blocks where the file system can
/// (ioctl_ficlone(2)), else a copy.
pub fn reflink_or_copy(from: &File, to: &File) -> io::Result<()> {
    const FICLONE: libc::c_ulong = 0x4004_9409;
    // SAFETY: FICLONE takes a descriptor by value; both are open.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) } == 0 {
        return Ok(());
    }
    // `io::copy` between two files uses copy_file_range(2).
    io::copy(&mut &*from, &mut &*to).map(drop)
}

/// A nameless file in a folder (`O_TMPFILE`), for [`name_file`]; its mode is what the umask leaves.
pub fn nameless_file(folder: &Path, mode: u32) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(mode)
        .open(folder)
        .map_err(|e| Error::io("open", folder, e))
}

/// Gives a nameless file its name; `false`: the name is taken.
pub fn name_file(file: &File, path: &Path) -> Result<bool> {
    let from = proc_name(file.as_fd());
    let cwd = nix::fcntl::AT_FDCWD;
    match nix::unistd::linkat(cwd, from.as_str(), cwd, path, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(nix::Error::EEXIST) => Ok(false),
        Err(errno) => Err(Error::io("link", path, errno)),
    }
}

/// Opens the folder itself for descriptor work.
pub fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| Error::io("open", path, errno))
}

/// openat2(2).
pub fn open_below(
    dir: BorrowedFd,
    path: &[u8],
    flags: OFlag,
    resolve: nix::fcntl::ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = nix::fcntl::OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    let path = if path.is_empty() { b".".as_slice() } else { path };
    // EAGAIN: something was renamed meanwhile, and the kernel could not be sure (openat2(2)).
    for _ in 0..64 {
        match nix::fcntl::openat2(dir, OsStr::from_bytes(path), how) {
            Err(nix::Error::EAGAIN) => {}
            other => return other,
        }
    }
    Err(nix::Error::EAGAIN)
}

/// Takes a descriptor that an own process was handed by number.
///
/// # Safety
/// Nobody else in this process may own that number.
pub unsafe fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let temp = tempfile::tempdir().unwrap();
        let fd = open_folder_at(
            File::open(temp.path().parent().unwrap()).unwrap().as_fd(),
            temp.path().file_name().unwrap().as_bytes(),
        )
        .unwrap();
        (temp, fd)
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let (_temp, dir) = folder();
        create_file_at(dir.as_fd(), b"f", 0o4777).unwrap();
        mkdir_at(dir.as_fd(), b"d", 0o1777).unwrap();
        assert_eq!(stat_at(dir.as_fd(), b"f").unwrap().unwrap().st_mode & 0o7777, 0o4777);
        assert_eq!(stat_at(dir.as_fd(), b"d").unwrap().unwrap().st_mode & 0o7777, 0o1777);
    }

    #[test]
    fn removing_a_tree_follows_no_link() {
        let (temp, dir) = folder();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        std::fs::create_dir_all(temp.path().join("t/a/b")).unwrap();
        std::os::unix::fs::symlink(outside.path(), temp.path().join("t/a/link")).unwrap();
        chmod_at(dir.as_fd(), b"t", 0o000).unwrap();
        remove_tree_at(dir.as_fd(), b"t").unwrap();
        assert!(!temp.path().join("t").exists());
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_reused_inode_is_another_identity() {
        let (_temp, dir) = folder();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let file = create_file_at(dir.as_fd(), b"f", 0o600).unwrap();
            assert!(seen.insert(handle(file.as_fd()).unwrap()));
            assert_eq!(
                handle(file.as_fd()).unwrap(),
                handle(open_at(dir.as_fd(), b"f", OFlag::O_PATH).unwrap().as_fd()).unwrap()
            );
            unlink_at(dir.as_fd(), b"f").unwrap();
        }
    }

    #[test]
    fn chmod_never_goes_through_a_link() {
        let (temp, dir) = folder();
        create_file_at(dir.as_fd(), b"f", 0o600).unwrap();
        symlink_at(b"f", dir.as_fd(), b"l").unwrap();
        assert!(chmod_at(dir.as_fd(), b"l", 0o777).is_err());
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(temp.path().join("f")).unwrap().permissions())
                & 0o777,
            0o600
        );
    }
}
