//! Mounts by descriptor: the new mount API (fsopen(2), fsmount(2), open_tree(2), move_mount(2)),
//! so that no path that somebody else could swap is ever resolved while something is mounted.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::file::shown;

/// Mount attributes, as the kernel numbers them.
pub mod attribute {
    /// Read-only.
    pub const READ_ONLY: u64 = 0x1;
    /// Set-ID bits have no effect.
    pub const NO_SUID: u64 = 0x2;
    /// Device nodes can't be opened.
    pub const NO_DEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NO_EXEC: u64 = 0x8;
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// One option of a file system.
#[derive(Debug, Clone)]
pub enum Setting<'a> {
    /// `key`
    Flag(&'a str),
    /// `key=value`
    Text(&'a str, &'a str),
}

/// What the kernel said when a file system could not be made.
#[derive(Debug)]
pub struct Refused {
    /// The call and what it was about: `fsconfig(overlay, upperdir)`.
    pub call: String,
    /// Its errno.
    pub errno: Errno,
    /// The kernel's own words, where it had any.
    pub log: Vec<String>,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let error = Error::failed(format!("{}: {}", refused.call, refused.errno.desc()));
        refused.log.into_iter().fold(error, Error::why)
    }
}

fn checked(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the call succeeded, so this number is a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn c(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// fsopen(2): a file system about to be made.
pub struct FileSystem {
    kind: &'static str,
    fd: OwnedFd,
}

impl FileSystem {
    /// Of this type.
    pub fn open(kind: &'static str) -> Result<Self, Refused> {
        let refused = |errno| Refused { call: format!("fsopen({kind})"), errno, log: vec![] };
        let name = c(kind).map_err(refused)?;
        // SAFETY: `name` ends in NUL and lives until the call returns.
        let fd = owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) }).map_err(refused)?;
        Ok(Self { kind, fd })
    }

    fn config(&self, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> nix::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: both pointers are null or to C strings that live until the call returns.
        checked(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.fd.as_raw_fd(), command, pointer(key), pointer(value), 0)
        })
        .map(drop)
    }

    fn refused(&self, call: String, errno: Errno) -> Refused {
        Refused { call, errno, log: self.log() }
    }

    /// One option.
    pub fn set(&self, setting: &Setting) -> Result<(), Refused> {
        let (key, done) = match setting {
            Setting::Flag(key) => (key, c(key).and_then(|k| self.config(FSCONFIG_SET_FLAG, Some(&k), None))),
            Setting::Text(key, value) => {
                (key, c(key).and_then(|k| c(value).and_then(|v| self.config(FSCONFIG_SET_STRING, Some(&k), Some(&v)))))
            }
        };
        done.map_err(|errno| self.refused(format!("fsconfig({}, {key})", self.kind), errno))
    }

    /// Makes it, and a mount of it that is attached nowhere yet.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd, Refused> {
        self.config(FSCONFIG_CMD_CREATE, None, None)
            .map_err(|errno| self.refused(format!("mount({})", self.kind), errno))?;
        // SAFETY: fsmount takes a descriptor and two numbers.
        owned(unsafe {
            libc::syscall(libc::SYS_fsmount, self.fd.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as libc::c_uint)
        })
        .map_err(|errno| self.refused(format!("fsmount({})", self.kind), errno))
    }

    /// What the kernel wrote about it: each read(2) gives one line, `e overlay: …`.
    fn log(&self) -> Vec<String> {
        let mut lines = vec![];
        let mut line = [0u8; 1024];
        while let Ok(n @ 1..) = nix::unistd::read(&self.fd, &mut line) {
            lines.push(
                String::from_utf8_lossy(&line[..n])
                    .trim_end()
                    .trim_start_matches(['e', 'w', 'i'])
                    .trim_start()
                    .to_string(),
            );
            if lines.len() == 8 {
                break;
            }
        }
        lines
    }
}

/// A file system with these options, attached nowhere yet.
pub fn file_system(kind: &'static str, settings: &[Setting], attributes: u64) -> Result<OwnedFd, Refused> {
    let made = FileSystem::open(kind)?;
    for setting in settings {
        made.set(setting)?;
    }
    made.mount(attributes)
}

