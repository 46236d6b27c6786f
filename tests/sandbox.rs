//! The sandbox does what it promises, on a root file system of one busybox.
//!
//! They run as whoever runs them: as root, and as an ordinary user (`ci/test` does both).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tapeout::build_file::spec::{Limits, Step};
use tapeout::error::Result;
use tapeout::sandbox::{self, Hit, Outcome, Recorded, Spec, Status};
use tapeout::sys::{file, process};

/// A root file system, and the folders of one run.
struct Room {
    temp: tempfile::TempDir,
    spec: Spec,
}

struct Ran {
    result: Result<Outcome>,
    output: String,
}

fn sh(script: &str) -> Step {
    Step::Shell(script.into())
}

/// Where `apt-get install busybox-static` puts it.
fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
        .expect("busybox-static is installed")
}

/// A program and the libraries that it needs.
fn needed(program: &str) -> Vec<PathBuf> {
    let listed = std::process::Command::new("ldd").arg(program).output().expect("ldd");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    std::iter::once(PathBuf::from(program)).chain(libraries).collect()
}

impl Room {
    fn new() -> Self {
        let executable =
            std::env::var_os("NEXTEST_BIN_EXE_tapeout").unwrap_or_else(|| env!("CARGO_BIN_EXE_tapeout").into());
        process::set_executable(executable.into());
        let temp = tempfile::Builder::new().prefix("sandbox").tempdir().unwrap();
        let lower = temp.path().join("lower");
        for folder in ["bin", "etc", "dev", "proc", "sys", "run", "tmp", "usr/bin", "var/lib"] {
            std::fs::create_dir_all(lower.join(folder)).unwrap();
        }
        std::fs::copy(busybox(), lower.join("bin/busybox")).unwrap();
        let applets = std::process::Command::new(busybox()).arg("--list").output().unwrap();
        for name in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        // busybox says the group that it sees where it was given none, GNU's chown leaves it; perl
        // makes any system call.
        for path in needed("/bin/chown").into_iter().chain(needed("/usr/bin/perl")) {
            let to = match path.to_str() {
                Some("/bin/chown") => lower.join("usr/bin/gnu-chown"),
                _ => lower.join(path.strip_prefix("/").unwrap()),
            };
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&path, to).unwrap();
        }
        std::fs::write(lower.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        std::fs::write(lower.join("etc/kept"), "lower\n").unwrap();
        for folder in ["upper", "work", "root", "tmp"] {
            std::fs::create_dir(temp.path().join(folder)).unwrap();
        }
        let at = |name: &str| temp.path().join(name);
        let env = [("PATH", "/bin:/usr/bin"), ("HOME", "/tmp/home")].map(|(k, v)| (k.to_string(), v.to_string()));
        let spec = Spec {
            lower: vec![lower],
            upper: at("upper"),
            work: at("work"),
            root: at("root"),
            tmp: at("tmp"),
            env: BTreeMap::from(env),
            cwd: "/workspace".into(),
            hostname: "tapeout".into(),
            ..Spec::default()
        };
        Self { temp, spec }
    }

    fn lower(&self) -> PathBuf {
        self.temp.path().join("lower")
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.temp.path().join("upper").join(path)
    }

    fn run_steps(&mut self, steps: Vec<Step>) -> Ran {
        self.spec.steps = steps;
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut text = vec![];
            reader.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let result = sandbox::run(&self.spec, File::from(std::os::fd::OwnedFd::from(writer)));
        Ran { result, output: reading.join().unwrap() }
    }

    fn run(&mut self, script: &str) -> Ran {
        self.run_steps(vec![sh(script)])
    }

    /// Runs a script that must succeed; gives what it wrote.
    fn ok(&mut self, script: &str) -> (String, Outcome) {
        let ran = self.run(script);
        let outcome = ran.result.unwrap_or_else(|e| panic!("{e}\n{}", ran.output));
        assert!(outcome.status.success(), "{:?}\n{}", outcome.status, ran.output);
        (ran.output, outcome)
    }

    /// What was recorded for a file of the upper folder.
    fn recorded(&self, outcome: &Outcome, path: &str) -> Option<Recorded> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW;
        let fd = nix::fcntl::open(&self.upper(path), flags, nix::sys::stat::Mode::empty()).unwrap();
        let handle = file::handle(fd.as_fd()).unwrap();
        outcome.recorded.iter().find(|r| r.handle == handle).cloned()
    }

    fn owner(&self, outcome: &Outcome, path: &str) -> (Option<u32>, Option<u32>) {
        self.recorded(outcome, path).map_or((None, None), |r| (r.uid, r.gid))
    }
}

