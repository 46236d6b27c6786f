//! What a machine means for a build: facts in (machine.rs), words and commands out. Nothing is tried here.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sandbox::machine::{Disk, Machine};
use crate::sandbox::place::Isolation;
use crate::sandbox::probe::{Inside, NotInside, Overlay};
use crate::sys::refusal::Remedy;

/// One thing that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is: `user namespaces`.
    pub name: String,
    /// Is it there?
    pub state: State,
    /// What is done with it, or without it.
    pub meaning: String,
    /// Why it isn't there, where that is known.
    pub why: Vec<String>,
    /// What the user may do about it.
    pub user: Option<String>,
    /// What the user's administrator may do about it: commands, as root.
    pub administrator: Option<String>,
}

/// Is something there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Yes.
    Good,
    /// No; rules run all the same, and the output says what is weaker.
    Weak,
    /// No, and no rule can run.
    Missing,
}

impl Finding {
    /// It is there.
    pub fn good(name: &str, meaning: impl Into<String>) -> Self {
        let (name, meaning) = (name.into(), meaning.into());
        Self { name, state: State::Good, meaning, why: vec![], user: None, administrator: None }
    }

    /// It isn't, and builds go on.
    pub fn weak(name: &str, meaning: impl Into<String>) -> Self {
        Self { state: State::Weak, ..Self::good(name, meaning) }
    }

    /// It isn't, and no rule can run.
    pub fn missing(name: &str, meaning: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::good(name, meaning) }
    }

    /// A reason.
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    /// What the user may do.
    pub fn user(mut self, command: impl Into<String>) -> Self {
        self.user = Some(command.into());
        self
    }

    /// What the administrator may do.
    pub fn administrator(mut self, command: impl Into<String>) -> Self {
        self.administrator = Some(command.into());
        self
    }

    fn remedy(mut self, remedy: Remedy) -> Self {
        self.why.push(remedy.why);
        self.user = self.user.or(remedy.user);
        self.administrator = self.administrator.or(remedy.administrator);
        self
    }
}

/// Less than this, and a Debian builder won't fit.
const ROOM: u64 = 2 << 30;
/// Less than this, and nothing can be built.
const NO_ROOM: u64 = 32 << 20;
/// A Debian builder has some ten thousand files.
const INODES: u64 = 50_000;
const NO_INODES: u64 = 500;
/// A build holds some files open for each layer of each snapshot.
const OPEN_FILES: u64 = 1024;
const PROCESSES: u64 = 256;

/// Each thing that matters, in the order in which a sandbox needs it.
pub fn findings(machine: &Machine) -> Vec<Finding> {
    let mut all = vec![];
    match &machine.inside {
        _ if machine.isolation == Isolation::Chroot => all.push(changed_root(machine)),
        Some(Ok(inside)) => {
            all.push(Finding::good("user namespaces", "a rule has its own users, mounts, processes and network"));
            all.extend(looked_inside(machine, inside));
        }
        Some(Err(not)) => all.extend(no_namespaces(machine, not)),
        None => {}
    }
    all.push(executable(machine));
    if machine.isolation == Isolation::Namespaces {
        all.push(subordinate(machine));
    }
    match &machine.store {
        Ok(disk) => all.extend([store(disk), room(disk)]),
        Err(error) => {
            let missing = Finding::missing("store", "there is no place to keep anything").why(error.what());
            let why = error.reasons().iter().cloned().fold(missing, Finding::why);
            all.push(why.user("set TAPEOUT_STORE to a folder that you may write in, or give --store DIR"));
        }
    }
    all.extend(limits(machine));
    all
}

fn no_namespaces(machine: &Machine, not: &NotInside) -> Vec<Finding> {
    let missing = Finding::missing("user namespaces", "no rule can run without them");
    let refusal = match not {
        NotInside::Refused(refusal) => refusal,
        NotInside::Broken(error) => {
            return vec![error.reasons().iter().cloned().fold(missing.why(error.what()), Finding::why)];
        }
    };
    let remedy = machine.surroundings.explain(refusal);
    vec![missing.why(refusal.words()).remedy(remedy), other_way(machine)]
}

