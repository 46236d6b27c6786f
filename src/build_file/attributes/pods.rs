//! Pods: containers, volumes, mounts, ports, probes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Attributes, Edge, image_label};
use crate::build_file::data::{Data, Record};
use crate::build_file::spec::{Container, ImageRef, Mount, Pod, Port, Probe, Volume, VolumeKind};
use crate::nearest::nearest;

/// A record's fields, read like a call's arguments; what is wrong is said at the attribute it stands in.
impl Attributes<'_> {
    pub(super) fn pod(&mut self, images: &mut Vec<Edge>) -> Pod {
        let volumes: Vec<Volume> =
            self.records("volumes", "volume").into_iter().filter_map(|fields| self.volume(fields)).collect();
        let files = self.files("files", false);
        let containers: Vec<Container> = self
            .records("containers", "container")
            .into_iter()
            .filter_map(|fields| self.container(fields, images))
            .collect();
        self.unique("containers", containers.iter().map(|container| container.name.as_str()));
        self.unique("volumes", volumes.iter().map(|volume| volume.name.as_str()));
        self.unique("files", files.iter().map(|file| file.path.as_str()));
        let mountable: BTreeSet<&str> = volumes
            .iter()
            .map(|volume| volume.name.as_str())
            .chain(files.iter().map(|file| file.path.as_str()))
            .collect();
        for mount in containers.iter().flat_map(|container| &container.mounts) {
            if !mountable.contains(mount.volume.as_str()) {
                let near = nearest(&mount.volume, mountable.iter().copied());
                let next =
                    near.map_or("add it to volumes or files".to_string(), |near| format!("did you mean {near}?"));
                self.fault(
                    "containers",
                    Some(&mount.volume),
                    format!("there is no volume or file {:?} to mount", mount.volume),
                    Some(&next),
                );
            }
        }
        // One that is wrong is one all the same.
        if matches!(self.get("containers"), Some(Data::List(items)) if items.is_empty()) {
            self.fault("containers", None, "a pod needs a container", Some("add one to containers"));
        }
        let ports: Vec<Port> = self.items("ports").iter().filter_map(|item| self.port("ports", item)).collect();
        // What a pod lists is published: where nothing else is said, under its own number.
        let ports: Vec<Port> =
            ports.into_iter().map(|port| Port { host: port.host.or(Some(port.port)), ..port }).collect();
        self.check_ports(&ports, &containers);
        Pod { containers, volumes, files, ports, systemd_units: self.units(), version: self.version() }
    }

    /// All containers share one network: a port is one container's, and a host's port is one port's.
    fn check_ports(&mut self, ports: &[Port], containers: &[Container]) {
        let (mut listening, mut published) = (BTreeMap::new(), BTreeMap::new());
        for container in containers {
            for port in &container.ports {
                if let Some(other) = listening.insert((port.port, &port.protocol), &container.name) {
                    let what = format!(
                        "{other} and {} both listen on port {}/{}: the containers of a pod share one network",
                        container.name, port.port, port.protocol
                    );
                    self.fault("containers", Some(&container.name), what, Some("give them different ports"));
                }
            }
        }
        let all = ports.iter().map(|port| ("ports", port));
        for (attribute, port) in
            all.chain(containers.iter().flat_map(|container| &container.ports).map(|port| ("containers", port)))
        {
            let Some(host) = port.host else { continue };
            let inside = published.insert((host, &port.protocol), port.port);
            if inside.is_some_and(|inside| inside != port.port) {
                let what = format!("port {host}/{} of the host is published twice", port.protocol);
                self.fault(attribute, None, what, Some("remove one, or publish it elsewhere"));
            }
        }
    }

    fn records<'b>(&mut self, name: &str, kind: &str) -> Vec<&'b BTreeMap<String, Data>>
    where
        Self: 'b,
    {
        // The list lives as long as the arguments do, not as the borrow of self.
        let items: &[Data] = self.items(name);
        let mut made = vec![];
        for item in items {
            match item {
                Data::Record(record) if record.kind == kind => made.push(&record.fields),
                other => self.wrong_type(name, &format!("{kind}(…)"), other),
            }
        }
        made
    }

    fn unique<'b>(&mut self, attribute: &str, names: impl Iterator<Item = &'b str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                let what = format!("{attribute}: {name:?} stands there twice");
                self.fault(attribute, Some(name), what, Some("remove or rename one"));
            }
        }
    }

    fn units(&mut self) -> BTreeMap<String, String> {
        let units = self.dict("systemd_units");
        for name in units.keys() {
            let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b));
            if !good || name.starts_with(['-', '.']) || !name.contains('.') || name.len() > 250 {
                self.fault(
                    "systemd_units",
                    Some(name),
                    format!("not the name of a unit: {name:?}"),
                    Some("write name.service"),
                );
            }
        }
        units
    }

    fn container(&mut self, fields: &BTreeMap<String, Data>, images: &mut Vec<Edge>) -> Option<Container> {
        let name = self.kubernetes_name("containers", fields)?;
        let image = self.container_image(fields.get("image")?, images)?;
        let mut inner = self.inside("container", fields);
        let restart = inner.text("restart").unwrap_or_else(|| "always".to_string());
        if !["always", "on-failure", "never"].contains(&restart.as_str()) {
            inner.fault(
                "restart",
                Some(&restart),
                format!("restart can't be {restart:?}"),
                Some("it is one of always, on-failure, never"),
            );
        }
        for path in inner.texts("writable") {
            inner.is_mountable("writable", &path);
        }
        let container = Container {
            name,
            image,
            command: inner.texts("command"),
            env: inner.environment("env"),
            user: inner.user("user").unwrap_or_default(),
            group: inner.user("group").unwrap_or_default(),
            working_dir: inner.absolute_path("working_dir").unwrap_or_default(),
            read_only: inner.flag("read_only", true),
            writable: inner.absolute_paths("writable"),
            mounts: inner.records("mounts", "mount").into_iter().filter_map(|fields| inner.mount(fields)).collect(),
            ports: inner.items("ports").iter().filter_map(|item| inner.port("ports", item)).collect(),
            probes: inner.probes(),
            restart,
        };
        inner.check_places(&container);
        inner.check_words(&container);
        inner.not_of_proc(&container.working_dir);
        let faults = inner.faults;
        self.take("containers", &container.name, faults);
        Some(container)
    }

    /// Two things can't be mounted at one place.
    fn check_places(&mut self, container: &Container) {
        let mounts = container.mounts.iter().map(|mount| ("mounts", &mount.path));
        let mut seen = BTreeSet::new();
        for (attribute, path) in mounts.chain(container.writable.iter().map(|path| ("writable", path))) {
            if !seen.insert(path.trim_end_matches('/')) {
                let what = format!("two things are mounted at {path:?}");
                self.fault(attribute, Some(path), what, Some("remove one, or mount it elsewhere"));
            }
        }
    }

    /// What podman and Kubernetes read alike in a command, and what both take for a variable's name.
    fn check_words(&mut self, container: &Container) {
        let probes = container.probes.values().flat_map(|probe| &probe.exec);
        for word in container.command.iter().chain(probes).filter(|word| container.expands(word)) {
            let what = format!(
                "command {word:?} reads differently in podman and in Kubernetes: Kubernetes replaces $$ and $(NAME) of the container's env"
            );
            let next = "put it into a script of the image, or write ${NAME} where a shell reads it";
            self.fault("command", Some(word), what, Some(next));
        }
        for name in container.env.keys() {
            let good = !name.starts_with(|c: char| c.is_ascii_digit())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
            if !good {
                let what = format!("not the name of a variable: {name:?}");
                self.fault("env", Some(name), what, Some("letters, digits and _ may stand in it"));
            }
        }
    }

    fn container_image(&mut self, data: &Data, images: &mut Vec<Edge>) -> Option<ImageRef> {
        if let Data::Text(text) = data
            && !text.starts_with("//")
            && !text.starts_with(':')
            && (text.contains(['@', ':']) || (text.contains('/') && text.contains('.')))
        {
            let pinned = text.split_once("@sha256:").is_some_and(|(name, hex)| {
                let named = !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b))
                    && !name.starts_with(['-', '.', '/']);
                named && hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            });
            if !pinned {
                let next = "pin it by digest: registry/name@sha256:…, or name an image of this workspace by label";
                self.fault(
                    "containers",
                    Some(text),
                    format!("an image of a registry without its digest: {text:?}"),
                    Some(next),
                );
                return None;
            }
            return Some(ImageRef::Registry(text.clone()));
        }
        let edge = self.edge("containers", data)?;
        let edge = Edge { label: image_label(edge.label).ok()?, ..edge };
        images.push(edge);
        Some(ImageRef::Built(images.len() - 1))
    }

    fn volume(&mut self, fields: &BTreeMap<String, Data>) -> Option<Volume> {
        let name = self.kubernetes_name("volumes", fields)?;
        let mut inner = self.inside("volume", fields);
        let files = inner.get("files").is_some().then(|| VolumeKind::Files(inner.files("files", true)));
        let host = inner.absolute_path("host_path").map(VolumeKind::HostPath);
        let empty = inner.flag("empty", false).then_some(VolumeKind::Empty);
        let mut holds: Vec<VolumeKind> = files.into_iter().chain(host).chain(empty).collect();
        if holds.len() != 1 {
            inner.fault(
                "",
                Some(&name),
                "a volume has exactly one of files, host_path and empty",
                Some("keep one of them"),
            );
        }
        let owned = inner.get("user").is_some() || inner.get("group").is_some();
        if owned && !matches!(holds[..], [VolumeKind::Files(_)]) {
            inner.fault(
                "",
                Some(&name),
                "user and group are those of a volume's files, and it has none",
                Some("leave them out, or give it files"),
            );
        }
        let volume = Volume {
            holds: holds.pop().unwrap_or(VolumeKind::Empty),
            user: inner.user("user").unwrap_or_default(),
            group: inner.user("group").unwrap_or_default(),
            read_only: inner.flag("read_only", false),
            name,
        };
        let (faults, needs) = (inner.faults, inner.needs);
        self.needs.extend(needs.into_iter().map(|(_, path)| ("volumes", path)));
        self.take("volumes", &volume.name, faults);
        Some(volume)
    }

    fn mount(&mut self, fields: &BTreeMap<String, Data>) -> Option<Mount> {
        let volume = self.string("mounts", fields.get("volume")?)?;
        let path = self.string("mounts", fields.get("path")?)?;
        if self.is_absolute("mounts", &path) {
            self.is_mountable("mounts", &path);
        }
        let read_only = matches!(fields.get("read_only"), Some(Data::Bool(true)));
        Some(Mount { volume, path, read_only })
    }

    /// Nothing is mounted where the container's runtime mounts, nor where podman would read options.
    fn is_mountable(&mut self, attribute: &str, path: &str) {
        let top = path.split('/').find(|part| !part.is_empty() && *part != ".");
        let runtimes = match top {
            None => true,
            Some("dev") => path.trim_end_matches('/') != "/dev/shm",
            Some(top) => top == "proc" || top == "sys",
        };
        let odd = path.contains(|c: char| c.is_control());
        if runtimes || odd || path.contains(':') {
            let why = if runtimes {
                "that belongs to the container's runtime"
            } else if odd {
                "it holds a control character"
            } else {
                "podman takes what follows a colon for options"
            };
            let what = format!("{attribute}: nothing can be mounted at {path:?}: {why}");
            self.fault(attribute, Some(path), what, Some("write another folder"));
        }
    }

    pub(super) fn port(&mut self, attribute: &str, data: &Data) -> Option<Port> {
        let number = |data: Option<&Data>| match data {
            Some(Data::Int(number)) => u16::try_from(*number).ok().filter(|port| *port > 0),
            _ => None,
        };
        let port = match data {
            Data::Int(_) => number(Some(data)).map(|port| Port { port, host: None, protocol: "tcp".to_string() }),
            Data::Record(Record { kind, fields }) if kind == "port" => {
                let protocol = match fields.get("protocol") {
                    None | Some(Data::None) => Some("tcp".to_string()),
                    Some(Data::Text(text)) if text == "tcp" || text == "udp" => Some(text.clone()),
                    Some(_) => None,
                };
                let host = match fields.get("host") {
                    None | Some(Data::None) => Some(None),
                    some => number(some).map(Some),
                };
                match (number(fields.get("port")), host, protocol) {
                    (Some(port), Some(host), Some(protocol)) => Some(Port { port, host, protocol }),
                    _ => None,
                }
            }
            _ => None,
        };
        if port.is_none() {
            self.fault(
                attribute,
                data.text(),
                format!("{attribute}: not a port: {}", data.shown()),
                Some("write 8080 or port(8080, host = 80, protocol = \"tcp\")"),
            );
        }
        port
    }

    fn probes(&mut self) -> BTreeMap<String, Probe> {
        let mut made = BTreeMap::new();
        for (name, data) in self.entries("probes") {
            if !["liveness", "readiness", "startup"].contains(&name.as_str()) {
                self.fault(
                    "probes",
                    Some(name),
                    format!("there is no probe {name:?}"),
                    Some("there are liveness, readiness, startup"),
                );
                continue;
            }
            match data {
                Data::Record(record) if record.kind == "probe" => {
                    let probe = self.probe(&record.fields);
                    made.insert(name.clone(), probe);
                }
                other => self.wrong_type("probes", "probe(…)", other),
            }
        }
        made
    }

    fn probe(&mut self, fields: &BTreeMap<String, Data>) -> Probe {
        let mut inner = self.inside("probe", fields);
        let exec = inner.texts("exec");
        let http = inner.text("http");
        if let Some(http) = &http
            && (!http.starts_with('/') || http.contains(['\n', ' ']))
        {
            inner.fault("http", Some(http), "http takes a path that begins with /", Some("write \"/health\""));
        }
        let port = inner.get("port").and_then(|data| inner.port("port", data)).map(|port| port.port);
        let period = match inner.get("period") {
            None => 10,
            Some(Data::Int(number)) if *number > 0 => *number as u64,
            Some(other) => {
                inner.wrong_type("period", "seconds", other);
                10
            }
        };
        if exec.is_empty() == port.is_none() || (http.is_some() && port.is_none()) {
            inner.fault("", None, "a probe has either exec, or port and perhaps http", Some("keep one way to ask"));
        }
        let faults = inner.faults;
        self.take("probes", "", faults);
        Probe { exec, http, port, period }
    }

    /// A name that Kubernetes takes.
    fn kubernetes_name(&mut self, attribute: &str, fields: &BTreeMap<String, Data>) -> Option<String> {
        let name = self.string(attribute, fields.get("name")?)?;
        let good = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !good || name.is_empty() || name.len() > 63 || name.starts_with('-') || name.ends_with('-') {
            let next = "lower-case letters, digits and - may stand in it, at most 63";
            self.fault(attribute, Some(&name), format!("{attribute}: not a name: {name:?}"), Some(next));
        }
        Some(name)
    }

    fn inside<'b>(&self, kind: &'b str, fields: &'b BTreeMap<String, Data>) -> Attributes<'b>
    where
        Self: 'b,
    {
        Attributes { kind, values: fields, package: self.package, faults: vec![], needs: vec![] }
    }

    /// Faults of a record, said at the attribute that the record stands in.
    fn take(&mut self, attribute: &str, name: &str, faults: Vec<super::Fault>) {
        for fault in faults {
            let what = if name.is_empty() { fault.what } else { format!("{name}: {}", fault.what) };
            self.fault(attribute, fault.literal.as_deref(), what, fault.next.as_deref());
        }
    }
}
