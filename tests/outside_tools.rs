//! Other people's tools read, unpack and run every image of the examples, and podman plays the pod.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::containers::Containers;
use crate::common::examples::{self, IMAGES};
use crate::common::registry::Registry;
use crate::common::{Layout, Outcome, Workspace, have};

/// Where an image of the examples lies.
fn layout(compression: &str, (package, name): (&str, &str)) -> PathBuf {
    examples::output(compression).join(package).join(name).join("build_image")
}

/// `DIR` and `TAG`, as skopeo, umoci and buildah want them.
fn reference(layout: &Path) -> (String, String) {
    let tags = Layout::open(layout).tags();
    assert_eq!(tags.len(), 1, "umoci finds an image by its tag alone");
    (layout.display().to_string(), tags[0].clone())
}

/// What runs in an image to show that it works, and what that prints.
fn proof(name: &str) -> (&'static [&'static str], &'static str) {
    match name {
        "hello" => (&["/usr/local/bin/hello", "you"], "Hello, you!"),
        "lua" => (&["/usr/local/bin/lua", "-e", "print(6 * 7)"], "42"),
        "redis" => (&["/usr/bin/redis-server", "--version"], "Redis server v="),
        "web" => (&["/usr/sbin/lighttpd", "-v"], "lighttpd/"),
        other => panic!("no proof for {other}"),
    }
}

#[test]
fn skopeo_inspects_every_image_and_copies_it_to_an_archive_and_back() {
    if !have(&["skopeo", "busybox"]) {
        return;
    }
    let place = Workspace::tiny();
    for compression in ["zstd", "gzip"] {
        for image in IMAGES {
            let (folder, tag) = reference(&layout(compression, image));
            let digest = Layout::open(Path::new(&folder)).only().digest;
            let inspected = place.tool("skopeo", &["inspect", &format!("oci:{folder}:{tag}")]).success().json();
            assert_eq!(inspected["Digest"].as_str(), Some(digest.as_str()));
            assert_eq!(inspected["Os"].as_str(), Some("linux"));

            let name = format!("{compression}-{}", image.1);
            let (archive, back) = (place.path(&format!("{name}.tar")), place.path(&name));
            let archive = format!("oci-archive:{}:{tag}", archive.display());
            copy(&place, &format!("oci:{folder}:{tag}"), &archive).success();
            copy(&place, &archive, &format!("oci:{}:{tag}", back.display())).success();
            assert_eq!(Layout::open(&back).only().digest, digest, "the copy of {name} is another image");
        }
    }
}

fn copy(place: &Workspace, from: &str, to: &str) -> Outcome {
    place.tool("skopeo", &["--insecure-policy", "copy", from, to])
}

#[test]
fn umoci_unpacks_every_gzip_image_as_an_ordinary_user() {
    if !have(&["umoci", "busybox"]) {
        return;
    }
    let place = Workspace::tiny();
    for image in IMAGES {
        let (folder, tag) = reference(&layout("gzip", image));
        let bundle = place.path(image.1).display().to_string();
        place.tool("umoci", &["unpack", "--rootless", "--image", &format!("{folder}:{tag}"), &bundle]).success();
        let program = proof(image.1).0[0];
        assert!(Path::new(&format!("{bundle}/rootfs{program}")).symlink_metadata().is_ok(), "{bundle} lacks {program}");
    }
}

