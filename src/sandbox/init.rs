//! Inside, PID 1: carries out the plan, waits for its turn, then runs the steps (`watch.rs`). It has one thread and clean memory, since it is a child of the nursery, which is a program of
//! its own: `main` begins with [`take_over_if_asked`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::sandbox::answered::{self, Answers};
use crate::sandbox::owner::Owners;
use crate::sandbox::plan::{HostPath, Operation, Order, Reply, SECRETS};
use crate::sandbox::range;
use crate::sandbox::spec::{Outcome, Standard};
use crate::sandbox::start::{self, ROLE, not_a_folder};
use crate::sandbox::watch::{Pipes, Watch, kill_all};
use crate::sys::mount::{self, Setting, attribute};
use crate::sys::nursery::{self, Newborn};
use crate::sys::{file, proc, process, terminal};

/// An order holds scripts and the environment.
const LONGEST_ORDER: u64 = 256 << 20;

/// The first line of `main`: when this process was executed to make sandboxes, it does, and never
/// comes back.
pub fn take_over_if_asked() {
    if process::role().as_deref() == Some(ROLE) {
        nursery::serve(|newborn| match newborn.birth.task {
            start::GIVE_BACK => range::give_back_inside(newborn),
            start::PROBE | start::OVERLAY => super::probe::inside(newborn),
            _ => inside(newborn),
        });
    }
}

/// A child of the nursery: the exit code says whether it could tell how it ended.
fn inside(mut newborn: Newborn) -> i32 {
    // What is made here (mount points, folders that are carried) must not depend on whoever started us.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let standard = newborn.passed.split_off(newborn.passed.len().min(2));
    let [control, output] = match <[OwnedFd; 2]>::try_from(std::mem::take(&mut newborn.passed)) {
        Ok(both) => both,
        Err(_) => return 2,
    };
    let control = UnixStream::from(control);
    // Three descriptors, or none, and then the door of the rule's control group, or none.
    let mut standard = standard;
    let door = if standard.len() % 3 == 1 { standard.pop() } else { None };
    let pipes = Pipes { control: &control, output: &File::from(output), door };
    let reply = match serve(&mut newborn, &pipes, standard) {
        Ok(outcome) => Reply::Done(outcome),
        Err(error) => Reply::Failed(error),
    };
    // Whatever is alive inside dies with us: pid_namespaces(7).
    let sent = postcard::to_stdvec(&reply).is_ok_and(|bytes| start::write_frame(&control, &bytes).is_ok());
    i32::from(!sent)
}

fn serve(newborn: &mut Newborn, pipes: &Pipes<'_>, standard: Vec<OwnedFd>) -> Result<Outcome> {
    let (control, output) = (pipes.control, pipes.output);
    // Before anybody else may not look into us, or the files in /proc are not ours any more.
    newborn.map_ids()?;
    process::harden_self()?;
    if standard.is_empty() {
        process::set_standard(null()?.as_fd(), 0).map_err(|errno| Error::io("dup2", "/dev/null", errno))?;
    }
    for (fd, number) in standard.into_iter().zip(0..3) {
        process::set_standard(fd.as_fd(), number).map_err(|errno| Error::io("dup2", "standard input", errno))?;
    }
    let kept = [Some(control.as_fd()), Some(output.as_fd()), pipes.door.as_ref().map(AsFd::as_fd)];
    process::close_all_but(&kept.into_iter().flatten().collect::<Vec<_>>());
    let order = start::read_frame(control, LONGEST_ORDER).map_err(|e| Error::io("read", "order", e))?;
    let order: Order = postcard::from_bytes(&order).map_err(|e| Error::failed(format!("order: {e}")))?;
    // SIGCHLD comes through a descriptor; nothing else may interrupt us.
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(|errno| Error::io("sigprocmask", "", errno))?;
    if order.chroot {
        proc::keep_open()?;
        process::adopt_orphans()?;
        // Killed, it would leave behind what no namespace ends. It sees itself when whoever started us is dead.
        process::outlive_parent()?;
        // What init opens for a step must not be the terminal of whoever builds: `/dev/tty` is that of who opens it.
        nix::unistd::setsid().map_err(|errno| Error::io("setsid", "", errno))?;
    }
    let mut room = Room::default();
    for operation in &order.operations {
        room.carry_out(operation, &order)?;
    }
    if let Some(user) = room.answers.user {
        give_pipes(output, user)?;
    }
    let terminal = (order.standard == Standard::Terminal).then(|| offer_terminal(output)).transpose()?;
    let weakened = std::mem::take(&mut room.weakened);
    if let Some(known) = &order.range {
        range::give_owners(known)?;
    }
    let upper = room.upper.take().ok_or_else(|| Error::failed("the plan has no snapshot"))?;
    let owners = Owners::new(upper, &order, std::mem::take(&mut room.answers))?;
    start::wait_for_go(control)?;
    let watch = Watch::new(pipes, &order, owners, weakened, terminal)?;
    let outcome = watch.run();
    if order.chroot {
        // No namespace ends with us.
        kill_all(true);
    }
    outcome
}

