use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use serde_json::Value;

use super::super::plan::tests::{Images, shop};
use super::*;
use crate::build_file::spec::Pod;
use crate::tapeout::testing::OnDisk;

const EPOCH: i64 = 1_767_225_600;

/// Writes a bundle of a pod whose images are one made-up manifest.
pub fn written(pod: &Pod, dir: &Path) -> Written {
    let blobs = tempfile::tempdir().unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.path().join(digest.hex()), bytes).unwrap();
        digest
    };
    let config = put(b"{}");
    let text = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":2}},"layers":[]}}"#);
    let manifest = put(text.as_bytes());
    let images = Images::new(&["//app:web/build_image", "//db:redis/build_image"]);
    let label = "//shop:shop/build_pod".parse().unwrap();
    let request = Request {
        pod,
        label: &label,
        images: &images.map((manifest, text.len() as u64), &[config]),
        blob: &|digest| blobs.path().join(digest.hex()),
        files: &OnDisk("/nowhere".into()),
        package_folder: None,
        epoch: EPOCH,
        threads: NonZeroUsize::MIN,
    };
    write(&request, dir).unwrap()
}

fn read(dir: &Path, name: &str) -> String {
    String::from_utf8(fs::read(dir.join(name)).unwrap()).unwrap()
}

fn documents(dir: &Path) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(&read(dir, "kube.yaml"))
        .map(|d| serde::Deserialize::deserialize(d).unwrap())
        .collect()
}

#[test]
fn the_bundle_has_its_parts_and_its_sums_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let done = written(&shop(), dir.path());
    for name in [
        "pod.json",
        "images/index.json",
        "images/oci-layout",
        "volumes/data.tar.zst",
        "files/web.conf",
        "files/bin/tool",
        "kube.yaml",
        "systemd/shop.service",
        "README",
    ] {
        assert!(dir.path().join(name).is_file(), "{name}");
    }
    let sums = read(dir.path(), "SHA256SUMS");
    assert_eq!(done.digest, Digest::of(&sums));
    let mut sorted: Vec<_> = sums.lines().collect();
    sorted.sort_by_key(|line| &line[66..]);
    assert_eq!(sums.lines().collect::<Vec<_>>(), sorted);
    let checked =
        Command::new("sha256sum").args(["-c", "--strict", "SHA256SUMS"]).current_dir(dir.path()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn modes_and_times_do_not_depend_on_the_umask_or_the_clock() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = written(&shop(), one.path());
    // A umask is the whole process's; a child writes the second bundle under another one.
    fs::set_permissions(two.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(written(&shop(), two.path()), first);
    for (path, kind) in walk(two.path()).unwrap() {
        let data = fs::symlink_metadata(path.below(two.path())).unwrap();
        let executable = path.to_string() == "/files/bin/tool";
        assert_eq!(
            data.permissions().mode() & 0o7777,
            if kind.is_dir() || executable { 0o755 } else { 0o644 },
            "{path}"
        );
        assert_eq!(data.mtime(), EPOCH, "{path}");
    }
}

#[test]
fn the_kube_file_says_what_the_pod_says() {
    let dir = tempfile::tempdir().unwrap();
    written(&shop(), dir.path());
    let all = documents(dir.path());
    let pod = all.iter().find(|d| d["kind"] == "Pod").unwrap();
    let web = &pod["spec"]["containers"][0];
    assert_eq!(web["image"], "localhost/web:2.1");
    assert_eq!(web["securityContext"]["runAsUser"], 100);
    assert_eq!(web["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(web["ports"][0]["hostPort"], 18080);
    assert!(pod["spec"]["containers"][1]["ports"].is_null());
    assert_eq!(web["livenessProbe"]["httpGet"]["path"], "/health");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let named =
        |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("{name}: {volumes:?}"));
    assert_eq!(named("volume-data")["persistentVolumeClaim"]["claimName"], "shop-data");
    assert_eq!(named("volume-host")["hostPath"]["path"], "/data");
    let configured = named("files-web-0")["configMap"]["name"].as_str().unwrap();
    let map = all.iter().find(|d| d["metadata"]["name"] == configured).unwrap();
    assert_eq!(map["data"]["web.conf"], "listen 8080\nroot /srv/www\n");
    for mount in web["volumeMounts"].as_array().unwrap() {
        named(mount["name"].as_str().unwrap());
    }
    let greeting = web["env"].as_array().unwrap().iter().find(|e| e["name"] == "GREETING").unwrap();
    let from = greeting["valueFrom"]["configMapKeyRef"]["name"].as_str().unwrap();
    assert_eq!(
        all.iter().find(|d| d["metadata"]["name"] == from).unwrap()["data"]["GREETING"],
        "100% ${HOME} $(GREETING) $$\nnew: line"
    );
    assert!(web["env"].as_array().unwrap().iter().any(|e| e["value"] == "yes"), "a string, for every reader");
}

#[test]
fn a_changed_file_changes_the_name_of_its_map() {
    let name = |pod: &Pod| {
        let dir = tempfile::tempdir().unwrap();
        written(pod, dir.path());
        documents(dir.path()).iter().find(|d| d["data"]["web.conf"].is_string()).unwrap()["metadata"]["name"].clone()
    };
    let mut changed = shop();
    changed.files[0].content = Some("other\n".into());
    assert_ne!(name(&shop()), name(&changed), "podman keeps the volume of a ConfigMap by its name");
}

#[test]
fn the_readme_names_every_step() {
    let dir = tempfile::tempdir().unwrap();
    written(&shop(), dir.path());
    let text = read(dir.path(), "README");
    for line in [
        "podman tag \"$(podman pull -q oci:images:web)\" localhost/web:2.1",
        "podman tag \"$(podman pull -q oci:images:redis)\" localhost/redis:2.1",
        "podman volume import shop-data volumes/data.tar.zst",
        "podman kube play kube.yaml",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn the_document_fits_its_schema_and_the_schema_has_no_more() {
    let dir = tempfile::tempdir().unwrap();
    written(&shop(), dir.path());
    let document: Value = serde_json::from_str(&read(dir.path(), "pod.json")).unwrap();
    let faults = crate::pod::schema::faults(&document).unwrap();
    assert!(faults.is_empty(), "{faults:#?}");
    let mut changed = document.clone();
    changed["containers"][0]["readOnly"] = Value::from("yes");
    changed["more"] = Value::from(1);
    changed.as_object_mut().unwrap().remove("created");
    changed["name"] = Value::from("Not/a name");
    let faults = crate::pod::schema::faults(&changed).unwrap();
    assert_eq!(faults.len(), 4, "the schema finds what is wrong: {faults:#?}");
    let again: super::super::described::Pod = serde_json::from_value(document).unwrap();
    assert_eq!(again.containers.len(), 2);
}