#[test]
fn buildah_works_from_every_image() {
    if !have(&["root", "buildah"]) {
        return;
    }
    let containers = Containers::new();
    for image in IMAGES {
        let (folder, tag) = reference(&layout("zstd", image));
        let (command, output) = proof(image.1);
        containers
            .podman(&format!(
                // buildah 1.28 now and then loses what a short command prints.
                "container=$(buildah from oci:{folder}:{tag})
                 for try in 1 2 3 4 5; do
                     printed=$(buildah run --isolation chroot $container -- {})
                     [ -z \"$printed\" ] || break
                 done
                 echo \"$printed\"
                 buildah rm $container >/dev/null",
                quoted(command)
            ))
            .success()
            .stdout_has(output);
    }
}

#[test]
fn every_image_runs_under_crun() {
    if !have(&["root", "umoci", "crun", "jq"]) {
        return;
    }
    let containers = Containers::new();
    for image in IMAGES {
        let (folder, tag) = reference(&layout("gzip", image));
        let (command, output) = proof(image.1);
        containers.crun(&folder, &tag, command).success().stdout_has(output);
    }
}

#[test]
fn every_image_runs_with_podman() {
    if !have(&["root", "podman"]) {
        return;
    }
    let containers = Containers::new();
    for image in IMAGES {
        let (folder, tag) = reference(&layout("zstd", image));
        let (command, output) = proof(image.1);
        containers
            .podman(&format!(
                "podman run --rm --cgroups=disabled --network=none --entrypoint '[]' oci:{folder}:{tag} {}",
                quoted(command)
            ))
            .success()
            .stdout_has(output);
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("'{word}' ")).collect()
}

#[test]
fn redis_answers_ping_under_crun_and_with_podman() {
    if !have(&["root", "umoci", "crun", "podman", "jq"]) {
        return;
    }
    let containers = Containers::new();
    let ping = "for try in $(seq 100); do EXEC /usr/bin/redis-cli ping && break; sleep 0.1; done";

    let (folder, tag) = reference(&layout("zstd", ("redis", "redis")));
    containers
        .podman(&format!(
            "podman run --detach --name redis --cgroups=disabled --network=none --read-only oci:{folder}:{tag}
             {}
             podman rm -f -t 0 redis",
            ping.replace("EXEC", "podman exec redis")
        ))
        .success()
        .stdout_has("PONG");

    let (folder, tag) = reference(&layout("gzip", ("redis", "redis")));
    containers
        .run(&format!(
            "rm -rf redis; umoci unpack --rootless --image {folder}:{tag} redis >&2; cd redis
             jq '.process.terminal=false | .process.user={{\"uid\":0,\"gid\":0}} | del(.linux.resources)' config.json >new
             mv new config.json
             crun() {{ command crun --cgroup-manager=disabled \"$@\"; }}
             crun run --detach redis </dev/null >log 2>&1
             {}
             crun delete -f redis",
            ping.replace("EXEC", "crun exec redis")
        ))
        .success()
        .stdout_has("PONG");
}

#[test]
fn the_redis_image_is_smaller_than_15_mb() {
    let image = Layout::open(&layout("zstd", ("redis", "redis"))).only();
    let size = image.compressed_size();
    assert!(size < 15_000_000, "{size} bytes");
    let data = image.file("var/lib/redis");
    assert_eq!(image.config["config"]["User"].as_str(), Some(data.owner().as_str()), "its user owns its data");
    assert!(image.text("etc/passwd").contains(&format!("\nredis:x:{}:{}:", data.uid, data.gid)));
}

/// The bundle is used as its own README says, and nothing else.
#[test]
fn the_pod_answers_with_a_value_that_came_through_redis() {
    if !have(&["root", "podman", "curl"]) {
        return;
    }
    let bundle = examples::output("zstd").join("shop/shop/build_pod");
    let readme = std::fs::read_to_string(bundle.join("README")).expect("the bundle's README");
    // The commands are the indented lines.
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).map(str::trim).collect();
    assert!(!commands.is_empty(), "no commands in {readme}");
    let commands = commands.join("\n").replace("podman kube play", "podman kube play --network none");
    // Without a network (this machine may have none to give) podman refuses to publish a port.
    let outcome = Containers::new().podman(&format!(
        r#"cp -r '{bundle}' bundle-$$; cd bundle-$$; trap 'rm -rf ~/bundle-$$' EXIT
        sha256sum --quiet -c SHA256SUMS
        sed -i '/^ *ports:$/,/^ *protocol: TCP$/d' kube.yaml
        {commands}
        get() {{ podman unshare nsenter -t "$(podman inspect -f '{{{{.State.Pid}}}}' shop-web)" -n curl -sSf "http://127.0.0.1:8080$1"; }}
        for try in $(seq 100); do get / >/dev/null 2>&1 && break; sleep 0.1; done
        get /; get /visits; get /visits
        podman logs shop-redis >&2
        podman kube down kube.yaml; podman volume prune -f"#,
        bundle = bundle.display(),
    ));
    outcome.success().stdout_has("<h1>The shop</h1>").stdout_has("visits: 1").stdout_has("visits: 2");
}

/// The specification's own schemas, over every document of a layout.
fn holds_the_schemas(layout: &Path) {
    let read = |file: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(file).expect("a document")).expect("JSON")
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("digest").replace("sha256:", "");
        layout.join("blobs/sha256").join(digest)
    };
    let index = layout.join("index.json");
    let mut documents =
        vec![("image-layout-schema.json", layout.join("oci-layout")), ("image-index-schema.json", index)];
    for descriptor in read(&layout.join("index.json"))["manifests"].as_array().expect("manifests") {
        let manifest = blob(descriptor);
        documents.push(("config-schema.json", blob(&read(&manifest)["config"])));
        documents.push(("image-manifest-schema.json", manifest));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas/validate.py");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-W", "ignore"]).arg(script);
    for (schema, document) in documents {
        command.arg(schema).arg(document);
    }
    let told = command.output().expect("python3");
    assert!(
        told.status.success(),
        "{}{}",
        String::from_utf8_lossy(&told.stdout),
        String::from_utf8_lossy(&told.stderr)
    );
}

#[test]
fn the_schemas_of_the_specification_hold_every_document_of_every_example() {
    // The package python3-jsonschema has this program.
    if !have(&["/usr/bin/jsonschema", "busybox"]) {
        return;
    }
    for compression in ["zstd", "gzip"] {
        for image in IMAGES {
            holds_the_schemas(&layout(compression, image));
        }
        holds_the_schemas(&examples::output(compression).join("shop/shop/build_pod/images"));
    }
}

