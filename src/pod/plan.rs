//! What a build file says of a pod, with names as numbers and its images looked into: all that the bundle's writers
//! need. What can be told from the build file alone was checked there (`build_file/attributes/pods.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::described::{self, FORMAT};
use crate::build_file::spec::{self, Id, ImageRef, VolumeKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::config::rfc3339;
use crate::image::layout::LayoutImage;
use crate::label::Label;
use crate::tapeout::lookup::World;
use crate::tapeout::names::Names;
use crate::tapeout::{Files, written};
use crate::tree::{Content, Entry, Node, RootPath, Selection, Stack};

/// An image of the pod.
pub struct Image<'a> {
    /// Its rule, `NAME/build_image`.
    pub label: &'a Label,
    /// Its version.
    pub version: Option<&'a str>,
    /// Its user and group.
    pub user: (u32, u32),
    /// Has it an entrypoint or a command?
    pub starts: bool,
    /// Its documents and layers. The tag is given by the pod.
    pub layout: LayoutImage,
    /// All that it holds, base included, its layers merged.
    pub tree: &'a Selection,
}

/// A pod to bundle.
pub struct Request<'a> {
    /// What the build file says.
    pub pod: &'a spec::Pod,
    /// Its rule, `NAME/build_pod`.
    pub label: &'a Label,
    /// Its images.
    pub images: &'a BTreeMap<Id, Image<'a>>,
    /// Where a blob of an image lies.
    pub blob: &'a dyn Fn(&Digest) -> PathBuf,
    /// Content of the images' files.
    pub files: &'a dyn Files,
    /// Where sources of files are; `None`: the package is built in.
    pub package_folder: Option<&'a Path>,
    /// The time of everything.
    pub epoch: i64,
    /// For compressing.
    pub threads: NonZeroUsize,
}

/// A configuration file that is mounted, as a key of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// The folder that it is mounted into.
    pub folder: RootPath,
    /// The name there.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
    /// The image has other files in that folder, which have to stay.
    pub crowded: bool,
    /// Its mode.
    pub mode: u32,
}

/// A checked pod.
pub struct Plan {
    /// As `pod.json` has it; digests of volumes are still missing.
    pub described: described::Pod,
    /// The tags of the images in the layout, by instance.
    pub tags: BTreeMap<Id, String>,
    /// What is in the volumes, by name.
    pub volumes: BTreeMap<String, Selection>,
    /// What is in `files/`.
    pub files: Selection,
    /// Configuration files of each container, in its order.
    pub configured: Vec<Vec<Configured>>,
    /// What people should know.
    pub warnings: Vec<String>,
}

/// Checks a pod and resolves its names.
pub fn plan(request: &Request<'_>) -> Result<Plan> {
    Planning { request, warnings: vec![] }.run()
}

struct Planning<'a> {
    request: &'a Request<'a>,
    warnings: Vec<String>,
}

