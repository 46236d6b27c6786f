//! What a rule did comes out of a real sandbox as a changeset, and the next rule sees what the
//! changeset says. On a root file system of one busybox; as whoever runs it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use tapeout::build_file::spec::{Compression, Step};
use tapeout::changeset::{self, Options};
use tapeout::digest::Digest;
use tapeout::image::config::{self, ImageLayer};
use tapeout::image::layer::{Packing, write_layer};
use tapeout::image::layout::{self, Layout, LayoutImage};
use tapeout::sandbox::{self, Spec};
use tapeout::store::{Scratch, Store};
use tapeout::sys::process;
use tapeout::tree::{Change, Changeset, Content, Entry, Layer, Node, Picked, RootPath, Selection, Stack};

const PLAIN: Packing = Packing { compression: Compression::None, level: None, threads: NonZeroUsize::MIN };

fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
        .expect("busybox-static is installed")
}

fn path(path: impl AsRef<[u8]>) -> RootPath {
    RootPath::new(path).unwrap()
}

/// A store with a builder in it.
struct Room {
    _temp: tempfile::TempDir,
    store: Store,
    stack: Stack,
    time: i64,
}

impl Room {
    fn new() -> Self {
        process::set_executable(env!("CARGO_BIN_EXE_tapeout").into());
        let temp = tempfile::Builder::new().prefix("changesets").tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let mut room = Self { _temp: temp, store, stack: Stack::default(), time: 1_000_000 };
        let scratch = room.store.scratch().unwrap();
        let files = scratch.folder("upper").unwrap();
        for folder in ["bin", "etc", "dev", "proc", "sys", "run", "tmp", "usr/bin", "var/lib"] {
            fs::create_dir_all(files.join(folder)).unwrap();
        }
        fs::copy(busybox(), files.join("bin/busybox")).unwrap();
        let applets = Command::new(busybox()).arg("--list").output().unwrap();
        for name in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", files.join("bin").join(name)).unwrap();
        }
        fs::write(files.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        room.keep(&scratch, &[]);
        room
    }

    fn keep(&mut self, scratch: &Scratch, recorded: &[sandbox::Recorded]) -> Layer {
        self.time += 1;
        let upper = tapeout::sys::root::Root::open(&scratch.path().join("upper")).unwrap();
        let options = Options { time: self.time, owner: (0, 0) };
        let captured = changeset::capture(&upper, &self.stack, recorded, &options).unwrap();
        let (changeset, name) = captured.name().unwrap();
        let layer = self.store.keep_changeset(name, changeset, upper.path()).unwrap();
        self.stack.0.push(layer.clone());
        layer
    }

    /// Runs a script over the stack; gives what it printed.
    fn run(&self, scratch: &Scratch, script: &str) -> (Vec<sandbox::Recorded>, String) {
        let folder = |name: &str| scratch.folder(name).unwrap();
        let spec = Spec {
            lower: self.stack.0.iter().map(|layer| self.store.changeset_files_path(&layer.digest)).collect(),
            upper: folder("upper"),
            work: folder("work"),
            root: folder("root"),
            tmp: folder("tmp"),
            env: BTreeMap::from([("PATH".to_string(), "/bin".to_string())]),
            cwd: "/workspace".into(),
            hostname: "tapeout".into(),
            steps: vec![Step::Shell(script.into())],
            ..Spec::default()
        };
        let log = scratch.path().join("log");
        let outcome = sandbox::run(&spec, File::create(&log).unwrap()).unwrap();
        let printed = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        assert!(outcome.status.success(), "{printed}");
        (outcome.recorded, printed)
    }

    /// Runs a rule, and puts what it changed on the stack.
    fn rule(&mut self, script: &str) -> Changeset {
        let scratch = self.store.scratch().unwrap();
        let (recorded, _) = self.run(&scratch, script);
        (*self.keep(&scratch, &recorded).changeset).clone()
    }

    /// What a script prints over the stack.
    fn sees(&self, script: &str) -> String {
        self.run(&self.store.scratch().unwrap(), script).1
    }