const TINY: &str = r#"
rule("build", deps = ["//base:build"], run = "mkdir -p /opt && cp /bin/busybox /opt/busybox && echo hello >/opt/hello && ln /opt/hello /opt/again && chown 33:33 /opt/hello")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
[image(
    c,
    deps = [":tapeout"],
    compression = c,
    cmd = ["/opt/busybox", "cat", "/opt/hello"],
    env = {"A": "1"},
    labels = {"l": "m"},
    ports = ["80"],
    volumes = ["/data"],
    user = "www-data",
    working_dir = "/opt",
    version = "v1",
    annotations = {"org.example.a": "b"},
) for c in ["zstd", "gzip", "none"]]
"#;

/// Every compression through every tool: what they give back has the same diff IDs.
#[test]
fn each_compression_goes_through_each_tool_and_comes_back_the_same() {
    if !have(&[
        "root",
        "busybox",
        "docker-registry",
        "skopeo",
        "umoci",
        "podman",
        "buildah",
        "crun",
        "jq",
        "/usr/bin/jsonschema",
    ]) {
        return;
    }
    let place = Workspace::tiny();
    place.file("app/build.star", TINY);
    place.run("build //app:zstd/build_image //app:gzip/build_image //app:none/build_image").success();
    let registry = Registry::start(place.everything(), false);
    let containers = Containers::new();
    for compression in ["zstd", "gzip", "none"] {
        let layout = place.output(&format!("app/{compression}/build_image"));
        holds_the_schemas(&layout);
        let ours = Layout::open(&layout).only();
        let same = |folder: &str| {
            let back = Layout::open(Path::new(folder)).only();
            assert_eq!(back.config["rootfs"]["diff_ids"], ours.config["rootfs"]["diff_ids"], "{folder}");
        };
        let (there, back) = (registry.reference(compression), place.path(&format!("back-{compression}")));
        let (from, back) = (format!("oci:{}:v1", layout.display()), back.display().to_string());
        place.run(&format!("push //app:{compression} {there}")).success();
        place
            .tool(
                "skopeo",
                &[
                    "--insecure-policy",
                    "copy",
                    "--src-tls-verify=false",
                    &format!("{there}:v1"),
                    &format!("oci:{back}:v1"),
                ],
            )
            .success();
        same(&back);

        // Pulled, run, pushed and given back by podman; run by buildah.
        let name = there.trim_start_matches("docker://");
        containers
            .podman(&format!(
                "rm -rf back-{compression}
                 podman pull -q --tls-verify=false {name}:v1 >/dev/null
                 podman run --rm --cgroups=disabled --network=none {name}:v1
                 podman push -q --tls-verify=false {name}:v1 docker://{name}:podman >/dev/null
                 podman rmi -f {name}:v1 >/dev/null
                 container=$(buildah from {from})
                 buildah run --isolation chroot $container -- /opt/busybox echo from buildah
                 buildah rm $container >/dev/null"
            ))
            .success()
            .stdout_has("hello");
        let pushed = format!("{back}-podman");
        place
            .tool(
                "skopeo",
                &[
                    "--insecure-policy",
                    "copy",
                    "--src-tls-verify=false",
                    &format!("{there}:podman"),
                    &format!("oci:{pushed}:v1"),
                ],
            )
            .success();
        same(&pushed);

        // As files.
        for format in ["oci-archive", "docker-archive"] {
            let file = place.path(&format!("{compression}.{format}")).display().to_string();
            place.run(&format!("export //app:{compression} --format {format} -o {file}")).success();
            containers
                .podman(&format!(
                    "podman load -q -i {file}; podman images -q | sort -u | xargs -r podman rmi -f >/dev/null"
                ))
                .success()
                .stdout_has("Loaded image");
        }

        // umoci reads no zstd.
        if compression != "zstd" {
            containers
                .crun(&layout.display().to_string(), "v1", &["/opt/busybox", "cat", "/opt/again"])
                .success()
                .stdout_has("hello");
        }
    }
}

/// Tests the tests: an image that umoci made runs in the same ways, so a failure above is ours.
#[test]
fn an_image_that_umoci_made_runs_under_crun_and_podman_and_buildah() {
    if !have(&["root", "busybox", "umoci", "crun", "podman", "buildah", "jq"]) {
        return;
    }
    let place = Workspace::tiny_of(crate::common::User::root());
    let root = crate::common::places::tiny_root().display().to_string();
    let layout = place.path("stand-in").display().to_string();
    place.tool("umoci", &["init", "--layout", &layout]).success();
    place.tool("umoci", &["new", "--image", &format!("{layout}:one")]).success();
    place.tool("umoci", &["insert", "--image", &format!("{layout}:one"), &root, "/"]).success();
    place.tool("chmod", &["-R", "a+rX", &layout]).success();
    assert!(Layout::open(Path::new(&layout)).only().has("bin/busybox"));

    let containers = Containers::new();
    containers.crun(&layout, "one", &["/bin/echo", "from crun"]).success().stdout_has("from crun");
    containers
        .podman(&format!(
            "podman run --rm --cgroups=disabled --network=none oci:{layout}:one /bin/echo from podman
             container=$(buildah from oci:{layout}:one)
             buildah run --isolation chroot $container -- /bin/echo from buildah
             buildah rm $container >/dev/null"
        ))
        .success()
        .stdout_has("from podman")
        .stdout_has("from buildah");
}