impl Planning<'_> {
    fn run(mut self) -> Result<Plan> {
        let pod = self.request.pod;
        let name = dns_label(self.request.label.name().trim_end_matches("/build_pod"));
        check_name("pod", &name)?;
        let ends = |c: &&spec::Container| c.restart == "never";
        if let (Some(once), Some(other)) = (pod.containers.iter().find(ends), pod.containers.iter().find(|c| !ends(c)))
        {
            self.warnings.push(format!(
                "container {:?} is not restarted and {:?} is: a pod of Kubernetes has one policy, and kube.yaml restarts both",
                once.name, other.name
            ));
        }
        let tags = self.tags()?;
        let files = self.files()?;
        let mut volumes = BTreeMap::new();
        let mut described_volumes = vec![];
        for volume in &pod.volumes {
            let (described, selection) =
                self.volume(&name, volume).map_err(|e| e.context(format!("volume {:?}", volume.name)))?;
            volumes.extend(selection.map(|selection| (volume.name.clone(), selection)));
            described_volumes.push(described);
        }
        let (mut containers, mut configured) = (vec![], vec![]);
        for container in &pod.containers {
            let done = self
                .container(container, &tags, &files)
                .map_err(|e| e.context(format!("container {:?}", container.name)))?;
            containers.push(done.0);
            configured.push(done.1);
        }
        let ports = pod.ports.iter().map(port).collect();
        let described = described::Pod {
            format_version: FORMAT,
            name,
            label: self.request.label.to_string(),
            version: pod.version.clone(),
            created: rfc3339(self.request.epoch)?,
            images: self.images(&tags),
            containers,
            volumes: described_volumes,
            files: files
                .iter()
                .map(|(path, picked)| described_file(path, picked.entry.as_ref()))
                .collect::<Result<_>>()?,
            ports,
            systemd_units: pod.systemd_units.keys().cloned().collect(),
        };
        Ok(Plan { described, tags, volumes, files, configured, warnings: self.warnings })
    }

    /// A tag for each image: its name; where two packages have images of one name, with the package.
    fn tags(&self) -> Result<BTreeMap<Id, String>> {
        let mut used: BTreeMap<String, Vec<Id>> = BTreeMap::new();
        for container in &self.request.pod.containers {
            if let ImageRef::Built(id) = container.image {
                let ids = used.entry(short_name(self.image(id)?.label)).or_default();
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        let mut tags = BTreeMap::new();
        for (name, ids) in used {
            for id in &ids {
                let label = self.image(*id)?.label;
                let tag = if ids.len() == 1 {
                    name.clone()
                } else {
                    repository(&format!("{}-{name}", label.package().path()))
                };
                if tags.values().any(|other| *other == tag) {
                    return Err(Error::request(format!("two images of the pod would be named {tag:?}"))
                        .next("rename one of the images"));
                }
                tags.insert(*id, tag);
            }
        }
        Ok(tags)
    }

    fn image(&self, id: Id) -> Result<&Image<'_>> {
        self.request.images.get(&id).ok_or_else(|| Error::failed("an image of the pod was not built"))
    }

    fn images(&self, tags: &BTreeMap<Id, String>) -> Vec<described::Image> {
        let described = |(id, tag): (&Id, &String)| {
            let image = self.request.images.get(id)?;
            Some(described::Image {
                name: tag.clone(),
                reference: reference(tag, image.version),
                digest: image.layout.manifest.0,
                label: image.label.to_string(),
                version: image.version.map(str::to_string),
            })
        };
        let mut images: Vec<_> = tags.iter().filter_map(described).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        images
    }

    fn files(&self) -> Result<Selection> {
        let owner = |owner: &str, group: &str| self.owner(owner, group, |_| true);
        let files = written::write(&self.request.pod.files, self.request.package_folder, &owner)?;
        for (path, picked) in &files {
            visible("file", path)?;
            if let Some(Entry { node: Node::Link { target }, .. }) = &picked.entry {
                check_link(path, target)?;
            }
        }
        Ok(files)
    }

    /// Numbers of an owner: written as such, or as the images know them of the containers that `of` takes.
    fn owner(&self, owner: &str, group: &str, of: impl Fn(&spec::Container) -> bool) -> Result<(u32, u32)> {
        let owner = if owner.is_empty() { "0" } else { owner };
        let text = if group.is_empty() { owner.to_string() } else { format!("{owner}:{group}") };
        let mut last = Names::default().find_owner(&text);
        for container in self.request.pod.containers.iter().filter(|c| of(c)) {
            if last.is_ok() {
                break;
            }
            if let ImageRef::Built(id) = container.image {
                last = self.names(id)?.find_owner(&text);
            }
        }
        last.map_err(|e| e.next("write a number, or a name that an image of the pod has"))
    }

    fn names(&self, id: Id) -> Result<Names> {
        let view = Stack::default();
        Names::read(&World::new([self.image(id)?.tree], &view), self.request.files)
    }

    fn volume(&self, pod: &str, volume: &spec::Volume) -> Result<(described::Volume, Option<Selection>)> {
        let mut described = described::Volume {
            name: volume.name.clone(),
            kind: "empty".into(),
            claim: None,
            archive: None,
            digest: None,
            host_path: None,
            read_only: volume.read_only,
        };
        match &volume.holds {
            VolumeKind::Empty => Ok((described, None)),
            VolumeKind::HostPath(path) => {
                described.kind = "hostPath".into();
                described.host_path = Some(path.clone());
                Ok((described, None))
            }
            VolumeKind::Files(records) => {
                let mounts = |container: &spec::Container| container.mounts.iter().any(|m| m.volume == volume.name);
                let owner = |owner: &str, group: &str| self.owner(owner, group, mounts);
                let mut files = written::write(records, self.request.package_folder, &owner)?;
                if !volume.user.is_empty() || !volume.group.is_empty() {
                    let (uid, gid) = self.owner(&volume.user, &volume.group, mounts)?;
                    for entry in files.values_mut().filter_map(|p| p.entry.as_mut()) {
                        entry.uid = if volume.user.is_empty() { entry.uid } else { uid };
                        entry.gid = gid;
                    }
                }
                described.kind = "files".into();
                described.claim = Some(format!("{pod}-{}", volume.name));
                described.archive = Some(format!("volumes/{}.tar.zst", volume.name));
                Ok((described, Some(with_folders(files))))
            }
        }
    }

    fn container(
        &mut self,
        container: &spec::Container,
        tags: &BTreeMap<Id, String>,
        files: &Selection,
    ) -> Result<(described::Container, Vec<Configured>)> {
        let (image, digest) = match &container.image {
            ImageRef::Built(id) => (reference(&tags[id], self.image(*id)?.version), self.image(*id)?.layout.manifest.0),
            ImageRef::Registry(text) => (text.clone(), pinned(text)?),
        };
        if let ImageRef::Built(id) = container.image
            && container.command.is_empty()
            && !self.image(id)?.starts
        {
            self.warnings.push(format!(
                "container {:?} starts nothing: give it a command, or its image an entrypoint or a cmd",
                container.name
            ));
        }
        let (user, group) = self.user(container)?;
        let mounts = container.mounts.iter().map(|m| self.mount(m, files)).collect::<Result<Vec<_>>>()?;
        let configured = mounts.iter().filter_map(|m| m.file.as_ref().map(|file| (file, m)));
        let configured =
            configured.map(|(file, m)| self.configured(container, file, &m.path, files)).collect::<Result<Vec<_>>>()?;
        let places: BTreeSet<_> = mounts
            .iter()
            .filter(|m| m.volume.is_some())
            .map(|m| m.path.as_str())
            .chain(container.writable.iter().map(String::as_str))
            .collect();
        if let Some(file) =
            configured.iter().find(|file| places.iter().any(|at| RootPath::new(at).is_ok_and(|at| at == file.folder)))
        {
            return Err(Error::request(format!(
                "{}/{} is mounted into a folder that is a mount itself",
                file.folder, file.name
            ))
            .next("mount the file in a folder of its own"));
        }
        let described = described::Container {
            name: container.name.clone(),
            image,
            digest,
            command: container.command.clone(),
            env: container.env.clone(),
            user,
            group,
            working_dir: container.working_dir.clone(),
            read_only: container.read_only,
            writable: container.writable.clone(),
            mounts,
            ports: container.ports.iter().map(port).collect(),
            probes: container.probes.iter().map(|(name, p)| (name.clone(), probe(p))).collect(),
            restart: container.restart.clone(),
        };
        Ok((described, configured))
    }

    /// The numbers of a container's user and group: its own, else the image's.
    fn user(&self, container: &spec::Container) -> Result<(Option<u32>, Option<u32>)> {
        let (names, image) = match container.image {
            ImageRef::Built(id) => (self.names(id)?, Some(self.image(id)?.user)),
            ImageRef::Registry(_) => (Names::default(), None),
        };
        let unknown = |e: Error| match image {
            Some(_) => e.next("write a number, or make the user in a rule that the image is taken from"),
            None => e.next("write a number: what names a registry's image has isn't known here"),
        };
        let group =
            (!container.group.is_empty()).then(|| names.find_group(&container.group)).transpose().map_err(unknown)?;
        if container.user.is_empty() {
            return Ok((image.map(|(uid, _)| uid), group.or(image.map(|(_, gid)| gid))));
        }
        let (uid, own) = names.find_user(&container.user).map_err(unknown)?;
        Ok((Some(uid), group.or(own)))
    }

    fn mount(&self, mount: &spec::Mount, files: &Selection) -> Result<described::Mount> {
        let pod = self.request.pod;
        if let Some(volume) = pod.volumes.iter().find(|v| v.name == mount.volume) {
            let read_only = mount.read_only || volume.read_only;
            return Ok(described::Mount {
                volume: Some(mount.volume.clone()),
                file: None,
                path: mount.path.clone(),
                read_only,
            });
        }
        let path = RootPath::new(&mount.volume)?;
        match files.get(&path).and_then(|p| p.entry.as_ref()) {
            Some(Entry { node: Node::File { .. }, .. }) => {
                let file = String::from_utf8_lossy(path.as_bytes()).into_owned();
                Ok(described::Mount { volume: None, file: Some(file), path: mount.path.clone(), read_only: true })
            }
            Some(_) => Err(Error::request(format!("{path} can't be mounted: it is no regular file"))
                .next("mount files one by one, or use a volume")),
            None => Err(Error::failed(format!("there is no volume or file {:?} to mount", mount.volume))),
        }
    }

    /// A file of the pod as a key of a ConfigMap. podman 4 of Debian stable ignores `subPath` and would mount a
    /// folder over the file, so a file is mounted with its folder wherever nothing else is in that folder.
    fn configured(
        &mut self,
        container: &spec::Container,
        file: &str,
        at: &str,
        files: &Selection,
    ) -> Result<Configured> {
        let path = RootPath::new(at)?;
        let folder = path.parent().filter(|folder| !folder.is_root());
        let folder = folder.ok_or_else(|| {
            Error::request(format!("a file can't be mounted right below the root: {at}"))
                .next("mount it in a folder of its own")
        })?;
        let name = String::from_utf8_lossy(path.name()).into_owned();
        if !is_key(&name) {
            return Err(Error::request(format!("a mounted file can't be named {name:?}"))
                .next("use letters, digits, - _ and . alone, at most 253"));
        }
        let Some(picked) = files.get(&RootPath::new(file)?) else {
            return Err(Error::failed("a mounted file got lost"));
        };
        let Content::Inline(content) = &picked.content else {
            return Err(Error::failed("a mounted file has no content"));
        };
        // etcd's limit for an object is 1.5 MiB, and podman's own is Kubernetes'.
        const MOST: usize = 1 << 20;
        if content.len() > MOST {
            return Err(Error::request(format!("file {file:?} is larger than 1 MiB, the most that a ConfigMap holds"))
                .next("put it into a volume"));
        }
        let crowded = match container.image {
            ImageRef::Built(id) => {
                let mounted: BTreeSet<RootPath> =
                    container.mounts.iter().filter_map(|m| RootPath::new(&m.path).ok()).collect();
                let tree = self.image(id)?.tree;
                tree.keys().any(|other| other.parent().as_ref() == Some(&folder) && !mounted.contains(other))
            }
            ImageRef::Registry(_) => false,
        };
        if crowded {
            self.warnings.push(format!(
                "container {:?}: {at} is mounted into a folder in which the image has other files; podman before 4.6 can't do that: mount it in a folder of its own",
                container.name
            ));
        }
        let mode = picked.entry.as_ref().map_or(0o644, |e| e.mode);
        Ok(Configured { folder, name, content: content.clone(), crowded, mode })
    }
}