    fn entry(&self, at: &str) -> Entry {
        self.stack.get(&path(at)).unwrap_or_else(|| panic!("{at} is not there")).0.clone()
    }

    fn owner(&self, at: &str) -> (u32, u32) {
        let entry = self.entry(at);
        (entry.uid, entry.gid)
    }

    /// Does a rule find what the stack says? Names and kinds, below `folder`.
    fn agrees(&self, folder: &str) {
        let below = self.stack.below(&path(folder));
        let mut told: Vec<_> = below.keys().map(|p| p.to_string()).collect();
        told.sort();
        let mut seen: Vec<_> =
            self.sees(&format!("find /{folder} -mindepth 1 -print")).lines().map(str::to_string).collect();
        seen.sort();
        assert_eq!(seen, told);
    }
}

fn told(changeset: &Changeset) -> Vec<String> {
    let tell = |(path, change): (&RootPath, &Change)| match &change.now {
        None => format!("- {path}"),
        Some(_) if change.passed_through() => format!("  {path}"),
        Some(_) if change.was.is_none() => format!("+ {path}"),
        Some(_) => format!("~ {path}"),
    };
    changeset.changes.iter().filter(|(p, _)| p.top() != b"workspace").map(tell).collect()
}

#[test]
fn a_rule_that_changes_nothing_has_an_empty_changeset() {
    let mut room = Room::new();
    assert!(
        told(&room.rule("touch /etc/passwd /etc; mkdir /etc/x; rmdir /etc/x; echo x > /tmp/y; chmod 644 /etc/passwd"))
            .is_empty()
    );
    assert!(
        told(&room.rule("cp /etc/passwd /etc/p; mv /etc/p /etc/passwd")).is_empty(),
        "the same content under the same name"
    );
}

#[test]
fn owners_stay_through_every_way_of_changing_a_file() {
    let mut room = Room::new();
    room.rule("cd /var/lib; for f in changed moved copied; do echo $f > $f; chown 33:34 $f; done; mkdir d; chown 33:33 d; ln -s x l; chown -h 33:33 l; mknod null c 1 3; chmod 666 null");
    for at in ["changed", "moved", "copied"] {
        assert_eq!(room.owner(&format!("var/lib/{at}")), (33, 34));
    }
    let null = Node::Device { character: true, major: 1, minor: 3 };
    assert_eq!(room.entry("var/lib/null").node, null);
    let changeset = room.rule("cd /var/lib; echo more >> changed; mv moved elsewhere; echo more >> elsewhere; chmod 600 copied; touch d/inside; mv null zero; chmod 600 zero");
    let expected = [
        "  /var",
        "  /var/lib",
        "~ /var/lib/changed",
        "~ /var/lib/copied",
        "  /var/lib/d",
        "+ /var/lib/d/inside",
        "+ /var/lib/elsewhere",
        "- /var/lib/moved",
        "- /var/lib/null",
        "+ /var/lib/zero",
    ];
    assert_eq!(told(&changeset), expected);
    let owners =
        ["changed", "elsewhere", "copied", "d", "d/inside", "l"].map(|at| room.owner(&format!("var/lib/{at}")));
    assert_eq!(owners, [(33, 34), (33, 34), (33, 34), (33, 33), (0, 0), (33, 33)]);
    assert_eq!((room.entry("var/lib/zero").node, room.entry("var/lib/zero").mode), (null, 0o600));
    room.agrees("var/lib");
}

#[test]
fn replaced_and_removed_folders_come_out_right_over_three_rules() {
    let mut room = Room::new();
    room.rule("mkdir -p /d/sub/deep /e /f; for i in 1 2 3; do echo $i > /d/$i; echo $i > /d/sub/$i; echo $i > /e/$i; done; echo f > /f/f");
    let changeset =
        room.rule("rm -r /d; mkdir /d /d/sub; echo 2 > /d/2; echo new > /d/sub/new; rm -r /e; echo file > /e; rm /f/f");
    let expected = [
        "  /d",
        "- /d/1",
        "- /d/3",
        "  /d/sub",
        "- /d/sub/1",
        "- /d/sub/2",
        "- /d/sub/3",
        "- /d/sub/deep",
        "+ /d/sub/new",
        "~ /e",
        "  /f",
        "- /f/f",
    ];
    assert_eq!(told(&changeset), expected);
    for folder in ["d", "f"] {
        room.agrees(folder);
    }
    room.rule("rm /e; mkdir /e; echo e > /e/e; mkdir /d/sub/deep; echo x > /d/sub/deep/x");
    for folder in ["d", "e", "f"] {
        room.agrees(folder);
    }
}

