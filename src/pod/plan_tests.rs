use super::*;
use crate::build_file::spec::{Container, FileKind, FileRecord, Mount, Pod, Port, Probe, Volume};
use crate::tapeout::testing::{OnDisk, path, picked};
use crate::tree::Picked;

pub fn record(path: &str, content: &str) -> FileRecord {
    FileRecord {
        path: path.into(),
        content: Some(content.into()),
        source: None,
        target: None,
        mode: None,
        owner: "root".into(),
        group: "root".into(),
        kind: FileKind::File,
    }
}

pub fn container(name: &str, image: ImageRef) -> Container {
    Container {
        name: name.into(),
        image,
        command: vec![],
        env: BTreeMap::new(),
        user: String::new(),
        group: String::new(),
        working_dir: String::new(),
        read_only: true,
        writable: vec![],
        mounts: vec![],
        ports: vec![],
        probes: BTreeMap::new(),
        restart: "always".into(),
    }
}

pub fn mount(volume: &str, path: &str) -> Mount {
    Mount { volume: volume.into(), path: path.into(), read_only: false }
}

pub fn volume(name: &str, holds: VolumeKind) -> Volume {
    Volume { name: name.into(), holds, user: String::new(), group: String::new(), read_only: false }
}

/// A web server and redis, with data and configuration.
pub fn shop() -> Pod {
    let web = Container {
        command: vec!["/usr/bin/web".into(), "--config".into(), "/etc/web/web.conf".into()],
        env: [
            ("GREETING".to_string(), "100% ${HOME} $(GREETING) $$\nnew: line".to_string()),
            ("PLAIN".to_string(), "yes".to_string()),
        ]
        .into(),
        user: "web".into(),
        writable: vec!["/tmp".into()],
        mounts: vec![mount("data", "/srv/www"), mount("web.conf", "/etc/web/web.conf"), mount("host", "/host")],
        ports: vec![Port { port: 8080, host: None, protocol: "tcp".into() }],
        probes: [(
            "liveness".to_string(),
            Probe { exec: vec![], http: Some("/health".into()), port: Some(8080), period: 5 },
        )]
        .into(),
        ..container("web", ImageRef::Built(1))
    };
    let redis = Container {
        restart: "on-failure".into(),
        mounts: vec![mount("scratch", "/var/lib/redis")],
        ..container("redis", ImageRef::Built(2))
    };
    Pod {
        containers: vec![web, redis],
        volumes: vec![
            volume(
                "data",
                VolumeKind::Files(vec![FileRecord {
                    owner: "web".into(),
                    ..record("/html/index.html", "<p>hello</p>")
                }]),
            ),
            volume("scratch", VolumeKind::Empty),
            volume("host", VolumeKind::HostPath("/data".into())),
        ],
        files: vec![
            record("web.conf", "listen 8080\nroot /srv/www\n"),
            FileRecord { mode: Some(0o755), ..record("bin/tool", "#!/bin/sh\n") },
        ],
        ports: vec![Port { port: 8080, host: Some(18080), protocol: "tcp".into() }],
        systemd_units: [("shop.service".to_string(), "[Unit]\nDescription=100%% ${x}\n".to_string())].into(),
        version: Some("1.0".into()),
    }
}

/// Images with users, whose layouts have no layers.
pub struct Images {
    labels: Vec<Label>,
    tree: Selection,
}

impl Images {
    pub fn new(labels: &[&str]) -> Self {
        let folder = Picked { entry: Some(Entry::folder(0o755)), content: Content::None, why: "".into() };
        let tree = Selection::from([
            (path("etc"), folder),
            (path("etc/passwd"), picked("root:x:0:0::/:/x\nweb:x:100:101::/:/x\n", "")),
            (path("etc/group"), picked("root:x:0:\nweb:x:101:\nother:x:102:\n", "")),
            (path("etc/crowded"), picked("", "")),
        ]);
        Self { labels: labels.iter().map(|l| l.parse().unwrap()).collect(), tree }
    }

    pub fn map(&self, manifest: (Digest, u64), blobs: &[Digest]) -> BTreeMap<Id, Image<'_>> {
        let layout = LayoutImage { tag: String::new(), name: None, platform: None, manifest, blobs: blobs.to_vec() };
        let image = |label| Image {
            label,
            version: Some("2.1"),
            user: (0, 0),
            starts: label.name() != "idle/build_image",
            layout: layout.clone(),
            tree: &self.tree,
        };
        self.labels.iter().enumerate().map(|(at, label)| (at + 1, image(label))).collect()
    }
}

