//! The air gap: what is fetched on one side into one file is all that the other side needs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::image::fingerprint;
use serde_json::Value;

use crate::common::{Layout, Outcome, User, Workspace, examples, have};

/// A web server of one folder, which counts what it is asked for.
struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
    way: Arc<Mutex<Way>>,
    stop: Arc<AtomicBool>,
}

/// How it answers what is asked for; git alone is always served well.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Whole,
    /// Half of it, then the connection ends; where a range is asked for, that is given.
    HalfThenTheRest,
    /// Half of each the first time, then the whole, whatever range is asked for.
    HalfThenTheWhole,
    /// Half of it, each time.
    Half,
    /// Half of it, and nothing says that it isn't all.
    HalfAsIfWhole,
    /// Half of it, and then nothing, while the connection stands.
    Stalls,
}

impl Server {
    fn of(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let way = Arc::new(Mutex::new(Way::Whole));
        let (folder, count, stopped, ways) = (folder.to_owned(), asked.clone(), stop.clone(), way.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (folder, ways) = (folder.clone(), ways.clone());
                std::thread::spawn(move || answer(stream, &folder, &ways));
            }
        });
        Self { url, asked, way, stop }
    }

    fn answers(&self, way: Way) {
        *self.way.lock().expect("way") = way;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn answer(mut stream: TcpStream, folder: &Path, way: &Mutex<Way>) {
    let mut asked = String::new();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    let _ = reader.read_line(&mut asked);
    let (mut line, mut from) = (String::new(), None);
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        let range = line.to_lowercase();
        let range = range.strip_prefix("range: bytes=").map(str::trim);
        from = range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok()).or(from);
        line.clear();
    }
    let path = asked.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or_default().trim_start_matches('/');
    let Ok(body) = fs::read(folder.join(path)) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let way = if path.contains(".git/") { Way::Whole } else { *way.lock().expect("way") };
    let (length, half) = (body.len(), body.len() / 2);
    let whole = format!("200 OK\r\nContent-Length: {length}");
    let (head, content) = match (way, from) {
        (Way::HalfThenTheRest, Some(from)) => {
            let rest = length - from;
            let range = format!("Content-Range: bytes {from}-{}/{length}", length - 1);
            (format!("206 Partial Content\r\n{range}\r\nContent-Length: {rest}"), &body[from..])
        }
        (Way::Whole, _) | (Way::HalfThenTheWhole, Some(_)) => (whole, &body[..]),
        (Way::HalfAsIfWhole, _) => ("200 OK".into(), &body[..half]),
        (Way::HalfThenTheRest | Way::HalfThenTheWhole | Way::Half | Way::Stalls, _) => (whole, &body[..half]),
    };
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(content));
    if way == Way::Stalls {
        // Until the other side is gone.
        let _ = reader.read_line(&mut line);
    }
}

/// What lies on the network: an archive, a file that is known by its SHA-512, a repository with a submodule.
struct World {
    server: Server,
    build: String,
    /// Removed at its end.
    _site: Workspace,
}

fn world() -> World {
    let site = Workspace::tiny();
    let script = r#"
mkdir site source && echo one >source/one && ln -s one source/link && tar -czf site/source.tar.gz source && echo five >site/five
export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z GIT_CONFIG_GLOBAL=/dev/null HOME=$PWD
git="git -c user.name=a -c user.email=a@b -c init.defaultBranch=main -c protocol.file.allow=always"
$git init -q below && (cd below && echo low >low && chmod +x low && $git add . && $git commit -qm low)
$git init -q above && (cd above && mkdir -p a/b && echo high >a/b/high && ln -s a/b/high link && $git add . &&
  $git submodule --quiet add ../below sub && $git config -f .gitmodules submodule.sub.url ../below.git && $git add . && $git commit -qm high)
for r in above below; do $git clone -q --bare $r site/$r.git && (cd site/$r.git && $git update-server-info); done
(cd above && git rev-parse HEAD) >commit
sha256sum site/source.tar.gz | cut -c1-64 >sha256
sha512sum site/five | cut -c1-128 >sha512
"#;
    site.tool("sh", &["-ec", script]).success();
    let server = Server::of(&site.path("site"));
    let url = &server.url;
    let read = |name: &str| site.read(name).trim().to_string();
    let build = format!(
        r#"
archive("source", urls = ["{url}/source.tar.gz"], sha256 = "{}", strip_prefix = "source")
git("repository", urls = ["{url}/above.git"], commit = "{}", submodules = True)
rule(
    "build",
    deps = ["//base:build", ":source", ":repository"],
    sources = [fetched("five", urls = ["{url}/five"], digest = "sha512:{}")],
    run = "mkdir /opt && cp -r source repository five /opt/",
)
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("app", deps = [":tapeout"])
"#,
        read("sha256"),
        read("commit"),
        read("sha512"),
    );
    World { server, build, _site: site }
}