#[test]
fn a_step_runs_in_its_own_world() {
    let mut room = Room::new();
    let (output, _) = room.ok("id -u; id -g; hostname; pwd; echo $HOME $0; umask; env | sort; ls -d /proc/[0-9]*; ls -ld /tmp /tmp/home; echo made > /made; echo x > /tmp/x");
    assert_eq!(
        output.lines().map(|line| line.split_whitespace().take(1).collect::<String>()).collect::<Vec<_>>(),
        [
            "0",
            "0",
            "tapeout",
            "/workspace",
            "/tmp/home",
            "0022",
            "HOME=/tmp/home",
            "PATH=/bin:/usr/bin",
            "PWD=/workspace",
            "SHLVL=1",
            "/proc/1",
            "/proc/2",
            "drwxrwxrwt",
            "drwxr-xr-x"
        ]
    );
    assert_eq!(std::fs::read_to_string(room.upper("made")).unwrap(), "made\n");
    assert!(!room.upper("tmp").exists(), "/tmp is no part of what changed");
    assert!(room.temp.path().join("tmp/x").exists());
}

#[test]
fn the_outcome_says_which_step_ended_how() {
    let mut room = Room::new();
    let argv = |words: &[&str]| Step::Argv(words.iter().map(|w| w.to_string()).collect());
    let ran = room.run_steps(vec![
        sh("echo one"),
        argv(&["echo", "two words"]),
        sh("echo three; false; echo never"),
        sh("echo never"),
    ]);
    let outcome = ran.result.unwrap();
    assert_eq!((outcome.status, outcome.failed_step), (Status::Exited(1), Some(2)));
    assert_eq!(ran.output, "one\ntwo words\nthree\n");
    let outcome = Room::new().run("kill -TERM $$").result.unwrap();
    assert_eq!((outcome.status, outcome.failed_step), (Status::Signalled(15), Some(0)));
    let mut empty = Room::new();
    assert!(empty.run_steps(vec![]).result.unwrap().status.success());
}