/// The pipes that the steps write to become their user's, who may then open `/dev/stdout`.
fn give_pipes(output: &File, (uid, gid): (u32, u32)) -> Result<()> {
    use nix::unistd::{Gid, Uid, fchown};
    let standard = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for pipe in [output.as_fd(), standard.0.as_fd(), standard.1.as_fd(), standard.2.as_fd()] {
        let stat = nix::sys::stat::fstat(pipe).map_err(|errno| Error::io("fstat", "output", errno))?;
        if file::kind(&stat) == SFlag::S_IFIFO {
            fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| Error::io("fchown", "output", errno))?;
        }
    }
    Ok(())
}

/// Makes a terminal in here, and sends its other side out over the socket that is there instead of
/// an output. Gives its path.
fn offer_terminal(socket: &File) -> Result<String> {
    let failed = |call: &'static str| move |errno: Errno| Error::io(call, "/dev/ptmx", errno);
    let (master, path) = terminal::open_pair().map_err(failed("open"))?;
    let socket = socket.try_clone().map_err(|e| Error::io("dup", "/dev/ptmx", e))?;
    let socket = UnixStream::from(OwnedFd::from(socket));
    process::send_descriptor(&socket, master.as_fd()).map_err(failed("sendmsg"))?;
    Ok(path)
}

fn null() -> Result<File> {
    File::open("/dev/null").map_err(|e| Error::io("open", "/dev/null", e))
}

// --- Making the room.

/// The new root while it is made.
#[derive(Default)]
struct Room {
    root: Option<OwnedFd>,
    upper: Option<OwnedFd>,
    answers: Answers,
    weakened: Vec<String>,
}

/// No part of a path inside may be a link, nor lead out.
const STRICT: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

fn relative(inside: &str) -> &[u8] {
    inside.trim_matches('/').as_bytes()
}

fn split(inside: &str) -> (&str, &str) {
    let inside = inside.trim_matches('/');
    inside.rsplit_once('/').unwrap_or(("", inside))
}

impl Room {
    fn root(&self) -> Result<&OwnedFd> {
        self.root.as_ref().ok_or_else(|| Error::failed("the plan mounts something before the snapshot"))
    }

