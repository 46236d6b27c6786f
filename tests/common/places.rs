//! Where the tests keep things, and what they share: made once under a lock, whoever comes first.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::User;

/// The folder of all tests of this checkout.
pub fn base() -> PathBuf {
    if let Some(folder) = std::env::var_os("TAPEOUT_TEST_DIR") {
        return folder.into();
    }
    let checkout = env!("CARGO_MANIFEST_DIR").bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    let who = nix::unistd::geteuid();
    PathBuf::from(format!("/var/tmp/tapeout-tests-{who}-{checkout:08x}"))
}

/// A folder below the base, open to all.
pub fn folder(name: &str) -> PathBuf {
    let folder = base().join(name);
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for open in [&base(), &folder] {
        let _ = fs::set_permissions(open, fs::Permissions::from_mode(0o755));
    }
    folder
}

/// Makes `name` below the base once: `make` gets a folder beside it, which is renamed when it is whole.
pub fn once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let done = folder("").join(name);
    let lock = lock_file(&format!("{}.lock", name.replace('/', "-")));
    lock.lock().expect("lock");
    if !done.exists() {
        let beside = folder("").join(format!("{name}.new"));
        remove(&beside);
        fs::create_dir_all(&beside).expect("create_dir_all");
        make(&beside);
        fs::rename(&beside, &done).expect("rename");
    }
    done
}

/// Which build of the binary this is.
fn build() -> String {
    let binary = fs::metadata(env!("CARGO_BIN_EXE_tapeout")).expect("the binary");
    format!("{}-{}.{:09}", binary.size(), binary.mtime(), binary.mtime_nsec())
}

/// The binary at a place that every user may read (a checkout may lie in a folder of mode 0700).
pub fn binary() -> PathBuf {
    let folder = once(&format!("bin-{}", build()), |folder| {
        let to = folder.join("tapeout");
        fs::copy(env!("CARGO_BIN_EXE_tapeout"), &to).expect("copy the binary");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("chmod");
        remove_others(folder, "bin-");
    });
    use_it(&folder);
    folder.join("tapeout")
}

/// What all tests share that was made by this build of the binary.
pub fn shared(make: impl FnOnce(&Path)) -> PathBuf {
    let folder = once(&format!("shared-{}", build()), |folder| {
        User::plain().owns(folder);
        remove_others(folder, "shared-");
        make(folder);
    });
    use_it(&folder);
    folder
}

/// Older builds' folders that no test uses any more.
fn remove_others(keep: &Path, prefix: &str) {
    for entry in fs::read_dir(base()).expect("read_dir").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let old = name.starts_with(prefix) && entry.path().is_dir() && !keep.starts_with(entry.path());
        // One that was never finished belongs to whoever holds the lock of making it.
        let lock = match name.strip_suffix(".new") {
            Some(unfinished) => format!("{unfinished}.lock"),
            None => format!("{name}.used"),
        };
        if old && lock_file(&lock).try_lock().is_ok() {
            remove(&entry.path());
        }
    }
}

fn lock_file(name: &str) -> File {
    let file = base().join(name);
    File::create(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Keeps a folder below the base from being removed, until this process ends.
fn use_it(folder: &Path) {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let lock = lock_file(&format!("{name}.used"));
    lock.lock_shared().expect("lock");
    std::mem::forget(lock);
}

/// A root file system of busybox alone: a builder that takes milliseconds.
pub fn tiny_root() -> PathBuf {
    once("tiny-root", |root| {
        for folder in
            ["bin", "etc", "usr/bin", "usr/lib", "usr/local/bin", "var/lib", "root", "tmp", "run", "proc", "sys", "dev"]
        {
            fs::create_dir_all(root.join(folder)).expect("create_dir_all");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy busybox");
        let applets = std::process::Command::new("/bin/busybox").arg("--list").output().expect("busybox --list");
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("symlink");
        }
        fs::write(root.join("etc/passwd"), PASSWD).expect("write");
        fs::write(root.join("etc/group"), GROUP).expect("write");
        for folder in
            ["", "bin", "etc", "usr", "usr/bin", "usr/lib", "usr/local", "usr/local/bin", "var", "var/lib", "root"]
        {
            fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
    })
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// A program of 32 bits: it gives `/f` to 33:33, and then exits with success until it is dead, whatever it is answered.
#[cfg(target_arch = "x86_64")]
pub fn program_of_32_bits() -> Vec<u8> {
    const AT: u32 = 0x0804_8000;
    // mov eax, 182 (chown); ebx: the path, behind all; ecx, edx: 33; int 0x80; xor ebx, ebx; again: mov eax, 1 (exit); int 0x80; jmp again
    let code =
        [0xb8, 182, 0, 0, 0, 0xbb, 117, 0x80, 4, 8, 0xb9, 33, 0, 0, 0, 0xba, 33, 0, 0, 0, 0xcd, 0x80, 0x31, 0xdb];
    let exit = [0xb8, 1, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let halves = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    let words = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        // An executable of the i386; its entry, and where its one program header is.
        halves(&[2, 3]),
        words(&[1, AT + 84, 52, 0, 0]),
        halves(&[52, 32, 1, 0, 0, 0]),
        // All of it is loaded, to be read and executed.
        words(&[1, 0, AT, AT, 120, 120, 5, 0x1000]),
        code.to_vec(),
        exit.to_vec(),
        b"/f\0".to_vec(),
    ]
    .concat()
}

/// A folder of one test; removed at its end, whatever the modes of what is in it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty one that belongs to the user.
    pub fn new(user: &User) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = folder("work").join(name);
        remove(&path);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        user.owns(&path);
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match std::env::var_os("TAPEOUT_TEST_KEEP") {
            Some(_) => eprintln!("kept: {}", self.0.display()),
            None => remove(&self.0),
        }
    }
}

/// Removes a tree, opening the folders that a rule closed.
pub fn remove(path: &Path) {
    let Ok(data) = fs::symlink_metadata(path) else { return };
    if data.is_dir() {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            remove(&entry.path());
        }
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}