fn machine(world: &World) -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", &world.build);
    workspace.env("PATH", "/usr/bin:/bin")
}

/// Another machine, which has no network and no git: the workspace and one file.
fn gapped(world: &World, inputs: &[&Path]) -> Workspace {
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", &world.build);
    for inputs in inputs {
        let name = inputs.file_name().expect("a name").to_str().expect("UTF-8");
        workspace.file(name, fs::read(inputs).expect("read"));
    }
    workspace
}

fn image(workspace: &Workspace) -> String {
    Layout::open(&workspace.output("app/app/build_image")).only().digest
}

const BUILD: &str = "--offline build //app:app/build_image --inputs inputs.oci.tar";

#[test]
fn one_file_of_inputs_builds_what_was_built_with_a_network() {
    if !have(&["busybox", "git"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("build //app:app/build_image").success();
    online.run("fetch //app:app/build_image -o inputs.oci.tar").success().says("4 inputs");
    let inputs = online.path("inputs.oci.tar");

    // On another machine, and on the same one again: the same bytes.
    let other = machine(&world);
    other.run("fetch //app:app/build_image -o inputs.oci.tar").success();
    let bytes = fs::read(&inputs).expect("read");
    assert!(fs::read(other.path("inputs.oci.tar")).expect("read") == bytes, "the same request gives the same bytes");

    let asked = world.server.asked.load(Ordering::SeqCst);
    let offline = gapped(&world, &[&inputs]);
    offline.run(BUILD).success();
    assert_eq!(image(&offline), image(&online));
    assert_eq!(world.server.asked.load(Ordering::SeqCst), asked, "somebody asked the server");
    // Nothing was imported: the store has no copy of what the file holds.
    let held: Vec<_> = members(&bytes).into_keys().collect();
    let blobs: Vec<_> = fs::read_dir(offline.store().join("blobs/sha256"))
        .expect("blobs")
        .map(|blob| blob.expect("blob").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!blobs.is_empty() && blobs.iter().all(|blob| !held.contains(blob)), "{blobs:?} {held:?}");
    // And what was built is built without the file.
    offline.run("--offline build //app:app/build_image").fails().stderr_has("five");
}

/// Where the content of each blob of a file of inputs lies.
fn members(tar: &[u8]) -> BTreeMap<String, (usize, usize)> {
    let (mut at, mut found) = (0, BTreeMap::new());
    while tar[at] != 0 {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&tar[at + range.start..at + range.end]).trim_end_matches(['\0', ' ']).to_string()
        };
        let size = usize::from_str_radix(&text(124..136), 8).expect("octal");
        if let Some(hex) = text(0..100).strip_prefix("blobs/sha256/").filter(|hex| hex.len() == 64) {
            found.insert(hex.to_string(), (at + 512, size));
        }
        at += 512 + size.next_multiple_of(512);
    }
    found
}

/// A file of inputs without one of its blobs.
fn without(tar: &[u8], hex: &str) -> Vec<u8> {
    let (start, size) = members(tar)[hex];
    [&tar[..start - 512], &tar[start + size.next_multiple_of(512)..]].concat()
}