    fn carry_out(&mut self, operation: &Operation, order: &Order) -> Result<()> {
        match operation {
            Operation::Private => mount::make_all_private(),
            Operation::Overlay { lower, upper, work, root } => self.overlay(lower, upper, work, root),
            Operation::Above { inside, lower, upper, work } => self.above(inside, lower, upper, work),
            Operation::Tree { tree, root } => self.tree(tree, root),
            Operation::Folders(tree) => {
                self.root = Some(file::open_path(tree)?);
                self.upper = Some(file::open_path(tree)?);
                Ok(())
            }
            Operation::Copy { host, inside } => self.copy_of_host(host, inside),
            Operation::Node(name) => self.node(name),
            Operation::User { uid, gid } => self.user(*uid, *gid),
            Operation::Answers => self.names_in_proc(),
            Operation::Chroot => process::change_root(self.root()?.as_fd()),
            Operation::Own(inside) => {
                let copy = self.copy(inside)?;
                mount::attach(copy.as_fd(), self.folder(inside, 0o755)?.as_fd())
            }
            Operation::Bind { host, inside, read_only } => self.bind(host, inside, *read_only),
            Operation::Tmpfs { inside, mode } => self.tmpfs(inside, *mode),
            Operation::Device(name) => self.device(name),
            Operation::Terminals => self.terminals(),
            Operation::Link { target, inside } => {
                let (folder, name) = split(inside);
                file::symlink_at(target.as_bytes(), self.folder(folder, 0o755)?.as_fd(), name.as_bytes())
            }
            Operation::Folder { inside, mode } => self.folder(inside, *mode).map(drop),
            Operation::Proc => self.proc(),
            Operation::NoControlGroups => self.no_control_groups(),
            Operation::ReadOnly(inside) => self.read_only(inside),
            Operation::Mask(inside) => self.mask(inside),
            Operation::Secret(name) => self.secret(name, order),
            Operation::Loopback => mount::loopback_up(),
            Operation::Hostname(name) => self.host_name(name),
            Operation::Processes(most) => self.processes(*most),
            Operation::ReadOnlyRoot => mount::add_attributes(self.root()?.as_fd(), attribute::READ_ONLY),
            Operation::Pivot => mount::pivot(self.root()?.as_fd()),
        }
    }

    fn overlay(&mut self, lower: &[HostPath], upper: &HostPath, work: &HostPath, root: &HostPath) -> Result<()> {
        if lower.len() > 500 {
            return Err(Error::failed(format!("a snapshot of {} changesets", lower.len()))
                .why("this kernel stacks at most 500 layers"));
        }
        let target = file::open_path(root)?;
        let upper = file::open_path(upper)?;
        let work = file::open_path(work)?;
        match new_overlay(lower, &upper, &work)? {
            Some(made) => {
                mount::attach(made.as_fd(), target.as_fd())?;
                self.root = Some(made);
            }
            None => {
                let layers = lower.iter().rev().map(|path| open_layer(path)).collect::<Result<Vec<_>>>()?;
                let fds: Vec<_> = layers.iter().map(|fd| fd.as_fd()).collect();
                mount::old_overlay(&fds, upper.as_fd(), work.as_fd(), target.as_fd())
                    .map_err(|errno| overlay_refused(errno, lower.len(), vec![]))?;
                // What was opened before it was mounted on is what lies below.
                self.root = Some(file::open_path(root)?);
            }
        }
        self.upper = Some(upper);
        Ok(())
    }

    /// A stack of its own at a folder. Its upper folder lies in the snapshot's, which the kernel shows nobody
    /// once this is mounted on it.
    fn above(&mut self, inside: &str, lower: &[HostPath], upper: &HostPath, work: &HostPath) -> Result<()> {
        let (upper, work) = (file::open_path(upper)?, file::open_path(work)?);
        let made = new_overlay(lower, &upper, &work)?.ok_or_else(|| {
            Error::failed(format!("this kernel can't show the host's {inside}")).why("it is older than 6.7")
        })?;
        mount::attach(made.as_fd(), self.folder(inside, 0o755)?.as_fd())
    }

    /// A bind mount of it. Its path on the host can be read in `/proc/self/mountinfo`, which is all that
    /// can be seen of it.
    fn tree(&mut self, tree: &HostPath, root: &HostPath) -> Result<()> {
        let tree = file::open_path(tree)?;
        let made = mount::copy_tree(tree.as_fd(), c"").map_err(|errno| Error::io("open_tree", &**root, errno))?;
        mount::add_attributes(made.as_fd(), attribute::NO_DEV)?;
        mount::attach(made.as_fd(), file::open_path(root)?.as_fd())?;
        self.root = Some(made);
        self.upper = Some(tree);
        Ok(())
    }

    /// A file or a folder of files. A link to them could be written through.
    fn copy_of_host(&self, host: &Path, inside: &str) -> Result<()> {
        let (parent, name) = split(inside);
        let into = self.folder(parent, 0o755)?;
        let copy = |from: &Path, into: &OwnedFd, name: &[u8]| -> Result<()> {
            let source = file::open_regular(from)?;
            let new = file::create_file_at(into.as_fd(), name, 0o644)?;
            file::reflink_or_copy(&source, &new).map_err(|e| Error::io("copy", from, e))
        };
        if !host.is_dir() {
            return copy(host, &into, name.as_bytes());
        }
        let into = self.folder(inside, 0o755)?;
        let folder = File::open(host).map_err(|e| Error::io("open", host, e))?;
        for name in file::list(folder.as_fd())? {
            copy(&host.join(std::ffi::OsStr::from_bytes(&name)), &into, &name)?;
        }
        Ok(())
    }