#[test]
fn a_removal_alone_in_its_folder_is_not_listed() {
    // The folder lies in one layer, with a whiteout for what another snapshot had there.
    let mut room = Room::new();
    room.rule("mkdir -p /workspace/a; echo 1 > /workspace/a/source; echo 1 > /workspace/a/other");
    room.rule("rm /workspace/a/source; echo made > /workspace/a/made");
    room.stack.0.remove(1);
    assert_eq!(room.sees("ls /workspace/a"), "made\n");
}

#[test]
fn odd_files_come_through() {
    let mut room = Room::new();
    let long = "n".repeat(255);
    // Without a user namespace of our own, only root looks into it.
    let root = nix::unistd::geteuid().is_root();
    let closed = if root { "echo x > closed/in; chmod 000 closed; " } else { "" };
    room.rule(&format!(
        "mkdir /odd /odd/empty /odd/closed; cd /odd; echo x > {long}; echo x > \"$(printf 'a\\377b')\"; ln {long} hard; ln -s /nowhere/at/all link; mkfifo pipe
         truncate -s 1M sparse; echo x > suid; chmod 6755 suid; chmod 1777 empty; {closed}echo x > '.wh.name'; setfattr -n user.note -v hello suid || true"
    ));
    room.agrees("odd");
    assert_eq!(room.entry("odd/suid").mode, 0o6755);
    assert_eq!(room.entry("odd/closed").mode, if root { 0 } else { 0o755 });
    assert_eq!(room.entry("odd/link").node, Node::Link { target: b"/nowhere/at/all".to_vec() });
    let groups = [format!("odd/{long}"), "odd/hard".into()].map(|at| match room.entry(&at).node {
        Node::File { group, .. } => group,
        _ => None,
    });
    assert!(groups[0].is_some() && groups[0] == groups[1]);
    assert!(room.stack.get(&path(b"odd/a\xffb")).is_some());

    let mut selection = Selection::new();
    let layer = room.stack.0[1].clone();
    for (path, change) in layer.changeset.changes.iter().filter(|(p, _)| p.top() == b"odd") {
        let content = Content::Stored { changeset: layer.digest, path: path.clone() };
        selection.insert(path.clone(), Picked { entry: change.now.clone(), content, why: "".into() });
    }
    let files = |digest: &Digest| room.store.changeset_files(digest);
    let written = write_layer(&selection, &files, PLAIN, 0, std::io::sink());
    assert!(written.unwrap_err().what().contains(".wh.name"));
    selection.remove(&path("odd/.wh.name"));
    let mut tar = vec![];
    write_layer(&selection, &files, PLAIN, 0, &mut tar).unwrap();
    let listed = list(&tar);
    for expected in [
        format!("-rw-r--r-- 0/0 0 1970-01-01 00:00 odd/{long} link to odd/hard").as_str(),
        "-rwsr-sr-x 0/0 2 1970-01-01 00:00 odd/suid",
        if root {
            "d--------- 0/0 0 1970-01-01 00:00 odd/closed/"
        } else {
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 odd/closed/"
        },
        "lrwxrwxrwx 0/0 0 1970-01-01 00:00 odd/link -> /nowhere/at/all",
        "-rw-r--r-- 0/0 1048576 1970-01-01 00:00 odd/sparse",
        "-rw-r--r-- 0/0 2 1970-01-01 00:00 odd/a\\377b",
    ] {
        assert!(listed.iter().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").replacen("hrw", "-rw", 1) == expected), "{expected}\n{listed:#?}");
    }
}

/// As GNU tar lists it.
fn list(tar: &[u8]) -> Vec<String> {
    use std::io::Write;
    let mut child = Command::new("tar")
        .args(["--numeric-owner", "-tvf", "-"])
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("tar is installed");
    let mut stdin = child.stdin.take().unwrap();
    let bytes = tar.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&bytes));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    writing.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    text.lines().map(str::to_string).collect()
}

