//! Other people's tools read, unpack and run every image of the examples, and podman plays the pod.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::containers::Containers;
use crate::common::registry::Registry;
use crate::common::{Layout, Workspace, examples, have};

/// `DIR` and `TAG`, as skopeo, umoci and buildah want them.
fn reference(layout: &Path) -> (String, String) {
    let tags = Layout::open(layout).tags();
    assert_eq!(tags.len(), 1, "umoci finds an image by its tag alone");
    (layout.display().to_string(), tags[0].clone())
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("'{word}' ")).collect()
}

/// An image on its way through the tools.
struct Traveller {
    /// A word without a slash.
    name: String,
    layout: PathBuf,
    command: &'static [&'static str],
    prints: &'static str,
}

/// Pushed by us; copied by skopeo; pulled, run, and pushed by podman; pulled, run and pushed by buildah; unpacked by
/// umoci and run by crun. Each gives back the digest or the diff IDs that it was given.
fn through_every_tool(place: &Workspace, compression: &str, travellers: &[Traveller]) {
    let registry = Registry::start(place.everything(), false);
    let host = registry.reference("");
    let host = host.trim_start_matches("docker://").trim_end_matches('/');
    let containers = Containers::new();
    let skopeo = |arguments: &[&str]| place.tool("skopeo", &[&["--insecure-policy"][..], arguments].concat());
    let (mut podman, mut ours) = (String::new(), vec![]);
    for Traveller { name, layout, command, prints } in travellers {
        holds_the_schemas(layout);
        let (folder, tag) = reference(layout);
        let image = Layout::open(layout).only();
        let (from, there) = (format!("oci:{folder}:{tag}"), format!("docker://{host}/{name}"));
        place.run(&format!("push {from} {there}:one")).success();

        // To a file, and from the registry: the very same image.
        let (file, back) = (place.path(&format!("{name}.tar")), place.path(name));
        let (archive, copied) =
            (format!("oci-archive:{}:{tag}", file.display()), format!("oci:{}:{tag}", back.display()));
        skopeo(&["copy", "--preserve-digests", &from, &archive]).success();
        for source in [archive.as_str(), &format!("{there}:one")] {
            skopeo(&["copy", "--preserve-digests", "--src-tls-verify=false", source, &copied]).success();
            assert_eq!(Layout::open(&back).only().digest, image.digest, "{source} is another image");
            std::fs::remove_dir_all(&back).expect("remove_dir_all");
        }
        std::fs::remove_file(&file).expect("remove_file");

        // umoci reads no zstd; podman's runtime is crun, too.
        if compression != "zstd" {
            containers.crun(&folder, &tag, command).success().says(prints);
        }
        let (at, command) = (format!("{host}/{name}"), quoted(command));
        podman += &format!(
            "echo '{name} in podman'
            podman pull -q --tls-verify=false {at}:one >/dev/null
            # Not from the terminal: podman 4.3 now and then loses what a short command prints.
            container=$(podman run -d --log-driver k8s-file --runtime crun --cgroups=disabled --network=none --entrypoint '[]' {at}:one {command})
            podman wait $container >/dev/null
            podman logs $container 2>&1
            podman rm $container >/dev/null
            podman push -q --tls-verify=false {at}:one docker://{at}:podman >/dev/null
            echo '{name} in buildah'
            container=$(buildah from {from})
            # buildah 1.28 now and then loses what a short command prints.
            for try in 1 2 3 4 5; do
                printed=$(buildah run --isolation chroot $container -- {command} 2>&1)
                [ -z \"$printed\" ] || break
            done
            echo \"$printed\"
            buildah push -q --tls-verify=false $(buildah inspect --format '{{{{.FromImageID}}}}' $container) docker://{at}:buildah
            buildah rm $container >/dev/null
            podman rmi -fa >/dev/null\n"
        );
        ours.push((at, image.config["rootfs"]["diff_ids"].clone()));
    }
    let said = containers.podman(&podman).success();
    for (traveller, (at, diff_ids)) in travellers.iter().zip(ours) {
        for tool in ["podman", "buildah"] {
            let begins = format!("{} in {tool}\n", traveller.name);
            let (_, rest) = said.stdout.split_once(&begins).unwrap_or_else(|| panic!("no {begins:?} {said}"));
            let answer = rest.split(" in ").next().unwrap_or_default();
            assert!(answer.contains(traveller.prints), "{begins}{answer:?}{said}");
            let config = skopeo(&["inspect", "--tls-verify=false", "--config", &format!("docker://{at}:{tool}")]);
            assert_eq!(config.success().json()["rootfs"]["diff_ids"], diff_ids, "{at} from {tool}");
        }
    }
}

const TOOLS: [&str; 9] =
    ["root", "docker-registry", "skopeo", "umoci", "podman", "buildah", "crun", "jq", "/usr/bin/jsonschema"];

/// The images of one example workspace, in each compression.
fn examples_through_every_tool(workspace: &str, needs: &[&str]) {
    if !have(&TOOLS) || !have(needs) {
        return;
    }
    let place = Workspace::tiny();
    for compression in ["zstd", "gzip", "none"] {
        let travellers: Vec<_> = examples::of(workspace)
            .map(|example| Traveller {
                name: format!("{}-{compression}", example.package.replace('/', "-")),
                layout: example.layout(compression),
                command: example.command,
                prints: example.prints,
            })
            .collect();
        through_every_tool(&place, compression, &travellers);
    }
}

#[test]
fn the_examples_go_through_podman_and_every_other_tool_in_each_compression() {
    examples_through_every_tool("", &["busybox"]);
}

#[test]
fn the_seven_programs_go_through_podman_and_every_other_tool_in_each_compression() {
    examples_through_every_tool("programs", &["busybox"]);
}

#[test]
fn the_languages_go_through_podman_and_every_other_tool_in_each_compression() {
    examples_through_every_tool("languages", &["busybox", "registries"]);
}

fn redis(compression: &str) -> PathBuf {
    examples::output("", compression).join("redis/redis/build_image")
}

#[test]
fn redis_answers_ping_under_crun_and_with_podman() {
    if !have(&["root", "umoci", "crun", "podman", "jq"]) {
        return;
    }
    let [zstd, gzip] = ["zstd", "gzip"].map(redis);
    let containers = Containers::new();
    let ping = "for try in $(seq 100); do EXEC /usr/bin/redis-cli ping && break; sleep 0.1; done";

    let (folder, tag) = reference(&zstd);
    containers
        .podman(&format!(
            "podman run --detach --name redis --cgroups=disabled --network=none --read-only oci:{folder}:{tag}
             {}
             podman rm -f -t 0 redis",
            ping.replace("EXEC", "podman exec redis")
        ))
        .success()
        .stdout_has("PONG");

    let (folder, tag) = reference(&gzip);
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
    let image = Layout::open(&redis("zstd")).only();
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
    let bundle = examples::output("", "zstd").join("shop/shop/build_pod");
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
        # It counts a visit when redis has answered, and not before.
        for try in $(seq 600); do get /visits 2>/dev/null && break; sleep 0.1; done
        get /visits; get /
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

/// Those of the images are looked at on their way through the tools.
#[test]
fn the_schemas_of_the_specification_hold_the_layout_of_a_pod() {
    // The package python3-jsonschema has this program.
    if !have(&["/usr/bin/jsonschema", "busybox"]) {
        return;
    }
    for compression in ["zstd", "gzip"] {
        holds_the_schemas(&examples::output("", compression).join("shop/shop/build_pod/images"));
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

/// An image that says all that an image can, and both kinds of archives.
#[test]
fn a_tiny_image_goes_through_podman_and_every_other_tool_in_each_compression() {
    if !have(&TOOLS) || !have(&["busybox"]) {
        return;
    }
    let place = Workspace::tiny();
    place.file("app/build.star", TINY);
    place.run("build //app:zstd/build_image //app:gzip/build_image //app:none/build_image").success();
    for compression in ["zstd", "gzip", "none"] {
        let layout = place.output(&format!("app/{compression}/build_image"));
        let command = &["/opt/busybox", "cat", "/opt/again"];
        let tiny = Traveller { name: compression.into(), layout, command, prints: "hello" };
        through_every_tool(&place, compression, &[tiny]);
        for format in ["oci-archive", "docker-archive"] {
            let file = place.path(&format!("{compression}.{format}")).display().to_string();
            place.run(&format!("export //app:{compression} --format {format} -o {file}")).success();
            Containers::new()
                .podman(&format!("podman load -q -i {file}; podman rmi -fa >/dev/null"))
                .success()
                .stdout_has(&format!("Loaded image: docker.io/library/{compression}:v1"));
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
