//! `tapeout shell`: where a rule runs, what it left, and finished images, with and without a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::common::{User, Workspace, have, places};

const BUILD: &str = r#"
rule("below", deps = ["//base:build"], run = "mkdir /below; echo made > /below/it")
rule("build", deps = ["//base:build", ":below"], sources = ["source.txt"], env = {"FLAVOUR": "plain"}, run = "true")
rule("own/build", deps = ["//base:build"], user = "1234:1235", run = "true")
rule("bad/build", deps = ["//base:build"], sources = ["source.txt"], run = "mkdir /left; cp source.txt /left/it; rm /etc/group; exit 3")
tapeout("tapeout", deps = [":below"], include = ["/below/*"])
tapeout("busy/tapeout", deps = [":below"], paths = ["/bin/busybox"])
image("web", deps = [":tapeout"])
image("busy", deps = [":busy/tapeout"], env = {"IN": "image"}, user = "33:33", working_dir = "/bin")
"#;

fn workspace() -> Option<Workspace> {
    if !have(&["busybox"]) {
        return None;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD).file("app/source.txt", "the source\n");
    Some(workspace)
}

fn inside(workspace: &Workspace, label: &str, script: &str) -> crate::common::Outcome {
    workspace.run_words(&["shell", label, "--", "/bin/sh", "-c", script])
}

#[test]
fn a_command_runs_where_the_rule_does_and_what_it_changes_is_thrown_away() {
    let Some(workspace) = workspace() else { return };
    let script = "pwd; cat source.txt /below/it; echo $FLAVOUR; id -u; echo new > /below/it; echo more > /more; exit 9";
    let told = inside(&workspace, "//app:build", script).failure(9);
    assert_eq!(told.stdout, "/workspace/app\nthe source\nmade\nplain\n0\n");
    told.stderr_has("built  //app:below").stderr_has("what you change is thrown away");
    inside(&workspace, "//app:build", "cat /below/it; test ! -e /more").success().stdout_has("made");
    inside(&workspace, "//app:own/build", "id -u; id -g").success().stdout_has("1234\n1235\n");
    inside(&workspace, "//app:build", "kill -9 $$").failure(137);
    workspace.run("shell //app:tapeout").failure(2).stderr_has("runs nothing");
    // Nothing of it is a result.
    workspace.run("explain //app:build").success().stdout_has("never built");
}

