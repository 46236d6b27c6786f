//! Outside: the namespaces are made, the plan is sent, and the end of all that is inside awaited.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::sched::CloneFlags;
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::sandbox::cgroup::Group;
use crate::sandbox::place::Isolation;
use crate::sandbox::plan::{Order, Reply};
use crate::sandbox::spec::{Hit, Outcome, Spec, Status};
use crate::sys::nursery::{Birth, Child, Nursery, Stillborn};
use crate::sys::refusal::Refusal;
use crate::sys::{file, process, xattr};

/// A socket takes this much before anybody reads (net.core.wmem_default is 208 KiB).
const SHORT_ORDER: usize = 32 << 10;

/// The role of the nursery, whose children are the inits.
pub(super) const ROLE: &str = "sandbox";

/// What a child of the nursery is for: to be a sandbox's init.
pub(super) const SANDBOX: u32 = 0;
/// What a child of the nursery is for: to give files with subordinate IDs back.
pub(super) const GIVE_BACK: u32 = 3;
/// What a child of the nursery is for: to try what this machine can.
pub(super) const PROBE: u32 = 1;
/// What a child of the nursery is for: to try whether there is an overlay.
pub(super) const OVERLAY: u32 = 2;

/// Said to an init when its steps may begin.
const GO: u8 = 1;

static NURSERY: Mutex<Option<Nursery>> = Mutex::new(None);
/// The one outside of our user namespace, where subordinate IDs can be mapped.
static OUTSIDE: Mutex<Option<Nursery>> = Mutex::new(None);

/// No reply is longer: a record has some 50 bytes, so that this is more than ten million files.
const LONGEST_REPLY: u64 = 512 << 20;

/// When the steps may begin, and who hears of their end. Making a room and its mounts, and taking them apart, need no
/// turn.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// Comes back when they may begin; an error: they mustn't any more.
    pub begin: &'a dyn Fn() -> Result<()>,
    /// They ended well, and no process of theirs is left.
    pub ended: &'a dyn Fn(),
}

impl Turn<'_> {
    /// At once.
    pub const NOW: Turn<'static> = Turn { begin: &|| Ok(()), ended: &|| {} };
}

/// Runs the steps of `spec`; what they write to 1 and 2 goes to `output`, which should be a pipe
/// (a rule can read the path of a file that it has open). When this returns, nothing of the
/// sandbox is alive. An error means that the sandbox could not be made, or a step not be started.
pub fn run(spec: &Spec, output: File) -> Result<Outcome> {
    run_in_turn(spec, output, Turn::NOW)
}

/// The same, when it is their turn.
pub fn run_in_turn(spec: &Spec, output: File, turn: Turn<'_>) -> Result<Outcome> {
    converse(spec, output.into(), None, turn)
}

/// The same, for [`Standard::Given`](crate::sandbox::Standard): standard input, output and error.
pub fn run_with(spec: &Spec, standard: [OwnedFd; 3]) -> Result<Outcome> {
    let null = File::open("/dev/null").map_err(|e| Error::io("open", "/dev/null", e))?;
    converse(spec, null.into(), Some(standard), Turn::NOW)
}

/// The same, for [`Standard::Terminal`](crate::sandbox::Standard): `relay` gets our side of the
/// sandbox's terminal, and returns when the other has nobody on it any more.
pub fn run_on_terminal(spec: &Spec, relay: impl FnOnce(OwnedFd) + Send) -> Result<Outcome> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", "", e))?;
    std::thread::scope(|scope| {
        // Where init ends before it has one, the socket says so.
        scope.spawn(move || {
            if let Ok(Some((_, Some(terminal)))) = process::receive_descriptor(&ours) {
                relay(terminal);
            }
        });
        converse(spec, theirs.into(), None, Turn::NOW)
    })
}

fn converse(spec: &Spec, output: OwnedFd, standard: Option<[OwnedFd; 3]>, turn: Turn<'_>) -> Result<Outcome> {
    let mut order = Order::new(spec)?;
    let group = order.memory.and_then(Group::with);
    let door = group.as_ref().and_then(Group::door);
    if door.is_some() {
        // It is that of all processes together.
        order.memory = None;
    }
    let counted = door.is_some();
    let tmp = Tmp::put_in(spec)?;
    let reply = talk(spec, &order, output, standard, door, turn);
    tmp.take_out()?;
    match reply? {
        Reply::Done(mut outcome) => {
            outcome.memory_is_counted = counted;
            if counted && !outcome.status.success() && group.is_some_and(|group| group.was_exhausted()) {
                outcome.status = Status::Limit(Hit::Memory);
            }
            Ok(outcome)
        }
        Reply::Failed(error) => Err(error),
    }
}