/// Is there a way without namespaces?
fn other_way(machine: &Machine) -> Finding {
    let name = "--isolation chroot";
    if machine.uid == 0 && machine.may_chroot {
        return Finding::weak(
            name,
            "possible here, and no boundary: a rule can leave it. Never chosen but by this option",
        )
        .user("in a container that is itself thrown away: tapeout build --isolation chroot …");
    }
    Finding::weak(name, "not possible here either").why("it needs to be root of a container, with CAP_SYS_CHROOT")
}

fn changed_root(machine: &Machine) -> Finding {
    let name = "--isolation chroot";
    if machine.uid != 0 || !machine.may_chroot {
        return Finding::missing(name, "no rule can run")
            .why("it needs to be root with CAP_SYS_CHROOT")
            .user("leave it out: namespaces need no root");
    }
    let devices = match machine.may_make_devices {
        true => "",
        false => "; without CAP_MKNOD init answers the opens of /dev/null and its like",
    };
    Finding::weak(name, format!("no boundary: a rule can leave it, and see all of this container{devices}"))
        .why("--isolation chroot asks for it; secrets, caches and user are refused with it, snapshots are copied")
}

fn looked_inside(machine: &Machine, inside: &Inside) -> Vec<Finding> {
    if let Some(words) = &inside.no_mounts {
        let missing = Finding::missing("mounts", "no rule can run without mounts of its own").why(words.as_str());
        return vec![missing.why("the kernel is older than Linux 5.12, or a container's seccomp or AppArmor profile refuses it")
            .administrator("start the container with a profile that allows mounts in its own namespaces (docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)")];
    }
    let mut all: Vec<_> = inside.overlay.as_ref().map(|overlay| snapshots(machine, overlay)).into_iter().collect();
    all.push(match &inside.no_proc {
        None => Finding::good("/proc", "a rule sees its own processes alone"),
        Some(refusal) => Finding::weak("/proc", "the container's is shown: a rule sees the container's processes")
            .why(refusal.words())
            .why("a container around us masks parts of /proc, and then the kernel mounts no other")
            .administrator("podman: --security-opt unmask=ALL; docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked, with hostUsers: false"),
    });
    all.push(match &inside.no_listener {
        None => Finding::good("recorded owners", "chown and mknod are recorded, and replayed into layers"),
        Some(refusal) => {
            let weak = Finding::weak("recorded owners", "a rule that gives a file to another owner fails")
                .why(refusal.words());
            match Errno::from_raw(refusal.errno) {
                Errno::EBUSY => weak
                    .why("somebody around us listens to seccomp already, and the kernel has one listener for a process")
                    .administrator("LXD, Incus: lxc config set CONTAINER security.syscalls.intercept.mknod=false security.syscalls.intercept.setxattr=false"),
                _ => weak.why("the kernel is older than Linux 5.9, or a seccomp profile refuses it"),
            }
        }
    });
    all
}

fn snapshots(machine: &Machine, overlay: &Overlay) -> Finding {
    const NAME: &str = "overlay";
    let copied = "snapshots are copied, which is slower; with --from host no rule can run";
    let disk = machine.store.as_ref().ok();
    let kind = disk.map_or("", |disk| disk.kind.as_str());
    let elsewhere = "put the store on ext4, xfs, btrfs or tmpfs: export TAPEOUT_STORE=DIR (in a container: a volume)";
    if disk.is_some_and(|disk| !disk.attributes) {
        return Finding::weak(NAME, copied)
            .why(format!("files in the store have no attributes (user.*): {}", named(kind)))
            .user(elsewhere);
    }
    match overlay {
        Overlay::Many => Finding::good(NAME, "snapshots are stacked, up to 500 changesets"),
        Overlay::Few => Finding::weak(NAME, "snapshots are stacked, as many changesets as their names fit on a page")
            .why(format!("the kernel is {}, and lowerdir+ came with Linux 6.7", machine.kernel)),
        Overlay::Refused(refusal, log) => {
            let weak = log.iter().cloned().fold(Finding::weak(NAME, copied).why(refusal.words()), Finding::why);
            match Errno::from_raw(refusal.errno) {
                Errno::ENODEV => weak
                    .why("the kernel has no overlay file system")
                    .administrator("modprobe overlay && echo overlay >/etc/modules-load.d/overlay.conf"),
                Errno::EPERM | Errno::EACCES if machine.surroundings.filtered => {
                    weak.why("a seccomp profile refuses it, or the kernel is older than Linux 5.11")
                }
                Errno::EPERM | Errno::EACCES => {
                    weak.why("the kernel lets users mount none (older than Linux 5.11, or a security module)")
                }
                _ => weak.why(format!("{} can't hold an overlay's upper folder", named(kind))).user(elsewhere),
            }
        }
    }
}