/// The image's own name, as a repository may be named.
fn short_name(label: &Label) -> String {
    repository(label.name().trim_end_matches("/build_image"))
}

/// Lower case, digits, and single separators inside: the form of the distribution spec.
fn repository(text: &str) -> String {
    let mut out = String::new();
    for c in text.to_ascii_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            _ if out.is_empty() || out.ends_with('-') => {}
            _ => out.push('-'),
        }
    }
    out.trim_end_matches('-').to_string()
}

fn dns_label(text: &str) -> String {
    let text = repository(text);
    text.chars().take(63).collect::<String>().trim_end_matches('-').to_string()
}

/// `localhost/NAME:VERSION`, what the README's commands name it.
fn reference(tag: &str, version: Option<&str>) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let version: String = version.unwrap_or("latest").chars().map(clean).take(128).collect();
    let version = version.trim_start_matches(['.', '-']);
    format!("localhost/{tag}:{}", if version.is_empty() { "latest" } else { version })
}

fn pinned(text: &str) -> Result<Digest> {
    let digest = text.split_once('@').and_then(|(_, digest)| digest.parse().ok());
    digest.ok_or_else(|| {
        Error::request(format!("image {text:?} is not pinned by digest")).next("write registry/name@sha256:…")
    })
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(Error::request(format!("a {what} can't be named {name:?}"))
        .why("its name is a host name in Kubernetes")
        .next("use lower-case letters, digits and - inside, at most 63"))
}