fn talk(
    spec: &Spec,
    order: &Order,
    output: OwnedFd,
    standard: Option<[OwnedFd; 3]>,
    door: Option<File>,
    turn: Turn<'_>,
) -> Result<Reply> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", "", e))?;
    let mut pass: Vec<BorrowedFd> = vec![theirs.as_fd(), output.as_fd()];
    pass.extend(standard.iter().flatten().map(|fd| fd.as_fd()));
    pass.extend(door.as_ref().map(|door| door.as_fd()));
    let birth = Birth {
        task: SANDBOX,
        namespaces: namespaces(spec),
        uid: spec.uid,
        gid: spec.gid,
        range: spec.range.is_some(),
    };
    // A short order waits in the socket, so that init needn't wait for it.
    let order =
        postcard::to_stdvec(order).map_err(|e| Error::failed(format!("sandbox: the plan can't be sent: {e}")))?;
    let early = order.len() < SHORT_ORDER;
    let send = || write_frame(&ours, &order).map_err(|_| died());
    if early {
        send()?;
    }
    if birth.range {
        // What init gives to other IDs is ours again only at the end of its steps: so it begins nothing in vain.
        (turn.begin)()?;
    }
    let child = make(birth, &pass)?;
    drop(theirs);
    drop((output, standard, door));
    let sent = if early { Ok(()) } else { send() };
    let reply = sent.and_then(|()| (turn.begin)()).and_then(|()| {
        // Where it is dead, it has said why.
        let _ = (&ours).write_all(&[GO]);
        receive(&ours)
    });
    if reply.is_err() {
        // It has nobody to talk to any more, whatever it is doing.
        child.kill();
    }
    // Init takes its namespaces down when nobody else is left in them: that takes as long as a small script.
    if let Ok(Reply::Done(outcome)) = &reply
        && outcome.status.success()
    {
        (turn.ended)();
    }
    // Only now is it sure that nothing inside writes to the upper folder any more.
    child.wait()?;
    if reply.is_err() && spec.isolation == Isolation::Chroot {
        // No namespace ended with it.
        sweep();
    }
    reply
}

/// Ends what a dead init left behind. Where the nursery is dead too, nobody knows any more what that is.
fn sweep() {
    let nursery = NURSERY.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = nursery.as_ref().map(Nursery::sweep);
}

/// A child of the nursery, which is started when there is none.
pub(super) fn make(birth: Birth, pass: &[BorrowedFd]) -> Result<Child> {
    Ok(try_to_make(birth, pass)??)
}

/// The same; inside, what the kernel said when it refuses namespaces.
pub(super) fn try_to_make(birth: Birth, pass: &[BorrowedFd]) -> Result<Result<Child, Refusal>> {
    let place = if birth.range { &OUTSIDE } else { &NURSERY };
    let mut nursery = place.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..2 {
        let alive = match nursery.take() {
            Some(alive) => alive,
            None if birth.range => Nursery::start_outside(ROLE).map_err(|e| e.context("ids = \"range\""))?,
            None => Nursery::start(ROLE)?,
        };
        match alive.make(birth, pass) {
            Ok(child) => {
                *nursery = Some(alive);
                return Ok(Ok(child));
            }
            Err(Stillborn::Refused(errno)) => {
                *nursery = Some(alive);
                return Ok(Err(Refusal::new("clone", errno)));
            }
            Err(Stillborn::Unmapped(words)) => {
                *nursery = Some(alive);
                return Err(Error::failed(format!("ids = \"range\": {words}")));
            }
            // Somebody killed it. Another one does as well.
            Err(Stillborn::Gone) => {}
        }
    }
    Err(died())
}

fn namespaces(spec: &Spec) -> CloneFlags {
    if spec.isolation == Isolation::Chroot {
        return CloneFlags::empty();
    }
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    // The path of our control group tells who started us.
    // In a rule of another tapeout there is none to be had, and none needed.
    let most = std::fs::read_to_string("/proc/sys/user/max_cgroup_namespaces").unwrap_or_default();
    let hidden = Path::new("/proc/self/ns/cgroup").exists() && most.trim() != "0";
    let all = if hidden { all | CloneFlags::CLONE_NEWCGROUP } else { all };
    if spec.network { all } else { all | CloneFlags::CLONE_NEWNET }
}

fn receive(socket: &UnixStream) -> Result<Reply> {
    let bytes = read_frame(socket, LONGEST_REPLY).map_err(|_| died())?;
    // What is inside may have taken init over: its words are data, checked like any other.
    postcard::from_bytes(&bytes).map_err(|e| Error::failed(format!("sandbox: its init sent nonsense: {e}")))
}