fn named(kind: &str) -> &str {
    if kind.is_empty() { "its file system" } else { kind }
}

fn executable(machine: &Machine) -> Finding {
    let name = "sealed executable";
    match &machine.sealed {
        Ok(true) => Finding::good(name, "the sandbox's init runs from memory: a rule can't find our binary"),
        Ok(false) => Finding::weak(
            name,
            "the sandbox's init runs from the binary on disk; its links in /proc stay closed to a rule",
        )
        .why("vm.memfd_noexec forbids to execute from memory, or a seccomp profile does")
        .administrator("sysctl vm.memfd_noexec=0"),
        Err(error) => Finding::missing(name, "the sandbox's init can't be started").why(error.what()),
    }
}

fn subordinate(machine: &Machine) -> Finding {
    let name = "subordinate IDs";
    let error = match &machine.subordinate {
        Ok(()) => return Finding::good(name, "rules with ids = \"range\" have several real IDs"),
        Err(error) => error,
    };
    let weak = Finding::weak(name, "rules with ids = \"range\" are an error; all others run").why(error.what());
    match error.next_step() {
        Some(next) => weak.administrator(next.strip_prefix("ask the administrator for: ").unwrap_or(next)),
        None => weak,
    }
}

fn store(disk: &Disk) -> Finding {
    let place = format!(
        "{}, on {}",
        disk.path.display(),
        if disk.kind.is_empty() { "a file system without a name" } else { &disk.kind }
    );
    if disk.remote {
        return Finding::weak("store", place)
            .why(format!(
                "{} is at the other end of a network: each of a builder's ten thousand files is asked for there",
                disk.kind
            ))
            .user("keep it on a disk of this machine: export TAPEOUT_STORE=/var/tmp/tapeout-$USER");
    }
    match disk.in_memory {
        true => Finding::good("store", format!("{place}, in memory: it is gone with the next start")),
        false => Finding::good("store", place),
    }
}

fn room(disk: &Disk) -> Finding {
    let name = "room";
    let mut has = format!("{} MB free", disk.free / 1_000_000);
    if let Some(inodes) = disk.inodes {
        has.push_str(&format!(", {inodes} inodes"));
    }
    let inodes = disk.inodes.unwrap_or(u64::MAX);
    let mend = |finding: Finding| finding.user("tapeout gc, or keep the store elsewhere: export TAPEOUT_STORE=DIR");
    if disk.free < NO_ROOM || inodes < NO_INODES {
        return mend(Finding::missing(name, has).why("nothing can be built in so little"));
    }
    if disk.free < ROOM || inodes < INODES {
        return mend(
            Finding::weak(name, has).why("a Debian builder with a compiler takes about 1 GB and 15,000 files"),
        );
    }
    Finding::good(name, has)
}

