//! Programs that try to leave a rule's sandbox, or to make the capture of what it changed follow them out of it.
//!
//! `escapes.c` holds the attempts. Each is named after what it tries and says whether it was refused; what can only be
//! seen from outside (a process that lives on, a host file that changed) is looked at here.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Layout, User, Workspace, have, places};

const SECRET: &str = "what no rule may read: 4711-0815";

/// The attempts as a static program.
fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/escapes.c");
    let changed = fs::metadata(&source).expect("escapes.c").mtime();
    let folder = places::once(&format!("escapes-{changed}"), |folder| {
        let out = folder.join("escapes");
        let arguments = ["-static", "-pthread", "-O1", "-Wall", "-Wno-unused-result", "-o"];
        let made = Command::new("gcc").args(arguments).arg(&out).arg(&source).output().expect("gcc");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::set_permissions(&out, PermissionsExt::from_mode(0o755)).expect("chmod");
    });
    folder.join("escapes")
}

/// Processes of this machine whose command line begins so.
fn alive(name: &str) -> usize {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(name.as_bytes())))
        .count()
}

#[test]
fn every_attempt_to_leave_the_sandbox_is_refused() {
    every_attempt_is_refused("overlay");
}

#[test]
fn every_attempt_to_leave_the_sandbox_is_refused_in_a_copied_snapshot() {
    every_attempt_is_refused("copy");
}