    /// A node, where a container's root may make and open one. Else an empty file stands there, and
    /// its opens are answered.
    fn node(&mut self, name: &str) -> Result<()> {
        let host = format!("/dev/{name}");
        let device = std::fs::metadata(&host).map_err(|e| Error::io("stat", &host, e))?;
        let dev = self.folder("/dev", 0o755)?;
        let (dev, number) = (dev.as_fd(), std::os::unix::fs::MetadataExt::rdev(&device));
        if std::os::unix::fs::FileTypeExt::is_char_device(&device.file_type())
            && file::mknod_at(dev, name.as_bytes(), nix::sys::stat::SFlag::S_IFCHR, 0o600, number).is_ok()
        {
            let opens = name == "tty" || file::open_at(dev, name.as_bytes(), OFlag::O_RDONLY).is_ok();
            if opens {
                return file::chmod_at(dev, name.as_bytes(), 0o666);
            }
            file::unlink_at(dev, name.as_bytes())?;
        }
        drop(file::create_file_at(dev, name.as_bytes(), 0o666)?);
        // A terminal is none of a rule's business: who opens it is told that there is none.
        let opened =
            (name != "tty").then(|| File::options().read(true).write(true).open(&host).or_else(|_| File::open(&host)));
        let opened = opened.transpose().map_err(|e| Error::io("open", &host, e))?;
        self.answers.devices.push((host.into_bytes(), opened.map(OwnedFd::from)));
        Ok(())
    }

    /// One empty file under all names of files, and links that lead nowhere, since the kernel would follow them.
    fn names_in_proc(&mut self) -> Result<()> {
        self.answers.proc = true;
        let (files, links) = answered::names();
        let mut first: Option<(OwnedFd, Vec<u8>)> = None;
        for path in files {
            let (folder, name) = split(&path);
            let (folder, name) = (self.folder(folder, 0o555)?, name.as_bytes());
            match &first {
                Some((from, old)) => file::link_at(from.as_fd(), old, folder.as_fd(), name)?,
                None => {
                    drop(file::create_file_at(folder.as_fd(), name, 0o444)?);
                    first = Some((folder, name.to_vec()));
                }
            }
        }
        for path in links {
            let (folder, name) = split(&path);
            file::symlink_at(b"answered", self.folder(folder, 0o555)?.as_fd(), name.as_bytes())?;
        }
        Ok(())
    }