#[test]
fn what_is_missing_is_named() {
    let argv = |word: &str| vec![Step::Argv(vec![word.into()])];
    for (program, words) in
        [("no-such-program", ["no-such-program", "PATH"]), ("/opt/none", ["/opt/none", "snapshot has no"])]
    {
        let error = Room::new().run_steps(argv(program)).result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let mut room = Room::new();
    std::fs::remove_file(room.lower().join("bin/sh")).unwrap();
    let error = room.run("true").result.unwrap_err().to_string();
    assert!(error.contains("the snapshot has no /bin/sh"), "{error}");
}

#[test]
fn owners_are_recorded_with_the_file() {
    let mut room = Room::new();
    let (_, outcome) = room.ok(
        "cd /; echo > new; chown 33:34 new; gnu-chown 33 etc/kept; mkdir folder; gnu-chown -R :5 folder
         ln -s nowhere link; chown -h 7:8 link; mkfifo pipe; chown 9:9 pipe
         echo > renamed.tmp; chown 1:2 renamed.tmp; mv renamed.tmp renamed
         echo > linked; ln linked other-name; chown 3:3 other-name
         echo > twice; chown 4:4 twice; gnu-chown :6 twice; gnu-chown 0 twice
         echo > old; chown 66:66 old; rm old; echo > untouched; mkdir -p a/b; echo > a/b/c; chown 12:12 a/b/c; mv a moved",
    );
    for (path, owner) in [
        ("new", (Some(33), Some(34))),
        ("etc/kept", (Some(33), None)),
        ("folder", (None, Some(5))),
        ("link", (Some(7), Some(8))),
        ("pipe", (Some(9), Some(9))),
        ("renamed", (Some(1), Some(2))),
        ("linked", (Some(3), Some(3))),
        ("other-name", (Some(3), Some(3))),
        ("twice", (Some(0), Some(6))),
        ("untouched", (None, None)),
        ("moved/b/c", (Some(12), Some(12))),
    ] {
        assert_eq!(room.owner(&outcome, path), owner, "{path}");
    }
}

#[test]
fn a_change_of_owner_costs_what_it_costs_with_root() {
    let mut room = Room::new();
    let (output, _) = room.ok(
        "cd /; echo > s; chmod 6755 s; chown 1:1 s; stat -c %a s; chmod 4755 s; stat -c %a s; mkdir d; chmod 2775 d; chown 1:1 d; stat -c %a d
         chown 1 none 2>&1 || true; chown 1 /etc/passwd/x 2>&1 || true; ln -s loop loop; chown 1 loop 2>&1 || true; stat -c %u:%g s",
    );
    let expected = "755\n4755\n2775\nchown: none: No such file or directory\nchown: /etc/passwd/x: Not a directory\n\
                    chown: loop: Symbolic link loop\n0:0\n";
    assert_eq!(output.replace("Too many levels of symbolic links", "Symbolic link loop"), expected);
}

#[test]
fn devices_are_recorded_and_none_is_made() {
    let mut room = Room::new();
    let (output, outcome) = room.ok(
        "cd /; mkdir d; mknod d/null c 1 3; mknod -m 600 d/disk b 8 1; mknod d/whiteout c 0 0; mknod d/pipe p; chown 5:6 d/disk
         mknod d/null c 1 3 2>&1 || true; mknod none/x c 1 3 2>&1 || true; ls -l d | cut -c1-10",
    );
    assert_eq!(
        output,
        "mknod: d/null: File exists\nmknod: none/x: No such file or directory\ntotal 0\n-rw-------\n-rw-r--r--\nprw-r--r--\n-rw-r--r--\n"
    );
    let device = |path: &str| room.recorded(&outcome, path).and_then(|r| r.device);
    assert_eq!(device("d/null"), Some((true, 1, 3)));
    assert_eq!(device("d/disk"), Some((false, 8, 1)));
    assert_eq!(room.owner(&outcome, "d/disk"), (Some(5), Some(6)));
    assert_eq!(device("d/whiteout"), Some((true, 0, 0)));
    assert!(std::fs::symlink_metadata(room.upper("d/whiteout")).unwrap().is_file());
}

#[test]
fn owners_are_found_below_a_changed_root_and_through_descriptors() {
    let mut room = Room::new();
    let (_, outcome) = room.ok(
        "cd /; mkdir -p inner/bin inner/sub; cp /bin/busybox inner/bin; ln -s /sub/f inner/absolute
         chroot /inner /bin/busybox sh -c 'cd /sub; echo > f; /bin/busybox chown 21:22 /absolute; echo > g; /bin/busybox chown 23:24 ../sub/g'
         echo > h; chown 25:26 /proc/self/cwd/h; exec 5> i; chown 27:28 /dev/fd/5; exec 6< etc; chown 29:29 /proc/self/fd/6/kept
         ! chown 1:1 /proc/1/fd/3 2>/dev/null; ! chown 1:1 /proc/1/root/etc 2>/dev/null",
    );
    for (path, owner) in [
        ("inner/sub/f", (Some(21), Some(22))),
        ("inner/sub/g", (Some(23), Some(24))),
        ("i", (Some(27), Some(28))),
        ("h", (Some(25), Some(26))),
        ("etc/kept", (Some(29), Some(29))),
        ("etc", (None, None)),
    ] {
        assert_eq!(room.owner(&outcome, path), owner, "{path}");
    }
}

#[test]
fn a_link_of_the_builder_in_our_way_is_an_error_and_nothing_outside_changes() {
    for place in ["dev", "proc", "sys", "run", "tmp"] {
        for target in ["/etc", "../../outside", "nowhere", "loop"] {
            let mut room = Room::new();
            let outside = room.temp.path().join("outside");
            std::fs::create_dir(&outside).unwrap();
            let at = room.lower().join(place);
            std::fs::remove_dir(&at).unwrap();
            std::os::unix::fs::symlink(if target == "loop" { place } else { target }, &at).unwrap();
            let error = room.run("true").result.expect_err(place).to_string();
            assert!(error.contains(&format!("/{place} of the builder is no folder")), "{error}");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{place} -> {target}");
            assert!(std::fs::symlink_metadata(&at).unwrap().is_symlink());
        }
    }
}

#[test]
fn missing_mount_points_are_made() {
    let mut room = Room::new();
    for place in ["dev", "proc", "sys", "run", "tmp"] {
        std::fs::remove_dir(room.lower().join(place)).unwrap();
    }
    room.ok("test -c /dev/null; test -d /proc/1; test -d /sys; echo > /run/x; echo > /tmp/x");
}

#[test]
fn nothing_of_a_step_outlives_it() {
    let mut room = Room::new();
    let ran = room.run_steps(vec![
        sh("setsid sh -c 'trap \"\" TERM HUP INT; while :; do echo alive >> /log; sleep 0.01; done' & (sleep 1000 &) ; sleep 1000 & kill -STOP $!; sleep 0.1"),
        sh("set -- /proc/[0-9]*; echo $#; : > /log; sleep 0.1; cat /log"),
    ]);
    assert!(ran.result.unwrap().status.success(), "{}", ran.output);
    // Only init and the shell.
    assert_eq!(ran.output.trim(), "2");
}

#[test]
fn limits_say_which_was_hit() {
    let run = |limits: Limits, script: &str| {
        let mut room = Room::new();
        room.spec.limits = limits;
        let ran = room.run(script);
        (ran.result.unwrap().status, ran.output)
    };
    let time = Limits { time: Some(1), ..Limits::default() };
    assert_eq!(run(time, "trap '' TERM; sleep 100").0, Status::Limit(Hit::Time));
    let size = Limits { file_size: Some(1 << 20), ..Limits::default() };
    assert_eq!(run(size, "dd if=/dev/zero of=/big bs=1M count=2").0, Status::Limit(Hit::FileSize));
    let memory = Limits { memory: Some(64 << 20), ..Limits::default() };
    assert!(!run(memory, "dd if=/dev/zero of=/dev/null bs=100M count=1").0.success());
    let processes = Limits { processes: Some(30), ..Limits::default() };
    assert!(!run(processes, "i=0; while [ $i -lt 400 ]; do sleep 5 & i=$((i+1)); done").0.success());
}

/// Each is something that must not work: the script exits with 0 when it did.
#[test]
fn what_a_rule_must_not_reach() {
    for (name, script) in [
        ("read the path of our executable", "readlink /proc/1/exe"),
        ("read our executable", "cat /proc/1/exe > /dev/null"),
        ("write our executable", "echo x >> /proc/1/exe"),
        ("list init's descriptors", "readlink /proc/1/fd/0 || readlink /proc/1/fd/3"),
        ("enter init's root", "ls /proc/1/root/"),
        ("read init's environment", "cat /proc/1/environ | grep -q ."),
        ("read init's memory", "dd if=/proc/1/mem bs=1 count=1 skip=4194304 2>/dev/null | grep -q ."),
        ("signal init", "kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.05; test ! -d /proc/1"),
        ("see a second descriptor", "test $(ls /proc/self/fd | wc -l) -gt 4"),
        ("have the host's environment", "env | grep -qE 'CARGO|USER=|LOGNAME'"),
        ("have a route", "ip route 2>/dev/null | grep -q . || cat /proc/net/route | tail -n +2 | grep -q ."),
        ("have another interface", "ls /proc/sys/net/ipv4/conf | grep -qvE '^(all|default|lo)$'"),
        ("write /proc/sys", "echo x > /proc/sys/kernel/core_pattern"),
        ("write /proc/sys through its parent", "echo 1 > /proc/1/../sys/vm/drop_caches"),
        ("write sysrq-trigger", "echo h > /proc/sysrq-trigger"),
        ("read kcore", "dd if=/proc/kcore bs=1 count=1 2>/dev/null | grep -q ."),
        ("unmount a mask", "umount /proc/sys"),
        ("unmount /proc", "umount -l /proc"),
        ("remount writable", "mount -o remount,rw /proc/sys"),
        ("mount", "mount -t tmpfs none /mnt"),
        ("mount in a namespace of its own and see below a mask", "unshare -Urm sh -c 'umount /proc/sys'"),
        ("a fresh /proc in a namespace of its own", "unshare -Urmpf sh -c 'mkdir -p /p && mount -t proc proc /p'"),
        ("remove /tmp", "rmdir /tmp || mv /tmp /tmp2"),
        ("change the mode of the host's /dev/null", "chmod 600 /dev/null"),
        ("see the host's devices", "ls /dev | grep -qE 'vda|sda|kmsg|mem'"),
        ("write /sys", "mkdir /sys/x"),
        ("see a host path in a mount", "grep -q 'lower=\\|upper=\\|/home\\|sandbox' /proc/self/mountinfo"),
        ("see a control group", "grep -q 'slice\\|session' /proc/self/cgroup"),
        ("be root on the host's files", "test -e /etc/shadow"),
        ("forge a whiteout", "mknod /w c 0 0 && test -c /w"),
        ("gain a capability", "grep CapBnd /proc/self/status | grep -qi 'ffffffff'"),
        ("have inheritable capabilities", "grep -E 'CapInh|CapAmb' /proc/self/status | grep -qv 0000000000000000"),
        ("go without no_new_privs", "grep -q 'NoNewPrivs:.0' /proc/self/status"),
        ("have a terminal", "test -t 0 || cat < /dev/tty"),
    ] {
        let mut room = Room::new();
        std::fs::create_dir(room.lower().join("mnt")).unwrap();
        let ran = room.run(&format!("if {{ {script}; }} > /tmp/out 2>&1; then cat /tmp/out; exit 0; else exit 77; fi"));
        assert_eq!(
            ran.result.unwrap_or_else(|e| panic!("{name}: {e}")).status,
            Status::Exited(77),
            "{name}: {}",
            ran.output
        );
    }
}

#[test]
fn a_read_only_root_is_read_only_but_for_tmp_run_and_dev() {
    let mut room = Room::new();
    room.spec.read_only_root = true;
    room.spec.cwd = "/".into();
    room.ok("! touch /x 2>/dev/null; ! touch /etc/kept 2>/dev/null; echo > /tmp/x; echo > /run/x; echo > /dev/shm/x");
}

#[test]
fn without_capabilities_modes_count() {
    let mut room = Room::new();
    room.spec.no_capabilities = true;
    room.spec.cwd = "/".into();
    std::fs::write(room.lower().join("etc/secret"), "x").unwrap();
    std::fs::set_permissions(room.lower().join("etc/secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    room.ok("! cat /etc/secret 2>/dev/null; grep -q 'CapEff:.0000000000000000' /proc/self/status; ! chown 5 /etc/kept 2>/dev/null");
}

#[test]
fn another_id_can_be_mapped() {
    let mut room = Room::new();
    (room.spec.uid, room.spec.gid) = (999, 998);
    let (output, outcome) = room.ok(
        "id -u; id -g; echo > /mine; stat -c %u:%g /mine /etc/kept; chown 999:998 /mine; ! chown 0 /mine 2>/dev/null",
    );
    assert_eq!(output, "999\n998\n999:998\n999:998\n");
    assert_eq!(room.owner(&outcome, "mine"), (Some(999), Some(998)));
}

#[test]
fn folders_of_the_host_are_seen_where_they_are_bound() {
    let mut room = Room::new();
    let shared = room.temp.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "text\n").unwrap();
    let bind =
        |host: &Path, inside: &str, read_only| sandbox::Bind { host: host.into(), inside: inside.into(), read_only };
    room.spec.mounts = vec![
        bind(&shared, "/cache/deep", false),
        bind(&shared, "/mnt", true),
        bind(&shared.join("file"), "/run/secrets/token", true),
    ];
    let (output, _) = room.ok("cat /mnt/file /run/secrets/token; echo new > /cache/deep/new; ! touch /mnt/x 2>/dev/null; ! sh -c 'echo > /run/secrets/token' 2>/dev/null");
    assert_eq!(output, "text\ntext\n");
    assert_eq!(std::fs::read_to_string(shared.join("new")).unwrap(), "new\n");
    // A link on the way is refused.
    std::os::unix::fs::symlink("/etc", room.lower().join("link")).unwrap();
    for folder in ["upper", "work"] {
        file::remove_tree(&room.temp.path().join(folder)).unwrap();
        std::fs::create_dir(room.temp.path().join(folder)).unwrap();
    }
    room.spec.mounts = vec![bind(&shared, "/link/x", false)];
    assert!(room.run("true").result.is_err());
}

#[test]
fn this_machine_can_run_rules() {
    let room = Room::new();
    let store = (room.temp.path(), room.temp.path());
    let machine = sandbox::Machine::here(sandbox::Isolation::Namespaces, Ok(store));
    let findings = sandbox::findings(&machine);
    assert!(findings.iter().all(|f| f.state != sandbox::State::Missing), "{findings:?}");
    assert!(findings.iter().any(|f| f.name == "overlay"), "{findings:?}");
    assert!(
        std::fs::read_dir(room.temp.path())
            .unwrap()
            .flatten()
            .all(|e| !e.file_name().to_string_lossy().starts_with("probe"))
    );
}

/// The command lines of all processes of this machine that hold a text.
fn processes_with(text: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}

const MARK: &str = "SANDBOX_TEST_MARK";

/// The other half of `nothing_outlives_a_killed_parent`, which starts it.
#[test]
fn runs_until_it_is_killed() {
    let Ok(mark) = std::env::var(MARK) else { return };
    let script = format!(
        "trap '' TERM HUP INT; setsid sleep {mark} & (setsid sh -c 'trap \"\" TERM; sleep {mark}; sleep {mark}' &) ; sleep {mark} & wait; sleep {mark}"
    );
    let _ = Room::new().run(&script);
}

#[test]
fn nothing_outlives_a_killed_parent() {
    let mark = format!("9{}", std::process::id());
    // What the killed one leaves behind is below a folder of ours.
    let temp = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::runs_until_it_is_killed"])
        .env(MARK, &mark)
        .env("TMPDIR", temp.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let sleeping = format!("sleep\0{mark}");
    while processes_with(&sleeping) < 3 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The runner ends a test that waits for ever.
    while processes_with(&mark) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for left in std::fs::read_dir(temp.path()).unwrap().flatten() {
        file::remove_tree(&left.path()).unwrap();
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_file_that_gets_its_name_later_keeps_its_owner() {
    let mut room = Room::new();
    // open with O_TMPFILE, fchown, link; a removed file that is changed is nobody's.
    let script = r#"cd /; mkdir -p d; perl -e '
        my $fd = syscall(2, my $d = "/d", 0x410002, 0644); die "open: $!" if $fd < 0;
        syscall(93, $fd, 41, 42) == 0 or die "fchown: $!";
        syscall(265, -100, my $p = "/proc/self/fd/$fd", -100, my $n = "/d/named", 0x400) == 0 or die "link: $!";
        open(my $f, ">", "/d/gone"); unlink "/d/gone"; syscall(93, fileno($f), 43, 44) == 0 or die "fchown: $!";
        open(my $g, ">", "/d/other");'"#;
    let (_, outcome) = room.ok(script);
    assert_eq!(room.owner(&outcome, "d/named"), (Some(41), Some(42)));
    assert_eq!(room.owner(&outcome, "d/other"), (None, None));
}

#[test]
fn owners_are_recorded_in_namespaces_of_a_rules_own() {
    let mut room = Room::new();
    let (_, outcome) = room.ok("cd /; echo > f; mkdir d; echo > d/g; unshare -Urm sh -c 'chown 51:52 f; mount --bind d var; ! chown 53:54 var/g 2>/dev/null'");
    assert_eq!(room.owner(&outcome, "f"), (Some(51), Some(52)));
    assert_eq!(room.owner(&outcome, "d/g"), (None, None), "an error, not a loss");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_that_a_build_has_no_business_with_are_refused() {
    let (eperm, enosys, eafnosupport) = (libc::EPERM, libc::ENOSYS, libc::EAFNOSUPPORT);
    let calls = [
        ("keyctl", "250, 0, -3, 0", eperm),
        ("add_key", "248, 0, 0, 0, 0, 0", eperm),
        ("request_key", "249, 0, 0, 0, 0", eperm),
        ("bpf", "321, 0, 0, 0", eperm),
        ("perf_event_open", "298, 0, 0, 0, 0, 0", eperm),
        ("kexec_load", "246, 0, 0, 0, 0", eperm),
        ("kexec_file_load", "320, 0, 0, 0, 0, 0", eperm),
        ("init_module", "175, 0, 0, 0", eperm),
        ("finit_module", "313, 0, 0, 0", eperm),
        ("userfaultfd", "323, 0", eperm),
        ("open_by_handle_at", "304, 0, 0, 0", eperm),
        ("syslog", "103, 3, 0, 0", eperm),
        ("reboot", "169, 0, 0, 0, 0", eperm),
        ("io_uring_setup", "425, 1, 0", enosys),
        ("ioctl TIOCSTI", "16, 0, 0x5412, 0", eperm),
        ("ioctl TIOCSTI with high bits", "16, 0, 0x700005412, 0", eperm),
        ("ioctl TIOCLINUX", "16, 0, 0x541C, 0", eperm),
        ("a vsock socket", "41, 40, 1, 0", eafnosupport),
        ("a packet socket", "41, 17, 3, 0", eafnosupport),
        ("an AF_ALG socket", "41, 38, 5, 0", eafnosupport),
        ("a raw socket", "41, 2, 3, 1", eperm),
        ("an x32 call", "0x40000000 + 39", enosys),
        ("a call that nobody knows", "4000", enosys),
        ("setns of init's namespaces", "308, syscall(2, $path = \"/proc/1/ns/mnt\", 0, 0), 0", libc::EBADF),
        ("ptrace of init", "101, 16, 1, 0, 0", eperm),
        ("process_vm_readv of init", "310, 1, 0, 0, 0, 0, 0", 0),
        ("setuid", "105, 1000", 0),
        ("setgroups", "116, 0, 0", 0),
        ("capset", "126, 0, 0", 0),
    ];
    let lines: String = calls.iter().map(|(_, call, _)| format!("p(syscall({call}));")).collect();
    let (output, _) =
        Room::new().ok(&format!("perl -e 'our $path; sub p {{ print $_[0] == -1 ? $!+0 : 0, \"\\n\" }} {lines}'"));
    for ((name, _, errno), found) in calls.iter().zip(output.lines()) {
        assert_eq!(found, errno.to_string(), "{name}");
    }
    assert_eq!(output.lines().count(), calls.len());
}

/// A tree in the lower layer: files, a link, a pipe, a folder of mode 000, deep folders.
fn with_old_tree() -> Room {
    let room = Room::new();
    let old = room.lower().join("opt/old");
    std::fs::create_dir_all(old.join("d/".repeat(300))).unwrap();
    std::fs::create_dir_all(old.join("closed")).unwrap();
    std::fs::write(old.join("closed/inside"), "inside\n").unwrap();
    std::fs::write(old.join("file"), "lower\n").unwrap();
    std::fs::hard_link(old.join("file"), old.join("name")).unwrap();
    std::os::unix::fs::symlink("file", old.join("link")).unwrap();
    nix::unistd::mkfifo(&old.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::set_permissions(old.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::set_permissions(&old, PermissionsExt::from_mode(0o2750)).unwrap();
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
    File::open(&old).unwrap().set_times(std::fs::FileTimes::new().set_accessed(at).set_modified(at)).unwrap();
    room
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_of_a_lower_layer_is_renamed() {
    use std::os::unix::fs::MetadataExt;
    let mut room = with_old_tree();
    let deep = format!("opt/new/{}", "d/".repeat(300));
    let (_, outcome) = room.ok(&format!(
        "cd /opt; gnu-chown 33 old/d; chown 5:6 old/link; echo > old/null; mknod old/zero c 1 5; chown -h 7:8 old/link
         mkdir old/mine; chown 9:9 old/mine; stat -c '%a %y' old > /before
         perl -e 'rename \"old\", \"/opt/new/\" or die $!'
         stat -c '%a %y' new > /after; cmp /before /after; test ! -e old; echo more >> new/file; mkdir old
         test $(stat -c %a new/closed) = 0; cat new/closed/inside; readlink new/link; test -p new/pipe; test -d /{deep}
         mv new newer; mv newer new"
    ));
    assert_eq!(names(&room.upper("opt")), ["new", "old"], "nothing else is left beside");
    assert_eq!(names(&room.upper("opt/new")), ["closed", "d", "file", "link", "mine", "name", "null", "pipe", "zero"]);
    assert_eq!(std::fs::read_to_string(room.upper("opt/new/file")).unwrap(), "lower\nmore\n");
    assert_eq!(std::fs::metadata(room.upper("opt/new")).unwrap().mode() & 0o7777, 0o2750);
    let instead_of = |path: &str| {
        let record = room.recorded(&outcome, path).and_then(|record| record.instead_of);
        record.map(|path| String::from_utf8(path).unwrap())
    };
    for path in ["opt/new", "opt/new/closed", "opt/new/d", deep.trim_end_matches('/')] {
        assert_eq!(instead_of(path).unwrap(), format!("/{}", path.replacen("new", "old", 1)));
    }
    for path in ["opt/new/mine", "opt/new/file", "opt/old"] {
        assert_eq!(instead_of(path), None, "{path}");
    }
    assert_eq!(room.owner(&outcome, "opt/new/d"), (Some(33), None));
    assert_eq!(room.owner(&outcome, "opt/new/link"), (Some(7), Some(8)));
    assert_eq!(room.owner(&outcome, "opt/new/mine"), (Some(9), Some(9)));
    assert_eq!(room.recorded(&outcome, "opt/new/zero").and_then(|record| record.device), Some((true, 1, 5)));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_rename_is_refused_as_the_kernel_refuses_it() {
    let mut room = with_old_tree();
    let calls = [
        ("onto a folder that is not empty", "rename 'old', 'full'", libc::ENOTEMPTY),
        ("into itself", "rename 'old', 'old/d/x'", libc::EINVAL),
        ("onto what it is in", "rename 'old/d', 'old'", libc::ENOTEMPTY),
        ("onto a file", "rename 'old', 'plain'", libc::ENOTDIR),
        ("a file onto it", "rename 'plain', 'old'", libc::EISDIR),
        ("nothing", "rename 'none', 'x'", libc::ENOENT),
        ("to nowhere", "rename 'old', 'none/x'", libc::ENOENT),
        ("itself by its dot", "rename 'old/.', 'x'", libc::EBUSY),
        ("to another mount", "rename 'old', '/tmp/x'", libc::EXDEV),
        ("without replacing", "at2('old', 'empty', 1)", libc::EEXIST),
        ("in exchange", "at2('old', 'full', 2)", libc::EXDEV),
        ("with flags that make no sense", "at2('old', 'x', 3)", libc::EINVAL),
        ("with a flag that nobody knows", "at2('old', 'x', 128)", libc::EINVAL),
        ("onto itself", "rename 'old', 'old'", 0),
        ("onto an empty folder", "rename 'old', 'empty'", 0),
        ("without replacing anything", "at2('full', 'x', 1)", 0),
    ];
    let lines: String = calls.iter().map(|(_, call, _)| format!("$! = 0; p({call});")).collect();
    for folder in ["full/it", "empty"] {
        std::fs::create_dir_all(room.lower().join("opt").join(folder)).unwrap();
    }
    std::fs::write(room.lower().join("opt/plain"), "").unwrap();
    let script = format!(
        "cd /opt; perl -e \"sub p {{ print \\$_[0] ? 0 : \\$!+0, qq(\\n) }}
         sub at2 {{ my (\\$a, \\$b, \\$f) = @_; syscall(316, -100, \\$a, -100, \\$b, \\$f) == 0 }} {}\"; ls -A",
        lines.replace('$', "\\$")
    );
    let (output, _) = room.ok(&script);
    for ((name, _, errno), found) in calls.iter().zip(output.lines()) {
        assert_eq!(found, errno.to_string(), "{name}");
    }
    assert_eq!(output.lines().skip(calls.len()).collect::<Vec<_>>(), ["empty", "plain", "x"]);
    assert!(names(&room.upper("opt/empty")).contains(&"closed".to_string()));
}

#[test]
fn a_rename_that_fails_half_way_leaves_everything_where_it_was() {
    let mut room = with_old_tree();
    let shared = room.temp.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    // What is mounted on can't be renamed.
    std::fs::create_dir_all(room.lower().join("opt/old/d/d/z/mounted")).unwrap();
    room.spec.mounts = vec![sandbox::Bind { host: shared, inside: "/opt/old/d/d/z/mounted".into(), read_only: false }];
    let list = "(cd /opt; find . | sort; stat -c '%n %a' old old/closed)";
    let (output, outcome) = room.ok(&format!(
        "{list} > /before; mkdir /opt/old/new; echo > /opt/old/d/d/new; chown 3:4 /opt/old/d/d/new
         perl -e 'rename \"/opt/old\", \"/opt/new\" or print $!+0'; rmdir /opt/old/new
         test $(stat -c %s /opt/old/d/d/new) = 1; mv /opt/old/d/d/new /new; {list} > /after; cmp /before /after"
    ));
    assert_eq!(output, libc::EBUSY.to_string());
    assert_eq!(room.owner(&outcome, "new"), (Some(3), Some(4)));
    assert!(!room.upper("opt/new").exists());
}

#[test]
fn without_capabilities_a_rename_needs_what_it_needs() {
    let mut room = with_old_tree();
    room.spec.no_capabilities = true;
    std::fs::create_dir_all(room.lower().join("opt/shut/folder")).unwrap();
    std::fs::set_permissions(room.lower().join("opt/shut"), PermissionsExt::from_mode(0o555)).unwrap();
    let (output, _) = room.ok(
        "cd /opt; perl -e 'rename \"shut/folder\", \"x\" or print $!+0; rename \"old\", \"new\" or die $!'; cat new/file",
    );
    assert_eq!(output, format!("{}lower\n", libc::EACCES));
}

#[test]
fn folders_are_renamed_below_a_changed_root_and_in_namespaces_of_a_rules_own() {
    let mut room = with_old_tree();
    let inner = room.lower().join("inner");
    std::fs::create_dir_all(inner.join("opt/old/x")).unwrap();
    std::fs::create_dir_all(room.lower().join("mnt")).unwrap();
    std::fs::create_dir(inner.join("bin")).unwrap();
    std::fs::copy(busybox(), inner.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("/opt", inner.join("absolute")).unwrap();
    let (output, outcome) = room.ok("chroot /inner /bin/busybox mv /absolute/old /absolute/new; ls /opt /inner/opt
         unshare -Urm sh -c 'mount -t tmpfs none /mnt; mkdir /mnt/a; mv /mnt/a /mnt/b; ls /mnt'
         cd /opt/old; perl -e 'rename \"../old\", \"/proc/self/cwd/../new\" or die $!'; ls /opt");
    assert_eq!(output, "/inner/opt:\nnew\n\n/opt:\nold\nb\nnew\n");
    let record = room.recorded(&outcome, "inner/opt/new/x").unwrap();
    assert_eq!(record.instead_of.as_deref(), Some(&b"/inner/opt/old/x"[..]));
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent_of = |number: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok())
    };
    numbers.filter(|number| parent_of(number) == Some(parent)).collect()
}

#[test]
fn a_killed_process_of_ours_ends_the_sandbox_with_an_error_and_the_next_one_runs() {
    for init in [true, false] {
        let mark = format!("8{}{}", std::process::id(), u8::from(init));
        let script = format!("setsid sleep {mark} & sleep {mark}");
        let running = std::thread::spawn(move || Room::new().run(&script).result);
        while processes_with(&format!("sleep\0{mark}")) < 2 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let nursery = children(std::process::id());
        let victims = if init { nursery.iter().flat_map(|n| children(*n as u32)).collect() } else { nursery };
        assert!(!victims.is_empty());
        for victim in victims {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        let error = running.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("init died"), "{error}");
        assert_eq!(processes_with(&mark), 0, "dead when run returns");
        Room::new().ok("true");
    }
}