fn port(port: &spec::Port) -> described::Port {
    described::Port { port: port.port, host: port.host, protocol: port.protocol.clone() }
}

fn probe(probe: &spec::Probe) -> described::Probe {
    described::Probe {
        exec: probe.exec.clone(),
        http: probe.http.clone(),
        port: probe.port,
        period: probe.period.clamp(1, i32::MAX as u64),
    }
}

/// What stands in SHA256SUMS and a README must be one line that a shell and sha256sum read alike.
fn visible(what: &str, path: &RootPath) -> Result<()> {
    let good = path.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"/._-+@,= ~".contains(b))
        && !path.as_bytes().split(|b| *b == b'/').any(|p| p.starts_with(b"-"));
    if good {
        Ok(())
    } else {
        Err(Error::request(format!("a {what} of the pod can't be named {:?}", path.to_string()))
            .next("use letters, digits and . _ - + @ , = ~ alone; no part begins with -"))
    }
}

/// A link in a bundle leads to nowhere else.
fn check_link(path: &RootPath, target: &[u8]) -> Result<()> {
    let mut depth = path.ancestors().count() as i64 - 1;
    let mut leaves = target.starts_with(b"/") || target.iter().any(|b| b.is_ascii_control());
    for part in target.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")) {
        depth += if part == b".." { -1 } else { 1 };
        leaves |= depth < 0;
    }
    match leaves {
        true => Err(Error::request(format!("the link {path} leads out of the bundle"))
            .next("write a target below files/, from where the link is")),
        false => Ok(()),
    }
}