fn died() -> Error {
    Error::failed("the sandbox's init died before its steps were done")
        .why("it was killed from outside, or the machine ran out of memory")
        .next("look for \"Out of memory\" in the kernel's log (dmesg), then try again with fewer jobs")
}

/// Inside, when all is ready: comes back when the steps may begin.
pub(super) fn wait_for_go(mut socket: &UnixStream) -> Result<()> {
    match socket.read_exact(&mut [0]) {
        Ok(()) => Ok(()),
        Err(e) => Err(Error::io("read", "go", e)),
    }
}

/// Length, then bytes.
pub(super) fn write_frame(mut socket: &UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    socket.write_all(&(bytes.len() as u64).to_le_bytes())?;
    socket.write_all(bytes)
}

/// Length, then bytes, at most `longest`.
pub(super) fn read_frame(mut socket: &UnixStream, longest: u64) -> std::io::Result<Vec<u8>> {
    let mut length = [0u8; 8];
    socket.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > longest {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    // Read as it comes, so that a length that lies costs nothing.
    let mut bytes = vec![];
    socket.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// `/tmp` of the sandbox. A bind mount of the caller's folder would show the host's path in
/// `/proc/self/mountinfo`, so the folder itself is moved into the upper folder while the sandbox
/// lives, marked as hiding what is below, and moved out again. After a kill it lies in the upper
/// folder, which then is thrown away.
struct Tmp<'a> {
    spec: &'a Spec,
}

impl<'a> Tmp<'a> {
    fn put_in(spec: &'a Spec) -> Result<Self> {
        // A link would be hidden rather than followed, and the rule of the next builder surprised.
        for lower in spec.tree.iter().chain(spec.lower.iter().rev()) {
            match std::fs::symlink_metadata(lower.join("tmp")) {
                Ok(found) if found.is_dir() => break,
                Ok(_) => return Err(not_a_folder("/tmp")),
                Err(_) => {}
            }
        }
        let top = file::open_path(Self::top(spec))?;
        if file::stat_at(top.as_fd(), b"tmp")?.is_some() {
            file::remove_tree_at(top.as_fd(), b"tmp")?;
        }
        let parent = file::open_path(&spec.tmp)?;
        if file::stat_at(parent.as_fd(), b"home")?.is_none() {
            file::mkdir_at(parent.as_fd(), b"home", 0o755)?;
        }
        std::fs::rename(&spec.tmp, Self::top(spec).join("tmp")).map_err(|e| Error::io("rename", &spec.tmp, e))?;
        file::chmod_at(top.as_fd(), b"tmp", 0o1777)?;
        if spec.tree.is_none() {
            xattr::set(top.as_fd(), b"tmp", b"user.overlay.opaque", b"y")?;
        }
        Ok(Self { spec })
    }

    /// The folder that is the root, or its top layer.
    fn top(spec: &Spec) -> &Path {
        spec.tree.as_ref().unwrap_or(&spec.upper)
    }

    fn take_out(self) -> Result<()> {
        let (top, inside) = (file::open_path(Self::top(self.spec))?, Self::top(self.spec).join("tmp"));
        if file::stat_at(top.as_fd(), b"tmp")?.is_none_or(|stat| file::kind(&stat) != SFlag::S_IFDIR) {
            // Where it is no mount, a step may have moved it away.
            return std::fs::create_dir(&self.spec.tmp).map_err(|e| Error::io("mkdir", &self.spec.tmp, e));
        }
        // The step may have closed it, and a folder that can't be written can't be moved elsewhere.
        file::chmod_at(top.as_fd(), b"tmp", 0o700)?;
        std::fs::rename(&inside, &self.spec.tmp).map_err(|e| Error::io("rename", &inside, e))
    }
}

/// A place that we mount on, and that the builder has as something else.
pub(super) fn not_a_folder(inside: &str) -> Error {
    Error::failed(format!("{inside} of the builder is no folder"))
        .why("the sandbox mounts its own there, and follows no link while it does")
        .next(format!("use a builder whose {inside} is a folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_lies_about_its_length_is_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        write_frame(&a, b"hello").unwrap();
        assert_eq!(read_frame(&b, 5).unwrap(), b"hello");
        write_frame(&a, b"hello!").unwrap();
        assert!(read_frame(&b, 5).is_err());
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&100u64.to_le_bytes()).unwrap();
        drop(a);
        assert!(read_frame(&b, 1000).is_err());
    }
}