fn every_attempt_is_refused(snapshots: &str) {
    if !have(&["gcc"]) {
        return;
    }
    let mark = format!("mark-{snapshots}-{}", std::process::id());
    let workspace = Workspace::tiny().env("SECRET_OF_THE_CALLER", &mark);
    let secret = workspace.everything().join("secret");
    fs::write(&secret, SECRET).expect("write");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o666)).expect("chmod");
    workspace.user.owns(&secret);
    let before = fs::metadata(&secret).expect("metadata");

    // What of the host could be reached if it were in reach.
    let hidden = SocketAddr::from_abstract_name(&mark).expect("a name");
    let _hidden = UnixListener::bind_addr(&hidden).expect("bind");
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = server.local_addr().expect("address").port();
    let shared = Path::new("/dev/shm").join(&mark);
    fs::write(&shared, "").expect("write");
    // Its number is higher than any that a sandbox gives.
    let mut other = workspace.command(Path::new("/bin/busybox"), &["sleep", "1000"]).spawn().expect("sleep");

    workspace.file("try/escapes", fs::read(program()).expect("read"));
    workspace.file(
        "try/build.star",
        format!(
            r#"rule("build", deps = ["//base:build"], sources = ["escapes"], run = """
cp escapes /tmp/escapes; chmod 0755 /tmp/escapes
exec /tmp/escapes '{}' '{mark}' {port} {} '{}' '{mark}'
""")
"#,
            secret.display(),
            other.id(),
            workspace.store().display(),
        ),
    );
    let built = workspace.run(&format!("build --snapshots {snapshots} //try:build"));
    let left = alive(&format!("outlives-{mark}"));
    let log = workspace.run("log //try:build").stdout;
    let _ = other.kill();
    let _ = other.wait();
    let _ = fs::remove_file(&shared);

    let escaped: Vec<&str> = log.lines().filter(|line| line.starts_with("ESCAPED ")).collect();
    // The folder that is bound as the root has a path, and the kernel shows it. docs/sandbox.md says so.
    let known: &[&str] = if snapshots == "copy" { &["ESCAPED read_host_paths_among_the_mounts"] } else { &[] };
    assert_eq!(escaped, known, "{built}");
    if known.is_empty() {
        built.success()
    } else {
        built.failure(1)
    };
    // All were tried: the list has each once, after the macro's own line.
    let attempts = include_str!("escapes.c").matches("TRY(").count() - 1;
    assert_eq!(log.lines().filter(|line| line.starts_with("refused ")).count(), attempts - known.len(), "{log}");
    assert!(attempts > 90);
    assert_eq!(left, 0, "a process outlived the build");
    let after = fs::metadata(&secret).expect("metadata");
    let told = |data: &fs::Metadata| (data.uid(), data.gid(), data.mode(), data.ctime(), data.ctime_nsec());
    assert_eq!(told(&after), told(&before), "a host file was changed");
}

/// In a changed root init has no more capabilities than the rule where the container has none that the rule loses: that it
/// can't be dumped is then all that keeps a rule out of it. And what init answers of `/proc` there tells of the rule alone.
#[test]
fn nobody_looks_into_the_init_of_a_changed_root_nor_past_the_rule_by_what_it_answers() {
    if !have(&["root", "setpriv", "gcc"]) {
        return;
    }
    const KEPT: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+setfcap,+net_bind_service,\
                        +sys_chroot";
    let prefix = ["/usr/bin/setpriv", &format!("--bounding-set={KEPT}"), "--inh-caps=-all"];
    let mark = format!("mark-chroot-{}", std::process::id());
    let workspace = Workspace::tiny_of(User::root()).env("SECRET_OF_THE_CALLER", &mark).behind(&prefix);
    let secret = workspace.everything().join("secret");
    fs::write(&secret, SECRET).expect("write");
    let mut other = workspace.command(Path::new("/bin/busybox"), &["sleep", "1000"]).spawn().expect("sleep");
    workspace.file("try/escapes", fs::read(program()).expect("read"));
    let attempts = [
        "read_a_host_file_by_its_path",
        "read_a_host_file_above_the_root",
        "read_a_host_file_through_the_root_of_init",
        "read_a_host_file_through_the_folder_of_init",
        "read_a_host_file_through_another_process",
        "open_a_descriptor_of_init",
        "take_a_descriptor_of_init",
        "trace_init",
        "read_the_memory_of_init",
        "read_the_memory_of_init_by_a_call",
        "write_the_memory_of_init_by_a_call",
        "read_where_the_memory_of_init_is",
        "read_the_environment_of_init",
        "read_the_executable_of_init",
        "enter_the_namespaces_of_init",
        "see_a_process_of_the_host",
        "read_the_memory_of_the_kernel",
        "read_the_keys_of_the_machine",
        "read_how_the_machine_was_started",
        "read_host_paths_among_the_mounts",
        "read_control_groups_of_the_host",
        "read_the_environment_of_the_host",
        "read_the_command_line_of_the_host",
        "leave_by_a_file_of_proc",
        "change_a_path_of_proc_while_init_reads_it",
    ];
    // As root in a rule, and as somebody else in a check.
    workspace.file(
        "try/build.star",
        r#"
rule("build", deps = ["//base:build"], sources = ["escapes"], run = """
cp escapes /escapes; chmod 0755 /escapes
exec /escapes ARGUMENTS
""")
tapeout("tapeout", deps = [":build"], include = ["/escapes"], paths = ["/bin/busybox", "/bin/sh"], libraries = False)
image("image", deps = [":tapeout"], user = "www-data", check = "exec /escapes ARGUMENTS")
"#
        .replace(
            "ARGUMENTS",
            &format!(
                "'{}' none 1 {} '{}' '{mark}' {}",
                secret.display(),
                other.id(),
                workspace.store().display(),
                attempts.join(" "),
            ),
        ),
    );
    let built = workspace.run("build --isolation chroot //try:image");
    let logs = ["//try:build", "//try:image"].map(|label| workspace.run(&format!("log {label}")));
    let _ = other.kill();
    let _ = other.wait();
    for log in logs {
        let refused: Vec<_> = log.stdout.lines().filter_map(|line| line.strip_prefix("refused ")).collect();
        assert_eq!(refused, attempts, "{built}{log}");
    }
    built.success();
}

const PLANTED: &str = r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /opt/t; cd /opt/t
ln -s 'FOLDER' to_a_folder_of_the_host
ln -s 'FOLDER/secret' to_a_file_of_the_host
ln -s ../../../../../../../../..'FOLDER' above_the_root
ln -s /proc/self/root'FOLDER' through_proc
ln -s /proc/self/cwd/../..'FOLDER' through_the_working_folder
rm -rf /srv; ln -s 'FOLDER' /srv
mv /usr/local /usr/local.old; ln -s 'FOLDER' /usr/local
rm /etc/group; ln -s 'FOLDER/secret' /etc/group
mkfifo pipe
mkdir closed; echo x >closed/x; chmod 0 closed
echo x >.wh.opq 2>/dev/null || true
echo x >.wh..wh..opq 2>/dev/null || true
rm -f .wh.*
name=$(printf 'line\\n \\033]0;title\\007 end'); echo x >"$name"
echo linked >one; for n in $(seq 2000); do ln one many-$n; done
mkdir deep; cd deep; for n in $(seq 400); do mkdir d; cd d; done; echo x >bottom
rmdir /tmp 2>/dev/null || mv /tmp /tmp.old 2>/dev/null || true
rmdir /proc 2>/dev/null || mv /run /elsewhere 2>/dev/null || true
""")

# A rule that stands on that, and a rule that writes where it leads.
rule("reader", deps = [":build"], run = """
for file in /opt/t/to_a_file_of_the_host /opt/t/*/secret /srv/secret /usr/local/secret /etc/group; do
    if cat "$file" 2>/dev/null; then echo "read $file"; exit 1; fi
done
for folder in /opt/t/to_a_folder_of_the_host /opt/t/above_the_root /srv /usr/local; do
    if echo x 2>/dev/null >$folder/written; then echo "wrote $folder"; exit 1; fi
done
""")
tapeout("tapeout", deps = [":reader"], include = ["/opt/t", "/srv", "/usr/local"], paths = ["/etc/group"], libraries = False)
image("image", deps = [":tapeout"])
"#;

#[test]
fn what_a_rule_leaves_behind_leads_nowhere() {
    let workspace = Workspace::tiny();
    let folder = workspace.everything().join("host");
    fs::create_dir(&folder).expect("create_dir");
    workspace.user.owns(&folder);
    fs::write(folder.join("secret"), SECRET).expect("write");
    workspace.file("plant/build.star", PLANTED.replace("FOLDER", &folder.display().to_string()));
    let built = workspace.run("build //plant:image").says_not("\u{1b}]0;").says_not(SECRET);
    let names: Vec<_> = fs::read_dir(&folder).expect("read_dir").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["secret"], "something was written to the host{built}");
    // An image whose users can't be read may be refused, with an error; nothing of the host gets into it.
    let built = built.success();
    let image = Layout::open(&workspace.output("plant/image/build_image")).only();
    for entry in image.layers.iter().flatten() {
        let holds = entry.content.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes());
        assert!(!holds, "{} holds the secret{built}", String::from_utf8_lossy(&entry.path));
    }
    let link = image.file("srv");
    assert_eq!(link.kind, tar::EntryType::Symlink, "a link stays a link");
    assert_eq!(image.file("opt/t/pipe").kind, tar::EntryType::Fifo);
    assert!(image.layers.iter().flatten().any(|entry| entry.path.ends_with(b"d/bottom")), "deep folders are kept");
}