fn is_key(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with("..")
}

/// The folders above files that no record names.
fn with_folders(mut files: Selection) -> Selection {
    let missing: BTreeSet<RootPath> =
        files.keys().flat_map(RootPath::ancestors).filter(|p| !p.is_root() && !files.contains_key(p)).collect();
    for path in missing {
        let below = files
            .range(path.clone()..)
            .next()
            .and_then(|(_, p)| p.entry.as_ref())
            .map(|e| (e.uid, e.gid))
            .unwrap_or_default();
        let entry = Entry { uid: below.0, gid: below.1, ..Entry::folder(0o755) };
        files.insert(path, crate::tree::Picked { entry: Some(entry), content: Content::None, why: "".into() });
    }
    files
}

fn described_file(path: &RootPath, entry: Option<&Entry>) -> Result<described::File> {
    let entry = entry.ok_or_else(|| Error::failed("a file of the pod is a removal"))?;
    let (kind, digest, target) = match &entry.node {
        Node::File { digest, .. } => ("file", Some(*digest), None),
        Node::Link { target } => ("link", None, Some(String::from_utf8_lossy(target).into_owned())),
        _ => ("folder", None, None),
    };
    let path = String::from_utf8_lossy(path.as_bytes()).into_owned();
    Ok(described::File {
        path,
        kind: kind.into(),
        digest,
        target,
        mode: format!("{:04o}", entry.mode),
        owner: entry.uid,
        group: entry.gid,
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
