//! Nothing of the host is visible inside: not the home, not the environment, not a process, not a network
//! route, not the path of our own binary.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use crate::common::image::Image;
use crate::common::{Layout, Workspace, have, places};

const BUILD: &str = r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /seen
cat /proc/self/environ | tr '\\0' '\\n' >/seen/environ
tr '\\0' '\\n' </proc/1/environ >/seen/environ-of-init 2>/dev/null || true
ls /proc | grep '^[0-9]' >/seen/processes
for process in $(cat /seen/processes); do tr '\\0' ' ' </proc/$process/cmdline 2>/dev/null; done >/seen/commands || true
cat /proc/net/route >/seen/route
cat /proc/net/ipv6_route >/seen/route6 || true
cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' >/seen/interfaces
cat /proc/net/unix >/seen/sockets
cat /proc/self/mountinfo >/seen/mounts
cat /proc/self/status >/seen/status
cat /proc/self/cgroup >/seen/cgroup || true
cat /proc/1/maps >/seen/maps-of-init 2>/dev/null || true
(readlink /proc/1/exe; readlink /proc/1/cwd; readlink /proc/1/root; ls -l /proc/1/fd) >/seen/links-of-init 2>/dev/null || true
(readlink /proc/self/exe; readlink /proc/self/cwd; readlink /proc/self/root) >/seen/links
ls -l /proc/self/fd >/seen/descriptors
ls -A / >/seen/top
ls -A /dev >/seen/devices
ls -A /sys >/seen/sys
ls -A /run /tmp /tmp/home >/seen/scratch
hostname >/seen/hostname
id >/seen/id
umask >/seen/umask
find / -xdev -name '*of-the-hos[t]*' >/seen/marker 2>/dev/null || true
(echo hello | nc -w 1 127.0.0.1 PORT || true) >/seen/tcp 2>&1
""")
tapeout("tapeout", deps = [":build"], include = ["/seen/**"], libraries = False)
image("image", deps = [":tapeout"])
"#;

fn look() -> Option<(Workspace, Image)> {
    if !have(&["busybox"]) {
        return None;
    }
    let workspace = Workspace::tiny().env("SECRET_OF_THE_HOST", "do-not-tell");
    let marker = workspace.home().join("marker-of-the-host");
    std::fs::write(&marker, "secret").expect("write");
    workspace.user.owns(&marker);
    // Something listens on the host, as a service or a debugger would.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("local_addr").port();
    let _socket = UnixListener::bind(workspace.everything().join("marker-of-the-host.sock")).expect("bind");
    workspace.file("app/build.star", BUILD.replace("PORT", &port.to_string()));
    workspace.run("build //app:image/build_image").success();
    listener.set_nonblocking(true).expect("nonblocking");
    assert!(listener.accept().is_err(), "a rule reached a port of the host");
    let image = Layout::open(&workspace.output("app/image/build_image")).only();
    Some((workspace, image))
}

fn lines(image: &Image, name: &str) -> BTreeSet<String> {
    image.text(&format!("seen/{name}")).lines().map(str::to_owned).collect()
}

#[test]
fn the_environment_is_the_fixed_one() {
    let Some((_workspace, image)) = look() else { return };
    let fixed = [
        "HOME=/tmp/home",
        "LANG=C.UTF-8",
        "TZ=UTC",
        "SOURCE_DATE_EPOCH=1767225600",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONHASHSEED=0",
    ];
    let seen = lines(&image, "environ");
    for variable in fixed {
        assert!(seen.contains(variable), "{variable} is missing in {seen:#?}");
    }
    // What the shell itself adds is no one's secret.
    for variable in &seen {
        let name = variable.split('=').next().unwrap_or_default();
        let known =
            fixed.contains(&variable.as_str()) || ["PATH", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", ""].contains(&name);
        assert!(known, "{variable} reached the rule");
    }
    assert_eq!(image.text("seen/umask").trim().trim_start_matches('0'), "22");
    assert!(image.text("seen/id").starts_with("uid=0(root) gid=0(root)"), "{}", image.text("seen/id"));
}

#[test]
fn no_path_of_the_host_is_seen_anywhere() {
    let Some((workspace, image)) = look() else { return };
    let host = [
        workspace.everything().display().to_string(),
        places::base().display().to_string(),
        places::binary().display().to_string(),
        "marker-of-the-host".to_owned(),
        "do-not-tell".to_owned(),
    ];
    for (path, file) in image.files() {
        let content = String::from_utf8_lossy(&file.content).into_owned();
        for secret in &host {
            assert!(!content.contains(secret), "{} shows {secret}:\n{content}", String::from_utf8_lossy(&path));
        }
    }
    assert_eq!(image.text("seen/marker"), "");
}

#[test]
fn no_process_and_no_socket_of_the_host_is_seen() {
    let Some((_workspace, image)) = look() else { return };
    let processes = lines(&image, "processes");
    assert!(processes.contains("1") && processes.len() < 10, "{processes:?}");
    for of_the_host in ["cargo", "nextest", "outside-", "systemd"] {
        assert!(!image.text("seen/commands").contains(of_the_host), "{}", image.text("seen/commands"));
    }
    assert_eq!(lines(&image, "sockets").len(), 1, "a header alone: {:?}", lines(&image, "sockets"));
}

#[test]
fn there_is_no_network() {
    let Some((_workspace, image)) = look() else { return };
    assert_eq!(lines(&image, "route").len(), 1, "a header alone: {}", image.text("seen/route"));
    let outside: Vec<_> = lines(&image, "route6").into_iter().filter(|line| !line.ends_with(" lo")).collect();
    assert!(outside.is_empty(), "{outside:?}");
    let interfaces = lines(&image, "interfaces");
    assert!(interfaces.iter().all(|name| name == "lo"), "{interfaces:?}");
}

/// A service of the host that answers each request with "here", for as long as the test runs.
fn service() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("local_addr").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"here");
        }
    });
    port
}

#[test]
fn the_network_is_the_hosts_where_the_command_line_allows_it_by_name() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file(
        "app/build.star",
        r#"
rule("get", deps = ["//base:build"], network = True, run = """
mkdir /got
echo hello | nc -w 5 127.0.0.1 PORT >/got/answer
cp /etc/resolv.conf /got/resolver
""")
rule("without", deps = ["//base:build"], run = "mkdir /got && cp /etc/resolv.conf /got/without")
tapeout("tapeout", deps = [":get", ":without"], include = ["/got/**"], libraries = False)
tapeout("host/tapeout", deps = [":get"], include = ["/etc/**"], libraries = False)
image("image", deps = [":tapeout"])
"#
        .replace("PORT", &service().to_string()),
    );
    workspace.run("list //app:get").success().stdout_has("not hermetic");
    workspace.run("build --dry-run //app:image").success().stdout_has("not hermetic");
    workspace.run("build //app:image").failure(2).stderr_has("--allow-network //app:get");
    workspace.run("build --allow-network //app:without //app:image").failure(2);
    workspace
        .run("build --offline --allow-network //app:get //app:image")
        .failure(2)
        .stderr_has("--offline forbids it");
    let built = workspace.run("build --allow-network //app:get //app:image").success();
    built.stderr_has("not hermetic");
    let image = Layout::open(&workspace.output("app/image/build_image")).only();
    assert_eq!(image.text("got/answer"), "here");
    assert_eq!(image.text("got/resolver"), std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    assert_eq!(image.text("got/without"), "");
    // What the rule was shown of the host is in no changeset.
    let leak = workspace.run("build --allow-network //app:get //app:host/tapeout").failure(2);
    leak.stderr_has("\"/etc/**\" matches nothing");
    // What came of it stays, and needs no leave again.
    workspace.run("build //app:image").success();
}

#[test]
fn only_the_files_of_the_builder_and_a_minimal_dev_are_there() {
    let Some((_workspace, image)) = look() else { return };
    let expected = ["bin", "dev", "etc", "proc", "root", "run", "seen", "sys", "tmp", "usr", "var", "workspace"];
    assert_eq!(lines(&image, "top"), expected.map(str::to_owned).into());
    let allowed = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "urandom", "zero",
    ];
    for device in lines(&image, "devices") {
        assert!(allowed.contains(&device.as_str()), "/dev/{device}");
    }
    for needed in ["null", "zero", "full", "random", "urandom", "tty"] {
        assert!(lines(&image, "devices").contains(needed), "/dev/{needed} is missing");
    }
    assert_eq!(image.text("seen/sys"), "");
}

#[test]
fn a_rule_has_three_descriptors_no_groups_and_no_inherited_capability() {
    let Some((_workspace, image)) = look() else { return };
    let open: Vec<_> = lines(&image, "descriptors").into_iter().filter(|line| line.contains("->")).collect();
    // The fourth is the folder that ls itself reads.
    assert!(open.len() <= 4, "{open:#?}");
    let status = image.text("seen/status");
    let value =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("missing").trim().to_owned();
    assert_eq!(value("CapInh:").trim_start_matches('0'), "");
    assert_eq!(value("CapAmb:").trim_start_matches('0'), "");
    assert_eq!(value("Groups:").trim_start_matches('0').trim(), "", "supplementary groups: {}", value("Groups:"));
    assert_eq!(value("NoNewPrivs:"), "1");
}
