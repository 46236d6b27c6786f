//! Images into a registry, Debian's docker-registry: whole, once, over a bad line, and with a password.

use std::os::unix::fs::PermissionsExt;

use crate::common::registry::{Fate, PASSWORD, Proxy, Registry, USER};
use crate::common::{Layout, Workspace, have};

const BUILD: &str = r#"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt && echo one >/opt/one && seq 3000000 >/opt/many")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("image", deps = [":tapeout"], compression = "none")
image("small", deps = [":tapeout"], exclude = ["/opt/many"], version = "1.2")
"#;

fn built() -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD);
    workspace.run("build //app:image/build_image //app:small/build_image").success();
    workspace
}

fn skopeo(workspace: &Workspace, from: &str, to: &str) {
    let arguments = ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", from, to];
    workspace.tool("skopeo", &arguments).success();
}

fn digest(workspace: &Workspace, image: &str) -> String {
    Layout::open(&workspace.output(&format!("app/{image}/build_image"))).only().digest
}

#[test]
fn what_is_pushed_is_pulled_by_others_and_sent_once() {
    if !have(&["busybox", "docker-registry", "skopeo"]) {
        return;
    }
    let workspace = built();
    let registry = Registry::start(workspace.everything(), false);
    let (to, other) = (registry.reference("team/small"), registry.reference("other"));
    let expected = digest(&workspace, "small");
    workspace.run(&format!("push //app:small {to}")).success().stdout_has(&expected);
    workspace.run(&format!("image cat {to}:1.2 /opt/one")).success().stdout_has("one");
    // The tag is the image's version.
    skopeo(&workspace, &format!("{to}:1.2"), &format!("oci:{}:x", workspace.path("back").display()));
    assert_eq!(Layout::open(&workspace.path("back")).only().digest, expected);

    let again = workspace.run(&format!("push --json //app:small {to}")).success().json();
    assert_eq!((again["sent"].as_u64(), again["bytes"].as_u64()), (Some(0), Some(0)));
    let mounted = workspace.run(&format!("push --json //app:small {other}:v")).success().json();
    assert_eq!((mounted["bytes"].as_u64(), mounted["mounted"].as_u64()), (Some(0), Some(3)), "{mounted}");
    skopeo(&workspace, &format!("{other}:v"), &format!("oci:{}:x", workspace.path("mounted").display()));
    assert_eq!(Layout::open(&workspace.path("mounted")).only().digest, expected);
}

