//! A full disk is an error that names the file system; with room, the next run succeeds.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::{Layout, Workspace, have};

/// A small disk.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, workspace: &Workspace) -> Self {
        std::fs::create_dir_all(at).expect("create_dir_all");
        let disk = Self(at.into());
        disk.mount(MsFlags::empty(), 1 << 20);
        workspace.user.owns(at);
        disk
    }

    fn resize(&self, bytes: u64) {
        self.mount(MsFlags::MS_REMOUNT, bytes);
    }

    fn mount(&self, flags: MsFlags, bytes: u64) {
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(format!("size={bytes}").as_str())).expect("mount");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// About 12 MB, which compress badly.
const BUILD: &str = r#"
rule("build", deps = ["//base:build"], run = """
mkdir -p /opt
for n in 1 2 3 4 5 6; do cp /bin/busybox /opt/$n; done
""")
tapeout("tapeout", deps = [":build"], include = ["/opt/**"])
image("image", deps = [":tapeout"])
"#;

/// Builds on a disk that grows until there is room: the digest, and how often there was none.
fn grow(disk: &Disk, workspace: &Workspace, step: u64) -> (String, u32) {
    grow_with(disk, workspace, step, "overlay")
}

fn grow_with(disk: &Disk, workspace: &Workspace, step: u64, snapshots: &str) -> (String, u32) {
    let mut full = 0;
    for size in (1..).map(|count| count * step) {
        assert!(size < 1 << 30, "a gigabyte is not enough");
        disk.resize(size);
        let outcome =
            workspace.run(&format!("build --snapshots {snapshots} //app:image/build_image --output out/images"));
        if outcome.succeeded() {
            break;
        }
        // The place is named as the user knows it, and what to do is said.
        outcome.failure(1).says("No space left on device").says(&disk.0.display().to_string()).says("make room");
        full += 1;
    }
    (Layout::open(&workspace.path("out/images/app/image/build_image")).only().digest, full)
}

fn in_a_fresh_place() -> String {
    let fresh = Workspace::tiny();
    fresh.file("app/build.star", BUILD);
    fresh.run("build //app:image/build_image").success();
    Layout::open(&fresh.output("app/image/build_image")).only().digest
}

#[test]
fn a_full_store_is_named_and_with_room_the_next_run_succeeds() {
    if !have(&["root", "busybox"]) {
        return;
    }
    for snapshots in ["overlay", "copy"] {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", BUILD);
        let disk = Disk::new(&workspace.everything().join("store"), &workspace);
        let (digest, full) = grow_with(&disk, &workspace, 3 << 20, snapshots);
        assert!(full > 2, "{snapshots}: the disk was never full");
        assert_eq!(digest, in_a_fresh_place(), "{snapshots}");
    }
}

#[test]
fn a_full_output_is_named_and_with_room_the_next_run_succeeds() {
    if !have(&["root", "busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD);
    let disk = Disk::new(&workspace.path("out"), &workspace);
    let (digest, full) = grow(&disk, &workspace, 1 << 20);
    assert!(full > 1, "the disk was never full");
    assert_eq!(digest, in_a_fresh_place());
}

#[test]
fn an_output_that_is_there_survives_a_full_disk() {
    if !have(&["root", "busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    workspace.file("app/build.star", BUILD);
    let disk = Disk::new(&workspace.path("out"), &workspace);
    let (before, _) = grow(&disk, &workspace, 8 << 20);
    let filler = std::fs::File::create(workspace.path("out/filler")).expect("create");
    let _ = std::io::copy(&mut std::io::repeat(1), &mut &filler);
    workspace.file("app/build.star", BUILD.replace("1 2 3 4 5 6", "1 2 3 4 5 6 7 8 9"));
    let outcome = workspace.run("build //app:image/build_image --output out/images");
    outcome.failure(1).says("No space left on device");
    let there = Layout::open(&workspace.path("out/images/app/image/build_image")).only();
    assert_eq!(there.digest, before, "the old image is whole");
}