fn limits(machine: &Machine) -> Vec<Finding> {
    let mut all = vec![];
    let mut low = |name: &str, has: Option<u64>, wants: u64, flag: &str, item: &str| {
        if let Some(has) = has.filter(|has| *has < wants) {
            all.push(
                Finding::weak(name, format!("{has}: large builds fail; {wants} or more are wanted"))
                    .user(format!("ulimit -{flag} {wants}, with fewer --jobs where that is refused"))
                    .administrator(format!("echo '* hard {item} {wants}' >/etc/security/limits.d/60-tapeout.conf")),
            );
        }
    };
    low("open files", machine.open_files, OPEN_FILES, "n", "nofile");
    low("processes", machine.processes, PROCESSES, "u", "nproc");
    if let Some(bytes) = machine.file_size {
        all.push(
            Finding::weak(
                "size of a file",
                format!("{} MB: a layer or a file of a rule may not be larger", bytes / 1_000_000),
            )
            .user("ulimit -f unlimited"),
        );
    }
    if all.is_empty() {
        all.push(Finding::good("limits", "of open files, processes and sizes of files: none in the way"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::sys::refusal::{Refusal, Surroundings};

    /// A machine on which everything is good.
    fn machine() -> Machine {
        let disk = Disk {
            path: "/home/me/.local/share/tapeout".into(),
            kind: "ext4".into(),
            free: 100 << 30,
            inodes: Some(1_000_000),
            attributes: true,
            ..Disk::default()
        };
        Machine {
            kernel: "6.12.0".into(),
            uid: 1000,
            now: 1_800_000_000,
            isolation: Isolation::Namespaces,
            surroundings: Surroundings::default(),
            may_chroot: false,
            may_make_devices: false,
            sealed: Ok(true),
            inside: Some(Ok(inside())),
            subordinate: Ok(()),
            store: Ok(disk),
            open_files: Some(1_048_576),
            processes: None,
            file_size: None,
        }
    }

    fn inside() -> Inside {
        Inside { no_mounts: None, overlay: Some(Overlay::Many), no_proc: None, no_listener: None }
    }

    /// The finding of this name on a machine with one fault.
    fn found(name: &str, fault: impl FnOnce(&mut Machine)) -> Finding {
        let mut machine = machine();
        fault(&mut machine);
        let all = findings(&machine);
        all.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{name}: {all:#?}")).clone()
    }

    fn is(finding: &Finding, state: State, words: &[&str]) {
        assert_eq!(finding.state, state, "{finding:#?}");
        let text = format!("{finding:?}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {finding:#?}"));
    }

    #[test]
    fn a_machine_with_everything_has_nothing_to_mend() {
        for finding in findings(&machine()) {
            assert!(
                finding.state == State::Good && finding.user.is_none() && finding.administrator.is_none(),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn refused_namespaces_are_missing_and_the_way_without_is_named_to_root_alone() {
        let refused = |machine: &mut Machine| {
            machine.inside = Some(Err(NotInside::Refused(Refusal::new("clone", Errno::EPERM))));
            machine.surroundings.apparmor = "1".into();
        };
        is(&found("user namespaces", refused), State::Missing, &["AppArmor", "apparmor_parser -r", "userns,"]);
        is(&found("--isolation chroot", refused), State::Weak, &["not possible here"]);
        let root = |machine: &mut Machine| {
            refused(machine);
            (machine.uid, machine.may_chroot, machine.surroundings.filtered, machine.surroundings.root) =
                (0, true, true, true);
        };
        is(&found("user namespaces", root), State::Missing, &["seccomp profile"]);
        is(&found("--isolation chroot", root), State::Weak, &["no boundary", "tapeout build --isolation chroot"]);
    }

    #[test]
    fn a_root_that_is_to_be_changed_says_what_it_is_and_what_it_needs() {
        let chroot = |machine: &mut Machine| (machine.isolation, machine.inside) = (Isolation::Chroot, None);
        is(&found("--isolation chroot", chroot), State::Missing, &["CAP_SYS_CHROOT"]);
        let root = |machine: &mut Machine| {
            chroot(machine);
            (machine.uid, machine.may_chroot) = (0, true);
        };
        is(&found("--isolation chroot", root), State::Weak, &["no boundary", "CAP_MKNOD"]);
    }

    #[test]
    fn why_snapshots_are_copied_is_told_with_the_file_system() {
        let refused = |errno| {
            move |machine: &mut Machine| {
                let overlay = Overlay::Refused(Refusal::new("mount(overlay)", errno), vec!["upper fs".into()]);
                machine.inside = Some(Ok(Inside { overlay: Some(overlay), ..inside() }));
                machine.store.as_mut().unwrap().kind = "overlay".into();
            }
        };
        is(
            &found("overlay", refused(Errno::EINVAL)),
            State::Weak,
            &["overlay can't hold", "upper fs", "TAPEOUT_STORE"],
        );
        is(&found("overlay", refused(Errno::ENODEV)), State::Weak, &["modprobe overlay"]);
        is(&found("overlay", refused(Errno::EPERM)), State::Weak, &["5.11"]);
        let bare = |machine: &mut Machine| machine.store.as_mut().unwrap().attributes = false;
        is(&found("overlay", bare), State::Weak, &["user.*", "copied"]);
        let few = |machine: &mut Machine| machine.inside = Some(Ok(Inside { overlay: Some(Overlay::Few), ..inside() }));
        is(&found("overlay", few), State::Weak, &["6.7"]);
    }

    #[test]
    fn what_a_container_masks_or_listens_to_is_weak_and_missing_mounts_are_missing() {
        let with = |change: fn(&mut Inside)| {
            move |machine: &mut Machine| {
                let mut inside = inside();
                change(&mut inside);
                machine.inside = Some(Ok(inside));
            }
        };
        let masked = with(|i| i.no_proc = Some(Refusal::new("mount(proc)", Errno::EPERM)));
        is(&found("/proc", masked), State::Weak, &["masks", "procMount: Unmasked", "unmask=ALL"]);
        let busy = with(|i| i.no_listener = Some(Refusal::new("seccomp(listener)", Errno::EBUSY)));
        is(&found("recorded owners", busy), State::Weak, &["listens", "security.syscalls.intercept"]);
        let mounts = with(|i| i.no_mounts = Some("mount_setattr(/): Function not implemented".into()));
        is(&found("mounts", mounts), State::Missing, &["5.12"]);
    }

    #[test]
    fn a_store_says_where_it_lies_and_what_room_it_has() {
        let disk = |change: fn(&mut Disk)| move |machine: &mut Machine| change(machine.store.as_mut().unwrap());
        is(
            &found("store", disk(|d| (d.kind, d.remote) = ("NFS".into(), true))),
            State::Weak,
            &["NFS", "TAPEOUT_STORE"],
        );
        is(&found("store", disk(|d| d.in_memory = true)), State::Good, &["in memory"]);
        is(&found("room", disk(|d| d.free = 1 << 30)), State::Weak, &["tapeout gc"]);
        is(&found("room", disk(|d| d.free = 1 << 20)), State::Missing, &["1 MB"]);
        is(&found("room", disk(|d| d.inodes = Some(20))), State::Missing, &["20 inodes"]);
        is(&found("room", disk(|d| d.inodes = None)), State::Good, &[]);
        is(
            &found("store", |m| m.store = Err(Error::failed("mkdir(/x): Permission denied"))),
            State::Missing,
            &["/x", "--store"],
        );
    }

    #[test]
    fn what_is_left_says_what_is_done_without_it() {
        is(&found("sealed executable", |m| m.sealed = Ok(false)), State::Weak, &["memfd_noexec=0"]);
        is(&found("sealed executable", |m| m.sealed = Err(Error::failed("open"))), State::Missing, &[]);
        let no_range = Error::failed("none").next("ask the administrator for: usermod --add-subuids 1-2 me");
        is(
            &found("subordinate IDs", |m| m.subordinate = Err(no_range)),
            State::Weak,
            &["range", "Some(\"usermod --add"],
        );
        is(&found("open files", |m| m.open_files = Some(256)), State::Weak, &["ulimit -n 1024", "nofile"]);
        is(&found("processes", |m| m.processes = Some(50)), State::Weak, &["ulimit -u"]);
        is(&found("size of a file", |m| m.file_size = Some(5_000_000)), State::Weak, &["5 MB", "ulimit -f"]);
    }
}