#[test]
fn names_do_not_depend_on_the_order_on_disk_or_on_the_store() {
    let name = |script: &str| {
        let mut room = Room::new();
        room.rule(script);
        room.stack.0[1].digest
    };
    assert_eq!(
        name("mkdir /a; echo 1 > /a/1; echo 2 > /a/2; chown 5 /a/2"),
        name("mkdir /a; echo 2 > /a/2; chown 5 /a/2; sleep 0.01; echo 1 > /a/1")
    );
}

#[test]
fn what_is_kept_has_the_time_of_its_changeset() {
    let mut room = Room::new();
    room.rule("mkdir /a; echo 1 > /a/1; ln -s 1 /a/l");
    let kept = room.store.changeset_files_path(&room.stack.0[1].digest);
    let time = |at: &Path| std::os::unix::fs::MetadataExt::mtime(&fs::symlink_metadata(at).unwrap());
    for at in ["", "a", "a/1", "a/l"] {
        assert_eq!(time(&kept.join(at)), room.stack.0[1].changeset.time);
    }
}

/// Writes an image of what lies below `folder`, one layer for each changeset.
fn image_of(room: &Room, folder: &str, compression: Compression, to: &Path) {
    let files = |digest: &Digest| room.store.changeset_files(digest);
    let mut layers = vec![];
    for layer in &room.stack.0[1..] {
        let picked = |(path, change): (&RootPath, &Change)| {
            let content = Content::Stored { changeset: layer.digest, path: path.clone() };
            (path.clone(), Picked { entry: change.now.clone(), content, why: "".into() })
        };
        let selection: Selection =
            layer.changeset.changes.iter().filter(|(p, _)| p.top() == folder.as_bytes()).map(picked).collect();
        let mut blob = room.store.begin().unwrap();
        let packing = Packing { compression, level: None, threads: NonZeroUsize::new(2).unwrap() };
        let info = write_layer(&selection, &files, packing, 1_000_000_000, &mut blob).unwrap();
        assert_eq!(blob.finish().unwrap().digest, info.digest);
        layers.push(ImageLayer { info, created_by: format!("//rule:{}", layers.len()) });
    }
    let image = tapeout::build_file::spec::Image::default();
    let config = room.store.put(&config::config(&image, None, &layers, 1_000_000_000).unwrap()).unwrap();
    let bytes = std::fs::read(room.store.blob_path(&config.digest)).unwrap();
    let annotations = config::annotations(&image, "odd", 1_000_000_000).unwrap();
    let manifest = room.store.put(&config::manifest(&bytes, &layers, &annotations).unwrap()).unwrap();
    let blobs = layers.iter().map(|layer| layer.info.digest).chain([config.digest]).collect();
    let image = LayoutImage {
        tag: "latest".into(),
        name: None,
        platform: None,
        manifest: (manifest.digest, manifest.size),
        blobs,
    };
    layout::write(to, &[image], &|digest| room.store.blob_path(digest)).unwrap();
}