#[test]
fn a_blob_that_is_missing_or_damaged_is_named_before_anything_runs() {
    if !have(&["busybox", "git"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("fetch //app:app/build_image -o inputs.oci.tar").success();
    let good = fs::read(online.path("inputs.oci.tar")).expect("read");
    let offline = gapped(&world, &[&online.path("inputs.oci.tar")]);
    let blobs = members(&good);
    assert_eq!(blobs.len(), 6, "four inputs, the config and the manifest");
    let refused = |bad: &[u8]| {
        offline.file("inputs.oci.tar", bad);
        let outcome = offline.run(BUILD).failure(1).says_not("unpacked").says_not("built");
        assert!(!offline.output("app").exists());
        outcome
    };
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let mut named = 0;
    for (hex, &(start, size)) in &blobs {
        let content = [0, size / 3, size / 2, size - 1].map(|at| flipped(start + at));
        for bad in [without(&good, hex)].into_iter().chain(content) {
            let outcome = refused(&bad);
            named += usize::from(outcome.stderr.contains("//app:") && outcome.stderr.contains("wants"));
            let says = ["app:source wants", "app:repository wants", "app:build wants", "config", "manifest", hex];
            assert!(says.iter().any(|text| outcome.stderr.contains(text)), "{hex} is not named{outcome}");
        }
        // What is no content of it, and nobody's else: its header, and what fills its last block.
        refused(&flipped(start - 512)).stderr_has(&format!("at byte {}", start - 512));
        refused(&flipped(start.next_multiple_of(512) + size.next_multiple_of(512) - 1)).stderr_has(hex);
    }
    assert_eq!(named, 4 * 5, "each of four inputs, missing and damaged");
    // What isn't one of its blobs.
    let find = |text: &str| good.windows(text.len()).position(|part| part == text.as_bytes()).expect(text);
    for (text, says) in [
        ("{\"imageLayoutVersion", "oci-layout"),
        ("LayoutVersion", "oci-layout"),
        ("1.0.0\"}", "oci-layout"),
        ("{\"manifests\"", "index.json"),
        ("manifests\"", "index.json"),
    ] {
        refused(&flipped(find(text))).stderr_has(says);
    }
    // The first digest in it is where index.json says that the manifest is.
    refused(&flipped(find("sha256:") + 20)).stderr_has("manifest");
    for bad in [&good[..good.len() / 2], &good[..good.len() - 4096], &[&good[..], b"x"].concat(), &good.repeat(2)] {
        refused(bad).stderr_has("inputs.oci.tar");
    }

    // All that is missing is told at once, with the rule that wants it and what brings it.
    fs::remove_file(offline.path("inputs.oci.tar")).expect("remove");
    // A dry run says so too, after its plan, and its exit code is that of the build.
    for command in ["build", "build --dry-run", "build --dry-run --json"] {
        let outcome = offline
            .run(&format!("--offline {command} //app:app/build_image"))
            .failure(1)
            .stderr_has("3 inputs")
            .stderr_has("//app:source wants")
            .stderr_has("source.tar.gz")
            .stderr_has("//app:repository wants commit")
            .stderr_has("//app:build wants")
            .stderr_has("tapeout fetch //app:app/build_image -o");
        assert_eq!(outcome.stdout.contains("//app:source"), command.contains("--dry-run"), "{outcome}");
    }
    // A plan alone wants nothing of a network that may be had later.
    offline.run("build --dry-run //app:app/build_image").success();
    offline.file("inputs.oci.tar", &good).run(&format!("{BUILD} --dry-run")).success().stdout_has("run  //app:source");
    offline.run(BUILD).success();
}

/// Without `-o` the store is what is filled.
#[test]
fn what_was_fetched_into_the_store_is_built_without_a_network() {
    if !have(&["busybox", "git"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("--offline build //app:app/build_image").failure(1).stderr_has("3 inputs");
    online.run("fetch //app:app/build_image").success().says("4 inputs").says_not("built");
    assert!(!online.output("").exists(), "fetch builds nothing");
    let asked = world.server.asked.load(Ordering::SeqCst);
    online.run("--offline build --dry-run //app:app/build_image").success();
    online.run("--offline build //app:app/build_image").success();
    online.run("fetch //app:app/build_image").success().says("4 inputs");
    assert_eq!(world.server.asked.load(Ordering::SeqCst), asked, "what is there was asked for again");
    let other = machine(&world);
    other.run("build //app:app/build_image").success();
    assert_eq!(image(&online), image(&other));
}

/// Where a connection breaks, the download goes on there or begins again; half a file is never taken for the whole.
#[test]
fn a_download_that_breaks_off_leaves_nothing_that_is_taken_for_whole() {
    if !have(&["busybox", "git"]) {
        return;
    }
    let world = world();
    const FETCH: &str = "fetch //app:app/build_image -o inputs.oci.tar";
    let expected = machine(&world);
    expected.run(FETCH).success();
    let expected = fs::read(expected.path("inputs.oci.tar")).expect("read");
    let whole = |online: &Workspace| {
        online.run(FETCH).success().says("4 inputs");
        assert!(fs::read(online.path("inputs.oci.tar")).expect("read") == expected, "the file is another one");
        online.run("fsck").success();
    };
    for way in [Way::HalfThenTheRest, Way::HalfThenTheWhole] {
        world.server.answers(way);
        whole(&machine(&world));
    }
    let nothing = |online: &Workspace| {
        assert!(!online.path("inputs.oci.tar").exists());
        let outcome = online.run("--offline build //app:app/build_image").failure(1);
        outcome.stderr_has("//app:source wants").stderr_has("//app:build wants");
    };
    for (way, says) in [(Way::Half, "fetch http://"), (Way::HalfAsIfWhole, "not what its digest says")] {
        let online = machine(&world);
        world.server.answers(way);
        let outcome = online.run(FETCH).failure(1);
        outcome.stderr_has("source.tar.gz").stderr_has("five").stderr_has(says);
        nothing(&online);
        world.server.answers(Way::Whole);
        whole(&online);
    }
    // Killed in the middle of it.
    let online = machine(&world);
    world.server.answers(Way::Stalls);
    let asked = world.server.asked.load(Ordering::SeqCst);
    let running = online.start("fetch //app:source");
    while world.server.asked.load(Ordering::SeqCst) == asked {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    running.kill();
    nothing(&online);
    world.server.answers(Way::Whole);
    whole(&online);
}

#[test]
fn a_second_file_holds_only_what_is_new() {
    if !have(&["busybox", "git"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("fetch //app:source -o base.oci.tar").success().says("1 input");
    online.run("fetch //app:app/build_image -o more.oci.tar --since base.oci.tar").success().says("3 inputs");
    let (base, more) = (online.path("base.oci.tar"), online.path("more.oci.tar"));
    let offline = gapped(&world, &[&base, &more]);
    offline
        .run("--offline build //app:app/build_image --inputs more.oci.tar")
        .failure(1)
        .stderr_has("//app:source wants")
        .says_not("//app:repository wants");
    offline.run("--offline build //app:app/build_image --inputs base.oci.tar --inputs more.oci.tar").success();
}

#[test]
fn other_tools_copy_a_file_of_inputs() {
    if !have(&["busybox", "git", "skopeo"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("fetch //app:app/build_image -o inputs.oci.tar").success();
    let policy = online.home().join(".config/containers");
    fs::create_dir_all(&policy).expect("mkdir");
    fs::write(policy.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("write");
    let copy = |from: &str, to: &str| {
        online.tool("skopeo", &["--insecure-policy", "copy", "-q", from, to]).success();
    };
    copy("oci-archive:inputs.oci.tar", "oci:layout:inputs");
    copy("oci:layout:inputs", "oci-archive:again.oci.tar:inputs");
    let offline = gapped(&world, &[&online.path("again.oci.tar")]);
    offline.run("--offline build //app:app/build_image --inputs again.oci.tar").success();
}

/// Types what docs/air-gap.md says, word for word.
fn as_the_page_says(workspace: &Workspace, name: &str) {
    let tapeout = workspace.everything().join("bin/tapeout");
    if !tapeout.exists() {
        std::os::unix::fs::symlink(crate::common::places::binary(), &tapeout).expect("symlink");
    }
    let path = format!("{}:/usr/bin:/bin", workspace.everything().join("bin").display());
    let shell = crate::common::needs::find("sh").expect("sh");
    for (_, text) in crate::readme::blocks("docs/air-gap.md", name) {
        let mut command = workspace.command(&shell, &["-ec", &format!("PATH='{path}'; export PATH\n{text}")]);
        crate::common::outcome::Running::start(&mut command, text).wait(workspace.limit).success();
    }
}

/// A workspace that has never been built, and has no lock: the file brings that too.
#[test]
fn a_debian_builder_comes_out_of_the_file_with_the_digests_that_it_had() {
    if !have(&["unshare"]) {
        return;
    }
    const GREETER: &str = r#"
rule("build", deps = ["//base:build"], packages = ["bc"], run = "mkdir -p /opt && echo 6*7 | bc >/opt/answer")
tapeout("tapeout", deps = [":build"], include = ["/opt/answer"], paths = ["/usr/bin/bc"])
image("app", deps = [":tapeout"], check = ["/usr/bin/bc", "--version"])
"#;
    const SHOP: &str = r#"pod("shop", containers = [container("app", image = "//app:app")])"#;
    let online = Workspace::debian();
    online.file("app/build.star", GREETER).file("shop/build.star", SHOP);
    online.run("build //app:app/build_image").success();
    as_the_page_says(&online, "online");
    as_the_page_says(&online, "since");
    assert!(members(&fs::read(online.path("more.oci.tar")).expect("read")).len() == 2, "nothing is new");
    fs::remove_file(online.path("more.oci.tar")).expect("remove");
    if have(&["skopeo"]) {
        as_the_page_says(&online, "carried");
        fs::remove_dir_all(online.path("layout")).expect("remove");
        fs::remove_file(online.path("carried.oci.tar")).expect("remove");
    }
    let size = fs::metadata(online.path("inputs.oci.tar")).expect("stat").len();
    let held: usize =
        members(&fs::read(online.path("inputs.oci.tar")).expect("read")).values().map(|(_, size)| size).sum();
    assert!(size as f64 <= 1.05 * held as f64, "{size} bytes hold {held}");

    let toml = crate::common::workspace::DEBIAN_TOML;
    let fresh = |lock: bool| {
        let workspace = Workspace::empty(User::plain());
        workspace.file("tapeout.toml", toml).file("app/build.star", GREETER).file("shop/build.star", SHOP);
        if lock {
            workspace.file("tapeout.lock", online.read("tapeout.lock"));
        }
        fs::hard_link(online.path("inputs.oci.tar"), workspace.path("inputs.oci.tar")).expect("link");
        workspace.behind(&["/usr/bin/unshare", "-r", "-n"])
    };
    let offline = fresh(false);
    as_the_page_says(&offline, "offline");
    as_the_page_says(&offline, "out");
    offline.run("pod verify shop.tar").success();
    assert_eq!(offline.read("tapeout.lock"), online.read("tapeout.lock"));
    assert_eq!(fingerprint(&offline.output("app/app/build_image")), fingerprint(&online.output("app/app/build_image")));
    // What is cached needs nothing.
    offline.run("--offline build //...").success().says_not("built");

    // A package that is taken out is named with the rule that wants it, before the builder is made.
    let good = fs::read(online.path("inputs.oci.tar")).expect("read");
    let lock = online.read("tapeout.lock");
    let digest = |name: &str| {
        let at = lock.find(&format!("name = \"{name}\"")).expect("locked");
        let at = at + lock[at..].find("sha256 = \"").expect("a digest") + "sha256 = \"".len();
        lock[at..at + 64].to_string()
    };
    let broken = fresh(true);
    let bad = without(&without(&good, &digest("bc")), &digest("zlib1g"));
    fs::remove_file(broken.path("inputs.oci.tar")).expect("remove");
    broken.file("inputs.oci.tar", bad);
    broken
        .run("--offline build //... --inputs inputs.oci.tar")
        .failure(1)
        .stderr_has("2 inputs")
        .stderr_has("//app:build wants package bc ")
        .stderr_has("the builder wants package zlib1g ")
        .says_not("built");
}

/// Another user with an empty home and no lock, in a network namespace without a route, with the static binary where it
/// was made, an example workspace and its file of inputs: all that is built there, images and whatever else, is byte for byte
/// what was built with a network. It is built in another corner of the digest matrix, too: with copied snapshots and four jobs.
fn behind_an_air_gap(example: &str, user: u32, labels: &str) {
    // What other tests look at too is built once.
    let images = examples::output(example, "zstd");
    let mut online = Workspace::debian();
    online.limit = Duration::from_secs(900);
    online.copy(&examples::source().join(example), "");
    online.run(&format!("fetch {labels} -o inputs.oci.tar")).success();
    let expected = digests(&online.run(&format!("--json build {labels}")).success());

    let fresh = Workspace::empty(User::numbered(user)).behind(&["/usr/bin/unshare", "-r", "-n"]);
    let mut fresh = fresh.with_static_binary();
    fresh.limit = Duration::from_secs(900);
    fresh.copy(&examples::source().join(example), "");
    fs::hard_link(online.path("inputs.oci.tar"), fresh.path("inputs.oci.tar")).expect("link");
    let options = "--snapshots copy --jobs 4 --inputs inputs.oci.tar";
    let built = digests(&fresh.run(&format!("--json --offline build {options} {labels}")).success());
    assert!(built.len() > 2 && built.values().any(|digest| digest.is_string()), "{built:#?}");
    assert_eq!(built, expected);
    examples::equal(&fresh.output(""), &images, example);
}

/// What each label that was asked for came to.
fn digests(built: &Outcome) -> BTreeMap<String, Value> {
    let outcomes = built.json();
    let outcomes = outcomes.as_array().expect("a list").iter();
    outcomes.map(|one| (one["label"].as_str().expect("a label").into(), one["digest"].clone())).collect()
}

#[test]
fn the_example_workspace_behind_an_air_gap_has_the_digests_that_it_had_with_a_network() {
    if have(&["root", "unshare"]) {
        behind_an_air_gap("", 64107, "//...");
    }
}

#[test]
fn the_seven_programs_behind_an_air_gap_have_the_digests_that_they_had_with_a_network() {
    if have(&["root", "unshare"]) {
        behind_an_air_gap("programs", 64108, "//...");
    }
}

/// Their images, that is: `//cc` has none, and the host of the commit of `//git` isn't there for every machine.
#[test]
fn the_languages_behind_an_air_gap_have_the_digests_that_they_had_with_a_network() {
    if have(&["root", "unshare", "registries"]) {
        behind_an_air_gap("languages", 64109, "//node/... //python/... //rust/...");
    }
}

/// Every socket that is opened anywhere below, but for pairs of our own: rules have a network namespace of their
/// own, in which init brings the loopback up (the one socket that is not AF_UNIX).
#[test]
fn offline_opens_no_socket() {
    if !have(&["busybox", "strace", "git"]) {
        return;
    }
    let world = world();
    let online = machine(&world);
    online.run("fetch //app:app/build_image -o inputs.oci.tar").success();
    let strace = crate::common::needs::find("strace").expect("strace").display().to_string();
    let traced = |workspace: Workspace, arguments: &str| -> Vec<String> {
        let log = workspace.path("strace.log").display().to_string();
        let workspace = workspace.behind(&[&strace, "-f", "-qq", "-e", "trace=socket,connect", "-o", &log]);
        let outcome = workspace.run(arguments);
        let log = workspace.read("strace.log");
        assert!(!log.is_empty() || !outcome.succeeded(), "strace saw nothing{outcome}");
        let asks = |line: &&str| line.contains("socket(") || line.contains("connect(");
        log.lines().filter(asks).map(String::from).collect()
    };
    // A program of a rule may ask for its name service (nscd), in its own sandbox.
    let ours = ["socket(AF_UNIX", "sa_family=AF_UNIX", "socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC"];
    let is_ours = |line: &String| ours.iter().any(|ours| line.contains(ours));
    let lines = traced(gapped(&world, &[&online.path("inputs.oci.tar")]), BUILD);
    assert!(lines.iter().all(is_ours), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("SOCK_DGRAM")), "rules ran and were seen: {lines:#?}");
    // Nor where all is missing.
    for arguments in [
        "--offline build //app:app/build_image",
        "--offline fetch //app:app/build_image",
        "--offline build --dry-run //app:app/build_image",
        "--offline bootstrap x --from debian:bookworm",
    ] {
        let lines = traced(machine(&world), arguments);
        assert!(lines.is_empty(), "{arguments}: {lines:#?}");
    }
    let debian = || {
        let workspace = Workspace::empty(User::plain());
        workspace.file("tapeout.toml", crate::common::workspace::DEBIAN_TOML);
        workspace.file("app/build.star", r#"rule("build", deps = ["//base:build"], packages = ["bc"])"#);
        workspace
    };
    for arguments in
        ["lock", "lock --update", "lock --update bc", "fetch //...", "build //...", "build --dry-run //..."]
    {
        let arguments = format!("--offline {arguments}");
        debian().run(&arguments).failure(1).stderr_has("--offline forbids").stderr_has("next:");
        let lines = traced(debian(), &arguments);
        assert!(lines.is_empty(), "{arguments}: {lines:#?}");
    }
    let built = machine(&world);
    built.run("build //app:app/build_image").success();
    let push = "--offline push //app:app docker://127.0.0.1:1/app:one";
    built.run(push).failure(1).stderr_has("127.0.0.1:1").stderr_has("--offline forbids").stderr_has("next:");
    let lines = traced(built, push);
    assert!(lines.is_empty(), "{lines:#?}");
    // The test itself can fail.
    let lines = traced(machine(&world), "fetch //app:source");
    assert!(lines.iter().any(|line| line.contains("connect(")), "{lines:#?}");
}

#[test]
fn a_hostile_file_of_inputs_is_refused() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", r#"rule("build", deps = ["//base:build"], run = "true")"#);
    workspace.file("text", "text").file("empty", "");
    let script = "mkdir -p d/blobs/sha256 && echo '{\"imageLayoutVersion\":\"1.0.0\"}' >d/oci-layout && echo '{\"schemaVersion\":2,\"manifests\":[]}' >d/index.json
tar -C d -cf none.tar . && cp none.tar twice.tar && tar -C d -rf twice.tar ./oci-layout && mkfifo d/fifo && ln -sf /etc/passwd d/oci-layout && tar -C d -cf link.tar .";
    workspace.tool("sh", &["-ec", script]).success();
    for (file, says) in [
        ("text", "text"),
        ("empty", "oci-layout"),
        ("none.tar", "index.json"),
        ("twice.tar", "twice"),
        ("link.tar", "oci-layout"),
        ("nowhere", "nowhere"),
    ] {
        workspace.run(&format!("build //app:build --inputs {file}")).fails().stderr_has(says).says_not("built");
    }
}

/// The mirror has moved on: packages of the lock are gone, all of them are named, and one command renews the lock.
#[test]
fn a_lock_whose_packages_are_gone_is_renewed_by_the_command_that_the_error_names() {
    let workspace = Workspace::debian();
    workspace.file("app/build.star", r#"rule("build", deps = ["//base:build"], packages = ["bc"])"#);
    let lock = workspace.read("tapeout.lock");
    // Two packages as they were before the newest version: no mirror has them.
    let old = |lock: &str, name: &str| {
        let at = lock.find(&format!("name = \"{name}\"\n")).expect("locked");
        let end = at + lock[at..].find("\n\n").unwrap_or(lock.len() - at);
        let package: String = lock[at..end]
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some(("version", _)) => "version = \"0.1-1\"\n".to_string(),
                Some(("sha256", _)) => format!("sha256 = \"{:064}\"\n", name.len()),
                Some(("file", _)) => format!("file = \"pool/main/{name}_0.1-1_all.deb\"\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        format!("{}{}{}", &lock[..at], package, &lock[(end + 1).min(lock.len())..])
    };
    let stale = old(&old(&lock, "zlib1g"), "hostname");
    let fresh = Workspace::empty(User::plain()).stored_in(workspace.store().to_owned());
    fresh.file("tapeout.toml", crate::common::workspace::DEBIAN_TOML).file("tapeout.lock", &stale);
    fresh.file("app/build.star", r#"rule("build", deps = ["//base:build"], packages = ["bc"])"#);
    fresh
        .run("build //app:build")
        .failure(1)
        .stderr_has("2 packages")
        .stderr_has("hostname 0.1-1")
        .stderr_has("zlib1g 0.1-1")
        .stderr_has("tapeout lock --update");
    // One of them by name: the other's version is gone too, so it moves, and nothing else does.
    as_the_page_says_in(&fresh);
    assert!(!fresh.read("tapeout.lock").contains("0.1-1"));
    assert!(fresh.read("tapeout.lock").contains("name = \"bc\""));
    fresh.run("lock").success().stdout_has("as before").stdout_has("tapeout.lock");
    fresh.run("lock --update nosuch").failure(2).stderr_has("nosuch");
    let changed = fresh.run("--json lock --update bc").success().json();
    assert_eq!(changed.as_array().map(Vec::len), Some(0), "nothing is newer than the newest: {changed}");
    fresh.file("tapeout.lock", old(&fresh.read("tapeout.lock"), "bc"));
    fresh.run("lock --update bc").success().stdout_has("bc  0.1-1 -> ");
    workspace.file("tapeout.toml", crate::common::workspace::tiny_toml());
    workspace.run("lock").failure(2).stderr_has("debian:");
}

/// `tapeout lock --update`, as the page says, prints the versions that change.
fn as_the_page_says_in(workspace: &Workspace) {
    let blocks = crate::readme::blocks("docs/air-gap.md", "lock");
    assert_eq!(blocks[0].1.trim(), "tapeout lock --update");
    workspace
        .run("lock --update")
        .success()
        .stdout_has("zlib1g  0.1-1 -> ")
        .stdout_has("hostname  0.1-1 -> ")
        .stdout_has("+ bc  ");
}
