//! The same inputs give the same bytes, whoever builds, where, when and with how many hands.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::examples;
use crate::common::image::fingerprint;
use crate::common::{Layout, User, Workspace, have};

/// What someone with a strict umask gets from a checkout.
fn close_the_sources(workspace: &Workspace) {
    for entry in walkdir::WalkDir::new(workspace.path("")) {
        let entry = entry.expect("walk");
        let mode = fs::metadata(entry.path()).expect("metadata").permissions().mode() & 0o700;
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).expect("chmod");
    }
}

#[test]
fn two_users_on_two_days_in_two_places_get_the_same_images_and_the_same_bundle() {
    if !have(&["root", "faketime"]) {
        return;
    }
    let here = Workspace::empty(User::plain()).env("TZ", "UTC");
    here.copy(&examples::source(), "");
    here.run("build --jobs 1 //...").success();

    let there = Workspace::empty(User::other()).env("TZ", "Asia/Tokyo").env("LANG", "C").behind(&[
        "/bin/sh",
        "-c",
        "umask 077; exec \"$@\"",
        "sh",
        "/usr/bin/faketime",
        "-f",
        "+400d",
    ]);
    let store = there.everything().join("a store with spaces/deeper");
    let there = there.stored_in(store);
    there.copy(&examples::source(), "some/where/else");
    there.file("some/where/else/tapeout.lock", here.read("tapeout.lock"));
    close_the_sources(&there);
    there.run("build -C some/where/else --locked --jobs 4 //...").success();

    let (mine, yours) = (here.output(""), there.path("some/where/else/tapeout-out"));
    for (package, name) in examples::IMAGES {
        let image = format!("{package}/{name}/build_image");
        let (mine, yours) = (Layout::open(&mine.join(&image)).only(), Layout::open(&yours.join(&image)).only());
        assert_eq!(mine.config, yours.config, "{image}");
        for (mine, yours) in mine.layers.iter().flatten().zip(yours.layers.iter().flatten()) {
            assert_eq!(mine, yours, "{image}: {}", String::from_utf8_lossy(&mine.path));
        }
        assert_eq!(mine.digest, yours.digest, "{image}");
    }
    assert_eq!(fingerprint(&mine), fingerprint(&yours));
}