/// Is this tool installed? Without it a test skips, aloud.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn other_tools_read_our_layers() {
    let mut room = Room::new();
    let long = "n".repeat(255);
    room.rule(&format!(
        "mkdir /odd /odd/d /odd/e; cd /odd; echo x > {long}; echo x > \"$(printf 'a\\377b')\"; ln {long} hard; ln -s /nowhere link; truncate -s 3M sparse; echo x > suid; chmod 4755 suid
         echo gone > gone; echo 1 > d/old; mkfifo pipe; chmod 1777 e"
    ));
    room.rule("cd /odd; rm gone; rm -r d; mkdir d; echo 2 > d/new; echo more >> suid; chmod 6711 suid");
    for (compression, name) in [(Compression::Gzip, "gzip"), (Compression::None, "plain"), (Compression::Zstd, "zstd")]
    {
        let temp = tempfile::tempdir().unwrap();
        let layout = temp.path().join("layout");
        image_of(&room, "odd", compression, &layout);
        Layout::open(&layout).unwrap().verify().unwrap();
        let named = format!("oci:{}:latest", layout.display());
        if has("skopeo") {
            let told = output(Command::new("skopeo").args(["inspect", &named]));
            assert!(told.contains("\"2001-09-09T01:46:40Z\""), "{told}");
            // Through an archive and back: the same layers by the same names.
            let archive = format!("oci-archive:{}/archive:latest", temp.path().display());
            output(Command::new("skopeo").args(["copy", "-q", "--insecure-policy", &named, &archive]));
            let back = temp.path().join("back");
            output(Command::new("skopeo").args([
                "copy",
                "-q",
                "--insecure-policy",
                &archive,
                &format!("oci:{}:latest", back.display()),
            ]));
            let [ours, theirs] = [&layout, &back].map(|at| Layout::open(at).unwrap().images().unwrap().remove(0));
            assert_eq!(ours.config.rootfs(), theirs.config.rootfs(), "{name}");
            // skopeo compresses what isn't.
            assert!(compression == Compression::None || ours.layers == theirs.layers, "{name}");
        }
        // umoci of Debian bookworm reads no zstd.
        if compression != Compression::Zstd && has("umoci") {
            let bundle = temp.path().join("bundle");
            output(
                Command::new("umoci")
                    .args(["unpack", "--rootless", "--image", &format!("{}:latest", layout.display())])
                    .arg(&bundle),
            );
            let odd = bundle.join("rootfs/odd");
            let mut names: Vec<_> = fs::read_dir(&odd)
                .unwrap()
                .map(|e| std::os::unix::ffi::OsStringExt::into_vec(e.unwrap().file_name()))
                .collect();
            names.sort();
            assert_eq!(
                names,
                [
                    b"a\xffb".to_vec(),
                    b"d".to_vec(),
                    b"e".to_vec(),
                    b"hard".to_vec(),
                    b"link".to_vec(),
                    long.clone().into_bytes(),
                    b"pipe".to_vec(),
                    b"sparse".to_vec(),
                    b"suid".to_vec()
                ]
            );
            assert_eq!(fs::read_dir(odd.join("d")).unwrap().count(), 1);
            assert_eq!(fs::read_to_string(odd.join("d/new")).unwrap(), "2\n");
            assert_eq!(fs::read_to_string(odd.join("suid")).unwrap(), "x\nmore\n");
            use std::os::unix::fs::MetadataExt;
            let meta = |at: &str| fs::symlink_metadata(odd.join(at)).unwrap();
            assert_eq!(
                (meta("suid").mode() & 0o7777, meta("e").mode() & 0o7777, meta("sparse").len()),
                (0o6711, 0o1777, 3 << 20)
            );
            assert_eq!((meta("hard").ino(), meta("hard").mtime()), (meta(&long).ino(), 1_000_000_000));
        }
    }
}

/// Always the same numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }

    fn name(&mut self) -> Vec<u8> {
        let length = [1, 3, 8, 60, 120, 255][self.below(6) as usize];
        let mut name: Vec<u8> = (0..length).map(|_| b"abcXYZ019.-_ =\xc3\xff"[self.below(16) as usize]).collect();
        name[0] = b'a' + self.below(26) as u8;
        name
    }

    /// Files as data, with their contents, in walk order.
    fn tree(&mut self) -> BTreeMap<RootPath, (Entry, Vec<u8>)> {
        let mut folders = vec![RootPath::root()];
        let mut tree = BTreeMap::new();
        for _ in 0..80 {
            let parent = &folders[self.below(folders.len() as u64) as usize];
            let Ok(at) = parent.join(self.name()) else { continue };
            if at.as_bytes().len() > 2000 || tree.contains_key(&at) {
                continue;
            }
            let content: Vec<u8> = (0..self.below(3) * self.below(2000)).map(|i| (i % 251) as u8).collect();
            let entry = match self.below(6) {
                0 | 1 => {
                    folders.push(at.clone());
                    Entry::folder([0o755, 0o700, 0o1777][self.below(3) as usize])
                }
                2 => Entry::link(self.name()),
                _ => Entry::file(&content, [0o644, 0o755, 0o4755, 0o600][self.below(4) as usize]),
            };
            let content = if matches!(entry.node, Node::File { .. }) { content } else { vec![] };
            tree.insert(at, (entry, content));
        }
        tree
    }
}