#[test]
fn a_registry_that_refuses_to_mount_is_sent_the_blobs() {
    if !have(&["busybox", "docker-registry"]) {
        return;
    }
    let workspace = built();
    let registry = Registry::start(workspace.everything(), false);
    let proxy =
        Proxy::start(registry.port, |head, _| match head.lines().next().unwrap_or_default().contains("?mount=") {
            true => Fate::Answered("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()),
            false => Fate::Passed,
        });
    workspace.run(&format!("push //app:small {}", proxy.reference("one:1"))).success();
    let pushed = workspace.run(&format!("push --json //app:small {}", proxy.reference("other:1"))).success().json();
    assert!(proxy.asked().iter().any(|head| head.contains("?mount=")));
    assert_eq!((pushed["mounted"].as_u64(), pushed["sent"].as_u64()), (Some(0), Some(3)), "{pushed}");
}

#[test]
fn an_upload_goes_on_where_it_broke() {
    if !have(&["busybox", "docker-registry", "skopeo"]) {
        return;
    }
    let workspace = built();
    let registry = Registry::start(workspace.everything(), false);
    let second = |head: &str| head.starts_with("PATCH ") && head.contains("ontent-range: 16777216-");
    let broken = std::sync::atomic::AtomicBool::new(false);
    let proxy = Proxy::start(registry.port, move |head, _| {
        let lower = head.replace("Content-Range", "content-range");
        match second(&lower) && !broken.swap(true, std::sync::atomic::Ordering::Relaxed) {
            true => Fate::Broken(1_000_000),
            false => Fate::Passed,
        }
    });
    workspace.run(&format!("push //app:image {}", proxy.reference("image:1"))).success();
    let asked = proxy.asked();
    let pieces: Vec<_> = asked
        .iter()
        .filter(|head| head.starts_with("PATCH "))
        .filter_map(|head| head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-range:")))
        .filter_map(|line| line.split_once(':')?.1.trim().split_once('-')?.0.parse::<u64>().ok())
        .filter(|from| *from > 0)
        .collect();
    assert!(pieces.len() >= 2 && pieces.iter().all(|from| *from >= 16 << 20), "sent again from the start: {pieces:?}");
    // skopeo compresses a plain layer, which stays what it is inside.
    skopeo(&workspace, &registry.reference("image:1"), &format!("oci:{}:x", workspace.path("back").display()));
    let ours = Layout::open(&workspace.output("app/image/build_image")).only();
    assert_eq!(Layout::open(&workspace.path("back")).only().config["rootfs"], ours.config["rootfs"]);
}

#[test]
fn a_busy_registry_is_asked_again_and_a_broken_one_is_told() {
    if !have(&["busybox", "docker-registry"]) {
        return;
    }
    let workspace = built();
    let registry = Registry::start(workspace.everything(), false);
    let answer =
        |status: &str| format!("HTTP/1.1 {status}\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let (busy, down) = (answer("429 Too Many Requests"), answer("503 Service Unavailable"));
    let always = down.clone();
    // Everything that is asked for works the third time.
    let times = std::sync::Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let proxy = Proxy::start(registry.port, move |head, _| {
        // An upload's address has another query each time.
        let what = head.lines().next().unwrap_or_default().split('?').next().unwrap_or_default().to_string();
        let mut times = times.lock().expect("lock");
        let n = times.entry(what).or_default();
        *n += 1;
        match *n {
            1 => Fate::Answered(busy.clone()),
            2 => Fate::Answered(down.clone()),
            _ => Fate::Passed,
        }
    });
    workspace.run(&format!("push //app:small {}", proxy.reference("small:1"))).success();

    let dead = Proxy::start(registry.port, move |_, _| Fate::Answered(always.clone()));
    workspace
        .run(&format!("push //app:small {}", dead.reference("small:1")))
        .failure(1)
        .stderr_has("503")
        .stderr_has("tried");
    assert!(dead.asked().len() < 100, "it gives up");
    workspace
        .run(&format!("push --offline //app:small {}", registry.reference("x:1")))
        .failure(1)
        .stderr_has("--offline");
}

#[test]
fn a_password_is_found_where_docker_and_podman_keep_it_and_never_shown() {
    if !have(&["busybox", "docker-registry"]) {
        return;
    }
    let mut workspace = built();
    let registry = Registry::start(workspace.everything(), true);
    let server = format!("127.0.0.1:{}", registry.port);
    let push = format!("push //app:small {}", registry.reference("small:1"));
    workspace.run(&push).failure(1).stderr_has("podman login");

    let auth = |password: &str| {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
        format!(r#"{{"auths":{{"{server}":{{"auth":"{text}"}}}}}}"#)
    };
    workspace.file("auth.json", auth("wrong-password"));
    let file = workspace.path("auth.json").display().to_string();
    workspace = workspace.env("REGISTRY_AUTH_FILE", &file);
    workspace.run(&push).failure(1).stderr_has("401").says_not("wrong-password");
    workspace.file("auth.json", auth(PASSWORD));
    workspace.run(&push).success().says_not(PASSWORD);

    // A program that is asked.
    let program = workspace.everything().join("bin/docker-credential-ours");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {server}' ] || {{ echo credentials not found; exit 1; }}\necho '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    std::fs::write(&program, script).expect("write");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    workspace.file("auth.json", r#"{"credsStore":"ours"}"#);
    let again = format!("push //app:small {}", registry.reference("again:1"));
    workspace.run(&again).success().says_not(PASSWORD);
}

#[test]
fn a_builder_comes_from_a_registry_by_digest() {
    if !have(&["busybox", "docker-registry"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let whole = format!("{BUILD}\nimage(\"whole\", tapeouts = ALL)\n");
    workspace.file("app/build.star", &whole);
    workspace.run("build //app:whole/build_image //app:small/build_image").success();
    let registry = Registry::start(workspace.everything(), false);
    let reference = registry.reference("builders/tiny");
    workspace.run(&format!("push //app:whole {reference}:1")).success();
    let (expected, whole) = (digest(&workspace, "small"), digest(&workspace, "whole"));

    let other = Workspace::tiny();
    other.file("app/build.star", BUILD);
    other.run(&format!("bootstrap mine --from {reference}:1")).failure(2).stderr_has(&format!("{reference}:1@{whole}"));
    let pinned = format!("{reference}:1@{whole}");
    other.run(&format!("--offline bootstrap mine --from {pinned}")).failure(1).stderr_has("--offline");
    other
        .file("tapeout.toml", format!("[builder]\ntag = \"mine\"\nfrom = \"{pinned}\"\n[build]\nepoch = 1767225600\n"));
    // Behind an air gap it comes out of the file, and is missed where there is none.
    other.run("fetch //app:small/build_image -o inputs.oci.tar").success();
    let gapped = Workspace::tiny();
    gapped.file("app/build.star", BUILD).file("tapeout.toml", other.read("tapeout.toml"));
    gapped
        .run("--offline build //app:small/build_image")
        .failure(1)
        .stderr_has(&format!("the builder wants image {pinned}"))
        .stderr_has("tapeout fetch //app:small/build_image -o");
    std::fs::copy(other.path("inputs.oci.tar"), gapped.path("inputs.oci.tar")).expect("copy");
    gapped.run("--offline build //app:small/build_image --inputs inputs.oci.tar").success();
    assert_eq!(digest(&gapped, "small"), expected);

    other.run("build //app:small/build_image").success();
    assert_eq!(digest(&other, "small"), expected, "the same builder, the same image");
    // It is in the store now.
    drop(registry);
    other.file("app/build.star", BUILD.replace("echo one", "echo two"));
    other.run("--offline build //app:small/build_image").success();
}

/// A registry that sends other bytes than it was asked for is found out.
#[test]
fn another_content_than_the_digest_says_is_refused() {
    if !have(&["busybox", "docker-registry"]) {
        return;
    }
    let workspace = built();
    let registry = Registry::start(workspace.everything(), false);
    workspace.run(&format!("push //app:small {}", registry.reference("small:1"))).success();
    let digest = digest(&workspace, "small");
    let lies = |what: &'static str| {
        Proxy::start(registry.port, move |head, _| {
            match head.contains(what) {
            true => Fate::Answered("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".into()),
            false => Fate::Passed,
        }
        })
    };
    for what in ["/manifests/", "/blobs/"] {
        let proxy = lies(what);
        let other = Workspace::tiny();
        let reference = format!("{}@{digest}", proxy.reference("small"));
        other.run(&format!("bootstrap mine --from {reference}")).failure(1).stderr_has("127.0.0.1");
    }
}

const BASE: &str = r#"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt/base && echo base >/opt/base/word && echo kept >/opt/base/kept && chown 33:33 /opt/base/kept")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"], paths = ["/bin/busybox", "/bin/sh"])
image("base", deps = [":tapeout"], compression = "gzip", user = "www-data")
"#;

const ON_IT: &str = r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /opt/base; echo mine >/opt/base/word
printf '#!/bin/sh\necho "$(cat /opt/base/word) $(cat /opt/base/kept)"\n' >/opt/base/tool; chmod 755 /opt/base/tool
""")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("on", base = "BASE", deps = [":tapeout"], entrypoint = ["/opt/base/tool"], check = 'test "$(/opt/base/tool)" = "mine kept"')
"#;

#[test]
fn an_image_stands_on_one_of_a_registry_which_a_file_of_inputs_carries() {
    if !have(&["busybox", "docker-registry", "skopeo"]) {
        return;
    }
    let first = Workspace::tiny();
    first.file("app/build.star", BASE);
    first.run("build //app:base").success();
    let registry = Registry::start(first.everything(), false);
    first.run(&format!("push //app:base {}", registry.reference("base:1"))).success();
    let layout = first.output("app/base/build_image");
    // As docker names things, too.
    let there = registry.reference("docker:1");
    let copy = ["copy", "--insecure-policy", "--dest-tls-verify=false", "--format", "v2s2"];
    first.tool("skopeo", &[&copy[..], &[&format!("oci:{}:latest", layout.display()), &there]].concat()).success();
    let digest_of = |name: &str| {
        let reference = registry.reference(name);
        let inspected = first.tool("skopeo", &["inspect", "--tls-verify=false", &reference]).success().json();
        format!("{}@{}", reference.trim_end_matches(":1"), inspected["Digest"].as_str().expect("a digest"))
    };
    let (ours, dockers) = (digest_of("base:1"), digest_of("docker:1"));
    let base = Layout::open(&layout).only();

    let mut built = vec![];
    for reference in [&ours, &dockers] {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", ON_IT.replace("BASE", reference));
        workspace
            .run("--offline build //app:on")
            .failure(1)
            .stderr_has(&format!("//app:on/build_image wants image {reference}"))
            .stderr_has("tapeout fetch //app:on");
        workspace.run("build //app:on").success();
        let image = Layout::open(&workspace.output("app/on/build_image")).only();
        let (mine, below) = (image.manifest["layers"].as_array(), base.manifest["layers"].as_array());
        let (mine, below) = (mine.expect("layers"), below.expect("layers"));
        assert!(mine.len() > below.len());
        for (mine, below) in mine.iter().zip(below) {
            assert_eq!((&mine["digest"], &mine["mediaType"]), (&below["digest"], &below["mediaType"]), "{reference}");
        }
        let new: Vec<_> = image.layers[below.len()..]
            .iter()
            .flatten()
            .filter(|entry| entry.kind != tar::EntryType::Directory)
            .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
            .collect();
        // Neither the shell that its script needs, nor who owns its files: the base has them.
        assert_eq!(new, ["opt/base/tool", "opt/base/word"], "{reference}");
        assert_eq!(image.file("opt/base/kept").owner(), "33:33");
        built.push((workspace, image.digest));
    }
    assert_eq!(built[0].1, built[1].1, "the same layers, whoever's manifest names them");

    // Carried: without a registry, in a store that has nothing.
    let (workspace, digest) = &built[0];
    workspace.run("fetch //app:on -o inputs.oci.tar").success();
    drop(registry);
    let there = Workspace::tiny();
    there.file("app/build.star", ON_IT.replace("BASE", &ours));
    there.file("inputs.oci.tar", std::fs::read(workspace.path("inputs.oci.tar")).expect("the file of inputs"));
    there.run("--offline build //app:on").failure(1).stderr_has("is not here");
    there.run("--offline build //app:on --inputs inputs.oci.tar").success();
    assert_eq!(&Layout::open(&there.output("app/on/build_image")).only().digest, digest);
    workspace.run("--offline image why //app:on /opt/base/kept").success().stdout_has(&ours);

    let pinned = "docker://127.0.0.1:1/base:1";
    there.file("app/build.star", ON_IT.replace("BASE", pinned));
    there.run("build //app:on").failure(2).stderr_has("is not pinned by digest").stderr_has("app/build.star:7");
}