    /// Where a container doesn't let us, or knows no such user, the steps are root without any capability: modes let that do
    /// what the user may.
    fn user(&mut self, uid: u32, gid: u32) -> Result<()> {
        use caps::{CapSet, Capability};
        // To give files to it and go on using them, end it, and become it.
        let needed = [
            Capability::CAP_CHOWN,
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_FOWNER,
            Capability::CAP_KILL,
            Capability::CAP_SETGID,
            Capability::CAP_SETUID,
        ];
        let may = needed.into_iter().all(|cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false));
        if !may || process::take_real_ids(uid, gid).is_err() {
            return Ok(());
        }
        // The steps have none, and init opens files for them.
        process::drop_groups();
        self.answers.user = Some((uid, gid));
        range::give_all(self.root()?.as_fd(), (uid, gid), &mut |_, _| Ok(()))
    }

    /// Opens what is at a path inside; `None`: nothing.
    fn open(&self, inside: &str) -> Result<Option<OwnedFd>> {
        match file::open_below(self.root()?.as_fd(), relative(inside), OFlag::O_PATH | OFlag::O_NOFOLLOW, STRICT) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => Err(not_a_folder(inside)),
            Err(errno) => Err(Error::io("open", inside, errno)),
        }
    }

    /// A folder inside, made with its parents if it isn't there.
    fn folder(&self, inside: &str, mode: u32) -> Result<OwnedFd> {
        let found = match self.open(inside)? {
            Some(found) => found,
            None => {
                let (parent, name) = split(inside);
                file::mkdir_at(self.folder(parent, 0o755)?.as_fd(), name.as_bytes(), mode)?;
                self.open(inside)?.ok_or_else(|| Error::io("open", inside, Errno::ENOENT))?
            }
        };
        if is_folder(&found)? { Ok(found) } else { Err(not_a_folder(inside)) }
    }

    fn copy(&self, inside: &str) -> Result<OwnedFd> {
        let target = self.folder(inside, 0o755)?;
        mount::copy_tree(target.as_fd(), c"").map_err(|errno| Error::io("open_tree", inside, errno))
    }

    fn bind(&self, host: &HostPath, inside: &str, read_only: bool) -> Result<()> {
        let host: &Path = host;
        let source =
            nix::fcntl::open(host, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
                .map_err(|errno| Error::io("open", host, errno))?;
        let copy = mount::copy_tree_whole(source.as_fd(), c"").map_err(|errno| Error::io("open_tree", host, errno))?;
        let flags = attribute::NO_SUID | attribute::NO_DEV | if read_only { attribute::READ_ONLY } else { 0 };
        mount::add_attributes(copy.as_fd(), flags)?;
        let target = if is_folder(&source)? { self.folder(inside, 0o755)? } else { self.plain_file(inside)? };
        mount::attach(copy.as_fd(), target.as_fd())
    }

    /// A file to mount on, made if it isn't there.
    fn plain_file(&self, inside: &str) -> Result<OwnedFd> {
        if let Some(found) = self.open(inside)? {
            return Ok(found);
        }
        let (parent, name) = split(inside);
        file::create_file_at(self.folder(parent, 0o755)?.as_fd(), name.as_bytes(), 0o644)?;
        self.open(inside)?.ok_or_else(|| Error::io("open", inside, Errno::ENOENT))
    }

    fn tmpfs(&self, inside: &str, mode: u32) -> Result<()> {
        let mode = format!("{mode:o}");
        let target = self.folder(inside, 0o755)?;
        let made = mount::file_system(
            "tmpfs",
            &[Setting::Text("source", "tmpfs"), Setting::Text("mode", &mode)],
            attribute::NO_SUID | attribute::NO_DEV,
        )?;
        mount::attach(made.as_fd(), target.as_fd())
    }

    /// A bind of the host's node: an unprivileged process can make none. Read-only, so that the
    /// host's own node keeps its mode when real root started us; what is written to a device does
    /// not count as writing.
    fn device(&self, name: &str) -> Result<()> {
        let host = format!("/dev/{name}");
        let node = nix::fcntl::open(
            host.as_str(),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(|errno| Error::io("open", &host, errno))?;
        let stat = nix::sys::stat::fstat(&node).map_err(|errno| Error::io("fstat", &host, errno))?;
        if file::kind(&stat) != nix::sys::stat::SFlag::S_IFCHR {
            return Err(Error::failed(format!("{host} of this machine is no device")));
        }
        let copy = mount::copy_tree(node.as_fd(), c"").map_err(|errno| Error::io("open_tree", &host, errno))?;
        mount::add_attributes(copy.as_fd(), attribute::READ_ONLY | attribute::NO_SUID | attribute::NO_EXEC)?;
        mount::attach(copy.as_fd(), self.plain_file(&host)?.as_fd())
    }

    fn secret(&self, name: &str, order: &Order) -> Result<()> {
        let secret = order.secrets.iter().find(|secret| secret.name == name);
        let secret = secret.ok_or_else(|| Error::failed(format!("the secret {name} was not sent")))?;
        let folder = self.folder(SECRETS, 0o700)?;
        let mut made = file::create_file_at(folder.as_fd(), name.as_bytes(), 0o400)?;
        made.write_all(&secret.value).map_err(|e| Error::io("write", format!("{SECRETS}/{name}"), e))
    }

    fn terminals(&self) -> Result<()> {
        let target = self.folder("/dev/pts", 0o755)?;
        let settings = [
            Setting::Text("source", "devpts"),
            Setting::Flag("newinstance"),
            Setting::Text("ptmxmode", "0666"),
            Setting::Text("mode", "0620"),
        ];
        let made = mount::file_system("devpts", &settings, attribute::NO_SUID | attribute::NO_EXEC)?;
        mount::attach(made.as_fd(), target.as_fd())
    }

    /// A fresh /proc, or the outer one where a container's masks keep the kernel from giving one
    /// (a fresh one would show what is masked there).
    fn proc(&mut self) -> Result<()> {
        let target = self.folder("/proc", 0o555)?;
        let flags = attribute::NO_SUID | attribute::NO_DEV | attribute::NO_EXEC;
        match mount::file_system("proc", &[Setting::Text("source", "proc")], flags) {
            Ok(made) => mount::attach(made.as_fd(), target.as_fd()),
            Err(refused) if matches!(refused.errno, Errno::EPERM | Errno::EBUSY | Errno::EACCES) => {
                let outer = file::open_path(Path::new("/proc"))?;
                let copy = mount::copy_tree_whole(outer.as_fd(), c"")
                    .map_err(|errno| Error::io("open_tree", "/proc", errno))?;
                mount::attach(copy.as_fd(), target.as_fd())?;
                self.weakened.push(
                    "/proc is that of the container around us: rules see its processes, not only their own".into(),
                );
                Ok(())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    /// podman's profile refuses it to containers without CAP_SYS_ADMIN, though the namespace is our own.
    fn host_name(&mut self, name: &str) -> Result<()> {
        match nix::unistd::sethostname(name) {
            Err(Errno::EPERM) => self.weakened.push("rules see the host name of the container around us".into()),
            other => other.map_err(|errno| Error::io("sethostname", name, errno))?,
        }
        Ok(())
    }

    /// The limit is that of our own user namespace, and holds for those made in it (user_namespaces(7)).
    fn no_control_groups(&mut self) -> Result<()> {
        let path = "proc/sys/user/max_cgroup_namespaces";
        let opened =
            file::open_below(self.root()?.as_fd(), path.as_bytes(), OFlag::O_WRONLY | OFlag::O_NOFOLLOW, STRICT);
        let written = match opened {
            // A kernel without control groups has nothing to mount.
            Err(Errno::ENOENT) => return Ok(()),
            other => other.and_then(|fd| nix::unistd::write(&fd, b"0")),
        };
        if let Err(errno) = written {
            self.weakened.push(format!(
                "control groups can't be kept from rules (/{path}: {}): a rule may reach those of the container around us",
                errno.desc()
            ));
        }
        Ok(())
    }

    fn read_only(&self, inside: &str) -> Result<()> {
        let Some(target) = self.open(inside)? else { return Ok(()) };
        let copy = mount::copy_tree(target.as_fd(), c"").map_err(|errno| Error::io("open_tree", inside, errno))?;
        mount::add_attributes(copy.as_fd(), attribute::READ_ONLY)?;
        mount::attach(copy.as_fd(), target.as_fd())
    }

    /// A folder gets an empty one over it, `/sys`, and a file the null device.
    fn mask(&self, inside: &str) -> Result<()> {
        let Some(target) = self.open(inside)? else { return Ok(()) };
        let nothing = if is_folder(&target)? { "/sys" } else { "/dev/null" };
        let source = self.open(nothing)?.ok_or_else(|| Error::io("open", nothing, Errno::ENOENT))?;
        let copy = mount::copy_tree(source.as_fd(), c"").map_err(|errno| Error::io("open_tree", nothing, errno))?;
        mount::add_attributes(copy.as_fd(), attribute::READ_ONLY)?;
        mount::attach(copy.as_fd(), target.as_fd())
    }

    /// The namespace's own limit, which holds for a host's root too (since 6.14); RLIMIT_NPROC, which
    /// each step gets, holds for everybody else. It must be above 300.
    fn processes(&self, most: u64) -> Result<()> {
        let path = "proc/sys/kernel/pid_max";
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
        if let Ok(fd) = file::open_below(self.root()?.as_fd(), path.as_bytes(), flags, STRICT)
            && std::fs::metadata("/proc/self/ns/pid").is_ok()
            && pid_max_is_our_own()
        {
            let _ = nix::unistd::write(&fd, most.max(301).to_string().as_bytes());
        }
        Ok(())
    }
}

/// Before 6.14 `pid_max` was one number for the whole machine, which a host's root could change from here.
fn pid_max_is_our_own() -> bool {
    nix::sys::utsname::uname().is_ok_and(|name| {
        let mut numbers = name
            .release()
            .as_bytes()
            .split(|b| !b.is_ascii_digit())
            .filter_map(|n| std::str::from_utf8(n).ok()?.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 14)
    })
}

fn is_folder(fd: &OwnedFd) -> Result<bool> {
    let stat = nix::sys::stat::fstat(fd).map_err(|errno| Error::io("fstat", "", errno))?;
    Ok(file::kind(&stat) == nix::sys::stat::SFlag::S_IFDIR)
}

/// The snapshot through the new mount API; `None`: this kernel doesn't know `lowerdir+` (before 6.7).
///
/// Folders are named by descriptor: so no character of a path means anything to the kernel's
/// parser, and `/proc/mounts` inside shows no path of the host.
fn new_overlay(lower: &[HostPath], upper: &OwnedFd, work: &OwnedFd) -> Result<Option<OwnedFd>> {
    let refused = |r: mount::Refused| overlay_refused(r.errno, lower.len(), r.log);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let made = mount::FileSystem::open("overlay").map_err(refused)?;
    // Some distributions turn the index on: then linked names of a lower layer would behave otherwise there.
    let settings = [
        Setting::Text("source", "overlay"),
        Setting::Flag("userxattr"),
        Setting::Flag("volatile"),
        Setting::Text("index", "off"),
    ];
    for setting in settings {
        made.set(&setting).map_err(refused)?;
    }
    // The first that is named is the highest.
    for (i, path) in lower.iter().rev().enumerate() {
        let layer = open_layer(path)?;
        match made.set(&Setting::Text("lowerdir+", &name(&layer))) {
            Ok(()) => {}
            Err(r) if i == 0 && r.errno == Errno::EINVAL => return Ok(None),
            Err(r) => return Err(refused(r)),
        }
    }
    made.set(&Setting::Text("upperdir", &name(upper))).map_err(refused)?;
    made.set(&Setting::Text("workdir", &name(work))).map_err(refused)?;
    made.mount(0).map(Some).map_err(refused)
}

fn open_layer(path: &Path) -> Result<OwnedFd> {
    file::open_path(path).map_err(|error| match nix::unistd::access(path, nix::unistd::AccessFlags::F_OK) {
        Err(Errno::EACCES) => error
            .why("inside a user namespace not even root may pass through a folder that is another user's alone")
            .next("put the store below folders of your own: set TAPEOUT_STORE"),
        _ => error,
    })
}

pub(super) fn overlay_refused(errno: Errno, layers: usize, log: Vec<String>) -> Error {
    let error =
        Error::failed(format!("the kernel can't stack the {layers} folders of this snapshot: {}", errno.desc()));
    let error = log.into_iter().fold(error, Error::why);
    match errno {
        Errno::EINVAL => error
            .why("the store may lie on a file system that can't hold an overlay's upper folder (another overlay, NFS, vfat)")
            .next("put the store on ext4, xfs, btrfs or tmpfs: set TAPEOUT_STORE"),
        Errno::EPERM => error.why("this kernel doesn't let users mount an overlay (before 5.11), or a seccomp profile refuses it"),
        Errno::ENODEV => error.why("this kernel has no overlay file system").next("ask the administrator for: modprobe overlay"),
        Errno::E2BIG => error.why("a kernel before 6.7 takes the names of some two hundred folders"),
        _ => error,
    }
    .next("see `tapeout doctor`")
}

/// How an errno of a file operation is told, for `step`.
pub(super) fn io_error(call: &str, path: &str, errno: i32) -> Error {
    Error::io(call, path, io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_inside_is_split_into_folder_and_name() {
        for (path, parts) in [("/a/b/c", ("a/b", "c")), ("/a", ("", "a")), ("a/", ("", "a"))] {
            assert_eq!(split(path), parts);
        }
        assert_eq!(relative("/"), b"");
        assert_eq!(Path::new("/x").as_os_str().as_bytes(), b"/x");
    }
}