/// Writes a tree, what is in a folder in the order of `order`.
fn lay_out(tree: &BTreeMap<RootPath, (Entry, Vec<u8>)>, to: &Path, reverse: bool) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    let by_depth = |path: &RootPath| path.as_bytes().iter().filter(|b| **b == b'/').count();
    let mut all: Vec<_> = tree.iter().collect();
    if reverse {
        all.reverse();
    }
    all.sort_by_key(|(path, _)| by_depth(path));
    for (path, (entry, content)) in all {
        let at = path.below(to);
        match &entry.node {
            Node::Folder => fs::create_dir(&at).unwrap(),
            Node::Link { target } => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &at).unwrap(),
            _ => fs::write(&at, content).unwrap(),
        }
        if !matches!(entry.node, Node::Link { .. }) {
            fs::set_permissions(&at, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }
}

#[test]
fn any_tree_has_one_name_and_comes_out_of_gnu_tar_as_it_went_in() {
    use std::os::unix::fs::MetadataExt;
    for seed in 0..12 {
        let tree = Random(seed).tree();
        let captured = |reverse: bool| {
            let temp = tempfile::tempdir().unwrap();
            lay_out(&tree, temp.path(), reverse);
            let upper = tapeout::sys::root::Root::open(temp.path()).unwrap();
            changeset::capture(&upper, &Stack::default(), &[], &Options { time: 5, owner: (0, 0) })
                .unwrap()
                .name()
                .unwrap()
        };
        let (changeset, name) = captured(false);
        assert_eq!(captured(true).1, name, "seed {seed}");
        let as_data: BTreeMap<_, _> =
            changeset.changes.iter().map(|(path, change)| (path.clone(), change.now.clone().unwrap())).collect();
        assert_eq!(
            as_data,
            tree.iter().map(|(path, (entry, _))| (path.clone(), entry.clone())).collect(),
            "seed {seed}"
        );

        let picked = |(path, (entry, content)): (&RootPath, &(Entry, Vec<u8>))| {
            (
                path.clone(),
                Picked { entry: Some(entry.clone()), content: Content::Inline(content.clone()), why: "".into() },
            )
        };
        let selection: Selection = tree.iter().map(picked).collect();
        let temp = tempfile::tempdir().unwrap();
        let archive = temp.path().join("layer.tar");
        let none = |_: &Digest| unreachable!("all content is inline");
        write_layer(&selection, &none, PLAIN, 77, File::create(&archive).unwrap()).unwrap();
        let out = temp.path().join("out");
        fs::create_dir(&out).unwrap();
        output(
            Command::new("tar").env("LC_ALL", "C").args(["--no-same-owner", "-xpf"]).arg(&archive).arg("-C").arg(&out),
        );
        let mut found = 0;
        for (path, (entry, content)) in &tree {
            let at = path.below(&out);
            let meta = fs::symlink_metadata(&at).unwrap();
            found += 1;
            assert_eq!(meta.mtime(), 77, "{path}");
            match &entry.node {
                Node::Link { target } => assert_eq!(
                    std::os::unix::ffi::OsStrExt::as_bytes(fs::read_link(&at).unwrap().as_os_str()),
                    target.as_slice()
                ),
                Node::Folder => assert!(meta.is_dir() && meta.mode() & 0o7777 == entry.mode, "{path}"),
                _ => assert!(fs::read(&at).unwrap() == *content && meta.mode() & 0o7777 == entry.mode, "{path}"),
            }
        }
        assert_eq!(found, walkdir::WalkDir::new(&out).min_depth(1).into_iter().count(), "seed {seed}");
    }
}