fn planned_with(pod: &Pod, labels: &[&str]) -> Result<Plan> {
    let images = Images::new(labels);
    let label = "//shop:shop/build_pod".parse().unwrap();
    let request = Request {
        pod,
        label: &label,
        images: &images.map((Digest::of("m"), 1), &[]),
        blob: &|_| PathBuf::new(),
        files: &OnDisk("/nowhere".into()),
        package_folder: None,
        epoch: 1_767_225_600,
        threads: NonZeroUsize::MIN,
    };
    plan(&request)
}

fn planned(pod: &Pod) -> Result<Plan> {
    planned_with(pod, &["//app:web/build_image", "//db:redis/build_image"])
}

#[test]
fn a_container_that_starts_nothing_is_told() {
    let pod = Pod { containers: vec![container("idle", ImageRef::Built(1))], ..Pod::default() };
    let warnings = planned_with(&pod, &["//app:idle/build_image"]).unwrap().warnings;
    assert!(matches!(&*warnings, [one] if one.contains("\"idle\" starts nothing")), "{warnings:?}");
    let given = Container { command: vec!["/bin/x".into()], ..container("idle", ImageRef::Built(1)) };
    let pod = Pod { containers: vec![given], ..Pod::default() };
    assert_eq!(planned_with(&pod, &["//app:idle/build_image"]).unwrap().warnings, [] as [String; 0]);
}

#[test]
fn names_become_numbers_and_references() {
    let plan = planned(&shop()).unwrap();
    let web = &plan.described.containers[0];
    assert_eq!(
        (web.user, web.group, web.image.as_str(), web.restart.as_str()),
        (Some(100), Some(101), "localhost/web:2.1", "always")
    );
    assert_eq!(plan.described.containers[1].user, Some(0), "the image's own");
    let entry = plan.volumes["data"][&path("html/index.html")].entry.clone().unwrap();
    assert_eq!((entry.uid, entry.gid), (100, 0));
    assert!(plan.volumes["data"].contains_key(&path("html")));
    assert_eq!(plan.described.volumes[0].claim.as_deref(), Some("shop-data"));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn images_of_one_name_are_told_apart_by_their_package() {
    let plan = planned_with(&shop(), &["//a:web/build_image", "//b/c:web/build_image"]).unwrap();
    assert_eq!(plan.tags.values().collect::<Vec<_>>(), ["a-web", "b-c-web"]);
}

#[test]
fn a_file_in_a_folder_that_the_image_fills_is_a_warning() {
    let mut pod = shop();
    pod.containers[0].mounts[1].path = "/etc/web.conf".into();
    let plan = planned(&pod).unwrap();
    assert!(plan.configured[0][0].crowded && plan.warnings[0].contains("/etc/web.conf"), "{:?}", plan.warnings);
}

#[test]
fn what_no_runtime_could_start_is_refused() {
    type Change = fn(&mut Pod);
    let changes: [(&str, Change); 6] = [
        ("no user \"ghost\" is known", |p| p.containers[0].user = "ghost".into()),
        ("no group \"ghost\" is known", |p| p.containers[0].group = "ghost".into()),
        ("can't be named \"/a\\nb\"", |p| p.files.push(record("a\nb", ""))),
        ("leads out of the bundle", |p| {
            p.files.push(FileRecord {
                kind: FileKind::Link,
                content: None,
                target: Some("../../etc".into()),
                ..record("a", "")
            })
        }),
        ("right below the root", |p| p.containers[0].mounts[1].path = "/web.conf".into()),
        ("a folder that is a mount itself", |p| p.containers[0].mounts[1].path = "/tmp/web.conf".into()),
    ];
    for (what, change) in changes {
        let mut pod = shop();
        change(&mut pod);
        let error = planned(&pod).err().unwrap_or_else(|| panic!("{what}"));
        assert!(error.what().contains(what), "{what}: {error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn a_users_name_of_a_registrys_image_needs_a_number() {
    let mut pod = shop();
    let VolumeKind::Files(files) = &mut pod.volumes[0].holds else { panic!() };
    files[0].owner = "7".into();
    pod.containers[0].image = ImageRef::Registry(format!("docker.io/library/redis@{}", Digest::of("")));
    assert!(planned(&pod).err().unwrap().next_step().unwrap().contains("number"));
    pod.containers[0].user = "999".into();
    let plan = planned(&pod).unwrap();
    assert_eq!(plan.described.containers[0].user, Some(999));
    assert_eq!(plan.described.images.len(), 1);
}

#[test]
fn what_kubernetes_would_expand_is_known() {
    let env = BTreeMap::from([("A".to_string(), String::new())]);
    for (text, expected) in
        [("$(A)", true), ("x$$y", true), ("$(B)", false), ("${A}", false), ("$A", false), ("%s", false)]
    {
        assert_eq!(spec::expands(text, &env), expected, "{text}");
    }
}