#[test]
fn a_script_comes_through_a_pipe() {
    let Some(workspace) = workspace() else { return };
    let mut command = workspace.command(&places::binary(), &["shell", "//app:build"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let script = "cat source.txt; ls -l /proc/self/fd/0; test -t 0 || echo no terminal; exit 5\n";
    child.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("write");
    let done = child.wait_with_output().expect("wait");
    let text = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(5), "{text}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("the source") && text.contains("pipe:") && text.contains("no terminal"), "{text}");
}

#[test]
fn what_a_failed_rule_left_can_be_looked_at_until_it_succeeds() {
    let Some(workspace) = workspace() else { return };
    workspace.run("shell --failed //app:bad/build").failure(2).stderr_has("left nothing");
    workspace.run("build //app:bad/build").failure(1);
    let look = |script| workspace.run_words(&["shell", "--failed", "//app:bad/build", "--", "/bin/sh", "-c", script]);
    for _ in 0..2 {
        look("cat /left/it; test ! -e /etc/group; pwd; rm -r /left")
            .success()
            .stdout_has("the source\n/workspace/app\n");
    }
    workspace.file("app/build.star", BUILD.replace("exit 3", "true"));
    workspace.run("build //app:bad/build").success();
    workspace.run("shell --failed //app:bad/build").failure(2).stderr_has("has succeeded since");
}

/// Overlay and copies keep what is left in their own ways, and each reads the other's.
#[test]
fn what_a_failed_rule_left_is_the_same_however_snapshots_are_made() {
    if !have(&["busybox", "root"]) {
        return;
    }
    const RULES: &str = r#"
rule("below", deps = ["//base:build"], run = """
mkdir -p /o/d/sub /o/gone; cd /o; echo a >d/a; echo b >d/sub/b; echo x >gone/x; echo f >f; ln -s f l; echo h >h; mkdir e; echo k >e/kept
""")
rule("bad/build", deps = [":below"], run = """
cd /o; rm -r gone d f l; mkdir d; echo new >d/new; mkdir f; echo in >f/in; echo file >l; chmod 750 e; echo more >>h
echo one >one; ln one two; mkfifo pipe; ln -s one link; mkdir closed; echo c >closed/c; chmod 0 closed; rm /etc/group
mv e moved; chown 33:33 h; mkdir /usr/lib/deep; echo l >/usr/lib/deep/l; exit 3
""")
"#;
    const LOOK: &str = "cd /; find o etc usr/lib | sort | xargs stat -c '%n %F %a'; \
        find o etc usr/lib -type f | sort | xargs md5sum; readlink o/link";
    let left = |user: User, build: &str, look: &str| {
        let workspace = Workspace::tiny_of(user);
        workspace.file("app/build.star", RULES);
        workspace.run(&format!("build {build} //app:bad/build")).failure(1);
        let mut words: Vec<&str> = ["shell", "--failed"].into_iter().chain(look.split(' ')).collect();
        words.extend(["//app:bad/build", "--", "/bin/sh", "-c"]);
        let seen = |script| workspace.run_words(&[&words[..], &[script]].concat()).success().stdout;
        let first = seen(LOOK);
        // What is changed there is gone, for the shell and for the next rule.
        seen("rm -r /o; echo x >/etc/passwd");
        assert_eq!(seen(LOOK), first, "{build}, then {look}");
        workspace.file("app/build.star", RULES.replace("exit 3", "grep -q root /etc/passwd"));
        workspace.run(&format!("build {look} //app:bad/build")).success();
        first
    };
    let (overlay, copy) = ("--snapshots overlay", "--snapshots copy");
    let expected = left(User::plain(), overlay, overlay);
    for line in ["o/d/new regular file 644", "o/f directory 755", "o/closed directory 0", "o/moved/kept", "o/pipe fifo"]
    {
        assert!(expected.contains(line), "{line}: {expected}");
    }
    for line in ["o/gone", "o/d/a", "o/d/sub", "o/e", "etc/group"] {
        assert!(!expected.contains(&format!("{line} ")), "{line}: {expected}");
    }
    for (build, look) in [(copy, copy), (overlay, copy), (copy, overlay)] {
        assert_eq!(left(User::plain(), build, look), expected, "{build}, then {look}");
    }
    let chroot = "--isolation chroot";
    assert_eq!(left(User::root(), chroot, chroot), expected, "{chroot}");
}

#[test]
fn a_finished_image_is_entered_as_its_user_in_its_environment() {
    let Some(workspace) = workspace() else { return };
    workspace
        .run("shell //app:web")
        .failure(1)
        .stderr_has("has no shell")
        .stderr_has("tapeout shell //app:web -- PROGRAM");
    let told = workspace
        .run_words(&["shell", "//app:busy", "--", "/bin/busybox", "sh", "-c", "echo $IN; busybox id -u; pwd"])
        .success();
    assert_eq!(told.stdout, "image\n33\n/bin\n");
    assert!(!workspace.output("app").exists(), "it only looks");
}

#[test]
fn a_builder_without_a_shell_is_told() {
    let Some(workspace) = workspace() else { return };
    std::fs::create_dir(workspace.path("bare")).expect("mkdir");
    std::fs::create_dir(workspace.path("bare/etc")).expect("mkdir");
    workspace.file("bare/etc/passwd", "root:x:0:0:::\n");
    workspace.file("tapeout.toml", "[builder]\ntag = \"bare\"\nfrom = \"dir:bare\"\n");
    workspace.file("app/build.star", "rule(\"build\", deps = [\"//base:build\"], run = \"true\")");
    workspace.run("shell //app:build").failure(1).stderr_has("//app:build has no shell");
}

/// A person at a terminal.
struct Person {
    keyboard: File,
    _terminal: OwnedFd,
    child: Child,
    seen: String,
}

impl Person {
    fn types(workspace: &Workspace, arguments: &[&str]) -> Self {
        let size = nix::pty::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(&size, None).expect("openpty");
        let side = || Stdio::from(pair.slave.try_clone().expect("dup"));
        let mut command: Command = workspace.command(&places::binary(), arguments);
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("spawn");
        Self { keyboard: File::from(pair.master), _terminal: pair.slave, child, seen: String::new() }
    }

    fn key(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("write");
    }

    /// Reads until this is seen, and forgets what came before it.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < until, "{text:?} is not in {:?}", self.seen);
            let mut fds = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u16)).expect("poll") > 0 {
                let mut bytes = [0; 4096];
                let n = self.keyboard.read(&mut bytes).expect("read");
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        }
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.keyboard).expect("tcgetattr").local_flags.contains(LocalFlags::ECHO)
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().expect("wait").code()
    }
}

#[test]
fn a_program_that_is_not_there_is_named_without_a_number() {
    let Some(workspace) = workspace() else { return };
    workspace.run("shell //app:build -- nope").failure(1).stderr_has("error: nope can't be executed");
    workspace.file(
        "many/build.star",
        "rule('two', deps = ['//base:build'], run = ['true', ['nope']])\nrule('one', deps = ['//base:build'], run = ['nope'])\n",
    );
    workspace.run("build //many:two").failure(1).stderr_has("step 2: nope can't");
    workspace.run("build //many:one").failure(1).stderr_has("//many:one: nope can't");
}

/// What is typed doesn't hold the words that it prints when it is on its way.
const AT_WORK: &str = "sh -c 'echo at\" \"work; exec sleep 1000'\n";

#[test]
fn at_a_terminal_there_is_job_control_on_a_terminal_of_its_own() {
    let Some(workspace) = workspace() else { return };
    let mut person = Person::types(&workspace, &["shell", "//app:build"]);
    person.sees("/workspace/app # ");
    assert!(!person.echoes(), "keys are passed on");
    person.key("tty; stty size\n");
    person.sees("/dev/pts/0");
    person.sees("33 101");
    person.key(AT_WORK);
    person.sees("at work");
    person.key("\x03");
    person.key("echo code $?\n");
    person.sees("code 130");
    person.key(AT_WORK);
    person.sees("at work");
    person.key("\x1a");
    person.sees("Stopped");
    // A shell that still knows of a stopped job refuses to exit, so it is waited for.
    person.key("kill -9 %1; fg %1; cat /proc/1/fd/0\n");
    person.sees("ermission denied");
    person.key("exit 6\n");
    assert_eq!(person.code(), Some(6));
    assert!(person.echoes(), "the terminal is as it was");
}

#[test]
fn whoever_is_ended_gives_the_terminal_back() {
    let Some(workspace) = workspace() else { return };
    let mut person = Person::types(&workspace, &["shell", "//app:build"]);
    person.sees("/workspace/app # ");
    assert!(!person.echoes());
    kill(Pid::from_raw(person.child.id().cast_signed()), Signal::SIGTERM).expect("kill");
    assert_eq!(person.code(), None, "a signal ended it");
    assert!(person.echoes(), "the terminal is as it was");
}