/// mount(2) of an overlay, for kernels that don't know `lowerdir+` (before 6.7): short names of
/// descriptors in `/proc/self/fd`, since all options together must fit in one page.
pub fn old_overlay(
    lower_first_is_highest: &[BorrowedFd],
    upper: BorrowedFd,
    work: BorrowedFd,
    target: BorrowedFd,
) -> nix::Result<()> {
    let name = |fd: &BorrowedFd| fd.as_raw_fd().to_string();
    let lower: Vec<String> = lower_first_is_highest.iter().map(name).collect();
    let options = format!(
        "userxattr,volatile,index=off,lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        name(&upper),
        name(&work)
    );
    if options.len() > 4000 {
        return Err(Errno::E2BIG);
    }
    // The names are relative, so that two hundred and more of them fit.
    nix::unistd::chdir("/proc/self/fd")?;
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    let none = nix::mount::MsFlags::empty();
    let done = nix::mount::mount(Some("overlay"), target.as_str(), Some("overlay"), none, Some(options.as_str()));
    nix::unistd::chdir("/")?;
    done
}

/// open_tree(2): a copy of what is mounted at `path` below `dir`, attached nowhere yet. No link in
/// the last part is followed.
pub fn copy_tree(dir: BorrowedFd, path: &CStr) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    // SAFETY: `path` is a C string that lives until the call returns.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// The same with all that is mounted below it.
pub fn copy_tree_whole(dir: BorrowedFd, path: &CStr) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: `path` is a C string that lives until the call returns.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// move_mount(2): attaches a mount at an open folder or file.
pub fn attach(mount: BorrowedFd, target: BorrowedFd) -> Result<()> {
    let empty = c"".as_ptr();
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are the empty C string, which is static.
    checked(unsafe { libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, target.as_raw_fd(), empty, flags) })
        .map(drop)
        .map_err(|errno| Error::io("move_mount", shown(target, b""), errno))
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set_attributes(mount: BorrowedFd, flags: libc::c_uint, attr: &MountAttr) -> nix::Result<()> {
    let flags = flags | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the path is a static C string; `attr` is a live reference, and the size passed is its own.
    checked(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, attr, size_of::<MountAttr>())
    })
    .map(drop)
}

/// mount_setattr(2) on one mount: adds attributes.
pub fn add_attributes(mount: BorrowedFd, attributes: u64) -> Result<()> {
    set_attributes(mount, 0, &MountAttr { set: attributes, clear: 0, propagation: 0, userns: 0 })
        .map_err(|errno| Error::io("mount_setattr", shown(mount, b""), errno))
}

/// Nothing that is mounted from now on is seen outside of this mount namespace, and the other way round.
pub fn make_all_private() -> Result<()> {
    let root = super::file::open_path(std::path::Path::new("/"))?;
    let private = MountAttr { set: 0, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 };
    set_attributes(root.as_fd(), AT_RECURSIVE, &private).map_err(|errno| Error::io("mount_setattr", "/", errno))
}

/// pivot_root(2) to a mounted root, and the old one is let go with all its mounts.
pub fn pivot(root: BorrowedFd) -> Result<()> {
    let done = || -> nix::Result<()> {
        nix::unistd::fchdir(root)?;
        // Both the same: the old root lies on top of the new one for a moment (pivot_root(2), NOTES).
        nix::unistd::pivot_root(".", ".")?;
        nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")
    };
    done().map_err(|errno| Error::io("pivot_root", shown(root, b""), errno))
}

/// Which mount a descriptor is on, its device and inode, and whether it still has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the mount.
    pub mount: u64,
    /// Device.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// How many names it has.
    pub links: u32,
    /// Kind and permissions.
    pub mode: u32,
}

/// statx(2) of a descriptor.
pub fn place(fd: BorrowedFd) -> nix::Result<Place> {
    // SAFETY: statx is plain numbers, for which zeros are a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: the path is a static C string, `found` a live local of the type that the call fills.
    let n = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut found) };
    checked(n.into())?;
    Ok(Place {
        mount: found.stx_mnt_id,
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        links: found.stx_nlink,
        mode: found.stx_mode.into(),
    })
}

/// Brings the loopback interface of this network namespace up.
pub fn loopback_up() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let failed = |errno| Error::io("ioctl", "lo", errno);
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    // SAFETY: ifreq is plain numbers and bytes, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(Error::io("ioctl(SIOCSIFFLAGS)", "lo", io::Error::last_os_error()));
    }
    Ok(())
}
